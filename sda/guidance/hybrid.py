"""Guidance with each member's own covariance, solved with the help of a shared one.

    C(x, s) = s² ∂D/∂x,    S v = y − H D,    S = H C Hᵀ + R,    E[X | x, y] ≈ D + C Hᵀ v

as in moment matching, where the flow-dependent covariance of a few pilots, `S₀ = L Lᵀ`, does two
things. It preconditions the solve, `L⁻¹ S L⁻ᵀ (Lᵀ v) = L⁻¹ (y − H D)`, so that two iterations do
what many do without it; and it is the metric of Langevin steps. Members in different modes have
covariances of their own, which a shared one cannot have: this guidance keeps the weights of modes.

References:
    Hybrid variational–ensemble covariances: Bannister (2017), A review of operational methods of
    variational and ensemble-variational data assimilation
    Cov[X | x] by Tweedie's formula: Rozet et al. (2024), arXiv 2405.13712
"""

from typing import Any

import torch
from torch import Tensor

from ..covariance import Covariance
from ..denoiser import Denoiser
from .base import Analysis, wiener
from .flow_dependent import FlowDependentGuidance
from .solver import ObservationSpace, Tangent, krylov, weighted
from .static import StaticGuidance


class HybridGuidance(FlowDependentGuidance):
    """Moment matching per member, preconditioned by the covariance of a few pilots.

    It is `flow_dependent` outside of the levels where members have their own covariance, and
    everywhere if `H` is not linear, or if trajectories or observations are too many for the dense
    form and the direct solve.

    Arguments:
        denoiser: The denoiser of the prior.
        likelihood: The likelihood of the observations, over normalised anomalies.
        covariance: The climatological covariance of the trajectory.
        solves: The number of solver iterations, with one vector–Jacobian product of every member
            each.
        s_low: The smallest noise level with a covariance for each member.
        s_high: The largest.
        options: See `FlowDependentGuidance`.

    Raises:
        ValueError: If an option is out of range.
    """

    twisted = False

    def __init__(
        self,
        denoiser: Denoiser,
        likelihood: Any,
        covariance: Covariance,
        solves: int = 2,
        s_low: float = 0.05,
        s_high: float = 20.0,
        **options: Any,
    ) -> None:
        super().__init__(denoiser, likelihood, covariance, **options)
        check_range(solves, s_low, s_high)
        self.solves = solves
        self.s_low, self.s_high = s_low, s_high
        self.own = self.form == "dense" and self.space.direct

    def analyse(self, x: Tensor, s: float) -> Analysis:
        if not (self.own and self.s_low <= s <= self.s_high):
            return super().analyse(x, s)

        return solve_each(self, x, s, self._shared(x, s), self.solves)

    def _shared(self, x: Tensor, s: float) -> ObservationSpace:
        """The systems of the covariance that all members share at a level."""

        if s > self.s_flow:
            return self.space
        if self._recording:
            self._record(x, s)
        self._require()
        gain = self._gain(s) if self._table else self.space
        assert isinstance(gain, ObservationSpace)  # the dense form has no other

        return gain


def solve_each(
    guidance: StaticGuidance, x: Tensor, s: float, space: ObservationSpace, solves: int
) -> Analysis:
    """An analysis with each member's own covariance, preconditioned by a shared one.

    The increment `C Hᵀ v` is put together from what the solver has applied `C Hᵀ` to: it costs no
    product of its own.

    Arguments:
        guidance: The guidance, with a linear `H`.
        x: The noisy trajectories, with shape `(member, *shape)`.
        s: The noise level.
        space: The systems of the shared covariance, which are solved directly.
        solves: The number of solver iterations.
    """

    factor = space.factor(wiener(s), ("innovation", s)).to(x.dtype)
    mean, vjp = guidance.recorded(x, s)
    tangent = Tangent(*guidance.likelihood.linearise(mean))
    e = guidance.likelihood.y - tangent.value
    variance = guidance.likelihood.std**2
    increments: list[Tensor] = []

    def inverse(v: Tensor, transposed: bool = False) -> Tensor:
        root = factor.T if transposed else factor
        return torch.linalg.solve_triangular(root, v.T, upper=transposed).T

    def operator(u: Tensor) -> Tensor:
        v = inverse(u, transposed=True)
        increments.append(s**2 * vjp(tangent.vjp(v)))
        return inverse(variance * v + tangent.jvp(increments[-1]))

    basis, weights = krylov(operator, inverse(e), solves)
    v = inverse(weighted(weights, basis), transposed=True)
    increment = weighted(weights, increments)
    # `‖R^½ v‖ ≤ ‖R^{-½} e‖` for any covariance. A Jacobian far from the prior's states is none.
    std = guidance.likelihood.std
    wrong = ~((v * std).norm(dim=1) <= 1.01 * (e / std).norm(dim=1))
    if wrong.any():
        shared = space.solve(wiener(s), e, None, ("innovation", s))
        wrong = wrong.reshape(-1, *[1] * (x.ndim - 1))
        increment = torch.where(wrong, space.adjoint(wiener(s), shared, None), increment)
        v = torch.where(wrong.reshape(-1, 1), shared, v)

    return Analysis(mean + increment, mean, e, s, tangent, (e * v).sum(1), space)


def check_range(solves: int, s_low: float, s_high: float) -> None:
    """Raises a `ValueError` unless there is a solve, and noise levels are in order."""

    if solves < 1:
        raise ValueError(f"solves must be at least 1, got {solves}")
    if not 0 <= s_low <= s_high:
        raise ValueError(f"noise levels must obey 0 <= s_low <= s_high, got {s_low} and {s_high}")
