"""The scores of whole trajectories, over blocks of members."""

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray

from dynamics.layout import Layout
from dynamics.system import System

from . import consistency
from .alignment import span
from .spectra import spectrum
from .task import Entry, Task, divide


def trajectory_scores(task: Task, members: NDArray) -> dict[str, Entry]:
    """Increments, and spectra over the periodic dimensions if all variables share them."""

    count, total = len(task.names), task.posterior.sizes["member"]
    truth = {n: task.truth_array(n)[None] for n in task.names}
    scores: dict[str, Entry] = {}

    axes, period = periodic_axes(task)
    if axes:
        reference = np.stack([mean_spectrum(truth[n], axes, period)[0] for n in task.names])
        spectra = np.full((total, *reference.shape), np.nan)
    increment = np.full((total, count), np.nan)
    for chosen, arrays in task.member_blocks(members):
        for i, name in enumerate(task.names):
            increment[chosen, i] = mean_increment(arrays[name])
            if axes:
                spectra[chosen, i] = mean_spectrum(arrays[name], axes, period)

    true_increment = np.concatenate([mean_increment(truth[n]) for n in task.names])
    ratio = divide(increment[members].mean(axis=0), true_increment)
    scores["increment_ratio"] = ("variable", np.sqrt(ratio))
    if axes:
        mean = spectra[members].mean(axis=0)
        shape = [task.posterior[task.names[0]].shape[a] for a in axes]
        complete = min(n * max(period) / p for n, p in zip(shape, period, strict=True)) / 2
        attrs = {"long_name": "isotropic wavenumber", "complete_up_to": int(complete)}
        scores["wavenumber"] = ("wavenumber", np.arange(reference.shape[-1]), attrs)
        scores["spectrum"] = (("member", "variable", "wavenumber"), spectra)
        scores["spectrum_truth"] = (("variable", "wavenumber"), reference)
        scores["spectrum_ratio"] = (("variable", "wavenumber"), divide(mean, reference))
        if task.one_unit:
            scores["energy_ratio"] = ("wavenumber", divide(mean.sum(0), reference.sum(0)))

    return scores


def mean_increment(x: NDArray) -> NDArray:
    """The mean square increment of each member of `(member, time, *space)`; NaN for one frame."""

    if x.shape[1] < 2:
        return np.full(len(x), np.nan)

    squares = np.diff(x, axis=1) ** 2

    return np.asarray(np.nanmean(squares, axis=tuple(range(1, x.ndim)), dtype=np.float64))


def periodic_axes(task: Task) -> tuple[list[int], list[float]]:
    """The axes of `(member, time, *space)` that are periodic, and their periods."""

    dims = task.dims(task.names[0])
    if any(task.dims(n) != dims for n in task.names):
        return [], []
    periods: dict[int, float] = {}
    for axis, dim in enumerate(dims):
        for dataset in (task.posterior, task.truth):
            if "period" in dataset[dim].attrs:
                periods[2 + axis] = float(dataset[dim].attrs["period"])

    return list(periods), list(periods.values())


def mean_spectrum(x: NDArray, axes: Sequence[int], period: Sequence[float]) -> NDArray:
    """The spectrum of each member of `(member, time, *space)`, averaged over all else."""

    rows = []
    for member in x:
        spectra = spectrum(member, [axis - 1 for axis in axes], period)
        rows.append(spectra.reshape(-1, spectra.shape[-1]).mean(axis=0))

    return np.stack(rows)


def stacked(task: Task, arrays: Mapping[str, NDArray]) -> NDArray:
    """Stacks variables `(member, time, *space)` to `(member, time, channel, *space)`."""
    return np.stack([arrays[n] for n in task.names], axis=2)


def misfit_scores(task: Task, members: NDArray, observations: Any) -> dict[str, Entry]:
    """How well the members fit the observations."""

    layout = Layout.from_dataset(task.posterior, task.names)
    likelihood = observations.likelihood(layout, task.posterior["time"].values)
    misfits = np.full(task.posterior.sizes["member"], np.nan)
    for chosen, arrays in task.member_blocks(members):
        x = torch.as_tensor(stacked(task, arrays)).to(likelihood.y.dtype)
        misfits[chosen] = consistency.misfit(likelihood, x)
    x = torch.as_tensor(stacked(task, {n: task.truth_array(n)[None] for n in task.names}))
    of_truth = consistency.misfit(likelihood, x.to(likelihood.y.dtype))[0]

    return {
        "misfit": ("member", misfits),
        "misfit_truth": ((), of_truth),
        "overall_misfit": ((), np.sqrt(np.mean(misfits[members] ** 2))),
    }


def consistency_scores(
    task: Task, members: NDArray, system: System, stepped: int
) -> dict[str, Entry]:
    """How well the members obey the system.

    Raises:
        ValueError: If the system's states are others than the posterior's, or fewer than one member
            is to be stepped.
    """

    layout, time = system.layout, task.posterior["time"].values
    layout.check(task.posterior)
    if set(layout.variables) != set(task.names):
        raise ValueError(
            f"to step the system all its variables {list(layout.variables)} must be scored, "
            f"got {list(task.names)}"
        )
    if stepped < 1:
        raise ValueError(f"stepped must be at least 1 member, got {stepped}")
    if len(time) < 2 or not np.allclose(np.diff(time), layout.dt, rtol=1e-3):
        raise ValueError(
            f"to step the system the posterior's times must be {layout.dt} apart, as its states "
            f"are, got {len(time)} times {span(time)}"
        )
    order = [task.names.index(n) for n in layout.variables]
    back = np.argsort(order)

    def residuals(x: NDArray) -> NDArray:
        return consistency.residuals(system, x[:, :, order])[..., back]

    truth = stacked(task, {n: task.truth_array(n)[None] for n in task.names})
    scale = consistency.increments(truth)[0].mean(axis=0)
    chosen = members[np.linspace(0, len(members) - 1, min(stepped, len(members))).astype(int)]
    squares = np.concatenate(
        [residuals(stacked(task, arrays)) for _, arrays in task.member_blocks(np.unique(chosen))]
    ).mean(axis=0)
    of_truth = residuals(truth)[0]

    def overall(values: NDArray) -> NDArray:
        mean = values.mean(axis=0)
        return np.sqrt(mean.sum() / scale.sum() if task.one_unit else np.mean(mean / scale))

    last = np.full((len(task.names), 1), np.nan)

    return {
        "consistency": (
            ("variable", "time"),
            np.concatenate([np.sqrt(squares / scale).T, last], axis=1),
        ),
        "overall_consistency": ((), overall(squares)),
        "consistency_truth": ((), overall(of_truth)),
    }
