"""Forecasts of the toy weather and ocean: several observing systems, scores by area, floats."""

from dataclasses import replace

import numpy as np
import pytest

import sda
from dynamics import ToyWeather
from sda.benchmarks import floats, forecast
from sda.config import build_system


def small_ocean():
    return build_system({**forecast.preset("system", "toy_ocean"), "size": 16, "resolution": 32})


@pytest.fixture
def ocean(monkeypatch):
    case = replace(
        forecast.CASES["toy_ocean"], system=small_ocean, length=5, lead=4, leads=(1, 4), members=6,
        spinup=60,
    )  # fmt: skip
    monkeypatch.setitem(forecast.CASES, "toy_ocean", case)
    return case


def test_floats_are_forecast_better_by_a_model_than_by_staying(ocean) -> None:
    archive = small_ocean().simulate(12, 24, spinup=60, seed=2, progress=False)
    prior = sda.GaussianPrior.fit(archive, window=5)
    rows = list(floats.run(0, prior=prior))
    assert [row.method for row in rows] == list(floats.METHODS)
    last = {row.method: row.scores["energy_score"].values[-1] for row in rows}
    assert last["analysis + model"] < 0.7 * last["not moved"]
    assert all(row.scores["distance"].values[0] == 0 for row in rows)
    text = floats.table(rows)
    assert "energy score in km" in text and f"{last['engine']:.1f}" in text


def test_all_instruments_of_a_case_see_its_truth(ocean) -> None:
    past = small_ocean().simulate(1, 5, spinup=60, seed=1, progress=False).isel(member=0)
    table = ocean.observe(past, 3).to_table()
    assert set(table["variable"]) == {"ssh", "psi1", "psi2"}
    assert table["time"].between(0, 96).all()


def test_forecasts_on_the_sphere_are_scored_by_area() -> None:
    system = ToyWeather(5, lat=8, lon=16, first=2, last=4)
    data = system.simulate(6, 6, spinup=8, seed=0, progress=False)
    prior = sda.GaussianPrior.fit(data, window=2)
    truth, result = data.isel(member=0), data.isel(member=slice(1, None))
    row = forecast.score("toy_weather", 0, "engine", result, truth, prior, 0.0)
    w = system.layout.area / system.layout.area.sum()
    import torch

    x, y = (
        prior.climatology.normalise(torch.from_numpy(system.layout.to_array(d)).double()).numpy()
        for d in (result, truth)
    )
    error = (w * (x.mean(0) - y[0]) ** 2).sum((-2, -1)).mean(1)
    np.testing.assert_allclose(row.rmse, np.sqrt(error))
    assert row.energy is None


def test_a_member_that_failed_carries_no_floats() -> None:
    layout = small_ocean().layout
    flow = layout.to_dataset(np.ones((3, 2, *layout.shape), dtype=np.float32))
    flow["psi2"][1, 1, 0, 0] = np.nan
    assert floats.whole_members(flow)["member"].values.tolist() == [0, 2]
