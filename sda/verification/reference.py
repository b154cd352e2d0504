"""Distances of a posterior from a reference ensemble of the same posterior."""

import importlib.util

import numpy as np
import torch
from numpy.typing import NDArray

from .scores import rows, transport
from .task import Entry, Task
from .two_sample import mmd_of


def reference_scores(
    task: Task, members: NDArray, reference: Task, draws: NDArray
) -> dict[str, Entry]:
    """W1 and MMD between the trajectories of two ensembles.

    Only distances between members are kept: squared ones are sums over blocks of values, each by
    the area of its cell. Where the
    variables have different units, each is scaled by the spread of the reference, and there is no
    W1.

    Arguments:
        task: The posterior.
        members: Its members.
        reference: The reference ensemble, at the same times.
        draws: Its members.
    """

    n, total = len(members), len(members) + len(draws)
    roots = [np.sqrt(task.area(name)) for name in task.names]
    squares = torch.zeros((len(task.names), total, total), dtype=torch.float64)
    both = zip(task.parts(members, total), reference.parts(draws, total), strict=True)
    for (frames, ours), (_, theirs) in both:
        late = max(0, task.first - frames.start)
        for a, b in zip(ours, theirs, strict=True):
            pool = np.concatenate([a.x[:, late:], b.x[:, late:].astype(a.x.dtype)])
            root = roots[a.variable]
            root = root[(slice(None),) * a.axis + (a.rows,)] if root.ndim else root
            x = rows(root * np.where(np.isfinite(a.y[late:]), pool, 0))
            d = torch.cdist(x, x, compute_mode="donot_use_mm_for_euclid_dist")
            squares[a.variable] += d.square()
    if task.one_unit:
        distance = squares.sum(0).sqrt().numpy()
    else:
        within = squares[:, n:, n:].mean(dim=(1, 2), keepdim=True)
        distance = (squares / within).sum(0).sqrt().numpy()

    test = mmd_of(distance, n, seed=task.seed)
    scores: dict[str, Entry] = {
        "mmd": ((), test.mmd),
        "mmd_p_value": ((), test.p_value),
        "mmd_bandwidth": ((), test.bandwidth),
    }
    if task.one_unit and importlib.util.find_spec("ot") is not None:
        scores["w1"] = ((), transport(distance[:n, n:]))

    return scores
