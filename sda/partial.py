"""A long forecast on its way: what is done of a block of members, on disk beside its store.

A block of members is written to its store once it is complete. A long forecast is not complete for
hours; its states are appended to a file of plain numbers meanwhile, time by time, and a note says
how many are done. A run that is resumed goes on from there.
"""

import json
import os
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np


class Partial:
    """The states of a block of members, as far as they are done.

    Arguments:
        path: The store that they will be in, or None: they are kept in memory.
        block: The index of the block.
        shape: The shape `(member, time, channel, *space)`.
        dtype: The type of the states.
        settings: What decides the states, as plain JSON types. Others are not continued.

    Attributes:
        done: The number of states of each member that are done.
        failures: What happened to members that failed, by their index.
    """

    def __init__(
        self,
        path: Path | None,
        block: int,
        shape: tuple[int, ...],
        dtype: str,
        settings: Mapping[str, Any],
    ) -> None:
        self.done, self.failures = 0, dict[int, str]()
        # Time first: what is new is appended.
        members, self.length, *state = shape
        self.frame, self.dtype = (members, *state), np.dtype(dtype)
        self.size = self.dtype.itemsize * int(np.prod(self.frame))
        self.files: tuple[Path, Path] | None = None
        self.settings = json.loads(json.dumps({**settings, "shape": shape, "dtype": dtype}))
        if path is None:
            self.memory = np.empty((self.length, *self.frame), self.dtype)
            return
        stem = path.with_name(f".{path.name}.{block}")
        self.files = Path(f"{stem}.bin"), Path(f"{stem}.json")
        path.parent.mkdir(parents=True, exist_ok=True)
        if not self._continue(*self.files):
            self.files[0].write_bytes(b"")

    def _continue(self, data: Path, note: Path) -> bool:
        """Takes up what an earlier run has left, if it is of the same settings."""

        try:
            content = json.loads(note.read_text(encoding="utf-8"))
            done = int(content["done"])
            if content["settings"] != self.settings or data.stat().st_size < done * self.size:
                return False
        except (OSError, ValueError, KeyError):
            return False
        self.done = done
        self.failures = {int(member): text for member, text in content["failures"].items()}
        return True

    @property
    def states(self) -> np.ndarray:
        """The states that are done, `(member, time, channel, *space)`. Changes are not kept."""

        if self.files is None:
            x = self.memory[: self.done]
        elif self.done:
            x = np.memmap(self.files[0], self.dtype, "c", shape=(self.done, *self.frame))
        else:
            x = np.empty((0, *self.frame), self.dtype)

        return x.swapaxes(0, 1)

    def add(self, x: np.ndarray, failures: Mapping[int, str]) -> None:
        """Appends states `(member, time, channel, *space)`; more than there is room for are cut.

        Raises:
            OSError: If the disk is full. What was done before stays.
        """

        stop = min(self.done + x.shape[1], self.length)
        new = x[:, : stop - self.done].swapaxes(0, 1).astype(self.dtype, copy=False)
        if self.files is None:
            self.memory[self.done : stop] = new
            self.done, self.failures = stop, self.failures | dict(failures)
            return
        # First the states, then the note of them.
        data, note = self.files
        with data.open("r+b") as file:
            file.seek(self.done * self.size)
            file.write(np.ascontiguousarray(new).tobytes())
            file.flush()
            os.fsync(file.fileno())
        self.done, self.failures = stop, self.failures | dict(failures)
        content = {"settings": self.settings, "done": self.done, "failures": self.failures}
        fresh = note.with_suffix(".part")
        with fresh.open("w", encoding="utf-8") as text:
            json.dump(content, text)
            text.flush()
            os.fsync(text.fileno())
        os.replace(fresh, note)

    def remove(self) -> None:
        """Removes the files."""

        for file in self.files or ():
            file.unlink(missing_ok=True)
