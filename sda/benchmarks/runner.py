"""The benchmark: every method on the same observations of the same truths.

    for each repetition: one truth, one set of observations
        for each method: the ensemble, its scores, its cost  ──▶  results.zarr

A method that diverges is recorded as diverged and the run goes on. Each (method, repetition) is
written when it is finished, so that a run that was killed goes on where it stopped. On a cluster,
workers run some of them each and write what they find themselves.
"""

import json
import math
import os
import platform
import shlex
from collections.abc import Callable, Mapping, Sequence
from contextlib import nullcontext
from pathlib import Path
from typing import Any

import torch
import xarray as xr

from dynamics.cluster import Cluster, connect

from .experiment import Experiment, Twin, load
from .hands import Hands, machines
from .methods import Outcome, Spec, Workbench, resolve
from .results import Results, check_out, plain_json, uses_prior, write_tables
from .results import load as load_results
from .scoring import Case, Target, score
from .tuning import Tuning, tune_methods

Say = Callable[[str], None]
REPORTS = (".html", ".htm")


def benchmark(
    experiment: str | Path | Mapping[str, Any] | Experiment,
    methods: Sequence[str] | None = None,
    repetitions: int = 3,
    *,
    out: str | Path,
    tune: bool = False,
    report: str | Path | None = None,
    resume: bool = False,
    overwrite: bool = False,
    batch: int = 1,
    device: str | torch.device = "cpu",
    overrides: Sequence[str] = (),
    command: str | None = None,
    say: Say | None = None,
    cluster: Any = None,
    workers: int | None = None,
) -> xr.Dataset:
    """Compares methods of data assimilation on the same observations.

    Arguments:
        experiment: The name of an experiment in `configs/experiment`, the path of a file of one's
            own, or its contents.
        methods: Entries of the experiment or names of methods, see
            `sda.benchmarks.methods.resolve` (default: all entries).
        repetitions: The number of truths. Repetition r is the same truth whatever their number.
        out: The Zarr store to write, `.zarr`. A table goes beside it, as Parquet and as CSV.
        tune: Whether inflation and localisation are searched on a truth of its own, within the
            experiment's budget. Tuned methods stand beside the untuned ones.
        report: An HTML file for the report, replaced with `resume` or `overwrite`.
        resume: Whether results in `out` are kept and completed or extended.
        overwrite: Whether they are replaced.
        batch: The number of repetitions that a classical method runs side by side. Their results
            are the same, their times are shared.
        device: The device to run on.
        overrides: Changes of the experiment, as on the command line: `["cycles=100"]`.
        command: The command that this is, for the report (default: one that does the same).
        say: Called with a line of text for each result.
        cluster: A Dask cluster whose workers run methods and repetitions side by side, see
            `dynamics.cluster.connect` (default: this process does, one by one). Workers must see
            `out`; times are theirs.
        workers: The number of processes of cluster="local", which it implies.

    Returns:
        The results; see `sda.benchmarks.results`.

    Raises:
        ValueError: If the experiment, a method or a parameter is unknown or out of range, a file is
            not named as it must be, or the results to resume are of another experiment or prior.
        FileExistsError: If `out` or `report` exists and neither `resume` nor `overwrite` is given.
        FileNotFoundError: If there is no folder for the report.
    """

    say = say or (lambda line: None)
    if not isinstance(repetitions, int) or repetitions < 1:
        raise ValueError(f"repetitions must be an integer of at least 1, got {repetitions!r}")
    if not isinstance(batch, int) or batch < 1:
        raise ValueError(f"batch must be an integer of at least 1, got {batch!r}")
    out, replace = Path(out), overwrite or resume
    check_out(out, overwrite, resume)
    if report is not None:
        check_report(Path(report), out, replace)
    command = command or command_line(
        experiment, methods, repetitions, out, tune, report, overrides
    )
    experiment = load(experiment, overrides)
    specs = resolve(experiment, methods)
    remote = cluster is not None or workers is not None
    with connect(cluster, workers) if remote else nullcontext() as pool:
        compare(experiment, specs, repetitions, out, tune, resume, overwrite, batch, device,
                command, say, pool)  # fmt: skip
    dataset = load_results(out)
    write_tables(dataset, out)
    if report is not None:
        from .. import report as reports

        reports.write(dataset, Path(report), overwrite=replace)

    return dataset


def compare(
    experiment: Experiment,
    specs: Sequence[Spec],
    repetitions: int,
    out: Path,
    tune: bool,
    resume: bool,
    overwrite: bool,
    batch: int,
    device: str | torch.device,
    command: str,
    say: Say,
    pool: Cluster | None,
) -> None:
    """Tunes and runs the methods, see `benchmark`, here or on the workers of a pool."""

    bench = Workbench(experiment, device if pool is None else "cpu")
    needed = bool(experiment.config.get("prior")) and any(map(uses_prior, specs))
    prior_hash = bench.prior.hash if needed else ""

    twin = experiment.twin(0)
    target = Target.of(experiment, twin)
    case = Case.of(target, experiment.config["observing"].get("block"))
    attrs = {
        "commands": json.dumps([command]),
        "versions": json.dumps(versions()),
        "machine": json.dumps(machine(device) if pool is None else machines(pool, device)),
    }
    found: dict[str, Any] = {}
    if tune:
        known = {}
        if resume and out.exists():
            known = json.loads(load_results(out).attrs["tuning"])
        store = open_results(out, experiment, target, case, specs, repetitions, attrs, {},
                             prior_hash, overwrite, resume)  # fmt: skip
        search = None if pool is None else Hands(pool, out, experiment, specs, device, say).tune
        specs, found = tune_methods(
            Tuning.of(experiment), bench, specs, known, lambda done: store.group.attrs.update(
                {"tuning": json.dumps(plain_json(done))}), say, search
        )  # fmt: skip
        overwrite, resume = False, True
    results = open_results(out, experiment, target, case, specs, repetitions, attrs, found,
                           prior_hash, overwrite, resume)  # fmt: skip
    if pool is None:
        run(experiment, bench, specs, repetitions, results, batch, say)
    else:
        Hands(pool, out, experiment, specs, device, say).run(results, repetitions, batch)


def open_results(
    out: Path,
    experiment: Experiment,
    target: Target,
    case: Case,
    specs: Sequence[Spec],
    repetitions: int,
    attrs: Mapping[str, Any],
    tuning: Mapping[str, Any],
    prior_hash: str,
    overwrite: bool,
    resume: bool,
) -> Results:
    """The store of a run."""

    return Results(out, experiment, target, case, specs, repetitions, attrs, tuning,
                   prior_hash, overwrite, resume)  # fmt: skip


def run(
    experiment: Experiment,
    bench: Workbench,
    specs: Sequence[Spec],
    repetitions: int,
    results: Results,
    batch: int,
    say: Say,
) -> None:
    """Runs what is not finished yet, so many repetitions of a classical method at once."""

    rows = rows_of(results)
    for group in groups(repetitions, batch):
        twins: dict[int, Twin] = {}
        targets: dict[int, Target] = {}
        for spec in specs:
            todo = [r for r in group if not results.finished(rows[spec.key], r)]
            for twin in experiment.twins([r for r in todo if r not in twins]):
                twins[twin.repetition] = twin
                targets[twin.repetition] = Target.of(experiment, twin)
                results.put_truth(targets[twin.repetition])
            for repetition, outcome in zip(
                todo, bench.run_all(spec, [twins[r] for r in todo]) if todo else [], strict=True
            ):
                scores = judge(targets[repetition], outcome)
                results.put(rows[spec.key], targets[repetition], outcome, scores)
                say(line(spec, repetition, outcome, scores))
    results.finish()


def rows_of(results: Results) -> dict[str, int]:
    """The number of each method in a store."""
    return {key: row for row, key in enumerate(results.array("method")[:])}


def groups(repetitions: int, batch: int) -> list[range]:
    """The repetitions that run side by side."""
    return [range(r, min(r + batch, repetitions)) for r in range(0, repetitions, batch)]


def judge(target: Target, outcome: Outcome) -> dict[str, Any]:
    """The scores of an outcome. A diverged ensemble has none but those of single times."""

    if outcome.posterior is None:
        return {}
    scores = score(target, outcome.posterior)
    if not math.isfinite(scores["rmse"]) and not outcome.diverged:
        outcome.diverged, outcome.message = True, "the ensemble has values that are not finite"
    if outcome.diverged:
        # The mean over the times before it diverged would flatter it.
        scores = {k: v for k, v in scores.items() if k in ("rmse_time", "spread_time")}
    return scores


def line(spec: Spec, repetition: int, outcome: Outcome, scores: Mapping[str, Any]) -> str:
    """One result in one line."""

    start = f"[{repetition}] {spec.label}: "
    if outcome.diverged:
        at = "" if math.isnan(outcome.diverged_time) else f" at time {outcome.diverged_time:g}"
        return f"{start}diverged{at} ({outcome.seconds:.1f} s) {outcome.message}".rstrip()
    published = "" if math.isnan(spec.published) else f" (published {spec.published:g})"
    found = f"{start}rmse {scores['rmse']:.3g}{published}, {outcome.seconds:.1f} s"
    return f"{found}; {outcome.message}" if outcome.message else found


def check_report(path: Path, out: Path, replace: bool) -> None:
    """Raises unless the report may be written, before any work.

    Arguments:
        path: The report.
        out: The results, whose folder is made if it is not there.
        replace: Whether a report that is there may be replaced.

    Raises:
        FileExistsError: If it is a folder, or exists and is not to be replaced.
        FileNotFoundError: If there will be no folder for it.
        ValueError: If it is not named as an HTML file.
    """

    from ..plotting.files import checked_path

    if path.is_dir():
        raise FileExistsError(f"{path} is a folder: give the path of an HTML file as report")
    # Of a folder that is made with the store, the name of the report is all there is to check.
    made = not path.parent.is_dir() and path.parent.resolve() in out.resolve().parents
    checked_path(path.name if made else path, REPORTS, replace or made)


def command_line(
    experiment: Any,
    methods: Sequence[str] | None,
    repetitions: int,
    out: Path,
    tune: bool,
    report: str | Path | None,
    overrides: Sequence[str],
) -> str:
    """The command that does the same."""

    if isinstance(experiment, str | Path):
        name = str(experiment)
    else:
        config = experiment.config if isinstance(experiment, Experiment) else experiment
        name = str(config.get("name") or "FILE")
    words = ["sda", "benchmark", f"experiment={name}"]
    words += [f"methods=[{','.join(map(str, methods))}]"] if methods is not None else []
    words += [f"repetitions={repetitions}", *overrides, f"out={out}"]
    words += ["tune=true"] if tune else []
    words += [f"report={report}"] if report is not None else []
    # Brackets too: some shells take them for patterns.
    return shlex.join(words)


def versions() -> dict[str, str]:
    """The versions of what the results depend on."""

    from importlib.metadata import PackageNotFoundError, version

    found = {"python": platform.python_version()}
    for package in ("sda-torch", "torch", "azula", "numpy", "xarray", "zarr"):
        try:
            found[package] = version(package)
        except PackageNotFoundError:
            found[package] = "not installed"
    return found


def machine(device: str | torch.device) -> dict[str, Any]:
    """What the times depend on."""

    device = torch.device(device)
    found: dict[str, Any] = {
        "cores": os.cpu_count(),
        "torch_threads": torch.get_num_threads(),
        "system": platform.platform(),
        "device": str(device),
    }
    if device.type == "cuda":
        found["gpu"] = torch.cuda.get_device_name(device)
    return found
