"""Streaming, blocking, killing and resuming: the trajectories must not notice."""

import os
import random
import signal
import subprocess
import sys
import time
import tracemalloc
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import xarray as xr
from torch import Tensor

import dynamics
from dynamics.finite_volume import FiniteVolumeKolmogorov
from dynamics.simulate import simulate
from dynamics.simulation_store import Store
from dynamics.system import System
from sda.store import open_dataset

SYSTEMS: dict[str, System] = {
    "linear": dynamics.LinearGaussian.damped_spring(),
    "lorenz63": dynamics.Lorenz63(noise=True),
    "lorenz96": dynamics.Lorenz96(noise=True),
    "kuramoto-sivashinsky": dynamics.KuramotoSivashinsky(),
    "kolmogorov": dynamics.KolmogorovFlow(size=16, resolution=32, reynolds=100.0),
    "finite-volume": FiniteVolumeKolmogorov(size=16, resolution=32, reynolds=100.0),
}


class Doomed(System):
    """Adds one at each step; one member turns into NaN or infinity after a while."""

    def __init__(self, member: int, step: int, value: float = float("nan")) -> None:
        self.member, self.at, self.value = member, step, value
        self.layout = dynamics.Layout(variables=("steps", "index"), dt=0.5)

    def initial_model(
        self,
        members: Sequence[int],
        seed: int = 0,
        dtype: torch.dtype = torch.float32,
        device: torch.device | str = "cpu",
    ) -> Tensor:
        index = torch.tensor(list(members), dtype=dtype, device=device)
        return torch.stack((torch.zeros_like(index), index), dim=1)

    def advance(self, z: Tensor, noise: Tensor | None = None) -> Tensor:
        z = z + torch.tensor([1.0, 0.0])
        bad = (z[:, 1] == self.member) & (z[:, 0] >= self.at)
        return torch.where(bad[:, None] & torch.tensor([True, False]), self.value, z)

    def config(self) -> dict[str, Any]:
        return {"member": self.member, "step": self.at}


def same(a: xr.Dataset, b: xr.Dataset, tolerance: float = 0.0) -> bool:
    """Whether two datasets have the same values, to the bit by default, and coordinates."""

    return list(a.data_vars) == list(b.data_vars) and all(
        a[name].shape == b[name].shape and np.allclose(a[name], b[name], rtol=0, atol=tolerance)
        for name in (*a.data_vars, *a.coords)
    )


@pytest.mark.parametrize("name", SYSTEMS)
def test_no_blocking_changes_a_bit(name: str, tmp_path: Path) -> None:
    system = SYSTEMS[name]
    # The FFT of the baseline's single fields is another one than that of several.
    near = 1e-4 if name == "finite-volume" else 0.0
    whole = simulate(system, 5, 7, spinup=4, seed=3, stride=2)
    for member_block, time_block in ((1, 1), (2, 3), (5, 2), (3, 7)):
        blocks = {"member_block": member_block, "time_block": time_block}
        assert same(simulate(system, 5, 7, 4, 3, stride=2, **blocks), whole, near)
    blocks = {"member_block": 2, "time_block": 3}
    out = tmp_path / "a.zarr"
    assert same(simulate(system, 5, 7, 4, 3, out, stride=2, **blocks), whole, near)
    assert same(xr.open_zarr(out)[list(whole.data_vars)], whole, near)
    # A smaller ensemble is the start of a larger one.
    assert same(simulate(system, 2, 7, 4, 3, stride=2), whole.isel(member=slice(2)), near)
    assert not same(simulate(system, 5, 7, 4, 4, stride=2), whole, near)


@pytest.mark.parametrize("name", [name for name in SYSTEMS if not SYSTEMS[name].stochastic])
def test_spinup_and_stride_are_steps_of_the_system(name: str) -> None:
    system = SYSTEMS[name]
    z = system.initial_model(range(2), seed=1)
    states = []
    for step in range(3 + 2 * 3 + 1):
        if step >= 3 and (step - 3) % 2 == 0:
            states.append(system.project(z))
        z = system.advance(z)
    dataset = system.simulate(2, 4, spinup=3, seed=1, stride=2)
    assert torch.equal(
        torch.from_numpy(system.layout.to_array(dataset)), torch.stack(states, dim=1)
    )
    assert np.allclose(dataset.time, 2 * system.layout.dt * np.arange(4))


def test_the_noise_of_long_runs_is_drawn_in_pieces_without_repetition() -> None:
    system = dynamics.LinearGaussian([[0.0]], [[1.0]])
    x = simulate(system, 2, 3000, seed=1, time_block=700, dtype="float64").x0.values
    assert len(np.unique(x)) == x.size
    assert abs(x.mean()) < 0.05 and abs(x.var() - 1) < 0.1


def test_a_store_is_self_describing(tmp_path: Path) -> None:
    system = dynamics.KolmogorovFlow(size=16, resolution=32)
    stored = system.simulate(3, 4, seed=7, out=tmp_path / "new" / "k.zarr", dtype=torch.float64)
    assert stored.u.dtype == np.float64
    assert stored.attrs["system"] == "KolmogorovFlow" and stored.attrs["seed"] == 7
    assert stored.attrs["simulation"] == "complete"
    assert '"reynolds": 1000.0' in stored.attrs["config"]
    assert '"torch"' in stored.attrs["versions"]
    layout = dynamics.Layout.from_dataset(xr.open_zarr(tmp_path / "new" / "k.zarr"))
    assert layout.variables == ("u", "v") and layout.period == system.layout.period
    assert [path.name for path in (tmp_path / "new").iterdir()] == ["k.zarr"]


def test_constant_fields_are_coordinates(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    flow = dynamics.KolmogorovFlow(size=16, resolution=32, forcing=2.0, wavenumber=3)
    # The averages over the cells of the force, by quadrature.
    fine = (np.arange(16 * 64) + 0.5) * 2 * np.pi / (16 * 64)
    force = 2 * np.sin(3 * fine).reshape(16, 64).mean(1)
    memory, stored = flow.simulate(2, 4), flow.simulate(2, 4, out=tmp_path / "a.zarr")
    with monkeypatch.context() as patch, pytest.raises(KeyboardInterrupt):
        patch.setattr(Store, "save", lambda *_: (_ for _ in ()).throw(KeyboardInterrupt))
        flow.simulate(2, 4, out=tmp_path / "b.zarr", time_block=2)
    resumed = flow.simulate(2, 4, out=tmp_path / "b.zarr", resume=True)
    reopened = open_dataset(tmp_path / "a.zarr")
    for dataset in (memory, stored, resumed, reopened):
        assert list(dataset.data_vars) == ["u", "v"]
        assert dataset.forcing.dims == ("y", "x") and dataset.forcing.dtype == np.float32
        np.testing.assert_allclose(dataset.forcing, np.tile(force[:, None], (1, 16)), atol=1e-4)
        layout = dynamics.Layout.from_dataset(dataset)
        assert layout.variables == ("u", "v") and layout.dims == ("y", "x")
    assert not dynamics.Lorenz63().static()


def test_constant_fields_that_do_not_fit_are_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    flow = dynamics.KolmogorovFlow(size=16, resolution=32)
    for fields, words in (
        ({"u": np.zeros((16, 16))}, "'u' has the name of a variable"),
        ({"height": np.zeros(16)}, r"'height' must have the shape \(16, 16\)"),
    ):
        monkeypatch.setattr(flow, "static", lambda fields=fields: fields)
        with pytest.raises(ValueError, match=words):
            flow.simulate(1, 2)


def test_one_file_per_block_and_one_chunk_per_window(tmp_path: Path) -> None:
    system = dynamics.KolmogorovFlow(size=64, resolution=64)
    simulate(system, 4, 2, out=tmp_path / "k.zarr", member_block=2)
    stored = xr.open_zarr(tmp_path / "k.zarr")
    assert stored.u.encoding["shards"] == (2, 2, 64, 64)
    assert len(list((tmp_path / "k.zarr" / "u").rglob("c/*/0/0/0"))) == 2
    # Small states share chunks, or a chunk would be a few bytes.
    simulate(dynamics.Lorenz63(), 64, 100, out=tmp_path / "l.zarr")
    assert xr.open_zarr(tmp_path / "l.zarr").x.encoding["chunks"] == (64, 100)


def interruptions() -> list[tuple[str, int]]:
    return [(method, count) for method in ("write", "save") for count in (1, 2, 4, 6)]


@pytest.mark.parametrize(("method", "count"), interruptions())
@pytest.mark.parametrize("name", ["lorenz96", "kolmogorov"])
def test_an_interrupt_anywhere_loses_nothing(
    name: str, method: str, count: int, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    system = SYSTEMS[name]
    arguments: dict[str, Any] = {"members": 3, "length": 5, "spinup": 3, "seed": 2}
    blocks = {"member_block": 2, "time_block": 2}
    out = tmp_path / "a.zarr"
    original, calls = getattr(Store, method), []

    def interrupted(self: Store, *args: Any) -> None:
        calls.append(1)
        if len(calls) == count:
            raise KeyboardInterrupt
        original(self, *args)

    with monkeypatch.context() as patch:
        patch.setattr(Store, method, interrupted)
        with pytest.raises(KeyboardInterrupt):
            system.simulate(**arguments, **blocks, out=out)
    unfinished = xr.open_zarr(out)
    assert unfinished.attrs["simulation"] == "incomplete"
    whole = system.simulate(**arguments)
    for variable in whole.data_vars:
        written = unfinished[variable].values
        assert np.array_equal(
            np.where(np.isnan(written), whole[variable].values, written), whole[variable].values
        )

    steps = []
    advance = type(system).advance
    monkeypatch.setattr(type(system), "advance", lambda *args: steps.append(1) or advance(*args))
    # The blocks are the store's own where none are given.
    assert same(system.simulate(**arguments, out=out, resume=True), whole)
    assert not Path(f"{out}.partial").exists()
    if count > 1:
        assert len(steps) < 2 * (3 + 4)


KILLED = """
import sys, dynamics
system = dynamics.Lorenz96(noise=True)
print("ready", flush=True)
system.simulate(
    6, 150, spinup=50, seed=5, out=sys.argv[1], member_block=2, time_block=5, resume=True
)
"""


def test_kill_9_at_a_random_moment_and_resume(tmp_path: Path) -> None:
    out = tmp_path / "a.zarr"
    environment = {**os.environ, "OMP_NUM_THREADS": "1", "PYTHONPATH": os.pathsep.join(sys.path)}
    kills = 0
    for _ in range(2):
        child = subprocess.Popen(
            [sys.executable, "-c", KILLED, str(out)], stdout=subprocess.PIPE, env=environment
        )
        assert child.stdout and child.stdout.readline() == b"ready\n"
        time.sleep(random.uniform(0.05, 0.5))
        child.send_signal(signal.SIGKILL)
        kills += child.wait() == -signal.SIGKILL
        child.stdout.close()
    assert kills >= 1
    system = dynamics.Lorenz96(noise=True)
    resumed = system.simulate(6, 150, 50, 5, out, resume=True)
    assert same(resumed, system.simulate(6, 150, 50, 5))
    assert [path.name for path in tmp_path.iterdir()] == ["a.zarr"]


def test_existing_stores_are_left_alone_unless_told(tmp_path: Path) -> None:
    system, out = dynamics.Lorenz63(), tmp_path / "a.zarr"
    first = system.simulate(2, 5, seed=1, out=out).load()
    with pytest.raises(FileExistsError, match="overwrite=True.*resume=True"):
        system.simulate(2, 5, seed=2, out=out)
    assert same(xr.open_zarr(out)[["x", "y", "z"]], first)
    assert same(system.simulate(2, 5, seed=1, out=out, resume=True, member_block=1), first)
    assert same(
        system.simulate(2, 5, seed=2, out=out, overwrite=True), system.simulate(2, 5, seed=2)
    )


@pytest.mark.parametrize("complete", [True, False])
@pytest.mark.parametrize(
    ("change", "words"),
    [
        ({"seed": 9}, "another seed: 1, now 9"),
        ({"members": 4}, "another members: 3, now 4"),
        ({"length": 7}, "another length: 8, now 7"),
        ({"spinup": 2}, "another spinup: 0, now 2"),
        ({"stride": 2}, "another stride: 1, now 2"),
        ({"dtype": "float64"}, "another dtype: float32, now float64"),
        ({"system": dynamics.Lorenz63(rho=20.0)}, "another config: rho=28.0, now rho=20.0"),
        ({"system": dynamics.Lorenz96()}, "another system: Lorenz63, now Lorenz96"),
    ],
)
def test_a_run_is_resumed_only_with_the_same_arguments(
    complete: bool, change: dict[str, Any], words: str, tmp_path: Path, monkeypatch: Any
) -> None:
    arguments = {"system": dynamics.Lorenz63(), "members": 3, "length": 8, "seed": 1}
    out = tmp_path / "a.zarr"
    if complete:
        simulate(**arguments, out=out)
    else:
        with monkeypatch.context() as patch, pytest.raises(KeyboardInterrupt):
            patch.setattr(Store, "save", lambda *_: (_ for _ in ()).throw(KeyboardInterrupt))
            simulate(**arguments, out=out, time_block=4)
    with pytest.raises(ValueError, match=words):
        simulate(**{**arguments, **change}, out=out, resume=True)


def test_other_blocks_and_lost_restart_states_are_refused(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    out, system = tmp_path / "a.zarr", dynamics.Lorenz63()
    with monkeypatch.context() as patch, pytest.raises(KeyboardInterrupt):
        patch.setattr(Store, "finish", lambda *_: (_ for _ in ()).throw(KeyboardInterrupt))
        simulate(system, 3, 8, out=out, time_block=4)
    with pytest.raises(ValueError, match="another time_block: 4, now 2"):
        simulate(system, 3, 8, out=out, time_block=2, resume=True)
    for file in Path(f"{out}.partial").iterdir():
        file.unlink()
    Path(f"{out}.partial").rmdir()
    with pytest.raises(ValueError, match="restart state .* is missing"):
        simulate(system, 3, 8, out=out, resume=True)


def test_foreign_paths_are_left_alone(tmp_path: Path) -> None:
    system = dynamics.Lorenz63()
    precious = tmp_path / "thesis"
    precious.mkdir()
    (precious / "chapter.tex").write_text("…")
    for option in ("overwrite", "resume"):
        with pytest.raises(ValueError, match="not a Zarr store"):
            simulate(system, 2, 3, out=precious, **{option: True})
    assert (precious / "chapter.tex").exists()

    other = system.layout.to_dataset(np.zeros((1, 2, 3)))
    other.to_zarr(tmp_path / "b.zarr", zarr_format=3, consolidated=False)
    with pytest.raises(ValueError, match="was not written by simulate"):
        simulate(system, 2, 3, out=tmp_path / "b.zarr", resume=True)


@pytest.mark.parametrize("value", [float("nan"), float("inf")])
def test_a_member_that_diverges_is_named_and_the_rest_is_kept(value: float, tmp_path: Path) -> None:
    out = tmp_path / "a.zarr"
    with pytest.raises(FloatingPointError, match="member 3 is not finite at step 9 .*4.5"):
        simulate(Doomed(3, 9, value), 6, 10, spinup=2, out=out, member_block=2, time_block=4)
    steps = xr.open_zarr(out).steps.values
    assert np.array_equal(steps[:2], np.tile(np.arange(2.0, 12.0), (2, 1)))
    assert np.array_equal(steps[2:4, :7], np.tile(np.arange(2.0, 9.0), (2, 1)))
    assert np.isnan(steps[2:4, 7:]).all() and np.isnan(steps[4:]).all()


def test_a_member_that_diverges_in_the_spinup_is_named() -> None:
    with pytest.raises(FloatingPointError, match="member 1 is not finite at step 128"):
        simulate(Doomed(1, 70), 2, 3, spinup=200, member_block=1)
    # The flow checks itself; its message is completed with the member and the step.
    flow = dynamics.KolmogorovFlow(size=16, resolution=32)
    flow.initial_model = lambda members, *_: torch.full(  # type: ignore[method-assign]
        (len(members), 32, 17), float("nan"), dtype=torch.complex64
    )
    with pytest.raises(FloatingPointError, match="member 0 is not finite at step 0"):
        simulate(flow, 2, 3)


@pytest.mark.parametrize(
    ("options", "words"),
    [
        ({"members": 0}, "members must be at least 1, got 0"),
        ({"length": -1}, "length must be at least 1, got -1"),
        ({"spinup": -1}, "spinup must be at least 0, got -1"),
        ({"seed": -1}, "seed must be at least 0, got -1"),
        ({"stride": 0}, "stride must be at least 1, got 0"),
        ({"member_block": 0}, "member_block must be at least 1, got 0"),
        ({"dtype": torch.float16}, "dtype must be one of .* got torch.float16"),
        ({"resume": True}, "need a store"),
        ({"device": "abacus", "out": "a.zarr"}, "device 'abacus' is not available"),
        ({"out": "a.zarr", "resume": True, "overwrite": True}, "exclude each other"),
    ],
)
def test_arguments_out_of_range_are_named(
    options: dict[str, Any], words: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    with pytest.raises(ValueError, match=words):
        simulate(dynamics.Lorenz63(), **{"members": 2, "length": 3, **options})
    assert not Path("a.zarr").exists() and not Path("a.zarr.partial").exists()
    with pytest.raises(TypeError, match="members must be an integer, got 2.5"):
        simulate(dynamics.Lorenz63(), 2.5, 3)  # type: ignore[arg-type]


def test_memory_is_bounded_by_the_block(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    system, shapes = dynamics.Lorenz96(), []
    write = Store.write

    def recorded(self: Store, first_member: int, first_frame: int, states: np.ndarray) -> None:
        shapes.append(states.shape)
        write(self, first_member, first_frame, states)

    monkeypatch.setattr(Store, "write", recorded)

    def peak(members: int) -> int:
        tracemalloc.start()
        simulate(
            system, members, 50, out=tmp_path / f"{members}.zarr", member_block=4, time_block=25
        )
        _, most = tracemalloc.get_traced_memory()
        tracemalloc.stop()
        return most

    peak(4)
    few, many = peak(8), peak(64)
    assert many < 1.5 * few
    assert all(shape[0] <= 4 and shape[1] <= 25 for shape in shapes)


def test_progress_goes_to_stderr_when_asked(capsys: pytest.CaptureFixture[str]) -> None:
    simulate(dynamics.Lorenz63(), 2, 5, progress=True)
    captured = capsys.readouterr()
    assert "simulate Lorenz63: 100%" in captured.err and "8.00/8.00" in captured.err
    assert not captured.out
    simulate(dynamics.Lorenz63(), 2, 5)
    assert not capsys.readouterr().err


def test_overwrite_leaves_stores_of_others_alone(tmp_path: Path) -> None:
    store = tmp_path / "posterior.zarr"
    dynamics.Lorenz63().layout.to_dataset(np.zeros((1, 2, 3))).to_zarr(store, consolidated=False)
    with pytest.raises(ValueError, match="was not written by simulate and is left alone"):
        dynamics.Lorenz63().simulate(members=1, length=2, out=store, overwrite=True)
    assert store.exists()
