"""Wall times of the same runs in this process and on 1 and more worker processes of this machine.

python scripts/bench_cluster.py --members 512 --workers 1 2
"""

import argparse
import tempfile
import time
from pathlib import Path

import dynamics
import sda
from dynamics.cluster import connect
from sda.observation import Select


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--members", type=int, default=512)
    parser.add_argument("--length", type=int, default=2000, help="states of the simulation")
    parser.add_argument("--workers", type=int, nargs="+", default=[1, 2])
    arguments = parser.parse_args()

    system = dynamics.Lorenz96(noise=True)
    lorenz = dynamics.Lorenz63(noise=True)
    prior = sda.Prior.load("lorenz63")
    truth = lorenz.simulate(1, 65, spinup=1024, seed=1, progress=False).isel(member=0)
    observations = sda.observe(truth, Select(variables=["x"], every=8), std=0.5, seed=2)
    members = arguments.members
    runs = {
        "simulate": lambda out, **options: system.simulate(
            members, arguments.length, seed=3, out=out, progress=False,
            member_block=members // 8, **options,
        ),
        "assimilate": lambda out, **options: sda.assimilate(
            prior, observations, members, 4, out, block=members // 8, **options
        ),
    }  # fmt: skip
    print(f"{'run':12}{'where':12}{'seconds':>9}")
    with tempfile.TemporaryDirectory() as folder:

        def timed(name: str, where: str, **options: object) -> None:
            start = time.perf_counter()
            runs[name](Path(folder) / f"{name}-{where}.zarr", **options)
            print(f"{name:12}{where:12}{time.perf_counter() - start:9.1f}", flush=True)

        for name in runs:
            timed(name, "here")
        for workers in arguments.workers:
            start = time.perf_counter()
            with connect("local", workers) as pool:
                print(f"{'start':12}{f'{workers} workers':12}{time.perf_counter() - start:9.1f}")
                for name in runs:
                    # Workers import what they need with their first piece.
                    for turn in ("first", "again"):
                        timed(name, f"{workers} {turn}", cluster=pool.client)


if __name__ == "__main__":
    main()
