"""An ensemble of long trajectories on its way from noise to the posterior, level by level."""

import math
import os
import time as clock
from collections.abc import Callable, Iterator, Mapping
from contextlib import AbstractContextManager, contextmanager, nullcontext
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from torch import Tensor

from .guidance.base import CappedPrior, PosteriorDenoiser, PriorMetric, analyse
from .guidance.flow_dependent import FlowDependentGuidance
from .long_blocks import AddressedNoise, Part
from .long_local import Local, Locals, Unobserved
from .long_states import States, mapped, read_state, write_state
from .sampling import PILOT, SAMPLERS, _lost, log_levels

if TYPE_CHECKING:
    from .langevin import Langevin

# Seconds of work that an interruption costs at most, besides the block that it hits.
CHECKPOINT = 30.0


class Members:
    """An ensemble of long trajectories on its way from noise to the posterior.

    Arguments:
        locals_: The posterior denoisers of the blocks.
        folder: Where the states lie.
        members: The number of members.
        batch: The members that are computed together.
        seed: The seed of the run.
        stream: The stream of noise, that of the members or that of the pilots.
        arrays: The names of the arrays, see `Plan`.
        schedule: The sampler and its levels.
        langevin: The Langevin steps.
        tables: The folder that pilots leave their covariance in.
        about: What the run's `state.json` says besides.
        durable: Whether the run can be resumed.

    Raises:
        OSError: If the disk has no room for the states.
        ValueError: If the states of a run that is taken up are not as they were written.
    """

    def __init__(
        self,
        locals_: Locals,
        folder: Path,
        members: int,
        batch: int,
        seed: int,
        stream: int,
        arrays: tuple[str, ...],
        schedule: Mapping[str, Any],
        langevin: "Langevin | None",
        tables: Path,
        about: Mapping[str, Any],
        durable: bool,
    ) -> None:
        self.locals, self.folder, self.members = locals_, folder, members
        self.seed, self.stream, self.tables = seed, stream, tables
        self.durable = durable
        self.batches = [slice(a, min(a + batch, members)) for a in range(0, members, batch)]
        levels = log_levels(schedule["steps"], schedule["s_max"], schedule["s_min"])
        self.sampler = SAMPLERS[schedule["sampler"]](levels)
        self.levels: list[float] = levels.tolist()
        self.langevin = langevin
        self.state = locals_.prior.layout.shape
        shape = (locals_.blocks.length, members, *self.state)
        stored = read_state(folder)
        begun = stored is not None
        self.states = States(folder, arrays, shape, locals_.dtype, begun)
        table = (len(locals_.parts), members)
        self.sums = mapped(folder / "sums.bin", table, np.float64, begun)
        self.lost = mapped(folder / "lost.bin", table, np.uint8, begun)
        self.cursor = stored or {
            **about, "level": -1, "phase": 0, "block": 0, "x": 0, "failures": {}
        }  # fmt: skip
        self.saved = clock.monotonic()

    @property
    def failures(self) -> dict[int, str]:
        """What happened to each member that failed, by its index."""
        return {int(member): text for member, text in self.cursor["failures"].items()}

    @property
    def level(self) -> int:
        """The level that is next, -1 for the first draw."""
        return int(self.cursor["level"])

    def steps(self, level: int) -> int:
        """The Langevin steps at a level."""

        if self.langevin is None or not (
            self.langevin.s_min <= self.levels[level] <= self.langevin.s_max
        ):
            return 0
        return self.langevin.steps

    def phases(self, level: int) -> list[tuple[str, int]]:
        """The phases of a level, each with the Langevin step that it belongs to."""

        if level < 0:
            return [("start", 0)]
        found: list[tuple[str, int]] = []
        for k in range(self.steps(level) + 1):
            found += [("residual", k)] if self.locals.split else []
            found += [("visit", k)]
            found += [("update", k)] if k < self.steps(level) else []

        return [*found, ("step", 0)]

    def run(self, level: int) -> None:
        """Does what is left of a level."""

        if self.level > level:
            return
        self.locals.forget()
        phases = self.phases(level)
        work: dict[str, Callable[[int, int, int], None]] = {
            "start": self._start, "residual": self._residual, "visit": self._visit,
            "update": self._update, "step": self._step,
        }  # fmt: skip
        while self.cursor["phase"] < len(phases):
            name, k = phases[self.cursor["phase"]]
            for block in range(self.cursor["block"], len(self.locals.parts)):
                work[name](level, k, block)
                if clock.monotonic() - self.saved > CHECKPOINT:
                    self._save(block=block + 1)
            if name == "step":
                if self.lost.any():
                    # The steps of members that are dropped cannot be made again.
                    self._save(block=len(self.locals.parts))
                self._drop(level)
            swap = {"x": 1 - self.cursor["x"]} if name in ("update", "step") else {}
            self._save(phase=self.cursor["phase"] + 1, block=0, **swap)
        self._save(level=level + 1, phase=0)

    def close(self) -> None:
        """Lets go of the files."""
        self.states.close()

    @property
    def result(self) -> np.ndarray:
        """The posterior in physical units, once all levels are done, `(member, time, …)`, on disk.

        Members that failed are NaN.
        """
        return self.states.arrays[self._here].swapaxes(0, 1)

    @property
    def _here(self) -> str:
        return f"x{self.cursor['x']}"

    @property
    def _there(self) -> str:
        return f"x{1 - self.cursor['x']}"

    def _save(self, **changes: int) -> None:
        """Notes how far the run is, once all that it has written is on disk."""

        self.cursor |= changes
        if not self.durable:
            return
        self.states.flush()
        for table in (self.sums, self.lost):
            table.flush()  # type: ignore[attr-defined]
        write_state(self.folder, self.cursor)
        self.saved = clock.monotonic()

    def _noise(self, level: int, k: int, local: Local, members: slice, low: int) -> AddressedNoise:
        """The noise of one occasion: the first draw, or a step at a level."""

        most = 0 if self.langevin is None else self.langevin.steps
        occasion = 0 if level < 0 else 1 + level * (most + 1) + k
        return AddressedNoise(
            self.seed, range(members.start, members.stop), (self.stream, occasion), low,
            self.state, local.numbers, self.locals.dtype, self.locals.device,
        )  # fmt: skip

    def _batches(self, block: int) -> Iterator[tuple[Local, Part, slice]]:
        local = self.locals[block]
        for members in self.batches:
            yield local, local.part, members

    def _read(self, name: str, low: int, high: int, members: slice) -> Tensor:
        return self.states.read(name, low, high, members, self.locals.device)

    def _start(self, level: int, k: int, block: int) -> None:
        """Draws noisy trajectories at the first level."""

        s = self.levels[0]
        for local, part, members in self._batches(block):
            noise = self._noise(level, k, local, members, part.low)
            count = members.stop - members.start
            if isinstance(local.denoiser, PosteriorDenoiser):
                x = local.denoiser.start(s, count, noise)
            else:
                assert isinstance(local.denoiser, Unobserved)
                x = PriorMetric(local.denoiser.covariance, CappedPrior(s)).draw(noise)
            self.states.write(self._here, part.start, members, x[:, part.core])

    def _residual(self, level: int, k: int, block: int) -> None:
        """Evaluates the network."""

        part = self.locals.residual_part(self.locals.parts[block])
        for members in self.batches:
            x = self._read(self._here, part.low, part.high, members)
            out = self.locals.residual(x, self.levels[level])
            self.states.write("residual", part.start, members, out[:, part.core])

    def _visit(self, level: int, k: int, block: int) -> None:
        """Evaluates the guided mean, and what a Langevin step needs of it."""

        s, steps = self.levels[level], self.steps(level)
        for local, part, members in self._batches(block):
            x = self._read(self._here, part.low, part.high, members)
            if local.known is not None:
                local.known.residual = self._read("residual", part.low, part.high, members)
            before = self._counts(local)
            with self._with_table(local, block, level, x):
                analysis = analyse(local.denoiser, x, s)
            after = self._counts(local)
            if not self.locals.split:
                self.locals.evaluations += max(after[0] - before[0], len(x))
            self.locals.vjps += after[1] - before[1]
            mean = analysis.mean[:, part.core]
            self.states.write("mean", part.start, members, mean)
            if k == 0 and steps:
                jump = self._read("jump", part.start, part.stop, members)
                self.states.write("before", part.start, members, jump - mean)
            if self.langevin is None or k >= steps:
                continue
            metric = self.langevin.metric_of(local.denoiser, analysis)
            g = (analysis.mean - x) / s**2
            move = metric.move(g, self._noise(level, k, local, members, part.low))
            one, none = x.new_ones(len(x)), x.new_zeros(len(x))
            drift = move.combine(one, none)[:, part.core]
            self.states.write("drift", part.start, members, drift)
            draw = move.combine(none, one)[:, part.core]
            self.states.write("draw", part.start, members, draw)
            square = (g[:, part.core] * drift).double().flatten(1).sum(1)
            self.sums[block, members] = square.cpu().numpy()

    @staticmethod
    def _counts(local: Local) -> tuple[int, int]:
        guided = local.denoiser
        if isinstance(guided, PosteriorDenoiser):
            return guided.evaluations, guided.vjps
        return 0, 0

    def _with_table(
        self, local: Local, block: int, level: int, x: Tensor
    ) -> AbstractContextManager[None]:
        """A context in which a block has the pilots' covariance of the level, or takes it."""

        s, guided = self.levels[level], local.denoiser
        if not isinstance(guided, FlowDependentGuidance) or s > guided.s_flow:
            return nullcontext()
        path = self.tables / f"{block}.npz"
        first = next(i for i, each in enumerate(self.levels) if each <= guided.s_flow)
        mine = level - (level - first) % guided.every
        if self.stream == PILOT and mine == level and not self._recorded(path, s):
            return self._recording(guided, path, local, s)
        if local.table != self.levels[mine]:
            with np.load(path) as stored:
                guided.load_tables({key: torch.from_numpy(stored[key]) for key in stored.files})
            local.table = self.levels[mine]
        return nullcontext()

    @staticmethod
    def _recorded(path: Path, s: float) -> bool:
        if not path.is_file():
            return False
        with np.load(path) as stored:
            return float(stored["levels"][0]) == s

    def _recording(
        self, guided: FlowDependentGuidance, path: Path, local: Local, s: float
    ) -> AbstractContextManager[None]:
        @contextmanager
        def context() -> Iterator[None]:
            with guided.recording():
                yield
            part = path.with_name(f".{path.name}")
            with part.open("wb") as file:
                arrays: dict[str, Any] = {k: v.cpu().numpy() for k, v in guided.tables().items()}
                np.savez(file, **arrays)
                file.flush()
                os.fsync(file.fileno())
            os.replace(part, path)
            local.table = s

        return context()

    def _update(self, level: int, k: int, block: int) -> None:
        """Makes a Langevin step, as long as the whole trajectory says."""

        langevin, part = self.langevin, self.locals.parts[block]
        assert langevin is not None
        values = self.locals.blocks.length * math.prod(self.state)
        norm = torch.from_numpy(self.sums.sum(0) / values).to(self.locals.dtype)
        if k == 0 and block == 0:
            langevin.alarms[self.levels[level]] = float(norm.mean())
        a, b = (each.reshape(-1, *[1] * (1 + len(self.state))) for each in langevin.factors(norm))
        for m in self.batches:
            x, drift, draw = (
                self.states.read(name, part.start, part.stop, m)
                for name in (self._here, "drift", "draw")
            )
            self.states.write(self._there, part.start, m, x + a[m] * drift + b[m] * draw)

    def _step(self, level: int, k: int, block: int) -> None:
        """Steps to the next level, and keeps the mean for the steps after it."""

        part, last = self.locals.parts[block], level == len(self.levels) - 1
        order = self.sampler.order
        most = 0 if self.langevin is None else self.langevin.steps
        local = Local(part, Unobserved.__new__(Unobserved), None)
        for m in self.batches:
            x, mean = (
                self.states.read(name, part.start, part.stop, m) for name in (self._here, "mean")
            )
            jump: Tensor | None = None
            if self.langevin is not None:
                # The jumps of the mean in all Langevin steps so far.
                jump = self.states.read("jump", part.start, part.stop, m)
                if self.steps(level):
                    jump = mean + self.states.read("before", part.start, part.stop, m)
                    self.states.write("jump", part.start, m, jump)
            past = [
                self.states.read(f"past{j % order}", part.start, part.stop, m)
                for j in range(max(0, level - order + 1), level)
            ]
            self.sampler.history = past if jump is None else [each + jump for each in past]
            if last:
                x = mean
            else:
                noise = self._noise(level, most, local, m, part.start)
                x = self.sampler.step(level, x, mean, self._no_stage, noise)
            self.lost[block, m] = _lost(x, self.levels[level], last).numpy()
            if last:
                times = self.locals.time[part.start : part.stop]
                x = self.locals.prior.states(x.to(self.locals.device), times)
            self.states.write(self._there, part.start, m, x)
            self.states.write(
                f"past{level % order}", part.start, m, mean if jump is None else mean - jump
            )

    @staticmethod
    def _no_stage(x: Tensor, s: float) -> Tensor:
        raise ValueError("a sampler with stages needs the whole trajectory in memory")

    def _drop(self, level: int) -> None:
        """Notes which members are lost. They go on from the climatological mean, and end as NaN."""

        lost = np.flatnonzero(self.lost.any(0)).tolist()
        s, failures = self.levels[level], self.failures
        for member in lost:
            failures.setdefault(member, f"member {member} diverged at level {level} (s = {s:.3g})")
        self.cursor["failures"] = {str(member): text for member, text in failures.items()}
        if level == len(self.levels) - 1:
            self.states.fill(self._there, sorted(failures), math.nan)
            return
        names = [name for name in self.states.arrays if name.startswith(("past", "jump"))]
        for name in (self._there, *names):
            self.states.fill(name, lost, 0.0)
