"""Training windows, drawn at random from a store of trajectories.

A batch is a function of `(seed, index)` alone: training that was interrupted goes on with the very
batches that it would have seen. The store is read into memory once where it fits the budget;
otherwise each batch reads its windows from it.
"""

from collections import deque
from collections.abc import Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
import xarray as xr
from torch import Tensor
from torch.utils.data import IterableDataset

from dynamics.layout import Layout

from . import store
from .climatology import Climatology
from .symmetry import Symmetry, augment
from .transfer import send


@dataclass(frozen=True)
class NoiseLevels:
    """The distribution of noise levels in training.

    Arguments:
        core: The range in which the network has something to learn, log-uniform.
        tail: The whole range, log-uniform.
        share: The share of the samples that come from the core.

    Raises:
        ValueError: If a range is not increasing and positive, or the share not in [0, 1].
    """

    core: tuple[float, float] = (0.01, 2.0)
    tail: tuple[float, float] = (0.008, 100.0)
    share: float = 0.8

    def __post_init__(self) -> None:
        for name, (low, high) in (("core", self.core), ("tail", self.tail)):
            if not 0 < low < high:
                raise ValueError(
                    f"{name} must be an increasing range of positive levels, got {(low, high)}"
                )
        if not 0 <= self.share <= 1:
            raise ValueError(f"share must be between 0 and 1, got {self.share}")

    def draw(self, count: int, generator: np.random.Generator) -> np.ndarray:
        """Draws `count` noise levels."""

        low, high = np.where(
            generator.random(count)[:, None] < self.share, np.log(self.core), np.log(self.tail)
        ).T

        return np.exp(low + (high - low) * generator.random(count))


class Windows:
    """Random access to the windows of a dataset of trajectories.

    As many members as the memory holds are kept there, all of them or the first ones. Windows of
    the others are read when they are drawn: from a Zarr store directly, which takes a third of the
    processor time that a task graph for each window takes.

    Arguments:
        dataset: A dataset as `Layout.to_dataset` makes it, or the path of a store.
        layout: The layout of the states.
        window: The number of frames.
        members: The members to draw from.
        memory: The bytes that the members in memory may take.
        device: Where the windows are wanted; members that are kept in memory are kept there.

    Raises:
        ValueError: If the trajectories are shorter than the window, or there are no members.
    """

    def __init__(
        self,
        dataset: xr.Dataset | str | Path,
        layout: Layout,
        window: int,
        members: Sequence[int] | np.ndarray,
        memory: int = 4 << 30,
        device: torch.device | str = "cpu",
    ) -> None:
        source = None if isinstance(dataset, xr.Dataset) else Path(dataset)
        dataset = open_dataset(dataset)
        layout.check(dataset)
        if dataset.sizes["time"] < window:
            raise ValueError(
                f"the window has {window} frames, but the trajectories only {dataset.sizes['time']}"
            )
        if not len(members):
            raise ValueError("there are no members to draw windows from")
        self.layout, self.window, self.device = layout, window, torch.device(device)
        self.members = np.asarray(members)
        self.starts = dataset.sizes["time"] - window + 1
        self.dataset = dataset[list(layout.variables)]
        each = dataset.sizes["time"] * int(np.prod(layout.shape)) * 4
        kept = min(len(members), memory // each)
        self.held: Tensor | None = None
        if kept:
            array = layout.to_array(self.dataset.isel(member=self.members[:kept]))
            self.held = torch.from_numpy(array.astype(np.float32, copy=False)).to(self.device)
        self.complete = kept == len(members)
        self.arrays = None if self.complete else stored_arrays(source, self.dataset, layout)

    def read(self, members: np.ndarray, starts: np.ndarray) -> Tensor:
        """Reads windows `(B, window, channel, *space)`, by position among `members` and in time."""

        if self.held is None:
            return self._fetch(members, starts)
        inside = members < len(self.held)
        near, far = np.flatnonzero(inside), np.flatnonzero(~inside)
        frames = send(torch.from_numpy(starts[near, None] + np.arange(self.window)), self.device)
        found = self.held[send(torch.from_numpy(members[near, None]), self.device), frames]
        if not len(far):
            return found
        both = torch.cat((found, self._fetch(members[far], starts[far])))
        order = np.argsort(np.concatenate((near, far)))

        return both[send(torch.from_numpy(order), self.device)]

    def _fetch(self, members: np.ndarray, starts: np.ndarray) -> Tensor:
        """Windows that are not in memory."""

        windows = []
        for m, start in zip(self.members[members].tolist(), starts.tolist(), strict=True):
            time = slice(start, start + self.window)
            if self.arrays is None:
                part = self.dataset.isel(member=[m], time=time)
                windows.append(self.layout.to_array(part)[0])
            else:
                windows.append(np.stack([array[m, time] for array in self.arrays], axis=1))

        return send(torch.from_numpy(np.stack(windows).astype(np.float32)), self.device)

    def draw(self, count: int, generator: np.random.Generator) -> Tensor:
        """Draws `count` windows uniformly."""

        members = generator.integers(len(self.members), size=count)

        return self.read(members, generator.integers(self.starts, size=count))


def stored_arrays(source: Path | None, dataset: xr.Dataset, layout: Layout) -> list[Any] | None:
    """The Zarr arrays of a store, where they hold what xarray makes of them; else None."""

    import zarr

    if source is None or not source.is_dir():
        return None
    group: Any = zarr.open_group(source, mode="r")
    arrays = []
    for name in layout.variables:
        coded = {"scale_factor", "add_offset", "missing_value"} & {*dataset[name].encoding}
        if coded or dataset[name].dims != ("member", "time", *layout.dims):
            return None
        arrays.append(group[name])

    return arrays


class Batches(IterableDataset):
    """Endless training batches `(x, noise, s)`, each a function of the seed and its index.

    Windows may have channels beside those of the climatology, which are given and get no noise.

    Arguments:
        windows: The windows.
        climatology: Normalises them.
        batch: The number of windows in a batch.
        seed: The seed.
        start: The index of the first batch.
        levels: The distribution of noise levels.
        symmetries: Symmetries that augment the windows.
        rank: The index of this process.
        world: The number of processes; each takes its share of every batch.
    """

    def __init__(
        self,
        windows: Windows,
        climatology: Climatology,
        batch: int,
        seed: int,
        start: int = 0,
        levels: NoiseLevels | None = None,
        symmetries: Sequence[Symmetry] = (),
        rank: int = 0,
        world: int = 1,
    ) -> None:
        if batch < 1 or batch % world:
            raise ValueError(
                f"batch must be a positive multiple of the {world} processes, got {batch}"
            )
        self.windows, self.climatology, self.batch, self.seed = windows, climatology, batch, seed
        self.start, self.levels = start, levels or NoiseLevels()
        self.symmetries, self.rank, self.world = tuple(symmetries), rank, world

    def __getitem__(self, index: int) -> tuple[Tensor, Tensor, Tensor]:
        """Returns batch `index`: normalised windows, standard normal noise, noise levels."""

        generator = np.random.Generator(
            np.random.Philox(np.random.SeedSequence((self.seed, index)))
        )
        members = generator.integers(len(self.windows.members), size=self.batch)
        starts = generator.integers(self.windows.starts, size=self.batch)
        s = self.levels.draw(self.batch, generator)
        keys = generator.integers(2**63, size=self.batch)

        share = slice(self.rank, None, self.world)
        x = self.windows.read(members[share], starts[share])
        own = [np.random.Generator(np.random.Philox(key)) for key in keys[share]]
        if self.symmetries:
            x = torch.cat(
                [
                    augment(x[i : i + 1], self.windows.layout, self.symmetries, g)
                    for i, g in enumerate(own)
                ]
            )
        # What the states are given, see `sda.context`, is normal as it is and without noise.
        count = len(self.climatology.scale)
        states, given = self.climatology.normalise(x[:, :, :count]), x[:, :, count:]
        noise = np.stack([g.standard_normal(states.shape[1:], dtype=np.float32) for g in own])
        x = torch.cat((states, given), dim=2) if given.shape[2] else states

        return (
            x,
            send(torch.from_numpy(noise), x.device),
            send(torch.from_numpy(s[share].astype(np.float32)), x.device),
        )

    def __iter__(self) -> Iterator[tuple[Tensor, Tensor, Tensor]]:
        index = self.start
        while True:
            yield self[index]
            index += 1


class Prefetch(IterableDataset):
    """Makes the next batches beside the computation, in the same order.

    On a GPU they are copied there from pinned memory, on a stream of their own.

    Arguments:
        batches: The batches.
        depth: The number of batches made ahead.
        workers: The number of threads that make them.
    """

    def __init__(self, batches: Batches, depth: int = 4, workers: int = 2) -> None:
        self.batches, self.depth, self.workers = batches, depth, workers

    def __iter__(self) -> Iterator[tuple[Tensor, Tensor, Tensor]]:
        device = self.batches.windows.device
        stream = torch.cuda.Stream(device) if device.type == "cuda" else None

        def make(index: int) -> tuple[tuple[Tensor, Tensor, Tensor], "torch.cuda.Event | None"]:
            if stream is None:
                return self.batches[index], None
            with torch.cuda.stream(stream):
                return self.batches[index], stream.record_event()

        pool = ThreadPoolExecutor(self.workers, thread_name_prefix="training-batches")
        ahead: deque[Future] = deque()
        index = self.batches.start
        try:
            while True:
                while len(ahead) < self.depth:
                    ahead.append(pool.submit(make, index))
                    index += 1
                batch, ready = ahead.popleft().result()
                if ready is not None:
                    current = torch.cuda.current_stream(device)
                    current.wait_event(ready)
                    for tensor in batch:
                        tensor.record_stream(current)
                yield batch
        finally:
            pool.shutdown(wait=False, cancel_futures=True)


def open_dataset(source: xr.Dataset | str | Path) -> xr.Dataset:
    """Opens a dataset lazily, see `sda.store.open_dataset`; one that is open already passes.

    Raises:
        FileNotFoundError: If there is nothing at the path.
        ValueError: If it is no Zarr store and no NetCDF file.
    """
    return source if isinstance(source, xr.Dataset) else store.open_dataset(source)
