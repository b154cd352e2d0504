"""The scores of each time's state as one vector, gathered from blocks of its values.

Of a state that is larger than a block no vector is ever made: distances between members, to the
truth and to reference points are sums over blocks, and of the pairs of the variogram few values are
kept.
"""

import numpy as np
import torch
from numpy.typing import NDArray

from dynamics.random import member_generator

from . import calibration
from .joint import ranks_of
from .task import Entry, Part, Task
from .variogram import draw_pairs, variogram_score

REFERENCES = 16


class Vectors:
    """Energy score, variogram score and expected coverage of the joint posterior.

    Distances between states are there only if all variables have the same units. A value counts by
    the area of its cell, and a pair by the geometric mean of its cells'. Reference points
    of the coverage are drawn, for each time, in the smallest box that holds truth and members, and
    distances from them are in units of its sides.

    Arguments:
        task: What is verified.
        members: The number of members that are scored.
    """

    def __init__(self, task: Task, members: int) -> None:
        self.task, self.members = task, members
        self.energy = np.full(task.length, np.nan)
        self.variogram = np.full(task.length, np.nan)
        self.counts = np.zeros((members + 1, members + 1))
        self.sizes = [int(np.prod(task.shape(n), dtype=np.int64)) for n in task.names]
        self.pairs = self.chosen_pairs()
        self.pair_weights = self.chosen_weights()
        # The values that pairs need, and where they are among the values that are kept.
        self.points, inverse = np.unique(self.pairs, return_inverse=True)
        self.kept_pairs = inverse.reshape(self.pairs.shape)
        self.offsets = np.concatenate([[0], np.cumsum(self.sizes)])

    def chosen_pairs(self) -> NDArray[np.int64]:
        """The pairs of values of the variogram score."""

        task = self.task
        if not task.one_unit:
            return np.zeros((0, 2), dtype=np.int64)
        periodic = [
            tuple("period" in task.posterior[d].attrs for d in task.dims(n)) for n in task.names
        ]

        return draw_pairs([task.shape(n) for n in task.names], periodic, task.seed)

    def chosen_weights(self) -> NDArray[np.float64]:
        """The weights of the pairs."""

        if not len(self.pairs):
            return np.zeros(0)
        w = np.concatenate([self.task.area(n).ravel() for n in self.task.names])

        return np.sqrt(w[self.pairs].prod(axis=1))

    def start(self, frames: slice) -> None:
        """Begins with some frames."""

        self.frames, n = frames, frames.stop - frames.start
        pool = self.members + 1
        if self.task.one_unit:
            self.squares = torch.zeros((n, pool, pool), dtype=torch.float64)
        self.references = np.zeros((n, REFERENCES, pool))
        self.known = np.zeros(n, dtype=bool)
        self.values = np.full((pool, n, len(self.points)), np.nan)

    def add(self, part: Part, weights: NDArray) -> None:
        """Adds a part, with the weights of its values, zero where the truth is unknown."""

        length = len(part.y)
        seen = weights.reshape(length, -1) > 0
        pool = np.concatenate([part.y[None], part.x]).reshape(self.members + 1, length, -1)
        if len(self.points):
            self.keep(part, pool)
        pool = np.where(seen, pool, 0).astype(np.float64)
        self.known |= seen.any(axis=1)
        if self.task.one_unit:
            root = np.sqrt(weights.reshape(length, -1))
            x = torch.from_numpy(np.ascontiguousarray(np.moveaxis(root * pool, 0, 1)))
            d = torch.cdist(x, x, compute_mode="donot_use_mm_for_euclid_dist")
            self.squares += d.square()
        low = pool.min(axis=0)
        width = pool.max(axis=0) - low
        z = (pool - low) / np.where(width > 0, width, 1)
        w = weights.reshape(length, -1) * (width > 0)
        size = np.einsum("dfv,dfv,fv->fd", z, z, w, optimize=True)
        start = part.rows.start or 0
        for r in range(REFERENCES):
            rng = member_generator(self.task.seed, r, 2, part.variable, self.frames.start, start)
            inner = np.einsum("dfv,fv->fd", z, w * rng.random(w.shape), optimize=True)
            self.references[:, r] += size - 2 * inner

    def keep(self, part: Part, pool: NDArray) -> None:
        """Keeps the values of a part that pairs need."""

        name = self.task.names[part.variable]
        shape, offset = self.task.shape(name), self.offsets[part.variable]
        mine = (self.points >= offset) & (self.points < offset + self.sizes[part.variable])
        index = self.points[mine] - offset
        if shape:
            axis = part.axis
            places = list(np.unravel_index(index, shape))
            rows = range(shape[axis])[part.rows]
            inside = (places[axis] >= rows.start) & (places[axis] < rows.stop)
            mine[mine] = inside
            places = [place[inside] for place in places]
            places[axis] = places[axis] - rows.start
            index = np.ravel_multi_index(tuple(places), part.y.shape[1:])
        self.values[:, :, mine] = pool[:, :, index]

    def finish(self) -> None:
        """Scores the frames that were begun, whose parts have all been added."""

        m, at = self.members, np.arange(self.frames.start, self.frames.stop)
        if self.task.one_unit:
            d = self.squares.sqrt().numpy()
            score = d[:, 0, 1:].mean(1) - d[:, 1:, 1:].sum((1, 2)) / (2 * m * (m - 1))
            self.energy[at[self.known]] = score[self.known]
        if len(self.points):
            for j, frame in enumerate(at):
                y, x = self.values[0, j], self.values[1:, j]
                self.variogram[frame] = variogram_score(
                    x, y, self.kept_pairs, weights=self.pair_weights
                )
        counted = self.known & (at >= self.task.first)
        for row, ranks in enumerate(np.moveaxis(ranks_of(self.references[counted]), -1, 0)):
            self.counts[row] += np.bincount(ranks.ravel(), minlength=m + 1)

    def scores(self) -> dict[str, Entry]:
        """The scores of all frames."""

        levels = np.asarray(self.task.levels)
        scores: dict[str, Entry] = {}
        covered = calibration.cumulative(self.counts, levels)
        low, high = calibration.band(covered)
        for name, values in (("", covered[0]), ("_low", low), ("_high", high)):
            scores[f"joint_coverage{name}"] = ("level", values)
        for name, values, there in (
            ("energy_score", self.energy, self.task.one_unit),
            ("variogram_score", self.variogram, len(self.points) > 0),
        ):
            if there:
                late = values[self.task.first :]
                late = late[np.isfinite(late)]
                scores[name] = ("time", values)
                scores[f"overall_{name}"] = ((), late.mean() if len(late) else np.nan)

        return scores
