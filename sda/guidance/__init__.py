"""Guidance: a prior's denoiser and observations become a posterior denoiser.

A guided denoiser is a denoiser of the posterior `p(x | y)` and goes into any sampler. In the
coordinates `(x, s)`, `x = X + s ε`, all methods are of one form,

    E[X | x, y] ≈ D + C(x, s) Hᵀ (H C(x, s) Hᵀ + R)⁻¹ (y − H D),    D = E[X | x],

and differ in the covariance `C` that they take for `Cov[X | x]`.

| name | `C` | vector–Jacobian products per evaluation |
|---|---|---|
| `static` | of the climatology, `(Σ⁻¹ + I / s²)⁻¹` | none |
| `flow_dependent` | of the denoiser at a few pilots, shared by all | none (pilots: some) |
| `hybrid` | of each member's denoiser, preconditioned by the pilots' | iterations |
| `averaged` | the same, preconditioned by the prior's average | iterations |
| `mmps` | of the denoiser at each member, `s² ∂D/∂x`, iterative solve | iterations + 1 |
| `tmpd` | the same, row sums on the diagonal | 2 |
| `pgdm` | `s² / (1 + s²) I` | 1 |
| `sda` | a diagonal `γ s²` in observation space | 1 |
| `dps` | none: a step down the norm of the innovation | 1 |
"""

__all__ = ["METHODS", "Analysis", "PosteriorDenoiser", "guide"]

from typing import Any

from ..covariance import Covariance
from ..denoiser import Denoiser
from .averaged import AveragedGuidance
from .base import Analysis, LikelihoodLike, PosteriorDenoiser
from .dps import DPSGuidance
from .flow_dependent import FlowDependentGuidance
from .hybrid import HybridGuidance
from .mmps import MMPSGuidance
from .pgdm import PGDMGuidance
from .sda import SDAGuidance
from .static import StaticGuidance
from .tmpd import TMPDGuidance

METHODS: dict[str, type[PosteriorDenoiser]] = {
    "static": StaticGuidance,
    "flow_dependent": FlowDependentGuidance,
    "hybrid": HybridGuidance,
    "averaged": AveragedGuidance,
    "mmps": MMPSGuidance,
    "sda": SDAGuidance,
    "dps": DPSGuidance,
    "pgdm": PGDMGuidance,
    "tmpd": TMPDGuidance,
}


def guide(
    name: str,
    denoiser: Denoiser,
    likelihood: LikelihoodLike,
    covariance: Covariance,
    **options: Any,
) -> PosteriorDenoiser:
    """Wraps a trajectory denoiser and observations into a posterior denoiser.

    Arguments:
        name: The method, a key of `METHODS`.
        denoiser: The denoiser of the prior, over normalised anomalies `(member, time, channel,
            *space)`.
        likelihood: The likelihood of the observations, over normalised anomalies.
        covariance: The climatological covariance of the trajectory.
        options: The options of the method, see its class.

    Raises:
        ValueError: If the method is unknown, or the shapes differ.
        TypeError: If the method does not have an option.
    """

    if name not in METHODS:
        raise ValueError(f"unknown guidance {name!r}: choose one of {', '.join(METHODS)}")

    return METHODS[name](denoiser, likelihood, covariance, **options)
