r"""The local ensemble transform Kalman filter.

Every point of the grid has an ETKF analysis of its own, with the observations around it (Hunt et
al. 2007). With predicted anomalies `Y`, the rows of which are members, innovation `d` of the mean,
and weights `ρ` of the observations at a point, see `localisation.py`,

    G = Y ρ R⁻¹ Yᵀ,    P = (I + G / (N - 1))⁻¹,
    w = P Y ρ R⁻¹ d / (N - 1),    T = P^½,    x̄ ↦ x̄ + w A,    A ↦ T A.

Neighbours see nearly the same observations and the symmetric root is continuous, so the local
analyses fit together. A random rotation is one for all points, which keeps it so. With equal
weights for all observations this is the ETKF.

All is done in an orthonormal basis of the anomalies' space, of dimension N - 1: there is no mean to
take out, and a rotation is a rotation of the basis. The matrices `G` of all points are one product
of the weights with the products of anomalies, and their inverse roots come from a Newton–Schulz
iteration (Higham 2008, chapter 6), which is made of products of many small matrices and is many
times faster than as many eigenvalue problems. It is scaled (Chen and Chow 2014) by the interval in
which all eigenvalues are known to lie.

References:
    | Hunt, Kostelich, Szunyogh (2007), Efficient data assimilation for spatiotemporal chaos: a
      local ensemble transform Kalman filter, Physica D 230.
    | Higham (2008), Functions of matrices: theory and computation.
    | Chen, Chow (2014), A stable scaling of Newton–Schulz for improving the sign function
      computation of a Hermitian matrix.
"""

import math

import torch
from torch import Tensor

from dynamics.system import System

from ..observation.sequence import ObservedTime
from .base import Filter, Run
from .inflation import basis, check_inflation, rotated_basis
from .localisation import Localisation, Patch, geometry

# Small matrices multiply fast in batches from this size on.
SMALLEST = 8
# Numbers held in the matrices of a patch: what fits into a processor's cache.
PATCH_VALUES = 2**19
# Numbers held in the matrices of all repetitions that are analysed at once.
BATCH_VALUES = 2**24
# Observation geometries whose weights are kept.
REMEMBERED = 8


class LETKF(Filter):
    """The local ensemble transform Kalman filter (Hunt et al., 2007).

    Arguments:
        system: The system.
        members: The number N of members, at least 2.
        inflation: The factor of the analysis anomalies.
        radius: The localisation radius, in cells of the grid (on the sphere along great circles,
            in spacings of the latitudes: 111.2 km a degree); an observation at this distance
            counts by a factor of about exp(-1/2), and none from 3.65 times this distance on. With
            `taper="step"`, none beyond the radius. None: no localisation.
        taper: "gaspari_cohn" or "step".
        rtps: Relaxation to the prior's spread, from 0 (none) to 1.
        rtpp: Relaxation to the prior's perturbations, from 0 (none) to 1.
        rotation: Whether the anomalies are rotated at random, all points alike.
        tile: The number of cells along the edge of a tile, whose points share one analysis with the
            weights of its centre. Larger tiles are faster.

    Raises:
        ValueError: If an argument is out of range, or the states have no space.
    """

    def __init__(
        self,
        system: System,
        members: int,
        inflation: float = 1.0,
        radius: float | None = 4.0,
        taper: str = "gaspari_cohn",
        rtps: float = 0.0,
        rtpp: float = 0.0,
        rotation: bool = False,
        tile: int = 1,
    ) -> None:
        super().__init__(system, members)
        check_inflation(self.name, inflation, rtps, rtpp)
        self.inflation, self.rtps, self.rtpp = float(inflation), float(rtps), float(rtpp)
        self.radius = None if radius is None else float(radius)
        self.taper, self.rotation, self.tile = taper, bool(rotation), tile
        self.size = max(members - 1, SMALLEST)
        self.localisation = Localisation(
            system.layout, self.radius, taper, tile, max(1, PATCH_VALUES // self.size**2)
        )

    def analyse(
        self, ensemble: Tensor, predicted: Tensor, observed: ObservedTime, run: Run
    ) -> Tensor:
        members, state = self.members, ensemble.flatten(2)
        B = basis(members, state.dtype, state.device)
        pad = self.size - members + 1
        Y = torch.nn.functional.pad(B.T @ predicted, (0, 0, 0, pad)) / observed.std
        A = torch.nn.functional.pad(B.T @ state, (0, 0, 0, pad))
        d = (observed.y - predicted.mean(1)) / observed.std
        mean = state.mean(1, keepdim=True)

        channels = ensemble.shape[2]
        analysed = torch.empty_like(A).view(len(A), self.size, channels, -1)
        increment = torch.empty_like(mean).view(len(A), channels, -1)
        background = A.view(analysed.shape)
        for patch in self.patches(observed, run):
            step = max(1, BATCH_VALUES // (len(patch.weights) * self.size**2))
            for r in range(0, len(A), step):
                part = slice(r, r + step)
                local = background[part] if patch.points is None else background[
                    part, ..., patch.points
                ]  # fmt: skip
                anomalies, shift = self.local(local, Y[part], d[part], patch)
                if patch.points is None:
                    analysed[part], increment[part] = anomalies, shift
                else:
                    analysed[part, ..., patch.points] = anomalies
                    increment[part, ..., patch.points] = shift

        a = analysed.flatten(2)
        if self.rtpp:
            a = torch.lerp(a, A, self.rtpp)
        if self.rtps:
            before, after = (each.square().sum(1, keepdim=True).sqrt() for each in (A, a))
            a = a * (1 + self.rtps * (torch.where(after > 0, before / after, 1) - 1))
        frame = rotated_basis(run, members) if self.rotation and members > 2 else B[None]
        frame = frame if self.inflation == 1 else frame * self.inflation
        a = a[:, : members - 1]

        return (mean + increment.flatten(1)[:, None] + frame @ a).view(ensemble.shape)

    def local(self, A: Tensor, Y: Tensor, d: Tensor, patch: Patch) -> tuple[Tensor, Tensor]:
        """The analyses of a patch, in the basis of anomalies.

        Arguments:
            A: Background anomalies `(repetition, k, channel, tile)` or, where tiles have several
                points, `(repetition, k, channel, tile, point)`.
            Y: Predicted anomalies in units of the error, `(repetition, k, value)`.
            d: The innovation of the mean in units of the error, `(repetition, value)`.
            patch: The patch.

        Returns:
            The analysis anomalies, with the shape of `A`, and the increment of the mean, without
            the axis `k`.
        """

        if patch.values is not None:
            Y, d = Y[..., patch.values], d[:, patch.values]
        k, ridge = self.size, self.members - 1
        S = Y.transpose(1, 2) / math.sqrt(ridge)  # (repetition, value, k)
        columns = torch.cat((S, d[..., None] / math.sqrt(ridge)), 2)
        products = (S[..., :, None] * columns[..., None, :]).flatten(2)
        # (repetition, tile, k, k + 1): G / (N - 1), and Y ρ R⁻¹ d / (N - 1) as its last column.
        G = (patch.weights @ products).unflatten(2, (k, k + 1))
        M, g = G[..., :k].flatten(0, 1), G[..., k:].flatten(0, 1)
        T = inverse_root(M)

        shape = A.shape
        # (repetition · tile, k, channel · point)
        local = (A if A.ndim == 5 else A[..., None]).permute(0, 3, 1, 2, 4).flatten(0, 1).flatten(2)
        found = T @ torch.cat((local, g), 2)
        anomalies, w = found[..., :-1], found[..., -1:]
        shift = (anomalies * w).sum(1)

        tiles, points = len(patch.weights), 1 if A.ndim == 4 else shape[4]
        anomalies = anomalies.view(len(A), tiles, k, -1, points).permute(0, 2, 3, 1, 4)
        shift = shift.view(len(A), tiles, -1, points).permute(0, 2, 1, 3)
        if A.ndim == 4:
            return anomalies[..., 0], shift[..., 0]
        return anomalies, shift

    def patches(self, observed: ObservedTime, run: Run) -> list[Patch]:
        """The local analyses of an analysis time, made once for all that are observed alike."""

        known = run.memory.setdefault("patches", {})
        key = geometry(observed)
        if key not in known:
            if len(known) == REMEMBERED:
                known.pop(next(iter(known)))
            known[key] = self.localisation.patches(observed.columns, observed.std)
        return known[key]


def inverse_root(G: Tensor) -> Tensor:
    """The symmetric inverse square roots `(I + G)^{-1/2}` of many small matrices.

    Arguments:
        G: Symmetric positive semi-definite matrices, with shape `(B, k, k)`. One that is not finite
            yields NaN and leaves the others alone.
    """

    size = G.square().sum((-2, -1))
    largest = float(torch.where(torch.isfinite(size), size, 0).max()) if len(G) else 0.0
    bound = 1 + math.sqrt(largest)
    if bound > 1e-2 / torch.finfo(G.dtype).eps:
        return inverse_root_by_eigenvalues(G)

    # With M / bound = Y Z⁻¹ and Y, Z → (M / bound)^{±1/2}, all eigenvalues of which lie in [l, 1]:
    # each step maps an eigenvalue x by ρ x (3 - ρ² x²) / 2, and ρ makes the ends of the interval
    # meet.
    lower = 1 / math.sqrt(bound)
    eye = torch.eye(G.shape[-1], dtype=G.dtype, device=G.device)
    Y = (G + eye) / bound
    Z = None
    enough = math.sqrt(torch.finfo(G.dtype).eps) / 4
    while True:
        rho = math.sqrt(3 / (1 + lower + lower**2))
        product = Y if Z is None else Z @ Y
        step = torch.add(eye * (1.5 * rho), product, alpha=-0.5 * rho**3)
        Z = step if Z is None else step @ Z
        if 1 - lower < enough:
            return Z / math.sqrt(bound)
        Y = Y @ step
        lower = 0.5 * rho * lower * (3 - rho**2 * lower**2)


def inverse_root_by_eigenvalues(G: Tensor) -> Tensor:
    """The same from eigenvalues, for matrices of any condition."""

    finite = torch.isfinite(G).all(-1).all(-1)[:, None, None]
    values, vectors = torch.linalg.eigh(torch.where(finite, G, 0))
    root = (vectors / (1 + values.clamp(min=0)).sqrt()[:, None]) @ vectors.mT

    return torch.where(finite, root, math.nan)
