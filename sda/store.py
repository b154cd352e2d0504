"""Posterior ensembles on disk.

A posterior is a Zarr v3 group that any xarray opens: one variable per physical variable with the
dimensions `(member, time, *space)`, CF attributes, and the provenance of the run in its attributes.
Members are sampled in blocks. A block is one shard, hence one file and one write per variable, and
one member is one chunk, so that reading one member does not read its neighbours.

What is finished is never lost. Shards and attributes are replaced atomically and synced; a block
counts as finished only once the group's attributes say so, after its shards are on disk. Members
that are not finished read as NaN, so the store can be opened at any moment, and a run that was
killed goes on from the finished blocks. The size and checksum of every shard are kept in the
attributes: one that is lost or cut short later would read as NaN or not at all; opening the store
names it, and resuming samples its block again.

Blocks can also come from other processes, which stage them: each writes its shards into a folder
beside the store, and a record of them last of all. Moving them into the store is one rename, by the
one process that writes the store. Staged blocks that a run has left are taken over by the next.
"""

import errno
import glob
import json
import os
import shutil
import uuid
import warnings
from collections.abc import Callable, Mapping, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from pathlib import Path
from types import TracebackType
from typing import Any

import numpy as np
import xarray as xr

from dynamics.files import damage, files, mark, sync, sync_tree
from dynamics.layout import Layout
from dynamics.simulation_store import MARK as SIMULATION
from dynamics.simulation_store import SHARDS
from dynamics.simulation_store import damages as simulation_damages

from .lock import Lock
from .shards import grid, write_block

KIND, STAGE = "sda posterior", "sda posterior, staged blocks"
# The attributes without which a posterior can be neither described nor resumed.
RECORDS = {"settings", "block", "finished_blocks", "failed_members", "failures", "status"}


def open_dataset(path: str | Path) -> xr.Dataset:
    """Opens a dataset lazily: a Zarr store (any version) or a NetCDF file.

    Times stay numbers in the units of their `units` attribute, as the layouts have them. A
    posterior of which finished members are missing opens with a warning that names them, and says
    so in its attribute `status`.

    Raises:
        FileNotFoundError: If there is nothing at `path`.
        ValueError: If it is no Zarr store and no NetCDF file.
    """

    path = Path(path)
    if not path.exists():
        raise FileNotFoundError(f"no dataset at {str(path)!r}")
    try:
        if path.is_dir():
            from .analyses import is_analyses, open_analyses

            if is_analyses(path):
                return ordered(open_analyses(path))
            # The full path: workers of a cluster, to which a lazy dataset goes, run elsewhere.
            dataset = xr.open_zarr(
                path.absolute(), consolidated=False, decode_times=False, chunks={}
            )
            return warned(ordered(dataset), path)
        return xr.open_dataset(path.absolute(), decode_times=False, chunks={})
    except Exception as error:
        raise ValueError(
            f"{str(path)!r} is neither a Zarr store nor a NetCDF file: {first_line(error)}"
        ) from error


def ordered(dataset: xr.Dataset) -> xr.Dataset:
    """The dataset with its variables in the order of its attribute `variables`, if it has one.

    A Zarr group lists its variables as the file system does, in any order. Those that the attribute
    does not name come last, sorted by name, so that the order is the same everywhere.
    """

    names = sorted(map(str, dataset.data_vars))
    given = [str(name) for name in np.atleast_1d(dataset.attrs.get("variables", []))]
    first = [name for name in given if name in names]
    return dataset[first + [name for name in names if name not in first]]


def warned(dataset: xr.Dataset, path: Path) -> xr.Dataset:
    """The dataset; if shards of it are damaged, its status says so, and a warning."""

    damaged = damaged_blocks(path, dataset.attrs)
    posterior = dataset.attrs.get("kind") == KIND
    if posterior or SIMULATION in dataset.attrs:
        dataset.attrs.pop(SHARDS, None)
    if not damaged:
        return dataset
    text = "; ".join(damaged.values())
    what, does = ("assimilation", "samples") if posterior else (SIMULATION, "simulates")
    warnings.warn(
        f"{str(path)!r} is damaged: {text}. Run the {what} again with resume=true, which "
        f"{does} these members again",
        RuntimeWarning,
        stacklevel=3,
    )
    return dataset.assign_attrs({"status" if posterior else SIMULATION: f"damaged: {text}"})


def damaged_blocks(
    path: str | Path, attrs: Mapping[str, Any], thorough: bool = False
) -> dict[int, str]:
    """What is wrong with each damaged block of a posterior or a simulation, by a number of it.

    Arguments:
        path: The store.
        attrs: Its attributes.
        thorough: Whether the content is compared too, not the sizes only.
    """

    if attrs.get("kind") == KIND:
        return damages(Path(path), attrs, thorough)
    if SIMULATION in attrs and SHARDS in attrs:
        marks = json.loads(attrs[SHARDS])
        return simulation_damages(Path(path), marks, shard_size(Path(path), marks), thorough)
    return {}


def check_content(path: str | Path) -> int:
    """Reads every shard of a posterior or a simulation, and compares it with its checksum.

    Returns:
        The number of shards that were compared.

    Raises:
        FileNotFoundError: If there is nothing at `path`.
        ValueError: If shards are damaged, which are named, or the store has no checksums.
    """

    path = Path(path)
    if not path.exists():
        raise FileNotFoundError(f"no dataset at {str(path)!r}")
    try:
        attrs = read_attributes(path)
    except (OSError, ValueError) as error:
        raise ValueError(f"{str(path)!r} has no readable zarr.json: {first_line(error)}") from error
    if SHARDS not in attrs:
        raise ValueError(
            f"{str(path)!r} has no checksums: expected a posterior or a complete simulation of "
            f"this package"
        )
    damaged = damaged_blocks(path, attrs, thorough=True)
    if damaged:
        raise ValueError(
            f"{str(path)!r} is damaged: {'; '.join(damaged.values())}. Run what made it again "
            f"with resume=true"
        )
    return attrs[SHARDS].count("[")


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
            discard_stages(self.staging)

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

        record = json.loads(staged.read_text(encoding="utf-8"))
        k, marks = int(record["block"]), record["shards"]
        for name, shards in marks.items():
            source, target = (
                root / name / "c" / str(k) for root in (staged.with_suffix(""), self.place)
            )
            # A run that was killed here may have moved some already.
            if source.exists():
                shutil.rmtree(target, ignore_errors=True)
                target.parent.mkdir(exist_ok=True)
                os.rename(source, target)
                sync(target.parent)
            if any(damage(target / part, marked, thorough=True) for part, marked in shards.items()):
                return False
        failures = {int(member): text for member, text in record["failures"].items()}
        self.attrs |= failed(self.failures | failures)
        self.enter(k, marks)
        return True

    def take_over(self) -> None:
        """Takes over the blocks that workers of an earlier run have staged."""

        for folder in sorted(self.staging.glob("*")):
            notes = folder / "run.json"
            if not notes.is_file():
                continue
            if json.loads(notes.read_text(encoding="utf-8")) == self.stage_notes():
                for record in sorted(folder.glob("block-*.json")):
                    if int(record.stem.partition("-")[2]) in self.unfinished:
                        self.adopt(record)
        discard_stages(self.staging)

    @property
    def staging(self) -> Path:
        """The folder beside the store for staged blocks."""
        return self.path.with_name(f"{self.path.name}.partial")

    def stage_notes(self) -> dict[str, Any]:
        """What staged blocks must share with the store."""
        return {
            "kind": STAGE,
            "settings": json.loads(self.attrs["settings"]),
            "members": self.members,
            "block": self.block,
        }

    def discard_stage(self) -> None:
        """Removes the folders of staged blocks."""
        discard_stages(self.staging)

    def open_stage(self) -> Path:
        """Makes a folder for the staged blocks of this run."""

        folder = self.staging / uuid.uuid4().hex[:8]
        template = folder / "template"
        for name in ("", *self.variables):
            (template / name).mkdir(parents=True)
            shutil.copy(self.place / name / "zarr.json", template / name / "zarr.json")
        write_text(folder / "run.json", json.dumps(self.stage_notes()))
        return folder

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


def failed(failures: Mapping[int, str]) -> dict[str, Any]:
    """The attributes that name the members that failed, and say what happened to each."""

    members = sorted(failures)
    return {"failed_members": members, "failures": [failures[member] for member in members]}


def write_shards(
    place: Path, variables: Sequence[str], k: int, block: range, trajectories: np.ndarray
) -> dict[str, Any]:
    """Writes one block of members.

    Arguments:
        place: The Zarr group.
        variables: The variables.
        k: The index of the block.
        block: Its members.
        trajectories: The members, with shape `(member, time, channel, *space)`.

    Returns:
        The size and checksum of each file, by variable and by path within the block.
    """

    marks = {}
    with ThreadPoolExecutor(max_workers=1) as disk:
        under_way: list[Future[None]] = []
        for i, name in enumerate(variables):
            # One shard holds the block: c/<block>/0/0/… What an earlier run left of it, perhaps
            # half, must not be read while it is replaced.
            shard = place / name / "c" / str(k)
            shutil.rmtree(shard, ignore_errors=True)
            if form := grid(place, name):
                values = trajectories[:, :, i]
                marks[name], more = write_block(place, name, k, values, form, disk)
                under_way += more
                continue
            import zarr

            array: Any = zarr.open_group(place, mode="r+", zarr_format=3)[name]
            for first in range(0, array.shape[1], array.chunks[1]):
                times = slice(first, first + array.chunks[1])
                part = trajectories[:, times, i].astype(array.dtype, copy=False)
                array[block.start : block.stop, times] = part
            sync_tree(shard)
            marks[name] = {str(f.relative_to(shard)): mark(f) for f in files(shard)}
        for each in under_way:
            each.result()
    return marks


def stage(
    folder: Path,
    variables: Sequence[str],
    k: int,
    block: range,
    trajectories: np.ndarray,
    failures: Mapping[int, str],
) -> Path:
    """Writes one block beside a store, for `PosteriorWriter.adopt`.

    Arguments:
        folder: The folder of the run, see `PosteriorWriter.open_stage`.
        variables, k, block, trajectories: See `write_shards`.
        failures: What happened to members that could not be sampled and are NaN, by their index.

    Returns:
        Its record, `<folder>/block-<k>.json`; the shards are in the folder of the same name.

    Raises:
        FileNotFoundError: If the run is over.
    """

    record = folder / f"block-{k}.json"
    own = folder / f".{record.stem}.{uuid.uuid4().hex[:8]}"
    shutil.copytree(folder / "template", own)
    marks = write_shards(own, variables, k, block, trajectories)
    place = record.with_suffix("")
    shutil.rmtree(place, ignore_errors=True)
    os.rename(own, place)
    sync(folder)
    content = {"block": k, "shards": marks, "failures": dict(failures)}
    write_text(record, json.dumps(content))
    return record


def discard_stages(staging: Path) -> None:
    """Removes staged blocks, and nothing that is not ours."""

    for folder in staging.glob("*"):
        notes = folder / "run.json"
        if notes.is_file() and STAGE in notes.read_text(encoding="utf-8"):
            # The notes last: what is cut short here is still known to be ours.
            for path in folder.iterdir():
                if path.is_dir():
                    shutil.rmtree(path, ignore_errors=True)
            shutil.rmtree(folder, ignore_errors=True)
    if staging.is_dir() and not any(staging.iterdir()):
        staging.rmdir()


def write_text(path: Path, text: str) -> None:
    """Writes a small file, all or nothing."""

    fresh = path.with_name(f".{path.name}.{uuid.uuid4().hex[:8]}")
    try:
        with fresh.open("w", encoding="utf-8") as file:
            file.write(text)
            file.flush()
            os.fsync(file.fileno())
        os.replace(fresh, path)
    finally:
        fresh.unlink(missing_ok=True)
    sync(path.parent)


def damages(path: Path, attrs: Mapping[str, Any], thorough: bool = False) -> dict[int, str]:
    """The finished blocks of a posterior whose shards are not as they were written.

    Arguments:
        path: The store.
        attrs: Its attributes.
        thorough: Whether the content is compared too, not the sizes only.

    Returns:
        What is wrong with each damaged block, by its index.
    """

    damaged: dict[int, str] = {}
    for block, marks in json.loads(attrs.get("shards", "{}")).items():
        if int(block) not in np.atleast_1d(attrs["finished_blocks"]):
            continue
        for name, shards in marks.items():
            for part, marked in shards.items():
                wrong = damage(path / name / "c" / block / part, marked, thorough)
                if not wrong:
                    continue
                first = int(block) * int(attrs["block"])
                last = min(first + int(attrs["block"]), shard_members(path, name)) - 1
                where = f"{name}/c/{block}/{part}"
                damaged.setdefault(int(block), f"{where} {wrong} (members {first} to {last})")
    return damaged


def shard_size(path: Path, marks: Mapping[str, Any]) -> int:
    """The number of members of a shard of a simulation."""

    name = next(iter(marks), "").split("/")[0]
    content = json.loads((path / name / "zarr.json").read_text(encoding="utf-8"))
    return int(content["chunk_grid"]["configuration"]["chunk_shape"][0]) if name else 1


def shard_members(path: Path, name: str) -> int:
    """The number of members of a variable."""
    return int(json.loads((path / name / "zarr.json").read_text(encoding="utf-8"))["shape"][0])


def split(members: int, block: int) -> list[range]:
    """The members of each block."""
    return [range(first, min(first + block, members)) for first in range(0, members, block)]


def initial_attributes(
    layout: Layout,
    settings: Mapping[str, Any],
    attrs: Mapping[str, Any],
    members: int,
    block: int,
) -> dict[str, Any]:
    """The attributes of a posterior of which nothing is finished."""

    return {
        "Conventions": "CF-1.11",
        **attrs,
        "kind": KIND,
        "variables": list(layout.variables),
        "settings": json.dumps(settings, sort_keys=True),
        "block": int(block),
        "finished_blocks": [],
        **failed({}),
        "status": status(0, members),
    }


def check_target(path: Path, overwrite: bool, resume: bool) -> bool:
    """Whether a posterior stands at `path` that may be overwritten or resumed.

    Raises:
        ValueError: If both `overwrite` and `resume` are given.
        FileExistsError: If something stands there that must stay as it is.
    """

    if overwrite and resume:
        raise ValueError("overwrite and resume exclude each other, got both")
    if not (path.exists() or path.is_symlink()):
        return False
    if not is_posterior(path):
        raise FileExistsError(
            f"{str(path)!r} exists and is not a posterior of this package: it is left as it is, "
            f"choose another path"
        )
    if not (overwrite or resume):
        attrs = read_attributes(path)
        raise FileExistsError(
            f"{str(path)!r} exists ({attrs['status']}): give overwrite=true to replace it, "
            f"resume=true to complete it, or another path"
        )
    return True


def is_posterior(path: str | Path) -> bool:
    """Whether a posterior of this package stands at `path`."""

    try:
        attrs = read_attributes(Path(path))
    except (OSError, ValueError):
        return False
    return attrs.get("kind") == KIND and attrs.keys() >= RECORDS


def check_settings(path: Path, attrs: Mapping[str, Any], settings: Mapping[str, Any]) -> None:
    """Raises a `ValueError` that names what differs from the settings of a store."""

    stored = json.loads(attrs["settings"])
    different = [
        f"{key} was {stored.get(key)!r}, now {settings.get(key)!r}"
        for key in sorted({*stored, *settings})
        if stored.get(key) != settings.get(key)
    ]
    if different:
        raise ValueError(
            f"{str(path)!r} was made with other settings and cannot be resumed: "
            f"{'; '.join(different)}. Give the settings it was made with, or overwrite=true"
        )


def create(
    path: Path,
    layout: Layout,
    time: np.ndarray,
    members: int,
    block: int,
    attrs: Mapping[str, Any],
    dtype: str,
    frames: int | None = None,
) -> None:
    """Makes an empty posterior where nothing stands.

    It is made beside and moved into place, so that no half-made store is ever seen.
    """

    import zarr

    path.parent.mkdir(parents=True, exist_ok=True)
    fresh = beside(path)
    try:
        group: Any = zarr.create_group(fresh, zarr_format=3, attributes=dict(attrs))
        template = layout.to_dataset(np.empty((0, len(time), *layout.shape)), time=time)
        coords = {str(name): coord for name, coord in template.coords.items()}
        for name, coord in coords.items():
            values = np.arange(members) if name == "member" else coord.values
            array = group.create_array(
                name,
                shape=values.shape,
                dtype=values.dtype,
                dimension_names=tuple(map(str, coord.dims)),
                attributes=dict(coord.attrs),
            )
            array[:] = values
        space = layout.shape[1:]
        shard = min(block, members)
        for name in layout.variables:
            group.create_array(
                name,
                shape=(members, len(time), *space),
                chunks=(1, frames or len(time), *space),
                shards=(shard, frames or len(time), *space),
                dtype=dtype,
                # Turbulence in single precision shrinks by 8 %, at four times the time.
                compressors=None,
                fill_value=float("nan"),
                dimension_names=("member", "time", *layout.dims),
                attributes=layout.attributes(name) | layout.auxiliary(),
            )
        sync_tree(fresh)
        os.rename(fresh, path)
        sync(path.parent)
    finally:
        shutil.rmtree(fresh, ignore_errors=True)


def beside(path: Path) -> Path:
    """A hidden name beside a path, which nothing has."""
    return path.with_name(f".{path.name}.{uuid.uuid4().hex[:8]}")


def replace(path: Path, fresh: Path) -> None:
    """Puts a store in the place of another."""

    old = beside(path)
    os.rename(path, old)
    os.rename(fresh, path)
    sync(path.parent)
    shutil.rmtree(old)


def discard_drafts(path: Path) -> None:
    """Removes what runs that were killed have left beside a posterior they were to replace."""

    for draft in path.parent.glob(f".{glob.escape(path.name)}.{'[0-9a-f]' * 8}"):
        if is_posterior(draft):
            shutil.rmtree(draft, ignore_errors=True)


def announcement(path: Path) -> Path:
    """The file beside a store that says by what a run is about to replace it."""
    return path.with_name(f".{path.name}.next")


def announce(path: Path, settings: Mapping[str, Any]) -> None:
    """Says that a store is about to be replaced by one of these settings, or of some of them.

    Until its first members are on disk the old store stays as it is. Interrupted before, the run is
    resumed by what it has announced.
    """

    write_text(announcement(path), json.dumps(dict(settings)))


def supersedes(path: Path, settings: Mapping[str, Any]) -> bool:
    """Whether an interrupted run of these settings was about to replace a store of others."""

    if json.loads(read_attributes(path)["settings"]) == settings:
        announcement(path).unlink(missing_ok=True)
        return False
    try:
        content = json.loads(announcement(path).read_text(encoding="utf-8"))
    except (OSError, ValueError):
        return False
    return isinstance(content, dict) and content.items() <= settings.items()


def read_attributes(path: Path) -> dict[str, Any]:
    """The attributes of a Zarr v3 group."""

    content = json.loads((path / "zarr.json").read_text(encoding="utf-8"))
    attrs = content.get("attributes") if isinstance(content, dict) else None
    return dict(attrs) if isinstance(attrs, dict) else {}


def write_attributes(path: Path, attrs: Mapping[str, Any]) -> None:
    """Replaces the attributes of a Zarr v3 group, all or nothing."""

    content = json.loads((path / "zarr.json").read_text(encoding="utf-8"))
    content["attributes"] = dict(attrs)
    # Beside the store: inside, a reader that lists the group would stumble over it.
    fresh = path.with_name(f".{path.name}.{uuid.uuid4().hex[:8]}.json")
    try:
        with fresh.open("w", encoding="utf-8") as file:
            json.dump(content, file, indent=2)
            file.flush()
            os.fsync(file.fileno())
        os.replace(fresh, path / "zarr.json")
    finally:
        fresh.unlink(missing_ok=True)
    sync(path)


def status(done: int, members: int, failed: int = 0) -> str:
    """The attribute that tells a reader whether all members are there."""

    text = "complete" if done == members else f"incomplete: {done} of {members} members"
    return f"{text}, {failed} failed" if failed else text


def explain(error: OSError, path: Path, doing: str, done: int, members: int) -> OSError:
    """An `OSError` of the same kind that says what was done and how to go on."""

    reason = "the disk is full" if error.errno == errno.ENOSPC else error.strerror or str(error)
    return type(error)(
        error.errno,
        f"{reason} while {doing}: {done} of {members} members are finished and stay readable; "
        f"mend that and run again with resume=true",
        str(path),
    )


def first_line(error: BaseException) -> str:
    """The first line of an error's message, or its kind where it has none."""
    return next(iter(str(error).strip().splitlines()), type(error).__name__)
