"""Fidelity of posterior sampling where the posterior is known.

For a Gaussian prior with its analytic denoiser and linear observations, most guidances are affine
in the noisy state, and a sampler without noise of its own maps a Gaussian start to a Gaussian
sample: its mean and covariance follow exactly, without sampling error, from the images of the
start's mean and of the columns of a square root of its covariance.
"""

from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from .covariance import DenseCovariance
from .denoiser import Denoiser, GaussianDenoiser
from .observation.likelihood import Likelihood
from .sampling import SAMPLERS, integrate, log_levels, sample

KINDS = ("dense-noisy", "sparse-precise")
AFFINE = ("static", "flow_dependent", "sda", "pgdm", "tmpd")


@dataclass
class GaussianCase:
    """A linear-Gaussian posterior, known exactly.

    Attributes:
        covariance: The prior covariance Σ of normalised trajectories.
        likelihood: The likelihood.
        mean: The posterior mean, flattened, in float64.
        posterior: The posterior covariance, in float64.
    """

    covariance: DenseCovariance
    likelihood: Likelihood
    mean: Tensor
    posterior: Tensor

    @property
    def denoiser(self) -> GaussianDenoiser:
        """The exact denoiser of the prior."""
        return GaussianDenoiser(self.covariance)


def gaussian_case(
    length: int, kind: str, seed: int = 0, dtype: torch.dtype = torch.float64
) -> GaussianCase:
    """A damped spring in a gusty wind whose position is observed.

    Arguments:
        length: The number of states.
        kind: `dense-noisy`, every state with std 0.5, or `sparse-precise`, every 8th with std 0.05,
            in units of the stationary standard deviation.
        seed: The seed of the truth and the observations' errors.
        dtype: The dtype of the denoiser and likelihood.

    Raises:
        ValueError: If the kind is unknown.
    """

    from dynamics.linear_gaussian import LinearGaussian

    if kind not in KINDS:
        raise ValueError(f"unknown kind {kind!r}: choose one of {', '.join(KINDS)}")
    every, std = (1, 0.5) if kind == "dense-noisy" else (8, 0.05)
    system = LinearGaussian.damped_spring()
    channels = len(system.A)
    sigma = system.trajectory_covariance(length)
    scale = system.stationary_covariance.diagonal().sqrt().repeat(length)
    sigma = sigma / scale[:, None] / scale

    generator = torch.Generator().manual_seed(seed)
    values, vectors = torch.linalg.eigh(sigma)
    white = torch.randn(len(sigma), generator=generator, dtype=torch.float64)
    truth = vectors @ (values.clamp(min=0).sqrt() * white)
    index = channels * torch.arange(0, length, every)
    y = truth[index] + std * torch.randn(len(index), generator=generator, dtype=torch.float64)

    H = torch.zeros(len(index), len(sigma), dtype=torch.float64)  # noqa: N806
    H[torch.arange(len(index)), index] = 1
    mean, posterior = condition(sigma, H, torch.full_like(y, std**2), y)
    shape = (length, channels)
    matrix = H.to(dtype)
    likelihood = Likelihood(lambda x: x.flatten(1) @ matrix.T, y.to(dtype), std, shape, linear=True)

    return GaussianCase(DenseCovariance(sigma, shape, dtype), likelihood, mean, posterior)


def condition(sigma: Tensor, H: Tensor, variance: Tensor, y: Tensor) -> tuple[Tensor, Tensor]:  # noqa: N803
    """Conditions `N(0, Σ)` on `y = H x + N(0, diag(variance))`: the mean and covariance."""

    gain = torch.linalg.solve(H @ sigma @ H.T + torch.diag(variance), H @ sigma).T
    posterior = sigma - gain @ H @ sigma

    return gain @ y, (posterior + posterior.T) / 2


def affine_moments(
    denoiser: Denoiser,
    mean: Tensor,
    covariance: Tensor,
    shape: tuple[int, ...],
    dtype: torch.dtype,
    *,
    sampler: str = "xeab",
    steps: int = 24,
    s_max: float = 100.0,
    s_min: float = 5e-3,
    order: int | None = None,
    batch: int = 512,
) -> tuple[Tensor, Tensor]:
    """The exact mean and covariance of a sampler that is affine in its start.

    Arguments:
        denoiser: The denoiser, affine in `x`.
        mean: The mean of the start at `s_max`, flattened.
        covariance: The covariance of the start, flattened.
        shape: The shape `(time, channel, *space)`.
        dtype: The dtype in which to sample.
        sampler, steps, s_max, s_min, order: See `sda.sampling.sample`.
        batch: The number of trajectories at once.
    """

    values, vectors = torch.linalg.eigh(covariance)
    root = vectors * values.clamp(min=0).sqrt()
    starts = torch.cat([mean[None], mean + root.T]).to(dtype).reshape(-1, *shape)
    levels = log_levels(steps, s_max, s_min)
    images = torch.cat(
        [
            integrate(denoiser, part, SAMPLERS[sampler](levels, order)).double()
            for part in starts.split(batch)
        ]
    ).flatten(1)
    root = (images[1:] - images[:1]).T

    return images[0], root @ root.T


def gaussian_start(case: GaussianCase, s: float) -> tuple[Tensor, Tensor]:
    """The mean and covariance of the noisy posterior at `s`, the default start."""

    eye = torch.eye(len(case.mean), dtype=torch.float64)

    return case.mean, case.posterior + s**2 * eye


def scores(mean: Tensor, covariance: Tensor, case: GaussianCase) -> dict[str, float]:
    """Errors of the first two moments.

    Returns:
        `mean_error`, the root mean square error of the mean in posterior standard deviations;
        `std_ratio`, with `std_ratio_min` and `std_ratio_max`; and `lag1_error`, the relative error
        (Frobenius norm) of the covariance between successive states.
    """

    length, channels = case.covariance.shape[:2]
    std = case.posterior.diagonal().sqrt()
    ratio = covariance.diagonal().clamp(min=0).sqrt() / std

    def lag1(matrix: Tensor) -> Tensor:
        blocks = matrix.reshape(length, channels, length, channels)
        time = torch.arange(length - 1)
        return blocks[time, :, time + 1, :]

    error = (lag1(covariance) - lag1(case.posterior)).norm() / lag1(case.posterior).norm()

    return {
        "mean_error": ((mean - case.mean) / std).square().mean().sqrt().item(),
        "std_ratio": ratio.mean().item(),
        "std_ratio_min": ratio.min().item(),
        "std_ratio_max": ratio.max().item(),
        "lag1_error": error.item(),
    }


def evaluate(name: str, case: GaussianCase, members: int = 1024, **options: Any) -> dict[str, Any]:
    """Scores a guidance on a case, exactly where it is affine, else from an ensemble.

    Arguments:
        name: The guidance.
        case: The case.
        members: The size of the ensemble for guidances that are not affine.
        options: Options of the guidance (`guidance={…}`) and of `sda.sampling.sample`.

    Returns:
        The scores, `evaluations` and `vjps` per member, and whether they are `exact`.
    """

    from .guidance import guide

    guidance = dict(options.pop("guidance", {}))
    guided = guide(name, case.denoiser, case.likelihood, case.covariance, **guidance)
    dtype = case.covariance.eigenvalues.dtype
    shape = case.covariance.shape
    exact = name in AFFINE and not options.get("langevin")
    steps = options.get("steps", 24)

    if exact:
        from .sampling import prepare

        prepare(guided, shape, 0, dtype=dtype, **options)
        pilots = guided.evaluations, guided.vjps
        start = gaussian_start(case, options.get("s_max", 100.0))
        mean, covariance = affine_moments(guided, *start, shape, dtype, **options)
        members = len(case.mean) + 1
        evaluations = (guided.evaluations - pilots[0]) / members
    else:
        x = sample(guided, shape, 0, members, dtype=dtype, **options).double().flatten(1)
        mean, covariance = x.mean(0), torch.cov(x.T)
        evaluations, pilots = guided.evaluations / members, (0, 0)

    return {
        **scores(mean, covariance, case),
        "evaluations": evaluations,
        "vjps": (guided.vjps - pilots[1]) / members,
        "pilot_vjps": pilots[1],
        "exact": exact,
        "steps": steps,
    }
