"""Denoisers of trajectories.

A denoiser estimates a trajectory from a noisy one. All of this engine's denoisers have azula's
interface, `denoiser(x_t, t).mean` with a noise schedule `x_t = α_t x + σ_t ε`, and one method more,
in which they are written: with the noise level `s = σ_t / α_t`,

.. math:: D(x_s, s) = E[x \\mid x + s \\, \\varepsilon = x_s],

on normalised anomalies with shape `(B, time, channel, *space)`. The score follows from it,
`∇ log p_s(x_s) = (D(x_s, s) − x_s) / s²` (Tweedie's formula).
"""

import abc

import torch
from azula.denoise import Denoiser as AzulaDenoiser
from azula.denoise import DiracPosterior, Posterior
from azula.noise import Schedule, VESchedule
from torch import Tensor

from .covariance import Covariance


class Denoiser(AzulaDenoiser):
    """A denoiser with a method for every noise level.

    Attributes:
        schedule: The noise schedule of azula's interface. `denoise` does not depend on it.
    """

    def __init__(self, schedule: Schedule | None = None) -> None:
        super().__init__()
        self.schedule = schedule or VESchedule(sigma_min=1e-3, sigma_max=1e3)

    @abc.abstractmethod
    def denoise(self, x: Tensor, s: Tensor | float) -> Tensor:
        """Estimates the mean of the clean trajectories.

        Arguments:
            x: Noisy trajectories, clean plus `s` times standard normal noise, with shape
                `(B, time, channel, *space)`.
            s: The noise level, positive, with shape `()` or `(B)`.

        Returns:
            The estimates, with the shape of `x`.
        """

    def forward(self, x_t: Tensor, t: Tensor, **kwargs: object) -> Posterior:
        """Azula's interface: the posterior given `x_t` at diffusion time `t`, `()` or `(B)`."""

        alpha, sigma = self.schedule(t)
        s = sigma / alpha
        while alpha.ndim and alpha.ndim < x_t.ndim:
            alpha = alpha[..., None]

        return DiracPosterior(mean=self.denoise(x_t / alpha, s))


class GaussianDenoiser(Denoiser):
    """The exact denoiser of N(0, Σ): the Wiener filter `Σ (Σ + s²)⁻¹ x`.

    Arguments:
        covariance: The covariance Σ of whole trajectories.
    """

    def __init__(self, covariance: Covariance, schedule: Schedule | None = None) -> None:
        super().__init__(schedule)
        self.covariance = covariance

    def denoise(self, x: Tensor, s: Tensor | float) -> Tensor:
        return self.covariance.wiener(x, s)


class ForeignDenoiser(Denoiser):
    """Gives any of azula's denoisers the method `denoise`.

    Arguments:
        denoiser: The denoiser; its schedule must be such that σ_t / α_t increases with t in [0, 1].
    """

    def __init__(self, denoiser: AzulaDenoiser) -> None:
        super().__init__(denoiser.schedule)
        self.inner = denoiser

    def denoise(self, x: Tensor, s: Tensor | float) -> Tensor:
        s = torch.as_tensor(s, dtype=torch.float64, device=x.device)
        t = self._time(s.flatten()).reshape(s.shape)
        alpha, _ = self.schedule(t)
        while alpha.ndim and alpha.ndim < x.ndim:
            alpha = alpha[..., None]

        return self.inner((alpha * x).to(x.dtype), t.to(x.dtype)).mean

    def _time(self, s: Tensor) -> Tensor:
        """Solves `σ_t / α_t = s` by bisection.

        Raises:
            ValueError: If a noise level is not on the schedule.
        """

        ends = torch.tensor([0.0, 1.0], dtype=torch.float64, device=s.device)
        alpha, sigma = self.schedule(ends)
        lowest, highest = (sigma / alpha).tolist()
        if (s < lowest * (1 - 1e-9)).any() or (s > highest * (1 + 1e-9)).any():
            raise ValueError(
                f"the denoiser's schedule has noise levels in [{lowest:g}, {highest:g}], asked for "
                f"[{s.min():g}, {s.max():g}]: choose s_min and s_max within"
            )
        low, high = torch.zeros_like(s), torch.ones_like(s)
        for _ in range(60):
            middle = (low + high) / 2
            alpha, sigma = self.schedule(middle)
            above = sigma / alpha > s
            low, high = torch.where(above, low, middle), torch.where(above, middle, high)

        return (low + high) / 2


def as_denoiser(denoiser: AzulaDenoiser) -> Denoiser:
    """Makes any of azula's denoisers one of ours; ours pass unchanged.

    Raises:
        TypeError: If it is no denoiser.
    """

    if isinstance(denoiser, Denoiser):
        return denoiser
    if isinstance(denoiser, AzulaDenoiser):
        return ForeignDenoiser(denoiser)

    raise TypeError(f"expected a denoiser with azula's interface, got {type(denoiser).__name__}")


def level(s: Tensor | float, x: Tensor) -> Tensor:
    """A noise level, or one for each of a batch, as a tensor beside `x`.

    A number is filled in where `x` is: it is not copied there, which a GPU's host would wait for.
    """

    return s.to(x) if torch.is_tensor(s) else x.new_full((), s)


def levels(s: Tensor | float, x: Tensor) -> Tensor:
    """Noise levels as a vector `(B)` beside a batch `x`."""

    s = level(s, x)

    return s.expand(len(x)) if s.ndim == 0 else s


def broadcast(s: Tensor, x: Tensor) -> Tensor:
    """Appends axes to `s`, `(B)`, until it broadcasts against `x`, `(B, …)`."""
    return s.reshape(-1, *[1] * (x.ndim - 1))
