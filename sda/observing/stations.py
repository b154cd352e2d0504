r"""Surface stations: reports from fixed places at irregular times, with gaps.

Places are drawn by a density that is high on land and, within it, where a smooth random field is,

    p(place) ∝ exp(c g(place)),

no two closer than a smallest distance: clusters as those of Europe, voids as those of deserts.
Stations report about synoptic times. A report is lost now and then, and a whole station is out for
a while: a two-state Markov chain from report to report, which is out a share `q` of the time and
`L` reports in a row on average, fails with probability `q / ((1 − q) L)` and recovers with `1 / L`.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import ClassVar

import numpy as np
import xarray as xr

from dynamics.layout import Layout

from ..observation import Interpolate
from .base import EVENTS, PLACES, Generator, Plan, names_of, regular, rows, span, std_of
from .land import land_share
from .random_field import RandomField
from .surface import Surface

# So many candidates are drawn at once, and so often, before places count as too few.
CANDIDATES, TRIES = 2048, 16


@dataclass
class Stations(Generator):
    """A network of stations.

    Arguments:
        variables: The variables that each report has (default: all).
        std: The standard deviation of their errors, one for all or one for each by its name.
        number: The number of stations.
        spacing: The smallest distance between two, in km (see `sda.observing.surface`).
        land: The share of the stations on land; on the sphere only, and without a coastline of the
            model's own.
        orography: A coordinate of the truth that is positive on land (default: a coarse map of the
            Earth).
        clustering: The factor `c`; 0 spreads stations evenly.
        cluster: The correlation length of the random field, in km.
        network: The seed of the places, so that many truths are seen by one network.
        interval: The time between two reports of a station, in the layout's units of time
            (default: every state).
        jitter: Reports are up to so much earlier or later.
        missing: The share of reports that are lost, one by one.
        outages: The share of the time that a station is out.
        outage: The mean duration of that.

    Raises:
        ValueError: If an argument is out of range, or places for the stations are too few.
    """

    variables: Sequence[str] | str | None = None
    std: float | Mapping[str, float] = 1.0
    number: int = 100
    spacing: float = 250.0
    land: float = 0.9
    orography: str | None = None
    clustering: float = 1.0
    cluster: float = 1500.0
    network: int = 0
    interval: float | None = 6.0
    jitter: float = 0.5
    missing: float = 0.05
    outages: float = 0.05
    outage: float = 24.0

    key: ClassVar[int] = 1

    def __post_init__(self) -> None:
        self.need(1, "number")
        self.need(0, "spacing", "clustering", "jitter", "network")
        self.need(0, "cluster", "interval", "outage", above=True)
        self.need_shares("land", "missing", "outages")

    def places(self, truth: xr.Dataset, layout: Layout) -> np.ndarray:
        """The positions of the stations, with shape `(number, 2)`, the same for all truths."""

        surface, generator = Surface(layout), self.random(self.network, PLACES)
        field = RandomField(surface, generator, self.cluster)
        wanted: dict[bool | None, int] = {None: self.number}
        if surface.spherical and layout.mask is None:
            ashore = round(self.land * self.number)
            wanted = {True: ashore, False: self.number - ashore}
        kept = np.empty((0, 2))
        for land, number in wanted.items():
            goal = len(kept) + number
            for _ in range(TRIES):
                if len(kept) == goal:
                    break
                kept = self.add(kept, goal, land, truth, surface, field, generator)
            else:
                kind = {True: " on land", False: " at sea", None: ""}[land]
                raise ValueError(
                    f"only {len(kept) - goal + number} of {number} stations{kind} have a place at "
                    f"least {self.spacing:g} km from the others: lower number or spacing"
                )

        return kept

    def add(
        self,
        kept: np.ndarray,
        goal: int,
        land: bool | None,
        truth: xr.Dataset,
        surface: Surface,
        field: RandomField,
        generator: np.random.Generator,
    ) -> np.ndarray:
        """Adds to the places kept those of one batch of candidates, up to a number."""

        candidates = surface.scatter(generator, CANDIDATES)
        u, v = generator.random((2, CANDIDATES))
        fits = surface.inside(candidates)
        if land is not None:
            fits &= (u < self.on_land(candidates, truth, surface)) == land
        candidates, v = candidates[fits], v[fits]
        chosen = v < np.exp(self.clustering * (field(candidates) - 2.0))
        for place in candidates[chosen]:
            if len(kept) == goal:
                break
            if not len(kept) or surface.distance(kept, place).min() >= self.spacing:
                kept = np.concatenate([kept, place[None]])

        return kept

    def on_land(self, positions: np.ndarray, truth: xr.Dataset, surface: Surface) -> np.ndarray:
        """The share of land about positions."""

        if self.orography is None:
            return land_share(positions[:, 0], positions[:, 1])
        if self.orography not in truth.coords:
            raise ValueError(
                f"orography={self.orography} is no coordinate of the truth, which has "
                f"{sorted(map(str, truth.coords))}"
            )
        height = truth[self.orography].transpose(*surface.dims).values
        return (height[surface.nearest(positions)] > 0).astype(float)

    def plan(self, truth: xr.Dataset, layout: Layout, seed: int) -> Plan:
        surface, times = Surface(layout), span(truth)
        names, places = names_of(self.variables, layout), self.places(truth, layout)
        generator = self.random(seed, EVENTS)
        synoptic = regular(times, self.interval)
        working = self.working(generator, len(synoptic), len(places), self.interval or layout.dt)
        shift = generator.uniform(-self.jitter, self.jitter, working.shape)
        time = synoptic[:, None] + shift
        # What would be before the first state or after the last is as far within.
        time = np.abs(time - times[0]) + times[0]
        time = np.clip(times[-1] - np.abs(times[-1] - time), times[0], times[-1])

        _, station = np.nonzero(working)
        if not len(station):
            raise ValueError(
                f"no station reports: {self.number} of them are out or silent at all of "
                f"{len(synoptic)} times"
            )
        name = np.array([f"S{number:04d}" for number in range(len(places))], dtype=object)
        points, labels = rows(
            surface, places[station], time[working], names, {"station": name[station]}
        )
        return Plan(Interpolate(points), std_of(self.std, points["variable"]), labels)

    def working(
        self, generator: np.random.Generator, times: int, stations: int, step: float
    ) -> np.ndarray:
        """Which reports there are, with shape `(times, stations)`, for times `step` apart."""

        u, share = generator.random((times, stations)), self.outages
        length = max(self.outage / step, 1.0)
        # Who is out for most of the time stays so for longer.
        length = max(length, share / (1 - share)) if share < 1 else np.inf
        fails = share / ((1 - share) * length) if share < 1 else 1.0
        out = np.empty((times, stations), dtype=bool)
        fails = min(share / max((1 - share) * length, 1e-12), 1.0)
        for i in range(times):
            before = out[i - 1] if i else np.zeros(stations, dtype=bool)
            chance = np.where(before, 1 - 1 / length, fails) if i else share
            out[i] = u[i] < chance
        lost = generator.random((times, stations)) < self.missing

        return ~out & ~lost
