"""Makes the shipped prior of a region of the toy weather, given a coarse global analysis around it.

Trajectories in a box of the storm track are paired with coarse analyses of them, at eight
longitudes, and a window network is trained on what these leave open. About three minutes of
simulation, one of pairing, and a quarter of an hour of training on one thread of a CPU with AMX
bfloat16 (three quarters on a busy one). Extra arguments go to `sda train`.

    python scripts/train_toy_regional.py out=runs/toy-regional
    python scripts/train_toy_regional.py out=runs/longer training.steps=10000 training.decay=0.4
"""

import sys
from pathlib import Path

import torch

from sda.benchmarks.regional import Setup, training_pairs
from sda.config import build_system, compose, run_training
from sda.data import open_dataset

RUNS = Path(__file__).parents[1] / "runs"
TRUTHS = 6  # the last trajectories, as `scripts/bench_regional.py` takes them

if __name__ == "__main__":
    torch.set_num_threads(1)
    whole, pairs = RUNS / "toy_weather.zarr", RUNS / "toy_regional.zarr"
    if not whole.exists():
        system = build_system(compose("simulate", ["system=toy_weather", "out=none"])["system"])
        system.simulate(48, 240, spinup=400, seed=1, out=whole)
    if not pairs.exists():
        made = training_pairs(open_dataset(whole), Setup(turns=8), TRUTHS)
        made.chunk(member=1).to_zarr(pairs, mode="w", zarr_format=3, consolidated=False)
    out = RUNS.parent / "sda" / "priors" / "toy-regional"
    options = [f"data={pairs}", f"out={out}", "network=gated_toy", "network.width=40"]
    options += ["training=toy_regional", "device=cpu"]
    run_training(compose("train", [*options, *sys.argv[1:]]))
