"""The benchmark of regional assimilation: what it compares is what it says."""

import numpy as np
import pytest
import xarray as xr

from dynamics import Layout
from dynamics.shallow_water_forced import ToyWeather
from sda.benchmarks.regional import (
    GIVEN,
    JOINT,
    Setup,
    global_analyses,
    run,
    station_table,
    table,
    training_pairs,
)
from sda.regional import interior, make_regional_dataset


@pytest.fixture(scope="module")
def system() -> ToyWeather:
    return ToyWeather(truncation=10, lat=16, lon=32, first=4, last=8)


@pytest.fixture(scope="module")
def fine(system: ToyWeather) -> xr.Dataset:
    return system.simulate(8, 60, spinup=120, seed=1)


def test_analyses_are_area_means_with_errors_of_the_share_asked_for(fine: xr.Dataset) -> None:
    exact, wrong = (global_analyses(fine, 4, share) for share in (0.0, 0.3))
    area = [Layout.from_dataset(each).area for each in (fine, exact)]
    # Blocks are as large as their cells, so the means over the globe are the same.
    first = fine["u"].values[..., :4, :4]
    weights = area[0][:4, :4] / area[0][:4, :4].sum()
    assert np.allclose(exact["u"].values[..., 0, 0], (first * weights).sum((-2, -1)), atol=1e-4)
    error = wrong["h"] - exact["h"]
    other = exact["h"].roll(member=-1)
    expected = 0.3 * (other - exact["h"].mean(("member", "time")))
    assert np.allclose(error, expected, atol=1e-2)
    # Nothing of a member's own anomalies is in its errors.
    anomaly = exact["h"] - exact["h"].mean(("member", "time"))
    both = (error * anomaly).mean() / np.sqrt((error**2).mean() * (anomaly**2).mean())
    assert abs(float(both)) < 0.35


def test_stations_see_the_truth_in_the_interior_with_their_errors(fine: xr.Dataset) -> None:
    setup = Setup(box={"lat": (15.0, 80.0), "lon": (180.0, 290.0)}, rim=1, stations=200, length=4)
    joint = make_regional_dataset(fine, global_analyses(fine, 4, 0.2), setup.box)
    truth = joint[["u", "v", "h"]].isel(member=[0], time=slice(0, 4))
    truth = truth.assign_attrs(variables=["u", "v", "h"])
    seen = station_table(truth, setup, 0)
    inner = interior(truth, 1)
    for dim in ("lat", "lon"):
        assert seen[dim].between(inner[dim].values[0], inner[dim].values[-1]).all()
    for name, std in setup.std.items():
        rows = seen[seen["variable"] == name]
        places = {
            dim: xr.DataArray(rows[dim].to_numpy(), dims="row") for dim in ("time", "lat", "lon")
        }
        error = rows["observation"].to_numpy() - truth[name].isel(member=0).interp(places).values
        assert abs(error.std() / std - 1) < 0.15 and abs(error.mean()) < 0.2 * std


def test_the_regional_posterior_beats_what_is_there(system: ToyWeather, fine: xr.Dataset) -> None:
    setup = Setup(
        box={"lat": (15.0, 80.0), "lon": (180.0, 290.0)}, rim=1, length=4, window=3, every=2,
        turns=4, stations=4, options={"kind": "low_rank", "rank": 100, "coupled": 40},
        conditional={"kind": "low_rank", "rank": 80, "coupled": 30},
    )  # fmt: skip
    rows = run(system, fine, 2, setup, members=8)
    assert len(rows) == 18
    for truth in range(2):
        crps = {row.method: row.crps["h"] for row in rows if row.truth == truth}
        ours = [crps.pop(f"analysis and stations, {name}") for name in (JOINT, GIVEN)]
        assert max(ours) < min(v for name, v in crps.items() if "alone" not in name)
        # Each source of what is known helps.
        assert ours[0] < crps[f"analysis alone, {JOINT}"]
        assert ours[1] < crps[f"analysis alone, {GIVEN}"]
    printed = table(rows)
    assert f"| analysis and stations, {GIVEN} |" in printed and "| 1.00 | 0 of 2 |" in printed

    with pytest.raises(ValueError, match="got 7 truths, 8 trajectories and 60 states"):
        run(system, fine, 7, setup)


def test_the_truths_are_held_out_of_what_a_network_learns(fine: xr.Dataset) -> None:
    setup = Setup(box={"lat": (15.0, 80.0), "lon": (180.0, 290.0)}, turns=2)
    pairs = training_pairs(fine, setup, 2)
    assert pairs["member"].values.tolist() == list(range(16))
    own = {"lat": pairs["lat"].values, "lon": pairs["lon"].values}
    for member, (trajectory, turn) in enumerate((m, t) for m in range(8) for t in range(2)):
        here = fine["h"].roll(lon=16 * turn).sel(own).isel(member=trajectory)
        assert np.array_equal(pairs["h"].isel(member=member).values, here.values)
    # Nothing of the truths is in the analyses of the others, whose errors are others' anomalies.
    alone = global_analyses(fine.isel(member=slice(0, 6)), setup.factor, setup.share)
    last = make_regional_dataset(fine.isel(member=slice(0, 6)), alone, setup.box)
    assert np.array_equal(pairs["h_context"].isel(member=10), last["h_context"].isel(member=5))
