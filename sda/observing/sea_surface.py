"""Images of the sea surface, such as its temperature from infrared radiometers, between clouds.

Any variable of the state can be seen. Images are on the grid of the state, with gaps where clouds
are and on land.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import ClassVar

import numpy as np
import xarray as xr

from dynamics.layout import Layout

from .base import CLOUDS, Generator, Plan, names_of, regular, span
from .clouds import Clouds
from .gridded import check_quantity, image
from .surface import Surface


@dataclass
class SeaSurface(Generator):
    """An imager of the surface.

    Arguments:
        variables: The variables that are seen, or the components of the quantity (default: the
            first of the state).
        quantity: `speed`, the size of the vector of the variables (default: the variables).
        std: The standard deviation of the errors, one for all or one for each by its name.
        interval: The time between two images, in the layout's units of time (default: every state).
        subsample: Every n-th grid point is seen.
        share: The share of the surface under clouds.
        cloud: The size of clouds, in km.
        lifetime: How long they last, in the layout's units of time.
        cloudy: The variable that makes clouds where it is high (`-name`: low), in place of a random
            field.

    Raises:
        ValueError: If an argument is out of range, or all is hidden.
    """

    variables: Sequence[str] | str | None = None
    quantity: str | None = None
    std: float | Mapping[str, float] = 1000.0
    interval: float | None = 48.0
    subsample: int = 2
    share: float = 0.6
    cloud: float = 150.0
    lifetime: float = 48.0
    cloudy: str | None = None

    key: ClassVar[int] = 6

    def __post_init__(self) -> None:
        self.need(0, "interval", "cloud", "lifetime", above=True)
        self.need(1, "subsample")
        self.need_shares("share")
        check_quantity(self.quantity)

    def plan(self, truth: xr.Dataset, layout: Layout, seed: int) -> Plan:
        Surface(layout)
        names = names_of(self.variables, layout)
        names = names[:1] if self.variables is None else names
        clouds = Clouds(self.share, self.cloud, self.lifetime, self.cloudy)

        return image(
            truth, layout, regular(span(truth), self.interval), names, self.quantity, self.std,
            self.subsample, np.ones(layout.shape[1:], dtype=bool), clouds,
            self.random(seed, CLOUDS),
        )  # fmt: skip
