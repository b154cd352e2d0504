"""Posteriors of Kolmogorov flow: the published kinds of observations, scored against the truth.

There is no exact posterior to compare with. What stands in its place is the Gaussian smoother of
the same climatology, exact for a Gaussian prior, which every learned prior must beat, and the truth
itself: a calibrated ensemble has a spread-skill ratio of one, a misfit of one, the truth's energy
at every scale, and members that obey the equations as well as the truth does.

The kinds of observations are the files `configs/observing/kolmogorov_*.yaml`, those of Rozet &
Louppe (2023); the states are 32² cells in place of 64².

References:
    Score-based Data Assimilation (Rozet and Louppe, 2023), arXiv 2306.10574
"""

import copy
import csv
import dataclasses
import math
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import xarray as xr
from torch import Tensor

from dynamics import KolmogorovFlow

from ..denoiser import Denoiser
from ..prior import Prior

SEED = 230_610
SPINUP = 64
# The energy of a state of 32 cells is that of its model up to about here.
WAVENUMBERS = 12


@dataclass(frozen=True)
class Case:
    """One kind of observations.

    Attributes:
        observing: The name of a file in `configs/observing`.
        changes: What is changed in it.
        truth: Whether the observations are of a truth, which the ensemble can be scored against.
    """

    observing: str
    changes: Mapping[str, Any] = field(default_factory=dict)
    truth: bool = True


# Subsampling sees every 4th state, as the block averages do: only the spacing differs.
CASES = {
    "blocks": Case("kolmogorov_blocks"),
    "averages": Case("kolmogorov_averages"),
    "subsample 2": Case("kolmogorov_subsample2", {"every": 4}),
    "subsample 4": Case("kolmogorov_subsample4", {"every": 4}),
    "subsample 8": Case("kolmogorov_subsample8", {"every": 4}),
    "subsample 16": Case("kolmogorov_subsample16", {"every": 4}),
    "square": Case("kolmogorov_square"),
    "saturating": Case("kolmogorov_saturating"),
    "loop": Case("kolmogorov_loop", truth=False),
}


@dataclass(frozen=True)
class Method:
    """How a posterior is sampled.

    Attributes:
        options: Options of `sda.assimilate`.
        gaussian: Whether the prior is the Gaussian one of the same climatology.
    """

    options: Mapping[str, Any]
    gaussian: bool = False


METHODS = {
    "Gaussian smoother": Method({"guidance": "static", "langevin": None}, gaussian=True),
    "static": Method({"guidance": "static", "langevin": None}),
    "static + Langevin": Method({"guidance": "static", "langevin": "default"}),
    "static + Langevin, bfloat16": Method(
        {"guidance": "static", "langevin": "default", "precision": "bfloat16"}
    ),
    "flow-dependent + Langevin": Method(
        {"guidance": {"name": "flow_dependent", "pilots": 2}, "langevin": "default"}
    ),
}
DEFAULT_METHODS = ("Gaussian smoother", "static", "static + Langevin")


class CountedDenoiser(Denoiser):
    """A denoiser that counts how many trajectories it has seen.

    Arguments:
        denoiser: The denoiser of trajectories.
        count: A function called with the number of trajectories of each evaluation.
    """

    def __init__(self, denoiser: Denoiser, count: Callable[[int], None]) -> None:
        super().__init__(denoiser.schedule)
        self.denoiser, self.count = denoiser, count

    def denoise(self, x: Tensor, s: Tensor | float) -> Tensor:
        self.count(len(x))
        return self.denoiser.denoise(x, s)


class CountedPrior(Prior):
    """A prior that counts the evaluations of its network, in trajectories.

    Arguments:
        prior: The prior.

    Attributes:
        evaluations: The number of trajectories that were denoised; none by a Gaussian prior.
    """

    def __init__(self, prior: Prior) -> None:
        super().__init__(
            prior.climatology,
            prior.denoiser,
            prior.name,
            prior.symmetries,
            prior.info,
            prior.exposure,
            langevin=prior.langevin,
        )
        self._evaluations = [0]  # shared by the shallow copies that `sda.assimilate` makes

    @property
    def evaluations(self) -> int:
        """The number of trajectories that were denoised."""
        return self._evaluations[0]

    def trajectory(self, *arguments: Any, **options: Any) -> Denoiser:
        return CountedDenoiser(super().trajectory(*arguments, **options), self._count)

    def _count(self, trajectories: int) -> None:
        self._evaluations[0] += trajectories


def system(size: int = 32) -> KolmogorovFlow:
    """The flow of Rozet & Louppe (2023), on fewer cells."""
    return KolmogorovFlow(size=size)


def make_truth(index: int, length: int, flow: KolmogorovFlow | None = None) -> xr.Dataset:
    """A trajectory that no prior was trained on."""

    flow = flow or system()
    truth = flow.simulate(1, length, spinup=SPINUP, seed=SEED + index, progress=False)

    return truth.isel(member=0)


def make_observations(case: str, truth: xr.Dataset, index: int) -> Any:
    """Observations of a truth.

    Arguments:
        case: A key of `CASES`.
        truth: The truth.
        index: The number of the truth, which seeds the errors.

    Raises:
        ValueError: If the case is unknown.
    """

    import yaml

    from ..config import build_observations, folder

    if case not in CASES:
        raise ValueError(f"unknown case {case!r}: expected one of {', '.join(CASES)}")
    path = folder() / "observing" / f"{CASES[case].observing}.yaml"
    config = yaml.safe_load(path.read_text(encoding="utf-8")) | dict(CASES[case].changes)

    return build_observations(config, truth, SEED + index)


@dataclass
class Row:
    """One method on one kind of observations of one truth.

    Attributes:
        case, index, method: What was run.
        rmse: Of the ensemble mean.
        crps: The mean fair CRPS.
        spread_skill: The spread-skill ratio, 1 if calibrated.
        misfit: The root mean square of `(y − H(x)) / std`, 1 if calibrated.
        energy: The members' energy over the truth's, for the wavenumbers from 1 to `WAVENUMBERS`.
        consistency: What a step of the flow leaves, in true increments.
        consistency_truth: The same of the truth, whose states are coarsened: nothing can be better.
        coverage: Of the central interval of 90 %.
        evaluations: The number of evaluations of the network by a member.
        seconds: The processor time for all members.
    """

    case: str
    index: int
    method: str
    rmse: float
    crps: float
    spread_skill: float
    misfit: float
    energy: tuple[float, ...]
    consistency: float
    consistency_truth: float
    coverage: float
    evaluations: float
    seconds: float


def score(
    case: str,
    index: int,
    method: str,
    posterior: xr.Dataset,
    truth: xr.Dataset,
    observations: Any,
    flow: KolmogorovFlow,
    evaluations: float = 0.0,
    seconds: float = 0.0,
) -> Row:
    """Scores a posterior by `sda.verify`. Without a truth to know, most scores are NaN."""

    from ..verification import verify

    scores = verify(posterior, truth, observations, flow)
    known = CASES[case].truth
    energy = scores["energy_ratio"].sel(wavenumber=slice(1, WAVENUMBERS)).values

    def value(name: str) -> float:
        return scores[name].item() if known else math.nan

    return Row(
        case=case,
        index=index,
        method=method,
        rmse=value("overall_rmse"),
        crps=value("overall_crps"),
        spread_skill=value("overall_spread_skill"),
        misfit=scores["overall_misfit"].item(),
        energy=tuple(energy.tolist()),
        consistency=scores["overall_consistency"].item(),
        consistency_truth=scores["consistency_truth"].item(),
        coverage=scores["overall_coverage"].sel(level=0.9).item() if known else math.nan,
        evaluations=evaluations,
        seconds=seconds,
    )


def run(
    prior: Prior,
    cases: Sequence[str] = tuple(CASES),
    methods: Sequence[str] = DEFAULT_METHODS,
    truths: int = 2,
    members: int = 16,
    length: int = 16,
    flow: KolmogorovFlow | None = None,
    report: Callable[[Row], None] | None = None,
    first: int = 0,
    **options: Any,
) -> list[Row]:
    """Runs `sda.assimilate` with each method on each kind of observations of several truths.

    Arguments:
        prior: The prior.
        cases: Keys of `CASES`.
        methods: Keys of `METHODS`.
        truths: The number of truths.
        members: The number of members.
        length: The number of states of a trajectory.
        flow: The flow that makes the truths (default: that of `system`).
        report: A function called with each row.
        first: The index of the first truth.
        options: Options of `sda.assimilate` for all methods, as `steps`.

    Raises:
        ValueError: If a case or a method is unknown, or the prior is not of the flow's states.
    """

    from ..assimilation import assimilate

    for kind, given, known in (("cases", cases, CASES), ("methods", methods, METHODS)):
        if unknown := [name for name in given if name not in known]:
            raise ValueError(f"unknown {kind} {unknown}: expected among {list(known)}")
    flow = flow or system()
    if prior.layout.shape != flow.layout.shape:
        raise ValueError(
            f"the prior is of states {prior.layout.shape}, but the flow's are {flow.layout.shape}: "
            f"give a prior of the same size"
        )
    gaussian = Prior(prior.climatology, name=f"{prior.name}, Gaussian")

    rows = []
    for index in range(first, first + truths):
        truth = make_truth(index, length, flow)
        for case in cases:
            observations = make_observations(case, truth, index)
            for name in methods:
                method = METHODS[name]
                counted = CountedPrior(gaussian if method.gaussian else prior)
                start = time.process_time()
                posterior = assimilate(
                    counted, observations, members, index,
                    time=truth["time"].values, **(dict(method.options) | options),
                )  # fmt: skip
                seconds = time.process_time() - start
                row = score(
                    case, index, name, posterior, truth, observations, flow,
                    counted.evaluations / members, seconds,
                )  # fmt: skip
                rows.append(row)
                if report:
                    report(row)

    return rows


def mean_row(rows: Sequence[Row]) -> Row:
    """The mean over truths. Energy ratios are averaged too, before their extremes are taken."""

    mean = copy.copy(rows[0])
    for each in dataclasses.fields(Row):
        values = [getattr(row, each.name) for row in rows]
        if each.name == "energy":
            mean.energy = tuple(np.mean(values, axis=0).tolist())
        elif isinstance(values[0], float):
            setattr(mean, each.name, float(np.mean(values)))

    return mean


def table(rows: Sequence[Row]) -> str:
    """A Markdown table of the means over truths."""

    lines = [
        "| case | method | RMSE | CRPS | spread–skill | misfit | energy ratio, k ≤ "
        f"{WAVENUMBERS} | consistency (truth's) | coverage of 90 % | CPU s | evaluations |",
        "|---" * 11 + "|",
    ]
    for case, method in dict.fromkeys((row.case, row.method) for row in rows):
        row = mean_row([r for r in rows if (r.case, r.method) == (case, method)])
        lines.append(
            f"| {case} | {method} | {number(row.rmse)} | {number(row.crps)} | "
            f"{number(row.spread_skill, 2)} | {number(row.misfit, 2)} | "
            f"{min(row.energy):.2f} … {max(row.energy):.2f} | {row.consistency:.2f} "
            f"({row.consistency_truth:.2f}) | {number(row.coverage, 2)} | {row.seconds:.0f} | "
            f"{row.evaluations:.0f} |"
        )

    return "\n".join(lines)


def number(value: float, digits: int = 3) -> str:
    """A number, or a dash where there is none."""
    return "–" if math.isnan(value) else f"{value:.{digits}f}"


def write_csv(rows: Sequence[Any], path: str | Path) -> None:
    """Writes rows, dataclasses of one kind, to a CSV file; tuples become numbered columns."""

    records = []
    for row in rows:
        record: dict[str, Any] = {}
        for name, value in dataclasses.asdict(row).items():
            if isinstance(value, tuple | list):
                record |= {f"{name}_{i + 1}": v for i, v in enumerate(value)}
            else:
                record[name] = value
        records.append(record)
    with Path(path).open("w", newline="", encoding="utf-8") as file:
        writer = csv.DictWriter(file, list(records[0]) if records else [])
        writer.writeheader()
        writer.writerows(records)
