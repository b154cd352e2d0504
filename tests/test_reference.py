"""Long chains agree with the exact posterior of a linear system; so do their diagnostics."""

import pytest
import torch

from dynamics.linear_gaussian import LinearGaussian
from dynamics.random import normal
from sda.observation import Likelihood
from sda.polish import GaussianState, TrajectoryDensity
from sda.reference import effective_sample_size, gauss_newton, hmc_reference, split_rhat

LENGTH = 8


@pytest.fixture(scope="module")
def linear():
    system = LinearGaussian.rotation(angle=0.5, decay=0.9)
    y = torch.tensor([1.0, -0.4, 0.2])
    likelihood = Likelihood(lambda x: x[:, ::3, 0], y, 0.3, (LENGTH, 2), linear=True)
    first = GaussianState(torch.zeros(2), system.stationary_covariance)
    joint = system.trajectory_covariance(LENGTH)
    H = likelihood.columns().flatten(1).double()
    gain = torch.linalg.solve(H @ joint @ H.T + 0.09 * torch.eye(3), H @ joint).T

    return (
        TrajectoryDensity(system, likelihood, first),
        (gain @ y.double()).reshape(LENGTH, 2),
        joint - gain @ H @ joint,
    )


def test_gauss_newton_finds_the_mean_of_a_linear_posterior_at_once(linear):
    density, mean, covariance = linear
    mode, factor = gauss_newton(density, torch.randn(LENGTH, 2, dtype=torch.float64) * 5)
    torch.testing.assert_close(mode, mean, atol=1e-4, rtol=0)
    torch.testing.assert_close(factor @ factor.T, covariance, atol=1e-6, rtol=0)


def test_chains_sample_the_exact_posterior(linear):
    density, mean, covariance = linear
    guesses = 3 * normal(0, range(16), (LENGTH, 2), dtype=torch.float64)
    reference = hmc_reference(density, guesses, draws=150, warmup=20, leapfrog=4, seed=1)
    std = covariance.diagonal().sqrt().reshape(LENGTH, 2)
    x = reference.trajectories
    least = reference.ess.min().sqrt()

    assert reference.rhat.max() < 1.05
    assert x.shape == (16 * 150, LENGTH, 2)
    assert ((x.mean(0) - mean) / std).abs().max() < 4 / least
    assert (x.std(0) / std - 1).abs().max() < 4 / least


def test_rhat_tells_chains_that_disagree():
    x = normal(0, range(400), (4, 3))
    assert (split_rhat(x) - 1).abs().max() < 0.02
    x[:, 0, 1] += 3
    assert split_rhat(x)[1] > 1.3
    assert split_rhat(x)[0] < 1.02
    with pytest.raises(ValueError, match="at least 4"):
        split_rhat(x[:3])


def test_effective_sample_size_of_an_autoregressive_series():
    noise, rho = normal(1, range(4000), (4, 1), dtype=torch.float64), 0.8
    x = [noise[0]]
    for e in noise[1:]:
        x.append(rho * x[-1] + (1 - rho**2) ** 0.5 * e)
    ess = effective_sample_size(torch.stack(x))
    assert float(ess) == pytest.approx(16000 * (1 - rho) / (1 + rho), rel=0.15)
    assert float(effective_sample_size(noise)) == pytest.approx(16000, rel=0.1)


def test_one_chain_is_refused(linear):
    with pytest.raises(ValueError, match="two chains"):
        hmc_reference(linear[0], torch.zeros(1, LENGTH, 2))
