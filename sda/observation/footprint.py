"""Averages of points: what an instrument sees whose footprint is no point.

`Interpolate(points) >> GroupAverage(k)` sees averages over groups of `k` points, say over the disk
that an antenna sees.
"""

from typing import Any

import torch

from .domain import Domain, Points
from .operator import Bound, Operator


class GroupAverage(Operator):
    """Averages over groups of `size` single points that follow each other, with equal weights.

    A group has the time, the variable and the place of its first point.

    Arguments:
        size: The number of points of a group.

    Raises:
        ValueError: If it is not positive. When bound, if the values are no single points, or not a
            multiple of it.
    """

    def __init__(self, size: int) -> None:
        if int(size) != size or size < 1:
            raise ValueError(f"size must be a positive integer, got {size}")
        self.size = int(size)

    def bind(
        self,
        domain: Domain,
        dtype: torch.dtype = torch.float32,
        device: torch.device | str = "cpu",
    ) -> Bound:
        if not isinstance(domain, Points) or domain.shape[0] % self.size:
            raise ValueError(
                f"GroupAverage needs single points in groups of {self.size}, got values of shape "
                f"{domain.shape}: apply Interpolate first"
            )
        columns = {name: column[:: self.size] for name, column in domain.columns.items()}

        return Bound(
            domain, Points(columns), lambda x: x.unflatten(1, (-1, self.size)).mean(dim=2), True
        )

    def arguments(self) -> dict[str, Any]:
        return {"size": self.size}
