"""Peak memory of simulation and of assimilation against the number of members.

Both stream blocks of members to disk, so that memory is decided by the block and not by the
ensemble. Every measurement is a process of its own: the largest resident set that a process ever
had, `ru_maxrss`, never falls again.
"""

import subprocess
import sys
import tempfile
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from dynamics import KolmogorovFlow

TASKS = ("simulation", "assimilation")
SIZE, LENGTH, WINDOW = 32, 8, 5
MIB = 2**20


def simulate(members: int, folder: Path, block: int) -> None:
    """Simulates Kolmogorov flow on 32² cells, streamed to disk."""

    system().simulate(members, LENGTH, seed=0, out=folder / "truth.zarr", member_block=block)


def assimilate(members: int, folder: Path, block: int) -> None:
    """Assimilates block averages of Kolmogorov flow with a Gaussian prior, streamed to disk."""

    from .. import GaussianPrior, assimilate, observe
    from ..observation import BlockAverage, Select

    data = system().simulate(4, 24, seed=0)
    prior = GaussianPrior.fit(data, window=WINDOW)
    truth = data.isel(member=0, time=slice(0, LENGTH))
    observations = observe(truth, Select(every=4) >> BlockAverage(8), std=0.1, seed=1)
    assimilate(
        prior, observations, members, out=folder / "posterior.zarr", guidance="static",
        langevin=None, steps=4, block=block,
    )  # fmt: skip


def system() -> "KolmogorovFlow":
    """The system that is measured, at half its usual resolution."""

    from dynamics import KolmogorovFlow

    return KolmogorovFlow(size=SIZE, resolution=2 * SIZE)


def peak(task: str, members: int, block: int) -> int:
    """The peak memory of a task in a process of its own, in bytes.

    Raises:
        RuntimeError: If the process fails.
    """

    with tempfile.TemporaryDirectory() as folder:
        command = [sys.executable, "-m", __name__, task, str(members), folder, str(block)]
        done = subprocess.run(command, capture_output=True, text=True, check=False)
    if done.returncode:
        raise RuntimeError(f"{task} of {members} members failed: {done.stderr.strip()[-500:]}")
    return int(done.stdout.split()[-1])


def measure(
    members: Sequence[int], block: int = 8, peak: Callable[[str, int, int], int] = peak
) -> dict[str, dict[int, int]]:
    """The peak memory of every task and number of members, in bytes.

    Arguments:
        members: The numbers of members.
        block: The members per block.
        peak: What measures one, see `peak`.
    """

    return {task: {number: peak(task, number, block) for number in members} for task in TASKS}


def growth(peaks: Mapping[int, int]) -> float:
    """The peak memory of the largest ensemble over that of the smallest."""
    return peaks[max(peaks)] / peaks[min(peaks)]


def stored(members: int) -> int:
    """The bytes of an ensemble's trajectories in single precision."""
    return members * LENGTH * 2 * SIZE**2 * 4


def table(measured: Mapping[str, Mapping[int, int]]) -> str:
    """A Markdown table: one row for each number of members, in MiB."""

    numbers = sorted({number for peaks in measured.values() for number in peaks})
    lines = [f"| members | the ensemble | {' | '.join(measured)} |"]
    lines.append("|---" * (len(measured) + 2) + "|")
    for number in numbers:
        cells = [f"{peaks[number] / MIB:.0f}" for peaks in measured.values()]
        lines.append(f"| {number:,} | {stored(number) / MIB:.1f} | {' | '.join(cells)} |")
    ratios = [f"{growth(peaks):.2f} times" for peaks in measured.values()]
    ratio = stored(numbers[-1]) / stored(numbers[0])
    lines.append(f"| largest over smallest | {ratio:.0f} times | {' | '.join(ratios)} |")

    return "\n".join(lines)


def main(arguments: Sequence[str]) -> None:
    """What the process of one measurement does: the task, then its own peak memory."""

    import resource

    task, members, folder, block = arguments
    run = {"simulation": simulate, "assimilation": assimilate}[task]
    run(int(members), Path(folder), int(block))
    unit = 1 if sys.platform == "darwin" else 1024
    print(resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * unit)


if __name__ == "__main__":
    main(sys.argv[1:])
