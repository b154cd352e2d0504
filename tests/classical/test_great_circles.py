"""Localisation on the sphere, and classical methods beside a coast."""

import numpy as np
import pytest
import torch

import sda
from dynamics.layout import Layout
from dynamics.random import normal
from dynamics.system import System
from sda.classical import (
    ETKF,
    LETKF,
    EnKF,
    FourDVar,
    Gaussian,
    IEnKS,
    OptimalInterpolation,
    ThreeDVar,
)
from sda.classical.localisation import HALF_WIDTH, Localisation, bands, gaspari_cohn, great_circle
from sda.observation import Select

LATITUDE, LONGITUDE = np.linspace(-82.5, 82.5, 12), np.arange(24) * 15.0
UNITS = {"lat": "degrees_north", "lon": "degrees_east"}
LAND = (np.abs(LATITUDE)[:, None] < 50) & (LONGITUDE > 250)
LIKE = torch.zeros((), dtype=torch.float64)


def layout(mask=None):
    coords = {"lat": LATITUDE, "lon": LONGITUDE}
    return Layout(("u", "h"), 6.0, coords, {"lon": 360.0}, UNITS, {}, "hours", mask)


class Drift(System):
    """What is in the sea drifts to the east, mixes and decays; there is nothing on land."""

    def __init__(self, layout: Layout) -> None:
        self.layout = layout
        mask = layout.mask if layout.mask is not None else np.ones(layout.shape[1:], dtype=bool)
        self.sea = torch.from_numpy(mask)

    def initial_model(self, members, seed=0, dtype=torch.float32, device="cpu"):
        z = normal(seed, members, self.layout.shape, 0, dtype=dtype, device=device)
        return (z + z.roll(1, -1) + z.roll(1, -2)) * self.sea

    def advance(self, z, noise=None):
        return (0.9 * z + 0.1 * torch.sin(z.roll(1, -1)) + 0.05 * z.flip(1)) * self.sea


def columns(number, seed=0):
    rng = np.random.default_rng(seed)
    return {
        "lat": np.rad2deg(np.arcsin(rng.uniform(-1, 1, number))),
        "lon": rng.uniform(-180, 360, number),
        "variable": np.full(number, "u", dtype=object),
    }


def cartesian(lat, lon):
    lat, lon = np.deg2rad(lat), np.deg2rad(lon)
    return np.stack([np.cos(lat) * np.cos(lon), np.cos(lat) * np.sin(lon), np.sin(lat)], -1)


def dense(local, given, number):
    weights = torch.zeros(12 * 24, number, dtype=torch.float64)
    for patch in local.patches(given, LIKE):
        seen = torch.arange(number) if patch.values is None else patch.values
        points = torch.arange(12 * 24)[:, None] if patch.points is None else patch.points
        weights[points[..., None], seen] = patch.weights[:, None]
    return weights.numpy()


@pytest.mark.parametrize("taper", ["gaspari_cohn", "step"])
def test_weights_are_those_of_great_circles(taper) -> None:
    given = columns(40)
    lat, lon = (each.ravel() for each in np.meshgrid(LATITUDE, LONGITUDE, indexing="ij"))
    dot = cartesian(lat, lon) @ cartesian(given["lat"], given["lon"]).T
    cells = np.rad2deg(np.arccos(np.clip(dot, -1, 1))) / 15.0  # rows are 15 degrees apart
    expected = cells <= 2.5 if taper == "step" else gaspari_cohn(cells / (HALF_WIDTH * 2.5))
    for patch in (7, 1000):
        got = dense(Localisation(layout(), 2.5, taper, patch=patch), given, 40)
        np.testing.assert_allclose(got, expected, atol=1e-9)
    # Over the pole it is near, however far around the circle of latitude.
    assert great_circle(np.array([85.0, 0.0]), np.array([85.0, 180.0])) == pytest.approx(
        np.deg2rad(10)
    )


def test_an_observation_without_a_longitude_is_that_of_a_parallel() -> None:
    given = columns(2)
    given["lat"][:], given["lon"][0] = 37.5, np.nan
    given["lat"][1] = given["lon"][1] = np.nan
    weights = dense(Localisation(layout(), 1.0), given, 2).reshape(12, 24, 2)
    apart = np.abs(LATITUDE - 37.5) / 15.0
    np.testing.assert_allclose(
        weights[..., 0], np.tile(gaspari_cohn(apart / HALF_WIDTH)[:, None], 24), atol=1e-12
    )
    assert (weights[..., 1] == 1).all()


@pytest.mark.parametrize("tile", [2, 3, 5])
@pytest.mark.parametrize("size", [1, 4, 1000])
def test_tiles_are_as_wide_everywhere(tile, size) -> None:
    found = bands(layout(), tile, size)
    assert max(map(len, found)) <= size
    tiles = [np.unique(each) for group in found for each in group]
    assert sorted(np.concatenate(tiles)) == list(range(12 * 24))
    wide = {}
    for each in tiles:
        row, column = np.unravel_index(each, (12, 24))
        extent = (np.ptp(column) + 1) * np.cos(np.deg2rad(LATITUDE[row])).mean()
        assert np.ptp(row) < tile and extent <= tile * 1.01 + 1e-9
        wide[int(row.min())] = max(wide.get(int(row.min()), 0), np.ptp(column) + 1)
    assert wide[0] > wide[6 - 6 % tile]


@pytest.mark.parametrize("mask", [None, ~LAND], ids=["sphere", "coast"])
@pytest.mark.parametrize("tile", [1, 3])
@pytest.mark.filterwarnings("ignore:.*diverged in cycle")
def test_at_full_radius_it_is_the_etkf(mask, tile) -> None:
    system = Drift(layout(mask))
    truth = system.simulate(1, 5, seed=3, progress=False).isel(member=0)
    observations = sda.observe(truth, Select(["h"], every=2), std=0.5, seed=1)
    common = {"inflation": 1.02}
    expected = ETKF(system, 8, **common).assimilate(observations, seed=2, dtype="float64")
    local = LETKF(system, 8, radius=1e7, tile=tile, **common)
    got = local.assimilate(observations, seed=2, dtype="float64")
    for name in ("u", "h"):
        np.testing.assert_allclose(got[name], expected[name], atol=1e-8)


METHODS = {
    "enkf": lambda s, **more: EnKF(s, 12),
    "etkf": lambda s, **more: ETKF(s, 12, rotation=True),
    "letkf": lambda s, **more: LETKF(s, 12, radius=2.0, tile=2, rtps=0.3),
    "ienks": lambda s, **more: IEnKS(s, 12, lag=2),
    "4dvar": lambda s, **more: FourDVar(s, iterations=2, inner=5, **more),
}


@pytest.mark.parametrize("name", METHODS)
@pytest.mark.filterwarnings("ignore:.*diverged in cycle")
def test_land_is_neither_seen_nor_analysed(name) -> None:
    """With a mask, analyses are those of a layout without one whose land happens to be zero."""

    masked, whole = Drift(layout(~LAND)), Drift(layout())
    whole.sea = masked.sea
    truth = masked.simulate(1, 5, seed=3, progress=False).isel(member=0)
    observations = sda.observe(truth, Select(["h"], every=2), std=0.3, seed=1)
    assert len(observations.to_table()) == 3 * (~LAND).sum()
    variance = np.where(LAND, 1e-12, 1.5) * np.ones(layout().shape)
    found = [
        METHODS[name](system, covariance=variance).assimilate(
            observations, seed=2, initial=Gaussian(0.0, variance), dtype="float64"
        )
        for system in (masked, whole)
    ]
    assert (found[0].isel(time=-1, member=0)["h"].isnull().values == LAND).all()
    for variable in ("u", "h"):
        np.testing.assert_allclose(
            found[0][variable].values[..., ~LAND], found[1][variable].values[..., ~LAND], atol=1e-4
        )


@pytest.mark.parametrize("method", [OptimalInterpolation, ThreeDVar])
def test_a_climatology_with_land_interpolates(method) -> None:
    system = Drift(layout(~LAND))
    truth = system.simulate(1, 5, seed=3, progress=False).isel(member=0)
    observations = sda.observe(truth, Select(["h"], every=2), std=0.3, seed=1)
    states = system.simulate(200, 2, seed=8, progress=False)
    posterior = method(system, climatology=states).assimilate(observations, seed=2)
    scores = sda.verify(posterior, truth, ensemble=False)
    h = layout(~LAND).to_array(truth)[0, :1, 1]
    assert scores["rmse"].sel(variable="h")[0] < 0.5 * np.sqrt((layout(~LAND).area * h**2).mean())
