r"""Spherical harmonics: fields on a latitude–longitude grid and their triangular spectra.

A field on the sphere is the real part of a sum of orthonormal harmonics

$$ f(\lambda, \varphi) = \sum_{m=-T}^{T} \sum_{l=|m|}^{T} f_l^m P_l^m(\sin\varphi)\, e^{im\lambda},
   \qquad \int |P_l^m e^{im\lambda}|^2 d\Omega = 1, $$

with the Condon–Shortley phase. A transform is a real FFT along longitude and, for each zonal
wavenumber, a product with a table of Legendre functions along latitude. A horizontal vector is
known by its vorticity and divergence; since gradients of harmonics are orthogonal to each other,
both follow from quadratures against derivatives of the Legendre functions, which stay finite at the
poles. Nothing is divided by the cosine of latitude.

References:
    Hack and Jakob (1992), Description of a global shallow water model based on the spectral
    transform method, NCAR TN-343.
    Schaeffer (2013), Efficient spherical harmonic transforms aimed at pseudospectral numerical
    simulations, Geochem. Geophys. Geosyst. 14. https://doi.org/10.1002/ggge.20071
"""

import math

import numpy as np
import torch
from torch import Tensor

GRIDS = ("gaussian", "equiangular")
TINY = 1e-30
SMALL_PRODUCT = 400


class SphericalHarmonics:
    """Transforms between a latitude–longitude grid and spherical harmonics, batched.

    Fields are real with shape `(*, lat, lon)`: latitude increases from south to north, longitude
    starts at 0. Spectra are complex with shape `(*, T + 1, T + 1)`, indexed by zonal wavenumber `m`
    and total wavenumber `l`; entries with `l < m` are zero, and what stands there is ignored. The
    precision and device are those of the argument.

    Arguments:
        lat: The number of latitudes, at least T + 1 on a Gaussian grid and 2 T + 1 on an
            equiangular one, which has both poles.
        lon: The number of longitudes, at least 2 T + 1.
        truncation: The largest total wavenumber T.
        grid: `gaussian` (Gauss–Legendre latitudes) or `equiangular` (Clenshaw–Curtis latitudes).
        radius: The radius of the sphere, which divides derivatives.

    Raises:
        ValueError: If the grid is unknown or too coarse for the truncation.
    """

    def __init__(
        self,
        lat: int,
        lon: int,
        truncation: int,
        grid: str = "gaussian",
        radius: float = 1.0,
    ) -> None:
        if grid not in GRIDS:
            raise ValueError(f"grid must be one of {', '.join(GRIDS)}, got {grid!r}")
        if truncation < 1 or radius <= 0:
            raise ValueError(
                f"truncation must be at least 1 and radius positive, got {truncation} and {radius}"
            )
        # The squared harmonics, polynomials of degree 2T, must be integrated exactly.
        least = truncation + 1 if grid == "gaussian" else 2 * truncation + 1
        if lat < least or lon < 2 * truncation + 1:
            raise ValueError(
                f"truncation {truncation} needs at least {least} latitudes on the {grid} grid and "
                f"{2 * truncation + 1} longitudes, got {lat} × {lon}: take more or truncate earlier"
            )
        self.lat, self.lon, self.truncation = int(lat), int(lon), int(truncation)
        self.grid, self.radius = grid, float(radius)
        nodes = gauss_legendre if grid == "gaussian" else clenshaw_curtis
        self.sine, self.weights = nodes(self.lat)
        self.latitudes = np.degrees(np.arcsin(self.sine))
        self.longitudes = 360.0 / self.lon * np.arange(self.lon)
        self._tables: dict[tuple[torch.dtype, torch.device], Tables] = {}

    def synthesis(self, spectrum: Tensor) -> Tensor:
        """The fields `(*, lat, lon)` of spectra `(*, m, l)`."""
        return self._waves(spectrum, self._tables_of(spectrum).values)

    def analysis(self, field: Tensor) -> Tensor:
        """The spectra `(*, m, l)` of fields `(*, lat, lon)`: the projection onto the harmonics."""
        return self._integrals(field, self._tables_of(field).values_back)

    def gradient(self, spectrum: Tensor) -> tuple[Tensor, Tensor]:
        """The eastward and northward derivative `(*, lat, lon)` of a field with this spectrum."""

        wind = self._rotation_and_gradient(torch.zeros_like(spectrum), spectrum)
        u, v = wind.unbind(-3)

        return u, v

    def velocity(self, vorticity: Tensor, divergence: Tensor) -> tuple[Tensor, Tensor]:
        """The wind `u, v` `(*, lat, lon)` with these spectra of vorticity and divergence.

        Their global means are ignored: those of a wind are zero.
        """

        wind = self._rotation_and_gradient(
            self.inverse_laplacian(vorticity), self.inverse_laplacian(divergence)
        )
        u, v = wind.unbind(-3)

        return u, v

    def vorticity_divergence(self, u: Tensor, v: Tensor) -> tuple[Tensor, Tensor]:
        """The spectra of vorticity and divergence of a wind `u, v` `(*, lat, lon)`."""

        both = self._integrals(torch.stack((u, v), dim=-3), self._tables_of(u).slopes_back)
        slope, turn = both.split(self.truncation + 1, dim=-1)
        # By parts, against the gradients of the conjugate harmonics.
        vorticity = slope[..., 0, :, :] + 1j * turn[..., 1, :, :]
        divergence = 1j * turn[..., 0, :, :] - slope[..., 1, :, :]

        return vorticity, divergence

    def laplacian(self, spectrum: Tensor) -> Tensor:
        """The spectrum of the Laplacian."""
        return spectrum * self._tables_of(spectrum).eigenvalues

    def inverse_laplacian(self, spectrum: Tensor) -> Tensor:
        """The spectrum of zero mean whose Laplacian is the given one less its mean."""
        return spectrum * self._tables_of(spectrum).inverse

    def power(self, spectrum: Tensor) -> Tensor:
        """The contribution of each total wavenumber to the mean square, `(*, l)`."""

        # A wavenumber m > 0 stands for its conjugate too.
        twice = torch.full((self.truncation + 1, 1), 2.0, dtype=spectrum.real.dtype)
        twice[0] = 1

        return (spectrum.abs().square() * twice.to(spectrum.device)).sum(-2) / (4 * math.pi)

    def mean(self, field: Tensor) -> Tensor:
        """The area mean of fields `(*, lat, lon)`."""

        weights = torch.as_tensor(self.weights / 2, dtype=field.dtype, device=field.device)
        return (field.mean(-1) * weights).sum(-1)

    def _rotation_and_gradient(self, psi: Tensor, chi: Tensor) -> Tensor:
        """The wind `(*, 2, lat, lon)` of a stream function and a velocity potential."""

        rotation = torch.cat((-psi, 1j * chi), dim=-1)
        potential = torch.cat((chi, 1j * psi), dim=-1)
        wind = torch.stack((rotation, potential), dim=-3)

        return self._waves(wind, self._tables_of(psi).slopes)

    def _waves(self, coefficients: Tensor, table: Tensor) -> Tensor:
        """The fields `(*, lat, lon)` of coefficients `(*, m, k)` of functions `(m, lat, k)`."""

        columns = coefficients.reshape(-1, *coefficients.shape[-2:]).permute(1, 2, 0)
        waves = multiply(table, columns).permute(2, 1, 0).contiguous()
        fields = torch.fft.irfft(waves, n=self.lon, dim=-1, norm="forward")

        return fields.view(*coefficients.shape[:-2], self.lat, self.lon)

    def _integrals(self, field: Tensor, table: Tensor) -> Tensor:
        """The integrals `(*, m, k)` of fields `(*, lat, lon)` with functions `(m, k, lat)`."""

        if field.shape[-2:] != (self.lat, self.lon):
            raise ValueError(
                f"a field must end with the shape {(self.lat, self.lon)} of the grid, got "
                f"{tuple(field.shape)}"
            )
        waves = torch.fft.rfft(field.reshape(-1, self.lat, self.lon), dim=-1, norm="forward")
        columns = waves[..., : self.truncation + 1].permute(2, 1, 0)
        integrals = multiply(table, columns).permute(2, 0, 1).contiguous()

        return integrals.view(*field.shape[:-2], *integrals.shape[1:])

    def _tables_of(self, array: Tensor) -> "Tables":
        """The tables in the precision and on the device of an array, made once."""

        dtype = array.real.dtype if array.is_complex() else array.dtype
        key = (dtype, array.device)
        if key not in self._tables:
            self._tables[key] = Tables(self, dtype, array.device)

        return self._tables[key]


class Tables:
    """The Legendre functions of one transform in one precision on one device.

    Attributes:
        values: P, with shape `(m, lat, l)`.
        slopes: dP/dφ and m P / cos φ, each over the radius, with shape `(m, lat, 2 l)`.
        values_back: P with the weights of the quadrature, with shape `(m, l, lat)`.
        slopes_back: The same of `slopes`, with shape `(m, 2 l, lat)`.
        eigenvalues: Those of the Laplacian, with shape `(l)`.
        inverse: Their inverses, zero for the mean.
    """

    def __init__(self, of: SphericalHarmonics, dtype: torch.dtype, device: torch.device) -> None:
        values, slopes, turns = legendre_functions(of.truncation, of.sine)
        both = np.concatenate((slopes, turns), axis=1) / of.radius
        weights = 2 * math.pi * of.weights
        degree = np.arange(of.truncation + 1)
        eigenvalues = -degree * (degree + 1) / of.radius**2

        def made(array: np.ndarray) -> Tensor:
            # High wavenumbers vanish towards the poles: below single precision's range, where
            # arithmetic is slow.
            array = np.where(np.abs(array) < TINY, 0, array)
            return torch.from_numpy(np.ascontiguousarray(array)).to(device, dtype)

        self.values, self.slopes = made(values.transpose(0, 2, 1)), made(both.transpose(0, 2, 1))
        self.values_back, self.slopes_back = made(values * weights), made(both * weights)
        self.eigenvalues = made(eigenvalues)
        self.inverse = made(np.where(degree > 0, 1 / np.where(degree > 0, eigenvalues, 1), 0))


def multiply(table: Tensor, columns: Tensor) -> Tensor:
    """Multiplies real tables `(m, n, k)` with complex `(m, k, batch)`, into `(m, n, batch)`.

    Real and imaginary parts of all fields are the columns of one product per zonal wavenumber.
    """

    parts = torch.view_as_real(columns.resolve_conj().contiguous()).flatten(2)
    count = parts.shape[2]
    # Products of fewer terms are summed otherwise: without the zeros, a member's digits would
    # depend on how many others share its batch.
    missing = -(-SMALL_PRODUCT // (table.shape[1] * table.shape[2])) - count
    if missing > 0:
        parts = torch.nn.functional.pad(parts, (0, missing))
    product = torch.bmm(table, parts)[:, :, :count].contiguous()

    return torch.view_as_complex(product.view(*product.shape[:2], -1, 2))


def legendre_functions(truncation: int, sine: np.ndarray) -> tuple[np.ndarray, ...]:
    r"""Computes orthonormal associated Legendre functions and their slopes, in float64.

    The recurrence in $l$ is stable; slopes follow from ladder operators, without a division by the
    cosine, and so hold at the poles too.

    Arguments:
        truncation: The largest total wavenumber T.
        sine: The sines of latitude.

    Returns:
        $P_l^m$, $dP_l^m/d\varphi$ and $m P_l^m / \cos\varphi$, each with shape `(m, l, lat)`.
    """

    top = truncation + 1
    cosine = np.sqrt((1 - sine) * (1 + sine))
    # One wavenumber more than is asked for: ladders reach to m + 1.
    p = np.zeros((top + 1, top, len(sine)))
    p[0, 0] = math.sqrt(1 / (4 * math.pi))
    for k in range(1, top):
        p[k, k] = -math.sqrt((2 * k + 1) / (2 * k)) * cosine * p[k - 1, k - 1]
    for k in range(top):
        for n in range(k + 1, top):
            p[k, n] = sine * p[k, n - 1]
            if n > k + 1:
                back = ((n - 1) ** 2 - k**2) / (4 * (n - 1) ** 2 - 1)
                p[k, n] -= math.sqrt(back) * p[k, n - 2]
            p[k, n] *= math.sqrt((4 * n**2 - 1) / (n**2 - k**2))

    number = np.arange(top, dtype=np.float64)
    m, degree = number[:, None, None], number[None, :, None]
    below = np.concatenate((-p[1:2], p[: top - 1]))  # P of m - 1; that of -1 is minus that of 1
    above = p[1:]

    def root(product: np.ndarray) -> np.ndarray:
        return np.sqrt(np.maximum(product, 0))

    slopes = 0.5 * (
        root((degree + m) * (degree - m + 1)) * below
        - root((degree - m) * (degree + m + 1)) * above
    )
    lower = np.concatenate((np.zeros_like(p[:, :1]), p[:, :-1]), axis=1)  # P of l - 1
    below, above = np.concatenate((-lower[1:2], lower[: top - 1])), lower[1:]
    turns = (
        -0.5
        * root((2 * degree + 1) / np.maximum(2 * degree - 1, 1))
        * (
            root((degree - m) * (degree - m - 1)) * above
            + root((degree + m) * (degree + m - 1)) * below
        )
    )
    turns[0] = 0
    triangle = degree >= m

    return p[:top] * triangle, slopes * triangle, turns * triangle


def gauss_legendre(count: int) -> tuple[np.ndarray, np.ndarray]:
    """The nodes in (-1, 1) and weights that integrate polynomials of degree 2 count - 1."""
    return np.polynomial.legendre.leggauss(count)


def clenshaw_curtis(count: int) -> tuple[np.ndarray, np.ndarray]:
    """The extrema of a Chebyshev polynomial, and weights exact for degree count - 1."""

    n = count - 1
    angle = math.pi * np.arange(count) / n
    k = np.arange(1, n // 2 + 1)
    halved = np.where(2 * k == n, 1.0, 2.0) / (4.0 * k**2 - 1)
    weights = (1 - (halved * np.cos(2 * angle[:, None] * k)).sum(-1)) * 2 / n
    weights[[0, -1]] /= 2

    # The sine, rather than the cosine, keeps both hemispheres and the equator exact.
    return np.sin(angle - math.pi / 2), weights
