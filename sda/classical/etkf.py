r"""The ensemble transform Kalman filter, with the symmetric square root.

The analysis has exactly the mean and covariance of the Kalman update with the sample covariance,

    w = d G,    T = √(N-1) (S Sᵀ + (N - 1) I)^{-1/2},

in the form of `ensemble.py`. The symmetric root keeps the mean, since `S Sᵀ 1 = 0`, and is of all
roots the one that moves members the least.

Where there are fewer observations than members, the root follows from the eigenvalues `g` and
eigenvectors `U` of the smaller `Sᵀ S`,

    T = I + S U φ(g) Uᵀ Sᵀ,    φ(g) = -1 / ((N - 1) (1 + z + √(1 + z))),    z = g / (N - 1).

A rotation `Ω` that is drawn uniformly makes all roots alike: in an orthonormal basis `B` of the
anomalies' space, with `Bᵀ (S Sᵀ + (N - 1) I) B = L Lᵀ`, the anomalies

    B Ω √(N-1) L⁻¹ Bᵀ A

have the distribution of the rotated symmetric root, at the price of a Cholesky factorisation.

References:
    Bishop, Etherton and Majumdar (2001), Adaptive sampling with the ensemble transform Kalman
    filter, Mon. Wea. Rev. 129. Hunt, Kostelich and Szunyogh (2007), Physica D 230. Sakov and Oke
    (2008), Mon. Wea. Rev. 136.
"""

import math

import torch
from torch import Tensor

from ..observation.sequence import ObservedTime
from .base import Run
from .ensemble import EnsembleFilter, Transform, factor, whiten
from .inflation import basis, rotated_basis


class ETKF(EnsembleFilter):
    """The ensemble transform Kalman filter (Bishop et al., 2001; Hunt et al., 2007).

    Arguments:
        system: The system.
        members: The number of members, at least 2.
        inflation: The factor of the analysis anomalies.
        rtps: Relaxation to the prior's spread, from 0 (none) to 1.
        rtpp: Relaxation to the prior's perturbations, from 0 (none) to 1.
        rotation: Whether the anomalies are rotated at random, uniformly.

    Raises:
        ValueError: If an argument is out of range.
    """

    def transform(self, predicted: Tensor, observed: ObservedTime, run: Run) -> Transform:
        S, d = whiten(predicted, observed)
        return square_root(S, d)

    def analyse(
        self, ensemble: Tensor, predicted: Tensor, observed: ObservedTime, run: Run
    ) -> Tensor:
        if self.rotation and not (self.rtps or self.rtpp):
            return self.analyse_rotated(ensemble, predicted, observed, run)
        return super().analyse(ensemble, predicted, observed, run)

    def analyse_rotated(
        self, ensemble: Tensor, predicted: Tensor, observed: ObservedTime, run: Run
    ) -> Tensor:
        """The analysis with a rotation, by a Cholesky factorisation."""

        x, ridge = ensemble.flatten(2), self.members - 1
        B = basis(self.members, x.dtype, x.device).T
        S = (B @ predicted) / observed.std
        d = (observed.y - predicted.mean(1)) / observed.std
        L = factor(S @ S.transpose(1, 2), ridge)
        w = torch.cholesky_solve(S @ d[..., None], L)
        root = rotated_basis(run, self.members) * (math.sqrt(ridge) * self.inflation)
        root = torch.linalg.solve_triangular(L, root, upper=False, left=False)
        x = torch.baddbmm(x.mean(1, keepdim=True), root + w.transpose(1, 2), B @ x)

        return x.view(ensemble.shape)


def square_root(S: Tensor, d: Tensor) -> Transform:
    """The transform of the ETKF.

    Arguments:
        S: Predicted anomalies in units of the error, with shape `(repetition, member, value)`.
        d: The innovation of the mean in units of the error, with shape `(repetition, 1, value)`.
    """

    members, values = S.shape[1:]
    ridge = members - 1
    if values < members:
        g, U = torch.linalg.eigh(S.transpose(1, 2) @ S)
        z = g[:, None] / ridge
        SU = S @ U
        phi = -1 / (ridge * (1 + z + (1 + z).sqrt()))
        weights = (d @ U / (ridge * (1 + z))) @ SU.transpose(1, 2)
        return Transform(weights, SU * phi, SU.transpose(1, 2))

    g, V = torch.linalg.eigh(S @ S.transpose(1, 2))
    z = 1 + g[:, None].clamp(min=0) / ridge
    weights = ((d @ S.transpose(1, 2) @ V) / (ridge * z)) @ V.transpose(1, 2)
    return Transform(weights, (V / z.sqrt()) @ V.transpose(1, 2))
