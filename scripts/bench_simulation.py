"""Times the simulation of Kolmogorov flow against two baselines, and measures its peak memory.

All times are per trajectory and 0.2 time units, on developed turbulence, the best of a few rounds
in which the solvers take turns: processor time with one thread, else wall-clock time.

    python scripts/bench_simulation.py --threads 1
"""

import argparse
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path

import torch
from torch import Tensor

from dynamics import KolmogorovFlow
from dynamics.finite_volume import FiniteVolumeKolmogorov


def straightforward(flow: KolmogorovFlow, w: Tensor, steps: int) -> Tensor:
    """The loop that one writes first: RK4 on the vorticity equation in advective form."""

    n = flow.resolution
    dt = flow.dt / steps
    ky = torch.fft.fftfreq(n, 1 / n)[:, None]
    kx = torch.fft.rfftfreq(n, 1 / n)[None, :]
    k2 = ky**2 + kx**2
    inverse = torch.where(k2 > 0, 1 / k2.clamp(min=1), 0.0)
    mask = ((ky.abs() <= n // 3) & (kx <= n // 3)).float()
    y = (torch.arange(n) + 0.5) * 2 * torch.pi / n
    force = -flow.forcing * flow.wavenumber * torch.cos(flow.wavenumber * y)
    force = torch.fft.rfft2(force[:, None].expand(n, n))

    def tendency(w: Tensor) -> Tensor:
        psi = -inverse * w
        u = torch.fft.irfft2(-1j * ky * psi)
        v = torch.fft.irfft2(1j * kx * psi)
        w_x = torch.fft.irfft2(1j * kx * w)
        w_y = torch.fft.irfft2(1j * ky * w)
        advection = torch.fft.rfft2(u * w_x + v * w_y)
        return mask * (force - advection) - (k2 / flow.reynolds + flow.drag) * w

    for _ in range(steps):
        k1 = tendency(w)
        k2_ = tendency(w + dt / 2 * k1)
        k3 = tendency(w + dt / 2 * k2_)
        k4 = tendency(w + dt * k3)
        w = w + dt / 6 * (k1 + 2 * k2_ + 2 * k3 + k4)

    return w


def seconds(function: Callable[[], object]) -> float:
    # A busy machine does not disturb the processor time, which adds up over threads though.
    clock = time.process_time if torch.get_num_threads() == 1 else time.perf_counter
    start = clock()
    function()

    return clock() - start


def bench_speed(batch: int, rounds: int, spinup: int) -> None:
    flow = KolmogorovFlow(size=64, resolution=128)
    volumes = FiniteVolumeKolmogorov(size=64, resolution=256)
    z = flow.initial_model(range(batch), seed=0)
    for _ in range(spinup):
        z = flow.advance(z)
    faces = volumes.lift(flow.project(z))
    count = flow.substeps(z)
    most = int(count.max())

    # One member after the other against a batch: the same work, and its own number of steps.
    work: dict[str, Callable[[], object]] = {
        f"spectral 128², batch {batch}": lambda: flow.advance(z),
        "spectral 128², one by one": lambda: [flow.advance(z[i : i + 1]) for i in range(batch)],
        f"rfft2 loop 128², batch {batch}": lambda: straightforward(flow, z, most),
        "rfft2 loop 128², one by one": lambda: [
            straightforward(flow, z[i], int(count[i])) for i in range(batch)
        ],
        f"finite volumes 256², batch {batch}": lambda: volumes.advance(faces),
        "finite volumes 256², one by one": lambda: [
            volumes.advance(faces[i : i + 1]) for i in range(batch)
        ],
    }
    best = {name: float("inf") for name in work}
    for _ in range(rounds):
        for name, function in work.items():
            best[name] = min(best[name], seconds(function) / batch)

    reference = min(value for name, value in best.items() if name.startswith("spectral"))
    own, theirs = count.float().mean().item(), volumes.substeps(faces).float().mean().item()
    print(
        f"{torch.get_num_threads()} thread(s), float32, inner steps per 0.2: {own:.1f} spectral, "
        f"{theirs:.1f} finite volumes"
    )
    print(f"{'solver':38} {'ms / 0.2':>9} {'ratio':>7}")
    for name, value in best.items():
        print(f"{name:38} {1e3 * value:9.1f} {value / reference:7.2f}")

    exact = straightforward(flow, z.to(torch.complex64), most)
    error = (flow.advance(z) - exact).norm() / exact.norm()
    print(f"difference of spectral and rfft2 loop after 0.2: {error:.1e}")


STREAM = """
import resource, sys, torch
from dynamics import KolmogorovFlow
torch.set_num_threads(1)
out, members = sys.argv[1], int(sys.argv[2])
KolmogorovFlow(size=64, resolution=64).simulate(members, 32, out=out, member_block=8, time_block=8)
print(resource.getrusage(resource.RUSAGE_SELF).ru_maxrss)
"""


def bench_memory() -> None:
    peaks = {}
    with tempfile.TemporaryDirectory() as folder:
        for members in (8, 64):
            done = subprocess.run(
                [sys.executable, "-c", STREAM, str(Path(folder) / f"{members}.zarr"), str(members)],
                capture_output=True,
                text=True,
                check=True,
            )
            peaks[members] = int(done.stdout.split()[-1]) / 1024
    print("peak memory of a streamed simulation (64², 32 states, blocks of 8 members × 8 states):")
    for members, peak in peaks.items():
        print(f"{members:3} members {peak:7.0f} MiB {peak / peaks[8]:7.2f}")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--batch", type=int, default=4)
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--spinup", type=int, default=25, help="steps of 0.2 before timing")
    options = parser.parse_args()
    torch.set_num_threads(options.threads)
    with torch.no_grad():
        bench_speed(options.batch, options.rounds, options.spinup)
    bench_memory()


if __name__ == "__main__":
    main()
