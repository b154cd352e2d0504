"""The tables of the report.

A cell carries the number that it sorts by, so that a table sorts by value and not by text; what is
missing has none and comes last either way.
"""

import math
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import Any

from .markup import Markup, join, tag
from .results import Method
from .svg import swatch


@dataclass(frozen=True)
class Cell:
    """A cell of a table.

    Attributes:
        content: What it shows.
        value: What it sorts by: a number, a text, or None for what is missing.
        class_: Its class, for the style.
    """

    content: object
    value: float | str | None = None
    class_: str | None = None


@dataclass(frozen=True)
class Column:
    """A column of a table.

    Attributes:
        title: Its heading.
        hint: What the heading stands for.
        text: Whether its cells are texts, which begin at the left.
    """

    title: object
    hint: str = ""
    text: bool = False


def table(
    key: str, caption: object, columns: Sequence[Column], rows: Iterable[Sequence[Cell]]
) -> Markup:
    """A table that sorts by its columns. The first cell of each row is its heading.

    The caption stands outside of what scrolls, so that it is read whole on a narrow screen.

    Arguments:
        key: A name that no other table of the page has.
        caption: What the table holds.
        columns: The columns.
        rows: The cells of each row, one for each column.
    """

    head = []
    for column in columns:
        button = tag("button", column.title, type="button", title=column.hint or None)
        class_ = "text" if column.text else None
        head.append(tag("th", button, scope="col", aria_sort="none", class_=class_))
    body = []
    for row in rows:
        cells = []
        for k, cell in enumerate(row):
            value = None if isinstance(cell.value, float) and math.isnan(cell.value) else cell.value
            cells.append(
                tag(
                    "td" if k else "th",
                    cell.content,
                    scope=None if k else "row",
                    class_=cell.class_,
                    data_value=repr(value) if isinstance(value, float) else value,
                )
            )
        body.append(tag("tr", *cells))
    inner = tag(
        "table",
        tag("thead", tag("tr", *head)),
        tag("tbody", *body),
        class_="sortable",
        aria_labelledby=f"{key}-caption",
    )
    region = tag(
        "div",
        inner,
        class_="scroll",
        tabindex="0",
        role="region",
        aria_labelledby=f"{key}-caption",
    )

    return join([tag("p", caption, class_="caption", id=f"{key}-caption"), region])


METHOD = Column("Method", text=True)


def heading(method: Method) -> Cell:
    """The cell that names a method, and says of what kind it is and whether it is tuned."""

    words = [tag("span", word, class_=word) for word in variant(method)]
    if method.kind:
        words.insert(0, tag("span", method.kind))
    below = tag("small", join(words, ", ")) if words else ""

    return Cell(join([swatch(method), method.label, below]), method.label, "method")


def variant(method: Method) -> list[str]:
    """The word for whether a method is tuned, if that is known."""

    return [] if method.tuned is None else ["tuned" if method.tuned else "untuned"]


def readable(value: Any) -> str:
    """A parameter as text."""

    if isinstance(value, bool):
        return "yes" if value else "no"
    if isinstance(value, float):
        return f"{value:.6g}"
    if isinstance(value, list):
        return ", ".join(readable(item) for item in value)

    return str(value)


def flat(values: dict[str, Any], prefix: str = "") -> dict[str, Any]:
    """Nested parameters by dotted names, without those that are not set."""

    result: dict[str, Any] = {}
    for name, value in values.items():
        key = f"{prefix}{name}"
        if isinstance(value, dict):
            result |= flat(value, f"{key}.")
        elif value is not None:
            result[key] = value

    return result
