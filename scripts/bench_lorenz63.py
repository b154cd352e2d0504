"""Prints the table of methods on Lorenz-63, see `sda.benchmarks.lorenz63`."""

import argparse

from sda import Prior
from sda.benchmarks.lorenz63 import CASES, METHODS, Row, run, table


def show(row: Row) -> None:
    print(
        f"{row.case:6s} {row.index} {row.method:36s} W1 {row.w1:6.2f} = {row.ratio:5.2f} floor  "
        f"log p(x) {row.log_dynamics:8.1f}  log p(y|x) {row.log_likelihood:7.1f}  "
        f"wing {row.modes:.2f} (off by {row.modes_error:.2f})  {row.seconds:6.2f} s",
        flush=True,
    )


parser = argparse.ArgumentParser(description=__doc__)
parser.add_argument("--cases", nargs="+", default=list(CASES), choices=list(CASES))
parser.add_argument("--methods", nargs="+", default=["exact", *METHODS])
parser.add_argument("--prior", default="lorenz63")
parser.add_argument("--prior5", help="a prior with a window of 5, for the published setting")
parser.add_argument("--sets", type=int, default=5)
parser.add_argument("--first", type=int, default=0, help="the index of the first set")
parser.add_argument("--members", type=int, default=256)
parser.add_argument("--seed", type=int, default=0)
options = parser.parse_args()

prior = Prior.load(options.prior)
prior5 = Prior.load(options.prior5) if options.prior5 else None
rows = []
for case in options.cases:
    rows += run(
        case, prior, options.methods, prior5, options.sets, options.members, options.seed,
        report=show, first=options.first,
    )  # fmt: skip
print(table(rows))
