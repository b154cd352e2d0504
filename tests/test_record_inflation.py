"""Cross-validated variances: what a short record misses, measured and made up for."""

import numpy as np
import pytest
import torch

import sda
from dynamics import Layout
from sda.cf import prepare
from sda.climatology import Climatology
from sda.inflation import cross_validate, groups, inflate

CELLS, OPTIONS = 24, {"kind": "low_rank", "rank": 8, "coupled": 4}
LINE = Layout(variables=("u",), dt=1.0, coords={"x": np.arange(float(CELLS))})
COVARIANCE = np.exp(-np.abs(np.subtract.outer(np.arange(CELLS), np.arange(CELLS))) / 4.0)


def record(length: int, seed: int, members: int = 1) -> np.ndarray:
    """Independent states, so that a record of so many states tells as much as it can."""

    noise = np.random.default_rng(seed).standard_normal((members, length, 1, CELLS))
    return noise @ np.linalg.cholesky(COVARIANCE).T


def energies(climatology: Climatology, states: np.ndarray) -> dict[str, float]:
    """The squares of states in each group of directions, to those expected."""

    covariance = climatology.covariance(1, torch.float64)
    x = climatology.normalise(torch.from_numpy(states[0]))[:, None]
    square = covariance.transform(x).square().mean(0)

    return {
        name: float(square[index].sum() / covariance.eigenvalues[index].sum())
        for name, index in groups(covariance)
    }


def test_inflated_variances_are_those_of_other_years() -> None:
    fresh = record(1000, 99)
    before, after = [], []
    for seed in range(5):
        data = LINE.to_dataset(record(20, seed))
        fitted = Climatology.fit(data, 2, **OPTIONS)
        factors = cross_validate(data, LINE, 10, **OPTIONS)
        assert set(factors) == {"coupled", "own", "rest"}
        before.append(energies(fitted, fresh))
        after.append(energies(inflate(fitted, factors), fresh))
    means = [
        {name: np.mean([e[name] for e in each]) for name in each[0]} for each in (before, after)
    ]
    # What is left by the EOFs that fit best is most in want.
    assert means[0]["rest"] > 3 > means[0]["own"] > 1.15
    for value in means[1].values():
        assert 0.85 < value < 1.15


def test_a_long_record_needs_no_inflation() -> None:
    factors = cross_validate(LINE.to_dataset(record(200, 1, members=20)), LINE, 4, **OPTIONS)
    assert all(1 <= factor < 1.06 for factor in factors.values())


def test_every_block_of_a_covariance_is_inflated_by_its_factor() -> None:
    fitted = Climatology.fit(LINE.to_dataset(record(60, 2)), 2, **OPTIONS)
    factors = {"coupled": 2.0, "own": 3.0, "rest": 5.0}
    covariances = [c.covariance(1, torch.float64) for c in (fitted, inflate(fitted, factors))]
    plain, larger = (c.eigenvalues for c in covariances)
    for name, index in groups(covariances[0]):
        assert torch.allclose(larger[index], factors[name] * plain[index], rtol=1e-5)
    # Without EOFs the states as a whole are, whatever the length of a trajectory.
    dense = Climatology.fit(LINE.to_dataset(record(60, 2)), 2, kind="dense")
    (name,) = cross_validate(LINE.to_dataset(record(60, 2)), LINE, 3, kind="dense")
    twice = inflate(dense, {name: 2.0})
    assert torch.allclose(twice.covariance(3).dense(), dense.covariance(3).dense())
    assert torch.allclose(twice.scale.square(), 2 * dense.scale.square())


def test_the_seasonal_cycle_is_fitted_without_the_year_that_is_left_out(tmp_path) -> None:
    months = np.arange(36)
    rng = np.random.default_rng(4)
    layout = Layout(
        variables=("u",), dt=30.0, coords={"x": np.arange(8.0)}, calendar="360_day",
        time_units="days since 2000-01-16",
    )  # fmt: skip
    season = 5 * np.cos(2 * np.pi * months / 12)[:, None, None]
    x = season + rng.standard_normal((36, 1, 8))
    path = tmp_path / "data.nc"
    layout.to_dataset(x[None], 30.0 * months).isel(member=0).to_netcdf(path)
    prior = sda.GaussianPrior.fit(prepare(path, seasonal=2), 1, kind="dense", folds=3)
    # In sample, five coefficients of 36 months take 5/36 of the variance; of the 24 of two years
    # they take 5/24, and add as much to that of the third: (1 + 5/24) / (1 - 5/24) = 1.53.
    assert prior.info["inflation"]["all"] == pytest.approx(1.53, abs=0.2)
    kept = sda.Prior.load(prior.save(tmp_path / "prior"))
    assert kept.info["inflation"] == prior.info["inflation"]
    plain = sda.GaussianPrior.fit(prepare(path, seasonal=2), 1, kind="dense")
    ratio = (prior.climatology.scale / plain.climatology.scale).square()
    assert torch.allclose(ratio, torch.tensor(prior.info["inflation"]["all"]))


def test_what_cannot_be_cross_validated_is_named() -> None:
    data = LINE.to_dataset(record(20, 0))
    with pytest.raises(ValueError, match="got 1 of 1 members of 20 states"):
        cross_validate(data, LINE, 1)
    with pytest.raises(ValueError, match="got 5 of 3 members"):
        cross_validate(LINE.to_dataset(record(20, 0, 3)), LINE, 5)
    fitted = Climatology.fit(data, 2, **OPTIONS)
    with pytest.raises(ValueError, match=r"groups \['coupled', 'own', 'rest'\], got \['all'\]"):
        inflate(fitted, {"all": 2.0})
    with pytest.raises(ValueError, match="must be positive"):
        inflate(fitted, {"rest": 0.0})
