"""Diffusion posterior sampling.

    E[X | x, y] ≈ D − ζ (1 + s²) ∇ₓ ‖(y − H D) / u‖

A step of fixed length down the norm of the innovation; `u` is the climatological standard deviation
of what is observed. In the paper a step is `ζ` per step of a variance-preserving sampler, hence the
factor `1 + s² = 1 / α²`. The observation noise plays no part. The norm is that of one member: over
a whole batch, the strength of the guidance would depend on the batch size.

References:
    Diffusion Posterior Sampling for General Noisy Inverse Problems (Chung et al., 2022),
    arXiv 2209.14687
"""

from typing import Any

import torch
from torch import Tensor

from ..covariance import Covariance
from ..denoiser import Denoiser
from .base import Analysis, PosteriorDenoiser
from .solver import Tangent


class DPSGuidance(PosteriorDenoiser):
    """Guidance by the gradient of the norm of each member's innovation.

    Arguments:
        denoiser: The denoiser of the prior.
        likelihood: The likelihood of the observations, over normalised anomalies.
        covariance: The climatological covariance, for the unit `u` and Langevin steps.
        zeta: The strength `ζ`.
        options: See `PosteriorDenoiser`.

    Raises:
        ValueError: If the shapes differ, or `zeta` is negative.
    """

    def __init__(
        self,
        denoiser: Denoiser,
        likelihood: Any,
        covariance: Covariance,
        zeta: float = 1.0,
        **options: Any,
    ) -> None:
        super().__init__(denoiser, likelihood, covariance, **options)
        if zeta < 0:
            raise ValueError(f"zeta must not be negative, got {zeta}")
        self.zeta = zeta

    def analyse(self, x: Tensor, s: float) -> Analysis:
        mean, vjp = self.recorded(x, s)
        tangent = Tangent(*self.likelihood.linearise(mean))
        e = self.likelihood.y - tangent.value
        unit = self.observed_variance
        norm = (e.square() / unit).sum(1, keepdim=True).sqrt()
        v = e / unit / norm.clamp(min=torch.finfo(e.dtype).tiny)

        return Analysis(mean + self.zeta * (1 + s**2) * vjp(tangent.vjp(v)), mean, e, s, tangent)
