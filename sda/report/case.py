"""One case: truth, observations, and the mean and the spread of each method.

Fields in the plane are maps; fields over one dimension are drawn against time; what has no space is
a series. All maps share their colours, but for the spreads, which have a scale of their own.
"""

from dataclasses import dataclass
from typing import Any

import numpy as np
import xarray as xr
from matplotlib.cm import ScalarMappable
from matplotlib.colors import Normalize
from matplotlib.figure import Figure
from numpy.typing import NDArray

from ..plotting.states import cell_edges
from ..plotting.style import OBSERVED, frame_axes, label, limits, new_figure
from ..verification.cells import cell_weights
from .axes import Drawing, ends, panel, units
from .results import Method, Results, clean
from .svg import GREY, INK, colour, inline, look, plain

VARIABLE = "case_variable"


@dataclass(frozen=True)
class Group:
    """Drawings that belong together: the mean and the spread of a method.

    Attributes:
        title: Whose they are.
        drawings: The drawings.
        method: The method, None for truth and observations.
    """

    title: str
    drawings: list[Drawing]
    method: Method | None = None


def case(results: Results) -> list[tuple[str, list[Group]]]:
    """The drawings of the case, by variable; empty if the results hold none."""

    data = results.dataset
    if not {"case_truth", "case_mean"} <= {str(name) for name in data.data_vars}:
        return []
    if VARIABLE not in data["case_truth"].dims:
        return [("", of_variable(results, data, "0"))]
    names = (
        [clean(name) for name in data[VARIABLE].values]
        if VARIABLE in data.coords
        else [f"variable {k}" for k in range(data.sizes[VARIABLE])]
    )

    return [
        (name, of_variable(results, data.isel({VARIABLE: k}), str(k)))
        for k, name in enumerate(names)
    ]


def of_variable(results: Results, data: xr.Dataset, key: str) -> list[Group]:
    """The drawings of one variable, in the way that fits its dimensions.

    Raises:
        ValueError: If it has more than two dimensions.
    """

    dims = [str(dim) for dim in data["case_truth"].dims]
    if len(dims) == 1:
        return series(results, data, dims[0], key)
    if len(dims) == 2:
        # Time goes up, as in the figures of `sda.plotting`.
        rows, columns = sorted(dims, key=lambda dim: "time" not in dim) if "y" not in dims else dims
        return maps(results, data.transpose(..., rows, columns), (rows, columns), key)
    raise ValueError(
        f"a case is a series, a map or a field in time, got the dimensions {dims}: "
        f"select the others before storing it"
    )


def fields(results: Results, data: xr.Dataset, name: str) -> dict[int, NDArray]:
    """A field of each method that has one."""

    if name not in data or "method" not in data[name].dims:
        return {}
    kept = {
        m.index: np.asarray(data[name].isel(method=m.index).values, dtype=np.float64)
        for m in results.methods
    }

    return {i: values for i, values in kept.items() if np.isfinite(values).any()}


def maps(results: Results, data: xr.Dataset, dims: tuple[str, str], key: str) -> list[Group]:
    """Maps: truth, observations, and the mean and spread of each method."""

    truth = np.asarray(data["case_truth"].values, dtype=np.float64)
    means, spreads = fields(results, data, "case_mean"), fields(results, data, "case_spread")
    area = np.where(np.isfinite(truth), cell_weights(data, dims), 0.0)
    area = area / max(float(area.sum()), 1e-30)
    low, high, colours = limits(truth)
    shared = {"vmin": low, "vmax": high, "cmap": colours}
    tops = [np.nanquantile(values, 0.995) for values in spreads.values()]
    # The widest spread may be that of a method that knows nothing: it must not darken the others.
    top = float(np.median(tops)) * 1.5 if tops else 1.0
    own = {"vmin": 0.0, "vmax": top or 1.0, "cmap": "magma"}
    edges = [
        cell_edges(np.asarray(data[dim].values, dtype=np.float64))
        if dim in data.coords
        else np.arange(data.sizes[dim] + 1.0)
        for dim in dims
    ]
    extent = (edges[1][0], edges[1][-1], edges[0][0], edges[0][-1])
    names = units(results, dims[0]), units(results, dims[1])

    def draw(values: NDArray, scale: dict[str, Any], name: str, title: str) -> Drawing:
        with look():
            figure = map_panel(values, scale, extent, names)
            seen = values[np.isfinite(values)]
            words = f"Values from {seen.min():.3g} to {seen.max():.3g}" if len(seen) else "Nothing"
            return Drawing(inline(figure, f"case-{key}-{name}", title, words), title)

    first = [draw(truth, shared, "truth", "truth")]
    if "case_observed" in data and np.isfinite(data["case_observed"]).any():
        first.append(draw(data["case_observed"].values, shared, "observed", "observations"))
    groups = [Group("Truth and observations" if len(first) > 1 else "Truth", first)]
    for method in results.methods:
        i, pair = method.index, []
        if i in means:
            rms = np.sqrt(np.nansum(area * (means[i] - truth) ** 2))
            pair.append(draw(means[i], shared, f"mean-{i}", f"mean, RMSE {rms:.3g}"))
        if i in spreads:
            rms = np.sqrt(np.nansum(area * spreads[i] ** 2))
            pair.append(draw(spreads[i], own, f"spread-{i}", f"spread, {rms:.3g}"))
        if pair:
            groups.append(Group(method.label, pair, method))
    name = variable(data)
    groups.insert(1, Group("Colours", bars(name, shared, own, f"case-{key}")))

    return groups


def variable(data: xr.Dataset) -> str:
    """What the case is of, with its units."""

    return plain(
        label(data["case_truth"], clean(data["case_truth"].attrs.get("long_name", "value")))
    )


def map_panel(
    values: NDArray,
    scale: dict[str, Any],
    extent: tuple[float, float, float, float],
    names: tuple[str, str],
) -> Figure:
    """One map, without ticks where both axes are space."""

    plane = not any("time" in name for name in names)
    aspect = (extent[3] - extent[2]) / (extent[1] - extent[0]) if plane else 1.0
    height = 1.9 * float(np.clip(aspect, 0.3, 2))
    if plane:
        figure = new_figure(1.9, height)
        figure.set_layout_engine("none")
        axes = figure.add_axes((0.01, 0.01, 0.98, 0.98))
    else:
        figure, axes = panel(1.9, height + 0.3)
    axes.grid(visible=False)
    # What was not observed shows the page through.
    axes.imshow(values, origin="lower", extent=extent, aspect="equal" if plane else "auto", **scale)
    if plane:
        frame_axes(axes)
    else:
        axes.set(xlabel=names[1], ylabel=names[0])

    return figure


def bars(name: str, shared: dict[str, Any], own: dict[str, Any], key: str) -> list[Drawing]:
    """The two colour bars."""

    drawings = []
    for scale, title, extend in ((shared, name, "both"), (own, "spread", "max")):
        with look():
            figure = new_figure(1.9, 0.5)
            colours = ScalarMappable(Normalize(scale["vmin"], scale["vmax"]), scale["cmap"])
            bar = figure.colorbar(
                colours, cax=figure.subplots(), orientation="horizontal", extend=extend
            )
            bar.outline.set_linewidth(0.5)
            words = f"From {scale['vmin']:.3g} to {scale['vmax']:.3g}"
            svg = inline(figure, f"{key}-{extend}", f"Colours of {title}", words)
        drawings.append(Drawing(svg, title))

    return drawings


def series(results: Results, data: xr.Dataset, dim: str, key: str) -> list[Group]:
    """Series: truth and observations, with the mean and twice the spread of each method."""

    time = (
        np.asarray(data[dim].values, dtype=np.float64)
        if dim in data.coords
        else np.arange(float(data.sizes[dim]))
    )
    truth = np.asarray(data["case_truth"].values, dtype=np.float64)
    observed = data["case_observed"].values if "case_observed" in data else truth * np.nan
    means, spreads = fields(results, data, "case_mean"), fields(results, data, "case_spread")
    low, high = float(np.nanmin(truth)), float(np.nanmax(truth))
    margin = 0.15 * (high - low or 1.0)
    groups = []
    for method in results.methods:
        i = method.index
        if i not in means:
            continue
        with look():
            figure, axes = panel(3.6, 1.9, 0.55)
            if i in spreads:
                band = means[i] - 2 * spreads[i], means[i] + 2 * spreads[i]
                axes.fill_between(time, *band, color=colour(method), alpha=0.25, lw=0)
            axes.plot(time, truth, color=INK, lw=0.9, label="truth")
            axes.plot(time, means[i], color=colour(method), lw=1.3, label="mean ± 2 spread")
            axes.plot(
                time, observed, "o", ms=2.6, color=OBSERVED, mec=GREY, mew=0.3, label="observations"
            )
            axes.set_xlim(*ends(time))
            axes.set_ylim(low - margin, high + 2 * margin)
            axes.set(xlabel=units(results, dim), ylabel=variable(data))
            axes.legend(loc="upper center", ncols=3, borderaxespad=0.1, columnspacing=1)
            rms = np.sqrt(np.nanmean((means[i] - truth) ** 2))
            words = f"The mean is {rms:.3g} from the truth in the root mean square"
            svg = inline(figure, f"case-{key}-{i}", f"{method.label}: one case", words)
        title = f"{method.label}: RMSE {rms:.3g}"
        groups.append(Group(title, [Drawing(svg, title, method=method)], method))

    return groups
