"""Classical data assimilation: the methods that the score-based engine is measured against."""

from .base import Filter, Method, Run, Smoother, Solution
from .initial import Draws, Gaussian, Initial, Spinup
from .particle import ParticlePosterior, ParticleSmoother, stationary_states

__all__ = [
    "Draws",
    "Filter",
    "Gaussian",
    "Initial",
    "Method",
    "ParticlePosterior",
    "ParticleSmoother",
    "Run",
    "Smoother",
    "Solution",
    "Spinup",
    "stationary_states",
]
