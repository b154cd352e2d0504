"""The look of all figures.

Truth is black, the ensemble blue, observations orange (Okabe & Ito's colours, which all eyes tell
apart); fields that have a sign have a diverging map that is symmetric about zero.
"""

from collections.abc import Callable
from functools import wraps
from typing import Any, ParamSpec

import matplotlib
import numpy as np
import xarray as xr
from matplotlib.axes import Axes
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure

TRUTH, ENSEMBLE, OBSERVED, CALIBRATED = "#000000", "#0072B2", "#D55E00", "#9A9A9A"

VARIABLES = ("#0072B2", "#D55E00", "#009E73", "#CC79A7", "#E69F00", "#56B4E9")

STYLE: dict[Any, Any] = {
    "font.size": 8,
    "axes.titlesize": 8,
    "axes.labelsize": 8,
    "axes.linewidth": 0.6,
    "axes.spines.top": False,
    "axes.spines.right": False,
    "xtick.labelsize": 7,
    "ytick.labelsize": 7,
    "xtick.major.width": 0.6,
    "ytick.major.width": 0.6,
    "legend.fontsize": 7,
    "legend.frameon": False,
    "lines.linewidth": 1.2,
    "figure.dpi": 150,
    "savefig.dpi": 200,
    "figure.constrained_layout.use": True,
    "image.interpolation": "nearest",
}

P = ParamSpec("P")


def styled(draw: Callable[P, Figure]) -> Callable[P, Figure]:
    """Draws with the style of this module, and leaves matplotlib's settings as they were."""

    @wraps(draw)
    def wrapper(*args: P.args, **kwargs: P.kwargs) -> Figure:
        with matplotlib.rc_context(STYLE):
            figure = draw(*args, **kwargs)
            figure.canvas.draw()
        return figure

    return wrapper


def new_figure(width: float, height: float) -> Figure:
    """A figure of a size in inches that needs no display."""

    figure = Figure(figsize=(width, height), layout="constrained")
    FigureCanvasAgg(figure)

    return figure


def limits(*fields: Any) -> tuple[float, float, str]:
    """Shared colour limits and a map: diverging about zero where the values have both signs."""

    values = np.concatenate([np.asarray(f).ravel() for f in fields])
    values = values[np.isfinite(values)]
    low, high = np.quantile(values, [0.002, 0.998]) if len(values) else (0.0, 1.0)
    if low < 0 < high and min(-low, high) > 0.1 * max(-low, high):
        reach = max(-low, high)
        return -reach, reach, "RdBu_r"

    return (low, high, "viridis") if high > low else (low - 0.5, low + 0.5, "viridis")


def label(field: xr.DataArray, of: Any = None) -> str:
    """The name and units of a variable."""

    units = str(field.attrs.get("units", "1"))
    name = str(of or field.attrs.get("long_name", field.name))

    return name if units in ("", "1") else f"{name} [{units}]"


def frame_axes(axes: Axes) -> None:
    """A thin frame without ticks."""

    axes.set_xticks([])
    axes.set_yticks([])
    for spine in axes.spines.values():
        spine.set_visible(True)
        spine.set_linewidth(0.4)
