"""Writes posteriors: streamed to disk block by block, each while the next one is sampled."""

import json
import shutil
import warnings
from collections.abc import Callable, Mapping
from concurrent.futures import Future, ThreadPoolExecutor
from pathlib import Path
from types import TracebackType
from typing import Any

import numpy as np
import xarray as xr

from dynamics.layout import Layout

from ..lock import Lock
from .attributes import failed, initial_attributes, read_attributes, status, write_attributes
from .blocks import create, split, write_shards
from .checksums import damages
from .errors import explain, first_line
from .reading import open_dataset
from .replacing import (
    announce,
    announcement,
    beside,
    check_settings,
    check_target,
    discard_drafts,
    replace,
    supersedes,
)
from .staging import discard_stages, move_in, open_stage, staged_blocks


class PosteriorWriter:
    """Writes the member blocks of a posterior, each while the next one is sampled.

    A writer is a context manager; leaving it, also by an exception or an interrupt, waits for the
    block that is being written.

    Arguments:
        path: The store.
        layout: The layout of the states.
        time: The time coordinate, with shape `(time)`.
        members: The number of members.
        block: The number of members per block. A resumed store keeps the blocks that it has.
        settings: What decides the ensemble, as plain JSON types. A store is resumed only by a run
            of the same settings.
        attrs: Further global attributes.
        dtype: The type of the variables.
        overwrite: Whether a posterior that stands at `path` already is replaced. It stays as it is
            until the first members of the new one are on disk.
        resume: Whether a posterior that stands at `path` already is completed. If there is none, a
            new one is made. A finished block whose shards are damaged is unfinished again, and a
            warning names it.
        frames: The states of a chunk (default: all). Trajectories that do not fit in memory are
            written in chunks of time.
        lock: Whether the store is locked until the writer is closed. Workers of a run write under
            the lock of its client.

    Raises:
        Locked: If another process writes the store, see `sda.lock`.
        FileExistsError: If something stands at `path` and neither `overwrite` nor `resume` is
            given, or if it is not a posterior of this package.
        ValueError: If both are given, or if the store to resume was made with other settings.
        OSError: If the disk is full. Finished blocks stay readable.
    """

    def __init__(
        self,
        path: str | Path,
        layout: Layout,
        time: np.ndarray,
        members: int,
        block: int,
        settings: Mapping[str, Any],
        attrs: Mapping[str, Any],
        dtype: str = "float32",
        overwrite: bool = False,
        resume: bool = False,
        frames: int | None = None,
        lock: bool = True,
    ) -> None:
        self.path = Path(path)
        # Where the store is: beside its path, as long as what it will replace is still there.
        self.place = self.path
        self.layout, self.variables = layout, layout.variables
        self.members = members
        self.pending: tuple[int, Future[None]] | None = None
        self.made = False
        self.pool = ThreadPoolExecutor(max_workers=1, thread_name_prefix="posterior-writer")

        self.lock = Lock(self.path).acquire() if lock else None
        try:
            self.open(layout, time, block, settings, attrs, dtype, overwrite, resume, frames)
        except BaseException:
            if self.lock is not None:
                self.lock.release()
            raise

    def open(
        self,
        layout: Layout,
        time: np.ndarray,
        block: int,
        settings: Mapping[str, Any],
        attrs: Mapping[str, Any],
        dtype: str,
        overwrite: bool,
        resume: bool,
        frames: int | None,
    ) -> None:
        """Makes the store, or opens it to go on."""

        settings = json.loads(json.dumps(dict(settings)))
        exists = check_target(self.path, overwrite, resume)
        # A link, perhaps to a larger disk, stays; what it points to is replaced.
        target = self.path.resolve() if self.path.is_symlink() else self.path
        if exists and resume and not supersedes(target, settings):
            check_settings(self.path, read_attributes(self.path), settings)
        else:
            first = initial_attributes(layout, settings, attrs, self.members, block)
            self.path = target
            self.place = beside(self.path) if exists else self.path
            if exists:
                discard_drafts(self.path)
                announce(self.path, settings)
            self.made = True
            try:
                create(self.place, layout, time, self.members, block, first, dtype, frames)
            except OSError as error:
                raise explain(error, self.path, "creating the store", 0, self.members) from error

        self.attrs = read_attributes(self.place)
        self.block = int(self.attrs["block"])
        self.finished = set(self.attrs["finished_blocks"])
        if not self.made:
            self.reopen()
        if resume:
            self.take_over()
        else:
            self.discard_stage()

    @property
    def blocks(self) -> list[range]:
        """The members of each block."""
        return split(self.members, self.block)

    @property
    def unfinished(self) -> list[int]:
        """The indices of the blocks that are neither finished nor being written."""
        writing = {self.pending[0]} if self.pending else set()
        return [k for k in range(len(self.blocks)) if k not in self.finished | writing]

    @property
    def failures(self) -> dict[int, str]:
        """What happened to each member that failed, by its index."""
        return dict(zip(self.attrs["failed_members"], self.attrs["failures"], strict=False))

    def reopen(self) -> None:
        """Takes finished blocks whose shards are damaged as unfinished, and warns of them."""

        damaged = damages(self.path, self.attrs, thorough=True)
        if not damaged:
            return
        warnings.warn(
            f"{str(self.path)!r} is damaged: {'; '.join(damaged.values())}. These members are "
            f"sampled again",
            RuntimeWarning,
            stacklevel=2,
        )
        again = {member for k in damaged for member in self.blocks[k]}
        kept = {member: text for member, text in self.failures.items() if member not in again}
        self.attrs |= failed(kept)
        self.finished -= damaged.keys()
        self.record()

    def put(
        self, k: int, trajectories: np.ndarray, failures: Mapping[int, str] | None = None
    ) -> None:
        """Hands over a block, once the previous one is on disk.

        Arguments:
            k: The index of the block.
            trajectories: The members in physical units, `(member, time, channel, *space)`.
            failures: What happened to members that could not be sampled and are NaN, by their
                index.

        Raises:
            OSError: If a block could not be written.
        """

        self.wait()
        self.attrs |= failed(self.failures | dict(failures or {}))
        self.pending = (k, self.pool.submit(self.write, k, trajectories))

    def wait(self) -> None:
        """Waits until the block handed over last is on disk, and raises what went wrong with it."""

        if self.pending:
            k, future = self.pending
            self.pending = None
            try:
                future.result()
            except OSError as error:
                block = self.blocks[k]
                doing = f"writing members {block[0]} to {block[-1]}"
                done = sum(len(self.blocks[j]) for j in self.finished)
                raise explain(error, self.path, doing, done, self.members) from error

    def write(self, k: int, trajectories: np.ndarray) -> None:
        """Writes one block and records it as finished."""

        values = self.layout.hide(trajectories)
        self.enter(k, write_shards(self.place, self.variables, k, self.blocks[k], values))

    def enter(self, k: int, marks: Mapping[str, Any]) -> None:
        """Records a block, whose shards are in place, as finished."""

        shards = json.loads(self.attrs.get("shards", "{}")) | {str(k): marks}
        self.attrs["shards"] = json.dumps(shards)
        self.record(k)
        if self.place != self.path and not set(self.blocks[k]) <= set(self.attrs["failed_members"]):
            replace(self.path, self.place)
            self.place = self.path
            announcement(self.path).unlink(missing_ok=True)

    def adopt(self, staged: Path) -> bool:
        """Takes over a staged block, and says whether it was whole.

        Arguments:
            staged: Its record, see `stage`.
        """

        block = move_in(staged, self.place)
        if block is None:
            return False
        self.attrs |= failed(self.failures | block.failures)
        self.enter(block.k, block.marks)
        return True

    def take_over(self) -> None:
        """Takes over the blocks that workers of an earlier run have staged."""

        for k, record in staged_blocks(self.staging, self.stage_notes()):
            if k in self.unfinished:
                self.adopt(record)
        self.discard_stage()

    @property
    def staging(self) -> Path:
        """The folder beside the store for staged blocks."""
        return self.path.with_name(f"{self.path.name}.partial")

    def stage_notes(self) -> dict[str, Any]:
        """What staged blocks must share with the store."""
        settings = json.loads(self.attrs["settings"])
        return {"settings": settings, "members": self.members, "block": self.block}

    def discard_stage(self) -> None:
        """Removes the folders of staged blocks."""
        discard_stages(self.staging)

    def open_stage(self) -> Path:
        """Makes a folder for the staged blocks of this run."""
        return open_stage(self.staging, self.place, self.variables, self.stage_notes())

    def record(self, *blocks: int) -> None:
        """Notes in the attributes of the store that blocks are finished."""

        finished = self.finished | {*blocks}
        self.attrs["finished_blocks"] = sorted(finished)
        self.attrs["status"] = status(
            sum(len(self.blocks[j]) for j in finished),
            self.members,
            len(self.attrs["failed_members"]),
        )
        write_attributes(self.place, self.attrs)
        self.finished = finished

    def share(self, guided: Any, compute: Callable[[], None]) -> None:
        """Computes what the members share.

        Arguments:
            guided: The denoiser that keeps it.
            compute: A function that computes it.
        """
        compute()

    def dataset(self) -> xr.Dataset:
        """The posterior, lazily."""
        return open_dataset(self.path)

    def close(self) -> None:
        """Waits for the last block and ends the writer's thread.

        A store that was to replace another, and of which no member is on disk, is removed.
        """

        try:
            self.wait()
        finally:
            self.pool.shutdown()
            if self.place != self.path:
                shutil.rmtree(self.place, ignore_errors=True)
            if self.lock is not None:
                self.lock.release()

    def __enter__(self) -> "PosteriorWriter":
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        if self.made and not isinstance(error, KeyboardInterrupt | OSError):
            # Taken up, it would end so again.
            announcement(self.path).unlink(missing_ok=True)
        if error is None:
            self.close()
            return
        # The first error is the one to report, not what it left half written.
        try:
            self.close()
        except Exception as later:
            error.add_note(f"{self.path}: {first_line(later)}")
        if self.made and not self.finished and self.place == self.path:
            # A new store without a block is of no use, and would be in the way of the next run.
            shutil.rmtree(self.path, ignore_errors=True)
