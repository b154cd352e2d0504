"""Guidance with the climatological space-time covariance.

    C(s) = (Σ⁻¹ + I / s²)⁻¹,    E[X | x, y] ≈ D + C Hᵀ (H C Hᵀ + R)⁻¹ (y − H D)

The covariance of the denoiser's error is taken to be that of the Gaussian prior `N(0, Σ)`, as in
optimal interpolation. It does not depend on the member: no vector–Jacobian product is needed, and
for linear `H` the gain is one small matrix per noise level. Exact for Gaussian priors.

References:
    Jacobian-free posterior sampling, with the full space-time covariance in place of a diagonal:
    azula (Rozet, 2024), `azula.guidance.JFPSDenoiser`
"""

from typing import Any

import torch
from torch import Tensor

from ..covariance import Covariance
from ..denoiser import Denoiser
from .base import Analysis, PosteriorDenoiser, wiener
from .solver import ObservationSpace, Tangent, required, required_slope

# The analyses of a noise level from which the weights of errors that are not Gaussian follow.
REWEIGHTED = 6


class StaticGuidance(PosteriorDenoiser):
    """Guidance with the climatological covariance, shared by all members.

    A non-linear `H` is linearised at the background of each member. Errors that are not Gaussian
    are weighted at each level, for each member, see `ObservationSpace.reweighted`.

    Arguments:
        denoiser: The denoiser of the prior.
        likelihood: The likelihood of the observations, over normalised anomalies.
        covariance: The climatological covariance of the trajectory.
        relinearisations: For non-linear `H`, how often it is linearised: more than once is the
            Gauss–Newton method, `x ← D + K(x) (y − H(x) − ∂H(x) (D − x))`.
        options: See `PosteriorDenoiser`.

    Raises:
        ValueError: If the shapes differ, or `relinearisations` is not positive.
    """

    twisted = True
    takes_robust = True

    def __init__(
        self,
        denoiser: Denoiser,
        likelihood: Any,
        covariance: Covariance,
        relinearisations: int = 3,
        **options: Any,
    ) -> None:
        super().__init__(denoiser, likelihood, covariance, **options)
        if relinearisations < 1:
            raise ValueError(f"relinearisations must be at least 1, got {relinearisations}")
        self.relinearisations = 1 if likelihood.linear else relinearisations
        if getattr(likelihood, "robust", None) is not None:
            self.twisted = False

    @torch.no_grad()
    def analyse(self, x: Tensor, s: float) -> Analysis:
        return self.update(self.background(x, s), s)

    def update(
        self, background: Tensor, s: float, space: ObservationSpace | None = None
    ) -> Analysis:
        """Updates a prior mean `D(x, s)` with the observations.

        Arguments:
            background: The prior mean, with shape `(member, *shape)`.
            s: The noise level.
            space: The systems to solve, if not those of the climatological covariance.
        """

        space = space or self.space
        if space.robust is not None:
            return self._update_robust(background, s, space)
        if space.elementwise:
            return self._update_elementwise(background, s, space)
        mean, tangent, innovations = background, None, []
        point = background
        for _ in range(self.relinearisations):
            if space.direct:
                value = self.likelihood.H(mean)
            else:
                tangent = space.linearise(mean)
                value, point = tangent.value, mean
            if mean is not background:
                value = value + required(tangent).jvp(background - mean)
            innovations.append(self.likelihood.y - value)
            v = space.solve(wiener(s), innovations[-1], tangent, ("innovation", s))
            mean = background + space.adjoint(wiener(s), v, tangent)

        chi2 = (innovations[-1] * v).sum(1)

        return Analysis(mean, background, innovations[0], s, tangent, chi2, space, point)

    def _update_elementwise(
        self, background: Tensor, s: float, space: ObservationSpace
    ) -> Analysis:
        """The same for `H(x) = φ(A x)`: the Gauss–Newton method runs in observation space.

        It needs no more of a state than `z = A x`, whose increment is `A C Aᵀ φ′ v`.
        """

        key = ("innovation", s)
        gram = space.shared(wiener(s), key).to(background.dtype)
        start = z = space.affine(background)
        innovations = []
        for _ in range(self.relinearisations):
            tangent = space.tangent(z)
            slope = required_slope(tangent)
            innovations.append(self.likelihood.y - tangent.value - slope * (start - z))
            v = space.solve(wiener(s), innovations[-1], tangent, key)
            z = start + (slope * v) @ gram
        mean = background + space.adjoint(wiener(s), v, tangent)
        chi2 = (innovations[-1] * v).sum(1)

        return Analysis(mean, background, innovations[0], s, tangent, chi2, space)

    def _update_robust(self, background: Tensor, s: float, space: ObservationSpace) -> Analysis:
        """The same where errors are not Gaussian."""

        start = space.affine(background) if space.elementwise else background
        tangent, e, v = space.reweighted(
            start, start, wiener(s), ("innovation", s), max(REWEIGHTED, self.relinearisations)
        )
        mean = background + space.adjoint(wiener(s), v, tangent)

        return Analysis(mean, background, e, s, tangent, (e * v).sum(1), space, mean)

    def _tangent(self, analysis: Analysis) -> Tangent | None:
        space = analysis.gain if isinstance(analysis.gain, ObservationSpace) else self.space
        if analysis.tangent is None and space.robust is not None:
            # Some members of an analysis: the weights are those of its mean.
            plain = space.likelihood_tangent(analysis.mean)
            square = ((self.likelihood.y - plain.value) / space.std).square()
            analysis.tangent = plain.weighted(space.robust.weights(square).sqrt())

        return super()._tangent(analysis)

    def probe(self, analysis: Analysis, eta: Tensor) -> tuple[Tensor, Tensor]:
        """`Hᵀ v` and `C Hᵀ v` for `v = L⁻ᵀ η`, `S = L Lᵀ`, both with shape `(member, *shape)`.

        Arguments:
            analysis: The analysis.
            eta: White noise, with shape `(member, m)`.

        Raises:
            ValueError: If `S` was not factorised.
        """

        space = analysis.gain
        if not isinstance(space, ObservationSpace) or not space.direct:
            raise ValueError(
                "divergence 'probe' needs a linear H and the direct solve: use 'shared', or raise "
                "the guidance's 'limit'"
            )
        factor = space.factor(wiener(analysis.s), ("innovation", analysis.s))
        v = torch.linalg.solve_triangular(factor.T, eta.double().T, upper=True).T.to(eta.dtype)

        return self.likelihood.adjoint(v), space.adjoint(wiener(analysis.s), v, None)
