r"""Sampling what follows known states.

Given the *tail* $t$ of a trajectory, its last $T$ states, without noise and each member's own,
sample the next $F$ states $x_f$. The prior's denoiser of all $T + F$ states is all that is needed.
Beside the noisy future $z_f = x_f + s \varepsilon_f$ it sees the tail with as much noise,
$t + s \varepsilon_t$, and estimates both, $D_t$ and $D_f$. But the tail is known: as with any
observation, the error of its estimate corrects that of the future,

$$ D(z_f, s \mid t) = D_f + C_{ft} C_{tt}^{-1} (t - D_t), \qquad
   C(s) = (\Sigma^{-1} + I / s^2)^{-1}, $$

with the climatological covariance $C$ of what is left to know at the level, see `sda.schur`. The
tail is eliminated: the result is a denoiser of $F$ states, whose climatology is the Gaussian
$N(A t, \Sigma_{f|t})$, and it goes into any sampler, guidance and Langevin step. It is exact for a
Gaussian prior, whatever $\varepsilon_t$. For a network, $\varepsilon_t$ is drawn afresh at each
evaluation: noisy tails are independent of the noisy future given $t$, so that none is better than
another, and averaging over levels is better than each.

What decides the quality is the share of known states. A short future after a long tail is one
sharp mode, which the linear correction and Langevin steps down to small noise levels find; a long
future after a short tail is not. Hence the short blocks of `sda.forecast`.

References:
    | Rozet & Louppe (2023), Score-based Data Assimilation, arXiv 2306.10574.
    | Song et al. (2021), Score-based generative modeling through stochastic differential
      equations, arXiv 2011.13456 (imputation).
"""

import copy
import math
from collections.abc import Callable, Mapping, Sequence
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor

from .covariance import Covariance, SpectralCovariance
from .denoiser import Denoiser, GaussianDenoiser
from .guidance import METHODS, guide
from .guidance.solver import Noise
from .langevin import Langevin
from .sampling import MemberNoise, log_levels, sample
from .schur import Complement, condition

if TYPE_CHECKING:
    from .observation.likelihood import Likelihood
    from .prior import Prior

# Streams of noise: of the future, and of the noise on the tail.
FUTURE, TAIL = 20, 21
# The smallest noise level of a forecast: that of one which the tail decides has none of its own.
LEAST = 1e-6


class ConditionalDenoiser(Denoiser):
    """A denoiser of future states, given the states before them.

    Arguments:
        denoiser: The denoiser of all states, `(member, T + F, channel, *space)`.
        complement: The Gaussian distribution of the future given a tail.
        tail: The tail of each member, with shape `(member, T, channel, *space)`.
        noise: The source of noise on the tail, for the same members.

    Attributes:
        covariance: The climatological covariance of the future given the tail.
        mean: Its climatological mean, with shape `(member, F, channel, *space)`.

    Raises:
        ValueError: If the tail has another number of states than the complement knows.
    """

    def __init__(
        self, denoiser: Denoiser, complement: Complement, tail: Tensor, noise: Noise
    ) -> None:
        super().__init__(denoiser.schedule)
        if tail.shape[1] != complement.known:
            raise ValueError(f"expected a tail of {complement.known} states, got {tail.shape[1]}")
        self.denoiser, self.complement = denoiser, complement
        self.tail, self.noise = tail, noise
        self.covariance = complement.covariance
        self.mean = complement.regress(tail)
        # The Gaussian prior's estimate does not depend on the noise: none needs to be drawn.
        self.linear = isinstance(denoiser, GaussianDenoiser)

    def denoise(self, x: Tensor, s: Tensor | float) -> Tensor:
        """The mean of the future given its noisy states and the tail.

        Arguments:
            x: Noisy future states of all the members of the tail, with shape
                `(member, F, channel, *space)`.
            s: The noise level, with shape `()`.

        Raises:
            ValueError: If the members are not those of the tail.
        """

        if len(x) != len(self.tail):
            raise ValueError(f"the tail is of {len(self.tail)} members, got {len(x)}")
        known = self.complement.known
        level = float(s)
        tail = self.tail
        if not self.linear:
            tail = tail + level * self.noise(tuple(tail.shape[1:]))
        estimate = self.denoiser.denoise(torch.cat((tail, x), dim=1), s)
        before, after = estimate[:, :known], estimate[:, known:]

        return after + self.complement.gain(self.tail - before, level)


class Continuation:
    """Samples the next states of trajectories, any number of times.

    Arguments:
        prior: The prior.
        known: The number T of states of a tail.
        frames: The number F of states that follow. T + F must be at least the prior's window, and
            is best equal to it.
        denoiser: The denoiser of T + F states (default: the prior's).
        memory, precision: See `sda.assimilate`.
        sampler, s_max, langevin, device, dtype: See `sda.sampling.sample`. The tail leaves little
            to be decided at large noise levels: they start at 10. By default there are Langevin
            steps where the prior is a network, see `forecast_langevin`.
        s_min: The smallest noise level (default: 0.005, or less if the climatology's spread of a
            variable, given the tail, is not well above).
        steps: The number of noise levels (default: as many as make 12 from 10 to 0.005, or 24 for
            a Gaussian prior, whose evaluations cost little and which no Langevin steps correct).

    Raises:
        ValueError: If the numbers of states are not positive, or less than a window together.
    """

    def __init__(
        self,
        prior: "Prior",
        known: int,
        frames: int,
        *,
        denoiser: Denoiser | None = None,
        memory: int | str = "2GiB",
        precision: str = "float32",
        langevin: "Langevin | str | None" = "default",
        sampler: str = "xeab",
        steps: int | None = None,
        s_max: float = 10.0,
        s_min: float | None = None,
        device: torch.device | str = "cpu",
        dtype: torch.dtype = torch.float32,
    ) -> None:
        from .assimilation import trajectory_denoiser

        if known < 1 or frames < 1:
            raise ValueError(
                f"tail and block must have at least one state, got {known} and {frames}"
            )
        if known + frames < prior.window:
            raise ValueError(
                f"tail and block together must have at least the {prior.window} states of the "
                f"prior's window, got {known} + {frames}"
            )
        self.known, self.frames = known, frames
        self.shape = (frames, *prior.layout.shape)
        if denoiser is None:
            # Langevin steps restore what a sampler's states lack, and the tail has all of it.
            exact = copy.copy(prior)
            exact.exposure = 0.0
            denoiser = trajectory_denoiser(exact, known + frames, dtype, memory, precision)
        self.denoiser = denoiser
        covariance = prior.climatology.covariance(known + frames, torch.float64)
        self.complement = condition(covariance, known, dtype).to(device)
        if s_min is None:
            s_min = finest(self.complement.covariance)
        if steps is None:
            levels = 24 if prior.gaussian else 12
            steps = max(1, round(levels * math.log(max(s_max / s_min, 1)) / math.log(2000)))
        log_levels(steps, s_max, s_min)
        self.options: dict[str, Any] = {
            "sampler": sampler, "steps": steps, "s_max": s_max, "s_min": s_min,
            "langevin": forecast_langevin(langevin, prior), "device": device, "dtype": dtype,
        }  # fmt: skip

    def sample(
        self,
        tail: Tensor,
        seed: int,
        members: Sequence[int],
        part: int = 0,
        *,
        likelihood: "Likelihood | None" = None,
        guidance: str | Mapping[str, Any] = "static",
        progress: Callable[[int, int], None] | None = None,
    ) -> Tensor:
        """Draws the states that follow each member's tail, given observations of them or not.

        Arguments:
            tail: Normalised anomalies, with shape `(member, T, channel, *space)`.
            seed: The seed of the run.
            members: The indices of the members, which name their noise.
            part: The number of the block of a longer forecast, which names its noise.
            likelihood: The likelihood of observations of the F states, of normalised anomalies.
            guidance: The guidance by the observations, one without pilots: a name of
                `sda.guidance.METHODS` or a mapping with its `name` and options.
            progress: See `sda.sampling.sample`.

        Returns:
            The states, with shape `(member, F, channel, *space)`.

        Raises:
            ValueError: If an argument does not fit, or the guidance needs pilots, which have no
                tail.
            Diverged: If members diverge, see `sda.sampling.sample`.
        """

        if len(tail) != len(members):
            raise ValueError(f"got {len(tail)} tails for {len(members)} members")
        dtype, device = self.options["dtype"], self.options["device"]
        # A Gaussian prior's estimate does not depend on the noise: no generators are made.
        own = [] if isinstance(self.denoiser, GaussianDenoiser) else members
        noise = MemberNoise(seed, own, TAIL, part, dtype=dtype, device=device)
        denoiser: Denoiser = ConditionalDenoiser(
            self.denoiser, self.complement, tail.to(dtype=dtype, device=device), noise
        )
        if likelihood is not None:
            options = {"name": guidance} if isinstance(guidance, str) else dict(guidance)
            name = str(options.pop("name", "static"))
            denoiser = guide(name, denoiser, likelihood, self.complement.covariance, **options)
            if not getattr(denoiser, "prepared", True):
                without = [n for n, m in METHODS.items() if not hasattr(m, "recording")]
                raise ValueError(
                    f"guidance {name!r} needs pilots, which have no states before them: use one of "
                    f"{', '.join(without)}"
                )

        return sample(
            denoiser, self.shape, seed, members, stream=(FUTURE, part), progress=progress,
            **self.options,
        )  # fmt: skip


def finest(covariance: Covariance) -> float:
    """A noise level that is well under the spread of every variable, at most 0.005."""
    return max(min(5e-3, float(spread(covariance).min()) / 20), LEAST)


def spread(covariance: Covariance, draws: int = 64) -> Tensor:
    """The standard deviation of each state's variables, with shape `(time, channel)`.

    In homogeneous fields it is that of the first cell, as everywhere. In others it is the root mean
    square over the cells that vary at all, estimated from so many draws: on land nothing does.
    """

    time, channel, *space = covariance.shape
    if space and not isinstance(covariance, SpectralCovariance):
        shape = (draws, *covariance.shape)
        noise = torch.randn(shape, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
        square = covariance.sample(noise.to(covariance.eigenvalues)).square().mean(0).flatten(2)
        varies = (square > 0).sum(2).clamp(min=1)
        return (square.sum(2) / varies).sqrt()
    size = time * channel
    probe = torch.zeros(size, size, math.prod(space)).to(covariance.eigenvalues)
    probe[torch.arange(size), torch.arange(size), 0] = 1
    columns = covariance.apply(lambda e: e, probe.reshape(size, *covariance.shape))
    variance = (columns.flatten(1) * probe.flatten(1)).sum(1)

    return variance.clamp(min=0).sqrt().unflatten(0, (time, channel))


def forecast_langevin(langevin: "Langevin | str | None", prior: "Prior") -> Langevin | None:
    """The Langevin steps of a forecast, by default those that suit the prior.

    A forecast is sharp: it is decided at noise levels of the size of its spread, which is much less
    than that of an analysis. A Gaussian prior needs no steps.

    Raises:
        ValueError: If the name is unknown.
    """

    from .assimilation import langevin_steps

    if langevin == "default":
        if prior.gaussian:
            return None
        steps = 2 if prior.layout.dims else 4
        return Langevin(steps=steps, delta=0.5, s_min=0.02, s_max=2.0, kappa=4.0)

    return langevin_steps(langevin, fields=bool(prior.layout.dims))
