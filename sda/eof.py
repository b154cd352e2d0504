r"""Estimation of covariances in empirical orthogonal functions (EOFs), in two passes.

The first pass gives the EOFs of single frames: for each wavenumber of the one homogeneous dimension
(kind "zonal"), or for all cells that are not land (kind "low_rank"). The second gives the temporal
covariances of their coefficients over a window, which are continued to any number of frames as
those of the other kinds are, see `sda.extension` and `sda.covariance_eof`.

What is left out: covariances between EOFs that are not among the leading ones and any others, and
the differences between the directions beyond all EOFs. The variance at each wavenumber, and its
autocovariance over the window, are exact whatever the ranks.
"""

import math
from collections.abc import Iterator, Mapping
from itertools import product

import torch
from torch import Tensor

from dynamics.layout import Layout

from .covariance_eof import Section, Waves, eigen
from .extension import resize
from .moments import Data, Sampling
from .symmetry import Symmetry, average

# The leading EOFs whose covariances are all kept: the matrices of 64 frames take seconds.
COUPLED = {True: 12, False: 32}
# EOFs of less than this part of the largest variance are noise of their storage.
NEGLIGIBLE = 1e-8
# The entries of covariances of frames that are kept in memory; else the leading directions only.
ENTRIES = 1 << 25
# Frames that are transformed at once, and the most elements of a group of symmetries.
FRAMES, GROUP = 256, 16


def homogeneous(layout: Layout) -> int | None:
    """The one periodic dimension of a layout among others that are not, or None."""

    if len(layout.dims) < 2 or sum(layout.periodic) != 1 or layout.mask is not None:
        return None

    return layout.periodic.index(True)


def waves_of(layout: Layout, zonal: bool) -> Waves:
    """The transform to wavenumbers of a layout."""

    mask = None if layout.mask is None else torch.from_numpy(layout.mask)

    return Waves(layout.shape, homogeneous(layout) if zonal else None, mask)


def zonal_mean(x: Tensor, axis: int | None) -> Tensor:
    """The mean of a state `(channel, *space)` over a spatial dimension, if there is one."""

    if axis is None:
        return x

    return x.mean(1 + axis, keepdim=True).expand(x.shape)


class EofMoment:
    """Accumulates covariances of frames, then of windows in their EOFs."""

    zonal: bool

    def __init__(self, sampling: Sampling) -> None:
        self.sampling = sampling
        self.waves = waves_of(sampling.layout, self.zonal)
        self.symmetries = self._symmetries()
        self.count, self.reference = 0, (torch.empty(0), torch.empty(0))
        d, most = self.waves.size, min(sampling.rank, self.waves.size)
        self.exact = self.waves.count * d * d <= ENTRIES
        dtype = torch.complex128 if self.zonal else torch.float64
        self.square = torch.zeros(self.waves.count, d, d if self.exact else 0, dtype=dtype)
        self.most = most

    def _symmetries(self) -> list[Symmetry]:
        """Those that change covariances: not the translations along a homogeneous dimension."""

        layout, axis = self.sampling.layout, self.waves.axis
        along = None if axis is None else layout.dims[axis]
        found = [
            Symmetry({dim: n for dim, n in s.roll.items() if dim != along}, s.flip, s.sign)
            for s in self.sampling.symmetries
        ]
        found = [s for s in found if s.order(layout) > 1]
        if (size := math.prod(s.order(layout) for s in found)) > GROUP:
            raise ValueError(
                f"an EOF climatology takes at most {GROUP} combinations of symmetries, got {size}: "
                f"leave out translations, and augment the data instead"
            )

        return found

    def _images(self, x: Tensor) -> Iterator[Tensor]:
        """A trajectory and its images under the symmetries."""

        layout = self.sampling.layout
        for powers in product(*(range(s.order(layout)) for s in self.symmetries)):
            image = x
            for symmetry, power in zip(self.symmetries, powers, strict=True):
                image = symmetry(image, layout, power)
            yield image

    def _coefficients(self, x: Tensor) -> Tensor:
        """Those of frames, with shape `(κ, d, time)`."""
        return self.waves.analyse(x[None])[..., 0]

    def add(self, x: Tensor) -> None:
        if not self.count:
            # Variables of unlike units are compared from the first trajectory on.
            spread = x.std((0, *range(2, x.ndim))).clamp(min=1e-300)
            mean = average(x.mean(0), self.sampling.layout, self.symmetries)
            self.reference = (
                zonal_mean(mean, self.waves.axis),
                spread.reshape(-1, *[1] * (x.ndim - 2)),
            )
        self.count += len(x)
        for image in self._images((x - self.reference[0]) / self.reference[1]):
            for part in image.split(FRAMES):
                h = self._coefficients(part)
                self.square = self.square + h @ h.mH if self.exact else self._leading(h)

    def _leading(self, h: Tensor) -> Tensor:
        """Adds frames to the leading directions: incremental principal components."""

        u, s, _ = torch.linalg.svd(torch.cat((self.square, h), dim=2), full_matrices=False)
        keep = min(2 * self.most, s.shape[1])

        return u[..., :keep] * s[:, None, :keep].to(u.dtype)

    def _eofs(self, mean: Tensor, scale: Tensor) -> tuple[list[Tensor], list[Tensor]]:
        """The variances and EOFs of each wavenumber, by decreasing variance."""

        layout = self.sampling.layout
        # From the units of the first trajectory to those of all.
        factor = (self.reference[1] / scale.reshape(self.reference[1].shape)).expand(layout.shape)
        if self.waves.axis is not None:
            factor = factor.select(1 + self.waves.axis, 0)
        factor = factor.flatten() if self.zonal else factor.flatten()[self.waves.sea]
        total = self.count * max(1, math.prod(s.order(layout) for s in self.symmetries))
        shift = self._coefficients(((mean - self.reference[0]) / self.reference[1])[None])
        variances, vectors = [], []
        for wave in range(self.waves.count):
            a = self.square[wave]
            if self.exact and wave == 0:
                a = a - total * shift[0] @ shift[0].mH
            a = a * factor[:, None]
            a = a.real if wave in self.waves.real else a
            if self.exact:
                values, basis = eigen(a * factor / total)
                values, basis = values.flip(0), basis.flip(1)
            else:
                basis, s, _ = torch.linalg.svd(a / math.sqrt(total), full_matrices=False)
                values = s.square()
            variances.append(values)
            vectors.append(basis)

        return variances, vectors

    def _ranks(self, variances: list[Tensor]) -> list[tuple[int, int]]:
        """How many EOFs are kept, and coupled, at each wavenumber."""

        d, cap = self.waves.size, self.sampling.coupled
        cap = COUPLED[self.zonal] if cap is None else cap
        twice = torch.cat([v * (1 if w in self.waves.real else 2) for w, v in enumerate(variances)])
        ordered = twice.sort(descending=True).values
        reached = ordered.cumsum(0) >= self.sampling.explained * ordered.sum()
        last = int(reached.nonzero()[0]) if self.sampling.explained < 1 else len(ordered) - 1
        least, noise = ordered[last], NEGLIGIBLE * float(torch.cat(variances).max())
        found = []
        for wave, values in enumerate(variances):
            weight = 1 if wave in self.waves.real else 2
            k = 8 * math.ceil(int((values > noise).sum()) / 8)
            k = min(k, len(values), self.most, d)
            r = 4 * math.ceil(int((values * weight >= least).sum()) / 4)
            found.append((k, min(r, cap, k)))

        return found

    def finish(self, mean: Tensor, scale: Tensor, data: Data) -> dict[str, Tensor]:
        variances, vectors = self._eofs(mean, scale)
        groups: dict[tuple[bool, int, int], list[int]] = {}
        for wave, (k, r) in enumerate(self._ranks(variances)):
            groups.setdefault((wave in self.waves.real, k, r), []).append(wave)
        sums = [
            Sums(waves, torch.stack([vectors[w][:, :k] for w in waves]), r, self.sampling.window)
            for (_, k, r), waves in groups.items()
        ]
        window, stride = self.sampling.window, self.sampling.stride
        each = max(1, FRAMES // stride)
        factor = scale.reshape(-1, *[1] * (mean.ndim - 1))
        for x in data():
            starts = range(0, len(x) - window + 1, stride)
            for image in self._images((x - mean) / factor):
                for i in range(0, len(starts), each):
                    chunk = starts[i : i + each]
                    h = self._coefficients(image[chunk[0] : chunk[-1] + window])
                    for total in sums:
                        total.add(h, stride)

        tensors: dict[str, Tensor] = {}
        for number, total in enumerate(sums):
            tensors |= {f"{number}.{name}": t for name, t in total.finish().items()}

        return tensors


class ZonalMoment(EofMoment):
    """That of statistics that are homogeneous along the one periodic dimension."""

    zonal = True


class LowRankMoment(EofMoment):
    """That of statistics that are homogeneous along no dimension, with or without a coastline."""

    zonal = False


class Sums:
    """The second moments in time of one section, see `sda.covariance_eof.Section`.

    Arguments:
        waves: The wavenumbers.
        basis: The EOFs, with shape `(κ, d, k)`.
        r: The number of EOFs that are coupled.
        window: The number of frames of a window.
    """

    def __init__(self, waves: list[int], basis: Tensor, r: int, window: int) -> None:
        count, self.size, k = basis.shape
        self.waves, self.basis, self.r, self.window = torch.tensor(waves), basis, r, window
        self.coupled = basis.new_zeros(count, window * r, window * r)
        self.own = basis.new_zeros(count, k - r, window, window)
        self.rest = basis.new_zeros(count, window, window)
        self.mean = basis.new_zeros(count, self.size, window)
        self.number = 0

    def add(self, h: Tensor, stride: int) -> None:
        """Adds the windows of a stretch of coefficients, with shape `(κ, d, time)`."""

        h = h[self.waves]
        h = h if self.basis.is_complex() or not h.is_complex() else h.real
        windows = h.unfold(2, self.window, stride)
        self.number += windows.shape[2]
        self.mean += windows.sum(2)
        c = self.basis.mH @ h
        inside = c.unfold(2, self.window, stride)
        lead = inside[:, : self.r].permute(0, 3, 1, 2).flatten(1, 2)
        self.coupled += lead @ lead.mH
        number = windows.shape[2]
        own = c[:, self.r :]
        left = h - self.basis @ c if c.shape[1] < self.size else None
        for lag in range(self.window):
            end = h.shape[2] - lag
            add_lag(self.own, own[..., lag:] * own[..., :end].conj(), lag, number, stride)
            if left is not None:
                product = (left[..., lag:] * left[..., :end].conj()).sum(1)
                add_lag(self.rest, product, lag, number, stride)

    def finish(self) -> dict[str, Tensor]:
        """The tensors of the section: the EOFs, and square roots of the covariances.

        In single precision: a square root's error is small beside the small eigenvalues, too.
        """

        mean = self.mean / self.number
        # Without its mean over all longitudes, a homogeneous field has none.
        mean = mean * (self.waves == 0).to(mean.dtype)[:, None, None]
        c = self.basis.mH @ mean
        lead = c[:, : self.r].permute(0, 2, 1).flatten(1)
        own = c[:, self.r :]
        left = mean - self.basis @ c
        k, single = self.basis.shape[2], torch.float32
        single = torch.complex64 if self.basis.is_complex() else single
        found = {
            "coupled": self.coupled / self.number - lead[:, :, None] * lead.conj()[:, None],
            "own": self.own / self.number - own[..., :, None] * own.conj()[..., None, :],
            "rest": (self.rest / self.number - left.mT @ left.conj()) / max(self.size - k, 1),
        }
        roots = {}
        for name, matrix in found.items():
            values, vectors = eigen(matrix)
            roots[name] = vectors * values.sqrt()[..., None, :]
        tensors = {"basis": self.basis, **roots}

        return {
            "waves": self.waves.float(),
            **{n: t.to(single).contiguous() for n, t in tensors.items() if t.numel()},
        }


def add_lag(total: Tensor, product: Tensor, lag: int, number: int, stride: int) -> None:
    """Adds what has a lag to the second moments of windows.

    Arguments:
        total: The second moments, with shape `(…, window, window)`.
        product: The products of all frames and those `lag` before them, with shape `(…, time)`.
        lag: The lag.
        number: The number of windows.
        stride: The distance between them.
    """

    for first in range(total.shape[-1] - lag):
        value = product[..., first : first + (number - 1) * stride + 1 : stride].sum(-1)
        total[..., first + lag, first] += value
        if lag:
            total[..., first, first + lag] += value.conj()


def sections(
    moments: Mapping[str, Tensor], layout: Layout, window: int, length: int, zonal: bool
) -> list[Section]:
    """The statistics of trajectories of `length` frames, from the tensors of `EofMoment`."""

    size, found, number = waves_of(layout, zonal).size, [], 0
    while f"{number}.waves" in moments:
        part = {
            name.partition(".")[2]: t
            for name, t in moments.items()
            if name.startswith(f"{number}.")
        }
        rest = part["rest"]
        exact = torch.complex128 if rest.is_complex() else torch.float64
        count = len(rest)
        basis = part.get("basis", rest.new_zeros(count, size, 0)).to(exact)
        k = basis.shape[2]
        coupled = part.get("coupled", rest.new_zeros(count, 0, 0)).to(exact)
        r = coupled.shape[-1] // window
        own = part.get("own", rest.new_zeros(count, k - r, window, window)).to(exact)
        rest = rest.to(exact)
        eye = torch.eye(k, dtype=exact)
        for _ in range(2):
            # Orthonormal to single precision as stored: to double precision by Newton's iteration.
            basis = basis @ (1.5 * eye - 0.5 * basis.mH @ basis)
        blocks = [resize(root @ root.mH, window, length) for root in (coupled, own, rest)]
        found.append(Section(part["waves"].long(), basis, *blocks))
        number += 1

    return found
