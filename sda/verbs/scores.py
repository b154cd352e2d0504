"""Verbs that judge ensembles: scores against a truth, pictures, comparisons of methods."""

from pathlib import Path

from .files import experiment, replaceable
from .messages import Config, say


def verify(config: Config) -> int:
    """Scores an ensemble against the truth.

    sda verify posterior=posterior.zarr truth=truth.zarr member=0 observations=observations.zarr
    sda verify posterior=posterior.zarr truth=truth.zarr system=lorenz63 burn_in=1.0
    sda verify posterior=posterior.zarr truth=truth.zarr reference=exact.zarr
    """

    from ..config import build_system
    from ..store import open_dataset
    from ..verification import summary
    from ..verification import verify as score

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

    from .. import plotting
    from ..store import open_dataset

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
    from ..benchmarks.experiment import from_verb
    from ..benchmarks.results import summary
    from ..benchmarks.runner import benchmark as run

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
