"""The guidance of score-based data assimilation.

    p(y | x) ≈ N(y | H D, R + γ s² diag(H Σ Hᵀ)),    E[X | x, y] ≈ D + s² ∇ₓ log p(y | x)

The covariance of the background in observation space is taken to be diagonal and proportional to
`s²`. `γ` is in units of the climatological variance of what is observed, which is one where a
normalised variable is observed directly, as in the paper.

References:
    Score-based Data Assimilation (Rozet and Louppe, 2023), arXiv 2306.10574
"""

from typing import Any

from torch import Tensor

from ..covariance import Covariance
from ..denoiser import Denoiser
from .base import Analysis, PosteriorDenoiser
from .solver import Tangent


class SDAGuidance(PosteriorDenoiser):
    """Guidance with a diagonal covariance in observation space.

    Arguments:
        denoiser: The denoiser of the prior.
        likelihood: The likelihood of the observations, over normalised anomalies.
        covariance: The climatological covariance, for the unit of `gamma` and Langevin steps.
        gamma: The variance `γ` of the background over `s²`.
        options: See `PosteriorDenoiser`.

    Raises:
        ValueError: If the shapes differ, or `gamma` is negative.
    """

    def __init__(
        self,
        denoiser: Denoiser,
        likelihood: Any,
        covariance: Covariance,
        gamma: float = 1e-2,
        **options: Any,
    ) -> None:
        super().__init__(denoiser, likelihood, covariance, **options)
        if gamma < 0:
            raise ValueError(f"gamma must not be negative, got {gamma}")
        self.gamma = gamma

    def analyse(self, x: Tensor, s: float) -> Analysis:
        mean, vjp = self.recorded(x, s)
        tangent = Tangent(*self.likelihood.linearise(mean))
        e = self.likelihood.y - tangent.value
        variance = self.likelihood.std**2 + self.gamma * s**2 * self.observed_variance
        v = e / variance

        return Analysis(mean + s**2 * vjp(tangent.vjp(v)), mean, e, s, tangent, (e * v).sum(1))
