"""Prints what a member costs beside the published method, see `sda.benchmarks.sampling`.

python scripts/bench_sampling.py                  # 5 minutes on one core
python scripts/bench_sampling.py --full           # all 256 steps, hence the published quality too
"""

import argparse
import sys

import torch

from sda import Prior
from sda.benchmarks.kolmogorov import write_csv
from sda.benchmarks.sampling import Row, kolmogorov, lorenz63, table


def show(row: Row) -> None:
    print(
        f"{row.case:26s} {row.method:36s} {row.seconds:.4g} s per member of {row.members}",
        file=sys.stderr,
        flush=True,
    )


if __name__ == "__main__":
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    systems = ("kolmogorov", "lorenz63")
    parser.add_argument("--systems", nargs="+", default=systems, choices=systems)
    parser.add_argument("--prior", default="kolmogorov", help="of the flow, a name or a folder")
    parser.add_argument("--prior63", default="lorenz63", help="of Lorenz-63, the same")
    parser.add_argument("--members", type=int, default=16, help="of the flow")
    parser.add_argument("--members63", type=int, default=256, help="of Lorenz-63")
    parser.add_argument("--few", type=int, default=2, help="of the published method on the flow")
    parser.add_argument("--length", type=int, default=16, help="states of the flow")
    parser.add_argument("--full", action="store_true", help="take all published steps")
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--out", help="a CSV file")
    options = parser.parse_args()

    torch.set_num_threads(options.threads)
    common = {"full": options.full, "report": show}
    rows: list[Row] = []
    if "lorenz63" in options.systems:
        for case in ("lo", "hi"):
            prior = Prior.load(options.prior63)
            rows += lorenz63(prior, case, options.members63, **common)
    if "kolmogorov" in options.systems:
        prior = Prior.load(options.prior)
        rows += kolmogorov(prior, options.members, options.length, few=options.few, **common)
    print(table(rows))
    if options.out:
        write_csv(rows, options.out)
