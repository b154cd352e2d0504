"""Ranks and coverage: uniform for calibrated ensembles, with bands of the right width."""

import numpy as np
import pytest
import scores
import xarray as xr
from scipy.stats import binom, norm

from sda.verification import calibration, coverage, rank_histogram, reliability_index


def draws(*shape, seed=0):
    return np.random.default_rng(seed).standard_normal(shape)


def test_ranks_of_a_calibrated_ensemble_are_uniform():
    n, members = 40_000, 7
    pool = draws(members + 1, n)
    counts = n * rank_histogram(pool[1:], pool[0])
    low, high = binom.ppf([1e-4, 1 - 1e-4], n, 1 / (members + 1))
    assert ((counts >= low) & (counts <= high)).all()


def test_rank_histogram_agrees_with_scores():
    x, y = draws(9, 500), 1.5 * draws(500, seed=1)
    expected = scores.probability.rank_histogram(
        xr.DataArray(x, dims=("member", "point")), xr.DataArray(y, dims="point"), "member"
    )
    np.testing.assert_allclose(rank_histogram(x, y), expected)


def test_pooled_ranks_are_a_permutation_and_count_the_smaller_ones():
    pool = draws(6, 20, 3)
    ranks = calibration.pooled_ranks(pool[1:], pool[0], np.random.default_rng(0))
    np.testing.assert_array_equal(np.sort(ranks, axis=0), np.arange(6)[:, None, None] + 0 * ranks)
    np.testing.assert_array_equal(ranks[0], (pool[1:] < pool[0]).sum(axis=0))
    np.testing.assert_array_equal(ranks[2], (pool < pool[2]).sum(axis=0))


def test_ties_are_broken_evenly_and_reproducibly():
    x, y = np.zeros((4, 30_000)), np.zeros(30_000)
    histogram = rank_histogram(x, y, seed=3)
    np.testing.assert_allclose(histogram, 0.2, atol=0.01)
    np.testing.assert_array_equal(histogram, rank_histogram(x, y, seed=3))
    assert (histogram != rank_histogram(x, y, seed=4)).any()
    # A tie leaves the other ranks alone: below two equal members, above one.
    x = np.array([0.0, 1.0, 2.0, 2.0])[:, None] + np.zeros(1_000)
    histogram = rank_histogram(x, np.ones(1_000))
    assert histogram[1] + histogram[2] == 1 and 0.4 < histogram[1] < 0.6


def test_missing_truth_and_zero_weights_do_not_count():
    x, y = draws(5, 200), draws(200, seed=1)
    weights = np.ones(200)
    hidden = y.copy()
    hidden[:50], weights[50:80] = np.nan, 0
    counts = calibration.rank_counts(x, hidden, np.random.default_rng(0), weights)
    np.testing.assert_allclose(counts[0] / 120, rank_histogram(x[:, 80:], y[80:]))
    np.testing.assert_allclose(counts.sum(axis=0), 120)


def test_reliability_index_has_its_closed_form():
    assert reliability_index(np.ones(8)) == 0
    assert reliability_index([5, 0, 0, 0]) == pytest.approx(2 * 3 / 4)


def test_coverage_is_the_level_for_calibrated_ensembles_of_any_size():
    levels = (0.05, 0.3, 0.5, 0.9, 0.97)
    for members in (2, 9, 40):
        pool = draws(members + 1, 40_000, seed=members)
        got = coverage(rank_histogram(pool[1:], pool[0]), levels)
        np.testing.assert_allclose(got, levels, atol=0.01)


def test_pit_histogram_gathers_ranks():
    counts = np.arange(1.0, 13)
    np.testing.assert_allclose(calibration.pit_histogram(counts, 12), counts / 78)
    gathered = calibration.pit_histogram(counts, 4)
    np.testing.assert_allclose(gathered, counts.reshape(4, 3).sum(axis=1) / 78)
    assert calibration.pit_histogram(counts, 5).sum() == pytest.approx(1)


def test_coverage_of_an_overconfident_ensemble_has_its_closed_form():
    x, y = 0.5 * draws(400, 4_000), draws(4_000, seed=1)
    levels = np.array([0.3, 0.6, 0.9])
    exact = 2 * norm.cdf(0.5 * norm.ppf((1 + levels) / 2)) - 1
    np.testing.assert_allclose(coverage(rank_histogram(x, y), levels), exact, atol=0.02)
    with pytest.raises(ValueError, match=r"within \(0, 1\)"):
        coverage(np.ones(4), [1.0])


def test_bands_hold_correlated_truths_nine_times_in_ten():
    """Points that repeat each other ten times: a binomial band is three times too narrow."""
    inside, width = [], []
    for seed in range(150):
        pool = np.repeat(draws(41, 40, seed=seed), 10, axis=1)
        counts = calibration.rank_counts(pool[1:], pool[0], np.random.default_rng(0))
        covered = coverage(counts, [0.5])[:, 0]
        low, high = calibration.band(covered)
        inside.append(low <= covered[0] <= high)
        width.append(high - low)
    assert 0.82 < np.mean(inside) < 0.97
    assert np.mean(width) == pytest.approx(2 * 1.645 * np.sqrt(0.25 / 40), rel=0.15)


def test_bands_hold_the_truth_as_often_as_they_say_for_few_members():
    rng = np.random.default_rng(0)
    for members, expected in ((5, 4 / 6), (10, 9 / 11), (19, 0.9), (50, 0.9)):
        values = rng.standard_normal((1 + members, 20_000))
        low, high = calibration.band(values)
        inside = (low <= values[0]) & (values[0] <= high)
        assert inside.mean() == pytest.approx(expected, abs=0.01)


def test_spread_skill_replicas_are_those_of_each_member_in_the_truths_place():
    from sda.verification import spread_skill

    pool = draws(6, 50)
    moments = np.mean((pool - pool.mean(axis=0)) ** 2, axis=1)
    ratios = calibration.spread_skill_replicas(moments)
    for j in range(6):
        assert ratios[j] == pytest.approx(spread_skill(np.delete(pool, j, axis=0), pool[j]))
