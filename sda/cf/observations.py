"""Files of observations as others write them, for a prior.

A table (Parquet, CSV) is read by the names of its columns, see `sda.cf.tables`. A dataset (NetCDF,
Zarr) of CF's discrete geometries (`featureType`, or latitudes that are no dimension) or of IODA's
groups is a table too; any other is a grid, whose dimensions are recognised, whose times become the
prior's and whose units its units. What the package itself has saved is read as it is.
"""

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import xarray as xr

from dynamics.layout import Layout

from ..observation import Observations
from ..observation.grid import ATTRIBUTE, SUFFIX
from ..observation.observations import GRIDDED
from .axes import attributed, roles
from .tables import ALIASES, adapt, dated
from .units import conversion

DISCRETE = ("point", "timeseries", "trajectory", "profile", "timeseriesprofile",
            "trajectoryprofile")  # fmt: skip


def load_observations(
    path: str | Path, layout: Layout, standard_names: Mapping[str, str] | None = None
) -> Observations:
    """Loads observations of any of these forms.

    Arguments:
        path: A file or store.
        layout: The layout of the prior's states.
        standard_names: The CF standard names of its variables.

    Raises:
        FileNotFoundError: If the path does not exist.
        ValueError: If the content is ambiguous, flawed, or not of the prior's variables and units.
    """

    path = Path(path)
    if not path.exists() or path.suffix not in (*GRIDDED, ".csv", ".parquet"):
        return Observations.load(path)
    if path.suffix not in GRIDDED:
        table = read_table(path)
        if {"set", "index"} <= set(table.columns):
            return Observations.load(path)
        return Observations.from_table(adapt(table, layout, standard_names=standard_names))
    with open_any(path) as dataset:
        return from_dataset(dataset, layout, standard_names)


def from_dataset(
    dataset: xr.Dataset,
    layout: Layout,
    standard_names: Mapping[str, str] | None = None,
    std: Any = None,
) -> Observations:
    """Observations of a dataset, on a grid or at points, see the module."""

    if ATTRIBUTE in dataset.attrs:
        return Observations.from_grid(dataset)
    feature = str(dataset.attrs.get("featureType", "")).lower()
    if feature and feature not in DISCRETE:
        raise ValueError(
            f"featureType must be one of {', '.join(DISCRETE)}, got {feature!r}: correct the "
            f"attribute, or remove it from a grid"
        )
    flat = any(str(name) not in dataset.dims and dataset[name].ndim > 0
               and str(name).lower() in ALIASES["lat"] for name in dataset.variables)  # fmt: skip
    if feature or flat:
        table, units = points(dataset, layout, standard_names or {})
        found = adapt(table, layout, standard_names=standard_names, std=std, units=units)
        return Observations.from_table(found)

    return Observations.from_grid(gridded(dataset, layout, standard_names or {}), std)


def read_table(path: Path) -> pd.DataFrame:
    """A table; numbers of text become numbers."""

    from ..observation.table import exact

    try:
        if path.suffix == ".csv":
            return pd.read_csv(path, comment="#", dtype=str).apply(exact)
        return pd.read_parquet(path)
    except (OSError, ValueError, pd.errors.ParserError) as error:
        raise ValueError(f"cannot read a table of observations from {path}: {error}") from error


def open_any(path: Path) -> xr.Dataset:
    """A dataset, with the groups of IODA as variables `ObsValue/airTemperature`."""

    try:
        if path.suffix == ".zarr":
            return xr.open_zarr(path, consolidated=False, decode_times=False)
        dataset = xr.open_dataset(path, decode_times=False)
        if dataset.data_vars:
            return dataset
        groups = xr.open_groups(path, decode_times=False)
        parts = {
            f"{group.strip('/')}/{name}": each[name].variable
            for group, each in groups.items()
            for name in each.data_vars
            if group.strip("/")
        }
        return xr.Dataset(parts, attrs=dataset.attrs)
    except (OSError, KeyError, ValueError) as error:
        raise ValueError(f"cannot read observations from {path}: {error}") from error


def points(
    dataset: xr.Dataset, layout: Layout, standard_names: Mapping[str, str]
) -> tuple[pd.DataFrame, dict[str, str]]:
    """The table of a dataset of discrete geometries, and the units of its variables.

    A variable is observed if the layout knows its name, its standard name, or it is among the
    values of a group `ObsValue`; all others with the same dimensions are columns beside it.
    """

    clocks = [str(n) for n in dataset.variables if " since " in str(dataset[n].attrs.get("units"))]
    for name in clocks:
        try:
            decoded = xr.decode_cf(dataset[[name]], decode_timedelta=False)[name]
        except ValueError as error:
            raise ValueError(f"the times {name!r} cannot be decoded: {error}") from error
        dataset = dataset.assign_coords({name: decoded}) if name in dataset.coords else (
            dataset.assign({name: decoded}))  # fmt: skip
    back = {standard: name for name, standard in standard_names.items()}
    called = {
        n: back[standard]
        for n in dataset.data_vars
        if n not in layout.variables
        and (standard := dataset[n].attrs.get("standard_name")) in back
        and back[standard] not in dataset.variables
    }
    # The errors of a variable go by its name.
    called |= {
        f"{n}{end}": f"{name}{end}"
        for n, name in called.items()
        for end in (SUFFIX, "_error")
        if f"{n}{end}" in dataset
    }
    dataset = dataset.rename(called)
    kept = [n for n in dataset.data_vars if dataset[n].ndim]
    units = {
        str(n).split("/", 1)[-1]: str(dataset[n].attrs["units"])
        for n in kept
        if "units" in dataset[n].attrs and n not in clocks
    }

    return dataset[kept].to_dataframe().reset_index(), units


def gridded(dataset: xr.Dataset, layout: Layout, standard_names: Mapping[str, str]) -> xr.Dataset:
    """A grid of observations in the names, times and units of a layout."""

    back = {v: k for k, v in standard_names.items()}
    names = [str(name) for name in dataset.data_vars]
    observed = [name for name in names
                if not (name.endswith(SUFFIX) and name[: -len(SUFFIX)] in names)]  # fmt: skip
    bounds = {str(dataset[n].attrs["bounds"]) for n in dataset.variables
              if "bounds" in dataset[n].attrs}  # fmt: skip
    observed = [name for name in observed if name not in bounds and dataset[name].ndim]
    if not observed:
        raise ValueError("the dataset has no variable")
    found = roles(dataset, observed) if layout.spherical else {}
    found |= {} if "time" in found else attributed_time(dataset)
    result = dataset[[*observed, *(n + SUFFIX for n in observed if n + SUFFIX in names)]]
    result = result.rename({dim: role for role, dim in found.items()
                            if role != dim and dim in result.variables})  # fmt: skip
    for name in observed:
        known = name
        if name not in layout.variables:
            known = back.get(str(dataset[name].attrs.get("standard_name")), name)
        if known != name:
            result = result.rename({name: known})
            if name + SUFFIX in result:
                result = result.rename({name + SUFFIX: known + SUFFIX})
        if known not in layout.variables:
            raise ValueError(
                f"the observed variable {name!r} is none of the prior's {list(layout.variables)}"
            )
        unit = dataset[name].attrs.get("units")
        if unit is None:
            continue
        factor, offset = conversion(str(unit), layout.units.get(known, "1"), f"observed {name!r}")
        if (factor, offset) != (1.0, 0.0):
            result[known] = (result[known] * factor + offset).assign_attrs(dataset[name].attrs)
            if known + SUFFIX in result:
                result[known + SUFFIX] = result[known + SUFFIX] * abs(factor)
    time = result["time"] if "time" in result.variables else None
    if time is not None and (" since " in str(time.attrs.get("units"))
                             or not np.issubdtype(time.dtype, np.number)):  # fmt: skip
        decoded = xr.decode_cf(
            xr.Dataset(coords={"time": time}),
            decode_times=xr.coders.CFDatetimeCoder(use_cftime=True),
        )["time"]
        values = dated(np.atleast_1d(decoded.values), layout, "the coordinate 'time'")
        dims = time.dims
        result = result.assign_coords(time=(dims, values if dims else values[0]))

    return result


def attributed_time(dataset: xr.Dataset) -> dict[str, str]:
    """The dimension that is time by its attributes, for grids that are not those of the globe."""

    dims = [str(dim) for dim in dataset.dims if dim != "time"]
    found = [dim for dim, role in attributed(dataset, dims).items() if role == "time"]
    return {"time": found[0]} if len(found) == 1 and "time" not in dataset.dims else {}
