"""Training of window networks.

The loss is the denoising error relative to that of the Wiener filter,

.. math:: E_{x, \\varepsilon, s} \\left[
    \\frac{\\| D(x + s \\, \\varepsilon, s) - x \\|^2}{n \\, r(s)^2} \\right],

so the Gaussian prior scores one at every noise level, and what a network has learned beyond linear
is what it scores below one. Lightning runs the loop, on as many processes as there are devices (see
`sda.processes`); checkpoints are safetensors and JSON, and a run that was killed goes on as if it
had not been, also with another number of processes.
"""

import copy
import json
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import torch
import xarray as xr
from safetensors.torch import load_file
from torch.utils.data import DataLoader

from dynamics.layout import Layout

from .cf.anomalies import Anomalies
from .cf.prepare import Prepared
from .cf.series import for_training
from .climatology import Climatology
from .context import Context
from .data import Batches, NoiseLevels, Prefetch, Windows, open_dataset
from .exposure import calibrate
from .langevin import Langevin
from .prior import Prior
from .processes import check_processes, lightning_strategy
from .static import static_fields
from .symmetry import Symmetry
from .window import WindowDenoiser

# Twin experiments by which the exposure correction is found.
TWINS = 24
REPORT_LEVELS = (0.003, 0.01, 0.03, 0.1, 0.3, 1.0, 3.0, 10.0)


@dataclass(frozen=True)
class Schedule:
    """The learning rate over the steps: warm-up, constant, decay to zero.

    Arguments:
        steps: The number of steps.
        warmup: The number of steps over which the rate rises.
        decay: The share of the steps, at the end, over which the rate falls.
    """

    steps: int
    warmup: int = 100
    decay: float = 0.3

    def __post_init__(self) -> None:
        if self.steps < 1 or self.warmup < 0 or not 0 <= self.decay <= 1:
            raise ValueError(
                f"expected steps ≥ 1, warmup ≥ 0 and decay in [0, 1], got steps={self.steps}, "
                f"warmup={self.warmup}, decay={self.decay}"
            )

    def __call__(self, step: int) -> float:
        """The factor on the learning rate at a step."""

        rise = min(1.0, (step + 1) / (self.warmup + 1))
        last = max(1.0, self.decay * self.steps)
        fall = min(1.0, (self.steps - step) / last)

        return rise * max(fall, 0.0)


@dataclass(frozen=True)
class TrainingOptions:
    """What a training run depends on, besides the data.

    Arguments:
        window: The number of frames of a window.
        network: The network's name and options.
        preconditioning: "wiener" or "karras".
        advection: Whether the network sees advection channels.
        incompressible: Whether the network's output is a streamfunction.
        static: Variables of the dataset, without time, that the network sees, or names of
            `sda.static.FEATURES` (default: latitude and land where there are any).
        climatology_window: The number of frames of the climatology (default: those of the window).
        climatology: Options of its covariance, `kind`, `rank` and `coupled` of `Climatology.fit`.
        context: Variables of the dataset that states are given and that are not modelled, see
            `sda.context`.
        lags: The earlier and the later times of the context that states are regressed on.
        steps: The number of optimiser steps.
        batch: The number of windows per step, over all processes.
        rate: Muon's learning rate.
        adam_rate: AdamW's learning rate.
        warmup: The number of warm-up steps.
        decay: The share of the steps over which the rate falls to zero.
        clip: The largest norm of the gradient.
        ema: The decay rate of the average of the weights that becomes the prior.
        levels: The distribution of noise levels.
        held_out: The share of the members, at the end, that are never trained on.
        seed: The seed of weights, windows and noise.
        precision: "float32" or "bfloat16", of the network alone.
        calibrate: Whether the exposure correction of the prior is calibrated after training, see
            `sda.exposure`.
        langevin: Options of Langevin steps that suit the prior in smoothing, see `Prior`.
    """

    window: int
    network: Mapping[str, Any] = field(default_factory=lambda: {"name": "gated"})
    preconditioning: str = "wiener"
    advection: bool = False
    incompressible: bool = False
    static: Sequence[str] | None = None
    climatology_window: int | None = None
    climatology: Mapping[str, Any] = field(default_factory=dict)
    context: Sequence[str] = ()
    lags: int = 1
    steps: int = 10_000
    batch: int = 16
    rate: float = 0.01
    adam_rate: float = 1e-3
    warmup: int = 100
    decay: float = 0.3
    clip: float = 1.0
    ema: float = 0.999
    levels: NoiseLevels = field(default_factory=NoiseLevels)
    held_out: float = 0.1
    seed: int = 0
    precision: str = "float32"
    calibrate: bool = False
    langevin: Mapping[str, Any] = field(default_factory=dict)

    def __post_init__(self) -> None:
        if not 0 < self.held_out < 1:
            raise ValueError(f"held_out must be between 0 and 1, got {self.held_out}")
        if not 0 <= self.ema < 1:
            raise ValueError(f"ema must be in [0, 1), got {self.ema}")
        if self.precision not in ("float32", "bfloat16"):
            raise ValueError(f"precision must be float32 or bfloat16, got {self.precision!r}")
        for name in ("window", "steps", "batch"):
            if getattr(self, name) < 1:
                raise ValueError(f"{name} must be at least 1, got {getattr(self, name)}")
        if self.context and self.calibrate:
            raise ValueError(
                "a prior with a context has no unconditional samples to calibrate it by: leave out "
                "calibrate"
            )
        try:
            Langevin(**self.langevin)
        except TypeError as error:
            raise ValueError(f"langevin has an unknown option: {error}") from error
        for name in ("rate", "adam_rate", "clip"):
            if not getattr(self, name) > 0:
                raise ValueError(f"{name} must be positive, got {getattr(self, name)}")


def train(
    dataset: xr.Dataset | str | Path | Prepared,
    out: str | Path,
    options: TrainingOptions,
    *,
    name: str | None = None,
    symmetries: Sequence[Symmetry] = (),
    device: str = "auto",
    devices: int = 1,
    nodes: int = 1,
    strategy: str = "ddp",
    compiled: bool = False,
    memory: int = 4 << 30,
    checkpoint_every: int = 500,
    overwrite: bool = False,
    resume: bool = False,
    progress: bool = True,
    info: Mapping[str, Any] | None = None,
    callbacks: Sequence[Any] = (),
) -> Prior:
    """Trains a prior on a store of trajectories and saves it as a folder.

    The folder also receives `log.csv`: the loss, the Gaussian's loss on the same windows beside it,
    and the learning rate; and `checkpoint/`, from which an interrupted run is resumed.

    On several devices every process runs the calling script: those that are missing on this node
    are started here, unless `torchrun` or Slurm has started them. All see the same global batch,
    each its share, so that the loss curve is that of one process. The first writes the folder;
    the others return the same prior without the report on its errors.

    Arguments:
        dataset: Trajectories as `simulate` writes them, or what `sda.cf.prepare` has made of other
            data; may be larger than memory. A single trajectory is cut into blocks of time, the
            last of which is held out, see `sda.cf.series`.
        out: The folder of the prior.
        options: What the run depends on.
        name: The name of the prior (default: that of the folder).
        symmetries: Symmetries of the system: windows are augmented and statistics averaged by them.
        device: "auto", "cpu" or "cuda".
        devices: The number of devices of a node, each with a process of its own.
        nodes: The number of nodes.
        strategy: How several processes hold the network: "ddp", a copy each, or "fsdp", a slice
            each, for networks that fit no device.
        compiled: Whether the network is compiled (`torch.compile`).
        memory: The bytes of trajectories that each process keeps in memory (that of the GPU,
            where there is one). What a larger store has beyond is read while the network learns.
        checkpoint_every: The number of steps between checkpoints.
        overwrite: Whether an existing prior may be replaced.
        resume: Whether to go on from the folder's checkpoint.
        progress: Whether to show a progress bar.
        info: What else to record.
        callbacks: Further callbacks of Lightning's trainer.

    Returns:
        The prior, with averaged weights.

    Raises:
        FileExistsError: If `out` exists and neither `overwrite` nor `resume` is given.
        FileNotFoundError: If there is nothing to resume.
        ValueError: If options, data and checkpoint do not fit together, or the batch cannot be
            split evenly over the processes.
    """

    from .training_loop import Recorder, Trainer, TrainingModule

    accelerator = pick_device(device)
    world = check_processes(devices, nodes, strategy, options.batch, accelerator)
    if compiled and strategy == "fsdp" and world > 1:
        raise ValueError("compile=true and strategy=fsdp exclude each other: choose one of them")
    out = Path(out)
    checkpoint = out / "checkpoint"
    if resume and not (checkpoint / "state.json").exists():
        raise FileNotFoundError(
            f"there is no checkpoint in {checkpoint}: start without resume=true"
        )
    if out.exists() and any(out.iterdir()) and not (resume or overwrite):
        raise FileExistsError(f"{out} exists: give overwrite=true, resume=true or another path")

    anomalies: Anomalies | None = None
    source: Any = dataset
    if isinstance(dataset, Prepared):
        source, anomalies = dataset.dataset, dataset.anomalies
        info = {**dataset.info, **(info or {})}
    data = open_dataset(source)
    layout = Layout.from_dataset(data, [str(v) for v in data.data_vars if "time" in data[v].dims])
    if data.sizes.get("member", 1) == 1:
        source = data = for_training(data, options.window, options.held_out)
    training, held_out = split_members(data.sizes["member"], options.held_out)
    context: Context | None = None
    if options.context:
        if anomalies is not None and not anomalies.trivial:
            raise ValueError(
                "a context does not go with transforms or a seasonal cycle: leave out context, or "
                "give transform=null seasonal=0"
            )
        if symmetries:
            raise ValueError("a context does not go with symmetries: leave one of them out")
        context = Context.fit(data.isel(member=training), options.context, options.lags)
        data = context.conditioned(data)
        # What fits the memory is regressed once, what does not each time that it is read.
        source = data = data.compute() if data.nbytes <= memory else data
        layout = context.layout
    windowed = layout if context is None else context.wide

    torch.manual_seed(options.seed)
    if resume:
        climatology = Climatology.from_tensors(
            layout,
            json.loads((checkpoint / "state.json").read_text())["climatology"],
            load_file(checkpoint / "climatology.safetensors"),
        )
    else:
        climatology = Climatology.fit(
            data.isel(member=training),
            options.climatology_window or options.window,
            layout=layout,
            symmetries=symmetries,
            **options.climatology,
        )
    static = static_fields(data, options.static, layout)
    denoiser = WindowDenoiser(
        climatology,
        options.window,
        options.network,
        options.preconditioning,
        options.levels.tail,
        static,
        options.advection,
        options.incompressible,
        0 if context is None else len(context.channels),
    )
    average = copy.deepcopy(denoiser)

    def batches(rank: int, processes: int, device: torch.device) -> Any:
        windows = Windows(source, windowed, options.window, training, memory, device)
        own = Batches(
            windows,
            climatology.to(device),
            options.batch,
            options.seed,
            module.step,
            options.levels,
            symmetries,
            rank,
            processes,
        )
        # What is in the memory of the one device there is costs too little to be made beforehand.
        beside = not windows.complete or device.type == "cuda"
        return DataLoader(Prefetch(own) if beside else own, batch_size=None)

    module = TrainingModule(denoiser, options, batches, strategy == "fsdp" and world > 1)
    if resume:
        module.restore(checkpoint)
    module.final = module.average.network.state_dict()
    if compiled:
        module.denoiser.network.compile()

    recorder = Recorder(out, climatology, checkpoint_every, keep_log=resume)
    trainer = Trainer(
        accelerator="gpu" if accelerator == "cuda" else "cpu",
        devices=devices,
        num_nodes=nodes,
        strategy=lightning_strategy(strategy, world),
        max_steps=options.steps - module.step,
        logger=False,
        enable_checkpointing=False,
        enable_progress_bar=progress,
        enable_model_summary=False,
        gradient_clip_val=options.clip,
        callbacks=[recorder, *callbacks],
    )
    if module.step < options.steps:
        trainer.fit(module)
        if trainer.interrupted:
            raise KeyboardInterrupt
    climatology.cpu()

    average.network.load_state_dict(module.final)
    average.eval().requires_grad_(False)
    if not trainer.is_global_zero:
        return Prior(
            climatology, average, name or out.name, symmetries, info, anomalies=anomalies,
            context=context, langevin=options.langevin,
        )  # fmt: skip
    held = Windows(source, windowed, options.window, held_out, memory)
    errors = denoising_error(average, climatology, held)
    record = {
        "options": json.loads(json.dumps(asdict(options))),
        "seconds": module.seconds,
        "windows_seen": module.step * options.batch,
        "parameters": sum(p.numel() for p in average.network.parameters()),
        "denoising_error": errors,
        "data": {str(k): str(v) for k, v in data.attrs.items()},
        **(info or {}),
    }
    prior = Prior(
        climatology, average, name or out.name, symmetries, record, anomalies=anomalies,
        context=context, langevin=options.langevin,
    )  # fmt: skip
    if options.calibrate:
        length = min(2 * options.window, data.sizes["time"])
        twins = Windows(source, windowed, length, held_out, memory)
        truths = twins.draw(TWINS, np.random.default_rng(np.random.SeedSequence((options.seed, 2))))
        prior.exposure = calibrate(prior, seed=options.seed, truths=climatology.normalise(truths))
    prior.save(out, card=model_card(prior))

    return prior


def pick_device(device: str) -> str:
    """Resolves "auto", and refuses a GPU that is not there.

    Raises:
        ValueError: If the device is unknown or absent.
    """

    if device == "auto":
        return "cuda" if torch.cuda.is_available() else "cpu"
    if device not in ("cpu", "cuda"):
        raise ValueError(f"device must be auto, cpu or cuda, got {device!r}")
    if device == "cuda" and not torch.cuda.is_available():
        raise ValueError("device=cuda was asked for, but torch sees no GPU: use device=cpu")

    return device


def split_members(members: int, held_out: float) -> tuple[np.ndarray, np.ndarray]:
    """The members to train on and those that are held out, the last ones.

    Raises:
        ValueError: If there are fewer than two members.
    """

    if members < 2:
        raise ValueError(
            f"training needs at least two members, one of them held out, got {members}"
        )
    count = min(members - 1, max(1, round(held_out * members)))

    return np.arange(members - count), np.arange(members - count, members)


@torch.no_grad()
def denoising_error(
    denoiser: WindowDenoiser,
    climatology: Climatology,
    windows: Windows,
    levels: Sequence[float] = REPORT_LEVELS,
    count: int = 128,
    seed: int = 0,
    batch: int = 32,
) -> list[dict[str, float]]:
    """The mean squared error per value on held-out windows, beside the Gaussian's on the same.

    Returns:
        One row per noise level: `s`, `network`, `gaussian`.
    """

    rows = []
    generator = np.random.default_rng(np.random.SeedSequence((seed, 1)))
    clean, given = denoiser.split(windows.draw(count, generator))
    clean = climatology.normalise(clean)
    noise = torch.from_numpy(generator.standard_normal(clean.shape, dtype=np.float32))
    for s in levels:
        network = gaussian = 0.0
        parts = (each.split(batch) for each in (clean, noise, given))
        for x, e, c in zip(*parts, strict=True):
            noisy = x + s * e
            network += float((denoiser.denoise(torch.cat((noisy, c), 2), s) - x).square().sum())
            gaussian += float((denoiser.covariance.wiener(noisy, s) - x).square().sum())
        rows.append(
            {"s": s, "network": network / clean.numel(), "gaussian": gaussian / clean.numel()}
        )

    return rows


def model_card(prior: Prior) -> str:
    """The text of the model card of a trained prior."""

    info, options = prior.info, prior.info["options"]
    rows = "\n".join(
        f"| {row['s']:g} | {row['network']:.3g} | {row['gaussian']:.3g} "
        f"| {row['network'] / row['gaussian']:.3f} |"
        for row in info["denoising_error"]
    )
    data = "\n".join(f"- {key}: {value}" for key, value in info["data"].items())
    given = ""
    if prior.context is not None:
        names = ", ".join(prior.context.names)
        given = f"Conditioned on `{names}`, which `prior.given(dataset)` gives it.\n"

    steps = ""
    if prior.langevin:
        own = ", ".join(f"{key} = {value}" for key, value in prior.langevin.items())
        steps = f"Langevin steps in smoothing: {own}, where the preset has another value.\n"

    return f"""# {prior.name}

A prior of trajectories of `{", ".join(prior.layout.variables)}`, {prior.layout.shape} per state,
dt = {prior.layout.dt:g}. Windows of {prior.window} states, any length of trajectory by composition.
{given}
## Network and training
`{options["network"]}`, {info["parameters"]:,} parameters, preconditioning
"{options["preconditioning"]}".
{info["windows_seen"]:,} windows in {info["seconds"]:.0f} s of training, seed {options["seed"]}.
Exposure correction {prior.exposure:.3f}: the share by which noise levels are understated in
sampling, so that members have the energy of the states that they stand for.
{steps}
## Held-out denoising error
E‖D(x + s ε) − x‖² per normalised value, on members that were never trained on.

| s | network | Gaussian | ratio |
|---|---|---|---|
{rows}

## Data
{data or "not recorded"}
"""
