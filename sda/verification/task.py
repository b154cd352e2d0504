"""A posterior and its truth, and how to go through them in blocks."""

from collections.abc import Hashable, Iterator
from dataclasses import dataclass
from typing import Any

import numpy as np
import xarray as xr
from numpy.typing import NDArray

# Values per sorting, such that its temporaries stay small beside the block that is loaded.
FRAME_VALUES = 2**22

Entry = tuple[Any, ...]


@dataclass
class Task:
    """What is verified: a posterior, its truth, and how to go through them."""

    posterior: xr.Dataset
    truth: xr.Dataset
    names: tuple[str, ...]
    one_unit: bool
    levels: tuple[float, ...]
    seed: int
    memory: int

    def dims(self, name: str) -> tuple[Hashable, ...]:
        """The spatial dimensions of a variable."""
        return tuple(d for d in self.posterior[name].dims if d not in ("member", "time"))

    def truth_array(self, name: str, frames: slice = slice(None)) -> NDArray:
        """The truth of a variable, with shape `(time, *space)`."""
        return self.truth[name].isel(time=frames).transpose("time", *self.dims(name)).values

    def arrays(self, block: xr.Dataset) -> dict[str, NDArray]:
        """The variables of a part of the posterior, each with shape `(member, time, *space)`."""

        block = block.compute()
        return {n: block[n].transpose("member", "time", *self.dims(n)).values for n in self.names}

    def member_blocks(self, members: NDArray) -> Iterator[tuple[NDArray, dict[str, NDArray]]]:
        """Goes through members, all frames of each."""

        count = max(
            1, self.memory * self.posterior.sizes["member"] // max(1, self.posterior.nbytes)
        )
        for start in range(0, len(members), count):
            chosen = members[start : start + count]
            yield chosen, self.arrays(self.posterior.isel(member=chosen))

    def frame_blocks(self, members: NDArray) -> Iterator[tuple[int, dict[str, NDArray]]]:
        """Goes through frames, all members of each, in parts that do not depend on memory."""

        length = self.posterior.sizes["time"]
        values = sum(self.posterior[n].size for n in self.names) // length
        part = max(1, FRAME_VALUES // max(1, values))
        count = self.memory * length // max(1, self.posterior.nbytes)
        count = max(part, count - count % part)
        whole = len(members) == self.posterior.sizes["member"]
        for start in range(0, length, count):
            block = self.posterior.isel(time=slice(start, start + count))
            arrays = self.arrays(block if whole else block.isel(member=members))
            for first in range(start, min(length, start + count), part):
                yield (
                    first,
                    {n: v[:, first - start : first - start + part] for n, v in arrays.items()},
                )

    def failed(self) -> NDArray[np.bool_]:
        """Whether each member has a value that is not finite where the truth is."""

        failed = np.zeros(self.posterior.sizes["member"], dtype=bool)
        seen = {n: np.isfinite(self.truth_array(n)) for n in self.names}
        for members, arrays in self.member_blocks(np.arange(len(failed))):
            for name, x in arrays.items():
                bad = ~np.isfinite(x) & seen[name]
                failed[members] |= bad.any(axis=tuple(range(1, x.ndim)))

        return failed


def divide(a: NDArray, b: NDArray) -> NDArray:
    """Divides, and gives NaN where there is nothing to divide by."""
    return np.asarray(a) / np.where(np.asarray(b) > 0, b, np.nan)
