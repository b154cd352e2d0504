"""Polishing posterior samples with the true dynamics: Hamiltonian Monte Carlo on the exact density.

Where the transition density is known, so is the posterior density of a trajectory,

    log p(x_{1:L} | y) = log p(x_1) + Σ_i log p(x_{i+1} | x_i) + log p(y | x_{1:L}) + const.

A few Metropolis-adjusted Hamiltonian proposals (Duane et al. 1987) take samples of a learned
prior, which are close already, to samples of that density. The posterior of a trajectory is stiff
along the constraints that the dynamics impose, hence momenta are drawn in the metric

    M = (mean over a few members of the Gauss-Newton precision)⁻¹,

the inverse Hessian of weak-constraint 4D-Var. Samples that are exact already stay exact, as the
Metropolis test leaves the posterior invariant whatever the metric and the step size.

References:
    Duane, Kennedy, Pendleton, Roweth (1987), Hybrid Monte Carlo.
    Martin, Wilcox, Burstedde, Ghattas (2012), A stochastic Newton MCMC method.
"""

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, Protocol

import numpy as np
import torch
import xarray as xr
from torch import Tensor

from dynamics.random import member_generator, normal
from dynamics.system import System


class FirstState(Protocol):
    """The density of a trajectory's first state."""

    def log_prob(self, x: Tensor) -> Tensor:
        """`log p(x)` up to a constant: `(member, *state)` to `(member)`."""
        ...

    def precision(self, x: Tensor) -> Tensor:
        """A positive definite stand-in for `-∇²log p` at one state `(*state)`: `(n, n)` float64."""
        ...


class GaussianState:
    """A Gaussian density of the first state.

    Arguments:
        mean: The mean, with shape `(*state)`.
        covariance: The covariance, with shape `(n, n)`, positive definite.
    """

    def __init__(self, mean: Tensor, covariance: Tensor) -> None:
        self.mean = mean
        self._precision = torch.linalg.inv(covariance.double())

    @classmethod
    def fit(cls, states: Tensor) -> "GaussianState":
        """The Gaussian with the mean and covariance of `states` `(member, *state)`."""
        return cls(states.mean(0), torch.cov(states.flatten(1).double().T))

    def log_prob(self, x: Tensor) -> Tensor:
        d = (x - self.mean.to(x)).flatten(1)
        return -0.5 * torch.einsum("bi,ij,bj->b", d, self._precision.to(d), d)

    def precision(self, x: Tensor) -> Tensor:
        return self._precision


class TransitionMixture:
    """The stationary density, as the mixture of transitions from stationary states,

        p(x) = ∫ p(x | x') p(x') dx' ≈ 1/N Σ_j N(x; f(x'_j), Q).

    This is a kernel density estimate whose kernel is the system's own noise, so it needs no
    bandwidth and has no smoothing bias. Only the states near an ensemble matter for it.

    Arguments:
        system: A system whose noise is additive and Gaussian with the same covariance everywhere.
        states: Stationary states `x'_j`, with shape `(number, *state)`.
        near: An ensemble of first states, with shape `(member, *state)`: transitions that end
            farther from it than `radius` standard deviations are left out.
        number: The number of transitions kept at most, drawn at random.
        seed: The seed of that draw.

    Raises:
        ValueError: If fewer than 32 transitions end near the ensemble.
    """

    def __init__(
        self,
        system: System,
        states: Tensor,
        near: Tensor,
        number: int = 4096,
        radius: float = 6.0,
        seed: int = 0,
    ) -> None:
        with torch.no_grad():
            centres = torch.cat([system.step(part) for part in states.split(2**17)])
        precision = transition_precision(system, states[:1])[0]
        flat, ensemble = centres.flatten(1).double(), near.flatten(1).double()
        # Members whose sampling failed are NaN.
        ensemble = ensemble[ensemble.isfinite().all(1)]
        noise = torch.linalg.inv(precision)
        median = ensemble.median(0).values
        d = flat - median
        # The median and the spread within the central members: a stray member must not widen it.
        distance = (ensemble - median).square().sum(1)
        core = ensemble[distance.argsort()[: max(8, int(0.95 * len(ensemble)))]]
        spread = torch.cov(core.T).reshape(noise.shape) + noise
        inside = torch.einsum("bi,ij,bj->b", d, torch.linalg.inv(spread), d) < radius**2
        kept = inside.nonzero().flatten()
        if len(kept) < 32:
            raise ValueError(
                f"only {len(kept)} of {len(states)} stationary states step into the ensemble's "
                f"neighbourhood, expected at least 32: pass more states, or a GaussianState"
            )
        if len(kept) > number:
            order = np.random.default_rng(seed).permutation(len(kept))[:number]
            kept = kept[torch.from_numpy(order)]
        factor = torch.linalg.cholesky(precision)
        self._centres, self._factor = flat[kept], factor
        self._white = self._centres @ factor
        self._noise = noise

    def log_prob(self, x: Tensor) -> Tensor:
        white = self._white.to(x)
        z = x.flatten(1) @ self._factor.to(x)
        # The largest exponent is subtracted before float32 sees the squares of large numbers.
        shift = white.mean(0)
        z, white = z - shift, white - shift
        exponent = z @ white.T - 0.5 * white.square().sum(1)

        return torch.logsumexp(exponent, 1) - 0.5 * z.square().sum(1) - math.log(len(white))

    def precision(self, x: Tensor) -> Tensor:
        d = (self._centres - x.flatten().double()) @ self._factor
        nearest = d.square().sum(1).topk(min(512, len(d)), largest=False).indices
        covariance = torch.cov(self._centres[nearest].T).reshape(self._noise.shape)

        return torch.linalg.inv(covariance + self._noise)


def transition_precision(system: System, x: Tensor) -> Tensor:
    """The precision of one step's noise, `-∇² log p(x' | x)` in `x'` at the step's mean.

    Arguments:
        x: States, with shape `(member, *state)`.

    Returns:
        Matrices with shape `(member, n, n)`, float64.
    """

    mean = system.step(x).detach()
    with torch.enable_grad():
        x_next = mean.clone().requires_grad_(True)
        (g,) = torch.autograd.grad(
            system.log_transition(x, x_next).sum(), x_next, create_graph=True
        )
        rows = [
            torch.autograd.grad(column.sum(), x_next, retain_graph=True)[0].flatten(1)
            for column in g.flatten(1).unbind(1)
        ]

    return -torch.stack(rows, dim=1).double()


def step_jacobian(system: System, x: Tensor) -> Tensor:
    """The Jacobian of the mean step, `∂ step(x) / ∂x`: `(member, *state)` to `(member, n, n)`."""

    with torch.enable_grad():
        x = x.detach().clone().requires_grad_(True)
        mean = system.step(x).flatten(1)
        rows = [
            torch.autograd.grad(column.sum(), x, retain_graph=True)[0].flatten(1)
            for column in mean.unbind(1)
        ]

    return torch.stack(rows, dim=1).double()


class TrajectoryDensity:
    """The posterior density of trajectories of a system with known transition density.

    Arguments:
        system: The system.
        likelihood: The likelihood, in physical units.
        first: The density of the first state.
    """

    def __init__(self, system: System, likelihood: Any, first: FirstState) -> None:
        self.system, self.likelihood, self.first = system, likelihood, first
        self.evaluations = 0

    def log_dynamics(self, x: Tensor) -> Tensor:
        """`log p(x_{2:L} | x_1)`: `(member, time, *state)` to `(member)`."""

        length = x.shape[1]
        log_p = self.system.log_transition(x[:, :-1].flatten(0, 1), x[:, 1:].flatten(0, 1))

        return log_p.reshape(len(x), length - 1).sum(1)

    def log_prob(self, x: Tensor) -> Tensor:
        """`log p(x | y)` up to a constant: `(member, time, *state)` to `(member)`."""

        return self.first.log_prob(x[:, 0]) + self.log_dynamics(x) + self.likelihood.log_prob(x)

    def gradient(self, x: Tensor) -> tuple[Tensor, Tensor]:
        """The log-density and its gradient, with shapes `(member)` and that of `x`."""

        self.evaluations += 1
        with torch.enable_grad():
            x = x.detach().requires_grad_(True)
            log_p = self.log_prob(x)
            (g,) = torch.autograd.grad(log_p.sum(), x)

        return log_p.detach(), g

    def precision(self, x: Tensor) -> Tensor:
        """The Gauss-Newton precision of the posterior at one trajectory,

            Λ + Σ_i (∂r_i)ᵀ Q⁻¹ ∂r_i + Hᵀ R⁻¹ H,    r_i = x_{i+1} − f(x_i),

        with the second derivatives of `f` and `H` left out, hence positive definite.

        Arguments:
            x: A trajectory, with shape `(time, *state)`.

        Returns:
            A matrix with shape `(n, n)`, float64, over the flattened trajectory.
        """

        length, n = len(x), x[0].numel()
        q = transition_precision(self.system, x[:-1])
        jacobian = step_jacobian(self.system, x[:-1])
        blocks = torch.zeros((length, n, length, n), dtype=torch.float64)
        i = torch.arange(length - 1)
        blocks[i, :, i] += jacobian.mT @ q @ jacobian
        blocks[i + 1, :, i + 1] += q
        blocks[i, :, i + 1] -= jacobian.mT @ q
        blocks[i + 1, :, i] -= q @ jacobian
        blocks[0, :, 0] += self.first.precision(x[0])
        matrix = blocks.reshape(length * n, length * n)

        y, std = self.likelihood.y, self.likelihood.std
        m = y.numel()
        _, _, vjp = self.likelihood.linearise(x[None].to(y.dtype).expand(m, *x.shape))
        rows = vjp(torch.eye(m, dtype=y.dtype)).flatten(1).double()
        rows = rows / std.double().expand(m)[:, None]

        return matrix + rows.T @ rows


def metric_factor(density: TrajectoryDensity, trajectories: Tensor) -> Tensor:
    """A square root of the metric: `A` with `A Aᵀ = M`, the inverse of the mean precision.

    Arguments:
        trajectories: The trajectories at which the precision is averaged, `(number, time, *state)`.
    """

    precision = torch.stack([density.precision(x) for x in trajectories]).mean(0)
    cholesky = torch.linalg.cholesky(precision)
    eye = torch.eye(len(precision), dtype=precision.dtype)

    return torch.linalg.solve_triangular(cholesky.mT, eye, upper=True)


@dataclass
class Chain:
    """What Hamiltonian Monte Carlo returns.

    Attributes:
        x: The last trajectories, with shape `(member, time, *state)`.
        log_prob: Their log-density up to a constant, with shape `(member)`.
        acceptance: The fraction of accepted proposals, for each proposal.
        step: The step size at the end.
        gradients: The number of gradients per member.
        draws: Every `thin`-th trajectories, with shape `(draw, member, time, *state)`, or None.
    """

    x: Tensor
    log_prob: Tensor
    acceptance: list[float]
    step: float
    gradients: int
    draws: Tensor | None = None


@torch.no_grad()
def hmc(
    density: TrajectoryDensity,
    x: Tensor,
    factor: Tensor,
    proposals: int,
    leapfrog: int,
    step: float = 0.3,
    seed: int = 0,
    members: Sequence[int] | None = None,
    adapt: int = 0,
    target: float = 0.75,
    thin: int | None = None,
    stream: int = 0,
) -> Chain:
    """Hamiltonian Monte Carlo with a Metropolis test for each member.

    Arguments:
        density: The density.
        x: The trajectories to start from, with shape `(member, time, *state)`.
        factor: A square root of the metric, see `metric_factor`.
        proposals: The number of proposals.
        leapfrog: The number of leapfrog steps of a proposal.
        step: The step size, jittered by ±20 % for each member and proposal.
        seed: The seed.
        members: The members' indices, which name their generators (default: 0, 1, 2, …).
        adapt: The number of first proposals after each of which the step size moves towards the
            acceptance rate `target`. It stays as it is from then on.
        thin: Keep the trajectories after every `thin`-th proposal past the adaptation.
        stream: The stream of random numbers: a chain that goes on needs another.

    Raises:
        ValueError: If a number is not positive or the log-density is not finite for any member.
    """

    if min(proposals, leapfrog) < 1 or step <= 0 or not 0 <= adapt <= proposals:
        raise ValueError(
            f"proposals, leapfrog and step must be positive and adapt in [0, proposals], got "
            f"{proposals}, {leapfrog}, {step} and {adapt}"
        )
    members = range(len(x)) if members is None else members
    shape, factor = x.shape, factor.to(x)
    log_p, g = density.gradient(x)
    gradients, acceptance, draws = 1, [], []
    if not torch.isfinite(log_p).any():
        raise ValueError("the log-density is not finite at any of the trajectories to start from")
    x, g = x.flatten(1), g.flatten(1)

    for k in range(proposals):
        noise = normal(seed, members, (x.shape[1] + 2,), 201, stream, k, dtype=x.dtype)
        momentum = noise[:, :-2]
        jitter, uniform = torch.special.ndtr(noise[:, -2:]).unbind(1)
        epsilon = (step * (0.8 + 0.4 * jitter))[:, None]
        kinetic = 0.5 * momentum.square().sum(1)
        y, log_q, g_y = x, log_p, g
        for _ in range(leapfrog):
            momentum = momentum + 0.5 * epsilon * (g_y @ factor)
            y = y + epsilon * (momentum @ factor.T)
            log_q, g_y = density.gradient(y.reshape(shape))
            g_y = g_y.flatten(1)
            momentum = momentum + 0.5 * epsilon * (g_y @ factor)
            gradients += 1
        energy = log_q - 0.5 * momentum.square().sum(1) - log_p + kinetic
        # A member that has left the domain of finite density accepts any way back.
        escape = ~torch.isfinite(log_p) & torch.isfinite(log_q)
        accept = (uniform.log() < energy) | escape
        x = torch.where(accept[:, None], y, x)
        g = torch.where(accept[:, None], g_y, g)
        log_p = torch.where(accept, log_q, log_p)
        acceptance.append(accept.float().mean().item())
        if k < adapt:
            step *= math.exp(0.5 * (acceptance[-1] - target))
        elif thin and (k - adapt) % thin == thin - 1:
            draws.append(x.reshape(shape))

    return Chain(
        x=x.reshape(shape),
        log_prob=log_p,
        acceptance=acceptance,
        step=step,
        gradients=gradients,
        draws=torch.stack(draws) if draws else None,
    )


@dataclass
class Polished:
    """Polished samples and what they cost.

    Attributes:
        samples: The samples, a dataset or a tensor as they were given.
        acceptance: The mean acceptance rate.
        gradients: The number of gradients per member.
        replaced: The indices of the members that were replaced by copies of others.
        log_prob: `log p(x_{2:L} | x_1)` of each sample, with shape `(member)`.
    """

    samples: xr.Dataset | Tensor
    acceptance: float
    gradients: int
    replaced: list[int]
    log_prob: Tensor


def outliers(log_prob: Tensor, dimension: int, limit: float) -> Tensor:
    """Members outside the typical set: `limit · √(n/2)` below the median log-density.

    Over a posterior that is close to Gaussian the log-density is its maximum minus `χ²_n / 2`, with
    standard deviation `√(n/2)`. A trajectory far below is in a region of no posterior mass.

    Arguments:
        log_prob: The log-densities, with shape `(member)`.
        dimension: The number of values `n` of a trajectory.
        limit: The number of standard deviations.
    """

    finite = log_prob[torch.isfinite(log_prob)]
    threshold = finite.median() - limit * math.sqrt(dimension / 2)

    return ~(log_prob >= threshold)


def polish(
    system: System,
    observations: Any,
    samples: xr.Dataset | Tensor,
    first: FirstState | Tensor | None = None,
    proposals: int = 6,
    leapfrog: int = 3,
    step: float = 0.3,
    prune: float | None = 6.0,
    seed: int = 0,
) -> Polished:
    """Moves posterior samples towards the exact posterior of a system with known density.

    Arguments:
        system: A system with additive Gaussian noise.
        observations: The observations, or their likelihood in physical units.
        samples: The samples, a dataset or a tensor `(member, time, channel, *space)`.
        first: The density of the first state, or stationary states `(number, *state)` that it is
            made of, see `TransitionMixture` (default: simulated, see `stationary_states`).
        proposals: The number of Hamiltonian proposals; the step size adapts in the first half.
        leapfrog: The number of leapfrog steps of each.
        step: The step size to start with.
        prune: After the first half, members farther than this below the median log-density, in
            standard deviations of that of exact samples (see `outliers`), are replaced by copies of
            others, which the second half moves apart. Exact samples are never as far. None: never.
        seed: The seed.

    Returns:
        The polished samples; as a dataset they carry acceptance and gradients in their attributes.

    Raises:
        ValueError: If the system's transition density is not known, or the samples do not fit.
    """

    layout = system.layout
    if isinstance(samples, xr.Dataset):
        x = torch.from_numpy(np.ascontiguousarray(layout.to_array(samples)))
        time = samples["time"].values
        members = samples["member"].values.tolist() if "member" in samples.coords else None
    else:
        x, time, members = samples, layout.times(samples.shape[1]), None
    if x.ndim != 2 + len(layout.shape) or tuple(x.shape[2:]) != layout.shape:
        raise ValueError(
            f"samples must have shape (member, time, {', '.join(map(str, layout.shape))}), "
            f"got {tuple(x.shape)}"
        )
    likelihood = (
        observations.likelihood(layout, time)
        if hasattr(observations, "likelihood")
        else observations
    )
    if first is None:
        from .classical.particle import stationary_states

        first = stationary_states(system, 2**18, seed=seed)
    if isinstance(first, Tensor):
        first = TransitionMixture(system, first.to(x), x[:, 0], seed=seed)

    density = TrajectoryDensity(system, likelihood, first)
    with torch.no_grad():
        log_p = density.log_prob(x)
    log_p = torch.where(log_p.isnan(), -math.inf, log_p)
    best = log_p.topk(min(3, len(x))).indices
    factor = metric_factor(density, x[best])
    early = proposals // 2
    gradients, acceptance, replaced = 0, [], []
    if early:
        warm = hmc(density, x, factor, early, leapfrog, step, seed, members, adapt=early)
        x, step, gradients, acceptance = warm.x, warm.step, warm.gradients, warm.acceptance
        if prune is not None:
            bad = outliers(warm.log_prob, x[0].numel(), prune)
            good = (~bad).nonzero().flatten().numpy()
            replaced = bad.nonzero().flatten().tolist()
            source = member_generator(seed, 0, 202).choice(good, len(replaced))
            x = x.clone()
            x[replaced] = x[torch.from_numpy(source)]
    chain = hmc(density, x, factor, proposals - early, leapfrog, step, seed, members, stream=1)
    gradients += chain.gradients
    mean_acceptance = float(np.mean(acceptance + chain.acceptance))

    polished: xr.Dataset | Tensor = chain.x
    if isinstance(samples, xr.Dataset):
        polished = layout.to_dataset(
            chain.x,
            time=time,
            member=members,
            attrs={
                **samples.attrs,
                "polish": f"hmc {proposals}x{leapfrog}",
                "polish_acceptance": mean_acceptance,
                "polish_gradients": gradients,
                "polish_replaced": len(replaced),
            },
        )
    with torch.no_grad():
        log_dynamics = density.log_dynamics(chain.x)

    return Polished(polished, mean_acceptance, gradients, replaced, log_dynamics)
