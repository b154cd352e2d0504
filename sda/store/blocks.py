"""A posterior's arrays on disk: made empty, then written one block of members at a time.

A block is one shard, hence one file per variable and chunk of time; a member is one chunk.
"""

import os
import shutil
from collections.abc import Mapping, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from pathlib import Path
from typing import Any

import numpy as np

from dynamics.files import files, mark, sync, sync_tree
from dynamics.layout import Layout

from ..shards import grid, write_block
from .replacing import beside


def create(
    path: Path,
    layout: Layout,
    time: np.ndarray,
    members: int,
    block: int,
    attrs: Mapping[str, Any],
    dtype: str,
    frames: int | None = None,
) -> None:
    """Makes an empty posterior where nothing stands.

    It is made beside and moved into place, so that no half-made store is ever seen.
    """

    import zarr

    path.parent.mkdir(parents=True, exist_ok=True)
    fresh = beside(path)
    try:
        group: Any = zarr.create_group(fresh, zarr_format=3, attributes=dict(attrs))
        template = layout.to_dataset(np.empty((0, len(time), *layout.shape)), time=time)
        coords = {str(name): coord for name, coord in template.coords.items()}
        for name, coord in coords.items():
            values = np.arange(members) if name == "member" else coord.values
            array = group.create_array(
                name,
                shape=values.shape,
                dtype=values.dtype,
                dimension_names=tuple(map(str, coord.dims)),
                attributes=dict(coord.attrs),
            )
            array[:] = values
        space = layout.shape[1:]
        shard = min(block, members)
        for name in layout.variables:
            group.create_array(
                name,
                shape=(members, len(time), *space),
                chunks=(1, frames or len(time), *space),
                shards=(shard, frames or len(time), *space),
                dtype=dtype,
                # Turbulence in single precision shrinks by 8 %, at four times the time.
                compressors=None,
                fill_value=float("nan"),
                dimension_names=("member", "time", *layout.dims),
                attributes=layout.attributes(name) | layout.auxiliary(),
            )
        sync_tree(fresh)
        os.rename(fresh, path)
        sync(path.parent)
    finally:
        shutil.rmtree(fresh, ignore_errors=True)


def write_shards(
    place: Path, variables: Sequence[str], k: int, block: range, trajectories: np.ndarray
) -> dict[str, Any]:
    """Writes one block of members.

    Arguments:
        place: The Zarr group.
        variables: The variables.
        k: The index of the block.
        block: Its members.
        trajectories: The members, with shape `(member, time, channel, *space)`.

    Returns:
        The size and checksum of each file, by variable and by path within the block.
    """

    marks = {}
    with ThreadPoolExecutor(max_workers=1) as disk:
        under_way: list[Future[None]] = []
        for i, name in enumerate(variables):
            # One shard holds the block: c/<block>/0/0/… What an earlier run left of it, perhaps
            # half, must not be read while it is replaced.
            shard = place / name / "c" / str(k)
            shutil.rmtree(shard, ignore_errors=True)
            if form := grid(place, name):
                values = trajectories[:, :, i]
                marks[name], more = write_block(place, name, k, values, form, disk)
                under_way += more
                continue
            import zarr

            array: Any = zarr.open_group(place, mode="r+", zarr_format=3)[name]
            for first in range(0, array.shape[1], array.chunks[1]):
                times = slice(first, first + array.chunks[1])
                part = trajectories[:, times, i].astype(array.dtype, copy=False)
                array[block.start : block.stop, times] = part
            sync_tree(shard)
            marks[name] = {str(f.relative_to(shard)): mark(f) for f in files(shard)}
        for each in under_way:
            each.result()
    return marks


def split(members: int, block: int) -> list[range]:
    """The members of each block."""
    return [range(first, min(first + block, members)) for first in range(0, members, block)]
