"""Solvers in observation space.

Everything that a Gaussian analysis needs is of one form,

    A_f v = (H f(Σ) Hᵀ + R) v = e,

with `f` applied to the eigenvalues of a covariance `Σ = Vᵀ diag(λ) V`. Where the number of
observations `m` allows, `E = V Hᵀ` is computed once and `A_f = Eᵀ diag(f(λ)) E + R` is one small
matrix, factorised once and shared by all members.

An elementwise function of affine observations, `H(x) = φ(A x)`, has the tangent `diag(φ′) A` at a
member. `E = V Aᵀ` is still shared, and only `diag(φ′) Eᵀ diag(f(λ)) E diag(φ′) + R` is factorised
for each member: nothing of the size of the state is touched in a solve.

Of smooth fields most directions of `V` are next to nothing beside `R`. Where all of them are too
many, `E` keeps those that matter only, see `ObservationSpace`.

Otherwise, and where `H` is linearised at each member, the system is solved by conjugate gradients.
"""

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from ..covariance import Covariance
from ..observation.likelihood import Likelihood
from ..observation.operator import identity

Function = Callable[[Tensor], Tensor]
Key = tuple[str, float]
Noise = Callable[[tuple[int, ...]], Tensor]
# The entries of all members' matrices that are factorised at once.
FACTORS = 1 << 24
# The bytes of matrices and factors of noise levels that are kept.
KEPT = 4 << 30
# The entries of `E` in all directions that are in memory at once while some are chosen.
AT_HAND = 1 << 29


@dataclass
class Tangent:
    """An observation operator, linearised at a batch of trajectories.

    Attributes:
        value: The operator's value, with shape `(member, m)`.
        jvp: The tangent-linear operator, `(member, *shape)` to `(member, m)`.
        vjp: Its adjoint, `(member, m)` to `(member, *shape)`.
        slope: The derivative `φ′` of the elementwise function in `H(x) = φ(A x)`, with shape
            `(member, m)`, if the operator is of this form.
    """

    value: Tensor
    jvp: Callable[[Tensor], Tensor]
    vjp: Callable[[Tensor], Tensor]
    slope: Tensor | None = None

    def take(self, members: Tensor) -> "Tangent | None":
        """That of some members, where it is known without linearising again."""

        if self.slope is None:
            return None

        return Tangent(self.value[members], self.jvp, self.vjp, self.slope[members])

    def weighted(self, root: Tensor) -> "Tangent":
        """The operator times factors `(member, m)`, the roots of weights of the precision."""

        if self.slope is not None:
            return Tangent(root * self.value, self.jvp, self.vjp, root * self.slope)

        return Tangent(
            root * self.value, lambda x: root * self.jvp(x), lambda v: self.vjp(root * v)
        )


def conjugate_gradients(
    operator: Callable[[Tensor], Tensor],
    b: Tensor,
    tolerance: float = 1e-5,
    iterations: int = 200,
) -> Tensor:
    """Solves `A v = b` for symmetric positive definite `A`, batched.

    A member is frozen once its residual is below `tolerance` times `‖b‖`: its result does not
    depend on the others of its batch.

    Arguments:
        operator: The map `v -> A v`, with shape `(member, m)`.
        b: The right-hand side, with shape `(member, m)`.
        tolerance: The relative residual at which to stop.
        iterations: The largest number of iterations.
    """

    tiny = torch.finfo(b.dtype).tiny
    v, r, p = torch.zeros_like(b), b, b
    rr = r.square().sum(1, keepdim=True)
    stop = tolerance**2 * rr

    # To look is to wait for a GPU; members that are done stay as they are in between.
    every = 8 if b.is_cuda else 1
    for i in range(iterations):
        active = rr > stop
        if i % every == 0 and not active.any():
            break
        q = operator(p)
        step = torch.where(active, rr / (p * q).sum(1, keepdim=True).clamp(min=tiny), 0.0)
        v, r = v + step * p, r - step * q
        new = torch.where(active, r.square().sum(1, keepdim=True), rr)
        p = torch.where(active, r + new / rr.clamp(min=tiny) * p, p)
        rr = new

    return v


def gmres(operator: Callable[[Tensor], Tensor], b: Tensor, iterations: int) -> Tensor:
    """Solves `A v = b` for any `A` by a fixed number of GMRES iterations, batched.

    References:
        GMRES: a generalized minimal residual algorithm (Saad and Schultz, 1986)

    Arguments:
        operator: The map `v -> A v`, with shape `(member, m)`.
        b: The right-hand side, with shape `(member, m)`.
        iterations: The number of applications of the operator.
    """

    basis, weights = krylov(operator, b, iterations)

    return weighted(weights, basis)


def krylov(
    operator: Callable[[Tensor], Tensor], b: Tensor, iterations: int
) -> tuple[list[Tensor], list[Tensor]]:
    """The vectors that `gmres` applies the operator to, one after the other, and their weights.

    Whatever is linear in the solution is the weighted sum of what it is for these vectors.

    Returns:
        The vectors, `(member, m)`, and the weights, `(member)`, one of each in every iteration.
    """

    iterations = min(iterations, b.shape[1])
    tiny = torch.finfo(b.dtype).tiny
    norm = b.norm(dim=1, keepdim=True)
    basis = [b / norm.clamp(min=tiny)]
    hessenberg = torch.zeros(len(b), iterations + 1, iterations, dtype=torch.float64)
    hessenberg = hessenberg.to(b.device)

    for j in range(iterations):
        w = operator(basis[j])
        for _ in range(2):  # orthogonalised twice: once is not enough in single precision
            for i in range(j + 1):
                overlap = (w * basis[i]).sum(1)
                hessenberg[:, i, j] += overlap
                w = w - overlap[:, None] * basis[i]
        length = w.norm(dim=1)
        hessenberg[:, j + 1, j] = length
        basis.append(w / length.clamp(min=tiny)[:, None])

    rhs = torch.zeros(len(b), iterations + 1, 1, dtype=torch.float64, device=b.device)
    rhs[:, 0, 0] = norm[:, 0]
    # A member that diverged has no solution, and must not keep the others from theirs.
    finite = hessenberg.isfinite().all(2, keepdim=True).all(1, keepdim=True)
    weights = torch.linalg.pinv(torch.where(finite, hessenberg, 0.0)) @ rhs

    return basis[:iterations], [weights[:, j, 0].to(b.dtype) for j in range(iterations)]


def weighted(weights: list[Tensor], parts: list[Tensor]) -> Tensor:
    """The sum of parts `(member, …)`, each times its weight `(member)`."""

    total = torch.zeros_like(parts[0])
    for weight, part in zip(weights, parts, strict=True):
        total = total + weight.reshape(-1, *[1] * (part.ndim - 1)) * part

    return total


class ObservationSpace:
    """The systems `(H f(Σ) Hᵀ + R) v = e` of one covariance and one likelihood.

    Arguments:
        covariance: The covariance `Σ`.
        likelihood: The likelihood, which has `H` and `R`.
        limit: The largest size `m n` of `E = V Hᵀ` for the direct solve, whose cost `m² n` for each
            matrix must also be below 200 times that. Beyond, linear `H` sees the `r` leading
            directions only: without the others, solves have a relative residual of at most
            `tolerance`. `m r` must be within 4 times the limit, and `m² r` within 5,000 times that.
            Beyond, and for non-linear `H`, conjugate gradients.
        tolerance: The relative residual of solves that are not exact.
        iterations: The largest number of conjugate gradient iterations.

    Attributes:
        modes: The numbers of the directions that `E` keeps, with shape `(r)`, or None for all.
    """

    def __init__(
        self,
        covariance: Covariance,
        likelihood: Any,
        limit: float = 1e8,
        tolerance: float = 1e-3,
        iterations: int = 200,
    ) -> None:
        self.covariance = covariance
        self.likelihood = likelihood
        self.limit = limit
        self.tolerance = tolerance
        self.iterations = iterations
        self.std = likelihood.std
        m, n = len(self.std), covariance.eigenvalues.numel()
        small = m * n <= limit and m * m * n <= 200 * limit
        self.modes: Tensor | None = None
        self._columns: Tensor | None = None
        self.robust = getattr(likelihood, "robust", None)
        if likelihood.linear and not small and m * m <= limit:
            self.modes = self._leading()
            r = len(self.modes)
            # With weights of its own, each member has a factorisation of its own.
            small = m * r <= 4 * limit and m * m * r <= (200 if self.robust else 5000) * limit
            if not small:
                self.modes = self._columns = None
        # With weights of its own, each member has systems of its own, as with a slope.
        self.direct = likelihood.linear and small and self.robust is None
        parts = None if likelihood.linear else getattr(likelihood, "parts", None)
        self.elementwise = small and (parts is not None or (likelihood.linear and not self.direct))
        self.affine: Function = parts[0] if parts else likelihood.H
        self.function: Function = parts[1] if parts else identity
        self._factors: dict[Key, Tensor] = {}

    @property
    def columns(self) -> Tensor:
        """The matrix `Eᵀ`, rows `V Hᵀ e_j` (`V Aᵀ e_j`), with shape `(m, n')`, or `(m, r)`."""

        if self._columns is None:
            self._columns = torch.cat([self.taken(part) for part in self._all_columns()])

        return self._columns

    def _all_columns(self, batch: int = 64) -> Iterator[Tensor]:
        """The rows of `Eᵀ` in all directions, some at a time."""

        likelihood = self.likelihood
        if not likelihood.linear:
            likelihood = Likelihood(
                self.affine, likelihood.y, likelihood.std, likelihood.shape, linear=True
            )
        eye = torch.eye(len(self.std), dtype=self.std.dtype, device=self.std.device)
        for rows in eye.split(batch):
            yield self.covariance.transform(
                likelihood.adjoint(rows).to(self.covariance.eigenvalues)
            )

    def _leading(self) -> Tensor:
        """The directions without which no solve has a residual of more than `tolerance`.

        Every `f` here has `f(λ) <= λ`. In units of the errors, where the matrix is at least one,
        directions that are left out change it by at most the trace of what they contribute.
        """

        eigenvalues = self.covariance.eigenvalues
        total = torch.zeros_like(eigenvalues, dtype=torch.float64)
        weights = self.std[:, None].to(eigenvalues) ** -1
        kept: list[Tensor] | None
        kept = [] if len(self.std) * eigenvalues.numel() <= AT_HAND else None
        for part, weight in zip(self._all_columns(), weights.split(64), strict=True):
            total += (part * weight).square().sum(0)
            if kept is not None:
                kept.append(part)
        total *= eigenvalues.double()
        order = total.argsort(descending=True)
        left = total[order].flip(0).cumsum(0).flip(0)
        modes = order[: int((left > self.tolerance).sum())].sort().values
        if kept is not None:
            self._columns = torch.cat([part[:, modes] for part in kept])

        return modes

    def taken(self, z: Tensor) -> Tensor:
        """The coefficients `(…, n')` in the directions that `E` keeps."""
        return z if self.modes is None else z[..., self.modes]

    @property
    def size(self) -> int:
        """The number of values of `E`."""

        kept = self.covariance.eigenvalues.numel() if self.modes is None else len(self.modes)

        return len(self.std) * kept

    def matrix(self, fn: Function) -> Tensor:
        """The matrix `H f(Σ) Hᵀ + R` in float64, with shape `(m, m)`."""
        return self.gram(fn) + torch.diag(self.std.double() ** 2)

    def gram(self, fn: Function) -> Tensor:
        """The matrix `H f(Σ) Hᵀ` (`A f(Σ) Aᵀ`) in float64, with shape `(m, m)`."""

        # Where it is cheap in float64; else in chunks small enough for single precision.
        m, n = self.columns.shape
        dtype = torch.float64 if m * m * n < 2e8 else self.columns.dtype
        size = n if dtype == torch.float64 else 4096
        gram = torch.zeros(m, m, dtype=torch.float64, device=self.std.device)
        weights = fn(self.taken(self.covariance.eigenvalues).double()).to(dtype)
        for part, weight in zip(self.columns.split(size, dim=1), weights.split(size), strict=True):
            part = part.to(dtype)
            gram += ((part * weight) @ part.T).double()

        return (gram + gram.T) / 2

    def shared(self, fn: Function, key: Key) -> Tensor:
        """`gram(fn)`, computed once for each key."""

        return self._kept(key, lambda: self.gram(fn))

    def factor(self, fn: Function, key: Key) -> Tensor:
        """The Cholesky factor of `matrix(fn)`, computed once for each key."""

        return self._kept(key, lambda: cholesky(self.matrix(fn)))

    def _kept(self, key: Key, make: Callable[[], Tensor]) -> Tensor:
        """What a key stands for; what was made first is dropped where all would be too much."""

        if key not in self._factors:
            made = make()
            room = KEPT - made.numel() * made.element_size()
            while sum(t.numel() * t.element_size() for t in self._factors.values()) > room > 0:
                self._factors.pop(next(iter(self._factors)))
            self._factors[key] = made

        return self._factors[key]

    def linearise(self, x: Tensor) -> Tangent:
        """The observation operator, linearised at trajectories `(member, *shape)`."""

        if not self.elementwise:
            return Tangent(*self.likelihood.linearise(x))

        return self.tangent(self.affine(x))

    def tangent(self, z: Tensor) -> Tangent:
        """The operator `φ(A x)`, linearised where `A x` is `z`, with shape `(member, m)`."""

        with torch.inference_mode(False), torch.enable_grad():
            z = z.detach().clone().requires_grad_()
            value = self.function(z)
            slope = torch.autograd.grad(value.sum(), z)[0]

        return Tangent(value.detach(), self._no_map, self._no_map, slope)

    def reweighted(
        self, start: Tensor, z: Tensor, fn: Function, key: Key, iterations: int
    ) -> tuple[Tangent, Tensor, Tensor]:
        r"""Solves `(A_f) v = e` where errors are not Gaussian, by scale mixtures.

        The precision of each error is weighted by its expectation given the analysis, and the
        analysis made again (the EM algorithm, or variational Bayes: of the analysis its variance
        `H C_a Hᵀ` counts as well),

            w = E[λ | ε² = (y − H x_a)² + H C_a Hᵀ],    R ← R / w.

        Arguments:
            start: The background `x`, `(member, *shape)`; where the solves are `assembled`, `A x`.
            z: Where the operator is linearised first, of the same shape.
            fn: The elementwise function `f` of the eigenvalues.
            key: A name of `f`.
            iterations: The number of analyses.

        Returns:
            The operator and the innovation, both times the roots of the weights, and `v`.
        """

        y, variance, robust = self.likelihood.y, self.std**2, self.robust
        assert robust is not None  # who calls has looked
        root, spread = None, torch.zeros_like(variance)
        gram = self.shared(fn, key).to(z.dtype) if self.elementwise else None
        for _ in range(iterations):
            plain = self.tangent(z) if self.elementwise else self.likelihood_tangent(z)
            if root is None:
                root = torch.ones_like(plain.value)
            else:
                square = (y - plain.value).square() + spread
                root = robust.weights(square / variance).sqrt()
            tangent = plain.weighted(root)
            e = root * y - tangent.value
            if gram is not None:
                slope = required_slope(tangent)
                e = e - slope * (start - z)
                v = self.solve(fn, e, tangent, key)
                z = start + (slope * v) @ gram
                known = self._explained(gram, slope)
            else:
                e = e - tangent.jvp(start - z)
                v = self.solve(fn, e, tangent, key)
                z = start + self.adjoint(fn, v, tangent)
                prior = root**2 * self._observed(fn, key) / variance
                known = prior / (1 + prior)
            spread = variance / root**2 * known

        return tangent, e, v

    def likelihood_tangent(self, x: Tensor) -> Tangent:
        """The operator of the likelihood, linearised at trajectories."""
        return Tangent(*self.likelihood.linearise(x))

    def _explained(self, gram: Tensor, slope: Tensor) -> Tensor:
        """The share `1 − diag(S⁻¹ R)` of each error's variance that the analysis has left."""

        members, m = slope.shape
        scale = (slope / self.std).double()
        out = torch.empty_like(scale)
        for part in torch.arange(members, device=slope.device).split(max(1, FACTORS // m**2)):
            matrix = scale[part, :, None] * gram.double() * scale[part, None, :]
            matrix.diagonal(dim1=-2, dim2=-1).add_(1)
            factor, _ = torch.linalg.cholesky_ex(matrix)
            out[part] = 1 - torch.cholesky_inverse(factor).diagonal(dim1=-2, dim2=-1)

        return out.clamp(0, 1).to(slope.dtype)

    def _observed(self, fn: Function, key: Key) -> Tensor:
        """The variance `diag(H f(Σ) Hᵀ)`, estimated from fixed draws, with shape `(m)`."""

        key = (f"observed {key[0]}", key[1])
        if key not in self._factors:
            noise = torch.randn(
                (64, *self.covariance.shape), generator=torch.Generator().manual_seed(0)
            ).to(self.std)
            drawn = self.covariance.apply(lambda e: fn(e).sqrt(), noise)
            self._factors[key] = torch.cat([self.likelihood.H(x) for x in drawn.split(16)]).var(0)

        return self._factors[key]

    @staticmethod
    def _no_map(x: Tensor) -> Tensor:
        raise ValueError("solves with an elementwise function need its slope only")

    def assembled(self, tangent: Tangent | None) -> bool:
        """Whether solves are by factorised matrices, with nothing of the size of the state."""
        return self.direct or (
            self.elementwise and tangent is not None and tangent.slope is not None
        )

    def project(self, z: Tensor, tangent: Tangent | None) -> Tensor:
        """`H Vᵀ z` for coefficients `(k member, n')`, with shape `(k member, m)`."""
        return self._scale(self.taken(z) @ self.columns.T, tangent)

    def lift(self, v: Tensor, tangent: Tangent | None) -> Tensor:
        """`V Hᵀ v` for values `(k member, m)`, with shape `(k member, n')`."""
        z = self._scale(v, tangent) @ self.columns
        if self.modes is None:
            return z
        full = z.new_zeros(len(z), self.covariance.eigenvalues.numel())
        full[:, self.modes] = z

        return full

    def _scale(self, v: Tensor, tangent: Tangent | None) -> Tensor:
        if tangent is None or tangent.slope is None:
            return v

        return (v.unflatten(0, (-1, len(tangent.slope))) * tangent.slope).flatten(0, 1)

    def solve(self, fn: Function, e: Tensor, tangent: Tangent | None, key: Key) -> Tensor:
        """Solves `(H f(Σ) Hᵀ + R) v = e`.

        Arguments:
            fn: The elementwise function `f` of the eigenvalues.
            e: The right-hand side, with shape `(member, m)`; `(k member, m)` if `assembled`.
            tangent: The linearised operator, unused by the direct solve.
            key: A name of `f`, under which its factor is kept.
        """

        if self.direct:
            return torch.cholesky_solve(e.double().T, self.factor(fn, key)).T.to(e.dtype)

        tangent = required(tangent)
        if self.assembled(tangent):
            return self._solve_each(self.shared(fn, key), e, required_slope(tangent))

        def operator(v: Tensor) -> Tensor:
            return v + tangent.jvp(self.covariance.apply(fn, tangent.vjp(v / self.std))) / self.std

        # Whitened by R, the spectrum begins at one.
        v = conjugate_gradients(operator, e / self.std, self.tolerance, self.iterations)

        return v / self.std

    def _solve_each(self, gram: Tensor, e: Tensor, slope: Tensor) -> Tensor:
        """Solves `(diag(φ′) gram diag(φ′) + R) v = e`, one factorisation for each member.

        Whitened by R, the matrix is one plus a positive one, wherever `φ′` vanishes.
        """

        members, m = slope.shape
        scale = (slope / self.std).double()
        rhs = (e / self.std).double().unflatten(0, (-1, members)).permute(1, 2, 0)
        out = torch.empty_like(rhs)
        chunk = max(1, FACTORS // m**2)
        for part in torch.arange(members, device=e.device).split(chunk):
            matrix = scale[part, :, None] * gram * scale[part, None, :]
            matrix.diagonal(dim1=-2, dim2=-1).add_(1)
            # A member that has diverged is not finite, and what it gives is not either.
            factor, _ = torch.linalg.cholesky_ex(matrix)
            out[part] = torch.cholesky_solve(rhs[part], factor)

        return out.permute(2, 0, 1).flatten(0, 1).to(e.dtype) / self.std

    def forward(self, fn: Function, x: Tensor, tangent: Tangent | None) -> Tensor:
        """`H f(Σ) x`, with shape `(member, m)`."""

        if self.assembled(tangent):
            weights = fn(self.covariance.eigenvalues)
            return self.project(self.covariance.transform(x) * weights, tangent)

        return required(tangent).jvp(self.covariance.apply(fn, x))

    def adjoint(self, fn: Function, v: Tensor, tangent: Tangent | None) -> Tensor:
        """`f(Σ) Hᵀ v`, with shape `(member, *shape)`."""

        if self.assembled(tangent):
            weights = fn(self.covariance.eigenvalues)
            return self.covariance.inverse(self.lift(v, tangent) * weights)

        return self.covariance.apply(fn, required(tangent).vjp(v))

    def draw(self, fn: Function, tangent: Tangent | None, key: Key, noise: Noise) -> Tensor:
        """Draws from `N(0, H f(Σ) Hᵀ + R)`, with shape `(member, m)`."""

        eta = noise((len(self.std),))
        if self.direct:
            return (eta.double() @ self.factor(fn, key).T).to(eta.dtype)

        root = self.forward(lambda e: fn(e).sqrt(), noise(self.covariance.shape), tangent)

        return root + self.std * eta


def cholesky(matrix: Tensor) -> Tensor:
    """The Cholesky factor of `H C Hᵀ + R`, or of a matrix made of it.

    Raises:
        ValueError: If rounding has made it indefinite: `R` is then too small to matter.
    """

    factor, info = torch.linalg.cholesky_ex(matrix)
    if info.any() or not factor.isfinite().all():
        raise ValueError(
            f"the covariance of the {len(matrix)} innovations is singular: several observations "
            f"tell the same, and their std is negligible beside what they observe; remove "
            f"duplicates or give a larger std"
        )

    return factor


def required(tangent: Tangent | None) -> Tangent:
    """The linearised operator, which a matrix-free solve cannot do without."""

    if tangent is None:
        raise ValueError("a matrix-free solve needs the linearised observation operator")

    return tangent


def required_slope(tangent: Tangent) -> Tensor:
    """The derivative of the elementwise function of an operator of that form."""

    if tangent.slope is None:
        raise ValueError("the operator was not linearised as an elementwise function")

    return tangent.slope
