r"""Multilinear interpolation to arbitrary points.

In one dimension `y(p) = (1 - w) xᵢ + w xᵢ₊₁` with `w = (p - cᵢ) / (cᵢ₊₁ - cᵢ)`; in several, the
product of the weights over the 2ᵈ corners of the cell. Time is a dimension like the others.
"""

import itertools
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import torch
from torch import Tensor

from .domain import Domain, Grid, Points, locate, locate_time
from .operator import Bound, Operator, known, on_grid, within


class Interpolate(Operator):
    """Interpolates linearly to points: bilinear on a plane, and linear in time.

    Points wrap around where the grid is periodic, and lie within its coordinates elsewhere. A
    point on the grid gets exactly the value there. Between a pole and the row of cells beside it,
    values are those of the row. Beside land, the grid points at sea share its weight.

    Arguments:
        points: The coordinate of each point along each spatial dimension. `time` and `variable`
            may be among them: then every point has its own. Otherwise all points are seen at every
            time, for every variable, and the result is ordered by time, then variable, then point.

    Raises:
        ValueError: If there is no point, or the columns differ in length or are not finite. When
            bound, if a dimension is missing or a point lies outside the domain or time span.

    Example:
        >>> H = Interpolate({"x": [0.5, 2.0], "y": [1.0, 3.0]})
    """

    sampling = True

    def __init__(self, points: Mapping[str, Any]) -> None:
        self.points: dict[str, np.ndarray] = {}
        for name, values in points.items():
            if name == "variable":
                self.points[name] = np.atleast_1d(
                    np.array(list(map(str, np.atleast_1d(values))), object)
                )
                continue
            column = np.atleast_1d(np.asarray(values, dtype=np.float64))
            if not np.isfinite(column).all():
                raise ValueError(f"the {name!r} of points must be finite, got {column}")
            self.points[name] = column
        sizes = {name: len(column) for name, column in self.points.items()}
        if not sizes or len(set(sizes.values())) > 1 or 0 in sizes.values():
            raise ValueError(f"points need columns of one length, at least 1, got {sizes}")
        self.timewise = "time" not in self.points

    def __len__(self) -> int:
        return len(next(iter(self.points.values())))

    def bind(
        self,
        domain: Domain,
        dtype: torch.dtype = torch.float32,
        device: torch.device | str = "cpu",
    ) -> Bound:
        grid = on_grid(self, domain)
        known("point columns", self.points, ("time", "variable", *grid.dims))
        if missing := [dim for dim in grid.dims if dim not in self.points]:
            raise ValueError(
                f"points on a grid with dimensions {list(grid.dims)} need columns {missing} too"
            )
        rows = self.expand(grid)
        known("variables", dict.fromkeys(rows["variable"]), grid.variables)

        axes = [locate_time(grid, rows["time"])]
        number = {name: i for i, name in enumerate(grid.variables)}
        channel = np.array([number[name] for name in rows["variable"]], dtype=np.int64)
        axes.append((channel, channel, np.zeros(len(channel))))
        for dim, values in grid.coords.items():
            places = within_poles(rows[dim], dim, grid)
            axes.append(locate(dim, values, places, grid.period.get(dim)))

        indices: list[np.ndarray] = []
        weights: list[np.ndarray] = []
        for corner in itertools.product(
            *((0, 1) if (weight > 0).any() else (0,) for _, _, weight in axes)
        ):
            place = [axis[side] for axis, side in zip(axes, corner, strict=True)]
            factors = [
                axis[2] if side else 1 - axis[2] for axis, side in zip(axes, corner, strict=True)
            ]
            wet = at_sea(place[2:], grid)
            weights.append(np.where(wet, np.prod(factors, axis=0), 0.0))
            indices.append(np.ravel_multi_index(place, grid.shape))
        total = np.sum(weights, axis=0)
        # What lies among land sees the sea beside it; what lies in it is refused elsewhere.
        weights = [weight / np.where(total > 0, total, 1.0) for weight in weights]
        if len(indices) == 1 and not (total > 0).all():
            weights = [np.ones(len(total))]
        corners = [
            (
                torch.from_numpy(index).to(device),
                torch.from_numpy(weight).to(dtype=dtype, device=device),
            )
            for index, weight in zip(indices, weights, strict=True)
        ]

        def fn(x: Tensor) -> Tensor:
            x = x.flatten(1)
            if len(corners) == 1:
                return x.index_select(1, corners[0][0])
            y = x.new_zeros((len(x), len(rows["time"])))
            for index, weight in corners:
                y = y + x.index_select(1, index) * weight.to(x.dtype)
            return y

        return Bound(grid, Points(rows), fn, True)

    def expand(self, grid: Any) -> dict[str, np.ndarray]:
        """Time, variable and coordinates of each value."""

        lengths = (
            1 if "time" in self.points else len(grid.time),
            1 if "variable" in self.points else len(grid.variables),
            len(self),
        )
        i, j, k = np.indices(lengths).reshape(3, -1)
        rows = {name: column[k] for name, column in self.points.items()}
        rows.setdefault("time", grid.time[i])
        rows.setdefault("variable", np.array(grid.variables, dtype=object)[j])

        return {name: rows[name] for name in ("time", "variable", *grid.dims)}

    def times(self) -> list[np.ndarray]:
        return [np.unique(self.points["time"])] if "time" in self.points else []

    def anchor(self, domain: Domain) -> Operator:
        return self

    def during(self, first: float, last: float, times: np.ndarray | None = None) -> Operator:
        if "time" not in self.points:
            return self
        keep = within(self.points["time"], first, last)

        return Interpolate({name: column[keep] for name, column in self.points.items()})

    def arguments(self) -> dict[str, Any]:
        return {"points": {name: column.tolist() for name, column in self.points.items()}}


def within_poles(values: np.ndarray, dim: str, grid: Grid) -> np.ndarray:
    """Latitudes with those between a pole and the next row on that row; others as they are."""

    layout, nodes = grid.layout, grid.coords[dim]
    if layout is None or not layout.spherical or dim != layout.dims[-2] or len(nodes) < 2:
        return values
    south, north = nodes[0], nodes[-1]
    # Only where the grid goes on to the pole: a region's edge is no pole.
    low = -90.0 if south + 90.0 <= nodes[1] - nodes[0] else south
    high = 90.0 if 90.0 - north <= nodes[-1] - nodes[-2] else north
    near = (values >= low) & (values <= high)

    return np.where(near, np.clip(values, south, north), values)


def at_sea(index: Sequence[np.ndarray], grid: Grid) -> np.ndarray | bool:
    """Whether there are states at grid points."""

    if grid.layout is None or grid.layout.mask is None:
        return True
    return grid.layout.mask[tuple(index)]
