"""Filters beside each other over many cycles: the engine's, a particle filter and an ETKF.

The truth is a long trajectory of the noisy Lorenz (1963) or (1996) system, observed as in the
benchmarks of posteriors: "lo", the first component every 8 steps, precisely; "hi", the same in
every step, roughly; "half", every second site of Lorenz-96 every 4 steps. Every method analyses
the same observations, in one cycle for each time of theirs. The classical filters have the true
model, noise included; the engine has the shipped prior, which has learned from trajectories alone.

With 2^14 particles or more, the particle filter is next to exact on Lorenz-63: the root mean square
error of its mean is the smallest that any filter can have.
"""

import time
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import asdict, dataclass
from typing import Any

import numpy as np
import xarray as xr

from dynamics import Lorenz63, Lorenz96
from dynamics.system import System

SEED = 1960


@dataclass(frozen=True)
class Case:
    """A system and how it is observed.

    Attributes:
        prior: The shipped prior, which is named after the system.
        every: The steps from one observed state to the next.
        std: The standard deviation of the errors.
        inflation: The inflation of the ETKF.
    """

    prior: str
    every: int
    std: float
    inflation: float = 1.02

    @property
    def system(self) -> System:
        """The true system."""
        return {"lorenz63": Lorenz63, "lorenz96": Lorenz96}[self.prior](noise=True)

    def twin(self, cycles: int, seed: int = SEED) -> tuple[xr.Dataset, Any]:
        """A truth, and observations of it at so many times."""

        from ..observation import Select, Subsample, observe

        length = self.every * (cycles - 1) + 1
        truth = self.system.simulate(1, length, spinup=1024, seed=seed, progress=False)
        truth = truth.isel(member=0)
        operator = (
            Select(["x"], every=self.every)
            if self.prior == "lorenz63"
            else Select(every=self.every) >> Subsample({"site": 2})
        )

        return truth, observe(truth, operator, std=self.std, seed=seed)


CASES = {
    "lo": Case("lorenz63", 8, 0.4),
    "hi": Case("lorenz63", 1, 2.0),
    "half": Case("lorenz96", 4, 1.0),
}

# Options of `sda.Assimilator`.
ENGINE: dict[str, dict[str, Any]] = {
    "engine": {},
    "static": {"guidance": "static", "langevin": None},
    "static + Langevin": {"guidance": "static"},
    "flow_dependent + Langevin": {"guidance": "flow_dependent"},
    "hybrid + Langevin": {"guidance": {"name": "hybrid", "pilots": 2}},
    "members carried": {"carry": "members", "lag": 8},
    "members carried, mmps": {"carry": "members", "lag": 8, "guidance": "mmps"},
}


@dataclass
class Row:
    """A filter on one case.

    Attributes:
        case, method: What was run.
        seed: The seed of truth, observations and filters.
        cycles: The number of cycles scored, after the burn-in.
        rmse: The root mean square error of the mean at each time, averaged over times.
        crps: The mean fair CRPS.
        spread_skill: The spread–skill ratio, 1 if calibrated.
        lost: The part of the times at which the error is more than three times the median of it.
        seconds: Processor seconds for each cycle.
    """

    case: str
    method: str
    seed: int
    cycles: int
    rmse: float
    crps: float
    spread_skill: float
    lost: float
    seconds: float


def scores(analyses: xr.Dataset, truth: xr.Dataset, burn_in: int) -> dict[str, float]:
    """The scores of analyses, see `Row`.

    Arguments:
        analyses: The ensemble, `(member, time, *space)`.
        truth: The truth, which has the times of the ensemble.
        burn_in: The number of times left out at the beginning.
    """

    from dynamics.layout import Layout

    from ..verification.scores import crps

    layout = Layout.from_dataset(truth)
    analyses = analyses.isel(time=slice(burn_in, None))
    exact = truth.sel(time=analyses.time, method="nearest")
    x = layout.to_array(analyses).astype(np.float64)
    y = layout.to_array(exact)[0].astype(np.float64)
    mean, axes = x.mean(0), tuple(range(1, y.ndim))
    error = np.square(mean - y).mean(axes)
    variance = x.var(0, ddof=1).mean(axes)
    factor = (len(x) + 1) / len(x)
    rmse = np.sqrt(error)

    return {
        "rmse": float(rmse.mean()),
        "crps": float(crps(x, y).mean()),
        "spread_skill": float(np.sqrt(factor * variance.mean() / error.mean())),
        "lost": float((rmse > 3 * np.median(rmse)).mean()),
    }


def engine(
    case: Case, observations: Any, cycles: int, members: int, seed: int, **options: Any
) -> tuple[xr.Dataset, float]:
    """The engine's analyses, and its processor seconds for each cycle."""

    from ..filtering import Assimilator
    from ..prior import Prior

    prior = Prior.load(case.prior)
    began = time.process_time()
    start = observations.span[0]
    assimilator = Assimilator(prior, members, seed, start=start, every=case.every, **options)
    assimilator.add(observations)
    assimilator.complete = cycles
    # The present alone: with a lag, what is returned of earlier times knows more.
    states = [assimilator.step()[0][:, -1] for _ in range(cycles)]
    seconds = (time.process_time() - began) / cycles
    times = start + case.every * prior.layout.dt * np.arange(cycles)

    return prior.layout.to_dataset(np.stack(states, axis=1), times), seconds


def classical(
    method: str, case: Case, observations: Any, cycles: int, members: int, seed: int
) -> tuple[xr.Dataset, float]:
    """The analyses of a filter with the true model, and its processor seconds for each cycle."""

    from ..classical import ETKF, ParticleFilter

    if method == "particle filter":
        # What is observed seldom and precisely needs particles that know of it.
        run: Any = ParticleFilter(case.system, members, proposal="guided")
    else:
        run = ETKF(case.system, members, inflation=case.inflation, rotation=True)
    began = time.process_time()
    analyses = run.assimilate(observations, seed)

    return analyses, (time.process_time() - began) / cycles


def run(
    cases: Iterable[str] = ("lo", "hi", "half"),
    methods: Iterable[str] | None = None,
    cycles: int = 1000,
    members: int = 64,
    particles: int = 2**14,
    burn_in: int = 20,
    seed: int = SEED,
    more: Mapping[str, Any] | None = None,
) -> Iterator[Row]:
    """Runs filters on cases, one row after the other.

    Arguments:
        cases: Keys of `CASES`.
        methods: Keys of `ENGINE`, "particle filter" and "etkf" (default: all).
        cycles: The number of cycles.
        members: The members of the engine and the ETKF.
        particles: The particles of the particle filter.
        burn_in: The cycles that are not scored.
        seed: The seed of truth, observations and filters.
        more: Further options of the engine, such as `history` and `lag`.
    """

    for name in cases:
        case = CASES[name]
        truth, observations = case.twin(cycles, seed)
        for method in methods or ("particle filter", "etkf", *ENGINE):
            if method in ENGINE:
                options = {**ENGINE[method], **(more or {})}
                analyses, seconds = engine(case, observations, cycles, members, seed, **options)
            else:
                number = particles if method == "particle filter" else members
                analyses, seconds = classical(method, case, observations, cycles, number, seed)
            yield Row(
                name,
                method,
                seed,
                cycles - burn_in,
                seconds=seconds,
                **scores(analyses, truth, burn_in),
            )


def table(rows: Iterable[Row]) -> str:
    """The rows as a Markdown table, with means over the truths of each case and method."""

    lines = [
        "| case | method | truths × cycles | RMSE | CRPS | spread–skill | lost | s per cycle |",
        "|---|---|---|---|---|---|---|---|",
    ]
    rows = list(rows)
    for case, method in dict.fromkeys((row.case, row.method) for row in rows):
        some = [asdict(row) for row in rows if (row.case, row.method) == (case, method)]
        mean = {
            name: float(np.mean([row[name] for row in some]))
            for name in ("rmse", "crps", "spread_skill", "lost", "seconds")
        }
        lines.append(
            f"| {case} | {method} | {len(some)} × {some[0]['cycles']} | {mean['rmse']:.3f} | "
            f"{mean['crps']:.3f} | {mean['spread_skill']:.2f} | {mean['lost']:.3f} | "
            f"{mean['seconds']:.2g} |"
        )

    return "\n".join(lines)
