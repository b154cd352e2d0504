r"""Isotropic spectra of periodic fields.

With $\hat x$ the Fourier transform over the periodic dimensions of a grid of N cells,

$$ E(k) = \frac{1}{2 N^2} \sum_{k - 1/2 \leq |\kappa| / \kappa_1 < k + 1/2} |\hat x_\kappa|^2 $$

where $\kappa_1 = 2\pi / \max(\text{period})$ is the gravest wavenumber. Its sum over all k is half
the mean square (Parseval), hence for velocities, summed over the components, the kinetic energy.

The coherence of two fields is the correlation of what they have at wavenumber k,

$$ \gamma(k) = \frac{\sum \mathrm{Re}\, \hat x_\kappa \hat y_\kappa^*}
   {\sqrt{\sum |\hat x_\kappa|^2 \sum |\hat y_\kappa|^2}}, $$

with sums over a shell, over time and whatever else is averaged: 1 for equal fields, 0 for unrelated
ones, cos φ for a wave that is ahead by the phase φ. Where the coherence of the ensemble mean is
near 0, observations say nothing about that scale. In a calibrated ensemble members are as coherent
with the truth as with each other.
"""

from collections.abc import Sequence
from typing import Protocol

import numpy as np
from numpy.typing import ArrayLike, NDArray

from .scores import as_array

# The share of all power that rounding to single precision may leave in a shell.
ROUNDING = 1e-13
# The number of values that are transformed at once.
PIECE_VALUES = 2**20


def wavenumbers(shape: Sequence[int], period: Sequence[float]) -> NDArray[np.integer]:
    """The isotropic wavenumber of each Fourier coefficient of `numpy.fft.fftn`.

    Arguments:
        shape: The number of cells along each periodic dimension.
        period: The period of each.

    Returns:
        The wavenumbers in units of the gravest one, with shape `shape`.
    """

    longest = max(period)
    axes = [np.fft.fftfreq(n, 1 / n) * longest / p for n, p in zip(shape, period, strict=True)]
    magnitude = np.sqrt(sum(k**2 for k in np.meshgrid(*axes, indexing="ij")))

    return np.floor(magnitude + 0.5).astype(np.int64)


def spectrum(
    x: ArrayLike, axes: Sequence[int], period: Sequence[float] | None = None
) -> NDArray[np.float64]:
    r"""The isotropic spectrum over some axes, averaged over nothing else.

    Arguments:
        x: The fields, with shape `(*)`.
        axes: The periodic axes.
        period: The period of each (default: the number of cells, which makes cells square).

    Returns:
        The spectra in the square of the field's units, with shape `(*, wavenumber)`, the periodic
        axes being gone: k = 0, 1, 2, … up to that of the corners of Fourier space.

    Raises:
        ValueError: If there are no axes, or as many periods as axes are not given.
    """

    transform, k = transformed(x, axes, period)

    return shells(np.abs(transform) ** 2, k) / (2 * k.size**2)


def coherence(
    x: ArrayLike, y: ArrayLike, axes: Sequence[int], period: Sequence[float] | None = None
) -> NDArray[np.float64]:
    """The coherence of two fields at each wavenumber, averaged over all other axes.

    Arguments:
        x: One field, with shape `(*)`.
        y: The other, with the same shape.
        axes: The periodic axes.
        period: The period of each (default: the number of cells, which makes cells square).

    Returns:
        The coherences, within [-1, 1], with shape `(wavenumber)`; NaN where one has no power.

    Raises:
        ValueError: If the shapes differ, there are no axes, or as many periods as axes are not
            given.
    """

    x, y = as_array(x), as_array(y)
    if x.shape != y.shape:
        raise ValueError(f"both fields must have one shape, got {x.shape} and {y.shape}")
    (a, k), (b, _) = transformed(x, axes, period), transformed(y, axes, period)
    cross, power_x, power_y = (
        shells(v, k).reshape(-1, k.max() + 1).sum(axis=0)
        for v in ((a * b.conj()).real, np.abs(a) ** 2, np.abs(b) ** 2)
    )

    return correlation(cross, power_x, power_y)


def correlation(cross: NDArray, power_x: NDArray, power_y: NDArray) -> NDArray[np.float64]:
    """Divides cross spectra by the root of both spectra, NaN where one is but rounding errors."""

    scale = np.sqrt(power_x * power_y)

    return np.asarray(
        cross / np.where(beyond_rounding(power_x) & beyond_rounding(power_y), scale, np.nan)
    )


def beyond_rounding(power: NDArray) -> NDArray[np.bool_]:
    """Which shells of spectra `(*, wavenumber)` have more power than rounding errors."""
    return np.asarray(power > ROUNDING * power.sum(-1, keepdims=True))


def transformed(
    x: ArrayLike, axes: Sequence[int], period: Sequence[float] | None
) -> tuple[NDArray, NDArray[np.integer]]:
    """The Fourier transform `(batch, coefficient)` and the wavenumber of each coefficient."""

    x = as_array(x)
    axes = [axis % x.ndim for axis in axes]
    x = np.moveaxis(x, axes, range(-len(axes), 0)) if axes else x
    shape = x.shape[x.ndim - len(axes) :]
    period = list(shape) if period is None else list(period)
    if not axes or len(period) != len(axes):
        raise ValueError(
            f"a spectrum needs at least one periodic axis and a period for each, got axes {axes} "
            f"and periods {period}"
        )
    transform = np.fft.fftn(x, axes=range(-len(axes), 0))
    batch = x.shape[: x.ndim - len(axes)]

    return transform.reshape(*batch, -1), wavenumbers(shape, period).ravel()


def shells(values: NDArray, k: NDArray[np.integer]) -> NDArray[np.float64]:
    """Sums values `(*, coefficient)` over the shells of wavenumbers, to `(*, wavenumber)`."""

    rows = values.reshape(-1, k.size).astype(np.float64)
    summed = [np.bincount(k, weights=row, minlength=k.max() + 1) for row in rows]

    return np.asarray(np.stack(summed).reshape(*values.shape[:-1], -1), dtype=np.float64)


def spectral_ratio(a: NDArray, b: NDArray) -> NDArray[np.float64]:
    """Divides spectra `(*, wavenumber)`, NaN where the second one is but rounding errors."""
    return np.asarray(a / np.where(beyond_rounding(b), b, np.nan))


class Transform(Protocol):
    """What takes fields apart into waves.

    Attributes:
        k: The wavenumber of each coefficient, with shape `(coefficient)`.
        weights: How many waves each stands for, such that sums of squares are those of fields.
        norm: The factor that makes half a mean square of such a sum.
        complete: The largest wavenumber of which all waves are on the grid.
        long_name: What the wavenumber is.
    """

    k: NDArray[np.integer]
    weights: NDArray[np.float64]
    norm: float
    complete: int
    long_name: str

    def __call__(self, x: NDArray) -> NDArray:
        """The coefficients `(field, coefficient)` of fields `(time, *space)`."""


class Fourier:
    """The Fourier transform over the periodic dimensions of `(*space)`, see `Transform`.

    Arguments:
        shape: The number of cells along each periodic dimension.
        period: The period of each.
        axes: Which axes of `(*space)` they are.
        area: The areas of the cells, which are the same along these axes (default: all equal).
    """

    def __init__(
        self,
        shape: Sequence[int],
        period: Sequence[float],
        axes: Sequence[int],
        area: NDArray | None = None,
    ) -> None:
        self.k, self.period = wavenumbers(shape, period).ravel(), period
        # Behind the axis of time.
        self.axes = [axis + 1 for axis in axes]
        self.weights = np.ones(self.k.size)
        self.norm = 1 / (2 * self.k.size**2)
        self.root = None if area is None or (area == 1).all() else np.sqrt(area)
        cells = (n * max(period) / p for n, p in zip(shape, period, strict=True))
        self.complete = int(min(cells) / 2)
        self.long_name = "isotropic wavenumber" if len(axes) > 1 else "wavenumber"

    def __call__(self, x: NDArray) -> NDArray:
        x = x if self.root is None else self.root * x
        return transformed(x, self.axes, self.period)[0].reshape(-1, self.k.size)


class Coherence:
    """Sums the spectra and cross spectra of members, of their mean and of the truth over blocks.

    Arguments:
        members: The number of members.
        transform: What takes fields apart into waves.
    """

    def __init__(self, members: int, transform: Transform) -> None:
        self.transform, self.k = transform, transform.k
        self.power, self.cross = np.zeros((2, members, self.k.max() + 1))
        self.mean, self.mean_cross, self.true = np.zeros((3, self.k.max() + 1))
        self.fields = 0

    def add(self, members: NDArray, x: NDArray, y: NDArray) -> None:
        """Adds members `(member, time, *space)`, by their indices, and the truth `(time, *space)`.

        The truth's own spectrum is left to `add_mean`.
        """

        for part in self.pieces(y):
            b = self.transform(y[part])
            for index, member in zip(members, x, strict=True):
                a = self.transform(member[part])
                self.power[index] += self.total(np.abs(a) ** 2)
                self.cross[index] += self.total((a * b.conj()).real)

    def add_mean(self, mean: NDArray, y: NDArray) -> None:
        """Adds the mean of all members and the truth of the same frames, `(time, *space)`."""

        for part in self.pieces(y):
            a, b = self.transform(mean[part]), self.transform(y[part])
            self.mean += self.total(np.abs(a) ** 2)
            self.mean_cross += self.total((a * b.conj()).real)
            self.true += self.total(np.abs(b) ** 2)
            self.fields += len(b)

    def pieces(self, y: NDArray) -> list[slice]:
        """Some frames of `(time, *space)` at a time, since transforms take more memory."""
        step = max(1, PIECE_VALUES * len(y) // y.size)
        return [slice(i, i + step) for i in range(0, len(y), step)]

    def total(self, values: NDArray) -> NDArray[np.float64]:
        """Sums values `(field, coefficient)` over fields and shells."""
        total = self.transform.weights * values.sum(axis=0, dtype=np.float64)
        return np.asarray(np.bincount(self.k, total, self.k.max() + 1), dtype=np.float64)

    @property
    def members(self) -> NDArray[np.float64]:
        """The mean spectra of the members, with shape `(member, wavenumber)`."""
        return self.power * self.transform.norm / self.fields

    @property
    def truth(self) -> NDArray[np.float64]:
        """The mean spectrum of the truth, with shape `(wavenumber)`."""
        return self.true * self.transform.norm / self.fields

    def of_members(self) -> NDArray[np.float64]:
        """The coherence of each member with the truth, with shape `(member, wavenumber)`."""
        return correlation(self.cross, self.power, self.true)

    def of_mean(self) -> NDArray[np.float64]:
        """The coherence of the ensemble mean with the truth, with shape `(wavenumber)`."""
        return correlation(self.mean_cross, self.mean, self.true)
