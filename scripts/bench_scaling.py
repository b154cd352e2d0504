"""Measures time and peak memory against members, length, number of observations and grid size.

Each measurement is a process of its own on one thread; all together take a few minutes.

    python scripts/bench_scaling.py --out docs/figures/scaling.png
    python scripts/bench_scaling.py --axes members length
"""

import argparse
from pathlib import Path

from sda import plotting
from sda.benchmarks.scaling import AXES, measured, plot, sizes, table


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--axes", nargs="+", choices=list(AXES), default=list(AXES))
    parser.add_argument("--out", type=Path, help="a figure to draw (png, pdf, svg)")
    arguments = parser.parse_args()

    results: dict = {axis: {} for axis in arguments.axes}
    for axis in arguments.axes:
        for value, size in sizes(axis, AXES[axis]).items():
            results[axis][value] = measured(size)
            print(table({axis: {value: results[axis][value]}}).splitlines()[-1], flush=True)
    print(f"\n{table(results)}")
    if arguments.out is not None:
        plotting.save(plot(results), arguments.out, overwrite=True)


if __name__ == "__main__":
    main()
