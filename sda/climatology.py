"""Climatology: mean and space-time covariance of the states of a system.

The climatology is the Gaussian prior of trajectories, N(mean, Σ). It needs no training, every
network is measured against it and preconditioned by it, and its Σ is the background-error
covariance of guidance. It is estimated in one streamed pass over a dataset, from windows:

- along periodic dimensions the statistics are taken to be homogeneous: one block per wavenumber;
- otherwise densely where a window has few values, and as low rank plus diagonal where it has many.

A covariance of fewer frames is the average over the sub-windows. One of more frames is the
continuation as a stationary Gaussian Markov chain of half windows, which is positive semi-definite
by construction: of all processes with these correlations, about the one of largest entropy.

References:
    | Burg (1975), Maximum entropy spectral analysis, PhD thesis, Stanford.
"""

import math
from collections.abc import Iterator, Mapping, Sequence
from typing import Any, Protocol

import torch
import torch.nn as nn
import xarray as xr
from torch import Tensor

from dynamics.layout import Layout

from .covariance import (
    Covariance,
    DenseCovariance,
    LowRankCovariance,
    SpectralCovariance,
    eigenvectors,
)
from .symmetry import Symmetry, average

DENSE_LIMIT = 4096
RELATIVE_FLOOR = 1e-10


class Climatology(nn.Module):
    """The mean, scale and window covariance of the states of a system.

    Arguments:
        layout: The layout of the states.
        window: The number of frames of the covariance.
        mean: The mean state in physical units, with shape `(channel, *space)`.
        scale: The standard deviation of each variable, with shape `(channel,)`.
        kind: "dense", "spectral" or "low_rank".
        moments: The tensors of the covariance of normalised anomalies in float64: `matrix`;
            `blocks`; or `vectors`, `values` and `floor`.

    Raises:
        ValueError: If a shape does not agree with the layout.
    """

    mean: Tensor
    scale: Tensor

    def __init__(
        self,
        layout: Layout,
        window: int,
        mean: Tensor,
        scale: Tensor,
        kind: str,
        moments: Mapping[str, Tensor],
    ) -> None:
        super().__init__()
        if tuple(mean.shape) != layout.shape or tuple(scale.shape) != layout.shape[:1]:
            raise ValueError(
                f"expected a mean of shape {layout.shape} and a scale of shape {layout.shape[:1]}, "
                f"got {tuple(mean.shape)} and {tuple(scale.shape)}"
            )
        if kind not in BUILDERS:
            raise ValueError(f"kind must be one of {sorted(BUILDERS)}, got {kind!r}")
        if not (torch.isfinite(scale).all() and (scale > 0).all()):
            raise ValueError(f"every variable must vary, got standard deviations {scale.tolist()}")
        self.layout, self.window, self.kind = layout, window, kind
        self.register_buffer("mean", mean.float())
        self.register_buffer("scale", scale.float())
        self.moments = dict(moments)
        if kind == "dense" and "basis" not in self.moments:
            # Kept with the climatology, since no other machine is sure to find the same again.
            self.moments["basis"] = eigenvectors(self.moments["matrix"].double())
        self._cache: dict[tuple[int, torch.dtype], Covariance] = {}

    @property
    def _scale(self) -> Tensor:
        return self.scale.reshape(-1, *[1] * len(self.layout.dims))

    def normalise(self, x: Tensor) -> Tensor:
        """Maps states `(…, channel, *space)` to normalised anomalies `(x − mean) / scale`."""
        return (x - self.mean.to(x)) / self._scale.to(x)

    def denormalise(self, x: Tensor) -> Tensor:
        """Maps normalised anomalies back to states in physical units."""
        return x * self._scale.to(x) + self.mean.to(x)

    def covariance(self, length: int, dtype: torch.dtype = torch.float32) -> Covariance:
        """The covariance of trajectories of `length` frames of normalised anomalies.

        Raises:
            ValueError: If `length` is not positive, or longer than the window where the covariance
                is low rank plus diagonal, which has no extension.
        """

        if length < 1:
            raise ValueError(f"length must be at least 1, got {length}")
        key = (length, dtype)
        if key not in self._cache:
            shape = (length, *self.layout.shape)
            built = BUILDERS[self.kind](self.moments, self.window, shape, dtype)
            self._cache[key] = built.to(self.mean.device)

        return self._cache[key].to(self.mean.device)

    def forget(self, length: int, dtype: torch.dtype = torch.float32) -> None:
        """Frees the memory of a covariance that is not needed again."""
        self._cache.pop((length, dtype), None)

    @classmethod
    def fit(
        cls,
        dataset: xr.Dataset,
        window: int,
        *,
        layout: Layout | None = None,
        symmetries: Sequence[Symmetry] = (),
        stride: int | None = None,
        kind: str | None = None,
        rank: int = 256,
    ) -> "Climatology":
        """Estimates a climatology in one pass over a dataset, one member at a time.

        Arguments:
            dataset: Trajectories as `Layout.to_dataset` makes them; may be larger than memory.
            window: The number of frames of a window.
            layout: The layout (default: read off the dataset).
            symmetries: Symmetries over which the statistics are averaged.
            stride: The distance between windows (default: an eighth of the window).
            kind: "dense", "spectral" or "low_rank" (default: by the layout).
            rank: The rank of a low rank covariance.

        Raises:
            ValueError: If the trajectories are shorter than the window or hold NaN.
        """

        layout = layout or Layout.from_dataset(dataset)
        layout.check(dataset)
        for symmetry in symmetries:
            symmetry.check(layout)
        if not 1 <= window <= dataset.sizes["time"]:
            raise ValueError(
                f"window must be between 1 and the {dataset.sizes['time']} frames of the data, "
                f"got {window}"
            )
        size = window * math.prod(layout.shape)
        if kind is None:
            spectral = bool(layout.dims) and all(layout.periodic)
            kind = "spectral" if spectral else "dense" if size <= DENSE_LIMIT else "low_rank"
        if kind == "spectral" and not (layout.dims and all(layout.periodic)):
            raise ValueError(
                f"a spectral covariance needs periodic dimensions only, got "
                f"period={dict(layout.period)}"
            )
        stride = stride or max(1, window // 8)

        total = torch.zeros(layout.shape, dtype=torch.float64)
        square, count = torch.zeros_like(total), 0
        moment = MOMENTS[kind](layout, window, rank)
        for x in trajectories(dataset, layout):
            total += x.sum(0)
            square += x.square().sum(0)
            count += len(x)
            moment.add(x.unfold(0, window, stride).movedim(-1, 1))

        mean = average(total / count, layout, symmetries)
        variance = average(square / count, layout, [_even(s) for s in symmetries]) - mean.square()
        dims = tuple(range(1, 1 + len(layout.dims)))
        scale = (variance.mean(dims) if dims else variance).clamp(min=0).sqrt()
        if (scale == 0).any():
            constant = [n for n, v in zip(layout.variables, scale, strict=True) if v == 0]
            raise ValueError(f"variables {constant} do not vary: leave them out")

        return cls(layout, window, mean, scale, kind, moment.finish(mean, scale, symmetries))

    @classmethod
    def from_moments(cls, layout: Layout, mean: Tensor, matrix: Tensor) -> "Climatology":
        """Makes a climatology from a known mean and trajectory covariance.

        Arguments:
            layout: The layout.
            mean: The mean state, with shape `(channel, *space)`.
            matrix: The covariance in physical units of a whole number of frames, with shape
                `(n, n)`.
        """

        frame = math.prod(layout.shape)
        if matrix.ndim != 2 or matrix.shape[0] != matrix.shape[1] or len(matrix) % frame:
            raise ValueError(
                f"matrix must be square with a multiple of {frame} rows, got {tuple(matrix.shape)}"
            )
        window = len(matrix) // frame
        matrix = matrix.double()
        cells = frame // layout.shape[0]
        scale = matrix.diagonal().reshape(window, layout.shape[0], cells).mean((0, 2)).sqrt()
        factor = scale.repeat_interleave(cells).repeat(window)

        return cls(
            layout, window, mean, scale, "dense", {"matrix": matrix / torch.outer(factor, factor)}
        )

    def tensors(self) -> dict[str, Tensor]:
        """All tensors, for safetensors."""

        moments = {}
        for name, tensor in self.moments.items():
            tensor = torch.view_as_real(tensor) if tensor.is_complex() else tensor
            moments[name] = tensor.contiguous()

        return {"mean": self.mean.contiguous(), "scale": self.scale.contiguous(), **moments}

    def to_json(self) -> dict[str, Any]:
        return {
            "window": self.window,
            "kind": self.kind,
            "complex": [name for name, tensor in self.moments.items() if tensor.is_complex()],
        }

    @classmethod
    def from_tensors(
        cls, layout: Layout, content: Mapping[str, Any], tensors: Mapping[str, Tensor]
    ) -> "Climatology":
        """The inverse of `tensors` and `to_json`."""

        moments = {name: t.double() for name, t in tensors.items() if name not in ("mean", "scale")}
        for name in content["complex"]:
            moments[name] = torch.view_as_complex(moments[name])

        return cls(
            layout, content["window"], tensors["mean"], tensors["scale"], content["kind"], moments
        )


def trajectories(dataset: xr.Dataset, layout: Layout) -> Iterator[Tensor]:
    """Reads one member after the other, as float64 tensors `(time, channel, *space)`.

    Raises:
        ValueError: If a member holds NaN or infinite values.
    """

    members = dataset.sizes.get("member", 1)
    for i in range(members):
        part = dataset.isel(member=slice(i, i + 1)) if "member" in dataset.dims else dataset
        x = torch.from_numpy(layout.to_array(part)[0]).double()
        if not torch.isfinite(x).all():
            raise ValueError(f"member {i} of the data holds NaN or infinite values")
        yield x


def _even(symmetry: Symmetry) -> Symmetry:
    """The symmetry of squares: no sign changes."""
    return Symmetry(roll=symmetry.roll, flip=symmetry.flip)


# Estimation -------------------------------------------------------------------------------------


class Moment(Protocol):
    """Accumulates the second moment of windows `(B, time, channel, *space)`."""

    def __init__(self, layout: Layout, window: int, rank: int) -> None: ...

    def add(self, windows: Tensor) -> None:
        """Adds a batch of windows."""

    def finish(
        self, mean: Tensor, scale: Tensor, symmetries: Sequence[Symmetry]
    ) -> dict[str, Tensor]:
        """The tensors of the covariance of normalised anomalies, see `Climatology`."""


class DenseMoment:
    """Accumulates E[w wᵀ] of windows `(B, time, channel, *space)`."""

    def __init__(self, layout: Layout, window: int, rank: int) -> None:
        self.layout, self.shape = layout, (window, *layout.shape)
        size = math.prod(self.shape)
        self.sum = torch.zeros(size, dtype=torch.float64)
        self.square = torch.zeros(size, size, dtype=torch.float64)
        self.count = 0

    def add(self, windows: Tensor) -> None:
        w = windows.flatten(1)
        self.sum += w.sum(0)
        self.square += w.T @ w
        self.count += len(w)

    def finish(
        self, mean: Tensor, scale: Tensor, symmetries: Sequence[Symmetry]
    ) -> dict[str, Tensor]:
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

    def __init__(self, layout: Layout, window: int, rank: int) -> None:
        self.layout, self.window = layout, window
        space = layout.shape[1:]
        self.modes = (*space[:-1], space[-1] // 2 + 1)
        self.dims = tuple(range(-len(space), 0))
        size = window * layout.shape[0]
        count = math.prod(self.modes)
        self.square = torch.zeros(count, size, size, dtype=torch.complex128)
        self.sum = torch.zeros(window, *layout.shape, dtype=torch.float64)
        self.count = 0

    def add(self, windows: Tensor) -> None:
        self.sum += windows.sum(0)
        self.count += len(windows)
        for part in windows.split(64):
            h = torch.fft.rfftn(part, dim=self.dims, norm="ortho").flatten(3).flatten(1, 2)
            h = h.permute(2, 1, 0)
            self.square += h @ h.mH

    def finish(
        self, mean: Tensor, scale: Tensor, symmetries: Sequence[Symmetry]
    ) -> dict[str, Tensor]:
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


class LowRankMoment:
    """Keeps the leading directions of the windows seen so far: incremental principal components."""

    def __init__(self, layout: Layout, window: int, rank: int) -> None:
        self.layout, self.shape = layout, (window, *layout.shape)
        self.size, self.rank = math.prod(self.shape), rank
        self.factor = torch.zeros(self.size, 0, dtype=torch.float64)
        self.sum = torch.zeros(self.size, dtype=torch.float64)
        self.square = torch.zeros(self.size, dtype=torch.float64)
        self.count = 0

    def add(self, windows: Tensor) -> None:
        w = windows.flatten(1)
        self.sum += w.sum(0)
        self.square += w.square().sum(0)
        self.count += len(w)
        for part in w.split(max(self.rank, 1)):
            u, s, _ = torch.linalg.svd(torch.cat((self.factor, part.T), dim=1), full_matrices=False)
            self.factor = u[:, : 2 * self.rank] * s[: 2 * self.rank]

    def finish(
        self, mean: Tensor, scale: Tensor, symmetries: Sequence[Symmetry]
    ) -> dict[str, Tensor]:
        if any(s.flip or s.sign or s.roll for s in symmetries):
            raise ValueError("a low rank climatology takes no symmetries: augment the data instead")
        factor = scale.reshape(-1, *[1] * len(self.layout.dims)).expand(self.shape).flatten()
        m = self.sum / self.count
        # S − m mᵀ from the factor of S: one more direction, with a negative sign.
        a = torch.cat((self.factor / math.sqrt(self.count), m[:, None]), dim=1) / factor[:, None]
        sign = torch.ones(a.shape[1], dtype=torch.float64)
        sign[-1] = -1
        q, r = torch.linalg.qr(a)
        values, vectors = torch.linalg.eigh((r * sign) @ r.T)
        keep = min(self.rank, int((values > RELATIVE_FLOOR * values.max()).sum()))
        values, vectors = values[-keep:], q @ vectors[:, -keep:]
        variance = ((self.square / self.count - m.square()) / factor.square()).sum()
        rest = max(float(variance - values.sum()), 0.0) / max(self.size - keep, 1)
        floor = max(rest, RELATIVE_FLOOR * float(values.max()))

        return {
            "vectors": vectors.contiguous(),
            "values": values.contiguous(),
            "floor": torch.tensor([floor], dtype=torch.float64),
        }


MOMENTS: dict[str, type[Moment]] = {
    "dense": DenseMoment,
    "spectral": SpectralMoment,
    "low_rank": LowRankMoment,
}


# Other lengths ----------------------------------------------------------------------------------


def resize(blocks: Tensor, window: int, length: int) -> Tensor:
    """Turns window covariances into covariances of `length` frames.

    Arguments:
        blocks: Covariances with shape `(…, window · d, window · d)`, time outermost.
        window: The number of frames given.
        length: The number of frames wanted.

    Returns:
        Covariances with shape `(…, length · d, length · d)`.
    """

    size = blocks.shape[-1] // window
    if length == window:
        return blocks
    if length < window:
        parts = [
            blocks[..., i * size : (i + length) * size, i * size : (i + length) * size]
            for i in range(window - length + 1)
        ]
        return sum(parts[1:], parts[0]) / len(parts)
    if window == 1:
        # Without lags the chain has no memory.
        eye = torch.eye(length, dtype=blocks.dtype)
        return torch.einsum("ij,...ab->...iajb", eye, blocks).flatten(-4, -3).flatten(-2, -1)

    return extend(blocks, size, window, length)


def extend(blocks: Tensor, size: int, window: int, length: int) -> Tensor:
    """Continues window covariances as those of a stationary Gaussian Markov chain.

    A window of 2p frames, p = window // 2, is a pair of successive blocks z, z' with covariances M
    and M' and cross-covariance C. An estimate is not exactly stationary, M ≠ M', and the regression
    C M⁻¹ can grow without bound when it is iterated. The correlation of the pair cannot,

    .. math:: K = M'^{-1/2} C M^{-1/2}, \\qquad \\| K \\|_2 \\leq 1,

    hence the chain is `z' = N^½ K N^-½ z + e` with the common covariance N = (M + M') / 2:

    .. math:: \\mathrm{Cov}(z_{k+n}, z_k) = N^{1/2} K^n N^{1/2}.

    It is stationary, positive semi-definite, and exact for a Markov chain of order up to p.

    Arguments:
        blocks: Covariances of windows, with shape `(…, window · size, window · size)`.
        size: The number of values of a frame.
        window: The number of frames given, at least 2.
        length: The number of frames wanted.
    """

    half = (window // 2) * size
    pair = resize(blocks, window, 2 * (window // 2))
    first, second, cross = pair[..., :half, :half], pair[..., half:, half:], pair[..., half:, :half]
    root, _ = square_roots((first + second) / 2)
    _, inverse_first = square_roots(first)
    _, inverse_second = square_roots(second)
    u, values, vh = torch.linalg.svd(inverse_second @ cross @ inverse_first)
    correlation = (u * values.clamp(max=1).to(u)[..., None, :]) @ vh

    count = -(-length * size // half)
    powers = [torch.eye(half, dtype=blocks.dtype).expand_as(first)]
    for _ in range(count - 1):
        powers.append(correlation @ powers[-1])
    lags = [root @ power @ root for power in powers]
    rows = [
        torch.cat([lags[i - j] if i >= j else lags[j - i].mH for j in range(count)], dim=-1)
        for i in range(count)
    ]

    return torch.cat(rows, dim=-2)[..., : length * size, : length * size]


def square_roots(matrix: Tensor) -> tuple[Tensor, Tensor]:
    """The square root and the pseudo-inverse square root of semi-definite matrices `(…, n, n)`."""

    values, vectors = torch.linalg.eigh((matrix + matrix.mH) / 2)
    floor = 1e-12 * values.amax(-1, keepdim=True).clamp(min=torch.finfo(values.dtype).tiny)
    inside = values > floor
    values = torch.where(inside, values, torch.zeros_like(values))
    inverse = torch.where(inside, values.clamp(min=1e-300).rsqrt(), torch.zeros_like(values))

    return (vectors * values.sqrt()[..., None, :]) @ vectors.mH, (
        vectors * inverse[..., None, :]
    ) @ vectors.mH


def _dense(
    moments: Mapping[str, Tensor], window: int, shape: tuple[int, ...], dtype: torch.dtype
) -> Covariance:
    basis = moments.get("basis") if shape[0] == window else None
    return DenseCovariance(resize(moments["matrix"], window, shape[0]), shape, dtype, basis)


def _spectral(
    moments: Mapping[str, Tensor], window: int, shape: tuple[int, ...], dtype: torch.dtype
) -> Covariance:
    return SpectralCovariance(resize(moments["blocks"], window, shape[0]), shape, dtype)


def _low_rank(
    moments: Mapping[str, Tensor], window: int, shape: tuple[int, ...], dtype: torch.dtype
) -> Covariance:
    length = shape[0]
    if length > window:
        raise ValueError(
            f"a low rank climatology of {window} frames cannot be extended to {length}: fit it "
            f"with window={length}"
        )
    vectors, values, floor = moments["vectors"], moments["values"], float(moments["floor"])
    if length < window:
        frames = vectors.unflatten(0, (window, -1))
        parts = [frames[i : i + length].flatten(0, 1) for i in range(window - length + 1)]
        a = torch.cat(parts, dim=1) * (values - floor).clamp(min=0).sqrt().repeat(len(parts))
        u, s, _ = torch.linalg.svd(a / math.sqrt(len(parts)), full_matrices=False)
        keep = min(len(values), u.shape[1])
        vectors, values = u[:, :keep], s[:keep].square() + floor

    return LowRankCovariance(vectors, values, floor, shape, dtype)


BUILDERS = {"dense": _dense, "spectral": _spectral, "low_rank": _low_rank}
