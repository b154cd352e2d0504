r"""Guidance with each member's own covariance, solved with the help of the prior's average one.

    C(x, s) = s² ∂D/∂x,    C̄(s) = E[Cov[X | X + s ε]] = s² E[∂D/∂x (X + s ε)]

as in `hybrid`, but what members share does not come from pilots of the posterior: it is the
covariance of the denoiser's error, averaged over trajectories of the prior. It knows nothing of
the flow, and nothing of the observations: it is made once for a prior and a length, and a filter
uses it in every cycle. It preconditions the solve of each member, and is the metric of Langevin
steps. The climatological `(Σ⁻¹ + I / s²)⁻¹` is much too large for either, since a chaotic system's
trajectories fill little of what their covariance spans. `C̄` alone, without the members' own
covariance, would be no guidance: errors are far from it where trajectories part.

References:
    Cov[X | x] by Tweedie's formula: Rozet et al. (2024), arXiv 2405.13712
    Background errors that are averages over many cycles: Bannister (2008), A review of forecast
    error covariance statistics in atmospheric variational data assimilation
"""

import math
from typing import Any

import torch
from torch import Tensor

from ..covariance import Covariance, DenseCovariance, SpectralCovariance
from ..denoiser import Denoiser, GaussianDenoiser
from .base import Analysis
from .hybrid import check_range, solve_each
from .solver import ObservationSpace
from .static import StaticGuidance

# Streams of noise: of the prior's trajectories, and of the noise on them.
DRAWS, NOISE = 33, 34
# Draws: in a homogeneous field each cell is one of its own.
DENSE, SPECTRAL = 64, 16
# Draws of one evaluation, and products of one pass backwards.
TOGETHER, CHUNK = 16, 32


class ErrorCovariances:
    r"""The covariances `C̄(s)` of a denoiser's error, averaged over trajectories of its prior.

    Means of the denoiser's Jacobian, made when a level is first asked for, at trajectories that are
    sampled once. All levels have the same noise: none depends on which others were asked for.

    Arguments:
        denoiser: The denoiser of the prior.
        covariance: The climatological covariance of the trajectory, dense or spectral.
        draws: The number of trajectories (default: 64, or 16 of homogeneous fields).
        seed: The seed of the trajectories.
        floor: The smallest eigenvalue of `C̄ / s²`.
        ceiling: The largest.

    Raises:
        ValueError: If the covariance is of another kind, or an option is out of range.
    """

    def __init__(
        self,
        denoiser: Denoiser,
        covariance: Covariance,
        draws: int | None = None,
        seed: int = 0,
        floor: float = 1e-9,
        ceiling: float = 0.999,
    ) -> None:
        if not isinstance(covariance, DenseCovariance | SpectralCovariance):
            raise ValueError(
                f"averaged errors need a dense or a spectral covariance, got "
                f"{type(covariance).__name__}: use guidance 'static'"
            )
        if draws is not None and draws < 1:
            raise ValueError(f"draws must be at least 1, got {draws}")
        if not 0 < floor < ceiling < 1:
            raise ValueError(f"need 0 < floor < ceiling < 1, got {floor} and {ceiling}")
        self.denoiser, self.covariance = denoiser, covariance
        spectral = isinstance(covariance, SpectralCovariance)
        rows = math.prod(covariance.shape[: 2 if spectral else None])
        self.draws = draws or (SPECTRAL if spectral else DENSE)
        self.spectral, self.rows = spectral, rows
        self.dims = tuple(range(2 - len(covariance.shape), 0))
        self.ones = (1,) * len(covariance.shape[2:]) if spectral else ()
        self.seed, self.floor, self.ceiling = seed, floor, ceiling
        self._drawn: tuple[Tensor, Tensor] | None = None
        self._found: dict[float, Covariance] = {}

    def at(self, s: float) -> Covariance:
        """`(C̄⁻¹ − I / s²)⁻¹`, the prior's covariance of which `C̄(s)` is what noise `s` leaves.

        Raises:
            FloatingPointError: If a trajectory of the prior diverges.
        """

        if isinstance(self.denoiser, GaussianDenoiser):
            return self.covariance
        if s not in self._found:
            self._found[s] = self._estimate(s)

        return self._found[s]

    def _estimate(self, s: float) -> Covariance:
        drawn, noise = self._trajectories()
        shape, like = self.covariance.shape, self.covariance.eigenvalues
        rows = self.rows
        total = torch.zeros(())
        for x, eps in zip(drawn.split(TOGETHER), noise.split(TOGETHER), strict=True):
            with torch.enable_grad():
                x = (x + s * eps).requires_grad_()
                mean = self.denoiser.denoise(x, s)
            waves, probes = self._probes(eps)
            found = []
            for part in torch.eye(rows, dtype=x.dtype, device=x.device).split(CHUNK):
                seen = part.reshape(
                    len(part), 1, *shape[: 2 if self.spectral else None], *self.ones
                )
                gradient = torch.autograd.grad(
                    mean, x, (seen * probes).expand(-1, *x.shape),
                    retain_graph=True, is_grads_batched=True,
                )[0].double()  # fmt: skip
                if self.spectral:
                    waved = torch.fft.rfftn(gradient, dim=self.dims, norm="ortho").flatten(2, 3)
                    found.append((waved * waves.conj()).sum(1))
                else:
                    found.append(gradient.sum(1).flatten(1))
            # Columns of the matrices of each wavenumber, or those of the only one.
            total = total.to(found[0]) + torch.cat(found)
        share = total / len(drawn)
        made: Covariance
        if self.spectral:
            made = SpectralCovariance(share.movedim((1, 0), (-2, -1)).cpu(), shape, like.dtype)
        else:
            made = DenseCovariance((share + share.T) / 2, shape, like.dtype)
        for name in ("eigenvalues", "table") if self.spectral else ("eigenvalues",):
            values = made.get_buffer(name).double().clamp(self.floor, self.ceiling)
            setattr(made, name, (s**2 * values / (1 - values)).to(like.dtype))

        return made.to(like.device)

    def _probes(self, noise: Tensor) -> tuple[Tensor, Tensor]:
        """Fields of all wavenumbers alike, with random phases, and their transforms.

        Where the covariance is homogeneous, one product with such a field is a column of the
        matrices of all wavenumbers. What is not homogeneous averages out.
        """

        if not self.spectral:
            return noise, torch.ones((), dtype=noise.dtype, device=noise.device)
        waves = torch.fft.rfftn(noise[:, :1, :1].double(), dim=self.dims, norm="ortho")
        waves = waves / waves.abs()
        space = self.covariance.shape[2:]
        fields = torch.fft.irfftn(waves, s=space, dim=self.dims, norm="ortho")

        return waves[:, 0], fields.to(noise.dtype)

    def _trajectories(self) -> tuple[Tensor, Tensor]:
        """Trajectories of the prior, and standard normal noise, both `(draws, *shape)`."""

        from ..sampling import MemberNoise, sample

        if self._drawn is None:
            like, shape = self.covariance.eigenvalues, self.covariance.shape
            place: dict[str, Any] = {"dtype": like.dtype, "device": like.device}
            parts = [range(self.draws)[i : i + TOGETHER] for i in range(0, self.draws, TOGETHER)]
            x = [sample(self.denoiser, shape, self.seed, p, stream=DRAWS, **place) for p in parts]
            noise = MemberNoise(self.seed, range(self.draws), NOISE, **place)(shape)
            self._drawn = torch.cat(x), noise

        return self._drawn


class AveragedGuidance(StaticGuidance):
    """Moment matching per member, preconditioned by the average covariance of the prior.

    Below the levels where members have their own covariance, all have the average one; above, that
    of the climatology. It is `static` guidance if `H` is not linear, errors are not Gaussian, or
    observations are too many for the direct solve.

    Arguments:
        denoiser: The denoiser of the prior, of whole trajectories.
        likelihood: The likelihood of the observations, over normalised anomalies.
        covariance: The climatological covariance of the trajectory, dense or spectral.
        errors: The average covariances (default: made of denoiser and covariance when needed). To
            be shared by guidances of one prior and length.
        solves: The number of solver iterations, with one vector–Jacobian product of every member
            each.
        s_low: The smallest noise level with a covariance for each member.
        s_high: The largest noise level with that or the average covariance; the climatological one
            is as good above.
        options: See `StaticGuidance`.

    Raises:
        ValueError: If an option is out of range, the covariance is of another kind, or the denoiser
            goes on from known states, where the average is another for each.
    """

    twisted = False

    def __init__(
        self,
        denoiser: Denoiser,
        likelihood: Any,
        covariance: Covariance,
        errors: ErrorCovariances | None = None,
        solves: int = 2,
        s_low: float = 0.01,
        s_high: float = 5.0,
        **options: Any,
    ) -> None:
        super().__init__(denoiser, likelihood, covariance, **options)
        check_range(solves, s_low, s_high)
        if getattr(denoiser, "mean", None) is not None:
            raise ValueError(
                "guidance 'averaged' is for whole trajectories, not for those that go on from "
                "known states: use 'static' or 'mmps'"
            )
        self.errors = errors or ErrorCovariances(denoiser, covariance)
        self.solves, self.s_low, self.s_high = solves, s_low, s_high
        self.own = self.space.direct
        self._spaces: dict[float, ObservationSpace] = {}

    @torch.no_grad()
    def analyse(self, x: Tensor, s: float) -> Analysis:
        space = self._shared(s)
        if not (self.own and self.s_low <= s <= self.s_high):
            return self.update(self.background(x, s), s, space)

        return solve_each(self, x, s, space, self.solves)

    def _shared(self, s: float) -> ObservationSpace:
        """The systems of the covariance that all members share at a level."""

        if s > self.s_high or not self.own:
            return self.space
        if s not in self._spaces:
            space = self.space
            self._spaces[s] = ObservationSpace(
                self.errors.at(s), self.likelihood, space.limit, space.tolerance, space.iterations
            )

        return self._spaces[s]
