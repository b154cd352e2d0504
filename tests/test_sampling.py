"""Samplers against exact posteriors of linear-Gaussian systems."""

import math

import numpy as np
import pytest
import torch
from azula.noise import VESchedule
from azula.sample import REABSampler
from oracles import kalman_smoother

from dynamics.linear_gaussian import LinearGaussian
from sda.covariance import DenseCovariance
from sda.denoiser import Denoiser, GaussianDenoiser
from sda.fidelity import KINDS, affine_moments, evaluate, gaussian_case, gaussian_start, scores
from sda.guidance import guide
from sda.langevin import Langevin
from sda.sampling import SAMPLERS, Diverged, adams_bashforth, integrate, log_levels, sample

torch.set_num_threads(1)


@pytest.mark.parametrize("kind", KINDS)
def test_the_case_is_the_kalman_smoother(kind: str) -> None:
    case = gaussian_case(32, kind)
    system = LinearGaussian.damped_spring()
    scale = system.stationary_covariance.diagonal().sqrt().numpy()
    A = system.A.numpy() / scale[:, None] * scale
    Q = system.Q.numpy() / scale[:, None] / scale
    P = system.stationary_covariance.numpy() / scale[:, None] / scale
    every = 1 if kind == "dense-noisy" else 8
    H, R, y = ([None] * 32 for _ in range(3))
    for i, value in enumerate(case.likelihood.y.numpy()):
        H[every * i], y[every * i] = np.eye(3)[:1], np.array([value])
        R[every * i] = np.array([[case.likelihood.std[0].item() ** 2]])
    mean, covs, lags = kalman_smoother(A, Q, P, H, R, y)
    posterior = case.posterior.numpy().reshape(32, 3, 32, 3)
    assert np.allclose(case.mean.numpy().reshape(32, 3), mean, atol=1e-6)
    assert np.allclose([posterior[i, :, i] for i in range(32)], covs, atol=1e-6)
    assert np.allclose([posterior[i, :, i + 1] for i in range(31)], lags, atol=1e-6)


@pytest.mark.parametrize("length", [32, 128])
@pytest.mark.parametrize("kind", KINDS)
def test_the_default_samples_the_exact_posterior(length: int, kind: str) -> None:
    result = evaluate("static", gaussian_case(length, kind))
    assert result["exact"] and result["evaluations"] <= 32 and result["vjps"] == 0
    assert result["mean_error"] < 0.01
    assert 0.98 < result["std_ratio_min"] and result["std_ratio_max"] < 1.02
    assert result["lag1_error"] < 0.02


def test_an_ensemble_in_single_precision_agrees() -> None:
    case = gaussian_case(32, "sparse-precise", dtype=torch.float32)
    guided = guide("static", case.denoiser, case.likelihood, case.covariance)
    x = sample(guided, (32, 3), seed=0, members=2048)
    result = scores(x.double().flatten(1).mean(0), torch.cov(x.double().flatten(1).T), case)
    assert result["mean_error"] < 0.05 and abs(result["std_ratio"] - 1) < 0.03
    assert result["lag1_error"] < 0.06


def test_a_start_from_noise_is_biased_by_the_largest_level() -> None:
    case = gaussian_case(32, "dense-noisy")
    guided = guide("static", case.denoiser, case.likelihood, case.covariance)
    errors = []
    for s_max in (10.0, 100.0, 1000.0):
        start = torch.zeros(96).double(), s_max**2 * torch.eye(96).double()
        moments = affine_moments(guided, *start, (32, 3), torch.float64, s_max=s_max, steps=32)
        errors.append(scores(*moments, case)["mean_error"])
    assert errors[0] > 5 * errors[1] > 25 * errors[2]
    assert errors[2] < 0.01


def test_the_gaussian_start_has_its_moments() -> None:
    case = gaussian_case(16, "dense-noisy")
    guided = guide("static", case.denoiser, case.likelihood, case.covariance)
    mean, covariance = gaussian_start(case, 3.0)

    # The start is affine in its noise: zero gives the mean, unit vectors a square root.
    size = 48 + 16
    unit = torch.cat([torch.zeros(1, size), torch.eye(size)]).double()
    parts = iter([unit[:, :48].reshape(-1, 16, 3), unit[:, 48:]])
    x = guided.start(3.0, size + 1, lambda shape: next(parts)).flatten(1)
    root = (x[1:] - x[:1]).T
    assert torch.allclose(x[0], mean, atol=1e-8)
    assert torch.allclose(root @ root.T, covariance, atol=1e-8)


@pytest.mark.parametrize(
    ("name", "order", "expected"),
    [("xeab", 1, 1), ("xeab", 2, 2), ("xeab", 3, 3), ("ddim", None, 1), ("heun", None, 2),
     ("reab", 1, 1), ("reab", 2, 2), ("reab", 3, 3)],
)  # fmt: skip
def test_convergence_order(name: str, order: int | None, expected: int) -> None:
    """For N(0, λ) the flow is x √(λ + s_min²) / √(λ + s_max²), then the Wiener filter."""

    variances = torch.tensor([0.01, 0.3, 3.0]).double()
    covariance = DenseCovariance(torch.diag(variances), (3, 1), torch.float64)
    denoiser = GaussianDenoiser(covariance)
    x = torch.full((1, 3, 1), 1e4).double()
    low, high = 0.05**2, 1e4**2
    exact = 1e4 * ((variances + low) / (variances + high)).sqrt() * variances / (variances + low)
    errors = []
    for steps in (64, 128):
        levels = log_levels(steps, 1e4, 0.05)
        y = integrate(denoiser, x, SAMPLERS[name](levels, order))
        errors.append((y.flatten() - exact).abs().max().item())
    rate = math.log2(errors[0] / errors[1])
    # A multistep method begins with one step of order one, on which the solution is all but exact.
    assert expected - 0.35 < rate < expected + 1.2, (errors, rate)


def test_adams_bashforth_integrates_polynomials_exactly() -> None:
    nodes = np.array([2.0, 1.4, 0.9])
    coefficients = adams_bashforth(nodes, 0.3, lambda u: np.exp(-u))
    for k, primitive in enumerate(
        (
            lambda u: -np.exp(-u),
            lambda u: -(u + 1) * np.exp(-u),
            lambda u: -(u**2 + 2 * u + 2) * np.exp(-u),
        )
    ):
        assert coefficients @ nodes**k == pytest.approx(primitive(0.3) - primitive(0.9), rel=1e-12)


def test_the_shipped_rosenbrock_sampler_is_wrong_and_ours_is_not() -> None:
    """Its equation is exact for a white prior of unit variance; azula 0.11.1 does not obey it."""

    covariance = DenseCovariance(torch.eye(4).double(), (4, 1), torch.float64)
    denoiser = GaussianDenoiser(covariance)
    denoiser.schedule = VESchedule(sigma_min=0.01, sigma_max=100.0)
    x = 100 * torch.ones(1, 4, 1).double()
    exact = x * math.sqrt((1 + 0.01**2) / (1 + 100.0**2))
    levels = log_levels(16, 100.0, 0.01)
    ours = integrate(denoiser, x, SAMPLERS["reab"](levels, 2)) * (1 + 0.01**2)
    assert torch.allclose(ours, exact, rtol=1e-9)

    # For unit variance f is zero, which hides the defect: it shows for any other.
    covariance = DenseCovariance(0.25 * torch.eye(4).double(), (4, 1), torch.float64)
    denoiser.covariance = covariance
    exact = x * math.sqrt((0.25 + 0.01**2) / (0.25 + 100.0**2))
    wiener = 0.25 / (0.25 + 0.01**2)
    for steps in (64, 256):
        levels = log_levels(steps, 100.0, 0.01)
        ours = integrate(denoiser, x, SAMPLERS["reab"](levels, 2)) / wiener
        theirs = REABSampler(denoiser, order=2, steps=steps, silent=True, dtype=torch.float64)(x)
        assert (ours / exact - 1).abs().max() < 0.02
        assert (theirs / exact - 1).abs().max() > 3 * (ours / exact - 1).abs().max()


@pytest.mark.parametrize("name", SAMPLERS)
@pytest.mark.parametrize("langevin", [None, Langevin(s_min=0.1, s_max=5.0, steps=2)])
def test_a_member_does_not_depend_on_its_batch(name: str, langevin: Langevin | None) -> None:
    case = gaussian_case(8, "dense-noisy")
    options = {"sampler": name, "steps": 8, "langevin": langevin, "dtype": torch.float64}
    guided = guide("static", case.denoiser, case.likelihood, case.covariance)
    whole = sample(guided, (8, 3), 3, 6, **options)
    parts = [sample(guided, (8, 3), 3, m, **options) for m in ([0, 1], [2], [3, 4, 5])]
    assert torch.allclose(whole, torch.cat(parts), atol=1e-10)
    assert not torch.allclose(whole, sample(guided, (8, 3), 4, 6, **options), atol=1e-3)


@pytest.mark.parametrize("name", SAMPLERS)
def test_unconditional_samples_have_the_prior_moments(name: str) -> None:
    covariance = gaussian_case(4, "dense-noisy", dtype=torch.float32).covariance
    x = sample(
        GaussianDenoiser(covariance), (4, 3), 0, 4096,
        sampler=name, steps=256 if name == "ddpm" else 64,
    )  # fmt: skip
    error = torch.cov(x.double().flatten(1).T) - covariance.dense()
    assert error.abs().max() < 0.12  # sampling noise is 0.02 per entry


def test_progress_and_errors() -> None:
    case = gaussian_case(4, "dense-noisy", dtype=torch.float32)
    denoiser, seen = case.denoiser, []
    sample(denoiser, (4, 3), 0, 2, steps=5, progress=lambda i, n: seen.append((i, n)))
    assert seen == [(i, 6) for i in range(1, 7)]
    for options, message in (
        ({"sampler": "euler"}, "xeab, reab, ddim, ddpm, heun"),
        ({"start": "zero"}, "gaussian, noise"),
        ({"s_min": 0.0}, "0 < s_min < s_max"),
        ({"steps": 0}, "at least 1"),
    ):
        with pytest.raises(ValueError, match=message):
            sample(denoiser, (4, 3), 0, 2, **options)


def test_divergence_names_the_member_and_the_level() -> None:
    class Diverging(Denoiser):
        def denoise(self, x: torch.Tensor, s: torch.Tensor) -> torch.Tensor:
            y = torch.zeros_like(x)
            if s < 1:
                y[1] = math.nan
            return y

    with pytest.raises(FloatingPointError, match=r"member 7 diverged at level \d+ \(s = 0\.\d"):
        sample(Diverging(), (4, 3), 0, [5, 7], steps=8)


@pytest.mark.parametrize("guidance", ["static", "mmps"])
def test_only_members_that_diverge_are_lost(guidance: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """Whatever the block: the others are what they are without them."""

    case = gaussian_case(8, "dense-noisy")
    options = {"steps": 8, "langevin": Langevin(s_max=3.0), "dtype": torch.float64}

    def run(members: list[int]) -> tuple[torch.Tensor, dict[int, str]]:
        guided = guide(guidance, case.denoiser, case.likelihood, case.covariance)
        try:
            return sample(guided, (8, 3), 3, members, **options), {}
        except Diverged as error:
            return error.trajectories, error.failures

    healthy, none = run(list(range(12)))
    denoise = GaussianDenoiser.denoise

    def diverging(self: Denoiser, x: torch.Tensor, s: torch.Tensor) -> torch.Tensor:
        ill = (x.mean((1, 2)) > 0.2) & (s < 1)
        return torch.where(ill[:, None, None], math.nan, denoise(self, x, s))

    monkeypatch.setattr(GaussianDenoiser, "denoise", diverging)
    whole, failures = run(list(range(12)))
    lost = sorted(failures)
    assert not none and 2 <= len(lost) <= 10
    assert all(failures[m].startswith(f"member {m} diverged at level ") for m in lost)
    kept = [m for m in range(12) if m not in lost]
    assert whole[lost].isnan().all()
    assert torch.allclose(whole[kept], healthy[kept], atol=1e-9)
    parts = [run(members) for members in ([0], [1, 2, 3, 4], [5, 6], list(range(7, 12)))]
    assert torch.allclose(torch.cat([x for x, _ in parts]), whole, atol=1e-9, equal_nan=True)
    assert {m: text for _, part in parts for m, text in part.items()} == failures
