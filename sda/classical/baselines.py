r"""Baselines: climatology, optimal interpolation, 3D-Var. Their covariances do not change in time.

With the climatological mean `μ` and covariance `C`, estimated from a long run,

    climatology:             x_a = μ,                      P_a = C
    optimal interpolation:   x_a = μ + K (y - H(μ)),       B = C
    3D-Var:                  x_a = x_b + K (y - H(x_b)),   B = factor · C,    x_b = M(x_a before)
    both:                    K = B Hᵀ (H B Hᵀ + R)⁻¹,      P_a = (I - K H) B

Where H is not linear, the analysis is the minimum of the cost function of Lorenc (1986),

    J(x) = ½ |x - x_b|²_B⁻¹ + ½ |y - H(x)|²_R⁻¹.

Optimal interpolation forgets what was observed before. The members are draws around the analysis:
of background and observations that are perturbed with the errors that they are taken to have, which
for linear H has the covariance `P_a`. Their mean is the analysis itself. An observation between two
states is compared with the background between the two, and corrects both alike.

References:
    | Gandin (1963), Objective analysis of meteorological fields.
    | Lorenc (1986), Analysis methods for numerical weather prediction, Q. J. R. Meteorol. Soc. 112.
    | Raanes (2016), Improvements to ensemble methods for data assimilation in the geosciences: the
      baselines of DAPPER.
"""

import math
from functools import cached_property
from typing import Any

import numpy as np
import torch
from torch import Tensor

from dynamics.system import System

from ..climatology import Climatology
from ..observation.sequence import ObservedTime
from .background import (
    Background,
    check_factor,
    climatological,
    climatology,
    given_covariance,
)
from .base import Method, Run, Solution
from .initial import Gaussian, Initial
from .localisation import geometry
from .minimise import gauss_newton

MEMBERS = 40


class Climatological(Method):
    """The climatology: mean and spread of a long run, whatever is observed.

    The members at each time are states of the long run, shifted such that their mean is the
    climatological one.

    Arguments:
        system: The system.
        members: The number of members; with one, the climatological mean alone.
        climatology: A dataset of states (default: a long run of the system).
    """

    fewest = 1

    def __init__(self, system: System, members: int = MEMBERS, climatology: Any = None) -> None:
        super().__init__(system, members)
        self.climatology = climatology

    @property
    def draws(self) -> int:
        return 1

    def solve(self, z: Tensor, run: Run) -> Solution:
        climate, states = climatology(self.system, self.climatology)
        mean = climate.mean.to(run.noise.device, run.noise.dtype)
        index = [each.index for each in run.observed]
        found = mean.expand(run.repetitions, self.members, len(index), *mean.shape)
        if self.members > 1:
            if states is None:
                anomalies = climatological(climate, 1.0, mean).draw(
                    run.noise, self.members * len(index)
                )
            else:
                stock = torch.from_numpy(
                    np.concatenate(
                        [
                            self.system.layout.to_array(states.isel(member=[m]))[0]
                            for m in range(states.sizes["member"])
                        ]
                    )
                )
                chosen = run.noise.uniform("output", (self.members * len(index),)) * len(stock)
                anomalies = stock.to(mean)[chosen.long().clamp(max=len(stock) - 1)]
            anomalies = anomalies.unflatten(1, (self.members, len(index)))
            found = found + centred(anomalies)

        return Solution(found, index)


class Interpolation(Method):
    """What methods with a static covariance share: one analysis, and draws around it.

    Arguments:
        system: The system.
        members: The number of members; with one, the analysis alone.
        factor: The factor of the background-error covariance.
        climatology: A `Climatology` or a dataset of states (default: a long run of the system).
        covariance: The background-error covariance `(n, n)`, or a variance that broadcasts to the
            state, in place of the climatological one.
        iterations: Gauss–Newton steps at most, where H is not linear.

    Raises:
        ValueError: If an argument is out of range.
    """

    fewest = 1

    def __init__(
        self,
        system: System,
        members: int = MEMBERS,
        factor: float = 1.0,
        climatology: Any = None,
        covariance: Any = None,
        iterations: int = 10,
    ) -> None:
        super().__init__(system, members)
        check_factor(self.name, factor)
        if iterations < 1:
            raise ValueError(f"{self.name} needs at least one iteration, got {iterations}")
        self.factor, self.climatology = float(factor), climatology
        self.covariance, self.iterations = covariance, iterations

    @property
    def draws(self) -> int:
        return 1

    @cached_property
    def climate(self) -> Climatology:
        """The climatology."""
        return climatology(self.system, self.climatology)[0]

    def background(self, like: Tensor) -> Background:
        """The background-error covariance."""

        if self.covariance is None:
            return climatological(self.climate, self.factor, like)
        return given_covariance(self.covariance, self.factor, self.system.layout.shape, like)

    def analysis(
        self, x: Tensor, predicted: Tensor, observed: ObservedTime, B: Background, run: Run
    ) -> tuple[Tensor, Tensor]:
        """The analysis of one state, and the ensemble around it.

        Arguments:
            x: The background, with shape `(repetition, channel, *space)`.
            predicted: `H(x)`, with shape `(repetition, value)`.
            observed: What was observed.
            B: The covariance of its error.
            run: The run.

        Returns:
            The analysis, with the shape of the background, and the ensemble
            `(repetition, member, channel, *space)`.
        """

        y = observed.y[:, None]
        if self.members == 1:
            found = self.update(x[:, None], predicted[:, None], y, observed, B, run)[:, 0]
            return found, found[:, None]
        errors = run.noise.normal("observation", (self.members, len(observed))) * observed.std
        perturbed = B.draw(run.noise, self.members)
        shift = x.new_zeros((len(x), 1, *x.shape[1:]))
        states = x[:, None] + torch.cat((shift, perturbed), 1)
        values = y + torch.cat((torch.zeros_like(y), errors), 1)
        if observed.linear:
            change = self.seen(states, observed) - self.seen(x[:, None], observed)
            expected = predicted[:, None] + change
        else:
            expected = predicted[:, None].expand_as(values)
        found = self.update(states, expected, values, observed, B, run)
        mean, members = found[:, 0], found[:, 1:]

        return mean, mean[:, None] + centred(members)

    def seen(self, x: Tensor, observed: ObservedTime) -> Tensor:
        """What states `(repetition, member, …)` predict if they do not change between steps."""

        states = x.flatten(0, 1)[:, None].expand(-1, observed.frames, *x.shape[2:])
        return observed.H(states).unflatten(0, x.shape[:2])

    def update(
        self, x: Tensor, predicted: Tensor, y: Tensor, observed: ObservedTime, B: Background,
        run: Run,
    ) -> Tensor:  # fmt: skip
        """The analysis of each of many states `(repetition, member, channel, *space)`.

        Where H is not linear, the first one is the background itself, without a perturbation.
        """

        if observed.linear:
            rows, factor = self.gain(observed, B, run)
            weights = torch.cholesky_solve((y - predicted).flatten(0, 1).T, factor)
            return x + B.root((rows.T @ weights).T).view(x.shape)

        states = x.flatten(0, 1)
        y = y.expand(*x.shape[:2], -1).flatten(0, 1)
        # First guess at the appropriate time: what the background predicts between two states. The
        # offset is the background's for all: the perturbations of the members count in full.
        at = predicted.expand(*x.shape[:2], -1).flatten(0, 1)
        still = self.seen(x[:, :1], observed).expand(*x.shape[:2], -1).flatten(0, 1)
        offset = at - still if observed.frames > 1 else torch.zeros_like(at)

        def residual(v: Tensor) -> Tensor:
            analysed = (states + B.root(v))[:, None].expand(-1, observed.frames, *x.shape[2:])
            return (y - observed.H(analysed) - offset) / observed.std

        prior = x.new_zeros((len(states), B.size))
        found = gauss_newton(residual, prior, iterations=self.iterations)
        run.evaluations += found.evaluations.sum().item() / len(x)

        return x + B.root(found.v).view(x.shape)

    def gain(self, observed: ObservedTime, B: Background, run: Run) -> tuple[Tensor, Tensor]:
        """`H U` and the Cholesky factor of `H B Hᵀ + R`, once for all that are observed alike."""

        if run.memory.get("geometry") != geometry(observed):
            matrix = observed.matrix.unflatten(1, (observed.frames, -1)).sum(1)
            rows = B.adjoint(matrix.view(-1, *B.shape))
            innovation = rows @ rows.T + torch.diag(observed.std.square())
            run.memory |= {
                "geometry": geometry(observed),
                "gain": (rows, torch.linalg.cholesky(innovation)),
            }
        return run.memory["gain"]

    def watch(self, predicted: Tensor, observed: ObservedTime, B: Background, run: Run) -> None:
        """Compares the innovation with what its covariance is taken to be."""

        if not observed.linear:
            return
        rows, _ = self.gain(observed, B, run)
        # Two members that have this variance.
        spread = (rows.square().sum(1) / 2).sqrt()
        run.monitor.see(torch.stack((predicted - spread, predicted + spread), 1), observed)


class OptimalInterpolation(Interpolation):
    """Optimal interpolation: the Kalman analysis of the climatology at each time (Gandin, 1963).

    Arguments:
        system: The system.
        members: The number of members; with one, the analysis alone.
        climatology: A `Climatology` or a dataset of states (default: a long run of the system).
        covariance: The background-error covariance `(n, n)`, or a variance that broadcasts to the
            state, in place of the climatological one.
        iterations: Gauss–Newton steps at most, where H is not linear.

    Raises:
        ValueError: If an argument is out of range.
    """

    def __init__(
        self,
        system: System,
        members: int = MEMBERS,
        climatology: Any = None,
        covariance: Any = None,
        iterations: int = 10,
    ) -> None:
        super().__init__(system, members, 1.0, climatology, covariance, iterations)

    @torch.no_grad()
    def solve(self, z: Tensor, run: Run) -> Solution:
        like = torch.empty((), dtype=run.noise.dtype, device=run.noise.device)
        mean, B = self.climate.mean.to(like), self.background(like)
        mean = mean.expand(run.repetitions, *mean.shape)
        states = []
        for observed in run.observed:
            predicted = self.seen(mean[:, None], observed)[:, 0]
            states.append(self.analysis(mean, predicted, observed, B, run)[1])
            run.tick()

        return Solution(torch.stack(states, 2), [each.index for each in run.observed])


class ThreeDVar(Interpolation):
    """3D-Var: analyses with a static covariance, cycled with the model (Lorenc, 1986).

    The first background is the mean of the first state's distribution: a Gaussian's own, or else
    that of the climatology.

    Arguments:
        system: The system.
        members: The number of members; with one, the analysis alone.
        factor: The factor of the background-error covariance: the shorter the time between
            analyses, the smaller.
        climatology: A `Climatology` or a dataset of states (default: a long run of the system).
        covariance: The background-error covariance `(n, n)`, or a variance that broadcasts to the
            state, in place of the climatological one.
        iterations: Gauss–Newton steps at most, where H is not linear.

    Raises:
        ValueError: If an argument is out of range.
    """

    @torch.no_grad()
    def solve(self, z: Tensor, run: Run) -> Solution:
        like = torch.empty((), dtype=run.noise.dtype, device=run.noise.device)
        B = self.background(like)
        x = torch.stack([self.first(each, like) for each in run.initial])
        z = self.system.lift(x)[:, None]
        resolved = self.system.lift(x) is x
        index, states = 0, []
        for observed in run.observed:
            path = [z]
            for _ in range(observed.index - index):
                path = [path[-1], self.advance(path[-1], run)]
            index, z = observed.index, path[-1]
            frames = [each if resolved else run.project(each) for each in path[-observed.frames :]]
            x = frames[-1][:, 0]
            frames = [frames[0]] * (observed.frames - len(frames)) + frames
            predicted = observed.H(torch.cat(frames, 1))
            self.watch(predicted, observed, B, run)
            analysis, ensemble = self.analysis(x, predicted, observed, B, run)
            z = run.insert(z, z if resolved else x[:, None], analysis[:, None])
            states.append(ensemble)
            run.tick()

        return Solution(torch.stack(states, 2), [each.index for each in run.observed])

    def first(self, initial: Initial, like: Tensor) -> Tensor:
        """The mean of the first state: a Gaussian's own, or else the climatology's."""

        if isinstance(initial, Gaussian):
            mean = np.broadcast_to(initial.mean, self.system.layout.shape)
            return torch.tensor(mean).to(like)
        return self.climate.mean.to(like)

    def advance(self, z: Tensor, run: Run) -> Tensor:
        """One step without noise: the mean of the transition."""

        run.model_steps += 1
        return self.system.advance(z[:, 0])[:, None]


def centred(members: Tensor) -> Tensor:
    """Anomalies of members `(repetition, member, …)` whose mean is zero, with their covariance."""

    count = members.shape[1]
    return (members - members.mean(1, keepdim=True)) * math.sqrt(count / (count - 1))
