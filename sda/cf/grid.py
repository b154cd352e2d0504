"""The grid of a dataset as the engine has it: channels on latitudes and longitudes.

Latitudes increase. Longitudes increase from 0 to 360 where they go around the globe, whose period
is then known; a region keeps its own, continued where it crosses the seam of its convention (170 …
190). Rows at the poles stay: they weigh as the small caps that they are. Levels become channels,
`t` at 500 hPa the variable `t_500hPa`; where
there is but one level, `t`.
"""

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import xarray as xr

# The part of a cell by which stored longitudes may be off.
TOLERANCE = 1e-3
LEVEL_UNITS = {"millibar": "hPa", "millibars": "hPa", "mbar": "hPa", "mb": "hPa", "meters": "m"}


def latitudes(dataset: xr.Dataset) -> xr.Dataset:
    """Brings latitudes into increasing order.

    Raises:
        ValueError: If they are not within ±90, or neither increase nor decrease.
    """

    values = np.asarray(dataset["lat"].values, dtype=np.float64)
    check_finite("lat", values)
    wrong = np.flatnonzero(np.abs(values) > 90 + 1e-4)
    if len(wrong):
        raise ValueError(
            f"latitudes must be within -90 … 90, got {values[wrong[0]]:g} at index {wrong[0]}: are "
            f"longitudes and latitudes swapped? Say it with dims={{lat: …, lon: …}}"
        )
    check_monotonic("lat", values)
    if len(values) > 1 and values[0] > values[-1]:
        dataset, values = dataset.isel(lat=slice(None, None, -1)), values[::-1]

    return dataset.assign_coords(lat=("lat", np.clip(values, -90, 90), axis("lat")))


def longitudes(dataset: xr.Dataset) -> xr.Dataset:
    """Brings longitudes into increasing order, from 0 to 360 where they go around the globe.

    A last column that repeats the first, 360° away, is dropped.

    Raises:
        ValueError: If they mix the conventions −180 … 180 and 0 … 360, or are not in order.
    """

    values = np.asarray(dataset["lon"].values, dtype=np.float64)
    check_finite("lon", values)
    if len(values) > 1 and np.mean(np.diff(values) < 0) > 0.5:
        dataset, values = dataset.isel(lon=slice(None, None, -1)), values[::-1]
    steps = np.mod(np.diff(values), 360.0)
    # A repeated column is a whole turn, which the remainder cannot tell from no step at all.
    total = float(steps.sum())
    back = np.flatnonzero((np.diff(values) <= 0) | (steps > 180))
    jumps = len(values) > 2 and bool((steps > 180).any())
    if len(values) > 1 and (jumps or total > 360 + 1e-3 or (steps < 1e-9).any()):
        i = int(back[0]) if len(back) else int(np.argmax(steps))
        mixed = values.min() < 0 and values.max() > 180
        raise ValueError(
            ("longitudes mix the conventions -180 … 180 and 0 … 360" if mixed else
             "longitudes are not in order")
            + f": {values[i]:g} at index {i} is followed by {values[i + 1]:g}, in {values.min():g} "
            f"… {values.max():g}: bring them to one convention, such as by "
            f".assign_coords(lon=dataset.lon % 360).sortby('lon')"
        )  # fmt: skip
    values = values[0] + np.concatenate(([0.0], np.cumsum(steps)))
    if len(values) > 2 and abs(total - 360) < TOLERANCE * steps.mean():
        dataset, values, steps = dataset.isel(lon=slice(0, -1)), values[:-1], steps[:-1]
    count = len(values)
    around = count > 1 and abs(count * steps.mean() - 360) < 0.5 * steps.mean()
    if not around:
        return dataset.assign_coords(lon=("lon", values, axis("lon")))

    cell = 360.0 / count
    off = np.abs(values - values[0] - cell * np.arange(count))
    if off.max() > 10 * TOLERANCE * cell:
        i = int(off.argmax())
        raise ValueError(
            f"{count} longitudes go around the globe and must be {cell:g} apart, but "
            f"{dataset['lon'].values[i]:g} at index {i} is off by {off[i]:g}: regrid the data, or "
            f"select a region"
        )
    first = float(np.mod(values[0], cell))
    if cell - first < TOLERANCE * cell or first < TOLERANCE * cell:
        first = 0.0
    turned = np.mod(np.round((values - first) / cell).astype(int), count)
    dataset = dataset.isel(lon=np.argsort(turned)) if (np.diff(turned) < 0).any() else dataset
    attrs = {**axis("lon"), "period": repr(360.0)}

    return dataset.assign_coords(lon=("lon", first + cell * np.arange(count), attrs))


def axis(name: str) -> dict[str, str]:
    """The CF attributes of latitude or longitude."""

    long = {"lat": "latitude", "lon": "longitude"}[name]
    units = {"lat": "degrees_north", "lon": "degrees_east"}[name]
    return {"units": units, "standard_name": long, "long_name": long}


def plain(dataset: xr.Dataset, dim: str) -> xr.Dataset:
    """Brings another spatial coordinate into increasing order.

    Raises:
        ValueError: If it neither increases nor decreases.
    """

    values = np.asarray(dataset[dim].values, dtype=np.float64)
    check_finite(dim, values)
    check_monotonic(dim, values)
    if len(values) > 1 and values[0] > values[-1]:
        dataset = dataset.isel({dim: slice(None, None, -1)})

    return dataset


def check_finite(name: str, values: np.ndarray) -> None:
    """Raises a `ValueError` if a coordinate is missing somewhere."""

    bad = np.flatnonzero(~np.isfinite(values))
    if len(bad):
        raise ValueError(
            f"coordinate {name!r} has {len(bad)} missing values, the first at index {bad[0]}"
        )


def check_monotonic(name: str, values: np.ndarray) -> None:
    """Raises a `ValueError` unless a coordinate increases or decreases throughout."""

    steps = np.diff(values)
    if (steps > 0).all() or (steps < 0).all():
        return
    usual = 1 if (steps > 0).sum() >= (steps < 0).sum() else -1
    i = int(np.flatnonzero(np.sign(steps) != usual)[0])
    raise ValueError(
        f"coordinate {name!r} must increase or decrease throughout, but {values[i]:g} at index {i} "
        f"is followed by {values[i + 1]:g}: sort the data, or remove what is twice"
    )


def channels(
    dataset: xr.Dataset,
    variables: Sequence[str],
    levels: Mapping[str, Any] | Sequence[float] | float | None = None,
) -> xr.Dataset:
    """Makes a variable of each level.

    Arguments:
        dataset: The dataset, whose vertical dimension is `level`.
        variables: The names of the variables.
        levels: The levels to keep: for all variables, or for each by its name (default: all).

    Raises:
        ValueError: If a level is not in the data, or a name in `levels` is no variable with levels.
    """

    layered = [name for name in variables if "level" in dataset[name].dims]
    if levels is not None and (not layered or isinstance(levels, Mapping)):
        named = set(levels) if isinstance(levels, Mapping) else {str(levels)}
        if unknown := named - set(layered):
            raise ValueError(
                f"levels names {sorted(unknown)}, but the variables with levels are "
                f"{layered or 'none'}"
            )
    found: dict[str, xr.DataArray] = {}
    for name in variables:
        if name not in layered:
            found[name] = dataset[name]
            continue
        coordinate = dataset["level"]
        values = np.asarray(coordinate.values, dtype=np.float64)
        chosen = levels.get(name) if isinstance(levels, Mapping) else levels
        wanted = values if chosen is None else np.atleast_1d(np.asarray(chosen, dtype=np.float64))
        units = str(coordinate.attrs.get("units", ""))
        units = "" if units in ("1", "level", "~") else LEVEL_UNITS.get(units, units)
        for value in wanted:
            index = np.flatnonzero(np.isclose(values, value, rtol=1e-4, atol=1e-6))
            if len(index) != 1:
                raise ValueError(
                    f"level {value:g} of {name!r} is not among its levels "
                    f"{', '.join(f'{v:g}' for v in values)} {units}"
                )
            layer = dataset[name].isel(level=int(index[0]), drop=True)
            long = str(layer.attrs.get("long_name", name))
            attrs = layer.attrs | {"long_name": f"{long} at {value:g} {units}".strip()}
            own = level_name(name, float(value), units) if len(values) > 1 else name
            found[own] = layer.assign_attrs(attrs | {"level": float(value), "level_units": units})

    return xr.Dataset(found, attrs=dataset.attrs)


def level_name(name: str, value: float, units: str) -> str:
    """The name of a variable at a level, `t_500hPa`."""

    plain_units = "".join(c for c in units if c.isalnum())
    return f"{name}_{value:g}{plain_units}".replace("-", "m")
