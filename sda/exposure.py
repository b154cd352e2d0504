"""Exposure bias: what a sampler's states lack of the states that a network was trained on.

A network is trained on truth plus noise, but sampled on its own estimates plus noise. What it fails
to restore at one level is missing from its input at the next, and members end up too smooth: a few
per cent of the amplitude at each level, a quarter of the small-scale energy in the end. The network
takes the missing energy for noise that was removed too well. Telling it less noise than there is,

.. math:: D(x, s) \\to D(x, (1 - \\epsilon) \\, s),

compensates to first order. The share ε is found once per prior: samples shall have the variance of
the states that they stand for, in the geometric mean over the climatology's eigenvectors. Samples
of a posterior lack more than unconditional ones, as what observations add to them is not the
network's own; they are what the correction is for, hence it is found by twin experiments with
trajectories that were not trained on, where there are any.

References:
    | Ning et al. (2024), Elucidating the exposure bias in diffusion models, arXiv 2308.15321.
    | Karras et al. (2022), arXiv 2206.00364 (noise inflated by up to 0.7 % to the same end).
"""

from collections.abc import Callable

import torch
from torch import Tensor

from .climatology import Climatology
from .guidance import guide
from .langevin import Langevin
from .observation.likelihood import Likelihood
from .prior import Prior
from .sampling import sample

LARGEST = 0.25
RELEVANT = 3e-3
# What twins observe: one value of so many in time and in each direction, to this share of a std.
EVERY, STD = 4, 0.1


def energy(x: Tensor, climatology: Climatology) -> float:
    """The variance of states relative to the climatology's, geometric mean over eigenvectors.

    .. math:: \\exp \\Big( \\sum_j w_j \\log \\frac{E[z_j^2]}{\\lambda_j} \\Big/ \\sum_j w_j \\Big)

    over eigenvectors of the covariance of single states that hold more than three thousandths of
    the largest variance: the many small ones would outvote those that hold the energy.

    Arguments:
        x: Trajectories of normalised anomalies, with shape `(member, time, channel, *space)`.
        climatology: The climatology.
    """

    covariance = climatology.covariance(1)
    z = covariance.transform(x.flatten(0, 1)[:, None]).square().mean(0)
    # The two parts of a complex coefficient share one eigenvalue, and one part may be zero.
    values, group = torch.unique_consecutive(covariance.eigenvalues, return_inverse=True)
    weight = torch.zeros_like(values).index_add(0, group, covariance.weights)
    variance = torch.zeros_like(values).index_add(0, group, z) / weight.clamp(min=1e-12)
    keep = values > RELEVANT * values.max()
    ratio = (variance[keep] / values[keep]).clamp(min=1e-12)

    return float(torch.exp((weight[keep] * ratio.log()).sum() / weight[keep].sum()))


def calibrate(
    prior: Prior,
    members: int = 24,
    seed: int = 0,
    iterations: int = 5,
    truths: Tensor | None = None,
) -> float:
    """Finds the exposure correction of a prior by bisection.

    The geometric mean of a finite sample is biased: the reference is the same statistic of as many
    truths, or of samples of the Gaussian prior.

    Arguments:
        prior: The prior, with a network.
        members: The number of unconditional samples of one window, if there are no truths.
        seed: The seed of the samples, the same for every trial.
        iterations: The number of bisections, each of which halves an interval of 0.25.
        truths: Trajectories of normalised anomalies that the prior was not trained on, with shape
            `(member, time, channel, *space)`. Of each, every fourth value in time and space is
            observed, and one member of its posterior sampled with `static` guidance and the
            Langevin steps of the prior.

    Returns:
        The share ε, between 0 and 0.25. It is not set on the prior.

    Raises:
        ValueError: If the prior has no network, or the truths are not of its states.
    """

    if prior.denoiser is None:
        raise ValueError("a Gaussian prior has no exposure bias to calibrate")
    climatology = prior.climatology
    if truths is None:
        draw, reference = _unconditional(prior, members, seed)
    else:
        draw, reference = _twins(prior, truths, seed), energy(truths, climatology)

    def excess(exposure: float) -> float:
        trial = Prior(climatology, prior.denoiser, exposure=exposure)
        return energy(draw(trial), climatology) - reference

    low, high = 0.0, LARGEST
    if excess(low) >= 0:
        return low
    if excess(high) <= 0:
        return high
    for _ in range(iterations):
        middle = (low + high) / 2
        low, high = (middle, high) if excess(middle) < 0 else (low, middle)

    return (low + high) / 2


def _unconditional(
    prior: Prior, members: int, seed: int
) -> tuple[Callable[[Prior], Tensor], float]:
    """What samples windows of a prior, and the energy that they shall have."""

    shape = (prior.window, *prior.layout.shape)
    gaussian = Prior(prior.climatology).trajectory(prior.window)

    return (
        lambda trial: sample(trial.trajectory(prior.window), shape, seed, members),
        energy(sample(gaussian, shape, seed, members), prior.climatology),
    )


def _twins(prior: Prior, truths: Tensor, seed: int) -> Callable[[Prior], Tensor]:
    """What samples a member of the posterior of each truth, given sparse observations of it."""

    shape = tuple(truths.shape[1:])
    if truths.ndim < 3 or shape[1:] != prior.layout.shape or shape[0] < prior.window:
        raise ValueError(
            f"truths must have shape (member, time, {', '.join(map(str, prior.layout.shape))}) "
            f"with at least the {prior.window} states of a window, got {tuple(truths.shape)}"
        )
    thinned = (slice(None), slice(None, None, EVERY), slice(None)) + tuple(
        slice(None, None, EVERY) for _ in shape[2:]
    )

    def observe(x: Tensor) -> Tensor:
        return x[thinned].flatten(1)

    y = observe(truths)
    y = y + STD * torch.randn(y.shape, generator=torch.Generator().manual_seed(seed)).to(y)
    likelihood = Likelihood(observe, y, STD, shape, linear=True, part=observe)
    covariance = prior.climatology.covariance(shape[0])
    langevin = Langevin.for_fields(**prior.langevin)

    def draw(trial: Prior) -> Tensor:
        guided = guide("static", trial.trajectory(shape[0]), likelihood, covariance)
        return sample(guided, shape, seed, len(truths), langevin=langevin)

    return draw
