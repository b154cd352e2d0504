r"""Two-layer quasi-geostrophic flow on a doubly periodic β-plane: eddies in a sheared current.

Each layer i carries its potential vorticity q_i along with the mean current U_i and the eddies,

$$ \partial_t q_i + J(\psi_i, q_i) + U_i\, \partial_x q_i + Q_i\, \partial_x \psi_i
   = -\delta_{i2}\, r \nabla^2 \psi_2 - \nu (-\nabla^2)^4 q_i, $$

$$ q_1 = \nabla^2 \psi_1 + F_1 (\psi_2 - \psi_1), \quad
   q_2 = \nabla^2 \psi_2 + F_2 (\psi_1 - \psi_2), $$

with F_1 = 1 / (R² (1 + δ)) and F_2 = δ F_1 of the deformation radius R and the ratio
δ = H_1 / H_2 of the layers' depths, the mean gradients
Q_1 = β + F_1 (U_1 − U_2) and Q_2 = β − F_2 (U_1 − U_2), drag r at the bottom, and a hyperviscosity
ν that takes up the enstrophy. Layer 1 is the upper one. The shear feeds waves near R (baroclinic
instability), these merge into larger eddies, and the drag takes their energy out.

Pseudo-spectral with the hyperviscosity as an integrating factor of the classical fourth-order
Runge–Kutta method; products are dealiased by the 2/3 rule. The inner step follows from each
member's own maximal speed, so that a trajectory does not depend on which others share its batch.

References:
    | Phillips (1951), A simple three-dimensional model for the study of large-scale extratropical
      flow patterns, J. Meteor. 8 (the two layers and their instability).
    | Vallis (2017), Atmospheric and Oceanic Fluid Dynamics, chapters 5 and 9.
    | Rozet & Louppe (2023), Score-based Data Assimilation for a Two-Layer Quasi-Geostrophic Model,
      arXiv 2310.01853.
"""

import math
from collections.abc import Sequence
from typing import Any

import numpy as np
import torch
from torch import Tensor

from .additive_noise import check_positive
from .kolmogorov import ADVECTIVE_LIMIT, complex_type, real_type
from .layout import Layout
from .random import normal
from .spectral import coarsen, derivative_wavenumbers, wavenumbers
from .system import System

GRAVITY = 9.81  # m s⁻²
HOUR = 3600.0  # s
MOST_STEPS = 10_000  # within one dt, beyond which a member has diverged


class TwoLayerQG(System):
    """Two-layer quasi-geostrophic flow, state = cell averages of the streamfunctions.

    The model state is the transform of the potential vorticity of both layers on `resolution²`
    cells; the state is `(psi1, psi2)` in m² s⁻¹, averaged over `size²` cells. The mean current is
    not part of it. What else one may want is a function of the state: `velocity`,
    `potential_vorticity`, `sea_surface_height`, `interface_displacement`, `energy`, `enstrophy`
    and `heat_flux`.

    Arguments:
        size: The number of cells of the state in each dimension; divides `resolution`.
        resolution: The number of cells of the model in each dimension.
        width: The period of both dimensions, in km.
        radius: The deformation radius R, in km.
        depths: The depths of the layers H_1 and H_2, in m.
        current: The mean current along x in each layer U_1 and U_2, in m s⁻¹.
        beta: The gradient of the Coriolis parameter β, in m⁻¹ s⁻¹.
        coriolis: The Coriolis parameter f_0, in s⁻¹.
        drag: The bottom drag r, in s⁻¹.
        damping_time: The time in which hyperviscosity damps the shortest wave by e, in hours;
            `None` for none.
        dt: The time between two states, in hours.
        wavelength: That around which initial fields are filtered, in km (default: an eighth of
            the width).
        speed: The maximal speed of initial fields, in m s⁻¹.

    Raises:
        ValueError: If `size` does not divide `resolution`, or a parameter is out of range.
    """

    def __init__(
        self,
        size: int = 64,
        resolution: int = 64,
        width: float = 1000.0,
        radius: float = 15.0,
        depths: tuple[float, float] = (500.0, 2000.0),
        current: tuple[float, float] = (0.025, 0.0),
        beta: float = 1.5e-11,
        coriolis: float = 1e-4,
        drag: float = 5.787e-7,
        damping_time: float | None = 6.0,
        dt: float = 24.0,
        wavelength: float | None = None,
        speed: float = 0.1,
    ) -> None:
        if size < 4 or resolution % size or resolution % 2:
            raise ValueError(
                f"size must be at least 4 and divide the even resolution {resolution}, got {size}"
            )
        check_positive(width=width, radius=radius, dt=dt)
        check_positive(**{f"depths[{i}]": depth for i, depth in enumerate(depths)})
        if damping_time is not None:
            check_positive(damping_time=damping_time)
        if len(depths) != 2 or len(current) != 2 or coriolis == 0 or drag < 0 or speed < 0:
            raise ValueError(
                f"expected two depths, two currents, coriolis ≠ 0, drag ≥ 0, speed ≥ 0, got "
                f"depths={depths}, current={current}, coriolis={coriolis}, drag={drag}, "
                f"speed={speed}"
            )
        self.size, self.resolution, self.width, self.radius = size, resolution, width, radius
        self.depths = (float(depths[0]), float(depths[1]))
        self.current = (float(current[0]), float(current[1]))
        self.beta, self.coriolis, self.drag = beta, coriolis, drag
        self.damping_time, self.dt = damping_time, dt
        self.wavelength, self.speed = width / 8 if wavelength is None else wavelength, speed
        check_positive(wavelength=self.wavelength)

        ratio = self.depths[0] / self.depths[1]
        upper = 1 / ((1e3 * radius) ** 2 * (1 + ratio))
        shear = self.current[0] - self.current[1]
        self.stretching = (upper, ratio * upper)
        self.gradients = (beta + upper * shear, beta - ratio * upper * shear)
        self.shares = tuple(depth / sum(self.depths) for depth in self.depths)
        # The hydrostatic jump of buoyancy at the interface, g' = f₀² / (F₁ H₁).
        self.reduced_gravity = coriolis**2 / (upper * self.depths[0])

        centres = (np.arange(size) + 0.5) * width / size
        self.layout = Layout(
            variables=("psi1", "psi2"),
            dt=dt,
            coords={"y": centres, "x": centres},
            period={"y": width, "x": width},
            units={"psi1": "m2 s-1", "psi2": "m2 s-1", "y": "km", "x": "km"},
            long_names={
                "psi1": "streamfunction of the upper layer",
                "psi2": "streamfunction of the lower layer",
            },
            time_units="hours",
        )
        self._operators: dict[tuple[int, torch.dtype, torch.device], LayerOperators] = {}

    def config(self) -> dict[str, Any]:
        return {
            "size": self.size,
            "resolution": self.resolution,
            "width": self.width,
            "radius": self.radius,
            "depths": list(self.depths),
            "current": list(self.current),
            "beta": self.beta,
            "coriolis": self.coriolis,
            "drag": self.drag,
            "damping_time": self.damping_time,
            "dt": self.dt,
            "wavelength": self.wavelength,
            "speed": self.speed,
        }

    def operators(
        self, dtype: torch.dtype, device: torch.device, size: int | None = None
    ) -> "LayerOperators":
        """The tables of the model's grid, or of one of another size, made once."""

        key = (self.resolution if size is None else size, dtype, device)
        if key not in self._operators:
            self._operators[key] = LayerOperators(self, *key)

        return self._operators[key]

    def initial_model(
        self,
        members: Sequence[int],
        seed: int = 0,
        dtype: torch.dtype = torch.float32,
        device: torch.device | str = "cpu",
    ) -> Tensor:
        """Draws isotropic fields with a log-normal spectrum around `wavelength`.

        The layers are independent; the maximal speed of each field over both is `speed`.

        Returns:
            Transforms of the potential vorticity in s⁻¹, complex, with shape
            `(member, 2, resolution, resolution // 2 + 1)`.
        """

        n = self.resolution
        noise = normal(seed, members, (2, n, n), 0, dtype=torch.float64)
        operators = self.operators(torch.float64, torch.device("cpu"))
        k = (operators.k2 + (operators.k2 == 0)).sqrt() * (self.wavelength * 1e3 / (2 * math.pi))
        psi = torch.fft.rfft2(noise) * torch.exp(-2 * k.log().square()) / k.square()
        psi = psi * operators.dealias
        u = operators.velocity(psi)
        largest = u.square().sum(2).amax((-3, -2, -1)).sqrt()[:, None, None, None]
        q = operators.vorticity(psi) * (self.speed / largest)

        return q.to(dtype=complex_type(dtype), device=device)

    def substeps(self, q: Tensor) -> Tensor:
        """The number of inner steps per `dt` that each member's own speed asks for."""

        operators = self.operators(real_type(q.dtype), q.device)
        speed = operators.velocity(operators.inverse(q.detach())).abs().amax((-2, -1)).sum(-1)
        mean = torch.tensor(self.current, dtype=speed.dtype, device=speed.device).abs()
        rate = operators.largest * (speed + mean).amax(-1) + operators.wave_rate
        count = torch.ceil(self.dt * HOUR * rate / ADVECTIVE_LIMIT)

        return torch.clamp(count, min=1).nan_to_num(nan=MOST_STEPS + 1).long()

    def advance(self, z: Tensor, noise: Tensor | None = None) -> Tensor:
        """As `System.advance`.

        Raises:
            ValueError: If noise is given.
            FloatingPointError: If a member has diverged.
        """

        if noise is not None:
            raise ValueError("TwoLayerQG is deterministic and takes no noise")
        count = self.substeps(z)
        if count.max() > MOST_STEPS:
            bad = (count > MOST_STEPS).nonzero()[:, 0].tolist()
            raise FloatingPointError(f"the flow has diverged in members {bad} of the batch")

        if bool((count == count[0]).all()):
            return self._march(z, int(count[0]))

        pieces, places = [], []
        for n in sorted(set(count.tolist())):
            place = (count == n).nonzero()[:, 0]
            pieces.append(self._march(z[place], n))
            places.append(place)

        return torch.cat(pieces)[torch.argsort(torch.cat(places))]

    def _march(self, q: Tensor, count: int) -> Tensor:
        """Takes `count` equal Runge–Kutta steps over one `dt`."""

        operators = self.operators(real_type(q.dtype), q.device)
        step = self.dt * HOUR / count
        half = torch.exp(operators.damping * (step / 2)).to(real_type(q.dtype))
        full = half.square()
        for _ in range(count):
            # With p = exp(-L τ) q the equation is dp/dτ = exp(-L τ) N(exp(L τ) p): RK4 on p.
            k1 = operators.tendency(q)
            a = half * q
            k2 = operators.tendency(a + (step / 2) * (half * k1))
            k3 = operators.tendency(a + (step / 2) * k2)
            b = full * q
            k4 = operators.tendency(b + step * (half * k3))
            q = b + (step / 6) * (full * k1 + 2 * half * (k2 + k3) + k4)

        return q

    def project(self, z: Tensor) -> Tensor:
        """Averages the streamfunctions over the cells of the state, `(member, 2, size, size)`."""

        operators = self.operators(real_type(z.dtype), z.device)
        n = self.resolution
        psi = torch.fft.irfft2(operators.inverse(z), s=(n, n))

        return coarsen(psi, n // self.size)

    def lift(self, x: Tensor) -> Tensor:
        """The band-limited potential vorticity whose streamfunctions' averages are the state.

        Wavenumbers that the state's grid does not resolve are zero, means over the domain are
        dropped: they move nothing.
        """

        n, m = self.size, self.resolution
        operators = self.operators(x.dtype, x.device)
        h = torch.fft.rfft2(x) * operators.decoarsening * (m / n) ** 2
        psi = torch.zeros(*x.shape[:-2], m, m // 2 + 1, dtype=h.dtype, device=x.device)
        half = n // 2
        psi[..., :half, :half] = h[..., :half, :half]
        psi[..., m - half + 1 :, :half] = h[..., half + 1 :, :half]

        return operators.vorticity(psi * operators.dealias)

    def velocity(self, x: Tensor) -> Tensor:
        """The eddies' velocity `(u, v) = (−∂ψ/∂y, ∂ψ/∂x)` of states, in m s⁻¹.

        Arguments:
            x: The states, with shape `(…, 2, y, x)`, on any square grid over the domain.

        Returns:
            The velocity, with shape `(…, layer, 2, y, x)`, without the mean `current`.
        """

        return self._tables(x).velocity(torch.fft.rfft2(x))

    def potential_vorticity(self, x: Tensor) -> Tensor:
        """The eddies' potential vorticity of each layer `(…, layer, y, x)`, in s⁻¹."""

        q = self._tables(x).vorticity(torch.fft.rfft2(x))

        return torch.fft.irfft2(q, s=(x.shape[-2], x.shape[-1]))

    def sea_surface_height(self, x: Tensor) -> Tensor:
        """The sea surface height of the eddies `f_0 ψ_1 / g`, `(…, y, x)` in m."""

        return (self.coriolis / GRAVITY) * x[..., 0, :, :]

    def interface_displacement(self, x: Tensor) -> Tensor:
        """The upward displacement of the interface `f_0 (ψ_2 − ψ_1) / g'`, `(…, y, x)` in m."""

        return (self.coriolis / self.reduced_gravity) * (x[..., 1, :, :] - x[..., 0, :, :])

    def energy(self, x: Tensor) -> Tensor:
        """The mean energy of the eddies per mass of the column, in m² s⁻².

        .. math::
            K_i = \\frac{H_i}{2 H} \\langle |\\nabla \\psi_i|^2 \\rangle, \\qquad
            P = \\frac{H_1 F_1}{2 H} \\langle (\\psi_1 - \\psi_2)^2 \\rangle

        Returns:
            The kinetic energy of the upper and the lower layer and the potential energy, with
            shape `(…, 3)`. Without shear, drag and hyperviscosity their sum is conserved.
        """

        kinetic = self.velocity(x).square().sum(-3).mean((-2, -1)) / 2
        kinetic = kinetic * torch.tensor(self.shares, dtype=x.dtype, device=x.device)
        tilt = (x[..., 0, :, :] - x[..., 1, :, :]).square().mean((-2, -1))
        potential = (self.shares[0] * self.stretching[0] / 2) * tilt

        return torch.cat((kinetic, potential[..., None]), dim=-1)

    def enstrophy(self, x: Tensor) -> Tensor:
        """The mean potential enstrophy `⟨q_i²⟩ / 2` of each layer `(…, 2)`, in s⁻²."""

        return self.potential_vorticity(x).square().mean((-2, -1)) / 2

    def heat_flux(self, x: Tensor) -> Tensor:
        """The flux of heat along y, `(v_1 + v_2) (ψ_1 − ψ_2) / 2` with shape `(…, y, x)`.

        A thick upper layer is warm. The mean flux times `H_1 F_1 (U_1 − U_2) / H` is the rate at
        which the eddies take energy out of the mean current.
        """

        v = self.velocity(x)[..., 1, :, :].mean(-3)

        return v * (x[..., 0, :, :] - x[..., 1, :, :])

    def _tables(self, x: Tensor) -> "LayerOperators":
        if x.ndim < 3 or x.shape[-3] != 2 or x.shape[-2] != x.shape[-1]:
            raise ValueError(f"states must have shape (…, 2, n, n), got {tuple(x.shape)}")
        return self.operators(x.dtype, x.device, x.shape[-1])


class LayerOperators:
    """The wavenumber tables of one flow on one grid, in one precision, on one device."""

    def __init__(
        self, flow: TwoLayerQG, size: int, dtype: torch.dtype, device: torch.device
    ) -> None:
        period = 1e3 * flow.width
        ky, kx = derivative_wavenumbers(size, period, dtype=torch.float64)
        qy, qx = wavenumbers(size, period, dtype=torch.float64)
        k2 = qy.square() + qx.square()
        unit, limit = 2 * math.pi / period, size // 3
        # Room for round-off: unit · limit is a sum away from the largest wavenumber kept.
        edge = unit * (limit + 0.5)
        dealias = ((qy.abs() < edge) & (qx.abs() < edge) & (k2 > 0)).double()
        upper, lower = flow.stretching
        total = k2 + upper + lower
        safe = torch.where(k2 > 0, k2, torch.ones_like(k2))
        inverse = -torch.stack(
            (
                torch.stack((k2 + lower, torch.full_like(k2, upper))),
                torch.stack((torch.full_like(k2, lower), k2 + upper)),
            )
        ) * torch.where(k2 > 0, 1 / (safe * total), torch.zeros_like(k2))

        shortest = unit * limit
        rate = 0.0 if flow.damping_time is None else 1 / (flow.damping_time * HOUR)
        self.size = size
        self.damping = (-rate * (k2 / shortest**2) ** 4).to(device)
        self.largest = shortest
        # No Rossby wave oscillates faster than the largest gradient allows at the longest wave.
        self.wave_rate = max(map(abs, flow.gradients)) / unit + flow.drag

        def real(values: Tensor) -> Tensor:
            return values.to(device, dtype)

        self.k2, self.dealias = real(k2), real(dealias)
        self.inversion = real(inverse)
        self.stretch = real(torch.tensor(flow.stretching, dtype=torch.float64)[:, None, None])
        gradient = torch.stack((-1j * ky + 0 * kx, 1j * kx + 0 * ky))
        self.to_velocity = gradient.to(device, complex_type(dtype))
        advection = torch.stack((-1j * kx + 0 * ky, -1j * ky + 0 * kx)) * dealias
        self.advection = advection.to(device, complex_type(dtype))
        self.current = real(torch.tensor(flow.current, dtype=torch.float64)[:, None, None])
        gradients = torch.tensor(flow.gradients, dtype=torch.float64)[:, None, None]
        linear = (-1j * kx) * gradients * dealias
        linear[1] = linear[1] + flow.drag * k2 * dealias
        self.linear = linear.to(device, complex_type(dtype))

        # Transfer of a block mean, and the half-cell shift between the two grids' origins.
        factor = size // flow.size if size % flow.size == 0 else 1
        qy, qx = wavenumbers(flow.size, dtype=torch.float64)
        offset = torch.arange(factor, dtype=torch.float64) - (factor - 1) / 2
        offset = offset * (2 * math.pi / size)
        transfer = torch.cos(qy[..., None] * offset).mean(-1) * torch.cos(
            qx[..., None] * offset
        ).mean(-1)
        shift = torch.exp(-1j * (qy + qx) * (factor - 1) / 2 * 2 * math.pi / size)
        self.decoarsening = (shift / transfer).to(device, complex_type(dtype))

    def inverse(self, q: Tensor) -> Tensor:
        """The transformed streamfunctions of transformed potential vorticities."""

        return (self.inversion * q[..., None, :, :, :]).sum(-3)

    def vorticity(self, psi: Tensor) -> Tensor:
        """The transformed potential vorticities of transformed streamfunctions."""

        return self.stretch * (psi.flip(-3) - psi) - self.k2 * psi

    def velocity(self, psi: Tensor) -> Tensor:
        """The velocity `(…, layer, 2, y, x)` of transformed streamfunctions."""

        return torch.fft.irfft2(self.to_velocity * psi[..., None, :, :], s=(self.size, self.size))

    def tendency(self, q: Tensor) -> Tensor:
        """All but the hyperviscosity."""

        psi = self.inverse(q)
        u, v = self.velocity(psi).unbind(dim=-3)
        grid = torch.fft.irfft2(q, s=(self.size, self.size))
        flux = torch.fft.rfft2(torch.stack(((u + self.current) * grid, v * grid), dim=-3))

        return (self.advection * flux).sum(-3) + self.linear * psi
