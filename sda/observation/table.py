"""Observations as a table of points: one row per value, as the weather community exchanges them.

The columns are `time`, the spatial coordinates by the names of the state's dimensions, `variable`,
`observation` and `std`; further columns of text are kept beside them. A row is bound to the state
by linear interpolation in space and time. Where rows are not values of the state (averages,
functions), the operators are saved in the file's metadata (Parquet) or first line (CSV), and two
more columns name the set and the index of each value in it.
"""

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd

from .domain import Points
from .grid import parse, remove
from .interpolate import Interpolate
from .observations import Observations, ObservationSet
from .operator import from_config
from .robust import GAUSSIAN

METADATA = "observation_operators"
HEADER = f"# {METADATA}: "


def from_table(table: pd.DataFrame | Mapping[str, Any], std: float | None = None) -> ObservationSet:
    """Reads observations at points off a table.

    Arguments:
        table: The columns `time`, `variable`, `observation`, `std`, and the spatial coordinates by
            the names of the state's dimensions. Columns of text other than `variable` are kept as
            labels and play no part.
            Rows whose observation is NaN were not observed, and are dropped.
        std: The standard deviation of the errors, where the table has no such column.

    Raises:
        ValueError: If a column is missing, the table is empty, a time, coordinate or std is NaN or
            not a number, a std is not positive, or two rows have the same variable, time and place.
    """

    table = pd.DataFrame(table).reset_index(drop=True)
    if "std" not in table and std is not None:
        table = table.assign(std=float(std))
    if missing := [n for n in ("time", "variable", "observation", "std") if n not in table]:
        raise ValueError(
            f"the table of observations lacks the columns {missing}: it has {list(table.columns)}"
        )
    if not len(table):
        raise ValueError("the table of observations is empty")
    places = [
        str(name)
        for name in table.columns
        if name not in ("time", "variable", "observation", "std")
        and pd.api.types.is_numeric_dtype(table[name])
    ]
    columns = {name: numbers(table, name) for name in ("time", *places, "observation", "std")}
    seen = ~np.isnan(columns["observation"])
    if not seen.any():
        raise ValueError(
            f"the table of observations is empty: all {len(table)} observations are NaN"
        )
    for name, column in columns.items():
        if name != "observation" and np.isnan(column[seen]).any():
            raise ValueError(
                f"the column {name!r} has NaN in {np.isnan(column[seen]).sum()} rows, first in row "
                f"{np.flatnonzero(seen & np.isnan(column))[0]}: only observations may be missing"
            )
    rows = {name: column[seen] for name, column in columns.items()}
    rows["variable"] = np.array(table["variable"].astype(str))[seen].astype(object)

    check_distinct({name: rows[name] for name in ("time", "variable", *places)})
    domain = Points({name: rows[name] for name in ("time", "variable", *places)})

    kinds = list(dict.fromkeys(table.get("errors", pd.Series([GAUSSIAN])).astype(str)))
    if len(kinds) > 1:
        raise ValueError(f"one set of observations has errors of one kind, got {kinds}")
    each = ObservationSet(
        Interpolate(domain.columns), domain, rows["observation"], rows["std"], kinds[0]
    )
    each.label({name: table[name].to_numpy()[seen] for name in texts(table)})

    return each


def sets_of(
    table: pd.DataFrame | Mapping[str, Any], std: float | None = None
) -> list[ObservationSet]:
    """The observations of a table, one set for each kind of errors in its column `errors`."""

    table = pd.DataFrame(table).reset_index(drop=True)
    if "errors" not in table or not len(table):
        return [from_table(table, std)]
    table["errors"] = table["errors"].fillna(GAUSSIAN)

    return [from_table(part, std) for _, part in table.groupby("errors", sort=False)]


def texts(table: pd.DataFrame) -> list[str]:
    """The columns of text other than `variable`."""

    return [
        str(name)
        for name in table.columns
        if name not in ("time", "variable", "observation", "std", "errors")
        and not pd.api.types.is_numeric_dtype(table[name])
    ]


def check_distinct(
    rows: Mapping[str, np.ndarray], period: Mapping[str, float] | None = None
) -> None:
    """Raises a `ValueError` if two rows are of the same variable, time and place.

    Arguments:
        rows: The columns `time`, `variable` and the spatial coordinates.
        period: The period of each periodic coordinate: places one period apart are the same. Only
            the state's layout knows it.
    """

    keys = pd.DataFrame(dict(rows))
    duplicate = keys.duplicated()
    for name, length in (period or {}).items():
        # In parts of a thousand millionth: a period is seldom a number that adds up exactly.
        keys[name] = np.round(keys[name].to_numpy(np.float64) / length * 1e9) % 1e9
    if period:
        duplicate = keys.duplicated() & ~duplicate
    if duplicate.any():
        row = pd.DataFrame(dict(rows))[duplicate].iloc[0].to_dict()
        apart = f" (places a period of {dict(period)} apart are the same)" if period else ""
        raise ValueError(
            f"{int(duplicate.sum())} rows are duplicated, the first is {row}{apart}: average or "
            f"remove them"
        )


def to_table(observations: Observations) -> pd.DataFrame:
    """The table of all observed values, one row each."""

    frames = [
        pd.DataFrame(each.rows()).assign(
            **{name: column[np.flatnonzero(each.seen)] for name, column in each.labels.items()},
            **({"errors": each.errors} if observations.robust else {}),
        )
        for each in observations.sets
    ]
    if not plain(observations):
        frames = [
            frame.assign(set=i, index=np.flatnonzero(each.seen))
            for i, (frame, each) in enumerate(zip(frames, observations.sets, strict=True))
        ]

    return pd.concat(frames, ignore_index=True)


def plain(observations: Observations) -> bool:
    """Whether the coordinates of the rows say all about the operators."""
    return len(observations.sets) == 1 and observations.sets[0].operator.sampling


def write(observations: Observations, path: Path) -> None:
    """Writes the table, complete or not at all."""

    table, operators = to_table(observations), None
    if not plain(observations):
        sets = [{"operator": s.operator.config(), "size": s.y.size} for s in observations.sets]
        operators = json.dumps(sets)
    partial = path.with_name(f".{path.stem}.partial{path.suffix}")
    try:
        if path.suffix == ".csv":
            with partial.open("w", newline="") as file:
                file.write("" if operators is None else f"{HEADER}{operators}\n")
                table.to_csv(file, index=False)
        else:
            import pyarrow as pa
            import pyarrow.parquet as pq

            content = pa.Table.from_pandas(table, preserve_index=False)
            if operators is not None:
                metadata = {**(content.schema.metadata or {}), METADATA: operators}
                content = content.replace_schema_metadata(metadata)
            pq.write_table(content, partial)
        partial.replace(path)
    finally:
        remove(partial)


def read(path: Path) -> list[ObservationSet]:
    """Reads a table."""

    operators = None
    try:
        if path.suffix == ".csv":
            with path.open() as file:
                line = file.readline()
            operators = line.removeprefix(HEADER) if line.startswith(HEADER) else None
            table = pd.read_csv(path, comment="#", dtype=str).apply(exact)
        else:
            import pyarrow.parquet as pq

            content = pq.read_table(path)
            operators = (content.schema.metadata or {}).get(METADATA.encode())
            table = content.replace_schema_metadata(None).to_pandas()
    except (OSError, ValueError, pd.errors.ParserError) as error:
        raise ValueError(f"cannot read a table of observations from {path}: {error}") from error
    if operators is None:
        return sets_of(table)

    try:
        return [
            restore(content, table[table["set"] == i]) for i, content in enumerate(parse(operators))
        ]
    except (KeyError, IndexError, TypeError) as error:
        raise ValueError(
            f"the rows in {path} do not fit the operators in its metadata: {error!r}"
        ) from error


def restore(content: Mapping[str, Any], table: pd.DataFrame) -> ObservationSet:
    """Restores a set from its operator and its rows.

    Values that were not observed have no row. They are left out of the operator by their index.
    """

    size, index = int(content["size"]), table["index"].to_numpy(dtype=np.int64)
    labels = [name for name in texts(table) if table[name].notna().any()]
    dropped = ("observation", "std", "set", "index", "errors", *texts(table))
    names = [name for name in table.columns if name not in dropped]
    columns: dict[str, np.ndarray] = {}
    for name in names:
        text = name == "variable"
        columns[name] = np.full(size, "" if text else np.nan, dtype=object if text else np.float64)
        columns[name][index] = table[name].to_numpy()
    y, std = np.full(size, np.nan), np.full(size, np.nan)
    y[index], std[index] = table["observation"], table["std"]
    kind = str(table["errors"].iloc[0]) if "errors" in table else GAUSSIAN

    each = ObservationSet(from_config(content["operator"]), Points(columns), y, std, kind)
    for name in labels:
        column = np.full(size, "", dtype=object)
        column[index] = table[name].to_numpy()
        each.label({name: column})

    return each


def exact(column: pd.Series) -> pd.Series:
    """A column of text as numbers, to the last digit, if all of it is numbers."""

    if column.name in ("variable", "errors"):
        return column
    try:
        return column.astype(object).astype(np.float64)
    except ValueError:
        return column


def numbers(table: pd.DataFrame, name: str) -> np.ndarray:
    """A column as numbers."""

    try:
        if pd.api.types.is_datetime64_any_dtype(table[name]):
            raise TypeError("convert dates to the time since the start of the trajectory")
        return table[name].to_numpy(dtype=np.float64)
    except (TypeError, ValueError) as error:
        raise ValueError(f"the column {name!r} must hold numbers: {error}") from error
