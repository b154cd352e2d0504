r"""Quality control: which observations are in gross error, by what the prior and the others say.

Under the prior `N(x̄, P)` and errors `N(0, R)` the innovations `d = y − H x̄` are `N(0, S)` with
`S = H P Hᵀ + R`, the engine's own spread. Three checks look at them:

- *background*: each value by itself, `|dᵢ| / √Sᵢᵢ`, in standard deviations;
- *buddy*: each value against its neighbours in space and time, one by one, `dᵢ − Cᵢⱼ dⱼ / Sⱼⱼ` with
  `C = H P Hᵀ`: a value that most of its well correlated neighbours contradict is wrong;
- *analysis*: each value against the analysis of all others. No second analysis is needed,

      yᵢ − E[yᵢ | y₋ᵢ] = (S⁻¹ d)ᵢ / (S⁻¹)ᵢᵢ,    with variance 1 / (S⁻¹)ᵢᵢ,

  so that the worst are removed a few at a time, until none is left. What was rejected is compared
  with the analysis of what was not, and taken back where it agrees.

The last is by far the sharpest: where observations are dense, what the others predict is known much
better than what the climatology does. Values of non-linear operators are checked by the background
alone, with the mean and the spread of draws from the prior.

References:
    Lorenc and Hammon (1988), Objective quality control of observations using Bayesian methods
    Dee et al. (2001), An adaptive buddy check for observational quality control
"""

import json
from collections.abc import Mapping
from dataclasses import asdict, dataclass, fields
from typing import TYPE_CHECKING, Any

import numpy as np
import pandas as pd
import torch

from .long_blocks import Part, Portions
from .observation import Likelihood, Observations

if TYPE_CHECKING:
    from .prior import Prior

PASSED = ""
BACKGROUND, BUDDY, ANALYSIS = "background", "buddy", "analysis"
# The most values and states that are checked together, and the draws for non-linear operators.
MOST, STATES, DRAWS = 1200, 16, 256
# Neighbours are correlated by so much at least; so many are asked, if there are enough.
CORRELATED, NEIGHBOURS, FEWEST = 0.5, 8, 3
# Values that are told apart from the worst are less correlated with it.
APART = 0.1
# The rejected rows that are kept in a posterior's attributes.
KEPT = 1000


@dataclass(frozen=True)
class Quality:
    """The thresholds of the checks, in standard deviations.

    Arguments:
        background: Of the background check (None: it is left out).
        buddy: Of the buddy check (None: it is left out).
        analysis: Of the check against the analysis of the others (None: it is left out).

    Raises:
        ValueError: If a threshold is not positive.
    """

    background: float | None = 5.0
    buddy: float | None = 4.0
    analysis: float | None = 4.0

    def __post_init__(self) -> None:
        for each in fields(self):
            value = getattr(self, each.name)
            number = isinstance(value, int | float) and not isinstance(value, bool)
            if value is not None and not (number and value > 0):
                raise ValueError(
                    f"quality.{each.name} must be a positive number of standard deviations or "
                    f"none, got {value!r}"
                )

    @classmethod
    def of(cls, given: "Quality | Mapping[str, Any] | bool") -> "Quality":
        """The options of a mapping; True stands for the usual ones.

        Raises:
            ValueError: If an option is unknown or out of range.
        """

        if isinstance(given, Quality):
            return given
        if given is True:
            return cls()
        names = [each.name for each in fields(cls)]
        if not isinstance(given, Mapping) or not set(given) <= set(names):
            raise ValueError(
                f"quality must be true or a mapping of some of {', '.join(names)}, got {given!r}"
            )
        return cls(**given)


class Report:
    """What was checked, what was rejected, and why.

    Attributes:
        table: One row for each value, as in the table of observations, and more: `background` and
            `spread`, what the prior expects; `departure`, the innovation in standard deviations;
            `predicted` and `error`, the analysis of the others and its standard deviation, that of
            the observation included; `residual`, the distance from it in those; `reason`, the check
            that the value failed ("" for none).
        options: The thresholds.
    """

    def __init__(self, observations: Observations, table: pd.DataFrame, options: Quality) -> None:
        self.observations, self.table, self.options = observations, table, options

    @property
    def passed(self) -> np.ndarray:
        """Which values passed, with shape `(value)`."""
        return (self.table["reason"] == PASSED).to_numpy()

    @property
    def rejected(self) -> pd.DataFrame:
        """The rows that were rejected."""
        return self.table[~self.passed].reset_index(drop=True)

    @property
    def accepted(self) -> Observations:
        """The observations that passed, with a note of those that did not.

        Raises:
            ValueError: If none did.
        """

        kept = self.observations.keep(self.passed)
        kept.notes |= self.notes()
        return kept

    def notes(self) -> dict[str, str]:
        """Attributes for who reads a posterior: the thresholds and the rejected rows, as JSON."""

        rejected = self.rejected
        columns = [c for c in rejected.columns if c not in ("background", "spread", "error")]
        rows = rejected[columns].head(KEPT).to_json(orient="records", double_precision=6)
        return {
            "quality_control": json.dumps(asdict(self.options)),
            "rejected": f"{len(rejected)} of {len(self.table)} observations",
            "rejected_observations": str(rows),
        }

    def __str__(self) -> str:
        table = self.table
        lines = [
            f"{int((~self.passed).sum())} of {len(table)} observations rejected "
            f"({', '.join(f'{n} {v:g}' for n, v in asdict(self.options).items() if v)})"
        ]
        for name, part in table.groupby("variable", sort=False):
            counts = part["reason"].value_counts()
            said = [f"{counts.get(r, 0)} by {r}" for r in (BACKGROUND, BUDDY, ANALYSIS)]
            lines.append(f"  {name}: {len(part)} values, {', '.join(said)}")
        return "\n".join(lines)

    def text(self, most: int = 20) -> str:
        """The summary, and the worst of the rejected rows."""

        rejected = self.rejected
        worst = rejected[["departure", "residual"]].abs().max(axis=1)
        shown = rejected.loc[worst.sort_values(ascending=False).index[:most]]
        rows = "" if shown.empty else "\n" + shown.to_string(index=False, float_format="%.4g")
        return str(self) + rows


def check(
    prior: "Prior",
    observations: Observations,
    options: Quality | Mapping[str, Any] | bool = True,
    time: Any = None,
) -> Report:
    """Checks observations against a prior and each other.

    Arguments:
        prior: The prior; its climatology `N(x̄, P)` is what counts, with a network or without.
        observations: The observations.
        options: The thresholds.
        time: The times of the trajectory, see `sda.assimilate`.

    Raises:
        ValueError: If an option is out of range or the observations do not fit the prior.
    """

    from .assimilation import trajectory_times

    options = Quality.of(options)
    time = trajectory_times(prior, observations, time)
    names = ("background", "spread", "departure", "predicted", "error", "residual")
    found = {name: np.full(len(observations), np.nan) for name in names}
    reason = np.full(len(observations), PASSED, dtype=object)
    first = np.cumsum([0, *map(len, observations.sets)])
    linear = [i for i, each in enumerate(observations.sets) if each.operator.linear]
    others = [i for i in range(len(observations.sets)) if i not in linear]

    for group in ([linear] if linear else []) + [[i] for i in others]:
        sets = Observations([observations.sets[i] for i in group])
        numbers = np.concatenate([np.arange(first[i], first[i + 1]) for i in group])
        for part, mine, own in blocks(sets, time, prior.layout.dt):
            likelihood = prior.likelihood(part, time[mine], torch.float64)
            here = numbers[own.numbers]
            why, values = verdicts(prior, likelihood, options)
            reason[here[own.core]] = why[own.core]
            for name, column in values.items():
                found[name][here[own.core]] = column[own.core]

    table = observations.to_table().drop(columns=["set", "index"], errors="ignore")
    table = table.assign(**found, reason=reason)

    return Report(observations, table, options)


@dataclass
class Owned:
    """The values of a block: their numbers among all, and which of them the block decides on."""

    numbers: np.ndarray
    core: np.ndarray


def blocks(
    observations: Observations, time: np.ndarray, dt: float
) -> "list[tuple[Observations, slice, Owned]]":
    """Takes observations apart by time, into blocks that overlap by half.

    Returns:
        For each block its observations, its states, and what it decides on: each value belongs to
        the block in whose middle half it lies.
    """

    portions = Portions(observations, time, dt)
    length = len(time)
    each = max(len(observations) / max(length, 1), 1e-9)
    size = int(min(length, max(2, min(STATES, MOST // each))))
    if not all(map(len, portions.times)) or size >= length:
        size = length
    stride, found = max(1, size // 2), []
    decided = np.zeros(len(observations), dtype=bool)
    for low in range(0, max(length - size, 0) + stride, stride):
        low = min(low, length - size)
        last = low + size >= length
        of = portions.of(Part(low, low + size, low, low + size))
        if of is None:
            if last:
                break
            continue
        part, numbers = of
        rows = np.concatenate([e.rows()["time"] for e in part.sets]).astype(float)
        edge = np.inf if last else time[low + size - 1 - stride // 2] + dt / 2
        core = ~decided[numbers] & ~(rows > edge)
        decided[numbers[core]] = True
        found.append((part, slice(low, low + size), Owned(numbers, core)))
        if last:
            break

    return found


def verdicts(
    prior: "Prior", likelihood: Likelihood, options: Quality
) -> tuple[np.ndarray, dict[str, np.ndarray]]:
    """The reasons and the figures of the values of a likelihood, see `Report`."""

    mean, C = moments(prior, likelihood)
    y, R = likelihood.y.double().cpu().numpy(), likelihood.std.double().cpu().numpy() ** 2
    d, S = y - mean, C + np.diag(R)
    spread = np.sqrt(np.diag(S))
    departure = d / spread
    reason = np.full(len(y), PASSED, dtype=object)
    if options.background is not None:
        reason[np.abs(departure) > options.background] = BACKGROUND
    predicted, error = mean.copy(), spread.copy()
    if likelihood.linear:
        if options.buddy is not None:
            reason[contradicted(d, C, S, options.buddy) & (reason == PASSED)] = BUDDY
        if options.analysis is not None:
            reason = cross_validated(d, S, reason, options.analysis)
        residual, error = residuals(d, S, reason == PASSED)
        predicted = y - residual
    values = {
        "background": mean, "spread": spread, "departure": departure, "predicted": predicted,
        "error": error, "residual": (y - predicted) / error,
    }  # fmt: skip

    return reason, values


def moments(prior: "Prior", likelihood: Likelihood) -> tuple[np.ndarray, np.ndarray]:
    """The mean and the covariance of the observed values under the prior, without their errors.

    Exact for linear operators; of draws from the prior for others, whose covariance is diagonal.
    """

    covariance = prior.climatology.covariance(likelihood.shape[0], torch.float64)
    zero = torch.zeros(1, *likelihood.shape, dtype=torch.float64)
    if not likelihood.linear:
        generator = torch.Generator().manual_seed(0)
        values = []
        for size in [32] * (DRAWS // 32):
            noise = torch.randn((size, *likelihood.shape), generator=generator, dtype=torch.float64)
            values.append(likelihood.H(covariance.sample(noise)))
        drawn = torch.cat(values).cpu().numpy()
        return drawn.mean(0), np.diag(drawn.var(0))

    offset = likelihood.H(zero)[0]
    rows = []
    for part in torch.eye(len(likelihood), dtype=torch.float64).split(64):
        rows.append(likelihood.H(covariance.apply(lambda e: e, likelihood.adjoint(part))) - offset)
    C = torch.cat(rows).cpu().numpy()

    return offset.cpu().numpy(), (C + C.T) / 2


def contradicted(d: np.ndarray, C: np.ndarray, S: np.ndarray, threshold: float) -> np.ndarray:
    """Which values most of their neighbours contradict, see the module's head."""

    variance, spread = np.diag(S), np.sqrt(np.clip(np.diag(C), 1e-300, None))
    correlation = np.abs(C / spread / spread[:, None])
    np.fill_diagonal(correlation, 0.0)
    number = min(NEIGHBOURS, len(d) - 1)
    if number < FEWEST:
        return np.zeros(len(d), dtype=bool)
    near = np.argpartition(-correlation, number - 1, axis=1)[:, :number]
    rows = np.arange(len(d))[:, None]
    asked = correlation[rows, near] >= CORRELATED
    slope = C[rows, near] / variance[near]
    apart = d[:, None] - slope * d[near]
    expected = np.sqrt(variance[:, None] - slope * C[rows, near])
    against = (np.abs(apart) > threshold * expected) & asked

    return (asked.sum(1) >= FEWEST) & (2 * against.sum(1) > asked.sum(1))


def cross_validated(
    d: np.ndarray, S: np.ndarray, reason: np.ndarray, threshold: float
) -> np.ndarray:
    """The reasons after the check against the analysis of the others, see the module's head."""

    reason = reason.copy()
    for _ in range(3):
        before = reason.copy()
        while (kept := np.flatnonzero(reason == PASSED)).size > 1:
            inverse = inverted(S[np.ix_(kept, kept)])
            root = np.sqrt(np.diag(inverse))
            z = np.abs(inverse @ d[kept]) / root
            over = np.flatnonzero(z > threshold)
            if not len(over):
                break
            # The worst of those that speak of the same: a good value beside a bad one looks bad.
            linked = np.abs(inverse[np.ix_(over, over)]) / root[over] / root[over][:, None] > APART
            worst = over[(np.where(linked, z[over], 0.0).max(1) <= z[over])]
            reason[kept[worst]] = ANALYSIS
        residual, error = residuals(d, S, reason == PASSED)
        reason[(reason != PASSED) & (np.abs(residual) <= threshold * error)] = PASSED
        if (reason == before).all():
            break

    return reason


def residuals(d: np.ndarray, S: np.ndarray, kept: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Distances from the analysis of the kept others, and their standard deviations."""

    residual, error = d.copy(), np.sqrt(np.diag(S))
    mine, out = np.flatnonzero(kept), np.flatnonzero(~kept)
    if not len(mine):
        return residual, error
    inverse = inverted(S[np.ix_(mine, mine)])
    precision = np.diag(inverse)
    residual[mine], error[mine] = (inverse @ d[mine]) / precision, np.sqrt(1 / precision)
    if len(out):
        across = S[np.ix_(out, mine)]
        gain = across @ inverse
        residual[out] = d[out] - gain @ d[mine]
        variance = np.diag(S)[out] - (gain * across).sum(1)
        error[out] = np.sqrt(np.clip(variance, 1e-12 * np.diag(S)[out], None))

    return residual, error


def inverted(S: np.ndarray) -> np.ndarray:
    """The inverse of a covariance of innovations.

    Raises:
        ValueError: If rounding has made it singular.
    """

    try:
        factor = np.linalg.cholesky(S)
    except np.linalg.LinAlgError as error:
        raise ValueError(
            f"the covariance of the {len(S)} innovations is singular: several observations tell "
            f"the same, and their std is negligible; remove duplicates or give a larger std"
        ) from error
    root = np.linalg.solve(factor, np.eye(len(S)))

    return root.T @ root
