"""The scores of values, each on its own, in one pass over blocks of values.

The same pass gathers what the joint scores of each time need, see `vectors`.
"""

from collections.abc import Mapping

import numpy as np
import xarray as xr
from numpy.typing import NDArray

from dynamics.random import member_generator

from . import calibration
from .cells import unit_mean
from .scores import crps
from .task import Entry, Part, Task, divide
from .vectors import Vectors

PIT_BINS = 20


def value_scores(
    task: Task, members: NDArray, ensemble: bool, weights: xr.DataArray | None
) -> dict[str, Entry]:
    """The scores of values, each on its own, and the joint scores of each time.

    Raises:
        ValueError: If the weights have other dimensions, or are negative or NaN.
    """

    w = {name: spatial_weights(task, name, weights) for name in task.names}
    sums = Sums(task, len(members), ensemble)
    vectors = Vectors(task, len(members)) if ensemble else None
    for frames, parts in task.parts(members):
        if vectors:
            vectors.start(frames)
        for part in parts:
            weight = part_weights(task, part, w)
            sums.add(frames, part, weight)
            if vectors:
                vectors.add(part, weight)
        if vectors:
            vectors.finish()

    return {**sums.scores(), **(vectors.scores() if vectors else {})}


def part_weights(task: Task, part: Part, weights: Mapping[str, NDArray]) -> NDArray[np.float64]:
    """The weights of a part's values, zero where the truth is unknown, `(time, *space)`."""

    name = task.names[part.variable]
    w = np.broadcast_to(weights[name], task.shape(name))
    if w.ndim:
        w = w[(slice(None),) * part.axis + (part.rows,)]

    return np.isfinite(part.y) * w


class Sums:
    """Weighted sums over space, from which all marginal scores follow.

    Arguments:
        task: What is verified.
        members: The number of members that are scored.
        ensemble: Whether to compute the scores that need two members or more.
    """

    def __init__(self, task: Task, members: int, ensemble: bool) -> None:
        count, m = len(task.names), members
        keys = ["mass", "mse", "bias", "crps_plain", *(["variance", "crps"] if ensemble else [])]
        self.task, self.members, self.ensemble = task, members, ensemble
        self.sums = {key: np.zeros((count, task.length)) for key in keys}
        self.counts = np.zeros((count, m + 1, m + 1))
        self.moments = np.zeros((count, m + 1))

    def add(self, frames: slice, part: Part, w: NDArray) -> None:
        """Adds a part, with the weights of its values."""

        seen, m, i = np.isfinite(part.y), self.members, part.variable
        x, y = np.where(seen, part.x, 0), np.where(seen, part.y, 0)
        mean = x.mean(axis=0, dtype=np.float64)
        ordered = np.sort(x, axis=0)
        add = {"mass": np.ones_like(mean), "mse": (mean - y) ** 2, "bias": mean - y}
        add["crps_plain"] = crps(ordered, y, fair=False, presorted=True)
        if self.ensemble:
            add["variance"] = np.var(x, axis=0, ddof=1, dtype=np.float64)
            add["crps"] = crps(ordered, y, presorted=True)
            # What is before the first frame that counts is scored in time only.
            skip = min(max(0, self.task.first - frames.start), len(y))
            x, y, w_, known = x[:, skip:], y[skip:], w[skip:], seen[skip:]
            pooled = (m * mean[skip:] + y) / (m + 1)
            self.moments[i] += [np.sum(w_ * (v - pooled) ** 2) for v in (y, *x)]
            generator = member_generator(self.task.seed, 0, i, frames.start, part.rows.start or 0)
            if len(y):
                truth = np.where(known, y, np.nan)
                self.counts[i] += calibration.rank_counts(x, truth, generator, w_)
        for key, value in add.items():
            self.sums[key][i, frames] += np.sum((w * value).reshape(len(value), -1), axis=1)

    def scores(self) -> dict[str, Entry]:
        """Turns sums over space into scores over time, by variable, and overall."""

        sums, one_unit = self.sums, self.task.one_unit
        late = {key: v[:, self.task.first :] for key, v in sums.items()}
        mass = sums["mass"]
        together = {k: divide(v.sum(0), mass.sum(0)) for k, v in sums.items()}
        by_variable = {k: divide(v.sum(1), late["mass"].sum(1)) for k, v in late.items()}
        overall = {k: divide(v.sum(), late["mass"].sum()) for k, v in late.items()}
        scores: dict[str, Entry] = {}
        for dims, pattern, means in (
            (("variable", "time"), "{}", {k: divide(v, mass) for k, v in sums.items()}),
            (("variable",), "{}_by_variable", by_variable),
            ((), "overall_{}", overall),
        ):
            if dims or one_unit:
                for key in ("mse", "bias", "variance", "crps", "crps_plain"):
                    if key in means:
                        root = key in ("mse", "variance")
                        name = pattern.format({"mse": "rmse", "variance": "spread"}.get(key, key))
                        scores[name] = (dims, np.sqrt(means[key]) if root else means[key])
        if one_unit:
            for key, name in (("mse", "rmse_time"), ("variance", "spread_time")):
                if key in together:
                    values = np.sqrt(together[key])
                    scores[name] = ("time", values)
                    scores[f"overall_{name}"] = ((), known_mean(values[self.task.first :]))

        return {**scores, **self.calibration_scores()} if self.ensemble else scores

    def calibration_scores(self) -> dict[str, Entry]:
        """Ranks, coverage and spread–skill, with the bands of calibrated ensembles."""

        task, m, counts, moments = self.task, self.members, self.counts, self.moments
        ratio = divide((m + 1) / m * self.sums["variance"], self.sums["mse"])
        scores: dict[str, Entry] = {"spread_skill": (("variable", "time"), np.sqrt(ratio))}
        bins = min(m + 1, PIT_BINS)
        # Each variable has the same say, whatever its units.
        relative = divide(moments, moments.sum(axis=1, keepdims=True))
        total = moments.sum(0) if task.one_unit else relative.sum(0)
        for dims, prefix, suffix, c, f in (
            (("variable",), "", "_by_variable", moments.T, np.moveaxis(counts, 1, 0)),
            ((), "overall_", "", total, counts.sum(0)),
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

        return scores


def known_mean(values: NDArray) -> float:
    """The mean of the values that are known, NaN if none is."""
    values = values[np.isfinite(values)]
    return float(values.mean()) if len(values) else np.nan


def spatial_weights(task: Task, name: str, weights: xr.DataArray | None) -> NDArray:
    """The weights of a variable's points, with mean one and shape `(*space)`, zero on land.

    Raises:
        ValueError: If the weights have other dimensions, or are negative or NaN.
    """

    dims = task.dims(name)
    if weights is None:
        return task.area(name)
    sizes = {d: task.posterior.sizes[d] for d in dims}
    if any(sizes.get(d) != n for d, n in weights.sizes.items()):
        raise ValueError(f"weights must have dimensions among {sizes}, got {dict(weights.sizes)}")
    w = weights.expand_dims([d for d in dims if d not in weights.dims]).transpose(*dims).values
    if not (w >= 0).all():
        raise ValueError("weights must be non-negative numbers, got negative ones or NaN")
    w = np.broadcast_to(w, task.shape(name)).astype(np.float64)
    mask = task.mask(name)

    return unit_mean(w if mask is None else np.where(mask, w, 0.0))
