r"""Checks in observation space: they need no truth, only the observations that were assimilated.

With the background $x_b$ (the forecast ensemble at the analysis time) and the analysis $x_a$, the
innovations $d_b = y - H(x_b)$ of a filter whose B and R are right have

$$ E\,d_b = 0, \qquad E\,d_b d_b^T = H B H^T + R. $$

Of an ensemble of M members B is an estimate and $x_b$ its mean, which is off by $B / M$; hence
$(1 + 1/M) H B H^T + R$ here. Desroziers et al. add, with $d_a = y - H(x_a)$,

$$ E\,d_a d_b^T = R, \quad E\,(d_b - d_a) d_b^T = H B H^T, \quad E\,(d_b - d_a) d_a^T = H A H^T, $$

where A is the analysis-error covariance: which of the error statistics is wrong, not only whether.
The analysis of a smoother has seen later observations, too: for it these do not hold.

References:
    | Desroziers, Berre, Chapnik, Poli (2005), Diagnosis of observation, background and
      analysis-error statistics in observation space
    | Ménard et al. (2000), Assimilation of stratospheric chemical tracer observations using a
      Kalman filter: the chi-square test
"""

from dataclasses import dataclass

import numpy as np
from numpy.typing import ArrayLike, NDArray

from .scores import as_array


@dataclass
class InnovationStatistics:
    """What innovations are and what they should be.

    Attributes:
        mean: The mean innovation of each value over cases, `(value)`; 0 if unbiased.
        variance: Its mean square over cases, `(value)`.
        expected: The mean of its expected variance, the diagonal of (1 + 1/M) HBHᵀ + R, `(value)`.
        chi_square: dᵀ((1 + 1/M) HBHᵀ + R)⁻¹d of each case over the number of values, `(case)`. Its
            mean is 1 and its standard deviation √(2 / values) if the covariance is exact; one that
            is estimated from few members makes it larger where R is small beside HBHᵀ.
    """

    mean: NDArray[np.float64]
    variance: NDArray[np.float64]
    expected: NDArray[np.float64]
    chi_square: NDArray[np.float64]

    @property
    def ratio(self) -> float:
        """Mean square over expected variance, both averaged over values: 1 if consistent."""
        return float(self.variance.mean() / self.expected.mean())


def innovation_statistics(
    y: ArrayLike, background: ArrayLike, std: ArrayLike
) -> InnovationStatistics:
    """The statistics of innovations over cases, which are times or repetitions.

    Arguments:
        y: The observations, with shape `(case, value)`.
        background: The background ensemble seen through H, with shape `(case, member, value)`.
        std: The standard deviations of the observation errors, broadcast to `(value)`.

    Raises:
        ValueError: If the shapes do not fit, there are fewer than 2 members, or a std is not
            positive.
    """

    y, x, std = observed(y, background, std)
    members = x.shape[1]
    if members < 2:
        raise ValueError(f"the background needs at least 2 members, got {members}")
    d = y - x.mean(axis=1)
    expected = (1 + 1 / members) * x.var(axis=1, ddof=1) + std**2

    return InnovationStatistics(
        mean=d.mean(axis=0),
        variance=(d**2).mean(axis=0),
        expected=expected.mean(axis=0),
        chi_square=np.array([chi_square(*row, std) / y.shape[1] for row in zip(y, x, strict=True)]),
    )


def chi_square(y: NDArray, background: NDArray, std: NDArray) -> float:
    """dᵀ((1 + 1/M) HBHᵀ + R)⁻¹d for one case: `(value)`, `(member, value)` and `(value)`.

    It is solved among members or among values, whichever are fewer.
    """

    m = len(background)
    mean = background.mean(axis=0)
    d = (y - mean) / std
    a = (background - mean) / std * np.sqrt((1 + 1 / m) / (m - 1))
    if m < a.shape[1]:  # (I + AᵀA)⁻¹ = I − Aᵀ(I + AAᵀ)⁻¹A
        projected = a @ d
        return float(d @ d - projected @ np.linalg.solve(np.eye(m) + a @ a.T, projected))

    return float(d @ np.linalg.solve(np.eye(a.shape[1]) + a.T @ a, d))


@dataclass
class Desroziers:
    """Covariances diagnosed from innovations, with shape `(value)`, or `(value, value)`.

    Attributes:
        R: Of the observation errors, E d_a d_bᵀ.
        B: Of the background in observation space, E (d_b − d_a) d_bᵀ.
        A: Of the analysis in observation space, E (d_b − d_a) d_aᵀ.
        S: Of the innovations, E d_b d_bᵀ, which is R + B.
    """

    R: NDArray[np.float64]
    B: NDArray[np.float64]
    A: NDArray[np.float64]
    S: NDArray[np.float64]


def desroziers(
    y: ArrayLike, background: ArrayLike, analysis: ArrayLike, matrix: bool = False
) -> Desroziers:
    """The diagnostics of Desroziers et al. (2005), averaged over cases.

    Arguments:
        y: The observations, with shape `(case, value)`.
        background: The background ensemble seen through H, with shape `(case, member, value)`.
        analysis: The analysis ensemble seen through H, `(case, member', value)`.
        matrix: Whether to return covariances `(value, value)` instead of variances `(value)`.

    Raises:
        ValueError: If the shapes do not fit.
    """

    observation, forecast, _ = observed(y, background, 1.0)
    _, update, _ = observed(y, analysis, 1.0)
    before, after = observation - forecast.mean(axis=1), observation - update.mean(axis=1)

    def product(a: NDArray, b: NDArray) -> NDArray:
        return np.einsum("ci,cj->ij" if matrix else "ci,ci->i", a, b) / len(a)

    return Desroziers(
        R=product(after, before),
        B=product(before - after, before),
        A=product(before - after, after),
        S=product(before, before),
    )


def observed(y: ArrayLike, ensemble: ArrayLike, std: ArrayLike) -> tuple[NDArray, NDArray, NDArray]:
    """Checks observations `(case, value)` against an ensemble `(case, member, value)`.

    Raises:
        ValueError: If the shapes do not fit or a std is not positive.
    """

    y, x = as_array(y).astype(np.float64), as_array(ensemble).astype(np.float64)
    if y.ndim != 2 or x.ndim != 3 or (x.shape[0], x.shape[2]) != y.shape or not x.size:
        raise ValueError(
            f"expected observations (case, value) and an ensemble (case, member, value) in their "
            f"space, got {y.shape} and {x.shape}"
        )
    std = as_array(std).astype(np.float64)
    if std.shape not in ((), y.shape[1:]):
        raise ValueError(f"std must have shape () or {y.shape[1:]}, got {std.shape}")
    if not (np.isfinite(std) & (std > 0)).all():
        raise ValueError(f"std must be positive and finite, got down to {std.min():g}")

    return y, x, np.broadcast_to(std, y.shape[1:])
