"""The precisions that trajectories are sampled in, and networks evaluated in."""

import torch

DTYPES = {"float32": torch.float32, "float64": torch.float64}
PRECISIONS = {"float32": torch.float32, "bfloat16": torch.bfloat16}


def precision(dtype: torch.dtype | str) -> torch.dtype:
    """The precision of a name.

    Raises:
        ValueError: If it is neither float32 nor float64.
    """

    for name, each in DTYPES.items():
        if dtype in (name, each):
            return each
    raise ValueError(f"dtype must be float32 or float64, got {dtype}")


def sampling_dtype(dtype: torch.dtype | str, network: str) -> torch.dtype:
    """The dtype of trajectories, given its name and that of the network's precision.

    Raises:
        ValueError: If one is unknown, or they do not go together.
    """

    dtype = precision(dtype)
    if network not in PRECISIONS:
        raise ValueError(f"precision must be one of {', '.join(PRECISIONS)}, got {network!r}")
    if network != "float32" and dtype != torch.float32:
        raise ValueError(
            f"precision={network} needs dtype=float32, got float64: a network is evaluated either "
            f"in less precision than its states or in more"
        )
    return dtype
