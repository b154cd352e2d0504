"""Prints the table of methods on Lorenz-96, see `sda.benchmarks.lorenz96`."""

import argparse

from sda import Prior
from sda.benchmarks.lorenz96 import oracle, run, table

parser = argparse.ArgumentParser(description=__doc__)
parser.add_argument("--priors", nargs="+", default=["lorenz96"], help="shipped names or paths")
parser.add_argument("--sets", type=int, default=3)
parser.add_argument("--members", type=int, default=64)
parser.add_argument("--polish", nargs=2, type=int, metavar=("PROPOSALS", "LEAPFROG"))
options = parser.parse_args()

rows = run(
    {name: Prior.load(name) for name in options.priors},
    {
        "static": {"guidance": "static", "langevin": None},
        "static + Langevin": {"guidance": "static", "langevin": "fields"},
        # Each member's own covariance, preconditioned by the climatology's: no pilots below s_flow.
        "hybrid + Langevin": {
            "guidance": {"name": "hybrid", "s_flow": 1e-3, "solves": 3}, "langevin": "fields",
        },
    },
    options.sets,
    options.members,
    options.polish and tuple(options.polish),
)  # fmt: skip
print(table(rows))
for index in range(options.sets):
    exact = oracle(index)
    print(
        f"reference {index}: largest R-hat {exact.rhat:.3f}, smallest sample size {exact.ess:.0f}"
    )
