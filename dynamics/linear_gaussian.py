r"""Linear systems with Gaussian noise, where everything is known exactly.

$$ x_{i+1} = A x_i + w_i, \qquad w_i \sim N(0, Q) $$

If A is stable the stationary covariance solves the Lyapunov equation $P = A P A^T + Q$, and the
covariance of two states is $\mathrm{Cov}(x_{i+l}, x_i) = A^l P$: whole trajectories are Gaussian
with a known covariance. That is the oracle for samplers, guidance and filters.

References:
    Van Loan (1978), Computing integrals involving the matrix exponential, IEEE Trans. Autom.
    Control 23.
"""

import math
from collections.abc import Sequence
from typing import Any

import numpy as np
import torch
from torch import Tensor

from .layout import Layout
from .random import normal
from .system import System


class LinearGaussian(System):
    """A stable linear-Gaussian system, with one channel per component and no space.

    The initial states are drawn from the stationary distribution.

    Arguments:
        A: The transition matrix, with shape `(channel, channel)`.
        Q: The covariance of the noise of one step, symmetric, positive semi-definite.
        dt: The time between two states.
        variables: The names of the components (default: `x0`, `x1`, …).

    Raises:
        ValueError: If a shape does not fit, Q is not a covariance, or A is not stable.
    """

    stochastic = True

    def __init__(
        self,
        A: Any,
        Q: Any,
        dt: float = 1.0,
        variables: Sequence[str] | None = None,
    ) -> None:
        A, Q = matrix(A), matrix(Q)
        if A.ndim != 2 or A.shape[0] != A.shape[1] or Q.shape != A.shape:
            raise ValueError(
                f"A and Q must be square and of the same shape, "
                f"got {tuple(A.shape)} and {tuple(Q.shape)}"
            )
        if not (torch.isfinite(A).all() and torch.isfinite(Q).all()):
            raise ValueError("A and Q must be finite")
        size = len(A)
        names = tuple(variables) if variables else tuple(f"x{i}" for i in range(size))
        if len(names) != size:
            raise ValueError(f"A has {size} components, but there are {len(names)} variables")
        radius = torch.linalg.eigvals(A).abs().max().item()
        if radius >= 1:
            raise ValueError(
                f"A must be stable, with all eigenvalues inside the unit circle, "
                f"but its spectral radius is {radius:.6g}"
            )
        scale = Q.abs().max()
        eigenvalues, eigenvectors = torch.linalg.eigh((Q + Q.T) / 2)
        if (Q - Q.T).abs().max() > 1e-9 * scale or eigenvalues[0] < -1e-9 * scale:
            raise ValueError(
                f"Q must be symmetric and positive semi-definite, but its smallest eigenvalue is "
                f"{eigenvalues[0].item():.3g} and its asymmetry {(Q - Q.T).abs().max().item():.3g}"
            )

        self.A, self.Q = A, (Q + Q.T) / 2
        self.layout = Layout(variables=names, dt=dt)
        self.stationary_covariance = lyapunov(self.A, self.Q)
        # Q = G Gᵀ; a semi-definite Q has no Cholesky factor.
        factor, info = torch.linalg.cholesky_ex(self.Q)
        self.singular = bool(info > 0)
        self.noise_factor = (
            eigenvectors * eigenvalues.clamp(min=0).sqrt() if self.singular else factor
        )

    def advance(self, z: Tensor, noise: Tensor | None = None) -> Tensor:
        """Advances states `(member, channel)` by one `dt`, see `System.advance`."""

        x = columns_product(self.A.to(z), z)
        if noise is None:
            return x
        if noise.shape != z.shape:
            raise ValueError(
                f"noise must have the shape of the states {tuple(z.shape)}, "
                f"got {tuple(noise.shape)}"
            )

        return x + columns_product(self.noise_factor.to(z), noise)

    def initial_model(
        self,
        members: Sequence[int],
        seed: int = 0,
        dtype: torch.dtype = torch.float32,
        device: torch.device | str = "cpu",
    ) -> Tensor:
        """Draws from the stationary distribution N(0, P)."""

        eigenvalues, eigenvectors = torch.linalg.eigh(self.stationary_covariance)
        factor = eigenvectors * eigenvalues.clamp(min=0).sqrt()
        noise = normal(seed, members, self.layout.shape, 0, dtype=dtype, device=device)

        return columns_product(factor.to(noise), noise)

    def log_transition(self, x: Tensor, x_next: Tensor) -> Tensor:
        r"""The transition density $\log N(x_{i+1}; A x_i, Q)$.

        Evaluated in float64, since the components of Q may differ by orders of magnitude.

        Arguments:
            x: The states, with shape `(member, channel)`.
            x_next: The states one `dt` later, with the same shape.

        Returns:
            The log-densities, with shape `(member)`.

        Raises:
            ValueError: If Q is singular: there is no density then.
        """

        if self.singular:
            raise ValueError(
                "the transition has no density since Q is singular: add variance to the "
                "components that have none"
            )
        factor = self.noise_factor.to(x.device)
        residual = x_next.double() - x.double() @ self.A.to(x.device).T
        white = torch.linalg.solve_triangular(factor, residual.T, upper=False)
        constant = len(factor) * math.log(2 * math.pi) + 2 * factor.diagonal().log().sum()

        return (-(white.square().sum(dim=0) + constant) / 2).to(x.dtype)

    def autocovariance(self, lag: int) -> Tensor:
        """The covariance of a state with one `lag` steps earlier, `(channel, channel)`, float64.

        A negative lag gives the transpose.
        """

        cov = torch.linalg.matrix_power(self.A, abs(lag)) @ self.stationary_covariance

        return cov if lag >= 0 else cov.T

    def trajectory_covariance(self, length: int) -> Tensor:
        """The covariance of a stationary trajectory, flattened from `(time, channel)`.

        Returns:
            The block-Toeplitz matrix `(length * channel, length * channel)`, float64.

        Raises:
            ValueError: If `length` is not positive.
        """

        if length < 1:
            raise ValueError(f"length must be at least 1, got {length}")
        lags = [self.stationary_covariance]
        for _ in range(length - 1):
            lags.append(self.A @ lags[-1])
        rows = [
            torch.cat([lags[i - j] if i >= j else lags[j - i].T for j in range(length)], dim=1)
            for i in range(length)
        ]

        return torch.cat(rows)

    def config(self) -> dict[str, Any]:
        return {
            "A": self.A.tolist(),
            "Q": self.Q.tolist(),
            "dt": self.layout.dt,
            "variables": list(self.layout.variables),
        }

    @classmethod
    def damped_spring(
        cls,
        dt: float = 0.1,
        frequency: float = 1.0,
        damping: float = 0.2,
        wind: float = 1.0,
        wind_time: float = 2.0,
    ) -> "LinearGaussian":
        r"""A damped spring in a gusty wind, sampled exactly every `dt`.

        $$ \dot x = v, \quad \dot v = -\omega^2 x - \gamma v + f, \quad
           df = -f / \tau \, dt + s \sqrt{2 / \tau} \, dW $$

        The channels are `position`, `velocity` and `wind`, an Ornstein–Uhlenbeck process.

        Arguments:
            dt: The time between two states.
            frequency: The angular frequency ω of the free spring.
            damping: The damping rate γ.
            wind: The standard deviation s of the wind.
            wind_time: The decorrelation time τ of the wind.

        Raises:
            ValueError: If an argument is not positive.
        """

        given = {
            "dt": dt,
            "frequency": frequency,
            "damping": damping,
            "wind": wind,
            "wind_time": wind_time,
        }
        for name, value in given.items():
            if not value > 0:
                raise ValueError(f"{name} must be positive, got {value}")
        drift = matrix(
            [
                [0.0, 1.0, 0.0],
                [-(frequency**2), -damping, 1.0],
                [0.0, 0.0, -1 / wind_time],
            ]
        )
        diffusion = torch.zeros(3, 3, dtype=torch.float64)
        diffusion[2, 2] = 2 * wind**2 / wind_time

        return cls(*discretise(drift, diffusion, dt), dt, ("position", "velocity", "wind"))

    @classmethod
    def rotation(
        cls, angle: float = 0.3, decay: float = 0.95, std: float = 1.0, dt: float = 1.0
    ) -> "LinearGaussian":
        """A noisy rotation in the plane, with stationary covariance `std²` times the identity.

        Arguments:
            angle: The angle of one step, in radians.
            decay: The factor by which one step shrinks a state, in [0, 1).
            std: The stationary standard deviation of both components.
            dt: The time between two states.

        Raises:
            ValueError: If `decay` is outside [0, 1) or `std` is not positive.
        """

        if not 0 <= decay < 1:
            raise ValueError(f"decay must be in [0, 1), got {decay}")
        if not std > 0:
            raise ValueError(f"std must be positive, got {std}")
        c, s = decay * math.cos(angle), decay * math.sin(angle)
        noise = (1 - decay**2) * std**2 * torch.eye(2, dtype=torch.float64)

        return cls([[c, -s], [s, c]], noise, dt, ("x", "y"))


def matrix(values: Any) -> Tensor:
    """A float64 tensor on the CPU, a copy."""

    values = values.detach().cpu() if isinstance(values, Tensor) else values

    return torch.tensor(np.asarray(values), dtype=torch.float64)


def columns_product(A: Tensor, x: Tensor) -> Tensor:
    """The product `x Aᵀ`, summed column by column.

    A library's matrix product sums in an order that depends on the batch; here a member's digits
    do not depend on which others share it.
    """

    out = x[:, :1] * A[:, 0]
    for j in range(1, A.shape[1]):
        out = out + x[:, j : j + 1] * A[:, j]

    return out


def lyapunov(A: Tensor, Q: Tensor) -> Tensor:
    """Solves `P = A P Aᵀ + Q` for a stable A by doubling: k rounds sum 2ᵏ terms of the series."""

    P = Q
    for _ in range(64):
        update = A @ P @ A.T
        P = P + update
        A = A @ A
        if update.abs().max() <= torch.finfo(P.dtype).eps * P.abs().max() * 1e-2:
            break

    return (P + P.T) / 2


def discretise(drift: Tensor, diffusion: Tensor, dt: float) -> tuple[Tensor, Tensor]:
    r"""Integrates the linear equation $dx = F x\,dt + dW$ over one `dt` exactly (Van Loan, 1978).

    Arguments:
        drift: The matrix F.
        diffusion: The covariance of dW per unit time.
        dt: The time between two states.

    Returns:
        The matrices A and Q of `LinearGaussian`.
    """

    n = len(drift)
    block = torch.zeros(2 * n, 2 * n, dtype=torch.float64)
    block[:n, :n], block[:n, n:], block[n:, n:] = -drift, diffusion, drift.T
    block = torch.linalg.matrix_exp(dt * block)
    A = block[n:, n:].T
    Q = A @ block[:n, n:]

    return A, (Q + Q.T) / 2
