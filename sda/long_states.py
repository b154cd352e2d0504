"""The state of a long run on disk.

The arrays of all members lie in one folder, time outermost, so that a block of time is one piece of
each file. They are mapped into memory: what is used stays in the machine's page cache as long as
there is room, and no longer. The folder's `state.json` says how far the run is. It is replaced
atomically, and only after what it tells of is on disk; each phase of a run reads some arrays and
writes others, so that a phase that was cut short is simply taken up again.
"""

import errno
import json
import math
import os
import shutil
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from dynamics.files import sync

STATE = "state.json"


class States:
    """Arrays `(time, member, channel, *space)` on disk.

    Arguments:
        folder: Where they lie.
        names: Their names.
        shape: The shape of each.
        dtype: Their type.
        begun: Whether they must be there, since a run is taken up.

    Raises:
        OSError: If the disk has no room for them.
        ValueError: If one of a run that is taken up is missing or cut short.
    """

    def __init__(
        self,
        folder: Path,
        names: Sequence[str],
        shape: tuple[int, ...],
        dtype: torch.dtype,
        begun: bool = False,
    ) -> None:
        self.folder, self.shape = folder, shape
        self.type = np.float64 if dtype == torch.float64 else np.float32
        folder.mkdir(parents=True, exist_ok=True)
        self.arrays: dict[str, np.ndarray] = {}
        self.changed: set[str] = set()
        for name in names:
            self.arrays[name] = mapped(folder / f"{name}.bin", shape, self.type, begun)

    def read(
        self, name: str, low: int, high: int, members: slice, device: torch.device | str = "cpu"
    ) -> Tensor:
        """A range of times of some members, `(member, time, channel, *space)`."""

        part = np.array(self.arrays[name][low:high, members].swapaxes(0, 1), order="C")
        return torch.from_numpy(part).to(device)

    def write(self, name: str, low: int, members: slice, values: Tensor) -> None:
        """Writes a range of times that begins at `low`, see `read`."""

        part = values.detach().cpu().numpy().swapaxes(0, 1)
        self.arrays[name][low : low + len(part), members] = part
        self.changed.add(name)

    def fill(self, name: str, members: Sequence[int], value: float) -> None:
        """Sets members to one value, at all times."""

        array = self.arrays[name]
        for low in range(0, len(array) if members else 0, 256):
            array[low : low + 256, list(members)] = value
        self.changed.add(name)

    def flush(self) -> None:
        """Forces what has changed to disk."""

        for name in sorted(self.changed):
            array = self.arrays[name]
            if isinstance(array, np.memmap):
                array.flush()
        self.changed.clear()

    def close(self) -> None:
        """Lets go of the files."""
        self.arrays.clear()


def mapped(path: Path, shape: tuple[int, ...], kind: Any, begun: bool) -> np.ndarray:
    """An array that is a file, of zeros unless a run is taken up, see `States`."""

    size = math.prod(shape) * np.dtype(kind).itemsize
    found = path.stat().st_size if path.is_file() else -1
    if begun and found != size:
        wrong = "is missing" if found < 0 else f"has {found} of {size} bytes"
        raise ValueError(
            f"the interrupted run cannot be resumed: {str(path)!r} {wrong}. Give overwrite=true to "
            f"begin again"
        )
    if found != size:
        reserve(path, size)

    return np.memmap(path, dtype=kind, mode="r+", shape=shape)


def reserve(path: Path, size: int) -> None:
    """Makes a file of zeros whose room on disk is taken already.

    A file with holes would let a run start that a full disk ends later, and not by an error.

    Raises:
        OSError: If the disk is full.
    """

    try:
        with path.open("wb") as file:
            if hasattr(os, "posix_fallocate"):
                os.posix_fallocate(file.fileno(), 0, max(size, 1))
            file.truncate(size)
    except OSError:
        path.unlink(missing_ok=True)
        raise


def room(path: Path) -> int:
    """The free bytes of the disk that a path is or will be on."""

    while not path.exists():
        path = path.parent
    return shutil.disk_usage(path).free


def write_state(folder: Path, content: Mapping[str, Any]) -> None:
    """Replaces a run's `state.json`, all or nothing."""

    part = folder / f".{STATE}"
    with part.open("w", encoding="utf-8") as file:
        json.dump(dict(content), file)
        file.flush()
        os.fsync(file.fileno())
    os.replace(part, folder / STATE)
    sync(folder)


def read_state(folder: Path) -> dict[str, Any] | None:
    """A run's `state.json`; None if there is no run that could be taken up."""

    try:
        content = json.loads((folder / STATE).read_text(encoding="utf-8"))
    except (OSError, ValueError):
        return None
    return content if isinstance(content, dict) else None


def full(error: OSError, path: Path, doing: str, need: int) -> OSError:
    """An `OSError` of the same kind that says what a long run needs."""

    reason = "the disk is full" if error.errno == errno.ENOSPC else error.strerror or str(error)
    return type(error)(
        error.errno,
        f"{reason} while {doing}: a long run needs {need / 2**30:.3g} GiB for its states and its "
        f"result; make room and run again with resume=true, or assimilate fewer members",
        str(path),
    )
