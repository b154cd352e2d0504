"""Spectra and balance on the sphere, against harmonics, Parseval and exact balance."""

import numpy as np
import pytest
import torch

from dynamics.layout import Layout
from dynamics.spherical_harmonics import SphericalHarmonics
from sda.plotting import plot_spectra
from sda.verification import summary, verify
from sda.verification.sphere import GRAVITY, OMEGA, RADIUS, grid_harmonics

TOP = 10
HARMONICS = SphericalHarmonics(16, 32, TOP, radius=RADIUS)
UNITS = {
    "u": "m s-1", "v": "m s-1", "h": "m", "lat": "degrees_north", "lon": "degrees_east",
}  # fmt: skip
LAYOUT = Layout(
    ("u", "v", "h"),
    6.0,
    {"lat": HARMONICS.latitudes, "lon": HARMONICS.longitudes},
    {"lon": 360.0},
    UNITS,
)
CORIOLIS = 2 * OMEGA * HARMONICS.sine[:, None]


def spectra(number, rng):
    """Random spectra `(number, m, l)` of real fields, without the mean."""
    made = rng.standard_normal((2, number, TOP + 1, TOP + 1))
    made = np.triu(made[0] + 1j * made[1]) * (np.arange(TOP + 1) > 0)
    made[:, 0] = made[:, 0].real
    return torch.from_numpy(made)


def wind(number, seed, balanced):
    """States `(number, channel, lat, lon)`: winds, and a height that balances them or does not."""
    rng = np.random.default_rng(seed)
    h = 30 * spectra(number, rng)
    if balanced:
        east, north = HARMONICS.gradient(h)
        factor = torch.from_numpy(GRAVITY / CORIOLIS)
        u, v = -factor * north, factor * east
    else:
        u, v = HARMONICS.velocity(1e-5 * spectra(number, rng), 1e-5 * spectra(number, rng))
    return torch.stack([u, v, HARMONICS.synthesis(h)], dim=1).numpy()


def test_kinetic_energy_sums_to_half_the_mean_square() -> None:
    x = wind(4 * 3 + 3, 0, False).reshape(5, 3, *LAYOUT.shape)
    posterior, truth = LAYOUT.to_dataset(x[:4]), LAYOUT.to_dataset(x[4:])
    scores = verify(posterior, truth)
    square = (HARMONICS.weights[:, None] / 2 * (x[:, :, :2] ** 2).sum(2)).sum(-2).mean((1, 2)) / 2
    np.testing.assert_allclose(scores["kinetic_energy"].sum("wavenumber"), square[:4], rtol=1e-9)
    assert scores["kinetic_energy_truth"].sum().item() == pytest.approx(square[4])
    assert scores["wavenumber"].attrs["long_name"] == "total wavenumber"
    # Of scalars too, and what the grid could hold beyond the field is no ratio.
    h = (HARMONICS.weights[:, None] / 2 * x[:, :, 2] ** 2).sum(-2).mean((1, 2)) / 2
    at = scores.sel(variable="h")
    np.testing.assert_allclose(at["spectrum"].sum("wavenumber"), h[:4], rtol=1e-9)
    assert np.isfinite(at["spectrum_ratio"][1 : TOP + 1]).all()
    assert np.isnan(at["spectrum_ratio"][TOP + 1 :]).all()
    assert np.isfinite(at["coherence"][1 : TOP + 1]).all()
    assert "ageostrophic" in summary(scores)
    assert len(plot_spectra(scores).axes) == 8


def test_spectra_by_total_wavenumber_do_not_know_where_the_pole_is() -> None:
    """A harmonic of degree l has all its power there, whatever its order."""
    for degree, order in ((3, 0), (5, 5), (7, 2)):
        coefficients = torch.zeros(TOP + 1, TOP + 1, dtype=torch.complex128)
        coefficients[order, degree] = 1
        x = np.zeros((2, 1, *LAYOUT.shape))
        x[:, :, 2] = HARMONICS.synthesis(coefficients).numpy()
        both = LAYOUT.to_dataset(x)
        power = verify(both, both.isel(member=[0]))["spectrum_truth"].sel(variable="h")
        assert int(power.values.argmax()) == degree
        assert power[degree] == pytest.approx(power.sum().item())


def test_balance_is_measured_outside_the_tropics() -> None:
    balanced, free = wind(4, 1, True), wind(4, 2, False)
    truth = LAYOUT.to_dataset(balanced[None])
    members = np.stack([balanced, free, 0 * free])
    members[2, :, 2] = free[:, 2]
    scores = verify(LAYOUT.to_dataset(members), truth)
    assert scores["ageostrophic_truth"].item() < 1e-6
    assert scores["ageostrophic"][0].item() < 1e-6 and scores["ageostrophic"][1].item() > 0.1
    # A state of rest is as far from the wind that balances its height as that wind is large.
    assert scores["ageostrophic"][2].item() == pytest.approx(1)


def test_other_grids_have_zonal_spectra_by_area() -> None:
    layout = Layout(
        ("u", "h"),
        6.0,
        {"lat": np.linspace(-80, 80, 9), "lon": 3.0 + np.arange(12) * 30.0},
        {"lon": 360.0},
        UNITS,
    )
    assert grid_harmonics(layout.to_dataset(np.zeros((1, 1, 2, 9, 12))), ("lat", "lon")) is None
    x = np.random.default_rng(0).standard_normal((3, 2, 2, 9, 12))
    scores = verify(layout.to_dataset(x), layout.to_dataset(x[:1]))
    mean = (layout.area * x[0] ** 2).mean(axis=(0, 2, 3)) / 2
    np.testing.assert_allclose(scores["spectrum_truth"].sum("wavenumber"), mean)
    assert scores["wavenumber"].attrs["long_name"] == "wavenumber"
    assert "kinetic_energy" not in scores


def test_poles_on_the_grid_have_harmonics() -> None:
    lat = SphericalHarmonics(17, 32, 8, "equiangular").latitudes
    layout = Layout(
        ("h", "z"), 6.0, {"lat": lat, "lon": np.arange(32) * 11.25}, {"lon": 360.0}, UNITS
    )
    found = grid_harmonics(layout.to_dataset(np.zeros((1, 1, 2, 17, 32))), ("lat", "lon"))
    assert found is not None and found.grid == "equiangular" and found.truncation == 8
