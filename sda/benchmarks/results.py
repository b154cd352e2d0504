"""The results of a benchmark: one tidy dataset in a Zarr store, and a table of its scalars.

The store has the dimensions `method` and `repetition`, and each (method, repetition) is a chunk of
its own, written when it is finished and marked as such last of all. A benchmark that was killed
goes on where it stopped; one that was complete can be extended by methods and repetitions. What was
not run, what diverged, and what a method does not have is NaN; `finished` and `diverged` tell the
first two apart.
"""

import hashlib
import json
import math
import os
import shutil
import warnings
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import xarray as xr

from ..store import open_dataset
from .experiment import RUN, Experiment
from .methods import FIT, Outcome, Spec
from .scoring import BINS, BY_VARIABLE, LEVELS, SCALARS, Case, Target, truth_spectrum

KIND = "sda benchmark"
COSTS = ("seconds", "model_steps", "evaluations", "memory")
MARKS = ("diverged", "diverged_time", "lost_time", "failed_members", "finished")
LONG_NAMES = {
    "rmse": "root mean square error of the ensemble mean, averaged over time",
    "crps": "fair continuous ranked probability score",
    "spread": "root mean ensemble variance, averaged over time",
    "spread_skill": "spread over RMSE, times sqrt((M+1)/M)",
    "bias": "mean of the ensemble mean minus the truth",
    "misfit": "root mean square of (y - H(x)) / std",
    "log_likelihood": "log p(y | x) of an analysis time, averaged over members and times",
    "reliability": "reliability index of the rank histogram in 20 bins; 0 is flat",
    "seconds": "wall time",
    "model_steps": "steps of the model, over all members",
    "evaluations": "evaluations of the prior's network, over all members",
    "memory": "peak memory above that at the start",
    "diverged": "whether the method diverged",
    "diverged_time": "the time at which it did",
    "lost_time": "the time at which the method lost the truth, if it found it again",
    "failed_members": "members that could not be sampled and are left out",
    "finished": "whether it was run",
}
# Enough to tell two priors apart.
HASH_DIGITS = 16
UNITS = {"seconds": "s", "memory": "byte"}
# Scores of single variables in the table.
SPELT = tuple(f"{name}_by_variable_" for name in BY_VARIABLE)
# What may differ between a run and one that goes on with it.
FREE = (*RUN, "entries", "title", "source", "notes", "published", "tuning", "pictures")


class Results:
    """The store of a benchmark.

    Arguments:
        path: The store.
        experiment: The experiment.
        target: The target of repetition 0, which decides the sizes.
        case: The case to draw.
        specs: The methods.
        repetitions: The number of repetitions.
        attrs: Further attributes.
        tuning: What tuning found, by method, as plain JSON types.
        prior_hash: The hash of the experiment's prior, for the methods that use it.
        overwrite: Whether results at `path` are replaced.
        resume: Whether results at `path` are kept, and completed or extended.

    Raises:
        FileExistsError: If the path exists, and neither `overwrite` nor `resume` is given, or it is
            no benchmark.
        ValueError: If the path does not end in .zarr, or the results to resume are of another
            experiment or of methods with other parameters or another prior.
    """

    def __init__(
        self,
        path: str | Path,
        experiment: Experiment,
        target: Target,
        case: Case,
        specs: Sequence[Spec],
        repetitions: int,
        attrs: Mapping[str, Any],
        tuning: Mapping[str, Any] | None = None,
        prior_hash: str = "",
        overwrite: bool = False,
        resume: bool = False,
    ) -> None:
        self.path, self.specs, self.case = Path(path), list(specs), case
        check_out(self.path, overwrite, resume)
        old = load(self.path) if resume and self.path.exists() else None
        if old is not None:
            check_same(old, experiment, self.path)
        template = empty(experiment, target, case, self.specs, repetitions, prior_hash)
        template.attrs |= dict(attrs) | {
            "kind": KIND,
            "status": "running",
            "fingerprint": fingerprint(experiment),
            "tuning": json.dumps(dict(tuning or {})),
        }
        if old is not None:
            template = carry_over(old, template, self.path)
        write(template, self.path)
        import zarr

        self.group = zarr.open_group(self.path, mode="r+")

    @classmethod
    def attach(cls, path: Path, specs: Sequence[Spec], case: Case) -> "Results":
        """Results that another process has made, to write some of them."""

        import zarr

        results = cls.__new__(cls)
        results.path, results.specs, results.case = path, list(specs), case
        results.group = zarr.open_group(path, mode="r+")
        return results

    def finished(self, spec: int, repetition: int) -> bool:
        """Whether a method has run on a repetition."""
        return bool(self.array("finished")[spec, repetition] == 1)

    def array(self, name: str) -> Any:
        """An array of the store."""
        return self.group[name]

    def put_truth(self, target: Target) -> None:
        """Writes what belongs to a repetition, whatever the method."""

        if "truth_spectrum" in self.group and (found := truth_spectrum(target)) is not None:
            self.array("truth_spectrum")[target.twin.repetition] = found

    def put(self, spec: int, target: Target, outcome: Outcome, scores: Mapping[str, Any]) -> None:
        """Writes the scores of a method on a repetition, and then that it is finished.

        Arguments:
            spec: The number of the method.
            target: The twin.
            outcome: What the method cost and whether it diverged.
            scores: Its scores; none if nothing could be sampled.
        """

        repetition = target.twin.repetition
        values = dict(scores) | {name: getattr(outcome, name) for name in COSTS}
        values |= {name: float(getattr(outcome, name)) for name in MARKS if name != "finished"}
        for name, value in values.items():
            if name in self.group:
                self.array(name)[spec, repetition] = value
        if repetition == 0 and outcome.posterior is not None:
            mean, spread = self.case.of_ensemble(target, outcome.posterior)
            self.array("case_mean")[spec], self.array("case_spread")[spec] = mean, spread
        self.array("finished")[spec, repetition] = 1.0

    def finish(self) -> None:
        """Marks the benchmark as complete."""
        self.group.attrs["status"] = "complete"

    def dataset(self) -> xr.Dataset:
        """The results as they are on disk, in memory."""
        return load(self.path)


def check_out(path: Path, overwrite: bool, resume: bool) -> None:
    """Raises unless the store may be written, before any work.

    Raises:
        FileExistsError: If it exists and is not to be resumed or replaced, or is no benchmark.
        ValueError: If the path does not end in .zarr, or both flags are given.
    """

    if path.suffix != ".zarr":
        raise ValueError(f"out must be a Zarr store, a path that ends in .zarr, got {str(path)!r}")
    if overwrite and resume:
        raise ValueError("overwrite and resume exclude each other, got both")
    restore(path)
    if not path.exists():
        return
    if not overwrite and not resume:
        raise FileExistsError(
            f"{path} exists: give resume=true to go on with it, overwrite=true to replace it, or "
            f"another path"
        )
    try:
        kind = open_dataset(path).attrs.get("kind")
    except (ValueError, OSError):
        kind = None
    if kind != KIND:
        raise FileExistsError(
            f"{path} exists and holds no benchmark: it is left as it is, choose another path"
        )


def aside(path: Path) -> Path:
    """Where a store lies for the moment in which another takes its place."""
    return path.with_name(f".{path.name}.before")


def restore(path: Path) -> None:
    """Puts a store back that a run was about to replace when it was killed."""

    if not path.exists() and aside(path).exists():
        os.replace(aside(path), path)


def load(path: str | Path) -> xr.Dataset:
    """Reads the results of a benchmark into memory.

    Raises:
        FileNotFoundError: If there is nothing at the path.
        ValueError: If it is no Zarr store.
    """

    return open_dataset(path).load()


def fingerprint(experiment: Experiment) -> str:
    """A SHA-256 of all that the twins of an experiment depend on."""

    kept = {k: v for k, v in experiment.config.items() if k not in FREE and k != "name"}
    return hashlib.sha256(json.dumps(kept, sort_keys=True, default=str).encode()).hexdigest()


def check_same(old: xr.Dataset, experiment: Experiment, path: Path) -> None:
    """Raises a `ValueError` if results are of another experiment, and says what differs."""

    if old.attrs["fingerprint"] == fingerprint(experiment):
        return
    before, now = json.loads(old.attrs["experiment"]), plain_json(experiment.config)
    keys = sorted({*before, *now} - {*FREE, "name"})
    differs = [f"{k} ({before.get(k)} before, {now.get(k)} now)" for k in keys
               if before.get(k) != now.get(k)]  # fmt: skip
    raise ValueError(
        f"{path} holds results of another experiment, which cannot be resumed: "
        f"{'; '.join(differs)}. Give overwrite=true or another path"
    )


def plain_json(content: Any) -> Any:
    """Content as JSON gives it back."""
    return json.loads(json.dumps(content, default=str))


def empty(
    experiment: Experiment,
    target: Target,
    case: Case,
    specs: Sequence[Spec],
    repetitions: int,
    prior_hash: str = "",
) -> xr.Dataset:
    """A dataset of the results' form, all NaN."""

    methods, times = len(specs), len(target.time)
    spectrum = truth_spectrum(target)
    seeds = [experiment.seeds(repetition) for repetition in range(repetitions)]
    axes: dict[str, tuple[str, ...]] = dict.fromkeys((*SCALARS, *COSTS, *MARKS), ())
    axes |= {"rmse_time": ("time",), "spread_time": ("time",)}
    axes |= {"rank_histogram": ("bin",), "coverage": ("level",)}
    axes |= {f"{name}_by_variable": ("variable",) for name in BY_VARIABLE}
    axes |= {"coverage_by_variable": ("variable", "level")}
    names = target.layout.variables
    sizes = {"time": times, "bin": BINS, "level": len(LEVELS), "variable": len(names)}
    if spectrum is not None:
        axes["spectrum"], sizes["wavenumber"] = ("wavenumber",), len(spectrum)

    def nan(*shape: int) -> np.ndarray:
        return np.full(shape, np.nan)

    variables: dict[str, Any] = {
        name: (("method", "repetition", *dims),
               nan(methods, repetitions, *(sizes[d] for d in dims)),
               {"long_name": LONG_NAMES.get(name, name), "units": UNITS.get(name, "1")})
        for name, dims in axes.items()
    }  # fmt: skip
    if spectrum is not None:
        variables["truth_spectrum"] = (
            ("repetition", "wavenumber"), nan(repetitions, len(spectrum))
        )  # fmt: skip
    units = target.layout.units
    note = {"long_name": case.variable, "units": units.get(case.variable, "1")}
    variables["case_truth"] = (case.dims, case.truth, note)
    variables["case_observed"] = (case.dims, case.observed, note)
    for name in ("case_mean", "case_spread"):
        variables[name] = (("method", *case.dims), nan(methods, *case.truth.shape), note)

    coords: dict[str, Any] = {
        "method": text([spec.key for spec in specs]),
        "repetition": np.arange(repetitions),
        "time": ("time", target.time, {"units": target.layout.time_units}),
        "level": list(LEVELS),
        "bin": (np.arange(BINS) + 0.5) / BINS,
        "label": ("method", text([spec.label for spec in specs])),
        "kind": ("method", text([spec.kind for spec in specs])),
        "tuned": ("method", np.array([int(spec.tuned) for spec in specs])),
        "published": ("method", np.array([spec.published for spec in specs])),
        "parameters": ("method", text([described(spec, prior_hash) for spec in specs])),
        "variable": text(names),
        "units": ("variable", text([units.get(name, "1") for name in names])),
        **{d: (d, values, {"units": units.get(d, "1")}) for d, values in case.coords.items()},
    }
    if spectrum is not None:
        coords["wavenumber"] = np.arange(len(spectrum))
    if not math.isnan(case.time):
        coords["case_time"] = case.time

    return xr.Dataset(
        variables,
        coords,
        {
            "experiment": json.dumps(experiment.config, default=str),
            "title": experiment.title,
            "score": "rmse",
            "seeds": json.dumps({"seed": experiment.seed, "repetitions": seeds}),
            "notes": json.dumps(list(experiment.config.get("notes") or [])),
            "burn_in": experiment.burn_in,
        },
    )


def text(values: Sequence[str]) -> np.ndarray:
    """Text of any length, which may grow when a benchmark is extended."""
    return np.array(list(values), dtype=object)


def uses_prior(spec: Spec) -> bool:
    """Whether a method depends on the experiment's prior: on its network or its climatology."""

    if spec.method == "gaussian":
        return spec.parameters.get("trajectories", FIT["trajectories"]) is None
    return spec.method == "sda" or spec.parameters.get("climatology") == "prior"


def described(spec: Spec, prior_hash: str = "") -> str:
    """All that makes a method what it is, as JSON.

    Arguments:
        spec: The method.
        prior_hash: The hash of the experiment's prior. It is named where the method depends on it,
            by its first digits: a prior that was trained again has the same name.
    """

    more: dict[str, Any] = {"model": dict(spec.model)} if spec.model else {}
    if prior_hash and uses_prior(spec):
        more["prior_hash"] = prior_hash[:HASH_DIGITS]
    return json.dumps({"method": spec.method, **spec.parameters, **more}, default=str)


def carry_over(old: xr.Dataset, template: xr.Dataset, path: Path) -> xr.Dataset:
    """A template with the results that were there before, methods and repetitions alike.

    Raises:
        ValueError: If a method has other parameters than before, or another prior.
    """

    before = dict(zip(old["method"].values, old["parameters"].values, strict=True))
    now = dict(zip(template["method"].values, template["parameters"].values, strict=True))
    for key in before:
        if key in now and before[key] != now[key]:
            raise ValueError(
                f"{key} had the parameters {before[key]} in {path}, now {now[key]}: give the entry "
                f"another name, or overwrite=true"
            )
    # Nothing that was computed is thrown away, not even if this run names fewer methods.
    methods = [*(key for key in before if key not in now), *now]
    repetitions = np.arange(max(old.sizes["repetition"], template.sizes["repetition"]))
    grown = template.reindex({"method": text(methods), "repetition": repetitions})
    for name in ("label", "kind", "tuned", "published", "parameters"):
        known = dict(zip(old["method"].values, old[name].values, strict=True))
        known |= dict(zip(template["method"].values, template[name].values, strict=True))
        values = [known[key] for key in methods]
        kind = text(values) if isinstance(values[0], str) else np.array(values)
        grown = grown.assign_coords({name: ("method", kind)})
    for variable, array in list(grown.data_vars.items()):
        dims = [d for d in ("method", "repetition") if d in array.dims]
        if variable in old and dims:
            filled = np.array(array.values)
            rows = [methods.index(key) for key in before]
            places = {"method": rows, "repetition": list(range(old.sizes["repetition"]))}
            part = np.ix_(*(places[d] for d in dims))
            filled[part] = old[variable].transpose(*array.dims).values
            grown[variable] = (array.dims, filled, array.attrs)
    seeds = [json.loads(each.attrs["seeds"]) for each in (old, template)]
    longest = max(seeds, key=lambda each: len(each["repetitions"]))
    commands = [*json.loads(old.attrs["commands"]), *json.loads(template.attrs["commands"])]
    grown.attrs |= {
        "seeds": json.dumps(longest),
        "commands": json.dumps(list(dict.fromkeys(commands))),
        "tuning": json.dumps(
            json.loads(old.attrs["tuning"]) | json.loads(template.attrs["tuning"])
        ),
    }
    return grown


def write(dataset: xr.Dataset, path: Path) -> None:
    """Writes a dataset complete or not at all, each (method, repetition) as a chunk."""

    path.parent.mkdir(parents=True, exist_ok=True)
    partial, before = path.with_name(f".{path.name}.partial"), aside(path)
    single = ("method", "repetition")
    encoding = {
        str(name): {"chunks": tuple(1 if d in single else max(n, 1)
                                    for d, n in zip(v.dims, v.shape, strict=True))}
        for name, v in dataset.data_vars.items()
    }  # fmt: skip
    for each in (partial, before):
        shutil.rmtree(each, ignore_errors=True)
    with warnings.catch_warnings():
        # Text has no fixed place in the Zarr specification yet; xarray reads what it writes.
        warnings.filterwarnings("ignore", message=".*Zarr V3 specification.*")
        warnings.filterwarnings("ignore", message=".*Consolidated metadata.*")
        dataset.to_zarr(partial, mode="w", zarr_format=3, consolidated=False, encoding=encoding)
    if path.exists():
        os.replace(path, before)
    os.replace(partial, path)
    shutil.rmtree(before, ignore_errors=True)


def table(dataset: xr.Dataset) -> pd.DataFrame:
    """The scalars as a table, one row for each method and repetition that was run."""

    dataset = spelt_out(dataset)
    each = [str(name) for name in dataset.data_vars if str(name).startswith(SPELT)]
    names = [*SCALARS, *each, *COSTS, *MARKS]
    coords = ["label", "kind", "tuned", "published", "parameters"]
    frame = dataset[names].to_dataframe().reset_index()
    frame = frame[["method", "repetition", *coords, *names]]
    return frame[frame["finished"] == 1].drop(columns="finished").reset_index(drop=True)


def spelt_out(dataset: xr.Dataset) -> xr.Dataset:
    """Results with a score of each variable as one of its own, `<score>_by_variable_<name>`."""

    if "variable" not in dataset.coords or dataset.sizes["variable"] < 2:
        return dataset
    found = {
        f"{name}_by_variable_{variable}": dataset[f"{name}_by_variable"].isel(variable=i, drop=True)
        for name in BY_VARIABLE
        for i, variable in enumerate(dataset["variable"].values)
    }

    return dataset.assign(found)


def write_tables(dataset: xr.Dataset, path: Path) -> list[Path]:
    """Writes the table beside the store, as Parquet and as CSV."""

    frame = table(dataset)
    paths = [path.with_suffix(".parquet"), path.with_suffix(".csv")]
    for target, save in zip(paths, (frame.to_parquet, frame.to_csv), strict=True):
        partial = target.with_name(f".{target.name}.partial")
        save(partial, index=False)
        os.replace(partial, target)
    return paths


def summary(dataset: xr.Dataset) -> str:
    """A table for a terminal: mean over repetitions ± standard error, published score, cost.

    Scores are those of the repetitions that did not diverge; how many did stands beside them.
    """

    head = ["method", "rmse", "±", "published", "diff", "crps", "spread/skill", "diverged", "s"]
    rows = [head]
    for number in range(dataset.sizes["method"]):
        at = dataset.isel(method=number)
        done = at["finished"].values == 1
        if not done.any():
            continue
        at = at.isel(repetition=done)
        diverged = int((at["diverged"].values > 0).sum())
        good = at.isel(repetition=at["diverged"].values == 0)
        rmse, published = good["rmse"].values, float(at["published"])
        mean = float(np.mean(rmse)) if len(rmse) else math.nan
        error = float(np.std(rmse, ddof=1) / math.sqrt(len(rmse))) if len(rmse) > 1 else math.nan
        gap = "" if math.isnan(published) or math.isnan(mean) else f"{mean / published - 1:+.0%}"
        rows.append([
            str(at["label"].item()), show(mean), show(error), show(published), gap,
            show(float(good["crps"].mean())), show(float(good["spread_skill"].mean())),
            f"{diverged}/{at.sizes['repetition']}", show(float(at["seconds"].mean())),
        ])  # fmt: skip
    each = by_variable(dataset)
    return aligned(rows) + (f"\n\n{aligned(each)}" if each else "")


def by_variable(dataset: xr.Dataset) -> list[list[str]]:
    """The rows of a table of the scores of each variable: RMSE, CRPS, spread–skill and the coverage
    of 90 %. None for results of one variable."""

    if "variable" not in dataset.coords or dataset.sizes["variable"] < 2:
        return []
    names = [str(name) for name in dataset["variable"].values]
    level = int(np.abs(dataset["level"].values - 0.9).argmin())
    columns = [("rmse", "rmse"), ("crps", "crps"), ("spread_skill", "spread/skill")]
    words = [f"{word} {name}" for _, word in columns for name in names]
    rows = [["by variable", *words, *(f"covered {name}" for name in names)]]
    for number in range(dataset.sizes["method"]):
        at = dataset.isel(method=number)
        good = (at["finished"].values == 1) & (at["diverged"].values == 0)
        if not good.any():
            continue
        at = at.isel(repetition=good)
        means = [at[f"{name}_by_variable"].mean("repetition").values for name, _ in columns]
        means.append(at["coverage_by_variable"].isel(level=level).mean("repetition").values)
        rows.append([str(at["label"].item()), *(show(float(v)) for row in means for v in row)])
    return rows if len(rows) > 1 else []


def aligned(rows: Sequence[Sequence[str]]) -> str:
    """Rows of cells as lines, the first column to the left."""

    widths = [max(len(row[i]) for row in rows) for i in range(len(rows[0]))]
    return "\n".join(
        "  ".join(cell.ljust(w) if i == 0 else cell.rjust(w)
                  for i, (cell, w) in enumerate(zip(row, widths, strict=True))).rstrip()
        for row in rows
    )  # fmt: skip


def show(value: float) -> str:
    """A number with three digits, or a dash."""
    return "–" if math.isnan(value) else f"{value:.3g}"
