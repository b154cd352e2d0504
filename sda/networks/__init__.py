"""Networks: from the inputs of a window and a noise level to the output of a window.

Every network maps `(B, channels_in, *space)` and the logarithm of the noise level, `(B)`, to
`(B, channels_out, *space)`. Time and physical channels are folded into the channels: a window's
evaluations cost, its channels hardly do.
"""

import inspect
from collections.abc import Mapping
from typing import Any

import torch.nn as nn

from .gated import GatedNet
from .mlp import ResidualMLP
from .unet import UNet

NETWORKS = {"mlp": ResidualMLP, "gated": GatedNet, "unet": UNet}


def build_network(
    name: str, channels_in: int, channels_out: int, periodic: tuple[bool, ...], **options: Any
) -> nn.Module:
    """Builds a network by name.

    Arguments:
        name: "mlp" (no space), "gated" or "unet" (one or two spatial dimensions).
        channels_in: The number of input channels.
        channels_out: The number of output channels.
        periodic: Whether each spatial dimension is periodic.
        options: The network's own options.

    Raises:
        ValueError: If the name is unknown, or the network does not fit the number of dimensions.
        TypeError: If an option is unknown.
    """

    if name not in NETWORKS:
        raise ValueError(f"network must be one of {sorted(NETWORKS)}, got {name!r}")
    if (name == "mlp") != (len(periodic) == 0):
        raise ValueError(
            f"network {name!r} does not fit states with {len(periodic)} spatial dimensions: use "
            f"'mlp' for vectors, 'gated' or 'unet' for fields"
        )
    if name == "mlp":
        return ResidualMLP(channels_in, channels_out, **options)

    return NETWORKS[name](channels_in, channels_out, periodic, **options)


def options_of(content: Mapping[str, Any]) -> tuple[str, dict[str, Any]]:
    """Splits a network's configuration into its name and its options."""

    options = dict(content)

    return str(options.pop("name")), options


def complete_options(content: Mapping[str, Any]) -> dict[str, Any]:
    """A network's configuration with the defaults of the options that it leaves out."""

    name, options = options_of(content)
    if name not in NETWORKS:
        return dict(content)
    parameters = inspect.signature(NETWORKS[name]).parameters.values()
    defaults = {p.name: p.default for p in parameters if p.default is not p.empty} | options

    return {"name": name} | {
        key: list(value) if isinstance(value, tuple) else value
        for key, value in sorted(defaults.items())
    }
