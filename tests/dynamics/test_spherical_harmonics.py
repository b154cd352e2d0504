"""Spherical harmonics: against SciPy's, under rotations, and by identities of vector calculus."""

import numpy as np
import pytest
import torch
from scipy.special import sph_harm_y
from torch import Tensor

from dynamics.spherical_harmonics import SphericalHarmonics

F64 = torch.float64
GRIDS = {
    "gaussian": SphericalHarmonics(32, 64, 21),
    "gaussian-least": SphericalHarmonics(8, 15, 7),
    "gaussian-fine": SphericalHarmonics(96, 192, 63, radius=3.0),
    "equiangular": SphericalHarmonics(43, 43, 21, "equiangular", radius=2.0),
    "equiangular-even": SphericalHarmonics(24, 30, 10, "equiangular"),
}
every_grid = pytest.mark.parametrize("y", GRIDS.values(), ids=GRIDS)


def spectrum(y: SphericalHarmonics, *batch: int, seed: int = 0, mean: bool = False) -> Tensor:
    """Random spectra of real fields, of unit scale."""

    generator = torch.Generator().manual_seed(seed)
    parts = (*batch, y.truncation + 1, y.truncation + 1)
    c = torch.complex(*torch.randn(2, *parts, dtype=F64, generator=generator)).triu()
    c[..., 0, :] = c[..., 0, :].real.to(c.dtype)
    if not mean:
        c[..., 0, 0] = 0

    return c


def largest(x: Tensor) -> float:
    return x.abs().max().item()


@every_grid
def test_a_spectrum_survives_the_round_trip(y: SphericalHarmonics) -> None:
    c = spectrum(y, 2, 3, mean=True)
    assert largest(y.analysis(y.synthesis(c)) - c) < 1e-12
    single = c.to(torch.complex64)
    assert largest(y.analysis(y.synthesis(single)) - single) < 1e-4


@every_grid
def test_a_wind_survives_the_round_trip(y: SphericalHarmonics) -> None:
    vorticity, divergence = spectrum(y, 2), spectrum(y, 2, seed=1)
    again = y.vorticity_divergence(*y.velocity(vorticity, divergence))
    assert largest(again[0] - vorticity) < 1e-12 * y.truncation
    assert largest(again[1] - divergence) < 1e-12 * y.truncation


@every_grid
def test_harmonics_are_those_of_scipy(y: SphericalHarmonics) -> None:
    colatitude = np.pi / 2 - np.radians(y.latitudes)[:, None]
    longitude = np.radians(y.longitudes)
    t = y.truncation
    for m, degree in ((0, 0), (0, t), (1, 1), (2, t), (t // 2, t - 1), (t, t)):
        c = torch.zeros(t + 1, t + 1, dtype=torch.complex128)
        amplitude = 1.0 + 0j if m == 0 else 0.3 - 0.7j
        c[m, degree] = torch.tensor(amplitude, dtype=c.dtype)
        harmonic = sph_harm_y(degree, m, colatitude, longitude)
        expected = (amplitude * harmonic).real * (1 if m == 0 else 2)
        assert largest(y.synthesis(c) - torch.from_numpy(expected)) < 1e-11


@every_grid
def test_gradients_are_those_of_scipy(y: SphericalHarmonics) -> None:
    inside = np.abs(y.latitudes) < 89.9
    colatitude = np.pi / 2 - np.radians(y.latitudes[inside])[:, None]
    longitude = np.radians(y.longitudes)
    t = y.truncation
    for m, degree in ((0, 2), (1, 1), (1, t), (3, t - 1), (t, t)):
        c = torch.zeros(t + 1, t + 1, dtype=torch.complex128)
        c[m, degree] = 1.0
        harmonic, slope = sph_harm_y(degree, m, colatitude, longitude, diff_n=1)
        twice = 1 if m == 0 else 2
        east = twice * (1j * m * harmonic).real / np.sin(colatitude) / y.radius
        north = -twice * slope[..., 0].real / y.radius
        u, v = y.gradient(c)
        assert largest(u[inside] - torch.from_numpy(east)) < 1e-10
        assert largest(v[inside] - torch.from_numpy(north)) < 1e-10


@every_grid
def test_an_integral_is_exact(y: SphericalHarmonics) -> None:
    # sin²φ and cos²φ cos²λ are polynomials: their means over the sphere are 1/3.
    lat = torch.from_numpy(np.radians(y.latitudes))[:, None]
    lon = torch.from_numpy(np.radians(y.longitudes))
    assert abs(y.mean(lat.sin().square().expand(y.lat, y.lon)) - 1 / 3) < 1e-14
    assert abs(y.mean((lat.cos() * lon.cos()).square()) - 1 / 3) < 1e-14
    # Parseval, by total wavenumber.
    c = spectrum(y, mean=True)
    assert abs(y.power(c).sum() / y.mean(y.synthesis(c).square()) - 1) < 1e-12


@every_grid
def test_the_power_does_not_change_when_the_sphere_is_turned(y: SphericalHarmonics) -> None:
    c = spectrum(y)
    # About the axis: the phases turn.
    turned = c * torch.exp(-0.7j * torch.arange(y.truncation + 1, dtype=F64))[:, None]
    assert torch.allclose(y.power(turned), y.power(c), rtol=1e-12)
    if y.lon % 5 == 0:
        rolled = y.analysis(y.synthesis(c).roll(y.lon // 5, -1))
        phase = torch.exp(-2j * torch.pi / 5 * torch.arange(y.truncation + 1, dtype=F64))
        assert largest(rolled - c * phase[:, None]) < 1e-12
    # About another axis: a harmonic of (x, y, z), turned, has the same power at the same l.
    generator = torch.Generator().manual_seed(3)
    rotation, _ = torch.linalg.qr(torch.randn(3, 3, dtype=F64, generator=generator))
    lat = torch.from_numpy(np.radians(y.latitudes))[:, None]
    lon = torch.from_numpy(np.radians(y.longitudes))
    place = torch.stack((lat.cos() * lon.cos(), lat.cos() * lon.sin(), lat.sin().expand(-1, y.lon)))
    fields = [
        a.square() * b * d - 0.4 * d + a * b
        for a, b, d in (place, torch.einsum("ij, jyx -> iyx", rotation, place))
    ]
    before, after = (y.power(y.analysis(field)) for field in fields)
    assert torch.allclose(after, before, rtol=1e-11, atol=1e-14)
    assert before[4] > 1e-4 and before[5:].max() < 1e-25


@every_grid
def test_vector_identities(y: SphericalHarmonics) -> None:
    psi, chi = spectrum(y), spectrum(y, seed=1)
    nothing = torch.zeros_like(psi)
    scale = y.truncation**2 / y.radius**2
    # The divergence of a gradient is the Laplacian, and its curl is zero.
    curl, div = y.vorticity_divergence(*y.gradient(chi))
    assert largest(div - y.laplacian(chi)) < 1e-12 * scale and largest(curl) < 1e-12 * scale
    assert largest(y.inverse_laplacian(y.laplacian(chi)) - chi) < 1e-13
    # A rotational wind is the gradient of its stream function, turned to the left.
    u, v = y.velocity(y.laplacian(psi), nothing)
    east, north = y.gradient(psi)
    assert largest(u + north) < 1e-11 * scale and largest(v - east) < 1e-11 * scale
    # The curl of a wind is the divergence of the wind turned to the right.
    u, v = y.velocity(psi, chi)
    assert largest(y.vorticity_divergence(v, -u)[1] - psi) < 1e-12 * y.truncation
    # Green: the mean of |∇χ|² is that of -χ ∇²χ.
    east, north = y.gradient(chi)
    energy = y.mean(east.square() + north.square())
    if y.grid == "gaussian" or y.lat > 2 * y.truncation:
        expected = (y.power(chi) * -y._tables_of(chi).eigenvalues).sum()
        assert abs(energy / expected - 1) < 1e-12


def test_a_solid_rotation_crosses_the_pole() -> None:
    # About an axis in the plane of the equator, the wind at the poles is not zero.
    y = GRIDS["equiangular"]
    lat = torch.from_numpy(np.radians(y.latitudes))[:, None]
    lon = torch.from_numpy(np.radians(y.longitudes))
    u, v = -lon.cos() * lat.sin(), lon.sin().expand(y.lat, -1)
    curl, div = y.vorticity_divergence(u, v)
    expected = 2 / y.radius * lat.cos() * lon.cos()
    assert largest(y.synthesis(curl) - expected) < 1e-13 and largest(div) < 1e-13
    again = y.velocity(curl, div)
    assert largest(again[0] - u) < 1e-13 and largest(again[1] - v) < 1e-13


@every_grid
def test_analysis_is_the_weighted_adjoint_of_synthesis(y: SphericalHarmonics) -> None:
    c, b = spectrum(y), spectrum(y, seed=1)
    generator = torch.Generator().manual_seed(2)
    f, g = torch.randn(2, y.lat, y.lon, dtype=F64, generator=generator)

    def product(first: Tensor, second: Tensor) -> Tensor:
        """The mean over the sphere of two real fields, from their spectra."""
        twice = torch.full((y.truncation + 1, 1), 2.0, dtype=F64)
        twice[0] = 1
        return ((first.conj() * second).real * twice).sum() / (4 * torch.pi)

    expected = y.mean(y.synthesis(c) * f)
    assert abs(product(c, y.analysis(f)) - expected) < 1e-12 * f.norm()
    # Of winds: the wind of a stream function and a velocity potential, against any wind.
    u, v = y.velocity(c, b)
    curl, div = y.vorticity_divergence(f, g)
    expected = y.mean(u * f + v * g)
    found = -product(y.inverse_laplacian(c), curl) - product(y.inverse_laplacian(b), div)
    assert abs(found - expected) < 1e-12 * f.norm()


def test_gradients_are_those_of_finite_differences() -> None:
    y = SphericalHarmonics(6, 9, 3)
    c = spectrum(y, 2, mean=True).requires_grad_()
    f = torch.randn(2, 2, 6, 9, dtype=F64, generator=torch.Generator().manual_seed(1))
    assert torch.autograd.gradcheck(y.synthesis, (c,))
    assert torch.autograd.gradcheck(lambda a: y.velocity(a, a.flip(0)), (c,))
    assert torch.autograd.gradcheck(y.analysis, (f.requires_grad_(),))
    assert torch.autograd.gradcheck(lambda a: y.vorticity_divergence(*a), (f,))


@every_grid
def test_a_field_does_not_depend_on_its_batch(y: SphericalHarmonics) -> None:
    for dtype in (torch.float32, F64):
        f = torch.randn(5, y.lat, y.lon, dtype=dtype, generator=torch.Generator().manual_seed(0))
        together = y.analysis(f)
        assert torch.equal(torch.stack([y.analysis(each) for each in f]), together)
        fields = y.synthesis(together)
        assert torch.equal(torch.stack([y.synthesis(each) for each in together]), fields)


def test_bad_grids_are_named() -> None:
    with pytest.raises(ValueError, match="needs at least 22 latitudes on the gaussian grid and 43"):
        SphericalHarmonics(20, 64, 21)
    with pytest.raises(ValueError, match="at least 43 latitudes on the equiangular grid"):
        SphericalHarmonics(42, 64, 21, "equiangular")
    with pytest.raises(ValueError, match="one of gaussian, equiangular, got 'healpix'"):
        SphericalHarmonics(32, 64, 21, "healpix")
    with pytest.raises(ValueError, match=r"shape \(32, 64\) of the grid, got \(64, 32\)"):
        GRIDS["gaussian"].analysis(torch.zeros(64, 32))
