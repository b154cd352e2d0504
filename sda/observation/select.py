"""Operators that select values of the state: variables, times, regions, every n-th, masks."""

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import torch
import xarray as xr
from torch import Tensor

from .domain import TIME_TOLERANCE, Domain, Grid, Points, locate_time
from .operator import Bound, Operator, known, on_grid, pack, unpack, within


class Select(Operator):
    """Selects variables, times and a region.

    Arguments:
        variables: The names of the variables to keep, in this order (default: all).
        times: The times to keep, as values or as a slice of values, both ends included (its step
            counts states). Between two states of the trajectory, times are interpolated linearly.
        steps: The states to keep, by index or as a slice of indices.
        every: Keeps every n-th state, from the first on.
        region: The lowest and highest coordinate, both included, of some spatial dimensions. On a
            periodic dimension a region whose start lies above its end wraps around.

    Raises:
        ValueError: If more than one of `times`, `steps` and `every` is given.

    Example:
        >>> H = Select(variables=["u"], every=4, region={"x": (1.0, 2.0)})
    """

    sampling = True

    def __init__(
        self,
        variables: str | Sequence[str] | None = None,
        times: Sequence[float] | np.ndarray | slice | float | None = None,
        region: Mapping[str, Sequence[float] | slice] | None = None,
        *,
        steps: Sequence[int] | slice | int | None = None,
        every: int | None = None,
    ) -> None:
        if sum(given is not None for given in (times, steps, every)) > 1:
            raise ValueError("give one of times, steps and every, got more")
        if every is not None and (int(every) != every or every < 1):
            raise ValueError(f"every must be a positive integer, got {every}")
        self.variables = (
            [variables] if isinstance(variables, str) else variables and list(variables)
        )
        self.time_slice = times if isinstance(times, slice) else None
        self.time_values = (
            None
            if times is None or isinstance(times, slice)
            else np.atleast_1d(np.asarray(times, dtype=np.float64))
        )
        self.steps = slice(None, None, int(every)) if every is not None else steps
        self.region = {dim: bounds(dim, limits) for dim, limits in (region or {}).items()}

    def bind(
        self,
        domain: Domain,
        dtype: torch.dtype = torch.float32,
        device: torch.device | str = "cpu",
    ) -> Bound:
        grid = on_grid(self, domain)
        variables = grid.variables
        if self.variables is not None:
            known("variables", self.variables, grid.variables)
            variables = tuple(self.variables)
            if not variables or len(set(variables)) < len(variables):
                raise ValueError(
                    f"variables to select must be distinct and at least one, got {list(variables)}"
                )
        known("dimensions", self.region, grid.dims)

        time, (lower, upper, weight) = self.find_times(grid)
        coords, period = dict(grid.coords), dict(grid.period)
        indices: list[tuple[int, np.ndarray]] = []
        if variables != grid.variables:
            indices.append((2, np.array([grid.variables.index(name) for name in variables])))
        for dim, (low, high) in self.region.items():
            index, values = inside(dim, grid.coords[dim], low, high, grid.period.get(dim))
            indices.append((3 + grid.dims.index(dim), index))
            coords[dim] = values
            period.pop(dim, None)

        pick = [(axis, torch.from_numpy(index).to(device)) for axis, index in indices]
        interpolated = bool(weight.any())
        steps = np.diff(lower)
        stride = int(steps[0]) if len(steps) else 1
        regular = stride > 0 and (steps == stride).all()
        start, stop = int(lower[0]), int(lower[-1]) + 1
        first, second = (torch.from_numpy(i).to(device) for i in (lower, upper))
        w = torch.from_numpy(weight).to(dtype=dtype, device=device)
        w = w.reshape(-1, *(1 for _ in grid.shape[1:]))

        def fn(x: Tensor) -> Tensor:
            if interpolated:
                x = torch.lerp(x.index_select(1, first), x.index_select(1, second), w.to(x.dtype))
            else:
                x = x[:, start:stop:stride] if regular else x.index_select(1, first)
            for axis, index in pick:
                x = x.index_select(axis, index)
            return x

        layout = None if self.region else grid.layout

        return Bound(grid, Grid(variables, time, coords, period, layout), fn, True)

    def find_times(
        self, grid: Grid
    ) -> tuple[np.ndarray, tuple[np.ndarray, np.ndarray, np.ndarray]]:
        """The times selected, and where they are on the grid."""

        if self.time_values is not None:
            time = self.time_values
            if not len(time) or not np.isfinite(time).all() or not (np.diff(time) > 0).all():
                raise ValueError(
                    f"times to select must be finite, distinct and increasing, got {time}"
                )
            return time, locate_time(grid, time)

        index = np.arange(len(grid.time))
        if self.time_slice is not None:
            low, high = self.time_slice.start, self.time_slice.stop
            slack = TIME_TOLERANCE * (np.diff(grid.time).min() if len(grid.time) > 1 else 1.0)
            keep = np.ones(len(index), dtype=bool)
            keep &= True if low is None else grid.time >= low - slack
            keep &= True if high is None else grid.time <= high + slack
            index = index[keep][:: self.time_slice.step]
        elif self.steps is not None:
            try:
                index = np.atleast_1d(index[self.steps])
            except IndexError as error:
                raise ValueError(
                    f"steps {self.steps} lie outside the time span of {len(index)} states"
                ) from error
        if not len(index) or not (np.diff(index) > 0).all():
            raise ValueError(
                f"the selection of times must be increasing and not empty, got {len(index)} of "
                f"{len(grid.time)} states {grid.time[0]:g} … {grid.time[-1]:g}"
            )

        return grid.time[index], (index, index, np.zeros(len(index)))

    def anchor(self, domain: Domain) -> Operator:
        if self.time_slice is None and self.steps is None:
            return self
        time, _ = self.find_times(on_grid(self, domain))

        return Select(self.variables, time, self.region)

    def times(self) -> list[np.ndarray]:
        return [] if self.time_values is None else [self.time_values]

    def during(self, first: float, last: float, times: np.ndarray | None = None) -> Operator:
        if self.time_values is None:
            return self
        keep = within(self.time_values, first, last)

        return Select(self.variables, self.time_values[keep], self.region)

    def arguments(self) -> dict[str, Any]:
        steps = self.steps
        return {
            "variables": self.variables,
            "times": spread(self.time_slice)
            if self.time_values is None
            else self.time_values.tolist(),
            "steps": spread(steps) if isinstance(steps, slice) or steps is None
            else [int(step) for step in np.atleast_1d(steps)],
            "region": {dim: list(limits) for dim, limits in self.region.items()} or None,
        }  # fmt: skip

    @classmethod
    def from_arguments(cls, arguments: Mapping[str, Any]) -> "Select":
        known("arguments", arguments, ("variables", "times", "steps", "region"))
        times, steps = (
            slice(*value["slice"]) if isinstance(value, Mapping) else value
            for value in (arguments.get("times"), arguments.get("steps"))
        )
        return cls(arguments.get("variables"), times, arguments.get("region"), steps=steps)


class Subsample(Operator):
    """Keeps every n-th grid point.

    Arguments:
        every: The factor for all spatial dimensions, or one for each of some dimensions. The
            dimension `time` may be among them.
        offset: The index of the first point kept, for all spatial dimensions or for some.

    Raises:
        ValueError: If a factor is not positive or an offset is negative.
    """

    sampling = True

    def __init__(self, every: int | Mapping[str, int], offset: int | Mapping[str, int] = 0) -> None:
        self.every, self.offset = every, offset
        for what, given, low in (("every", every, 1), ("offset", offset, 0)):
            for value in given.values() if isinstance(given, Mapping) else (given,):
                if int(value) != value or value < low:
                    raise ValueError(f"{what} must be an integer of at least {low}, got {given}")

    def strides(self, grid: Grid) -> dict[str, tuple[int, int]]:
        """First index and factor of each dimension that is subsampled."""

        given = [each for each in (self.every, self.offset) if isinstance(each, Mapping)]
        for mapping in given:
            known("dimensions", mapping, ("time", *grid.dims))
        every, offset = (
            dict(each) if isinstance(each, Mapping) else dict.fromkeys(grid.dims, each)
            for each in (self.every, self.offset)
        )
        sizes = {"time": len(grid.time), **{dim: len(v) for dim, v in grid.coords.items()}}
        for dim in {**every, **offset}:
            if offset.get(dim, 0) >= sizes[dim]:
                raise ValueError(
                    f"offset {offset[dim]} along {dim!r} lies outside its {sizes[dim]} points"
                )

        return {
            dim: (int(offset.get(dim, 0)), int(every.get(dim, 1)))
            for dim in sizes
            if dim in every or (dim in offset and isinstance(self.offset, Mapping))
        }

    def bind(
        self,
        domain: Domain,
        dtype: torch.dtype = torch.float32,
        device: torch.device | str = "cpu",
    ) -> Bound:
        grid = on_grid(self, domain)
        strides = self.strides(grid)
        keep = {dim: slice(first, None, step) for dim, (first, step) in strides.items()}
        coords = {dim: values[keep.get(dim, slice(None))] for dim, values in grid.coords.items()}
        period = {
            dim: value
            for dim, value in grid.period.items()
            if len(grid.coords[dim]) % strides.get(dim, (0, 1))[1] == 0
        }
        time = grid.time[keep.get("time", slice(None))]
        index = (
            slice(None),
            keep.get("time", slice(None)),
            slice(None),
            *(keep.get(dim, slice(None)) for dim in grid.dims),
        )

        return Bound(grid, Grid(grid.variables, time, coords, period), lambda x: x[index], True)

    def anchor(self, domain: Domain) -> Operator:
        grid = on_grid(self, domain)
        strides = self.strides(grid)
        if "time" not in strides:
            return self
        first, step = strides.pop("time")
        select = Select(times=grid.time[first::step])
        if not strides:
            return select

        return select >> Subsample(
            {dim: step for dim, (_, step) in strides.items()},
            {dim: first for dim, (first, _) in strides.items()},
        )

    def arguments(self) -> dict[str, Any]:
        return {
            name: dict(value) if isinstance(value, Mapping) else int(value)
            for name, value in (("every", self.every), ("offset", self.offset))
        }


class Mask(Operator):
    """Keeps the values where a mask is true, and returns them as single points.

    Arguments:
        mask: Booleans over the last dimensions of `(time, channel, *space)`, or a `DataArray`
            whose dimensions are named (`time`, `variable`, and the spatial ones) in any order.

    Raises:
        ValueError: If the mask is not boolean or keeps nothing.
    """

    sampling = True

    def __init__(self, mask: np.ndarray | xr.DataArray, dims: Sequence[str] | None = None) -> None:
        if isinstance(mask, xr.DataArray):
            dims = [str(dim) for dim in mask.dims]
        mask = np.asarray(mask.values if isinstance(mask, xr.DataArray) else mask)
        if mask.dtype != bool or not mask.any():
            raise ValueError(
                f"a mask must be boolean and keep at least one value, got {mask.dtype} with "
                f"{np.count_nonzero(mask)} of {mask.size} kept"
            )
        if dims is not None and len(dims) != mask.ndim:
            raise ValueError(f"the mask has {mask.ndim} dimensions, but names for {list(dims)}")
        self.mask, self.dims = mask, None if dims is None else list(dims)

    def over(self, grid: Grid) -> np.ndarray:
        """The mask over all values `(time, channel, *space)` of a grid."""

        mask, names = self.mask, ("time", "variable", *grid.dims)
        if self.dims is not None:
            known("dimensions", self.dims, names)
            given = [dim for dim in names if dim in self.dims]
            mask = mask.transpose([self.dims.index(dim) for dim in given])
            mask = mask[tuple(slice(None) if dim in given else None for dim in names)]
            fits = all(a in (1, b) for a, b in zip(mask.shape, grid.shape, strict=True))
        else:
            fits = mask.ndim <= len(grid.shape) and (
                mask.shape == grid.shape[len(grid.shape) - mask.ndim :]
            )
        if not fits:
            raise ValueError(
                f"a mask of shape {self.mask.shape} does not fit values of shape {grid.shape} "
                f"along {names}"
            )

        return np.broadcast_to(mask, grid.shape)

    def bind(
        self,
        domain: Domain,
        dtype: torch.dtype = torch.float32,
        device: torch.device | str = "cpu",
    ) -> Bound:
        grid = on_grid(self, domain)
        index = np.flatnonzero(self.over(grid))
        columns = {name: column[index] for name, column in grid.rows().items()}
        keep = torch.from_numpy(index).to(device)

        return Bound(grid, Points(columns), lambda x: x.flatten(1).index_select(1, keep), True)

    def anchor(self, domain: Domain) -> Operator:
        grid = on_grid(self, domain)
        timed = self.mask.ndim == len(grid.shape) if self.dims is None else "time" in self.dims
        if not timed:
            return self
        if self.dims is None:  # named, so that the mask itself says that it depends on time
            return Select(times=grid.time) >> Mask(self.mask, ("time", "variable", *grid.dims))

        return Select(times=grid.time) >> self

    def during(self, first: float, last: float, times: np.ndarray | None = None) -> Operator:
        if self.dims is None or "time" not in self.dims:
            return self
        axis = self.dims.index("time")
        if times is None or len(times) != self.mask.shape[axis]:
            raise ValueError(f"{self!r} has a time axis of its own, but no times are known for it")

        return Mask(np.compress(within(times, first, last), self.mask, axis), self.dims)

    def arguments(self) -> dict[str, Any]:
        return {"mask": pack(self.mask), "dims": self.dims}

    @classmethod
    def from_arguments(cls, arguments: Mapping[str, Any]) -> "Mask":
        return cls(unpack(arguments["mask"]), arguments.get("dims"))


def bounds(dim: str, limits: Sequence[float] | slice) -> tuple[float, float]:
    """The two ends of a region along one dimension."""

    if isinstance(limits, slice):
        limits = (limits.start, limits.stop)
    try:
        low, high = (float(limit) for limit in limits)
    except (TypeError, ValueError) as error:
        raise ValueError(
            f"a region needs the lowest and highest {dim!r}, such as (0.0, 1.0), got {limits!r}"
        ) from error

    return low, high


def inside(
    dim: str, coordinate: np.ndarray, low: float, high: float, period: float | None
) -> tuple[np.ndarray, np.ndarray]:
    """The indices and coordinates inside a region along one dimension."""

    if period is not None and low > high:
        keep = np.concatenate(
            [np.flatnonzero(coordinate >= low), np.flatnonzero(coordinate <= high)]
        )
        values = coordinate[keep] + np.where(coordinate[keep] < low, period, 0.0)
    else:
        keep = np.flatnonzero((coordinate >= low) & (coordinate <= high))
        values = coordinate[keep]
    if not len(keep):
        raise ValueError(
            f"the region {low:g} … {high:g} holds no point of coordinate {dim!r}, which has "
            f"{len(coordinate)} values {coordinate[0]:g} … {coordinate[-1]:g}"
        )

    return keep, values


def spread(each: slice | None) -> dict[str, Any] | None:
    """A slice as plain JSON types."""
    return None if each is None else {"slice": [each.start, each.stop, each.step]}
