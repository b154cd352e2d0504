"""Block averages: what a coarse instrument or a coarse grid sees."""

from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor

from .domain import Domain, Grid
from .operator import Bound, Operator, known, on_grid


class BlockAverage(Operator):
    """Averages over blocks of neighbouring grid points, with equal weights.

    Arguments:
        factor: The number of points of a block along each spatial dimension, one for all
            dimensions or one for each of some.

    Raises:
        ValueError: If a factor is not positive. When bound, if it does not divide the grid.
    """

    def __init__(self, factor: int | Mapping[str, int]) -> None:
        self.factor = factor
        for value in factor.values() if isinstance(factor, Mapping) else (factor,):
            if int(value) != value or value < 1:
                raise ValueError(f"factor must be a positive integer, got {factor}")

    def bind(
        self,
        domain: Domain,
        dtype: torch.dtype = torch.float32,
        device: torch.device | str = "cpu",
    ) -> Bound:
        grid = on_grid(self, domain)
        if not grid.dims:
            raise ValueError("BlockAverage needs spatial dimensions, but the state has none")
        if isinstance(self.factor, Mapping):
            known("dimensions", self.factor, grid.dims)
            factors = {dim: int(self.factor.get(dim, 1)) for dim in grid.dims}
        else:
            factors = dict.fromkeys(grid.dims, int(self.factor))
        for dim, k in factors.items():
            if size := len(grid.coords[dim]) % k:
                raise ValueError(
                    f"the factor {k} does not divide the {len(grid.coords[dim])} points along "
                    f"{dim!r} ({size} are left over): choose a divisor, or a region first"
                )
        coords = {dim: v.reshape(-1, factors[dim]).mean(axis=1) for dim, v in grid.coords.items()}
        split = [n for dim, v in coords.items() for n in (len(v), factors[dim])]
        axes = tuple(range(4, 3 + len(split), 2))

        def fn(x: Tensor) -> Tensor:
            return x.reshape(*x.shape[:3], *split).mean(dim=axes)

        return Bound(grid, Grid(grid.variables, grid.time, coords, grid.period), fn, True)

    def arguments(self) -> dict[str, Any]:
        if isinstance(self.factor, Mapping):
            return {"factor": dict(self.factor)}
        return {"factor": int(self.factor)}
