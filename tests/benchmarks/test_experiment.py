"""Experiments: the twins that all methods share."""

import numpy as np
import pytest
import torch

from sda import config
from sda.benchmarks.experiment import SCORED, TUNED, Experiment, Twin, load
from sda.benchmarks.methods import METHODS, Workbench, resolve
from sda.observation.sequence import sequence


def small(**changes):
    """A short experiment on Lorenz-63 from a Gaussian start."""

    content = {
        "name": "small",
        "system": {"name": "lorenz63", "dt": 0.01, "noise": False},
        "observing": {
            "variables": None, "every": 5, "first": 5, "region": None, "block": None,
            "subsample": None, "function": None, "value": None, "std": 1.5,
        },
        "initial": {"mean": [1.5, -1.5, 25.0], "variance": 2.0},
        "cycles": 4, "dtype": "float64", "spinup": 50,
    }  # fmt: skip
    return Experiment(content | changes)


def observing(**changes):
    return dict(small().config["observing"]) | changes


def test_a_repetition_is_always_the_same_twin():
    a, b, other = small().twin(2), small().twin(2), small().twin(3)
    assert a.truth.identical(b.truth) and a.observations.hash() == b.observations.hash()
    assert a.seeds == b.seeds and a.seeds != other.seeds
    assert not np.allclose(a.truth["x"], other.truth["x"])
    assert small(seed=1).twin(2).seeds != a.seeds
    for alone, beside in zip((b, other), small().twins([2, 3]), strict=True):
        assert alone.truth.identical(beside.truth) and alone.seeds == beside.seeds
        assert alone.observations.hash() == beside.observations.hash()
    assert small().twins([]) == []
    # No two purposes and no two streams share a seed.
    seeds = [s for r in range(20) for stream in (SCORED, TUNED) for s in
             small().seeds(r, stream).values()]  # fmt: skip
    assert len(set(seeds)) == len(seeds)


def test_truth_and_ensemble_start_as_configured():
    experiment = small(cycles=None, length=2)
    truths = experiment.simulate_truths([experiment.seeds(r)["truth"] for r in range(200)])
    first = np.stack([experiment.system.layout.to_array(t)[0, 0] for t in truths])
    twin = small(cycles=1).twin(0)
    drawn = experiment.initial(twin, 200).draw(experiment.system, 200, 5, torch.float64)
    for x in (first, drawn.numpy()):
        # The standard errors of 200 draws of variance 2: .1 of a mean, .2 of a variance.
        assert np.allclose(x.mean(axis=0), [1.5, -1.5, 25.0], atol=0.4)
        assert np.allclose(x.var(axis=0), 2.0, atol=0.8)
    assert abs(np.corrcoef(first[:, 0], drawn[:, 0])[0, 1]) < 0.25


def test_a_first_guess_around_the_truth_is_as_wrong_as_it_says():
    # 180 values: standard errors of 0.1 of the standard deviation and 0.15 of the mean.
    experiment = small(initial={"variance": 4.0}, cycles=1)
    errors = []
    seen = experiment.twin(0).observations
    for r in range(60):
        seeds = experiment.seeds(r)
        made = experiment.spun_up_truth(seeds["truth"])
        twin = Twin(r, made, seen, experiment.time, seeds)
        truth = experiment.system.layout.to_array(twin.truth)[0, 0]
        errors.append(experiment.initial(twin, 8).mean - truth)
    assert np.isclose(np.std(errors), 2.0, rtol=0.22) and abs(np.mean(errors)) < 0.6


def test_errors_of_observations_have_their_std():
    experiment = small(cycles=300)
    twin = experiment.twin(0)
    layout = experiment.system.layout
    truth = layout.to_array(twin.truth)[0]
    seen = sequence(twin.observations, layout, twin.time, torch.float64)
    assert [each.index for each in seen] == list(range(5, 1501, 5))
    errors = np.concatenate([s.y[0].numpy() - truth[s.index] for s in seen])
    # 900 values: a standard error of 2.4 % of the standard deviation.
    assert np.isclose(errors.std(), 1.5, rtol=0.1) and abs(errors.mean()) < 0.2


def test_spun_up_states_are_the_climatology():
    experiment = small(initial=None, spinup=400)
    states = experiment.spun_up(200, seed=3)
    assert states.shape == (200, 3)
    reference = experiment.system.layout.to_array(
        experiment.system.simulate(16, 800, spinup=400, seed=9, progress=False)
    )
    # Neighbouring draws are correlated: 25 trajectories read off 8 times.
    assert np.allclose(states.std(dim=0), reference.std(axis=(0, 1)), rtol=0.25)
    assert abs(states[:, 2].mean() - reference[..., 2].mean()) < 3
    # States are the same however many are drawn.
    assert torch.equal(experiment.spun_up(16, seed=3)[:2], experiment.spun_up(16, seed=3)[:2])


def test_when_something_is_seen():
    assert small().steps() == [5, 10, 15, 20] and small().length == 21
    gaps = small(observing=observing(gaps=[[0.09, 0.12]]))
    assert gaps.steps() == [5, 15, 20]
    shared = small(observing=observing(share=0.5), cycles=400)
    assert shared.steps() == shared.steps()
    assert 150 < len(shared.steps()) < 250 and set(shared.steps()) <= set(range(5, 2001, 5))
    with pytest.raises(ValueError, match="nothing is observed"):
        small(observing=observing(gaps=[[0.0, 1.0]])).steps()


def test_shortened():
    long = small(cycles=500, burn_in=1.0)
    short = long.shortened(10)
    assert sum(short.time[step] > 1.0 for step in short.steps()) == 10
    assert np.allclose(
        short.twin(0).truth["z"], long.twin(0).truth["z"].isel(time=slice(short.length))
    )
    assert long.shortened(10**6) is long


def test_shortened_with_times():
    every = [0.1 * (i + 1) for i in range(40)]
    more = [{"times": [0.25, 3.0], "std": 0.5}, {"times": [3.9]}]
    long = small(
        cycles=None, length=501, burn_in=1.0, observing=observing(times=every), more_observing=more
    )
    short = long.shortened(10)
    # Ten times after the burn-in, the last of them at the last state.
    assert short.config["observing"]["times"] == every[: len(every) // 2]
    assert np.isclose(short.time[-1], 2.0)
    assert [each["times"] for each in short.config["more_observing"]] == [[0.25]]
    assert len(short.twin(0).observations) == 20 * 3 + 3
    assert long.shortened(30) is long


def test_a_wrong_model_leaves_the_truth_alone():
    right, wrong = small(), small(model={"rho": 20.0})
    assert right.twin(0).truth.identical(wrong.twin(0).truth)
    assert wrong.system.rho == 28 and wrong.model().rho == 20 and right.model().rho == 28
    assert wrong.model({"rho": 25.0}).rho == 25
    with pytest.raises(ValueError, match=r"0\.01 apart.*0\.02 apart"):
        small(model={"dt": 0.02}).model()


BAD = {
    "cycles": ({"cycles": 0}, "cycles must be an integer of at least 1, got 0"),
    "none": ({"cycles": None}, "cycles or length"),
    "burn_in": ({"burn_in": 5.0}, "leaves nothing to score"),
    "scored": ({"scored": "some"}, "analysis, all"),
    "system": ({"system": None}, "needs the keys"),
    "mean": ({"initial": {"mean": [1.0, 2.0], "std": 1.0}}, "3 values, got 2"),
    "both": ({"initial": {"std": 1.0, "variance": 1.0}}, "one of std and variance"),
    "names": ({"initial": {"mean": {"x": 1.0}, "std": 1.0}}, "must name the variables"),
    "text": ({"initial": {"mean": "far", "std": 1.0}}, "must be a number"),
    "negative": ({"initial": {"std": -1.0}}, "must not be negative"),
    "share": ({"observing": observing(share=1.5)}, r"in \(0, 1\]"),
    "no share": ({"observing": observing(share=0)}, r"observing.share must .* in \(0, 1\], got 0"),
    "gaps": ({"observing": observing(gaps=5)}, "observing.gaps must be a list of pairs.*got 5"),
    "gap": ({"observing": observing(gaps=[[1.0]])}, "observing.gaps must be a list of pairs"),
    "times": ({"observing": observing(times=3)}, "observing.times must be a list of times"),
    "more": ({"more_observing": 5}, "more_observing must be a list of mappings.*got 5"),
    "more gaps": ({"more_observing": [{"gaps": 5}]}, r"more_observing\[0\].gaps must be"),
    "initial": ({"initial": 5}, "initial must be a mapping.*got 5"),
    "model": ({"model": 5}, "model must be a mapping.*got 5"),
    "tuning": ({"tuning": 5}, "tuning must be a mapping.*got 5"),
    "entries": ({"entries": ["etkf"]}, "entries must be a mapping"),
    "entry": ({"entries": {"etkf": 5}}, "entries.etkf must be a mapping.*got 5"),
}


@pytest.mark.parametrize("case", BAD)
def test_bad_input(case):
    changes, message = BAD[case]
    with pytest.raises(ValueError, match=message):
        experiment = small(**changes)
        twin = experiment.twin(0)
        experiment.initial(twin, 4)


@pytest.mark.parametrize("name", sorted(config.groups()["experiment"]))
def test_every_experiment_is_complete(name):
    if name == "none":
        return
    toy = name.startswith("toy")
    short = ["length=3"] if toy else ["cycles=2", "length=null"]
    experiment = load(name, [*short, "burn_in=0"])
    # Observing systems have times of their own.
    assert experiment.name == name and (toy or len(experiment.steps()) <= 2)
    assert experiment.model().layout.shape == experiment.system.layout.shape
    if name.startswith("sakov"):
        assert all(entry["published"] > 0 for entry in experiment.entries.values())
        full = load(name)
        assert sum(full.time[step] > full.burn_in for step in full.steps()) >= 1000
    if experiment.entries:
        # Every method is built, so that its parameters are in range.
        bench = Workbench(experiment)
        for spec in resolve(experiment):
            if METHODS[spec.method].target is not None:
                method = bench.method(spec, experiment.model(spec.model))
                assert method.members == spec.parameters.get("members", method.members)
