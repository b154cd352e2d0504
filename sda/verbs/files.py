"""The files that verbs read and write: trajectories, observations, ensembles and their scores.

What others have made is read in the variables and on the clock of the prior or the ensemble that it
is for. An output never replaces what the same command reads.
"""

import functools
import json
import operator
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from .messages import Config

if TYPE_CHECKING:
    import xarray as xr

    from dynamics.layout import Layout

    from ..observation import Observations


def trajectory(path: str, member: int, layout: "Layout | None" = None) -> "xr.Dataset":
    """One trajectory of a dataset of any origin, with the variables and clock of a layout.

    Raises:
        ValueError: If the dataset has no such member, or does not fit the layout.
    """

    from ..cf import open_like

    dataset = open_like(path, layout)
    if "time" not in dataset.dims:
        raise ValueError(f"{path} has no dimension 'time': it is no dataset of trajectories")
    if "member" not in dataset.dims:
        return dataset
    if member >= dataset.sizes["member"]:
        raise ValueError(
            f"member={member} is not in {path}, which has members 0 to "
            f"{dataset.sizes['member'] - 1}"
        )
    return dataset.isel(member=member)


def up_to(dataset: "xr.Dataset", time: float, path: str) -> "xr.Dataset":
    """The states of a dataset up to a time, which is that of one of them.

    Raises:
        ValueError: If there is no state at that time.
    """

    import numpy as np

    if "time" not in dataset.dims:
        raise ValueError(f"{path} has no dimension 'time': leave out time={time:g}")
    times = np.asarray(dataset["time"].values, dtype=np.float64)
    last = int(np.abs(times - time).argmin())
    step = np.diff(times).min() if len(times) > 1 else 1.0
    if abs(times[last] - time) > 1e-3 * step:
        raise ValueError(
            f"time={time:g} is not that of a state of {path}, which covers the times "
            f"{times[0]:g} to {times[-1]:g} in steps of {step:g}"
        )
    return dataset.isel(time=slice(0, last + 1))


def load_observations(
    path: str | Path | Sequence[str | Path],
    layout: "Layout | None" = None,
    standard_names: "Mapping[str, str] | None" = None,
) -> "Observations":
    """Loads observations, those of others in the terms of a layout; an error names the file.

    Arguments:
        path: The file or store, or several of them: the observations of all are taken together.
        layout: The layout, or None for files of this package alone.
        standard_names: The CF standard names of the layout's variables.

    Raises:
        ValueError: If a file has no observations that can be read, or none is given.
    """

    from ..cf import load_observations as load
    from ..observation import Observations

    paths = [path] if isinstance(path, (str, Path)) else [str(each) for each in path]
    if not paths:
        raise ValueError("observations=[] names no file: give one, or observations=[a,b,…]")
    found = []
    for each in paths:
        try:
            found.append(
                Observations.load(each) if layout is None else load(each, layout, standard_names)
            )
        except ValueError as error:
            raise ValueError(f"{each}: {error}") from error

    return functools.reduce(operator.add, found)


def experiment(config: Config) -> tuple[Any, Any, Any]:
    """The posterior, the truth over the posterior's times and the observations, where given."""

    import numpy as np

    from dynamics.layout import Layout

    from ..store import open_dataset

    posterior = open_dataset(config["posterior"])
    if "member" not in posterior.dims or "time" not in posterior.dims:
        raise ValueError(f"{config['posterior']} has no dimensions 'member' and 'time'")
    scored = [
        str(name)
        for name, each in posterior.data_vars.items()
        if {"member", "time"} <= set(each.dims)
    ]
    layout = Layout.from_dataset(posterior, scored) if posterior.sizes["time"] > 1 else None
    truth = None
    if config["truth"] is not None:
        truth = trajectory(config["truth"], config["member"], layout)
        times, known = posterior["time"].values, truth["time"].values
        nearest = np.abs(known[:, None] - times[None, :]).argmin(axis=0)
        tolerance = 1e-3 * (np.diff(times).min() if len(times) > 1 else 1.0)
        if not np.allclose(known[nearest], times, rtol=0, atol=tolerance):
            raise ValueError(
                f"{config['truth']} covers the times {known[0]:g} to {known[-1]:g}, but the "
                f"posterior's are {times[0]:g} to {times[-1]:g}"
            )
        truth = truth.isel(time=nearest).assign_coords(time=posterior["time"])
    observations = None
    if config["observations"] is not None:
        names = json.loads(posterior.attrs.get("standard_names", "{}"))
        observations = load_observations(config["observations"], layout, names)
    return posterior, truth, observations


def replaceable(config: Config) -> Path:
    """The output file of a verb, which may be written.

    Raises:
        FileExistsError: If something stands there that may not be replaced.
    """

    out = Path(config["out"])
    if out.is_dir():
        raise FileExistsError(f"{str(out)!r} is a folder: it is left as it is, give another path")
    keys = ("posterior", "truth", "observations", "background", "reference")
    given = [config[key] for key in keys if config[key]]
    inputs = [Path(p) for each in given for p in ([each] if isinstance(each, str) else each)]
    if any(out.exists() and path.exists() and out.samefile(path) for path in inputs):
        raise FileExistsError(f"{str(out)!r} is read by the same command: give another path")
    if out.exists() and not config["overwrite"]:
        raise FileExistsError(
            f"{str(out)!r} exists: give overwrite=true to replace it, or another path"
        )
    out.parent.mkdir(parents=True, exist_ok=True)
    return out
