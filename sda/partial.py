"""A long forecast on its way: what is done of a block of members, on disk beside its store.

A block of members is written to its store once it is complete. A long forecast is not complete for
hours; its states are kept in a file of plain numbers meanwhile, mapped into memory, and a note says
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
        states: The states.
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
        self.states: np.ndarray
        if path is None:
            self.files: tuple[Path, Path] | None = None
            self.states = np.empty(shape, dtype)
            return
        stem = path.with_name(f".{path.name}.{block}")
        self.files = Path(f"{stem}.npy"), Path(f"{stem}.json")
        self.settings = json.loads(json.dumps({**settings, "shape": shape, "dtype": dtype}))
        if not self._continue():
            self.states = np.lib.format.open_memmap(
                self.files[0], mode="w+", dtype=np.dtype(dtype), shape=shape
            )

    def _continue(self) -> bool:
        assert self.files is not None  # only called with files
        data, note = self.files
        try:
            content = json.loads(note.read_text(encoding="utf-8"))
            if content["settings"] != self.settings:
                return False
            self.states = np.lib.format.open_memmap(data, mode="r+")
            if self.states.shape != tuple(self.settings["shape"]):
                return False
        except (OSError, ValueError, KeyError):
            return False
        self.done = int(content["done"])
        self.failures = {int(member): text for member, text in content["failures"].items()}
        return True

    def add(self, x: np.ndarray, failures: Mapping[int, str]) -> None:
        """Appends states `(member, time, channel, *space)`; more than there is room for are cut."""

        stop = min(self.done + x.shape[1], self.states.shape[1])
        self.states[:, self.done : stop] = x[:, : stop - self.done]
        self.done, self.failures = stop, self.failures | dict(failures)
        if self.files is None:
            return
        # First the states, then the note of them.
        if isinstance(self.states, np.memmap):
            self.states.flush()
        content = {"settings": self.settings, "done": self.done, "failures": self.failures}
        fresh = self.files[1].with_suffix(".part")
        with fresh.open("w", encoding="utf-8") as file:
            json.dump(content, file)
            file.flush()
            os.fsync(file.fileno())
        os.replace(fresh, self.files[1])

    def remove(self) -> None:
        """Removes the files."""

        for file in self.files or ():
            file.unlink(missing_ok=True)
