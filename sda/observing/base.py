"""What all observing systems share.

A generator says where, when and through which operator a truth is seen, and how precisely; the
values and their errors are then those of `sda.observation.observe`, as with any other operator.
"""

import abc
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, ClassVar

import numpy as np
import xarray as xr

from dynamics.layout import Layout
from dynamics.random import member_generator

from ..observation import Observations, Operator, observe
from .surface import Surface

# Streams of random numbers, beside the errors' (see `sda.observation.generate`): what belongs to an
# instrument wherever it is used, and what differs between two truths.
PLACES, EVENTS, CLOUDS = 2, 3, 4


@dataclass
class Plan:
    """What an observing system sees.

    Attributes:
        operator: The observation operator.
        std: The standard deviation of the errors, see `sda.observation.observe`.
        labels: Columns of text, such as the name of the platform, with one entry for each value.
    """

    operator: Operator
    std: Any
    labels: dict[str, np.ndarray] = field(default_factory=dict)


class Generator(abc.ABC):
    """An observing system. Its arguments are the keys of `configs/observing/<name>.yaml`.

    Attributes:
        key: The number of its streams of random numbers.
    """

    key: ClassVar[int]

    @abc.abstractmethod
    def plan(self, truth: xr.Dataset, layout: Layout, seed: int) -> Plan:
        """What is seen of a truth, see `observe`."""

    def observe(self, truth: xr.Dataset, seed: int, layout: Layout | None = None) -> Observations:
        """Observes a truth.

        Arguments:
            truth: The true trajectory, a dataset of one member.
            seed: The seed of the errors, and of what comes and goes (reports, clouds).
            layout: The layout of the state (default: read off the truth).

        Raises:
            ValueError: If the system does not fit the truth, or sees nothing of it.
        """

        layout = Layout.from_dataset(truth) if layout is None else layout
        plan = self.plan(truth, layout, seed)
        observations = observe(truth, plan.operator, plan.std, seed, layout)
        observations.sets[0].label(plan.labels)

        return observations

    def random(self, seed: int, purpose: int) -> np.random.Generator:
        """The source of random numbers for a purpose."""
        return member_generator(seed, 0, purpose, self.key)

    def need(self, low: float, *names: str, above: bool = False) -> None:
        """Raises a `ValueError` unless arguments are numbers of at least `low`, or None."""

        for name in names:
            value = getattr(self, name)
            number = isinstance(value, int | float) and not isinstance(value, bool)
            if value is not None and not (number and (value > low if above else value >= low)):
                bound = f"above {low:g}" if above else f"of at least {low:g}"
                raise ValueError(f"{name} must be a number {bound}, got {value!r}")

    def need_shares(self, *names: str) -> None:
        """Raises a `ValueError` unless arguments are shares between 0 and 1."""

        self.need(0.0, *names)
        for name in names:
            if getattr(self, name) is not None and getattr(self, name) > 1:
                raise ValueError(f"{name} must be a share within 0 … 1, got {getattr(self, name)}")

    def need_present(self, *names: str) -> None:
        """Raises a `ValueError` if an argument is None."""

        for name in names:
            if getattr(self, name) is None:
                raise ValueError(f"{name} must be a number, got none")


def names_of(variables: str | Sequence[str] | None, layout: Layout) -> list[str]:
    """The observed variables, by default all.

    Raises:
        ValueError: If one is unknown.
    """

    if variables is None:
        return list(layout.variables)
    names = [variables] if isinstance(variables, str) else [str(name) for name in variables]
    if not names or not set(names) <= set(layout.variables):
        raise ValueError(
            f"variables must be some of {list(layout.variables)}, got {names}: the state has no "
            f"others"
        )
    return names


def span(truth: xr.Dataset) -> np.ndarray:
    """The times of a truth."""
    return np.atleast_1d(np.asarray(truth["time"].values, dtype=np.float64))


def regular(times: np.ndarray, interval: float | None, offset: float = 0.0) -> np.ndarray:
    """The multiples of an interval, from `offset`, within the span; by default the times.

    Raises:
        ValueError: If there is none.
    """

    if interval is None:
        return times
    slack = 1e-6 * interval
    first = np.ceil((times[0] - offset - slack) / interval)
    last = np.floor((times[-1] - offset + slack) / interval)
    found = offset + interval * np.arange(first, last + 1)
    if not len(found):
        raise ValueError(
            f"no multiple of the interval {interval:g} lies within the times {times[0]:g} … "
            f"{times[-1]:g}"
        )

    return np.clip(found, times[0], times[-1])


def rows(
    surface: Surface,
    positions: np.ndarray,
    time: np.ndarray,
    variables: Sequence[str],
    labels: Mapping[str, np.ndarray] | None = None,
) -> tuple[dict[str, np.ndarray], dict[str, np.ndarray]]:
    """The points and labels of reports, each of all variables, for `Interpolate`.

    Arguments:
        surface: The surface.
        positions: The position of each report, with shape `(report, 2)`.
        time: Its time.
        variables: The variables that each report has.
        labels: Columns of text, one entry for each report.
    """

    repeat = len(variables)
    points: dict[str, np.ndarray] = {
        "time": np.repeat(time, repeat),
        "variable": np.tile(np.array(list(variables), dtype=object), len(time)),
        **{dim: np.repeat(c, repeat) for dim, c in surface.columns(positions).items()},
    }
    return points, {name: np.repeat(column, repeat) for name, column in (labels or {}).items()}


def std_of(std: Any, variable: np.ndarray) -> np.ndarray:
    """The standard deviation of each value: one number, or one for each variable by its name.

    Raises:
        ValueError: If a variable has none.
    """

    if not isinstance(std, Mapping):
        return np.full(len(variable), float(std))
    if missing := sorted(set(variable) - set(std)):
        raise ValueError(
            f"std names {list(std)}, but not the observed {missing}: give "
            f"std={{{missing[0]}: …}} as well"
        )
    return np.array([float(std[name]) for name in variable])
