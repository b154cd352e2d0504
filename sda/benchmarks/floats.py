"""Where floats will be: their positions carried by forecasts from an analysis of the toy ocean.

An altimeter and drifting floats observe a truth for a while. Then each float is where it is known
to be, and every member of a forecast carries all of them on; see `sda.verification.positions`. The
flow is forecast by the engine, by the true model from the engine's analysis, or held as it was.
"""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import numpy as np
import xarray as xr

from ..assimilation import assimilate
from ..forecasting import forecast
from ..model_forecast import forecast_by_model
from ..prior import Prior
from ..verification.positions import carried, position_scores
from .forecast import CASES, SEED, held, preset

METHODS = ("not moved", "flow held", "engine", "analysis + model")
CASE = "toy_ocean"


@dataclass
class Row:
    """The scores of one method on one truth, see `position_scores`."""

    index: int
    method: str
    scores: xr.Dataset


def run(
    index: int, prior: Prior | None = None, members: int | None = None, lead: int | None = None
) -> Iterator[Row]:
    """Forecasts the floats of one truth by each method.

    Arguments:
        index: The number of the truth.
        prior: The prior (default: the shipped one of the toy ocean).
        members: The number of members, if not the case's.
        lead: The number of states to forecast, if not the case's.
    """

    from ..observing import Floats

    case = CASES[CASE]
    system, prior = case.system(), prior or Prior.load(case.prior)
    members, lead = members or case.members, lead or case.lead
    whole = system.simulate(
        1, case.length + lead, spinup=case.spinup, seed=SEED + index, progress=False
    ).isel(member=0)
    past, future = whole.isel(time=slice(None, case.length)), slice(case.length - 1, None)
    options = {k: v for k, v in preset("observing", "floats").items() if k != "generator"}
    floats = Floats(**options)
    _, tracks = floats.tracks(whole, system.layout)
    truth, time = tracks[future], whole["time"].values[future] - past["time"].values[-1]
    analysis = assimilate(
        prior, case.observe(past, SEED + index), members, index, time=past["time"], **case.options
    )
    last = analysis.isel(time=[-1])
    for method in METHODS:
        if method == "not moved":
            positions = np.broadcast_to(truth[0], (2, *truth.shape))
        else:
            flows = {
                "flow held": lambda: held(analysis, whole.isel(time=slice(case.length, None))),
                "engine": lambda: forecast(prior, analysis, lead, seed=index),
                "analysis + model": lambda: forecast_by_model(system, analysis, lead, seed=index),
            }
            names = list(system.layout.variables)
            flow = xr.concat(
                [part[names].transpose("member", "time", ...) for part in (last, flows[method]())],
                "time", coords="minimal", compat="override", join="override",
            )  # fmt: skip
            flow = whole_members(flow)
            positions = carried(flow, truth[0], floats.drift, floats.current, system.layout)
        yield Row(index, method, position_scores(positions, truth, system.layout, time))


def whole_members(flow: xr.Dataset) -> xr.Dataset:
    """Those members of which no state is missing: one that failed would carry nothing anywhere."""

    finite = [
        flow[name].notnull().all([d for d in flow[name].dims if d != "member"])
        for name in flow.data_vars
    ]

    return flow.isel(member=np.logical_and.reduce(finite))


def table(rows: Sequence[Row], leads: Sequence[int] | None = None) -> str:
    """A Markdown table of the means over truths, by lead: energy score, and in brackets how far
    members are from each other over how far they are from the truth (1 if calibrated)."""

    leads = leads or CASES[CASE].leads
    truths = len({row.index for row in rows})
    units = rows[0].scores["distance"].attrs["units"]
    lines = [f"\nPositions of floats, {truths} truths: energy score in {units} (dispersion over "
             f"distance) by lead, in states\n"]  # fmt: skip
    lines += ["| method | " + " | ".join(map(str, leads)) + " |"]
    lines += ["|" + "---|" * (len(leads) + 1)]
    for method in dict.fromkeys(row.method for row in rows):
        own = [row.scores for row in rows if row.method == method]
        mean = {n: np.mean([s[n].values for s in own], axis=0) for n in own[0].data_vars}
        cells = [
            f"{mean['energy_score'][i]:.1f} ({mean['dispersion'][i] / mean['distance'][i]:.2f})"
            for i in leads
        ]
        lines += [f"| {method} | " + " | ".join(cells) + " |"]

    return "\n".join(lines)
