"""The benchmark of gross errors: what it plants, scores and finds, on a small sea."""

import numpy as np
import pytest

from dynamics.layout import Layout
from sda.benchmarks.quality import METHODS, analysis, measure, plant, summary
from sda.observing import Stations
from sda.prior import GaussianPrior

SIDE = 8


@pytest.fixture(scope="module")
def data():
    """Travelling waves on a periodic square, as trajectories of a layout in km and hours."""

    axis = 100.0 * np.arange(SIDE)
    layout = Layout(
        ("a",), 6.0, {"y": axis, "x": axis}, {"y": 800.0, "x": 800.0}, {"y": "km", "x": "km"},
        time_units="hours",
    )  # fmt: skip
    rng = np.random.default_rng(0)
    y, x = np.meshgrid(axis, axis, indexing="ij")
    time = np.arange(60)[:, None, None]
    waves = np.zeros((12, 60, 1, SIDE, SIDE))
    for k in ((0, 1), (1, 0), (1, 1), (1, -1)):
        for member in range(12):
            angle = 2 * np.pi * ((k[0] * y + k[1] * x) / 800.0 - 0.03 * time + rng.random())
            waves[member, :, 0] += rng.standard_normal() * np.cos(angle)
    return layout.to_dataset(waves + 0.05 * rng.standard_normal(waves.shape))


def test_control_and_heavy_tails_save_the_analysis_from_gross_errors(data):
    prior = GaussianPrior.fit(data.isel(member=slice(0, 10)), 4)
    observing = {"generator": "stations", "number": 40, "spacing": 0.0, "cluster": 400.0,
                 "std": 0.2, "jitter": 1.0}  # fmt: skip
    truths = [data.isel(member=m, time=slice(0, 4)) for m in (10, 11)]
    results = measure(prior, truths, observing, share=0.05, size=20.0, seed=3)
    assert list(results["method"]) == list(METHODS) * 2
    wide = results.pivot(index="truth", columns="method", values="rmse").mean()
    assert wide["no control"] > 1.5 * wide["clean"]
    assert wide["control"] < 1.2 * wide["clean"]
    assert wide["student_t"] < 1.25 * wide["clean"]
    text = summary(results)
    assert "gross errors" in text and f"{wide['clean']:.4f}" in text

    # The exact mean, against one dense solve.
    clean = Stations(number=5, spacing=0.0, cluster=400.0, std=0.2).observe(truths[0], 1)
    time = truths[0]["time"].values
    likelihood = prior.likelihood(clean, time)
    P = prior.climatology.covariance(4).dense().numpy()
    H = likelihood.columns().flatten(1).double().numpy()
    R = np.diag(likelihood.std.double().numpy() ** 2)
    offset = likelihood.H(likelihood.y.new_zeros(1, 4, 1, SIDE, SIDE))[0].numpy()
    x = P @ H.T @ np.linalg.solve(H @ P @ H.T + R, likelihood.y.numpy() - offset)
    scale = float(prior.climatology.scale[0])
    mean = prior.climatology.mean.numpy() + scale * x.reshape(4, 1, SIDE, SIDE)
    assert analysis(prior, clean, time) == pytest.approx(mean, abs=2e-3)


def test_as_many_errors_are_planted_as_said(data):
    clean = Stations(number=40, spacing=0.0, cluster=400.0, std=0.2).observe(data.isel(member=0), 1)
    bad, wrong = plant(clean, 0.1, 20.0, 5)
    off = (bad.to_table()["observation"] - clean.to_table()["observation"]).abs().to_numpy()
    assert wrong.mean() == pytest.approx(0.1, abs=0.02)
    assert (off[~wrong] == 0).all()
    assert off[wrong].min() >= 0.5 * 20 * 0.2 and off[wrong].max() <= 2 * 20 * 0.2
    assert plant(clean, 0.1, 20.0, 5)[0].hash() == bad.hash()
