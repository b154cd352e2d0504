"""Observations on a grid: the gridded file form, and grids of one's own.

A user's grid is matched with the state's by its coordinates: its points are either some of the
state's points, or the centres of blocks of them, over which the state is then averaged. A file that
`save` has written holds its operator too, and needs no matching.
"""

import json
import shutil
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
import xarray as xr
from torch import Tensor

from dynamics.layout import summary

from .domain import Domain, Grid, locate
from .observations import Observations, ObservationSet
from .operator import Bound, Operator, from_config, known, on_grid, within
from .robust import GAUSSIAN
from .select import Select

KINDS = ("points", "averages")
SUFFIX = "_std"
ATTRIBUTE = "observation_operator"
ORDER = "observed_variables"
ERRORS = "observation_errors"


class OnGrid(Operator):
    """Sees the state on another, coarser grid: some of its points, or averages over blocks of them.

    Along each dimension, the coordinates given must be points of the state's grid, or centres of
    blocks of `k` of its points, where `k` is the ratio of the spacings.

    Arguments:
        coords: The coordinates of the observed grid along each spatial dimension.
        variables: The observed variables.
        times: The observed times.
        kind: "points" or "averages", where the coordinates alone could be either.

    Raises:
        ValueError: If the kind is unknown. When bound, if the coordinates fit neither way, or
            both ways and no kind is given, or another way than the kind given.
    """

    def __init__(
        self,
        coords: Mapping[str, Any],
        variables: Sequence[str],
        times: Sequence[float] | np.ndarray,
        kind: str | None = None,
    ) -> None:
        if kind is not None:
            known("kind of grid", [kind], KINDS)
        self.coords = {dim: np.asarray(values, dtype=np.float64) for dim, values in coords.items()}
        self.kind = kind
        self.select = Select(variables, np.asarray(times, dtype=np.float64))

    def bind(
        self,
        domain: Domain,
        dtype: torch.dtype = torch.float32,
        device: torch.device | str = "cpu",
    ) -> Bound:
        grid = on_grid(self, domain)
        if set(self.coords) != set(grid.dims):
            raise ValueError(
                f"the observed grid has dimensions {list(self.coords)}, the state {list(grid.dims)}"
            )
        select = self.select.bind(grid, dtype, device)
        found = {dim: self.match(dim, grid) for dim in grid.dims}
        kinds = {
            kind
            for match in found.values()
            for kind, block in match.items()
            # neighbouring points are points and averages over blocks of one alike
            if len(match) == 1 and (block.shape[1] > 1 or (np.diff(block[:, 0]) != 1).any())
        }
        blocks: list[np.ndarray] = []
        for dim, match in found.items():
            choice = match
            if len(match) == 2:  # the other dimensions decide
                choice = {kind: match[kind] for kind in kinds}
            if len(choice) != 1:
                raise ValueError(
                    f"the observed coordinate {dim!r} ({describe(self.coords[dim])}) could be "
                    f"points of the state's ({describe(grid.coords[dim])}) or averages over blocks "
                    f"of them: say which with kind='points' or kind='averages'"
                )
            blocks.append(next(iter(choice.values())))

        index = [torch.from_numpy(block.ravel()).to(device) for block in blocks]
        source = select.target
        target = Grid(on_grid(self, source).variables, self.select.times()[0], self.coords)
        order = [0, 1, 2, *(3 + grid.dims.index(dim) for dim in self.coords)]

        def fn(x: Tensor) -> Tensor:
            x = select(x)
            for axis, (each, block) in enumerate(zip(index, blocks, strict=True), start=3):
                x = x.index_select(axis, each)
                if block.shape[1] > 1:
                    x = x.unflatten(axis, block.shape).mean(dim=axis + 1)
            return x.permute(order)

        return Bound(grid, target, fn, True)

    def match(self, dim: str, grid: Grid) -> dict[str, np.ndarray]:
        """The blocks `(observed, k)` of the state's points, for each kind that fits."""

        given, nodes, period = self.coords[dim], grid.coords[dim], grid.period.get(dim)
        found = {}
        try:
            lower, _, weight = locate(dim, nodes, given, period, tolerance=1e-3)
            if not weight.any() and len(set(lower)) == len(lower):
                found["points"] = lower[:, None]
        except ValueError:
            pass

        spacing = np.diff(nodes).mean() if len(nodes) > 1 else 1.0
        k = round(np.diff(given).mean() / spacing) if len(given) > 1 else len(nodes)
        if 1 < k <= len(nodes):
            starts = np.arange(len(nodes) - k + 1)
            centres = np.lib.stride_tricks.sliding_window_view(nodes, k).mean(axis=1)
            wrapped = given if period is None else nodes[0] + np.mod(given - nodes[0], period)
            nearest = np.abs(wrapped[:, None] - centres).argmin(axis=1)
            if (np.abs(wrapped - centres[nearest]) <= 1e-3 * spacing).all():
                found["averages"] = starts[nearest][:, None] + np.arange(k)
        if not found:
            raise ValueError(
                f"the observed coordinate {dim!r} ({describe(given)}) is neither made of points of "
                f"the state's ({describe(nodes)}) nor of the centres of blocks of them: regrid the "
                f"observations, or give them as a table of points"
            )
        if self.kind is not None and k != 1:
            if self.kind not in found:
                raise ValueError(
                    f"the observed coordinate {dim!r} ({describe(given)}) was said to be "
                    f"{self.kind} of the state's ({describe(nodes)}), but it fits "
                    f"{next(iter(found))}"
                )
            found = {self.kind: found[self.kind]}

        return found

    def times(self) -> list[np.ndarray]:
        return self.select.times()

    def during(self, first: float, last: float, times: np.ndarray | None = None) -> Operator:
        keep = within(self.select.times()[0], first, last)
        variables = self.select.variables or ()

        return OnGrid(self.coords, variables, self.select.times()[0][keep], self.kind)

    def arguments(self) -> dict[str, Any]:
        return {
            "coords": {dim: values.tolist() for dim, values in self.coords.items()},
            "variables": self.select.variables,
            "times": self.select.times()[0].tolist(),
            "kind": self.kind,
        }


def from_grid(dataset: xr.Dataset, std: Any = None, kind: str | None = None) -> ObservationSet:
    """Reads observations off a dataset.

    Arguments:
        dataset: One variable per observed variable, with the dimension `time` and the state's
            spatial dimensions, NaN where nothing was seen, and the standard deviation of the
            errors as `<variable>_std`, which broadcasts to the variable.
        std: The standard deviation of the errors, where the dataset has none: one for all or one
            for each variable by its name.
        kind: "points" or "averages", see `OnGrid` (default: decided by the coordinates, or by the
            attribute `cell_methods` of the variables).

    Raises:
        ValueError: If the dataset has no variable, no time, several members, a std is missing or
            not positive, or nothing was seen.
    """

    if dataset.sizes.get("member", 1) != 1:
        raise ValueError(f"observations have one member, got {dataset.sizes['member']}: select one")
    dataset = dataset.squeeze("member", drop=True) if "member" in dataset.dims else dataset
    names = [str(name) for name in dataset.data_vars]
    variables = [
        name for name in names if not (name.endswith(SUFFIX) and name[: -len(SUFFIX)] in names)
    ]
    if ORDER in dataset.attrs:  # a Zarr group has no order of its own
        order = [str(name) for name in np.atleast_1d(dataset.attrs[ORDER])]
        known("variables in the attribute " + ORDER, order, variables)
        variables = order
    if not variables:
        raise ValueError("the dataset has no variables")
    if "time" not in dataset.coords:
        raise ValueError(f"the dataset needs a coordinate 'time', it has {list(dataset.coords)}")
    if "time" not in dataset.dims:
        dataset = dataset.expand_dims("time")

    dims = [str(dim) for dim in dataset[variables[0]].dims if dim != "time"]
    values, deviations = [], []
    for name in variables:
        if {str(dim) for dim in dataset[name].dims} != {"time", *dims}:
            raise ValueError(
                f"all variables must have the dimensions {['time', *dims]}, but {name!r} has "
                f"{list(dataset[name].dims)}"
            )
        values.append(dataset[name].transpose("time", *dims).values)
        if name + SUFFIX in dataset:
            deviation = dataset[name + SUFFIX]
            deviation, _ = xr.broadcast(deviation, dataset[name])
            deviations.append(deviation.transpose("time", *dims).values)
        elif std is None or (isinstance(std, Mapping) and name not in std):
            raise ValueError(
                f"the error of {name!r} is unknown: add a variable {name + SUFFIX!r} or give std="
            )
        else:
            value = std[name] if isinstance(std, Mapping) else std
            deviations.append(np.broadcast_to(float(value), values[-1].shape))
    if unlabelled := [dim for dim in dims if dim not in dataset.coords]:
        raise ValueError(f"the dimensions {unlabelled} of the dataset have no coordinates")

    if not np.issubdtype(dataset["time"].dtype, np.number):
        raise ValueError(
            f"times must be numbers in the units of the state's time, got {dataset['time'].dtype}: "
            f"convert dates to the time since the start of the trajectory"
        )
    time = np.asarray(dataset["time"].values, dtype=np.float64)
    coords = {dim: np.asarray(dataset[dim].values, dtype=np.float64) for dim in dims}
    domain = Grid(tuple(variables), time, coords)
    if ATTRIBUTE in dataset.attrs:
        operator = from_config(parse(dataset.attrs[ATTRIBUTE]))
    else:
        methods = str(dataset[variables[0]].attrs.get("cell_methods", ""))
        if kind is None:
            kind = "averages" if "mean" in methods else "points" if "point" in methods else None
        operator = OnGrid(coords, variables, time, kind)

    kind = str(dataset.attrs.get(ERRORS, GAUSSIAN))
    y, spread = np.stack(values, axis=1), np.stack(deviations, axis=1)

    return ObservationSet(operator, domain, y, spread, kind)


def to_dataset(observations: Observations) -> xr.Dataset:
    """The gridded form of observations.

    Raises:
        ValueError: If the observations are single points, or several sets.
    """

    each = observations.sets[0]
    domain = each.domain
    if len(observations.sets) > 1 or not isinstance(domain, Grid):
        raise ValueError(
            "observations at single points, or in several sets, have no grid: save them as a table "
            "(.parquet or .csv)"
        )
    dims = ("time", *domain.dims)
    variables = {}
    for i, name in enumerate(domain.variables):
        variables[name] = (dims, each.y[:, i], {"long_name": f"observed {name}"})
        variables[name + SUFFIX] = (
            dims,
            each.std[:, i],
            {"long_name": f"standard deviation of the error of observed {name}"},
        )
    coords = {"time": domain.time, **domain.coords}

    return xr.Dataset(
        variables,
        coords,
        {
            "Conventions": "CF-1.11",
            ATTRIBUTE: json.dumps(each.operator.config()),
            ERRORS: each.errors,
            ORDER: list(domain.variables),
        },
    )


def write(observations: Observations, path: Path) -> None:
    """Writes the gridded form, complete or not at all."""

    dataset = to_dataset(observations)
    partial = path.with_name(f".{path.stem}.partial{path.suffix}")
    remove(partial)
    try:
        if path.suffix == ".zarr":
            dataset.to_zarr(partial, mode="w", zarr_format=3, consolidated=False)
        else:
            dataset.to_netcdf(partial)
        if path.is_dir():
            remove(path)
        partial.replace(path)
    finally:
        remove(partial)


def read(path: Path) -> list[ObservationSet]:
    """Reads the gridded form."""

    try:
        if path.suffix == ".zarr":
            dataset = xr.open_zarr(path, consolidated=False, decode_times=False)
        else:
            dataset = xr.open_dataset(path, decode_times=False)
    except (OSError, KeyError, ValueError) as error:
        raise ValueError(f"cannot read gridded observations from {path}: {error}") from error
    with dataset:
        return [from_grid(dataset)]


def parse(text: Any) -> Any:
    """Parses an operator's JSON."""

    try:
        return json.loads(text)
    except (TypeError, json.JSONDecodeError) as error:
        raise ValueError(f"the operator in the observations is not valid JSON: {error}") from error


def remove(path: Path) -> None:
    """Removes a file or a folder, if it is there."""

    if path.is_dir():
        shutil.rmtree(path)
    else:
        path.unlink(missing_ok=True)


def describe(values: np.ndarray) -> str:
    """A coordinate, for messages."""
    return f"{len(values)} values {summary(values)}"
