"""The observations that a filter knows, and the cycles they belong to."""

import json
import math
from collections.abc import Callable, Mapping, Sequence
from typing import TYPE_CHECKING, Any

import numpy as np

from dynamics.layout import Layout

from .cf.times import first_state
from .observation import Observations
from .observation.domain import TIME_TOLERANCE, Grid
from .observation.recent import Piece, split

if TYPE_CHECKING:
    from .prior import Prior
    from .quality import Quality
    from .streams import Batch

CARRIES = ("observations", "members")
# The longest gap, in cycles, that is bridged: a longer one is a time in other units.
LONGEST_GAP = 10_000


class Late(ValueError):
    """Observations that came in when no cycle to come looks back so far.

    Arguments:
        message: What is wrong.
        accepted: The pieces that are not too late.
    """

    def __init__(self, message: str, accepted: Sequence[Piece]) -> None:
        super().__init__(message)
        self.accepted = list(accepted)


class Inbox:
    """What a filter has received, and what it will still use of it, see `sda.Assimilator`.

    Arguments:
        prior: The prior.
        lag, history, carry, every, start, quality: See `sda.Assimilator`.

    Attributes:
        cycle: The next cycle.
        pieces: The observations that the cycles to come can use, step by step.
        batches: The batches that the next cycle is the first to know, `fresh` what to keep of them
            and `marks` what their stream knows them by.
        rejected: The rows that the quality control has left out since the last cycle.
        taken: The checksums of all batches that were taken up.
        refused: The number of values that were refused.

    Raises:
        ValueError: If an argument is out of range.
    """

    def __init__(
        self,
        prior: "Prior",
        lag: int,
        history: int | None,
        carry: str,
        every: int,
        start: float | None,
        quality: "Quality | Mapping[str, Any] | bool | None",
    ) -> None:
        from .quality import Quality

        if carry not in CARRIES:
            raise ValueError(f"unknown carry {carry!r}: expected one of {', '.join(CARRIES)}")
        for name, value, low in (("lag", lag, 0), ("every", every, 1)):
            check_integer(name, value, low)
        if start is not None and not math.isfinite(start):
            raise ValueError(f"start must be a finite time, got {start}")
        if carry == "members" and not lag:
            raise ValueError(
                "carry='members' with lag=0 is biased, as no observation reaches the frozen "
                "states: give a lag that observations say something of (lag=8, say), or "
                "carry='observations'"
            )
        self.history = window_length(prior, lag, history)
        if carry == "members" and self.history <= lag + every:
            raise ValueError(
                f"members that are carried need a window of more than lag + every = {lag + every} "
                f"states, got history={self.history}"
            )
        self.prior, self.layout = prior, prior.layout
        self.lag, self.every, self.carry = lag, every, carry
        self.quality = Quality.of(quality) if quality else None
        self.start, self.cycle = start, 0
        self.pieces: list[Piece] = []
        self.fresh: list[dict[str, Any]] = []
        self.batches: list[Observations] = []
        self.marks: list[str] = []
        self.rejected: list[dict[str, Any]] = []
        self.taken: set[str] = set()
        self.refused = 0

    def time(self, cycle: int) -> float:
        """The time of a cycle.

        Raises:
            ValueError: If nothing was sent yet and no `start` was given.
        """

        if self.start is None:
            raise ValueError("the time of the first cycle is not known yet: send observations")
        return self.start + cycle * self.every * self.layout.dt

    def cycle_at(self, time: float) -> int:
        """The cycle that analyses a time: at it, or the next one after it."""

        return math.ceil(
            (time - self.time(0)) / (self.every * self.layout.dt) - TIME_TOLERANCE / self.every
        )

    def cycle_of(self, piece: Piece) -> int:
        """The cycle that an observation belongs to."""
        return -(-piece.last // self.every)

    @property
    def opens(self) -> int:
        """The first state, in steps since the start, that the next cycle can still change."""

        if self.carry == "members" and self.cycle:
            return (self.cycle - 1) * self.every - self.lag + 1
        return self.cycle * self.every - self.history + 1

    def observed(self, after: int, until: int) -> int:
        """The number of values observed after one state and until another, as far as is known."""
        return sum(len(piece) for piece in self.pieces if after < piece.last <= until)

    def add(
        self,
        observations: Observations,
        mark: str | None = None,
        refuse: Callable[[Late], None] | None = None,
    ) -> int | None:
        """Takes up observations, without analysing them yet.

        Arguments:
            observations: The observations, of any times.
            mark: What a stream needs to know its place again, see `sda.streams`.
            refuse: What to do about observations that are too late, in place of raising the
                error: the others of the batch are taken up then.

        Returns:
            The last cycle that the observations belong to; None if all were known already.

        Raises:
            ValueError: If they do not fit the prior, or some are too late: none is taken up then.
        """

        code = observations.hash()
        if code in self.taken:
            return None
        # What does not fit must not decide when the first cycle is.
        start = self.start
        if start is None:
            start = first_state(self.layout, observations.span[0])
        rejected: list[dict[str, Any]] = []
        if self.quality is not None:
            checked, rejected = self._checked(observations, start)
            if checked is None:
                self.rejected += rejected
                self.taken.add(code)
                self.marks += [] if mark is None else [mark]
                return None
            observations = checked
        pieces = split(observations, self.layout, start)
        if not pieces:
            raise ValueError("the observations hold no value: all of them are NaN or masked")
        ahead = max(self.cycle_of(piece) for piece in pieces) - self.cycle
        if ahead > LONGEST_GAP:
            raise ValueError(
                f"the observations reach to time {observations.span[1]:g}, {ahead} cycles of "
                f"{self.every * self.layout.dt:g} after the last: check their times' units, or "
                f"start anew after so long a gap"
            )
        late = [piece for piece in pieces if piece.first < self.opens]
        if late:
            error = Late(self._too_late(late), [p for p in pieces if p.first >= self.opens])
            if refuse is None:
                raise error
            self.refused += sum(map(len, late))
            refuse(error)
            pieces = error.accepted
        # What does not fit is better known now than in the cycle that needs it.
        for piece in pieces:
            fit(piece, self.layout, start)
        self.start = start
        self.rejected += rejected
        self.taken.add(code)
        if mark is not None:
            self.marks.append(mark)
        if not pieces:
            return None
        kept = observations if not late else Observations([piece.values for piece in pieces])
        self.pieces += pieces
        self.batches.append(kept)
        self.fresh.append({"hash": code, "last": max(piece.last for piece in pieces)})
        if rejected:
            self.fresh[-1]["rejected"] = rejected

        return max(self.cycle_of(piece) for piece in pieces)

    def _checked(
        self, observations: Observations, start: float
    ) -> tuple[Observations | None, list[dict[str, Any]]]:
        """Those of a batch that pass the quality control, beside those known, and the others' rows.

        Returns:
            The observations that passed (None if none did), and the rejected rows.
        """

        from .quality import check

        both = Observations([*(piece.values for piece in self.pieces), *observations.sets])
        dt, (first, last) = self.layout.dt, both.span
        low = math.floor((first - start) / dt + TIME_TOLERANCE)
        high = math.ceil((last - start) / dt - TIME_TOLERANCE)
        time = start + dt * np.arange(low, high + 1)
        report = check(self.prior, both, self.quality or True, time)
        passed = report.passed[-len(observations) :]
        rows = json.loads(report.table[-len(observations) :][~passed].to_json(orient="records"))

        return (observations.keep(passed) if passed.any() else None), rows

    def _too_late(self, late: Sequence[Piece]) -> str:
        """Says which cycle could have used observations that are too late."""

        first = min(late, key=lambda piece: piece.first)
        usable = (first.first + self.history - 1) // self.every
        mend = f"A window of more than history={self.history} states"
        if self.carry == "members":
            usable = (first.first + self.lag - 1) // self.every + 1
            mend = f"A lag of more than {self.lag} states"
        time = self.time(0) + first.last * self.layout.dt

        return (
            f"{sum(map(len, late))} observations are too late, the first of time {time:g}: it "
            f"belongs to cycle {self.cycle_of(first)}, the last cycle that looked back so far was "
            f"{usable}, and cycle {self.cycle - 1} is done. {mend} would take them up"
        )

    def _receive(self, batch: "Batch", refuse: Callable[[ValueError], None] | None) -> int | None:
        """Takes up what a stream has brought, or leaves out what does not fit, see `run`."""

        try:
            return self.add(batch.observations, batch.mark, refuse)
        except ValueError as error:
            if refuse is None:
                raise
            self.refused += len(batch.observations)
            if batch.mark is not None:
                self.marks.append(batch.mark)
            refuse(error)
            return None

    def _forget(self) -> None:
        """Drops what the next cycle's window no longer holds, and what is noted of the last."""

        self.fresh, self.batches, self.marks, self.rejected = [], [], [], []
        self.pieces = [piece for piece in self.pieces if piece.first >= self.opens]


def check_integer(name: str, value: object, low: int) -> None:
    """Raises a `ValueError` unless a value is an integer of at least `low`."""

    if not isinstance(value, int) or value < low:
        raise ValueError(f"{name} must be an integer of at least {low}, got {value!r}")


def fit(piece: Piece, layout: Layout, start: float) -> None:
    """Raises a `ValueError` unless observations fit the layout."""

    steps = np.arange(piece.first, piece.last + 1)
    grid = Grid.of(layout, start + layout.dt * steps)
    piece.values.check_places(grid)
    shape = piece.values.operator.bind(grid).target.shape
    if math.prod(shape) != piece.values.y.size:
        raise ValueError(
            f"{piece.values.operator!r} returns values of shape {shape}, but "
            f"{piece.values.y.shape} were observed"
        )


def window_length(prior: "Prior", lag: int, history: int | None) -> int:
    """The number of states of a cycle's window, see `Assimilator`.

    Raises:
        ValueError: If it is shorter than a window of the prior, or not longer than the lag.
    """

    if history is None:
        window = prior.climatology.window if prior.gaussian else prior.window
        return max(window, lag + (window + 1) // 2)
    if not isinstance(history, int) or history < max(1, prior.window):
        raise ValueError(
            f"history must be an integer of at least the prior's window of {prior.window} states, "
            f"got {history!r}"
        )
    if history <= lag:
        raise ValueError(f"history must be more than the lag of {lag} states, got {history}")
    return history
