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
    if empty := [dim for dim in ("member", "time") if not posterior.sizes[dim]]:
        raise ValueError(f"the posterior is empty, with no {empty[0]}: there is nothing to score")
    if not names:
        raise ValueError("the posterior has no variable with the dimensions (member, time, *space)")

    return names


def align(posterior: xr.Dataset, truth: xr.Dataset) -> xr.Dataset:
    """Selects the posterior's times from the truth and checks its grid.

    Returns:
        The truth without members, as lazy as it was.

    Raises:
        ValueError: If the truth has several members, another grid, or lacks a time.
    """

    if truth.sizes.get("member", 1) != 1:
        raise ValueError(
            f"the truth must be one member, got {truth.sizes['member']}: "
            f"select one with truth.isel(member=0)"
        )
    truth = truth.squeeze("member", drop=True) if "member" in truth.dims else truth

    return selected(posterior, truth, "truth")


def companion(
    posterior: xr.Dataset, other: xr.Dataset, names: Sequence[str], kind: str
) -> xr.Dataset:
    """Another ensemble, at the times and on the grid of the posterior.

    Arguments:
        posterior: The posterior.
        other: The ensemble.
        names: The variables to score.
        kind: What it is called in messages.

    Raises:
        ValueError: If it has no members, or lacks variables, times or the grid.
    """

    if "member" not in other.dims:
        raise ValueError(
            f"the {kind} must be an ensemble with the dimensions (member, time, *space), got "
            f"{tuple(map(str, other.dims))}: 'member' is missing"
        )
    if missing := [name for name in names if name not in other]:
        raise ValueError(
            f"the {kind} has no variables {missing}, only {sorted(map(str, other.data_vars))}"
        )

    return selected(posterior, other[list(names)], kind)


def selected(posterior: xr.Dataset, other: xr.Dataset, kind: str) -> xr.Dataset:
    """Selects the posterior's times from another dataset and checks its grid."""

    if "time" not in other.dims:
        raise ValueError(f"the {kind} must have the dimension 'time'")
    index = matching(posterior["time"].values, other["time"].values, kind)
    whole = len(index) == other.sizes["time"]
    other = other if whole else other.isel(time=index)

    for name in other.data_vars:
        dims = {d for d in posterior[name].dims if d != "member"}
        if dims != (given := {*other[name].dims} - {"member"}):
            raise ValueError(
                f"variable {name!r} of the {kind} must have the dimensions "
                f"{sorted(map(str, dims))}, got {sorted(map(str, given))}"
            )
        for dim in dims - {"time"}:
            a, b = posterior[dim].values, other[dim].values
            if a.shape != b.shape or not same(a, b):
                raise ValueError(
                    f"posterior and {kind} must be on the same grid, but {dim!r} is {len(a)} "
                    f"values {span(a)} and {len(b)} values {span(b)}: regrid one of them"
                )

    return other


def matching(given: NDArray, known: NDArray, kind: str = "truth") -> NDArray[np.intp]:
    """Where the posterior's times are among others, be they irregular or a few of them.

    Raises:
        ValueError: If times do not increase, are not counted alike, or are missing.
    """

    for where, times in (("posterior", given), (kind, known)):
        if not len(times) or not (times[1:] > times[:-1]).all():
            raise ValueError(
                f"the times of the {where} must increase, got {len(times)} times {span(times)}: "
                f"sort them (sortby) and drop what is there twice (drop_duplicates)"
            )
    if np.issubdtype(given.dtype, np.number) != np.issubdtype(known.dtype, np.number):
        raise ValueError(
            f"posterior and {kind} must count time alike, got times of type {given.dtype} and "
            f"{known.dtype}: decode both or none (decode_times=…)"
        )
    index = nearest(known, given)
    if np.issubdtype(given.dtype, np.number):
        step = np.diff(given).min() if len(given) > 1 else max(1.0, abs(given[0]))
        found = np.abs(known[index] - given) <= 1e-3 * step
    else:
        found = known[index] == given
    if not found.all():
        raise ValueError(
            f"the {kind} lacks {(~found).sum()} of the posterior's {len(given)} times, the first "
            f"at {given[~found][0]}: the posterior spans {span(given)}, the {kind} {span(known)}"
        )

    return index


def nearest(known: NDArray, given: NDArray) -> NDArray[np.intp]:
    """The index of the value nearest to each one given, among known values that increase."""

    above = np.searchsorted(known, given).clip(max=len(known) - 1)
    below = (above - 1).clip(min=0)

    return np.where(np.abs(known[below] - given) < np.abs(known[above] - given), below, above)


def same(a: NDArray, b: NDArray) -> bool:
    """Whether two coordinates agree."""

    if np.issubdtype(a.dtype, np.number) and np.issubdtype(b.dtype, np.number):
        return np.allclose(a, b, atol=1e-5 * max(float(np.ptp(a)), 1e-30))

    return bool((a == b).all())


def span(values: NDArray) -> str:
    """A short form of a coordinate for messages."""
    return f"{values[0]} … {values[-1]}" if len(values) else "(none)"
