"""Tapers, distances and the grouping of points, against their definitions."""

import math

import numpy as np
import pytest
import torch

from dynamics import KolmogorovFlow, Layout, Lorenz63, Lorenz96
from sda.classical.localisation import HALF_WIDTH, Localisation, gaspari_cohn, patches

LAYOUTS = {
    "periodic line": Lorenz96(dimension=12).layout,
    "periodic plane": KolmogorovFlow(size=8, resolution=16).layout,
    "channel": Layout(
        ("u", "v"), 0.1, {"y": [0.0, 1.0, 3.0, 4.0], "x": 2.0 * np.arange(5)}, {"x": 10.0}
    ),
}


def columns(layout, number, seed=0):
    rng = np.random.default_rng(seed)
    found = {
        dim: rng.uniform(values[0], values[-1], number) for dim, values in layout.coords.items()
    }
    return {**found, "variable": np.full(number, layout.variables[0], dtype=object)}


def test_the_taper_is_a_correlation_of_compact_support() -> None:
    r = np.linspace(0, 3, 3001)
    values = gaspari_cohn(r)
    assert values[0] == 1 and (values[r >= 2] == 0).all() and (np.diff(values) <= 1e-12).all()
    # continuous in value and slope where the pieces meet
    assert np.abs(np.diff(values)).max() < 1.2e-3 and np.abs(np.diff(values, 2)).max() < 4e-6
    # its curvature at zero is that of a Gaussian whose length is the half-width over √(10/3)
    near = gaspari_cohn(np.array([1e-3]))[0]
    assert 1 - near == pytest.approx(0.5 * (1e-3 * HALF_WIDTH) ** 2, rel=1e-2)
    assert gaspari_cohn(1 / HALF_WIDTH) == pytest.approx(math.exp(-0.5), abs=0.03)
    # a correlation function: no negative eigenvalue on any set of points
    points = np.random.default_rng(0).uniform(0, 6, (200, 3))
    apart = np.linalg.norm(points[:, None] - points[None], axis=-1)
    assert np.linalg.eigvalsh(gaspari_cohn(apart)).min() > -1e-10


@pytest.mark.parametrize("taper", ["gaspari_cohn", "step"])
@pytest.mark.parametrize("name", LAYOUTS)
def test_weights_are_those_of_the_shortest_distance(name, taper) -> None:
    layout = LAYOUTS[name]
    local = Localisation(layout, 1.5, taper)
    given = columns(layout, 20)
    (patch,) = local.patches(given, torch.zeros((), dtype=torch.float64))
    spacings = [local.spacing[dim] for dim in layout.dims]
    space = layout.shape[1:]
    whole = np.zeros((math.prod(space), 20))
    seen = range(20) if patch.values is None else patch.values.tolist()
    whole[:, list(seen)] = patch.weights
    for p in range(math.prod(space)):
        place = np.unravel_index(p, space)
        for j in range(20):
            square = 0.0
            for axis, dim in enumerate(layout.dims):
                apart = layout.coords[dim][place[axis]] - given[dim][j]
                shifts = [layout.period.get(dim, 0.0) * s for s in (-1, 0, 1)]
                square += min(((apart + s) / spacings[axis]) ** 2 for s in shifts)
            expected = (
                float(math.sqrt(square) <= 1.5)
                if taper == "step"
                else float(gaspari_cohn(math.sqrt(square) / (HALF_WIDTH * 1.5)))
            )
            assert whole[p, j] == pytest.approx(expected, abs=1e-12)
    assert local.weigh(np.array([local.reach * 1.001]))[0] == 0


def test_an_observation_without_a_place_counts_everywhere() -> None:
    layout = LAYOUTS["periodic plane"]
    given = columns(layout, 3)
    given["y"][0] = given["x"][0] = np.nan
    given["y"][1] = np.nan
    (patch,) = Localisation(layout, 1.0).patches(given, torch.zeros((), dtype=torch.float64))
    weights = patch.weights.reshape(8, 8, -1)
    assert (weights[..., 0] == 1).all()
    torch.testing.assert_close(weights[..., 1], weights[:1, :, 1].expand(8, 8))
    assert (weights[..., 1] == 0).any() and (weights[..., 2] == 0).any()


@pytest.mark.parametrize("space", [(7,), (6, 9), (1, 5), (3, 4, 5)])
@pytest.mark.parametrize("tile", [1, 2, 3])
@pytest.mark.parametrize("size", [1, 4, 1000])
def test_every_point_is_in_one_tile(space, tile, size) -> None:
    found = patches(space, tile, size)
    assert max(map(len, found)) <= size
    tiles = [np.unique(each) for group in found for each in group]
    assert sorted(np.concatenate(tiles)) == list(range(math.prod(space)))
    for each in tiles:
        corner = np.stack(np.unravel_index(each, space))
        assert (np.ptp(corner, axis=1) < tile).all()


def test_patches_hold_the_weights_of_one_patch() -> None:
    layout = LAYOUTS["periodic plane"]
    given, like = columns(layout, 30), torch.zeros((), dtype=torch.float64)
    (whole,) = Localisation(layout, 0.6).patches(given, like)
    parts = Localisation(layout, 0.6, patch=10).patches(given, like)
    assert len(parts) > 4 and any(len(part.values) < 30 for part in parts)
    dense = torch.zeros(64, 30, dtype=torch.float64)
    for part in parts:
        dense[part.points, part.values] = part.weights
    torch.testing.assert_close(dense, whole.weights)


@pytest.mark.parametrize("name", LAYOUTS)
@pytest.mark.parametrize("tile", [3, 5])
def test_weights_of_tiles_do_not_depend_on_their_patches(name, tile) -> None:
    layout, like = LAYOUTS[name], torch.zeros((), dtype=torch.float64)
    given = columns(layout, 30)
    found = []
    for size in (1, 2, 1000):
        parts = Localisation(layout, 1.0, tile=tile, patch=size).patches(given, like)
        assert len(parts) == 1 or size < 1000
        dense = torch.zeros(math.prod(layout.shape[1:]), 30, dtype=torch.float64)
        for part in parts:
            seen = torch.arange(30) if part.values is None else part.values
            dense[part.points[..., None], seen] = part.weights[:, None]
        found.append(dense)
    torch.testing.assert_close(found[0], found[2])
    torch.testing.assert_close(found[1], found[2])


def test_bad_arguments_are_named() -> None:
    layout = LAYOUTS["periodic line"]
    with pytest.raises(ValueError, match="radius must be positive.*got 0"):
        Localisation(layout, 0)
    with pytest.raises(ValueError, match="got nan"):
        Localisation(layout, math.nan)
    with pytest.raises(ValueError, match="one of .*'step'.*got 'gauss'"):
        Localisation(layout, 2.0, "gauss")
    with pytest.raises(ValueError, match="tile must be a positive"):
        Localisation(layout, 2.0, tile=0)
    with pytest.raises(ValueError, match="no spatial dimension: give radius=None"):
        Localisation(Lorenz63().layout, 2.0)
