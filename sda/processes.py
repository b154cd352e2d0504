"""Training on many processes: what is checked, split, shared and gathered.

Every process draws its share of each global batch by the index of the sample, so that the batch,
and with it the loss curve, is that of one process. There are two ways to hold the network:

- "ddp": a copy in every process, gradients are averaged;
- "fsdp": each process holds a slice of every weight, of its moments and of the averaged weights,
  and a block's weights are gathered for as long as it is evaluated. For networks that fit no
  device.

Checkpoints hold whole tensors either way: a run goes on with any number of processes.

References:
    | Li et al. (2020), PyTorch distributed, arXiv 2006.15704.
    | Zhao et al. (2023), PyTorch FSDP, arXiv 2304.11277.
"""

import inspect
import os
from collections.abc import Iterable
from typing import Any

import torch
import torch.nn as nn
from torch import Tensor

STRATEGIES = ("ddp", "fsdp")


def check_processes(
    devices: int, nodes: int, strategy: str, batch: int, accelerator: str = "cpu"
) -> int:
    """The number of processes, once it is sure that they can train together.

    Arguments:
        devices: The number of processes on each node, one for each device.
        nodes: The number of nodes.
        strategy: "ddp" or "fsdp".
        batch: The number of windows per step, over all processes.
        accelerator: "cpu" or "cuda".

    Raises:
        ValueError: If they cannot.
    """

    for name, value in (("devices", devices), ("nodes", nodes)):
        if isinstance(value, bool) or not isinstance(value, int) or value < 1:
            raise ValueError(f"{name} must be an integer of at least 1, got {value!r}")
    if strategy not in STRATEGIES:
        raise ValueError(f"unknown strategy {strategy!r}: choose one of {', '.join(STRATEGIES)}")
    world = devices * nodes
    if batch % world:
        raise ValueError(
            f"batch={batch} cannot be split evenly over {world} processes (devices={devices}, "
            f"nodes={nodes}): choose a batch that is a multiple of {world}"
        )
    started = os.environ.get("WORLD_SIZE", "")
    if "LOCAL_RANK" in os.environ and started.isdigit() and int(started) != world:
        raise ValueError(
            f"{started} processes were started, but devices={devices} and nodes={nodes} make "
            f"{world}: give the devices of each node and the number of nodes"
        )
    if accelerator == "cuda" and devices > torch.cuda.device_count():
        raise ValueError(
            f"devices={devices} were asked for, but torch sees {torch.cuda.device_count()} GPUs"
        )

    return world


def lightning_strategy(strategy: str, world: int) -> Any:
    """Lightning's strategy object, or "auto" for one process."""

    from .compat import import_lightning

    import_lightning()
    from lightning.pytorch.strategies import DDPStrategy, ModelParallelStrategy

    if world == 1:
        return "auto"
    if strategy == "ddp":
        # Buffers are constants: they are made equal once, not at each step.
        names = inspect.signature(nn.parallel.DistributedDataParallel).parameters
        newer = "forward_sync_buffers" in names
        buffers: dict[str, Any] = {"forward_sync_buffers" if newer else "broadcast_buffers": False}
        return DDPStrategy(gradient_as_bucket_view=True, **buffers)

    return ModelParallelStrategy(data_parallel_size=world, tensor_parallel_size=1)


def first_process() -> bool:
    """Whether this is the process that writes and reports."""

    distributed = torch.distributed
    together = distributed.is_available() and distributed.is_initialized()

    return not together or distributed.get_rank() == 0


def shard(network: nn.Module, mesh: Any) -> None:
    """Slices a network's weights over processes, block by block.

    Arguments:
        network: The network, whose blocks are the members of its lists of modules.
        mesh: The processes.
    """

    from torch.distributed.fsdp import fully_shard

    for module in network.children():
        if isinstance(module, nn.ModuleList):
            for block in module:
                fully_shard(block, mesh=mesh)
    fully_shard(network, mesh=mesh)


def sliced(tensor: Tensor) -> bool:
    """Whether a process holds a slice of a tensor only."""
    return hasattr(tensor, "full_tensor")


def whole(tensor: Tensor) -> Tensor:
    """The whole of a tensor; all processes must ask for it where it is sliced."""
    return tensor.full_tensor() if sliced(tensor) else tensor  # type: ignore[attr-defined]


def local(tensor: Tensor) -> Tensor:
    """What this process holds of a tensor."""
    return tensor.to_local() if sliced(tensor) else tensor  # type: ignore[attr-defined]


def slice_like(tensor: Tensor, reference: Tensor) -> Tensor:
    """Slices a whole tensor, which all processes have, as another one is sliced."""

    if not sliced(reference) or sliced(tensor):
        return tensor
    from torch.distributed.tensor import DTensor, Replicate

    mesh = reference.device_mesh  # type: ignore[attr-defined]
    every = DTensor.from_local(tensor, mesh, [Replicate()] * mesh.ndim, run_check=False)

    return every.redistribute(mesh, reference.placements)  # type: ignore[attr-defined]


def share(tensors: Iterable[Tensor]) -> None:
    """Gives all processes the first one's tensors, in place.

    Processes on different machines find eigenvectors of other signs, and a network learns in one
    basis.
    """

    if not (torch.distributed.is_available() and torch.distributed.is_initialized()):
        return
    for tensor in tensors:
        # NCCL and gloo do not know all complex types.
        real = torch.view_as_real(tensor) if tensor.is_complex() else tensor
        part = real.detach().contiguous()
        torch.distributed.broadcast(part, src=0)
        real.detach().copy_(part)
