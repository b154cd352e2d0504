"""Layers that the networks share."""

import math
from typing import Any

import torch
import torch.nn as nn
import torch.nn.functional as F
from torch import Tensor

CONVOLUTIONS = {1: nn.Conv1d, 2: nn.Conv2d, 3: nn.Conv3d}


class LevelEmbedding(nn.Module):
    """Embeds the logarithm of the noise level in sines, cosines and two layers.

    Arguments:
        features: The number of output features.
        frequencies: The number of frequencies, from a quarter to four per e-fold.
    """

    frequencies: Tensor

    def __init__(self, features: int, frequencies: int = 16) -> None:
        super().__init__()
        self.register_buffer(
            "frequencies",
            torch.exp(torch.linspace(math.log(0.25), math.log(4.0), frequencies)),
            persistent=False,
        )
        self.layers = nn.Sequential(
            nn.Linear(2 * frequencies + 1, features),
            nn.SiLU(),
            nn.Linear(features, features),
            nn.SiLU(),
        )

    def forward(self, log_s: Tensor) -> Tensor:
        phase = log_s[:, None] * self.frequencies

        return self.layers(torch.cat((log_s[:, None] / 4, phase.sin(), phase.cos()), dim=-1))


class Convolution(nn.Module):
    """A convolution that wraps around periodic dimensions and repeats the edge of all others.

    Arguments:
        channels_in: The number of input channels.
        channels_out: The number of output channels.
        periodic: Whether each spatial dimension is periodic.
        kernel: The size of the kernel, odd.
        stride: The stride.
        dilation: The dilation.
    """

    def __init__(
        self,
        channels_in: int,
        channels_out: int,
        periodic: tuple[bool, ...],
        kernel: int = 3,
        stride: int = 1,
        dilation: int = 1,
    ) -> None:
        super().__init__()
        if len(periodic) not in CONVOLUTIONS:
            raise ValueError(f"expected one to three spatial dimensions, got {len(periodic)}")
        self.periodic = periodic
        self.padding = dilation * (kernel // 2)
        self.conv = CONVOLUTIONS[len(periodic)](
            channels_in, channels_out, kernel, stride=stride, dilation=dilation
        )

    def clear(self) -> None:
        """Sets weights and biases to zero: the layer starts as the zero function."""

        for parameter in self.conv.parameters():
            nn.init.zeros_(parameter)

    def forward(self, x: Tensor) -> Tensor:
        return self.conv(pad(x, self.padding, self.periodic))


def pad(x: Tensor, width: int, periodic: tuple[bool, ...]) -> Tensor:
    """Pads every spatial dimension of `(B, C, *space)` by `width` cells on both sides."""

    if width == 0:
        return x
    count = len(periodic)
    channels_last = x.ndim == 4 and x.stride(1) == 1
    if all(periodic) and channels_last and width <= min(x.shape[2:]):
        return Wrap.apply(x, width)
    if all(periodic):
        return F.pad(x, [width] * (2 * count), mode="circular")
    for axis, wraps in enumerate(periodic):
        widths = [0] * (2 * count)
        widths[2 * (count - 1 - axis)] = widths[2 * (count - 1 - axis) + 1] = width
        x = F.pad(x, widths, mode="circular" if wraps else "replicate")

    return x


class Wrap(torch.autograd.Function):
    """Pads `(B, C, y, x)` around both dimensions and keeps the channels last.

    torch's own circular padding puts them first, and convolutions then take up to three times as
    long (bfloat16). Slices and concatenations would keep them too, but each slice's own adjoint
    fills a whole field with zeros: half of a step of training.
    """

    @staticmethod
    def forward(x: Tensor, width: int) -> Tensor:
        batch, channels, ny, nx = x.shape
        shape = (batch, channels, ny + 2 * width, nx + 2 * width)
        out = torch.empty(shape, dtype=x.dtype, device=x.device, memory_format=torch.channels_last)
        inner = out[..., width:-width]
        inner[..., width:-width, :] = x
        inner[..., :width, :] = x[..., -width:, :]
        inner[..., -width:, :] = x[..., :width, :]
        out[..., :width] = out[..., -2 * width : -width]
        out[..., -width:] = out[..., width : 2 * width]

        return out

    @staticmethod
    def setup_context(ctx: Any, inputs: tuple[Tensor, int], output: Tensor) -> None:
        ctx.width = inputs[1]

    @staticmethod
    def backward(ctx: Any, gradient: Tensor) -> tuple[Tensor, None]:  # type: ignore[override]
        return Fold.apply(gradient, ctx.width), None

    @staticmethod
    def jvp(ctx: Any, tangent: Tensor, _: None) -> Tensor:
        return Wrap.apply(tangent, ctx.width)

    @staticmethod
    def vmap(info: Any, dims: tuple[int | None, None], x: Tensor, width: int) -> tuple[Tensor, int]:
        return over_batches(Wrap, x, dims[0], width), 0


class Fold(torch.autograd.Function):
    """The adjoint of `Wrap`: adds what lies in the margins to the cells that it was copied from."""

    @staticmethod
    def forward(x: Tensor, width: int) -> Tensor:
        ny, nx = x.shape[-2] - 2 * width, x.shape[-1] - 2 * width
        # Clones keep the order of the strides, hence the channels last.
        columns = x.narrow(-1, width, nx).clone()
        columns.narrow(-1, nx - width, width).add_(x.narrow(-1, 0, width))
        columns.narrow(-1, 0, width).add_(x.narrow(-1, nx + width, width))
        out = columns.narrow(-2, width, ny).clone()
        out.narrow(-2, ny - width, width).add_(columns.narrow(-2, 0, width))
        out.narrow(-2, 0, width).add_(columns.narrow(-2, ny + width, width))

        return out

    @staticmethod
    def setup_context(ctx: Any, inputs: tuple[Tensor, int], output: Tensor) -> None:
        ctx.width = inputs[1]

    @staticmethod
    def backward(ctx: Any, gradient: Tensor) -> tuple[Tensor, None]:  # type: ignore[override]
        return Wrap.apply(gradient, ctx.width), None

    @staticmethod
    def jvp(ctx: Any, tangent: Tensor, _: None) -> Tensor:
        return Fold.apply(tangent, ctx.width)

    @staticmethod
    def vmap(info: Any, dims: tuple[int | None, None], x: Tensor, width: int) -> tuple[Tensor, int]:
        return over_batches(Fold, x, dims[0], width), 0


def over_batches(function: Any, x: Tensor, dim: int | None, width: int) -> Tensor:
    """Applies a function of `(B, C, y, x)` where there is another batch dimension."""

    x = x.movedim(dim or 0, 0)
    return function.apply(x.flatten(0, 1), width).unflatten(0, x.shape[:2])


def rms_normalise(x: Tensor) -> Tensor:
    """Divides by the root mean square over the channels (dimension 1), from below one to one."""
    square = torch.linalg.vector_norm(x, dim=1, keepdim=True).square() / x.shape[1]

    return x * torch.rsqrt(square + 1)


def per_channel(m: Tensor, x: Tensor) -> Tensor:
    """Makes `(B, C)` broadcast against `x`, `(B, C, *space)`."""
    return m.reshape(*m.shape, *[1] * (x.ndim - 2))
