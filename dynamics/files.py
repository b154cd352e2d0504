"""Files that are whole: forced to disk, and with checksums that tell later whether they still are.

A write that returns is in the machine's memory only; `sync` brings it to disk. What is on disk may
be cut short or altered later; `mark` is kept elsewhere and tells.
"""

import errno
import os
from pathlib import Path

import google_crc32c


def mark(path: Path) -> list[int]:
    """The size of a file and the CRC-32C of its content."""

    size = code = 0
    with path.open("rb") as file:
        while part := file.read(2**22):
            size, code = size + len(part), google_crc32c.extend(code, part)
    return [size, code]


def damage(path: Path, marked: list[int], thorough: bool = False) -> str:
    """What is wrong with a file, or nothing.

    Arguments:
        path: The file.
        marked: What `mark` said of it when it was written.
        thorough: Whether the content is compared too, not the size only.
    """

    size = marked[0]
    found = path.stat().st_size if path.is_file() else -1
    if found < 0:
        return "is missing"
    if found != size:
        return f"has {found} of {size} bytes"
    if thorough and mark(path) != list(marked):
        return "has another content than was written"
    return ""


def files(folder: Path) -> list[Path]:
    """The files under a folder, at any depth."""
    return sorted(path for path in folder.rglob("*") if path.is_file())


def sync_tree(path: Path) -> None:
    """Forces the files and folders under `path` to disk."""

    for folder, _, names in os.walk(path):
        for name in names:
            sync(Path(folder) / name)
        sync(Path(folder))


def sync(path: Path) -> None:
    """Forces one file or folder to disk."""

    try:
        handle = os.open(path, os.O_RDONLY)
    except OSError as error:
        # Some systems do not open folders; there the rename alone must do.
        if path.is_dir() and error.errno in (errno.EACCES, errno.EISDIR, errno.EPERM):
            return
        raise
    try:
        os.fsync(handle)
    finally:
        os.close(handle)
