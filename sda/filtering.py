r"""Filtering: analyses of the present, while observations come in.

The task "filter" draws members from `p(x_i | y_{1:i})` for one cycle `i` after the other, and with
a fixed lag `L` from `p(x_{i-L:i} | y_{1:i})`. A score-based prior samples whole trajectories, so a
cycle samples that of the last `history` states given the observations of these states alone,

    p(x_{i-h+1:i} | y_{i-h+1:i}),

and keeps its end. What is older matters exponentially less in a system that forgets, and the state
before the window has the climatology for a prior, which is what the trajectory's prior is. Nothing
is carried from one cycle to the next: there is no drift, no inflation to tune and no ensemble to
collapse, and a cycle depends on the seed and on the observations of its window alone.

The other way carries the members. Each goes on from states of its own, frozen `L` states before the
last cycle,

    p(x_{i-e-L+1:i} | x_{≤ i-e-L}^{(m)}, y_{i-e-L+1:i}),

with `e` states from one cycle to the next, see `sda.conditional`. It knows of all that was ever
observed, and a gap is a forecast. It is approximate where observations still say something of the
frozen states, as these are neither changed nor weighed by them: the error falls with the lag.

The noise of a member comes from `(seed, member, cycle)`. The same analyses result from any block
size, from any batching of the observations, and from a run that was killed and resumed.

References:
    Fixed-lag smoothing: Anderson and Moore (1979), Optimal Filtering, chapter 7
    Cycles from a static prior: score-based data assimilation (Rozet and Louppe, 2023),
    arXiv 2306.10574
"""

import json
import math
import warnings
from collections import OrderedDict
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from pathlib import Path
from types import TracebackType
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
import xarray as xr

from dynamics.layout import Layout
from dynamics.simulate import compute_device

from .analyses import AnalysisWriter
from .cf.times import first_state
from .observation import Observations
from .observation.domain import TIME_TOLERANCE, Grid
from .observation.recent import Piece, Window, split
from .store import first_line, open_dataset

if TYPE_CHECKING:
    from .conditional import Continuation
    from .denoiser import Denoiser
    from .langevin import Langevin
    from .prior import Prior
    from .quality import Quality
    from .streams import Batch, Stream

CARRIES = ("observations", "members")
# Streams of noise, see `dynamics.random`: one of the members and one of the pilots in each cycle.
MEMBERS, PILOTS = 31, 32
# Guided denoisers that are kept for windows that are observed alike.
KEPT = 16
# The longest gap, in cycles, that is bridged: a longer one is a time in other units.
LONGEST_GAP = 10_000
# The cycles of a filter that carries members have parts of the noise of forecasts of their own.
FIRST_PART = 1 << 20


class Late(ValueError):
    """Observations that came in when no cycle to come looks back so far.

    Arguments:
        message: What is wrong.
        accepted: The pieces that are not too late.
    """

    def __init__(self, message: str, accepted: Sequence[Piece]) -> None:
        super().__init__(message)
        self.accepted = list(accepted)


class Assimilator:
    r"""Assimilates observations as they come in.

    $$ x_{i-L:i}^{(m)} \sim p(x_{i-L:i} \mid y_{i-h+1:i}) $$

    Cycle `k` analyses the time `start + k every dt`. An observation belongs to the cycle at its
    time, or to the next one if it lies between two.

    *Late observations* are taken up as long as the window of the next cycle holds their time. They
    change the analyses of the cycles to come, and with a lag those of the times that these reach
    back to; analyses that were returned stay as they are. Observations before that window are
    refused, with the last cycle named that could have used them. Observations of later times than
    the cycle's are kept until their time comes. A batch of observations that was taken up before,
    to the last digit, is not taken up again.

    *Gaps*: cycles without observations are forecasts, `observed` is 0 for them.

    *NaN* are values that were not observed.

    Arguments:
        prior: The prior over trajectories.
        members: The number of members.
        seed: The seed. Member `m` of seed `s` in a cycle is the same draw whatever the others.
        lag: The number of states before that of a cycle that it analyses again.
        history: The number of states of a cycle's window, with that of the cycle: at least one
            window of the prior and more than the lag (default: one window of a network, or of the
            climatology of a Gaussian prior, and half of one more than the lag).
        carry: What a cycle knows of the past: "observations", those of its window; or "members",
            each member's states up to `lag` before the last cycle, and the observations after
            them: it needs a lag, and is biased where observations say something of states before
            it. The window is the frozen states and the `every + lag` that follow, then. Its
            guidance is one without pilots (default: `static`, but for the first cycle, which has
            no states before it), and its noise levels begin at 10.
        start: The time of the first cycle (default: that of the first observation sent).
        every: The states from one cycle to the next.
        guidance, langevin, sampler, steps, s_max, s_min, memory, block, device, dtype, precision:
            See `sda.assimilate`. Default for a Gaussian prior: `static`, which is exact for linear
            observations, and no Langevin steps with them.
        out: A Zarr store to which each cycle is appended, see `sda.analyses`. It is locked for
            other processes.
        overwrite: Whether analyses at `out` are replaced, once the first new one is on disk.
        resume: Whether analyses at `out` are continued after the last finished cycle.
        quality: Whether observations in gross error are left out, see `sda.assimilate`: each batch
            is checked together with those of the window. What was rejected is in `rejected` until
            the next cycle, and in the ledger.

    Raises:
        ValueError: If an argument is out of range, or the store to resume was made with other
            settings.
        FileExistsError: If `out` exists and neither `overwrite` nor `resume` is given, or another
            process is writing it.

    Example:
        >>> with sda.Assimilator(prior, members=64, lag=8, out="analyses.zarr") as assimilator:
        ...     for observations in stream:
        ...         analysis = assimilator.send(observations)
    """

    def __init__(
        self,
        prior: "Prior",
        members: int = 64,
        seed: int = 0,
        lag: int = 0,
        history: int | None = None,
        carry: str = "observations",
        *,
        start: float | None = None,
        every: int = 1,
        guidance: str | Mapping[str, Any] | None = None,
        langevin: "Langevin | str | None" = "default",
        sampler: str = "xeab",
        steps: int = 24,
        s_max: float = 100.0,
        s_min: float = 5e-3,
        memory: int | str = "2GiB",
        block: int | None = None,
        device: str | torch.device = "cpu",
        dtype: torch.dtype | str = torch.float32,
        precision: str = "float32",
        out: str | Path | None = None,
        overwrite: bool = False,
        resume: bool = False,
        quality: "Quality | Mapping[str, Any] | bool | None" = None,
    ) -> None:
        from .assimilation import (
            block_size,
            guidance_method,
            langevin_steps,
            plain,
            provenance,
            sampling_dtype,
            size_in_bytes,
            trajectory_denoiser,
        )
        from .guidance import METHODS
        from .quality import Quality
        from .sampling import SAMPLERS, log_levels

        if carry not in CARRIES:
            raise ValueError(f"unknown carry {carry!r}: expected one of {', '.join(CARRIES)}")
        for name, value, low in (
            ("members", members, 1), ("seed", seed, 0), ("lag", lag, 0), ("every", every, 1),
        ):  # fmt: skip
            if not isinstance(value, int) or value < low:
                raise ValueError(f"{name} must be an integer of at least {low}, got {value!r}")
        if block is not None and block < 1:
            raise ValueError(f"block must be at least 1, got {block}")
        if start is not None and not math.isfinite(start):
            raise ValueError(f"start must be a finite time, got {start}")
        if out is None and (overwrite or resume):
            raise ValueError("overwrite and resume need an output store, got out=None")
        self.quality = Quality.of(quality) if quality else None
        self.rejected: list[dict[str, Any]] = []
        self.carry = carry
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
        dtype, device = sampling_dtype(dtype, precision), compute_device(device)
        vectors = not prior.layout.dims
        # What follows frozen states has a guidance without pilots; the first cycle has none before.
        self.following: Any = "static" if guidance is None else guidance
        if guidance is None and prior.gaussian:
            guidance = "static"
        method, options = guidance_method(guidance, fields=not vectors)
        if method not in METHODS:
            raise ValueError(f"unknown guidance {method!r}: expected one of {', '.join(METHODS)}")
        # Exact already, where prior and observations are linear.
        self.exact = prior.gaussian and langevin == "default" and method == "static"
        langevin_given = langevin
        langevin = langevin_steps(langevin, fields=not vectors)
        if sampler not in SAMPLERS:
            raise ValueError(f"unknown sampler {sampler!r}: expected one of {', '.join(SAMPLERS)}")
        log_levels(steps, s_max, s_min)

        self.prior = prior.to(device)
        self.layout = prior.layout
        self.members, self.seed, self.lag, self.every = members, seed, lag, every
        self.method, self.options, self.langevin = method, options, langevin
        schedule: dict[str, Any] = {
            "sampler": sampler,
            "steps": steps,
            "s_max": s_max,
            "s_min": s_min,
        }
        self.sampling: dict[str, Any] = {**schedule, "dtype": dtype, "device": device}
        self.dtype, self.device, self.memory = dtype, device, size_in_bytes(memory)
        self.shape = (self.history, *self.layout.shape)
        self.block = block or block_size(members, self.shape, dtype, memory)
        self.denoiser = trajectory_denoiser(prior, self.history, dtype, memory, precision)
        self.covariance = prior.climatology.covariance(self.history, dtype)
        self.guided: OrderedDict[Any, Denoiser] = OrderedDict()
        # The frozen states of members that are carried, `(member, T, channel, *space)`.
        self.tail: torch.Tensor | None = None
        self.continuation: Continuation | None = None
        if carry == "members":
            name, _ = guidance_method(self.following, fields=not vectors)
            if hasattr(METHODS[name], "recording"):
                raise ValueError(
                    f"guidance {name!r} needs pilots, which no frozen states precede: use "
                    f"'static' or 'mmps' with carry='members'"
                )
            self.continuation = continuation(
                prior, self.history - lag - every, lag + every, schedule, langevin_given,
                memory=memory, precision=precision, device=device, dtype=dtype,
            )  # fmt: skip
        self.start, self.cycle = start, 0
        self.pieces: list[Piece] = []
        self.fresh: list[dict[str, Any]] = []
        self.batches: list[Observations] = []
        self.marks: list[str] = []
        self.taken: set[str] = set()
        self.refused = 0
        self.last: tuple[int, np.ndarray, np.ndarray] | None = None
        self.brought = 0
        self.settings: dict[str, Any] = {
            "task": "filter",
            "prior": prior.hash,
            "members": members,
            "seed": seed,
            "lag": lag,
            "history": self.history,
            "carry": carry,
            "every": every,
            "guidance": {"name": method, **options},
            "langevin": plain(langevin),
            "sampler": schedule,
            "dtype": str(dtype).removeprefix("torch."),
            "precision": precision,
        }
        if carry == "members":
            name, follows = guidance_method(self.following, fields=not vectors)
            self.settings["first_guidance"] = self.settings["guidance"]
            self.settings["guidance"] = {"name": name, **follows}
        self.attrs = provenance(self.settings | {"observations": "as they came in"}, prior) | {
            "title": "Analysis ensemble of a filter, with fixed lag",
            "lag": lag,
            "history": self.history,
        }
        self.store: AnalysisWriter | None = None
        if out is not None:
            self.store = AnalysisWriter(
                out, self.layout, members, every * self.layout.dt, self.settings, self.attrs,
                self.settings["dtype"], overwrite, resume,
            )  # fmt: skip
            try:
                self._resume(self.store)
            except BaseException:
                self.store.close()
                raise

    # Times and cycles ---------------------------------------------------------------------------

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

    # Observations -------------------------------------------------------------------------------

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

    # Cycles -------------------------------------------------------------------------------------

    def send(self, observations: Observations | None = None, time: float | None = None) -> Any:
        """Takes up observations, and analyses.

        Arguments:
            observations: The observations; None for a forecast.
            time: The time to analyse. Cycles in between are run too (default: the time of the
                latest of the observations; where that was analysed already, the next cycle).

        Returns:
            The analysis, with dimensions `(member, time, *space)`: of the cycle's time and the
            `lag` states before it. The coordinate `observed` counts the values at each time, the
            attribute those of the cycle: 0 in a gap.

        Raises:
            ValueError: If the observations do not fit the prior or come too late, or the time was
                analysed before. No cycle is run then.
            OSError: If the store cannot be written.
        """

        known, before = False, self.start
        try:
            if time is not None and self.start is None:
                first = float(time) if observations is None else observations.span[0]
                self.start = first_state(self.layout, first)
            due = None if time is None else self.cycle_at(time)
            if due is not None and due < self.cycle - (observations is not None):
                raise ValueError(
                    f"time {time:g} belongs to cycle {due}, which is done: the next one is "
                    f"{self.cycle}, at time {self.time(self.cycle):g}"
                )
            if due is not None and due - self.cycle > LONGEST_GAP:
                raise ValueError(
                    f"time {time:g} is {due - self.cycle} cycles after the last: check its units"
                )
            if observations is not None:
                last = self.add(observations)
                known = last is None
                if due is None:
                    due = self.cycle - 1 if last is None else max(last, self.cycle)
        except ValueError:
            self.start = before
            raise
        due = self.cycle if due is None else due
        for _ in self.advance(due):
            pass
        if self.last is None:
            why = "these observations were taken up before, and " if known else ""
            raise ValueError(
                f"nothing is due: {why}the next cycle is {self.cycle}, at time "
                f"{self.time(self.cycle):g}"
            )

        return self.analysis

    def advance(self, cycle: int) -> Iterator[xr.Dataset]:
        """Runs the cycles until one, and yields the analysis of each, see `send`."""

        while self.cycle <= cycle:
            self.step()
            yield self.analysis

    def run(
        self,
        stream: "Stream | Iterable[Observations]",
        refuse: Callable[[ValueError], None] | None = None,
    ) -> Iterator[xr.Dataset]:
        """Assimilates a stream, and yields the analysis of every cycle, see `send`.

        Arguments:
            stream: A stream of `sda.streams`, or any iterable of observations, such as a
                generator. The observations of one item are analysed when it comes in.
            refuse: What to do about observations that are too late or do not fit the prior, which
                are left out then (default: raise the error).

        Raises:
            ValueError: If observations do not fit the prior, or come too late.
        """

        from .streams import as_stream

        stream = as_stream(stream)
        if self.store is not None:
            stream.restore([mark for each in self.store.ledger for mark in each["marks"]])
        for found in stream.polls():
            # All that is there before any of it is analysed: instruments report one by one.
            cycles = [self._receive(batch, refuse) for batch in found]
            due = [cycle for cycle in cycles if cycle is not None]
            if due:
                yield from self.advance(max(due))

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

    def step(self) -> tuple[np.ndarray, dict[int, str]]:
        """Runs the next cycle, and writes it.

        Returns:
            What `sample` returns.

        Raises:
            ValueError: If the time of the first cycle is not known.
            OSError: If the store cannot be written.
        """

        cycle, until = self.cycle, self.cycle * self.every
        frames, failures, tail = self._next(cycle)
        if failures:
            warnings.warn(
                f"cycle {cycle}: {len(failures)} of {self.members} members failed and are NaN: "
                f"{next(iter(failures.values()))}",
                RuntimeWarning,
                stacklevel=3,
            )
        if self.store is not None:
            self._write(self.store, cycle, frames, failures, tail)
        self.tail = tail
        counts = [self.observed(step - 1, step) for step in range(until - self.lag, until + 1)]
        self.last = (cycle, frames, np.array(counts, dtype=np.int32))
        self.brought = self.observed(until - self.every, until)
        self.cycle = cycle + 1
        self.fresh, self.batches, self.marks, self.rejected = [], [], [], []
        self.pieces = [piece for piece in self.pieces if piece.first >= self.opens]

        return frames, failures

    def _next(self, cycle: int) -> tuple[np.ndarray, dict[int, str], torch.Tensor | None]:
        """The analysis of the next cycle, what failed, and the states to carry on from."""

        if self.carry == "observations":
            return *self.sample(cycle, self.pieces), None
        known = self.history - self.lag - self.every
        times = self.time(cycle) + self.layout.dt * np.arange(1 - self.history, 1)
        if self.tail is None:
            # The first states have none before them: their prior is the trajectory's.
            frames, failures = self.sample(cycle, self.pieces, self.history)
            x = self.prior.anomalies(frames, times, self.dtype, self.device)
        else:
            x, failures = self._continue(cycle, self.tail)
            x = torch.cat((self.tail, x), dim=1)
            frames = self.prior.states(x, times).cpu().numpy()
        tail = x[:, : x.shape[1] - self.lag][:, -known:]
        if failures:
            # A member that is lost goes on from the next that is not.
            good = [m for m in range(self.members) if m not in failures]
            if not good:
                raise FloatingPointError(
                    f"no member of cycle {cycle} could be sampled: {next(iter(failures.values()))}"
                )
            index = [next((g for g in good if g >= m), good[0]) for m in range(self.members)]
            tail = tail[index]
            # What is frozen of it already stays, and is no analysis of this cycle.
            frames[sorted(failures)] = np.nan

        return frames[:, -self.lag - 1 :], failures, tail

    def _continue(self, cycle: int, tail: torch.Tensor) -> tuple[torch.Tensor, dict[int, str]]:
        """Samples what follows frozen states given observations of it."""

        from .sampling import Diverged

        assert self.continuation is not None
        step = cycle * self.every
        window = Window(self.pieces, self.layout, self.time(0), step, self.lag + self.every)
        likelihood = None
        if len(window):
            likelihood = window.likelihood(self.prior, self.dtype, self.device)
        found: list[torch.Tensor] = []
        failures: dict[int, str] = {}
        for first in range(0, self.members, self.block):
            part = range(first, min(first + self.block, self.members))
            try:
                x = self.continuation.sample(
                    tail[part.start : part.stop], self.seed, part, FIRST_PART + step,
                    likelihood=likelihood, guidance=self.following,
                )  # fmt: skip
            except Diverged as error:
                x, failures = error.trajectories, failures | error.failures
            found.append(x)

        return torch.cat(found), failures

    def sample(
        self, cycle: int, pieces: Sequence[Piece], keep: int | None = None
    ) -> tuple[np.ndarray, dict[int, str]]:
        """Samples the last states of a cycle's window given observations.

        Arguments:
            cycle: The cycle.
            pieces: The observations; those outside its window, or after it, are left out.
            keep: The number of states to keep (default: `lag + 1`).

        Returns:
            The states in physical units, `(member, keep, channel, *space)`, and what happened to
            each member that failed, by its index.
        """

        from .sampling import Diverged, sample

        keep = keep or self.lag + 1
        step = cycle * self.every
        window = Window(pieces, self.layout, self.time(0), step, self.history)
        guided, langevin = self._guide(window)
        options: dict[str, Any] = {**self.sampling, "langevin": langevin}
        shape = (self.members, keep, *self.layout.shape)
        out = np.full(shape, np.nan, self.settings["dtype"])
        failures: dict[int, str] = {}
        try:
            self._prepare(guided, step, options)
            for first in range(0, self.members, self.block):
                part = range(first, min(first + self.block, self.members))
                try:
                    x = sample(
                        guided, self.shape, self.seed, part, stream=(MEMBERS, step), **options
                    )
                except Diverged as error:
                    x, failures = error.trajectories, failures | error.failures
                x = self.prior.states(x[:, -keep:], window.times[-keep:])
                out[part.start : part.stop] = x.cpu().numpy()
        except FloatingPointError as error:
            failures = dict.fromkeys(range(self.members), first_line(error))

        return out, failures

    def _guide(self, window: Window) -> "tuple[Denoiser, Langevin | None]":
        """The posterior denoiser of a window, and the Langevin steps that go with it.

        Windows that are observed alike share one, with all the factors that it keeps; the observed
        values alone change.
        """

        from .guidance import guide

        if not len(window):
            return self.denoiser, None
        key = window.signature
        guided: Any = self.guided.get(key) if key is not None else None
        if guided is None:
            likelihood = window.likelihood(self.prior, self.dtype, self.device)
            guided = guide(self.method, self.denoiser, likelihood, self.covariance, **self.options)
            # A seasonal cycle within an operator that is not linear is that of one window.
            mapping = self.prior.mapping
            if key is not None and (mapping is None or likelihood.linear or not mapping.cycle):
                self.guided[key] = guided
            # A factor for each noise level, and about two more for its metric.
            size = 3 * 8 * len(window) ** 2 * (self.sampling["steps"] + 1)
            while len(self.guided) > max(1, min(KEPT, self.memory // 4 // size)):
                self.guided.popitem(last=False)
        else:
            self.guided.move_to_end(key)
            guided.likelihood.y = window.seen(self.prior, self.dtype, self.device)
        exact = self.exact and guided.likelihood.linear

        return guided, None if exact else self.langevin

    def _prepare(self, guided: Any, step: int, options: Mapping[str, Any]) -> None:
        """Samples the pilots of a guidance that has any: they are of this cycle alone."""

        from .sampling import Diverged, sample

        if not hasattr(guided, "recording"):
            return
        try:
            with guided.recording():
                stream = (PILOTS, step)
                sample(guided, self.shape, self.seed, guided.pilots, stream=stream, **options)
        except Diverged as error:
            raise FloatingPointError(f"a pilot of the guidance failed: {error}") from error

    # Results ------------------------------------------------------------------------------------

    def observed(self, after: int, until: int) -> int:
        """The number of values observed after one state and until another, as far as is known."""
        return sum(len(piece) for piece in self.pieces if after < piece.last <= until)

    @property
    def analysis(self) -> xr.Dataset:
        """The analysis of the last cycle that this object has run, see `send`."""

        if self.last is None:
            raise ValueError("no cycle has been run yet")
        cycle, frames, counts = self.last
        steps = np.arange(-self.lag, 1)
        attrs = self.attrs | {"cycle": cycle, "observed": self.brought}
        time = self.time(cycle) + self.layout.dt * steps
        dataset = self.layout.to_dataset(frames, time, attrs=attrs)

        return dataset.assign_coords(observed=("time", counts))

    def rows(self, cycle: int, frames: np.ndarray) -> dict[int, np.ndarray]:
        """The analyses that a cycle gives or betters, by the cycle of their time."""

        back = range(min(cycle, self.lag // self.every) + 1)
        return {cycle - j: self.layout.hide(frames[:, -1 - j * self.every]) for j in back}

    def _write(
        self,
        store: AnalysisWriter,
        cycle: int,
        frames: np.ndarray,
        failures: Mapping[int, str],
        tail: torch.Tensor | None,
    ) -> None:
        store.begin(self.time(0))
        entry: dict[str, Any] = {
            "observed": self.observed((cycle - 1) * self.every, cycle * self.every),
            "failed": len(failures),
            "batches": self.fresh,
            "marks": self.marks,
        }
        if failures:
            entry["failures"] = [f"cycle {cycle}: {text}" for text in failures.values()]
            entry["failed_members"] = sorted(failures)
        arrays = None if tail is None else {"tail": tail.cpu().numpy()}
        store.put(cycle, self.rows(cycle, frames), entry, self.batches, arrays)

    def _resume(self, store: AnalysisWriter) -> None:
        """Takes up what a store says of an earlier run, and mends what is damaged."""

        if store.start is None:
            return
        if self.start is not None and abs(self.start - store.start) > 1e-9 * self.layout.dt:
            raise ValueError(
                f"{str(store.path)!r} starts at time {store.start:g}, got start={self.start:g}"
            )
        self.start, self.cycle = store.start, store.cycles
        self.taken = {batch["hash"] for entry in store.ledger for batch in entry["batches"]}
        self.pieces = self._known(store, self.cycle - 1, self.opens)
        if self.carry == "members" and self.cycle:
            self.tail = torch.from_numpy(store.arrays()["tail"]).to(self.device)
        damaged = store.damages()
        if damaged and self.carry == "members":
            raise ValueError(
                f"{str(store.path)!r} is damaged: {'; '.join(damaged.values())}. Analyses whose "
                f"members were carried cannot be made again one by one: give overwrite=true or "
                f"another path"
            )
        if damaged:
            warnings.warn(
                f"{str(store.path)!r} is damaged: {'; '.join(damaged.values())}. These analyses "
                f"are made again",
                RuntimeWarning,
                stacklevel=3,
            )
        # Each from the last cycle that has bettered it, given what was known then.
        again: dict[int, list[int]] = {}
        for row in damaged:
            again.setdefault(min(row + self.lag // self.every, self.cycle - 1), []).append(row)
        for cycle, rows in again.items():
            opens = cycle * self.every - self.history + 1
            frames, _ = self.sample(cycle, self._known(store, cycle, opens))
            analyses = self.rows(cycle, frames)
            for row in rows:
                store.write_row(row, analyses[row])

    def _known(self, store: AnalysisWriter, cycle: int, opens: int) -> list[Piece]:
        """The observations that a cycle knew, from a state on."""

        entries = [
            {"files": [name for name, batch in zip(entry["files"], entry["batches"], strict=True)
                       if batch["last"] >= opens]}
            for entry in store.ledger[: cycle + 1]
        ]  # fmt: skip
        pieces = [
            piece
            for batch in store.observations(entries)
            for piece in split(batch, self.layout, self.time(0))
        ]
        return [piece for piece in pieces if piece.first >= opens]

    def close(self, state: str = "stopped") -> None:
        """Closes the store, and releases its lock."""

        if self.store is not None:
            self.store.close(state)

    def __enter__(self) -> "Assimilator":
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self.close()


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


def continuation(
    prior: "Prior",
    known: int,
    frames: int,
    schedule: Mapping[str, Any],
    langevin: "Langevin | str | None",
    **options: Any,
) -> "Continuation":
    """What follows frozen states, with a schedule that suits it.

    Frozen states leave little to be decided above a noise level of 10, and their spread is smaller
    than that of a trajectory: the schedule ends well under it.
    """

    from .conditional import Continuation, spread

    given = dict(schedule)
    given["s_max"] = min(given["s_max"], 10.0)
    made = Continuation(prior, known, frames, langevin=langevin, **given, **options)
    smallest = float(spread(made.complement.covariance).min()) / 20
    made.options["s_min"] = min(made.options["s_min"], smallest)

    return made


def analysis_times(
    prior: "Prior", observations: Observations, time: Any = None
) -> tuple[float, int, int]:
    """The cycles of a finished set of observations.

    Arguments:
        prior: The prior, with its `dt`.
        observations: The observations.
        time: The times of the cycles, evenly apart (default: from the first observation to the
            last, as far apart as hits every one).

    Returns:
        The time of the first cycle, the states from one to the next, and the number of cycles.

    Raises:
        ValueError: If the times are not evenly apart in steps of `dt`.
    """

    dt = prior.layout.dt
    first, last = first_state(prior.layout, observations.span[0]), observations.span[1]
    if time is None:
        pieces = split(observations, prior.layout, first)
        steps = [piece.last for piece in pieces]
        every = math.gcd(*steps) or 1
        return first, every, max(steps) // every + 1
    time = np.asarray(getattr(time, "values", time), dtype=np.float64)
    if time.ndim != 1 or not len(time) or not np.isfinite(time).all():
        raise ValueError(f"time must be one-dimensional and finite, got shape {time.shape}")
    if len(time) == 1:
        return float(time[0]), 1, 1
    steps = np.diff(time) / dt
    every = round(float(steps[0]))
    if every < 1 or not np.allclose(steps, every, rtol=0, atol=1e-3):
        raise ValueError(
            f"the times of cycles must be evenly apart in steps of the prior's dt={dt:g}, got "
            f"steps of {np.diff(time).min():g} to {np.diff(time).max():g}"
        )
    if last > time[-1] + TIME_TOLERANCE * dt:
        raise ValueError(
            f"the observations reach to time {last:g}, but the last cycle is at {time[-1]:g}: "
            f"give times that cover them"
        )
    return float(time[0]), every, len(time)


def filter_all(
    prior: "Prior",
    observations: Observations,
    members: int = 64,
    seed: int = 0,
    out: str | Path | None = None,
    *,
    time: Any = None,
    progress: bool = False,
    **options: Any,
) -> xr.Dataset:
    """Runs a filter over a finished set of observations, see `sda.assimilate`.

    Arguments:
        prior: The prior.
        observations: The observations.
        members: The number of members.
        seed: The seed.
        out: A Zarr store to append to (default: the analyses are kept in memory).
        time: The times of the cycles, see `analysis_times`.
        progress: Whether a progress bar is shown.
        options: See `Assimilator`.

    Returns:
        The analyses, with dimensions `(member, time, *space)`: at each time given the observations
        until then, and with a lag those of so many states more as long as there are some.
    """

    from tqdm import tqdm

    start, every, count = analysis_times(prior, observations, time)
    rows: dict[int, np.ndarray] = {}
    counts = np.zeros((2, count), dtype=np.int32)
    messages: list[str] = []
    lost: set[int] = set()
    assimilator = Assimilator(prior, members, seed, start=start, every=every, out=out, **options)
    with assimilator, tqdm(total=count, disable=not progress, desc="filter", unit="cycle") as bar:
        bar.update(assimilator.cycle)
        assimilator.add(observations)
        while assimilator.cycle < count:
            cycle = assimilator.cycle
            counts[0, cycle] = assimilator.observed((cycle - 1) * every, cycle * every)
            frames, failures = assimilator.step()
            counts[1, cycle] = len(failures)
            messages += [f"cycle {cycle}: {text}" for text in failures.values()]
            lost |= failures.keys()
            if out is None:
                rows |= assimilator.rows(cycle, frames)
            bar.update()
        assimilator.close("complete")
    if out is not None:
        return open_dataset(out)
    attrs = assimilator.attrs | {
        "status": f"complete: {count} cycles",
        "failures": messages,
        "failed_members": sorted(lost),
    }

    return assimilator.layout.to_dataset(
        np.stack([rows[cycle] for cycle in range(count)], axis=1),
        start + every * prior.layout.dt * np.arange(count),
        attrs=attrs,
    ).assign_coords(observed=("time", counts[0]), failed=("time", counts[1]))
