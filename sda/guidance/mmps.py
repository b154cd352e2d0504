"""Moment matching posterior sampling.

    C(x, s) = s² ∂D/∂x,    v = (H C Hᵀ + R)⁻¹ (y − H D),    E[X | x, y] ≈ D + s² (∂D/∂x)ᵀ Hᵀ v

By Tweedie's formula `s² ∂D/∂x` is exactly `Cov[X | x]`. The system is solved for each member by a
few iterations, each with one vector–Jacobian product.

References:
    Learning Diffusion Priors from Observations by Expectation Maximization (Rozet et al., 2024),
    arXiv 2405.13712
"""

from typing import Any

from torch import Tensor

from ..covariance import Covariance
from ..denoiser import Denoiser
from .base import Analysis, PosteriorDenoiser
from .solver import Tangent, conjugate_gradients, gmres

SOLVERS = ("gmres", "cg")


class MMPSGuidance(PosteriorDenoiser):
    """Guidance with the Jacobian of the denoiser at each member.

    Arguments:
        denoiser: The denoiser of the prior.
        likelihood: The likelihood of the observations, over normalised anomalies.
        covariance: The climatological covariance, for Langevin steps.
        solves: The number of solver iterations. Few are safer: the Jacobian of a learned denoiser
            is not quite symmetric positive definite, and an exact solve over composed windows
            diverges.
        solver: `gmres` or `cg`.
        options: See `PosteriorDenoiser`.

    Raises:
        ValueError: If the shapes differ, the solver is unknown, or `solves` is not positive.
    """

    def __init__(
        self,
        denoiser: Denoiser,
        likelihood: Any,
        covariance: Covariance,
        solves: int = 4,
        solver: str = "gmres",
        **options: Any,
    ) -> None:
        super().__init__(denoiser, likelihood, covariance, **options)
        if solver not in SOLVERS:
            raise ValueError(f"unknown solver {solver!r}: choose one of {', '.join(SOLVERS)}")
        if solves < 1:
            raise ValueError(f"solves must be at least 1, got {solves}")
        self.solves = solves
        self.solver = solver

    def analyse(self, x: Tensor, s: float) -> Analysis:
        mean, vjp = self.recorded(x, s)
        std = self.likelihood.std
        tangent = Tangent(*self.likelihood.linearise(mean))
        e = self.likelihood.y - tangent.value

        def operator(v: Tensor) -> Tensor:
            return v + s**2 * tangent.jvp(vjp(tangent.vjp(v / std))) / std

        if self.solver == "cg":
            v = conjugate_gradients(operator, e / std, 0.0, self.solves)
        else:
            v = gmres(operator, e / std, self.solves)
        v = v / std

        return Analysis(mean + s**2 * vjp(tangent.vjp(v)), mean, e, s, tangent, (e * v).sum(1))
