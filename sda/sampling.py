"""Samplers: from noise to trajectories.

In the coordinates `x = X + s ε` the probability flow is

    dx/du = x − D(x, e^u),    u = log s,

and a sampler integrates it from `s_max` down to `s_min` on levels that are uniform in `u`; what is
left of the noise at `s_min` is removed by one last denoising. Every noise is drawn per member, so
that a member does not depend on its batch. Between two steps, Langevin steps can correct the
distribution at a level (predictor–corrector sampling).
"""

import abc
import functools
import math
from collections.abc import Callable, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import numpy as np
import torch
from torch import Tensor

from dynamics.random import member_generator

from .denoiser import Denoiser, as_denoiser
from .guidance.base import CappedPrior, PosteriorDenoiser, PriorMetric, analyse
from .guidance.solver import Noise
from .langevin import Langevin
from .smc import ParticleStep

MAIN, PILOT = 0, 1
# Of a trajectory at the end and on the way to it, in standard deviations.
PLAUSIBLE, RECOVERABLE = 30.0, 1e3
Evaluate = Callable[[Tensor, float], Tensor]


class Diverged(FloatingPointError):
    """Members of a block diverged. The others are as good as ever.

    Arguments:
        failures: What happened to each member that failed, by its index.
        trajectories: All members' trajectories, NaN where they failed, with shape
            `(member, time, channel, *space)`.
    """

    def __init__(self, failures: Mapping[int, str], trajectories: Tensor) -> None:
        first, *others = (failures[member] for member in sorted(failures))
        also = f", as did {len(others)} other of {len(trajectories)} members" if others else ""
        super().__init__(
            f"{first}{also}: use guidance 'static', smaller Langevin steps or none, or check the "
            f"observations' std"
        )
        self.failures, self.trajectories = dict(failures), trajectories


class MemberNoise:
    """A stream of standard normal noise for each member.

    Successive calls continue each member's own stream: the numbers do not depend on the batch.

    Arguments:
        seed: The seed of the run.
        members: The indices of the members.
        key: Non-negative integers that name the stream.
    """

    def __init__(
        self,
        seed: int,
        members: Sequence[int],
        *key: int,
        dtype: torch.dtype = torch.float32,
        device: torch.device | str = "cpu",
    ) -> None:
        self.generators = [member_generator(seed, member, *key) for member in members]
        self.dtype, self.device = dtype, device

    def __call__(self, shape: tuple[int, ...]) -> Tensor:
        """Draws noise, with shape `(member, *shape)`."""

        double = self.dtype == torch.float64
        draw, dtype = (np.float64, torch.float64) if double else (np.float32, torch.float32)
        gpu = torch.device(self.device).type == "cuda"
        # Pinned memory is copied without waiting, and lent again once that is done.
        noise = torch.empty((len(self.generators), *shape), dtype=dtype, pin_memory=gpu)

        def fill(generator: np.random.Generator, own: np.ndarray) -> None:
            generator.standard_normal(dtype=draw, out=own)

        pairs = list(zip(self.generators, noise.numpy(), strict=True))
        if gpu:
            with ThreadPoolExecutor() as pool:
                list(pool.map(lambda pair: fill(*pair), pairs))
        else:
            for generator, own in pairs:
                fill(generator, own)

        return noise.to(dtype=self.dtype, device=self.device, non_blocking=gpu)


def log_levels(steps: int, s_max: float, s_min: float) -> np.ndarray:
    """The noise levels, log-uniform and decreasing, with shape `(steps + 1)`.

    Raises:
        ValueError: Unless `0 < s_min < s_max` and `steps` is positive.
    """

    if not 0 < s_min < s_max < math.inf:
        raise ValueError(f"noise levels must obey 0 < s_min < s_max, got {s_min} and {s_max}")
    if steps < 1:
        raise ValueError(f"steps must be at least 1, got {steps}")

    return np.exp(np.linspace(math.log(s_max), math.log(s_min), steps + 1))


@functools.cache
def quadrature(number: int) -> tuple[np.ndarray, np.ndarray]:
    """The points and weights of Gauss–Legendre quadrature on [-1, 1], computed once."""
    return np.polynomial.legendre.leggauss(number)


def adams_bashforth(
    nodes: np.ndarray, stop: float, weight: Callable[[np.ndarray], np.ndarray]
) -> np.ndarray:
    """The coefficients of an (exponential) Adams–Bashforth step.

        cⱼ = ∫ weight(u) ℓⱼ(u) du,    from the last node to `stop`,

    with the Lagrange polynomials `ℓⱼ` of the nodes; by quadrature, exact to rounding.

    Arguments:
        nodes: The past nodes, oldest first.
        stop: The end of the step.
        weight: The weight function.
    """

    points, weights = quadrature(32)
    half = (stop - nodes[-1]) / 2
    u = nodes[-1] + half * (points + 1)
    basis = np.stack(
        [
            np.prod([(u - b) / (a - b) for b in nodes if b != a] or [np.ones_like(u)], axis=0)
            for a in nodes
        ]
    )

    return half * basis @ (weights * weight(u))


@functools.lru_cache(maxsize=4096)
def exponential_coefficients(nodes: tuple[float, ...], stop: float) -> tuple[float, ...]:
    """Those of `DataAdamsBashforth`: a filter takes the same steps in every cycle."""
    return tuple(adams_bashforth(np.array(nodes), stop, lambda u: -np.exp(stop - u)).tolist())


class Sampler(abc.ABC):
    """One step of the probability flow after another.

    Arguments:
        levels: The noise levels, decreasing.
        order: The order of a multistep method.
    """

    default_order = 1
    stochastic = False

    def __init__(self, levels: np.ndarray, order: int | None = None) -> None:
        self.levels = levels
        self.order = order or self.default_order
        self.history: list[Tensor] = []

    @abc.abstractmethod
    def step(
        self,
        i: int,
        x: Tensor,
        mean: Tensor,
        evaluate: Evaluate,
        noise: Noise | None,
    ) -> Tensor:
        """Steps from level `i` to level `i + 1`.

        Arguments:
            i: The index of the level.
            x: The noisy trajectories at level `i`.
            mean: The denoised `x`.
            evaluate: The denoiser, for methods with stages.
            noise: The source of noise, for stochastic methods.
        """

    def shift(self, jump: Tensor) -> None:
        """Moves the history of a multistep method by the jump of the mean in a Langevin step."""

        self.history = [past + jump for past in self.history]

    def _remember(self, value: Tensor) -> None:
        self.history = [*self.history, value][-self.order :]

    def _nodes(self, i: int) -> np.ndarray:
        return np.log(self.levels[i + 1 - len(self.history) : i + 1])


class DataAdamsBashforth(Sampler):
    """Exponential Adams–Bashforth in the denoised mean.

        x(u) e^{−u}:    x_{i+1} = (s_{i+1} / s_i) x_i − s_{i+1} Σⱼ Dⱼ ∫ e^{−u} ℓⱼ(u) du

    References:
        DPM-Solver++ (Lu et al., 2022), arXiv 2211.01095
        Exponential Adams Bashforth ODE solver for stiff problems (Coudière et al., 2018),
        arXiv 1804.09927
    """

    default_order = 3

    def step(
        self, i: int, x: Tensor, mean: Tensor, evaluate: Evaluate, noise: Noise | None
    ) -> Tensor:
        self._remember(mean)
        stop = math.log(self.levels[i + 1])
        coefficients = exponential_coefficients(tuple(self._nodes(i).tolist()), stop)
        x = self.levels[i + 1] / self.levels[i] * x

        return x + sum(c * m for c, m in zip(coefficients, self.history, strict=True))


class RosenbrockAdamsBashforth(Sampler):
    """Rosenbrock-type exponential Adams–Bashforth: exact for a white prior of unit variance.

        dx/du = a x + b f,    a = s² / (1 + s²),  b = √a,  f = ((1 − a) x − D) / b
        x_{i+1} = √(1 + s_{i+1}²) [x_i / √(1 + s_i²) + Σⱼ fⱼ ∫ e^u / (1 + e^{2u}) ℓⱼ(u) du]

    azula 0.11.1 has `s_i` where the second `s_{i+1}` must be.

    References:
        DPM-Solver-v3 (Zheng et al., 2023), arXiv 2310.13268
    """

    default_order = 3

    def step(
        self, i: int, x: Tensor, mean: Tensor, evaluate: Evaluate, noise: Noise | None
    ) -> Tensor:
        s, stop = float(self.levels[i]), float(self.levels[i + 1])
        a = s**2 / (1 + s**2)
        self._remember(((1 - a) * x - mean) / math.sqrt(a))
        coefficients = adams_bashforth(
            self._nodes(i), math.log(stop), lambda u: 1 / (np.exp(u) + np.exp(-u))
        )
        total = sum(c * f for c, f in zip(coefficients.tolist(), self.history, strict=True))

        return math.sqrt(1 + stop**2) * (x / math.sqrt(1 + s**2) + total)

    def shift(self, jump: Tensor) -> None:
        """Forgets the history: it holds states too, which the jump of the mean does not move."""
        self.history = []


class DDIM(Sampler):
    """The first-order step `x_{i+1} = D + (s_{i+1} / s_i) (x_i − D)`.

    References:
        Denoising Diffusion Implicit Models (Song et al., 2021), arXiv 2010.02502
    """

    def step(
        self, i: int, x: Tensor, mean: Tensor, evaluate: Evaluate, noise: Noise | None
    ) -> Tensor:
        return mean + float(self.levels[i + 1] / self.levels[i]) * (x - mean)


class DDPM(Sampler):
    """The stochastic step, with `τ = 1 − s_{i+1}² / s_i²`.

        x_{i+1} = D + √(1 − τ) (s_{i+1} / s_i) (x_i − D) + s_{i+1} √τ ε

    References:
        Denoising Diffusion Probabilistic Models (Ho et al., 2020), arXiv 2006.11239
    """

    stochastic = True

    def step(
        self, i: int, x: Tensor, mean: Tensor, evaluate: Evaluate, noise: Noise | None
    ) -> Tensor:
        if noise is None:
            raise ValueError("the sampler ddpm needs a source of noise")
        ratio = float(self.levels[i + 1] / self.levels[i])
        spread = float(self.levels[i + 1]) * math.sqrt(1 - ratio**2)

        return mean + ratio**2 * (x - mean) + spread * noise(tuple(x.shape[1:]))


class Heun(Sampler):
    """Heun's second-order step in `s`, two evaluations.

    References:
        Elucidating the Design Space of Diffusion-Based Generative Models (Karras et al., 2022),
        arXiv 2206.00364
    """

    def step(
        self, i: int, x: Tensor, mean: Tensor, evaluate: Evaluate, noise: Noise | None
    ) -> Tensor:
        s, stop = float(self.levels[i]), float(self.levels[i + 1])
        slope = (x - mean) / s
        guess = x + (stop - s) * slope

        return x + (stop - s) / 2 * (slope + (guess - evaluate(guess, stop)) / stop)


SAMPLERS: dict[str, type[Sampler]] = {
    "xeab": DataAdamsBashforth,
    "reab": RosenbrockAdamsBashforth,
    "ddim": DDIM,
    "ddpm": DDPM,
    "heun": Heun,
}
STARTS = ("gaussian", "noise")


@torch.no_grad()
def sample(
    denoiser: Denoiser,
    shape: tuple[int, ...],
    seed: int,
    members: int | Sequence[int],
    *,
    sampler: str = "xeab",
    order: int | None = None,
    steps: int = 24,
    s_max: float = 100.0,
    s_min: float = 5e-3,
    start: str = "gaussian",
    langevin: Langevin | None = None,
    smc: ParticleStep | None = None,
    progress: Callable[[int, int], None] | None = None,
    stream: int | tuple[int, ...] = MAIN,
    dtype: torch.dtype = torch.float32,
    device: torch.device | str = "cpu",
) -> Tensor:
    """Draws trajectories.

    Arguments:
        denoiser: The denoiser of a prior, or a guided denoiser for a posterior.
        shape: The shape `(time, channel, *space)`.
        seed: The seed of the run.
        members: The indices of the members, or their number.
        sampler: The sampler, a key of `SAMPLERS`.
        order: The order of a multistep sampler (default: 3).
        steps: The number of steps. There are `steps + 1` evaluations, and those of Langevin steps.
        s_max: The largest noise level.
        s_min: The smallest, to be chosen well under the smallest posterior standard deviation.
        start: How to draw at `s_max`: `gaussian`, from the noisy Gaussian approximation of the
            distribution that is sampled, where the denoiser knows one, or `noise`, `s_max ε`.
        langevin: Langevin steps at each level.
        smc: A particle step at each level, see `sda.smc`.
        progress: A function called with (levels done, levels) after each level.
        stream: The stream of noise: pilots have their own, and each block of a forecast. Pilots are
            sampled here only before the stream `MAIN`.
        dtype: The dtype of the trajectories.
        device: The device of the trajectories.

    Returns:
        Trajectories of normalised anomalies, with shape `(member, time, channel, *space)`.

    Raises:
        ValueError: If an option is unknown or out of range.
        Diverged: If members diverge, a `FloatingPointError` that names each with its level, and has
            the trajectories of the others.
    """

    if sampler not in SAMPLERS:
        raise ValueError(f"unknown sampler {sampler!r}: choose one of {', '.join(SAMPLERS)}")
    if start not in STARTS:
        raise ValueError(f"unknown start {start!r}: choose one of {', '.join(STARTS)}")
    if order is not None and order < 1:
        raise ValueError(f"order must be at least 1, got {order}")
    denoiser = as_denoiser(denoiser)
    members = list(range(members)) if isinstance(members, int) else list(members)
    levels = log_levels(steps, s_max, s_min)
    options = {
        "sampler": sampler, "order": order, "steps": steps, "s_max": s_max, "s_min": s_min,
        "start": start, "langevin": langevin, "dtype": dtype, "device": device,
    }  # fmt: skip
    if stream == MAIN:
        prepare(denoiser, shape, seed, **options)

    key = (stream,) if isinstance(stream, int) else stream
    noise = MemberNoise(seed, members, *key, dtype=dtype, device=device)
    x = _start(denoiser, start, float(levels[0]), shape, noise)

    return integrate(
        denoiser, x, SAMPLERS[sampler](levels, order), noise,
        langevin=langevin, smc=smc, progress=progress, seed=seed, members=members,
    )  # fmt: skip


@torch.no_grad()
def integrate(
    denoiser: Denoiser,
    x: Tensor,
    sampler: Sampler,
    noise: Noise | None = None,
    *,
    langevin: Langevin | None = None,
    smc: ParticleStep | None = None,
    progress: Callable[[int, int], None] | None = None,
    seed: int = 0,
    members: Sequence[int] | None = None,
) -> Tensor:
    """Integrates noisy trajectories from the first level to the last, and denoises them.

    Arguments:
        denoiser: The denoiser.
        x: The noisy trajectories at the first level, with shape `(member, *shape)`.
        sampler: The sampler, which has the levels.
        noise: The source of noise, for stochastic samplers and Langevin steps.
        langevin, smc, progress, seed, members: See `sample`.

    Raises:
        ValueError: If the options do not go together.
        Diverged: If members diverge, once the others are done.
    """

    levels = sampler.levels.tolist()
    members = list(range(len(x))) if members is None else list(members)

    if smc is not None and sampler.stochastic:
        raise ValueError(
            f"a particle step needs a sampler without noise of its own, got "
            f"{type(sampler).__name__}: use xeab, reab, heun or ddim"
        )
    if langevin is not None and noise is None:
        raise ValueError("Langevin steps need a source of noise")
    particles = None if smc is None else smc.begin(denoiser, seed, members)
    failures: dict[int, str] = {}

    def evaluate(z: Tensor, s: float) -> Tensor:
        # Not through a tensor, which would round s: what is kept for each level is found by it.
        return analyse(denoiser, z, s).mean

    for i, s in enumerate(levels):
        last = i == len(levels) - 1
        analysis = analyse(denoiser, x, s)
        if particles is not None:
            ancestors = particles.arrive(analysis, x, i, last)
            if ancestors is not None:
                x, analysis = x[ancestors], analysis.take(ancestors)
                sampler.history = [past[ancestors] for past in sampler.history]
        if langevin is not None and noise is not None and langevin.s_min <= s <= langevin.s_max:
            before = analysis.mean
            x, analysis = langevin.correct(denoiser, x, s, noise, analysis)
            sampler.shift(analysis.mean - before)
        if particles is not None:
            particles.leave(analysis, x, i)
        x = analysis.mean if last else sampler.step(i, x, analysis.mean, evaluate, noise)
        lost = _lost(x, s, last)
        if lost.any():
            coupled = lost if particles is None else particles.drop(lost)
            for j in coupled.nonzero().flatten().tolist():
                what = "diverged" if lost[j] else "was weighed against one that diverged"
                failures.setdefault(
                    members[j], f"member {members[j]} {what} at level {i} (s = {s:.3g})"
                )
            # They go on from the climatological mean: nothing of theirs may touch the others.
            x = _cleared(x, coupled)
            sampler.history = [_cleared(past, coupled) for past in sampler.history]
            if len(failures) == len(members):
                break
        if progress is not None:
            progress(i + 1, len(levels))

    if failures:
        failed = torch.tensor([member in failures for member in members], device=x.device)
        raise Diverged(failures, _cleared(x, failed, math.nan))
    return x


def prepare(denoiser: Denoiser, shape: tuple[int, ...], seed: int, **options: Any) -> None:
    """Precomputes what all members of a run share, by sampling a pilot ensemble.

    Does nothing for a denoiser that shares nothing, or that is prepared. The pilots have a stream
    of noise of their own: all blocks of an ensemble, and all workers, share the same tables.
    `denoiser.tables()` gives them as tensors, and `denoiser.load_tables` takes them.

    Arguments:
        denoiser: The denoiser.
        shape: The shape `(time, channel, *space)`.
        seed: The seed of the run.
        options: The options of `sample`.

    Raises:
        FloatingPointError: If a pilot diverges.
    """

    if getattr(denoiser, "prepared", True):
        return
    try:
        with denoiser.recording():
            sample(denoiser, shape, seed, denoiser.pilots, stream=PILOT, **options)
    except Diverged as error:
        # All members would share what the pilots leave: there is no run without them.
        raise FloatingPointError(f"a pilot of the guidance failed: {error}") from error


def _start(
    denoiser: Denoiser, start: str, s: float, shape: tuple[int, ...], noise: MemberNoise
) -> Tensor:
    if start == "gaussian":
        if isinstance(denoiser, PosteriorDenoiser):
            return denoiser.start(s, len(noise.generators), noise)
        covariance = getattr(denoiser, "covariance", None)
        if covariance is not None and tuple(covariance.shape) == tuple(shape):
            mean = getattr(denoiser, "mean", None)
            x = PriorMetric(covariance, CappedPrior(s)).draw(noise)
            return x if mean is None else mean + x

    return s * noise(tuple(shape))


def _lost(x: Tensor, s: float, last: bool) -> Tensor:
    """Which members are not finite or have left any plausible range, with shape `(member)`.

    A normalised state is a few standard deviations large, its noise a few `s`. On the way down
    unstable guidances go up to a few hundred and come back; what is left at the end stays.
    """

    limit = PLAUSIBLE if last else RECOVERABLE
    return ~(x.flatten(1).abs().amax(1) < limit * (1 + s))


def _cleared(x: Tensor, members: Tensor, value: float = 0.0) -> Tensor:
    """`x` with the value in place of the members of a mask."""
    return torch.where(members.reshape(-1, *[1] * (x.ndim - 1)), value, x)
