"""What each equation conserves, and where the rest goes."""

import math

import pytest
import torch

import dynamics
from dynamics.finite_volume import FiniteVolumeKolmogorov
from dynamics.spectral import divergence

F64 = torch.float64


def rate(before: torch.Tensor, after: torch.Tensor, dt: float) -> torch.Tensor:
    return (after - before) / (2 * dt)


def test_lorenz63_has_the_known_climatology() -> None:
    system = dynamics.Lorenz63(dt=0.01)
    x = system.layout.to_array(system.simulate(400, 60, spinup=600, stride=10, dtype=F64))
    x = torch.from_numpy(x).flatten(0, 1)
    assert torch.allclose(x.mean(0), torch.tensor([0, 0, 23.55], dtype=F64), atol=0.25)
    assert torch.allclose(x.std(0), torch.tensor([7.92, 9.01, 8.62], dtype=F64), rtol=0.015)
    # Stationary moments: d<z>/dt = 0 gives <xy> = β <z>, and d<x²>/dt = 0 gives <x²> = <xy>.
    x, y, z = x.unbind(-1)
    assert math.isclose((x * y).mean(), 8 / 3 * z.mean(), rel_tol=0.02)
    assert math.isclose((x * x).mean(), (x * y).mean(), rel_tol=0.02)


def test_lorenz63_keeps_its_equilibria() -> None:
    root = math.sqrt(8 / 3 * 27)
    x = torch.tensor([[root, root, 27], [-root, -root, 27], [0, 0, 0]], dtype=F64)
    assert torch.allclose(dynamics.Lorenz63().step(x), x, atol=1e-12)


def test_lorenz96_advection_conserves_energy() -> None:
    x = dynamics.Lorenz96().initial(3, dtype=F64) * torch.randn(3, 1, 40, dtype=F64)
    advection = dynamics.Lorenz96.advection(x)
    assert ((x * advection).sum(-1) / (x.square().sum(-1))).abs().max() < 1e-12
    # And so the stepping does without forcing and damping, to its order.
    from dynamics.integrate import rk4

    y = x
    for _ in range(100):
        y = rk4(dynamics.Lorenz96.advection, y, 1e-3)
    assert torch.allclose(y.square().sum(-1), x.square().sum(-1), rtol=1e-8)
    assert not torch.allclose(y, x, rtol=0.1)


def test_lorenz96_has_the_known_climatology_and_balance() -> None:
    system = dynamics.Lorenz96()
    x = system.layout.to_array(system.simulate(64, 100, spinup=200, stride=5, dtype=F64))
    x = torch.from_numpy(x)
    assert math.isclose(x.mean(), 2.34, abs_tol=0.05)
    assert math.isclose(x.std(), 3.64, abs_tol=0.05)
    # Stationary energy: <x²> = F <x>.
    assert math.isclose(x.square().mean(), 8 * x.mean(), rel_tol=0.01)
    shifted = system.step(x[:, 0].roll(7, -1))
    assert torch.allclose(shifted, system.step(x[:, 0]).roll(7, -1), rtol=1e-12)


@pytest.mark.parametrize("dtype", [torch.float32, F64], ids=str)
def test_kuramoto_sivashinsky_conserves_its_mean(dtype: torch.dtype) -> None:
    system = dynamics.KuramotoSivashinsky()
    x = system.initial(3, dtype=dtype) + 0.5
    y = system.rollout(x, 200)[:, -1]
    tolerance = 1e-5 if dtype == torch.float32 else 1e-12
    assert (y.mean(-1) - x.mean(-1)).abs().max() < tolerance
    assert y.std() > 0.5


def test_kuramoto_sivashinsky_energy_budget() -> None:
    warm = dynamics.KuramotoSivashinsky()
    x = warm.rollout(warm.initial(3, dtype=F64), 100)[:, -1]
    dt = 1e-4
    system = dynamics.KuramotoSivashinsky(dt=dt)
    now = system.step(x)
    change = rate(x.square().mean(-1) / 2, system.step(now).square().mean(-1) / 2, dt)
    k = system.wavenumber
    slope = torch.fft.irfft(1j * k * torch.fft.rfft(now), n=64)
    bend = torch.fft.irfft(-(k**2) * torch.fft.rfft(now), n=64)
    gain, loss = slope.square().mean(-1), bend.square().mean(-1)
    assert torch.allclose(change, gain - loss, atol=1e-6 * gain.max().item())
    assert torch.allclose(system.step(x.roll(5, -1)), now.roll(5, -1), atol=1e-12)


def kolmogorov(**options) -> dynamics.KolmogorovFlow:
    return dynamics.KolmogorovFlow(**{"size": 32, "resolution": 32, "reynolds": 100.0, **options})


def developed(flow: dynamics.KolmogorovFlow, steps: int = 10) -> torch.Tensor:
    z = flow.initial_model(range(3), seed=2, dtype=F64)
    for _ in range(steps):
        z = flow.advance(z)

    return z


@pytest.mark.parametrize("drag", [0.0, 0.1])
def test_taylor_green_vortices_decay_exactly(drag: float) -> None:
    flow = kolmogorov(forcing=0.0, drag=drag, reynolds=10.0)
    y, x = (torch.from_numpy(flow.layout.coords[dim]) for dim in ("y", "x"))
    u = -torch.cos(x) * torch.sin(y)[:, None]
    v = torch.sin(x) * torch.cos(y)[:, None]
    start = torch.stack((u, v))[None]
    end = flow.rollout(start.float(), 11)[:, -1].double()
    exact = start * math.exp(-(2 / 10 + drag) * 2.0)
    assert (end - exact).abs().max() < 1e-6 * exact.abs().max()


def test_kolmogorov_energy_and_enstrophy_budgets() -> None:
    z = developed(kolmogorov())
    dt = 1e-4
    flow = kolmogorov(dt=dt)
    now = flow.advance(z)
    after = flow.advance(now)

    def fields(z: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        velocity = flow.project(z)
        return velocity, dynamics.vorticity(velocity)

    def means(z: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        velocity, w = fields(z)
        return velocity.square().sum(1).mean((1, 2)) / 2, w.square().mean((1, 2)) / 2

    velocity, w = fields(now)
    energy, enstrophy = means(now)
    y = torch.from_numpy(flow.layout.coords["y"])[:, None]
    k = torch.fft.fftfreq(32, 1 / 32, dtype=F64)
    grad = torch.stack(
        [
            torch.fft.ifft(1j * k * torch.fft.fft(w)).real,
            torch.fft.ifft(1j * k[:, None] * torch.fft.fft(w, dim=1), dim=1).real,
        ]
    )
    injection = (velocity[:, 0] * torch.sin(4 * y)).mean((1, 2))
    budget = injection - 2 * enstrophy / 100 - 2 * 0.1 * energy
    assert torch.allclose(rate(means(z)[0], means(after)[0], dt), budget, atol=1e-6)
    injection = (w * -4 * torch.cos(4 * y)).mean((1, 2))
    budget = injection - grad.square().sum(0).mean((1, 2)) / 100 - 2 * 0.1 * enstrophy
    scale = enstrophy.max().item()
    assert torch.allclose(rate(means(z)[1], means(after)[1], dt), budget, atol=1e-6 * scale)


def test_kolmogorov_moves_with_its_force() -> None:
    flow = kolmogorov()
    x = flow.project(developed(flow))
    y = flow.step(x)
    assert torch.allclose(flow.step(x.roll(5, -1)), y.roll(5, -1), atol=1e-10)
    assert torch.allclose(flow.step(x.roll(8, -2)), y.roll(8, -2), atol=1e-10)
    assert not torch.allclose(flow.step(x.roll(4, -2)), y.roll(4, -2), atol=1e-3)


def test_kolmogorov_stays_solenoidal_and_dealiased() -> None:
    flow = kolmogorov()
    z = developed(flow)
    velocity = flow.project(z)
    assert divergence(velocity).abs().max() < 1e-10
    spectrum = torch.fft.rfft2(velocity).abs().amax((0, 1))
    beyond = 32 // 3 + 1
    assert spectrum[beyond : 32 - beyond + 1].max() < 1e-10 * spectrum.max()
    assert spectrum[:, beyond:].max() < 1e-10 * spectrum.max()


def test_a_coarse_inviscid_flow_conserves_energy_and_enstrophy() -> None:
    flow = kolmogorov(forcing=0.0, drag=0.0, reynolds=1e12, dt=0.05)
    z = developed(flow, 0)
    end = z
    for _ in range(40):
        end = flow.advance(end)
    start, stop = (flow.project(s) for s in (z, end))
    energy = [u.square().sum(1).mean((1, 2)) for u in (start, stop)]
    enstrophy = [dynamics.vorticity(u).square().mean((1, 2)) for u in (start, stop)]
    assert torch.allclose(*energy, rtol=1e-3)
    assert torch.allclose(*enstrophy, rtol=1e-2)
    assert not torch.allclose(start, stop, atol=0.5)


def test_finite_volumes_are_solenoidal_and_approach_the_spectral_solution() -> None:
    errors = []
    for resolution in (32, 64):
        volumes = FiniteVolumeKolmogorov(16, resolution, reynolds=100.0)
        spectral = dynamics.KolmogorovFlow(16, reynolds=100.0, resolution=64)
        # The same band-limited field on both grids.
        x = dynamics.KolmogorovFlow(16, reynolds=100.0, resolution=32).initial(2, dtype=F64)
        z, w = volumes.lift(x), spectral.lift(x)
        for _ in range(3):
            z, w = volumes.advance(z), spectral.advance(w)
        assert volumes.divergence(z).abs().max() < 1e-10
        expected = spectral.project(w)
        errors.append(((volumes.project(z) - expected).norm() / expected.norm()).item())
    assert errors[1] < 0.65 * errors[0] < 0.3


def test_the_spectrum_finds_waves_in_their_shells() -> None:
    y, x = torch.meshgrid(*[2 * math.pi * torch.arange(16, dtype=F64) / 16] * 2, indexing="ij")
    velocity = torch.stack((torch.cos(3 * x + 4 * y), 2 * torch.sin(2 * y)))
    expected = torch.zeros(9, dtype=F64)
    expected[5], expected[2] = 1 / 4, 1
    spectrum = dynamics.energy_spectrum(velocity[None])
    assert torch.allclose(spectrum, expected[None], atol=1e-12)
