"""Layers that the networks share."""

import math
from typing import Any

import torch
import torch.nn as nn
import torch.nn.functional as F
from torch import Tensor

CONVOLUTIONS = {1: nn.Conv1d, 2: nn.Conv2d, 3: nn.Conv3d}
# What lies beyond an edge: the other edge, the edge itself, or the other side of the pole.
WRAP, EDGE, POLE = "wrap", "edge", "pole"


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
        pole: Whether the grid ends at the poles, see `pad`.
    """

    def __init__(
        self,
        channels_in: int,
        channels_out: int,
        periodic: tuple[bool, ...],
        kernel: int = 3,
        stride: int = 1,
        dilation: int = 1,
        pole: bool = False,
    ) -> None:
        super().__init__()
        if len(periodic) not in CONVOLUTIONS:
            raise ValueError(f"expected one to three spatial dimensions, got {len(periodic)}")
        if pole and tuple(periodic) != (False, True):
            raise ValueError(
                f"pole needs two dimensions, latitude and periodic longitude, got "
                f"periodic={tuple(periodic)}"
            )
        self.periodic, self.pole = periodic, pole
        self.padding = dilation * (kernel // 2)
        self.conv = CONVOLUTIONS[len(periodic)](
            channels_in, channels_out, kernel, stride=stride, dilation=dilation
        )

    def clear(self) -> None:
        """Sets weights and biases to zero: the layer starts as the zero function."""

        for parameter in self.conv.parameters():
            nn.init.zeros_(parameter)

    def forward(self, x: Tensor) -> Tensor:
        return self.conv(pad(x, self.padding, self.periodic, self.pole))


def pad(x: Tensor, width: int, periodic: tuple[bool, ...], pole: bool = False) -> Tensor:
    """Pads every spatial dimension of `(B, C, *space)` by `width` cells on both sides.

    Around periodic dimensions, and by repeating the edge of all others. With `pole`, what lies
    beyond the first and the last row of `(B, C, latitude, longitude)` is the row of the same
    latitude half-way around, as on the sphere. Vectors would change sign there, and hidden channels
    are neither vectors nor scalars: none does.

    Raises:
        ValueError: If there is an odd number of longitudes, or the grid is smaller than the margin.
    """

    if width == 0:
        return x
    count = len(periodic)
    if pole and (x.shape[-1] % 2 or width > min(x.shape[2:])):
        raise ValueError(
            f"pole needs an even number of longitudes and at least {width} latitudes and "
            f"longitudes, got {tuple(x.shape[2:])}"
        )
    channels_last = x.ndim == 4 and x.stride(1) == 1
    # A list: torch.compile takes no generator.
    least = min([n for n, wraps in zip(x.shape[2:], periodic, strict=True) if wraps] or [width])
    if pole or (channels_last and any(periodic) and width <= least):
        rows = POLE if pole else WRAP if periodic[0] else EDGE
        return Margins.apply(x, width, rows, WRAP if periodic[1] else EDGE)
    if all(periodic):
        return F.pad(x, [width] * (2 * count), mode="circular")
    for axis, wraps in enumerate(periodic):
        widths = [0] * (2 * count)
        widths[2 * (count - 1 - axis)] = widths[2 * (count - 1 - axis) + 1] = width
        x = F.pad(x, widths, mode="circular" if wraps else "replicate")

    return x


class Margins(torch.autograd.Function):
    """Pads `(B, C, y, x)` and keeps the channels last.

    torch's own circular padding puts them first, and convolutions then take up to three times as
    long (bfloat16). Slices and concatenations would keep them too, but each slice's own adjoint
    fills a whole field with zeros: half of a step of training.
    """

    @staticmethod
    def forward(x: Tensor, width: int, rows: str, columns: str) -> Tensor:
        batch, channels, ny, nx = x.shape
        shape = (batch, channels, ny + 2 * width, nx + 2 * width)
        out = torch.empty(shape, dtype=x.dtype, device=x.device, memory_format=torch.channels_last)
        inner = out[..., width:-width]
        inner[..., width:-width, :] = x
        if rows == WRAP:
            inner[..., :width, :] = x[..., -width:, :]
            inner[..., -width:, :] = x[..., :width, :]
        elif rows == POLE:
            inner[..., :width, :] = half_turn(x[..., :width, :])
            inner[..., -width:, :] = half_turn(x[..., -width:, :])
        else:
            inner[..., :width, :] = x[..., :1, :]
            inner[..., -width:, :] = x[..., -1:, :]
        wraps = columns == WRAP
        out[..., :width] = out[..., -2 * width : -width] if wraps else out[..., width : width + 1]
        last = out[..., width : 2 * width] if wraps else out[..., -width - 1 : -width]
        out[..., -width:] = last

        return out

    @staticmethod
    def setup_context(ctx: Any, inputs: tuple[Tensor, int, str, str], output: Tensor) -> None:
        ctx.kind = inputs[1:]

    @staticmethod
    def backward(ctx: Any, gradient: Tensor) -> tuple[Tensor | None, ...]:  # type: ignore[override]
        return Fold.apply(gradient, *ctx.kind), None, None, None

    @staticmethod
    def jvp(ctx: Any, tangent: Tensor, *_: None) -> Tensor:
        return Margins.apply(tangent, *ctx.kind)

    @staticmethod
    def vmap(info: Any, dims: tuple[int | None, ...], x: Tensor, *kind: Any) -> tuple[Tensor, int]:
        return over_batches(Margins, x, dims[0], kind), 0


class Fold(torch.autograd.Function):
    """The adjoint of `Margins`: adds what lies there to the cells that it was copied from."""

    @staticmethod
    def forward(x: Tensor, width: int, rows: str, columns: str) -> Tensor:
        ny, nx = x.shape[-2] - 2 * width, x.shape[-1] - 2 * width
        # Clones keep the order of the strides, hence the channels last.
        middle = x.narrow(-1, width, nx).clone()
        first, last = x.narrow(-1, 0, width), x.narrow(-1, nx + width, width)
        if columns == WRAP:
            middle.narrow(-1, nx - width, width).add_(first)
            middle.narrow(-1, 0, width).add_(last)
        else:
            middle.narrow(-1, 0, 1).add_(first.sum(-1, keepdim=True))
            middle.narrow(-1, nx - 1, 1).add_(last.sum(-1, keepdim=True))
        out = middle.narrow(-2, width, ny).clone()
        first, last = middle.narrow(-2, 0, width), middle.narrow(-2, ny + width, width)
        if rows == WRAP:
            out.narrow(-2, ny - width, width).add_(first)
            out.narrow(-2, 0, width).add_(last)
        elif rows == POLE:
            out.narrow(-2, 0, width).add_(half_turn(first))
            out.narrow(-2, ny - width, width).add_(half_turn(last))
        else:
            out.narrow(-2, 0, 1).add_(first.sum(-2, keepdim=True))
            out.narrow(-2, ny - 1, 1).add_(last.sum(-2, keepdim=True))

        return out

    @staticmethod
    def setup_context(ctx: Any, inputs: tuple[Tensor, int, str, str], output: Tensor) -> None:
        ctx.kind = inputs[1:]

    @staticmethod
    def backward(ctx: Any, gradient: Tensor) -> tuple[Tensor | None, ...]:  # type: ignore[override]
        return Margins.apply(gradient, *ctx.kind), None, None, None

    @staticmethod
    def jvp(ctx: Any, tangent: Tensor, *_: None) -> Tensor:
        return Fold.apply(tangent, *ctx.kind)

    @staticmethod
    def vmap(info: Any, dims: tuple[int | None, ...], x: Tensor, *kind: Any) -> tuple[Tensor, int]:
        return over_batches(Fold, x, dims[0], kind), 0


def half_turn(x: Tensor) -> Tensor:
    """Rows as they lie beyond the pole, in reverse order and half-way around. Its own inverse."""
    return x.flip(-2).roll(x.shape[-1] // 2, -1)


def over_batches(function: Any, x: Tensor, dim: int | None, kind: tuple[Any, ...]) -> Tensor:
    """Applies a function of `(B, C, y, x)` where there is another batch dimension."""

    x = x.movedim(dim or 0, 0)
    return function.apply(x.flatten(0, 1), *kind).unflatten(0, x.shape[:2])


def rms_normalise(x: Tensor) -> Tensor:
    """Divides by the root mean square over the channels (dimension 1), from below one to one."""
    square = torch.linalg.vector_norm(x, dim=1, keepdim=True).square() / x.shape[1]

    return x * torch.rsqrt(square + 1)


def per_channel(m: Tensor, x: Tensor) -> Tensor:
    """Makes `(B, C)` broadcast against `x`, `(B, C, *space)`."""
    return m.reshape(*m.shape, *[1] * (x.ndim - 2))
