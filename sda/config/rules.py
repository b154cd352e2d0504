"""What the keys of a configuration may hold, checked before anything is built."""

from collections.abc import Mapping
from dataclasses import dataclass, replace
from typing import Any

# Keys of the verb `benchmark` that hold what an experiment needs.
OPEN = ("initial", "model", "entries", "more_observing")
# Functions of what is observed that are operators of their own; others are `sda.observation`'s.
FLOW_FUNCTIONS = ("vorticity", "saturating_vorticity", "loop")
POINTWISE = ("abs", "atan", "cube", "exp", "log", "saturate", "sqrt", "square", "tanh")


@dataclass(frozen=True)
class Rule:
    """What a key may hold.

    Arguments:
        kind: "integer", "number", "numbers", "boolean", "text", "mapping" or "list".
        low: The smallest value.
        above: Whether `low` itself is excluded.
        choices: The allowed values, if they are few.
        optional: Whether null is allowed.
    """

    kind: str
    low: float | None = None
    above: bool = False
    choices: tuple[str, ...] = ()
    optional: bool = False

    def __str__(self) -> str:
        text = {
            "integer": "an integer", "number": "a number", "boolean": "true or false",
            "mapping": "a mapping such as {x: [0, 1]}", "list": "a list such as [a, b]",
            "numbers": "a number, or a list or mapping of numbers,",
        }.get(self.kind, "text")  # fmt: skip
        if self.choices:
            text = "one of " + ", ".join(self.choices)
        elif self.low is not None:
            text += f" above {self.low:g}" if self.above else f" of at least {self.low:g}"
        return text + (" or null" if self.optional else "")

    def allows(self, value: Any) -> bool:
        """Whether a value keeps to the rule."""

        if value is None:
            return self.optional
        if self.kind == "boolean":
            return isinstance(value, bool)
        if self.kind == "mapping":
            return isinstance(value, Mapping)
        if self.kind == "list":
            return isinstance(value, list | str)
        if self.kind == "numbers" and isinstance(value, list | Mapping):
            each = value.values() if isinstance(value, Mapping) else value
            return bool(value) and all(replace(self, kind="number").allows(v) for v in each)
        if self.kind == "text":
            return isinstance(value, str) and (not self.choices or value in self.choices)
        kinds = (int,) if self.kind == "integer" else (int, float)
        if isinstance(value, bool) or not isinstance(value, kinds):
            return False
        if self.low is None:
            return value == value
        return value > self.low if self.above else value >= self.low


RULES = {
    "members": Rule("integer", low=1, optional=True),
    "data": Rule("list"),
    "observations": Rule("list", optional=True),
    "variables": Rule("list", optional=True),
    "dims": Rule("mapping", optional=True),
    "fill": Rule("text", choices=("climatology",), optional=True),
    "transform": Rule("mapping", optional=True),
    "seasonal": Rule("integer", low=0, optional=True),
    "diurnal": Rule("integer", low=0),
    "member": Rule("integer", low=0),
    "length": Rule("integer", low=1, optional=True),
    "spinup": Rule("integer", low=0),
    "start": Rule("integer", low=0),
    "seed": Rule("integer", low=0),
    "block": Rule("integer", low=1, optional=True),
    "context": Rule("text", optional=True),
    "folds": Rule("integer", low=2, optional=True),
    "frames": Rule("integer", low=1, optional=True),
    "prior.window": Rule("integer", low=1),
    "task": Rule("text", choices=("smooth", "filter", "forecast")),
    "lead": Rule("integer", low=1, optional=True),
    "tail": Rule("integer", low=1, optional=True),
    "dtype": Rule("text", choices=("float32", "float64")),
    "precision": Rule("text", choices=("float32", "bfloat16")),
    "lag": Rule("integer", low=0),
    "history": Rule("integer", low=1, optional=True),
    "carry": Rule("text", choices=("observations", "members")),
    "every": Rule("integer", low=1),
    "idle": Rule("number", low=0, optional=True),
    "poll": Rule("number", low=0, above=True),
    "smc.group": Rule("integer", low=2, optional=True),
    "smc.threshold": Rule("number", low=0),
    "smc.divergence": Rule("text", choices=("shared", "probe")),
    "time.start": Rule("number", optional=True),
    "time.length": Rule("integer", low=1, optional=True),
    "observing.std": Rule("numbers", low=0, above=True),
    "observing.region": Rule("mapping", optional=True),
    "observing.every": Rule("integer", low=1),
    "observing.first": Rule("integer", low=0),
    "observing.block": Rule("integer", low=1, optional=True),
    "observing.subsample": Rule("integer", low=1, optional=True),
    "observing.value": Rule("number", optional=True),
    "observing.function": Rule("text", choices=(*FLOW_FUNCTIONS, *POINTWISE), optional=True),
    "methods": Rule("list", optional=True),
    "repetitions": Rule("integer", low=1),
    "batch": Rule("integer", low=1),
    "cycles": Rule("integer", low=1, optional=True),
    "burn_in": Rule("number", low=0),
    "scored": Rule("text", choices=("analysis", "all")),
    "tuning.trials": Rule("integer", low=1),
    "tuning.cycles": Rule("integer", low=1),
    "tuning.strategy": Rule("text", choices=("grid", "halving")),
    "figure": Rule(
        "text",
        choices=(
            "states",
            "maps",
            "spaghetti",
            "stamps",
            "spread_skill",
            "rank_histogram",
            "coverage",
            "spectra",
        ),
    ),
    "variable": Rule("text", optional=True),
    "projection": Rule(
        "text", choices=("auto", "plain", "robinson", "mollweide", "platecarree"), optional=True
    ),
    "stride": Rule("integer", low=1),
    "devices": Rule("integer", low=1),
    "cluster": Rule("text", optional=True),
    "workers": Rule("integer", low=1, optional=True),
    "nodes": Rule("integer", low=1),
    "strategy": Rule("text", choices=("ddp", "fsdp")),
    "checkpoint_every": Rule("integer", low=1),
    "training.window": Rule("integer", low=1),
    "training.climatology_window": Rule("integer", low=1, optional=True),
    "training.climatology": Rule("mapping", optional=True),
    "training.langevin": Rule("mapping", optional=True),
    "training.context": Rule("list"),
    "training.lags": Rule("integer", low=0),
    "training.preconditioning": Rule("text", choices=("wiener", "karras")),
    "training.precision": Rule("text", choices=("float32", "bfloat16")),
    "training.steps": Rule("integer", low=1),
    "training.batch": Rule("integer", low=1),
    "guidance.pilots": Rule("integer", low=1),
    "sampler.steps": Rule("integer", low=1, optional=True),
    "sampler.s_max": Rule("number", low=0, above=True, optional=True),
    "sampler.s_min": Rule("number", low=0, above=True, optional=True),
    "system.dt": Rule("number", low=0, above=True),
}


def check(key: str, value: Any, default: Any) -> None:
    """Raises a `ValueError` unless a value is allowed for a key."""

    rule = RULES.get(key)
    if rule is None and key.partition(".")[0] in OPEN:
        return  # a number or a list may stand in place of text: the experiment checks them
    if rule is None and default is not None and not isinstance(default, list):
        kind = {bool: "boolean", int: "integer", float: "number", str: "text"}[type(default)]
        # A number or a flag may well be part of a name: out=7 is a path.
        if kind == "text" and not isinstance(value, list | dict) and value is not None:
            return
        rule = Rule(kind)
    if rule is not None and default == "???":
        rule = replace(rule, optional=False)
    if rule is not None and not rule.allows(value):
        raise ValueError(f"{key} must be {rule}, got {value!r}")
