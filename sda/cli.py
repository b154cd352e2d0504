"""The command line: one verb for each arrow from a system to a verified posterior.

    sda simulate ──▶ train ──▶ observe ──▶ assimilate ──▶ verify, plot

Every verb is one call of the Python interface. Bad input costs one line on standard error and exit
code 2; an interrupt exits with 130, and what was finished stays. An assimilation of which some
members failed exits with 3. Set SDA_DEBUG=1 to see the traceback of an error.
"""

import json
import os
import shlex
import sys
import textwrap
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    import xarray as xr

    from dynamics.layout import Layout

    from .observation import Observations

Config = dict[str, Any]

FAILED, BAD_INPUT, INTERRUPTED = 3, 2, 130
# So many failed members are named one by one.
SHOWN = 8


def simulate(config: Config) -> int:
    """Simulates trajectories of a dynamical system and streams them to Zarr.

    sda simulate system=lorenz63 members=1024 length=1024 spinup=1024 out=truth.zarr
    """

    from .config import build_system

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

    from .config import run_training
    from .processes import first_process

    run_training(config)
    if first_process():
        out = config["out"]
        say(f"{out}: the prior is ready, `sda assimilate prior={out} …` uses it")
    return 0


def observe(config: Config) -> int:
    """Observes a trajectory with noise: a twin experiment.

    sda observe observing=lorenz63_lo truth=truth.zarr member=0 out=observations.zarr
    """

    from .config import build_observations

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


def assimilate(config: Config) -> int:
    """Samples a posterior ensemble and streams it to Zarr.

    sda assimilate prior=lorenz63 observations=observations.zarr members=256 out=posterior.zarr
    """

    from .assimilation import assimilate as run
    from .config import assimilation_options, build_prior

    prior = build_prior(config["prior"])
    observations = load_observations(config["observations"], prior.layout, prior.standard_names)
    if config["errors"] is not None:
        observations = observations.with_errors(str(config["errors"]))
    posterior = run(prior, observations, **assimilation_options(config, prior))
    say(f"{config['out']}: {sizes(posterior)}, {posterior.attrs['status']}")
    if "rejected" in posterior.attrs:
        say(f"{posterior.attrs['rejected']} rejected by the quality control")
    failures = list(posterior.attrs["failures"])
    for message in failures[:SHOWN]:
        complain(message)
    if len(failures) > SHOWN:
        complain(f"and {len(failures) - SHOWN} more: see the attribute `failures` of the store")
    return FAILED if len(posterior.attrs["failed_members"]) else 0


def follow(config: Config) -> int:
    """Analyses observations as they come in, and keeps running until it is stopped.

    sda filter prior=lorenz63 stream=incoming/ every=8 lag=8 members=64 out=analyses.zarr
    sda filter prior=lorenz63 stream=observations.csv every=8 idle=60 out=analyses.zarr resume=true

    One line is printed for each cycle. A signal (SIGINT, SIGTERM) stops it with exit code 130, and
    resume=true goes on after the last finished cycle. A file END in the folder (or <stream>.end
    beside a store or table) ends the stream, as does idle=… seconds without anything new.
    """

    import signal

    from .config import build_prior, sampling_options
    from .filtering import Assimilator
    from .streams import as_stream

    def stop(number: int, frame: Any) -> None:
        raise KeyboardInterrupt

    prior = build_prior(config["prior"])
    stream = as_stream(
        config["stream"], idle=config["idle"], poll=config["poll"], report=complain, like=prior
    )
    names = (
        "members", "seed", "lag", "history", "carry", "every", "out", "memory", "block",
        "device", "dtype", "precision", "overwrite", "resume", "quality",
    )  # fmt: skip
    options = {name: config[name] for name in names} | sampling_options(config)
    options["start"] = config["time"]["start"]
    before = signal.signal(signal.SIGTERM, stop)
    try:
        with Assimilator(prior, **options) as assimilator:
            try:
                for analysis in assimilator.run(stream, refuse=lambda error: complain(str(error))):
                    say(cycle_text(analysis))
                assimilator.close("complete")
            except KeyboardInterrupt as error:
                done = assimilator.store.cycles if assimilator.store else assimilator.cycle
                error.add_note(f"{done} cycles are finished, resume=true goes on")
                raise
    finally:
        signal.signal(signal.SIGTERM, before)
    refused = f", {assimilator.refused} observations refused" if assimilator.refused else ""
    say(f"{config['out']}: {assimilator.cycle} cycles{refused}")
    failed = assimilator.store is not None and assimilator.store.failures["failed_members"]
    return FAILED if failed else 0


def cycle_text(analysis: "xr.Dataset") -> str:
    """A cycle in one line: what was observed, and the mean and spread of each variable."""

    now = analysis.isel(time=-1)
    parts = []
    for name in analysis.data_vars:
        spread = float(now[name].var("member").mean()) ** 0.5
        parts.append(f"{name} {float(now[name].mean()):.3g} ± {spread:.2g}")
    seen = int(analysis.attrs["observed"])
    what = f"{seen} values observed" if seen else "nothing observed, a forecast"
    return f"cycle {analysis.attrs['cycle']}, time {float(now.time):g}: {what}; {', '.join(parts)}"


def forecast(config: Config) -> int:
    """Forecasts from an ensemble or a state, with a prior or with the numerical model.

    sda forecast prior=lorenz63 initial=posterior.zarr lead=160 out=forecast.zarr
    sda forecast system=lorenz63 initial=posterior.zarr lead=160 out=model.zarr
    """

    from .cf import open_like
    from .config import build_prior, build_system, langevin_option
    from .forecasting import forecast as run
    from .model_forecast import forecast_by_model

    chosen = [name for name in ("prior", "system") if config["choices"].get(name)]
    if len(chosen) != 1:
        raise ValueError(
            f"give prior=… or system=…, what is to forecast, got {' and '.join(chosen) or 'none'}"
        )
    prior, layout = None, None
    if chosen == ["prior"]:
        prior = build_prior(config["prior"])
        layout = prior.layout
    initial = open_like(config["initial"], layout)
    out, source = Path(config["out"]), Path(config["initial"])
    if out.exists() and out.samefile(source):
        raise FileExistsError(f"{str(out)!r} is read by the same command: give another path")
    if config["time"] is not None:
        initial = up_to(initial, float(config["time"]), config["initial"])
    names = (
        "members", "seed", "out", "memory", "block", "dtype", "device", "overwrite", "resume",
        "progress",
    )  # fmt: skip
    options = {name: config[name] for name in names}
    if chosen == ["system"]:
        system = build_system(config["system"])
        result = forecast_by_model(system, initial, config["lead"], **options)
    else:
        options |= {name: config[name] for name in ("tail", "frames", "steps", "precision")}
        options["langevin"] = langevin_option(config)
        assert prior is not None
        result = run(prior, initial, config["lead"], **options)
    say(f"{config['out']}: {sizes(result)}, {result.attrs['status']}")
    for message in list(result.attrs["failures"])[:SHOWN]:
        complain(message)
    return FAILED if len(result.attrs["failed_members"]) else 0


def verify(config: Config) -> int:
    """Scores an ensemble against the truth.

    sda verify posterior=posterior.zarr truth=truth.zarr member=0 observations=observations.zarr
    sda verify posterior=posterior.zarr truth=truth.zarr system=lorenz63 burn_in=1.0
    sda verify posterior=posterior.zarr truth=truth.zarr reference=exact.zarr
    """

    from .config import build_system
    from .store import open_dataset
    from .verification import summary
    from .verification import verify as score

    posterior, truth, observations = experiment(config)
    background, reference = (
        None if config[name] is None else open_dataset(config[name])
        for name in ("background", "reference")
    )
    out = None if config["out"] is None else replaceable(config)
    system = build_system(config["system"]) if config["choices"]["system"] else None
    scores = score(
        posterior,
        truth,
        observations,
        system,
        background=background,
        reference=reference,
        burn_in=float(config["burn_in"]),
        cluster=config["cluster"],
        workers=config["workers"],
    )
    say(str(summary(scores)))
    if out is not None:
        # Complete or not at all: old scores stay until the new ones are on disk.
        partial = out.with_name(f".{out.name}.partial")
        try:
            scores.to_netcdf(partial)
            partial.replace(out)
        finally:
            partial.unlink(missing_ok=True)
        say(f"{out}: {len(scores.data_vars)} scores")
    return 0


def plot(config: Config) -> int:
    """Draws an ensemble beside the truth and the observations, or its scores.

    sda plot posterior=posterior.zarr truth=truth.zarr observations=observations.zarr out=states.png
    sda plot posterior=posterior.zarr truth=truth.zarr out=states.gif
    sda plot posterior=posterior.zarr truth=truth.zarr figure=spaghetti variable=h out=lines.png
    sda plot scores=scores.nc figure=rank_histogram out=ranks.png
    """

    from . import plotting
    from .store import open_dataset

    out = Path(config["out"])
    out.parent.mkdir(parents=True, exist_ok=True)
    if config["figure"] == "states":
        if config["posterior"] is None:
            raise ValueError("figure=states needs posterior=…, the ensemble to draw")
        posterior, truth, observations = experiment(config)
        plotting.draw(posterior, truth, observations, out=out, overwrite=config["overwrite"])
    elif config["figure"] in ("maps", "spaghetti", "stamps"):
        if config["posterior"] is None:
            raise ValueError(f"figure={config['figure']} needs posterior=…, the ensemble to draw")
        own = {key: config[key] for key in ("variable", "projection") if config[key] is not None}
        drawing = getattr(plotting, f"plot_{config['figure']}")(*experiment(config), **own)
        plotting.save(drawing, out, overwrite=config["overwrite"])
    else:
        if config["scores"] is None:
            raise ValueError(f"figure={config['figure']} needs scores=…, a file of `sda verify`")
        figure = getattr(plotting, f"plot_{config['figure']}")(
            open_dataset(config["scores"]).load()
        )
        plotting.save(figure, out, overwrite=config["overwrite"])
    say(f"{out}: drawn")
    return 0


def benchmark(config: Config) -> int:
    """Compares methods of data assimilation on the same observations of the same truths.

    sda benchmark experiment=sakov2008 methods=[etkf,letkf] repetitions=3 out=runs/sakov2008.zarr
    sda benchmark experiment=lorenz63_lo tune=true out=runs/lo.zarr report=runs/lo.html
    sda benchmark experiment=my/experiment.yaml out=runs/mine.zarr resume=true
    """

    from dynamics.simulate import compute_device

    if config["cluster"] is None and config["workers"] is None:
        compute_device(config["device"])
    from .benchmarks.experiment import from_verb
    from .benchmarks.results import summary
    from .benchmarks.runner import benchmark as run

    names = (
        "repetitions", "out", "tune", "report", "resume", "overwrite", "batch", "device",
        "cluster", "workers",
    )  # fmt: skip
    methods = config["methods"]
    results = run(
        from_verb(config),
        [methods] if isinstance(methods, str) else methods,
        command=config["command"],
        say=say,
        **{name: config[name] for name in names},
    )
    say(f"\n{summary(results)}\n")
    say(f"{config['out']}: the results, with a table beside them")
    if config["report"] is not None:
        say(f"{config['report']}: the report")
    return 0


def info(config: Config) -> int:
    """Tells what a prior, an observation file or a dataset holds, or what a run will cost.

    sda info kolmogorov
    sda info assimilate prior=kolmogorov observations=observations.zarr members=64
    sda info posterior.zarr check=true
    """

    from .prior import Prior
    from .store import check_content, open_dataset

    path = Path(config["path"])
    if config["check"]:
        say(f"{path}: {check_content(path)} shards are as they were written")
        return 0
    if not path.exists() or (path / "prior.json").is_file():
        say(prior_text(Prior.load(config["path"])))
    elif path.suffix in (".csv", ".parquet"):
        say(repr(load_observations(path)))
    else:
        dataset = open_dataset(path)
        if any(str(name).endswith("_std") for name in dataset.data_vars):
            say(repr(load_observations(path)))
        else:
            say(sizes(dataset))
        for name, value in dataset.attrs.items():
            say(f"  {name}: {value}")
    return 0


def expected_cost(overrides: Sequence[str]) -> int:
    """Tells what an assimilation will cost, see `sda.cost`."""

    from .config import assimilation_options, build_prior, compose
    from .costs import cost

    given = any(word.startswith("out=") for word in overrides)
    config = compose("assimilate", [*overrides, *([] if given else ["out=unused"])])
    if config["task"] != "smooth" or config["smc"]["group"] is not None:
        raise ValueError(
            f"what a run will cost is known for task=smooth without particle steps, got "
            f"task={config['task']}, smc.group={config['smc']['group']}"
        )
    prior = build_prior(config["prior"])
    names = (
        "members", "time", "guidance", "langevin", "sampler", "steps", "s_max", "s_min", "memory",
        "block", "frames", "device", "dtype", "precision",
    )  # fmt: skip
    options = assimilation_options(config, prior)
    observations = load_observations(config["observations"], prior.layout, prior.standard_names)
    say(str(cost(prior, observations, **{k: options[k] for k in names if k in options})))
    return 0


def prior_text(prior: Any) -> str:
    """What a prior is and how well it denoises, in a few lines."""

    layout = prior.layout
    space = ", ".join(f"{dim} {len(values)}" for dim, values in layout.coords.items()) or "none"
    lines = [
        f"prior {prior.name}: {'Gaussian' if prior.gaussian else 'network'}, "
        f"window {prior.window}, climatology of {prior.climatology.window} states",
        f"  variables: {', '.join(layout.variables)}; space: {space}; dt: {layout.dt:g}",
        f"  hash: {prior.hash}",
    ]
    lines += [f"  {name}: {value}" for name, value in prior.info.items()]
    return "\n".join(lines)


def demo(config: Config) -> int:
    """Runs a twin experiment from the truth to the plots, printing each command before it runs.

    sda demo
    sda demo experiment=lorenz63_lo members=256 out=runs/lorenz63
    """

    from .config import differences

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


VERBS: dict[str, Callable[[Config], int]] = {
    "simulate": simulate,
    "train": train,
    "observe": observe,
    "assimilate": assimilate,
    "filter": follow,
    "forecast": forecast,
    "verify": verify,
    "benchmark": benchmark,
    "plot": plot,
    "info": info,
    "demo": demo,
}


def trajectory(path: str, member: int, layout: "Layout | None" = None) -> "xr.Dataset":
    """One trajectory of a dataset of any origin, with the variables and clock of a layout.

    Raises:
        ValueError: If the dataset has no such member, or does not fit the layout.
    """

    from .cf import open_like

    dataset = open_like(path, layout)
    if "time" not in dataset.dims:
        raise ValueError(f"{path} has no dimension 'time': it is no dataset of trajectories")
    if "member" not in dataset.dims:
        return dataset
    if member >= dataset.sizes["member"]:
        raise ValueError(
            f"member={member} is not in {path}, which has members 0 to "
            f"{dataset.sizes['member'] - 1}"
        )
    return dataset.isel(member=member)


def up_to(dataset: "xr.Dataset", time: float, path: str) -> "xr.Dataset":
    """The states of a dataset up to a time, which is that of one of them.

    Raises:
        ValueError: If there is no state at that time.
    """

    import numpy as np

    if "time" not in dataset.dims:
        raise ValueError(f"{path} has no dimension 'time': leave out time={time:g}")
    times = np.asarray(dataset["time"].values, dtype=np.float64)
    last = int(np.abs(times - time).argmin())
    step = np.diff(times).min() if len(times) > 1 else 1.0
    if abs(times[last] - time) > 1e-3 * step:
        raise ValueError(
            f"time={time:g} is not that of a state of {path}, which covers the times "
            f"{times[0]:g} to {times[-1]:g} in steps of {step:g}"
        )
    return dataset.isel(time=slice(0, last + 1))


def load_observations(
    path: str | Path,
    layout: "Layout | None" = None,
    standard_names: "Mapping[str, str] | None" = None,
) -> "Observations":
    """Loads observations, those of others in the terms of a layout; an error names the file."""

    from .cf import load_observations as load
    from .observation import Observations

    try:
        return Observations.load(path) if layout is None else load(path, layout, standard_names)
    except ValueError as error:
        raise ValueError(f"{path}: {error}") from error


def experiment(config: Config) -> tuple[Any, Any, Any]:
    """The posterior, the truth over the posterior's times and the observations, where given."""

    import numpy as np

    from dynamics.layout import Layout

    from .store import open_dataset

    posterior = open_dataset(config["posterior"])
    if "member" not in posterior.dims or "time" not in posterior.dims:
        raise ValueError(f"{config['posterior']} has no dimensions 'member' and 'time'")
    scored = [
        str(name)
        for name, each in posterior.data_vars.items()
        if {"member", "time"} <= set(each.dims)
    ]
    layout = Layout.from_dataset(posterior, scored) if posterior.sizes["time"] > 1 else None
    truth = None
    if config["truth"] is not None:
        truth = trajectory(config["truth"], config["member"], layout)
        times, known = posterior["time"].values, truth["time"].values
        nearest = np.abs(known[:, None] - times[None, :]).argmin(axis=0)
        tolerance = 1e-3 * (np.diff(times).min() if len(times) > 1 else 1.0)
        if not np.allclose(known[nearest], times, rtol=0, atol=tolerance):
            raise ValueError(
                f"{config['truth']} covers the times {known[0]:g} to {known[-1]:g}, but the "
                f"posterior's are {times[0]:g} to {times[-1]:g}"
            )
        truth = truth.isel(time=nearest).assign_coords(time=posterior["time"])
    observations = None
    if config["observations"] is not None:
        names = json.loads(posterior.attrs.get("standard_names", "{}"))
        observations = load_observations(config["observations"], layout, names)
    return posterior, truth, observations


def replaceable(config: Config) -> Path:
    """The output file of a verb, which may be written.

    Raises:
        FileExistsError: If something stands there that may not be replaced.
    """

    out = Path(config["out"])
    if out.is_dir():
        raise FileExistsError(f"{str(out)!r} is a folder: it is left as it is, give another path")
    keys = ("posterior", "truth", "observations", "background", "reference")
    inputs = [Path(config[key]) for key in keys if config[key]]
    if any(out.exists() and path.exists() and out.samefile(path) for path in inputs):
        raise FileExistsError(f"{str(out)!r} is read by the same command: give another path")
    if out.exists() and not config["overwrite"]:
        raise FileExistsError(
            f"{str(out)!r} exists: give overwrite=true to replace it, or another path"
        )
    out.parent.mkdir(parents=True, exist_ok=True)
    return out


def sizes(dataset: "xr.Dataset") -> str:
    """The variables and sizes of a dataset in one line."""

    names = ", ".join(map(str, dataset.data_vars))
    return f"{names} ({', '.join(f'{dim} {size}' for dim, size in dataset.sizes.items())})"


def say(text: str) -> None:
    """Prints to standard output at once, also into a pipe."""
    print(text, flush=True)


def complain(text: str) -> None:
    """Prints one line to standard error."""
    print(f"sda: {' '.join(text.split())}", file=sys.stderr, flush=True)


def usage() -> str:
    """The verbs, one line each."""

    lines = [f"  {name:11}{(verb.__doc__ or '').splitlines()[0]}" for name, verb in VERBS.items()]
    return (
        "usage: sda VERB key=value …\n\n"
        "Score-based data assimilation.\n\n" + "\n".join(lines) + "\n\n"
        "`sda VERB --help` shows an example, the keys and their defaults. Exit codes: 0 done,\n"
        "2 bad input, 3 done but some members failed, 130 interrupted."
    )


def manual(verb: str) -> str:
    """What a verb does, an example, its keys and its groups."""

    from .config import describe

    summary, _, examples = (VERBS[verb].__doc__ or "").partition("\n")
    example = textwrap.indent(textwrap.dedent(examples).strip(), "  ")
    return f"{summary}\n\nExample:\n{example}\n\n{describe(verb)}"


def run_verb(verb: str, overrides: Sequence[str]) -> int:
    """Runs a verb. Errors are raised."""

    from .config import compose

    if verb == "info" and list(overrides[:1]) == ["assimilate"]:
        return expected_cost(overrides[1:])
    if verb == "info" and overrides and "=" not in overrides[0]:
        from .config import quote

        overrides = [f"path={quote(overrides[0])}", *overrides[1:]]

    config = compose(verb, overrides)
    config["command"] = shlex.join(["sda", verb, *overrides])
    return VERBS[verb](config)


def main(arguments: Sequence[str] | None = None) -> int:
    """The entry point of the command `sda`. Returns the exit code."""

    given = list(sys.argv[1:] if arguments is None else arguments)
    if not given or given[0] in ("-h", "--help", "help"):
        say(usage())
        return 0 if given else BAD_INPUT
    if given[0] in ("-V", "--version"):
        from importlib.metadata import version

        say(version("sda-torch"))
        return 0

    verb, overrides = given[0], given[1:]
    try:
        if verb not in VERBS:
            from .config import hint

            raise ValueError(
                f"unknown verb {verb!r}{hint(verb, list(VERBS))}: "
                f"expected one of {', '.join(VERBS)}"
            )
        if {"-h", "--help"} & set(overrides):
            say(manual(verb))
            return 0
        return run_verb(verb, overrides)
    except KeyboardInterrupt as error:
        note = "".join(getattr(error, "__notes__", []))
        complain(f"interrupted{': ' + note if note else ''}")
        return INTERRUPTED
    except (ValueError, TypeError, OSError, FloatingPointError, MemoryError) as error:
        if os.environ.get("SDA_DEBUG"):
            raise
        complain(explain(error))
        return BAD_INPUT
    except RuntimeError as error:
        # How torch says that an array does not fit, on any device.
        if os.environ.get("SDA_DEBUG") or "memory" not in str(error).lower():
            raise
        complain(f"out of memory: give a smaller block=… or memory=… ({str(error)[:200]})")
        return BAD_INPUT


def explain(error: BaseException) -> str:
    """An error in one line."""

    if isinstance(error, OSError) and error.strerror:
        where = f"{error.filename}: " if error.filename else ""
        return f"{where}{error.strerror}"
    return str(error) or type(error).__name__


if __name__ == "__main__":
    sys.exit(main())
