"""Where simulated trajectories go: into memory, or streamed to Zarr with a restart state beside it.

A store is created aside and moved into place; each block of members and times is one shard. After
each write the model state replaces the one in `<out>.partial/`, in one rename: whenever a run ends,
what is on disk is whole, and a resumed run goes on from there.
"""

import json
import os
import shutil
import warnings
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any, Protocol

import numpy as np
import torch
import xarray as xr
from safetensors import safe_open
from safetensors.torch import save_file
from torch import Tensor

if TYPE_CHECKING:
    from .simulate import Run

CHUNK_VALUES = 2**18  # 1 MiB of float32: one read of a training window
MARK = "simulation"


@dataclass
class Position:
    """Where a run stands: `steps` of `dt` done and `frames` stored by the current member block."""

    first_member: int = 0
    steps: int = 0
    frames: int = 0


class Sink(Protocol):
    """Where trajectories go."""

    def write(self, first_member: int, first_frame: int, states: np.ndarray) -> None: ...

    def save(self, position: Position, model: Tensor | None) -> None: ...

    def restart(self, device: torch.device) -> tuple[Position, Tensor | None]: ...


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

    def restart(self, device: torch.device) -> tuple[Position, Tensor | None]:
        return Position(), None

    def dataset(self) -> xr.Dataset:
        """The trajectories with their coordinates and provenance."""

        attrs = {**self.run.attrs(), MARK: "complete"}

        layout = self.run.layout
        dataset = layout.to_dataset(self.states, attrs=attrs)

        return dataset.assign_coords({k: (layout.dims, v) for k, v in self.run.static.items()})


class Store:
    """A sink that streams to Zarr and keeps the restart state in a folder beside the store."""

    def __init__(self, path: Path, run: "Run") -> None:
        self.path, self.run = path, run
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
                shutil.rmtree(self.partial, ignore_errors=True)
                return False
            if not self.partial.exists():
                raise ValueError(
                    f"{self.path} cannot be resumed, since its restart state {self.partial} is "
                    f"missing: pass overwrite=True to start again"
                )
            self.arrays = {name: root[name] for name in self.run.layout.variables}
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
                name, data=values, dimension_names=[name], attributes=dict(coord.attrs)
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
        root = zarr.open_group(self.path, mode="r+")
        self.arrays = {name: root[name] for name in layout.variables}

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
        if static:
            for array in self.arrays.values():
                array.attrs["coordinates"] = " ".join(static)

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
        n, length = states.shape[:2]
        for i, name in enumerate(self.run.layout.variables):
            self.arrays[name][
                first_member : first_member + n, first_frame : first_frame + length
            ] = states[:, :, i]

    def save(self, position: Position, model: Tensor | None) -> None:
        """Replaces the restart state in one rename: it is the old or the new, never half of one."""

        # The format has no complex128: complex model states are stored as pairs.
        pairs = model is not None and model.is_complex()
        tensors = {}
        if model is not None:
            tensors["model"] = (torch.view_as_real(model) if pairs else model).contiguous()
        file, draft = self.partial / "state.safetensors", self.partial / "state.draft"
        save_file(
            tensors, draft, metadata={"position": json.dumps(vars(position)), "pairs": str(pairs)}
        )
        with open(draft, "rb") as handle:
            os.fsync(handle.fileno())
        os.replace(draft, file)

    def restart(self, device: torch.device) -> tuple[Position, Tensor | None]:
        file = self.partial / "state.safetensors"
        if not file.exists():
            return Position(), None
        with safe_open(file, "pt") as content:
            metadata = content.metadata()
            position = Position(**json.loads(metadata["position"]))
            if "model" not in content.keys():  # noqa: SIM118 (not a mapping)
                return position, None
            model = content.get_tensor("model").to(device)

        return position, torch.view_as_complex(model) if metadata["pairs"] == "True" else model

    def finish(self) -> None:
        """Marks the store as complete and drops the restart state."""

        import zarr

        zarr.open_group(self.path, mode="r+").attrs[MARK] = "complete"
        consolidate(self.path)
        shutil.rmtree(self.partial)


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
