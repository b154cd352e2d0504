"""Posteriors kept in memory, with the interface of those that are streamed."""

from collections.abc import Callable, Mapping
from typing import Any

import numpy as np
import xarray as xr

from dynamics.layout import Layout

from .attributes import failed, initial_attributes, status
from .blocks import split


class PosteriorMemory:
    """Collects the member blocks of a posterior in memory, with the interface of a writer.

    Arguments:
        layout: The layout of the states.
        time: The time coordinate, with shape `(time)`.
        members: The number of members.
        block: The number of members per block.
        settings: What decides the ensemble, as plain JSON types.
        attrs: Further global attributes.
        dtype: The type of the variables.
    """

    def __init__(
        self,
        layout: Layout,
        time: np.ndarray,
        members: int,
        block: int,
        settings: Mapping[str, Any],
        attrs: Mapping[str, Any],
        dtype: str = "float32",
    ) -> None:
        self.layout, self.time = layout, time
        self.blocks = split(members, block)
        self.unfinished = list(range(len(self.blocks)))
        self.attrs = initial_attributes(layout, settings, attrs, members, block)
        self.values = np.full((members, len(time), *layout.shape), np.nan, dtype=dtype)

    @property
    def failures(self) -> dict[int, str]:
        """What happened to each member that failed, by its index."""
        return dict(zip(self.attrs["failed_members"], self.attrs["failures"], strict=True))

    def put(
        self, k: int, trajectories: np.ndarray, failures: Mapping[int, str] | None = None
    ) -> None:
        """Keeps a block, see `PosteriorWriter.put`."""

        self.values[self.blocks[k].start : self.blocks[k].stop] = trajectories
        self.attrs |= failed(self.failures | dict(failures or {}))

    def share(self, guided: Any, compute: Callable[[], None]) -> None:
        """Computes what the members share, see `PosteriorWriter.share`."""
        compute()

    def dataset(self) -> xr.Dataset:
        """The posterior."""

        members = len(self.values)
        self.attrs["finished_blocks"] = list(range(len(self.blocks)))
        self.attrs["status"] = status(members, members, len(self.attrs["failed_members"]))
        return self.layout.to_dataset(self.values, time=self.time, attrs=self.attrs)

    def __enter__(self) -> "PosteriorMemory":
        return self

    def __exit__(self, *error: object) -> None:
        pass
