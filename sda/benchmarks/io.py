"""Reading and writing beside computation: training windows, and blocks of a posterior.

Reading is compared with what a training loop consumes; writing with a plain file of the same bytes
on the same disk, forced to disk as the posterior is. Pieces that are compared take turns, so that
what disturbs the machine disturbs both.
"""

import os
import statistics
import time
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, TypeVar

import numpy as np
import torch

from dynamics.layout import Layout

from ..climatology import Climatology
from ..data import Batches, Prefetch, Windows, open_dataset
from ..prior import Prior
from ..store import PosteriorWriter
from ..training import TrainingOptions, split_members
from .training import bare_loop

T = TypeVar("T")
MIB = 2**20


class Waiting(Iterator[T]):
    """An iterator that knows how long its user has waited for it.

    Attributes:
        seconds: The time spent in it.
    """

    def __init__(self, source: Iterator[T]) -> None:
        self.source, self.seconds = source, 0.0

    def __next__(self) -> T:
        start = time.perf_counter()
        item = next(self.source)
        self.seconds += time.perf_counter() - start

        return item


@dataclass
class Reading:
    """Training windows from a store, in windows per second.

    Attributes:
        share: The share of the members that is not in memory.
        read: What the background threads deliver when nothing else runs.
        per_core: The same per second of processor time.
        consumed: What a training loop takes from memory.
        beside: What it takes from the background threads, in turns with the former.
        waited: The share of the latter's time that it waits for a batch.
    """

    share: float
    read: float
    per_core: float
    consumed: float
    beside: float
    waited: float

    def __str__(self) -> str:
        return (
            "| windows / s | read in the background | read per core | consumed by training, from "
            "memory | training while reading | of it waiting |\n|---" + "|---" * 5 + "|\n"
            f"| {100 * self.share:.0f} % of the members not in memory | {self.read:.0f} | "
            f"{self.per_core:.0f} | {self.consumed:.1f} | {self.beside:.1f} | "
            f"{100 * self.waited:.1f} % |"
        )


def reading(
    store: str | Path,
    options: TrainingOptions,
    memory: int,
    turns: int = 6,
    steps: int = 4,
) -> Reading:
    """Measures whether training windows are read as fast as a network consumes them.

    Arguments:
        store: The path of a Zarr store of trajectories.
        options: The options of training.
        memory: The bytes that are kept in memory.
        turns: The number of turns.
        steps: The number of training steps, and of batches read, in a turn.

    Raises:
        ValueError: If all of the store is kept in memory.
    """

    dataset = open_dataset(store)
    layout = Layout.from_dataset(dataset)
    members, _ = split_members(dataset.sizes["member"], options.held_out)
    windows = Windows(store, layout, options.window, members, memory)
    if windows.complete:
        raise ValueError(f"all of {str(store)!r} fits in {memory} bytes: give less memory")
    climatology = Climatology.fit(
        dataset.isel(member=members), options.climatology_window or options.window, layout=layout
    )
    batches = Batches(windows, climatology, options.batch, options.seed, levels=options.levels)
    loop, ahead = bare_loop(store, options), Waiting(iter(Prefetch(batches)))
    loop(1, ahead)
    read, processor, consumed, beside, waited = [], [], [], [], []
    for _ in range(turns):
        alone = iter(Prefetch(batches, depth=2))
        next(alone)
        start, used = time.perf_counter(), time.process_time()
        for _batch in range(steps):
            next(alone)
        read.append(time.perf_counter() - start)
        processor.append(time.process_time() - used)
        alone.close()  # type: ignore[attr-defined]

        start = time.perf_counter()
        loop(steps)
        consumed.append(time.perf_counter() - start)

        start, ahead.seconds = time.perf_counter(), 0.0
        loop(steps, ahead)
        beside.append(time.perf_counter() - start)
        waited.append(ahead.seconds)
    held = 0 if windows.held is None else len(windows.held)

    def rate(times: list[float]) -> float:
        return steps * options.batch / statistics.median(times)

    return Reading(
        1 - held / len(members),
        rate(read),
        rate(processor),
        rate(consumed),
        rate(beside),
        sum(waited) / sum(beside),
    )


@dataclass
class Writing:
    """Seconds to write a block of a posterior and force it to disk.

    Attributes:
        size: The bytes of a block.
        plain: In a plain file, one time for each turn.
        posterior: By the posterior's writer.
    """

    size: int
    plain: list[float]
    posterior: list[float]

    def __str__(self) -> str:
        ratios = np.array(self.plain) / np.array(self.posterior)
        low, middle, high = (100 * q for q in np.quantile(ratios, [0.25, 0.5, 0.75]))
        fastest = 100 * min(self.plain) / min(self.posterior)
        speed = {
            name: f"{self.size / MIB / statistics.median(t):.0f} | {self.size / MIB / min(t):.0f}"
            for name, t in (("plain", self.plain), ("posterior", self.posterior))
        }
        return (
            f"| blocks of {self.size / MIB:.0f} MiB | MiB / s, median turn | fastest turn | of the "
            f"plain file's, median of {len(ratios)} pairs (quartiles) | fastest over fastest |\n"
            f"|---|---|---|---|---|\n| plain file | {speed['plain']} | 100 % | 100 % |\n"
            f"| posterior | {speed['posterior']} | {middle:.0f} % ({low:.0f} to {high:.0f} %) | "
            f"{fastest:.0f} % |"
        )


def writing(
    prior: Prior, folder: str | Path, length: int = 32, members: int = 128, turns: int = 12
) -> Writing:
    """Compares the posterior's writer with a plain file: the same bytes, on disk in the end.

    Arguments:
        prior: The prior, from whose climatology the members are drawn.
        folder: An empty folder on the disk.
        length: The number of states.
        members: The members of a block.
        turns: The number of turns; one more before them warms up.
    """

    folder = Path(folder)
    block = draw(prior, length, members)
    times: dict[str, list[float]] = {"plain": [], "posterior": []}
    layout, count = prior.layout, members * (turns + 1)
    with PosteriorWriter(
        folder / "posterior.zarr", layout, layout.times(length), count, members, {}, {}
    ) as writer:
        for k in range(turns + 1):
            start = time.perf_counter()
            plain(folder / f"plain-{k}", block)
            times["plain"].append(time.perf_counter() - start)
            (folder / f"plain-{k}").unlink()
            start = time.perf_counter()
            writer.put(k, block)
            writer.wait()
            times["posterior"].append(time.perf_counter() - start)

    return Writing(block.nbytes, times["plain"][1:], times["posterior"][1:])


def draw(prior: Prior, length: int, members: int) -> np.ndarray:
    """Members of a climatology in physical units, `(member, time, channel, *space)`."""

    covariance = prior.covariance(length)
    noise = torch.randn(min(members, 16), *covariance.shape)
    few = prior.climatology.denormalise(covariance.sample(noise)).numpy()

    return np.ascontiguousarray(np.resize(few, (members, *few.shape[1:])))


def plain(path: Path, block: np.ndarray) -> None:
    """Writes the bytes of an array to a file, and forces it and its entry to disk."""

    with path.open("wb", buffering=0) as file:
        left = block.data.cast("B")
        while left:
            left = left[file.write(left) :]
        os.fsync(file.fileno())
    handle = os.open(path.parent, os.O_RDONLY)
    try:
        os.fsync(handle)
    finally:
        os.close(handle)


@dataclass
class Overlap:
    """How long sampling waits for the disk.

    Attributes:
        sampled: The seconds of sampling a block, one for each block.
        waited: The seconds in which the sampler waits to hand a block over.
    """

    sampled: list[float]
    waited: list[float]

    def __str__(self) -> str:
        share = 100 * sum(self.waited) / (sum(self.sampled) + sum(self.waited))
        return (
            f"| blocks | sampling, s | waiting in `put`, longest, ms | of all time |\n"
            f"|---|---|---|---|\n| {len(self.sampled)} | {sum(self.sampled):.1f} | "
            f"{1e3 * max(self.waited):.2f} | {share:.2f} % |"
        )


def overlap(
    prior: Prior,
    observations: Any,
    times: Sequence[float],
    folder: str | Path,
    blocks: int = 4,
    members: int = 4,
    **options: Any,
) -> Overlap:
    """Samples a posterior block by block, as `sda.assimilate` does, and measures its waits.

    Arguments:
        prior: The prior.
        observations: The observations.
        times: The times of the trajectory.
        folder: An empty folder on the disk.
        blocks: The number of blocks.
        members: The members of a block.
        options: Options of `sda.sampling.sample`.
    """

    from ..guidance import guide
    from ..sampling import sample

    layout, climatology = prior.layout, prior.climatology
    likelihood = observations.likelihood(layout, times)
    likelihood = likelihood.normalise(climatology.mean, climatology.scale)
    covariance = climatology.covariance(len(times))
    guided = guide("static", prior.trajectory(len(times)), likelihood, covariance)
    result = Overlap([], [])
    with PosteriorWriter(
        Path(folder) / "posterior.zarr",
        layout,
        np.asarray(times),
        blocks * members,
        members,
        {},
        {},
    ) as writer:
        for k, block in enumerate(writer.blocks):
            start = time.perf_counter()
            x = sample(guided, (len(times), *layout.shape), 0, block, **options)
            values = climatology.denormalise(x).numpy()
            result.sampled.append(time.perf_counter() - start)
            start = time.perf_counter()
            writer.put(k, values)
            result.waited.append(time.perf_counter() - start)

    return result
