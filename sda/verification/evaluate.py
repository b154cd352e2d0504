r"""All scores of a posterior ensemble in one call, streamed.

A posterior that is larger than memory is never held as a whole. What belongs to a trajectory (NaN,
spectra, misfit, consistency) goes through it in blocks of members, what needs all members of a
value (spread, CRPS, ranks) in blocks of frames.
"""

from collections.abc import Hashable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
import xarray as xr
from numpy.typing import NDArray

from dynamics.layout import Layout
from dynamics.random import member_generator
from dynamics.system import System

from . import calibration, consistency
from .scores import crps, energy_score
from .spectra import spectrum

# Values per sorting, such that its temporaries stay small beside the block that is loaded.
FRAME_VALUES = 2**22
PIT_BINS = 20


def verify(
    posterior: xr.Dataset,
    truth: xr.Dataset,
    observations: Any = None,
    system: System | None = None,
    *,
    variables: Sequence[str] | None = None,
    weights: xr.DataArray | None = None,
    levels: Sequence[float] = calibration.LEVELS,
    ensemble: bool = True,
    stepped: int = 16,
    seed: int = 0,
    memory: int = 2**30,
) -> xr.Dataset:
    r"""Scores a posterior ensemble against the truth.

    `<score>` has the dimensions `(variable, time)`, `<score>_by_variable` is the mean over time and
    space, and `overall_<score>` the mean over variables too. Means are weighted, and root mean
    squares are roots of means. An overall score that has units is there only if all variables have
    the same ones. `_low` and `_high` bound where 90 % of calibrated ensembles are, see
    `sda.verification.calibration`.

    ====================  ==============================================================
    `rmse`                of the ensemble mean
    `bias`                of the ensemble mean
    `spread`              root mean variance
    `spread_skill`        spread over RMSE, times √((M+1)/M): 1 if calibrated
    `crps`, `crps_plain`  fair, and that of the ensemble as it is
    `energy_score`        `(time)`, fair; over all variables and space, if the units are one
    `rank_histogram`      `(variable, rank)`, with `rank_reliability`: 0 if flat
    `pit_histogram`       `(variable, bin)`, the ranks over M, in 20 bins at most
    `coverage`            `(variable, level)`, of central intervals: the level if calibrated
    `spectrum`            `(member, variable, wavenumber)`, `spectrum_truth`, `spectrum_ratio`,
                          over periodic dimensions; `energy_ratio` sums the variables
    `increment_ratio`     `(variable)`, root mean square increment between frames, over the truth's
    `misfit`              `(member)`, root mean square of (y − H(x))/std; `misfit_truth`
    `consistency`         `(variable, time)`, what one step of the system leaves from a frame to the
                          next, in true increments; `consistency_truth`
    `failed`              `(member)`, whether it is left out because a value is NaN or infinite
    ====================  ==============================================================

    Arguments:
        posterior: The ensemble, with dimensions `(member, time, *space)`, larger than memory if
            it must be.
        truth: The truth, without members or with one, on the same grid and on the posterior's times
            at least. Where it is NaN nothing is scored.
        observations: The observations, for `misfit`: `sda.Observations`, or anything that has
            `likelihood(layout, time)`.
        system: The system, for `consistency`.
        variables: The variables to score (default: all of the posterior's).
        weights: The weight of each point in space (default: 1), for instance cos(latitude).
        levels: The levels of central intervals.
        ensemble: Whether to compute the scores that need two members or more.
        stepped: The number of members to step through the system, spread evenly.
        seed: The seed that breaks ties of ranks.
        memory: The bytes of posterior to hold at once. Sorting takes about as much again.

    Returns:
        The scores.

    Raises:
        ValueError: If truth and posterior are on other times or grids, if variables are missing, if
            there is one member only and `ensemble` is true, or if no finite member is left.
    """

    names = variable_names(posterior, truth, variables)
    posterior = posterior[names]
    truth = align(posterior, truth[names])
    if posterior.nbytes <= memory:
        posterior = posterior.compute()

    units = {str(posterior[name].attrs.get("units", "1")) for name in names}
    task = Task(posterior, truth, tuple(names), len(units) == 1, tuple(levels), seed, memory)

    failed = task.failed()
    kept = np.flatnonzero(~failed)
    if len(kept) < (2 if ensemble else 1):
        raise ValueError(
            f"spread, CRPS, ranks and coverage need at least 2 members without NaN, got "
            f"{len(kept)} of {len(failed)}: sample a larger ensemble, or give ensemble=False for "
            f"the scores of a single analysis"
            if len(kept)
            else f"all {len(failed)} members have NaN or infinite values: there is nothing to score"
        )

    scores = xr.Dataset(
        coords={
            "variable": list(names),
            "time": posterior["time"],
            "member": posterior["member"],
        },
        attrs={"members": len(kept), "failed_members": int(failed.sum()), "seed": seed},
    )
    scores["failed"] = ("member", failed)
    scores = scores.assign(marginal_scores(task, kept, ensemble, weights))
    scores = scores.assign(trajectory_scores(task, kept))
    if observations is not None:
        scores = scores.assign(misfit_scores(task, kept, observations))
    if system is not None:
        scores = scores.assign(consistency_scores(task, kept, system, stepped))
    for name in scores.data_vars:
        if name in UNITS and len(units) == 1:
            scores[name].attrs["units"] = next(iter(units))

    return scores


UNITS = tuple(
    name
    for score in ("rmse", "bias", "spread", "crps", "crps_plain", "energy_score")
    for name in (score, f"{score}_by_variable", f"overall_{score}")
)


def variable_names(
    posterior: xr.Dataset, truth: xr.Dataset, variables: Sequence[str] | None
) -> list[str]:
    """The names of the variables to score.

    Raises:
        ValueError: If the posterior has no ensemble, or a variable is missing on one side.
    """

    for dim in ("member", "time"):
        if dim not in posterior.dims:
            raise ValueError(
                f"the posterior must have the dimensions (member, time, *space), got "
                f"{tuple(map(str, posterior.dims))}: {dim!r} is missing"
            )
    names = list(
        variables or (str(n) for n, v in posterior.items() if {"member", "time"} <= {*v.dims})
    )
    for where, dataset in (("posterior", posterior), ("truth", truth)):
        if missing := [name for name in names if name not in dataset]:
            raise ValueError(
                f"the {where} has no variables {missing}, only "
                f"{sorted(map(str, dataset.data_vars))}: name those to score with variables=…"
            )
    if not names:
        raise ValueError("the posterior has no variable with the dimensions (member, time, *space)")

    return names


def align(posterior: xr.Dataset, truth: xr.Dataset) -> xr.Dataset:
    """Selects the posterior's times from the truth and checks its grid.

    Returns:
        The truth without members, in memory.

    Raises:
        ValueError: If the truth has several members, another grid, or lacks a time.
    """

    if truth.sizes.get("member", 1) != 1:
        raise ValueError(
            f"the truth must be one member, got {truth.sizes['member']}: "
            f"select one with truth.isel(member=0)"
        )
    truth = truth.squeeze("member", drop=True) if "member" in truth.dims else truth
    if "time" not in truth.dims:
        raise ValueError("the truth must have the dimension 'time'")

    given, known = posterior["time"].values, truth["time"].values
    if np.issubdtype(given.dtype, np.number) != np.issubdtype(known.dtype, np.number):
        raise ValueError(
            f"posterior and truth must count time alike, got times of type {given.dtype} and "
            f"{known.dtype}: decode both or none (decode_times=…)"
        )
    if np.issubdtype(given.dtype, np.number):
        gap = np.abs(np.subtract.outer(given, known))
        step = np.diff(given).min() if len(given) > 1 else max(1.0, abs(given[0]))
        found = gap.min(axis=1) <= 1e-3 * step
        index = gap.argmin(axis=1)
    else:
        index = np.searchsorted(known, given).clip(max=len(known) - 1)
        found = known[index] == given
    if not found.all():
        raise ValueError(
            f"the truth lacks {(~found).sum()} of the posterior's {len(given)} times, the first at "
            f"{given[~found][0]}: the posterior spans {span(given)}, the truth {span(known)}"
        )
    truth = truth.isel(time=index)

    for name in truth.data_vars:
        dims = {d for d in posterior[name].dims if d != "member"}
        if dims != set(truth[name].dims):
            raise ValueError(
                f"variable {name!r} of the truth must have the dimensions "
                f"{sorted(map(str, dims))}, got {sorted(map(str, truth[name].dims))}"
            )
        for dim in dims - {"time"}:
            a, b = posterior[dim].values, truth[dim].values
            if a.shape != b.shape or not same(a, b):
                raise ValueError(
                    f"posterior and truth must be on the same grid, but {dim!r} is {len(a)} values "
                    f"{span(a)} and {len(b)} values {span(b)}: regrid one of them"
                )

    return truth.compute()


def same(a: NDArray, b: NDArray) -> bool:
    """Whether two coordinates agree."""

    if np.issubdtype(a.dtype, np.number) and np.issubdtype(b.dtype, np.number):
        return np.allclose(a, b, atol=1e-5 * max(float(np.ptp(a)), 1e-30))

    return bool((a == b).all())


def span(values: NDArray) -> str:
    """A short form of a coordinate for messages."""
    return f"{values[0]} … {values[-1]}" if len(values) else "(none)"


@dataclass
class Task:
    """What is verified: a posterior, its truth, and how to go through them."""

    posterior: xr.Dataset
    truth: xr.Dataset
    names: tuple[str, ...]
    one_unit: bool
    levels: tuple[float, ...]
    seed: int
    memory: int

    def dims(self, name: str) -> tuple[Hashable, ...]:
        """The spatial dimensions of a variable."""
        return tuple(d for d in self.posterior[name].dims if d not in ("member", "time"))

    def truth_array(self, name: str, frames: slice = slice(None)) -> NDArray:
        """The truth of a variable, with shape `(time, *space)`."""
        return self.truth[name].isel(time=frames).transpose("time", *self.dims(name)).values

    def arrays(self, block: xr.Dataset) -> dict[str, NDArray]:
        """The variables of a part of the posterior, each with shape `(member, time, *space)`."""

        block = block.compute()
        return {n: block[n].transpose("member", "time", *self.dims(n)).values for n in self.names}

    def member_blocks(self, members: NDArray) -> Iterator[tuple[NDArray, dict[str, NDArray]]]:
        """Goes through members, all frames of each."""

        count = max(
            1, self.memory * self.posterior.sizes["member"] // max(1, self.posterior.nbytes)
        )
        for start in range(0, len(members), count):
            chosen = members[start : start + count]
            yield chosen, self.arrays(self.posterior.isel(member=chosen))

    def frame_blocks(self, members: NDArray) -> Iterator[tuple[int, dict[str, NDArray]]]:
        """Goes through frames, all members of each, in parts that do not depend on memory."""

        length = self.posterior.sizes["time"]
        values = sum(self.posterior[n].size for n in self.names) // length
        part = max(1, FRAME_VALUES // max(1, values))
        count = self.memory * length // max(1, self.posterior.nbytes)
        count = max(part, count - count % part)
        whole = len(members) == self.posterior.sizes["member"]
        for start in range(0, length, count):
            block = self.posterior.isel(time=slice(start, start + count))
            arrays = self.arrays(block if whole else block.isel(member=members))
            for first in range(start, min(length, start + count), part):
                yield (
                    first,
                    {n: v[:, first - start : first - start + part] for n, v in arrays.items()},
                )

    def failed(self) -> NDArray[np.bool_]:
        """Whether each member has a value that is not finite where the truth is."""

        failed = np.zeros(self.posterior.sizes["member"], dtype=bool)
        seen = {n: np.isfinite(self.truth_array(n)) for n in self.names}
        for members, arrays in self.member_blocks(np.arange(len(failed))):
            for name, x in arrays.items():
                bad = ~np.isfinite(x) & seen[name]
                failed[members] |= bad.any(axis=tuple(range(1, x.ndim)))

        return failed


Entry = tuple[Any, ...]


def marginal_scores(
    task: Task, members: NDArray, ensemble: bool, weights: xr.DataArray | None
) -> dict[str, Entry]:
    """The scores of values, each on its own, and the energy score."""

    count, length, m = len(task.names), task.posterior.sizes["time"], len(members)
    names = ("mass", "mse", "bias", "variance", "crps", "crps_plain")
    sums = {name: np.zeros((count, length)) for name in names}
    counts = np.zeros((count, m + 1, m + 1))
    moments = np.zeros((count, m + 1))
    energy = np.full(length, np.nan)

    for first, arrays in task.frame_blocks(members):
        frames = slice(first, first + next(iter(arrays.values())).shape[1])
        for i, name in enumerate(task.names):
            x, y = arrays[name], task.truth_array(name, frames)
            seen = np.isfinite(y)
            w = seen * spatial_weights(task, name, weights)
            x, y = np.where(seen, x, 0), np.where(seen, y, 0)
            mean = x.mean(axis=0, dtype=np.float64)
            add = {"mass": np.ones_like(mean), "mse": (mean - y) ** 2, "bias": mean - y}
            if ensemble:
                pooled = (m * mean + y) / (m + 1)
                moments[i] += [np.sum(w * (v - pooled) ** 2) for v in (y, *x)]
                generator = member_generator(task.seed, 0, i, first)
                counts[i] += calibration.rank_counts(x, np.where(seen, y, np.nan), generator, w)
                add["variance"] = np.var(x, axis=0, ddof=1, dtype=np.float64)
                ordered = np.sort(x, axis=0)
                add["crps"] = crps(ordered, y, presorted=True)
                add["crps_plain"] = crps(ordered, y, fair=False, presorted=True)
            for key, value in add.items():
                sums[key][i, frames] = np.sum((w * value).reshape(len(value), -1), axis=1)
        if ensemble and task.one_unit:
            for j in range(frames.stop - frames.start):
                vectors = [arrays[n][:, j].reshape(m, -1) for n in task.names]
                target = [task.truth_array(n, frames)[j].ravel() for n in task.names]
                energy[first + j] = masked_energy(np.hstack(vectors), np.concatenate(target))

    return assemble_marginal(task, sums, counts, moments, energy, m, ensemble)


def spatial_weights(task: Task, name: str, weights: xr.DataArray | None) -> NDArray:
    """The weights of a variable's points, with a shape that broadcasts to `(time, *space)`.

    Raises:
        ValueError: If the weights have other dimensions, or are negative or NaN.
    """

    dims = task.dims(name)
    if weights is None:
        return np.ones(())
    sizes = {d: task.posterior.sizes[d] for d in dims}
    if any(sizes.get(d) != n for d, n in weights.sizes.items()):
        raise ValueError(f"weights must have dimensions among {sizes}, got {dict(weights.sizes)}")
    w = weights.expand_dims([d for d in dims if d not in weights.dims]).transpose(*dims).values
    if not (w >= 0).all():
        raise ValueError("weights must be non-negative numbers, got negative ones or NaN")

    return w


def masked_energy(x: NDArray, y: NDArray) -> float:
    """The energy score where the truth is known."""

    seen = np.isfinite(y)

    return energy_score(x[:, seen], y[seen]) if seen.any() else np.nan


def assemble_marginal(
    task: Task,
    sums: dict[str, NDArray],
    counts: NDArray,
    moments: NDArray,
    energy: NDArray,
    m: int,
    ensemble: bool,
) -> dict[str, Entry]:
    """Turns sums over space into scores over time, by variable, and overall."""

    by_time = {k: divide(v, sums["mass"]) for k, v in sums.items()}
    by_variable = {k: divide(v.sum(axis=1), sums["mass"].sum(axis=1)) for k, v in sums.items()}
    overall = {k: divide(v.sum(), sums["mass"].sum()) for k, v in sums.items()}

    scores: dict[str, Entry] = {}
    for dims, pattern, means in (
        (("variable", "time"), "{}", by_time),
        (("variable",), "{}_by_variable", by_variable),
        ((), "overall_{}", overall),
    ):
        if dims or task.one_unit:
            scores[pattern.format("rmse")] = (dims, np.sqrt(means["mse"]))
            scores[pattern.format("bias")] = (dims, means["bias"])
            if ensemble:
                scores[pattern.format("spread")] = (dims, np.sqrt(means["variance"]))
                scores[pattern.format("crps")] = (dims, means["crps"])
                scores[pattern.format("crps_plain")] = (dims, means["crps_plain"])
    if not ensemble:
        return scores
    ratio = divide((m + 1) / m * by_time["variance"], by_time["mse"])
    scores["spread_skill"] = (("variable", "time"), np.sqrt(ratio))

    bins = min(m + 1, PIT_BINS)
    # Each variable has the same say, whatever its units.
    relative = divide(moments, moments.sum(axis=1, keepdims=True))
    for dims, prefix, suffix, c, f in (
        (("variable",), "", "_by_variable", np.moveaxis(moments, 1, 0), np.moveaxis(counts, 1, 0)),
        ((), "overall_", "", moments.sum(0) if task.one_unit else relative.sum(0), counts.sum(0)),
    ):
        ratios = np.moveaxis(calibration.spread_skill_replicas(np.moveaxis(c, 0, -1)), -1, 0)
        reliability = calibration.reliability_index(f)
        for name, replicas, extra in (
            (f"{prefix}spread_skill{suffix}", ratios, None),
            (f"{prefix}rank_reliability{suffix}", reliability, None),
            (f"{prefix}rank_histogram", calibration.frequencies(f), "rank"),
            (f"{prefix}pit_histogram", calibration.pit_histogram(f, bins), "bin"),
            (f"{prefix}coverage", calibration.coverage(f, task.levels), "level"),
        ):
            low, high = calibration.band(replicas)
            axes = (*dims, extra) if extra else dims
            scores[name] = (axes, replicas[0])
            scores[f"{name}_low"], scores[f"{name}_high"] = (axes, low), (axes, high)
    scores["level"] = ("level", np.asarray(task.levels))
    scores["rank"] = ("rank", np.arange(m + 1))
    scores["bin"] = ("bin", (np.arange(bins) + 0.5) / bins)
    if task.one_unit:
        scores["energy_score"] = ("time", energy)
        scores["overall_energy_score"] = ((), np.mean(energy[np.isfinite(energy)]))

    return scores


def divide(a: NDArray, b: NDArray) -> NDArray:
    """Divides, and gives NaN where there is nothing to divide by."""
    return np.asarray(a) / np.where(np.asarray(b) > 0, b, np.nan)


def trajectory_scores(task: Task, members: NDArray) -> dict[str, Entry]:
    """Increments, and spectra over the periodic dimensions if all variables share them."""

    count, total = len(task.names), task.posterior.sizes["member"]
    truth = {n: task.truth_array(n)[None] for n in task.names}
    scores: dict[str, Entry] = {}

    axes, period = periodic_axes(task)
    if axes:
        reference = np.stack([mean_spectrum(truth[n], axes, period)[0] for n in task.names])
        spectra = np.full((total, *reference.shape), np.nan)
    increment = np.full((total, count), np.nan)
    for chosen, arrays in task.member_blocks(members):
        for i, name in enumerate(task.names):
            increment[chosen, i] = mean_increment(arrays[name])
            if axes:
                spectra[chosen, i] = mean_spectrum(arrays[name], axes, period)

    true_increment = np.concatenate([mean_increment(truth[n]) for n in task.names])
    ratio = divide(increment[members].mean(axis=0), true_increment)
    scores["increment_ratio"] = ("variable", np.sqrt(ratio))
    if axes:
        mean = spectra[members].mean(axis=0)
        shape = [task.posterior[task.names[0]].shape[a] for a in axes]
        complete = min(n * max(period) / p for n, p in zip(shape, period, strict=True)) / 2
        attrs = {"long_name": "isotropic wavenumber", "complete_up_to": int(complete)}
        scores["wavenumber"] = ("wavenumber", np.arange(reference.shape[-1]), attrs)
        scores["spectrum"] = (("member", "variable", "wavenumber"), spectra)
        scores["spectrum_truth"] = (("variable", "wavenumber"), reference)
        scores["spectrum_ratio"] = (("variable", "wavenumber"), divide(mean, reference))
        if task.one_unit:
            scores["energy_ratio"] = ("wavenumber", divide(mean.sum(0), reference.sum(0)))

    return scores


def mean_increment(x: NDArray) -> NDArray:
    """The mean square increment of each member of `(member, time, *space)`; NaN for one frame."""

    if x.shape[1] < 2:
        return np.full(len(x), np.nan)

    squares = np.diff(x, axis=1) ** 2

    return np.asarray(np.nanmean(squares, axis=tuple(range(1, x.ndim)), dtype=np.float64))


def periodic_axes(task: Task) -> tuple[list[int], list[float]]:
    """The axes of `(member, time, *space)` that are periodic, and their periods."""

    dims = task.dims(task.names[0])
    if any(task.dims(n) != dims for n in task.names):
        return [], []
    periods: dict[int, float] = {}
    for axis, dim in enumerate(dims):
        for dataset in (task.posterior, task.truth):
            if "period" in dataset[dim].attrs:
                periods[2 + axis] = float(dataset[dim].attrs["period"])

    return list(periods), list(periods.values())


def mean_spectrum(x: NDArray, axes: Sequence[int], period: Sequence[float]) -> NDArray:
    """The spectrum of each member of `(member, time, *space)`, averaged over all else."""

    rows = []
    for member in x:
        spectra = spectrum(member, [axis - 1 for axis in axes], period)
        rows.append(spectra.reshape(-1, spectra.shape[-1]).mean(axis=0))

    return np.stack(rows)


def stacked(task: Task, arrays: Mapping[str, NDArray]) -> NDArray:
    """Stacks variables `(member, time, *space)` to `(member, time, channel, *space)`."""
    return np.stack([arrays[n] for n in task.names], axis=2)


def misfit_scores(task: Task, members: NDArray, observations: Any) -> dict[str, Entry]:
    """How well the members fit the observations."""

    layout = Layout.from_dataset(task.posterior, task.names)
    likelihood = observations.likelihood(layout, task.posterior["time"].values)
    misfits = np.full(task.posterior.sizes["member"], np.nan)
    for chosen, arrays in task.member_blocks(members):
        x = torch.as_tensor(stacked(task, arrays)).to(likelihood.y.dtype)
        misfits[chosen] = consistency.misfit(likelihood, x)
    x = torch.as_tensor(stacked(task, {n: task.truth_array(n)[None] for n in task.names}))
    of_truth = consistency.misfit(likelihood, x.to(likelihood.y.dtype))[0]

    return {
        "misfit": ("member", misfits),
        "misfit_truth": ((), of_truth),
        "overall_misfit": ((), np.sqrt(np.mean(misfits[members] ** 2))),
    }


def consistency_scores(
    task: Task, members: NDArray, system: System, stepped: int
) -> dict[str, Entry]:
    """How well the members obey the system.

    Raises:
        ValueError: If the system's states are others than the posterior's, or fewer than one member
            is to be stepped.
    """

    layout, time = system.layout, task.posterior["time"].values
    layout.check(task.posterior)
    if set(layout.variables) != set(task.names):
        raise ValueError(
            f"to step the system all its variables {list(layout.variables)} must be scored, "
            f"got {list(task.names)}"
        )
    if stepped < 1:
        raise ValueError(f"stepped must be at least 1 member, got {stepped}")
    if len(time) < 2 or not np.allclose(np.diff(time), layout.dt, rtol=1e-3):
        raise ValueError(
            f"to step the system the posterior's times must be {layout.dt} apart, as its states "
            f"are, got {len(time)} times {span(time)}"
        )
    order = [task.names.index(n) for n in layout.variables]
    back = np.argsort(order)

    def residuals(x: NDArray) -> NDArray:
        return consistency.residuals(system, x[:, :, order])[..., back]

    truth = stacked(task, {n: task.truth_array(n)[None] for n in task.names})
    scale = consistency.increments(truth)[0].mean(axis=0)
    chosen = members[np.linspace(0, len(members) - 1, min(stepped, len(members))).astype(int)]
    squares = np.concatenate(
        [residuals(stacked(task, arrays)) for _, arrays in task.member_blocks(np.unique(chosen))]
    ).mean(axis=0)
    of_truth = residuals(truth)[0]

    def overall(values: NDArray) -> NDArray:
        mean = values.mean(axis=0)
        return np.sqrt(mean.sum() / scale.sum() if task.one_unit else np.mean(mean / scale))

    last = np.full((len(task.names), 1), np.nan)

    return {
        "consistency": (
            ("variable", "time"),
            np.concatenate([np.sqrt(squares / scale).T, last], axis=1),
        ),
        "overall_consistency": ((), overall(squares)),
        "consistency_truth": ((), overall(of_truth)),
    }


def summary(scores: xr.Dataset) -> str:
    """A table of the main scores for a terminal.

    Arguments:
        scores: What `verify` returns.
    """

    names = [str(n) for n in scores["variable"].values]
    rows: list[tuple[str, list[str], str]] = []

    def row(label: str, key: str, target: str = "") -> None:
        if f"{key}_by_variable" in scores:
            cells = [f"{v:.4g}" for v in scores[f"{key}_by_variable"].values]
            cells.append(
                f"{scores[f'overall_{key}'].item():.4g}" if f"overall_{key}" in scores else "–"
            )
            rows.append((label, cells, target))

    def whole(label: str, key: str, target: str = "") -> None:
        if key in scores:
            rows.append((label, [""] * len(names) + [f"{scores[key].item():.4g}"], target))

    def calibrated(key: str) -> str:
        if f"{key}_low" not in scores:
            return ""
        return f"calibrated: {scores[f'{key}_low'].item():.3g} … {scores[f'{key}_high'].item():.3g}"

    row("RMSE of the mean", "rmse")
    row("bias", "bias")
    row("spread", "spread")
    row("spread–skill", "spread_skill", calibrated("overall_spread_skill"))
    row("CRPS (fair)", "crps")
    row("rank reliability", "rank_reliability", calibrated("overall_rank_reliability"))
    if "coverage" in scores:
        level = float(scores["level"][np.abs(scores["level"].values - 0.9).argmin()])
        at = scores.sel(level=level)
        cells = [f"{v:.3f}" for v in at["coverage"].values]
        rows.append(
            (
                f"coverage of {100 * level:.0f} %",
                [*cells, f"{at['overall_coverage'].item():.3f}"],
                f"calibrated: {at['overall_coverage_low']:.3f} … {at['overall_coverage_high']:.3f}",
            )
        )
    whole("energy score (fair)", "overall_energy_score")
    if "misfit_truth" in scores:
        whole(
            "misfit to observations",
            "overall_misfit",
            f"truth: {scores['misfit_truth'].item():.3g}",
        )
    if "consistency_truth" in scores:
        target = f"truth: {scores['consistency_truth'].item():.3g}"
        whole("consistency, increments", "overall_consistency", target)
    increment = [f"{v:.3g}" for v in scores["increment_ratio"].values]
    rows.append(("increments over truth's", [*increment, ""], ""))

    head = ("", [*names, "all"], "")
    first = max(len(label) for label, _, _ in rows)
    widths = [max(len(cells[i]) for _, cells, _ in [head, *rows]) for i in range(len(names) + 1)]
    lines = [
        "  ".join(
            [label.ljust(first), *(c.rjust(w) for c, w in zip(cells, widths, strict=True)), target]
        ).rstrip()
        for label, cells, target in [head, *rows]
    ]
    left_out = scores.attrs["failed_members"]
    lines.append(
        f"{scores.attrs['members']} member"
        + "s" * (scores.attrs["members"] > 1)
        + (f" ({left_out} more failed and are left out)" if left_out else "")
        + f", {scores.sizes['time']} times"
    )

    return "\n".join(lines)
