r"""Scores of an ensemble against the truth.

All functions take the ensemble with its members along the first axis and the truth without that
axis, and leave the other axes alone, so that the caller decides what to average.

An ensemble of M members drawn from the posterior and the truth are exchangeable. From this alone
follow the two finite-ensemble corrections used here: the mean squared error of the ensemble mean is
(M+1)/M times the ensemble variance, and the spread term of the CRPS is a mean over the M(M-1) pairs
of distinct members.

References:
    | Fortin et al. (2014), Why should ensemble spread match the RMSE of the ensemble mean?
    | Ferro (2014), Fair scores for ensemble forecasts
    | Gneiting & Raftery (2007), Strictly proper scoring rules, prediction, and estimation
"""

from typing import Any

import numpy as np
import scoringrules
import torch
from numpy.typing import ArrayLike, NDArray


def as_array(values: Any) -> NDArray[Any]:
    """Turns a tensor, a data array or a list into a floating-point array."""

    if hasattr(values, "detach"):
        values = values.detach().cpu()
    array = np.asarray(values)

    return array if np.issubdtype(array.dtype, np.floating) else array.astype(np.float64)


def paired(ensemble: ArrayLike, truth: ArrayLike, least: int = 1) -> tuple[NDArray, NDArray]:
    """Checks an ensemble `(member, *)` against a truth `(*)`.

    Raises:
        ValueError: If the shapes do not fit, or if there are fewer than `least` members.
    """

    x, y = as_array(ensemble), as_array(truth)
    if x.ndim == 0 or x.shape[1:] != y.shape:
        raise ValueError(
            f"the truth must have the shape of one member, {x.shape[1:]}, got {y.shape}"
        )
    if len(x) < least:
        raise ValueError(
            f"this score needs at least {least} members, got {len(x)}: sample a larger ensemble"
        )

    return x, y


def rmse(
    ensemble: ArrayLike, truth: ArrayLike, axis: int | tuple[int, ...] | None = None
) -> NDArray[np.float64]:
    r"""The root mean square error of the ensemble mean, $\sqrt{\langle (\bar x - y)^2 \rangle}$.

    Over all axes it is the global RMSE. Over the axes of the state alone, and averaged over time
    afterwards, it is the convention of DAPPER and of most of the literature on filters:
    `rmse(x, y, axis=(1, 2)).mean()` for states with one spatial dimension. It is the smaller one.

    Arguments:
        ensemble: The members, with shape `(member, *)`.
        truth: The truth, with shape `(*)`.
        axis: The axes of the truth to average over (default: all).

    Returns:
        The errors in the units of the state, with the shape of the other axes.

    Raises:
        ValueError: If the shapes do not fit.
    """

    x, y = paired(ensemble, truth)

    return np.sqrt(np.mean((x.mean(axis=0, dtype=np.float64) - y) ** 2, axis=axis))


def bias(
    ensemble: ArrayLike, truth: ArrayLike, axis: int | tuple[int, ...] | None = None
) -> NDArray[np.float64]:
    r"""The mean error of the ensemble mean, $\langle \bar x - y \rangle$.

    Arguments:
        ensemble: The members, with shape `(member, *)`.
        truth: The truth, with shape `(*)`.
        axis: The axes of the truth to average over (default: all).

    Returns:
        The biases in the units of the state, with the shape of the other axes.

    Raises:
        ValueError: If the shapes do not fit.
    """

    x, y = paired(ensemble, truth)

    return np.asarray(np.mean(x.mean(axis=0, dtype=np.float64) - y, axis=axis))


def spread(ensemble: ArrayLike) -> NDArray:
    r"""The ensemble standard deviation, with M-1 in the denominator.

    Arguments:
        ensemble: The members, with shape `(member, *)`.

    Returns:
        The spread, with shape `(*)`. Average its square, never itself, over space and time.

    Raises:
        ValueError: If there is one member only.
    """

    x = as_array(ensemble)
    if x.ndim == 0 or len(x) < 2:
        raise ValueError(
            f"the spread needs at least 2 members, got {len(x) if x.ndim else 0}: "
            f"sample a larger ensemble"
        )

    return np.std(x, axis=0, ddof=1)


def spread_skill(ensemble: ArrayLike, truth: ArrayLike) -> float:
    r"""The spread–skill ratio over all values,

    $$ \sqrt{\frac{M+1}{M} \frac{\langle s^2 \rangle}{\langle (\bar x - y)^2 \rangle}} $$

    with s the spread. It is 1 for a calibrated ensemble of any size M.

    Arguments:
        ensemble: The members, with shape `(member, *)`.
        truth: The truth, with shape `(*)`.

    Raises:
        ValueError: If the shapes do not fit, or if there is one member only.
    """

    x, y = paired(ensemble, truth, least=2)
    variance = np.mean(spread(x) ** 2, dtype=np.float64)
    error = np.mean((x.mean(axis=0) - y) ** 2, dtype=np.float64)

    return float(np.sqrt((len(x) + 1) / len(x) * variance / error))


def crps(
    ensemble: ArrayLike, truth: ArrayLike, fair: bool = True, presorted: bool = False
) -> NDArray:
    r"""The continuous ranked probability score

    $$ \frac{1}{M} \sum_i |x_i - y| - \frac{1}{2 K} \sum_{i,j} |x_i - x_j| $$

    with K = M(M-1) if fair, else K = M². The fair score is an unbiased estimate of that of the
    distribution from which the members are drawn; the plain one scores the ensemble itself.

    Arguments:
        ensemble: The members, with shape `(member, *)`.
        truth: The truth, with shape `(*)`.
        fair: Whether to correct for the finite number of members.
        presorted: Whether the members ascend along the first axis already.

    Returns:
        The scores in the units of the state, with shape `(*)`.

    Raises:
        ValueError: If the shapes do not fit, or if a fair score is asked of one member.
    """

    x, y = paired(ensemble, truth, least=2 if fair else 1)

    return np.asarray(
        scoringrules.crps_ensemble(
            y,
            x,
            m_axis=0,
            estimator="pwm" if fair else "qd",
            sorted_ensemble=presorted,
            backend="numpy",
        )
    )


def energy_score(ensemble: ArrayLike, truth: ArrayLike, fair: bool = True) -> float:
    r"""The energy score of a vector, the CRPS with Euclidean distances in place of differences.

    `scoringrules.es_ensemble` holds all M² differences at once, which for fields is more than a
    machine has. This is the same score, in the memory of the ensemble plus M² distances.

    Arguments:
        ensemble: The members, with shape `(member, *)`. All other axes make up the vector.
        truth: The truth, with shape `(*)`.
        fair: Whether to average over pairs of distinct members only.

    Raises:
        ValueError: If the shapes do not fit, or if a fair score is asked of one member.
    """

    x, y = paired(ensemble, truth, least=2 if fair else 1)
    pairs = len(x) * (len(x) - 1 if fair else len(x))
    dispersion = torch.nn.functional.pdist(rows(x)).sum().item() / pairs

    return float(distances(x, y[None]).mean() - dispersion)


def rows(x: NDArray) -> torch.Tensor:
    """Flattens an array `(member, *)` to double precision `(member, value)`."""
    return torch.from_numpy(x.reshape(len(x), -1).astype(np.float64))


def distances(a: NDArray, b: NDArray) -> NDArray[np.float64]:
    """The Euclidean distances `(member, member')` between the members of two ensembles."""

    # Without matrix products, which cancel between members that are close to each other.
    return torch.cdist(rows(a), rows(b), compute_mode="donot_use_mm_for_euclid_dist").numpy()


def wasserstein1(a: Any, b: Any) -> float:
    r"""The 1-Wasserstein distance between two ensembles of equally weighted trajectories,

    $$ \min_\gamma \sum_{ij} \gamma_{ij} \|a_i - b_j\|_2 $$

    over all couplings γ, with the Euclidean distance of the flattened trajectories as cost, as in
    Rozet & Louppe (2023). It is computed exactly, at about the cube of the number of members. It
    is positive between two finite ensembles of the same distribution: report that floor beside it.

    Arguments:
        a: One ensemble, with shape `(member, *)`. Tensors, arrays and data arrays will do.
        b: The other ensemble, with shape `(member', *)`.

    Raises:
        ValueError: If the shapes do not fit or a value is not finite.
        ImportError: If POT is not installed.
    """

    a, b = two_ensembles(a, b)

    return transport(distances(a, b))


def two_ensembles(a: Any, b: Any) -> tuple[NDArray, NDArray]:
    """Checks two ensembles, each with shape `(member, *)`.

    Raises:
        ValueError: If the shapes do not fit or a value is not finite.
    """

    a, b = as_array(a), as_array(b)
    if a.ndim == 0 or a.shape[1:] != b.shape[1:] or not (len(a) and len(b)):
        raise ValueError(f"both ensembles must have members of one shape, got {a.shape}, {b.shape}")
    if not (np.isfinite(a).all() and np.isfinite(b).all()):
        raise ValueError("all values must be finite, got NaN or infinity: leave those members out")

    return a, b


def transport(cost: NDArray) -> float:
    """The smallest mean cost of moving one ensemble onto another, given costs `(member, member')`.

    Raises:
        ValueError: If the transport problem was not solved.
        ImportError: If POT is not installed.
    """

    try:
        import ot
    except ImportError as error:
        raise ImportError(
            "the Wasserstein distance needs the package POT: pip install 'sda-torch[bench]'"
        ) from error

    distance, log = ot.emd2(
        ot.unif(cost.shape[0]), ot.unif(cost.shape[1]), cost, numItermax=10**7, log=True
    )
    if log.get("warning"):
        raise ValueError(f"the transport problem was not solved: {log['warning']}")

    return float(distance)
