"""The difference of two states, which closes a loop when it is observed to be zero."""

from typing import Any

import numpy as np
import torch

from .domain import Domain, Grid
from .operator import Bound, Operator, on_grid
from .select import Select


class Difference(Operator):
    """The difference `x(first) - x(last)` of two states of a trajectory.

    Arguments:
        first: The time of the first state (default: the trajectory's first).
        last: The time of the last state (default: the trajectory's last).

    Raises:
        ValueError: When bound, if the two times do not increase or lie outside the time span.

    Example:
        A trajectory that returns to where it started:

        >>> loop = Observations.from_operator(Difference(), 0.0, 0.01, layout, time)
    """

    timewise = False

    def __init__(self, first: float | None = None, last: float | None = None) -> None:
        self.first = None if first is None else float(first)
        self.last = None if last is None else float(last)

    def ends(self, grid: Grid) -> tuple[float, float]:
        """The two times."""

        first = float(grid.time[0]) if self.first is None else self.first
        last = float(grid.time[-1]) if self.last is None else self.last
        if not first < last:
            raise ValueError(f"the first time must lie before the last, got {first:g} and {last:g}")
        return first, last

    def bind(
        self,
        domain: Domain,
        dtype: torch.dtype = torch.float32,
        device: torch.device | str = "cpu",
    ) -> Bound:
        grid = on_grid(self, domain)
        both = Select(times=self.ends(grid)).bind(grid, dtype, device)
        target = Grid(grid.variables, both.target.rows()["time"][-1:], grid.coords, grid.period)

        def fn(x: torch.Tensor) -> torch.Tensor:
            states = both(x)
            return states[:, :1] - states[:, 1:]

        return Bound(grid, target, fn, True)

    def anchor(self, domain: Domain) -> Operator:
        return Difference(*self.ends(on_grid(self, domain)))

    def times(self) -> list[np.ndarray]:
        if self.first is None or self.last is None:
            return []
        return [np.array([self.first, self.last])]

    def arguments(self) -> dict[str, Any]:
        return {"first": self.first, "last": self.last}
