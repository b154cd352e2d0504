"""Shallow water on the sphere: published cases, budgets, and the toy weather's climate."""

import math

import numpy as np
import pytest
import torch
from torch import Tensor

import dynamics
from dynamics.shallow_water import ShallowWater, galewsky_jet
from dynamics.shallow_water_cases import galewsky, tilted_sine, williamson2, williamson5

F64, CPU = torch.float64, torch.device("cpu")


def march(model: ShallowWater, x: Tensor, hours: float) -> Tensor:
    """The model state some time after a state."""

    z = model.lift(x)
    for _ in range(round(hours / model.dt)):
        z = model.advance(z)

    return z


def budget(model: ShallowWater, z: Tensor) -> Tensor:
    """The means of depth, energy and potential enstrophy, `(member, 3)`."""

    operators = model.operators(F64, CPU)
    u, v, h = model.project(z).unbind(1)
    depth = h - operators.orography
    kinetic = depth * (u.square() + v.square()) / 2
    potential = model.gravity * (h.square() - operators.orography.square()) / 2
    vorticity = model.harmonics.synthesis(z[:, 0]) + operators.coriolis
    fields = torch.stack((depth, kinetic + potential, vorticity.square() / (2 * depth)), dim=1)

    return model.harmonics.mean(fields)


def distance(model: ShallowWater, a: Tensor, b: Tensor) -> tuple[float, float]:
    """The l2 error of wind and height over the norm, as in Williamson et al. (1992)."""

    square, norm = (model.harmonics.mean(x.square()) for x in (a - b, b))
    wind = (square[:, :2].sum() / norm[:, :2].sum()).sqrt().item()

    return wind, (square[:, 2].sum() / norm[:, 2].sum()).sqrt().item()


@pytest.mark.parametrize(
    ("grid", "lat", "tilt"),
    [("gaussian", 32, 0.0), ("gaussian", 32, 45.0), ("equiangular", 43, 87.0)],
)
def test_a_solid_rotation_is_steady_wherever_its_pole_lies(
    grid: str, lat: int, tilt: float
) -> None:
    # Williamson's case 2: all of its waves are resolved, so it must stay to round-off.
    model = ShallowWater(21, lat, 64, grid, dt=4.0, depth=2.94e4 / 9.80616, diffusion=0.0)
    model.operators(F64, CPU).coriolis = 2 * model.omega * tilted_sine(model, tilt)
    x = williamson2(model, tilt)
    wind, height = distance(model, model.project(march(model, x, 120.0)), x)
    assert wind < 1e-11 and height < 1e-12


def test_flow_over_a_mountain_has_the_published_course() -> None:
    # Williamson's case 5: 15 days, no solution is known; the heights of his figure 6 run from
    # 5 050 to 5 950 m, the invariants of Jakob-Chien et al. (1995) change by 1e-4 or less at T42.
    model = ShallowWater(
        21, 32, 64, dt=3.0, substeps=2, depth=5960.0, orography="cone", diffusion=0.5
    )
    x = williamson5(model)
    z = march(model, x, 15 * 24.0)
    change = (budget(model, z) / budget(model, model.lift(x)) - 1).abs()[0]
    assert change[0] < 1e-14 and change[1] < 3e-4 and change[2] < 3e-3
    y = model.project(z)[0]
    assert 5000 < y[2].min() < 5080 and 5920 < y[2].max() < 5970
    # The mountain sheds a train of waves, also into the other hemisphere, where v was zero.
    south = torch.from_numpy(model.harmonics.latitudes) < -20
    assert 15 < y[1].abs().max() < 30 and y[1, south].abs().max() > 8


def test_a_mountain_flow_converges_with_resolution() -> None:
    fine = ShallowWater(42, 64, 128, dt=1.0, depth=5960.0, orography="cone", diffusion=0.5)
    reference = march(fine, williamson5(fine), 24.0)
    errors = []
    for truncation, lat in ((10, 16), (21, 32)):
        model = ShallowWater(
            truncation, lat, 2 * lat, dt=1.0, depth=5960.0, orography="cone", diffusion=0.5
        )
        z = march(model, williamson5(model), 24.0)
        padded = torch.zeros_like(reference)
        padded[..., : truncation + 1, : truncation + 1] = z
        errors.append(distance(fine, fine.project(padded), fine.project(reference)))
    assert errors[1][0] < 0.03 and errors[1][1] < 1e-3
    assert errors[1][0] < 0.5 * errors[0][0] and errors[1][1] < 0.5 * errors[0][1]


def test_galewskys_jet_is_steady_until_it_is_disturbed() -> None:
    model = ShallowWater(42, 64, 128, dt=1.2, diffusion=0.0)
    x = galewsky(model, perturbed=False)
    # Its heights are those of the paper's figure 1.
    assert 9000 < x[:, 2].min() < 9100 and 10100 < x[:, 2].max() < 10200
    assert abs(model.harmonics.mean(x[:, 2]) - 1e4) < 1e-8
    later = model.project(march(model, x, 60.0))
    assert (later - x)[:, :2].abs().max() < 1e-9

    # By day 6 the bump has rolled the jet up into vortices: figure 4 of the paper.
    model = ShallowWater(42, 64, 128, dt=1.2)
    z = march(model, galewsky(model), 6 * 24.0)
    vorticity = model.harmonics.synthesis(z[:, 0])[0]
    jet = np.abs(model.harmonics.latitudes - 45) < 20
    eddies = (vorticity - vorticity.mean(-1, keepdim=True))[jet].std()
    assert eddies > 2e-5
    assert -1.5e-4 < vorticity.min() < -1e-4 and 1.2e-4 < vorticity.max() < 1.8e-4
    assert 40 < model.project(z)[0, 1].abs().max() < 60
    # The southern hemisphere has seen gravity waves only.
    assert vorticity[model.harmonics.latitudes < -20].abs().max() < 1e-5


def test_what_the_equations_conserve_stays() -> None:
    # Without diffusion, mass stays to round-off; energy and enstrophy, which are of third order and
    # beyond in the state, to the truncation of the smallest scales.
    model = ShallowWater(21, 32, 64, dt=6.0, substeps=8, diffusion=0.0, orography="ranges")
    z = model.initial_model(range(2), seed=1, dtype=F64)
    before = budget(model, z)
    for _ in range(8):
        z = model.advance(z)
    change = (budget(model, z) / before - 1).abs().amax(0)
    assert change[0] < 1e-14 and change[1] < 1e-5 and change[2] < 1e-3


def test_time_stepping_is_of_third_order() -> None:
    def after(parts: int) -> Tensor:
        return dynamics.ToyWeather(substeps=parts).step(x)

    model = dynamics.ToyWeather()
    x = model.initial(1, seed=1, dtype=F64)
    for _ in range(8):
        x = model.step(x)
    reference, coarse, fine = after(96), after(12), after(24)
    for channel in range(3):
        errors = [(each - reference)[:, channel].abs().max() for each in (coarse, fine)]
        assert 2.7 < math.log2(errors[0] / errors[1]) < 3.3
    # As configured, the error of a step is far below that of any observation.
    change = (after(4) - reference).square().mean((0, 2, 3)).sqrt()
    assert (change < torch.tensor([0.05, 0.05, 1.0])).all()


def test_gravity_waves_travel_at_their_speed() -> None:
    # Without rotation and at rest, height of wavenumber l swings at √(g H l (l + 1)) / a.
    degree, depth = 5, 1000.0
    model = ShallowWater(
        10, 16, 32, dt=0.5, substeps=2, depth=depth, omega=0.0, diffusion=0.0, mountain=0.0
    )
    z = torch.zeros(1, 3, 11, 11, dtype=torch.complex128)
    z[0, 2, 3, degree] = 1e-3
    frequency = math.sqrt(model.gravity * depth * degree * (degree + 1)) / model.radius
    for i in range(1, 11):
        z = model.advance(z)
        expected = 1e-3 * math.cos(frequency * 1800 * i)
        assert abs(z[0, 2, 3, degree].item() - expected) < 2e-6


def test_a_planet_turned_about_its_axis_has_the_same_weather() -> None:
    model = dynamics.ToyWeather()
    x = model.project(model.initial_model(range(2), dtype=F64))
    for _ in range(8):
        x = model.step(x)
    turned = model.step(x.roll(16, -1))
    assert torch.allclose(turned, model.step(x).roll(16, -1), rtol=1e-9, atol=1e-9)


def test_an_initial_height_has_the_deviation_asked_for() -> None:
    model = dynamics.ToyWeather(perturbation=40.0)
    noise = model.noise_in_height(range(64), seed=2)
    height = model.harmonics.synthesis(noise[:, 2])
    assert math.isclose(model.harmonics.mean(height.square()).mean().sqrt(), 40, rel_tol=0.05)
    power = model.harmonics.power(noise[:, 2]).mean(0)
    assert (power[4:11] / power.sum() - 1 / 7).abs().max() < 0.04 and power[11:].max() == 0


def test_the_ground_is_static() -> None:
    flat, cone = (ShallowWater(42, 64, 128, orography=kind) for kind in ("flat", "cone"))
    assert np.abs(flat.static()["orography"]).max() == 0
    ground = cone.static()["orography"]
    lat, lon = cone.layout.coords["lat"], cone.layout.coords["lon"]
    row, column = np.unravel_index(ground.argmax(), ground.shape)
    assert abs(lat[row] - 30) < 3 and abs(lon[column] - 270) < 3
    assert 1800 < ground.max() < 2100
    coriolis = cone.static()["coriolis"][:, 0]
    assert np.allclose(coriolis, 2 * 7.292e-5 * np.sin(np.radians(lat)), rtol=1e-6)


def test_jets_lie_where_they_are_asked_for() -> None:
    lat = np.linspace(-90, 90, 721)
    jet = galewsky_jet(lat, 80.0)
    assert abs(lat[jet.argmax()] - 45) < 0.3 and math.isclose(jet.max(), 80.0, rel_tol=1e-6)
    assert (jet[(lat < 25.7) | (lat > 64.3)] == 0).all()
    # Without eddies and mountains the jets that drive the toy weather are a steady state.
    model = dynamics.ToyWeather(perturbation=0.0, growth=0.0, diffusion=0.0)
    x = model.initial(1, dtype=F64)
    assert (model.step(x) - x).abs().max() < 1e-8
    assert math.isclose(x[0, 0].max(), 40.0, rel_tol=0.05)


def test_toy_weather_is_forgotten_but_its_climate_is_not() -> None:
    model = dynamics.ToyWeather(dt=24.0, substeps=12)
    z = model.initial_model([0, 0, 1], dtype=torch.float32)
    bump = model.noise_in_height([9], seed=3)[0].to(z.dtype)
    z[1] += 0.02 * bump
    energies, states = [], []
    for day in range(70):
        z = model.advance(z)
        if day >= 30:
            x = model.project(z)
            energies.append(model.harmonics.mean(x[:, :2].square()).sum(1) / 2)
            states.append(x)
    energy, x = torch.stack(energies), torch.stack(states)
    assert (energy > 150).all() and (energy < 800).all()
    assert energy[:20].mean() / energy[20:].mean() == pytest.approx(1, abs=0.3)
    # Two states that began 1 m apart differ as much as two of another seed.
    near, far = (
        model.harmonics.mean((x[20:, 0] - x[20:, i])[:, 1].square()).mean() for i in (1, 2)
    )
    assert 0.5 < near / far < 2
    # Westerlies of both mid-latitudes, and winds that vary as they do in weather.
    zonal = x[:, :, 0].mean((0, 1, 3))
    lat = torch.from_numpy(model.harmonics.latitudes)
    for middle in ((lat > 40) & (lat < 50), (lat < -40) & (lat > -50)):
        assert 20 < zonal[middle].mean() < 50
        assert 10 < x[:, :, 1, middle].std() < 30
    assert zonal[lat.abs() < 15].abs().max() < 25


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        ({"lat": 16}, "needs at least 22 latitudes"),
        ({"grid": "cubed"}, "gaussian, equiangular, got 'cubed'"),
        ({"orography": "real"}, "flat, cone, ranges, got 'real'"),
        ({"mountain": 7000.0}, "mountain < depth, got"),
        ({"dt": 0.0}, "dt must be positive, got 0"),
        ({"growth": -1.0}, "growth ≥ 0"),
        ({"first": 9, "last": 8}, "first ≤ last, got relaxation=0.15, growth=0.5, first=9"),
        ({"jet_latitude": 95.0}, "between 0 and 90 degrees, got 95.0"),
    ],
)
def test_arguments_out_of_range_are_named(arguments: dict, words: str) -> None:
    with pytest.raises(ValueError, match=words):
        dynamics.ToyWeather(**arguments)


def test_a_diverged_member_is_named() -> None:
    model = dynamics.ToyWeather()
    z = model.initial_model(range(3))
    z[1] *= 1e4
    with pytest.raises(FloatingPointError, match=r"diverged in members \[1\].*more substeps"):
        for _ in range(20):
            z = model.advance(z)
