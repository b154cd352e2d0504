"""Reproducible noise, drawn per member.

Every random number of the engine belongs to a member and to a purpose. A generator is made from
`(seed, member, *key)` alone, so a member's numbers do not depend on the batch that it shares, on
the number of workers, on the device, or on a restart in between.
"""

from collections.abc import Iterable

import numpy as np
import torch
from torch import Tensor


def member_generator(seed: int, member: int, *key: int) -> np.random.Generator:
    """Returns the generator of one member for one purpose.

    Arguments:
        seed: The seed of the run, a non-negative integer.
        member: The index of the member.
        key: Non-negative integers that name the purpose (a stream, a time block, a noise level).

    Raises:
        ValueError: If the seed, the member or a key is negative.
    """

    if min(seed, member, *key, 0) < 0:
        raise ValueError(
            f"seed, member and key must be non-negative integers, got seed={seed}, "
            f"member={member}, key={key}"
        )

    return np.random.Generator(
        np.random.Philox(np.random.SeedSequence(entropy=seed, spawn_key=(member, *key)))
    )


def normal(
    seed: int,
    members: Iterable[int],
    shape: tuple[int, ...],
    *key: int,
    dtype: torch.dtype = torch.float32,
    device: torch.device | str = "cpu",
) -> Tensor:
    """Draws standard normal noise, each member from its own generator.

    The numbers are drawn in the precision of `dtype` (float64, or float32 for all others) on the
    CPU, and are therefore the same on every device.

    Returns:
        The noise, with shape `(member, *shape)`.
    """

    draw = np.float64 if dtype == torch.float64 else np.float32
    noise = np.stack(
        [
            member_generator(seed, member, *key).standard_normal(shape, dtype=draw)
            for member in members
        ]
    )

    return torch.from_numpy(noise).to(dtype=dtype, device=device)
