"""Configurations: Hydra groups in `configs/`, checked before anything is built.

A verb of the command line has one file, `configs/<verb>.yaml`, whose keys and comments are its
manual. Nouns (system, observing, prior, guidance, sampler, network, training, experiment) are
groups, one folder each, and a published set-up is a file in `experiment`. Overrides are Hydra's,
`key=value` and `group=option`. The working directory never changes.

Nothing in a configuration names Python code: objects are built through the registries below.
"""

import difflib
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from dynamics.system import System

# The class of each system that a configuration can name.
SYSTEMS = {
    "damped_spring": "DampedSpring",
    "rotation": "Rotation",
    "lorenz63": "Lorenz63",
    "lorenz96": "Lorenz96",
    "kuramoto_sivashinsky": "KuramotoSivashinsky",
    "kolmogorov": "KolmogorovFlow",
}


@dataclass(frozen=True)
class Rule:
    """What a key may hold.

    Arguments:
        kind: "integer", "number", "boolean" or "text".
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
        text = {"integer": "an integer", "number": "a number", "boolean": "true or false"}.get(
            self.kind, "text"
        )
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
        if self.kind == "text":
            return isinstance(value, str) and (not self.choices or value in self.choices)
        kinds = (int,) if self.kind == "integer" else (int, float)
        if isinstance(value, bool) or not isinstance(value, kinds):
            return False
        if self.low is None:
            return value == value
        return value > self.low if self.above else value >= self.low


RULES = {
    "members": Rule("integer", low=1),
    "member": Rule("integer", low=0),
    "length": Rule("integer", low=1, optional=True),
    "spinup": Rule("integer", low=0),
    "start": Rule("integer", low=0),
    "seed": Rule("integer", low=0),
    "block": Rule("integer", low=1, optional=True),
    "window": Rule("integer", low=1, optional=True),
    "task": Rule("text", choices=("smooth",)),
    "dtype": Rule("text", choices=("float32", "float64")),
    "frames": Rule("integer", low=1),
    "time.start": Rule("number", optional=True),
    "time.length": Rule("integer", low=1, optional=True),
    "observing.std": Rule("number", low=0, above=True),
    "observing.every": Rule("integer", low=1),
    "observing.first": Rule("integer", low=0),
    "sampler.steps": Rule("integer", low=1),
    "sampler.s_max": Rule("number", low=0, above=True),
    "sampler.s_min": Rule("number", low=0, above=True, optional=True),
    "system.dt": Rule("number", low=0, above=True),
}


def folder() -> Path:
    """The folder of the configurations, in a checkout or in an installed package.

    Raises:
        FileNotFoundError: If there is none.
    """

    here = Path(__file__).resolve().parent
    for path in (here / "configs", here.parent / "configs"):
        if (path / "assimilate.yaml").is_file():
            return path
    raise FileNotFoundError(
        f"the configurations are missing: expected them in {here / 'configs'} or "
        f"{here.parent / 'configs'}; install the package again"
    )


def groups() -> dict[str, list[str]]:
    """The options of each group."""

    return {
        path.name: sorted(option.stem for option in path.glob("*.yaml"))
        for path in sorted(folder().iterdir())
        if path.is_dir()
    }


def compose(verb: str, overrides: Sequence[str]) -> dict[str, Any]:
    """Composes and checks the configuration of a verb.

    Arguments:
        verb: The name of a file in `configs/`.
        overrides: Hydra overrides, `key=value` or `group=option`.

    Returns:
        The configuration, as plain types.

    Raises:
        ValueError: If a key is unknown, required and missing, of the wrong type or out of range.
            The message names the key, what was given and what is allowed.
    """

    options = groups()
    chosen, values = [], []
    for override in overrides:
        key, given, value = override.partition("=")
        if not given or not key or key.startswith(("+", "~", "-")):
            raise ValueError(
                f"expected key=value, got {override!r}: `sda {verb} --help` lists the keys"
            )
        if key in options and value not in options[key]:
            if key != "prior" or not value:
                raise ValueError(
                    f"{key}={value} is unknown{hint(value, options[key])}: "
                    f"expected one of {', '.join(options[key])}"
                )
            # A prior that is no option is a folder made by `sda train`.
            chosen.append("prior=folder")
            values.append(f"prior.source={quote(value)}")
        else:
            (chosen if key in options else values).append(override)

    defaults = hydra_compose(verb, chosen)
    known = dict(leaves(defaults))
    for override in values:
        key = override.partition("=")[0]
        if key not in known and not any(name.startswith(f"{key}.") for name in known):
            raise ValueError(
                f"unknown key {key!r}{hint(key, [*known, *options])}: "
                f"expected one of {', '.join(sorted(known))}"
            )
    config = hydra_compose(verb, [*chosen, *values])

    for key, value in leaves(config):
        if value == "???":
            raise ValueError(f"{key} is required: give {key}=… (`sda {verb} --help` has an example)")
        check(key, value, known.get(key))

    return config


def check(key: str, value: Any, default: Any) -> None:
    """Raises a `ValueError` unless a value is allowed for a key."""

    rule = RULES.get(key)
    if rule is None and default is not None and not isinstance(default, list):
        kind = {bool: "boolean", int: "integer", float: "number", str: "text"}[type(default)]
        # A number or a flag may well be part of a name: out=7 is a path.
        if kind == "text" and not isinstance(value, list | dict) and value is not None:
            return
        rule = Rule(kind)
    if rule is not None and not rule.allows(value):
        raise ValueError(f"{key} must be {rule}, got {value!r}")


def hydra_compose(verb: str, overrides: Sequence[str]) -> dict[str, Any]:
    """Hydra's composition, with its errors in one line."""

    from hydra import compose as hydra
    from hydra import initialize_config_dir
    from hydra.errors import HydraException
    from omegaconf import OmegaConf
    from omegaconf.errors import OmegaConfBaseException

    try:
        with initialize_config_dir(config_dir=str(folder()), version_base="1.3"):
            config = hydra(config_name=verb, overrides=list(overrides))
        content = OmegaConf.to_container(config, resolve=True)
    except (HydraException, OmegaConfBaseException) as error:
        lines = [line.strip() for line in str(error).splitlines() if line.strip()]
        raise ValueError(f"sda {verb}: {' '.join(lines[:2])}") from error
    assert isinstance(content, dict)
    return {str(key): value for key, value in content.items()}


def leaves(config: Mapping[str, Any], prefix: str = "") -> Iterator[tuple[str, Any]]:
    """The dotted keys of a configuration and their values."""

    for key, value in config.items():
        if isinstance(value, Mapping) and value:
            yield from leaves(value, f"{prefix}{key}.")
        else:
            yield f"{prefix}{key}", value


def hint(given: str, known: Sequence[str]) -> str:
    """A likely correction of a name."""

    close = difflib.get_close_matches(given, known, n=1)
    return f" (did you mean {close[0]!r}?)" if close else ""


def quote(value: str) -> str:
    """A value as a quoted string of Hydra's override grammar."""
    return "'" + value.replace("\\", "\\\\").replace("'", "\\'") + "'"


def lookup(registry: Mapping[str, Any], key: str, name: Any) -> Any:
    """An entry of a registry.

    Raises:
        ValueError: If there is none of that name.
    """

    if name not in registry:
        raise ValueError(
            f"{key}={name} is unknown{hint(str(name), list(registry))}: "
            f"expected one of {', '.join(sorted(registry))}"
        )
    return registry[name]


def build_system(config: Mapping[str, Any]) -> "System":
    """The dynamical system of a group `system`.

    Raises:
        ValueError: If the system is unknown or an argument is out of range.
    """

    import dynamics

    arguments = dict(config)
    kind = lookup(SYSTEMS, "system.name", arguments.pop("name"))
    return getattr(dynamics, kind)(**arguments)


def describe(verb: str) -> str:
    """The keys of a verb with their defaults, and the options of its groups, for `--help`."""

    text = (folder() / f"{verb}.yaml").read_text(encoding="utf-8")
    options = groups()
    lines, used, in_defaults = [], [], False
    for line in text.splitlines():
        if line.startswith("defaults:"):
            in_defaults = True
        elif in_defaults and line.startswith(("  -", "- ")):
            name = line.strip(" -").removeprefix("override ").partition(":")[0].strip()
            used += [name] if name in options else []
        else:
            in_defaults = False
            lines.append(line)
    while lines and not lines[0].strip():
        lines.pop(0)
    shown = "\n".join(f"  {line}" for line in lines)
    offered = "\n".join(f"  {name}={' | '.join(options[name])}" for name in used)

    return f"Keys and defaults:\n{shown}" + (f"\n\nGroups:\n{offered}" if used else "")
