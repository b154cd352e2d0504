"""Composes the configuration of a verb from its file, its groups and overrides, by Hydra."""

from collections.abc import Sequence
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

from .files import folder, groups, required_groups
from .rules import OPEN, check
from .text import hint, leaves, quote, readable

# Keys that an experiment may add to those of its groups.
MORE = ("observing.times", "observing.gaps", "observing.share", "observing.points")
# The folder in the group `experiment` of a file that is a user's own.
OWN = "own"


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
