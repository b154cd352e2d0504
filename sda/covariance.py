"""Space-time covariances of trajectories.

Every covariance is given by an isometry V and eigenvalues λ,

.. math:: \\Sigma = V^\\top \\mathrm{diag}(\\lambda) V, \\qquad V^\\top V = I,

so that any function of it (the Wiener filter, its square root, its posterior given noise) costs
one transform, one multiplication and one inverse transform. V is dense for small vectors, a Fourier
transform followed by one small eigenbasis per wavenumber for periodic homogeneous fields, and one
of empirical orthogonal functions for everything else (`sda.covariance_eof`). Decompositions are
made in float64 and applied in float32 (or the dtype asked for): the covariance of an incompressible
flow is singular, and its inverse in float32 is not usable.
"""

import abc
import math
from collections.abc import Callable

import torch
import torch.nn as nn
from torch import Tensor


class Covariance(nn.Module, abc.ABC):
    """A covariance Σ = Vᵀ diag(λ) V of arrays with shape `(time, channel, *space)`.

    Attributes:
        shape: The shape `(time, channel, *space)`.
        eigenvalues: λ, with shape `(n',)`, non-negative.
        weights: The squared norms of the rows of V, with shape `(n',)`; they sum to the number of
            values. They are all one where V is a rotation. Those of land are zero.
    """

    shape: tuple[int, ...]
    eigenvalues: Tensor
    weights: Tensor

    @abc.abstractmethod
    def transform(self, x: Tensor) -> Tensor:
        """Applies V: `(B, *shape)` to `(B, n')`. Inner products are preserved."""

    @abc.abstractmethod
    def inverse(self, z: Tensor) -> Tensor:
        """Applies Vᵀ: `(B, n')` to `(B, *shape)`."""

    # torch's `Module.apply`, which walks over submodules, has no use here.
    def apply(self, fn: Callable[[Tensor], Tensor], x: Tensor) -> Tensor:  # type: ignore[override]
        """Applies the matrix function `Vᵀ fn(λ) V` to `x`.

        Arguments:
            fn: An elementwise function of the eigenvalues, which returns `(n',)` or `(B, n')`.
            x: The arrays, with shape `(B, *shape)`.
        """

        return self.inverse(fn(self.eigenvalues) * self.transform(x))

    def wiener(self, x: Tensor, s: Tensor | float) -> Tensor:
        """The Wiener filter `Σ (Σ + s² I)⁻¹ x`: the mean of N(0, Σ) given `x` = truth + s ε.

        Arguments:
            x: The noisy arrays, with shape `(B, *shape)`.
            s: The noise level, with shape `()` or `(B)`.
        """

        variance = _column(s, x).square()

        return self.apply(lambda e: e / (e + variance), x)

    def wiener_variance(self, s: Tensor | float) -> Tensor:
        """The mean squared error per value of the Wiener filter, `tr(Σ s² (Σ + s²)⁻¹) / n`."""

        variance = _column(s, self.eigenvalues).square()

        return self._mean(self.eigenvalues * variance / (self.eigenvalues + variance))

    def wiener_power(self, s: Tensor | float) -> Tensor:
        """The variance per value of the Wiener estimate itself, `tr(Σ² (Σ + s²)⁻¹) / n`."""

        variance = _column(s, self.eigenvalues).square()

        return self._mean(self.eigenvalues.square() / (self.eigenvalues + variance))

    def sample(self, noise: Tensor) -> Tensor:
        """Colours white noise: `Σ^½ ε`, with shape `(B, *shape)`."""

        return self.apply(torch.sqrt, noise)

    def dense(self) -> Tensor:
        """The matrix Σ in float64, with shape `(n, n)`. For small problems."""

        size = math.prod(self.shape)
        eye = torch.eye(size, dtype=self.eigenvalues.dtype, device=self.eigenvalues.device)

        return self.apply(lambda e: e, eye.reshape(size, *self.shape)).reshape(size, size).double()

    def _mean(self, values: Tensor) -> Tensor:
        return (values * self.weights).sum(-1) / self.size

    @property
    def size(self) -> int:
        """The number of values that the variance is a mean over: all that are not on land."""
        return math.prod(self.shape)

    def _check(self, x: Tensor) -> None:
        if x.shape[1:] != self.shape:
            raise ValueError(
                f"expected arrays of shape (batch, {', '.join(map(str, self.shape))}), "
                f"got {tuple(x.shape)}"
            )


class DenseCovariance(Covariance):
    """A covariance given by its matrix, for vectors and small fields.

    Arguments:
        matrix: The symmetric positive semi-definite matrix, with shape `(n, n)`.
        shape: The shape `(time, channel, *space)` whose product is n.
        dtype: The dtype in which it is applied.
        basis: The eigenvectors, with shape `(n, n)`, one per column (default: computed). Their
            signs, and those of equal eigenvalues, differ between machines and numbers of threads: a
            network that has learned in one basis needs the same again.

    Raises:
        ValueError: If the sizes do not agree.
    """

    basis: Tensor

    def __init__(
        self,
        matrix: Tensor,
        shape: tuple[int, ...],
        dtype: torch.dtype = torch.float32,
        basis: Tensor | None = None,
    ) -> None:
        super().__init__()
        size = math.prod(shape)
        if matrix.shape != (size, size):
            raise ValueError(
                f"a covariance of shape {tuple(shape)} needs a matrix {(size, size)}, got "
                f"{tuple(matrix.shape)}"
            )
        self.shape = tuple(shape)
        matrix = matrix.double()
        vectors = eigenvectors(matrix) if basis is None else basis.to(matrix)
        values = (vectors * (matrix @ vectors)).sum(0)
        self.register_buffer("eigenvalues", values.clamp(min=0).to(dtype), persistent=False)
        self.register_buffer("basis", vectors.to(dtype), persistent=False)
        self.register_buffer("weights", torch.ones(size, dtype=dtype), persistent=False)

    def transform(self, x: Tensor) -> Tensor:
        self._check(x)
        return x.flatten(1) @ self.basis

    def inverse(self, z: Tensor) -> Tensor:
        return (z @ self.basis.mT).reshape(-1, *self.shape)


def eigenvectors(matrix: Tensor) -> Tensor:
    """The eigenvectors of a symmetric matrix, one per column, by increasing eigenvalue."""
    return torch.linalg.eigh((matrix + matrix.mT) / 2)[1]


class SpectralCovariance(Covariance):
    """A covariance that is homogeneous along periodic dimensions: one block per wavenumber.

    With the unitary discrete Fourier transform over space, `Σ(κ) = E[x̂(κ) x̂(κ)ᴴ]` is a Hermitian
    matrix over `(time, channel)`, and different wavenumbers are independent.

    Arguments:
        blocks: The matrices Σ(κ), real or complex, with shape `(*κ, n, n)`, κ as in
            `torch.fft.rfftn` over the spatial dimensions, n = time · channel.
        shape: The shape `(time, channel, *space)`.
        dtype: The dtype in which it is applied.

    Raises:
        ValueError: If the sizes do not agree.
    """

    basis: Tensor
    table: Tensor
    scale: Tensor

    def __init__(
        self, blocks: Tensor, shape: tuple[int, ...], dtype: torch.dtype = torch.float32
    ) -> None:
        super().__init__()
        space = tuple(shape[2:])
        size = shape[0] * shape[1]
        modes = (*space[:-1], space[-1] // 2 + 1)
        if blocks.shape != (*modes, size, size):
            raise ValueError(
                f"a covariance of shape {tuple(shape)} needs blocks {(*modes, size, size)}, got "
                f"{tuple(blocks.shape)}"
            )
        self.shape = tuple(shape)
        self.dims = tuple(range(-len(space), 0))
        blocks = blocks.flatten(0, -3)
        blocks = blocks.to(torch.complex128 if blocks.is_complex() else torch.float64)
        values, vectors = torch.linalg.eigh((blocks + blocks.mH) / 2)
        values = values.clamp(min=0)
        complex_dtype = torch.complex128 if dtype == torch.float64 else torch.complex64

        # rfftn keeps one of each conjugate pair; those it leaves out are counted in the weight.
        multiplicity = torch.full(modes, 2.0, dtype=torch.float64)
        multiplicity[..., 0] = 1
        if space[-1] % 2 == 0:
            multiplicity[..., -1] = 1
        multiplicity = multiplicity.flatten()
        twice = values.repeat_interleave(2, dim=-1).flatten()
        weights = (multiplicity / 2)[:, None].expand(-1, 2 * size).flatten()

        self.register_buffer("table", values.to(dtype), persistent=False)
        self.register_buffer("eigenvalues", twice.to(dtype), persistent=False)
        self.register_buffer("weights", weights.to(dtype), persistent=False)
        self.register_buffer("scale", multiplicity.sqrt().to(dtype), persistent=False)
        self.register_buffer(
            "basis", vectors.to(complex_dtype if vectors.is_complex() else dtype), persistent=False
        )

    def _forward(self, x: Tensor) -> Tensor:
        """Coefficients with shape `(κ, n, B, 2)`."""

        batch = len(x)
        h = torch.fft.rfftn(x, dim=self.dims, norm="ortho").reshape(batch, self.basis.shape[-1], -1)
        h = h.permute(2, 1, 0)
        if self.basis.is_complex():
            return torch.view_as_real(torch.bmm(self.basis.mH, h))
        h = torch.view_as_real(h.contiguous()).flatten(2)

        return torch.bmm(self.basis.mT, h).unflatten(2, (batch, 2))

    def _backward(self, c: Tensor) -> Tensor:
        """The adjoint of `_forward`, up to the multiplicity."""

        batch = c.shape[2]
        if self.basis.is_complex():
            h = torch.bmm(self.basis, torch.view_as_complex(c.contiguous()))
        else:
            h = torch.bmm(self.basis, c.flatten(2)).unflatten(2, (batch, 2))
            h = torch.view_as_complex(h)
        space = self.shape[2:]
        h = h.permute(2, 1, 0).reshape(batch, *self.shape[:2], *space[:-1], space[-1] // 2 + 1)

        return torch.fft.irfftn(h, s=space, dim=self.dims, norm="ortho")

    def transform(self, x: Tensor) -> Tensor:
        self._check(x)
        c = self._forward(x) * self.scale[:, None, None, None]

        return c.permute(2, 0, 1, 3).reshape(len(x), -1)

    def inverse(self, z: Tensor) -> Tensor:
        c = z.reshape(len(z), *self.table.shape, 2).permute(1, 2, 0, 3)

        return self._backward(c / self.scale[:, None, None, None])

    def apply(self, fn: Callable[[Tensor], Tensor], x: Tensor) -> Tensor:  # type: ignore[override]
        self._check(x)
        weight = fn(self.table.flatten())
        if weight.ndim > 1:
            weight = weight.reshape(-1, *self.table.shape).permute(1, 2, 0)
        else:
            weight = weight.reshape(*self.table.shape, 1)

        return self._backward(self._forward(x) * weight[..., None])


class LowRankCovariance(Covariance):
    """A covariance `U diag(λ_r − d) Uᵀ + d I`: low rank plus diagonal.

    Arguments:
        vectors: Orthonormal columns U, with shape `(n, r)`.
        values: The eigenvalues λ_r in the span of U, with shape `(r,)`.
        floor: The variance d of every direction outside it.
        shape: The shape `(time, channel, *space)` whose product is n.
        dtype: The dtype in which it is applied.
    """

    basis: Tensor

    def __init__(
        self,
        vectors: Tensor,
        values: Tensor,
        floor: float,
        shape: tuple[int, ...],
        dtype: torch.dtype = torch.float32,
    ) -> None:
        super().__init__()
        size = math.prod(shape)
        if vectors.ndim != 2 or len(vectors) != size or values.shape != vectors.shape[1:]:
            raise ValueError(
                f"a covariance of shape {tuple(shape)} needs vectors ({size}, r) and values (r,), "
                f"got {tuple(vectors.shape)} and {tuple(values.shape)}"
            )
        self.shape = tuple(shape)
        rest = torch.full((size,), float(floor), dtype=torch.float64)
        outside = 1 - vectors.double().square().sum(1)
        self.register_buffer("basis", vectors.to(dtype), persistent=False)
        self.register_buffer(
            "eigenvalues",
            torch.cat((values.double().clamp(min=0), rest)).to(dtype),
            persistent=False,
        )
        self.register_buffer(
            "weights",
            torch.cat((torch.ones_like(values, dtype=torch.float64), outside)).to(dtype),
            persistent=False,
        )

    def transform(self, x: Tensor) -> Tensor:
        self._check(x)
        x = x.flatten(1)
        inside = x @ self.basis

        return torch.cat((inside, x - inside @ self.basis.mT), dim=1)

    def inverse(self, z: Tensor) -> Tensor:
        inside, rest = z.split((self.basis.shape[1], len(self.basis)), dim=1)
        rest = rest - (rest @ self.basis) @ self.basis.mT

        return (inside @ self.basis.mT + rest).reshape(-1, *self.shape)


def _column(s: Tensor | float, like: Tensor) -> Tensor:
    """Makes a noise level `()` or `(B)` broadcast against `(B, n')`."""

    s = s.to(like) if torch.is_tensor(s) else like.new_full((), s)

    return s[:, None] if s.ndim else s
