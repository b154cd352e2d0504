"""The files in `configs/`: where they are, what they offer, and the manual made of them."""

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from .text import leaves


def folder() -> Path:
    """The folder of the configurations, in a checkout or in an installed package.

    Raises:
        FileNotFoundError: If there is none.
    """

    here = Path(__file__).resolve().parents[1]
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
