"""The command line: from a system to verified, drawn posteriors, as a user types it."""

import json
import shutil
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import xarray as xr
import yaml

import sda
from sda import cli, config
from sda.store import open_dataset


def run(*arguments):
    return cli.main([str(a) for a in arguments])


@pytest.fixture(scope="module")
def twin(tmp_path_factory):
    """A twin experiment of Lorenz-63 with a Gaussian prior, by commands alone."""

    folder = tmp_path_factory.mktemp("twin")
    train, truth = folder / "train.zarr", folder / "truth.zarr"
    quiet = "progress=false"
    commands = [
        ["simulate", "members=16", "length=200", "spinup=100", "seed=1", f"out={train}", quiet],
        ["simulate", "members=2", "length=17", "spinup=100", "seed=2", f"out={truth}", quiet],
        ["train", f"data={train}", "network=none", "training.window=17", f"out={folder / 'prior'}"],
        ["observe", "observing=lorenz63_lo", f"truth={truth}", "member=1"]
        + [f"out={folder / 'observations.zarr'}"],
        ["assimilate", f"prior={folder / 'prior'}", f"observations={folder / 'observations.zarr'}"]
        + ["members=12", "seed=3", f"out={folder / 'posterior.zarr'}", quiet],
        ["verify", f"posterior={folder / 'posterior.zarr'}", f"truth={truth}", "member=1"]
        + [f"observations={folder / 'observations.zarr'}", f"out={folder / 'scores.nc'}"],
        ["plot", f"posterior={folder / 'posterior.zarr'}", f"truth={truth}", "member=1"]
        + [f"observations={folder / 'observations.zarr'}", f"out={folder / 'posterior.png'}"],
        ["plot", "figure=coverage", f"scores={folder / 'scores.nc'}", f"out={folder / 'c.png'}"],
    ]
    for command in commands:
        assert run(*command) == 0, command
    return folder


def test_end_to_end(twin):
    posterior = open_dataset(twin / "posterior.zarr")
    assert dict(posterior.sizes) == {"member": 12, "time": 17}
    assert list(posterior.data_vars) == ["x", "y", "z"]
    scores = open_dataset(twin / "scores.nc")
    truth = open_dataset(twin / "truth.zarr").isel(member=1)
    # Three observations of x with std 0.4 tell x well, y by the climatology: 8 and 9 without.
    rmse = np.sqrt(((posterior.mean("member") - truth) ** 2).mean())
    assert rmse.x < 3 and rmse.y < 6
    assert np.isclose(scores.rmse_by_variable.sel(variable="x"), rmse.x, rtol=1e-3)
    assert (twin / "posterior.png").read_bytes().startswith(b"\x89PNG")


def test_observations_of_several_files_are_taken_together(twin, tmp_path, capsys):
    second, out = tmp_path / "second.csv", tmp_path / "both.zarr"
    words = ["observe", "observing=lorenz63_lo", f"truth={twin / 'truth.zarr'}", "member=1"]
    assert run(*words, "observing.variables=[z]", "seed=4", f"out={second}") == 0
    files = [str(twin / "observations.zarr"), str(second)]
    words = ["assimilate", f"prior={twin / 'prior'}", "members=3", "seed=3", "progress=false"]
    both = f"observations=[{','.join(files)}]"
    assert run(*words, both, f"out={out}") == 0
    observations = sda.Observations.load(files[0]) + sda.Observations.load(files[1])
    expected = sda.assimilate(sda.Prior.load(twin / "prior"), observations, 3, 3)
    xr.testing.assert_allclose(open_dataset(out).drop_vars("failed", errors="ignore"), expected)
    verify = ["verify", f"posterior={out}", f"truth={twin / 'truth.zarr'}", "member=1", both]
    assert run(*verify, f"out={tmp_path / 'scores.nc'}") == 0
    capsys.readouterr()
    assert run(*verify, f"out={second}", "overwrite=true") == 2
    assert "is read by the same command" in capsys.readouterr().err
    for given, said in (("[]", "names no file"), (f"[{second},no.csv]", "no.csv")):
        assert run(*words, f"observations={given}", f"out={tmp_path / 'no.zarr'}") == 2
        assert said in capsys.readouterr().err


def test_forecast_departs_from_the_time_that_was_asked_for(twin, tmp_path, capsys):
    posterior, out = twin / "posterior.zarr", tmp_path / "forecast.zarr"
    words = ["forecast", "system=lorenz63", "lead=3", "progress=false", f"initial={posterior}"]
    times = open_dataset(posterior)["time"].values
    assert run(*words, f"time={times[5]}", f"out={out}") == 0
    assert open_dataset(out)["time"].values == pytest.approx(times[6:9])
    capsys.readouterr()
    for time in (times[5] + 0.01, times[-1] + 1, times[0] - 1):
        assert run(*words, f"time={time}", f"out={tmp_path / 'no.zarr'}") == 2
        assert "is not that of a state" in capsys.readouterr().err
    state = open_dataset(posterior).isel(time=-1, drop=True).load().drop_encoding()
    state.to_zarr(tmp_path / "state.zarr", consolidated=False)
    words = [*words[:-1], f"initial={tmp_path / 'state.zarr'}", f"out={tmp_path / 'no.zarr'}"]
    assert run(*words, "time=1") == 2
    assert "no dimension 'time'" in capsys.readouterr().err


def test_forecast_leaves_its_initial_states(twin, capsys):
    posterior = twin / "posterior.zarr"
    words = [f"initial={posterior}", f"out={posterior}", "overwrite=true"]
    assert run("forecast", "system=lorenz63", "lead=3", *words) == 2
    assert "is read by the same command" in capsys.readouterr().err
    assert open_dataset(posterior).sizes["time"] == 17


def test_tasks_refuse_what_they_do_not_use(twin, tmp_path, capsys):
    words = [f"prior={twin / 'prior'}", f"observations={twin / 'observations.zarr'}"]
    words += ["members=2", f"out={tmp_path / 'p.zarr'}", "progress=false"]
    for more, text in (
        (["task=filter", "frames=5"], "leave out frames=5"),
        (["workers=2", "frames=5"], "frames=5"),
        (["workers=2", "lead=5"], "lead goes with task='forecast'"),
    ):
        assert run("assimilate", *words, *more) == 2
        assert text in capsys.readouterr().err
    assert not list(tmp_path.iterdir())


def test_verify_options(twin, tmp_path, capsys):
    import sda

    paths = {name: twin / f"{name}.zarr" for name in ("posterior", "truth", "observations")}
    given = [f"{name}={path}" for name, path in paths.items()]
    posterior = open_dataset(paths["posterior"])
    # Half of the ensemble as forecasts, the other half as a reference.
    for name, part in (("background", slice(0, 6)), ("reference", slice(6, 12))):
        some = posterior.isel(member=part).load().drop_encoding()
        some.to_zarr(tmp_path / f"{name}.zarr", consolidated=False)
        given.append(f"{name}={tmp_path / name}.zarr")
    words = ["member=1", "burn_in=0.2", f"out={tmp_path / 'scores.nc'}"]
    assert run("verify", *given, *words) == 0
    scores = open_dataset(tmp_path / "scores.nc").load()
    expected = sda.verify(
        posterior,
        open_dataset(paths["truth"]).isel(member=1),
        sda.Observations.load(paths["observations"]),
        background=posterior.isel(member=slice(0, 6)),
        reference=posterior.isel(member=slice(6, 12)),
        burn_in=0.2,
    )
    for name in ("rmse_by_variable", "innovation_chi_square", "overall_desroziers_R", "w1", "mmd"):
        assert np.allclose(scores[name], expected[name], equal_nan=True), name
    whole = open_dataset(twin / "scores.nc")
    assert not np.allclose(scores.rmse_by_variable, whole.rmse_by_variable)
    assert "w1" not in whole and "innovation_chi_square" not in whole
    capsys.readouterr()
    assert run("verify", *given, "burn_in=-1") == cli.BAD_INPUT
    assert "burn_in must be a number of at least 0, got -1" in capsys.readouterr().err
    assert run("verify", *given, f"out={tmp_path / 'reference.zarr'}") == cli.BAD_INPUT


def test_benchmark_looks_for_its_device_first(tmp_path, capsys):
    out = tmp_path / "results.zarr"
    assert run("benchmark", "experiment=sakov2008", "device=foo", f"out={out}") == cli.BAD_INPUT
    assert "device 'foo' is not available" in capsys.readouterr().err
    assert not out.exists()


def test_a_mean_may_be_a_list_where_the_file_has_a_word(tmp_path):
    file = tmp_path / "own.yaml"
    file.write_text("initial: {mean: truth, std: 1.0}\ncycles: 4\nobserving: {first: 1}\n")
    words = [f"experiment={file}", "out=unused"]
    assert config.compose("benchmark", words)["initial"]["mean"] == "truth"
    words.append("initial.mean=[1.0, 2.0, 3.0]")
    assert config.compose("benchmark", words)["initial"]["mean"] == [1.0, 2.0, 3.0]


def test_python_is_the_same_call(twin):
    import sda

    prior = sda.Prior.load(twin / "prior")
    observations = sda.Observations.load(twin / "observations.zarr")
    posterior = sda.assimilate(prior, observations, members=12, seed=3)
    stored = open_dataset(twin / "posterior.zarr")
    for name in posterior.data_vars:
        assert np.allclose(posterior[name], stored[name], atol=1e-2)


@pytest.mark.parametrize("name", ["posterior.zarr", "truth.zarr", "observations.zarr", "prior"])
def test_info(twin, name, capsys):
    assert run("info", twin / name) == 0
    expected = {"posterior.zarr": "member 12", "prior": "Gaussian", "truth.zarr": "Lorenz63"}
    assert expected.get(name, "values of x") in capsys.readouterr().out


def test_demo_prints_commands_that_run(twin, capsys):
    out = twin / "demo"
    arguments = ["experiment=lorenz63_lo", "prior=gaussian", f"prior.data={twin / 'train.zarr'}"]
    arguments += ["prior.window=17", "members=4", "length=17", "spinup=50", f"out={out}"]
    assert run("demo", *arguments, "sampler.steps=16") == 0
    printed = capsys.readouterr().out
    commands = [line.partition("] sda ")[2] for line in printed.splitlines() if "] sda " in line]
    assert [c.split()[0] for c in commands] == [
        "simulate", "observe", "assimilate", "verify", "plot"
    ]  # fmt: skip
    assert "sampler.steps=16" in commands[2] and "Published for this set-up" in printed
    assert "system=lorenz63" in commands[3] and "consistency" in printed
    assert {p.name for p in out.iterdir()} == {
        "truth.zarr", "observations.zarr", "posterior.zarr", "scores.nc", "posterior.png"
    }  # fmt: skip

    first = open_dataset(out / "posterior.zarr").load()
    shutil.rmtree(out)
    out.mkdir()
    for command in commands[:3]:
        assert run(*command.split()) == 0
    xr.testing.assert_equal(first, open_dataset(out / "posterior.zarr"))


def test_resume_by_command(twin):
    command = ["assimilate", f"prior={twin / 'prior'}", f"out={twin / 'again.zarr'}"]
    command += [
        f"observations={twin / 'observations.zarr'}",
        "members=4",
        "progress=false",
        "guidance=static",
    ]
    assert run(*command) == 0
    assert run(*command) == cli.BAD_INPUT
    assert run(*command, "resume=true") == 0
    assert run(*command, "seed=9", "overwrite=true") == 0


def test_failed_members_show_in_the_exit_code(twin, tmp_path, monkeypatch, capsys):
    import sda.sampling

    sample = sda.sampling.sample

    def diverges(*args, **kwargs):
        x = sample(*args, **kwargs)
        if kwargs.get("stream") != sda.sampling.PILOT and 0 in args[3]:
            x[1] = float("nan")
            raise sda.sampling.Diverged({1: "member 1 diverged at level 5 (s = 3.1)"}, x)
        return x

    monkeypatch.setattr(sda.sampling, "sample", diverges)
    command = ["assimilate", f"prior={twin / 'prior'}", f"out={tmp_path / 'p.zarr'}", "block=2"]
    command += [f"observations={twin / 'observations.zarr'}", "members=4", "progress=false"]
    with pytest.warns(RuntimeWarning):
        assert run(*command) == cli.FAILED
    assert "sda: member 1 diverged at level 5" in capsys.readouterr().err
    posterior = open_dataset(tmp_path / "p.zarr")
    assert posterior.attrs["status"] == "complete, 1 failed"
    assert np.isnan(posterior.x).any("time").values.tolist() == [False, True, False, False]


def test_particle_steps_and_precision_by_command(twin, tmp_path, capsys):
    command = ["assimilate", f"prior={twin / 'prior'}", f"out={tmp_path / 'p.zarr'}"]
    command += [f"observations={twin / 'observations.zarr'}", "members=4", "progress=false"]
    command += ["guidance=static", "sampler.steps=4"]
    assert run(*command, "smc.group=2", "precision=bfloat16") == 0
    settings = json.loads(open_dataset(tmp_path / "p.zarr").attrs["settings"])
    assert settings["smc"] == {"group": 2, "threshold": "0.5", "divergence": "shared"}
    assert settings["precision"] == "bfloat16"
    assert run(*command, "smc.group=3", "overwrite=true") == cli.BAD_INPUT
    assert "whole groups of 3 members" in capsys.readouterr().err
    assert run(*command, "precision=float8") == cli.BAD_INPUT
    assert "one of float32, bfloat16, got 'float8'" in capsys.readouterr().err


def test_a_full_memory_costs_one_line(monkeypatch, capsys):
    messages = ["[enforce fail]\nDefaultCPUAllocator: can't allocate memory", "CUDA out of memory."]
    for message in messages:
        monkeypatch.setitem(cli.VERBS, "info", lambda config, m=message: raising(RuntimeError(m)))
        assert run("info", "lorenz63") == cli.BAD_INPUT
        error = capsys.readouterr().err
        assert error.count("\n") == 1 and "out of memory: give a smaller block" in error
    monkeypatch.setitem(cli.VERBS, "info", lambda config: raising(RuntimeError("a bug")))
    with pytest.raises(RuntimeError, match="a bug"):
        run("info", "lorenz63")


def raising(error):
    raise error


def test_help_is_quick_and_complete():
    """`--help` imports neither torch nor xarray."""

    code = "import sys, sda.cli as c; c.main(['--help']); c.main(['assimilate', '--help']); "
    code += "print({'torch', 'xarray', 'hydra'} & set(sys.modules))"
    root = Path(__file__).parent.parent
    out = subprocess.run(
        [sys.executable, "-c", code], capture_output=True, text=True, check=True, cwd=root
    ).stdout
    assert out.strip().endswith("set()")
    for verb in cli.VERBS:
        text = cli.manual(verb)
        assert f"sda {verb}" in text and verb in out
        keys = yaml.safe_load((config.folder() / f"{verb}.yaml").read_text())
        assert all(key in text for key in keys if key != "defaults")


@pytest.mark.parametrize("group", sorted(config.groups()))
def test_every_option_composes(group):
    verbs = {"network": "train", "training": "train", "experiment": "demo"}
    verb = verbs.get(group, "demo")
    required = {
        "train": ["data=d", "out=o"],
        "demo": [],
    }[verb]
    for option in config.groups()[group]:
        extra = [f"prior.{k}=x" for k in ("source", "data")]
        more = {"prior=folder": extra[:1], "prior=gaussian": extra[1:]}
        chosen = f"{group}={option}"
        composed = config.compose(verb, [*required, chosen, *more.get(chosen, [])])
        assert composed["choices"][group] == option


def test_every_system_is_built_and_observed():
    for option in config.groups()["system"]:
        system = config.build_system(config.compose("demo", [f"system={option}"])["system"])
        assert system.initial(2, seed=0).shape == (2, *system.layout.shape)
    for option in config.groups()["observing"]:
        composed = config.compose("demo", [f"observing={option}"])
        if "generator" in composed["observing"]:
            continue  # see tests/observing
        kind = option.split("_")[0].replace("everything", "lorenz63")
        system = config.build_system(config.compose("demo", [f"system={kind}"])["system"])
        truth = system.layout.to_dataset(
            np.random.default_rng(0).standard_normal((1, 5, *system.layout.shape))
        )
        observations = config.build_observations(composed["observing"], truth.isel(member=0), 0)
        assert len(observations) > 0


def test_every_guidance_langevin_and_sampler_runs(twin, tmp_path):
    base = ["assimilate", f"prior={twin / 'prior'}", f"observations={twin / 'observations.zarr'}"]
    base += ["members=2", "sampler.steps=6", "progress=false"]
    for group in ("guidance", "langevin", "sampler"):
        for option in config.groups()[group]:
            more = [] if group == "guidance" else ["guidance=static"]
            if option == "sda":
                # With the published value and this few steps its members end far out.
                more = ["guidance.gamma=0.1"]
            out = f"out={tmp_path / group / option}.zarr"
            assert run(*base, f"{group}={option}", *more, out) == 0, option
