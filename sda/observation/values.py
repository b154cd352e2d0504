"""Observed values and their standard deviations, brought to the shape of a domain."""

from collections.abc import Mapping
from typing import Any

import numpy as np

from .domain import Domain
from .operator import known


def deviations(std: Any, domain: Domain) -> np.ndarray:
    """Standard deviations, broadcast to the shape of a domain."""

    if isinstance(std, Mapping):
        known("variables in std", std, domain.variables)
        if missing := [name for name in domain.variables if name not in std]:
            raise ValueError(f"std names {list(std)}, but not the observed {missing}")
        values = np.array([std[name] for name in domain.rows()["variable"]], dtype=np.float64)
        return values.reshape(domain.shape)

    return broadcast("std", np.asarray(std, dtype=np.float64), domain.shape)


def broadcast(name: str, values: np.ndarray, shape: tuple[int, ...]) -> np.ndarray:
    """An array broadcast to a shape, or a clear error."""

    try:
        return np.broadcast_to(values, shape)
    except ValueError as error:
        raise ValueError(
            f"{name} of shape {values.shape} does not broadcast to the observed values {shape}"
        ) from error
