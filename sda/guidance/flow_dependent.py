"""Guidance with a flow-dependent covariance, shared by all members.

    C(s) = s² sym(mean over pilots of ∂D/∂x)

By Tweedie's formula `s² ∂D/∂x = Cov[X | x]`. The Jacobian of a single member is fragile; the mean
over a few *pilots*, symmetrised and with its eigenvalues clipped, is a good covariance for all
members of one observation set. At large `s` a pilot's Jacobian says little about other members, and
the climatological covariance is used: where modes part, that of a few pilots would favour theirs.

The pilots are an ensemble of their own, sampled first: they leave their covariance at every level,
so that a member does not depend on the others in its batch.

Two forms. *Dense*, for vectors: the whole Jacobian, `n` vector–Jacobian products per pilot and
level, and `Σ(s) = (C⁻¹ − I / s²)⁻¹` in the place of the climatological `Σ`. *Columns*, for fields:
only `C Hᵀ`, `m` products per pilot at every third level, as a correction of the climatology's.

References:
    Flow-dependent and climatological background-error covariances: Bannister (2017), A review of
    operational methods of variational and ensemble-variational data assimilation
    Cov[X | x] by Tweedie's formula: Rozet et al. (2024), arXiv 2405.13712
"""

import math
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from typing import Any

import torch
import torch.nn as nn
from torch import Tensor

from ..covariance import Covariance, DenseCovariance
from ..denoiser import Denoiser
from .base import Analysis, CappedPrior, Metric, wiener
from .solver import Noise, ObservationSpace, cholesky
from .static import StaticGuidance

FORMS = ("auto", "dense", "columns")


class EigenCovariance(DenseCovariance):
    """A dense covariance given by its eigenvalues `(n)` and eigenvectors `(n, n)`."""

    def __init__(self, values: Tensor, vectors: Tensor, shape: tuple[int, ...]) -> None:
        nn.Module.__init__(self)
        self.shape = tuple(shape)
        self.register_buffer("eigenvalues", values, persistent=False)
        self.register_buffer("basis", vectors, persistent=False)
        self.register_buffer("weights", torch.ones_like(values), persistent=False)


class Columns:
    """The gain of one level, from the columns `G = C Hᵀ` themselves.

    Arguments:
        columns: The columns, with shape `(m, n)`.
        gram: `H C Hᵀ`, with shape `(m, m)`.
        std: The observations' standard deviations, with shape `(m)`.
    """

    def __init__(self, columns: Tensor, gram: Tensor, std: Tensor) -> None:
        gram = (gram + gram.T).double() / 2
        values, vectors = torch.linalg.eigh(gram)
        gram = (vectors * values.clamp(min=0)) @ vectors.T
        self.columns = columns
        self.matrix = gram + torch.diag(std.double() ** 2)
        self.factor = cholesky(self.matrix)

    def solve(self, e: Tensor) -> Tensor:
        """Solves `(H C Hᵀ + R) v = e`, with shape `(member, m)`."""
        return torch.cholesky_solve(e.double().T, self.factor).T.to(e.dtype)


class ColumnsMetric(Metric):
    """`M = M₀ − M₀ G (S + Gᵀ M₀ G)⁻¹ Gᵀ M₀` with explicit columns, see `PosteriorMetric`."""

    def __init__(self, covariance: Covariance, gain: Columns, s: float, m0: CappedPrior) -> None:
        self.covariance, self.m0 = covariance, m0
        self.factor = gain.factor
        self.g = gain.columns / s**2
        self.mg = covariance.apply(m0, self.g.reshape(-1, *covariance.shape)).flatten(1)
        kernel = gain.matrix + (self.g @ self.mg.T).double()
        self.kernel = cholesky((kernel + kernel.T) / 2)

    def apply(self, x: Tensor) -> Tensor:
        return self.covariance.apply(self.m0, x) - self._correct(x.flatten(1) @ self.mg.T, x)

    def draw(self, noise: Noise) -> Tensor:
        z = self.covariance.apply(lambda e: self.m0(e).sqrt(), noise(self.covariance.shape))
        u = noise((len(self.g),))
        u = (u.double() @ self.factor.T).to(u.dtype)

        return z - self._correct(z.flatten(1) @ self.g.T + u, z)

    def _correct(self, e: Tensor, like: Tensor) -> Tensor:
        v = torch.cholesky_solve(e.double().T, self.kernel).T.to(e.dtype)

        return (v @ self.mg).reshape(like.shape)


class FlowDependentGuidance(StaticGuidance):
    """Guidance with the mean Jacobian of a few pilots.

    `sda.sampling.sample` samples the pilots before the first member (see `sda.sampling.prepare`).

    Arguments:
        denoiser: The denoiser of the prior.
        likelihood: The likelihood of the observations, over normalised anomalies.
        covariance: The climatological covariance of the trajectory.
        pilots: The number of pilots.
        form: `dense`, `columns`, or `auto`: dense for up to 2,048 values without space or time
            enough to need anything else, and where `H` is not linear; else columns.
        s_flow: The largest noise level with the pilots' covariance (default: 2.5 for dense, 3 for
            columns).
        every: The Jacobian is evaluated at one level of so many (default: 1 for dense, 3 for
            columns).
        floor: The smallest eigenvalue of `C / s²`, in the dense form.
        ceiling: The largest.
        options: See `StaticGuidance`.

    Raises:
        ValueError: If an option is out of range, or columns are asked for with a non-linear `H` or
            more observations than the direct solve takes.
    """

    def __init__(
        self,
        denoiser: Denoiser,
        likelihood: Any,
        covariance: Covariance,
        pilots: int = 2,
        form: str = "auto",
        s_flow: float | None = None,
        every: int | None = None,
        floor: float = 1e-6,
        ceiling: float = 0.999,
        **options: Any,
    ) -> None:
        super().__init__(denoiser, likelihood, covariance, **options)
        if form not in FORMS:
            raise ValueError(f"unknown form {form!r}: choose one of {', '.join(FORMS)}")
        if form == "auto":
            form = "dense" if math.prod(self.shape) <= 2048 else "columns"
        if form == "columns" and not (self.space.direct and self.space.modes is None):
            kind = "linear" if likelihood.linear else "non-linear"
            raise ValueError(
                f"the columns form needs a linear H and few observations, got {len(likelihood.y)} "
                f"{kind} ones of {math.prod(self.shape)} values: use guidance 'static', or raise "
                f"'limit'"
            )
        if pilots < 1:
            raise ValueError(f"pilots must be at least 1, got {pilots}")
        if every is not None and every < 1:
            raise ValueError(f"every must be at least 1, got {every}")
        if s_flow is not None and not s_flow > 0:
            raise ValueError(f"s_flow must be positive, got {s_flow}")
        if not 0 < floor < ceiling < 1:
            raise ValueError(f"need 0 < floor < ceiling < 1, got {floor} and {ceiling}")
        self.pilots = pilots
        self.form = form
        self.s_flow = (2.5 if form == "dense" else 3.0) if s_flow is None else s_flow
        self.every = (1 if form == "dense" else 3) if every is None else every
        self.floor, self.ceiling = floor, ceiling
        self.prepared = False
        self._recording = False
        self._visited: list[float] = []
        self._table: dict[float, Tensor] = {}
        self._cache: dict[Any, Any] = {}

    @contextmanager
    def recording(self) -> Iterator[None]:
        """A context in which evaluations are the pilots' and leave their covariance."""

        self._recording, self._visited = True, []
        self._table.clear()
        self._cache.clear()
        try:
            yield
            self.prepared = True
        finally:
            self._recording = False

    def tables(self) -> dict[str, Tensor]:
        """What the pilots left: `levels`, with shape `(level)`, and a covariance for each.

        Raises:
            ValueError: If the pilots were not sampled.
        """

        self._require()
        levels = sorted(self._table, reverse=True)
        empty = torch.empty(0)

        return {
            "levels": torch.tensor(levels, dtype=torch.float64),
            "covariances": torch.stack([self._table[s] for s in levels]) if levels else empty,
        }

    def load_tables(self, tables: Mapping[str, Tensor]) -> None:
        """Takes the tables of another run or worker, see `tables`."""

        levels = tables["levels"].tolist()
        self._table = dict(zip(levels, tables["covariances"].to(self.likelihood.y), strict=True))
        self._cache.clear()
        self.prepared = True

    def analyse(self, x: Tensor, s: float) -> Analysis:
        if s > self.s_flow:
            return super().analyse(x, s)
        if self._recording:
            self._record(x, s)
        self._require()
        if not self._table:
            return super().analyse(x, s)

        background = self.background(x, s)
        gain = self._gain(s)
        if isinstance(gain, ObservationSpace):
            return self.update(background, s, gain)
        e = self.likelihood.y - self.likelihood.H(background)
        v = gain.solve(e)
        mean = background + (v @ gain.columns).reshape(background.shape)

        return Analysis(mean, background, e, s, None, (e * v).sum(1), gain)

    def metric(self, analysis: Analysis, kappa: float = math.inf, cap: float = math.inf) -> Metric:
        if isinstance(analysis.gain, Columns):
            key = ("metric", analysis.s, kappa, cap)
            if key not in self._cache:
                self._cache = {k: v for k, v in self._cache.items() if not isinstance(k, tuple)}
                m0 = CappedPrior(analysis.s, kappa, cap)
                self._cache[key] = ColumnsMetric(self.covariance, analysis.gain, analysis.s, m0)
            return self._cache[key]

        return super().metric(analysis, kappa, cap)

    def _require(self) -> None:
        if not (self.prepared or self._recording):
            raise ValueError(
                "flow-dependent guidance needs its pilots: call sda.sampling.prepare, or "
                "load_tables with the tables of another run"
            )

    def _record(self, x: Tensor, s: float) -> None:
        """Evaluates the Jacobian at the pilots `x`, once for each level that takes part."""

        if s in self._visited:
            return
        self._visited.append(s)
        if (len(self._visited) - 1) % self.every:
            return
        size = math.prod(self.shape)
        if self.form == "dense":
            basis = torch.eye(size, dtype=x.dtype, device=x.device).reshape(size, *self.shape)
            jacobian = self._products(x, s, basis).double()
            self._table[s] = ((jacobian + jacobian.T) / 2).to(x.dtype)
        else:
            basis = self.likelihood.columns().to(x)
            columns = s**2 * self._products(x, s, basis)
            self._table[s] = columns - self._static_columns(s)
        self._cache.clear()

    def _products(self, x: Tensor, s: float, basis: Tensor, chunk: int = 64) -> Tensor:
        """The rows `vᵀ ∂D/∂x`, averaged over the pilots, with shape `(len(basis), n)`."""

        with torch.enable_grad():
            x = x.detach().requires_grad_()
            mean = self.denoiser.denoise(x, s)
        self.evaluations += len(x)
        rows = []
        for part in basis.split(chunk):
            cotangent = part[:, None].expand(-1, len(x), *self.shape)
            rows.append(
                torch.autograd.grad(mean, x, cotangent, retain_graph=True, is_grads_batched=True)[0]
                .mean(1)
                .flatten(1)
            )
            self.vjps += len(part) * len(x)

        return torch.cat(rows)

    def _static_columns(self, s: float) -> Tensor:
        eye = torch.eye(len(self.likelihood.y)).to(self.likelihood.y)

        return self.space.adjoint(wiener(s), eye, None).flatten(1)

    def _gain(self, s: float) -> "ObservationSpace | Columns":
        if s not in self._cache:
            if self.form == "dense":
                near = min(self._table, key=lambda level: abs(math.log(level / s)))
                values, vectors = torch.linalg.eigh(self._table[near].double())
                values = values.clamp(self.floor, self.ceiling)
                like = self._table[near]
                covariance = EigenCovariance(
                    (s**2 * values / (1 - values)).to(like), vectors.to(like), self.shape
                )
                space = self.space
                self._cache[s] = ObservationSpace(
                    covariance, self.likelihood, space.limit, space.tolerance, space.iterations
                )
            else:
                self._cache[s] = self._column_gain(s)

        return self._cache[s]

    def _column_gain(self, s: float) -> Columns:
        # The correction comes from the last level before, scaled with the static variance.
        before = [level for level in self._table if level >= s * (1 - 1e-9)]
        near = min(before) if before else max(self._table)
        columns = self._static_columns(s)
        scale = self._trace(s) / self._trace(near)
        columns = columns + scale * self._table[near]
        gram = self.likelihood.columns().to(columns).flatten(1) @ columns.T

        return Columns(columns, gram, self.likelihood.std)

    def _trace(self, s: float) -> float:
        space = self.space
        noise = space.std.double().square().sum()

        return float(space.factor(wiener(s), ("innovation", s)).square().sum() - noise)
