"""Scaling laws: time and peak memory against members, length, number of observations, grid size.

One of the four is varied at a time, the others stay at `BASE`. The posterior is that of a periodic
field under a Gaussian prior, in blocks of time with the state on disk; what it costs depends on the
sizes alone, so that the prior and the observations need no simulation. Every measurement is a
process of its own: the largest resident set that a process ever had, `ru_maxrss`, never falls
again. The time is the processor's, of one thread, for the assimilation without imports.
"""

import json
import math
import subprocess
import sys
import tempfile
import time
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from matplotlib.figure import Figure

    from ..observation import Observations
    from ..prior import Prior

MIB = 2**20
# The states of a block and of the climatology, the correlation of successive states, and the noise
# levels of a run.
FRAMES, WINDOW, CORRELATION, STEPS = 32, 4, 0.6, 6


@dataclass(frozen=True)
class Size:
    """The size of an assimilation.

    Attributes:
        members: The members.
        length: The states of a trajectory.
        observations: The observed values in every fourth state.
        grid: The cells along each of two dimensions.
        memory: The memory budget.
    """

    members: int = 8
    length: int = 96
    observations: int = 8
    grid: int = 16
    memory: str = "96MiB"


BASE = Size()
AXES: dict[str, tuple[int, ...]] = {
    "members": (2, 8, 32, 128),
    "length": (64, 256, 1024),
    "observations": (2, 8, 32, 128),
    "grid": (8, 16, 32, 64),
}
# What does not fit the budget of the others has one of its own.
BUDGETS = {("grid", 32): "384MiB", ("grid", 64): "1536MiB"}


@dataclass(frozen=True)
class Measured:
    """What one assimilation took.

    Attributes:
        seconds: The processor seconds, of one thread.
        memory: The peak memory of the process, in bytes.
        idle: The memory of the process before the assimilation, in bytes.
        result: The bytes of the posterior.
    """

    seconds: float
    memory: int
    idle: int
    result: int


def gaussian_prior(grid: int) -> "Prior":
    """A Gaussian prior of two velocities on a periodic square, a red spectrum and a short memory.

    Arguments:
        grid: The cells along each dimension.
    """

    import torch

    from dynamics import KolmogorovFlow

    from ..climatology import Climatology
    from ..prior import Prior

    layout = KolmogorovFlow(size=grid, resolution=2 * grid).layout
    k = torch.fft.fftfreq(grid, 1 / grid, dtype=torch.float64)
    wave = k[:, None] ** 2 + k[: grid // 2 + 1].abs() ** 2
    power = (1 + wave) ** -2.0
    twice = torch.full_like(power, 2.0)
    twice[:, 0] = twice[:, -1] = 1.0
    power *= grid**2 / (power * twice).sum()
    lag = (torch.arange(WINDOW)[:, None] - torch.arange(WINDOW)).abs()
    frames = CORRELATION ** lag.double()
    pair = torch.kron(frames, torch.eye(2, dtype=torch.float64))
    moments = {"blocks": power[..., None, None] * pair}
    mean, scale = torch.zeros(layout.shape), torch.ones(layout.shape[0])

    return Prior(Climatology(layout, WINDOW, mean, scale, "spectral", moments), name="scaling")


def observed(prior: "Prior", length: int, count: int) -> "Observations":
    """Observations of every fourth state, `count` values each, all of them zero.

    Arguments:
        prior: The prior.
        length: The states of the trajectory.
        count: The values per state, two times a square's number of cells.

    Raises:
        ValueError: If `count` is not.
    """

    from ..observation import BlockAverage, Observations, Select

    layout = prior.layout
    side = math.isqrt(count // 2)
    if 2 * side**2 != count or layout.shape[1] % side:
        raise ValueError(
            f"observations must be two times the cells of a square that divides a grid of "
            f"{layout.shape[1]}, got {count}"
        )
    H = Select(every=4) >> BlockAverage(layout.shape[1] // side)

    return Observations.from_operator(H, 0.0, 0.3, layout, layout.times(length))


def run(size: Size, folder: Path) -> Measured:
    """Assimilates in this process."""

    import resource

    from ..assimilation import assimilate

    unit = 1 if sys.platform == "darwin" else 1024
    prior = gaussian_prior(size.grid)
    observations = observed(prior, size.length, size.observations)
    idle = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * unit
    start = time.process_time()
    posterior = assimilate(
        prior, observations, size.members, out=folder / "posterior.zarr", guidance="static",
        langevin=None, steps=STEPS, frames=FRAMES, memory=size.memory,
        time=prior.layout.times(size.length),
    )  # fmt: skip
    seconds = time.process_time() - start
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * unit

    return Measured(seconds, peak, idle, int(sum(each.nbytes for each in posterior.values())))


def measured(size: Size) -> Measured:
    """Assimilates in a process of its own.

    Raises:
        RuntimeError: If the process fails.
    """

    with tempfile.TemporaryDirectory() as folder:
        command = [sys.executable, "-m", __name__, json.dumps(asdict(size)), folder]
        done = subprocess.run(command, capture_output=True, text=True, check=False)
    if done.returncode:
        raise RuntimeError(f"{size} failed: {done.stderr.strip()[-500:]}")

    return Measured(**json.loads(done.stdout.splitlines()[-1]))


def sizes(axis: str, values: Sequence[int]) -> dict[int, Size]:
    """The sizes of one axis, all else as in `BASE`.

    Raises:
        ValueError: If there is no such axis.
    """

    if axis not in AXES:
        raise ValueError(f"unknown axis {axis!r}: expected one of {', '.join(AXES)}")
    found = {}
    for value in values:
        changes: dict[str, Any] = {axis: value}
        changes["memory"] = BUDGETS.get((axis, value), BASE.memory)
        found[value] = replace(BASE, **changes)

    return found


def exponent(values: Mapping[int, float]) -> float:
    """The power by which a measure grows between the two largest sizes."""

    (a, x), (b, y) = sorted(values.items())[-2:]
    return math.log(y / x) / math.log(b / a)


def table(results: Mapping[str, Mapping[int, Measured]]) -> str:
    """A Markdown table with one row for each measurement."""

    lines = ["| varied | value | result, MiB | seconds | peak memory, MiB | before, MiB |"]
    lines.append("|---" * 6 + "|")
    for axis, found in results.items():
        for value, each in sorted(found.items()):
            lines.append(
                f"| {axis} | {value:,} | {each.result / MIB:.1f} | {each.seconds:.1f} | "
                f"{each.memory / MIB:.0f} | {each.idle / MIB:.0f} |"
            )

    return "\n".join(lines)


def plot(results: Mapping[str, Mapping[int, Measured]]) -> "Figure":
    """Draws time and peak memory against each of the sizes, one panel each."""

    from ..plotting.style import ENSEMBLE, OBSERVED, new_figure, styled

    labels = {"observations": "observed values a state", "grid": "cells along a side"}

    @styled
    def draw() -> "Figure":
        figure = new_figure(7.0, 3.4)
        panels = figure.subplots(2, len(results), squeeze=False, sharex="col", sharey="row")
        for (axis, found), column in zip(results.items(), panels.T, strict=True):
            numbers = sorted(found)
            seconds = [found[n].seconds for n in numbers]
            memory = [found[n].memory / MIB for n in numbers]
            column[0].loglog(numbers, seconds, "o-", color=ENSEMBLE, markersize=3)
            column[1].loglog(numbers, memory, "o-", color=OBSERVED, markersize=3)
            power = exponent({n: found[n].seconds for n in numbers})
            column[0].set_title(f"time ∝ n^{power:.1f} at the end")
            column[1].set_xlabel(labels.get(axis, axis))
            column[1].set_xticks(numbers, [f"{n}" for n in numbers])
            column[1].minorticks_off()
        panels[0, 0].set_ylabel("seconds")
        panels[1, 0].set_ylabel("peak memory, MiB")
        panels[1, 0].set_ylim(bottom=100)
        return figure

    return draw()


def main(arguments: Sequence[str]) -> None:
    """What the process of one measurement does."""

    import torch

    torch.set_num_threads(1)
    size, folder = arguments
    print(json.dumps(asdict(run(Size(**json.loads(size)), Path(folder)))))


if __name__ == "__main__":
    main(sys.argv[1:])
