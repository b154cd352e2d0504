"""The wind-driven gyre: its coast, its budgets and the classical theories of its circulation."""

import math

import numpy as np
import pytest
import torch
from torch import Tensor

from dynamics import OceanGyre
from dynamics.basin import BasinOperators, coastline

F64 = torch.float64
CPU = torch.device("cpu")
HOUR = 3600.0


def spun_up(gyre: OceanGyre, steps: int = 20) -> Tensor:
    z = gyre.initial_model(range(2), seed=4, dtype=F64)
    for _ in range(steps):
        z = gyre.advance(z)

    return z


@pytest.fixture(scope="module")
def gyre() -> OceanGyre:
    return OceanGyre(size=24, spacing=50.0, coast=0.25)


@pytest.fixture(scope="module")
def psi(gyre: OceanGyre) -> Tensor:
    return spun_up(gyre)


@pytest.mark.parametrize("seed", range(4))
def test_a_coast_is_irregular_and_encloses_one_sea_without_islands(seed: int) -> None:
    sea = coastline(40, 0.3, seed)
    for side in range(4):
        extent = np.rot90(sea, side).argmax(axis=1)
        assert 4 <= extent[8:-8].max() - extent[8:-8].min() <= 40
    for region, start in ((sea, (20, 20)), (~np.pad(sea, 1), (0, 0))):
        reached, stack = np.zeros_like(region), [start]
        while stack:
            j, i = stack.pop()
            inside = 0 <= j < len(region) and 0 <= i < len(region)
            if inside and region[j, i] and not reached[j, i]:
                reached[j, i] = True
                stack += [(j + 1, i), (j - 1, i), (j, i + 1), (j, i - 1)]
        assert (reached == region).all()
    assert coastline(40, 0.0, seed).all()


def test_the_laplacian_is_inverted_as_a_dense_solver_does(gyre: OceanGyre) -> None:
    operators = gyre.operators(F64, CPU)
    sea = torch.from_numpy(gyre.sea)
    zeta = torch.randn(3, 1, 24, 24, dtype=F64, generator=torch.Generator().manual_seed(1)) * sea
    count = int(sea.sum())
    units = torch.zeros(count, 24, 24, dtype=F64)
    units[:, sea] = torch.eye(count, dtype=F64)
    matrix = operators.laplacian(units)[:, sea].T
    assert torch.allclose(matrix, matrix.T) and torch.linalg.eigvalsh(matrix).max() < 0
    expected = torch.linalg.solve(matrix, zeta[..., sea][:, 0].T).T
    psi = operators.solve(zeta)
    assert torch.allclose(psi[..., sea][:, 0], expected, rtol=1e-10)
    assert (psi[..., ~sea] == 0).all()


def test_nothing_flows_through_the_coast(gyre: OceanGyre, psi: Tensor) -> None:
    sea = torch.from_numpy(gyre.sea)
    moved = gyre.advance(psi)
    assert (moved[..., ~sea] == 0).all() and (moved[..., sea] != 0).all()
    # The sea along the faces between nodes of land is still: ψ does not change there. What flows
    # into a cell whose corners are nodes flows out of it.
    land = np.pad(~gyre.sea, 1, constant_values=True)
    full = torch.nn.functional.pad(moved[:, 0], (1, 1, 1, 1))
    through = (full[:, 1:] - full[:, :-1])[:, land[1:] & land[:-1]]
    assert (through == 0).all()
    dataset = gyre.layout.to_dataset(moved[:, None])
    assert (np.isnan(dataset["psi"].values[0, 0]) == ~gyre.sea).all()


def test_the_jacobian_conserves_energy_and_enstrophy_whatever_the_coast(gyre: OceanGyre) -> None:
    operators = gyre.operators(F64, CPU)
    generator = torch.Generator().manual_seed(2)
    psi, zeta = torch.randn(2, 5, 24, 24, dtype=F64, generator=generator) * operators.sea
    jacobian = operators.jacobian(psi, zeta)
    for other in (psi, zeta):
        total, scale = (other * jacobian).sum((-2, -1)), (other * jacobian).abs().sum((-2, -1))
        assert (total.abs() < 1e-13 * scale).all()
    # So does a force-free flow, to the order of its steps.
    free = OceanGyre(
        size=24, spacing=50.0, coast=0.25, stress=0.0, drag=0.0, viscosity=0.0, beta=0.0, dt=3.0
    )
    x = free.rollout(free.initial(2, dtype=F64), 40)
    for conserved in (free.energy(x), free.enstrophy(x)):
        assert torch.allclose(conserved, conserved[:, :1].expand_as(conserved), rtol=1e-5)
    assert (x[:, -1] - x[:, 0]).abs().max() > 0.2 * x.abs().max()


def test_the_jacobian_is_of_second_order() -> None:
    errors = []
    for n in (23, 47):
        operators = BasinOperators.build(np.ones((n, n), bool), np.zeros((n, n)), 1 / (n + 1))
        s = torch.arange(1, n + 1, dtype=F64) / (n + 1) * math.pi
        y, x = s[:, None], s[None, :]
        a, b = torch.sin(x) * torch.sin(2 * y), torch.sin(3 * x) * torch.sin(y)
        exact = torch.cos(x) * torch.sin(2 * y) * torch.sin(3 * x) * torch.cos(y)
        exact = exact - 2 * torch.sin(x) * torch.cos(2 * y) * 3 * torch.cos(3 * x) * torch.sin(y)
        errors.append((operators.jacobian(a, b) - math.pi**2 * exact).abs().max())
    assert 1.8 < math.log2(errors[0] / errors[1]) < 2.2


def test_energy_and_enstrophy_budgets_close(gyre: OceanGyre, psi: Tensor) -> None:
    zeta = gyre.vorticity(psi)
    rate = gyre.tendency(psi, zeta)

    def mean(a: Tensor, b: Tensor) -> Tensor:
        return (a * b).sum((-3, -2, -1)) / gyre.sea.sum()

    torque = gyre.operators(F64, CPU).torque
    work = -mean(psi, torque)
    loss = 2 * gyre.drag * gyre.energy(psi) + 2 * gyre.viscosity * gyre.enstrophy(psi)
    assert torch.allclose(-mean(psi, rate), work - loss, rtol=1e-10)
    # What the stepping does with it.
    short = OceanGyre(**(gyre.config() | {"dt": 0.05}))
    before = psi
    now = short.advance(before)
    after = short.advance(now)
    change = (short.energy(after) - short.energy(before)) / (2 * 0.05 * HOUR)
    work = -mean(now, torque)
    loss = 2 * gyre.drag * gyre.energy(now) + 2 * gyre.viscosity * gyre.enstrophy(now)
    assert torch.allclose(change, work - loss, rtol=1e-5)

    # Of enstrophy: the wind's torque, water that crosses latitudes, and both kinds of friction.
    gradient = -mean(zeta, gyre.operators(F64, CPU).laplacian(zeta))
    across = gyre.beta * mean(zeta, gyre.operators(F64, CPU).slope(psi, -1))
    expected = mean(zeta, torque) - across - 2 * gyre.drag * gyre.enstrophy(psi)
    assert torch.allclose(mean(zeta, rate), expected - gyre.viscosity * gradient, rtol=1e-9)


def steady(gyre: OceanGyre) -> Tensor:
    """The circulation under so weak a wind that it does not carry itself along."""

    sea = torch.from_numpy(gyre.sea)
    count, operators = int(sea.sum()), gyre.operators(F64, CPU)
    units = torch.zeros(count, 1, *sea.shape, dtype=F64)
    units[:, 0, sea] = torch.eye(count, dtype=F64)
    vorticity = gyre.vorticity(units)
    # The Jacobian of a small field is of second order: the difference of opposite signs drops it.
    rates = (gyre.tendency(units, vorticity) - gyre.tendency(-units, -vorticity)) / 2
    psi = torch.zeros(1, 1, *sea.shape, dtype=F64)
    psi[0, 0, sea] = torch.linalg.solve(rates[:, 0, sea].T, -operators.torque[sea])

    return psi


def separated(gyre: OceanGyre) -> np.ndarray:
    """The linear gyre ψ = X(x) sin(l y) of a square basin, without differences.

    X solves ν (D² − l²)² X − r (D² − l²) X − β D X = −T: exponentials and a constant, which the
    conditions X = 0 and, with viscosity, X'' = 0 at both coasts determine.
    """

    width, x = 1e3 * gyre.spacing * (gyre.size + 1), 1e3 * gyre.layout.coords["x"]
    wave, nu, r = 2 * math.pi / width, gyre.viscosity, gyre.drag
    torque = -gyre.stress * wave / (1025.0 * gyre.depth)
    scale = width  # lengths of the order of one
    powers = [nu, 0, -2 * nu * wave**2 - r, -gyre.beta, nu * wave**4 + r * wave**2]
    roots = np.roots(np.trim_zeros(np.array(powers) / float(scale) ** np.arange(4, -1, -1), "f"))
    # Each exponential is one where it is largest.
    far = (roots.real > 0) * 1.0
    constant = -torque / (nu * wave**4 + r * wave**2)
    ends = [np.exp(roots * (end - far)) for end in (0, 1)]
    rows = ends + [roots**2 * end for end in ends][: len(roots) - 2]
    values = np.array([-constant, -constant, 0, 0][: len(roots)])
    weights = np.linalg.solve(np.array(rows), values)
    shape = np.exp(roots * (x[:, None] / scale - far)) @ weights + constant

    return np.outer(np.sin(wave * x), shape.real)


@pytest.mark.parametrize(("drag", "viscosity"), [(4e-6, 0.0), (0.0, 2e4)], ids=["Stommel", "Munk"])
def test_the_gyre_of_a_weak_wind_is_that_of_theory(drag: float, viscosity: float) -> None:
    errors = []
    for n in (17, 35):
        gyre = OceanGyre(n, 1000.0 / (n + 1), coast=0.0, drag=drag, viscosity=viscosity)
        exact = separated(gyre)
        errors.append(np.abs(steady(gyre)[0, 0].numpy() - exact).max() / np.abs(exact).max())
    assert errors[1] < 0.02
    assert 1.7 < math.log2(errors[0] / errors[1]) < 2.4


def test_the_interior_is_in_sverdrup_balance() -> None:
    gyre = OceanGyre(size=31, spacing=37.5, coast=0.0, drag=4e-7, viscosity=0.0)
    v = gyre.velocity(steady(gyre))[0, 1]
    inside = (slice(5, 11), slice(9, 22))
    torque = gyre.operators(F64, CPU).torque
    assert torch.allclose((gyre.beta * v)[inside], torque[inside], rtol=0.12)


def test_a_reflected_basin_takes_a_reflected_step(gyre: OceanGyre, psi: Tensor) -> None:
    # Mirrored about the middle latitude and with the reversed sign; so is the wind.
    mirrored = OceanGyre(**gyre.config())
    mirrored.sea = gyre.sea[::-1].copy()
    wind = OceanGyre(**(gyre.config() | {"coast": 0.0})).torque
    mirrored.torque = np.where(mirrored.sea, wind, 0.0)
    expected = -gyre.advance(psi).flip(-2)
    assert torch.allclose(mirrored.advance(-psi.flip(-2)), expected, atol=1e-9 * psi.abs().max())


def test_the_gyre_never_settles_and_forgets_its_start() -> None:
    gyre = OceanGyre()
    x = torch.from_numpy(gyre.layout.to_array(gyre.simulate(2, 12, spinup=150, stride=10)))
    sea = torch.from_numpy(gyre.sea)
    speed = gyre.velocity(x).square().sum(-3)[..., sea].mean().sqrt()
    assert 0.2 < speed < 0.45
    scatter = x[..., sea].std(1).mean()
    assert scatter > 0.1 * x[..., sea].std()
    apart = (x[0, -1] - x[1, -1])[..., sea].std()
    assert apart > 0.3 * x[..., sea].std()


def test_what_is_no_basin_is_named() -> None:
    with pytest.raises(ValueError, match="at least 8, got 4"):
        OceanGyre(size=4)
    with pytest.raises(ValueError, match="between 0 and 0.3 of the basin, got 0.5"):
        OceanGyre(coast=0.5)
    with pytest.raises(ValueError, match="viscosity=-1"):
        OceanGyre(viscosity=-1.0)
    gyre = OceanGyre(size=12)
    with pytest.raises(FloatingPointError, match=r"diverged in members \[1\]"):
        gyre.advance(gyre.initial(2) * torch.tensor([1.0, 1e9])[:, None, None, None])
