r"""What all classical methods share: the same arguments in, the same dataset out.

A method gets a system, observations and a first ensemble, and alternates

    x_i = f(x_{i-1}) + η_i        (forecast)
    x_i ↦ analysis given y_i      (every method's own)

Repetitions, with a truth and observed values of their own each, run side by side: ensembles are
`(repetition, member, channel, *space)`, and one batched call advances or analyses them all. The
random numbers of a repetition come from its own seed: it is the same alone or beside others.
"""

import abc
import inspect
import math
import time as clocks
import warnings
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import torch
import xarray as xr
from torch import Tensor

from dynamics.random import member_generator
from dynamics.simulate import compute_device
from dynamics.system import System

from ..observation.observations import Observations
from ..observation.sequence import ObservedTime, sequence
from ..store import PosteriorMemory, PosteriorWriter, check_target
from .initial import Initial, initial_distribution

# An ensemble has lost the truth where squared innovations are this many times their expectation in
# most of this many cycles, or of half of a run that is shorter: one that is a little too narrow, or
# a few bad analyses, are no loss.
LOST, PATIENCE, SHORTEST = 8.0, 20, 3
# Random numbers are drawn this many cycles at a time, as long as they are few.
AHEAD, AHEAD_VALUES = 64, 2**18


class Noise:
    """The random numbers of a run: those of each repetition from generators of its own.

    Arguments:
        seeds: The seed of each repetition.
        dtype: The precision.
        device: The device.
    """

    PURPOSES = {
        "model": 211, "observation": 212, "rotation": 213, "resampling": 214, "jitter": 215,
        "output": 216, "proposal": 217,
    }  # fmt: skip

    def __init__(
        self, seeds: Sequence[int], dtype: torch.dtype, device: torch.device | str
    ) -> None:
        self.seeds, self.dtype, self.device = list(seeds), dtype, device
        self._generators: dict[str, list[np.random.Generator]] = {}
        self._ahead: dict[tuple[str, str], tuple[tuple[int, ...], Tensor, int]] = {}

    def normal(self, purpose: str, shape: tuple[int, ...]) -> Tensor:
        """Standard normal noise of a purpose, with shape `(repetition, *shape)`."""
        return self._next("normal", purpose, shape)

    def uniform(self, purpose: str, shape: tuple[int, ...]) -> Tensor:
        """Uniform noise in [0, 1) of a purpose, with shape `(repetition, *shape)`."""
        return self._next("uniform", purpose, shape)

    def _next(self, kind: str, purpose: str, shape: tuple[int, ...]) -> Tensor:
        # One block for each purpose: one of a new shape takes the place of the old, and looks ahead
        # the further, the longer its shape has lasted.
        key, ahead, used = (kind, purpose), 1, 0
        values: Tensor | None = None
        if key in self._ahead and self._ahead[key][0] == shape:
            _, values, used = self._ahead[key]
            ahead = 2 * len(values)
        if values is None or used == len(values):
            number = min(ahead, AHEAD, max(1, AHEAD_VALUES // max(1, math.prod(shape))))
            draw = np.float64 if self.dtype == torch.float64 else np.float32
            whole = (number, *shape)
            drawn = [
                g.standard_normal(whole, draw) if kind == "normal" else g.random(whole, draw)
                for g in self.generators(purpose)
            ]
            values, used = torch.from_numpy(np.stack(drawn, 1)).to(self.device, self.dtype), 0
        self._ahead[key] = (shape, values, used + 1)

        return values[used]

    def generators(self, purpose: str) -> list[np.random.Generator]:
        """The generator of each repetition for a purpose."""

        if purpose not in self._generators:
            key = self.PURPOSES[purpose]
            self._generators[purpose] = [member_generator(seed, 0, key) for seed in self.seeds]
        return self._generators[purpose]


@dataclass
class Run:
    """One call of a method.

    Attributes:
        system: The system.
        observed: What is observed, one analysis time after the other.
        time: The times of the model's states.
        noise: The random numbers.
        seeds: The seed of each repetition.
        model_steps: Steps of the model that were taken, times members, in each repetition.
        evaluations: Gradients or other costly evaluations, in each repetition.
        memory: What a method keeps from one cycle to the next.
        monitor: Watches the innovations.
        initial: The distribution of the first state, in each repetition.
        tick: Called after each cycle.
    """

    system: System
    observed: list[ObservedTime]
    time: np.ndarray
    noise: Noise
    seeds: list[int]
    monitor: "Monitor"
    tick: Callable[[], None] = lambda: None
    initial: list[Initial] = field(default_factory=list)
    model_steps: float = 0
    evaluations: float = 0
    memory: dict[str, Any] = field(default_factory=dict)

    @property
    def repetitions(self) -> int:
        return len(self.seeds)

    def advance(self, z: Tensor) -> Tensor:
        """One step of model states `(repetition, member, *model)`, with noise if there is any."""

        self.model_steps += z.shape[1]
        flat = z.flatten(0, 1)
        noise = None
        if self.system.stochastic:
            shape = self.system.layout.shape
            noise = self.noise.normal("model", (z.shape[1], *shape)).flatten(0, 1)

        return self.system.advance(flat, noise).unflatten(0, z.shape[:2])

    def project(self, z: Tensor) -> Tensor:
        """Model states to states, both with the leading axes `(repetition, member)`."""
        return self.system.project(z.flatten(0, 1)).unflatten(0, z.shape[:2])

    def insert(self, z: Tensor, background: Tensor, analysis: Tensor) -> Tensor:
        """Model states whose projection changes from `background` to `analysis`.

        What only the model resolves is kept: the increment alone is lifted.
        """

        if z is background:
            return analysis
        lift = self.system.lift
        increment = lift(analysis.flatten(0, 1)) - lift(background.flatten(0, 1))

        return z + increment.unflatten(0, z.shape[:2])


class Monitor:
    """Watches for divergence, by the innovations of each repetition.

    Per value, `d² / (s² + r²)` is 1 on average for a consistent ensemble: the squared innovation of
    the mean over the sum of the ensemble's variance and the observation's. A repetition has
    diverged where a value is not finite, or where the median over `patience` cycles exceeds `LOST`.
    One member has no variance to compare with: it is lost only where values are not finite.

    Arguments:
        repetitions: The number of repetitions.
        cycles: The number of analyses to come, if known: with few of them, half of them are
            patience enough, but never fewer than `SHORTEST`.
    """

    def __init__(self, repetitions: int, cycles: int | None = None) -> None:
        half = PATIENCE if cycles is None else max(SHORTEST, cycles // 2)
        self.patience = min(PATIENCE, half)
        self.recent = torch.zeros(self.patience, repetitions)
        self.chi_square: list[Tensor] = []
        self.times: list[float] = [math.nan] * repetitions
        self.cycles: list[int] = [-1] * repetitions
        self.broken = [False] * repetitions

    def see(self, predicted: Tensor, observed: ObservedTime) -> None:
        """Compares what an ensemble predicts, `(repetition, member, value)`, with what was seen."""

        mean = predicted.mean(1)
        # Many times faster than torch.var_mean over an inner axis.
        variance = (predicted - mean[:, None]).square().sum(1) / max(1, predicted.shape[1] - 1)
        ratio = ((observed.y - mean).square() / (variance + observed.std.square())).mean(1)
        if not self.chi_square:
            self.recent = self.recent.to(ratio)
        self.recent[len(self.chi_square) % self.patience] = ratio
        self.chi_square.append(ratio)
        suspect = ~(ratio < LOST)
        if bool(suspect.any()):
            several = predicted.shape[1] > 1 and len(self.chi_square) >= self.patience
            for r in suspect.nonzero().flatten().tolist():
                broken = not math.isfinite(float(ratio[r]))
                if broken or (several and float(self.recent[:, r].median()) > LOST):
                    self.mark(r, observed, broken)

    def mark(self, repetition: int, observed: ObservedTime, broken: bool) -> None:
        """Records that a repetition has diverged; the first time counts."""

        if math.isnan(self.times[repetition]):
            self.times[repetition] = observed.time
            self.cycles[repetition] = max(0, len(self.chi_square) - 1)
        self.broken[repetition] |= broken

    def message(self, repetition: int) -> str:
        """What happened to a repetition."""

        what = "not finite" if self.broken[repetition] else f"over {LOST:g} times too large"
        return (
            f"diverged in cycle {self.cycles[repetition]}, at time {self.times[repetition]:g}: "
            f"its innovations are {what}"
        )


@dataclass
class Solution:
    """What a method returns to its base.

    Attributes:
        states: Ensembles, with shape `(repetition, member, time, channel, *space)`.
        index: The model's states, by index, that are the times of these.
        extra: Further coordinates along `time`, each with shape `(repetition, time)`.
    """

    states: Tensor
    index: list[int]
    extra: dict[str, Tensor] = field(default_factory=dict)


class Method(abc.ABC):
    """A method of data assimilation that runs the system's own model.

    Arguments:
        system: The system.
        members: The number of members.

    Raises:
        ValueError: If there are fewer members than the method needs.
    """

    fewest = 2

    def __init__(self, system: System, members: int) -> None:
        if not isinstance(members, int) or members < self.fewest:
            raise ValueError(
                f"{type(self).__name__} needs at least {self.fewest} members, got {members!r}"
            )
        self.system, self.members = system, members

    @property
    def name(self) -> str:
        """The name of the method."""
        return type(self).__name__

    def config(self) -> dict[str, Any]:
        """The arguments that make this method again but for the system, as plain JSON types."""

        names = list(inspect.signature(type(self).__init__).parameters)[2:]
        return {name: plain(getattr(self, name)) for name in names}

    @abc.abstractmethod
    def solve(self, z: Tensor, run: Run) -> Solution:
        """Assimilates, from the first model states `(repetition, member, *model)` on."""

    def assimilate(
        self,
        observations: Observations | Sequence[Observations],
        seed: int | Sequence[int] = 0,
        *,
        time: Any = None,
        initial: Any = None,
        out: str | Path | None = None,
        overwrite: bool = False,
        dtype: torch.dtype | str = torch.float32,
        device: torch.device | str = "cpu",
        progress: bool = False,
    ) -> Any:
        """Samples an ensemble given observations.

        Arguments:
            observations: The observations; or those of several repetitions, observed in the same
                way, which run side by side.
            seed: The seed; or that of each repetition. A repetition's result depends on its own.
            time: The times of the model's states, in steps of the system's `dt`. The first ensemble
                stands at the first (default: from the first observation to the last).
            initial: The distribution of the first state: `sda.classical.Gaussian`, states
                `(number, channel, *space)` or a dataset to draw from, `sda.classical.Spinup`, or a
                list with one for each repetition (default: the climatology by spin-up).
            out: A Zarr store to write (default: the result is kept in memory).
            overwrite: Whether a posterior at `out` is replaced.
            dtype: The precision, float32 or float64.
            device: The device.
            progress: Whether a progress bar is shown.

        Returns:
            The analysis ensemble, with dimensions `(member, time, *space)`: at the analysis times
            for a filter, at all times for a smoother. A list of them for several repetitions. The
            attributes `diverged` and `diverged_time` say whether and when it was lost.

        Raises:
            ValueError: If an argument is out of range, or observations do not fit the system, lie
                outside the times, or differ between repetitions.
            FileExistsError: If `out` exists and is not to be overwritten.
        """

        from ..precisions import precision

        several = not isinstance(observations, Observations)
        sets = [observations] if isinstance(observations, Observations) else list(observations)
        given: list[Any] = list(seed) if isinstance(seed, Iterable) else [seed]
        valid = all(isinstance(each, int | np.integer) and each >= 0 for each in given)
        if not sets or len(given) != len(sets) or not valid:
            raise ValueError(
                f"expected one non-negative seed for each of {len(sets)} repetitions, got {given}"
            )
        seeds = [int(each) for each in given]
        if out is not None:
            if several:
                raise ValueError("one store holds one repetition: give out for each by itself")
            check_target(Path(out), overwrite, False)
        dtype, device = precision(dtype), compute_device(device)
        time = model_times(self.system, sets, time)
        observed = sequence(sets, self.system.layout, time, dtype, device)
        starts = initial if isinstance(initial, list | tuple) else [initial] * len(sets)
        if len(starts) != len(sets):
            raise ValueError(f"expected {len(sets)} initial distributions, got {len(starts)}")
        distributions = [initial_distribution(each) for each in starts]

        start = clocks.perf_counter()
        found = self._run(observed, time, distributions, seeds, dtype, device, progress)
        seconds = (clocks.perf_counter() - start) / len(sets)
        results = [
            self._dataset(found, r, observations=each, seed=seeds[r], seconds=seconds, time=time,
                          out=out, overwrite=overwrite)
            for r, each in enumerate(sets)
        ]  # fmt: skip

        return results if several else results[0]

    def _run(
        self,
        observed: list[ObservedTime],
        time: np.ndarray,
        distributions: list[Initial],
        seeds: list[int],
        dtype: torch.dtype,
        device: torch.device,
        progress: bool,
    ) -> list[tuple[Tensor, list[int], dict[str, Tensor], Run, int]]:
        """Runs all repetitions, together if that works: the part of each in the results."""

        from tqdm import tqdm

        z = torch.stack(
            [
                each.draw(self.system, self.draws, seed, dtype, device)
                for each, seed in zip(distributions, seeds, strict=True)
            ]
        )
        with tqdm(total=len(observed), desc=self.name, disable=not progress, unit="cycle") as bar:
            run = Run(
                self.system, observed, time, Noise(seeds, dtype, device), seeds,
                Monitor(len(seeds), len(observed)), bar.update, distributions,
            )  # fmt: skip
            try:
                solution = self.solve(z, run)
            except (torch.linalg.LinAlgError, FloatingPointError):
                # A repetition whose ensemble is no longer finite stops a batched factorisation, and
                # a model that chooses its own time step.
                if len(seeds) == 1:
                    run.monitor.mark(0, observed[max(0, len(run.monitor.chi_square) - 1)], True)
                    # States are real, whatever the model keeps in their place.
                    empty = z.real.new_full(
                        (1, self.members, 1, *self.system.layout.shape), math.nan
                    )
                    return [(empty[0], [observed[-1].index], {}, run, 0)]
                return [
                    self._run(
                        [single(each, r) for each in observed], time, distributions[r : r + 1],
                        seeds[r : r + 1], dtype, device, False,
                    )[0]
                    for r in range(len(seeds))
                ]  # fmt: skip

        return [
            (
                solution.states[r],
                solution.index,
                {name: values[r] for name, values in solution.extra.items()},
                run,
                r,
            )
            for r in range(len(seeds))
        ]

    @property
    def draws(self) -> int:
        """The number of model states that a run starts from."""
        return self.members

    def _dataset(
        self,
        found: list[tuple[Tensor, list[int], dict[str, Tensor], Run, int]],
        repetition: int,
        *,
        observations: Observations,
        seed: int,
        seconds: float,
        time: np.ndarray,
        out: str | Path | None,
        overwrite: bool,
    ) -> xr.Dataset:
        """The dataset of one repetition."""

        states, index, extra, run, r = found[repetition]
        lost = not math.isnan(run.monitor.times[r])
        if lost:
            warnings.warn(f"{self.name} {run.monitor.message(r)}", RuntimeWarning, stacklevel=4)
        settings = {
            "method": self.name,
            "arguments": self.config(),
            "system": {"name": type(self.system).__name__, **self.system.config()},
            "observations": observations.hash(),
            "seed": seed,
        }
        attrs = {
            "title": f"Analysis ensemble of {self.name}",
            "method": self.name,
            "seed": seed,
            "members": len(states),
            "model_steps": float(run.model_steps),
            "evaluations": float(run.evaluations),
            "seconds": seconds,
            "diverged": int(lost),
            "diverged_time": run.monitor.times[r],
        }
        times = np.asarray(time)[index]
        values = states.detach().cpu().numpy()
        arguments = (
            self.system.layout, times, len(values), len(values), settings, attrs, str(values.dtype)
        )  # fmt: skip
        sink: PosteriorMemory | PosteriorWriter
        if out is None:
            sink = PosteriorMemory(*arguments)
        else:
            sink = PosteriorWriter(out, *arguments, overwrite)
        with sink:
            sink.put(0, values)
        dataset = sink.dataset()

        return dataset.assign_coords(
            {name: ("time", each.detach().cpu().numpy()) for name, each in extra.items()}
        )


class Filter(Method):
    """A sequential method: forecast, analysis, forecast, analysis, …

    Its result has the analysis times for times.
    """

    @abc.abstractmethod
    def analyse(
        self, ensemble: Tensor, predicted: Tensor, observed: ObservedTime, run: Run
    ) -> Tensor:
        """The analysis.

        Arguments:
            ensemble: The background, with shape `(repetition, member, channel, *space)`.
            predicted: What it predicts, `H(x)`, with shape `(repetition, member, value)`.
            observed: What was observed.
            run: The run, with its random numbers and memory.

        Returns:
            The analysis ensemble, with the shape of the background.
        """

    def forecast(self, z: Tensor, steps: int, observed: ObservedTime, run: Run) -> Tensor:
        """Advances model states `(repetition, member, *model)` towards the next analysis time."""

        for _ in range(steps):
            z = run.advance(z)
        return z

    def report(self, ensemble: Tensor, run: Run) -> Tensor:
        """The ensemble that stands for an analysis in the results."""
        return ensemble

    @torch.no_grad()
    def solve(self, z: Tensor, run: Run) -> Solution:
        first = z[0, :1]
        resolved = self.system.project(first) is first  # the model's states are the states
        index, states = 0, []
        for observed in run.observed:
            steps, before = observed.index - index, z
            if observed.frames == 2 and steps > 0:
                before = self.forecast(z, steps - 1, observed, run)
                z = self.forecast(before, 1, observed, run)
            else:
                z = self.forecast(z, steps, observed, run)
            index = observed.index
            x = z if resolved else run.project(z)
            if observed.frames == 1:
                seen = x.flatten(0, 1)[:, None]
            else:
                last = before if resolved else run.project(before)
                seen = torch.stack([last.flatten(0, 1), x.flatten(0, 1)], 1)
            predicted = observed.H(seen).unflatten(0, z.shape[:2])
            run.monitor.see(predicted, observed)
            if not all(run.monitor.broken):
                background, x = x, self.analyse(x, predicted, observed, run)
                z = run.insert(z, background, x)
            states.append(self.report(x, run))
            run.tick()

        chi_square = torch.stack(run.monitor.chi_square, 1)

        return Solution(
            torch.stack(states, 2), [each.index for each in run.observed],
            {"innovation_chi_square": chi_square},
        )  # fmt: skip


class Smoother(Method):
    """A method whose analysis of a state uses later observations too.

    Its result has all times of the model's states.
    """


def single(observed: ObservedTime, repetition: int) -> ObservedTime:
    """What one repetition observed."""

    return ObservedTime(
        observed.index, observed.time, observed.y[repetition : repetition + 1], observed.std,
        observed.linear, observed.frames, observed.columns, observed.parts, observed.shape,
    )  # fmt: skip


def model_times(system: System, observations: Sequence[Observations], time: Any) -> np.ndarray:
    """The times of the model's states.

    Raises:
        ValueError: If they are not in steps of the system's `dt`.
    """

    dt = system.layout.dt
    if time is None:
        first = min(each.span[0] for each in observations)
        last = max(each.span[1] for each in observations)
        return system.layout.times(1 + math.ceil((last - first) / dt - 1e-3), start=first)
    time = np.asarray(getattr(time, "values", time), dtype=np.float64)
    if time.ndim != 1 or not len(time) or not np.isfinite(time).all():
        raise ValueError(f"time must be one-dimensional and finite, got shape {time.shape}")
    if len(time) > 1 and not np.allclose(np.diff(time), dt, rtol=1e-3, atol=0):
        raise ValueError(
            f"time must increase in steps of the system's dt={dt:g}, got steps of "
            f"{np.diff(time).min():g} to {np.diff(time).max():g}"
        )
    return time


def plain(value: Any) -> Any:
    """An argument of a method as plain JSON types."""

    if value is None or isinstance(value, bool | int | float | str):
        return value
    if isinstance(value, list | tuple):
        return [plain(each) for each in value]
    if isinstance(value, dict):
        return {str(key): plain(each) for key, each in value.items()}
    return repr(value)
