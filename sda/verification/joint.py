r"""Expected coverage of the joint posterior: tests of accuracy with random points (TARP).

Marginal intervals cannot see whether the *joint* distribution is right. Take a reference point r
anywhere, and the ball around it whose surface goes through the truth. The share of the posterior
inside that ball is uniform on [0, 1] for every r exactly if the posterior is right, in any number
of dimensions. The share of truths for which it is below a level p is the expected coverage of p.

With M members, the truth's distance from r has a rank among those of the members, and all that
`calibration` makes of ranks applies: coverage of any M without bias, and bands from the members in
the truth's place.

References:
    Lemos, Coogan, Hezaveh, Perreault-Levasseur (2023), Sampling-based accuracy testing of posterior
    estimators for general inference, https://arxiv.org/abs/2302.03026
"""

from collections.abc import Sequence

import numpy as np
from numpy.typing import ArrayLike, NDArray

from dynamics.random import member_generator

from .calibration import LEVELS, cumulative
from .scores import as_array


def expected_coverage(
    ensembles: ArrayLike,
    truths: ArrayLike,
    levels: Sequence[float] = LEVELS,
    references: ArrayLike | None = None,
    count: int = 16,
    seed: int = 0,
) -> NDArray[np.float64]:
    """The expected coverage of the joint posterior over several cases, each with its truth.

    Cases are repetitions of an experiment, or times far apart of one long run. Below its level for
    low levels and above for high ones it shows overconfidence; 1/2 everywhere a bias.

    Arguments:
        ensembles: The members, with shape `(case, member, *)`.
        truths: The truths, with shape `(case, *)`.
        levels: The levels p, within (0, 1).
        references: Reference points, with shape `(case, reference, *)`, that know nothing of which
            draw is the truth. Distances are then Euclidean in the units given. By default they are
            uniform in the smallest box that holds the truth and the members of all cases, and
            distances are in units of its sides.
        count: The number of reference points of each case, if they are drawn.
        seed: Their seed.

    Returns:
        The coverage, with shape `(level)`: p if the posterior is right.

    Raises:
        ValueError: If the shapes do not fit, a value is not finite or a level not within (0, 1).
    """

    p = as_array(levels)
    if not ((p > 0) & (p < 1)).all():
        raise ValueError(f"levels must be within (0, 1), got {tuple(levels)}")
    ranks = joint_ranks(ensembles, truths, references, count, seed)
    members = as_array(ensembles).shape[1]

    return cumulative(np.bincount(ranks[:, :, 0].ravel(), minlength=members + 1), p)


def joint_ranks(
    ensembles: ArrayLike,
    truths: ArrayLike,
    references: ArrayLike | None = None,
    count: int = 16,
    seed: int = 0,
) -> NDArray[np.int64]:
    """The ranks of the truth's and of each member's distance from reference points.

    Arguments:
        ensembles, truths, references, count, seed: See `expected_coverage`.

    Returns:
        The ranks 0 (nearest) to M, with shape `(case, reference, 1 + member)`, the truth's first.

    Raises:
        ValueError: If the shapes do not fit or a value is not finite.
    """

    x, y = as_array(ensembles), as_array(truths)
    if x.ndim < 3 or y.shape != (len(x), *x.shape[2:]) or not x.size:
        raise ValueError(
            f"ensembles must have shape (case, member, *) and truths (case, *), got {x.shape} and "
            f"{y.shape}"
        )
    if not (np.isfinite(x).all() and np.isfinite(y).all()):
        raise ValueError("all values must be finite, got NaN or infinity: leave those members out")
    pool = np.concatenate([y[:, None].astype(x.dtype), x], axis=1)
    pool = pool.reshape(*pool.shape[:2], -1).astype(np.float64)
    if references is None:
        low, high = pool.min(axis=(0, 1)), pool.max(axis=(0, 1))
        varies = high > low
        pool = (pool[..., varies] - low[varies]) / (high - low)[varies]
        points = np.stack(
            [
                member_generator(seed, case, 2).random((count, pool.shape[-1]))
                for case in range(len(pool))
            ]
        )
    else:
        points = as_array(references)
        if points.shape[:1] + points.shape[2:] != y.shape:
            raise ValueError(
                f"references must have shape (case, reference, *) with cases and values as the "
                f"truths {y.shape}, got {points.shape}"
            )
        points = points.reshape(*points.shape[:2], -1).astype(np.float64)
        # Distances from far points differ little from each other: shift to keep their digits.
        shift = pool.mean(axis=1, keepdims=True)
        pool, points = pool - shift, points - shift

    # |x - r|² without |r|², which is the same for all draws.
    distance = (pool**2).sum(-1)[:, None] - 2 * np.einsum("crv,cdv->crd", points, pool)

    return ranks_of(distance)


def ranks_of(distance: NDArray) -> NDArray[np.int64]:
    """The ranks along the last axis."""
    return np.argsort(np.argsort(distance, axis=-1), axis=-1)
