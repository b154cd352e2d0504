r"""Isotropic spectra of periodic fields.

With $\hat x$ the Fourier transform over the periodic dimensions of a grid of N cells,

$$ E(k) = \frac{1}{2 N^2} \sum_{k - 1/2 \leq |\kappa| / \kappa_1 < k + 1/2} |\hat x_\kappa|^2 $$

where $\kappa_1 = 2\pi / \max(\text{period})$ is the gravest wavenumber. Its sum over all k is half
the mean square (Parseval), hence for velocities, summed over the components, the kinetic energy.
"""

from collections.abc import Sequence

import numpy as np
from numpy.typing import ArrayLike, NDArray

from .scores import as_array


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
    k = wavenumbers(shape, period).ravel()
    batch = x.shape[: x.ndim - len(axes)]
    power = np.abs(np.fft.fftn(x, axes=range(-len(axes), 0))) ** 2 / (2 * k.size**2)
    power = power.reshape(-1, k.size)
    shells = np.stack([np.bincount(k, weights=row) for row in power.astype(np.float64)])

    return np.asarray(shells.reshape(*batch, -1), dtype=np.float64)
