r"""A flame front: long waves grow, short waves decay, the nonlinearity passes energy between them.

$$ u_t = -u u_x - u_{xx} - u_{xxxx} $$

on a periodic domain of the given length. In Fourier space the linear part is diagonal with the
growth rates $k^2 - k^4$, stepped exactly; the nonlinear part $-\tfrac12 (u^2)_x$ is evaluated on
the grid and dealiased by the 2/3 rule. The mean of u is conserved.

References:
    Kuramoto and Tsuzuki (1976), Prog. Theor. Phys. 55; Sivashinsky (1977), Acta Astronaut. 4.
    Kassam and Trefethen (2005), https://doi.org/10.1137/S1064827502410633
"""

import math
from collections.abc import Sequence
from typing import Any

import numpy as np
import torch
from torch import Tensor

from .additive_noise import AdditiveNoise, check_positive
from .integrate import ETDRK4, etdrk4, etdrk4_coefficients
from .layout import Layout
from .random import normal

INITIAL_MODES = 4


class KuramotoSivashinsky(AdditiveNoise):
    """The Kuramoto–Sivashinsky equation, with one variable `u` on the periodic dimension `x`.

    Arguments:
        points: The number of grid points, even and at least 16.
        length: The length of the domain; 22 is weakly chaotic, 32π (with 128 points) fully.
        dt: The time between two states.
        substeps: The number of ETDRK4 steps within one `dt`; a step of 0.25 is accurate to 1e-4.

    Raises:
        ValueError: If `points` is odd or below 16, or another argument is not positive.
    """

    def __init__(
        self, points: int = 64, length: float = 22.0, dt: float = 0.25, substeps: int = 1
    ) -> None:
        check_positive(length=length, dt=dt, substeps=substeps)
        if points < 16 or points % 2:
            raise ValueError(f"points must be even and at least 16, got {points}")
        self.points, self.length, self.dt = int(points), length, dt
        self.substeps = int(substeps)
        self.layout = Layout(
            variables=("u",),
            dt=dt,
            coords={"x": np.arange(points) * (length / points)},
            period={"x": float(length)},
        )

        self.wavenumber = 2 * math.pi / length * torch.arange(points // 2 + 1, dtype=torch.float64)
        growth = self.wavenumber**2 - self.wavenumber**4
        self.coefficients = etdrk4_coefficients(growth, dt / substeps)
        self.resolved = torch.arange(points // 2 + 1) <= points // 3
        self._cache: dict[tuple[torch.dtype, torch.device], tuple[ETDRK4, Tensor, Tensor]] = {}

    def flow(self, x: Tensor) -> Tensor:
        coefficients, resolved, slope = self._constants(x)

        def nonlinear(v: Tensor) -> Tensor:
            u = torch.fft.irfft(resolved * v, n=self.points, dim=-1)
            return slope * torch.fft.rfft(u * u, dim=-1)

        v = torch.fft.rfft(x, dim=-1)
        for _ in range(self.substeps):
            v = etdrk4(nonlinear, v, coefficients)

        return torch.fft.irfft(v, n=self.points, dim=-1)

    def _constants(self, x: Tensor) -> tuple[ETDRK4, Tensor, Tensor]:
        key = (x.dtype, x.device)
        if key not in self._cache:
            resolved = self.resolved.to(x.device, x.dtype)
            slope = -0.5j * resolved * self.wavenumber.to(x.device, x.dtype)
            self._cache[key] = (self.coefficients.to(x.dtype, x.device), resolved, slope)
        return self._cache[key]

    def initial_model(
        self,
        members: Sequence[int],
        seed: int = 0,
        dtype: torch.dtype = torch.float32,
        device: torch.device | str = "cpu",
    ) -> Tensor:
        """Draws the four longest waves with random amplitudes: unit variance, zero mean.

        The field does not depend on the resolution.
        """

        a = normal(seed, members, (2, INITIAL_MODES), 0, dtype=dtype, device=device)
        a = a / math.sqrt(INITIAL_MODES)
        x = torch.as_tensor(self.layout.coords["x"], device=device)
        k = torch.arange(1, INITIAL_MODES + 1, device=device) * (2 * math.pi / self.length)
        phase = k[:, None] * x
        waves = torch.stack((phase.cos(), phase.sin())).to(dtype)

        return (a[..., None] * waves).sum(dim=(1, 2))[:, None]

    def config(self) -> dict[str, Any]:
        return {
            "points": self.points,
            "length": self.length,
            "dt": self.dt,
            "substeps": self.substeps,
        }
