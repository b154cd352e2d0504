"""Streams: where a filter's observations come from, one batch after the other.

A stream looks at its source again and again, and hands over what is new since it last looked, in
the order of time. Sources are a Python iterable, a folder into which files are put, and a table or
a gridded store that somebody appends to. A stream ends when its *sentinel* appears, or when nothing
new has come in for its *idle* time; otherwise it keeps waiting. Waiting is measured by a clock that
nobody sets.

Each batch has a *mark*: which file it was, by its content, or which rows. A filter keeps the marks
of what it took up beside its analyses, and gives them back after a restart: nothing is used twice.
"""

import abc
import hashlib
import json
import time
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import xarray as xr

from .observation import Observations
from .observation.observations import GRIDDED, TABLES

SENTINEL = "END"


@dataclass
class Batch:
    """Observations that came in together.

    Attributes:
        observations: The observations.
        mark: What the stream knows them by, None where it needs nothing of the kind.
    """

    observations: Observations
    mark: str | None = None


class Stream(abc.ABC):
    """A source of observations that is looked at until it ends.

    Iterating gives the `Observations` of one batch after the other.

    Arguments:
        idle: The seconds without anything new after which the stream ends (default: never).
        poll: The seconds between two looks.
        clock: A clock that never goes back, in seconds.
        sleep: Waits for so many seconds.
        report: What to do with a line about something that cannot be used (default: nothing).
        like: The prior in whose terms files of others are read, see `sda.cf.load_observations`
            (default: they are in the engine's own form).

    Raises:
        ValueError: If a time is negative.
    """

    def __init__(
        self,
        idle: float | None = None,
        poll: float = 1.0,
        clock: Callable[[], float] = time.monotonic,
        sleep: Callable[[float], None] = time.sleep,
        report: Callable[[str], None] | None = None,
        like: Any = None,
    ) -> None:
        if poll < 0 or (idle is not None and idle < 0):
            raise ValueError(f"poll and idle must not be negative, got {poll} and {idle}")
        self.idle, self.poll, self.clock, self.sleep = idle, poll, clock, sleep
        self.report, self.like = report or (lambda text: None), like

    def load(self, path: Path) -> Observations:
        """Loads a file of observations."""

        if self.like is None:
            return Observations.load(path)
        from .cf import load_observations

        return load_observations(path, self.like.layout, self.like.standard_names)

    @abc.abstractmethod
    def look(self, ended: bool) -> list[Batch]:
        """What is new, in the order of time.

        Arguments:
            ended: Whether this is the last look: nothing is held back as incomplete.
        """

    def ended(self) -> bool:
        """Whether the source says that nothing more will come."""
        return False

    def restore(self, marks: Sequence[str]) -> None:  # noqa: B027
        """Takes note of what was used before, by its marks; nothing where there are none."""

    def polls(self) -> Iterator[list[Batch]]:
        """What each look found, until the stream ends."""

        since = self.clock()
        while True:
            # Asked first: what was put there before the sentinel is found after it.
            ended = self.ended()
            found = self.look(ended)
            if found:
                yield found
                since = self.clock()
            if ended:
                return
            if found:
                continue
            if self.idle is not None and self.clock() - since >= self.idle:
                rest = self.look(True)
                if rest:
                    yield rest
                return
            self.sleep(self.poll)

    def __iter__(self) -> Iterator[Observations]:
        for found in self.polls():
            for batch in found:
                yield batch.observations


class Iterated(Stream):
    """Any iterable of observations, each of whose items is analysed when it comes in."""

    def __init__(self, source: Iterable[Observations]) -> None:
        super().__init__()
        self.source = source

    def look(self, ended: bool) -> list[Batch]:
        return [Batch(observations) for observations in self.source]

    def polls(self) -> Iterator[list[Batch]]:
        for observations in self.source:
            if not isinstance(observations, Observations):
                raise TypeError(
                    f"a stream must give Observations, got {type(observations).__name__}: make "
                    f"them with Observations.from_table or from_grid"
                )
            yield [Batch(observations)]


def reason(error: Exception) -> str:
    """What an error says, in words: of a `KeyError` it is only the key."""
    return f"it has no {error}" if isinstance(error, KeyError) else str(error)


class Folder(Stream):
    """A folder into which files of observations are put, in any form that `Observations` loads.

    A file that cannot be read yet is tried again when it has changed: put files there by renaming
    them, and they are never seen half written. Names that begin with a dot are left alone. Files
    are known by their content: one that is copied or renamed is not used again. The folder ends
    with a file of the name `END`.

    Arguments:
        path: The folder.
        sentinel: The name of the file that ends the stream.
        options: See `Stream`.

    Raises:
        FileNotFoundError: If there is no such folder.
    """

    def __init__(self, path: str | Path, sentinel: str = SENTINEL, **options: Any) -> None:
        super().__init__(**options)
        self.path, self.sentinel = Path(path), sentinel
        if not self.path.is_dir():
            raise FileNotFoundError(f"there is no folder of observations at {str(self.path)!r}")
        self.used: set[str] = set()
        # Name, size and time of change of what was looked at, used or not.
        self.seen: set[tuple[str, int, int]] = set()
        # Of what could not be read: how it was then, and whether that was reported.
        self.unread: dict[str, tuple[Any, bool]] = {}

    def ended(self) -> bool:
        return (self.path / self.sentinel).exists()

    def restore(self, marks: Sequence[str]) -> None:
        self.used |= set(marks)

    def look(self, ended: bool) -> list[Batch]:
        found = []
        for path in sorted(self.path.iterdir()):
            if path.suffix not in (*GRIDDED, *TABLES) or path.name.startswith("."):
                continue
            state = None
            try:
                state = stamp(path)
                if state in self.seen:
                    continue
                code = content_hash(path)
                observations = None if code in self.used else self.load(path)
                if stamp(path) != state:
                    continue  # it is being written
            except (OSError, ValueError, KeyError) as error:
                # Perhaps only half of it is written; what stays so is said once.
                before, told = self.unread.get(path.name, (None, False))
                stays = ended or before == state
                if stays and not (told and before == state):
                    so_far = "" if ended else " so far"
                    self.report(f"{path} is left out{so_far}: {reason(error)}")
                self.unread[path.name] = (state, stays)
                continue
            self.seen.add(state)
            if observations is not None:
                self.used.add(code)
                found.append(Batch(observations, code))

        return sorted(found, key=lambda batch: batch.observations.span[::-1])


class Appended(Stream):
    """A source that grows, of which what is new is used once it stands still.

    What a look finds is used when the next look finds the same: a writer may be in the middle of
    it. The stream ends with a file `<path>.end` beside the source.
    """

    def __init__(self, path: str | Path, **options: Any) -> None:
        super().__init__(**options)
        self.path = Path(path)
        self.sentinel = self.path.with_name(f"{self.path.name}.end")
        self.before: Any = None
        self.complaint = self.told = ""

    def ended(self) -> bool:
        return self.sentinel.exists()

    @abc.abstractmethod
    def read(self) -> tuple[Any, Any]:
        """The content, and what tells it from another."""

    @abc.abstractmethod
    def batches(self, content: Any) -> list[Batch]:
        """The batches of what is new in the content, which is used from now on."""

    def look(self, ended: bool) -> list[Batch]:
        if not self.path.exists():
            return []
        try:
            content, state = self.read()
            still, self.before = ended or state == self.before, state
            return self.batches(content) if still else []
        except (OSError, ValueError, KeyError) as error:
            # Perhaps only half of it is written; what stays so is said once.
            text = reason(error)
            if text != self.told and (ended or text == self.complaint):
                self.report(f"{self.path}: {text}")
                self.told = text
            self.complaint = text
            return []


class Table(Appended):
    """A table of points, Parquet or CSV, to which rows are appended; see `sda.observation.table`.

    The rows of one time that are found together are one batch. Rows are known by their number:
    those that were used must stay where they are.

    Arguments:
        path: The file; it may come into being later.
        options: See `Stream`.
    """

    def __init__(self, path: str | Path, **options: Any) -> None:
        super().__init__(path, **options)
        self.used = np.zeros(0, dtype=bool)

    def restore(self, marks: Sequence[str]) -> None:
        for mark in marks:
            for first, last in json.loads(mark):
                self._use(np.arange(first, last + 1))

    def _use(self, rows: np.ndarray) -> None:
        missing = int(rows.max()) + 1 - len(self.used)
        if missing > 0:
            self.used = np.append(self.used, np.zeros(missing, dtype=bool))
        self.used[rows] = True

    def read(self) -> tuple[pd.DataFrame, Any]:
        state = stamp(self.path)
        if self.path.suffix == ".csv":
            text = self.path.read_text(encoding="utf-8")
            # The last line counts once it is ended.
            from io import StringIO

            complete = text[: text.rfind("\n") + 1]
            frame = pd.read_csv(StringIO(complete), comment="#") if complete else pd.DataFrame()
            return frame, (state, len(frame))
        import pyarrow.lib as pa
        import pyarrow.parquet as pq

        try:
            frame = pq.read_table(self.path).to_pandas()
        except pa.ArrowInvalid as error:
            raise ValueError(f"cannot be read: {first_line(error)}") from error
        return frame, (state, len(frame))

    def batches(self, content: pd.DataFrame) -> list[Batch]:
        rows = np.arange(len(content))
        new = rows[~np.append(self.used, np.zeros(len(content), dtype=bool))[: len(content)]]
        if not len(new):
            return []
        frame = content.iloc[new].reset_index(drop=True)
        if self.like is not None:
            from .cf.tables import adapt

            known = adapt(frame, self.like.layout, standard_names=self.like.standard_names)
            if len(known) != len(frame):
                raise ValueError(
                    f"{self.path} has a column for each variable: a table that grows needs one row "
                    f"for each value"
                )
            frame = known
        times = frame["time"].to_numpy(dtype=np.float64)
        found = []
        for each in np.unique(times).tolist():
            mine = times == each
            part = frame[mine]
            self._use(new[mine])
            if part["observation"].isna().all():
                continue
            found.append(Batch(Observations.from_table(part), json.dumps(ranges(new[mine]))))

        return found


class Store(Appended):
    """A gridded Zarr store to which times are appended; see `sda.observation.grid`.

    Times that are found together are one batch each. Times are known by their value.

    Arguments:
        path: The store; it may come into being later.
        std: The errors' standard deviation, where the store has none.
        kind: "points" or "averages", see `Observations.from_grid`.
        options: See `Stream`.
    """

    def __init__(
        self, path: str | Path, std: Any = None, kind: str | None = None, **options: Any
    ) -> None:
        super().__init__(path, **options)
        self.std, self.kind = std, kind
        self.used: set[float] = set()

    def restore(self, marks: Sequence[str]) -> None:
        self.used |= {float(mark) for mark in marks}

    def read(self) -> tuple[xr.Dataset, Any]:
        dataset = xr.open_zarr(self.path, consolidated=False, decode_times=False, chunks=None)
        times = np.atleast_1d(np.asarray(dataset["time"].values, dtype=np.float64))
        new = [i for i, each in enumerate(times.tolist()) if each not in self.used]
        part = dataset.isel(time=new).load() if "time" in dataset.dims else dataset.load()
        digest = hashlib.sha256()
        for name in sorted(map(str, part.variables)):
            digest.update(np.ascontiguousarray(part[name].values).tobytes())

        return part, digest.hexdigest()

    def batches(self, content: xr.Dataset) -> list[Batch]:
        found = []
        for each in np.sort(np.atleast_1d(content["time"].values)).tolist():
            one = content.sel(time=[each]) if "time" in content.dims else content
            names = [name for name in one.data_vars if not str(name).endswith("_std")]
            # All NaN: nothing was observed, or nothing is written yet.
            if all(bool(one[name].isnull().all()) for name in names):
                continue
            found.append(Batch(Observations.from_grid(one, self.std, self.kind), repr(each)))
            self.used.add(each)

        return found


def as_stream(source: Any, **options: Any) -> Stream:
    """The stream of a source: a folder, a store, a table by its path, or an iterable.

    Arguments:
        source: A stream; the path of a folder, of a Zarr store that ends in ".zarr", or of a table
            that ends in ".csv" or ".parquet"; or an iterable of observations.
        options: See `Stream`; paths only.

    Raises:
        FileNotFoundError: If a folder does not exist.
        ValueError: If a path is of no known kind.
    """

    if isinstance(source, Stream):
        return source
    if not isinstance(source, str | Path):
        return Iterated(source)
    path = Path(source)
    if path.suffix == ".zarr":
        return Store(path, **options)
    if path.suffix in TABLES:
        return Table(path, **options)
    if path.is_file():
        raise ValueError(
            f"{str(path)!r} is no stream: expected a folder, a store (.zarr) or a table "
            f"({', '.join(TABLES)})"
        )
    return Folder(path, **options)


def stamp(path: Path) -> tuple[str, int, int]:
    """Name, size and time of change of a file, or of the last file of a folder to change."""

    if path.is_dir():
        stats = [each.stat() for each in path.rglob("*") if each.is_file()]
        changed = max((each.st_mtime_ns for each in stats), default=0)
        return path.name, sum(each.st_size for each in stats), changed
    stat = path.stat()
    return path.name, stat.st_size, stat.st_mtime_ns


def content_hash(path: Path) -> str:
    """The SHA-256 of a file, or of all files of a folder with their names."""

    digest = hashlib.sha256()
    if path.is_file():
        return hashlib.sha256(path.read_bytes()).hexdigest()
    for each in sorted(path.rglob("*")):
        if each.is_file():
            digest.update(str(each.relative_to(path)).encode())
            digest.update(each.read_bytes())

    return digest.hexdigest()


def ranges(rows: np.ndarray) -> list[list[int]]:
    """Increasing numbers as ranges, the last one included."""

    parts = np.split(rows, np.flatnonzero(np.diff(rows) > 1) + 1)
    return [[int(part[0]), int(part[-1])] for part in parts]


def first_line(error: BaseException) -> str:
    """The first line of an error's message."""
    return next(iter(str(error).strip().splitlines()), type(error).__name__)
