"""Training: windows, the optimiser, the loss, checkpoints, resume, and bad input."""

import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import pytest
import torch
import xarray as xr
from safetensors.torch import load_file

from dynamics import KolmogorovFlow, Lorenz96
from sda.climatology import Climatology
from sda.data import Batches, NoiseLevels, Prefetch, Windows
from sda.exposure import calibrate
from sda.optimiser import Muon, orthogonalise, split_parameters
from sda.prior import Prior
from sda.symmetry import Symmetry
from sda.training import Schedule, TrainingOptions, train
from sda.window import WindowDenoiser

RING = Lorenz96(dimension=12).layout
OPTIONS = {
    "window": 4,
    "network": {"name": "gated", "width": 8, "depth": 1},
    "steps": 40,
    "batch": 8,
    "warmup": 5,
    "calibrate": False,
}
LEARNING = {
    "network": {"name": "gated", "width": 16, "depth": 2},
    "steps": 150,
    "batch": 16,
    "ema": 0.9,
    "adam_rate": 0.01,
}


def turbulence() -> xr.Dataset:
    """Lorenz-96, whose advection no Gaussian knows."""

    return Lorenz96(dimension=12).simulate(members=8, length=100, spinup=200, seed=0)


@pytest.fixture
def store(tmp_path: Path) -> Path:
    turbulence().to_zarr(tmp_path / "data.zarr", consolidated=False)

    return tmp_path / "data.zarr"


def weights(folder: Path) -> dict[str, torch.Tensor]:
    return load_file(folder / "weights.safetensors")


def test_orthogonalise_flattens_the_singular_values() -> None:
    for shape in ((6, 20), (20, 6), (8, 8)):
        matrix = torch.randn(shape, generator=torch.Generator().manual_seed(0))
        u, _, v = torch.linalg.svd(matrix, full_matrices=False)
        found = orthogonalise(matrix)
        values = torch.linalg.svdvals(found)
        assert values.min() > 0.3 and values.max() < 1.3
        # The directions are those of the polar factor.
        assert torch.cosine_similarity(found.flatten(), (u @ v).flatten(), dim=0) > 0.95


def test_muon_and_adam_descend_a_quadratic() -> None:
    target = torch.randn(6, 6, generator=torch.Generator().manual_seed(0))
    weight, bias = torch.nn.Parameter(torch.zeros(6, 6)), torch.nn.Parameter(torch.zeros(6))
    optimiser = Muon([weight], [bias])
    for step in range(300):
        loss = (weight - target).square().sum() + (bias - 1).square().sum()
        optimiser.zero_grad()
        loss.backward()
        for group in optimiser.param_groups:
            group["lr"] = 0.1 * (1 - step / 300)
        optimiser.step()

    assert loss < 1e-3


def test_adam_is_torchs() -> None:
    start = torch.randn(5, generator=torch.Generator().manual_seed(0))
    ours, theirs = torch.nn.Parameter(start.clone()), torch.nn.Parameter(start.clone())
    first = Muon([], [ours], adam_rate=0.1)
    second = torch.optim.AdamW([theirs], 0.1, betas=(0.9, 0.99), weight_decay=0.0)
    for _ in range(20):
        for parameter, optimiser in ((ours, first), (theirs, second)):
            optimiser.zero_grad()
            (parameter.square().sum() + parameter.sin().sum()).backward()
            optimiser.step()

    torch.testing.assert_close(ours, theirs)


def test_parameters_are_split_once() -> None:
    climatology = Climatology.fit(turbulence(), 4)
    network = WindowDenoiser(climatology, 4, {"name": "gated", "depth": 2}).network
    hidden, rest = split_parameters(network)

    assert len(hidden) == 4 and len(hidden) + len(rest) == len(list(network.parameters()))


def test_schedule_rises_and_falls() -> None:
    schedule = Schedule(100, warmup=9, decay=0.5)
    factors = [schedule(step) for step in range(101)]

    assert factors[0] == pytest.approx(0.1) and factors[30] == 1 and factors[100] == 0
    assert factors[75] == pytest.approx(0.5)


def test_noise_levels_are_log_uniform() -> None:
    s = NoiseLevels((0.01, 1.0), (0.001, 100.0), 0.8).draw(20_000, np.random.default_rng(0))
    inside = (s >= 0.01) & (s <= 1.0)

    # 80 % from the core, and two fifths of the tail's five decades besides.
    assert inside.mean() == pytest.approx(0.8 + 0.2 * 0.4, abs=0.01)
    assert s.min() >= 0.001 and s.max() <= 100.0
    assert np.log10(s[inside]).mean() == pytest.approx(-1, abs=0.02)


def test_batches_do_not_depend_on_memory_start_or_processes(store: Path) -> None:
    data = xr.open_zarr(store, consolidated=False)
    climatology = Climatology.fit(data, 4)
    symmetry = (Symmetry(roll={"site": 1}), Symmetry(flip=("site",)))
    held = Windows(data, RING, 4, range(6))
    lazy = Windows(data, RING, 4, range(6), memory=0)
    stored = Windows(store, RING, 4, range(6), memory=0)
    # Two of the six members are in memory.
    partly = Windows(store, RING, 4, range(6), memory=2 * 100 * 12 * 4 + 1)
    assert held.complete and lazy.held is None and stored.arrays is not None
    assert partly.held is not None and len(partly.held) == 2 and not partly.complete

    def batches(windows: Windows, **options: int) -> Batches:
        return Batches(windows, climatology, 8, 3, symmetries=symmetry, **options)

    whole = batches(held)[5]
    others = [batches(windows)[5] for windows in (lazy, stored, partly)]
    others.append(next(iter(batches(held, start=5))))
    ahead = iter(Prefetch(batches(stored, start=3)))
    others.append([next(ahead) for _ in range(3)][-1])
    for other in others:
        for a, b in zip(whole, other, strict=True):
            torch.testing.assert_close(a, b, rtol=0, atol=0)
    shares = [batches(held, rank=rank, world=2)[5] for rank in range(2)]
    for a, b, c in zip(whole, *shares, strict=True):
        torch.testing.assert_close(a[0::2], b, rtol=0, atol=0)
        torch.testing.assert_close(a[1::2], c, rtol=0, atol=0)


def test_training_learns_what_no_gaussian_knows(store: Path, tmp_path: Path) -> None:
    options = TrainingOptions(**{**OPTIONS, **LEARNING})
    prior = train(store, tmp_path / "prior", options, device="cpu", progress=False)
    error = {row["s"]: row["network"] / row["gaussian"] for row in prior.info["denoising_error"]}

    assert error[0.3] < 0.85
    # Outside the range of training the Wiener filter stands alone.
    assert error[0.003] == pytest.approx(1, abs=1e-4)
    log = np.genfromtxt(tmp_path / "prior" / "log.csv", delimiter=",", names=True)
    assert log["step"][-1] == 150 and log["loss"][-1] < 0.95
    np.testing.assert_allclose(log["gaussian"], 1, atol=0.15)
    again = Prior.load(tmp_path / "prior")
    assert "| 1 |" in (tmp_path / "prior" / "README.md").read_text() and again.hash == prior.hash


def test_karras_preconditioning_learns_too(store: Path, tmp_path: Path) -> None:
    errors = []
    for steps in (1, 150):
        options = TrainingOptions(
            **{**OPTIONS, **LEARNING, "steps": steps, "preconditioning": "karras"}
        )
        prior = train(store, tmp_path / str(steps), options, device="cpu", progress=False)
        errors.append({row["s"]: row["network"] for row in prior.info["denoising_error"]})
    # Before training it is the scalar filter x / (1 + s²), which knows no correlations.
    assert errors[1][0.3] < 0.7 * errors[0][0.3]


def test_what_suits_a_prior_in_sampling_is_found_and_kept(store: Path, tmp_path: Path) -> None:
    own = {"s_min": 0.3, "steps": 1}
    options = TrainingOptions(**{**OPTIONS, "calibrate": True, "langevin": own})
    train(store, tmp_path / "prior", options, device="cpu", progress=False)
    prior = Prior.load(tmp_path / "prior")

    # The twins that training made, of held-out members.
    truths = Windows(store, RING, 8, [7]).draw(
        24, np.random.default_rng(np.random.SeedSequence((0, 2)))
    )
    again = calibrate(prior, truths=prior.climatology.normalise(truths))
    assert prior.langevin == own and prior.exposure == pytest.approx(again)
    card = (tmp_path / "prior" / "README.md").read_text()
    assert "s_min = 0.3, steps = 1" in card and f"correction {again:.3f}" in card
    with pytest.raises(ValueError, match="langevin has an unknown option.*strength"):
        TrainingOptions(window=4, langevin={"strength": 1})


def test_bfloat16_keeps_the_linear_part_exact(store: Path, tmp_path: Path) -> None:
    options = TrainingOptions(**{**OPTIONS, "steps": 5, "precision": "bfloat16"})
    prior = train(store, tmp_path / "prior", options, device="cpu", progress=False)
    assert prior.denoiser is not None and prior.denoiser.precision == torch.float32
    x = torch.randn(2, 4, 1, 12)
    exact = prior.denoiser.denoise(x, 0.02)
    prior.denoiser.precision = torch.bfloat16

    # The network's part is of the size r(s) ≤ s, its rounding of 1 % of that.
    assert (prior.denoiser.denoise(x, 0.02) - exact).abs().max() < 0.02 * 0.02


def test_resumed_training_equals_uninterrupted_training(store: Path, tmp_path: Path) -> None:
    run = {"device": "cpu", "progress": False, "checkpoint_every": 10}
    whole = TrainingOptions(**OPTIONS)
    train(store, tmp_path / "whole", whole, **run)

    script = f"""
import os, signal, sys
from sda.training import *
from sda.training_loop import TrainingModule
finish = TrainingModule.finish_step
def stop(self):
    finish(self)
    if self.step == 27:
        os.kill(os.getpid(), signal.SIGKILL)
TrainingModule.finish_step = stop
train({str(store)!r}, {str(tmp_path / "broken")!r}, TrainingOptions(**{OPTIONS!r}),
      device="cpu", progress=False, checkpoint_every=10)
"""
    done = subprocess.run([sys.executable, "-c", script], env=os.environ, timeout=120)
    assert done.returncode == -signal.SIGKILL
    assert json.loads((tmp_path / "broken" / "checkpoint" / "state.json").read_text())["step"] == 20

    with pytest.raises(FileExistsError, match="overwrite=true, resume=true"):
        train(store, tmp_path / "broken", whole, **run)
    with pytest.raises(ValueError, match="batch was 8, is 4"):
        train(
            store,
            tmp_path / "broken",
            TrainingOptions(**{**OPTIONS, "batch": 4}),
            resume=True,
            **run,
        )
    train(store, tmp_path / "broken", whole, resume=True, **run)

    first, second = weights(tmp_path / "whole"), weights(tmp_path / "broken")
    for name in first:
        # Not to the bit: with several threads sums depend on how memory happens to be aligned.
        torch.testing.assert_close(first[name], second[name], rtol=1e-5, atol=1e-6)


def test_a_checkpoint_without_a_networks_later_options_is_resumed(
    store: Path, tmp_path: Path
) -> None:
    run = {"device": "cpu", "progress": False}
    train(store, tmp_path / "old", TrainingOptions(**OPTIONS), **run)
    path = tmp_path / "old" / "checkpoint" / "state.json"
    state = json.loads(path.read_text())
    state["fingerprint"]["network"] = repr({"name": "gated", "width": 8, "depth": 1})
    path.write_text(json.dumps(state))

    spelt_out = {**OPTIONS["network"], "embedding": 64, "dilations": [1], "pole": False}
    options = {**OPTIONS, "network": spelt_out, "steps": 42}
    train(store, tmp_path / "old", TrainingOptions(**options), resume=True, **run)
    assert json.loads(path.read_text())["step"] == 42

    other = {**options, "network": {**spelt_out, "embedding": 32}}
    with pytest.raises(ValueError, match="cannot resume with other options: network was"):
        train(store, tmp_path / "old", TrainingOptions(**other), resume=True, **run)


def test_training_twice_gives_the_same_weights(store: Path, tmp_path: Path) -> None:
    options = TrainingOptions(**{**OPTIONS, "steps": 6})
    for name in ("first", "second"):
        train(store, tmp_path / name, options, device="cpu", progress=False)
    first, second = weights(tmp_path / "first"), weights(tmp_path / "second")
    assert all(torch.equal(first[name], second[name]) for name in first)


def test_the_network_sees_the_constant_fields_of_a_store(tmp_path: Path) -> None:
    flow = KolmogorovFlow(size=16, resolution=32)
    flow.simulate(3, 6, out=tmp_path / "flow.zarr")
    options = TrainingOptions(**{**OPTIONS, "steps": 2, "static": ["forcing"]})
    train(tmp_path / "flow.zarr", tmp_path / "prior", options, device="cpu", progress=False)

    expected = torch.from_numpy(flow.static()["forcing"])
    expected = expected / expected.square().mean().sqrt()
    found = weights(tmp_path / "prior")["static"]
    torch.testing.assert_close(found, expected[None])
    assert Prior.load(tmp_path / "prior").layout.variables == ("u", "v")


@pytest.mark.parametrize(
    ("options", "error", "message"),
    [
        ({"window": 999}, ValueError, "window must be between 1 and the 100 frames"),
        ({"window": 0}, ValueError, "window must be at least 1, got 0"),
        ({"network": {"name": "mlp"}}, ValueError, "does not fit states with 1 spatial"),
        ({"network": {"name": "gated", "colour": 1}}, TypeError, "colour"),
        ({"static": ["mountain"]}, ValueError, "static variable 'mountain' is not among"),
        ({"preconditioning": "none"}, ValueError, "preconditioning must be one of"),
        ({"rate": 0.0}, ValueError, "rate must be positive, got 0.0"),
        ({"held_out": 1.5}, ValueError, "held_out must be between 0 and 1, got 1.5"),
    ],
)
def test_errors(store: Path, tmp_path: Path, options: dict, error: type, message: str) -> None:
    with pytest.raises(error, match=message):
        train(
            store,
            tmp_path / "prior",
            TrainingOptions(**{**OPTIONS, **options}),
            device="cpu",
            progress=False,
        )
    assert not (tmp_path / "prior" / "prior.json").exists()


def test_missing_data_gpu_and_checkpoint(store: Path, tmp_path: Path) -> None:
    options = TrainingOptions(**OPTIONS)
    with pytest.raises(FileNotFoundError, match="no dataset at"):
        train(tmp_path / "nothing.zarr", tmp_path / "prior", options)
    with pytest.raises(FileNotFoundError, match="there is no checkpoint"):
        train(store, tmp_path / "prior", options, resume=True)
    with pytest.raises(ValueError, match="device must be auto, cpu or cuda"):
        train(store, tmp_path / "prior", options, device="tpu")
    if not torch.cuda.is_available():
        with pytest.raises(ValueError, match="torch sees no GPU"):
            train(store, tmp_path / "prior", options, device="cuda")


@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a GPU")
def test_gpu_training_reaches_the_cpus_loss(store: Path, tmp_path: Path) -> None:
    options = TrainingOptions(**{**OPTIONS, "steps": 100})
    errors = [
        train(store, tmp_path / device, options, device=device, progress=False).info[
            "denoising_error"
        ]
        for device in ("cpu", "cuda")
    ]
    for a, b in zip(*errors, strict=True):
        assert a["network"] == pytest.approx(b["network"], rel=0.05)


def test_time_to_import() -> None:
    """`import sda` must not cost what Lightning costs."""

    start = time.monotonic()
    subprocess.run([sys.executable, "-c", "import sda"], check=True)
    assert time.monotonic() - start < 5
    code = "import sys, sda; assert 'torch' not in sys.modules"
    subprocess.run([sys.executable, "-c", code], check=True)
