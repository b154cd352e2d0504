"""The scores of values, each on its own, over blocks of frames."""

import numpy as np
import xarray as xr
from numpy.typing import NDArray

from dynamics.random import member_generator

from . import calibration
from .scores import crps, energy_score
from .task import Entry, Task, divide

PIT_BINS = 20


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
