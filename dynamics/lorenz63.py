r"""The convection model of Lorenz, three variables and two wings.

$$ \dot x = \sigma (y - x), \quad \dot y = x (\rho - z) - y, \quad \dot z = x y - \beta z $$

References:
    Lorenz (1963), Deterministic nonperiodic flow, J. Atmos. Sci. 20.
    Rozet and Louppe (2023), Score-based data assimilation, https://arxiv.org/abs/2306.10574
"""

import math
from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor

from .additive_noise import AdditiveNoise, check_positive
from .integrate import rk4
from .layout import Layout
from .random import normal


class Lorenz63(AdditiveNoise):
    """The system of Lorenz (1963), with channels `x`, `y`, `z` and no space.

    Arguments:
        dt: The time between two states (0.025 in Rozet and Louppe, 0.01 in Sakov et al., 2012).
        noise: Whether each step adds noise of variance `dt`, in raw units.
        sigma: The Prandtl number.
        rho: The Rayleigh number, relative to the onset of convection.
        beta: The aspect ratio of the rolls.
        substeps: The number of Runge–Kutta steps within one `dt`.

    Raises:
        ValueError: If `dt` or a parameter is not positive, or `substeps` is below 1.
    """

    def __init__(
        self,
        dt: float = 0.025,
        noise: bool = False,
        sigma: float = 10.0,
        rho: float = 28.0,
        beta: float = 8 / 3,
        substeps: int = 1,
    ) -> None:
        check_positive(dt=dt, sigma=sigma, rho=rho, beta=beta, substeps=substeps)
        self.dt, self.noise, self.substeps = dt, noise, int(substeps)
        self.sigma, self.rho, self.beta = sigma, rho, beta
        self.variance = dt if noise else 0.0
        self.layout = Layout(variables=("x", "y", "z"), dt=dt)

    def tendency(self, x: Tensor) -> Tensor:
        """The time derivative of states `(*, 3)`."""

        x, y, z = x.unbind(dim=-1)

        return torch.stack(
            (self.sigma * (y - x), x * (self.rho - z) - y, x * y - self.beta * z), dim=-1
        )

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
        """Draws from N((1.509, −1.531, 25.46), 2 I), the start of Sakov et al. (2012)."""

        mean = torch.tensor((1.509, -1.531, 25.46), dtype=dtype, device=device)

        return mean + math.sqrt(2) * normal(seed, members, (3,), 0, dtype=dtype, device=device)

    def config(self) -> dict[str, Any]:
        return {
            "dt": self.dt,
            "noise": self.noise,
            "sigma": self.sigma,
            "rho": self.rho,
            "beta": self.beta,
            "substeps": self.substeps,
        }
