"""Forecasts: exact for Gaussian systems at every lead, the same however they were run."""

import math

import numpy as np
import pytest
import torch
import xarray as xr

import dynamics
import sda
import sda.conditional
import sda.long_members
import sda.long_plan
import sda.store
from sda.climatology import Climatology
from sda.conditional import ConditionalDenoiser, Continuation
from sda.fidelity import affine_moments
from sda.forecast_blocks import block_of_time
from sda.observation import Select, observe
from sda.prior import GaussianPrior, Prior
from sda.sampling import SAMPLERS, MemberNoise, integrate
from tests.oracles import kalman_smoother

WINDOW = 8


@pytest.fixture(scope="module")
def system():
    return dynamics.LinearGaussian.damped_spring()


@pytest.fixture(scope="module")
def prior(system):
    return Prior(
        Climatology.from_moments(
            system.layout, torch.zeros(3), system.trajectory_covariance(WINDOW)
        )
    )


@pytest.fixture(scope="module")
def initial(system):
    return system.simulate(members=3, length=12, spinup=8, seed=4)


def residual(system):
    """The covariance of a step's noise."""
    return system.stationary_covariance - system.A @ system.stationary_covariance @ system.A.T


def block_map(prior, tail, frames):
    """The sampler's map from a tail to a block, exactly: a matrix, and the covariance of the rest.

    The sampler is affine in the tail and in its start.
    """

    later = Continuation(prior, tail, frames, dtype=torch.float64)
    n, f = tail * 3, frames * 3
    levels = {name: later.options[name] for name in ("steps", "s_max", "s_min")}
    noise = MemberNoise(0, [0], dtype=torch.float64)
    tails = torch.eye(n, dtype=torch.float64).reshape(n, tail, 3)
    denoiser = ConditionalDenoiser(later.denoiser, later.complement, tails, noise)
    sampler = SAMPLERS["xeab"](sda.sampling.log_levels(**levels))
    matrix = integrate(denoiser, denoiser.mean, sampler).flatten(1).T
    still = torch.zeros(f + 1, tail, 3, dtype=torch.float64)
    denoiser = ConditionalDenoiser(later.denoiser, later.complement, still, noise)
    start = later.complement.covariance.dense()
    start = start + levels["s_max"] ** 2 * torch.eye(f, dtype=torch.float64)
    mean, rest = affine_moments(
        denoiser, torch.zeros(f, dtype=torch.float64), start, (frames, 3), torch.float64, **levels
    )
    assert mean.abs().max() < 1e-9

    return matrix, rest


@pytest.mark.parametrize(("tail", "frames"), [(7, 1), (6, 2), (2, 6), (1, 7)])
def test_many_blocks_are_exact(system, prior, tail, frames):
    """Mean, covariance and covariance between leads after 30 blocks, from an uncertain start."""

    A = system.A.double()
    scale = prior.climatology.scale.double()
    A = A * scale / scale[:, None]
    stationary = system.stationary_covariance / scale / scale[:, None]
    Q = stationary - A @ stationary @ A.T
    matrix, rest = block_map(prior, tail, frames)
    # The tail is stationary, but its last state has been seen.
    joint = prior.climatology.covariance(tail, torch.float64).dense()
    H = torch.zeros(1, tail * 3, dtype=torch.float64)
    H[0, -3] = 1
    gain = joint @ H.T / (H @ joint @ H.T + 0.1**2)
    mean, covariance = (gain * 1.5)[:, 0], joint - gain @ H @ joint
    # The exact prediction needs the last state alone.
    exact_mean, exact = mean[-3:], covariance[-3:, -3:]
    last = None
    for _ in range(30):
        grown = torch.cat((torch.eye(tail * 3, dtype=torch.float64), matrix))
        mean, covariance = grown @ mean, grown @ covariance @ grown.T
        covariance[tail * 3 :, tail * 3 :] += rest
        for i in range(tail, tail + frames):
            state = slice(3 * i, 3 * i + 3)
            before, exact_mean = exact, A @ exact_mean
            lag, exact = A @ before, A @ before @ A.T + Q
            std = exact.diagonal().sqrt()
            assert ((mean[state] - exact_mean) / std).abs().max() < 0.01
            ratio = covariance[state, state].diagonal().sqrt() / std
            assert 0.98 < ratio.min() and ratio.max() < 1.02
            ago = slice(3 * i - 3, 3 * i)
            error = (covariance[state, ago] - lag) / std[:, None] / before.diagonal().sqrt()
            assert last is None or error.abs().max() < 0.02
            last = i
        mean, covariance = mean[-tail * 3 :], covariance[-tail * 3 :, -tail * 3 :]


def test_ensemble_is_the_exact_prediction(system, prior, initial):
    """The engine itself, from three states, each continued by a third of the members."""

    lead, members = 15, 900
    result = sda.forecast(prior, initial, lead, members=members, seed=1)
    assert result["time"].values == pytest.approx(12 * 0.1 + 0.1 * np.arange(lead))
    x = system.layout.to_array(result).astype(np.float64)
    first = system.layout.to_array(initial)[:, -1].astype(np.float64)
    A, exact = system.A.numpy(), np.zeros((3, 3))
    Q = (
        system.stationary_covariance - system.A @ system.stationary_covariance @ system.A.T
    ).numpy()
    mean = first.T
    for i in range(lead):
        mean, exact = A @ mean, A @ exact @ A.T + Q
        std = np.sqrt(np.diag(exact))
        for m in range(3):
            own = x[m::3, i]
            error = (own.mean(0) - mean[:, m]) / std
            assert np.abs(error).max() < 5 / math.sqrt(len(own))
            ratio = own.std(0, ddof=1) / std
            assert np.abs(ratio - 1).max() < 5 / math.sqrt(2 * len(own))


def test_forecast_from_observations_is_the_kalman_prediction(system, prior):
    """Short leads are sampled with the analysis, longer ones go on from there."""

    truth = system.simulate(members=1, length=11, spinup=8, seed=9).isel(member=0)
    observations = observe(truth, Select(variables=["position"], every=2), std=0.1, seed=1)
    lead, members = 7, 800
    A, Q, H = system.A.numpy(), residual(system).numpy(), np.array([[1.0, 0.0, 0.0]])
    seen = observations.likelihood(system.layout, truth["time"].values).y.double().numpy()
    y = [seen[[i // 2]] if i % 2 == 0 else None for i in range(11)]
    P, R = system.stationary_covariance.numpy(), np.array([[0.1**2]])
    means, covariances, _ = kalman_smoother(A, Q, P, [H] * 11, [R] * 11, y)
    mean, exact = means[-1], covariances[-1]
    for short in (2, lead):
        result = sda.assimilate(
            prior, observations, members, 3, task="forecast", lead=short, guidance="static",
            langevin=None,
        )  # fmt: skip
        assert result["time"].values == pytest.approx(1.1 + 0.1 * np.arange(short))
        x = system.layout.to_array(result).astype(np.float64)
        m, c = mean, exact
        for i in range(short):
            m, c = A @ m, A @ c @ A.T + Q
            std = np.sqrt(np.diag(c))
            assert np.abs((x[:, i].mean(0) - m) / std).max() < 0.01 + 4.5 / math.sqrt(members)
            assert np.abs(x[:, i].std(0) / std - 1).max() < 0.01 + 4.5 / math.sqrt(2 * members)


def test_an_analysis_in_blocks_of_time_is_overwritten(system, prior, tmp_path, monkeypatch):
    """Its state on disk, which an interruption has left, is begun again if so wished."""

    truth = system.simulate(members=1, length=40, spinup=8, seed=9).isel(member=0)
    observations = observe(truth, Select(variables=["position"], every=2), std=0.1, seed=1)
    options = {
        "task": "forecast", "lead": 3, "members": 2, "frames": 20, "steps": 2,
        "guidance": "static", "langevin": None, "out": tmp_path / "forecast.zarr",
    }  # fmt: skip
    # Shorter than the system's correlations, whose halo would be wider than the trajectory.
    monkeypatch.setattr(sda.long_plan, "halo_of", lambda prior: 16)
    seen = []
    run = sda.long_members.Members.run

    def interrupted(self, level):
        seen.append(level)
        if level == 1:
            raise KeyboardInterrupt
        run(self, level)

    with monkeypatch.context() as patch:
        patch.setattr(sda.long_members.Members, "run", interrupted)
        with pytest.raises(KeyboardInterrupt):
            sda.assimilate(prior, observations, **options)
    assert seen == [-1, 0, 1]
    with pytest.raises(FileExistsError, match="overwrite=true"):
        sda.assimilate(prior, observations, seed=1, **options)
    again = sda.assimilate(prior, observations, seed=1, overwrite=True, **options)
    assert again.attrs["status"] == "complete"
    names = sorted(path.name for path in tmp_path.iterdir())
    assert names == ["forecast-analysis.zarr", "forecast.zarr"]


@pytest.mark.parametrize("stage", ["analysis", "forecast"])
def test_a_forecast_that_was_to_replace_another_is_resumed(
    system, prior, tmp_path, monkeypatch, stage
):
    """What stands there until its first members are done does not count as other settings."""

    truth = system.simulate(members=1, length=12, spinup=8, seed=9).isel(member=0)
    observations = observe(truth, Select(variables=["position"], every=2), std=0.1, seed=1)
    options = {"task": "forecast", "lead": 12, "members": 2, "steps": 2, "guidance": "static"}
    out = tmp_path / "forecast.zarr"
    old = sda.assimilate(prior, observations, seed=1, out=out, **options).load()

    def killed(*arguments, **more):
        raise KeyboardInterrupt

    place = (sda.sampling, "integrate") if stage == "analysis" else (Continuation, "sample")
    with monkeypatch.context() as patch:
        patch.setattr(*place, killed)
        for choice in ({"overwrite": True}, {"resume": True}):
            with pytest.raises(KeyboardInterrupt):
                sda.assimilate(prior, observations, seed=2, out=out, **options, **choice)
    assert old.drop_attrs().equals(sda.store.open_dataset(out).load().drop_attrs())
    with pytest.raises(ValueError, match="unknown guidance"):
        sda.assimilate(
            prior, observations, out=tmp_path / "forecast.zarr", overwrite=True,
            **{k: v for k, v in options.items() if k != "guidance"}, guidance="magic",
        )  # fmt: skip
    assert not (tmp_path / ".forecast.zarr.next").exists()
    with pytest.raises(KeyboardInterrupt), monkeypatch.context() as patch:
        patch.setattr(*place, killed)
        sda.assimilate(prior, observations, seed=2, out=out, overwrite=True, **options)
    with pytest.raises(ValueError, match="other settings .*seed was [12], now 3"):
        sda.assimilate(prior, observations, seed=3, out=out, resume=True, **options)
    new = sda.assimilate(prior, observations, seed=2, out=out, resume=True, **options)
    expected = sda.assimilate(prior, observations, seed=2, **options)
    for name in expected:
        np.testing.assert_array_equal(expected[name], new[name])
    names = sorted(path.name for path in tmp_path.iterdir())
    assert names == ["forecast-analysis.zarr", "forecast.zarr"]


def test_members_depend_on_nothing_but_seed_and_index(prior, initial):
    whole = sda.forecast(prior, initial, 9, members=5, seed=2)
    apart = sda.forecast(prior, initial, 9, members=5, seed=2, block=2)
    few = sda.forecast(prior, initial, 9, members=2, seed=2)
    shorter = sda.forecast(prior, initial, 4, members=5, seed=2)
    for name in whole:
        np.testing.assert_allclose(whole[name], apart[name], rtol=1e-4, atol=1e-5)
        np.testing.assert_allclose(whole[name][:2], few[name], rtol=1e-4, atol=1e-5)
        np.testing.assert_allclose(whole[name][:, :4], shorter[name], rtol=1e-4, atol=1e-5)
    # Members 0 and 3 continue the same state, with noise of their own.
    assert not np.allclose(whole["position"][0], whole["position"][3])
    other = sda.forecast(prior, initial, 9, members=5, seed=3)
    assert not np.allclose(whole["position"], other["position"])


def test_interrupted_forecast_goes_on_where_it_was(prior, initial, tmp_path, monkeypatch):
    options = {"members": 5, "seed": 2, "block": 3}
    whole = sda.forecast(prior, initial, 20, **options)
    calls, limit = [], 15
    sampled = Continuation.sample

    def counted(self, *arguments, **more):
        if len(calls) == limit:
            raise KeyboardInterrupt
        calls.append(arguments[3])
        return sampled(self, *arguments, **more)

    monkeypatch.setattr(sda.conditional.Continuation, "sample", counted)
    out = tmp_path / "forecast.zarr"
    with pytest.raises(KeyboardInterrupt):
        sda.forecast(prior, initial, 20, out=out, **options)
    # The first members were on their way: their 15 states are kept beside the store.
    assert calls == [*range(15)]
    calls.clear()
    limit = 12
    with pytest.raises(KeyboardInterrupt):
        sda.forecast(prior, initial, 20, out=out, resume=True, **options)
    assert calls == [*range(15, 20), *range(7)]
    interrupted = sda.store.open_dataset(out)
    assert interrupted.attrs["status"] == "incomplete: 3 of 5 members"
    calls.clear()
    limit = 100
    resumed = sda.forecast(prior, initial, 20, out=out, resume=True, **options)
    assert calls == [*range(7, 20)]
    assert resumed.attrs["status"] == "complete"
    for name in whole:
        np.testing.assert_array_equal(whole[name], resumed[name])
    assert [path.name for path in tmp_path.iterdir()] == ["forecast.zarr"]
    with pytest.raises(ValueError, match="other settings"):
        sda.forecast(prior, initial, 21, out=out, resume=True, **options)
    with pytest.raises(FileExistsError, match="resume=true"):
        sda.forecast(prior, initial, 20, out=out, **options)


def test_a_member_that_diverges_is_lost_alone(prior, initial, monkeypatch):
    from sda.sampling import Diverged

    sampled = Continuation.sample
    whole = sda.forecast(prior, initial, 6, seed=2)

    def fails(self, tail, seed, members, part=0, **more):
        x = sampled(self, tail, seed, members, part, **more)
        if part < 2:
            return x
        x[1] = math.nan
        raise Diverged({members[1]: f"member {members[1]} diverged"}, x)

    monkeypatch.setattr(sda.conditional.Continuation, "sample", fails)
    with pytest.warns(RuntimeWarning, match="member 1 diverged, after 2 states"):
        result = sda.forecast(prior, initial, 6, seed=2)
    assert list(result.attrs["failed_members"]) == [1]
    for name in result:
        assert np.isnan(result[name][1]).all()
        np.testing.assert_allclose(result[name][[0, 2]], whole[name][[0, 2]], rtol=1e-4, atol=1e-5)


def test_all_members_lost_is_an_error(prior, initial, tmp_path, monkeypatch):
    from sda.sampling import Diverged

    def fails(self, tail, seed, members, part=0, **more):
        raise Diverged({m: f"member {m} diverged" for m in members}, tail * math.nan)

    monkeypatch.setattr(sda.conditional.Continuation, "sample", fails)
    with pytest.raises(FloatingPointError, match="no member could be forecast: member 0 diverged"):
        sda.forecast(prior, initial, 30, seed=2, out=tmp_path / "forecast.zarr")


def test_single_states_and_short_tails(prior, initial):
    """A state without member or time, and tails of any length, give the same times."""

    state = initial.isel(member=0, time=-1)
    one = sda.forecast(prior, state, 5, members=4, seed=0)
    assert dict(one.sizes) == {"member": 4, "time": 5}
    assert one["time"].values == pytest.approx(1.2 + 0.1 * np.arange(5))
    short = sda.forecast(prior, initial.isel(time=slice(-3, None)), 5, members=4, seed=0)
    assert short["time"].values == pytest.approx(one["time"].values)
    assert block_of_time(prior, None, None) == (7, 1)
    assert block_of_time(Prior.load("lorenz63"), None, None) == (56, 9)
    assert block_of_time(Prior.load("lorenz63"), 20, None) == (20, 45)


def test_of_analyses_some_steps_apart_the_last_alone_is_continued(prior, initial):
    apart = initial.isel(time=slice(None, None, -3)).isel(time=slice(None, None, -1))
    with pytest.warns(RuntimeWarning, match="only the last 1, one step apart, are used"):
        found = sda.forecast(prior, apart, 3, seed=0)
    alone = sda.forecast(prior, initial.isel(time=[-1]), 3, seed=0)
    xr.testing.assert_equal(found, alone)


def test_network_forecast_follows_the_system():
    """The shipped prior of Lorenz-63: close to the numerical model's own forecast, and as wide."""

    system = dynamics.Lorenz63(dt=0.025, noise=True)
    prior = Prior.load("lorenz63")
    truth = system.simulate(members=2, length=64, spinup=256, seed=3)
    members, lead = 32, 9
    learned = sda.forecast(prior, truth, lead, members=members, seed=0)
    model = sda.forecast_by_model(system, truth, lead, members=members, seed=0)
    xr.testing.assert_equal(learned["time"], model["time"])
    x, y = (system.layout.to_array(each).reshape(-1, 2, lead, 3) for each in (learned, model))
    spread = y.std(axis=0)
    assert np.sqrt((((x.mean(0) - y.mean(0)) / spread) ** 2).mean()) < 0.8
    assert 0.8 < (x.std(axis=0) / spread).mean() < 1.6
    with pytest.warns(UserWarning, match="from 3 of the 56 states"):
        sda.forecast(prior, truth.isel(time=slice(-3, None)), 2, members=2)


def test_forecast_by_model_is_the_system(system, initial, tmp_path):
    """Its own trajectories, whatever the blocks, and those of a deterministic system exactly."""

    lorenz = dynamics.Lorenz96(noise=False)
    state = lorenz.simulate(members=2, length=2, spinup=64, seed=0)
    result = sda.forecast_by_model(lorenz, state, 4)
    x = torch.from_numpy(lorenz.layout.to_array(state)[:, -1])
    expected = lorenz.rollout(x, 5)[:, 1:].numpy()
    np.testing.assert_allclose(lorenz.layout.to_array(result), expected, rtol=1e-5, atol=1e-5)
    whole = sda.forecast_by_model(system, initial, 6, members=300, seed=5)
    out = tmp_path / "model.zarr"
    apart = sda.forecast_by_model(system, initial, 6, members=300, seed=5, block=110, out=out)
    for name in whole:
        np.testing.assert_array_equal(whole[name], apart[name])
    # The spread after one step is the noise.
    Q = residual(system)
    own = system.layout.to_array(whole)[::3, 0]
    ratio = own.std(0, ddof=1) / Q.diagonal().sqrt().numpy()
    assert np.abs(ratio - 1).max() < 5 / math.sqrt(200)


def test_field_forecast_is_the_exact_one(tmp_path):
    """A homogeneous Gaussian field: mean and spread given the tail, wavenumber by wavenumber."""

    system = dynamics.Lorenz96(noise=True)
    data = system.simulate(members=4, length=60, spinup=100, seed=0)
    prior = GaussianPrior.fit(data, window=4)
    initial = data.isel(member=[0], time=slice(0, 5))
    lead, members = 2, 500
    result = sda.forecast(
        prior, initial, lead, members=members, tail=2, frames=2, out=tmp_path / "f"
    )
    matrix = prior.climatology.covariance(4, torch.float64).dense()
    tail = prior.climatology.normalise(torch.from_numpy(system.layout.to_array(initial))[:, -2:])
    solve = torch.linalg.solve(matrix[:80, :80], matrix[:80, 80:])
    mean = (tail.double().flatten(1) @ solve).reshape(1, 2, 1, 40)
    std = (matrix[80:, 80:] - matrix[80:, :80] @ solve).diagonal().sqrt().reshape(2, 1, 40)
    x = prior.climatology.normalise(torch.from_numpy(system.layout.to_array(result))).double()
    assert ((x.mean(0) - mean[0]) / std).abs().max() < 5 / math.sqrt(members)
    assert ((x.std(0) / std).mean() - 1).abs() < 0.02


def test_errors_name_what_was_given(prior, initial, system):
    network = Prior.load("lorenz63")
    slower = initial.assign_coords(time=1.5 * initial["time"])
    cases = [
        ({"lead": 0}, "lead must be an integer of at least 1, got 0"),
        ({"lead": 2.5}, "lead must be an integer of at least 1, got 2.5"),
        ({"members": 0}, "members must be an integer of at least 1, got 0"),
        ({"frames": 0}, "frames must be an integer"),
        ({"memory": "100B"}, "more than memory=100B"),
        ({"sampler": "euler"}, "unknown sampler 'euler'"),
        ({"resume": True}, "need an output store"),
        ({"initial": initial.where(initial["member"] != 1)}, "initial states of member 1 have NaN"),
        ({"initial": initial.drop_vars("wind")}, "are missing"),
        ({"initial": slower}, "dt=0.1 or multiples of it apart, got steps of 0.15"),
        ({"prior": network}, "expected variables"),
        ({"prior": network, "tail": 10, "frames": 20}, "65 states of the prior's window"),
    ]
    for change, message in cases:
        arguments = {"prior": prior, "initial": initial, "lead": 3, **change}
        with pytest.raises(ValueError, match=message):
            sda.forecast(**arguments)
    with pytest.raises(TypeError, match="must be an xarray dataset"):
        sda.forecast(prior, "states.zarr", 3)
    with pytest.raises(ValueError, match="at least 1, got 0"):
        sda.forecast_by_model(system, initial, 0)
    field = dynamics.Lorenz96()
    other = dynamics.Lorenz96(dimension=36).simulate(members=1, length=2, seed=0)
    with pytest.raises(ValueError, match="must be the 40 values"):
        sda.forecast_by_model(field, other, 2)
    observations = observe(initial.isel(member=0), Select(every=4), std=0.1, seed=0)
    with pytest.raises(ValueError, match="needs a lead"):
        sda.assimilate(prior, observations, task="forecast")
    with pytest.raises(ValueError, match="at least 1, got 0"):
        sda.assimilate(prior, observations, task="forecast", lead=0)
    with pytest.raises(ValueError, match="no other has one, got lead=3"):
        sda.assimilate(prior, observations, lead=3)


def test_command_line(prior, initial, tmp_path, capsys):
    """Both kinds of forecast, and one line where something is wrong."""

    from sda.cli import main

    prior.save(tmp_path / "prior")
    initial.to_zarr(tmp_path / "initial.zarr", consolidated=False)
    source = [f"initial={tmp_path / 'initial.zarr'}", "seed=2", "progress=false"]
    learned = ["prior=folder", f"prior.source={tmp_path / 'prior'}"]
    out = tmp_path / "forecast.zarr"
    assert main(["forecast", *learned, *source, "lead=6", f"out={out}"]) == 0
    expected = sda.forecast(prior, initial, 6, seed=2)
    for name in expected:
        found = sda.store.open_dataset(out)[name]
        np.testing.assert_allclose(expected[name], found, rtol=1e-4, atol=1e-5)
    model = ["forecast", "system=damped_spring", *source, "members=5"]
    assert main([*model, "lead=6", "time=0.9", f"out={tmp_path / 'model.zarr'}"]) == 0
    result = sda.store.open_dataset(tmp_path / "model.zarr")
    assert result.sizes["member"] == 5
    assert result["time"].values[0] == pytest.approx(1.0)
    capsys.readouterr()
    new = f"out={tmp_path / 'new.zarr'}"
    for arguments, message in (
        ([*learned, *source, "lead=0", new], "lead must be an integer of at least 1, got 0"),
        ([*source, "lead=3", new], "give prior=… or system=…"),
        ([*learned, *source, "lead=3", "time=-1", new], "not that of a state"),
        ([*learned, *source, "lead=3", "memory=1B", new], "more than memory=1B"),
        ([*learned, *source, "lead=3", f"out={out}"], "resume=true"),
    ):
        assert main(["forecast", *arguments]) == 2
        lines = capsys.readouterr().err.strip().splitlines()
        assert len(lines) == 1 and message in lines[0]


def test_field_network_follows_the_system():
    """The shipped prior of Kolmogorov flow: near the model after a block, as vigorous after two."""

    from sda.benchmarks.forecast import enstrophy

    flow = dynamics.KolmogorovFlow(size=32)
    truth = flow.simulate(members=1, length=13, spinup=40, seed=8)
    past, future = truth.isel(time=slice(0, 7)), truth.isel(time=slice(7, None))
    learned = sda.forecast(Prior.load("kolmogorov"), past, 6, seed=0)
    x, y = (flow.layout.to_array(each)[0] for each in (learned, future))
    error = np.sqrt(((x - y) ** 2).mean(axis=(1, 2, 3)) / (y**2).mean())
    persistence = np.sqrt(((flow.layout.to_array(past)[0, -1] - y[-1]) ** 2).mean() / (y**2).mean())
    assert error[0] < 0.1
    assert error[-1] < 0.3 * persistence
    ratio = enstrophy(learned).mean() / enstrophy(future).mean()
    assert 0.85 < ratio < 1.15


def test_a_full_disk_loses_nothing_that_was_done(prior, initial, tmp_path, monkeypatch):
    """The error names it, and the run goes on from the last state that was written."""

    import errno

    from sda.partial import Partial

    add = Partial.add

    def full(self, x, failures):
        if self.done == 7:
            raise OSError(errno.ENOSPC, "No space left on device")
        add(self, x, failures)

    out = tmp_path / "forecast.zarr"
    monkeypatch.setattr(Partial, "add", full)
    with pytest.raises(OSError, match="No space left"):
        sda.forecast(prior, initial, 12, seed=2, out=out)
    monkeypatch.undo()
    counted = []
    sampled = Continuation.sample

    def counting(self, *arguments, **more):
        counted.append(arguments[3])
        return sampled(self, *arguments, **more)

    monkeypatch.setattr(sda.conditional.Continuation, "sample", counting)
    resumed = sda.forecast(prior, initial, 12, seed=2, out=out, resume=True)
    assert counted == [*range(7, 12)]
    whole = sda.forecast(prior, initial, 12, seed=2)
    for name in whole:
        np.testing.assert_array_equal(whole[name], resumed[name])
