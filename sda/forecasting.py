r"""Forecasts: what follows an analysis, an ensemble or a state.

$$ p(x_{L+1 : L+H} \mid x_{L-T+1 : L}) = \prod_b p(x^{(b)} \mid \text{the tail before it}) $$

block by block, each block of $F$ states given the tail of $T$ states before it, see
`sda.conditional`. Every member has its own tail and goes its own way: any lead time, any number of
members, and the memory that a block takes depends on neither.

The spread of a forecast is that of its initial ensemble, as the prior's dynamics carry it on, and
what the dynamics themselves leave undecided.
"""

import math
import warnings
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
import xarray as xr

from dynamics.simulate import compute_device

from .assimilation import (
    assimilate,
    plain,
    provenance,
    sampling_dtype,
    shortened,
    trajectory_times,
)
from .cf.times import first_state
from .departure import Departure, check_count
from .forecast_blocks import Chain, block_of_time, block_size
from .partial import Partial
from .sampling import SAMPLERS
from .store import PosteriorMemory, PosteriorWriter, check_target
from .store.replacing import announce, announcement

if TYPE_CHECKING:
    from .langevin import Langevin
    from .observation import Observations
    from .prior import Prior


def forecast(
    prior: "Prior",
    initial: xr.Dataset,
    lead: int,
    members: int | None = None,
    seed: int = 0,
    out: str | Path | None = None,
    *,
    tail: int | None = None,
    frames: int | None = None,
    langevin: "Langevin | str | None" = "default",
    sampler: str = "xeab",
    steps: int | None = None,
    s_max: float = 10.0,
    s_min: float | None = None,
    memory: int | str = "2GiB",
    block: int | None = None,
    device: str | torch.device = "cpu",
    dtype: torch.dtype | str = torch.float32,
    precision: str = "float32",
    overwrite: bool = False,
    resume: bool = False,
    progress: bool = False,
) -> xr.Dataset:
    """Forecasts from initial states with the prior.

    Arguments:
        prior: The prior over trajectories.
        initial: The initial states: an ensemble, a posterior or one state, with the dimensions
            `(member, time, *space)`, of which `member` and `time` may be absent. Of each member the
            last `tail` states are used. With fewer the first window of the forecast is too wide,
            and a warning says so: a numerical model, or a classical smoother, has the states
            before the last one too.
        lead: The number of states to forecast, in steps of the prior's `dt`.
        members: The number of members (default: those of `initial`). Member `m` continues member
            `m mod n` of the `n` initial ones.
        seed: The seed. Member `m` of seed `s` is the same draw whatever the other members.
        out: A Zarr store that the members are streamed to (default: they are kept in memory).
            A block of members that is not complete is kept in files beside it.
        tail: The number of states that each block of the forecast is given (default: all of a
            window but `frames`).
        frames: The number of states of such a block (default: an eighth of a window for systems
            without space, a quarter for fields).
        langevin: Langevin steps, see `sda.conditional.forecast_langevin`.
        sampler, steps, s_max, s_min: See `sda.conditional.Continuation`.
        memory: The memory that the sampled states may take, in bytes or as "512MiB", "2GiB".
            Decides the members per block.
        block: The members per block, in place of `memory`.
        device, dtype, precision, overwrite, resume, progress: See `sda.assimilate`.

    Returns:
        The forecast, with dimensions `(member, time, *space)`: the states at the `lead` times after
        the last initial state, in physical units; lazy where it was streamed. Members whose
        sampling diverged are NaN, see `sda.assimilate`.

    Raises:
        ValueError: If an argument is out of range, the initial states do not fit the prior or are
            not finite, or the memory does not suffice for one window.
        TypeError: If `initial` is no dataset.
        FileExistsError: If `out` exists and neither `overwrite` nor `resume` is given.
        FloatingPointError: If no member at all could be sampled.
        OSError: If the disk is full; finished blocks stay readable.
    """

    return run(
        prior, initial, lead, 0, members, seed, out, {}, tail=tail, frames=frames,
        langevin=langevin, sampler=sampler, steps=steps, s_max=s_max, s_min=s_min, memory=memory,
        block=block, device=device, dtype=dtype, precision=precision, overwrite=overwrite,
        resume=resume, progress=progress,
    )  # fmt: skip


def run(
    prior: "Prior",
    initial: xr.Dataset,
    lead: int,
    given: int,
    members: int | None,
    seed: int,
    out: str | Path | None,
    more: Mapping[str, Any],
    *,
    tail: int | None,
    frames: int | None,
    langevin: "Langevin | str | None",
    sampler: str,
    steps: int | None,
    s_max: float,
    s_min: float | None,
    memory: int | str,
    block: int | None,
    device: str | torch.device,
    dtype: torch.dtype | str,
    precision: str,
    overwrite: bool,
    resume: bool,
    progress: bool,
) -> xr.Dataset:
    """Forecasts, see `forecast`.

    Arguments:
        given: The number of initial states at the end that belong to the forecast already.
        more: What else decides the forecast, for its settings.
    """

    lead = check_count("lead", lead)
    check_count("seed", seed, smallest=0)
    if out is not None:
        check_target(Path(out), overwrite, resume)
    elif overwrite or resume:
        raise ValueError("overwrite and resume need an output store, got out=None")
    if sampler not in SAMPLERS:
        raise ValueError(f"unknown sampler {sampler!r}: expected one of {', '.join(SAMPLERS)}")
    dtype, device = sampling_dtype(dtype, precision), compute_device(device)
    tail, frames = block_of_time(prior, tail, frames)
    layout = prior.layout
    start = Departure(layout, initial, max(tail, given))
    if start.states < given:
        raise ValueError(f"expected at least {given} initial states, got {start.states}")
    if start.states < tail and not prior.gaussian:
        warnings.warn(
            f"the forecast starts from {start.states} of the {tail} states that it can use: its "
            f"first {prior.window - start.states} states are too wide. Give more states before "
            f"the last one where there are any, such as those of the run that it comes from",
            UserWarning,
            stacklevel=3,
        )
    members = start.members if members is None else check_count("members", members)
    if block is None:
        block = block_size(prior, members, tail + frames, start.states, lead, dtype, memory)
    check_count("block", block)

    prior = prior.to(device)
    schedule = {"sampler": sampler, "steps": steps, "s_max": s_max, "s_min": s_min}
    options = {**schedule, "langevin": langevin, "memory": memory, "precision": precision}
    chain = Chain(prior, tail, frames, device=device, dtype=dtype, **options)
    ready = chain.next(start.states).options
    kind = str(dtype).removeprefix("torch.")
    settings: dict[str, Any] = {
        "task": "forecast", "prior": prior.hash, "initial": start.digest, "lead": lead,
        "given": given, "members": members, "seed": seed, "tail": tail, "frames": frames,
        "langevin": plain(ready["langevin"]),
        "sampler": {name: ready[name] for name in schedule},
        "dtype": kind, "precision": precision, **more,
    }  # fmt: skip
    time = start.time - given * layout.dt + layout.dt * np.arange(1, lead + 1)
    attrs = attributes(settings, prior)
    sink: PosteriorWriter | PosteriorMemory
    path = None if out is None else Path(out)
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
            shape = (len(part), lead, *layout.shape)
            partial = Partial(path, k, shape, kind, {**settings, "block": [part[0], part[-1]]})
            before = start.read(part)
            if given and not partial.done:
                partial.add(before[:, -given:], {})
            bar.add(len(part), partial.done)
            for x, failures in chain.states(before, part, partial, given, seed, lead, start.time):
                done = partial.done
                partial.add(x, failures)
                bar.add(len(part), partial.done - done)
            # Where all members failed there is no need to go on to the end.
            whole = partial.done == lead
            states = partial.states if whole else np.full(shape, np.nan, dtype=kind)
            for member in partial.failures:
                states[member - part[0]] = np.nan
            sink.put(k, states, partial.failures)
            if isinstance(sink, PosteriorWriter):
                sink.wait()
            partial.remove()

    return finished(sink, members)


class Bar:
    """A progress bar over the states of all members.

    Arguments:
        lead: The number of states of a member.
        shown: Whether it is shown.
    """

    def __init__(self, lead: int, shown: bool) -> None:
        from tqdm import tqdm

        self.lead = lead
        self.bar = tqdm(disable=not shown, desc="forecasting", unit="state", unit_scale=True)

    def begin(self, members: int) -> None:
        """Notes how many members there are to forecast."""
        self.bar.total = members * self.lead
        self.bar.refresh()

    def add(self, members: int, states: int) -> None:
        """Notes that states of members are done."""
        self.bar.update(members * states)

    def __enter__(self) -> "Bar":
        return self

    def __exit__(self, *error: object) -> None:
        self.bar.close()


def finished(sink: PosteriorWriter | PosteriorMemory, members: int) -> xr.Dataset:
    """The dataset of a run that is over.

    Raises:
        FloatingPointError: If all members failed.
    """

    failed = list(sink.failures.values())
    if len(failed) == members:
        raise FloatingPointError(f"no member could be forecast: {shortened(failed)}")
    if failed:
        warnings.warn(
            f"{len(failed)} of {members} members failed and are NaN: {shortened(failed)}",
            RuntimeWarning,
            stacklevel=4,
        )
    return sink.dataset()


def attributes(settings: Mapping[str, Any], prior: "Prior") -> dict[str, Any]:
    """What a reader of a forecast wants to know of how it was made."""

    known = {**settings, "guidance": {"name": "no"}}
    attrs = provenance({"observations": "", **known}, prior)
    if "observations" not in settings:
        del attrs["observations_hash"]
    sampler = settings["sampler"]
    method = (
        f"blocks of {settings['frames']} states given the {settings['tail']} before them, "
        f"{sampler['sampler']} sampler, {sampler['steps']} steps"
    )

    return {**attrs, "title": "Forecast ensemble", "method": method}


def forecast_from_observations(
    prior: "Prior",
    observations: "Observations",
    lead: int,
    members: int,
    seed: int,
    out: str | Path | None,
    *,
    time: Any = None,
    memory: int | str = "2GiB",
    block: int | None = None,
    device: str | torch.device = "cpu",
    dtype: torch.dtype | str = torch.float32,
    precision: str = "float32",
    overwrite: bool = False,
    resume: bool = False,
    progress: bool = False,
    **options: Any,
) -> xr.Dataset:
    r"""Forecasts from observations, $p(x_{L+1:L+H} \mid y_{1:L})$.

    The first states of the forecast, up to half a window, are sampled jointly with the analysis:
    for them the result is exactly a part of `task="smooth"`. Longer forecasts go on from there,
    block by block, see `forecast`.

    Arguments:
        lead: The number of states after the last observation, or after `time`.
        out: The store of the forecast. The analysis is kept beside it, in `<name>-analysis.zarr`.
        time: The time coordinate of the analysis (default: up to the last observation).
        options: Guidance, sampler and Langevin steps of the analysis, see `sda.assimilate`.

    Raises:
        ValueError: If the lead time is not positive, and as `sda.assimilate`.
    """

    lead = check_count("lead", lead)
    if out is not None and check_target(Path(out), overwrite, resume) and overwrite:
        # Interrupted in the analysis already, the run is resumed all the same.
        announce(Path(out).resolve(), {
            "task": "forecast", "prior": prior.hash, "observations": observations.hash(),
            "lead": lead, "members": members, "seed": seed,
        })  # fmt: skip
    dt = prior.layout.dt
    if time is None:
        first, last = first_state(prior.layout, observations.span[0]), observations.span[1]
        length = 1 + math.ceil((last - first) / dt - 1e-3)
        time = first + dt * np.arange(length)
    time = trajectory_times(prior, observations, time, memory)
    tail, frames = block_of_time(prior, None, None)
    joint = min(lead, max(prior.window // 2, prior.window - len(time), 0))
    if len(time) + joint < prior.window:
        # The prior needs a window; what is beyond the lead time is left out again.
        joint = prior.window - len(time)
    longer = time[0] + dt * np.arange(len(time) + joint)
    beside = None if out is None else analysis_path(Path(out))
    try:
        analysis = assimilate(
            prior, observations, members, seed, beside, time=longer, memory=memory, block=block,
            device=device, dtype=dtype, precision=precision,
            overwrite=overwrite, resume=resume, progress=progress, **options,
        )  # fmt: skip
    except (ValueError, TypeError, FloatingPointError):
        # Resumed, it would end so again.
        if out is not None and overwrite:
            announcement(Path(out).resolve()).unlink(missing_ok=True)
        raise
    kept = {"observations": observations.hash(), "analysis": json_settings(analysis)}
    if joint > lead:
        analysis, joint = analysis.isel(time=slice(0, len(time) + lead)), lead
    failed = set(np.atleast_1d(analysis.attrs.get("failed_members", [])).tolist())
    if failed:
        good = [member for member in range(members) if member not in failed]
        analysis = analysis.isel(member=good)

    return run(
        prior, analysis, lead, joint, members, seed, out, kept, tail=tail, frames=frames,
        langevin="default", sampler="xeab", steps=None, s_max=10.0, s_min=None, memory=memory,
        block=block, device=device, dtype=dtype, precision=precision, overwrite=overwrite,
        resume=resume, progress=progress,
    )  # fmt: skip


def analysis_path(out: Path) -> Path:
    """The store of the analysis that a forecast departs from."""
    return out.with_name(f"{out.name.removesuffix('.zarr')}-analysis.zarr")


def json_settings(dataset: xr.Dataset) -> str:
    """The settings that a posterior was made with."""
    return str(dataset.attrs.get("settings", ""))
