"""The exposure correction: a denoiser that smooths too much, and its cure."""

import pytest
import torch
from torch import Tensor

from dynamics import Lorenz96
from sda.climatology import Climatology
from sda.denoiser import Denoiser
from sda.exposure import _twins, calibrate, energy
from sda.prior import Prior
from sda.sampling import sample


class Smoothing(Denoiser):
    """The Wiener filter of windows, less a share of what it takes from the noisy window."""

    preconditioning = "karras"

    def __init__(self, climatology: Climatology, share: float) -> None:
        super().__init__()
        self.window, self.share = 4, share
        self.covariance = climatology.covariance(4)

    def denoise(self, x: Tensor, s: Tensor | float) -> Tensor:
        s = torch.as_tensor(s, dtype=x.dtype)

        # Shrinks where signal and noise are of the same size, as an undertrained network does.
        def weight(e: Tensor) -> Tensor:
            w = e / (e + s**2)
            return w - self.share * w * (1 - w)

        return self.covariance.apply(weight, x)


@pytest.fixture(scope="module")
def climatology() -> Climatology:
    data = Lorenz96(dimension=12).simulate(members=16, length=200, spinup=200, seed=0)

    return Climatology.fit(data, 4)


def test_energy_is_one_for_the_climatology_and_scales(climatology: Climatology) -> None:
    noise = torch.randn(2000, 4, 1, 12, generator=torch.Generator().manual_seed(0))
    x = climatology.covariance(4).sample(noise)

    assert energy(x, climatology) == pytest.approx(1, abs=0.02)
    assert energy(0.8 * x, climatology) == pytest.approx(0.64, abs=0.02)


def test_smoothing_is_found_and_cured(climatology: Climatology) -> None:
    prior = Prior(climatology, Smoothing(climatology, 0.1))  # type: ignore[arg-type]

    def sampled(members: int = 400) -> float:
        return energy(sample(prior.trajectory(4), (4, 1, 12), 1, members), climatology)

    before = sampled()
    prior.exposure = calibrate(prior, members=200)
    after = sampled()

    assert before < 0.9 and 0.01 < prior.exposure < 0.15
    assert after == pytest.approx(1, abs=0.04)


def twins(climatology: Climatology, members: int, seed: int) -> Tensor:
    noise = torch.randn(members, 4, 1, 12, generator=torch.Generator().manual_seed(seed))
    return climatology.covariance(4).sample(noise)


def test_posteriors_are_cured_of_smoothing_by_twins(climatology: Climatology) -> None:
    prior = Prior(climatology, Smoothing(climatology, 0.1))  # type: ignore[arg-type]
    others = twins(climatology, 300, 1)

    def lacking() -> float:
        return energy(_twins(prior, others, 1)(prior), climatology) / energy(others, climatology)

    before = lacking()
    prior.exposure = calibrate(prior, truths=twins(climatology, 200, 0))
    assert before < 0.93 and 0.01 < prior.exposure < 0.25
    assert lacking() == pytest.approx(1, abs=0.04)


def test_twins_of_an_exact_denoiser_need_no_correction(climatology: Climatology) -> None:
    prior = Prior(climatology, Smoothing(climatology, 0.0))  # type: ignore[arg-type]
    assert calibrate(prior, truths=twins(climatology, 200, 0)) < 0.02


def test_an_exact_denoiser_needs_no_correction(climatology: Climatology) -> None:
    prior = Prior(climatology, Smoothing(climatology, 0.0))  # type: ignore[arg-type]
    assert calibrate(prior, members=200) < 0.01


def test_gaussian_priors_have_none(climatology: Climatology) -> None:
    with pytest.raises(ValueError, match="no exposure bias"):
        calibrate(Prior(climatology))
    prior = Prior(climatology, Smoothing(climatology, 0.0))  # type: ignore[arg-type]
    with pytest.raises(ValueError, match=r"at least the 4 states of a window, got \(5, 3, 1, 12\)"):
        calibrate(prior, truths=torch.zeros(5, 3, 1, 12))
    with pytest.raises(ValueError, match="exposure must be in"):
        Prior(climatology, Smoothing(climatology, 0.0), exposure=2.0).trajectory(8)  # type: ignore[arg-type]
