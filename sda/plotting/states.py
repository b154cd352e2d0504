"""What is drawn of a dataset: members, times, variables, vorticity, cells."""

import numpy as np
import xarray as xr
from numpy.typing import NDArray

from ..verification.cells import cell_mask, is_spherical


def prepare(
    posterior: xr.Dataset, truth: xr.Dataset | None
) -> tuple[xr.Dataset, xr.Dataset | None]:
    """Leaves out members that failed, and the truth's member dimension.

    Raises:
        ValueError: If the posterior has no members, no times or no finite member, or the truth
            has several members.
    """

    if missing := [dim for dim in ("member", "time") if dim not in posterior.dims]:
        raise ValueError(
            f"the posterior must have the dimensions (member, time, *space), got "
            f"{list(map(str, posterior.dims))}: {missing} are missing"
        )
    first = posterior[next(iter(posterior.data_vars))].isel(time=0)
    others = [dim for dim in first.dims if dim != "member"]
    known = xr.apply_ufunc(np.isfinite, first, dask="allowed")
    # Land is blank in every member.
    land = cell_mask(posterior, others)
    known = known if land is None else known | xr.DataArray(~land, dims=others)
    finite = known.all(others).values
    if not finite.any():
        raise ValueError(f"all {len(finite)} members are NaN: there is nothing to draw")
    posterior = posterior if finite.all() else posterior.isel(member=finite)
    if truth is not None and "member" in truth.dims:
        if truth.sizes["member"] != 1:
            raise ValueError(
                f"the truth must be one member, got {truth.sizes['member']}: "
                f"select one with truth.isel(member=0)"
            )
        truth = truth.isel(member=0)

    return posterior, truth


def spatial_dims(posterior: xr.Dataset) -> list[str]:
    """The spatial dimensions of a posterior's first variable."""

    variable = posterior[next(iter(posterior.data_vars))]

    return [str(dim) for dim in variable.dims if dim not in ("member", "time")]


def default_variable(dataset: xr.Dataset) -> str:
    """Vorticity of a flow in the plane, on the sphere the first that is no wind, else the first."""

    names = [str(name) for name in dataset.data_vars]
    flow = {"u", "v"} <= set(names) and {"y", "x"} <= set(dataset["u"].dims)
    if flow:
        return "vorticity"
    others = [name for name in names if name not in ("u", "v")]

    return others[0] if others and is_spherical(dataset, spatial_dims(dataset)) else names[0]


def pick(dataset: xr.Dataset, variable: str) -> xr.DataArray:
    """A variable of a dataset, or its vorticity.

    Raises:
        ValueError: If there is no such variable.
    """

    if variable in dataset:
        return dataset[variable]
    if variable == "vorticity":
        return vorticity(dataset)
    raise ValueError(
        f"there is no variable {variable!r}, only {sorted(map(str, dataset.data_vars))}"
        f"{' and vorticity' if {'u', 'v'} <= set(dataset.data_vars) else ''}"
    )


def vorticity(dataset: xr.Dataset) -> xr.DataArray:
    r"""The vorticity $\partial_x v - \partial_y u$ by centred differences, periodic where x, y are.

    Arguments:
        dataset: Velocities `u` and `v` with the dimensions `y` and `x`.

    Raises:
        ValueError: If there is no such velocity.
    """

    if not {"u", "v"} <= set(dataset.data_vars) or not {"y", "x"} <= set(dataset["u"].dims):
        raise ValueError(
            f"vorticity needs the variables u and v with dimensions y and x, got "
            f"{sorted(map(str, dataset.data_vars))} with {list(map(str, dataset.dims))}"
        )
    w = derivative(dataset["v"], "x") - derivative(dataset["u"], "y")

    return w.rename("vorticity").assign_attrs(long_name="vorticity")


def derivative(field: xr.DataArray, dim: str) -> xr.DataArray:
    """The derivative along one dimension."""

    if "period" not in field[dim].attrs:
        return field.differentiate(dim)
    width = 2 * float(field[dim].attrs["period"]) / field.sizes[dim]

    return (field.roll({dim: -1}) - field.roll({dim: 1})) / width


def at_times(dataset: xr.DataArray, times: NDArray) -> xr.DataArray:
    """Selects times, up to rounding.

    Raises:
        ValueError: If the dataset lacks one.
    """

    known = np.asarray(dataset["time"].values, dtype=np.float64)
    given = np.asarray(times, dtype=np.float64)
    step = np.diff(known).min() if len(known) > 1 else 1.0
    gap = np.abs(np.subtract.outer(given, known))
    if (late := gap.min(axis=1) > 1e-3 * step).any():
        raise ValueError(
            f"there is no state at time {given[late][0]:g}, only {known[0]:g} … {known[-1]:g} "
            f"every {step:g}"
        )

    return dataset.isel(time=gap.argmin(axis=1))


def time_index(dataset: xr.Dataset, times: NDArray) -> NDArray:
    """The indices of times, see `at_times`."""

    index = xr.DataArray(
        np.arange(dataset.sizes["time"]), dims="time", coords={"time": dataset["time"]}
    )

    return at_times(index, times).values


def cell_edges(centres: NDArray) -> NDArray:
    """The edges of cells about their centres."""

    if len(centres) < 2:
        return np.array([centres[0] - 0.5, centres[0] + 0.5])
    inner = (centres[1:] + centres[:-1]) / 2

    return np.concatenate(
        [
            [2 * centres[0] - inner[0]],
            inner,
            [2 * centres[-1] - inner[-1]],
        ]
    )


def domain(dataset: xr.Dataset) -> tuple[float, float, float, float]:
    """The extent `(x0, x1, y0, y1)` of the cells."""

    x, y = (cell_edges(dataset[dim].values) for dim in ("x", "y"))

    return float(x[0]), float(x[-1]), float(y[0]), float(y[-1])
