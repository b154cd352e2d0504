"""Drifting floats: carried by the flow at their depth, they rise now and then and tell of all.

As those of the Argo programme: a float drifts in the lower layer for a cycle, rises, and reports a
profile of both layers from where it is. Where it has got to tells of the flow as well, though only
the values are observed here.

References:
    The Argo program: observing the global ocean with profiling floats (Roemmich et al., 2009)
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import ClassVar

import numpy as np
import xarray as xr

from dynamics.layout import Layout

from ..observation import Interpolate
from .base import EVENTS, PLACES, Generator, Plan, names_of, rows, span, std_of
from .drift import Flow
from .surface import Surface


@dataclass
class Floats(Generator):
    """A fleet of floats.

    Arguments:
        variables: What a profile sees, at the float's place (default: all variables).
        std: The standard deviation of the errors, one for all or one for each by its name.
        number: The number of floats.
        drift: The streamfunction of the layer in which they drift, or its velocities to the east
            and to the north.
        current: A constant velocity of that layer beside it, to the east and to the north.
        cycle: The time between two profiles, in the layout's units of time.
        network: The seed of the places at the first time, and of the time of the first profile.
        missing: The share of profiles that are lost.

    Raises:
        ValueError: If an argument is out of range, or no float rises within the span.
    """

    variables: Sequence[str] | str | None = None
    std: float | Mapping[str, float] = 500.0
    number: int = 20
    drift: str | Sequence[str] = "psi2"
    current: Sequence[float] = (0.0, 0.0)
    cycle: float = 120.0
    network: int = 0
    missing: float = 0.0

    key: ClassVar[int] = 4

    def __post_init__(self) -> None:
        self.current = list(self.current)
        self.need(1, "number")
        self.need(0, "network")
        self.need(0, "cycle", above=True)
        self.need_shares("missing")

    def start(self, layout: Layout) -> tuple[np.ndarray, np.ndarray]:
        """The places at the first time, `(number, 2)`, and the phases of the cycles, `(number)`."""

        surface, generator = Surface(layout), self.random(self.network, PLACES)
        places = np.empty((0, 2))
        while len(places) < self.number:
            drawn = surface.scatter(generator, 4 * self.number)
            places = np.concatenate([places, drawn[surface.inside(drawn)]])

        return places[: self.number], generator.random(self.number)

    def tracks(
        self, truth: xr.Dataset, layout: Layout, times: np.ndarray | None = None
    ) -> tuple[np.ndarray, np.ndarray]:
        """The floats' positions.

        Arguments:
            truth: The trajectory that carries them.
            layout: Its layout.
            times: The times, from the first of the trajectory on (default: those of the
                trajectory).

        Returns:
            The times, and the positions `(time, float, 2)` to the north and to the east.
        """

        times = span(truth) if times is None else np.asarray(times, dtype=np.float64)
        flow = Flow(truth, layout, self.drift, self.current)

        return times, flow.advect(self.start(layout)[0], times)

    def plan(self, truth: xr.Dataset, layout: Layout, seed: int) -> Plan:
        surface, times, names = Surface(layout), span(truth), names_of(self.variables, layout)
        phases = self.start(layout)[1]
        rises = [
            (float(time), number)
            for number, phase in enumerate(phases)
            for time in np.arange(times[0] + phase * self.cycle, times[-1] + 1e-9, self.cycle)
        ]
        keep = self.random(seed, EVENTS).random(len(rises)) >= self.missing
        rises = sorted(rise for rise, kept in zip(rises, keep, strict=True) if kept)
        if not rises:
            raise ValueError(
                f"no float rises within the times {times[0]:g} … {times[-1]:g}: observe for "
                f"longer, or give more floats or a shorter cycle"
            )
        time, number = (np.array(each) for each in zip(*rises, strict=True))
        moments, index = np.unique(np.append(times[0], time), return_inverse=True)
        tracks = self.tracks(truth, layout, moments)[1]
        name = np.array([f"F{n:04d}" for n in range(self.number)], dtype=object)[number]
        points, labels = rows(surface, tracks[index[1:], number], time, names, {"float": name})

        return Plan(Interpolate(points), std_of(self.std, points["variable"]), labels)
