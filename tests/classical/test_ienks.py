"""The iterative ensemble Kalman smoother."""

import numpy as np
import pytest
import torch
from ensembles import SYSTEM, analysis_rmse, linear_twin, published_twins, values

import sda
from dynamics import LinearGaussian, Lorenz63, Lorenz96
from sda.classical import ETKF, Draws, EnKS, IEnKS
from sda.observation import Function, Select

CALM = LinearGaussian(SYSTEM.A, 0 * SYSTEM.Q, variables=("x", "y"))


@pytest.mark.parametrize("system", [CALM, SYSTEM], ids=["deterministic", "stochastic"])
@pytest.mark.parametrize("lag", [0, 1, 2])
@pytest.mark.parametrize("bundle", [None, 1e-3])
def test_on_a_linear_system_it_is_the_ensemble_kalman_smoother(system, lag, bundle) -> None:
    truth, observations, initial = linear_twin(8, system=SYSTEM)
    options = {"initial": initial, "time": truth["time"], "dtype": "float64"}
    expected = values(EnKS(system, 6, lag=lag).assimilate(observations, 5, **options))
    method = IEnKS(system, 6, lag=lag, bundle=bundle)
    np.testing.assert_allclose(
        values(method.assimilate(observations, 5, **options)), expected, atol=1e-7
    )
    newest = IEnKS(system, 6, lag=lag, bundle=bundle, output="filter")
    found = values(newest.assimilate(observations, 5, **options))
    filtered = values(ETKF(system, 6).assimilate(observations, 5, **options))
    np.testing.assert_allclose(found, filtered, atol=1e-7)


def test_one_iteration_is_the_filter_on_a_non_linear_system() -> None:
    system = Lorenz63(dt=0.01)
    truth = system.simulate(1, 26, spinup=500, seed=0, progress=False).isel(member=0)
    time = truth["time"].values
    observations = sda.observe(truth, Select(times=time[25:].tolist()), std=1.0, seed=0)
    states = Draws(system.initial(7, seed=3))
    options = {"initial": states, "time": time, "dtype": "float64"}
    once = IEnKS(system, 7, iterations=1, output="filter").assimilate(observations, **options)
    plain = ETKF(system, 7).assimilate(observations, **options)
    np.testing.assert_allclose(values(once, system), values(plain, system), atol=1e-8)


def test_lag_0_finds_the_mode_of_a_non_linear_observation() -> None:
    system, members, std = Lorenz96(dimension=4), 5, 0.2
    truth = system.simulate(1, 2, spinup=100, seed=0, progress=False).isel(member=0)
    operator = Select(times=truth["time"].values[:1].tolist()) >> Function("square")
    observations = sda.observe(truth, operator, std=std, seed=0)
    states = values(truth, system)[0, 0] + np.random.default_rng(0).normal(0, 0.3, (members, 1, 4))
    result = IEnKS(system, members, lag=0, iterations=40, tolerance=0.0, bundle=1e-4).assimilate(
        observations, initial=Draws(states), dtype="float64"
    )
    # the cost in the weights, minimised by other means
    x = torch.from_numpy(states.reshape(members, 4))
    mean, A = x.mean(0), x - x.mean(0)
    y = torch.from_numpy(observations.sets[0].y.reshape(-1))
    w = torch.zeros(members, dtype=torch.float64, requires_grad=True)
    solver = torch.optim.LBFGS([w], max_iter=200, tolerance_grad=1e-12, tolerance_change=1e-14,
                               line_search_fn="strong_wolfe")  # fmt: skip

    def cost():
        solver.zero_grad()
        misfit = (y - (mean + w @ A).square()) / std
        value = (misfit.square().sum() + (members - 1) * w.square().sum()) / 2
        value.backward()
        return value

    solver.step(cost)
    found = values(result, system)[:, 0].reshape(members, 4).mean(0)
    np.testing.assert_allclose(found, (mean + w @ A).detach(), atol=2e-4)


def test_repetitions_do_not_depend_on_each_other() -> None:
    system, truths, observations, initial = published_twins("lorenz63", 5, [0, 1])
    method = IEnKS(system, 6, inflation=1.02, rotation=True)
    options = {"time": truths[0]["time"], "dtype": "float64"}
    together = method.assimilate(observations, [4, 5], initial=initial, **options)
    for i, (each, seed) in enumerate(zip(together, (4, 5), strict=True)):
        alone = method.assimilate(observations[i], seed, initial=initial, **options)
        np.testing.assert_allclose(values(each, system), values(alone, system), atol=1e-6)


def test_the_smoother_is_better_than_its_filter() -> None:
    system, truths, observations, initial = published_twins("lorenz63", 30, [0, 1])
    scores = {}
    for output in ("filter", "smoother"):
        method = IEnKS(system, 10, inflation=1.02, rotation=True, iterations=4, output=output)
        results = analysis_rmse(method, truths, observations, initial, 3.0)
        scores[output] = results[0]
        assert [each.attrs["diverged"] for each in results[1]] == [0, 0]
    assert scores["smoother"] < scores["filter"]


def test_bad_arguments_are_named() -> None:
    for options, message in [
        ({"members": 1}, "at least 2 members, got 1"),
        ({"lag": -1}, "got -1"),
        ({"lag": None}, "lag=None"),
        ({"iterations": 0}, "iterations=0"),
        ({"bundle": 0.0}, "bundle=0.0"),
        ({"inflation": 0.0}, "must be positive, got 0.0"),
    ]:
        with pytest.raises(ValueError, match=message):
            IEnKS(CALM, **{"members": 5, **options})
