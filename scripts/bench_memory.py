"""Measures the peak memory of simulation and of assimilation against the number of members, in MiB.

Each is a process of its own, with blocks of 8 members of Kolmogorov flow on 32² cells.

    python scripts/bench_memory.py
"""

import argparse

from sda.benchmarks.memory import measure, table


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--members", type=int, nargs="+", default=[8, 64, 1024])
    parser.add_argument("--block", type=int, default=8)
    arguments = parser.parse_args()

    print(table(measure(arguments.members, arguments.block)))


if __name__ == "__main__":
    main()
