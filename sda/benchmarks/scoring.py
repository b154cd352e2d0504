r"""The scores of one method on one twin, as numbers and small arrays.

The headline score is that of the literature on filters: at each analysis time the root mean square
over the state of (ensemble mean − truth), then the mean over the times after burn-in,

$$ \text{rmse} = \Big\langle \sqrt{\tfrac1n \sum_j (\bar x_j - y_j)^2} \Big\rangle_\text{time} $$

and the spread likewise. The spread–skill ratio is that of `sda.verification`, a ratio of mean
squares. All else is averaged over state and times alike.
"""

import math
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import torch
import xarray as xr
from numpy.typing import NDArray

from dynamics.layout import Layout
from dynamics.random import member_generator

from ..observation.sequence import ObservedTime, sequence
from ..verification import crps, reliability_index, spectrum
from ..verification.calibration import LEVELS, coverage, pit_histogram
from .experiment import Experiment, Twin

BINS = 20
# What is sorted or transformed: enough for the statistics, whatever the size of the ensemble.
SORTED_MEMBERS, SPECTRAL_MEMBERS, SPECTRAL_TIMES = 256, 8, 32
CASE_TIMES = 200
SCALARS = (
    "rmse", "crps", "spread", "spread_skill", "bias", "misfit", "log_likelihood", "reliability",
)  # fmt: skip


@dataclass
class Target:
    """What the ensembles of a twin are scored against.

    Attributes:
        twin: The twin.
        layout: The layout of the states.
        time: The times that are scored, before burn-in too.
        scored: Which of them are after burn-in, and not before the first analysis.
        truth: The true states at those times, with shape `(time, channel, *space)`.
        observed: What was seen at each analysis time.
    """

    twin: Twin
    layout: Layout
    time: NDArray[np.float64]
    scored: NDArray[np.bool_]
    truth: NDArray[np.float64]
    observed: list[ObservedTime] = field(repr=False)

    @classmethod
    def of(cls, experiment: Experiment, twin: Twin) -> "Target":
        """What the experiment scores of a twin."""

        layout = experiment.system.layout
        observed = sequence(twin.observations, layout, twin.time, torch.float64)
        steps = [each.index for each in observed]
        if experiment.scored == "all":
            steps = list(range(len(twin.time)))
        time = twin.time[steps]
        truth = layout.to_array(twin.truth)[0, steps].astype(np.float64)
        # Times are sums of many steps: one that is equal to burn-in but for rounding is within it.
        scored = time > experiment.burn_in + 1e-6 * layout.dt
        if experiment.burn_in == 0:
            scored[:] = True
        # A filter has no estimate before its first analysis: no method is scored there.
        scored &= time > twin.time[observed[0].index] - 1e-6 * layout.dt
        return cls(twin, layout, time, scored, truth, observed)

    def members(self, posterior: xr.Dataset) -> NDArray[np.float64]:
        """The ensemble at the scored times, `(member, time, channel, *space)`; NaN where it is not.

        Raises:
            ValueError: If the ensemble has none of the times.
        """

        known = np.asarray(posterior["time"].values, dtype=np.float64)
        nearest = np.abs(known[None] - self.time[:, None]).argmin(axis=1)
        there = np.abs(known[nearest] - self.time) <= 1e-3 * self.layout.dt
        if not there.any():
            raise ValueError(
                f"the ensemble has none of the {len(self.time)} times to score: it is given at "
                f"{len(known)} times from {known[0]:g} to {known[-1]:g}"
            )
        x = self.layout.to_array(posterior.isel(time=nearest[there])).astype(np.float64)
        if there.all():
            return x
        full = np.full((len(x), len(self.time), *x.shape[2:]), np.nan)
        full[:, there] = x
        return full


def ensemble_mean(target: Target, posterior: xr.Dataset, x: NDArray) -> NDArray[np.float64]:
    """The mean at the scored times, `(time, channel, *space)`: a weighted ensemble's own, if given.

    A particle filter's members are drawn from its weighted particles, whose mean is the estimate.
    """

    names = [f"{name}_mean" for name in target.layout.variables]
    if not all(name in posterior.coords for name in names):
        return np.asarray(x.mean(axis=0))
    own = posterior.isel(member=[0]).drop_vars(names).assign(
        {v: posterior[n].expand_dims("member") for v, n in zip(target.layout.variables, names,
                                                                strict=True)}
    )  # fmt: skip
    return target.members(own)[0]


def score(target: Target, posterior: xr.Dataset) -> dict[str, Any]:
    """The scores of an ensemble.

    Arguments:
        target: What it is scored against.
        posterior: The ensemble, `(member, time, *space)`, at the scored times at least. A single
            member is an estimate without uncertainty: it has no spread, CRPS or ranks.

    Returns:
        `SCALARS` as numbers, `rmse_time` and `spread_time` over all times, `rank_histogram`,
        `coverage`, and `spectrum` where the state is periodic. What cannot be known is NaN; so are
        the scalars if the ensemble is NaN anywhere after burn-in.
    """

    x = target.members(posterior)
    mean = ensemble_mean(target, posterior, x)
    axes = tuple(range(1, mean.ndim))
    error = np.mean((mean - target.truth) ** 2, axis=axes)
    scores: dict[str, Any] = dict.fromkeys(SCALARS, math.nan)
    scores |= {"rmse_time": np.sqrt(error), "spread_time": np.full(len(x[0]), np.nan)}
    kept = target.scored
    scores["rmse"] = float(np.sqrt(error[kept]).mean())
    scores["bias"] = float((mean - target.truth)[kept].mean())
    if len(x) > 1:
        variance = np.var(x, axis=0, ddof=1).mean(axis=axes)
        scores["spread_time"] = np.sqrt(variance)
        if np.isfinite(scores["rmse"]):
            scores |= calibration_scores(target, x, variance, error)
    if np.isfinite(scores["rmse"]):
        scores |= observation_scores(target, x)
        if (found := spectra(target.layout, x[:, kept])) is not None:
            scores["spectrum"] = found

    return scores


def calibration_scores(
    target: Target, x: NDArray, variance: NDArray, error: NDArray
) -> dict[str, Any]:
    """Spread, CRPS, ranks and coverage after burn-in."""

    kept, m = target.scored, len(x)
    chosen = np.unique(np.linspace(0, m - 1, min(m, SORTED_MEMBERS)).round().astype(int))
    ensemble, truth = x[chosen][:, kept], target.truth[kept]
    ranks = truth_ranks(ensemble, truth)
    histogram = np.bincount(ranks, minlength=len(chosen) + 1)
    gathered = pit_histogram(histogram, BINS)
    with np.errstate(divide="ignore", invalid="ignore"):
        ratio = (m + 1) / m * variance[kept].mean() / error[kept].mean()

    return {
        "spread": float(np.sqrt(variance[kept]).mean()),
        "spread_skill": float(np.sqrt(ratio)),
        "crps": float(crps(ensemble, truth).mean()),
        "rank_histogram": gathered,
        "reliability": float(reliability_index(gathered)),
        "coverage": coverage(histogram, LEVELS),
    }


def truth_ranks(ensemble: NDArray, truth: NDArray) -> NDArray[np.int64]:
    """The rank of each true value among the members, ties broken at random."""

    below = (ensemble < truth).sum(axis=0)
    equal = (ensemble == truth).sum(axis=0)
    share = member_generator(0, 0).random(truth.shape)
    return (below + np.floor(share * (equal + 1)).astype(np.int64)).ravel()


def observation_scores(target: Target, x: NDArray) -> dict[str, float]:
    r"""How well the members fit the observations after burn-in.

    The misfit is the root mean square of (y − H(x))/std over members and values. The log-likelihood
    is that of the values of an analysis time, log p(y | x), averaged over members and times.
    """

    step = {round(t / target.layout.dt): i for i, t in enumerate(target.time)}
    squares, values, likelihoods = 0.0, 0, []
    for seen in target.observed:
        at = [step.get(seen.index - k, -1) for k in reversed(range(seen.frames))]
        if min(at) < 0 or not target.scored[at[-1]]:
            continue
        with torch.no_grad():
            predicted = seen.H(torch.from_numpy(np.ascontiguousarray(x[:, at])))
        chi = ((seen.y - predicted) / seen.std).square()
        if not torch.isfinite(chi).all():
            continue
        squares, values = squares + chi.sum().item(), values + chi.numel()
        constant = (2 * math.pi * seen.std.square()).log().sum()
        likelihoods.append(-0.5 * (chi.sum(dim=1) + constant).mean().item())
    if not values:
        return {}
    return {
        "misfit": math.sqrt(squares / values),
        "log_likelihood": float(np.mean(likelihoods)),
    }


def spectra(layout: Layout, x: NDArray) -> NDArray[np.float64] | None:
    """The mean isotropic spectrum of states `(member, time, channel, *space)`, summed over
    channels; none if no dimension is periodic."""

    axes = [3 + i for i, periodic in enumerate(layout.periodic) if periodic]
    if not axes or not x.shape[1]:
        return None
    members = np.linspace(0, len(x) - 1, min(len(x), SPECTRAL_MEMBERS)).round().astype(int)
    times = np.linspace(0, x.shape[1] - 1, min(x.shape[1], SPECTRAL_TIMES)).round().astype(int)
    period = [layout.period[layout.dims[axis - 3]] for axis in axes]
    power = spectrum(x[np.unique(members)][:, np.unique(times)], axes, period)
    power = power.sum(axis=2).reshape(-1, *power.shape[3:])
    return np.asarray(power.mean(axis=tuple(range(power.ndim - 1))))


@dataclass
class Case:
    """One case to draw: a map of one time, or a series of states on a line or at a point.

    Attributes:
        dims: The dimensions of the arrays.
        coords: Their coordinates.
        variable: The variable shown.
        truth: The true values.
        observed: What was seen of them; NaN where nothing was.
        time: The time of a map.
    """

    dims: tuple[str, ...]
    coords: Mapping[str, NDArray]
    variable: str
    truth: NDArray[np.float64]
    observed: NDArray[np.float64]
    time: float = math.nan
    at: NDArray[np.int64] = field(default_factory=lambda: np.zeros(0, dtype=np.int64))

    @classmethod
    def of(cls, target: Target, block: int | None = None) -> "Case":
        """The case of a twin: the last map, or the last series, of the first variable.

        Arguments:
            target: The twin.
            block: The side of the cells that one observation covers, for block averages.
        """

        layout, two = target.layout, len(target.layout.dims) >= 2
        at = np.flatnonzero(target.scored)[-1:] if two else np.flatnonzero(target.scored)
        at = at[-CASE_TIMES:]
        truth = target.truth[at, 0]
        observed = np.full(truth.shape, np.nan)
        row = {round(target.time[i] / layout.dt): n for n, i in enumerate(at)}
        for seen in target.observed:
            if seen.index in row:
                place(layout, seen, observed, row[seen.index], block)
        coords = {dim: np.asarray(values) for dim, values in layout.coords.items()}
        if two:
            time = float(target.time[at[0]])
            return cls(layout.dims, coords, layout.variables[0], truth[0], observed[0], time, at)
        coords = {"case_time": target.time[at], **coords}
        dims = ("case_time", *layout.dims)
        return cls(dims, coords, layout.variables[0], truth, observed, at=at)

    def of_ensemble(self, target: Target, posterior: xr.Dataset) -> tuple[NDArray, NDArray]:
        """The mean and spread of an ensemble, with the shape of the truth."""

        x = target.members(posterior)[:, self.at, 0]
        x = x[:, 0] if len(self.dims) == x.ndim - 2 else x
        spread = np.std(x, axis=0, ddof=1) if len(x) > 1 else np.full(x.shape[1:], np.nan)
        return x.mean(axis=0), spread


def place(
    layout: Layout, seen: ObservedTime, states: NDArray, number: int, block: int | None
) -> None:
    """Writes the values of the first variable into the cells of a state where they were seen."""

    columns = seen.columns
    mine = columns["variable"] == layout.variables[0]
    values = seen.y[0].numpy()
    for value in np.flatnonzero(mine):
        index: list[Any] = [[number]]
        for dim in layout.dims:
            grid, at = layout.coords[dim], columns[dim][value]
            if np.isnan(at):
                return
            half = 0.5 * (block or 1) * (grid[1] - grid[0])
            near = np.flatnonzero(np.abs(grid - at) < half * (1 + 1e-6))
            index.append(near if len(near) else [int(np.abs(grid - at).argmin())])
        states[np.ix_(*index)] = values[value]


def truth_spectrum(target: Target) -> NDArray[np.float64] | None:
    """The spectrum of the truth after burn-in."""
    return spectra(target.layout, target.truth[None, target.scored])
