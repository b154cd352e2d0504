"""Prints what sampling costs: ours against the published setting, on Lorenz-63, in one run.

The published setting needs a prior with a window of 5:
sh scripts/train_lorenz63.sh training.window=5 out=runs/lorenz63_5 name=lorenz63_5
"""

import argparse

from sda import Prior
from sda.benchmarks.lorenz63 import METHODS, run

parser = argparse.ArgumentParser(description=__doc__)
parser.add_argument("--case", default="lo")
parser.add_argument("--prior", default="lorenz63")
parser.add_argument("--prior5", default="runs/lorenz63_5")
parser.add_argument("--members", type=int, default=64)
options = parser.parse_args()

published = next(name for name, method in METHODS.items() if method.window5)
rows = run(
    options.case,
    Prior.load(options.prior),
    ["flow-dependent + Langevin", published],
    Prior.load(options.prior5),
    sets=1,
    members=options.members,
)
print("| method | W1 / floor | seconds per member | evaluations | VJPs |\n|---|---|---|---|---|")
for row in rows:
    print(
        f"| {row.method} | {row.ratio:.2f} | {row.seconds / options.members:.4f} | "
        f"{row.evaluations:.1f} | {row.vjps:.1f} |"
    )
print(f"ratio of seconds: {rows[1].seconds / rows[0].seconds:.0f}")
