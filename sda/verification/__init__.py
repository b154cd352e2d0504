r"""Verification: is the ensemble right, and does it know how wrong it is?"""

from .calibration import coverage, rank_histogram, reliability_index
from .evaluate import verify
from .scores import crps, energy_score, spread, spread_skill, wasserstein1
from .spectra import spectrum
from .table import summary

__all__ = [
    "coverage",
    "crps",
    "energy_score",
    "rank_histogram",
    "reliability_index",
    "spectrum",
    "spread",
    "spread_skill",
    "summary",
    "verify",
    "wasserstein1",
]
