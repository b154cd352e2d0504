"""Builds what a configuration describes: systems, operators, observations, priors.

Nothing in a configuration names Python code: objects are built through the registries here.
"""

from collections.abc import Callable, Mapping, Sequence
from functools import partial
from operator import attrgetter
from typing import TYPE_CHECKING, Any

from .rules import POINTWISE
from .text import hint

if TYPE_CHECKING:
    import xarray as xr

    from dynamics.layout import Layout
    from dynamics.system import System

    from ..observation import Observations, Operator
    from ..prior import Prior

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

    from .. import observation as o

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

    from ..observation import Observations, observe
    from ..observing import generate

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

    from ..cf import open_like, prepare
    from ..prior import GaussianPrior, Prior

    if config["source"] == "gaussian":
        return GaussianPrior.fit(prepare(config["data"]), config["window"]).to(device)
    prior = Prior.load(config["source"], device)
    if context is not None:
        prior = prior.given(open_like(context, None))
    return prior.with_network(torch.float32, compiled=True) if config.get("compile") else prior
