r"""Trajectories longer than memory: smoothing in blocks of time, with the state on disk.

At each noise level the denoiser, the gain of the observations and the Langevin step are evaluated
block by block, each on a wider range of states of which the core is kept, see `sda.long_blocks`;
the sampler's step is made value by value. Between levels all members' noisy trajectories, and the
sampler's history, lie on disk, see `sda.long_states`. Memory depends neither on the length nor on
the number of members; the result depends on the blocks only through what a halo leaves out.

The network sees a window and no more, so with guidance that needs none of its derivatives it is
evaluated first, without the halos of the Gaussian part. The length of a member's Langevin step is
that of the whole trajectory: what it needs is summed over the blocks before any is moved. The
pilots of flow-dependent guidance are members of their own that are one phase ahead of the others;
they leave the covariance of each block at the level, on disk.

A level is a sequence of phases, and a phase a loop over blocks. What is done is never repeated.
"""

import dataclasses
import json
import math
import os
import shutil
import tempfile
import warnings
from collections.abc import Mapping
from contextlib import nullcontext
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
import xarray as xr

from .lock import Lock
from .long_blocks import Blocks
from .long_local import Locals
from .long_members import Members
from .long_plan import Plan, plan
from .long_states import full, read_state, room, write_state
from .sampling import MAIN, PILOT
from .store import PosteriorMemory, PosteriorWriter, open_dataset
from .store.attributes import read_attributes
from .store.checksums import damages
from .store.replacing import beside, check_settings

if TYPE_CHECKING:
    from .langevin import Langevin
    from .observation import Observations
    from .prior import Prior

# The bytes of a variable's chunk in the result.
CHUNK_BYTES = 1 << 24


def smooth(
    prior: "Prior",
    observations: "Observations",
    members: int,
    seed: int,
    out: str | Path | None,
    time: np.ndarray,
    *,
    method: str,
    options: Mapping[str, Any],
    langevin: "Langevin | None",
    schedule: Mapping[str, Any],
    memory: int | str,
    dtype: torch.dtype,
    device: torch.device,
    precision: str,
    settings: Mapping[str, Any],
    attrs: Mapping[str, Any],
    overwrite: bool = False,
    resume: bool = False,
    frames: int | None = None,
    halo: int | None = None,
    progress: bool = False,
) -> xr.Dataset:
    """Samples members of a posterior of any length, see the module and `sda.assimilate`.

    Arguments:
        prior: The prior, on the device.
        time: The times of the trajectory.
        method, options: The guidance.
        schedule: The sampler and its levels.
        settings, attrs: What the store says of the run.
        frames, halo: See `plan`.
        progress: Whether a progress bar is shown.

    Raises:
        Locked: If another process writes the posterior, see `sda.lock`.
        ValueError: If the run does not fit the memory budget, or cannot be made in blocks.
        FileExistsError: If an interrupted run is there and neither `overwrite` nor `resume` given.
        FloatingPointError: If no member could be sampled, or no pilot.
        OSError: If the disk is full. What was done is there to be resumed.
    """

    from .budget import size_in_bytes
    from .progress import Progress

    made = plan(
        prior, len(time), members, method=method, options=options, langevin=langevin,
        sampler=schedule["sampler"], memory=memory, dtype=dtype, frames=frames, halo=halo,
    )  # fmt: skip
    settings = json.loads(json.dumps({**settings, "long": {"noise": "by time"}}))
    if out is None and made.result > size_in_bytes(memory):
        raise ValueError(
            f"{members} members of {len(time)} states take {made.result / 2**30:.3g} GiB, more "
            f"than memory={memory}: give out=…, a store to write them to"
        )
    target = None if out is None else Path(out)
    # The state and the result are one run's: another process is refused before it reads either.
    with nullcontext() if target is None else Lock(target):
        done = finished(target, settings) if target is not None and resume else None
        if done is not None:
            return done
        folder = place(target, settings, overwrite, resume)
        stored = read_state(folder)
        if stored is not None:
            # The blocks that it was begun with.
            blocks = Blocks(**stored["blocks"])
            made = dataclasses.replace(made, blocks=blocks)
        elif (free := room(folder)) < made.disk + made.result:
            raise ValueError(
                f"a trajectory of {len(time)} states from {time[0]:g} to {time[-1]:g} with "
                f"{members} members needs {(made.disk + made.result) / 2**30:.3g} GiB on disk for "
                f"its states and its result, and {free / 2**30:.3g} GiB are free: check the "
                f"times, or make room"
            )

        locals_ = Locals(
            prior, observations, time, made.blocks, method, options,
            dtype=dtype, device=device, memory=memory, precision=precision,
        )  # fmt: skip
        about = {
            "settings": json.dumps(settings, sort_keys=True),
            "blocks": dataclasses.asdict(made.blocks),
        }
        tables = folder / "tables"
        common = (made.arrays, schedule, langevin, tables, about, out is not None)
        groups: list[Members] = []
        try:
            if method != "static":
                tables.mkdir(parents=True, exist_ok=True)
                pilots = int(options.get("pilots", 2))
                groups.append(
                    Members(locals_, folder / "pilots", pilots, pilots, seed, PILOT, *common)
                )
            groups.append(Members(locals_, folder, members, made.batch, seed, MAIN, *common))
        except OSError as error:
            if stored is None:
                shutil.rmtree(folder, ignore_errors=True)
            raise full(error, folder, "reserving room", made.disk) from error
        run = groups[-1]
        if stored is None and out is not None:
            write_state(folder, run.cursor)
        try:
            with Progress(members, locals_, progress) as bar:
                show = bar.level(range(members))
                for level in range(-1, len(run.levels)):
                    for group in groups:
                        group.run(level)
                        check(group)
                    show(level + 1, len(run.levels))
            dataset = result(run, target, time, made, settings, attrs)
        except OSError as error:
            raise full(error, folder, "sampling", made.disk + made.result) from error
        except KeyboardInterrupt as error:
            error.add_note(f"{max(run.level, 0)} of {len(run.levels)} levels are done")
            raise
        except (ValueError, TypeError, FloatingPointError) as error:
            # Resumed, it would end so again; what was refused at the beginning has cost nothing.
            if isinstance(error, FloatingPointError) or run.level < 0:
                shutil.rmtree(folder, ignore_errors=True)
            raise
        finally:
            for group in groups:
                group.close()
            if out is None:
                shutil.rmtree(folder, ignore_errors=True)
        shutil.rmtree(folder, ignore_errors=True)

    return dataset


def check(group: Members) -> None:
    """Raises a `FloatingPointError` if no member is left, or a pilot is lost."""

    if not group.failures:
        return
    text = next(iter(group.failures.values()))
    if group.stream == PILOT:
        raise FloatingPointError(f"a pilot of the guidance failed: {text}: use guidance 'static'")
    if len(group.failures) == group.members:
        raise FloatingPointError(
            f"no member could be sampled: {text}: use guidance 'static', smaller Langevin steps "
            f"or none, or check the observations' std"
        )


def finished(target: Path, settings: Mapping[str, Any]) -> xr.Dataset | None:
    """The posterior at a path, if it is that of this run, complete and undamaged.

    Raises:
        ValueError: If it is that of a run with other settings, and no run is to be taken up.
    """

    if folder_of(target).exists() or not target.exists():
        return None
    attrs = read_attributes(target)
    check_settings(target, attrs, settings)
    if attrs["finished_blocks"] == [0]:
        damaged = damages(target, attrs, thorough=True)
        if not damaged:
            return open_dataset(target)
        warnings.warn(
            f"{str(target)!r} is damaged: {'; '.join(damaged.values())}. It is sampled again",
            RuntimeWarning,
            stacklevel=4,
        )

    return None


def folder_of(target: Path) -> Path:
    """Where the state of a run lies, beside its result."""

    target = target.resolve() if target.is_symlink() else target
    return target.with_name(f".{target.name}.sampling")


def place(target: Path | None, settings: Mapping[str, Any], overwrite: bool, resume: bool) -> Path:
    """The folder of a run's state, emptied unless the run is taken up.

    Raises:
        FileExistsError: If an interrupted run is there, and is neither resumed nor overwritten.
        ValueError: If it was made with other settings.
    """

    if target is None:
        return Path(tempfile.mkdtemp(prefix="sda-"))
    folder = folder_of(target)
    stored = read_state(folder)
    if stored is not None and resume:
        check_settings(folder, stored, settings)
        return folder
    if stored is not None and not overwrite:
        raise FileExistsError(
            f"an interrupted run is at {str(folder)!r}: give resume=true to complete it, "
            f"overwrite=true to begin again, or another path"
        )
    if folder.exists():
        old = beside(folder)
        os.rename(folder, old)
        shutil.rmtree(old, ignore_errors=True)

    return folder


def result(
    run: Members,
    target: Path | None,
    time: np.ndarray,
    made: Plan,
    settings: Mapping[str, Any],
    attrs: Mapping[str, Any],
) -> xr.Dataset:
    """Writes the posterior, in chunks of time, under the lock of the run."""

    layout, values = run.locals.prior.layout, run.result
    name = str(settings["dtype"])
    if run.failures:
        warnings.warn(
            f"{len(run.failures)} of {run.members} members failed and are NaN: "
            f"{next(iter(run.failures.values()))}",
            RuntimeWarning,
            stacklevel=4,
        )
    if target is None:
        memory = PosteriorMemory(layout, time, run.members, run.members, settings, attrs, name)
        memory.put(0, values, run.failures)
        return memory.dataset()
    each = math.prod(layout.shape[1:]) * run.members * values.itemsize
    frames = max(1, min(len(time), CHUNK_BYTES // each))
    writer = PosteriorWriter(
        target, layout, time, run.members, run.members, settings, attrs, name,
        overwrite=target.exists() or target.is_symlink(), frames=frames, lock=False,
    )  # fmt: skip
    with writer:
        writer.put(0, values, run.failures)

    return writer.dataset()
