"""Copies between the host and a device.

A GPU's host does not wait for a copy from pinned memory, and the memory is lent again once the copy
is done: two buffers are in use where one block is computed while the last is written.
"""

import numpy as np
import torch
from torch import Tensor


def send(x: Tensor, device: torch.device) -> Tensor:
    """Copies to a device; to a GPU from pinned memory, without waiting for it."""

    if device.type != "cuda":
        return x.to(device)

    return x.pin_memory().to(device, non_blocking=True)


def fetch(x: Tensor) -> np.ndarray:
    """The values of a tensor, on the host; from a GPU into pinned memory."""

    x = x.detach()
    if not x.is_cuda:
        return x.cpu().numpy()
    host = torch.empty(x.shape, dtype=x.dtype, pin_memory=True)
    host.copy_(x, non_blocking=True)
    torch.cuda.current_stream(x.device).synchronize()

    return host.numpy()
