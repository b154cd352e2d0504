"""The engine: exact on Gaussian systems, the same ensemble however it was run, nothing lost."""

import errno
import json
import os
import signal
import subprocess
import sys
import time
import warnings
from pathlib import Path

import numpy as np
import pytest
import torch
import xarray as xr

import dynamics
import sda.sampling
from sda.assimilation import assimilate, block_size, size_in_bytes, trajectory_times
from sda.climatology import Climatology
from sda.denoiser import GaussianDenoiser
from sda.observation import Observations, Select, Subsample, observe
from sda.prior import GaussianPrior, Prior
from sda.smc import ParticleStep
from sda.store import PosteriorWriter, open_dataset
from sda.window import WindowDenoiser

LENGTH = 17


@pytest.fixture(scope="module")
def system():
    return dynamics.LinearGaussian.damped_spring()


@pytest.fixture(scope="module")
def prior(system):
    covariance = system.trajectory_covariance(LENGTH)
    return Prior(Climatology.from_moments(system.layout, torch.zeros(3), covariance))


@pytest.fixture(scope="module")
def truth(system):
    return system.simulate(members=1, length=LENGTH, seed=9).isel(member=0)


@pytest.fixture(scope="module")
def observations(truth):
    return observe(truth, Select(variables=["position"], every=4), std=0.1, seed=1)


@pytest.fixture(scope="module")
def field():
    """A field, its Gaussian prior and observations."""

    system = dynamics.Lorenz96(noise=True)
    data = system.simulate(members=4, length=100, spinup=100, seed=0)
    truth = system.simulate(members=1, length=9, spinup=100, seed=1).isel(member=0)
    H = Select(every=2) >> Subsample(2)
    return GaussianPrior.fit(data, window=9), observe(truth, H, std=1.0, seed=2)


def values(dataset):
    return np.stack([dataset[name].values for name in dataset.data_vars], axis=2)


def close(a, b):
    """The same ensemble, up to what batched products round differently."""
    return np.allclose(values(a), values(b), rtol=0, atol=2e-3 * np.nanstd(values(a)))


def test_exact_posterior(system, prior, observations):
    """Mean, standard deviations and lag-one covariances are those of the exact posterior."""

    posterior = assimilate(prior, observations, members=1000, seed=3)
    x = values(posterior).reshape(1000, -1)

    likelihood = observations.likelihood(system.layout, posterior.time.values, torch.float64)
    H = likelihood.columns().flatten(1).numpy()
    P = system.trajectory_covariance(LENGTH).numpy()
    K = P @ H.T @ np.linalg.inv(H @ P @ H.T + np.diag(likelihood.std.numpy() ** 2))
    mean, covariance = K @ likelihood.y.numpy(), P - K @ H @ P

    std = np.sqrt(covariance.diagonal())
    z = (x.mean(0) - mean) / (std / np.sqrt(len(x)))
    assert np.sqrt(np.mean(z**2)) < 2.2  # of about 3 independent values
    assert np.abs(x.std(0, ddof=1) / std - 1).max() < 0.1
    error = np.cov(x.T) - covariance
    assert np.abs(error / np.outer(std, std)).max() < 0.15  # sampling error: 3.5 / √1000


@pytest.mark.parametrize("guidance", ["flow_dependent", "hybrid", "static"])
def test_vectors_do_not_depend_on_blocks(prior, observations, guidance, tmp_path):
    whole = assimilate(prior, observations, members=10, seed=2, guidance=guidance)
    for block in (1, 4):
        part = assimilate(prior, observations, members=10, seed=2, guidance=guidance, block=block)
        assert close(whole, part)
    out = tmp_path / "p.zarr"
    stored = assimilate(
        prior, observations, members=10, seed=2, guidance=guidance, out=out, block=4
    )
    assert close(whole, stored)
    other = assimilate(prior, observations, members=10, seed=3, guidance=guidance)
    assert not close(whole, other)


def test_fields_do_not_depend_on_blocks(field):
    prior, observations = field
    whole = assimilate(prior, observations, members=6, seed=2)
    part = assimilate(prior, observations, members=6, seed=2, block=1)
    assert close(whole, part)
    assert close(whole.isel(member=[0, 1]), assimilate(prior, observations, members=2, seed=2))


def test_float64_agrees_with_itself(prior, observations):
    a = assimilate(prior, observations, members=3, dtype="float64", guidance="static")
    b = assimilate(prior, observations, members=3, dtype="float64", guidance="static", block=1)
    assert a.position.dtype == np.float64
    assert np.allclose(values(a), values(b), rtol=0, atol=1e-9)


def test_provenance(prior, observations, tmp_path):
    posterior = assimilate(prior, observations, members=2, seed=4, out=tmp_path / "p.zarr")
    attrs = posterior.attrs
    assert attrs["prior_hash"] == prior.hash
    assert attrs["observations_hash"] == observations.hash()
    assert attrs["seed"] == 4 and attrs["Conventions"].startswith("CF-")
    assert "torch" in json.loads(attrs["versions"])
    assert json.loads(attrs["settings"])["guidance"] == {"name": "hybrid", "pilots": 2}
    assert posterior.member.attrs["standard_name"] == "realization"


def interrupting(monkeypatch, block, error):
    """Makes the sampler fail at the `block`-th block."""

    sample, calls = sda.sampling.sample, []

    def fails(*args, **kwargs):
        if kwargs.get("stream") != sda.sampling.PILOT:
            calls.append(args[3])
            if len(calls) == block + 1:
                raise error
        return sample(*args, **kwargs)

    monkeypatch.setattr(sda.sampling, "sample", fails)
    return calls


def test_interrupt_and_resume(prior, observations, tmp_path, monkeypatch):
    run = {"prior": prior, "observations": observations, "members": 10, "seed": 2}
    whole = assimilate(**run)
    with monkeypatch.context() as patch:
        interrupting(patch, 2, KeyboardInterrupt())
        with pytest.raises(KeyboardInterrupt):
            assimilate(**run, out=tmp_path / "p.zarr", block=3)
    half = open_dataset(tmp_path / "p.zarr")
    assert half.attrs["status"] == "incomplete: 6 of 10 members"
    assert close(whole.isel(member=slice(6)), half.isel(member=slice(6)))

    calls = interrupting(monkeypatch, 99, None)
    resumed = assimilate(**run, out=tmp_path / "p.zarr", resume=True)
    assert [list(block) for block in calls] == [[6, 7, 8], [9]]
    assert resumed.attrs["status"] == "complete" and close(whole, resumed)

    # A store that is complete is returned as it is.
    calls.clear()
    assert close(whole, assimilate(**run, out=tmp_path / "p.zarr", resume=True)) and not calls


KILLED = """
import sys, time, torch
import dynamics, sda.sampling
from sda.assimilation import assimilate
from sda.climatology import Climatology
from sda.observation import Observations
from sda.prior import Prior

sample = sda.sampling.sample
def slow(*args, **kwargs):
    time.sleep(0.2)
    return sample(*args, **kwargs)
sda.sampling.sample = slow
torch.set_num_threads(1)
system = dynamics.LinearGaussian.damped_spring()
covariance = system.trajectory_covariance(17)
prior = Prior(Climatology.from_moments(system.layout, torch.zeros(3), covariance))
assimilate(prior, Observations.load(sys.argv[1]), members=40, seed=2, out=sys.argv[2], block=2)
"""


def test_kill_and_resume(prior, observations, tmp_path):
    """A process that is killed at any moment leaves a store that resumes to the same ensemble."""

    observations.save(tmp_path / "o.csv")
    out = tmp_path / "p.zarr"
    root = Path(__file__).parent.parent
    process = subprocess.Popen(
        [sys.executable, "-c", KILLED, tmp_path / "o.csv", out], cwd=root, env={**os.environ}
    )
    try:
        deadline = time.time() + 120
        while time.time() < deadline and process.poll() is None:
            if out.exists() and len(open_dataset(out).attrs["finished_blocks"]) >= 2:
                break
            time.sleep(0.02)
    finally:
        process.send_signal(signal.SIGKILL)
        process.wait()
    done = len(open_dataset(out).attrs["finished_blocks"])
    assert 2 <= done < 20

    resumed = assimilate(prior, observations, members=40, seed=2, out=out, resume=True)
    assert resumed.attrs["status"] == "complete"
    assert close(assimilate(prior, observations, members=40, seed=2), resumed)


def diverging(monkeypatch, limit):
    """Makes the prior's denoiser diverge for states whose mean is above a limit."""

    denoise = GaussianDenoiser.denoise

    def fails(self, x, s):
        ill = (x.mean((1, 2)) > limit) & (s < 1)
        return torch.where(ill[:, None, None], float("nan"), denoise(self, x, s))

    monkeypatch.setattr(GaussianDenoiser, "denoise", fails)


def test_divergence_loses_its_members_only(prior, observations, tmp_path, monkeypatch):
    """Which they are, and what the others are, does not depend on the blocks."""

    run = {"prior": prior, "observations": observations, "members": 10, "seed": 2}
    run |= {"guidance": "static"}
    whole = assimilate(**run)
    mean = (values(whole) / prior.climatology.get_buffer("scale").numpy()).mean((1, 2))
    diverging(monkeypatch, np.sort(mean)[6])
    posteriors = []
    for options in ({}, {"block": 3, "out": tmp_path / "p.zarr"}, {"block": 1}):
        with pytest.warns(RuntimeWarning, match=r"of 10 members failed and are NaN: member \d div"):
            posteriors.append(assimilate(**run, **options))
    failed = list(posteriors[0].attrs["failed_members"])
    assert 1 <= len(failed) <= 9
    assert posteriors[0].attrs["status"] == f"complete, {len(failed)} failed"
    kept = [m for m in range(10) if m not in failed]
    for posterior in posteriors:
        assert list(posterior.attrs["failed_members"]) == failed
        assert list(posterior.attrs["failures"]) == posteriors[0].attrs["failures"]
        assert np.isnan(values(posterior)[failed]).all()
        assert close(whole.isel(member=kept), posterior.isel(member=kept))
    with pytest.warns(RuntimeWarning, match="members failed and are NaN"):
        again = assimilate(**run, out=tmp_path / "p.zarr", resume=True)
    assert list(again.attrs["failed_members"]) == failed


@pytest.mark.parametrize("guidance", ["static", "flow_dependent"])
def test_no_member_survives(prior, observations, guidance, tmp_path, monkeypatch):
    """Nothing is replaced by nothing; nor is a run worth anything whose pilots diverge."""

    out = tmp_path / "p.zarr"
    first = assimilate(prior, observations, members=3, out=out).load()
    diverging(monkeypatch, -1e9)
    message = {"static": "no member could be sampled: member 0 diverged at level"}
    with pytest.raises(FloatingPointError, match=message.get(guidance, "a pilot .* diverged")):
        assimilate(prior, observations, members=3, guidance=guidance, out=out, overwrite=True)
    xr.testing.assert_identical(open_dataset(out).load(), first)
    assert [path.name for path in tmp_path.iterdir()] == ["p.zarr"]


def test_particle_steps(prior, observations):
    """They change no weights where guidance is exact, and groups do not depend on blocks."""

    smc = ParticleStep(group=4, threshold=0.99)
    run = {"prior": prior, "observations": observations, "members": 12, "seed": 2, "smc": smc}
    run |= {"guidance": "static", "steps": 8}
    whole = assimilate(**run)
    assert json.loads(whole.attrs["settings"])["smc"]["group"] == 4
    assert close(whole, assimilate(**run, block=4))
    assert not close(whole, assimilate(**run | {"smc": None}))
    for change, message in (
        ({"members": 10}, "whole groups of 4 members"),
        ({"block": 6}, "block must be a multiple of the particle step's group of 4 members, got 6"),
        ({"guidance": "mmps"}, "needs guidance 'static' or 'flow_dependent'"),
    ):
        with pytest.raises(ValueError, match=message):
            assimilate(**run | change)


def test_the_precision_of_the_network_alone(field, tmp_path):
    """Half precision moves the ensemble a little; the caller's prior stays as it is."""

    climatology = field[0].climatology
    torch.manual_seed(0)
    network = {"name": "unet", "widths": (8, 8), "depths": (1, 1)}
    prior = Prior(climatology, WindowDenoiser(climatology, 5, network).eval())
    for weights in prior.denoiser.network.parameters():
        weights.data += 0.01 * torch.randn_like(weights)  # a fresh network is silent
    run = {"members": 2, "steps": 4, "langevin": None}
    full = assimilate(prior, field[1], **run, out=tmp_path / "p.zarr")
    half = assimilate(prior, field[1], **run, precision="bfloat16")
    assert half.x.dtype == np.float32 and prior.denoiser.precision == torch.float32
    difference = float(np.abs(half.x - full.x).max())
    assert 0 < difference < 0.1 * float(full.x.std())
    assert np.array_equal(full.x, assimilate(prior, field[1], **run).x)
    with pytest.raises(ValueError, match="precision was 'float32', now 'bfloat16'"):
        assimilate(
            prior, field[1], **run, precision="bfloat16", out=tmp_path / "p.zarr", resume=True
        )


def test_a_missing_shard_is_sampled_again_alone(prior, observations, tmp_path, monkeypatch):
    run = {"prior": prior, "observations": observations, "members": 6, "block": 2}
    run["out"] = tmp_path / "p.zarr"
    first = assimilate(**run).load()
    (tmp_path / "p.zarr" / "wind" / "c" / "1" / "0").unlink()
    calls = interrupting(monkeypatch, 99, None)
    with pytest.warns(RuntimeWarning, match=r"wind/c/1/0 is missing \(members 2 to 3\)"):
        mended = assimilate(**run, resume=True)
    assert [list(block) for block in calls] == [[2, 3]] and close(first, mended)


def test_full_disk_keeps_what_is_finished(prior, observations, tmp_path, monkeypatch):
    write = PosteriorWriter.write

    def full(self, k, trajectories):
        if k == 1:
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
        write(self, k, trajectories)

    run = {"prior": prior, "observations": observations, "members": 6, "out": tmp_path / "p.zarr"}
    with monkeypatch.context() as patch:
        patch.setattr(PosteriorWriter, "write", full)
        with pytest.raises(OSError, match="disk is full while writing members 2 to 3: 2 of 6"):
            assimilate(**run, block=2)
    resumed = assimilate(**run, resume=True)
    assert close(assimilate(prior, observations, members=6), resumed)


@pytest.mark.parametrize(
    "change, message",
    [
        ({"seed": 1}, "seed was 0, now 1"),
        ({"members": 5}, "members was 4, now 5"),
        ({"guidance": "static"}, "guidance was {'name': 'hybrid', 'pilots': 2}, now"),
        ({"langevin": None}, "langevin was"),
        ({"steps": 12}, "sampler was"),
        ({"dtype": "float64"}, "dtype was 'float32', now 'float64'"),
    ],
)
def test_resume_with_other_settings(prior, observations, tmp_path_factory, change, message):
    out = tmp_path_factory.getbasetemp() / "resumed.zarr"
    if not out.exists():
        assimilate(prior, observations, members=4, out=out)
    with pytest.raises(ValueError, match=message):
        assimilate(prior, observations, **{"members": 4, **change}, out=out, resume=True)


def test_resume_with_other_inputs(system, prior, observations, truth, tmp_path):
    out = tmp_path / "p.zarr"
    assimilate(prior, observations, members=2, out=out)
    others = observe(truth, Select(variables=["position"], every=4), std=0.1, seed=7)
    with pytest.raises(ValueError, match="observations was"):
        assimilate(prior, others, members=2, out=out, resume=True)
    data = system.simulate(members=4, length=50, seed=0)
    with pytest.raises(ValueError, match="prior was"):
        assimilate(GaussianPrior.fit(data, LENGTH), observations, members=2, out=out, resume=True)


@pytest.mark.parametrize(
    "change, error, message",
    [
        ({"task": "nowcast"}, ValueError, "unknown task 'nowcast': expected one of smooth"),
        ({"members": 0}, ValueError, "members must be an integer of at least 1, got 0"),
        ({"members": 2.5}, ValueError, "members must be an integer"),
        ({"seed": -1}, ValueError, "seed must be a non-negative integer, got -1"),
        ({"guidance": "magic"}, ValueError, "unknown guidance 'magic': expected one of"),
        ({"guidance": {"gamma": 1.0}}, ValueError, "a guidance needs a 'name'"),
        ({"guidance": {"name": "sda", "gama": 1.0}}, TypeError, "gama"),
        ({"langevin": "strong"}, ValueError, "unknown langevin 'strong'"),
        ({"sampler": "magic"}, ValueError, "unknown sampler 'magic'"),
        ({"steps": 0}, ValueError, "steps must be at least 1, got 0"),
        ({"s_max": 1e-4}, ValueError, "s_min < s_max"),
        ({"dtype": "float16"}, ValueError, "dtype must be float32 or float64, got float16"),
        ({"precision": "float8"}, ValueError, "one of float32, bfloat16, got 'float8'"),
        ({"precision": "bfloat16", "dtype": "float64"}, ValueError, "needs dtype=float32"),
        ({"device": "abacus"}, ValueError, "device 'abacus' is not available"),
        ({"memory": "plenty"}, ValueError, "memory must be a size such as 512MiB"),
        ({"block": 0}, ValueError, "block must be at least 1, got 0"),
        ({"overwrite": True}, ValueError, "need an output store"),
        ({"time": np.arange(5) * 0.2}, ValueError, "steps of the prior's dt=0.1"),
        ({"time": np.arange(5) * 0.1}, ValueError, "observations span times 0 to 1.6"),
        ({"time": [[0.0]]}, ValueError, "time must be one-dimensional"),
    ],
)
def test_bad_arguments(prior, observations, change, error, message, tmp_path):
    before = set(tmp_path.iterdir())
    with pytest.raises(error, match=message):
        assimilate(prior, observations, **{"members": 2, **change})
    assert set(tmp_path.iterdir()) == before


def test_bad_arguments_leave_no_store(prior, observations, tmp_path):
    for change in ({"sampler": "magic"}, {"steps": 0}, {"guidance": "magic"}, {"s_max": 1e-4}):
        with pytest.raises(ValueError):
            assimilate(prior, observations, members=2, out=tmp_path / "p.zarr", **change)
        assert not (tmp_path / "p.zarr").exists()


def test_observations_of_another_system(field, prior, observations):
    with pytest.raises(ValueError, match="unknown variables"):
        assimilate(field[0], observations, members=2)
    with pytest.raises(ValueError, match="."):
        assimilate(prior, field[1], members=2)


def test_output_exists(prior, observations, tmp_path):
    out = tmp_path / "p.zarr"
    first = assimilate(prior, observations, members=2, out=out).load()
    with pytest.raises(FileExistsError, match="overwrite=true to replace it, resume=true"):
        assimilate(prior, observations, members=2, seed=1, out=out)
    assert close(first, open_dataset(out))
    assert not close(
        first, assimilate(prior, observations, members=2, seed=1, out=out, overwrite=True)
    )


def test_default_times(prior):
    def observed(*times):
        n = len(times)
        table = {"time": times, "variable": ["position"] * n, "observation": [0.0] * n, "std": 0.1}
        return Observations.from_table(table)

    for times, expected in [
        ((0.2, 0.5), [0.2, 0.3, 0.4, 0.5]),
        ((0.2, 0.45), [0.2, 0.3, 0.4, 0.5]),  # between two states
        ((0.3,), [0.3]),
    ]:
        assert np.allclose(trajectory_times(prior, observed(*times)), expected)

    class Windowed:
        layout, window, climatology = prior.layout, 6, prior.climatology

    assert len(trajectory_times(Windowed(), observed(0.2, 0.5))) == 6


def test_double_precision_of_a_field_with_a_network(field):
    """Its covariance has complex eigenvectors, which `Module.double` leaves alone."""

    climatology = field[0].climatology
    torch.manual_seed(0)
    network = {"name": "unet", "widths": (8, 8), "depths": (1, 1)}
    prior = Prior(climatology, WindowDenoiser(climatology, 5, network).eval())
    options = {"members": 2, "steps": 4, "block": 1}
    single = assimilate(prior, field[1], **options)
    double = assimilate(prior, field[1], dtype="float64", **options)
    assert double.x.dtype == np.float64 and np.isfinite(double.x).all()
    assert np.allclose(single.x.std(), double.x.std(), rtol=0.5)


def test_a_stray_time_does_not_fill_the_memory(prior, observations):
    table = {"time": [0.0, 1e7], "variable": ["position"] * 2, "observation": [0.0] * 2, "std": 0.1}
    stray = Observations.from_table(table)
    with pytest.raises(ValueError, match=r"span times 0 to 1e\+07, which is 100000001 states"):
        assimilate(prior, stray, members=2)
    with pytest.raises(ValueError, match=r"memory=100kB is less than one block .* 101 states"):
        assimilate(prior, observations, members=2, time=0.1 * np.arange(101), memory="100kB")


def test_longer_time_than_observed(system, prior, observations):
    """States after the last observation are forecasts: their spread grows."""

    spread = assimilate(
        prior, observations, members=200, time=system.layout.times(LENGTH + 12), guidance="static"
    ).position.std("member")
    assert spread.sizes["time"] == LENGTH + 12
    assert spread[-1] > 2 * spread[LENGTH - 1]


def test_block_sizes():
    shape = (64, 2, 64, 64)
    for members in (1, 7, 64, 1000):
        block = block_size(members, shape, torch.float32, "2GiB")
        assert 1 <= block <= members and block * 64 * 2 * 64 * 64 * 4 * 40 <= 2 * 2**30
    assert block_size(100, shape, torch.float32, 1000) == 1
    assert block_size(300, (1, 3), torch.float32, "2GiB") == 150
    assert size_in_bytes("2GiB") == 2 * 2**30 and size_in_bytes("1.5kB") == 1500
    assert size_in_bytes(12) == 12 and size_in_bytes("3m") == 3 * 2**20


def test_no_warning_when_all_is_well(prior, observations):
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        assert isinstance(assimilate(prior, observations, members=2), xr.Dataset)
