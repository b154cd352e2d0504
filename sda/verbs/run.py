"""The verbs by name, and one run of a verb."""

import shlex
from collections.abc import Callable, Sequence

from .ensembles import assimilate, follow, forecast
from .information import expected_cost, info
from .messages import Config
from .scores import benchmark, plot, verify
from .twin import demo, observe, simulate, train

VERBS: dict[str, Callable[[Config], int]] = {
    "simulate": simulate,
    "train": train,
    "observe": observe,
    "assimilate": assimilate,
    "filter": follow,
    "forecast": forecast,
    "verify": verify,
    "benchmark": benchmark,
    "plot": plot,
    "info": info,
    "demo": demo,
}


def run_verb(verb: str, overrides: Sequence[str]) -> int:
    """Runs a verb. Errors are raised."""

    from ..config import compose

    if verb == "info" and list(overrides[:1]) == ["assimilate"]:
        return expected_cost(overrides[1:])
    if verb == "info" and overrides and "=" not in overrides[0]:
        from ..config.text import quote

        overrides = [f"path={quote(overrides[0])}", *overrides[1:]]

    config = compose(verb, overrides)
    config["command"] = shlex.join(["sda", verb, *overrides])
    return VERBS[verb](config)
