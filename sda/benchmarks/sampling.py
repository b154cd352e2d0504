"""What a member of a posterior costs, beside score-based data assimilation as published.

Both run in one process, with the same network on the same observations: this engine's defaults, and
the guidance of Rozet & Louppe (2023) with 256 steps and one Langevin correction each. Its loop is
the same all along, so that some of its steps say what all would take; its quality needs all of
them (`full`).

References:
    Score-based Data Assimilation (Rozet and Louppe, 2023), arXiv 2306.10574
"""

import copy
import dataclasses
import itertools
import math
import statistics
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch
import xarray as xr
from torch import Tensor

from ..prior import Prior
from .lorenz63 import METHODS as LORENZ63
from .lorenz63 import Method, sample

S_MAX, S_MIN = 100.0, 5e-3
PUBLISHED_STEPS = 256
PUBLISHED = "sda, published"
WINDOW5 = "sda, published, window of 5"


def published(gamma: float, tau: float) -> Method:
    """The guidance as published: each step is followed by one Langevin correction.

    Arguments:
        gamma: The variance of the guidance over `s²`.
        tau: The size of the corrections.
    """

    correction = {"metric": "identity", "steps": 1, "delta": tau, "s_min": 0.0, "s_max": 1e9}
    levels = {"steps": PUBLISHED_STEPS, "s_max": S_MAX, "s_min": S_MIN}

    return Method(
        {"name": "sda", "gamma": gamma}, correction, {"sampler": "ddim", "start": "noise", **levels}
    )


@dataclass(frozen=True)
class LowPrecision(Method):
    """A method that evaluates the network in bfloat16."""


KOLMOGOROV = {
    "static + Langevin (default)": Method({"name": "static"}, "default"),
    "static + Langevin, bfloat16": LowPrecision({"name": "static"}, "default"),
    "the same, 16 steps": LowPrecision({"name": "static"}, "default", {"steps": 16}),
    "static": Method({"name": "static"}),
    "static, bfloat16": LowPrecision({"name": "static"}),
    PUBLISHED: published(gamma=1e-2, tau=0.5),
}
LORENZ = {
    "hybrid + Langevin (default)": LORENZ63["hybrid + Langevin"],
    "flow-dependent + Langevin": LORENZ63["flow-dependent + Langevin"],
    "flow-dependent": LORENZ63["flow-dependent"],
    "static + Langevin": LORENZ63["static + Langevin"],
    PUBLISHED: published(gamma=3e-2, tau=0.25),
}


@dataclass
class Row:
    """What a method costs, and how good it is.

    Attributes:
        case, method: What was run.
        members: The number of members that was sampled.
        evaluations: The number of evaluations of the network by a member.
        vjps: The number of vector-Jacobian products of a member.
        seconds: The time of a member; processor time with one thread, else wall-clock time.
        quality: The fair CRPS, or W1 over its floor; NaN if only some of the steps were taken.
        extrapolated: Whether only some of the steps were taken.
    """

    case: str
    method: str
    members: int
    evaluations: float
    vjps: float
    seconds: float
    quality: float = math.nan
    extrapolated: bool = False


def clock() -> float:
    """Processor time with one thread, which other work does not disturb, else wall-clock time."""
    return time.process_time() if torch.get_num_threads() == 1 else time.perf_counter()


def cost(
    method: Method, prior: Prior, observations: Any, times: Any, members: int, seed: int = 0
) -> tuple[Row, Tensor]:
    """Samples an ensemble, with its cost.

    Returns:
        The cost, without a case and a name, and the ensemble in physical units.
    """

    if isinstance(method, LowPrecision) and prior.denoiser is not None:
        # A copy that shares the weights.
        window = copy.copy(prior.denoiser)
        window.precision = torch.bfloat16
        prior = copy.copy(prior)
        prior.denoiser = window
    start = clock()
    x, evaluations, vjps = sample(method, prior, observations, times, members, seed)
    seconds = (clock() - start) / members

    return Row("", "", members, evaluations, vjps, seconds), x


def extrapolated_cost(
    method: Method,
    prior: Prior,
    observations: Any,
    times: Any,
    members: int,
    some: int = 8,
    seed: int = 0,
) -> Row:
    """The cost of a method from a piece of its loop: the median time of a level, times the levels.

    The piece has the method's step size and starts at `s = 1`. Levels at which the network is not
    evaluated are counted as free.

    Arguments:
        method: The method, with `steps`, `s_max` and `s_min` in its sampler's options.
        prior, observations, times, members, seed: See `cost`.
        some: The number of steps of the piece.
    """

    steps, s_max, s_min = (method.sampler[name] for name in ("steps", "s_max", "s_min"))
    size = math.log(s_max / s_min) / steps
    ticks: list[float] = []
    levels = {
        "steps": some,
        "s_max": 1.0,
        "s_min": math.exp(-size * some),
        "progress": lambda done, total: ticks.append(clock()),
    }
    piece = dataclasses.replace(method, sampler={**method.sampler, **levels})
    start = clock()
    row, _ = cost(piece, prior, observations, times, members, seed)
    level = statistics.median(b - a for a, b in itertools.pairwise(ticks))
    before = max(0.0, ticks[0] - start - level)
    seen = steps + 1 if prior.denoiser is None else levels_seen(prior, steps, s_max, s_min)
    row.evaluations *= (steps + 1) / (some + 1)
    row.vjps *= (steps + 1) / (some + 1)
    row.seconds = (before + level * seen) / members
    row.extrapolated = True

    return row


def levels_seen(prior: Prior, steps: int, s_max: float, s_min: float) -> int:
    """The number of noise levels at which the network of a prior is evaluated."""

    from ..sampling import log_levels

    assert prior.denoiser is not None
    low, high = prior.denoiser.noise_range

    return int(sum(low <= s <= high for s in log_levels(steps, s_max, s_min).tolist()))


def run(
    case: str,
    methods: Mapping[str, Method],
    prior: Prior,
    observations: Any,
    times: Any,
    quality: Callable[[Tensor], float],
    members: int,
    few: int,
    full: bool = False,
    seed: int = 0,
    report: Callable[[Row], None] | None = None,
) -> list[Row]:
    """Runs methods side by side, each at its own setting.

    Arguments:
        case: A name.
        methods: The methods by name; those of `PUBLISHED_STEPS` steps are extrapolated.
        prior, observations, times: What the posterior is of.
        quality: The quality of an ensemble in physical units.
        members: The number of members.
        few: The number of members of extrapolated methods.
        full: Whether to take all steps of those too, with `few` members, for their quality.
        seed: The seed.
        report: A function called with each row.
    """

    rows = []
    for name, method in methods.items():
        if method.sampler.get("steps") == PUBLISHED_STEPS and not full:
            row = extrapolated_cost(method, prior, observations, times, few, seed=seed)
        else:
            count = few if method.sampler.get("steps") == PUBLISHED_STEPS else members
            # Once in small, for whatever is set up at the first call.
            piece = dataclasses.replace(method, sampler={**method.sampler, "steps": 2})
            cost(piece, prior, observations, times, 2, seed)
            row, x = cost(method, prior, observations, times, count, seed)
            row.quality = quality(x)
        row.case, row.method = case, name
        rows.append(row)
        if report:
            report(row)

    return rows


def kolmogorov(prior: Prior, members: int = 16, length: int = 16, **options: Any) -> list[Row]:
    """The methods on 8×8 block averages of Kolmogorov flow; the quality is the fair CRPS.

    Arguments:
        prior: A prior of Kolmogorov flow.
        members: The number of members.
        length: The number of states.
        options: Options of `run`, as `few` and `full`.
    """

    from .kolmogorov import make_observations, make_truth, system

    flow = system(prior.layout.shape[-1])
    truth = make_truth(0, length, flow)
    observations = make_observations("blocks", truth, 0)
    options = {"few": 2, **options}

    return run(
        "Kolmogorov, 8×8 averages", KOLMOGOROV, prior, observations, truth["time"].values,
        lambda x: crps_of(x, truth, prior), members, **options,
    )  # fmt: skip


def lorenz63(
    prior: Prior, case: str = "lo", members: int = 256, index: int = 0, **options: Any
) -> list[Row]:
    """The methods on noisy Lorenz-63; the quality is W1 over the exact-against-exact floor.

    Arguments:
        prior: A prior of the noisy Lorenz-63 system.
        case: A key of `sda.benchmarks.lorenz63.CASES`.
        members: The number of members.
        index: The number of the observation set.
        options: Options of `run`, as `full`.
    """

    from ..verification.scores import wasserstein1
    from .lorenz63 import oracle, twin

    exact = oracle(case, index)
    truth, observations = twin(case, index)
    options = {"few": members, **options}
    times = truth["time"].values
    floors: dict[int, float] = {}

    def quality(x: Tensor) -> float:
        if len(x) not in floors:
            floors[len(x)] = exact.floor(len(x))
        return wasserstein1(x, exact.reference) / floors[len(x)]

    name = f"Lorenz-63, {case}"
    rows = run(name, LORENZ, prior, observations, times, quality, members, **options)
    # What the published network costs, which sees 5 states: its time does not depend on weights.
    untrained = published_network(prior)
    row = extrapolated_cost(LORENZ[PUBLISHED], untrained, observations, times, 16)
    row.case, row.method = name, WINDOW5
    if report := options.get("report"):
        report(row)

    return [*rows, row]


def published_network(prior: Prior) -> Prior:
    """A prior with an untrained network as large as that of the paper: 5 states, 5 × 256."""

    from ..window import WindowDenoiser

    network = {"name": "mlp", "width": 256, "hidden": 256, "depth": 5}
    denoiser = WindowDenoiser(prior.climatology, 5, network).eval().requires_grad_(False)

    return Prior(prior.climatology, denoiser, "untrained")


def crps_of(x: Tensor, truth: xr.Dataset, prior: Prior) -> float:
    """The mean fair CRPS of an ensemble `(member, time, channel, *space)`."""

    from ..verification.scores import crps

    return float(crps(x.numpy(), prior.layout.to_array(truth)[0]).mean())


def table(rows: Sequence[Row]) -> str:
    """A Markdown table, with times relative to the published setting's.

    The first ratio is with the same network, the second with one as large as the published.
    """

    lines = [
        "| case | method | evaluations | VJPs | s per member | published / this | "
        "published network / this | CRPS, or W1 over floor |",
        "|---" * 8 + "|",
    ]

    def ratio(row: Row, method: str) -> str:
        slow = [r.seconds for r in rows if (r.case, r.method) == (row.case, method)]
        return f"{slow[0] / row.seconds:.3g}" if slow else "–"

    for row in rows:
        quality = "–" if math.isnan(row.quality) else f"{row.quality:.3f}"
        lines.append(
            f"| {row.case} | {row.method}{' (extrapolated)' if row.extrapolated else ''} | "
            f"{row.evaluations:.0f} | {row.vjps:.0f} | {row.seconds:.3g} | "
            f"{ratio(row, PUBLISHED)} | {ratio(row, WINDOW5)} | {quality} |"
        )

    return "\n".join(lines)
