"""Linear-Gaussian systems against what is known of them exactly."""

import math

import pytest
import torch

from dynamics import LinearGaussian
from dynamics.linear_gaussian import discretise, lyapunov


def arbitrary(size: int = 4) -> LinearGaussian:
    """A stable system without structure, not normal, with strongly correlated noise."""

    generator = torch.Generator().manual_seed(3)
    A = torch.randn(size, size, generator=generator, dtype=torch.float64)
    A = 0.97 * A / torch.linalg.eigvals(A).abs().max()
    factor = torch.randn(size, size, generator=generator, dtype=torch.float64)

    return LinearGaussian(A, factor @ factor.T)


SYSTEMS = {
    "spring": LinearGaussian.damped_spring(),
    "rotation": LinearGaussian.rotation(std=2.0),
    "arbitrary": arbitrary(),
    "slow": LinearGaussian([[1 - 1e-7]], [[1e-3]]),
    "white": LinearGaussian([[0.0]], [[4.0]]),
    "singular": LinearGaussian([[0.9, 0.1], [0.0, 0.5]], [[0.0, 0.0], [0.0, 1.0]]),
}


@pytest.mark.parametrize("name", SYSTEMS)
def test_the_stationary_covariance_is_left_unchanged_by_a_step(name: str) -> None:
    system = SYSTEMS[name]
    P = system.stationary_covariance
    residual = system.A @ P @ system.A.T + system.Q - P
    assert residual.abs().max() < 1e-13 * P.abs().max() * len(P)
    assert torch.equal(P, P.T)


def test_the_lyapunov_solver_agrees_with_the_kronecker_form() -> None:
    system = SYSTEMS["arbitrary"]
    A, Q = system.A, system.Q
    vector = torch.linalg.solve(torch.eye(16, dtype=A.dtype) - torch.kron(A, A), Q.reshape(-1))
    assert torch.allclose(lyapunov(A, Q), vector.view(4, 4), rtol=1e-10)


def test_known_stationary_covariances() -> None:
    rotation = SYSTEMS["rotation"].stationary_covariance
    assert torch.allclose(rotation, 4 * torch.eye(2, dtype=torch.float64), atol=1e-12)

    # The wind is an Ornstein–Uhlenbeck process; the spring's balance gives the rest in closed form.
    w, g, s, tau = 1.3, 0.4, 0.7, 1.7
    P = LinearGaussian.damped_spring(0.3, w, g, s, tau).stationary_covariance
    xf = s**2 / (w**2 + g / tau + 1 / tau**2)
    vf = xf / tau
    v2 = vf / g
    x2 = (v2 + xf) / w**2
    expected = torch.tensor([[x2, 0, xf], [0, v2, vf], [xf, vf, s**2]], dtype=torch.float64)
    assert torch.allclose(P, expected, atol=1e-12)


@pytest.mark.parametrize("name", SYSTEMS)
def test_trajectory_covariance_is_block_toeplitz_of_autocovariances(name: str) -> None:
    system = SYSTEMS[name]
    d = len(system.A)
    cov = system.trajectory_covariance(5)
    assert cov.shape == (5 * d, 5 * d) and cov.dtype == torch.float64
    assert torch.allclose(cov, cov.T)
    for i in range(5):
        for j in range(5):
            block = cov[i * d : (i + 1) * d, j * d : (j + 1) * d]
            assert torch.allclose(block, system.autocovariance(i - j), rtol=1e-10)
    assert torch.linalg.eigvalsh(cov)[0] > -1e-10 * cov.abs().max()


@pytest.mark.parametrize("name", [n for n in SYSTEMS if n != "singular"])
def test_the_trajectory_density_is_the_product_of_transitions(name: str) -> None:
    system = SYSTEMS[name]
    d, length = len(system.A), 4
    x = torch.from_numpy(
        system.layout.to_array(system.simulate(6, length, seed=2, dtype=torch.float64))
    )
    zero = torch.zeros(d, dtype=torch.float64)
    start = torch.distributions.MultivariateNormal(zero, system.stationary_covariance)
    log_prob = start.log_prob(x[:, 0])
    for i in range(length - 1):
        log_prob = log_prob + system.log_transition(x[:, i], x[:, i + 1])
    joint = torch.distributions.MultivariateNormal(
        zero.repeat(length), system.trajectory_covariance(length)
    )
    assert torch.allclose(log_prob, joint.log_prob(x.flatten(1)), rtol=1e-6, atol=1e-5)


@pytest.mark.parametrize("name", ["spring", "rotation", "arbitrary", "singular"])
def test_simulated_trajectories_have_the_exact_covariance(name: str) -> None:
    system, members, length = SYSTEMS[name], 4000, 4
    x = system.layout.to_array(system.simulate(members, length, spinup=3, seed=4))
    x = torch.from_numpy(x).double().flatten(1)
    exact = system.trajectory_covariance(length)
    variance = exact.diagonal()
    # The sampling variance of a covariance of Gaussians with known mean.
    error = ((variance[:, None] * variance + exact.square()) / members).sqrt()
    assert (((x.T @ x / members - exact) / error).abs() < 5).all()
    assert ((x.mean(0) / (variance / members).sqrt()).abs() < 5).all()


def test_the_spring_is_sampled_exactly_at_every_dt() -> None:
    fine = LinearGaussian.damped_spring(dt=0.05)
    coarse = LinearGaussian.damped_spring(dt=0.4)
    A, Q = torch.eye(3, dtype=torch.float64), torch.zeros(3, 3, dtype=torch.float64)
    for _ in range(8):
        A, Q = fine.A @ A, fine.A @ Q @ fine.A.T + fine.Q
    assert torch.allclose(coarse.A, A, atol=1e-14)
    assert torch.allclose(coarse.Q, Q, atol=1e-14)


def test_the_discretisation_has_the_right_generator() -> None:
    drift = torch.tensor([[-0.3, 1.0], [-2.0, -0.1]], dtype=torch.float64)
    diffusion = torch.tensor([[0.5, 0.2], [0.2, 1.0]], dtype=torch.float64)
    dt = 1e-5
    A, Q = discretise(drift, diffusion, dt)
    assert torch.allclose((A - torch.eye(2)) / dt, drift, atol=1e-4)
    assert torch.allclose(Q / dt, diffusion, atol=1e-4)


@pytest.mark.parametrize(
    ("make", "words"),
    [
        (lambda: LinearGaussian([[1.01]], [[1.0]]), "spectral radius is 1.01"),
        (lambda: LinearGaussian([[0.0, 1.0], [-1.0, 0.0]], torch.eye(2)), "spectral radius is 1"),
        (lambda: LinearGaussian([[0.5]], [[-1.0]]), "smallest eigenvalue is -1"),
        (lambda: LinearGaussian(torch.eye(2) / 2, [[1.0, 1.0], [0.0, 1.0]]), "asymmetry 1"),
        (lambda: LinearGaussian(torch.eye(2) / 2, torch.eye(3)), r"\(2, 2\) and \(3, 3\)"),
        (lambda: LinearGaussian([[math.nan]], [[1.0]]), "must be finite"),
        (lambda: LinearGaussian([[0.5]], [[1.0]], variables=("a", "b")), "there are 2 variables"),
        (lambda: LinearGaussian.rotation(decay=1.0), r"decay must be in \[0, 1\), got 1.0"),
        (lambda: LinearGaussian.damped_spring(damping=0.0), "damping must be positive, got 0.0"),
        (
            lambda: SYSTEMS["singular"].log_transition(torch.zeros(1, 2), torch.zeros(1, 2)),
            "Q is singular",
        ),
    ],
)
def test_what_is_no_stable_system_is_named(make, words: str) -> None:
    with pytest.raises(ValueError, match=words):
        make()
