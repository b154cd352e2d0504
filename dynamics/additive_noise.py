r"""Systems that are a deterministic map, with or without additive Gaussian noise.

$$ x_{i+1} = f(x_i) + \sqrt{q}\, \epsilon_i, \qquad \epsilon_i \sim N(0, I) $$

With noise the transition density is known, which makes exact reference solutions possible.
"""

import abc
import math

from torch import Tensor

from .system import System


class AdditiveNoise(System):
    """A system whose step is a map, plus independent Gaussian noise if `variance` is positive.

    Attributes:
        variance: The variance $q$ that each step adds to each value.
    """

    variance: float = 0.0

    @property
    def stochastic(self) -> bool:  # type: ignore[override]
        """Whether a step adds noise."""
        return self.variance > 0

    @abc.abstractmethod
    def flow(self, x: Tensor) -> Tensor:
        """The deterministic map over one `dt`, for states `(member, channel, *space)`."""

    def advance(self, z: Tensor, noise: Tensor | None = None) -> Tensor:
        """Advances states by one `dt`, see `System.advance`."""

        if noise is None:
            return self.flow(z)
        if not self.stochastic:
            raise ValueError(
                f"{type(self).__name__} is deterministic and takes no noise, "
                f"got noise of shape {tuple(noise.shape)}"
            )
        if noise.shape != z.shape:
            raise ValueError(
                f"noise must have the shape of the states {tuple(z.shape)}, "
                f"got {tuple(noise.shape)}"
            )

        return self.flow(z) + math.sqrt(self.variance) * noise

    def log_transition(self, x: Tensor, x_next: Tensor) -> Tensor:
        r"""The transition density $\log N(x_{i+1}; f(x_i), q I)$.

        Arguments:
            x: The states, with shape `(member, channel, *space)`.
            x_next: The states one `dt` later, with the same shape.

        Returns:
            The log-densities, with shape `(member)`.

        Raises:
            ValueError: If the system is deterministic.
        """

        if not self.stochastic:
            return super().log_transition(x, x_next)
        residual = (x_next - self.flow(x)).flatten(1)
        constant = residual.shape[1] * math.log(2 * math.pi * self.variance)

        return -(residual.square().sum(dim=1) / self.variance + constant) / 2


def check_positive(**values: float) -> None:
    """Raises a `ValueError` for the first value that is not positive and finite."""

    for name, value in values.items():
        if not (value > 0 and math.isfinite(value)):
            raise ValueError(f"{name} must be positive, got {value}")
