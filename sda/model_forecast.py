"""Forecasts by the numerical model, from the same initial states as those of a prior."""

import hashlib
import json
import math
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
import xarray as xr

from dynamics.simulate import compute_device

from .budget import LARGEST_BLOCK, size_in_bytes
from .departure import Departure, check_count
from .forecasting import Bar, finished
from .precisions import precision
from .sampling import MemberNoise
from .store import PosteriorMemory, PosteriorWriter, check_target

if TYPE_CHECKING:
    from dynamics.system import System

# The stream of noise of stochastic systems.
MODEL = 22


def forecast_by_model(
    system: "System",
    initial: xr.Dataset,
    lead: int,
    members: int | None = None,
    seed: int = 0,
    out: str | Path | None = None,
    *,
    memory: int | str = "2GiB",
    block: int | None = None,
    device: str | torch.device = "cpu",
    dtype: torch.dtype | str = torch.float32,
    overwrite: bool = False,
    resume: bool = False,
    progress: bool = False,
) -> xr.Dataset:
    """Forecasts from initial states with a numerical model.

    Each member is the system's own trajectory from the last state of an initial member,
    `x_{i+1} = f(x_i) + noise`. States of a system that runs on a finer grid than it shows are
    lifted to that grid once, see `dynamics.System.lift`: what they lack at small scales takes a few
    steps to develop.

    Arguments:
        system: The system.
        initial: The initial states, see `sda.forecast`. The last one of each member is used.
        lead: The number of states to forecast, in steps of the system's `dt`.
        members: The number of members (default: those of `initial`, which more take in turns).
        seed: The seed of a stochastic system's noise. Member `m` of seed `s` is always the same.
        out: A Zarr store that the members are streamed to (default: they are kept in memory).
        memory, block, device, dtype, overwrite, resume, progress: See `sda.forecast`.

    Returns:
        The forecast, with dimensions `(member, time, *space)`, at the same times and of the same
        kind as that of `sda.forecast`.

    Raises:
        ValueError: If an argument is out of range, or the initial states are not the system's.
        FileExistsError: If `out` exists and neither `overwrite` nor `resume` is given.
        FloatingPointError: If every member's trajectory left all bounds.
    """

    lead = check_count("lead", lead)
    check_count("seed", seed, smallest=0)
    path = None if out is None else Path(out)
    if path is not None:
        check_target(path, overwrite, resume)
    elif overwrite or resume:
        raise ValueError("overwrite and resume need an output store, got out=None")
    dtype, device, layout = precision(dtype), compute_device(device), system.layout
    start = Departure(layout, initial, 1)
    members = start.members if members is None else check_count("members", members)
    if block is None:
        state = math.prod(layout.shape) * torch.finfo(dtype).bits // 8
        largest = min(size_in_bytes(memory) // (lead * state) or 1, LARGEST_BLOCK)
        block = math.ceil(members / math.ceil(members / largest))
    check_count("block", block)

    kind, name = str(dtype).removeprefix("torch."), type(system).__name__
    config = json.dumps(system.config(), sort_keys=True)
    settings = {
        "task": "forecast_by_model", "system": name, "initial": start.digest, "lead": lead,
        "config": hashlib.sha256(config.encode()).hexdigest(), "members": members, "seed": seed,
        "dtype": kind,
    }  # fmt: skip
    attrs = {
        "title": "Forecast ensemble", "source": f"numerical model {name}", "config": config,
        "task": "forecast_by_model", "seed": seed,
    }  # fmt: skip
    time = start.time + layout.dt * np.arange(1, lead + 1)
    sink: PosteriorWriter | PosteriorMemory
    if path is None:
        sink = PosteriorMemory(layout, time, members, block, settings, attrs, kind)
    else:
        sink = PosteriorWriter(
            path, layout, time, members, block, settings, attrs, kind, overwrite, resume
        )

    with sink, Bar(lead, progress) as bar:
        todo = [(k, sink.blocks[k]) for k in sink.unfinished]
        bar.begin(sum(len(part) for _, part in todo))
        for k, part in todo:
            x = torch.from_numpy(start.read(part)[:, -1]).to(device=device, dtype=dtype)
            states = march(system, x, lead, part, seed, bar)
            failures = lost(states, part)
            for member in failures:
                states[member - part[0]] = np.nan
            sink.put(k, states, failures)

    return finished(sink, members)


@torch.no_grad()
def march(
    system: "System", x: torch.Tensor, lead: int, members: range, seed: int, bar: Bar
) -> np.ndarray:
    """The trajectories from states `(member, channel, *space)`, without these.

    Returns:
        The states, with shape `(member, lead, channel, *space)`.
    """

    noise: Any = MemberNoise(seed, members, MODEL, dtype=x.dtype, device=x.device)
    states = np.empty((len(x), lead, *x.shape[1:]), dtype=x.cpu().numpy().dtype)
    z = system.lift(x)
    for i in range(lead):
        z = system.advance(z, noise(tuple(z.shape[1:])) if system.stochastic else None)
        states[:, i] = system.project(z).cpu().numpy()
        bar.add(len(x), 1)

    return states


def lost(states: np.ndarray, members: range) -> dict[int, str]:
    """The members that left all bounds, and after how many states."""

    failures = {}
    for member, x in zip(members, states, strict=True):
        bad = np.flatnonzero(~np.isfinite(x).reshape(len(x), -1).all(axis=1))
        if len(bad):
            failures[member] = f"member {member} is not finite after {bad[0] + 1} steps"
    return failures
