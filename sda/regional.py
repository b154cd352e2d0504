"""Regional assimilation: a prior on a limited area that is given the global analysis around it.

A limited area has no closed dynamics: what happens in it depends on what enters through its
boundary, and on waves longer than the area. A global analysis knows these, coarsely and with
errors. Regional data hold both, on the cells of the area,

    u, v, …                    what is wanted, at full resolution,
    u_context, v_context, …    the global analysis, interpolated to the same cells,

pairs of trajectories and of the global analyses that were made of them, from which a prior learns
which errors these analyses have, what they leave out, and what of it they determine nevertheless.
There are two ways:

- A conditioned prior models the states given the context, see `sda.context`. It is `given` each
  global analysis anew, and assimilates local stations. This is the better way, with a network or
  without:

      pairs = make_regional_dataset(trajectories, analyses, {"lat": (20, 75), "lon": (180, 270)})
      context = ["u_context", "v_context", "h_context"]
      prior = GaussianPrior.fit(pairs, window=6, context=context)    # at once, or with a network:
      prior = train(pairs, "priors/mine", TrainingOptions(window=6, context=context))
      stations = Observations.from_table(within(table, prior.layout))
      posterior = assimilate(prior.given(analysis), stations)

- A joint prior has the context among its states. It observes these channels everywhere beside the
  stations, see `regional_observations`, and so may be given analyses at some times only, or none.

The outermost cells are a rim, through which the outside is felt: score the `interior`.
"""

import os
import shutil
from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import xarray as xr

from dynamics.layout import LONGITUDE, Layout

if TYPE_CHECKING:
    import pandas as pd

    from .observation import Observations
    from .prior import Prior

SUFFIX = "_context"
# The error with which a context is observed, in standard deviations of its climatology: small
# against what it tells, not so small that sampling needs finer noise levels.
SHARE = 0.05


def regional_layout(
    layout: Layout, box: Mapping[str, tuple[float, float]], context: tuple[str, ...] = ()
) -> Layout:
    """The layout of a regional state: all variables in the box, then the context.

    Arguments:
        layout: The layout of the whole grid.
        box: The lowest and the highest coordinate, both included, of the dimensions to limit. On a
            periodic dimension a box whose start lies above its end goes on across the end of the
            grid, and so do its coordinates: longitudes from 350 to 20 are 350 … 380.
        context: The variables of the global analysis.

    Raises:
        ValueError: If the box names unknown dimensions, or holds less than two cells along one.
    """

    chosen = cells(layout, box)
    coords, names = dict(layout.coords), [f"{name}{SUFFIX}" for name in context]
    for dim, index in chosen.items():
        coords[dim] = coords[dim][index]
        wrapped = np.concatenate(([False], np.diff(index) < 0)).cumsum()
        coords[dim] = coords[dim] + wrapped * layout.period.get(dim, 0.0)
    mask = layout.mask
    if mask is not None:
        for axis, dim in enumerate(layout.dims):
            mask = mask.take(chosen.get(dim, np.arange(len(layout.coords[dim]))), axis)
    sources = dict(zip(names, context, strict=True))

    return replace(
        layout,
        variables=(*layout.variables, *names),
        coords=coords,
        period={dim: length for dim, length in layout.period.items() if dim not in chosen},
        units={**layout.units, **{n: layout.units.get(of, "1") for n, of in sources.items()}},
        long_names={
            **layout.long_names,
            **{n: f"{layout.long_names.get(of, of)}, global analysis" for n, of in sources.items()},
        },
        mask=mask,
    )


def make_regional_dataset(
    fine: xr.Dataset,
    coarse: xr.Dataset,
    box: Mapping[str, tuple[float, float]],
    out: str | Path | None = None,
    *,
    overwrite: bool = False,
) -> xr.Dataset:
    """Joins trajectories in a box with the global analyses that were made of them.

    Arguments:
        fine: Trajectories on the whole grid.
        coarse: The analyses of each of them at the same times, on a grid of their own, errors
            included: the prior learns these from here.
        box: The lowest and the highest coordinate of the dimensions to limit, see
            `regional_layout`.
        out: A Zarr store to write, one member after the other (default: all are kept in memory).
        overwrite: Whether a store is replaced, once the new one is complete.

    Returns:
        The dataset to fit or train a prior on, with the variables of `fine` and of the context.

    Raises:
        ValueError: If the two differ in their members or times, `coarse` has variables that `fine`
            has not, or holds NaN, or the box does not fit.
        FileExistsError: If `out` exists and is not to be replaced.
    """

    given = [variables(each) for each in (fine, coarse)]
    if unknown := [name for name in given[1] if name not in given[0]]:
        raise ValueError(f"the analyses have variables {unknown}, the trajectories {given[0]}")
    whole = Layout.from_dataset(fine, given[0])
    layout = regional_layout(whole, box, tuple(given[1]))
    fine, coarse = (each if "member" in each.dims else each.expand_dims("member")
                    for each in (fine, coarse))  # fmt: skip
    if fine.sizes["member"] != coarse.sizes["member"] or not np.array_equal(
        fine["time"].values, coarse["time"].values
    ):
        raise ValueError(
            f"trajectories and analyses must have the same members and times, got "
            f"{fine.sizes['member']} members of {fine.sizes['time']} times and "
            f"{coarse.sizes['member']} of {coarse.sizes['time']}"
        )

    chosen = cells(whole, box)
    attrs = {"title": "Regional trajectories with their global analyses"}
    target = None if out is None else Path(out)
    if target is not None and target.exists() and not overwrite:
        raise FileExistsError(f"{target} exists: choose another path, or overwrite=true")
    part = None if target is None else target.with_name(target.name + ".part")
    if part is not None and part.exists():
        shutil.rmtree(part)

    members = []
    for i in range(fine.sizes["member"]):
        one = fine.isel({"member": [i], **chosen})
        states = Layout.to_array(
            replace(layout, variables=whole.variables),
            one.assign_coords({dim: layout.coords[dim] for dim in chosen}),
        )
        around = interpolated(coarse.isel(member=[i]), layout, given[1])
        made = layout.to_dataset(
            np.concatenate((states, around.astype(states.dtype)), axis=2),
            fine["time"].values,
            one["member"].values if "member" in one.coords else [i],
            attrs,
        )
        made["time"].attrs.update(fine["time"].attrs)
        if part is None:
            members.append(made)
        elif i == 0:
            made.to_zarr(part, mode="w", zarr_format=3, consolidated=False)
        else:
            made.drop_vars("mask", errors="ignore").to_zarr(
                part, append_dim="member", consolidated=False
            )
    if part is None or target is None:
        return xr.concat(members, dim="member", data_vars="minimal", combine_attrs="override")
    if target.exists():
        shutil.rmtree(target)
    os.replace(part, target)

    return xr.open_zarr(target, consolidated=False)


def regional_context(analysis: xr.Dataset, layout: Layout) -> xr.Dataset:
    """A global analysis on the cells of a region, by linear interpolation.

    Arguments:
        analysis: The analysis of one member. Beyond its outermost rows its values go on.
        layout: The regional layout.

    Returns:
        A dataset with the context's variables and the dimensions `(member, time, *space)`.

    Raises:
        ValueError: If a variable of the context is missing, or the analysis holds NaN.
    """

    names = context_of(layout)
    only = replace(layout, variables=tuple(f"{name}{SUFFIX}" for name in names))
    made = only.to_dataset(interpolated(analysis, layout, names), analysis["time"].values)
    made["time"].attrs.update(analysis["time"].attrs)

    return made


def regional_observations(
    prior: "Prior",
    analysis: xr.Dataset,
    stations: "Observations | pd.DataFrame | None" = None,
    std: float | Mapping[str, float] | None = None,
    every: int = 1,
) -> "Observations":
    """What a region is conditioned on: the global analysis around it, and what was seen in it.

    Arguments:
        prior: The joint prior of a region.
        analysis: The global analysis at the times that it is given for, of one member.
        stations: Observations of the region, or a table of which the rows within it are taken;
            longitudes may then be any number of turns away.
        std: The standard deviation with which the context is observed, one for all or one for each
            of its variables by its name (default: a twentieth of its climatological one). The
            errors of the analysis are not meant: the prior has learned these.
        every: Observes the context on every n-th cell along each dimension. Half of the cells that
            lie between two of the analysis tell as much, at a fraction of the cost.

    Raises:
        ValueError: If `every` is not positive, the prior has no context, its variables are
            transformed and no `std` is given, or no row of the table lies within the region.
    """

    from .observation import Observations, Select

    if every < 1:
        raise ValueError(f"every must be at least 1, got {every}")
    layout = prior.layout
    names = [f"{name}{SUFFIX}" for name in context_of(layout)]
    if std is None:
        if prior.mapping is not None:
            raise ValueError("the prior transforms its variables: give the std of the context")
        scale = dict(zip(layout.variables, prior.climatology.scale.tolist(), strict=True))
        std = {name: SHARE * scale[name] for name in names}
    elif isinstance(std, Mapping):
        std = {name if name in names else f"{name}{SUFFIX}": each for name, each in std.items()}
    given = regional_context(analysis, layout)
    kept = np.zeros(layout.shape[1:], dtype=bool)
    kept[(slice(None, None, every),) * kept.ndim] = True
    values = np.stack([np.where(kept, given[name].values[0], np.nan) for name in names], axis=1)
    observed = Observations.from_operator(Select(names), values, std, layout, given["time"].values)
    if stations is None:
        return observed
    if not isinstance(stations, Observations):
        stations = Observations.from_table(within(stations, layout))

    return observed + stations


def interior(dataset: xr.Dataset, rim: int) -> xr.Dataset:
    """A regional dataset without the outermost `rim` cells on each side.

    Raises:
        ValueError: If nothing would remain.
    """

    layout = Layout.from_dataset(dataset)
    inner = {dim: slice(rim, dataset.sizes[dim] - rim) for dim in layout.dims
             if dim not in layout.period}  # fmt: skip
    if rim < 0 or any(s.stop <= s.start for s in inner.values()):
        sizes = {dim: dataset.sizes[dim] for dim in inner}
        raise ValueError(f"a rim of {rim} cells leaves nothing of {sizes}")

    return dataset.isel(inner)


def within(table: "pd.DataFrame", layout: Layout) -> "pd.DataFrame":
    """The rows of a table in a region, with its longitudes.

    Raises:
        ValueError: If there is none, or a coordinate is missing.
    """

    import pandas as pd

    table = pd.DataFrame(table)
    if missing := [dim for dim in layout.dims if dim not in table]:
        raise ValueError(f"the table lacks the columns {missing}: it has {list(table.columns)}")
    inside = np.ones(len(table), dtype=bool)
    moved = {}
    for dim, values in layout.coords.items():
        if dim in layout.period:
            continue
        places = table[dim].to_numpy(np.float64)
        if layout.units.get(dim) in LONGITUDE:
            places = values[0] + np.mod(places - values[0], 360.0)
        inside &= (places >= values[0]) & (places <= values[-1])
        moved[dim] = places
    if not inside.any():
        ranges = {dim: (float(v[0]), float(v[-1])) for dim, v in layout.coords.items()}
        raise ValueError(f"none of the {len(table)} rows lies within the region {ranges}")

    return table.assign(**moved)[inside]


def cells(layout: Layout, box: Mapping[str, tuple[float, float]]) -> dict[str, np.ndarray]:
    """The indices of the cells of a box along each dimension that it limits."""

    if unknown := [dim for dim in box if dim not in layout.dims]:
        raise ValueError(f"the box names {unknown}, not among the dimensions {list(layout.dims)}")
    found = {}
    for dim, limits in box.items():
        low, high = map(float, limits)
        values = layout.coords[dim]
        if low > high and dim in layout.period:
            index = np.concatenate((np.flatnonzero(values >= low), np.flatnonzero(values <= high)))
        else:
            index = np.flatnonzero((values >= low) & (values <= high))
        if len(index) < 2:
            raise ValueError(
                f"the box from {low:g} to {high:g} holds {len(index)} cells along {dim!r}, which "
                f"goes from {values[0]:g} to {values[-1]:g}: at least 2 are needed"
            )
        found[dim] = index

    return found


def context_of(layout: Layout) -> list[str]:
    """The names in the global analysis of the variables of the context."""

    names = [n.removesuffix(SUFFIX) for n in layout.variables if n.endswith(SUFFIX)]
    if not names:
        raise ValueError(
            f"the state has no context: none of {list(layout.variables)} ends in {SUFFIX!r}"
        )

    return names


def variables(dataset: xr.Dataset) -> list[str]:
    """The names of the variables of a dataset of trajectories, in the order of the channels."""

    return list(map(str, dataset.attrs.get("variables", dataset.data_vars)))


def interpolated(dataset: xr.Dataset, layout: Layout, names: list[str]) -> np.ndarray:
    """Fields `(member, time, variable, *space)` of a dataset on the cells of a layout.

    Raises:
        ValueError: If a variable or dimension is missing, or a value is NaN.
    """

    missing = [name for name in names if name not in dataset]
    missing += [dim for dim in layout.dims if dim not in dataset.dims]
    if missing:
        raise ValueError(
            f"the analysis lacks {missing}: it has the variables {list(dataset.data_vars)} and the "
            f"dimensions {list(dataset.dims)}"
        )
    dims = ("member", "time", *layout.dims)
    dataset = dataset[names].sortby(list(layout.dims))
    dataset = dataset.expand_dims([dim for dim in dims if dim not in dataset.dims])
    arrays = [dataset[name].transpose(*dims).values for name in names]
    fields: Any = np.stack(arrays, axis=2).astype(np.float64)
    if not np.isfinite(fields).all():
        raise ValueError("the analysis holds NaN: fill them before it is interpolated")
    for axis, dim in enumerate(layout.dims, start=3):
        source = dataset[dim].values.astype(np.float64)
        around = 360.0 if layout.units.get(dim) in LONGITUDE else None
        period = dataset[dim].attrs.get("period", around)
        matrix = linear(source, layout.coords[dim], None if period is None else float(period))
        fields = np.moveaxis(np.tensordot(fields, matrix, axes=(axis, 1)), -1, axis)

    return fields


def linear(source: np.ndarray, target: np.ndarray, period: float | None = None) -> np.ndarray:
    """The matrix `(target, source)` of linear interpolation, constant beyond the ends."""

    count = len(source)
    if period is not None:
        target = source[0] + np.mod(target - source[0], period)
        source = np.append(source, source[0] + period)
    position = np.interp(target, source, np.arange(len(source)))
    lower = np.clip(position.astype(int), 0, max(0, len(source) - 2))
    matrix = np.zeros((len(target), count))
    rows = np.arange(len(target))
    np.add.at(matrix, (rows, lower), 1 - (position - lower))
    np.add.at(matrix, (rows, (lower + 1) % count), position - lower)

    return matrix
