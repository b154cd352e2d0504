"""Inflation, relaxation and rotation, against their formulas."""

import numpy as np
import pytest
import torch
from ensembles import values

import sda
from dynamics import Lorenz96
from dynamics.random import member_generator
from sda.classical import ETKF, DEnKF, Draws
from sda.classical.base import Monitor, Noise, Run
from sda.classical.inflation import basis, rotated_basis, rotation
from sda.classical.initial import INITIAL, choose
from sda.observation import Select, Subsample

SYSTEM = Lorenz96(dimension=6)
MEMBERS = 5


def analysis(kind=DEnKF, **options):
    """The background and the analysis of one observation time, `(member, site)`."""

    states = SYSTEM.simulate(MEMBERS, 2, spinup=300, seed=0, progress=False)
    truth = SYSTEM.simulate(1, 2, spinup=300, seed=1, progress=False).isel(member=0)
    operator = Select(times=truth["time"].values[:1].tolist()) >> Subsample(2)
    observations = sda.observe(truth, operator, std=1.0, seed=0)
    x = values(states, SYSTEM)[:, 0].reshape(MEMBERS, 1, 6)
    result = kind(SYSTEM, MEMBERS, **options).assimilate(
        observations, initial=Draws(x), dtype="float64"
    )
    # the draws are the states in another order, the same whatever the method
    chosen = choose(member_generator(0, 0, INITIAL), MEMBERS, MEMBERS)
    return x[chosen, 0], values(result, SYSTEM).reshape(MEMBERS, 6)


def anomalies(x):
    return x - x.mean(0)


@pytest.mark.parametrize("kind", [DEnKF, ETKF])
def test_inflation_and_relaxation_follow_their_formulas(kind) -> None:
    background, plain = analysis(kind)
    b, a = anomalies(background), anomalies(plain)
    sigma_b, sigma_a = b.std(0, ddof=1), a.std(0, ddof=1)
    expected = {
        "inflation": (1.3, 1.3 * a),
        "rtpp": (0.4, 0.6 * a + 0.4 * b),
        "rtps": (0.7, a * (1 + 0.7 * (sigma_b - sigma_a) / sigma_a)),
    }
    for name, (value, answer) in expected.items():
        _, x = analysis(kind, **{name: value})
        np.testing.assert_allclose(x.mean(0), plain.mean(0), atol=1e-9)
        np.testing.assert_allclose(anomalies(x), answer, atol=1e-9)
    _, relaxed = analysis(kind, rtps=1.0)
    np.testing.assert_allclose(relaxed.std(0, ddof=1), sigma_b, atol=1e-9)


@pytest.mark.parametrize("options", [{}, {"inflation": 1.2}, {"rtps": 0.5}, {"rtpp": 0.5}])
def test_a_rotation_keeps_mean_and_covariance(options) -> None:
    _, plain = analysis(ETKF, **options)
    _, rotated = analysis(ETKF, rotation=True, **options)
    assert np.abs(rotated - plain).max() > 0.05
    np.testing.assert_allclose(rotated.mean(0), plain.mean(0), atol=1e-9)
    np.testing.assert_allclose(np.cov(rotated.T), np.cov(plain.T), atol=1e-9)


def run(seeds, dtype=torch.float64):
    noise = Noise(seeds, dtype, "cpu")
    return Run(SYSTEM, [], np.zeros(1), noise, list(seeds), Monitor(len(seeds)))


def test_rotations_are_orthogonal_and_uniform() -> None:
    many = run(range(100))
    sample = torch.cat([rotation(many, MEMBERS) for _ in range(70)])
    eye, ones = torch.eye(MEMBERS, dtype=torch.float64), torch.ones(MEMBERS, dtype=torch.float64)
    torch.testing.assert_close(sample @ sample.transpose(1, 2), eye.expand_as(sample))
    torch.testing.assert_close(sample @ ones, ones.expand(len(sample), -1))
    B = basis(MEMBERS, torch.float64, torch.device("cpu"))
    torch.testing.assert_close(B.T @ B, torch.eye(MEMBERS - 1, dtype=torch.float64))
    # Entries of a uniform orthogonal n x n matrix: mean 0, variance 1/n, fourth moment 3/(n (n+2)),
    # and the trace has variance 1.
    inner, n = B.T @ sample @ B, MEMBERS - 1
    slack = 5 / np.sqrt(len(sample))
    assert float(inner.mean(0).abs().max()) < slack / np.sqrt(n)
    assert abs(float(inner.square().mean()) - 1 / n) < 1e-9
    assert abs(float(inner.pow(4).mean()) * n * (n + 2) / 3 - 1) < slack
    trace = inner.diagonal(dim1=1, dim2=2).sum(1)
    assert abs(float(trace.mean())) < slack and abs(float(trace.square().mean()) - 1) < 3 * slack


def test_a_repetitions_rotations_are_its_own() -> None:
    together = run([3, 4, 5])
    alone = run([4])
    for _ in range(70):  # more than are drawn ahead at once
        torch.testing.assert_close(
            rotated_basis(together, 30)[1:2], rotated_basis(alone, 30), atol=1e-9, rtol=0
        )
