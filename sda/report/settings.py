"""The tables of what was run: parameters, tuning, seeds, machine and versions."""

import json
import math
from typing import Any

from .markup import Markup, join, tag
from .numerals import count, decimals, number
from .results import Results, as_float
from .tables import METHOD, Cell, Column, flat, heading, readable, table


def parameters(results: Results) -> Markup | None:
    """The parameters of the methods; None if the results do not hold any."""

    known = [flat(method.parameters) for method in results.methods]
    if not any(known):
        return None
    columns = [METHOD, Column("Parameters", text=True)]
    cells = []
    for method, values in zip(results.methods, known):
        items = [
            tag("span", tag("i", name or "value"), " = ", readable(value), class_="item")
            for name, value in values.items()
        ]
        text = ", ".join(f"{name} = {readable(value)}" for name, value in values.items())
        content = join(items, " ") if items else "–"
        cells.append([heading(method), Cell(content, text or None, "text wrap")])

    return table("parameters-table", "Parameters of each method, as it was run.", columns, cells)


def tuning(results: Results) -> Markup | None:
    """What tuning found and what it spent; None if nothing was tuned."""

    found = results.attribute("tuning")
    if not isinstance(found, dict) or not found:
        return None
    labels = {method.name: method.label for method in results.methods}
    cells = []
    for name, entry in found.items():
        entry = entry if isinstance(entry, dict) else {"parameters": {"value": entry}}
        values = flat(entry.get("parameters") or {})
        text = ", ".join(f"{key} = {readable(value)}" for key, value in values.items())
        budget = entry.get("budget") or {}
        tried, rmse = entry.get("trials"), as_float(entry.get("rmse"))
        lost = [each for each in tried or [] if isinstance(each, dict) and each.get("rmse") is None]
        counts = [as_float(len(tried) if isinstance(tried, list) else tried)]
        counts += [float(len(lost)), as_float(budget.get("cycles")), as_float(entry.get("seconds"))]
        row = [Cell(labels.get(str(name), name), str(name)), Cell(text or "–", text, "text")]
        row.append(Cell(number(rmse, decimals([rmse])) if math.isfinite(rmse) else "–", rmse))
        cells.append(row + [Cell(count(value), value) for value in counts])
    columns = [
        METHOD,
        Column("Found", text=True),
        Column("RMSE of the trial"),
        Column("Trials"),
        Column("Diverged"),
        Column("Cycles of a trial"),
        Column("Seconds"),
    ]
    words = "Tuning, on a truth of its own that is never scored: what was found, and its budget."

    return table("tuning", words, columns, cells)


def seeds(value: Any) -> Markup:
    """The seeds: a table where each repetition has several, else a line."""

    each = value.get("repetitions") if isinstance(value, dict) else None
    if not isinstance(each, list) or not each or not all(isinstance(row, dict) for row in each):
        return tag("p", json.dumps(value) if isinstance(value, dict) else readable(value))
    names = list(dict.fromkeys(name for row in each for name in row))
    cells = [
        [Cell(k, float(k)), *(Cell(row.get(name, "–"), as_float(row.get(name))) for name in names)]
        for k, row in enumerate(each)
    ]
    others = {key: item for key, item in value.items() if key != "repetitions"}
    words = ", ".join(f"{key} = {readable(item)}" for key, item in others.items())
    words = f"The seeds of each repetition{f', made from {words}' if words else ''}."

    return table("seeds", words, [Column("Repetition", text=True), *map(Column, names)], cells)


def pairs(key: str, caption: str, values: dict[str, Any]) -> Markup:
    """A table of names and values, one pair a row."""

    cells = [
        [Cell(name), Cell(readable(value), readable(value), "text wrap")]
        for name, value in flat(values).items()
    ]

    columns = [Column("Name", text=True), Column("Value", text=True)]

    return table(key, caption, columns, cells)
