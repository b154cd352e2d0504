"""The Kolmogorov benchmark, on a small flow with an untrained network."""

import csv
import math

import numpy as np
import pytest
import torch
import xarray as xr

from dynamics import KolmogorovFlow
from dynamics.layout import Layout
from sda.benchmarks.kolmogorov import (
    CASES,
    CountedPrior,
    Row,
    make_observations,
    make_truth,
    mean_row,
    run,
    table,
    write_csv,
)
from sda.climatology import Climatology
from sda.langevin import Langevin
from sda.prior import Prior
from sda.sampling import log_levels
from sda.window import WindowDenoiser

LENGTH = 8


@pytest.fixture(scope="module")
def flow() -> KolmogorovFlow:
    return KolmogorovFlow(size=16, resolution=16)


@pytest.fixture(scope="module")
def prior(flow: KolmogorovFlow) -> Prior:
    data = flow.simulate(8, 24, spinup=16, seed=0, progress=False)
    climatology = Climatology.fit(data, LENGTH)
    network = {"name": "gated", "width": 4, "depth": 1}

    return Prior(climatology, WindowDenoiser(climatology, LENGTH, network), "untrained")


def row(case: str = "blocks", method: str = "static", **values: float) -> Row:
    numbers = {
        name: 1.0
        for name in Row.__dataclass_fields__
        if name not in ("case", "index", "method", "energy")
    }

    return Row(case=case, index=0, method=method, energy=(1.0, 0.5), **(numbers | values))


def test_the_cases_observe_what_was_published(flow: KolmogorovFlow) -> None:
    truth = make_truth(0, 5, KolmogorovFlow(size=32, resolution=32))
    time = truth["time"].values
    counts = {"blocks": 16, "subsample 2": 256, "subsample 8": 16, "subsample 16": 4}
    for case, cells in counts.items():
        observations = make_observations(case, truth, 0)
        assert len(observations) == 2 * 2 * cells
        np.testing.assert_allclose(np.unique(observations.times), time[::4])
        assert observations.linear

    assert not make_observations("saturating", truth, 0).linear
    layout = Layout.from_dataset(truth)
    loop = make_observations("loop", truth, 0).likelihood(layout, time)
    assert not loop.y.any()
    np.testing.assert_allclose(loop.std, 0.01, rtol=1e-6)


def test_an_untrained_network_is_the_gaussian_smoother(prior: Prior, flow: KolmogorovFlow) -> None:
    rows = run(prior, ["subsample 4"], truths=1, members=4, length=LENGTH, flow=flow)
    smoother, static, corrected = rows

    assert static.crps == pytest.approx(smoother.crps, rel=1e-3)
    # NaN where the truth has no energy.
    assert static.energy == pytest.approx(smoother.energy, rel=1e-3, nan_ok=True)
    assert np.isfinite(static.energy[:4]).all()
    assert corrected.crps != static.crps
    # 25 levels, and one more evaluation for each Langevin step.
    steps = Langevin.for_fields()
    inside = [s for s in log_levels(24, 100.0, 5e-3) if steps.s_min <= s <= steps.s_max]
    assert (smoother.evaluations, static.evaluations) == (0, 25)
    assert corrected.evaluations == 25 + steps.steps * len(inside)
    # It has seen something: the climatology's CRPS is 0.56 of its standard deviation.
    assert static.crps < 0.53 * float(prior.climatology.scale.mean())


def test_counting_changes_nothing(prior: Prior) -> None:
    corrected = Prior(prior.climatology, prior.denoiser, exposure=0.1)
    counted = CountedPrior(corrected)
    assert counted.hash == corrected.hash != prior.hash
    x = torch.randn(2, LENGTH, 2, 16, 16, generator=torch.Generator().manual_seed(0))
    given, expected = (p.trajectory(LENGTH).denoise(x, 0.5) for p in (counted, corrected))
    assert torch.equal(given, expected)
    assert counted.evaluations == 2


def test_a_loop_has_no_truth_to_be_scored_against(prior: Prior, flow: KolmogorovFlow) -> None:
    (loop,) = run(prior, ["loop"], ["static"], truths=1, members=4, length=LENGTH, flow=flow)

    assert math.isnan(loop.rmse) and math.isnan(loop.coverage)
    assert loop.misfit < 2
    assert "| – | – |" in table([loop])


def test_means_are_taken_before_extremes() -> None:
    other = row(crps=3.0)
    other.energy = (0.5, 1.0)
    mean = mean_row([row(), other])

    assert mean.crps == 2
    assert mean.energy == (0.75, 0.75)
    assert "0.75 … 0.75" in table([row(), other])


def test_rows_are_written_as_csv(tmp_path) -> None:
    write_csv([row(rmse=0.25)], tmp_path / "rows.csv")
    with (tmp_path / "rows.csv").open() as file:
        (record,) = csv.DictReader(file)

    assert float(record["rmse"]) == 0.25
    assert (float(record["energy_1"]), float(record["energy_2"])) == (1, 0.5)


def test_what_does_not_fit_is_refused(prior: Prior, flow: KolmogorovFlow) -> None:
    with pytest.raises(ValueError, match="unknown cases"):
        run(prior, ["nothing"], flow=flow)
    with pytest.raises(ValueError, match="unknown methods"):
        run(prior, list(CASES), ["nothing"], flow=flow)
    with pytest.raises(ValueError, match="same size"):
        run(prior, ["blocks"], flow=KolmogorovFlow(size=8, resolution=16))
    with pytest.raises(ValueError, match="unknown case"):
        make_observations("nothing", xr.Dataset(), 0)
