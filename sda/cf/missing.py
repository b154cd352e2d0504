"""Missing values: where there never is a state, the mask; where there sometimes is none, an error.

A cell that is NaN at all times is land. One that is NaN at some times only is a gap, which no prior
can be fitted on: it is refused with a count, or filled with the cell's seasonal cycle where that is
asked for by `fill="climatology"`.
"""

from collections.abc import Iterator, Sequence

import numpy as np
import xarray as xr

from dynamics.layout import MASK

FILLS = ("climatology",)
# The bytes of a variable that are read at once.
PORTION = 1 << 27


def portions(dataset: xr.Dataset, bytes_: int = PORTION) -> Iterator[slice]:
    """Slices of time, each of which fits in memory, whole chunks of the source where it has any."""

    each = sum(
        array.size // max(array.sizes.get("time", 1), 1) * 8 for array in dataset.data_vars.values()
    )
    count = max(1, bytes_ // max(each, 1))
    chunks = dataset.chunksizes.get("time", ())
    if chunks and 1 < chunks[0] < count:
        count -= count % chunks[0]
    length = dataset.sizes["time"]
    for first in range(0, length, count):
        yield slice(first, min(first + count, length))


def mask(dataset: xr.Dataset, dims: Sequence[str], fill: str | None = None) -> xr.Dataset:
    """Finds the cells without states, in one pass over the data.

    Arguments:
        dataset: The variables, with `time`, the spatial dimensions, and perhaps `member`.
        dims: The spatial dimensions.
        fill: "climatology" where gaps are allowed, since they are to be filled.

    Returns:
        The dataset, with the coordinate `mask` (one where there are states) if any cell has none.

    Raises:
        ValueError: If a variable is NaN everywhere, infinite, variables have different masks, or
            values are missing at some times only.
    """

    if fill is not None and fill not in FILLS:
        raise ValueError(f"fill must be one of {', '.join(FILLS)}, got {fill!r}")
    names = [str(name) for name in dataset.data_vars]
    seen = {name: np.zeros([dataset.sizes[d] for d in dims], dtype=np.int64) for name in names}
    total, infinite = 0, dict.fromkeys(names, 0)
    for portion in portions(dataset):
        part = dataset.isel(time=portion).load()
        for name in names:
            values = part[name]
            others = [d for d in values.dims if d not in dims]
            ordered = values.transpose(*others, *dims).values
            seen[name] += (~np.isnan(ordered)).reshape(-1, *seen[name].shape).sum(0)
            infinite[name] += int(np.isinf(ordered).sum())
            total = max(total, ordered.size // max(seen[name].size, 1))
    samples = dataset.sizes["time"] * dataset.sizes.get("member", 1)
    for name in names:
        if infinite[name]:
            raise ValueError(f"variable {name!r} has {infinite[name]} infinite values")
        if not seen[name].any():
            raise ValueError(f"variable {name!r} is missing everywhere: leave it out")
        gaps = (seen[name] > 0) & (seen[name] < samples)
        if gaps.any() and fill is None:
            cell = tuple(int(i) for i in np.argwhere(gaps)[0])
            where = ", ".join(
                f"{dim}={dataset[dim].values[i]:g}" for dim, i in zip(dims, cell, strict=True)
            )
            raise ValueError(
                f"variable {name!r} is missing now and then in {int(gaps.sum())} of "
                f"{int((seen[name] > 0).sum())} cells, the first is {where or 'the only one'} "
                f"({samples - int(seen[name][cell])} of {samples} times): leave out these times "
                f"or cells, fill them beforehand, or give fill=climatology"
            )
    first = seen[names[0]] > 0
    for name in names[1:]:
        other = seen[name] > 0
        if (other != first).any():
            raise ValueError(
                f"variables must be missing in the same cells: {names[0]!r} has states in "
                f"{int(first.sum())} cells and {name!r} in {int(other.sum())}, and they differ in "
                f"{int((other != first).sum())}: mask one by the other, or use one prior for each"
            )
    if first.all():
        return dataset
    attrs = {"units": "1", "long_name": "1 where there are states, 0 on land"}

    return dataset.assign_coords({MASK: (tuple(dims), first.astype(np.int8), attrs)})
