r"""The variogram score: are the *differences* between values as they should be?

$$ \frac{1}{|P|} \sum_{(i,j) \in P} \Big( |y_i - y_j|^p
   - \frac{1}{M} \sum_m |x_{m,i} - x_{m,j}|^p \Big)^2 $$

It is proper, blind to a bias common to all values, and sensitive to correlations, to which energy
scores of fields hardly react. Distant pairs say little and are many: pairs of fields are therefore
drawn with lags that are uniform in their logarithm.

The mean over M members is uncertain, which adds its variance, that of a member over M, to the
expected score. The fair score subtracts the estimate of that.

References:
    Scheuerer & Hamill (2015), Variogram-based proper scoring rules for probabilistic forecasts of
    multivariate quantities.
"""

from collections.abc import Sequence

import numpy as np
from numpy.typing import ArrayLike, NDArray

from dynamics.random import member_generator

from .scores import as_array, paired

PAIRS = 4096


def variogram_score(
    ensemble: ArrayLike,
    truth: ArrayLike,
    pairs: ArrayLike | None = None,
    p: float = 0.5,
    fair: bool = True,
    weights: ArrayLike | None = None,
) -> float:
    """The variogram score of a vector, as a mean over pairs of its values.

    Arguments:
        ensemble: The members, with shape `(member, *)`. All other axes make up the vector.
        truth: The truth, with shape `(*)`. Pairs with a NaN are left out.
        pairs: Indices into the flattened vector, with shape `(pair, 2)` (default: all pairs of
            different values, of which there are n (n - 1) / 2).
        p: The power of the differences.
        fair: Whether to correct for the finite number of members.
        weights: The weight of each pair in the mean, with shape `(pair)` (default: 1).

    Returns:
        The score, in the units of the state to the power 2p. NaN if no pair is known.

    Raises:
        ValueError: If the shapes do not fit, if a fair score is asked of one member, if p is not
            positive, if the pairs are not indices of the vector, or a weight is negative.
    """

    x, y = paired(ensemble, truth, least=2 if fair else 1)
    x, y = x.reshape(len(x), -1).astype(np.float64), y.ravel().astype(np.float64)
    if not p > 0:
        raise ValueError(f"the power p must be positive, got {p}")
    chosen = np.stack(np.triu_indices(len(y), 1), 1) if pairs is None else np.asarray(pairs)
    if chosen.ndim != 2 or chosen.shape[1] != 2 or chosen.dtype.kind not in "iu":
        raise ValueError(f"pairs must be integers of shape (pair, 2), got shape {chosen.shape}")
    if chosen.size and not (0 <= chosen.min() and chosen.max() < len(y)):
        raise ValueError(
            f"pairs must be indices of a vector of {len(y)} values, got "
            f"{chosen.min()} … {chosen.max()}"
        )
    w = np.ones(len(chosen)) if weights is None else as_array(weights)
    if w.shape != (len(chosen),) or not (w >= 0).all():
        raise ValueError(
            f"weights must be {len(chosen)} non-negative numbers, one for each pair, got shape "
            f"{w.shape}"
        )
    known = np.isfinite(y[chosen]).all(axis=1) & (w > 0)
    chosen, w = chosen[known], w[known]
    if not len(chosen):
        return np.nan

    first, second = chosen.T
    of_truth = power(y[first] - y[second], p)
    of_members = power(x[:, first] - x[:, second], p)
    errors = (of_truth - of_members.mean(axis=0)) ** 2
    if fair:
        errors = errors - of_members.var(axis=0, ddof=1) / len(x)

    return float(np.average(errors, weights=w))


def power(x: NDArray, p: float) -> NDArray:
    """|x|^p."""
    return np.asarray(np.sqrt(np.abs(x)) if p == 0.5 else np.abs(x) ** p)


def draw_pairs(
    shapes: Sequence[tuple[int, ...]],
    periodic: Sequence[tuple[bool, ...]],
    seed: int = 0,
    count: int = PAIRS,
) -> NDArray[np.int64]:
    """Pairs of values of a state: all of them if they are few, else some.

    Drawn pairs lie along one dimension of one variable, 1 to n/2 values apart, uniform in the
    logarithm of that lag; a quarter are at one point of two variables, where these share a grid.

    Arguments:
        shapes: The spatial shape of each variable.
        periodic: Whether each of its dimensions is periodic.
        seed: The seed.
        count: The number of pairs at most.

    Returns:
        Indices into the vector of all variables' values, with shape `(pair, 2)`.
    """

    sizes = np.array([int(np.prod(shape, dtype=np.int64)) for shape in shapes])
    offsets = np.concatenate([[0], np.cumsum(sizes)])
    total = int(offsets[-1])
    if total * (total - 1) // 2 <= count:
        return np.stack(np.triu_indices(total, 1), 1)

    rng = member_generator(seed, 0, 3)
    found = []
    for v in rng.choice(len(sizes), count, p=sizes / total).tolist():
        shape = shapes[v]
        axes = [axis for axis, n in enumerate(shape) if n > 1]
        point = [int(rng.integers(n)) for n in shape]
        here = offsets[v] + flat(point, shape)
        alike = [u for u, other in enumerate(shapes) if u != v and other == shape]
        if alike and (not axes or rng.random() < 0.25):
            found.append((here, offsets[alike[rng.integers(len(alike))]] + flat(point, shape)))
            continue
        if not axes:
            continue
        axis = axes[rng.integers(len(axes))]
        n = shape[axis]
        lag = int((n // 2) ** rng.random()) * (1 if rng.random() < 0.5 else -1)
        there = point[axis] + lag
        if periodic[v][axis]:
            there %= n
        elif not 0 <= there < n:
            there = point[axis] - lag
        point[axis] = there
        found.append((here, offsets[v] + flat(point, shape)))

    return np.array(found, dtype=np.int64).reshape(-1, 2)


def flat(point: Sequence[int], shape: tuple[int, ...]) -> int:
    """The index of a point in the flattened array."""
    return int(np.ravel_multi_index(point, shape)) if shape else 0
