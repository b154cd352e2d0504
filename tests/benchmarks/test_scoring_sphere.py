"""Scores of a benchmark on the sphere: by area, each variable by itself, against hand sums."""

import math

import numpy as np
import pytest

from sda.benchmarks.experiment import load
from sda.benchmarks.results import by_variable, empty, summary, table
from sda.benchmarks.scoring import Case, Target, score
from sda.verification import crps

SMALL = [
    "system=toy_weather", "system.truncation=5", "system.lat=8", "system.lon=16",
    "system.first=2", "system.last=4", "observing=stations", "observing.number=10",
    "length=5", "spinup=8", "scored=all", "members=6",
]  # fmt: skip


@pytest.fixture(scope="module")
def case():
    experiment = load("none", SMALL)
    target = Target.of(experiment, experiment.twin(0))
    noise = np.random.default_rng(0).standard_normal((6, *target.truth.shape))
    size = np.array([3.0, 2.0, 20.0])[:, None, None]
    x = target.truth + size * (noise + noise[:1])
    return experiment, target, x, score(target, target.layout.to_dataset(x, target.time))


def test_scores_are_weighted_by_area_and_of_each_variable(case) -> None:
    _, target, x, found = case
    w = target.layout.area / target.layout.area.sum()
    kept = target.scored
    errors = (w * (x.mean(0) - target.truth)[kept] ** 2).sum((-2, -1))
    np.testing.assert_allclose(found["rmse_by_variable"], np.sqrt(errors).mean(0))
    each = (w * crps(x[:, kept], target.truth[kept])).sum((-2, -1)).mean(0)
    np.testing.assert_allclose(found["crps_by_variable"], each)
    variance = (w * x[:, kept].var(0, ddof=1)).sum((-2, -1))
    np.testing.assert_allclose(
        found["spread_skill_by_variable"], np.sqrt(7 / 6 * variance.mean(0) / errors.mean(0))
    )
    # Metres and metres per second have no common mean but in standard deviations.
    truth = target.truth[kept]
    mean = (w * truth).sum((-2, -1)).mean(0)[:, None, None]
    std = np.sqrt((w * (truth - mean) ** 2).sum((-2, -1)).mean(0))
    assert found["rmse"] == pytest.approx(np.sqrt((errors / std**2).mean(1)).mean())
    assert found["crps"] == pytest.approx((each / std).mean())
    below = (x[:, kept] < truth).sum(0)
    covered = np.broadcast_to(w, below[:, 0].shape)
    inside = [covered[(below[:, i] > 0) & (below[:, i] < 6)].sum() / len(truth) for i in range(3)]
    # Between the smallest and the largest of 6 lie 5/7 of the ranks.
    got = [np.interp(5 / 7, [0, *LEVELS, 1], [0, *row, 1]) for row in found["coverage_by_variable"]]
    np.testing.assert_allclose(got, inside, atol=0.06)
    # The spectrum is that of kinetic energy.
    square = (w * (x[:, kept, :2] ** 2).sum(2)).sum((-2, -1)).mean() / 2
    assert found["spectrum"].sum() == pytest.approx(square, rel=0.2)


def test_tables_name_variables_and_units(case) -> None:
    experiment, target, _, found = case
    from sda.benchmarks.methods import resolve

    specs = resolve(experiment, ["climatology"])
    results = empty(experiment, target, Case.of(target), specs, 1)
    for name in ("rmse", "crps", "spread_skill", "coverage"):
        key = f"{name}_by_variable"
        results[key] = (results[key].dims, np.broadcast_to(found[key], results[key].shape))
    results["finished"][:], results["diverged"][:] = 1.0, 0.0
    head, row = by_variable(results)
    assert float(row[head.index("rmse h")]) == pytest.approx(found["rmse_by_variable"][2], rel=0.01)
    assert summary(results).count("\n") == 4
    frame = table(results)
    assert frame["crps_by_variable_u"][0] == found["crps_by_variable"][0]
    assert list(results["units"].values) == ["m s-1", "m s-1", "m"]
    assert math.isfinite(results["case_truth"].values.sum())


LEVELS = (0.05, *(round(0.1 * i, 1) for i in range(1, 10)), 0.95)
