r"""Calibration: ranks, and the coverage of central intervals.

If the truth is one more draw from the distribution of the M members, its rank among them is
uniform on 0, …, M. Rank histograms, their reliability index and the coverage of central intervals
all follow from the counts of ranks.

How far from uniform may the counts of a calibrated ensemble be? Values next to each other in space
and time are not independent, so a binomial band is far too narrow. But the members are exchangeable
with the truth: each of them, ranked among the truth and all the others, gives counts with the right
correlations in space, in time and with each other. The M replicas are the band. It costs nothing
more than the sorting that ranks the truth. If the truth is far outside of the ensemble, it is an
outlier in every replica: then the score is outside the band, but the band is not where a better
ensemble's would be.

References:
    | Hamill (2001), Interpretation of rank histograms for verifying ensemble forecasts
    | Delle Monache et al. (2006), Probabilistic aspects of meteorological and ozone regional
      ensemble forecasts
"""

from collections.abc import Sequence

import numpy as np
from numpy.typing import ArrayLike, NDArray

from .scores import as_array, paired

LEVELS = (0.05, *(round(0.1 * i, 1) for i in range(1, 10)), 0.95)


def pooled_ranks(
    ensemble: ArrayLike, truth: ArrayLike, generator: np.random.Generator
) -> NDArray[np.int64]:
    """Ranks the truth and every member among all of them.

    Arguments:
        ensemble: The members, with shape `(member, *)`.
        truth: The truth, with shape `(*)`.
        generator: Breaks ties. It is not used where there are none.

    Returns:
        The ranks 0, …, M of the truth (first) and the members, with shape `(1 + member, *)`. Along
        the first axis they are a permutation.

    Raises:
        ValueError: If the shapes do not fit.
    """

    x, y = paired(ensemble, truth)
    pool = np.concatenate([y[None].astype(x.dtype), x]).reshape(1 + len(x), -1)
    order = np.argsort(pool, axis=0)
    ascending = np.take_along_axis(pool, order, axis=0)

    # Only points with ties need a second key.
    tied = np.flatnonzero((ascending[1:] == ascending[:-1]).any(axis=0))
    if len(tied):
        keys = generator.random((len(pool), len(tied)))
        order[:, tied] = np.lexsort((keys, pool[:, tied]), axis=0)

    ranks = np.empty_like(order)
    np.put_along_axis(ranks, order, np.arange(len(pool))[:, None], axis=0)

    return ranks.reshape(1 + len(x), *y.shape)


def rank_counts(
    ensemble: ArrayLike,
    truth: ArrayLike,
    generator: np.random.Generator,
    weights: ArrayLike | None = None,
) -> NDArray[np.float64]:
    """Counts how often the truth, and every member in its place, has each rank.

    Arguments:
        ensemble: The members, with shape `(member, *)`.
        truth: The truth, with shape `(*)`. Values that are NaN are left out.
        generator: Breaks ties.
        weights: The weight of each value, with a shape that broadcasts to `(*)` (default: 1).

    Returns:
        The counts, with shape `(1 + member, rank)`: row 0 is the truth's, row m + 1 is that of
        member m among the truth and the other members. Counts of several calls may be added.

    Raises:
        ValueError: If the shapes do not fit.
    """

    x, y = paired(ensemble, truth)
    seen = np.isfinite(y)
    w = np.broadcast_to(1.0 if weights is None else as_array(weights), y.shape)[seen]
    ranks = pooled_ranks(x[:, seen], y[seen], generator)
    n = len(ranks)

    return np.stack([np.bincount(row, weights=w, minlength=n) for row in ranks])


def frequencies(counts: ArrayLike) -> NDArray[np.float64]:
    """Divides counts `(*, rank)` by their sum over ranks."""

    counts = as_array(counts)
    total = counts.sum(axis=-1, keepdims=True)

    return counts / np.where(total > 0, total, np.nan)


def rank_histogram(ensemble: ArrayLike, truth: ArrayLike, seed: int = 0) -> NDArray[np.float64]:
    """The relative frequency of the truth's rank among the members.

    Arguments:
        ensemble: The members, with shape `(member, *)`.
        truth: The truth, with shape `(*)`.
        seed: The seed that breaks ties.

    Returns:
        The frequencies, with shape `(member + 1)`, that of a truth below all members first.

    Raises:
        ValueError: If the shapes do not fit.
    """

    return frequencies(rank_counts(ensemble, truth, np.random.default_rng(seed))[0])


def reliability_index(histogram: ArrayLike) -> NDArray[np.float64]:
    r"""The reliability index $\sum_r |f_r - 1/(M+1)|$ of rank frequencies.

    It is 0 for a flat histogram and 2M/(M+1) if all ranks are the same.

    Arguments:
        histogram: Counts or frequencies, with shape `(*, rank)`.

    Returns:
        The index, with shape `(*)`.
    """

    f = frequencies(histogram)

    return np.abs(f - 1 / f.shape[-1]).sum(axis=-1)


def coverage(histogram: ArrayLike, levels: Sequence[float] = LEVELS) -> NDArray[np.float64]:
    r"""The share of the truth inside central intervals.

    With the rank r and v uniform on [0, 1], (r + v) / (M + 1) is uniform on [0, 1] for a calibrated
    ensemble of any size. The coverage of level p is the probability that it is within p/2 of 1/2.
    Expected over v, that is the cumulative histogram, interpolated linearly; hence the expected
    coverage is p itself, without the deficit that intervals between sample quantiles have.

    Arguments:
        histogram: Counts or frequencies, with shape `(*, rank)`.
        levels: The levels p of the intervals, within (0, 1).

    Returns:
        The coverage, with shape `(*, level)`.

    Raises:
        ValueError: If a level is not within (0, 1).
    """

    p = as_array(levels)
    if not ((p > 0) & (p < 1)).all():
        raise ValueError(f"levels must be within (0, 1), got {tuple(levels)}")

    return cumulative(histogram, (1 + p) / 2) - cumulative(histogram, (1 - p) / 2)


def pit_histogram(histogram: ArrayLike, bins: int = 20) -> NDArray[np.float64]:
    """Gathers ranks into fewer bins: the histogram of (r + v) / (M + 1), see `coverage`.

    Arguments:
        histogram: Counts or frequencies, with shape `(*, rank)`.
        bins: The number of bins. With as many as there are ranks, it is the rank histogram.

    Returns:
        The frequencies, with shape `(*, bin)`: 1 / bins each if calibrated.
    """

    return np.diff(cumulative(histogram, np.linspace(0, 1, bins + 1)), axis=-1)


def cumulative(histogram: ArrayLike, at: NDArray) -> NDArray[np.float64]:
    """The cumulative frequency of (r + v) / (M + 1), with shape `(*, at)`."""

    f = frequencies(histogram)
    edges = np.linspace(0, 1, f.shape[-1] + 1)
    below = np.concatenate([np.zeros((*f.shape[:-1], 1)), np.cumsum(f, axis=-1)], axis=-1)
    rows = [np.interp(at, edges, row) for row in below.reshape(-1, len(edges))]

    return np.stack(rows).reshape(*f.shape[:-1], len(at))


def spread_skill_replicas(moments: ArrayLike) -> NDArray[np.float64]:
    r"""The spread–skill ratio of the truth, and of every member in its place.

    With $C_j$ the mean square distance of draw j from the mean of all M + 1 draws and Q their sum,
    the other M draws have the variance $(Q - C_j (M+1)/M) / (M-1)$, and their mean is wrong about
    draw j by $C_j (M+1)^2 / M^2$ in the mean square.

    Arguments:
        moments: The $C_j$, truth first, with shape `(*, 1 + member)`.

    Returns:
        The ratios, with shape `(*, 1 + member)`.
    """

    c = as_array(moments)
    m = c.shape[-1] - 1
    variance = (c.sum(axis=-1, keepdims=True) - c * (m + 1) / m) / (m - 1)
    error = np.where(c > 0, c * ((m + 1) / m) ** 2, np.nan)

    return np.sqrt((m + 1) / m * np.maximum(variance, 0) / error)


def band(replicas: ArrayLike, probability: float = 0.9) -> tuple[NDArray, NDArray]:
    """The central interval of the members' replicas, row 0 (the truth's) left out.

    The truth's own value is exchangeable with them, so that the interval from the i-th smallest to
    the i-th largest of M holds it with probability (M + 1 - 2i) / (M + 1). That of the smallest and
    the largest, (M - 1) / (M + 1), is the most that few members can say.

    Arguments:
        replicas: Values of a statistic, with shape `(1 + member, *)`.
        probability: The probability that a calibrated ensemble's statistic is inside.

    Returns:
        The lower and the upper bound, each with shape `(*)`.
    """

    tail = (1 - probability) / 2
    low, high = np.quantile(as_array(replicas)[1:], [tail, 1 - tail], axis=0, method="weibull")

    return low, high
