"""Where the values of an array lie: on the grid of a trajectory, or at points of their own.

An observation operator maps an array on one domain to an array on another. Domains carry the
names and coordinates along, so that operators compose, and every observed value knows its variable,
its time and its place.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field

import numpy as np

from dynamics.layout import Layout, summary

# The part of a time step within which two times are the same. Times are often stored in float32.
TIME_TOLERANCE = 1e-3


@dataclass(frozen=True, eq=False)
class Grid:
    """The grid of a trajectory, whose arrays are `(member, time, channel, *space)`.

    Arguments:
        variables: The names of the variables, in the order of the channels.
        time: The times, increasing.
        coords: The spatial dimensions, in order, and their coordinates.
        period: The period of each periodic dimension.
        layout: The layout of the state, where the grid is its own: it knows of land and of poles.
    """

    variables: tuple[str, ...]
    time: np.ndarray
    coords: Mapping[str, np.ndarray] = field(default_factory=dict)
    period: Mapping[str, float] = field(default_factory=dict)
    layout: Layout | None = None

    @classmethod
    def of(cls, layout: Layout, time: Sequence[float] | np.ndarray) -> "Grid":
        """The grid of a layout's trajectory at the times given.

        Raises:
            ValueError: If the times are empty, not finite, or do not increase.
        """

        time = np.atleast_1d(np.asarray(time, dtype=np.float64))
        if not time.size or not np.isfinite(time).all() or not (np.diff(time) > 0).all():
            raise ValueError(
                f"the time coordinate of a trajectory must be finite and increasing, "
                f"got {len(time)} values {summary(time)}"
            )

        return cls(layout.variables, time, dict(layout.coords), dict(layout.period), layout)

    @property
    def dims(self) -> tuple[str, ...]:
        """The spatial dimensions, in order."""
        return tuple(self.coords)

    @property
    def shape(self) -> tuple[int, ...]:
        """The shape `(time, channel, *space)`."""
        space = (len(values) for values in self.coords.values())
        return (len(self.time), len(self.variables), *space)

    def rows(self) -> dict[str, np.ndarray]:
        """Time, variable and coordinates of each value, in the order of the flattened array."""

        axes = (self.time, np.array(self.variables, dtype=object), *self.coords.values())
        indices = np.indices(self.shape).reshape(len(axes), -1)
        names = ("time", "variable", *self.coords)

        return {name: axis[index] for name, axis, index in zip(names, axes, indices, strict=True)}


@dataclass(frozen=True, eq=False)
class Points:
    """Values at points of their own, whose arrays are `(member, value)`.

    Arguments:
        columns: `time`, `variable` and the spatial coordinates of each value. A value that belongs
            to no single time has time NaN.
    """

    columns: Mapping[str, np.ndarray]

    @property
    def shape(self) -> tuple[int, ...]:
        """The shape `(value,)`."""
        return (len(self.columns["variable"]),)

    @property
    def variables(self) -> tuple[str, ...]:
        """The names of the variables, in order of appearance."""
        return tuple(dict.fromkeys(self.columns["variable"]))

    def rows(self) -> dict[str, np.ndarray]:
        """Time, variable and coordinates of each value."""
        return dict(self.columns)


Domain = Grid | Points


def locate_time(
    grid: Grid, values: np.ndarray | Sequence[float]
) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Finds times on those of a trajectory, see `locate`.

    Times within `TIME_TOLERANCE` of a state, in steps of the layout, are that state's: also of one
    that stands alone, whose spacing only its layout knows.
    """

    alone = len(grid.time) == 1 and grid.layout is not None
    tolerance = TIME_TOLERANCE * (grid.layout.dt if alone and grid.layout else 1.0)

    return locate("time", grid.time, np.asarray(values), tolerance=tolerance)


def locate(
    name: str,
    coordinate: np.ndarray,
    values: np.ndarray,
    period: float | None = None,
    tolerance: float = 1e-6,
) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Finds values on a coordinate for linear interpolation.

    A value `v` is `(1 - w) c[lower] + w c[upper]`. Within `tolerance` spacings of a grid point it
    is that grid point (`w = 0`). On a periodic coordinate, values wrap around, up to one period
    on either side.

    Returns:
        The arrays `lower`, `upper` and `w`, each with the shape of `values`.

    Raises:
        ValueError: If a value lies outside the coordinate.
    """

    values = np.asarray(values, dtype=np.float64)
    size = len(coordinate)
    first, last = coordinate[0], coordinate[-1]
    spacing = (last - first) / (size - 1) if size > 1 else (period or 1.0)
    slack = tolerance * spacing

    if period is None:
        low, high, nodes = first, last, coordinate
    else:
        low, high, nodes = first - period, first + 2 * period, np.append(coordinate, first + period)
    outside = ~((values >= low - slack) & (values <= high + slack))
    if outside.any():
        what = "the time span" if name == "time" else "the domain"
        raise ValueError(
            f"{outside.sum()} of {values.size} observations lie outside {what}: {name} = "
            f"{values[outside][0]:g} is not within {low:g} … {high:g}"
        )
    if period is not None:
        values = first + np.mod(values - first, period)
    values = np.clip(values, nodes[0], nodes[-1])

    if len(nodes) == 1:
        zeros = np.zeros(values.shape, dtype=np.int64)
        return zeros, zeros, np.zeros(values.shape)

    lower = np.clip(np.searchsorted(nodes, values, side="right") - 1, 0, len(nodes) - 2)
    weight = (values - nodes[lower]) / (nodes[lower + 1] - nodes[lower])
    up = weight >= 1 - tolerance
    lower, weight = lower + up, np.where(up | (weight <= tolerance), 0.0, weight)
    upper = np.where(weight > 0, lower + 1, lower)

    return lower % size, upper % size, weight
