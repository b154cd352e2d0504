"""Posterior stores: nothing finished is lost, nothing foreign is touched."""

import errno
import json
import os
import threading

import numpy as np
import pytest
import xarray as xr

from dynamics.layout import Layout
from sda.store import PosteriorMemory, PosteriorWriter, check_target, is_posterior, open_dataset

LAYOUT = Layout(
    variables=("u", "v"),
    dt=0.2,
    coords={"y": np.arange(4) + 0.5, "x": np.arange(6) + 0.5},
    period={"y": 4, "x": 6},
    units={"u": "m s-1"},
)
SETTINGS = {"seed": 1, "guidance": {"name": "static"}, "time": [0.0, 0.8, 5]}
MEMBERS, BLOCK = 10, 4


def states(members=MEMBERS):
    return np.random.default_rng(0).standard_normal((members, 5, *LAYOUT.shape)).astype("float32")


def writer(path, settings=SETTINGS, members=MEMBERS, block=BLOCK, **options):
    attrs = {"title": "a posterior"}
    return PosteriorWriter(
        path, LAYOUT, LAYOUT.times(5), members, block, settings, attrs, **options
    )


def fill(sink, x, blocks=None):
    for k in sink.unfinished if blocks is None else blocks:
        sink.put(k, x[sink.blocks[k].start : sink.blocks[k].stop])


def test_round_trip(tmp_path):
    x = states()
    with writer(tmp_path / "p.zarr") as sink:
        fill(sink, x)
    dataset = open_dataset(tmp_path / "p.zarr")
    assert dict(dataset.sizes) == {"member": 10, "time": 5, "y": 4, "x": 6}
    assert np.array_equal(LAYOUT.to_array(dataset), x)
    assert dataset.u.attrs["units"] == "m s-1"
    assert dataset.attrs["status"] == "complete"
    assert Layout.from_dataset(dataset).to_json() == LAYOUT.to_json() | {
        "units": {"u": "m s-1", "v": "1", "y": "1", "x": "1"},
        "long_names": {n: n for n in ("u", "v", "y", "x")},
    }


def test_a_run_that_was_to_replace_another_is_resumed(tmp_path):
    """By its own settings alone, and without what a kill has left of it."""

    path, other = tmp_path / "p.zarr", {**SETTINGS, "seed": 2}
    with writer(path) as sink:
        fill(sink, states())
    for choice in ("overwrite", "resume"):
        with pytest.raises(KeyboardInterrupt), writer(path, other, **{choice: True}):
            raise KeyboardInterrupt
    sink = writer(path, other, resume=True)
    sink.lock.release()  # as if it were killed: what is half made stays
    sink.pool.shutdown()
    with pytest.raises(ValueError, match="seed was 1, now 3"):
        writer(path, {**SETTINGS, "seed": 3}, resume=True)
    assert np.array_equal(LAYOUT.to_array(open_dataset(path)), states())
    with writer(path, other, resume=True) as sink:
        fill(sink, -states())
    assert np.array_equal(LAYOUT.to_array(open_dataset(path)), -states())
    assert [each.name for each in tmp_path.iterdir()] == ["p.zarr"]
    # What would end so again is not resumed, and what goes on is no replacement.
    with pytest.raises(FloatingPointError), writer(path, SETTINGS, overwrite=True):
        raise FloatingPointError
    with pytest.raises(ValueError, match="seed was 2, now 1"):
        writer(path, SETTINGS, resume=True)
    assert [each.name for each in tmp_path.iterdir()] == ["p.zarr"]


def test_memory_is_the_same_dataset(tmp_path):
    x = states()
    memory = PosteriorMemory(
        LAYOUT, LAYOUT.times(5), MEMBERS, BLOCK, SETTINGS, {"title": "a posterior"}
    )
    for sink in (memory, writer(tmp_path / "p.zarr")):
        with sink:
            fill(sink, x, blocks=(2, 0))
            part = x[4:8].copy()
            part[[1, 2]] = np.nan
            sink.put(1, part, {6: "member 6 diverged", 5: "member 5 diverged"})
    xr.testing.assert_identical(memory.dataset(), open_dataset(tmp_path / "p.zarr").load())
    assert memory.dataset().attrs["failed_members"] == [5, 6]
    assert memory.dataset().attrs["failures"] == ["member 5 diverged", "member 6 diverged"]
    assert memory.dataset().attrs["status"] == "complete, 2 failed"
    assert np.isnan(memory.dataset().u).any(("time", "y", "x")).values.nonzero()[0].tolist() == [
        5,
        6,
    ]


def test_one_block_is_one_file_per_variable(tmp_path):
    with writer(tmp_path / "p.zarr") as sink:
        fill(sink, states())
    for name in LAYOUT.variables:
        files = [f for f in (tmp_path / "p.zarr" / name / "c").rglob("*") if f.is_file()]
        assert len(files) == len(sink.blocks) == 3


def test_a_member_is_a_chunk(tmp_path):
    with writer(tmp_path / "p.zarr") as sink:
        fill(sink, states())
    assert open_dataset(tmp_path / "p.zarr").u.encoding["chunks"] == (1, 5, 4, 6)


def test_converts_to_netcdf(tmp_path):
    with writer(tmp_path / "p.zarr") as sink:
        fill(sink, states())
    dataset = open_dataset(tmp_path / "p.zarr")
    dataset.to_netcdf(tmp_path / "p.nc")
    xr.testing.assert_equal(open_dataset(tmp_path / "p.nc"), dataset)


def test_incomplete_store_reads_and_resumes(tmp_path):
    path, x = tmp_path / "p.zarr", states()
    with writer(path) as sink:
        fill(sink, x, blocks=[1])
    half = open_dataset(path)
    assert half.attrs["status"] == "incomplete: 4 of 10 members"
    assert np.isnan(half.u.isel(member=[0, 1, 2, 3, 8, 9])).all()
    assert np.array_equal(LAYOUT.to_array(half.isel(member=slice(4, 8))), x[4:8])

    # The blocks are those that the store has, whatever the new run would take.
    with writer(path, block=3, resume=True) as sink:
        assert sink.unfinished == [0, 2]
        fill(sink, x)
    assert np.array_equal(LAYOUT.to_array(open_dataset(path)), x)


def test_resume_without_a_store_starts_one(tmp_path):
    with writer(tmp_path / "new" / "p.zarr", resume=True) as sink:
        assert sink.unfinished == [0, 1, 2]


def test_resume_names_what_differs(tmp_path):
    writer(tmp_path / "p.zarr").close()
    with pytest.raises(ValueError, match=r"seed was 1, now 2.*overwrite=true"):
        writer(tmp_path / "p.zarr", {**SETTINGS, "seed": 2}, resume=True)
    with pytest.raises(ValueError, match="guidance was {'name': 'static'}, now {'name': 'mmps'}"):
        writer(tmp_path / "p.zarr", {**SETTINGS, "guidance": {"name": "mmps"}}, resume=True)


def test_existing_posterior(tmp_path):
    path, x = tmp_path / "p.zarr", states()
    with writer(path) as sink:
        fill(sink, x)
    with pytest.raises(FileExistsError, match="overwrite=true.*resume=true"):
        writer(path)
    assert np.array_equal(LAYOUT.to_array(open_dataset(path)), x)
    with pytest.raises(ValueError, match="exclude each other"):
        check_target(path, overwrite=True, resume=True)
    with writer(path, {**SETTINGS, "seed": 2}, overwrite=True) as sink:
        fill(sink, x + 1)
    assert np.array_equal(LAYOUT.to_array(open_dataset(path)), x + 1)
    assert [p.name for p in tmp_path.iterdir()] == ["p.zarr"]


@pytest.mark.parametrize("error", [None, KeyboardInterrupt(), OSError(errno.ENOSPC, "full")])
def test_what_is_to_be_replaced_stays_until_there_is_something_better(tmp_path, error):
    """Neither an error before the first block nor a block of failed members replaces anything."""

    path, x = tmp_path / "p.zarr", states()
    with writer(path) as sink:
        fill(sink, x)

    def run():
        with writer(path, block=5, overwrite=True) as sink:
            sink.put(0, np.full_like(x[:5], np.nan), {i: f"member {i} diverged" for i in range(5)})
            sink.wait()
            assert np.array_equal(LAYOUT.to_array(open_dataset(path)), x)
            if error is not None:
                raise error

    if error is None:
        run()
    else:
        with pytest.raises(type(error)):
            run()
    assert np.array_equal(LAYOUT.to_array(open_dataset(path)), x)
    # What was interrupted can be resumed, by what it has announced.
    note = [".p.zarr.next"] if isinstance(error, KeyboardInterrupt | OSError) else []
    assert sorted(p.name for p in tmp_path.iterdir()) == [*note, "p.zarr"]

    with writer(path, block=5, overwrite=True) as sink:
        sink.put(0, x[:5] + 1)
        sink.wait()
        assert open_dataset(path).attrs["status"] == "incomplete: 5 of 10 members"
    with writer(path, resume=True) as sink:
        assert sink.unfinished == [1]


def test_a_new_store_without_a_block_does_not_stay(tmp_path):
    with pytest.raises(KeyboardInterrupt), writer(tmp_path / "p.zarr"):
        raise KeyboardInterrupt
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize(
    "damage, message",
    [
        (lambda shard: shard.unlink(), r"u/c/1/0/0/0 is missing \(members 4 to 7\)"),
        (
            lambda shard: shard.write_bytes(shard.read_bytes()[:20]),
            r"c/1/0/0/0 has 20 of \d+ bytes",
        ),
        (lambda shard: flip(shard), "has another content than was written"),
    ],
)
def test_a_damaged_shard_is_named_and_sampled_again(tmp_path, damage, message):
    path, x = tmp_path / "p.zarr", states()
    with writer(path) as sink:
        part = x[4:8].copy()
        part[1] = np.nan
        for k in (0, 2):
            fill(sink, x, blocks=[k])
        sink.put(1, part, {5: "member 5 diverged"})
    damage(path / "u" / "c" / "1" / "0" / "0" / "0")

    if "another content" not in message:  # that takes reading all of it
        with pytest.warns(RuntimeWarning, match=message):
            dataset = open_dataset(path)
        assert dataset.attrs["status"].startswith("damaged: u/c/1/0/0/0")
        assert np.array_equal(LAYOUT.to_array(dataset.isel(member=slice(4))), x[:4])
    with pytest.warns(RuntimeWarning, match=message):
        with writer(path, resume=True) as sink:
            assert sink.unfinished == [1] and not sink.failures
            assert open_dataset(path).attrs["status"] == "incomplete: 6 of 10 members"
            fill(sink, x)
    mended = open_dataset(path)
    assert mended.attrs["status"] == "complete" and "shards" not in mended.attrs
    assert np.array_equal(LAYOUT.to_array(mended), x)
    with writer(path, resume=True) as sink:
        assert not sink.unfinished


def flip(shard):
    """Changes one bit in the middle of a file."""

    content = bytearray(shard.read_bytes())
    content[len(content) // 2] ^= 1
    shard.write_bytes(bytes(content))


def test_a_block_of_failed_members_is_not_damaged(tmp_path):
    """Zarr writes no file where all is NaN."""

    path, x = tmp_path / "p.zarr", states()
    with writer(path) as sink:
        fill(sink, x, blocks=[0, 2])
        sink.put(1, np.full_like(x[4:8], np.nan), {i: f"member {i} diverged" for i in range(4, 8)})
    assert open_dataset(path).attrs["status"] == "complete, 4 failed"
    with writer(path, resume=True) as sink:
        assert not sink.unfinished


@pytest.mark.parametrize("kind", ["folder", "file", "zarr", "link"])
@pytest.mark.parametrize("option", ["overwrite", "resume"])
def test_foreign_things_are_left_alone(tmp_path, kind, option):
    path = tmp_path / "p.zarr"
    if kind == "folder":
        path.mkdir()
        (path / "thesis.tex").write_text("precious")
    elif kind == "file":
        path.write_text("precious")
    elif kind == "link":
        path.symlink_to(tmp_path / "nowhere")
    else:
        xr.Dataset({"u": ("x", [1.0])}).to_zarr(path, zarr_format=3, consolidated=False)
    before = sorted(tmp_path.rglob("*"))
    with pytest.raises(FileExistsError, match="not a posterior"):
        writer(path, **{option: True})
    assert sorted(tmp_path.rglob("*")) == before and not is_posterior(path)


def test_writes_while_the_next_block_is_sampled(tmp_path, monkeypatch):
    go = threading.Event()
    write = PosteriorWriter.write
    monkeypatch.setattr(PosteriorWriter, "write", lambda *a: (go.wait(10), write(*a)))
    with writer(tmp_path / "p.zarr") as sink:
        sink.put(0, states()[:4])  # returns at once although the disk is busy
        assert sink.finished == set() and sink.unfinished == [1, 2]
        go.set()
        sink.put(1, states()[4:8])
        assert sink.finished >= {0}


def test_full_disk(tmp_path, monkeypatch):
    path, x = tmp_path / "p.zarr", states()
    write, full = PosteriorWriter.write, {"now": True}

    def fails_on_second(self, k, trajectories):
        if k == 1 and full["now"]:
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC), str(path / "u/c/1/0/0/0"))
        write(self, k, trajectories)

    monkeypatch.setattr(PosteriorWriter, "write", fails_on_second)
    with pytest.raises(
        OSError, match=r"disk is full while writing members 4 to 7: 4 of 10"
    ) as info:
        with writer(path) as sink:
            fill(sink, x)
    assert info.value.errno == errno.ENOSPC and "resume=true" in str(info.value)
    assert np.array_equal(LAYOUT.to_array(open_dataset(path).isel(member=slice(0, 4))), x[:4])

    full["now"] = False
    with writer(path, resume=True) as sink:
        fill(sink, x)
    assert np.array_equal(LAYOUT.to_array(open_dataset(path)), x)


def test_a_half_written_block_is_written_again(tmp_path):
    """A shard on disk does not count until the attributes say so."""

    path, x = tmp_path / "p.zarr", states()
    with writer(path) as sink:
        fill(sink, x)
    content = json.loads((path / "zarr.json").read_text())
    content["attributes"]["finished_blocks"] = [0]
    (path / "zarr.json").write_text(json.dumps(content))
    shard = path / "v" / "c" / "1" / "0" / "0" / "0"
    shard.write_bytes(shard.read_bytes()[:20])
    with writer(path, resume=True) as sink:
        assert sink.unfinished == [1, 2]
        fill(sink, x)
    assert np.array_equal(LAYOUT.to_array(open_dataset(path)), x)


def test_open_dataset_errors(tmp_path):
    with pytest.raises(FileNotFoundError, match="no dataset at"):
        open_dataset(tmp_path / "missing.zarr")
    (tmp_path / "text").write_text("hello")
    with pytest.raises(ValueError, match="neither a Zarr store nor a NetCDF file"):
        open_dataset(tmp_path / "text")
    (tmp_path / "folder").mkdir()
    with pytest.raises(ValueError, match="neither a Zarr store nor a NetCDF file"):
        open_dataset(tmp_path / "folder")


def test_a_linked_store_is_replaced_behind_its_link(tmp_path):
    (tmp_path / "disk").mkdir()
    link = tmp_path / "p.zarr"
    with writer(tmp_path / "disk" / "p.zarr") as sink:
        fill(sink, states())
    link.symlink_to(tmp_path / "disk" / "p.zarr")
    with writer(link, overwrite=True) as sink:
        fill(sink, 2 * states())
    assert link.is_symlink()
    assert np.array_equal(LAYOUT.to_array(open_dataset(tmp_path / "disk" / "p.zarr")), 2 * states())
    assert {path.name for path in tmp_path.rglob("*.zarr*")} == {"p.zarr"}


@pytest.mark.parametrize("content", ["[]", '{"attributes": {"kind": "sda posterior"}}'])
def test_a_store_whose_records_are_lost_is_left_alone(tmp_path, content):
    with writer(tmp_path / "p.zarr") as sink:
        fill(sink, states())
    (tmp_path / "p.zarr" / "zarr.json").write_text(content)
    for option in ({}, {"overwrite": True}, {"resume": True}):
        with pytest.raises(FileExistsError, match="not a posterior of this package"):
            writer(tmp_path / "p.zarr", **option)
