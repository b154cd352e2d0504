"""A filter over a finished set of observations, the task "filter" of `sda.assimilate`."""

import math
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import xarray as xr

from .cf.times import first_state
from .filtering import Assimilator
from .observation import Observations
from .observation.domain import TIME_TOLERANCE
from .observation.recent import split
from .store import open_dataset

if TYPE_CHECKING:
    from .prior import Prior


def analysis_times(
    prior: "Prior", observations: Observations, time: Any = None
) -> tuple[float, int, int]:
    """The cycles of a finished set of observations.

    Arguments:
        prior: The prior, with its `dt`.
        observations: The observations.
        time: The times of the cycles, evenly apart (default: from the first observation to the
            last, as far apart as hits every one).

    Returns:
        The time of the first cycle, the states from one to the next, and the number of cycles.

    Raises:
        ValueError: If the times are not evenly apart in steps of `dt`.
    """

    dt = prior.layout.dt
    first, last = first_state(prior.layout, observations.span[0]), observations.span[1]
    if time is None:
        pieces = split(observations, prior.layout, first)
        steps = [piece.last for piece in pieces]
        every = math.gcd(*steps) or 1
        return first, every, max(steps) // every + 1
    time = np.asarray(getattr(time, "values", time), dtype=np.float64)
    if time.ndim != 1 or not len(time) or not np.isfinite(time).all():
        raise ValueError(f"time must be one-dimensional and finite, got shape {time.shape}")
    if len(time) == 1:
        return float(time[0]), 1, 1
    steps = np.diff(time) / dt
    every = round(float(steps[0]))
    if every < 1 or not np.allclose(steps, every, rtol=0, atol=1e-3):
        raise ValueError(
            f"the times of cycles must be evenly apart in steps of the prior's dt={dt:g}, got "
            f"steps of {np.diff(time).min():g} to {np.diff(time).max():g}"
        )
    if last > time[-1] + TIME_TOLERANCE * dt:
        raise ValueError(
            f"the observations reach to time {last:g}, but the last cycle is at {time[-1]:g}: "
            f"give times that cover them"
        )
    return float(time[0]), every, len(time)


def filter_all(
    prior: "Prior",
    observations: Observations,
    members: int = 64,
    seed: int = 0,
    out: str | Path | None = None,
    *,
    time: Any = None,
    progress: bool = False,
    **options: Any,
) -> xr.Dataset:
    """Runs a filter over a finished set of observations, see `sda.assimilate`.

    Arguments:
        prior: The prior.
        observations: The observations.
        members: The number of members.
        seed: The seed.
        out: A Zarr store to append to (default: the analyses are kept in memory).
        time: The times of the cycles, see `analysis_times`.
        progress: Whether a progress bar is shown.
        options: See `Assimilator`.

    Returns:
        The analyses, with dimensions `(member, time, *space)`: at each time given the observations
        until then, and with a lag those of so many states more as long as there are some.
    """

    from tqdm import tqdm

    start, every, count = analysis_times(prior, observations, time)
    rows: dict[int, np.ndarray] = {}
    counts = np.zeros((2, count), dtype=np.int32)
    messages: list[str] = []
    lost: set[int] = set()
    assimilator = Assimilator(prior, members, seed, start=start, every=every, out=out, **options)
    with assimilator, tqdm(total=count, disable=not progress, desc="filter", unit="cycle") as bar:
        bar.update(assimilator.cycle)
        assimilator.add(observations)
        assimilator.complete = count
        while assimilator.cycle < count:
            cycle = assimilator.cycle
            counts[0, cycle] = assimilator.observed((cycle - 1) * every, cycle * every)
            frames, failures = assimilator.step()
            counts[1, cycle] = len(failures)
            messages += [f"cycle {cycle}: {text}" for text in failures.values()]
            lost |= failures.keys()
            if out is None:
                rows |= assimilator.rows(cycle, frames)
            bar.update()
        assimilator.close("complete")
    if out is not None:
        return open_dataset(out)
    attrs = assimilator.attrs | {
        "status": f"complete: {count} cycles",
        "failures": messages,
        "failed_members": sorted(lost),
    }

    return assimilator.layout.to_dataset(
        np.stack([rows[cycle] for cycle in range(count)], axis=1),
        start + every * prior.layout.dt * np.arange(count),
        attrs=attrs,
    ).assign_coords(observed=("time", counts[0]), failed=("time", counts[1]))
