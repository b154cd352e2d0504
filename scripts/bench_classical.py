"""Times the classical filters against the reference NumPy implementation.

    python scripts/bench_classical.py --reference-python PATH

PATH is the interpreter of an environment with the package `dapper` (default: this one's).
CPU seconds of each run, one thread.
"""

import argparse
import sys

import torch

from sda.benchmarks.classical import FILTERS, field_analysis, measure, reference


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--reference-python", default=sys.executable)
    parser.add_argument("--filters", nargs="+", default=list(FILTERS), choices=list(FILTERS))
    parser.add_argument("--cycles", type=int, default=1000)
    parser.add_argument("--repetitions", type=int, nargs="+", default=[1, 64])
    parser.add_argument("--tries", type=int, default=3)
    parser.add_argument("--field", action="store_true", help="only an analysis of 64² cells")
    parser.add_argument("--threads", type=int, default=2, help="of that analysis")
    options = parser.parse_args()
    if options.field:
        torch.set_num_threads(options.threads)
        found = field_analysis(tries=options.tries)
        print(
            f"LETKF on 64² cells, 40 members, {found['values']:.0f} values: {found['seconds']:.2f} "
            f"s by the clock, {found['processor_seconds']:.2f} s of processors, RMSE "
            f"{found['background']:.3f} -> {found['analysis']:.3f}"
        )
        return
    torch.set_num_threads(1)

    theirs = reference(options.reference_python, options.cycles, options.tries)
    if not theirs:
        print(f"{options.reference_python} has no package dapper: only ours are timed")
    print("| filter | runs at once | CPU seconds per run | RMSE | diverged | times faster |")
    print("|---|---|---|---|---|---|")
    for name in options.filters:
        known = theirs.get(name)
        if known:
            row = f"1 | {known['seconds']:.3f} | {known['rmse']:.3f} | – | 1"
            print(f"| {name}, reference | {row} |", flush=True)
        for repetitions in options.repetitions:
            found = measure(name, repetitions, options.cycles, options.tries)
            faster = f"{known['seconds'] / found.seconds:.1f}" if known else "–"
            print(
                f"| {name} | {repetitions} | {found.seconds:.4f} | {found.rmse:.3f} | "
                f"{found.diverged} | {faster} |",
                flush=True,
            )


if __name__ == "__main__":
    main()
