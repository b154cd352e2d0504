"""Climatologies: recovered covariances, symmetries, and other lengths."""

import math

import numpy as np
import pytest
import torch

from dynamics.layout import Layout
from sda.climatology import Climatology
from sda.extension import extend, resize
from sda.symmetry import Symmetry, augment, average

PLANE = Layout(
    ("u", "v"), 0.2, {"y": np.arange(6) + 0.5, "x": np.arange(8) + 0.5}, {"y": 6.0, "x": 8.0}
)
VECTOR = Layout(("a", "b"), 0.1)
SYMMETRIES = (
    Symmetry(roll={"x": 1}),
    Symmetry(flip=("y", "x"), sign={"u": -1, "v": -1}),
    Symmetry(flip=("x",), roll={"y": 3}, sign={"u": -1}),
)


def plane_fields(members: int = 12, length: int = 20) -> torch.Tensor:
    x = torch.randn(members, length, 2, 6, 8, generator=torch.Generator().manual_seed(0)).double()
    x = x + x.roll(1, -1) + 0.5 * x.roll(1, 1) + 0.3 * x.roll(1, -2).flip(2)

    return 3 * x + torch.cos(2 * math.pi / 6 * (torch.arange(6) + 0.5))[:, None]


def autoregression(members: int, length: int) -> tuple[torch.Tensor, torch.Tensor]:
    """Trajectories of x' = A x + e, and the exact covariance of whole trajectories."""

    a = torch.tensor([[0.9, 0.3], [-0.2, 0.8]], dtype=torch.float64)
    p = torch.eye(2, dtype=torch.float64)
    for _ in range(500):
        p = a @ p @ a.T + 0.1 * torch.eye(2, dtype=torch.float64)
    generator = torch.Generator().manual_seed(1)
    x = (
        torch.randn(members, 2, generator=generator, dtype=torch.float64)
        @ torch.linalg.cholesky(p).T
    )
    states = [x]
    for _ in range(length - 1):
        x = x @ a.T + math.sqrt(0.1) * torch.randn(
            members, 2, generator=generator, dtype=torch.float64
        )
        states.append(x)
    powers = [torch.linalg.matrix_power(a, k) @ p for k in range(length)]
    rows = [
        torch.cat([powers[i - j] if i >= j else powers[j - i].T for j in range(length)], dim=1)
        for i in range(length)
    ]

    return torch.stack(states, dim=1), torch.cat(rows)


@pytest.mark.parametrize("symmetries", [(), SYMMETRIES], ids=["plain", "symmetric"])
def test_spectral_blocks_are_the_homogeneous_part_of_the_dense_covariance(
    symmetries: tuple[Symmetry, ...],
) -> None:
    data = PLANE.to_dataset(plane_fields())
    shifts = tuple(Symmetry(roll={dim: 1}) for dim in ("y", "x"))
    dense = Climatology.fit(data, 3, symmetries=(*symmetries, *shifts), kind="dense", stride=1)
    spectral = Climatology.fit(data, 3, symmetries=(*symmetries, *shifts), stride=1)

    assert spectral.kind == "spectral"
    torch.testing.assert_close(
        spectral.covariance(3, torch.float64).dense(),
        dense.covariance(3, torch.float64).dense(),
        rtol=1e-9,
        atol=1e-9,
    )


def test_real_blocks_where_a_rotation_makes_them_real() -> None:
    data = PLANE.to_dataset(plane_fields())
    assert Climatology.fit(data, 3).moments["blocks"].is_complex()
    assert not Climatology.fit(data, 3, symmetries=SYMMETRIES).moments["blocks"].is_complex()


def test_mean_scale_and_normalisation() -> None:
    x = plane_fields()
    climatology = Climatology.fit(PLANE.to_dataset(x), 2, symmetries=SYMMETRIES)
    z = climatology.normalise(x)

    torch.testing.assert_close(climatology.denormalise(z), x)
    assert float(z.std()) == pytest.approx(1, abs=0.02)
    for symmetry in SYMMETRIES:
        torch.testing.assert_close(symmetry(climatology.mean, PLANE), climatology.mean)


def test_window_covariance_is_recovered_in_one_pass() -> None:
    x, exact = autoregression(400, 60)
    climatology = Climatology.fit(VECTOR.to_dataset(x), 5, stride=1)
    scale = climatology.scale.double().repeat(5)
    found = climatology.covariance(5, torch.float64).dense() * torch.outer(scale, scale)
    expected = exact[:10, :10]

    assert ((found - expected).norm() / expected.norm()) < 0.03


@pytest.mark.parametrize("length", [2, 9, 40])
def test_other_lengths_are_exact_for_a_markov_chain(length: int) -> None:
    _, exact = autoregression(1, 40)
    found = resize(exact[:8, :8], 4, length)

    torch.testing.assert_close(found, exact[: 2 * length, : 2 * length], rtol=1e-7, atol=1e-9)


def test_extension_of_a_singular_covariance_is_semi_definite() -> None:
    _, exact = autoregression(1, 4)
    lift = torch.randn(3, 2, generator=torch.Generator().manual_seed(3), dtype=torch.float64)
    lift = torch.block_diag(*[lift] * 4)
    long = extend(lift @ exact @ lift.T, 3, 4, 30)

    assert torch.linalg.eigvalsh(long).min() > -1e-9
    torch.testing.assert_close(long[:12, :12], lift @ exact @ lift.T, rtol=1e-6, atol=1e-8)


def test_extension_of_an_estimate_stays_stationary() -> None:
    """A smooth chaotic signal: its window covariance is ill-conditioned and not quite Toeplitz."""

    from dynamics import Lorenz63

    data = Lorenz63().simulate(members=8, length=300, spinup=200, seed=0)
    for window in (8, 9, 17):
        variance = Climatology.fit(data, window).covariance(65).dense().diagonal()
        assert variance.max() < 1.3 and variance.min() > 0.7


def test_low_rank_agrees_with_dense_where_the_rank_suffices() -> None:
    layout = Layout(("a",), 1.0, {"z": np.arange(10.0)})
    factors = torch.randn(6, 10, generator=torch.Generator().manual_seed(4)).double()
    x = torch.randn(40, 25, 6, generator=torch.Generator().manual_seed(5)).double() @ factors
    data = layout.to_dataset((x + 2)[:, :, None])
    low = Climatology.fit(data, 3, kind="low_rank", rank=20, stride=1).covariance(3, torch.float64)
    dense = Climatology.fit(data, 3, kind="dense", stride=1).covariance(3, torch.float64)

    torch.testing.assert_close(low.dense(), dense.dense(), rtol=1e-6, atol=1e-6)


def test_tensors_round_trip() -> None:
    climatology = Climatology.fit(PLANE.to_dataset(plane_fields()), 3)
    again = Climatology.from_tensors(PLANE, climatology.to_json(), climatology.tensors())

    torch.testing.assert_close(
        again.covariance(3).dense(), climatology.covariance(3).dense(), rtol=0, atol=0
    )


def test_complex_tensors_may_lie_anywhere_in_a_file() -> None:
    """Sums of complex numbers that do not lie at a multiple of sixteen bytes end the process."""

    climatology = Climatology.fit(PLANE.to_dataset(plane_fields()), 5)
    tensors = climatology.tensors()
    assert "blocks" in climatology.to_json()["complex"]
    shifted = torch.empty(tensors["blocks"].numel() + 1, dtype=torch.float64)[1:]
    tensors["blocks"] = shifted.view_as(tensors["blocks"]).copy_(tensors["blocks"])
    again = Climatology.from_tensors(PLANE, climatology.to_json(), tensors)

    torch.testing.assert_close(
        again.covariance(3).dense(), climatology.covariance(3).dense(), rtol=0, atol=0
    )


def test_symmetries_form_cycles_and_augment_deterministically() -> None:
    x = plane_fields(1, 1)[0]
    for symmetry in SYMMETRIES:
        torch.testing.assert_close(symmetry(x, PLANE, symmetry.order(PLANE)), x)
        assert not torch.equal(symmetry(x, PLANE), x)
        torch.testing.assert_close(symmetry(symmetry(x, PLANE, 2), PLANE), symmetry(x, PLANE, 3))
    a, b = (augment(x, PLANE, SYMMETRIES, np.random.default_rng(0)) for _ in range(2))
    torch.testing.assert_close(a, b)
    torch.testing.assert_close(average(a, PLANE, SYMMETRIES), average(x, PLANE, SYMMETRIES))


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (lambda d: Climatology.fit(d, 99), "window must be between 1 and the 20 frames"),
        (lambda d: Climatology.fit(d.where(d.time > 0), 2), "holds NaN"),
        (lambda d: Climatology.fit(d * 0, 2), "do not vary"),
        (lambda d: Climatology.fit(d, 2, symmetries=[Symmetry(roll={"z": 1})]), "symmetry names"),
        (lambda d: Climatology.fit(d, 2).covariance(0), "length must be at least 1"),
    ],
)
def test_errors(call, message: str) -> None:  # type: ignore[no-untyped-def]
    with pytest.raises(ValueError, match=message):
        call(PLANE.to_dataset(plane_fields()))
