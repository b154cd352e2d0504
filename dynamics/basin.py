r"""Finite differences in a basin with a coast: Arakawa's Jacobian and the inverse Laplacian.

Fields live on the nodes of a square grid, are zero on land, and the grid is surrounded by land. The
equation ∇²ψ = ζ at sea with ψ = 0 on land is solved exactly: sine transforms invert the Laplacian G
on the whole square, and sources s on the land next to the sea make the solution vanish there,

$$ \psi = G (\zeta + P s), \qquad s = -(P^\top G P)^{-1} P^\top G \zeta, $$

where P places values on these nodes. The small inverse is the capacitance matrix.

References:
    | Arakawa (1966), Computational design for long-term numerical integration of the equations of
      fluid motion, J. Comput. Phys. 1.
    | Buzbee, Dorr, George & Golub (1971), The direct solution of the discrete Poisson equation on
      irregular regions, SIAM J. Numer. Anal. 8.
"""

import math

import numpy as np
import torch
from torch import Tensor

from .random import member_generator

COAST_WAVES = 8  # in the course of the coast along one side


class BasinOperators:
    """Differences and the inverse Laplacian over the sea of one basin.

    Arguments:
        sea: 1 at sea and 0 on land, with shape `(y, x)`.
        torque: That of the wind, with shape `(y, x)`.
        sine: The orthogonal matrix of the sine transform.
        eigenvalues: Those of the Laplacian on the whole square.
        shore: The flat indices of the land nodes next to the sea.
        capacitance: The sources on the shore that make ψ = 1 at one node of it.
        spacing: The distance of two nodes, in m.
    """

    def __init__(
        self,
        sea: Tensor,
        torque: Tensor,
        sine: Tensor,
        eigenvalues: Tensor,
        shore: Tensor,
        capacitance: Tensor,
        spacing: float,
    ) -> None:
        self.sea, self.torque, self.sine, self.eigenvalues = sea, torque, sine, eigenvalues
        self.shore, self.capacitance, self.spacing = shore, capacitance, spacing

    @classmethod
    def build(cls, sea: np.ndarray, torque: np.ndarray, spacing: float) -> "BasinOperators":
        """The operators of a basin, in float64."""

        n = len(sea)
        k = torch.arange(1, n + 1, dtype=torch.float64)
        sine = math.sqrt(2 / (n + 1)) * torch.sin(math.pi * k[:, None] * k / (n + 1))
        one = (2 * torch.cos(math.pi * k / (n + 1)) - 2) / spacing**2
        padded = np.pad(sea, 1)
        near = padded[2:, 1:-1] | padded[:-2, 1:-1] | padded[1:-1, 2:] | padded[1:-1, :-2]
        shore = torch.from_numpy(np.flatnonzero(near & ~sea))
        operators = cls(
            torch.from_numpy(sea.astype(np.float64)),
            torch.from_numpy(torque),
            sine,
            one[:, None] + one,
            shore,
            torch.zeros(len(shore), len(shore), dtype=torch.float64),
            spacing,
        )
        if len(shore):
            unit = torch.zeros(len(shore), n * n, dtype=torch.float64)
            unit[torch.arange(len(shore)), shore] = 1
            response = operators._solve_square(unit.unflatten(1, (n, n))).flatten(1)
            operators.capacitance = torch.linalg.inv(response[:, shore])

        return operators

    def to(self, dtype: torch.dtype, device: torch.device) -> "BasinOperators":
        """The same operators in another precision or on another device."""

        return BasinOperators(
            self.sea.to(device, dtype),
            self.torque.to(device, dtype),
            self.sine.to(device, dtype),
            self.eigenvalues.to(device, dtype),
            self.shore.to(device),
            self.capacitance.to(device, dtype),
            self.spacing,
        )

    def solve(self, zeta: Tensor) -> Tensor:
        """The ψ with `∇²ψ = ζ` at sea and ψ = 0 on land, of vorticities `(…, y, x)`."""

        # One product per member: the digits of a member must not depend on the size of its batch.
        fields = zeta.flatten(0, -3)
        psi = self._solve_square(fields)
        if len(self.shore):
            there = psi.flatten(1)[:, self.shore]
            source = -torch.stack([self.capacitance @ values for values in there])
            psi = psi + self._solve_square(
                torch.zeros_like(fields)
                .flatten(1)
                .index_copy(1, self.shore, source)
                .unflatten(1, fields.shape[1:])
            )

        return (psi * self.sea).view_as(zeta)

    def _solve_square(self, zeta: Tensor) -> Tensor:
        sine = self.sine.expand(len(zeta), -1, -1)
        waves = torch.bmm(torch.bmm(sine, zeta), sine) / self.eigenvalues

        return torch.bmm(torch.bmm(sine, waves), sine)

    def laplacian(self, field: Tensor) -> Tensor:
        """The five-point Laplacian over the sea of fields that are zero on land."""

        p = surrounded(field)
        neighbours = p[..., 2:, 1:-1] + p[..., :-2, 1:-1] + p[..., 1:-1, 2:] + p[..., 1:-1, :-2]

        return self.sea * ((neighbours - 4 * field) / self.spacing**2)

    def slope(self, field: Tensor, dim: int) -> Tensor:
        """The central difference along y (−2) or x (−1) of fields that are zero on land."""

        p = surrounded(field)
        if dim == -1:
            return (p[..., 1:-1, 2:] - p[..., 1:-1, :-2]) / (2 * self.spacing)

        return (p[..., 2:, 1:-1] - p[..., :-2, 1:-1]) / (2 * self.spacing)

    def velocity(self, psi: Tensor) -> Tensor:
        """The velocity `(…, 2, y, x)` at sea of streamfunctions `(…, y, x)`."""

        return self.sea * torch.stack((-self.slope(psi, -2), self.slope(psi, -1)), dim=-3)

    def jacobian(self, psi: Tensor, zeta: Tensor) -> Tensor:
        """Arakawa's J(ψ, ζ) = ∂ψ/∂x ∂ζ/∂y − ∂ψ/∂y ∂ζ/∂x of fields that are zero on land."""

        p, z = surrounded(psi), surrounded(zeta)

        def at(field: Tensor, up: int, right: int) -> Tensor:
            ny, nx = field.shape[-2:]
            return field[..., 1 + up : ny - 1 + up, 1 + right : nx - 1 + right]

        advective = (at(p, 0, 1) - at(p, 0, -1)) * (at(z, 1, 0) - at(z, -1, 0))
        advective = advective - (at(p, 1, 0) - at(p, -1, 0)) * (at(z, 0, 1) - at(z, 0, -1))
        divergence = (
            at(p, 0, 1) * (at(z, 1, 1) - at(z, -1, 1))
            - at(p, 0, -1) * (at(z, 1, -1) - at(z, -1, -1))
            - at(p, 1, 0) * (at(z, 1, 1) - at(z, 1, -1))
            + at(p, -1, 0) * (at(z, -1, 1) - at(z, -1, -1))
        )
        mixed = (
            at(z, 1, 0) * (at(p, 1, 1) - at(p, 1, -1))
            - at(z, -1, 0) * (at(p, -1, 1) - at(p, -1, -1))
            - at(z, 0, 1) * (at(p, 1, 1) - at(p, -1, 1))
            + at(z, 0, -1) * (at(p, 1, -1) - at(p, -1, -1))
        )

        return (advective + divergence + mixed) / (12 * self.spacing**2)


def surrounded(field: Tensor) -> Tensor:
    """A field with a ring of land around it."""
    return torch.nn.functional.pad(field, (1, 1, 1, 1))


def coastline(size: int, reach: float, seed: int) -> np.ndarray:
    """A basin whose four coasts are random smooth curves.

    Land reaches at most `reach` of the width into the basin from each side. There are no islands,
    and all the sea is connected.

    Returns:
        Where the sea is, with shape `(size, size)`.
    """

    along = (np.arange(size) + 1) / (size + 1)
    waves = np.arange(1, COAST_WAVES + 1)
    generator = member_generator(seed, 0)
    sea = np.ones((size, size), dtype=bool)
    for turns in range(4):
        weights, phases = generator.standard_normal(COAST_WAVES), generator.random(COAST_WAVES)
        curve = np.sin(np.pi * waves * along[:, None] + 2 * np.pi * phases) @ (weights / waves)
        curve = (curve - curve.min()) / np.ptp(curve)
        # Rows are lines across the coast of this side.
        sea &= np.rot90(along > reach * curve[:, None], turns)

    # Bays that land has cut off are filled: what the middle of the basin reaches remains.
    reached = np.zeros_like(sea)
    reached[size // 2, size // 2] = True
    while True:
        padded = np.pad(reached, 1)
        more = reached | padded[2:, 1:-1] | padded[:-2, 1:-1] | padded[1:-1, 2:] | padded[1:-1, :-2]
        more &= sea
        if (more == reached).all():
            return reached
        reached = more
