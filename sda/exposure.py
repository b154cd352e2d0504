"""Exposure bias: what a sampler's states lack of the states that a network was trained on.

A network is trained on truth plus noise, but sampled on its own estimates plus noise. What it fails
to restore at one level is missing from its input at the next, and members end up too smooth: a few
per cent of the amplitude at each level, a quarter of the small-scale energy in the end. The network
takes the missing energy for noise that was removed too well. Telling it less noise than there is,

.. math:: D(x, s) \\to D(x, (1 - \\epsilon) \\, s),

compensates to first order. The share ε is found once per prior: unconditional samples shall have
the climatology's variance, in the geometric mean over its eigenvectors.

References:
    | Ning et al. (2024), Elucidating the exposure bias in diffusion models, arXiv 2308.15321.
    | Karras et al. (2022), arXiv 2206.00364 (noise inflated by up to 0.7 % to the same end).
"""

import torch
from torch import Tensor

from .climatology import Climatology
from .prior import Prior
from .sampling import sample

LARGEST = 0.15
RELEVANT = 1e-4


def energy(x: Tensor, climatology: Climatology) -> float:
    """The variance of states relative to the climatology's, geometric mean over eigenvectors.

    .. math:: \\exp \\Big( \\sum_j w_j \\log \\frac{E[z_j^2]}{\\lambda_j} \\Big/ \\sum_j w_j \\Big)

    over eigenvectors of the covariance of single states that hold more than a ten-thousandth of the
    largest variance.

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


def calibrate(prior: Prior, members: int = 24, seed: int = 0, iterations: int = 5) -> float:
    """Finds the exposure correction of a prior by bisection.

    The geometric mean of a finite sample is biased: the reference is the same statistic of as many
    samples of the Gaussian prior.

    Arguments:
        prior: The prior, with a network.
        members: The number of unconditional samples of one window.
        seed: The seed of the samples, the same for every trial.
        iterations: The number of bisections, each of which halves an interval of 0.15.

    Returns:
        The share ε, between 0 and 0.15. It is not set on the prior.

    Raises:
        ValueError: If the prior has no network.
    """

    if prior.denoiser is None:
        raise ValueError("a Gaussian prior has no exposure bias to calibrate")
    shape = (prior.window, *prior.layout.shape)
    climatology = prior.climatology
    reference = energy(
        sample(Prior(climatology).trajectory(prior.window), shape, seed, members), climatology
    )

    def excess(exposure: float) -> float:
        trial = Prior(climatology, prior.denoiser, exposure=exposure)
        x = sample(trial.trajectory(prior.window), shape, seed, members)
        return energy(x, climatology) - reference

    low, high = 0.0, LARGEST
    if excess(low) >= 0:
        return low
    if excess(high) <= 0:
        return high
    for _ in range(iterations):
        middle = (low + high) / 2
        low, high = (middle, high) if excess(middle) < 0 else (low, middle)

    return (low + high) / 2
