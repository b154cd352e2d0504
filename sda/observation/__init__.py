"""Observations: operators, errors, files, synthetic generation, and the likelihood."""

from .average import BlockAverage
from .combine import Combine, Magnitude
from .difference import Difference
from .domain import Domain, Grid, Points
from .footprint import GroupAverage
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
    "Combine",
    "Compose",
    "Difference",
    "Domain",
    "Function",
    "Grid",
    "GroupAverage",
    "Interpolate",
    "Likelihood",
    "Magnitude",
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
