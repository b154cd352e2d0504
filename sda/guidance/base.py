"""What all guidances share: counting, the analysis, and the metric of Langevin steps."""

import abc
import math
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, Protocol

import torch
from torch import Tensor

from ..covariance import Covariance
from ..denoiser import Denoiser, broadcast
from .solver import Noise, ObservationSpace, Tangent


class LikelihoodLike(Protocol):
    """What a guidance needs of a likelihood, see `sda.observation.Likelihood`."""

    y: Tensor
    std: Tensor
    linear: bool
    shape: tuple[int, ...]

    def H(self, x: Tensor) -> Tensor: ...

    def linearise(
        self, x: Tensor
    ) -> tuple[Tensor, Callable[[Tensor], Tensor], Callable[[Tensor], Tensor]]: ...

    def adjoint(self, v: Tensor) -> Tensor: ...

    def columns(self) -> Tensor: ...


# The analyses from which the first weights of errors that are not Gaussian follow.
STARTED = 20


@dataclass
class Move:
    """`M g` and a draw `z` from `N(0, M)`, of which only a combination is wanted.

    Attributes:
        square: `gᵀ M g`, with shape `(member)`.
        combine: The map from factors `a` and `b`, both `(member)`, to `a M g + b z`.
    """

    square: Tensor
    combine: Callable[[Tensor, Tensor], Tensor]


class Metric(abc.ABC):
    """A symmetric positive definite matrix `M` for each member."""

    @abc.abstractmethod
    def apply(self, x: Tensor) -> Tensor:
        """`M x`, with the shape of `x`."""

    @abc.abstractmethod
    def draw(self, noise: Noise) -> Tensor:
        """Draws from `N(0, M)`, given a source of standard normal noise `(member, *shape)`."""

    def move(self, g: Tensor, noise: Noise) -> Move:
        """What a Langevin step is made of; metrics that can, share transforms between its parts."""

        drift, z = self.apply(g), self.draw(noise)

        return Move(
            (g * drift).flatten(1).sum(1),
            lambda a, b: broadcast(a, g) * drift + broadcast(b, g) * z,
        )


class IdentityMetric(Metric):
    """`M = s² I`."""

    def __init__(self, s: float, shape: tuple[int, ...]) -> None:
        self.s = s
        self.shape = shape

    def apply(self, x: Tensor) -> Tensor:
        return self.s**2 * x

    def draw(self, noise: Noise) -> Tensor:
        return self.s * noise(self.shape)


class CappedPrior:
    """The eigenvalues `min(λ + s², κ s², s² + c)` of a capped prior metric."""

    def __init__(self, s: float, kappa: float = math.inf, cap: float = math.inf) -> None:
        self.variance = s**2
        self.limit = min(kappa * s**2, s**2 + cap)

    def __call__(self, eigenvalues: Tensor) -> Tensor:
        return (eigenvalues + self.variance).clamp(max=self.limit)


class PriorMetric(Metric):
    """The covariance `Σ + s² I` of the noisy prior, its eigenvalues capped."""

    def __init__(self, covariance: Covariance, m0: CappedPrior) -> None:
        self.covariance = covariance
        self.m0 = m0

    def apply(self, x: Tensor) -> Tensor:
        return self.covariance.apply(self.m0, x)

    def draw(self, noise: Noise) -> Tensor:
        return self.covariance.apply(lambda e: self.m0(e).sqrt(), noise(self.covariance.shape))

    def move(self, g: Tensor, noise: Noise) -> Move:
        m0 = self.m0(self.covariance.eigenvalues)
        both = torch.cat((g, noise(self.covariance.shape)))
        g, z = self.covariance.transform(both).chunk(2)
        drift, z = m0 * g, m0.sqrt() * z

        return Move(
            (g * drift).sum(1),
            lambda a, b: self.covariance.inverse(a[:, None] * drift + b[:, None] * z),
        )


class PosteriorMetric(Metric):
    """The covariance of the noisy posterior of a Gaussian prior.

    With `C = (Σ⁻¹ + I / s²)⁻¹`, `S = H C Hᵀ + R` and `M₀ = Σ + s²` (its eigenvalues capped),

        M = (M₀⁻¹ + C Hᵀ S⁻¹ H C / s⁴)⁻¹
          = M₀ − M₀ G (S + Gᵀ M₀ G)⁻¹ Gᵀ M₀,      G = C Hᵀ / s²,

    which without a cap is `Cov[X | y] + s² I`. Positive definite for any positive `M₀`. Draws by
    Matheron's rule: `z ~ N(0, M₀)`, `u ~ N(0, S)`, then `z − M₀ G (S + Gᵀ M₀ G)⁻¹ (Gᵀ z + u)`.
    """

    def __init__(
        self, space: ObservationSpace, tangent: Tangent | None, s: float, m0: CappedPrior
    ) -> None:
        v = s**2
        self.space, self.tangent, self.m0, self.s = space, tangent, m0, s
        self.wiener = wiener(s)
        self.ratio = lambda e: e / (e + v)
        self.gain = lambda e: m0(e) * e / (e + v)
        self.kernel = lambda e: e * v / (e + v) + m0(e) * (e / (e + v)) ** 2

    def apply(self, x: Tensor) -> Tensor:
        v = self._solve(self.space.forward(self.gain, x, self.tangent))

        return self.space.covariance.apply(self.m0, x) - self._correct(v)

    def draw(self, noise: Noise) -> Tensor:
        z = self.space.covariance.apply(
            lambda e: self.m0(e).sqrt(), noise(self.space.covariance.shape)
        )
        u = self.space.draw(self.wiener, self.tangent, ("innovation", self.s), noise)
        v = self._solve(self.space.forward(self.ratio, z, self.tangent) + u)

        return z - self._correct(v)

    def move(self, g: Tensor, noise: Noise) -> Move:
        space, tangent = self.space, self.tangent
        if not space.assembled(tangent):
            return super().move(g, noise)

        # All in the eigenbasis: two transforms, and one inverse of what is wanted in the end.
        covariance = space.covariance
        e = covariance.eigenvalues
        m0, ratio = self.m0(e), self.ratio(e)
        g, z = covariance.transform(torch.cat((g, noise(covariance.shape)))).chunk(2)
        drift, z = m0 * g, m0.sqrt() * z
        u = space.draw(self.wiener, tangent, ("innovation", self.s), noise)
        seen, drawn = space.project(torch.cat((drift, z)) * ratio, tangent).chunk(2)
        v, w = self._solve(torch.cat((seen, drawn + u))).chunk(2)

        def combine(a: Tensor, b: Tensor) -> Tensor:
            a, b = a[:, None], b[:, None]
            gain = space.lift(a * v + b * w, tangent) * (m0 * ratio)
            return covariance.inverse(a * drift + b * z - gain)

        return Move((g * drift).sum(1) - (seen * v).sum(1), combine)

    def _solve(self, e: Tensor) -> Tensor:
        return self.space.solve(self.kernel, e, self.tangent, (f"metric {self.m0.limit}", self.s))

    def _correct(self, v: Tensor) -> Tensor:
        return self.space.adjoint(self.gain, v, self.tangent)


def wiener(s: float) -> Callable[[Tensor], Tensor]:
    """The eigenvalues `λ s² / (λ + s²)` of `(Σ⁻¹ + I / s²)⁻¹`."""

    return lambda e: e * s**2 / (e + s**2)


@dataclass
class Analysis:
    """What one evaluation of a guidance knows.

    Attributes:
        mean: The guided mean, with shape `(member, *shape)`.
        background: The prior mean `D(x, s)`, with the same shape.
        innovation: `y − H D`, with shape `(member, m)`.
        s: The noise level.
        tangent: The observation operator, linearised at the background, where that was needed.
        chi2: `eᵀ (H C Hᵀ + R)⁻¹ e`, with shape `(member)`, where the guidance has it.
        gain: The systems that the gain comes from, where they are not those of the climatology.
        point: Where the operator was linearised, if not at the background.
    """

    mean: Tensor
    background: Tensor
    innovation: Tensor
    s: float
    tangent: Tangent | None = None
    chi2: Tensor | None = None
    gain: Any = None
    point: Tensor | None = None

    def take(self, members: Tensor) -> "Analysis":
        """The analysis of some members; the operator is linearised again when it is needed."""

        return Analysis(
            self.mean[members],
            self.background[members],
            self.innovation[members],
            self.s,
            None if self.tangent is None else self.tangent.take(members),
            None if self.chi2 is None else self.chi2[members],
            self.gain,
            None if self.point is None else self.point[members],
        )


def analyse(denoiser: Denoiser, x: Tensor, s: float) -> Analysis:
    """The analysis of any denoiser; one without guidance has no innovation.

    Arguments:
        denoiser: The denoiser.
        x: Noisy trajectories, with shape `(member, time, channel, *space)`.
        s: The noise level.
    """

    if isinstance(denoiser, PosteriorDenoiser):
        return denoiser.analyse(x, s)
    mean = denoiser.denoise(x, s)

    return Analysis(mean, mean, x.new_empty(len(x), 0), s)


class PosteriorDenoiser(Denoiser, abc.ABC):
    """A denoiser of the posterior `p(x | y)`, a guided denoiser of the prior.

    Arguments:
        denoiser: The denoiser of the prior.
        likelihood: The likelihood of the observations, over normalised anomalies.
        covariance: The climatological covariance of the trajectory.
        limit: The size up to which systems in observation space are solved directly, see
            `ObservationSpace`.
        tolerance: The relative residual of conjugate gradients, beyond that size.
        iterations: The largest number of conjugate gradient iterations.

    Attributes:
        evaluations: How often the prior's denoiser was evaluated, summed over members.
        vjps: How often its adjoint was, summed over members.
        twisted: Whether an analysis has `chi2` with the covariance that its gain is made of, as
            particle steps need it.
        takes_robust: Whether errors may be other than Gaussian.

    Raises:
        ValueError: If the shapes of the likelihood and the covariance differ.
    """

    twisted = False
    takes_robust = False

    def __init__(
        self,
        denoiser: Denoiser,
        likelihood: Any,
        covariance: Covariance,
        limit: float = 1e8,
        tolerance: float = 1e-3,
        iterations: int = 200,
    ) -> None:
        super().__init__()
        if tuple(likelihood.shape) != tuple(covariance.shape):
            raise ValueError(
                f"the observations are of trajectories {tuple(likelihood.shape)}, but the "
                f"covariance is of {tuple(covariance.shape)} (time, channel, *space)"
            )
        if getattr(likelihood, "robust", None) is not None and not self.takes_robust:
            raise ValueError(
                "this guidance takes Gaussian errors only, but some observations have others: use "
                "guidance 'static', or 'flow_dependent' for systems without space"
            )
        self.denoiser = denoiser
        self.likelihood = likelihood
        self.covariance = covariance
        self.shape = tuple(covariance.shape)
        self.space = ObservationSpace(covariance, likelihood, limit, tolerance, iterations)
        self.evaluations = 0
        self.vjps = 0

    @abc.abstractmethod
    def analyse(self, x: Tensor, s: float) -> Analysis:
        """Evaluates the guidance.

        Arguments:
            x: Noisy trajectories `X + s ε`, with shape `(member, time, channel, *space)`.
            s: The noise level.
        """

    def denoise(self, x: Tensor, s: Tensor | float) -> Tensor:
        """The guided mean `E[X | X + s ε = x, y]`, with the shape of `x`.

        Arguments:
            x: Noisy trajectories, with shape `(member, time, channel, *space)`.
            s: The noise level, with shape `()` or `(member)`.
        """

        s = torch.as_tensor(s, dtype=torch.float64)
        if s.ndim == 0:
            return self.analyse(x, s.item()).mean
        mean = torch.empty_like(x)
        for value in s.unique():
            mean[s == value] = self.analyse(x[s == value], value.item()).mean

        return mean

    def metric(self, analysis: Analysis, kappa: float = math.inf, cap: float = math.inf) -> Metric:
        """The metric for Langevin steps after an analysis, see `PosteriorMetric`.

        Arguments:
            analysis: What `analyse` returned.
            kappa: The eigenvalues of the prior's part are at most `kappa s²`.
            cap: They are also at most `s² + cap`.
        """

        space = analysis.gain or self.space
        m0 = CappedPrior(analysis.s, kappa, cap)

        return PosteriorMetric(space, self._tangent(analysis), analysis.s, m0)

    def start(self, s: float, members: int, noise: Noise) -> Tensor:
        """Draws noisy trajectories at a large `s` from the posterior of the Gaussian prior.

        Exact for a Gaussian prior and linear `H` at any `s`. For others the error is that of the
        first two moments, over `s`: much less than that of `s ε`, which leaves the mean out. The
        mean of the prior is zero, or the attribute `mean` of its denoiser.

        Returns:
            `N(E[X | y], Cov[X | y] + s² I)`, with shape `(member, *shape)`.
        """

        prior = getattr(self.denoiser, "mean", None)
        if prior is None:
            prior = torch.zeros(members, *self.shape).to(self.likelihood.y)
        if self.space.robust is not None:
            start = self.space.affine(prior) if self.space.elementwise else prior
            tangent, _, v = self.space.reweighted(
                start, start, lambda e: e, ("start", 0.0), STARTED
            )
        else:
            tangent = self.space.linearise(prior)
            e = self.likelihood.y - tangent.value
            v = self.space.solve(lambda e: e, e, tangent, ("start", 0.0))
        mean = prior + self.space.adjoint(lambda e: e, v, tangent)

        return mean + PosteriorMetric(self.space, tangent, s, CappedPrior(s)).draw(noise)

    @torch.no_grad()
    def background(self, x: Tensor, s: float) -> Tensor:
        """The prior mean `D(x, s)`, counted."""

        self.evaluations += len(x)

        return self.denoiser.denoise(x, s)

    def recorded(self, x: Tensor, s: float) -> tuple[Tensor, Callable[[Tensor], Tensor]]:
        """The prior mean with its adjoint.

        Returns:
            The detached prior mean, and the map `v -> (∂D/∂x)ᵀ v`, counted.
        """

        with torch.enable_grad():
            x = x.detach().requires_grad_()
            mean = self.denoiser.denoise(x, s)
        self.evaluations += len(x)

        def vjp(v: Tensor) -> Tensor:
            self.vjps += len(v)
            return torch.autograd.grad(mean, x, v, retain_graph=True)[0]

        return mean.detach(), vjp

    @property
    def observed_variance(self) -> Tensor:
        """The climatological variance of what is observed, diag(H Σ Hᵀ), with shape `(m)`.

        Estimated from 256 fixed draws of the Gaussian prior, for any `H`.
        """

        if not hasattr(self, "_observed_variance"):
            noise = torch.randn((256, *self.shape), generator=torch.Generator().manual_seed(0)).to(
                self.covariance.eigenvalues
            )
            values = torch.cat(
                [self.likelihood.H(self.covariance.sample(part)) for part in noise.split(32)]
            )
            self._observed_variance = values.var(0)

        return self._observed_variance

    def _tangent(self, analysis: Analysis) -> Tangent | None:
        if analysis.tangent is None and not self.space.direct:
            point = analysis.background if analysis.point is None else analysis.point
            analysis.tangent = self.space.linearise(point)

        return analysis.tangent
