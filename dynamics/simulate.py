"""Simulates ensembles of trajectories, in memory or streamed to Zarr.

Members are simulated in blocks, and each block of members is written in blocks of time: memory is
bounded by one block, whatever the number of members. Noise is drawn per member, in pieces of a
length that depends on the layout alone, so the result is the same for every blocking: to the bit
for our systems on a CPU, to round-off where a library's arithmetic depends on the batch. After each
write the model state is saved beside the store, in `<out>.partial/`, from where an interrupted run
goes on. Blocks of members can be simulated by the workers of a Dask cluster, each of which writes
its own shards and restart states.
"""

import errno
import json
import uuid
from collections.abc import Iterator, Mapping
from contextlib import contextmanager, nullcontext
from dataclasses import dataclass, replace
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any

import numpy as np
import torch
import xarray as xr
from torch import Tensor

from .cluster import Cluster, connect, read_job, write_job
from .layout import RESERVED, Layout
from .lock import Lock
from .random import normal
from .simulation_store import CHUNK_VALUES, SHARDS, Memory, Sink, Store
from .system import System

BLOCK_BYTES = 2**24
SPINUP_PIECE = 64  # steps between two restart states while nothing is written
NOISE_STREAM = 1  # initial states draw from stream 0
DTYPES = {"float32": torch.float32, "float64": torch.float64}


def simulate(
    system: System,
    members: int,
    length: int,
    spinup: int = 0,
    seed: int = 0,
    out: str | Path | None = None,
    *,
    stride: int = 1,
    member_block: int | None = None,
    time_block: int | None = None,
    dtype: torch.dtype | str = torch.float32,
    device: torch.device | str = "cpu",
    overwrite: bool = False,
    resume: bool = False,
    progress: bool | None = None,
    cluster: Any = None,
    workers: int | None = None,
) -> xr.Dataset:
    """Simulates an ensemble of trajectories.

    Member `m` starts from `system.initial` with its own generator; the first state is stored after
    `spinup` steps, and then every `stride`-th. With `out` the trajectories are streamed to a Zarr
    store (format 3), which can be opened at any time: states not yet written are NaN, and the
    attribute `simulation` says `"complete"` at the end. The system's constant fields, see
    `System.static`, are coordinates of the dataset. A chunk holds whole fields of up to
    `time_block` states of one member (of several, where fields are small); a shard, which is one
    file, holds one block.

    Arguments:
        system: The system.
        members: The number of trajectories.
        length: The number of states of each trajectory.
        spinup: The number of steps of `dt` before the first state.
        seed: The seed. Member `m` of seed `s` is always the same trajectory.
        out: The path of the store, or `None` to keep the trajectories in memory.
        stride: The number of steps of `dt` between two states.
        member_block: The number of members to advance at once (default: such that a block takes at
            most 16 MiB, and every worker has one). It changes nothing else, nor does `time_block`.
        time_block: The number of states between two writes (default: up to 1024, 1 MiB a chunk).
        dtype: The precision, `float32` or `float64`.
        device: The device to simulate on.
        overwrite: Whether to replace an existing store.
        resume: Whether to go on with an existing store; a finished one is returned as it is, unless
            shards are damaged: their blocks are simulated again, and a warning names them.
        progress: Whether to show a progress bar on stderr (default: on a terminal).
        cluster: A Dask cluster whose workers simulate the blocks of members, see
            `dynamics.cluster.connect` (default: this process does). Workers must see `out`.
        workers: The number of processes of cluster="local", which it implies.

    Returns:
        The dataset, with dimensions `(member, time, *space)`; lazy (dask) if `out` is given.

    Raises:
        ValueError: If an argument is out of range, the device is not there, or a run is resumed
            with other arguments, or the cluster cannot be used.
        FileExistsError: If `out` exists and neither `overwrite` nor `resume` is given, or another
            process is writing it.
        FloatingPointError: If a member diverges. What was written before stays.
        OSError: If the disk is full. What was written before stays readable.
    """

    remote = cluster is not None or workers is not None
    if not remote:
        device = compute_device(device)
    arguments = (members, length, spinup, seed, stride, member_block, time_block, dtype)
    run = Run.plan(system, *arguments)
    if out is None:
        if overwrite or resume or remote:
            raise ValueError("overwrite, resume and cluster need a store: give its path as out")
        memory = Memory(run)
        march(system, run, memory, compute_device(device), progress)
        return memory.dataset()
    if overwrite and resume:
        raise ValueError("overwrite and resume exclude each other, got both")

    with connect(cluster, workers) if remote else nullcontext() as pool:
        if pool is not None:
            run = Run.plan(system, *arguments, least_blocks=pool.size)
        store = Store(Path(out), run)
        # Workers write under the lock of their client.
        with told_how_to_go_on(store.path), Lock(store.path):
            if store.open(overwrite, resume, fixed_blocks=(member_block, time_block)):
                if pool is None:
                    march(system, store.run, store, compute_device(device), progress)
                else:
                    march_on(pool, system, store, str(device), progress)
                store.finish()

    dataset = xr.open_zarr(store.path)[list(store.run.layout.variables)]
    dataset.attrs.pop(SHARDS, None)
    return dataset


@dataclass(frozen=True)
class Run:
    """The arguments that a simulation's result and files depend on."""

    system: str
    config: Mapping[str, Any]
    layout: Layout
    static: Mapping[str, np.ndarray]
    members: int
    length: int
    spinup: int
    seed: int
    stride: int
    dtype: str
    member_block: int
    time_block: int

    @classmethod
    def plan(
        cls,
        system: System,
        members: int,
        length: int,
        spinup: int,
        seed: int,
        stride: int,
        member_block: int | None,
        time_block: int | None,
        dtype: torch.dtype | str,
        least_blocks: int = 1,
    ) -> "Run":
        """Checks the arguments and chooses the sizes of blocks, of members at least so many."""

        least = {"members": 1, "length": 1, "spinup": 0, "seed": 0, "stride": 1}
        given = {
            "members": members,
            "length": length,
            "spinup": spinup,
            "seed": seed,
            "stride": stride,
            "member_block": 1 if member_block is None else member_block,
            "time_block": 1 if time_block is None else time_block,
        }
        for name, value in given.items():
            if not isinstance(value, int | np.integer) or isinstance(value, bool):
                raise TypeError(f"{name} must be an integer, got {value!r}")
            if value < least.get(name, 1):
                raise ValueError(f"{name} must be at least {least.get(name, 1)}, got {value}")
        name = str(dtype).removeprefix("torch.")
        if name not in DTYPES:
            raise ValueError(f"dtype must be one of {list(DTYPES)}, got {dtype}")

        shape = system.layout.shape
        if time_block is None:
            time_block = min(1024, max(1, CHUNK_VALUES // int(np.prod(shape[1:]))))
        time_block = min(time_block, length)
        if member_block is None:
            value_bytes = torch.finfo(DTYPES[name]).bits // 8
            fitting = max(1, BLOCK_BYTES // (time_block * int(np.prod(shape)) * value_bytes))
            # A power of two, so that chunks of several members divide it.
            member_block = members if members <= fitting else 2 ** (fitting.bit_length() - 1)
            member_block = min(member_block, -(-members // least_blocks))

        return cls(
            system=type(system).__name__,
            config=system.config(),
            layout=replace(system.layout, dt=system.layout.dt * stride),
            static=static_fields(system),
            members=int(members),
            length=int(length),
            spinup=int(spinup),
            seed=int(seed),
            stride=int(stride),
            dtype=name,
            member_block=int(min(member_block, members)),
            time_block=int(time_block),
        )

    @property
    def last_step(self) -> int:
        """The number of steps of `dt` from the initial state to the last one."""
        return self.spinup + (self.length - 1) * self.stride

    def arguments(self) -> dict[str, Any]:
        """What a run must share with a store to go on with it, as plain JSON types."""

        return {
            "system": self.system,
            "config": json.loads(json.dumps(self.config)),
            "variables": list(self.layout.variables),
            "grid": list(self.layout.shape[1:]),
            "members": self.members,
            "length": self.length,
            "spinup": self.spinup,
            "seed": self.seed,
            "stride": self.stride,
            "dtype": self.dtype,
            "member_block": self.member_block,
            "time_block": self.time_block,
        }

    def attrs(self) -> dict[str, Any]:
        """The provenance, as global attributes of the dataset."""

        return {
            "title": f"Trajectories of {self.system}",
            "system": self.system,
            "config": json.dumps(self.config),
            "seed": self.seed,
            "spinup": self.spinup,
            "stride": self.stride,
            "versions": json.dumps(versions()),
        }


def march(
    system: System, run: Run, sink: Sink, device: torch.device, progress: bool | None
) -> None:
    """Advances all members, block by block, each from where the sink says."""

    with steps_bar(run, progress) as bar:
        for first in range(0, run.members, run.member_block):
            march_block(system, run, sink, first, device, bar)


def march_block(
    system: System, run: Run, sink: Sink, first: int, device: torch.device, bar: Any
) -> None:
    """Advances the block of members that begins with `first`, from where the sink says."""

    members = range(first, min(first + run.member_block, run.members))
    position, z = sink.restart(first, device)
    bar.update(len(members) * position.steps)
    with torch.no_grad():
        if z is None and position.frames < run.length:
            z = system.initial_model(members, run.seed, DTYPES[run.dtype], device)
        if z is None:
            return
        block = Block(system, run, members, z, position.steps, device, bar)
        while position.frames < run.length:
            if block.steps < run.spinup:
                piece = max(SPINUP_PIECE, run.time_block * run.stride)
                block.advance(min(run.spinup, block.steps + piece))
            else:
                stop = min(run.length, position.frames + run.time_block)
                block.record(range(position.frames, stop), sink)
                position.frames = stop
            position.steps = block.steps
            sink.save(position, block.z if position.frames < run.length else None)


def march_on(
    pool: Cluster, system: System, store: Store, device: str, progress: bool | None
) -> None:
    """Lets workers advance the blocks of members."""

    run = store.run
    job = store.partial / f"job-{uuid.uuid4().hex[:8]}"
    checksum = write_job(job, (system, run, store.path.resolve(), device))
    blocks: dict[str, tuple[Any, ...]] = {}
    with steps_bar(run, progress) as bar:
        for first in store.first_members:
            position, _ = store.restart(first, torch.device("cpu"))
            if position.frames < run.length:
                blocks[f"of members from {first} on"] = (str(job.resolve()), checksum, first)
            else:
                bar.update(min(run.member_block, run.members - first) * run.last_step)
        for _, (first, shards) in pool.run(simulate_block, blocks):
            store.shards[first] = shards
            bar.update(min(run.member_block, run.members - first) * run.last_step)


def simulate_block(job: str, checksum: int, first: int) -> tuple[int, dict[str, list[int]]]:
    """Simulates a block of members on a worker, which writes it and its restart states.

    Returns:
        The first member, and the size and checksum of each shard.
    """

    system, run, path, device = read_job(Path(job), checksum)
    store = Store(path, run, Path(job))
    store.attach()
    with steps_bar(run, progress=False) as bar:
        march_block(system, run, store, first, compute_device(device), bar)

    return first, store.shards[first]


@contextmanager
def told_how_to_go_on(path: Path) -> Iterator[None]:
    """A context in which an error of the disk says what is kept."""

    try:
        yield
    except OSError as error:
        if error.errno is None:  # not the disk's, but one of ours
            raise
        reason = "the disk is full" if error.errno == errno.ENOSPC else error.strerror
        raise type(error)(
            error.errno,
            f"{reason or error} while writing {str(path)!r}: what is finished is kept and "
            f"readable, mend that and run again with resume=true",
        ) from error


def steps_bar(run: Run, progress: bool | None) -> Any:
    """A progress bar over the steps of all members."""

    from tqdm import tqdm

    return tqdm(
        total=run.members * run.last_step,
        desc=f"simulate {run.system}",
        unit="step",
        unit_scale=True,
        disable=None if progress is None else not progress,
    )


class Block:
    """The members that are advanced at once."""

    def __init__(
        self,
        system: System,
        run: Run,
        members: range,
        z: Tensor,
        steps: int,
        device: torch.device,
        bar: Any,
    ) -> None:
        self.system, self.run, self.members = system, run, members
        self.z, self.steps, self.device, self.bar = z, steps, device, bar
        self.noise_length = max(1, min(1024, 2**14 // int(np.prod(run.layout.shape))))
        self.noise_piece: int | None = None
        self.noise = torch.empty(0)

    def advance(self, target: int) -> None:
        """Advances the model state to step `target`.

        Raises:
            FloatingPointError: If a member is not finite there, with its index and the step.
        """

        self._advance(target)
        self._check(torch.isfinite(self.z).flatten(1).all(dim=1).cpu().numpy(), self.steps)

    def record(self, frames: range, sink: Sink) -> None:
        """Advances through `frames` and writes them.

        Raises:
            FloatingPointError: As `advance`; the states before the first bad one are written.
        """

        run = self.run
        states = np.empty(
            (len(self.members), len(frames), *run.layout.shape), dtype=np.dtype(run.dtype)
        )
        count = 0
        failure: FloatingPointError | None = None
        for frame in frames:
            try:
                self._advance(run.spinup + frame * run.stride)
            except FloatingPointError as error:
                failure = error
                break
            states[:, count] = self.system.project(self.z).cpu().numpy()
            count += 1

        values = states[:, :count].reshape(len(self.members), count, -1)
        finite = np.asarray(np.isfinite(values).all(axis=2))
        good = count if finite.all() else int(np.argmin(finite.all(axis=0)))
        if good:
            sink.write(self.members.start, frames.start, run.layout.hide(states[:, :good]))
        if good < count:
            step = run.spinup + (frames.start + good) * run.stride
            self._check(finite[:, good], step)
        if failure:
            raise failure

    def _advance(self, target: int) -> None:
        while self.steps < target:
            try:
                self.z = self.system.advance(self.z, self._noise(self.steps))
            except FloatingPointError as error:
                finite = torch.isfinite(self.z).flatten(1).all(dim=1).cpu().numpy()
                self._check(finite, self.steps)
                raise FloatingPointError(
                    f"members {self.members.start} to {self.members.stop - 1}, step {self.steps}: "
                    f"{error}"
                ) from error
            self.steps += 1
            self.bar.update(len(self.members))

    def _noise(self, step: int) -> Tensor | None:
        if not self.system.stochastic:
            return None
        piece, offset = divmod(step, self.noise_length)
        if piece != self.noise_piece:
            noise = normal(
                self.run.seed,
                self.members,
                (self.noise_length, *self.run.layout.shape),
                NOISE_STREAM,
                piece,
                dtype=DTYPES[self.run.dtype],
            )
            self.noise = noise.transpose(0, 1).contiguous().to(self.device)
            self.noise_piece = piece

        return self.noise[offset]

    def _check(self, finite: np.ndarray, step: int) -> None:
        if not finite.all():
            member = self.members[int(np.argmin(finite))]
            dt = self.system.layout.dt
            raise FloatingPointError(
                f"member {member} is not finite at step {step} (time {step * dt:g} from its start, "
                f"spin-up included): {self.run.system} has diverged, try a smaller step"
            )


def static_fields(system: System) -> dict[str, np.ndarray]:
    """The constant fields of a system, checked against its layout.

    Raises:
        ValueError: If a name is taken, or a field is not on the grid of the state.
    """

    layout = system.layout
    fields = system.static()
    for name, field in fields.items():
        if name in (*RESERVED, *layout.variables, *layout.dims):
            raise ValueError(f"static field {name!r} has the name of a variable or dimension")
        if field.shape != layout.shape[1:]:
            raise ValueError(
                f"static field {name!r} must have the shape {layout.shape[1:]} of the grid, got "
                f"{field.shape}"
            )

    return fields


def compute_device(device: torch.device | str) -> torch.device:
    """The device of a name.

    Raises:
        ValueError: If there is no such device on this machine.
    """

    try:
        device = torch.device(device)
        torch.empty(1, device=device)
    except (RuntimeError, AssertionError) as error:
        reason = next(iter(str(error).strip().splitlines()), type(error).__name__)
        raise ValueError(f"device {str(device)!r} is not available: {reason}") from error

    return device


def versions() -> dict[str, str]:
    """The versions of the packages that shape a simulation."""

    found = {}
    for name in ("sda-torch", "torch", "numpy", "zarr", "xarray"):
        try:
            found[name] = version(name)
        except PackageNotFoundError:
            continue

    return found
