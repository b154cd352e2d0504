"""Classical data assimilation: the methods that the score-based engine is measured against."""

from .base import Filter, Method, Run, Smoother, Solution
from .baselines import Climatological, OptimalInterpolation, ThreeDVar
from .denkf import DEnKF
from .enkf import EnKF
from .enkf_n import EnKFN
from .enks import EnKS
from .ensemble import EnsembleFilter
from .etkf import ETKF
from .ienks import IEnKS
from .initial import Draws, Gaussian, Initial, Spinup
from .kalman import KalmanFilter, RTSSmoother
from .letkf import LETKF
from .localisation import Localisation
from .particle import ParticlePosterior, ParticleSmoother, Stationary, stationary_states
from .particle_filter import ParticleFilter
from .variational import FourDVar

__all__ = [
    "FourDVar",
    "KalmanFilter",
    "RTSSmoother",
    "Climatological",
    "DEnKF",
    "ETKF",
    "EnKF",
    "EnKFN",
    "EnKS",
    "EnsembleFilter",
    "IEnKS",
    "Draws",
    "Filter",
    "Gaussian",
    "Initial",
    "LETKF",
    "Localisation",
    "Method",
    "ParticleFilter",
    "OptimalInterpolation",
    "ParticlePosterior",
    "ParticleSmoother",
    "Run",
    "Smoother",
    "Solution",
    "Spinup",
    "Stationary",
    "ThreeDVar",
    "stationary_states",
]
