"""Times spherical transforms against the equal-sized 2-D FFT, and a simulated day on the sphere.

A pair is an analysis and a synthesis of scalar fields, batched over members; the FFTs transform
the same fields forth and back. Both take turns and the best rounds count: processor time with one
thread, else wall-clock time. The day is that of `system=shallow_water`, on the developed jet.

    python scripts/bench_sphere.py --threads 1
"""

import argparse
import time
from collections.abc import Callable

import torch

from dynamics import ShallowWater, SphericalHarmonics


def seconds(function: Callable[[], object], repetitions: int = 1) -> float:
    # A busy machine does not disturb the processor time, which adds up over threads though.
    clock = time.process_time if torch.get_num_threads() == 1 else time.perf_counter
    start = clock()
    for _ in range(repetitions):
        function()

    return (clock() - start) / repetitions


def pairs(members: int, dtype: torch.dtype, rounds: int) -> tuple[float, float]:
    """The seconds of a pair of spherical transforms and of a pair of FFTs, at T42."""

    y = SphericalHarmonics(64, 128, 42)
    fields = torch.randn(members, 64, 128, dtype=dtype)

    def sphere() -> None:
        y.synthesis(y.analysis(fields))

    def plane() -> None:
        torch.fft.irfft2(torch.fft.rfft2(fields), s=(64, 128))

    times = [(seconds(sphere, 4), seconds(plane, 4)) for _ in range(rounds)]

    return min(first for first, _ in times), min(second for _, second in times)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--members", type=int, default=32)
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--rounds", type=int, default=50)
    arguments = parser.parse_args()
    torch.set_num_threads(arguments.threads)
    print(
        f"{arguments.members} members, T42 on 64 × 128, {arguments.threads} threads",
        end="\n\n",
    )

    print("| transform pair | sphere, ms | 2-D FFT, ms | ratio |\n|---|---|---|---|")
    for dtype in (torch.float32, torch.float64):
        sphere, plane = pairs(arguments.members, dtype, arguments.rounds)
        name = str(dtype).removeprefix("torch.")
        print(f"| {name} | {1e3 * sphere:.2f} | {1e3 * plane:.2f} | {sphere / plane:.2f} |")

    model = ShallowWater()
    z = model.initial_model(range(arguments.members))
    z = model.advance(z)

    def day() -> None:
        x = z
        for _ in range(round(24 / model.dt)):
            x = model.advance(x)

    wall, start = time.perf_counter(), time.process_time()
    day()
    wall, used = time.perf_counter() - wall, time.process_time() - start
    print(
        f"\none simulated day in steps of {60 * model.dt / model.substeps:g} minutes, float32: ",
        end="",
    )
    print(f"{wall:.1f} s, processor time {used:.1f} s")


if __name__ == "__main__":
    main()
