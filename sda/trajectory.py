"""From windows to trajectories.

In a Markov chain the score of a frame, given noisy neighbours, depends on the neighbours' near past
and future: a trajectory's denoiser is put together from its windows', each frame taken from the
window in which it is most central,

.. math:: D(x, s)_i = D_{w(i)}(x_{b_{w(i)} : b_{w(i)} + W}, s)_{i - b_{w(i)}}.

Windows start every `stride` frames, and one more ends with the trajectory. With the covariance of
whole trajectories the linear part comes from it and only the network's residual from windows, which
keeps correlations that are longer than a window.

References:
    | Rozet & Louppe (2023), Score-based Data Assimilation, arXiv 2306.10574.
"""

import torch
from torch import Tensor

from .covariance import Covariance
from .denoiser import Denoiser
from .window import WindowDenoiser


class TrajectoryDenoiser(Denoiser):
    """A denoiser of trajectories of any length, composed of windows.

    Arguments:
        window: A denoiser of windows `(B, W, channel, *space)`.
        frames: The number W of frames of a window.
        length: The number of frames L of a trajectory, at least W.
        stride: The distance between windows (default: half a window).
        batch: The largest number of windows in one evaluation (default: all).
        covariance: The covariance of whole trajectories and of windows; if given, the linear part
            of the estimate comes from the former and the residual from windows.
        exposure: The share by which the noise level is understated, see `sda.exposure`.
        context: What windows are given beside their states, of all trajectories alike, with shape
            `(L, k, *space)`, see `sda.context`.

    Raises:
        ValueError: If the trajectory is shorter than a window, or the stride leaves frames out, or
            the context is of another length.
    """

    index: Tensor
    owner: Tensor
    offset: Tensor
    context: Tensor | None

    def __init__(
        self,
        window: Denoiser,
        frames: int,
        length: int,
        stride: int | None = None,
        batch: int | None = None,
        covariance: tuple[Covariance, Covariance] | None = None,
        exposure: float = 0.0,
        context: Tensor | None = None,
    ) -> None:
        super().__init__(window.schedule)
        stride = max(1, frames // 2) if stride is None else stride
        if length < frames:
            raise ValueError(
                f"a trajectory needs at least the window's {frames} frames, got {length}"
            )
        if not 1 <= stride <= frames:
            raise ValueError(
                f"stride must be between 1 and the window's {frames} frames, got {stride}"
            )
        if batch is not None and batch < 1:
            raise ValueError(f"batch must be at least 1, got {batch}")
        if not 0 <= exposure < 1:
            raise ValueError(f"exposure must be in [0, 1), got {exposure}")
        if context is not None and len(context) != length:
            raise ValueError(
                f"a trajectory of {length} frames is given {len(context)} of a context"
            )
        self.register_buffer("context", context, persistent=False)
        self.exposure = exposure
        self.window, self.frames, self.length, self.stride = window, frames, length, stride
        self.batch = batch
        self.long: Covariance | None = None
        self.short: Covariance | None = None
        if covariance is not None:
            self.long, self.short = covariance
        self.starts = window_starts(length, frames, stride)
        owners = window_owners(length, frames, self.starts)
        index = torch.tensor(self.starts)[:, None] + torch.arange(frames)
        self.register_buffer("index", index, persistent=False)
        self.register_buffer("owner", torch.tensor(owners), persistent=False)
        offset = torch.arange(length) - torch.tensor(self.starts)[owners]
        self.register_buffer("offset", offset, persistent=False)

    def denoise(self, x: Tensor, s: Tensor | float) -> Tensor:
        if x.shape[1] != self.length:
            raise ValueError(f"expected trajectories of {self.length} frames, got {x.shape[1]}")
        s = s * (1 - self.exposure)
        if self.long is None:
            return self._compose(x, s)

        return self.long.wiener(x, s) + self._compose(x, s)

    def residual(self, x: Tensor, s: Tensor | float) -> Tensor:
        """What windows contribute to the estimate: all, or all but the linear part."""
        return self._compose(x, s * (1 - self.exposure))

    def _evaluate(self, windows: Tensor, s: Tensor | float) -> Tensor:
        """What windows `(B, W, channel, *space)` contribute: all, or all but the linear part."""

        if self.short is None:
            return self.window.denoise(windows, s)
        if isinstance(self.window, WindowDenoiser) and self.window.covariance is self.short:
            return self.window.residual(windows, s)

        return self.window.denoise(windows, s) - self.short.wiener(windows, s)

    def _compose(self, x: Tensor, s: Tensor | float) -> Tensor:
        """Evaluates the windows of `x`, `(B, L, channel, *space)`, and joins their middles."""

        count = len(self.starts)
        windows = x[:, self.index]
        if self.context is not None:
            given = self.context[self.index].to(x)
            given = given.expand(len(x), *given.shape)
            windows = torch.cat((windows, given), dim=3)
        windows = windows.flatten(0, 1)
        if torch.is_tensor(s) and s.ndim:
            s = s.repeat_interleave(count)
        if self.batch is None or len(windows) <= self.batch:
            out = self._evaluate(windows, s)
        else:
            levels = s.split(self.batch) if torch.is_tensor(s) and s.ndim else None
            out = torch.cat(
                [
                    self._evaluate(part, s if levels is None else levels[i])
                    for i, part in enumerate(windows.split(self.batch))
                ]
            )

        return out.unflatten(0, (len(x), count))[:, self.owner, self.offset]


def window_starts(length: int, frames: int, stride: int) -> list[int]:
    """The first frames of the windows: every `stride`, and the last one that fits."""

    starts = list(range(0, length - frames + 1, stride))
    if starts[-1] != length - frames:
        starts.append(length - frames)

    return starts


def window_owners(length: int, frames: int, starts: list[int]) -> list[int]:
    """For each frame, the index of the window in which it is most central (the first of a tie)."""

    owners = []
    for frame in range(length):
        inside = [i for i, b in enumerate(starts) if b <= frame < b + frames]
        owners.append(
            max(inside, key=lambda i: (min(frame - starts[i], starts[i] + frames - 1 - frame), -i))
        )

    return owners
