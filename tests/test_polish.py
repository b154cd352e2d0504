"""The polish leaves the exact posterior as it is, and moves other samples towards it."""

import pytest
import torch

from dynamics.linear_gaussian import LinearGaussian
from dynamics.lorenz63 import Lorenz63
from dynamics.random import normal
from sda.classical import stationary_states
from sda.observation import Likelihood
from sda.polish import (
    GaussianState,
    TrajectoryDensity,
    TransitionMixture,
    hmc,
    metric_factor,
    polish,
    step_jacobian,
    transition_precision,
)

LENGTH, MEMBERS = 10, 1024


@pytest.fixture(scope="module")
def linear():
    """A linear system, its posterior density, and that density's mean and covariance."""

    system = LinearGaussian.damped_spring(dt=0.5)
    system = LinearGaussian(system.A, system.Q + 0.01 * torch.eye(3), dt=0.5)
    y = torch.tensor([0.3, -0.5, 0.8, 0.1])
    likelihood = Likelihood(lambda x: x[:, ::3, 0], y, 0.2, (LENGTH, 3), linear=True)
    P = system.stationary_covariance
    density = TrajectoryDensity(system, likelihood, GaussianState(torch.zeros(3), P))

    joint = system.trajectory_covariance(LENGTH)
    H = likelihood.columns().flatten(1).double()
    S = H @ joint @ H.T + 0.04 * torch.eye(4)
    gain = torch.linalg.solve(S, H @ joint).T
    covariance = joint - gain @ H @ joint

    return system, density, gain @ y.double(), (covariance + covariance.T) / 2


def test_gauss_newton_is_the_exact_precision_of_a_linear_system(linear):
    _, density, _, covariance = linear
    precision = density.precision(torch.randn(LENGTH, 3))
    eye = torch.eye(3 * LENGTH, dtype=torch.float64)
    assert (precision @ covariance - eye).abs().max() < 1e-4


def test_gradient_vanishes_at_the_mean(linear):
    _, density, mean, covariance = linear
    factor = torch.linalg.cholesky(covariance)
    _, g = density.gradient(mean.reshape(1, LENGTH, 3))
    assert (g.flatten() @ factor).abs().max() < 1e-4


def test_exact_samples_stay_exact(linear):
    _, density, mean, covariance = linear
    factor = torch.linalg.cholesky(covariance)
    x = mean + normal(0, range(MEMBERS), mean.shape, dtype=torch.float64) @ factor.T
    # A metric that is wrong by far: exactness must not depend on it.
    wrong = 0.4 * torch.diag(covariance.diagonal().sqrt())
    chain = hmc(density, x.reshape(-1, LENGTH, 3), wrong, 20, 3, step=0.6, seed=1)
    z = torch.linalg.solve_triangular(factor, (chain.x.flatten(1) - mean).T, upper=False)

    assert 0.2 < sum(chain.acceptance) / 20 < 0.98
    n = len(z)
    # χ² of the whitened samples: mean error 1/√1024 = 0.031 per value.
    assert z.mean(1).abs().max() < 0.13
    assert abs(float(z.square().mean()) - 1) < 4 * (2 / (n * MEMBERS)) ** 0.5


def test_wrong_samples_become_exact(linear):
    system, density, mean, covariance = linear
    std = covariance.diagonal().sqrt()
    noise = normal(2, range(MEMBERS), mean.shape, dtype=torch.float64)
    x = (mean + 1.5 * std + 0.5 * std * noise).reshape(-1, LENGTH, 3).float()
    polished = polish(system, density.likelihood, x, density.first, proposals=24, leapfrog=4)
    y = polished.samples.flatten(1).double()

    assert polished.gradients == 24 * 4 + 2
    assert 0.6 < polished.acceptance <= 1
    assert ((y.mean(0) - mean) / std).abs().max() < 0.15
    assert (y.std(0) / std - 1).abs().max() < 0.12


def test_members_of_no_posterior_mass_are_replaced(linear):
    system, density, mean, covariance = linear
    factor = torch.linalg.cholesky(covariance)
    x = mean + normal(5, range(64), mean.shape, dtype=torch.float64) @ factor.T
    x = x.reshape(-1, LENGTH, 3).float()
    exact = polish(system, density.likelihood, x, density.first, 4, 2)
    assert exact.replaced == []

    x[[3, 40]] += 50
    polished = polish(system, density.likelihood, x, density.first, 4, 2)
    assert polished.replaced == [3, 40]
    z = (polished.samples.flatten(1).double() - mean) / covariance.diagonal().sqrt()
    assert z.abs().max() < 6
    assert len(polished.samples[:, 0].unique(dim=0)) == 64
    kept = polish(system, density.likelihood, x, density.first, 4, 2, prune=None)
    assert kept.replaced == []


def test_members_do_not_depend_on_their_batch(linear):
    _, density, mean, covariance = linear
    x = mean.reshape(1, LENGTH, 3).repeat(6, 1, 1)
    factor = torch.linalg.cholesky(covariance)
    whole = hmc(density, x, factor, 3, 2).x
    part = hmc(density, x[4:], factor, 3, 2, members=[4, 5]).x
    torch.testing.assert_close(whole[4:], part)


def test_jacobian_and_noise_precision_of_lorenz63():
    system = Lorenz63(noise=True)
    x = stationary_states(system, 4, spinup=50, per_member=1).double()
    J = step_jacobian(system, x)
    v = torch.randn(4, 3, dtype=torch.float64)
    difference = (system.step(x + 1e-6 * v) - system.step(x - 1e-6 * v)) / 2e-6
    torch.testing.assert_close(torch.einsum("bij,bj->bi", J, v), difference, atol=1e-6, rtol=1e-5)
    expected = (torch.eye(3, dtype=torch.float64) / 0.025).expand(4, 3, 3)
    torch.testing.assert_close(transition_precision(system, x), expected)


def test_transition_mixture_is_the_stationary_density():
    system = LinearGaussian.rotation(decay=0.8)
    states = stationary_states(system, 40_000, spinup=30, per_member=4)
    x = stationary_states(system, 200, spinup=30, per_member=1, seed=5)
    mixture = TransitionMixture(system, states, x, number=30_000, radius=20.0)
    exact = -0.5 * x.square().sum(1)
    difference = mixture.log_prob(x) - exact
    central = x.square().sum(1) < 4
    assert (difference - difference[central].mean())[central].abs().max() < 0.15


def test_a_failed_member_is_replaced_when_the_first_state_is_a_mixture():
    system = LinearGaussian.rotation()
    states = stationary_states(system, 4096, spinup=30, per_member=4)
    dataset = system.simulate(32, 6, spinup=30, seed=1, progress=False)
    x = torch.from_numpy(system.layout.to_array(dataset).copy())
    x[3] = float("nan")
    likelihood = Likelihood(lambda x: x[:, ::2, 0], torch.zeros(3), 1.0, (6, 2), linear=True)
    polished = polish(system, likelihood, x, states, proposals=4, leapfrog=2)
    assert polished.replaced == [3]
    assert polished.samples.isfinite().all()


def test_too_few_stationary_states_are_refused():
    system = LinearGaussian.rotation()
    far = torch.full((16, 2), 100.0)
    with pytest.raises(ValueError, match="at least 32"):
        TransitionMixture(system, torch.zeros(50, 2), far)


def test_systems_without_a_density_are_refused():
    likelihood = Likelihood(lambda x: x[:, :, 0], torch.zeros(4), 1.0, (4, 3), linear=True)
    with pytest.raises(ValueError, match="transition density"):
        polish(Lorenz63(), likelihood, torch.randn(8, 4, 3), torch.randn(256, 3))


def test_samples_of_another_shape_are_refused():
    likelihood = Likelihood(lambda x: x[:, :, 0], torch.zeros(4), 1.0, (4, 3), linear=True)
    with pytest.raises(ValueError, match="samples must have shape"):
        polish(Lorenz63(noise=True), likelihood, torch.randn(8, 4, 2))


def test_lorenz63_polish_pulls_noisy_samples_onto_the_dynamics():
    system = Lorenz63(noise=True)
    states = stationary_states(system, 2**14, spinup=200)
    noise = normal(3, range(32), (LENGTH - 1, 3))
    truth = system.rollout(states[:1].repeat(32, 1), LENGTH, noise)
    likelihood = Likelihood(lambda x: x[:, :, 0], truth[0, :, 0], 1.0, (LENGTH, 3), linear=True)
    x = truth + 0.3 * normal(4, range(32), (LENGTH, 3))
    first = GaussianState(states[0], torch.eye(3))
    polished = polish(system, likelihood, x, first, proposals=10, leapfrog=3)
    density = TrajectoryDensity(system, likelihood, first)
    assert density.log_dynamics(x).mean() < -50
    # The expectation is that of 27 standard normal increments, with q = dt.
    expected = -0.5 * 27 * (1 + torch.log(torch.tensor(2 * torch.pi * 0.025)))
    assert abs(polished.log_prob.mean() - expected) < 4
    factor = metric_factor(density, x[:1])
    assert factor.shape == (3 * LENGTH, 3 * LENGTH)
