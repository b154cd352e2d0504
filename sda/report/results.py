"""The results of a benchmark, as the report reads them.

Results are a dataset with the dimensions `(method, repetition)` and more, see `sda.benchmarks`. A
run that diverged has no scores: its values are masked here, once, so that no average further down
can hold them. What a store does not have is NaN or absent.
"""

import json
from collections import Counter
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np
import xarray as xr
from numpy.typing import NDArray

Array = NDArray[np.float64]


@dataclass(frozen=True)
class Method:
    """A method of a benchmark.

    Attributes:
        index: Its place along the dimension `method`.
        name: Its coordinate, unique.
        label: What it is called on the page, unique.
        kind: "classical", "score-based" or "baseline"; may be empty.
        tuned: Whether its parameters were searched for; None if the store does not say.
        published: Its published headline score, NaN if there is none.
        parameters: Its parameters by name.
    """

    index: int
    name: str
    label: str
    kind: str = ""
    tuned: bool | None = None
    published: float = float("nan")
    parameters: dict[str, Any] = field(default_factory=dict)


class Results:
    """The results of a benchmark.

    Arguments:
        dataset: The dataset, or the path of its store.

    Raises:
        FileNotFoundError: If there is nothing at the path.
        ValueError: If it is no dataset of results, or holds no method.
    """

    def __init__(self, dataset: xr.Dataset | str | Path) -> None:
        if not isinstance(dataset, xr.Dataset):
            from ..store import open_dataset

            dataset = open_dataset(dataset)
        missing = [dim for dim in ("method", "repetition") if dim not in dataset.sizes]
        if missing or "method" not in dataset.coords:
            raise ValueError(
                f"expected the results of a benchmark, with the dimensions (method, repetition) "
                f"and the names of the methods, got {dict(dataset.sizes)}: run sda benchmark first"
            )
        if 0 in (dataset.sizes["method"], dataset.sizes["repetition"]):
            raise ValueError(
                f"there is nothing to report: {dataset.sizes['method']} methods, "
                f"{dataset.sizes['repetition']} repetitions"
            )
        self.dataset = dataset
        self.repetitions = dataset.sizes["repetition"]

    @cached_property
    def methods(self) -> list[Method]:
        """The methods, in the order of the store. Variants of one label are told apart."""

        names = [clean(name) for name in self.dataset["method"].values]
        labels = [clean(text) or name for text, name in zip(self._along("label", ""), names)]
        tuned = [known_flag(value) for value in self._along("tuned", np.nan)]
        once = Counter(labels)
        words = {True: "tuned", False: "untuned", None: ""}
        labels = [
            f"{label}, {words[flag]}" if once[label] > 1 and flag is not None else label
            for label, flag in zip(labels, tuned)
        ]
        once = Counter(labels)
        labels = [
            f"{label} [{name}]" if once[label] > 1 else label for label, name in zip(labels, names)
        ]
        kinds = [clean(text) for text in self._along("kind", "")]
        published = [as_float(value) for value in self._along("published", np.nan)]
        parameters = [decoded(text) for text in self._along("parameters", "{}")]

        return [
            Method(
                i,
                names[i],
                labels[i],
                kinds[i],
                tuned[i],
                published[i],
                parameters[i] if isinstance(parameters[i], dict) else {"": parameters[i]},
            )
            for i in range(len(names))
        ]

    @cached_property
    def score(self) -> str:
        """The headline score, "rmse" unless the store says otherwise."""

        name = clean(self.dataset.attrs.get("score", "rmse"))

        return name if name in self.dataset else "rmse"

    @cached_property
    def diverged(self) -> NDArray[np.bool_]:
        """Which runs diverged, with shape `(method, repetition)`."""

        flags = self._runs("diverged")

        return np.zeros(self.shape, bool) if flags is None else np.nan_to_num(flags) > 0

    @cached_property
    def ran(self) -> NDArray[np.bool_]:
        """Which runs have ended, well or not: others are still to be made."""

        ended = self.diverged.copy()
        if (finished := self._runs("finished")) is not None:
            return ended | (np.nan_to_num(finished) > 0)
        for name in ("diverged", self.score, "seconds"):
            if (flags := self._runs(name)) is not None:
                ended |= np.isfinite(flags)

        return ended

    @property
    def diverged_time(self) -> Array:
        """When runs diverged, NaN where they did not."""

        times = self._runs("diverged_time")

        return np.full(self.shape, np.nan) if times is None else times

    @cached_property
    def lost(self) -> NDArray[np.bool_]:
        """Which runs lost the truth for a while and found it again; their scores count."""

        times = self._runs("lost_time")

        return np.zeros(self.shape, bool) if times is None else np.isfinite(times) & ~self.diverged

    @cached_property
    def failed_members(self) -> NDArray[np.int_]:
        """How many members of each run failed and were left out of its scores."""

        numbers = self._runs("failed_members")
        if numbers is None:
            return np.zeros(self.shape, int)

        return np.where(self.diverged, 0, np.nan_to_num(numbers)).astype(int)

    @property
    def shape(self) -> tuple[int, int]:
        """The numbers of methods and repetitions."""

        return self.dataset.sizes["method"], self.repetitions

    def values(self, name: str) -> Array | None:
        """A variable of every run, with shape `(method, repetition, *)`, diverged runs NaN.

        Returns:
            The values; None if the store has none at all.
        """

        if (values := self._runs(name)) is None:
            return None
        values = np.where(np.isfinite(values), values, np.nan)
        values[self.diverged] = np.nan

        return values if np.isfinite(values).any() else None

    def coordinate(self, dim: str) -> Array:
        """The coordinate of a dimension, or counts where it has none."""

        if dim in self.dataset.coords:
            return np.asarray(self.dataset[dim].values, dtype=np.float64)

        return np.arange(self.dataset.sizes[dim], dtype=np.float64)

    def attribute(self, name: str) -> Any:
        """An attribute of the store, decoded if it is JSON; None if there is none."""

        value = self.dataset.attrs.get(name)
        if isinstance(value, np.ndarray):
            value = value.tolist()

        return decoded(value)

    def _runs(self, name: str) -> Array | None:
        """A variable with the dimensions of the runs first, as it is in the store."""

        if name not in self.dataset or not {"method", "repetition"} <= {*self.dataset[name].dims}:
            return None
        field = self.dataset[name].transpose("method", "repetition", ...)

        return np.array(field.values, dtype=np.float64)

    def _along(self, name: str, default: Any) -> list[Any]:
        """A coordinate of the methods."""

        if name not in self.dataset or self.dataset[name].dims != ("method",):
            return [default] * self.dataset.sizes["method"]

        return list(self.dataset[name].values)


def clean(text: object) -> str:
    """A text on one line."""

    return " ".join(str("" if text is None else text).split())


def decoded(value: Any) -> Any:
    """What a JSON text stands for; any other value, and any other text, stands for itself."""

    if not isinstance(value, str | bytes):
        return value
    try:
        return json.loads(value)
    except ValueError:
        return value


def as_float(value: Any) -> float:
    """A number, NaN for what is none."""

    try:
        return float(value)
    except (TypeError, ValueError):
        return float("nan")


def known_flag(value: Any) -> bool | None:
    """A flag that may be unknown."""

    number = as_float(value)

    return None if np.isnan(number) else bool(number)
