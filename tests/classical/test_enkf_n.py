"""The EnKF-N: inflation that follows from the innovations."""

import math

import numpy as np
import pytest
import torch
from ensembles import analysis_rmse, linear_twin, published_twins, values

from dynamics import LinearGaussian
from sda.classical import ETKF, EnKFN
from sda.classical.enkf_n import adaptive_inflation


def dual(S, d, log_square):
    """The dual cost with a plain inverse in place of eigenvalues, up to a constant."""

    members, ridge = S.shape[0], S.shape[0] - 1
    square = math.exp(log_square)
    epsilon, c = 1 + 1 / members, members / ridge
    weight = np.trace(np.linalg.inv(S @ S.T / ridge + np.eye(members))) / members
    m = math.sqrt((epsilon / c) ** weight)
    fit = d @ np.linalg.inv(square * S.T @ S + ridge * np.eye(len(d))) @ d
    return fit + epsilon / m / square + c * m * log_square


@pytest.mark.parametrize("shape", [(5, 3), (5, 12), (8, 8)])
def test_the_inflation_minimises_the_dual_cost(shape) -> None:
    rng = np.random.default_rng(shape[1])
    grid = np.linspace(-3, 9, 24001)
    for size in (0.3, 1.0, 6.0):
        S = rng.standard_normal(shape)
        S, d = S - S.mean(0), size * rng.standard_normal(shape[1])
        best = grid[np.argmin([dual(S, d, point) for point in grid[::40]]) * 40]
        near = np.linspace(best - 0.05, best + 0.05, 2001)
        best = near[np.argmin([dual(S, d, point) for point in near])]
        found = adaptive_inflation(torch.from_numpy(S)[None], torch.from_numpy(d)[None, None])
        assert 2 * math.log(float(found)) == pytest.approx(best, abs=2e-4)


def test_inflation_grows_with_the_innovation_and_vanishes_without_information() -> None:
    S = torch.randn(1, 10, 4, dtype=torch.float64, generator=torch.Generator().manual_seed(0))
    S = S - S.mean(1, keepdim=True)
    factors = [float(adaptive_inflation(S, torch.full((1, 1, 4), v).double())) for v in (0, 3, 9)]
    assert factors[0] < factors[1] < factors[2] and factors[2] > 1.3
    nothing = adaptive_inflation(1e-6 * S, torch.ones(1, 1, 4).double())
    assert float(nothing) == pytest.approx(1, abs=1e-3)


def test_a_large_ensemble_is_that_of_the_etkf() -> None:
    truth, observations, initial = linear_twin(6)
    system = LinearGaussian.rotation()
    options = {"initial": initial, "time": truth["time"], "dtype": "float64"}
    distances = []
    for members in (20, 2000):
        a, b = (
            values(kind(system, members).assimilate(observations, 1, **options))
            for kind in (EnKFN, ETKF)
        )
        distances.append(np.abs(a - b).max())
    assert distances[1] < 0.02 and distances[1] < distances[0] / 10


def test_a_small_ensemble_survives_without_inflation() -> None:
    system, truths, observations, initial = published_twins("lorenz96", 400, [0, 1])
    given = truths, observations, initial, 10.0
    adaptive, _ = analysis_rmse(EnKFN(system, 20, rotation=True), *given)
    with pytest.warns(RuntimeWarning, match="ETKF diverged"):
        plain, _ = analysis_rmse(ETKF(system, 20, rotation=True), *given)
    assert adaptive < 0.3 and plain > 1


def test_certainty_must_be_positive() -> None:
    with pytest.raises(ValueError, match="certainty of EnKFN must be positive, got 0"):
        EnKFN(LinearGaussian.rotation(), 5, certainty=0)
