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

import warnings
from collections.abc import Callable, Iterable, Iterator, Mapping
from pathlib import Path
from types import TracebackType
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
import xarray as xr

from .analyses import AnalysisWriter
from .cf.times import first_state
from .filter_cycles import Cycles
from .filter_inbox import LONGEST_GAP, Late
from .observation import Observations
from .observation.recent import Piece, split

if TYPE_CHECKING:
    from .langevin import Langevin
    from .prior import Prior
    from .quality import Quality
    from .streams import Stream

__all__ = ["Assimilator", "Late"]


class Assimilator(Cycles):
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
        guidance: The guidance, see `sda.assimilate`. Default for a Gaussian prior: `static`, which
            is exact for linear observations. For vectors and small periodic fields (windows of up
            to 512 and 2,048 values): `averaged`, whose shared covariance is of the prior alone and
            made once, in the first cycle. Else that of a smoother.
        langevin: Langevin steps, see `sda.assimilate`. Default with `averaged`: two of `δ = 1` at
            each level from 2.5 to 0.08, see `sda.filter_cycles`. None where `static` is exact.
        steps, s_max, s_min: The noise levels (default with `averaged`: 12 steps from 20 to 0.02,
            which is under the spread of what is observed with errors of a twentieth of its
            standard deviation; for more precise ones give a smaller `s_min`. Else 24 from 100 to
            0.005).
        sampler, memory, block, device, dtype, precision: See `sda.assimilate`.
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
        steps: int | None = None,
        s_max: float | None = None,
        s_min: float | None = None,
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
        from .assimilation import provenance

        if out is None and (overwrite or resume):
            raise ValueError("overwrite and resume need an output store, got out=None")
        super().__init__(
            prior, members, seed, lag, history, carry, start=start, every=every,
            guidance=guidance, langevin=langevin, sampler=sampler, steps=steps, s_max=s_max,
            s_min=s_min, memory=memory, block=block, device=device, dtype=dtype,
            precision=precision, quality=quality,
        )  # fmt: skip
        self.last: tuple[int, np.ndarray, np.ndarray] | None = None
        self.brought = 0
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
            # What an interrupted run had taken up, but not analysed, does not come again.
            pending = [self.cycle_of(piece) for piece in self.pieces if self.store.ledger]
            if pending and max(pending) >= self.cycle:
                yield from self.advance(max(pending))
        for found in stream.polls():
            # All that is there before any of it is analysed: instruments report one by one.
            cycles = [self._receive(batch, refuse) for batch in found]
            due = [cycle for cycle in cycles if cycle is not None]
            if due:
                yield from self.advance(max(due))

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
        self._forget()

        return frames, failures

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
