"""The report of a benchmark: one HTML file, for a screen of any size and for paper.

It is a function of the results alone, see `sda.benchmarks`: the same results give the same file.
"""

import os
from pathlib import Path

import xarray as xr

from .page import page
from .results import Results

__all__ = ["write"]


def write(
    results: xr.Dataset | str | Path, out: str | Path = "report.html", overwrite: bool = False
) -> Path:
    """Writes the report of a benchmark, complete or not at all.

    Runs that diverged are shown as such and enter no mean; what the results do not hold is left
    out. The best of each score is bold together with whatever a paired test over the repetitions
    cannot tell from it.

    Arguments:
        results: The results of `sda benchmark`, with the dimensions `(method, repetition)`, or the
            path of their store.
        out: The file, `.html`.
        overwrite: Whether to replace a file.

    Returns:
        The path of the file.

    Raises:
        FileExistsError: If the file exists and is not to be replaced.
        FileNotFoundError: If there are no results at the path, or there is no folder for the file.
        ValueError: If these are no results of a benchmark, or the file is of another kind.
    """

    from ..plotting.files import checked_path

    out = checked_path(out, (".html", ".htm"), overwrite)
    text = page(Results(results))
    partial = out.with_name(f".{out.stem}.partial.html")
    try:
        partial.write_text(text, encoding="utf-8", errors="xmlcharrefreplace", newline="\n")
        os.replace(partial, out)
    finally:
        partial.unlink(missing_ok=True)

    return out
