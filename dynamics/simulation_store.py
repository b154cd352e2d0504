"""Where simulated trajectories go: into memory, or streamed to Zarr with a restart state beside it.

A store is created aside and moved into place; each block of members and times is one shard. Each
block of members has a restart state of its own in `<out>.partial/`, which is replaced after each
write, in one rename: whenever a run ends, what is on disk is whole, and a resumed run goes on from
there. Blocks know nothing of each other, so several processes can each write some of them.

The size and checksum of every shard are kept, in the restart states first and in the attributes of
the complete store at last. Resuming compares them: a block of members that has lost a shard, or of
which one was altered, is simulated again.
"""

import json
import os
import shutil
import uuid
import warnings
import zlib
from collections.abc import Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any, Protocol

import numpy as np
import torch
import xarray as xr
from safetensors import safe_open
from safetensors.torch import save
from torch import Tensor

from .cluster import Superseded
from .files import damage, mark, sync

if TYPE_CHECKING:
    from .simulate import Run

CHUNK_VALUES = 2**18  # 1 MiB of float32: one read of a training window
MARK, SHARDS = "simulation", "shards"
STATES = "*.safetensors"


@dataclass
class Position:
    """Where a block of members stands: `steps` of `dt` done and `frames` stored."""

    first_member: int = 0
    steps: int = 0
    frames: int = 0


class Sink(Protocol):
    """Where trajectories go."""

    def write(self, first_member: int, first_frame: int, states: np.ndarray) -> None: ...

    def save(self, position: Position, model: Tensor | None) -> None: ...

    def restart(
        self, first_member: int, device: torch.device
    ) -> tuple[Position, Tensor | None]: ...


class Memory:
    """A sink that keeps all trajectories in memory."""

    def __init__(self, run: "Run") -> None:
        self.run = run
        shape = (run.members, run.length, *run.layout.shape)
        self.states = np.empty(shape, dtype=np.dtype(run.dtype))

    def write(self, first_member: int, first_frame: int, states: np.ndarray) -> None:
        n, length = states.shape[:2]
        self.states[first_member : first_member + n, first_frame : first_frame + length] = states

    def save(self, position: Position, model: Tensor | None) -> None:
        pass

    def restart(self, first_member: int, device: torch.device) -> tuple[Position, Tensor | None]:
        return Position(first_member), None

    def dataset(self) -> xr.Dataset:
        """The trajectories with their coordinates and provenance."""

        attrs = {**self.run.attrs(), MARK: "complete"}

        layout = self.run.layout
        dataset = layout.to_dataset(self.states, attrs=attrs)

        return dataset.assign_coords({k: (layout.dims, v) for k, v in self.run.static.items()})


class Store:
    """A sink that streams to Zarr and keeps restart states in a folder beside the store.

    Arguments:
        path: The store.
        run: What is simulated.
        job: A file that is there as long as the run is, if this is one of several writers.

    Attributes:
        shards: The size and checksum of each shard, by its path, of each block of members.
    """

    def __init__(self, path: Path, run: "Run", job: Path | None = None) -> None:
        self.path, self.run, self.job = path, run, job
        self.shards: dict[int, dict[str, list[int]]] = {}
        self.partial = Path(f"{path}.partial")
        self.arrays: dict[str, Any] = {}

    def open(
        self, overwrite: bool, resume: bool, fixed_blocks: tuple[int | None, int | None]
    ) -> bool:
        """Creates the store, or opens it to go on. Returns whether anything is left to do."""

        import zarr

        if self.path.exists() and not (overwrite or resume):
            raise FileExistsError(
                f"{self.path} exists already: pass overwrite=True to replace it, or resume=True "
                f"to go on with it"
            )
        if self.path.exists() and not (self.path / "zarr.json").exists():
            raise ValueError(
                f"{self.path} is not a Zarr store (format 3) and is left alone: choose another path"
            )
        if self.path.exists():
            root = zarr.open_group(self.path, mode="r+" if resume else "r")
            if root.attrs.get(MARK) not in ("complete", "incomplete"):
                raise ValueError(
                    f"{self.path} was not written by simulate and is left alone: "
                    f"choose another path"
                )
        if resume and self.path.exists():
            complete = root.attrs[MARK] == "complete"
            self._match(stored_arguments(root), fixed_blocks, complete)
            if complete:
                if not self._reopen(root):
                    shutil.rmtree(self.partial, ignore_errors=True)
                    return False
            elif not self.partial.exists():
                raise ValueError(
                    f"{self.path} cannot be resumed, since its restart state {self.partial} is "
                    f"missing: pass overwrite=True to start again"
                )
            for old in self.partial.glob("job-*"):
                # Workers of an earlier run that still write find that it is over.
                old.unlink()
            self._check()
            self.attach()
            self._write_static(root)
            return True

        shutil.rmtree(self.path, ignore_errors=True)
        shutil.rmtree(self.partial, ignore_errors=True)
        self._create()

        return True

    def _create(self) -> None:
        """Builds the empty store aside and moves it into place, so that it is whole or absent."""

        import zarr

        run, layout = self.run, self.run.layout
        self.partial.mkdir(parents=True)
        draft = self.partial / "store"
        template = layout.to_dataset(np.zeros((1, run.length, *layout.shape), dtype=np.float32))
        attrs = {
            **template.attrs,
            **run.attrs(),
            MARK: "incomplete",
        }
        root = zarr.open_group(draft, mode="w", zarr_format=3, attributes=attrs)
        for name, coord in ((str(name), coord) for name, coord in template.coords.items()):
            values = np.arange(run.members) if name == "member" else coord.values
            root.create_array(
                name,
                data=values,
                dimension_names=list(map(str, coord.dims)),
                attributes=dict(coord.attrs),
            )
        space = layout.shape[1:]
        fitting = max(1, CHUNK_VALUES // (run.time_block * int(np.prod(space))))
        divisors = (n for n in range(1, run.member_block + 1) if run.member_block % n == 0)
        width = max(n for n in divisors if n <= fitting)
        for name in layout.variables:
            root.create_array(
                name,
                shape=(run.members, run.length, *space),
                chunks=(width, run.time_block, *space),
                shards=(run.member_block, run.time_block, *space),
                dtype=run.dtype,
                fill_value=float("nan"),
                dimension_names=["member", "time", *layout.dims],
                attributes=dict(layout.attributes(name)),
            )
        self.arrays = {name: root[name] for name in layout.variables}
        self._write_static(root)
        consolidate(draft)
        draft.rename(self.path)
        self.attach()

    def attach(self) -> None:
        """Opens the arrays of the store for writing."""

        import zarr

        root: Any = zarr.open_group(self.path, mode="r+")
        self.arrays = {name: root[name] for name in self.run.layout.variables}

    def _reopen(self, root: Any) -> bool:
        """Makes a complete store of which shards are damaged incomplete again, and says whether."""

        marks = json.loads(root.attrs.get(SHARDS, "{}"))
        damaged = damages(self.path, marks, self.run.member_block, thorough=True)
        if not damaged:
            return False
        self.partial.mkdir(exist_ok=True)
        for first in self.first_members:
            # The damaged ones too: they are found again by what is kept of their shards.
            here = str(first // self.run.member_block)
            self.shards[first] = {k: v for k, v in marks.items() if k.split("/")[2] == here}
            self.save(Position(first, self.run.last_step, self.run.length), None)
        root.attrs[MARK] = "incomplete"
        consolidate(self.path)
        return True

    def _check(self) -> None:
        """Forgets the restart states of blocks that are damaged, and warns of them."""

        damaged: dict[int, str] = {}
        for file in sorted(self.partial.glob(STATES)):
            try:
                _, _, marks = read_state(file, torch.device("cpu"))
            except Exception as error:
                # Whatever its reader says of a file that is cut short or altered.
                reason = next(iter(str(error).splitlines()), type(error).__name__)
                damaged[int(file.stem)] = f"the restart state {file.name} is damaged ({reason})"
                continue
            for first, text in damages(self.path, marks, self.run.member_block, True).items():
                damaged.setdefault(first, text)
        for first in damaged:
            (self.partial / f"{first}.safetensors").unlink()
        if damaged:
            warnings.warn(
                f"{str(self.path)!r} is damaged: {'; '.join(damaged.values())}. These members are "
                f"simulated again",
                RuntimeWarning,
                stacklevel=5,
            )

    @property
    def first_members(self) -> range:
        """The first member of each block."""
        return range(0, self.run.members, self.run.member_block)

    def _write_static(self, root: Any) -> None:
        """Writes the constant fields that the store lacks, as CF auxiliary coordinates."""

        layout, static = self.run.layout, self.run.static
        for name, field in static.items():
            if name not in root:
                root.create_array(
                    name,
                    data=np.ascontiguousarray(field),
                    dimension_names=list(layout.dims),
                    attributes=layout.attributes(name),
                )
        if names := [*layout.masks(), *static]:
            for array in self.arrays.values():
                array.attrs["coordinates"] = " ".join(names)

    def _match(
        self, stored: dict[str, Any], fixed_blocks: tuple[int | None, int | None], complete: bool
    ) -> None:
        """Checks that the store is of the same run, and takes over its blocks where not given."""

        given = self.run.arguments()
        for name, fixed in zip(("member_block", "time_block"), fixed_blocks, strict=True):
            if fixed is None or complete:
                given[name] = stored[name]
        for name, value in given.items():
            if stored[name] != value:
                old, new = differing(stored[name], value)
                raise ValueError(
                    f"{self.path} was simulated with another {name}: {old}, now {new} is asked "
                    f"for: resume with the same arguments, or pass overwrite=True to start again"
                )
        self.run = replace(
            self.run, member_block=given["member_block"], time_block=given["time_block"]
        )

    def write(self, first_member: int, first_frame: int, states: np.ndarray) -> None:
        if self.job is not None and not self.job.exists():
            raise Superseded(f"{self.path}: the run is over or another has taken its place")
        n, length = states.shape[:2]
        marks = self.shards.setdefault(first_member, {})
        block, part = first_member // self.run.member_block, first_frame // self.run.time_block
        inner = "/0" * (len(self.run.layout.shape) - 1)
        for i, name in enumerate(self.run.layout.variables):
            shard = f"{name}/c/{block}/{part}{inner}"
            # Zarr would read one that is there, which may be damaged.
            (self.path / shard).unlink(missing_ok=True)
            self.arrays[name][
                first_member : first_member + n, first_frame : first_frame + length
            ] = states[:, :, i]
            sync(self.path / shard)
            marks[shard] = mark(self.path / shard)

    def save(self, position: Position, model: Tensor | None) -> None:
        """Replaces a restart state in one rename: it is the old or the new, never half of one."""

        # The format has no complex128: complex model states are stored as pairs.
        pairs = model is not None and model.is_complex()
        tensors = {}
        if model is not None:
            tensors["model"] = (torch.view_as_real(model) if pairs else model).contiguous()
        metadata = {
            "position": json.dumps(vars(position)),
            "pairs": str(pairs),
            "checksum": str(checksum(tensors.get("model"))),
            SHARDS: json.dumps(self.shards.get(position.first_member, {})),
        }
        file = self.partial / f"{position.first_member}.safetensors"
        draft = file.with_suffix(f".{uuid.uuid4().hex[:8]}.draft")
        try:
            # Not by `save_file`: it does not raise an `OSError` if the disk is full.
            draft.write_bytes(save(tensors, metadata=metadata))
            sync(draft)
            os.replace(draft, file)
        finally:
            draft.unlink(missing_ok=True)

    def restart(self, first_member: int, device: torch.device) -> tuple[Position, Tensor | None]:
        file = self.partial / f"{first_member}.safetensors"
        if not file.exists():
            self.shards.pop(first_member, None)
            return Position(first_member), None
        position, model, self.shards[first_member] = read_state(file, device)
        return position, model

    def finish(self) -> None:
        """Marks the store as complete and drops the restart states."""

        import zarr

        for first in self.first_members:
            if first not in self.shards:
                self.restart(first, torch.device("cpu"))
        marks = {shard: found for block in self.shards.values() for shard, found in block.items()}
        root = zarr.open_group(self.path, mode="r+")
        root.attrs.update({MARK: "complete", SHARDS: json.dumps(marks)})
        consolidate(self.path)
        shutil.rmtree(self.partial)


def read_state(
    file: Path, device: torch.device
) -> tuple[Position, Tensor | None, dict[str, list[int]]]:
    """Reads a restart state: the position, the model state, and what is known of the shards.

    Raises:
        ValueError: If the model state is not what was written.
    """

    with safe_open(file, "pt") as content:
        metadata = content.metadata()
        position, marks = (json.loads(metadata[key]) for key in ("position", SHARDS))
        # `safe_open` is not a mapping.
        model = content.get_tensor("model") if "model" in list(content.keys()) else None
    if str(checksum(model)) != metadata["checksum"]:
        raise ValueError("another content than was written")
    if model is not None:
        # A copy, since complex numbers must lie at multiples of their size, which they need not do
        # in a file.
        model = model.clone()
        model = torch.view_as_complex(model) if metadata["pairs"] == "True" else model
        model = model.to(device)

    return Position(**position), model, marks


def checksum(tensor: Tensor | None) -> int:
    """The CRC-32 of the values of a tensor."""
    return 0 if tensor is None else zlib.crc32(tensor.cpu().contiguous().numpy().tobytes())


def damages(
    path: Path, marks: Mapping[str, list[int]], member_block: int, thorough: bool = False
) -> dict[int, str]:
    """What is wrong with the first damaged shard of each block, by the block's first member.

    Arguments:
        path: The store.
        marks: The size and checksum of each shard, by its path in the store.
        member_block: The members of a block.
        thorough: Whether the content is compared too, not the sizes only.
    """

    damaged: dict[int, str] = {}
    for shard, marked in marks.items():
        wrong = damage(path / shard, marked, thorough)
        if wrong:
            first = int(shard.split("/")[2]) * member_block
            text = f"{shard} {wrong} (members from {first} on)"
            damaged.setdefault(first, text)
    return damaged


def consolidate(path: Path) -> None:
    """Gathers the metadata of a store in one file, which xarray looks for first."""

    import zarr

    with warnings.catch_warnings():
        # It warns that other readers may not know of it: they read each array's own.
        warnings.simplefilter("ignore", category=UserWarning)
        zarr.consolidate_metadata(path)


def stored_arguments(root: Any) -> dict[str, Any]:
    """Reads `Run.arguments` off a store."""

    attrs = dict(root.attrs)
    variables = list(attrs["variables"])
    array = root[variables[0]]

    return {
        "system": attrs["system"],
        "config": json.loads(attrs["config"]),
        "variables": variables,
        "grid": list(array.shape[2:]),
        "members": array.shape[0],
        "length": array.shape[1],
        "spinup": attrs["spinup"],
        "seed": attrs["seed"],
        "stride": attrs["stride"],
        "dtype": str(array.dtype),
        "member_block": array.shards[0],
        "time_block": array.shards[1],
    }


def differing(old: Any, new: Any) -> tuple[Any, Any]:
    """Narrows two nested arguments down to the first entry that differs."""

    if isinstance(old, dict) and isinstance(new, dict):
        for key in {**old, **new}:
            if old.get(key) != new.get(key):
                inner = differing(old.get(key), new.get(key))
                return f"{key}={inner[0]}", f"{key}={inner[1]}"

    return old, new
