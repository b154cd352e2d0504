r"""Kolmogorov flow by finite volumes: the baseline that `KolmogorovFlow` is compared with.

Velocity components live on the faces of the cells (Harlow and Welch, 1965), advection is a limited
upwind scheme (van Leer, 1974), time stepping is Euler's, and the pressure equation is solved by FFT
with the eigenvalues of the discrete Laplacian, so that the discrete divergence is zero to
round-off. This is the kind of solver, and at 256² the resolution, that Rozet and Louppe (2023) made
their data with.

References:
    Harlow and Welch (1965), Phys. Fluids 8; van Leer (1974), J. Comput. Phys. 14.
    Rozet and Louppe (2023), Score-based data assimilation, https://arxiv.org/abs/2306.10574
"""

import math
from collections.abc import Sequence
from typing import Any

import numpy as np
import torch
from torch import Tensor

from .additive_noise import check_positive
from .kolmogorov import KolmogorovFlow
from .spectral import coarsen
from .system import System

X, Y = -1, -2


class FiniteVolumeKolmogorov(System):
    """Kolmogorov flow on a staggered grid, with the states of `KolmogorovFlow`.

    The model state is `(member, 2, y, x)`: u on the left faces of the cells, v on their
    lower ones.

    Arguments:
        size: The number of cells of the state in each dimension; divides `resolution`.
        resolution: The number of cells of the model in each dimension.
        reynolds: The Reynolds number.
        forcing: The amplitude of the force `sin(k y)` on u.
        wavenumber: The wavenumber k of the force.
        drag: The linear drag.
        dt: The time between two states.
        courant: The largest Courant number of an inner step, per dimension.

    Raises:
        ValueError: If `size` does not divide `resolution`, or a parameter is out of range.
    """

    def __init__(
        self,
        size: int = 64,
        resolution: int = 256,
        reynolds: float = 1e3,
        forcing: float = 1.0,
        wavenumber: int = 4,
        drag: float = 0.1,
        dt: float = 0.2,
        courant: float = 0.5,
    ) -> None:
        check_positive(reynolds=reynolds, dt=dt, courant=courant)
        # It checks the grid and draws the initial states.
        self.spectral = KolmogorovFlow(
            size, reynolds, forcing, wavenumber, drag, dt, resolution=resolution
        )
        self.layout = self.spectral.layout
        self.size, self.resolution, self.reynolds = size, resolution, reynolds
        self.forcing, self.wavenumber, self.drag = forcing, wavenumber, drag
        self.dt, self.courant = dt, courant

        self.cell = 2 * math.pi / resolution
        k = 2 * math.pi * torch.fft.fftfreq(resolution, dtype=torch.float64)
        eigenvalues = (2 * torch.cos(k) - 2) / self.cell**2
        laplacian = eigenvalues[:, None] + eigenvalues[: resolution // 2 + 1]
        laplacian[0, 0] = 1  # the pressure has no mean
        self._inverse_laplacian = 1 / laplacian
        self._inverse_laplacian[0, 0] = 0

    def static(self) -> dict[str, np.ndarray]:
        """The force, see `KolmogorovFlow.static`."""
        return self.spectral.static()

    def substeps(self, z: Tensor) -> Tensor:
        """The number of inner steps per `dt` that each member's maximal speed asks for."""

        speed = z.detach().abs().amax(dim=(1, 2, 3)) + self.forcing * self.dt
        advective = speed * self.dt / (self.courant * self.cell)
        diffusive = 4 * self.dt / (self.reynolds * self.cell**2)

        return advective.clamp(min=diffusive).ceil().clamp(min=1).long()

    def advance(self, z: Tensor, noise: Tensor | None = None) -> Tensor:
        """Advances model states by one `dt`, see `System.advance`."""

        if noise is not None:
            raise ValueError(f"{type(self).__name__} is deterministic and takes no noise")
        if not torch.isfinite(z).all():
            raise FloatingPointError("the velocity is not finite")
        out = torch.empty_like(z)
        count = self.substeps(z)
        for n in count.unique().tolist():
            u = z[count == n]
            for _ in range(n):
                u = self.project_out(u + self.dt / n * self.tendency(u, self.dt / n))
            out[count == n] = u

        return out

    def tendency(self, z: Tensor, step: float) -> Tensor:
        """Advection, diffusion, drag and force, without the pressure.

        Arguments:
            z: The model states, with shape `(member, 2, y, x)`.
            step: The length of the inner step, which the limited fluxes depend on.
        """

        h = self.cell
        u, v = z.unbind(dim=1)
        # Velocities on the faces of the control volumes: those of u lie around left faces.
        flux_uu = self.flux(u, (u + u.roll(-1, X)) / 2, X, step)
        flux_uv = self.flux(u.roll(1, Y), (v + v.roll(1, X)) / 2, Y, step)
        flux_vu = self.flux(v.roll(1, X), (u + u.roll(1, Y)) / 2, X, step)
        flux_vv = self.flux(v, (v + v.roll(-1, Y)) / 2, Y, step)
        advection = torch.stack(
            (
                flux_uu - flux_uu.roll(1, X) + flux_uv.roll(-1, Y) - flux_uv,
                flux_vu.roll(-1, X) - flux_vu + flux_vv - flux_vv.roll(1, Y),
            ),
            dim=1,
        )
        neighbours = z.roll(1, X) + z.roll(-1, X) + z.roll(1, Y) + z.roll(-1, Y)
        y = (torch.arange(self.resolution, dtype=z.dtype, device=z.device) + 0.5) * h
        out = (neighbours - 4 * z) / (self.reynolds * h**2) - self.drag * z - advection / h
        out[:, 0] += self.forcing * torch.sin(self.wavenumber * y)[:, None]

        return out

    def flux(self, c: Tensor, speed: Tensor, dim: int, step: float) -> Tensor:
        """The limited flux of `c` between each cell and the next one along `dim`."""

        ahead = c.roll(-1, dim)
        rise = ahead - c
        upstream = torch.where(speed > 0, c - c.roll(1, dim), ahead.roll(-1, dim) - ahead)
        product = rise * upstream
        # Van Leer's limiter is the harmonic mean of the two slopes where they agree in sign.
        slope = torch.where(product > 0, 2 * product / (rise + upstream), 0.0)
        correction = speed.abs() * (1 - speed.abs() * (step / self.cell)) * slope / 2

        return torch.where(speed > 0, speed * c, speed * ahead) + correction

    def divergence(self, z: Tensor) -> Tensor:
        """The net outflow of each cell per unit area."""

        u, v = z.unbind(dim=1)

        return (u.roll(-1, X) - u + v.roll(-1, Y) - v) / self.cell

    def project_out(self, z: Tensor) -> Tensor:
        """Subtracts the pressure gradient that makes the velocity solenoidal."""

        inverse = self._inverse_laplacian.to(z)
        p = torch.fft.irfft2(
            inverse * torch.fft.rfft2(self.divergence(z)), s=(self.resolution, self.resolution)
        )

        return z - torch.stack((p - p.roll(1, X), p - p.roll(1, Y)), dim=1) / self.cell

    def initial_model(
        self,
        members: Sequence[int],
        seed: int = 0,
        dtype: torch.dtype = torch.float32,
        device: torch.device | str = "cpu",
    ) -> Tensor:
        """Draws the fields of `KolmogorovFlow` on this resolution."""

        w = self.spectral.initial_model(members, seed, dtype, device)

        return self.to_faces(self.spectral.operators(dtype, w.device).velocity(w))

    def to_faces(self, velocity: Tensor) -> Tensor:
        """Maps velocities at cell centres to solenoidal ones on faces."""

        u, v = velocity.unbind(dim=1)

        faces = torch.stack(((u + u.roll(1, X)) / 2, (v + v.roll(1, Y)) / 2), dim=1)

        return self.project_out(faces)

    def project(self, z: Tensor) -> Tensor:
        """Averages the velocity over the cells of the state, `(member, 2, size, size)`."""

        u, v = z.unbind(dim=1)
        centred = torch.stack(((u + u.roll(-1, X)) / 2, (v + v.roll(-1, Y)) / 2), dim=1)

        return coarsen(centred, self.resolution // self.size)

    def lift(self, x: Tensor) -> Tensor:
        """The band-limited solenoidal velocity whose cell averages are close to the state."""

        operators = self.spectral.operators(x.dtype, x.device)

        return self.to_faces(operators.velocity(self.spectral.lift(x)))

    def config(self) -> dict[str, Any]:
        return {
            "size": self.size,
            "resolution": self.resolution,
            "reynolds": self.reynolds,
            "forcing": self.forcing,
            "wavenumber": self.wavenumber,
            "drag": self.drag,
            "dt": self.dt,
            "courant": self.courant,
        }
