"""What imagers share: values on the grid of the state, NaN where nothing is seen."""

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import xarray as xr

from dynamics.layout import Layout

from ..observation import Compose, Magnitude, Mask, Operator, Select, Subsample
from .base import Plan
from .clouds import Clouds
from .surface import Surface

QUANTITIES = ("speed",)


def image(
    truth: xr.Dataset,
    layout: Layout,
    times: np.ndarray,
    names: Sequence[str],
    quantity: str | None,
    std: Any,
    subsample: int,
    view: np.ndarray,
    clouds: Clouds,
    generator: np.random.Generator,
) -> Plan:
    """The plan of an imager.

    Arguments:
        truth: The truth.
        layout: Its layout.
        times: The times of the images.
        names: The variables that are seen, or the components of the quantity.
        quantity: `speed`, the size of the vector of the variables (None: the variables).
        std: The standard deviation of the errors, one for all or one for each by its name.
        subsample: Every n-th grid point is seen.
        view: Whether the instrument looks at a grid point, with shape `(*space)`.
        clouds: What hides it.
        generator: The source of the clouds.

    Raises:
        ValueError: If nothing is seen.
    """

    surface, every = Surface(layout), slice(None, None, subsample)
    grid = surface.grid()[every, every]
    hidden = clouds.hide(generator, grid[None], times[:, None, None], truth, layout)
    seen = ~hidden & view[every, every]
    if layout.mask is not None:
        seen &= layout.mask[every, every]
    if not seen.any():
        raise ValueError(
            f"nothing is seen in {len(times)} images: all grid points are under clouds, on land or "
            f"out of view"
        )
    parts: list[Operator] = [Select(list(names), times)]
    found = list(names)
    if quantity is not None:
        parts.append(Magnitude(found, quantity))
        found = [quantity]
    if subsample > 1:
        parts.append(Subsample(subsample))
    parts.append(Mask(seen, ("time", *layout.dims)))
    if isinstance(std, Mapping):
        if missing := [name for name in found if name not in std]:
            raise ValueError(f"std names {list(std)}, but not the observed {missing}")
        std = {name: float(std[name]) for name in found}

    return Plan(Compose(*parts), std)


def check_quantity(quantity: str | None) -> None:
    """Raises a `ValueError` unless a quantity is known."""

    if quantity is not None and quantity not in QUANTITIES:
        raise ValueError(
            f"quantity must be one of {', '.join(QUANTITIES)} or none, got {quantity!r}"
        )
