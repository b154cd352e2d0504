"""What an assimilation will cost, before it is run.

The counts are exact: they follow from the sampler's levels, the Langevin steps and the method,

    evaluations = members · Σ_levels (1 + Langevin steps) (+ stages, pilots, and their Jacobian),

and so are the bytes on disk but for a few of metadata. An evaluation is one of the prior's
denoiser for one member, on the whole trajectory or, where that is sampled in blocks of time, on one
block. The time is estimated: one evaluation of each kind, and one Langevin step, are measured on
the machine, with as many members as are sampled together (up to a few).
"""

import math
import time as clock
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from torch import Tensor

from dynamics.simulate import compute_device

from .denoiser import Denoiser
from .guidance.averaged import AveragedGuidance
from .guidance.base import PosteriorDenoiser, analyse
from .guidance.flow_dependent import FlowDependentGuidance
from .guidance.hybrid import HybridGuidance
from .guidance.mmps import MMPSGuidance
from .guidance.static import StaticGuidance
from .guidance.tmpd import TMPDGuidance
from .long_local import Local, Locals
from .long_plan import Plan, plan
from .sampling import log_levels

if TYPE_CHECKING:
    from .langevin import Langevin
    from .observation import Observations
    from .prior import Prior

# The members that a step is measured with, at most.
MEASURED = 8


@dataclass(frozen=True)
class Cost:
    """What an assimilation will cost.

    Attributes:
        members, states, values: The members, the states of a trajectory and its values.
        observations: The number of observed values.
        evaluations: The evaluations of the prior's denoiser, summed over members (and blocks).
        vjps: The vector–Jacobian products, counted in the same way.
        member_blocks: The blocks of members.
        time_blocks: The blocks of time, 1 where the whole trajectory fits in memory.
        frames, halo: The states of a block of time and those seen on either side of it.
        memory: The bytes of memory that states and matrices take.
        scratch: The bytes of the state on disk while the run lasts.
        result: The bytes of the result.
        seconds: The time estimated from a measured step, None if nothing was measured.
    """

    members: int
    states: int
    values: int
    observations: int
    evaluations: int
    vjps: int
    member_blocks: int
    time_blocks: int
    frames: int
    halo: int
    memory: int
    scratch: int
    result: int
    seconds: float | None

    @property
    def disk(self) -> int:
        """The bytes on disk at the end of the run, when state and result are both there."""
        return self.scratch + self.result

    def __str__(self) -> str:
        where = "in memory" if self.time_blocks == 1 else (
            f"in {self.time_blocks} blocks of {self.frames} states, seen with {self.halo} on "
            f"either side"
        )  # fmt: skip
        lines = [
            f"{self.members} members of {self.states} states ({self.values} values each), given "
            f"{self.observations} observations",
            f"  time:        {where}",
            f"  members:     in {self.member_blocks} blocks",
            f"  evaluations: {self.evaluations} of the prior's denoiser, {self.vjps} "
            f"vector-Jacobian products",
            f"  memory:      {readable(self.memory)}",
            f"  disk:        {readable(self.result)} result"
            + (f", {readable(self.scratch)} while it runs" if self.scratch else ""),
        ]
        if self.seconds is not None:
            lines.append(f"  duration:    about {duration(self.seconds)}, from a measured step")

        return "\n".join(lines)


def cost(
    prior: "Prior",
    observations: "Observations",
    members: int = 64,
    *,
    time: Any = None,
    guidance: str | Mapping[str, Any] | None = None,
    langevin: "Langevin | str | None" = "default",
    sampler: str = "xeab",
    steps: int = 24,
    s_max: float = 100.0,
    s_min: float = 5e-3,
    memory: int | str = "2GiB",
    block: int | None = None,
    frames: int | None = None,
    device: str | torch.device = "cpu",
    dtype: torch.dtype | str = torch.float32,
    precision: str = "float32",
    measure: bool = True,
) -> Cost:
    """What `sda.assimilate` with the same arguments will cost (task "smooth", no particle steps).

    Arguments:
        measure: Whether a step is measured, which takes about as long as one step of a block.

    Raises:
        ValueError: If the arguments do not fit together, as in `assimilate`.
    """

    from .assimilation import (
        guidance_method,
        langevin_steps,
        trajectory_denoiser,
        trajectory_times,
    )
    from .budget import COPIES, block_size, too_long
    from .guidance import METHODS, guide
    from .precisions import sampling_dtype
    from .sampling import SAMPLERS

    if not isinstance(members, int) or members < 1:
        raise ValueError(f"members must be an integer of at least 1, got {members!r}")
    if block is not None and block < 1:
        raise ValueError(f"block must be at least 1, got {block}")
    kind = sampling_dtype(dtype, precision)
    place = compute_device(device)
    times = trajectory_times(prior, observations, time, memory)
    fields = bool(prior.layout.dims)
    method, options = guidance_method(guidance, fields)
    for name, known in ((method, METHODS), (sampler, SAMPLERS)):
        if name not in known:
            raise ValueError(f"unknown {name!r}: expected one of {', '.join(known)}")
    langevin = langevin_steps(langevin, fields, prior.langevin)
    levels = log_levels(steps, s_max, s_min).tolist()
    shape = (len(times), *prior.layout.shape)
    item = torch.finfo(kind).bits // 8
    prior = prior.at(times).to(place)
    visits = [1 + corrections(langevin, s) for s in levels]
    stages = len(levels) - 1 if sampler == "heun" else 0

    if frames is not None or too_long(prior, len(times), memory):
        made = plan(
            prior, len(times), members, method=method, options=options, langevin=langevin,
            sampler=sampler, memory=memory, dtype=kind, frames=frames,
        )  # fmt: skip
        locals_ = Locals(
            prior, observations, times, made.blocks, method, options,
            dtype=kind, device=place, memory=memory, precision=precision,
        )  # fmt: skip
        return long_cost(locals_, made, members, levels, visits, langevin, observations, measure)

    climatology = prior.climatology
    likelihood = prior.likelihood(observations, times, dtype=kind, device=place)
    guided = guide(
        method, trajectory_denoiser(prior, len(times), kind, memory, precision), likelihood,
        climatology.covariance(len(times), kind), **options,
    )  # fmt: skip
    together = min(members, block or block_size(members, shape, kind, memory))
    # The last level has no step, and Heun's stages are at the next level.
    extra = [0, *[1] * stages] if stages else [0] * len(levels)
    counts = Counts.of(guided, levels, [v + e for v, e in zip(visits, extra, strict=True)])
    seconds = None
    if measure:
        clocked = Clock(guided, together, langevin, seed=0)
        seconds = clocked.run(levels, visits, extra, members / clocked.members)
        seconds += clocked.pilots(counts, levels, visits, extra)
    matrices = sum(each.numel() * each.element_size() for each in guided.covariance.buffers())
    values = math.prod(shape)
    if guided.space.direct or guided.space.elementwise:
        matrices += guided.space.size * item

    return Cost(
        members, len(times), values, len(observations),
        members * counts.evaluations + counts.pilots * counts.pilot_evaluations,
        members * counts.vjps + counts.pilots * counts.pilot_vjps,
        math.ceil(members / together), 1, len(times), 0,
        matrices + COPIES * together * values * item, 0, members * values * item, seconds,
    )  # fmt: skip


def long_cost(
    locals_: Locals,
    made: Plan,
    members: int,
    levels: list[float],
    visits: list[int],
    langevin: "Langevin | None",
    observations: "Observations",
    measure: bool,
) -> Cost:
    """The cost of a run in blocks of time."""

    evaluations = vjps = 0
    seconds = 0.0 if measure else None
    clocked: dict[tuple[bool, int], float] = {}
    for k, part in enumerate(locals_.parts):
        local = locals_[k]
        if isinstance(local.denoiser, PosteriorDenoiser):
            counts = Counts.of(local.denoiser, levels, visits)
        else:
            pilots = int(locals_.options.get("pilots", 2)) if locals_.method != "static" else 0
            counts = Counts(sum(visits), 0, pilots, sum(visits), 0, [False] * len(levels))
        evaluations += members * counts.evaluations + counts.pilots * counts.pilot_evaluations
        vjps += members * counts.vjps + counts.pilots * counts.pilot_vjps
        if seconds is not None:
            # Blocks of one size with as many observations take the same time.
            key = (local.numbers is None, part.high - part.low)
            if key not in clocked:
                clocked[key] = block_seconds(
                    locals_, local, made, members, levels, visits, langevin, counts
                )
            seconds += clocked[key]
    values = made.blocks.length * math.prod(locals_.prior.layout.shape)
    batches = math.ceil(members / made.batch)

    return Cost(
        members, made.blocks.length, values, len(observations), evaluations, vjps, batches,
        len(locals_.parts), made.blocks.core, made.blocks.halo, made.memory, made.disk,
        made.result, seconds,
    )  # fmt: skip


def block_seconds(
    locals_: Locals,
    local: Local,
    made: Plan,
    members: int,
    levels: list[float],
    visits: list[int],
    langevin: "Langevin | None",
    counts: "Counts",
) -> float:
    """The time of one block at all levels."""

    part, state = local.part, locals_.prior.layout.shape
    together = min(made.batch, MEASURED)
    if local.known is not None:
        local.known.residual = torch.zeros(
            together, part.high - part.low, *state, dtype=locals_.dtype, device=locals_.device
        )
    clocked = Clock(
        local.denoiser, together, langevin, seed=0, shape=(part.high - part.low, *state)
    )
    none = [0] * len(levels)
    seconds = clocked.run(levels, visits, none, members / clocked.members)
    seconds += clocked.pilots(counts, levels, visits, none)
    if locals_.split:
        narrow = locals_.residual_part(part)
        x = torch.zeros(
            together, narrow.high - narrow.low, *state, dtype=locals_.dtype, device=locals_.device
        )
        one = elapsed(lambda: locals_.residual(x, 1.0))
        seconds += one * sum(visits) * members / together

    return seconds


def corrections(langevin: "Langevin | None", s: float) -> int:
    """The Langevin steps at a level."""
    return langevin.steps if langevin and langevin.s_min <= s <= langevin.s_max else 0


@dataclass
class Counts:
    """The evaluations and vector–Jacobian products of one trajectory.

    Attributes:
        evaluations, vjps: Of each member.
        pilots: The number of pilots.
        pilot_evaluations, pilot_vjps: Of each pilot, with those of its Jacobian.
        recorded: At which levels the pilots leave their Jacobian.
    """

    evaluations: int
    vjps: int
    pilots: int
    pilot_evaluations: int
    pilot_vjps: int
    recorded: list[bool]

    @classmethod
    def of(cls, guided: PosteriorDenoiser, levels: list[float], visits: list[int]) -> "Counts":
        """The counts of a guidance, given how often each level is visited."""

        evaluations = sum(visits)
        vjps = sum(n * products(guided, s) for s, n in zip(levels, visits, strict=True))
        if not isinstance(guided, FlowDependentGuidance):
            return cls(evaluations, vjps, 0, 0, 0, [False] * len(levels))
        flow, recorded = 0, []
        for s in levels:
            recorded.append(s <= guided.s_flow and flow % guided.every == 0)
            flow += s <= guided.s_flow
        rows = math.prod(guided.shape) if guided.form == "dense" else len(guided.likelihood)
        count = sum(recorded)

        return cls(
            evaluations, vjps, guided.pilots, evaluations + count, vjps + count * rows, recorded
        )


def products(guided: PosteriorDenoiser, s: float) -> int:
    """The vector–Jacobian products of one evaluation of a guidance at a level."""

    if isinstance(guided, HybridGuidance | AveragedGuidance):
        own = guided.own and guided.s_low <= s <= guided.s_high
        return min(guided.solves, len(guided.likelihood)) if own else 0
    if isinstance(guided, StaticGuidance):
        return 0
    if isinstance(guided, MMPSGuidance):
        return 1 + min(guided.solves, len(guided.likelihood))
    return 2 if isinstance(guided, TMPDGuidance) else 1


class Clock:
    """Measures the steps of a posterior denoiser.

    Arguments:
        denoiser: The denoiser.
        members: The members that are sampled together.
        langevin: The Langevin steps.
        seed: The seed of the states that it is measured on.
        shape: The shape of a trajectory (default: the guided denoiser's).
    """

    def __init__(
        self,
        denoiser: Denoiser,
        members: int,
        langevin: "Langevin | None",
        seed: int,
        shape: tuple[int, ...] | None = None,
    ) -> None:
        self.denoiser, self.langevin = denoiser, langevin
        self.members = min(members, MEASURED)
        self.shape: tuple[int, ...] = shape if shape else tuple(getattr(denoiser, "shape", ()))
        like = next(denoiser.buffers(), None)
        covariance = getattr(denoiser, "covariance", None)
        like = covariance.eigenvalues if covariance is not None else like
        rng = np.random.default_rng(seed)

        def noise(size: tuple[int, ...], count: int = self.members) -> Tensor:
            values = torch.from_numpy(rng.standard_normal((count, *size)))
            return values if like is None else values.to(like)

        self.noise: Callable[..., Tensor] = noise
        self.flow = isinstance(denoiser, FlowDependentGuidance)
        self.jacobian = 0.0
        self._known: dict[tuple[int, bool, bool], tuple[float, float, float]] = {}

    def run(self, levels: list[float], visits: list[int], extra: list[int], factor: float) -> float:
        """The seconds of all levels for `factor` times the members that are measured."""

        total = 0.0
        for s, count, more in zip(levels, visits, extra, strict=True):
            first, again, move = self.level(s)
            total += max(first - again, 0.0)
            total += factor * (again * (count + more) + move * (count - 1))

        return total

    def pilots(
        self, counts: Counts, levels: list[float], visits: list[int], extra: list[int]
    ) -> float:
        """The seconds of the pilots."""

        if not counts.pilots:
            return 0.0
        same = self.run(levels, visits, extra, counts.pilots / self.members)
        return same + self.jacobian * sum(counts.recorded)

    def level(self, s: float) -> tuple[float, float, float]:
        """The seconds of a first evaluation, of another, and of a Langevin step at a level."""

        guided = self.denoiser
        kind = products(guided, s) if isinstance(guided, PosteriorDenoiser) else 0
        flow = isinstance(guided, FlowDependentGuidance) and s <= guided.s_flow
        key = (kind, flow, corrections(self.langevin, s) > 0)
        if key not in self._known:
            self._known[key] = self._measure(s, flow, key[2])

        return self._known[key]

    def _measure(self, s: float, flow: bool, moves: bool) -> tuple[float, float, float]:
        guided = self.denoiser
        x = math.sqrt(1 + s**2) * self.noise(self.shape)
        if flow:
            assert isinstance(guided, FlowDependentGuidance)
            z = math.sqrt(1 + s**2) * self.noise(self.shape, guided.pilots)
            with guided.recording():
                self.jacobian = elapsed(lambda: analyse(guided, z, s))
        first = elapsed(lambda: analyse(guided, x, s))
        analysis = analyse(guided, x, s)
        again = min(elapsed(lambda: analyse(guided, x, s)) for _ in range(2))
        move = 0.0
        if moves and self.langevin is not None:
            langevin = self.langevin

            def step() -> Tensor:
                metric = langevin.metric_of(guided, analysis)
                made = metric.move((analysis.mean - x) / s**2, self.noise)
                return made.combine(x.new_ones(len(x)), x.new_ones(len(x)))

            step()
            move = elapsed(step)

        return first, again, move


def elapsed(work: Callable[[], Any]) -> float:
    """The seconds of a piece of work, also on a GPU."""

    gpu = torch.cuda.is_available()
    if gpu:
        torch.cuda.synchronize()
    start = clock.perf_counter()
    work()
    if gpu:
        torch.cuda.synchronize()

    return clock.perf_counter() - start


def readable(size: float) -> str:
    """A number of bytes as text."""

    for unit in ("B", "KiB", "MiB", "GiB"):
        if size < 1024:
            return f"{size:.3g} {unit}"
        size /= 1024
    return f"{size:.3g} TiB"


def duration(seconds: float) -> str:
    """A time as text."""

    for limit, size, unit in ((120, 1, "s"), (7200, 60, "min"), (172800, 3600, "h")):
        if seconds < limit:
            return f"{seconds / size:.2g} {unit}"
    return f"{seconds / 86400:.2g} days"
