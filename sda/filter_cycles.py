"""The cycles of a filter: the analysis of one time after the other, sampled."""

import math
from collections import OrderedDict
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

import numpy as np
import torch

from dynamics.simulate import compute_device

from .covariance import Covariance, DenseCovariance, SpectralCovariance
from .filter_inbox import Inbox, check_integer
from .guidance.base import PosteriorDenoiser
from .observation.recent import Piece, Window
from .store.errors import first_line

if TYPE_CHECKING:
    from .conditional import Continuation
    from .denoiser import Denoiser
    from .langevin import Langevin
    from .prior import Prior
    from .quality import Quality

# Streams of noise, see `dynamics.random`: one of the members and one of the pilots in each cycle.
MEMBERS, PILOTS = 31, 32
# Guided denoisers that are kept for windows that are observed alike.
KEPT = 16
# The values of a window up to which its guidance is `averaged` by default.
AVERAGED = {DenseCovariance: 512, SpectralCovariance: 2048}
# The noise levels of that guidance, whose Langevin steps allow wider steps.
AVERAGED_LEVELS: dict[str, Any] = {"steps": 12, "s_max": 20.0, "s_min": 0.02}
# The cycles of a filter that carries members have parts of the noise of forecasts of their own.
FIRST_PART = 1 << 20


class Cycles(Inbox):
    """Samples the cycles of a filter, see `sda.Assimilator`, whose arguments these are.

    Attributes:
        settings: What decides the analyses, as plain JSON types.
        complete: The cycle before which all observations were added: those until then may be
            sampled together, see `sda.filter_ahead`.
        tail: The frozen states of members that are carried, `(member, T, channel, *space)`.

    Raises:
        ValueError: If an argument is out of range.
    """

    def __init__(
        self,
        prior: "Prior",
        members: int,
        seed: int,
        lag: int,
        history: int | None,
        carry: str,
        *,
        start: float | None,
        every: int,
        guidance: str | Mapping[str, Any] | None,
        langevin: "Langevin | str | None",
        sampler: str,
        steps: int | None,
        s_max: float | None,
        s_min: float | None,
        memory: int | str,
        block: int | None,
        device: str | torch.device,
        dtype: torch.dtype | str,
        precision: str,
        quality: "Quality | Mapping[str, Any] | bool | None",
    ) -> None:
        from .assimilation import (
            LEVELS,
            block_size,
            guidance_method,
            langevin_steps,
            plain,
            sampling_dtype,
            size_in_bytes,
            trajectory_denoiser,
        )
        from .budget import LARGEST_BLOCK
        from .guidance import METHODS
        from .guidance.averaged import AveragedGuidance, ErrorCovariances
        from .sampling import SAMPLERS, log_levels

        check_integer("members", members, 1)
        check_integer("seed", seed, 0)
        if block is not None and block < 1:
            raise ValueError(f"block must be at least 1, got {block}")
        super().__init__(prior, lag, history, carry, every, start, quality)
        dtype, device = sampling_dtype(dtype, precision), compute_device(device)
        vectors = not prior.layout.dims
        # What follows frozen states has a guidance without pilots; the first cycle has none before.
        self.following: Any = "static" if guidance is None else guidance
        self.covariance = prior.climatology.covariance(self.history, dtype)
        if guidance is None:
            guidance = cycle_guidance(prior, self.covariance, carry)
        method, options = guidance_method(guidance, fields=not vectors)
        if method not in METHODS:
            raise ValueError(f"unknown guidance {method!r}: expected one of {', '.join(METHODS)}")
        # Exact already, where prior and observations are linear.
        self.exact = prior.gaussian and langevin == "default" and method == "static"
        langevin_given = langevin
        averaged = METHODS[method] is AveragedGuidance
        if langevin == "default" and averaged:
            langevin = cycle_langevin()
        langevin = langevin_steps(langevin, not vectors, prior.langevin)
        if sampler not in SAMPLERS:
            raise ValueError(f"unknown sampler {sampler!r}: expected one of {', '.join(SAMPLERS)}")
        given: dict[str, Any] = {"steps": steps, "s_max": s_max, "s_min": s_min}
        free, levels = (
            {name: each if given[name] is None else given[name] for name, each in known.items()}
            for known in (LEVELS, AVERAGED_LEVELS if averaged else LEVELS)
        )
        log_levels(**levels)

        self.prior = prior.to(device)
        self.members, self.seed = members, seed
        self.method, self.options, self.langevin = method, options, langevin
        schedule: dict[str, Any] = {"sampler": sampler, **levels}
        self.sampling: dict[str, Any] = {**schedule, "dtype": dtype, "device": device}
        # What nothing is observed of starts from white noise, at a level that hides its covariance.
        self.free: dict[str, Any] = {**self.sampling, **free}
        self.dtype, self.device, self.memory = dtype, device, size_in_bytes(memory)
        self.shape = (self.history, *self.layout.shape)
        self.block = block or block_size(members, self.shape, dtype, memory)
        # The members of several cycles that are sampled together, at most.
        self.together = block or block_size(LARGEST_BLOCK, self.shape, dtype, memory)
        self.denoiser = trajectory_denoiser(prior, self.history, dtype, memory, precision)
        # Made once, of the prior alone: windows of all cycles share them.
        self.shared: dict[str, Any] = {}
        if averaged:
            self.shared["errors"] = ErrorCovariances(self.denoiser, self.covariance)
        self.guided: OrderedDict[Any, Denoiser] = OrderedDict()
        # All observations of the cycles before this one are in: they may be sampled ahead.
        self.complete = 0
        self.made: dict[int, np.ndarray] = {}
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

        if keep is None and cycle in self.made:
            return self.made.pop(cycle), {}
        if keep is None and cycle + 1 < self.complete and self._sample_ahead(cycle, pieces):
            return self.made.pop(cycle), {}
        keep = keep or self.lag + 1
        step = cycle * self.every
        window = Window(pieces, self.layout, self.time(0), step, self.history)
        guided, langevin = self._guide(window)
        schedule = self.sampling if len(window) else self.free
        options: dict[str, Any] = {**schedule, "langevin": langevin}
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

    def _sample_ahead(self, cycle: int, pieces: Sequence[Piece]) -> bool:
        """Whether a cycle and those that are observed alike were sampled together."""

        from .filter_ahead import alike, sample_alike

        self.made = {}
        windows = alike(self, cycle, pieces, self.complete)
        if len(windows) < 2:
            return False
        guided, langevin = self._guide(windows[0])
        pilots = hasattr(guided, "recording")
        if pilots or not isinstance(guided, PosteriorDenoiser) or not guided.space.direct:
            return False
        streams = [(MEMBERS, window.last) for window in windows]
        options = {**self.sampling, "langevin": langevin}
        found = sample_alike(self, windows, guided, streams, self.lag + 1, options)
        if found is None:
            return False
        dtype = self.settings["dtype"]
        self.made = {cycle + k: x.astype(dtype, copy=False) for k, x in enumerate(found)}

        return True

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
            guided = guide(
                self.method, self.denoiser, likelihood, self.covariance,
                **self.shared, **self.options,
            )  # fmt: skip
            # A seasonal cycle within an operator that is not linear is that of one window.
            mapping = self.prior.mapping
            if key is not None and (mapping is None or likelihood.linear or not mapping.cycle):
                self.guided[key] = guided
            # A factor for each noise level, and about two more for its metric.
            size = 3 * 8 * len(window) ** 2
            if self.shared:
                size += 8 * len(window) * self.covariance.eigenvalues.numel()
            size *= self.sampling["steps"] + 1
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


def cycle_guidance(prior: "Prior", covariance: Covariance, carry: str) -> str | None:
    """The guidance of cycles by default: None is that of a smoother, see `guidance_method`."""

    if prior.gaussian:
        return "static"
    values = math.prod(covariance.shape)
    small = any(isinstance(covariance, k) and values <= most for k, most in AVERAGED.items())
    # What a prior takes for known is another in each cycle.
    alike = carry == "observations" and prior.context is None

    return "averaged" if small and alike else None


def cycle_langevin() -> "Langevin":
    """The Langevin steps of cycles with guidance `averaged`.

    A step of `δ = 1` leaves an eighth of the variance it began with, and two leave a fiftieth.
    They go on down to where an analysis is decided. So long a step is right for the right metric
    alone, and the average covariance is near enough: the alarms of Lorenz-63 and 96 are below 1.1.
    """

    from .langevin import Langevin

    return Langevin(steps=2, delta=1.0, s_min=0.08, s_max=2.5, kappa=1e3)


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
