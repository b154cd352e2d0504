"""Errors of files in a line: what happened, what was finished, how to go on."""

import errno
from pathlib import Path


def explain(error: OSError, path: Path, doing: str, done: int, members: int) -> OSError:
    """An `OSError` of the same kind that says what was done and how to go on."""

    reason = "the disk is full" if error.errno == errno.ENOSPC else error.strerror or str(error)
    return type(error)(
        error.errno,
        f"{reason} while {doing}: {done} of {members} members are finished and stay readable; "
        f"mend that and run again with resume=true",
        str(path),
    )


def first_line(error: BaseException) -> str:
    """The first line of an error's message, or its kind where it has none."""
    return next(iter(str(error).strip().splitlines()), type(error).__name__)
