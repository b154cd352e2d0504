r"""Functions of several variables at one place: linear combinations, and the size of a vector.

What an instrument measures is often not a variable of the state: an altimeter sees the sea surface
`η = f₀ ψ₁ / g`, a scatterometer the wind speed `√(u² + v²)`.
"""

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import torch
from torch import Tensor

from .domain import Domain, Grid
from .operator import Bound, Operator, known, on_grid


class Combine(Operator):
    """Linear combinations of variables, `y_k = Σ_c W_kc x_c`.

    Arguments:
        weights: For each observed quantity by its name, the weights of the variables.

    Raises:
        ValueError: If there is no quantity, or a weight is not finite. When bound, if a variable is
            unknown.

    Example:
        >>> H = Combine({"ssh": {"psi1": 1e-4 / 9.81}})
    """

    def __init__(self, weights: Mapping[str, Mapping[str, float]]) -> None:
        self.weights = {
            str(name): {str(variable): float(w) for variable, w in each.items()}
            for name, each in weights.items()
        }
        if not self.weights or not all(self.weights.values()):
            raise ValueError(f"weights need at least one variable for each quantity, got {weights}")
        if not np.isfinite([w for each in self.weights.values() for w in each.values()]).all():
            raise ValueError(f"weights must be finite, got {weights}")

    def bind(
        self,
        domain: Domain,
        dtype: torch.dtype = torch.float32,
        device: torch.device | str = "cpu",
    ) -> Bound:
        grid = on_grid(self, domain)
        for each in self.weights.values():
            known("variables", each, grid.variables)
        rows = [[each.get(name, 0.0) for name in grid.variables] for each in self.weights.values()]
        matrix = torch.tensor(rows, dtype=dtype, device=device)

        def fn(x: Tensor) -> Tensor:
            return torch.einsum("kc,mtc...->mtk...", matrix.to(x.dtype), x)

        return Bound(grid, renamed(grid, tuple(self.weights)), fn, True)

    def arguments(self) -> dict[str, Any]:
        return {"weights": {name: dict(each) for name, each in self.weights.items()}}


class Magnitude(Operator):
    r"""The size of a vector, `y = √(Σ_c x_c²)`, such as the wind speed.

    Where the vector vanishes, so does the derivative that is used for it.

    Arguments:
        variables: The components.
        name: The name of the result.

    Raises:
        ValueError: If there is no component. When bound, if a variable is unknown.
    """

    linear = False

    def __init__(self, variables: Sequence[str] = ("u", "v"), name: str = "speed") -> None:
        self.variables, self.name = [str(each) for each in variables], str(name)
        if not self.variables:
            raise ValueError("the size of a vector needs at least one component, got none")

    def bind(
        self,
        domain: Domain,
        dtype: torch.dtype = torch.float32,
        device: torch.device | str = "cpu",
    ) -> Bound:
        grid = on_grid(self, domain)
        known("variables", self.variables, grid.variables)
        index = torch.tensor([grid.variables.index(n) for n in self.variables], device=device)

        def fn(x: Tensor) -> Tensor:
            square = x.index_select(2, index).square().sum(2, keepdim=True)
            # The root of zero has no derivative: zero is neither given nor passed on there.
            calm = square == 0
            return torch.where(calm, 0.0, torch.where(calm, 1.0, square).sqrt())

        return Bound(grid, renamed(grid, (self.name,)), fn, False)

    def arguments(self) -> dict[str, Any]:
        return {"variables": list(self.variables), "name": self.name}


def renamed(grid: Grid, variables: tuple[str, ...]) -> Grid:
    """The same grid with other variables."""
    return Grid(variables, grid.time, grid.coords, grid.period, grid.layout)
