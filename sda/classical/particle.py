"""The bootstrap particle smoother: the exact posterior of low-dimensional systems, as an oracle.

Particles are drawn from the stationary distribution, moved by the system's own transition,
weighted by the likelihood of each observed frame and resampled (Gordon et al. 1993). A particle's
ancestry is a draw from the smoothing distribution (Kitagawa 1996), which degenerates with the
length of the trajectory unless there are many particles. Memory decides how many there can be,
hence independent filters ("chunks") run one after the other: each estimates the evidence `p(y)`
without bias, and trajectories drawn from chunks with probabilities proportional to those estimates
are a particle approximation with as many particles as all chunks together.

References:
    Gordon, Salmond, Smith (1993), Novel approach to nonlinear/non-Gaussian Bayesian state
    estimation. Kitagawa (1996), Monte Carlo filter and smoother for non-Gaussian nonlinear state
    space models.
"""

import math
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
import xarray as xr
from torch import Tensor

from dynamics.random import member_generator
from dynamics.system import System


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


def advance(system: System, z: Tensor, generator: torch.Generator) -> Tensor:
    """One step of the system, with its noise if it has any."""

    if not system.stochastic:
        return system.advance(z)
    shape = system.project(z[:1]).shape[1:]
    noise = torch.randn((len(z), *shape), generator=generator, dtype=z.dtype)

    return system.advance(z, noise)


def systematic(weights: Tensor, number: int, generator: torch.Generator) -> Tensor:
    """Systematic resampling: `number` ascending indices, each `i` about `number · w_i` times.

    Arguments:
        weights: Normalised weights, with shape `(particle)`, float64.
    """

    offset = torch.rand((), generator=generator, dtype=torch.float64)
    points = (torch.arange(number, dtype=torch.float64) + offset) / number
    indices = torch.searchsorted(torch.cumsum(weights.double(), 0), points)

    return indices.clamp(max=len(weights) - 1)


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


class ParticleSmoother:
    """Draws from `p(x_{1:L} | y)` with a bootstrap particle filter and ancestor tracing.

    Arguments:
        system: A stochastic system.
        members: The number of trajectories drawn from the posterior.
        particles: The number of particles.
        chunk: The number of particles held in memory at once.
        threshold: Resample where the effective sample size is under this fraction.
        spinup: Steps of spin-up before the first states are drawn, see `stationary_states`.
        initial: Model states `(number, *model)` to draw the first state from, in place of
            `stationary_states`.

    Raises:
        ValueError: If the system is deterministic or a number is out of range.
    """

    def __init__(
        self,
        system: System,
        members: int = 256,
        particles: int = 2**20,
        chunk: int = 2**17,
        threshold: float = 0.5,
        spinup: int = 1024,
        initial: Tensor | None = None,
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
        self.system, self.members = system, members
        self.particles, self.chunk = particles, min(chunk, particles)
        self.threshold, self.spinup, self.initial = threshold, spinup, initial

    @torch.no_grad()
    def sample(self, likelihood: Any, seed: int = 0) -> ParticlePosterior:
        """Samples the posterior of a likelihood of trajectories in physical units.

        Raises:
            ValueError: If an observation depends on several times, or if no particle can explain
                the observations.
        """

        length = likelihood.shape[0]
        frames = frame_likelihoods(likelihood)
        pool = self.initial
        if pool is None:
            pool = stationary_states(self.system, self.particles, self.spinup, seed)

        chunks = math.ceil(self.particles / self.chunk)
        runs = []
        for k in range(chunks):
            generator = torch_generator(seed, 102, k)
            if len(pool) >= self.particles:
                z = pool[k : self.particles : chunks]
            else:
                z = pool[torch.randint(len(pool), (self.chunk,), generator=generator)]
            runs.append(self._run(frames, length, z, generator))

        evidence = torch.stack([run.evidence[-1] for run in runs])
        weights = torch.softmax(evidence, 0)
        generator = torch_generator(seed, 103)
        origin = torch.multinomial(weights, self.members, replacement=True, generator=generator)
        # Candidate j of every chunk is its own draw, so that member j may take that of any chunk.
        trajectories = torch.stack([runs[k].trajectories[j] for j, k in enumerate(origin.tolist())])

        # The filter at frame i knows the observations up to i only: chunks weigh accordingly.
        weights = torch.softmax(torch.stack([run.evidence for run in runs]), 0)
        mean = torch.einsum("kt,kt...->t...", weights, torch.stack([r.mean for r in runs]))
        square = torch.einsum("kt,kt...->t...", weights, torch.stack([r.square for r in runs]))

        return ParticlePosterior(
            trajectories=trajectories,
            log_evidence=float(torch.logsumexp(evidence, 0) - math.log(chunks)),
            filter_mean=mean,
            filter_std=(square - mean.square()).clamp(min=0).sqrt(),
            ancestors=sum(run.ancestors for run in runs),
        )

    def _run(
        self,
        frames: dict[int, Callable[[Tensor], Tensor]],
        length: int,
        z: Tensor,
        generator: torch.Generator,
    ) -> "_Run":
        """One filter from the particles `z`, and `members` trajectories traced back."""

        count = len(z)
        log_w = torch.full((count,), -math.log(count), dtype=torch.float64)
        log_evidence = torch.zeros((), dtype=torch.float64)
        states, parents, means, squares, evidence = [], [], [], [], []

        for i in range(length):
            if i:
                z = advance(self.system, z, generator)
            x = self.system.project(z)
            if i in frames:
                log_p = frames[i](x).double()
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
            means.append(torch.tensordot(w, x.double(), dims=1))
            squares.append(torch.tensordot(w, x.double().square(), dims=1))
            evidence.append(log_evidence)

            parent = None
            if 1 / w.square().sum() < self.threshold * count:
                parent = systematic(w, count, generator)
                z, x = z[parent], x[parent]
                log_w = torch.full_like(log_w, -math.log(count))
            states.append(x)
            parents.append(parent)

        # Plain multinomial draws at the end: members are then independent given the particles.
        indices = torch.multinomial(
            log_w.exp(), self.members, replacement=True, generator=generator
        )
        alive = torch.arange(count)
        path = []
        for x, parent in zip(reversed(states), reversed(parents), strict=True):
            path.append(x[indices])
            if parent is not None:
                indices, alive = parent[indices], parent[alive].unique()

        return _Run(
            trajectories=torch.stack(path[::-1], dim=1),
            evidence=torch.stack(evidence),
            mean=torch.stack(means),
            square=torch.stack(squares),
            ancestors=len(alive),
        )

    def assimilate(
        self, observations: Any, seed: int = 0, time: np.ndarray | None = None
    ) -> xr.Dataset:
        """Samples the posterior given observations.

        Arguments:
            observations: The observations.
            seed: The seed.
            time: The trajectory's time coordinate (default: from the first to the last observation
                at the system's `dt`).

        Returns:
            A dataset with the dimensions `(member, time, *space)`.
        """

        layout = self.system.layout
        if time is None:
            seen = np.asarray(observations.times, dtype=np.float64)
            steps = int(round((seen.max() - seen.min()) / layout.dt))
            time = layout.times(steps + 1, start=seen.min())
        posterior = self.sample(observations.likelihood(layout, time), seed)

        return layout.to_dataset(
            posterior.trajectories,
            time=time,
            attrs={
                "method": "particle smoother",
                "seed": seed,
                "particles": self.particles,
                "log_evidence": posterior.log_evidence,
                "ancestors": posterior.ancestors,
            },
        )
