"""Prints the table of filters over many cycles, see `sda.benchmarks.filtering`."""

import argparse

from sda.benchmarks.filtering import CASES, ENGINE, run, table

parser = argparse.ArgumentParser(description=__doc__)
parser.add_argument("--cases", nargs="+", default=list(CASES), choices=CASES)
parser.add_argument("--methods", nargs="+", choices=[*ENGINE, "particle filter", "etkf"])
parser.add_argument("--cycles", type=int, default=1000)
parser.add_argument("--members", type=int, default=64)
parser.add_argument("--particles", type=int, default=2**14)
parser.add_argument("--history", type=int, help="states of a window of the engine")
parser.add_argument("--lag", type=int, help="states before each cycle that are analysed again")
options = parser.parse_args()

more = {name: getattr(options, name) for name in ("history", "lag") if getattr(options, name)}
rows = []
for row in run(
    options.cases, options.methods, options.cycles, options.members, options.particles, more=more
):
    print(row, flush=True)
    rows.append(row)
print(table(rows))
