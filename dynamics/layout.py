"""The layout of a state: which variables, on which grid, how far apart in time.

A layout is all that the engine knows of a dynamical system. It turns tensors
`(member, time, channel, *space)` into xarray datasets with one variable per channel, and back.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import xarray as xr

RESERVED = ("member", "time", "channel")
MASK = "mask"
LATITUDE = ("degrees_north", "degree_north", "degrees_N", "degree_N", "degreesN", "degreeN")
LONGITUDE = ("degrees_east", "degree_east", "degrees_E", "degree_E", "degreesE", "degreeE")


@dataclass(frozen=True)
class Layout:
    """The layout of a state.

    Arguments:
        variables: The names of the variables, in the order of the channels.
        dt: The time between two states, in `time_units`.
        coords: The spatial dimensions, in order, and their coordinate values.
        period: The period of each periodic dimension. One that is not named is not periodic.
        units: The units of each variable and coordinate ("1" where not named).
        long_names: CF `long_name` of each variable and coordinate.
        time_units: The units of the time coordinate.
        calendar: The CF calendar of the time coordinate, where its units have a reference date
            ("hours since 1990-01-01"); empty where times are plain numbers.
        mask: Where there are states, with the shape `(*space)`: false on land. There, tensors hold
            zeros and datasets NaN. In a dataset it is the coordinate `mask`.

    Raises:
        ValueError: If a name is used twice or is reserved, if `dt` is not positive, if a
            coordinate is not one-dimensional, finite, uniform where periodic, and increasing, or
            if the mask has another shape or is false everywhere.
    """

    variables: tuple[str, ...]
    dt: float
    coords: Mapping[str, np.ndarray] = field(default_factory=dict)
    period: Mapping[str, float] = field(default_factory=dict)
    units: Mapping[str, str] = field(default_factory=dict)
    long_names: Mapping[str, str] = field(default_factory=dict)
    time_units: str = "1"
    mask: np.ndarray | None = None
    calendar: str = ""

    def __post_init__(self) -> None:
        coords = {dim: np.asarray(values, dtype=np.float64) for dim, values in self.coords.items()}
        object.__setattr__(self, "variables", tuple(self.variables))
        object.__setattr__(self, "coords", coords)

        names = (*self.variables, *coords)
        if not self.variables:
            raise ValueError("a layout needs at least one variable, got none")
        if len(set(names)) < len(names) or set(names) & set(RESERVED):
            raise ValueError(
                f"names of variables and dimensions must be distinct and none of {RESERVED}, "
                f"got {names}"
            )
        if not (np.isfinite(self.dt) and self.dt > 0):
            raise ValueError(f"dt must be positive, got {self.dt}")
        for dim, values in coords.items():
            steps = np.diff(values)
            if values.ndim != 1 or not np.isfinite(values).all() or not (steps > 0).all():
                raise ValueError(
                    f"coordinate {dim!r} must be one-dimensional, finite and increasing, "
                    f"got shape {values.shape}"
                )
            if dim in self.period and not np.isclose(
                self.period[dim], len(values) * (steps.mean() if len(steps) else self.period[dim])
            ):
                raise ValueError(
                    f"periodic coordinate {dim!r} must cover its period {self.period[dim]} with "
                    f"uniform cells, got {len(values)} cells of {steps.mean()}"
                )
        if unknown := set(self.period) - set(coords):
            raise ValueError(f"period names {sorted(unknown)}, which are not among {list(coords)}")
        if self.mask is not None:
            mask = np.asarray(self.mask, dtype=bool)
            if mask.shape != self.shape[1:] or not mask.any() or MASK in names:
                raise ValueError(
                    f"a mask must have the shape {self.shape[1:]} of the grid, be true somewhere, "
                    f"and {MASK!r} be no variable, got shape {mask.shape}, {int(mask.sum())} true "
                    f"cells and the names {names}"
                )
            object.__setattr__(self, "mask", None if mask.all() else mask)

    @property
    def dims(self) -> tuple[str, ...]:
        """The spatial dimensions, in order."""
        return tuple(self.coords)

    @property
    def shape(self) -> tuple[int, ...]:
        """The shape `(channel, *space)` of a state."""
        return (len(self.variables), *(len(values) for values in self.coords.values()))

    @property
    def periodic(self) -> tuple[bool, ...]:
        """Whether each spatial dimension is periodic."""
        return tuple(dim in self.period for dim in self.coords)

    @property
    def spherical(self) -> bool:
        """Whether the last two dimensions are latitude and longitude, by their units."""

        units = [self.units.get(dim, "1") for dim in self.dims[-2:]]

        return len(units) == 2 and units[0] in LATITUDE and units[1] in LONGITUDE

    @property
    def area(self) -> np.ndarray:
        r"""The weights of the cells in spatial means, with shape `(*space)` and mean one over them.

        On the sphere a row of cells between two latitudes weighs as its area,

        .. math:: w_j \propto \sin \varphi_{j+1/2} - \sin \varphi_{j-1/2},

        with edges midway between the rows, and at the poles where the grid goes on to there. All
        cells of a plane are equal. Cells outside the mask weigh nothing.
        """

        weights = np.ones(self.shape[1:])
        if self.spherical:
            weights = weights * zonal_weights(self.coords[self.dims[-2]])[:, None]
        if self.mask is not None:
            weights = np.where(self.mask, weights, 0.0)

        return weights * (np.count_nonzero(weights) / weights.sum())

    def hide(self, values: np.ndarray) -> np.ndarray:
        """Sets what lies outside the mask to NaN, in arrays `(…, *space)` of floats."""
        return (
            values if self.mask is None else np.where(self.mask, values, values.dtype.type("nan"))
        )

    def times(self, length: int, start: float = 0.0) -> np.ndarray:
        """The time coordinate of `length` states from `start` on."""
        return start + self.dt * np.arange(length)

    def to_dataset(
        self,
        trajectories: Any,
        time: Sequence[float] | np.ndarray | None = None,
        member: Sequence[int] | np.ndarray | None = None,
        attrs: Mapping[str, Any] | None = None,
    ) -> xr.Dataset:
        """Wraps trajectories into a dataset with CF attributes.

        Arguments:
            trajectories: A tensor or array, with shape `(member, time, channel, *space)`.
            time: The time coordinate (default: multiples of `dt` from zero).
            member: The member coordinate (default: 0, 1, 2, …).
            attrs: Global attributes.

        Raises:
            ValueError: If the shape is not that of the layout.
        """

        data = np.asarray(
            trajectories.detach().cpu() if hasattr(trajectories, "detach") else trajectories
        )
        if data.ndim != 2 + len(self.shape) or data.shape[2:] != self.shape:
            raise ValueError(
                f"trajectories must have shape (member, time, {', '.join(map(str, self.shape))}), "
                f"got {data.shape}"
            )
        time = self.times(data.shape[1]) if time is None else np.asarray(time)
        member = np.arange(data.shape[0]) if member is None else np.asarray(member)

        return xr.Dataset(
            {
                name: (
                    ("member", "time", *self.dims),
                    self.hide(data[:, :, i]),
                    self.attributes(name),
                )
                for i, name in enumerate(self.variables)
            },
            coords={
                "member": ("member", member, {"standard_name": "realization"}),
                "time": ("time", time, self.attributes("time")),
                **{dim: (dim, v, self.attributes(dim)) for dim, v in self.coords.items()},
                **self.masks(),
            },
            # A store lists its variables in no particular order: channels keep theirs by name.
            attrs={
                "Conventions": "CF-1.11",
                "variables": list(self.variables),
                **(attrs or {}),
            },
        )

    def to_array(self, dataset: xr.Dataset) -> np.ndarray:
        """Stacks the variables of a dataset, the inverse of `to_dataset`.

        A dataset without the dimension `member` or `time` gets one of length 1. Variables are
        loaded into memory: select first what is needed.

        Returns:
            An array with shape `(member, time, channel, *space)`, zero outside the mask.

        Raises:
            ValueError: If a variable or dimension is missing, or the grid is another one.
        """

        self.check(dataset)
        arrays = []
        for name in self.variables:
            array = dataset[name]
            for dim in ("time", "member"):
                if dim not in array.dims:
                    array = array.expand_dims(dim)
            arrays.append(array.transpose("member", "time", *self.dims).values)
        states = np.stack(arrays, axis=2)

        return states if self.mask is None else np.where(self.mask, states, states.dtype.type(0))

    def check(self, dataset: xr.Dataset) -> None:
        """Raises a `ValueError` unless the dataset has this layout's variables and grid."""

        if missing := [name for name in self.variables if name not in dataset]:
            raise ValueError(
                f"expected variables {list(self.variables)}, but {missing} are missing: "
                f"the dataset has {sorted(map(str, dataset.data_vars))}"
            )
        for name in self.variables:
            dims = set(dataset[name].dims) - {"member", "time"}
            if dims != set(self.dims):
                raise ValueError(
                    f"variable {name!r} must have the spatial dimensions {list(self.dims)}, "
                    f"got {sorted(map(str, dims))}"
                )
        for dim, values in self.coords.items():
            given = dataset[dim].values
            if given.shape != values.shape or not np.allclose(
                given, values, atol=1e-5 * np.ptp(values)
            ):
                raise ValueError(
                    f"coordinate {dim!r} must be the {len(values)} values {summary(values)}, "
                    f"got {len(given)} values {summary(given)}: regrid the data, or use a prior "
                    f"that was trained on this grid"
                )

    def masks(self) -> dict[str, Any]:
        """The mask as a coordinate of a dataset; empty where there is none."""

        if self.mask is None:
            return {}
        text = {"units": "1", "long_name": "1 where there are states, 0 on land"}

        return {MASK: (self.dims, self.mask.astype(np.int8), text)}

    def auxiliary(self) -> dict[str, str]:
        """The attribute by which a stored variable refers to the mask, as CF has it."""
        return {} if self.mask is None else {"coordinates": MASK}

    def attributes(self, name: str) -> dict[str, str]:
        """The CF attributes of a variable or coordinate."""

        if name == "time":
            calendar = {"calendar": self.calendar} if self.calendar else {}
            return {"units": self.time_units, "axis": "T", **calendar}
        attrs = {"units": self.units.get(name, "1"), "long_name": self.long_names.get(name, name)}
        if name in self.coords and name in self.period:
            attrs["period"] = repr(float(self.period[name]))

        return attrs

    def to_json(self) -> dict[str, Any]:
        """The layout as plain JSON types."""

        return {
            "variables": list(self.variables),
            "dt": float(self.dt),
            "coords": {dim: values.tolist() for dim, values in self.coords.items()},
            "period": {dim: float(value) for dim, value in self.period.items()},
            "units": dict(self.units),
            "long_names": dict(self.long_names),
            "time_units": self.time_units,
            **({} if self.mask is None else {"mask": self.mask.astype(int).tolist()}),
            **({"calendar": self.calendar} if self.calendar else {}),
        }

    @classmethod
    def from_json(cls, content: Mapping[str, Any]) -> "Layout":
        """The inverse of `to_json`."""

        return cls(
            variables=tuple(content["variables"]),
            dt=float(content["dt"]),
            coords={dim: np.asarray(values) for dim, values in content["coords"].items()},
            period=dict(content["period"]),
            units=dict(content["units"]),
            long_names=dict(content["long_names"]),
            time_units=content["time_units"],
            mask=np.asarray(content["mask"], dtype=bool) if "mask" in content else None,
            calendar=content.get("calendar", ""),
        )

    @classmethod
    def from_dataset(cls, dataset: xr.Dataset, variables: Sequence[str] | None = None) -> "Layout":
        """Reads the layout off a dataset, as `to_dataset` writes it.

        The spatial dimensions are those of the variables other than `member` and `time`; a
        dimension is periodic if its coordinate has an attribute `period`. The mask is the
        coordinate `mask`, if there is one. The variables are in the order of the global attribute
        `variables`, or of the dataset where there is none.

        Raises:
            ValueError: If `time` is missing or not uniform, or the variables' dimensions differ.
        """

        names = list(variables) if variables else [str(name) for name in dataset.data_vars]
        order = list(np.atleast_1d(dataset.attrs.get("variables", [])))
        if not variables and sorted(order) == sorted(names):
            names = [str(name) for name in order]
        if missing := [name for name in names if name not in dataset]:
            raise ValueError(
                f"variables {missing} are not among {sorted(map(str, dataset.data_vars))}"
            )
        if not names:
            raise ValueError("the dataset has no variables")
        if "time" not in dataset.coords or dataset.sizes.get("time", 0) < 2:
            raise ValueError("the dataset needs a coordinate 'time' with at least two values")
        dims = [str(dim) for dim in dataset[names[0]].dims if dim not in ("member", "time")]
        for name in names:
            if {str(d) for d in dataset[name].dims} - {"member", "time"} != set(dims):
                raise ValueError(
                    f"all variables must share the spatial dimensions {dims}, but {name!r} has "
                    f"{list(dataset[name].dims)}"
                )
        steps = np.diff(np.asarray(dataset["time"].values, dtype=np.float64))
        if not np.allclose(steps, steps[0], rtol=1e-3) or steps[0] <= 0:
            raise ValueError(
                f"coordinate 'time' must increase in uniform steps, got steps between "
                f"{steps.min()} and {steps.max()}"
            )

        return cls(
            variables=tuple(names),
            dt=float(np.mean(steps)),
            coords={dim: dataset[dim].values for dim in dims},
            period={
                dim: float(dataset[dim].attrs["period"])
                for dim in dims
                if "period" in dataset[dim].attrs
            },
            units={n: str(dataset[n].attrs.get("units", "1")) for n in (*names, *dims)},
            long_names={n: str(dataset[n].attrs.get("long_name", n)) for n in (*names, *dims)},
            time_units=str(dataset["time"].attrs.get("units", "1")),
            mask=dataset[MASK].transpose(*dims).values.astype(bool)
            if MASK in dataset.coords and set(dataset[MASK].dims) == set(dims)
            else None,
            calendar=str(dataset["time"].attrs.get("calendar", "")),
        )


def zonal_weights(latitude: np.ndarray) -> np.ndarray:
    """The areas of rows of cells at latitudes in degrees, see `Layout.area`."""

    if len(latitude) == 1:
        return np.cos(np.deg2rad(latitude))
    middle = (latitude[1:] + latitude[:-1]) / 2
    first = latitude[0] - (latitude[1] - latitude[0]) / 2
    last = latitude[-1] + (latitude[-1] - latitude[-2]) / 2
    edges = np.clip(np.concatenate(([first], middle, [last])), -90, 90)
    # A Gaussian grid ends less than half a row from the poles, and owns what is left.
    if latitude[0] - 0.75 * (latitude[1] - latitude[0]) <= -90:
        edges[0] = -90
    if latitude[-1] + 0.75 * (latitude[-1] - latitude[-2]) >= 90:
        edges[-1] = 90

    return np.diff(np.sin(np.deg2rad(edges)))


def summary(values: np.ndarray) -> str:
    """A short form of a coordinate for messages."""

    return f"{values[0]:g} … {values[-1]:g}" if len(values) else "(none)"
