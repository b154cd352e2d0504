r"""The ensemble Kalman smoother: a filter whose transforms act on the past, too.

With the transform `x̄ ↦ x̄ + w A, A ↦ T A` of a filter's analysis at time k, the ensembles at earlier
times are analysed by the same combinations of members,

    x̄_i ↦ x̄_i + w A_i,    A_i ↦ Ω T A_i,    i ≤ k,

which is the regression of past states on the predictions of `y_k`. A rotation Ω of the filter's
belongs to all of them, for otherwise members past and present would no longer be the same;
inflation, that of the EnKF-N too, and relaxation act on the present alone. With a fixed lag only
the states since the analysis `lag` cycles ago are touched: lag 0 is the filter.

References:
    Evensen and van Leeuwen (2000), An ensemble Kalman smoother for nonlinear dynamics, Mon. Wea.
    Rev. 128. Cosme et al. (2012), Mon. Wea. Rev. 140.
"""

from collections.abc import Callable

import torch
from torch import Tensor

from dynamics.system import System

from ..observation.sequence import ObservedTime
from .base import Run, Smoother, Solution
from .denkf import DEnKF
from .enkf import EnKF
from .enkf_n import EnKFN
from .ensemble import EnsembleFilter
from .etkf import ETKF

FILTERS = ("etkf", "enkf", "denkf", "enkfn")
OUTPUTS = ("smoother", "filter")


class EnKS(Smoother):
    """The ensemble Kalman smoother (Evensen and van Leeuwen, 2000).

    The result has the smoothed ensemble at all times of the model's states. With `output="filter"`
    it has, as that of a filter, the analysis ensembles at the analysis times, each of which knows
    the observations until then: what is scored as "analysis RMSE".

    Arguments:
        system: The system.
        members: The number of members, at least 2.
        lag: The number of cycles that an observation reaches back, or all (None).
        analysis: The filter: "etkf", "enkf", "denkf" or "enkfn".
        inflation: The factor of the analysis anomalies.
        rtps: Relaxation to the prior's spread, from 0 (none) to 1; not with "enkfn".
        rtpp: Relaxation to the prior's perturbations, from 0 (none) to 1; not with "enkfn".
        rotation: Whether the anomalies are rotated at random.
        output: "smoother" or "filter".

    Raises:
        ValueError: If an argument is out of range.
    """

    def __init__(
        self,
        system: System,
        members: int,
        lag: int | None = None,
        analysis: str = "etkf",
        inflation: float = 1.0,
        rtps: float = 0.0,
        rtpp: float = 0.0,
        rotation: bool = False,
        output: str = "smoother",
    ) -> None:
        super().__init__(system, members)
        check_lag(self.name, lag, output)
        self.lag, self.analysis, self.output = lag, analysis, output
        self.inflation, self.rtps, self.rtpp, self.rotation = inflation, rtps, rtpp, rotation
        self.filter: EnsembleFilter
        if analysis == "enkfn":
            if rtps or rtpp:
                raise ValueError(
                    f"EnKS with analysis='enkfn' inflates by itself and takes no relaxation, got "
                    f"rtps={rtps!r} and rtpp={rtpp!r}"
                )
            self.filter = EnKFN(system, members, inflation=inflation, rotation=rotation)
        elif analysis in FILTERS:
            kinds: dict[str, Callable[..., EnsembleFilter]]
            kinds = {"etkf": ETKF, "enkf": EnKF, "denkf": DEnKF}
            self.filter = kinds[analysis](system, members, inflation, rtps, rtpp, rotation)
        else:
            raise ValueError(f"analysis of EnKS must be one of {FILTERS}, got {analysis!r}")

    @torch.no_grad()
    def solve(self, z: Tensor, run: Run) -> Solution:
        first = z[0, :1]
        resolved = self.system.project(first) is first  # the model's states are the states

        def state(z: Tensor) -> Tensor:
            return z if resolved else run.project(z)

        # What a filter returns is in no need of the past.
        lag = 0 if self.output == "filter" else self.lag
        # The frames that observations may still change, the index of the first, and those done.
        window, offset, done = [state(z)], 0, []
        filtered = []
        for k, observed in enumerate(run.observed):
            while offset + len(window) <= observed.index:
                z = run.advance(z)
                window.append(state(z))
            start = 0 if lag is None or k < lag else run.observed[k - lag].index
            # An observation between two states is predicted from both.
            keep = max(0, min(start, observed.index + 1 - observed.frames) - offset)
            done += self.finished(window[:keep])
            window, offset = window[keep:], offset + keep

            predicted = predict(window, observed)
            run.monitor.see(predicted, observed)
            if not all(run.monitor.broken):
                z = self.update(z, window, start - offset, predicted, observed, run)
            filtered.append(window[-1])
            run.tick()

        if self.output == "filter":
            return analyses(filtered, run)
        while offset + len(window) < len(run.time):
            z = run.advance(z)
            window.append(state(z))
        done += self.finished(window)

        return Solution(torch.stack(done, 2), list(range(len(run.time))))

    def update(
        self,
        z: Tensor,
        window: list[Tensor],
        start: int,
        predicted: Tensor,
        observed: ObservedTime,
        run: Run,
    ) -> Tensor:
        """Analyses the frames from `start` on in place, and returns the last's model states."""

        transform = self.filter.transform(predicted, observed, run)
        rotate = self.filter.rotate(run)
        past = window[start:-1]
        if past:
            joint = transform(torch.cat([each.flatten(2) for each in past], 2), rotate)
            frames = joint.chunk(len(past), 2)
            window[start:-1] = [each.reshape(past[0].shape) for each in frames]
        background = window[-1]
        present = self.filter.apply(background.flatten(2), transform, rotate)
        window[-1] = present.view(background.shape)

        return run.insert(z, background, window[-1])

    def finished(self, frames: list[Tensor]) -> list[Tensor]:
        """Frames that nothing changes any more, in main memory; none if they are not asked for."""
        return [] if self.output == "filter" else [each.cpu() for each in frames]


def predict(window: list[Tensor], observed: ObservedTime) -> Tensor:
    """What the ensemble predicts, `(repetition, member, value)`, from the frames up to the last."""

    if observed.frames == 2 and len(window) < 2:
        raise ValueError(
            f"an observation before the state at time {observed.time:g} needs the one before it, "
            f"but that is the first: start earlier"
        )
    frames = torch.stack(window[len(window) - observed.frames :], 2)

    return observed.H(frames.flatten(0, 1)).unflatten(0, frames.shape[:2])


def analyses(states: list[Tensor], run: Run) -> Solution:
    """What a filter returns."""

    chi_square = torch.stack(run.monitor.chi_square, 1)
    index = [each.index for each in run.observed]

    return Solution(torch.stack(states, 2), index, {"innovation_chi_square": chi_square})


def check_lag(name: str, lag: int | None, output: str) -> None:
    """Checks the arguments of a smoother.

    Raises:
        ValueError: If the lag is negative or the output unknown.
    """

    if lag is not None and (not isinstance(lag, int) or lag < 0):
        raise ValueError(
            f"the lag of {name} is a number of cycles, 0 or more, or None for all, got {lag!r}"
        )
    if output not in OUTPUTS:
        raise ValueError(f"output of {name} must be one of {OUTPUTS}, got {output!r}")
