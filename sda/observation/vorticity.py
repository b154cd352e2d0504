r"""Vorticity of a flow on a plane, and its saturating form.

    ω = ∂v/∂x - ∂u/∂y,    s(ω) = ω / (1 + |ω|).

References:
    | Score-based Data Assimilation (Rozet & Louppe, 2023)
    | https://arxiv.org/abs/2306.10574
"""

import math
from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor

from .domain import Domain, Grid
from .function import saturate
from .operator import Bound, Operator, known, on_grid

METHODS = ("centred", "spectral")


class Vorticity(Operator):
    """The vorticity of a velocity field, in units of velocity over length.

    Arguments:
        velocity: The names of the velocity components along `dims[1]` and `dims[0]`.
        dims: The names of the dimensions `(y, x)`.
        method: "centred" (second-order differences, one-sided at boundaries that are not periodic)
            or "spectral" (periodic dimensions only).

    Raises:
        ValueError: If the method is unknown. When bound, if a variable or dimension is missing.
    """

    def __init__(
        self,
        velocity: Sequence[str] = ("u", "v"),
        dims: Sequence[str] = ("y", "x"),
        method: str = "centred",
    ) -> None:
        known("method", [method], METHODS)
        if len(velocity) != 2 or len(dims) != 2:
            raise ValueError(
                f"vorticity needs two components and two dimensions, got {velocity} and {dims}"
            )
        self.velocity, self.dims, self.method = list(velocity), list(dims), method

    def bind(
        self,
        domain: Domain,
        dtype: torch.dtype = torch.float32,
        device: torch.device | str = "cpu",
    ) -> Bound:
        grid = on_grid(self, domain)
        known("variables", self.velocity, grid.variables)
        known("dimensions", self.dims, grid.dims)
        if short := [dim for dim in self.dims if len(grid.coords[dim]) < 3]:
            raise ValueError(f"vorticity needs at least three points along {short}")
        along_y, along_x = (self.derivative(grid, dim, dtype, device) for dim in self.dims)
        u, v = (grid.variables.index(name) for name in self.velocity)

        def fn(x: Tensor) -> Tensor:
            return along_x(x[:, :, v : v + 1]) - along_y(x[:, :, u : u + 1])

        return Bound(grid, Grid(("vorticity",), grid.time, grid.coords, grid.period), fn, True)

    def derivative(
        self, grid: Grid, dim: str, dtype: torch.dtype, device: torch.device | str
    ) -> Any:
        """The derivative along one dimension, a function of arrays."""

        axis, coordinate = 3 + grid.dims.index(dim), grid.coords[dim]
        size, period = len(coordinate), grid.period.get(dim)
        trailing = (1,) * (len(grid.dims) - 1 - grid.dims.index(dim))

        if self.method == "spectral":
            if period is None:
                raise ValueError(f"spectral derivatives need a period, but {dim!r} has none")
            wavenumber = 2 * math.pi / period * torch.arange(size // 2 + 1, dtype=torch.float64)
            if size % 2 == 0:
                wavenumber[-1] = 0  # the sign of the Nyquist wavenumber is undefined
            ik = (1j * wavenumber).reshape(-1, *trailing).to(device)

            def spectral(x: Tensor) -> Tensor:
                spectrum = torch.fft.rfft(x, dim=axis)
                return torch.fft.irfft(ik.to(spectrum.dtype) * spectrum, n=size, dim=axis)

            return spectral

        if period is not None:
            width = 2 * period / size

            def periodic(x: Tensor) -> Tensor:
                return (x.roll(-1, dims=axis) - x.roll(1, dims=axis)) / width

            return periodic

        spacing = torch.as_tensor(coordinate, dtype=dtype, device=device)

        def bounded(x: Tensor) -> Tensor:
            return torch.gradient(x, spacing=(spacing.to(x.dtype),), dim=axis)[0]

        return bounded

    def arguments(self) -> dict[str, Any]:
        return {"velocity": self.velocity, "dims": self.dims, "method": self.method}


class SaturatingVorticity(Vorticity):
    """The saturating vorticity `s(ω / scale)`, with `s(ω) = ω / (1 + |ω|)`, without units.

    Arguments:
        scale: The vorticity at which one half is reached.
        velocity: See `Vorticity`.
        dims: See `Vorticity`.
        method: See `Vorticity`.

    Raises:
        ValueError: If the scale is not positive, and as `Vorticity` does.
    """

    linear = False

    def __init__(
        self,
        scale: float = 1.0,
        velocity: Sequence[str] = ("u", "v"),
        dims: Sequence[str] = ("y", "x"),
        method: str = "centred",
    ) -> None:
        super().__init__(velocity, dims, method)
        if not (math.isfinite(scale) and scale > 0):
            raise ValueError(f"scale must be positive, got {scale}")
        self.scale = float(scale)

    def bind(
        self,
        domain: Domain,
        dtype: torch.dtype = torch.float32,
        device: torch.device | str = "cpu",
    ) -> Bound:
        vorticity = super().bind(domain, dtype, device)
        grid = on_grid(self, vorticity.target)
        target = Grid(("saturating_vorticity",), grid.time, grid.coords, grid.period)

        def saturating(w: Tensor) -> Tensor:
            return saturate(w / self.scale)

        return Bound(
            domain, target, lambda x: saturating(vorticity(x)), False, (vorticity, saturating)
        )

    def arguments(self) -> dict[str, Any]:
        return {"scale": self.scale, **super().arguments()}
