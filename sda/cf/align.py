"""Data of any origin on the variables and the clock of a layout: the truth that a posterior is
scored against, or the states that a forecast begins with."""

from collections.abc import Sequence
from pathlib import Path

import numpy as np
import xarray as xr

from dynamics.layout import Layout

from .canonical import chosen, native, open_data, open_files
from .times import Clock
from .units import conversion


def open_like(
    source: xr.Dataset | str | Path | Sequence[str | Path], layout: Layout | None
) -> xr.Dataset:
    """Opens states as a layout has them.

    Arguments:
        source: The data, see `sda.cf.open_data`.
        layout: The layout (default: the data's own).

    Returns:
        The layout's variables, in its units, at times counted by its clock.

    Raises:
        FileNotFoundError: If there is nothing at a path.
        ValueError: If a variable, a date or a unit does not fit the layout.
    """

    dataset = source if isinstance(source, xr.Dataset) else open_files(source)
    if layout is None:
        return open_data(dataset)
    if not native(dataset):
        # Of its variables those that the layout has, some of them as levels.
        names = [
            name
            for name in chosen(dataset, None)
            if any(known == name or known.startswith(f"{name}_") for known in layout.variables)
        ]
        dataset = open_data(dataset, names or None)
    present = [name for name in layout.variables if name in dataset]
    for name in present:
        unit, wanted = dataset[name].attrs.get("units"), layout.units.get(name, "1")
        if unit is None or wanted == "1":
            continue
        factor, offset = conversion(str(unit), wanted, f"variable {name!r}")
        if (factor, offset) != (1.0, 0.0):
            attrs = dataset[name].attrs | {"units": wanted}
            dataset[name] = (dataset[name] * factor + offset).assign_attrs(attrs)

    return on_clock(dataset, layout)


def on_clock(dataset: xr.Dataset, layout: Layout) -> xr.Dataset:
    """The dataset with its times counted by the clock of a layout.

    Raises:
        ValueError: If one has dates and the other has none.
    """

    wanted = Clock.of(layout)
    if "time" not in dataset.coords:
        return dataset
    attrs = dataset["time"].attrs
    units, calendar = str(attrs.get("units", "1")), str(attrs.get("calendar", "standard"))
    if wanted is None or (units, calendar) == (layout.time_units, layout.calendar or "standard"):
        return dataset
    if " since " not in units:
        raise ValueError(
            f"the data count time in plain numbers (units {units!r}), but {layout.time_units!r} is "
            f"needed: give their times units and dates"
        )
    numbers = wanted.numbers(Clock(units, calendar).dates(dataset["time"].values))
    time = numbers if dataset["time"].ndim else np.asarray(numbers[0])

    return dataset.assign_coords(time=(dataset["time"].dims, time, layout.attributes("time")))
