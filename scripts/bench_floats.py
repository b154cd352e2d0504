"""Prints how well the positions of drifting floats are forecast, see `sda.benchmarks.floats`."""

import argparse

from sda.benchmarks.floats import run, table

parser = argparse.ArgumentParser(description=__doc__)
parser.add_argument("--truths", type=int, default=4)
parser.add_argument("--members", type=int)
options = parser.parse_args()
rows = [row for index in range(options.truths) for row in run(index, members=options.members)]
print(table(rows))
