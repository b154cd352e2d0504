r"""Where the flow carries things: positions advected by a trajectory's velocity,

    dp/dt = v(p, t),

with the classical Runge–Kutta method. Velocity is linear between the grid points and between the
states. It is given by two variables, or by a streamfunction `ψ` as `v = (−∂ψ/∂y, ∂ψ/∂x)`, with
exact derivatives where the plane is periodic and central differences elsewhere.
"""

import math
from collections.abc import Sequence

import numpy as np
import xarray as xr

from dynamics.layout import Layout

from ..observation.domain import locate
from .base import names_of, span
from .surface import RADIUS, Surface, degrees, unit_vectors

# A step carries no farther than this share of a cell, and is no longer than this of `dt`.
CELL, STEP = 0.5, 0.25


class Flow:
    """The velocity of a trajectory anywhere on its surface.

    Arguments:
        truth: The trajectory, a dataset of one member.
        layout: Its layout.
        by: The streamfunction, or the velocities to the east and to the north. In m²/s and m/s, or
            in the units of the coordinates and of time where these are plain numbers.
        current: A constant velocity beside it, to the east and to the north.

    Raises:
        ValueError: If a variable is unknown, or the streamfunction is not on a plane.
    """

    def __init__(
        self,
        truth: xr.Dataset,
        layout: Layout,
        by: str | Sequence[str],
        current: Sequence[float] = (0.0, 0.0),
    ) -> None:
        self.surface, self.layout, self.time = Surface(layout), layout, span(truth)
        names = names_of(by, layout)
        if len(names) > 2 or (len(names) == 1 and self.surface.spherical):
            raise ValueError(
                f"a flow needs the velocities to the east and to the north, or a streamfunction on "
                f"a plane, got {names}"
            )
        fields = [
            np.nan_to_num(truth[name].transpose("time", *self.surface.dims).values).astype(float)
            for name in names
        ]
        # Metres in a unit of length and seconds in one of time turn m/s into those of the grid.
        metres = 1000.0 if self.surface.physical else 1.0
        self.pace = self.surface.seconds / metres
        if len(names) == 1:
            slopes = [self.slope(fields[0], i) / metres for i in (0, 1)]
            fields = [-slopes[0], slopes[1]]
        if layout.mask is not None:
            wet = xr.DataArray(layout.mask, dims=layout.dims).transpose(*self.surface.dims).values
            fields = [np.where(wet, each, 0.0) for each in fields]
        east, north = (each + c for each, c in zip(fields, current, strict=True))
        self.velocity = np.stack([north, east], axis=-1)

    def slope(self, psi: np.ndarray, axis: int) -> np.ndarray:
        """The derivative to the north (0) or to the east (1), per unit of length."""

        nodes = self.layout.coords[self.surface.dims[axis]] * self.surface.length
        period = self.surface.periods[axis]
        if period is None:
            return np.gradient(psi, nodes, axis=1 + axis, edge_order=2)
        size = len(nodes)
        k = 2j * np.pi * np.fft.rfftfreq(size, period * self.surface.length / size)
        if size % 2 == 0:
            k[-1] = 0.0
        k = k[:, None] if axis == 0 else k

        return np.fft.irfft(np.fft.rfft(psi, axis=1 + axis) * k, n=size, axis=1 + axis)

    def at(self, positions: np.ndarray, time: float) -> np.ndarray:
        """The velocity to the north and to the east at positions `(n, 2)`, with that shape."""

        i, j, w = (v[0] for v in locate("time", self.time, np.array([time])))
        field = self.velocity[i] if w == 0 else (1 - w) * self.velocity[i] + w * self.velocity[j]
        wrapped = self.surface.wrap(positions)
        for axis, (low, high) in enumerate(self.surface.extent):
            if self.surface.periods[axis] is None:
                wrapped[:, axis] = np.clip(wrapped[:, axis], low, high)
        (a, b, u), (c, d, v) = (
            locate(dim, self.layout.coords[dim], wrapped[:, axis], self.surface.periods[axis])
            for axis, dim in enumerate(self.surface.dims)
        )
        u, v = u[:, None], v[:, None]
        south = (1 - v) * field[a, c] + v * field[a, d]
        north = (1 - v) * field[b, c] + v * field[b, d]

        return (1 - u) * south + u * north

    def advect(self, positions: np.ndarray, times: np.ndarray) -> np.ndarray:
        """Carries positions with the flow; what would run aground stays where it is for a step.

        Arguments:
            positions: The positions at the first time, with shape `(n, 2)`.
            times: The times, increasing and within those of the trajectory.

        Returns:
            The positions at the times, with shape `(time, n, 2)`.

        Raises:
            ValueError: If the times do not increase or lie outside those of the trajectory.
        """

        times = np.asarray(times, dtype=np.float64)
        slack = 1e-6 * self.layout.dt
        if not (np.diff(times) >= 0).all() or (
            times[0] < self.time[0] - slack or times[-1] > self.time[-1] + slack
        ):
            raise ValueError(
                f"times must increase within those of the flow, {self.time[0]:g} … "
                f"{self.time[-1]:g}, got {times[0]:g} … {times[-1]:g}"
            )
        times = np.clip(times, self.time[0], self.time[-1])
        found = [self.surface.wrap(positions)]
        for start, stop in zip(times[:-1], times[1:], strict=True):
            number = max(1, math.ceil((stop - start) / self.step - 1e-9))
            p = found[-1]
            for i in range(number):
                p = self.stride(p, start + (stop - start) * i / number, (stop - start) / number)
            found.append(p)

        return np.stack(found)

    @property
    def step(self) -> float:
        """The longest time step."""

        fastest = float(np.linalg.norm(self.velocity, axis=-1).max()) * self.pace
        cell = min(
            float(np.diff(self.layout.coords[dim]).min()) * self.surface.length
            for dim in self.surface.dims
        )
        return min(STEP * self.layout.dt, CELL * cell / max(fastest, 1e-30))

    def stride(self, p: np.ndarray, time: float, dt: float) -> np.ndarray:
        """One step of the Runge–Kutta method, from positions `(n, 2)`."""

        last = self.time[-1]
        x = unit_vectors(p) if self.surface.spherical else p
        k1 = self.rate(x, time)
        k2 = self.rate(x + dt / 2 * k1, min(time + dt / 2, last))
        k3 = self.rate(x + dt / 2 * k2, min(time + dt / 2, last))
        k4 = self.rate(x + dt * k3, min(time + dt, last))
        x = x + dt / 6 * (k1 + 2 * k2 + 2 * k3 + k4)
        moved = degrees(x) if self.surface.spherical else x
        for axis, (low, high) in enumerate(self.surface.extent):
            if self.surface.periods[axis] is None:
                moved[:, axis] = np.clip(moved[:, axis], low, high)

        return self.surface.wrap(np.where(self.surface.at_sea(moved)[:, None], moved, p))

    def rate(self, x: np.ndarray, time: float) -> np.ndarray:
        """The rate of change of positions on a plane, or of unit vectors on the sphere."""

        if not self.surface.spherical:
            return self.at(x, time) * self.pace / self.surface.length
        p = degrees(x)
        latitude, longitude = np.deg2rad(p).T
        north, east = (self.at(p, time) * self.pace / RADIUS).T[:, :, None]
        zero = np.zeros_like(latitude)
        to_east = np.stack([-np.sin(longitude), np.cos(longitude), zero], -1)
        to_north = np.stack(
            [
                -np.sin(latitude) * np.cos(longitude),
                -np.sin(latitude) * np.sin(longitude),
                np.cos(latitude),
            ],
            -1,
        )
        return north * to_north + east * to_east
