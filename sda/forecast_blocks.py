"""The blocks of a forecast: how many states and members each has, and one after the other."""

import math
from collections.abc import Iterator
from typing import TYPE_CHECKING, Any

import numpy as np
import torch

from .budget import COPIES, LARGEST_BLOCK, size_in_bytes
from .conditional import Continuation
from .departure import check_count
from .partial import Partial
from .sampling import Diverged

if TYPE_CHECKING:
    from .prior import Prior


def block_of_time(prior: "Prior", tail: int | None, frames: int | None) -> tuple[int, int]:
    """The numbers of states of a tail and of a block, by default a window together.

    Raises:
        ValueError: If they are not positive, or shorter than a window.
    """

    window = max(prior.window, 2)
    if prior.gaussian:
        window = max(prior.climatology.window, 2)
    if frames is None:
        frames = -(-window // (4 if prior.layout.dims else 8))
        frames = frames if tail is None else max(window - tail, frames)
    check_count("frames", frames)
    tail = max(window - frames, 1) if tail is None else check_count("tail", tail)
    if tail + frames < prior.window:
        raise ValueError(
            f"tail and frames must have at least the {prior.window} states of the prior's window "
            f"together, got {tail} + {frames}"
        )

    return tail, frames


def block_size(
    prior: "Prior",
    members: int,
    length: int,
    known: int,
    lead: int,
    dtype: torch.dtype,
    memory: int | str,
) -> int:
    """The number of members whose forecast fits a memory budget.

    Raises:
        ValueError: If not even one member's window does.
    """

    length = max(length, known + 1, prior.window)
    state = math.prod(prior.layout.shape) * torch.finfo(dtype).bits // 8
    budget, each = size_in_bytes(memory), COPIES * length * state
    if each > budget:
        raise ValueError(
            f"sampling one member's window of {length} states takes about {each / 2**20:.3g} MiB, "
            f"more than memory={memory}: raise it"
        )
    largest = min(budget // (each + lead * state) or 1, LARGEST_BLOCK)

    return math.ceil(members / math.ceil(members / largest))


class Chain:
    """Blocks of states, each given the tail of those before it.

    Arguments:
        prior: The prior.
        tail: The number of states of a tail.
        frames: The number of states of a block. After a tail that is shorter, as many more as make
            a window.
        options: See `sda.conditional.Continuation`.
    """

    def __init__(self, prior: "Prior", tail: int, frames: int, **options: Any) -> None:
        self.prior, self.tail, self.frames, self.options = prior, tail, frames, options
        self._known: dict[int, Continuation] = {}

    def next(self, states: int) -> Continuation:
        """What continues so many states."""

        known = min(self.tail, states)
        if known not in self._known:
            frames = max(self.frames, self.prior.window - known)
            self._known[known] = Continuation(self.prior, known, frames, **self.options)
        return self._known[known]

    def states(
        self,
        before: np.ndarray,
        members: range,
        partial: Partial,
        given: int,
        seed: int,
        lead: int,
        start: float,
    ) -> Iterator[tuple[np.ndarray, dict[int, str]]]:
        """Samples one block after the other, from where `partial` stands to the end.

        Arguments:
            before: The initial states, with shape `(member, states, channel, *space)`.
            members: The indices of the members.
            partial: What is done.
            given: The number of states that were done from the beginning.
            seed: The seed.
            lead: The number of states in the end.
            start: The time of the last initial state.

        Yields:
            The next states in physical units, and what happened to members that failed.
        """

        dtype, device = self.options["dtype"], self.options["device"]
        while partial.done < lead:
            # All are there to see what they continue; the last of them alone are read.
            own = partial.states[:, max(given, partial.done - self.tail) : partial.done]
            x = np.concatenate((before, own), axis=1)[:, -self.tail :]
            last = start + self.prior.layout.dt * (partial.done - given)
            times = last + self.prior.layout.dt * np.arange(1.0 - x.shape[1], 1)
            tail = self.prior.anomalies(x, times, dtype, device)
            lost = [member in partial.failures for member in members]
            # They go on from the mean, so that the others can: they are NaN in the end.
            tail[torch.tensor(lost, device=device)] = 0
            failures: dict[int, str] = {}
            try:
                # Blocks are numbered by their first state: a longer forecast begins the same.
                new = self.next(tail.shape[1]).sample(tail, seed, members, partial.done)
            except Diverged as error:
                new = error.trajectories.nan_to_num(nan=0.0)
                failures = {
                    member: f"{text}, after {partial.done} states of the forecast"
                    for member, text in error.failures.items()
                    if member not in partial.failures
                }
            times = last + self.prior.layout.dt * np.arange(1.0, new.shape[1] + 1)
            yield self.prior.states(new, times).cpu().numpy(), failures
            if len(partial.failures) == len(members):
                return
