"""Figures to files."""

from collections.abc import Sequence
from pathlib import Path

import matplotlib
from matplotlib.figure import Figure

from .style import STYLE


def save(figure: Figure, out: str | Path, overwrite: bool = False) -> Path:
    """Saves a figure, complete or not at all.

    Raises:
        FileExistsError: If the file exists and is not to be replaced.
        ValueError: If the file is of another kind than PNG, PDF or SVG.
    """

    out = checked_path(out, (".png", ".pdf", ".svg"), overwrite)
    partial = out.with_name(f".{out.stem}.partial{out.suffix}")
    try:
        with matplotlib.rc_context(STYLE):
            figure.savefig(partial)
        partial.replace(out)
    finally:
        partial.unlink(missing_ok=True)

    return out


def checked_path(out: str | Path, suffixes: Sequence[str], overwrite: bool) -> Path:
    """Checks the path of a file to write.

    Raises:
        FileExistsError: If it exists and is not to be replaced.
        FileNotFoundError: If its folder does not exist.
        ValueError: If its suffix is not among those given.
    """

    out = Path(out)
    if out.suffix not in suffixes:
        raise ValueError(f"expected a file named {', '.join(suffixes)}, got {out.name!r}")
    if not out.parent.is_dir():
        raise FileNotFoundError(f"there is no folder {str(out.parent)!r}: make it first")
    if out.exists() and not overwrite:
        raise FileExistsError(f"{str(out)!r} exists: give overwrite=true to replace it")

    return out
