"""Tables of observations with the column names of the ecosystem, as tables of the engine's form.

ODB and ODC (`lat@hdr`, `obsvalue@body`, `andate@desc`), IODA (`ObsValue/airTemperature`,
`MetaData/latitude`), station tables of pandas (`valid_time`, `station_id`, `latitude`, `value`) and
tables with a column for each variable are read by the explicit names below. Two columns that could
be the same are refused unless they agree; a column that is missing is named with the names that it
may have. Dates become the prior's time, units the prior's units.
"""

import re
from collections.abc import Mapping
from typing import Any

import numpy as np
import pandas as pd

from dynamics.layout import Layout

from .grid import level_name
from .times import Clock
from .units import conversion

# What a column may be called, in lower case; of `table@column` names the first part decides too.
ALIASES = {
    "time": ("time", "valid_time", "datetime", "date_time", "obstime", "observation_time",
             "metadata/datetime", "timestamp", "phenomenon_time"),
    "lat": ("lat", "latitude", "lat@hdr", "latitude@hdr", "metadata/latitude"),
    "lon": ("lon", "longitude", "lon@hdr", "longitude@hdr", "metadata/longitude"),
    "variable": ("variable", "varname", "variable_name", "parameter", "varno@body", "varno",
                 "standard_name"),
    "observation": ("observation", "obsvalue", "obsvalue@body", "obs_value", "value",
                    "observed_value"),
    "std": ("std", "obs_error", "obs_error@errstat", "final_obs_error", "final_obs_error@errstat",
            "obserror", "std_dev", "stddev", "sigma", "uncertainty", "observation_error"),
    "units": ("units", "unit"),
    "level": ("level", "pressure_level", "plev", "vertco_reference_1@body", "vertco_reference_1",
              "metadata/pressure"),
    "level_units": ("level_units", "level_unit"),
}  # fmt: skip
DATES = (("andate@desc", "antime@desc"), ("andate", "antime"), ("date@hdr", "time@hdr"),
         ("date", "time"))  # fmt: skip
# Numbers of variables in ODB, and their names in CF.
ODB = {
    1: "geopotential", 2: "air_temperature", 3: "eastward_wind", 4: "northward_wind",
    7: "specific_humidity", 11: "sea_surface_temperature", 29: "relative_humidity",
    39: "air_temperature", 41: "eastward_wind", 42: "northward_wind", 58: "relative_humidity",
    110: "surface_air_pressure",
}  # fmt: skip
# Names of IODA, and their names in CF.
IODA = {
    "airtemperature": "air_temperature", "windeastward": "eastward_wind",
    "windnorthward": "northward_wind", "specifichumidity": "specific_humidity",
    "stationpressure": "surface_air_pressure", "seasurfacetemperature": "sea_surface_temperature",
    "absolutedynamictopography": "sea_surface_height_above_geoid",
    "seawatertemperature": "sea_water_temperature", "salinity": "sea_water_salinity",
}  # fmt: skip


def adapt(
    table: pd.DataFrame,
    layout: Layout,
    *,
    standard_names: Mapping[str, str] | None = None,
    std: float | Mapping[str, float] | None = None,
    units: Mapping[str, str] | None = None,
) -> pd.DataFrame:
    """Brings a table to the columns `time`, the layout's dimensions, `variable`, `observation` and
    `std`, in the layout's units.

    Arguments:
        table: The table, one row for each value, or one column for each variable.
        layout: The layout of the prior's states.
        standard_names: The CF standard names of its variables, by which they may be called too.
        std: The standard deviations of errors, where the table has none.
        units: The units of each variable, where the table has no such column.

    Raises:
        ValueError: If a column is missing or ambiguous, a variable, date or unit is unknown.
    """

    table = long_form(pd.DataFrame(table).reset_index(drop=True), layout, std)
    found = columns(table, layout)
    names = ("variable", "observation", *layout.dims)
    missing = [n for n in names if n not in found] + ([] if "time" in found else ["time"])
    if "std" not in found and std is None:
        missing.append("std")
    if missing:
        what = "; ".join(f"{n!r} (or {', '.join(others(n))})" for n in missing)
        raise ValueError(
            f"the table of observations lacks {what}: its columns are {list(map(str, table))}"
        )
    result = pd.DataFrame({"time": times(table, found["time"], layout)})
    for dim in layout.dims:
        result[dim] = numbers(table, str(found[dim]))
    result = places(result, layout)
    level = numbers(table, str(found["level"])) if "level" in found else None
    level_units = table[found["level_units"]] if "level_units" in found else None
    result["variable"] = variables(
        table[found["variable"]], level, level_units, layout, standard_names or {}
    )
    result["observation"] = numbers(table, str(found["observation"]))
    if "std" in found:
        result["std"] = numbers(table, str(found["std"]))
    else:
        given = std if isinstance(std, Mapping) else dict.fromkeys(layout.variables, std)
        result["std"] = [float(given[name]) for name in result["variable"]]  # type: ignore[arg-type]
    own = table[found["units"]].astype(str) if "units" in found else None
    convert(result, own, units or {}, layout)
    for name in table.columns:
        if name not in found.values() and not pd.api.types.is_numeric_dtype(table[name]):
            if str(name) not in result and isinstance(table[name].iloc[0], str):
                result[str(name)] = table[name]

    return result


def others(name: str) -> tuple[str, ...]:
    """The names that a column may have too."""

    known = ALIASES.get(name, (name,))[1:6]
    return known if name != "time" else (*known[:3], "andate@desc with antime@desc")


def columns(table: pd.DataFrame, layout: Layout) -> dict[str, Any]:
    """The columns of a table by what they are; that of dates in two columns is a pair.

    Raises:
        ValueError: If two columns could be the same and differ.
    """

    lower = {str(name).lower(): name for name in table.columns}
    found: dict[str, Any] = {}
    for date, clock in DATES:
        if date in lower and clock in lower:
            found["time"] = (lower[date], lower[clock])
            break
    roles = {name: names for name, names in ALIASES.items()
             if name not in ("lat", "lon") or name in layout.dims}  # fmt: skip
    for dim in layout.dims:
        roles.setdefault(dim, (dim.lower(),))
    for role, names in roles.items():
        if role in found:
            continue
        candidates = [lower[name] for name in names if name in lower]
        if role in candidates:
            # A name of our own is meant so, unless another column contradicts it.
            candidates = [role, *(c for c in candidates if c != role)]
        for other in candidates[1:]:
            if not table[other].equals(table[candidates[0]]) and role != "variable":
                raise ValueError(
                    f"the columns {str(candidates[0])!r} and {str(other)!r} could both be the "
                    f"{role}, and differ: remove or rename one"
                )
        if candidates:
            found[role] = candidates[0]

    return found


def long_form(
    table: pd.DataFrame, layout: Layout, std: float | Mapping[str, float] | None
) -> pd.DataFrame:
    """One row for each value, of a table that has one column for each variable."""

    lower = {str(name).lower(): name for name in table.columns}
    if any(name in lower for name in ALIASES["observation"]):
        return table
    wide = {str(name): str(name) for name in table.columns if str(name) in layout.variables}
    wide |= {
        str(name): str(name).split("/", 1)[1]
        for name in table.columns
        if str(name).lower().startswith("obsvalue/")
    }
    if not wide:
        return table
    parts = []
    for column, variable in wide.items():
        errors = [f"{variable}_std", f"{variable}_error", f"ObsError/{variable}"]
        error = next((name for name in errors if name in table), None)
        apart = {*wide, *(n for v in wide.values() for n in
                          (f"{v}_std", f"{v}_error", f"ObsError/{v}", f"PreQC/{v}"))}  # fmt: skip
        part = table[[name for name in table.columns if str(name) not in apart]].copy()
        part["variable"], part["observation"] = variable, table[column]
        if error is not None:
            part["std"] = table[error]
        elif std is None and "std" not in table:
            raise ValueError(
                f"the error of {variable!r} is unknown: add a column {errors[0]!r}, or give std="
            )
        elif "std" not in table:
            value = std.get(variable) if isinstance(std, Mapping) else std
            part["std"] = value
        parts.append(part)

    return pd.concat(parts, ignore_index=True)


def times(table: pd.DataFrame, column: Any, layout: Layout) -> np.ndarray:
    """Times in the units of a layout.

    Raises:
        ValueError: If they are dates and the layout has none, or a date cannot be read.
    """

    if isinstance(column, tuple):
        date, clock = (numbers(table, str(name)).astype(np.int64) for name in column)
        text = [f"{d:08d}T{c:06d}" for d, c in zip(date, clock, strict=True)]
        values = pd.to_datetime(pd.Series(text), format="%Y%m%dT%H%M%S", errors="coerce")
        if values.isna().any():
            row = int(np.flatnonzero(values.isna())[0])
            raise ValueError(
                f"the columns {column[0]!r} and {column[1]!r} must be numbers such as 20010131 and "
                f"183000, got {date[row]} and {clock[row]} in row {row}"
            )
    else:
        values = table[column]
        if pd.api.types.is_numeric_dtype(values):
            return numbers(table, str(column))
    return dated(values, layout, f"the column {column!r}")


def dated(values: Any, layout: Layout, what: str) -> np.ndarray:
    """Dates in the units of a layout.

    Raises:
        ValueError: If the layout has no dates, or a date cannot be read.
    """

    clock = Clock.of(layout)
    if clock is None:
        raise ValueError(
            f"{what} holds dates, but the prior counts time in plain numbers (units "
            f"{layout.time_units!r}): convert dates to the time since the start of the trajectory"
        )
    try:
        return clock.numbers(np.asarray(values))
    except ValueError as error:
        raise ValueError(f"{what}: {error}") from error


def numbers(table: pd.DataFrame, name: str) -> np.ndarray:
    """A column as numbers.

    Raises:
        ValueError: If it holds something else.
    """

    try:
        return table[name].to_numpy(dtype=np.float64)
    except (TypeError, ValueError) as error:
        raise ValueError(f"the column {name!r} must hold numbers: {error}") from error


def places(table: pd.DataFrame, layout: Layout) -> pd.DataFrame:
    """Longitudes in the convention of the layout, also of a region across the seam.

    Raises:
        ValueError: If a latitude is beyond the poles, or a longitude beyond two turns.
    """

    if not layout.spherical:
        return table
    lat, lon = layout.dims[-2:]
    wrong = np.flatnonzero(np.abs(table[lat].to_numpy()) > 90)
    if len(wrong):
        raise ValueError(
            f"latitudes must be within -90 … 90, got {table[lat].iloc[wrong[0]]:g} in row "
            f"{wrong[0]} ({len(wrong)} rows): are latitude and longitude swapped?"
        )
    values = table[lon].to_numpy()
    wrong = np.flatnonzero(np.abs(values) > 360)
    if len(wrong):
        raise ValueError(
            f"longitudes must be within -360 … 360, got {values[wrong[0]]:g} in row {wrong[0]} "
            f"({len(wrong)} rows)"
        )
    own = layout.coords[lon]
    first = own[0] if lon in layout.period else (own[0] + own[-1]) / 2 - 180
    inside = (values >= own[0]) & (values <= own[-1])

    return table.assign(**{lon: np.where(inside, values, first + np.mod(values - first, 360))})


def variables(
    given: pd.Series,
    level: np.ndarray | None,
    level_units: pd.Series | None,
    layout: Layout,
    standard_names: Mapping[str, str],
) -> np.ndarray:
    """The layout's variables that are meant: by name, by standard name, by number, and by level.

    Raises:
        ValueError: If none or several are meant.
    """

    plain = given
    if not pd.api.types.is_numeric_dtype(given):
        plain = given.astype(str)
    keys = pd.DataFrame({"name": plain})
    if level is not None:
        keys["level"] = level
    if level_units is not None:
        keys["units"] = level_units.astype(str)
    found = np.empty(len(keys), dtype=object)
    for key, rows in keys.groupby(list(keys.columns), dropna=False).indices.items():
        key = key if isinstance(key, tuple) else (key,)
        height = float(key[1]) if len(key) > 1 else np.nan
        found[rows] = variable(
            key[0], height, key[2] if len(key) > 2 else None, layout, standard_names
        )

    return found


def variable(
    name: Any, level: float, units: str | None, layout: Layout, standard_names: Mapping[str, str]
) -> str:
    """The variable of a layout that a table calls by a name, see `variables`."""

    text = ODB.get(int(name), str(name)) if isinstance(name, int | float | np.number) else name
    text = IODA.get(text.lower(), text)
    if text in layout.variables:
        return str(text)
    short = {v: k for k, v in standard_names.items()}
    candidates = [v for v in layout.variables if v == text or standard_names.get(v) == text]
    layered = [v for v in layout.variables
               if re.fullmatch(rf"{re.escape(text)}_m?[0-9.e+]+[A-Za-z]*", v)]  # fmt: skip
    candidates = candidates or layered
    if len(candidates) != 1 and np.isfinite(level):
        wanted = []
        for each in candidates:
            stem, _, tail = each.rpartition("_")
            unit = tail.lstrip("m0123456789.e+") if not tail[:1].isalpha() else ""
            factor = 1.0
            if units and unit and units != unit:
                factor = conversion(units, unit, f"the level of {text!r}")[0]
            if each == level_name(stem, float(f"{level * factor:.9g}"), unit):
                wanted.append(each)
        candidates = wanted
    if len(candidates) == 1:
        return candidates[0]
    at = f" at level {level:g}" if np.isfinite(level) else ""
    why = f"could be any of {candidates}" if candidates else "is none of the prior's"
    known = [f"{v} ({standard_names[v]})" if v in standard_names else v for v in layout.variables]
    raise ValueError(
        f"the observed variable {str(name)!r}{at} {why}: its variables are {', '.join(known)}"
        + ("" if not short else "; standard names do as well")
    )


def convert(
    table: pd.DataFrame, own: pd.Series | None, units: Mapping[str, str], layout: Layout
) -> None:
    """Converts observations and their errors to the units of the layout, in place.

    Raises:
        ValueError: If units are unknown, or do not measure the same.
    """

    given = own if own is not None else table["variable"].map(lambda v: units.get(v, ""))
    pairs = pd.DataFrame({"variable": table["variable"], "units": given})
    for (name, unit), rows in pairs.groupby(["variable", "units"]).indices.items():
        wanted = layout.units.get(str(name), "1")
        if not unit or unit == "nan":
            continue
        factor, offset = conversion(str(unit), wanted, f"the observed {name!r}")
        index = table.index[rows]
        table.loc[index, "observation"] = factor * table.loc[index, "observation"] + offset
        table.loc[index, "std"] = abs(factor) * table.loc[index, "std"]
