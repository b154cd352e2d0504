"""Exact posteriors, by means that share no code with the engine."""

import numpy as np


def kalman_smoother(
    A: np.ndarray,
    Q: np.ndarray,
    P: np.ndarray,
    H: list[np.ndarray | None],
    R: list[np.ndarray | None],
    y: list[np.ndarray | None],
) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """The Rauch–Tung–Striebel smoother of `x' = A x + N(0, Q)`, `x₀ ~ N(0, P)`.

    Arguments:
        A: The transition matrix, with shape `(n, n)`.
        Q: The covariance of its noise.
        P: The covariance of the first state.
        H: The observation matrix of each state, or None.
        R: The observation-error covariance of each state, or None.
        y: The observations of each state, or None.

    Returns:
        The means `(time, n)`, covariances `(time, n, n)`, and the covariances of each state with
        the next `(time - 1, n, n)`.
    """

    length, n = len(y), len(A)
    forecasts, analyses = [], []
    m, V = np.zeros(n), P
    for i in range(length):
        if i:
            m, V = A @ m, A @ V @ A.T + Q
        forecasts.append((m, V))
        if y[i] is not None:
            gain = np.linalg.solve(H[i] @ V @ H[i].T + R[i], H[i] @ V).T
            m, V = m + gain @ (y[i] - H[i] @ m), V - gain @ H[i] @ V
        analyses.append((m, V))

    means, covs, lags = [analyses[-1][0]], [analyses[-1][1]], []
    for i in range(length - 2, -1, -1):
        (m, V), (f, W) = analyses[i], forecasts[i + 1]
        back = V @ A.T @ np.linalg.pinv(W, hermitian=True)
        lags.append(back @ covs[-1])
        means.append(m + back @ (means[-1] - f))
        covs.append(V + back @ (covs[-1] - W) @ back.T)

    return np.stack(means[::-1]), np.stack(covs[::-1]), np.stack(lags[::-1])


def importance_moments(
    log_likelihood: np.ndarray, values: np.ndarray
) -> tuple[np.ndarray, np.ndarray, float]:
    """The mean and covariance of weighted prior draws, and their effective sample size.

    Arguments:
        log_likelihood: The log-likelihood of each draw, with shape `(draw)`.
        values: The draws, with shape `(draw, n)`.
    """

    weights = np.exp(log_likelihood - log_likelihood.max())
    weights /= weights.sum()
    mean = weights @ values
    anomaly = values - mean

    return mean, (weights[:, None] * anomaly).T @ anomaly, 1 / np.square(weights).sum()
