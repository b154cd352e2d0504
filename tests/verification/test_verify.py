"""`verify`: against direct formulas, in any blocks, and with clear errors."""

import dataclasses

import numpy as np
import pytest
import scores as reference
import torch
import xarray as xr

from dynamics.layout import Layout
from dynamics.lorenz63 import Lorenz63
from sda.verification import crps, energy_score, spectrum, summary, verify

SIZE = 8
LAYOUT = Layout(
    variables=("u", "v"),
    dt=0.5,
    coords={d: (np.arange(SIZE) + 0.5) * 2 * np.pi / SIZE for d in ("y", "x")},
    period={"y": 2 * np.pi, "x": 2 * np.pi},
)


def ensemble(members=12, length=6, seed=0, layout=LAYOUT):
    """A calibrated posterior and its truth: exchangeable draws about a common mean."""
    rng = np.random.default_rng(seed)
    common = rng.standard_normal((1, length, *layout.shape))
    pool = common + 0.5 * rng.standard_normal((members + 1, length, *layout.shape))
    return layout.to_dataset(pool[1:]), layout.to_dataset(pool[:1])


@pytest.fixture(scope="module")
def case():
    posterior, truth = ensemble()
    return posterior, truth, verify(posterior, truth)


def test_scores_are_those_of_the_formulas(case):
    posterior, truth, scores = case
    for name in ("u", "v"):
        x, y = posterior[name], truth[name].isel(member=0)
        mean, at = x.mean("member"), scores.sel(variable=name)
        np.testing.assert_allclose(
            at["rmse"], reference.continuous.rmse(mean, y, preserve_dims="time"), rtol=1e-12
        )
        np.testing.assert_allclose(
            at["rmse_by_variable"], reference.continuous.rmse(mean, y), rtol=1e-12
        )
        np.testing.assert_allclose(at["bias"], (mean - y).mean(["y", "x"]), rtol=1e-9)
        np.testing.assert_allclose(
            at["spread_by_variable"], np.sqrt(x.var("member", ddof=1).mean()), rtol=1e-12
        )
        for key, method in (("crps", "fair"), ("crps_plain", "ecdf")):
            expected = reference.probability.crps_for_ensemble(
                x, y, "member", method=method, preserve_dims="time"
            )
            np.testing.assert_allclose(at[key], expected, rtol=1e-9)
        expected = np.sqrt(13 / 12) * at["spread_by_variable"] / at["rmse_by_variable"]
        np.testing.assert_allclose(at["spread_skill_by_variable"], expected, rtol=1e-9)
        np.testing.assert_allclose(at["rank_histogram"].sum("rank"), 1)
        expected = spectrum(x.values, (2, 3)).mean(axis=(0, 1))
        np.testing.assert_allclose(at["spectrum"].mean("member"), expected, rtol=1e-9)
    x, y = LAYOUT.to_array(posterior), LAYOUT.to_array(truth)[0]
    assert scores["energy_score"][2].item() == pytest.approx(energy_score(x[:, 2], y[2]))
    assert scores["overall_crps"].item() == pytest.approx(crps(x, y).mean())
    assert scores["overall_rmse"].item() == pytest.approx(
        np.sqrt(((x.mean(axis=0) - y) ** 2).mean())
    )


def test_a_calibrated_ensemble_is_found_calibrated():
    scores = verify(*ensemble(members=30, length=40))
    assert scores["overall_spread_skill"].item() == pytest.approx(1, abs=0.05)
    np.testing.assert_allclose(scores["overall_coverage"], scores["level"], atol=0.03)
    assert scores["overall_rank_reliability"].item() < 0.1
    np.testing.assert_allclose(scores["increment_ratio"], 1, atol=0.05)
    np.testing.assert_allclose(scores["energy_ratio"][:4], 1, atol=0.3)


def test_an_overconfident_ensemble_is_found_outside_the_bands():
    posterior, truth = ensemble(members=30)
    mean = posterior.mean("member")
    scores = verify(mean + 0.5 * (posterior - mean), truth)
    assert scores["overall_spread_skill"] < scores["overall_spread_skill_low"]
    assert scores["overall_rank_reliability"] > scores["overall_rank_reliability_high"]
    assert (scores["overall_coverage"] < scores["overall_coverage_low"]).all()


def test_blocks_do_not_change_scores(case, monkeypatch):
    posterior, truth, scores = case
    lazy = posterior.chunk(member=5, time=2)
    monkeypatch.setattr("sda.verification.task.FRAME_VALUES", 1)
    small = verify(lazy, truth, memory=posterior.nbytes // 5)
    assert all(lazy[name].chunks for name in lazy)
    # Reference points are drawn for each part, whose size is the same on any machine.
    drawn = [name for name in scores.data_vars if str(name).startswith("joint_coverage")]
    xr.testing.assert_allclose(small.drop_vars(drawn), scores.drop_vars(drawn), rtol=1e-9)


def test_a_lazy_posterior_stays_lazy(case):
    posterior, truth, scores = case
    lazy = posterior.chunk(member=5)
    xr.testing.assert_identical(verify(lazy, truth), scores)
    assert all(lazy[name].chunks for name in lazy)


def test_seeded_ties_do_not_depend_on_memory():
    posterior, truth = (np.round(dataset) for dataset in ensemble())
    whole, small = verify(posterior, truth), verify(posterior.chunk(time=1), truth, memory=1)
    xr.testing.assert_identical(whole["rank_histogram"], small["rank_histogram"])


def test_failed_members_are_left_out_and_counted(case):
    posterior, truth, _ = case
    broken = posterior.copy(deep=True)
    broken["v"][3, 2, 1, 0] = np.nan
    broken["u"][7] = np.inf
    scores = verify(broken, truth)
    assert scores.attrs["members"] == 10 and scores.attrs["failed_members"] == 2
    assert scores["member"][scores["failed"]].values.tolist() == [3, 7]
    kept = verify(posterior.drop_sel(member=[3, 7]), truth)
    for name in ("rmse", "crps", "coverage", "rank_histogram", "spectrum_ratio"):
        xr.testing.assert_allclose(scores[name], kept[name])
    assert "2 more failed" in summary(scores)
    with pytest.raises(ValueError, match="all 12 members have NaN"):
        verify(posterior * np.nan, truth)


def test_an_unknown_truth_is_not_scored(case):
    posterior, truth, scores = case
    masked = truth.where(truth["x"] > 1)
    got = verify(posterior, masked)
    half = verify(
        posterior.where(posterior["x"] > 1, drop=True), truth.where(truth["x"] > 1, drop=True)
    )
    for name in ("rmse", "crps", "coverage", "energy_score", "overall_spread_skill"):
        xr.testing.assert_allclose(got[name], half[name])
    assert got.attrs["failed_members"] == 0


def test_ensemble_and_truth_may_be_of_several_grids_and_kinds():
    """A profile and a surface, integers, transposed: the same scores in slabs and as a whole."""
    rng = np.random.default_rng(0)

    def states(members):
        return xr.Dataset(
            {
                "q": (("member", "time", "z", "x"), rng.integers(-9, 9, (members, 3, 4, 5))),
                "p": (
                    ("member", "time", "x"),
                    rng.standard_normal((members, 3, 5)),
                    {"units": "Pa"},
                ),
            },
            {"time": [0.0, 1.0, 4.0]},
        )

    posterior, truth = states(6), states(1)
    scores = verify(posterior, truth)
    moved = verify(posterior.transpose("x", "time", "z", "member"), truth)
    for name in ("rmse_by_variable", "crps_by_variable", "coverage", "increment_ratio"):
        xr.testing.assert_allclose(scores[name], moved[name], atol=0.02)
    x, y = posterior["q"].values, truth["q"].values[0]
    assert scores["crps_by_variable"].sel(variable="q").item() == pytest.approx(crps(x, y).mean())
    assert "spectrum" not in scores and "energy_score" not in scores


def test_weights_are_those_of_the_mean(case):
    posterior, truth, _ = case
    weights = xr.DataArray(np.arange(1.0, SIZE + 1), dims="y")
    scores = verify(posterior, truth, weights=weights)
    error = (posterior["u"].mean("member") - truth["u"].isel(member=0)) ** 2
    np.testing.assert_allclose(
        scores["rmse"].sel(variable="u"), np.sqrt(error.weighted(weights).mean(["y", "x"]))
    )
    with pytest.raises(ValueError, match="weights must have dimensions among"):
        verify(posterior, truth, weights=weights.rename(y="latitude"))


def test_the_posterior_times_are_selected_from_the_truth(case):
    posterior, truth, _ = case
    later = posterior.isel(time=slice(2, 5))
    scores = verify(later, truth)
    xr.testing.assert_allclose(scores["rmse"], verify(later, truth.isel(time=slice(2, 5)))["rmse"])


def test_variables_of_other_units_are_not_added(case):
    posterior, truth, _ = case
    layout = dataclasses.replace(LAYOUT, units={"u": "m s-1", "v": "K"})
    posterior = layout.to_dataset(LAYOUT.to_array(posterior))
    scores = verify(posterior, truth)
    assert "overall_rmse" not in scores and "energy_score" not in scores
    assert "overall_spread_skill" in scores and "rmse_by_variable" in scores
    assert "spread–skill" in summary(scores)


@dataclasses.dataclass
class PointLikelihood:
    """The first value of every frame, seen with standard deviation 0.5."""

    y: torch.Tensor
    std: torch.Tensor

    def H(self, x):
        return x[:, :, 0, 0, 0]


class PointObservations:
    def __init__(self, y):
        self.y = torch.as_tensor(y)

    def likelihood(self, layout, time):
        assert layout.variables == ("u", "v") and len(time) == len(self.y)
        return PointLikelihood(self.y, torch.full_like(self.y, 0.5))


def test_misfit_of_the_truth_is_one():
    posterior, truth = ensemble(members=8, length=400)
    u = truth["u"].values[0, :, 0, 0]
    y = u + 0.5 * np.random.default_rng(5).standard_normal(400)
    scores = verify(posterior, truth, PointObservations(y))
    assert scores["misfit_truth"].item() == pytest.approx(1, abs=3 / np.sqrt(800))
    expected = np.sqrt(np.mean(((y - posterior["u"].values[3, :, 0, 0]) / 0.5) ** 2))
    assert scores["misfit"][3].item() == pytest.approx(expected)
    assert "misfit" in summary(scores)


def test_consistency_is_zero_for_the_systems_own_trajectories():
    system = Lorenz63(dt=0.025, noise=False)
    x = system.rollout(system.initial(6, dtype=torch.float64), 20)
    posterior = system.layout.to_dataset(x[1:])
    truth = system.layout.to_dataset(x[:1])
    scores = verify(posterior, truth, system=system)
    assert scores["overall_consistency"] < 1e-4 and scores["consistency_truth"] < 1e-4
    # A frozen trajectory errs by its whole increment, a rough one by more.
    frozen = posterior.isel(time=[5] * 20).assign_coords(time=posterior["time"])
    steps = system.step(x[1:, 5]) - x[1:, 5]
    expected = np.sqrt((steps**2).mean().item() / np.mean(np.diff(x[0], axis=0) ** 2))
    got = verify(frozen, truth, system=system)["overall_consistency"].item()
    assert got == pytest.approx(expected, rel=1e-4)
    with pytest.raises(ValueError, match="0.025 apart"):
        verify(posterior.isel(time=slice(None, None, 2)), truth, system=system)


def test_one_member_has_the_scores_of_an_analysis_only(case):
    posterior, truth, _ = case
    analysis = posterior.isel(member=[0])
    with pytest.raises(ValueError, match="at least 2 members without NaN, got 1"):
        verify(analysis, truth, ensemble=True)
    scores = verify(analysis, truth)
    assert "rmse" in scores and "crps" not in scores and "coverage" not in scores
    # The plain CRPS of one member is its mean absolute error.
    error = np.abs(analysis["u"] - truth["u"]).mean().item()
    assert scores["crps_plain_by_variable"].sel(variable="u").item() == pytest.approx(error)
    assert "RMSE" in summary(scores)
    xr.testing.assert_identical(scores, verify(analysis, truth, ensemble=False))


def test_what_does_not_fit_is_named(case):
    posterior, truth, _ = case
    other = truth.assign_coords(time=truth["time"] + 0.1)
    with pytest.raises(ValueError, match="lacks 6 of the posterior's 6 times, the first at 0.0"):
        verify(posterior, other)
    with pytest.raises(ValueError, match="same grid, but 'x' is 8 values"):
        verify(posterior, truth.assign_coords(x=truth["x"] + 0.3))
    with pytest.raises(ValueError, match="truth has no variables \\['v'\\]"):
        verify(posterior, truth.drop_vars("v"))
    with pytest.raises(ValueError, match="truth must be one member, got 12"):
        verify(posterior, posterior)
    with pytest.raises(ValueError, match="'member' is missing"):
        verify(posterior.isel(member=0), truth)
    with pytest.raises(ValueError, match="count time alike"):
        verify(posterior, truth.assign_coords(time=np.arange(6).astype("datetime64[s]")))
    for dim in ("member", "time"):
        with pytest.raises(ValueError, match=f"posterior is empty, with no {dim}"):
            verify(posterior.isel({dim: []}), truth)
    assert "u" in verify(posterior, truth.drop_vars("v"), variables=["u"])["variable"]


def test_scores_survive_a_file(case, tmp_path):
    case[2].to_netcdf(tmp_path / "scores.nc")
    again = xr.open_dataset(tmp_path / "scores.nc")
    xr.testing.assert_equal(again, case[2])
    assert summary(again) == summary(case[2])


def test_summary_is_a_table(case):
    lines = summary(case[2]).splitlines()
    assert lines[0].split() == ["u", "v", "all"]
    assert any(line.startswith("CRPS (fair)") for line in lines)
    assert lines[-1] == "12 members, 6 times"


def test_observations_are_scored_as_they_were_made():
    from sda.observation import BlockAverage, Select, observe

    posterior, truth = ensemble(members=4, length=8)
    seen = observe(truth.isel(member=0), Select(every=2) >> BlockAverage(2), std=0.3, seed=0)
    scores = verify(posterior, truth, seen)
    coarse = posterior.isel(time=slice(None, None, 2)).coarsen(y=2, x=2).mean()
    error = (seen.to_dataset()[["u", "v"]] - coarse) / 0.3
    expected = np.sqrt((error**2).to_dataarray().mean(["variable", "time", "y", "x"]))
    np.testing.assert_allclose(scores["misfit"], expected, rtol=1e-5)
    assert scores["misfit_truth"].item() == pytest.approx(1, abs=3 / np.sqrt(2 * len(seen)))
