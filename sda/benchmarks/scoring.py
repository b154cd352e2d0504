r"""The scores of one method on one twin, as numbers and small arrays.

The headline score is that of the literature on filters: at each analysis time the root mean square
over the state of (ensemble mean − truth), then the mean over the times after burn-in,

$$ \text{rmse} = \Big\langle \sqrt{\tfrac1n \sum_j (\bar x_j - y_j)^2} \Big\rangle_\text{time} $$

and the spread likewise. The spread–skill ratio is that of `sda.verification`, a ratio of mean
squares. All else is averaged over state and times alike. Means over space are weighted by the areas
of cells, without land. Where variables have different units, errors are those of each variable over
its standard deviation in the truth, over space and the scored times; `…_by_variable` are in its own
units.
"""

import math
from collections.abc import Mapping
from dataclasses import dataclass, field
from functools import cached_property
from typing import Any

import numpy as np
import torch
import xarray as xr
from numpy.typing import NDArray

from dynamics.layout import Layout
from dynamics.random import member_generator

from ..observation.sequence import ObservedTime, sequence
from ..verification import crps, reliability_index
from ..verification.calibration import LEVELS, coverage, pit_histogram
from ..verification.spectra import Fourier, Transform
from ..verification.sphere import WIND, Harmonics, grid_harmonics, kinetic_energy
from .experiment import Experiment, Twin

BINS = 20
# What is sorted or transformed: enough for the statistics, whatever the size of the ensemble.
SORTED_MEMBERS, SPECTRAL_MEMBERS, SPECTRAL_TIMES = 256, 8, 32
CASE_TIMES = 200
SCALARS = (
    "rmse", "crps", "spread", "spread_skill", "bias", "misfit", "log_likelihood", "reliability",
)  # fmt: skip
# Scores of each variable by itself, which are `<score>_by_variable`.
BY_VARIABLE = ("rmse", "crps", "spread", "spread_skill")


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

    @property
    def area(self) -> NDArray[np.float64]:
        """The weights of the cells in means over space, which sum to one, `(*space)`."""
        area = self.layout.area
        return area / area.sum()

    @cached_property
    def scale(self) -> NDArray[np.float64]:
        """What the errors of each variable are divided by in scores of all, `(channel)`."""

        layout = self.layout
        if len({layout.units.get(name, "1") for name in layout.variables}) == 1:
            return np.ones(len(layout.variables))
        truth = self.truth[self.scored]
        mean = self.over_space(truth).mean(axis=0)
        apart = truth - mean.reshape(-1, *[1] * (truth.ndim - 2))
        std = np.sqrt(self.over_space(apart**2).mean(axis=0))

        return np.where(std > 0, std, 1.0)

    def over_space(self, values: NDArray) -> NDArray[np.float64]:
        """The means over space of values `(*, *space)`."""

        axes = tuple(range(values.ndim - len(self.layout.dims), values.ndim))
        return np.asarray((self.area * values).sum(axis=axes))

    def weights(self, shape: tuple[int, ...]) -> NDArray[np.float64]:
        """The weights of values `(time, *space)`, with a mean of one in the sea."""
        return np.broadcast_to(self.layout.area, shape)

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
        `coverage`, and `spectrum` where the state is periodic; of each variable `BY_VARIABLE` and
        `coverage_by_variable`. What cannot be known is NaN; so are the scalars if the ensemble is
        NaN anywhere after burn-in.
    """

    x = target.members(posterior)
    mean = ensemble_mean(target, posterior, x)
    errors = target.over_space((mean - target.truth) ** 2)
    error = (errors / target.scale**2).mean(axis=1)
    scores: dict[str, Any] = dict.fromkeys(SCALARS, math.nan)
    scores |= {f"{name}_by_variable": np.full(errors.shape[1], np.nan) for name in BY_VARIABLE}
    scores |= {"rmse_time": np.sqrt(error), "spread_time": np.full(len(x[0]), np.nan)}
    kept = target.scored
    scores["rmse"] = float(np.sqrt(error[kept]).mean())
    scores["rmse_by_variable"] = np.sqrt(errors[kept]).mean(axis=0)
    bias = target.over_space((mean - target.truth)[kept]) / target.scale
    scores["bias"] = float(bias.mean())
    if len(x) > 1:
        variances = target.over_space(np.var(x, axis=0, ddof=1))
        scores["spread_time"] = np.sqrt((variances / target.scale**2).mean(axis=1))
        if np.isfinite(scores["rmse"]):
            scores |= calibration_scores(target, x, variances, errors)
    if np.isfinite(scores["rmse"]):
        scores |= observation_scores(target, x)
        if (found := spectra(target.layout, x[:, kept])) is not None:
            scores["spectrum"] = found

    return scores


def calibration_scores(
    target: Target, x: NDArray, variances: NDArray, errors: NDArray
) -> dict[str, Any]:
    """Spread, CRPS, ranks and coverage after burn-in, given mean squares `(time, channel)`."""

    kept, m = target.scored, len(x)
    chosen = np.unique(np.linspace(0, m - 1, min(m, SORTED_MEMBERS)).round().astype(int))
    ensemble, truth = x[chosen][:, kept], target.truth[kept]
    ranks = truth_ranks(ensemble, truth)
    weights = target.weights(truth[:, 0].shape).ravel()
    counts = [
        np.bincount(ranks[:, i].ravel(), weights=weights, minlength=len(chosen) + 1)
        for i in range(truth.shape[1])
    ]
    histogram = np.sum(counts, axis=0)
    gathered = pit_histogram(histogram, BINS)
    variances, errors = variances[kept], errors[kept]
    scaled = (variances / target.scale**2).mean(axis=1), (errors / target.scale**2).mean(axis=1)
    with np.errstate(divide="ignore", invalid="ignore"):
        ratio = (m + 1) / m * scaled[0].mean() / scaled[1].mean()
        ratios = (m + 1) / m * variances.mean(axis=0) / errors.mean(axis=0)
    each = target.over_space(crps(ensemble, truth)).mean(axis=0)

    return {
        "spread": float(np.sqrt(scaled[0]).mean()),
        "spread_by_variable": np.sqrt(variances).mean(axis=0),
        "spread_skill": float(np.sqrt(ratio)),
        "spread_skill_by_variable": np.sqrt(ratios),
        "crps": float((each / target.scale).mean()),
        "crps_by_variable": each,
        "rank_histogram": gathered,
        "reliability": float(reliability_index(gathered)),
        "coverage": coverage(histogram, LEVELS),
        "coverage_by_variable": coverage(np.stack(counts), LEVELS),
    }


def truth_ranks(ensemble: NDArray, truth: NDArray) -> NDArray[np.int64]:
    """The rank of each true value among the members, ties broken at random."""

    below = (ensemble < truth).sum(axis=0)
    equal = (ensemble == truth).sum(axis=0)
    share = member_generator(0, 0).random(truth.shape)
    return np.asarray(below + np.floor(share * (equal + 1)).astype(np.int64))


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
    """The mean spectrum of states `(member, time, channel, *space)`, summed over channels.

    It is isotropic where dimensions are periodic, and by total wavenumber on the sphere, where that
    of a wind is the spectrum of its kinetic energy. None if nothing is periodic or there is a
    coast.
    """

    transform = transform_of(layout)
    if transform is None or not x.shape[1]:
        return None
    members = np.linspace(0, len(x) - 1, min(len(x), SPECTRAL_MEMBERS)).round().astype(int)
    times = np.linspace(0, x.shape[1] - 1, min(x.shape[1], SPECTRAL_TIMES)).round().astype(int)
    states = x[np.unique(members)][:, np.unique(times)].reshape(-1, *x.shape[2:])
    if isinstance(transform, Harmonics) and set(WIND) <= set(layout.variables):
        u, v = (torch.from_numpy(states[:, layout.variables.index(name)]) for name in WIND)
        return np.asarray(kinetic_energy(transform.harmonics, u, v).mean(0).numpy())
    total = np.zeros(int(transform.k.max()) + 1)
    for channel in np.moveaxis(states, 1, 0):
        waves = transform(channel)
        power = transform.weights * (np.abs(waves) ** 2).mean(axis=0)
        total += transform.norm * np.bincount(transform.k, power, len(total))
    return total


def transform_of(layout: Layout) -> Transform | None:
    """What takes the states of a layout apart into waves; None if nothing does."""

    if layout.mask is not None:
        return None
    grid = layout.to_dataset(np.zeros((1, 1, *layout.shape), dtype=np.float32))
    if (harmonics := grid_harmonics(grid, layout.dims)) is not None:
        return Harmonics(harmonics)
    axes = [i for i, periodic in enumerate(layout.periodic) if periodic]
    period = [layout.period[layout.dims[axis]] for axis in axes]
    shape = [layout.shape[1 + axis] for axis in axes]
    return Fourier(shape, period, axes, layout.area) if axes else None


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
        truth = layout.hide(target.truth[at, 0])
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
        return target.layout.hide(x.mean(axis=0)), target.layout.hide(spread)


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
