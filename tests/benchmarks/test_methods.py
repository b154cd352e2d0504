"""The methods of a benchmark: by name, with checked parameters, and what running one costs."""

import numpy as np
import pytest
import torch
import xarray as xr

from sda.benchmarks.experiment import Experiment, load
from sda.benchmarks.methods import (
    METHODS,
    Workbench,
    forecasts,
    lost_forecast,
    measure,
    recovered,
    resolve,
    signature,
)
from sda.classical import OptimalInterpolation


def experiment(entries=None, **changes):
    content = {
        "name": "spring",
        "system": {"name": "rotation", "angle": 0.3, "decay": 0.95, "std": 1.0, "dt": 1.0},
        "observing": {
            "variables": None, "every": 2, "first": 2, "region": None, "block": None,
            "subsample": None, "function": None, "value": None, "std": 0.5,
        },
        "cycles": 12, "dtype": "float64", "spinup": 20, "members": 8, "entries": entries,
    }  # fmt: skip
    return Experiment(content | changes)


def test_every_name_has_a_class_with_the_parameters_that_are_tuned():
    for name, kind in METHODS.items():
        known = signature(name)
        assert set(kind.search) <= set(known), name
        assert "members" in known or name in ("kf", "rts", "4dvar"), name


def test_names_stand_for_entries_then_for_methods():
    entries = {
        "small": {"method": "etkf", "members": 4, "published": 0.5},
        "large": {"method": "ETKF", "members": 40, "label": "Large"},
        "enkf": {"inflation": 1.1},
    }
    e = experiment(entries)
    assert [s.key for s in resolve(e)] == ["small", "large", "enkf"]
    assert [s.key for s in resolve(e, ["etkf"])] == ["small", "large"]
    assert [s.key for s in resolve(e, ["large", "denkf"])] == ["large", "denkf"]
    small, large, enkf = resolve(e)
    assert small.published == 0.5 and np.isnan(large.published) and large.label == "Large"
    assert small.parameters == {"members": 4} and small.label == "ETKF, N 4"
    # The experiment's number of members, where the entry names none.
    assert enkf.parameters == {"members": 8, "inflation": 1.1} and enkf.kind == "classical"


BAD = {
    "method": (None, ["etkff"], r"unknown method 'etkff' \(did you mean 'etkf'\?\).*letkf"),
    "entry": ({"a": {"method": "etkf"}}, ["b"], "an entry of the experiment: a"),
    "parameter": ({"a": {"method": "etkf", "infl": 1.0}}, None,
                  "a: unknown parameter 'infl'.*inflation"),
    "prior": (None, ["sda"], "sda needs a prior.*'spring' names none"),
    "nothing": (None, None, "no entries: give methods"),
    "empty": ({"a": {"method": "etkf"}}, [], r"methods is empty.*all entries \(a\)"),
    "search": ({"a": {"method": "etkf", "search": 3}}, None, "a: search must be a mapping"),
    "values": ({"a": {"method": "etkf", "search": {"inflation": 3}}}, None, "a: search must be"),
    "published": ({"a": {"method": "etkf", "published": "abc"}}, None,
                  "a: published must be a number or null, got 'abc'"),
    "number": ({"a": {"method": "etkf", "inflation": "big"}}, None,
               "a: inflation of etkf must be a number, got 'big'"),
    "flag": ({"a": {"method": "etkf", "rotation": "perhaps"}}, None,
             "a: rotation of etkf must be true or false, got 'perhaps'"),
    "no flag": ({"a": {"method": "etkf", "inflation": True}}, None, "must be a number, got True"),
    "model": ({"a": {"method": "etkf", "model": 5}}, None, "a: model must be a mapping"),
    "labels": ({"a": {"method": "etkf", "label": "x"}, "b": {"method": "enkf", "label": "x"}}, None,
               "same label 'x'"),
}  # fmt: skip


@pytest.mark.parametrize("case", BAD)
def test_bad_input(case):
    entries, names, message = BAD[case]
    with pytest.raises(ValueError, match=message):
        resolve(experiment(entries), names)


@pytest.mark.parametrize("device", ["foo", *([] if torch.cuda.is_available() else ["cuda"])])
def test_devices_that_are_not_there(device):
    with pytest.raises(ValueError, match=f"device '{device}' is not available"):
        Workbench(experiment(), device)


def test_wrong_arguments_name_the_entry():
    e = experiment({"thin": {"method": "etkf", "members": 1}})
    with pytest.raises(ValueError, match="thin: ETKF needs at least 2 members, got 1"):
        Workbench(e).run(resolve(e)[0], e.twin(0))


def test_exact_methods_agree_at_the_last_time():
    # All are exact on a linear system; the last state knows no later observation.
    fit = {"method": "gaussian", "trajectories": 200, "states": 50, "window": 25}
    entries = {"gaussian": fit, "etkf": {}, "rts": {}, "kf": {}}
    e = experiment({key: entry | {"members": 200} for key, entry in entries.items()})
    bench, twin = Workbench(e), e.twin(0)
    gaussian, etkf, *exact = (bench.run(spec, twin) for spec in resolve(e))
    assert gaussian.model_steps == 0 and etkf.model_steps == 200 * 24
    for outcome in (gaussian, etkf, exact[0]):
        for name in ("x", "y"):
            a, b = (o.posterior[name].isel(time=-1).values for o in (outcome, exact[1]))
            # Standard errors of 200 members: 7 % of a standard deviation of each mean, 5 % of it.
            assert abs(a.mean() - b.mean()) < 0.35 * b.std()
            assert np.isclose(a.std(), b.std(), rtol=0.25)


def test_a_filter_forecasts_between_its_analyses():
    e = experiment({"etkf": {}}, scored="all")
    twin = e.twin(0)
    analysis = Workbench(experiment({"etkf": {}})).run(resolve(e)[0], twin).posterior
    filled = Workbench(e).run(resolve(e)[0], twin).posterior
    assert np.allclose(filled["time"], twin.time)
    at = filled.sel(time=analysis["time"].values)
    assert np.allclose(at["x"], analysis["x"]) and np.isnan(filled["x"].isel(time=0)).all()
    # One step of the system from each analysis, with its noise of variance std².
    layout = e.system.layout
    states = torch.from_numpy(layout.to_array(analysis)[:, :-1]).flatten(0, 1)
    after = layout.to_array(filled)[:, 3::2].reshape(-1, 2)
    noise = after - e.system.step(states).numpy()
    assert np.isclose(noise.std(), (1 - 0.95**2) ** 0.5, rtol=0.2)
    assert forecasts(filled, e.system, twin, torch.float64) is filled


def test_what_diverges_is_an_outcome():
    def fail():
        error = FloatingPointError("the state is not finite")
        error.time = 2.5
        raise error

    found, outcome = measure(fail, torch.device("cpu"))
    assert found is None and outcome.diverged and outcome.diverged_time == 2.5
    assert "not finite" in outcome.message

    # Two members cannot follow 40 variables: the filter loses the truth for good.
    e = load("sakov2008", ["cycles=120", "burn_in=0"])
    spec = resolve(e, ["etkf_24"])[0].with_parameters(members=2, inflation=1.0)
    outcome = Workbench(e).run(spec, e.twin(0))
    assert outcome.diverged and 0 < outcome.diverged_time <= e.time[-1]


class Fragile:
    """A system whose states may not be larger than 100."""

    def __init__(self, system):
        self.system, self.layout, self.stochastic = system, system.layout, False

    def rollout(self, x, length, noise=None):
        if x.abs().max() > 100:
            raise FloatingPointError("the state is not finite")
        return self.system.rollout(x, length, torch.zeros(len(x), length - 1, 2).to(x))


def test_a_forecast_that_breaks_down_is_an_outcome(monkeypatch):
    e = experiment({"etkf": {}}, scored="all")
    twin = e.twin(0)
    analysis = Workbench(experiment({"etkf": {}})).run(resolve(e)[0], twin).posterior
    wild = analysis.copy(deep=True)
    wild["x"][3, 7] = 1e3
    filled = forecasts(wild, Fragile(e.system), twin, torch.float64)
    when = float(analysis["time"][7])
    # All forecasts but that one, and the analysis itself.
    broken = np.isnan(filled["y"]).any("member").values
    assert np.flatnonzero(broken).tolist() == [0, 1, 17]
    assert np.isclose(lost_forecast(filled), when + 1)
    assert np.isnan(lost_forecast(forecasts(analysis, e.system, twin, torch.float64)))

    from dynamics import LinearGaussian

    def rollout(self, x, length, noise=None):
        raise FloatingPointError("the state is not finite")

    monkeypatch.setattr(LinearGaussian, "rollout", rollout)
    outcome = Workbench(e).run(resolve(e)[0], twin)
    assert outcome.diverged and outcome.diverged_time == 3 and "forecast" in outcome.message


def test_what_was_found_again_must_be_held_to_the_end():
    def filtered(ratio):
        time = np.arange(float(len(ratio)))
        content = {"x": (("member", "time"), np.zeros((2, len(ratio))))}
        return xr.Dataset(
            content, {"time": time, "innovation_chi_square": ("time", np.asarray(ratio))}
        ).reset_coords("innovation_chi_square")

    good, bad = [1.0] * 100, [50.0] * 15
    assert recovered(filtered(bad + good), 0.0)
    assert not recovered(filtered(bad * 8 + good), 0.0)
    # Consistent most of the time, but lost again at the end.
    assert not recovered(filtered(bad + good + bad), 0.0)
    assert not recovered(filtered(good), 200.0)


def test_the_long_run_is_shared(monkeypatch):
    from sda.classical import background

    calls = []
    original = background.long_run

    def short(system):
        calls.append(system)
        return original(system, states=64, spinup=16)

    monkeypatch.setattr(background, "long_run", short)
    entries = {"climatology": {}, "oi": {}, "3dvar": {"factor": 0.1}}
    e = experiment(entries | {"other": {"method": "oi", "label": "x", "model": {"decay": 0.9}}})
    bench, twins = Workbench(e), [e.twin(r) for r in range(2)]
    found = [bench.run(spec, twin).posterior for spec in resolve(e) for twin in twins]
    # One of the experiment's model, and one of the model of that entry.
    assert len(calls) == 2
    alone = OptimalInterpolation(e.system, 8).assimilate(
        twins[1].observations, twins[1].seeds["methods"], time=e.time,
        initial=e.initial(twins[1], 16), dtype=torch.float64,
    )  # fmt: skip
    assert np.allclose(alone["x"], found[3]["x"])


def test_repetitions_side_by_side_are_the_same():
    e = experiment({"etkf": {"rotation": True}})
    twins, bench, spec = [e.twin(r) for r in range(3)], Workbench(e), resolve(e)[0]
    together = bench.run_all(spec, twins)
    for twin, outcome in zip(twins, together, strict=True):
        alone = bench.run(spec, twin)
        assert np.allclose(alone.posterior["y"], outcome.posterior["y"], atol=1e-10)
        assert alone.model_steps == outcome.model_steps


def test_a_climatology_may_be_that_of_the_prior():
    e = load("kolmogorov_blocks")
    bench = Workbench(e)
    assert bench.gaussian(None, 1, 1).climatology is bench.climatology() is bench.prior.climatology
    with pytest.raises(ValueError, match="oi: experiment 'spring' names no prior"):
        alone = experiment({"oi": {"climatology": "prior"}})
        Workbench(alone).run(resolve(alone)[0], alone.twin(0))
