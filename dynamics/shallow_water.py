r"""Rotating shallow water on the sphere.

A thin layer of fluid with a free surface $h$ over the orography $b$ moves with the wind $(u, v)$.
In vorticity $\zeta$ and divergence $\delta$, with $\eta = \zeta + f$, $f = 2 \Omega \sin\varphi$,

$$ \partial_t \zeta = -\nabla\cdot(\eta \mathbf v), \qquad
   \partial_t \delta = \mathbf k \cdot \nabla \times (\eta \mathbf v)
     - \nabla^2 \left(g h + \tfrac12 |\mathbf v|^2\right), \qquad
   \partial_t h = -\nabla\cdot((h - b) \mathbf v), $$

each with hyperdiffusion $-\nu (-\nabla^2)^p$. Products are made on the grid and derivatives in
spectral space. Gravity waves about the mean depth, and hyperdiffusion, are implicit: the step is
limited by the wind alone. The mass is conserved to round-off.

References:
    Hack and Jakob (1992), Description of a global shallow water model based on the spectral
    transform method, NCAR TN-343.
    Galewsky, Scott and Polvani (2004), An initial-value problem for testing numerical models of the
    global shallow-water equations, Tellus A 56. https://doi.org/10.3402/tellusa.v56i5.14436
    Williamson et al. (1992), A standard test set for numerical approximations to the shallow water
    equations in spherical geometry, J. Comput. Phys. 102.
"""

import math
from collections.abc import Sequence
from typing import Any

import numpy as np
import torch
from torch import Tensor

from .additive_noise import check_positive
from .integrate import ars343
from .kolmogorov import complex_type
from .layout import Layout
from .random import normal
from .spherical_harmonics import SphericalHarmonics
from .system import System

HOUR, DAY = 3600.0, 86400.0
OROGRAPHIES = ("flat", "cone", "ranges")
# Centres (degrees east and north) and half widths of smooth mountains, and their heights relative
# to the highest: two in the north, as large as continents' ranges, and one in the south.
RANGES = (
    (90.0, 38.0, 22.0, 11.0, 1.0),
    (250.0, 45.0, 11.0, 15.0, 0.75),
    (290.0, -35.0, 9.0, 18.0, 0.75),
)


class ShallowWater(System):
    """Rotating shallow water on the sphere, state = wind and free-surface height on the grid.

    The model state is the spectra of vorticity (s⁻¹), divergence (s⁻¹) and of the height of the
    free surface above its mean (m), complex with shape `(member, 3, m, l)`.

    Arguments:
        truncation: The largest total wavenumber T; products are free of aliasing where
            `lat ≥ (3 T + 1) / 2` and `lon ≥ 3 T + 1`.
        lat: The number of latitudes.
        lon: The number of longitudes.
        grid: `gaussian` or `equiangular`, see `SphericalHarmonics`.
        dt: The time between two states, in hours.
        substeps: The number of time steps within one `dt`.
        depth: The mean height H of the free surface, in m.
        radius: The radius of the planet, in m.
        omega: Its rate of rotation, in s⁻¹.
        gravity: Its gravity, in m s⁻².
        diffusion: The damping of the smallest waves by hyperdiffusion, per day.
        diffusion_order: The power p of the Laplacian in it.
        orography: `flat`, `cone` (the mountain of Williamson's case 5) or `ranges` (three smooth
            mountain ranges).
        mountain: The height of the highest mountain, in m.
        jet_speed: The speed of the initial jet (Galewsky et al., 2004), in m s⁻¹.
        perturbation: The standard deviation of the initial height's perturbations, in m.

    Raises:
        ValueError: If the grid is too coarse for the truncation or a parameter is out of range.
    """

    def __init__(
        self,
        truncation: int = 42,
        lat: int = 64,
        lon: int = 128,
        grid: str = "gaussian",
        dt: float = 1.0,
        substeps: int = 1,
        depth: float = 1e4,
        radius: float = 6.37122e6,
        omega: float = 7.292e-5,
        gravity: float = 9.80616,
        diffusion: float = 1.0,
        diffusion_order: int = 4,
        orography: str = "flat",
        mountain: float = 2000.0,
        jet_speed: float = 80.0,
        perturbation: float = 10.0,
    ) -> None:
        check_positive(
            dt=dt, substeps=substeps, depth=depth, radius=radius, gravity=gravity,
            diffusion_order=diffusion_order,
        )  # fmt: skip
        if diffusion < 0 or perturbation < 0 or not 0 <= mountain < depth:
            raise ValueError(
                f"expected diffusion ≥ 0, perturbation ≥ 0 and 0 ≤ mountain < depth, got "
                f"diffusion={diffusion}, perturbation={perturbation}, mountain={mountain} and "
                f"depth={depth}"
            )
        if orography not in OROGRAPHIES:
            raise ValueError(
                f"orography must be one of {', '.join(OROGRAPHIES)}, got {orography!r}"
            )
        self.harmonics = SphericalHarmonics(lat, lon, truncation, grid, radius)
        self.truncation, self.grid = int(truncation), grid
        self.dt, self.substeps, self.depth = dt, int(substeps), depth
        self.radius, self.omega, self.gravity = radius, omega, gravity
        self.diffusion, self.diffusion_order = diffusion, int(diffusion_order)
        self.orography, self.mountain = orography, mountain
        self.jet_speed, self.perturbation = jet_speed, perturbation
        self.layout = Layout(
            variables=("u", "v", "h"),
            dt=dt,
            coords={"lat": self.harmonics.latitudes, "lon": self.harmonics.longitudes},
            period={"lon": 360.0},
            units={
                "u": "m s-1", "v": "m s-1", "h": "m", "lat": "degrees_north", "lon": "degrees_east",
            },
            long_names={
                "u": "eastward wind", "v": "northward wind", "h": "height of the free surface",
                "lat": "latitude", "lon": "longitude",
            },
            time_units="hours",
        )  # fmt: skip
        self._operators: dict[tuple[torch.dtype, torch.device], Operators] = {}

    def config(self) -> dict[str, Any]:
        names = (
            "truncation", "grid", "dt", "substeps", "depth", "radius", "omega", "gravity",
            "diffusion", "diffusion_order", "orography", "mountain", "jet_speed", "perturbation",
        )  # fmt: skip
        size = {"lat": self.harmonics.lat, "lon": self.harmonics.lon}

        return size | {name: getattr(self, name) for name in names}

    def static(self) -> dict[str, np.ndarray]:
        """The orography `b` (m) and the Coriolis parameter `f` (s⁻¹), `(lat, lon)`."""

        operators = self.operators(torch.float64, torch.device("cpu"))
        coriolis = operators.coriolis.expand(self.harmonics.lat, self.harmonics.lon)

        return {
            "orography": operators.orography.numpy().astype(np.float32),
            "coriolis": coriolis.numpy().astype(np.float32),
        }

    def operators(self, dtype: torch.dtype, device: torch.device) -> "Operators":
        """The constant fields in a real precision and on a device, made once."""

        key = (dtype, device)
        if key not in self._operators:
            self._operators[key] = Operators(self, dtype, device)

        return self._operators[key]

    def initial_model(
        self,
        members: Sequence[int],
        seed: int = 0,
        dtype: torch.dtype = torch.float32,
        device: torch.device | str = "cpu",
    ) -> Tensor:
        """Draws the balanced jet of Galewsky et al. (2004) with random heights on top of it.

        Perturbations are isotropic, with equal variance at wavenumbers 4 to 10 (or T).
        """

        z = self.balanced(galewsky_jet(self.harmonics.latitudes, self.jet_speed))

        return (z + self.noise_in_height(members, seed)).to(device, complex_type(dtype))

    def noise_in_height(self, members: Sequence[int], seed: int) -> Tensor:
        """Model states of which only the height is not zero: random, isotropic waves."""

        t = self.truncation
        noise = normal(seed, members, (2, t + 1, t + 1), 0, dtype=torch.float64)
        degree = torch.arange(t + 1, dtype=torch.float64)
        band = (degree >= 4) & (degree <= 10)
        if not band.any():
            band = degree == t
        h = torch.complex(noise[:, 0], noise[:, 1])
        h = h.triu() * (band / (2 * degree + 1).sqrt())
        # A real wave has one degree of freedom at m = 0 and two at m > 0.
        h[:, 0] = h[:, 0].real * math.sqrt(2)
        h = h * (self.perturbation * math.sqrt(2 * math.pi / int(band.sum())))

        return torch.stack((torch.zeros_like(h), torch.zeros_like(h), h), dim=1)

    def balanced(self, jet: np.ndarray) -> Tensor:
        """The model state `(1, 3, m, l)` of a zonal wind `(lat)` in balance with the height.

        A balanced state is an exact steady state of the discrete equations but for diffusion.
        """

        y, cpu = self.harmonics, torch.device("cpu")
        coriolis = self.operators(torch.float64, cpu).coriolis
        u = torch.from_numpy(jet)[:, None].expand(y.lat, y.lon).contiguous()
        vorticity, _ = y.vorticity_divergence(u, torch.zeros_like(u))
        nothing = torch.zeros_like(vorticity)
        u, v = y.velocity(vorticity, nothing)
        absolute = y.synthesis(vorticity) + coriolis
        curl, _ = y.vorticity_divergence(absolute * u, absolute * v)
        energy = y.analysis((u.square() + v.square()) / 2)
        height = (y.inverse_laplacian(curl) - energy) / self.gravity
        height[0, 0] = 0

        return torch.stack((vorticity, nothing, height))[None]

    def advance(self, z: Tensor, noise: Tensor | None = None) -> Tensor:
        if noise is not None:
            raise ValueError(f"{type(self).__name__} is deterministic and takes no noise")
        operators = self.operators(z.real.dtype, z.device)
        step = self.dt * HOUR / self.substeps
        for _ in range(self.substeps):
            z = ars343(lambda y: self.tendency(y, operators), operators.solve, z, step)
        finite = torch.isfinite(z.detach().abs().sum((-3, -2, -1)))
        if not finite.all():
            bad = (~finite).nonzero()[:, 0].tolist()
            raise FloatingPointError(
                f"the flow has diverged in members {bad} of the batch: take more substeps than "
                f"{self.substeps}"
            )

        return z

    def tendency(self, z: Tensor, operators: "Operators") -> Tensor:
        """The tendency of model states but for gravity waves and diffusion."""

        y = self.harmonics
        vorticity, divergence, height = z.unbind(1)
        u, v = y.velocity(vorticity, divergence)
        vorticity, height = y.synthesis(torch.stack((vorticity, height), dim=1)).unbind(1)
        # Absolute vorticity, and depth less its mean: what the two fluxes carry.
        carried = torch.stack((vorticity + operators.coriolis, height - operators.orography), dim=1)
        curl, div = y.vorticity_divergence(carried * u[:, None], carried * v[:, None])
        energy = y.analysis((u.square() + v.square()) / 2)

        return torch.stack((-div[:, 0], curl[:, 0] - y.laplacian(energy), -div[:, 1]), dim=1)

    def project(self, z: Tensor) -> Tensor:
        """The wind and the height of the free surface on the grid, `(member, 3, lat, lon)`."""

        u, v = self.harmonics.velocity(z[:, 0], z[:, 1])
        height = self.harmonics.synthesis(z[:, 2]) + self.depth

        return torch.stack((u, v, height), dim=1)

    def lift(self, x: Tensor) -> Tensor:
        """The spectra of a state: what the truncation does not resolve is dropped."""

        vorticity, divergence = self.harmonics.vorticity_divergence(x[:, 0], x[:, 1])
        height = self.harmonics.analysis(x[:, 2] - self.depth)

        return torch.stack((vorticity, divergence, height), dim=1)


class Operators:
    """The constant fields and implicit terms of one model in one precision on one device."""

    def __init__(self, model: ShallowWater, dtype: torch.dtype, device: torch.device) -> None:
        y = model.harmonics
        coriolis = 2 * model.omega * y.sine[:, None]
        spectrum = y.analysis(torch.from_numpy(orography(model)))
        degree = np.arange(model.truncation + 1)
        eigenvalue = degree * (degree + 1) / model.radius**2
        damping = model.diffusion / DAY * (eigenvalue / eigenvalue[-1]) ** model.diffusion_order
        self.coriolis = torch.from_numpy(coriolis).to(device, dtype)
        self.orography = y.synthesis(spectrum).to(device, dtype)
        self.pressure = torch.from_numpy(model.gravity * eigenvalue).to(device, dtype)
        self.damping = torch.from_numpy(damping).to(device, dtype)
        self.depth = model.depth

    def solve(self, known: Tensor, tau: float) -> Tensor:
        """Solves (1 - τ L) z = r for gravity waves about the mean depth and hyperdiffusion."""

        vorticity, divergence, height = known.unbind(1)
        damped = 1 + tau * self.damping
        pressure, depth = tau * self.pressure, tau * self.depth
        divergence = (damped * divergence + pressure * height) / (damped**2 + pressure * depth)

        return torch.stack(
            (vorticity / damped, divergence, (height - depth * divergence) / damped), dim=1
        )


def orography(model: ShallowWater) -> np.ndarray:
    """The height of the ground, in m, `(lat, lon)`, before truncation."""

    lat = model.harmonics.latitudes[:, None]
    lon = model.harmonics.longitudes[None, :]
    if model.orography == "cone":
        # Its foot has a radius of 20 degrees in the plane of latitude and longitude.
        distance = np.hypot(np.minimum(abs(lon - 270), 360 - abs(lon - 270)), lat - 30)
        return model.mountain * (1 - np.minimum(distance, 20) / 20)
    height = np.zeros(np.broadcast_shapes(lat.shape, lon.shape))
    if model.orography == "ranges":
        for east, north, wide, high, share in RANGES:
            away = (lon - east + 180) % 360 - 180
            height += share * np.exp(-((away / wide) ** 2) - ((lat - north) / high) ** 2)

    return model.mountain * height


def galewsky_jet(latitude: np.ndarray, speed: float) -> np.ndarray:
    """The zonal wind of Galewsky et al. (2004), between 25.7 and 64.3 degrees north."""

    phi, south = np.radians(latitude), math.pi / 7
    north = math.pi / 2 - south
    product = (phi - south) * (phi - north)
    inside = product < 0
    exponent = 1 / np.where(inside, product, -1) + 4 / (north - south) ** 2

    return np.where(inside, speed * np.exp(exponent), 0.0)
