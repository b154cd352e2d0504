r"""Smooth random fields in space and time, for clouds and for where stations cluster.

A sum of `M` plane waves with random phases,

    g(x, t) = √(2 / M) Σ_j cos(k_j · x + ω_j t + φ_j),    k_j ~ N(0, I / ℓ²),  ω_j ~ N(0, 1 / τ²),

is nearly Gaussian, of mean 0, variance 1 and covariance `exp(-|x|² / 2ℓ² - t² / 2τ²)`. It is known
everywhere at once, without a grid; `x` are Cartesian coordinates, on the sphere in space.

References:
    Random features for large-scale kernel machines (Rahimi and Recht, 2007)
"""

import numpy as np

from .surface import Surface

WAVES = 256


class RandomField:
    """A random field on a surface.

    Arguments:
        surface: The surface. Where it is periodic, so is the field.
        generator: The source of the waves.
        scale: The correlation length `ℓ`, in the surface's units of length.
        duration: The correlation time `τ`, in the layout's units of time (None: constant).

    Raises:
        ValueError: If the scale or the duration is not positive.
    """

    def __init__(
        self,
        surface: Surface,
        generator: np.random.Generator,
        scale: float,
        duration: float | None = None,
    ) -> None:
        if not scale > 0 or not (duration is None or duration > 0):
            raise ValueError(
                f"a random field needs a positive scale and duration, got {scale} and {duration}"
            )
        self.surface = surface
        dims = 3 if surface.spherical else 2
        self.wavenumbers = generator.standard_normal((WAVES, dims)) / scale
        frequencies = generator.standard_normal(WAVES)
        self.frequencies = frequencies / duration if duration else np.zeros(WAVES)
        self.phases = 2 * np.pi * generator.random(WAVES)
        if not surface.spherical:
            for i, period in enumerate(surface.periods):
                if period is not None:
                    unit = 2 * np.pi / (period * surface.length)
                    self.wavenumbers[:, i] = unit * np.round(self.wavenumbers[:, i] / unit)

    def __call__(self, positions: np.ndarray, time: np.ndarray | float = 0.0) -> np.ndarray:
        """The values at positions `(…, 2)` and times that broadcast to `(…)`."""

        x = self.surface.embed(positions)
        time = np.broadcast_to(np.asarray(time, dtype=np.float64), x.shape[:-1])
        points = np.concatenate([x, time[..., None]], axis=-1).reshape(-1, x.shape[-1] + 1)
        waves = np.concatenate([self.wavenumbers, self.frequencies[:, None]], axis=1)
        values = [
            np.cos(part @ waves.T + self.phases).sum(axis=1)
            for part in np.array_split(points, max(1, len(points) // 1024))
        ]

        return np.concatenate(values).reshape(x.shape[:-1]) * np.sqrt(2 / WAVES)
