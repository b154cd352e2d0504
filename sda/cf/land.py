"""Observations that see land in a prior of the ocean: an error that names them.

Where the layout's mask has no states there is nothing to be observed, nor to be interpolated with.
"""

from typing import Any

import numpy as np
import torch

from dynamics.layout import Layout, summary
from dynamics.random import normal

PROBE = 3  # the key of this purpose, see dynamics.random


def check_land(observations: Any, likelihood: Any, layout: Layout) -> None:
    """Raises a `ValueError` if values depend on cells outside the mask.

    Arguments:
        observations: The observations.
        likelihood: Their likelihood, bound to a trajectory of the layout.
        layout: The layout.
    """

    if layout.mask is None:
        return
    y = likelihood.y
    x = normal(0, [0], likelihood.shape, PROBE, dtype=torch.float64).abs().to(y) + 1
    outside = torch.from_numpy(~layout.mask).to(x.device)
    with torch.no_grad():
        seen, other = likelihood.H(x), likelihood.H(torch.where(outside, 2 * x, x))
    rows = np.flatnonzero((seen != other)[0].cpu().numpy())
    if not len(rows):
        return
    table = [each.rows() for each in observations.sets]
    names = [name for name in ("time", *layout.dims) if all(name in part for part in table)]
    first = ", ".join(
        f"{name}={np.concatenate([part[name] for part in table])[rows[0]]:g}" for name in names
    )
    raise ValueError(
        f"{len(rows)} of {y.shape[-1]} observations see cells without states (land in a prior of "
        f"the ocean), the first in row {rows[0]} at {first}: leave out the rows {summarised(rows)}"
    )


def summarised(rows: np.ndarray, most: int = 12) -> str:
    """Numbers of rows for a message."""

    text = ", ".join(map(str, rows[:most]))
    return text if len(rows) <= most else f"{text} and {len(rows) - most} more ({summary(rows)})"
