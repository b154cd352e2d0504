"""Kolmogorov flow: two-dimensional turbulence driven by a sinusoidal force.

.. math::
    \\partial_t \\mathbf{u} + \\mathbf{u} \\cdot \\nabla \\mathbf{u} =
    - \\nabla p + \\mathrm{Re}^{-1} \\nabla^2 \\mathbf{u} - \\mu \\mathbf{u}
    + A \\sin(k_f y) \\, \\mathbf{e}_x, \\qquad \\nabla \\cdot \\mathbf{u} = 0

on the torus [0, 2π]². In vorticity form, with the nonlinear term written by two products
(Basdevant, 1983),

.. math::
    \\partial_t \\omega = (\\partial_y^2 - \\partial_x^2)(u v)
    + \\partial_x \\partial_y (u^2 - v^2)
    + (\\mathrm{Re}^{-1} \\nabla^2 - \\mu) \\omega - A k_f \\cos(k_f y).

The linear term is integrated exactly (integrating factor), the rest by the classical fourth-order
Runge–Kutta method; products are dealiased by the 2/3 rule. The inner step follows from each
member's own maximal speed, so that a trajectory does not depend on which others share its batch.

References:
    | Basdevant (1983), Technical improvements for direct numerical simulation of homogeneous
      three-dimensional turbulence, J. Comput. Phys. 50.
    | Rozet & Louppe (2023), Score-based Data Assimilation, arXiv 2306.10574 (the set-up).
"""

import math
from collections.abc import Sequence
from typing import Any

import numpy as np
import torch
from torch import Tensor

from .layout import Layout
from .random import normal
from .spectral import coarsen, derivative_wavenumbers, wavenumbers
from .system import System

# Classical RK4 is stable for purely advective modes up to k_max |u| Δ = 2√2; the margin buys
# accuracy and lets the speed grow within one dt.
ADVECTIVE_LIMIT = 2.4


class KolmogorovFlow(System):
    """Kolmogorov flow on a doubly periodic square, state = velocity cell averages.

    The model state is the transform of the vorticity on `resolution²` cells; the state is `(u, v)`
    averaged over `size²` cells.

    Arguments:
        size: The number of cells of the state in each dimension; divides `resolution`.
        reynolds: The Reynolds number Re.
        forcing: The amplitude A of the force.
        wavenumber: The wavenumber k_f of the force.
        drag: The linear drag μ.
        dt: The time between two states.
        resolution: The number of cells of the model in each dimension.
        peak: The wavenumber around which initial fields are filtered.
        speed: The maximal speed of initial fields.

    Raises:
        ValueError: If `size` does not divide `resolution`, or a parameter is out of range.
    """

    def __init__(
        self,
        size: int = 64,
        reynolds: float = 1e3,
        forcing: float = 1.0,
        wavenumber: int = 4,
        drag: float = 0.1,
        dt: float = 0.2,
        resolution: int = 128,
        peak: float = 4.0,
        speed: float = 3.0,
    ) -> None:
        if size < 4 or resolution % size or resolution % 2:
            raise ValueError(
                f"size must be at least 4 and divide the even resolution {resolution}, got {size}"
            )
        if reynolds <= 0 or drag < 0 or wavenumber < 1 or peak <= 0 or speed < 0:
            raise ValueError(
                f"expected reynolds > 0, drag ≥ 0, wavenumber ≥ 1, peak > 0, speed ≥ 0, got "
                f"reynolds={reynolds}, drag={drag}, wavenumber={wavenumber}, peak={peak}, "
                f"speed={speed}"
            )
        self.size, self.resolution = size, resolution
        self.reynolds, self.forcing, self.wavenumber, self.drag = (
            reynolds,
            forcing,
            wavenumber,
            drag,
        )
        self.dt, self.peak, self.speed = dt, peak, speed

        centres = (np.arange(size) + 0.5) * 2 * np.pi / size
        self.layout = Layout(
            variables=("u", "v"),
            dt=dt,
            coords={"y": centres, "x": centres},
            period={"y": 2 * np.pi, "x": 2 * np.pi},
            long_names={"u": "velocity along x", "v": "velocity along y"},
        )
        self._operators: dict[tuple[torch.dtype, torch.device], SpectralOperators] = {}

    def config(self) -> dict[str, Any]:
        return {
            "size": self.size,
            "reynolds": self.reynolds,
            "forcing": self.forcing,
            "wavenumber": self.wavenumber,
            "drag": self.drag,
            "dt": self.dt,
            "resolution": self.resolution,
            "peak": self.peak,
            "speed": self.speed,
        }

    def static(self) -> dict[str, np.ndarray]:
        """The force `A sin(k_f y)` along x, averaged over the cells, `(y, x)`."""

        half = self.wavenumber * np.pi / self.size
        force = self.forcing * np.sin(self.wavenumber * self.layout.coords["y"])
        averages = force * np.sin(half) / half

        return {"forcing": np.tile(averages[:, None], (1, self.size)).astype(np.float32)}

    def operators(self, dtype: torch.dtype, device: torch.device) -> "SpectralOperators":
        """The wavenumber tables in a real precision and on a device, made once."""

        key = (dtype, device)
        if key not in self._operators:
            self._operators[key] = SpectralOperators(self, dtype, device)

        return self._operators[key]

    def initial_model(
        self,
        members: Sequence[int],
        seed: int = 0,
        dtype: torch.dtype = torch.float32,
        device: torch.device | str = "cpu",
    ) -> Tensor:
        """Draws isotropic solenoidal fields with a log-normal spectrum around `peak`.

        The maximal speed of each field is `speed`.

        Returns:
            Transforms of the vorticity, complex, with shape
            `(member, resolution, resolution // 2 + 1)`.
        """

        n = self.resolution
        noise = normal(seed, members, (n, n), 0, dtype=torch.float64)
        ky, kx = wavenumbers(n, dtype=torch.float64)
        k = (ky.square() + kx.square()).sqrt().clamp(min=0.5)
        # Log-normal energy density with its mode at the peak wavenumber.
        variance = 0.25
        mean = math.log(self.peak) + variance
        density = torch.exp(-(k.log() - mean).square() / (2 * variance)) / k
        w = torch.fft.rfft2(noise) * density.sqrt() * k.sqrt()
        operators = self.operators(torch.float64, torch.device("cpu"))
        w = w * operators.dealias
        u = operators.velocity(w)
        largest = u.square().sum(1).amax((-2, -1)).sqrt()[:, None, None]
        w = w * (self.speed / largest)

        return w.to(dtype=complex_type(dtype), device=device)

    def substeps(self, w: Tensor) -> Tensor:
        """The number of inner steps per `dt` that each member's own speed asks for."""

        operators = self.operators(real_type(w.dtype), w.device)
        speed = operators.velocity(w.detach()).abs().amax((-2, -1)).sum(-1)
        limit = ADVECTIVE_LIMIT / (self.resolution // 3)
        force = math.sqrt(abs(self.forcing) * 2 * math.pi / self.resolution)

        return torch.clamp(torch.ceil(self.dt * (speed + force) / limit), min=1).long()

    def advance(self, z: Tensor, noise: Tensor | None = None) -> Tensor:
        if noise is not None:
            raise ValueError("KolmogorovFlow is deterministic and takes no noise")
        count = self.substeps(z)
        if not torch.isfinite(z.detach().abs().sum((-2, -1))).all() or count.max() > 10_000:
            bad = [i for i, n in enumerate(count.tolist()) if n > 10_000 or n < 0]
            raise FloatingPointError(
                f"the flow has diverged in members {bad or 'with NaN'} of the batch"
            )

        if bool((count == count[0]).all()):
            return self._march(z, int(count[0]))

        pieces, places = [], []
        for n in sorted(set(count.tolist())):
            place = (count == n).nonzero()[:, 0]
            pieces.append(self._march(z[place], n))
            places.append(place)

        return torch.cat(pieces)[torch.argsort(torch.cat(places))]

    def _march(self, w: Tensor, count: int) -> Tensor:
        """Takes `count` equal Runge–Kutta steps over one `dt`."""

        operators = self.operators(real_type(w.dtype), w.device)
        step = self.dt / count
        half, full = operators.factors(step)
        for _ in range(count):
            # With v = exp(-L τ) w the equation is dv/dτ = exp(-L τ) N(exp(L τ) v): RK4 on v.
            k1 = operators.tendency(w)
            a = half * w
            k2 = operators.tendency(torch.addcmul(a, half, k1, value=step / 2))
            k3 = operators.tendency(a + (step / 2) * k2)
            b = full * w
            k4 = operators.tendency(torch.addcmul(b, half, k3, value=step))
            w = b + (step / 6) * (full * k1 + 2 * half * (k2 + k3) + k4)

        return w

    def project(self, z: Tensor) -> Tensor:
        """Averages the velocity over the cells of the state, `(member, 2, size, size)`."""

        u = self.operators(real_type(z.dtype), z.device).velocity(z)

        return coarsen(u, self.resolution // self.size)

    def lift(self, x: Tensor) -> Tensor:
        """The band-limited vorticity whose cell averages are the state.

        Wavenumbers that the state's grid does not resolve are zero, compressible parts and the mean
        flow are dropped.
        """

        n, m = self.size, self.resolution
        operators = self.operators(x.dtype, x.device)
        h = torch.fft.rfft2(x) * operators.decoarsening * (m / n) ** 2
        u = torch.zeros(*x.shape[:-2], m, m // 2 + 1, dtype=h.dtype, device=x.device)
        half = n // 2
        u[..., :half, :half] = h[..., :half, :half]
        u[..., m - half + 1 :, :half] = h[..., half + 1 :, :half]
        w = 1j * (operators.kx * u[..., 1, :, :] - operators.ky * u[..., 0, :, :])

        return w * operators.dealias


class SpectralOperators:
    """The wavenumber tables of one flow in one precision on one device."""

    def __init__(self, flow: KolmogorovFlow, dtype: torch.dtype, device: torch.device) -> None:
        n, m = flow.resolution, flow.size
        ky, kx = derivative_wavenumbers(n, dtype=torch.float64)
        k2 = ky.square() + kx.square()
        inverse = torch.where(k2 > 0, 1 / k2.clamp(min=1), torch.zeros_like(k2))
        limit = n // 3
        # The Nyquist modes are zero among the wavenumbers of derivatives: the mask needs the true
        # ones.
        qy, qx = wavenumbers(n, dtype=torch.float64)
        dealias = ((qy.abs() <= limit) & (qx.abs() <= limit) & (k2 > 0)).double()

        y = (torch.arange(n, dtype=torch.float64) + 0.5) * 2 * math.pi / n
        force = -flow.forcing * flow.wavenumber * torch.cos(flow.wavenumber * y)
        self.size = n
        self.linear = (-k2 / flow.reynolds - flow.drag).to(device=device)
        self.dtype = dtype

        complex_ = complex_type(dtype)
        self.ky, self.kx = ky.to(device, dtype), kx.to(device, dtype)
        self.dealias = dealias.to(device, dtype)
        # u = -∂ψ/∂y, v = ∂ψ/∂x with ∇²ψ = ω.
        self.to_velocity = torch.stack((1j * ky * inverse, -1j * kx * inverse)).to(device, complex_)
        self.products = torch.stack(((kx.square() - ky.square()) * dealias, -ky * kx * dealias)).to(
            device, dtype
        )
        self.force = (torch.fft.rfft2(force[:, None].expand(n, n)) * dealias).to(device, complex_)

        # Transfer of a block mean, and the half-cell shift between the two grids' origins.
        factor = n // m
        qy, qx = wavenumbers(m, dtype=torch.float64)
        offset = (torch.arange(factor, dtype=torch.float64) - (factor - 1) / 2) * 2 * math.pi / n
        transfer = torch.cos(qy[..., None] * offset).mean(-1) * torch.cos(
            qx[..., None] * offset
        ).mean(-1)
        shift = torch.exp(-1j * (qy + qx) * (factor - 1) / 2 * 2 * math.pi / n)
        self.decoarsening = (shift / transfer).to(device, complex_)

    def factors(self, step: float) -> tuple[Tensor, Tensor]:
        """The integrating factors over half a step and a whole one."""

        half = torch.exp(self.linear * (step / 2))

        return half.to(complex_type(self.dtype)), half.square().to(complex_type(self.dtype))

    def velocity(self, w: Tensor) -> Tensor:
        """The velocity `(…, 2, y, x)` of a transformed vorticity."""

        return torch.fft.irfft2(self.to_velocity * w[..., None, :, :], s=(self.size, self.size))

    def tendency(self, w: Tensor) -> Tensor:
        """The nonlinear term and the force."""

        u, v = self.velocity(w).unbind(dim=-3)
        q = torch.fft.rfft2(torch.stack((u * v, u.square() - v.square()), dim=-3))

        return (self.products * q).sum(-3) + self.force


def complex_type(dtype: torch.dtype) -> torch.dtype:
    """The complex type of a real type's precision."""
    return torch.complex128 if dtype == torch.float64 else torch.complex64


def real_type(dtype: torch.dtype) -> torch.dtype:
    """The real type of a complex type's precision."""
    return torch.float64 if dtype == torch.complex128 else torch.float32
