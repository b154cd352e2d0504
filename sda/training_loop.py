"""The Lightning module of training, and the callback that logs and checkpoints it."""

import ast
import copy
import csv
import json
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
import torch.nn as nn
from safetensors.torch import load_file
from torch import Tensor

from .climatology import Climatology
from .compat import import_lightning
from .denoiser import broadcast
from .networks import complete_options
from .optimiser import Muon, split_parameters
from .prior import write_tensors, write_text
from .processes import local, shard, share, slice_like, whole
from .training import Schedule, TrainingOptions
from .window import WindowDenoiser

import_lightning()
from lightning.pytorch import Callback, LightningModule, Trainer  # noqa: E402

LOG_EVERY = 50


class TrainingModule(LightningModule):
    """A window network, its moving average, and their optimiser.

    Arguments:
        denoiser: The denoiser to train.
        options: The options of the run.
        batches: Makes the batches of a process, given its rank, the number of processes and its
            device. Not before the processes know of each other.
        sliced: Whether the weights are sliced over the processes, see `sda.processes`.

    Attributes:
        final: The averaged weights at the end of training, whole.
    """

    def __init__(
        self,
        denoiser: WindowDenoiser,
        options: TrainingOptions,
        batches: Callable[[int, int, torch.device], Any] | None = None,
        sliced: bool = False,
    ) -> None:
        super().__init__()
        self.denoiser, self.options = denoiser, options
        self.average = copy.deepcopy(denoiser).requires_grad_(False)
        self.denoiser.precision = getattr(torch, options.precision)
        self.schedule = Schedule(options.steps, options.warmup, options.decay)
        self.batches, self.sliced = batches, sliced
        self.step, self.seconds = 0, 0.0
        self.summed, self.count = torch.zeros(2), 0
        self.restored: dict[str, Tensor] | None = None
        self.final: dict[str, Tensor] = {}

    def configure_model(self) -> None:
        if self.sliced:
            for denoiser in (self.denoiser, self.average):
                shard(denoiser.network, self.device_mesh["data_parallel"])  # type: ignore[index]
            self.sliced = False

    def train_dataloader(self) -> Any:
        if self.batches is None:
            raise ValueError("the module was made without batches to train on")
        trainer = self.trainer

        return self.batches(trainer.global_rank, trainer.world_size, trainer.strategy.root_device)

    def configure_optimizers(self) -> torch.optim.Optimizer:
        hidden, rest = split_parameters(self.denoiser.network)
        optimiser = Muon(hidden, rest, self.options.rate, self.options.adam_rate)
        for group in optimiser.param_groups:
            group["initial_lr"] = group["lr"]
        if self.restored is not None:
            parameters = [p for group in optimiser.param_groups for p in group["params"]]
            for key, tensor in self.restored.items():
                index, name = key.split(".")
                parameter = parameters[int(index)]
                if tensor.ndim:
                    tensor = slice_like(tensor.clone().to(parameter.device), parameter)
                optimiser.state[parameter][name] = tensor
            self.restored = None

        return optimiser

    def on_train_start(self) -> None:
        share(self.buffers())
        # Its moments were restored before the network was moved to its device.
        optimiser = self.trainer.optimizers[0]
        for parameter, state in optimiser.state.items():
            for name, value in state.items():
                if value.ndim:
                    state[name] = value.to(parameter.device)

    def on_train_batch_start(self, batch: Any, batch_idx: int) -> None:
        factor = self.schedule(self.step)
        for group in self.trainer.optimizers[0].param_groups:
            group["lr"] = group["initial_lr"] * factor

    def training_step(self, batch: tuple[Tensor, Tensor, Tensor], batch_idx: int) -> Tensor:
        x, noise, s = batch
        x, given = self.denoiser.split(x)
        noisy = x + broadcast(s, x) * noise
        if given.shape[2]:
            noisy = torch.cat((noisy, given), dim=2)
        scale = self.denoiser.residual_variance(s)
        # The Gaussian's loss costs nothing beside the network's, which needs its estimate.
        gaussian, rest = self.denoiser.parts(noisy, s)
        loss = mean_error(gaussian + rest - x, scale)
        with torch.no_grad():
            # Summed where they are: to look at a loss is to wait for the device.
            losses = torch.stack((loss, mean_error(gaussian - x, scale)))
            self.summed = self.summed.to(losses) + losses
        self.count += 1

        return loss

    def mean_losses(self) -> Tensor:
        """The network's and the Gaussian's loss since the last call, over all processes."""

        losses = self.summed / max(self.count, 1)
        self.summed, self.count = torch.zeros(2), 0

        return self.trainer.strategy.reduce(losses, reduce_op="mean").cpu()

    def finish_step(self) -> None:
        """Counts the step and moves the average."""

        self.step += 1
        # A young average forgets its start faster.
        weight = 1 - min(self.options.ema, (self.step + 1) / (self.step + 10))
        with torch.no_grad():
            torch._foreach_lerp_(
                [local(p) for p in self.average.network.parameters()],
                [local(p) for p in self.denoiser.network.parameters()],
                weight,
            )

    def save(self, path: Path, climatology: Climatology) -> None:
        """Writes a checkpoint: safetensors first, the JSON that makes it valid last.

        All processes must call it, as each may hold a slice; the first one writes.
        """

        optimiser = self.trainer.optimizers[0]
        parameters = [p for group in optimiser.param_groups for p in group["params"]]
        network = whole_state(self.denoiser.network)
        average = whole_state(self.average.network)
        state = {
            f"{i}.{name}": whole(value)
            for i, parameter in enumerate(parameters)
            for name, value in optimiser.state[parameter].items()
        }
        if not self.trainer.is_global_zero:
            return
        path.mkdir(parents=True, exist_ok=True)
        tag = f"{self.step:08d}"
        write_tensors(network, path / f"network-{tag}.safetensors")
        write_tensors(average, path / f"average-{tag}.safetensors")
        write_tensors(state, path / f"optimiser-{tag}.safetensors")
        write_tensors(climatology.tensors(), path / "climatology.safetensors")
        content = {
            "step": self.step,
            "seconds": self.seconds,
            "climatology": climatology.to_json(),
            "fingerprint": fingerprint(self.options),
        }
        write_text(json.dumps(content, indent=1), path / "state.json")
        for old in path.glob("*-*.safetensors"):
            if not old.stem.endswith(tag):
                old.unlink()

    def restore(self, path: Path) -> None:
        """Reads a checkpoint.

        Raises:
            ValueError: If it was written under other options; the number of steps may differ.
        """

        content = json.loads((path / "state.json").read_text())
        given, expected = fingerprint(self.options), content["fingerprint"]
        # A checkpoint may be older than some of its network's options: it has their defaults.
        network = ast.literal_eval(expected["network"])
        expected = expected | {"network": repr(complete_options(network))}
        if different := sorted(key for key in given if expected.get(key) != given[key]):
            raise ValueError(
                "cannot resume with other options: "
                + "; ".join(f"{key} was {expected.get(key)}, is {given[key]}" for key in different)
            )
        tag = f"{content['step']:08d}"
        self.denoiser.network.load_state_dict(load_file(path / f"network-{tag}.safetensors"))
        self.average.network.load_state_dict(load_file(path / f"average-{tag}.safetensors"))
        self.restored = load_file(path / f"optimiser-{tag}.safetensors")
        self.step, self.seconds = content["step"], content["seconds"]


class Recorder(Callback):
    """Logs the loss beside the Gaussian's, and writes checkpoints.

    Arguments:
        out: The folder of the prior.
        climatology: The climatology, written into the checkpoint.
        every: The number of steps between checkpoints.
        keep_log: Whether to go on with an existing log.
    """

    def __init__(self, out: Path, climatology: Climatology, every: int, keep_log: bool) -> None:
        self.out, self.climatology, self.every = out, climatology, every
        self.log_path = out / "log.csv"
        self.keep_log = keep_log
        self.clock = 0.0

    def on_train_start(self, trainer: Trainer, module: TrainingModule) -> None:  # type: ignore[override]
        self.clock = time.monotonic()
        rows: list[list[str]] = []
        if self.keep_log and self.log_path.exists():
            with self.log_path.open() as file:
                rows = [row for row in list(csv.reader(file))[1:] if int(row[0]) <= module.step]
        if trainer.is_global_zero:
            self.out.mkdir(parents=True, exist_ok=True)
            with self.log_path.open("w", newline="") as file:
                csv.writer(file).writerows([["step", "loss", "gaussian", "rate", "seconds"], *rows])

    def on_train_batch_end(  # type: ignore[override]
        self, trainer: Trainer, module: TrainingModule, outputs: Any, batch: Any, batch_idx: int
    ) -> None:
        module.finish_step()
        now = time.monotonic()
        module.seconds += now - self.clock
        self.clock = now
        last = module.step == module.options.steps
        if module.step % LOG_EVERY == 0 or last:
            losses = module.mean_losses()
            if not torch.isfinite(losses[0]):
                raise FloatingPointError(
                    f"the loss is {losses[0]:g} at step {module.step}: lower the learning rates, "
                    f"or resume from the last checkpoint"
                )
            if trainer.is_global_zero:
                with self.log_path.open("a", newline="") as file:
                    rate = trainer.optimizers[0].param_groups[0]["lr"]
                    csv.writer(file).writerow(
                        [
                            module.step,
                            f"{losses[0]:.5f}",
                            f"{losses[1]:.5f}",
                            f"{rate:.3g}",
                            f"{module.seconds:.1f}",
                        ]
                    )
        if module.step % self.every == 0 or last:
            module.save(self.out / "checkpoint", self.climatology)

    def on_train_end(self, trainer: Trainer, module: TrainingModule) -> None:  # type: ignore[override]
        # While the processes still know of each other.
        module.final = whole_state(module.average.network)


def whole_state(network: nn.Module) -> dict[str, Tensor]:
    """The whole weights of a network, of which each process may hold a slice."""
    return {name: whole(tensor) for name, tensor in network.state_dict().items()}


def mean_error(error: Tensor, scale: Tensor) -> Tensor:
    """The loss of errors `(B, …)` of windows, relative to the Wiener filter's mean square `(B)`."""
    return (error.square().flatten(1).mean(1) / scale).mean()


def fingerprint(options: TrainingOptions) -> dict[str, str]:
    """What must agree between a checkpoint and the run that goes on from it."""

    content = {key: repr(value) for key, value in vars(options).items()}
    content["network"] = repr(complete_options(options.network))
    for free in ("steps", "decay", "levels", "held_out", "precision", "calibrate", "langevin"):
        content.pop(free)
    # Checkpoints that are older than these options have none of them.
    for late, usual in (("context", ()), ("lags", 1), ("climatology", {})):
        if getattr(options, late) == usual or not (usual or getattr(options, late)):
            content.pop(late)

    return content
