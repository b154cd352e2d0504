"""Results that no benchmark made: what the report must show of them is known.

The numbers look like those of real benchmarks, so that a page made from them looks like a real one.
"""

import json

import numpy as np
import xarray as xr

NAMES = (
    ("climatology", "Climatology", "baseline", 0, 3.6, 3.62, 0.4),
    ("oi", "Optimal interpolation", "baseline", 0, 0.95, 0.962, 0.9),
    ("3dvar", "3D-Var", "classical", 0, 0.41, 0.409, 0.8),
    ("enkf_40", "EnKF N=40", "classical", 0, 0.22, 0.2216, 7.1),
    ("enkf_28", "EnKF N=28", "classical", 0, 0.24, 0.2371, 5.3),
    ("denkf_40", "DEnKF N=40", "classical", 0, 0.18, 0.1792, 6.6),
    ("etkf_24", "ETKF N=24", "classical", 0, 0.18, 0.1775, 4.1),
    ("etkf_24_tuned", "ETKF N=24", "classical", 1, np.nan, 0.1768, 4.2),
    ("letkf_7", "LETKF N=7", "classical", 0, 0.22, 0.2214, 6.9),
    ("letkf_10", "LETKF N=10", "classical", 0, 0.20, 0.1999, 8.3),
    ("pf", "Particle filter N=4000", "classical", 1, np.nan, 1.9, 61.0),
    ("sda", "Score-based (sda)", "score-based", 0, np.nan, 0.1621, 412.0),
)
LEVEL = np.array([0.05, *np.arange(1, 10) / 10, 0.95])


def results(repetitions=3, times=400, bins=20, case="plane", seed=0):
    """Results with all that the contract of `sda.benchmarks` names."""

    rng = np.random.default_rng(seed)
    m, r = len(NAMES), repetitions
    rmse = np.array([n[5] for n in NAMES])[:, None] * (1 + 0.012 * rng.standard_normal((m, r)))
    ratio = np.array([1, 1, 0.9, 0.97, 0.93, 1.02, 1.01, 1.0, 0.95, 1.0, 0.4, 1.04])[:, None]
    ratio = ratio + 0.01 * rng.standard_normal((m, r))
    seconds = np.array([n[6] for n in NAMES])[:, None] * (1 + 0.05 * rng.random((m, r)))
    time = 0.25 * np.arange(times)
    wobble = np.exp(0.25 * rng.standard_normal((m, r, times)))
    start = 1 + 3 * np.exp(-time / 5)
    rmse_time = rmse[..., None] * wobble * start
    spread_time = (
        rmse[..., None]
        * ratio[..., None]
        * start
        * np.exp(0.05 * rng.standard_normal((m, r, times)))
    )
    ranks = (np.arange(bins) + 0.5) / bins - 0.5
    cup = 1 + 12 * (1 - ratio[..., None]) * (ranks**2 - 1 / 12)
    histogram = np.maximum(cup + 0.06 * rng.standard_normal((m, r, bins)), 0.02) / bins
    coverage = LEVEL ** (1 / np.clip(ratio[..., None], 0.3, 2))
    coverage += 0.01 * rng.standard_normal((m, r, 1)) * LEVEL * (1 - LEVEL) * 4
    runs, along = ("method", "repetition"), {}
    along["rmse"] = (runs, rmse)
    along["crps"] = (runs, 0.56 * rmse)
    along["spread"] = (runs, rmse * ratio)
    along["spread_skill"] = (runs, ratio)
    along["bias"] = (runs, 0.004 * rng.standard_normal((m, r)))
    along["misfit"] = (runs, 1 + 0.05 * rng.standard_normal((m, r)))
    along["log_likelihood"] = (runs, np.full((m, r), np.nan))
    along["reliability"] = (runs, np.abs(histogram * bins - 1).mean(-1))
    along["seconds"] = (runs, seconds)
    members = np.array([1, 1, 1, 40, 28, 40, 24, 24, 7, 10, 4000, 64])[:, None]
    along["model_steps"] = (runs, np.where(members > 3, 1000.0 * members, np.nan) * np.ones(r))
    along["evaluations"] = (runs, np.full((m, r), np.nan))
    along["evaluations"][1][-1] = 61.0
    along["memory"] = (runs, 2.0**20 * (180 + 2 * members + rng.random((m, r))))
    along["rmse_time"] = ((*runs, "time"), rmse_time)
    along["spread_time"] = ((*runs, "time"), spread_time)
    along["rank_histogram"] = ((*runs, "bin"), histogram)
    along["coverage"] = ((*runs, "level"), coverage)
    along["diverged"] = (runs, np.zeros((m, r)))
    along["diverged_time"] = (runs, np.full((m, r), np.nan))
    along["finished"] = (runs, np.ones((m, r)))
    for name in ("spread", "spread_skill", "reliability"):
        along[name][1][:3] = np.nan
    for name in ("spread_time", "rank_histogram", "coverage"):
        along[name][1][:3] = np.nan
    # One repetition of the particle filter diverged, and left a number that means nothing.
    if r > 1:
        along["diverged"][1][10, 1] = 1
        along["diverged_time"][1][10, 1] = 33.25
        along["rmse"][1][10, 1] = 1e6
    coords = {
        "method": [n[0] for n in NAMES],
        "repetition": np.arange(r),
        "time": ("time", time),
        "level": LEVEL,
        "bin": (np.arange(bins) + 0.5) / bins,
        "label": ("method", [n[1] for n in NAMES]),
        "kind": ("method", [n[2] for n in NAMES]),
        "tuned": ("method", [n[3] for n in NAMES]),
        "published": ("method", [n[4] for n in NAMES]),
        "parameters": (
            "method",
            [
                json.dumps(
                    {"members": int(n), "inflation": 1.02, "rotation": True, "radius": None}
                    if n > 1
                    else {}
                )
                for n in members[:, 0]
            ],
        ),
    }
    dataset = xr.Dataset(along, coords, attributes(r))
    wavenumber = np.arange(0, 32.0)
    truth = np.maximum(wavenumber, 0.5) ** -3.0 * np.exp(0.1 * rng.standard_normal((r, 32)))
    loss = np.exp(-((wavenumber / 32) ** 2) * 3 * (rmse[..., None] - 0.15))
    dataset["truth_spectrum"] = (("repetition", "wavenumber"), truth)
    dataset["spectrum"] = ((*runs, "wavenumber"), truth * loss)
    dataset = dataset.assign_coords(wavenumber=wavenumber)

    return add_case(dataset, case, rng)


def add_case(dataset, case, rng):
    """Adds one case: fields in the plane, a field over sites in time, or a series."""

    if case is None:
        return dataset
    errors = dataset["rmse"].isel(repetition=0).values
    if case == "plane":
        y, x = (np.arange(32) + 0.5) * np.pi / 16, (np.arange(32) + 0.5) * np.pi / 16
        dims, coords = ("y", "x"), {"y": y, "x": x, "case_time": 12.5}
        truth = sum(
            a * np.sin(k * x + p)[None] * np.cos(l * y + q)[:, None]
            for a, k, l, p, q in zip(
                rng.standard_normal(9),
                rng.integers(1, 6, 9),
                rng.integers(1, 6, 9),
                *rng.random((2, 9)) * 6,
            )
        )
        observed = np.full_like(truth, np.nan)
        observed[::4, ::4] = truth[::4, ::4] + 0.1 * rng.standard_normal((8, 8))
        scale = 0.3
    elif case == "line":
        time, site = 0.25 * np.arange(60), np.arange(40.0)
        dims, coords = ("case_time", "site"), {"case_time": time, "site": site}
        phase = 2 * np.pi * (4 * site[None] / 40 - 0.15 * time[:, None])
        truth = 2.5 + 4 * np.sin(phase) * np.cos(0.3 * time[:, None] + site / 9)
        observed = np.full_like(truth, np.nan)
        observed[:, ::2] = truth[:, ::2] + rng.standard_normal((60, 20))
        scale = 1.0
    else:
        time = 0.25 * np.arange(80)
        dims, coords = ("case_time",), {"case_time": time}
        truth = 10 * np.sin(time) + 4 * np.sin(2.7 * time + 1)
        observed = np.full_like(truth, np.nan)
        observed[::4] = truth[::4] + 1.4 * rng.standard_normal(20)
        scale = 1.0
    noise = rng.standard_normal((len(errors), *truth.shape))
    size = np.clip(scale * errors, 0, 5).reshape(-1, *[1] * truth.ndim)
    means = truth + size * noise
    spreads = np.abs(size * (1 + 0.2 * rng.standard_normal(means.shape)))
    spreads[:3] = np.nan
    dataset["case_truth"] = (dims, truth, {"long_name": "vorticity", "units": "1"})
    dataset["case_observed"] = (dims, observed)
    dataset["case_mean"] = (("method", *dims), means)
    dataset["case_spread"] = (("method", *dims), spreads)

    return dataset.assign_coords(coords)


def attributes(repetitions):
    """The provenance of a benchmark, as strings that a store can hold."""

    return {
        "title": "Lorenz-96, Sakov & Oke (2008)",
        "score": "rmse",
        "burn_in": 20.0,
        "seeds": json.dumps(
            {
                "seed": 7,
                "repetitions": [{"truth": 11 + k, "methods": 101 + k} for k in range(repetitions)],
            }
        ),
        "tuning": json.dumps(
            {
                "etkf_24_tuned": {
                    "parameters": {"inflation": 1.01},
                    "rmse": 0.1771,
                    "trials": [
                        {"parameters": {"inflation": 1.0}, "rmse": None, "cycles": 200},
                        {"parameters": {"inflation": 1.01}, "rmse": 0.1771, "cycles": 200},
                    ],
                    "budget": {"trials": 20, "cycles": 200, "strategy": "grid"},
                    "seconds": 31.4,
                }
            }
        ),
        "experiment": json.dumps(
            {"name": "sakov2008", "source": "Sakov and Oke (2008)", "system": {"sites": 40}}
        ),
        "versions": json.dumps({"sda": "0.1.0", "torch": "2.13.0", "python": "3.11.2"}),
        "machine": json.dumps({"cores": 2, "threads": 1, "processor": "x86_64"}),
        "commands": json.dumps(
            ["sda benchmark experiment=lorenz96_sakov2008 repetitions=3 out=results.zarr"]
        ),
        "notes": json.dumps(["The score-based engine smooths; the filters see the past only."]),
    }
