"""Time stepping, apart from the equations.

An integrator knows nothing of the equation that it advances: it takes a vector field, or the linear
and the nonlinear part of one, and makes one step of it. All are of fourth order,
but for the semi-implicit one, which is of third.

References:
    Ascher, Ruuth and Spiteri (1997), Implicit-explicit Runge–Kutta methods for time-dependent
    partial differential equations, Appl. Numer. Math. 25.
    https://doi.org/10.1016/S0168-9274(97)00056-1
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
ImplicitSolve = Callable[[Tensor, float], Tensor]


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


def ars343(nonlinear: VectorField, solve: ImplicitSolve, x: Tensor, dt: float) -> Tensor:
    r"""Makes one semi-implicit step of $\dot x = L x + N(x)$ (Ascher, Ruuth and Spiteri, 1997).

    The linear part is implicit and L-stable, with three stages; the nonlinear part is explicit,
    with four stages and the stability region of the classical Runge–Kutta method.

    Arguments:
        nonlinear: The nonlinear part $N$.
        solve: Solves $(1 - \tau L) x = r$ for $x$, given $r$ and $\tau$.
        x: The states, with any shape.
        dt: The length of the step.

    Returns:
        The states one step later, with an error of $O(dt^4)$.
    """

    # The middle root of 6γ³ - 18γ² + 9γ - 1, and the free parameter of the explicit part.
    g, a = 0.4358665215084590, 0.5529291480359398
    b1, b2 = -1.5 * g**2 + 4 * g - 0.25, 1.5 * g**2 - 5 * g + 1.25
    a31 = (1 - 4.5 * g + 1.5 * g**2) * a + (2.75 - 10.5 * g + 3.75 * g**2) * a
    a31 += -3.5 + 13 * g - 4.5 * g**2
    a32 = (1 + g) / 2 - a31

    def stage(known: Tensor) -> tuple[Tensor, Tensor]:
        """The state of an implicit stage and its linear tendency times γ dt."""
        y = solve(known, g * dt)
        return y, y - known

    n1 = nonlinear(x)
    y, l2 = stage(x + (g * dt) * n1)
    n2 = nonlinear(y)
    y, l3 = stage(x + dt * (a31 * n1 + a32 * n2) + ((1 - g) / (2 * g)) * l2)
    n3 = nonlinear(y)
    known = x + dt * ((1 - 2 * a) * n1 + a * (n2 + n3)) + (b1 / g) * l2 + (b2 / g) * l3
    y, l4 = stage(known)
    n4 = nonlinear(y)

    return x + dt * (b1 * n2 + b2 * n3 + g * n4) + (b1 / g) * l2 + (b2 / g) * l3 + l4
