"""Prints how fast training windows are read and posteriors written, beside what waits for them.

python scripts/bench_io.py                                    # 5 minutes
python scripts/bench_io.py --store archive.zarr --memory 64   # a store of your own

Reading: from a Zarr store of which a quarter is in memory (or `--memory` MiB), beside a training
loop with the network of the shipped prior. Writing: blocks of a posterior, beside a plain file of
the same bytes on the same disk. Overlap: how long a sampler waits for the disk.
"""

import argparse
import os
import tempfile
from pathlib import Path

import torch

from dynamics import KolmogorovFlow
from sda import Prior
from sda.benchmarks.io import overlap, reading, writing
from sda.benchmarks.kolmogorov import make_observations, make_truth, system
from sda.benchmarks.training import kolmogorov_options

if __name__ == "__main__":
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    tables = ("reading", "writing", "overlap")
    parser.add_argument("--tables", nargs="+", default=tables, choices=tables)
    parser.add_argument("--store", help="of trajectories (default: one is simulated, 64 MiB)")
    parser.add_argument("--memory", type=int, default=16, help="MiB of the store kept in memory")
    parser.add_argument("--prior", default="kolmogorov", help="a name or a folder")
    parser.add_argument("--members", type=int, default=224, help="of a block that is written")
    parser.add_argument("--sampled", type=int, default=4, help="members of a block that is sampled")
    parser.add_argument("--length", type=int, default=29, help="states")
    parser.add_argument("--turns", type=int, default=12)
    parser.add_argument("--precision", default="bfloat16", choices=("float32", "bfloat16"))
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--folder", help="on the disk to measure (default: the working directory)")
    options = parser.parse_args()

    torch.set_num_threads(options.threads)
    with tempfile.TemporaryDirectory(dir=options.folder or os.getcwd()) as folder:
        if "reading" in options.tables:
            store = options.store
            if store is None:
                store = Path(folder) / "archive.zarr"
                KolmogorovFlow(size=32, resolution=32).simulate(
                    32, 256, spinup=8, seed=0, out=store, member_block=8
                )
            training = kolmogorov_options(precision=options.precision)
            print(reading(store, training, options.memory << 20, options.turns), flush=True)
        if "writing" in options.tables:
            place = Path(folder) / "writing"
            place.mkdir()
            prior = Prior.load(options.prior)
            print(writing(prior, place, options.length, options.members, options.turns), flush=True)
        if "overlap" in options.tables:
            prior = Prior.load(options.prior)
            if prior.denoiser is not None:
                prior.denoiser.precision = getattr(torch, options.precision)
            truth = make_truth(0, options.length, system(prior.layout.shape[-1]))
            observations = make_observations("blocks", truth, 0)
            place = Path(folder) / "overlap"
            place.mkdir()
            print(
                overlap(prior, observations, truth["time"].values, place, members=options.sampled)
            )
