"""All scores of a posterior ensemble in one call, streamed.

Neither posterior nor truth is ever held as a whole if it is larger than memory, see
`sda.verification.task`. What belongs to a trajectory (NaN, spectra, misfit, consistency) is scored
in stretches of members over time, what needs all members of a value (spread, CRPS, ranks) in parts
of frames. These families of scores know nothing of each other: the workers of a Dask cluster can
each compute one, from the files.
"""

import shutil
import uuid
from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np
import xarray as xr

from dynamics.cluster import connect, read_job, write_job
from dynamics.system import System

from . import calibration
from .alignment import align, companion, span, variable_names
from .cells import hidden
from .marginal import value_scores
from .observed import innovation_scores, misfit_scores
from .reference import reference_scores
from .task import Entry, Task
from .trajectories import trajectory_scores
from .transitions import transition_scores

UNITS = (
    "rmse_time",
    "spread_time",
    "overall_rmse_time",
    "overall_spread_time",
    "w1",
    *(
        name
        for score in (
            "rmse",
            "bias",
            "spread",
            "crps",
            "crps_plain",
            "energy_score",
            "variogram_score",
        )
        for name in (score, f"{score}_by_variable", f"overall_{score}")
    ),
)


def verify(
    posterior: xr.Dataset,
    truth: xr.Dataset,
    observations: Any = None,
    system: System | None = None,
    *,
    background: xr.Dataset | None = None,
    reference: xr.Dataset | None = None,
    variables: Sequence[str] | None = None,
    weights: xr.DataArray | None = None,
    levels: Sequence[float] = calibration.LEVELS,
    burn_in: float = 0.0,
    ensemble: bool | None = None,
    stepped: int = 16,
    seed: int = 0,
    memory: int = 2**30,
    cluster: Any = None,
    workers: int | None = None,
) -> xr.Dataset:
    r"""Scores a posterior ensemble against the truth: trajectories, or the analyses of a filter.

    `<score>` has the dimensions `(variable, time)`, `<score>_by_variable` is the mean over time and
    space, and `overall_<score>` the mean over variables too. Means over space are weighted by the
    areas of cells, without what lies on land, and root mean squares are roots of means. An overall
    score that has units is there only if all variables have the same ones. `_low` and `_high` bound
    where 90 % of calibrated ensembles are, see
    `sda.verification.calibration`.

    ========================  ==========================================================
    `rmse`                    of the ensemble mean
    `rmse_time`               `(time)`, over variables and space. Its mean `overall_rmse_time` is
                              the RMSE of DAPPER and of the literature on filters, the root of the
                              mean square over time `overall_rmse`. Likewise `spread_time`
    `bias`                    of the ensemble mean
    `spread`                  root mean variance
    `spread_skill`            spread over RMSE, times √((M+1)/M): 1 if calibrated
    `crps`, `crps_plain`      fair, and that of the ensemble as it is
    `energy_score`            `(time)`, fair; over all variables and space, if the units are one
    `variogram_score`         `(time)`, fair; the same, over pairs of values
    `rank_histogram`          `(variable, rank)`, with `rank_reliability`: 0 if flat
    `pit_histogram`           `(variable, bin)`, the ranks over M, in 20 bins at most
    `coverage`                `(variable, level)`, of central intervals: the level if calibrated
    `joint_coverage`          `(level)`, of states as a whole (TARP): the level if calibrated
    `spectrum`                `(member, variable, wavenumber)`, `spectrum_truth`, `spectrum_ratio`,
                              over periodic dimensions, on the sphere by total wavenumber (see
                              `sda.verification.sphere`); `energy_ratio` sums the variables
    `kinetic_energy`          `(member, wavenumber)`, of winds u, v on the sphere; also `_truth`,
                              `_ratio`
    `ageostrophic`            `(member)`, the distance of u, v from the geostrophic wind of the
                              height h outside the tropics, over it; `ageostrophic_truth`
    `coherence`               `(variable, wavenumber)`, of ensemble mean and truth, and of each
                              member and truth: `member_coherence`
    `increment_ratio`         `(variable)`, root mean square increment between frames, over the
                              truth's
    `misfit`                  `(member)`, root mean square of (y − H(x))/std; `misfit_truth`
    `log_likelihood`          `(member)`, log p(y | x); `log_likelihood_truth`
    `consistency`             `(variable, time)`, what one step of the system leaves from a frame to
                              the next, in true increments; `consistency_truth`
    `log_dynamics`            `(member)`, log p(x_{2:L} | x_1), where the system has a density;
                              `log_dynamics_truth`
    `innovation_mean`         `(time)`, mean of the background's innovations over their expected
                              standard deviations: 0 if unbiased
    `innovation_variance`     `(time)`, mean of their squares: 1 if consistent
    `innovation_chi_square`   `(time)`, the same with their full covariance
    `overall_desroziers_R`    the diagnosed over the given variance of observation errors, and of
                              background (`_B`) and analysis (`_A`) in observation space: 1
    `w1`                      distance from the reference ensemble, of whole trajectories
    `mmd`                     squared maximum mean discrepancy from it, unbiased, with the
                              `mmd_bandwidth`, and `mmd_p_value` for equality
    `failed`                  `(member)`, whether it is left out because a value is NaN or infinite
    ========================  ==========================================================

    Arguments:
        posterior: The ensemble, with dimensions `(member, time, *space)`, larger than memory if
            it must be. Its times may be irregular.
        truth: The truth, without members or with one, on the same grid and on the posterior's times
            at least. Where it is NaN nothing is scored.
        observations: The observations, for `misfit` and `log_likelihood`: `sda.Observations`, or
            anything that has `likelihood(layout, time)`.
        system: The system, for `consistency` and `log_dynamics`.
        background: The forecasts of a filter at the times of its analyses, before these, for
            innovations and Desroziers' diagnostics.
        reference: Another ensemble of the same posterior, such as exact draws, for `w1` and `mmd`.
        variables: The variables to score (default: all of the posterior's).
        weights: The weight of each point in space (default: the area of its cell, see
            `dynamics.Layout.area`: on the sphere about cos(latitude), on land zero).
        levels: The levels of central intervals.
        burn_in: What is left out of all averages over time, in units of time from the posterior's
            first state on. Scores in time are given from the start.
        ensemble: Whether to compute the scores that need two members or more (default: unless the
            posterior has one member only).
        stepped: The number of members to step through the system, spread evenly.
        seed: The seed that breaks ties of ranks, draws reference points and relabels members.
        memory: The bytes of posterior to hold at once. Sorting takes about as much again.
        cluster: A Dask cluster whose workers compute families of scores side by side, see
            `dynamics.cluster.connect` (default: this process does, one after the other). The
            posterior must be a file or a store that they see, such as `sda.open_dataset` opens.
        workers: The number of processes of cluster="local", which it implies.

    Returns:
        The scores.

    Raises:
        ValueError: If truth and posterior are on other times or grids, if variables are missing, if
            there is one member only and `ensemble` is true, if no finite member is left, or if the
            cluster cannot be used.
    """

    names = variable_names(posterior, truth, variables)
    if background is not None and observations is None:
        raise ValueError("the background is scored against observations: give them as well")
    work = Verification(
        posterior, truth, observations, system, background, reference, tuple(names), weights,
        tuple(levels), burn_in, ensemble, stepped, seed, memory,
    )  # fmt: skip
    if cluster is None and workers is None:
        found = {name: work.family(name) for name in work.families}
    else:
        found = families_on(cluster, workers, work)

    failed = found.pop("failed")["failed"][1]
    scores = xr.Dataset(
        coords={
            "variable": list(names),
            "time": posterior["time"],
            "member": posterior["member"],
        },
        attrs={
            "members": int((~failed).sum()),
            "failed_members": int(failed.sum()),
            "seed": seed,
            "burn_in": burn_in,
            "frames": posterior.sizes["time"] - work.first,
            **divergence(posterior),
        },
    )
    scores["failed"] = ("member", failed)
    for entries in found.values():
        scores = scores.assign(entries)
    for name in scores.data_vars:
        if name in UNITS and len(work.units) == 1:
            scores[name].attrs["units"] = next(iter(work.units))

    return scores


@dataclass
class Verification:
    """What is verified, and the families of its scores. The fields are the arguments of `verify`.

    Attributes:
        first: The first frame that counts in averages over time.
        units: The units of the variables.
        families: The names of the families.
    """

    posterior: xr.Dataset
    truth: xr.Dataset
    observations: Any
    system: System | None
    background: xr.Dataset | None
    reference: xr.Dataset | None
    names: tuple[str, ...]
    weights: xr.DataArray | None
    levels: tuple[float, ...]
    burn_in: float
    ensemble: bool | None
    stepped: int
    seed: int
    memory: int

    def __post_init__(self) -> None:
        names = list(self.names)
        self.first = first_counted(self.posterior["time"].values, self.burn_in)
        self.units = {str(self.posterior[name].attrs.get("units", "1")) for name in names}
        self.clock = self.truth["time"].values
        self.aligned = hidden(align(self.posterior[names], self.truth[names]), self.posterior)
        self.families = ["failed", "values", "trajectories"]
        self.families += ["misfit"] if self.observations is not None else []
        self.families += ["transitions"] if self.system is not None else []
        self.families += ["innovations"] if self.background is not None else []
        self.families += ["reference"] if self.reference is not None else []

    def task_of(self, dataset: xr.Dataset) -> Task:
        """How to go through an ensemble."""

        memory, names = self.memory, self.names
        dataset, truth = (d.compute() if d.nbytes <= memory else d for d in (dataset, self.aligned))
        return Task(
            dataset, truth, names, len(self.units) == 1, self.levels, self.seed, memory, self.first
        )

    @cached_property
    def task(self) -> Task:
        """How to go through the posterior."""
        return self.task_of(self.posterior[list(self.names)])

    @cached_property
    def kept(self) -> np.ndarray:
        """The members without NaN.

        Raises:
            ValueError: If there are too few.
        """

        failed = self.task.failed()
        many = len(failed) > 1 if self.ensemble is None else self.ensemble
        check_members(failed, many, divergence(self.posterior))
        return np.flatnonzero(~failed)

    def family(self, name: str) -> dict[str, Entry]:
        """The scores of a family."""

        task, kept, names = self.task, self.kept, list(self.names)
        many = task.posterior.sizes["member"] > 1 if self.ensemble is None else self.ensemble
        if name == "failed":
            failed = np.ones(task.posterior.sizes["member"], dtype=bool)
            failed[kept] = False
            return {"failed": ("member", failed)}
        if name == "values":
            return value_scores(task, kept, many, self.weights)
        if name == "trajectories":
            return trajectory_scores(task, kept)
        if name == "misfit":
            return misfit_scores(task, kept, self.observations, self.clock)
        if name == "transitions" and self.system is not None:
            return transition_scores(task, kept, self.system, self.stepped)
        if name == "innovations" and self.background is not None:
            other = companion(task.posterior, self.background, names, "background")
            forecasts = self.task_of(other)
            finite = finite_members(forecasts, "background")
            observed = (self.observations, self.clock)
            return innovation_scores(task, kept, forecasts, finite, *observed)
        if name == "reference" and self.reference is not None:
            exact = self.task_of(companion(task.posterior, self.reference, names, "reference"))
            return reference_scores(task, kept, exact, finite_members(exact, "reference"))
        raise ValueError(f"unknown family {name!r}: expected one of {', '.join(self.families)}")


def families_on(
    cluster: Any, workers: int | None, work: Verification
) -> dict[str, dict[str, Entry]]:
    """Has workers compute the families of scores, in the order of `work.families`.

    Raises:
        ValueError: If the posterior is in the memory of this process.
    """

    source = work.posterior.encoding.get("source")
    lazy = all(work.posterior[name].chunks is not None for name in work.names)
    if not source or not lazy or not Path(str(source)).exists():
        raise ValueError(
            "a cluster scores what its workers can read: open the posterior with "
            "sda.open_dataset(path), and do not load it"
        )
    folder = Path(str(source)).resolve()
    folder = folder.with_name(f".{folder.name}.verify-{uuid.uuid4().hex[:8]}")
    with connect(cluster, workers) as pool:
        try:
            job = folder / "job"
            arguments = (str(job), write_job(job, work))
            pieces = {name: (*arguments, name) for name in work.families}
            found = dict(pool.run(score_family, pieces))
        finally:
            shutil.rmtree(folder, ignore_errors=True)
    return {name: found[name] for name in work.families}


def score_family(job: str, checksum: int, name: str) -> dict[str, Entry]:
    """Computes a family of scores, on a worker."""
    return read_job(Path(job), checksum).family(name)


def first_counted(time: np.ndarray, burn_in: float) -> int:
    """The first time that counts in averages.

    Raises:
        ValueError: If the burn-in is negative or leaves no time.
    """

    if burn_in == 0:
        return 0
    if not burn_in > 0:
        raise ValueError(f"burn_in must be a non-negative time, got {burn_in}")
    if not np.issubdtype(time.dtype, np.number):
        raise ValueError(
            f"burn_in is in units of a numerical time, but the times are of type {time.dtype}: "
            f"select those to score with posterior.sel(time=slice(…, None))"
        )
    # Times are often stored in single precision.
    slack = 1e-3 * (np.diff(time).min() if len(time) > 1 else 0)
    first = int(np.searchsorted(time, time[0] + burn_in - slack))
    if first >= len(time):
        raise ValueError(
            f"burn_in={burn_in} leaves nothing to average: the posterior spans {span(time)}"
        )

    return first


def divergence(posterior: xr.Dataset) -> dict[str, Any]:
    """What a method says of its divergence: `diverged` and its time, if it has diverged."""

    if not posterior.attrs.get("diverged", 0):
        return {}

    return {"diverged": 1, "diverged_time": float(posterior.attrs.get("diverged_time", np.nan))}


def check_members(failed: np.ndarray, ensemble: bool, diverged: dict[str, Any]) -> None:
    """Raises a `ValueError` if too few members have no NaN."""

    kept = int((~failed).sum())
    if not kept:
        cure = (
            f"the run has diverged at time {diverged['diverged_time']:g}, score what is before "
            f"with posterior.sel(time=slice(None, …))"
            if diverged
            else "there is nothing to score"
        )
        raise ValueError(f"all {len(failed)} members have NaN or infinite values: {cure}")
    if kept < 2 and ensemble:
        raise ValueError(
            f"spread, CRPS, ranks and coverage need at least 2 members without NaN, got "
            f"{kept} of {len(failed)}: sample a larger ensemble, or give ensemble=False for "
            f"the scores of a single analysis"
        )


def finite_members(task: Task, kind: str) -> np.ndarray:
    """The members without NaN.

    Raises:
        ValueError: If there are fewer than two.
    """

    finite = np.flatnonzero(~task.failed())
    if len(finite) < 2:
        raise ValueError(
            f"the {kind} needs at least 2 members without NaN, got {len(finite)} of "
            f"{task.posterior.sizes['member']}"
        )

    return finite
