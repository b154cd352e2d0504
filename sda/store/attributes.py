"""What a store says of itself: the attributes of its Zarr group.

They are read and replaced as the file `zarr.json`, all or nothing and synced, so that a reader
meets the attributes before a block was finished or those after it, never half of them.
"""

import json
import os
import uuid
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from dynamics.files import sync
from dynamics.layout import Layout

KIND = "sda posterior"
# The attributes without which a posterior can be neither described nor resumed.
RECORDS = {"settings", "block", "finished_blocks", "failed_members", "failures", "status"}


def is_posterior(path: str | Path) -> bool:
    """Whether a posterior of this package stands at `path`."""

    try:
        attrs = read_attributes(Path(path))
    except (OSError, ValueError):
        return False
    return attrs.get("kind") == KIND and attrs.keys() >= RECORDS


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


def failed(failures: Mapping[int, str]) -> dict[str, Any]:
    """The attributes that name the members that failed, and say what happened to each."""

    members = sorted(failures)
    return {"failed_members": members, "failures": [failures[member] for member in members]}


def status(done: int, members: int, failed: int = 0) -> str:
    """The attribute that tells a reader whether all members are there."""

    text = "complete" if done == members else f"incomplete: {done} of {members} members"
    return f"{text}, {failed} failed" if failed else text


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
