"""Names, values and nested keys as text: corrections of a name, quotes, dotted keys."""

import difflib
from collections.abc import Iterator, Mapping, Sequence
from typing import Any


def hint(given: str, known: Sequence[str]) -> str:
    """A likely correction of a name."""

    close = difflib.get_close_matches(given, known, n=1)
    return f" (did you mean {close[0]!r}?)" if close else ""


def quote(value: str) -> str:
    """A value as a quoted string of Hydra's override grammar."""
    return "'" + value.replace("\\", "\\\\").replace("'", "\\'") + "'"


def readable(value: str) -> str:
    """A value as Hydra's grammar reads it: text that it does not, as some paths, is quoted."""

    from hydra.core.override_parser.overrides_parser import OverridesParser
    from hydra.errors import HydraException

    try:
        OverridesParser.create().parse_override(f"key={value}")
    except HydraException:
        return quote(value)
    return value


def leaves(config: Mapping[str, Any], prefix: str = "") -> Iterator[tuple[str, Any]]:
    """The dotted keys of a configuration and their values."""

    for key, value in config.items():
        if isinstance(value, Mapping) and value:
            yield from leaves(value, f"{prefix}{key}.")
        else:
            yield f"{prefix}{key}", value
