"""Regional assimilation of the toy weather: is the local posterior better than what is there?

The truth is a trajectory of `dynamics.ToyWeather`. The global analysis is coarse: averages of the
truth over blocks of cells, plus errors that are as large-scale, as balanced and as long-lived as
the flow, a share of the coarse anomalies of an independent trajectory. Regional priors of a box in
the storm track are fitted to other trajectories and their analyses, and assimilate local stations
given the analysis:

- the joint Gaussian, whose state holds the analysis, which it observes, see `sda.regional`,
- the Gaussian conditioned on the analysis, see `sda.context`,
- a network conditioned on it, which has learned what the latter leaves.

They are compared with

- the global analysis itself, interpolated,
- runs of the true model at full resolution from it, once for all, or for each time from the
  analysis a day before,
- the same priors without the stations, and without the analysis, which show what each contributes.

Scores are means over the interior of the box, weighted by area.
"""

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from functools import partial
from typing import Any

import numpy as np
import pandas as pd
import torch
import xarray as xr

from dynamics import System
from dynamics.layout import Layout
from dynamics.random import member_generator, normal

from ..observation import Observations
from ..prior import GaussianPrior, Prior
from ..regional import (
    SUFFIX,
    cells,
    interior,
    interpolated,
    make_regional_dataset,
    regional_context,
    regional_observations,
)
from ..verification import scores

SEED = 1017
STATIONS, ERRORS = 1, 2  # the keys of these purposes, see dynamics.random
JOINT, GIVEN, NETWORK = "joint Gaussian", "conditioned Gaussian", "conditioned network"
ALONE, BOTH = "analysis alone", "analysis and stations"
LANGEVIN = "fields"


@dataclass(frozen=True)
class Setup:
    """What is observed, and how coarse the global analysis is.

    Attributes:
        box: The region.
        rim: The cells at each edge of it that are not scored.
        factor: The cells of the full grid in one of the analysis, along each dimension.
        share: The errors of the analysis, in standard deviations of its climatology.
        stations: The number of stations in the interior.
        std: The standard deviations of their errors.
        every: The context is observed on every n-th cell along each dimension.
        length: The number of states that are assimilated.
        turns: The number of boxes around the globe whose trajectories priors are fitted to: they
            are the same at every longitude.
        window: The number of frames of the priors' climatologies.
        lead: The states by which the model is run ahead, for each time.
        options: Options of `sda.Climatology.fit`, for the joint Gaussian.
        conditional: The same for the Gaussian that is conditioned on the analysis.
    """

    box: Mapping[str, tuple[float, float]] = field(
        default_factory=lambda: {"lat": (20.0, 75.0), "lon": (180.0, 270.0)}
    )
    rim: int = 2
    factor: int = 4
    share: float = 0.2
    stations: int = 5
    std: Mapping[str, float] = field(default_factory=lambda: {"u": 2.0, "v": 2.0, "h": 20.0})
    every: int = 3
    length: int = 12
    turns: int = 4
    window: int = 6
    lead: int = 4
    options: Mapping[str, Any] = field(
        default_factory=lambda: {"kind": "low_rank", "rank": 300, "coupled": 80}
    )
    conditional: Mapping[str, Any] = field(
        default_factory=lambda: {"kind": "low_rank", "rank": 250, "coupled": 60}
    )


@dataclass(frozen=True)
class Row:
    """The scores of one method on one truth, by variable."""

    method: str
    truth: int
    rmse: Mapping[str, float]
    crps: Mapping[str, float]
    spread_skill: float


def global_analyses(fine: xr.Dataset, factor: int, share: float) -> xr.Dataset:
    """Coarse analyses of trajectories, with errors.

    Arguments:
        fine: Trajectories of several independent members.
        factor: The cells in a block, along each dimension.
        share: The errors, in standard deviations of the coarse climatology. Those of a member are
            made of the next member's anomalies.

    Raises:
        ValueError: If there is only one member, or blocks do not fit the grid.
    """

    layout = Layout.from_dataset(fine)
    count, sizes = fine.sizes["member"], layout.shape[1:]
    if count < 2 or any(size % factor for size in sizes):
        raise ValueError(
            f"expected at least two members and sizes that {factor} divides, got {count} members "
            f"on {sizes} cells"
        )
    weights = xr.DataArray(layout.area, dims=layout.dims)
    blocks = dict.fromkeys(layout.dims, factor)
    coarse = (fine[list(layout.variables)] * weights).coarsen(blocks).sum()
    coarse = coarse / weights.coarsen(blocks).sum()
    coarse = coarse.transpose("member", "time", *layout.dims).compute()
    error = share * (coarse - coarse.mean(("member", "time")))
    analyses = coarse + error.roll(member=-1)
    given = replace(
        layout,
        coords={dim: v.reshape(-1, factor).mean(1) for dim, v in layout.coords.items()},
        mask=None,
    )
    values = np.stack([analyses[name].values for name in layout.variables], axis=2)

    return given.to_dataset(values, fine["time"].values, fine["member"].values)


def regional_pairs(fine: xr.Dataset, setup: Setup) -> xr.Dataset:
    """Trajectories in the box, beside their analyses, as if it lay all around the globe.

    The members are those of the first trajectory at all longitudes, then those of the second, …
    """

    analyses, pairs = global_analyses(fine, setup.factor, setup.share), []
    for turn in range(setup.turns):
        rolled = [
            each.roll(lon=each.sizes["lon"] * turn // setup.turns).assign_coords(
                member=np.arange(each.sizes["member"]) * setup.turns + turn
            )
            for each in (fine, analyses)
        ]
        pairs.append(make_regional_dataset(rolled[0], rolled[1], setup.box))
    joint = xr.concat(pairs, dim="member", data_vars="minimal", combine_attrs="override")

    return joint.sortby("member")


def training_pairs(fine: xr.Dataset, setup: Setup, truths: int) -> xr.Dataset:
    """What a network is trained on, with the trajectories of the truths at the end, to hold out."""

    count = fine.sizes["member"] - truths
    parts = [fine.isel(member=slice(0, count)), fine.isel(member=slice(count, None))]
    pairs = [regional_pairs(part, setup) for part in parts]
    pairs[1] = pairs[1].assign_coords(member=pairs[1]["member"] + pairs[0].sizes["member"])

    return xr.concat(pairs, dim="member", data_vars="minimal", combine_attrs="override")


def station_table(truth: xr.Dataset, setup: Setup, index: int) -> pd.DataFrame:
    """What stations at random places of the interior see of a truth in the region."""

    layout = Layout.from_dataset(truth)
    inner = Layout.from_dataset(interior(truth, setup.rim))
    generator = member_generator(SEED, index, STATIONS)
    places = {
        dim: xr.DataArray(generator.uniform(v[0], v[-1], setup.stations), dims="station")
        for dim, v in inner.coords.items()
    }
    errors, parts = member_generator(SEED, index, ERRORS), []
    for name in layout.variables:
        seen = truth[name].squeeze("member").interp(places).transpose("time", "station")
        noise = setup.std[name] * errors.standard_normal(seen.shape)
        columns = {dim: np.tile(v.values, seen.sizes["time"]) for dim, v in places.items()}
        columns["time"] = np.repeat(truth["time"].values, setup.stations)
        parts.append(
            pd.DataFrame(
                columns
                | {
                    "variable": name,
                    "observation": (seen.values + noise).ravel(),
                    "std": setup.std[name],
                }
            )
        )

    return pd.concat(parts, ignore_index=True)


@dataclass(frozen=True)
class Case:
    """One truth in the region, and all that is known of it.

    Attributes:
        truth: The states, with shape `(time, channel, *space)`.
        time: Their times.
        analysis: The global analyses of it, from `lead` states before the first on.
        table: What the stations have seen.
    """

    truth: np.ndarray
    time: np.ndarray
    analysis: xr.Dataset
    table: pd.DataFrame


class Contest:
    """Methods side by side in one region.

    Arguments:
        system: The system that made the trajectories.
        prior: The joint prior.
        others: Priors that are conditioned on the analysis, by name.
        setup: What is observed.
    """

    def __init__(
        self, system: System, prior: Prior, others: Mapping[str, Prior], setup: Setup
    ) -> None:
        self.system, self.prior, self.setup = system, prior, setup
        self.count = len(system.layout.variables)
        self.inner = tuple(
            slice(setup.rim, n - setup.rim) if dim not in prior.layout.period else slice(None)
            for dim, n in zip(prior.layout.dims, prior.layout.shape[1:], strict=True)
        )
        layout = prior.layout
        nothing = layout.to_dataset(np.zeros((1, 2, *layout.shape)))
        area = Layout.from_dataset(interior(nothing, setup.rim)).area
        self.weights = area / area.sum()
        self.methods: dict[str, Callable[[Case, int], np.ndarray]] = {
            "climatology": self.climatology,
            "global analysis, interpolated": self.interpolation,
            "model run from it": self.run_from_it,
            "model runs from it, a day ahead": self.runs_ahead,
            "stations alone, joint Gaussian": self.stations_alone,
            f"{ALONE}, {JOINT}": self.analysis_alone,
        }
        for name, other in others.items():
            self.methods[f"{ALONE}, {name}"] = partial(self.prior_given, other)
        self.methods[f"{BOTH}, {JOINT}"] = self.both
        for name, other in others.items():
            self.methods[f"{BOTH}, {name}"] = partial(self.both_given, other)

    def climatology(self, case: Case, members: int) -> np.ndarray:
        """Draws of the climatology, each of one time."""

        given = self.prior.covariance(1)
        noise = normal(SEED, range(members), (len(case.time), *self.prior.layout.shape), 0)
        states = [self.prior.states(given.sample(noise[:, [i]]), case.time[[i]]) for i in
                  range(len(case.time))]  # fmt: skip

        return torch.cat(states, dim=1).numpy()[:, :, : self.count]

    def interpolation(self, case: Case, members: int) -> np.ndarray:
        """The analysis on the cells of the region."""

        within = case.analysis.isel(time=slice(self.setup.lead, None))
        given = regional_context(within, self.prior.layout)
        names = [f"{name}{SUFFIX}" for name in self.system.layout.variables]

        return np.stack([given[name].values for name in names], axis=2)

    def states(self, analysis: xr.Dataset) -> torch.Tensor:
        """The analyses on the whole grid of the model `(time, channel, *space)`."""

        layout = self.system.layout
        return torch.from_numpy(interpolated(analysis, layout, list(layout.variables)))[0]

    def cut(self, states: torch.Tensor) -> np.ndarray:
        """The part in the region of states of the whole grid."""

        values = states.numpy()
        chosen = cells(self.system.layout, self.setup.box)
        for axis, dim in enumerate(self.system.layout.dims, start=values.ndim - len(self.inner)):
            if dim in chosen:
                values = values.take(chosen[dim], axis)

        return values

    def run_from_it(self, case: Case, members: int) -> np.ndarray:
        """The model's run from the first analysis on."""

        first = self.states(case.analysis.isel(time=[self.setup.lead]))

        return self.cut(self.system.rollout(first, len(case.time)))

    def runs_ahead(self, case: Case, members: int) -> np.ndarray:
        """The model's forecast of each state from the analysis `lead` states before."""

        z = self.system.lift(self.states(case.analysis.isel(time=slice(0, len(case.time)))))
        for _ in range(self.setup.lead):
            z = self.system.advance(z)

        return self.cut(self.system.project(z))[None]

    def stations_alone(self, case: Case, members: int) -> np.ndarray:
        """The posterior given the stations."""
        return self.posterior(case, members, Observations.from_table(case.table))

    def analysis_alone(self, case: Case, members: int) -> np.ndarray:
        """The posterior given the analysis."""

        within = case.analysis.isel(time=slice(self.setup.lead, None))

        return self.posterior(
            case, members, regional_observations(self.prior, within, every=self.setup.every)
        )

    def both(self, case: Case, members: int) -> np.ndarray:
        """The posterior given the analysis and the stations."""

        within = case.analysis.isel(time=slice(self.setup.lead, None))
        observations = regional_observations(self.prior, within, case.table, every=self.setup.every)

        return self.posterior(case, members, observations)

    def prior_given(self, prior: Prior, case: Case, members: int) -> np.ndarray:
        """Members of a conditioned prior, before the stations."""

        from ..sampling import sample

        given = prior.given(case.analysis).at(case.time)
        shape = (len(case.time), *prior.layout.shape)
        if prior.gaussian:
            noise = normal(SEED, range(members), shape, 0)
            x = given.covariance(len(case.time)).sample(noise)
        else:
            x = sample(given.trajectory(len(case.time)), shape, SEED, members)

        return given.states(x, case.time).numpy()

    def both_given(self, prior: Prior, case: Case, members: int) -> np.ndarray:
        """The posterior of a conditioned prior given the stations."""
        return self.posterior(
            case, members, Observations.from_table(case.table), prior.given(case.analysis)
        )

    def posterior(
        self, case: Case, members: int, observations: Observations, prior: Prior | None = None
    ) -> np.ndarray:
        """Members of the posterior, without their context."""

        from ..assimilation import assimilate

        prior = prior or self.prior
        # Exact where the prior is Gaussian and the observations are linear.
        drawn = assimilate(
            prior, observations, members, SEED, time=case.time, guidance="static",
            langevin=None if prior.gaussian else LANGEVIN,
        )  # fmt: skip

        return prior.layout.to_array(drawn)[:, :, : self.count]

    def score(self, name: str, index: int, ensemble: np.ndarray, truth: np.ndarray) -> Row:
        """The scores of an ensemble in the interior, by variable."""

        ensemble, truth = (each[(..., *self.inner)] for each in (ensemble, truth))
        axes = tuple(range(-len(self.inner), 0))

        def mean(values: np.ndarray) -> np.ndarray:
            return (values * self.weights).sum(axes).mean(0)

        square = mean((ensemble.mean(0) - truth) ** 2)
        skill = math.nan
        if len(ensemble) > 1:
            factor = (len(ensemble) + 1) / len(ensemble)
            spread = mean(ensemble.var(0, ddof=1))
            skill = float(np.sqrt(factor * spread / square).mean())
        crps = mean(scores.crps(ensemble, truth, fair=len(ensemble) > 1))
        names = self.system.layout.variables

        return Row(
            name,
            index,
            dict(zip(names, np.sqrt(square).tolist(), strict=True)),
            dict(zip(names, crps.tolist(), strict=True)),
            skill,
        )


def run(
    system: System,
    fine: xr.Dataset,
    truths: int = 8,
    setup: Setup | None = None,
    members: int = 32,
    report: Callable[[Row], None] | None = None,
    network: Prior | None = None,
) -> list[Row]:
    """Fits the Gaussian priors of a region and scores all methods on several truths.

    Arguments:
        system: The system that made the trajectories.
        fine: Independent trajectories. The last `truths` of them are kept from the prior.
        truths: The number of truths, at least 2.
        setup: What is observed.
        members: The number of members of posteriors.
        report: A function called with each row.
        network: A prior with a network, conditioned on the analysis. Its Gaussian part is then the
            Gaussian that is conditioned on it.

    Raises:
        ValueError: If there are too few trajectories, or they are too short, or the network is of
            another region or takes no context.
    """

    setup = setup or Setup()
    count, needed = fine.sizes["member"] - truths, setup.lead + setup.length
    if truths < 2 or count < 2 or fine.sizes["time"] < needed:
        raise ValueError(
            f"expected two truths or more, two trajectories more than these and {needed} states "
            f"at least, got {truths} truths, {fine.sizes['member']} trajectories and "
            f"{fine.sizes['time']} states"
        )
    known = regional_pairs(fine.isel(member=slice(0, count)).load(), setup)
    prior = GaussianPrior.fit(known, setup.window, name="joint", **setup.options)
    others: dict[str, Prior] = {}
    if network is None:
        context = [f"{name}{SUFFIX}" for name in system.layout.variables]
        others[GIVEN] = GaussianPrior.fit(
            known, setup.window, name="given", context=context, **setup.conditional
        )
    else:
        expected = {dim: values.tolist() for dim, values in prior.layout.coords.items()}
        coords = {dim: values.tolist() for dim, values in network.layout.coords.items()}
        if network.context is None or coords != expected:
            raise ValueError(
                f"expected a prior of the region {dict(setup.box)} that is conditioned on the "
                f"analysis, got {network.name}: train it with scripts/train_toy_regional.py"
            )
        others[GIVEN] = Prior(network.climatology, name="given", context=network.context)
        others[NETWORK] = network
    contest = Contest(system, prior, others, setup)

    held = fine.isel(member=slice(count, None), time=slice(-needed, None)).load()
    analyses = global_analyses(held, setup.factor, setup.share)
    joint = make_regional_dataset(held, analyses, setup.box).isel(time=slice(setup.lead, None))
    wanted = list(system.layout.variables)

    rows = []
    for index in range(truths):
        states = prior.layout.to_array(joint.isel(member=[index]))[0, :, : len(wanted)]
        truth = joint[wanted].isel(member=[index]).assign_attrs(variables=wanted)
        table = station_table(truth, setup, index)
        case = Case(states, truth["time"].values, analyses.isel(member=[index]), table)
        for name, method in contest.methods.items():
            rows.append(contest.score(name, index, method(case, members), states))
            if report:
                report(rows[-1])

    return rows


def table(rows: Sequence[Row]) -> str:
    """The means over truths, as a table in Markdown.

    The last two columns are the CRPS relative to that of the last method, and the number of truths
    where it is higher, both averaged over variables.
    """

    names = list(rows[0].rmse)
    best = {row.truth: row for row in rows if row.method == rows[-1].method}
    lines = [
        "| method | " + " | ".join(f"RMSE {n}" for n in names) + " | "
        + " | ".join(f"CRPS {n}" for n in names) + " | spread–skill | CRPS, relative | worse in |",
        "|---" * (2 * len(names) + 4) + "|",
    ]  # fmt: skip
    for method in dict.fromkeys(row.method for row in rows):
        these = [row for row in rows if row.method == method]
        cells_ = [f"{math.sqrt(np.mean([r.rmse[n] ** 2 for r in these])):.3g}" for n in names]
        cells_ += [f"{np.mean([r.crps[n] for r in these]):.3g}" for n in names]
        ratios = [np.mean([r.crps[n] / best[r.truth].crps[n] for n in names]) for r in these]
        skill = np.mean([r.spread_skill for r in these])
        cells_ += ["" if math.isnan(skill) else f"{skill:.2f}", f"{np.mean(ratios):.2f}"]
        cells_ += [f"{sum(r > 1 for r in ratios)} of {len(ratios)}"]
        lines.append(f"| {method} | " + " | ".join(cells_) + " |")

    return "\n".join(lines)
