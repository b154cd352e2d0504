"""The scores of members in the space of the observations."""

import math
from collections.abc import Iterator
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from dynamics.layout import Layout

from ..observation import Observations, ObservedTime, sequence
from . import consistency
from .alignment import nearest, span
from .innovations import chi_square
from .task import Entry, Task, divide
from .trajectories import stacked


def misfit_scores(
    task: Task, members: NDArray, observations: Any, clock: NDArray
) -> dict[str, Entry]:
    """How well the members fit the observations, and their likelihood.

    Observations of one time each are scored block by block. Those that see several times at once,
    and what has nothing but a `likelihood`, are scored with whole trajectories in memory.

    Arguments:
        task: What is verified.
        members: The members to score.
        observations: The observations.
        clock: The times of the truth.

    Raises:
        ValueError: If the observations do not fit the posterior's variables, grid or times.
    """

    total = task.posterior.sizes["member"]
    squares, true_squares = np.full(total, np.nan), 0.0
    squares[members] = 0
    if (times := observed_times(task, observations, clock)) is None:
        squares, true_squares, std = whole_trajectories(task, members, observations)
    else:
        std = np.concatenate([o.std.double().numpy() for o, _ in times])
        for (observed, _), seen, seen_truth in seen_states(task, members, times):
            for i, values in zip((members, None), (seen, seen_truth), strict=True):
                z = (observed.y[0].double().numpy() - values) / observed.std.double().numpy()
                if i is None:
                    true_squares += float((z**2).sum())
                else:
                    squares[i] += (z**2).sum(axis=1)
    constant = np.log(std).sum() + 0.5 * math.log(2 * math.pi) * len(std)

    return {
        "misfit": ("member", np.sqrt(squares / len(std))),
        "misfit_truth": ((), math.sqrt(true_squares / len(std))),
        "overall_misfit": ((), np.sqrt(np.mean(squares[members]) / len(std))),
        "log_likelihood": ("member", -0.5 * squares - constant),
        "log_likelihood_truth": ((), -0.5 * true_squares - constant),
        "overall_log_likelihood": ((), -0.5 * np.mean(squares[members]) - constant),
    }


def innovation_scores(
    task: Task,
    members: NDArray,
    background: Task,
    forecast: NDArray,
    observations: Any,
    clock: NDArray,
) -> dict[str, Entry]:
    """Innovations of the background against HBHᵀ + R, and Desroziers' diagnostics.

    Arguments:
        task: The analyses.
        members: The members of the analysis to score.
        background: The forecasts at the same times.
        forecast: Its members.
        observations: The observations.
        clock: The times of the truth.

    Raises:
        ValueError: If the observations see several times at once or do not fit the posterior.
    """

    times = observed_times(task, observations, clock)
    if times is None:
        raise ValueError(
            "innovations are those of one analysis time after the other: leave out the background "
            "for observations that see several times at once"
        )
    both = zip(
        seen_states(task, members, times),
        seen_states(background, forecast, times),
        strict=True,
    )
    m, n = len(forecast), len(members)
    keys = ("count", "normalised", "square", "chi", "R", "B", "A", "background", "analysis")
    sums = {key: np.zeros(task.length) for key in keys}
    for ((observed, frame), analysis, _), (_, predicted, _) in both:
        y, std = observed.y[0].double().numpy(), observed.std.double().numpy()
        before = (y - predicted.mean(axis=0)) / std
        after = (y - analysis.mean(axis=0)) / std
        of_background = predicted.var(axis=0, ddof=1) / std**2
        z = before / np.sqrt((1 + 1 / m) * of_background + 1)
        for key, values in (
            ("count", np.ones_like(z)),
            ("normalised", z),
            ("square", z**2),
            ("R", after * before),
            ("B", (before - after) * before),
            ("A", (before - after) * after),
            ("background", of_background),
        ):
            sums[key][frame] += values.sum()
        sums["chi"][frame] += chi_square(y, predicted, std)
        if n > 1:
            sums["analysis"][frame] += (analysis.var(axis=0, ddof=1) / std**2).sum()

    total = {key: values.sum() for key, values in sums.items()}
    pairs = {
        "innovation_mean": ("normalised", "count"),
        "innovation_variance": ("square", "count"),
        "innovation_chi_square": ("chi", "count"),
        "desroziers_R": ("R", "count"),
        "desroziers_B": ("B", "background"),
        "desroziers_A": ("A", "analysis"),
    }
    scores: dict[str, Entry] = {}
    for name, (above, below) in pairs.items():
        if name.startswith("innovation"):
            scores[name] = ("time", divide(sums[above], sums[below]))
        scores[f"overall_{name}"] = ((), divide(total[above], total[below]))

    return scores


def observed_times(
    task: Task, observations: Any, clock: NDArray
) -> list[tuple[ObservedTime, int]] | None:
    """What is observed at each time that counts, and the frame of the posterior that sees it.

    As the truth's, observations before the posterior's first time and after its last are left out.

    Returns:
        None if the observations cannot be split by time.

    Raises:
        ValueError: If an observation in between lies at a time that the posterior does not have.
    """

    time = task.posterior["time"].values
    if not isinstance(observations, Observations):
        return None
    if not all(each.operator.timewise for each in observations.sets):
        return None
    steps = np.diff(clock)
    if len(steps) and not np.allclose(steps, steps[0], rtol=1e-3):
        return None
    layout = layout_of(task, float(steps[0]) if len(steps) else 1.0)
    single = task.posterior[task.names[0]].dtype == np.float32
    dtype = torch.float32 if single else torch.float64
    frames = np.full(len(clock), -1)
    frames[nearest(clock, time)] = np.arange(len(time))
    first, last = nearest(clock, time[[0, -1]])
    found = []
    for observed in sequence(observations, layout, clock, dtype):
        if not first <= observed.index <= last:
            continue
        needed = frames[observed.index + 1 - observed.frames : observed.index + 1]
        if (needed < 0).any() or not len(needed):
            raise ValueError(
                f"the observations at time {observed.time:g} need states that the posterior does "
                f"not have, which is at {len(time)} times {span(time)}: score those at its times "
                f"alone"
            )
        if needed[-1] >= task.first:
            found.append((observed, int(needed[-1])))
    if not found:
        raise ValueError(
            f"no observation is within the times that count, {span(time[task.first :])}: choose a "
            f"shorter burn_in, or leave the observations out"
        )

    return found


def seen_states(
    task: Task, members: NDArray, times: list[tuple[ObservedTime, int]]
) -> Iterator[tuple[tuple[ObservedTime, int], NDArray, NDArray]]:
    """Yields what is observed at each time, and what members `(member, value)` and truth look like.

    Loads frames by frames, of which no more are held than fit in memory.
    """

    start = max(0, task.first - 1)
    gathered: dict[int, list[NDArray]] = {}
    for stretch in task.stretches(members, start=start, overlap=True):
        first = stretch.frames.start - stretch.lead
        due = [o for o in times if stretch.frames.start <= o[1] < stretch.frames.stop]
        x = stacked(task, stretch.x)
        y = stacked(task, stretch.y)[None]
        for observed, frame in due:
            span_ = slice(frame + 1 - observed.frames - first, frame + 1 - first)
            gathered.setdefault(frame, []).append(seen(observed, x[:, span_]))
            if stretch.last:
                yield (
                    (observed, frame),
                    np.concatenate(gathered.pop(frame)),
                    seen(observed, y[:, span_])[0],
                )


def seen(observed: ObservedTime, x: NDArray) -> NDArray[np.float64]:
    """States `(member, frames, channel, *space)` seen through H, with shape `(member, value)`."""

    with torch.no_grad():
        return observed.H(torch.as_tensor(x).to(observed.y.dtype)).double().numpy()


def whole_trajectories(
    task: Task, members: NDArray, observations: Any
) -> tuple[NDArray[np.float64], float, NDArray[np.float64]]:
    """The sums of squares of normalised innovations of members and truth, and the errors' std."""

    layout, time = layout_of(task), task.posterior["time"].values
    likelihood = observations.likelihood(layout, time)
    late = np.ones(len(likelihood.y), dtype=bool)
    if task.first:
        # Values that belong to no single time count always.
        rows = [np.asarray(each.rows()["time"], dtype=float) for each in observations.sets]
        late = ~(np.concatenate(rows) < time[task.first])
    squares = np.full(task.posterior.sizes["member"], np.nan)
    count = max(1, task.memory // (task.state_bytes() * task.length))

    def score(arrays: dict[str, NDArray]) -> NDArray:
        x: Tensor = torch.as_tensor(stacked(task, arrays)).to(likelihood.y.dtype)
        return (consistency.innovations(likelihood, x)[:, late] ** 2).sum(axis=1)

    for i in range(0, len(members), count):
        chosen = members[i : i + count]
        squares[chosen] = score({n: task.array(n, member=chosen) for n in task.names})
    of_truth = score({n: task.truth_array(n)[None] for n in task.names})[0]

    return squares, float(of_truth), likelihood.std.double().cpu().numpy()[late]


def layout_of(task: Task, dt: float = 1.0) -> Layout:
    """The layout of the posterior's states, whatever their times."""

    posterior, dims = task.posterior, [str(d) for d in task.dims(task.names[0])]
    if different := [n for n in task.names if set(task.dims(n)) != set(dims)]:
        raise ValueError(
            f"observed states must have all variables on one grid, but {different[0]!r} has the "
            f"dimensions {task.dims(different[0])} and {task.names[0]!r} has {tuple(dims)}"
        )

    return Layout(
        variables=task.names,
        dt=dt,
        coords={d: posterior[d].values for d in dims},
        period={
            d: float(posterior[d].attrs["period"]) for d in dims if "period" in posterior[d].attrs
        },
        units={n: str(posterior[n].attrs.get("units", "1")) for n in (*task.names, *dims)},
        time_units=str(posterior["time"].attrs.get("units", "1")),
        mask=task.mask(task.names[0]),
    )
