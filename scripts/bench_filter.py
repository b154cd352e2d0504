"""Prints the table of filters over many cycles, see `sda.benchmarks.filtering`."""

import argparse

from sda.benchmarks.filtering import CASES, ENGINE, SEED, run, table

parser = argparse.ArgumentParser(description=__doc__)
parser.add_argument("--cases", nargs="+", default=list(CASES), choices=CASES)
parser.add_argument("--methods", nargs="+", choices=[*ENGINE, "particle filter", "etkf"])
parser.add_argument("--cycles", type=int, default=1000)
parser.add_argument("--members", type=int, default=64)
parser.add_argument("--particles", type=int, default=2**14)
parser.add_argument("--truths", type=int, default=1, help="the number of truths")
parser.add_argument("--first", type=int, default=0, help="the first of them")
parser.add_argument("--precision", choices=("float32", "bfloat16"), help="of the engine's network")
parser.add_argument("--history", type=int, help="states of a window of the engine")
parser.add_argument("--lag", type=int, help="states before each cycle that are analysed again")
options = parser.parse_args()

names = ("history", "lag", "precision")
more = {name: getattr(options, name) for name in names if getattr(options, name)}
rows = []
for truth in range(options.first, options.first + options.truths):
    for row in run(
        options.cases, options.methods, options.cycles, options.members, options.particles,
        seed=SEED + truth, more=more,
    ):  # fmt: skip
        print(row, flush=True)
        rows.append(row)
print(table(rows))
