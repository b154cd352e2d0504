"""What a long run is made of, chosen from a memory budget."""

import math
from collections.abc import Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import torch

from .long_blocks import Blocks, halo_of, unit_of
from .sampling import SAMPLERS

if TYPE_CHECKING:
    from .langevin import Langevin
    from .prior import Prior

METHODS = ("static", "flow_dependent", "hybrid")
STEPPERS = ("xeab", "ddim", "ddpm")
# The largest matrices that guidance with the pilots' Jacobian makes, see `FlowDependentGuidance`.
DENSE = 2048
# The values of a block below which its overhead counts for more than its matrices.
LIGHT = 512
# A covariance, its decomposition in double precision, and what both need on the way.
DECOMPOSED = 6


@dataclass(frozen=True)
class Plan:
    """What a long run is made of.

    Attributes:
        blocks: The blocks of time.
        batch: The members of a block that are computed together.
        memory: The bytes that this takes.
        arrays: The names of the arrays on disk.
        disk: The bytes of the state on disk.
        result: The bytes of the result.
    """

    blocks: Blocks
    batch: int
    memory: int
    arrays: tuple[str, ...]
    disk: int
    result: int


def plan(
    prior: "Prior",
    length: int,
    members: int,
    *,
    method: str = "static",
    options: Mapping[str, Any] | None = None,
    langevin: "Langevin | None" = None,
    sampler: str = "xeab",
    memory: int | str = "2GiB",
    dtype: torch.dtype = torch.float32,
    frames: int | None = None,
    halo: int | None = None,
) -> Plan:
    """Chooses blocks that fit a memory budget.

    A block is as long as both its halos, which is the least work per state, longer if that is next
    to nothing, and shorter if memory or the matrices of the pilots' Jacobian ask for it.

    Arguments:
        prior: The prior.
        length: The number of states of the trajectory.
        members: The number of members.
        method, options: The guidance.
        langevin: The Langevin steps.
        sampler: The sampler.
        memory: The memory budget.
        dtype: The dtype of the trajectories.
        frames: The states of a block, rounded up (default: chosen).
        halo: The states on either side, rounded up (default: measured, see `sda.long_blocks`).

    Raises:
        ValueError: If the guidance or the sampler does not work block by block, or the budget is
            less than one block needs.
    """

    from .budget import ACTIVATIONS, COPIES, LARGEST_BLOCK, size_in_bytes

    if method not in METHODS:
        raise ValueError(
            f"guidance {method!r} needs the whole trajectory in memory, and {length} states are "
            f"too many: use guidance 'static' (or {', '.join(METHODS[1:])}), or raise memory"
        )
    if sampler not in STEPPERS:
        raise ValueError(
            f"sampler {sampler!r} needs the whole trajectory in memory, and {length} states are "
            f"too many: use {', '.join(STEPPERS)}, or raise memory"
        )
    budget, unit, state = size_in_bytes(memory), unit_of(prior), prior.layout.shape
    item = torch.finfo(dtype).bits // 8
    waves, rows = prior.climatology.matrices

    def needs(core: int, halo: int) -> tuple[int, int]:
        """The bytes of a block, and of each of its members."""

        extent = min(length, core + 2 * halo)
        matrix = 8 * DECOMPOSED * waves * (extent * rows) ** 2
        each = COPIES * extent * math.prod(state) * item
        if method != "static":
            matrix *= 2
            windows = 2 * math.ceil(extent / max(1, prior.window))
            if prior.denoiser is not None:
                each += 4 * ACTIVATIONS * windows * math.prod(state[1:])
        return matrix, each

    def check(core: int, halo: int) -> None:
        if (need := sum(needs(core, halo))) > budget:
            raise ValueError(
                f"memory={memory} is less than one block of time needs: {core} states and {halo} "
                f"on either side of them, of a trajectory of {length} states, take "
                f"{need / 2**20:.3g} MiB. Raise memory to that or more"
            )

    if frames is not None and frames < 1:
        raise ValueError(f"frames must be at least 1, got {frames}")
    # What a block sees is longer than the climatology: a continuation, as the whole trajectory is.
    least = unit * math.ceil(max(prior.climatology.window, prior.window) / unit)
    if frames is None:
        # Before the halo is measured, which takes more than that.
        check(least, least)
    halo = halo_of(prior) if halo is None else unit * math.ceil(halo / unit)
    halo = max(halo, least)
    if frames is not None:
        core = unit * math.ceil(frames / unit)
    else:
        light = LIGHT // math.prod(state) // unit * unit
        core = max(2 * halo, least, light - 2 * halo)
        small = method != "static" and not prior.layout.dims
        while core > least and (
            sum(needs(core, halo)) > budget
            or (small and (core + 2 * halo) * math.prod(state) > DENSE)
        ):
            core -= unit
    check(core, halo)
    matrix, each = needs(core, halo)
    if core + 2 * halo >= length:
        core = length
    batch = max(1, min(members, (budget - matrix) // each, LARGEST_BLOCK))
    batch = math.ceil(members / math.ceil(members / batch))
    arrays = array_names(prior, method, langevin, sampler)
    pilots = int((options or {}).get("pilots", 2)) if method != "static" else 0
    values = length * math.prod(state)
    blocks = Blocks(length, core, halo, unit)
    tables = 0
    if pilots:
        tables = len(blocks.parts) * item * (blocks.extent * math.prod(state)) ** 2

    return Plan(
        blocks, batch, matrix + batch * each, arrays,
        item * values * len(arrays) * (members + pilots) + tables, item * values * members,
    )  # fmt: skip


def array_names(
    prior: "Prior", method: str, langevin: "Langevin | None", sampler: str
) -> tuple[str, ...]:
    """The arrays of a run: noisy states, read and written in turn; their mean; the history."""

    names = ["x0", "x1", "mean"]
    names += [f"past{j}" for j in range(SAMPLERS[sampler].default_order)]
    if langevin is not None:
        names += ["drift", "draw", "jump", "before"]
    if method == "static" and prior.denoiser is not None:
        names.append("residual")

    return tuple(names)
