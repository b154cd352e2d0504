"""Regional assimilation: the joint data, the context, and the exact conditional as an oracle."""

import numpy as np
import pandas as pd
import pytest
import torch
import xarray as xr

import sda
from dynamics import Layout
from dynamics.shallow_water_forced import ToyWeather
from sda.benchmarks.regional import Setup, regional_pairs
from sda.climatology import Climatology
from sda.prior import Prior
from sda.regional import (
    interior,
    linear,
    make_regional_dataset,
    regional_context,
    regional_layout,
    regional_observations,
    within,
)

LON = np.arange(12) * 30.0


def globe(lat: np.ndarray, lon: np.ndarray, members: int = 2, **options) -> xr.Dataset:
    """A field that is linear in latitude and a wave in longitude, other in each member and time."""

    layout = Layout(
        variables=("u", "h"),
        dt=6.0,
        coords={"lat": lat, "lon": lon},
        period={"lon": 360.0},
        units={"lat": "degrees_north", "lon": "degrees_east", "u": "m s-1", "h": "m"},
        time_units="hours",
        **options,
    )
    m, time = np.arange(members)[:, None, None, None], np.arange(3)[:, None, None]
    wave = np.cos(np.radians(lon) + 0.3 * time)
    u = (m + 1) * lat[:, None] + wave
    h = m + 10 * wave + 0 * lat[:, None]

    return layout.to_dataset(np.stack([u, h], axis=2))


def test_a_box_across_the_end_of_the_circle_goes_on() -> None:
    fine = globe(np.linspace(-75, 75, 11), LON)
    layout = regional_layout(Layout.from_dataset(fine), {"lat": (20, 70), "lon": (300, 60)}, ("u",))
    assert layout.variables == ("u", "h", "u_context")
    assert layout.coords["lon"].tolist() == [300.0, 330.0, 360.0, 390.0, 420.0]
    assert layout.periodic == (False, False) and layout.spherical
    assert layout.units["u_context"] == "m s-1"
    band = regional_layout(Layout.from_dataset(fine), {"lat": (20, 70)})
    assert band.periodic == (False, True)


def test_regional_data_are_the_box_of_the_trajectories_beside_their_analyses(tmp_path) -> None:
    fine = globe(np.linspace(-75, 75, 11), LON)
    coarse = globe(np.array([-60.0, -20.0, 20.0, 60.0]), LON[::3])
    box = {"lat": (20, 70), "lon": (300, 60)}
    joint = make_regional_dataset(fine, coarse, box)
    for position, lon in enumerate((300, 330, 0, 30, 60)):
        here = joint.isel(lon=position)
        there = fine.sel(lon=lon, lat=slice(20, 70))
        assert np.array_equal(here["u"].values, there["u"].values)
        assert np.array_equal(here["h"].values, there["h"].values)
    # Between its rows an analysis that is linear in latitude is met exactly; beyond, it stays.
    at = coarse.sel(lon=0.0)["u"]
    expected = at.interp(lat=joint["lat"].clip(max=60.0).values)
    assert np.allclose(joint["u_context"].sel(lon=360.0), expected)
    # Between 270 and 0 degrees, across the end of the circle.
    third = coarse["h"].sel(lon=270.0) / 3 + coarse["h"].sel(lon=0.0) * 2 / 3
    assert np.allclose(joint["h_context"].sel(lon=330.0), third.interp(lat=[30.0]).values)

    path = tmp_path / "pairs.zarr"
    stored = make_regional_dataset(fine, coarse, box, path)
    xr.testing.assert_equal(stored.load()[list(joint.data_vars)], joint)
    assert Layout.from_dataset(stored).to_json() == Layout.from_dataset(joint).to_json()
    with pytest.raises(FileExistsError, match="overwrite"):
        make_regional_dataset(fine, coarse, box, path)
    make_regional_dataset(fine, coarse, box, path, overwrite=True)


def test_land_stays_land_in_a_region() -> None:
    mask = np.ones((11, 12), dtype=bool)
    mask[8, 1] = False
    fine = globe(np.linspace(-75, 75, 11), LON, mask=mask)
    coarse = globe(np.array([-60.0, 0.0, 60.0]), LON[::3])
    joint = make_regional_dataset(fine, coarse, {"lat": (20, 70), "lon": (0, 60)})
    layout = Layout.from_dataset(joint)
    assert layout.mask is not None and (~layout.mask).sum() == 1 and not layout.mask[1, 1]
    assert np.isnan(joint["u"].values[:, :, 1, 1]).all()


def test_linear_interpolation_is_exact_for_lines_and_wraps() -> None:
    source, target = np.array([0.0, 1.0, 3.0, 4.0]), np.array([-1.0, 0.5, 2.0, 4.0, 9.0])
    assert np.allclose(linear(source, target) @ (2 * source + 1), 2 * target.clip(0, 4) + 1)
    wrapped = linear(LON, np.array([345.0, -15.0, 375.0]), 360.0)
    assert np.allclose(wrapped[0], wrapped[1]) and np.allclose(wrapped[0, [0, 11]], 0.5)
    assert np.allclose(wrapped[2, [0, 1]], 0.5)
    assert np.allclose(linear(np.array([7.0]), target), 1.0)


def test_stations_are_those_of_the_region_with_its_longitudes() -> None:
    fine = globe(np.linspace(-75, 75, 11), LON)
    layout = regional_layout(Layout.from_dataset(fine), {"lat": (20, 70), "lon": (300, 60)})
    table = pd.DataFrame({"lat": [50.0, 50, 50, -40], "lon": [10.0, -10, 350, 10]})
    inside = within(table, layout)
    assert inside["lon"].tolist() == [370.0, 350.0, 350.0]
    with pytest.raises(ValueError, match="none of the 1 rows"):
        within(table.iloc[3:], layout)
    with pytest.raises(ValueError, match=r"lacks the columns \['lat'\]"):
        within(table[["lon"]], layout)


def toy(seed: int = 0) -> tuple[Prior, torch.Tensor, Layout]:
    """The joint Gaussian of a line of 6 cells and a noisy analysis on 2, over 3 frames."""

    generator = torch.Generator().manual_seed(seed)
    x = np.arange(6) * 1.0
    fine = Layout(variables=("u",), dt=1.0, coords={"x": np.arange(-6.0, 12)})
    layout = regional_layout(fine, {"x": (0, 5)}, ("u",))
    distance = np.abs(x[:, None] - x) / 2.0
    space = torch.from_numpy(np.exp(-distance))
    lag = torch.from_numpy(0.8 ** np.abs(np.subtract.outer(np.arange(3), np.arange(3))))
    analysis = torch.zeros(2, 6, dtype=torch.float64)
    analysis[0, :3] = analysis[1, 3:] = 1 / 3
    spread = torch.from_numpy(linear(np.array([1.0, 4.0]), x))
    error = 0.04 * torch.eye(2, dtype=torch.float64)
    cross = space @ analysis.T @ spread.T
    both = spread @ (analysis @ space @ analysis.T + error) @ spread.T
    frame = torch.cat((torch.cat((space, cross), 1), torch.cat((cross.T, both), 1)))
    matrix = torch.kron(lag, frame)
    mean = torch.randn(1, 6, dtype=torch.float64, generator=generator).expand(2, 6)
    prior = Prior(Climatology.from_moments(layout, mean.contiguous(), matrix))

    return prior, matrix, layout


def test_the_posterior_of_a_region_is_the_exact_conditional() -> None:
    prior, matrix, layout = toy()
    mean = prior.climatology.mean.double()
    draw = torch.linalg.cholesky(matrix + 1e-9 * torch.eye(36, dtype=torch.float64))
    noise = torch.randn(36, dtype=torch.float64, generator=torch.Generator().manual_seed(3))
    truth = (draw @ noise).view(3, 2, 6) + mean
    # An analysis on two cells that interpolates to the context of this truth.
    knots = np.stack([truth[:, 1, 1].numpy(), truth[:, 1, 4].numpy()], axis=-1)
    analysis = xr.Dataset(
        {"u": (("time", "x"), knots)}, coords={"time": [0.0, 1.0, 2.0], "x": [1.0, 4.0]}
    )
    stations = pd.DataFrame(
        {"time": [1.0, 2.0], "x": [4.0, 0.0], "variable": "u", "std": 0.1,
         "observation": [float(truth[1, 0, 4]) + 0.05, float(truth[2, 0, 0]) - 0.05]}
    )  # fmt: skip
    observations = regional_observations(prior, analysis, stations, std=0.1)
    assert len(observations) == 18 + 2
    posterior = sda.assimilate(
        prior, observations, 1000, seed=1, time=[0.0, 1.0, 2.0], dtype="float64"
    )
    members = torch.from_numpy(layout.to_array(posterior))

    index = torch.arange(36).view(3, 2, 6)
    rows = torch.cat((index[:, 1].flatten(), index[1, 0, [4]], index[2, 0, [0]]))
    context = torch.from_numpy(regional_context(analysis, layout)["u_context"].values[0])
    seen = torch.cat((context.flatten(), torch.tensor(stations["observation"].tolist()))).double()
    gain = matrix[:, rows] @ torch.linalg.inv(matrix[rows][:, rows] + 0.01 * torch.eye(20))
    expected = gain @ (seen - mean.expand(3, 2, 6).flatten()[rows]) + mean.expand(3, 2, 6).flatten()
    covariance = matrix - gain @ matrix[rows]
    std = covariance.diagonal().sqrt()
    got = members.flatten(1)
    assert ((got.mean(0) - expected).abs() / std).max() < 5 / 1000**0.5
    assert torch.allclose(got.std(0), std, rtol=0.12)
    correlation = torch.corrcoef(got.T) - covariance / torch.outer(std, std)
    assert correlation[index[:, 0].flatten()][:, index[:, 0].flatten()].abs().max() < 0.15
    # The analysis and the stations tell more than either of them.
    assert (std[index[:, 0]] < 0.75).all()


def test_the_context_has_the_error_that_is_stated() -> None:
    prior, _, layout = toy()
    analysis = xr.Dataset(
        {"u": (("time", "x"), np.zeros((1, 2)))}, coords={"time": [5.0], "x": [1.0, 4.0]}
    )
    assert regional_context(analysis, layout)["u_context"].shape == (1, 1, 6)
    scale = float(prior.climatology.scale[1])
    for std, expected in ((None, 0.05 * scale), (0.2, 0.2), ({"u": 0.3}, 0.3)):
        (only,) = regional_observations(prior, analysis, std=std).sets
        assert np.allclose(only.std, expected) and (only.y == 0).all() and len(only) == 6
    (thinned,) = regional_observations(prior, analysis, every=2).sets
    assert len(thinned) == 3
    with pytest.raises(ValueError, match="at least 1, got 0"):
        regional_observations(prior, analysis, every=0)


def test_what_does_not_fit_a_region_is_named() -> None:
    fine = globe(np.linspace(-75, 75, 11), LON)
    coarse = globe(np.array([-60.0, 0.0, 60.0]), LON[::3])
    box = {"lat": (20, 70), "lon": (0, 60)}
    with pytest.raises(ValueError, match=r"names \['x'\]"):
        make_regional_dataset(fine, coarse, {"x": (0, 1)})
    with pytest.raises(ValueError, match="holds 0 cells along 'lat'"):
        make_regional_dataset(fine, coarse, {"lat": (80, 90)})
    with pytest.raises(ValueError, match="2 members of 3 times and 1 of 3"):
        make_regional_dataset(fine, coarse.isel(member=[0]), box)
    with pytest.raises(ValueError, match=r"variables \['w'\]"):
        make_regional_dataset(fine, coarse.rename(u="w").assign_attrs(variables=["w", "h"]), box)
    with pytest.raises(ValueError, match="NaN"):
        make_regional_dataset(fine, coarse.where(coarse["lat"] > 0), box)
    with pytest.raises(ValueError, match=r"lacks \['lon'\]"):
        make_regional_dataset(fine, coarse.rename(lon="longitude"), box)
    with pytest.raises(ValueError, match="no context"):
        regional_context(coarse, Layout.from_dataset(fine))
    joint = make_regional_dataset(fine, coarse, box)
    assert interior(joint, 1).sizes["lat"] == joint.sizes["lat"] - 2
    with pytest.raises(ValueError, match="leaves nothing"):
        interior(joint, 2)


def test_the_shipped_prior_of_a_region_denoises_weather_that_it_never_saw() -> None:
    prior = sda.Prior.load("toy-regional")
    assert prior.context is not None and prior.denoiser is not None
    fine = ToyWeather().simulate(2, 12, spinup=160, seed=77)
    pairs = regional_pairs(fine, Setup(turns=2))
    residuals = prior.context.conditioned(pairs)
    windows = torch.from_numpy(prior.context.wide.to_array(residuals)).unflatten(1, (2, 6))
    states, given = prior.denoiser.split(windows.flatten(0, 1))
    states = prior.climatology.normalise(states)
    noise = torch.randn(states.shape, generator=torch.Generator().manual_seed(0))
    for s in (0.3, 1.0, 3.0):
        noisy = states + s * noise
        gaussian = prior.denoiser.covariance.wiener(noisy, s) - states
        network = prior.denoiser.denoise(torch.cat((noisy, given), 2), s) - states
        assert network.square().mean() < 0.85 * gaussian.square().mean()
