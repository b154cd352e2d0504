"""Datasets as others write them, with a value known at every place and date."""

import cftime
import numpy as np
import xarray as xr


def field(time, lat, lon, level=500.0):
    """A function of time, place and level, periodic in longitude."""

    a, b = np.deg2rad(lat), np.deg2rad(lon)
    return (
        np.sin(0.3 * time) + np.sin(a) + np.cos(a) * np.cos(b) + 0.5 * np.sin(2 * b) + level / 1e3
    )


def archive(
    lat=None, lon=None, days=20, step=6, names=("time", "latitude", "longitude"), attributes=True
):
    """Temperatures, with times in hours since 2001-01-01 12:00."""

    lat = np.linspace(75, -75, 11) if lat is None else np.asarray(lat, dtype=float)
    lon = np.arange(0, 360, 30.0) if lon is None else np.asarray(lon, dtype=float)
    hours = np.arange(0, 24 * days, step, dtype=float)
    values = field(hours[:, None, None], lat[:, None], lon)
    dataset = xr.Dataset(
        {
            "t2m": (
                names,
                values.astype(np.float32),
                {"units": "K", "standard_name": "air_temperature"},
            )
        },
        {names[0]: hours, names[1]: lat, names[2]: lon},
    )
    dataset[names[0]].attrs = {"units": "hours since 2001-01-01 12:00", "calendar": "standard"}
    if attributes:
        dataset[names[1]].attrs = {"units": "degrees_north"}
        dataset[names[2]].attrs = {"units": "degrees_east"}
    return dataset


def months(count, year=1999, day=16, calendar="standard"):
    """Dates in the middle of months."""

    return [
        cftime.datetime(year + m // 12, m % 12 + 1, day, calendar=calendar) for m in range(count)
    ]
