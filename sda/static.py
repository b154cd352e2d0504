"""Constant fields that a network sees: latitudes, coastlines, mountains."""

from collections.abc import Callable, Sequence

import numpy as np
import torch
import xarray as xr
from torch import Tensor

from dynamics.layout import Layout

# Variables of a dataset that a network sees without being asked to.
RELIEF = ("orography", "topography", "bathymetry")


def latitudes(layout: Layout, function: Callable[[np.ndarray], np.ndarray]) -> np.ndarray:
    """A function of latitude, with shape `(*space)`."""

    if not layout.spherical:
        raise ValueError(
            f"only fields of latitude and longitude (units degrees_north, degrees_east) have "
            f"latitudes, got dimensions {layout.dims}"
        )
    values = function(np.deg2rad(layout.coords[layout.dims[-2]]))

    return np.broadcast_to(values[:, None], layout.shape[1:])


def sea(layout: Layout) -> np.ndarray:
    """One where there are states, zero on land."""

    if layout.mask is None:
        raise ValueError("there is no land: the layout has no mask")

    return layout.mask.astype(np.float64)


FEATURES: dict[str, Callable[[Layout], np.ndarray]] = {
    "sin_latitude": lambda layout: latitudes(layout, np.sin),
    "cos_latitude": lambda layout: latitudes(layout, np.cos),
    "mask": sea,
}


def default_names(dataset: xr.Dataset, layout: Layout) -> list[str]:
    """What a network sees by default: sine and cosine of latitude, the mask, and the relief.

    The Coriolis parameter is a multiple of the sine. On a plane without a coastline there is none.
    """

    names = ["sin_latitude", "cos_latitude"] if layout.spherical else []
    names += ["mask"] if layout.mask is not None else []

    return names + [n for n in RELIEF if n in dataset and set(dataset[n].dims) == set(layout.dims)]


def static_fields(
    dataset: xr.Dataset, names: Sequence[str] | None, layout: Layout
) -> Tensor | None:
    """Stacks constant fields, scaled to unit root mean square, `(k, *space)`.

    Arguments:
        dataset: The dataset, which may have variables of these names.
        names: Variables without time, or any of `FEATURES` (default: see `default_names`).
        layout: The layout of the states.

    Raises:
        ValueError: If a variable is missing, depends on time, is not finite, or is not on the grid.
    """

    fields = []
    for name in default_names(dataset, layout) if names is None else names:
        if name in FEATURES and name not in dataset.data_vars:
            values = torch.from_numpy(FEATURES[name](layout).copy()).float()
        else:
            values = _variable(dataset, name, layout)
        fields.append(values / values.square().mean().sqrt().clamp(min=1e-12))

    return torch.stack(fields) if fields else None


def _variable(dataset: xr.Dataset, name: str, layout: Layout) -> Tensor:
    if name not in dataset:
        raise ValueError(
            f"static variable {name!r} is not among {sorted(map(str, dataset.variables))} and "
            f"{sorted(FEATURES)}"
        )
    if set(dataset[name].dims) != set(layout.dims):
        raise ValueError(
            f"static variable {name!r} must have the dimensions {layout.dims}, got "
            f"{dataset[name].dims}"
        )
    values = torch.from_numpy(dataset[name].transpose(*layout.dims).values).float()
    if layout.mask is not None:
        values = torch.where(torch.from_numpy(layout.mask), values, 0.0)
    if not torch.isfinite(values).all():
        raise ValueError(f"static variable {name!r} holds NaN or infinite values")

    return values
