"""Scores of one method on one twin, against closed forms, and the store that keeps them."""

import json
import os
from types import SimpleNamespace

import numpy as np
import pytest
import xarray as xr

from dynamics.layout import Layout
from sda.benchmarks.experiment import Experiment
from sda.benchmarks.methods import Outcome, Workbench, resolve
from sda.benchmarks.results import Results, aside, check_out, described, table
from sda.benchmarks.runner import judge
from sda.benchmarks.scoring import BINS, Case, Target, score, spectra, truth_ranks


def experiment(**changes):
    content = {
        "name": "ring",
        "system": {"name": "lorenz96", "dimension": 8},
        "observing": {
            "variables": None, "every": 2, "first": 2, "region": None, "block": None,
            "subsample": 2, "function": None, "value": None, "std": 0.5,
        },
        "cycles": 40, "dtype": "float64", "spinup": 100, "burn_in": 1.0,
    }  # fmt: skip
    return Experiment(content | changes)


@pytest.fixture(scope="module")
def target():
    e = experiment()
    return Target.of(e, e.twin(0))


def ensemble(target, members, error, spread, seed=0):
    """Members around a centre that is wrong by `error` in the mean square, `(time)` or one."""

    rng = np.random.default_rng(seed)
    error = np.broadcast_to(error, target.time.shape)[:, None, None]
    centre = target.truth + error * rng.standard_normal(target.truth.shape)
    x = centre + spread * rng.standard_normal((members, *centre.shape))
    return target.layout.to_dataset(x, target.time), x


def test_the_headline_score_is_that_of_the_literature(target):
    error = np.linspace(0.1, 3.0, len(target.time))
    posterior, x = ensemble(target, 12, error, 0.2)
    scores = score(target, posterior)
    per_time = [np.sqrt(np.mean((m - t) ** 2)) for m, t in zip(x.mean(0), target.truth)]
    after = [v for v, time in zip(per_time, target.time) if time > 1.0]
    assert np.allclose(scores["rmse_time"], per_time) and len(after) == 30
    assert np.isclose(scores["rmse"], np.mean(after))
    # A mean of roots, which is less than the root of the mean.
    assert scores["rmse"] < 0.97 * np.sqrt(np.mean(np.square(after)))
    spread = [np.sqrt(v.var(axis=0, ddof=1).mean()) for v in np.moveaxis(x, 1, 0)]
    assert np.allclose(scores["spread_time"], spread)


def test_a_calibrated_ensemble_scores_as_one(target):
    # Centre and members around the truth alike: exchangeable with it.
    rng = np.random.default_rng(3)
    centre = target.truth + rng.standard_normal(target.truth.shape)
    x = centre + rng.standard_normal((39, *centre.shape))
    scores = score(target, target.layout.to_dataset(x, target.time))
    # 240 values: standard errors of 5 % of a ratio of variances and 3 % of a frequency of one half.
    assert np.isclose(scores["spread_skill"], 1, atol=0.15)
    assert np.isclose(scores["rank_histogram"].sum(), 1) and len(scores["rank_histogram"]) == BINS
    assert np.allclose(scores["coverage"][[5, 9]], [0.5, 0.9], atol=0.1)
    # CRPS of N(0, 1) against a draw of it is 1/√π.
    assert np.isclose(scores["crps"], 1 / np.sqrt(np.pi), rtol=0.12)
    assert abs(scores["bias"]) < 0.2
    # Squared innovations: centre and member 1 each, the error 0.25, over 0.25.
    assert np.isclose(scores["misfit"], 3.0, rtol=0.1)
    normal = -0.5 * (9.0 + np.log(2 * np.pi * 0.25)) * 4
    assert np.isclose(scores["log_likelihood"], normal, rtol=0.2)


def test_an_estimate_alone_has_no_spread(target):
    posterior, _ = ensemble(target, 1, 0.5, 0.0)
    scores = score(target, posterior)
    assert np.isclose(scores["rmse"], 0.5, rtol=0.2)
    assert np.isnan([scores[name] for name in ("crps", "spread", "reliability")]).all()
    assert "rank_histogram" not in scores


def test_weighted_particles_are_scored_by_their_own_mean(target):
    posterior, x = ensemble(target, 5, 0.5, 1.0)
    weighted = posterior.assign_coords(x_mean=(("time", "site"), target.truth[:, 0] + 0.1))
    assert np.allclose(score(target, weighted)["rmse_time"], 0.1)
    assert np.allclose(score(target, weighted)["spread"], score(target, posterior)["spread"])


def test_what_is_not_finite_has_no_score(target):
    posterior, _ = ensemble(target, 5, 0.5, 0.5)
    posterior["x"][:, 20:] = np.nan
    scores = score(target, posterior)
    assert np.isnan([v for v in scores.values() if isinstance(v, float)]).all()
    assert np.isfinite(scores["rmse_time"][:20]).all()
    with pytest.raises(ValueError, match="none of the 40 times"):
        score(target, posterior.assign_coords(time=posterior["time"] + 100))


def test_ranks_of_ties_are_uniform():
    ranks = truth_ranks(np.zeros((3, 20_000)), np.zeros(20_000))
    assert np.allclose(np.bincount(ranks) / 20_000, 0.25, atol=0.02)
    assert truth_ranks(np.arange(4.0)[:, None], np.array([2.5])).tolist() == [3]


def test_spectra_of_waves():
    layout = Layout(("u",), 1.0, {"x": np.arange(16)}, {"x": 16.0})
    wave = 3.0 * np.cos(2 * np.pi * 2 * np.arange(16) / 16)
    power = spectra(layout, np.tile(wave, (3, 5, 1, 1)))
    # Half the mean square, all of it at wavenumber 2.
    assert np.allclose(power[2], 3.0**2 / 4) and np.isclose(power.sum(), power[2])
    assert spectra(Layout(("x",), 1.0), np.zeros((2, 5, 1))) is None


def test_the_case_shows_what_was_seen_where(target):
    case = Case.of(target)
    assert case.dims == ("case_time", "site") and case.truth.shape == (30, 8)
    assert np.isnan(case.observed[:, 1::2]).all() and np.isfinite(case.observed[:, ::2]).all()
    # 120 errors of 0.5: a standard error of 6.5 %.
    assert np.isclose(np.nanstd(case.observed - case.truth), 0.5, rtol=0.25)
    posterior, x = ensemble(target, 6, 0.5, 0.5)
    mean, spread = case.of_ensemble(target, posterior)
    assert np.allclose(mean, x.mean(axis=0)[-30:, 0])
    assert np.allclose(spread, x.std(axis=0, ddof=1)[-30:, 0])


def test_block_averages_cover_their_cells():
    e = experiment(
        system={"name": "kolmogorov", "size": 8, "resolution": 16},
        observing=experiment().config["observing"] | {"subsample": None, "block": 4, "first": 0},
        cycles=2, burn_in=0.0, spinup=2,
    )  # fmt: skip
    target = Target.of(e, e.twin(0))
    case = Case.of(target, block=4)
    assert case.dims == ("y", "x") and case.time == target.time[-1]
    blocks = case.observed.reshape(2, 4, 2, 4)
    assert np.isfinite(blocks).all() and np.ptp(blocks, axis=(1, 3)).max() == 0
    means = case.truth.reshape(2, 4, 2, 4).mean(axis=(1, 3))
    assert np.abs(blocks[:, 0, :, 0] - means).max() < 5 * 0.5


def test_all_times_are_scored_on_request():
    e = experiment(scored="all", burn_in=0.0)
    target = Target.of(e, e.twin(0))
    # The first observation is of the third state: a filter has no estimate of the two before it.
    assert len(target.time) == e.length and target.scored.tolist() == [False] * 2 + [True] * 79
    x = np.stack([target.truth] * 2)
    whole = target.layout.to_dataset(x, target.time)
    assert isinstance(whole, xr.Dataset) and score(target, whole)["rmse"] == 0
    x[:, :2] = np.nan
    assert score(target, target.layout.to_dataset(x, target.time))["rmse"] == 0
    x[:, 2] = np.nan
    assert np.isnan(score(target, target.layout.to_dataset(x, target.time))["rmse"])


def test_a_healthy_filter_is_not_lost_before_its_first_analysis():
    entries = {"etkf": {"members": 14, "inflation": 1.05}, "gaussian": {"members": 4}}
    e = experiment(scored="all", burn_in=0.0, entries=entries, initial={"mean": "truth", "std": 1})
    twin = e.twin(0)
    target = Target.of(e, twin)
    outcome = Workbench(e).run(resolve(e, ["etkf"])[0], twin)
    scores = judge(target, outcome)
    assert not outcome.diverged and np.isfinite(scores["rmse"])
    assert np.isnan(scores["rmse_time"][:2]).all() and np.isfinite(scores["rmse_time"][2:]).all()
    assert np.isclose(scores["rmse"], scores["rmse_time"][2:].mean())


ENTRIES = {
    "etkf": {"members": 6},
    "sda": {"members": 4},
    "fitted": {"method": "gaussian", "members": 4},
    "climate": {"method": "gaussian", "members": 4, "trajectories": None, "label": "Climate"},
    "known": {"method": "climatology", "members": 4, "climatology": "prior"},
}


@pytest.fixture
def store(tmp_path):
    """Makes a store of two methods and two repetitions."""

    e = experiment(entries={"etkf": ENTRIES["etkf"], "sda": ENTRIES["sda"]}, prior="lorenz96")
    target = Target.of(e, e.twin(0))

    def make(prior="a" * 64, **flags):
        return Results(
            tmp_path / "ring.zarr", e, target, Case.of(target), resolve(e), 2,
            {"commands": '["sda benchmark"]'}, prior_hash=prior, **flags,
        )  # fmt: skip

    return make


def test_what_was_lost_and_found_and_what_failed_is_kept(store, target):
    results = store()
    results.put(0, target, Outcome(None, 1.0, lost_time=3.5), {"rmse": 0.2})
    results.put(1, target, Outcome(None, 1.0, failed_members=2), {"rmse": 0.3})
    found = results.dataset().sel(repetition=0)
    assert np.array_equal(found["lost_time"], [3.5, np.nan], equal_nan=True)
    assert found["failed_members"].values.tolist() == [0, 2]
    assert found["diverged"].values.tolist() == [0, 0]
    # What was not run has neither.
    missing = results.dataset().sel(repetition=1)
    assert np.isnan(missing["failed_members"]).all() and np.isnan(missing["lost_time"]).all()
    rows = table(results.dataset())
    assert rows["failed_members"].tolist() == [0, 2] and rows["lost_time"].tolist()[0] == 3.5


def test_a_store_that_was_being_replaced_when_killed_is_put_back(store, target, monkeypatch):
    results = store()
    results.put(0, target, Outcome(None, 1.0), {"rmse": 0.2})
    replace, moves = os.replace, []

    def die(source, destination):
        moves.append(source)
        if len(moves) == 2:
            raise KeyboardInterrupt
        replace(source, destination)

    with monkeypatch.context() as patch:
        # Not that of the whole process: Zarr moves files, too.
        patch.setattr("sda.benchmarks.results.os", SimpleNamespace(replace=die))
        with pytest.raises(KeyboardInterrupt):
            store(resume=True)
    assert not results.path.exists() and aside(results.path).exists()
    # It is there again for who did not ask to resume, too.
    with pytest.raises(FileExistsError, match="resume=true"):
        store()
    again = store(resume=True)
    assert again.finished(0, 0) and again.dataset()["rmse"].values[0, 0] == 0.2
    assert [each.name for each in results.path.parent.iterdir()] == ["ring.zarr"]


def test_results_are_not_resumed_with_another_prior(store):
    old = store().dataset()
    with pytest.raises(ValueError, match=r"sda had the parameters .*a{16}.*now .*b{16}"):
        store(prior="b" * 64, resume=True)
    assert store(resume=True).dataset().equals(old)


def test_the_prior_is_named_where_a_method_depends_on_it():
    specs = resolve(experiment(entries=ENTRIES, prior="lorenz96"))
    named = [spec.key for spec in specs if "prior_hash" in json.loads(described(spec, "c" * 64))]
    assert named == ["sda", "climate", "known"]


def test_the_results_are_a_zarr_store(tmp_path):
    for name in ("results.csv", "results", "results.parquet"):
        with pytest.raises(ValueError, match=r"ends in \.zarr, got '.*results"):
            check_out(tmp_path / name, overwrite=False, resume=False)


def test_one_attribute_is_read_without_the_arrays(store, monkeypatch):
    path = store().path
    monkeypatch.setattr(xr.Dataset, "load", lambda self: pytest.fail("read all of it"))
    check_out(path, overwrite=True, resume=False)
