r"""Climatologies of short records, inflated to what they miss in years beside these.

A few years leave few independent states. The seasonal cycle, the mean and the EOFs follow them, so
that the variance about these is too small for any other year, and that beyond the leading EOFs,
which are the ones that fit best by construction, is many times too small. Analyses are then too
sure. Cross-validation measures it: cycle, mean and EOFs are fitted without one part of the record
at a time, and the squares of that part's anomalies are compared with the variances expected,

.. math:: f_g = \max\Bigl(1, \sum_k \sum_{i \in k} \| P_g^{(k)} z_i^{(k)} \|^2 \Big/
    \sum_k n_k \operatorname{tr} P_g^{(k)} \Sigma^{(k)} \Bigr),

for the leading EOFs, the others, and all directions that are left (g), each of which is inflated by
its factor. Climatologies without EOFs have one factor for all.
"""

import math
from collections.abc import Iterator, Mapping
from typing import Any

import numpy as np
import torch
import xarray as xr

from dynamics.layout import Layout

from .cf.seasonal import SeasonalCycle
from .climatology import Climatology
from .covariance_eof import EofCovariance

# The groups of directions of a climatology in EOFs; of any other, all are one.
GROUPS = ("coupled", "own", "rest")
ALL = "all"


def cross_validate(
    dataset: xr.Dataset,
    layout: Layout,
    folds: int,
    cycle: SeasonalCycle | None = None,
    **options: Any,
) -> dict[str, float]:
    """By what factors variances are larger where a climatology was not fitted than where it was.

    Arguments:
        dataset: Stationary anomalies, in memory at once. Parts are members, or blocks of time of
            the only one.
        layout: Their layout.
        folds: The number of parts, of a year each or of several.
        cycle: The seasonal cycle that was removed, which is fitted again without each part.
        options: Those of `Climatology.fit`.

    Returns:
        The factors, at least one, of the groups `coupled`, `own` and `rest`, or of `all`.

    Raises:
        ValueError: If there are less than two parts, or fewer states than parts.
    """

    states = layout.to_array(dataset).astype(np.float64)
    time = np.asarray(dataset["time"].values, dtype=np.float64)
    if folds < 2 or max(len(states), len(time) if len(states) == 1 else 0) < folds:
        raise ValueError(
            f"folds must be at least 2 and at most the parts there are, got {folds} of "
            f"{len(states)} members of {len(time)} states"
        )
    expected: dict[str, float] = {}
    found: dict[str, float] = {}
    for kept, held in split(states, time, folds):
        if cycle is not None:
            basis = [cycle.basis(t) for _, t in kept]
            fitted, *_ = np.linalg.lstsq(
                np.concatenate(basis), np.concatenate([x.reshape(len(x), -1) for x, _ in kept]),
                rcond=None,
            )  # fmt: skip
            fitted = fitted.reshape(-1, *layout.shape)
            kept, held = (
                [(x - np.tensordot(cycle.basis(t), fitted, axes=1), t) for x, t in part]
                for part in (kept, held)
            )
        climatology = fit(layout, np.concatenate([x for x, _ in kept]), options)
        covariance = climatology.covariance(1, torch.float64)
        out = torch.from_numpy(np.concatenate([x for x, _ in held]))
        square = covariance.transform(climatology.normalise(out)[:, None]).square().sum(0)
        for name, index in groups(covariance):
            variance = (covariance.eigenvalues * covariance.weights)[index].sum()
            expected[name] = expected.get(name, 0.0) + len(out) * float(variance)
            found[name] = found.get(name, 0.0) + float(square[index].sum())

    return {name: max(1.0, found[name] / value) for name, value in expected.items() if value > 0}


def inflate(climatology: Climatology, factors: Mapping[str, float]) -> Climatology:
    """A climatology with variances larger by factors, see `cross_validate`.

    Raises:
        ValueError: If a factor is of no group of the climatology, or not positive.
    """

    known = GROUPS if "0.rest" in climatology.moments else (ALL,)
    if unknown := [name for name in factors if name not in known]:
        raise ValueError(
            f"a {climatology.kind} climatology has the groups {list(known)}, got {unknown}"
        )
    if any(not factor > 0 for factor in factors.values()):
        raise ValueError(f"factors must be positive, got {dict(factors)}")
    # Square roots of covariances in the one case, standard deviations in the other.
    moments = {
        name: tensor * math.sqrt(factors.get(name.partition(".")[2], 1.0))
        for name, tensor in climatology.moments.items()
    }
    scale = climatology.scale * math.sqrt(factors.get(ALL, 1.0))

    return Climatology(
        climatology.layout, climatology.window, climatology.mean, scale, climatology.kind, moments
    )


Part = list[tuple[np.ndarray, np.ndarray]]


def split(states: np.ndarray, time: np.ndarray, folds: int) -> Iterator[tuple[Part, Part]]:
    """All parts but one, and that one: members, or blocks of time of a single member."""

    single = len(states) == 1
    edges = np.linspace(0, len(time) if single else len(states), folds + 1).round().astype(int)
    if single:
        parts = [(states[0, a:b], time[a:b]) for a, b in zip(edges[:-1], edges[1:], strict=True)]
        for k in range(folds):
            yield parts[:k] + parts[k + 1 :], [parts[k]]
        return
    every = [(x, time) for x in states]
    for a, b in zip(edges[:-1], edges[1:], strict=True):
        yield every[:a] + every[b:], every[a:b]


def fit(layout: Layout, states: np.ndarray, options: Mapping[str, Any]) -> Climatology:
    """The climatology of single states `(time, channel, *space)`."""

    data = layout.to_dataset(states[None], layout.times(len(states)))
    given = {name: value for name, value in options.items() if name != "layout"}

    return Climatology.fit(data, 1, layout=layout, **given)


def groups(covariance: Any) -> list[tuple[str, torch.Tensor]]:
    """The coefficients of a single state's covariance in each group of directions."""

    size = len(covariance.eigenvalues)
    if not isinstance(covariance, EofCovariance):
        return [(ALL, torch.arange(size))]
    own, start = torch.full((size,), -1), 0
    for rotation in covariance.rotations:
        count, directions, _ = rotation.values.shape
        each = torch.full((count, directions), 2)
        each[:, : rotation.k] = 1
        each[:, : rotation.r] = 0
        flat = each.flatten().repeat_interleave(2 if rotation.complex else 1)
        own[start : start + len(flat)] = flat
        start += len(flat)

    return [(name, (own == number).nonzero()[:, 0]) for number, name in enumerate(GROUPS)]
