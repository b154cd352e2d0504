r"""Observation operators.

An observation operator maps a trajectory to what an instrument would see without error,

    y = H(x) + ε,    ε ~ N(0, R).

Operators are symbolic: they are made without data, in terms of names, times and coordinates, and
bound to the grid of a trajectory when they are used. `H1 >> H2` applies `H1` first.
"""

import abc
import base64
import math
from collections.abc import Callable, Mapping
from typing import Any

import numpy as np
import torch
from torch import Tensor

from .domain import Domain, Grid

Parts = tuple[Callable[[Tensor], Tensor], Callable[[Tensor], Tensor]]


def identity(x: Tensor) -> Tensor:
    """The argument itself."""
    return x


class Bound:
    """An operator that is bound to a domain: a differentiable map between tensors.

    Arguments:
        source: The domain of the arrays that go in.
        target: The domain of the arrays that come out.
        fn: The map from `(member, *source.shape)` to `(member, *target.shape)`.
        linear: Whether the map is linear or affine.
        parts: An affine map and an elementwise function after it that make up the map, if it is of
            that form and not affine itself.
    """

    def __init__(
        self,
        source: Domain,
        target: Domain,
        fn: Callable[[Tensor], Tensor],
        linear: bool,
        parts: Parts | None = None,
    ) -> None:
        self.source, self.target, self.fn, self.linear = source, target, fn, linear
        self.parts: Parts | None = (fn, identity) if linear else parts

    def __call__(self, x: Tensor) -> Tensor:
        if x.shape[1:] != self.source.shape:
            raise ValueError(
                f"the operator is bound to arrays (member, "
                f"{', '.join(map(str, self.source.shape))}), got {tuple(x.shape)}"
            )
        return self.fn(x)


class Operator(abc.ABC):
    """An observation operator.

    Attributes:
        linear: Whether the operator is linear (or affine) in the state.
        timewise: Whether each time of the result depends on the state at that time alone.
        sampling: Whether the result consists of values of the state, so that its coordinates
            say all about it.
    """

    linear: bool = True
    timewise: bool = True
    sampling: bool = False

    @abc.abstractmethod
    def bind(
        self,
        domain: Domain,
        dtype: torch.dtype = torch.float32,
        device: torch.device | str = "cpu",
    ) -> Bound:
        """Binds the operator to a domain, see `Grid.of`.

        Raises:
            ValueError: If the operator does not fit the domain.
        """

    @abc.abstractmethod
    def arguments(self) -> dict[str, Any]:
        """The arguments that make this operator again, as plain JSON types."""

    @classmethod
    def from_arguments(cls, arguments: Mapping[str, Any]) -> "Operator":
        """The inverse of `arguments`."""
        return cls(**arguments)

    def anchor(self, domain: Domain) -> "Operator":
        """The same operator with its times as values instead of steps.

        An anchored operator means the same on any other trajectory that covers its times.
        """

        if self.timewise or not isinstance(domain, Grid):
            return self

        from .select import Select

        return Select(times=domain.time) >> self

    def times(self) -> list[np.ndarray]:
        """The times that the operator names, one array for each selection of times."""
        return []

    def during(self, first: float, last: float, times: np.ndarray | None = None) -> "Operator":
        """The operator for the times `first < time <= last` alone.

        Arguments:
            first: The time after which.
            last: The time until which, included.
            times: The times of the arrays that the operator gets without this restriction, where an
                operator before it has named them.

        Raises:
            ValueError: If the result depends on several times at once.
        """

        if not self.timewise:
            raise ValueError(
                f"{self!r} depends on the states at several times: it cannot be assimilated one "
                f"time after the other, only by a method for whole trajectories"
            )
        return self

    def config(self) -> dict[str, Any]:
        """The operator as plain JSON types, the inverse of `from_config`."""
        return {"operator": type(self).__name__, **self.arguments()}

    def __rshift__(self, other: "Operator") -> "Compose":
        return Compose(self, other)

    def __repr__(self) -> str:
        arguments = (f"{name}={short(v)}" for name, v in self.arguments().items() if v is not None)
        return f"{type(self).__name__}({', '.join(arguments)})"


class Compose(Operator):
    """Applies operators one after the other, the first one first.

    Raises:
        TypeError: If something else than an operator is composed.
    """

    def __init__(self, *operators: Operator) -> None:
        parts: list[Operator] = []
        for operator in operators:
            if not isinstance(operator, Operator):
                raise TypeError(
                    f"only observation operators compose, got {type(operator).__name__}: wrap a "
                    f"function as Function(fn)"
                )
            parts.extend(operator.operators if isinstance(operator, Compose) else [operator])
        self.operators: tuple[Operator, ...] = tuple(parts)
        self.linear = all(operator.linear for operator in parts)
        self.timewise = all(operator.timewise for operator in parts)

    @property
    def sampling(self) -> bool:  # type: ignore[override]
        from .interpolate import Interpolate
        from .select import Select

        # Interpolating between values that a selection left over is not a value of the state.
        last = [i for i, o in enumerate(self.operators) if isinstance(o, Interpolate)][-1:]
        before = self.operators[: last[0]] if last else ()
        return (
            all(operator.sampling for operator in self.operators)
            and all(isinstance(operator, Select) for operator in before)
            and len(self.times()) <= 1
        )

    def bind(
        self,
        domain: Domain,
        dtype: torch.dtype = torch.float32,
        device: torch.device | str = "cpu",
    ) -> Bound:
        source, chain = domain, []
        for operator in self.operators:
            chain.append(operator.bind(domain, dtype, device))
            domain = chain[-1].target

        def fn(x: Tensor) -> Tensor:
            for bound in chain:
                x = bound(x)
            return x

        return Bound(source, domain, fn, all(bound.linear for bound in chain), joint_parts(chain))

    def anchor(self, domain: Domain) -> Operator:
        parts = []
        for operator in self.operators:
            parts.append(operator.anchor(domain))
            domain = operator.bind(domain).target

        return Compose(*parts)

    def times(self) -> list[np.ndarray]:
        return [times for operator in self.operators for times in operator.times()]

    def during(self, first: float, last: float, times: np.ndarray | None = None) -> Operator:
        parts = []
        for operator in self.operators:
            parts.append(operator.during(first, last, times))
            times = operator.times()[0] if operator.times() else times

        return Compose(*parts)

    def arguments(self) -> dict[str, Any]:
        return {"operators": [operator.config() for operator in self.operators]}

    @classmethod
    def from_arguments(cls, arguments: Mapping[str, Any]) -> "Compose":
        return cls(*(from_config(config) for config in arguments["operators"]))

    def __repr__(self) -> str:
        return " >> ".join(map(repr, self.operators)) or "Compose()"


def joint_parts(chain: list[Bound]) -> Parts | None:
    """The affine and the elementwise part of maps that are applied one after the other, if any.

    After an elementwise function there may be others, and maps that only select values.
    """

    affine: list[Callable[[Tensor], Tensor]] = []
    elementwise: list[Callable[[Tensor], Tensor]] = []
    for bound in chain:
        if bound.parts is None:
            return None
        inner, outer = bound.parts
        if elementwise and inner is not identity and not (outer is identity and selects(bound)):
            return None
        affine += [inner] if inner is not identity else []
        elementwise += [outer] if outer is not identity else []

    return chained(affine), chained(elementwise)


def chained(maps: list[Callable[[Tensor], Tensor]]) -> Callable[[Tensor], Tensor]:
    """Maps one after the other, the first one first."""

    def fn(x: Tensor) -> Tensor:
        for each in maps:
            x = each(x)
        return x

    return fn if maps else identity


def selects(bound: Bound) -> bool:
    """Whether a linear map only selects values, so that it commutes with elementwise functions."""

    x = torch.from_numpy(np.random.default_rng(0).standard_normal((1, *bound.source.shape)))
    try:
        values, squares = bound(x), bound(x.square())
    except RuntimeError:  # it is bound to single precision, or to another device
        return False

    return bool(torch.allclose(values.square(), squares, rtol=1e-6, atol=0))


def from_config(config: Mapping[str, Any]) -> Operator:
    """Makes an operator from its `config`. No code is loaded: names refer to known classes only.

    Raises:
        ValueError: If the operator is unknown or its arguments do not fit.
    """

    classes = {cls.__name__: cls for cls in subclasses(Operator)}
    arguments = dict(config) if isinstance(config, Mapping) else {}
    name = arguments.pop("operator", None)
    if name not in classes:
        raise ValueError(
            f"unknown observation operator {name!r}: expected one of {sorted(classes)}"
        )
    try:
        return classes[name].from_arguments(arguments)
    except (TypeError, KeyError) as error:
        raise ValueError(f"the arguments of operator {name} do not fit: {error}") from error


def subclasses(cls: type[Any]) -> list[type[Any]]:
    """All subclasses of a class, however deep."""
    return [s for sub in cls.__subclasses__() for s in (sub, *subclasses(sub))]


def anchored(operator: Operator, grid: Grid) -> Operator:
    """The operator with all its times as values, so that it means the same on any trajectory."""

    operator = operator.anchor(grid)
    if not operator.times():
        from .select import Select

        operator = Select(times=grid.time) >> operator

    return operator


def check_linear(
    operator: Bound,
    trials: int = 2,
    tolerance: float = 1e-4,
    device: torch.device | str = "cpu",
) -> None:
    """Checks that a bound operator which says that it is linear (or affine) is so.

    The test is `H(a x + b z) - H(0) = a (H(x) - H(0)) + b (H(z) - H(0))` for random `x`, `z`.

    Arguments:
        operator: The bound operator.
        trials: The number of random pairs.
        tolerance: The largest deviation allowed, relative to the largest value.
        device: The device that the operator is bound to.

    Raises:
        ValueError: If it is not linear.
    """

    shape = (trials, *operator.source.shape)
    x, z = (
        torch.from_numpy(np.random.default_rng(i).standard_normal(shape)).to(device) for i in (0, 1)
    )
    a, b = 1.75, -3.5  # exactly representable, so that only the operator is to blame
    try:
        h = [operator(v) for v in (a * x + b * z, x, z, 0 * x)]
    except RuntimeError:
        h = [operator(v.float()) for v in (a * x + b * z, x, z, 0 * x)]
    error = (h[0] - h[3] - a * (h[1] - h[3]) - b * (h[2] - h[3])).abs().max()
    scale = max(float(value.abs().max()) for value in h)
    if not error <= tolerance * max(scale, 1e-30):
        raise ValueError(
            f"the operator says that it is linear, but H(a x + b z) differs from a H(x) + b H(z) "
            f"by {float(error):.2g} where values are up to {scale:.2g}: pass linear=False"
        )


def on_grid(operator: Operator, domain: Domain) -> Grid:
    """The domain, if it is a grid.

    Raises:
        ValueError: If it is not.
    """

    if not isinstance(domain, Grid):
        raise ValueError(
            f"{type(operator).__name__} needs values on a grid, but the operator before it returns "
            f"{domain.shape[0]} single points: apply it earlier"
        )
    return domain


def known(kind: str, given: Any, expected: Any) -> None:
    """Raises a `ValueError` that lists the unknown among the names given."""

    if unknown := [name for name in given if name not in expected]:
        raise ValueError(f"unknown {kind} {unknown}: expected some of {list(expected)}")


def within(times: np.ndarray, first: float, last: float) -> np.ndarray:
    """Which times satisfy `first < time <= last`.

    Raises:
        ValueError: If none does.
    """

    keep = (times > first) & (times <= last)
    if not keep.any():
        raise ValueError(
            f"no observation time is after {first:g} and until {last:g}: they are "
            f"{times.min():g} … {times.max():g}"
        )
    return keep


def pack(array: np.ndarray) -> dict[str, Any]:
    """A boolean array as plain JSON types."""

    bits = base64.b64encode(np.packbits(array).tobytes()).decode()
    return {"shape": list(array.shape), "bits": bits}


def unpack(content: Mapping[str, Any]) -> np.ndarray:
    """The inverse of `pack`."""

    shape = tuple(content["shape"])
    bits = np.frombuffer(base64.b64decode(content["bits"]), dtype=np.uint8)
    if len(bits) != -(-math.prod(shape) // 8):
        raise ValueError(f"{8 * len(bits)} bits do not fill a mask of shape {shape}")
    return np.unpackbits(bits, count=int(np.prod(shape))).astype(bool).reshape(shape)


def short(value: Any) -> str:
    """A short form of an argument, for `repr`."""

    if isinstance(value, list) and len(value) > 6:
        return f"[{short(value[0])}, …, {short(value[-1])}]({len(value)})"
    if isinstance(value, list):
        return f"[{', '.join(map(short, value))}]"
    if isinstance(value, dict) and set(value) == {"shape", "bits"}:
        return f"<{'×'.join(map(str, value['shape']))} booleans>"
    if isinstance(value, dict):
        return f"{{{', '.join(f'{k!r}: {short(v)}' for k, v in value.items())}}}"
    return f"{value:g}" if isinstance(value, float) else repr(value)
