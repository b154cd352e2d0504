"""Prints the table of methods on Kolmogorov flow, see `sda.benchmarks.kolmogorov`.

python scripts/bench_kolmogorov.py                      # all cases, 20 minutes on one core
python scripts/bench_kolmogorov.py --cases blocks        # the target case, 2 minutes
"""

import argparse
import sys

import torch

from sda import Prior
from sda.benchmarks.kolmogorov import (
    CASES,
    DEFAULT_METHODS,
    METHODS,
    Row,
    number,
    run,
    table,
    write_csv,
)


def show(row: Row) -> None:
    print(
        f"{row.case:12s} {row.index} {row.method:26s} RMSE {number(row.rmse)}  CRPS "
        f"{number(row.crps)}  spread-skill {number(row.spread_skill, 2)}  {row.seconds:.0f} s",
        file=sys.stderr,
        flush=True,
    )


if __name__ == "__main__":
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--prior", default="kolmogorov", help="a name or a folder")
    parser.add_argument("--cases", nargs="+", default=list(CASES), choices=list(CASES))
    parser.add_argument("--methods", nargs="+", default=DEFAULT_METHODS, choices=list(METHODS))
    parser.add_argument("--truths", type=int, default=2)
    parser.add_argument("--first", type=int, default=0, help="the index of the first truth")
    parser.add_argument("--members", type=int, default=16)
    parser.add_argument("--length", type=int, default=16)
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--out", help="a CSV file for the scores of each truth")
    options = parser.parse_args()

    torch.set_num_threads(options.threads)
    rows = run(
        Prior.load(options.prior), options.cases, options.methods, options.truths,
        options.members, options.length, report=show, first=options.first,
    )  # fmt: skip
    print(table(rows))
    if options.out:
        write_csv(rows, options.out)
