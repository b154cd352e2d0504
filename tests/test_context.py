"""Priors that are given something: the exact conditional as an oracle, and what a network adds."""

import numpy as np
import pandas as pd
import pytest
import torch
import xarray as xr

import sda
import sda.store
from dynamics import Layout
from sda import cli
from sda.context import Context
from sda.data import NoiseLevels
from sda.observation import Observations, Select

CELLS, NAMES = 6, ("c", "d")
X = np.arange(float(CELLS))


def dataset(x: np.ndarray, c: np.ndarray, d: np.ndarray | None = None) -> xr.Dataset:
    """States `x` and contexts `c`, `d`, with shape `(member, time, cells)`."""

    names = ("x", *NAMES[: 1 if d is None else 2])
    layout = Layout(variables=names, dt=1.0, coords={"x_": X[: x.shape[-1]]})
    parts = [x, c] if d is None else [x, c, d]

    return layout.to_dataset(np.stack(parts, axis=2).astype(np.float32))


def gaussian(members: int = 40, times: int = 150) -> tuple[xr.Dataset, np.ndarray, np.ndarray]:
    """Independent states and two noisy sums of each, and the exact gain and conditional covariance.

    The sums are constant over the cells, as those of a coarse analysis are over a box.
    """

    rng = np.random.default_rng(0)
    space = 4.0 * np.exp(-np.abs(X[:, None] - X) / 3.0)
    operator = np.stack((np.r_[1, 1, 1, 0, 0, 0], np.r_[0, 0, 0, 1, 1, 1])) / 3
    error = 0.3 * np.eye(2)
    shape = (members, times)
    x = rng.standard_normal((*shape, CELLS)) @ np.linalg.cholesky(space).T
    y = x @ operator.T + rng.standard_normal((*shape, 2)) @ np.sqrt(error)
    gain = space @ operator.T @ np.linalg.inv(operator @ space @ operator.T + error)
    c, d = (np.broadcast_to(y[..., [i]], x.shape) for i in range(2))

    return dataset(5 + x, 2 + c, d), gain, space - gain @ operator @ space


def test_the_regression_is_the_gaussian_conditional() -> None:
    data, gain, covariance = gaussian()
    context = Context.fit(data, NAMES)
    # One EOF of each context: both are constant over the cells.
    assert context.arrays["weights"].shape == (3, 6, CELLS)
    y = np.stack((data["c"].values[0, :, 0] - 2, data["d"].values[0, :, 0]), axis=-1)
    expected = context.expected(context.of(data.isel(member=0)))[:, 0] - 5
    assert np.abs(expected - y @ gain.T).max() < 0.25
    residuals = context.conditioned(data)["x"].values.reshape(-1, CELLS)
    assert np.abs(np.cov(residuals.T) - covariance).max() < 0.1


def test_the_first_and_the_last_states_have_regressions_of_their_own() -> None:
    rng = np.random.default_rng(1)
    x = rng.standard_normal((6, 80, CELLS))
    # The context tells of the state before: that of the last is not known from any.
    late = np.roll(x, 1, axis=1)
    late[:, 0] = rng.standard_normal((6, CELLS))
    data = dataset(x, late)
    residuals = Context.fit(data, ["c"], lags=1).conditioned(data)["x"].values
    assert np.abs(residuals[:, :-1]).max() < 0.1
    assert residuals[:, -1].std() > 0.5
    blind = Context.fit(data, ["c"], lags=0).conditioned(data)["x"].values
    assert blind[:, 1:-1].std() > 0.9


def test_data_are_conditioned_lazily_as_in_memory(tmp_path) -> None:
    data, _, _ = gaussian(4, 20)
    context = Context.fit(data, NAMES)
    eager = context.conditioned(data)
    lazy = context.conditioned(data.chunk(member=1, time=7))
    assert lazy.chunks and not eager.chunks
    xr.testing.assert_allclose(lazy.compute(), eager)
    assert Layout.from_dataset(eager).variables == (*context.layout.variables, *context.channels)
    # Channels are normal, what is expected of the states in the states' own units.
    channels = eager["c"].values, eager["d"].values
    assert all(abs(each.mean()) < 1e-3 and abs(each.std() - 1) < 1e-3 for each in channels)
    scale, mean = context.arrays["state_scale"][0], context.arrays["state_mean"][0]
    given = data["x"].values - eager["x"].values
    assert np.allclose(eager["expected_x"].values * scale + mean, given, atol=1e-4)


def test_the_posterior_of_a_conditioned_prior_is_exact(tmp_path) -> None:
    data, gain, covariance = gaussian(60, 200)
    prior = sda.GaussianPrior.fit(data, 2, context=NAMES, lags=0, name="given")
    truth = data.isel(member=[0], time=slice(10, 14))
    x = truth["x"].values[0]
    seen = np.full((4, 1, CELLS), np.nan)
    seen[:, 0, 4] = x[:, 4] + 0.1
    observations = Observations.from_operator(
        Select(["x"]), seen, 0.5, prior.layout, truth["time"].values
    )
    given = prior.given(truth.drop_vars("x"))
    posterior = sda.assimilate(given, observations, 2000, seed=1, time=truth["time"])

    y = np.stack((truth["c"].values[0, :, 0] - 2, truth["d"].values[0, :, 0]), axis=-1)
    mean = 5 + y @ gain.T
    own = covariance[:, 4] / (covariance[4, 4] + 0.25)
    exact = mean + (seen[:, 0, [4]] - mean[:, [4]]) * own
    std = np.sqrt((covariance - np.outer(own, covariance[4])).diagonal())
    assert np.abs(posterior["x"].values.mean(0) - exact).max() < 0.2
    assert np.allclose(posterior["x"].values.std(0), std, rtol=0.08)

    loaded = sda.Prior.load(prior.save(tmp_path / "prior"))
    assert loaded.hash == prior.hash
    # A longer context, and one on half of the cells that is interpolated, are the same here.
    longer = data.isel(member=0, time=slice(5, 20), x_=[0, 5])[list(NAMES)]
    again = sda.assimilate(loaded.given(longer), observations, 2000, seed=1, time=truth["time"])
    assert np.allclose(again["x"].values, posterior["x"].values, atol=1e-4)
    assert again.attrs["prior_hash"] == posterior.attrs["prior_hash"]
    assert given.hash != prior.given(truth.isel(time=slice(0, 3))).hash


@pytest.fixture(scope="module")
def learned(tmp_path_factory) -> tuple[sda.Prior, xr.Dataset]:
    """A network that is given `c`, and states that are its square: no regression helps."""

    rng = np.random.default_rng(2)
    c = np.repeat(rng.standard_normal((40, 60, 2)), 4, axis=2)
    x = (c**2 - 1) / np.sqrt(2) + 0.3 * rng.standard_normal(c.shape)
    data = Layout(variables=("x", "c"), dt=1.0, coords={"cell": np.arange(8.0)}).to_dataset(
        np.stack((x, c), axis=2).astype(np.float32)
    )
    options = sda.TrainingOptions(
        window=2, network={"name": "gated", "width": 24, "depth": 2}, steps=200, batch=32,
        context=["c"], lags=0, warmup=10, ema=0.9, levels=NoiseLevels((0.3, 10.0), (0.05, 100.0)),
    )  # fmt: skip
    out = tmp_path_factory.mktemp("learned") / "prior"

    return sda.train(data, out, options, device="cpu", progress=False), data


def test_a_network_learns_what_a_regression_leaves(learned) -> None:
    prior, _ = learned
    errors = {row["s"]: row for row in prior.info["denoising_error"]}
    # Of a variance of 1.09, 0.09 is noise.
    for s in (3.0, 10.0):
        assert errors[s]["gaussian"] > 0.6 and errors[s]["network"] < 0.3 * errors[s]["gaussian"]


def test_each_window_of_a_trajectory_has_the_context_of_its_times(learned) -> None:
    prior, data = learned
    truth = data.isel(member=0, time=slice(3, 8))
    given = prior.given(truth)
    channels = torch.from_numpy(prior.context.features(prior.context.of(truth)))
    x = torch.randn(3, 5, 1, 8, generator=torch.Generator().manual_seed(0))
    trajectory = given.trajectory(5, stride=1, gaussian_part=False)
    got = trajectory.denoise(x, 2.0)
    windows = [torch.cat((x[:, i : i + 2], channels[i : i + 2].expand(3, 2, 2, 8)), 2)
               for i in range(4)]  # fmt: skip
    each = [prior.denoiser.denoise(window, 2.0) for window in windows]
    expected = torch.stack((each[0][:, 0], *(e[:, 1] for e in each)), 1)
    assert torch.allclose(got[:, 0], expected[:, 0], atol=1e-6)
    assert torch.allclose(got[:, -1], expected[:, -1], atol=1e-6)
    shorter = given.at(truth["time"][1:4]).trajectory(3, gaussian_part=False)
    assert torch.allclose(shorter.denoise(x[:, 1:4], 2.0)[:, 0], each[1][:, 0], atol=1e-6)


def test_members_follow_the_context_that_they_are_given(learned) -> None:
    prior, data = learned
    truth = data.isel(member=[39], time=slice(0, 6))
    observations = Observations.from_operator(
        Select(["x"], region={"cell": (0, 0)}), truth["x"].values[0, :, None, :1], 5.0,
        prior.layout, truth["time"].values,
    )  # fmt: skip
    posterior = sda.assimilate(prior.given(truth), observations, 16, time=truth["time"])
    clean = (truth["c"].values[0] ** 2 - 1) / np.sqrt(2)
    error = posterior["x"].values.mean(0) - clean
    assert np.sqrt((error**2).mean()) < 0.35 * clean.std()


def test_what_does_not_fit_a_context_is_named(learned, tmp_path) -> None:
    prior, data = learned
    truth = data.isel(member=[0], time=slice(0, 6))
    observations = Observations.from_operator(
        Select(["x"]), truth["x"].values[0][:, None], 1.0, prior.layout, truth["time"].values
    )
    with pytest.raises(ValueError, match=r"conditioned on \['c'\]: give it"):
        sda.assimilate(prior, observations, 2)
    with pytest.raises(ValueError, match="covers the times 0 to 3, the states are at 0 to 5"):
        sda.assimilate(prior.given(truth.isel(time=slice(0, 4))), observations, 2)
    with pytest.raises(ValueError, match="got 40 members"):
        prior.given(data)
    with pytest.raises(ValueError, match=r"lacks \['c'\]"):
        prior.given(truth[["x"]])
    with pytest.raises(ValueError, match="context of 6 states, not of 3"):
        prior.given(truth).trajectory(3)
    plain = sda.GaussianPrior.fit(data, 2)
    with pytest.raises(ValueError, match="takes no context"):
        plain.given(truth)
    with pytest.raises(ValueError, match=r"\['w'\] are not"):
        Context.fit(data, ["w"])
    with pytest.raises(ValueError, match="all variables .* are context"):
        Context.fit(data, ["x", "c"])
    with pytest.raises(ValueError, match="at least 9 states, got 6"):
        Context.fit(truth, ["c"], lags=4)
    with pytest.raises(ValueError, match="do not vary"):
        Context.fit(data.assign(c=0 * data["c"]), ["c"])
    with pytest.raises(ValueError, match="leave out calibrate"):
        sda.TrainingOptions(window=2, context=["c"], calibrate=True)
    options = sda.TrainingOptions(window=2, context=["c"])
    with pytest.raises(ValueError, match="symmetries"):
        sda.train(data, tmp_path / "p", options, symmetries=[sda.Symmetry(flip=["cell"])])


def test_a_conditioned_prior_is_fitted_and_given_its_context_by_commands(tmp_path, capsys) -> None:
    data, _, _ = gaussian(20, 40)
    data.to_zarr(tmp_path / "pairs.zarr", zarr_format=3, consolidated=False)
    truth = data.isel(member=[0], time=slice(0, 8))
    truth[list(NAMES)].to_netcdf(tmp_path / "context.nc")
    truth[["x"]].to_zarr(tmp_path / "truth.zarr", zarr_format=3, consolidated=False)
    table, prior = tmp_path / "stations.csv", tmp_path / "prior"
    pd.DataFrame(
        {"time": truth["time"].values, "x_": 3.0, "variable": "x", "std": 0.1,
         "observation": truth["x"].values[0, :, 3]}
    ).to_csv(table, index=False)  # fmt: skip
    train = ["train", f"data={tmp_path / 'pairs.zarr'}", "network=none", f"out={prior}"]
    train += [
        "training.window=2",
        "training.context=[c,d]",
        "training.climatology={kind: low_rank}",
    ]
    assert cli.main(train) == 0
    analyse = ["assimilate", f"prior={prior}", f"observations={table}", "members=8"]
    analyse += [f"out={tmp_path / 'posterior.zarr'}", "progress=false"]
    assert cli.main([*analyse, f"context={tmp_path / 'context.nc'}"]) == 0
    posterior = sda.store.open_dataset(tmp_path / "posterior.zarr")["x"]
    error = posterior.mean("member") - truth["x"].isel(member=0)
    assert error.isel(x_=3).std() < 0.15 < error.isel(x_=0).std() < 0.8 * truth["x"].std()

    assert cli.main([*analyse, "overwrite=true"]) == 2
    assert "conditioned on ['c', 'd']: give it" in capsys.readouterr().err
    assert cli.main([*train, "folds=3", "overwrite=true"]) == 2
    assert "folds do not go with a context" in capsys.readouterr().err
