r"""Errors that are not Gaussian: with heavy tails, an observation far off tells next to nothing.

*Student's t* with `ν` degrees of freedom, of scale `σ` (the `std` of an observation), is a Gaussian
whose precision is unknown by a factor,

    ε | λ ~ N(0, σ² / λ),  λ ~ Gamma(ν / 2, ν / 2),    E[λ | ε] = (ν + 1) / (ν + ε² / σ²),

so that what knows Gaussian errors knows these, with the precision weighted by the expectation of
`λ` given what is known of `ε`. The gradient of the log-density is that of the weighted Gaussian.

*Huber's* density is Gaussian within `k σ`, exponential beyond; its weight is `min(1, k σ / |ε|)`.

References:
    Robust statistical modeling using the t distribution (Lange, Little and Taylor, 1989)
    Robust estimation of a location parameter (Huber, 1964)
"""

import math
import re
from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

GAUSSIAN = "gaussian"
# The kinds of errors and the usual value of their parameter.
KINDS = {"student_t": 4.0, "huber": 1.5}


def parse(errors: str) -> tuple[str, float]:
    """The kind of errors and its parameter, of "gaussian", "student_t", "student_t(3)" or "huber".

    Raises:
        ValueError: If the kind is unknown or its parameter not positive.
    """

    match = re.fullmatch(r"\s*([a-z_]+)\s*(?:\(\s*([-+.\deE]+)\s*\))?\s*", str(errors))
    kind = match[1] if match else None
    if kind == GAUSSIAN and match is not None and match[2] is None:
        return GAUSSIAN, math.inf
    if match is None or kind not in KINDS:
        raise ValueError(
            f"errors must be gaussian, student_t or huber, the last two with a parameter if you "
            f"like, as student_t(3), got {errors!r}"
        )
    try:
        value = KINDS[kind] if match[2] is None else float(match[2])
    except ValueError:
        value = math.nan
    if not 0 < value < math.inf:
        raise ValueError(f"the parameter of {kind} errors must be positive, got {errors!r}")

    return kind, value


@dataclass
class Robust:
    """The errors of observations of which some are not Gaussian.

    Arguments:
        dof: The degrees of freedom `ν` of Student's t; infinite for others. Shape `(value)`.
        threshold: Huber's `k`; infinite for others. Shape `(value)`.
    """

    dof: Tensor
    threshold: Tensor

    @classmethod
    def of(cls, errors: Sequence[str], like: Tensor) -> "Robust | None":
        """Those of values with such errors each; None if all are Gaussian."""

        known = {each: parse(each) for each in set(errors)}
        if all(kind == GAUSSIAN for kind, _ in known.values()):
            return None
        pairs = [known[each] for each in errors]
        dof, threshold = (
            torch.tensor([value if kind == name else math.inf for kind, value in pairs]).to(like)
            for name in KINDS
        )
        return cls(dof, threshold)

    def take(self, index: Tensor) -> "Robust":
        """Those of some of the values, in an order."""
        return Robust(self.dof[index], self.threshold[index])

    def weights(self, square: Tensor) -> Tensor:
        """The weights of the precision, given the expectation of `ε² / σ²`, both `(…, value)`."""

        student = self.dof.isfinite()
        dof = torch.where(student, self.dof, 1.0)
        t = torch.where(student, (dof + 1) / (dof + square), 1.0)
        huber = self.threshold / square.clamp(min=1e-30).sqrt()

        return t * huber.clamp(max=1.0)

    def log_prob(self, z: Tensor) -> Tensor:
        """The log-density of `z = ε / σ`, with shape `(…, value)`."""

        student, huber = self.dof.isfinite(), self.threshold.isfinite()
        dof, k = torch.where(student, self.dof, 1.0), torch.where(huber, self.threshold, 1.0)
        t = (
            torch.lgamma((dof + 1) / 2)
            - torch.lgamma(dof / 2)
            - 0.5 * torch.log(dof * math.pi)
            - (dof + 1) / 2 * torch.log1p(z.square() / dof)
        )
        inside = math.sqrt(2 * math.pi) * (2 * torch.special.ndtr(k) - 1)
        norm = torch.log(inside + 2 / k * torch.exp(-k.square() / 2))
        size = z.abs()
        h = -torch.where(size <= k, z.square() / 2, k * size - k.square() / 2) - norm
        gaussian = -0.5 * z.square() - 0.5 * math.log(2 * math.pi)

        return torch.where(student, t, torch.where(huber, h, gaussian))
