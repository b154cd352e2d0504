r"""Localisation: observations count less, the farther away they are from what they correct.

A small ensemble has spurious correlations over long distances. Local analyses (Hunt et al. 2007)
therefore divide the error variance of every observation by a weight that falls off with distance,

    R⁻¹ ↦ ρ(d / c) R⁻¹,

with the fifth-order function of Gaspari and Cohn (1999), which looks like a Gaussian and is zero
from `2c` on. `c = √(10/3) · radius`, so that the weight is about exp(−1/2) at the radius itself, as
in Sakov and Bertino (2011) and in DAPPER. Distances are counted in cells of the grid. On the sphere
they are those of great circles,

    d = 2 arcsin √(sin²(Δφ/2) + cos φ cos φ' sin²(Δλ/2)),

in cells of one size, the mean spacing of the latitudes, wherever they are: 111.2 km a degree on
Earth. A grid's own cells are narrow near the poles, where a radius holds more of them.

Points are grouped: points of one tile share an analysis, made for its centre, and the tiles of one
patch share the observations that at least one of them sees, so that all of it is a few dense
products. On the sphere tiles hold as many points more along a circle of latitude as it is shorter
than the equator, and are about as wide as high.

References:
    | Gaspari, Cohn (1999), Construction of correlation functions in two and three dimensions.
    | Hunt, Kostelich, Szunyogh (2007), Efficient data assimilation for spatiotemporal chaos.
    | Sakov, Bertino (2011), Relation between two common localisation methods for the EnKF.
"""

import itertools
import math
from collections.abc import Hashable, Mapping, Sequence
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

from dynamics.layout import Layout

from ..observation.sequence import ObservedTime

TAPERS = ("gaspari_cohn", "step")
# Gaspari and Cohn's half-width that has the curvature of a Gaussian of unit length scale.
HALF_WIDTH = math.sqrt(10 / 3)


def gaspari_cohn(r: np.ndarray) -> np.ndarray:
    """The compactly supported fifth-order function of Gaspari and Cohn (1999, equation 4.10).

    Arguments:
        r: Distances over the half-width, non-negative. The function is 1 at 0 and 0 from 2 on.
    """

    r = np.asarray(r, dtype=np.float64)
    inner = 1 + r**2 * (-5 / 3 + r * (5 / 8 + r * (1 / 2 - r / 4)))
    far = np.clip(r, 1, 2)
    outer = 4 - 2 / (3 * far) + far * (-5 + far * (5 / 3 + far * (5 / 8 + far * (-0.5 + far / 12))))

    return np.where(r < 1, inner, np.where(r < 2, np.maximum(outer, 0), 0.0))


@dataclass
class Patch:
    """Some tiles and the observations that at least one of them sees.

    Attributes:
        points: The points of each tile, by index in the flattened space, with shape
            `(tile, point)`; None: every point of the space is a tile of its own.
        values: The observations, by index; None for all.
        weights: The weight of each observation in each tile, with shape `(tile, value)`.
    """

    points: Tensor | None
    values: Tensor | None
    weights: Tensor


class Localisation:
    """The weights of observations in the local analyses on the grid of a layout.

    Arguments:
        layout: The layout of the states.
        radius: The distance at which the weight of an observation is about exp(−1/2)
            (Gaspari–Cohn) or beyond which it is zero (step), in cells of the grid: in each
            dimension, its mean spacing; on the sphere that of the latitudes, along great circles.
            None or infinite: every observation counts everywhere.
        taper: "gaspari_cohn" or "step".
        tile: The number of cells along the edge of a tile, whose points share one analysis.
        patch: The number of tiles of a patch at most.

    Raises:
        ValueError: If the radius is not positive, the taper is unknown, the tile is not a positive
            integer, or the layout has no space to localise in.
    """

    def __init__(
        self,
        layout: Layout,
        radius: float | None,
        taper: str = "gaspari_cohn",
        tile: int = 1,
        patch: int = 1024,
    ) -> None:
        check(radius, taper, tile)
        if radius is not None and math.isinf(radius):
            radius = None
        if radius is not None and not layout.dims:
            raise ValueError(
                f"a localisation radius of {radius:g} cells needs states in space, but "
                f"{list(layout.variables)} have no spatial dimension: give radius=None"
            )
        self.layout, self.radius, self.taper, self.tile = layout, radius, taper, tile
        self.spacing = {dim: spacing(layout, dim) for dim in layout.dims}
        # Coordinates and periods in cells.
        self.axes = [layout.coords[dim] / self.spacing[dim] for dim in layout.dims]
        self.periods = [
            layout.period[dim] / self.spacing[dim] if dim in layout.period else None
            for dim in layout.dims
        ]
        self.spherical = layout.spherical
        self.groups: list[np.ndarray] = []
        if radius is not None and self.spherical and tile > 1:
            self.groups = bands(layout, tile, patch)
        elif radius is not None:
            self.groups = patches(layout.shape[1:], tile, patch)

    @property
    def reach(self) -> float:
        """The distance, in cells, from which on an observation has no weight."""

        if self.radius is None:
            return math.inf
        return self.radius * (2 * HALF_WIDTH if self.taper == "gaspari_cohn" else 1)

    def weigh(self, distance: np.ndarray) -> np.ndarray:
        """The weight of observations at some distances, in cells."""

        if self.radius is None:
            return np.ones_like(distance)
        if self.taper == "step":
            return (distance <= self.radius).astype(np.float64)
        return gaspari_cohn(distance / (HALF_WIDTH * self.radius))

    def distances(self, centres: np.ndarray, places: np.ndarray) -> np.ndarray:
        """Euclidean distances, the short way round where a dimension is periodic.

        On the sphere, distances along great circles take the place of those along the last two
        dimensions.

        Arguments:
            centres: Coordinates in cells, with shape `(tile, dimension)`.
            places: Those of observations, with shape `(value, dimension)`; NaN where an observation
                has no place along a dimension, which is then no distance.
        """

        square = np.zeros((len(centres), len(places)))
        if self.spherical:
            degrees = [self.spacing[dim] for dim in self.layout.dims[-2:]]
            here, there = centres[:, None, -2:] * degrees, places[None, :, -2:] * degrees
            there = np.where(np.isnan(there), here, there)
            square += (np.rad2deg(great_circle(here, there)) / degrees[0]) ** 2
        for axis, period in enumerate(self.periods[:-2] if self.spherical else self.periods):
            apart = np.abs(centres[:, axis, None] - places[None, :, axis])
            if period is not None:
                apart = np.mod(apart, period)
                apart = np.minimum(apart, period - apart)
            square += np.nan_to_num(apart, nan=0.0) ** 2

        return np.sqrt(square)

    def patches(self, columns: Mapping[str, np.ndarray], like: Tensor) -> list[Patch]:
        """The local analyses for observations with the columns given.

        Arguments:
            columns: The coordinates of each observation, as in `ObservedTime.columns`.
            like: A tensor with the precision and device of the weights.
        """

        number = len(columns["variable"])
        if self.radius is None:
            # One tile for all points: the global analysis.
            whole = torch.arange(math.prod(self.layout.shape[1:]), device=like.device)
            return [Patch(whole[None], None, like.new_ones((1, number)))]
        places = np.stack(
            [columns[dim].astype(np.float64) / self.spacing[dim] for dim in self.layout.dims], 1
        )
        found = []
        for points in self.groups:
            grid = np.unravel_index(points, self.layout.shape[1:])
            inside = np.stack([axis[index] for axis, index in zip(self.axes, grid, strict=True)])
            # Not the mean: short tiles repeat a point, as often as their box makes them.
            centres = ((inside.min(-1) + inside.max(-1)) / 2).T
            weights = self.weigh(self.distances(centres, places))
            seen = np.flatnonzero((weights > 0).any(0))
            every = len(self.groups) == 1 and self.tile == 1
            found.append(
                Patch(
                    None if every else torch.from_numpy(points).to(like.device),
                    None if len(seen) == number else torch.from_numpy(seen).to(like.device),
                    torch.from_numpy(weights[:, seen]).to(like),
                )
            )

        return found


def check(radius: float | None, taper: str, tile: int) -> None:
    """Raises a `ValueError` unless the arguments of a localisation are in range."""

    if radius is not None and not radius > 0:
        raise ValueError(
            f"the localisation radius must be positive, in cells of the grid, got {radius}: "
            f"radius=None is for no localisation"
        )
    if taper not in TAPERS:
        raise ValueError(f"taper must be one of {list(TAPERS)}, got {taper!r}")
    if not isinstance(tile, int) or tile < 1:
        raise ValueError(f"tile must be a positive number of cells, got {tile!r}")


def spacing(layout: Layout, dim: str) -> float:
    """The mean distance between neighbours along a dimension."""

    values = layout.coords[dim]
    if dim in layout.period:
        return layout.period[dim] / len(values)
    return float(np.diff(values).mean()) if len(values) > 1 else 1.0


def patches(space: Sequence[int], tile: int, size: int) -> list[np.ndarray]:
    """Cuts a grid into boxes of tiles.

    Arguments:
        space: The number of points along each dimension.
        tile: The number of points along the edge of a tile. Those at the end may be smaller.
        size: The number of tiles of a box at most.

    Returns:
        For each box the points of its tiles, by index in the flattened space, with shape
        `(tile, point)`. Tiles of fewer points repeat their last.
    """

    index = np.arange(math.prod(space)).reshape(space)
    tiles = [math.ceil(n / tile) for n in space]
    # Whole dimensions as long as they fit, the last first, and equal edges for the rest: a box is
    # as compact as memory has it.
    edges = list(tiles)
    while math.prod(edges) > size:
        longest = int(np.argmax(edges))
        edges[longest] = math.ceil(edges[longest] / 2)
    boxes = []
    for start in itertools.product(
        *(range(0, n, edge) for n, edge in zip(tiles, edges, strict=True))
    ):
        found = []
        for place in itertools.product(
            *(range(s, min(s + e, n)) for s, e, n in zip(start, edges, tiles, strict=True))
        ):
            found.append(index[tuple(slice(p * tile, (p + 1) * tile) for p in place)].ravel())
        most = max(map(len, found))
        boxes.append(np.stack([np.pad(each, (0, most - len(each)), "edge") for each in found]))

    return boxes


def great_circle(a: np.ndarray, b: np.ndarray) -> np.ndarray:
    """The angle between points on the sphere, in radians, by the haversine formula.

    Arguments:
        a: Latitudes and longitudes in degrees, with shape `(*, 2)`.
        b: Other ones, with a shape that broadcasts to it.
    """

    (south, west), (north, east) = (np.moveaxis(np.deg2rad(each), -1, 0) for each in (a, b))
    square = np.sin((north - south) / 2) ** 2
    square = square + np.cos(south) * np.cos(north) * np.sin((east - west) / 2) ** 2

    return np.asarray(2 * np.arcsin(np.sqrt(np.clip(square, 0, 1))))


def bands(layout: Layout, tile: int, size: int) -> list[np.ndarray]:
    """Cuts a grid on the sphere into bands of tiles that are about as wide as high.

    Arguments:
        layout: A layout whose last dimensions are latitude and longitude.
        tile: The number of rows of a tile, and of its columns at the equator.
        size: The number of tiles of a band at most.

    Returns:
        As `patches`.
    """

    space = layout.shape[1:]
    rows, columns = space[-2:]
    index = np.arange(math.prod(space)).reshape(space)
    latitude = np.deg2rad(layout.coords[layout.dims[-2]])
    levels = [range(0, n, tile) for n in space[:-2]]
    found: list[np.ndarray] = []
    for row in range(0, rows, tile):
        parallel = np.cos(latitude[row : row + tile]).mean()
        width = min(columns, int(tile / max(parallel, tile / columns)))
        # Equal shares of the circle: a narrow last tile would be one more.
        count = math.ceil(columns / width)
        edges = np.linspace(0, columns, count + 1).round().astype(int)
        tiles = [
            index[(*(slice(n, n + tile) for n in level), slice(row, row + tile), slice(*ends))]
            for level in itertools.product(*levels)
            for ends in itertools.pairwise(edges)
        ]
        most = max(each.size for each in tiles)
        padded = [np.pad(each.ravel(), (0, most - each.size), "edge") for each in tiles]
        found += [np.stack(padded[i : i + size]) for i in range(0, len(padded), size)]

    return found


def geometry(observed: ObservedTime) -> Hashable:
    """What decides where and how an analysis time is observed, to recognise another like it."""

    return (
        observed.frames,
        tuple(
            (id(bound), None if index is None else index.cpu().numpy().tobytes())
            for bound, index in observed.parts
        ),
        observed.std.cpu().numpy().tobytes(),
    )
