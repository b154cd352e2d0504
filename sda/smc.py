"""Sequential Monte Carlo on top of guided sampling.

An approximate guidance moves members with the guided flow `v = x − m`, where `m = D + δ` and
`δ = C Hᵀ S⁻¹ (y − H D)`, `S = H C Hᵀ + R`. Weights make up for the approximation: the target at a
noise level is `p_s(x) ψ_s(x)` with the twist `ψ_s(x) = N(y; H D(x, s), S)`, which ends at the exact
posterior `p(x) p(y | x)` as `s → 0`. Since the unguided flow carries `p_s` along, the weights obey,
in `u = log s`,

    d log w / du = d log ψ_s(x) / du − δ · ∇ log p_s(x) − ∇ · δ,

with the total derivative of `log ψ` along a member's path, `∇ log p_s = (D − x) / s²` and
`∇ · δ = − tr(S⁻¹ H ∂D/∂x C Hᵀ)`. For Gaussian priors and linear `H` the weights stay constant.
For other `H`, linearised at each member, the determinant of `S` would be a member's own; it is left
out, and the weights are approximate.
Where the effective sample size of a group of members falls, the group is resampled. Groups are
fixed by the members' indices, so that the result does not depend on how an ensemble is split.

Resampling replaces members by copies of others, which only Langevin steps make distinct again, and
with few members it can lose a mode: it is off by default.

References:
    Twisted diffusion sampler: Wu et al. (2023), arXiv 2306.17775
    Weights along a flow: Skreta et al. (2025), Feynman–Kac correctors, arXiv 2503.02819
    Systematic resampling: Kitagawa (1996)
"""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

from dynamics.random import member_generator

from .guidance.base import Analysis, PosteriorDenoiser

RESAMPLING, PROBES = 2, 3
DIVERGENCES = ("shared", "probe")


@dataclass(frozen=True)
class ParticleStep:
    """Weights and resampling at each noise level.

    Arguments:
        group: The number of members of a group. Member `m` is in group `m // group`.
        threshold: A group is resampled if its effective sample size is below this fraction.
        divergence: How `∇ · δ` is found: `shared` takes it to be equal for all members, so that it
            drops out; `probe` estimates it with a random probe, one vector–Jacobian product for
            each member and level, without which the weights are not exact for priors that are not
            Gaussian.

    Raises:
        ValueError: If an option is unknown or out of range.
    """

    group: int = 64
    threshold: float = 0.5
    divergence: str = "shared"

    def __post_init__(self) -> None:
        if self.group < 2:
            raise ValueError(f"a group needs at least 2 members, got {self.group}")
        if not 0 <= self.threshold <= 1:
            raise ValueError(f"threshold must be in [0, 1], got {self.threshold}")
        if self.divergence not in DIVERGENCES:
            raise ValueError(
                f"unknown divergence {self.divergence!r}: choose one of {', '.join(DIVERGENCES)}"
            )

    def begin(self, denoiser: PosteriorDenoiser, seed: int, members: Sequence[int]) -> "Particles":
        """Begins a run, see `Particles`."""
        return Particles(self, denoiser, seed, members)


class Particles:
    """The weights of one block of members while it is sampled.

    Arguments:
        options: The options.
        denoiser: The guided denoiser.
        seed: The seed of the run.
        members: The indices of the members; whole groups.

    Attributes:
        log_weights: The logarithms of the weights, with shape `(member)`.
        sizes: The smallest effective sample size of a group, over its size, for each level.
        resampled: How often a group was resampled.

    Raises:
        ValueError: If the denoiser has no twist, or a group is not whole.
    """

    def __init__(
        self,
        options: ParticleStep,
        denoiser: PosteriorDenoiser,
        seed: int,
        members: Sequence[int],
    ) -> None:
        if not getattr(denoiser, "twisted", False):
            raise ValueError(
                f"a particle step needs guidance 'static' or 'flow_dependent', got "
                f"{type(denoiser).__name__}"
            )
        index = np.asarray(members) // options.group
        self.groups = {int(g): np.flatnonzero(index == g) for g in np.unique(index)}
        for g, places in self.groups.items():
            first = g * options.group
            if len(places) < options.group:
                raise ValueError(
                    f"a particle step needs whole groups of {options.group} members, but only "
                    f"{len(places)} of {first} … {first + options.group - 1} are in this block: "
                    f"make the number of members and the block size multiples of {options.group}"
                )
        self.options, self.denoiser, self.seed = options, denoiser, seed
        self.members = list(members)
        self.log_weights = torch.zeros(len(self.members), dtype=torch.float64)
        self.sizes: list[float] = []
        self.resampled = 0
        self._last: tuple[float, Tensor, Tensor] | None = None

    def leave(self, analysis: Analysis, x: Tensor, level: int) -> None:
        """Notes where the members leave a level."""
        self._last = (np.log(analysis.s), *self._terms(analysis, x, level))

    def arrive(self, analysis: Analysis, x: Tensor, level: int, last: bool) -> Tensor | None:
        """Weighs the members as they arrive at a level, and resamples groups that need it.

        Arguments:
            analysis: The analysis of the members.
            x: The noisy trajectories, with shape `(member, *shape)`.
            level: The index of the level.
            last: Whether it is the last, at which every group is resampled unless all its weights
                are equal: the result has no weights.

        Returns:
            The index of each member's ancestor, or None.
        """

        if self._last is None:
            return None
        u, twist, rate = self._last
        new_twist, new_rate = self._terms(analysis, x, level)
        step = float(np.log(analysis.s) - u)
        self.log_weights += new_twist - twist + step * (rate + new_rate) / 2

        ancestors, smallest = torch.arange(len(self.members)), 1.0
        for g, places in self.groups.items():
            weights = torch.softmax(self.log_weights[places], 0).numpy()
            if not np.isfinite(weights).all():
                continue  # a member diverges, which is found at the end of the level
            size = 1 / np.square(weights).sum() / len(places)
            smallest = min(smallest, size)
            if size >= (1 - 1e-6 if last else self.options.threshold):
                continue
            uniform = member_generator(self.seed, g, RESAMPLING, level).uniform()
            ancestors[places] = torch.from_numpy(places[systematic(weights, uniform)])
            self.log_weights[places] = 0
            self.resampled += 1
        self.sizes.append(float(smallest))

        return None if (ancestors == torch.arange(len(ancestors))).all() else ancestors

    def drop(self, members: Tensor) -> Tensor:
        """Gives up the groups of members that diverged, whose weights mean nothing without them.

        Arguments:
            members: The places of the members that diverged, a mask with shape `(member)`.

        Returns:
            The places of all members of their groups, with the same shape.
        """

        coupled = members.clone()
        for g, places in list(self.groups.items()):
            if members[places].any():
                coupled[places] = True
                del self.groups[g]

        return coupled

    def _terms(self, analysis: Analysis, x: Tensor, level: int) -> tuple[Tensor, Tensor]:
        """The logarithm of the twist, and the rate of the rest of the weight."""

        delta = (analysis.mean - analysis.background).flatten(1).double()
        score = (analysis.background - x).flatten(1).double() / analysis.s**2
        rate = -(delta * score).sum(1)
        if self.options.divergence == "probe":
            rate = rate + self._trace(analysis, x, level)

        assert analysis.chi2 is not None  # a twisted guidance has it

        return -analysis.chi2.double().cpu() / 2, rate.cpu()

    def _trace(self, analysis: Analysis, x: Tensor, level: int) -> Tensor:
        """An estimate of `tr(S⁻¹ H ∂D/∂x C Hᵀ)`, with the probe `v = L⁻ᵀ η`, `S = L Lᵀ`."""

        draw = [
            member_generator(self.seed, m, PROBES, level).standard_normal(
                len(analysis.innovation[0])
            )
            for m in self.members
        ]
        eta = torch.from_numpy(np.stack(draw)).to(x)
        _, vjp = self.denoiser.recorded(x, analysis.s)
        adjoint, spread = self.denoiser.probe(analysis, eta)

        return (vjp(adjoint) * spread).flatten(1).double().sum(1)


def systematic(weights: np.ndarray, uniform: float) -> np.ndarray:
    """Systematic resampling: the ancestors of each of as many members as there are weights.

    A member with weight `w` of `n` has `⌊n w⌋` or `⌈n w⌉` descendants, `n w` in the mean; a member
    that has any keeps its own place.

    Arguments:
        weights: The normalised weights, with shape `(n)`.
        uniform: A uniform random number in [0, 1).
    """

    n = len(weights)
    edges = np.cumsum(weights) * n
    counts = np.diff(np.ceil(np.append(0.0, edges) - uniform).clip(0, n).astype(int))
    counts[-1] += n - counts.sum()
    ancestors = np.where(counts > 0, np.arange(n), -1)
    ancestors[ancestors < 0] = np.repeat(np.arange(n), np.maximum(counts - 1, 0))

    return ancestors
