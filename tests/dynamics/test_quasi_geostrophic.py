"""Two-layer quasi-geostrophic flow: what it conserves, and how its waves grow and travel."""

import math

import numpy as np
import pytest
import torch
from torch import Tensor

import dynamics
from dynamics import TwoLayerQG
from sda import config

F64 = torch.float64
HOUR = 3600.0


def make(**options) -> TwoLayerQG:
    """A flow that shows every wave of its own grid."""

    defaults = {
        "size": 32,
        "resolution": 32,
        "radius": 30.0,
        "current": (0.1, 0.0),
        "drag": 0.0,
        "damping_time": None,
        "dt": 6.0,
    }

    return TwoLayerQG(**(defaults | options))


def wave(flow: TwoLayerQG, kx: int, ky: int, upper: complex, lower: complex) -> Tensor:
    """A plane wave with an amplitude in each layer, as a state."""

    y, x = (torch.from_numpy(flow.layout.coords[dim]) for dim in ("y", "x"))
    phase = torch.exp(2j * math.pi * (ky * y[:, None] + kx * x) / flow.width)

    return torch.stack([(amplitude * phase).real for amplitude in (upper, lower)])[None]


def eigenvalues(flow: TwoLayerQG, kx: int, ky: int) -> np.ndarray:
    """The rates σ of waves `exp(i k·x + σ time)`, from the linear equations of the layers."""

    k, l = (2 * math.pi / (1e3 * flow.width) * m for m in (kx, ky))
    h1, h2 = flow.depths
    square, radius = k * k + l * l, 1e3 * flow.radius
    f1, f2 = h2 / (h1 + h2) / radius**2, h1 / (h1 + h2) / radius**2
    u1, u2 = flow.current
    to_q = np.array([[-square - f1, f1], [f2, -square - f2]])
    advection = np.diag([u1, u2]) @ to_q + np.diag(
        [flow.beta + f1 * (u1 - u2), flow.beta + f2 * (u2 - u1)]
    )
    drag = np.diag([0, flow.drag * square])

    return np.linalg.eigvals(np.linalg.solve(to_q, -1j * k * advection + drag))


def measured_growth(flow: TwoLayerQG, kx: int, ky: int, steps: int = 300) -> float:
    """The rate at which a small wave grows in the end, per second."""

    x = wave(flow, kx, ky, 1e-3, 1e-3j)
    z = flow.lift(x)
    for _ in range(steps):
        z = flow.advance(z)
    before = flow.energy(flow.project(z)).sum()
    for _ in range(20):
        z = flow.advance(z)
    after = flow.energy(flow.project(z)).sum()

    return float((after / before).log()) / (2 * 20 * flow.dt * HOUR)


def test_equal_layers_grow_as_phillips_says() -> None:
    flow = make(depths=(1000.0, 1000.0), current=(0.1, -0.1), beta=0.0, dt=24.0)
    stretching = 0.5 / (1e3 * flow.radius) ** 2
    assert np.allclose(flow.stretching, stretching)
    for kx in (2, 3, 4):
        k = 2 * math.pi / (1e3 * flow.width) * kx
        theory = k * 0.1 * math.sqrt((2 * stretching - k * k) / (2 * stretching + k * k))
        assert math.isclose(measured_growth(flow, kx, 0, 80), theory, rel_tol=1e-5)
    # Waves shorter than the deformation radius do not grow.
    short = math.ceil(flow.width / flow.radius / (2 * math.pi))
    assert eigenvalues(flow, short, 0).real.max() < 1e-12
    x = wave(flow, short, 0, 1e-3, 1e-3j)
    ratio = flow.energy(flow.rollout(x, 200)).sum(-1) / flow.energy(x).sum()
    assert ratio.max() < 20


@pytest.mark.parametrize(("kx", "ky"), [(3, 0), (4, 2), (4, -1)])
def test_unequal_layers_with_beta_and_drag_grow_as_their_eigenvalues(kx: int, ky: int) -> None:
    flow = make(depths=(1000.0, 3000.0), drag=2e-7, beta=5e-12, dt=24.0)
    theory = eigenvalues(flow, kx, ky).real.max()
    assert theory > 1e-7
    assert math.isclose(measured_growth(flow, kx, ky), theory, rel_tol=1e-4)


def test_a_shear_below_the_critical_one_feeds_nothing() -> None:
    flow = make(depths=(1000.0, 3000.0))
    critical = flow.beta / flow.stretching[1]
    waves = [(kx, ky) for kx in range(1, 11) for ky in range(6)]
    below, above = (make(depths=(1000.0, 3000.0), current=(s * critical, 0.0)) for s in (0.99, 1.2))
    assert max(eigenvalues(below, *k).real.max() for k in waves) < 1e-15
    assert max(eigenvalues(above, *k).real.max() for k in waves) > 1e-8
    # Reversed shear is the upper layer's to make unstable.
    assert below.gradients[1] > 0 > above.gradients[1]


def test_rossby_waves_travel_at_their_speed() -> None:
    flow = make(current=(0.0, 0.0), dt=24.0)
    deformation = sum(flow.stretching)
    f1, f2 = flow.stretching
    for lower, extra in ((1.0, 0.0), (-f2 / f1, deformation)):
        k = 2 * math.pi / (1e3 * flow.width) * np.array([3, 2])
        frequency = -flow.beta * k[0] / ((k**2).sum() + extra)
        turn = np.exp(-1j * frequency * 10 * flow.dt * HOUR)
        amplitude = 1e4
        x = flow.rollout(wave(flow, 3, 2, amplitude, amplitude * lower), 11)[:, -1]
        expected = wave(flow, 3, 2, amplitude * turn, amplitude * lower * turn)
        assert torch.allclose(x, expected, atol=1e-5 * amplitude)


def eddies(flow: TwoLayerQG, members: int = 2) -> Tensor:
    return flow.initial_model(range(members), seed=3, dtype=F64)


def test_energy_is_conserved_without_forces() -> None:
    flow = make(current=(0.0, 0.0), depths=(1000.0, 3000.0), speed=1.0)
    q = eddies(flow)
    rate = flow.operators(F64, q.device).tendency(q)
    psi = flow.operators(F64, q.device).inverse(q)
    shares = torch.tensor(flow.shares, dtype=F64)[:, None, None]
    grid = [torch.fft.irfft2(h, s=(32, 32)) for h in (psi, rate)]
    change = (shares * grid[0] * grid[1]).sum(1).mean((-2, -1))
    scale = (shares * (grid[0] * grid[1]).abs()).sum(1).mean((-2, -1))
    assert (change.abs() < 1e-13 * scale).all()

    energy = flow.energy(flow.rollout(flow.project(q), 100)).sum(-1)
    assert torch.allclose(energy, energy[:, :1].expand_as(energy), rtol=1e-4)
    parts = flow.energy(flow.rollout(flow.project(q), 100))
    assert not torch.allclose(parts[:, -1], parts[:, 0], rtol=0.1)


def test_enstrophy_of_each_layer_is_conserved_without_gradients() -> None:
    flow = make(current=(0.0, 0.0), depths=(1000.0, 3000.0), beta=0.0, speed=1.0)
    q = eddies(flow)
    rate = flow.operators(F64, q.device).tendency(q)
    q, rate = (torch.fft.irfft2(h, s=(32, 32)) for h in (q, rate))
    assert ((q * rate).mean((-2, -1)).abs() < 1e-13 * (q * rate).abs().mean((-2, -1))).all()

    x = flow.rollout(flow.project(eddies(flow)), 50)
    enstrophy = flow.enstrophy(x)
    assert torch.allclose(enstrophy, enstrophy[:, :1].expand_as(enstrophy), rtol=2e-3)


def test_heat_flux_feeds_the_eddies_and_drag_takes_from_them() -> None:
    flow = make(depths=(1000.0, 3000.0), drag=1e-6, speed=0.5, dt=0.1)
    z = flow.lift(make(depths=(1000.0, 3000.0)).rollout(flow.project(eddies(flow)), 20)[:, -1])
    states = [flow.project(z)]
    for _ in range(2):
        z = flow.advance(z)
        states.append(flow.project(z))
    before, now, after = states
    change = (flow.energy(after) - flow.energy(before)).sum(-1) / (2 * flow.dt * HOUR)
    shear = flow.current[0] - flow.current[1]
    gain = flow.shares[0] * flow.stretching[0] * shear * flow.heat_flux(now).mean((-2, -1))
    loss = 2 * flow.drag * flow.energy(now)[:, 1]
    assert torch.allclose(change, gain - loss, rtol=1e-5)
    assert (loss > 0.01 * gain.abs()).all()


def test_hyperviscosity_damps_the_shortest_wave_as_asked() -> None:
    flow = make(current=(0.0, 0.0), beta=0.0, damping_time=6.0, dt=6.0)
    limit = flow.resolution // 3
    for kx in (limit, limit // 2):
        x = wave(flow, kx, 0, 1.0, 1.0)
        ratio = float((flow.step(x) / x).mean())
        assert math.isclose(ratio, math.exp(-((kx / limit) ** 8)), rel_tol=1e-9)


def test_a_shifted_state_takes_a_shifted_step() -> None:
    flow = make(depths=(1000.0, 3000.0), drag=1e-6, damping_time=3.0, speed=1.0, dt=24.0)
    x = flow.project(eddies(flow))
    for shift in ((5, 0), (0, 7), (-3, 4)):
        moved = flow.step(x.roll(shift, (-2, -1)))
        assert torch.allclose(moved, flow.step(x).roll(shift, (-2, -1)), atol=1e-9 * x.abs().max())


def test_quantities_of_a_state_agree_with_each_other() -> None:
    flow = make(depths=(1000.0, 3000.0), speed=1.0)
    q = eddies(flow)
    x = flow.project(q)
    assert torch.allclose(flow.potential_vorticity(x), torch.fft.irfft2(q, s=(32, 32)), atol=1e-15)
    # Geostrophic balance: f v = g ∂η/∂x, by differences on a wave that they resolve.
    long = wave(flow, 1, 1, 1e4, 2e3j)
    height, spacing = flow.sea_surface_height(long), 1e3 * flow.width / 32
    slope = (height.roll(-1, -1) - height.roll(1, -1)) / (2 * math.sin(math.pi / 16) * 16 / math.pi)
    v = flow.velocity(long)[:, 0, 1]
    assert torch.allclose(flow.coriolis * v, 9.81 * slope / spacing, atol=1e-12)
    tilt = flow.interface_displacement(x).square().mean((-2, -1))
    potential = flow.reduced_gravity * tilt / 2 / sum(flow.depths)
    assert torch.allclose(flow.energy(x)[:, 2], potential)
    # R² = g' H₁ H₂ / (f² (H₁ + H₂)).
    h1, h2 = flow.depths
    radius = math.sqrt(flow.reduced_gravity * h1 * h2 / (h1 + h2)) / flow.coriolis
    assert math.isclose(radius, 1e3 * flow.radius)
    divergence = dynamics.spectral.divergence(flow.velocity(x), 1e3 * flow.width)
    assert divergence.abs().max() < 1e-12 * flow.velocity(x).abs().max()


def test_the_toy_ocean_is_the_sea_that_its_preset_describes() -> None:
    ocean = config.build_system(config.compose("simulate", ["system=toy_ocean", "out=x"])["system"])
    assert isinstance(ocean, TwoLayerQG)
    dataset = ocean.simulate(2, 30, spinup=200, seed=2, stride=3)
    x = torch.from_numpy(ocean.layout.to_array(dataset))
    speed = ocean.velocity(x).square().sum(-3).mean((0, 1, 3, 4)).sqrt()
    assert torch.allclose(speed, torch.tensor([0.26, 0.063]), rtol=0.15)
    energy = ocean.energy(x).sum(-1).mean(0)
    assert 0.8 < energy[:15].mean() / energy[15:].mean() < 1.25


def test_what_cannot_flow_is_named() -> None:
    with pytest.raises(ValueError, match="divide the even resolution 64, got 48"):
        TwoLayerQG(size=48)
    with pytest.raises(ValueError, match="radius must be positive, got 0"):
        TwoLayerQG(radius=0.0)
    with pytest.raises(ValueError, match=r"\(…, 2, n, n\), got \(3, 8, 8\)"):
        TwoLayerQG().energy(torch.zeros(3, 8, 8))
    flow = make()
    with pytest.raises(FloatingPointError, match=r"diverged in members \[1\]"):
        flow.advance(torch.cat((eddies(flow, 1), eddies(flow, 1) * 1e9)))
    with pytest.raises(FloatingPointError, match=r"diverged in members \[0\]"):
        flow.advance(eddies(flow, 1) * math.nan)
