"""Configurations: Hydra groups in `configs/`, checked before anything is built.

A verb of the command line has one file, `configs/<verb>.yaml`, whose keys and comments are its
manual. Nouns (system, observing, prior, guidance, sampler, network, training, experiment) are
groups, one folder each, and a published set-up is a file in `experiment`. Overrides are Hydra's,
`key=value` and `group=option`. The working directory never changes.

Nothing in a configuration names Python code: objects are built through the registries below.
"""

import difflib
import json
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import partial
from operator import attrgetter
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    import xarray as xr

    from dynamics.layout import Layout
    from dynamics.system import System

    from .observation import Observations, Operator
    from .prior import Prior

# What makes each system that a configuration can name, in `dynamics`.
SYSTEMS = {
    "damped_spring": "LinearGaussian.damped_spring",
    "rotation": "LinearGaussian.rotation",
    "lorenz63": "Lorenz63",
    "lorenz96": "Lorenz96",
    "kuramoto_sivashinsky": "KuramotoSivashinsky",
    "kolmogorov": "KolmogorovFlow",
    "shallow_water": "ShallowWater",
    "toy_weather": "ToyWeather",
    "quasi_geostrophic": "TwoLayerQG",
    "gyre": "OceanGyre",
}


# Keys of the verb `benchmark` that hold what an experiment needs, and those that it may add.
OPEN = ("initial", "model", "entries", "more_observing")
MORE = ("observing.times", "observing.gaps", "observing.share", "observing.points")
# The folder in the group `experiment` of a file that is a user's own.
OWN = "own"
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
    "training.context": Rule("list"),
    "training.lags": Rule("integer", low=0),
    "training.preconditioning": Rule("text", choices=("wiener", "karras")),
    "training.precision": Rule("text", choices=("float32", "bfloat16")),
    "training.steps": Rule("integer", low=1),
    "training.batch": Rule("integer", low=1),
    "guidance.pilots": Rule("integer", low=1),
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
        The configuration, as plain types; under `choices` the chosen option of each group.

    Raises:
        ValueError: If a key is unknown, required and missing, of the wrong type or out of range.
            The message names the key, what was given and what is allowed.
    """

    options = groups()
    chosen: list[str] = []
    values: list[str] = []
    own: Path | None = None
    for override in overrides:
        key, given, value = override.partition("=")
        if not given or not key or key.startswith(("+", "~", "-")):
            raise ValueError(
                f"expected key=value, got {override!r}: `sda {verb} --help` lists the keys"
            )
        if key == "experiment" and value.endswith((".yaml", ".yml")):
            own = Path(value.strip("'\""))
            if not own.is_file():
                raise FileNotFoundError(f"there is no experiment at {str(own)!r}")
            chosen.append(f"experiment={OWN}/{own.stem}")
            continue
        override = f"{key}={readable(value)}"
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

    given_groups = {override.partition("=")[0] for override in chosen}
    for group in required_groups(verb):
        if group not in given_groups:
            raise ValueError(
                f"{group} is required: give {group}=… (one of {', '.join(options[group])})"
            )
    defaults, _ = hydra_compose(verb, chosen, own)
    known = dict(leaves(defaults))
    for number, override in enumerate(values):
        key = override.partition("=")[0]
        if verb == "benchmark" and (key in MORE or key.partition(".")[0] in OPEN):
            values[number] = f"++{override}"
        elif key not in known and not any(name.startswith(f"{key}.") for name in known):
            raise ValueError(
                f"unknown key {key!r}{hint(key, [*known, *options])}: "
                f"expected one of {', '.join(sorted(known))}"
            )
    config, choices = hydra_compose(verb, [*chosen, *values], own)

    for key, value in leaves(config):
        if value in ("???", ""):
            raise ValueError(
                f"{key} is required: give {key}=… (`sda {verb} --help` has an example)"
            )
        # What is optional elsewhere may be required here.
        required = key == "lead" and value is not None and config.get("task") == "forecast"
        check(key, value, "???" if required else known.get(key))

    return config | {"choices": choices}


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


def hydra_compose(
    verb: str, overrides: Sequence[str], own: Path | None = None
) -> tuple[dict[str, Any], dict[str, str]]:
    """Hydra's composition, with its errors in one line.

    Arguments:
        verb: The name of a file in `configs/`.
        overrides: Overrides for Hydra.
        own: An experiment outside `configs/`.

    Returns:
        The configuration, and the chosen option of each group.
    """

    from hydra import compose as hydra
    from hydra import initialize_config_dir
    from hydra.errors import HydraException
    from omegaconf import OmegaConf, open_dict
    from omegaconf.errors import OmegaConfBaseException

    try:
        with (
            TemporaryDirectory() as place,
            initialize_config_dir(config_dir=str(folder()), version_base="1.3"),
        ):
            given = list(overrides)
            if own is not None:
                copy = Path(place) / "experiment" / OWN / f"{own.stem}.yaml"
                copy.parent.mkdir(parents=True)
                # Its keys stand at the top, as those of the experiments here.
                copy.write_text(
                    f"# @package _global_\n{own.read_text(encoding='utf-8')}", encoding="utf-8"
                )
                given.append(f"hydra.searchpath=[file://{place}]")
            config = hydra(verb, overrides=given, return_hydra_config=True)
        choices = dict(config.hydra.runtime.choices)
        with open_dict(config):
            del config["hydra"]
        content = OmegaConf.to_container(config, resolve=True)
    except (HydraException, OmegaConfBaseException) as error:
        raise ValueError(f"sda {verb}: {' '.join(str(error).split())}") from error

    plain = dict(content) if isinstance(content, dict) else {}
    return plain, {group: choices[group] for group in groups() if group in choices}


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


def readable(value: str) -> str:
    """A value as Hydra's grammar reads it: text that it does not, as some paths, is quoted."""

    from hydra.core.override_parser.overrides_parser import OverridesParser
    from hydra.errors import HydraException

    try:
        OverridesParser.create().parse_override(f"key={value}")
    except HydraException:
        return quote(value)
    return value


def required_groups(verb: str) -> list[str]:
    """The groups of a verb that have no default option."""

    import yaml

    content = yaml.safe_load((folder() / f"{verb}.yaml").read_text(encoding="utf-8"))
    return [
        str(group)
        for each in content.get("defaults", [])
        if isinstance(each, dict)
        for group, option in each.items()
        if option == "???"
    ]


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
    return attrgetter(kind)(dynamics)(**arguments)


def build_operator(config: Mapping[str, Any]) -> "Operator":
    """The observation operator of a group `observing`.

    It selects variables, states or `times`, and a region, then averages over blocks, subsamples,
    interpolates to `points`, and applies a function, each where the configuration asks for it.
    `steps`, `times` and `points` may be absent: `every` and `first` name the states.

    Raises:
        ValueError: If an argument is out of range.
    """

    from . import observation as o

    functions: dict[str, Callable[[], Operator]] = {
        "vorticity": o.Vorticity,
        "saturating_vorticity": o.SaturatingVorticity,
        "loop": o.Difference,
    }
    functions |= {name: partial(o.Function, name) for name in POINTWISE}
    states: slice | Sequence[int] = slice(config["first"], None, config["every"])
    selects = config["first"] > 0 or config["every"] > 1
    if config.get("steps") is not None:
        states, selects = config["steps"], True
    times = config.get("times")
    parts: list[Operator] = []
    if config["variables"] or config["region"] or selects or times is not None:
        parts.append(
            o.Select(
                config["variables"],
                times,
                config["region"],
                steps=states if selects and times is None else None,
            )
        )
    if config["block"] is not None:
        parts.append(o.BlockAverage(config["block"]))
    if config["subsample"] is not None:
        parts.append(o.Subsample(config["subsample"]))
    if config.get("points") is not None:
        parts.append(o.Interpolate(config["points"]))
    if config["function"] is not None:
        parts.append(lookup(functions, "observing.function", config["function"])())

    return o.Compose(*parts) if parts else o.Select()


def build_observations(
    config: Mapping[str, Any], truth: "xr.Dataset", seed: int, layout: "Layout | None" = None
) -> "Observations":
    """Observations of a truth by a group `observing`: through an operator, or by a generator.

    Raises:
        ValueError: If the operator or the generator does not fit the truth.
    """

    from dynamics.layout import Layout

    from .observation import Observations, observe
    from .observing import generate

    if "generator" in config:
        return generate(config, truth, seed, layout)
    operator = build_operator(config)
    if config.get("value") is None:
        return observe(truth, operator, config["std"], seed, layout)
    layout, time = layout or Layout.from_dataset(truth), truth["time"].values
    return Observations.from_operator(operator, config["value"], config["std"], layout, time)


def build_prior(
    config: Mapping[str, Any], device: str = "cpu", context: str | None = None
) -> "Prior":
    """The prior of a group `prior`, given the context in a file where there is one.

    Raises:
        FileNotFoundError: If there is no such prior or dataset.
        ValueError: If the prior is damaged, or takes no such context.
    """

    import torch

    from .cf import open_like, prepare
    from .prior import GaussianPrior, Prior

    if config["source"] == "gaussian":
        return GaussianPrior.fit(prepare(config["data"]), config["window"]).to(device)
    prior = Prior.load(config["source"], device)
    if context is not None:
        prior = prior.given(open_like(context, None))
    return prior.with_network(torch.float32, compiled=True) if config.get("compile") else prior


def assimilation_options(config: Mapping[str, Any], prior: "Prior") -> dict[str, Any]:
    """The arguments of `sda.assimilate` in a configuration of the verb."""

    import numpy as np

    from .smc import ParticleStep

    names = ("members", "seed", "out", "task", "memory", "block", "device", "dtype", "precision")
    more = (
        "frames",
        "overwrite",
        "resume",
        "progress",
        "cluster",
        "workers",
        "lead",
        "lag",
        "history",
        "carry",
        "quality",
    )
    options = {name: config[name] for name in (*names, *more)}
    options |= sampling_options(config)
    options["smc"] = None if config["smc"]["group"] is None else ParticleStep(**config["smc"])
    start, length = config["time"]["start"], config["time"]["length"]
    if (start is None) != (length is None):
        raise ValueError(
            f"time.start and time.length go together, got start={start} and length={length}"
        )
    if length is not None:
        options["time"] = start + prior.layout.dt * np.arange(length)

    return options


def sampling_options(config: Mapping[str, Any]) -> dict[str, Any]:
    """Sampler, guidance and Langevin steps, as `sda.assimilate` takes them."""

    levels = dict(config["sampler"])
    options: dict[str, Any] = {"sampler": levels.pop("name"), **levels}
    guidance = {name: v for name, v in config["guidance"].items() if v is not None}
    options["guidance"] = None if guidance["name"] == "default" else guidance
    options["langevin"] = langevin_option(config)

    return options


def langevin_option(config: Mapping[str, Any]) -> Any:
    """Langevin steps: an instance, the name of a preset, or None."""

    from .langevin import Langevin

    langevin = dict(config["langevin"])
    preset = langevin.pop("preset", None)

    return Langevin(**langevin) if preset is None else None if preset == "none" else preset


def run_training(config: Mapping[str, Any]) -> "Prior":
    """Trains or fits, and saves, the prior of the verb `train`.

    Raises:
        FileExistsError: If the prior exists and neither `overwrite` nor `resume` is given.
        ValueError: If options and data do not fit together.
    """

    from .assimilation import size_in_bytes
    from .cf import prepare
    from .prior import GaussianPrior
    from .symmetry import Symmetry

    arguments = dict(config["training"])
    symmetries = [Symmetry(**each) for each in arguments.pop("symmetries")]
    arguments["climatology"] = arguments.get("climatology") or {}
    out = Path(config["out"])
    name = config["name"] or out.name
    if config["network"]["name"] == "none" and out.exists() and not config["overwrite"]:
        raise FileExistsError(f"{out} exists: give overwrite=true or another path")
    reading = ("variables", "dims", "levels", "fill", "transform", "seasonal", "diurnal")
    dataset = prepare(config["data"], **{key: config[key] for key in reading})
    if config["network"]["name"] == "none":
        window = arguments["climatology_window"] or arguments["window"]
        prior: Prior = GaussianPrior.fit(
            dataset, window, symmetries=symmetries, name=name, folds=config["folds"],
            context=arguments.get("context", ()), lags=arguments.get("lags", 1),
            **arguments["climatology"],
        )  # fmt: skip
        prior.save(out)
        return prior

    if config["folds"] is not None:
        raise ValueError(
            f"folds are of the Gaussian prior: give network=none, or leave out "
            f"folds={config['folds']}"
        )

    from .data import NoiseLevels
    from .training import TrainingOptions, train

    levels = NoiseLevels(
        tuple(arguments.pop("core")), tuple(arguments.pop("tail")), arguments.pop("share")
    )
    network = {
        key: tuple(value) if isinstance(value, list) else value
        for key, value in config["network"].items()
    }
    names = (
        "device", "devices", "nodes", "strategy", "checkpoint_every", "overwrite", "resume",
        "progress",
    )  # fmt: skip
    return train(
        # A store of the package's own is read directly, without a task graph.
        config["data"] if dataset.plain else dataset,
        out,
        TrainingOptions(network=network, levels=levels, seed=config["seed"], **arguments),
        name=name,
        symmetries=symmetries,
        compiled=config["compile"],
        memory=size_in_bytes(config["memory"]),
        **{key: config[key] for key in names},
    )


def differences(config: Mapping[str, Any], group: str) -> list[str]:
    """The overrides that make the chosen option of a group what it is in a configuration."""

    import yaml

    option = config["choices"][group]
    text = (folder() / group / f"{option}.yaml").read_text(encoding="utf-8")
    plain = dict(leaves(yaml.safe_load(text) or {}))
    return [
        f"{group}.{key}={json.dumps(value) if isinstance(value, list | dict) else value}"
        for key, value in leaves(config[group])
        if plain.get(key) != value
    ]


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
