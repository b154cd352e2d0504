r"""Where floats will be: positions carried by each member's flow, against the truth's.

A forecast ensemble makes an ensemble of positions $p_m$. With the distance d on the surface (around
the sphere, or the short way round a periodic plane) it is scored against the true position p by

$$ \frac1M \sum_m d(p_m, p) - \frac{1}{2M(M-1)} \sum_{m,n} d(p_m, p_n), $$

the energy score, which is the CRPS of positions. For a calibrated ensemble members are as far from
the truth as from each other.
"""

from collections.abc import Sequence
from typing import Any

import numpy as np
import xarray as xr
from numpy.typing import ArrayLike, NDArray

from dynamics.layout import Layout


def carried(
    ensemble: xr.Dataset,
    start: ArrayLike,
    by: str | Sequence[str],
    current: Sequence[float] = (0.0, 0.0),
    layout: Layout | None = None,
) -> NDArray[np.float64]:
    """The positions of floats carried by the flow of each member.

    Arguments:
        ensemble: The trajectories, with dimensions `(member, time, *space)` or without members. The
            floats are at `start` at the first time.
        start: Their positions then, to the north and to the east, with shape `(float, 2)`.
        by: The streamfunction, or the velocities to the east and to the north, see
            `sda.observing.Flow`.
        current: A constant velocity beside it, to the east and to the north.
        layout: The layout of the states (default: read off the ensemble).

    Returns:
        The positions, with shape `(member, time, float, 2)`.

    Raises:
        ValueError: If a variable is unknown, or the positions have another shape.
    """

    from ..observing import Flow

    layout = Layout.from_dataset(ensemble) if layout is None else layout
    places = np.asarray(start, dtype=np.float64)
    if places.ndim != 2 or places.shape[1] != 2:
        raise ValueError(f"positions must have the shape (float, 2), got {places.shape}")
    ensemble = ensemble if "member" in ensemble.dims else ensemble.expand_dims("member")
    times = np.asarray(ensemble["time"].values, dtype=np.float64)

    return np.stack(
        [
            Flow(ensemble.isel(member=m), layout, by, current).advect(places, times)
            for m in range(ensemble.sizes["member"])
        ]
    )


def position_scores(
    members: ArrayLike, truth: ArrayLike, layout: Layout, time: Any = None
) -> xr.Dataset:
    """Scores positions of floats, as means over the floats.

    Arguments:
        members: The positions of each member, with shape `(member, time, float, 2)`.
        truth: The true positions, with shape `(time, float, 2)`.
        layout: The layout of the states that carried them.
        time: The times.

    Returns:
        `distance`, of members from the truth, `dispersion`, of members from each other, and
        `energy_score`, each `(time)` and in km, or in the units of the coordinates.

    Raises:
        ValueError: If the shapes do not fit or there are fewer than two members.
    """

    from ..observing.surface import Surface

    x, y = np.asarray(members, dtype=np.float64), np.asarray(truth, dtype=np.float64)
    if x.ndim != 4 or x.shape[1:] != y.shape or len(x) < 2:
        raise ValueError(
            f"expected positions (member, time, float, 2) of two members or more and the truth's "
            f"without members, got {x.shape} and {y.shape}"
        )
    surface = Surface(layout)

    def apart(a: NDArray, b: NDArray) -> NDArray[np.float64]:
        flat = surface.distance(a.reshape(-1, 2), b.reshape(-1, 2))
        return np.asarray(flat).reshape(a.shape[:-1]).mean(axis=-1)

    distance = np.mean([apart(each, y) for each in x], axis=0)
    pairs = [apart(x[m], x[n]) for m in range(len(x)) for n in range(m)]
    dispersion = np.mean(pairs, axis=0)
    units = {"units": "km" if surface.physical else "1"}
    scores = {
        "distance": distance,
        "dispersion": dispersion,
        "energy_score": distance - dispersion / 2,
    }

    return xr.Dataset(
        {name: ("time", values, units) for name, values in scores.items()},
        {"time": np.arange(len(y)) if time is None else np.asarray(time)},
    )
