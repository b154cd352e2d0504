"""Climatology: mean and space-time covariance of the states of a system.

The climatology is the Gaussian prior of trajectories, N(mean, Σ). It needs no training, every
network is measured against it and preconditioned by it, and its Σ is the background-error
covariance of guidance. It is estimated by streaming over a dataset, from windows:

- along periodic dimensions the statistics are taken to be homogeneous: one block per wavenumber;
- where only one dimension is periodic, in empirical orthogonal functions (EOFs) of each of its
  wavenumbers ("zonal"), over latitude × variable;
- otherwise densely where a window has few values, and in EOFs of single frames where it has many,
  or where there is land ("low_rank").

Kinds "zonal" and "low_rank" read the data twice, see `sda.eof`. The frames of a longer or a shorter
trajectory than the window are those of `sda.extension`.

What "zonal" costs on 32 × 64 cells with three variables at triangular truncation 21, windows of 8
frames, one core: 3 MB of tensors, 1 ms to fit a frame (twice that with the hemispheres' symmetry),
4 s to decompose the covariance of 64 frames (7 s where both dimensions are periodic), and 0.6 s to
apply it to 32 members of them (0.5 s).
"""

import math
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

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
from .covariance_eof import EofCovariance
from .eof import LowRankMoment, ZonalMoment, homogeneous, sections, zonal_mean
from .extension import resize
from .moments import DenseMoment, Moment, Sampling, SpectralMoment
from .symmetry import Symmetry, average

DENSE_LIMIT = 4096


class Climatology(nn.Module):
    """The mean, scale and window covariance of the states of a system.

    Arguments:
        layout: The layout of the states.
        window: The number of frames of the covariance.
        mean: The mean state in physical units, with shape `(channel, *space)`.
        scale: The standard deviation of each variable, with shape `(channel,)`.
        kind: "dense", "spectral", "zonal" or "low_rank".
        moments: The tensors of the covariance of normalised anomalies: `matrix`; `blocks`; or those
            of `sda.eof`, square roots in single precision.

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
        _check_kind(kind, layout)
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
            ValueError: If `length` is not positive.
        """

        if length < 1:
            raise ValueError(f"length must be at least 1, got {length}")
        key = (length, dtype)
        if key not in self._cache:
            built = BUILDERS[self.kind](self.moments, self.layout, self.window, length, dtype)
            self._cache[key] = built.to(self.mean.device)

        return self._cache[key].to(self.mean.device)

    @property
    def matrices(self) -> tuple[int, int]:
        """How many matrices a covariance is decomposed into, and the rows of each for a frame."""

        if self.kind == "spectral":
            return math.prod(self.moments["blocks"].shape[:-2]), self.layout.shape[0]
        found = [(len(t), t.shape[-1]) for n, t in self.moments.items() if n.endswith(".coupled")]
        if not found:
            return 1, math.prod(self.layout.shape)

        return sum(n for n, _ in found), max(size for _, size in found) // self.window

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
        coupled: int | None = None,
        explained: float = 0.99,
    ) -> "Climatology":
        """Estimates a climatology from a dataset, one member at a time.

        In one pass; in two where the covariance is in EOFs ("zonal", "low_rank").

        Arguments:
            dataset: Trajectories as `Layout.to_dataset` makes them; may be larger than memory.
            window: The number of frames of a window.
            layout: The layout (default: read off the dataset).
            symmetries: Symmetries over which the statistics are averaged.
            stride: The distance between windows (default: an eighth of the window).
            kind: "dense", "spectral", "zonal" or "low_rank" (default: by the layout).
            rank: The largest number of EOFs (of each wavenumber where zonal).
            coupled: The largest number of leading EOFs (of each wavenumber) whose covariances with
                each other are kept for all lags (default: 12 where zonal, 32 where low rank). The
                matrices of a trajectory of L frames have L times as many rows.
            explained: The part of the variance that the leading EOFs shall explain.

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
        kind = kind or _kind(layout, window)
        _check_kind(kind, layout)
        stride = stride or max(1, window // 8)
        sampling = Sampling(layout, window, stride, tuple(symmetries), rank, coupled, explained)

        total = torch.zeros(layout.shape, dtype=torch.float64)
        square, count = torch.zeros_like(total), 0
        moment = MOMENTS[kind](sampling)
        for x in trajectories(dataset, layout):
            total += x.sum(0)
            square += x.square().sum(0)
            count += len(x)
            moment.add(x)

        mean = average(total / count, layout, symmetries)
        variance = average(square / count, layout, [_even(s) for s in symmetries]) - mean.square()
        if kind == "zonal":
            # Whatever departs from the mean over longitudes is an anomaly.
            square = variance + mean.square()
            mean = zonal_mean(mean, homogeneous(layout))
            variance = square - mean.square()
        dims = tuple(range(1, 1 + len(layout.dims)))
        scale = (
            (variance.sum(dims) / _cells(layout)).clamp(min=0).sqrt()
            if dims
            else (variance.clamp(min=0).sqrt())
        )
        if (scale == 0).any():
            constant = [n for n, v in zip(layout.variables, scale, strict=True) if v == 0]
            raise ValueError(f"variables {constant} do not vary: leave them out")

        moments = moment.finish(mean, scale, lambda: trajectories(dataset, layout))

        return cls(layout, window, mean, scale, kind, moments)

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
            # A copy: in a file, numbers lie at any multiple of eight bytes, and vectorised sums of
            # complex numbers that do not lie at one of sixteen end the process.
            moments[name] = torch.view_as_complex(moments[name].clone())

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


def _cells(layout: Layout) -> int:
    """The number of cells that are not land."""
    return math.prod(layout.shape[1:]) if layout.mask is None else int(layout.mask.sum())


def _even(symmetry: Symmetry) -> Symmetry:
    """The symmetry of squares: no sign changes."""
    return Symmetry(roll=symmetry.roll, flip=symmetry.flip)


# Kinds ------------------------------------------------------------------------------------------


def _dense(
    moments: Mapping[str, Tensor], layout: Layout, window: int, length: int, dtype: torch.dtype
) -> Covariance:
    basis = moments.get("basis") if length == window else None
    matrix = resize(moments["matrix"], window, length)

    return DenseCovariance(matrix, (length, *layout.shape), dtype, basis)


def _spectral(
    moments: Mapping[str, Tensor], layout: Layout, window: int, length: int, dtype: torch.dtype
) -> Covariance:
    blocks = resize(moments["blocks"], window, length)

    return SpectralCovariance(blocks, (length, *layout.shape), dtype)


def _zonal(
    moments: Mapping[str, Tensor], layout: Layout, window: int, length: int, dtype: torch.dtype
) -> Covariance:
    found = sections(moments, layout, window, length, zonal=True)

    return EofCovariance(found, (length, *layout.shape), homogeneous(layout), None, dtype)


def _low_rank(
    moments: Mapping[str, Tensor], layout: Layout, window: int, length: int, dtype: torch.dtype
) -> Covariance:
    if "vectors" in moments:
        return _low_rank_windows(moments, layout, window, length, dtype)
    found = sections(moments, layout, window, length, zonal=False)
    mask = None if layout.mask is None else torch.from_numpy(layout.mask)

    return EofCovariance(found, (length, *layout.shape), None, mask, dtype)


def _low_rank_windows(
    moments: Mapping[str, Tensor], layout: Layout, window: int, length: int, dtype: torch.dtype
) -> Covariance:
    """That of files which hold the leading directions of whole windows."""

    if length > window:
        raise ValueError(
            f"a low rank climatology of whole windows of {window} frames cannot be extended to "
            f"{length}: fit it again"
        )
    vectors, values, floor = moments["vectors"], moments["values"], float(moments["floor"])
    if length < window:
        frames = vectors.unflatten(0, (window, -1))
        parts = [frames[i : i + length].flatten(0, 1) for i in range(window - length + 1)]
        a = torch.cat(parts, dim=1) * (values - floor).clamp(min=0).sqrt().repeat(len(parts))
        u, s, _ = torch.linalg.svd(a / math.sqrt(len(parts)), full_matrices=False)
        keep = min(len(values), u.shape[1])
        vectors, values = u[:, :keep], s[:keep].square() + floor

    return LowRankCovariance(vectors, values, floor, (length, *layout.shape), dtype)


BUILDERS = {"dense": _dense, "spectral": _spectral, "zonal": _zonal, "low_rank": _low_rank}
MOMENTS: dict[str, type[Moment]] = {
    "dense": DenseMoment,
    "spectral": SpectralMoment,
    "zonal": ZonalMoment,
    "low_rank": LowRankMoment,
}


def _kind(layout: Layout, window: int) -> str:
    """The kind of covariance that fits a layout."""

    if layout.mask is not None:
        return "low_rank"
    if layout.dims and all(layout.periodic):
        return "spectral"
    if homogeneous(layout) is not None:
        return "zonal"

    return "dense" if window * math.prod(layout.shape) <= DENSE_LIMIT else "low_rank"


def _check_kind(kind: str, layout: Layout) -> None:
    """Raises a `ValueError` unless a kind of covariance fits a layout."""

    if kind not in BUILDERS:
        raise ValueError(f"kind must be one of {sorted(BUILDERS)}, got {kind!r}")
    if layout.mask is not None and kind != "low_rank":
        raise ValueError(
            f"a {kind} covariance has no place for land: use kind='low_rank' with a mask"
        )
    if kind == "spectral" and not (layout.dims and all(layout.periodic)):
        raise ValueError(
            f"a spectral covariance needs periodic dimensions only, got "
            f"period={dict(layout.period)}"
        )
    if kind == "zonal" and homogeneous(layout) is None:
        raise ValueError(
            f"a zonal covariance needs one periodic dimension and others that are not, got "
            f"dimensions {layout.dims} with period={dict(layout.period)}"
        )
