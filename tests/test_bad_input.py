"""Bad input costs one line that says what, where and how to mend it, and exit code 2."""

import errno
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import pytest
import xarray as xr

from sda import cli
from sda.prior import GaussianPrior
from sda.store import PosteriorWriter, open_dataset

ROOT = Path(__file__).parent.parent


@pytest.fixture(scope="module")
def files(tmp_path_factory):
    """A prior, a truth and observations to be misused."""

    folder = tmp_path_factory.mktemp("files")
    commands = [
        "simulate members=8 length=100 seed=1 out={0}/train.zarr progress=false",
        "simulate members=1 length=17 seed=2 out={0}/truth.zarr progress=false",
        "simulate system=lorenz96 members=1 length=9 out={0}/other.zarr progress=false",
        "train data={0}/train.zarr network=none training.window=9 out={0}/prior",
        "observe observing=lorenz63_lo truth={0}/truth.zarr out={0}/obs.zarr",
        "observe observing=lorenz96_half truth={0}/other.zarr out={0}/otherobs.zarr",
    ]
    for command in commands:
        assert cli.main(command.format(folder).split()) == 0
    (folder / "notes.txt").write_text("hello")
    (folder / "empty").mkdir()
    (folder / "broken.csv").write_text("time,variable,value\n0,x,1\n")
    rows = ["time,variable,observation,std", "0,x,1,0.1", "0.2,x,2,{}"]
    (folder / "negative.csv").write_text("\n".join(rows).format("-0.1"))
    (folder / "outside.csv").write_text("\n".join(rows).format("0.1") + "\n7,w,1,0.1")
    (folder / "stray.csv").write_text("\n".join(rows).format("0.1") + "\n1e7,x,1,0.1")
    return folder


ASSIMILATE = "assimilate prior={0}/prior observations={0}/obs.zarr out={1}/p.zarr progress=false "

BAD = {
    # the command, and what its one line must say
    "assimilat": ["assimilat", "did you mean 'assimilate'", "simulate"],
    "simulate": ["out is required"],
    "simulate members": ["expected key=value", "'members'"],
    "simulate +x=1 out=o": ["expected key=value"],
    "simulate ~system out={1}/o.zarr": ["expected key=value"],
    "simulate out={1}/o.zarr membrs=3": ["unknown key 'membrs'", "did you mean 'members'"],
    "simulate out={1}/o.zarr system.sigm=3": ["unknown key 'system.sigm'", "system.sigma"],
    "simulate out={1}/o.zarr members=0": ["members", "at least 1", "got 0"],
    "simulate out={1}/o.zarr members=many": ["members", "integer", "'many'"],
    "simulate out={1}/o.zarr members=1.5": ["members", "integer", "1.5"],
    "simulate out={1}/o.zarr length=null": ["length", "None"],
    "simulate out={1}/o.zarr seed=-1": ["seed", "at least 0", "-1"],
    "simulate out={1}/o.zarr dtype=float16": ["dtype", "float32", "'float16'"],
    "simulate out={1}/o.zarr progress=7": ["progress", "true or false", "7"],
    "simulate out={1}/o.zarr system=lorenz64": ["system=lorenz64", "did you mean", "lorenz63"],
    "simulate out={1}/o.zarr system.dt=0": ["system.dt", "above 0", "0"],
    "simulate out={1}/o.zarr system.sigma=-1": ["sigma", "positive", "-1"],
    "simulate out={1}/o.zarr system=kolmogorov system.size=30": ["size", "divide", "30"],
    "simulate out={1}/o.zarr device=abacus": ["abacus"],
    "simulate out={0}/notes.txt progress=false": ["notes.txt", "exists"],
    "simulate out={0}/truth.zarr progress=false": ["truth.zarr", "exists"],
    "simulate out={0}/empty overwrite=true progress=false": ["empty"],
    "simulate out={1}/x.zarr overwrite=true resume=true": ["overwrite", "resume"],
    "simulate out={0}/truth.zarr resume=true members=1 length=17 seed=5": ["truth.zarr", "seed"],
    "simulate out={0}/notes.txt/x.zarr progress=false": ["notes.txt"],
    "observe truth={0}/truth.zarr out={1}/o.zarr": ["observing is required", "lorenz63_lo"],
    "observe observing=lorenz63_lo truth={0}/none.zarr out={1}/o.zarr": ["none.zarr"],
    "observe observing=lorenz63_lo truth={0}/notes.txt out={1}/o.zarr": ["notes.txt", "neither"],
    "observe observing=lorenz63_lo truth={0}/empty out={1}/o.zarr": ["empty", "neither"],
    "observe observing=lorenz63_lo truth={0}/truth.zarr out={1}/o.zarr member=3": ["member=3"],
    "observe observing=lorenz63_lo truth={0}/truth.zarr out={1}/o.zarr start=17": ["start=17"],
    "observe observing=lorenz63_lo truth={0}/truth.zarr out={1}/o.zarr length=18": ["length=18"],
    "observe observing=lorenz63_lo truth={0}/truth.zarr out={1}/o.txt": [".txt", ".csv"],
    "observe observing=lorenz63_lo truth={0}/truth.zarr out={0}/obs.zarr": ["exists"],
    "observe observing=lorenz63_lo truth={0}/truth.zarr out={0}/other.zarr overwrite=true": [
        "other.zarr",
        "no observations",
    ],
    "observe observing=lorenz63_lo observing.std=-1 truth={0}/truth.zarr out={1}/o.zarr": [
        "observing.std",
        "above 0",
        "-1",
    ],
    "observe observing=lorenz63_lo observing.variables=[w] truth={0}/truth.zarr out={1}/o.zarr": [
        "unknown variables",
        "'w'",
        "'x'",
    ],
    "observe observing=lorenz63_lo observing.region=3 truth={0}/truth.zarr out={1}/o.zarr": [
        "observing.region",
        "mapping",
        "3",
    ],
    "observe observing=kolmogorov_blocks truth={0}/truth.zarr out={1}/o.zarr": ["spatial"],
    "observe observing=lorenz63_lo observing.function=sin truth={0}/truth.zarr out={1}/o.zarr": [
        "observing.function",
        "'sin'",
        "vorticity",
    ],
    "assimilate observations={0}/obs.zarr out={1}/p.zarr": ["prior is required"],
    ASSIMILATE + "prior={0}/none": ["{0}/none", "no prior"],
    ASSIMILATE + "prior={0}/empty": ["{0}/empty", "prior.json"],
    ASSIMILATE + "observations={0}/none.zarr": ["none.zarr"],
    ASSIMILATE + "observations={0}/broken.csv": ["broken.csv"],
    ASSIMILATE + "observations={0}/negative.csv": ["std", "positive", "-0.1"],
    ASSIMILATE + "observations={0}/outside.csv": ["w"],
    ASSIMILATE + "observations={0}/stray.csv": ["1e+07", "check the times"],
    ASSIMILATE + "observations={0}/otherobs.zarr": ["(3, 1, 20) were observed"],
    ASSIMILATE + "observations={0}/notes.txt": [".txt"],
    ASSIMILATE + "task=nowcast": ["task", "smooth", "'nowcast'"],
    ASSIMILATE + "guidance=magic": ["guidance=magic", "static"],
    ASSIMILATE + "guidance.name=magic": ["magic"],
    ASSIMILATE + "guidance=sda guidance.gamma=-1": ["gamma", "-1"],
    ASSIMILATE + "guidance=mmps guidance.solves=0": ["solves", "at least 1", "0"],
    ASSIMILATE + "guidance=flow_dependent guidance.every=0": ["every", "at least 1", "0"],
    ASSIMILATE + "guidance=flow_dependent guidance.s_flow=-1": ["s_flow", "positive", "-1"],
    ASSIMILATE + "sampler.steps=0": ["sampler.steps", "at least 1"],
    ASSIMILATE + "sampler.s_min=200.0": ["s_min < s_max"],
    ASSIMILATE + "langevin=fields langevin.delta=-1": ["delta", "-1"],
    ASSIMILATE + "memory=lots": ["memory", "2GiB", "lots"],
    ASSIMILATE + "block=0": ["block", "at least 1"],
    ASSIMILATE + "device=abacus": ["abacus"],
    ASSIMILATE + "time.length=5": ["time.start", "time.length"],
    ASSIMILATE + "time.start=0 time.length=5": ["observations span times 0 to 0.4", "0 to 0.1"],
    ASSIMILATE + "overwrite=true resume=true": ["overwrite", "resume"],
    ASSIMILATE + "out={0}/truth.zarr overwrite=true": ["truth.zarr", "not a posterior"],
    ASSIMILATE + "out={0}/notes.txt overwrite=true": ["notes.txt", "not a posterior"],
    "verify posterior={0}/truth.zarr truth={0}/none.zarr": ["none.zarr"],
    "verify posterior={0}/truth.zarr truth={0}/other.zarr": ["times"],
    "verify posterior={0}/truth.zarr truth={0}/truth.zarr out={0}/other.zarr overwrite=true": [
        "other.zarr",
        "folder",
    ],
    "verify posterior={0}/truth.zarr truth={0}/truth.zarr out={0}/notes.txt/s.nc": ["notes.txt"],
    "plot posterior={0}/truth.zarr out={1}/x.txt": [".txt"],
    "plot out={1}/x.png": ["posterior"],
    "plot figure=spectra out={1}/x.png": ["scores"],
    "plot figure=pie out={1}/x.png": ["figure", "spectra", "'pie'"],
    "train data={0}/none.zarr out={1}/q network=none": ["none.zarr"],
    "train data={0}/train.zarr out={0}/prior network=none": ["exists"],
    "train data={0}/train.zarr out={1}/q network=none training.window=1000": ["window", "1000"],
    "train data={0}/train.zarr out={1}/q network=mlp training.steps=0": ["training.steps"],
    "info nothing": ["nothing"],
    "demo experiment=lorenz": ["experiment=lorenz", "lorenz63_lo"],
}


@pytest.mark.parametrize("command", BAD)
def test_one_line(command, files, tmp_path, capsys):
    before = sorted(files.rglob("*"))
    code = cli.main(command.format(files, tmp_path).split())
    out, err = capsys.readouterr()
    assert code == cli.BAD_INPUT and not out, (code, out, err)
    assert err.count("\n") == 1 and err.startswith("sda: ") and "Traceback" not in err, err
    for part in BAD[command]:
        assert part.format(files) in err, err
    assert sorted(files.rglob("*")) == before and not list(tmp_path.glob("*.zarr"))


def test_debug_shows_the_traceback(monkeypatch):
    monkeypatch.setenv("SDA_DEBUG", "1")
    with pytest.raises(ValueError, match="out is required"):
        cli.main(["simulate"])


def test_a_tampered_prior(files, tmp_path, capsys):
    """Weights that were changed are refused; nothing in a prior is unpickled or executed."""

    train = open_dataset(files / "train.zarr")
    trap = tmp_path / "trap"
    GaussianPrior.fit(train, 9).save(tmp_path / "prior")
    weights = tmp_path / "prior" / "climatology.safetensors"
    content = bytearray(weights.read_bytes())
    bomb = b"cos\nsystem\n(S'touch " + str(trap).encode() + b"'\ntR."
    for replaced in (bytes(content[:-1]) + b"\x01", bytes(content[:20]), bomb, b""):
        weights.write_bytes(replaced)
        command = ASSIMILATE.format(files, tmp_path) + f"prior={tmp_path / 'prior'}"
        assert cli.main(command.split()) == cli.BAD_INPUT
        assert "climatology.safetensors" in capsys.readouterr().err
        assert not trap.exists()


def test_full_disk(files, tmp_path, monkeypatch, capsys):
    write = PosteriorWriter.write

    def full(self, k, trajectories):
        if k == 1:
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
        write(self, k, trajectories)

    command = (ASSIMILATE.format(files, tmp_path) + "members=6 block=2 guidance=static").split()
    with monkeypatch.context() as patch:
        patch.setattr(PosteriorWriter, "write", full)
        assert cli.main(command) == cli.BAD_INPUT
    err = capsys.readouterr().err
    assert err.count("\n") == 1 and "disk is full" in err and "resume=true" in err
    assert open_dataset(tmp_path / "p.zarr").attrs["status"] == "incomplete: 2 of 6 members"
    assert cli.main([*command, "resume=true"]) == 0
    assert not np.isnan(open_dataset(tmp_path / "p.zarr").x).any()


def test_scores_are_replaced_by_whole_ones_only(files, tmp_path, monkeypatch, capsys):
    out = tmp_path / "scores.nc"
    truth = files / "truth.zarr"
    posterior = open_dataset(files / "train.zarr").isel(time=slice(17))
    posterior.assign_coords(time=open_dataset(truth).time).to_zarr(tmp_path / "p.zarr")
    command = f"posterior={tmp_path / 'p.zarr'} truth={truth} out={out} overwrite=true".split()
    assert cli.main(["verify", *command]) == 0
    scores = out.read_bytes()
    capsys.readouterr()

    def full(self, path):
        Path(path).write_bytes(b"half")
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    for bad in ("system=kolmogorov", "progress=1", f"out={truth}"):
        assert cli.main(["verify", *command, bad]) == cli.BAD_INPUT
        assert out.read_bytes() == scores and truth.exists()
    monkeypatch.setattr(xr.Dataset, "to_netcdf", full)
    assert cli.main(["verify", *command]) == cli.BAD_INPUT
    assert out.read_bytes() == scores and not list(tmp_path.glob(".*"))


def test_interrupt(files, tmp_path):
    """Ctrl-C leaves a store that reads and resumes, one line, and exit code 130."""

    out = tmp_path / "p.zarr"
    command = (ASSIMILATE.format(files, tmp_path) + "members=400 block=1 guidance=static").split()
    process = subprocess.Popen(
        [sys.executable, "-m", "sda.cli", *command], stderr=subprocess.PIPE, text=True, cwd=ROOT
    )
    deadline = time.time() + 120
    while time.time() < deadline and process.poll() is None:
        if out.exists() and open_dataset(out).attrs["finished_blocks"]:
            break
        time.sleep(0.02)
    process.send_signal(signal.SIGINT)
    _, err = process.communicate(timeout=60)
    assert process.returncode == cli.INTERRUPTED, err
    assert err.count("\n") == 1 and err.startswith("sda: interrupted")
    half = open_dataset(out)
    done = len(half.attrs["finished_blocks"])
    assert 1 <= done < 400 and not np.isnan(half.x[:done]).any()


def test_a_store_of_the_wrong_layout(files, tmp_path, capsys):
    xr.Dataset({"x": ("n", [1.0, 2.0])}).to_netcdf(tmp_path / "flat.nc")
    command = f"observe observing=lorenz63_lo truth={tmp_path / 'flat.nc'} out={tmp_path / 'o.csv'}"
    assert cli.main(command.split()) == cli.BAD_INPUT
    assert "no dimension 'time'" in capsys.readouterr().err
    train = f"train data={tmp_path / 'flat.nc'} network=none out={tmp_path / 'q'}"
    assert cli.main(train.split()) == cli.BAD_INPUT
    assert "'time'" in capsys.readouterr().err


def test_a_trajectory_with_nan(files, tmp_path, capsys):
    truth = open_dataset(files / "truth.zarr").load()
    truth["x"][0, 0] = np.nan
    truth.to_netcdf(tmp_path / "nan.nc")
    command = f"observe observing=lorenz63_lo truth={tmp_path / 'nan.nc'} out={tmp_path / 'o.csv'}"
    assert cli.main(command.split()) == cli.BAD_INPUT
    assert "NaN" in capsys.readouterr().err
