"""Training on several processes equals training on one at the same global batch."""

import os
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import torch
from safetensors.torch import load_file

from dynamics import Lorenz96
from sda.processes import check_processes
from sda.training import TrainingOptions, train

# Without a decay at the end, a short run is the beginning of a longer one.
OPTIONS = {
    "window": 4,
    "network": {"name": "gated", "width": 8, "depth": 1},
    "batch": 8,
    "warmup": 5,
    "decay": 0.0,
}
# A script may train more than once: the processes that were started for the first stay.
SCRIPT = """
from sda.training import TrainingOptions, train
for strategy in ("ddp", "fsdp"):
    train({data!r}, {out!r} + "/" + strategy, TrainingOptions(steps=50, **{options!r}),
          device="cpu", progress=False, devices=2, strategy=strategy)
"""


@pytest.fixture(scope="module")
def store(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("archive") / "data.zarr"
    data = Lorenz96(dimension=12).simulate(members=8, length=100, spinup=200, seed=0)
    data.to_zarr(path, consolidated=False)

    return path


def train_on_two(store: Path, out: Path) -> None:
    out.mkdir()
    path = out / "run.py"
    path.write_text(SCRIPT.format(data=str(store), out=str(out), options=OPTIONS))
    environment = {k: v for k, v in os.environ.items() if k not in ("LOCAL_RANK", "WORLD_SIZE")}
    paths = [str(Path(__file__).resolve().parents[1]), environment.get("PYTHONPATH", "")]
    environment["PYTHONPATH"] = os.pathsep.join(filter(None, paths))
    done = subprocess.run(
        [sys.executable, str(path)], env=environment, timeout=240, capture_output=True, text=True
    )
    assert done.returncode == 0, done.stderr[-3000:]


def log(folder: Path) -> np.ndarray:
    return np.genfromtxt(folder / "log.csv", delimiter=",", names=True)


def test_two_processes_train_as_one_does(store: Path, tmp_path: Path) -> None:
    options, run = TrainingOptions(steps=100, **OPTIONS), {"device": "cpu", "progress": False}
    train(store, tmp_path / "one", options, **run)
    train_on_two(store, tmp_path / "two")

    expected, weights = log(tmp_path / "one"), load_file(tmp_path / "one" / "weights.safetensors")
    for strategy in ("ddp", "fsdp"):
        out = tmp_path / "two" / strategy
        assert log(out)["step"].tolist() == 50
        # The other half with one process: a checkpoint does not know how many wrote it.
        train(store, out, options, resume=True, **run)
        found = log(out)
        assert found["step"].tolist() == [50, 100]
        for name in ("loss", "gaussian", "rate"):
            np.testing.assert_allclose(found[name], expected[name], rtol=1e-4, err_msg=strategy)
        again = load_file(out / "weights.safetensors")
        assert again.keys() == weights.keys()
        for name, tensor in weights.items():
            torch.testing.assert_close(again[name], tensor, rtol=1e-4, atol=1e-5)


def test_processes_that_cannot_train_together_are_refused(
    store: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    for arguments, message in (
        ((3, 1, "ddp", 8), "batch=8 cannot be split evenly over 3 processes"),
        ((2, 3, "ddp", 8), "multiple of 6"),
        ((1, 1, "horovod", 8), "unknown strategy 'horovod': choose one of ddp, fsdp"),
        ((0, 1, "ddp", 8), "devices must be an integer of at least 1, got 0"),
        ((1, 0, "ddp", 8), "nodes must be an integer of at least 1, got 0"),
    ):
        with pytest.raises(ValueError, match=message):
            check_processes(*arguments)
    monkeypatch.setenv("LOCAL_RANK", "0")
    monkeypatch.setenv("WORLD_SIZE", "4")
    with pytest.raises(ValueError, match="4 processes were started, but devices=2 and nodes=1"):
        check_processes(2, 1, "ddp", 8)
    assert check_processes(2, 2, "fsdp", 8) == 4
    monkeypatch.undo()
    with pytest.raises(ValueError, match="cannot be split evenly"):
        train(store, tmp_path / "prior", TrainingOptions(steps=1, **OPTIONS), devices=3)
    assert not (tmp_path / "prior").exists()
