"""The laws of space-time covariances, over every kind."""

import math

import pytest
import torch

from sda.covariance import Covariance, DenseCovariance, LowRankCovariance, SpectralCovariance


def positive(size: int, seed: int, dtype: torch.dtype = torch.float64) -> torch.Tensor:
    a = torch.randn(size, size, generator=torch.Generator().manual_seed(seed), dtype=dtype)

    return a @ a.mH / size


def spectral(space: tuple[int, ...], size: int, dtype: torch.dtype) -> SpectralCovariance:
    modes = (*space[:-1], space[-1] // 2 + 1)
    count = math.prod(modes)
    blocks = torch.stack([positive(size, i, dtype) for i in range(count)]).unflatten(0, modes)
    if dtype == torch.complex128:
        # A real field has conjugate blocks at opposite wavenumbers, real ones where they coincide.
        x = torch.randn(400, size, *space, generator=torch.Generator().manual_seed(1)).double()
        x = x + 0.7 * x.roll((1, 1), (1, -1)) + 0.4 * x.roll(2, -1)
        dims = tuple(range(-len(space), 0))
        h = torch.fft.rfftn(x, dim=dims, norm="ortho").movedim((0, 1), (-1, -2))
        blocks = h @ h.mH / len(x)

    return SpectralCovariance(blocks, (size, 1, *space), torch.float64)


def low_rank() -> LowRankCovariance:
    q, _ = torch.linalg.qr(torch.randn(24, 5, generator=torch.Generator().manual_seed(2)).double())

    return LowRankCovariance(q, torch.linspace(1, 3, 5).double(), 0.1, (3, 2, 4), torch.float64)


KINDS = {
    "dense": lambda: DenseCovariance(positive(24, 0), (4, 3, 2), torch.float64),
    "spectral 1-D, real": lambda: spectral((7,), 3, torch.float64),
    "spectral 1-D, complex": lambda: spectral((8,), 3, torch.complex128),
    "spectral 2-D, complex": lambda: spectral((5, 6), 2, torch.complex128),
    "low rank": low_rank,
}


@pytest.fixture(params=KINDS)
def covariance(request: pytest.FixtureRequest) -> Covariance:
    return KINDS[request.param]()


def draw(covariance: Covariance, count: int, seed: int = 5) -> torch.Tensor:
    generator = torch.Generator().manual_seed(seed)

    return torch.randn(count, *covariance.shape, generator=generator, dtype=torch.float64)


def test_transform_is_an_isometry_and_inverse_its_adjoint(covariance: Covariance) -> None:
    x = draw(covariance, 3)
    z = covariance.transform(x)
    other = torch.randn(z.shape, generator=torch.Generator().manual_seed(6), dtype=torch.float64)

    torch.testing.assert_close(z @ z.T, x.flatten(1) @ x.flatten(1).T)
    torch.testing.assert_close(covariance.inverse(z), x)
    torch.testing.assert_close((z * other).sum(), (x * covariance.inverse(other)).sum())


def test_apply_is_the_matrix_function(covariance: Covariance) -> None:
    x = draw(covariance, 2)
    matrix = covariance.dense()
    inside = covariance.inverse(covariance.eigenvalues * covariance.transform(x))

    torch.testing.assert_close(matrix, matrix.T)
    torch.testing.assert_close(inside.flatten(1), x.flatten(1) @ matrix)
    torch.testing.assert_close(covariance.apply(lambda e: e, x), inside)


def test_wiener_solves_the_normal_equations_at_each_level(covariance: Covariance) -> None:
    x, s = draw(covariance, 3), torch.tensor([0.1, 1.0, 4.0], dtype=torch.float64)
    matrix = covariance.dense()
    eye = torch.eye(len(matrix), dtype=torch.float64)

    estimate = covariance.wiener(x, s).flatten(1)
    variance, power = covariance.wiener_variance(s), covariance.wiener_power(s)
    for i, level in enumerate(s):
        filtered = torch.linalg.solve(matrix + level**2 * eye, matrix)
        torch.testing.assert_close(estimate[i], filtered.T @ x[i].flatten())
        torch.testing.assert_close(variance[i], level**2 * filtered.trace() / len(matrix))
        torch.testing.assert_close(power[i], (filtered @ matrix).trace() / len(matrix))
        torch.testing.assert_close(covariance.wiener(x, level)[i].flatten(), estimate[i])


def test_weights_count_the_values(covariance: Covariance) -> None:
    assert float(covariance.weights.sum()) == pytest.approx(math.prod(covariance.shape))
    trace = float((covariance.weights * covariance.eigenvalues).sum())
    assert trace == pytest.approx(float(covariance.dense().trace()))


def test_samples_have_the_covariance(covariance: Covariance) -> None:
    x = covariance.sample(draw(covariance, 40_000)).flatten(1)
    matrix = covariance.dense()
    error = (
        (x.T @ x / len(x) - matrix) / matrix.diagonal().sqrt() / matrix.diagonal().sqrt()[:, None]
    )

    # The standard error of an entry is at most √2 / √40,000 = 0.7 %.
    assert error.abs().max() < 0.04


def test_shapes_that_do_not_fit_are_refused() -> None:
    with pytest.raises(ValueError, match=r"needs a matrix \(6, 6\), got \(5, 5\)"):
        DenseCovariance(torch.eye(5), (2, 3))
    with pytest.raises(ValueError, match="needs blocks"):
        SpectralCovariance(torch.zeros(4, 2, 2), (2, 1, 8))
    with pytest.raises(ValueError, match="expected arrays of shape"):
        DenseCovariance(torch.eye(6), (2, 3)).wiener(torch.zeros(1, 3, 2), 1.0)
