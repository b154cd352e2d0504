"""Experiments: what is simulated, how it is observed, and which methods are compared, as data.

An experiment is a configuration and nothing else, a file in `configs/experiment` or one of a
user's own: a system and its parameters, the distribution of the first state, when and what is
observed and how precisely, how long, and an entry for each method with its parameters and the score
that was published for it. One *twin* of an experiment is one truth with one set of observations;
repetition r of an experiment with seed s is always the same twin.
"""

import functools
import math
import operator
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
import xarray as xr
from torch import Tensor

from dynamics import LinearGaussian
from dynamics.layout import Layout
from dynamics.random import member_generator, normal
from dynamics.system import System

if TYPE_CHECKING:
    from ..classical.initial import Initial
    from ..observation import Observations

# Streams of seeds: repetitions that are scored never share noise with those of the tuning.
SCORED, TUNED = 0, 1
TRUTH, ERRORS, METHOD, STATES, THINNING = range(5)
SCORED_TIMES = ("analysis", "all")
# Keys that hold mappings, with an example of each.
EXAMPLES = {
    "system": "{name: lorenz63, dt: 0.01}",
    "observing": "{first: 1, every: 5, std: 1.0}",
    "initial": "{mean: truth, std: 1.0}",
    "model": "{reynolds: 700.0}",
    "entries": "{etkf: {inflation: 1.02}}",
    "tuning": "{trials: 20}",
}
# Spun-up trajectories are read off several times, so that many states cost few trajectories.
PER_TRAJECTORY, SPACING = 8, 16


@dataclass
class Twin:
    """One truth and what was seen of it.

    Attributes:
        repetition: The number of the repetition.
        truth: The true trajectory, with the dimensions `(time, *space)`.
        observations: The observations of it.
        time: The times of the model's states.
        seeds: The seeds of the truth, of the errors, of the methods and of spun-up states.
    """

    repetition: int
    truth: xr.Dataset
    observations: "Observations"
    time: np.ndarray
    seeds: dict[str, int]


@dataclass(frozen=True)
class Experiment:
    """An experiment, see `configs/benchmark.yaml` for the keys of its configuration.

    Arguments:
        config: The configuration, as plain types.

    Raises:
        ValueError: If a key is missing, of another kind or out of range.
    """

    config: Mapping[str, Any]

    def __post_init__(self) -> None:
        config = self.config
        check_kinds(config)
        if missing := [key for key in ("system", "observing") if not config.get(key)]:
            raise ValueError(f"an experiment needs the keys {missing}, got {sorted(config)}")
        if self.scored not in SCORED_TIMES:
            raise ValueError(
                f"scored must be one of {', '.join(SCORED_TIMES)}, got {self.scored!r}"
            )
        for key, least in (("cycles", 1), ("length", 1), ("spinup", 0), ("seed", 0)):
            value = config.get(key)
            if value is not None and (not isinstance(value, int) or value < least):
                raise ValueError(f"{key} must be an integer of at least {least}, got {value!r}")
        if config.get("cycles") is None and config.get("length") is None:
            raise ValueError("an experiment needs cycles or length, got neither")
        if config.get("cycles") is not None and config["observing"].get("times") is not None:
            raise ValueError("give length instead of cycles where observing.times names the times")
        if config.get("cycles") is not None and "generator" in config["observing"]:
            raise ValueError("give length instead of cycles with an observing system's generator")
        if not self.burn_in >= 0:
            raise ValueError(f"burn_in must be a time of at least 0, got {self.burn_in!r}")
        if self.burn_in >= self.time[-1]:
            raise ValueError(
                f"burn_in={self.burn_in:g} leaves nothing to score: the last state is at "
                f"{self.time[-1]:g}; give more cycles or a shorter burn_in"
            )

    @property
    def name(self) -> str:
        """The experiment's name."""
        return str(self.config.get("name") or "unnamed")

    @property
    def title(self) -> str:
        """The experiment's title."""
        return str(self.config.get("title") or self.name)

    @property
    def entries(self) -> dict[str, dict[str, Any]]:
        """The methods to compare, by key."""
        return {str(k): dict(v) for k, v in (self.config.get("entries") or {}).items()}

    @property
    def seed(self) -> int:
        """The seed of all repetitions."""
        return int(self.config.get("seed") or 0)

    @property
    def burn_in(self) -> float:
        """The time until which nothing is scored."""
        return float(self.config.get("burn_in") or 0.0)

    @property
    def scored(self) -> str:
        """Whether analysis times or all times of the model are scored."""
        return str(self.config.get("scored") or "analysis")

    @property
    def dtype(self) -> torch.dtype:
        """The precision of the truth and of the methods."""
        from ..assimilation import precision

        return precision(self.config.get("dtype") or "float32")

    @cached_property
    def system(self) -> System:
        """The system that makes the truth."""
        from ..config import build_system

        return build_system(self.config["system"])

    def model(self, changes: Mapping[str, Any] | None = None) -> System:
        """The system as the methods know it.

        Arguments:
            changes: Arguments that differ from the experiment's `model`, for one method.

        Raises:
            ValueError: If its states are others than those of the truth.
        """

        from ..config import build_system

        wrong = {**(self.config.get("model") or {}), **(changes or {})}
        if not wrong:
            return self.system
        model = build_system({**self.config["system"], **wrong})
        if model.layout.shape != self.system.layout.shape or model.layout.dt != self.dt:
            raise ValueError(
                f"the model's states must be those of the truth, of shape "
                f"{self.system.layout.shape} and {self.dt:g} apart, but with {wrong} they are of "
                f"shape {model.layout.shape} and {model.layout.dt:g} apart"
            )
        return model

    @property
    def dt(self) -> float:
        """The time between two states of the model."""
        return self.system.layout.dt

    @cached_property
    def length(self) -> int:
        """The number of states of the model."""

        cycles, observing = self.config.get("cycles"), self.config["observing"]
        if cycles is None:
            return int(self.config["length"])
        return int(observing["first"] + observing["every"] * (cycles - 1) + 1)

    @cached_property
    def time(self) -> np.ndarray:
        """The times of the model's states, the first at zero."""
        return self.system.layout.times(self.length)

    def steps(self) -> list[int]:
        """The states that are observed: every n-th, without gaps, and a share of those.

        Raises:
            ValueError: If none is left.
        """

        observing = self.config["observing"]
        steps = np.arange(observing["first"], self.length, observing["every"])
        for start, stop in observing.get("gaps") or []:
            steps = steps[(self.time[steps] < start) | (self.time[steps] > stop)]
        share = observing.get("share")
        if share is not None:
            # The same times in all repetitions, so that they can run together.
            keep = member_generator(self.seed, 0, THINNING).random(self.length) < share
            steps = steps[keep[steps]]
        if not len(steps):
            raise ValueError(
                f"nothing is observed in {self.length} states: lower observing.first or "
                f"observing.every, or narrow observing.gaps"
            )
        return [int(step) for step in steps]

    def shortened(self, cycles: int) -> "Experiment":
        """The same experiment over about so many observed times after burn-in, at most its own."""

        observing = self.config["observing"]
        if observing.get("times") is None:
            before = math.floor(self.burn_in / self.dt)
            first, every = observing.get("first", 0), observing.get("every", 1)
            length = max(before, first) + cycles * every + 1
        else:
            after = sorted(time for time in observing["times"] if time > self.burn_in)
            if len(after) <= cycles:
                return self
            # The first state that is not before the last time kept, but for rounding.
            length = math.ceil(after[cycles - 1] / self.dt - 1e-6) + 1
        if length >= self.length:
            return self
        last = self.time[length - 1] + 1e-6 * self.dt

        def early(each: Mapping[str, Any]) -> dict[str, Any]:
            times = each.get("times")
            return {**each} if times is None else {**each, "times": [t for t in times if t <= last]}

        more = [early(each) for each in self.config.get("more_observing") or []]
        changes = {
            "observing": early(observing),
            "more_observing": [each for each in more if each.get("times") != []],
            "cycles": None,
            "length": length,
        }
        return Experiment({**self.config, **changes})

    def seeds(self, repetition: int, stream: int = SCORED) -> dict[str, int]:
        """The seeds of a repetition, one for each purpose."""

        def seed(purpose: int) -> int:
            sequence = np.random.SeedSequence(self.seed, spawn_key=(stream, repetition, purpose))
            return int(sequence.generate_state(1)[0])

        purposes = {"truth": TRUTH, "observations": ERRORS, "methods": METHOD, "states": STATES}
        return {name: seed(purpose) for name, purpose in purposes.items()}

    def twin(self, repetition: int, stream: int = SCORED) -> Twin:
        """Makes a truth and observes it.

        Raises:
            ValueError: If the operator does not fit the state.
            FloatingPointError: If the truth diverges.
        """

        return self.twins([repetition], stream)[0]

    def twins(self, repetitions: Sequence[int], stream: int = SCORED) -> list[Twin]:
        """Makes several twins at once, each the same as by itself.

        Raises:
            ValueError: See `twin`.
        """

        seeds = [self.seeds(repetition, stream) for repetition in repetitions]
        truths = self.simulate_truths([each["truth"] for each in seeds])

        return [
            Twin(number, truth, self.observe(truth, each["observations"]), self.time, each)
            for number, truth, each in zip(repetitions, truths, seeds, strict=True)
        ]

    def simulate_truths(self, seeds: Sequence[int]) -> list[xr.Dataset]:
        """The truths of seeds, side by side where they start from a distribution."""

        if not seeds or (self.config.get("initial") or {}).get("mean", "truth") == "truth":
            return [self.spun_up_truth(seed) for seed in seeds]
        layout, (centre, std) = self.system.layout, self.start()

        def drawn(shape: tuple[int, ...], *key: int) -> Tensor:
            return torch.cat([normal(s, [0], shape, TRUTH, *key, dtype=self.dtype) for s in seeds])

        noise = None
        if self.system.stochastic:
            noise = drawn((self.length - 1, *layout.shape), 1)
        with torch.no_grad():
            x = self.system.rollout(centre + std * drawn(layout.shape), self.length, noise)
        if not torch.isfinite(x).all():
            raise FloatingPointError(
                f"the truth of {self.name} diverged: choose a smaller dt, more substeps, or "
                f"another initial.mean"
            )
        dataset = layout.to_dataset(x, self.time)
        return [dataset.isel(member=number, drop=True) for number in range(len(seeds))]

    def spun_up_truth(self, seed: int) -> xr.Dataset:
        """The truth of a seed, from the system's own start and spin-up."""

        spinup = int(self.config.get("spinup") or 0)
        truth = self.system.simulate(1, self.length, spinup, seed, dtype=self.dtype, progress=False)
        return truth.isel(member=0, drop=True).assign_coords(time=("time", self.time))

    def observe(self, truth: xr.Dataset, seed: int) -> "Observations":
        """Observes a truth."""

        from ..config import build_observations

        def made(number: int, config: Mapping[str, Any]) -> "Observations":
            return build_observations(config, truth, seed + number, self.system.layout)

        first, *others = (made(number, each) for number, each in enumerate(self.observed()))
        return functools.reduce(operator.add, others, first)

    def observed(self) -> list[dict[str, Any]]:
        """What is observed: `observing`, and each of `more_observing` that changes some of it.

        One that names a generator of its own shares nothing with the others.
        """

        common = dict(self.config["observing"])
        thinned = bool(common.get("gaps")) or common.get("share") is not None
        if common.get("times") is None and thinned:
            common["steps"] = self.steps()
        more: Sequence[Mapping[str, Any]] = self.config.get("more_observing") or []
        return [common, *(({} if "generator" in each else common) | {**each} for each in more)]

    def start(self) -> tuple[Tensor, Tensor]:
        """The mean and standard deviation of the first state, with shape `(channel, *space)`.

        Raises:
            ValueError: If they do not fit the state.
        """

        initial = self.config.get("initial") or {}
        if ("std" in initial) == ("variance" in initial):
            raise ValueError(
                f"initial needs one of std and variance, got {sorted(initial)}: leave initial out "
                f"to start from spun-up states"
            )
        std = field("initial.std", initial.get("std", initial.get("variance")), self.system.layout)
        if (std < 0).any():
            raise ValueError("initial.std and initial.variance must not be negative")
        std = std.sqrt() if "variance" in initial else std
        mean = initial.get("mean", "truth")
        centre = field("initial.mean", 0.0 if mean == "truth" else mean, self.system.layout)
        return centre.to(self.dtype), std.to(self.dtype)

    def initial(self, twin: Twin, number: int, model: System | None = None) -> "Initial":
        """What a method is told about the first state.

        Arguments:
            twin: The repetition.
            number: The number of states that the method wants to draw.
            model: The method's model, which makes the spun-up states.

        Returns:
            A distribution to draw from.
        """

        from ..classical.initial import Draws, Gaussian, Spinup

        initial = self.config.get("initial")
        if not initial and isinstance(model or self.system, LinearGaussian):
            # Its climatology is known exactly, and asked for by the methods that are exact.
            return Spinup(int(self.config.get("spinup") or 0))
        if not initial:
            return Draws(self.spun_up(number, twin.seeds["states"], model))
        mean, std = self.start()
        if initial.get("mean", "truth") == "truth":
            # The first guess is as far from the truth as it claims to be.
            first = torch.as_tensor(self.system.layout.to_array(twin.truth)[0, 0]).to(self.dtype)
            error = normal(twin.seeds["states"], [0], first.shape, STATES, dtype=self.dtype)[0]
            mean = first + std * error
        return Gaussian(mean.numpy(), std.square().numpy())

    def spun_up(self, number: int, seed: int, model: System | None = None) -> Tensor:
        """States of the model's climatology, with shape `(number, channel, *space)`."""

        model = model or self.system
        dataset = model.simulate(
            math.ceil(number / PER_TRAJECTORY), min(PER_TRAJECTORY, number),
            spinup=int(self.config.get("spinup") or 0), stride=SPACING, seed=seed,
            dtype=self.dtype, progress=False,
        )  # fmt: skip
        states = model.layout.to_array(dataset)
        # One state of each trajectory before the second of any.
        states = np.swapaxes(states, 0, 1).reshape(-1, *model.layout.shape)
        return torch.from_numpy(np.ascontiguousarray(states[:number]))


def check_kinds(config: Mapping[str, Any]) -> None:
    """Raises a `ValueError` that names the key where a mapping, a list or a number is missing."""

    def number(value: Any) -> bool:
        return isinstance(value, int | float) and not isinstance(value, bool)

    def mapping(value: Any) -> bool:
        return isinstance(value, Mapping)

    def sequence(value: Any) -> bool:
        return isinstance(value, Sequence) and not isinstance(value, str)

    def expect(key: str, value: Any, fits: Callable[[Any], bool], what: str) -> None:
        if value is not None and not fits(value):
            raise ValueError(f"{key} must be {what}, got {value!r}")

    for key, example in EXAMPLES.items():
        expect(key, config.get(key), mapping, f"a mapping such as {example}")
    for key, entry in (config.get("entries") or {}).items():
        if not mapping(entry):
            raise ValueError(
                f"entries.{key} must be a mapping such as {{method: etkf, inflation: 1.02}}, "
                f"got {entry!r}"
            )
    more, what = config.get("more_observing"), "a list of mappings such as [{std: 0.5}]"
    expect("more_observing", more, lambda m: sequence(m) and all(map(mapping, m)), what)
    for prefix, each in (("observing", config.get("observing")), *(
        (f"more_observing[{position}]", each) for position, each in enumerate(more or [])
    )):  # fmt: skip
        each = each or {}
        expect(
            f"{prefix}.gaps", each.get("gaps"),
            lambda gaps: sequence(gaps) and all(
                sequence(gap) and len(gap) == 2 and all(map(number, gap)) for gap in gaps
            ),
            "a list of pairs such as [[1.0, 2.5]]",
        )  # fmt: skip
        expect(
            f"{prefix}.times", each.get("times"),
            lambda times: sequence(times) and len(times) > 0 and all(map(number, times)),
            "a list of times such as [1.0, 2.5]",
        )  # fmt: skip
        expect(
            f"{prefix}.share", each.get("share"),
            lambda share: number(share) and 0 < share <= 1, "a number in (0, 1]",
        )  # fmt: skip


def field(key: str, value: Any, layout: Layout) -> Tensor:
    """A state `(channel, *space)` from a number, a list of values, or one of these per variable.

    Raises:
        ValueError: If the values do not fit the state.
    """

    if isinstance(value, Mapping):
        if set(value) != set(layout.variables):
            raise ValueError(
                f"{key} must name the variables {list(layout.variables)}, got {sorted(value)}"
            )
        parts = [broadcast(key, value[name], layout.shape[1:]) for name in layout.variables]
        return torch.stack(parts)
    return broadcast(key, value, layout.shape)


def broadcast(key: str, value: Any, shape: tuple[int, ...]) -> Tensor:
    """A number or a flat list as an array of a shape."""

    try:
        array = torch.as_tensor(value, dtype=torch.float64)
    except (TypeError, ValueError, RuntimeError) as error:
        raise ValueError(f"{key} must be a number or a list of numbers, got {value!r}") from error
    if not torch.isfinite(array).all():
        raise ValueError(f"{key} must be finite, got {value!r}")
    if array.ndim == 0:
        return array.expand(shape).clone()
    if array.numel() != math.prod(shape):
        raise ValueError(
            f"{key} must be one number or {math.prod(shape)} values, got {array.numel()}"
        )
    return array.reshape(shape)


def load(
    experiment: "str | Path | Mapping[str, Any] | Experiment", overrides: Sequence[str] = ()
) -> Experiment:
    """An experiment by its name in `configs/experiment`, the path of a file, or its contents.

    Arguments:
        experiment: The name, the path, the composed configuration, or an experiment.
        overrides: Changes of single keys, as on the command line: `cycles=100`.

    Raises:
        ValueError: If the experiment or a key is unknown, or a value is out of range.
    """

    from ..config import compose

    if isinstance(experiment, Experiment):
        experiment = experiment.config
    if isinstance(experiment, Mapping):
        if overrides:
            raise ValueError(
                f"overrides go with the name or the path of an experiment, got {list(overrides)}"
            )
        return Experiment(experiment)
    given = [f"experiment={experiment}", "out=unused", *overrides]
    return Experiment(from_verb(compose("benchmark", given)))


# What a run decides, not the experiment.
RUN = (
    "methods", "repetitions", "out", "tune", "report", "resume", "overwrite", "batch", "device",
    "command", "cluster", "workers",
)  # fmt: skip


def from_verb(config: Mapping[str, Any]) -> dict[str, Any]:
    """The experiment in a configuration of the verb `benchmark`."""

    name = Path(str(config["choices"].get("experiment") or "none")).stem
    kept = {key: value for key, value in config.items() if key not in (*RUN, "choices")}
    return {"name": name} | kept
