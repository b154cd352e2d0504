"""Times of a dataset as uniform numbers with a reference date and a calendar, and back to dates.

The engine counts time in numbers, in steps of `dt`. Dates of any CF calendar become hours or days
since the first day of the data. Monthly (and yearly) means are not uniform in days: they become
months of 30 days, that is dates of the calendar `360_day`, in which a day keeps its year, month and
place within the month. Both decode to dates wherever CF is read. The
reference date is about 1970, and so that states are at multiples of `dt`: files of one archive have
the same one, whatever their years.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from datetime import timedelta
from typing import Any

import numpy as np
import xarray as xr

# The part of a step within which two times are the same: many are stored in single precision.
TOLERANCE = 1e-3
MONTHLY = "360_day"
EPOCH = 1970
# The days by which a date may miss that of a monthly mean.
NEAR = 1.5
# Names of the calendar that clocks on the wall follow.
REAL = {"standard", "gregorian", "proleptic_gregorian"}
SHOWN = 3


@dataclass(frozen=True)
class Clock:
    """A numeric time axis with a reference date.

    Arguments:
        units: "hours since 1990-01-01" or alike.
        calendar: The CF calendar.
        months: Whether dates of other calendars are placed by their month, for monthly means.

    Raises:
        ValueError: If units and calendar are not those of dates.
    """

    units: str
    calendar: str = "standard"
    months: bool = False

    def __post_init__(self) -> None:
        import cftime

        try:
            cftime.num2date(0, self.units, self.calendar)
        except (ValueError, TypeError) as error:
            raise ValueError(
                f"units {self.units!r} with calendar {self.calendar!r} are not those of dates: "
                f"{error}"
            ) from error

    @classmethod
    def of(cls, layout: Any) -> "Clock | None":
        """The clock of a layout; None where its times have no dates."""

        if " since " not in layout.time_units:
            return None
        calendar = layout.calendar or "standard"
        days = layout.dt / cls(layout.time_units, calendar).per_day
        months = calendar == MONTHLY and days >= 30 and bool(np.isclose(days % 30, 0))

        return cls(layout.time_units, calendar, months)

    @property
    def per_day(self) -> float:
        """How many of the units of time make a day."""

        first, later = self.dates([0, 1])
        return 86400.0 / float((later - first).total_seconds())

    def dates(self, numbers: Any) -> np.ndarray:
        """The dates of numbers, as cftime objects of this calendar."""

        import cftime

        values = np.atleast_1d(np.asarray(numbers, dtype=np.float64))
        return np.asarray(cftime.num2date(values, self.units, self.calendar), dtype=object)

    def numbers(self, dates: Any) -> np.ndarray:
        """The numbers of dates: of datetime64, of datetime or cftime objects of any calendar.

        Raises:
            ValueError: If a date is missing, or does not exist in this calendar.
        """

        import cftime

        dates = objects(dates)
        own = getattr(dates[0], "calendar", "standard") if len(dates) else self.calendar
        if own == self.calendar or {own, self.calendar} <= REAL:
            return np.asarray(cftime.date2num(dates, self.units, self.calendar), dtype=np.float64)
        found, wrong = np.empty(len(dates)), []
        for i, date in enumerate(dates):
            clock = (date.hour, date.minute, date.second, date.microsecond)
            place = 0.0
            try:
                if self.months:
                    # The same part of a month, which has 30 days here.
                    passed = (date.day - 1) * 24 + date.hour + (date.minute + date.second / 60) / 60
                    place = passed / 24 * 30 / days_in_month(date) * self.per_day
                    same = cftime.datetime(date.year, date.month, 1, calendar=self.calendar)
                else:
                    same = cftime.datetime(
                        date.year, date.month, date.day, *clock, calendar=self.calendar
                    )
            except ValueError:
                wrong.append(date)
                continue
            found[i] = cftime.date2num(same, self.units, self.calendar) + place
        if wrong:
            raise ValueError(
                f"{len(wrong)} of {len(dates)} dates do not exist in the calendar "
                f"{self.calendar!r}, the first is {wrong[0]}: leave them out"
            )

        if self.months:
            # The middle of a month is that of its mean, whether it has 28 days or 31.
            month = 30 * self.per_day
            nearest = month * np.round(found / month)
            found = np.where(np.abs(found - nearest) <= NEAR * self.per_day, nearest, found)

        return found

    def phase(self, numbers: Any) -> tuple[np.ndarray, np.ndarray]:
        """The parts of the year and of the day that have passed, both in [0, 1)."""

        dates = self.dates(numbers)
        day = np.array([(d.hour + (d.minute + d.second / 60) / 60) / 24 for d in dates])
        length = np.array([days_in_year(d) for d in dates], dtype=np.float64)
        passed = np.array([d.dayofyr - 1 for d in dates], dtype=np.float64)

        return (passed + day) / length, day


def days_in_month(date: Any) -> int:
    """The number of days of a date's month, in its own calendar."""

    import calendar

    own = getattr(date, "calendar", "standard")
    if own == "360_day":
        return 30
    fixed = {"noleap": 2001, "365_day": 2001, "all_leap": 2000, "366_day": 2000}
    return calendar.monthrange(fixed.get(own, date.year), date.month)[1]


def days_in_year(date: Any) -> int:
    """The number of days of a date's year, in its own calendar."""

    if date.calendar == "360_day":
        return 360
    last = date.replace(month=12, day=31)
    return int(last.dayofyr)


def objects(dates: Any) -> np.ndarray:
    """Dates as objects with `year`, `month`, …

    Raises:
        ValueError: If a date is missing or is no date.
    """

    import pandas as pd

    values = np.atleast_1d(np.asarray(dates))
    if not np.issubdtype(values.dtype, np.datetime64) and not all(
        hasattr(value, "year") for value in values[:1]
    ):
        try:
            values = pd.to_datetime(pd.Series(values), format="ISO8601", utc=True)
            values = values.dt.tz_localize(None).to_numpy()
        except (ValueError, TypeError) as error:
            raise ValueError(f"{np.ravel(dates)[0]!r} is no date: {error}") from error
    missing = np.flatnonzero(pd.isna(values))
    if len(missing):
        raise ValueError(
            f"{len(missing)} of {len(values)} dates are missing, the first at index {missing[0]}"
        )
    if np.issubdtype(values.dtype, np.datetime64):
        return np.asarray(pd.DatetimeIndex(values).to_pydatetime(), dtype=object)

    return np.asarray(values, dtype=object)


def uniform(time: xr.DataArray) -> xr.DataArray:
    """The time coordinate that the engine counts by.

    Arguments:
        time: A coordinate of numbers, with or without a reference date, or of dates.

    Returns:
        Uniform numbers with `units`, and `calendar` where they are dates.

    Raises:
        ValueError: If times are missing, duplicated, not increasing, or not uniform; the message
            says where.
    """

    import cftime

    name = str(time.name or "time")
    units, calendar = str(time.attrs.get("units", "1")), time.attrs.get("calendar", "standard")
    decoded = not np.issubdtype(time.dtype, np.number)
    clock: Clock | None = None
    if decoded:
        dates = objects(time.values)
        own = getattr(dates[0], "calendar", "standard") or "standard"
        clock = Clock("hours since 1900-01-01", own)
        numbers = clock.numbers(dates)
    else:
        numbers = time.values.astype(np.float64)
        clock = Clock(units, str(calendar)) if " since " in units else None

    def text(index: int) -> str:
        value = numbers[index]
        return str(clock.dates(value)[0]) if clock and np.isfinite(value) else f"{value:g}"

    bad = np.flatnonzero(~np.isfinite(numbers))
    if len(bad):
        raise ValueError(
            f"coordinate {name!r} has {len(bad)} missing values, the first at index {bad[0]}"
        )
    if len(numbers) < 2:
        raise ValueError(f"coordinate {name!r} needs at least two values, got {len(numbers)}")
    steps = np.diff(numbers)
    check_increasing(name, steps, numbers, text)
    if clock is None:
        check_steps(name, steps, text, units)
        return coordinate(numbers, units)

    first = clock.dates(numbers[0])[0]
    if np.allclose(steps, steps[0], rtol=TOLERANCE, atol=0):
        days = float(np.mean(steps)) / clock.per_day
        unit, scale = ("days", 1.0) if abs(days - round(days)) < 1e-6 else ("hours", 24.0)
        epoch = cftime.datetime(EPOCH, 1, 1, calendar=clock.calendar)
        seconds = round((first - epoch).total_seconds())
        phase = round(seconds % (days * 86400))
        start = round((seconds - phase) / (days * 86400))
        date = epoch + timedelta(seconds=phase)
        reference = f"{date.year:04d}-{date.month:02d}-{date.day:02d}"
        if (date.hour, date.minute, date.second) != (0, 0, 0):
            reference += f" {date.hour:02d}:{date.minute:02d}:{date.second:02d}"
        return coordinate(
            days * scale * (start + np.arange(len(numbers))),
            f"{unit} since {reference}",
            clock.calendar,
        )

    if (steps / clock.per_day).min() < 27.5:
        check_steps(name, steps, text, units.split()[0] if not decoded else "hours")
    dates = clock.dates(numbers)
    months = np.array([date.year * 12 + date.month for date in dates])
    jumps = np.diff(months)
    if (jumps != jumps[0]).any():
        usual = int(np.median(jumps))
        where = np.flatnonzero(jumps != usual)
        raise ValueError(
            f"coordinate {name!r} is monthly and must go on in steps of {usual} months, but "
            f"{text(where[0])} is followed by {text(where[0] + 1)} ({len(where)} such steps): "
            f"fill the gap, or select the times before or after it"
        )
    lengths = np.array([days_in_month(date) for date in dates])
    place = np.mean([(d.day - 1 + d.hour / 24) / n for d, n in zip(dates, lengths, strict=True)])
    day = 1 + min(round(30 * float(place)), 29)
    month = (int(months[0]) - 1 - 12 * EPOCH) % int(jumps[0])
    reference = f"days since {EPOCH + month // 12:04d}-{month % 12 + 1:02d}-{day:02d}"

    return coordinate(30.0 * (months - 1 - 12 * EPOCH - month), reference, MONTHLY)


def first_state(layout: Any, time: float) -> float:
    """The time of the first state of a trajectory that covers a time.

    Where times are dates, states are at the times of day, or the days of the month, of the data.
    """

    if " since " not in layout.time_units:
        return time
    return float(layout.dt * np.floor(time / layout.dt + TOLERANCE))


def check_increasing(name: str, steps: np.ndarray, numbers: np.ndarray, text: Any) -> None:
    """Raises a `ValueError` unless times increase."""

    twice = np.flatnonzero(steps == 0)
    if len(twice) or len(np.unique(numbers)) < len(numbers):
        values, counts = np.unique(numbers, return_counts=True)
        again = values[counts > 1]
        where = np.flatnonzero(numbers == again[0])
        raise ValueError(
            f"coordinate {name!r} has {len(again)} duplicated values, the first is "
            f"{text(where[0])} at the indices {where[:SHOWN].tolist()}: remove the duplicates, "
            f"such as by .drop_duplicates({name!r})"
        )
    back = np.flatnonzero(steps < 0)
    if len(back):
        raise ValueError(
            f"coordinate {name!r} must increase, but {text(back[0])} at index {back[0]} is "
            f"followed by {text(back[0] + 1)}: sort the data by time"
        )


def check_steps(name: str, steps: np.ndarray, text: Any, units: str) -> None:
    """Raises a `ValueError` unless steps are uniform."""

    usual = float(np.median(steps))
    odd = np.flatnonzero(~np.isclose(steps, usual, rtol=TOLERANCE, atol=0))
    if not len(odd):
        return
    i = int(odd[0])
    raise ValueError(
        f"coordinate {name!r} must go on in uniform steps, mostly {usual:g} {units}, but "
        f"{text(i)} at index {i} is followed by {text(i + 1)} ({len(odd)} of {len(steps)} steps "
        f"differ): fill what is missing, or select the times before or after it"
    )


def coordinate(numbers: Sequence[float] | np.ndarray, units: str, calendar: str = "") -> Any:
    """A coordinate `time`."""

    attrs = {"units": units, "axis": "T", **({"calendar": calendar} if calendar else {})}
    return xr.DataArray(
        np.asarray(numbers, dtype=np.float64), dims="time", name="time", attrs=attrs
    )
