"""Datasets as other people write them, as the engine reads them.

`canonical` brings any CF-like dataset to the form that `Layout` describes: one variable per channel
with the dimensions `(member, time, *space)`, uniform numeric times, latitudes and longitudes in
order, and a mask. All of it is lazy: one pass over the data finds the mask, nothing is kept.
"""

import glob
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import xarray as xr

from dynamics.layout import LATITUDE, LONGITUDE

from . import grid, missing
from .axes import roles
from .times import uniform


def open_data(
    source: xr.Dataset | str | Path | Sequence[str | Path],
    variables: Sequence[str] | None = None,
    *,
    dims: Mapping[str, str] | None = None,
    levels: Any = None,
    fill: str | None = None,
) -> xr.Dataset:
    """Opens trajectories of any origin.

    A dataset of the package's own, or one in its form, passes as it is.

    Arguments:
        source: A dataset; the path of a NetCDF file or Zarr store; or several files of consecutive
            times, as a list or a pattern such as `"era5_*.nc"`.
        variables, dims, levels, fill: See `canonical`.

    Raises:
        FileNotFoundError: If there is nothing at a path.
        ValueError: If a file cannot be read, or its content is ambiguous or flawed.
    """

    dataset = source if isinstance(source, xr.Dataset) else open_files(source)
    if variables is None and not dims and levels is None and fill is None and native(dataset):
        return dataset

    return canonical(dataset, variables, dims=dims, levels=levels, fill=fill)


def open_files(source: str | Path | Sequence[str | Path]) -> xr.Dataset:
    """Opens one file, or several of consecutive times, lazily, with times not decoded."""

    if isinstance(source, str | Path):
        if not any(letter in str(source) for letter in "*?[") or Path(source).exists():
            return open_file(source)
        paths = sorted(glob.glob(str(source)))
        if not paths:
            raise FileNotFoundError(f"no dataset matches {str(source)!r}")
    else:
        paths = [str(path) for path in source]
    parts = [open_file(path) for path in paths]
    if len(parts) == 1:
        return parts[0]
    times = [name for part in parts for name in roles_of_time(part)]
    if len(set(times)) != 1:
        raise ValueError(
            f"several files are joined by their time, which must have one name, got "
            f"{sorted(set(times)) or 'none'} in {len(paths)} files"
        )
    name = times[0]
    # Files of one archive often count from their own first day.
    decoded = [xr.decode_cf(part, decode_timedelta=False) for part in parts]
    try:
        return xr.concat(
            decoded, dim=name, data_vars="minimal", coords="minimal", compat="override",
            join="exact", combine_attrs="override",
        )  # fmt: skip
    except (ValueError, KeyError) as error:
        raise ValueError(f"{len(paths)} files do not fit together: {error}") from error


def open_file(path: str | Path) -> xr.Dataset:
    """Opens one file lazily, in portions also where it stores variables in one piece."""

    from ..store import open_dataset

    dataset = open_dataset(path)
    for array in dataset.data_vars.values():
        whole = array.ndim > 1 and array.chunks is not None and len(array.chunks[0]) == 1
        if Path(path).is_file() and whole and array.nbytes > missing.PORTION:
            each = max(1, missing.PORTION // (array.nbytes // array.shape[0]))
            return xr.open_dataset(
                Path(path).absolute(), decode_times=False, chunks={array.dims[0]: each}
            )

    return dataset


def roles_of_time(dataset: xr.Dataset) -> list[str]:
    """The dimension of a dataset that is time."""

    names = [str(name) for name in dataset.data_vars if dataset[name].ndim > 1]
    found = roles(dataset, names) if names else {}
    return [found["time"]] if "time" in found else []


def native(dataset: xr.Dataset) -> bool:
    """Whether a dataset is in the engine's form already: as `Layout.to_dataset` writes it, or with
    the dimensions `(member, time, *space)`, plain numbers as times, and no latitudes."""

    if "variables" in dataset.attrs and "time" in dataset.dims:
        return True
    if "time" not in dataset.coords or not np.issubdtype(dataset["time"].dtype, np.number):
        return False
    units = [str(dataset[name].attrs.get("units", "")) for name in dataset.coords]

    return not any(" since " in unit or unit in (*LATITUDE, *LONGITUDE) for unit in units)


def canonical(
    dataset: xr.Dataset,
    variables: Sequence[str] | None = None,
    *,
    dims: Mapping[str, str] | None = None,
    levels: Any = None,
    fill: str | None = None,
) -> xr.Dataset:
    """Brings a CF-like dataset to the form that `Layout` describes.

    Arguments:
        dataset: The dataset, from any source that xarray opens.
        variables: The variables to keep (default: all that have a time and a number in each cell).
        dims: The dimensions of roles that are not recognised, `{"time": "valid_time"}`.
        levels: The levels to keep, `[500, 850]` or `{"t": [500, 850], "q": [850]}` (default: all).
        fill: "climatology" to allow values that are missing at some times, see `sda.cf.missing`.

    Returns:
        A lazy dataset with the dimensions `(member, time, *space)`; `member` is there if the data
        has one. Units and names of variables are kept as attributes.

    Raises:
        ValueError: If variables or dimensions are missing or ambiguous, or coordinates or values
            are flawed; the message says where and how to mend it.
    """

    variables = [variables] if isinstance(variables, str) else variables
    names = chosen(dataset, variables)
    found = roles(dataset, names, dims)
    if "time" not in found:
        raise ValueError(
            f"no dimension of {names} is recognised as time, among {list(dataset[names].dims)}: "
            f"say which with dims={{time: …}}"
        )
    clash = {role: dim for role, dim in found.items() if role != dim and role in dataset.variables}
    dataset = dataset[names].reset_coords(drop=False)
    dataset = dataset.drop_vars(
        [n for n in dataset.variables if n not in {*names, *dataset.dims} or n in clash]
    )
    dataset = dataset.rename({dim: role for role, dim in found.items()})
    single = [d for d in dataset.dims if d not in found and dataset.sizes[d] == 1]
    dataset = dataset.isel(dict.fromkeys(single, 0), drop=True)
    for dim in dataset.dims:
        if dim not in dataset.coords and dim != "member":
            raise ValueError(
                f"the dimension {found.get(str(dim), dim)!r} has no coordinate: assign its values"
            )

    result = grid.channels(dataset, names, levels)
    space = [str(dim) for dim in dataset.dims if dim not in ("member", "time", "level")]
    for dim in space:
        if dim not in ("lat", "lon"):
            result = grid.plain(result, dim)
    # Latitude before longitude, as maps have them; other dimensions first.
    order = [dim for dim in space if dim not in ("lat", "lon")]
    order += [dim for dim in ("lat", "lon") if dim in space]
    result = grid.latitudes(result) if "lat" in space else result
    result = grid.longitudes(result) if "lon" in space else result
    result = result.assign_coords(time=uniform(dataset["time"]))
    for name in result.data_vars:
        if odd := {*map(str, result[name].dims)} ^ {*map(str, result.dims)}:
            raise ValueError(
                f"all variables must share their dimensions, but {name!r} has "
                f"{list(result[name].dims)} and others {sorted(odd)}: choose variables=[…]"
            )
    result = result.transpose(*(d for d in ("member", "time") if d in result.dims), *order)
    result = missing.mask(result, order, fill)

    return result.assign_attrs({"Conventions": "CF-1.11", "variables": list(map(str, result))})


def chosen(dataset: xr.Dataset, variables: Sequence[str] | None) -> list[str]:
    """The variables to keep.

    Raises:
        ValueError: If one is not there, is not of numbers, or there is none.
    """

    names = [str(name) for name in dataset.data_vars]
    if variables is not None:
        if absent := [name for name in variables if name not in names]:
            raise ValueError(f"variables {absent} are not in the data, which has {names}")
        names = list(map(str, variables))
    else:
        bounds = {str(dataset[n].attrs["bounds"]) for n in dataset.variables
                  if "bounds" in dataset[n].attrs}  # fmt: skip
        most = max((dataset[name].ndim for name in names), default=0)
        names = [
            name
            for name in names
            if name not in bounds
            and not name.lower().startswith(("bounds_", "bnds_"))
            and not name.lower().endswith(("_bnds", "_bounds", "_bnd"))
            and np.issubdtype(dataset[name].dtype, np.number)
            and 1 < dataset[name].ndim >= most - 1
        ]
    if not names:
        raise ValueError(
            f"there is no dimension 'time', of any name, that a variable has beside another one: "
            f"got {[str(name) for name in dataset.data_vars]} with {dict(dataset.sizes)}; choose "
            f"with variables=[…], or name it with dims={{time: …}}"
        )
    for name in names:
        if not np.issubdtype(dataset[name].dtype, np.number):
            raise ValueError(f"variable {name!r} must hold numbers, got {dataset[name].dtype}")

    return names
