"""The particle smoother against the Kalman smoother, where everything is known."""

import numpy as np
import pytest
import torch

from dynamics.linear_gaussian import LinearGaussian
from dynamics.lorenz63 import Lorenz63
from sda.classical import ParticleSmoother, stationary_states
from sda.classical.particle import frame_likelihoods, systematic, torch_generator
from sda.observation import Likelihood

LENGTH = 12


def gaussian_case(every: int = 3, std: float = 0.3) -> tuple[LinearGaussian, Likelihood]:
    """A rotation with its first component observed at every `every`-th time."""

    system = LinearGaussian.rotation(angle=0.4, decay=0.9)
    noise = torch.randn((1, LENGTH - 1, 2), generator=torch_generator(0, 1))
    truth = system.rollout(system.initial(1, seed=3), LENGTH, noise)
    y = truth[0, ::every, 0]
    y = y + std * torch.randn(y.shape, generator=torch_generator(0, 2))

    return system, Likelihood(lambda x: x[:, ::every, 0], y, std, (LENGTH, 2), linear=True)


def conditioned(
    covariance: torch.Tensor, likelihood: Likelihood, count: int
) -> tuple[torch.Tensor, torch.Tensor, float]:
    """Mean and covariance given the first `count` observations, and their log-evidence."""

    H = likelihood.columns().flatten(1).double()[:count]
    y = likelihood.y.double()[:count]
    S = H @ covariance @ H.T + torch.diag(likelihood.std.double()[:count] ** 2)
    gain = torch.linalg.solve(S, H @ covariance).T
    evidence = torch.distributions.MultivariateNormal(torch.zeros_like(y), S).log_prob(y)

    return gain @ y, covariance - gain @ H @ covariance, float(evidence)


@pytest.fixture(scope="module")
def case():
    system, likelihood = gaussian_case()
    smoother = ParticleSmoother(system, members=4096, particles=2**16, chunk=2**14, spinup=0)

    return system, likelihood, smoother.sample(likelihood, seed=0)


def test_smoother_matches_the_exact_posterior(case):
    system, likelihood, posterior = case
    mean, covariance, _ = conditioned(
        system.trajectory_covariance(LENGTH), likelihood, len(likelihood)
    )
    x = posterior.trajectories.flatten(1).double()
    std = covariance.diagonal().sqrt()

    # Sampling errors: 1/√4096 = 0.016 for the mean, 0.011 for a standard deviation.
    assert ((x.mean(0) - mean) / std).abs().max() < 0.07
    assert (x.std(0) / std - 1).abs().max() < 0.06
    lag = torch.cov(x.T) - covariance
    assert (lag / std / std[:, None]).abs().max() < 0.1


def test_filter_matches_the_kalman_filter(case):
    system, likelihood, posterior = case
    joint = system.trajectory_covariance(LENGTH)
    for i in range(LENGTH):
        mean, covariance, _ = conditioned(joint, likelihood, i // 3 + 1)
        std = covariance.diagonal().sqrt()[2 * i : 2 * i + 2]
        error = (posterior.filter_mean[i] - mean[2 * i : 2 * i + 2]) / std
        assert error.abs().max() < 0.05
        assert (posterior.filter_std[i] / std - 1).abs().max() < 0.05


def test_evidence_is_exact_and_ancestors_are_many(case):
    system, likelihood, posterior = case
    joint = system.trajectory_covariance(LENGTH)
    _, _, evidence = conditioned(joint, likelihood, len(likelihood))

    assert posterior.log_evidence == pytest.approx(evidence, abs=0.05)
    assert posterior.ancestors > 1000


def test_non_linear_operators_see_the_same_frames():
    shape = (4, 3)
    linear = Likelihood(lambda x: x[:, 1:3, 0], torch.ones(2), 0.5, shape, linear=True)
    same = Likelihood(lambda x: x[:, 1:3, 0] * 1.0, torch.ones(2), 0.5, shape, linear=False)
    x = torch.randn((5, 4, 3), generator=torch_generator(0))
    one, two = frame_likelihoods(linear), frame_likelihoods(same)

    assert sorted(one) == sorted(two) == [1, 2]
    total = sum(one[i](x[:, i]) for i in one)
    torch.testing.assert_close(total, linear.log_prob(x))
    torch.testing.assert_close(total, sum(two[i](x[:, i]) for i in two))


def test_an_observation_of_several_times_is_refused():
    mean = Likelihood(lambda x: x.mean(1)[:, :1], torch.ones(1), 0.5, (4, 3), linear=True)
    with pytest.raises(ValueError, match="depend on several"):
        frame_likelihoods(mean)


def test_impossible_observations_are_refused():
    system, _ = gaussian_case()
    far = Likelihood(lambda x: x[:, 0, :1], torch.tensor([1e30]), 1e-9, (2, 2), linear=True)
    with pytest.raises(ValueError, match="none of 64 particles"):
        ParticleSmoother(system, members=2, particles=64, spinup=0).sample(far)


def test_a_deterministic_system_is_refused():
    with pytest.raises(ValueError, match="stochastic"):
        ParticleSmoother(Lorenz63())


def test_systematic_resampling_is_unbiased_and_even():
    weights = torch.tensor([0.1, 0.0, 0.55, 0.35], dtype=torch.float64)
    counts = np.stack(
        [
            np.bincount(systematic(weights, 10, torch_generator(k)).numpy(), minlength=4)
            for k in range(400)
        ]
    )
    assert (np.abs(counts - 10 * weights.numpy()) < 1).all()
    assert np.allclose(counts.mean(0), 10 * weights.numpy(), atol=0.1)


def test_stationary_states_have_the_stationary_covariance():
    system = LinearGaussian.rotation(angle=0.4, decay=0.9, std=2.0)
    states = stationary_states(system, 20_000, spinup=50, per_member=4)
    assert states.shape == (20_000, 2)
    assert torch.allclose(torch.cov(states.T), 4 * torch.eye(2), atol=0.15)
