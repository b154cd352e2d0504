"""A posterior and its truth, and how to go through them in blocks.

Nothing is loaded but blocks, of the truth as of the posterior. What needs all members of a value is
scored in *parts*: frames together while they are small, slabs of one frame where it is large. What
belongs to a member is scored in *stretches*: some members over some successive frames. Parts do not
depend on memory, so that what draws random numbers for a part is the same on any machine. A block
is never less than a part (a few tens of MiB), or than two states of one member.
"""

from collections.abc import Hashable, Iterator
from dataclasses import dataclass
from typing import Any

import numpy as np
import xarray as xr
from numpy.typing import NDArray

from .cells import cell_mask, cell_weights

# Values per sorting, such that its temporaries stay small beside the block that is loaded.
FRAME_VALUES = 2**22

Entry = tuple[Any, ...]


@dataclass
class Part:
    """All members of some values of one variable.

    Attributes:
        variable: The number of the variable.
        axis: The variable's longest spatial dimension.
        rows: The rows along it.
        x: The members, with shape `(member, time, *space)`.
        y: The truth, with shape `(time, *space)`.
    """

    variable: int
    axis: int
    rows: slice
    x: NDArray
    y: NDArray


@dataclass
class Stretch:
    """Some members over some successive frames.

    Attributes:
        frames: The frames that are new; each frame is new once for each member.
        lead: The number of frames before them, repeated from the stretch before (0 or 1).
        members: The indices of the members.
        x: The members of each variable, with shape `(member, lead + time, *space)`.
        y: The truth of each variable, with shape `(lead + time, *space)`.
        last: Whether no more members follow over these frames.
    """

    frames: slice
    lead: int
    members: NDArray
    x: dict[str, NDArray]
    y: dict[str, NDArray]
    last: bool


@dataclass
class Task:
    """What is verified: a posterior, its truth, and how to go through them.

    Attributes:
        posterior: The ensemble, which may be lazy.
        truth: The truth on the posterior's times, which may be lazy.
        names: The variables.
        one_unit: Whether all variables have the same units.
        levels: The levels of intervals.
        seed: The seed.
        memory: The bytes of posterior to hold at once.
        first: The first frame that counts in averages over time.
    """

    posterior: xr.Dataset
    truth: xr.Dataset
    names: tuple[str, ...]
    one_unit: bool
    levels: tuple[float, ...]
    seed: int
    memory: int
    first: int = 0

    @property
    def length(self) -> int:
        """The number of frames."""
        return int(self.posterior.sizes["time"])

    def dims(self, name: str) -> tuple[Hashable, ...]:
        """The spatial dimensions of a variable."""
        return tuple(d for d in self.posterior[name].dims if d not in ("member", "time"))

    def shape(self, name: str) -> tuple[int, ...]:
        """The spatial shape of a variable."""
        return tuple(self.posterior.sizes[d] for d in self.dims(name))

    def area(self, name: str) -> NDArray[np.float64]:
        """The areas of a variable's cells, with mean one and zero on land, `(*space)`."""
        return cell_weights(self.posterior, self.dims(name))

    def mask(self, name: str) -> NDArray[np.bool_] | None:
        """Where a variable has states, `(*space)`: false on land. None: everywhere."""
        return cell_mask(self.posterior, self.dims(name))

    def state_bytes(self) -> int:
        """The bytes of all variables of one member at one time."""
        members = self.posterior.sizes["member"] * self.length
        return max(1, sum(self.posterior[n].nbytes for n in self.names) // max(1, members))

    def truth_array(self, name: str, **selection: Any) -> NDArray:
        """The truth of a variable, with shape `(time, *space)`, of a part of its dimensions."""
        return self.truth[name].isel(selection).transpose("time", *self.dims(name)).values

    def array(self, name: str, **selection: Any) -> NDArray:
        """The members of a variable, with shape `(member, time, *space)`."""
        part = self.posterior[name].isel(selection)
        return part.transpose("member", "time", *self.dims(name)).values

    def stretches(
        self, members: NDArray, start: int = 0, overlap: bool = False
    ) -> Iterator[Stretch]:
        """Goes through members over time: frames on the outside, members on the inside.

        Arguments:
            members: The members.
            start: The first frame.
            overlap: Whether each stretch repeats the frame before it.
        """

        size = self.state_bytes()
        frames = max(1, self.memory // size - overlap)
        frames = min(frames, self.length - start)
        count = max(1, self.memory // (size * (frames + overlap)))
        for begin in range(start, self.length, frames):
            new = slice(begin, min(begin + frames, self.length))
            lead = int(overlap and begin > start)
            span = slice(new.start - lead, new.stop)
            y = {n: self.truth_array(n, time=span) for n in self.names}
            for i in range(0, len(members), count):
                chosen = members[i : i + count]
                x = {n: self.array(n, member=chosen, time=span) for n in self.names}
                yield Stretch(new, lead, chosen, x, y, i + count >= len(members))

    def parts(
        self, members: NDArray, pool: int | None = None
    ) -> Iterator[tuple[slice, Iterator[Part]]]:
        """Goes through frames, all members of each.

        Arguments:
            members: The members.
            pool: The number of members that parts are made for (default: all of the posterior).
                Two ensembles of one pool go in step.

        Yields:
            Some frames and the parts that make them up, which must be used before the next ones.
        """

        count = pool or self.posterior.sizes["member"]
        values = count * sum(int(np.prod(self.shape(n), dtype=np.int64)) for n in self.names)
        # Distances between all members of a frame are as many as the square of their number.
        step = max(1, FRAME_VALUES // max(values, (1 + count) ** 2))
        frame_bytes = self.state_bytes() * count
        load = self.memory // frame_bytes // step * step
        whole = len(members) == self.posterior.sizes["member"]
        chosen: dict[str, Any] = {} if whole else {"member": members}
        if values > FRAME_VALUES and not load:
            for frame in range(self.length):
                frames = slice(frame, frame + 1)
                yield frames, self.slabs(frames, chosen, count)
            return
        load = max(load, step)
        for begin in range(0, self.length, load):
            stop = min(begin + load, self.length)
            span = slice(begin, stop)
            x = {n: self.array(n, time=span, **chosen) for n in self.names}
            y = {n: self.truth_array(n, time=span) for n in self.names}
            for i in range(begin, stop, step):
                frames = slice(i, min(i + step, stop))
                inside = slice(i - begin, frames.stop - begin)
                yield (
                    frames,
                    self.cut(
                        {n: v[:, inside] for n, v in x.items()},
                        {n: v[inside] for n, v in y.items()},
                        count,
                    ),
                )

    def slab_rows(self, name: str, count: int) -> tuple[int, list[slice]]:
        """The longest dimension of a variable, and the rows along it that make up each part."""

        shape = self.shape(name)
        if not shape:
            return 0, [slice(None)]
        axis = int(np.argmax(shape))
        values = count * int(np.prod(shape, dtype=np.int64))
        rows = max(1, shape[axis] * FRAME_VALUES // values)

        return axis, [slice(i, min(i + rows, shape[axis])) for i in range(0, shape[axis], rows)]

    def slabs(self, frames: slice, chosen: dict[str, Any], count: int) -> Iterator[Part]:
        """The parts of a frame, each loaded by itself."""

        for i, name in enumerate(self.names):
            axis, slabs = self.slab_rows(name, count)
            for rows in slabs:
                where = {str(self.dims(name)[axis]): rows} if self.dims(name) else {}
                x = self.array(name, time=frames, **chosen, **where)
                yield Part(i, axis, rows, x, self.truth_array(name, time=frames, **where))

    def cut(self, x: dict[str, NDArray], y: dict[str, NDArray], count: int) -> Iterator[Part]:
        """The parts of frames that are loaded."""

        for i, name in enumerate(self.names):
            axis, slabs = self.slab_rows(name, count)
            for rows in slabs:
                where = (slice(None),) * (1 + axis) + (rows,) if self.dims(name) else ()
                yield Part(i, axis, rows, x[name][(slice(None), *where)], y[name][where])

    def failed(self) -> NDArray[np.bool_]:
        """Whether each member has a value that is not finite where the truth is."""

        failed = np.zeros(self.posterior.sizes["member"], dtype=bool)
        for stretch in self.stretches(np.arange(len(failed))):
            for name, x in stretch.x.items():
                bad = ~np.isfinite(x) & np.isfinite(stretch.y[name])
                failed[stretch.members] |= bad.any(axis=tuple(range(1, x.ndim)))

        return failed


def divide(a: NDArray, b: NDArray) -> NDArray:
    """Divides, and gives NaN where there is nothing to divide by."""
    return np.asarray(a) / np.where(np.asarray(b) > 0, b, np.nan)
