"""Positions of floats: exact flows, the distance around a periodic plane, a calibrated ensemble."""

import numpy as np
import pytest

from dynamics.layout import Layout
from sda.verification.positions import carried, position_scores

SIZE, WIDTH = 32, 1000.0
CENTRES = (np.arange(SIZE) + 0.5) * WIDTH / SIZE
LAYOUT = Layout(
    ("psi",),
    24.0,
    {"y": CENTRES, "x": CENTRES},
    {"y": WIDTH, "x": WIDTH},
    {"psi": "m2 s-1", "y": "km", "x": "km"},
    {},
    "hours",
)


def waves(speeds, length=5):
    """Members with a steady shear, whose streamfunction is ψ = (U / k) cos(k y)."""
    k = 2 * np.pi / WIDTH
    psi = np.cos(k * CENTRES)[:, None] * np.ones(SIZE) * 1e3 / k
    x = np.asarray(speeds)[:, None, None, None, None] * psi
    return LAYOUT.to_dataset(np.broadcast_to(x, (len(speeds), length, 1, SIZE, SIZE)))


def test_floats_go_with_the_flow_of_their_member() -> None:
    speeds = [0.1, -0.2, 0.0]
    start = np.array([[250.0, 100.0], [730.0, 990.0], [CENTRES[7], 500.0]])
    got = carried(waves(speeds), start, "psi")
    assert got.shape == (3, 5, 3, 2)
    # u = -∂ψ/∂y = U sin(k y), in m/s: 86.4 km a day.
    u = np.array(speeds)[:, None] * np.sin(2 * np.pi * start[:, 0] / WIDTH)
    expected = (start[:, 1] + 86.4 * 4 * u) % WIDTH
    np.testing.assert_allclose(got[:, -1, :, 0], np.tile(start[:, 0], (3, 1)), atol=1e-6)
    np.testing.assert_allclose(got[:, -1, :, 1], expected, atol=0.5)


def test_scores_are_those_of_distances_around_the_plane() -> None:
    y = np.array([[[500.0, 990.0]]])
    x = np.array([[[[500.0, 20.0]]], [[[500.0, 960.0]]], [[[540.0, 990.0]]]])
    scores = position_scores(x, y, LAYOUT)
    assert scores["distance"].item() == pytest.approx((30 + 30 + 40) / 3)
    assert scores["dispersion"].item() == pytest.approx((60 + 50 + 50) / 3)
    assert scores["energy_score"].item() == pytest.approx(100 / 3 - 160 / 6)
    assert scores["distance"].attrs["units"] == "km"
    with pytest.raises(ValueError, match=r"two members or more.*\(1, 1, 1, 2\)"):
        position_scores(x[:1], y, LAYOUT)
    with pytest.raises(ValueError, match="must have the shape"):
        carried(waves([0.1]), [1.0, 2.0], "psi")


def test_members_of_a_calibrated_ensemble_are_as_far_from_the_truth_as_from_each_other() -> None:
    rng = np.random.default_rng(0)
    pool = 500 + 40 * rng.standard_normal((9, 1, 4000, 2))
    scores = position_scores(pool[1:], pool[0], LAYOUT)
    assert (scores["dispersion"] / scores["distance"]).item() == pytest.approx(1, abs=0.03)
