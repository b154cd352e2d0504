"""The arguments of assimilation and of training that a configuration holds."""

from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from ..prior import Prior


def assimilation_options(config: Mapping[str, Any], prior: "Prior") -> dict[str, Any]:
    """The arguments of `sda.assimilate` in a configuration of the verb."""

    import numpy as np

    from ..smc import ParticleStep

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
    name = levels.pop("name")
    options: dict[str, Any] = {"sampler": "xeab" if name == "default" else name}
    # What is not given is left to the task.
    options |= {key: value for key, value in levels.items() if value is not None}
    guidance = {name: v for name, v in config["guidance"].items() if v is not None}
    options["guidance"] = None if guidance["name"] == "default" else guidance
    options["langevin"] = langevin_option(config)

    return options


def langevin_option(config: Mapping[str, Any]) -> Any:
    """Langevin steps: an instance, the name of a preset, or None."""

    from ..langevin import Langevin

    langevin = dict(config["langevin"])
    preset = langevin.pop("preset", None)

    return Langevin(**langevin) if preset is None else None if preset == "none" else preset


def run_training(config: Mapping[str, Any]) -> "Prior":
    """Trains or fits, and saves, the prior of the verb `train`.

    Raises:
        FileExistsError: If the prior exists and neither `overwrite` nor `resume` is given.
        ValueError: If options and data do not fit together.
    """

    from ..budget import size_in_bytes
    from ..cf import prepare
    from ..prior import GaussianPrior
    from ..symmetry import Symmetry

    arguments = dict(config["training"])
    symmetries = [Symmetry(**each) for each in arguments.pop("symmetries")]
    for key in ("climatology", "langevin"):
        arguments[key] = arguments.get(key) or {}
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

    from ..data import NoiseLevels
    from ..training import TrainingOptions, train

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
