r"""Estimates over repetitions, and which differences between methods mean anything.

All methods of a benchmark meet the same truths and observations, so the differences between two
methods are paired: the difference of each repetition has less noise than either score. A method is
counted among the best if a t-test over the repetitions cannot tell it from the one with the best
mean,

    \bar d \le t_{0.975, n-1} \, s_d / \sqrt{n},

where d are the differences of the n repetitions that both have ended, and s_d is their standard
deviation. One repetition tells nothing of the uncertainty: then there are no ties.
"""

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray
from scipy.special import stdtrit

Array = NDArray[np.float64]


@dataclass(frozen=True)
class Score:
    """A score as the report shows it.

    Attributes:
        name: The variable of the store.
        title: The heading.
        goal: The best value: -inf for "the lower the better", inf for "the higher", a number for
            "the nearer". None for what is not ranked: spread, and costs.
        unit: What it is measured in, as shown.
        hint: What the heading stands for, in a few words.
    """

    name: str
    title: str
    goal: float | None
    unit: str = ""
    hint: str = ""


LOW, HIGH = -np.inf, np.inf

SCORES = (
    Score("rmse", "RMSE", LOW, hint="of the ensemble mean"),
    Score("crps", "CRPS", LOW, hint="continuous ranked probability score"),
    Score("spread", "Spread", None, hint="ensemble standard deviation"),
    Score("spread_skill", "Spread–skill", 1.0, hint="spread over RMSE, 1 if calibrated"),
    Score("bias", "Bias", 0.0, hint="mean error"),
    Score("misfit", "Misfit", 1.0, hint="to observations, in their errors; 1 if calibrated"),
    Score("log_likelihood", "Log-likelihood", HIGH, hint="log p, where it is known"),
    Score("reliability", "Reliability index", LOW, hint="of ranks, 0 if flat"),
)

COSTS = (
    Score("seconds", "Wall time", None, "s"),
    Score("model_steps", "Model steps", None, hint="steps × members"),
    Score("evaluations", "Network evaluations", None),
    Score("memory", "Peak memory", None, "MiB"),
)


@dataclass(frozen=True)
class Estimate:
    """A score over repetitions.

    Attributes:
        mean: The mean over the runs that have the score.
        error: Its standard error, NaN for fewer than two.
        low, high: The smallest and the largest.
        n: How many there are.
    """

    mean: float
    error: float
    low: float
    high: float
    n: int


def estimate(values: Array) -> Estimate:
    """The estimate of a score from its value in each repetition, NaN where there is none."""

    seen = values[np.isfinite(values)]
    n = len(seen)
    if not n:
        return Estimate(np.nan, np.nan, np.nan, np.nan, 0)
    error = float(seen.std(ddof=1)) / np.sqrt(n) if n > 1 else np.nan

    return Estimate(float(seen.mean()), float(error), float(seen.min()), float(seen.max()), n)


def best(values: Array, goal: float | None, eligible: NDArray[np.bool_]) -> NDArray[np.bool_]:
    """Which methods have the best mean, or one that cannot be told from it.

    Arguments:
        values: The score, with shape `(method, repetition)`, NaN where there is none.
        goal: The best value, see `Score`. None: no method is best.
        eligible: Which methods take part, with shape `(method)`.

    Returns:
        Flags with shape `(method)`.
    """

    chosen = np.zeros(len(values), bool)
    counts = np.isfinite(values).sum(axis=1)
    candidates = np.flatnonzero(eligible & (counts > 0))
    if goal is None or not len(candidates):
        return chosen

    means = np.array([estimate(row).mean for row in values])
    if np.isinf(goal):
        losses = -np.sign(goal) * values
    else:
        losses = np.sign(means - goal)[:, None] * (values - goal)
    totals = np.array([estimate(row).mean for row in losses])
    first = candidates[np.argmin(totals[candidates])]
    for i in candidates:
        chosen[i] = i == first or tied(losses[i] - losses[first])

    return chosen


def tied(differences: Array) -> bool:
    """Whether paired differences from the best leave it open which of two methods is better."""

    d = estimate(differences)
    if d.n < 2:
        return bool(d.n and d.mean == 0)

    return bool(d.mean <= stdtrit(d.n - 1, 0.975) * d.error)


def relative(values: Estimate, published: float) -> tuple[float, float]:
    """The relative difference of an estimate from a published score, and its standard error."""

    return values.mean / published - 1, values.error / abs(published)


def thinned(time: Array, values: Array, count: int = 160) -> tuple[Array, Array, int]:
    """Means over blocks of equal length along the last axis, so that a figure stays readable.

    A block that lies within one that is not complete at the end is kept with what it has.

    Arguments:
        time: The times, with shape `(time)`.
        values: The values, with shape `(*, time)`; NaN are left out of the means.
        count: About the largest number of blocks.

    Returns:
        The mean time of each block, the means, and the number of times in a block.
    """

    width = max(1, int(np.ceil(len(time) / count)))
    starts = np.arange(0, len(time), width)
    seen = np.isfinite(values)
    totals = np.add.reduceat(np.where(seen, values, 0.0), starts, axis=-1)
    counts = np.add.reduceat(seen, starts, axis=-1)
    means = totals / np.where(counts > 0, counts, np.nan)
    centres = np.add.reduceat(time, starts) / np.diff(np.append(starts, len(time)))

    return centres, means, width


def over_repetitions(values: Array) -> tuple[Array, Array, Array]:
    """Mean, smallest and largest over the second axis of `(method, repetition, *)`, NaN if none."""

    seen = np.isfinite(values)
    count = seen.sum(axis=1)
    mean = np.where(seen, values, 0.0).sum(axis=1) / np.where(count > 0, count, np.nan)
    low = np.where(seen, values, np.inf).min(axis=1)
    high = np.where(seen, values, -np.inf).max(axis=1)
    none = count == 0

    return mean, np.where(none, np.nan, low), np.where(none, np.nan, high)
