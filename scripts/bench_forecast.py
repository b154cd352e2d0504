"""Prints scores of forecasts by lead time, see `sda.benchmarks.forecast`.

With --free, runs the Kolmogorov prior freely instead and prints the enstrophy by time. The run is
kept in --out and goes on from there. With --of, prints that of a forecast which exists.
"""

import argparse
import time

import xarray as xr

from dynamics import KolmogorovFlow
from sda import Prior, forecast
from sda.benchmarks.forecast import CASES, METHODS, enstrophy, run, table

parser = argparse.ArgumentParser(description=__doc__)
parser.add_argument("--cases", nargs="+", default=list(CASES), choices=list(CASES))
parser.add_argument("--methods", nargs="+", default=METHODS, choices=METHODS)
parser.add_argument("--truths", type=int, default=4)
parser.add_argument("--first", type=int, default=0, help="the index of the first truth")
parser.add_argument("--members", type=int)
parser.add_argument("--free", type=int, help="the number of states of a free run, say 6400")
parser.add_argument("--out", default="runs/kolmogorov_free.zarr", help="the store of the free run")
parser.add_argument("--of", help="the store of a free run that exists, in place of a new one")
options = parser.parse_args()

if options.free or options.of:
    flow = KolmogorovFlow(size=32)
    usual = enstrophy(flow.simulate(16, 128, spinup=64, seed=1, progress=False))
    print(f"the system: enstrophy {usual.mean():.3f}, standard deviation {usual.std():.3f}")
    if options.of:
        result = xr.open_zarr(options.of, consolidated=False)
    else:
        start = flow.simulate(options.members or 1, 10, spinup=64, seed=0, progress=False)
        began = time.perf_counter()
        result = forecast(
            Prior.load("kolmogorov"), start, options.free, out=options.out, resume=True,
            progress=True,
        )  # fmt: skip
        print(f"{options.free} states in {time.perf_counter() - began:.0f} s")
    length = result.sizes["time"]
    part = max(1, length // 20)
    for first in range(0, length, part):
        values = enstrophy(result.isel(time=slice(first, first + part)))
        print(f"states {first:5d} to {first + part:5d}: {values.mean():.3f} ± {values.std():.3f}")
else:
    rows = []
    for case in options.cases:
        for index in range(options.first, options.first + options.truths):
            for row in run(case, index, options.methods, options.members):
                rows.append(row)
                shown = ", ".join(f"{row.crps[i - 1]:.3f}" for i in CASES[case].leads)
                print(
                    f"{case} {index} {row.method:18s} CRPS {shown}  {row.seconds:.0f} s", flush=True
                )
    print(table(rows))
