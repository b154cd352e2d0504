r"""Observations as a sequential method meets them: one analysis time after the other.

The model's states are at the times `time[0] < time[1] < …`. What is observed after one state and
until the next belongs to the analysis at the latter,

    y_i = H_i(x_{i-1}, x_i) + ε_i,    ε_i ~ N(0, R_i),

where `x_{i-1}` plays a part only if an observation lies between two states and is interpolated.
"""

from collections.abc import Sequence
from dataclasses import dataclass, field
from functools import cached_property

import numpy as np
import torch
from torch import Tensor

from dynamics.layout import Layout

from .domain import TIME_TOLERANCE, Grid
from .interpolate import Interpolate
from .likelihood import ordinary
from .observations import Observations, ObservationSet
from .operator import Bound, Compose, Operator
from .select import Mask


@dataclass
class ObservedTime:
    """What is observed at one analysis time.

    Attributes:
        index: The state that is analysed; 0 is the first of the run.
        time: Its time.
        y: The values, with shape `(repetition, value)`.
        std: The standard deviations of their errors, with shape `(value)`; `R = diag(std²)`.
        linear: Whether `H` is linear or affine.
        frames: The number of states that `H` sees, the last of which is the one at `index`.
        columns: Time, variable and coordinates of each value; NaN where it has none.
    """

    index: int
    time: float
    y: Tensor
    std: Tensor
    linear: bool
    frames: int
    columns: dict[str, np.ndarray]
    parts: list[tuple[Bound, Tensor | None]] = field(repr=False)
    shape: tuple[int, ...] = field(repr=False)

    def __len__(self) -> int:
        return len(self.std)

    def H(self, x: Tensor) -> Tensor:
        """Applies the observation operator, differentiably.

        Arguments:
            x: States, with shape `(member, frames, channel, *space)`.

        Returns:
            The values, with shape `(member, value)`.
        """

        values = [
            bound(x).flatten(1) if index is None else bound(x).flatten(1).index_select(1, index)
            for bound, index in self.parts
        ]
        return values[0] if len(values) == 1 else torch.cat(values, dim=1)

    @cached_property
    def offset(self) -> Tensor:
        """The constant part `H(0)` of an affine operator, with shape `(value)`."""
        return self.H(self.y.new_zeros((1, self.frames, *self.shape)))[0]

    @cached_property
    def matrix(self) -> Tensor:
        """The matrix of the linear part, with shape `(value, frames · state)`.

        Raises:
            ValueError: If the operator is not linear.
        """

        if not self.linear:
            raise ValueError(
                f"the observations at time {self.time:g} are not linear and have no matrix"
            )
        zeros = self.y.new_zeros((len(self), self.frames, *self.shape))
        eye = torch.eye(len(self), dtype=self.y.dtype, device=self.y.device)

        return torch.func.vjp(self.H, ordinary(zeros))[1](eye)[0].flatten(1)


def sequence(
    observations: Observations | Sequence[Observations],
    layout: Layout,
    time: Sequence[float] | np.ndarray,
    dtype: torch.dtype = torch.float32,
    device: torch.device | str = "cpu",
) -> list[ObservedTime]:
    """Splits observations by the model's times.

    Arguments:
        observations: The observations, or those of several repetitions that are observed in the
            same way (the same operators, times and errors, other values).
        layout: The layout of the state.
        time: The times of the model's states, in steps of the layout's `dt`.
        dtype: The precision of the states.
        device: Their device.

    Raises:
        ValueError: If an observation lies before the first or after the last state or depends on
            several times at once, two values of a table are of the same place, or the repetitions
            are observed in different ways.
    """

    repetitions = [observations] if isinstance(observations, Observations) else list(observations)
    check_repetitions(repetitions)
    if repetitions[0].robust:
        raise ValueError(
            "methods that go from one time to the next need Gaussian errors, but some are "
            f"{sorted({each.errors for each in repetitions[0].sets})}: call "
            "observations.with_errors('gaussian') after a quality control"
        )
    grid = Grid.of(layout, time)
    slack = TIME_TOLERANCE * layout.dt
    first, last = repetitions[0].span
    if first < grid.time[0] - slack or last > grid.time[-1] + slack:
        raise ValueError(
            f"the observations span times {first:g} to {last:g}, but the model's states only "
            f"{grid.time[0]:g} to {grid.time[-1]:g}: start earlier, or leave out what is before "
            f"the first state or after the last"
        )

    pieces: dict[int, list[_Piece]] = {}
    for number, each in enumerate(repetitions[0].sets):
        each.check_places(grid)
        sets = [repetition.sets[number] for repetition in repetitions]
        for piece in split(each, sets, grid, slack, dtype, device):
            pieces.setdefault(piece.index, []).append(piece)

    found = []
    for index in sorted(pieces):
        group = pieces[index]
        frames = max(piece.frames for piece in group)
        if len({piece.frames for piece in group}) > 1:
            group = [piece.widened(grid, dtype, device) for piece in group]
        found.append(
            ObservedTime(
                index=index,
                time=float(grid.time[index]),
                y=torch.from_numpy(np.concatenate([p.y for p in group], 1)).to(device, dtype),
                std=torch.from_numpy(np.concatenate([p.std for p in group])).to(device, dtype),
                linear=all(piece.bound.linear for piece in group),
                frames=frames,
                columns=columns(group, grid),
                parts=[(piece.bound, piece.kept(device)) for piece in group],
                shape=grid.shape[1:],
            )
        )

    return found


def check_repetitions(repetitions: Sequence[Observations]) -> None:
    """Raises a `ValueError` unless all are observed in the same way."""

    if not repetitions:
        raise ValueError("expected observations of at least one repetition, got none")
    for number, other in enumerate(repetitions[1:], start=1):
        for a, b in zip(repetitions[0].sets, other.sets, strict=False):
            same = a.operator is b.operator or a.operator.config() == b.operator.config()
            same = same and np.array_equal(a.seen, b.seen)
            if not (same and np.array_equal(a.std, b.std, equal_nan=True)):
                break
        else:
            if len(other.sets) == len(repetitions[0].sets):
                continue
        raise ValueError(
            f"repetitions that run together must be observed in the same way (operators, times, "
            f"gaps and errors), but number {number} differs from number 0: run it by itself"
        )


@dataclass
class _Piece:
    """The part of a set of observations that belongs to one analysis time."""

    index: int
    operator: Operator
    bound: Bound
    frames: int
    seen: np.ndarray
    y: np.ndarray
    std: np.ndarray
    rows: dict[str, np.ndarray]

    def kept(self, device: torch.device | str) -> Tensor | None:
        if self.seen.all():
            return None
        return torch.from_numpy(np.flatnonzero(self.seen)).to(device)

    def widened(self, grid: Grid, dtype: torch.dtype, device: torch.device | str) -> "_Piece":
        """The same piece as a function of two states."""

        if self.frames == 2:
            return self
        self.bound = self.operator.bind(frames(grid, self.index, 2), dtype, device)
        self.frames = 2
        return self


def split(
    each: ObservationSet,
    sets: Sequence[ObservationSet],
    grid: Grid,
    slack: float,
    dtype: torch.dtype,
    device: torch.device | str,
) -> list[_Piece]:
    """Splits one set of observations, with its values in every repetition."""

    rows = each.domain.rows()
    times = np.asarray(rows["time"], dtype=np.float64)
    if np.isnan(times).any():
        # Values without a time of their own: the operator's last time is theirs.
        named = [t for t in each.operator.times() if len(t)]
        times = np.where(np.isnan(times), named[-1][-1], times)
    state = np.searchsorted(grid.time, times - slack)
    whole = np.abs(times - grid.time[np.minimum(state, len(grid.time) - 1)]) <= slack
    order = np.argsort(state, kind="stable")
    indices, starts = np.unique(state[order], return_index=True)

    y, std, seen = [s.y.ravel() for s in sets], each.std.ravel(), each.seen.ravel()
    steady, bounds = is_steady(each.operator), {}
    pieces = []
    for index, mine in zip(indices.tolist(), np.split(order, starts[1:]), strict=True):
        if not seen[mine].any():
            continue
        mine.sort()
        count = 1 if whole[mine].all() else 2
        before = grid.time[index - 1] if index else -np.inf
        operator = each.operator.during(before + slack, grid.time[index] + slack)
        # The same selection at another time is the same function of the state there.
        offsets = np.round((times[mine] - grid.time[index]) / slack).astype(np.int64)
        key = (count, offsets.tobytes())
        if not steady or key not in bounds:
            bounds[key] = operator.bind(frames(grid, index, count), dtype, device)
        keep = mine[seen[mine]]
        pieces.append(
            _Piece(
                index, operator, bounds[key], count, seen[mine],
                np.stack([values[keep] for values in y]), std[keep],
                {name: column[keep] for name, column in rows.items()},
            )
        )  # fmt: skip

    return pieces


def frames(grid: Grid, index: int, count: int) -> Grid:
    """The grid of the `count` states that end at `index`."""
    time = grid.time[index + 1 - count : index + 1]
    return Grid(grid.variables, time, grid.coords, grid.period, grid.layout)


def is_steady(operator: Operator) -> bool:
    """Whether an operator does the same at all of its times."""

    parts = operator.operators if isinstance(operator, Compose) else (operator,)
    return not any(
        (isinstance(part, Interpolate) and "time" in part.points)
        or (isinstance(part, Mask) and (part.dims is None or "time" in part.dims))
        for part in parts
    )


def columns(group: Sequence[_Piece], grid: Grid) -> dict[str, np.ndarray]:
    """Time, variable and coordinates of each value of an analysis time."""

    unknown = [np.full(len(piece.std), np.nan) for piece in group]
    found: dict[str, np.ndarray] = {
        "variable": np.concatenate([piece.rows["variable"] for piece in group])
    }
    for name in ("time", *grid.dims):
        parts = [piece.rows.get(name, nan) for piece, nan in zip(group, unknown, strict=True)]
        found[name] = np.concatenate(parts)

    return found
