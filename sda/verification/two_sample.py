r"""Is it the same distribution? An ensemble against a reference ensemble.

The maximum mean discrepancy with the Gaussian kernel $k(a, b) = \exp(-\|a - b\|^2 / 2 h^2)$,

$$ \mathrm{MMD}^2 = E\,k(X, X') + E\,k(Y, Y') - 2 E\,k(X, Y), $$

is zero for equal distributions only. The estimate without the terms k(x, x) is unbiased, hence it
may be negative. What it is worth is found by permutation: under equality the labels of the pooled
members are exchangeable.

References:
    Gretton, Borgwardt, Rasch, Schölkopf, Smola (2012), A kernel two-sample test.
"""

from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

from dynamics.random import member_generator

from .scores import distances, two_ensembles


class TwoSample(NamedTuple):
    """A two-sample test.

    Attributes:
        mmd: The unbiased estimate of MMD².
        p_value: The share of relabelled ensembles with as large an estimate, this one included.
        bandwidth: The bandwidth h, in the units of the state.
    """

    mmd: float
    p_value: float
    bandwidth: float


def mmd(
    a: Any, b: Any, bandwidth: float | None = None, permutations: int = 999, seed: int = 0
) -> TwoSample:
    """The maximum mean discrepancy of two ensembles of trajectories or states, and its p-value.

    Arguments:
        a: One ensemble, with shape `(member, *)`. Tensors, arrays and data arrays will do.
        b: The other ensemble, with shape `(member', *)`.
        bandwidth: The bandwidth of the Gaussian kernel (default: the median distance between two
            members of the pooled ensembles).
        permutations: The number of relabellings.
        seed: Their seed.

    Raises:
        ValueError: If the shapes do not fit, a value is not finite, an ensemble has one member
            only, or the bandwidth is not positive.
    """

    a, b = two_ensembles(a, b)
    pool = np.concatenate([a, b.astype(a.dtype)])

    return mmd_of(distances(pool, pool), len(a), bandwidth, permutations, seed)


def mmd_of(
    distance: NDArray,
    count: int,
    bandwidth: float | None = None,
    permutations: int = 999,
    seed: int = 0,
) -> TwoSample:
    """The same, given the distances within the pool, whose first `count` members are one ensemble.

    Raises:
        ValueError: If an ensemble has one member only, or the bandwidth is not positive.
    """

    total = len(distance)
    if min(count, total - count) < 2:
        raise ValueError(
            f"the discrepancy needs at least 2 members on both sides, got {count} and "
            f"{total - count}"
        )
    if bandwidth is None:
        bandwidth = float(np.median(distance[np.triu_indices(total, 1)]))
    if not (np.isfinite(bandwidth) and bandwidth > 0):
        raise ValueError(
            f"the bandwidth must be positive, got {bandwidth:g}: give one if most members coincide"
        )
    kernel = np.exp(-(distance**2) / (2 * bandwidth**2))
    np.fill_diagonal(kernel, 0)

    rng = member_generator(seed, 0, 4)
    labels = np.zeros((1 + permutations, total))
    labels[0, :count] = 1
    for row in labels[1:]:
        row[rng.permutation(total)[:count]] = 1
    product = labels @ kernel
    within = (product * labels).sum(1)
    across = product.sum(1) - within
    others = kernel.sum() - within - 2 * across
    n, m = count, total - count
    values = within / (n * (n - 1)) + others / (m * (m - 1)) - 2 * across / (n * m)
    # Equal up to rounding is as large.
    larger = int((values[1:] >= values[0] - 1e-12).sum())

    return TwoSample(float(values[0]), (1 + larger) / (1 + permutations), bandwidth)
