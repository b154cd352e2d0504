"""Incompressible flow on a doubly periodic square, in Fourier space.

What a window network needs of it: velocities from streamfunctions, and the tendency by advection.
All that depends on the grid alone is made once; each map is a transform, one multiplication and an
inverse transform.
"""

import math

import torch
import torch.nn as nn
from torch import Tensor

from dynamics.spectral import derivative_wavenumbers


class PlaneFlow(nn.Module):
    """Spectral operators of an incompressible flow.

    Arguments:
        size: The numbers of cells `(ny, nx)`.
        period: The period of both dimensions.
    """

    slope: Tensor
    rotation: Tensor
    gradient: Tensor
    inversion: Tensor

    def __init__(self, size: tuple[int, int], period: float = 2 * math.pi) -> None:
        super().__init__()
        self.size = size
        ky, kx = derivative_wavenumbers(size, 2 * math.pi)
        root = math.sqrt(2) / (ky.square() + kx.square()).sqrt().clamp(min=1)
        ones = torch.ones(size[0], size[1] // 2 + 1)
        self._constant("slope", torch.stack((-1j * ky * root, 1j * kx * root)))

        ky, kx = derivative_wavenumbers(size, period)
        k2 = ky.square() + kx.square()
        inverse = torch.where(k2 > 0, 1 / k2.clamp(min=1e-12), torch.zeros_like(k2))
        self._constant("rotation", torch.stack((-1j * ky * ones, 1j * kx * ones)))
        self._constant("gradient", torch.stack((1j * kx * ones, 1j * ky * ones)))
        # ψ of the tendency −u·∇ω is +inverse · (u·∇ω)^ because ∇²ψ = ω.
        self._constant("inversion", torch.stack((-1j * ky * inverse, 1j * kx * inverse)))

    def _constant(self, name: str, value: Tensor) -> None:
        self.register_buffer(name, value, persistent=False)

    def curl(self, psi: Tensor) -> Tensor:
        """Velocities `(…, 2, y, x)` of unit-slope streamfunctions `(…, y, x)`."""
        return torch.fft.irfft2(torch.fft.rfft2(psi)[..., None, :, :] * self.slope, s=self.size)

    def advection(self, velocity: Tensor) -> Tensor:
        """The solenoidal part of advection, `−P(u · ∇u)`, of velocities `(…, 2, y, x)`.

        It is the velocity whose vorticity is `−u · ∇ω`; products are not dealiased.
        """

        vorticity = (torch.fft.rfft2(velocity) * self.rotation).sum(-3, keepdim=True)
        gradient = torch.fft.irfft2(vorticity * self.gradient, s=self.size)
        transport = torch.fft.rfft2((velocity * gradient).sum(-3, keepdim=True))

        return torch.fft.irfft2(transport * self.inversion, s=self.size)
