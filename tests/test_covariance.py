"""The laws of space-time covariances, over every kind."""

import math

import pytest
import torch

from sda.covariance import Covariance, DenseCovariance, LowRankCovariance, SpectralCovariance
from sda.covariance_eof import EofCovariance, Section, reflector


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


def section(waves: list[int], size: int, k: int, r: int, time: int, dtype: torch.dtype) -> Section:
    """Statistics of some wavenumbers."""

    def blocks(count: int, n: int, seed: int) -> torch.Tensor:
        found = [positive(n, 100 * seed + 10 * waves[0] + i, dtype) for i in range(count)]
        return torch.stack(found) if found else torch.zeros(0, n, n, dtype=dtype)

    count = len(waves)
    basis = torch.linalg.qr(blocks(count, size, 1))[0][..., :k]
    own = blocks(count * (k - r), time, 2).unflatten(0, (count, k - r))

    return Section(
        torch.tensor(waves), basis, blocks(count, time * r, 3), own, blocks(count, time, 4)
    )


def zonal(space: tuple[int, int], axis: int, ranks: tuple[tuple[int, int], ...]) -> EofCovariance:
    """Three frames of two variables; the mean and the shortest wave have ranks of their own."""

    size, last = 2 * space[1 - axis], space[axis] // 2
    ends = [0, last] if space[axis] % 2 == 0 else [0]
    waves = [w for w in range(last + 1) if w not in ends]
    (k, r), (m, q) = ranks
    sections = [
        section(ends, size, k, r, 3, torch.float64),
        section(waves, size, m, q, 3, torch.complex128),
    ]

    return EofCovariance(sections, (3, 2, *space), axis, None, torch.float64)


MASK = torch.tensor([[1, 1, 0, 1], [0, 1, 1, 1], [1, 1, 1, 0]]).bool()


def basin(k: int, r: int, mask: torch.Tensor | None) -> EofCovariance:
    size = 24 if mask is None else 2 * int(mask.sum())
    sections = [section([0], size, k, r, 2, torch.float64)]

    return EofCovariance(sections, (2, 2, 3, 4), None, mask, torch.float64)


KINDS = {
    "dense": lambda: DenseCovariance(positive(24, 0), (4, 3, 2), torch.float64),
    "spectral 1-D, real": lambda: spectral((7,), 3, torch.float64),
    "spectral 1-D, complex": lambda: spectral((8,), 3, torch.complex128),
    "spectral 2-D, complex": lambda: spectral((5, 6), 2, torch.complex128),
    "low rank": low_rank,
    "zonal, even": lambda: zonal((3, 6), 1, ((4, 2), (3, 1))),
    "zonal, odd, other axis": lambda: zonal((5, 3), 0, ((6, 0), (6, 6))),
    "zonal, no EOFs": lambda: zonal((2, 4), 1, ((0, 0), (4, 2))),
    "basin": lambda: basin(7, 3, MASK),
    "basin, all EOFs": lambda: basin(18, 2, MASK),
    "region": lambda: basin(20, 20, None),
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
        torch.testing.assert_close(variance[i], level**2 * filtered.trace() / covariance.size)
        torch.testing.assert_close(power[i], (filtered @ matrix).trace() / covariance.size)
        torch.testing.assert_close(covariance.wiener(x, level)[i].flatten(), estimate[i])


def test_weights_count_the_values(covariance: Covariance) -> None:
    land = int((covariance.dense().diagonal() == 0).sum())
    assert float(covariance.weights.sum()) == pytest.approx(math.prod(covariance.shape) - land)
    assert covariance.size == math.prod(covariance.shape) - land
    trace = float((covariance.weights * covariance.eigenvalues).sum())
    assert trace == pytest.approx(float(covariance.dense().trace()))


def test_samples_have_the_covariance(covariance: Covariance) -> None:
    x = covariance.sample(draw(covariance, 40_000)).flatten(1)
    matrix = covariance.dense()
    spread = matrix.diagonal().sqrt()
    assert (x[:, spread == 0] == 0).all()
    spread = torch.where(spread == 0, 1.0, spread)
    error = (x.T @ x / len(x) - matrix) / spread / spread[:, None]

    # The standard error of an entry is at most √2 / √40,000 = 0.7 %.
    assert error.abs().max() < 0.04


def test_sections_are_the_statistics_they_were_made_of() -> None:
    for covariance in (zonal((3, 6), 1, ((4, 2), (3, 1))), basin(7, 3, MASK)):
        mask = MASK if covariance.land else None
        again = EofCovariance(
            covariance.sections(), covariance.shape, covariance.waves.axis, mask, torch.float64
        )
        torch.testing.assert_close(again.dense(), covariance.dense())


def kron(a: torch.Tensor, b: torch.Tensor) -> torch.Tensor:
    return torch.einsum("ij,kl->ikjl", a, b).reshape(len(a) * len(b), -1)


def test_zonal_statistics_are_those_of_each_wavenumber() -> None:
    """Against E[ŵ ŵᴴ] of each wavenumber, summed up from its parts."""

    covariance = zonal((3, 6), 1, ((4, 2), (3, 1)))
    dense = covariance.dense().reshape(*covariance.shape, *covariance.shape)
    full = torch.fft.fft(torch.fft.ifft(dense, dim=-1, norm="ortho"), dim=3, norm="ortho")
    full = full.permute(3, 7, 0, 1, 2, 4, 5, 6).reshape(6, 6, 18, 18)
    for part in covariance.sections():
        k, r = part.basis.shape[2], part.coupled.shape[-1] // 3
        for i, wave in enumerate(part.waves.tolist()):
            e = part.basis[i]
            lead = kron(torch.eye(3, dtype=e.dtype), e[:, :r])
            expected = lead @ part.coupled[i] @ lead.mH
            expected = expected + kron(part.rest[i], torch.eye(6, dtype=e.dtype) - e @ e.mH)
            for j in range(k - r):
                one = e[:, r + j : r + j + 1]
                expected = expected + kron(part.own[i, j], one @ one.mH)
            torch.testing.assert_close(full[wave, wave], expected.to(full))
    for a in range(6):
        for b in range(a):
            assert full[a, b].abs().max() < 1e-12


@pytest.mark.parametrize("kind", ["zonal, even", "zonal, odd, other axis", "basin", "region"])
def test_the_variance_of_each_frame_is_the_diagonal(kind: str) -> None:
    covariance = KINDS[kind]()
    assert isinstance(covariance, EofCovariance)
    values, vectors = torch.linalg.eigh(covariance.dense())
    matrix = (vectors * (values / (values + 0.3))) @ vectors.T
    found = covariance.variance(lambda e: e / (e + 0.3))
    expected = matrix.diagonal().reshape(covariance.shape[0], -1).sum(1)
    torch.testing.assert_close(found * covariance.size / covariance.shape[0], expected)


def test_a_block_reflector_takes_the_first_axes_to_a_basis() -> None:
    for dtype, k in ((torch.float64, 1), (torch.complex128, 3), (torch.float64, 6)):
        basis = torch.linalg.qr(positive(7, k, dtype))[0][:, :k]
        w, turn = reflector(basis)
        q = torch.eye(7, dtype=dtype) - w @ w.mH
        torch.testing.assert_close(q @ q, torch.eye(7, dtype=dtype))
        torch.testing.assert_close(q[:, :k], basis @ turn)


def test_shapes_that_do_not_fit_are_refused() -> None:
    with pytest.raises(ValueError, match=r"needs a matrix \(6, 6\), got \(5, 5\)"):
        DenseCovariance(torch.eye(5), (2, 3))
    with pytest.raises(ValueError, match="needs blocks"):
        SpectralCovariance(torch.zeros(4, 2, 2), (2, 1, 8))
    with pytest.raises(ValueError, match="needs 4 wavenumbers of 6 values, got wavenumbers \\[0"):
        EofCovariance([section([0, 1], 6, 2, 1, 3, torch.float64)], (3, 2, 3, 6), 1)
    with pytest.raises(ValueError, match="coastline"):
        EofCovariance([], (3, 2, 3, 4), 1, MASK)
    with pytest.raises(ValueError, match="expected arrays of shape"):
        DenseCovariance(torch.eye(6), (2, 3)).wiener(torch.zeros(1, 3, 2), 1.0)
