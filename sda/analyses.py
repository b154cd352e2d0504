"""Analyses on disk: a store that a filter appends to, one cycle after the other.

The store is a Zarr v3 group that any xarray opens: one variable per physical variable with the
dimensions `(time, member, *space)`, where time grows. All members of one time are one chunk, hence
one file and one write per variable, with a checksum that every reader checks. `observed` counts the
values that each cycle brought, 0 in a gap, and `failed` the members that diverged.

What is finished is never lost. Files are replaced atomically and synced, and a cycle counts as
finished once the group's metadata, one file, say so: its attributes and the sizes of all arrays
change together, so that the store can be read at any moment, also while it grows. The folder
`state` holds what else a filter needs to go on after an interruption: a ledger with one line per
cycle, and the observations that each cycle took up.
"""

import errno
import json
import os
import shutil
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import google_crc32c
import numpy as np
import xarray as xr

from dynamics.files import sync, sync_tree
from dynamics.layout import Layout

from .lock import Lock
from .store.attributes import read_attributes
from .store.replacing import (
    announce,
    announcement,
    beside,
    check_settings,
    check_target,
    replace,
    supersedes,
)

if TYPE_CHECKING:
    from .observation import Observations

KIND = "sda analyses"
# The cycles whose times, and counts of observations, share a chunk.
AHEAD = 1024
COUNTS = {
    "observed": "number of values observed since the previous analysis",
    "failed": "number of members that diverged and are missing",
}
STATE, LEDGER = "state", "ledger.jsonl"


class AnalysisWriter:
    """Appends analyses to a store, and keeps what a filter needs to go on.

    Arguments:
        path: The store.
        layout: The layout of the states.
        members: The number of members.
        interval: The time between two cycles.
        settings: What decides the analyses, as plain JSON types. A store is resumed only by a run
            of the same settings.
        attrs: Further global attributes.
        dtype: The type of the variables.
        overwrite: Whether analyses that stand at `path` already are replaced. They stay as they are
            until the first new cycle is on disk.
        resume: Whether analyses that stand at `path` are continued. If there are none, a new store
            is made.

    Attributes:
        cycles: The number of finished cycles.
        start: The time of the first cycle, None before it is known.
        ledger: One entry for each finished cycle.

    Raises:
        FileExistsError: If something stands at `path` and neither `overwrite` nor `resume` is
            given, if it is no store of analyses, or if another process is writing it.
        ValueError: If both are given, or the store to resume was made with other settings.
        OSError: If the disk is full. Finished cycles stay readable.
    """

    def __init__(
        self,
        path: str | Path,
        layout: Layout,
        members: int,
        interval: float,
        settings: Mapping[str, Any],
        attrs: Mapping[str, Any],
        dtype: str = "float32",
        overwrite: bool = False,
        resume: bool = False,
    ) -> None:
        self.path = Path(path).resolve() if Path(path).is_symlink() else Path(path)
        self.layout, self.members, self.interval, self.dtype = layout, members, interval, dtype
        self.start: float | None = None
        self.cycles = 0
        self.ledger: list[dict[str, Any]] = []
        self.failures: dict[str, list[Any]] = {"failures": [], "failed_members": []}
        self.made = False
        self.counts = {name: np.zeros(AHEAD, dtype="<i4") for name in COUNTS}
        self.lock = Lock(self.path).acquire()
        try:
            settings = json.loads(json.dumps(dict(settings)))
            self.replaces = check_target(
                self.path,
                overwrite,
                resume,
                is_analyses,
                "holds no analyses of a filter",
                "continue",
            ) and (not resume or supersedes(self.path, settings))
            self.place = beside(self.path) if self.replaces else self.path
            if self.replaces:
                announce(self.path, settings)
            self.attrs: dict[str, Any] = {
                "Conventions": "CF-1.11",
                **attrs,
                "kind": KIND,
                "variables": list(layout.variables),
                "settings": json.dumps(settings, sort_keys=True),
            }
            if self.path.exists() and not self.replaces:
                self._reopen(settings)
        except BaseException:
            self.lock.release()
            raise

    def _reopen(self, settings: Mapping[str, Any]) -> None:
        """Takes up what an earlier run left."""

        self.attrs = read_attributes(self.path)
        check_settings(self.path, self.attrs, settings)
        self.start, self.cycles = float(self.attrs["start"]), int(self.attrs["finished_cycles"])
        text = (self.path / STATE / LEDGER).read_bytes()
        # What follows the last finished cycle is of one that was interrupted.
        lines = text.split(b"\n")[: self.cycles]
        try:
            for line in lines:
                self._remember(json.loads(line))
        except ValueError as error:
            raise ValueError(
                f"the ledger of {str(self.path)!r} is damaged in line {len(self.ledger) + 1}: it "
                f"cannot be resumed, give overwrite=true or another path"
            ) from error
        size = sum(len(line) + 1 for line in lines)
        with (self.path / STATE / LEDGER).open("r+b") as file:
            file.truncate(size)
        for name in COUNTS:
            values = np.array([entry[name] for entry in self.ledger], dtype="<i4")
            room = max(AHEAD, -(-len(values) // AHEAD) * AHEAD)
            self.counts[name] = np.concatenate([values, np.zeros(room - len(values), "<i4")])

    def _remember(self, entry: dict[str, Any]) -> None:
        self.ledger.append(entry)
        self.failures["failures"] += entry.get("failures", [])
        members = {*self.failures["failed_members"], *entry.get("failed_members", [])}
        self.failures["failed_members"] = sorted(members)

    def begin(self, start: float) -> None:
        """Says when the first cycle is."""

        if self.start is None:
            self.start = start

    def put(
        self,
        cycle: int,
        rows: Mapping[int, np.ndarray],
        entry: Mapping[str, Any],
        batches: Sequence["Observations"] = (),
        arrays: Mapping[str, np.ndarray] | None = None,
    ) -> None:
        """Writes a cycle, and records it as finished.

        Arguments:
            cycle: Its number, that of finished cycles.
            rows: The analyses that it gives or betters, `(member, channel, *space)`, by the cycle
                of their time.
            entry: What the ledger is to hold of it, with the `COUNTS`, as plain JSON types.
            batches: The observations that it took up.
            arrays: What else is needed to go on after it, by name.

        Raises:
            OSError: If it could not be written.
        """

        try:
            if not self.place.exists():
                self._create()
            state = self.place / STATE
            for row, values in rows.items():
                self.write_row(row, values)
            names = []
            for number, batch in enumerate(batches):
                names.append(f"{cycle}-{number}.parquet")
                batch.save(state / names[-1], overwrite=True)
                sync(state / names[-1])
            if arrays is not None:
                with self._fresh() as fresh:
                    with fresh.open("wb") as file:
                        np.savez(file, allow_pickle=False, **dict(arrays))
                    self._replace(fresh, state / f"{cycle}.npz")
            line = {"cycle": cycle, **entry, "files": names}
            with (state / LEDGER).open("ab") as file:
                file.write(json.dumps(line).encode() + b"\n")
                file.flush()
                os.fsync(file.fileno())
            self._remember(line)
            for name in COUNTS:
                if cycle >= len(self.counts[name]):
                    self.counts[name] = np.append(self.counts[name], np.zeros(AHEAD, "<i4"))
                self.counts[name][cycle] = line[name]
            self._commit(cycle + 1)
            (state / f"{cycle - 1}.npz").unlink(missing_ok=True)
        except OSError as error:
            full = error.errno == errno.ENOSPC
            reason = "the disk is full" if full else error.strerror or str(error)
            raise type(error)(
                error.errno,
                f"{reason} while writing cycle {cycle}: {self.cycles} cycles are finished and stay "
                f"readable; mend that and run again with resume=true",
                str(self.path),
            ) from error

    def write_row(self, row: int, values: np.ndarray) -> None:
        """Writes the analysis of one time, `(member, channel, *space)`, atomically."""

        for i, name in enumerate(self.layout.variables):
            data = np.ascontiguousarray(values[:, i], dtype=self.stored).tobytes()
            self._write(self._chunk(name, row), data + checksum(data))

    @property
    def stored(self) -> np.dtype[Any]:
        """The type of the values on disk."""
        return np.dtype(self.dtype).newbyteorder("<")

    def _chunk(self, name: str, row: int) -> Path:
        """The file of a variable at one time."""
        return self.place.joinpath(name, "c", str(row), *["0"] * (1 + len(self.layout.dims)))

    def _fresh(self) -> "Partial":
        return Partial(beside(self.place / STATE / "partial"))

    def _write(self, path: Path, data: bytes, durable: bool = True) -> None:
        """Writes a file, complete or not at all."""

        with self._fresh() as fresh:
            fresh.write_bytes(data)
            self._replace(fresh, path, durable)

    def _replace(self, fresh: Path, path: Path, durable: bool = True) -> None:
        # The folder is not synced: a power cut that takes a name from it is seen on resuming.
        if durable:
            sync(fresh)
        path.parent.mkdir(parents=True, exist_ok=True)
        os.replace(fresh, path)

    def _create(self) -> None:
        """Makes an empty store, beside its place first, so that no half-made one is seen."""

        import zarr
        from zarr.codecs import Crc32cCodec

        assert self.start is not None  # `begin` comes first
        layout = self.layout
        self.place.parent.mkdir(parents=True, exist_ok=True)
        self.made = True
        fresh = beside(self.path)
        try:
            group: Any = zarr.create_group(fresh, zarr_format=3)
            group.create_group(STATE, attributes={"long_name": "what the filter needs to go on"})
            template = layout.to_dataset(np.empty((0, 0, *layout.shape)))
            for name, coord in template.coords.items():
                fixed = np.arange(self.members) if name == "member" else coord.values
                grows = name == "time"
                array = group.create_array(
                    str(name),
                    shape=(0,) if grows else fixed.shape,
                    chunks=(AHEAD,) if grows else fixed.shape,
                    dtype="float64" if grows else fixed.dtype,
                    compressors=None,
                    dimension_names=tuple(map(str, coord.dims)),
                    attributes=dict(coord.attrs),
                )
                if not grows:
                    array[:] = fixed
            for name, text in COUNTS.items():
                group.create_array(
                    name, shape=(0,), chunks=(AHEAD,), dtype="int32", compressors=None,
                    dimension_names=("time",), attributes={"units": "1", "long_name": text},
                )  # fmt: skip
            space = layout.shape[1:]
            for name in layout.variables:
                group.create_array(
                    name,
                    shape=(0, self.members, *space),
                    chunks=(1, self.members, *space),
                    dtype=self.dtype,
                    compressors=[Crc32cCodec()],
                    fill_value=float("nan"),
                    dimension_names=("time", "member", *layout.dims),
                    attributes=layout.attributes(name) | layout.auxiliary(),
                )
            (fresh / STATE / LEDGER).touch()
            self.attrs |= {"start": self.start, "interval": self.interval}
            commit(fresh, self._arrays(), 0, self.attrs | self._status(0))
            sync_tree(fresh)
            os.rename(fresh, self.place)
            sync(self.place.parent)
        finally:
            shutil.rmtree(fresh, ignore_errors=True)

    def _arrays(self) -> dict[str, bool]:
        """The arrays of the store, and whether each grows with time."""

        return {
            **dict.fromkeys(("time", *COUNTS, *self.layout.variables), True),
            **dict.fromkeys(("member", *self.layout.dims, *self.layout.masks()), False),
        }

    def _status(self, cycles: int, state: str = "running") -> dict[str, Any]:
        status = f"{state}: {cycles} cycles"
        return {"finished_cycles": cycles, "status": status, **self.failures}

    def _commit(self, cycles: int) -> None:
        """Lets readers see so many cycles."""

        assert self.start is not None
        part = (cycles - 1) // AHEAD
        chunk = self.place / "time" / "c" / str(part)
        if not chunk.exists():
            # All times of a chunk at once: they are known.
            times = self.start + self.interval * np.arange(part * AHEAD, (part + 1) * AHEAD)
            self._write(chunk, times.astype("<f8").tobytes())
        for name, counts in self.counts.items():
            data = counts[part * AHEAD : (part + 1) * AHEAD].tobytes()
            # The ledger has them too.
            self._write(self.place / name / "c" / str(part), data, durable=False)
        self.attrs |= self._status(cycles)
        commit(self.place, self._arrays(), cycles, self.attrs)
        self.cycles = cycles
        if self.place != self.path:
            replace(self.path, self.place)
            self.place = self.path
            announcement(self.path).unlink(missing_ok=True)

    def damages(self) -> dict[int, str]:
        """What is wrong with the finished cycles whose files are not as they were written."""
        return damages(self.place, self.attrs, thorough=True)

    def observations(self, entries: Iterable[Mapping[str, Any]]) -> list["Observations"]:
        """The observations that some entries of the ledger name."""

        from .observation import Observations

        return [
            Observations.load(self.place / STATE / name)
            for entry in entries
            for name in entry["files"]
        ]

    def arrays(self) -> dict[str, np.ndarray]:
        """The arrays that the last finished cycle left."""

        with np.load(self.place / STATE / f"{self.cycles - 1}.npz") as content:
            return dict(content)

    def row(self, row: int) -> np.ndarray:
        """The analysis of one time, `(member, channel, *space)`."""

        shape = (self.members, *self.layout.shape[1:])
        values = [
            np.frombuffer(self._chunk(name, row).read_bytes()[:-4], self.stored).reshape(shape)
            for name in self.layout.variables
        ]
        return np.stack(values, axis=1)

    def close(self, state: str = "stopped") -> None:
        """Records that nobody writes any more, and releases the lock."""

        if self.lock.handle is None:
            return
        try:
            if self.cycles and self.place.exists():
                self.attrs |= self._status(self.cycles, state)
                commit(self.place, self._arrays(), self.cycles, self.attrs)
        finally:
            if self.place != self.path or (self.made and not self.cycles):
                # Without a cycle it is of no use, and in the way of what comes next.
                shutil.rmtree(self.place, ignore_errors=True)
            self.lock.release()


class Partial:
    """A file that is removed on leaving, unless it was moved away."""

    def __init__(self, path: Path) -> None:
        self.path = path

    def __enter__(self) -> Path:
        return self.path

    def __exit__(self, *error: object) -> None:
        self.path.unlink(missing_ok=True)


def commit(path: Path, arrays: Mapping[str, bool], cycles: int, attrs: Mapping[str, Any]) -> None:
    """Sets the number of cycles of a store, and its attributes, in one step.

    The metadata of all arrays are in that of the group (Zarr's consolidated metadata), which is
    replaced as a whole. Those of the arrays themselves, for readers that look there, follow one by
    one before.
    """

    metadata = {}
    for name, grows in arrays.items():
        content = json.loads((path / name / "zarr.json").read_text(encoding="utf-8"))
        if grows and content["shape"][0] != cycles:
            content["shape"][0] = cycles
            write_json(path / name / "zarr.json", content, path)
        metadata[name] = content
    content = {
        "zarr_format": 3,
        "node_type": "group",
        "attributes": dict(attrs),
        "consolidated_metadata": {
            "kind": "inline",
            "must_understand": False,
            "metadata": metadata,
        },
    }
    write_json(path / "zarr.json", content, path, durable=True)


def write_json(path: Path, content: Any, store: Path, durable: bool = False) -> None:
    """Replaces a JSON file, all or nothing."""

    fresh = beside(store / STATE / "partial")
    try:
        fresh.write_text(json.dumps(content, indent=1), encoding="utf-8")
        if durable:
            sync(fresh)
        os.replace(fresh, path)
        if durable:
            sync(path.parent)
    finally:
        fresh.unlink(missing_ok=True)


def checksum(data: bytes) -> bytes:
    """The CRC-32C of a chunk, as Zarr appends it."""
    return int(google_crc32c.value(data)).to_bytes(4, "little")


def is_analyses(path: str | Path) -> bool:
    """Whether analyses of a filter stand at `path`."""

    try:
        return read_attributes(Path(path)).get("kind") == KIND
    except (OSError, ValueError):
        return False


def damages(path: Path, attrs: Mapping[str, Any], thorough: bool = False) -> dict[int, str]:
    """The finished cycles of a store whose files are not as they were written.

    Arguments:
        path: The store.
        attrs: Its attributes.
        thorough: Whether the content is compared with its checksum too, not the sizes only.

    Returns:
        What is wrong with each damaged cycle, by its number.
    """

    damaged: dict[int, str] = {}
    for name in attrs["variables"]:
        content = json.loads((path / name / "zarr.json").read_text(encoding="utf-8"))
        shape = content["chunk_grid"]["configuration"]["chunk_shape"]
        size = int(np.prod(shape)) * np.dtype(content["data_type"]).itemsize + 4
        for row in range(int(attrs["finished_cycles"])):
            file = path.joinpath(name, "c", str(row), *["0"] * (len(shape) - 1))
            found = file.stat().st_size if file.is_file() else -1
            wrong = None
            if found != size:
                wrong = "is missing" if found < 0 else f"has {found} of {size} bytes"
            elif thorough:
                data = file.read_bytes()
                if checksum(data[:-4]) != data[-4:]:
                    wrong = "has another content than was written"
            if wrong:
                where = file.relative_to(path)
                damaged.setdefault(row, f"{where} {wrong} (cycle {row})")
    return damaged


def open_analyses(path: Path) -> xr.Dataset:
    """Opens analyses lazily, with the dimensions `(member, time, *space)`, see `open_dataset`."""

    # One file says all: what it says belongs together, also while another process writes.
    dataset = xr.open_zarr(path, consolidated=True, decode_times=False, chunks={})
    dataset = dataset.set_coords(list(COUNTS)).transpose("member", "time", ...)
    damaged = damages(path, dataset.attrs)
    if damaged:
        text = "; ".join(damaged.values())
        dataset.attrs["status"] = f"damaged: {text}"

    return dataset
