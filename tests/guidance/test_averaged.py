"""The prior's average error covariance, and what the guidance that shares it does."""

import math

import pytest
import torch

from sda.covariance import Covariance, LowRankCovariance, SpectralCovariance
from sda.denoiser import Denoiser
from sda.fidelity import gaussian_case
from sda.guidance import guide
from sda.guidance.averaged import AveragedGuidance, ErrorCovariances
from sda.guidance.base import wiener
from sda.observation.likelihood import Likelihood
from sda.sampling import sample

torch.set_num_threads(1)


class Opaque(Denoiser):
    """A Gaussian prior's denoiser that nobody knows to be one."""

    def __init__(self, covariance: Covariance) -> None:
        super().__init__()
        self.hidden = [covariance]

    def denoise(self, x: torch.Tensor, s: torch.Tensor | float) -> torch.Tensor:
        return self.hidden[0].wiener(x, s)


def travelling_waves() -> SpectralCovariance:
    """Four frames of two variables on a circle, with complex covariances between frames."""

    time, wave = torch.arange(4).double(), torch.arange(5).double()
    lag = time[:, None] - time
    decay = torch.exp(-0.3 * lag.abs()) * torch.exp(-0.3 * wave[:, None, None])
    frames = torch.polar(decay, wave[:, None, None] * lag * 0.4)
    pair = torch.tensor([[1.0, 0.5], [0.5, 0.8]], dtype=torch.complex128)
    blocks = torch.einsum("kij,ab->kiajb", frames, pair).reshape(5, 8, 8)
    blocks[[0, -1]] = blocks[[0, -1]].real.to(blocks)

    return SpectralCovariance(blocks, (4, 2, 8))


@pytest.mark.parametrize("kind", ["dense", "spectral"])
@pytest.mark.parametrize("s", [0.1, 1.0, 5.0])
def test_average_errors_of_a_gaussian_prior(kind: str, s: float) -> None:
    """They are `(Σ⁻¹ + I / s²)⁻¹`, as a metric of relative errors sees it."""

    dense = gaussian_case(8, "dense-noisy", dtype=torch.float32).covariance
    covariance: Covariance = dense if kind == "dense" else travelling_waves()
    estimated = ErrorCovariances(Opaque(covariance), covariance, draws=2).at(s)
    eye = torch.eye(math.prod(covariance.shape)).reshape(-1, *covariance.shape)
    exact = covariance.apply(wiener(s), eye).flatten(1).double()
    found = estimated.apply(wiener(s), eye).flatten(1).double()
    values, vectors = torch.linalg.eigh((exact + exact.T) / 2)
    keep = values > 1e-4 * values.max()
    root = vectors[:, keep] / values[keep].sqrt()
    ratio = torch.linalg.eigvalsh(root.T @ found @ root)
    assert ratio.min() > 0.99 and ratio.max() < 1.01


def test_levels_do_not_depend_on_which_came_before() -> None:
    case = gaussian_case(4, "dense-noisy", dtype=torch.float32)
    one, two = (ErrorCovariances(Opaque(case.covariance), case.covariance) for _ in range(2))
    one.at(3.0)
    assert torch.equal(one.at(0.3).eigenvalues, two.at(0.3).eigenvalues)
    assert one.at(0.3) is one.at(0.3)


def test_the_posterior_does_not_depend_on_the_average() -> None:
    """It preconditions: with as many iterations as observations, any average gives the same."""

    case = gaussian_case(8, "sparse-precise", dtype=torch.float64)
    opaque = Opaque(case.covariance)
    m = len(case.likelihood.y)
    draws = [
        guide("averaged", opaque, case.likelihood, case.covariance, solves=m, s_high=200.0,
              errors=ErrorCovariances(opaque, case.covariance, draws=n))
        for n in (1, 16)
    ]  # fmt: skip
    a, b = (sample(each, (8, 3), 0, 16, steps=12, dtype=torch.float64) for each in draws)
    assert torch.allclose(a, b, atol=1e-3)


def test_what_is_not_linear_is_static() -> None:
    case = gaussian_case(6, "dense-noisy", dtype=torch.float32)
    y = torch.ones(6)
    H = lambda x: x[:, :, 0] ** 2  # noqa: E731
    likelihood = Likelihood(H, y, 0.1, (6, 3), linear=False)
    pair = [guide(n, case.denoiser, likelihood, case.covariance) for n in ("averaged", "static")]
    a, b = (sample(each, (6, 3), 0, 4, steps=6) for each in pair)
    assert torch.equal(a, b)
    assert pair[0].vjps == pair[1].vjps


def test_bad_arguments() -> None:
    case = gaussian_case(4, "dense-noisy", dtype=torch.float32)
    given = (case.denoiser, case.likelihood, case.covariance)
    with pytest.raises(ValueError, match="solves must be at least 1, got 0"):
        guide("averaged", *given, solves=0)
    with pytest.raises(ValueError, match="0 <= s_low <= s_high, got 2 and 1"):
        guide("averaged", *given, s_low=2, s_high=1)
    low = LowRankCovariance(torch.eye(12)[:, :3], torch.ones(3), 0.1, (4, 3))
    with pytest.raises(ValueError, match="a dense or a spectral covariance, got LowRankCov"):
        AveragedGuidance(case.denoiser, case.likelihood, low)
    with pytest.raises(ValueError, match="draws must be at least 1"):
        ErrorCovariances(case.denoiser, case.covariance, draws=0)
    moved = Opaque(case.covariance)
    moved.mean = torch.zeros(1, 4, 3)
    with pytest.raises(ValueError, match="for whole trajectories"):
        AveragedGuidance(moved, case.likelihood, case.covariance)
