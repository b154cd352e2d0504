"""The methods that a benchmark compares, and how one of them runs on one twin.

A method is named in `METHODS`, made from its class by keyword arguments alone, and given the same
observations, the same times and the same knowledge of the first state as every other. Score-based
ones take the experiment's prior, or a Gaussian one that is fitted to simulations of the true
system; they know no model, and the first state only by the climatology that they have learned.
"""

import contextlib
import importlib
import inspect
import json
import math
import time
import warnings
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from functools import cached_property
from pathlib import Path
from types import TracebackType
from typing import Any, get_args

import numpy as np
import torch
import xarray as xr

from dynamics.simulate import compute_device
from dynamics.system import System

from ..climatology import Climatology
from ..prior import Prior
from ..verification.cells import cell_mask
from .experiment import Experiment, Twin

CLASSICAL, BASELINE, SCORE_BASED = "classical", "baseline", "score-based"


@dataclass(frozen=True)
class Kind:
    """What a name stands for.

    Attributes:
        target: The class in `sda.classical`, or none for what samples a prior.
        kind: "classical", "baseline" or "score-based".
        title: What it is called in tables.
        search: The values that `tune=true` tries, by parameter. Localisation radii are in cells.
    """

    target: str | None
    kind: str
    title: str
    search: Mapping[str, Sequence[Any]] = field(default_factory=dict)


INFLATION = (1.0, 1.01, 1.02, 1.04, 1.07, 1.1, 1.15, 1.2, 1.3, 1.5)
FACTOR = (0.01, 0.02, 0.05, 0.1, 0.2, 0.5, 1.0)
RADIUS = (2.0, 3.0, 4.0, 6.0, 8.0, 12.0)
LAG = (1, 2, 4, 8, 16)
# Of particle filters: the bandwidth of the kernel and the effective number that resamples.
BANDWIDTH, THRESHOLD = (0.2, 0.4, 0.7, 0.9, 1.3, 1.8, 2.4), (0.05, 0.2, 0.3, 0.5)
METHODS: dict[str, Kind] = {
    "climatology": Kind("Climatological", BASELINE, "Climatology"),
    "oi": Kind("OptimalInterpolation", BASELINE, "Optimal interpolation"),
    "3dvar": Kind("ThreeDVar", CLASSICAL, "3D-Var", {"factor": FACTOR}),
    "4dvar": Kind("FourDVar", CLASSICAL, "4D-Var", {"factor": FACTOR}),
    "kf": Kind("KalmanFilter", CLASSICAL, "Kalman filter"),
    "rts": Kind("RTSSmoother", CLASSICAL, "RTS smoother"),
    "enkf": Kind("EnKF", CLASSICAL, "EnKF", {"inflation": INFLATION}),
    "denkf": Kind("DEnKF", CLASSICAL, "DEnKF", {"inflation": INFLATION}),
    "etkf": Kind("ETKF", CLASSICAL, "ETKF", {"inflation": INFLATION}),
    "letkf": Kind("LETKF", CLASSICAL, "LETKF", {"inflation": INFLATION, "radius": RADIUS}),
    "enkfn": Kind("EnKFN", CLASSICAL, "EnKF-N"),
    "enks": Kind("EnKS", CLASSICAL, "EnKS", {"inflation": INFLATION, "lag": LAG}),
    "ienks": Kind("IEnKS", CLASSICAL, "IEnKS", {"inflation": INFLATION, "lag": LAG}),
    "pf": Kind(
        "ParticleFilter",
        CLASSICAL,
        "Particle filter",
        {"regularisation": BANDWIDTH, "threshold": THRESHOLD},
    ),
    "ps": Kind("ParticleSmoother", CLASSICAL, "Particle smoother"),
    "gaussian": Kind(None, BASELINE, "Gaussian prior"),
    "sda": Kind(None, SCORE_BASED, "Score-based (sda)"),
}
# What an entry of an experiment may hold beside the parameters of its method. A parameter
# `climatology: prior` stands for the climatology of the experiment's prior.
OWN = ("method", "label", "published", "model", "search")
# The arguments of `sda.assimilate` that the benchmark sets itself.
SET = (
    "prior", "observations", "seed", "out", "task", "time", "overwrite", "resume", "progress",
    "dtype", "device", "cluster", "workers",
)  # fmt: skip
# The plain types of parameters, in words.
WORDS: dict[Any, str] = {
    int: "an integer", float: "a number", bool: "true or false", str: "text", type(None): "null",
}  # fmt: skip
# Squared innovations over their expectation, up to which an ensemble is not lost.
CONSISTENT = 4.0
# Methods that need the climatology of their model, unless they are given a covariance.
CLIMATOLOGICAL = ("climatology", "oi", "3dvar")
# Spun-up states to draw from, at least.
FEWEST_STATES = 16
# Those of the simulations that a Gaussian prior is fitted to.
FIT = {"trajectories": 64, "states": 128, "window": 17}


@dataclass(frozen=True)
class Spec:
    """A method with its parameters, ready to run.

    Attributes:
        key: The entry of the experiment, or the method's name.
        method: The key of `METHODS`.
        label: How tables call it; unique within a benchmark.
        parameters: The keyword arguments.
        published: The published score, NaN if there is none.
        model: Arguments of the system that differ in this method's model.
        search: The values that tuning tries, by parameter.
        tuned: Whether the parameters were found by tuning.
    """

    key: str
    method: str
    label: str
    parameters: Mapping[str, Any]
    published: float = math.nan
    model: Mapping[str, Any] = field(default_factory=dict)
    search: Mapping[str, Sequence[Any]] = field(default_factory=dict)
    tuned: bool = False

    @property
    def kind(self) -> str:
        return METHODS[self.method].kind

    def with_parameters(self, **parameters: Any) -> "Spec":
        """The same method with other parameters."""
        return replace(self, parameters={**self.parameters, **parameters})


def resolve(experiment: Experiment, names: Sequence[str] | None = None) -> list[Spec]:
    """The methods of an experiment.

    Arguments:
        experiment: The experiment.
        names: Entries of the experiment, or methods: a method's name stands for all entries of that
            method, or, if there is none, for the method with its default parameters (default: all
            entries).

    Raises:
        ValueError: If a name, a method or a parameter is unknown, or nothing is named at all. The
            message lists the choices.
    """

    entries = experiment.entries
    if names is None:
        names = list(entries)
    if not names:
        reason = f"experiment {experiment.name!r} has no entries" if not entries else (
            f"methods is empty: leave it out for all entries ({', '.join(entries)}), or"
        )  # fmt: skip
        raise ValueError(
            f"{reason}{':' if not entries else ''} give methods=[…], of {', '.join(METHODS)}"
        )
    specs: dict[str, Spec] = {}
    for name in map(str, names):
        chosen = {name: entries[name]} if name in entries else {}
        if not chosen:
            method = find(name, list(entries))
            chosen = {k: e for k, e in entries.items() if find(str(e.get("method", k))) == method}
            chosen = chosen or {method: {"method": method}}
        for key, entry in chosen.items():
            specs[key] = make(experiment, key, entry)
    unique_labels(list(specs.values()))

    return list(specs.values())


def find(name: str, entries: Sequence[str] = ()) -> str:
    """The key of `METHODS` that a name, or the name of a class, stands for.

    Raises:
        ValueError: If there is none.
    """

    from ..config import hint

    if name in METHODS:
        return name
    for key, kind in METHODS.items():
        if kind.target == name:
            return key
    also = f", or an entry of the experiment: {', '.join(entries)}" if entries else ""
    raise ValueError(
        f"unknown method {name!r}{hint(name, [*METHODS, *entries])}: expected one of "
        f"{', '.join(METHODS)}{also}"
    )


def make(experiment: Experiment, key: str, entry: Mapping[str, Any]) -> Spec:
    """A method from an entry of an experiment, with its parameters checked by name.

    Raises:
        ValueError: If the method or a parameter is unknown, or there is no prior to sample.
    """

    from ..config import hint

    method = find(str(entry.get("method", key)))
    parameters = {k: plain(v) for k, v in entry.items() if k not in OWN}
    known = signature(method)
    for name in parameters:
        if name not in known:
            raise ValueError(
                f"{key}: unknown parameter {name!r} of {method}{hint(name, list(known))}: "
                f"expected among {', '.join(known)}"
            )
    check_types(key, method, parameters)
    if "members" in known and "members" not in parameters:
        members = experiment.config.get("members")
        if members is None and known["members"] is inspect.Parameter.empty:
            raise ValueError(f"{key}: give members, the size of the ensemble of {method}")
        if members is not None:
            parameters = {"members": members, **parameters}
    needed = [n for n, v in known.items() if v is inspect.Parameter.empty and n not in parameters]
    if needed:
        raise ValueError(f"{key}: {method} needs {', '.join(needed)}, got {sorted(parameters)}")
    if method == "sda" and not experiment.config.get("prior"):
        raise ValueError(
            f"{key}: sda needs a prior, and experiment {experiment.name!r} names none: leave sda "
            f"out, or give prior=…, a shipped prior or the folder of one that `sda train` wrote"
        )
    published = entry.get("published")
    if published is not None and not of_types(published, (float,)):
        raise ValueError(f"{key}: published must be a number or null, got {published!r}")
    search = entry.get("search", METHODS[method].search) or {}
    if not isinstance(search, Mapping) or not all(
        isinstance(values, Sequence) and not isinstance(values, str) for values in search.values()
    ):
        raise ValueError(
            f"{key}: search must be a mapping of lists such as {{inflation: [1.0, 1.1]}}, "
            f"got {search!r}"
        )
    changes = entry.get("model") or {}
    if not isinstance(changes, Mapping):
        raise ValueError(
            f"{key}: model must be a mapping of arguments of the system, got {changes!r}"
        )

    return Spec(
        key=key,
        method=method,
        label=str(entry.get("label") or default_label(method, parameters)),
        parameters=parameters,
        published=math.nan if published is None else float(published),
        model=dict(changes),
        search={str(name): list(values) for name, values in search.items() if name in known},
    )


def check_types(key: str, method: str, parameters: Mapping[str, Any]) -> None:
    """Raises a `ValueError` that names a number, flag or word which is something else."""

    target = METHODS[method].target
    if target is None:
        from ..assimilation import assimilate
    found = inspect.signature(assimilate if target is None else method_class(method)).parameters
    for name, value in parameters.items():
        annotation = found[name].annotation if name in found else int | None
        types = get_args(annotation) or (annotation,)
        if set(types) <= set(WORDS) and not of_types(value, types):
            expected = " or ".join(WORDS[each] for each in types)
            raise ValueError(f"{key}: {name} of {method} must be {expected}, got {value!r}")


def of_types(value: Any, types: Sequence[Any]) -> bool:
    """Whether a value is of one of some plain types; an integer is a number, a flag is none."""

    if isinstance(value, bool):
        return bool in types
    return isinstance(value, tuple(types)) or (isinstance(value, int) and float in types)


def unique_labels(specs: Sequence[Spec]) -> None:
    """Raises a `ValueError` if two methods have the same label."""

    labels = [spec.label for spec in specs]
    for label in labels:
        if labels.count(label) > 1:
            twice = [spec.key for spec in specs if spec.label == label]
            raise ValueError(f"the entries {twice} have the same label {label!r}: rename one")


def default_label(method: str, parameters: Mapping[str, Any]) -> str:
    """A label that tells a method with its parameters from others."""

    words = []
    for name, value in parameters.items():
        if value is True:
            words.append(name)
        elif isinstance(value, int | float | str) and value is not False:
            words.append(f"{'N' if name == 'members' else name} {value}")
    return ", ".join([METHODS[method].title, *words])


def plain(value: Any) -> Any:
    """A value as YAML has it, with lists as they are."""
    return dict(value) if isinstance(value, Mapping) else value


def signature(method: str) -> dict[str, Any]:
    """The parameters of a method and their defaults; `inspect.Parameter.empty` if required."""

    if METHODS[method].target is None:
        from ..assimilation import assimilate

        found = inspect.signature(assimilate).parameters
        known = {name: p.default for name, p in found.items() if name not in SET}
        return {**known, **FIT} if method == "gaussian" else known
    found = inspect.signature(method_class(method)).parameters
    return {
        name: p.default
        for name, p in found.items()
        if name != "system" and p.kind not in (p.VAR_POSITIONAL, p.VAR_KEYWORD)
    }


def method_class(method: str) -> Any:
    """The class of a classical method."""
    return getattr(importlib.import_module("sda.classical"), str(METHODS[method].target))


@dataclass
class Outcome:
    """What came of one method on one twin.

    Attributes:
        posterior: The ensemble; none if nothing could be sampled.
        seconds: The wall time.
        model_steps: The steps of the model, over all members.
        evaluations: The evaluations of the prior's network, over all members.
        memory: The peak memory above that at the start, in bytes; NaN where it cannot be known.
        diverged: Whether the method diverged.
        diverged_time: The time at which it did; NaN if unknown.
        lost_time: The time at which it lost the truth and found it again; NaN if it never did.
        failed_members: The members that failed and are left out.
        message: Why.
    """

    posterior: xr.Dataset | None
    seconds: float
    model_steps: float = 0.0
    evaluations: float = 0.0
    memory: float = math.nan
    diverged: bool = False
    diverged_time: float = math.nan
    lost_time: float = math.nan
    failed_members: int = 0
    message: str = ""


class Workbench:
    """Runs methods on the twins of an experiment, and keeps what they share.

    Arguments:
        experiment: The experiment.
        device: The device to run on.

    Raises:
        ValueError: If there is no such device on this machine.
    """

    def __init__(self, experiment: Experiment, device: torch.device | str = "cpu") -> None:
        self.experiment, self.device = experiment, compute_device(device)
        self.gaussians: dict[tuple[Any, ...], Prior] = {}
        self.long_runs: dict[str, xr.Dataset] = {}

    @cached_property
    def prior(self) -> Prior:
        """The prior that the experiment names."""

        from ..config import build_prior

        return build_prior(self.experiment.config["prior"])

    def climatology(self) -> Climatology:
        """The climatology of the experiment's prior.

        Raises:
            ValueError: If the experiment names no prior.
        """

        if not self.experiment.config.get("prior"):
            raise ValueError(
                f"experiment {self.experiment.name!r} names no prior to take the climatology of: "
                f"give the number of trajectories of `gaussian`, leave out climatology of others, "
                f"or give prior=…"
            )
        return self.prior.climatology

    def gaussian(self, trajectories: int | None, states: int, window: int) -> Prior:
        """A Gaussian prior, from simulations of the true system or from the named prior's data.

        Arguments:
            trajectories: The number of trajectories to simulate, or none for the climatology of the
                experiment's prior.
            states: Their states.
            window: The states of the covariance.

        Raises:
            ValueError: If there are neither trajectories nor a prior to take the climatology of.
        """

        from ..prior import GaussianPrior

        if trajectories is None:
            return Prior(self.climatology(), name=f"{self.prior.name}, Gaussian")
        key = (trajectories, states, window)
        if key not in self.gaussians:
            # A seed of its own: no twin is made of what the prior was fitted to.
            data = self.experiment.system.simulate(
                trajectories, states, spinup=int(self.experiment.config.get("spinup") or 0),
                seed=self.experiment.seeds(0, stream=2)["states"], progress=False,
            )  # fmt: skip
            self.gaussians[key] = GaussianPrior.fit(data, window)
        return self.gaussians[key]

    def run(self, spec: Spec, twin: Twin) -> Outcome:
        """Runs a method on a twin. That it diverges is an outcome, not an error.

        Raises:
            ValueError: If its parameters or the observations do not suit it; the message names it.
        """
        return self.run_all(spec, [twin])[0]

    def run_all(self, spec: Spec, twins: Sequence[Twin]) -> list[Outcome]:
        """Runs a method on several twins, a classical one side by side.

        Raises:
            ValueError: See `run`.
        """

        try:
            if METHODS[spec.method].target is None:
                return [self.sample(spec, twin) for twin in twins]
            return self.assimilate(spec, twins)
        except (ValueError, TypeError) as error:
            raise type(error)(f"{spec.key}: {error}") from error

    def method(self, spec: Spec, model: System) -> Any:
        """A classical method that runs a model.

        Raises:
            ValueError: If its parameters are out of range.
        """

        parameters = dict(spec.parameters)
        if parameters.get("climatology") == "prior":
            parameters["climatology"] = self.climatology()
        return method_class(spec.method)(model, **parameters)

    def long_run(self, spec: Spec, model: System) -> xr.Dataset:
        """The long run of a model: the same for all methods, whose time it is no part of."""

        from ..classical.background import long_run

        key = json.dumps(dict(spec.model), sort_keys=True, default=str)
        if key not in self.long_runs:
            self.long_runs[key] = long_run(model)
        return self.long_runs[key]

    def assimilate(self, spec: Spec, twins: Sequence[Twin]) -> list[Outcome]:
        """Runs a classical method; what it costs is shared between the twins."""

        experiment = self.experiment
        model = experiment.model(spec.model)
        method = self.method(spec, model)
        if spec.method in CLIMATOLOGICAL and method.climatology is None:
            if getattr(method, "covariance", None) is None:
                method.climatology = self.long_run(spec, model)
        # Variational methods start from one state, and from the covariance of many.
        number = max(int(method.draws), FEWEST_STATES)
        starts = [experiment.initial(twin, number, model) for twin in twins]

        def work() -> list[xr.Dataset]:
            with warnings.catch_warnings():
                # It is in the results, and said in one line.
                warnings.filterwarnings("ignore", message=".*diverged in cycle.*")
                found = method.assimilate(
                    [twin.observations for twin in twins],
                    [twin.seeds["methods"] for twin in twins],
                    time=twins[0].time,
                    initial=starts,
                    dtype=experiment.dtype,
                    device=self.device,
                )
            return [each.load() for each in found]

        posteriors, cost = measure(work, self.device)
        outcomes = []
        for number, twin in enumerate(twins):
            outcome = replace(
                cost, seconds=cost.seconds / len(twins), memory=cost.memory / len(twins)
            )
            if posteriors is not None:
                posterior, attrs = posteriors[number], posteriors[number].attrs
                outcome.model_steps = float(attrs.get("model_steps", math.nan))
                outcome.evaluations = float(attrs.get("evaluations", 0.0))
                if attrs.get("diverged", 0):
                    when = float(attrs["diverged_time"])
                    if recovered(posterior, when):
                        outcome.lost_time = when
                        outcome.message = f"lost the truth at time {when:g} and found it again"
                    else:
                        outcome.diverged, outcome.diverged_time = True, when
                if experiment.scored == "all":
                    posterior = forecasts(posterior, model, twin, experiment.dtype)
                    when = lost_forecast(posterior)
                    if math.isfinite(when) and not outcome.diverged:
                        outcome.diverged, outcome.diverged_time = True, when
                        outcome.message = "a forecast from an analysis is not finite"
                outcome.posterior = posterior
            outcomes.append(outcome)
        return outcomes

    def sample(self, spec: Spec, twin: Twin) -> Outcome:
        """Samples a prior, learned or Gaussian."""

        from ..assimilation import assimilate
        from .kolmogorov import CountedPrior

        options = dict(spec.parameters)
        if spec.method == "gaussian":
            fit = {name: options.pop(name, default) for name, default in FIT.items()}
            prior = self.gaussian(**fit)
            options = {"guidance": "static", "langevin": None, **options}
        else:
            prior = self.prior
        counted = CountedPrior(prior)
        members = options.pop("members", 64)

        def work() -> list[xr.Dataset]:
            return [
                assimilate(
                    counted, twin.observations, members, twin.seeds["methods"],
                    time=twin.time, device=self.device, **options,
                ).load()
            ]  # fmt: skip

        posteriors, outcome = measure(work, self.device)
        outcome.evaluations = float(counted.evaluations)
        if posteriors is not None:
            posterior = posteriors[0]
            failed = list(posterior.attrs["failed_members"])
            outcome.failed_members = len(failed)
            if failed:
                outcome.message = f"{len(failed)} of {members} members failed"
                posterior = posterior.drop_isel(member=failed)
            outcome.posterior = posterior
        return outcome


def recovered(posterior: xr.Dataset, when: float) -> bool:
    """Whether a filter that has lost the truth finds it again.

    Small ensembles of a system with two wings lose the truth for some cycles now and then, and
    published scores count those cycles. It has diverged if from then on, or at the end, its squared
    innovations are mostly several times what it expects, or values are not finite.

    Arguments:
        posterior: The analysis ensemble.
        when: The time at which it was lost.
    """

    from ..classical.base import PATIENCE

    ratio = posterior.get("innovation_chi_square")
    if ratio is None or not finite_times(posterior).all():
        return False
    since = ratio.values[posterior["time"].values >= when]
    if not len(since):
        return False
    return bool(max(np.median(since), np.median(since[-PATIENCE:])) <= CONSISTENT)


def forecasts(posterior: xr.Dataset, model: Any, twin: Twin, dtype: torch.dtype) -> xr.Dataset:
    """An analysis ensemble with its own forecasts between analyses, at all times of the model.

    Between the first time and the first analysis there is no estimate: it stays NaN. So does a
    forecast that cannot be made, since its analysis has diverged.
    """

    from dynamics.random import normal

    layout, time = model.layout, twin.time
    if posterior.sizes["time"] == len(time):
        return posterior
    states = torch.from_numpy(layout.to_array(posterior)).to(dtype)
    at = [int(i) for i in abs(time[:, None] - posterior["time"].values[None]).argmin(axis=0)]
    filled = states.new_full((len(states), len(time), *layout.shape), math.nan)
    for number, (start, stop) in enumerate(zip(at, [*at[1:], len(time)], strict=True)):
        noise = None
        if model.stochastic and stop - start > 1:
            shape = (stop - start - 1, *layout.shape)
            noise = normal(twin.seeds["states"], range(len(states)), shape, 2, number, dtype=dtype)
        filled[:, start] = states[:, number]
        with torch.no_grad(), contextlib.suppress(FloatingPointError):
            filled[:, start:stop] = model.rollout(states[:, number], stop - start, noise)
    return layout.to_dataset(filled, time, posterior["member"].values, posterior.attrs)


def finite_times(posterior: xr.Dataset) -> np.ndarray:
    """At which times all states of an ensemble are finite, but for land."""

    finite = np.ones(posterior.sizes["time"], dtype=bool)
    for variable in posterior.values():
        dims = [d for d in variable.dims if d not in ("member", "time")]
        mask = cell_mask(posterior, dims)
        known = np.isfinite(variable.transpose("time", ..., *dims).values)
        known = known if mask is None else known | ~mask
        finite &= known.reshape(len(known), -1).all(axis=1)

    return finite


def lost_forecast(posterior: xr.Dataset) -> float:
    """The first time, after that of the first estimate, of a state that is not finite, or NaN."""

    finite = finite_times(posterior)
    first = int(finite.argmax())
    lost = np.flatnonzero(~finite[first:])
    return float(posterior["time"].values[first + lost[0]]) if len(lost) else math.nan


def measure(
    work: Callable[[], list[xr.Dataset]], device: torch.device
) -> tuple[list[xr.Dataset] | None, Outcome]:
    """Runs something, and tells its wall time, its peak memory and whether it diverged."""

    found: list[xr.Dataset] | None = None
    message, when = "", math.nan
    with PeakMemory(device) as memory:
        start = time.perf_counter()
        try:
            found = work()
        except FloatingPointError as error:
            message, when = " ".join(str(error).split()), float(getattr(error, "time", math.nan))
        seconds = time.perf_counter() - start

    return found, Outcome(
        None, seconds, memory=memory.bytes,
        diverged=found is None, diverged_time=when, message=message,
    )  # fmt: skip


class PeakMemory:
    """The memory that a block of code takes at most, above what there was before it.

    On a GPU it is what the allocator held; on a CPU the resident memory of the process, which only
    Linux lets one reset. Memory that the process had kept from earlier work is not counted again.

    Attributes:
        bytes: The peak after the block, NaN where it cannot be known.
    """

    STATUS, RESET = Path("/proc/self/status"), Path("/proc/self/clear_refs")

    def __init__(self, device: torch.device) -> None:
        self.device, self.bytes, self.before = device, math.nan, math.nan

    def __enter__(self) -> "PeakMemory":
        if self.device.type == "cuda":
            torch.cuda.reset_peak_memory_stats(self.device)
            self.before = float(torch.cuda.memory_allocated(self.device))
        else:
            try:
                self.RESET.write_text("5")
                self.before = self.resident("VmRSS")
            except OSError:
                self.before = math.nan
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        if self.device.type == "cuda":
            peak = float(torch.cuda.max_memory_allocated(self.device))
        else:
            peak = math.nan if math.isnan(self.before) else self.resident("VmHWM")
        self.bytes = max(peak - self.before, 0.0) if peak == peak else math.nan

    def resident(self, key: str) -> float:
        """A line of the process's status, in bytes."""

        for line in self.STATUS.read_text().splitlines():
            name, _, value = line.partition(":")
            if name == key:
                return 1024.0 * float(value.split()[0])
        return math.nan
