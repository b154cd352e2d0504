"""What hides the state: a random field that drifts, or the state itself."""

from dataclasses import dataclass
from statistics import NormalDist
from typing import Any

import numpy as np
import xarray as xr

from dynamics.layout import Layout

from .random_field import RandomField
from .surface import Surface


@dataclass(frozen=True)
class Clouds:
    """A cloud mask.

    Arguments:
        share: The share of places and times under clouds.
        scale: The size of clouds, in km.
        duration: How long they last, in the layout's units of time.
        variable: Cloudy where this variable is high (with a minus before its name: low), in place
            of a random field.
    """

    share: float
    scale: float
    duration: float
    variable: str | None = None

    def hide(
        self,
        generator: np.random.Generator,
        positions: np.ndarray,
        time: np.ndarray,
        truth: xr.Dataset,
        layout: Layout,
    ) -> np.ndarray:
        """Whether there are clouds at positions `(…, 2)` and times `(…)`, which broadcast.

        Raises:
            ValueError: If the variable is unknown.
        """

        surface = Surface(layout)
        shape = np.broadcast_shapes(positions.shape[:-1], np.shape(time))
        positions, time = np.broadcast_to(positions, (*shape, 2)), np.broadcast_to(time, shape)
        if self.share in (0, 1):
            return np.full(shape, self.share == 1)
        if self.variable is None:
            field = RandomField(surface, generator, self.scale, self.duration)
            return field(positions, time) > NormalDist().inv_cdf(1 - self.share)

        name = self.variable.removeprefix("-")
        if name not in layout.variables:
            raise ValueError(
                f"cloudy={self.variable} must name one of {list(layout.variables)}, with or "
                f"without a minus"
            )
        values: Any = truth[name].transpose("time", *surface.dims).values
        values = -values if self.variable.startswith("-") else values
        area = xr.DataArray(layout.area, dims=layout.dims).transpose(*surface.dims).values
        flat = np.broadcast_to(area, values.shape).ravel()
        order = np.argsort(values, axis=None)
        above = np.cumsum(flat[order]) >= (1 - self.share) * flat.sum()
        threshold = values.ravel()[order][np.argmax(above)]
        times = np.atleast_1d(np.asarray(truth["time"].values, dtype=np.float64))
        state = np.abs(time[..., None] - times).argmin(-1)

        return values[(state, *surface.nearest(positions))] > threshold
