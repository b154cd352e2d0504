r"""A quantity on a circle of latitude, advected, damped and forced.

$$ \dot x_j = (x_{j+1} - x_{j-2})\, x_{j-1} - x_j + F $$

The advection conserves the energy $\sum_j x_j^2 / 2$.

References:
    Lorenz (1996), Predictability: a problem partly solved.
    Sakov and Oke (2008), Tellus A 60, https://doi.org/10.1111/j.1600-0870.2007.00299.x
"""

from collections.abc import Sequence
from typing import Any

import numpy as np
import torch
from torch import Tensor

from .additive_noise import AdditiveNoise, check_positive
from .integrate import rk4
from .layout import Layout
from .random import normal


class Lorenz96(AdditiveNoise):
    """The system of Lorenz (1996), with one variable `x` on the periodic dimension `site`.

    Arguments:
        dimension: The number of sites, at least 4.
        forcing: The forcing F; chaotic from about 5 on, 8 is the usual choice.
        dt: The time between two states; 0.05 stands for 6 hours of weather.
        noise: Whether each step adds noise of variance `dt`.
        substeps: The number of Runge–Kutta steps within one `dt`.

    Raises:
        ValueError: If `dimension` is below 4, or `dt` or `substeps` is not positive.
    """

    def __init__(
        self,
        dimension: int = 40,
        forcing: float = 8.0,
        dt: float = 0.05,
        noise: bool = False,
        substeps: int = 1,
    ) -> None:
        check_positive(dt=dt, substeps=substeps)
        if dimension < 4:
            raise ValueError(f"dimension must be at least 4, got {dimension}")
        self.dimension, self.forcing, self.dt = int(dimension), forcing, dt
        self.noise, self.substeps = noise, int(substeps)
        self.variance = dt if noise else 0.0
        self.layout = Layout(
            variables=("x",),
            dt=dt,
            coords={"site": np.arange(dimension)},
            period={"site": float(dimension)},
        )

    @staticmethod
    def advection(x: Tensor) -> Tensor:
        """The quadratic term, which conserves the energy, for states `(*, site)`."""
        # One copy with the neighbours of both ends, of which the shifted states are views.
        wrapped = torch.cat((x[..., -2:], x, x[..., :1]), dim=-1)
        return (wrapped[..., 3:] - wrapped[..., :-3]) * wrapped[..., 1:-2]

    def tendency(self, x: Tensor) -> Tensor:
        """The time derivative of states `(*, site)`."""
        return self.advection(x) - x + self.forcing

    def flow(self, x: Tensor) -> Tensor:
        for _ in range(self.substeps):
            x = rk4(self.tendency, x, self.dt / self.substeps)
        return x

    def initial_model(
        self,
        members: Sequence[int],
        seed: int = 0,
        dtype: torch.dtype = torch.float32,
        device: torch.device | str = "cpu",
    ) -> Tensor:
        """Draws the unstable equilibrium F, plus noise of standard deviation 0.1."""

        shape = (1, self.dimension)

        return self.forcing + 0.1 * normal(seed, members, shape, 0, dtype=dtype, device=device)

    def config(self) -> dict[str, Any]:
        return {
            "dimension": self.dimension,
            "forcing": self.forcing,
            "dt": self.dt,
            "noise": self.noise,
            "substeps": self.substeps,
        }
