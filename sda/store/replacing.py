"""What may stand where a posterior is to be written, and how one store takes another's place.

A store that is to be replaced stays as it is until the first members of its successor are on disk:
the new one is made beside it under a hidden name and moved in its place by two renames. A run says
what it is about to write in a file beside the store, so that it is resumed even if it was
interrupted before.
"""

import glob
import json
import os
import shutil
import uuid
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

from dynamics.files import sync

from .attributes import is_posterior, read_attributes, write_text


def check_target(
    path: Path,
    overwrite: bool,
    resume: bool,
    known: Callable[[Path], bool] = is_posterior,
    other: str = "is not a posterior of this package",
    end: str = "complete",
) -> bool:
    """Whether something stands at `path` that may be overwritten or resumed.

    Arguments:
        path: The path.
        overwrite: Whether it may be replaced.
        resume: Whether it may be resumed.
        known: Whether a store is of the kind that is written.
        other: What is said of a store that is not.
        end: What resuming does to it.

    Raises:
        ValueError: If both `overwrite` and `resume` are given.
        FileExistsError: If something stands there that must stay as it is.
    """

    if overwrite and resume:
        raise ValueError("overwrite and resume exclude each other, got both")
    if not (path.exists() or path.is_symlink()):
        return False
    if not known(path):
        raise FileExistsError(
            f"{str(path)!r} exists and {other}: it is left as it is, choose another path"
        )
    if not (overwrite or resume):
        attrs = read_attributes(path)
        raise FileExistsError(
            f"{str(path)!r} exists ({attrs['status']}): give overwrite=true to replace it, "
            f"resume=true to {end} it, or another path"
        )
    return True


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
