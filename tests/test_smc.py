"""Particle steps: constant weights where guidance is exact, right weights where it is not."""

import math

import numpy as np
import pytest
import torch

from sda.covariance import DenseCovariance
from sda.denoiser import Denoiser, GaussianDenoiser
from sda.fidelity import gaussian_case
from sda.guidance import guide
from sda.langevin import Langevin
from sda.observation.likelihood import Likelihood
from sda.sampling import Diverged, sample
from sda.smc import ParticleStep, systematic

torch.set_num_threads(1)


def spy(options: ParticleStep, runs: list) -> ParticleStep:
    """A particle step whose runs can be looked at."""

    class Spy(ParticleStep):
        def begin(self, *args):  # noqa: ANN002, ANN202
            runs.append(super().begin(*args))
            return runs[-1]

    return Spy(options.group, options.threshold, options.divergence)


@pytest.mark.parametrize("langevin", [None, Langevin(s_max=3.0)])
def test_weights_stay_constant_where_guidance_is_exact(langevin: Langevin | None) -> None:
    case = gaussian_case(16, "sparse-precise")
    guided = guide("static", case.denoiser, case.likelihood, case.covariance)
    runs: list = []
    smc = spy(ParticleStep(threshold=0.0), runs)
    sample(guided, (16, 3), 0, 128, smc=smc, langevin=langevin, steps=48, dtype=torch.float64)
    assert min(runs[0].sizes) > 0.97  # 1, but for the discretisation


class Mixture(Denoiser):
    """Two Gaussians at ±a with standard deviations 0.2 and weights 0.7 and 0.3."""

    centre = torch.tensor([1.5, 0.5]).double()

    def denoise(self, x: torch.Tensor, s: torch.Tensor) -> torch.Tensor:
        variance = 0.2**2 + s**2
        logit = math.log(0.7 / 0.3) + 2 * (x * self.centre).sum(-1, keepdim=True) / variance
        centre = self.centre * (2 * torch.sigmoid(logit) - 1)
        return centre + 0.2**2 / variance * (x - centre)


@pytest.mark.parametrize("divergence", ["shared", "probe"])
def test_weights_of_modes(divergence: str) -> None:
    """The second component is observed, roughly: it changes the weights of the modes."""

    a = Mixture.centre
    mean = 0.4 * a
    sigma = (
        0.04 * torch.eye(2).double() + (1 - 0.4**2) * torch.outer(a, a) + torch.outer(mean, mean)
    )
    covariance = DenseCovariance(sigma, (1, 2), torch.float64)
    y, std = torch.tensor([-0.3]).double(), 0.6
    likelihood = Likelihood(lambda x: x[:, 0, 1:], y, std, (1, 2), linear=True)
    variance = 0.2**2 + std**2
    odds = 0.7 / 0.3 * math.exp(((y + a[1]) ** 2 - (y - a[1]) ** 2).item() / (2 * variance))
    exact = odds / (1 + odds)

    guided = guide("static", Mixture(), likelihood, covariance)
    options = {"steps": 24, "dtype": torch.float64}
    plain = (sample(guided, (1, 2), 0, 2048, **options)[..., 0] > 0).double().mean().item()
    smc = ParticleStep(group=512, divergence=divergence)
    x = sample(guided, (1, 2), 0, 2048, smc=smc, **options)[:, 0]
    weighted = (x[:, 0] > 0).double().mean().item()
    if divergence == "probe":
        assert abs(weighted - exact) < 0.04, (plain, weighted, exact)
        spread = x[x[:, 0] > 0]
        gain = 0.04 / variance
        assert spread[:, 0].std().item() == pytest.approx(0.2, rel=0.12)
        assert spread[:, 1].mean().item() == pytest.approx(0.5 + gain * (y.item() - 0.5), abs=0.03)
    else:
        assert abs(weighted - exact) < abs(plain - exact) + 0.03, (plain, weighted, exact)


@pytest.mark.parametrize("threshold", [0.9, 0.3])
def test_an_ensemble_does_not_depend_on_how_it_is_split(threshold: float) -> None:
    """Nor on whether another group of its block is resampled, also where H is linearised."""

    case = gaussian_case(8, "dense-noisy")
    likelihood = Likelihood(lambda x: x[..., 0] ** 3, case.likelihood.y, 0.3, (8, 3), linear=False)
    options = {
        "smc": ParticleStep(group=8, threshold=threshold), "langevin": Langevin(s_max=2.0),
        "steps": 10, "dtype": torch.float64,
    }  # fmt: skip
    guided = guide("static", case.denoiser, likelihood, case.covariance)
    whole = sample(guided, (8, 3), 1, 32, **options)
    parts = [sample(guided, (8, 3), 1, range(a, a + 8), **options) for a in range(0, 32, 8)]
    assert torch.allclose(whole, torch.cat(parts), atol=1e-6)


def test_systematic_resampling() -> None:
    rng = np.random.default_rng(0)
    weights = rng.dirichlet(np.ones(16))
    counts = np.zeros(16)
    for uniform in (np.arange(1000) + 0.5) / 1000:
        ancestors = systematic(weights, uniform)
        count = np.bincount(ancestors, minlength=16)
        assert count.sum() == 16
        assert (np.floor(16 * weights) <= count).all() and (count <= np.ceil(16 * weights)).all()
        kept = count > 0
        assert (ancestors[kept] == np.flatnonzero(kept)).all()
        counts += count / 1000
    assert np.allclose(counts, 16 * weights, atol=0.01)
    assert (systematic(np.full(8, 1 / 8), 0.3) == np.arange(8)).all()


@pytest.mark.parametrize("threshold", [0.0, 1.0])
def test_a_member_that_diverges_costs_its_group_only(threshold: float) -> None:
    class Diverging(GaussianDenoiser):
        def denoise(self, x: torch.Tensor, s: torch.Tensor) -> torch.Tensor:
            mean = super().denoise(x, s)
            return mean.index_fill(0, torch.tensor([11]), math.nan) if 0.5 < s < 1 else mean

    case = gaussian_case(8, "dense-noisy")
    guided = guide("static", Diverging(case.covariance), case.likelihood, case.covariance)
    exact = guide("static", case.denoiser, case.likelihood, case.covariance)
    options = {
        "smc": ParticleStep(group=8, threshold=threshold), "langevin": Langevin(s_max=2.0),
        "steps": 10, "dtype": torch.float64,
    }  # fmt: skip
    with pytest.raises(Diverged) as info:
        sample(guided, (8, 3), 1, 24, **options)
    failures, x = info.value.failures, info.value.trajectories
    assert sorted(failures) == list(range(8, 16)) and "member 11 diverged" in failures[11]
    assert "member 8 was weighed against one that diverged at level" in failures[8]
    assert x[8:16].isnan().all()
    others = [*range(8), *range(16, 24)]
    assert torch.allclose(x[others], sample(exact, (8, 3), 1, 24, **options)[others], atol=1e-9)


def test_bad_options() -> None:
    case = gaussian_case(4, "dense-noisy", dtype=torch.float32)
    guided = guide("static", case.denoiser, case.likelihood, case.covariance)
    with pytest.raises(ValueError, match=r"only 10 of 0 … 63 are in this block"):
        sample(guided, (4, 3), 0, 10, smc=ParticleStep())
    with pytest.raises(ValueError, match="without noise of its own"):
        sample(guided, (4, 3), 0, 64, smc=ParticleStep(), sampler="ddpm")
    with pytest.raises(ValueError, match="'static' or 'flow_dependent', got GaussianDenoiser"):
        sample(case.denoiser, (4, 3), 0, 64, smc=ParticleStep())
    for options in ({"group": 1}, {"threshold": 2.0}, {"divergence": "exact"}):
        with pytest.raises(ValueError, match=r"at least|must be|unknown"):
            ParticleStep(**options)
