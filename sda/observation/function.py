"""Any differentiable function as an observation operator.

A function is saved by its registered name only. Files never hold code.
"""

from collections.abc import Callable, Mapping, Sequence
from typing import Any

import numpy as np
import torch
from torch import Tensor

from .domain import Domain, Grid, Points
from .operator import Bound, Operator, check_linear, identity


def saturate(x: Tensor) -> Tensor:
    """The saturating function `x / (1 + |x|)`."""
    return x / (1 + x.abs())


def cube(x: Tensor) -> Tensor:
    """The third power, which sees large values precisely and small ones hardly."""
    return x**3


FUNCTIONS: dict[str, Callable[[Tensor], Tensor]] = {
    "abs": torch.abs,
    "atan": torch.atan,
    "cube": cube,
    "exp": torch.exp,
    "log": torch.log,
    "saturate": saturate,
    "sqrt": torch.sqrt,
    "square": torch.square,
    "tanh": torch.tanh,
}


# Of each value alone, whatever is registered later.
ELEMENTWISE = tuple(FUNCTIONS.values())


def register(name: str, fn: Callable[[Tensor], Tensor]) -> None:
    """Gives a function a name, by which observations that use it are saved and loaded.

    Raises:
        ValueError: If the name belongs to another function.
    """

    if FUNCTIONS.get(name, fn) is not fn:
        raise ValueError(f"the name {name!r} belongs to another function: choose another name")
    FUNCTIONS[name] = fn


class Function(Operator):
    """Applies a differentiable function of PyTorch.

    Arguments:
        fn: The function of arrays `(member, time, channel, *space)` (or `(member, value)` after
            an operator that returns points), or the name of a registered function.
        linear: Whether the function is linear or affine. This is checked when it is bound.
        variables: The names of the variables of the result (default: those of the argument). Needed
            where the number of channels changes.
        timewise: Whether each time of the result depends on the state at that time alone.

    Raises:
        TypeError: If `fn` is not a function.
        ValueError: If the name is not registered. When bound, if the function fails, the shape of
            its result does not fit, or it is not linear although it should be.

    Example:
        >>> H = BlockAverage(4) >> Function("saturate")
    """

    def __init__(
        self,
        fn: str | Callable[[Tensor], Tensor],
        linear: bool = False,
        variables: str | Sequence[str] | None = None,
        timewise: bool = True,
    ) -> None:
        if isinstance(fn, str):
            if fn not in FUNCTIONS:
                raise ValueError(
                    f"no function is registered as {fn!r}: expected one of {sorted(FUNCTIONS)}, or "
                    f"call sda.observation.register({fn!r}, function) first"
                )
            fn = FUNCTIONS[fn]
        if not callable(fn):
            raise TypeError(f"expected a function or the name of one, got {type(fn).__name__}")
        self.fn, self.linear, self.timewise = fn, linear, timewise
        self.variables = (
            [variables] if isinstance(variables, str) else variables and list(variables)
        )

    @property
    def name(self) -> str | None:
        """The registered name of the function, if it has one."""
        return next((name for name, fn in FUNCTIONS.items() if fn is self.fn), None)

    def bind(
        self,
        domain: Domain,
        dtype: torch.dtype = torch.float32,
        device: torch.device | str = "cpu",
    ) -> Bound:
        probe = torch.zeros((1, *domain.shape), dtype=dtype, device=device)
        try:
            with torch.no_grad():
                shape = tuple(self.fn(probe).shape[1:])
        except (RuntimeError, IndexError, TypeError) as error:
            raise ValueError(
                f"{self!r} failed on values of shape (member, "
                f"{', '.join(map(str, domain.shape))}): {error}"
            ) from error
        parts = (identity, self.fn) if self.fn in ELEMENTWISE else None
        bound = Bound(domain, self.target(domain, shape), self.fn, self.linear, parts)
        if self.linear:
            check_linear(Bound(domain, bound.target, lambda x: self.fn(x.to(probe)), True))

        return bound

    def target(self, domain: Domain, shape: tuple[int, ...]) -> Domain:
        """Where the values of the result lie."""

        variables = domain.variables if self.variables is None else tuple(self.variables)
        if isinstance(domain, Grid):
            target = Grid(variables, domain.time, domain.coords, domain.period, domain.layout)
            if shape == target.shape:
                return target
        elif shape == domain.shape and self.variables is None:
            return domain
        if len(shape) == 1 and self.variables is not None and len(variables) in (1, shape[0]):
            names = np.array(variables * (shape[0] // len(variables)), dtype=object)
            return Points({"time": np.full(shape, np.nan), "variable": names})

        raise ValueError(
            f"{self!r} returns shape (member, {', '.join(map(str, shape))}) for (member, "
            f"{', '.join(map(str, domain.shape))}): name the variables of the result where "
            f"channels change, and return (member, value) where the grid does"
        )

    def arguments(self) -> dict[str, Any]:
        if self.name is None:
            raise ValueError(
                f"the function {getattr(self.fn, '__name__', self.fn)!r} has no registered name "
                f"and cannot be saved: call sda.observation.register(name, function) first"
            )
        return {
            "fn": self.name,
            "linear": self.linear,
            "variables": self.variables,
            "timewise": self.timewise,
        }

    @classmethod
    def from_arguments(cls, arguments: Mapping[str, Any]) -> "Function":
        if not isinstance(arguments.get("fn"), str):
            raise ValueError(
                f"a saved function must be a registered name, got {arguments.get('fn')}"
            )
        return cls(**arguments)

    def __repr__(self) -> str:
        name = self.name or getattr(self.fn, "__name__", type(self.fn).__name__)
        return f"Function({name!r}, linear={self.linear})"
