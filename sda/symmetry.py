"""Symmetries of a system, used to average statistics and to augment training windows.

A symmetry maps a trajectory to one that is equally likely: a translation by a number of cells, a
reflection with a change of sign of some variables, or both. The forcing sin(4y) of the Kolmogorov
flow on 32 cells, say, leaves

    Symmetry(roll={"x": 1}), Symmetry(roll={"y": 8}),
    Symmetry(flip=("y", "x"), sign={"u": -1, "v": -1}),
    Symmetry(flip=("x",), roll={"y": 4}, sign={"u": -1}).
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import torch
from torch import Tensor

from dynamics.layout import Layout


@dataclass(frozen=True)
class Symmetry:
    """A symmetry of trajectories `(…, channel, *space)`: flip, then change signs, then roll.

    Arguments:
        roll: Cells by which each dimension is rolled.
        flip: Dimensions that are reflected about the centre of the grid.
        sign: Factors, 1 or −1, of the variables that change sign.
    """

    roll: Mapping[str, int] = field(default_factory=dict)
    flip: Sequence[str] = ()
    sign: Mapping[str, int] = field(default_factory=dict)

    def __post_init__(self) -> None:
        object.__setattr__(self, "flip", tuple(self.flip))

    def check(self, layout: Layout) -> None:
        """Raises a `ValueError` if the symmetry does not fit a layout."""

        if unknown := (set(self.roll) | set(self.flip)) - set(layout.dims):
            raise ValueError(
                f"symmetry names {sorted(unknown)}, not among the dimensions {layout.dims}"
            )
        if unknown := set(self.sign) - set(layout.variables):
            raise ValueError(
                f"symmetry names {sorted(unknown)}, not among the variables {layout.variables}"
            )
        if fixed := [dim for dim in self.roll if dim not in layout.period]:
            raise ValueError(f"only periodic dimensions can be rolled, got {fixed}")
        if wrong := {name: f for name, f in self.sign.items() if f not in (-1, 1)}:
            raise ValueError(f"signs must be 1 or -1, got {wrong}")

    def order(self, layout: Layout) -> int:
        """The smallest power that is the identity."""

        order = 2 if self.flip or any(f < 0 for f in self.sign.values()) else 1
        for dim, cells in self.roll.items():
            size = len(layout.coords[dim])
            if dim in self.flip:
                continue
            order = int(np.lcm(order, size // np.gcd(size, cells % size or size)))

        return order

    def __call__(self, x: Tensor, layout: Layout, power: int = 1) -> Tensor:
        """Applies the symmetry `power` times to `(…, channel, *space)`."""

        axes = {dim: i - len(layout.dims) for i, dim in enumerate(layout.dims)}
        if self.flip:
            for _ in range(power % self.order(layout)):
                x = self._roll(torch.flip(x, [axes[dim] for dim in self.flip]), axes, 1)
                x = self._signed(x, layout)
            return x
        x = self._roll(x, axes, power)

        return self._signed(x, layout) if power % 2 else x

    def _roll(self, x: Tensor, axes: Mapping[str, int], power: int) -> Tensor:
        if not self.roll or not power:
            return x
        return torch.roll(x, [c * power for c in self.roll.values()], [axes[d] for d in self.roll])

    def _signed(self, x: Tensor, layout: Layout) -> Tensor:
        if all(f > 0 for f in self.sign.values()):
            return x
        factors = x.new_tensor([self.sign.get(name, 1) for name in layout.variables])

        return x * factors.reshape(-1, *[1] * len(layout.dims))

    def to_json(self) -> dict[str, Any]:
        return {"roll": dict(self.roll), "flip": list(self.flip), "sign": dict(self.sign)}


def average(x: Tensor, layout: Layout, symmetries: Sequence[Symmetry]) -> Tensor:
    """Averages states `(…, channel, *space)` over the powers of each symmetry in turn."""

    for symmetry in symmetries:
        order = symmetry.order(layout)
        x = sum((symmetry(x, layout, power) for power in range(order)), torch.zeros_like(x)) / order

    return x


def augment(
    x: Tensor, layout: Layout, symmetries: Sequence[Symmetry], generator: np.random.Generator
) -> Tensor:
    """Applies a random power of each symmetry to each of a batch `(B, …, channel, *space)`."""

    if not symmetries:
        return x
    orders = [symmetry.order(layout) for symmetry in symmetries]
    powers = generator.integers(0, orders, size=(len(x), len(orders)))
    out = []
    for window, row in zip(x, powers, strict=True):
        for symmetry, power in zip(symmetries, row.tolist(), strict=True):
            window = symmetry(window, layout, power)
        out.append(window)

    return torch.stack(out)
