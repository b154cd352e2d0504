r"""Priors of states that are given something: boundaries, a large-scale analysis, a forcing.

Some fields are known beside the states and are not to be modelled: the coarse analysis around a
region, a sea surface below an atmosphere. A prior is conditioned on them, :math:`p(x \mid c)`, in
two parts. What they say linearly is the Gaussian conditional: the regression of the states on the
leading EOFs :math:`a` of the context at the neighbouring times,

.. math:: x_i = m_i(c) + z_i, \qquad
    m_i(c) = \bar x + \sum_{|j| \leq l} M_j \, a_{i+j},

with residuals z that have the climatology of what the context leaves open. A Gaussian prior is
N(0, Σ) of these residuals. What the context says beyond, a network learns: it sees the fields and
:math:`m(c)` as channels beside the noisy residuals, and so which of the errors that are usual are
those of this flow. The first and last l states of a trajectory have regressions of their own.

The penalty of the regression is the one that predicts held-out trajectories best.
"""

import math
from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import Any

import numpy as np
import torch
import xarray as xr
from torch import Tensor

from dynamics.layout import Layout

from .cf.anomalies import Anomalies

RANK = 200
# EOFs of less than this part of the largest variance are noise of their storage.
NEGLIGIBLE = 1e-6
# Penalties of the regression that are tried, in mean variances of its predictors.
PENALTIES = (1e-6, 1e-5, 1e-4, 1e-3, 1e-2, 1e-1, 1.0)
EXPECTED = "expected_"


class Context:
    """The regression of states on fields that they are given.

    Arguments:
        layout: The layout of the states.
        names: The variables of the context, on the cells of the states.
        lags: The number l of earlier and of later times that are regressed on.
        tensors: `mean` and `scale` of the context, with shapes `(k, *space)` and `(k)`; `basis`,
            its EOFs, `(k · cells, r)`; `state_mean` and `state_scale`; and `weights`, of each
            place among 2 l + 1 times, with shape `(2 l + 1, (2 l + 1) r, channel · cells)`.
    """

    def __init__(
        self, layout: Layout, names: Sequence[str], lags: int, tensors: Mapping[str, Tensor]
    ) -> None:
        self.layout, self.names, self.lags = layout, tuple(names), lags
        self._tensors = {name: tensor.float().contiguous() for name, tensor in tensors.items()}
        self.arrays = {name: tensor.numpy() for name, tensor in self._tensors.items()}

    @property
    def given(self) -> Layout:
        """The layout of the context."""
        return replace(self.layout, variables=self.names)

    @property
    def channels(self) -> tuple[str, ...]:
        """What a network sees: the context, normalised, and what it lets expect."""
        return (*self.names, *(f"{EXPECTED}{name}" for name in self.layout.variables))

    @property
    def wide(self) -> Layout:
        """The layout of residuals with the channels beside them, see `conditioned`."""
        return replace(self.layout, variables=(*self.layout.variables, *self.channels))

    @classmethod
    def fit(
        cls, dataset: xr.Dataset, names: Sequence[str], lags: int = 1, rank: int = RANK
    ) -> "Context":
        """Regresses states on their context, streaming over the members of a dataset twice.

        Arguments:
            dataset: Trajectories with the variables of the states and of the context.
            names: Those of the context.
            lags: The number l of earlier and of later times.
            rank: The largest number of EOFs of the context.

        Raises:
            ValueError: If variables are missing or do not vary, values are NaN, or trajectories are
                too short.
        """

        every = [str(v) for v in dataset.data_vars if "time" in dataset[v].dims]
        if not names or (missing := [name for name in names if name not in every]):
            raise ValueError(
                f"the context {list(names)} must be variables of the data, which has {every}"
                + (f": {missing} are not" if names else "")
            )
        if lags < 0 or dataset.sizes["time"] < 2 * lags + 1:
            raise ValueError(
                f"a context of {lags} times before and after needs trajectories of at least "
                f"{2 * lags + 1} states, got {dataset.sizes['time']}"
            )
        whole = Layout.from_dataset(dataset, every)
        states = [name for name in whole.variables if name not in names]
        if not states:
            raise ValueError(f"all variables {every} are context: some must be states")
        layout = replace(whole, variables=tuple(states))
        both = replace(whole, variables=(*states, *names))

        x_mean, x_scale, _ = statistics(dataset, both, slice(0, len(states)), 0)
        c_mean, c_scale, basis = statistics(dataset, both, slice(len(states), None), rank)
        made = cls(
            layout, names, lags,
            {"mean": c_mean, "scale": c_scale, "basis": basis, "state_mean": x_mean,
             "state_scale": x_scale, "weights": torch.zeros(0)},
        )  # fmt: skip
        made._regress(dataset, both)

        return made

    def _regress(self, dataset: xr.Dataset, both: Layout) -> None:
        """Finds the weights."""

        frames, count = 2 * self.lags + 1, len(self.layout.variables)
        size = frames * self.arrays["basis"].shape[1]
        squares = np.zeros((2, size, size))
        products = np.zeros((2, frames, size, math.prod(self.layout.shape)))
        norms = np.zeros(2)
        for i, member in enumerate(members(dataset, both)):
            predictors = self._predictors(self._normalise(member[:, count:]))
            x = self._anomalies(member[:, :count]).reshape(len(member), -1)
            squares[i % 2] += predictors.T @ predictors
            for place in range(frames):
                target = x[place : place + len(predictors)]
                products[i % 2, place] += predictors.T @ target
                norms[i % 2] += (target**2).sum()
        penalty = best_penalty(squares, products, norms)
        weights = solve(squares.sum(0), products.sum(0), penalty)
        self._tensors["weights"] = torch.from_numpy(weights).float().contiguous()
        self.arrays["weights"] = self._tensors["weights"].numpy()

    def _normalise(self, c: np.ndarray) -> np.ndarray:
        scale = self.arrays["scale"].reshape(-1, *[1] * len(self.layout.dims))
        return (c - self.arrays["mean"]) / scale

    def _anomalies(self, x: np.ndarray) -> np.ndarray:
        scale = self.arrays["state_scale"].reshape(-1, *[1] * len(self.layout.dims))
        return (x - self.arrays["state_mean"]) / scale

    def _predictors(self, c: np.ndarray) -> np.ndarray:
        """EOF coefficients of every 2 l + 1 successive times, `(time - 2 l, (2 l + 1) r)`."""

        a = c.reshape(len(c), -1) @ self.arrays["basis"]
        last = len(a) - 2 * self.lags

        return np.concatenate([a[i : i + last] for i in range(2 * self.lags + 1)], axis=1)

    def expected(self, c: np.ndarray) -> np.ndarray:
        """The mean of the states given a context, `m(c)`.

        Arguments:
            c: The context, in physical units, with shape `(time, k, *space)`.

        Returns:
            The states, in physical units, with shape `(time, channel, *space)`.

        Raises:
            ValueError: If there are less than 2 l + 1 times.
        """

        scale = self.arrays["state_scale"].reshape(-1, *[1] * len(self.layout.dims))
        return self.arrays["state_mean"] + scale * self._regression(self._normalise(c))

    def _regression(self, c: np.ndarray) -> np.ndarray:
        """The anomalies of the states that a normalised context lets expect."""

        if len(c) < 2 * self.lags + 1:
            raise ValueError(
                f"a context of {self.lags} times before and after needs at least "
                f"{2 * self.lags + 1} times, got {len(c)}"
            )
        predictors, weights = self._predictors(c), self.arrays["weights"]
        middle = predictors @ weights[self.lags]
        first = predictors[:1] @ weights[: self.lags]
        last = predictors[-1:] @ weights[self.lags + 1 :]
        found = np.concatenate((first[:, 0], middle, last[:, 0]))

        return found.reshape(-1, *self.layout.shape)

    def features(self, c: np.ndarray) -> np.ndarray:
        """What a network sees of a context `(time, k, *space)`, see `channels`."""

        normal = self._normalise(c)
        return np.concatenate((normal, self._regression(normal)), axis=1).astype(np.float32)

    def conditioned(self, dataset: xr.Dataset) -> xr.Dataset:
        """Residuals of trajectories, and the channels of their contexts, lazily.

        Returns:
            A dataset with the layout `wide`.
        """

        variables = (*self.layout.variables, *self.names)
        both, space = replace(self.layout, variables=variables), self.layout.dims
        both.check(dataset)
        stacked = dataset[list(variables)].to_dataarray("variable")
        stacked = stacked.transpose(..., "time", "variable", *space)
        if stacked.chunks is not None:
            stacked = stacked.chunk({"time": -1, "variable": -1} | dict.fromkeys(space, -1))
        if self.layout.mask is not None:
            stacked = stacked.where(xr.DataArray(self.layout.mask, dims=space), 0)
        count = len(self.layout.variables)

        def convert(values: np.ndarray) -> np.ndarray:
            flat = values.reshape(-1, *values.shape[-2 - len(space) :])
            out = [
                np.concatenate((x[:, :count] - self.expected(x[:, count:]),
                                self.features(x[:, count:])), axis=1)
                for x in flat
            ]  # fmt: skip
            made = np.stack(out).astype(np.float32)
            return made.reshape(*values.shape[: -2 - len(space)], *made.shape[1:])

        made = xr.apply_ufunc(
            convert, stacked, input_core_dims=[["time", "variable", *space]],
            output_core_dims=[["time", "channel", *space]], dask="parallelized",
            output_dtypes=[np.float32],
            dask_gufunc_kwargs={"output_sizes": {"channel": len(self.wide.variables)}},
        )  # fmt: skip
        result = made.assign_coords(channel=list(self.wide.variables)).to_dataset("channel")
        # Variables without time, which a network may see.
        rest = dataset.drop_vars([v for v in dataset.data_vars if "time" in dataset[v].dims])
        result = rest.merge(result.drop_vars("variable", errors="ignore"))
        result["time"].attrs.update(dataset["time"].attrs)

        return result.assign_attrs(dataset.attrs | {"variables": list(self.wide.variables)})

    def of(self, dataset: xr.Dataset) -> np.ndarray:
        """The context in a dataset, with shape `(time, k, *space)`.

        Arguments:
            dataset: Its variables, of one member, by their names or without `_context`. On another
                grid they are interpolated, see `sda.regional`.

        Raises:
            ValueError: If a variable is missing, there is more than one member, or values are NaN.
        """

        from .regional import SUFFIX, interpolated

        if dataset.sizes.get("member", 1) != 1:
            raise ValueError(
                f"a prior is given one context, got {dataset.sizes['member']} members: select one"
            )
        found = {n: n if n in dataset else n.removesuffix(SUFFIX) for n in self.names}
        if self.layout.mask is not None and all(n in dataset for n in self.names):
            return self.given.to_array(dataset)[0]

        return interpolated(dataset, self.given, list(found.values()))[0]

    def tensors(self) -> dict[str, Tensor]:
        """All tensors, for safetensors."""
        return dict(self._tensors)

    def to_json(self) -> dict[str, Any]:
        return {"names": list(self.names), "lags": self.lags}

    @classmethod
    def from_tensors(
        cls, layout: Layout, content: Mapping[str, Any], tensors: Mapping[str, Tensor]
    ) -> "Context":
        """The inverse of `tensors` and `to_json`."""
        return cls(layout, content["names"], content["lags"], tensors)


class Given(Anomalies):
    """The map between states and their residuals, given a context at its times.

    Arguments:
        context: The regression.
        values: The context, with shape `(time, k, *space)`.
        time: Its times.
    """

    def __init__(self, context: Context, values: np.ndarray, time: np.ndarray) -> None:
        super().__init__(context.layout)
        self.context, self.values = context, np.asarray(values)
        self.time = np.asarray(time, dtype=np.float64)
        self.states, self.features = context.expected(self.values), context.features(self.values)

    @property
    def trivial(self) -> bool:
        return False

    def rows(self, time: Any) -> np.ndarray:
        """Where times are among those of the context.

        Raises:
            ValueError: If one is not.
        """

        time = np.asarray(time, dtype=np.float64)
        rows = np.abs(self.time[:, None] - time).argmin(0)
        if (np.abs(self.time[rows] - time) > 1e-3 * self.layout.dt).any():
            raise ValueError(
                f"the context covers the times {self.time[0]:g} to {self.time[-1]:g}, the states "
                f"are at {time[0]:g} to {time[-1]:g}: give it at all times of the states"
            )
        return rows

    def at(self, time: Any) -> "Given":
        """The same, at some of its times."""

        rows, made = self.rows(time), object.__new__(Given)
        made.__dict__ = self.__dict__ | {
            name: getattr(self, name)[rows] for name in ("values", "time", "states", "features")
        }
        return made

    def mean(self, time: Any) -> np.ndarray:
        return self.states[self.rows(time)]

    def forward(self, x: Any, time: Any) -> np.ndarray:
        return (np.asarray(x) - self.mean(time)).astype(np.asarray(x).dtype)

    def inverse(self, z: Tensor, time: Any) -> Tensor:
        return z + torch.from_numpy(self.mean(time)).to(z)

    def tensors(self) -> dict[str, Tensor]:
        return {"values": torch.from_numpy(np.ascontiguousarray(self.values, dtype=np.float32))}

    def to_json(self) -> dict[str, Any]:
        return {"context": self.time.tolist()}


def members(dataset: xr.Dataset, layout: Layout) -> Any:
    """Reads one member after the other, as float64 arrays `(time, channel, *space)`."""

    from .climatology import trajectories

    return (x.numpy() for x in trajectories(dataset, layout))


def statistics(
    dataset: xr.Dataset, layout: Layout, part: slice, rank: int
) -> tuple[Tensor, Tensor, Tensor]:
    """The mean, the scale and, of a positive rank, the EOFs of some of the variables."""

    chosen = replace(layout, variables=layout.variables[part])
    first: Any = None
    total: Any = 0.0
    square: Any = 0.0
    count = 0
    for x in members(dataset, chosen):
        flat = x.reshape(len(x), -1)
        if first is None:
            first = flat.mean(0)
            cut = flat.shape[1] > 2048
        flat, count = flat - first, count + len(flat)
        total = total + flat.sum(0)
        if not rank:
            square = square + (flat**2).sum(0)
        elif not cut:
            square = square + flat.T @ flat
        else:
            # Leading directions only: incremental principal components.
            rows = flat if count == len(flat) else np.concatenate((square, flat))
            _, s, v = np.linalg.svd(rows, full_matrices=False)
            square = s[: 2 * rank, None] * v[: 2 * rank]
    shift = total / count
    mean = (first + shift).reshape(chosen.shape)
    if not rank:
        power = square / count - shift**2
    elif not cut:
        square = square / count - np.outer(shift, shift)
        power = square.diagonal()
    else:
        power = (square**2).sum(0) / count - shift**2
    cells = math.prod(layout.shape[1:]) if layout.mask is None else int(layout.mask.sum())
    scale = np.sqrt(power.clip(min=0).reshape(len(mean), -1).sum(1) / cells)
    if not (scale > 0).all():
        constant = [n for n, v in zip(chosen.variables, scale, strict=True) if not v > 0]
        raise ValueError(f"variables {constant} do not vary: leave them out")
    basis = np.zeros((0, 0))
    if rank:
        each = np.repeat(scale, mean[0].size)
        if cut:
            _, s, v = np.linalg.svd(square / each, full_matrices=False)
            values, vectors = s**2, v.T
        else:
            values, vectors = np.linalg.eigh(square / np.outer(each, each))
            values, vectors = values[::-1], vectors[:, ::-1]
        keep = min(rank, int((values > NEGLIGIBLE * values[0]).sum()))
        basis = vectors[:, :keep].copy()

    return torch.from_numpy(mean), torch.from_numpy(scale), torch.from_numpy(basis)


def solve(square: np.ndarray, products: np.ndarray, penalty: float) -> np.ndarray:
    """The weights of a ridge regression, `(place, predictors, values)`."""

    level = penalty * square.diagonal().mean()
    return np.linalg.solve(square + level * np.eye(len(square)), products)


def best_penalty(squares: np.ndarray, products: np.ndarray, norms: np.ndarray) -> float:
    """The penalty of least error of one half of the members, predicted by the other."""

    if not norms.all():
        return PENALTIES[len(PENALTIES) // 2]

    def error(penalty: float) -> float:
        total = 0.0
        for own, other in ((0, 1), (1, 0)):
            w = solve(squares[own], products[own], penalty)
            fitted = np.einsum("kpn,pq,kqn->", w, squares[other], w, optimize=True)
            total += float(fitted - 2 * (w * products[other]).sum() + norms[other])
        return total

    return min(PENALTIES, key=error)
