"""Locks: one writer at a time for each store.

A lock is a file beside the store, which names the process that writes it. The operating system
holds the lock itself (`flock`) and lets go of it when the process ends, however it ends: a lock
that a dead process has left is taken over, without heartbeats and without guessing from ages. A
lock of another machine cannot be tried from here, and is left to whoever knows that machine.
"""

import json
import os
import socket
from datetime import UTC, datetime
from pathlib import Path
from types import TracebackType
from typing import Any


class Locked(FileExistsError):
    """Another process writes the store."""


class Lock:
    """A lock on a store, held from `acquire` (or entering a `with` block) to `release`.

    The lock of `posterior.zarr` is the file `.posterior.zarr.lock` beside it. A second lock on the
    same store is refused within one process too.

    Arguments:
        path: The store, which need not exist.

    Raises:
        Locked: When acquired, if another process holds it; the message names process and machine.
        OSError: If the file cannot be written.
    """

    def __init__(self, path: str | Path) -> None:
        # A link to a store is the same store.
        path = Path(path).resolve()
        self.path, self.file = path, path.with_name(f".{path.name}.lock")
        self.handle: int | None = None

    def acquire(self) -> "Lock":
        """Takes the lock, or raises `Locked`."""

        import fcntl

        if self.handle is not None:
            return self
        self.file.parent.mkdir(parents=True, exist_ok=True)
        while True:
            handle = os.open(self.file, os.O_RDWR | os.O_CREAT, 0o644)
            try:
                fcntl.flock(handle, fcntl.LOCK_EX | fcntl.LOCK_NB)
                # Its holder may have removed the file between the opening and the locking.
                if not self._stands(handle):
                    os.close(handle)
                    continue
                holder = read(handle)
                if holder and holder.get("host") != socket.gethostname():
                    raise BlockingIOError
                os.ftruncate(handle, 0)
                os.pwrite(handle, json.dumps(description()).encode(), 0)
                os.fsync(handle)
            except BlockingIOError as error:
                holder = read(handle)
                os.close(handle)
                raise Locked(self._message(holder)) from error
            except BaseException:
                os.close(handle)
                raise
            self.handle = handle
            return self

    def release(self) -> None:
        """Lets go of the lock, if it is held."""

        if self.handle is None:
            return
        # Removed while it is still locked: whoever opens it now finds that it no longer stands.
        if self._stands(self.handle):
            self.file.unlink(missing_ok=True)
        os.close(self.handle)
        self.handle = None

    def _stands(self, handle: int) -> bool:
        """Whether an open file is the one at the lock's path."""

        try:
            return os.path.samestat(os.fstat(handle), os.stat(self.file))
        except FileNotFoundError:
            return False

    def _message(self, holder: dict[str, Any]) -> str:
        who = "another process"
        if holder:
            who = f"process {holder.get('pid')} on {holder.get('host')} since {holder.get('since')}"
        mend = "wait for it, stop it, or write to another store"
        if holder and holder.get("host") != socket.gethostname():
            mend = f"if it no longer runs there, remove {str(self.file)!r}"
        return f"{str(self.path)!r} is being written by {who}: {mend}"

    def __enter__(self) -> "Lock":
        return self.acquire()

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self.release()


def description() -> dict[str, Any]:
    """What a lock says of its holder."""

    return {
        "pid": os.getpid(),
        "host": socket.gethostname(),
        "since": datetime.now(UTC).isoformat(timespec="seconds"),
    }


def read(handle: int) -> dict[str, Any]:
    """What a lock says of its holder; nothing if it is empty or torn."""

    try:
        content = json.loads(os.pread(handle, 4096, 0) or b"{}")
    except ValueError:
        return {}
    return content if isinstance(content, dict) else {}
