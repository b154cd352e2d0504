"""`verify` on what filters give: irregular times, burn-in, backgrounds, divergence, references."""

import numpy as np
import pytest
import torch
import xarray as xr

from dynamics import LinearGaussian, Lorenz63
from sda.observation import Difference, Select, observe
from sda.verification import (
    desroziers,
    expected_coverage,
    innovation_statistics,
    mmd,
    rmse,
    summary,
    variogram_score,
    verify,
    wasserstein1,
)

A = torch.tensor([[0.8, 0.3], [-0.3, 0.8]], dtype=torch.float64)
Q = torch.tensor([[0.5, 0.1], [0.1, 0.3]], dtype=torch.float64)
SYSTEM = LinearGaussian(A, Q)
STD = 0.7


def stack(dataset):
    """(member, time, channel) or (time, channel)."""
    return np.stack([dataset[n].values for n in ("x0", "x1")], axis=-1)


@pytest.fixture(scope="module")
def filtered():
    """An exact Kalman filter: backgrounds and analyses of 30 members at irregular times."""
    truth = SYSTEM.simulate(members=1, length=1200, seed=4, progress=False)
    rng = np.random.default_rng(0)
    analysed = np.sort(rng.choice(np.arange(5, 1200), 500, replace=False))
    observations = observe(truth.isel(member=0), Select(times=analysed), std=STD, seed=1)
    y = observations.sets[0].y.reshape(len(analysed), 2)
    P = SYSTEM.stationary_covariance.numpy()
    a, q, mean = A.numpy(), Q.numpy(), np.zeros(2)
    found = {"background": [], "analysis": []}
    due = dict(zip(analysed.tolist(), y, strict=True))
    for i in range(1200):
        if i:
            mean, P = a @ mean, a @ P @ a.T + q
        if i in due:
            found["background"].append(rng.multivariate_normal(mean, P, 30))
            gain = P @ np.linalg.inv(P + STD**2 * np.eye(2))
            mean, P = mean + gain @ (due[i] - mean), P - gain @ P
            found["analysis"].append(rng.multivariate_normal(mean, P, 30))
    ensembles = {
        name: SYSTEM.layout.to_dataset(
            np.stack(values, axis=1), time=truth["time"].values[analysed]
        )
        for name, values in found.items()
    }

    return truth, observations, ensembles["background"], ensembles["analysis"]


def test_an_exact_filter_is_found_exact(filtered):
    truth, observations, background, analysis = filtered
    scores = verify(analysis, truth, observations, background=background, burn_in=20)
    assert scores["overall_spread_skill"].item() == pytest.approx(1, abs=0.06)
    np.testing.assert_allclose(scores["overall_coverage"], scores["level"], atol=0.04)
    np.testing.assert_allclose(scores["joint_coverage"], scores["level"], atol=0.05)
    assert scores["overall_innovation_mean"].item() == pytest.approx(0, abs=0.1)
    for name in ("innovation_variance", "innovation_chi_square"):
        assert scores[f"overall_{name}"].item() == pytest.approx(1, abs=0.12)
        assert scores[name].dims == ("time",) and np.isfinite(scores[name][-1])
    for name in "RBA":
        assert scores[f"overall_desroziers_{name}"].item() == pytest.approx(1, abs=0.2)
    assert "innovation" in summary(scores) and "Desroziers B" in summary(scores)


def test_scores_of_a_filter_are_those_of_the_formulas(filtered):
    truth, observations, background, analysis = filtered
    scores = verify(analysis, truth, observations, background=background)
    x, y = stack(analysis), stack(truth.isel(member=0).sel(time=analysis["time"]))
    np.testing.assert_allclose(scores["rmse_time"], rmse(x, y, axis=1))
    assert scores["overall_rmse_time"].item() == pytest.approx(rmse(x, y, axis=1).mean())
    assert scores["overall_rmse"].item() == pytest.approx(rmse(x, y).item())
    assert scores["overall_rmse_time"] < scores["overall_rmse"]
    expected = [variogram_score(x[:, i], y[i]) for i in range(len(y))]
    np.testing.assert_allclose(scores["variogram_score"], expected)
    seen = observations.sets[0].y.reshape(-1, 2)
    predicted, analysed = np.moveaxis(stack(background), 0, 1), np.moveaxis(x, 0, 1)
    innovations = innovation_statistics(seen, predicted, STD)
    np.testing.assert_allclose(scores["innovation_chi_square"], innovations.chi_square, rtol=1e-9)
    diagnosed = desroziers(seen, predicted, analysed)
    assert scores["overall_desroziers_R"].item() == pytest.approx(np.mean(diagnosed.R) / STD**2)
    spread = predicted.var(axis=1, ddof=1).mean()
    assert scores["overall_desroziers_B"].item() == pytest.approx(np.mean(diagnosed.B) / spread)
    z = (seen - analysed[:, 3]) / STD
    assert scores["misfit"][3].item() == pytest.approx(np.sqrt(np.mean(z**2)))
    density = -0.5 * np.sum(z**2) - z.size * np.log(STD * np.sqrt(2 * np.pi))
    assert scores["log_likelihood"][3].item() == pytest.approx(density)
    z = (seen - y) / STD
    assert scores["misfit_truth"].item() == pytest.approx(np.sqrt(np.mean(z**2)))


def test_overconfident_backgrounds_are_found(filtered):
    truth, observations, background, analysis = filtered
    mean = background.mean("member")
    narrow = mean + 0.4 * (background - mean)
    scores = verify(analysis, truth, observations, background=narrow)
    assert scores["overall_innovation_chi_square"] > 1.3
    assert scores["overall_desroziers_B"] > 2


def test_a_burn_in_is_left_out_of_averages_but_not_of_times(filtered):
    truth, observations, background, analysis = filtered
    late = analysis.sel(time=slice(analysis["time"][0].item() + 300, None))
    whole = verify(analysis, truth, observations, background=background, burn_in=300)
    after = late["time"].values[0]
    seen = observations.sets[0]
    kept = Select(times=late["time"].values)
    y = seen.y.reshape(-1, 2)[-late.sizes["time"] :]
    from sda import Observations

    observed = Observations.from_operator(kept, y, STD, SYSTEM.layout, late["time"].values)
    alone = verify(late, truth, observed, background=background)
    drawn = ("joint_coverage", "joint_coverage_low", "joint_coverage_high")
    compared = [n for n in alone.data_vars if "time" not in alone[n].dims and n not in drawn]
    assert {"overall_crps", "overall_coverage", "misfit", "increment_ratio"} <= set(compared)
    for name in compared:
        xr.testing.assert_allclose(whole[name], alone[name], rtol=1e-6)
    xr.testing.assert_allclose(whole["crps"].sel(time=slice(after, None)), alone["crps"])
    assert whole.sizes["time"] == 500 and whole.attrs["frames"] == late.sizes["time"]
    assert f"{late.sizes['time']} of 500 times" in summary(whole)
    with pytest.raises(ValueError, match="burn_in=5000 leaves nothing to average"):
        verify(analysis, truth, burn_in=5000)
    with pytest.raises(ValueError, match="non-negative time, got -1"):
        verify(analysis, truth, burn_in=-1)


def test_joint_coverage_is_that_of_many_truths():
    """Times without memory are cases: `verify` and `expected_coverage` see the same."""
    still = LinearGaussian(torch.zeros(2, 2), torch.eye(2))
    rng = np.random.default_rng(0)
    pool = rng.standard_normal((21, 400, 2))
    posterior = still.layout.to_dataset(0.5 * pool[1:])
    truth = still.layout.to_dataset(pool[:1])
    got = verify(posterior, truth)
    ensembles = np.moveaxis(0.5 * pool[1:], 0, 1)
    # Reference points of each time are in the box of that time.
    expected = [
        expected_coverage(ensembles[[i]], pool[0, [i]], got["level"].values) for i in range(400)
    ]
    np.testing.assert_allclose(got["joint_coverage"], np.mean(expected, axis=0), atol=0.03)
    assert got["joint_coverage"].sel(level=0.9) < got["joint_coverage_low"].sel(level=0.9)


def test_divergence_is_reported_and_never_averaged(filtered):
    truth, _, _, analysis = filtered
    broken = analysis.copy(deep=True)
    bad = broken["time"] > 600
    broken = broken.where(~bad).assign_attrs(diverged=1, diverged_time=601.0)
    with pytest.raises(ValueError, match="all 30 members .* the run has diverged at time 601"):
        verify(broken, truth)
    scores = verify(broken.sel(time=slice(None, 600)), truth)
    assert scores.attrs["diverged"] == 1
    assert "diverged at time 601" in summary(scores)


def test_observations_at_other_times_are_named(filtered):
    truth, observations, background, analysis = filtered
    some = analysis.isel(time=slice(None, None, 2))
    with pytest.raises(ValueError, match="need states that the posterior does not have"):
        verify(some, truth, observations)
    with pytest.raises(ValueError, match="give them as well"):
        verify(analysis, truth, background=background)
    with pytest.raises(ValueError, match="the background lacks 250 of the posterior's 500 times"):
        verify(analysis, truth, observations, background=background.isel(time=slice(0, 500, 2)))
    with pytest.raises(ValueError, match="background needs at least 2 members without NaN, got 1"):
        verify(analysis, truth, observations, background=background.isel(member=[0]))
    with pytest.raises(ValueError, match="'member' is missing"):
        verify(analysis, truth, reference=background.isel(member=0))
    with pytest.raises(ValueError, match="times of the posterior must increase"):
        verify(analysis.isel(time=[3, 2, 1]), truth)
    twice = observe(truth.isel(member=0), Difference(), std=STD, seed=1)
    smoothed = truth.isel(member=[0] * 3).assign_coords(member=range(3))
    assert verify(smoothed, truth, twice)["misfit"].shape == (3,)
    with pytest.raises(ValueError, match="see several times at once"):
        verify(smoothed, truth, twice, background=smoothed)


def test_distances_from_a_reference_are_those_of_trajectories():
    data = SYSTEM.simulate(members=40, length=8, seed=1, progress=False)
    posterior, reference = data.isel(member=slice(0, 15)), data.isel(member=slice(15, 39))
    truth = data.isel(member=39)
    scores = verify(posterior, truth, reference=reference)
    a, b = stack(posterior), stack(reference)
    assert scores["w1"].item() == pytest.approx(wasserstein1(a, b), rel=1e-6)
    test = mmd(a, b)
    assert scores["mmd"].item() == pytest.approx(test.mmd, abs=1e-6)
    assert scores["mmd_p_value"].item() == test.p_value > 0.01
    assert scores["mmd_bandwidth"].item() == pytest.approx(test.bandwidth, rel=1e-6)
    shifted = verify(posterior + 3, truth, reference=reference)
    assert shifted["mmd_p_value"] == 1 / 1000
    # Variables of other units are scaled: a unit of its own changes nothing.
    units = [d.copy(deep=True) for d in (posterior, reference, truth)]
    for dataset in units:
        dataset["x1"] = dataset["x1"] * 1000
        dataset["x1"].attrs["units"] = "m"
    other = verify(units[0], units[2], reference=units[1])
    assert "w1" not in other and other["mmd_p_value"] > 0.01
    assert "W1" in summary(scores)


def test_log_dynamics_is_the_density_of_the_transitions():
    data = SYSTEM.simulate(members=4, length=30, seed=2, progress=False)
    posterior, truth = data.isel(member=slice(1, None)), data.isel(member=0)
    scores = verify(posterior, truth, system=SYSTEM)
    x = stack(posterior)[1]
    residual = x[1:] - x[:-1] @ A.numpy().T
    quadratic = np.einsum("ti,ij,tj->", residual, np.linalg.inv(Q.numpy()), residual)
    exact = -0.5 * quadratic - 0.5 * 29 * np.log((2 * np.pi) ** 2 * np.linalg.det(Q.numpy()))
    assert scores["log_dynamics"][1].item() == pytest.approx(exact, rel=1e-4)
    quiet = Lorenz63(dt=0.025, noise=False)
    sure = quiet.simulate(members=3, length=5, seed=0, progress=False)
    assert "log_dynamics" not in verify(sure, sure.isel(member=0), system=quiet)
