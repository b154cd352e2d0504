"""A U-Net over one or two spatial dimensions, periodic where the grid is.

References:
    | Ronneberger et al. (2015), U-Net: convolutional networks for biomedical image segmentation,
      arXiv 1505.04597.
"""

import torch
import torch.nn as nn
import torch.nn.functional as F
from torch import Tensor

from .layers import Convolution, LevelEmbedding, per_channel, rms_normalise


class UNet(nn.Module):
    """Residual convolutions on grids that are halved at each level, with skip connections.

    Arguments:
        channels_in: The number of input channels.
        channels_out: The number of output channels.
        periodic: Whether each spatial dimension is periodic.
        widths: The number of channels at each level.
        depths: The number of blocks at each level, on either side.
        embedding: The number of features of the noise level.
        pole: Whether the grid `(latitude, longitude)` ends at the poles, see `layers.pad`.

    Raises:
        ValueError: If `widths` and `depths` differ in length, or (at the first use) if the grid
            cannot be halved that often.
    """

    def __init__(
        self,
        channels_in: int,
        channels_out: int,
        periodic: tuple[bool, ...],
        widths: tuple[int, ...] = (32, 64, 128),
        depths: tuple[int, ...] = (2, 2, 2),
        embedding: int = 64,
        pole: bool = False,
    ) -> None:
        super().__init__()
        if len(widths) != len(depths) or not widths:
            raise ValueError(
                f"widths and depths must have one entry per level, got {widths} and {depths}"
            )
        self.factor = 2 ** (len(widths) - 1)
        self.embedding = LevelEmbedding(embedding)
        self.first = Convolution(channels_in, widths[0], periodic, pole=pole)
        self.down = nn.ModuleList(
            [
                Stage([ResidualBlock(width, periodic, embedding, pole) for _ in range(depth)])
                for width, depth in zip(widths, depths, strict=True)
            ]
        )
        self.up = nn.ModuleList(
            [
                Stage([ResidualBlock(width, periodic, embedding, pole) for _ in range(depth)])
                for width, depth in zip(widths[:-1], depths[:-1], strict=True)
            ]
        )
        pairs = list(zip(widths[:-1], widths[1:], strict=True))
        self.downscale = nn.ModuleList(
            [Convolution(a, b, periodic, stride=2, pole=pole) for a, b in pairs]
        )
        self.upscale = nn.ModuleList([Convolution(b, a, periodic, pole=pole) for a, b in pairs])
        self.merge = nn.ModuleList([Convolution(2 * a, a, periodic, kernel=1) for a, _ in pairs])
        self.last = Convolution(widths[0], channels_out, periodic, pole=pole)
        self.last.clear()

    def forward(self, x: Tensor, log_s: Tensor) -> Tensor:
        """Maps `(B, channels_in, *space)` and `(B)` to `(B, channels_out, *space)`."""

        if any(size % self.factor for size in x.shape[2:]):
            raise ValueError(
                f"a U-Net of {len(self.down)} levels needs a grid that {self.factor} divides, got "
                f"{tuple(x.shape[2:])}"
            )
        level = self.embedding(log_s)
        if x.ndim == 4:
            x = x.contiguous(memory_format=torch.channels_last)
        x, skips = self.first(x), []
        for i, stage in enumerate(self.down):
            x = stage(x, level)
            if i < len(self.downscale):
                skips.append(x)
                x = self.downscale[i](x)
        for i in reversed(range(len(self.up))):
            x = self.upscale[i](F.interpolate(x, scale_factor=2, mode="nearest"))
            x = self.up[i](self.merge[i](torch.cat((x, skips[i]), dim=1)), level)

        return self.last(x)


class Stage(nn.ModuleList):
    """Blocks of one resolution, one after the other."""

    def forward(self, x: Tensor, level: Tensor) -> Tensor:
        for block in self:
            x = block(x, level)

        return x


class ResidualBlock(nn.Module):
    """A residual block, `(B, width, *space)` to the same: two convolutions around a SiLU.

    The noise level scales and shifts its input and scales its output.
    """

    def __init__(
        self, width: int, periodic: tuple[bool, ...], embedding: int, pole: bool = False
    ) -> None:
        super().__init__()
        self.first = Convolution(width, width, periodic, pole=pole)
        self.last = Convolution(width, width, periodic, pole=pole)
        self.level = nn.Linear(embedding, 3 * width)
        nn.init.normal_(self.level.weight, std=0.02)
        nn.init.zeros_(self.level.bias)
        with torch.no_grad():
            self.last.conv.weight.mul_(0.3)

    def forward(self, x: Tensor, level: Tensor) -> Tensor:
        gain, offset, out = (per_channel(m, x) for m in self.level(level).chunk(3, dim=-1))
        h = torch.addcmul(offset, rms_normalise(x), 1 + gain)
        h = self.last(F.silu(self.first(h)))

        return torch.addcmul(x, h, 1 + out)
