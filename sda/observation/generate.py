"""Synthetic observations of a truth, for twin experiments."""

from typing import Any

import numpy as np
import torch
import xarray as xr

from dynamics.layout import Layout
from dynamics.random import normal

from .domain import Grid
from .observations import Observations, errors
from .operator import Operator, anchored

NOISE = 1  # the key of this purpose, see dynamics.random


def observe(
    truth: xr.Dataset,
    operator: Operator,
    std: Any,
    seed: int,
    layout: Layout | None = None,
) -> Observations:
    r"""Observes a truth with Gaussian errors, `y = H(x) + std · ε` with `ε ~ N(0, I)`.

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
    with torch.no_grad():
        y = bound(torch.from_numpy(layout.to_array(truth)).double())[0].numpy()
    if not np.isfinite(y).all():
        raise ValueError(
            f"the truth as observed has {np.count_nonzero(~np.isfinite(y))} values that are not "
            f"finite: does it hold NaN, or is the operator undefined there?"
        )
    scale = errors(std, bound.target)
    noise = normal(seed, [0], y.shape, NOISE, dtype=torch.float64)[0].numpy()

    return Observations.from_operator(operator, y + scale * noise, scale, layout, time)
