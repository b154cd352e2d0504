"""Observations: operators, errors, files, synthetic generation, and the likelihood."""

from .average import BlockAverage
from .difference import Difference
from .domain import Domain, Grid, Points
from .function import Function, register
from .generate import observe
from .grid import OnGrid
from .interpolate import Interpolate
from .likelihood import Likelihood
from .observations import Observations, ObservationSet
from .operator import Bound, Compose, Operator, check_linear, from_config
from .select import Mask, Select, Subsample
from .sequence import ObservedTime, sequence
from .vorticity import SaturatingVorticity, Vorticity

__all__ = [
    "BlockAverage",
    "Bound",
    "Compose",
    "Difference",
    "Domain",
    "Function",
    "Grid",
    "Interpolate",
    "Likelihood",
    "Mask",
    "ObservationSet",
    "Observations",
    "ObservedTime",
    "OnGrid",
    "Operator",
    "Points",
    "SaturatingVorticity",
    "Select",
    "Subsample",
    "Vorticity",
    "check_linear",
    "from_config",
    "observe",
    "register",
    "sequence",
]
