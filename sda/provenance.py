"""What an ensemble says of how it was made: its settings, its method, what went wrong."""

import dataclasses
import importlib.metadata
import json
from collections.abc import Mapping, Sequence
from datetime import UTC, datetime
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from .langevin import Langevin
    from .prior import Prior
    from .smc import ParticleStep


def provenance(settings: Mapping[str, Any], prior: "Prior") -> dict[str, Any]:
    """What a reader of a posterior wants to know of how it was made."""

    packages = ("sda-torch", "torch", "azula", "xarray", "zarr")
    versions = {}
    for package in packages:
        try:
            versions[package] = importlib.metadata.version(package)
        except importlib.metadata.PackageNotFoundError:
            versions[package] = "not installed"
    sampler, guidance = settings["sampler"], settings["guidance"]["name"]

    return {
        "title": "Posterior ensemble of a trajectory given observations",
        "source": f"score-based data assimilation, sda-torch {versions['sda-torch']}",
        "method": f"{guidance} guidance, {sampler['sampler']} sampler, {sampler['steps']} steps",
        "task": settings["task"],
        "seed": settings["seed"],
        "prior": str(getattr(prior, "name", type(prior).__name__)),
        "prior_hash": settings["prior"],
        "observations_hash": settings["observations"],
        "created": datetime.now(UTC).isoformat(timespec="seconds"),
        "versions": json.dumps(versions),
        # By which others may call the variables that they have observed.
        "standard_names": json.dumps(dict(getattr(prior, "standard_names", {}))),
    }


def plain(steps: "Langevin | ParticleStep | None") -> dict[str, Any] | None:
    """Langevin or particle steps as plain JSON types."""

    if steps is None:
        return None
    values = {
        each.name: getattr(steps, each.name) for each in dataclasses.fields(steps) if each.compare
    }
    # JSON has no infinity.
    return {name: repr(v) if isinstance(v, float) else v for name, v in values.items()}


def shortened(messages: Sequence[str], most: int = 3) -> str:
    """The first few messages, and how many more there are."""

    more = f"; and {len(messages) - most} more" if len(messages) > most else ""
    return "; ".join(messages[:most]) + more
