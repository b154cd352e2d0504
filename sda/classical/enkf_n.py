r"""The finite-size ensemble Kalman filter: inflation without tuning.

The sample moments of a small ensemble are uncertain. Under a vague prior of the true mean and
covariance the background is not Gaussian but a mixture of Gaussians with the sample mean and
covariances `λ² P`, and the scale that explains an innovation best minimises the dual cost

    J(λ) = Σ_i u_i² / (λ² g_i + N - 1) + ε / λ² + c log λ²,

where `g_i` are the eigenvalues of `Sᵀ S`, `u` the innovation `d` in their basis, `ε = 1 + 1/N` and
`c = N / (N - 1)`. Since the mode of this prior of λ is below 1, `ε` and `c` are corrected to
`ε / m` and `c m` with `m² = (ε / c)^κ`, where κ, between 0 and 1, is the mean weight that the
analysis gives to the background: without information there shall be no inflation (Bocquet et al.,
2015, eq. 36).
What follows is the ETKF with anomalies `λ A`.

References:
    Bocquet (2011), Ensemble Kalman filtering without the intrinsic need for inflation, Nonlin.
    Processes Geophys. 18. Bocquet, Raanes and Hannart (2015), Expanding the validity of the
    ensemble Kalman filter without the intrinsic need for inflation, Nonlin. Processes Geophys. 22.
"""

from dataclasses import replace

import torch
from torch import Tensor

from dynamics.system import System

from ..observation.sequence import ObservedTime
from .base import Run
from .ensemble import EnsembleFilter, Transform, whiten
from .etkf import square_root

# Bounds of log λ², and the points at which the cost is compared before the best is refined.
RANGE, POINTS, REFINEMENTS = (-3.0, 9.0), 49, 4


class EnKFN(EnsembleFilter):
    """The EnKF-N in its dual form (Bocquet, 2011; Bocquet et al., 2015).

    Arguments:
        system: The system.
        members: The number of members, at least 2.
        certainty: The weight of the prior of λ (`xN` elsewhere): 1 is for ensembles that are as
            random as a sample, more for those of a nearly linear, deterministic system.
        inflation: A further factor of the analysis anomalies.
        rotation: Whether the anomalies are rotated at random.

    Raises:
        ValueError: If an argument is out of range.
    """

    def __init__(
        self,
        system: System,
        members: int,
        certainty: float = 1.0,
        inflation: float = 1.0,
        rotation: bool = False,
    ) -> None:
        super().__init__(system, members, inflation=inflation, rotation=rotation)
        if not certainty > 0:
            raise ValueError(f"the certainty of EnKFN must be positive, got {certainty!r}")
        self.certainty = float(certainty)

    def transform(self, predicted: Tensor, observed: ObservedTime, run: Run) -> Transform:
        S, d = whiten(predicted, observed)
        scale = adaptive_inflation(S, d, self.certainty)[:, None, None]

        # λ is kept apart from the transform, which past states have in common with the present.
        return replace(square_root(S * scale, d), scale=scale)


def adaptive_inflation(S: Tensor, d: Tensor, certainty: float = 1.0) -> Tensor:
    """The inflation factor λ that minimises the dual cost, with shape `(repetition)`.

    Arguments:
        S: Predicted anomalies in units of the error, with shape `(repetition, member, value)`.
        d: The innovation of the mean in units of the error, with shape `(repetition, 1, value)`.
        certainty: The weight of the prior.
    """

    members, values = S.shape[1:]
    ridge = members - 1
    if values < members:
        g, U = torch.linalg.eigh(S.transpose(1, 2) @ S)
        g, u_square = g.clamp(min=0), (d @ U)[:, 0].square()
    else:
        g, V = torch.linalg.eigh(S @ S.transpose(1, 2))
        # Directions that the ensemble does not span add a constant and play no part.
        spanned = g > g[:, -1:] * torch.finfo(g.dtype).eps * values
        g = torch.where(spanned, g, 0)
        u_square = (d @ S.transpose(1, 2) @ V)[:, 0].square() / torch.where(spanned, g, torch.inf)

    epsilon, c = 1 + 1 / members, members / ridge
    # The eigenvalues of S Sᵀ: those of Sᵀ S, and zeros up to the number of members.
    zeros = max(0, members - g.shape[1])
    kappa = ((ridge / (g + ridge)).sum(1) + zeros) / members
    m = (epsilon / c) ** (kappa / 2)

    def cost(log_square: Tensor) -> Tensor:
        square = log_square.exp()
        fit = (u_square[:, None] / (square[..., None] * g[:, None] + ridge)).sum(2)
        prior = epsilon / m[:, None] / square + c * m[:, None] * log_square
        return fit + certainty * prior

    low, high = (torch.full_like(m, bound)[:, None] for bound in RANGE)
    unit = torch.linspace(0, 1, POINTS, dtype=S.dtype, device=S.device)
    # The cost may have two minima: look everywhere, then ever closer around the best.
    for _ in range(1 + REFINEMENTS):
        points = low + (high - low) * unit
        best = points.gather(1, cost(points).argmin(1, keepdim=True))
        step = (high - low) / (POINTS - 1)
        low, high = best - step, best + step

    return (best[:, 0] / 2).exp()
