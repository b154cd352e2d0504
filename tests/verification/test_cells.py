"""Scores on the sphere and beside a coast: by the areas of cells, against xarray and hand sums."""

import numpy as np
import pytest
import torch
import xarray as xr

from dynamics.layout import Layout
from dynamics.system import System
from sda.observation import Select, observe
from sda.verification import crps, energy_score, summary, variogram_score, verify
from sda.verification.cells import cell_mask, cell_weights

LATITUDE = np.linspace(-82.5, 82.5, 12)
LONGITUDE = np.arange(16) * 22.5
LAND = (np.abs(LATITUDE)[:, None] < 40) & (LONGITUDE < 60)
UNITS = {"lat": "degrees_north", "lon": "degrees_east"}


def sphere(mask=None, units=None):
    coords = {"lat": LATITUDE, "lon": LONGITUDE}
    return Layout(
        ("u", "v"), 6.0, coords, {"lon": 360.0}, {**UNITS, **(units or {})}, {}, "hours", mask
    )


def ensemble(layout, members=6, length=4, seed=0):
    """Errors that grow towards the poles: without weights every score would be another one."""
    rng = np.random.default_rng(seed)
    pool = rng.standard_normal((members + 1, length, *layout.shape))
    pool *= 1 + 3 * np.abs(LATITUDE[:, None] / 90) ** 4
    return layout.to_dataset(pool[1:]), layout.to_dataset(pool[:1])


@pytest.mark.parametrize("mask", [None, ~LAND], ids=["sphere", "coast"])
def test_scores_are_weighted_by_area(mask) -> None:
    layout = sphere(mask)
    posterior, truth = ensemble(layout)
    scores = verify(posterior, truth)
    area = xr.DataArray(layout.area, dims=("lat", "lon"))
    np.testing.assert_allclose(cell_weights(posterior["u"], ("lat", "lon")), area)
    for name in ("u", "v"):
        x, y = posterior[name], truth[name].isel(member=0)
        at = scores.sel(variable=name)
        error = (x.mean("member") - y).weighted(area).mean(["lat", "lon"])
        np.testing.assert_allclose(at["bias"], error)
        square = ((x.mean("member") - y) ** 2).weighted(area).mean(["lat", "lon"])
        np.testing.assert_allclose(at["rmse"], np.sqrt(square))
        variance = x.var("member", ddof=1).weighted(area).mean(["lat", "lon"])
        np.testing.assert_allclose(at["spread"], np.sqrt(variance))
        np.testing.assert_allclose(
            at["spread_skill_by_variable"], np.sqrt(7 / 6 * variance.mean() / square.mean())
        )
        each = xr.DataArray(crps(x.fillna(0).values, y.fillna(0).values), dims=y.dims)
        np.testing.assert_allclose(at["crps"], each.weighted(area).mean(["lat", "lon"]))
        # Ranks by hand: how much area has the truth at each rank.
        rank = (x < y).sum("member").values
        weight = np.broadcast_to(area.values, rank.shape)
        counts = [weight[rank == r].sum() / weight.sum() for r in range(7)]
        np.testing.assert_allclose(at["rank_histogram"], counts)
        step = (x.diff("time") ** 2).weighted(area).mean(["lat", "lon", "time", "member"])
        own = (y.diff("time") ** 2).weighted(area).mean(["lat", "lon", "time"])
        np.testing.assert_allclose(at["increment_ratio"], np.sqrt(step / own))
    # The energy score has the area in its norm.
    root = np.sqrt(layout.area)
    x, y = (root * layout.to_array(each)[:, 1] for each in (posterior, truth))
    assert scores["energy_score"][1].item() == pytest.approx(energy_score(x, y[0]))


def test_weights_of_ones_own_leave_land_out() -> None:
    layout = sphere(~LAND)
    posterior, truth = ensemble(layout)
    ones = xr.ones_like(posterior["lat"])
    error = (posterior["u"].mean("member") - truth["u"].isel(member=0)) ** 2
    np.testing.assert_allclose(
        verify(posterior, truth, weights=ones)["rmse"].sel(variable="u"),
        np.sqrt(error.mean(["lat", "lon"])),
    )


def test_land_counts_nowhere_whatever_the_truth_holds_there() -> None:
    layout = sphere(~LAND)
    posterior, truth = ensemble(layout)
    unmasked = truth.drop_vars("mask").fillna(1e6)
    expected, got = verify(posterior, truth), verify(posterior, unmasked)
    assert got.attrs["failed_members"] == 0
    xr.testing.assert_allclose(expected, got)
    # A spectrum would be that of the coast.
    assert "spectrum" not in got
    assert "crps" in summary(got).lower()
    # A NaN in the sea is a member that failed.
    broken = posterior.copy(deep=True)
    broken["u"][2, 1, 0, 5] = np.nan
    assert verify(broken, truth).attrs["failed_members"] == 1


def test_descending_latitudes_have_the_same_weights() -> None:
    posterior, truth = ensemble(sphere(~LAND))
    one, other = (
        verify(*(each.isel(lat=order) for each in (posterior, truth)))
        for order in (slice(None), slice(None, None, -1))
    )
    for name in ("overall_rmse", "overall_crps", "overall_energy_score"):
        assert one[name].item() == pytest.approx(other[name].item())
    assert cell_mask(posterior["u"], ("lat", "lon")).sum() == (~LAND).sum()


class Decay(System):
    """States that halve in a step, in the sea."""

    def __init__(self, layout: Layout) -> None:
        self.layout = layout

    def initial_model(self, members, seed=0, dtype=torch.float32, device="cpu"):
        return torch.zeros((len(members), *self.layout.shape), dtype=dtype, device=device)

    def advance(self, z, noise=None):
        return z / 2


def test_misfit_and_consistency_see_zeros_on_land() -> None:
    layout = sphere(~LAND)
    posterior, truth = ensemble(layout)
    observations = observe(truth.isel(member=0), Select(["u"]), std=0.5, seed=1)
    scores = verify(posterior, truth, observations, Decay(layout))
    assert np.isfinite(scores["misfit"]).all() and np.isfinite(scores["consistency"][:, :-1]).all()
    y = layout.to_array(truth)[0]
    left = (layout.area * (y[1:] - y[:-1] / 2) ** 2).mean()
    steps = (layout.area * np.diff(y, axis=0) ** 2).mean()
    assert scores["consistency_truth"].item() == pytest.approx(np.sqrt(left / steps), rel=1e-5)
    assert scores["misfit_truth"].item() == pytest.approx(1, abs=0.1)


def test_pairs_of_the_variogram_score_have_weights() -> None:
    rng = np.random.default_rng(0)
    x, y = rng.standard_normal((5, 4)), rng.standard_normal(4)
    pairs = np.array([[0, 1], [1, 2], [2, 3]])
    each = [variogram_score(x, y, pairs[[k]]) for k in range(3)]
    got = variogram_score(x, y, pairs, weights=[1.0, 0.0, 3.0])
    assert got == pytest.approx((each[0] + 3 * each[2]) / 4)
    with pytest.raises(ValueError, match="3 non-negative"):
        variogram_score(x, y, pairs, weights=[1.0, 2.0])
