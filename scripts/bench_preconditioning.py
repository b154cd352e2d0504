"""Prints held-out denoising errors of two preconditionings at the same training budget.

python scripts/bench_preconditioning.py runs/kolmogorov.zarr     # 5 minutes on one core

The data are those of `scripts/train_kolmogorov.sh`; of so many members, the last tenth is held out.
"""

import argparse

import torch

from sda.benchmarks.training import kolmogorov_options, preconditioning, preconditioning_table
from sda.data import open_dataset

if __name__ == "__main__":
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("data", help="a store of `sda simulate system=kolmogorov system.size=32`")
    parser.add_argument("--members", type=int, default=64, help="of the store")
    parser.add_argument("--steps", type=int, default=400)
    parser.add_argument("--batch", type=int, default=8)
    parser.add_argument("--width", type=int, default=32)
    parser.add_argument("--depth", type=int, default=4)
    parser.add_argument("--window", type=int, default=5)
    parser.add_argument("--precision", default="bfloat16", choices=("float32", "bfloat16"))
    parser.add_argument("--threads", type=int, default=1)
    options = parser.parse_args()

    torch.set_num_threads(options.threads)
    network = {
        "name": "gated", "width": options.width, "depth": options.depth, "dilations": [1, 2],
    }  # fmt: skip
    training = kolmogorov_options(
        window=options.window,
        network=network,
        steps=options.steps,
        batch=options.batch,
        precision=options.precision,
        # The average must not remember the start of so short a run.
        ema=0.98,
        warmup=20,
    )
    dataset = open_dataset(options.data).isel(member=slice(options.members))
    errors = preconditioning(dataset, training, device="cpu", progress=False)
    print(preconditioning_table(errors))
    for name in errors.parameters:
        print(f"{name}: {errors.parameters[name]:,} parameters, {errors.seconds[name]:.0f} s")
