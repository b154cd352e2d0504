"""Fidelity of posterior sampling where the posterior is known.

For a Gaussian prior with its analytic denoiser and linear observations, most guidances are affine
in the noisy state, and a sampler without noise of its own maps a Gaussian start to a Gaussian
sample: its mean and covariance follow exactly, without sampling error, from the images of the
start's mean and of the columns of a square root of its covariance.
"""

import math
import time
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from .covariance import DenseCovariance
from .denoiser import Denoiser, GaussianDenoiser
from .guidance import guide
from .langevin import Langevin
from .observation.likelihood import Likelihood
from .sampling import SAMPLERS, integrate, log_levels, prepare, sample
from .trajectory import TrajectoryDenoiser

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
    length: int,
    kind: str,
    seed: int = 0,
    dtype: torch.dtype = torch.float64,
    dt: float = 0.1,
) -> GaussianCase:
    """A damped spring in a gusty wind whose position is observed.

    Arguments:
        length: The number of states.
        kind: `dense-noisy`, every state with std 0.5, or `sparse-precise`, every 8th with std 0.05,
            in units of the stationary standard deviation.
        seed: The seed of the truth and the observations' errors.
        dtype: The dtype of the denoiser and likelihood.
        dt: The time between two states: the wind has a decorrelation time of 2, the spring a period
            of 2 π.

    Raises:
        ValueError: If the kind is unknown.
    """

    from dynamics.linear_gaussian import LinearGaussian

    if kind not in KINDS:
        raise ValueError(f"unknown kind {kind!r}: choose one of {', '.join(KINDS)}")
    every, std = (1, 0.5) if kind == "dense-noisy" else (8, 0.05)
    system = LinearGaussian.damped_spring(dt)
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

    H = torch.zeros(len(index), len(sigma), dtype=torch.float64)
    H[torch.arange(len(index)), index] = 1
    mean, posterior = condition(sigma, H, torch.full_like(y, std**2), y)
    shape = (length, channels)
    matrix = H.to(dtype)
    likelihood = Likelihood(lambda x: x.flatten(1) @ matrix.T, y.to(dtype), std, shape, linear=True)

    return GaussianCase(DenseCovariance(sigma, shape, dtype), likelihood, mean, posterior)


def condition(sigma: Tensor, H: Tensor, variance: Tensor, y: Tensor) -> tuple[Tensor, Tensor]:
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
    start: str = "gaussian",
    batch: int = 512,
) -> tuple[Tensor, Tensor]:
    """The exact mean and covariance of a sampler that is affine in its start.

    Arguments:
        denoiser: The denoiser, affine in `x`.
        mean: The mean of the start at `s_max`, flattened.
        covariance: The covariance of the start, flattened.
        shape: The shape `(time, channel, *space)`.
        dtype: The dtype in which to sample.
        sampler, steps, s_max, s_min, order, start: See `sda.sampling.sample`.
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


def gaussian_start(
    case: GaussianCase, s: float, start: str | None = "gaussian"
) -> tuple[Tensor, Tensor]:
    """The mean and covariance of the start at `s`: of the noisy posterior, or of noise alone."""

    eye = torch.eye(len(case.mean), dtype=torch.float64)
    if start == "noise":
        return torch.zeros_like(case.mean), s**2 * eye

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


def evaluate(
    name: str,
    case: GaussianCase,
    members: int = 1024,
    denoiser: Denoiser | None = None,
    guidance: Mapping[str, Any] | None = None,
    **options: Any,
) -> dict[str, Any]:
    """Scores a guidance on a case, exactly where it is affine, else from an ensemble.

    Arguments:
        name: The guidance.
        case: The case.
        members: The size of the ensemble for guidances that are not affine. The mean error of an
            exact ensemble is `members^-½`.
        denoiser: The prior's denoiser, if not the exact one.
        guidance: Options of the guidance.
        options: Options of `sda.sampling.sample`.

    Returns:
        The scores, `evaluations` and `vjps` per member, `pilot_vjps` in all, the `seconds`, and
        whether the scores are `exact`.
    """

    denoiser = denoiser or case.denoiser
    guided = guide(name, denoiser, case.likelihood, case.covariance, **(guidance or {}))
    shape, dtype = case.covariance.shape, case.covariance.eigenvalues.dtype
    exact = name in AFFINE and not options.get("langevin") and options.get("sampler") != "ddpm"

    began = time.perf_counter()
    prepare(guided, shape, 0, dtype=dtype, **options)
    before = guided.evaluations, guided.vjps
    if exact:
        start = gaussian_start(case, options.get("s_max", 100.0), options.get("start"))
        mean, covariance = affine_moments(guided, *start, shape, dtype, **options)
        members = len(case.mean) + 1
    else:
        x = sample(guided, shape, 0, members, dtype=dtype, **options).double().flatten(1)
        mean, covariance = x.mean(0), torch.cov(x.T)

    return {
        **scores(mean, covariance, case),
        "evaluations": (guided.evaluations - before[0]) / members,
        "vjps": (guided.vjps - before[1]) / members,
        "pilot_vjps": before[1],
        "seconds": time.perf_counter() - began,
        "exact": exact,
    }


# Label, guidance, its options, options of `sample`.
METHODS: tuple[tuple[str, str, dict[str, Any], dict[str, Any]], ...] = (
    ("static", "static", {}, {}),
    ("static, 31 steps", "static", {}, {"steps": 31}),
    ("static, start from noise", "static", {}, {"start": "noise"}),
    ("static, DDIM", "static", {}, {"sampler": "ddim"}),
    ("static, DDPM, 256 steps", "static", {}, {"sampler": "ddpm", "steps": 256}),
    ("static + Langevin", "static", {}, {"langevin": Langevin.for_vectors()}),
    ("flow_dependent, dense", "flow_dependent", {"form": "dense"}, {}),
    ("flow_dependent, columns", "flow_dependent", {"form": "columns"}, {}),
    ("mmps, 4 iterations", "mmps", {"solves": 4}, {}),
    ("mmps, 16 iterations", "mmps", {"solves": 16}, {}),
    ("tmpd", "tmpd", {}, {}),
    ("pgdm", "pgdm", {}, {}),
    ("pgdm, 256 steps", "pgdm", {}, {"steps": 256}),
    ("sda γ=0.01", "sda", {"gamma": 0.01}, {}),
    ("sda γ=0.1", "sda", {"gamma": 0.1}, {}),
    ("sda γ=0.03, 256 steps", "sda", {"gamma": 0.03}, {"steps": 256}),
    ("dps", "dps", {}, {}),
)

WINDOWS = ((9, 1), (17, 1), (17, 9), (32, 16), (65, 33), (128, 128))


def guidance_rows(lengths: Sequence[int] = (32, 128)) -> Iterator[dict[str, Any]]:
    """Scores every guidance on every case, one row after another."""

    for length in lengths:
        for kind in KINDS:
            case = gaussian_case(length, kind)
            for label, name, guidance, options in METHODS:
                row = {"case": f"L={length} {kind}", "method": label}
                try:
                    yield row | evaluate(name, case, guidance=guidance, **options)
                except FloatingPointError:
                    yield row | {"mean_error": math.inf}


def composition_rows(
    length: int = 128, windows: Sequence[tuple[int, int]] = WINDOWS, dt: float = 0.3
) -> Iterator[dict[str, Any]]:
    """Scores trajectories composed of exact windows against the joint denoiser.

    Arguments:
        length: The number of states.
        windows: The windows and strides.
        dt: The time between two states, see `gaussian_case`: correlations last about 7 states.
    """

    for kind in KINDS:
        case = gaussian_case(length, kind, dt=dt)
        sigma, channels = case.covariance.dense(), case.covariance.shape[1]
        for frames, stride in windows:
            size = frames * channels
            dtype = case.covariance.eigenvalues.dtype
            window = DenseCovariance(sigma[:size, :size], (frames, channels), dtype)
            denoiser = TrajectoryDenoiser(
                GaussianDenoiser(window), frames, length, min(stride, frames)
            )
            row = {"case": f"L={length} {kind}", "method": f"window {frames}, stride {stride}"}
            try:
                yield row | evaluate("static", case, denoiser=denoiser)
            except FloatingPointError:
                yield row | {"mean_error": math.inf}


COLUMNS = {
    "case": "case",
    "method": "method",
    "mean_error": "mean error",
    "std_ratio": "std ratio",
    "std_ratio_min": "min",
    "std_ratio_max": "max",
    "lag1_error": "lag-1 error",
    "evaluations": "evaluations",
    "vjps": "VJPs",
    "pilot_vjps": "pilots' VJPs",
    "seconds": "seconds",
    "exact": "exact",
}


def markdown(rows: Iterable[Mapping[str, Any]]) -> Iterator[str]:
    """The lines of a Markdown table; errors in per cent."""

    yield "| " + " | ".join(COLUMNS.values()) + " |"
    yield "|" + "---|" * len(COLUMNS)
    for row in rows:
        yield "| " + " | ".join(_cell(key, row.get(key)) for key in COLUMNS) + " |"


def _cell(key: str, value: Any) -> str:
    if value is None:
        return "–"
    if isinstance(value, bool):
        return "yes" if value else "no"
    if isinstance(value, str):
        return value
    if key.endswith("error"):
        return "diverged" if value == math.inf else f"{100 * value:.2f} %"
    if key == "seconds":
        return f"{value:.1f}"

    return f"{value:.3f}" if key.startswith("std") else f"{value:.0f}"
