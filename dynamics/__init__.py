"""Dynamical systems in torch: batched, differentiable, on any device.

A `System` knows its `Layout`, draws initial states, steps them, and simulates trajectories. Nothing
here knows of data assimilation.
"""

from .gyre import OceanGyre
from .kolmogorov import KolmogorovFlow
from .kuramoto_sivashinsky import KuramotoSivashinsky
from .layout import Layout
from .linear_gaussian import LinearGaussian
from .lorenz63 import Lorenz63
from .lorenz96 import Lorenz96
from .quasi_geostrophic import TwoLayerQG
from .shallow_water import ShallowWater
from .shallow_water_forced import ToyWeather
from .simulate import simulate
from .spectral import coarsen, energy_spectrum, vorticity
from .spherical_harmonics import SphericalHarmonics
from .system import System

__all__ = [
    "KolmogorovFlow",
    "KuramotoSivashinsky",
    "Layout",
    "LinearGaussian",
    "Lorenz63",
    "Lorenz96",
    "OceanGyre",
    "ShallowWater",
    "SphericalHarmonics",
    "System",
    "ToyWeather",
    "TwoLayerQG",
    "coarsen",
    "energy_spectrum",
    "simulate",
    "vorticity",
]
