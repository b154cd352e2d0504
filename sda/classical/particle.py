"""The particle smoother: the exact posterior of low-dimensional systems, as an oracle.

Particles are drawn from the stationary distribution, moved by the system's own transition,
weighted by the likelihood of each observed frame and resampled (Gordon et al. 1993). A particle's
ancestry is a draw from the smoothing distribution (Kitagawa 1996), which degenerates with the
length of the trajectory unless there are many particles. Memory decides how many there can be,
hence independent filters ("chunks") run one after the other: each estimates the evidence `p(y)`
without bias, and trajectories drawn from chunks with probabilities proportional to those estimates
are a particle approximation with as many particles as all chunks together.

*Backward simulation* draws trajectories from the filters' particles instead, the last state first,

    p(x_i = x_i^j | x_{i+1}, y_{1:i}) ∝ w_i^j p(x_{i+1} | x_i^j),

which needs the transition density, and a sum over all particles for each state and draw, but does
not degenerate: few particles suffice where ancestries would have one ancestor.

References:
    Gordon, Salmond, Smith (1993), Novel approach to nonlinear/non-Gaussian Bayesian state
    estimation. Kitagawa (1996), Monte Carlo filter and smoother for non-Gaussian nonlinear state
    space models. Godsill, Doucet and West (2004), Monte Carlo smoothing for nonlinear time series,
    J. Am. Stat. Assoc. 99.
"""

import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

import torch
import xarray as xr
from torch import Tensor

from dynamics.random import member_generator
from dynamics.system import System

from ..observation.sequence import ObservedTime
from .base import Run, Smoother, Solution, single
from .initial import Initial
from .particle_weights import log_likelihood, systematic_indices

METHODS = ("ancestors", "backward")
# States that backward simulation compares with particles at once.
PAIRS = 2**20
FrameLikelihoods = Mapping[int, Callable[[Tensor], Tensor]]


def torch_generator(seed: int, *key: int) -> torch.Generator:
    """A CPU generator for one purpose; for particles, which are too many for one each."""

    entropy = member_generator(seed, 0, *key).integers(2**63)

    return torch.Generator().manual_seed(int(entropy))


def stationary_states(
    system: System,
    number: int,
    spinup: int = 1024,
    seed: int = 0,
    per_member: int = 16,
    spacing: int = 8,
    dtype: torch.dtype = torch.float32,
) -> Tensor:
    """Draws model states from a stochastic system's stationary distribution.

    Trajectories are spun up and then read off every `spacing` steps, `per_member` times each.

    Returns:
        The model states in random order, with shape `(number, *model)`.

    Raises:
        ValueError: If a count is not positive, or the states diverge.
    """

    if min(number, per_member, spacing) < 1 or spinup < 0:
        raise ValueError(
            f"number, per_member and spacing must be positive and spinup non-negative, got "
            f"{number}, {per_member}, {spacing} and {spinup}"
        )
    generator = torch_generator(seed, 101)
    z = system.initial_model(range(math.ceil(number / per_member)), seed, dtype)
    states = []
    for i in range(spinup + spacing * (per_member - 1) + 1):
        if i >= spinup and (i - spinup) % spacing == 0:
            states.append(z)
        z = advance(system, z, generator)
    pool = torch.cat(states)
    if not torch.isfinite(pool).all():
        raise ValueError(f"{type(system).__name__} diverged within {spinup} steps of spin-up")

    return pool[torch.randperm(len(pool), generator=generator)[:number]]


class Stationary(Initial):
    """Draws from the stationary distribution of a stochastic system, see `stationary_states`.

    Arguments:
        spinup: The number of steps of spin-up.
    """

    def __init__(self, spinup: int = 1024) -> None:
        self.spinup = spinup

    def draw(
        self,
        system: System,
        members: int,
        seed: int,
        dtype: torch.dtype = torch.float32,
        device: torch.device | str = "cpu",
    ) -> Tensor:
        return stationary_states(system, members, self.spinup, seed, dtype=dtype).to(device)


def advance(system: System, z: Tensor, generator: torch.Generator) -> Tensor:
    """One step of the system, with its noise if it has any."""

    if not system.stochastic:
        return system.advance(z)
    shape = system.project(z[:1]).shape[1:]
    noise = torch.randn((len(z), *shape), generator=generator, dtype=z.dtype)

    return system.advance(z, noise.to(z.device))


def systematic(weights: Tensor, number: int, generator: torch.Generator) -> Tensor:
    """Systematic resampling: `number` ascending indices, each `i` about `number · w_i` times.

    Arguments:
        weights: Normalised weights, with shape `(particle)`, float64.
    """

    offset = torch.rand((), generator=generator, dtype=torch.float64)

    return systematic_indices(weights, number, offset.to(weights.device))


def frame_likelihoods(likelihood: Any) -> dict[int, Callable[[Tensor], Tensor]]:
    """Splits a likelihood of trajectories into one of states for each observed frame,

        log p(y | x_{1:L}) = Σ_i log p(y_i | x_i).

    Arguments:
        likelihood: A likelihood of trajectories `(member, time, channel, *space)`.

    Returns:
        For each observed frame, a function from states `(member, channel, *space)` to `(member)`.

    Raises:
        ValueError: If an observation depends on several frames: then there is no such split.
    """

    shape, m = tuple(likelihood.shape), likelihood.y.numel()
    y, std = likelihood.y, likelihood.std.expand_as(likelihood.y)
    # The frames that an observation depends on are those where its gradient is not zero; two random
    # trajectories, so that a gradient which happens to vanish at one does not hide a frame.
    rows = torch.zeros((m, shape[0]), dtype=y.dtype)
    for key in range(2 if not likelihood.linear else 1):
        at = torch.randn((1, *shape), generator=torch_generator(0, 7, key)).to(y.dtype)
        _, _, vjp = likelihood.linearise(at.expand(m, *shape))
        rows = rows + vjp(torch.eye(m, dtype=y.dtype)).abs().flatten(2).sum(2)
    touched = rows > 0
    if bad := (touched.sum(1) > 1).nonzero().flatten().tolist():
        raise ValueError(
            f"a particle filter needs observations of one time each, but {len(bad)} of {m} depend "
            f"on several (the first on frames {touched[bad[0]].nonzero().flatten().tolist()})"
        )
    owner = torch.where(touched.any(1), touched.int().argmax(1), 0)

    def frame(i: int) -> Callable[[Tensor], Tensor]:
        mine = (owner == i).nonzero().flatten()
        y_i, std_i = y[mine], std[mine]
        constant = -(std_i.log() + 0.5 * math.log(2 * math.pi)).sum()
        if likelihood.linear:
            zero = torch.zeros((1, *shape), dtype=y.dtype)
            offset = likelihood.H(zero)[0, mine]
            eye = torch.eye(m, dtype=y.dtype)[mine]
            matrix = likelihood.adjoint(eye)[:, i].flatten(1)

            def observe(x: Tensor) -> Tensor:
                return x.flatten(1).to(y.dtype) @ matrix.T + offset

        else:

            def observe(x: Tensor) -> Tensor:
                values = []
                for part in x.to(y.dtype).split(4096):
                    trajectory = torch.zeros((len(part), *shape), dtype=y.dtype)
                    trajectory[:, i] = part
                    values.append(likelihood.H(trajectory)[:, mine])
                return torch.cat(values)

        def log_prob(x: Tensor) -> Tensor:
            return constant - 0.5 * ((y_i - observe(x)) / std_i).square().sum(1)

        return log_prob

    return {i: frame(i) for i in sorted(set(owner.tolist()))}


@dataclass
class ParticlePosterior:
    """What a particle smoother returns.

    Attributes:
        trajectories: Draws from the posterior, with shape `(member, time, channel, *space)`.
        log_evidence: The estimate of `log p(y)`.
        filter_mean: Mean of `p(x_i | y_{1:i})`, with shape `(time, channel, *space)`.
        filter_std: Its standard deviation, with the same shape.
        ancestors: The number of distinct first states that the surviving particles descend from: a
            smoother has converged only if it is large against the number of members drawn.
    """

    trajectories: Tensor
    log_evidence: float
    filter_mean: Tensor
    filter_std: Tensor
    ancestors: int


@dataclass
class _Run:
    """One chunk: traced trajectories; for each frame, `log p(y_{1:i})` and the filter moments."""

    trajectories: Tensor
    evidence: Tensor
    mean: Tensor
    square: Tensor
    ancestors: int


class ParticleSmoother(Smoother):
    """Draws from `p(x_{1:L} | y)` with bootstrap particle filters.

    Arguments:
        system: A stochastic system.
        members: The number of trajectories drawn from the posterior.
        particles: The number of particles.
        chunk: The number of particles held in memory at once.
        threshold: Resample where the effective sample size is under this fraction.
        spinup: Steps of spin-up before the first states are drawn, see `stationary_states`.
        initial: Model states `(number, *model)` to draw the first state from, in place of
            `stationary_states`.
        method: How trajectories are drawn: "ancestors" traces particles back; "backward" simulates
            backwards, which needs the transition density.

    Raises:
        ValueError: If the system is deterministic, its transition density is not known but needed,
            or a number is out of range.
    """

    fewest = 1

    def __init__(
        self,
        system: System,
        members: int = 256,
        particles: int = 2**20,
        chunk: int = 2**17,
        threshold: float = 0.5,
        spinup: int = 1024,
        initial: Tensor | None = None,
        method: str = "ancestors",
    ) -> None:
        if not system.stochastic:
            raise ValueError(
                f"a bootstrap particle filter needs a stochastic system, but "
                f"{type(system).__name__} is deterministic: pass one with noise"
            )
        if min(members, particles, chunk) < 1 or not 0 < threshold <= 1:
            raise ValueError(
                f"members, particles and chunk must be positive and threshold in (0, 1], got "
                f"{members}, {particles}, {chunk} and {threshold}"
            )
        if method not in METHODS:
            raise ValueError(f"unknown method {method!r}: choose one of {', '.join(METHODS)}")
        super().__init__(system, members)
        self.particles, self.chunk = particles, min(chunk, particles)
        self.threshold, self.spinup, self.initial = threshold, spinup, initial
        self.method = method

    @property
    def draws(self) -> int:
        """The number of model states that a run starts from."""
        return self.particles

    def config(self) -> dict[str, Any]:
        """The arguments that make this method again but for the system, as plain JSON types."""

        given = None if self.initial is None else f"{len(self.initial)} states"
        return {**super().config(), "initial": given}

    def assimilate(self, *arguments: Any, initial: Any = None, **options: Any) -> Any:
        """Samples the posterior given observations, see `Method.assimilate`.

        By default the first state is drawn from the stationary distribution. The coordinate
        `log_evidence` is the estimate of `log p(y_{1:i})`, the attribute `ancestors` the number of
        distinct first states that particles descend from.
        """

        if initial is None:
            initial = Stationary(self.spinup) if self.initial is None else self.initial
        return super().assimilate(*arguments, initial=initial, **options)

    @torch.no_grad()
    def solve(self, z: Tensor, run: Run) -> Solution:
        found = []
        for r, seed in enumerate(run.seeds):
            observed = [single(each, r) for each in run.observed]
            frames = {each.index: frame_of(each) for each in observed}
            found.append(self._sample(frames, len(run.time), z[r], seed))
        run.model_steps += (len(run.time) - 1) * self.particles
        run.memory["ancestors"] = [posterior.ancestors for posterior, _ in found]
        run.tick()

        return Solution(
            torch.stack([posterior.trajectories for posterior, _ in found]),
            list(range(len(run.time))),
            {"log_evidence": torch.stack([evidence for _, evidence in found])},
        )

    def _dataset(self, found: list[Any], repetition: int, **options: Any) -> xr.Dataset:
        *_, run, r = found[repetition]
        dataset = super()._dataset(found, repetition, **options)
        if "ancestors" not in run.memory:  # the model stopped, no trajectory was drawn
            return dataset.assign_attrs(
                particles=self.particles, ancestors=0, log_evidence=math.nan
            )
        return dataset.assign_attrs(
            particles=self.particles,
            ancestors=run.memory["ancestors"][r],
            log_evidence=float(dataset["log_evidence"][-1]),
        )

    @torch.no_grad()
    def sample(self, likelihood: Any, seed: int = 0) -> ParticlePosterior:
        """Samples the posterior of a likelihood of trajectories in physical units.

        Raises:
            ValueError: If an observation depends on several times, or if no particle can explain
                the observations.
        """

        pool = self.initial
        if pool is None:
            pool = stationary_states(self.system, self.particles, self.spinup, seed)
        frames = frame_likelihoods(likelihood)

        return self._sample(frames, likelihood.shape[0], pool, seed)[0]

    def _sample(
        self, frames: FrameLikelihoods, length: int, pool: Tensor, seed: int
    ) -> tuple[ParticlePosterior, Tensor]:
        """The posterior, and the estimates of `log p(y_{1:i})` for each frame."""

        chunks = math.ceil(self.particles / self.chunk)
        runs = []
        for k in range(chunks):
            generator = torch_generator(seed, 102, k)
            if len(pool) >= self.particles:
                z = pool[k : self.particles : chunks]
            else:
                z = pool[torch.randint(len(pool), (self.chunk,), generator=generator)]
            runs.append(self._filter(frames, length, z, generator))

        evidence = torch.stack([run.evidence for run in runs])
        weights = torch.softmax(evidence[:, -1], 0)
        generator = torch_generator(seed, 103)
        origin = torch.multinomial(weights, self.members, replacement=True, generator=generator)
        # Candidate j of every chunk is its own draw, so that member j may take that of any chunk.
        trajectories = torch.stack([runs[k].trajectories[j] for j, k in enumerate(origin.tolist())])

        # The filter at frame i knows the observations up to i only: chunks weigh accordingly.
        weights = torch.softmax(evidence, 0)
        mean = torch.einsum("kt,kt...->t...", weights, torch.stack([r.mean for r in runs]))
        square = torch.einsum("kt,kt...->t...", weights, torch.stack([r.square for r in runs]))
        total = torch.logsumexp(evidence, 0) - math.log(chunks)
        posterior = ParticlePosterior(
            trajectories=trajectories,
            log_evidence=float(total[-1]),
            filter_mean=mean,
            filter_std=(square - mean.square()).clamp(min=0).sqrt(),
            ancestors=sum(run.ancestors for run in runs),
        )

        return posterior, total

    def _filter(
        self, frames: FrameLikelihoods, length: int, z: Tensor, generator: torch.Generator
    ) -> "_Run":
        """One filter from the particles `z`, and `members` trajectories drawn from it."""

        count = len(z)
        log_w = torch.full((count,), -math.log(count), dtype=torch.float64)
        log_evidence = torch.zeros((), dtype=torch.float64)
        states, weights, parents, means, squares, evidence = [], [], [], [], [], []

        for i in range(length):
            if i:
                z = advance(self.system, z, generator)
            x = self.system.project(z)
            if i in frames:
                log_p = frames[i](x).double().cpu()
                log_w = log_w + torch.where(log_p.isnan(), -math.inf, log_p)
                total = torch.logsumexp(log_w, 0)
                if not torch.isfinite(total):
                    raise ValueError(
                        f"none of {count} particles explains the observations of frame {i}: use "
                        f"more particles or check the observations' std"
                    )
                log_evidence = log_evidence + total
                log_w = log_w - total
            w = log_w.exp()
            means.append(torch.tensordot(w, x.double().cpu(), dims=1))
            squares.append(torch.tensordot(w, x.double().cpu().square(), dims=1))
            evidence.append(log_evidence)

            parent = None
            if 1 / w.square().sum() < self.threshold * count:
                parent = systematic(w, count, generator)
                z, x = z[parent], x[parent]
                log_w = torch.full_like(log_w, -math.log(count))
            states.append(x)
            weights.append(log_w)
            parents.append(parent)

        # Plain multinomial draws at the end: members are then independent given the particles.
        indices = torch.multinomial(
            log_w.exp(), self.members, replacement=True, generator=generator
        )
        alive, path = torch.arange(count), []
        for x, parent in zip(reversed(states), reversed(parents), strict=True):
            path.append(x[indices])
            if parent is not None:
                indices, alive = parent[indices], parent[alive].unique()
        if self.method == "backward":
            path = self._backward(states, weights, path[0], generator)

        return _Run(
            trajectories=torch.stack(path[::-1], dim=1),
            evidence=torch.stack(evidence),
            mean=torch.stack(means),
            square=torch.stack(squares),
            ancestors=len(alive),
        )

    def _backward(
        self, states: list[Tensor], weights: list[Tensor], last: Tensor, generator: torch.Generator
    ) -> list[Tensor]:
        """Trajectories that end at the states `last`, simulated backwards: the last state first."""

        path = [last]
        for x, log_w in zip(reversed(states[:-1]), reversed(weights[:-1]), strict=True):
            drawn = []
            for target in path[-1].split(max(1, PAIRS // len(x))):
                pairs = (len(target), len(x), *x.shape[1:])
                log_p = self.system.log_transition(
                    x[None].expand(pairs).flatten(0, 1), target[:, None].expand(pairs).flatten(0, 1)
                )
                odds = log_w + log_p.double().cpu().reshape(pairs[:2])
                # Each row at least has the particle that its target was moved from.
                chosen = torch.multinomial(odds.softmax(1), 1, generator=generator)
                drawn.append(x[chosen[:, 0]])
            path.append(torch.cat(drawn))

        return path


def frame_of(observed: ObservedTime) -> Callable[[Tensor], Tensor]:
    """`log p(y_i | x_i)` as a function of states `(member, channel, *space)`.

    Raises:
        ValueError: If an observation depends on two states.
    """

    if observed.frames > 1:
        raise ValueError(
            f"a particle smoother needs observations of one time each, but those before time "
            f"{observed.time:g} lie between two states of the model"
        )

    return lambda x: log_likelihood(observed.H(x[:, None])[None], observed)[0]
