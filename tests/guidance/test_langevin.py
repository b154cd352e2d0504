"""Langevin steps leave the exact posterior as it is, and lead to it."""

import math

import pytest
import torch

from sda.covariance import SpectralCovariance
from sda.denoiser import Denoiser, GaussianDenoiser
from sda.fidelity import gaussian_case, scores
from sda.guidance import guide
from sda.guidance.base import CappedPrior, PriorMetric
from sda.langevin import METRICS, Langevin
from sda.observation.likelihood import Likelihood
from sda.sampling import MemberNoise, sample

torch.set_num_threads(1)


@pytest.mark.parametrize("options", [{}, {"limit": 0, "tolerance": 1e-8, "iterations": 500}])
def test_one_step_with_the_posterior_metric_is_exactly_invariant(options: dict) -> None:
    """Untamed and uncapped it is the Ornstein–Uhlenbeck flow, for any step size."""

    case, s, members = gaussian_case(8, "sparse-precise"), 0.3, 20_000
    guided = guide("static", case.denoiser, case.likelihood, case.covariance, **options)
    langevin = Langevin(delta=1.0, kappa=math.inf, tame=math.inf, s_min=0, s_max=9)
    exact = case.posterior + s**2 * torch.eye(24).double()
    root = torch.linalg.cholesky(exact)
    noise = MemberNoise(0, range(members), dtype=torch.float64)
    x = (case.mean + noise((24,)) @ root.T).reshape(-1, 8, 3)
    y, _ = langevin.correct(guided, x, s, noise)
    z = torch.linalg.solve_triangular(root, (y.flatten(1) - case.mean).T, upper=False).T
    assert z.mean(0).abs().max() < 5 / math.sqrt(members)
    assert (torch.cov(z.T) - torch.eye(24).double()).abs().max() < 8 / math.sqrt(members)

    # It forgets where it was at the rate e^{−δ}.
    w = torch.linalg.solve_triangular(root, (x.flatten(1) - case.mean).T, upper=False).T
    assert (w * z).mean().item() == pytest.approx(math.exp(-1), abs=0.02)
    # In equilibrium the squared norm of the score is the number of values.
    assert langevin.alarms[s] == pytest.approx(1, abs=0.05)


def test_the_identity_metric_takes_the_published_correction() -> None:
    """x ← x − (δ ε + √(2δ) z) σ with δ = τ / mean ε² (Rozet & Louppe, 2023, appendix)."""

    case, s, tau = gaussian_case(8, "dense-noisy"), 0.5, 0.5
    guided = guide("static", case.denoiser, case.likelihood, case.covariance)
    x = MemberNoise(1, range(5), dtype=torch.float64)((8, 3))
    langevin = Langevin(metric="identity", delta=tau, s_min=0, s_max=9)
    found, _ = langevin.correct(guided, x, s, MemberNoise(0, range(5), dtype=torch.float64))

    z = -MemberNoise(0, range(5), dtype=torch.float64)((8, 3))
    eps = (x - guided.denoise(x, s)) / s
    delta = tau / eps.square().mean((1, 2), keepdim=True)
    torch.testing.assert_close(found, x - (delta * eps + (2 * delta).sqrt() * z) * s)


@pytest.mark.parametrize("limit", [1e8, 0.0])
@pytest.mark.parametrize("guided", [True, False])
def test_a_move_is_a_step_and_a_draw(limit: float, guided: bool) -> None:
    """Transforms that its parts share change nothing."""

    case, s = gaussian_case(8, "sparse-precise"), 0.3
    x = MemberNoise(1, range(5), dtype=torch.float64)((8, 3))
    posterior = guide("static", case.denoiser, case.likelihood, case.covariance,
                      limit=limit, tolerance=1e-12)  # fmt: skip
    metric = posterior.metric(posterior.analyse(x, s), kappa=4.0)
    if not guided:
        metric = PriorMetric(case.covariance, CappedPrior(s, 4.0))
    move = metric.move(x, MemberNoise(0, range(5), dtype=torch.float64))
    a, b = torch.rand(2, 5, generator=torch.Generator().manual_seed(0)).double()
    drift = metric.apply(x)
    z = metric.draw(MemberNoise(0, range(5), dtype=torch.float64))

    torch.testing.assert_close(move.square, (x * drift).sum((1, 2)))
    expected = a[:, None, None] * drift + b[:, None, None] * z
    torch.testing.assert_close(move.combine(a, b), expected)


@pytest.mark.parametrize("metric", METRICS)
def test_a_chain_of_small_steps_keeps_the_posterior(metric: str) -> None:
    case, s = gaussian_case(8, "dense-noisy"), 0.5
    guided = guide("static", case.denoiser, case.likelihood, case.covariance)
    # The published form has a bias of the order of the step.
    delta = 0.025 if metric == "identity" else 0.05
    langevin = Langevin(metric=metric, steps=40, delta=delta, s_min=0, s_max=9)
    noise = MemberNoise(0, range(2048), dtype=torch.float64)
    exact = case.posterior + s**2 * torch.eye(24).double()
    x = (case.mean + noise((24,)) @ torch.linalg.cholesky(exact).T).reshape(-1, 8, 3)
    x, analysis = langevin.correct(guided, x, s, noise)
    std = exact.diagonal().sqrt()
    assert ((x.flatten(1).mean(0) - case.mean) / std).abs().max() < 0.1
    assert (x.flatten(1).std(0) / std - 1).abs().max() < 0.07
    assert torch.allclose(analysis.mean, guided.denoise(x, s))


def test_a_chain_with_the_posterior_metric_finds_it() -> None:
    case, s = gaussian_case(8, "dense-noisy"), 0.5
    guided = guide("static", case.denoiser, case.likelihood, case.covariance)
    langevin = Langevin(steps=150, s_min=0, s_max=9)
    noise = MemberNoise(0, range(1024), dtype=torch.float64)
    x, _ = langevin.correct(guided, 1 + 2 * noise((8, 3)), s, noise)
    std = (case.posterior.diagonal() + s**2).sqrt()
    assert ((x.flatten(1).mean(0) - case.mean) / std).abs().max() < 0.2
    assert (x.flatten(1).std(0) / std - 1).abs().max() < 0.12


def test_langevin_steps_keep_an_exact_sampler_exact() -> None:
    case = gaussian_case(32, "dense-noisy", dtype=torch.float32)
    guided = guide("static", case.denoiser, case.likelihood, case.covariance)
    for langevin in (Langevin(), Langevin.for_vectors()):
        x = sample(guided, (32, 3), 0, 2048, langevin=langevin).double().flatten(1)
        result = scores(x.mean(0), torch.cov(x.T), case)
        assert result["mean_error"] < 0.06
        assert result["std_ratio"] == pytest.approx(1, abs=0.03)
        assert result["lag1_error"] < 0.08


@pytest.mark.parametrize("name", ["sda", "pgdm", "tmpd"])
def test_langevin_steps_do_not_need_a_guidance_with_a_covariance(name: str) -> None:
    case = gaussian_case(16, "dense-noisy", dtype=torch.float32)
    guided = guide(name, case.denoiser, case.likelihood, case.covariance)
    for metric in METRICS:
        x = sample(guided, (16, 3), 0, 16, steps=32, langevin=Langevin(metric=metric))
        assert x.isfinite().all()


def test_all_forms_of_the_metric_agree() -> None:
    """Dense eigenbasis, columns, matrix-free: M x and the covariance of draws."""

    case, s = gaussian_case(6, "dense-noisy"), 0.4
    expected = case.posterior + s**2 * torch.eye(18).double()
    x = torch.eye(18).double().reshape(18, 6, 3)
    for name, options in (
        ("static", {}),
        ("static", {"limit": 0, "tolerance": 1e-9, "iterations": 500}),
        ("flow_dependent", {"form": "dense", "floor": 1e-12, "ceiling": 1 - 1e-9}),
        ("flow_dependent", {"form": "columns", "s_flow": 20.0}),
    ):
        guided = guide(name, case.denoiser, case.likelihood, case.covariance, **options)
        if name == "flow_dependent":
            with guided.recording():
                guided.denoise(torch.zeros(1, 6, 3).double(), s)
        metric = guided.metric(guided.analyse(x, s))
        assert torch.allclose(metric.apply(x).flatten(1), expected, atol=1e-6)
        draws = metric.draw(MemberNoise(0, range(18), dtype=torch.float64))
        assert draws.shape == x.shape


def test_a_spectral_covariance_gives_the_same_as_a_dense_one() -> None:
    """A periodic field: guidance, metric and draws, with a redundant transform."""

    generator = torch.Generator().manual_seed(0)
    root = torch.randn(5, 2, 2, generator=generator, dtype=torch.float64)
    covariance = SpectralCovariance(root @ root.mT, (2, 1, 8), torch.float64)
    H = lambda x: x[:, 0, 0, ::2]  # noqa: E731
    y = torch.tensor([1.0, 0.0, -1.0, 0.5]).double()
    likelihood = Likelihood(H, y, 0.1, (2, 1, 8), linear=True)
    guided = guide("static", GaussianDenoiser(covariance), likelihood, covariance)
    s, eye = 0.3, torch.eye(16).double()
    sigma = covariance.dense()
    matrix = torch.stack([H(e.reshape(1, 2, 1, 8))[0] for e in eye]).T
    gain = torch.linalg.solve(matrix @ sigma @ matrix.T + 0.01 * torch.eye(4).double(),
                              matrix @ sigma).T  # fmt: skip
    posterior = sigma - gain @ matrix @ sigma
    x = eye.reshape(16, 2, 1, 8)
    metric = guided.metric(guided.analyse(x, s))
    assert torch.allclose(metric.apply(x).flatten(1), posterior + s**2 * eye, atol=1e-8)
    wiener = torch.linalg.solve(posterior + s**2 * eye, posterior)
    mean = gain @ y
    expected = mean + (x.flatten(1) - mean) @ wiener
    assert torch.allclose(guided.denoise(x, s).flatten(1), expected, atol=1e-8)


def test_without_guidance_the_metric_is_the_priors() -> None:
    class White(Denoiser):
        def denoise(self, x: torch.Tensor, s: torch.Tensor) -> torch.Tensor:
            return x / (1 + s**2)

    for denoiser in (White(), gaussian_case(4, "dense-noisy", dtype=torch.float32).denoiser):
        x = sample(denoiser, (4, 3), 0, 512, langevin=Langevin(s_max=3.0))
        assert (x.std(0) - 1).abs().max() < 0.15


def test_bad_options() -> None:
    for options in (
        {"metric": "euclidean"},
        {"steps": 0},
        {"delta": 0.0},
        {"kappa": -1.0},
        {"s_min": 2.0, "s_max": 1.0},
    ):
        with pytest.raises(ValueError, match=r"unknown|must"):
            Langevin(**options)
