r"""Blocks of time: how a long trajectory is taken apart, and what belongs to each part.

A block is a range of states, its *core*, and a wider range around it, its core and two *halos*.
What is computed on the wider range is kept on the core. A window network sees no further than a
window; the Gaussian part and the gain of the observations reach as far as the climatology
correlates,

.. math:: C(s) = (\Sigma^{-1} + I / s^2)^{-1},

and a state's estimate from a trajectory that ends `h` states further on differs from the one from a
trajectory without end by a mean square of exactly `C_h(s) - C_∞(s)`: estimates from nested data
differ by as much as their error variances do. The halo is the smallest `h` for which

.. math:: \max_s \sqrt{\mathrm{tr}(C_h(s) - C_\infty(s)) / n} \, / \, s \leq \mathrm{tolerance}:

the shift of the estimate in units of the noise that the trajectory has at the same level.

The climatology's continuation is a Markov chain of half windows: blocks begin at multiples of it,
where the covariance of the wider range is exactly the part of the whole trajectory's.
"""

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from torch import Tensor

from dynamics.random import member_generator

from .covariance import Covariance, DenseCovariance, SpectralCovariance
from .covariance_eof import EofCovariance
from .observation.domain import TIME_TOLERANCE, Points
from .observation.observations import Observations, ObservationSet

if TYPE_CHECKING:
    from .prior import Prior

# The shift of an estimate that a halo may leave out, in units of the noise of its level.
TOLERANCE = 3e-3
# The levels at which halos are measured: correlations are longest where noise is largest.
PROBED = (0.05, 0.1, 0.3, 1.0, 3.0, 10.0, 30.0, 100.0)
# The trajectories that they are measured on: the fewest blocks' units, and the most values of one
# dense matrix, or of each wavenumber's.
FEWEST, DENSE_MOST, SPECTRAL_MOST = 8, 2048, 1024
# The values that one generator draws: the numbers of a member at a time are found without those
# before it.
CHUNK = 1024


@dataclass(frozen=True)
class Part:
    """One block: the states `start` to `stop`, seen within `low` to `high` (all exclusive ends)."""

    start: int
    stop: int
    low: int
    high: int

    @property
    def core(self) -> slice:
        """The core within the wider range."""
        return slice(self.start - self.low, self.stop - self.low)


@dataclass(frozen=True)
class Blocks:
    """How a trajectory is taken apart.

    Arguments:
        length: The number of states of the trajectory.
        core: The states of a block.
        halo: The states that a block sees on either side of its core, at least.
        unit: What all blocks begin at a multiple of.
    """

    length: int
    core: int
    halo: int
    unit: int

    @property
    def extent(self) -> int:
        """The states that a block sees."""
        return min(self.length, self.core + 2 * self.halo)

    @property
    def parts(self) -> list[Part]:
        """The blocks. All see a range of one length, but for the last, which may see a bit more."""

        starts = list(range(0, self.length, self.core))
        if len(starts) > 1 and self.length - starts[-1] < self.core // 2:
            starts.pop()
        found = []
        for start, stop in zip(starts, [*starts[1:], self.length], strict=True):
            last = max(self.length - self.extent, 0) // self.unit * self.unit
            low = min(max(start - self.halo, 0), last)
            high = self.length if low == last else low + self.extent
            found.append(Part(start, stop, low, max(high, min(stop + self.halo, self.length))))

        return found

    def narrow(self, part: Part, reach: int, stride: int, window: int) -> Part:
        """The block with smaller halos of `reach` states, from and to where windows begin and end.

        Arguments:
            part: The block.
            reach: The states that must be seen on either side.
            stride: The distance between windows.
            window: The states of a window.
        """

        low = max(part.start - reach, 0) // stride * stride
        high = low + window + stride * math.ceil(max(part.stop + reach - low - window, 0) / stride)
        high = min(high, self.length)
        if high - low < window:
            low = max(high - window, 0) // stride * stride

        return Part(part.start, part.stop, low, high)


def unit_of(prior: "Prior") -> int:
    """What blocks begin at a multiple of: the half windows of climatology and network."""

    stride = max(1, prior.window // 2)

    return math.lcm(max(1, prior.climatology.window // 2), stride)


def halo_of(prior: "Prior", tolerance: float = TOLERANCE) -> int:
    """The halo beyond which states change an estimate by less than a tolerance, see the module.

    Arguments:
        prior: The prior.
        tolerance: The root mean square shift allowed, in units of the noise.

    Raises:
        ValueError: If the climatology has correlations over more than can be measured.
    """

    unit = unit_of(prior)
    least = unit * math.ceil(prior.window / unit)
    waves, each = prior.climatology.matrices
    most = (SPECTRAL_MOST if waves > 1 else DENSE_MOST) // max(each, 1)
    count = FEWEST
    while count * unit <= max(most, FEWEST * unit):
        length = count * unit
        if length > prior.climatology.window:
            shift = shifts(prior.climatology.covariance(length, torch.float64), unit)
            prior.climatology.forget(length, torch.float64)
            # The middle stands for a trajectory without end as long as it is as far again.
            for k in range(1, count // 4 + 1):
                if shift[k] <= tolerance:
                    return max(least, k * unit)
        count *= 2

    raise ValueError(
        f"the climatology of prior {prior.name!r} correlates states over more than "
        f"{count * unit // 8} steps: its trajectories cannot be sampled in blocks of time. Raise "
        f"memory so that the whole trajectory fits"
    )


def shifts(covariance: Covariance, unit: int) -> list[float]:
    """The shift of the estimate at each distance from an end, in units of the noise.

    Arguments:
        covariance: The covariance of a trajectory.
        unit: The distances are multiples of it.

    Returns:
        The largest of all noise levels, for the distances `0, unit, 2 unit, …` up to the middle.
    """

    profiles = torch.stack([error_variance(covariance, s) / s**2 for s in PROBED])
    length = covariance.shape[0]
    middle = length // 2 // unit * unit
    beyond = profiles[:, middle : middle + unit]
    # Like is compared with like: the continuation repeats itself every `unit` states.
    found = []
    for h in range(0, middle, unit):
        ends = (profiles[:, h : h + unit], profiles[:, length - h - unit : length - h])
        worst = max(float((end - beyond).max()) for end in ends)
        found.append(math.sqrt(max(worst, 0.0)))

    return found


def error_variance(covariance: Covariance, s: float) -> Tensor:
    """The mean over the values of each state of the diagonal of `(Σ⁻¹ + I / s²)⁻¹`, `(time)`."""

    length, values = covariance.shape[0], math.prod(covariance.shape[1:])
    if isinstance(covariance, SpectralCovariance):
        e = covariance.table.double()
        power = covariance.basis.abs().double().square().unflatten(1, (length, -1)).sum(2)
        gain = e * s**2 / (e + s**2) * covariance.scale.double().square()[:, None]
        return torch.einsum("ktn,kn->t", power, gain) / values
    if isinstance(covariance, DenseCovariance):
        e = covariance.eigenvalues.double()
        power = covariance.basis.double().square().unflatten(0, (length, -1)).sum(1)
        return power @ (e * s**2 / (e + s**2)) / values

    if isinstance(covariance, EofCovariance):
        return covariance.variance(lambda e: e * s**2 / (e + s**2))

    raise ValueError("a low rank climatology has no longer trajectories, and no halos")


class Portions:
    """The observations of each block.

    Arguments:
        observations: All observations.
        time: The times of the whole trajectory.
        dt: The time step.
    """

    def __init__(self, observations: Observations, time: np.ndarray, dt: float) -> None:
        self.time, self.slack = time, TIME_TOLERANCE * dt
        self.sets = observations.sets
        self.times: list[np.ndarray] = []
        self.first = np.cumsum([0, *map(len, self.sets)])
        for each in self.sets:
            named = [times for times in each.operator.times() if len(times)]
            rows = np.asarray(each.domain.rows()["time"], dtype=np.float64)
            whole = bool(np.isnan(rows).any()) and max(map(len, named)) > 1
            try:
                each.operator.during(-np.inf, np.inf)
            except ValueError:
                whole = True
            # Values of several times at once are seen together or not at all.
            self.times.append(
                np.empty(0) if whole else np.where(np.isnan(rows), named[-1][-1], rows)
            )

    def check(self, parts: Sequence[Part]) -> None:
        """Raises a `ValueError` if values of several times at once reach beyond a block."""

        for each, times in zip(self.sets, self.times, strict=True):
            if len(times):
                continue
            first, last = span(each)
            for part in parts:
                edges = self.time[part.start], self.time[part.stop - 1]
                touched = first <= edges[1] + self.slack and last >= edges[0] - self.slack
                if touched and not self._inside(first, last, part):
                    raise ValueError(
                        f"{each.operator!r} needs the states at times {first:g} to {last:g} at "
                        f"once, more than a block of {part.high - part.low} states: give sets of "
                        f"shorter spans that add up (a + b), or raise memory"
                    )

    def of(self, part: Part) -> tuple[Observations, np.ndarray] | None:
        """The observations within the wider range of a block, and their numbers among all.

        Returns:
            None where there is none.
        """

        low, high = self.time[part.low] - self.slack, self.time[part.high - 1] + self.slack
        found, numbers = [], []
        for each, times, first in zip(self.sets, self.times, self.first, strict=False):
            count = len(each)
            if not len(times):
                if self._inside(*span(each), part):
                    found.append(each)
                    numbers.append(first + np.arange(count))
                continue
            mine = (times > low) & (times <= high)
            seen = each.seen.ravel()
            if not (mine & seen).any():
                continue
            if mine.all():
                found.append(each)
                numbers.append(first + np.arange(count))
                continue
            columns = {name: column[mine] for name, column in each.domain.rows().items()}
            found.append(
                ObservationSet(
                    each.operator.during(low, high),
                    Points(columns),
                    each.y.ravel()[mine],
                    each.std.ravel()[mine],
                    each.errors,
                )
            )
            numbers.append(first + np.flatnonzero(mine[seen]))

        return (Observations(found), np.concatenate(numbers)) if found else None

    def _inside(self, first: float, last: float, part: Part) -> bool:
        low, high = self.time[part.low] - self.slack, self.time[part.high - 1] + self.slack
        return first >= low and last <= high


def span(each: ObservationSet) -> tuple[float, float]:
    """The first and the last time that a set needs."""

    times = np.concatenate(each.operator.times())
    return float(times.min()), float(times.max())


class AddressedNoise:
    """Noise that a state or an observation has wherever it is computed.

    A member's numbers at a time, and for an observation, come from generators of their own: a block
    draws for its halos what its neighbours draw for their cores.

    Arguments:
        seed: The seed of the run.
        members: The indices of the members.
        key: Non-negative integers that name the occasion.
        low: The first state of the range.
        state: The shape `(channel, *space)` of a state.
        numbers: The numbers of the observations of the range among all, with shape `(value)`.
    """

    def __init__(
        self,
        seed: int,
        members: Sequence[int],
        key: tuple[int, ...],
        low: int,
        state: tuple[int, ...],
        numbers: np.ndarray | None = None,
        dtype: torch.dtype = torch.float32,
        device: torch.device | str = "cpu",
    ) -> None:
        self.seed, self.members, self.key = seed, list(members), key
        self.low, self.state, self.numbers = low, state, numbers
        self.dtype, self.device = dtype, device
        self.draws = 0

    def __call__(self, shape: tuple[int, ...]) -> Tensor:
        """Draws noise, with shape `(member, *shape)`, of states or of observations.

        Raises:
            ValueError: If the shape is neither `(time, *state)` nor that of the observations.
        """

        self.draws += 1
        draw = np.float64 if self.dtype == torch.float64 else np.float32
        if tuple(shape[1:]) == tuple(self.state) and self.state:
            size, each = math.prod(self.state), max(1, CHUNK // math.prod(self.state))
            values = self._addressed(
                0, np.arange(self.low, self.low + shape[0]), each, size, draw
            ).reshape(len(self.members), *shape)
        elif self.numbers is not None and tuple(shape) == self.numbers.shape:
            values = self._addressed(1, self.numbers, CHUNK, 1, draw)[..., 0]
        else:
            raise ValueError(f"noise of shape {tuple(shape)} belongs to no state or observation")

        return torch.from_numpy(values).to(dtype=self.dtype, device=self.device)

    def _addressed(
        self, kind: int, index: np.ndarray, each: int, size: int, draw: Any
    ) -> np.ndarray:
        """The numbers of items, `size` for each, drawn in chunks of `each` items."""

        out = np.empty((len(self.members), len(index), size), dtype=draw)
        chunk = index // each
        for number in np.unique(chunk).tolist():
            mine = chunk == number
            inside = index[mine] - number * each
            for member, own in zip(self.members, out, strict=True):
                generator = member_generator(
                    self.seed, member, *self.key, self.draws - 1, kind, number
                )
                own[mine] = generator.standard_normal((each, size), dtype=draw)[inside]

        return out
