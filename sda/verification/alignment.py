"""What is scored against what: variables, times and grids of posterior and truth."""

from collections.abc import Sequence

import numpy as np
import xarray as xr
from numpy.typing import NDArray


def variable_names(
    posterior: xr.Dataset, truth: xr.Dataset, variables: Sequence[str] | None
) -> list[str]:
    """The names of the variables to score.

    Raises:
        ValueError: If the posterior has no ensemble, or a variable is missing on one side.
    """

    for dim in ("member", "time"):
        if dim not in posterior.dims:
            raise ValueError(
                f"the posterior must have the dimensions (member, time, *space), got "
                f"{tuple(map(str, posterior.dims))}: {dim!r} is missing"
            )
    names = list(
        variables or (str(n) for n, v in posterior.items() if {"member", "time"} <= {*v.dims})
    )
    for where, dataset in (("posterior", posterior), ("truth", truth)):
        if missing := [name for name in names if name not in dataset]:
            raise ValueError(
                f"the {where} has no variables {missing}, only "
                f"{sorted(map(str, dataset.data_vars))}: name those to score with variables=…"
            )
    if not names:
        raise ValueError("the posterior has no variable with the dimensions (member, time, *space)")

    return names


def align(posterior: xr.Dataset, truth: xr.Dataset) -> xr.Dataset:
    """Selects the posterior's times from the truth and checks its grid.

    Returns:
        The truth without members, in memory.

    Raises:
        ValueError: If the truth has several members, another grid, or lacks a time.
    """

    if truth.sizes.get("member", 1) != 1:
        raise ValueError(
            f"the truth must be one member, got {truth.sizes['member']}: "
            f"select one with truth.isel(member=0)"
        )
    truth = truth.squeeze("member", drop=True) if "member" in truth.dims else truth
    if "time" not in truth.dims:
        raise ValueError("the truth must have the dimension 'time'")

    given, known = posterior["time"].values, truth["time"].values
    if np.issubdtype(given.dtype, np.number) != np.issubdtype(known.dtype, np.number):
        raise ValueError(
            f"posterior and truth must count time alike, got times of type {given.dtype} and "
            f"{known.dtype}: decode both or none (decode_times=…)"
        )
    if np.issubdtype(given.dtype, np.number):
        gap = np.abs(np.subtract.outer(given, known))
        step = np.diff(given).min() if len(given) > 1 else max(1.0, abs(given[0]))
        found = gap.min(axis=1) <= 1e-3 * step
        index = gap.argmin(axis=1)
    else:
        index = np.searchsorted(known, given).clip(max=len(known) - 1)
        found = known[index] == given
    if not found.all():
        raise ValueError(
            f"the truth lacks {(~found).sum()} of the posterior's {len(given)} times, the first at "
            f"{given[~found][0]}: the posterior spans {span(given)}, the truth {span(known)}"
        )
    truth = truth.isel(time=index)

    for name in truth.data_vars:
        dims = {d for d in posterior[name].dims if d != "member"}
        if dims != set(truth[name].dims):
            raise ValueError(
                f"variable {name!r} of the truth must have the dimensions "
                f"{sorted(map(str, dims))}, got {sorted(map(str, truth[name].dims))}"
            )
        for dim in dims - {"time"}:
            a, b = posterior[dim].values, truth[dim].values
            if a.shape != b.shape or not same(a, b):
                raise ValueError(
                    f"posterior and truth must be on the same grid, but {dim!r} is {len(a)} values "
                    f"{span(a)} and {len(b)} values {span(b)}: regrid one of them"
                )

    return truth.compute()


def same(a: NDArray, b: NDArray) -> bool:
    """Whether two coordinates agree."""

    if np.issubdtype(a.dtype, np.number) and np.issubdtype(b.dtype, np.number):
        return np.allclose(a, b, atol=1e-5 * max(float(np.ptp(a)), 1e-30))

    return bool((a == b).all())


def span(values: NDArray) -> str:
    """A short form of a coordinate for messages."""
    return f"{values[0]} … {values[-1]}" if len(values) else "(none)"
