r"""The iterative ensemble Kalman smoother: variational analysis in the space of the ensemble.

An observation `y_k` analyses the state at the start of a window of `lag` cycles, in which it is a
non-linear function of the weights `w` of the anomalies,

    J(w) = ½ |R^{-1/2} (y_k - H(M(x̄ + w A)))|² + ½ (N - 1) |w|²,

minimised by Gauss–Newton steps. The ensemble is the linearisation: members at `x̄ + w A + T A` are
run to the observation, and with `S` their anomalies there, divided by `T`, in units of the error,

    C = S Sᵀ + (N - 1) I,   w ↦ w + C⁻¹ (S d - (N - 1) w),   T = √(N-1) C^{-1/2}.

With `bundle=ε` members are run at `x̄ + w A + ε A`, which takes the derivative at the mean instead
of its average over the ensemble. The window then slides by a cycle: lag 1 is the iterative ensemble
Kalman filter (Sakov et al., 2012), lag 0 the maximum likelihood filter (iterations of H alone).

A stochastic system's noise in the window is part of what a member is: it is drawn when the window
first reaches a step, and combined by `w` and `T` as the first state is. With one iteration, or a
linear system, the result is that of the ensemble Kalman smoother.

References:
    Bocquet and Sakov (2014), An iterative ensemble Kalman smoother, Q. J. R. Meteorol. Soc. 140,
    https://doi.org/10.1002/qj.2236. Sakov, Oliver and Bertino (2012), An iterative EnKF for
    strongly nonlinear systems, Mon. Wea. Rev. 140.
"""

from collections.abc import Callable
from dataclasses import dataclass, field

import torch
from torch import Tensor

from dynamics.system import System

from ..observation.sequence import ObservedTime
from .base import Run, Smoother, Solution
from .enks import analyses, check_lag, predict
from .ensemble import whiten
from .inflation import check_inflation, rotation


@dataclass
class Window:
    """The ensemble at the start of a window, and the noise of the steps that follow.

    Attributes:
        z: Model states, with shape `(repetition, member, *model)`.
        index: The index of the first state.
        noise: The noise of the steps from there, each `(repetition, member, channel, *space)`;
            none if the system has none.
    """

    z: Tensor
    index: int
    noise: list[Tensor] = field(default_factory=list)

    def combined(self, combine: Callable[[Tensor], Tensor]) -> "Window":
        """The window of other members, given by combinations of these."""

        def each(x: Tensor) -> Tensor:
            return combine(x.flatten(2)).view(x.shape)

        return Window(each(self.z), self.index, [each(noise) for noise in self.noise])


class IEnKS(Smoother):
    """The iterative ensemble Kalman smoother (Bocquet and Sakov, 2014), with single assimilation.

    The result has the smoothed ensemble at all times of the model's states: a state knows the
    observations up to `lag` cycles after the analysis that precedes it. With `output="filter"` it
    has, as that of a filter, the analysis ensembles at the analysis times, each of which knows the
    observations until then: what is scored as "analysis RMSE".

    Arguments:
        system: The system.
        members: The number of members, at least 2.
        lag: The number of cycles that an observation reaches back.
        inflation: The factor of the anomalies after each analysis.
        rotation: Whether the anomalies are rotated at random.
        iterations: The largest number of Gauss–Newton steps.
        tolerance: Steps end where the mean square of a step's weights is below.
        bundle: The size ε of the bundle; the ensemble itself (transform version) if None. In
            float32, not below 1e-2.
        output: "smoother" or "filter".

    Raises:
        ValueError: If an argument is out of range.
    """

    def __init__(
        self,
        system: System,
        members: int,
        lag: int = 1,
        inflation: float = 1.0,
        rotation: bool = False,
        iterations: int = 10,
        tolerance: float = 1e-6,
        bundle: float | None = None,
        output: str = "smoother",
    ) -> None:
        super().__init__(system, members)
        check_inflation(self.name, inflation, 0.0, 0.0)
        check_lag(self.name, lag, output)
        if lag is None or iterations < 1 or tolerance < 0 or (bundle is not None and bundle <= 0):
            raise ValueError(
                f"{self.name} needs a lag, at least one iteration, a tolerance of 0 or more and a "
                f"positive bundle or None, got lag={lag!r}, iterations={iterations!r}, "
                f"tolerance={tolerance!r} and bundle={bundle!r}"
            )
        self.lag, self.inflation, self.rotation = lag, float(inflation), bool(rotation)
        self.iterations, self.tolerance, self.bundle = iterations, tolerance, bundle
        self.output = output

    @torch.no_grad()
    def solve(self, z: Tensor, run: Run) -> Solution:
        window, done = Window(z, 0), []
        analysis, filtered = run.project(z), []
        for k, observed in enumerate(run.observed):
            # The window starts at the analysis `lag` cycles ago, or at the first state; an
            # observation between two states is predicted from both.
            start = run.observed[k - self.lag].index if k >= self.lag else 0
            start = max(window.index, min(start, observed.index + 1 - observed.frames))
            window, passed = self.slide(window, start, run)
            done += passed
            if not all(run.monitor.broken):
                window, analysis = self.analyse(window, observed, run)
            filtered.append(analysis)
            run.tick()

        if self.output == "filter":
            return analyses(filtered, run)
        window, passed = self.slide(window, len(run.time) - 1, run)
        done += [*passed, run.project(window.z).cpu()]

        return Solution(torch.stack(done, 2), list(range(len(run.time))))

    def slide(self, window: Window, start: int, run: Run) -> tuple[Window, list[Tensor]]:
        """Moves the start of the window, and returns the states that it leaves."""

        z, noise, passed = window.z, list(window.noise), []
        for _ in range(start - window.index):
            if self.output == "smoother":
                passed.append(run.project(z).cpu())
            if run.system.stochastic and not noise:
                noise.append(self.draw(z, run))
            z = self.step(z, noise.pop(0) if noise else None, run)

        return Window(z, start, noise), passed

    def draw(self, z: Tensor, run: Run) -> Tensor:
        """The noise of a step."""
        return run.noise.normal("model", (z.shape[1], *run.system.layout.shape))

    def step(self, z: Tensor, noise: Tensor | None, run: Run) -> Tensor:
        """One step of model states with a given noise."""

        run.model_steps += z.shape[1]
        flat = None if noise is None else noise.flatten(0, 1)
        return run.system.advance(z.flatten(0, 1), flat).unflatten(0, z.shape[:2])

    def forecast(self, window: Window, observed: ObservedTime, run: Run) -> tuple[Tensor, Tensor]:
        """The states at the analysis time, and what they predict."""

        z = window.z
        frames = [run.project(z)]
        for i in range(observed.index - window.index):
            z = self.step(z, window.noise[i] if window.noise else None, run)
            frames = [frames[-1], run.project(z)]

        return frames[-1], predict(frames, observed)

    def analyse(self, window: Window, observed: ObservedTime, run: Run) -> tuple[Window, Tensor]:
        """Analyses the start of the window.

        Returns:
            The window, inflated and rotated, and the analysis of the state that was observed.
        """

        steps = observed.index - window.index
        while run.system.stochastic and len(window.noise) < steps:
            window.noise.append(self.draw(window.z, run))
        (repetitions, members), ridge = window.z.shape[:2], self.members - 1
        eye = torch.eye(members, dtype=window.z.dtype, device=window.z.device)
        w = window.z.new_zeros(repetitions, 1, members)
        T = T_inverse = eye.expand(repetitions, members, members)
        active = torch.ones(repetitions, 1, 1, dtype=torch.bool, device=window.z.device)
        analysis = window.z.new_zeros(repetitions, members, *run.system.layout.shape)

        for iteration in range(self.iterations):
            spread = T if self.bundle is None else self.bundle * eye
            # What takes anomalies at the observation to those of the background.
            undo = T_inverse if self.bundle is None else eye / self.bundle
            states, predicted = self.forecast(
                window.combined(combination(w, spread)), observed, run
            )
            if iteration == 0:
                self.watch(predicted, observed, run)
            S, d = whiten(predicted, observed)
            S = undo @ S
            g, V = torch.linalg.eigh(S @ S.transpose(1, 2))
            g, Vt = g[:, None].clamp(min=0) + ridge, V.transpose(1, 2)
            step = ((d @ S.transpose(1, 2) - ridge * w) @ V / g) @ Vt
            root, inverse = (V * (ridge / g).sqrt()) @ Vt, (V * (g / ridge).sqrt()) @ Vt

            # The state at the observation, by its linearisation at these members.
            found = combination(step, root, undo)(states.flatten(2)).view(states.shape)
            # A repetition that has converged keeps its result while others go on.
            w, T = torch.where(active, w + step, w), torch.where(active, root, T)
            T_inverse = torch.where(active, inverse, T_inverse)
            still = active.view(-1, *[1] * (found.ndim - 1))
            analysis = torch.where(still, found, analysis)
            active = active & (step.square().mean(2, keepdim=True) > self.tolerance)
            if not bool(active.any()):
                break

        if steps == 0:
            analysis = run.project(window.combined(combination(w, T)).z)
        if self.rotation:
            T = rotation(run, members) @ T
        smoothed = window.combined(combination(w, T))
        if self.inflation != 1:
            smoothed.z = inflate(smoothed.z, self.inflation)

        return smoothed, analysis

    def watch(self, predicted: Tensor, observed: ObservedTime, run: Run) -> None:
        """Shows the monitor what the forecast ensemble predicts."""

        if self.bundle is not None:
            predicted = inflate(predicted, 1 / self.bundle)
        run.monitor.see(predicted, observed)


def combination(
    weights: Tensor, anomalies: Tensor, linear: Tensor | None = None
) -> Callable[[Tensor], Tensor]:
    """The map `x ↦ x̄ + (w + T) A` of states `(repetition, member, value)`.

    Arguments:
        weights: The weights `w`, with shape `(repetition, 1, member)`.
        anomalies: The matrix `T`, with shape `(repetition, member, member)`.
        linear: If given, what the states' anomalies are multiplied by first.
    """

    def combine(x: Tensor) -> Tensor:
        mean = x.mean(1, keepdim=True)
        a = x - mean if linear is None else linear @ (x - mean)
        return mean + (weights + anomalies) @ a

    return combine


def inflate(x: Tensor, factor: float) -> Tensor:
    """Multiplies the anomalies of an ensemble `(repetition, member, …)`."""

    mean = x.mean(1, keepdim=True)
    return mean + factor * (x - mean)
