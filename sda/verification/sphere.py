r"""Spectra and balance on the sphere.

With the coefficients $f_l^m$ of orthonormal spherical harmonics, see `dynamics.SphericalHarmonics`,
the spectrum of a field by total wavenumber, and that of the kinetic energy of a wind with vorticity
$\zeta$ and divergence $\delta$ (Boer and Shepherd, 1983), are

$$ E(l) = \frac{1}{8\pi} \sum_m |f_l^m|^2, \qquad
   K(l) = \frac{a^2}{8\pi\, l(l+1)} \sum_m \left(|\zeta_l^m|^2 + |\delta_l^m|^2\right). $$

Their sums are half the area mean of $f^2$ and of $u^2 + v^2$.

Outside the tropics winds nearly balance the pressure gradient. The geostrophic wind of a free
surface of height h is $\mathbf v_g = (g / f)\, \mathbf k \times \nabla h$; how far the wind is from
it, over the area beyond a latitude,

$$ \sqrt{\langle |\mathbf v - \mathbf v_g|^2 \rangle / \langle |\mathbf v_g|^2 \rangle}, $$

should be as large for members as for the truth: larger, and they hold gravity waves that the truth
does not; smaller, and balance was imposed.

References:
    Boer and Shepherd (1983), Large-scale two-dimensional turbulence in the atmosphere, J. Atmos.
    Sci. 40.
"""

import math
from collections.abc import Hashable, Sequence
from dataclasses import dataclass, field

import numpy as np
import torch
import xarray as xr
from numpy.typing import NDArray
from torch import Tensor

from dynamics.spherical_harmonics import GRIDS, SphericalHarmonics

from .cells import is_spherical
from .spectra import PIECE_VALUES, spectral_ratio
from .task import Entry, Stretch, Task, divide

# Of the Earth, where a dataset holds no Coriolis parameter: radius (m), rotation (1/s), gravity.
RADIUS, OMEGA, GRAVITY = 6.37122e6, 7.292e-5, 9.80616
WIND, HEIGHT = ("u", "v"), "h"
# Nearer to the equator, in degrees, there is no balance to speak of.
TROPICS = 25.0


def grid_harmonics(
    dataset: xr.Dataset, dims: Sequence[Hashable], radius: float = 1.0
) -> SphericalHarmonics | None:
    """The harmonics of a global grid, as many as it can hold; None if it is no such grid.

    Arguments:
        dataset: The dataset.
        dims: The spatial dimensions of its variables, which must be latitude and longitude.
        radius: The radius of the sphere.
    """

    if len(dims) != 2 or not is_spherical(dataset, dims):
        return None
    latitude, longitude = (np.asarray(dataset[d].values, dtype=np.float64) for d in dims)
    lat, lon = len(latitude), len(longitude)
    if lon < 4 or not np.allclose(longitude, 360.0 / lon * np.arange(lon), atol=1e-3):
        return None
    for grid in GRIDS:
        if lat < 4 or lat % 2 != (grid == "equiangular"):
            continue
        most = lat - 1 if grid == "gaussian" else (lat - 1) // 2
        found = SphericalHarmonics(lat, lon, min(most, (lon - 1) // 2), grid, radius)
        if np.allclose(latitude, found.latitudes, atol=1e-3):
            return found

    return None


class Harmonics:
    """Spherical harmonics as waves, see `Transform`: k is the total wavenumber."""

    def __init__(self, harmonics: SphericalHarmonics) -> None:
        self.harmonics, top = harmonics, harmonics.truncation + 1
        order, degree = np.meshgrid(np.arange(top), np.arange(top), indexing="ij")
        self.kept = (degree >= order).ravel()
        self.k: NDArray[np.integer] = degree.ravel()[self.kept]
        # A coefficient of m > 0 stands for that of -m too.
        self.weights: NDArray[np.float64] = np.where(order.ravel()[self.kept] > 0, 2.0, 1.0)
        self.norm, self.complete = 1 / (8 * math.pi), harmonics.truncation
        self.long_name = "total wavenumber"

    def __call__(self, x: NDArray) -> NDArray:
        """The coefficients `(field, coefficient)` of fields `(time, lat, lon)`."""
        spectrum = self.harmonics.analysis(torch.from_numpy(x.astype(np.float64)))
        return spectrum.numpy().reshape(len(x), -1)[:, self.kept]


@dataclass
class Wind:
    """Sums the spectra of kinetic energy, and the distance from balance, of members and truth.

    Attributes:
        task: What is verified.
        harmonics: The harmonics of its grid.
        factor: g / f on the grid, zero in the tropics, with shape `(lat, lon)`; None if there is no
            height.
        spectra: Sums of spectra, of the members and, last, of the truth, `(member + 1, l)`.
        apart: Sums of |v - v_g|², with shape `(member + 1)`.
        balanced: Sums of |v_g|², likewise.
    """

    task: Task
    harmonics: SphericalHarmonics
    factor: NDArray[np.float64] | None
    spectra: NDArray[np.float64]
    apart: NDArray[np.float64]
    balanced: NDArray[np.float64]
    fields: NDArray[np.float64] = field(init=False)

    def __post_init__(self) -> None:
        self.fields = np.zeros(len(self.apart))

    @classmethod
    def of(cls, task: Task, members: int) -> "Wind | None":
        """The sums of a task, or None if its variables have no wind on the sphere, or a coast."""

        if not set(WIND) <= set(task.names) or task.mask("u") is not None:
            return None
        dims = task.dims("u")
        shared = HEIGHT in task.names and task.dims(HEIGHT) == dims
        harmonics = grid_harmonics(task.posterior, dims, RADIUS)
        if harmonics is None or task.dims("v") != dims:
            return None
        metres = [task.posterior[n].attrs.get("units") for n in (HEIGHT, *WIND) if n in task.names]
        known = shared and metres == ["m", "m s-1", "m s-1"]

        return cls(
            task,
            harmonics,
            balance_factor(task, dims) if known else None,
            np.zeros((members + 1, harmonics.truncation + 1)),
            np.zeros(members + 1),
            np.zeros(members + 1),
        )

    def add(self, stretch: Stretch) -> None:
        """Adds some members over some frames, and after the last of them the truth."""

        for row, member in enumerate(stretch.members):
            self.add_one(member, {n: x[row] for n, x in stretch.x.items()}, stretch.lead)
        if stretch.last:
            self.add_one(-1, stretch.y, stretch.lead)

    def add_one(self, row: int, fields: dict[str, NDArray], lead: int) -> None:
        """Adds the fields `(lead + time, lat, lon)` of a member or of the truth."""

        names = [*WIND, *([] if self.factor is None else [HEIGHT])]
        length = fields["u"].shape[0]
        step = max(1, PIECE_VALUES // fields["u"][0].size)
        for start in range(lead, length, step):
            u, v, *h = (
                torch.from_numpy(fields[n][start : start + step].astype(np.float64)) for n in names
            )
            self.spectra[row] += kinetic_energy(self.harmonics, u, v).sum(0).numpy()
            self.fields[row] += len(u)
            if self.factor is not None:
                east, north = self.harmonics.gradient(self.harmonics.analysis(h[0]))
                factor = torch.from_numpy(self.factor)
                ug, vg = -factor * north, factor * east
                area = torch.from_numpy(self.task.area("u") * (self.factor != 0))
                self.apart[row] += float((area * ((u - ug) ** 2 + (v - vg) ** 2)).sum())
                self.balanced[row] += float((area * (ug**2 + vg**2)).sum())

    def scores(self, members: NDArray) -> dict[str, Entry]:
        """The spectra of kinetic energy and the distances from balance."""

        spectra = divide(self.spectra, self.fields[:, None])
        spectra[:-1][np.setdiff1d(np.arange(len(spectra) - 1), members)] = np.nan
        truth, mean = spectra[-1], spectra[members].mean(axis=0)
        scores: dict[str, Entry] = {
            "kinetic_energy": (("member", "wavenumber"), spectra[:-1]),
            "kinetic_energy_truth": ("wavenumber", truth),
            "kinetic_energy_ratio": ("wavenumber", spectral_ratio(mean, truth)),
        }
        if self.factor is not None:
            apart = np.sqrt(divide(self.apart, self.balanced))
            overall = divide(self.apart[members].sum(), self.balanced[members].sum())
            scores |= {
                "ageostrophic": ("member", np.where(self.fields[:-1] > 0, apart[:-1], np.nan)),
                "overall_ageostrophic": ((), np.sqrt(overall)),
                "ageostrophic_truth": ((), apart[-1]),
            }

        return scores


def kinetic_energy(harmonics: SphericalHarmonics, u: Tensor, v: Tensor) -> Tensor:
    """The spectra of kinetic energy `(*, l)` of winds `(*, lat, lon)`, per unit of mass."""

    vorticity, divergence = harmonics.vorticity_divergence(u.double(), v.double())
    power = harmonics.power(vorticity) + harmonics.power(divergence)
    degree = torch.arange(harmonics.truncation + 1, dtype=torch.float64)
    eigenvalues = degree * (degree + 1) / harmonics.radius**2

    return power * torch.where(degree > 0, 0.5 / eigenvalues, 0.0)


def balance_factor(task: Task, dims: Sequence[Hashable]) -> NDArray[np.float64]:
    """g / f on the grid, by the dataset's own Coriolis parameter where it holds one."""

    latitude = np.asarray(task.posterior[dims[0]].values, dtype=np.float64)
    coriolis = np.broadcast_to(
        2 * OMEGA * np.sin(np.deg2rad(latitude))[:, None], task.shape("u")
    ).astype(np.float64)
    for dataset in (task.posterior, task.truth):
        if "coriolis" in dataset.coords and set(dataset["coriolis"].dims) == set(dims):
            coriolis = dataset["coriolis"].transpose(*dims).values.astype(np.float64)
    outside = np.broadcast_to(np.abs(latitude)[:, None] >= TROPICS, coriolis.shape)

    return np.where(outside, GRAVITY / np.where(outside, coriolis, 1.0), 0.0)
