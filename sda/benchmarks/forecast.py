"""Forecasts by lead time, against the numerical model that made the truth.

A truth is observed for a while; all methods forecast what follows from the same observations. The
reference for Lorenz-63 is the true stochastic model, started from the ensemble of a particle filter
that has converged: no forecast can be better. Where there is no such filter, the true model starts
from the engine's own analysis: what is worse than that is the prior's dynamics alone.

All scores are in units of the climatological standard deviation, averaged over variables, space and
truths: CRPS (fair), the RMSE of the ensemble mean, and the spread, which a calibrated ensemble of M
members has √(M / (M + 1)) times the size of the RMSE.
"""

import functools
import math
import operator
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import torch
import xarray as xr
import yaml

from dynamics import KolmogorovFlow, Lorenz63, Lorenz96
from dynamics.system import System

from ..assimilation import assimilate
from ..forecasting import forecast
from ..model_forecast import forecast_by_model
from ..prior import Prior

SEED = 4041
METHODS = (
    "climatology", "persistence", "engine", "analysis + model", "filter + model",
)  # fmt: skip


@dataclass(frozen=True)
class Case:
    """A system, how it is observed, and how far it is forecast.

    Attributes:
        system: What makes the system.
        prior: The name of the shipped prior.
        observing: The observation operator: a mapping of the group `observing`.
        std: The standard deviation of the errors.
        length: The number of states that are observed.
        lead: The number of states that are forecast.
        leads: Those that are shown.
        members: The number of members.
        spinup: The number of states before the first of a truth.
        particles: The number of particles of the filter, or none: there is no filter.
        options: Options of `sda.assimilate` for the analysis.
        instruments: Observing systems in place of an operator, each as in `configs/observing` but
            for what is given.
    """

    system: Callable[[], System]
    prior: str
    observing: Callable[[], Any] | None
    std: float
    length: int
    lead: int
    leads: tuple[int, ...]
    members: int
    spinup: int
    particles: int | None = None
    options: Mapping[str, Any] = field(default_factory=dict)
    instruments: tuple[Mapping[str, Any], ...] = ()

    def observe(self, past: xr.Dataset, seed: int) -> Any:
        """Observes a truth: through the operator, or by all instruments."""

        from ..observation import observe
        from ..observing import generate

        if self.observing is not None:
            return observe(past, self.observing(), std=self.std, seed=seed)
        seen = [
            generate(preset("observing", given["generator"]) | dict(given), past, seed + k)
            for k, given in enumerate(self.instruments)
        ]

        return functools.reduce(operator.add, seen)


def preset(group: str, name: str) -> dict[str, Any]:
    """What a file in `configs` holds."""

    from ..config import folder

    return dict(yaml.safe_load((folder() / group / f"{name}.yaml").read_text(encoding="utf-8")))


def _toy(name: str) -> System:
    from ..config import build_system

    return build_system(preset("system", name))


def _first_variable() -> Any:
    from ..observation import Select

    return Select(variables=["x"], every=8)


def _second_sites() -> Any:
    from ..observation import Select, Subsample

    return Select(every=4) >> Subsample({"site": 2})


def _blocks() -> Any:
    from ..observation import BlockAverage, Select

    return Select(every=4) >> BlockAverage(8)


CASES = {
    "lorenz63": Case(
        lambda: Lorenz63(dt=0.025, noise=True), "lorenz63", _first_variable, 0.4, 129, 120,
        (1, 5, 10, 20, 40, 80, 120), 128, 1024, 16384,
    ),
    "lorenz96": Case(
        lambda: Lorenz96(noise=True), "lorenz96", _second_sites, 1.0, 65, 80,
        (1, 5, 10, 20, 40, 60, 80), 32, 512,
    ),
    "kolmogorov": Case(
        lambda: KolmogorovFlow(size=32), "kolmogorov", _blocks, 0.1, 33, 40,
        (1, 5, 10, 20, 30, 40), 16, 64,
    ),
    # Ten days of states every 6 hours, after three days of stations and a satellite.
    "toy_weather": Case(
        lambda: _toy("toy_weather"), "toy-weather", None, math.nan, 13, 40,
        (1, 4, 8, 12, 20, 40), 32, 480,
        instruments=(
            {"generator": "stations", "interval": 12.0},
            {"generator": "swath", "spacing": 1300.0},
        ),
    ),
    # Days, after twenty of them with an altimeter and floats.
    "toy_ocean": Case(
        lambda: _toy("toy_ocean"), "toy-ocean", None, math.nan, 21, 40,
        (1, 5, 10, 20, 30, 40), 32, 300,
        instruments=({"generator": "altimeter"}, {"generator": "floats"}),
    ),
}  # fmt: skip


@dataclass
class Row:
    """The scores of one method on one truth, each by lead time `(lead)`.

    Attributes:
        energy: The members' spectral energy over the truth's own over all leads, with shape
            `(lead, wavenumber)`, for periodic fields.
    """

    case: str
    index: int
    method: str
    crps: np.ndarray
    rmse: np.ndarray
    spread: np.ndarray
    energy: np.ndarray | None
    seconds: float


def run(
    name: str, index: int, methods: Sequence[str] = METHODS, members: int | None = None
) -> Iterator[Row]:
    """Forecasts one truth by each method.

    Arguments:
        name: The case.
        index: The number of the truth.
        methods: The methods.
        members: The number of members, if not the case's.
    """

    case = CASES[name]
    system, prior = case.system(), Prior.load(case.prior)
    members = members or case.members
    whole = system.simulate(
        1, case.length + case.lead, spinup=case.spinup, seed=SEED + index, progress=False
    ).isel(member=0)
    past = whole.isel(time=slice(None, case.length))
    truth = whole.isel(time=slice(case.length, None))
    observations = case.observe(past, SEED + index)
    until = past["time"]
    analysis: xr.Dataset | None = None
    for method in methods:
        began = time.perf_counter()
        if method == "climatology":
            pool = system.simulate(
                members, 1, spinup=case.spinup, seed=SEED - 1 - index, progress=False
            )
            result = held(pool, truth)
        elif method == "filter + model":
            if case.particles is None:
                continue
            result = from_filter(system, observations, until, case, members, index)
        else:
            if analysis is None:
                analysis = assimilate(
                    prior, observations, members, index, time=until, **case.options
                )
                began = time.perf_counter()
            if method == "persistence":
                result = held(analysis, truth)
            elif method == "engine":
                result = forecast(prior, analysis, case.lead, seed=index)
            else:
                result = forecast_by_model(system, analysis, case.lead, seed=index)
        seconds = time.perf_counter() - began
        yield score(name, index, method, result, truth, prior, seconds)


def from_filter(
    system: System, observations: Any, until: xr.DataArray, case: Case, members: int, index: int
) -> xr.Dataset:
    """The model's forecast from a particle filter's ensemble."""

    from ..classical import ParticleFilter

    assert case.particles is not None  # the caller has asked
    posterior = ParticleFilter(system, members=case.particles).assimilate(
        observations, seed=index, time=until
    )
    # Copies of a particle are next to each other.
    every = slice(0, None, case.particles // members)
    start = posterior.isel(time=[-1], member=every).isel(member=slice(0, members))

    return forecast_by_model(system, start, case.lead, seed=index)


def held(states: xr.Dataset, truth: xr.Dataset) -> xr.Dataset:
    """The last states of an ensemble, at all times of the truth."""

    last = states.isel(time=-1).drop_vars("time", errors="ignore")
    names = [str(name) for name in states.data_vars]

    return last[names].expand_dims(time=truth["time"].values, axis=1)


def score(
    name: str,
    index: int,
    method: str,
    result: xr.Dataset,
    truth: xr.Dataset,
    prior: Prior,
    seconds: float,
) -> Row:
    """Scores a forecast by lead time."""

    layout, climatology = prior.layout, prior.climatology
    both = [
        climatology.normalise(torch.from_numpy(layout.to_array(each)).double()).numpy()
        for each in (result, truth)
    ]
    x, y = both[0], both[1][0]
    area = layout.area / layout.area.sum()

    def mean(values: np.ndarray) -> np.ndarray:
        # Over space by the areas of cells, then over variables.
        return (area * values).sum(axis=tuple(range(2, values.ndim))).mean(axis=1)

    ordered = np.sort(x, axis=0)
    m = len(x)
    # The mean distance of distinct pairs, from the order statistics.
    weight = (2 * np.arange(1, m + 1) - m - 1) / (m * (m - 1))
    pairs = 2 * np.tensordot(weight, ordered, axes=1)
    crps = np.abs(x - y).mean(axis=0) - pairs / 2

    return Row(
        name, index, method,
        mean(crps),
        np.sqrt(mean((x.mean(axis=0) - y) ** 2)),
        np.sqrt(mean(x.var(axis=0, ddof=1))),
        energy(x, y) if len(layout.dims) == 2 and all(layout.periodic) else None,
        seconds,
    )  # fmt: skip


def energy(x: np.ndarray, y: np.ndarray) -> np.ndarray:
    """The energy of members `(member, time, channel, y, x)` over the truth's, by wavenumber."""

    def spectrum(z: np.ndarray) -> np.ndarray:
        power = (np.abs(np.fft.fft2(z, norm="forward")) ** 2).sum(axis=-3)
        size = z.shape[-1]
        k = np.fft.fftfreq(size, 1 / size)
        shell = np.rint(np.hypot(k[:, None], k)).astype(int).ravel()
        flat = power.reshape(*power.shape[:-2], -1)
        return np.stack([flat[..., shell == i].sum(axis=-1) for i in range(1, size // 2)], axis=-1)

    return spectrum(x).mean(axis=0) / spectrum(y).mean(axis=0)


def table(rows: Sequence[Row]) -> str:
    """A Markdown table of the means over truths: CRPS, and spread over RMSE, by lead."""

    lines = []
    for name in dict.fromkeys(row.case for row in rows):
        case = CASES[name]
        mine = [row for row in rows if row.case == name]
        truths = len({row.index for row in mine})
        lines += [f"\n{name}, {truths} truths: CRPS (spread / RMSE) by lead, in steps\n"]
        lines += ["| method | " + " | ".join(map(str, case.leads)) + " | s a truth |"]
        lines += ["|" + "---|" * (len(case.leads) + 2)]
        for method in dict.fromkeys(row.method for row in mine):
            own = [row for row in mine if row.method == method]
            crps = np.mean([row.crps for row in own], axis=0)
            rmse = np.sqrt(np.mean([row.rmse**2 for row in own], axis=0))
            spread = np.sqrt(np.mean([row.spread**2 for row in own], axis=0))
            m = case.members
            ratio = spread * math.sqrt((m + 1) / m) / rmse
            cells = [f"{crps[i - 1]:.3f} ({ratio[i - 1]:.2f})" for i in case.leads]
            seconds = np.mean([row.seconds for row in own])
            lines += [f"| {method} | " + " | ".join(cells) + f" | {seconds:.0f} |"]
        spectral = [row for row in mine if row.energy is not None and row.method != "persistence"]
        if spectral:
            bands = ((1, 3), (4, 7), (8, 12))
            lines += ["\nenergy over the truth's at wavenumbers 1–3, 4–7, 8–12\n"]
            lines += ["| method | " + " | ".join(map(str, case.leads)) + " |"]
            lines += ["|" + "---|" * (len(case.leads) + 1)]
            for method in dict.fromkeys(row.method for row in spectral):
                own_energy = [r.energy for r in spectral if r.method == method]
                ratios = np.mean([e for e in own_energy if e is not None], axis=0)
                cells = [
                    ", ".join(f"{ratios[i - 1, a - 1 : b].mean():.2f}" for a, b in bands)
                    for i in case.leads
                ]
                lines += [f"| {method} | " + " | ".join(cells) + " |"]

    return "\n".join(lines)


def enstrophy(dataset: xr.Dataset) -> np.ndarray:
    """Half the mean squared vorticity of velocities `u`, `v` on a square, `(member, time)`."""

    u, v = (dataset[name].transpose("member", "time", "y", "x").values for name in ("u", "v"))
    size = u.shape[-1]
    k = np.fft.fftfreq(size, 1 / size)
    w = 1j * (k * np.fft.fft2(v) - k[:, None] * np.fft.fft2(u))

    return (np.fft.ifft2(w).real ** 2).mean(axis=(-2, -1)) / 2
