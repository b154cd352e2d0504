r"""Weights of particles: normalisation, effective number, systematic resampling, kernels.

Particles `x_j` with weights `w_j`, `Σ w_j = 1`, stand for a distribution `Σ w_j δ(x - x_j)`. Their
effective number is `1 / Σ w_j²`. Systematic resampling makes of them equally weighted particles,
each `⌊N w_j⌋` or `⌈N w_j⌉` times and `N w_j` times in the mean. A kernel density estimate moves
copies apart by draws from `N(0, h² C)`, with the weighted covariance `C` of the particles and the
bandwidth `h` in proportion to that of Scott's rule, `N^{-1/(n+4)}` in `n` dimensions.

References:
    Kitagawa (1996), Monte Carlo filter and smoother for non-Gaussian nonlinear state space models,
    J. Comput. Graph. Stat. 5. Musso, Oudjane and Le Gland (2001), Improving regularised particle
    filters, in: Sequential Monte Carlo Methods in Practice. Scott (1992), Multivariate Density
    Estimation, Wiley.
"""

import math

import torch
from torch import Tensor

from ..observation.sequence import ObservedTime


def log_likelihood(predicted: Tensor, observed: ObservedTime) -> Tensor:
    """`log p(y | x)` of particles, float64.

    Arguments:
        predicted: What the particles predict, `H(x)`, with shape `(repetition, member, value)`.
        observed: What was observed.

    Returns:
        The log-likelihoods, with shape `(repetition, member)`.
    """

    std = observed.std.double()
    z = (observed.y.double()[:, None] - predicted.double()) / std
    constant = (std.log() + 0.5 * math.log(2 * math.pi)).sum()

    return -0.5 * z.square().sum(2) - constant


def normalise(log_w: Tensor) -> tuple[Tensor, Tensor]:
    """Normalised logarithms of weights, and the logarithm of their sum.

    A particle that is not finite has no weight.

    Arguments:
        log_w: Logarithms of weights, with shape `(repetition, member)`.

    Returns:
        Two tensors with shapes `(repetition, member)` and `(repetition)`. Where no particle has any
        weight, the second is not finite and the first means nothing.
    """

    log_w = torch.where(log_w.isnan(), -math.inf, log_w)
    total = torch.logsumexp(log_w, 1)

    return log_w - total[:, None], total


def effective_number(w: Tensor) -> Tensor:
    """`1 / Σ w²`: `(repetition, member)` to `(repetition)`."""
    return 1 / w.square().sum(1)


def systematic_indices(w: Tensor, number: int, uniform: Tensor) -> Tensor:
    """Systematic resampling, batched: ascending indices of the particles that live on.

    Arguments:
        w: Normalised weights, with shape `(…, particle)`, float64.
        number: How many to draw.
        uniform: Uniform random numbers in [0, 1), with shape `(…)`.

    Returns:
        The indices, with shape `(…, number)`.
    """

    steps = torch.arange(number, dtype=torch.float64, device=w.device)
    # Rounding must not choose a particle without weight, at the end of all.
    points = ((steps + uniform.double()[..., None]) / number).clamp(max=1 - 2**-53)
    edges = torch.cumsum(w.double(), -1)
    edges = edges / edges[..., -1:]

    return torch.searchsorted(edges, points, right=True).clamp(max=w.shape[-1] - 1)


def take(x: Tensor, indices: Tensor) -> Tensor:
    """Particles by their index: `(repetition, member, …)` and `(repetition, number)`."""

    repetition = torch.arange(len(x), device=x.device)[:, None]
    return x[repetition, indices]


def copies(indices: Tensor) -> Tensor:
    """Which of ascending indices occur more than once, with their shape."""

    same = indices[:, 1:] == indices[:, :-1]
    edge = torch.zeros_like(same[:, :1])

    return torch.cat([same, edge], 1) | torch.cat([edge, same], 1)


def scott(members: int, dimension: int) -> float:
    """The bandwidth `N^{-1/(n+4)}`."""
    return members ** (-1 / (dimension + 4))


def kernel_size(members: int, dimension: int) -> int:
    """How many normal numbers `kernel` takes for each particle."""
    return dimension if members > 2 * dimension else members


def kernel(x: Tensor, w: Tensor, noise: Tensor) -> Tensor:
    """Draws from `N(0, C)`, `C = Σ w (x - x̄)(x - x̄)ᵀ` the particles' weighted covariance.

    Arguments:
        x: The particles, with shape `(repetition, member, *state)`.
        w: Their weights, with shape `(repetition, member)`.
        noise: Normal numbers, with shape `(repetition, member, kernel_size)`.

    Returns:
        The draws, with the shape of the particles.
    """

    w = w.to(x)[..., None]
    # What has no weight does not count, even if it is not finite.
    flat = torch.where(w > 0, x.flatten(2), 0.0)
    root = w.sqrt() * (flat - (w * flat).sum(1, keepdim=True))
    if noise.shape[2] == flat.shape[2]:
        # Fewer dimensions than particles: a square root of the matrix is the smaller factor.
        covariance = (root.mT @ root).nan_to_num(0.0, 0.0, 0.0)
        values, vectors = torch.linalg.eigh(covariance)
        root = values.clamp(min=0).sqrt()[:, :, None] * vectors.mT

    return (noise @ root).reshape(x.shape)
