"""The benchmarks' oracles and tables, at a small size."""

import pytest
import torch

from sda.benchmarks import lorenz63


def test_oracle_agrees_with_itself_and_is_kept(tmp_path):
    exact = lorenz63.oracle("lo", 0, tmp_path, particles=2**14)
    assert exact.reference.shape == (1024, 65, 3)
    assert abs(exact.log_evidence[0] - exact.log_evidence[1]) < 1.5
    assert len(list(tmp_path.iterdir())) == 1
    again = lorenz63.oracle("lo", 0, tmp_path, particles=2**14)
    torch.testing.assert_close(again.exact, exact.exact)

    # 192 standard normal increments: the expectation of log p(x) under the prior is 82.
    row = lorenz63.score("lo", 0, "exact", exact.exact[:64], exact, exact.floor(64))
    assert row.ratio == pytest.approx(1, abs=0.3)
    assert row.log_dynamics == pytest.approx(82, abs=6)
    assert "| lo | exact |" in lorenz63.table([row])


def test_wing_weights_of_mirror_images_are_equal():
    x = torch.ones(4, 65, 3)
    x[2:, :, :2] *= -1
    assert lorenz63.wing_weights(x) == {(True,) * 5: 0.5, (False,) * 5: 0.5}


def test_unknown_names_are_refused():
    with pytest.raises(ValueError, match="unknown case 'low'"):
        lorenz63.twin("low", 0)
    with pytest.raises(ValueError, match="unknown methods"):
        lorenz63.run("lo", None, ["best"])
