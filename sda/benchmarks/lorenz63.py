"""Posteriors of the noisy Lorenz (1963) system against a converged particle smoother.

The cases "lo" and "hi" are those of Rozet & Louppe (2023): trajectories of 65 states at dt = 0.025,
of which the first component is observed, seldom and precisely or always and roughly. "wings" is
ours: the third component alone, which is the same on both wings of the attractor, so that each
trajectory is exactly as probable as its mirror image.

Two finite ensembles of the same distribution are a positive 1-Wasserstein distance apart. Each
distance is therefore given relative to that floor: the distance between as many exact draws as the
method has members and the reference ensemble.

References:
    Rozet, Louppe (2023), Score-based data assimilation, https://arxiv.org/abs/2306.10574
"""

import functools
import math
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import torch
import xarray as xr
from safetensors.torch import load_file, save_file
from torch import Tensor

from dynamics import Lorenz63

LENGTH = 65
REFERENCE = 1024
SEED = 2306


@dataclass(frozen=True)
class Case:
    """One kind of observations.

    Attributes:
        variable: The variable observed.
        every: The number of steps between two observed states.
        std: The standard deviation of the errors, in raw units.
    """

    variable: str
    every: int
    std: float


# The paper normalises x by 8: its standard deviations 0.05 and 0.25 are 0.4 and 2 in raw units.
CASES = {
    "lo": Case("x", 8, 0.4),
    "hi": Case("x", 1, 2.0),
    "wings": Case("z", 4, 1.0),
}


@dataclass(frozen=True)
class Method:
    """How a posterior is sampled.

    Attributes:
        guidance: The guidance's name and options.
        langevin: Langevin steps, a name, options of `Langevin`, or None.
        sampler: Options of `sda.sampling.sample`.
        polish: The number of proposals and leapfrog steps of the exact polish, or None.
        window5: Whether it needs the published window of 5.
    """

    guidance: Mapping[str, Any]
    langevin: str | Mapping[str, Any] | None = None
    sampler: Mapping[str, Any] = field(default_factory=dict)
    polish: tuple[int, int] | None = None
    window5: bool = False


FLOW = {"name": "flow_dependent", "pilots": 2}
HYBRID = {"name": "hybrid", "pilots": 2}
METHODS = {
    "static": Method({"name": "static"}),
    "static + Langevin": Method({"name": "static"}, "vectors"),
    "flow-dependent": Method(FLOW),
    "flow-dependent + Langevin": Method(FLOW, "vectors"),
    "hybrid + Langevin": Method(HYBRID, "vectors"),
    "hybrid + Langevin + polish": Method(HYBRID, "vectors", polish=(6, 3)),
    "the same, longer polish": Method(HYBRID, "vectors", polish=(8, 4)),
    # Moment matching per member without pilots.
    "mmps": Method({"name": "mmps"}),
    "mmps + Langevin": Method({"name": "mmps"}, "vectors"),
    "sda γ=0.03": Method({"name": "sda", "gamma": 0.03}),
    "sda γ=0.03 + Langevin": Method({"name": "sda", "gamma": 0.03}, "vectors"),
    # The published setting: 256 steps, one Langevin correction with τ = 0.25 each, window 5.
    "sda γ=0.03, 256 × (1 + 1)": Method(
        {"name": "sda", "gamma": 0.03},
        {"metric": "identity", "steps": 1, "delta": 0.25, "s_min": 0.0, "s_max": 1e9},
        {"sampler": "ddim", "steps": 256, "start": "noise"},
        window5=True,
    ),
}


def system() -> Lorenz63:
    """The noisy system of Rozet & Louppe (2023)."""
    return Lorenz63(dt=0.025, noise=True)


def twin(case: str, index: int) -> tuple[xr.Dataset, Any]:
    """A truth and its observations.

    Arguments:
        case: A key of `CASES`.
        index: The number of the observation set.

    Raises:
        ValueError: If the case is unknown.
    """

    from ..observation import Select, observe

    if case not in CASES:
        raise ValueError(f"unknown case {case!r}: expected one of {', '.join(CASES)}")
    setting = CASES[case]
    truth = system().simulate(1, LENGTH, spinup=1024, seed=SEED + index, progress=False)
    truth = truth.isel(member=0)
    operator = Select(variables=[setting.variable], every=setting.every)

    return truth, observe(truth, operator, std=setting.std, seed=SEED + index)


@functools.lru_cache(maxsize=2)
def stationary_pool(particles: int, seed: int) -> Tensor:
    """States of the attractor, the same for all observation sets."""

    from ..classical import stationary_states

    return stationary_states(system(), particles, seed=seed)


@dataclass
class Oracle:
    """Exact draws, and what two finite ensembles of exact draws differ by.

    Attributes:
        reference: Draws that every method is compared with, `(member, time, channel)`.
        exact: Draws of another run of the smoother, in the place of a method.
        ancestors: The number of distinct first states among the particles.
        log_evidence: The two runs' estimates of `log p(y)`.
    """

    reference: Tensor
    exact: Tensor
    ancestors: int
    log_evidence: tuple[float, float]

    def floor(self, members: int) -> float:
        """The mean distance of `members` exact draws from the reference."""

        from ..verification.scores import wasserstein1

        parts = self.exact.split(members)[: max(1, len(self.exact) // members)]
        return float(np.mean([wasserstein1(part, self.reference) for part in parts]))


def oracle(
    case: str, index: int, folder: str | Path = "runs/oracles", particles: int = 2**20
) -> Oracle:
    """The particle smoother's answer, from two independent runs, kept in a file.

    Arguments:
        case: A key of `CASES`.
        index: The number of the observation set.
        folder: Where answers are kept.
        particles: The number of particles of each run.
    """

    from ..classical import ParticleSmoother

    path = Path(folder) / f"lorenz63_{case}_{index}_{particles}.safetensors"
    if not path.exists():
        truth, observations = twin(case, index)
        likelihood = observations.likelihood(system().layout, truth["time"].values)
        runs = []
        for seed in (0, 1):
            smoother = ParticleSmoother(
                system(), REFERENCE, particles, initial=stationary_pool(particles, SEED + seed)
            )
            runs.append(smoother.sample(likelihood, seed=2 * index + seed))
        path.parent.mkdir(parents=True, exist_ok=True)
        save_file(
            {
                "reference": runs[0].trajectories.contiguous(),
                "exact": runs[1].trajectories.contiguous(),
                "ancestors": torch.tensor([run.ancestors for run in runs]),
                "log_evidence": torch.tensor([run.log_evidence for run in runs]).double(),
            },
            path,
        )
    tensors = load_file(path)

    return Oracle(
        reference=tensors["reference"],
        exact=tensors["exact"],
        ancestors=int(tensors["ancestors"].min()),
        log_evidence=tuple(tensors["log_evidence"].tolist()),
    )


@dataclass
class Row:
    """One method on one observation set.

    Attributes:
        case, index, method: What was run.
        w1: The 1-Wasserstein distance from the reference.
        ratio: The same over the exact-against-exact floor.
        log_dynamics: The mean of `log p(x_{2:L} | x_1)`.
        log_likelihood: The mean of `log p(y | x)`.
        seconds: The processor time for all members.
        evaluations: The number of network evaluations of a member.
        vjps: The number of vector-Jacobian products of a member.
        gradients: The number of gradients of the exact density of a member.
        modes: The fraction of members on the wing x > 0 in the middle of the trajectory.
        modes_error: The largest difference in weight of any sequence of wings from the reference.
    """

    case: str
    index: int
    method: str
    w1: float
    ratio: float
    log_dynamics: float
    log_likelihood: float
    seconds: float = 0.0
    evaluations: float = 0.0
    vjps: float = 0.0
    gradients: int = 0
    modes: float = 0.0
    modes_error: float = 0.0


def score(case: str, index: int, method: str, x: Tensor, exact: Oracle, floor: float) -> Row:
    """Scores an ensemble `(member, time, channel)` against the oracle."""

    from ..verification.scores import wasserstein1

    truth, observations = twin(case, index)
    likelihood = observations.likelihood(system().layout, truth["time"].values)
    w1 = wasserstein1(x, exact.reference)
    pairs = (x[:, :-1].flatten(0, 1), x[:, 1:].flatten(0, 1))
    weights, expected = wing_weights(x), wing_weights(exact.reference)
    keys = set(weights) | set(expected)

    return Row(
        case=case,
        index=index,
        method=method,
        w1=w1,
        ratio=w1 / floor,
        log_dynamics=float(system().log_transition(*pairs).reshape(len(x), -1).sum(1).mean()),
        log_likelihood=float(likelihood.log_prob(x).mean()),
        modes=float((x[:, LENGTH // 2, 0] > 0).double().mean()),
        modes_error=max(abs(weights.get(k, 0) - expected.get(k, 0)) for k in keys),
    )


def wing_weights(x: Tensor) -> dict[tuple[bool, ...], float]:
    """The weight of each sequence of wings, read off the sign of `x` every 16 states."""

    signs = (x[:, ::16, 0] > 0).tolist()
    weights: dict[tuple[bool, ...], float] = {}
    for key in map(tuple, signs):
        weights[key] = weights.get(key, 0.0) + 1 / len(signs)

    return weights


def sample(
    method: Method,
    prior: Any,
    observations: Any,
    time_values: np.ndarray,
    members: int,
    seed: int,
) -> tuple[Tensor, float, float]:
    """Samples a posterior with one of the methods.

    Returns:
        The trajectories in physical units, and the evaluations and vector-Jacobian products of a
        member.
    """

    from ..assimilation import langevin_steps
    from ..guidance import guide
    from ..langevin import Langevin
    from ..sampling import sample as draw

    length = len(time_values)
    climatology = prior.climatology
    likelihood = observations.likelihood(prior.layout, time_values)
    likelihood = likelihood.normalise(climatology.mean, climatology.scale)
    options = dict(method.guidance)
    guided = guide(
        options.pop("name"),
        prior.trajectory(length),
        likelihood,
        climatology.covariance(length),
        **options,
    )
    if isinstance(method.langevin, Mapping):
        langevin: Langevin | None = Langevin(**method.langevin)
    else:
        langevin = langevin_steps(method.langevin, bool(prior.layout.dims), prior.langevin)
    x = draw(
        guided, (length, *prior.layout.shape), seed, members, langevin=langevin, **method.sampler
    )

    return climatology.denormalise(x), guided.evaluations / members, guided.vjps / members


def run(
    case: str,
    prior: Any,
    methods: Sequence[str] = tuple(METHODS),
    prior5: Any = None,
    sets: int = 5,
    members: int = 256,
    seed: int = 0,
    folder: str | Path = "runs/oracles",
    report: Callable[[Row], None] | None = None,
    first: int = 0,
) -> list[Row]:
    """Runs methods on several observation sets.

    Arguments:
        case: A key of `CASES`.
        prior: The prior.
        methods: Keys of `METHODS`, or "exact".
        prior5: The prior with the published window of 5; methods that need it are left out
            without it.
        sets: The number of observation sets.
        members: The number of members.
        seed: The seed.
        folder: Where the oracle's answers are kept.
        report: A function called with each row.
        first: The index of the first set.

    Raises:
        ValueError: If the case or a method is unknown.
    """

    from ..classical import stationary_states
    from ..polish import polish

    if unknown := [name for name in methods if name not in METHODS and name != "exact"]:
        raise ValueError(f"unknown methods {unknown}: expected among {list(METHODS)}")
    rows: list[Row] = []
    states: Tensor | None = None
    for index in range(first, first + sets):
        exact = oracle(case, index, folder)
        floor = exact.floor(members)
        truth, observations = twin(case, index)
        times = truth["time"].values
        unpolished: dict[str, tuple[Tensor, float, float, float]] = {}
        for name in methods:
            if name == "exact":
                row = score(case, index, name, exact.exact[:members], exact, floor)
                rows.append(row)
                if report:
                    report(row)
                continue
            method = METHODS[name]
            if method.window5 and prior5 is None:
                continue
            chosen = prior5 if method.window5 else prior
            # A polish starts from the ensemble that the same method without it gives.
            key = f"{method.guidance}{method.langevin}{method.sampler}{method.window5}"
            if key not in unpolished:
                start = time.process_time()
                try:
                    x, evaluations, vjps = sample(
                        method, chosen, observations, times, members, seed + index
                    )
                except FloatingPointError:
                    # A member without bounds is infinitely far from the posterior.
                    rows.append(Row(case, index, name, math.inf, math.inf, -math.inf, -math.inf))
                    if report:
                        report(rows[-1])
                    continue
                unpolished[key] = (x, time.process_time() - start, evaluations, vjps)
            x, seconds, evaluations, vjps = unpolished[key]
            gradients = 0
            if method.polish:
                if states is None:
                    # Part of a climatology, made once: it is the same for all observations.
                    states = stationary_states(system(), 2**19, seed=SEED + 2)
                start = time.process_time()
                proposals, leapfrog = method.polish
                likelihood = observations.likelihood(system().layout, times)
                polished = polish(
                    system(), likelihood, x, states, proposals, leapfrog, seed=seed + index
                )
                seconds += time.process_time() - start
                assert isinstance(polished.samples, Tensor)
                x, gradients = polished.samples, polished.gradients
            row = score(case, index, name, x, exact, floor)
            row.seconds, row.gradients = seconds, gradients
            row.evaluations, row.vjps = evaluations, vjps
            rows.append(row)
            if report:
                report(row)

    return rows


def table(rows: Sequence[Row]) -> str:
    """A Markdown table: for each case and method the mean over sets, and the largest W1 ratio."""

    lines = [
        "| case | method | W1 / floor, mean | largest | log p(x) | log p(y given x) | weight of a "
        "wing | seconds | evaluations | VJPs | gradients |",
        "|---|---|---|---|---|---|---|---|---|---|---|",
    ]
    for case, method in dict.fromkeys((row.case, row.method) for row in rows):
        some = [row for row in rows if (row.case, row.method) == (case, method)]

        def mean(name: str, some: list[Row] = some) -> float:
            return float(np.mean([getattr(row, name) for row in some]))

        lines.append(
            f"| {case} | {method} | {mean('ratio'):.2f} | {max(r.ratio for r in some):.2f} | "
            f"{mean('log_dynamics'):.1f} | {mean('log_likelihood'):.1f} | {mean('modes'):.2f} | "
            f"{mean('seconds'):.2f} | {mean('evaluations'):.0f} | {mean('vjps'):.0f} | "
            f"{mean('gradients'):.0f} |"
        )

    return "\n".join(lines)
