"""Streams: what comes in is used once, in the order of time, also after a restart."""

import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import pytest
from test_filtering import SYSTEM, between, close, gaussian

from sda.assimilation import assimilate
from sda.filtering import Assimilator, Late
from sda.observation import Observations, Select, observe
from sda.prior import GaussianPrior, Prior
from sda.store import open_dataset
from sda.streams import Folder, Iterated, Store, Table, as_stream

ROOT = Path(__file__).parent.parent


@pytest.fixture(scope="module")
def truth():
    return SYSTEM.simulate(members=1, length=24, seed=9).isel(member=0)


@pytest.fixture(scope="module")
def observations(truth):
    return observe(truth, Select(["position"], every=2), std=0.2, seed=1)


@pytest.fixture(scope="module")
def whole(observations):
    return assimilate(gaussian(16), observations, 3, 2, task="filter")


class Clock:
    """A clock that goes on when somebody sleeps, and lets things happen then."""

    def __init__(self, *events):
        self.now, self.events = 0.0, list(events)

    def __call__(self):
        return self.now

    def sleep(self, seconds):
        self.now += seconds
        if self.events:
            self.events.pop(0)()

    @property
    def options(self):
        return {"clock": self, "sleep": self.sleep}


def assimilator(**options):
    return Assimilator(gaussian(16), 3, 2, every=2, start=0.0, **options)


def test_iterables(observations, whole):
    parts = (between(observations, t, t) for t in observations.times)
    analyses = list(assimilator().run(parts))
    assert [a.attrs["cycle"] for a in analyses] == list(range(12))
    assert all(close(whole.isel(time=[k]), a) for k, a in enumerate(analyses))
    with pytest.raises(TypeError, match="a stream must give Observations, got int"):
        list(assimilator().run([1]))
    stream = Iterated([observations])
    assert as_stream(stream) is stream and len(list(stream)) == 1


def test_a_folder(observations, whole, tmp_path):
    """Files in any form and order, some of them not finished, until the one that ends it."""

    folder, lines, t = tmp_path / "in", [], observations.times
    folder.mkdir()

    def put(first, final, name):
        between(observations, first, final).save(folder / name)

    def half():
        (folder / "c.csv").write_text("time,variable,observation\n3.0,posi")
        (folder / ".hidden.csv").write_text("no observations")
        (folder / "notes.txt").write_text("nor these")
        put(t[4], t[4], "z.parquet")
        put(t[3], t[3], "zz.csv")

    def rest():
        put(t[5], t[7], "part.csv")
        (folder / "part.csv").replace(folder / "c.csv")
        shutil.copy(folder / "z.parquet", folder / "copy.parquet")
        (folder / "bad.csv").write_text("time,variable\n")

    def finish():
        table = between(observations, t[8], t[11])
        table.save(folder / "q.csv")
        (folder / "END").touch()

    put(t[1], t[2], "b.csv")
    put(t[0], t[0], "y.csv")
    clock = Clock(half, rest, finish)
    stream = Folder(folder, report=lines.append, **clock.options)
    run = assimilator()
    analyses = list(run.run(stream))
    assert [a.attrs["cycle"] for a in analyses] == list(range(12))
    assert all(close(whole.isel(time=[k]), a) for k, a in enumerate(analyses))
    said = dict.fromkeys(Path(line.split(" is left out")[0]).name for line in lines)
    assert list(said) == ["c.csv", "bad.csv"] and "c.csv is left out so far" in lines[0]
    assert clock.now == 3.0


@pytest.mark.parametrize("suffix", [".csv", ".parquet"])
def test_a_table_that_grows(observations, whole, tmp_path, suffix):
    path, table = tmp_path / f"o{suffix}", observations.to_table()

    def upto(rows, torn=False):
        def write():
            frame = table.iloc[:rows]
            if suffix == ".parquet":
                frame.to_parquet(path)
                return
            text = frame.to_csv(index=False)
            path.write_text(text[:-9] if torn else text)

        return write

    # Rows of the third time come late, but are there when the next look finds the same.
    clock = Clock(upto(2), upto(4, torn=True), lambda: None, lambda: None, upto(12))
    stream = Table(path, idle=10.0, **clock.options)
    run = assimilator()
    analyses = list(run.run(stream))
    assert [a.attrs["cycle"] for a in analyses] == list(range(12))
    assert close(whole.isel(time=[-1]), analyses[-1])
    assert clock.now >= 15.0  # until it was idle for so long

    # Only what is not among the marks is given out again.
    again = Table(path, idle=0.0, **Clock().options)
    again.restore(["[[0, 4]]", "[[7, 7], [9, 9]]"])
    found = np.concatenate([o.times for o in again])
    assert np.allclose(found, observations.times[[5, 6, 8, 10, 11]])


def test_a_store_that_grows(truth, tmp_path):
    path = tmp_path / "o.zarr"
    observed = observe(truth, Select(["position", "wind"], every=2), std=0.2, seed=1)
    dataset = observed.to_dataset().drop_attrs()

    def more(first, final):
        def write():
            part = dataset.isel(time=slice(first, final))
            options = {"append_dim": "time"} if path.exists() else {}
            part.to_zarr(path, zarr_format=3, consolidated=False, **options)

        return write

    def finish():
        more(9, 12)()
        path.with_name("o.zarr.end").touch()

    clock = Clock(more(0, 3), lambda: None, more(3, 9), lambda: None, lambda: None, finish)
    analyses = list(assimilator().run(as_stream(path, **clock.options)))
    assert [a.attrs["cycle"] for a in analyses] == list(range(12))
    assert analyses[0].attrs["observed"] == 2
    exact = assimilate(gaussian(16), observed, 3, 2, task="filter")
    assert close(exact.isel(time=[-1]), analyses[-1])
    again = Store(path, **Clock().options)
    again.restore([repr(float(t)) for t in observed.times[:10]])
    assert [o.times[0] for o in again] == pytest.approx(observed.times[10:])


def test_late_files_are_counted_and_the_rest_goes_on(observations, tmp_path):
    folder, t = tmp_path / "in", observations.times
    folder.mkdir()
    between(observations, t[9], t[10]).save(folder / "a.csv")
    clock = Clock(
        lambda: between(observations, t[0], t[4]).save(folder / "b.csv"),
        lambda: between(observations, t[11], t[11]).save(folder / "c.csv"),
    )
    refused = []
    run = assimilator()
    stream = Folder(folder, idle=5.0, **clock.options)
    analyses = list(run.run(stream, refuse=refused.append))
    # Cycle 11's window holds the states 7 to 22: the files' times 0, 2, 4 and 6 are out of it.
    assert run.refused == 4 and [type(error) for error in refused] == [Late]
    assert [a.attrs["cycle"] for a in analyses][-1] == 11
    expected = assimilator()
    expected.add(between(observations, t[4], t[4]))
    expected.add(between(observations, t[9], t[11]))
    assert close(expected.send(time=t[11]), analyses[-1])


def test_resuming_a_folder_uses_each_file_once(observations, whole, tmp_path):
    folder, out, t = tmp_path / "in", tmp_path / "a.zarr", observations.times
    folder.mkdir()
    for k in range(5):
        between(observations, t[k], t[k]).save(folder / f"{k}.csv")
    with assimilator(out=out) as run:
        assert len(list(run.run(Folder(folder, idle=0.0, **Clock().options)))) == 5
    for k in range(3, 12):
        between(observations, t[k], t[k]).save(folder / f"{k}.csv", overwrite=True)
    (folder / "0.csv").rename(folder / "renamed.csv")
    with assimilator(out=out, resume=True) as run:
        assert len(list(run.run(Folder(folder, idle=0.0, **Clock().options)))) == 7
    assert close(whole, open_dataset(out))


def test_sources_that_are_none(tmp_path):
    with pytest.raises(FileNotFoundError, match="there is no folder of observations"):
        as_stream(tmp_path / "nothing")
    (tmp_path / "x.txt").touch()
    with pytest.raises(ValueError, match="is no stream: expected a folder, a store"):
        as_stream(tmp_path / "x.txt")
    with pytest.raises(ValueError, match="poll and idle must not be negative"):
        Folder(tmp_path, idle=-1.0)
    # Something that is no table is reported, once, and waited for.
    lines = []
    (tmp_path / "o.csv").write_text("a,b\n1,2\n")
    assert list(Table(tmp_path / "o.csv", idle=3.0, report=lines.append, **Clock().options)) == []
    assert len(lines) >= 1 and "time" in lines[0]


def test_the_command_keeps_running_and_goes_on(observations, tmp_path):
    """Stopped by a signal with exit code 130, resumed, ended by a file; late ones cost a line."""

    data = SYSTEM.simulate(members=8, length=64, seed=1)
    GaussianPrior.fit(data, window=12).save(tmp_path / "prior")
    folder, out, t = tmp_path / "in", tmp_path / "a.zarr", observations.times
    folder.mkdir()
    for k in (2, 3, 4):
        between(observations, t[k], t[k]).save(folder / f"{k}.csv")
    command = [
        sys.executable, "-m", "sda.cli", "filter", f"prior={tmp_path / 'prior'}",
        f"stream={folder}", f"out={out}", "members=3", "every=2", "poll=0.05", "time.start=0",
    ]  # fmt: skip
    pipes = {"stdout": subprocess.PIPE, "stderr": subprocess.PIPE, "text": True, "cwd": ROOT}
    process = subprocess.Popen(command, **pipes)
    try:
        deadline = time.time() + 120
        while time.time() < deadline and process.poll() is None:
            if out.exists() and open_dataset(out).sizes["time"] >= 5:
                break
            time.sleep(0.05)
        process.send_signal(signal.SIGTERM)
        lines, errors = process.communicate(timeout=60)
    finally:
        process.kill()
    assert process.returncode == 130
    stopped = open_dataset(out).sizes["time"]
    assert stopped == 5
    assert f"interrupted: {stopped} cycles are finished, resume=true goes on" in errors
    assert "cycle 0, time 0: nothing observed, a forecast; position" in lines
    assert "cycle 3, time 1.8: 1 values observed" in lines
    between(observations, t[5], t[8]).save(folder / "5.csv")
    late = observations.to_table().iloc[[0]].assign(time=-3.6)
    Observations.from_table(late).save(folder / "late.csv")
    other = observations.to_table().iloc[[8]].assign(variable="pressure")
    Observations.from_table(other).save(folder / "other.csv")
    (folder / "END").touch()
    done = subprocess.run([*command, "resume=true"], **pipes, timeout=120)
    assert done.returncode == 0, done.stderr
    assert "1 observations are too late, the first of time -3.6" in done.stderr
    assert "other.csv is left out: the observed variable 'pressure'" in done.stderr
    assert f"{out}: 9 cycles, 1 observations refused" in done.stdout
    assert open_dataset(out).attrs["status"] == "complete: 9 cycles"
    assert "cycle 4" not in done.stdout and "cycle 8, time 4.8: 1 values" in done.stdout
    prior = Prior.load(tmp_path / "prior")
    exact = Assimilator(prior, 3, every=2, start=0.0)
    exact.add(between(observations, t[2], t[8]))
    assert close(exact.send(time=t[8]), open_dataset(out).isel(time=[-1]))
    again = subprocess.run(command, **pipes, timeout=120)
    assert again.returncode == 2 and "give overwrite=true to replace it" in again.stderr


def test_what_stays_unreadable_is_said_once_while_the_stream_goes_on(tmp_path):
    folder, table = tmp_path / "in", tmp_path / "table.csv"
    folder.mkdir()
    text = "time,variable,observation,std\n0.0,x,nan,0.1\n"
    (folder / "nan.csv").write_text(text)
    table.write_text(text.replace("time,", "when,"))
    files = Folder(folder, report=(first := []).append)
    # A table is not looked into before it stands still.
    for source, said, looks in (
        (files, first, 1),
        (Table(table, report=(second := []).append), second, 2),
    ):
        for look in range(5):
            assert source.look(False) == []
            assert len(said) == (look >= looks), said
    assert "all 1 observations are NaN" in first[0] and "time" in second[0]
    (folder / "nan.csv").write_text("not a table")
    assert files.look(False) == [] and len(first) == 1
