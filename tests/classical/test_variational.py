"""4D-Var against the smoother that is exact in linear systems, and on chaotic ones."""

import numpy as np
import pytest
import torch

import sda
from dynamics import KolmogorovFlow, Lorenz63, Lorenz96
from dynamics.linear_gaussian import LinearGaussian
from sda.classical import Gaussian, Spinup
from sda.classical.kalman import RTSSmoother
from sda.classical.minimise import gauss_newton
from sda.classical.variational import FourDVar
from sda.observation import BlockAverage, Select

SPRING = LinearGaussian([[0.9, 0.2, 0], [-0.1, 0.8, 0.1], [0, 0.1, 0.7]], np.diag([0.2, 0.1, 0.3]))
FIRST = Gaussian([1.0, 0.0, -1.0], covariance=[[1.0, 0.3, 0], [0.3, 0.8, 0.1], [0, 0.1, 0.5]])
LENGTH = 7


def twin(system, operator, length=LENGTH, std=0.3, seed=0, spinup=20):
    truth = system.simulate(1, length, spinup=spinup, seed=seed, progress=False).isel(member=0)
    return truth, sda.observe(truth, operator, std=std, seed=seed)


def values(system, dataset):
    return system.layout.to_array(dataset)


@pytest.mark.parametrize("progressive", [True, False])
@pytest.mark.parametrize(
    "operator", [Select(every=2), Select(variables=["x0"], times=[0.5, 3.0, 4.3])]
)
def test_the_mode_is_the_smoothers_mean(operator, progressive) -> None:
    truth, observations = twin(SPRING, operator)
    options = {"time": truth["time"], "initial": FIRST}
    method = FourDVar(SPRING, 1, progressive=progressive)
    found = values(SPRING, method.assimilate(observations, dtype="float64", **options))
    exact = RTSSmoother(SPRING).moments(observations, **options)
    np.testing.assert_allclose(found[0], exact.mean[0], atol=1e-9)


def test_an_ensemble_has_the_moments_of_the_posterior() -> None:
    truth, observations = twin(SPRING, Select(variables=["x0", "x2"], every=2))
    options = {"time": truth["time"], "initial": FIRST}
    result = FourDVar(SPRING, 4000).assimilate(observations, 3, dtype="float64", **options)
    found, exact = values(SPRING, result), RTSSmoother(SPRING).moments(observations, **options)
    std = exact.variance[0].sqrt().numpy()
    assert (np.abs(found.mean(0) - exact.mean[0].numpy()) / std).max() < 4.5 / np.sqrt(4000)
    np.testing.assert_allclose(found.std(0) / std, 1, atol=0.05)


def test_without_model_error_the_constraint_is_strong() -> None:
    _, observations = twin(SPRING, Select(every=2))
    cases = {"weak": False}, {"model_error": 1e-12}, {"model_error": 0.1}, {"weak": True}
    found = [
        values(SPRING, FourDVar(SPRING, 1, **options).assimilate(
            observations, initial=FIRST, dtype="float64"))
        for options in cases
    ]  # fmt: skip
    np.testing.assert_allclose(found[0], found[1], atol=1e-8)
    assert np.abs(found[0] - found[2]).max() > 0.05
    # the strong constraint holds
    np.testing.assert_allclose(found[0][0, 1:], found[0][0, :-1] @ SPRING.A.numpy().T, atol=1e-10)
    same = LinearGaussian(SPRING.A, 0.1 * np.eye(3))
    exact = RTSSmoother(same).moments(observations, initial=FIRST)
    np.testing.assert_allclose(found[2][0], exact.mean[0], atol=1e-9)


def test_windows_of_one_step_are_cycled_3dvar() -> None:
    _, observations = twin(SPRING, Select(every=1), 4)
    B = 0.5 * np.eye(3)
    method = FourDVar(SPRING, 1, window=1, factor=0.5, covariance=np.eye(3), weak=False)
    found = values(SPRING, method.assimilate(observations, initial=FIRST, dtype="float64"))[0]
    A, y = SPRING.A.numpy(), observations.sets[0].y.reshape(-1, 3)
    # each window corrects its first state by what is observed at its last
    x = None
    for i in range(3):
        H, d, cov = A, y[i + 1], B
        if i == 0:
            x, cov = FIRST.mean, FIRST.root @ FIRST.root.T
            H, d = np.concatenate([np.eye(3), A]), np.concatenate([y[0], y[1]])
        S = H @ cov @ H.T + 0.09 * np.eye(len(H))
        x = x + cov @ H.T @ np.linalg.solve(S, d - H @ x)
        np.testing.assert_allclose(found[i], x, atol=1e-9)
        x = A @ x
    np.testing.assert_allclose(found[3], x, atol=1e-9)


@pytest.mark.parametrize("system", [Lorenz63(), Lorenz96(dimension=8), Lorenz63(noise=True)])
def test_it_finds_a_mode_in_a_chaotic_system(system) -> None:
    truth, observations = twin(system, Select(every=4), 17, std=0.5, spinup=400)
    x = values(system, truth)[0]
    first = Gaussian(x[0] + 0.8, 1.0)
    method = FourDVar(system, 1)
    result = method.assimilate(observations, initial=first, dtype="float64", time=truth["time"])
    found = torch.from_numpy(values(system, result))
    y = torch.from_numpy(np.array(observations.sets[0].y)).reshape(5, -1)

    # The cost as a function of the first state and the model errors, by its own definition.
    start = found[:, 0].clone().requires_grad_(True)
    shape = found[:, 1:].shape
    with torch.no_grad():
        forecast = system.step(found[0, :-1])
        errors = (found[0, 1:] - forecast) if system.stochastic else torch.zeros(shape[1:])
    errors = errors.double().requires_grad_(True)
    state, path = start, [start]
    for i in range(shape[1]):
        state = system.advance(state) + (errors[i] if system.stochastic else 0)
        path.append(state)
    seen = torch.cat(path)[::4].flatten(1)
    cost = 0.5 * (start - torch.from_numpy(x[0] + 0.8)).square().sum()
    cost = cost + 0.5 * ((y - seen) / 0.5).square().sum()
    if system.stochastic:
        cost = cost + 0.5 * errors.square().sum() / system.variance
    gradients = torch.autograd.grad(cost, [start, errors] if system.stochastic else [start])
    assert max(float(g.abs().max()) for g in gradients) < 1e-4
    before = np.sqrt(((values(system, truth) - x) ** 2).mean()) + 0.8
    assert np.sqrt(((found.numpy()[0] - x) ** 2).mean()) < 0.5 * before
    assert result.attrs["diverged"] == 0 and result.attrs["evaluations"] > 0


def test_it_assimilates_block_averages_of_a_flow() -> None:
    flow = KolmogorovFlow(size=8, resolution=16, dt=0.1)
    truth, observations = twin(flow, Select(every=2) >> BlockAverage(2), 3, std=0.05, spinup=10)
    states = flow.simulate(4, 12, spinup=10, seed=3, progress=False)
    method = FourDVar(flow, 3, climatology=states, iterations=2, inner=10, progressive=False)
    result = method.assimilate(observations, 1, initial=Spinup(10))
    x, found = values(flow, truth)[0], values(flow, result)
    climate = values(flow, states)
    means = found.mean(0), climate.mean(0)[:3], x
    blocks = [each.reshape(3, 2, 4, 2, 4, 2).mean((3, 5)) for each in means]
    seen = [np.sqrt(((each - blocks[2]) ** 2)[::2].mean()) for each in blocks[:2]]
    errors = [np.sqrt(((each.mean(0)[:3] - x) ** 2).mean()) for each in (found, climate)]
    assert seen[0] < 0.3 * seen[1] and errors[0] < 0.8 * errors[1]
    assert result.attrs["diverged"] == 0


def test_a_repetition_is_the_same_beside_others() -> None:
    system = Lorenz96(dimension=8)
    sets = [twin(system, Select(every=2), 5, std=0.5, seed=seed)[1] for seed in range(2)]
    method = FourDVar(system, 3, covariance=1.0, window=2, factor=0.3)
    truths = [twin(system, Select(), 5, seed=seed)[0] for seed in range(2)]
    starts = [Gaussian(values(system, truth)[0, 0], 1.0) for truth in truths]
    together = method.assimilate(sets, [7, 8], initial=starts, dtype="float64")
    alone = method.assimilate(sets[1], 8, initial=starts[1], dtype="float64")
    np.testing.assert_allclose(values(system, together[1]), values(system, alone), atol=1e-6)


def test_the_factor_is_that_of_a_climatological_first_state() -> None:
    truth, observations = twin(SPRING, Select(every=2))
    climate = np.diag([0.5, 0.4, 0.6])

    def first(initial, **options):
        method = FourDVar(SPRING, 1, climatology=states, **options)
        return values(SPRING, method.assimilate(observations, initial=initial, dtype="float64"))[0]

    states = SPRING.simulate(4, 100, spinup=20, seed=1, progress=False)
    mean = sda.Climatology.fit(states, window=1, layout=SPRING.layout).mean.double().numpy()
    for factor in (0.1, 1.0):
        found = first(Spinup(10), covariance=climate, factor=factor)
        given = first(Gaussian(mean, covariance=factor * climate))
        np.testing.assert_allclose(found, given, atol=1e-8)
        # a Gaussian is taken as it is
        same = first(Gaussian(mean, covariance=factor * climate), factor=0.3)
        np.testing.assert_allclose(same, given, atol=1e-12)
    apart = first(Spinup(10), factor=0.1) - first(Spinup(10))
    assert np.abs(apart).max() > 0.05


def test_steps_are_charged_as_they_are_run(monkeypatch) -> None:
    truth, observations = twin(SPRING, Select(every=3))  # at the steps 0, 3 and 6
    counts = []

    def counted(*arguments, **options):
        found = gauss_newton(*arguments, **options)
        counts.append(found.evaluations.sum().item())
        return found

    monkeypatch.setattr("sda.classical.variational.gauss_newton", counted)
    result = FourDVar(SPRING, 5).assimilate(observations, initial=FIRST, time=truth["time"])
    assert len(counts) == 3 and min(counts) > 0
    assert result.attrs["evaluations"] == sum(counts)
    # as far as the first observations, the first two, and all; and each member once in the end
    expected = 0 * counts[0] + 3 * counts[1] + 6 * counts[2] + 5 * 6
    assert result.attrs["model_steps"] == expected


def test_bad_arguments_are_named() -> None:
    with pytest.raises(ValueError, match="needs the variance of the model error.*Lorenz63"):
        FourDVar(Lorenz63(), weak=True)
    with pytest.raises(ValueError, match="must be positive and finite variances, got -1"):
        FourDVar(SPRING, model_error=-1.0)
    with pytest.raises(ValueError, match="window of FourDVar must be a positive integer, got 0"):
        FourDVar(SPRING, window=0)
    with pytest.raises(ValueError, match="strong constraint takes no model_error"):
        FourDVar(SPRING, weak=False, model_error=1.0)
    with pytest.raises(ValueError, match="smallest eigenvalue is -1"):
        _, observations = twin(SPRING, Select(every=2))
        FourDVar(SPRING, covariance=-np.eye(3)).assimilate(observations)
    with pytest.raises(ValueError, match="at least 1 members"):
        FourDVar(SPRING, 0)
