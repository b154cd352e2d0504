"""What the figures share: their size, their axes, and labels that do not cover each other."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from matplotlib.axes import Axes
from matplotlib.axis import Axis
from matplotlib.figure import Figure
from matplotlib.text import Text
from matplotlib.ticker import FuncFormatter, LogLocator, NullFormatter
from matplotlib.transforms import Bbox
from numpy.typing import NDArray

from ..plotting.style import new_figure
from .markup import Markup
from .results import Method, Results, as_float
from .svg import GREY, INK, mark, plain


@dataclass(frozen=True)
class Drawing:
    """A figure of the page, or one panel of several.

    Attributes:
        svg: The figure.
        title: Its heading.
        caption: What it shows and how to read it.
        method: The method that it is of, None if it is of several.
    """

    svg: Markup
    title: str
    caption: str = ""
    method: Method | None = None


def panel(width: float = 2.7, height: float = 1.75, left: float = 0.4) -> tuple[Figure, Axes]:
    """One of several small figures.

    Its margins are fixed, so that panels side by side line up; `left` is that of the labels of y,
    in inches.
    """

    figure = new_figure(width, height)
    figure.set_layout_engine("none")
    box = (left / width, 0.4 / height, 1 - (left + 0.1) / width, 1 - 0.5 / height)

    return figure, figure.add_axes(box)


def legend(figure: Figure, axes: Axes, columns: int = 2) -> None:
    """A legend below the axes."""

    handles, labels = axes.get_legend_handles_labels()
    if handles:
        figure.legend(handles, labels, loc="outside lower center", ncols=columns)


def wide(values: Sequence[float] | NDArray) -> bool:
    """Whether values are positive and span so much that a logarithmic axis serves them better."""

    seen = np.asarray(values, dtype=np.float64)
    seen = seen[np.isfinite(seen)]

    return bool(len(seen) and seen.min() > 0 and seen.max() > 6 * seen.min())


def numbers(axis: Axis) -> None:
    """Labels a logarithmic axis with plain numbers, between decades too if there are few of them.

    Where they would be long, powers of ten stay.
    """

    low, high = axis.get_view_interval()
    decades = np.log10(max(high, 1e-300) / max(low, 1e-300))
    axis.set_minor_formatter(NullFormatter())
    if low < 1e-4 or high > 1e5:
        return
    subs = (1.0, 2.0, 5.0) if decades < 2.5 else (1.0,)
    axis.set_major_locator(LogLocator(subs=subs))
    axis.set_major_formatter(FuncFormatter(lambda value, _: f"{value:g}"))


def ends(values: NDArray) -> tuple[float, float]:
    """The first and the last value, apart."""

    low, high = float(values[0]), float(values[-1])

    return (low, high) if high > low else (low - 0.5, high + 0.5)


def burn_in(axes: Axes, results: Results) -> bool:
    """Marks the end of burn-in, if it lies within the axes; scores are averages after it."""

    end = as_float(results.attribute("burn_in"))
    low, high = axes.get_xlim()
    inside = bool(low < end < high)
    if inside:
        axes.axvline(end, color=INK, lw=0.8, ls=(0, (3, 2)))

    return inside


def units(results: Results, dim: str) -> str:
    """The label of a dimension's axis."""

    known = results.dataset[dim].attrs.get("units", "") if dim in results.dataset.coords else ""
    name = dim.removeprefix("case_")

    return f"{name} [{known}]" if known not in ("", "1") else name


def place_labels(figure: Figure, axes: Axes, points: Sequence[tuple[Method, float, float]]) -> None:
    """Writes the name of each method beside its point, where it covers no other if possible."""

    # In points from the marker, near ones first, with how the text is aligned to that.
    places = [
        (dx * reach, dy * reach, horizontal, vertical)
        for reach in (1.0, 2.2, 3.6)
        for dx, dy, horizontal, vertical in (
            (7, 0, "left", "center_baseline"),
            (-7, 0, "right", "center_baseline"),
            (0, 7, "center", "bottom"),
            (0, -7, "center", "top"),
            (5, 5, "left", "bottom"),
            (5, -5, "left", "top"),
            (-5, 5, "right", "bottom"),
            (-5, -5, "right", "top"),
        )
    ]
    figure.canvas.draw()
    frame = axes.get_window_extent()
    radius = 4 * figure.dpi / 72
    centres = [axes.transData.transform((x, y)) for _, x, y in points]
    taken = [Bbox.from_extents(*(p - radius), *(p + radius)) for p in centres]
    for i, (method, x, y) in enumerate(points):
        line = {"arrowstyle": "-", "lw": 0.5, "color": GREY, "shrinkA": 0, "shrinkB": 2}
        text = axes.annotate(
            plain(method.label),
            (x, y),
            (7, 0),
            textcoords="offset points",
            fontsize=7.5,
            arrowprops=line,
        )
        text.set_in_layout(False)
        mark(method, text)

        def penalty(place: tuple[float, float, str, str], i: int = i, text: Any = text) -> int:
            box = extent(text, place)
            overlaps = sum(box.overlaps(other) for j, other in enumerate(taken) if j != i)
            inside = frame.x0 <= box.x0 and box.x1 <= frame.x1
            inside &= frame.y0 <= box.y0 and box.y1 <= frame.y1

            return overlaps + 3 * (not inside)

        chosen = min(places, key=penalty)
        taken.append(extent(text, chosen))
        if text.arrow_patch is not None:
            text.arrow_patch.set_visible(max(abs(chosen[0]), abs(chosen[1])) > 7)


def extent(text: Any, place: tuple[float, float, str, str]) -> Bbox:
    """Moves a label, and tells which pixels it covers."""

    text.set_position(place[:2])
    text.set(horizontalalignment=place[2], verticalalignment=place[3])
    renderer = text.figure.canvas.get_renderer()
    text.update_positions(renderer)

    return Text.get_window_extent(text, renderer)
