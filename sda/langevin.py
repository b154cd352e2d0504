"""Langevin steps, preconditioned with a metric.

At a noise level `s`, the steps

    x ← x + (1 − e^{−δ}) M ∇ log p_s(x | y) + √(1 − e^{−2δ}) M^½ ξ,    ξ ~ N(0, I),

leave `p_s(x | y)` invariant as `δ → 0`, for any metric `M`; at any `δ` where it is `N(·, M)`: the
step is the exact Ornstein–Uhlenbeck flow. They remove most of the error that an approximate
guidance leaves. `M` is the covariance of the noisy posterior that the guidance itself assumes, and
`∇ log p_s(x | y) = (D − x) / s²` with the guided mean `D`.

A member's step is *tamed*: `δ_i = min(δ, a δ n / ‖M^½ ∇ log p‖²)`, where the squared norm is `n` in
the mean if `M` is right. Without it, members in the tails diverge.

References:
    Predictor–corrector sampling: Score-Based Generative Modeling through Stochastic Differential
    Equations (Song et al., 2021), arXiv 2011.13456
    Tamed unadjusted Langevin algorithm: Brosse et al. (2019), arXiv 1710.05559
"""

import math
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor

from .covariance import Covariance
from .denoiser import Denoiser
from .guidance.base import (
    Analysis,
    CappedPrior,
    IdentityMetric,
    Metric,
    PosteriorDenoiser,
    PriorMetric,
    analyse,
)
from .guidance.solver import Noise

METRICS = ("guidance", "prior", "identity")


@dataclass
class Langevin:
    """Langevin steps at each noise level in a range.

    Arguments:
        metric: The metric `M`: `guidance`, the covariance of the noisy posterior that the guidance
            assumes; `prior`, that of the noisy prior; or `identity`, `s² I` with the step
            `δ n / ‖s ∇ log p‖²` for each member and without the exact flow, `x + δ M ∇ log p +
            √(2δ) M^½ ξ`, as in score-based data assimilation. A denoiser without guidance has the
            `prior` metric if it knows its covariance, else `identity`.
        steps: The number of steps at each level, with one evaluation each.
        delta: The step size `δ`.
        s_min: The smallest noise level with Langevin steps.
        s_max: The largest noise level with Langevin steps.
        kappa: The eigenvalues of the prior's part of `M` are at most `kappa s²`. Fields need a
            small value, as the learned score is not accurate along directions that are much longer
            than `s`.
        cap: They are also at most `s² + cap`.
        tame: The factor `a`.

    Attributes:
        alarms: The mean of `‖M^½ ∇ log p‖² / n` per noise level, one where all is right. Above 1.5
            the metric is too long, or the guidance wrong.

    Raises:
        ValueError: If an option is unknown or out of range.
    """

    metric: str = "guidance"
    steps: int = 1
    delta: float = 0.25
    s_min: float = 0.1
    s_max: float = 30.0
    kappa: float = 4.0
    cap: float = math.inf
    tame: float = 2.0
    alarms: dict[float, Any] = field(default_factory=dict, repr=False, compare=False)

    def __post_init__(self) -> None:
        if self.metric not in METRICS:
            raise ValueError(f"unknown metric {self.metric!r}: choose one of {', '.join(METRICS)}")
        if self.steps < 1:
            raise ValueError(f"steps must be at least 1, got {self.steps}")
        for name in ("delta", "kappa", "cap", "tame"):
            if not getattr(self, name) > 0:
                raise ValueError(f"{name} must be positive, got {getattr(self, name)}")
        if not 0 <= self.s_min <= self.s_max:
            raise ValueError(
                f"noise levels must obey 0 <= s_min <= s_max, got {self.s_min} and {self.s_max}"
            )

    @classmethod
    def for_vectors(cls, **options: Any) -> "Langevin":
        """The setting for low-dimensional systems."""
        return cls(**{
            "steps": 3, "delta": 0.5, "s_min": 0.2, "s_max": 2.5, "kappa": 1e3, "cap": 4.0,
            **options,
        })  # fmt: skip

    @classmethod
    def for_fields(cls, **options: Any) -> "Langevin":
        """The setting for fields: large noise levels only, and steps enough for equilibrium."""
        return cls(**{"steps": 4, "delta": 0.5, "s_min": 1.0, **options})

    def correct(
        self,
        denoiser: Denoiser,
        x: Tensor,
        s: float,
        noise: Noise,
        analysis: Analysis | None = None,
    ) -> tuple[Tensor, Analysis]:
        """Corrects trajectories at a noise level.

        Arguments:
            denoiser: The denoiser, guided or not.
            x: The noisy trajectories, with shape `(member, time, channel, *space)`.
            s: The noise level.
            noise: The source of noise.
            analysis: What `analyse(denoiser, x, s)` gave, if it is known already.

        Returns:
            The corrected trajectories, and their analysis.
        """

        analysis = analyse(denoiser, x, s) if analysis is None else analysis
        values = math.prod(x.shape[1:])

        for k in range(self.steps):
            metric = self.metric_of(denoiser, analysis)
            move = metric.move((analysis.mean - x) / s**2, noise)
            norm = move.square / values
            if k == 0:
                # A GPU is not waited for: there it stays a tensor.
                self.alarms[s] = norm.mean() if norm.is_cuda else float(norm.mean())
            x = x + move.combine(*self.factors(norm))
            analysis = analyse(denoiser, x, s)

        return x, analysis

    def factors(self, norm: Tensor) -> tuple[Tensor, Tensor]:
        """The factors of `M ∇ log p` and of the draw from `N(0, M)` in a step.

        Arguments:
            norm: `‖M^½ ∇ log p‖² / n` of each member, with shape `(member)`.
        """

        norm = norm.clamp(min=1e-6)
        if self.metric == "identity":
            delta = self.delta / norm
            return delta, (2 * delta).sqrt()
        delta = (self.tame * self.delta / norm).clamp(max=self.delta)

        return -torch.expm1(-delta), (-torch.expm1(-2 * delta)).sqrt()

    def metric_of(self, denoiser: Denoiser, analysis: Analysis) -> Metric:
        """The metric of a step at an analysis of a denoiser."""

        if self.metric == "guidance" and isinstance(denoiser, PosteriorDenoiser):
            return denoiser.metric(analysis, self.kappa, self.cap)
        covariance = getattr(denoiser, "covariance", None)
        if self.metric != "identity" and isinstance(covariance, Covariance):
            return PriorMetric(covariance, CappedPrior(analysis.s, self.kappa, self.cap))

        return IdentityMetric(analysis.s, tuple(analysis.mean.shape[1:]))
