"""Quality control: the checks against explicit analyses, and what they reject."""

import json

import numpy as np
import pandas as pd
import pytest
import torch

from dynamics.layout import Layout
from sda import assimilate
from sda.observation import Function, Interpolate, Observations, Select, Subsample
from sda.prior import GaussianPrior
from sda.quality import Quality, blocks, check, contradicted, inverted, moments, residuals

SIDE, LENGTH = 24, 12


@pytest.fixture(scope="module")
def prior():
    """A Gaussian prior of a travelling, smooth field on a ring, from data of that kind."""

    x = np.arange(SIDE)
    layout = Layout(("a", "b"), 1.0, {"x": x}, {"x": float(SIDE)})
    rng = np.random.default_rng(0)
    time = np.arange(400.0)
    data = np.zeros((4, 400, 2, SIDE))
    for k in range(1, 6):
        angle = 2 * np.pi * k * x / SIDE
        for m in range(4):
            slow = np.exp(1j * 0.25 * k * time) * random_walk(rng, 400)
            wave = slow[:, None] * np.exp(1j * angle) / k
            data[m, :, 0] += 2 * wave.real
            data[m, :, 1] += 0.5 * wave.imag
    data += 0.1 * rng.standard_normal(data.shape)
    return GaussianPrior.fit(layout.to_dataset(data + 3.0), 8)


def random_walk(rng, length):
    z, value = [], complex(*rng.standard_normal(2))
    for _ in range(length):
        z.append(value)
        value = 0.98 * value + 0.2 * complex(*rng.standard_normal(2))
    return np.array(z)


def drawn(prior, seed, length=LENGTH):
    """A truth that is a draw from the prior."""

    covariance = prior.climatology.covariance(length, torch.float64)
    noise = torch.from_numpy(np.random.default_rng(seed).standard_normal((1, *covariance.shape)))
    x = prior.climatology.denormalise(covariance.sample(noise))
    return prior.layout.to_dataset(x).isel(member=0)


def stations(prior, truth, seed, number=6, std=0.2):
    """A table of observations of `a` and `b` at points between the grid's and the states'."""

    rng = np.random.default_rng(seed)
    length = truth.sizes["time"]
    place = np.repeat(rng.uniform(0, SIDE, number), length)
    time = np.tile(np.arange(length) + rng.uniform(0, 0.4, length) * (np.arange(length) < 11),
                   number)  # fmt: skip
    time = np.minimum(time, length - 1)
    points = {"time": np.repeat(time, 2), "x": np.repeat(place, 2)}
    points["variable"] = np.array(["a", "b"] * (number * length), dtype=object)
    from sda.observation import observe

    return observe(truth, Interpolate(points), std, seed, prior.layout)


def planted(observations, seed, share=0.05, size=8.0):
    """The same with gross errors, and which they are."""

    rng = np.random.default_rng(seed)
    table = observations.to_table()
    bad = rng.random(len(table)) < share
    wrong = rng.choice([-1.0, 1.0], len(table)) * rng.uniform(1, 2, len(table)) * size
    table.loc[bad, "observation"] += (wrong * table["std"])[bad]
    return Observations.from_table(table), bad


def test_residuals_are_those_of_explicit_analyses_without_each_value(prior):
    truth = drawn(prior, 1)
    observations = stations(prior, truth, 2, number=3)
    likelihood = prior.likelihood(observations, truth["time"].values, torch.float64)
    mean, C = moments(prior, likelihood)
    covariance = prior.climatology.covariance(LENGTH, torch.float64)
    H = likelihood.columns().flatten(1)
    assert np.allclose(C, (H @ covariance.dense() @ H.T).numpy(), atol=1e-8)
    y, R = likelihood.y.numpy(), likelihood.std.numpy() ** 2
    S, d = C + np.diag(R), y - mean
    kept = np.random.default_rng(0).random(len(d)) < 0.8
    residual, error = residuals(d, S, kept)
    for i in range(0, len(d), 5):
        others = np.flatnonzero(kept & (np.arange(len(d)) != i))
        gain = np.linalg.solve(S[np.ix_(others, others)], S[others, i])
        assert residual[i] == pytest.approx(d[i] - gain @ d[others], abs=1e-8)
        assert error[i] ** 2 == pytest.approx(S[i, i] - gain @ S[others, i], rel=1e-6)


def test_departures_and_residuals_are_standard_normal_where_all_is_right(prior):
    tables = []
    for seed in range(12):
        truth = drawn(prior, seed)
        tables.append(check(prior, stations(prior, truth, seed + 50)).table)
    table = pd.concat(tables)
    z, r = table["departure"], table["residual"]
    # What a draw of the prior departs by is what the prior says; correlated values, few draws.
    assert z.std() == pytest.approx(1.0, abs=0.15)
    assert r.std() == pytest.approx(1.0, abs=0.05) and abs(r.mean()) < 0.05
    assert (table["error"] <= table["spread"] + 1e-9).all()
    assert (table["reason"] == "").mean() > 0.998


def test_planted_errors_are_found_and_nothing_else(prior):
    hits, misses, alarms, total = 0, 0, 0, 0
    for seed in range(6):
        observations, bad = planted(stations(prior, drawn(prior, seed), seed + 9), seed)
        report = check(prior, observations)
        rejected = ~report.passed
        hits += (rejected & bad).sum()
        misses += (~rejected & bad).sum()
        alarms += (rejected & ~bad).sum()
        total += len(bad)
    assert hits >= 0.95 * (hits + misses) and hits > 30
    assert alarms <= 0.005 * total


def test_the_background_alone_sees_what_is_impossible_and_no_more(prior):
    truth = drawn(prior, 3)
    observations, bad = planted(stations(prior, truth, 4), 5, size=40.0)
    alone = check(prior, observations, Quality(buddy=None, analysis=None))
    table = alone.table
    far = (table["observation"] - table["background"]).abs() > 5 * table["spread"]
    assert ((table["reason"] == "background") == far).all()
    assert 0 < (~alone.passed).sum() <= bad.sum()
    everything = check(prior, observations)
    assert (~everything.passed & bad).sum() > (~alone.passed & bad).sum()
    nothing = check(prior, observations, Quality(None, None, None))
    assert nothing.passed.all()


def test_buddies_contradict_the_one_that_is_wrong():
    rng = np.random.default_rng(0)
    x = np.linspace(0, 1, 12)
    C = np.exp(-0.5 * (x - x[:, None]) ** 2 / 0.5**2)
    S = C + 0.05**2 * np.eye(12)
    d = np.linalg.cholesky(S) @ rng.standard_normal(12)
    assert not contradicted(d, C, S, 4.0).any()
    d[5] += 3.0
    assert np.flatnonzero(contradicted(d, C, S, 4.0)).tolist() == [5]
    # A real extreme that all see is no error; and who is alone has no buddies.
    assert not contradicted(d - d + 6.0 * C[5], C, S, 4.0).any()
    assert not contradicted(d, np.eye(12), S, 4.0).any()


def test_a_real_extreme_is_taken_back(prior):
    # The likeliest of all trajectories that are six standard deviations off at one place and time.
    covariance = prior.climatology.covariance(LENGTH, torch.float64)
    place = torch.zeros(1, *covariance.shape, dtype=torch.float64)
    place[0, 6, 0, 12] = 1.0
    pattern = covariance.apply(lambda e: e, place)
    pattern = 6.0 * pattern / pattern[0, 6, 0, 12].sqrt()
    extreme = prior.layout.to_dataset(prior.climatology.denormalise(pattern)).isel(member=0)
    observations = stations(prior, extreme, 1, number=12)
    background = check(prior, observations, Quality(3.0, None, None))
    every = check(prior, observations, Quality(3.0, None, 4.0))
    assert (~background.passed).sum() > 20
    assert (~every.passed).sum() <= 2


def test_blocks_of_time_decide_on_every_value_once(prior):
    truth = drawn(prior, 8, length=60)
    observations = stations(prior, truth, 2, number=3)
    found = blocks(observations, truth["time"].values, 1.0)
    assert len(found) > 3
    numbers = np.concatenate([own.numbers[own.core] for _, _, own in found])
    assert sorted(numbers) == list(range(len(observations)))
    bad, where = planted(observations, 3, size=15.0)
    report = check(prior, bad)
    assert (~report.passed & where).sum() >= 0.95 * where.sum()
    assert (~report.passed & ~where).sum() <= 2


def test_gridded_and_nonlinear_observations_are_checked_too(prior):
    from sda.observation import observe

    truth = drawn(prior, 4)
    grid = observe(truth, Subsample(4), 0.1, 1, prior.layout)
    values = grid.to_dataset().copy(deep=True)
    values["a"][3, 2] += 5.0
    odd = Observations.from_grid(values)
    report = check(prior, odd)
    assert len(report.rejected) == 1
    assert report.rejected.iloc[0]["time"] == 3.0
    kept = report.accepted
    assert len(kept) == len(grid) - 1 and np.isnan(kept.to_dataset()["a"][3, 2])

    square = observe(truth, Select(every=2) >> Function("square"), 0.5, 1, prior.layout)
    table = check(prior, square).table
    assert (table["reason"] == "").mean() > 0.98
    y = square.sets[0].y.copy()
    y[2, 0, 5] = 1e4
    wrong = Observations.from_operator(square.sets[0].operator, y, 0.5, prior.layout,
                                       truth["time"].values)  # fmt: skip
    report = check(prior, wrong + grid)
    assert "background" in set(report.rejected["reason"])
    assert report.table["variable"].tolist() == (wrong + grid).to_table()["variable"].tolist()


def test_an_assimilation_leaves_out_what_fails_and_says_so(prior, tmp_path):
    truth = drawn(prior, 6)
    clean = stations(prior, truth, 7)
    bad, where = planted(clean, 1, size=20.0)
    options = {"members": 16, "steps": 12, "time": truth["time"].values, "langevin": None}

    def error(observations, **more):
        posterior = assimilate(prior, observations, **options, **more)
        return float(((posterior["a"].mean("member") - truth["a"]) ** 2).mean()) ** 0.5, posterior

    best, without = error(clean)[0], error(bad)[0]
    controlled, posterior = error(bad, quality=True)
    assert controlled < 1.05 * best < without
    rejected = json.loads(posterior.attrs["rejected_observations"])
    table = bad.to_table()[where].reset_index(drop=True)
    assert len(rejected) == pytest.approx(where.sum(), abs=1)
    found = {(round(row["time"], 4), row["variable"]) for row in rejected}
    assert {
        (round(t, 4), v) for t, v in zip(table["time"], table["variable"], strict=True)
    } == found
    assert {row["reason"] for row in rejected} <= {"background", "buddy", "analysis"}
    out = tmp_path / "posterior.zarr"
    stored = assimilate(prior, bad, out=out, quality={"background": None}, **options)
    assert json.loads(stored.attrs["quality_control"])["background"] is None
    assert "rejected_observations" in stored.attrs


def test_the_report_says_what_was_rejected(prior):
    bad, where = planted(stations(prior, drawn(prior, 2), 3), 4, size=20.0)
    report = check(prior, bad)
    text = report.text()
    assert f"{len(report.rejected)} of {len(where)} observations rejected" in text
    assert "a: 72 values" in text and "reason" in text.splitlines()[3]


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"background": 0}, "quality.background must be a positive number of standard deviations"),
        ({"backgrund": 3}, "some of background, buddy, analysis"),
        ("strict", "must be true or a mapping"),
    ],
)
def test_bad_options_are_said(prior, options, message):
    with pytest.raises(ValueError, match=message):
        check(prior, stations(prior, drawn(prior, 0), 0), options)


def test_duplicates_without_errors_are_said():
    with pytest.raises(ValueError, match="several observations tell the same"):
        inverted(np.ones((3, 3)))


def test_a_filter_checks_each_batch_beside_its_window(prior, tmp_path):
    from sda.filtering import Assimilator

    truth = drawn(prior, 9)
    bad, where = planted(stations(prior, truth, 3), 2, size=20.0)
    table = bad.to_table()
    found = 0
    with Assimilator(
        prior, members=4, start=0.0, out=tmp_path / "a.zarr", quality=True, steps=8
    ) as assimilator:
        for step in range(LENGTH):
            mine = ((table["time"] > step - 1) & (table["time"] <= step)).to_numpy()
            if mine.any():
                assimilator.add(Observations.from_table(table[mine]))
            rows = {
                (round(row["time"], 6), row["variable"], round(row["x"], 6))
                for row in assimilator.rejected
            }
            expected = table[mine & where]
            found += sum(
                (round(t, 6), v, round(x, 6)) in rows
                for t, v, x in zip(expected["time"], expected["variable"], expected["x"],
                                   strict=True)
            )  # fmt: skip
            assert len(rows) <= len(expected) + 1
            assimilator.step()
        kept = [row for entry in assimilator.store.ledger for batch in entry["batches"]
                for row in batch.get("rejected", [])]  # fmt: skip
    assert found >= 0.9 * where.sum() and len(kept) >= found


def test_the_command_line_controls_and_takes_heavy_tails(prior, tmp_path, capsys):
    from sda.cli import run_verb
    from sda.store import open_dataset

    bad, where = planted(stations(prior, drawn(prior, 6), 7), 1, size=20.0)
    bad.save(tmp_path / "o.csv")
    prior.save(tmp_path / "prior")
    words = [f"prior={tmp_path / 'prior'}", f"observations={tmp_path / 'o.csv'}", "members=2",
             "sampler.steps=6", "progress=false"]  # fmt: skip
    assert run_verb("assimilate", [*words, "quality=true", f"out={tmp_path / 'a.zarr'}"]) == 0
    assert f"of {len(where)} observations rejected by the quality" in capsys.readouterr().out
    assert "rejected_observations" in open_dataset(tmp_path / "a.zarr").attrs
    out = f"out={tmp_path / 'b.zarr'}"
    assert run_verb("assimilate", [*words, "errors=student_t(3)", out]) == 0
    with pytest.raises(ValueError, match="errors must be gaussian, student_t or huber"):
        run_verb("assimilate", [*words, "errors=cauchy", f"out={tmp_path / 'c.zarr'}"])
