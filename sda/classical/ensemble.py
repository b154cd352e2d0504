r"""What ensemble Kalman methods share: an analysis is a transform of the ensemble.

With the background's mean `x̄` and anomalies `A`, of which every row is a member, all of them are

    x̄ ↦ x̄ + λ w A,    A ↦ λ T A,

and differ by the weights `w` and the matrix `T`, which are functions of `S = Y R^{-1/2}`, the
anomalies of what is predicted, and of `d = R^{-1/2} (y - ȳ)`, the innovation of the mean:

    w = d G,    G = (Sᵀ S + (N - 1) I)⁻¹ Sᵀ = Sᵀ (S Sᵀ + (N - 1) I)⁻¹.

The first form solves a system of the size of the observations, the second one of the size of the
ensemble; the smaller is taken. The operator `H` enters by predictions alone and may be any. The
factor λ of the background anomalies is 1 except in filters that inflate by themselves.
"""

import abc
from dataclasses import dataclass

import torch
from torch import Tensor

from dynamics.system import System

from ..observation.sequence import ObservedTime
from .base import Filter, Run
from .inflation import check_inflation, rotation, rtpp, rtps


@dataclass
class Transform:
    """The analysis of anomalies `(repetition, member, value)`.

    Attributes:
        weights: The weights `w` of the mean's increment, with shape `(repetition, 1, member)`.
        left: The matrix `T`, with shape `(repetition, member, member)`; or with `right` a factor.
        right: If given, `T = I + left right`, which suits ensembles larger than the number of
            observations: `(repetition, member, k)` and `(repetition, k, member)`.
        scale: The factor λ of the background anomalies at the analysis time, or one for each
            repetition, with shape `(repetition, 1, 1)`. Past states, which are analysed by `w` and
            `T` as well, are not multiplied by it: they would be once more with each cycle.
    """

    weights: Tensor
    left: Tensor
    right: Tensor | None = None
    scale: Tensor | float = 1.0

    def anomalies(self, a: Tensor) -> Tensor:
        """The analysis anomalies `T A`."""

        if self.right is None:
            return self.left @ a
        return a + self.left @ (self.right @ a)

    @property
    def matrix(self) -> Tensor:
        """The matrix `T`, with shape `(repetition, member, member)`."""

        if self.right is None:
            return self.left
        eye = torch.eye(self.left.shape[1], dtype=self.left.dtype, device=self.left.device)
        return self.anomalies(eye.expand(len(self.left), *eye.shape))

    def __call__(self, x: Tensor, rotate: Tensor | None = None) -> Tensor:
        """The analysis of past states `(repetition, member, value)`, rotated or not."""

        mean = x.mean(1, keepdim=True)
        a = x - mean
        b = self.anomalies(a)

        return mean + self.weights @ a + (b if rotate is None else rotate @ b)


class EnsembleFilter(Filter):
    """An ensemble Kalman filter.

    Arguments:
        system: The system.
        members: The number N of members.
        inflation: The factor of the analysis anomalies.
        rtps: Relaxation to the prior's spread, from 0 (none) to 1.
        rtpp: Relaxation to the prior's perturbations, from 0 (none) to 1.
        rotation: Whether the anomalies are rotated at random, which keeps mean and covariance.

    Raises:
        ValueError: If an argument is out of range.
    """

    def __init__(
        self,
        system: System,
        members: int,
        inflation: float = 1.0,
        rtps: float = 0.0,
        rtpp: float = 0.0,
        rotation: bool = False,
    ) -> None:
        super().__init__(system, members)
        check_inflation(self.name, inflation, rtps, rtpp)
        self.inflation, self.rtps, self.rtpp = float(inflation), float(rtps), float(rtpp)
        self.rotation = bool(rotation)

    @abc.abstractmethod
    def transform(self, predicted: Tensor, observed: ObservedTime, run: Run) -> Transform:
        """The analysis as a transform, given the predictions `(repetition, member, value)`."""

    def rotate(self, run: Run) -> Tensor | None:
        """The rotation of an analysis, if there is one."""
        return rotation(run, self.members) if self.rotation else None

    def apply(self, x: Tensor, transform: Transform, rotate: Tensor | None) -> Tensor:
        """The analysis of states `(repetition, member, value)`, inflated and rotated."""

        mean = x.mean(1, keepdim=True)
        a = x - mean
        b = transform.anomalies(a) * transform.scale
        if self.rtpp:
            b = rtpp(a, b, self.rtpp)
        if self.rtps:
            b = rtps(a, b, self.rtps)
        if rotate is not None:
            b = rotate @ b
        if self.inflation != 1:
            b = b * self.inflation

        return mean + (transform.weights * transform.scale) @ a + b

    def analyse(
        self, ensemble: Tensor, predicted: Tensor, observed: ObservedTime, run: Run
    ) -> Tensor:
        transform = self.transform(predicted, observed, run)
        x = self.apply(ensemble.flatten(2), transform, self.rotate(run))

        return x.view(ensemble.shape)


def whiten(predicted: Tensor, observed: ObservedTime) -> tuple[Tensor, Tensor]:
    """Anomalies `S` and innovation `d` in units of the observation error.

    Returns:
        Tensors with the shapes `(repetition, member, value)` and `(repetition, 1, value)`.
    """

    mean = predicted.mean(1, keepdim=True)

    return (predicted - mean) / observed.std, (observed.y[:, None] - mean) / observed.std


def gain(S: Tensor) -> tuple[Tensor, Tensor]:
    """The factors of `G = F B`: `G` maps innovations to weights.

    Returns:
        `F` with shape `(repetition, value, k)` and `B` with shape `(repetition, k, member)`, where
        `k` is the smaller of the numbers of values and members.
    """

    members, values = S.shape[1:]
    St = S.transpose(1, 2)
    # The inverse of so small a matrix, of condition 1 + |S|²/(N - 1), is as accurate as a solve.
    if values < members:
        return torch.cholesky_inverse(factor(St @ S, members - 1)), St
    return St, torch.cholesky_inverse(factor(S @ St, members - 1))


def factor(gram: Tensor, ridge: float) -> Tensor:
    """The lower Cholesky factor of `gram + ridge · I`."""

    gram.diagonal(dim1=-2, dim2=-1).add_(ridge)
    return torch.linalg.cholesky(gram)
