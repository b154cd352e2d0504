"""Published test cases of shallow water on the sphere: initial states for any resolution.

References:
    Galewsky, Scott and Polvani (2004), An initial-value problem for testing numerical models of the
    global shallow-water equations, Tellus A 56. https://doi.org/10.3402/tellusa.v56i5.14436
    Williamson, Drake, Hack, Jakob and Swarztrauber (1992), A standard test set for numerical
    approximations to the shallow water equations in spherical geometry, J. Comput. Phys. 102.
"""

import math

import torch
from torch import Tensor

from .shallow_water import DAY, ShallowWater, galewsky_jet


def williamson2(model: ShallowWater, tilt: float = 0.0) -> Tensor:
    """A solid-body rotation once in 12 days, in balance: a steady state (case 2).

    Arguments:
        model: The model, with flat orography.
        tilt: The angle between the flow's axis and the grid's, in degrees. The rotation of the
            planet must be tilted with it, see `tilted_sine`.

    Returns:
        The state `(1, 3, lat, lon)`, in float64.
    """

    # g h at the poles of the rotation is that of the equator less this.
    speed, height = 2 * math.pi * model.radius / (12 * DAY), 2.94e4 / model.gravity

    return solid_rotation(model, speed, height, tilt)


def williamson5(model: ShallowWater) -> Tensor:
    """A westerly solid-body rotation of 20 m s⁻¹ that meets a mountain (case 5).

    Arguments:
        model: The model, with `orography="cone"`.

    Returns:
        The state `(1, 3, lat, lon)`, in float64.
    """
    return solid_rotation(model, 20.0, 5960.0)


def galewsky(model: ShallowWater, perturbed: bool = True) -> Tensor:
    """A narrow, unstable jet at 45° N in balance, with a bump in the height that upsets it.

    Arguments:
        model: The model, with flat orography.
        perturbed: Whether to add the bump of 120 m. Without it the state is steady.

    Returns:
        The state `(1, 3, lat, lon)`, in float64.
    """

    y = model.harmonics
    x = model.project(model.balanced(galewsky_jet(y.latitudes, 80.0)))
    if perturbed:
        lat = torch.from_numpy(y.latitudes).deg2rad()[:, None]
        lon = torch.from_numpy((y.longitudes + 180) % 360 - 180).deg2rad()
        bump = lat.cos() * torch.exp(-((3 * lon) ** 2) - (15 * (math.pi / 4 - lat)) ** 2)
        x[:, 2] += 120 * bump

    return x


def tilted_sine(model: ShallowWater, tilt: float) -> Tensor:
    """The sine of latitude in coordinates whose pole lies at 180° E, tilted towards the equator."""

    lat = torch.from_numpy(model.harmonics.latitudes).deg2rad()[:, None]
    lon = torch.from_numpy(model.harmonics.longitudes).deg2rad()
    angle = math.radians(tilt)

    return lat.sin() * math.cos(angle) - lon.cos() * lat.cos() * math.sin(angle)


def solid_rotation(model: ShallowWater, speed: float, height: float, tilt: float = 0.0) -> Tensor:
    """The state of a solid-body rotation of a speed and height at its equator, in balance."""

    lat = torch.from_numpy(model.harmonics.latitudes).deg2rad()[:, None]
    lon = torch.from_numpy(model.harmonics.longitudes).deg2rad()
    angle = math.radians(tilt)
    u = speed * (lat.cos() * math.cos(angle) + lon.cos() * lat.sin() * math.sin(angle))
    v = -speed * lon.sin() * math.sin(angle) * torch.ones_like(lat)
    fall = (model.radius * model.omega * speed + speed**2 / 2) / model.gravity
    h = height - fall * tilted_sine(model, tilt) ** 2

    return torch.stack((u, v, h))[None]
