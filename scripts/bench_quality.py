"""Measures what gross errors cost an analysis, without and with quality control.

The truths are trajectories of a dataset that the Gaussian prior is not fitted to.

    sda simulate system=toy_weather members=48 length=240 spinup=480 out=runs/toy_weather.zarr
    python scripts/bench_quality.py --data runs/toy_weather.zarr
    python scripts/bench_quality.py --data runs/toy_weather.zarr --prior toy-weather --members 16
"""

import argparse

from sda.benchmarks.quality import measure, summary
from sda.config import compose
from sda.prior import GaussianPrior, Prior
from sda.store import open_dataset


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--data", required=True, help="dataset of trajectories")
    parser.add_argument("--prior", help="name or folder of a prior (default: fitted to the data)")
    parser.add_argument("--observing", default="stations")
    parser.add_argument("--set", nargs="*", default=[], help="changes, such as number=50")
    parser.add_argument("--fitted", type=int, default=16, help="trajectories of the fit")
    parser.add_argument("--window", type=int, default=4, help="states of its covariance")
    parser.add_argument("--truths", type=int, default=4)
    parser.add_argument("--length", type=int, default=4, help="states of a truth")
    parser.add_argument("--share", type=float, default=0.05, help="of gross errors")
    parser.add_argument("--size", type=float, default=20.0, help="of them, in std")
    parser.add_argument("--members", type=int, default=0)
    arguments = parser.parse_args()

    data = open_dataset(arguments.data)
    if arguments.prior is None:
        fitted = data.isel(member=slice(0, arguments.fitted))
        prior: Prior = GaussianPrior.fit(fitted, arguments.window)
    else:
        prior = Prior.load(arguments.prior)
    words = [f"observing.{each}" for each in arguments.set]
    given = [f"observing={arguments.observing}", "truth=unused", "out=unused", *words]
    truths = [
        data.isel(member=-1 - i, time=slice(0, arguments.length)) for i in range(arguments.truths)
    ]
    results = measure(
        prior, truths, compose("observe", given)["observing"], arguments.share, arguments.size,
        arguments.members,
    )  # fmt: skip
    print(summary(results))


if __name__ == "__main__":
    main()
