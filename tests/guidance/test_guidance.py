"""Guidances against exact posteriors, and what is true of each of them."""

import math

import pytest
import torch
from oracles import importance_moments

from sda.covariance import DenseCovariance
from sda.denoiser import Denoiser, GaussianDenoiser
from sda.fidelity import KINDS, GaussianCase, evaluate, gaussian_case
from sda.guidance import METHODS, guide
from sda.guidance.base import PosteriorDenoiser
from sda.observation.likelihood import Likelihood
from sda.sampling import MemberNoise, prepare, sample

torch.set_num_threads(1)


def exact_mean(case: GaussianCase, x: torch.Tensor, s: float) -> torch.Tensor:
    """`E[X | x, y]` by conditioning on the noisy state and the observations at once."""

    # The posterior given y is the prior of x: the Wiener filter around its mean.
    noisy = case.posterior + s**2 * torch.eye(len(case.mean)).double()
    gain = torch.linalg.solve(noisy, case.posterior).T

    return (case.mean + (x.flatten(1) - case.mean) @ gain.T).reshape(x.shape)


def noisy(case: GaussianCase, members: int, s: float) -> torch.Tensor:
    """Draws of the noisy prior."""

    noise = torch.randn(
        (2, members, *case.covariance.shape),
        generator=torch.Generator().manual_seed(1),
        dtype=case.covariance.eigenvalues.dtype,
    )

    return case.covariance.sample(noise[0]) + s * noise[1]


EXACT = {
    "static": {},
    "static, matrix-free": {"limit": 0, "tolerance": 1e-9, "iterations": 2000},
    "flow_dependent, dense": {"form": "dense", "floor": 1e-12, "ceiling": 1 - 1e-9, "s_flow": 1e9},
    "flow_dependent, columns": {"form": "columns", "s_flow": 1e9, "every": 1},
    "hybrid": {"form": "dense", "floor": 1e-12, "ceiling": 1 - 1e-9, "s_flow": 1.0},
    "averaged": {},
    "mmps": {"solves": 16},
    "mmps, cg": {"solves": 200, "solver": "cg"},
}


@pytest.mark.parametrize("name", EXACT)
@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("s", [0.03, 0.5, 20.0])
def test_exact_for_gaussian_priors(name: str, kind: str, s: float) -> None:
    case = gaussian_case(12, kind)
    guided = guide(name.split(",")[0], case.denoiser, case.likelihood, case.covariance,
                   **EXACT[name])  # fmt: skip
    x = noisy(case, 3, s)
    if hasattr(guided, "recording"):
        with guided.recording():
            guided.denoise(x[:1], s)
    expected = exact_mean(case, x, s)
    assert torch.allclose(guided.denoise(x, s), expected, atol=2e-4)


@pytest.mark.parametrize("name", METHODS)
def test_every_guidance_reduces_the_innovation(name: str) -> None:
    case = gaussian_case(16, "sparse-precise", dtype=torch.float32)
    guided = guide(name, case.denoiser, case.likelihood, case.covariance)
    x = sample(guided, (16, 3), 0, 64, steps=32)
    prior = sample(case.denoiser, (16, 3), 0, 64, steps=32)
    assert x.isfinite().all()
    before = (case.likelihood.y - case.likelihood.H(prior)).square().mean()
    after = (case.likelihood.y - case.likelihood.H(x)).square().mean()
    assert after < 0.5 * before


@pytest.mark.parametrize("name", METHODS)
def test_a_member_does_not_depend_on_its_batch(name: str) -> None:
    """Also the strength of `dps`, whose published norm spans the batch."""

    case = gaussian_case(8, "dense-noisy")
    x, s = noisy(case, 5, 0.5), 0.5
    guided = guide(name, case.denoiser, case.likelihood, case.covariance)
    prepare(guided, (8, 3), 0, steps=12, dtype=torch.float64)
    whole = guided.denoise(x, s)
    parts = torch.cat([guided.denoise(x[:2], s), guided.denoise(x[2:], s)])
    assert torch.allclose(whole, parts, atol=1e-9)

    # Noise levels can differ within a batch.
    levels = torch.tensor([0.5, 0.1, 0.5, 0.1, 0.5]).double()
    mixed = guided.denoise(x, levels)
    assert torch.allclose(mixed[levels == 0.5], whole[levels == 0.5], atol=1e-9)
    assert torch.allclose(mixed[levels == 0.1], guided.denoise(x[levels == 0.1], 0.1), atol=1e-9)


COSTS = {
    "static": 0, "flow_dependent": 0, "hybrid": 2, "averaged": 2, "mmps": 5, "tmpd": 2, "sda": 1,
    "pgdm": 1, "dps": 1,
}  # fmt: skip


@pytest.mark.parametrize("name", METHODS)
def test_evaluations_and_products_are_counted_per_member(name: str) -> None:
    case = gaussian_case(8, "dense-noisy")
    guided = guide(name, case.denoiser, case.likelihood, case.covariance)
    prepare(guided, (8, 3), 0, steps=12, dtype=torch.float64)
    before = guided.evaluations, guided.vjps
    guided.denoise(noisy(case, 3, 0.5), 0.5)
    assert guided.evaluations - before[0] == 3
    assert guided.vjps - before[1] == 3 * COSTS[name]


@pytest.mark.parametrize(
    ("name", "kind", "low", "high"),
    [
        ("pgdm", "sparse-precise", 0.5, 10),
        ("tmpd", "sparse-precise", 0.3, 10),
        ("sda", "sparse-precise", 0.3, 10),
        ("mmps", "dense-noisy", 0.0, 0.12),
        ("flow_dependent", "dense-noisy", 0.0, 0.01),
        ("hybrid", "dense-noisy", 0.0, 0.06),  # few members: 0.03 for exact ones
    ],
)
def test_published_biases_are_reproduced(name: str, kind: str, low: float, high: float) -> None:
    """Mean errors in posterior standard deviations (measured elsewhere: .7–.9, 1.3, .2–.8, 0)."""

    result = evaluate(name, gaussian_case(32, kind), members=512)
    assert low <= result["mean_error"] < high


def test_what_is_observed_twice_without_error_is_named() -> None:
    case = gaussian_case(8, "dense-noisy")
    H = lambda x: torch.cat((x[:, :, 0], x[:, :, 0]), dim=1)  # noqa: E731
    y = torch.arange(16).double()
    guided = guide("static", case.denoiser, Likelihood(H, y, 1e-12, (8, 3), linear=True),
                   case.covariance)  # fmt: skip
    with pytest.raises(ValueError, match="of the 16 innovations is singular.* larger std"):
        guided.denoise(noisy(case, 2, 0.5), 0.5)


@pytest.mark.parametrize("sampler", ["xeab", "heun"])
def test_the_pilots_leave_one_table_for_each_level(sampler: str) -> None:
    case = gaussian_case(4, "dense-noisy", dtype=torch.float32)
    guided = guide("flow_dependent", case.denoiser, case.likelihood, case.covariance, s_flow=200.0)
    prepare(guided, (4, 3), 0, sampler=sampler, steps=6, dtype=torch.float32)
    assert len(guided.tables()["levels"]) == 7


def test_the_pilots_tables_can_be_handed_to_another_worker() -> None:
    case = gaussian_case(8, "dense-noisy")
    options = {"steps": 12, "dtype": torch.float64}
    one = guide("flow_dependent", case.denoiser, case.likelihood, case.covariance)
    two = guide("flow_dependent", case.denoiser, case.likelihood, case.covariance)
    whole = sample(one, (8, 3), 5, 4, **options)
    two.load_tables(one.tables())
    assert two.vjps == 0
    assert torch.allclose(whole[2:], sample(two, (8, 3), 5, [2, 3], **options), atol=1e-9)
    assert two.vjps == 0


def test_pilots_are_needed() -> None:
    case = gaussian_case(8, "dense-noisy")
    guided = guide("flow_dependent", case.denoiser, case.likelihood, case.covariance)
    with pytest.raises(ValueError, match="needs its pilots"):
        guided.denoise(noisy(case, 2, 0.5), 0.5)


OPERATORS = {
    "saturating": lambda x: x[..., 0] / (1 + x[..., 0].abs()),
    "cubic": lambda x: x[..., 0] + 0.3 * x[..., 0] ** 3,
}


@pytest.mark.parametrize("name", OPERATORS)
def test_non_linear_operators_against_importance_sampling(name: str) -> None:
    case, H = gaussian_case(6, "dense-noisy"), OPERATORS[name]
    generator = torch.Generator().manual_seed(0)
    values, vectors = torch.linalg.eigh(case.covariance.dense())
    white = torch.randn(200_000, 18, generator=generator, dtype=torch.float64)
    draws = (white * values.clamp(min=0).sqrt()) @ vectors.T
    y = H(draws[7].reshape(1, 6, 3))[0]
    y = y + 0.2 * torch.randn(y.shape, generator=generator, dtype=torch.float64)
    likelihood = Likelihood(H, y, 0.2, (6, 3), linear=False)
    mean, covariance, size = importance_moments(
        likelihood.log_prob(draws.reshape(-1, 6, 3)).numpy(), draws.numpy()
    )
    assert size > 1000
    guided = guide("static", case.denoiser, likelihood, case.covariance)
    x = sample(guided, (6, 3), 0, 1024, dtype=torch.float64).flatten(1)
    std = torch.tensor(covariance).diagonal().sqrt()
    assert ((x.mean(0) - torch.tensor(mean)) / std).square().mean().sqrt() < 0.25  # linearised
    assert ((x.std(0) / std) - 1).abs().max() < 0.15


@pytest.mark.parametrize("function", [torch.atan, torch.relu], ids=["atan", "relu"])
def test_elementwise_functions_are_solved_for_as_any_other(function) -> None:
    """One factorisation per member in observation space, against conjugate gradients on the state.

    The slope of `relu` is zero for about half of the values.
    """

    case, s = gaussian_case(6, "dense-noisy"), 0.4
    affine = lambda x: 0.3 + 2 * x[:, ::2].flatten(1)  # noqa: E731
    y = torch.linspace(-1, 1, 9).double()
    args = (lambda x: function(affine(x)), y, torch.linspace(0.05, 0.3, 9).double(), (6, 3), False)
    exact = {"tolerance": 1e-12, "iterations": 2000}
    fast = guide("static", case.denoiser, Likelihood(*args, (affine, function)), case.covariance)
    slow = guide("static", case.denoiser, Likelihood(*args), case.covariance, **exact)
    assert fast.space.elementwise and not slow.space.elementwise

    x = noisy(case, 5, s)
    noises = lambda: MemberNoise(0, range(5), dtype=torch.float64)  # noqa: E731
    torch.testing.assert_close(fast.start(50.0, 5, noises()), slow.start(50.0, 5, noises()))
    found, expected = fast.analyse(x, s), slow.analyse(x, s)
    for name in ("mean", "innovation", "chi2"):
        torch.testing.assert_close(getattr(found, name), getattr(expected, name))

    members = torch.tensor([3, 0])
    chosen = lambda a: (a.take(members), x[members])  # noqa: E731
    for (a, u), (b, v) in (((found, x), (expected, x)), (chosen(found), chosen(expected))):
        one, other = fast.metric(a, kappa=4.0), slow.metric(b, kappa=4.0)
        torch.testing.assert_close(one.apply(u), other.apply(v))
        draws = [m.draw(MemberNoise(0, range(len(u)), dtype=torch.float64)) for m in (one, other)]
        torch.testing.assert_close(*draws)
        one, other = (
            m.move(z, MemberNoise(0, range(len(u)), dtype=torch.float64))
            for m, z in ((one, u), (other, v))
        )
        torch.testing.assert_close(one.square, other.square)
        steps = torch.rand(2, len(u), generator=torch.Generator().manual_seed(0)).double()
        torch.testing.assert_close(one.combine(*steps), other.combine(*steps))


def test_a_member_that_has_diverged_leaves_the_others_alone() -> None:
    case, s = gaussian_case(6, "dense-noisy"), 0.4
    affine = lambda x: x[:, ::2].flatten(1)  # noqa: E731
    likelihood = Likelihood(lambda x: affine(x).atan(), torch.zeros(9).double(), 0.1, (6, 3), False,
                            (affine, torch.atan))  # fmt: skip
    guided = guide("static", case.denoiser, likelihood, case.covariance)
    x = noisy(case, 3, s)
    alone = guided.analyse(x[:2], s).mean
    x[2, 1, 0] = math.nan
    mean = guided.analyse(x, s).mean

    assert not mean[2].isfinite().any()
    torch.testing.assert_close(mean[:2], alone)


def test_a_non_gaussian_prior_keeps_its_modes() -> None:
    """A mixture of two Gaussians, observed where both explain the observation equally."""

    class Mixture(Denoiser):
        def denoise(self, x: torch.Tensor, s: torch.Tensor) -> torch.Tensor:
            # Modes at ±(2, 2), standard deviation 0.3.
            variance = 0.3**2 + s**2
            logit = 2 * (2 * x.sum((1, 2), keepdim=True)) / variance
            weight = torch.sigmoid(logit)
            centre = 2 * (2 * weight - 1)
            return centre + 0.3**2 / variance * (x - centre)

    sigma = 4 * torch.ones(2, 2).double() + 0.09 * torch.eye(2).double()
    covariance = DenseCovariance(sigma, (1, 2), torch.float64)
    H = lambda x: x[:, 0, :1] - x[:, 0, 1:]  # noqa: E731
    likelihood = Likelihood(H, torch.tensor([0.3]).double(), 0.1, (1, 2), linear=True)
    guided = guide("static", Mixture(), likelihood, covariance)
    x = sample(guided, (1, 2), 0, 2048, dtype=torch.float64)[:, 0]
    assert abs((x.mean(1) > 0).double().mean().item() - 0.5) < 0.05
    # The difference is independent of the mode: its posterior is Gaussian.
    d = x[:, 0] - x[:, 1]
    gain = 0.18 / (0.18 + 0.01)
    assert abs(d.mean().item() - 0.3 * gain) < 0.02
    assert d.std().item() == pytest.approx(math.sqrt(0.18 * (1 - gain)), rel=0.1)


def test_errors_name_what_was_given() -> None:
    case = gaussian_case(8, "dense-noisy")
    arguments = case.denoiser, case.likelihood, case.covariance
    with pytest.raises(ValueError, match="unknown guidance 'mpps': choose one of static, flow"):
        guide("mpps", *arguments)
    with pytest.raises(TypeError):
        guide("static", *arguments, gamma=0.1)
    for name, options in (
        ("static", {"relinearisations": 0}),
        ("flow_dependent", {"pilots": 0}),
        ("flow_dependent", {"form": "sparse"}),
        ("flow_dependent", {"form": "columns", "limit": 0}),
        ("flow_dependent", {"floor": 2.0}),
        ("mmps", {"solver": "lu"}),
        ("sda", {"gamma": -1.0}),
        ("dps", {"zeta": -1.0}),
    ):
        with pytest.raises(ValueError, match=r"got|unknown"):
            guide(name, *arguments, **options)
    other = gaussian_case(9, "dense-noisy").covariance
    with pytest.raises(ValueError, match=r"\(8, 3\), but the covariance is of \(9, 3\)"):
        guide("static", GaussianDenoiser(other), case.likelihood, other)


@pytest.mark.parametrize("name", METHODS)
def test_every_guidance_is_a_denoiser(name: str) -> None:
    """Through azula's interface too."""

    case = gaussian_case(8, "dense-noisy", dtype=torch.float32)
    guided = guide(name, case.denoiser, case.likelihood, case.covariance)
    assert isinstance(guided, PosteriorDenoiser) and isinstance(guided, Denoiser)
    prepare(guided, (8, 3), 0, steps=12)
    x, t = noisy(case, 2, 1.0), torch.tensor(0.5)
    s = float(guided.schedule(t)[1])
    assert torch.allclose(guided(x, t).mean, guided.denoise(x, s), atol=1e-3)


class TwoModes(Denoiser):
    """The denoiser of two Gaussians at ±a with standard deviations 0.2, weights 0.7 and 0.3."""

    centre = torch.tensor([1.5, 0.5]).double()

    def denoise(self, x: torch.Tensor, s: torch.Tensor) -> torch.Tensor:
        variance = 0.2**2 + s**2
        logit = math.log(0.7 / 0.3) + 2 * (x * self.centre).sum(-1, keepdim=True) / variance
        centre = self.centre * (2 * torch.sigmoid(logit) - 1)
        return centre + 0.2**2 / variance * (x - centre)


def test_covariances_of_each_member_keep_the_weights_of_modes() -> None:
    """The second component is observed, roughly: it changes the weights, and leaves both modes."""

    a, y, std = TwoModes.centre, -0.3, 0.6
    moments = 0.2**2 * torch.eye(2).double() + torch.outer(a, a)  # about zero
    likelihood = Likelihood(
        lambda x: x[:, 0, 1:], torch.tensor([y]).double(), std, (1, 2), linear=True
    )
    variance = 0.2**2 + std**2
    odds = 0.7 / 0.3 * math.exp(2 * y * float(a[1]) / variance)
    errors = {}
    for name in ("static", "hybrid"):
        covariance = DenseCovariance(moments, (1, 2), torch.float64)
        guided = guide(name, TwoModes(), likelihood, covariance)
        x = sample(guided, (1, 2), 0, 2048, steps=24, dtype=torch.float64)
        errors[name] = abs((x[..., 0] > 0).double().mean().item() - odds / (1 + odds))
    assert errors["hybrid"] < 0.05
    assert errors["hybrid"] < 0.7 * errors["static"]
