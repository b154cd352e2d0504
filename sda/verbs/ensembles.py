"""Verbs that draw ensembles: all observations at once, as they come in, or ahead of the last."""

from pathlib import Path
from typing import TYPE_CHECKING, Any

from .files import load_observations, up_to
from .messages import FAILED, SHOWN, Config, complain, say, sizes

if TYPE_CHECKING:
    import xarray as xr


def assimilate(config: Config) -> int:
    """Samples a posterior ensemble and streams it to Zarr.

    sda assimilate prior=lorenz63 observations=observations.zarr members=256 out=posterior.zarr
    """

    from ..assimilation import assimilate as run
    from ..config import build_prior
    from ..config.options import assimilation_options

    prior = build_prior(config["prior"], context=config["context"])
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

    from ..config import build_prior
    from ..config.options import sampling_options
    from ..filtering import Assimilator
    from ..streams import as_stream

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

    from ..cf import open_like
    from ..config import build_prior, build_system
    from ..config.options import langevin_option
    from ..forecasting import forecast as run
    from ..model_forecast import forecast_by_model

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
