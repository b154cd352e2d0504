"""A reference posterior where particles are too few: long Hamiltonian Monte Carlo chains.

A particle filter needs numbers that grow exponentially with the dimension. Where the transition
density is known, chains on the exact density do not: they start from an ensemble of weak-constraint
4D-Var analyses, each of a first guess and observations of its own ("randomise, then optimise",
overdispersed), and are trusted only if they agree with each other, by the split R-hat.

References:
    Bardsley, Solonen, Haario, Laine (2014), Randomize-then-optimize.
    Gelman et al. (2013), Bayesian data analysis, section 11.4: split R-hat, effective sample size.
"""

from dataclasses import dataclass

import torch
from torch import Tensor

from dynamics.random import normal

from .polish import TrajectoryDensity, hmc, metric_factor


@dataclass
class Reference:
    """Draws of several chains, and how far to trust them.

    Attributes:
        draws: The draws, with shape `(draw, chain, time, *state)`.
        rhat: The split R-hat of each value, with shape `(time, *state)`; 1 at convergence.
        ess: The number of independent draws that all draws are worth, with shape `(time, *state)`.
        acceptance: The mean acceptance rate.
        gradients: The number of gradients per chain.
    """

    draws: Tensor
    rhat: Tensor
    ess: Tensor
    acceptance: float
    gradients: int

    @property
    def trajectories(self) -> Tensor:
        """The draws of all chains, with shape `(member, time, *state)`."""
        return self.draws.flatten(0, 1)


def split_rhat(draws: Tensor) -> Tensor:
    """The split R-hat, with each chain cut into halves: `(draw, chain, *)` to `(*)`.

    Raises:
        ValueError: If there are fewer than 4 draws.
    """

    n = len(draws) // 2
    if n < 2:
        raise ValueError(f"R-hat needs at least 4 draws of each chain, got {len(draws)}")
    halves = torch.cat((draws[:n], draws[n : 2 * n]), dim=1).double()
    within = halves.var(0).mean(0)
    between = halves.mean(0).var(0)

    return ((n - 1) / n + between / within).sqrt()


def effective_sample_size(draws: Tensor) -> Tensor:
    """The number of independent draws that correlated ones are worth: `(draw, chain, *)` to `(*)`.

    Autocorrelations are summed over pairs of lags until a pair's sum is negative (Geyer 1992).
    """

    n, chains = draws.shape[:2]
    x = draws.double() - draws.double().mean((0, 1))
    f = torch.fft.rfft(x, n=2 * n, dim=0)
    covariance = torch.fft.irfft(f.abs().square(), n=2 * n, dim=0)[:n].mean(1)
    rho = covariance / covariance[0]
    pairs = rho[0 : 2 * (n // 2) : 2] + rho[1 : 2 * (n // 2) : 2]
    # Once a pair is negative, this and all later ones are noise.
    pairs = torch.where((pairs > 0).cumprod(0).bool(), pairs, torch.zeros_like(pairs))
    time = (2 * pairs.sum(0) - 1).clamp(min=1 / n)

    return (n * chains / time).clamp(max=float(n * chains))


@torch.no_grad()
def gauss_newton(
    density: TrajectoryDensity,
    x: Tensor,
    iterations: int = 20,
    tolerance: float = 1e-3,
) -> tuple[Tensor, Tensor]:
    """Weak-constraint 4D-Var: climbs to a mode of the posterior density by Gauss-Newton steps.

    A step that does not raise the density is halved, up to ten times.

    Arguments:
        density: The density.
        x: A first guess, with shape `(time, *state)`.
        iterations: The number of steps at most.
        tolerance: Stop where a step raises the log-density by less.

    Returns:
        The mode, with shape `(time, *state)`, and a square root of the metric there.
    """

    x = x[None]
    log_p, g = density.gradient(x)
    factor = metric_factor(density, x)
    for _ in range(iterations):
        root = factor.to(x)
        direction = ((g.flatten(1) @ root) @ root.T).reshape(x.shape)
        gain = None
        for halving in range(10):
            y = x + 0.5**halving * direction
            log_q, g_y = density.gradient(y)
            if log_q > log_p:
                gain = float(log_q - log_p)
                x, log_p, g = y, log_q, g_y
                break
        factor = metric_factor(density, x)
        if gain is None or gain < tolerance:
            break

    return x[0], factor


def hmc_reference(
    density: TrajectoryDensity,
    guesses: Tensor,
    draws: int = 1000,
    warmup: int = 200,
    leapfrog: int = 8,
    step: float = 0.2,
    spread: float = 1.5,
    thin: int = 1,
    seed: int = 0,
) -> Reference:
    """Samples a posterior density with long chains from dispersed starts.

    Arguments:
        density: The density.
        guesses: One first guess for each chain, with shape `(chain, time, *state)`. Each is taken
            to a mode of its own and displaced by `spread` standard deviations from there.
        draws: The number of draws of each chain.
        warmup: The number of proposals before; the step size adapts in the first half.
        leapfrog: The number of leapfrog steps of a proposal.
        step: The step size to start with.
        spread: The dispersion of the starts, in posterior standard deviations.
        thin: The number of proposals per draw.
        seed: The seed.

    Raises:
        ValueError: If there are fewer than two chains.
    """

    if len(guesses) < 2:
        raise ValueError(f"agreement needs at least two chains, got {len(guesses)} guess")
    modes, factors = zip(*(gauss_newton(density, x) for x in guesses), strict=True)
    noise = normal(seed, range(len(guesses)), (guesses[0].numel(),), 301, dtype=guesses.dtype)
    start = torch.stack(
        [
            mode + spread * (root.to(z) @ z).reshape(mode.shape)
            for mode, root, z in zip(modes, factors, noise, strict=True)
        ]
    )
    factor = metric_factor(density, torch.stack(modes[:3]))
    members = range(len(guesses))
    warm = hmc(density, start, factor, warmup, leapfrog, step, seed, members, adapt=warmup // 2)
    # Another stream of numbers than that of the warm-up.
    chain = hmc(
        density, warm.x, factor, draws * thin, leapfrog, warm.step, seed + 1, members, thin=thin
    )
    if chain.draws is None:
        raise ValueError(f"expected at least one draw, got draws={draws}")

    return Reference(
        draws=chain.draws,
        rhat=split_rhat(chain.draws),
        ess=effective_sample_size(chain.draws),
        acceptance=sum(chain.acceptance) / len(chain.acceptance),
        gradients=warm.gradients + chain.gradients,
    )
