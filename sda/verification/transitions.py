"""The scores of transitions: do members move as the system does?"""

import numpy as np
import torch
from numpy.typing import NDArray

from dynamics.system import System

from . import consistency
from .alignment import span
from .task import Entry, Stretch, Task
from .trajectories import stacked


def transition_scores(
    task: Task, members: NDArray, system: System, stepped: int
) -> dict[str, Entry]:
    """How well the members obey the system, and their density under it where that is known.

    Raises:
        ValueError: If the system's states are others than the posterior's, or fewer than one member
            is to be stepped.
    """

    check_system(task, system, stepped)
    layout = system.layout
    order = [task.names.index(n) for n in layout.variables]
    back = np.argsort(order)
    chosen = np.unique(
        members[np.linspace(0, len(members) - 1, min(stepped, len(members))).astype(int)]
    )
    shape = (task.length - 1, len(task.names))
    squares, of_truth, scale = np.zeros(shape), np.zeros(shape), np.zeros(shape)
    for stretch in task.stretches(chosen, overlap=True):
        x, y, steps = transitions(task, stretch, order)
        if not y.shape[1] > 1:
            continue
        squares[steps] += consistency.residuals(system, x)[..., back].sum(axis=0)
        if stretch.last:
            of_truth[steps] = consistency.residuals(system, y)[0][..., back]
            scale[steps] = consistency.increments(y, layout.area)[0][..., back]
    squares /= len(chosen)
    late = slice(task.first, None)
    unit = scale[late].mean(axis=0)

    def overall(values: NDArray) -> NDArray:
        mean = values[late].mean(axis=0)
        ratio = mean.sum() / unit.sum() if task.one_unit else np.mean(mean / unit)
        return np.sqrt(ratio)

    last = np.full((len(task.names), 1), np.nan)
    by_time = np.concatenate([np.sqrt(squares / unit).T, last], axis=1)

    return {
        "consistency": (("variable", "time"), by_time),
        "overall_consistency": ((), overall(squares)),
        "consistency_truth": ((), overall(of_truth)),
        **density_scores(task, members, system, order),
    }


def density_scores(
    task: Task, members: NDArray, system: System, order: list[int]
) -> dict[str, Entry]:
    """The log-density of the transitions of each member, if the system's is known."""

    frame = {n: task.truth_array(n, time=slice(0, 1)) for n in task.names}
    start = torch.as_tensor(stacked(task, frame, order))
    try:
        system.log_transition(start, start)
    except ValueError:  # which is how a system says that its transition has no density
        return {}
    density, of_truth = np.full(task.posterior.sizes["member"], np.nan), 0.0
    density[members] = 0
    for stretch in task.stretches(members, start=task.first, overlap=True):
        x, y, _ = transitions(task, stretch, order)
        density[stretch.members] += consistency.log_transitions(system, x)
        if stretch.last:
            of_truth += consistency.log_transitions(system, y)[0]

    return {
        "log_dynamics": ("member", density),
        "log_dynamics_truth": ((), of_truth),
        "overall_log_dynamics": ((), density[members].mean()),
    }


def transitions(task: Task, stretch: Stretch, order: list[int]) -> tuple[NDArray, NDArray, slice]:
    """Members and truth of a stretch as `(member, time, channel, *space)`, and their transitions.

    A transition is numbered by the frame that it starts from.
    """

    x, y = stacked(task, stretch.x, order), stacked(task, stretch.y, order)[None]
    first = stretch.frames.start - stretch.lead

    return x, y, slice(first, first + y.shape[1] - 1)


def check_system(task: Task, system: System, stepped: int) -> None:
    """Raises a `ValueError` unless the system can step the posterior's states."""

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
            f"are, got {len(time)} times {span(time)}: leave the system out for analyses at other "
            f"times"
        )
