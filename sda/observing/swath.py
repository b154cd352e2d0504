"""A satellite in a low orbit that scans a swath on both sides of its track.

Footprints are a fixed distance apart along and across the track. Each sees an average over a disk,
of variables or of the size of a vector (as a scatterometer sees the wind speed), unless a cloud
hides it.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import ClassVar

import numpy as np
import xarray as xr

from dynamics.layout import Layout

from ..observation import Compose, GroupAverage, Interpolate, Magnitude, Operator
from .base import CLOUDS, Generator, Plan, names_of, rows, span, std_of
from .clouds import Clouds
from .gridded import check_quantity
from .orbit import Orbit
from .surface import RADIUS, Surface, degrees

# A disk is averaged over its centre and six points about it: exact for cubic polynomials.
CORNERS = 6
RING = np.sqrt(7 / 12)


@dataclass
class Swath(Generator):
    """A scanning satellite.

    Arguments:
        variables: The variables that are seen, or the components of the quantity.
        quantity: `speed`, the size of the vector of the variables (default: the variables).
        std: The standard deviation of the errors, one for all or one for each by its name.
        altitude: Of the orbit, in km.
        inclination: Of the orbit, in degrees (default: sun-synchronous).
        phase: The argument of latitude at time zero, in degrees.
        node: The longitude of the ascending node at time zero, in degrees.
        width: Of the swath, in km.
        spacing: Of the footprints, in km.
        footprint: The diameter of the disk that a footprint averages over, in km.
        share: The share of footprints under clouds.
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
    std: float | Mapping[str, float] = 15.0
    altitude: float = 830.0
    inclination: float | None = None
    phase: float = 0.0
    node: float = 0.0
    width: float = 2000.0
    spacing: float = 650.0
    footprint: float = 400.0
    share: float = 0.5
    cloud: float = 1000.0
    lifetime: float = 24.0
    cloudy: str | None = None

    key: ClassVar[int] = 2

    def __post_init__(self) -> None:
        self.variables = (
            list(self.variables) if isinstance(self.variables, tuple) else self.variables
        )
        self.need(0, "width", "footprint")
        self.need(0, "spacing", "cloud", "lifetime", above=True)
        self.need_shares("share")
        check_quantity(self.quantity)

    @property
    def orbit(self) -> Orbit:
        """The satellite's orbit."""
        return Orbit(self.altitude, self.inclination, self.phase, self.node)

    def scan(self, times: np.ndarray, seconds: float) -> tuple[np.ndarray, np.ndarray]:
        """The footprints within the span of times.

        Arguments:
            times: The times of a truth.
            seconds: The seconds in their unit.

        Returns:
            The time of each footprint, and its position, with shapes `(n)` and `(n, 2)`.
        """

        orbit = self.orbit
        step = self.spacing / (RADIUS * orbit.motion)
        first, last = (np.asarray([times[0], times[-1]]) * seconds / step).round(9)
        count = np.arange(np.ceil(first), np.floor(last) + 1)
        under, left = orbit.track(count * step)
        beams = int(self.width / 2 / self.spacing + 1e-9)
        across = np.arange(-beams, beams + 1) * self.spacing / RADIUS
        places = (
            np.cos(across)[None, :, None] * under[:, None]
            + np.sin(across)[None, :, None] * left[:, None]
        )
        time = np.repeat(count * step / seconds, len(across))

        return np.clip(time, times[0], times[-1]), degrees(places).reshape(-1, 2)

    def disk(self, positions: np.ndarray) -> np.ndarray:
        """The points that are averaged, with shape `(n, 1 + CORNERS, 2)`, the centres first."""

        if not self.footprint:
            return positions[:, None]
        latitude, longitude = np.deg2rad(positions).T
        up = np.stack(
            [
                np.cos(latitude) * np.cos(longitude),
                np.cos(latitude) * np.sin(longitude),
                np.sin(latitude),
            ],
            -1,
        )
        east = np.stack([-np.sin(longitude), np.cos(longitude), 0 * longitude], -1)
        north = np.cross(up, east)
        angle = 2 * np.pi * np.arange(CORNERS) / CORNERS
        reach = RING * self.footprint / 2 / RADIUS
        way = np.cos(angle)[:, None] * east[:, None] + np.sin(angle)[:, None] * north[:, None]
        ring = np.cos(reach) * up[:, None] + np.sin(reach) * way

        return np.concatenate([positions[:, None], degrees(ring)], axis=1)

    def plan(self, truth: xr.Dataset, layout: Layout, seed: int) -> Plan:
        surface, times = Surface(layout), span(truth)
        if not surface.spherical:
            raise ValueError(
                f"a satellite's swath needs a state on latitude and longitude, got the dimensions "
                f"{list(layout.dims)}: use altimeter or sea_surface on a plane"
            )
        names = names_of(self.variables, layout)
        time, positions = self.scan(times, surface.seconds)
        clouds = Clouds(self.share, self.cloud, self.lifetime, self.cloudy)
        clear = ~clouds.hide(self.random(seed, CLOUDS), positions, time, truth, layout)
        # A disk near a pole or a coast may reach beyond the grid: it is left out.
        disks = self.disk(positions)
        clear &= surface.inside(disks).all(axis=1)
        if not clear.any():
            raise ValueError(
                f"the satellite sees nothing: all of {len(time)} footprints are under clouds or "
                f"beyond the grid"
            )
        parts: list[Operator] = []
        if self.quantity == "speed":
            parts.append(Magnitude(names))
            names = ["speed"]
        size = disks.shape[1]
        # All points of a disk of one variable follow each other.
        disks = np.repeat(disks[clear], len(names), axis=0).reshape(-1, 2)
        points, _ = rows(surface, disks, np.repeat(time[clear], len(names) * size), ["-"])
        one = np.array(names, dtype=object).repeat(size)
        points["variable"] = np.tile(one, int(clear.sum()))
        parts.append(Interpolate(points))
        if size > 1:
            parts.append(GroupAverage(size))

        return Plan(Compose(*parts), std_of(self.std, points["variable"][::size]))
