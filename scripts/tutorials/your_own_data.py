"""Your own data: sea surface temperatures of a real archive, reconstructed from a few stations.

    pip install "sda-torch[tutorials]"
    python scripts/tutorials/your_own_data.py --out runs/tutorials/your_own_data

The file is the monthly OSTIA analysis of the tropics, 2006 to 2010, that the package
`iris-sample-data` ships (UK Met Office, Open Government Licence): kelvins on latitudes and
longitudes, with land and a seasonal cycle. The last twelve months are withheld. A Gaussian prior is
fitted to the months before, seasonal cycle removed; buoys in degrees Celsius, with dates, see the
withheld months at a few places; the ensemble given them is scored against all that they did not
see, beside the climatology of the prior. With `--data` it is another file.

Three and a half years know little of a fourth. The mean, the cycle and the patterns follow the few
independent months there are, so that the variance about them is too small by a factor of two to
three in any other year, and that of what the patterns leave by more, since they are those that fit
best. A prior of such variances is far too sure (`--folds 0` shows it). With `folds` they are
cross-validated, a year left out at a time, and inflated by what that year lacked: the coverage of
the withheld year is then about right, although it was not looked at.
"""

import argparse
from importlib.util import find_spec
from pathlib import Path

import numpy as np
import pandas as pd
import torch
import xarray as xr

import sda
from dynamics.random import normal
from sda.cf import Clock, load_observations, open_data, open_like, prepare

PLACES, ERRORS, DRAWS = range(3)  # the keys of random numbers, see dynamics.random


def shipped() -> Path:
    """The file that `iris-sample-data` ships."""

    spec = find_spec("iris_sample_data")
    if spec is None or spec.origin is None:
        raise SystemExit(
            "iris-sample-data is missing: pip install iris-sample-data, or give --data"
        )
    return Path(spec.origin).parent / "sample_data" / "ostia_monthly.nc"


def buoys(truth: xr.Dataset, name: str, count: int, std: float, path: Path) -> None:
    """Writes a table as a buoy centre would: dates, degrees, degrees Celsius."""

    array = truth[name].stack(place=("lat", "lon"))
    sea = np.flatnonzero(np.isfinite(array.isel(time=0).values))
    order = normal(0, [0], (len(sea),), PLACES)[0].argsort().numpy()
    seen = array.isel(place=np.sort(sea[order[:count]]))
    noise = normal(0, [0], seen.shape, ERRORS, dtype=torch.float64)[0].numpy()
    clock = Clock(truth.time.attrs["units"], truth.time.attrs["calendar"])
    dates = [f"{d.year:04d}-{d.month:02d}-{d.day:02d}" for d in clock.dates(truth.time.values)]
    rows = seen.copy(data=seen.values + std * noise).to_series().reset_index(name="value")
    pd.DataFrame(
        {
            "valid_time": np.repeat(dates, count),
            "latitude": rows["lat"],
            "longitude": (rows["lon"] + 180) % 360 - 180,
            "variable": name,
            "value": rows["value"] - 273.15,
            "units": "degC",
            "std": std,
        }
    ).to_csv(path, index=False)


def draw(
    truth: xr.Dataset, posterior: xr.Dataset, name: str, points: pd.DataFrame, path: Path
) -> None:
    """Maps of the last month: the truth with the buoys, the ensemble's mean, and its spread."""

    import matplotlib

    matplotlib.use("agg")
    from matplotlib import pyplot as plt

    last = posterior[name].isel(time=-1)
    maps = {
        "withheld": truth[name].isel(time=-1),
        "ensemble mean": last.mean("member"),
        "ensemble spread": last.std("member"),
    }
    figure, axes = plt.subplots(3, 1, figsize=(11, 4.5), sharex=True, layout="constrained")
    low, high = float(maps["withheld"].min()), float(maps["withheld"].max())
    for axis, (title, values) in zip(axes, maps.items(), strict=True):
        spread = title == "ensemble spread"
        span = {} if spread else {"vmin": low, "vmax": high}
        shown = axis.pcolormesh(
            values.lon, values.lat, values, cmap="magma" if spread else "viridis", **span
        )
        axis.set(title=title, ylabel="latitude", facecolor="0.8")
        figure.colorbar(shown, ax=axis, label=truth[name].attrs.get("units", ""))
    axes[0].plot(points["lon"], points["lat"], "o", color="white", mec="black", ms=4)
    axes[-1].set_xlabel("longitude")
    figure.savefig(path, dpi=120)
    plt.close(figure)


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawTextHelpFormatter
    )
    parser.add_argument("--data", type=Path, help="another file (default: that of the package)")
    parser.add_argument("--variable", default="surface_temperature")
    parser.add_argument("--out", type=Path, default=Path("runs/tutorials/your_own_data"))
    parser.add_argument("--stations", type=int, default=40, help="buoys")
    parser.add_argument("--members", type=int, default=64)
    parser.add_argument("--withheld", type=int, default=12, help="states at the end")
    parser.add_argument("--std", type=float, default=0.2, help="error of a buoy")
    parser.add_argument("--window", type=int, default=4, help="states of the prior's window")
    parser.add_argument("--rank", type=int, default=8, help="patterns of the prior")
    parser.add_argument("--folds", type=int, default=3, help="years left out in turn, or 0")
    parser.add_argument("--small", action="store_true", help="coarser and fewer, for a quick look")
    options = parser.parse_args()
    members, coarser = (16, (6, 12)) if options.small else (options.members, (2, 6))
    options.out.mkdir(parents=True, exist_ok=True)

    # Cells of several of the file's: an archive of one's own may well be used as it is.
    whole = open_data(options.data or shipped(), [options.variable]).drop_vars(
        "mask", errors="ignore"
    )
    attrs, time = whole[options.variable].attrs, whole["time"]
    coarse = whole.coarsen(lat=coarser[0], lon=coarser[1], boundary="trim").mean()
    coarse[options.variable].attrs = attrs
    for name in ("lat", "lon"):
        coarse[name].attrs = {k: v for k, v in whole[name].attrs.items() if k != "period"}
    coarse = coarse.assign_coords(time=time).drop_attrs(deep=False).load()
    known = coarse.isel(time=slice(None, -options.withheld))
    withheld = coarse.isel(time=slice(-options.withheld, None))

    # So few years know few patterns: what is beyond them is noise in space (the rank was chosen on
    # the year before the withheld one, by CRPS).
    prior = sda.GaussianPrior.fit(
        prepare(known, seasonal=2), options.window, name="tropical-sst", kind="low_rank",
        rank=options.rank, coupled=4, folds=options.folds or None,
    )  # fmt: skip
    prior.save(options.out / "prior")
    mask = prior.layout.mask
    print(
        f"prior of {prior.info['dates']}, {prior.info['seasonal']} harmonics of the year, "
        f"{'all' if mask is None else int(mask.sum())} cells of sea"
    )

    if "inflation" in prior.info:
        factors = ", ".join(f"{name} {f:.1f}" for name, f in prior.info["inflation"].items())
        print(f"variances in years that were left out, to those expected: {factors}")

    truth = open_like(withheld, prior.layout)
    table = options.out / "buoys.csv"
    buoys(truth, options.variable, options.stations, options.std, table)
    observations = load_observations(table, prior.layout, prior.standard_names)
    posterior = sda.assimilate(prior, observations, members=members, seed=1, time=truth.time)

    # The climatology: what the prior says of the withheld months before they are observed.
    shape = (len(truth.time), *prior.layout.shape)
    noise = normal(2, range(members), shape, DRAWS)
    draws = prior.states(prior.covariance(shape[0]).sample(noise), truth.time.values)
    climatology = prior.layout.to_dataset(draws, truth.time.values)

    # Scores of what no buoy has seen.
    points = observations.to_table()[["lat", "lon"]].drop_duplicates()
    unseen = truth[options.variable].isel(time=0, drop=True).notnull()
    for lat, lon in points.itertuples(index=False):
        unseen = unseen & ~(np.isclose(unseen.lat, lat)[:, None] & np.isclose(unseen.lon, lon))
    print(
        f"{len(observations)} observations by {len(points)} buoys, {members} members; scores at "
        f"the {int(unseen.sum())} other cells of sea, weighted by area\n"
    )
    print(f"{'':24}{'RMSE':>8}{'CRPS':>8}{'spread–skill':>14}{'coverage 90 %':>15}")
    for name, ensemble in (("climatology", climatology), ("given the buoys", posterior)):
        kept = unseen.astype(np.int8)
        scores = sda.verify(ensemble.assign_coords(mask=kept), truth.assign_coords(mask=kept))
        inside = float(scores["coverage"].sel(level=0.9, method="nearest").mean())
        print(
            f"{name:24}{float(scores['rmse'].mean()):8.3f}{float(scores['crps'].mean()):8.3f}"
            f"{float(scores['spread_skill'].mean()):14.2f}{100 * inside:14.0f}%"
        )
    draw(truth, posterior, options.variable, points, options.out / "map.png")
    print(f"\n{options.out}: the prior, the table, and map.png")


if __name__ == "__main__":
    main()
