"""What may go wrong with a machine, and what is lost then: nothing that was finished.

After each fault what was done is readable, the run can be resumed, and its result is that of a run
that nothing disturbed. Other rows of the README's table are tested where the work is done: kills at
random moments in `dynamics/test_simulate.py`, `test_assimilation.py`, `test_training.py` and
`benchmarks/test_runner.py`, lost workers and clients in `test_cluster.py`.
"""

import contextlib
import errno
import os
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pytest
import torch
import xarray as xr

import dynamics
from sda import cli
from sda.assimilation import assimilate
from sda.climatology import Climatology
from sda.observation import Observations, Select, observe
from sda.prior import Prior
from sda.store import open_dataset

LENGTH, MEMBERS = 17, 6
SIMULATION: dict[str, Any] = {"members": 3, "length": 6, "spinup": 2, "seed": 5}
BLOCKS = {"member_block": 2, "time_block": 3, "progress": False}
SYSTEM = dynamics.LinearGaussian.damped_spring()
# One that forgets soon, whose blocks of time are short.
MIXING = dynamics.LinearGaussian([[0.8, 0.3], [-0.3, 0.7]], [[0.3, 0.0], [0.0, 0.5]], dt=0.1)


def prior() -> Prior:
    covariance = SYSTEM.trajectory_covariance(LENGTH)
    return Prior(Climatology.from_moments(SYSTEM.layout, torch.zeros(3), covariance))


def observations() -> Observations:
    truth = SYSTEM.simulate(members=1, length=LENGTH, seed=9, progress=False).isel(member=0)
    return observe(truth, Select(variables=["position"], every=4), std=0.1, seed=1)


def simulated(out: Path | None = None, **options: Any) -> xr.Dataset:
    blocks = BLOCKS if out is not None else {"progress": False}
    return SYSTEM.simulate(**SIMULATION, out=out, **blocks, **options)


def assimilated(out: Path | None = None, **options: Any) -> xr.Dataset:
    return assimilate(
        prior(), observations(), MEMBERS, 2, out, guidance="static", steps=8, block=2, **options
    )


def in_blocks_of_time(out: Path | None = None, **options: Any) -> xr.Dataset:
    """A posterior whose state is on disk, see `sda.long`."""

    covariance = MIXING.trajectory_covariance(4)
    forgetful = Prior(Climatology.from_moments(MIXING.layout, torch.zeros(2), covariance))
    times = MIXING.layout.times(80)
    y = torch.sin(torch.arange(8.0))
    seen = Observations.from_table(
        {"time": times[::10], "variable": ["x0"] * 8, "observation": y, "std": [0.3] * 8}
    )
    return assimilate(
        forgetful, seen, 2, 2, out, time=times, guidance="static", langevin=None, steps=4,
        frames=20, **options,
    )  # fmt: skip


RUNS: dict[str, Callable[..., xr.Dataset]] = {"simulation": simulated, "posterior": assimilated}
KILLABLE = {**RUNS, "long": in_blocks_of_time}


@pytest.fixture(scope="module")
def undisturbed() -> dict[str, xr.Dataset]:
    return {name: run() for name, run in KILLABLE.items()}


def complete(name: str, dataset: xr.Dataset) -> bool:
    return dataset.attrs["simulation" if name == "simulation" else "status"] == "complete"


def same(a: xr.Dataset, b: xr.Dataset) -> bool:
    """The same values, up to what batched products round differently."""
    return list(a.data_vars) == list(b.data_vars) and all(
        np.allclose(a[name], b[name], rtol=0, atol=1e-5) for name in a.data_vars
    )


def readable(path: Path, whole: xr.Dataset) -> None:
    """What is there is what it will be, and the rest is NaN."""

    dataset = open_dataset(path)
    for name in whole.data_vars:
        found = dataset[name].values
        assert np.allclose(np.where(np.isnan(found), whole[name], found), whole[name], atol=1e-5)


# A process that has not read or written anything yet is copied for each moment, and each copy is
# killed at its own: before the n-th time that a file is forced to disk or put into its place.
KILLED = """
import os, signal, sys
from pathlib import Path
sys.path.insert(0, sys.argv[1])
import torch
torch.set_num_threads(1)
import dask.array, safetensors.torch, xarray.backends.zarr, zarr.codecs
import test_faults

for run in test_faults.KILLABLE.values():
    run()  # in memory: all is imported, and no thread of Zarr's has begun

def killed_at(moment, run, out):
    count = 0
    def counting(function):
        def call(*arguments, **options):
            nonlocal count
            count += 1
            if count == moment:
                os.kill(os.getpid(), signal.SIGKILL)
            return function(*arguments, **options)
        return call
    for name in ("fsync", "replace", "rename"):
        setattr(os, name, counting(getattr(os, name)))
    run(out)

for word in sys.argv[3:]:
    name, moment = word.split("-")
    child = os.fork()
    if not child:
        run = test_faults.KILLABLE[name]
        killed_at(int(moment), run, Path(sys.argv[2]) / f"{word}.zarr")
        os._exit(0)
    _, status = os.waitpid(child, 0)
    print(word, os.WTERMSIG(status) if os.WIFSIGNALED(status) else 0, flush=True)
"""


def test_kill_9_while_writing(tmp_path: Path, undisturbed: dict[str, xr.Dataset]) -> None:
    """At any step of a write: of a shard, of its record, of the restart state, of the store.

    And in the middle of a long run, between two phases of which the state is on disk.
    """

    words = [f"{name}-{moment}" for name in RUNS for moment in (4, 9, 14, 17)]
    words += [f"long-{moment}" for moment in (4, 14, 40, 63, 80)]
    done = subprocess.run(
        [sys.executable, "-c", KILLED, str(Path(__file__).parent), str(tmp_path)]
        + words,
        env={**os.environ, "OMP_NUM_THREADS": "1", "PYTHONPATH": os.pathsep.join(sys.path)},
        capture_output=True, text=True, check=True, timeout=300,
    )  # fmt: skip
    ends = [line.split() for line in done.stdout.splitlines()]
    assert ends == [[word, str(int(signal.SIGKILL))] for word in words]
    for word in words:
        name = word.partition("-")[0]
        out, whole = tmp_path / f"{word}.zarr", undisturbed[name]
        if out.exists():
            readable(out, whole)
        resumed = KILLABLE[name](out, resume=True)
        assert complete(name, resumed) and same(resumed, whole), word
    left = [path.name for path in tmp_path.iterdir() if not path.name.startswith(".")]
    assert sorted(left) == sorted(f"{word}.zarr" for word in words)


@pytest.mark.parametrize("name", RUNS)
def test_disk_full_while_writing(
    name: str, tmp_path: Path, undisturbed: dict[str, xr.Dataset], monkeypatch: pytest.MonkeyPatch
) -> None:
    """Modern file systems say so when a file is forced to disk, not when it is written."""

    fsync, calls = os.fsync, [0]

    def full(handle: int) -> None:
        calls[0] += 1
        if calls[0] == after:
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
        fsync(handle)

    for after in (9, 14, 17):
        out = tmp_path / f"{after}.zarr"
        calls[0] = 0
        with monkeypatch.context() as patch:
            patch.setattr(os, "fsync", full)
            with pytest.raises(OSError, match="disk is full while .*resume=true") as info:
                RUNS[name](out)
        assert info.value.errno == errno.ENOSPC
        if out.exists():
            readable(out, undisturbed[name])
        resumed = RUNS[name](out, resume=True)
        assert complete(name, resumed) and same(resumed, undisturbed[name])


def test_a_second_process_is_refused(tmp_path: Path, undisturbed: dict[str, xr.Dataset]) -> None:
    """One writer at a time, of simulations too; the first goes on as if nothing had happened."""

    holder = """
import sys, time
from pathlib import Path
from dynamics.lock import Lock
with Lock(sys.argv[1]):
    print("held", flush=True)
    sys.stdin.read()
"""
    for name, run in KILLABLE.items():
        out = tmp_path / f"{name}.zarr"
        with subprocess.Popen(
            [sys.executable, "-c", holder, str(out)], stdin=subprocess.PIPE, stdout=subprocess.PIPE,
            env={**os.environ, "PYTHONPATH": os.pathsep.join(sys.path)}, text=True,
        ) as process:  # fmt: skip
            assert process.stdout is not None and process.stdout.readline() == "held\n"
            for options in ({}, {"overwrite": True}, {"resume": True}):
                with pytest.raises(FileExistsError, match=f"written by process {process.pid} on"):
                    run(out, **options)
            process.kill()
        # The lock of a process that was killed is taken over.
        assert complete(name, run(out)) and [path.name for path in tmp_path.iterdir()] == [out.name]
        assert same(open_dataset(out), undisturbed[name])
        shutil.rmtree(out)


@pytest.fixture
def small_disk(tmp_path: Path) -> Any:
    """A file system of 512 KiB, where the machine lets us make one."""

    place = tmp_path / "disk"
    place.mkdir()
    mount = ["mount", "-t", "tmpfs", "-o", "size=512k", "tmpfs", str(place)]
    if shutil.which("mount") is None or subprocess.run(mount, capture_output=True).returncode:
        pytest.skip("needs the right to mount a file system")
    yield place
    subprocess.run(["umount", "-l", str(place)], check=True)


@pytest.mark.parametrize("name", RUNS)
def test_a_disk_that_is_full_indeed(
    name: str, small_disk: Path, undisturbed: dict[str, xr.Dataset]
) -> None:
    ballast, out, failures = small_disk / "ballast", small_disk / "out.zarr", 0
    with contextlib.suppress(OSError), ballast.open("wb") as file:
        while True:
            file.write(bytes(4096))
            file.flush()
    while ballast.stat().st_size:
        os.truncate(ballast, max(0, ballast.stat().st_size - 4 * 1024))
        try:
            resumed = RUNS[name](out, resume=True)
            break
        except OSError as error:
            failures += 1
            assert error.errno == errno.ENOSPC and "disk is full" in str(error)
        if out.exists():
            readable(out, undisturbed[name])
    assert failures >= 2
    assert complete(name, resumed) and same(resumed, undisturbed[name])


def truncate(path: Path) -> None:
    path.write_bytes(path.read_bytes()[:-9])


def flip(path: Path) -> None:
    content = bytearray(path.read_bytes())
    content[len(content) // 3] ^= 4
    path.write_bytes(bytes(content))


@pytest.mark.parametrize(
    ("damage", "words"),
    [(truncate, "bytes"), (flip, "another content than was written"), (os.unlink, "is missing")],
)
@pytest.mark.parametrize("name", RUNS)
def test_a_damaged_chunk(
    name: str,
    damage: Callable[[Path], None],
    words: str,
    tmp_path: Path,
    undisturbed: dict[str, xr.Dataset],
    capsys: Any,
) -> None:
    """Named by `sda info check=true`, and recomputed on resuming."""

    out, whole = tmp_path / "a.zarr", undisturbed[name]
    RUNS[name](out)
    assert cli.main(["info", str(out), "check=true"]) == 0
    assert "shards are as they were written" in capsys.readouterr().out
    shard = next(path for path in (out / "velocity" / "c" / "1").rglob("*") if path.is_file())
    damage(shard)

    assert cli.main(["info", str(out), "check=true"]) == 2
    error = capsys.readouterr().err
    assert "velocity/c/1/" in error and words in error and error.count("\n") == 1
    if damage is not flip:  # sizes are compared whenever it is opened
        with pytest.warns(RuntimeWarning, match=f"damaged.*velocity/c/1/.*{words}"):
            dataset = open_dataset(out)
        key = "simulation" if name == "simulation" else "status"
        assert dataset.attrs[key].startswith("damaged: velocity/c/1/")
        assert np.allclose(dataset["velocity"][:2], whole["velocity"][:2], atol=1e-5)
    with pytest.warns(RuntimeWarning, match=f"velocity/c/1/.*{words}"):
        resumed = RUNS[name](out, resume=True)
    assert complete(name, resumed) and same(resumed, whole)
    assert cli.main(["info", str(out), "check=true"]) == 0


@pytest.mark.parametrize("what", ["shard", "state"])
def test_damage_to_an_unfinished_simulation(
    what: str, tmp_path: Path, undisturbed: dict[str, xr.Dataset], monkeypatch: pytest.MonkeyPatch
) -> None:
    """Neither a shard nor a restart state that was altered is gone on with."""

    from dynamics.simulation_store import Store

    out, write = tmp_path / "a.zarr", Store.write

    def interrupted(self: Store, first_member: int, first_frame: int, states: np.ndarray) -> None:
        if first_member and first_frame:
            raise KeyboardInterrupt
        write(self, first_member, first_frame, states)

    with monkeypatch.context() as patch, pytest.raises(KeyboardInterrupt):
        patch.setattr(Store, "write", interrupted)
        simulated(out)
    if what == "shard":
        flip(out / "position" / "c" / "0" / "0")
    else:
        state = Path(f"{out}.partial") / "2.safetensors"
        content = bytearray(state.read_bytes())
        content[-2] ^= 1
        state.write_bytes(bytes(content))
    words = "position/c/0/0 has another" if what == "shard" else "restart state 2.safetensors"
    with pytest.warns(RuntimeWarning, match=words):
        resumed = simulated(out, resume=True)
    assert same(resumed, undisturbed["simulation"])


@pytest.mark.parametrize("form", ["grid", "table"])
def test_a_nan_in_the_observations(form: str, tmp_path: Path) -> None:
    """It was not observed: the posterior is that of the others. All others are refused."""

    lost, seen = [4, 12], [0, 8, 16]
    truth = SYSTEM.simulate(members=1, length=LENGTH, seed=9, progress=False)
    truth = truth.isel(member=0, drop=True)
    noisy = truth[["position"]].isel(time=slice(None, None, 4)).load() + 0.05
    holes = noisy.copy(deep=True)
    holes["position"][[1, 3]] = np.nan
    forms = []
    for dataset in (holes, noisy.isel(time=[0, 2, 4])):
        if form == "grid":
            forms.append(Observations.from_grid(dataset, std=0.1))
        else:
            table = dataset["position"].to_dataframe("observation").reset_index()
            forms.append(Observations.from_table(table.assign(variable="position"), std=0.1))
    assert len(forms[0]) == len(seen) and len(seen) + len(lost) == noisy.sizes["time"]
    time_ = truth["time"].values
    posteriors = [
        assimilate(prior(), each, MEMBERS, 2, guidance="static", steps=8, time=time_)
        for each in forms
    ]
    assert np.isfinite(posteriors[0].to_array()).all() and same(*posteriors)
    with pytest.raises(ValueError, match="NaN|none of them seen"):
        if form == "grid":
            Observations.from_grid(noisy * np.nan, std=0.1)
        else:
            broken = pd.DataFrame({"time": [0.0, np.nan], "variable": "position"})
            Observations.from_table(broken.assign(observation=1.0), std=0.1)


@pytest.mark.parametrize("name", RUNS)
def test_the_clock_runs_backwards(
    name: str, tmp_path: Path, undisturbed: dict[str, xr.Dataset], monkeypatch: pytest.MonkeyPatch
) -> None:
    """Within a run, and between a run and the one that resumes it; files are from the future."""

    out = tmp_path / "a.zarr"
    now = [time.time()]

    def back() -> float:
        now[0] -= 3600.0
        return now[0]

    fsync, calls = os.fsync, [0]

    def interrupted(handle: int) -> None:
        calls[0] += 1
        if calls[0] == 14:
            raise KeyboardInterrupt
        fsync(handle)

    with monkeypatch.context() as patch, pytest.raises(KeyboardInterrupt):
        patch.setattr(time, "time", back)
        patch.setattr(os, "fsync", interrupted)
        RUNS[name](out)
    assert calls[0] == 14
    # As if all had been written next century, the newest first.
    for age, path in enumerate(sorted(tmp_path.rglob("*"), reverse=True)):
        os.utime(path, (4e9 - age, 4e9 - age))
    with monkeypatch.context() as patch:
        patch.setattr(time, "time", back)
        resumed = RUNS[name](out, resume=True)
    assert complete(name, resumed) and same(resumed, undisturbed[name])
