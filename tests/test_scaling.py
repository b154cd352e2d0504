"""The scaling benchmark: one size varied at a time, and growth read off as a power."""

import dataclasses

import numpy as np
import pytest

from sda import plotting
from sda.benchmarks.scaling import (
    BASE,
    Measured,
    Size,
    exponent,
    gaussian_prior,
    observed,
    plot,
    sizes,
    table,
)


def test_one_size_at_a_time():
    for value, size in sizes("length", (64, 256)).items():
        assert size == dataclasses.replace(BASE, length=value)
    assert isinstance(sizes("grid", (64,))[64], Size)
    with pytest.raises(ValueError, match="unknown axis 'width': expected one of members"):
        sizes("width", (1,))


def test_growth_is_a_power():
    assert exponent({2: 1.0, 4: 3.0, 8: 24.0}) == pytest.approx(3.0)


def test_the_prior_has_unit_variance_and_its_correlation():
    prior = gaussian_prior(8)
    dense = prior.covariance(4).dense().numpy()
    assert np.allclose(dense.diagonal(), 1, atol=1e-4)
    values = np.prod(prior.layout.shape)
    assert np.allclose(dense[:values, values : 2 * values].diagonal(), 0.6, atol=1e-4)
    assert len(observed(prior, 9, 8)) == 3 * 8
    with pytest.raises(ValueError, match="two times the cells of a square .* got 6"):
        observed(prior, 9, 6)


def test_table_and_figure(tmp_path):
    results = {
        axis: {n: Measured(0.1 * n, 300 << 20, 200 << 20, n << 20) for n in (2, 4)}
        for axis in ("members", "length")
    }
    assert "| members | 4 | 4.0 | 0.4 | 300 | 200 |" in table(results)
    out = plotting.save(plot(results), tmp_path / "scaling.png")
    assert 5_000 < out.stat().st_size < 200_000
