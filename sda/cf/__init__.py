"""Data and observations as the community writes them: CF conventions, calendars, units."""

from .canonical import canonical, open_data
from .times import Clock

__all__ = ["Clock", "canonical", "open_data"]
