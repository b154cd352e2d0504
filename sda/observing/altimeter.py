r"""An altimeter: the sea surface height along the tracks of a satellite that repeat.

The height of a geostrophic sea surface is linear in the streamfunction of the upper layer,

    η = f₀ ψ₁ / g.

On the sphere the tracks are those of an orbit that repeats after `revolutions` in `days`. A plane
is crossed by straight tracks, as many ascending as descending ones in one `repeat`, spread evenly
and in turns; a satellite is across in no time.

References:
    TOPEX/Poseidon mission overview (Fu et al., 1994), whose orbit is the default
"""

import math
from dataclasses import dataclass
from typing import ClassVar

import numpy as np
import xarray as xr

from dynamics.layout import Layout

from ..observation import Combine, Interpolate
from .base import PLACES, Generator, Plan, names_of, rows, span
from .orbit import Orbit
from .surface import RADIUS, Surface, degrees

HEIGHT = "ssh"


@dataclass
class Altimeter(Generator):
    """An altimeter on a satellite.

    Arguments:
        variable: The streamfunction of the upper layer.
        coriolis: The Coriolis parameter `f₀`, in 1/s.
        gravity: `g`, in m/s².
        std: The standard deviation of the errors of the height, in m.
        spacing: Of the values along the track, in km.
        network: The seed of the tracks' offset on a plane.
        tracks: On a plane, the number of ascending tracks in one repeat, and of descending ones.
        repeat: On a plane, the time after which the tracks repeat, in the layout's units.
        slope: On a plane, the angle between the tracks and the direction to the north, in degrees.
        inclination: On the sphere, the inclination of the orbit, in degrees.
        revolutions: On the sphere, the number of revolutions in one repeat.
        days: On the sphere, the days of one repeat.
        node: On the sphere, the longitude of the ascending node at time zero, in degrees.

    Raises:
        ValueError: If an argument is out of range, or no track passes within the span.
    """

    variable: str = "psi1"
    coriolis: float = 1.0e-4
    gravity: float = 9.81
    std: float = 0.02
    spacing: float = 30.0
    network: int = 0
    tracks: int = 6
    repeat: float = 240.0
    slope: float = 25.0
    inclination: float = 66.04
    revolutions: int = 127
    days: int = 10
    node: float = 0.0

    key: ClassVar[int] = 3

    def __post_init__(self) -> None:
        self.need(0, "gravity", "spacing", "repeat", above=True)
        self.need(1, "tracks", "revolutions", "days")
        self.need(0, "slope", "network")
        if self.slope >= 90:
            raise ValueError(f"slope must be below 90 degrees, got {self.slope}")
        if self.coriolis == 0:
            raise ValueError("coriolis must not be zero: without rotation the surface is flat")

    def passes(self, surface: Surface, times: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        """The values within the span of times, on a plane.

        Returns:
            The time of each value, its position and the number of its pass.
        """

        (south, north), (west, east) = surface.extent
        height = (north - south) * surface.length
        shift = self.random(self.network, PLACES).random()
        angle = math.radians(self.slope)
        length = height / math.cos(angle)
        along = np.arange(0, length - 1e-9 * length, self.spacing)
        interval = self.repeat / (2 * self.tracks)
        slack = 1e-9 * self.repeat
        first = math.ceil((times[0] - slack) / interval - shift)
        last = math.floor((times[-1] + slack) / interval - shift)
        # Neighbours in space do not follow each other in time.
        stride = coprime(self.tracks)
        found_time, found_place = [], []
        for number in range(first, last + 1):
            descending = number % 2
            place = (number // 2 * stride % self.tracks + 0.5 * descending + shift) / self.tracks
            x = west + place * (east - west) + along * math.sin(angle) / surface.length
            y = along * math.cos(angle) / surface.length
            y = north - y if descending else south + y
            found_place.append(np.stack([y, x], -1))
            found_time.append(np.full(len(along), (number + shift) * interval))
        if not found_time:
            return np.empty(0), np.empty((0, 2))

        time = np.clip(np.concatenate(found_time), times[0], times[-1])
        return time, np.concatenate(found_place)

    def ground(self, surface: Surface, times: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        """The values within the span of times, on the sphere, see `passes`."""

        orbit = Orbit.repeating(self.inclination, self.revolutions, self.days, node=self.node)
        step = self.spacing / (RADIUS * orbit.motion)
        first, last = (np.asarray([times[0], times[-1]]) * surface.seconds / step).round(9)
        count = np.arange(np.ceil(first), np.floor(last) + 1)
        under, _ = orbit.track(count * step)

        return np.clip(count * step / surface.seconds, times[0], times[-1]), degrees(under)

    def plan(self, truth: xr.Dataset, layout: Layout, seed: int) -> Plan:
        surface, times = Surface(layout), span(truth)
        names_of(self.variable, layout)
        time, places = (self.ground if surface.spherical else self.passes)(surface, times)
        keep = surface.inside(places)
        if not keep.any():
            raise ValueError(
                f"no track of the altimeter passes over the sea within the times {times[0]:g} … "
                f"{times[-1]:g}: observe for longer, or give more tracks"
            )
        points, _ = rows(surface, places[keep], time[keep], [HEIGHT])
        height = Combine({HEIGHT: {self.variable: self.coriolis / self.gravity}})

        return Plan(height >> Interpolate(points), self.std)


def coprime(number: int) -> int:
    """A stride that visits all of `number` places, about two fifths of them apart."""

    start = max(1, round(0.382 * number))
    return next(s for s in (*range(start, number + 1), 1) if math.gcd(s, number) == 1)
