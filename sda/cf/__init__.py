"""Data and observations as the community writes them: CF conventions, calendars, units."""

from .align import open_like
from .anomalies import Anomalies
from .canonical import canonical, open_data
from .observations import load_observations
from .prepare import Prepared, prepare
from .seasonal import SeasonalCycle
from .times import Clock
from .transforms import Transform

__all__ = [
    "Anomalies",
    "Clock",
    "Prepared",
    "SeasonalCycle",
    "Transform",
    "canonical",
    "load_observations",
    "open_data",
    "open_like",
    "prepare",
]
