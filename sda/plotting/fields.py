"""Fields side by side."""

from collections.abc import Sequence
from typing import Any

import numpy as np
import xarray as xr
from matplotlib.figure import Figure
from numpy.typing import NDArray

from .observed import Seen, forms
from .states import (
    at_times,
    cell_edges,
    default_variable,
    domain,
    pick,
    prepare,
    spatial_dims,
    time_index,
)
from .style import frame_axes, label, limits, new_figure, styled


@styled
def plot_fields(
    posterior: xr.Dataset,
    truth: xr.Dataset | None = None,
    observations: Any = None,
    variable: str | None = None,
    times: Sequence[float] | None = None,
    members: int = 3,
) -> Figure:
    """Draws fields side by side, a row for each time: truth, observations, mean, members, spread.

    Fields share their colours, observations included where they are of the same kind. Where states
    have one spatial dimension, time is the other and there is one row.

    Arguments:
        posterior: The ensemble, with dimensions `(member, time, [y,] x)`.
        truth: The truth, without members or with one.
        observations: `sda.Observations`, or one of its file forms (a dataset, or a table).
        variable: A variable, or "vorticity" of `u` and `v` (default: vorticity where there is one,
            else the first variable).
        times: The times (default: three; of observations, if there are any).
        members: The number of members to draw.

    Raises:
        ValueError: If there is no such variable or time, or states have no or three dimensions.
    """

    posterior, truth = prepare(posterior, truth)
    variable = variable or default_variable(posterior)
    dims = spatial_dims(posterior)
    if len(dims) == 1:
        return hovmoller(posterior, truth, observations, variable, dims[0], members)
    if set(dims) != {"y", "x"}:
        raise ValueError(
            f"fields are drawn over (y, x) or one dimension, got {dims}: "
            f"{'use plot_series' if not dims else 'select the others'}"
        )
    seen = None if observations is None else Seen(observations, variable, posterior)
    chosen = default_times(posterior, seen) if times is None else np.asarray(times)
    chosen_posterior = posterior.isel(time=time_index(posterior, chosen))
    x = pick(chosen_posterior.compute(), variable).transpose("member", "time", "y", "x")
    count = min(members, x.sizes["member"])
    y = None
    if truth is not None:
        y = pick(truth.isel(time=time_index(truth, chosen)), variable).transpose("time", "y", "x")

    vmin, vmax, cmap = limits(x if y is None else y)
    norm = {"vmin": vmin, "vmax": vmax, "cmap": cmap}
    spread = x.std("member", ddof=1) if x.sizes["member"] > 1 else None
    panels: list[tuple[str, Any, dict[str, Any]]] = []
    if y is not None:
        panels.append(("truth", y, norm))
    if seen is not None:
        panels.append((seen.title, seen, norm))
    if x.sizes["member"] > 1:
        panels.append(("ensemble mean", x.mean("member"), norm))
    panels += [(f"member {int(x['member'][m])}", x.isel(member=m), norm) for m in range(count)]
    if spread is not None:
        top = float(np.quantile(spread, 0.998)) or 1.0
        panels.append(("spread", spread, {"vmin": 0.0, "vmax": top, "cmap": "magma"}))

    extent = domain(posterior)
    aspect = (extent[3] - extent[2]) / (extent[1] - extent[0])
    figure = new_figure(1.3 * len(panels) + 1.2, 1.3 * aspect * len(chosen) + 0.35)
    grid = figure.subplots(len(chosen), len(panels), squeeze=False)
    images: dict[str, Any] = {}
    for i, time in enumerate(chosen):
        for axes, (title, content, own) in zip(grid[i], panels, strict=True):
            frame_axes(axes)
            if isinstance(content, Seen):
                if not content.draw(axes, float(time), own, extent):
                    axes.text(0.5, 0.5, "none", transform=axes.transAxes, ha="center", va="center")
                axes.set_aspect("equal")
            else:
                image = axes.imshow(content[i], origin="lower", extent=extent, **own)
                images["spread" if title == "spread" else "field"] = image
            if i == 0:
                axes.set_title(title)
        grid[i, 0].set_ylabel(f"time {time:g}")
    fields = grid[:, :-1] if "spread" in images else grid
    bar = figure.colorbar(images["field"], ax=fields, shrink=0.9, pad=0.01, aspect=30)
    bar.set_label(label(x), labelpad=1)
    bar.outline.set_linewidth(0.5)
    if "spread" in images:
        bar = figure.colorbar(images["spread"], ax=grid[:, -1], shrink=0.9, pad=0.08, aspect=30)
        bar.outline.set_linewidth(0.5)
        bar.set_label(f"spread of {label(x)}")

    return figure


def default_times(posterior: xr.Dataset, seen: Seen | None) -> NDArray:
    """Three times across the trajectory, observed ones if there are any."""

    times = np.asarray(posterior["time"].values, dtype=np.float64)
    if seen is not None:
        step = np.diff(times).min() if len(times) > 1 else 1.0
        gap = np.abs(np.subtract.outer(times, seen.times)).min(axis=1)
        times = times[gap < 1e-3 * step] if (gap < 1e-3 * step).any() else times

    return times[np.unique(np.linspace(0, len(times) - 1, 3).round().astype(int))]


def hovmoller(
    posterior: xr.Dataset,
    truth: xr.Dataset | None,
    observations: Any,
    variable: str,
    dim: str,
    members: int,
) -> Figure:
    """Draws fields over one dimension and time, side by side."""

    x = pick(posterior, variable).compute().transpose("member", "time", dim)
    time, space = np.asarray(x["time"].values, dtype=np.float64), x[dim].values
    y = None if truth is None else pick(truth, variable).transpose("time", dim)
    if y is not None:
        y = at_times(y, time)
    vmin, vmax, cmap = limits(x if y is None else y)
    norm = {"vmin": vmin, "vmax": vmax, "cmap": cmap}
    panels: list[tuple[str, Any]] = [] if y is None else [("truth", y)]
    if observations is not None:
        panels.append(("observations", forms(observations)[1]))
    several = x.sizes["member"] > 1
    if several:
        panels.append(("ensemble mean", x.mean("member")))
    count = min(members, x.sizes["member"])
    panels += [(f"member {int(x['member'][m])}", x.isel(member=m)) for m in range(count)]
    if several:
        panels.append(("spread", x.std("member", ddof=1)))

    figure = new_figure(1.25 * len(panels) + 1.2, 2.8)
    grid = figure.subplots(1, len(panels), sharex=True, sharey=True)
    grid = np.atleast_1d(grid)
    edges = cell_edges(space), cell_edges(time)
    for axes, (title, content) in zip(grid, panels, strict=True):
        axes.set_title(title)
        axes.set_xlabel(dim)
        if title == "observations":
            rows = content[content["variable"] == variable]
            size = np.clip(4000 / max(1, len(rows)), 1, 20)
            axes.set_facecolor("#EDEDED")
            if len(rows):
                axes.scatter(
                    rows[dim], rows["time"], c=rows["observation"], s=size, marker="s", lw=0, **norm
                )
            axes.set_xlim(edges[0][0], edges[0][-1])
            axes.set_ylim(edges[1][0], edges[1][-1])
        elif title == "spread":
            last = axes.pcolormesh(*edges, content.values, vmin=0, cmap="magma")
        else:
            image = axes.pcolormesh(*edges, content.values, **norm)
    grid[0].set_ylabel(label(x["time"], "time"))
    figure.colorbar(image, ax=grid[:-1] if several else grid, pad=0.01, aspect=30).set_label(
        label(x)
    )
    if several:
        figure.colorbar(last, ax=grid[-1], pad=0.03, aspect=30).set_label(f"spread of {label(x)}")

    return figure
