r"""Toy weather: shallow water on the sphere, stirred by growing eddies around two jet streams.

The wind and the height relax towards a zonal jet in balance in each hemisphere. A single layer has
no temperature contrast from which storms could draw, so the eddies of a band of wavenumbers grow at
a given rate instead, where baroclinic eddies do, in mid-latitudes:

$$ \partial_t \zeta = \dots - r\,(\zeta - \zeta_\mathrm{jet})
     + s \sin^2(2\varphi) \sum_{l=l_1}^{l_2} \sum_{m \ne 0} \zeta_l^m Y_l^m, \qquad
   \partial_t (\delta, h) = \dots - r\,(\delta, h - h_\mathrm{jet}). $$

They break, shed vortices, shift the jets and pass their energy on to scales that are damped. The
flow is deterministic, chaotic and, without seasons, statistically steady. Mountains, if there are
any, hold stationary waves in place.

References:
    Vallis et al. (2004), A mechanism and simple dynamical model of the North Atlantic Oscillation
    and annular modes, J. Atmos. Sci. 61 (a stirred layer of jets; stirred at random, though).
    Linkmann, Boffetta, Marchetti and Eckhardt (2019), Phase transition to large scale coherent
    structures in two-dimensional active matter turbulence, Phys. Rev. Lett. 122 (a growing band).
"""

from collections.abc import Sequence
from typing import Any

import numpy as np
import torch
from torch import Tensor

from .kolmogorov import complex_type
from .shallow_water import DAY, Operators, ShallowWater


class ToyWeather(ShallowWater):
    """Forced and damped shallow water on the sphere that stays turbulent.

    Members start from the jets with random perturbations, which they forget within 60 days. The
    state and the other arguments are those of `ShallowWater`.

    Arguments:
        relaxation: The rate r at which the flow relaxes towards the jets, per day.
        jet_speed: The speed of the jets, in m s⁻¹.
        jet_latitude: Their latitude, north and south, in degrees.
        jet_width: Their half width, where the speed is 1/e, in degrees.
        growth: The rate s at which eddies grow in mid-latitudes, per day.
        first: The smallest total wavenumber l₁ that grows.
        last: The largest, l₂.

    Raises:
        ValueError: If the grid is too coarse for the truncation or a parameter is out of range.
    """

    def __init__(
        self,
        truncation: int = 21,
        lat: int = 32,
        lon: int = 64,
        grid: str = "gaussian",
        dt: float = 6.0,
        substeps: int = 4,
        depth: float = 6e3,
        radius: float = 6.37122e6,
        omega: float = 7.292e-5,
        gravity: float = 9.80616,
        diffusion: float = 4.0,
        diffusion_order: int = 4,
        orography: str = "flat",
        mountain: float = 2000.0,
        perturbation: float = 50.0,
        jet_speed: float = 40.0,
        jet_latitude: float = 45.0,
        jet_width: float = 11.0,
        relaxation: float = 0.15,
        growth: float = 0.5,
        first: int = 7,
        last: int = 13,
    ) -> None:
        if not (relaxation >= 0 and growth >= 0 and 1 <= first <= last):
            raise ValueError(
                f"expected relaxation ≥ 0, growth ≥ 0 and 1 ≤ first ≤ last, got "
                f"relaxation={relaxation}, growth={growth}, first={first} and last={last}"
            )
        if not (0 < jet_latitude < 90 and 0 < jet_width < 90):
            raise ValueError(
                f"jet_latitude and jet_width must lie between 0 and 90 degrees, got {jet_latitude} "
                f"and {jet_width}"
            )
        self.relaxation, self.jet_latitude, self.jet_width = relaxation, jet_latitude, jet_width
        self.growth, self.first, self.last = growth, int(first), int(last)
        self._forcings: dict[tuple[torch.dtype, torch.device], Forcing] = {}
        super().__init__(
            truncation, lat, lon, grid, dt, substeps, depth, radius, omega, gravity, diffusion,
            diffusion_order, orography, mountain, jet_speed, perturbation,
        )  # fmt: skip

    def config(self) -> dict[str, Any]:
        names = ("relaxation", "jet_latitude", "jet_width", "growth", "first", "last")

        return super().config() | {name: getattr(self, name) for name in names}

    def jets(self) -> np.ndarray:
        """The zonal wind `(lat)` to which the flow relaxes, in m s⁻¹."""

        away = (np.abs(self.harmonics.latitudes) - self.jet_latitude) / self.jet_width

        return self.jet_speed * np.exp(-(away**2))

    def initial_model(
        self,
        members: Sequence[int],
        seed: int = 0,
        dtype: torch.dtype = torch.float32,
        device: torch.device | str = "cpu",
    ) -> Tensor:
        """Draws the balanced jets with random heights on top of them."""

        z = self.balanced(self.jets())

        return (z + self.noise_in_height(members, seed)).to(device, complex_type(dtype))

    def tendency(self, z: Tensor, operators: Operators) -> Tensor:
        key = (z.dtype, z.device)
        if key not in self._forcings:
            self._forcings[key] = Forcing(self, z)
        forcing, y = self._forcings[key], self.harmonics
        eddies = y.synthesis(forcing.band * z[:, 0])
        vorticity, divergence, height = (
            super().tendency(z, operators) - forcing.relaxation * (z - forcing.jets)
        ).unbind(1)

        return torch.stack(
            (vorticity + y.analysis(forcing.growth * eddies), divergence, height), dim=1
        )


class Forcing:
    """The constants of one model's forcing, in the precision and on the device of a model state."""

    def __init__(self, model: ToyWeather, like: Tensor) -> None:
        real = like.real.dtype
        degree = torch.arange(model.truncation + 1)
        band = (degree >= model.first) & (degree <= model.last) & (degree[:, None] > 0)
        latitude = np.radians(model.harmonics.latitudes)[:, None]
        growth = torch.from_numpy(model.growth / DAY * np.sin(2 * latitude) ** 2)
        self.relaxation = model.relaxation / DAY
        self.jets = model.balanced(model.jets()).to(like.device, like.dtype)
        self.band, self.growth = band.to(like.device, real), growth.to(like.device, real)
