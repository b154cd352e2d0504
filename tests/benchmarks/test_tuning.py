"""Tuning: a stated budget, a truth of its own, both variants kept."""

import json

import numpy as np
import pytest

from sda.benchmarks import tuning as module
from sda.benchmarks.experiment import Experiment
from sda.benchmarks.methods import METHODS, Workbench, resolve
from sda.benchmarks.runner import benchmark
from sda.benchmarks.tuning import Tuning, candidates, tune, tune_methods, tuned

INFLATIONS = [1.0, 1.05, 1.4, 3.0]


def experiment(**budget):
    entry = {"method": "etkf", "members": 10, "inflation": 3.0, "search": {"inflation": INFLATIONS}}
    content = {
        "name": "ring",
        "system": {"name": "lorenz96", "dimension": 8},
        "observing": {
            "variables": None, "every": 2, "first": 2, "region": None, "block": None,
            "subsample": None, "function": None, "value": None, "std": 1.0,
        },
        "cycles": 60, "dtype": "float64", "spinup": 100, "burn_in": 1.0,
        "initial": {"mean": "truth", "std": 1.0},
        "entries": {"etkf": entry, "enkfn": {"method": "enkfn", "members": 10}},
        "tuning": {"trials": 4, "cycles": 40} | budget,
    }  # fmt: skip
    return Experiment(content)


def test_the_best_of_all_trials_is_found():
    e = experiment()
    found = tune(Tuning.of(e), Workbench(e), resolve(e)[0], lambda line: None)
    assert [t["parameters"]["inflation"] for t in found["trials"]] == [3.0, 1.0, 1.05, 1.4]
    best = min(found["trials"], key=lambda t: t["rmse"])
    assert found["parameters"] == best["parameters"] and found["rmse"] == best["rmse"]
    # Anomalies that treble at each analysis leave the ensemble as wide as the observations.
    assert found["parameters"]["inflation"] < 3.0 and found["rmse"] < found["trials"][0]["rmse"]
    assert found["budget"] == {"trials": 4, "cycles": 40, "strategy": "grid"}
    spec = tuned(resolve(e)[0], found)
    assert spec.key == "etkf_tuned" and spec.tuned and spec.parameters["members"] == 10
    assert np.isnan(spec.published)


def test_halving_spends_no_more_than_the_grid():
    e = experiment(strategy="halving", trials=3)
    found = tune(Tuning.of(e), Workbench(e), resolve(e)[0], lambda line: None)
    cycles = [t["cycles"] for t in found["trials"]]
    assert cycles == [10] * 4 + [20] * 2 + [40] and sum(cycles) <= 3 * 40
    # Rounds keep the better half.
    first = sorted(found["trials"][:4], key=lambda t: t["rmse"])[:2]
    assert {t["parameters"]["inflation"] for t in found["trials"][4:6]} == {
        t["parameters"]["inflation"] for t in first
    }


def test_large_spaces_are_thinned_out_with_the_own_choice_kept():
    e = experiment()
    space = {"method": "letkf", "members": 7, "inflation": 1.23, "radius": 4.0}
    letkf = resolve(Experiment({**e.config, "entries": {"letkf": space}}))[0]
    choices = candidates(letkf, 12, seed=0)
    assert len(choices) == 12 and choices[0] == {"inflation": 1.23, "radius": 4.0}
    assert len({json.dumps(c) for c in choices}) == 12
    space = METHODS["letkf"].search
    assert all(c["inflation"] in space["inflation"] for c in choices[1:])
    assert choices == candidates(letkf, 12, seed=0) != candidates(letkf, 12, seed=1)
    assert len(candidates(letkf, 10**6, seed=0)) == 1 + 10 * 6


def test_diverged_trials_never_win(monkeypatch):
    e = experiment()
    scores = {3.0: 1.0, 1.0: np.inf, 1.05: 0.7, 1.4: np.inf}

    def trial(bench, spec, choice, twin, target, cycles, trials):
        return scores[choice["inflation"]]

    monkeypatch.setattr(module, "trial", trial)
    spec = resolve(e)[0]
    found = tune(Tuning.of(e), Workbench(e), spec, lambda line: None)
    assert found["parameters"] == {"inflation": 1.05}
    scores = dict.fromkeys(scores, np.inf)
    found = tune(Tuning.of(e), Workbench(e), spec, lambda line: None)
    assert found["parameters"] == {"inflation": 3.0} and found["rmse"] is None


def test_both_variants_stay_and_resuming_does_not_tune_again(tmp_path, monkeypatch):
    out, lines = tmp_path / "tuned.zarr", []
    results = benchmark(experiment(), repetitions=1, out=out, tune=True, say=lines.append)
    assert list(results["method"].values) == ["etkf", "etkf_tuned", "enkfn"]
    assert results["tuned"].values.tolist() == [0, 1, 0]
    untuned, best, _ = results["rmse"].values[:, 0]
    assert best < untuned
    found = json.loads(results.attrs["tuning"])["etkf"]
    assert (
        json.loads(results["parameters"].values[1])["inflation"] == found["parameters"]["inflation"]
    )
    assert len(found["trials"]) == 4 and lines[0].startswith("[tuning] ETKF")

    monkeypatch.setattr(module, "tune", lambda *arguments: pytest.fail("tuned again"))
    again = benchmark(experiment(), repetitions=2, out=out, tune=True, resume=True)
    assert again["finished"].values.sum() == 6
    assert np.allclose(again["rmse"].values[:, 0], results["rmse"].values[:, 0])


def test_what_was_found_is_of_the_same_search(monkeypatch):
    e, tuned_keys = experiment(), []

    def found(tuning, bench, spec, say):
        tuned_keys.append(spec.key)
        budget = {"trials": tuning.trials, "cycles": tuning.cycles, "strategy": tuning.strategy}
        return {"parameters": {"inflation": 1.05}, "budget": budget}

    monkeypatch.setattr(module, "tune", found)

    def search(known, **changes):
        entry = e.entries["etkf"] | changes
        specs = resolve(Experiment({**e.config, "entries": {"etkf": entry}}))
        given = (Tuning.of(e), Workbench(e), specs, known)
        return tune_methods(*given, lambda done: None, lambda line: None)[1]

    known = json.loads(json.dumps(search({})))
    assert search(known) == known and tuned_keys == ["etkf"]
    for changes in ({"search": {"inflation": [1.0, 1.1]}}, {"inflation": 1.4}, {"members": 12}):
        tuned_keys.clear()
        search(known, **changes)
        assert tuned_keys == ["etkf"], changes


def test_the_truth_that_tunes_is_never_scored():
    e = experiment()
    tuning, scored = e.twin(0, stream=1), e.twin(0)
    assert not set(tuning.seeds.values()) & set(scored.seeds.values())
    assert not np.allclose(tuning.truth["x"], scored.truth["x"])


@pytest.mark.parametrize(
    ("budget", "message"),
    [
        ({"trials": 0}, "tuning.trials must be an integer of at least 1, got 0"),
        ({"strategy": "random"}, "grid, halving"),
        ({"seconds": 5}, r"unknown keys \['seconds'\] of tuning"),
    ],
)
def test_bad_budgets(budget, message):
    with pytest.raises(ValueError, match=message):
        Tuning.of(experiment(**budget))
