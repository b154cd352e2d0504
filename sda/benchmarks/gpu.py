"""What a GPU does in sampling: the network's share of the matrix peak, and what surrounds it.

A guided posterior of Kolmogorov flow is sampled in several ways, from the plain loop in float32 to
a compiled network in bfloat16. The matrix peak is measured on the same device, by products of large
square matrices in bfloat16, and the network's operations are counted. Everything runs on a CPU too.
"""

import math
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor
from torch.utils.flop_counter import FlopCounterMode

from ..climatology import Climatology
from ..guidance import guide
from ..langevin import Langevin
from ..prior import Prior
from ..sampling import MemberNoise, sample
from ..window import WindowDenoiser
from .training import kolmogorov_options, recorded_inputs, small_dataset


@dataclass(frozen=True)
class Way:
    """A way to evaluate the network.

    Attributes:
        name: Its name.
        precision: "float32" or "bfloat16", of the network.
        tf32: Whether products of float32 matrices may be rounded to TensorFloat-32.
        compiled: Whether the network is compiled.
        single: Whether members are sampled one by one.
    """

    name: str
    precision: str = "float32"
    tf32: bool = False
    compiled: bool = False
    single: bool = False


PLAIN = "float32"
WAYS = (
    Way("float32, one by one", single=True),
    Way(PLAIN),
    Way("tf32", tf32=True),
    Way("bfloat16", "bfloat16"),
    Way("bfloat16, compiled", "bfloat16", compiled=True),
)


@dataclass
class Row:
    """What a way to evaluate the network takes.

    Attributes:
        way: Its name.
        network: The seconds of the network alone for the windows of one step.
        step: The seconds of a guided step.
        flops: The network's operations in a step.
        frames: Member-frames that are sampled per second, all levels and Langevin steps included.
    """

    way: str
    network: float
    step: float
    flops: float
    frames: float


def synchronise(device: torch.device) -> None:
    """Waits until a device has done all that it was given."""

    if device.type == "cuda":
        torch.cuda.synchronize(device)


def seconds(work: Callable[[], object], device: torch.device, rounds: int = 5) -> float:
    """The shortest time of some work, the device's included; run once before."""

    work()
    best = math.inf
    for _ in range(rounds):
        synchronise(device)
        start = time.perf_counter()
        work()
        synchronise(device)
        best = min(best, time.perf_counter() - start)

    return best


def matrix_peak(
    device: torch.device, size: int = 8192, dtype: torch.dtype = torch.bfloat16, rounds: int = 5
) -> float:
    """Operations per second of products of square matrices.

    Arguments:
        device: The device.
        size: The number of rows and columns.
        dtype: The type of the matrices.
        rounds: The number of rounds, of which the best counts.
    """

    a, b = torch.randn(2, size, size, device=device).to(dtype)
    out = torch.empty_like(a)

    return 2 * size**3 / seconds(lambda: torch.mm(a, b, out=out), device, rounds)


def network_flops(window: WindowDenoiser, inputs: tuple[Any, ...]) -> float:
    """The operations of one evaluation of a window denoiser's network."""

    with torch.no_grad(), FlopCounterMode(display=False) as counter:
        window.network(*inputs)

    return float(counter.get_total_flops())


def untrained_prior(size: int, **options: Any) -> Prior:
    """A prior of Kolmogorov flow whose network has not learned: it costs what a trained one does.

    Arguments:
        size: The number of cells of a side.
        options: Options of training that shape the network.
    """

    chosen = kolmogorov_options(**options)
    climatology = Climatology.fit(small_dataset(4, 2 * chosen.window, size), chosen.window)
    window = WindowDenoiser(
        climatology, chosen.window, chosen.network, advection=chosen.advection,
        incompressible=chosen.incompressible,
    )  # fmt: skip

    return Prior(climatology, window.eval().requires_grad_(False), f"untrained {size}")


def profile(
    prior: Prior,
    observations: Any,
    times: Any,
    members: int,
    device: torch.device | str,
    ways: Sequence[Way] = WAYS,
    s: float = 1.5,
    steps: int = 24,
    langevin: Langevin | None = None,
    rounds: int = 5,
) -> list[Row]:
    """Samples a posterior in several ways.

    Arguments:
        prior: A prior of fields, with a network.
        observations: The observations.
        times: The times of the trajectory.
        members: The number of members.
        device: The device.
        ways: The ways to evaluate the network.
        s: The noise level of the step that is timed on its own.
        steps: The number of noise levels.
        langevin: Langevin steps (default: those of fields).
        rounds: The number of rounds of a step, of which the best counts.

    Raises:
        ValueError: If the prior has no network.
    """

    plain = prior.denoiser
    if plain is None:
        raise ValueError("the profile is that of a network, but the prior is Gaussian")
    device = torch.device(device)
    prior = prior.to(device)
    length = len(times)
    shape = (length, *prior.layout.shape)
    likelihood = observations.likelihood(prior.layout, times, device=device)
    climatology = prior.climatology
    likelihood = likelihood.normalise(climatology.mean, climatology.scale)
    langevin = langevin or Langevin.for_fields()
    rows = []
    for way in ways:
        with matrix_products(way.tf32):
            own = prior.with_network(getattr(torch, way.precision), way.compiled)
            window, trajectory = own.denoiser, own.trajectory(length)
            if window is None:
                continue
            guided = guide("static", trajectory, likelihood, own.covariance(length))
            count = 1 if way.single else members

            def draw(
                count: int = count, guided: Any = guided, several: bool = way.single
            ) -> list[Tensor]:
                parts = [[m] for m in range(members)] if several else [list(range(count))]
                return [
                    sample(guided, shape, 0, part, steps=steps, langevin=langevin, device=device)
                    for part in parts
                ]

            noise = MemberNoise(0, range(count), 0, device=device)
            x = math.sqrt(1 + s**2) * noise(shape)
            starts = getattr(trajectory, "starts", [0])
            windows = torch.cat([x[:, i : i + own.window] for i in starts])
            inputs = recorded_inputs(window, windows, s)
            flops = network_flops(plain, inputs)

            def network(window: WindowDenoiser = window, inputs: Any = inputs) -> Tensor:
                low = window.precision == torch.bfloat16
                with torch.autocast(device.type, dtype=torch.bfloat16, enabled=low):
                    return window.network(*inputs)

            def step(guided: Any = guided, x: Tensor = x) -> Any:
                return guided.analyse(x, s)

            with torch.no_grad():
                alone, guided_step = (seconds(f, device, rounds) for f in (network, step))
            total = seconds(draw, device, 1)
            rows.append(Row(way.name, alone, guided_step, flops, members * length / total))

    return rows


@contextmanager
def matrix_products(tf32: bool) -> Iterator[None]:
    """Decides for a while whether products of float32 matrices may use TensorFloat-32."""

    matmul, cudnn = torch.backends.cuda.matmul, torch.backends.cudnn
    before = matmul.allow_tf32, cudnn.allow_tf32
    matmul.allow_tf32 = cudnn.allow_tf32 = tf32
    try:
        yield
    finally:
        matmul.allow_tf32, cudnn.allow_tf32 = before


def table(rows: Sequence[Row], peak: float) -> str:
    """A Markdown table.

    Arguments:
        rows: What was measured.
        peak: The measured matrix peak, in operations per second.
    """

    plain = next((row.frames for row in rows if row.way == PLAIN), math.nan)
    lines = [
        f"Measured matrix peak in bfloat16: {peak / 1e12:.3g} TFLOP/s",
        "",
        "| network | network alone, ms | TFLOP/s | of the peak | guided step, ms | outside the "
        "network | member-frames / s | of the plain loop's |",
        "|---" * 8 + "|",
    ]
    lines += [
        f"| {r.way} | {1e3 * r.network:.3g} | {r.flops / r.network / 1e12:.3g} | "
        f"{100 * r.flops / r.network / peak:.1f} % | {1e3 * r.step:.3g} | "
        f"{100 * (1 - r.network / r.step):.1f} % | {r.frames:.4g} | {r.frames / plain:.2f} times |"
        for r in rows
    ]

    return "\n".join(lines)
