r"""Static background-error covariances `B = U Uᵀ`, for interpolation and variational methods.

By default B is that of the climatology, estimated from a long run of the system and times a factor:
homogeneous, one block per wavenumber, along periodic dimensions; dense for small states; low rank
plus diagonal for all others (see `sda.climatology`). With the square root `U` a state `x_b + U v`
has the background distribution if `v` is white noise, and the background term of a cost function
is `½ |v|²`: the control variables are preconditioned (Lorenc 1997).

References:
    | Lorenc (1997), Development of an operational variational assimilation scheme.
    | Parrish, Derber (1992), The National Meteorological Center's spectral
      statistical-interpolation analysis system, Mon. Wea. Rev. 120.
"""

import math
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
import xarray as xr
from torch import Tensor

from dynamics.random import member_generator
from dynamics.system import System

from ..climatology import Climatology
from ..covariance import Covariance, DenseCovariance
from .base import Noise
from .initial import cholesky

LONG_RUN = 231  # the key of this purpose, see dynamics.random
TRAJECTORIES, SPINUP = 16, 256
# The values of a long run: fewer states of large systems.
LENGTHS, RUN_VALUES = (64, 2048), 2**24


@dataclass
class Background:
    """A background-error covariance `B = U Uᵀ`.

    Attributes:
        size: The number of control variables.
        shape: The shape of a state, `(channel, *space)`.
        root: Applies `U`: control variables `(B, size)` to states `(B, channel, *space)`.
        adjoint: Applies `Uᵀ`.
    """

    size: int
    shape: tuple[int, ...]
    root: Callable[[Tensor], Tensor]
    adjoint: Callable[[Tensor], Tensor]

    def draw(self, noise: Noise, number: int) -> Tensor:
        """Draws from N(0, B), with shape `(repetition, number, channel, *space)`."""

        white = noise.normal("output", (number, self.size))
        return self.root(white.flatten(0, 1)).unflatten(0, white.shape[:2])


def long_run(system: System, states: int | None = None, spinup: int = SPINUP) -> xr.Dataset:
    """The climatology of a system by simulation: 16 trajectories after a spin-up.

    Arguments:
        system: The system.
        states: The number of states of each trajectory (default: 2,048 for small states, fewer for
            larger ones, and not under 64).
        spinup: The number of steps of spin-up.

    Raises:
        ValueError: If a number is out of range.
    """

    if states is None:
        values = TRAJECTORIES * math.prod(system.layout.shape)
        states = int(np.clip(RUN_VALUES // values, *LENGTHS))
    if states < 2 or spinup < 0:
        raise ValueError(
            f"a long run needs at least 2 states and no negative spin-up, got {states} and {spinup}"
        )
    # A seed of its own: the climatology is not made of any truth.
    seed = int(member_generator(0, 0, LONG_RUN).integers(2**31))

    return system.simulate(TRAJECTORIES, states, spinup=spinup, seed=seed, progress=False)


def climatology(system: System, given: Any = None) -> tuple[Climatology, xr.Dataset | None]:
    """The climatology of a system: from what is given, or from a long run.

    Arguments:
        system: The system.
        given: A `Climatology`, a dataset of states, or None for a long run.

    Returns:
        The climatology, and the states that it is made of, if they are at hand.

    Raises:
        TypeError: If it is something else.
        ValueError: If it is that of another layout.
    """

    if isinstance(given, Climatology):
        if given.layout.shape != system.layout.shape:
            raise ValueError(
                f"the climatology is one of states {given.layout.shape}, but those of "
                f"{type(system).__name__} are {system.layout.shape}"
            )
        return given, None
    if given is None:
        given = long_run(system)
    if not isinstance(given, xr.Dataset):
        raise TypeError(
            f"expected a climatology as sda.Climatology, a dataset of states, or None for a long "
            f"run, got {type(given).__name__}"
        )
    given = given.expand_dims("member") if "member" not in given.dims else given

    return Climatology.fit(given, window=1, layout=system.layout), given


def climatological(climate: Climatology, factor: float, like: Tensor) -> Background:
    """The covariance of a climatology, times a factor."""

    covariance: Covariance = climate.covariance(1, like.dtype).to(like.device)
    shape = climate.layout.shape
    scale = climate.scale.to(like).reshape(-1, *[1] * (len(shape) - 1)) * math.sqrt(factor)
    root = covariance.eigenvalues.clamp(min=0).sqrt()

    return Background(
        len(root),
        shape,
        lambda v: scale * covariance.inverse(root * v)[:, 0],
        lambda x: root * covariance.transform((scale * x)[:, None]),
    )


def given_covariance(
    matrix: Any, factor: float, shape: tuple[int, ...], like: Tensor
) -> Background:
    """A covariance of one's own, times a factor.

    Arguments:
        matrix: The covariance `(n, n)` of states of `n` values, or a variance that broadcasts to
            the state.
        factor: The factor.
        shape: The shape of the state.
        like: A tensor with the precision and device.

    Raises:
        ValueError: If it is not symmetric positive definite or does not fit the state.
    """

    matrix, size = np.asarray(matrix, dtype=np.float64), math.prod(shape)
    if matrix.ndim == 2 and matrix.shape == (size, size) and matrix.shape != shape:
        cholesky("the background-error covariance", matrix)
        covariance = DenseCovariance(torch.from_numpy(matrix), (1, *shape), like.dtype)
        covariance = covariance.to(like.device)
        root = (factor * covariance.eigenvalues).sqrt()
        return Background(
            size,
            shape,
            lambda v: covariance.inverse(root * v)[:, 0],
            lambda x: root * covariance.transform(x[:, None]),
        )
    try:
        variance = np.broadcast_to(matrix, shape)
    except ValueError as error:
        raise ValueError(
            f"a background-error covariance must be ({size}, {size}), or a variance that "
            f"broadcasts to the state {shape}, got shape {matrix.shape}"
        ) from error
    if not (np.isfinite(variance).all() and (variance > 0).all()):
        raise ValueError(
            f"background-error variances must be positive and finite, got {variance.min():g}"
        )
    std = torch.from_numpy(np.sqrt(factor * variance)).to(like)

    return Background(
        size, shape, lambda v: v.unflatten(1, shape) * std, lambda x: (x * std).flatten(1)
    )


def check_factor(name: str, factor: float) -> None:
    """Raises a `ValueError` unless the factor of a background-error covariance is positive."""

    if not (math.isfinite(factor) and factor > 0):
        raise ValueError(
            f"the factor of the background-error covariance of {name} must be positive, got "
            f"{factor!r}"
        )
