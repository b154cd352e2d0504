"""Pseudoinverse-guided diffusion, with observation noise.

    p(X | x) ≈ N(D, r² I),    r² = s² / (1 + s²)
    E[X | x, y] ≈ D + s² (∂D/∂x)ᵀ Hᵀ (r² H Hᵀ + R)⁻¹ (y − H D)

The prior is taken to be white with unit variance. Without observation noise the inverse is the
pseudo-inverse of `H`, hence the name.

References:
    Pseudoinverse-Guided Diffusion Models for Inverse Problems (Song et al., 2023), equation 7
"""

import torch
from torch import Tensor

from .base import Analysis, PosteriorDenoiser
from .solver import Tangent


class PGDMGuidance(PosteriorDenoiser):
    """Guidance with an isotropic covariance.

    Arguments:
        denoiser: The denoiser of the prior.
        likelihood: The likelihood of the observations, over normalised anomalies.
        covariance: The climatological covariance, for Langevin steps; its values are not used here.
        options: See `PosteriorDenoiser`.

    Raises:
        ValueError: If the shapes differ.
    """

    def analyse(self, x: Tensor, s: float) -> Analysis:
        mean, vjp = self.recorded(x, s)
        tangent = Tangent(*self.likelihood.linearise(mean))
        e = self.likelihood.y - tangent.value
        variance = s**2 / (1 + s**2)
        v = self.space.solve(
            lambda eigenvalues: torch.full_like(eigenvalues, variance), e, tangent, ("white", s)
        )

        return Analysis(mean + s**2 * vjp(tangent.vjp(v)), mean, e, s, tangent, (e * v).sum(1))
