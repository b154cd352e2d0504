"""Second moments of windows, accumulated over a dataset one trajectory at a time."""

import math
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from typing import Protocol

import torch
from torch import Tensor

from dynamics.layout import Layout

from .symmetry import Symmetry, average

Data = Callable[[], Iterator[Tensor]]


@dataclass(frozen=True)
class Sampling:
    """What is estimated, and from what.

    Attributes:
        layout: The layout of the states.
        window: The number of frames of a window.
        stride: The distance between windows.
        symmetries: Symmetries over which the statistics are averaged.
        rank: The largest number of EOFs of single frames.
        coupled: The largest number of leading ones whose covariances in time are all kept.
        explained: The part of the variance that these shall explain.
    """

    layout: Layout
    window: int
    stride: int
    symmetries: Sequence[Symmetry] = ()
    rank: int = 256
    coupled: int | None = None
    explained: float = 0.99

    def windows(self, x: Tensor) -> Tensor:
        """The windows of a trajectory, with shape `(B, time, channel, *space)`."""
        return x.unfold(0, self.window, self.stride).movedim(-1, 1)


class Moment(Protocol):
    """Accumulates the second moment of windows."""

    def __init__(self, sampling: Sampling) -> None: ...

    def add(self, x: Tensor) -> None:
        """Adds a trajectory, with shape `(time, channel, *space)`."""

    def finish(self, mean: Tensor, scale: Tensor, data: Data) -> dict[str, Tensor]:
        """The tensors of the covariance of normalised anomalies, see `Climatology`.

        Arguments:
            mean: The mean state, with shape `(channel, *space)`.
            scale: The standard deviation of each variable, with shape `(channel)`.
            data: Gives all trajectories once more.
        """


class DenseMoment:
    """Accumulates E[w wᵀ] of windows `(B, time, channel, *space)`."""

    def __init__(self, sampling: Sampling) -> None:
        self.sampling, self.layout = sampling, sampling.layout
        self.shape = (sampling.window, *self.layout.shape)
        size = math.prod(self.shape)
        self.sum = torch.zeros(size, dtype=torch.float64)
        self.square = torch.zeros(size, size, dtype=torch.float64)
        self.count = 0

    def add(self, x: Tensor) -> None:
        w = self.sampling.windows(x).flatten(1)
        self.sum += w.sum(0)
        self.square += w.T @ w
        self.count += len(w)

    def finish(self, mean: Tensor, scale: Tensor, data: Data) -> dict[str, Tensor]:
        symmetries = self.sampling.symmetries
        m = average((self.sum / self.count).reshape(self.shape), self.layout, symmetries)
        square = self.square / self.count
        if symmetries:
            # Averages the rows, then the columns of each power together: (g ⊗ g) S.
            for symmetry in symmetries:
                total = torch.zeros_like(square)
                order = symmetry.order(self.layout)
                for power in range(order):
                    rows = symmetry(square.reshape(-1, *self.shape), self.layout, power)
                    rows = rows.reshape(square.shape).T
                    columns = symmetry(rows.reshape(-1, *self.shape), self.layout, power)
                    total += columns.reshape(square.shape).T
                square = total / order
        factor = scale.reshape(-1, *[1] * len(self.layout.dims)).expand(self.shape).flatten()
        m = m.flatten()

        return {"matrix": (square - torch.outer(m, m)) / torch.outer(factor, factor)}


class SpectralMoment:
    """Accumulates E[ŵ(κ) ŵ(κ)ᴴ] of windows for every wavenumber κ."""

    def __init__(self, sampling: Sampling) -> None:
        self.sampling, self.layout = sampling, sampling.layout
        self.window = sampling.window
        space = self.layout.shape[1:]
        self.modes = (*space[:-1], space[-1] // 2 + 1)
        self.dims = tuple(range(-len(space), 0))
        size = self.window * self.layout.shape[0]
        count = math.prod(self.modes)
        self.square = torch.zeros(count, size, size, dtype=torch.complex128)
        self.sum = torch.zeros(self.window, *self.layout.shape, dtype=torch.float64)
        self.count = 0

    def add(self, x: Tensor) -> None:
        windows = self.sampling.windows(x)
        self.sum += windows.sum(0)
        self.count += len(windows)
        for part in windows.split(64):
            h = torch.fft.rfftn(part, dim=self.dims, norm="ortho").flatten(3).flatten(1, 2)
            h = h.permute(2, 1, 0)
            self.square += h @ h.mH

    def finish(self, mean: Tensor, scale: Tensor, data: Data) -> dict[str, Tensor]:
        symmetries = self.sampling.symmetries
        m = average(self.sum / self.count, self.layout, symmetries)
        square = (self.square / self.count).unflatten(0, self.modes)
        for symmetry in symmetries:
            # A translation changes no covariance between coefficients of one wavenumber, and the
            # phases of a reflection are common to all frames and variables.
            if symmetry.flip or symmetry.sign:
                square = (square + self._reflect(square, symmetry)) / 2
        h = torch.fft.rfftn(m, dim=self.dims, norm="ortho").flatten(2).flatten(0, 1)
        blocks = square.flatten(0, -3) - (h.T[:, :, None] * h.T[:, None, :].conj())
        factor = scale.repeat(self.window)
        blocks = blocks / torch.outer(factor, factor)
        if blocks.imag.abs().max() < 1e-12 * blocks.real.abs().max():
            blocks = blocks.real

        return {"blocks": blocks.unflatten(0, self.modes).contiguous()}

    def _reflect(self, square: Tensor, symmetry: Symmetry) -> Tensor:
        dims = self.layout.dims
        flip = [dim in symmetry.flip for dim in dims]
        conjugate = flip[-1]
        if conjugate:
            # The half spectrum holds S(−κ) as conj S(κ): a reflection of the last dimension is one
            # of all others, conjugated.
            flip = [not f for f in flip]
        for axis, reverse in enumerate(flip[:-1]):
            if reverse:
                index = (-torch.arange(square.shape[axis])) % square.shape[axis]
                square = square.index_select(axis, index)
        square = square.conj() if conjugate else square
        sign = torch.tensor(
            [float(symmetry.sign.get(name, 1)) for name in self.layout.variables],
            dtype=torch.float64,
        ).repeat(self.window)

        return square * torch.outer(sign, sign)
