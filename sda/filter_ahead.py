"""Cycles sampled together: all that are observed alike, as far as their observations are known.

A cycle that carries nothing depends on the observations of its window alone. Where these are all
in, as in a finished set, nothing needs to wait for the cycle before: members of several cycles are
members of one batch, each with the observed values of its own cycle. Small networks take little
longer for four cycles than for one. The noise of a member is that of its seed, number and cycle:
the analyses are those of one cycle after the other, up to what batched products round otherwise.
"""

from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

import numpy as np
import torch

from .observation.recent import Piece, Window
from .sampling import SAMPLERS, Diverged, MemberNoise, integrate, log_levels

if TYPE_CHECKING:
    from .filter_cycles import Cycles


def alike(cycles: "Cycles", cycle: int, pieces: Sequence[Piece], end: int) -> list[Window]:
    """The windows of a cycle and of those that follow it, as long as they are observed alike.

    Arguments:
        cycles: The filter.
        cycle: The first cycle.
        pieces: The observations, with those of all the windows.
        end: The cycle before which all observations are known.
    """

    found: list[Window] = []
    most = cycles.together // cycles.members
    for k in range(cycle, min(end, cycle + most)):
        step = k * cycles.every
        window = Window(pieces, cycles.layout, cycles.time(0), step, cycles.history)
        same = not found or window.signature == found[0].signature
        if window.signature is None or not len(window) or not same:
            break
        found.append(window)

    return found


@torch.no_grad()
def sample_alike(
    cycles: "Cycles", windows: Sequence[Window], guided: Any, streams: Sequence[tuple[int, ...]],
    keep: int, options: dict[str, Any],
) -> list[np.ndarray] | None:  # fmt: skip
    """Samples the ends of windows that are observed alike.

    Arguments:
        cycles: The filter.
        windows: The windows.
        guided: The guided denoiser of each of them.
        streams: The stream of noise of each.
        keep: The number of states to keep of each.
        options: The options of `sda.sampling.sample`.

    Returns:
        The states of each window in physical units, `(member, keep, channel, *space)`, or None if a
        member diverged.
    """

    options = dict(options)
    place = {name: options.pop(name) for name in ("dtype", "device")}
    levels = log_levels(*(options.pop(name) for name in ("steps", "s_max", "s_min")))
    sampler = SAMPLERS[options.pop("sampler")](levels)
    noise = MemberNoise(cycles.seed, [], **place)
    for stream in streams:
        each = MemberNoise(cycles.seed, range(cycles.members), *stream, **place)
        noise.generators += each.generators
    y = guided.likelihood.y
    try:
        values = [window.seen(cycles.prior, **place) for window in windows]
        guided.likelihood.y = torch.stack(values).repeat_interleave(cycles.members, dim=0)
        x = guided.start(float(levels[0]), len(noise.generators), noise)
        x = integrate(guided, x, sampler, noise, **options)
    except Diverged:
        return None
    finally:
        guided.likelihood.y = y
    parts = x[:, -keep:].split(cycles.members)

    return [
        cycles.prior.states(part, window.times[-keep:]).cpu().numpy()
        for part, window in zip(parts, windows, strict=True)
    ]
