"""Prints what a GPU does in sampling, see `sda.benchmarks.gpu`.

python scripts/bench_gpu.py                            # 64² cells, a network that has not learned
python scripts/bench_gpu.py --prior kolmogorov         # the shipped prior, 32² cells
python scripts/bench_gpu.py --device cpu --size 16 --members 2 --steps 2 --matrix 256
"""

import argparse
import sys

import torch

from sda import Prior
from sda.benchmarks.gpu import WAYS, matrix_peak, profile, table, untrained_prior
from sda.benchmarks.kolmogorov import make_observations
from sda.benchmarks.training import small_dataset


def main(arguments: list[str] | None = None) -> int:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--device", default="cuda", choices=("cuda", "cpu"))
    parser.add_argument("--prior", help="a name or a folder (default: not trained)")
    parser.add_argument("--size", type=int, default=64, help="cells of a side, if not trained")
    parser.add_argument("--width", type=int, default=64, help="channels, if not trained")
    parser.add_argument("--depth", type=int, default=6, help="blocks, if not trained")
    parser.add_argument("--members", type=int, default=64)
    parser.add_argument("--length", type=int, default=32, help="states")
    parser.add_argument("--steps", type=int, default=24, help="noise levels")
    parser.add_argument("--matrix", type=int, default=8192, help="rows, to measure the peak")
    parser.add_argument("--rounds", type=int, default=5, help="of a step, the best counts")
    names = [way.name for way in WAYS]
    parser.add_argument("--ways", nargs="+", default=names, choices=names)
    options = parser.parse_args(arguments)

    if options.device == "cuda" and not torch.cuda.is_available():
        print("bench_gpu needs a GPU, and torch sees none: give --device cpu to try the code")
        return 2
    device = torch.device(options.device)
    if device.type == "cuda":
        print(torch.cuda.get_device_name(device), f"torch {torch.__version__}", file=sys.stderr)
    if options.prior:
        prior = Prior.load(options.prior)
    else:
        network = {"name": "gated", "width": options.width, "depth": options.depth}
        prior = untrained_prior(options.size, network={**network, "dilations": [1, 2]})
    size = prior.layout.shape[-1]
    truth = small_dataset(1, options.length, size).isel(member=0)
    observations = make_observations("blocks", truth, 0)
    rows = profile(
        prior, observations, truth["time"].values, options.members, device,
        [way for way in WAYS if way.name in options.ways], steps=options.steps,
        rounds=options.rounds,
    )  # fmt: skip
    print(table(rows, matrix_peak(device, options.matrix, rounds=options.rounds)))

    return 0


if __name__ == "__main__":
    sys.exit(main())
