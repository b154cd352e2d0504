r"""Verification: is the ensemble right, and does it know how wrong it is?"""

from .calibration import coverage, rank_histogram, reliability_index
from .consistency import log_likelihood, log_transitions
from .evaluate import verify
from .innovations import desroziers, innovation_statistics
from .joint import expected_coverage
from .scores import bias, crps, energy_score, rmse, spread, spread_skill, wasserstein1
from .spectra import coherence, spectrum
from .table import summary
from .two_sample import mmd
from .variogram import variogram_score

__all__ = [
    "bias",
    "coherence",
    "coverage",
    "crps",
    "desroziers",
    "energy_score",
    "expected_coverage",
    "innovation_statistics",
    "log_likelihood",
    "log_transitions",
    "mmd",
    "rank_histogram",
    "reliability_index",
    "rmse",
    "spectrum",
    "spread",
    "spread_skill",
    "summary",
    "variogram_score",
    "verify",
    "wasserstein1",
]
