r"""Consistency of members with the observations and with the dynamics.

Marginal scores cannot see whether a trajectory is one: these two can.
"""

import math
from typing import Any

import numpy as np
import torch
from numpy.typing import ArrayLike, NDArray
from torch import Tensor

from dynamics.system import System


def innovations(likelihood: Any, x: Tensor) -> NDArray[np.float64]:
    r"""The normalised innovations $(y - H(x)) / \sigma$ of each member.

    Arguments:
        likelihood: The observations, bound to the trajectories: `y` `(m)`, `std` `(m)` and `H`.
        x: Trajectories in physical units, with shape `(member, time, channel, *space)`.

    Returns:
        The innovations, with shape `(member, m)`.
    """

    with torch.no_grad():
        return ((likelihood.y - likelihood.H(x)) / likelihood.std).double().cpu().numpy()


def misfit(likelihood: Any, x: Tensor) -> NDArray[np.float64]:
    r"""The root mean square of the normalised innovations of each member.

    The truth's is 1 up to $1/\sqrt{2m}$ for m observations, and so is that of a draw from the
    posterior on average: the truth is such a draw. Less than that fits the noise.

    Arguments:
        likelihood: The observations, bound to the trajectories: `y` `(m)`, `std` `(m)` and `H`.
        x: Trajectories in physical units, with shape `(member, time, channel, *space)`.

    Returns:
        The misfits, with shape `(member)`.
    """

    return np.sqrt((innovations(likelihood, x) ** 2).mean(axis=1))


def log_likelihood(likelihood: Any, x: Tensor) -> NDArray[np.float64]:
    r"""The log-likelihood $\log p(y | x)$ of each member, for Gaussian errors.

    Arguments:
        likelihood: The observations, bound to the trajectories: `y` `(m)`, `std` `(m)` and `H`.
        x: Trajectories in physical units, with shape `(member, time, channel, *space)`.

    Returns:
        The log-likelihoods, with shape `(member)`.
    """

    std = likelihood.std.double().cpu().numpy()
    constant = np.log(std).sum() + 0.5 * math.log(2 * math.pi) * len(std)

    return np.asarray(-0.5 * (innovations(likelihood, x) ** 2).sum(axis=1) - constant)


def increments(x: NDArray, area: ArrayLike = 1.0) -> NDArray[np.float64]:
    """The mean square of the increments from each frame to the next, per member and channel.

    Arguments:
        x: Trajectories, with shape `(member, time, channel, *space)`.
        area: The weights of the cells, which broadcast to `(*space)`, see `Layout.area`.

    Returns:
        The mean squares, with shape `(member, time - 1, channel)`.
    """

    return channel_mean(np.diff(x, axis=1) ** 2, area)


def residuals(system: System, x: NDArray) -> NDArray[np.float64]:
    r"""The mean square of what one step of the system leaves, $x_{i+1} - f(x_i)$.

    Divide by the truth's mean square increment and take the root to have it in true increments. A
    stochastic system leaves its noise, and a system that sees its states coarsened leaves what the
    fine scales do: compare with the truth's own.

    Arguments:
        system: The system, whose step is that of the trajectories, taken without noise.
        x: Trajectories, with shape `(member, time, channel, *space)`.

    Returns:
        The mean squares over the areas of the cells, with shape `(member, time - 1, channel)`.
    """

    rows = []
    for member in torch.as_tensor(x).to(torch.float32):
        with torch.no_grad():
            stepped = system.step(member[:-1])
        left = (stepped - member[1:]).double().numpy()[None]
        rows.append(channel_mean(left**2, system.layout.area))

    return np.concatenate(rows)


def log_transitions(system: System, x: NDArray) -> NDArray[np.float64]:
    r"""The log-density $\log p(x_{2:L} | x_1)$ of trajectories under a system.

    The mean over draws from the exact posterior is that of the truth, on average over truths.

    Arguments:
        system: The system, whose transition density is known.
        x: Trajectories, with shape `(member, time, channel, *space)`.

    Returns:
        The log-densities, with shape `(member)`: 0 for a single frame.

    Raises:
        ValueError: If the system has no known transition density.
    """

    rows = []
    for member in torch.as_tensor(x).double():
        with torch.no_grad():
            density = system.log_transition(member[:-1], member[1:]) if len(member) > 1 else None
        rows.append(0.0 if density is None else float(density.double().sum()))

    return np.array(rows)


def channel_mean(x: NDArray, area: ArrayLike = 1.0) -> NDArray[np.float64]:
    """Averages `(member, time, channel, *space)` over space, by the areas of the cells."""

    w = np.broadcast_to(np.asarray(area, dtype=np.float64), x.shape[3:])

    return np.asarray((w * x).sum(axis=tuple(range(3, x.ndim)), dtype=np.float64) / w.sum())
