"""What the command line says to whom, and with which exit code it ends."""

import sys
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    import xarray as xr

Config = dict[str, Any]
# The exit codes of a command that did not end as it should.
FAILED, BAD_INPUT, INTERRUPTED = 3, 2, 130
# So many failed members are named one by one.
SHOWN = 8


def sizes(dataset: "xr.Dataset") -> str:
    """The variables and sizes of a dataset in one line."""

    names = ", ".join(map(str, dataset.data_vars))
    return f"{names} ({', '.join(f'{dim} {size}' for dim, size in dataset.sizes.items())})"


def say(text: str) -> None:
    """Prints to standard output at once, also into a pipe."""
    print(text, flush=True)


def complain(text: str) -> None:
    """Prints one line to standard error."""
    print(f"sda: {' '.join(text.split())}", file=sys.stderr, flush=True)
