"""Laws of all ensemble Kalman filters."""

import numpy as np
import pytest
import torch
from ensembles import EVERY, STD, SYSTEM, exact, linear_twin, moments, values

import sda
from dynamics import Lorenz96
from sda.classical import ETKF, DEnKF, Draws, EnKF, EnKFN
from sda.classical.ensemble import gain
from sda.observation import Function, Select, Subsample

FILTERS = [EnKF, DEnKF, ETKF, EnKFN]
LENGTH = 7


def half_gain(initial, system=SYSTEM):
    """Covariances of the filter that gives anomalies half of the gain."""

    A, Q, R = system.A.numpy(), system.Q.numpy(), STD**2 * np.eye(len(system.A))
    P, found = initial.root @ initial.root.T, []
    for i in range(1, LENGTH):
        P = A @ P @ A.T + Q
        if i % EVERY == EVERY - 1:
            half = np.eye(len(P)) - 0.5 * P @ np.linalg.inv(P + R)
            P = half @ P @ half.T
            found.append(P)
    return np.stack(found)


@pytest.mark.parametrize("kind", FILTERS)
def test_a_large_ensemble_converges_to_the_kalman_filter(kind) -> None:
    truth, observations, initial = linear_twin(LENGTH)
    frames = range(EVERY - 1, LENGTH, EVERY)
    answers = [exact(truth, observations, initial, until=i) for i in frames]
    means = np.stack([m[i] for (m, _), i in zip(answers, frames, strict=True)])
    covs = np.stack([c[i] for (_, c), i in zip(answers, frames, strict=True)])
    if kind is DEnKF:
        # The mean of the first analysis is the Kalman filter's; the covariance is its own.
        means, covs = means[:1], half_gain(initial)
    errors = {}
    for members in (64, 1024):
        results = kind(SYSTEM, members).assimilate(
            [observations] * 12, range(12), initial=initial, time=truth["time"], dtype="float64"
        )
        found = [moments(values(each)) for each in results]
        mean_error = np.stack([m[: len(means)] - means for m, _ in found])
        cov_error = np.stack([c - covs for _, c in found])
        errors[members] = [np.sqrt(np.square(e).mean()) for e in (mean_error, cov_error)]
    for small, large in zip(errors[64], errors[1024], strict=True):
        # 1/√N within the scatter of 12 seeds; √16 = 4
        assert 2 < small / large < 8
        assert large < 4 * np.sqrt(covs.max() / 1024)


@pytest.mark.parametrize("kind", FILTERS)
def test_a_repetition_is_the_same_alone_and_beside_others(kind) -> None:
    system = Lorenz96(dimension=10)
    operator = Select(every=2) >> Subsample(2)
    truths = [
        system.simulate(1, 13, spinup=50, seed=i, progress=False).isel(member=0) for i in range(2)
    ]
    observations = [sda.observe(t, operator, std=0.5, seed=i) for i, t in enumerate(truths)]
    for members in (4, 12):
        method = kind(system, members, inflation=1.05, rotation=True)
        together = method.assimilate(observations, [7, 8], dtype="float64")
        for observed, seed, each in zip(observations, (7, 8), together, strict=True):
            alone = method.assimilate(observed, seed, dtype="float64")
            np.testing.assert_allclose(values(each, system), values(alone, system), atol=1e-8)
        assert np.abs(values(together[0], system) - values(together[1], system)).max() > 0.1


def kalman_update(states, predictions, y, std):
    """The Kalman update of the sample moments; `predictions` may be non-linear."""

    ridge = len(states) - 1
    A, Y = states - states.mean(0), predictions - predictions.mean(0)
    gain = A.T @ Y @ np.linalg.inv(Y.T @ Y + ridge * std**2 * np.eye(Y.shape[1]))
    mean = states.mean(0) + gain @ (y - predictions.mean(0))

    return mean, (A.T @ A - gain @ Y.T @ A) / ridge


@pytest.mark.parametrize("members", [5, 30])
@pytest.mark.parametrize("rotation", [False, True])
@pytest.mark.parametrize("name", ["abs", "identity"])
def test_the_etkf_has_exactly_the_updated_sample_moments(members, rotation, name) -> None:
    system = Lorenz96(dimension=8)
    states = system.simulate(members, 2, spinup=200, seed=3, progress=False)
    truth = system.simulate(1, 2, spinup=200, seed=4, progress=False).isel(member=0)
    operator = Select(times=truth["time"].values[:1].tolist())
    H = np.abs if name == "abs" else np.asarray
    if name == "abs":
        operator = operator >> Function("abs")
    observations = sda.observe(truth, operator, std=0.8, seed=0)
    x = values(states, system)[:, 0].reshape(members, 8)
    mean, cov = kalman_update(x, H(x), observations.sets[0].y.ravel(), 0.8)
    result = ETKF(system, members, rotation=rotation).assimilate(
        observations, initial=Draws(x.reshape(members, 1, 8)), dtype="float64"
    )
    found = moments(values(result, system))
    np.testing.assert_allclose(found[0][0], mean, atol=1e-9)
    np.testing.assert_allclose(found[1][0], cov, atol=1e-9)


def test_the_mean_of_all_filters_is_that_of_the_etkf() -> None:
    truth, observations, initial = linear_twin(2)
    states = Draws(initial.draw(SYSTEM, 40, 5, torch.float64))
    means = [
        values(
            kind(SYSTEM, 40).assimilate(
                observations, initial=states, time=truth["time"], dtype="float64"
            )
        ).mean(0)
        for kind in (ETKF, EnKF, DEnKF)
    ]
    for mean in means[1:]:
        np.testing.assert_allclose(mean, means[0], atol=1e-9)


def test_both_forms_of_the_gain_agree() -> None:
    S = torch.randn(2, 6, 4, dtype=torch.float64, generator=torch.Generator().manual_seed(0))
    S = S - S.mean(1, keepdim=True)
    small = torch.matmul(*gain(S))
    # values without spread change nothing, but the number that decides for a form
    large = torch.matmul(*gain(torch.cat([S, torch.zeros_like(S)], 2)))
    torch.testing.assert_close(large[:, :4], small)
    assert float(large[:, 4:].abs().max()) == 0


@pytest.mark.parametrize("kind", FILTERS)
def test_bad_arguments_are_named(kind) -> None:
    with pytest.raises(ValueError, match="at least 2 members, got 1"):
        kind(SYSTEM, 1)
    with pytest.raises(ValueError, match=f"inflation of {kind.__name__} .* got -1"):
        kind(SYSTEM, 5, inflation=-1)
    if kind is not EnKFN:
        with pytest.raises(ValueError, match=r"rtps of \w+ must be in \[0, 1\], got 2"):
            kind(SYSTEM, 5, rtps=2)
    assert kind(SYSTEM, 5, inflation=1.5).config()["inflation"] == 1.5
