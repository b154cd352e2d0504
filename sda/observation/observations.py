r"""Observations: a set of `(H, y, R, times)`, as files hold it and as users bring it.

Each set has an operator `H` with times as values, the observed values `y` in physical units, and
the standard deviation of their errors (`R` is diagonal). A value of NaN was not observed.

Two forms of files exist. *Gridded* (Zarr, NetCDF): one variable per observed variable on its own
coordinates, NaN where nothing was seen, and `<variable>_std` beside it. *Table* (Parquet, CSV): one
row per value, with the columns `time`, the spatial coordinates by their names, `variable`,
`observation` and `std`.
"""

import hashlib
import json
import math
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import torch
import xarray as xr
from torch import Tensor

from dynamics.layout import Layout

from .domain import Domain, Grid, Points
from .likelihood import Likelihood
from .operator import Bound, Compose, Operator, anchored, known
from .robust import GAUSSIAN, Robust, parse
from .select import Mask
from .values import broadcast, deviations

GRIDDED = (".zarr", ".nc")
TABLES = (".parquet", ".csv")


class ObservationSet:
    """Values seen through one operator.

    Arguments:
        operator: The operator, with times as values.
        domain: Where its values lie.
        y: The values, with the shape of the domain. NaN was not observed.
        std: The standard deviations of their errors, broadcast to that shape.
        errors: How these are distributed: "gaussian"; or, with `std` as the scale, "student_t" or
            "huber", with a parameter if it is not the usual one, as "student_t(3)", see
            `sda.observation.robust`.

    Raises:
        ValueError: If nothing was observed, a value is infinite, a std is not positive, or the kind
            of errors is unknown.
    """

    def __init__(
        self, operator: Operator, domain: Domain, y: Any, std: Any, errors: str = GAUSSIAN
    ) -> None:
        parse(errors)
        self.errors = str(errors)
        y = np.asarray(y, dtype=np.float64)
        if y.shape != domain.shape:
            raise ValueError(f"expected observed values of shape {domain.shape}, got {y.shape}")
        std = deviations(std, domain)
        seen = ~np.isnan(y)
        if not seen.any():
            raise ValueError(
                f"the set of observations is empty: {y.size} values, none of them seen"
            )
        if np.isinf(y).any():
            raise ValueError(
                f"observations must be finite, got {np.isinf(y).sum()} infinite values"
            )
        wrong = seen & ~(np.isfinite(std) & (std > 0))
        if wrong.any():
            raise ValueError(
                f"std must be positive and finite, got {std[wrong][0]:g} "
                f"({wrong.sum()} of {seen.sum()} observations)"
            )
        self.operator, self.domain, self.y, self.seen = operator, domain, y, seen
        self.std = np.where(seen, std, np.nan)
        self.labels: dict[str, np.ndarray] = {}

    def keep(self, mine: np.ndarray) -> "ObservationSet | None":
        """The set with some of its observed values only, booleans `(len(self))`; None if empty."""

        if not mine.any():
            return None
        y = self.y.copy()
        y.reshape(-1)[np.flatnonzero(self.seen)[~mine]] = np.nan
        kept = ObservationSet(self.operator, self.domain, y, self.std, self.errors)
        kept.label(self.labels)

        return kept

    def label(self, labels: Mapping[str, Any]) -> None:
        """Adds columns of text to the table, such as who has observed; they play no other part.

        Arguments:
            labels: The columns, with one entry for each value, seen or not.

        Raises:
            ValueError: If a column has another length.
        """

        for name, column in labels.items():
            column = np.array(column, dtype=object)
            if column.shape != (self.y.size,):
                raise ValueError(
                    f"the label {name!r} needs {self.y.size} entries, one for each value, got "
                    f"shape {column.shape}"
                )
            self.labels[name] = column

    def __len__(self) -> int:
        return int(self.seen.sum())

    def rows(self) -> dict[str, np.ndarray]:
        """The observed values as columns of a table."""

        index = np.flatnonzero(self.seen)
        columns = {name: column[index] for name, column in self.domain.rows().items()}
        columns["observation"] = self.y.ravel()[index]
        columns["std"] = self.std.ravel()[index]

        return columns

    def check_places(self, grid: Grid) -> None:
        """Raises a `ValueError` if values lie on land, if longitudes are of two conventions, or if
        two values of a table are of one place, a period apart."""

        from .places import check_land, check_longitudes
        from .table import check_distinct

        if grid.layout is not None and isinstance(self.domain, Points):
            check_longitudes(self.rows(), grid.layout)
        if grid.layout is not None and self.operator.sampling:
            check_land(self.rows(), grid.layout)

        if not (isinstance(self.domain, Points) and self.operator.sampling and grid.period):
            return
        names = ("time", "variable", *grid.dims)
        places = {name: column for name, column in self.rows().items() if name in names}
        check_distinct(places, {dim: each for dim, each in grid.period.items() if dim in places})


class Observations:
    """Observations of a trajectory: one or several sets of `(H, y, R, times)`.

    Observations add: `a + b` holds the sets of both.

    Arguments:
        sets: The sets.

    Attributes:
        notes: Where they come from, for the attributes of what is made of them.

    Raises:
        ValueError: If there is none.
    """

    def __init__(self, sets: Sequence[ObservationSet]) -> None:
        self.sets = tuple(sets)
        self.notes: dict[str, str] = {}
        if not self.sets:
            raise ValueError("observations need at least one set, got none")

    @classmethod
    def from_operator(
        cls,
        operator: Operator,
        y: Any,
        std: Any,
        layout: Layout,
        time: Sequence[float] | np.ndarray,
    ) -> "Observations":
        """Observations through an operator of one's own.

        Arguments:
            operator: The observation operator.
            y: The values, broadcast to the shape that the operator returns. NaN was not observed.
            std: The standard deviation of their errors: one for all, one for each observed
                variable by its name, or an array that broadcasts to the shape of `y`.
            layout: The layout of the state.
            time: The times of the trajectory. Times that the operator names by their index refer
                to them; the observations may be used with another trajectory later.

        Raises:
            ValueError: If the operator does not fit the layout, or the values not the operator.
        """

        grid = Grid.of(layout, time)
        operator = anchored(operator, grid)
        parts = operator.operators if isinstance(operator, Compose) else (operator,)
        mask = parts[-1] if isinstance(parts[-1], Mask) else None
        full = Compose(*parts[:-1]) if mask and len(parts) > 1 else operator
        domain = full.bind(grid).target
        if mask is not None and isinstance(domain, Grid) and full is not operator:
            # A mask at the end leaves gaps in a grid, which the gridded form can hold.
            seen = mask.over(domain)
            y = np.asarray(y, dtype=np.float64)
            if y.shape == (seen.sum(),):
                values = np.full(domain.shape, np.nan)
                values[seen] = y
                if np.shape(std) == y.shape and not isinstance(std, Mapping):
                    errors_ = np.full(domain.shape, np.nan)
                    errors_[seen] = std
                    std = errors_
            else:
                values = np.where(seen, broadcast("y", y, domain.shape), np.nan)
        else:
            domain = operator.bind(grid).target
            full, values = operator, broadcast("y", np.asarray(y, dtype=np.float64), domain.shape)

        return cls([ObservationSet(full, domain, values, std)])

    @classmethod
    def from_table(
        cls, table: pd.DataFrame | Mapping[str, Any], std: float | None = None
    ) -> "Observations":
        """Observations at points, see `sda.observation.table.from_table`."""

        from .table import sets_of

        return cls(sets_of(table, std))

    @classmethod
    def from_grid(
        cls, dataset: xr.Dataset, std: Any = None, kind: str | None = None
    ) -> "Observations":
        """Observations on a grid, see `sda.observation.grid.from_grid`."""

        from .grid import from_grid

        return cls([from_grid(dataset, std, kind)])

    def __add__(self, other: "Observations") -> "Observations":
        if not isinstance(other, Observations):
            return NotImplemented
        both = Observations((*self.sets, *other.sets))
        both.notes = self.notes | other.notes
        return both

    def keep(self, mine: np.ndarray) -> "Observations":
        """Some of the observed values only.

        Arguments:
            mine: Booleans, one for each value, in the order of the table.

        Raises:
            ValueError: If none is left, or the number of booleans is another.
        """

        if mine.shape != (len(self),) or not mine.any():
            raise ValueError(
                f"expected {len(self)} booleans with at least one true, got shape {mine.shape} "
                f"with {int(np.count_nonzero(mine))}"
            )
        parts = np.split(mine, np.cumsum([len(each) for each in self.sets])[:-1])
        kept = [each.keep(part) for each, part in zip(self.sets, parts, strict=True)]
        found = Observations([each for each in kept if each is not None])
        found.notes = dict(self.notes)

        return found

    def __len__(self) -> int:
        return sum(map(len, self.sets))

    def with_errors(self, errors: str) -> "Observations":
        """The same observations with errors of another kind, see `ObservationSet`.

        Raises:
            ValueError: If the kind is unknown.
        """

        sets = [
            ObservationSet(each.operator, each.domain, each.y, each.std, errors)
            for each in self.sets
        ]
        for old, new in zip(self.sets, sets, strict=True):
            new.label(old.labels)
        found = Observations(sets)
        found.notes = dict(self.notes)

        return found

    @property
    def robust(self) -> bool:
        """Whether some errors are not Gaussian."""
        return any(parse(each.errors)[0] != GAUSSIAN for each in self.sets)

    @property
    def linear(self) -> bool:
        """Whether all operators are linear."""
        return all(each.operator.linear for each in self.sets)

    @property
    def times(self) -> np.ndarray:
        """The times of the observations, increasing."""

        times = [each.operator.times()[-1] for each in self.sets if each.operator.times()]
        return np.unique(np.concatenate(times))

    @property
    def span(self) -> tuple[float, float]:
        """The first and the last time that a trajectory must cover."""

        times = np.concatenate([t for each in self.sets for t in each.operator.times()])
        return float(times.min()), float(times.max())

    @property
    def variables(self) -> tuple[str, ...]:
        """The names of what was observed."""
        return tuple(dict.fromkeys(n for each in self.sets for n in each.rows()["variable"]))

    def __repr__(self) -> str:
        first, last = self.span
        lines = [
            f"Observations({len(self)} values of {', '.join(self.variables)} at "
            f"{len(self.times)} times {first:g} … {last:g})"
        ]
        lines += [
            f"  {len(each)} values, std {np.nanmin(each.std):g} … {np.nanmax(each.std):g}: "
            f"{each.operator!r}"
            for each in self.sets
        ]
        return "\n".join(lines)

    def hash(self) -> str:
        """A SHA-256 of operators, values and errors, that saving and loading does not change."""

        digest = hashlib.sha256()
        for each in self.sets:
            # Where coordinates say all about an operator, so that a table needs no other
            # description of it, they stand for it here as well.
            sampling = each.operator.sampling
            config = {} if sampling else each.operator.config()
            digest.update(json.dumps(config, sort_keys=True).encode())
            digest.update(b"" if each.errors == GAUSSIAN else each.errors.encode())
            for name, column in sorted(each.rows().items()):
                digest.update(name.encode())
                if name == "variable":
                    digest.update("\0".join(column).encode())
                else:
                    digest.update(np.ascontiguousarray(column, dtype="<f8").tobytes())

        return digest.hexdigest()

    @torch.inference_mode(False)  # tensors made in inference mode cannot be differentiated through
    def likelihood(
        self,
        layout: Layout,
        time: Sequence[float] | np.ndarray,
        dtype: torch.dtype = torch.float32,
        device: torch.device | str = "cpu",
    ) -> Likelihood:
        """The likelihood `p(y | x)` of a trajectory.

        Observation times need not be among the trajectory's: in between, the state is interpolated
        linearly in time, and at its times it is exact.

        Arguments:
            layout: The layout of the state.
            time: The times of the trajectory.
            dtype: The precision of the trajectories.
            device: Their device.

        Raises:
            ValueError: If an observation lies outside the domain or the time span, a variable is
                unknown, an operator does not fit the layout, or two values of a table are of the
                same place, one period apart.
        """

        grid = Grid.of(layout, time)
        bounds: list[tuple[Bound, Tensor | None]] = []
        for each in self.sets:
            each.check_places(grid)
            bound = each.operator.bind(grid, dtype, device)
            same = bound.target.shape == each.domain.shape
            if not same and (
                isinstance(each.domain, Grid) or math.prod(bound.target.shape) != each.y.size
            ):
                raise ValueError(
                    f"{each.operator!r} returns values of shape {bound.target.shape} on this "
                    f"trajectory, but {each.domain.shape} were observed"
                )
            index = None if each.seen.all() else torch.from_numpy(np.flatnonzero(each.seen))
            bounds.append((bound, None if index is None else index.to(device)))

        def values(x: Tensor, fns: Sequence[Callable[[Tensor], Tensor]]) -> Tensor:
            parts = [
                fn(x).flatten(1) if index is None else fn(x).flatten(1).index_select(1, index)
                for fn, (_, index) in zip(fns, bounds, strict=True)
            ]
            return parts[0] if len(parts) == 1 else torch.cat(parts, dim=1)

        def elementwise(z: Tensor) -> Tensor:
            return torch.cat(
                [fn(part) for fn, part in zip(outer, z.split(counts, dim=1), strict=True)], dim=1
            )

        counts = [len(each) for each in self.sets]
        known_parts = [bound.parts for bound, _ in bounds]
        inner = [part[0] for part in known_parts if part is not None]
        outer = [part[1] for part in known_parts if part is not None]
        form = None
        if len(outer) == len(bounds):
            form = (lambda x: values(x, inner), elementwise)

        rows = [each.rows() for each in self.sets]
        y, std = (
            torch.from_numpy(np.concatenate([row[name] for row in rows])).to(device, dtype)
            for name in ("observation", "std")
        )

        whole = [bound for bound, _ in bounds]

        return Likelihood(
            lambda x: values(x, whole), y, std, grid.shape,
            all(bound.linear for bound in whole), form,
            Robust.of([kind for each in self.sets for kind in [each.errors] * len(each)], y),
        )  # fmt: skip

    def to_dataset(self) -> xr.Dataset:
        """The gridded form, see `sda.observation.grid.to_dataset`."""

        from .grid import to_dataset

        return to_dataset(self)

    def to_table(self) -> pd.DataFrame:
        """The table of all observed values, one row each."""

        from .table import to_table

        return to_table(self)

    def save(self, path: str | Path, overwrite: bool = False) -> None:
        """Saves the observations, in the form that the suffix of the path names.

        Arguments:
            path: A path that ends in ".zarr" or ".nc" (gridded) or ".parquet" or ".csv" (table).
            overwrite: Whether to replace what is there.

        Raises:
            FileExistsError: If the path exists and is not to be overwritten, or is a dataset of
                something else than observations.
            ValueError: If the suffix is unknown, the observations have no single grid but the
                suffix is that of a grid, or an operator cannot be saved.
        """

        path = Path(path)
        known("suffix of observations", [path.suffix], (*GRIDDED, *TABLES))
        if path.exists() and not overwrite:
            raise FileExistsError(f"{path} exists already: choose another path or overwrite=True")
        if path.exists() and path.suffix in GRIDDED:
            try:
                Observations.load(path)
            except ValueError as error:
                # Perhaps the truth itself, which can be hours of simulation.
                raise FileExistsError(
                    f"{path} exists and holds no observations: it is left as it is, choose another "
                    f"path"
                ) from error
        if path.suffix in GRIDDED:
            from .grid import write
        else:
            from .table import write
        write(self, path)

    @classmethod
    def load(cls, path: str | Path) -> "Observations":
        """Loads observations that `save` has written, or a file of one's own in those forms.

        Raises:
            FileNotFoundError: If the path does not exist.
            ValueError: If the suffix is unknown or the content does not fit.
        """

        path = Path(path)
        known("suffix of observations", [path.suffix], (*GRIDDED, *TABLES))
        if not path.exists():
            raise FileNotFoundError(f"there are no observations at {path}")
        if path.suffix in GRIDDED:
            from .grid import read
        else:
            from .table import read

        return cls(read(path))
