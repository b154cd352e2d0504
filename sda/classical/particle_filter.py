r"""Particle filters: bootstrap, regularised and guided.

Particles are moved and weighted; the sums of the weights estimate the evidence `p(y_{1:i})`,

    x_i ~ q(x_i | x_{i-1}, y_i),
    w_i ∝ w_{i-1} p(y_i | x_i) p(x_i | x_{i-1}) / q(x_i | x_{i-1}, y_i).

Where their effective number falls below a part of them they are resampled. The *bootstrap* filter
moves them by the model alone, `q = p(x_i | x_{i-1})`. After resampling, the *regularised* filter
moves copies apart by a kernel, without which the particles of a deterministic system are but one
after a few cycles. The *guided* filter knows the observations when it takes the last step before
them: with additive noise, `x = f(x_{i-1}) + G ξ`,

    q(ξ) = N(K (y - H(f)), (I + Bᵀ R⁻¹ B)⁻¹),    B = H' G,    K = (I + Bᵀ R⁻¹ B)⁻¹ Bᵀ R⁻¹,

which is the optimal proposal `p(x_i | x_{i-1}, y_i)` where `H` is linear. Otherwise `H` is
linearised at each particle's `f(x_{i-1})`, and the weights make up for it.

References:
    Gordon, Salmond and Smith (1993), Novel approach to nonlinear/non-Gaussian Bayesian state
    estimation, IEE Proc. F 140. Musso, Oudjane and Le Gland (2001), Improving regularised particle
    filters, in: Sequential Monte Carlo Methods in Practice. Doucet, Godsill and Andrieu (2000), On
    sequential Monte Carlo sampling methods for Bayesian filtering, Stat. Comput. 10.
"""

import math
from typing import Any

import torch
import xarray as xr
from torch import Tensor

from dynamics.system import System

from ..observation.sequence import ObservedTime
from .base import Filter, Run, Solution
from .particle_weights import (
    copies,
    effective_number,
    kernel,
    kernel_size,
    log_likelihood,
    normalise,
    scott,
    systematic_indices,
    take,
)

PROPOSALS = ("bootstrap", "guided")
JITTERS = ("copies", "all")


class ParticleFilter(Filter):
    r"""A particle filter with systematic resampling.

    The members of the result are equally weighted: they are drawn from the weighted particles by
    systematic resampling, for the result alone. The particles' own mean, effective number and
    estimate of `log p(y_{1:i})` are the coordinates `<variable>_mean`, `effective_number` and
    `log_evidence` of the result.

    Arguments:
        system: The system.
        members: The number of particles, at least 2.
        threshold: Resample where the effective number is below this part of the particles.
        regularisation: The factor of Scott's bandwidth `N^{-1/(n+4)}`, by which resampled particles
            are moved apart, in units of their weighted covariance; 0 for none (default: 1 for a
            deterministic system, 0 for a stochastic one).
        jitter: Which particles are moved apart: "copies" of another, or "all".
        proposal: "bootstrap" or "guided". The guided proposal needs additive noise, and acts at
            observations of single states.

    Raises:
        ValueError: If an argument is out of range, or the guided proposal does not fit the system.
    """

    def __init__(
        self,
        system: System,
        members: int,
        threshold: float = 0.5,
        regularisation: float | None = None,
        jitter: str = "copies",
        proposal: str = "bootstrap",
    ) -> None:
        super().__init__(system, members)
        if not 0 < threshold <= 1:
            raise ValueError(f"threshold must be in (0, 1], got {threshold}")
        if regularisation is None:
            regularisation = 0.0 if system.stochastic else 1.0
        if not 0 <= regularisation < math.inf:
            raise ValueError(f"regularisation must not be negative, got {regularisation}")
        if jitter not in JITTERS:
            raise ValueError(f"unknown jitter {jitter!r}: choose one of {', '.join(JITTERS)}")
        if proposal not in PROPOSALS:
            raise ValueError(f"unknown proposal {proposal!r}: choose one of {', '.join(PROPOSALS)}")
        if proposal == "guided" and not system.stochastic:
            raise ValueError(
                f"the guided proposal needs a stochastic system, but {type(system).__name__} is "
                f"deterministic: use proposal='bootstrap' with a regularisation"
            )
        self.threshold, self.regularisation = threshold, float(regularisation)
        self.jitter, self.proposal = jitter, proposal

    def forecast(self, z: Tensor, steps: int, observed: ObservedTime, run: Run) -> Tensor:
        """Advances the particles; the last step of the guided filter knows the observations."""

        guided = self.proposal == "guided" and steps > 0 and observed.frames == 1
        z = super().forecast(z, steps - 1 if guided else steps, observed, run)

        return self.mend(self.propose(z, observed, run) if guided else z, run)

    def mend(self, z: Tensor, run: Run) -> Tensor:
        """Particles that are not finite lose their weight, and stand at the mean of the others.

        Without any that is finite all stand at zero, and the analysis finds no weight.
        """

        finite = torch.isfinite(z).flatten(2).all(2)
        if bool(finite.all()):
            return z
        run.memory["log_w"] = torch.where(finite, self._weights(run), -math.inf)
        finite = finite.reshape(*finite.shape, *[1] * (z.ndim - 2))
        known = torch.where(finite, z, 0.0)
        mean = known.sum(1, keepdim=True) / finite.sum(1, keepdim=True).clamp(min=1)

        return torch.where(finite, z, mean)

    def propose(self, z: Tensor, observed: ObservedTime, run: Run) -> Tensor:
        """One step of the guided proposal, and the weights `p(ξ) / q(ξ)` that it costs."""

        repetitions, members, shape = *z.shape[:2], z.shape[2:]
        flat = z.flatten(0, 1)
        mean = self.system.advance(flat, None).unflatten(0, z.shape[:2])
        run.model_steps += members
        if "root" not in run.memory:
            run.memory["root"] = noise_root(self.system, flat)
        root = run.memory["root"]  # (state, noise)

        predicted = observed.H(mean.flatten(0, 1)[:, None]).unflatten(0, z.shape[:2]).double()
        innovation = observed.y.double()[:, None] - predicted
        white = run.noise.normal("proposal", (members, *shape)).flatten(2).double()
        if not observed.linear:
            # One matrix for each particle, otherwise one for all.
            innovation, white = innovation.flatten(0, 1)[:, None], white.flatten(0, 1)[:, None]
        tangent = tangents(mean, observed) @ root  # (1 or particle, value, noise)
        scaled = tangent / observed.std.double()[:, None] ** 2
        eye = torch.eye(root.shape[1], dtype=torch.float64, device=z.device)
        factor = torch.linalg.cholesky(eye + tangent.mT @ scaled)
        factor = factor.expand(len(innovation), -1, -1)
        centre = torch.cholesky_solve((innovation @ scaled).mT, factor)
        xi = (centre + torch.linalg.solve_triangular(factor.mT, white.mT, upper=True)).mT

        log_ratio = (white.square().sum(2) - xi.square().sum(2)) / 2
        log_ratio = log_ratio - factor.diagonal(dim1=1, dim2=2).log().sum(1)[:, None]
        run.memory["log_w"] = self._weights(run) + log_ratio.reshape(repetitions, members)

        return mean + (xi @ root.mT).to(z).reshape(z.shape)

    def analyse(
        self, ensemble: Tensor, predicted: Tensor, observed: ObservedTime, run: Run
    ) -> Tensor:
        """The particles, resampled where they need it, with the shape of the background."""

        log_w, total = normalise(self._weights(run) + log_likelihood(predicted, observed))
        lost = ~torch.isfinite(total)
        for repetition in lost.nonzero().flatten().tolist():
            # Not one particle can explain what was seen.
            run.monitor.mark(repetition, observed, True)
        log_w = torch.where(lost[:, None], -math.log(self.members), log_w)
        w = log_w.exp()
        run.memory["total"] = run.memory.get("total", 0) + total
        run.memory["now"] = (
            torch.einsum("rn,rn...->r...", w, ensemble.double()).to(ensemble),
            effective_number(w),
            run.memory["total"],
        )

        # Drawn whether or not they are needed: a repetition must not depend on its neighbours.
        uniform = run.noise.uniform("resampling", ())
        size = kernel_size(self.members, ensemble[0, 0].numel())
        noise = run.noise.normal("jitter", (self.members, size)) if self.regularisation else None
        poor = effective_number(w) < self.threshold * self.members
        if not bool(poor.any()):
            run.memory["log_w"] = log_w
            return ensemble
        stay = torch.arange(self.members, device=w.device)
        indices = torch.where(poor[:, None], systematic_indices(w, self.members, uniform), stay)
        x = take(ensemble, indices)
        if noise is not None:
            moved = copies(indices) if self.jitter == "copies" else poor[:, None].expand_as(w)
            h = self.regularisation * scott(self.members, ensemble[0, 0].numel())
            move = (h * kernel(ensemble, w, noise)).flatten(2)
            x = x + torch.where(moved[:, :, None], move, 0.0).reshape(x.shape)
        run.memory["log_w"] = torch.where(poor[:, None], -math.log(self.members), log_w)

        return x

    def report(self, ensemble: Tensor, run: Run) -> Tensor:
        """Equally weighted particles, drawn for the result alone."""

        uniform = run.noise.uniform("output", ())
        x = take(ensemble, systematic_indices(self._weights(run).exp(), self.members, uniform))
        unknown = torch.full((len(x),), math.nan, dtype=torch.float64, device=x.device)
        mean, size, evidence = run.memory.pop("now", (x[:, 0], unknown, unknown))
        broken = torch.tensor(run.monitor.broken, device=x.device)
        x = x.masked_fill(broken.reshape(-1, *[1] * (x.ndim - 1)), math.nan)
        mean = mean.masked_fill(broken.reshape(-1, *[1] * (mean.ndim - 1)), math.nan)
        run.memory.setdefault("history", []).append((mean, size, evidence))

        return x

    def solve(self, z: Tensor, run: Run) -> Solution:
        solution = super().solve(z, run)
        mean, size, evidence = (
            torch.stack(each, 1) for each in zip(*run.memory["history"], strict=True)
        )
        solution.extra |= {
            "mean": mean, "effective_number": size, "log_evidence": evidence.double()
        }  # fmt: skip

        return solution

    def _dataset(
        self,
        found: list[tuple[Tensor, list[int], dict[str, Tensor], Run, int]],
        repetition: int,
        **options: Any,
    ) -> xr.Dataset:
        # A coordinate of the base runs along time alone; the mean is a state.
        mean = found[repetition][2].pop("mean", None)
        dataset = super()._dataset(found, repetition, **options)
        if mean is None:
            return dataset
        layout = self.system.layout
        return dataset.assign_coords(
            {
                f"{name}_mean": (("time", *layout.dims), mean[:, i].cpu().numpy())
                for i, name in enumerate(layout.variables)
            }
        )

    def _weights(self, run: Run) -> Tensor:
        """The logarithms of the particles' weights, with shape `(repetition, member)`."""

        if "log_w" not in run.memory:
            run.memory["log_w"] = torch.full(
                (run.repetitions, self.members), -math.log(self.members), dtype=torch.float64,
                device=run.noise.device,
            )  # fmt: skip
        return run.memory["log_w"]


def tangents(x: Tensor, observed: ObservedTime) -> Tensor:
    """`H'` as matrices, float64: one for all states of linear observations, else one for each.

    Arguments:
        x: The states, with shape `(repetition, member, channel, *space)`.
        observed: What is observed.

    Returns:
        The matrices, with shape `(1, value, state)` or `(repetition · member, value, state)`.
    """

    if observed.linear:
        return observed.matrix.double()[None]
    jacobian = torch.func.jacrev(lambda state: observed.H(state[None, None])[0])

    return torch.func.vmap(jacobian)(x.flatten(0, 1)).flatten(2).double()


def noise_root(system: System, z: Tensor) -> Tensor:
    """The matrix `G` of additive noise, `advance(z, ξ) = advance(z) + G ξ`, float64.

    Arguments:
        system: A stochastic system whose model's states are its states.
        z: Model states, with shape `(member, *state)`; the first and the last are looked at.

    Returns:
        The matrix, with shape `(state, noise)`.

    Raises:
        ValueError: If the noise is not additive, not the same at the two, or the model's states are
            not the states.
    """

    name, first = type(system).__name__, z[:1]
    if system.project(first) is not first:
        raise ValueError(
            f"the guided proposal needs a model whose states are the system's, but those of {name} "
            f"have shape {tuple(z.shape[1:])}: use proposal='bootstrap'"
        )
    size = z[0].numel()
    eye = torch.eye(size, dtype=z.dtype, device=z.device).reshape(size, *z.shape[1:])

    def response(state: Tensor, noise: Tensor) -> Tensor:
        state = state[None].expand_as(noise)
        return (system.advance(state, noise) - system.advance(state, None)).flatten(1).double()

    root = response(z[0], eye)
    for other in (response(z[-1], eye), response(z[0], 2 * eye) / 2):
        if not torch.allclose(other, root, rtol=1e-3, atol=1e-3 * float(root.abs().max())):
            raise ValueError(
                f"the guided proposal needs additive noise that is the same everywhere, but that "
                f"of {name} depends on the state: use proposal='bootstrap'"
            )

    return root.mT
