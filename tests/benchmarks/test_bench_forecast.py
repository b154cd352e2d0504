"""The scores of the forecast benchmark, against closed forms and the library's own."""

import numpy as np
import pytest
import scoringrules
import torch

import dynamics
import sda
from sda.benchmarks import forecast as bench
from sda.climatology import Climatology
from sda.prior import Prior


def test_enstrophy_of_a_wave():
    """u = sin(3 y), v = 2 sin(x): vorticity 2 cos(x) − 3 cos(3 y), mean square 2 + 4.5."""

    flow = dynamics.KolmogorovFlow(size=16)
    grid = flow.layout.coords["x"]
    y, x = np.meshgrid(grid, grid, indexing="ij")
    state = np.stack([np.sin(3 * y), 2 * np.sin(x)])[None, None]
    dataset = flow.layout.to_dataset(state)
    assert bench.enstrophy(dataset) == pytest.approx(np.full((1, 1), 3.25), rel=1e-6)


def test_energy_is_by_wavenumber():
    """Twice the amplitude at one wavenumber is four times the energy there, and only there."""

    rng = np.random.default_rng(0)
    y = rng.standard_normal((1, 2, 16, 16))
    h = np.fft.fft2(y)
    k = np.fft.fftfreq(16, 1 / 16)
    shell = np.rint(np.hypot(k[:, None], k)).astype(int)
    x = np.fft.ifft2(np.where(shell == 3, 2 * h, h)).real[None]
    expected = np.ones(7)
    expected[2] = 4
    np.testing.assert_allclose(bench.energy(x, y)[0], expected, rtol=1e-9)


def test_scores_by_lead_and_their_table():
    system = dynamics.LinearGaussian.damped_spring()
    prior = Prior(
        Climatology.from_moments(system.layout, torch.zeros(3), system.trajectory_covariance(4))
    )
    whole = system.simulate(members=7, length=120, spinup=8, seed=0)
    result, truth = whole.isel(member=slice(0, 6)), whole.isel(member=6)
    row = bench.score("lorenz63", 0, "engine", result, truth, prior, 1.0)
    scale = prior.climatology.scale.numpy()
    x, y = system.layout.to_array(result) / scale, system.layout.to_array(truth)[0] / scale
    crps = scoringrules.crps_ensemble(y, np.moveaxis(x, 0, -1), estimator="fair")
    np.testing.assert_allclose(row.crps, crps.mean(axis=-1), rtol=1e-5)
    np.testing.assert_allclose(row.rmse, sda.verification.rmse(x, y, axis=1), rtol=1e-5)
    text = bench.table([row, row])
    assert f"{row.crps[39]:.3f}" in text and "1 truths" in text


def test_persistence_holds_the_last_states():
    system = dynamics.LinearGaussian.damped_spring()
    states = system.simulate(members=3, length=5, seed=0)
    truth = system.simulate(members=1, length=9, seed=1).isel(member=0, time=slice(5, None))
    held = bench.held(states, truth)
    np.testing.assert_array_equal(held["time"], truth["time"])
    array = system.layout.to_array(held)
    assert array.shape == (3, 4, 3)
    np.testing.assert_array_equal(array, system.layout.to_array(states)[:, [-1] * 4])
