"""Memory budgets: how many members, windows and states fit into so many bytes."""

import math
from typing import TYPE_CHECKING

import torch

if TYPE_CHECKING:
    from .prior import Prior

# The states that a member's sampling holds at once: the multistep history, the guidance's and the
# Langevin step's intermediate fields, complex ones counted twice. Peak memory says 22 with static
# guidance and Langevin steps on a field; the rest is headroom for guidance with gradients.
COPIES = 40
# The values that a network's evaluation holds at once, per window and cell.
ACTIVATIONS = 1024
# More members per block make nothing faster, and a block is what an interrupt costs.
LARGEST_BLOCK = 256


def size_in_bytes(size: int | str) -> int:
    """A size such as 1000000, "512MiB" or "2GB" in bytes.

    Raises:
        ValueError: If it cannot be read or is not positive.
    """

    units = {"": 1, "b": 1}
    for power, letter in enumerate("kmgt", start=1):
        units |= {letter: 1024**power, f"{letter}ib": 1024**power, f"{letter}b": 1000**power}
    text = str(size).strip().lower()
    number = text.rstrip("abcdefghijklmnopqrstuvwxyz ")
    try:
        value = float(number) * units[text[len(number) :].strip()]
    except (ValueError, KeyError):
        value = math.nan
    if not (value >= 1 and math.isfinite(value)):
        raise ValueError(f"memory must be a size such as 512MiB or 2GiB, got {size!r}")
    return int(value)


def block_size(
    members: int, shape: tuple[int, ...], dtype: torch.dtype, memory: int | str, group: int = 1
) -> int:
    """The number of members whose sampling fits a memory budget.

    The blocks are of about equal size, in whole groups.

    Raises:
        ValueError: If the budget cannot be read.
    """

    each = COPIES * math.prod(shape) * torch.finfo(dtype).bits // 8
    largest = max(1, min(size_in_bytes(memory) // each, LARGEST_BLOCK) // group)
    groups = math.ceil(members / group)

    return group * math.ceil(groups / math.ceil(groups / largest))


def too_long(prior: "Prior", length: int, memory: int | str) -> bool:
    """Whether not even the covariance of a trajectory's states fits in memory."""

    if prior.climatology.kind in ("zonal", "low_rank"):
        from .long_plan import DECOMPOSED

        waves, rows = prior.climatology.matrices
        return 8 * DECOMPOSED * waves * (length * rows) ** 2 > size_in_bytes(memory)

    return 8 * (length * prior.layout.shape[0]) ** 2 > size_in_bytes(memory)
