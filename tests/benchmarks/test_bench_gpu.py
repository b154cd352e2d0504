"""The profile of sampling on a GPU runs on a CPU too, in small; compiled networks are the same."""

import importlib.util
from pathlib import Path

import pytest
import torch

from sda.benchmarks.gpu import (
    Row,
    matrix_peak,
    matrix_products,
    network_flops,
    table,
    untrained_prior,
)
from sda.prior import Prior

NETWORK = {"name": "gated", "width": 4, "depth": 1}


@pytest.fixture(scope="module")
def prior() -> Prior:
    made = untrained_prior(8, window=3, network=NETWORK)
    assert made.denoiser is not None
    # What has not learned says nothing: the last layer begins at zero.
    torch.nn.init.normal_(made.denoiser.network.last.conv.weight, std=0.1)

    return made


def script():
    path = Path(__file__).resolve().parents[2] / "scripts" / "bench_gpu.py"
    spec = importlib.util.spec_from_file_location("bench_gpu", path)
    assert spec is not None and spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)

    return module


def test_the_profile_runs_on_a_cpu(capsys: pytest.CaptureFixture[str]) -> None:
    ways = ["float32, one by one", "float32", "bfloat16"]
    sizes = "--size 16 --width 4 --depth 1 --members 2 --length 10 --steps 2 --matrix 32 --rounds 1"
    assert script().main(["--device", "cpu", *sizes.split(), "--ways", *ways]) == 0
    out = capsys.readouterr().out

    assert "Measured matrix peak" in out
    assert [line.split(" | ")[0][2:] for line in out.splitlines()[4:]] == ways
    assert "| 1.00 times |" in out


def test_without_a_gpu_one_line_says_so(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    assert script().main([]) == 2
    assert capsys.readouterr().out == (
        "bench_gpu needs a GPU, and torch sees none: give --device cpu to try the code\n"
    )


def test_operations_are_counted(prior: Prior) -> None:
    assert prior.denoiser is not None
    network, cells, windows = prior.denoiser.network, 8 * 8, 2
    channels = network.first.conv.in_channels
    inputs = (torch.zeros(windows, channels, 8, 8), torch.zeros(windows))
    convolutions = [m for m in network.modules() if isinstance(m, torch.nn.Conv2d)]
    linear = [m for m in network.modules() if isinstance(m, torch.nn.Linear)]
    expected = (
        2
        * windows
        * (
            cells * sum(m.weight.numel() for m in convolutions)
            + sum(m.weight.numel() for m in linear)
        )
    )

    assert network_flops(prior.denoiser, inputs) == expected
    assert matrix_peak(torch.device("cpu"), 16, torch.float32, 1) > 0


def test_the_table_compares_with_the_plain_loop() -> None:
    rows = [Row("float32", 0.1, 0.125, 1e12, 50.0), Row("bfloat16", 0.01, 0.0104, 1e12, 600.0)]
    lines = table(rows, 2e14).splitlines()

    assert lines[0].endswith("200 TFLOP/s")
    assert lines[4] == "| float32 | 100 | 10 | 5.0 % | 125 | 20.0 % | 50 | 1.00 times |"
    assert lines[5] == "| bfloat16 | 10 | 100 | 50.0 % | 10.4 | 3.8 % | 600 | 12.00 times |"


def test_rounding_is_restored() -> None:
    before = torch.backends.cuda.matmul.allow_tf32
    with matrix_products(not before):
        assert torch.backends.cuda.matmul.allow_tf32 is not before
    assert torch.backends.cuda.matmul.allow_tf32 is before


def test_the_network_is_captured_whole(prior: Prior) -> None:
    """One graph, without a break where the host would have to look at a value."""

    assert prior.denoiser is not None
    network = prior.denoiser.network
    whole = torch.compile(network, backend="eager", fullgraph=True)
    inputs = torch.randn(3, network.first.conv.in_channels, 8, 8), torch.randn(3)
    with torch.no_grad():
        torch.testing.assert_close(whole(*inputs), network(*inputs))


def test_a_compiled_network_gives_the_same(prior: Prior) -> None:
    # Captured and differentiated ahead of time; code is generated on a GPU or by hand only.
    compiled = prior.with_network(torch.float32, compiled="aot_eager")
    assert prior.denoiser is not None and compiled.denoiser is not None
    assert compiled.hash == prior.hash
    assert prior.denoiser.network._compiled_call_impl is None
    x = torch.randn(4, 5, 2, 8, 8, generator=torch.Generator().manual_seed(0))
    with torch.no_grad():
        expected = prior.trajectory(5).denoise(x, 0.3)
        found = compiled.trajectory(5).denoise(x, 0.3)
    torch.testing.assert_close(found, expected, rtol=1e-4, atol=1e-5)
    low = compiled.with_network(torch.bfloat16)
    assert low.denoiser is not None and low.denoiser.network is compiled.denoiser.network
