r"""A wind-driven ocean gyre in a basin with an irregular coast: the barotropic vorticity equation.

$$ \partial_t \zeta + J(\psi, \zeta) + \beta\, \partial_x \psi
   = \frac{1}{\rho H} \operatorname{curl} \tau - r\, \zeta + \nu\, \nabla^2 \zeta,
   \qquad \zeta = \nabla^2 \psi, $$

with ψ = 0 (no flow through the coast) and ζ = 0 (free slip) on land. The wind stress along x,
−τ cos(2π y / L), drives a subtropical gyre in the south and a subpolar one in the north, whose
western boundary currents meet in an unstable jet.

Second-order finite differences on the nodes of a square grid whose surroundings are land. The
Jacobian is that of Arakawa (1966): over the sea it conserves energy and enstrophy to round-off,
whatever the coast. The Laplacian is inverted exactly: on the whole square by sine transforms, and
sources on the land next to the sea, found by their capacitance matrix, make ψ vanish there.

References:
    | Arakawa (1966), Computational design for long-term numerical integration of the equations of
      fluid motion, J. Comput. Phys. 1.
    | Buzbee, Dorr, George & Golub (1971), The direct solution of the discrete Poisson equation on
      irregular regions, SIAM J. Numer. Anal. 8.
    | Stommel (1948), Trans. Am. Geophys. Union 29; Munk (1950), J. Meteor. 7 (the gyres).
"""

import math
from collections.abc import Sequence
from typing import Any

import numpy as np
import torch
from torch import Tensor

from .additive_noise import check_positive
from .basin import BasinOperators, coastline
from .kolmogorov import ADVECTIVE_LIMIT
from .layout import Layout
from .random import normal
from .system import System

DENSITY = 1025.0  # kg m⁻³
GRAVITY = 9.81  # m s⁻²
HOUR = 3600.0  # s
MOST_STEPS = 10_000  # within one dt, beyond which a member has diverged


class OceanGyre(System):
    """The barotropic double gyre, state = streamfunction `psi` in m² s⁻¹, zero on land.

    Arguments:
        size: The number of nodes in each dimension, at least 8.
        spacing: The distance of two nodes, in km. The land begins one spacing beyond the nodes.
        coast: How far the land reaches into the basin from each side, as a share of its width; a
            square basin has 0.
        coast_seed: The seed of the course of the coast.
        depth: The depth H of the layer that the wind moves, in m.
        stress: The wind stress τ, in N m⁻².
        beta: The gradient of the Coriolis parameter β, in m⁻¹ s⁻¹.
        coriolis: The Coriolis parameter f_0, in s⁻¹: for the sea surface height only.
        drag: The bottom friction r, in s⁻¹.
        viscosity: The lateral viscosity ν, in m² s⁻¹.
        dt: The time between two states, in hours.
        speed: The maximal speed of initial fields, in m s⁻¹.

    Raises:
        ValueError: If an argument is out of range.
    """

    def __init__(
        self,
        size: int = 48,
        spacing: float = 25.0,
        coast: float = 0.2,
        coast_seed: int = 0,
        depth: float = 500.0,
        stress: float = 0.1,
        beta: float = 2e-11,
        coriolis: float = 1e-4,
        drag: float = 1e-7,
        viscosity: float = 300.0,
        dt: float = 24.0,
        speed: float = 0.5,
    ) -> None:
        check_positive(spacing=spacing, depth=depth, dt=dt)
        if size < 8:
            raise ValueError(f"size must be at least 8, got {size}")
        if not 0 <= coast <= 0.3:
            raise ValueError(f"coast must be between 0 and 0.3 of the basin, got {coast}")
        if min(drag, viscosity, speed) < 0 or not all(map(math.isfinite, (stress, beta, coriolis))):
            raise ValueError(
                f"expected drag, viscosity, speed ≥ 0 and finite stress, beta, coriolis, got "
                f"drag={drag}, viscosity={viscosity}, speed={speed}, stress={stress}, "
                f"beta={beta}, coriolis={coriolis}"
            )
        self.size, self.spacing, self.coast, self.coast_seed = size, spacing, coast, coast_seed
        self.depth, self.stress, self.beta, self.coriolis = depth, stress, beta, coriolis
        self.drag, self.viscosity, self.dt, self.speed = drag, viscosity, dt, speed

        nodes = spacing * np.arange(1, size + 1)
        self.sea = coastline(size, coast, coast_seed)
        self.layout = Layout(
            variables=("psi",),
            dt=dt,
            coords={"y": nodes, "x": nodes},
            units={"psi": "m2 s-1", "y": "km", "x": "km"},
            long_names={"psi": "streamfunction"},
            time_units="hours",
            mask=self.sea,
        )
        wave = 2 * math.pi / (1e3 * spacing * (size + 1))
        torque = -stress * wave / (DENSITY * depth) * np.sin(wave * 1e3 * nodes)
        self.torque = np.where(self.sea, torque[:, None], 0.0)
        self._operators: dict[tuple[torch.dtype, torch.device], BasinOperators] = {}

    def config(self) -> dict[str, Any]:
        return {
            "size": self.size,
            "spacing": self.spacing,
            "coast": self.coast,
            "coast_seed": self.coast_seed,
            "depth": self.depth,
            "stress": self.stress,
            "beta": self.beta,
            "coriolis": self.coriolis,
            "drag": self.drag,
            "viscosity": self.viscosity,
            "dt": self.dt,
            "speed": self.speed,
        }

    def static(self) -> dict[str, np.ndarray]:
        """The wind's torque `curl τ / (ρ H)` in s⁻², zero on land."""

        return {"torque": self.torque.astype(np.float32)}

    def operators(self, dtype: torch.dtype, device: torch.device) -> "BasinOperators":
        """The matrices of the basin in a precision and on a device, made once."""

        key = (dtype, device)
        if key not in self._operators:
            if dtype == torch.float64 and device.type == "cpu":
                self._operators[key] = BasinOperators.build(
                    self.sea, self.torque, 1e3 * self.spacing
                )
            else:
                exact = self.operators(torch.float64, torch.device("cpu"))
                self._operators[key] = exact.to(dtype, device)

        return self._operators[key]

    def initial_model(
        self,
        members: Sequence[int],
        seed: int = 0,
        dtype: torch.dtype = torch.float32,
        device: torch.device | str = "cpu",
    ) -> Tensor:
        """Draws random eddies a sixth of the basin wide, with maximal speed `speed`."""

        n = self.size
        operators = self.operators(torch.float64, torch.device("cpu"))
        noise = normal(seed, members, (1, n, n), 0, dtype=torch.float64)
        k = torch.arange(1, n + 1, dtype=torch.float64)
        decay = torch.exp(-(k[:, None].square() + k.square()) / 72)
        psi = operators.solve(operators.sine @ (noise * decay) @ operators.sine * operators.sea)
        largest = operators.velocity(psi).square().sum(-3).amax((-2, -1)).sqrt()
        psi = psi * (self.speed / largest)[..., None, None]

        return psi.to(dtype=dtype, device=device)

    def substeps(self, psi: Tensor) -> Tensor:
        """The number of inner steps per `dt` that each member's own speed asks for."""

        spacing = 1e3 * self.spacing
        velocity = self.operators(psi.dtype, psi.device).velocity(psi.detach())
        speed = velocity.abs().amax((-2, -1)).sum((-2, -1))
        rate = speed / spacing + 8 * self.viscosity / spacing**2 + self.drag
        rate = rate + abs(self.beta) * spacing * self.size / math.pi
        count = torch.ceil(self.dt * HOUR * rate / ADVECTIVE_LIMIT)

        return torch.clamp(count, min=1).nan_to_num(nan=MOST_STEPS + 1).long()

    def advance(self, z: Tensor, noise: Tensor | None = None) -> Tensor:
        """As `System.advance`.

        Raises:
            ValueError: If noise is given.
            FloatingPointError: If a member has diverged.
        """

        if noise is not None:
            raise ValueError("OceanGyre is deterministic and takes no noise")
        z = z * self.operators(z.dtype, z.device).sea
        count = self.substeps(z)
        if count.max() > MOST_STEPS:
            bad = (count > MOST_STEPS).nonzero()[:, 0].tolist()
            raise FloatingPointError(f"the gyre has diverged in members {bad} of the batch")

        pieces, places = [], []
        for n in sorted(set(count.tolist())):
            place = (count == n).nonzero()[:, 0]
            pieces.append(self._march(z[place], n))
            places.append(place)

        return torch.cat(pieces)[torch.argsort(torch.cat(places))]

    def _march(self, psi: Tensor, count: int) -> Tensor:
        """Takes `count` equal Runge–Kutta steps over one `dt`."""

        operators = self.operators(psi.dtype, psi.device)
        step = self.dt * HOUR / count
        zeta = operators.laplacian(psi)
        for _ in range(count):
            k1 = self.tendency(psi, zeta)
            b = zeta + (step / 2) * k1
            k2 = self.tendency(operators.solve(b), b)
            b = zeta + (step / 2) * k2
            k3 = self.tendency(operators.solve(b), b)
            b = zeta + step * k3
            k4 = self.tendency(operators.solve(b), b)
            zeta = zeta + (step / 6) * (k1 + 2 * (k2 + k3) + k4)
            psi = operators.solve(zeta)

        return psi

    def tendency(self, psi: Tensor, zeta: Tensor) -> Tensor:
        """The rate of change of the vorticity over the sea, `(…, y, x)` in s⁻².

        Arguments:
            psi: The streamfunction, zero on land, with shape `(…, y, x)`.
            zeta: The vorticity, zero on land.
        """

        operators = self.operators(psi.dtype, psi.device)
        rate = operators.torque - operators.jacobian(psi, zeta) - self.drag * zeta
        rate = rate - self.beta * operators.slope(psi, -1)

        return operators.sea * (rate + self.viscosity * operators.laplacian(zeta))

    def vorticity(self, x: Tensor) -> Tensor:
        """The vorticity `∇²ψ` of states, zero on land, in s⁻¹, with the shape of the states."""

        operators = self.operators(x.dtype, x.device)

        return operators.laplacian(x * operators.sea)

    def velocity(self, x: Tensor) -> Tensor:
        """The velocity `(−∂ψ/∂y, ∂ψ/∂x)` of states `(…, 1, y, x)`, `(…, 2, y, x)` in m s⁻¹."""

        operators = self.operators(x.dtype, x.device)

        return operators.velocity(x * operators.sea).squeeze(-4)

    def sea_surface_height(self, x: Tensor) -> Tensor:
        """The sea surface height `f_0 ψ / g`, `(…, y, x)` in m."""

        return (self.coriolis / GRAVITY) * x[..., 0, :, :]

    def energy(self, x: Tensor) -> Tensor:
        """The kinetic energy `−⟨ψ ζ⟩ / 2`, the mean over the sea, in m² s⁻²."""

        return -(x * self.vorticity(x)).sum((-3, -2, -1)) / (2 * int(self.sea.sum()))

    def enstrophy(self, x: Tensor) -> Tensor:
        """The enstrophy `⟨ζ²⟩ / 2`, the mean over the sea, in s⁻²."""

        return self.vorticity(x).square().sum((-3, -2, -1)) / (2 * int(self.sea.sum()))
