"""Where a forecast departs from: the last states of an ensemble, a posterior or a single state."""

import hashlib
import warnings
from collections.abc import Sequence
from typing import Any

import numpy as np
import xarray as xr

from dynamics.layout import Layout

# So many members are read at once when all are checked.
CHUNK = 64


class Departure:
    """The last states of a dataset, checked, read member by member.

    A forecast of more members than the dataset has takes them in turns: member `m` continues member
    `m mod n`, with noise of its own.

    Arguments:
        layout: The layout that the states must have.
        dataset: The states, with the dimensions `(member, time, *space)`. Without `member` it is
            one member, without `time` one state; a coordinate `time` without dimension is its time.
        known: The largest number of states of a member that are used, the last ones.

    Attributes:
        time: The time of the last state, 0 if the dataset has none.
        states: The number of states of a member that are used.
        members: The number of members of the dataset.
        digest: A checksum of the states used.

    Raises:
        ValueError: If variables, grid or time step are others than the layout's, or a state is not
            finite. Of states that are several steps apart, only the last ones that are one step
            apart are used, with a warning.
        TypeError: If it is no dataset.
    """

    def __init__(self, layout: Layout, dataset: xr.Dataset, known: int) -> None:
        if not isinstance(dataset, xr.Dataset):
            raise TypeError(
                f"the initial states must be an xarray dataset, got {type(dataset).__name__}: open "
                f"a store with sda.store.open_dataset(path)"
            )
        layout.check(dataset)
        self.layout = layout
        times = np.atleast_1d(np.asarray(dataset["time"].values if "time" in dataset else 0.0))
        count = dataset.sizes.get("time", 1)
        self.states = min(known, count)
        self.time = float(times[-1])
        steps = np.diff(times[-self.states :].astype(np.float64)) / layout.dt
        whole = np.round(steps)
        if not np.allclose(steps, whole, rtol=1e-3, atol=1e-3) or (whole < 1).any():
            raise ValueError(
                f"the initial states must be dt={layout.dt:g} or multiples of it apart, got steps "
                f"of {steps.min() * layout.dt:g} to {steps.max() * layout.dt:g}: select states at "
                f"such times, or the last alone, .isel(time=[-1])"
            )
        if (whole > 1).any():
            # Analyses of a filter that has several states between two of them.
            self.states = len(whole) - int(np.flatnonzero(whole > 1)[-1])
            warnings.warn(
                f"the initial states are up to {whole.max():g} steps of dt={layout.dt:g} apart: "
                f"only the last {self.states}, one step apart, are used",
                RuntimeWarning,
                stacklevel=3,
            )
        if "time" in dataset.dims:
            dataset = dataset.isel(time=slice(count - self.states, count))
        self.dataset = dataset if "member" in dataset.dims else dataset.expand_dims("member")
        self.members = int(self.dataset.sizes["member"])
        if not self.members:
            raise ValueError("the initial ensemble has no members")
        self.digest = self.check()

    def check(self) -> str:
        """Reads all states once: their checksum.

        Raises:
            ValueError: If a state is not finite.
        """

        digest = hashlib.sha256(repr((self.time, self.states)).encode())
        for first in range(0, self.members, CHUNK):
            x = self.read(range(first, min(first + CHUNK, self.members)))
            bad = first + np.flatnonzero(~np.isfinite(x).reshape(len(x), -1).all(axis=1))
            if len(bad):
                raise ValueError(
                    f"the initial states of member {', '.join(map(str, bad[:8]))}"
                    f"{' and others' if len(bad) > 8 else ''} have NaN or infinite values: leave "
                    f"such members out, .drop_isel(member=[…])"
                )
            digest.update(np.ascontiguousarray(x).tobytes())
        return digest.hexdigest()

    def read(self, members: Sequence[int]) -> np.ndarray:
        """The states that members of the forecast depart from.

        Returns:
            The states, with shape `(member, states, channel, *space)`.
        """

        index = [member % self.members for member in members]
        unique, back = np.unique(index, return_inverse=True)

        return self.layout.to_array(self.dataset.isel(member=unique))[back]


def check_count(name: str, value: Any, smallest: int = 1) -> int:
    """A count of states or members.

    Raises:
        ValueError: If it is no integer or too small.
    """

    if isinstance(value, bool) or not isinstance(value, int | np.integer) or value < smallest:
        raise ValueError(f"{name} must be an integer of at least {smallest}, got {value!r}")

    return int(value)
