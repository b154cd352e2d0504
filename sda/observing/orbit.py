r"""Circular orbits and what they pass over.

Kepler's third law gives the period `T = 2π √(a³ / μ)` of an orbit of radius `a = R + altitude`. The
Earth's oblateness turns the orbit's plane by

    Ω̇ = −(3/2) J₂ (R_e / a)² n cos i,    n = 2π / T,

and an orbit of the right inclination is turned as the Earth is about the Sun (sun-synchronous). At
the argument of latitude `φ = φ₀ + n t` the satellite is over

    sin(latitude) = sin i sin φ,    longitude = Ω₀ + atan2(cos i sin φ, cos φ) − (ω − Ω̇) t.

References:
    Fundamentals of Astrodynamics and Applications (Vallado, 2013)
"""

import math
from dataclasses import dataclass

import numpy as np

from .surface import RADIUS

# Of the Earth: gravitational parameter in km³/s², equatorial radius in km, oblateness, rotation
# relative to the stars in 1/s, and the motion of the mean Sun in 1/s.
MU, EQUATOR, J2 = 398600.4418, 6378.137, 1.08262668e-3
ROTATION = 7.2921159e-5
SUN = 2 * math.pi / (365.2421897 * 86400.0)


@dataclass(frozen=True)
class Orbit:
    """A circular orbit.

    Arguments:
        altitude: Above the mean sphere, in km.
        inclination: In degrees (default: that of a sun-synchronous orbit).
        phase: The argument of latitude at time zero, in degrees.
        node: The longitude of the ascending node at time zero, in degrees.

    Raises:
        ValueError: If an argument is out of range, or no orbit so high is sun-synchronous.
    """

    altitude: float
    inclination: float | None = None
    phase: float = 0.0
    node: float = 0.0

    def __post_init__(self) -> None:
        if not self.altitude > 0:
            raise ValueError(f"altitude must be positive, got {self.altitude}")
        if self.inclination is not None and not 0 <= self.inclination <= 180:
            raise ValueError(f"inclination must be within 0 … 180 degrees, got {self.inclination}")
        _ = self.tilt

    @classmethod
    def repeating(
        cls, inclination: float, revolutions: int, days: int, phase: float = 0.0, node: float = 0.0
    ) -> "Orbit":
        """The orbit whose track repeats after so many revolutions in so many days.

        The days are those of the orbit's plane, `2π / (ω − Ω̇)`.

        Raises:
            ValueError: If no orbit above the ground does so.
        """

        altitude = 1000.0
        for _ in range(50):
            turning = cls(max(altitude, 1.0), inclination).turning
            motion = revolutions / days * turning
            altitude = (MU / motion**2) ** (1 / 3) - RADIUS
        if altitude <= 0:
            raise ValueError(
                f"{revolutions} revolutions in {days} days need an orbit below the ground: give "
                f"fewer revolutions"
            )
        return cls(altitude, inclination, phase, node)

    @property
    def radius(self) -> float:
        """The distance from the Earth's centre, in km."""
        return RADIUS + self.altitude

    @property
    def motion(self) -> float:
        """The mean motion `n`, in radians per second."""
        return math.sqrt(MU / self.radius**3)

    @property
    def period(self) -> float:
        """The time of one revolution, in seconds."""
        return 2 * math.pi / self.motion

    @property
    def tilt(self) -> float:
        """The inclination, in radians."""

        if self.inclination is not None:
            return math.radians(self.inclination)
        cosine = -SUN / (1.5 * J2 * (EQUATOR / self.radius) ** 2 * self.motion)
        if abs(cosine) > 1:
            raise ValueError(
                f"no orbit at an altitude of {self.altitude:g} km is sun-synchronous: give an "
                f"inclination, or an altitude below 5,900 km"
            )
        return math.acos(cosine)

    @property
    def turning(self) -> float:
        """The rotation of the Earth under the orbit's plane, in radians per second."""

        oblateness = -1.5 * J2 * (EQUATOR / self.radius) ** 2 * self.motion * math.cos(self.tilt)
        return ROTATION - oblateness

    def track(self, seconds: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        """Where the satellite is over the turning Earth.

        Arguments:
            seconds: Times since time zero, with shape `(n)`.

        Returns:
            The unit vectors to the satellite, and to the left across its track, both `(n, 3)`.
        """

        seconds = np.asarray(seconds, dtype=np.float64)
        phi = math.radians(self.phase) + self.motion * seconds
        node = math.radians(self.node) - self.turning * seconds
        sine, cosine = math.sin(self.tilt), math.cos(self.tilt)
        plane = np.stack([np.cos(phi), cosine * np.sin(phi), sine * np.sin(phi)], -1)
        normal = np.broadcast_to([0.0, -sine, cosine], plane.shape)

        return turned(plane, node), turned(normal, node)


def turned(vectors: np.ndarray, angle: np.ndarray) -> np.ndarray:
    """Vectors `(n, 3)` turned about the Earth's axis by angles `(n)`."""

    x, y, z = np.moveaxis(vectors, -1, 0)
    cosine, sine = np.cos(angle), np.sin(angle)

    return np.stack([cosine * x - sine * y, sine * x + cosine * y, z], axis=-1)
