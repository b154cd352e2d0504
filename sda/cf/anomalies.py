r"""Physical states and the stationary anomalies that a prior knows, there and back.

A climatology describes states whose statistics do not depend on the date and that may take any
value. What is measured does neither. Between the two stands one invertible map for each date,

    z = T(x) − c(date),    x = T⁻¹(z + c(date)),

with the transforms `T` of positive or bounded variables and the seasonal cycle `c` of the
transformed ones. Data are mapped to `z` before the climatology is fitted and a network trained.
From then on `z` lives inside the engine alone, which meets dates at three places only, each in one
call of the prior:

- `Prior.likelihood`: observations of `x` become observations of the normalised anomaly `z̃`,
  `H̃(z̃) = H(T⁻¹(mean + scale z̃ + c(date)))`. Without transforms this is affine if `H` is, and
  since `H(z + c) = H(z) + [H(c) − H(0)]` the cycle is taken off the observed values: operators,
  gains and factors are shared by all dates, and what is exact for a stationary prior stays exact.
- `Prior.states`: sampled anomalies become physical states, for posteriors and forecasts.
- `Prior.anomalies`: physical states become anomalies, for the initial states of a forecast.

All else (samplers, guidance, filters, blocks of time, networks) is the same for priors with a
seasonal cycle and without.
"""

from collections.abc import Callable, Mapping
from typing import Any

import numpy as np
import torch
import xarray as xr
from torch import Tensor

from dynamics.layout import Layout

from ..observation.likelihood import Likelihood
from .seasonal import SeasonalCycle
from .times import Clock
from .transforms import Transform, settle


class Anomalies:
    """The map between physical states and stationary anomalies.

    Arguments:
        layout: The layout of the physical states.
        transforms: The transforms of variables, by name.
        cycle: The seasonal cycle of the transformed states.
    """

    def __init__(
        self,
        layout: Layout,
        transforms: Mapping[str, Transform] | None = None,
        cycle: SeasonalCycle | None = None,
    ) -> None:
        self.layout, self.transforms, self.cycle = layout, dict(transforms or {}), cycle
        self._cached: tuple[bytes, np.ndarray] | None = None

    @classmethod
    def fit(
        cls,
        dataset: xr.Dataset,
        layout: Layout | None = None,
        *,
        transform: Mapping[str, Any] | None = None,
        seasonal: int | None = None,
        diurnal: int = 0,
        fill: bool = False,
    ) -> "Anomalies":
        """Finds the numbers of transforms and the seasonal cycle, in a pass over the data each.

        Arguments:
            dataset: The physical states, see `sda.cf.canonical`.
            layout: Their layout (default: read off the dataset).
            transform: The transforms by variable: a name or a mapping, see `Transform`.
            seasonal, diurnal: The harmonics, see `SeasonalCycle.fit`.
            fill: Whether the cycle has to fill gaps: it is then the mean at least.

        Raises:
            ValueError: If a transform does not suit the data, or dates do not resolve the cycle.
        """

        layout = layout or Layout.from_dataset(dataset)
        made = cls(layout, settle(dataset[list(layout.variables)], transform or {}))
        made.cycle = SeasonalCycle.fit(
            made.transformed(dataset), layout, seasonal, diurnal, always=fill
        )

        return made

    @property
    def trivial(self) -> bool:
        """Whether anomalies are the states themselves."""
        return not self.transforms and self.cycle is None

    def transformed(self, dataset: xr.Dataset) -> xr.Dataset:
        """`T(x)` of a dataset, lazily."""

        return dataset.assign(
            {
                name: each.forward(dataset[name]).assign_attrs(dataset[name].attrs)
                for name, each in self.transforms.items()
            }
        )

    def stationary(self, dataset: xr.Dataset, fill: bool = False) -> xr.Dataset:
        """The anomalies `z` of a dataset of physical states, lazily.

        Arguments:
            dataset: The physical states.
            fill: Whether missing values inside the mask are filled by the cycle, that is by zeros.
        """

        result = self.transformed(dataset)
        if self.cycle is not None:
            values = self.cycle.basis(dataset["time"].values).astype(np.float32)
            basis = xr.DataArray(values, dims=("time", "coefficient"))
            if dataset.chunksizes:
                basis = basis.chunk({"time": dataset.chunksizes.get("time", -1)})
            space = self.layout.dims
            for i, name in enumerate(self.layout.variables):
                own = xr.DataArray(self.cycle.coefficients[:, i], dims=("coefficient", *space))
                mean = xr.dot(basis, own.astype(np.float32), dim="coefficient")
                given = result[name]
                result[name] = (given - mean).transpose(*given.dims).assign_attrs(given.attrs)
        if fill:
            for name in self.layout.variables:
                result[name] = result[name].fillna(0.0)

        return result

    def mean(self, time: Any) -> np.ndarray:
        """The cycle at times, with shape `(time, channel, *space)`; zero where there is none."""

        time = np.asarray(time, dtype=np.float64)
        if self.cycle is None:
            return np.zeros((len(time), *self.layout.shape))
        key = time.tobytes()
        if self._cached is None or self._cached[0] != key:
            self._cached = key, self.cycle(time)
        return self._cached[1]

    def forward(self, x: Any, time: Any) -> np.ndarray:
        """The anomalies of states `(…, time, channel, *space)` at times."""

        z = np.array(x)
        axis = z.ndim - len(self.layout.shape)
        for name, each in self.transforms.items():
            index = (slice(None),) * axis + (self.layout.variables.index(name),)
            with np.errstate(divide="ignore"):
                own = each.forward(np.clip(z[index], *each.bounds))
            # There are no states on land, and no logarithm of none.
            z[index] = own if self.layout.mask is None else np.where(self.layout.mask, own, 0.0)

        return z if self.cycle is None else (z - self.mean(time)).astype(z.dtype)

    def inverse(self, z: Tensor, time: Any) -> Tensor:
        """The physical states of anomalies `(…, time, channel, *space)` at times, within bounds."""

        x = z if self.cycle is None else z + torch.from_numpy(self.mean(time)).to(z)
        return self.restore(x, clip=True)

    def restore(self, x: Tensor, clip: bool = False) -> Tensor:
        """`T⁻¹` of transformed states `(…, channel, *space)`, smoothly unless they are clipped."""

        if not self.transforms:
            return x
        axis = x.ndim - len(self.layout.shape)
        parts = list(x.unbind(axis))
        for name, each in self.transforms.items():
            index = self.layout.variables.index(name)
            parts[index] = each.inverse(parts[index])
            if clip:
                parts[index] = parts[index].clamp(*each.bounds)

        return torch.stack(parts, axis)

    def normalise(
        self, likelihood: Likelihood, mean: Tensor, scale: Tensor, time: Any
    ) -> Likelihood:
        """A likelihood of physical states as one of normalised anomalies.

        Arguments:
            likelihood: The likelihood of physical states, bound to a trajectory.
            mean, scale: Those of the climatology of anomalies.
            time: The times of the trajectory.
        """

        restore: Callable[[Tensor], Tensor] | None = None
        if self.transforms and self._seen(likelihood):
            restore = self.restore
        cycle = torch.from_numpy(self.mean(time)).to(likelihood.y)
        if restore is None and likelihood.linear:
            return likelihood.shifted(cycle).normalise(mean, scale)

        return likelihood.normalise(mean.to(cycle) + cycle, scale, restore)

    def _seen(self, likelihood: Likelihood) -> bool:
        """Whether a likelihood depends on transformed variables."""

        if not likelihood.linear:
            return True
        generator = torch.Generator().manual_seed(0)
        x = torch.randn((1, *likelihood.shape), generator=generator).to(likelihood.y)
        other = x.clone()
        for name in self.transforms:
            other[:, :, self.layout.variables.index(name)] += 1 + x[:, :, 0].abs()

        return not torch.equal(likelihood.H(x), likelihood.H(other))

    def tensors(self) -> dict[str, Tensor]:
        """All tensors, for safetensors."""

        if self.cycle is None:
            return {}
        return {"seasonal": torch.from_numpy(self.cycle.coefficients.astype(np.float32))}

    def to_json(self) -> dict[str, Any]:
        """All else, as plain JSON types."""

        cycle = self.cycle
        return {
            "transforms": {name: each.to_json() for name, each in self.transforms.items()},
            "harmonics": 0 if cycle is None else cycle.harmonics,
            "diurnal": 0 if cycle is None else cycle.diurnal,
        }

    @classmethod
    def from_tensors(
        cls, layout: Layout, content: Mapping[str, Any], tensors: Mapping[str, Tensor]
    ) -> "Anomalies":
        """The inverse of `tensors` and `to_json`."""

        cycle = None
        clock = Clock.of(layout)
        if "seasonal" in tensors and clock is not None:
            values = tensors["seasonal"].numpy()
            cycle = SeasonalCycle(clock, content["harmonics"], content["diurnal"], values)
        transforms = {name: Transform(**each) for name, each in content["transforms"].items()}

        return cls(layout, transforms, cycle)
