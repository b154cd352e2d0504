r"""Inflation and rotation of analysis anomalies: what keeps a small ensemble alive.

With background anomalies `A_b` and analysis anomalies `A_a`, the rows of which are members,

    multiplicative:   A_a ↦ λ A_a                                 (Anderson and Anderson, 1999)
    RTPP:             A_a ↦ (1 - α) A_a + α A_b                   (Zhang et al., 2004)
    RTPS:             A_a ↦ (1 + α (σ_b - σ_a) / σ_a) A_a         (Whitaker and Hamill, 2012)
    rotation:         A_a ↦ Ω A_a,   Ω Ωᵀ = I,  Ω 1 = 1           (Sakov and Oke, 2008)

where σ are the ensemble's standard deviations of each value. A rotation keeps mean and covariance,
and restores an ensemble that has grown an outlier to a Gaussian one. The adaptive inflation of the
EnKF-N is in `enkf_n.py`.

References:
    Anderson and Anderson (1999), Mon. Wea. Rev. 127. Zhang, Snyder and Sun (2004), Mon. Wea. Rev.
    132. Whitaker and Hamill (2012), Mon. Wea. Rev. 140. Sakov and Oke (2008), Implications of the
    form of the ensemble transformation in the ensemble square root filters, Mon. Wea. Rev. 136.
"""

import math
from functools import lru_cache

import torch
from torch import Tensor

from .base import AHEAD, Run

ROTATION_VALUES = 2**22  # numbers held in rotations that are drawn ahead
NEARLY_SINGULAR = 1e-3


def rtpp(background: Tensor, analysis: Tensor, alpha: float) -> Tensor:
    """Relaxation to prior perturbations, of anomalies `(repetition, member, value)`."""
    return torch.lerp(analysis, background, alpha)


def rtps(background: Tensor, analysis: Tensor, alpha: float) -> Tensor:
    """Relaxation to prior spread, of anomalies `(repetition, member, value)`.

    A value without analysis spread is left as it is.
    """

    before, after = (each.square().sum(1, keepdim=True).sqrt() for each in (background, analysis))
    ratio = torch.where(after > 0, before / after, 1)

    return analysis * (1 + alpha * (ratio - 1))


@lru_cache(maxsize=32)
def basis(members: int, dtype: torch.dtype, device: torch.device) -> Tensor:
    """An orthonormal basis of the space of anomalies, `(member, member - 1)`: columns of mean zero.

    That of Helmert: column k compares member k + 1 with the mean of those before.
    """

    k = torch.arange(1, members, dtype=torch.float64)
    columns = torch.ones(members, members - 1, dtype=torch.float64).triu()
    columns[1:].diagonal().copy_(-k)

    return (columns / (k * (k + 1)).sqrt()).to(device, dtype)


def rotated_basis(run: Run, members: int) -> Tensor:
    """A basis of the space of anomalies with a uniformly random orientation.

    The orientation is the orthogonal factor of a Gaussian matrix, with the signs that make it
    uniform (Mezzadri, 2007, Notices AMS 54).

    Returns:
        Orthonormal columns of mean zero, with shape `(repetition, member, member - 1)`.
    """

    key = ("rotations", members)
    block, used = run.memory.get(key, (None, 0))  # type: ignore[call-overload]
    if block is None or used == len(block):
        size = members - 1
        number = min(AHEAD, max(1, ROTATION_VALUES // (run.repetitions * members * size)))
        draws = [run.noise.normal("rotation", (size, size)) for _ in range(number)]
        q = orthogonal_factor(torch.stack(draws))
        block, used = basis(members, q.dtype, q.device) @ q, 0
    run.memory[key] = (block, used + 1)  # type: ignore[index]

    return block[used]


def orthogonal_factor(gaussian: Tensor) -> Tensor:
    """The orthogonal factor `Q` of `G = Q R` with a positive diagonal of `R`, `(*, n, n)`.

    From the Cholesky factor of `Gᵀ G` in float64, several times as fast as reflections for many
    small matrices. It squares the condition, hence the few that are nearly singular take them.
    """

    g = gaussian.double()
    L, info = torch.linalg.cholesky_ex(g.transpose(-1, -2) @ g)
    pivots = L.diagonal(dim1=-2, dim2=-1)
    q = torch.linalg.solve_triangular(L.transpose(-1, -2), g, upper=True, left=False)
    hard = (info > 0) | (pivots.amin(-1) < NEARLY_SINGULAR * pivots.amax(-1))
    if bool(hard.any()):
        exact, r = torch.linalg.qr(g[hard])
        q[hard] = exact * r.diagonal(dim1=-2, dim2=-1).sign()[..., None, :]

    return q.to(gaussian.dtype)


def rotation(run: Run, members: int) -> Tensor:
    """A random rotation that keeps the mean, with shape `(repetition, member, member)`."""

    rotated = rotated_basis(run, members)
    return rotated @ basis(members, rotated.dtype, rotated.device).T + 1 / members


def check_inflation(name: str, inflation: float, rtps: float, rtpp: float) -> None:
    """Checks the arguments of a method.

    Raises:
        ValueError: If the inflation is not positive or a relaxation not in [0, 1].
    """

    if not (math.isfinite(inflation) and inflation > 0):
        raise ValueError(
            f"the inflation of {name} multiplies anomalies and must be positive, got "
            f"{inflation!r}; 1 is none"
        )
    for key, value in (("rtps", rtps), ("rtpp", rtpp)):
        if not 0 <= value <= 1:
            raise ValueError(f"{key} of {name} must be in [0, 1], got {value!r}; 0 is none")
