"""Assimilation: from a prior and observations to a posterior ensemble.

The task "smooth" draws members from the posterior `p(x_{1:L} | y)` of a whole trajectory given all
observations. Members are sampled in blocks that fit a memory budget, and each block is written
while the next one is sampled, so that memory does not depend on the number of members.

An ensemble depends on its settings and its seed, and on nothing else. The noise of a member comes
from `(seed, member)`; what the members share (the pilots of flow-dependent guidance) is computed
once and before all blocks. The same ensemble results from any block size, and from a run that was
interrupted and resumed.
"""

import copy
import math
import warnings
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
import xarray as xr

from dynamics.simulate import compute_device

from .budget import ACTIVATIONS, block_size, size_in_bytes, too_long
from .cf.times import first_state
from .denoiser import Denoiser, GaussianDenoiser
from .precisions import PRECISIONS, sampling_dtype
from .precisions import precision as precision
from .progress import Progress
from .provenance import plain, provenance, shortened
from .store import PosteriorMemory, PosteriorWriter, check_target
from .transfer import fetch

if TYPE_CHECKING:
    from .langevin import Langevin
    from .observation import Observations
    from .prior import Prior
    from .quality import Quality
    from .smc import ParticleStep

TASKS = ("smooth", "filter", "forecast")
# The noise levels of a smoother.
LEVELS: dict[str, Any] = {"steps": 24, "s_max": 100.0, "s_min": 5e-3}


def assimilate(
    prior: "Prior",
    observations: "Observations",
    members: int = 64,
    seed: int = 0,
    out: str | Path | None = None,
    task: str = "smooth",
    *,
    time: Any = None,
    lead: int | None = None,
    lag: int = 0,
    history: int | None = None,
    carry: str = "observations",
    guidance: str | Mapping[str, Any] | None = None,
    langevin: "Langevin | str | None" = "default",
    smc: "ParticleStep | None" = None,
    sampler: str = "xeab",
    steps: int | None = None,
    s_max: float | None = None,
    s_min: float | None = None,
    memory: int | str = "2GiB",
    block: int | None = None,
    frames: int | None = None,
    device: str | torch.device = "cpu",
    dtype: torch.dtype | str = torch.float32,
    precision: str = "float32",
    overwrite: bool = False,
    resume: bool = False,
    progress: bool = False,
    cluster: Any = None,
    workers: int | None = None,
    quality: "Quality | Mapping[str, Any] | bool | None" = None,
) -> xr.Dataset:
    r"""Samples an ensemble from the posterior of a trajectory given observations.

    $$ x^{(m)} \sim p(x_{1:L} \mid y), \qquad y = H(x_{1:L}) + \varepsilon,
       \quad \varepsilon \sim N(0, R) $$

    Arguments:
        prior: The prior over trajectories.
        observations: The observations.
        members: The number of members.
        seed: The seed. Member `m` of seed `s` is the same draw whatever the other members.
        out: A Zarr store that the members are streamed to (default: they are kept in memory).
        task: What to sample: "smooth", the trajectory given all observations; "filter", each
            time of an analysis given the observations until then, see `sda.filtering`; or
            "forecast", the states after the last observation, see `sda.forecasting`.
        time: The time coordinate of the trajectory, in steps of the prior's `dt` (default: the
            observations' span on the prior's `dt`, at least one window of the prior).
        lead: For "forecast", the number of states after the last observation, or after `time`, to
            forecast.
        lag: For "filter", the number of states before each cycle that are analysed again, so that
            the analysis at a time knows the observations of so many states more.
        history: For "filter", the number of states of a cycle's window, see `sda.Assimilator`.
        carry: For "filter", what a cycle knows of the past, see `sda.Assimilator`.
        guidance: The method, a name of `sda.guidance.METHODS` or a mapping with its `name` and
            options (default: `hybrid` with 2 pilots for systems without space, `static`
            for fields; for "filter", see `sda.Assimilator`).
        langevin: Langevin steps, see `sda.langevin.Langevin`: an instance, "vectors", "fields" or
            None (default: those that suit the kind of system, with what the prior has
            of its own, see `Prior`).
        smc: Weights and resampling at each noise level, see `sda.smc.ParticleStep` (default: none).
            The number of members must be a multiple of its `group`.
        sampler: The sampler, see `sda.sampling.sample`.
        steps: The number of noise levels (default: 24; for "filter", see `sda.Assimilator`).
        s_max: The largest noise level, in units of the variables' standard deviations (default:
            100).
        s_min: The smallest, to be chosen well under the smallest posterior standard deviation
            (default: 0.005).
        memory: The memory that the sampled states may take, in bytes or as "512MiB", "2GiB".
            Decides the members per block, and whether the trajectory is sampled in blocks of time
            with its state on disk, beside `out`, see `sda.long`.
        block: The members per block, in place of `memory`.
        frames: The states per block of time, in place of `memory`; for "smooth", and for the
            analysis of "forecast".
        device: The device to sample on.
        dtype: The precision to sample and store in, float32 or float64.
        precision: The precision that the network alone is evaluated in, float32 or bfloat16; all
            else stays in `dtype`.
        overwrite: Whether a posterior at `out` is replaced. It stays as it is until the first
            members of the new one are on disk.
        resume: Whether a posterior at `out` that was interrupted is completed.
        progress: Whether a progress bar is shown.
        cluster: A Dask cluster whose workers sample the blocks of members, see
            `dynamics.cluster.connect` (default: this process does); they must see `out`. For
            "smooth" in memory only: the cycles of a filter, the blocks of a forecast and blocks of
            time (`frames`) each need what the one before left on this machine.
        workers: The number of processes of cluster="local", which it implies.
        quality: Whether observations in gross error are left out: thresholds of `sda.quality`, or
            True for the usual ones. What was rejected is in the attributes of the posterior.

    Returns:
        The posterior, with dimensions `(member, time, *space)` and one variable per variable of
        the prior, in physical units; lazy where it was streamed. The attribute `failed_members`
        lists the members whose sampling diverged, `failures` says where: they are NaN, and a
        warning names them. The others are as good as ever. With particle steps a whole group fails.

    Raises:
        ValueError: If an argument is out of range, the observations do not fit the prior or the
            time coordinate, or the store to resume was made with other settings.
        FileExistsError: If `out` exists and neither `overwrite` nor `resume` is given, or another
            process writes it.
        FloatingPointError: If no member at all could be sampled, or no pilot of the guidance; a
            posterior that was to be replaced is still there then.
        OSError: If the disk is full; finished blocks stay readable.
    """

    from .cluster import Target, assimilate_on
    from .guidance import METHODS, guide
    from .long import smooth
    from .sampling import SAMPLERS, Diverged, log_levels, prepare, sample

    if task not in TASKS:
        raise ValueError(f"unknown task {task!r}: expected one of {', '.join(TASKS)}")
    given = {"steps": steps, "s_max": s_max, "s_min": s_min}
    levels: dict[str, Any] = {n: LEVELS[n] if v is None else v for n, v in given.items()}
    if quality:
        from .quality import check

        observations = check(prior, observations, quality, time).accepted
    if cluster is not None or workers is not None:
        if task != "smooth" or frames is not None:
            what = f"frames={frames}" if task == "smooth" else f"task={task!r}"
            raise ValueError(
                f"a cluster goes with task='smooth', whose members are independent; {what} is for "
                f"one process, as cycles of a filter, blocks of a forecast and blocks of time each "
                f"need what the one before left: leave out cluster and workers"
            )
        if lead is not None or lag or history is not None or carry != "observations":
            raise ValueError("lead goes with task='forecast'; lag, history, carry with 'filter'")
        return assimilate_on(
            cluster, workers, prior, observations, out, members=members, seed=seed, time=time,
            guidance=guidance, langevin=langevin, smc=smc, sampler=sampler, **levels,
            memory=memory, block=block, device=device, dtype=dtype,
            precision=precision, overwrite=overwrite, resume=resume, progress=progress,
        )  # fmt: skip
    if (lead is None) == (task == "forecast"):
        raise ValueError(f"task='forecast' needs a lead, and no other has one, got lead={lead}")
    if task == "forecast" and lead is not None:
        from .forecasting import forecast_from_observations

        if smc is not None or lag or history is not None or carry != "observations":
            raise ValueError("smc, lag, history and carry do not go with task='forecast'")
        return forecast_from_observations(
            prior, observations, lead, members, seed, out, time=time, guidance=guidance,
            langevin=langevin, sampler=sampler, **levels,
            memory=memory, block=block, frames=frames, device=device, dtype=dtype,
            precision=precision, overwrite=overwrite, resume=resume, progress=progress,
        )  # fmt: skip
    if task == "filter":
        from .filter_all import filter_all

        if smc is not None:
            raise ValueError("particle steps go with task='smooth': leave out smc for a filter")
        if frames is not None:
            raise ValueError(
                f"blocks of time are not for a filter, whose windows are short: leave out "
                f"frames={frames}, or give history"
            )
        return filter_all(
            prior, observations, members, seed, out, time=time, progress=progress, lag=lag,
            history=history, carry=carry, guidance=guidance, langevin=langevin, sampler=sampler,
            steps=steps, s_max=s_max, s_min=s_min, memory=memory, block=block, device=device,
            dtype=dtype, precision=precision, overwrite=overwrite, resume=resume,
        )  # fmt: skip
    if lag or history is not None or carry != "observations":
        raise ValueError(f"lag, history and carry go with task='filter', got task={task!r}")
    if not isinstance(members, int) or members < 1:
        raise ValueError(f"members must be an integer of at least 1, got {members!r}")
    if not isinstance(seed, int) or seed < 0:
        raise ValueError(f"seed must be a non-negative integer, got {seed!r}")
    dtype = sampling_dtype(dtype, precision)
    device = compute_device(device)
    if out is not None and not isinstance(out, Target):
        # Before any work: a run must not end at a store that it may not write.
        check_target(Path(out), overwrite, resume)
    elif out is None and (overwrite or resume):
        raise ValueError("overwrite and resume need an output store, got out=None")

    layout = prior.layout
    time = trajectory_times(prior, observations, time, memory)
    prior = prior.at(time)
    long = frames is not None or too_long(prior, len(time), memory)
    shape = (len(time), *layout.shape)
    method, options = guidance_method(guidance, fields=bool(layout.dims))
    if method not in METHODS:
        raise ValueError(f"unknown guidance {method!r}: expected one of {', '.join(METHODS)}")
    langevin = langevin_steps(langevin, bool(layout.dims), prior.langevin)
    if sampler not in SAMPLERS:
        raise ValueError(f"unknown sampler {sampler!r}: expected one of {', '.join(SAMPLERS)}")
    log_levels(**levels)
    schedule = {"sampler": sampler, **levels}

    prior = prior.to(device)
    settings: dict[str, Any] = {
        "task": task,
        "prior": prior.hash,
        "observations": observations.hash(),
        "time": [float(time[0]), float(time[-1]), len(time)],
        "members": members,
        "seed": seed,
        "guidance": {"name": method, **options},
        "langevin": plain(langevin),
        "smc": plain(smc),
        "sampler": schedule,
        "dtype": str(dtype).removeprefix("torch."),
        "precision": precision,
    }
    if long and isinstance(out, Target):
        raise ValueError(
            f"{len(time)} states are sampled in blocks of time, which one process does: leave out "
            f"cluster and frames, or raise memory={memory}"
        )
    if long:
        if observations.robust:
            raise ValueError(
                "blocks of time need Gaussian errors, but some observations have others: raise "
                "memory, leave out frames, or use quality=True with Gaussian errors"
            )
        if smc is not None:
            raise ValueError(
                "particle steps weigh whole trajectories, which are too long here: leave out smc, "
                "or raise memory"
            )
        return smooth(
            prior, observations, members, seed, out, time, method=method, options=options,
            langevin=langevin, schedule=schedule, memory=memory, dtype=dtype, device=device,
            precision=precision, settings=settings,
            attrs=provenance(settings, prior) | observations.notes,
            overwrite=overwrite, resume=resume, frames=frames, progress=progress,
        )  # fmt: skip

    climatology = prior.climatology
    likelihood = prior.likelihood(observations, time, dtype=dtype, device=device)
    guided = guide(
        method,
        trajectory_denoiser(prior, len(time), dtype, memory, precision),
        likelihood,
        climatology.covariance(len(time), dtype),
        **options,
    )
    if smc is not None:
        # Not needed before a block is sampled, but what does not fit is better known now.
        smc.begin(guided, seed, range(members))
    if block is None:
        block = block_size(members, shape, dtype, memory, 1 if smc is None else smc.group)
    elif block < 1:
        raise ValueError(f"block must be at least 1, got {block}")
    elif smc is not None and block % smc.group and block < members:
        raise ValueError(
            f"block must be a multiple of the particle step's group of {smc.group} members, got "
            f"{block}"
        )

    attrs = provenance(settings, prior) | observations.notes
    sink: PosteriorWriter | PosteriorMemory | Target
    if isinstance(out, Target):
        sink = out.open(layout, time, members, block, settings, attrs, settings["dtype"])
    elif out is None:
        sink = PosteriorMemory(layout, time, members, block, settings, attrs, settings["dtype"])
    else:
        sink = PosteriorWriter(
            out, layout, time, members, block, settings, attrs, settings["dtype"], overwrite, resume
        )

    options = {**schedule, "langevin": langevin, "dtype": dtype, "device": device}

    with sink:
        if sink.unfinished:
            # Before all blocks, which share the pilots; without pilots no member is any good.
            sink.share(guided, lambda: prepare(guided, shape, seed, **options))
        blocks = [(k, sink.blocks[k]) for k in sink.unfinished]
        with Progress(sum(len(block) for _, block in blocks), guided, progress) as bar:
            for k, part in blocks:
                failures: dict[int, str] = {}
                try:
                    x = sample(
                        guided, shape, seed, part, smc=smc, progress=bar.level(part), **options
                    )
                except Diverged as error:
                    x, failures = error.trajectories, error.failures
                sink.put(k, fetch(prior.states(x, time)), failures)
                bar.done(part)

    failed = list(sink.failures.values())
    if len(failed) == members:
        raise FloatingPointError(
            f"no member could be sampled: {shortened(failed)}: use guidance 'static', smaller "
            f"Langevin steps or none, or check the observations' std"
        )
    if failed:
        warnings.warn(
            f"{len(failed)} of {members} members failed and are NaN: {shortened(failed)}",
            RuntimeWarning,
            stacklevel=2,
        )
    return sink.dataset()


def trajectory_times(
    prior: "Prior", observations: "Observations", time: Any = None, memory: int | str = "2GiB"
) -> np.ndarray:
    """The time coordinate of the trajectory to sample.

    Arguments:
        prior: The prior, with its `dt` and window.
        observations: The observations.
        time: The times, if not the observations' span.
        memory: The memory budget, see `assimilate`.

    Raises:
        ValueError: If the times are not in steps of the prior's `dt`, do not cover the
            observations, or are too many because of one that lies far from the others.
    """

    dt = prior.layout.dt
    first, last = observations.span
    if time is None:
        first = first_state(prior.layout, first)
        # Observations may span less than the prior's window; the states after them are free.
        length = max(1 + math.ceil((last - first) / dt - 1e-3), prior.window)
        if too_long(prior, length, memory):
            check_gap(prior, observations, length)
        return first + dt * np.arange(length)

    time = np.asarray(getattr(time, "values", time), dtype=np.float64)
    if time.ndim != 1 or not len(time) or not np.isfinite(time).all():
        raise ValueError(f"time must be one-dimensional and finite, got shape {time.shape}")
    if len(time) > 1 and not np.allclose(np.diff(time), dt, rtol=1e-3, atol=0):
        raise ValueError(
            f"time must increase in steps of the prior's dt={dt:g}, got steps of "
            f"{np.diff(time).min():g} to {np.diff(time).max():g}"
        )
    if first < time[0] - 1e-3 * dt or last > time[-1] + 1e-3 * dt:
        raise ValueError(
            f"the observations span times {first:g} to {last:g}, but the trajectory only "
            f"{time[0]:g} to {time[-1]:g}: give a time coordinate that covers them"
        )
    return time


def check_gap(prior: "Prior", observations: "Observations", length: int) -> None:
    """Raises a `ValueError` if most of a long trajectory is one gap between observations.

    One time far away from the others, perhaps in other units, would make a trajectory that takes
    all of the machine's disk before anything could be said about it.
    """

    times = np.concatenate([t for each in observations.sets for t in each.operator.times()])
    gap, span = float(np.diff(np.unique(times)).max(initial=0)), float(np.ptp(times))
    if gap > span / 2:
        first, last = observations.span
        raise ValueError(
            f"the observations span times {first:g} to {last:g}, which is {length} states in steps "
            f"of the prior's dt={prior.layout.dt:g}, and nothing is observed for {gap:g} of that: "
            f"check the times, or give the trajectory's time if it is meant so"
        )


def guidance_method(
    guidance: str | Mapping[str, Any] | None, fields: bool
) -> tuple[str, dict[str, Any]]:
    """The name and options of a guidance, by default the one that suits the kind of system."""

    if guidance is None:
        return ("static", {}) if fields else ("hybrid", {"pilots": 2})
    if isinstance(guidance, str):
        return guidance, {}
    options = dict(guidance)
    if "name" not in options:
        raise ValueError(f"a guidance needs a 'name', got the keys {sorted(options)}")
    return str(options.pop("name")), options


def langevin_steps(
    langevin: "Langevin | str | None", fields: bool, own: Mapping[str, Any] | None = None
) -> "Langevin | None":
    """The Langevin steps of a name, by default those that suit the kind of system.

    Arguments:
        langevin: The steps, their name, or none.
        fields: Whether states have spatial dimensions.
        own: Options in place of those of the default, see `Prior.langevin`.

    Raises:
        ValueError: If the name is unknown.
    """

    from .langevin import Langevin

    presets = {"vectors": Langevin.for_vectors, "fields": Langevin.for_fields}
    presets["default"] = presets["fields" if fields else "vectors"]
    if not isinstance(langevin, str):
        return langevin
    if langevin not in presets:
        raise ValueError(f"unknown langevin {langevin!r}: expected one of {', '.join(presets)}")
    return presets[langevin](**(own or {} if langevin == "default" else {}))


def trajectory_denoiser(
    prior: "Prior", length: int, dtype: torch.dtype, memory: int | str, precision: str = "float32"
) -> Denoiser:
    """The prior's denoiser of trajectories, in a dtype, with its windows in batches.

    Arguments:
        prior: The prior, which stays as it is.
        length: The number of states.
        dtype: The dtype of the trajectories.
        memory: The memory budget, see `assimilate`.
        precision: The precision of the network alone.
    """

    if prior.denoiser is None:
        return GaussianDenoiser(prior.climatology.covariance(length, dtype))
    if prior.denoiser.precision != PRECISIONS[precision]:
        prior = prior.with_network(PRECISIONS[precision])
    cells = math.prod(prior.layout.shape[1:])
    batch = max(1, size_in_bytes(memory) // (4 * ACTIVATIONS * cells))
    denoiser = prior.trajectory(length, batch=batch)

    if dtype == torch.float32:
        return denoiser
    denoiser = copy.deepcopy(denoiser).double()
    for module in denoiser.modules():
        # `Module.double` leaves complex buffers, the Fourier eigenvectors, in single precision.
        for name, buffer in module.named_buffers(recurse=False):
            if buffer.is_complex():
                setattr(module, name, buffer.to(torch.complex128))

    return denoiser
