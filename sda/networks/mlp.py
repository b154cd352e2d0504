"""A residual multilayer perceptron with gated (SwiGLU) blocks, for windows of vectors.

References:
    | Shazeer (2020), GLU variants improve Transformer, arXiv 2002.05202.
"""

import torch.nn as nn
import torch.nn.functional as F
from torch import Tensor

from .layers import LevelEmbedding


class ResidualMLP(nn.Module):
    """Residual blocks `x + B(silu(g) · v)`, `(v, g) = A norm(x) + E(log s)`.

    Arguments:
        channels_in: The number of inputs.
        channels_out: The number of outputs.
        width: The number of features of the residual stream.
        hidden: The number of gated features of a block.
        depth: The number of blocks.
        embedding: The number of features of the noise level.
    """

    def __init__(
        self,
        channels_in: int,
        channels_out: int,
        width: int = 256,
        hidden: int = 256,
        depth: int = 4,
        embedding: int = 64,
    ) -> None:
        super().__init__()
        self.embedding = LevelEmbedding(embedding)
        self.first = nn.Linear(channels_in, width)
        self.blocks = nn.ModuleList([Block(width, hidden, embedding) for _ in range(depth)])
        self.last = nn.Linear(width, channels_out)
        nn.init.zeros_(self.last.weight)
        nn.init.zeros_(self.last.bias)

    def forward(self, x: Tensor, log_s: Tensor) -> Tensor:
        """Maps `(B, channels_in)` and `(B)` to `(B, channels_out)`."""

        level = self.embedding(log_s)
        x = self.first(x)
        for block in self.blocks:
            x = block(x, level)

        return self.last(x)


class Block(nn.Module):
    """A residual block, `(B, width)` to the same: `x + W₂ (a silu(b))`, `(a, b) = W₁ x̂ + W₃ e(s)`.

    It normalises its input to x̂; e(s) is the embedding of the noise level.
    """

    def __init__(self, width: int, hidden: int, embedding: int) -> None:
        super().__init__()
        self.norm = nn.LayerNorm(width)
        self.first = nn.Linear(width, 2 * hidden)
        self.level = nn.Linear(embedding, 2 * hidden, bias=False)
        self.last = nn.Linear(hidden, width)
        nn.init.zeros_(self.last.weight)
        nn.init.zeros_(self.last.bias)

    def forward(self, x: Tensor, level: Tensor) -> Tensor:
        value, gate = (self.first(self.norm(x)) + self.level(level)).chunk(2, dim=-1)

        return x + self.last(value * F.silu(gate))
