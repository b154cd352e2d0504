r"""4D-Var: the most likely trajectory of a window, given its background and its observations.

With the background `x_b`, its covariance `B = U Uᵀ` and model error of covariance `Q = G Gᵀ`, the
control variables of a window are white noise `v = (v_0, v_1, …)`,

    x_0 = x_b + U v_0,    x_{i+1} = M(x_i) + G v_{i+1},

and the analysis minimises

    J(v) = ½ |v|² + ½ Σ_i |R_i^{-1/2} (y_i - H_i(x_i))|².

With the model as a strong constraint `v_0` alone is free (Le Dimet and Talagrand 1986); with a weak
one the model error is, too (Trémolet 2006). The minimisation is incremental: Gauss–Newton steps by
conjugate gradients, with derivatives of the system itself by automatic differentiation, see
`minimise.py`. In a chaotic system the cost of a long window has many minima: observations are taken
in from the window's start on, twice as many analysis times each time (Pires et al. 1996).

Members are an ensemble of 4D-Vars (Isaksen et al. 2010; Bardsley et al. 2014), each with a
background, observations and model error of its own, drawn from their distributions: the model error
is held near `p` rather than 0 by `½ |v - p|²`. In a linear-Gaussian system they are draws from the
exact posterior. A single member has none of these perturbations: it is the mode itself.

Windows are cycled: each ends where the next begins, and the analysis there is the next background.
The first background is a draw of the first state's distribution, whose covariance is a Gaussian's
own, or else the climatology's times the factor; for one member it is the mean.

References:
    | Le Dimet, Talagrand (1986), Variational algorithms for analysis and assimilation of
      meteorological observations, Tellus A 38.
    | Trémolet (2006), Accounting for an imperfect model in 4D-Var, Q. J. R. Meteorol. Soc. 132.
    | Pires, Vautard, Talagrand (1996), On extending the limits of variational assimilation in
      nonlinear chaotic systems, Tellus A 48.
    | Isaksen et al. (2010), Ensemble of data assimilations at ECMWF.
    | Bardsley, Solonen, Haario, Laine (2014), Randomize-then-optimize.
"""

import math
from collections.abc import Sequence
from functools import cached_property
from typing import Any

import numpy as np
import torch
from torch import Tensor

from dynamics.system import System

from ..climatology import Climatology
from ..observation.sequence import ObservedTime
from .background import Background, check_factor, climatological, climatology, given_covariance
from .base import Run, Smoother, Solution
from .initial import Gaussian
from .minimise import gauss_newton


class FourDVar(Smoother):
    """Strong- and weak-constraint 4D-Var, and ensembles of them.

    Arguments:
        system: The system; `advance` must be differentiable.
        members: The number of members of the ensemble of 4D-Vars; with one, the mode alone.
        window: The number of steps of a window (default: one window for all times).
        factor: The factor of the background-error covariance: of all windows, but of the first only
            if no Gaussian is given for the first state.
        weak: Whether the model is a weak constraint (default: if the system has noise, or a
            `model_error` is given).
        model_error: The variance that each step adds to each value, which broadcasts to the state,
            in place of the system's own noise.
        climatology: A `Climatology` or a dataset of states (default: a long run of the system).
        covariance: The background-error covariance `(n, n)`, or a variance that broadcasts to the
            state, in place of the climatological one.
        iterations: Gauss–Newton steps at most, each time observations are taken in.
        inner: Conjugate-gradient iterations of each at most.
        progressive: Whether observations are taken in gradually.

    Raises:
        ValueError: If an argument is out of range, or a weak constraint has no model error.
    """

    fewest = 1

    def __init__(
        self,
        system: System,
        members: int = 16,
        window: int | None = None,
        factor: float = 1.0,
        weak: bool | None = None,
        model_error: Any = None,
        climatology: Any = None,
        covariance: Any = None,
        iterations: int = 10,
        inner: int = 50,
        progressive: bool = True,
    ) -> None:
        super().__init__(system, members)
        check_factor(self.name, factor)
        for name, value in (("window", window), ("iterations", iterations), ("inner", inner)):
            if value is not None and (not isinstance(value, int) or value < 1):
                raise ValueError(f"{name} of {self.name} must be a positive integer, got {value!r}")
        if weak and model_error is None and not system.stochastic:
            raise ValueError(
                f"a weak constraint needs the variance of the model error, but "
                f"{type(system).__name__} has no noise of its own: give model_error"
            )
        if model_error is not None:
            if weak is False:
                raise ValueError("a strong constraint takes no model_error: leave out weak=False")
            variance = np.asarray(model_error, dtype=np.float64)
            if not (np.isfinite(variance).all() and (variance > 0).all()):
                raise ValueError(
                    f"model_error must be positive and finite variances, got {variance.min():g}"
                )
        self.window, self.factor, self.model_error = window, float(factor), model_error
        self.weak, self.climatology, self.covariance = weak, climatology, covariance
        self.iterations, self.inner, self.progressive = iterations, inner, bool(progressive)

    @property
    def constrained(self) -> bool:
        """Whether the model is a strong constraint."""

        if self.weak is not None:
            return not self.weak
        return self.model_error is None and not self.system.stochastic

    @cached_property
    def climate(self) -> Climatology:
        """The climatology."""
        return climatology(self.system, self.climatology)[0]

    def background(self, like: Tensor, factor: float) -> Background:
        """The background-error covariance, times a factor."""

        if self.covariance is None:
            return climatological(self.climate, factor, like)
        return given_covariance(self.covariance, factor, self.system.layout.shape, like)

    def first_background(self, run: Run, like: Tensor) -> Background:
        """The covariance of the first state: a Gaussian's own, or else the climatology's."""

        shape, first = self.system.layout.shape, run.initial[0]
        if not isinstance(first, Gaussian):
            return self.background(like, self.factor)
        for other in run.initial[1:]:
            same = isinstance(other, Gaussian) and all(
                np.array_equal(getattr(first, name), getattr(other, name))
                for name in ("variance", "root")
            )
            if not same:
                raise ValueError(
                    "repetitions that run together need first states of the same covariance: run "
                    "them one by one"
                )
        matrix = first.variance if first.root is None else first.root @ first.root.T

        return given_covariance(matrix, 1.0, shape, like)

    def solve(self, z: Tensor, run: Run) -> Solution:
        like = torch.empty((), dtype=run.noise.dtype, device=run.noise.device)
        if self.members == 1:
            z = self.system.lift(torch.stack([self.mean(each, like) for each in run.initial]))
            z = z[:, None]
        last = len(run.time) - 1
        window = self.window or max(last, 1)
        states: list[Tensor] = []
        background = self.first_background(run, like)
        for start in range(0, max(last, 1), window):
            stop = min(start + window, last)
            seen = [
                each
                for each in run.observed
                if start < each.index <= stop or (each.index == start == 0)
            ]
            path = Window(self, z, start, stop, seen, background, run)
            x, z = path.solve()
            # The next window has the last word on the state that it shares with this one.
            states = states[:-1] + list(x.unbind(2))
            if stop < last and start == 0:
                background = self.background(like, self.factor)

        return Solution(torch.stack(states, 2), list(range(last + 1)))

    def mean(self, initial: Any, like: Tensor) -> Tensor:
        """The mean of the first state: a Gaussian's own, or else the climatology's."""

        if isinstance(initial, Gaussian):
            mean = np.broadcast_to(initial.mean, self.system.layout.shape)
            return torch.tensor(mean).to(like)
        return self.climate.mean.to(like)

    def advance(self, z: Tensor, noise: Tensor | None) -> Tensor:
        """One step of model states `(B, *model)`, with white noise `(B, *state)` or none."""

        if noise is None:
            return self.system.advance(z)
        if self.model_error is None:
            return self.system.advance(z, noise)
        z = self.system.advance(z)
        x = self.system.project(z)
        error = noise * torch.as_tensor(self.model_error, dtype=x.dtype, device=x.device).sqrt()
        if x is z:
            return z + error
        return z + self.system.lift(x + error) - self.system.lift(x)


class Window:
    """One window of all members of all repetitions.

    Arguments:
        method: The method.
        z: The background's model states, with shape `(repetition, member, *model)`.
        start: The index of its first state.
        stop: The index of its last state.
        observed: What is observed in the window.
        background: The covariance of the background's error.
        run: The run.
    """

    def __init__(
        self,
        method: FourDVar,
        z: Tensor,
        start: int,
        stop: int,
        observed: Sequence[ObservedTime],
        background: Background,
        run: Run,
    ) -> None:
        self.method, self.start, self.steps = method, start, stop - start
        self.observed, self.background, self.run = observed, background, run
        self.batch = z.shape[:2]
        self.z = z.flatten(0, 1)
        with torch.no_grad():
            self.x = method.system.project(self.z)
        self.shape = tuple(self.x.shape[1:])
        self.errors = 0 if method.constrained else self.steps

    def solve(self) -> tuple[Tensor, Tensor]:
        """The analysis.

        Returns:
            States, with shape `(repetition, member, time, channel, *space)`, and the model states
            at the end of the window, `(repetition, member, *model)`.
        """

        run, method, members = self.run, self.method, self.batch[1]
        perturbed = members > 1
        values = []
        for each in self.observed:
            y = each.y[:, None].expand(-1, members, -1)
            if perturbed:
                y = y + each.std * run.noise.normal("observation", (members, len(each)))
            values.append(y.flatten(0, 1))
        size = self.background.size
        prior = self.x.new_zeros((len(self.x), size + self.errors * math.prod(self.shape)))
        if perturbed:
            for i in range(self.errors):
                drawn = run.noise.normal("model", (members, *self.shape)).flatten(0, 1).flatten(1)
                prior[:, size + i * drawn.shape[1] : size + (i + 1) * drawn.shape[1]] = drawn

        v = prior
        for count in self.counts():
            found = gauss_newton(
                lambda v, count=count: self.residual(v, values, count),  # type: ignore[misc]
                prior, v, method.iterations, method.inner,
            )  # fmt: skip
            v = found.v
            evaluations = found.evaluations.sum().item() / self.batch[0]
            run.evaluations += evaluations
            # The model is run as far as the observations that are taken in.
            run.model_steps += evaluations * (self.observed[count - 1].index - self.start)
        run.model_steps += members * self.steps
        with torch.no_grad():
            states, end = self.path(v, self.steps)
            for each in self.observed:
                predicted = self.predict(states, each).unflatten(0, self.batch)
                run.monitor.see(predicted, each)
                run.tick()

        return (
            torch.stack(states, 1).unflatten(0, self.batch),
            end.unflatten(0, self.batch),
        )

    def counts(self) -> list[int]:
        """How many analysis times are taken in, one minimisation after the other."""

        total = len(self.observed)
        if not total:
            return []
        counts = [total]
        while self.method.progressive and counts[-1] > 1:
            counts.append(math.ceil(counts[-1] / 2))
        return counts[::-1]

    def path(self, v: Tensor, steps: int) -> tuple[list[Tensor], Tensor]:
        """The states that follow from control variables, and the last model state."""

        system = self.method.system
        x = self.x + self.background.root(v[:, : self.background.size])
        z = x if self.z is self.x else self.z + system.lift(x) - system.lift(self.x)
        noise = (
            v[:, self.background.size :].unflatten(1, (-1, *self.shape)) if self.errors else None
        )
        states = [system.project(z)]
        for i in range(steps):
            z = self.method.advance(z, None if noise is None else noise[:, i])
            states.append(system.project(z))

        return states, z

    def predict(self, states: list[Tensor], each: ObservedTime) -> Tensor:
        """What states `(B, channel, *space)` of the window predict at an analysis time."""

        at = each.index - self.start
        return each.H(torch.stack(states[at + 1 - each.frames : at + 1], 1))

    def residual(self, v: Tensor, values: list[Tensor], count: int) -> Tensor:
        """Innovations in units of their error, with shape `(B, value)`."""

        observed = self.observed[:count]
        try:
            states, _ = self.path(v, observed[-1].index - self.start)
        except FloatingPointError:  # the model has diverged: no step to take
            return v.new_full((len(v), sum(map(len, observed))), math.inf)

        return torch.cat(
            [
                (y - self.predict(states, each)) / each.std
                for each, y in zip(observed, values, strict=False)
            ],
            1,
        )
