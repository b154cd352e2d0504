"""What the dimensions of a dataset are: time, member, level, latitude, longitude, or plain space.

A dimension is what its coordinate's CF attributes say (`axis`, `standard_name`, units such as
`degrees_north` or `hours since …`, found by cf_xarray), else what its name is used for everywhere.
Nothing is guessed between two candidates: an error lists them, and `dims={time: valid_time}` says
which it is.
"""

from collections.abc import Mapping, Sequence

import numpy as np
import xarray as xr

from dynamics.layout import LATITUDE, LONGITUDE

ROLES = ("time", "member", "level", "lat", "lon")
# Names that mean one thing wherever they are used, in lower case.
NAMES = {
    "time": ("time", "valid_time", "t", "date", "datetime"),
    "member": ("member", "number", "realization", "realisation", "ensemble", "ens"),
    "level": (
        "level", "lev", "plev", "isobaricinhpa", "pressure", "pressure_level", "depth", "deptht",
        "height", "altitude",
    ),
    "lat": ("lat", "latitude", "nav_lat"),
    "lon": ("lon", "longitude", "nav_lon"),
}  # fmt: skip


def roles(
    dataset: xr.Dataset, variables: Sequence[str], given: Mapping[str, str] | None = None
) -> dict[str, str]:
    """Finds what each dimension of some variables is.

    Arguments:
        dataset: The dataset, with times not decoded.
        variables: The names of the variables.
        given: The dimensions of some roles, as the user says: `{"time": "valid_time"}`.

    Returns:
        The dimension of each role that occurs, `time`, `member`, `level`, `lat` and `lon`.
        Dimensions that have none of them are plain space.

    Raises:
        ValueError: If a role or dimension does not exist, two dimensions have the same role, or
            a dimension has neither a role nor a coordinate.
    """

    present = list(dict.fromkeys(str(dim) for name in variables for dim in dataset[name].dims))
    given = dict(given or {})
    for role, dim in given.items():
        if role not in ROLES:
            raise ValueError(f"dims names {role!r}: expected one of {', '.join(ROLES)}")
        if dim not in present:
            raise ValueError(
                f"dims={{{role}: {dim}}} names no dimension of {list(variables)}: they have "
                f"{present}"
            )
    named = {dim: role for role, dim in given.items()}
    if len(named) < len(given):
        raise ValueError(f"dims gives one dimension two roles: {given}")
    found = dict(given)
    by_attributes = attributed(dataset, [dim for dim in present if dim not in named])
    for dim in present:
        # What is named or described wins; a name alone takes a role that nothing else has.
        own = named.get(dim) or by_attributes.get(dim)
        if own is None:
            continue
        if found.get(own, dim) != dim:
            if own in given:
                continue
            raise ambiguous(own, [d for d in present if by_attributes.get(d) == own])
        found[own] = dim
    left = [dim for dim in present if dim not in found.values() and dim not in by_attributes]
    for role, names in NAMES.items():
        candidates = [dim for dim in left if dim.lower() in names and role not in found]
        if len(candidates) > 1:
            raise ambiguous(role, candidates)
        if candidates:
            found[role] = candidates[0]
    check_rest(dataset, [dim for dim in present if dim not in found.values()], found)

    return {role: found[role] for role in ROLES if role in found}


def attributed(dataset: xr.Dataset, dims: Sequence[str]) -> dict[str, str]:
    """The roles that the CF attributes of coordinates say."""

    import cf_xarray  # noqa: F401  (registers the accessor)

    axes, coordinates, names = dataset.cf.axes, dataset.cf.coordinates, dataset.cf.standard_names
    units = {dim: str(dataset[dim].attrs.get("units", "")) for dim in dims if dim in dataset.coords}
    known = {
        "time": {*axes.get("T", ()), *names.get("time", ())}
        | {dim for dim, unit in units.items() if " since " in unit},
        "member": {*names.get("realization", ())},
        "level": {*axes.get("Z", ()), *coordinates.get("vertical", ())},
        "lat": {*names.get("latitude", ())} | {d for d, unit in units.items() if unit in LATITUDE},
        "lon": {*names.get("longitude", ())}
        | {d for d, unit in units.items() if unit in LONGITUDE},
    }
    dated = {dim for dim in units if np.issubdtype(dataset[dim].dtype, np.datetime64)}
    known["time"] |= dated | {dim for dim in units if is_cftime(dataset[dim])}

    return {dim: role for role, members in known.items() for dim in dims if dim in members}


def is_cftime(coordinate: xr.DataArray) -> bool:
    """Whether a coordinate holds dates of cftime."""

    return coordinate.dtype == object and hasattr(coordinate.values.flat[0], "calendar")


def ambiguous(role: str, candidates: Sequence[str]) -> ValueError:
    """The error that asks for a dimension."""

    return ValueError(
        f"the dimensions {', '.join(map(repr, candidates))} could all be the {role}: say which "
        f"with dims={{{role}: {candidates[0]}}}"
    )


def check_rest(dataset: xr.Dataset, dims: Sequence[str], found: Mapping[str, str]) -> None:
    """Raises a `ValueError` unless dimensions without a role can be plain space."""

    for dim in dims:
        if dataset.sizes[dim] == 1:
            continue
        coordinate = dataset[dim] if dim in dataset.coords else None
        if coordinate is not None and np.issubdtype(coordinate.dtype, np.number):
            continue
        free = [role for role in ROLES if role not in found]
        what = (
            "has no coordinate"
            if coordinate is None
            else f"has a coordinate of {coordinate.dtype}, not of numbers"
        )
        flat = [str(n) for n in dataset.coords if dim in dataset[n].dims and dataset[n].ndim == 2]
        curved = (
            f" (its {' and '.join(flat)} are two-dimensional: regrid the data to rows and columns)"
            if flat
            else ""
        )
        raise ValueError(
            f"the dimension {dim!r} {what}, and its name and attributes do not say what it is"
            f"{curved}: say it with dims={{…: {dim}}} (one of {', '.join(free) or 'no role left'}),"
            f" or select one of its values first"
        )
