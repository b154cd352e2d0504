"""Time series."""

from collections.abc import Sequence
from typing import Any

import numpy as np
import xarray as xr
from matplotlib.figure import Figure
from numpy.typing import NDArray

from .observed import forms
from .states import pick, prepare, spatial_dims
from .style import ENSEMBLE, OBSERVED, TRUTH, label, new_figure, styled


@styled
def plot_series(
    posterior: xr.Dataset,
    truth: xr.Dataset | None = None,
    observations: Any = None,
    variables: Sequence[str] | None = None,
    points: int = 3,
    members: int = 5,
) -> Figure:
    """Draws time series: central intervals of 50 % and 90 %, some members, truth, observations.

    Arguments:
        posterior: The ensemble, with dimensions `(member, time, *space)`.
        truth: The truth, without members or with one.
        observations: `sda.Observations`, or one of its file forms (a dataset, or a table).
        variables: The variables (default: all).
        points: The number of points in space, spread evenly, where states have space.
        members: The number of members to draw as lines.

    Raises:
        ValueError: If there is no such variable.
    """

    posterior, truth = prepare(posterior, truth)
    names = [str(n) for n in posterior.data_vars] if variables is None else list(variables)
    dims = spatial_dims(posterior)
    cells = int(np.prod([posterior.sizes[d] for d in dims], dtype=int)) if dims else 1
    flat = (
        np.unique(np.linspace(0, cells - 1, points + 2).round().astype(int)[1:-1]) if dims else [0]
    )
    rows = []
    for name in names:
        pick(posterior, name)
        for k in flat:
            index = np.unravel_index(k, [posterior.sizes[d] for d in dims]) if dims else ()
            rows.append((name, dict(zip(dims, map(int, index), strict=True))))
    table = None if observations is None else forms(observations)[1]

    figure = new_figure(6.5, 1.25 * len(rows) + 0.5)
    grid = figure.subplots(len(rows), 1, sharex=True, squeeze=False)[:, 0]
    for axes, (name, where) in zip(grid, rows, strict=True):
        x = posterior[name].isel(where).transpose("member", "time").compute()
        time = np.asarray(x["time"].values, dtype=np.float64)
        for p, alpha in ((0.9, 0.18), (0.5, 0.3)):
            low, high = np.quantile(x, [(1 - p) / 2, (1 + p) / 2], axis=0)
            axes.fill_between(time, low, high, color=ENSEMBLE, alpha=alpha, lw=0, label=f"{p:.0%}")
        for m in range(min(members, x.sizes["member"])):
            legend = "members" if m == 0 else None
            axes.plot(time, x[m], color=ENSEMBLE, lw=0.4, alpha=0.8, label=legend)
        if truth is not None:
            reach = slice(None) if len(time) < 2 else within(truth, time)
            y = truth[name].isel(where).isel(time=reach)
            axes.plot(y["time"], y, color=TRUTH, lw=1.1, label="truth")
        if table is not None:
            seen = table[table["variable"] == name]
            for dim, k in where.items():
                if dim in seen:
                    half = 0.51 * float(np.diff(posterior[dim].values).min())
                    near = np.abs(seen[dim] - float(posterior[dim][k])) < half
                    seen = seen[near]
            error = 2 * seen["std"] if "std" in seen else None
            note = "observations" if error is None else "observations (±2 std)"
            look = {"fmt": "o", "ms": 2.5, "lw": 0.7, "color": OBSERVED, "zorder": 4}
            if len(seen):
                axes.errorbar(seen["time"], seen["observation"], error, label=note, **look)
        place = ", ".join(f"{d} = {float(posterior[d][k]):.3g}" for d, k in where.items())
        axes.set_ylabel(label(posterior[name], name) + (f"\n{place}" if place else ""))
        axes.set_xlim(time[0], time[-1])
    grid[-1].set_xlabel(label(posterior["time"], "time"))
    entries = {
        text: handle for axes in grid for handle, text in zip(*axes.get_legend_handles_labels())
    }
    figure.legend(entries.values(), entries.keys(), loc="outside upper center", ncols=len(entries))
    figure.align_ylabels(list(grid))

    return figure


def within(dataset: xr.Dataset, time: NDArray) -> NDArray:
    """The indices of a dataset's times that are within others."""

    known = np.asarray(dataset["time"].values, dtype=np.float64)
    margin = 1e-3 * np.diff(time).min()

    return np.flatnonzero((known >= time[0] - margin) & (known <= time[-1] + margin))
