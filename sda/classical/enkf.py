r"""The stochastic ensemble Kalman filter.

Every member assimilates the observations with a perturbation of its own,

    x_m ↦ x_m + K (y + ε_m - H(x_m)),    ε_m ~ N(0, R),
    K = A'ᵀ Y (Yᵀ Y + (N - 1) R)⁻¹,

with the anomalies `A'` of the states and `Y` of the predictions. The perturbations are centred, so
that the mean is updated as in the Kalman filter and not by their sampling error, and multiplied by
`√(N / (N - 1))`, as in the reference implementation DAPPER. Their sample covariance, normalised by
N - 1, is then `N / (N - 1) · R` on average, not R: a slight inflation, by which small ensembles are
safer. In the form of `ensemble.py`, with `D` the perturbations in units of the error,

    w = d G,    T = I + (D - S) G.

References:
    Burgers, van Leeuwen and Evensen (1998), Analysis scheme in the ensemble Kalman filter, Mon.
    Wea. Rev. 126. Evensen (2009), Data Assimilation: The Ensemble Kalman Filter, Springer.
"""

import math

import torch
from torch import Tensor

from ..observation.sequence import ObservedTime
from .base import Run
from .ensemble import EnsembleFilter, Transform, gain, whiten


class EnKF(EnsembleFilter):
    """The ensemble Kalman filter with perturbed observations (Burgers et al., 1998).

    Arguments:
        system: The system.
        members: The number of members, at least 2.
        inflation: The factor of the analysis anomalies.
        rtps: Relaxation to the prior's spread, from 0 (none) to 1.
        rtpp: Relaxation to the prior's perturbations, from 0 (none) to 1.
        rotation: Whether the anomalies are rotated at random.

    Raises:
        ValueError: If an argument is out of range.
    """

    def transform(self, predicted: Tensor, observed: ObservedTime, run: Run) -> Transform:
        S, d = whiten(predicted, observed)
        D = run.noise.normal("observation", predicted.shape[1:])
        F, B = gain(S)
        # Centring takes 1/N of each perturbation's variance away: this gives it back.
        D = (D - D.mean(1, keepdim=True)) * math.sqrt(self.members / (self.members - 1))
        left = (D - S) @ F

        if B.shape[1] < self.members:
            return Transform(d @ F @ B, left, B)
        eye = torch.eye(self.members, dtype=S.dtype, device=S.device)
        return Transform(d @ F @ B, torch.baddbmm(eye, left, B))
