"""What gross errors cost an analysis, without and with quality control or robust errors.

A share of the observations of a truth is given gross errors, and the analysis is made from what is
clean, from all as it stands, from what passes `sda.quality`, and from all with Student's t errors.
Scores are root mean square errors in standard deviations of each variable, averaged over the area,
times and variables.
"""

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

import numpy as np
import pandas as pd
import torch
import xarray as xr

from dynamics.random import member_generator

from ..assimilation import assimilate
from ..guidance.solver import ObservationSpace
from ..observation import Observations, ObservationSet
from ..quality import check

if TYPE_CHECKING:
    from ..prior import Prior

CLEAN, GROSS, CONTROLLED, STUDENT = "clean", "no control", "control", "student_t"
METHODS = (CLEAN, GROSS, CONTROLLED, STUDENT)
# The stream of random numbers of what goes wrong, and the analyses that Student's t errors take.
ERRORS, ANALYSES = 41, 12
# The systems in observation space are solved directly up to this size.
LIMIT = 1e9


def plant(
    observations: Observations, share: float, size: float, seed: int
) -> tuple[Observations, np.ndarray]:
    """Adds gross errors to some observations.

    Arguments:
        observations: The observations.
        share: The share of values with gross errors.
        size: Their size, in standard deviations of the errors: uniform between half and twice that,
            with either sign.
        seed: The seed.

    Returns:
        The observations, and which are wrong, with shape `(value)`.
    """

    generator = member_generator(seed, 0, ERRORS)
    std = np.concatenate([each.rows()["std"] for each in observations.sets])
    wrong = generator.random(len(std)) < share
    error = generator.uniform(0.5, 2.0, len(std)) * size * std
    error *= np.where(wrong, generator.choice([-1.0, 1.0], len(std)), 0.0)

    sets, first = [], 0
    for each in observations.sets:
        y = each.y.copy()
        y.reshape(-1)[np.flatnonzero(each.seen)] += error[first : first + len(each)]
        sets.append(ObservationSet(each.operator, each.domain, y, each.std, each.errors))
        first += len(each)

    return Observations(sets), wrong


def analysis(prior: "Prior", observations: Observations, time: np.ndarray) -> np.ndarray:
    """The mean of the analysis of the prior's climatology, `(time, channel, *space)`.

    With errors that are not Gaussian, that of their scale mixture, see
    `ObservationSpace.reweighted`.
    """

    likelihood = prior.likelihood(observations, time)
    covariance = prior.climatology.covariance(len(time))
    space = ObservationSpace(covariance, likelihood, limit=LIMIT)
    zero = torch.zeros(1, *covariance.shape)
    key = ("analysis", 0.0)
    if space.robust is None:
        tangent = space.linearise(zero)
        v = space.solve(identity, likelihood.y - tangent.value, tangent, key)
    else:
        start = space.affine(zero) if space.elementwise else zero
        tangent, _, v = space.reweighted(start, start, identity, key, ANALYSES)
    x = space.adjoint(identity, v, tangent)

    return prior.states(x, time)[0].numpy()


def identity(eigenvalues: torch.Tensor) -> torch.Tensor:
    """The eigenvalues themselves."""
    return eigenvalues


def measure(
    prior: "Prior",
    truths: Sequence[xr.Dataset],
    observing: Mapping[str, Any],
    share: float = 0.05,
    size: float = 20.0,
    members: int = 0,
    seed: int = 0,
) -> pd.DataFrame:
    """Measures what gross errors cost.

    Arguments:
        prior: The prior.
        truths: The truths, each of one member.
        observing: The observing system, see `sda.observing.build`.
        share: The share of observations with gross errors.
        size: See `plant`.
        members: The members of the ensembles whose mean is scored (0: the exact mean of the
            analysis of the prior's climatology).
        seed: The seed.

    Returns:
        One row for each truth and method, with the root mean square error, the number of values,
        and for the control the wrong ones found and the good ones lost.
    """

    from ..config import build_observations

    layout, rows = prior.layout, []
    scale = prior.climatology.get_buffer("scale").numpy()
    weights = layout.area

    for number, truth in enumerate(truths):
        time = np.asarray(truth["time"].values, dtype=np.float64)
        clean = build_observations(observing, truth, seed + number, layout)
        bad, wrong = plant(clean, share, size, seed + number)
        report = check(prior, bad, time=time)
        given = {
            CLEAN: clean, GROSS: bad, CONTROLLED: report.accepted,
            STUDENT: bad.with_errors("student_t"),
        }  # fmt: skip
        states = layout.to_array(truth)[0]
        for method, observations in given.items():
            if members:
                posterior = assimilate(
                    prior, observations, members, seed, time=time, guidance="static"
                )
                mean = layout.to_array(posterior).mean(0)
            else:
                mean = analysis(prior, observations, time)
            error = (mean - states) / scale.reshape(-1, *[1] * (states.ndim - 2))
            rejected = ~report.passed
            rows.append(
                {
                    "truth": number,
                    "method": method,
                    "rmse": float(np.sqrt((error**2 * weights).mean())),
                    "values": len(observations),
                    "found": (rejected & wrong).sum() if method == CONTROLLED else np.nan,
                    "wrong": wrong.sum(),
                    "lost": (rejected & ~wrong).sum() if method == CONTROLLED else np.nan,
                }
            )

    return pd.DataFrame(rows)


def summary(results: pd.DataFrame) -> str:
    """The table of a measurement, with what each method loses against clean observations."""

    wide = results.pivot(index="truth", columns="method", values="rmse")[list(METHODS)]
    loss = (wide.div(wide[CLEAN], axis=0) - 1) * 100
    lines = [f"{'':12}" + "".join(f"{name:>14}" for name in METHODS)]
    lines.append(f"{'RMSE':12}" + "".join(f"{v:14.4f}" for v in wide.mean()))
    lines.append(f"{'loss, %':12}" + "".join(f"{v:14.1f}" for v in loss.mean()))
    lines.append(f"{'largest, %':12}" + "".join(f"{v:14.1f}" for v in loss.max()))
    control = results[results["method"] == CONTROLLED]
    good = control["values"] + control["lost"] - (control["wrong"] - control["found"])
    lines.append(
        f"of {int(control['wrong'].sum())} gross errors {int(control['found'].sum())} were found; "
        f"of {int(good.sum())} good values {int(control['lost'].sum())} were rejected"
    )

    return "\n".join(lines)
