"""Time stepping, apart from the equations.

An integrator knows nothing of the equation that it advances: it takes a vector field, or the linear
and the nonlinear part of one, and makes one step of it. All are of fourth order.

References:
    Kassam and Trefethen (2005), Fourth-order time-stepping for stiff PDEs, SIAM J. Sci. Comput. 26.
    https://doi.org/10.1137/S1064827502410633
    Hochbruck and Ostermann (2005), Explicit exponential Runge–Kutta methods for semilinear
    parabolic problems, SIAM J. Numer. Anal. 43. https://doi.org/10.1137/040611434
"""

import math
from collections.abc import Callable
from dataclasses import dataclass, fields

import torch
from torch import Tensor

VectorField = Callable[[Tensor], Tensor]


def rk4(tendency: VectorField, x: Tensor, dt: float) -> Tensor:
    r"""Makes one step of the classical Runge–Kutta method for $\dot x = f(x)$.

    Sums and products are kept apart (no fused kernels), so that a member's digits do not depend on
    where in the batch it lies.

    Arguments:
        tendency: The vector field $f$.
        x: The states, with any shape.
        dt: The length of the step.

    Returns:
        The states one step later, with an error of $O(dt^5)$.
    """

    k1 = tendency(x)
    k2 = tendency(x + (dt / 2) * k1)
    k3 = tendency(x + (dt / 2) * k2)
    k4 = tendency(x + dt * k3)

    return x + (dt / 6) * (k1 + 2 * (k2 + k3) + k4)


@dataclass(frozen=True)
class ETDRK4:
    """The coefficients of one ETDRK4 step, one value per mode, see `etdrk4_coefficients`."""

    exp: Tensor
    exp_half: Tensor
    half: Tensor
    first: Tensor
    middle: Tensor
    last: Tensor

    def to(self, dtype: torch.dtype, device: torch.device | str = "cpu") -> "ETDRK4":
        """The same coefficients in another precision or on another device."""

        return ETDRK4(*(getattr(self, f.name).to(device, dtype) for f in fields(self)))


def etdrk4_coefficients(linear: Tensor, dt: float, points: int = 64) -> ETDRK4:
    r"""Computes the coefficients of exponential time differencing for a diagonal linear part.

    For $\dot v = c v + N(v)$ they are the functions $\varphi(c\,dt)$ of Cox and Matthews, which
    cancel catastrophically near zero. Their mean over a unit circle around $c\,dt$ does not
    (Kassam and Trefethen, 2005).

    Arguments:
        linear: The eigenvalues $c$ of the linear part, real, with any shape.
        dt: The length of the step.
        points: The number of points on the circle.

    Returns:
        The coefficients in float64, with the shape of `linear`.
    """

    z = dt * linear.to(torch.float64)
    angles = math.pi * (torch.arange(points, dtype=torch.float64, device=z.device) + 0.5) / points
    # The half circle suffices: the other half has the conjugate values.
    w = z[..., None] + torch.polar(torch.ones_like(angles), angles)
    e = torch.exp(w)

    def mean(values: Tensor) -> Tensor:
        return dt * values.mean(dim=-1).real

    return ETDRK4(
        exp=torch.exp(z),
        exp_half=torch.exp(z / 2),
        half=mean((torch.exp(w / 2) - 1) / w),
        first=mean((-4 - w + e * (4 - 3 * w + w**2)) / w**3),
        middle=mean((2 + w + e * (w - 2)) / w**3),
        last=mean((-4 - 3 * w - w**2 + e * (4 - w)) / w**3),
    )


def etdrk4(nonlinear: VectorField, v: Tensor, coefficients: ETDRK4) -> Tensor:
    r"""Makes one ETDRK4 step of $\dot v = c v + N(v)$, exact in the linear part.

    Modes that decay within a fraction of a step lower the order from 4 towards 3 (Hochbruck and
    Ostermann, 2005): their error is small, but shrinks more slowly.

    Arguments:
        nonlinear: The nonlinear part $N$.
        v: The (spectral) states, with shape `(*, mode)`.
        coefficients: What `etdrk4_coefficients` returns for $c$ and the length of the step.

    Returns:
        The states one step later, with an error of $O(dt^5)$.
    """

    c = coefficients
    decayed = c.exp_half * v
    n_v = nonlinear(v)
    a = decayed + c.half * n_v
    n_a = nonlinear(a)
    b = decayed + c.half * n_a
    n_b = nonlinear(b)
    n_c = nonlinear(c.exp_half * a + c.half * (2 * n_b - n_v))

    return c.exp * v + c.first * n_v + 2 * c.middle * (n_a + n_b) + c.last * n_c
