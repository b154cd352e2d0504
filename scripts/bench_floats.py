"""Prints how well the positions of drifting floats are forecast, see `sda.benchmarks.floats`."""

import argparse

from sda.benchmarks.floats import run, table

parser = argparse.ArgumentParser(description=__doc__)
parser.add_argument("--truths", type=int, default=4)
parser.add_argument("--first", type=int, default=0, help="the index of the first truth")
parser.add_argument("--members", type=int)
options = parser.parse_args()
rows = []
for index in range(options.first, options.first + options.truths):
    for row in run(index, members=options.members):
        rows.append(row)
        print(f"{index} {row.method}", flush=True)
    print(table([row for row in rows if row.index == index]), flush=True)
if options.truths > 1:
    print(table(rows))
