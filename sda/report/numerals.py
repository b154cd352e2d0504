"""Numbers as a reader wants them: as many digits as mean something, aligned down a column."""

import math
from collections.abc import Sequence

MINUS = "\N{MINUS SIGN}"
THIN = "\N{NARROW NO-BREAK SPACE}"


def decimals(values: Sequence[float], significant: int = 3, most: int = 4) -> int:
    """The decimals that give the smallest of some values its significant digits."""

    sizes = [abs(value) for value in values if math.isfinite(value) and value]
    if not sizes:
        return 0

    return min(most, max(0, significant - 1 - math.floor(math.log10(min(sizes)))))


def number(value: float, digits: int) -> str:
    """A number with a count of decimals, thousands apart. Too small for them, it has one digit."""

    if not math.isfinite(value):
        return "–" if math.isnan(value) else ("∞" if value > 0 else f"{MINUS}∞")
    text = f"{abs(value):,.{digits}f}".replace(",", THIN)
    if value and not text.strip("0."):
        text = f"{abs(value):.0e}" if abs(value) < 1e-5 else f"{abs(value):.1g}"

    return f"{MINUS}{text}" if value < 0 and text.strip("0.") else text


def count(value: float) -> str:
    """A large count in three digits: 812, 24.3 k, 1.20 M."""

    if not math.isfinite(value):
        return "–"
    for size, unit in ((1e12, "T"), (1e9, "G"), (1e6, "M"), (1e4, "k")):
        if abs(value) >= size:
            scaled = value / (1e3 if unit == "k" else size)
            return f"{scaled:.{max(0, 2 - math.floor(math.log10(abs(scaled))))}f}{THIN}{unit}"

    return number(value, 0 if value == round(value) else decimals([value]))


def percent(share: float, digits: int = 1) -> str:
    """A signed share of a hundred."""

    if not math.isfinite(share):
        return "–"
    text = f"{abs(100 * share):.{digits}f}"
    sign = "" if not text.strip("0.") else "+" if share > 0 else MINUS

    return f"{sign}{text}{THIN}%"
