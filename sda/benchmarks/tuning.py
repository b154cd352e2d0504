"""Tuning: inflation and localisation of classical methods, searched on a truth of its own.

The truth that tunes has a seed of its own and is never scored. The budget is stated and the same
for all methods: so many trials of so many observed times each. A trial is a choice of parameters;
the one with the smallest RMSE wins, a diverged one never does, and the method's own parameters are
always among the trials. With `halving`, trials start at a quarter of the length, the better half of
them goes on at half the length and a quarter of them at full length: a third more choices for the
same work.
"""

import itertools
import math
import time
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

import numpy as np

from dynamics.random import member_generator

from .experiment import TUNED, Experiment, Twin
from .methods import Spec, Workbench
from .results import plain_json
from .scoring import Target, score

STRATEGIES = ("grid", "halving")
CHOICE = 7  # the key of this purpose, see dynamics.random


@dataclass(frozen=True)
class Tuning:
    """The budget of tuning, for each method.

    Arguments:
        trials: The number of trials of full length, or their equivalent.
        cycles: The observed times of a trial, after burn-in.
        strategy: "grid" or "halving".

    Raises:
        ValueError: If a number is not positive or the strategy is unknown.
    """

    trials: int = 20
    cycles: int = 200
    strategy: str = "grid"

    def __post_init__(self) -> None:
        for name, least in (("trials", 1), ("cycles", 1)):
            value = getattr(self, name)
            if not isinstance(value, int) or value < least:
                raise ValueError(
                    f"tuning.{name} must be an integer of at least {least}, got {value!r}"
                )
        if self.strategy not in STRATEGIES:
            raise ValueError(
                f"tuning.strategy must be one of {', '.join(STRATEGIES)}, got {self.strategy!r}"
            )

    @classmethod
    def of(cls, experiment: Experiment) -> "Tuning":
        """The budget that an experiment states."""

        given = dict(experiment.config.get("tuning") or {})
        known = set(cls.__dataclass_fields__)
        if unknown := sorted(set(given) - known):
            raise ValueError(f"unknown keys {unknown} of tuning: expected among {sorted(known)}")
        return cls(**given)

    def lengths(self) -> list[tuple[float, float]]:
        """The rounds: the share of the candidates and the share of the cycles of each."""
        return [(1.0, 1.0)] if self.strategy == "grid" else [(1.0, 0.25), (0.5, 0.5), (0.25, 1.0)]

    @property
    def candidates(self) -> int:
        """How many choices the budget allows."""
        cost = sum(share * length for share, length in self.lengths())
        return max(1, math.floor(self.trials / cost))


def candidates(spec: Spec, number: int, seed: int) -> list[dict[str, Any]]:
    """The choices of parameters to try: the method's own, and others of its search space.

    Arguments:
        spec: The method.
        number: The largest number of choices. A larger space is thinned out at random.
        seed: The seed of that.
    """

    own = {name: spec.parameters[name] for name in spec.search if name in spec.parameters}
    grid = [
        dict(zip(spec.search, values, strict=True))
        for values in itertools.product(*spec.search.values())
    ]
    grid = [choice for choice in grid if choice != own]
    if len(grid) > number - 1:
        order = member_generator(seed, 0, CHOICE).permutation(len(grid))[: number - 1]
        grid = [grid[i] for i in sorted(order)]
    return [own, *grid]


def tune(
    tuning: Tuning, bench: Workbench, spec: Spec, say: Callable[[str], None]
) -> dict[str, Any]:
    """Searches the parameters of one method.

    Returns:
        The best `parameters` and their `rmse`, all `trials`, the budget and the `seconds` it took,
        as plain JSON types. If every trial diverged, the method's own parameters and no RMSE.
    """

    start = time.perf_counter()
    choices = candidates(spec, tuning.candidates, bench.experiment.seed)
    first = len(choices)
    trials: list[dict[str, Any]] = []
    ranked = [(math.inf, number) for number in range(first)]
    for share, part in tuning.lengths():
        keep = max(1, round(share * first))
        cycles = max(1, round(part * tuning.cycles))
        experiment = bench.experiment.shortened(cycles)
        short = Workbench(experiment, bench.device)
        twin = experiment.twin(0, TUNED)
        target = Target.of(experiment, twin)
        ranked = sorted(
            (trial(short, spec, choices[number], twin, target, cycles, trials), number)
            for _, number in ranked[:keep]
        )
    rmse, number = ranked[0]
    best = choices[number] if math.isfinite(rmse) else choices[0]
    seconds = time.perf_counter() - start
    shown = ", ".join(f"{k}={v:g}" if isinstance(v, float) else f"{k}={v}" for k, v in best.items())
    say(f"[tuning] {spec.label}: {shown or 'as given'} of {len(choices)} choices, {seconds:.1f} s")

    return {
        "parameters": best,
        "rmse": rmse if math.isfinite(rmse) else None,
        "trials": trials,
        "budget": {"trials": tuning.trials, "cycles": tuning.cycles, "strategy": tuning.strategy},
        "seconds": seconds,
    }


def trial(
    bench: Workbench,
    spec: Spec,
    choice: Mapping[str, Any],
    twin: Twin,
    target: Target,
    cycles: int,
    trials: list[dict[str, Any]],
) -> float:
    """The RMSE of one choice of parameters, infinite if the method diverged. It is noted down."""

    outcome = bench.run(spec.with_parameters(**choice), twin)
    rmse = math.inf
    if outcome.posterior is not None and not outcome.diverged:
        rmse = score(target, outcome.posterior)["rmse"]
        rmse = rmse if np.isfinite(rmse) else math.inf
    trials.append({
        "parameters": dict(choice), "cycles": cycles,
        "rmse": rmse if math.isfinite(rmse) else None, "seconds": outcome.seconds,
    })  # fmt: skip
    return rmse


def tuned(spec: Spec, found: Mapping[str, Any]) -> Spec:
    """The tuned variant of a method."""

    return replace(
        spec.with_parameters(**found["parameters"]),
        key=f"{spec.key}_tuned", label=f"{spec.label} (tuned)", published=math.nan, tuned=True,
    )  # fmt: skip


def tune_methods(
    tuning: Tuning,
    bench: Workbench,
    specs: Sequence[Spec],
    known: Mapping[str, Any],
    record: Callable[[Mapping[str, Any]], None],
    say: Callable[[str], None],
    search: Callable[[Sequence[Spec]], Iterable[tuple[Spec, dict[str, Any]]]] | None = None,
) -> tuple[list[Spec], dict[str, Any]]:
    """Tunes all methods that have something to tune.

    Arguments:
        tuning: The budget.
        bench: Where methods run.
        specs: The methods.
        known: What an earlier run has found already, by method.
        record: Called with all that was found after each method.
        say: Called with a line of text for each method.
        search: Searches the parameters of some methods and yields what `tune` returns for each, in
            any order (default: one by one, here).

    Returns:
        The methods, each followed by its tuned variant, and what was found.
    """

    search = search or (lambda some: ((spec, tune(tuning, bench, spec, say)) for spec in some))
    found: dict[str, Any] = {}
    new: list[Spec] = []
    for spec in (spec for spec in specs if spec.search):
        old = known.get(spec.key)
        if old is not None and matches(old, spec, tuning):
            found[spec.key] = old
        else:
            new.append(spec)
    for spec, result in search(new) if new else ():
        result["of"], result["search"] = plain_json(spec.parameters), plain_json(spec.search)
        found[spec.key] = result
        record({**known, **found})
    record({**known, **found})
    all_specs = []
    for spec in specs:
        all_specs += [spec, tuned(spec, found[spec.key])] if spec.search else [spec]

    return all_specs, {spec.key: found[spec.key] for spec in specs if spec.search}


def matches(found: Mapping[str, Any], spec: Spec, tuning: Tuning) -> bool:
    """Whether what was found is of this method with this search space and this budget."""

    budget = {"trials": tuning.trials, "cycles": tuning.cycles, "strategy": tuning.strategy}
    now = {"budget": budget, "of": plain_json(spec.parameters), "search": plain_json(spec.search)}
    return all(found.get(key) == value for key, value in now.items())
