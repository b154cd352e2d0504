"""One long series as several trajectories: the climatology and a network are fitted to members.

A reanalysis is a single member. Cut into blocks of equal length it is several, of which the last is
held out of training, a gap of one window away from the others. Only the windows across the cuts
are lost. Where anomalies are stationary, blocks need no dates.
"""

import math

import numpy as np
import xarray as xr

# The bytes of a block, in double precision, that is read at once.
BLOCK = 1 << 29


def cut(dataset: xr.Dataset, count: int, gap: int = 0) -> xr.Dataset:
    """Cuts a single trajectory into blocks of equal length, as members.

    Arguments:
        dataset: A trajectory, without `member` or with one.
        count: The number of blocks.
        gap: The number of states left out before the last block.

    Returns:
        The blocks, lazily; their times are those of the first. States that make up no whole block
        are left out at the start.
    """

    dataset = dataset.isel(member=0, drop=True) if "member" in dataset.dims else dataset
    length = (dataset.sizes["time"] - gap) // count
    first = dataset.sizes["time"] - gap - count * length
    parts = []
    for i in range(count):
        start = first + i * length + (gap if i == count - 1 else 0)
        part = dataset.isel(time=slice(start, start + length))
        parts.append(part.assign_coords(time=dataset["time"][:length]))
    index = xr.IndexVariable("member", np.arange(count), {"standard_name": "realization"})

    return xr.concat(
        parts, dim=index, data_vars="all", coords="minimal", compat="override", join="override",
        combine_attrs="override",
    )  # fmt: skip


def for_training(dataset: xr.Dataset, window: int, held_out: float) -> xr.Dataset:
    """Members to train on and to hold out, of which a single trajectory is cut into several.

    Raises:
        ValueError: If the trajectory is too short for a window to train on and one to hold out.
    """

    if dataset.sizes.get("member", 1) > 1:
        return dataset
    states = dataset.sizes["time"]
    most = (states - window) // window
    if most < 2:
        raise ValueError(
            f"training on one trajectory needs at least {3 * window} states, a window of {window} "
            f"to train on, one to hold out and a gap between them, got {states}: give more data, a "
            f"shorter training.window, or network=none for the Gaussian prior"
        )
    wanted = max(round(1 / held_out), math.ceil(size(dataset) / BLOCK), 2)

    return cut(dataset, min(wanted, most), gap=window)


def for_fitting(dataset: xr.Dataset, window: int) -> xr.Dataset:
    """Members that fit in memory one by one, without a window lost where one trajectory does."""

    count = math.ceil(size(dataset) / BLOCK)
    if dataset.sizes.get("member", 1) > 1 or count < 2:
        return dataset

    return cut(dataset, max(1, min(count, dataset.sizes["time"] // max(2 * window, 1))))


def size(dataset: xr.Dataset) -> int:
    """The bytes of a dataset's variables in double precision."""
    return sum(8 * array.size for array in dataset.data_vars.values())
