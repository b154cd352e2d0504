"""How fast the classical filters are, one run and many at once.

The published set-up of Sakov and Oke (2008) on Lorenz-96: 40 variables, all observed at each of
1,000 steps. Times are CPU seconds of this process on one thread, since those of a clock depend on
what else a machine does; accuracy stands beside them.
"""

import json
import subprocess
import time
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
import xarray as xr

from dynamics import Lorenz96

FILTERS: dict[str, dict[str, Any]] = {
    "ETKF": {"members": 24, "inflation": 1.013, "rotation": True},
    "LETKF": {"members": 7, "inflation": 1.04, "radius": 4, "rotation": True},
}
BURN_IN = 20.0


def twins(repetitions: int, cycles: int, seed: int = 0) -> tuple[list[xr.Dataset], list[Any], Any]:
    """Truths, their observations, and the distribution of the first state."""

    from ..classical import Gaussian
    from ..observation import Select, observe

    system = Lorenz96()
    initial = Gaussian(np.eye(1, system.dimension), 0.001)
    first = torch.cat(
        [initial.draw(system, 1, 10_000 + seed + i, torch.float64) for i in range(repetitions)]
    )
    times = system.layout.times(cycles + 1)
    whole = system.layout.to_dataset(system.rollout(first, cycles + 1), time=times)
    truths = [whole.isel(member=i) for i in range(repetitions)]
    chosen = Select(times=times[1:].tolist())
    observations = [observe(t, chosen, std=1.0, seed=seed + i) for i, t in enumerate(truths)]

    return truths, observations, initial


@dataclass
class Timing:
    """One filter, run one or many times at once.

    Attributes:
        name: The filter.
        repetitions: The number of runs at once.
        cycles: The number of cycles of each.
        seconds: CPU seconds for each run, the least of several tries.
        rmse: The median over the runs of the analysis RMSE after the burn-in.
        diverged: The number of runs that diverged.
    """

    name: str
    repetitions: int
    cycles: int
    seconds: float
    rmse: float
    diverged: int


def measure(
    name: str, repetitions: int = 1, cycles: int = 1000, tries: int = 3, seed: int = 0
) -> Timing:
    """Times a filter of `FILTERS`."""

    from .. import classical

    system = Lorenz96()
    truths, observations, initial = twins(repetitions, cycles, seed)
    method = getattr(classical, name)(system, **FILTERS[name])
    seeds, time_axis = list(range(seed, seed + repetitions)), truths[0]["time"]
    # What is only done once, as are imports, is not part of a run's time.
    warm = twins(1, 3, seed)
    method.assimilate(warm[1], [0], initial=initial, time=warm[0][0]["time"])
    best = float("inf")
    for _ in range(tries):
        start = time.process_time()
        results = method.assimilate(observations, seeds, initial=initial, time=time_axis)
        best = min(best, time.process_time() - start)

    return Timing(
        name, repetitions, cycles, best / repetitions,
        float(np.median([score(a, t) for a, t in zip(results, truths, strict=True)])),
        sum(each.attrs["diverged"] for each in results),
    )  # fmt: skip


def field_analysis(
    size: int = 64,
    members: int = 40,
    every: Mapping[str, int] | None = None,
    radius: float = 4.0,
    spinup: int = 32,
    tries: int = 3,
) -> dict[str, float]:
    """One analysis of the LETKF on Kolmogorov flow.

    Arguments:
        size: The cells per side, of the states and of their model.
        members: The number of members.
        every: Every so many cells along each dimension are observed (default: 2 and 4, which are
            1,024 values of both velocities on 64² cells).
        radius: The radius of localisation, in cells.
        spinup: Steps of spin-up before the members are taken.
        tries: The number of tries, of which the fastest counts.

    Returns:
        `seconds` by the clock and `processor_seconds` of the analysis; `values` observed; and the
        RMSE of the ensemble's mean, `background` and `analysis`.
    """

    from dynamics import KolmogorovFlow

    from ..classical import LETKF, Draws
    from ..observation import Subsample, observe

    flow = KolmogorovFlow(size=size, resolution=size)
    states = flow.simulate(members + 1, 1, spinup=spinup, seed=0, progress=False)
    x = torch.from_numpy(flow.layout.to_array(states))[:, 0]
    times = flow.layout.times(2)
    pair = flow.layout.to_dataset(x[:1, None].expand(1, 2, *x.shape[1:]), time=times)
    truth = pair.isel(member=0, time=slice(0, 1))
    operator = Subsample(dict(every or {"y": 2, "x": 4}))
    observations = observe(truth, operator, std=0.1, seed=0, layout=flow.layout)
    method = LETKF(flow, members, radius=radius)
    found = {"seconds": np.inf, "processor_seconds": np.inf, "values": float(len(observations))}
    for _ in range(tries):
        wall, processor = time.perf_counter(), time.process_time()
        analysis = method.assimilate(observations, 0, initial=Draws(x[1:]))
        found["seconds"] = min(found["seconds"], time.perf_counter() - wall)
        processor = time.process_time() - processor
        found["processor_seconds"] = min(found["processor_seconds"], processor)
    mean = torch.from_numpy(flow.layout.to_array(analysis))[:, 0].mean(0)
    for name, state in (("background", x[1:].mean(0)), ("analysis", mean)):
        found[name] = float((state - x[0]).square().mean().sqrt())

    return found


def score(analysis: xr.Dataset, truth: xr.Dataset) -> float:
    """The analysis RMSE after the burn-in, mean over the analysis times."""

    error = analysis["x"].mean("member") - truth["x"].isel(time=slice(1, None)).values
    rmse = ((error**2).mean("site") ** 0.5).values
    kept = rmse[analysis["time"].values > BURN_IN]

    return float(kept.mean()) if len(kept) else float("nan")


def reference(python: str, cycles: int, tries: int) -> Mapping[str, Mapping[str, float]]:
    """CPU seconds of the reference implementation, run by a Python that has it.

    Arguments:
        python: An interpreter whose environment has the package `dapper`.
        cycles: The number of cycles.
        tries: The number of tries, of which the least counts.

    Returns:
        For each filter `seconds` and `rmse`; empty if the package is missing there.
    """

    script = Path(__file__).parents[2] / "scripts" / "reference_classical.py"
    done = subprocess.run(
        [python, str(script), str(cycles), str(tries)], capture_output=True, text=True, check=False
    )
    lines = [line for line in done.stdout.splitlines() if line.startswith("{")]
    if done.returncode or not lines:
        return {}

    return dict(json.loads(lines[-1]))
