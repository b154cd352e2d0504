"""Whether places make sense on a grid: not on land, and of one convention of longitudes."""

from collections.abc import Mapping

import numpy as np

from dynamics.layout import Layout


def check_longitudes(rows: Mapping[str, np.ndarray], layout: Layout) -> None:
    """Raises a `ValueError` if longitudes of both -180 … 180 and 0 … 360 are mixed.

    Either convention is understood by itself, whatever that of the state.

    Arguments:
        rows: The columns of a table.
        layout: The layout of the state.
    """

    dim = layout.dims[-1] if layout.spherical else None
    if dim is None or dim not in rows:
        return
    longitude = np.asarray(rows[dim], dtype=np.float64)
    west, east = int((longitude < 0).sum()), int((longitude > 180).sum())
    if west and east:
        raise ValueError(
            f"the column {dim!r} mixes longitudes of -180 … 180 ({west} below 0, the first "
            f"{longitude[longitude < 0][0]:g}) and of 0 … 360 ({east} above 180, the first "
            f"{longitude[longitude > 180][0]:g}): give all of them in one convention"
        )


def check_land(rows: Mapping[str, np.ndarray], layout: Layout) -> None:
    """Raises a `ValueError` if observations lie in cells without a state.

    Arguments:
        rows: The columns of a table.
        layout: The layout of the state.
    """

    if layout.mask is None or not set(layout.dims) <= set(rows):
        return
    index = []
    for dim in layout.dims:
        nodes, values = layout.coords[dim], np.asarray(rows[dim], dtype=np.float64)
        period, size = layout.period.get(dim), len(nodes)
        if period is not None:
            values = nodes[0] + np.mod(values - nodes[0], period)
            nodes = np.append(nodes, nodes[0] + period)
        between = (nodes[1:] + nodes[:-1]) / 2
        index.append(np.searchsorted(between, values, side="right") % size)
    dry = ~layout.mask[tuple(index)]
    if dry.any():
        first = int(np.flatnonzero(dry)[0])
        place = ", ".join(f"{dim} = {float(rows[dim][first]):g}" for dim in layout.dims)
        raise ValueError(
            f"{int(dry.sum())} of {len(dry)} observations lie on land, where the state has no "
            f"values, the first of {rows['variable'][first]!r} at {place}: remove them, or move "
            f"them to the sea"
        )
