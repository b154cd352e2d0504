r"""The seasonal cycle: the mean of each cell by day of year, and by hour of day where asked for.

With $\varphi$ the part of the year that has passed and $\eta$ that of the day,

    c(φ, η) = Σ_j Σ_k C_jk b_j(φ) b_k(η),    b = 1, √2 cos 2πφ, √2 sin 2πφ, √2 cos 4πφ, …

fitted by least squares in one pass. Any calendar has parts of a year, so that the cycle of a model
without leap days is that of the same season elsewhere. With `diurnal` harmonics the products make
the daily cycle change over the year.
"""

from typing import Any

import numpy as np
import xarray as xr

from dynamics.layout import Layout

from .missing import portions
from .times import Clock

# What is tried where the user does not say, given so many years of data.
HARMONICS, YEARS = 3, 2.0
# The smallest eigenvalue of the mean of b bᵀ, one for dates all over the year.
RESOLVED = 0.05


class SeasonalCycle:
    """The mean state by date.

    Arguments:
        clock: What turns times into dates.
        harmonics: The harmonics of the year.
        diurnal: The harmonics of the day.
        coefficients: The coefficients, with shape `(coefficient, channel, *space)`.

    Raises:
        ValueError: If the number of coefficients is another.
    """

    def __init__(
        self, clock: Clock, harmonics: int, diurnal: int, coefficients: np.ndarray
    ) -> None:
        if len(coefficients) != (1 + 2 * harmonics) * (1 + 2 * diurnal):
            raise ValueError(
                f"{harmonics} harmonics of the year and {diurnal} of the day need "
                f"{(1 + 2 * harmonics) * (1 + 2 * diurnal)} coefficients, got {len(coefficients)}"
            )
        self.clock, self.harmonics, self.diurnal = clock, harmonics, diurnal
        self.coefficients = np.asarray(coefficients, dtype=np.float64)

    def basis(self, time: Any) -> np.ndarray:
        """The functions of the date, with shape `(time, coefficient)`."""
        return basis(self.clock, time, self.harmonics, self.diurnal)

    def __call__(self, time: Any) -> np.ndarray:
        """The mean states at times, with shape `(time, channel, *space)`."""
        return np.tensordot(self.basis(time), self.coefficients, axes=1)

    @classmethod
    def fit(
        cls,
        dataset: xr.Dataset,
        layout: Layout,
        harmonics: int | None = None,
        diurnal: int = 0,
        always: bool = False,
    ) -> "SeasonalCycle | None":
        """Fits the cycle in one pass over a dataset, which may have gaps.

        Arguments:
            dataset: The states, see `sda.cf.canonical`.
            layout: Their layout.
            harmonics: The harmonics of the year (default: up to three that two years or more of
                dates resolve); with 0 there is no cycle.
            diurnal: The harmonics of the day.
            always: Whether a cycle without harmonics, the mean of each cell, is one too.

        Returns:
            The cycle; None where there is none to be fitted.

        Raises:
            ValueError: If the times have no dates, or do not resolve the harmonics.
        """

        clock = Clock.of(layout)
        time = np.asarray(dataset["time"].values, dtype=np.float64)
        if harmonics == 0 and not diurnal and not always:
            return None
        if clock is None:
            if harmonics is None and not diurnal and not always:
                return None
            raise ValueError(
                f"a seasonal cycle needs dates, but the times are numbers in units "
                f"{layout.time_units!r}: give them units such as 'hours since 2000-01-01', or "
                f"neither seasonal nor fill"
            )
        years = (time[-1] - time[0] + layout.dt) / clock.per_day / 365
        if harmonics is None:
            most = HARMONICS if years >= YEARS else 0
            harmonics = next(k for k in range(most, -1, -1) if resolved(clock, time, k, diurnal))
            if not harmonics and not diurnal and not always:
                return None
        elif not resolved(clock, time, harmonics, diurnal):
            raise ValueError(
                f"{len(time)} dates over {years:.3g} years do not resolve {harmonics} harmonics of "
                f"the year and {diurnal} of the day: give fewer, or seasonal=0"
            )

        shape = (len(layout.variables), *layout.shape[1:])
        size = (1 + 2 * harmonics) * (1 + 2 * diurnal)
        # The normal equations of each cell: they differ where there are gaps.
        square, right, whole = np.zeros((size, size)), np.zeros((size, *shape)), True
        each = np.zeros((size, size, *shape)) if has_gaps(dataset, layout) else None
        for portion in portions(dataset):
            part = dataset.isel(time=portion)
            b = basis(clock, time[portion], harmonics, diurnal)
            outer = b[:, :, None] * b[:, None, :]
            for x in layout.to_array(part).astype(np.float64):
                seen = np.isfinite(x)
                whole = whole and bool(seen.all())
                right += np.tensordot(b, np.where(seen, x, 0.0), axes=(0, 0))
                square += outer.sum(0)
                if each is not None:
                    each += np.tensordot(outer, seen, axes=(0, 0))
        if each is None or whole:
            coefficients = np.linalg.solve(square, right.reshape(size, -1)).reshape(right.shape)
        else:
            a = np.moveaxis(each.reshape(size, size, -1), -1, 0)
            count = np.maximum(a[:, :1, :1], 1)
            few = np.linalg.eigvalsh(a / count)[:, 0] < RESOLVED / 10
            if few.any():
                raise ValueError(
                    f"{int(few.sum())} cells are seen too seldom for a seasonal cycle that could "
                    f"fill their gaps: leave them out (by a mask where they are land), "
                    f"or give fewer harmonics"
                )
            solved = np.linalg.solve(a, right.reshape(size, -1).T[..., None])[..., 0]
            coefficients = solved.T.reshape(right.shape)

        return cls(clock, harmonics, diurnal, coefficients.astype(np.float32))


def has_gaps(dataset: xr.Dataset, layout: Layout) -> bool:
    """Whether values are missing inside the mask."""

    for portion in portions(dataset):
        if not np.isfinite(layout.to_array(dataset.isel(time=portion))).all():
            return True
    return False


def basis(clock: Clock, time: Any, harmonics: int, diurnal: int) -> np.ndarray:
    """The products of functions of the year and of the day, with shape `(time, coefficient)`."""

    year, day = clock.phase(time)
    both = harmonic(year, harmonics)[:, :, None] * harmonic(day, diurnal)[:, None, :]

    return both.reshape(len(year), -1)


def harmonic(phase: np.ndarray, count: int) -> np.ndarray:
    """`1, √2 cos 2πφ, √2 sin 2πφ, …`, with shape `(time, 1 + 2 count)`."""

    angles = 2 * np.pi * phase[:, None] * np.arange(1, count + 1)
    waves = np.sqrt(2) * np.stack([np.cos(angles), np.sin(angles)], axis=-1)

    return np.concatenate([np.ones((len(phase), 1)), waves.reshape(len(phase), -1)], axis=1)


def resolved(clock: Clock, time: np.ndarray, harmonics: int, diurnal: int) -> bool:
    """Whether dates tell the harmonics apart."""

    b = basis(clock, time, harmonics, diurnal)

    return bool(np.linalg.eigvalsh(b.T @ b / len(b))[0] > RESOLVED)
