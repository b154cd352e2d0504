"""The presets in `configs/` and the defaults of the code are one and the same."""

import inspect
from dataclasses import MISSING, fields

import pytest
import yaml

import sda
from sda import config
from sda.assimilation import LEVELS
from sda.data import NoiseLevels
from sda.guidance import METHODS
from sda.langevin import Langevin
from sda.networks import NETWORKS
from sda.sampling import SAMPLERS, sample
from sda.training import TrainingOptions

# Networks whose options are a set-up's own.
OWN = {"gated_kolmogorov32", "gated_toy"}


def preset(group, option):
    return yaml.safe_load((config.folder() / group / f"{option}.yaml").read_text(encoding="utf-8"))


def plain(value):
    """Lists and tuples are the same in a configuration."""
    return list(value) if isinstance(value, tuple) else value


def defaults(function):
    parameters = inspect.signature(function).parameters.values()
    return {p.name: plain(p.default) for p in parameters if p.default is not p.empty}


def options(group):
    return {option: preset(group, option) for option in config.groups()[group]}


def test_langevin():
    assert Langevin(**preset("langevin", "vectors")) == Langevin.for_vectors()
    assert Langevin(**preset("langevin", "fields")) == Langevin.for_fields()


def test_guidance():
    found = options("guidance")
    for option, content in found.items():
        if (name := content.pop("name")) not in METHODS:
            assert option == "default"
            continue
        known = {}
        for each in reversed(METHODS[name].__mro__):
            known |= defaults(each.__init__)
        assert content == {key: known[key] for key in content}, option
    assert set(METHODS) <= set(found)


def test_networks():
    for option, content in options("network").items():
        if (name := content.pop("name")) in NETWORKS:
            known = defaults(NETWORKS[name].__init__)
            assert set(content) == set(known), option
            assert option in OWN or content == known


def test_samplers():
    for known in (defaults(sample), defaults(sda.assimilate) | LEVELS):
        for option, content in options("sampler").items():
            if option == "default":
                assert {v for name, v in content.items() if name != "name"} == {None}
                continue
            assert content["name"] == option and option in SAMPLERS
            assert content["s_max"] == known["s_max"] and content["s_min"] == known["s_min"]
        assert preset("sampler", known["sampler"])["steps"] == known["steps"]


def test_training():
    content = preset("training", "default")
    levels = NoiseLevels(tuple(content.pop("core")), tuple(content.pop("tail")), content["share"])
    assert levels == NoiseLevels()
    known = {
        each.name: plain(each.default)
        for each in fields(TrainingOptions)
        if each.default is not MISSING
    }
    assert {key: content[key] for key in content if key in known} == {
        key: known[key] for key in known if key != "seed"
    }
    # All other presets have the same keys.
    for option, other in options("training").items():
        assert set(other) == set(content) | {"core", "tail"}, option


# What a preset sets apart: the size of the shipped prior, the noise of the published set-up.
@pytest.mark.parametrize(
    ("option", "own"),
    [
        ("lorenz63", {"noise": True}),
        ("lorenz96", {"noise": True}),
        ("kuramoto_sivashinsky", {}),
        ("kolmogorov", {"size": 32}),
        ("quasi_geostrophic", {}),
        ("gyre", {}),
        ("shallow_water", {}),
        ("toy_weather", {}),
    ],
)
def test_systems(option, own):
    content = preset("system", option)
    system = config.build_system(content)
    assert system.config() == type(system)(**own).config()
    assert set(content) == {"name", *defaults(type(system).__init__)}
