r"""Transforms of variables that are positive or bounded to variables on the whole line.

    z = T(x),    x = T⁻¹(z)

The prior is fitted to `z`, whose distribution is closer to a Gaussian. `T⁻¹` is smooth and
increasing on the whole line, so that observations can be differentiated through it; where it goes
on below what the variable can be (`sqrt`, `log1p`, `boxcox`), states are clipped in the end.

    log      z = log x                        x > 0
    log1p    z = log(1 + x / scale)           x ≥ 0
    sqrt     z = √x,  x = z |z|               x ≥ 0
    boxcox   z = (x^λ − 1) / λ                x ≥ 0, power λ > 0
    logit    z = log(p / (1 − p)), p = (x − low) / (high − low) within [ε, 1 − ε]
"""

from collections.abc import Mapping
from dataclasses import asdict, dataclass
from typing import Any

import numpy as np
import torch
import xarray as xr
from torch import Tensor

from .missing import portions

NAMES = ("log", "log1p", "sqrt", "boxcox", "logit")


@dataclass(frozen=True)
class Transform:
    """A transform of one variable.

    Arguments:
        name: "log", "log1p", "sqrt", "boxcox" or "logit".
        scale: For "log1p", what is small, in the variable's units (default: its mean).
        power: For "boxcox", λ.
        low, high: For "logit", the bounds.
        epsilon: For "logit", the share of the range that a bound is kept away from.

    Raises:
        ValueError: If the name is unknown or a number is out of range.
    """

    name: str
    scale: float | None = None
    power: float = 0.5
    low: float = 0.0
    high: float = 1.0
    epsilon: float = 1e-3

    def __post_init__(self) -> None:
        if self.name not in NAMES:
            raise ValueError(f"transform must be one of {', '.join(NAMES)}, got {self.name!r}")
        if self.scale is not None and not self.scale > 0:
            raise ValueError(f"the scale of a transform must be positive, got {self.scale}")
        if not 0 < self.power or not self.low < self.high or not 0 < self.epsilon < 0.5:
            raise ValueError(
                f"expected power > 0, low < high and 0 < epsilon < 0.5, got power={self.power}, "
                f"low={self.low}, high={self.high}, epsilon={self.epsilon}"
            )

    @classmethod
    def of(cls, content: "str | Mapping[str, Any] | Transform") -> "Transform":
        """A transform of its name, or of its name and numbers."""

        if isinstance(content, Transform):
            return content
        try:
            return cls(content) if isinstance(content, str) else cls(**content)
        except TypeError as error:
            raise ValueError(
                f"a transform has a name, and perhaps scale, power, low, high or epsilon, got "
                f"{content}"
            ) from error

    @property
    def bounds(self) -> tuple[float, float]:
        """Between which values the variable lies."""
        return (self.low, self.high) if self.name == "logit" else (0.0, np.inf)

    def allows(self, low: float, high: float) -> bool:
        """Whether values of a range can be transformed."""

        smallest, largest = self.bounds
        return (low > 0 if self.name == "log" else low >= smallest) and high <= largest

    def forward(self, x: Any) -> Any:
        """Transforms an array (of NumPy, or lazy)."""

        if self.name == "log":
            return np.log(x)
        if self.name == "log1p":
            return np.log1p(x / self.scale)
        if self.name == "sqrt":
            return np.sqrt(x)
        if self.name == "boxcox":
            return (x**self.power - 1) / self.power
        p = ((x - self.low) / (self.high - self.low)).clip(self.epsilon, 1 - self.epsilon)
        return np.log(p / (1 - p))

    def inverse(self, z: Tensor) -> Tensor:
        """Takes a tensor back, smoothly."""

        if self.name == "log":
            return z.exp()
        if self.name == "log1p":
            assert self.scale is not None
            return self.scale * z.expm1()
        if self.name == "sqrt":
            return z * z.abs()
        if self.name == "boxcox":
            u = 1 + self.power * z
            # Away from zero: the slope of a root is infinite there.
            return u.sign() * u.abs().clamp(min=1e-12) ** (1 / self.power)
        return self.low + (self.high - self.low) * torch.sigmoid(z)

    def to_json(self) -> dict[str, Any]:
        """The transform as plain JSON types."""
        return asdict(self)


def settle(dataset: xr.Dataset, transforms: Mapping[str, Any]) -> dict[str, Transform]:
    """The transforms of a dataset's variables, with their numbers, in one pass over the data.

    Raises:
        ValueError: If a name is no variable, or values cannot be transformed.
    """

    names = list(map(str, dataset.data_vars))
    if unknown := sorted(set(transforms) - set(names)):
        raise ValueError(f"transform names {unknown}, which are not among the variables {names}")
    made = {name: Transform.of(content) for name, content in transforms.items()}
    if not made:
        return {}
    total, count = dict.fromkeys(made, 0.0), dict.fromkeys(made, 0)
    low, high = dict.fromkeys(made, np.inf), dict.fromkeys(made, -np.inf)
    for portion in portions(dataset[list(made)]):
        for name in made:
            values = dataset[name].isel(time=portion).values
            total[name] += float(np.nansum(values, dtype=np.float64))
            count[name] += int(np.isfinite(values).sum())
            low[name] = min(low[name], float(np.nanmin(values, initial=np.inf)))
            high[name] = max(high[name], float(np.nanmax(values, initial=-np.inf)))
    for name, each in made.items():
        if not each.allows(low[name], high[name]):
            what = "positive" if each.name == "log" else f"within {each.bounds[0]:g} … "
            what += "" if each.name == "log" else f"{each.bounds[1]:g}"
            raise ValueError(
                f"transform {each.name} of {name!r} needs values {what}, got {low[name]:g} … "
                f"{high[name]:g}: clip the data, or choose another transform"
                + (" such as log1p" if each.name == "log" else "")
            )
        if each.name == "log1p" and each.scale is None:
            mean = total[name] / max(count[name], 1)
            made[name] = Transform("log1p", scale=mean if mean > 0 else 1.0)

    return made
