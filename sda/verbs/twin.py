"""Verbs of a twin experiment: a truth, a prior, observations, and a demonstration of it all."""

import shlex
from pathlib import Path

from .files import trajectory
from .messages import Config, say, sizes


def simulate(config: Config) -> int:
    """Simulates trajectories of a dynamical system and streams them to Zarr.

    sda simulate system=lorenz63 members=1024 length=1024 spinup=1024 out=truth.zarr
    """

    from ..config import build_system

    names = (
        "stride", "dtype", "device", "overwrite", "resume", "progress", "cluster", "workers",
    )  # fmt: skip
    dataset = build_system(config["system"]).simulate(
        config["members"],
        config["length"],
        spinup=config["spinup"],
        seed=config["seed"],
        out=config["out"],
        member_block=config["block"],
        **{name: config[name] for name in names},
    )
    say(f"{config['out']}: {sizes(dataset)}")
    return 0


def train(config: Config) -> int:
    """Learns a prior from a dataset of trajectories.

    sda train data=truth.zarr network=mlp training=vectors out=runs/lorenz63
    sda train data=archive.zarr training=kolmogorov64 out=runs/large devices=4 nodes=2
    """

    from ..config.options import run_training
    from ..processes import first_process

    run_training(config)
    if first_process():
        out = config["out"]
        say(f"{out}: the prior is ready, `sda assimilate prior={out} …` uses it")
    return 0


def observe(config: Config) -> int:
    """Observes a trajectory with noise: a twin experiment.

    sda observe observing=lorenz63_lo truth=truth.zarr member=0 out=observations.zarr
    """

    from ..config import build_observations

    truth = trajectory(config["truth"], config["member"])
    stop = None if config["length"] is None else config["start"] + config["length"]
    if config["start"] >= truth.sizes["time"] or (stop or 0) > truth.sizes["time"]:
        raise ValueError(
            f"start={config['start']} and length={config['length']} reach beyond the "
            f"{truth.sizes['time']} states of {config['truth']}"
        )
    truth = truth.isel(time=slice(config["start"], stop))
    observations = build_observations(config["observing"], truth, config["seed"])
    observations.save(config["out"], config["overwrite"])
    say(f"{config['out']}: {observations}")
    return 0


def demo(config: Config) -> int:
    """Runs a twin experiment from the truth to the plots, printing each command before it runs.

    sda demo
    sda demo experiment=lorenz63_lo members=256 out=runs/lorenz63
    """

    from ..config.files import differences
    from .run import run_verb

    out = Path(config["out"])
    out.mkdir(parents=True, exist_ok=True)

    def group(name: str) -> list[str]:
        return [f"{name}={config['choices'][name]}", *differences(config, name)]

    def file(key: str, name: str) -> str:
        return f"{key}={out / name}"

    truth = file("truth", "truth.zarr")
    observations = file("observations", "observations.zarr")
    posterior = file("posterior", "posterior.zarr")
    seed, sizes_ = config["seed"], [f"{key}={config[key]}" for key in ("length", "spinup")]
    method = [
        word
        for name, usual in (("guidance", "default"), ("langevin", "default"), ("sampler", "xeab"))
        for word in group(name)
        if word != f"{name}={usual}"
    ]
    steps = [
        ["simulate", *group("system"), "members=1", *sizes_, f"seed={seed}"]
        + [file("out", "truth.zarr")],
        ["observe", *group("observing"), truth, f"seed={seed + 1}"]
        + [file("out", "observations.zarr")],
        ["assimilate", *group("prior"), *method, observations, f"members={config['members']}"]
        + [f"seed={seed + 2}", file("out", "posterior.zarr")],
        ["verify", posterior, truth, observations, *group("system"), file("out", "scores.nc")],
        *(
            ["plot", posterior, truth, observations, file("out", name)]
            for name in config["pictures"]
        ),
    ]
    again = ["overwrite=true"] if config["overwrite"] else []
    code = 0
    for i, step in enumerate(steps, start=1):
        command = [*step, *again]
        say(f"\n[{i}/{len(steps)}] sda {shlex.join(command)}")
        code = max(code, run_verb(command[0], command[1:]))
    if config["published"]["text"]:
        say(f"\nPublished for this set-up: {config['published']['text']}")
    return code
