r"""Observations as a filter meets them: those of the last states, whenever they came in.

A filter looks at the observations of a window of states that moves on with every cycle. What comes
in is taken apart into *pieces*, one for each step of the model (or several steps, where an operator
needs the states of several times at once), and a window is put together from the pieces whose
states lie in it,

    y = (y_j),    H(x) = (H_j(x_{j-1}, x_j)),    first ≤ j ≤ last.

The values are ordered by time, variable and place. What a window sees therefore does not depend on
the order in which pieces came in, nor on how they were batched. Two windows whose operators, errors
and gaps agree relative to their last states have the same *signature*, and share all that does not
depend on the values themselves.
"""

import json
import math
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import torch
from torch import Tensor

from dynamics.layout import Layout

from .domain import TIME_TOLERANCE, Domain, Grid, Points
from .likelihood import Likelihood
from .observations import Observations, ObservationSet
from .operator import Operator

# The largest matrix of an affine operator, in values, that is made once in place of calling it.
MATRIX = 1 << 22


@dataclass
class Piece:
    """Observations of one step, or of several that one operator needs at once.

    Attributes:
        first: The first state that the operator sees, in steps since the start.
        last: The last.
        values: The observations.
        key: What two pieces have in common that are the same but for their time and their values;
            None if that cannot be known.
        columns: What values are ordered by, each with shape `(value)`.
    """

    first: int
    last: int
    values: ObservationSet
    key: str | None = None
    columns: list[np.ndarray] = field(default_factory=list, repr=False)

    def __len__(self) -> int:
        return len(self.values)


def split(observations: Observations, layout: Layout, start: float) -> list[Piece]:
    """Takes observations apart by the model's steps.

    An observation between two states belongs to the later one, and sees both.

    Arguments:
        observations: The observations.
        layout: The layout of the state.
        start: The time of step 0. Earlier steps have negative numbers.
    """

    return [piece for each in observations.sets for piece in split_set(each, layout, start)]


def split_set(each: ObservationSet, layout: Layout, start: float) -> list[Piece]:
    """Takes one set apart by the model's steps."""

    dt, slack = layout.dt, TIME_TOLERANCE
    named = [times for times in each.operator.times() if len(times)]
    span = (np.concatenate(named) - start) / dt
    times = np.asarray(each.domain.rows()["time"], dtype=np.float64)
    unknown = np.isnan(times)
    whole = Piece(
        math.floor(span.min() + slack), math.ceil(span.max() - slack), each, None
    )  # fmt: skip
    if unknown.any() and max(map(len, named)) > 1:
        return [finished(whole, layout, start)]
    times = (np.where(unknown, named[-1][-1], times) - start) / dt
    steps = np.ceil(times - slack).astype(np.int64)

    pieces = []
    for step in np.unique(steps).tolist():
        mine = steps == step
        if not each.seen.ravel()[mine].any():
            continue
        edges = (start + (step - 1 + slack) * dt, start + (step + slack) * dt)
        try:
            operator = each.operator.during(*edges)
        except ValueError:
            # It needs several times at once.
            return [finished(whole, layout, start)]
        exact = bool((np.abs(times[mine] - step) <= slack).all())
        part = subset(each, operator, mine)
        pieces.append(finished(Piece(step if exact else step - 1, step, part), layout, start))

    return pieces


def subset(each: ObservationSet, operator: Operator, mine: np.ndarray) -> ObservationSet:
    """The values `mine`, flat booleans, of a set, seen through an operator for them alone."""

    domain: Domain
    if isinstance(each.domain, Grid):
        grid = each.domain
        keep = mine.reshape(len(grid.time), -1).any(1)
        domain = Grid(grid.variables, grid.time[keep], grid.coords, grid.period)
        return ObservationSet(operator, domain, each.y[keep], each.std[keep], each.errors)
    domain = Points({name: column[mine] for name, column in each.domain.columns.items()})

    return ObservationSet(operator, domain, each.y[mine], each.std[mine], each.errors)


def finished(piece: Piece, layout: Layout, start: float) -> Piece:
    """The piece with what it is known and ordered by."""

    each, dt = piece.values, layout.dt
    reference, unit = start + piece.last * dt, TIME_TOLERANCE * dt
    rows = each.rows()
    times = np.asarray(rows["time"], dtype=np.float64)
    times = np.where(np.isnan(times), each.operator.times()[-1][-1], times)
    unknown = np.full(len(each), np.nan)
    piece.columns = [
        np.round((times - reference) / unit) + piece.last / TIME_TOLERANCE,
        rows["variable"].astype(str),
        *(np.asarray(rows.get(dim, unknown), dtype=np.float64) for dim in layout.dims),
        rows["std"],
        rows["observation"],
    ]
    try:
        config = relative(each.operator.config(), reference, unit)
    except ValueError:  # a function without a name
        return piece
    text = json.dumps(config, sort_keys=True, default=str)
    piece.key = f"{text} {each.std.tobytes().hex()} {each.seen.tobytes().hex()} {each.errors}"

    return piece


def relative(config: Any, reference: float, unit: float) -> Any:
    """An operator's configuration with times relative to a reference, in whole units."""

    if isinstance(config, list):
        return [relative(each, reference, unit) for each in config]
    if not isinstance(config, dict):
        return config
    found = {}
    for name, value in config.items():
        if name in ("times", "time") and isinstance(value, list):
            shifted = (np.asarray(value, dtype=np.float64) - reference) / unit
            found[name] = np.round(shifted).astype(int).tolist()
        else:
            found[name] = relative(value, reference, unit)

    return found


class Window:
    """The observations of the states `last - length + 1` to `last`.

    Arguments:
        pieces: The pieces; those that see states outside are left out.
        layout: The layout of the state.
        start: The time of step 0.
        last: The last state.
        length: The number of states.
    """

    def __init__(
        self, pieces: Sequence[Piece], layout: Layout, start: float, last: int, length: int
    ) -> None:
        first = last - length + 1
        inside = [piece for piece in pieces if piece.first >= first and piece.last <= last]
        self.pieces = sorted(inside, key=lambda piece: (piece.last, piece.key or "", len(piece)))
        self.layout, self.start, self.last, self.length = layout, start, last, length
        rows = [piece.values.rows() for piece in self.pieces]
        self.order = np.arange(sum(map(len, self.pieces)))
        if len(self.order):
            columns = [np.concatenate(each) for each in zip(*self._columns(), strict=True)]
            self.order = np.lexsort(columns[::-1])
        self.y, self.std = (
            np.concatenate([row[name] for row in rows])[self.order] if rows else np.empty(0)
            for name in ("observation", "std")
        )

    def _columns(self) -> list[list[np.ndarray]]:
        return [piece.columns for piece in self.pieces]

    def __len__(self) -> int:
        return len(self.order)

    @property
    def times(self) -> np.ndarray:
        """The times of the states, with shape `(length)`."""
        steps = np.arange(self.last - self.length + 1, self.last + 1)
        return self.start + self.layout.dt * steps

    @property
    def signature(self) -> tuple[Any, ...] | None:
        """What two windows have in common that differ by their time and values alone."""

        if any(piece.key is None for piece in self.pieces):
            return None
        keys = tuple((piece.last - self.last, piece.key) for piece in self.pieces)

        return (*keys, self.order.tobytes())

    def seen(self, prior: Any, dtype: torch.dtype, device: torch.device | str) -> Tensor:
        """The observed values as `likelihood` has them, with what is known of their dates off."""

        if prior.mapping is None:
            return torch.from_numpy(self.y).to(device, dtype)
        observations = Observations([piece.values for piece in self.pieces])
        given = prior.likelihood(observations, self.times, dtype, device)

        return given.y[torch.from_numpy(self.order).to(device)]

    def likelihood(self, prior: Any, dtype: torch.dtype, device: torch.device | str) -> Likelihood:
        """The likelihood of trajectories of normalised anomalies.

        Arguments:
            prior: The prior, see `sda.Prior.likelihood`.
            dtype: The precision of the trajectories.
            device: Their device.

        Raises:
            ValueError: If an observation does not fit the layout.
        """

        observations = Observations([piece.values for piece in self.pieces])
        given = prior.likelihood(observations, self.times, dtype, device)
        order = torch.from_numpy(self.order).to(device)
        y, std = given.y[order], given.std[order]
        robust = None if given.robust is None else given.robust.take(order)
        if given.linear and len(y) * math.prod(given.shape) <= MATRIX:
            offset = given.H(torch.zeros((1, *given.shape), dtype=dtype, device=device))[:, order]
            matrix = given.columns().flatten(1)[order].T.contiguous()

            def affine(x: Tensor) -> Tensor:
                return torch.addmm(offset, x.flatten(1), matrix)

            return Likelihood(affine, y, std, given.shape, True, robust=robust)

        parts = None
        if given.parts is not None:
            back, (inner, outer) = torch.argsort(order), given.parts
            parts = (
                lambda x: inner(x).index_select(1, order),
                lambda z: outer(z.index_select(1, back)).index_select(1, order),
            )

        return Likelihood(
            lambda x: given.operator(x).index_select(1, order),
            y, std, given.shape, given.linear, parts, robust,
        )  # fmt: skip
