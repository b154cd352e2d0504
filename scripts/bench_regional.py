"""Prints the table of regional assimilation of the toy weather, see `sda.benchmarks.regional`.

python scripts/bench_regional.py                               # simulates first
python scripts/bench_regional.py --data runs/toy_weather.zarr --network toy-regional   # those of
sda simulate system=toy_weather members=48 length=240 spinup=400 seed=1 out=runs/toy_weather.zarr
"""

import argparse
import sys

import torch

from sda.benchmarks.regional import Row, Setup, run, table
from sda.config import build_system, compose
from sda.data import open_dataset
from sda.prior import Prior


def show(row: Row) -> None:
    scores = "  ".join(f"{name} {row.rmse[name]:.3g}, {row.crps[name]:.3g}" for name in row.rmse)
    print(f"{row.truth} {row.method:44s} RMSE, CRPS: {scores}", file=sys.stderr, flush=True)


if __name__ == "__main__":
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--data", help="trajectories of the toy weather, six hours apart")
    parser.add_argument("--truths", type=int, default=6)
    parser.add_argument("--members", type=int, default=32)
    parser.add_argument("--length", type=int, default=Setup.length)
    parser.add_argument("--stations", type=int, default=Setup.stations)
    parser.add_argument("--network", help="a conditioned prior: a folder, or toy-regional")
    parser.add_argument("--threads", type=int, default=1)
    options = parser.parse_args()

    torch.set_num_threads(options.threads)
    system = build_system(compose("simulate", ["system=toy_weather", "out=none"])["system"])
    if options.data:
        fine = open_dataset(options.data)
    else:
        fine = system.simulate(16 + options.truths, 300, spinup=480, seed=7)
    setup = Setup(length=options.length, stations=options.stations)
    network = Prior.load(options.network) if options.network else None
    print(table(run(system, fine, options.truths, setup, options.members, show, network)))
