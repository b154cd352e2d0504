r"""The Kalman filter and the Rauch–Tung–Striebel smoother: exact for linear-Gaussian systems.

    x_{i+1} = A x_i + w_i,  w_i ~ N(0, Q),      y_i = H_i x_i + ε_i,  ε_i ~ N(0, R_i)

Forecast and analysis (Kalman 1960), with the moments `f, W` before and `m, V` after an observation:

    f = A m,  W = A V Aᵀ + Q,      m = f + K (y - H f),  V = W - K H W,  K = W Hᵀ (H W Hᵀ + R)⁻¹.

Backwards (Rauch, Tung and Striebel 1965), with the moments `s, S` given all observations:

    J = V_i Aᵀ W_{i+1}⁻¹,  s_i = m_i + J (s_{i+1} - f_{i+1}),  S_i = V_i + J (S_{i+1} - W_{i+1}) Jᵀ.

Members of the smoother are draws of whole trajectories, backwards in time (Carter and Kohn 1994):
given the next state, a state has mean `m_i + J (x_{i+1} - f_{i+1})` and covariance `V_i - J W Jᵀ`.
An observation that lies between two states is one of both; the state is then the pair of the last
two. All is computed in float64.

References:
    | Kalman (1960), A new approach to linear filtering and prediction problems.
    | Rauch, Tung, Striebel (1965), Maximum likelihood estimates of linear dynamic systems.
    | Carter, Kohn (1994), On Gibbs sampling for state space models, Biometrika 81.
"""

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from torch import Tensor

from dynamics.linear_gaussian import LinearGaussian
from dynamics.system import System

from ..observation.observations import Observations
from ..observation.sequence import ObservedTime, sequence
from .base import Method, Run, Smoother, Solution, model_times
from .initial import Gaussian, Initial, Spinup, initial_distribution

MEMBERS = 64


@dataclass
class Moments:
    """An exact Gaussian posterior, at all times of the model.

    Attributes:
        time: The times.
        mean: The means, with shape `(repetition, time, channel)`.
        covariance: The covariances, with shape `(repetition, time, channel, channel)`.
        log_evidence: `log p(y)`, with shape `(repetition)`.
    """

    time: np.ndarray
    mean: Tensor
    covariance: Tensor
    log_evidence: Tensor

    @property
    def variance(self) -> Tensor:
        """The variances, with shape `(repetition, time, channel)`."""
        return self.covariance.diagonal(dim1=-2, dim2=-1)


@dataclass
class Forward:
    """The moments of all states given the observations before them, and up to them.

    Means are `(repetition, n)` and covariances `(1 or repetition, n, n)`, one for each time.
    """

    f: list[Tensor]
    W: list[Tensor]
    m: list[Tensor]
    V: list[Tensor]
    log_evidence: Tensor


class Exact(Method):
    """What the Kalman filter and smoother share.

    Arguments:
        system: A linear-Gaussian system.
        members: The number of draws from the posterior.

    Raises:
        TypeError: If the system is not a `dynamics.LinearGaussian`.
    """

    fewest = 1

    def __init__(self, system: System, members: int = MEMBERS) -> None:
        super().__init__(system, members)
        if not isinstance(system, LinearGaussian):
            raise TypeError(
                f"{self.name} needs a linear system with Gaussian noise, "
                f"dynamics.LinearGaussian, got {type(system).__name__}: an ensemble Kalman method "
                f"approximates it for others"
            )
        self.linear = system

    @property
    def draws(self) -> int:
        return 1

    def first(self, initial: Sequence[Initial]) -> tuple[Tensor, Tensor]:
        """Mean and covariance of the first state of each repetition, a common one only once."""

        n = self.linear.layout.shape[0]
        means, covariances = [], []
        for each in initial:
            if isinstance(each, Gaussian):
                means.append(np.broadcast_to(each.mean, (n,)))
                root = each.root
                covariances.append(
                    np.diag(np.broadcast_to(np.asarray(each.variance), (n,)))
                    if root is None
                    else root @ root.T
                )
            elif isinstance(each, Spinup):  # the climatology, which is known
                means.append(np.zeros(n))
                covariances.append(self.linear.stationary_covariance.numpy())
            else:
                raise ValueError(
                    f"{self.name} needs the mean and covariance of the first state, as "
                    f"sda.classical.Gaussian or the climatology, got {type(each).__name__}"
                )
        if all(np.array_equal(each, covariances[0]) for each in covariances):
            covariances = covariances[:1]

        return torch.from_numpy(np.stack(means)), torch.from_numpy(np.stack(covariances))

    def forward(
        self, observed: Sequence[ObservedTime], length: int, initial: Sequence[Initial]
    ) -> Forward:
        """The Kalman filter, over `length` states."""

        A, Q = self.linear.A, self.linear.Q
        f, W = self.first(initial)
        n = len(A)
        if any(each.frames == 2 for each in observed):
            # The pair of the last two states; the first one has itself before it.
            zero, eye = torch.zeros_like(A), torch.eye(n, dtype=A.dtype)
            A = torch.cat((torch.cat((zero, eye), 1), torch.cat((zero, A), 1)))
            Q = torch.block_diag(zero, Q)
            f, W = f.repeat(1, 2), W.repeat(1, 2, 2)
        self.transition = A

        at = {each.index: each for each in observed}
        found = Forward([], [], [], [], torch.zeros(len(f), dtype=f.dtype))
        for i in range(length):
            if i:
                f = found.m[-1] @ A.T
                W = A @ found.V[-1] @ A.T + Q
            m, V = f, W
            if i in at:
                seen = at[i]
                H, std = seen.matrix.cpu().double(), seen.std.cpu().double()
                H = torch.nn.functional.pad(H, (len(A) - H.shape[1], 0))
                d = seen.y.cpu().double() - seen.offset.cpu().double() - f @ H.T
                L = torch.linalg.cholesky(H @ W @ H.T + torch.diag(std.square()))
                rows = torch.linalg.solve_triangular(L, H @ W, upper=False)
                white = torch.linalg.solve_triangular(L, d[..., None], upper=False)
                m = f + (rows.mT @ white)[..., 0]
                V = W - rows.mT @ rows
                found.log_evidence = found.log_evidence - (
                    0.5 * white.square().sum((1, 2))
                    + L.diagonal(dim1=-2, dim2=-1).log().sum(-1)
                    + 0.5 * len(std) * math.log(2 * math.pi)
                )
            for values, value in ((found.f, f), (found.W, W), (found.m, m), (found.V, V)):
                values.append(value)

        return found

    def moments(
        self,
        observations: Observations | Sequence[Observations],
        *,
        time: Any = None,
        initial: Any = None,
    ) -> Moments:
        """The exact mean and covariance of the posterior, see `assimilate` for the arguments."""

        sets = [observations] if isinstance(observations, Observations) else list(observations)
        time = model_times(self.system, sets, time)
        observed = sequence(sets, self.system.layout, time, torch.float64)
        starts = initial if isinstance(initial, list | tuple) else [initial] * len(sets)
        forward = self.forward(observed, len(time), [initial_distribution(s) for s in starts])
        mean, covariance = self.posterior(forward)
        n = self.system.layout.shape[0]
        mean, covariance = mean[..., -n:], covariance[..., -n:, -n:]

        return Moments(
            time, mean, covariance.expand(len(sets), *covariance.shape[1:]), forward.log_evidence
        )

    def posterior(self, forward: Forward) -> tuple[Tensor, Tensor]:
        """Means and covariances, `(repetition, time, n)` and `(1 or repetition, time, n, n)`."""
        return torch.stack(forward.m, 1), torch.stack(forward.V, 1)


class KalmanFilter(Exact):
    """The Kalman filter; the members are draws from `N(m, V)` at each analysis time.

    The exact moments are those of `moments`.

    Arguments:
        system: A linear-Gaussian system.
        members: The number of draws.

    Raises:
        TypeError: If the system is not a `dynamics.LinearGaussian`.
    """

    def solve(self, z: Tensor, run: Run) -> Solution:
        index = [each.index for each in run.observed]
        forward = self.forward(run.observed, index[-1] + 1, run.initial)
        mean, covariance = (each[:, index] for each in self.posterior(forward))
        n = self.system.layout.shape[0]
        noise = run.noise.normal("output", (self.members, len(index), n)).cpu().double()
        root = matrix_root(covariance[..., -n:, -n:])
        states = mean[:, None, :, -n:] + (root[:, None] @ noise[..., None])[..., 0]

        return Solution(states.to(run.noise.device, run.noise.dtype), index)


class RTSSmoother(Exact, Smoother):
    """The Rauch–Tung–Striebel smoother; the members are draws of whole trajectories.

    The exact moments are those of `moments`.

    Arguments:
        system: A linear-Gaussian system.
        members: The number of draws.

    Raises:
        TypeError: If the system is not a `dynamics.LinearGaussian`.
    """

    def back(self, forward: Forward, i: int) -> Tensor:
        """The gain `J` of state `i` given the next."""

        W = forward.W[i + 1]
        return forward.V[i] @ self.transition.T @ torch.linalg.pinv(W, hermitian=True)

    def posterior(self, forward: Forward) -> tuple[Tensor, Tensor]:
        means, covariances = [forward.m[-1]], [forward.V[-1]]
        for i in range(len(forward.m) - 2, -1, -1):
            J = self.back(forward, i)
            ahead = means[-1] - forward.f[i + 1]
            means.append(forward.m[i] + (J @ ahead[..., None])[..., 0])
            covariances.append(forward.V[i] + J @ (covariances[-1] - forward.W[i + 1]) @ J.mT)

        return torch.stack(means[::-1], 1), torch.stack(covariances[::-1], 1)

    def solve(self, z: Tensor, run: Run) -> Solution:
        length, n = len(run.time), self.system.layout.shape[0]
        forward = self.forward(run.observed, length, run.initial)
        size = forward.m[0].shape[1]
        mean, covariance = forward.m[-1], forward.V[-1]
        x = None
        path = []
        for i in range(length - 1, -1, -1):
            if x is None:
                conditional = mean[:, None].expand(-1, self.members, -1)
            else:
                J, V = self.back(forward, i), forward.V[i]
                conditional = forward.m[i][:, None] + (x - forward.f[i + 1][:, None]) @ J.mT
                covariance = V - J @ forward.W[i + 1] @ J.mT
            noise = run.noise.normal("output", (self.members, size)).cpu().double()
            x = conditional + noise @ matrix_root(covariance).mT
            path.append(x[..., -n:])
        states = torch.stack(path[::-1], 2)

        return Solution(states.to(run.noise.device, run.noise.dtype), list(range(length)))


def matrix_root(covariance: Tensor) -> Tensor:
    """The symmetric square root of positive semi-definite matrices."""

    values, vectors = torch.linalg.eigh((covariance + covariance.mT) / 2)
    return (vectors * values.clamp(min=0).sqrt()[..., None, :]) @ vectors.mT
