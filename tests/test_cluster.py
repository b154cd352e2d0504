"""Workers: the same results as one process, whoever is killed."""

import errno
import json
import os
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import numpy as np
import pytest
import torch
import xarray as xr

import dynamics
import dynamics.cluster
from dynamics.cluster import read_job, write_job
from sda import cli
from sda.assimilation import assimilate
from sda.benchmarks.runner import benchmark
from sda.climatology import Climatology
from sda.cluster import assimilate_each
from sda.observation import Select, observe
from sda.prior import Prior
from sda.store import PosteriorWriter, open_dataset
from sda.verification import verify

LENGTH, MEMBERS = 17, 6
# To the bit on one machine; batched products of other sizes are rounded differently.
TOLERANCE = 2e-3


@pytest.fixture(scope="module")
def cluster() -> Iterator:
    """Two worker processes, started once for all tests."""

    from distributed import LocalCluster

    with LocalCluster(
        n_workers=2, threads_per_worker=1, dashboard_address=None, silence_logs=50
    ) as running:
        yield running


@pytest.fixture(scope="module")
def prior():
    system = dynamics.LinearGaussian.damped_spring()
    covariance = system.trajectory_covariance(LENGTH)
    return Prior(Climatology.from_moments(system.layout, torch.zeros(3), covariance))


@pytest.fixture(scope="module")
def observations():
    system = dynamics.LinearGaussian.damped_spring()
    truth = system.simulate(members=1, length=LENGTH, seed=9).isel(member=0)
    return observe(truth, Select(variables=["position"], every=4), std=0.1, seed=1)


@pytest.fixture(scope="module")
def whole(prior, observations):
    """The posterior of one process, undisturbed."""
    return assimilate(prior, observations, MEMBERS, seed=2)


def close(a: xr.Dataset, b: xr.Dataset) -> bool:
    return all(
        np.allclose(a[name], b[name], rtol=0, atol=TOLERANCE * float(a[name].std()))
        for name in a.data_vars
    )


def pids(cluster) -> list[int]:
    return [worker.pid for worker in cluster.workers.values() if worker.pid]


def when(happened: Callable[[], bool], then: Callable[[], object]) -> threading.Thread:
    """Does something as soon as something has happened."""

    def watch() -> None:
        while not happened():
            time.sleep(0.005)
        then()

    thread = threading.Thread(target=watch, daemon=True)
    thread.start()
    return thread


def test_a_full_disk_leaves_no_half_of_a_job(tmp_path, monkeypatch):
    def full(handle):
        raise OSError(errno.ENOSPC, "full")

    with monkeypatch.context() as patch:
        patch.setattr(os, "fsync", full)
        with pytest.raises(OSError, match="full"):
            write_job(tmp_path / "job", {"a": 1})
    assert list(tmp_path.iterdir()) == []
    assert read_job(tmp_path / "job", write_job(tmp_path / "job", {"a": 1})) == {"a": 1}


def test_simulated_by_workers_of_which_one_is_killed(cluster, tmp_path):
    system, out = dynamics.Lorenz96(noise=True), tmp_path / "a.zarr"
    arguments = {"members": 8, "length": 300, "spinup": 20, "seed": 5}
    partial = Path(f"{out}.partial")
    lost: list[int] = []

    def kill() -> None:
        lost.append(sum(1 for _ in partial.glob("*.safetensors")))
        os.kill(pids(cluster)[0], signal.SIGKILL)

    watcher = when(lambda: len(list(partial.glob("*.safetensors"))) >= 2, kill)
    dataset = system.simulate(
        **arguments, out=out, member_block=1, time_block=20, cluster=cluster.scheduler_address
    )
    watcher.join()
    assert lost and lost[0] < 8  # it was in the middle
    assert dataset.attrs["simulation"] == "complete"
    np.testing.assert_array_equal(dataset["x"], system.simulate(**arguments)["x"])
    assert [path.name for path in tmp_path.iterdir()] == ["a.zarr"]


@pytest.mark.parametrize("guidance", ["hybrid", "static"])
def test_assimilated_by_workers_of_which_one_is_killed(
    cluster, prior, observations, whole, tmp_path, guidance
):
    """What the members share, the pilots of the hybrid guidance, is the same for all workers."""

    out = tmp_path / "p.zarr"
    records = Path(f"{out}.partial")
    again = whole
    if guidance == "hybrid":
        watcher = when(
            lambda: any(records.glob("*/block-*.json")),
            lambda: os.kill(pids(cluster)[-1], signal.SIGKILL),
        )
    else:
        again = assimilate(prior, observations, MEMBERS, seed=2, guidance=guidance)
    posterior = assimilate(
        prior, observations, MEMBERS, seed=2, out=out, block=1, cluster=cluster,
        guidance=guidance if guidance == "static" else None,
    )  # fmt: skip
    if guidance == "hybrid":
        watcher.join()
    assert posterior.attrs["status"] == "complete" and posterior.attrs["block"] == 1
    assert close(again, posterior)
    assert [path.name for path in tmp_path.iterdir()] == ["p.zarr"]


CLIENT = """
import sys, torch
import dynamics
from sda.assimilation import assimilate
from sda.benchmarks.runner import benchmark
from sda.climatology import Climatology
from sda.observation import Observations
from sda.prior import Prior
if __name__ == "__main__":
    system = dynamics.LinearGaussian.damped_spring()
    covariance = system.trajectory_covariance(17)
    prior = Prior(Climatology.from_moments(system.layout, torch.zeros(3), covariance))
    observations = Observations.load(sys.argv[1])
    assimilate(
        prior, observations, 6, seed=2, out=sys.argv[2], block=1, cluster=sys.argv[3]
    )
"""


def test_the_client_is_killed(cluster, prior, observations, whole, tmp_path):
    """Workers go on with what they have begun; a run without any cluster takes it over."""

    out = tmp_path / "p.zarr"
    observations.save(tmp_path / "o.zarr")
    script = tmp_path / "client.py"
    script.write_text(CLIENT)
    environment = {**os.environ, "OMP_NUM_THREADS": "1", "PYTHONPATH": os.pathsep.join(sys.path)}
    client = subprocess.Popen(
        [sys.executable, script, tmp_path / "o.zarr", out, cluster.scheduler_address],
        env=environment,
    )
    staging = Path(f"{out}.partial")
    while not any(staging.glob("*/block-*.json")):
        assert client.poll() is None
        time.sleep(0.005)
    client.send_signal(signal.SIGKILL)
    client.wait()
    # A block that a worker was sampling is staged although nobody waits for it.
    time.sleep(1.0)
    staged = {int(record.stem[6:]) for record in staging.glob("*/block-*.json")}
    with PosteriorWriter(
        out, prior.layout, whole.time.values, MEMBERS, 1, settings_of(out), {}, resume=True
    ) as writer:
        kept = writer.finished
    assert staged and kept >= staged and not staging.exists()
    posterior = assimilate(prior, observations, MEMBERS, seed=2, out=out, resume=True)
    assert posterior.attrs["status"] == "complete" and close(whole, posterior)


def settings_of(path: Path) -> dict:
    return json.loads(open_dataset(path).attrs["settings"])


def test_independent_sets_of_observations(cluster, prior, observations, whole, tmp_path):
    found = assimilate_each(
        prior, {"a": observations, "b": observations}, tmp_path, cluster=cluster,
        members=MEMBERS, seed=2,
    )  # fmt: skip
    for name in ("a", "b"):
        assert close(whole, open_dataset(found[name]))
    with pytest.raises(FileExistsError, match="resume=true"):
        assimilate_each(prior, {"a": observations}, tmp_path, cluster=cluster, members=MEMBERS)


EXPERIMENT = """
defaults:
  - override /system: lorenz96
system: {dimension: 12, noise: false}
observing: {first: 2, every: 2, subsample: 2, std: 0.5}
initial: {mean: truth, std: 0.5}
cycles: 30
spinup: 50
burn_in: 1.0
dtype: float64
tuning: {trials: 2, cycles: 10}
entries:
  etkf: {method: etkf, members: 14, inflation: 1.05, search: {inflation: [1.0, 1.1]}}
  lost: {method: enkf, members: 2, label: Two members, search: {}}
"""


def test_benchmark_of_which_a_worker_is_killed(cluster, tmp_path):
    """Each worker writes the chunks of its methods and repetitions into the one store."""

    file, out = tmp_path / "ring.yaml", tmp_path / "many.zarr"
    file.write_text(EXPERIMENT)
    said: list[str] = []

    def say(line: str) -> None:
        if len(said) == 1:
            os.kill(pids(cluster)[0], signal.SIGKILL)
        said.append(line)

    options = {"repetitions": 2, "tune": True}
    many = benchmark(file, out=out, cluster=cluster, say=say, **options)
    one = benchmark(file, out=tmp_path / "one.zarr", **options)
    assert len(said) == 1 + 3 * 2 and said[0].startswith("[tuning]")
    assert many.attrs["status"] == "complete" and (many["finished"] == 1).all()
    assert json.loads(many.attrs["machine"])["workers"] == 2
    timed = ["seconds", "memory"]
    xr.testing.assert_allclose(one.drop_vars(timed), many.drop_vars(timed), rtol=1e-6)
    # Nothing is left to do for a run that goes on.
    said.clear()
    benchmark(file, out=out, cluster=cluster, say=said.append, resume=True, **options)
    assert not said


def test_verified_by_workers(cluster, prior, observations, whole, tmp_path, monkeypatch):
    """What is larger than memory is read by the workers; the scores are the same."""

    monkeypatch.chdir(tmp_path)
    system = dynamics.LinearGaussian.damped_spring()
    system.simulate(1, LENGTH, seed=9, out="truth.zarr")
    assimilate(prior, observations, MEMBERS, seed=2, out="p.zarr")
    posterior, truth = open_dataset("p.zarr"), open_dataset("truth.zarr").isel(member=0)
    one = verify(posterior, truth, observations, system)
    many = verify(posterior, truth, observations, system, cluster=cluster)
    xr.testing.assert_allclose(one, many)
    assert one.attrs == many.attrs and list(one) == list(many)
    assert sorted(path.name for path in tmp_path.iterdir()) == ["p.zarr", "truth.zarr"]
    with pytest.raises(ValueError, match="open the posterior with sda.open_dataset"):
        verify(posterior.load(), truth, cluster=cluster)


def test_an_error_on_a_worker_is_the_users(cluster, tmp_path):
    """A worker without a GPU says so, as this process would."""

    with pytest.raises(ValueError, match="device 'abacus' is not available"):
        dynamics.Lorenz63().simulate(
            2, 3, out=tmp_path / "a.zarr", cluster=cluster, device="abacus"
        )


def test_a_cluster_that_cannot_be_used(cluster, tmp_path, capsys, monkeypatch):
    out = tmp_path / "a.zarr"
    address = cluster.scheduler_address
    monkeypatch.setattr(dynamics.cluster, "TIMEOUT", 0.2)
    command = ["simulate", "system=lorenz63", "members=2", "length=3", f"out={out}"]
    for options, words in (
        (["cluster=tcp://127.0.0.1:1"], "no Dask scheduler answers at cluster='tcp://127.0.0.1:1'"),
        (["cluster=nowhere"], "no Dask scheduler answers"),
        (["cluster=nowhere.json"], "no scheduler file at 'nowhere.json'"),
        ([f"cluster={address}", "workers=2"], "has workers of its own"),
        (["workers=0"], "workers must be an integer of at least 1"),
    ):
        assert cli.main([*command, *options]) == 2
        error = capsys.readouterr().err
        assert words in error and error.count("\n") == 1
    assert not out.exists()


def test_workers_of_another_version_or_without_the_package() -> None:
    here = dynamics.cluster.survey()()
    dynamics.cluster.check_version(here, "a worker")
    with pytest.raises(ValueError, match="a worker does not have the package"):
        dynamics.cluster.check_version({**here, "package": None}, "a worker")
    with pytest.raises(ValueError, match=r"a worker has sda-torch 0\.0\.1 on Python"):
        dynamics.cluster.check_version({**here, "package": "0.0.1"}, "a worker")
