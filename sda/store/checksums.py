"""Shards compared with what was written: in size on opening, in content on request.

A shard that was lost or cut short would read as NaN or not at all. The size and checksum of each
are kept in the attributes of the store, by which a damaged one is named with its members.
"""

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np

from dynamics.files import damage
from dynamics.simulation_store import MARK as SIMULATION
from dynamics.simulation_store import SHARDS
from dynamics.simulation_store import damages as simulation_damages

from .attributes import KIND, read_attributes
from .errors import first_line


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
