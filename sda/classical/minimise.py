r"""Non-linear least squares for many small problems at once, or few large ones.

    J(v) = ½ |v - p|² + ½ |r(v)|²

is minimised by Gauss–Newton steps: each solves `(I + Kᵀ K) δ = p - v - Kᵀ r` with the Jacobian
`K = ∂r/∂v` by conjugate gradients, which need products with `K` and `Kᵀ` only, from automatic
differentiation. That is incremental 4D-Var (Courtier et al. 1994) with control variables in which
the background term is white. A step that does not lower the cost is halved.

Every element of the batch has steps, step lengths and a convergence of its own.

References:
    | Courtier, Thépaut, Hollingsworth (1994), A strategy for operational implementation of 4D-Var,
      using an incremental approach, Q. J. R. Meteorol. Soc. 120.
    | Lawless, Gratton, Nichols (2005), An investigation of incremental 4D-Var using non-tangent
      linear models, Q. J. R. Meteorol. Soc. 131.
"""

from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor

HALVINGS = 8


@dataclass
class Minimum:
    """What a minimisation found.

    Attributes:
        v: The minimisers, with shape `(B, k)`.
        cost: Their costs, with shape `(B)`.
        iterations: The number of Gauss–Newton steps.
        evaluations: The number of evaluations of `r` and of products with its Jacobian.
    """

    v: Tensor
    cost: Tensor
    iterations: int
    evaluations: int


def gauss_newton(
    residual: Callable[[Tensor], Tensor],
    prior: Tensor,
    start: Tensor | None = None,
    iterations: int = 10,
    inner: int = 50,
    tolerance: float | None = None,
) -> Minimum:
    """Minimises `½ |v - p|² + ½ |r(v)|²` for every element of a batch.

    Arguments:
        residual: The function `r`, differentiable, from `(B, k)` to `(B, m)`; each element depends
            on its own control variables only.
        prior: The vectors `p`, with shape `(B, k)`.
        start: Where to start (default: at `p`).
        iterations: The number of Gauss–Newton steps at most.
        inner: The number of conjugate-gradient iterations of each at most.
        tolerance: Stops where a step lowers no cost by more than this part of it (default: by
            precision).

    Returns:
        The minimum. Where the cost is not finite at the start, the start itself.
    """

    if tolerance is None:
        tolerance = 1e-6 if prior.dtype == torch.float32 else 1e-12
    v = prior.clone() if start is None else start.clone()
    evaluations, done = 0, 0
    cost = torch.full_like(v[:, 0], torch.inf)
    for _ in range(iterations):
        problem = Linearised(residual, v)
        r = problem.r
        cost = cost_of(v, prior, r)
        gradient = v - prior + problem.vjp(r)
        step = conjugate_gradients(problem, -gradient, inner)
        evaluations += problem.evaluations
        done += 1

        length = torch.ones_like(cost)
        best, gain = v, torch.zeros_like(cost)
        for _ in range(HALVINGS):
            candidate = v + length[:, None] * step
            with torch.no_grad():
                reached = cost_of(candidate, prior, residual(candidate))
            evaluations += 1
            better = reached < cost
            taken = better & (gain == 0)
            best = torch.where(taken[:, None], candidate, best)
            gain = torch.where(taken, cost - reached, gain)
            # A step that is as good as none, by rounding, is not halved.
            flat = (reached - cost).abs() <= tolerance * cost
            if bool((gain.gt(0) | flat | ~torch.isfinite(cost)).all()):
                break
            length = torch.where(gain > 0, length, length / 2)
        v, cost = best, cost - gain
        if not bool((gain > tolerance * cost).any()):
            break

    return Minimum(v, cost, done, evaluations)


def cost_of(v: Tensor, prior: Tensor, r: Tensor) -> Tensor:
    """The cost of each element; infinite where it is not a number."""

    cost = 0.5 * ((v - prior).square().sum(1) + r.square().sum(1))
    return torch.where(torch.isnan(cost), torch.inf, cost)


class Linearised:
    """A function with the products of its Jacobian at a point.

    Products with the transpose are reverse-mode derivatives; these are linear in what they are
    applied to, and their own reverse-mode derivative is the product with the Jacobian itself.
    """

    def __init__(self, function: Callable[[Tensor], Tensor], v: Tensor) -> None:
        with torch.enable_grad():
            self.v = v.detach().requires_grad_(True)
            value = function(self.v)
            self.dual = torch.zeros_like(value, requires_grad=True)
            (self.back,) = torch.autograd.grad(value, self.v, self.dual, create_graph=True)
        self.value, self.r, self.evaluations = value, value.detach(), 1

    def vjp(self, u: Tensor) -> Tensor:
        """The product with the transpose of the Jacobian, `(B, m)` to `(B, k)`."""

        self.evaluations += 1
        return torch.autograd.grad(self.value, self.v, u, retain_graph=True)[0]

    def jvp(self, d: Tensor) -> Tensor:
        """The product with the Jacobian, `(B, k)` to `(B, m)`."""

        self.evaluations += 1
        return torch.autograd.grad(self.back, self.dual, d, retain_graph=True)[0]


def conjugate_gradients(problem: Linearised, b: Tensor, iterations: int) -> Tensor:
    """Solves `(I + Kᵀ K) δ = b` for every element of a batch."""

    x, r, p = torch.zeros_like(b), b, b
    square = r.square().sum(1, keepdim=True)
    enough = square * (4 * torch.finfo(b.dtype).eps) ** 2
    for _ in range(iterations):
        active = square > enough
        if not bool(active.any()):
            break
        product = p + problem.vjp(problem.jvp(p))
        alpha = torch.where(active, square / (p * product).sum(1, keepdim=True), 0)
        x, r = x + alpha * p, r - alpha * product
        before, square = square, r.square().sum(1, keepdim=True)
        p = torch.where(active, r + square / before * p, p)

    return x
