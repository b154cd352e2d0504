"""Synthetic observations of a truth, for twin experiments."""

from typing import Any

import numpy as np
import torch
import xarray as xr

from dynamics.layout import Layout
from dynamics.random import normal

from .domain import Grid
from .observations import Observations
from .operator import Bound, Operator, anchored
from .values import deviations

NOISE, LAND = 1, 2  # the keys of these purposes, see dynamics.random


def observe(
    truth: xr.Dataset,
    operator: Operator,
    std: Any,
    seed: int,
    layout: Layout | None = None,
) -> Observations:
    r"""Observes a truth with Gaussian errors, `y = H(x) + std · ε` with `ε ~ N(0, I)`.

    What depends on the values of land, outside the layout's mask, is not observed.

    Arguments:
        truth: The true trajectory, a dataset of one member.
        operator: The observation operator `H`.
        std: The standard deviation of the errors: one for all, one for each observed variable by
            its name, or an array that broadcasts to the shape of `H(x)`.
        seed: The seed of the errors.
        layout: The layout of the state (default: read off the truth).

    Raises:
        ValueError: If the truth has several members or holds NaN, a std is not positive, or the
            operator does not fit.

    Example:
        >>> obs = observe(truth.isel(member=0), Select(every=4) >> BlockAverage(8), std=0.1, seed=1)
    """

    if truth.sizes.get("member", 1) != 1:
        raise ValueError(
            f"expected a truth of one member, got {truth.sizes['member']}: select one, such as "
            f"truth.isel(member=0)"
        )
    layout = Layout.from_dataset(truth) if layout is None else layout
    time = np.atleast_1d(np.asarray(truth["time"].values, dtype=np.float64))
    bound = anchored(operator, Grid.of(layout, time)).bind(Grid.of(layout, time), torch.float64)
    states = layout.to_array(truth).astype(np.float64)
    with torch.no_grad():
        y = bound(torch.from_numpy(states))[0].numpy()
    if not np.isfinite(y).all():
        raise ValueError(
            f"the truth as observed has {np.count_nonzero(~np.isfinite(y))} values that are not "
            f"finite: does it hold NaN, or is the operator undefined there?"
        )
    y = np.where(on_land(bound, states, y, layout), np.nan, y)
    scale = deviations(std, bound.target)
    noise = normal(seed, [0], y.shape, NOISE, dtype=torch.float64)[0].numpy()

    return Observations.from_operator(operator, y + scale * noise, scale, layout, time)


def on_land(bound: Bound, states: np.ndarray, seen: np.ndarray, layout: Layout) -> np.ndarray:
    """Which values of `H(x)` depend on what lies outside the layout's mask, where no state is."""

    if layout.mask is None:
        return np.zeros(seen.shape, dtype=bool)
    # Other values there, of the size of the states, at random: differences do not cancel.
    share = normal(0, [0], states.shape, LAND, dtype=torch.float64)[0].numpy()
    size = max(float(np.abs(states).max()), 1.0)
    changed = np.where(layout.mask, states, states + size * (1 + np.abs(share)))
    with torch.no_grad():
        other = bound(torch.from_numpy(changed))[0].numpy()

    return np.asarray(~np.isclose(other, seen, rtol=1e-9, atol=1e-12 * size) | ~np.isfinite(other))
