"""Observation-space checks: an exact Kalman filter passes them, and each error is found."""

import numpy as np
import pytest

from sda.verification import desroziers, innovation_statistics

STD = np.array([0.5, 1.0, 2.0, 0.8])


def cases(count=6000, members=40, inflation=1.0, noise=1.0, seed=0):
    """Backgrounds of a covariance B, analysed by the Kalman filter for it and for STD.

    Returns:
        Observations with errors of noise · STD, and backgrounds of inflation · B and analyses.
    """

    rng = np.random.default_rng(seed)
    n = len(STD)
    root = np.tril(rng.standard_normal((n, n))) + 2 * np.eye(n)
    B, R = root @ root.T, np.diag(STD**2)
    truth = rng.standard_normal((count, n)) @ root.T
    center = truth + rng.standard_normal((count, n)) @ root.T
    y = truth + noise * STD * rng.standard_normal((count, n))
    anomalies = rng.standard_normal((count, members, n)) @ root.T * inflation
    anomalies -= anomalies.mean(axis=1, keepdims=True)
    # The sample mean is off the center, as that of members drawn about it would be.
    center = center + rng.standard_normal((count, n)) @ root.T * inflation / np.sqrt(members)
    given = inflation**2 * B
    gain = given @ np.linalg.inv(given + R)
    mean = center + (y - center) @ gain.T
    A = given - gain @ given
    spread = rng.standard_normal((count, members, n)) @ np.linalg.cholesky(A).T
    spread -= spread.mean(axis=1, keepdims=True)

    return y, center[:, None] + anomalies, mean[:, None] + spread, B, A


def test_innovations_of_a_consistent_filter_are_as_expected():
    y, background, _, B, _ = cases()
    got = innovation_statistics(y, background, STD)
    expected = (1 + 1 / 40) * np.diag(B) + STD**2
    error = np.sqrt(expected / len(y))
    assert (np.abs(got.mean) < 4 * error).all()
    np.testing.assert_allclose(got.variance, expected, rtol=0.08)
    np.testing.assert_allclose(got.expected, expected, rtol=0.02)
    assert got.ratio == pytest.approx(1, abs=0.04)


def test_chi_square_is_one_for_many_members():
    y, background, _, _, _ = cases(count=1500, members=300)
    chi = innovation_statistics(y, background, STD).chi_square
    assert chi.mean() == pytest.approx(1, abs=4 * chi.std() / np.sqrt(len(chi)) + 0.01)
    assert chi.std() == pytest.approx(np.sqrt(2 / 4), rel=0.1)


def test_chi_square_is_the_same_among_members_and_among_values():
    rng = np.random.default_rng(0)
    for members, values in ((5, 12), (12, 5), (6, 6)):
        y, x = rng.standard_normal(values), rng.standard_normal((members, values))
        std = rng.uniform(0.5, 2, values)
        S = (1 + 1 / members) * np.cov(x.T) + np.diag(std**2)
        d = y - x.mean(axis=0)
        got = innovation_statistics(y[None], x[None], std).chi_square[0]
        assert got == pytest.approx(d @ np.linalg.solve(S, d) / values)


def test_desroziers_recovers_the_covariances_of_a_consistent_filter():
    y, background, analysis, B, A = cases(count=20_000, members=20)
    got = desroziers(y, background, analysis, matrix=True)
    for name, exact in (("R", np.diag(STD**2)), ("B", B), ("A", A)):
        scale = np.sqrt(np.outer(np.diag(exact), np.diag(exact)))
        np.testing.assert_array_less(np.abs(getattr(got, name) - exact) / scale, 0.1)
    np.testing.assert_allclose(got.S, got.R + got.B)
    diagonal = desroziers(y, background, analysis)
    for name in "RBAS":
        np.testing.assert_allclose(getattr(diagonal, name), np.diag(getattr(got, name)))


def test_a_wrong_observation_error_is_told_from_a_wrong_background():
    noisy = desroziers(*cases(noise=2.0)[:3])
    assert (noisy.R / STD**2).mean() > 1.4
    y, background, analysis, B, _ = cases(inflation=0.4)
    assert innovation_statistics(y, background, STD).ratio > 1.5
    assert desroziers(y, background, analysis).B.sum() / (0.16 * np.diag(B).sum()) > 1.5


def test_what_does_not_fit_is_named():
    y, x = np.zeros((3, 4)), np.zeros((3, 5, 4))
    with pytest.raises(ValueError, match=r"\(case, value\) and an ensemble"):
        innovation_statistics(y, x[:2], STD)
    with pytest.raises(ValueError, match="at least 2 members, got 1"):
        innovation_statistics(y, x[:, :1], STD)
    with pytest.raises(ValueError, match="positive and finite, got down to 0"):
        innovation_statistics(y, x, 0.0)
    with pytest.raises(ValueError, match=r"shape \(\) or \(4,\), got \(3,\)"):
        innovation_statistics(y, x, np.ones(3))
