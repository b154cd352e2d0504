"""Posteriors of the noisy Lorenz (1996) system against long chains on the exact density.

Forty variables are too many for a particle filter, but the transition density is known, and so is
that of a trajectory given observations: every second variable at every fourth step. The reference
are chains from an ensemble of weak-constraint 4D-Var analyses, accepted only if they agree.

The density of the first state is not known; the reference takes the Gaussian with the
climatological mean and covariance, which 20 observations of the first state leave little to say.
"""

import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
import xarray as xr
from safetensors.torch import load_file, save_file
from torch import Tensor

from dynamics import Lorenz96
from dynamics.random import normal

SEED = 1996
STD = 1.0
LENGTH = 33


def system() -> Lorenz96:
    """Lorenz-96 on 40 sites at dt = 0.05, with noise of variance dt in each step."""
    return Lorenz96(noise=True)


def twin(index: int, length: int = LENGTH, std: float = STD) -> tuple[xr.Dataset, Any]:
    """A truth, and observations of every second site at every fourth step."""

    from ..observation import Select, Subsample, observe

    truth = system().simulate(1, length, spinup=512, seed=SEED + index, progress=False)
    truth = truth.isel(member=0)
    operator = Select(every=4) >> Subsample({"site": 2})

    return truth, observe(truth, operator, std=std, seed=SEED + index)


@dataclass
class Oracle:
    """Draws of the reference chains.

    Attributes:
        trajectories: The draws, with shape `(member, time, channel, site)`.
        rhat: The largest split R-hat of any value; under 1.05 the chains agree.
        ess: The smallest effective sample size of any value.
    """

    trajectories: Tensor
    rhat: float
    ess: float


def oracle(
    index: int,
    length: int = LENGTH,
    std: float = STD,
    chains: int = 8,
    draws: int = 250,
    folder: str | Path = "runs/oracles",
) -> Oracle:
    """The reference's answer, kept in a file.

    Arguments:
        index: The number of the observation set.
        length: The number of states.
        std: The standard deviation of the observations.
        chains: The number of chains.
        draws: The number of draws of each chain, 2 proposals apart.
        folder: Where answers are kept.
    """

    from ..classical import stationary_states
    from ..polish import GaussianState, TrajectoryDensity
    from ..reference import hmc_reference

    path = Path(folder) / f"lorenz96_{length}_{std:g}_{index}_{chains}x{draws}.safetensors"
    if not path.exists():
        truth, observations = twin(index, length, std)
        layout = system().layout
        likelihood = observations.likelihood(layout, truth["time"].values)
        states = stationary_states(system(), 2**14, spinup=400, seed=SEED)
        density = TrajectoryDensity(system(), likelihood, GaussianState.fit(states))
        x = torch.from_numpy(layout.to_array(truth)).float()
        # Guesses are far from the truth, so that chains would find other modes if there were any.
        guesses = x + normal(SEED + index, range(chains), (length, *layout.shape), 401)
        reference = hmc_reference(density, guesses, draws, warmup=100, leapfrog=10, thin=2)
        path.parent.mkdir(parents=True, exist_ok=True)
        save_file(
            {
                "trajectories": reference.trajectories.contiguous(),
                "rhat": reference.rhat.max(),
                "ess": reference.ess.min(),
            },
            path,
        )
    tensors = load_file(path)

    return Oracle(tensors["trajectories"], float(tensors["rhat"]), float(tensors["ess"]))


@dataclass
class Row:
    """One method on one observation set.

    Attributes:
        index, method: What was run.
        crps: The mean CRPS against the truth.
        relative: The same over the reference's.
        spread_skill: The spread-skill ratio, 1 if calibrated.
        mean_error: The root mean square difference of the mean from the reference's, in standard
            deviations of the reference.
        std_ratio: The mean ratio of standard deviations to the reference's.
        log_dynamics: The mean of `log p(x_{2:L} | x_1)`.
        misfit: The standard deviation of `(y - H(x)) / std`.
        seconds: The processor time for all members.
    """

    index: int
    method: str
    crps: float
    relative: float
    spread_skill: float
    mean_error: float
    std_ratio: float
    log_dynamics: float
    misfit: float
    seconds: float


def score(index: int, method: str, x: Tensor, exact: Oracle, seconds: float) -> Row:
    """Scores an ensemble `(member, time, channel, site)` against truth and reference."""

    from ..verification.scores import crps, spread_skill

    truth, observations = twin(index, x.shape[1])
    layout = system().layout
    y = layout.to_array(truth)[0]
    likelihood = observations.likelihood(layout, truth["time"].values)
    reference = exact.trajectories
    own, best = (
        float(crps(e.numpy(), y).mean()) for e in (x, reference[:: max(1, len(reference) // 512)])
    )
    mean, std = reference.mean(0), reference.std(0)
    pairs = (x[:, :-1].flatten(0, 1), x[:, 1:].flatten(0, 1))
    misfit = (likelihood.y - likelihood.H(x)) / likelihood.std

    return Row(
        index=index,
        method=method,
        crps=own,
        relative=own / best,
        spread_skill=spread_skill(x.numpy(), y),
        mean_error=float(((x.mean(0) - mean) / std).square().mean().sqrt()),
        std_ratio=float((x.std(0) / std).mean()),
        log_dynamics=float(system().log_transition(*pairs).reshape(len(x), -1).sum(1).mean()),
        misfit=float(misfit.square().mean().sqrt()),
        seconds=seconds,
    )


def run(
    priors: Mapping[str, Any],
    methods: Mapping[str, Mapping[str, Any]],
    sets: int = 3,
    members: int = 64,
    polish: tuple[int, int] | None = None,
    folder: str | Path = "runs/oracles",
) -> list[Row]:
    """Runs `assimilate` with each prior and each method on several observation sets.

    Arguments:
        priors: Priors by name.
        methods: Options of `assimilate` by name.
        sets: The number of observation sets.
        members: The number of members.
        polish: Also polish each ensemble with so many proposals and leapfrog steps.
        folder: Where the reference's answers are kept.
    """

    from ..assimilation import assimilate
    from ..classical import stationary_states
    from ..polish import GaussianState
    from ..polish import polish as polish_samples

    layout = system().layout
    first = GaussianState.fit(stationary_states(system(), 2**14, spinup=400, seed=SEED))
    rows = []
    for index in range(sets):
        exact = oracle(index, folder=folder)
        truth, observations = twin(index)
        times = truth["time"].values
        step = max(1, len(exact.trajectories) // members)
        rows.append(score(index, "reference", exact.trajectories[::step], exact, 0.0))
        for (label, prior), (name, options) in (
            (a, b) for a in priors.items() for b in methods.items()
        ):
            start = time.process_time()
            posterior = assimilate(prior, observations, members, index, time=times, **options)
            seconds = time.process_time() - start
            x = torch.from_numpy(np.ascontiguousarray(layout.to_array(posterior)))
            rows.append(score(index, f"{label}, {name}", x, exact, seconds))
            if polish:
                start = time.process_time()
                polished = polish_samples(
                    system(), observations, x, first, *polish, seed=index
                ).samples
                assert isinstance(polished, Tensor)
                seconds += time.process_time() - start
                rows.append(score(index, f"{label}, {name} + polish", polished, exact, seconds))

    return rows


def table(rows: Sequence[Row]) -> str:
    """A Markdown table of the means over observation sets."""

    columns = [
        ("CRPS", "crps", "{:.3f}"),
        ("over the reference's", "relative", "{:.2f}"),
        ("spread-skill", "spread_skill", "{:.2f}"),
        ("mean error / std", "mean_error", "{:.2f}"),
        ("std ratio", "std_ratio", "{:.2f}"),
        ("log p(x)", "log_dynamics", "{:.0f}"),
        ("misfit", "misfit", "{:.2f}"),
        ("seconds", "seconds", "{:.1f}"),
    ]
    lines = [
        "| method | " + " | ".join(label for label, _, _ in columns) + " |",
        "|---" * (len(columns) + 1) + "|",
    ]
    for method in dict.fromkeys(row.method for row in rows):
        some = [row for row in rows if row.method == method]
        values = [
            form.format(np.mean([getattr(row, name) for row in some])) for _, name, form in columns
        ]
        lines.append(f"| {method} | " + " | ".join(values) + " |")

    return "\n".join(lines)
