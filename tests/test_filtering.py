"""The filter: exact on Gaussian systems, without drift, the same however it was run."""

import json
import os
import signal
import socket
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import pytest
import torch
import xarray as xr
from oracles import kalman_smoother

import dynamics
import sda.sampling
from sda.analyses import AnalysisWriter
from sda.assimilation import assimilate
from sda.climatology import Climatology
from sda.filtering import Assimilator, Late
from sda.lock import Lock, Locked
from sda.observation import Observations, Select, observe
from sda.prior import Prior
from sda.store import open_dataset
from sda.streams import Folder
from sda.verification import verify
from sda.window import WindowDenoiser

ROOT = Path(__file__).parent.parent
SYSTEM = dynamics.LinearGaussian.damped_spring(0.3)
LENGTH = 60


def gaussian(history, system=SYSTEM):
    """The exact prior of a linear system, whose default window is `history` states."""

    covariance = system.trajectory_covariance(history)
    mean = torch.zeros(system.layout.shape)
    return Prior(Climatology.from_moments(system.layout, mean, covariance))


@pytest.fixture(scope="module")
def truth():
    return SYSTEM.simulate(members=1, length=LENGTH, seed=9).isel(member=0)


@pytest.fixture(scope="module")
def observations(truth):
    return observe(truth, Select(["position"], every=2), std=0.2, seed=1)


@pytest.fixture(scope="module")
def prior():
    return gaussian(16)


def between(observations, first, last):
    """The observations of the times from `first` to `last`."""

    table = observations.to_table()
    inside = (table.time > first - 1e-6) & (table.time < last + 1e-6)
    return Observations.from_table(table[inside])


def values(dataset):
    names = dataset.attrs["variables"]
    return np.stack([dataset[n].transpose("member", "time", ...).values for n in names], axis=2)


def close(a, b, tolerance=2e-3):
    """The same ensemble, up to what batched products round differently."""
    a, b = values(a), values(b)
    return a.shape == b.shape and np.allclose(a, b, rtol=0, atol=tolerance * np.nanstd(a))


class Columns:
    """Noise that shows an affine sampler's moments: none for member 0, then one unit after the
    other, so that differences from member 0 are the columns of a root of the covariance."""

    def __init__(self, seed, members, *key, dtype, device):
        self.generators, self.used, self.dtype = list(members), 0, dtype

    def __call__(self, shape):
        size = int(np.prod(shape))
        out = torch.zeros(len(self.generators), size, dtype=self.dtype)
        for row, member in enumerate(self.generators):
            if 0 <= member - 1 - self.used < size:
                out[row, member - 1 - self.used] = 1
        self.used += size
        return out.reshape(-1, *shape)


@pytest.mark.parametrize("lag", [0, 5])
@pytest.mark.parametrize(("every", "std"), [(1, 0.5), (4, 0.1)])
def test_kalman_filter_and_fixed_lag_smoother(lag, every, std, monkeypatch):
    """Moments without sampling error, at the tolerances of the smoother."""

    history, last = 48, 80
    truth = SYSTEM.simulate(members=1, length=last + 1, seed=3).isel(member=0)
    observations = observe(truth, Select(["position"], every=every), std=std, seed=1)
    A, Q, P = (m.numpy() for m in (SYSTEM.A, SYSTEM.Q, SYSTEM.stationary_covariance))
    y = observations.sets[0].y.ravel()
    seen = [i % every == 0 for i in range(last + 1)]
    H = [np.array([[1.0, 0, 0]]) if each else None for each in seen]
    R = [np.eye(1) * std**2 if each else None for each in seen]

    monkeypatch.setattr(sda.sampling, "MemberNoise", Columns)
    members = 1 + 3 * history + history
    assimilator = Assimilator(
        gaussian(history), members, lag=lag, start=0.0, block=members, dtype="float64"
    )
    assimilator.add(observations)
    for step in (8, last - 1, last):
        assimilator.cycle = step
        x, _ = assimilator.sample(step, assimilator.pieces)
        # What comes later plays no part in the analysis.
        part = [y[i // every : i // every + 1] if seen[i] else None for i in range(step + 1)]
        means, covariances, _ = kalman_smoother(A, Q, P, H[: step + 1], R[: step + 1], part)
        for back in {0, lag}:
            m, std_ = means[-1 - back], np.sqrt(covariances[-1 - back].diagonal())
            columns = x[1:, -1 - back] - x[0, -1 - back]
            assert np.sqrt(np.mean(((x[0, -1 - back] - m) / std_) ** 2)) < 0.01
            ratio = np.sqrt((columns**2).sum(0)) / std_
            assert ratio.min() > 0.98 and ratio.max() < 1.02


def test_two_thousand_cycles_without_drift():
    """Innovations and analyses are as consistent at the end as at the beginning."""

    members, cycles = 8, 2000
    system = dynamics.LinearGaussian.rotation(angle=0.4, decay=0.9)
    truth = system.simulate(members=1, length=cycles, seed=4).isel(member=0)
    observations = observe(truth, Select(["x"]), std=0.5, seed=5)
    A, Q, V = (m.numpy() for m in (system.A, system.Q, system.stationary_covariance))
    H, y = np.array([[1.0, 0]]), observations.sets[0].y.ravel()

    # A short schedule, for time: variances are within 1.4 %.
    schedule = {"steps": 10, "s_max": 10.0, "s_min": 0.02}
    prior = gaussian(14, system)
    analyses = values(assimilate(prior, observations, members, 7, task="filter", **schedule))
    assert analyses.shape == (members, cycles, 2)
    mean, m, first = analyses.mean(0), np.zeros(2), np.zeros(2)
    chi, errors, spread = [], [], []
    for i in range(cycles):
        V = A @ V @ A.T + Q if i else V
        m = A @ m if i else m
        forecast = A @ mean[i - 1] if i else first
        S = (H @ V @ H.T).item() + 0.25
        sampling = (H @ A @ V @ A.T @ H.T).item() / members  # bounds that of the mean
        chi.append((y[i] - H @ forecast).item() / np.sqrt(S + sampling))
        gain = V @ H.T / S
        m, V = m + gain[:, 0] * (y[i] - H @ m), V - gain @ H @ V
        std = np.sqrt(V.diagonal())
        errors.append((mean[i] - m) / std * np.sqrt(members))
        spread.append(analyses[:, i].var(0, ddof=1) / V.diagonal())
    for part in np.split(np.arange(cycles), 4):
        n = len(part)
        assert abs(np.mean(np.array(chi)[part] ** 2) - 1) < 4 * np.sqrt(2 / n)
        assert abs(np.mean(np.array(chi)[part])) < 4 / np.sqrt(n)
        # Against the Kalman filter the error is that of so many draws, and no more.
        assert abs(np.mean(np.array(errors)[part] ** 2) - 1) < 4 * np.sqrt(2 / (2 * n))
        assert np.abs(np.mean(np.array(errors)[part], axis=0)).max() < 4 / np.sqrt(n)
        assert abs(np.mean(np.array(spread)[part]) - 1) < 4 * np.sqrt(2 / (2 * n * (members - 1)))


def test_neither_blocks_nor_batches_nor_order_matter(prior, observations):
    run = {"prior": prior, "members": 6, "seed": 2, "lag": 3, "history": 16}
    run |= {"start": 0.0, "every": 2}
    whole = assimilate(prior, observations, 6, 2, task="filter", lag=3, history=16)
    # One by one, as they are observed.
    one = Assimilator(**run, block=4)
    frames = [one.send(between(observations, t, t)).load() for t in observations.times]
    assert all(close(whole.isel(time=[k]), frames[k].isel(time=[-1])) for k in (29,))
    assert close(whole.isel(time=[27]), frames[28].isel(time=[1]))  # two states back
    # Backwards, within what a window holds, and some in advance.
    other = Assimilator(**run)
    other.add(between(observations, 0, 14.0))
    assert other.send(time=12.0).time[-1] == pytest.approx(12.0)
    other.add(between(observations, 15.5, 17.7))
    other.add(between(observations, 14.1, 15.5))
    assert close(frames[29], other.send(time=17.4))
    assert not close(frames[29], Assimilator(**run | {"seed": 3}).send(observations))


def test_late_observations(prior, observations):
    """They are taken up as long as a cycle to come looks back so far, and refused beyond."""

    run = {"prior": prior, "members": 4, "seed": 2, "start": 0.0, "every": 2, "history": 12}
    times = observations.times
    late, complete, without = (Assimilator(**run) for _ in range(3))
    for t in times[:8]:
        one = between(observations, t, t)
        complete.send(one)
        if t != times[5]:
            late.send(one)
            without.send(one)
    late.add(between(observations, times[5], times[5]))
    assert without.cycle == late.cycle == 8
    ninth = between(observations, times[8], times[8])
    analyses = [each.send(ninth) for each in (late, complete, without)]
    assert close(analyses[0], analyses[1]) and not close(analyses[0], analyses[2])

    # The window of cycle 9 holds the states 7 to 18: that of cycle 4 is its first, cycle 3 is out.
    again = Assimilator(**run)
    again.send(time=times[8])
    again.add(between(observations, times[4], times[4]))
    message = (
        r"1 observations are too late, the first of time 1.8: it belongs to cycle 3, the last "
        r"cycle that looked back so far was 8, and cycle 8 is done"
    )
    both = between(observations, times[3], times[5])
    with pytest.raises(Late, match=message):
        again.add(both)
    refused = []
    again.add(both, refuse=refused.append)
    assert again.refused == 1 and len(refused) == 1
    assert sorted(piece.last for piece in again.pieces) == [8, 8, 10]


def test_what_was_taken_up_is_not_taken_up_again(prior, observations):
    a, b = (Assimilator(prior, 3, start=0.0, every=2) for _ in range(2))
    first, second = between(observations, 0, 3), between(observations, 3.1, 4.2)
    a.send(first), b.send(first)
    before = b.analysis
    assert b.send(first).identical(before) and b.cycle == a.cycle
    assert close(a.send(second), b.send(second))


def test_a_gap_is_a_forecast(prior, observations):
    """Cycles without observations are flagged, and their members are those of the prior's law."""

    gap = Observations.from_table(
        observations.to_table().query("time < 6 or time > 9.5").reset_index(drop=True)
    )
    analyses = assimilate(prior, gap, 400, task="filter", history=16)
    known = analyses.observed.values
    inside = (analyses.time.values > 6 - 1e-6) & (analyses.time.values < 9.5)
    assert (known == ~inside).all() and inside.sum() == 6
    spread = analyses.position.std("member").values
    # Against the exact forecast, from the Kalman filter's last analysis before the gap.
    A, Q, V = (m.numpy() for m in (SYSTEM.A, SYSTEM.Q, SYSTEM.stationary_covariance))
    H, exact = np.array([[1.0, 0, 0]]), []
    for i in range(2 * analyses.sizes["time"] - 1):
        V = A @ V @ A.T + Q if i else V
        if i % 2 == 0:
            if not inside[i // 2]:
                V = V - V @ H.T @ H @ V / (H @ V @ H.T + 0.04)
            exact.append(np.sqrt(V[0, 0]))
    assert np.abs(spread[inside] / np.array(exact)[inside] - 1).max() < 0.15
    assert spread[inside][-1] > 3 * spread[inside][0]
    # Without any observation at all, a member is one of the climatology.
    alone = Assimilator(prior, 400, start=0.0).send()
    scale = SYSTEM.stationary_covariance.diagonal().sqrt().numpy()
    assert np.allclose(values(alone)[:, 0].std(0) / scale, 1, atol=0.15)


def test_missing_values_are_not_observed(prior, truth):
    y = observe(truth, Select(["position", "wind"], every=2), std=0.2, seed=1)
    y = y.to_dataset().copy(deep=True)
    y["wind"][3:9] = np.nan
    y["position"][12] = np.nan
    holes = Observations.from_grid(y)
    table = Observations.from_table(holes.to_table())
    run = {"members": 3, "task": "filter", "history": 12}
    a, b = (assimilate(prior, each, **run) for each in (holes, table))
    assert close(a, b)
    assert a.observed.values[[2, 3, 8, 9, 12]].tolist() == [2, 1, 1, 2, 1]


@pytest.mark.parametrize("guidance", ["hybrid", "flow_dependent"])
def test_pilots_are_those_of_the_cycle(prior, observations, guidance):
    """What they leave depends on the values observed: it is made anew in every cycle."""

    run = {"prior": prior, "members": 4, "seed": 2, "guidance": guidance, "steps": 8}
    run |= {"start": 0.0, "every": 2, "history": 8}
    each = Assimilator(**run, block=3)
    for t in observations.times[:7]:
        last = each.send(between(observations, t, t))
    alone = Assimilator(**run)
    alone.add(between(observations, 0, observations.times[6]))
    alone.cycle = 6
    assert close(last, alone.send())


def with_network(history, system):
    """The same prior for all who do not look: its network has not learned anything to add."""

    climatology = gaussian(history, system).climatology
    network = {"name": "mlp", "width": 16, "hidden": 16, "depth": 1, "embedding": 8}
    denoiser = WindowDenoiser(climatology, history, network)
    for parameter in denoiser.parameters():
        torch.nn.init.zeros_(parameter.requires_grad_(False))
    return Prior(climatology, denoiser)


def test_default_of_a_network_against_the_kalman_filter():
    """Covariances estimated from draws of the prior, few noise levels, two Langevin steps each."""

    members, cycles = 200, 60
    system = dynamics.LinearGaussian.rotation(angle=0.4, decay=0.9)
    truth = system.simulate(members=1, length=cycles, seed=4).isel(member=0)
    observations = observe(truth, Select(["x"]), std=0.5, seed=5)
    prior = with_network(14, system)
    assert Assimilator(prior, 2).settings["guidance"] == {"name": "averaged"}
    analyses = values(assimilate(prior, observations, members, 7, task="filter"))
    A, Q, V = (m.numpy() for m in (system.A, system.Q, system.stationary_covariance))
    H, y, m = np.array([[1.0, 0]]), observations.sets[0].y.ravel(), np.zeros(2)
    errors, ratios = [], []
    for i in range(cycles):
        V = A @ V @ A.T + Q if i else V
        m = A @ m if i else m
        gain = V @ H.T / ((H @ V @ H.T).item() + 0.25)
        m, V = m + gain[:, 0] * (y[i] - H @ m), V - gain @ H @ V
        std = np.sqrt(V.diagonal())
        errors.append((analyses[:, i].mean(0) - m) / std * np.sqrt(members))
        ratios.append(analyses[:, i].std(0, ddof=1) / std)
    assert abs(np.mean(np.square(errors)) - 1) < 4 * np.sqrt(2 / errors[0].size / cycles)
    assert abs(np.mean(ratios) - 1) < 0.02


@pytest.mark.parametrize("lag", [0, 3])
def test_cycles_ahead_are_those_one_after_the_other(prior, observations, lag, monkeypatch):
    """All cycles that are observed alike are members of one batch, where all is in."""

    run = {"prior": prior, "members": 3, "seed": 2, "lag": lag, "start": 0.0, "every": 2}
    run |= {"guidance": "averaged"}
    together, one = Assimilator(**run), Assimilator(**run)
    made = []
    alone = Assimilator._guide
    monkeypatch.setattr(Assimilator, "_guide", lambda s, w: made.append(s) or alone(s, w))
    for each in (together, one):
        each.add(observations)
    together.complete = 30
    for _ in range(30):
        a, b = (each.step()[0] for each in (together, one))
        assert np.allclose(a, b, rtol=0, atol=2e-3 * b.std())
    assert made.count(one) == 30 and made.count(together) < 12


# Members that are carried ------------------------------------------------------------------------


def test_carried_members_against_the_kalman_filter():
    """With a lag that holds what observations still say; through a gap too."""

    members, cycles, lag = 300, 40, 10
    system = dynamics.LinearGaussian.rotation(angle=0.4, decay=0.9)
    truth = system.simulate(members=1, length=cycles, seed=4).isel(member=0)
    table = observe(truth, Select(["x"]), std=0.5, seed=5).to_table()
    observed = Observations.from_table(table.query("time < 20 or time > 25"))
    A, Q, V = (m.numpy() for m in (system.A, system.Q, system.stationary_covariance))
    H, y = np.array([[1.0, 0]]), dict(zip(table.time, table.observation, strict=True))
    assimilator = Assimilator(
        gaussian(16, system), members, 7, lag, carry="members", start=0.0, steps=12
    )
    assimilator.add(observed)
    m, errors, ratios = np.zeros(2), [], []
    for i in range(cycles):
        V = A @ V @ A.T + Q if i else V
        m = A @ m if i else m
        if not 20 <= i <= 25:
            gain = V @ H.T / ((H @ V @ H.T).item() + 0.25)
            m, V = m + gain[:, 0] * (y[i] - H @ m), V - gain @ H @ V
        now = assimilator.step()[0][:, -1]
        errors.append((now.mean(0) - m) / np.sqrt(V.diagonal()))
        ratios.append(now.std(0, ddof=1) / np.sqrt(V.diagonal()))
    assert np.sqrt(np.mean(np.square(errors[12:]))) < 1.5 / np.sqrt(members)
    assert abs(np.mean(ratios[12:]) - 1) < 0.02
    assert np.abs(np.array(ratios[20:26]) - 1).max() < 0.15


def test_carried_members_do_not_depend_on_blocks_nor_on_a_restart(prior, observations, tmp_path):
    out = tmp_path / "a.zarr"
    run = {"prior": prior, "members": 5, "seed": 2, "lag": 4, "history": 16, "every": 2}
    run |= {"carry": "members", "steps": 8}
    times = observations.times[:12]
    batches = [between(observations, t, t) for t in times]
    whole = list(Assimilator(**run).run(batches))
    for first, last in ((0, 5), (5, 12)):
        with Assimilator(**run, out=out, resume=first > 0, block=2) as assimilator:
            for batch in batches[first:last]:
                assimilator.send(batch)
    stored = open_dataset(out)
    assert close(whole[-1].isel(time=[-1]), stored.isel(time=[-1]))
    assert close(whole[9].isel(time=[0]), stored.isel(time=[7]))
    run_once = assimilate(
        prior, between(observations, 0, times[-1]), 5, 2, task="filter", lag=4, history=16,
        carry="members", steps=8,
    )  # fmt: skip
    assert close(run_once, stored)
    # A time that is frozen takes up nothing any more.
    late = Assimilator(**run)
    late.send(batches[0])
    late.send(time=times[-1])
    late.add(batches[10])
    with pytest.raises(Late, match="A lag of more than 4 states would take them up"):
        late.add(batches[8])
    with pytest.raises(ValueError, match="need a window of more than lag . every = 6 states"):
        Assimilator(**run | {"history": 6})
    with pytest.raises(ValueError, match="'members' with lag=0 is biased, .* give a lag that"):
        Assimilator(**run | {"lag": 0})
    with pytest.raises(ValueError, match="needs pilots, which no frozen states precede"):
        Assimilator(**run | {"guidance": "hybrid"})


def test_a_carried_member_that_is_lost_goes_on_from_another(prior, observations, monkeypatch):
    run = {"prior": prior, "members": 4, "every": 2, "start": 0.0, "carry": "members", "steps": 8}
    assimilator = Assimilator(**run, lag=4)
    assimilator.add(observations)
    assimilator.step()
    proceed = Assimilator._continue

    def lose(self, cycle, tail):
        x, _ = proceed(self, cycle, tail)
        x[1] = float("nan")
        return x, {1: "member 1 diverged"}

    with monkeypatch.context() as patch, pytest.warns(RuntimeWarning, match="1 of 4 members fail"):
        patch.setattr(Assimilator, "_continue", lose)
        frames, failures = assimilator.step()
    assert list(failures) == [1] and np.isnan(frames[1]).all() and np.isfinite(frames[2]).all()
    assert torch.equal(assimilator.tail[1], assimilator.tail[2])
    assert np.isfinite(assimilator.step()[0]).all()


# Stores -----------------------------------------------------------------------------------------


def test_store(prior, observations, truth, tmp_path):
    """Appended cycle by cycle, complete at any moment, read by anything that reads Zarr."""

    out = tmp_path / "a.zarr"
    run = {"prior": prior, "members": 5, "seed": 2, "lag": 4, "history": 16, "every": 2}
    with Assimilator(**run, out=out) as assimilator:
        for k, t in enumerate(observations.times):
            assimilator.send(between(observations, t, t))
            stored = open_dataset(out)
            assert stored.sizes == {"member": 5, "time": k + 1}
            assert np.isfinite(values(stored)).all()
        assert stored.attrs["status"] == "running: 30 cycles"
        with pytest.raises(Locked, match=f"is being written by process {os.getpid()} on "):
            Assimilator(**run, out=out, resume=True)
    assert open_dataset(out).attrs["status"] == "stopped: 30 cycles"
    whole = assimilate(prior, observations, 5, 2, task="filter", lag=4, history=16)
    assert close(whole, open_dataset(out))
    plain = xr.open_zarr(out, decode_times=False)
    assert plain.position.dims == ("time", "member")
    assert np.array_equal(plain.position.values.T, open_dataset(out).position.values)
    assert np.allclose(xr.open_zarr(out, consolidated=False).time, observations.times)
    scores = verify(open_dataset(out), truth.isel(time=slice(None, None, 2)))
    assert float(scores.crps.mean()) < 0.5


KILLED = """
import sys, time, torch
import dynamics, sda.filtering
from sda.climatology import Climatology
from sda.observation import Observations
from sda.prior import Prior

step = sda.filtering.Assimilator.step
def slow(self):
    time.sleep(0.03)
    return step(self)
sda.filtering.Assimilator.step = slow
torch.set_num_threads(1)
system = dynamics.LinearGaussian.damped_spring(0.3)
covariance = system.trajectory_covariance(16)
prior = Prior(Climatology.from_moments(system.layout, torch.zeros(3), covariance))
sda.assimilate(prior, Observations.load(sys.argv[1]), 4, 2, task="filter", lag=4, out=sys.argv[2])
"""


def test_kill_and_resume(prior, observations, tmp_path):
    """A process that is killed at any moment leaves a store that goes on as if nothing was."""

    observations.save(tmp_path / "o.csv")
    out = tmp_path / "a.zarr"
    process = subprocess.Popen(
        [sys.executable, "-c", KILLED, tmp_path / "o.csv", out], cwd=ROOT, env={**os.environ}
    )
    try:
        deadline = time.time() + 120
        while time.time() < deadline and process.poll() is None:
            if out.exists() and open_dataset(out).sizes["time"] >= 5:
                break
            time.sleep(0.01)
        with pytest.raises(Locked, match=f"process {process.pid} on {socket.gethostname()}"):
            Lock(out).acquire()
    finally:
        process.send_signal(signal.SIGKILL)
        process.wait()
    done = open_dataset(out).load()
    assert 5 <= done.sizes["time"] < 30
    run = {"members": 4, "seed": 2, "task": "filter", "lag": 4}
    whole = assimilate(prior, observations, **run)
    assert close(whole.isel(time=slice(done.sizes["time"] - 2)), done.isel(time=slice(-2)))
    resumed = assimilate(prior, observations, **run, out=out, resume=True)
    assert close(whole, resumed)
    assert not list(tmp_path.glob(".*"))  # neither locks nor partial files


def test_resumed_where_all_had_come_in_at_once(prior, observations, tmp_path):
    """What was taken up in one look is analysed to the end, though no look finds it again."""

    folder = tmp_path / "incoming"
    folder.mkdir()
    for k, t in enumerate(observations.times[:6]):
        between(observations, t, t).save(folder / f"{k}.csv")
    (folder / "END").touch()
    run = {"prior": prior, "members": 2, "seed": 2, "every": 2, "steps": 4}
    with Assimilator(**run, out=tmp_path / "whole.zarr") as assimilator:
        assert len(list(assimilator.run(Folder(folder)))) == 6
    out = tmp_path / "a.zarr"
    with Assimilator(**run, out=out) as assimilator:
        analyses = assimilator.run(Folder(folder))
        assert [next(analyses).attrs["cycle"] for _ in range(3)] == [0, 1, 2]
        analyses.close()
    with Assimilator(**run, out=out, resume=True) as assimilator:
        assert [each.attrs["cycle"] for each in assimilator.run(Folder(folder))] == [3, 4, 5]
    whole, resumed = (open_dataset(tmp_path / name).load() for name in ("whole.zarr", "a.zarr"))
    assert np.array_equal(values(whole), values(resumed))
    assert np.array_equal(whole.observed, resumed.observed)


def test_damage_is_named_and_mended(prior, observations, tmp_path):
    out = tmp_path / "a.zarr"
    run = {"prior": prior, "observations": observations, "members": 4, "task": "filter", "lag": 4}
    whole = assimilate(**run, out=out).load()
    chunk = out / "wind" / "c" / "7" / "0"
    content = bytearray(chunk.read_bytes())
    chunk.write_bytes(content[:-3])
    (out / "position" / "c" / "29" / "0").unlink()
    status = open_dataset(out).attrs["status"]
    assert "wind/c/7/0 has 17 of 20 bytes (cycle 7)" in status
    assert "position/c/29/0 is missing (cycle 29)" in status
    content[5] ^= 1
    chunk.write_bytes(content)
    with pytest.raises(ValueError, match="checksum"):
        open_dataset(out).load()
    with pytest.warns(RuntimeWarning, match="has another content than was written .cycle 7"):
        mended = assimilate(**run, out=out, resume=True)
    assert close(whole, mended)


def test_interrupted_cycle_leaves_nothing(prior, observations, tmp_path, monkeypatch):
    """A cycle whose writing fails is not there, and is written again."""

    out = tmp_path / "a.zarr"
    run = {"prior": prior, "members": 3, "seed": 2, "lag": 4, "every": 2, "out": out}
    batches = [between(observations, t, t) for t in observations.times]
    commit, calls = AnalysisWriter._commit, []

    def full(self, cycles):
        calls.append(cycles)
        if len(calls) == 5:
            raise OSError(28, "No space left on device")
        commit(self, cycles)

    with monkeypatch.context() as patch:
        patch.setattr(AnalysisWriter, "_commit", full)
        with Assimilator(**run) as assimilator, pytest.raises(OSError, match="the disk is full"):
            for batch in batches:
                assimilator.send(batch)
    assert open_dataset(out).sizes["time"] == 4
    with Assimilator(**run, resume=True) as assimilator:
        assert assimilator.cycle == 4
        analyses = list(assimilator.run(batches))  # from the first: known ones are passed over
    assert len(analyses) == 26
    whole = assimilate(prior, observations, 3, 2, task="filter", lag=4)
    assert close(whole, open_dataset(out))


def test_targets_and_settings(prior, observations, tmp_path):
    out = tmp_path / "a.zarr"
    run = {"prior": prior, "observations": observations, "members": 2, "task": "filter"}
    first = assimilate(**run, out=out).load()
    with pytest.raises(FileExistsError, match="overwrite=true to replace it, resume=true"):
        assimilate(**run, out=out)
    for change, message in (
        ({"seed": 1}, "seed was 0, now 1"),
        ({"lag": 2}, "lag was 0, now 2"),
        ({"steps": 9}, "sampler was"),
    ):
        with pytest.raises(ValueError, match=message):
            assimilate(**run | change, out=out, resume=True)
    assert first.identical(open_dataset(out).load())
    assert not close(first, assimilate(**run | {"seed": 1}, out=out, overwrite=True))
    first.drop_encoding().to_zarr(tmp_path / "other.zarr", consolidated=False)
    posterior = tmp_path / "p.zarr"
    assimilate(prior, observations, 2, out=posterior)
    with pytest.raises(FileExistsError, match="holds no analyses of a filter: it is left as it is"):
        assimilate(**run, out=posterior, overwrite=True)
    with pytest.raises(FileExistsError, match="is not a posterior"):
        assimilate(prior, observations, 2, out=out, overwrite=True)


def test_a_lock_that_a_dead_process_left(tmp_path):
    lock = Lock(tmp_path / "a.zarr")
    lock.file.write_text(json.dumps({"pid": 1, "host": socket.gethostname(), "since": "then"}))
    with lock:
        assert json.loads(lock.file.read_text())["pid"] == os.getpid()
        with pytest.raises(Locked, match="is being written by process"):
            Lock(tmp_path / "a.zarr").acquire()
    assert not lock.file.exists()
    with Lock(tmp_path / "a.zarr"):
        pass
    lock.file.write_text(json.dumps({"pid": 7, "host": "elsewhere", "since": "then"}))
    with pytest.raises(Locked, match="process 7 on elsewhere .* no longer runs there, remove"):
        lock.acquire()


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"members": 0}, "members must be an integer of at least 1"),
        ({"lag": -1}, "lag must be an integer of at least 0"),
        ({"lag": 16, "history": 16}, "history must be more than the lag of 16 states"),
        ({"history": 0}, "history must be an integer of at least the prior's window of 1"),
        ({"carry": "nothing"}, "unknown carry 'nothing'"),
        ({"every": 0}, "every must be an integer of at least 1"),
        ({"start": float("nan")}, "start must be a finite time"),
        ({"guidance": "unknown"}, "unknown guidance 'unknown'"),
        ({"resume": True}, "need an output store"),
    ],
)
def test_bad_arguments(prior, change, message):
    with pytest.raises(ValueError, match=message):
        Assimilator(prior, **change)


def test_bad_observations(prior, observations):
    def table(**columns):
        row = {"time": [0.0], "variable": ["position"], "observation": [1.0], "std": [0.1]}
        return Observations.from_table(row | columns)

    # What is refused does not decide when the first cycle is.
    assimilator = Assimilator(prior, 2)
    for options in ({}, {"time": 30.0}):
        with pytest.raises(ValueError, match="unknown variables"):
            assimilator.send(table(time=[30.0], variable=["pressure"]), **options)
    with pytest.raises(ValueError, match="time 0.3 .* cycle -99"):
        assimilator.send(table(time=[30.0]), time=0.3)
    assert assimilator.send(table()).time.values.tolist() == [0.0]

    assimilator = Assimilator(prior, 2, start=0.0)
    with pytest.raises(ValueError, match="unknown variables"):
        assimilator.send(table(variable=["pressure"]))
    with pytest.raises(ValueError, match="100000 cycles of 0.3 after the last: check their times"):
        assimilator.send(table(time=[3e4]))
    assimilator.send(time=1.2)
    with pytest.raises(ValueError, match="time 0.6 belongs to cycle 2, which is done: the next"):
        assimilator.send(time=0.6)
    assert assimilator.cycle == 5 and not assimilator.pieces
    with pytest.raises(ValueError, match="must be evenly apart"):
        assimilate(prior, observations, 2, task="filter", time=[0.0, 0.3, 0.9])
