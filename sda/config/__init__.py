"""Configurations: Hydra groups in `configs/`, checked before anything is built.

A verb of the command line has one file, `configs/<verb>.yaml`, whose keys and comments are its
manual. Nouns (system, observing, prior, guidance, sampler, network, training, experiment) are
groups, one folder each, and a published set-up is a file in `experiment`. Overrides are Hydra's,
`key=value` and `group=option`. The working directory never changes.

Nothing in a configuration names Python code: objects are built through the registries of `objects`.
"""

from .composition import compose as compose
from .files import folder as folder
from .files import groups as groups
from .objects import build_observations as build_observations
from .objects import build_operator as build_operator
from .objects import build_prior as build_prior
from .objects import build_system as build_system
from .text import hint as hint
