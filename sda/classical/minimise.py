r"""Non-linear least squares for many small problems at once, or few large ones.

    J(v) = ½ |v - p|² + ½ |r(v)|²

is minimised by Gauss–Newton steps: each solves `(I + Kᵀ K) δ = p - v - Kᵀ r` with the Jacobian
`K = ∂r/∂v` by conjugate gradients, which need products with `K` and `Kᵀ` only, from automatic
differentiation. That is incremental 4D-Var (Courtier et al. 1994) with control variables in which
the background term is white. A step that does not lower the cost is halved.

Every element of the batch has steps, step lengths and a convergence of its own: one that has
converged stays where it is while others go on, so that it does not depend on them.

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
        iterations: The number of Gauss–Newton steps of each, with shape `(B)`.
        evaluations: The number of evaluations of `r` and of products with its Jacobian that each
            took until it converged, with shape `(B)`.
    """

    v: Tensor
    cost: Tensor
    iterations: Tensor
    evaluations: Tensor


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
        tolerance: An element has converged where a step lowers its cost by no more than this part
            of it (default: by precision).

    Returns:
        The minimum. Where the cost is not finite at the start, the start itself.
    """

    if tolerance is None:
        tolerance = 1e-6 if prior.dtype == torch.float32 else 1e-12
    v = prior.clone() if start is None else start.clone()
    cost = torch.full_like(v[:, 0], torch.inf)
    active = torch.ones_like(cost, dtype=torch.bool)
    done = torch.zeros_like(cost, dtype=torch.long)
    evaluations = torch.zeros_like(done)
    for _ in range(iterations):
        problem = Linearised(residual, v)
        r = problem.r
        cost = cost_of(v, prior, r)
        gradient = v - prior + problem.vjp(r)
        descent = torch.where(active[:, None], -gradient, 0)
        step, products = conjugate_gradients(problem, descent, inner)
        # The function itself and the gradient, besides.
        evaluations += torch.where(active, products + 2, 0)
        done += active

        length = torch.ones_like(cost)
        best, gain = v, torch.zeros_like(cost)
        searching = active & torch.isfinite(cost)
        for _ in range(HALVINGS):
            candidate = v + length[:, None] * step
            with torch.no_grad():
                reached = cost_of(candidate, prior, residual(candidate))
            evaluations += searching
            taken = searching & (reached < cost)
            best = torch.where(taken[:, None], candidate, best)
            gain = torch.where(taken, cost - reached, gain)
            # A step that is as good as none, by rounding, is not halved.
            flat = (reached - cost).abs() <= tolerance * cost
            searching = searching & ~(taken | flat)
            if not bool(searching.any()):
                break
            length = torch.where(searching, length / 2, length)
        v, cost = best, cost - gain
        active = active & (gain > tolerance * cost)
        if not bool(active.any()):
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
        self.value, self.r = value, value.detach()

    def vjp(self, u: Tensor) -> Tensor:
        """The product with the transpose of the Jacobian, `(B, m)` to `(B, k)`."""

        return torch.autograd.grad(self.value, self.v, u, retain_graph=True)[0]

    def jvp(self, d: Tensor) -> Tensor:
        """The product with the Jacobian, `(B, k)` to `(B, m)`."""

        return torch.autograd.grad(self.back, self.dual, d, retain_graph=True)[0]


def conjugate_gradients(problem: Linearised, b: Tensor, iterations: int) -> tuple[Tensor, Tensor]:
    """Solves `(I + Kᵀ K) δ = b` for every element of a batch.

    Returns:
        The solutions `(B, k)`, and the number of products with K or its transpose of each, `(B)`.
    """

    x, r, p = torch.zeros_like(b), b, b
    products = torch.zeros(len(b), dtype=torch.long, device=b.device)
    square = r.square().sum(1, keepdim=True)
    enough = square * (4 * torch.finfo(b.dtype).eps) ** 2
    for _ in range(iterations):
        active = square > enough
        if not bool(active.any()):
            break
        product = p + problem.vjp(problem.jvp(p))
        products += 2 * active[:, 0]
        alpha = torch.where(active, square / (p * product).sum(1, keepdim=True), 0)
        x, r = x + alpha * p, r - alpha * product
        before, square = square, r.square().sum(1, keepdim=True)
        p = torch.where(active, r + square / before * p, p)

    return x, products
