"""The cost of sampling: what is extrapolated is what all steps would have cost."""

import dataclasses

import pytest
import torch

from sda.benchmarks import sampling
from sda.benchmarks.lorenz63 import system, twin
from sda.benchmarks.sampling import (
    LORENZ,
    Row,
    cost,
    extrapolated_cost,
    levels_seen,
    published_network,
    run,
    table,
)
from sda.climatology import Climatology
from sda.prior import Prior


@pytest.fixture(scope="module")
def prior() -> Prior:
    data = system().simulate(16, 64, spinup=64, seed=0, progress=False)

    return published_network(Prior(Climatology.fit(data, 5)))


def test_the_published_setting_has_514_evaluations(prior: Prior) -> None:
    truth, observations = twin("lo", 0)
    row = extrapolated_cost(
        LORENZ["sda, published"], prior, observations, truth["time"].values, 2, some=2
    )

    assert row.evaluations == pytest.approx(2 * 257)
    assert row.vjps == pytest.approx(2 * 257)
    assert row.extrapolated


def test_extrapolated_costs_are_those_of_the_whole_loop(
    prior: Prior, monkeypatch: pytest.MonkeyPatch
) -> None:
    # Each evaluation takes a second, and each run ten more.
    ticks = {"now": 0.0}
    monkeypatch.setattr(sampling, "clock", lambda: ticks["now"])

    def fake(method, prior, observations, times, members, seed):
        levels = method.sampler["steps"] + 1
        count = 2 * levels
        ticks["now"] += 10
        for level in range(levels):
            ticks["now"] += 2 * members
            method.sampler.get("progress", lambda *_: None)(level + 1, levels)
        return torch.zeros(members, 2, 3), count, count

    monkeypatch.setattr(sampling, "sample", fake)
    method = dataclasses.replace(
        LORENZ["sda, published"], sampler={"steps": 40, "s_max": 1.0, "s_min": 0.1}
    )
    whole, _ = cost(method, prior, None, None, 2)
    pieces = extrapolated_cost(method, prior, None, None, 2)

    assert pieces.seconds == pytest.approx(whole.seconds)
    assert pieces.evaluations == pytest.approx(whole.evaluations)


def test_levels_beyond_the_network_are_free(prior: Prior) -> None:
    low, high = prior.denoiser.noise_range
    assert levels_seen(prior, 10, 0.9 * high, 1.1 * low) == 11
    assert levels_seen(prior, 1, 0.9 * high, 0.9 * low) == 1
    assert levels_seen(prior, 10, high * 100, high * 10) == 0


def test_a_run_scores_what_took_all_its_steps(prior: Prior) -> None:
    truth, observations = twin("lo", 0)
    methods = {name: LORENZ[name] for name in ("static + Langevin", "sda, published")}
    methods["sda, published"] = dataclasses.replace(
        methods["sda, published"],
        sampler={**methods["sda, published"].sampler, "s_max": 1.0, "s_min": 0.5},
    )
    rows = run(
        "twin", methods, prior, observations, truth["time"].values,
        lambda x: float(len(x)), members=4, few=2,
    )  # fmt: skip

    assert rows[0].quality == 4 and not rows[0].extrapolated
    assert rows[1].quality != rows[1].quality and rows[1].extrapolated


def test_the_table_gives_ratios() -> None:
    rows = [
        Row("a", "ours", 4, 25, 0, 0.5, 0.3),
        Row("a", "sda, published", 2, 514, 514, 30.0, extrapolated=True),
    ]
    lines = table(rows).splitlines()

    assert "| 60 | – | 0.300 |" in lines[2]
    assert "(extrapolated)" in lines[3] and lines[3].endswith("| 1 | – | – |")
