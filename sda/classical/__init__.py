"""Classical data assimilation: the methods that the score-based engine is measured against."""

from .particle import ParticlePosterior, ParticleSmoother, stationary_states

__all__ = ["ParticlePosterior", "ParticleSmoother", "stationary_states"]
