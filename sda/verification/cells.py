r"""How much each cell of a grid counts: its area, and nothing on land.

Averages over space are those of `dynamics.Layout.area`,

$$ \langle f \rangle = \sum_j w_j f_j \Big/ \sum_j w_j, $$

with $w_j$ the area of a cell: about cos(latitude) where a grid ends in latitude and longitude, by
the units of its coordinates, and the same for all cells of a plane. A dataset says by its
coordinate `mask` where there is land.
"""

from collections.abc import Hashable, Sequence

import numpy as np
import xarray as xr
from numpy.typing import NDArray

from dynamics.layout import LATITUDE, LONGITUDE, MASK, zonal_weights


def is_spherical(dataset: xr.Dataset | xr.DataArray, dims: Sequence[Hashable]) -> bool:
    """Whether the last two dimensions are latitude and longitude, by their units."""

    units = [str(dataset[dim].attrs.get("units", "1")) for dim in dims[-2:]]

    return len(units) == 2 and units[0] in LATITUDE and units[1] in LONGITUDE


def cell_mask(
    dataset: xr.Dataset | xr.DataArray, dims: Sequence[Hashable]
) -> NDArray[np.bool_] | None:
    """Where there are states, with the shape of the dimensions: false on land. None: everywhere."""

    if MASK not in dataset.coords or not set(dataset[MASK].dims) <= set(dims):
        return None
    mask = dataset[MASK].expand_dims([d for d in dims if d not in dataset[MASK].dims])
    there = mask.transpose(*dims).values.astype(bool)
    there = np.broadcast_to(there, tuple(dataset.sizes[d] for d in dims))

    return None if there.all() else there


def cell_weights(
    dataset: xr.Dataset | xr.DataArray, dims: Sequence[Hashable]
) -> NDArray[np.float64]:
    """The weights of the cells, with mean one and the shape of the dimensions; zero on land."""

    weights = np.ones(tuple(dataset.sizes[d] for d in dims))
    if is_spherical(dataset, dims):
        latitude = np.asarray(dataset[dims[-2]].values, dtype=np.float64)
        order = np.argsort(latitude)
        rows = np.empty_like(latitude)
        rows[order] = zonal_weights(latitude[order])
        weights = weights * rows[:, None]
    mask = cell_mask(dataset, dims)

    return unit_mean(weights if mask is None else np.where(mask, weights, 0.0))


def unit_mean(weights: NDArray[np.float64]) -> NDArray[np.float64]:
    """Scales weights to a mean of one over those that are not zero."""

    total = float(weights.sum())

    return weights * (np.count_nonzero(weights) / total) if total > 0 else weights


def hidden(dataset: xr.Dataset, masked: xr.Dataset) -> xr.Dataset:
    """A dataset without its values where another one has land, as lazy as it was."""

    if MASK not in masked.coords:
        return dataset
    mask = masked[MASK].astype(bool).drop_vars(MASK)
    variables = {
        name: values.where(mask).transpose(*values.dims)
        for name, values in dataset.data_vars.items()
        if set(mask.dims) <= set(values.dims)
    }

    return dataset.assign(variables)
