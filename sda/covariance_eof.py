r"""Covariances in empirical orthogonal functions (EOFs), wavenumber by wavenumber.

Where statistics are homogeneous along one dimension only, the wavenumbers κ of that dimension are
independent, and the covariance of each is a large matrix over time, variables and the other
dimensions. Where they are homogeneous along none (a basin with a coastline, a region), there is one
such matrix. In the EOFs :math:`e_j` of single frames it is taken to be

.. math:: \Sigma_\kappa = \sum_{i, j \leq r} B_{ij} \otimes e_i e_j^H
    + \sum_{r < j \leq k} O_j \otimes e_j e_j^H
    + A \otimes \Bigl( I - \sum_{j \leq k} e_j e_j^H \Bigr)

with temporal covariances `B` of the leading EOFs all together, `O` of the others each on its own,
and `A` of all that is left, in which every direction is as likely as any other. This is exact where
`r` is the number of all directions. Its eigenvectors are known from those of `B`, `O` and `A`:
`V` is a rotation.
"""

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import cast

import torch
import torch.nn as nn
from torch import Tensor

from .covariance import Covariance


@dataclass
class Section:
    """The statistics of some wavenumbers, all of as many EOFs.

    The arrays are real where the wavenumbers' coefficients are (that of the mean, the highest of an
    even number of cells, and without a homogeneous dimension), complex otherwise.

    Attributes:
        waves: The wavenumbers, with shape `(κ)`.
        basis: The orthonormal EOFs, with shape `(κ, d, k)`, d the values of a frame.
        coupled: `B`, with shape `(κ, time · r, time · r)`, time outermost.
        own: `O`, with shape `(κ, k - r, time, time)`.
        rest: `A`, with shape `(κ, time, time)`.
    """

    waves: Tensor
    basis: Tensor
    coupled: Tensor
    own: Tensor
    rest: Tensor


class Waves(nn.Module):
    """Takes trajectories `(B, time, channel, *space)` to coefficients `(κ, d, time, B)` and back.

    Arguments:
        state: The shape `(channel, *space)` of a frame.
        axis: The homogeneous, periodic dimension among the spatial ones, or None.
        mask: Where there are states, with shape `(*space)` (without a homogeneous dimension only).

    Raises:
        ValueError: If there is a mask and a homogeneous dimension.
    """

    sea: Tensor
    land: Tensor

    def __init__(
        self, state: tuple[int, ...], axis: int | None = None, mask: Tensor | None = None
    ) -> None:
        super().__init__()
        if axis is not None and mask is not None:
            raise ValueError("statistics with a coastline are homogeneous along no dimension")
        self.state, self.axis = tuple(state), axis
        inside = torch.ones(state[1:], dtype=torch.bool) if mask is None else mask.bool()
        inside = inside.expand(state).flatten()
        self.register_buffer("sea", inside.nonzero()[:, 0], persistent=False)
        self.register_buffer("land", (~inside).nonzero()[:, 0], persistent=False)
        size = len(self.sea)
        self.count = 1 if axis is None else state[1 + axis] // 2 + 1
        self.size = size if axis is None else size // state[1 + axis]
        # The wavenumbers whose coefficients are real.
        self.real = [0]
        if axis is not None and state[1 + axis] % 2 == 0:
            self.real.append(self.count - 1)

    def analyse(self, x: Tensor) -> Tensor:
        """Applies the unitary transform; the result is real without a homogeneous dimension."""

        if self.axis is None:
            h = x.flatten(2)
            h = h[..., self.sea] if len(self.land) else h
            return h.permute(2, 1, 0)[None]
        h = x.movedim(3 + self.axis, -1).flatten(2, -2)

        return torch.fft.rfft(h, dim=-1, norm="ortho").permute(3, 2, 1, 0)

    def synthesise(self, h: Tensor) -> Tensor:
        """The inverse, zero on land."""

        if self.axis is None:
            h = h[0].permute(2, 1, 0)
            if len(self.land):
                out = h.new_zeros(*h.shape[:2], math.prod(self.state))
                out[..., self.sea] = h
                h = out
            return h.unflatten(2, self.state)
        cells = self.state[1 + self.axis]
        x = torch.fft.irfft(h.permute(3, 2, 1, 0), n=cells, dim=-1, norm="ortho")
        others = [n for i, n in enumerate(self.state[1:]) if i != self.axis]

        return x.unflatten(2, (self.state[0], *others)).movedim(-1, 3 + self.axis)


class Rotation(nn.Module):
    """The eigenvectors of a section, applied factor by factor: `(κ, d, time, B)` to the same.

    First to the EOFs, then each group of them to its own eigenvectors in time. Where there are
    fewer EOFs than directions, a block reflector `I - W Wᴴ` takes the EOFs to the first
    coordinates and what is left to the others: nothing of size d² is stored.

    References:
        | Schreiber and Parlett (1988), Block reflectors: theory and computation,
          SIAM J. Numer. Anal. 25.
    """

    waves: Tensor
    basis: Tensor
    mirror: Tensor
    turn: Tensor
    coupled: Tensor
    own: Tensor
    rest: Tensor
    values: Tensor

    def __init__(self, section: Section, length: int, dtype: torch.dtype) -> None:
        super().__init__()
        real = not section.basis.is_complex()
        exact = torch.float64 if real else torch.complex128
        count, size, k = section.basis.shape
        basis = section.basis.to(exact)
        self.complex, self.k, self.r = not real, k, section.coupled.shape[-1] // length

        # Time innermost.
        coupled = section.coupled.to(exact).reshape(count, length, self.r, length, self.r)
        coupled = coupled.permute(0, 2, 1, 4, 3).flatten(3).flatten(1, 2)
        values, vectors = zip(
            *(eigen(b) for b in (coupled, section.own.to(exact), section.rest.to(exact))),
            strict=True,
        )
        left = values[2][:, None].expand(count, size - k, length)
        table = torch.cat((values[0].unflatten(1, (self.r, length)), values[1], left), dim=1)

        if dtype != torch.float64:
            exact = torch.float32 if real else torch.complex64
        full = k == size
        self.register_buffer("waves", section.waves.long(), persistent=False)
        self.register_buffer("basis", basis.to(exact), persistent=False)
        if not full and k:
            mirror, turn = reflector(basis)
            self.register_buffer("mirror", mirror.to(exact), persistent=False)
            self.register_buffer("turn", turn.to(exact), persistent=False)
        for name, vector in zip(("coupled", "own", "rest"), vectors, strict=True):
            self.register_buffer(name, vector.to(exact), persistent=False)
        self.register_buffer("values", table.to(dtype), persistent=False)

    def section(self) -> Section:
        """The statistics again, in double precision."""

        exact = torch.complex128 if self.complex else torch.float64
        count, size, length = self.values.shape
        values = self.values.double()

        def matrix(vectors: Tensor, eigenvalues: Tensor) -> Tensor:
            vectors = vectors.to(exact)
            return (vectors * eigenvalues[..., None, :]) @ vectors.mH

        r = self.r
        coupled = matrix(self.coupled, values[:, :r].flatten(1))
        coupled = coupled.reshape(count, r, length, r, length).permute(0, 2, 1, 4, 3)
        last = values[:, -1] if self.k < size else torch.zeros_like(values[:, 0])

        return Section(
            self.waves,
            self.basis.to(exact),
            coupled.flatten(3).flatten(1, 2),
            matrix(self.own, values[:, r : self.k]),
            matrix(self.rest, last),
        )

    def eofs(self, h: Tensor) -> Tensor:
        """From all coefficients `(κ, d, time, B)` to the section's, in EOFs and what is left."""

        h = h[self.waves]
        h = (h.real if h.is_complex() and not self.complex else h).contiguous()
        flat, k = h.flatten(2), self.k
        if k == h.shape[1]:
            flat = self.basis.mH @ flat
        elif k:
            flat = flat - self.mirror @ (self.mirror.mH @ flat)
            flat = torch.cat((self.turn @ flat[:, :k], flat[:, k:]), dim=1)

        return flat.unflatten(2, h.shape[2:])

    def fields(self, c: Tensor) -> Tensor:
        """The adjoint of `eofs`, for the section's wavenumbers."""

        flat, k = c.flatten(2), self.k
        if k == c.shape[1]:
            flat = self.basis @ flat
        elif k:
            flat = torch.cat((self.turn.mH @ flat[:, :k], flat[:, k:]), dim=1)
            flat = flat - self.mirror @ (self.mirror.mH @ flat)

        return flat.unflatten(2, c.shape[2:])

    def forward(self, h: Tensor) -> Tensor:
        """Applies the eigenvectors' adjoint to all coefficients; returns those of the section."""

        c = self.eofs(h)
        count, size, length, batch = c.shape
        parts = []
        if self.r:
            lead = self.coupled.mH @ c[:, : self.r].reshape(count, -1, batch)
            parts.append(lead.unflatten(1, (self.r, length)))
        if self.k > self.r:
            parts.append(self.own.mH @ c[:, self.r : self.k])
        if self.k < size:
            parts.append(self.rest.mH[:, None] @ c[:, self.k :])

        return torch.cat(parts, dim=1)

    def inverse(self, c: Tensor) -> Tensor:
        """The adjoint of `forward`, for the section's wavenumbers."""

        count, size, length, batch = c.shape
        parts = []
        if self.r:
            lead = self.coupled @ c[:, : self.r].reshape(count, -1, batch)
            parts.append(lead.unflatten(1, (self.r, length)))
        if self.k > self.r:
            parts.append(self.own @ c[:, self.r : self.k])
        if self.k < size:
            parts.append(self.rest[:, None] @ c[:, self.k :])

        return self.fields(torch.cat(parts, dim=1))

    def power(self, weight: Tensor) -> Tensor:
        """The sum over the values of each frame of the diagonal of `Vᵀ diag(weight) V`.

        Arguments:
            weight: Of each coefficient, with shape `(κ, d, time)`, in double precision.

        Returns:
            A vector with shape `(time)`.
        """

        count, size, length = weight.shape
        lead = self.coupled.abs().double().square().reshape(count, self.r, length, self.r * length)
        total = torch.einsum("grtn,gn->t", lead, weight[:, : self.r].flatten(1))
        own = self.own.abs().double().square()
        total = total + torch.einsum("gktn,gkn->t", own, weight[:, self.r : self.k])
        rest = self.rest.abs().double().square()
        total = total + torch.einsum("gtn,gkn->t", rest, weight[:, self.k :])

        return total * (2 if self.complex else 1)


class EofCovariance(Covariance):
    """A covariance in the EOFs of single frames, see the module.

    Its transform is a rotation: there are as many coefficients as values. On land all coefficients
    are values themselves, of variance zero, and do not count.

    Arguments:
        sections: The statistics; their wavenumbers are all of `0 … cells // 2`, once each.
        shape: The shape `(time, channel, *space)`.
        axis: The homogeneous, periodic dimension among the spatial ones, or None.
        mask: Where there are states, with shape `(*space)`.
        dtype: The dtype in which it is applied.

    Raises:
        ValueError: If the sizes do not agree.
    """

    table: Tensor

    def __init__(
        self,
        sections: Sequence[Section],
        shape: tuple[int, ...],
        axis: int | None = None,
        mask: Tensor | None = None,
        dtype: torch.dtype = torch.float32,
    ) -> None:
        super().__init__()
        self.shape, self.mask = tuple(shape), mask
        self.waves = Waves(self.shape[1:], axis, mask)
        waves = sorted(int(w) for section in sections for w in section.waves)
        sizes = {section.basis.shape[1] for section in sections}
        if waves != list(range(self.waves.count)) or sizes != {self.waves.size}:
            raise ValueError(
                f"a covariance of shape {self.shape} needs {self.waves.count} wavenumbers of "
                f"{self.waves.size} values, got wavenumbers {waves} of {sorted(sizes)} values"
            )
        self.parts = nn.ModuleList([Rotation(s, shape[0], dtype) for s in sections])
        self.land = shape[0] * len(self.waves.land)
        values, table = [], []
        for rotation in self.rotations:
            table.append(rotation.values.flatten())
            values.append(table[-1].repeat_interleave(2) if rotation.complex else table[-1])
        weights = torch.ones(sum(map(len, values)), dtype=dtype)
        none = torch.zeros(self.land, dtype=dtype)
        self.register_buffer("table", torch.cat(table), persistent=False)
        self.register_buffer("eigenvalues", torch.cat((*values, none)), persistent=False)
        self.register_buffer("weights", torch.cat((weights, none)), persistent=False)

    @property
    def size(self) -> int:
        return math.prod(self.shape) - self.land

    @property
    def rotations(self) -> list[Rotation]:
        """The eigenvectors of each section."""
        return cast(list[Rotation], list(self.parts))

    def sections(self) -> list[Section]:
        """The statistics, in double precision."""
        return [rotation.section() for rotation in self.rotations]

    def variance(self, fn: Callable[[Tensor], Tensor]) -> Tensor:
        """The mean over the values of each frame of the diagonal of `fn(Σ)`, with shape `(time)`.

        Arguments:
            fn: An elementwise function of the eigenvalues, in double precision.
        """

        total = sum(r.power(fn(r.values.double())) for r in self.rotations)

        return torch.as_tensor(total) * self.shape[0] / self.size

    def transform(self, x: Tensor) -> Tensor:
        self._check(x)
        h, parts = self.waves.analyse(x), []
        for rotation in self.rotations:
            c = rotation(h)
            if rotation.complex:
                # Each stands for its conjugate at the opposite wavenumber, too.
                c = torch.view_as_real(c.contiguous()) * math.sqrt(2)
                parts.append(c.permute(3, 0, 1, 2, 4).flatten(1))
            else:
                parts.append(c.permute(3, 0, 1, 2).flatten(1))
        if self.land:
            parts.append(x.flatten(2)[..., self.waves.land].flatten(1))

        return torch.cat(parts, dim=1)

    def inverse(self, z: Tensor) -> Tensor:
        sizes = [r.values.numel() * (1 + r.complex) for r in self.rotations]
        *parts, land = z.split((*sizes, self.land), dim=1)
        out = []
        for rotation, part in zip(self.rotations, parts, strict=True):
            if rotation.complex:
                c = part.reshape(-1, *rotation.values.shape, 2).permute(1, 2, 3, 0, 4)
                c = torch.view_as_complex(c.contiguous()) / math.sqrt(2)
            else:
                c = part.reshape(-1, *rotation.values.shape).permute(1, 2, 3, 0)
            out.append(rotation.inverse(c))

        return self.together(out, land)

    def apply(self, fn: Callable[[Tensor], Tensor], x: Tensor) -> Tensor:  # type: ignore[override]
        self._check(x)
        weight = fn(torch.cat((self.table, self.table.new_zeros(1))))
        sizes = [rotation.values.numel() for rotation in self.rotations]
        *weights, least = weight.split((*sizes, 1), dim=-1)
        h, out = self.waves.analyse(x), []
        for rotation, w in zip(self.rotations, weights, strict=True):
            shape = rotation.values.shape
            w = w.reshape(-1, *shape).permute(1, 2, 3, 0)
            out.append(rotation.inverse(rotation(h) * w))
        land = least * x.flatten(2)[..., self.waves.land].flatten(1) if self.land else None

        return self.together(out, land)

    def together(self, parts: list[Tensor], land: Tensor | None = None) -> Tensor:
        """Trajectories from the coefficients of each section, and from their values on land."""

        if self.waves.axis is None:
            h = parts[0]
        else:
            like = next((p for p in parts if p.is_complex()), None)
            dtype = parts[0].to(torch.complex64).dtype if like is None else like.dtype
            h = parts[0].new_empty(self.waves.count, *parts[0].shape[1:], dtype=dtype)
            for rotation, part in zip(self.rotations, parts, strict=True):
                h[rotation.waves] = part.to(dtype)
        x = self.waves.synthesise(h)
        if self.land and land is not None:
            x = x.flatten(2)
            x[..., self.waves.land] = land.unflatten(1, (self.shape[0], -1))
            x = x.unflatten(2, self.shape[1:])

        return x


def eigen(matrix: Tensor) -> tuple[Tensor, Tensor]:
    """Eigenvalues, none of them negative, and eigenvectors of Hermitian matrices `(…, n, n)`."""

    values, vectors = torch.linalg.eigh((matrix + matrix.mH) / 2)

    return values.clamp(min=0), vectors


def reflector(basis: Tensor) -> tuple[Tensor, Tensor]:
    """A unitary matrix of which the first columns span those given.

    Arguments:
        basis: Orthonormal columns E, with shape `(…, d, k)`, k < d.

    Returns:
        `W` with shape `(…, d, k)` and a unitary `Z` with shape `(…, k, k)`: `Q = I - W Wᴴ` is
        unitary and Hermitian, and its first k columns are `E Z`.
    """

    k = basis.shape[-1]
    a, s, bh = torch.linalg.svd(basis[..., :k, :])
    # E Z has a negative semi-definite head: nothing cancels in E Z - I.
    turn = -(bh.mH @ a.mH)
    mirror = basis @ turn
    mirror[..., :k, :] -= torch.eye(k, dtype=basis.dtype, device=basis.device)

    return (mirror @ a) * (1 + s).rsqrt()[..., None, :].to(basis.dtype), turn
