"""The benchmark as a whole: complete, interrupted, resumed, extended; by command and by call."""

import json
import shlex

import numpy as np
import pandas as pd
import pytest
import xarray as xr

import sda
from sda import cli
from sda.benchmarks import runner
from sda.benchmarks.results import load, summary
from sda.benchmarks.runner import benchmark

# Cheap and short: a filter, one that is lost at once, and a smoother without a model.
EXPERIMENT = """
defaults:
  - override /system: lorenz96
title: A ring of twelve
system: {dimension: 12, noise: false}
observing: {first: 2, every: 2, subsample: 2, std: 0.5}
initial: {mean: truth, std: 0.5}
cycles: 60
spinup: 100
burn_in: 2.0
dtype: float64
notes: ["Short."]
entries:
  etkf: {method: etkf, members: 14, inflation: 1.05, published: 0.3}
  lost: {method: enkf, members: 2, label: Two members}
  gaussian: {method: gaussian, members: 6, trajectories: 8, states: 64, window: 5}
"""
TIMED = ["seconds", "memory"]


@pytest.fixture(scope="module")
def file(tmp_path_factory):
    path = tmp_path_factory.mktemp("experiment") / "ring.yaml"
    path.write_text(EXPERIMENT)
    return path


@pytest.fixture(scope="module")
def complete(file):
    """All methods on two truths, by command."""

    out = file.parent / "complete.zarr"
    command = ["benchmark", f"experiment={file}", "repetitions=2", f"out={out}"]
    assert cli.main([*command, f"report={out.with_suffix('.html')}"]) == 0
    return out


def same(a, b):
    xr.testing.assert_allclose(a.drop_vars(TIMED), b.drop_vars(TIMED), rtol=1e-9)


def test_all_that_was_asked_for_is_there(complete):
    results = load(complete)
    assert list(results["method"].values) == ["etkf", "lost", "gaussian"]
    assert list(results["label"].values) == [
        "ETKF, N 14, inflation 1.05", "Two members",
        "Gaussian prior, N 6, trajectories 8, states 64, window 5",
    ]  # fmt: skip
    assert list(results["kind"].values) == ["classical", "classical", "baseline"]
    assert results.sizes["time"] == 60 and results.sizes["repetition"] == 2
    assert (results["finished"] == 1).all() and results.attrs["status"] == "complete"
    # The headline score is the mean over time, after burn-in, of the scores of each time.
    scored = results["rmse_time"].isel(time=results["time"].values > 2.0)
    good = results["diverged"].values == 0
    assert np.allclose(scored.mean("time").values[good], results["rmse"].values[good])
    rmse = dict(zip(results["method"].values, results["rmse"].values, strict=True))
    # The model beats the prior without one; the errors of what is seen are 0.5.
    assert rmse["etkf"].max() < 0.5 < 1.0 < rmse["gaussian"].min()
    # Two members are lost: recorded with the time, and averaged into nothing.
    lost = results.isel(method=1)
    assert (lost["diverged"] == 1).all() and np.isnan(lost["rmse"]).all()
    assert ((lost["diverged_time"] > 0) & (lost["diverged_time"] <= results["time"][-1])).all()
    assert np.isnan(lost["crps"]).all() and np.isfinite(lost["rmse_time"]).any()
    assert results["model_steps"].values[0].tolist() == [14 * 120] * 2
    assert (results["model_steps"].values[2] == 0).all()
    # Ranks and coverage are frequencies.
    assert np.allclose(results["rank_histogram"].isel(method=[0, 2]).sum("bin"), 1)
    assert ((results["coverage"][0] > 0) & (results["coverage"][0] <= 1)).all()
    assert np.isfinite(results["truth_spectrum"]).all()


def test_attributes_tell_how_it_was_made(complete):
    attrs = load(complete).attrs
    (command,) = json.loads(attrs["commands"])
    assert command.startswith("sda benchmark experiment=") and "repetitions=2" in command
    assert attrs["title"] == "A ring of twelve" and json.loads(attrs["notes"]) == ["Short."]
    assert len(json.loads(attrs["seeds"])["repetitions"]) == 2
    assert json.loads(attrs["experiment"])["cycles"] == 60
    assert {"torch", "zarr"} <= set(json.loads(attrs["versions"]))
    assert json.loads(attrs["machine"])["cores"] >= 1
    assert "A ring of twelve" in complete.with_suffix(".html").read_text()


def test_the_table_is_the_dataset(complete):
    results = load(complete)
    for table in (
        pd.read_parquet(complete.with_suffix(".parquet")),
        pd.read_csv(complete.with_suffix(".csv")),
    ):
        assert len(table) == 6
        row = table[(table["method"] == "gaussian") & (table["repetition"] == 1)].iloc[0]
        assert np.isclose(row["rmse"], results["rmse"].values[2, 1])
        assert json.loads(row["parameters"])["window"] == 5
    text = summary(results)
    assert "Two members" in text and "2/2" in text and "0.3" in text


def test_killed_and_resumed_is_the_same(complete, file, tmp_path, monkeypatch):
    out, lines = tmp_path / "killed.zarr", []

    def die(line):
        lines.append(line)
        if len(lines) == 2:
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        benchmark(file, repetitions=2, out=out, say=die)
    half = load(out)
    assert half.attrs["status"] == "running" and int((half["finished"] == 1).sum()) == 2
    with pytest.raises(FileExistsError, match="resume=true"):
        benchmark(file, repetitions=2, out=out)

    ran = []
    original = runner.Workbench.run_all
    monkeypatch.setattr(
        runner.Workbench, "run_all",
        lambda self, spec, twins: ran.append(spec.key) or original(self, spec, twins),
    )  # fmt: skip
    results = benchmark(file, repetitions=2, out=out, resume=True)
    assert ran == ["gaussian", "etkf", "lost", "gaussian"]
    same(results, load(complete))
    # Once more: nothing is left to do.
    ran.clear()
    same(benchmark(file, repetitions=2, out=out, resume=True), results)
    assert not ran


def test_extended_by_methods_and_repetitions_and_run_side_by_side(complete, file, tmp_path):
    out = tmp_path / "grown.zarr"
    benchmark(file, ["gaussian"], 1, out=out)
    results = sda.benchmark(file, ["etkf", "lost"], 2, out=out, resume=True, batch=2)
    assert list(results["method"].values) == ["gaussian", "etkf", "lost"]
    assert results["finished"].values.tolist() == [[1, 0], [1, 1], [1, 1]] or np.isnan(
        results["finished"].values[0, 1]
    )
    results = benchmark(file, repetitions=2, out=out, resume=True)
    whole = load(complete)
    for name in ("rmse", "crps", "spread_time", "coverage", "case_mean", "diverged_time"):
        grown = results[name].sel(method=whole["method"])
        assert np.allclose(grown, whole[name], rtol=1e-6, equal_nan=True), name
    assert len(json.loads(results.attrs["commands"])) == 3


def test_a_report_is_made_again_when_results_are_extended(file, tmp_path):
    # Beside results in a folder that the first run makes.
    out, report = tmp_path / "runs" / "short.zarr", tmp_path / "runs" / "short.html"
    benchmark(file, ["gaussian"], 1, out=out, report=report)
    first = report.read_text()
    with pytest.raises(FileExistsError, match="short.html"):
        benchmark(file, ["gaussian"], 1, out=tmp_path / "runs" / "other.zarr", report=report)
    assert not (tmp_path / "runs" / "other.zarr").exists()
    benchmark(file, ["gaussian", "lost"], 1, out=out, report=report, resume=True)
    # The first names it among the entries only.
    assert report.read_text().count("Two members") > first.count("Two members")


REPORTS = {
    "table.txt": (ValueError, "html"),
    "missing/report.html": (FileNotFoundError, "no folder"),
    "": (FileExistsError, "is a folder"),
}


@pytest.mark.parametrize("name", REPORTS)
def test_reports_that_cannot_be_written_cost_no_work(name, file, tmp_path):
    error, message = REPORTS[name]
    with pytest.raises(error, match=message):
        benchmark(file, out=tmp_path / "store.zarr", report=tmp_path / name)
    assert not list(tmp_path.iterdir())


def test_the_command_is_what_a_shell_takes(tmp_path):
    overrides = ["entries.etkf.label='It is [mine]; $HOME'", "initial={mean: truth, std: 1}"]
    out = tmp_path / "a folder" / "x.zarr"
    command = runner.command_line(
        "sakov2008", ["etkf", "letkf"], 2, out, True, "a b.html", overrides
    )
    assert shlex.split(command) == [
        "sda", "benchmark", "experiment=sakov2008", "methods=[etkf,letkf]", "repetitions=2",
        *overrides, f"out={out}", "tune=true", "report=a b.html",
    ]  # fmt: skip


BAD = {
    "other experiment": (["cycles=50"], {"resume": True}, "another experiment.*cycles .60 before"),
    "other method": (["entries.etkf.inflation=1.2"], {"resume": True}, "another name"),
    "both": ([], {"resume": True, "overwrite": True}, "exclude each other"),
    "exists": ([], {}, "exists: give resume=true"),
    "repetitions": ([], {"repetitions": 0}, "repetitions must be"),
    "batch": ([], {"batch": 0}, "batch must be"),
}


@pytest.mark.parametrize("case", BAD)
def test_bad_input(case, complete, file):
    overrides, options, message = BAD[case]
    before = load(complete)
    options = {"repetitions": 2} | options
    with pytest.raises((ValueError, FileExistsError), match=message):
        benchmark(file, out=complete, overrides=overrides, **options)
    xr.testing.assert_equal(before, load(complete))


COMMANDS = {
    "experiment=nothing out=x.zarr": "sakov2008",
    "experiment=missing.yaml out=x.zarr": "missing.yaml",
    "experiment=sakov2008 methods=[etkff] out=x.zarr": "did you mean 'etkf'",
    "experiment=sakov2008 methods=[sda] out=x.zarr": "names none",
    "experiment=sakov2008 entries.etkf_24.infl=1 out=x.zarr": "unknown parameter 'infl'",
    "experiment=sakov2008 system.forcin=8 out=x.zarr": "system.forcing",
    "experiment=sakov2008 scored=some out=x.zarr": "analysis, all",
    "experiment=sakov2008": "out is required",
    "experiment=sakov2008 out=results.csv": "ends in .zarr",
    "experiment=sakov2008 out=x.zarr report=x.pdf": ".html",
}


@pytest.mark.parametrize("command", COMMANDS)
def test_bad_commands_cost_one_line(command, tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    assert cli.main(["benchmark", *command.split()]) == cli.BAD_INPUT
    out, err = capsys.readouterr()
    assert not out and err.count("\n") == 1 and COMMANDS[command] in err, err
    assert not list(tmp_path.iterdir())


def test_what_is_there_is_not_overwritten_by_mistake(tmp_path, file):
    store = tmp_path / "truth.zarr"
    xr.Dataset({"x": ("time", np.zeros(3))}).to_zarr(store, consolidated=False)
    with pytest.raises(FileExistsError, match="holds no benchmark"):
        benchmark(file, out=store, overwrite=True)
