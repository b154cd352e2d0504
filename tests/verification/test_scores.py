"""Scores against closed forms and against other implementations."""

import numpy as np
import pytest
import scoringrules
import torch

from sda.verification import (
    bias,
    crps,
    energy_score,
    rmse,
    spread,
    spread_skill,
    wasserstein1,
)


def draws(*shape, seed=0):
    return np.random.default_rng(seed).standard_normal(shape)


def test_fair_crps_is_unbiased_for_the_gaussian_closed_form():
    y = np.array([-2.0, 0.0, 0.7])
    exact = scoringrules.crps_normal(y, 0.3, 1.5)
    for members in (2, 5):
        x = 0.3 + 1.5 * draws(members, 40_000, 1, seed=members)
        score = crps(np.broadcast_to(x, (members, 40_000, 3)), np.broadcast_to(y, (40_000, 3)))
        error = score.std(axis=0) / np.sqrt(40_000)
        assert (np.abs(score.mean(axis=0) - exact) < 4 * error).all()


def test_plain_crps_exceeds_the_fair_one_by_the_known_bias():
    x, y = draws(4, 20_000), draws(20_000, seed=1)
    excess = (crps(x, y, fair=False) - crps(x, y)).mean()
    # E|X - X'| / (2M) of a standard normal.
    assert excess == pytest.approx(2 / np.sqrt(np.pi) / (2 * 4), rel=0.02)


def test_plain_crps_of_one_member_is_the_absolute_error():
    x, y = draws(1, 10), draws(10, seed=1)
    np.testing.assert_allclose(crps(x, y, fair=False), np.abs(x[0] - y))


def test_presorted_members_have_the_same_crps():
    x, y = draws(7, 30), draws(30, seed=1)
    for fair in (True, False):
        np.testing.assert_allclose(
            crps(np.sort(x, axis=0), y, fair, presorted=True), crps(x, y, fair)
        )


def test_energy_score_agrees_with_scoringrules_and_with_crps_in_one_dimension():
    x, y = draws(6, 3, 4), draws(3, 4, seed=1)
    for fair in (True, False):
        expected = scoringrules.es_ensemble(
            y.ravel(), x.reshape(6, 12), estimator="fair" if fair else "nrg", backend="numpy"
        )
        assert energy_score(x, y, fair) == pytest.approx(float(expected))
        assert energy_score(x[:, :1, 0], y[:1, 0], fair) == pytest.approx(
            crps(x[:, 0, 0], y[0, 0], fair).item()
        )


def test_spread_skill_is_one_for_calibrated_ensembles_of_any_size():
    for members in (2, 5, 50):
        pool = draws(members + 1, 100_000, seed=members) * 3 + 10
        assert spread_skill(pool[1:], pool[0]) == pytest.approx(1, abs=0.015)


def test_spread_is_unbiased_in_the_variance():
    assert np.mean(spread(2 * draws(3, 100_000)) ** 2) == pytest.approx(4, rel=0.02)


def test_wasserstein_distance_of_a_shift_is_its_length():
    a = torch.from_numpy(draws(40, 5, 2))
    shift = torch.tensor([3.0, 4.0])
    assert wasserstein1(a, a + shift) == pytest.approx(5 * np.sqrt(5), rel=1e-9)
    assert wasserstein1(a, a.flip(0)) == pytest.approx(0, abs=1e-9)


def test_wasserstein_distance_agrees_with_the_quantile_form_in_one_dimension():
    a, b = draws(60), 2 * draws(60, seed=1) + 1
    assert wasserstein1(a, b) == pytest.approx(np.abs(np.sort(a) - np.sort(b)).mean())
    # Ensembles of different size: every member of `b` twice is the same distribution.
    assert wasserstein1(a, np.repeat(b, 2)) == pytest.approx(wasserstein1(a, b))


def test_wasserstein_distance_names_the_missing_package(monkeypatch):
    monkeypatch.setitem(__import__("sys").modules, "ot", None)
    with pytest.raises(ImportError, match=r"POT: pip install 'sda-torch\[bench\]'"):
        wasserstein1(draws(3, 2), draws(3, 2))


@pytest.mark.parametrize("score", [crps, energy_score, spread_skill])
def test_one_member_or_wrong_shapes_are_refused(score):
    with pytest.raises(ValueError, match="at least 2 members, got 1"):
        score(draws(1, 4), draws(4))
    with pytest.raises(ValueError, match=r"shape of one member, \(4,\), got \(5,\)"):
        score(draws(3, 4), draws(5))


def test_spread_of_one_member_and_distances_of_nan_are_refused():
    with pytest.raises(ValueError, match="at least 2 members, got 1"):
        spread(draws(1, 4))
    with pytest.raises(ValueError, match="one shape"):
        wasserstein1(draws(3, 2), draws(3, 4))
    with pytest.raises(ValueError, match="finite"):
        wasserstein1(draws(3, 2), draws(3, 2) * np.nan)


def test_rmse_and_bias_over_any_axes():
    x, y = draws(4, 5, 7), draws(5, 7, seed=1)
    error = x.mean(axis=0) - y
    assert rmse(x, y) == pytest.approx(np.sqrt(np.mean(error**2)))
    np.testing.assert_allclose(rmse(x, y, axis=1), np.sqrt(np.mean(error**2, axis=1)))
    # Root mean squares in time, averaged, are smaller than the root of the mean.
    assert rmse(x, y, axis=1).mean() < rmse(x, y)
    assert bias(x + 3, y) == pytest.approx(3 + error.mean())
    np.testing.assert_allclose(bias(x, y, axis=0), error.mean(axis=0))
    with pytest.raises(ValueError, match=r"shape of one member, \(5, 7\), got \(5,\)"):
        rmse(x, y[:, 0])
