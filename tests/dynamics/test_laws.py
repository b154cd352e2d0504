"""What every dynamical system must satisfy, in one loop over all of them."""

import math
from typing import Any, cast

import pytest
import torch

import dynamics
from dynamics.finite_volume import FiniteVolumeKolmogorov
from dynamics.kolmogorov import complex_type
from dynamics.system import System

SYSTEMS: dict[str, System] = {
    "spring": dynamics.LinearGaussian.damped_spring(),
    "rotation": dynamics.LinearGaussian.rotation(),
    "lorenz63": dynamics.Lorenz63(dt=0.01, substeps=2),
    "lorenz63-noise": dynamics.Lorenz63(noise=True),
    "lorenz96": dynamics.Lorenz96(),
    "lorenz96-noise": dynamics.Lorenz96(dimension=9, noise=True, substeps=2),
    "kuramoto-sivashinsky": dynamics.KuramotoSivashinsky(substeps=2),
    "kolmogorov": dynamics.KolmogorovFlow(size=16, resolution=32, reynolds=100.0),
    "quasi-geostrophic": dynamics.TwoLayerQG(
        size=16, resolution=32, width=600.0, radius=30.0, current=(0.1, 0.0), speed=0.5
    ),
    "gyre": dynamics.OceanGyre(size=12, spacing=50.0, coast=0.25, viscosity=1e3),
    "finite-volume": FiniteVolumeKolmogorov(size=16, resolution=32, reynolds=100.0),
    "shallow-water": dynamics.ShallowWater(7, 15, 15, "equiangular", substeps=2),
    "toy-weather": dynamics.ToyWeather(10, 16, 32, first=3, last=6, orography="cone"),
}
STOCHASTIC = [name for name, system in SYSTEMS.items() if system.stochastic]
DETERMINISTIC = [name for name in SYSTEMS if name not in STOCHASTIC]
REAL = (torch.float32, torch.float64)


def settled(name: str, members: int = 3, dtype: torch.dtype = torch.float64) -> torch.Tensor:
    """Model states after a few steps, of unlike sizes."""

    system = SYSTEMS[name]
    z = system.initial_model(range(members), seed=5, dtype=dtype)
    for _ in range(3):
        z = system.advance(z)

    return z * torch.linspace(0.5, 1.5, members).to(z).view(-1, *[1] * (z.ndim - 1))


def relative(a: torch.Tensor, b: torch.Tensor) -> float:
    return ((a - b).abs().max() / b.abs().max()).item()


@pytest.mark.parametrize("dtype", REAL, ids=str)
@pytest.mark.parametrize("name", SYSTEMS)
def test_states_have_the_shape_and_precision_asked_for(name: str, dtype: torch.dtype) -> None:
    system = SYSTEMS[name]
    x = system.initial(2, seed=1, dtype=dtype)
    for states in (x, system.step(x), system.rollout(x, 3)[:, -1]):
        assert states.shape == (2, *system.layout.shape)
        assert states.dtype == dtype
        assert states.isfinite().all()


@pytest.mark.parametrize("name", SYSTEMS)
def test_an_initial_member_depends_on_its_index_and_seed_alone(name: str) -> None:
    system = SYSTEMS[name]
    x = system.initial(4, seed=1)
    assert torch.equal(system.initial([3, 1], seed=1), x[[3, 1]])
    assert not torch.equal(system.initial(4, seed=2), x)
    assert not torch.equal(x[0], x[1])


@pytest.mark.parametrize("dtype", REAL, ids=str)
@pytest.mark.parametrize("name", SYSTEMS)
def test_a_member_does_not_depend_on_its_batch(name: str, dtype: torch.dtype) -> None:
    system, z = SYSTEMS[name], settled(name, 5, dtype)
    together = system.advance(z)
    alone = torch.cat([system.advance(z[i : i + 1]) for i in range(5)])
    if name == "finite-volume":
        # The FFT of a single field is another one than that of several.
        assert relative(alone, together) < 1e-6
    else:
        assert torch.equal(together, alone)
        assert torch.equal(system.advance(z.flip(0)), together.flip(0))


@pytest.mark.parametrize("name", SYSTEMS)
def test_a_rollout_repeats_the_step(name: str) -> None:
    system = SYSTEMS[name]
    x = system.project(settled(name))
    noise = torch.randn(3, 2, *system.layout.shape, dtype=x.dtype) if system.stochastic else None
    trajectory = system.rollout(x, 3, noise)
    z = system.lift(x)
    for i in range(2):
        assert torch.equal(trajectory[:, i], x)
        z = system.advance(z, None if noise is None else noise[:, i])
        x = system.project(z)
    assert torch.equal(trajectory[:, 2], x)


@pytest.mark.parametrize("name", SYSTEMS)
def test_a_lifted_state_projects_to_itself(name: str) -> None:
    system = SYSTEMS[name]
    z = system.lift(system.project(settled(name)))
    again = system.lift(system.project(z))
    # Faces and centres differ by an interpolation: the baseline lifts to second order only.
    assert relative(again, z) < (0.05 if name == "finite-volume" else 1e-12)


@pytest.mark.parametrize("name", SYSTEMS)
def test_gradients_agree_with_finite_differences(name: str) -> None:
    system = SYSTEMS[name]
    x = system.project(settled(name))
    generator = torch.Generator().manual_seed(0)
    for _ in range(2):
        direction, weight = (
            torch.randn(x.shape, dtype=x.dtype, generator=generator) for _ in range(2)
        )
        leaf = x.clone().requires_grad_()
        (gradient,) = torch.autograd.grad((weight * system.step(leaf)).sum(), leaf)
        eps = 1e-6
        change = (system.step(x + eps * direction) - system.step(x - eps * direction)) / (2 * eps)
        expected = (weight * change).sum()
        scale = weight.norm() * change.norm()
        assert abs((gradient * direction).sum() - expected) < 1e-6 * scale


@pytest.mark.parametrize("name", SYSTEMS)
def test_the_config_makes_the_system_again(name: str) -> None:
    system, z = SYSTEMS[name], settled(name)
    again = type(system)(**system.config())
    assert again.stochastic == system.stochastic
    assert torch.equal(again.advance(z), system.advance(z))


@pytest.mark.parametrize("name", SYSTEMS)
def test_a_trajectory_survives_the_dataset(name: str) -> None:
    system = SYSTEMS[name]
    x = system.rollout(system.initial(2), 3)
    dataset = system.layout.to_dataset(x)
    layout = dynamics.Layout.from_dataset(dataset)
    assert layout.shape == system.layout.shape and layout.periodic == system.layout.periodic
    assert torch.equal(torch.from_numpy(layout.to_array(dataset)), x)


@pytest.mark.parametrize("name", DETERMINISTIC)
def test_a_deterministic_system_takes_no_noise(name: str) -> None:
    system = SYSTEMS[name]
    z = settled(name)
    x = system.project(z)
    with pytest.raises(ValueError, match="deterministic"):
        system.advance(z, torch.zeros_like(x))
    with pytest.raises(ValueError, match="transition density"):
        system.log_transition(x, x)


@pytest.mark.parametrize("name", STOCHASTIC)
def test_the_transition_is_the_normal_that_the_noise_makes(name: str) -> None:
    system = SYSTEMS[name]
    x = settled(name, 2)
    size = x[0].numel()
    mean = system.advance(x)
    # The columns of the noise factor, read off the step itself.
    eye = torch.eye(size, dtype=x.dtype).view(size, *x.shape[1:])
    factor = system.advance(x[:1].expand_as(eye), eye) - mean[:1]
    factor = factor.flatten(1).T
    covariance = factor @ factor.T
    normal = torch.distributions.MultivariateNormal(mean.flatten(1), covariance)
    draw = normal.sample()
    expected = normal.log_prob(draw)
    log_prob = system.log_transition(x, draw.view_as(x))
    assert log_prob.shape == (2,)
    assert torch.allclose(log_prob, expected, rtol=1e-6, atol=1e-5)

    with pytest.raises(ValueError, match="shape of the states"):
        system.advance(x, torch.zeros(3, 1))


@pytest.mark.parametrize("name", STOCHASTIC)
def test_simulated_noise_has_the_moments_of_the_transition(name: str) -> None:
    system = SYSTEMS[name]
    members, size = 400, math.prod(system.layout.shape)
    x = torch.from_numpy(
        system.layout.to_array(system.simulate(members, 4, seed=9, dtype=torch.float64))
    )
    log_prob = torch.stack([system.log_transition(x[:, i], x[:, i + 1]) for i in range(3)])
    # Minus twice the exponent is χ² with `size` degrees of freedom.
    peak = system.log_transition(x[:1, 0], system.advance(x[:1, 0]))
    chi2 = 2 * (peak - log_prob)
    count = chi2.numel()
    assert abs(chi2.mean() - size) < 5 * math.sqrt(2 * size / count)
    assert abs(chi2.var() / (2 * size) - 1) < 5 * math.sqrt((2 + 12 / size) / count)


def flow_of(kind: str, parts: int, dtype: torch.dtype) -> torch.Tensor:
    """The state after one `dt` in `parts` steps, from one and the same state."""

    if kind in ("kolmogorov", "quasi-geostrophic", "gyre"):
        flow = cast(Any, SYSTEMS[kind])
        z = flow.initial_model(range(2), seed=1, dtype=torch.float64)
        for _ in range(3):
            z = flow.advance(z)
        return flow.project(flow._march(as_precision(z, dtype), parts))
    make = {
        "lorenz63": lambda n: dynamics.Lorenz63(dt=0.05, substeps=n),
        "lorenz96": lambda n: dynamics.Lorenz96(dt=0.1, substeps=n),
        "kuramoto-sivashinsky": lambda n: dynamics.KuramotoSivashinsky(16, dt=2.0, substeps=n),
    }[kind]
    x = make(8).initial_model(range(2), seed=1, dtype=torch.float64)
    for _ in range(20):
        x = make(8).advance(x)
    return make(parts).advance(x.to(dtype))


def as_precision(z: torch.Tensor, dtype: torch.dtype) -> torch.Tensor:
    return z.to(complex_type(dtype) if z.is_complex() else dtype)


@pytest.mark.parametrize(
    ("kind", "parts"),
    [
        ("lorenz63", 4),
        ("lorenz96", 4),
        ("kuramoto-sivashinsky", 8),
        ("kolmogorov", 12),
        ("quasi-geostrophic", 24),
        ("gyre", 6),
    ],
)
def test_time_stepping_is_of_fourth_order(kind: str, parts: int) -> None:
    reference = flow_of(kind, 16 * parts, torch.float64)
    coarse, fine = (
        relative(flow_of(kind, n, torch.float64), reference) for n in (parts, 2 * parts)
    )
    assert coarse < 2e-3
    assert 3.6 < math.log2(coarse / fine) < 4.6
    single = flow_of(kind, 8 * parts, torch.float32)
    assert relative(single.double(), reference) < 2e-5


@pytest.mark.parametrize(
    ("make", "words"),
    [
        (lambda: dynamics.Lorenz63(dt=0.0), "dt must be positive, got 0"),
        (lambda: dynamics.Lorenz63(rho=-1.0), "rho must be positive, got -1"),
        (lambda: dynamics.Lorenz96(dimension=3), "at least 4, got 3"),
        (lambda: dynamics.KuramotoSivashinsky(points=33), "even and at least 16, got 33"),
        (lambda: dynamics.KuramotoSivashinsky(length=math.nan), "length must be positive"),
        (lambda: dynamics.KolmogorovFlow(size=48), "divide the even resolution 128, got 48"),
        (lambda: FiniteVolumeKolmogorov(courant=0.0), "courant must be positive"),
        (lambda: dynamics.Lorenz63().rollout(torch.zeros(1, 3), 0), "at least 1, got 0"),
    ],
)
def test_arguments_out_of_range_are_named(make, words: str) -> None:
    with pytest.raises(ValueError, match=words):
        make()
