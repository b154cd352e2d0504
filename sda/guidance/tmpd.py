"""Tweedie moment projected diffusion.

    E[X | x, y] ≈ D + s² (∂D/∂x)ᵀ Hᵀ v,    v = (y − H D) / (R + s² H (∂D/∂x)ᵀ Hᵀ 1)

The covariance `H Cov[X | x] Hᵀ` is replaced by the diagonal matrix of its row sums.

References:
    Tweedie Moment Projected Diffusions For Inverse Problems (Boys et al., 2023), arXiv 2310.06721
"""

import torch
from torch import Tensor

from .base import Analysis, PosteriorDenoiser
from .solver import Tangent


class TMPDGuidance(PosteriorDenoiser):
    """Guidance with the row sums of the Jacobian of the denoiser at each member.

    Row sums can be negative, where a variance cannot: they are clipped at zero.

    Arguments:
        denoiser: The denoiser of the prior.
        likelihood: The likelihood of the observations, over normalised anomalies.
        covariance: The climatological covariance, for Langevin steps.
        options: See `PosteriorDenoiser`.

    Raises:
        ValueError: If the shapes differ.
    """

    def analyse(self, x: Tensor, s: float) -> Analysis:
        mean, vjp = self.recorded(x, s)
        tangent = Tangent(*self.likelihood.linearise(mean))
        e = self.likelihood.y - tangent.value
        sums = s**2 * tangent.jvp(vjp(tangent.vjp(torch.ones_like(e))))
        v = e / (self.likelihood.std**2 + sums.clamp(min=0))

        return Analysis(mean + s**2 * vjp(tangent.vjp(v)), mean, e, s, tangent, (e * v).sum(1))
