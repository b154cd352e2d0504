"""Joint scores: TARP and the variogram against closed forms and other implementations."""

import numpy as np
import pytest
import scoringrules
from scipy.stats import norm

from sda.verification import expected_coverage, variogram_score
from sda.verification.joint import joint_ranks
from sda.verification.variogram import draw_pairs

LEVELS = np.array([0.1, 0.3, 0.5, 0.7, 0.9])


def draws(*shape, seed=0):
    return np.random.default_rng(seed).standard_normal(shape)


def correlated(*shape, rho, seed=0):
    """Gaussian pairs of unit variance and correlation rho."""
    z = draws(*shape, 2, seed=seed)
    return np.stack([z[..., 0], rho * z[..., 0] + np.sqrt(1 - rho**2) * z[..., 1]], axis=-1)


def test_expected_coverage_is_the_level_for_exact_posteriors_of_any_size():
    for members, n in ((2, 3), (9, 1), (20, 30)):
        pool = draws(4000, members + 1, n, seed=members) + draws(4000, 1, n, seed=1)
        got = expected_coverage(pool[:, 1:], pool[:, 0], LEVELS, count=2)
        np.testing.assert_allclose(got, LEVELS, atol=0.03)


def test_expected_coverage_seen_from_afar_has_its_closed_form():
    """Far reference points project: coverage of one-sided intervals, Φ(σ Φ⁻¹(p))."""
    x, y = 0.5 * draws(20_000, 99, 2), draws(20_000, 2, seed=1)
    angle = np.random.default_rng(2).uniform(0, 2 * np.pi, (20_000, 1))
    far = 1e7 * np.stack([np.cos(angle), np.sin(angle)], axis=-1)
    got = expected_coverage(x, y, LEVELS, references=far)
    np.testing.assert_allclose(got, norm.cdf(0.5 * norm.ppf(LEVELS)), atol=0.012)


def test_expected_coverage_sees_wrong_correlations_that_marginal_coverage_cannot():
    y = correlated(3000, rho=0.95)
    wrong = correlated(3000, 30, rho=-0.95, seed=1)
    right = correlated(3000, 30, rho=0.95, seed=1)
    levels = [0.1, 0.9]
    assert np.abs(expected_coverage(right, y, levels) - levels).max() < 0.02
    assert np.abs(expected_coverage(wrong, y, levels) - levels).max() > 0.05


def test_a_large_bias_is_covered_half_of_the_time_at_any_level():
    got = expected_coverage(draws(2000, 20, 4), draws(2000, 4, seed=1) + 50, [0.05, 0.5, 0.95])
    np.testing.assert_allclose(got, 0.5, atol=0.05)


def test_joint_ranks_are_those_of_the_distances():
    x, y, r = draws(3, 5, 4), draws(3, 4, seed=1), draws(3, 2, 4, seed=2)
    ranks = joint_ranks(x, y, r)
    pool = np.concatenate([y[:, None], x], axis=1)
    distance = np.linalg.norm(pool[:, None] - r[:, :, None], axis=-1)
    np.testing.assert_array_equal(ranks, distance.argsort(-1).argsort(-1))


def test_what_does_not_fit_expected_coverage_is_named():
    with pytest.raises(ValueError, match=r"\(case, member, \*\) and truths"):
        expected_coverage(draws(3, 4), draws(3))
    with pytest.raises(ValueError, match=r"within \(0, 1\)"):
        expected_coverage(draws(3, 4, 1), draws(3, 1), [1.0])
    with pytest.raises(ValueError, match="finite"):
        expected_coverage(draws(3, 4, 1) * np.nan, draws(3, 1))
    with pytest.raises(ValueError, match=r"references must have shape \(case, reference"):
        expected_coverage(draws(3, 4, 2), draws(3, 2), references=draws(3, 2))


def test_variogram_score_agrees_with_scoringrules():
    x, y = draws(6, 3, 4), draws(3, 4, seed=1)
    for p in (0.5, 1.0):
        for fair in (True, False):
            expected = scoringrules.vs_ensemble(
                y.ravel(),
                x.reshape(6, 12),
                p=p,
                estimator="fair" if fair else "nrg",
                backend="numpy",
            )
            # Theirs sums over both orders of each pair, ours is the mean over pairs.
            got = variogram_score(x, y, p=p, fair=fair)
            assert got == pytest.approx(float(expected) / (12 * 11), rel=1e-9)


def test_fair_variogram_score_is_unbiased_for_the_gaussian_closed_form():
    """With p = 2 and x_i - x_j ~ N(0, v): (|y_i - y_j|² - v)²."""
    y = np.array([0.3, -1.1])
    exact = (1.4**2 - 2) ** 2
    for members in (2, 5):
        got = [variogram_score(draws(members, 2, seed=s), y, p=2) for s in range(2000)]
        assert np.mean(got) == pytest.approx(exact, abs=4 * np.std(got) / np.sqrt(len(got)))


def test_variogram_score_ignores_a_common_bias_and_unknown_values():
    x, y = draws(6, 10), draws(10, seed=1)
    assert variogram_score(x + 5, y) == pytest.approx(variogram_score(x, y))
    hidden = y.copy()
    hidden[7:] = np.nan
    assert variogram_score(x, hidden) == pytest.approx(variogram_score(x[:, :7], y[:7]))
    pairs = [[0, 1], [4, 2]]
    expected = np.mean([variogram_score(x[:, p], y[p]) for p in pairs])
    assert variogram_score(x, y, pairs) == pytest.approx(expected)
    assert np.isnan(variogram_score(x, y * np.nan))


def test_what_does_not_fit_the_variogram_is_named():
    x, y = draws(3, 4), draws(4)
    with pytest.raises(ValueError, match="at least 2 members, got 1"):
        variogram_score(x[:1], y)
    with pytest.raises(ValueError, match="power p must be positive, got 0"):
        variogram_score(x, y, p=0)
    with pytest.raises(ValueError, match=r"indices of a vector of 4 values, got 0 … 4"):
        variogram_score(x, y, [[0, 4]])
    with pytest.raises(ValueError, match=r"shape \(pair, 2\)"):
        variogram_score(x, y, [0, 1])


def test_drawn_pairs_are_all_or_near():
    assert len(draw_pairs([(3,), (3,)], [(True,), (True,)])) == 15
    shape = (32, 48)
    pairs = draw_pairs([shape, shape], [(True, False)] * 2, seed=1)
    assert pairs.shape == (4096, 2) and (pairs[:, 0] != pairs[:, 1]).all()
    v, y, x = np.unravel_index(pairs.T, (2, *shape))
    across = v[0] != v[1]
    assert 0.2 < across.mean() < 0.3
    assert (y[0] == y[1])[across].all() and (x[0] == x[1])[across].all()
    moved_y, moved_x = (np.abs(c[0] - c[1])[~across] for c in (y, x))
    assert ((moved_y > 0) ^ (moved_x > 0)).all()
    # Not periodic: no lag beyond half the dimension. Periodic: across the edge it looks longer.
    assert moved_x.max() <= 24 and moved_y.max() > 16
    lag = np.minimum(moved_y, 32 - moved_y)
    # Uniform in the logarithm: as many lags of 1 as of 2 and 3 together.
    ones, more = (lag == 1).sum(), ((lag == 2) | (lag == 3)).sum()
    assert 0.8 < ones / more < 1.25
