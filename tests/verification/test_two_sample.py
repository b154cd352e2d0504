"""Maximum mean discrepancy: unbiased for the closed form, with p-values that are uniform."""

import numpy as np
import pytest

from sda.verification import mmd


def draws(*shape, seed=0):
    return np.random.default_rng(seed).standard_normal(shape)


def gaussian_mmd(shift, d, h):
    """MMD² of N(0, I) and N(shift, I), with the Gaussian kernel of bandwidth h."""
    same = (h**2 / (h**2 + 2)) ** (d / 2)
    return 2 * same * (1 - np.exp(-np.sum(shift**2) / (2 * (h**2 + 2))))


def test_mmd_is_unbiased_for_the_gaussian_closed_form():
    shift = np.array([0.6, 0.0, -0.3])
    for n, m in ((4, 9), (30, 12)):
        got = [
            mmd(draws(n, 3, seed=s), draws(m, 3, seed=9999 + s) + shift, 1.5, permutations=1).mmd
            for s in range(300)
        ]
        error = np.std(got) / np.sqrt(len(got))
        assert np.mean(got) == pytest.approx(gaussian_mmd(shift, 3, 1.5), abs=4 * error)


def test_mmd_is_the_sum_over_pairs():
    a, b = draws(4, 2), draws(3, 2, seed=1)

    def mean(x, y, own=False):
        k = [
            np.exp(-np.sum((p - q) ** 2) / (2 * 0.7**2))
            for i, p in enumerate(x)
            for j, q in enumerate(y)
            if not (own and i == j)
        ]
        return np.mean(k)

    expected = mean(a, a, True) + mean(b, b, True) - 2 * mean(a, b)
    assert mmd(a, b, 0.7).mmd == pytest.approx(expected)
    # The median of all distances in the pool is the default bandwidth.
    pool = np.concatenate([a, b])
    pairs = [np.linalg.norm(pool[i] - pool[j]) for i in range(7) for j in range(i)]
    assert mmd(a, b).bandwidth == pytest.approx(np.median(pairs))


def test_p_values_are_uniform_under_equality_and_small_otherwise():
    p = [
        mmd(draws(12, 5, seed=s), draws(20, 5, seed=7777 + s), permutations=99, seed=s).p_value
        for s in range(150)
    ]
    for level in (0.1, 0.5, 0.9):
        assert np.mean(np.array(p) <= level) == pytest.approx(level, abs=0.12)
    other = mmd(draws(50, 5), 3 * draws(50, 5, seed=1), permutations=199)
    assert other.p_value == 1 / 200 and other.mmd > 0


def test_p_values_are_reproducible_and_one_for_equal_members():
    a, b = draws(10, 3), draws(10, 3, seed=1)
    assert mmd(a, b, seed=3) == mmd(a, b, seed=3)
    assert mmd(a, a).p_value > 0.5


def test_what_does_not_fit_is_named():
    with pytest.raises(ValueError, match="at least 2 members on both sides, got 1 and 3"):
        mmd(draws(1, 2), draws(3, 2))
    with pytest.raises(ValueError, match="bandwidth must be positive, got 0"):
        mmd(np.zeros((3, 2)), np.zeros((3, 2)))
    with pytest.raises(ValueError, match="one shape"):
        mmd(draws(3, 2), draws(3, 4))
    with pytest.raises(ValueError, match="finite"):
        mmd(draws(3, 2) * np.nan, draws(3, 2))
