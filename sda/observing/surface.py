"""The surface that a grid covers, a sphere or a plane, where instruments stand, fly and float.

Positions are arrays `(…, 2)` of a coordinate to the north and one to the east, in the units of the
grid: degrees on the sphere. Lengths are in km, or in the units of the coordinates where these have
none; the Earth is a sphere.
"""

from dataclasses import dataclass
from functools import cached_property

import numpy as np

from dynamics.layout import Layout

# The Earth's mean radius, in km.
RADIUS = 6371.0
# Kilometres in the units of a coordinate, and seconds in those of time.
LENGTHS = {
    "1": 1.0, "km": 1.0, "kilometre": 1.0, "kilometres": 1.0, "kilometer": 1.0, "kilometers": 1.0,
    "m": 1e-3, "metre": 1e-3, "metres": 1e-3, "meter": 1e-3, "meters": 1e-3,
}  # fmt: skip
DURATIONS = {
    "1": 1.0, "s": 1.0, "sec": 1.0, "second": 1.0, "seconds": 1.0, "min": 60.0, "minute": 60.0,
    "minutes": 60.0, "h": 3600.0, "hr": 3600.0, "hour": 3600.0, "hours": 3600.0, "d": 86400.0,
    "day": 86400.0, "days": 86400.0,
}  # fmt: skip


@dataclass(frozen=True, eq=False)
class Surface:
    """The surface of a layout.

    Arguments:
        layout: The layout, with latitude and longitude, or with two dimensions of a plane (`y` and
            `x`, or the first to the north and the second to the east).

    Raises:
        ValueError: If the layout has neither, or the units of a coordinate or of time are unknown.
    """

    layout: Layout

    def __post_init__(self) -> None:
        if len(self.layout.dims) != 2:
            raise ValueError(
                f"an observing system needs a state on latitude and longitude or on a plane, got "
                f"the spatial dimensions {list(self.layout.dims)}"
            )
        if not self.spherical and len({self.layout.units.get(d, "1") for d in self.dims}) > 1:
            raise ValueError(
                f"the dimensions of a plane must have the same units, got "
                f"{ {d: self.layout.units.get(d, '1') for d in self.dims} }"
            )
        _ = self.length, self.seconds

    @property
    def spherical(self) -> bool:
        """Whether it is a sphere."""
        return self.layout.spherical

    @property
    def dims(self) -> tuple[str, str]:
        """The names of the dimensions to the north and to the east."""
        first, second = self.layout.dims
        return (second, first) if (first, second) == ("x", "y") else (first, second)

    @cached_property
    def length(self) -> float:
        """The unit of length in one unit of a plane's coordinates."""
        if self.spherical:
            return np.deg2rad(1.0) * RADIUS
        return unit("coordinate", self.layout.units.get(self.dims[0], "1"), LENGTHS)

    @cached_property
    def seconds(self) -> float:
        """The seconds in one unit of the layout's time; 1 where time has no units."""
        return unit("time", self.layout.time_units, DURATIONS)

    @property
    def physical(self) -> bool:
        """Whether the units of length and time are known, and not just numbers."""
        units = (self.layout.units.get(self.dims[0], "1"), self.layout.time_units)
        return "1" not in units

    @cached_property
    def extent(self) -> tuple[tuple[float, float], tuple[float, float]]:
        """The lowest and the highest coordinate to the north and to the east."""

        ends = []
        for dim in self.dims:
            nodes, period = self.layout.coords[dim], self.layout.period.get(dim)
            last = nodes[-1] if period is None else nodes[0] + period
            ends.append((float(nodes[0]), float(last)))

        return ends[0], ends[1]

    @cached_property
    def periods(self) -> tuple[float | None, float | None]:
        """The period to the north and to the east, None where there is none."""
        north, east = (self.layout.period.get(dim) for dim in self.dims)
        return north, east

    def scatter(self, generator: np.random.Generator, number: int) -> np.ndarray:
        """Draws positions that are uniform by area, with shape `(number, 2)`."""

        (south, north), (west, east) = self.extent
        u, v = generator.random((2, number))
        if self.spherical:
            low, high = np.sin(np.deg2rad([south, north]))
            first = np.rad2deg(np.arcsin(low + u * (high - low)))
        else:
            first = south + u * (north - south)

        return np.stack([first, west + v * (east - west)], axis=-1)

    def wrap(self, positions: np.ndarray) -> np.ndarray:
        """The same positions within the extent of the periodic dimensions."""

        wrapped = np.array(positions, dtype=np.float64)
        for i, period in enumerate(self.periods):
            if period is not None:
                low = self.extent[i][0]
                wrapped[..., i] = low + np.mod(wrapped[..., i] - low, period)

        return wrapped

    def inside(self, positions: np.ndarray) -> np.ndarray:
        """Whether positions lie within the grid: north and south of no row, on no land."""

        wrapped, keep = self.wrap(positions), np.ones(positions.shape[:-1], dtype=bool)
        for i, period in enumerate(self.periods):
            if period is None:
                low, high = self.extent[i]
                keep &= (wrapped[..., i] >= low) & (wrapped[..., i] <= high)
        if self.layout.mask is not None:
            keep &= self.at_sea(wrapped)

        return keep

    def at_sea(self, positions: np.ndarray) -> np.ndarray:
        """Whether there is a state in the cell of each position (its nearest grid point)."""

        if self.layout.mask is None:
            return np.ones(positions.shape[:-1], dtype=bool)
        index = dict(zip(self.dims, self.nearest(positions), strict=True))

        return self.layout.mask[tuple(index[dim] for dim in self.layout.dims)]

    def nearest(self, positions: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        """The indices to the north and to the east of the nearest grid points."""

        wrapped, found = self.wrap(positions), []
        for i, (dim, period) in enumerate(zip(self.dims, self.periods, strict=True)):
            nodes = self.layout.coords[dim]
            if period is not None:
                nodes = np.append(nodes, nodes[0] + period)
            between = (nodes[1:] + nodes[:-1]) / 2
            index = np.searchsorted(between, wrapped[..., i], side="right")
            found.append(index % len(self.layout.coords[dim]))

        return found[0], found[1]

    def embed(self, positions: np.ndarray) -> np.ndarray:
        """Cartesian coordinates in units of length: `(…, 3)` on the sphere, `(…, 2)` else."""

        if self.spherical:
            return RADIUS * unit_vectors(positions)

        return np.asarray(positions, dtype=np.float64) * self.length

    def distance(self, a: np.ndarray, b: np.ndarray) -> np.ndarray:
        """The distances along the surface, for positions whose shapes broadcast."""

        if self.spherical:
            chord = np.linalg.norm(unit_vectors(a) - unit_vectors(b), axis=-1)
            return 2 * RADIUS * np.arcsin(np.clip(chord / 2, 0, 1))
        apart = np.abs(np.asarray(a, dtype=np.float64) - np.asarray(b, dtype=np.float64))
        for i, period in enumerate(self.periods):
            if period is not None:
                apart[..., i] = np.minimum(apart[..., i] % period, -apart[..., i] % period)

        return np.linalg.norm(apart, axis=-1) * self.length

    def columns(self, positions: np.ndarray) -> dict[str, np.ndarray]:
        """The positions as columns of a table, by the names of the layout's dimensions."""

        found = dict(zip(self.dims, np.moveaxis(self.wrap(positions), -1, 0), strict=True))
        return {dim: found[dim] for dim in self.layout.dims}

    def grid(self) -> np.ndarray:
        """The positions of the grid points, with shape `(*space, 2)`."""

        mesh = np.meshgrid(*(self.layout.coords[d] for d in self.layout.dims), indexing="ij")
        found = dict(zip(self.layout.dims, mesh, strict=True))
        return np.stack([found[dim] for dim in self.dims], axis=-1)


def unit(what: str, name: str, known: dict[str, float]) -> float:
    """The value of a unit by its name, also as "hours since 2000-01-01"."""

    words = name.split()
    if not words or words[0] not in known:
        raise ValueError(
            f"the units {name!r} of the layout's {what} are unknown: expected one of "
            f"{', '.join(known)}"
        )
    return known[words[0]]


def unit_vectors(positions: np.ndarray) -> np.ndarray:
    """Unit vectors `(…, 3)` of latitudes and longitudes `(…, 2)` in degrees."""

    latitude, longitude = np.moveaxis(np.deg2rad(np.asarray(positions, dtype=np.float64)), -1, 0)
    return np.stack(
        [
            np.cos(latitude) * np.cos(longitude),
            np.cos(latitude) * np.sin(longitude),
            np.sin(latitude),
        ],
        axis=-1,
    )


def degrees(vectors: np.ndarray) -> np.ndarray:
    """Latitudes and longitudes `(…, 2)` of vectors `(…, 3)`, longitudes in 0 … 360."""

    x, y, z = np.moveaxis(vectors, -1, 0)
    return np.stack(
        [
            np.rad2deg(np.arctan2(z, np.hypot(x, y))),
            np.mod(np.rad2deg(np.arctan2(y, x)), 360.0),
        ],
        axis=-1,
    )
