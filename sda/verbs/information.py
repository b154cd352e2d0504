"""The verb that tells what a file holds and what a run will cost."""

from collections.abc import Sequence
from pathlib import Path
from typing import Any

from .files import load_observations
from .messages import Config, say, sizes


def info(config: Config) -> int:
    """Tells what a prior, an observation file or a dataset holds, or what a run will cost.

    sda info kolmogorov
    sda info assimilate prior=kolmogorov observations=observations.zarr members=64
    sda info posterior.zarr check=true
    """

    from ..prior import Prior
    from ..store import check_content, open_dataset

    path = Path(config["path"])
    if config["check"]:
        say(f"{path}: {check_content(path)} shards are as they were written")
        return 0
    if not path.exists() or (path / "prior.json").is_file():
        say(prior_text(Prior.load(config["path"])))
    elif path.suffix in (".csv", ".parquet"):
        say(repr(load_observations(path)))
    else:
        dataset = open_dataset(path)
        if any(str(name).endswith("_std") for name in dataset.data_vars):
            say(repr(load_observations(path)))
        else:
            say(sizes(dataset))
        for name, value in dataset.attrs.items():
            say(f"  {name}: {value}")
    return 0


def expected_cost(overrides: Sequence[str]) -> int:
    """Tells what an assimilation will cost, see `sda.cost`."""

    from ..config import build_prior, compose
    from ..config.options import assimilation_options
    from ..costs import cost

    given = any(word.startswith("out=") for word in overrides)
    config = compose("assimilate", [*overrides, *([] if given else ["out=unused"])])
    if config["task"] != "smooth" or config["smc"]["group"] is not None:
        raise ValueError(
            f"what a run will cost is known for task=smooth without particle steps, got "
            f"task={config['task']}, smc.group={config['smc']['group']}"
        )
    prior = build_prior(config["prior"], context=config["context"])
    names = (
        "members", "time", "guidance", "langevin", "sampler", "steps", "s_max", "s_min", "memory",
        "block", "frames", "device", "dtype", "precision",
    )  # fmt: skip
    options = assimilation_options(config, prior)
    observations = load_observations(config["observations"], prior.layout, prior.standard_names)
    say(str(cost(prior, observations, **{k: options[k] for k in names if k in options})))
    return 0


def prior_text(prior: Any) -> str:
    """What a prior is and how well it denoises, in a few lines."""

    layout = prior.layout
    space = ", ".join(f"{dim} {len(values)}" for dim, values in layout.coords.items()) or "none"
    lines = [
        f"prior {prior.name}: {'Gaussian' if prior.gaussian else 'network'}, "
        f"window {prior.window}, climatology of {prior.climatology.window} states",
        f"  variables: {', '.join(layout.variables)}; space: {space}; dt: {layout.dt:g}",
        f"  hash: {prior.hash}",
    ]
    if prior.context is not None:
        lines.append(f"  conditioned on: {', '.join(prior.context.names)}, give it context=…")
    lines += [f"  {name}: {value}" for name, value in prior.info.items()]
    return "\n".join(lines)
