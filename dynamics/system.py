"""Dynamical systems.

A system advances states by one `dt` of its layout,

    x_{i+1} = f(x_i) + noise,

batched over members, on any device, differentiable. Some systems run at a finer resolution than the
states that they show: then `advance` steps the *model state* (fine), `project` maps it to the state
and `lift` maps a state to the most plausible model state. For all others the two are the same.
"""

import abc
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
import xarray as xr
from torch import Tensor

from .layout import Layout


class System(abc.ABC):
    """A dynamical system.

    Attributes:
        layout: The layout of the states.
        stochastic: Whether a step adds noise.
    """

    layout: Layout
    stochastic: bool = False

    @abc.abstractmethod
    def initial_model(
        self,
        members: Sequence[int],
        seed: int = 0,
        dtype: torch.dtype = torch.float32,
        device: torch.device | str = "cpu",
    ) -> Tensor:
        """Draws one initial model state per member index, each from its own generator.

        Returns:
            The model states, with shape `(member, *model)`.
        """

    @abc.abstractmethod
    def advance(self, z: Tensor, noise: Tensor | None = None) -> Tensor:
        """Advances model states by one `dt`.

        Arguments:
            z: The model states, with shape `(member, *model)`.
            noise: Standard normal noise, with the shape of the states. A deterministic system takes
                none; a stochastic system without noise returns the mean of the transition.

        Raises:
            ValueError: If a deterministic system is given noise.
        """

    def project(self, z: Tensor) -> Tensor:
        """Maps model states to states `(member, channel, *space)`."""
        return z

    def lift(self, x: Tensor) -> Tensor:
        """Maps states to model states, such that `project(lift(x))` is close to `x`."""
        return x

    def initial(
        self,
        members: int | Sequence[int],
        seed: int = 0,
        dtype: torch.dtype = torch.float32,
        device: torch.device | str = "cpu",
    ) -> Tensor:
        """Draws initial states `(member, channel, *space)` in physical units.

        Arguments:
            members: The number of members, or their indices.
            seed: The seed. Member `m` of seed `s` is always the same state.
        """

        members = range(members) if isinstance(members, int) else members

        return self.project(self.initial_model(members, seed, dtype, device))

    def step(self, x: Tensor, noise: Tensor | None = None) -> Tensor:
        """Advances states `(member, channel, *space)` by one `dt`, see `advance`."""
        return self.project(self.advance(self.lift(x), noise))

    def rollout(self, x: Tensor, length: int, noise: Tensor | None = None) -> Tensor:
        """Steps `length - 1` times from `x`.

        Arguments:
            x: The first states, with shape `(member, channel, *space)`.
            length: The number of states, the first included.
            noise: Standard normal noise, with shape `(member, length - 1, channel, *space)`.

        Returns:
            The trajectories, with shape `(member, time, channel, *space)`.

        Raises:
            ValueError: If `length` is not positive or the noise has another shape.
        """

        if length < 1:
            raise ValueError(f"length must be at least 1, got {length}")
        if noise is not None and noise.shape != (len(x), length - 1, *x.shape[1:]):
            raise ValueError(
                f"noise must have shape {(len(x), length - 1, *x.shape[1:])}, got "
                f"{tuple(noise.shape)}"
            )
        z, states = self.lift(x), [x]
        for i in range(length - 1):
            z = self.advance(z, None if noise is None else noise[:, i])
            states.append(self.project(z))

        return torch.stack(states, dim=1)

    def log_transition(self, x: Tensor, x_next: Tensor) -> Tensor:
        """The transition density `log p(x_next | x)`, with shape `(member)`.

        Raises:
            ValueError: If the system has no known transition density.
        """

        raise ValueError(
            f"{type(self).__name__} has no known transition density: use a stochastic system such "
            f"as LinearGaussian or Lorenz63(noise=True)"
        )

    def static(self) -> dict[str, np.ndarray]:
        """Constant fields that the dynamics depend on, each on the grid of the state, `(*space)`.

        A simulation stores them beside the trajectories, as coordinates.
        """
        return {}

    def config(self) -> dict[str, Any]:
        """The arguments that make this system again, as plain JSON types."""
        return {}

    def simulate(
        self,
        members: int,
        length: int,
        spinup: int = 0,
        seed: int = 0,
        out: str | Path | None = None,
        **options: Any,
    ) -> xr.Dataset:
        """Simulates an ensemble of trajectories, see `dynamics.simulate.simulate`."""

        from .simulate import simulate

        return simulate(self, members, length, spinup, seed, out, **options)
