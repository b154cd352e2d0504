"""All scores of a posterior ensemble in one call, streamed.

A posterior that is larger than memory is never held as a whole. What belongs to a trajectory (NaN,
spectra, misfit, consistency) goes through it in blocks of members, what needs all members of a
value (spread, CRPS, ranks) in blocks of frames.
"""

from collections.abc import Sequence
from typing import Any

import numpy as np
import xarray as xr

from dynamics.system import System

from . import calibration
from .alignment import align, variable_names
from .marginal import marginal_scores
from .task import Task
from .trajectories import consistency_scores, misfit_scores, trajectory_scores

UNITS = tuple(
    name
    for score in ("rmse", "bias", "spread", "crps", "crps_plain", "energy_score")
    for name in (score, f"{score}_by_variable", f"overall_{score}")
)


def verify(
    posterior: xr.Dataset,
    truth: xr.Dataset,
    observations: Any = None,
    system: System | None = None,
    *,
    variables: Sequence[str] | None = None,
    weights: xr.DataArray | None = None,
    levels: Sequence[float] = calibration.LEVELS,
    ensemble: bool = True,
    stepped: int = 16,
    seed: int = 0,
    memory: int = 2**30,
) -> xr.Dataset:
    r"""Scores a posterior ensemble against the truth.

    `<score>` has the dimensions `(variable, time)`, `<score>_by_variable` is the mean over time and
    space, and `overall_<score>` the mean over variables too. Means are weighted, and root mean
    squares are roots of means. An overall score that has units is there only if all variables have
    the same ones. `_low` and `_high` bound where 90 % of calibrated ensembles are, see
    `sda.verification.calibration`.

    ====================  ==============================================================
    `rmse`                of the ensemble mean
    `bias`                of the ensemble mean
    `spread`              root mean variance
    `spread_skill`        spread over RMSE, times √((M+1)/M): 1 if calibrated
    `crps`, `crps_plain`  fair, and that of the ensemble as it is
    `energy_score`        `(time)`, fair; over all variables and space, if the units are one
    `rank_histogram`      `(variable, rank)`, with `rank_reliability`: 0 if flat
    `pit_histogram`       `(variable, bin)`, the ranks over M, in 20 bins at most
    `coverage`            `(variable, level)`, of central intervals: the level if calibrated
    `spectrum`            `(member, variable, wavenumber)`, `spectrum_truth`, `spectrum_ratio`,
                          over periodic dimensions; `energy_ratio` sums the variables
    `increment_ratio`     `(variable)`, root mean square increment between frames, over the truth's
    `misfit`              `(member)`, root mean square of (y − H(x))/std; `misfit_truth`
    `consistency`         `(variable, time)`, what one step of the system leaves from a frame to the
                          next, in true increments; `consistency_truth`
    `failed`              `(member)`, whether it is left out because a value is NaN or infinite
    ====================  ==============================================================

    Arguments:
        posterior: The ensemble, with dimensions `(member, time, *space)`, larger than memory if
            it must be.
        truth: The truth, without members or with one, on the same grid and on the posterior's times
            at least. Where it is NaN nothing is scored.
        observations: The observations, for `misfit`: `sda.Observations`, or anything that has
            `likelihood(layout, time)`.
        system: The system, for `consistency`.
        variables: The variables to score (default: all of the posterior's).
        weights: The weight of each point in space (default: 1), for instance cos(latitude).
        levels: The levels of central intervals.
        ensemble: Whether to compute the scores that need two members or more.
        stepped: The number of members to step through the system, spread evenly.
        seed: The seed that breaks ties of ranks.
        memory: The bytes of posterior to hold at once. Sorting takes about as much again.

    Returns:
        The scores.

    Raises:
        ValueError: If truth and posterior are on other times or grids, if variables are missing, if
            there is one member only and `ensemble` is true, or if no finite member is left.
    """

    names = variable_names(posterior, truth, variables)
    posterior = posterior[names]
    truth = align(posterior, truth[names])
    if posterior.nbytes <= memory:
        posterior = posterior.compute()

    units = {str(posterior[name].attrs.get("units", "1")) for name in names}
    task = Task(posterior, truth, tuple(names), len(units) == 1, tuple(levels), seed, memory)

    failed = task.failed()
    kept = np.flatnonzero(~failed)
    if len(kept) < (2 if ensemble else 1):
        raise ValueError(
            f"spread, CRPS, ranks and coverage need at least 2 members without NaN, got "
            f"{len(kept)} of {len(failed)}: sample a larger ensemble, or give ensemble=False for "
            f"the scores of a single analysis"
            if len(kept)
            else f"all {len(failed)} members have NaN or infinite values: there is nothing to score"
        )

    scores = xr.Dataset(
        coords={
            "variable": list(names),
            "time": posterior["time"],
            "member": posterior["member"],
        },
        attrs={"members": len(kept), "failed_members": int(failed.sum()), "seed": seed},
    )
    scores["failed"] = ("member", failed)
    scores = scores.assign(marginal_scores(task, kept, ensemble, weights))
    scores = scores.assign(trajectory_scores(task, kept))
    if observations is not None:
        scores = scores.assign(misfit_scores(task, kept, observations))
    if system is not None:
        scores = scores.assign(consistency_scores(task, kept, system, stepped))
    for name in scores.data_vars:
        if name in UNITS and len(units) == 1:
            scores[name].attrs["units"] = next(iter(units))

    return scores
