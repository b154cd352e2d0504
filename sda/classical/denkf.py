r"""The deterministic ensemble Kalman filter of Sakov and Oke.

The mean is updated with the gain of the Kalman filter, the anomalies with half of it and without
perturbations,

    x̄ ↦ x̄ + K (y - H(x̄)),    A ↦ A - ½ Y Kᵀ,

which gives the covariance `(I - KH) P + ¼ K H P Hᵀ Kᵀ`: that of the Kalman filter to first order in
`KH`, and never too small. In the form of `ensemble.py`,

    w = d G,    T = I - ½ S G.

References:
    Sakov and Oke (2008), A deterministic formulation of the ensemble Kalman filter, Tellus A 60,
    https://doi.org/10.1111/j.1600-0870.2007.00299.x
"""

import torch
from torch import Tensor

from ..observation.sequence import ObservedTime
from .base import Run
from .ensemble import EnsembleFilter, Transform, gain, whiten


class DEnKF(EnsembleFilter):
    """The deterministic ensemble Kalman filter (Sakov and Oke, 2008).

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
        F, B = gain(S)

        if B.shape[1] < self.members:
            return Transform(d @ F @ B, S @ F * -0.5, B)
        eye = torch.eye(self.members, dtype=S.dtype, device=S.device)
        return Transform(d @ F @ B, torch.baddbmm(eye, S @ F, B, alpha=-0.5))
