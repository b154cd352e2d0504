"""Where an ensemble starts: the distribution of the first state.

Every initial distribution draws model states, the same for a repetition whatever runs beside it.
"""

import abc
from typing import Any

import numpy as np
import torch
import xarray as xr
from torch import Tensor

from dynamics.random import member_generator
from dynamics.system import System

INITIAL = 201  # the key of this purpose, see dynamics.random


class Initial(abc.ABC):
    """A distribution of the first state."""

    @abc.abstractmethod
    def draw(
        self,
        system: System,
        members: int,
        seed: int,
        dtype: torch.dtype = torch.float32,
        device: torch.device | str = "cpu",
    ) -> Tensor:
        """Draws model states `(member, *model)` in physical units."""


class Gaussian(Initial):
    """A Gaussian distribution of the first state, `x ~ N(mean, covariance)`.

    Arguments:
        mean: The mean, which broadcasts to the state `(channel, *space)`.
        variance: The variance of each value, which broadcasts to the state.
        covariance: The covariance, with shape `(n, n)` for states of `n` values, in place of the
            variance.

    Raises:
        ValueError: If not exactly one of variance and covariance is given, a variance is not
            positive, or the covariance is not symmetric positive definite.
    """

    def __init__(self, mean: Any, variance: Any = None, covariance: Any = None) -> None:
        if (variance is None) == (covariance is None):
            raise ValueError("an initial Gaussian needs a variance or a covariance, and not both")
        self.mean = np.asarray(mean, dtype=np.float64)
        self.variance = None if variance is None else np.asarray(variance, dtype=np.float64)
        self.root: np.ndarray | None = None
        if self.variance is not None and not (
            np.isfinite(self.variance).all() and (self.variance > 0).all()
        ):
            raise ValueError(f"variance must be positive and finite, got {self.variance.min():g}")
        if covariance is not None:
            matrix = np.asarray(covariance, dtype=np.float64)
            self.root = cholesky("the initial covariance", matrix)

    def draw(
        self,
        system: System,
        members: int,
        seed: int,
        dtype: torch.dtype = torch.float32,
        device: torch.device | str = "cpu",
    ) -> Tensor:
        shape = system.layout.shape
        try:
            mean = np.broadcast_to(self.mean, shape)
            if self.variance is not None:
                np.broadcast_to(self.variance, shape)
        except ValueError as error:
            raise ValueError(
                f"an initial mean of shape {self.mean.shape} does not broadcast to the state "
                f"{shape} of {type(system).__name__}"
            ) from error
        noise = member_generator(seed, 0, INITIAL).standard_normal((members, *shape))
        if self.variance is not None:
            anomalies = np.sqrt(self.variance) * noise
        elif self.root is not None:
            if self.root.shape[0] != mean.size:
                raise ValueError(
                    f"an initial covariance {self.root.shape} does not fit states of {mean.size} "
                    f"values"
                )
            anomalies = (noise.reshape(members, -1) @ self.root.T).reshape(noise.shape)

        return system.lift(torch.from_numpy(mean + anomalies).to(device, dtype))


class Draws(Initial):
    """Draws from given states, without replacement as long as there are enough.

    Arguments:
        states: States `(number, channel, *space)` in physical units, or a dataset with the
            dimensions `member` and `time`, of which every state counts.

    Raises:
        ValueError: If there are none.
    """

    def __init__(self, states: Tensor | np.ndarray | xr.Dataset) -> None:
        self.states = states
        if not isinstance(states, xr.Dataset) and not len(states):
            raise ValueError("expected states to draw from, got none")

    def draw(
        self,
        system: System,
        members: int,
        seed: int,
        dtype: torch.dtype = torch.float32,
        device: torch.device | str = "cpu",
    ) -> Tensor:
        states, rng = self.states, member_generator(seed, 0, INITIAL)
        if isinstance(states, xr.Dataset):
            sizes = [states.sizes.get(dim, 1) for dim in ("member", "time")]
            chosen = choose(rng, sizes[0] * sizes[1], members)
            x = np.concatenate(
                [
                    system.layout.to_array(pick(states, int(i // sizes[1]), int(i % sizes[1])))[0]
                    for i in chosen
                ]
            )
        else:
            x = np.asarray(states)[choose(rng, len(states), members)]
        if x.shape[1:] != system.layout.shape:
            raise ValueError(
                f"expected states of shape {system.layout.shape} to start from, got {x.shape[1:]}"
            )

        return system.lift(torch.from_numpy(x).to(device, dtype))


class Spinup(Initial):
    """Draws from the system's climatology: members of their own, spun up.

    Arguments:
        steps: The number of steps of spin-up.
    """

    def __init__(self, steps: int = 256) -> None:
        if steps < 0:
            raise ValueError(f"the steps of spin-up must not be negative, got {steps}")
        self.steps = steps

    def draw(
        self,
        system: System,
        members: int,
        seed: int,
        dtype: torch.dtype = torch.float32,
        device: torch.device | str = "cpu",
    ) -> Tensor:
        rng = member_generator(seed, 0, INITIAL)
        # A seed of its own: members must not be the trajectories of the truth's seed.
        z = system.initial_model(range(members), int(rng.integers(2**31)), dtype, device)
        shape = system.project(z[:1]).shape[1:]
        with torch.no_grad():
            for _ in range(self.steps):
                noise = None
                if system.stochastic:
                    noise = torch.from_numpy(rng.standard_normal((members, *shape))).to(z)
                z = system.advance(z, noise)
        if not torch.isfinite(z).all():
            raise ValueError(
                f"{type(system).__name__} diverged within {self.steps} steps of spin-up"
            )

        return z


def initial_distribution(given: Any) -> Initial:
    """An initial distribution from what a user gives: one, states, a dataset, or None."""

    if given is None:
        return Spinup()
    if isinstance(given, Initial):
        return given
    if isinstance(given, torch.Tensor | np.ndarray | xr.Dataset):
        return Draws(given)
    raise TypeError(
        f"expected initial states, a dataset, sda.classical.Gaussian, Draws or Spinup, got "
        f"{type(given).__name__}"
    )


def choose(rng: np.random.Generator, number: int, members: int) -> np.ndarray:
    """Indices of members to draw."""
    return rng.choice(number, members, replace=members > number)


def pick(dataset: xr.Dataset, member: int, time: int) -> xr.Dataset:
    """One state of a dataset, with `time` kept."""

    dataset = dataset.isel(member=[member]) if "member" in dataset.dims else dataset
    return dataset.isel(time=[time]) if "time" in dataset.dims else dataset


def cholesky(name: str, matrix: np.ndarray) -> np.ndarray:
    """The lower Cholesky factor.

    Raises:
        ValueError: If the matrix is not symmetric positive definite.
    """

    square = matrix.ndim == 2 and matrix.shape[0] == matrix.shape[1]
    if not (square and np.isfinite(matrix).all() and np.allclose(matrix, matrix.T)):
        raise ValueError(f"{name} must be a symmetric finite matrix, got shape {matrix.shape}")
    try:
        return np.linalg.cholesky(matrix)
    except np.linalg.LinAlgError as error:
        raise ValueError(
            f"{name} must be positive definite, but its smallest eigenvalue is "
            f"{np.linalg.eigvalsh(matrix)[0]:.3g}"
        ) from error
