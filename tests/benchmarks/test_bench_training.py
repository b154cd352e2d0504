"""Benchmarks of training and of what surrounds the network, in small."""

import math

import pytest
import torch

from sda.benchmarks import training
from sda.benchmarks.kolmogorov import make_observations
from sda.benchmarks.training import (
    Errors,
    bare_loop,
    best,
    composition,
    composition_table,
    kolmogorov_options,
    preconditioning,
    preconditioning_table,
    recorded_inputs,
    small_dataset,
    solves,
    solves_table,
    throughput,
)
from sda.climatology import Climatology
from sda.observation import SaturatingVorticity, observe
from sda.prior import Prior
from sda.training import TrainingOptions
from sda.training_loop import TrainingModule
from sda.window import WindowDenoiser

NETWORK = {"name": "gated", "width": 4, "depth": 1}


@pytest.fixture(scope="module")
def dataset():
    return small_dataset(members=6, length=12, size=8)


def small(**options: object) -> TrainingOptions:
    return kolmogorov_options(
        **{"window": 3, "network": NETWORK, "batch": 2, "precision": "float32", **options}
    )


def test_the_best_of_rounds_counts(monkeypatch: pytest.MonkeyPatch) -> None:
    ticks = iter([0, 5, 10, 12, 20, 23, 30, 31])
    monkeypatch.setattr(training, "clock", lambda: next(ticks))

    assert best({"a": lambda: None, "b": lambda: None}, rounds=2) == {"a": 3, "b": 1}


def test_the_network_alone_sees_what_it_sees_in_a_step(dataset) -> None:
    climatology = Climatology.fit(dataset, 4)
    window = WindowDenoiser(climatology, 4, NETWORK, advection=True, incompressible=True)
    window.requires_grad_(False)
    prior = Prior(climatology, window)
    x = torch.ones(3, 4, 2, 8, 8)
    inputs, level = recorded_inputs(window, x, 0.5)
    assert inputs.shape == (3, 4 * 2 * 2 + (2 * 4 - 1) * 2, 8, 8)
    torch.testing.assert_close(level, torch.full((3,), math.log(0.5)))
    with pytest.raises(ValueError, match="not evaluated"):
        recorded_inputs(window, x, 1e4)

    truth = dataset.isel(member=0, time=slice(8))
    observations = make_observations("subsample 4", truth, 0)
    parts = composition(prior, observations, truth["time"].values, members=2, rounds=1)
    assert [part.name for part in parts][::3] == ["network alone", "guided step"]
    assert parts[0].share == 0
    assert "| network alone |" in composition_table(parts)
    with pytest.raises(ValueError, match="Gaussian"):
        composition(Prior(climatology), observations, truth["time"].values)


def test_both_solves_of_saturating_observations_agree(dataset) -> None:
    prior = Prior(Climatology.fit(dataset, 4))
    truth = dataset.isel(member=0, time=slice(8))
    observations = observe(truth, SaturatingVorticity(), std=0.05, seed=0)
    rows = solves(prior, observations, truth["time"].values, members=2, levels=(0.3,), rounds=1)

    assert rows[0].difference < 0.02
    assert "| 0.3 |" in solves_table(rows)
    linear = make_observations("subsample 4", truth, 0)
    with pytest.raises(ValueError, match="elementwise"):
        solves(prior, linear, truth["time"].values)


def test_the_bare_loop_trains(dataset) -> None:
    loop = bare_loop(dataset, small())
    network = loop.__closure__
    denoiser = next(
        cell.cell_contents for cell in network if isinstance(cell.cell_contents, WindowDenoiser)
    )
    before = denoiser.network.last.conv.weight.clone()
    loop(2)

    assert not torch.equal(before, denoiser.network.last.conv.weight)


def test_throughput_is_of_the_loop_alone(dataset, monkeypatch: pytest.MonkeyPatch) -> None:
    with pytest.raises(ValueError, match="turns and steps of at least 1, got 0 and 3"):
        throughput(dataset, small(), 0, 3)

    # A clock by which a bare step lasts 1 s, a step of `train` 2 s, and setting it up 100 s.
    now, real, step = [0.0], training.train, TrainingModule.training_step

    def train(dataset, out, options, **arguments):
        now[0] += 100
        return real(dataset, out, options, **arguments)

    def training_step(self, batch, batch_idx):
        now[0] += 2
        return step(self, batch, batch_idx)

    def bare_loop(dataset, options):
        return lambda steps: now.__setitem__(0, now[0] + steps)

    monkeypatch.setattr(training, "clock", lambda: now[0])
    monkeypatch.setattr(training, "train", train)
    monkeypatch.setattr(training, "bare_loop", bare_loop)
    monkeypatch.setattr(TrainingModule, "training_step", training_step)
    result = throughput(dataset, small(), turns=3, steps=2)

    assert (result.bare, result.trained) == ([1.0] * 3, [2.0] * 3)
    assert "| sda.train | 1.00 | 1.00 | 50.0 % (50.0 to 50.0 %) | 50.0 % |" in str(result)


def test_preconditionings_differ_where_nothing_is_learned_yet(dataset) -> None:
    options = small(steps=1, warmup=1000)
    errors = preconditioning(dataset, options, device="cpu", progress=False)

    assert errors.parameters.keys() == {"wiener", "karras"}
    for row in errors.rows:
        # A Wiener residual starts as the Gaussian, plain preconditioning as a scalar gain.
        assert row["wiener"] == pytest.approx(row["gaussian"], rel=0.02)
        assert row["karras"] > 1.1 * row["gaussian"] or row["s"] > 3
    assert "| 0.1 |" in preconditioning_table(errors)


def test_the_table_of_preconditionings_gives_ratios() -> None:
    errors = Errors([{"s": 1.0, "gaussian": 0.2, "wiener": 0.1, "karras": 0.3}], {}, {})

    assert preconditioning_table(errors).splitlines()[-1].endswith("| 0.500 | 1.500 |")
