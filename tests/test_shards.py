"""Shards written in one pass are those that Zarr reads."""

from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import numpy as np
import pytest
import zarr

from dynamics.files import mark
from sda import shards
from sda.shards import grid, write_block


def make(path: Path, shape: tuple[int, ...], shard: int, frames: int, **options: object) -> None:
    group = zarr.create_group(path, zarr_format=3)
    group.create_array(
        "u",
        **{
            "shape": shape,
            "chunks": (1, frames, *shape[2:]),
            "shards": (shard, frames, *shape[2:]),
            "dtype": "float32",
            "fill_value": float("nan"),
            "compressors": None,
            **options,
        },
    )


def write(place: Path, k: int, values: np.ndarray) -> dict[str, list[int]]:
    form = grid(place, "u")
    assert form is not None
    with ThreadPoolExecutor(1) as disk:
        marks, under_way = write_block(place, "u", k, values, form, disk)
        for each in under_way:
            each.result()

    return marks


@pytest.mark.parametrize("portion", [64, 2**23])
@pytest.mark.parametrize(
    ("shape", "shard", "frames", "dtype"),
    [
        ((6, 5), 3, 5, "float64"),  # vectors
        ((7, 5, 4), 3, 5, "float32"),  # the last block has one member
        ((4, 7, 4, 6), 4, 3, "float32"),  # the last times are fewer
    ],
)
def test_zarr_reads_what_was_written(
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    shape: tuple[int, ...],
    shard: int,
    frames: int,
    dtype: str,
    portion: int,
) -> None:
    monkeypatch.setattr(shards, "PORTION", portion)
    make(tmp_path / "store", shape, shard, frames, dtype=dtype)
    # Channels last: the variable is strided, as in an array of trajectories.
    values = np.random.default_rng(0).standard_normal((*shape, 2)).astype(dtype)[..., 1]
    blocks = range(-(-shape[0] // shard))
    for k in reversed(blocks):
        part = values[k * shard : (k + 1) * shard]
        marks = write(tmp_path / "store", k, part)
        folder = tmp_path / "store" / "u" / "c" / str(k)
        assert len(marks) == -(-shape[1] // frames)
        assert all(mark(folder / part) == marked for part, marked in marks.items())
        array = zarr.open_group(tmp_path / "store", mode="r")["u"][:]
        np.testing.assert_array_equal(array[k * shard :], values[k * shard :])
        assert np.isnan(array[: k * shard]).all()


def test_a_member_is_read_without_its_neighbours(tmp_path: Path) -> None:
    make(tmp_path / "store", (4, 5, 8), 4, 5)
    values = np.arange(160.0).reshape(4, 5, 8)
    write(tmp_path / "store", 0, values)
    shard = tmp_path / "store" / "u" / "c" / "0" / "0" / "0"
    content = bytearray(shard.read_bytes())
    content[: 5 * 8 * 4] = b"\xff" * (5 * 8 * 4)
    shard.write_bytes(content)
    array = zarr.open_group(tmp_path / "store", mode="r")["u"]

    np.testing.assert_array_equal(array[1:], values[1:])
    assert np.isnan(array[0]).all()


def test_shards_of_another_kind_are_left_to_zarr(tmp_path: Path) -> None:
    kinds = {
        "compressed": {"compressors": "auto"},
        "integers": {"dtype": "int32", "fill_value": 0},
        "no shards": {"shards": None},
        "chunks of two": {"chunks": (2, 5, 8)},
    }
    for name, options in kinds.items():
        make(tmp_path / name, (4, 5, 8), 4, 5, **options)
        assert grid(tmp_path / name, "u") is None, name
