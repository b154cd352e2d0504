"""Figures as SVG that stands inside a page.

Ink (text, axes, truth) is drawn in a colour of its own and becomes `currentColor`, so that it
follows the page into the dark. Identifiers are made from the content and the name of the figure:
the same results give the same file, and two figures on one page do not share any.
"""

import io
import re
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import matplotlib
from matplotlib.artist import Artist
from matplotlib.figure import Figure

from ..plotting.style import STYLE, VARIABLES
from .markup import Markup, escape
from .results import Method

INK, GREY = "#010101", "#8C8C8C"

DASHES: tuple[Any, ...] = ("solid", (0, (4, 1.5)), (0, (1.2, 1.2)), (0, (6, 1.5, 1.2, 1.5)))
SWATCHES = ("none", "8 3", "2.4 2.4", "9 2.5 2 2.5")
MARKERS = ("o", "s", "^", "D", "v", "P", "X", "<", ">", "p", "*", "h")

LOOK: dict[Any, Any] = {
    **STYLE,
    "text.color": INK,
    "axes.edgecolor": INK,
    "axes.labelcolor": INK,
    "xtick.color": INK,
    "ytick.color": INK,
    "axes.facecolor": "none",
    "figure.facecolor": "none",
    "savefig.facecolor": "none",
    "axes.grid": True,
    "axes.axisbelow": True,
    "grid.color": GREY,
    "grid.alpha": 0.25,
    "grid.linewidth": 0.5,
    "svg.fonttype": "path",
    "svg.hashsalt": "sda",
    "image.interpolation": "none",
    "axes.unicode_minus": True,
}


@contextmanager
def look() -> Iterator[None]:
    """Draws with the look of the report, and leaves matplotlib's settings as they were."""

    with matplotlib.rc_context(LOOK):
        yield


def colour(method: Method) -> str:
    """The colour of a method: the same in all figures."""

    return VARIABLES[method.index % len(VARIABLES)]


def line(method: Method) -> dict[str, Any]:
    """The look of a method's lines: where colours repeat, dashes differ."""

    return {
        "color": colour(method),
        "linestyle": DASHES[method.index // len(VARIABLES) % len(DASHES)],
    }


def marker(method: Method) -> str:
    """The marker of a method."""

    return MARKERS[method.index % len(MARKERS)]


def swatch(method: Method) -> Markup:
    """A short line in the look of a method, for legends and tables."""

    dash = SWATCHES[method.index // len(VARIABLES) % len(SWATCHES)]

    return Markup(
        f'<svg class="swatch" viewBox="0 0 24 8" aria-hidden="true"><line x1="0" x2="24" y1="4" '
        f'y2="4" stroke="{colour(method)}" stroke-width="3" stroke-dasharray="{dash}"/></svg>'
    )


def plain(text: str, longest: int = 30) -> str:
    """A text that matplotlib draws as it is: no mathematics, not too long."""

    text = text if len(text) <= longest else f"{text[: longest - 1]}…"

    return text.replace("$", r"\$")


def mark(method: Method, *artists: Artist) -> None:
    """Notes which method artists belong to, so that the page can hide them."""

    for artist in artists:
        artist.set_gid(f"method-{method.index}")


def inline(figure: Figure, name: str, title: str, description: str) -> Markup:
    """Serialises a figure, with a text alternative.

    Arguments:
        figure: The figure.
        name: A name that no other figure of the page has.
        title: What it is.
        description: What it shows, for those who do not see it.
    """

    stream = io.StringIO()
    figure.savefig(stream, format="svg", metadata={"Date": None})
    text = stream.getvalue()
    text = text[text.index("<svg") :]
    text = re.sub(r"<!--.*?-->\n?", "", text, flags=re.DOTALL)
    text = re.sub(r"\s*<metadata>.*?</metadata>", "", text, flags=re.DOTALL)
    text = re.sub(r'id="method-(\d+)"', r'data-method="\1"', text)
    text = re.sub(r'\bid="([^"]+)"', rf'id="{name}-\1"', text)
    text = re.sub(r'(href="#|url\(#)', rf"\g<1>{name}-", text)
    text = text.replace(INK, "currentColor").strip()
    width = float(figure.get_size_inches()[0])
    box = re.search(r'viewBox="[^"]+"', text)
    opening = (
        f'<svg xmlns="http://www.w3.org/2000/svg" xmlns:xlink="http://www.w3.org/1999/xlink" '
        f'{box.group() if box else ""} role="img" aria-labelledby="{name}-title {name}-desc" '
        f'style="max-width: {1.32 * width:.2f}in">'
        f'<title id="{name}-title">{escape(title)}</title>'
        f'<desc id="{name}-desc">{escape(description)}</desc>'
    )

    return Markup(opening + text[text.index(">") + 1 :])
