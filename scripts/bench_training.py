"""Prints what surrounds the network in a step of sampling and of training.

python scripts/bench_training.py            # 10 minutes on one core

Composition: the time of a guided step from the bare network outwards, for 8×8 block averages of
Kolmogorov flow. Solve: the guidance by saturating vorticity, in observation space and by conjugate
gradients. Throughput: `sda.train` and a bare loop over the same network and batches, in turns.
"""

import argparse

import torch

from sda import Prior
from sda.benchmarks.kolmogorov import make_observations, make_truth, system
from sda.benchmarks.training import (
    composition,
    composition_table,
    kolmogorov_options,
    small_dataset,
    solves,
    solves_table,
    throughput,
)

if __name__ == "__main__":
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    tables = ("composition", "solve", "throughput")
    parser.add_argument("--tables", nargs="+", default=tables, choices=tables)
    parser.add_argument("--prior", default="kolmogorov", help="a name or a folder")
    parser.add_argument("--members", type=int, default=4)
    parser.add_argument("--length", type=int, default=16)
    parser.add_argument("--rounds", type=int, default=3, help="the best counts")
    parser.add_argument("--turns", type=int, default=12, help="of throughput")
    parser.add_argument("--steps", type=int, default=4, help="in a turn of throughput")
    parser.add_argument("--threads", type=int, default=1)
    options = parser.parse_args()

    torch.set_num_threads(options.threads)
    if "composition" in options.tables:
        prior = Prior.load(options.prior)
        truth = make_truth(0, options.length, system(prior.layout.shape[-1]))
        observations = make_observations("blocks", truth, 0)
        parts = composition(
            prior, observations, truth["time"].values, options.members, rounds=options.rounds
        )
        print(composition_table(parts), flush=True)
    if "solve" in options.tables:
        prior = Prior.load(options.prior)
        truth = make_truth(0, options.length, system(prior.layout.shape[-1]))
        observations = make_observations("saturating", truth, 0)
        rows = solves(
            prior, observations, truth["time"].values, options.members, rounds=options.rounds
        )
        print(solves_table(rows), flush=True)
    if "throughput" in options.tables:
        print(throughput(small_dataset(), kolmogorov_options(), options.turns, options.steps))
