r"""An imager on a geostationary satellite: one disk of the Earth, again and again.

Above the equator at the height `h` of an orbit that takes a day, a satellite sees a place at the
zenith angle `ζ` if it is within the angle

    γ = ζ − asin(R sin ζ / (R + h))

of the point below, as seen from the Earth's centre: 81° for the whole disk, less for usable values.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import ClassVar

import numpy as np
import xarray as xr

from dynamics.layout import Layout

from .base import CLOUDS, Generator, Plan, names_of, regular, span
from .clouds import Clouds
from .gridded import check_quantity, image
from .orbit import MU, ROTATION
from .surface import RADIUS, Surface, unit_vectors


@dataclass
class Geostationary(Generator):
    """A geostationary imager.

    Arguments:
        variables: The variables that are seen, or the components of the quantity.
        quantity: `speed`, the size of the vector of the variables (default: the variables).
        std: The standard deviation of the errors, one for all or one for each by its name.
        longitude: Of the satellite, in degrees.
        zenith: The largest zenith angle of the satellite at a place that is seen, in degrees.
        interval: The time between two images, in the layout's units of time (default: every state).
        subsample: Every n-th grid point is seen.
        share: The share of the disk under clouds.
        cloud: The size of clouds, in km.
        lifetime: How long they last, in the layout's units of time.
        cloudy: The variable that makes clouds where it is high (`-name`: low), in place of a random
            field.

    Raises:
        ValueError: If an argument is out of range, the state is not on latitude and longitude, or
            all is hidden.
    """

    variables: Sequence[str] | str | None = ("h",)
    quantity: str | None = None
    std: float | Mapping[str, float] = 20.0
    longitude: float = 0.0
    zenith: float = 65.0
    interval: float | None = 12.0
    subsample: int = 2
    share: float = 0.5
    cloud: float = 1000.0
    lifetime: float = 24.0
    cloudy: str | None = None

    key: ClassVar[int] = 5

    def __post_init__(self) -> None:
        self.variables = (
            list(self.variables) if isinstance(self.variables, tuple) else self.variables
        )
        self.need(0, "zenith", "interval", "cloud", "lifetime", above=True)
        self.need(1, "subsample")
        self.need_shares("share")
        check_quantity(self.quantity)
        if self.zenith > 90:
            raise ValueError(f"zenith must be at most 90 degrees, got {self.zenith}")

    @property
    def reach(self) -> float:
        """The angle `γ` about the point below the satellite, in degrees."""

        height = (MU / ROTATION**2) ** (1 / 3)
        zenith = np.deg2rad(self.zenith)

        return float(np.rad2deg(zenith - np.arcsin(RADIUS * np.sin(zenith) / height)))

    def plan(self, truth: xr.Dataset, layout: Layout, seed: int) -> Plan:
        surface = Surface(layout)
        if not surface.spherical:
            raise ValueError(
                f"a geostationary imager needs a state on latitude and longitude, got the "
                f"dimensions {list(layout.dims)}: use sea_surface on a plane"
            )
        below = unit_vectors(np.array([0.0, self.longitude]))
        view = unit_vectors(surface.grid()) @ below >= np.cos(np.deg2rad(self.reach))
        clouds = Clouds(self.share, self.cloud, self.lifetime, self.cloudy)

        return image(
            truth, layout, regular(span(truth), self.interval), names_of(self.variables, layout),
            self.quantity, self.std, self.subsample, view, clouds, self.random(seed, CLOUDS),
        )  # fmt: skip
