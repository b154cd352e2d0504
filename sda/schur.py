r"""Gaussian trajectories of which the first states are known.

Let $\Sigma$ be the covariance of $T + F$ states. The first $T$, the *tail* $t$ of what went before,
are known. The other $F$ are distributed as $N(A t, \Sigma_{f|t})$, with the Schur complement

$$ \Sigma_{f|t} = \Sigma_{ff} - A \Sigma_{tf}, \qquad A = \Sigma_{ft} \Sigma_{tt}^{-1}. $$

Everything else follows from the two. For the covariance $C(s) = (\Sigma^{-1} + I / s^2)^{-1}$ of a
trajectory that is seen through noise of level $s$, the Schur complement is
$(\Sigma_{f|t}^{-1} + I / s^2)^{-1}$, and its regression is

$$ C_{ft} C_{tt}^{-1} = s^2 (\Sigma_{f|t} + s^2 I)^{-1} A, $$

one product with $A$ and one function of $\Sigma_{f|t}$, which is again a covariance in its
eigen-form: no system is solved at a noise level. Decompositions are made in float64; directions of
the tail without variance, such as the divergence of an incompressible flow, are left out.
"""

import abc
import math

import torch
import torch.nn as nn
from torch import Tensor

from .covariance import Covariance, DenseCovariance, LowRankCovariance, SpectralCovariance
from .covariance_eof import EofCovariance, Section

# The smallest variance of a direction of the tail that is taken for one, over the largest.
RELATIVE_FLOOR = 1e-11


class Complement(nn.Module, abc.ABC):
    """The distribution of future states of a Gaussian trajectory, given the tail before them.

    Attributes:
        covariance: The covariance of the future states, given the tail.
        known: The number of states of the tail.
    """

    covariance: Covariance
    known: int

    @abc.abstractmethod
    def regress(self, tail: Tensor) -> Tensor:
        """The mean `A t` of the future states, with shape `(member, F, channel, *space)`.

        Arguments:
            tail: The tail, with shape `(member, T, channel, *space)`.
        """

    def gain(self, tail: Tensor, s: Tensor | float) -> Tensor:
        """`C_ft C_tt⁻¹ t` at a noise level, with shape `(member, F, channel, *space)`.

        Arguments:
            tail: Anomalies of the tail, with shape `(member, T, channel, *space)`.
            s: The noise level, with shape `()`.
        """

        variance = float(s) ** 2

        return self.covariance.apply(lambda e: variance / (e + variance), self.regress(tail))


class DenseComplement(Complement):
    """That of a dense covariance.

    Arguments:
        matrix: The covariance of all states, with shape `(n, n)`.
        shape: The shape `(time, channel, *space)` of all states.
        known: The number of states of the tail.
        dtype: The dtype in which it is applied.
    """

    matrix: Tensor

    def __init__(
        self, matrix: Tensor, shape: tuple[int, ...], known: int, dtype: torch.dtype
    ) -> None:
        super().__init__()
        self.known, self.future = known, (shape[0] - known, *shape[1:])
        size = known * math.prod(shape[1:])
        regression, rest = complement(matrix.double(), size)
        self.covariance = DenseCovariance(rest, self.future, dtype)
        self.register_buffer("matrix", regression.to(dtype), persistent=False)

    def regress(self, tail: Tensor) -> Tensor:
        return (tail.flatten(1) @ self.matrix.mT).reshape(-1, *self.future)


class SpectralComplement(Complement):
    """That of a homogeneous covariance, wavenumber by wavenumber.

    Arguments:
        blocks: The covariances of all states, with shape `(κ, n, n)`, see `SpectralCovariance`.
        shape: The shape `(time, channel, *space)` of all states.
        known: The number of states of the tail.
        dtype: The dtype in which it is applied.
    """

    matrix: Tensor

    def __init__(
        self, blocks: Tensor, shape: tuple[int, ...], known: int, dtype: torch.dtype
    ) -> None:
        super().__init__()
        self.known, self.future = known, (shape[0] - known, *shape[1:])
        space = shape[2:]
        self.modes = (*space[:-1], space[-1] // 2 + 1)
        self.dims = tuple(range(-len(space), 0))
        regression, rest = complement(blocks, known * shape[1])
        self.covariance = SpectralCovariance(rest.unflatten(0, self.modes), self.future, dtype)
        complex_dtype = torch.complex128 if dtype == torch.float64 else torch.complex64
        # Kept complex: it multiplies coefficients.
        self.register_buffer("matrix", regression.to(complex_dtype), persistent=False)

    def regress(self, tail: Tensor) -> Tensor:
        h = torch.fft.rfftn(tail, dim=self.dims, norm="ortho")
        h = h.reshape(len(tail), self.matrix.shape[-1], -1).permute(2, 1, 0)
        h = torch.bmm(self.matrix, h).permute(2, 1, 0)
        h = h.reshape(len(tail), *self.future[:2], *self.modes)

        return torch.fft.irfftn(h, s=self.future[2:], dim=self.dims, norm="ortho")


class LowRankComplement(Complement):
    """That of a covariance `U diag(λ_r − d) Uᵀ + d I`, low rank plus diagonal again.

    With `W = U diag(λ_r − d)^½` and its rows `W_t = P diag(σ) Qᵀ` of the tail,

        A = W_f Q diag(σ / (σ² + d)) Pᵀ,
        Σ_{f|t} = W_f (I − Q diag(σ² / (σ² + d)) Qᵀ) W_fᵀ + d I.

    Arguments:
        vectors: Orthonormal columns U, with shape `(n, r)`.
        values: The eigenvalues λ_r, with shape `(r,)`.
        floor: The variance d of every other direction.
        shape: The shape `(time, channel, *space)` of all states.
        known: The number of states of the tail.
        dtype: The dtype in which it is applied.
    """

    rows: Tensor
    columns: Tensor

    def __init__(
        self,
        vectors: Tensor,
        values: Tensor,
        floor: float,
        shape: tuple[int, ...],
        known: int,
        dtype: torch.dtype,
    ) -> None:
        super().__init__()
        self.known, self.future = known, (shape[0] - known, *shape[1:])
        above = (values.double() - floor).clamp(min=0)
        root = vectors.double() * above.sqrt()
        size = known * math.prod(shape[1:])
        tail, future = root[:size], root[size:]
        # By the singular values of the tail: its Gram matrix over a small floor has no inverse.
        left, seen, right = torch.linalg.svd(tail, full_matrices=False)
        square = seen.square()
        varies = square > RELATIVE_FLOOR * square.amax().clamp(min=1e-300)
        turned = future @ right.mT
        columns = turned * torch.where(varies, seen / (floor + square).clamp(min=1e-300), 0.0)
        self.register_buffer("columns", columns.to(dtype), persistent=False)
        self.register_buffer("rows", left.to(dtype), persistent=False)
        shrunk = (floor / (floor + square).clamp(min=1e-300)).sqrt().where(varies, 1.0)
        u, s, _ = torch.linalg.svd(future + (turned * (shrunk - 1)) @ right, full_matrices=False)
        self.covariance = LowRankCovariance(u, s.square() + floor, floor, self.future, dtype)

    def regress(self, tail: Tensor) -> Tensor:
        return ((tail.flatten(1) @ self.rows) @ self.columns.mT).reshape(-1, *self.future)


class EofComplement(Complement):
    """That of a covariance in EOFs: each group of them by itself.

    Arguments:
        covariance: The covariance of all states.
        known: The number of states of the tail.
        dtype: The dtype in which it is applied.
    """

    covariance: EofCovariance

    def __init__(self, covariance: EofCovariance, known: int, dtype: torch.dtype) -> None:
        super().__init__()
        length, *state = covariance.shape
        self.known, self.future = known, (length - known, *state)
        sections = []
        for i, section in enumerate(covariance.sections()):
            r = section.coupled.shape[-1] // length
            blocks = (section.coupled, section.own, section.rest)
            rest = []
            for name, block in zip(("coupled", "own", "rest"), blocks, strict=True):
                matrix, left = complement(block, known * (r if name == "coupled" else 1))
                rest.append(left)
                single = torch.complex64 if matrix.is_complex() else torch.float32
                matrix = matrix if dtype == torch.float64 else matrix.to(single)
                self.register_buffer(f"{name}{i}", matrix, persistent=False)
            sections.append(Section(section.waves, section.basis, *rest))
        self.covariance = EofCovariance(
            sections, self.future, covariance.waves.axis, covariance.mask, dtype
        )

    def regress(self, tail: Tensor) -> Tensor:
        h, out = self.covariance.waves.analyse(tail), []
        for i, rotation in enumerate(self.covariance.rotations):
            c = rotation.eofs(h)
            count, size, _, batch = c.shape
            future = c.new_zeros(count, size, self.future[0], batch)
            r, k = rotation.r, rotation.k
            if r:
                # Frames are outermost in the matrix, EOFs in the coefficients.
                lead = c[:, :r].transpose(1, 2).reshape(count, -1, batch)
                lead = (self.get_buffer(f"coupled{i}") @ lead).unflatten(1, (-1, r))
                future[:, :r] = lead.transpose(1, 2)
            if k > r:
                future[:, r:k] = self.get_buffer(f"own{i}") @ c[:, r:k]
            if k < size:
                future[:, k:] = self.get_buffer(f"rest{i}")[:, None] @ c[:, k:]
            out.append(rotation.fields(future))

        return self.covariance.together(out)


def complement(matrix: Tensor, size: int) -> tuple[Tensor, Tensor]:
    """The regression on the first values of a Gaussian vector, and the covariance of the others.

    Arguments:
        matrix: Covariances, real or complex, with shape `(…, n, n)`.
        size: The number of values that are known.

    Returns:
        `A` with shape `(…, n − size, size)` and the Schur complement with shape
        `(…, n − size, n − size)`.
    """

    if not matrix.numel():
        rest = matrix.shape[-1] - size
        return matrix.new_zeros(*matrix.shape[:-2], rest, size), matrix[..., size:, size:]
    matrix = (matrix + matrix.mH) / 2
    tail, cross = matrix[..., :size, :size], matrix[..., size:, :size]
    values, vectors = torch.linalg.eigh(tail)
    floor = RELATIVE_FLOOR * values.amax(-1, keepdim=True).clamp(min=1e-300)
    inverse = torch.where(values > floor, 1 / values.clamp(min=1e-300), 0.0)
    regression = (cross @ vectors * inverse[..., None, :]) @ vectors.mH
    rest = matrix[..., size:, size:] - regression @ cross.mH

    return regression, (rest + rest.mH) / 2


def condition(covariance: Covariance, known: int, dtype: torch.dtype) -> Complement:
    """Conditions the covariance of a trajectory on its first states.

    Arguments:
        covariance: The covariance of all states, in float64 for full accuracy.
        known: The number of states that are known.
        dtype: The dtype in which the result is applied.

    Raises:
        ValueError: If no states or all of them are known.
        TypeError: If the covariance is of no known form.
    """

    shape = covariance.shape
    if not 1 <= known < shape[0]:
        raise ValueError(
            f"between 1 and {shape[0] - 1} of the {shape[0]} states can be known, got {known}"
        )
    if isinstance(covariance, SpectralCovariance):
        vectors = covariance.basis
        vectors = vectors.to(torch.complex128 if vectors.is_complex() else torch.float64)
        blocks = (vectors * covariance.table.double()[:, None, :]) @ vectors.mH
        return SpectralComplement(blocks, shape, known, dtype)
    if isinstance(covariance, EofCovariance):
        return EofComplement(covariance, known, dtype)
    if isinstance(covariance, LowRankCovariance):
        rank = covariance.basis.shape[1]
        values, floor = covariance.eigenvalues[:rank], float(covariance.eigenvalues[-1])
        return LowRankComplement(covariance.basis, values, floor, shape, known, dtype)
    if isinstance(covariance, DenseCovariance):
        return DenseComplement(covariance.dense(), shape, known, dtype)

    raise TypeError(f"cannot condition a {type(covariance).__name__}")
