"""What surrounds the network: in a step of sampling, in a step of training, and in its inputs.

All times are processor times with one thread, the best of several rounds in which the parts take
turns, so that other work on the machine disturbs them little.
"""

import copy
import dataclasses
import functools
import math
import statistics
import tempfile
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
import xarray as xr
from torch import Tensor

from dynamics.layout import Layout

from ..climatology import Climatology
from ..data import Batches, NoiseLevels, Windows, open_dataset
from ..denoiser import broadcast
from ..optimiser import Muon, split_parameters
from ..prior import Prior
from ..training import TrainingOptions, split_members, train
from ..window import WindowDenoiser
from .sampling import clock


def best(work: dict[str, Callable[[], object]], rounds: int) -> dict[str, float]:
    """The shortest time of each piece of work over rounds in which they take turns."""

    times = dict.fromkeys(work, math.inf)
    for function in work.values():
        function()
    for _ in range(rounds):
        for name, function in work.items():
            start = clock()
            function()
            times[name] = min(times[name], clock() - start)

    return times


@dataclass
class Part:
    """A part of a guided step, with everything that it contains.

    Attributes:
        name: What it is.
        seconds: Its time, that of the parts before it included.
        share: What is not the network's own, in shares of the part.
    """

    name: str
    seconds: float
    share: float


def composition(
    prior: Prior,
    observations: Any,
    times: Any,
    members: int = 4,
    s: float = 0.5,
    rounds: int = 5,
) -> list[Part]:
    """The time of a guided step, from the bare network outwards.

    The bare network sees as many windows as the step, its inputs made beforehand.

    Arguments:
        prior: A prior of fields, with a network.
        observations: The observations.
        times: The times of the trajectory.
        members: The number of members.
        s: The noise level.
        rounds: The number of rounds.

    Raises:
        ValueError: If the prior has no network.
    """

    from ..guidance import guide
    from ..langevin import Langevin
    from ..sampling import MemberNoise
    from ..trajectory import TrajectoryDenoiser

    length, climatology, window = len(times), prior.climatology, prior.denoiser
    trajectory = prior.trajectory(length)
    if window is None or not isinstance(trajectory, TrajectoryDenoiser):
        raise ValueError("the overhead is that over a network, but the prior is Gaussian")
    likelihood = observations.likelihood(prior.layout, times)
    likelihood = likelihood.normalise(climatology.mean, climatology.scale)
    guided = guide("static", trajectory, likelihood, climatology.covariance(length))
    langevin = Langevin.for_fields(s_min=s / 2, s_max=2 * s)

    shape = (length, *prior.layout.shape)
    noise = MemberNoise(0, range(members), 0)
    x = math.sqrt(1 + s**2) * noise(shape)
    windows = torch.cat([x[:, i : i + window.window] for i in trajectory.starts])
    inputs = recorded_inputs(window, windows, s)

    with torch.no_grad():
        times_of = best(
            {
                "network alone": lambda: window.network(*inputs),
                "window denoiser": lambda: window.denoise(windows, s),
                "trajectory denoiser": lambda: trajectory.denoise(x, s),
                "guided step": lambda: guided.analyse(x, s),
                "guided step + Langevin steps": lambda: langevin.correct(guided, x, s, noise),
            },
            rounds,
        )
    bare = times_of["network alone"]
    parts = []
    for name, seconds in times_of.items():
        network = (1 + langevin.steps) * bare if "Langevin" in name else bare
        parts.append(Part(name, seconds, 1 - network / seconds))

    return parts


@dataclass
class Solve:
    """The guidance of elementwise functions of affine observations, per member and noise level.

    Attributes:
        s: The noise level.
        shared: The time of an analysis and of a Langevin step, the network left out, with one
            factorisation for each member in observation space.
        iterative: The same by conjugate gradients over states.
        difference: The largest difference of the guided means, in standard deviations of the state.
    """

    s: float
    shared: float
    iterative: float
    difference: float


def solves(
    prior: Prior,
    observations: Any,
    times: Any,
    members: int = 4,
    levels: Sequence[float] = (0.03, 0.3, 3.0),
    rounds: int = 2,
) -> list[Solve]:
    """Compares the two ways to solve for saturating observations.

    Arguments:
        prior: A prior, whose network is not evaluated.
        observations: Observations of an elementwise function.
        times: The times of the trajectory.
        members: The number of members.
        levels: The noise levels.
        rounds: The number of rounds.

    Raises:
        ValueError: If the observations are not of that form.
    """

    from ..denoiser import GaussianDenoiser
    from ..guidance.static import StaticGuidance
    from ..sampling import MemberNoise

    climatology, length = prior.climatology, len(times)
    covariance = climatology.covariance(length)
    likelihood = observations.likelihood(prior.layout, times)
    likelihood = likelihood.normalise(climatology.mean, climatology.scale)
    if likelihood.linear or likelihood.parts is None:
        raise ValueError(f"expected an elementwise function of the state, got {likelihood}")
    general = copy.copy(likelihood)
    general.parts = None
    ways = {
        name: StaticGuidance(GaussianDenoiser(covariance), each, covariance)
        for name, each in (("shared", likelihood), ("iterative", general))
    }
    noise = MemberNoise(0, range(members), 0)
    background = covariance.sample(noise(covariance.shape))
    rows = []
    for s in levels:
        means: dict[str, Tensor] = {}

        def step(name: str, s: float = s, means: dict[str, Tensor] = means) -> None:
            analysis = ways[name].update(background, s)
            move = ways[name].metric(analysis, 4.0).move((analysis.mean - background) / s, noise)
            move.combine(torch.ones(members), torch.ones(members))
            means[name] = analysis.mean

        with torch.no_grad():
            seconds = best({name: functools.partial(step, name) for name in ways}, rounds)
        difference = float((means["shared"] - means["iterative"]).abs().max())
        rows.append(
            Solve(s, seconds["shared"] / members, seconds["iterative"] / members, difference)
        )

    return rows


def solves_table(rows: Sequence[Solve]) -> str:
    """A Markdown table."""

    lines = [
        "| s | shared, ms per member | conjugate gradients | ratio | largest difference of means |",
        "|---" * 5 + "|",
    ]
    lines += [
        f"| {r.s:g} | {1e3 * r.shared:.1f} | {1e3 * r.iterative:.1f} | "
        f"{r.iterative / r.shared:.1f} | {r.difference:.1g} |"
        for r in rows
    ]

    return "\n".join(lines)


def recorded_inputs(window: WindowDenoiser, x: Tensor, s: float) -> tuple[Any, ...]:
    """What a window denoiser gives its network for windows `(B, window, channel, *space)`."""

    seen: list[tuple[Any, ...]] = []
    hook = window.network.register_forward_pre_hook(lambda _, arguments: seen.append(arguments))
    try:
        with torch.no_grad():
            window.denoise(x, s)
    finally:
        hook.remove()
    if not seen:
        raise ValueError(f"the network is not evaluated at the noise level {s:g}: choose another")

    return seen[0]


def composition_table(parts: Sequence[Part]) -> str:
    """A Markdown table."""

    lines = ["| part | ms | not the network |", "|---|---|---|"]
    lines += [f"| {p.name} | {1e3 * p.seconds:.0f} | {100 * p.share:.1f} % |" for p in parts]

    return "\n".join(lines)


@dataclass
class Throughput:
    """Processor times of a training step, measured in turns.

    Attributes:
        batch: The number of windows of a step.
        bare: Seconds per step of a bare loop over the network, one for each turn.
        trained: The same of `sda.train`.
    """

    batch: int
    bare: list[float]
    trained: list[float]

    @property
    def ratios(self) -> np.ndarray:
        """The throughput of `sda.train` over the bare loop's, of each pair of turns, sorted."""
        return np.sort(np.array(self.bare) / np.array(self.trained))

    def __str__(self) -> str:
        low, middle, high = (100 * q for q in np.quantile(self.ratios, [0.25, 0.5, 0.75]))
        fastest = 100 * min(self.bare) / min(self.trained)
        rows = {
            name: f"{self.batch / statistics.median(times):.2f} | {self.batch / min(times):.2f}"
            for name, times in (("bare", self.bare), ("trained", self.trained))
        }
        return (
            f"| loop | windows / s, median turn | fastest turn | of the bare loop's, median of "
            f"{len(self.bare)} pairs of turns (quartiles) | fastest over fastest |\n"
            f"|---|---|---|---|---|\n"
            f"| bare | {rows['bare']} | 100 % | 100 % |\n"
            f"| sda.train | {rows['trained']} | {middle:.1f} % ({low:.1f} to {high:.1f} %) | "
            f"{fastest:.1f} % |"
        )


def throughput(
    dataset: xr.Dataset | str | Path,
    options: TrainingOptions,
    turns: int = 12,
    steps: int = 4,
    **arguments: Any,
) -> Throughput:
    """Compares `sda.train` with a bare loop: the same batches, network and optimiser, no more.

    In one run of `sda.train` the bare loop, with a network of its own, takes a turn after every
    few steps. What happens once, as the fit of the climatology and the report at the end, is in no
    turn, and what disturbs the machine disturbs both.

    Arguments:
        dataset: Trajectories.
        options: The options of training; their number of steps does not matter.
        turns: The number of turns of each; one more before them warms up.
        steps: The number of steps in a turn.
        arguments: Arguments of `sda.train`.

    Raises:
        ValueError: If there is no turn or no step.
    """

    from ..compat import import_lightning

    import_lightning()
    from lightning.pytorch import Callback

    if turns < 1 or steps < 1:
        raise ValueError(f"expected turns and steps of at least 1, got {turns} and {steps}")
    bare = bare_loop(dataset, options)
    times: dict[str, list[float]] = {"bare": [], "trained": []}

    class Turns(Callback):
        count, start = 0, 0.0

        def on_train_start(self, trainer: Any, module: Any) -> None:
            self.start = clock()

        def on_train_batch_end(self, *_: Any) -> None:
            self.count += 1
            if self.count % steps:
                return
            times["trained"].append((clock() - self.start) / steps)
            start = clock()
            bare(steps)
            times["bare"].append((clock() - start) / steps)
            self.start = clock()

    # The last step writes a checkpoint: it is in no turn.
    count = (turns + 1) * steps + 1
    with tempfile.TemporaryDirectory() as folder:
        train(
            dataset, Path(folder) / "prior", dataclasses.replace(options, steps=count),
            device="cpu", checkpoint_every=10**9, progress=False, callbacks=[Turns()], **arguments,
        )  # fmt: skip

    return Throughput(options.batch, times["bare"][1:], times["trained"][1:])


def bare_loop(dataset: xr.Dataset | str | Path, options: TrainingOptions) -> Callable[..., None]:
    """The shortest training loop: batches, denoising error, gradient, clipping, optimiser.

    Returns:
        A function of the number of steps and, optionally, of an iterator over the batches.
    """

    dataset = open_dataset(dataset)
    layout = Layout.from_dataset(dataset)
    members, _ = split_members(dataset.sizes["member"], options.held_out)
    climatology = Climatology.fit(
        dataset.isel(member=members), options.climatology_window or options.window, layout=layout
    )
    denoiser = WindowDenoiser(
        climatology, options.window, options.network, options.preconditioning,
        options.levels.tail, None, options.advection, options.incompressible,
    )  # fmt: skip
    denoiser.precision = getattr(torch, options.precision)
    windows = Windows(dataset, layout, options.window, members)
    batches = Batches(windows, climatology, options.batch, options.seed, levels=options.levels)
    optimiser = Muon(*split_parameters(denoiser.network), options.rate, options.adam_rate)

    def loop(steps: int, given: Iterator[tuple[Tensor, Tensor, Tensor]] | None = None) -> None:
        for index in range(steps):
            x, noise, s = batches[index] if given is None else next(given)
            error = denoiser.denoise(x + broadcast(s, x) * noise, s) - x
            loss = (error.square().flatten(1).mean(1) / denoiser.residual_variance(s)).mean()
            optimiser.zero_grad()
            loss.backward()
            torch.nn.utils.clip_grad_norm_(denoiser.network.parameters(), options.clip)
            optimiser.step()

    return loop


def small_dataset(members: int = 8, length: int = 24, size: int = 32) -> xr.Dataset:
    """Kolmogorov flow in small, at a low resolution: enough to time a loop."""

    from dynamics import KolmogorovFlow

    flow = KolmogorovFlow(size=size, resolution=size)

    return flow.simulate(members, length, spinup=8, seed=0, progress=False)


@dataclass
class Errors:
    """Held-out denoising errors of two preconditionings at the same training budget.

    Attributes:
        rows: For each noise level `s`: `gaussian`, `wiener` and `karras`, mean squared errors.
        parameters: The number of parameters of each network.
        seconds: The training time of each.
    """

    rows: list[dict[str, float]]
    parameters: dict[str, int]
    seconds: dict[str, float]


def preconditioning(
    dataset: xr.Dataset | str | Path, options: TrainingOptions, **arguments: Any
) -> Errors:
    """Trains with Wiener-residual and with plain preconditioning, all else the same.

    Physics channels are made of the Wiener estimate: they are left out of both.

    Arguments:
        dataset: Trajectories.
        options: The options of training, whose preconditioning does not matter.
        arguments: Arguments of `sda.train`, as `symmetries`.
    """

    rows: dict[float, dict[str, float]] = {}
    parameters, seconds = {}, {}
    for name in ("wiener", "karras"):
        chosen = dataclasses.replace(options, preconditioning=name, advection=False)
        with tempfile.TemporaryDirectory() as folder:
            prior = train(dataset, Path(folder) / name, chosen, **arguments)
        parameters[name], seconds[name] = prior.info["parameters"], prior.info["seconds"]
        for row in prior.info["denoising_error"]:
            each = rows.setdefault(row["s"], {"s": row["s"], "gaussian": row["gaussian"]})
            each[name] = row["network"]

    return Errors(list(rows.values()), parameters, seconds)


def preconditioning_table(errors: Errors) -> str:
    """A Markdown table: mean squared errors, and those of the networks over the Gaussian's."""

    lines = [
        "| s | Gaussian | Wiener residual | Karras | Wiener residual over Gaussian | "
        "Karras over Gaussian |",
        "|---" * 6 + "|",
    ]
    for row in errors.rows:
        gaussian, wiener, karras = row["gaussian"], row["wiener"], row["karras"]
        lines.append(
            f"| {row['s']:g} | {gaussian:.3g} | {wiener:.3g} | {karras:.3g} | "
            f"{wiener / gaussian:.3f} | {karras / gaussian:.3f} |"
        )

    return "\n".join(lines)


def kolmogorov_options(**options: Any) -> TrainingOptions:
    """Options of training for Kolmogorov flow, as those of the shipped prior if none is given."""

    return TrainingOptions(**{
        "window": 9,
        "network": {"name": "gated", "width": 64, "depth": 6, "dilations": [1, 2]},
        "advection": True,
        "incompressible": True,
        "batch": 8,
        "levels": NoiseLevels(),
        "precision": "bfloat16",
        **options,
    })  # fmt: skip
