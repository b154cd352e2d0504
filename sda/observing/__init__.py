"""Observing systems: what stations, satellites and floats see of a truth.

    sda observe observing=stations truth=truth.zarr out=stations.parquet

Each is a generator: it knows where its instruments are, when they look, what hides the state from
them and how precise they are, and makes observations of a trajectory in the table or the gridded
form. The same seed makes the same observations.
"""

from collections.abc import Mapping
from typing import Any

import xarray as xr

from dynamics.layout import Layout

from ..observation import Observations
from .altimeter import Altimeter
from .base import Generator
from .drift import Flow
from .floats import Floats
from .geostationary import Geostationary
from .orbit import Orbit
from .sea_surface import SeaSurface
from .stations import Stations
from .surface import Surface
from .swath import Swath

GENERATORS: dict[str, type[Generator]] = {
    "stations": Stations,
    "swath": Swath,
    "altimeter": Altimeter,
    "floats": Floats,
    "geostationary": Geostationary,
    "sea_surface": SeaSurface,
}

__all__ = [
    "GENERATORS",
    "Altimeter",
    "Floats",
    "Flow",
    "Generator",
    "Geostationary",
    "Orbit",
    "SeaSurface",
    "Stations",
    "Surface",
    "Swath",
    "build",
    "generate",
]


def build(config: Mapping[str, Any]) -> Generator:
    """The observing system of a configuration: `generator` and its arguments.

    Raises:
        ValueError: If the system or an argument is unknown, or an argument is out of range.
    """

    arguments = dict(config)
    name = arguments.pop("generator", None)
    if name not in GENERATORS:
        raise ValueError(
            f"observing.generator={name} is unknown: expected one of {', '.join(GENERATORS)}"
        )
    kind = GENERATORS[name]
    expected = list(kind.__dataclass_fields__)  # type: ignore[attr-defined]
    if unknown := [key for key in arguments if key not in expected]:
        raise ValueError(
            f"observing.generator={name} knows no {', '.join(map(str, unknown))}: expected some of "
            f"{', '.join(expected)}"
        )
    return kind(**arguments)


def generate(
    config: Mapping[str, Any], truth: xr.Dataset, seed: int, layout: Layout | None = None
) -> Observations:
    """Observes a truth by the observing system of a configuration, see `build`."""
    return build(config).observe(truth, seed, layout)
