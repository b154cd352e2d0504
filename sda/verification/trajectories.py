"""The scores of whole trajectories, over blocks of members and of time."""

from collections.abc import Mapping

import numpy as np
from numpy.typing import NDArray

from .spectra import Coherence, Fourier, Transform, spectral_ratio
from .sphere import Harmonics, Wind, grid_harmonics
from .task import Entry, Task, divide


def trajectory_scores(task: Task, members: NDArray) -> dict[str, Entry]:
    """Increments, and spectra over the periodic dimensions if all variables share them."""

    count, total = len(task.names), task.posterior.sizes["member"]
    squares, true_squares = np.zeros((total, count)), np.zeros(count)
    transform = transform_of(task)
    waves = [] if transform is None else [Coherence(total, transform) for _ in task.names]
    wind = Wind.of(task, total)
    means: dict[str, NDArray] = {}
    areas = {name: task.area(name) for name in task.names}

    for stretch in task.stretches(members, start=task.first, overlap=True):
        for i, name in enumerate(task.names):
            x, y = stretch.x[name], stretch.y[name]
            w = areas[name]
            squares[stretch.members, i] += [increment_sum(member, y, w) for member in x]
            if waves:
                new, truth = x[:, stretch.lead :], y[stretch.lead :]
                waves[i].add(stretch.members, new, truth)
                part = new.sum(axis=0, dtype=np.float64)
                means[name] = means[name] + part if name in means else part
            if stretch.last:
                true_squares[i] += increment_sum(y, y, w)
                if waves:
                    waves[i].add_mean(means.pop(name) / len(members), truth)

        if wind is not None:
            wind.add(stretch)

    ratio = divide(squares[members].mean(axis=0), true_squares)
    scores: dict[str, Entry] = {"increment_ratio": ("variable", np.sqrt(ratio))}

    if transform is not None:
        scores |= spectral_scores(task, members, waves, transform)

    return scores if wind is None else {**scores, **wind.scores(members)}


def spectral_scores(
    task: Task, members: NDArray, waves: list[Coherence], transform: Transform
) -> dict[str, Entry]:
    """Spectra of members and truth, and how coherent they are."""

    reference = np.stack([wave.truth for wave in waves])
    spectra = np.full((task.posterior.sizes["member"], *reference.shape), np.nan)
    coherences = spectra.copy()
    spectra[members] = np.stack([wave.members[members] for wave in waves], axis=1)
    coherences[members] = np.stack([wave.of_members()[members] for wave in waves], axis=1)
    mean = spectra[members].mean(axis=0)
    attrs = {"long_name": transform.long_name, "complete_up_to": transform.complete}
    each, dims = ("member", "variable", "wavenumber"), ("variable", "wavenumber")
    scores: dict[str, Entry] = {
        "wavenumber": ("wavenumber", np.arange(reference.shape[-1]), attrs),
        "spectrum": (each, spectra),
        "spectrum_truth": (dims, reference),
        "spectrum_ratio": (dims, spectral_ratio(mean, reference)),
        "coherence": (dims, np.stack([wave.of_mean() for wave in waves])),
        "member_coherence": (each, coherences),
    }
    if task.one_unit:
        scores["energy_ratio"] = ("wavenumber", spectral_ratio(mean.sum(0), reference.sum(0)))

    return scores


def transform_of(task: Task) -> Transform | None:
    """What takes the states apart into waves: harmonics on the sphere where the grid has them, else
    Fourier's over what is periodic. None if nothing is, or if there is a coast."""

    dims, area = task.dims(task.names[0]), task.area(task.names[0])
    # A coast would be all that a spectrum shows.
    if any(task.dims(n) != dims or task.mask(n) is not None for n in task.names):
        return None
    if (harmonics := grid_harmonics(task.posterior, dims)) is not None:
        return Harmonics(harmonics)
    axes, period = periodic_axes(task)
    shape = [task.shape(task.names[0])[axis] for axis in axes]

    return Fourier(shape, period, axes, area) if axes else None


def increment_sum(x: NDArray, truth: NDArray, area: NDArray) -> float:
    """The sum of squared increments of `(time, *space)` where the truth's are known, by area."""

    squares = area * np.diff(x, axis=0) ** 2

    return float(np.sum(squares, where=np.isfinite(np.diff(truth, axis=0)), dtype=np.float64))


def periodic_axes(task: Task) -> tuple[list[int], list[float]]:
    """The axes of `(*space)` that are periodic, and their periods."""

    dims = task.dims(task.names[0])
    periods: dict[int, float] = {}
    for axis, dim in enumerate(dims):
        for dataset in (task.posterior, task.truth):
            if "period" in dataset[dim].attrs:
                periods[axis] = float(dataset[dim].attrs["period"])

    return list(periods), list(periods.values())


def stacked(task: Task, arrays: Mapping[str, NDArray], order: list[int] | None = None) -> NDArray:
    """Stacks variables `(*batch, *space)` to `(*batch, channel, *space)`, with zeros on land."""

    names = task.names if order is None else [task.names[i] for i in order]
    axis = next(iter(arrays.values())).ndim - len(task.dims(names[0]))
    states = np.stack([arrays[n] for n in names], axis=axis)
    mask = task.mask(names[0])

    return states if mask is None else np.where(mask, states, states.dtype.type(0))
