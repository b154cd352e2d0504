"""Figures and animations of ensembles and of their scores.

Every `plot_…` returns a figure, `matplotlib.figure.Figure`, and leaves all else alone: nothing is
shown, no display is needed and matplotlib's settings are as before. `draw` picks what fits an
ensemble and writes it to a file.
"""

from .animation import animate
from .automatic import draw
from .fields import plot_fields
from .files import save
from .maps import plot_maps, plot_spaghetti, plot_stamps
from .scores import plot_coverage, plot_rank_histogram, plot_spectra, plot_spread_skill
from .series import plot_series
from .states import vorticity

__all__ = [
    "animate",
    "draw",
    "plot_coverage",
    "plot_fields",
    "plot_maps",
    "plot_rank_histogram",
    "plot_series",
    "plot_spaghetti",
    "plot_spectra",
    "plot_spread_skill",
    "plot_stamps",
    "save",
    "vorticity",
]
