"""A progress bar over members."""

from collections.abc import Callable
from typing import Any


class Progress:
    """A progress bar over members, which moves with every noise level.

    Arguments:
        members: The number of members to sample.
        guided: The guided denoiser, which counts its evaluations.
        shown: Whether the bar is shown.
    """

    def __init__(self, members: int, guided: Any, shown: bool) -> None:
        from tqdm import tqdm

        self.guided, self.finished = guided, 0.0
        self.bar = tqdm(
            total=members,
            disable=not shown,
            desc="sampling",
            unit="member",
            bar_format="{desc}: {n:.0f}/{total} members |{bar}| {elapsed}, {remaining} left"
            "{postfix}",
        )

    def level(self, block: range) -> Callable[[int, int], None]:
        """The callback of a block's sampler, called with the levels done and their number."""

        def show(done: int, levels: int) -> None:
            self.bar.n = self.finished + len(block) * done / levels
            self.bar.set_postfix_str(
                f"{self.guided.evaluations} evaluations, {self.guided.vjps} VJPs", refresh=False
            )
            self.bar.update(0)

        return show

    def done(self, block: range) -> None:
        """Notes that a block is sampled."""

        self.finished += len(block)
        self.bar.n = self.finished
        self.bar.refresh()

    def __enter__(self) -> "Progress":
        return self

    def __exit__(self, *error: object) -> None:
        self.bar.close()
