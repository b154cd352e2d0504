"""Prints what an assimilation costs per grid point, for the shipped priors of fields.

Every prior assimilates the same share of its grid points, a draw of its own climatology observed at
every fourth cell along each dimension and in every second state. Processor seconds of one thread
that more members take, the best of some rounds: what they share, the matrices of noise levels, is
left out.

    python scripts/bench_systems.py
"""

import argparse
import math
import time

import torch

from sda import Prior, assimilate
from sda.assimilation import trajectory_denoiser
from sda.observation import Select, Subsample, observe

PRIORS = ("kolmogorov", "toy-weather", "toy-ocean")


def seconds(name: str, members: int, length: int, rounds: int) -> tuple[float, float, int]:
    """The seconds of an assimilation and of its evaluations alone, and the states' values."""

    prior = Prior.load(name)
    layout, climatology = prior.layout, prior.climatology
    noise = torch.randn(1, length, *layout.shape, generator=torch.Generator().manual_seed(0))
    drawn = climatology.covariance(length).sample(noise)
    truth = layout.to_dataset(climatology.denormalise(drawn)).isel(member=0)
    every = dict.fromkeys(layout.dims, 4)
    std = {
        name: 0.1 * float(scale)
        for name, scale in zip(layout.variables, climatology.scale, strict=True)
    }
    observations = observe(truth, Select(every=2) >> Subsample(every), std, seed=0)

    def assimilation(number: int) -> float:
        start = time.process_time()
        assimilate(prior, observations, number, 0, time=truth["time"])
        return time.process_time() - start

    # The difference of two runs has nothing of what all members share.
    whole = min(
        (assimilation(2 * members) - assimilation(members)) / members for _ in range(rounds)
    )
    denoiser = trajectory_denoiser(prior, length, torch.float32, "2GiB", "float32")
    x = noise.expand(members, *noise.shape[1:]).contiguous()
    times = []
    with torch.no_grad():
        for _ in range(rounds + 1):
            start = time.process_time()
            denoiser.denoise(x, torch.tensor(1.0))
            times.append(time.process_time() - start)

    return whole, min(times[1:]) / members, math.prod(layout.shape)


if __name__ == "__main__":
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--priors", nargs="+", default=PRIORS)
    parser.add_argument("--members", type=int, default=4)
    parser.add_argument("--length", type=int, default=17)
    parser.add_argument("--rounds", type=int, default=3)
    options = parser.parse_args()
    torch.set_num_threads(1)
    print("| prior | values of a state | parameters | evaluation, µs | assimilation, ms | ratio |")
    print("|---|---|---|---|---|---|")
    first = None
    for name in options.priors:
        whole, once, values = seconds(name, options.members, options.length, options.rounds)
        network = Prior.load(name).denoiser
        size = sum(p.numel() for p in network.parameters()) if network is not None else 0
        per = whole / (options.length * values)
        first = first or per
        print(
            f"| {name} | {values} | {size} | {1e6 * once / (options.length * values):.2f} | "
            f"{1e3 * per:.3f} | {per / first:.2f} |",
            flush=True,
        )
    print("\nper member, state and value; the ratio is to the first row")
