"""The Kalman filter and smoother against matrices of whole trajectories, and another smoother."""

import numpy as np
import pytest
import torch
from oracles import kalman_smoother

import sda
from dynamics import Lorenz63
from dynamics.linear_gaussian import LinearGaussian
from sda.classical import Gaussian
from sda.classical.kalman import KalmanFilter, RTSSmoother
from sda.observation import Function, Select

SYSTEMS = {
    "rotation": LinearGaussian.rotation(angle=0.4, decay=0.9),
    "spring": LinearGaussian.damped_spring(),
    "singular noise": LinearGaussian([[0.9, 0.5], [0, 0.8]], np.diag([0.0, 1.0])),
}
LENGTH = 9


def twin(system, operator, std=0.3, seed=0):
    truth = system.simulate(1, LENGTH, spinup=20, seed=seed, progress=False).isel(member=0)
    return truth, sda.observe(truth, operator, std=std, seed=seed)


def conditioned(system, observations, truth, mean, covariance):
    """Mean and covariance of the flattened trajectory given observations, and their evidence."""

    A, Q, n = system.A.numpy(), system.Q.numpy(), len(system.A)
    first = np.concatenate([np.linalg.matrix_power(A, i) for i in range(LENGTH)])
    joint = first @ covariance @ first.T
    for j in range(1, LENGTH):
        G = np.concatenate(
            [np.zeros((j * n, n))] + [np.linalg.matrix_power(A, i) for i in range(LENGTH - j)]
        )
        joint = joint + G @ Q @ G.T
    likelihood = observations.likelihood(system.layout, truth["time"].values, dtype=torch.float64)
    eye = torch.eye(LENGTH * n, dtype=torch.float64).view(-1, LENGTH, n)
    H = likelihood.H(eye).T.numpy()
    R = np.diag(likelihood.std.expand(len(H)).numpy() ** 2)
    S = H @ joint @ H.T + R
    d = likelihood.y.numpy() - H @ first @ mean
    gain = np.linalg.solve(S, H @ joint).T
    evidence = -0.5 * (
        d @ np.linalg.solve(S, d) + np.linalg.slogdet(S)[1] + len(d) * np.log(2 * np.pi)
    )
    return first @ mean + gain @ d, joint - gain @ H @ joint, evidence


@pytest.mark.parametrize("operator", ["every third", "one component", "between steps"])
@pytest.mark.parametrize("name", SYSTEMS)
def test_moments_are_those_of_the_joint_distribution(name, operator) -> None:
    system = SYSTEMS[name]
    names, dt, n = system.layout.variables, system.layout.dt, len(system.A)
    H = {
        "every third": Select(every=3),
        "one component": Select(variables=[names[0]], every=2),
        "between steps": Select(times=[0.2 * dt, 1.7 * dt, 3.0 * dt, 5.25 * dt]),
    }[operator]
    truth, observations = twin(system, H)
    mean, covariance = np.arange(n) + 1.0, np.eye(n) * 0.7 + 0.2
    first = Gaussian(mean, covariance=covariance)
    expected, joint, evidence = conditioned(system, observations, truth, mean, covariance)
    smoother = RTSSmoother(system).moments(observations, time=truth["time"], initial=first)
    np.testing.assert_allclose(smoother.mean[0].flatten(), expected, atol=1e-6)
    blocks = np.stack([joint[i * n : i * n + n, i * n : i * n + n] for i in range(LENGTH)])
    np.testing.assert_allclose(smoother.covariance[0], blocks, atol=1e-7)
    assert float(smoother.log_evidence[0]) == pytest.approx(evidence, abs=1e-6)
    # the filter is the smoother at the last time
    filtered = KalmanFilter(system).moments(observations, time=truth["time"], initial=first)
    np.testing.assert_allclose(filtered.mean[0, -1], smoother.mean[0, -1], atol=1e-9)
    assert (filtered.variance - smoother.variance > -1e-9).all()


def test_it_agrees_with_another_smoother() -> None:
    system = SYSTEMS["spring"]
    truth, observations = twin(system, Select(every=2))
    moments = RTSSmoother(system).moments(observations, time=truth["time"])
    y = observations.sets[0].y.reshape(-1, 3)
    seen = [y[i // 2] if i % 2 == 0 else None for i in range(LENGTH)]
    H = [None if each is None else np.eye(3) for each in seen]
    R = [None if each is None else 0.09 * np.eye(3) for each in seen]
    P = system.stationary_covariance.numpy()
    means, covariances, _ = kalman_smoother(system.A.numpy(), system.Q.numpy(), P, H, R, seen)
    np.testing.assert_allclose(moments.mean[0], means, atol=1e-7)
    np.testing.assert_allclose(moments.covariance[0], covariances, atol=1e-7)


@pytest.mark.parametrize("between", [False, True])
def test_members_are_draws_of_whole_trajectories(between) -> None:
    system = SYSTEMS["rotation"]
    truth, observations = twin(system, Select(times=[0.5, 3.0]) if between else Select(every=4))
    first = Gaussian([0.0, 0.0], 1.0)
    expected, joint, _ = conditioned(system, observations, truth, np.zeros(2), np.eye(2))
    found = RTSSmoother(system, 6000).assimilate(
        observations, 1, time=truth["time"], initial=first, dtype="float64"
    )
    x = system.layout.to_array(found).reshape(6000, -1)
    std = np.sqrt(np.diag(joint))
    assert np.abs((x.mean(0) - expected) / std).max() < 4 / np.sqrt(6000)
    assert np.abs((np.cov(x.T) - joint) / np.outer(std, std)).max() < 0.07

    filtered = KalmanFilter(system, 6000)
    x = system.layout.to_array(
        filtered.assimilate(observations, 1, initial=first, time=truth["time"])
    )
    moments = filtered.moments(observations, initial=first, time=truth["time"])
    at = moments.time.searchsorted([0.5, 3.0] if between else [0, 4, 8])
    std = moments.variance[0, at].sqrt().numpy()
    assert np.abs((x.mean(0) - moments.mean[0, at].numpy()) / std).max() < 4.5 / np.sqrt(6000)
    np.testing.assert_allclose(x.std(0), std, rtol=0.05)


def test_repetitions_have_means_of_their_own() -> None:
    system = SYSTEMS["rotation"]
    twins = [twin(system, Select(every=2), seed=seed)[1] for seed in range(2)]
    starts = [Gaussian(0.0, 1.0), Gaussian(1.0, 2.0)]
    together = RTSSmoother(system, 3).assimilate(twins, [4, 5], initial=starts)
    for i in range(2):
        alone = RTSSmoother(system, 3).assimilate(twins[i], 4 + i, initial=starts[i])
        np.testing.assert_allclose(
            system.layout.to_array(together[i]), system.layout.to_array(alone), atol=1e-6
        )


def test_bad_input_is_named() -> None:
    system = SYSTEMS["rotation"]
    truth, observations = twin(system, Select(every=2))
    with pytest.raises(TypeError, match="linear system with Gaussian noise.*got Lorenz63"):
        KalmanFilter(Lorenz63())
    with pytest.raises(ValueError, match="needs the mean and covariance.*got Draws"):
        RTSSmoother(system).assimilate(observations, initial=torch.zeros(3, 2))
    _, square = twin(system, Select(every=2) >> Function("square"))
    with pytest.raises(ValueError, match="not linear"):
        KalmanFilter(system).assimilate(square)
