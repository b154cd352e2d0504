"""Spectral tools on doubly periodic grids.

Fields are real, `(…, y, x)`, sampled at cell centres of a square `[0, P)²`. Their transforms are
those of `torch.fft.rfft2`. Cell centres instead of nodes change no derivative, only the phase.
"""

import math

import torch
from torch import Tensor


def wavenumbers(
    size: int | tuple[int, int],
    period: float = 2 * math.pi,
    dtype: torch.dtype = torch.float32,
    device: torch.device | str = "cpu",
) -> tuple[Tensor, Tensor]:
    """The angular wavenumbers `(ky, kx)` of `rfft2`, `(ny, 1)` and `(1, nx // 2 + 1)`."""

    ny, nx = (size, size) if isinstance(size, int) else size
    unit = 2 * math.pi / period
    ky = unit * torch.fft.fftfreq(ny, 1 / ny, dtype=torch.float64)
    kx = unit * torch.fft.rfftfreq(nx, 1 / nx, dtype=torch.float64)

    return ky[:, None].to(dtype=dtype, device=device), kx[None, :].to(dtype=dtype, device=device)


def derivative_wavenumbers(
    size: int | tuple[int, int],
    period: float = 2 * math.pi,
    dtype: torch.dtype = torch.float32,
    device: torch.device | str = "cpu",
) -> tuple[Tensor, Tensor]:
    """As `wavenumbers`, with zero at the Nyquist frequency, whose derivative is not on the grid."""

    ny, nx = (size, size) if isinstance(size, int) else size
    ky, kx = wavenumbers((ny, nx), period, dtype, device)
    if ny % 2 == 0:
        ky[ny // 2] = 0
    if nx % 2 == 0:
        kx[:, nx // 2] = 0

    return ky, kx


def vorticity(velocity: Tensor, period: float = 2 * math.pi) -> Tensor:
    """The vorticity `∂v/∂x − ∂u/∂y` of velocity fields.

    Arguments:
        velocity: The velocities `(u, v)`, with shape `(…, 2, y, x)`.
        period: The period of both dimensions.

    Returns:
        The vorticity, with shape `(…, y, x)`, in units of velocity per length.

    Raises:
        ValueError: If there are not two channels.
    """

    if velocity.ndim < 3 or velocity.shape[-3] != 2:
        raise ValueError(f"velocity must have shape (…, 2, y, x), got {tuple(velocity.shape)}")
    size = (velocity.shape[-2], velocity.shape[-1])
    ky, kx = derivative_wavenumbers(size, period, velocity.dtype, velocity.device)
    u, v = torch.fft.rfft2(velocity).unbind(dim=-3)

    return torch.fft.irfft2(1j * (kx * v - ky * u), s=size)


def divergence(velocity: Tensor, period: float = 2 * math.pi) -> Tensor:
    """The divergence `∂u/∂x + ∂v/∂y` of velocity fields `(…, 2, y, x)`."""

    size = (velocity.shape[-2], velocity.shape[-1])
    ky, kx = derivative_wavenumbers(size, period, velocity.dtype, velocity.device)
    u, v = torch.fft.rfft2(velocity).unbind(dim=-3)

    return torch.fft.irfft2(1j * (kx * u + ky * v), s=size)


def coarsen(x: Tensor, factor: int) -> Tensor:
    """Averages blocks of `factor × factor` cells of fields `(…, y, x)`.

    Raises:
        ValueError: If `factor` does not divide both sizes.
    """

    ny, nx = x.shape[-2:]
    if factor < 1 or ny % factor or nx % factor:
        raise ValueError(f"factor must divide the grid {ny} × {nx}, got {factor}")

    return (
        x.unflatten(-1, (nx // factor, factor)).unflatten(-3, (ny // factor, factor)).mean((-1, -3))
    )


def energy_spectrum(velocity: Tensor) -> Tensor:
    """The kinetic energy spectrum in shells of integer wavenumber.

    .. math::
        E(k) = \\sum_{k - 1/2 \\leq |\\kappa| < k + 1/2}
        \\frac{1}{2} \\sum_c |\\hat u_c(\\kappa)|^2

    with Fourier coefficients such that `sum(E) = mean over space of ½ Σ_c u_c²`.

    Arguments:
        velocity: Fields with shape `(…, channel, y, x)`.

    Returns:
        The spectrum for k = 0, 1, …, with shape `(…, K)`, `K = min(y, x) // 2 + 1`. Corners of the
        spectrum beyond the last shell are left out.
    """

    ny, nx = velocity.shape[-2:]
    ky, kx = wavenumbers((ny, nx), 2 * math.pi, torch.float64, velocity.device)
    shell = (ky.square() + kx.square()).sqrt().round().long()
    count = min(ny, nx) // 2 + 1
    weight = torch.full((ny, nx // 2 + 1), 2.0, dtype=velocity.dtype, device=velocity.device)
    weight[:, 0] = 1
    if nx % 2 == 0:
        weight[:, -1] = 1
    energy = (torch.fft.rfft2(velocity).abs() / (ny * nx)).square().sum(-3) * weight / 2
    inside = shell < count
    spectrum = energy.new_zeros(*energy.shape[:-2], count)

    return spectrum.index_add(-1, shell[inside], energy[..., inside])
