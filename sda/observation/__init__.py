"""Observations: operators, errors, files, synthetic generation, and the likelihood."""

from .domain import Domain, Grid, Points
from .likelihood import Likelihood
from .operator import Bound, Compose, Operator, check_linear, from_config
from .select import Mask, Select, Subsample

__all__ = [
    "Bound",
    "Compose",
    "Domain",
    "Grid",
    "Likelihood",
    "Mask",
    "Operator",
    "Points",
    "Select",
    "Subsample",
    "check_linear",
    "from_config",
]
