"""The tables of scores, of costs, and of the runs that diverged."""

import math
from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray

from .markup import Markup, join, tag
from .numerals import count, decimals, number, percent
from .results import Method, Results, clean
from .statistics import COSTS, SCORES, Estimate, Score, best, estimate, relative
from .tables import METHOD, Cell, Column, heading, table

MEBIBYTE = 2.0**20
VARIABLE_SCORES = ("rmse", "crps", "spread_skill")


def scores(results: Results) -> Markup:
    """The summary: every score of every method, the published one, and what became of the runs."""

    columns = [METHOD]
    cells: list[list[Cell]] = [[heading(method)] for method in results.methods]
    headline = [score for score in SCORES if score.name == results.score]
    others = [score for score in SCORES if score.name != results.score]
    for score in headline or [Score(results.score, results.score, -np.inf)]:
        add_score(results, score, columns, cells)
    columns.append(Column("Runs", "runs that ended, and what became of the others"))
    for row, method in zip(cells, results.methods):
        row.append(runs(results, method))
    for score in others:
        add_score(results, score, columns, cells)

    return table("scores", caption(results), columns, cells)


def by_variable(results: Results) -> Markup | None:
    """The scores of each variable in its own units; None for results of one variable."""

    data = results.dataset
    if "variable" not in data.coords or data.sizes["variable"] < 2:
        return None
    units = data["units"].values if "units" in data.coords else ["1"] * data.sizes["variable"]
    columns = [METHOD]
    cells: list[list[Cell]] = [[heading(method)] for method in results.methods]
    for name in VARIABLE_SCORES:
        score = next(each for each in SCORES if each.name == name)
        if (values := results.values(f"{name}_by_variable")) is None:
            continue
        for i, variable in enumerate(data["variable"].values):
            own = values[:, :, i]
            known = [estimate(row) for row in own]
            digits, flags = column_digits(known), best(own, score.goal, eligible(results))
            unit = "" if name == "spread_skill" or units[i] in ("", "1") else f" [{units[i]}]"
            columns.append(Column(f"{score.title} {clean(variable)}{unit}", score.hint))
            for k, row in enumerate(cells):
                row.append(shown(known[k], digits, bool(flags[k]), marks(results, k)))
    if len(columns) == 1:
        return None
    words = (
        "Scores of each variable in its own units, over space by the area of cells: mean ± "
        "standard error over repetitions, smallest … largest below."
    )

    return table("by-variable", words, columns, cells)


def add_score(
    results: Results, score: Score, columns: list[Column], cells: list[list[Cell]]
) -> None:
    """Adds the column of a score, and after the headline score the published one."""

    main = score.name == results.score
    values = results.values(score.name)
    if values is None:
        if not main:
            return
        values = np.full(results.shape, np.nan)
    known = [estimate(row) for row in values]
    digits = column_digits(known)
    flags = best(values, score.goal, eligible(results))
    columns.append(Column(score.title, score.hint))
    for i, row in enumerate(cells):
        mark = marks(results, i) if known[i].n else ""
        if main and results.diverged[i].any() and not known[i].n:
            row.append(Cell(tag("em", "diverged"), None, "lost"))
        else:
            row.append(shown(known[i], digits, bool(flags[i]), mark))
    published = [method.published for method in results.methods]
    if not main or not np.isfinite(published).any():
        return
    columns.append(Column("Published", "as rounded by its source"))
    for row, value in zip(cells, published):
        row.append(Cell(f"{value:g}" if math.isfinite(value) else "–", value))
    columns.append(Column("Difference", "of ours from the published score, relative to it"))
    for row, ours, value in zip(cells, known, published):
        if not (ours.n and math.isfinite(value) and value):
            row.append(Cell("–"))
            continue
        share, error = relative(ours, value)
        spread = f" ± {100 * error:.1f}" if ours.n > 1 else ""
        row.append(Cell(f"{percent(share)}{spread}", share))


def marks(results: Results, method: int) -> str:
    """The signs of the footnotes of the caption that a method's scores need."""

    lost, again, failed = results.diverged, results.lost, results.failed_members > 0
    signs = (("†", lost), ("‡", again), ("§", failed))

    return "".join(sign for sign, runs in signs if runs[method].any())


def eligible(results: Results) -> NDArray[np.bool_]:
    """Which methods are ranked: those without a diverged run that have most of the runs."""

    whole = ~results.diverged.any(axis=1)
    made = np.where(whole, results.ran.sum(axis=1), 0)

    return whole & (made == made.max())


def caption(results: Results) -> str:
    """How to read the scores."""

    n = results.repetitions
    if n > 1:
        words = (
            f"Mean ± standard error over {n} repetitions, smallest … largest below. Bold: the "
            f"best, and whatever a paired t-test over the repetitions (5 %) cannot tell from it."
        )
    else:
        words = "One repetition: its uncertainty is not known. Bold: the best."
    if results.diverged.any():
        words += (
            " †: some runs diverged; the numbers are of the others, and the method is not ranked."
        )
    if results.lost.any():
        words += " ‡: some runs lost the truth for a while and found it again; their numbers count."
    if results.failed_members.any():
        words += (
            " §: some members of a run failed and were left out; the numbers are of the others."
        )
    if (results.ran.sum(axis=1) < n).any():
        words += " A method with fewer runs than others is not ranked."

    return words


def costs(results: Results) -> Markup | None:
    """What a run costs; None if the results do not say."""

    columns = [METHOD]
    cells: list[list[Cell]] = [[heading(method)] for method in results.methods]
    for score in COSTS:
        if (known := estimates(results, score, MEBIBYTE if score.unit == "MiB" else 1.0)) is None:
            continue
        title = f"{score.title} [{score.unit}]" if score.unit else score.title
        columns.append(Column(title, score.hint))
        for row, value in zip(cells, known):
            if not value.n:
                row.append(Cell("–"))
                continue
            same = value.n < 2 or count(value.low) == count(value.high)
            reach = "" if same else tag("small", f"{count(value.low)} … {count(value.high)}")
            row.append(Cell(join([count(value.mean), reach]), value.mean))
    if len(columns) == 1:
        return None
    words = "Cost of one run: mean over the repetitions that ended, smallest … largest below."

    return table("costs", words, columns, cells)


def divergences(results: Results) -> Markup | None:
    """The runs that diverged, one a row; None if there are none."""

    if not results.diverged.any():
        return None
    names = (
        results.dataset["repetition"].values
        if "repetition" in results.dataset.coords
        else range(results.repetitions)
    )
    cells = []
    for method in results.methods:
        for k in np.flatnonzero(results.diverged[method.index]):
            time = float(results.diverged_time[method.index, k])
            text = f"{time:.6g}" if math.isfinite(time) else "not recorded"
            repetition = str(names[k])
            cells.append(
                [heading(method), Cell(repetition, float(k)), Cell(text, time, "lost")],
            )
    columns = [METHOD, Column("Repetition"), Column("Diverged at time")]

    return table("diverged", "Runs that diverged. They enter no mean.", columns, cells)


def runs(results: Results, method: Method) -> Cell:
    """The cell that counts the runs: how many ended, and what became of the others."""

    i = method.index
    lost = int(results.diverged[i].sum())
    made = int(results.ran[i].sum())
    ended = made - lost
    words = [str(ended)]
    if lost:
        words.append(f"{lost} diverged")
    if again := int(results.lost[i].sum()):
        words.append(f"{again} lost and found")
    if failed := int(results.failed_members[i].sum()):
        words.append(f"{failed} {'member' if failed == 1 else 'members'} failed")
    if missing := results.repetitions - made:
        words.append(f"{missing} not run")
    content = join([words[0], *(tag("small", word) for word in words[1:])])

    return Cell(content, float(ended), "lost" if lost else None)


def estimates(results: Results, score: Score, scale: float = 1.0) -> list[Estimate] | None:
    """The estimates of a score for each method; None if the results do not have it."""

    if (values := results.values(score.name)) is None:
        return None

    return [estimate(row / scale) for row in values]


def shown(value: Estimate, digits: int, bold: bool = False, mark: str = "") -> Cell:
    """The cell of an estimate: mean, standard error, and the range below."""

    if not value.n:
        return Cell("–")
    if value.n > 1 and 0 < value.error < 10.0**-digits:
        digits = min(digits + 2, decimals([value.error], 1, 8))
    mean = tag("strong" if bold else "span", number(value.mean, digits))
    error = f" ± {number(value.error, digits)}" if value.n > 1 else ""
    reach = (
        tag("small", f"{number(value.low, digits)} … {number(value.high, digits)}")
        if value.n > 1
        else ""
    )

    return Cell(join([mean, error, mark, reach]), value.mean, "best" if bold else None)


def column_digits(values: Sequence[Estimate]) -> int:
    """The decimals of a column: three digits of what is typical in it."""

    sizes = [abs(value.mean) for value in values if value.n and value.mean]

    return decimals([float(np.median(sizes))]) if sizes else 0
