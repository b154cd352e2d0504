r"""The likelihood of observations, bound to a trajectory.

    p(y | x) = N(y; H(x), R),    R = diag(std²),

or with errors of heavier tails, see `sda.observation.robust`.

Guidance needs `H`, its tangent-linear model and its adjoint. All are derived from `H` itself by
automatic differentiation, so that they cannot disagree.
"""

import copy
import math
from collections.abc import Callable

import torch
from torch import Tensor

from .operator import Parts
from .robust import Robust


class Likelihood:
    """The likelihood of observations of a trajectory.

    Arguments:
        operator: The observation operator, from `(member, *shape)` to `(member, value)`.
        y: The observed values, with shape `(value)`, or `(member, value)` where each member has
            observations of its own.
        std: The standard deviation of each value's error, with shape `(value)` or `()`.
        shape: The shape `(time, channel, *space)` of a trajectory.
        linear: Whether the operator is linear or affine.
        parts: An affine map to `(member, value)` and an elementwise function after it that make up
            the operator, if it is of that form.
        robust: The errors, if some of them are not Gaussian; `std` is their scale then.
        part: The linear part of an affine operator, if it is at hand.

    Raises:
        ValueError: If there are no observations, or a std is not positive.
    """

    def __init__(
        self,
        operator: Callable[[Tensor], Tensor],
        y: Tensor,
        std: Tensor | float,
        shape: tuple[int, ...],
        linear: bool,
        parts: Parts | None = None,
        robust: Robust | None = None,
        part: Callable[[Tensor], Tensor] | None = None,
    ) -> None:
        std = torch.as_tensor(std, dtype=y.dtype, device=y.device)
        if y.ndim not in (1, 2) or not y.numel():
            raise ValueError(
                f"y must have shape (value) or (member, value) with at least one, got "
                f"{tuple(y.shape)}"
            )
        if std.ndim and std.shape != y.shape[-1:]:
            raise ValueError(
                f"std must have the shape {tuple(y.shape[-1:])} of y, got {tuple(std.shape)}"
            )
        if not bool((std > 0).all() & std.isfinite().all()):
            raise ValueError(f"std must be positive and finite, got down to {float(std.min()):g}")
        self.operator = operator
        self.y, self.std = y, std.expand(y.shape[-1])
        self.shape, self.linear = tuple(shape), linear
        self.parts = parts
        self.robust = robust
        self._part = part

    def __len__(self) -> int:
        return self.y.shape[-1]

    def __repr__(self) -> str:
        kind = "linear" if self.linear else "non-linear"
        return f"Likelihood({len(self)} {kind} observations of trajectories {self.shape})"

    def H(self, x: Tensor) -> Tensor:
        """Applies the observation operator.

        Arguments:
            x: Trajectories, with shape `(member, time, channel, *space)`.

        Returns:
            The values, with shape `(member, value)`.

        Raises:
            ValueError: If the trajectories have another shape.
        """

        if x.shape[1:] != self.shape:
            raise ValueError(
                f"the observations are bound to trajectories (member, "
                f"{', '.join(map(str, self.shape))}), got {tuple(x.shape)}"
            )

        return self.operator(x)

    def linearise(
        self, x: Tensor
    ) -> tuple[Tensor, Callable[[Tensor], Tensor], Callable[[Tensor], Tensor]]:
        """Linearises the operator at trajectories `x`.

        Returns:
            The value `H(x)`, with shape `(member, value)`; the tangent-linear model, from
            `(member, *shape)` to `(member, value)`; and its adjoint, the other way round.
        """

        x = ordinary(x)
        value, transpose = torch.func.vjp(self.H, x)[:2]

        def jvp(dx: Tensor) -> Tensor:
            if self.linear:
                return self.part(ordinary(dx))
            return torch.func.jvp(self.H, (x,), (ordinary(dx),))[1]

        def vjp(v: Tensor) -> Tensor:
            return transpose(ordinary(v))[0]

        return value, jvp, vjp

    @property
    def part(self) -> Callable[[Tensor], Tensor]:
        """The linear part of a linear or affine operator, a map like `H`.

        Not `H(dx) - H(0)`: what is large and cancels costs digits. An operator that takes zero to
        zero is its own; of any other the tangent-linear model is taken.
        """

        if self._part is None:
            zero = self.y.new_zeros(1, *self.shape)
            if not bool(self.H(zero).any()):
                self._part = self.operator
            else:
                self._part = lambda dx: torch.func.jvp(self.H, (torch.zeros_like(dx),), (dx,))[1]

        return self._part

    def adjoint(self, v: Tensor) -> Tensor:
        """Applies the adjoint `Hᵀ` of the operator's linear part.

        Arguments:
            v: Values, with shape `(member, value)`.

        Returns:
            Trajectories, with shape `(member, time, channel, *space)`.

        Raises:
            ValueError: If the operator is not linear or the values have another shape.
        """

        if not self.linear:
            raise ValueError("the operator is not linear and has no adjoint: use linearise(x)")
        if v.ndim != 2 or v.shape[1] != len(self):
            raise ValueError(f"expected values (member, {len(self)}), got {tuple(v.shape)}")
        zeros = v.new_zeros((len(v), *self.shape))

        return torch.func.vjp(self.part, ordinary(zeros))[1](ordinary(v))[0]

    def columns(self, batch: int = 256) -> Tensor:
        """The columns `Hᵀ eⱼ` of the adjoint, for linear operators and few observations.

        Arguments:
            batch: The number of columns computed at once.

        Returns:
            The columns, with shape `(value, time, channel, *space)`.

        Raises:
            ValueError: If the operator is not linear.
        """

        eye = torch.eye(len(self), dtype=self.y.dtype, device=self.y.device)

        return torch.cat([self.adjoint(rows) for rows in eye.split(batch)])

    def shifted(self, offset: Tensor) -> "Likelihood":
        """The same likelihood as a function of `x - offset`, for a linear or affine operator.

        The operator stays, and `H(offset) - H(0)` is taken off the observed values.

        Arguments:
            offset: A trajectory, with shape `(time, channel, *space)`.

        Raises:
            ValueError: If the operator is not linear, or the offset has another shape.
        """

        if not self.linear:
            raise ValueError("the operator is not linear: an offset is no matter of values alone")
        offset = ordinary(offset.to(dtype=self.y.dtype, device=self.y.device))[None]
        seen = self.H(offset)[0] - self.H(torch.zeros_like(offset))[0]
        moved = copy.copy(self)
        moved.y = self.y - seen

        return moved

    def normalise(
        self,
        mean: Tensor,
        scale: Tensor,
        restore: Callable[[Tensor], Tensor] | None = None,
    ) -> "Likelihood":
        """The same likelihood as a function of the normalised anomaly `x̃ = (x - mean) / scale`.

        The values and their errors stay in physical units: `H̃(x̃) = H(mean + scale x̃)`.

        Arguments:
            mean: The mean, with shape `(channel, *space)`, or `(time, channel, *space)` where it
                changes with time.
            scale: The scale, with shape `(channel)`.
            restore: What makes physical states of transformed ones, if the mean and scale are of
                those: `H̃(x̃) = H(restore(mean + scale x̃))`. The result is not linear.

        Raises:
            ValueError: If the mean or the scale does not fit the trajectories.
        """

        mean, scale = (
            ordinary(each.to(dtype=self.y.dtype, device=self.y.device)) for each in (mean, scale)
        )
        if mean.shape not in (self.shape[1:], self.shape) or scale.shape != self.shape[1:2]:
            raise ValueError(
                f"mean and scale must have shapes {self.shape[1:]} and {self.shape[1:2]}, "
                f"got {tuple(mean.shape)} and {tuple(scale.shape)}"
            )
        scale = scale.reshape(-1, *(1 for _ in self.shape[2:]))

        def after(fn: Callable[[Tensor], Tensor]) -> Callable[[Tensor], Tensor]:
            return lambda x: fn(torch.addcmul(mean.to(x.dtype), scale.to(x.dtype), x))

        if restore is not None:
            return Likelihood(
                after(lambda x: self.H(restore(x))), self.y, self.std, self.shape, False,
                robust=self.robust,
            )  # fmt: skip
        parts = self.parts and (after(self.parts[0]), self.parts[1])
        inner = self.part if self.linear else None

        return Likelihood(
            after(self.H), self.y, self.std, self.shape, self.linear, parts, self.robust,
            inner and (lambda dx: inner(scale.to(dx.dtype) * dx)),
        )  # fmt: skip

    def log_prob(self, x: Tensor) -> Tensor:
        """The log-density `log p(y | x)` of trajectories, with shape `(member)`."""

        z = (self.y - self.H(x)) / self.std
        if self.robust is not None:
            return (self.robust.log_prob(z) - self.std.log()).sum(dim=-1)
        constant = self.std.log().sum() + 0.5 * math.log(2 * math.pi) * len(self)

        return -0.5 * z.square().sum(dim=-1) - constant


def ordinary(x: Tensor) -> Tensor:
    """A tensor that automatic differentiation accepts, also where inference mode made it."""

    if not x.is_inference():
        return x
    with torch.inference_mode(False):
        return x.clone()
