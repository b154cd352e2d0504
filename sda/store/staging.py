"""Blocks that other processes have sampled, staged beside a posterior.

Each process writes the shards of its block into a folder of the run beside the store, and a record
of them last of all. Moving them into the store is one rename per variable, by the one process that
writes the store. What a run that was killed has staged is taken over by the next run of the same
settings.
"""

import json
import os
import shutil
import uuid
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from dynamics.files import damage, sync

from .attributes import write_text
from .blocks import write_shards

STAGE = "sda posterior, staged blocks"


class Block(NamedTuple):
    """A block that was staged and is in its place in the store."""

    k: int
    marks: dict[str, Any]  # the size and checksum of each file, see `write_shards`
    failures: dict[int, str]


def open_stage(
    staging: Path, place: Path, variables: Sequence[str], notes: Mapping[str, Any]
) -> Path:
    """Makes a folder for the staged blocks of a run.

    Arguments:
        staging: The folder of all runs, beside the store.
        place: The Zarr group of the store.
        variables: The variables.
        notes: What staged blocks must share with the store.
    """

    folder = staging / uuid.uuid4().hex[:8]
    template = folder / "template"
    for name in ("", *variables):
        (template / name).mkdir(parents=True)
        shutil.copy(place / name / "zarr.json", template / name / "zarr.json")
    write_text(folder / "run.json", json.dumps({"kind": STAGE, **notes}))
    return folder


def stage(
    folder: Path,
    variables: Sequence[str],
    k: int,
    block: range,
    trajectories: np.ndarray,
    failures: Mapping[int, str],
) -> Path:
    """Writes one block beside a store, for `PosteriorWriter.adopt`.

    Arguments:
        folder: The folder of the run, see `PosteriorWriter.open_stage`.
        variables, k, block, trajectories: See `write_shards`.
        failures: What happened to members that could not be sampled and are NaN, by their index.

    Returns:
        Its record, `<folder>/block-<k>.json`; the shards are in the folder of the same name.

    Raises:
        FileNotFoundError: If the run is over.
    """

    record = folder / f"block-{k}.json"
    own = folder / f".{record.stem}.{uuid.uuid4().hex[:8]}"
    shutil.copytree(folder / "template", own)
    marks = write_shards(own, variables, k, block, trajectories)
    place = record.with_suffix("")
    shutil.rmtree(place, ignore_errors=True)
    os.rename(own, place)
    sync(folder)
    content = {"block": k, "shards": marks, "failures": dict(failures)}
    write_text(record, json.dumps(content))
    return record


def staged_blocks(staging: Path, notes: Mapping[str, Any]) -> Iterator[tuple[int, Path]]:
    """The blocks that runs with these notes have staged: their indices and their records."""

    for folder in sorted(staging.glob("*")):
        file = folder / "run.json"
        if not file.is_file():
            continue
        if json.loads(file.read_text(encoding="utf-8")) == {"kind": STAGE, **notes}:
            for record in sorted(folder.glob("block-*.json")):
                yield int(record.stem.partition("-")[2]), record


def move_in(staged: Path, place: Path) -> Block | None:
    """Moves a staged block into the store; None if it is not whole.

    Arguments:
        staged: Its record, see `stage`.
        place: The Zarr group of the store.
    """

    record = json.loads(staged.read_text(encoding="utf-8"))
    k, marks = int(record["block"]), record["shards"]
    for name, shards in marks.items():
        source, target = (root / name / "c" / str(k) for root in (staged.with_suffix(""), place))
        # A run that was killed here may have moved some already.
        if source.exists():
            shutil.rmtree(target, ignore_errors=True)
            target.parent.mkdir(exist_ok=True)
            os.rename(source, target)
            sync(target.parent)
        if any(damage(target / part, marked, thorough=True) for part, marked in shards.items()):
            return None
    failures = {int(member): text for member, text in record["failures"].items()}
    return Block(k, marks, failures)


def discard_stages(staging: Path) -> None:
    """Removes staged blocks, and nothing that is not ours."""

    for folder in staging.glob("*"):
        notes = folder / "run.json"
        if notes.is_file() and STAGE in notes.read_text(encoding="utf-8"):
            # The notes last: what is cut short here is still known to be ours.
            for path in folder.iterdir():
                if path.is_dir():
                    shutil.rmtree(path, ignore_errors=True)
            shutil.rmtree(folder, ignore_errors=True)
    if staging.is_dir() and not any(staging.iterdir()):
        staging.rmdir()
