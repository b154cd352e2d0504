"""Observations split by analysis times agree with the likelihood of the whole trajectory."""

import numpy as np
import pandas as pd
import pytest
import torch
import xarray as xr

import sda
from dynamics import KolmogorovFlow, Lorenz96
from dynamics.layout import Layout
from sda.observation import (
    BlockAverage,
    Difference,
    Function,
    Interpolate,
    Mask,
    Observations,
    SaturatingVorticity,
    Select,
    Subsample,
    sequence,
)

FLOW = KolmogorovFlow(size=8, resolution=8).layout
SITES = Lorenz96(dimension=12).layout
LENGTH = 9


def trajectory(layout: Layout, seed: int = 0) -> torch.Tensor:
    generator = torch.Generator().manual_seed(seed)
    return torch.randn((3, LENGTH, *layout.shape), generator=generator, dtype=torch.float64)


def points() -> Observations:
    rng = np.random.default_rng(0)
    number = 40
    return Observations.from_table(
        pd.DataFrame(
            {
                "time": rng.uniform(0, 0.2 * (LENGTH - 1), number),
                "y": rng.uniform(0, 6, number),
                "x": rng.uniform(0, 6, number),
                "variable": rng.choice(["u", "v"], number),
                "observation": rng.standard_normal(number),
                "std": rng.uniform(0.1, 1, number),
            }
        )
    )


def cases() -> dict[str, tuple[Layout, Observations]]:
    def observed(operator, layout, std=0.1):
        truth = layout.to_dataset(trajectory(layout)[:1]).isel(member=0)
        return layout, sda.observe(truth, operator, std=std, seed=1)

    rng = np.random.default_rng(1)
    mask = xr.DataArray(rng.random((8, LENGTH)) < 0.4, dims=("x", "time"))
    gaps = FLOW.to_dataset(trajectory(FLOW)[:1]).isel(member=0, time=slice(1, None, 3))
    gaps = gaps.where(np.random.default_rng(2).random((3, 8, 8)) < 0.5)
    return {
        "everything": observed(Select(), SITES),
        "every": observed(Select(every=3) >> Subsample(2), SITES),
        "function": observed(Select(every=2) >> Function("square"), SITES),
        "averages": observed(Subsample({"time": 4}) >> BlockAverage(4), FLOW),
        "saturating": observed(Select(every=2) >> SaturatingVorticity(), FLOW),
        "mask": observed(Mask(mask), FLOW),
        "mask, then function": observed(Mask(mask) >> Function("atan"), FLOW),
        "between": observed(Select(times=[0.0, 0.3, 0.5, 1.0]), FLOW),
        "points": (FLOW, points()),
        "grid with gaps": (FLOW, Observations.from_grid(gaps, std=0.3)),
        "several sets": (FLOW, points() + observed(Select(["u"], every=4), FLOW)[1]),
        "fixed points": observed(Select(every=2) >> Interpolate({"site": [0.5, 3.2]}), SITES),
    }


@pytest.mark.parametrize("name", cases())
def test_log_likelihoods_add_up(name: str) -> None:
    layout, observations = cases()[name]
    time = layout.times(LENGTH)
    x = trajectory(layout, 5)
    whole = observations.likelihood(layout, time, dtype=torch.float64)
    parts = sequence(observations, layout, time, dtype=torch.float64)

    total = torch.zeros(3, dtype=torch.float64)
    for each in parts:
        assert each.y.shape == (1, len(each)) and 0 <= each.index < LENGTH
        assert all(len(column) == len(each) for column in each.columns.values())
        z = (each.y - each.H(x[:, each.index + 1 - each.frames : each.index + 1])) / each.std
        constant = each.std.log().sum() + 0.5 * np.log(2 * np.pi) * len(each)
        total += -0.5 * z.square().sum(1) - constant

    torch.testing.assert_close(total, whole.log_prob(x))
    assert [each.index for each in parts] == sorted({each.index for each in parts})
    assert sum(map(len, parts)) == len(observations)


def test_the_matrix_is_that_of_the_operator() -> None:
    layout, observations = cases()["points"]
    x = trajectory(layout)
    for each in sequence(observations, layout, layout.times(LENGTH), dtype=torch.float64):
        states = x[:, each.index + 1 - each.frames : each.index + 1]
        torch.testing.assert_close(
            states.flatten(1) @ each.matrix.T + each.offset, each.H(states), atol=1e-12, rtol=0
        )


def test_columns_say_where_values_are() -> None:
    layout, observations = cases()["averages"]
    parts = sequence(observations, layout, layout.times(LENGTH))
    assert [each.time for each in parts] == pytest.approx([0.0, 0.8, 1.6])
    centres = sorted(set(parts[1].columns["x"]))
    assert centres == pytest.approx([np.pi / 2, 3 * np.pi / 2])
    assert set(parts[1].columns["variable"]) == {"u", "v"}


def test_repetitions_share_all_but_the_values() -> None:
    operator = Select(every=2)
    x = trajectory(SITES)
    truths = [SITES.to_dataset(x[i : i + 1]).isel(member=0) for i in range(3)]
    all_of_them = [sda.observe(t, operator, std=0.1, seed=i) for i, t in enumerate(truths)]
    parts = sequence(all_of_them, SITES, SITES.times(LENGTH))
    alone = sequence(all_of_them[2], SITES, SITES.times(LENGTH))
    for each, one in zip(parts, alone, strict=True):
        assert each.y.shape == (3, 12)
        torch.testing.assert_close(each.y[2:], one.y)

    other = sda.observe(truths[0], operator, std=0.2, seed=0)
    with pytest.raises(ValueError, match="number 1 differs from number 0"):
        sequence([all_of_them[0], other], SITES, SITES.times(LENGTH))


def test_what_cannot_be_split_is_named() -> None:
    truth = SITES.to_dataset(trajectory(SITES)[:1]).isel(member=0)
    loop = sda.observe(truth, Difference(), std=0.1, seed=0)
    with pytest.raises(ValueError, match="several times"):
        sequence(loop, SITES, SITES.times(LENGTH))
    observations = sda.observe(truth, Select(), std=0.1, seed=0)
    with pytest.raises(ValueError, match="before the first state"):
        sequence(observations, SITES, SITES.times(LENGTH, start=0.1))
    table = points().to_table()
    twice = table.assign(x=table["x"] + 2 * np.pi)
    with pytest.raises(ValueError, match="a period of"):
        sequence(Observations.from_table(pd.concat([table, twice])), FLOW, FLOW.times(LENGTH))


def test_a_time_next_to_a_state_is_that_states_however_long_the_step() -> None:
    layout = Layout(("a", "b"), 6.0)
    x = torch.randn((2, 4, 2), generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    # Within a thousandth of a step, and farther than a thousandth of the unit of time.
    table = {"time": [0.004, 11.997, 13.5], "variable": ["a", "b", "a"], "observation": [0.0] * 3}
    found = sequence(
        Observations.from_table(table, std=1.0), layout, layout.times(4), torch.float64
    )
    assert [(each.index, each.frames) for each in found] == [(0, 1), (2, 1), (3, 2)]
    for each, state in zip(found[:2], (x[:, 0, 0], x[:, 2, 1]), strict=True):
        assert torch.equal(each.H(x[:, each.index : each.index + 1])[:, 0], state)
