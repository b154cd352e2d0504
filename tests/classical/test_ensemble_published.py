"""Published scores, on shorter runs: the full ones are configs."""

import pytest
from ensembles import analysis_rmse, published_twins

from sda.classical import ETKF, DEnKF, EnKF, EnKFN, IEnKS

LORENZ96 = [
    (EnKF, {"members": 40, "inflation": 1.06}, 0.22),
    (EnKF, {"members": 28, "inflation": 1.08}, 0.24),
    (DEnKF, {"members": 40, "inflation": 1.01}, 0.18),
    (ETKF, {"members": 24, "inflation": 1.013, "rotation": True}, 0.18),
]
LORENZ63 = [
    (ETKF, {"members": 10, "inflation": 1.02, "rotation": True}, 0.60),
    (EnKF, {"members": 10, "inflation": 1.04}, 0.65),
    (EnKFN, {"members": 10, "rotation": True}, 0.54),
    (IEnKS, {"members": 10, "inflation": 1.02, "rotation": True, "output": "filter"}, 0.31),
]


@pytest.fixture(scope="module")
def lorenz96():
    return published_twins("lorenz96", 400, [0, 1])


@pytest.fixture(scope="module")
def lorenz63():
    return published_twins("lorenz63", 60, range(6))


@pytest.mark.parametrize("kind, arguments, published", LORENZ96)
def test_lorenz96_of_sakov_and_oke(kind, arguments, published, lorenz96) -> None:
    system, *twins = lorenz96
    score, results = analysis_rmse(kind(system, **arguments), *twins, burn_in=10.0)
    assert score == pytest.approx(published, rel=0.12)
    assert [each.attrs["diverged"] for each in results] == [0, 0]


@pytest.mark.parametrize("kind, arguments, published", LORENZ63)
def test_lorenz63_of_sakov_et_al(kind, arguments, published, lorenz63) -> None:
    # 60 cycles of 6 runs vary by some 15 %
    system, *twins = lorenz63
    score, results = analysis_rmse(kind(system, **arguments), *twins, burn_in=4.0)
    assert score == pytest.approx(published, rel=0.35)
    assert not any(each.attrs["diverged"] for each in results)
