"""Full-resolution gated convolutions, for fields.

Advection is a product of fields, and its coefficients are local: blocks that multiply, at full
resolution, learn the nonlinear part of a fluid's denoiser with a fraction of a U-Net's parameters.
"""

import torch
import torch.nn as nn
import torch.nn.functional as F
from torch import Tensor

from .layers import Convolution, LevelEmbedding, per_channel, rms_normalise


class GatedNet(nn.Module):
    """Residual blocks of bilinear convolutions at full resolution.

    Each block normalises, modulates by the noise level (FiLM), and adds

    .. math:: W_2 * (a \\, b + \\mathrm{silu}(a)), \\qquad (a, b) = W_1 * h.

    Arguments:
        channels_in: The number of input channels.
        channels_out: The number of output channels.
        periodic: Whether each spatial dimension is periodic.
        width: The number of channels of the residual stream.
        depth: The number of blocks.
        embedding: The number of features of the noise level.
        dilations: The dilation of each block's first convolution, repeated in turn.
        pole: Whether the grid `(latitude, longitude)` ends at the poles, see `layers.pad`.
    """

    def __init__(
        self,
        channels_in: int,
        channels_out: int,
        periodic: tuple[bool, ...],
        width: int = 48,
        depth: int = 6,
        embedding: int = 64,
        dilations: tuple[int, ...] = (1,),
        pole: bool = False,
    ) -> None:
        super().__init__()
        self.embedding = LevelEmbedding(embedding)
        self.first = Convolution(channels_in, width, periodic, pole=pole)
        self.blocks = nn.ModuleList(
            [
                GatedBlock(width, periodic, embedding, dilations[i % len(dilations)], pole)
                for i in range(depth)
            ]
        )
        self.last = Convolution(width, channels_out, periodic, pole=pole)
        self.last.clear()

    def forward(self, x: Tensor, log_s: Tensor) -> Tensor:
        """Maps `(B, channels_in, *space)` and `(B)` to `(B, channels_out, *space)`."""

        level = self.embedding(log_s)
        if x.ndim == 4:
            x = x.contiguous(memory_format=torch.channels_last)
        x = self.first(x)
        for block in self.blocks:
            x = block(x, level)

        return self.last(x)


class GatedBlock(nn.Module):
    """A residual block, `(B, width, *space)` to the same: `x + gain · W₂ ∗ (a b + silu(a))`.

    The noise level scales and shifts its input and scales its output.
    """

    def __init__(
        self,
        width: int,
        periodic: tuple[bool, ...],
        embedding: int,
        dilation: int,
        pole: bool = False,
    ) -> None:
        super().__init__()
        self.first = Convolution(width, 2 * width, periodic, dilation=dilation, pole=pole)
        self.last = Convolution(width, width, periodic, pole=pole)
        self.level = nn.Linear(embedding, 3 * width)
        with torch.no_grad():
            self.last.conv.weight.mul_(0.3)
        nn.init.normal_(self.level.weight, std=0.02)
        nn.init.zeros_(self.level.bias)

    def forward(self, x: Tensor, level: Tensor) -> Tensor:
        gain, offset, out = (per_channel(m, x) for m in self.level(level).chunk(3, dim=-1))
        h = torch.addcmul(offset, rms_normalise(x), 1 + gain)
        a, b = self.first(h).chunk(2, dim=1)
        h = self.last(torch.addcmul(F.silu(a), a, b))

        return torch.addcmul(x, h, 1 + out)
