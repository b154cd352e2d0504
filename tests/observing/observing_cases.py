"""A layout on latitude and longitude, one on a plane in km, and truths on them."""

import numpy as np
import torch
import xarray as xr

from dynamics.layout import Layout
from sda.observation import Grid, Observations


def globe(mask: np.ndarray | None = None) -> Layout:
    return Layout(
        ("u", "v", "h"),
        6.0,
        {"lat": -87.1875 + 5.625 * np.arange(32), "lon": 5.625 * np.arange(64)},
        {"lon": 360.0},
        {"lat": "degrees_north", "lon": "degrees_east", "u": "m s-1", "v": "m s-1", "h": "m"},
        time_units="hours",
        mask=mask,
    )


def ocean(mask: np.ndarray | None = None) -> Layout:
    side = 1000.0 / 32 * np.arange(32)
    return Layout(
        ("psi1", "psi2"),
        1.0,
        {"y": side, "x": side},
        {"y": 1000.0, "x": 1000.0},
        {"x": "km", "y": "km", "psi1": "m2 s-1", "psi2": "m2 s-1"},
        time_units="days",
        mask=mask,
    )


def truth_on(layout: Layout, length: int = 9, scale: float = 1.0) -> xr.Dataset:
    """A truth that is linear in time between states of random numbers."""

    x = scale * np.random.default_rng(7).standard_normal((1, length, *layout.shape))
    return layout.to_dataset(x).isel(member=0)


def exact(observations: Observations, truth: xr.Dataset) -> np.ndarray:
    """The values without errors, of all of the first set, seen or not."""

    layout = Layout.from_dataset(truth)
    x = torch.from_numpy(layout.to_array(truth))
    operator = observations.sets[0].operator
    bound = operator.bind(Grid.of(layout, truth["time"].values), torch.float64)

    return bound(x)[0].numpy()
