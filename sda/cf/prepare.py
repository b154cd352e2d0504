"""From data as they come to what a prior is fitted to: stationary anomalies, and the way back."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import xarray as xr

from dynamics.layout import Layout

from .anomalies import Anomalies
from .canonical import native, open_data
from .times import Clock


@dataclass(frozen=True)
class Prepared:
    """Data that a prior is fitted to.

    Attributes:
        dataset: The stationary anomalies, lazily, see `sda.cf.anomalies`.
        layout: The layout of the physical states.
        anomalies: The map between the two.
        info: What is worth knowing of the data, as plain JSON types.
        plain: Whether the source is a store of the engine's own form, and its states anomalies.
    """

    dataset: xr.Dataset
    layout: Layout
    anomalies: Anomalies
    info: Mapping[str, Any] = field(default_factory=dict)
    plain: bool = False


def prepare(
    source: xr.Dataset | str | Path | Sequence[str | Path],
    variables: Sequence[str] | None = None,
    *,
    dims: Mapping[str, str] | None = None,
    levels: Any = None,
    fill: str | None = None,
    transform: Mapping[str, Any] | None = None,
    seasonal: int | None = None,
    diurnal: int = 0,
) -> Prepared:
    """Prepares data of any origin for `GaussianPrior.fit` and `train`.

    Arguments:
        source: The data, see `sda.cf.open_data`.
        variables, dims, levels: What to read of them, see `sda.cf.canonical`.
        fill: "climatology" to fill what is missing now and then by the seasonal cycle.
        transform: The transforms by variable, `{"pr": "log1p"}`, see `sda.cf.transforms`.
        seasonal: The harmonics of the year that are removed (default: up to three where two years
            of dates or more resolve them); 0 for none.
        diurnal: The harmonics of the day.

    Raises:
        FileNotFoundError: If there is nothing at a path.
        ValueError: If the data are ambiguous or flawed, or do not suit the options.

    Example:
        >>> prior = sda.GaussianPrior.fit(sda.cf.prepare("era5.nc", ["t2m"]), window=9)
    """

    data = open_data(source, variables, dims=dims, levels=levels, fill=fill)
    names = [str(name) for name in data.data_vars if "time" in data[name].dims]
    layout = Layout.from_dataset(data, names)
    anomalies = Anomalies.fit(
        data, layout, transform=transform, seasonal=seasonal, diurnal=diurnal, fill=bool(fill)
    )
    clock, times = Clock.of(layout), data["time"].values
    found = {str(n): str(data[n].attrs["standard_name"])
             for n in names if "standard_name" in data[n].attrs}  # fmt: skip
    info: dict[str, Any] = {"standard_names": found} if found else {}
    if clock is not None:
        first, last = clock.dates([times[0], times[-1]])
        info["dates"] = f"{first} to {last} ({layout.calendar or 'standard'})"
    if anomalies.cycle is not None:
        info["seasonal"] = anomalies.cycle.harmonics
    stationary = data if anomalies.trivial else anomalies.stationary(data, fill=bool(fill))

    asked = variables is not None or dims or levels is not None or fill
    path = Path(source).is_dir() if isinstance(source, str | Path) else False
    plain = path and anomalies.trivial and not asked and native(data)

    return Prepared(stationary, layout, anomalies, info, plain)
