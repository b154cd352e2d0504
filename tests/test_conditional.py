"""What follows known states: exact for Gaussian priors, and of each member by itself."""

import math

import numpy as np
import pytest
import torch

import dynamics
from sda.climatology import Climatology
from sda.conditional import ConditionalDenoiser, Continuation, spread
from sda.covariance import DenseCovariance, LowRankCovariance, SpectralCovariance
from sda.covariance_eof import EofCovariance, Section
from sda.denoiser import Denoiser
from sda.fidelity import affine_moments
from sda.langevin import Langevin
from sda.observation.likelihood import Likelihood
from sda.prior import Prior
from sda.sampling import MemberNoise, sample
from sda.schur import condition

KNOWN, FUTURE = 3, 4
LENGTH = KNOWN + FUTURE


class Curved(Denoiser):
    """A denoiser that is not linear: that of a mixture of two Gaussians, value by value."""

    def denoise(self, x, s):
        v = 0.25 + s**2
        return (0.25 * x + s**2 * torch.tanh(x / v)) / v


def spring():
    """The covariance of a damped spring's trajectories, normalised, with shape `(n, n)`."""

    system = dynamics.LinearGaussian.damped_spring()
    matrix = system.trajectory_covariance(LENGTH)
    scale = matrix.diagonal().sqrt()
    return matrix / scale[:, None] / scale


def covariances():
    generator = torch.Generator().manual_seed(0)

    def normal(*shape, dtype=torch.float64):
        return torch.randn(*shape, generator=generator, dtype=dtype)

    dense = DenseCovariance(spring(), (LENGTH, 3), torch.float64)
    # Two variables in one direction at each wavenumber, as in an incompressible flow.
    size = LENGTH * 2
    root = normal(8, 5, LENGTH, LENGTH, dtype=torch.complex128)
    direction = normal(8, 5, 2, dtype=torch.complex128)
    root = torch.einsum("yxij,yxc->yxicj", root, direction).reshape(8, 5, size, LENGTH)
    for y, x in ((0, 0), (0, 4), (4, 0), (4, 4)):
        root[y, x] = root[y, x].real.to(root)  # the coefficients of a real field are real there
    for x in (0, 4):
        root[5:, x] = root[1:4, x].flip(0).conj()
    spectral = SpectralCovariance(root @ root.mH, (LENGTH, 2, 8, 8), torch.float64)
    vectors, _ = torch.linalg.qr(normal(LENGTH * 20, 6))
    low_rank = LowRankCovariance(
        vectors, normal(6).square() + 0.3, 0.1, (LENGTH, 1, 20), torch.float64
    )
    return {"dense": dense, "spectral": spectral, "low rank": low_rank, **eof_covariances()}


def eof_covariances():
    """Homogeneous in longitude only, and with land; in all parts some frames decide others."""

    generator = torch.Generator().manual_seed(3)

    def section(waves, size, k, r, dtype):
        def blocks(*shape):
            a = torch.randn(*shape, shape[-1], generator=generator, dtype=dtype)
            return a @ a.mH / shape[-1] + 0.1 * torch.eye(shape[-1], dtype=dtype)

        count = len(waves)
        basis = torch.linalg.qr(blocks(count, size))[0][..., :k]
        coupled, own = blocks(count, LENGTH * r), blocks(count, k - r, LENGTH)
        return Section(torch.tensor(waves), basis, coupled, own, blocks(count, LENGTH))

    ends = section([0, 3], 6, 3, 2, torch.float64)
    waves = section([1, 2], 6, 6, 1, torch.complex128)
    mask = torch.tensor([[True, False, True], [True, True, False]])
    basin = section([0], 8, 5, 3, torch.float64)

    return {
        "zonal": EofCovariance([ends, waves], (LENGTH, 2, 3, 6), 1, None, torch.float64),
        "basin": EofCovariance([basin], (LENGTH, 2, 2, 3), None, mask, torch.float64),
    }


@pytest.mark.parametrize("kind", ["dense", "spectral", "low rank", "zonal", "basin"])
def test_complement_is_that_of_the_matrix(kind):
    """Mean, covariance, and the gain at any noise level, against the dense formulas."""

    covariance = covariances()[kind]
    given = condition(covariance, KNOWN, torch.float64)
    matrix = covariance.dense()
    k = len(matrix) * KNOWN // LENGTH
    tail = torch.randn(
        3, *covariance.shape, generator=torch.Generator().manual_seed(1), dtype=torch.float64
    )
    # A tail that the covariance allows.
    tail = covariance.sample(tail)[:, :KNOWN]

    def gain(m, x):
        return x.flatten(1) @ torch.linalg.pinv(m[:k, :k], rtol=1e-11, hermitian=True) @ m[:k, k:]

    def rest(m):
        inverse = torch.linalg.pinv(m[:k, :k], rtol=1e-11, hermitian=True)
        return m[k:, k:] - m[k:, :k] @ inverse @ m[:k, k:]

    size = matrix.diagonal().mean()
    expected = rest(matrix)
    torch.testing.assert_close(
        given.covariance.dense() / size, expected / size, atol=1e-6, rtol=1e-5
    )
    mean = given.regress(tail).flatten(1)
    torch.testing.assert_close(mean, gain(matrix, tail), atol=3e-5, rtol=1e-4)
    for s in (0.03, 1.0, 30.0):
        # C(s) = (Σ⁻¹ + I / s²)⁻¹, without an inverse of Σ.
        values, vectors = torch.linalg.eigh(matrix)
        values = values.clamp(min=0)
        c = (vectors * (values * s**2 / (values + s**2))) @ vectors.mT
        torch.testing.assert_close(
            given.gain(tail, s).flatten(1), gain(c, tail), atol=3e-5, rtol=1e-4
        )
        shrunk = given.covariance.dense()
        eye = torch.eye(len(shrunk), dtype=torch.float64)
        shrunk = s**2 * torch.linalg.solve(shrunk + s**2 * eye, shrunk)
        torch.testing.assert_close(shrunk / s**2, rest(c) / s**2, atol=1e-6, rtol=1e-5)


@pytest.mark.parametrize("floor", [0.0, 1e-14])
def test_a_low_rank_tail_that_decides_the_future(floor):
    """Whatever the ratio of the largest variance to the floor, in single precision too."""

    generator = torch.Generator().manual_seed(0)
    vectors, _ = torch.linalg.qr(torch.randn(LENGTH * 20, 6, generator=generator).double())
    values = torch.logspace(2, -2, 6, dtype=torch.float64)
    covariance = LowRankCovariance(vectors, values, floor, (LENGTH, 1, 20), torch.float64)
    noise = torch.randn(4, *covariance.shape, generator=generator).double()
    # Trajectories in the span of the vectors: so few values of the tail decide them.
    x = noise.flatten(1)[:, :6] * values.sqrt() @ vectors.mT
    x = x.reshape(4, *covariance.shape)
    for dtype, tolerance in ((torch.float64, 1e-4), (torch.float32, 2e-3)):
        given = condition(covariance, KNOWN, dtype)
        error = given.regress(x[:, :KNOWN].to(dtype)) - x[:, KNOWN:]
        assert error.square().mean().sqrt() < tolerance * x.std()
        assert torch.isfinite(given.covariance.dense()).all()
        assert given.covariance.eigenvalues.max() < 1e-6


def test_the_spread_of_what_is_not_homogeneous():
    """The root mean square over the cells that vary, whichever is the first."""

    variance = torch.tensor([0.0, 0.0, 1.0, 4.0, 0.25, 1.0], dtype=torch.float64)
    matrix = torch.block_diag(*[torch.diag(variance * k) for k in (1.0, 9.0)])
    covariance = DenseCovariance(matrix, (2, 1, 6), torch.float64)
    expected = torch.tensor([[1.0], [3.0]], dtype=torch.float64) * (6.25 / 4) ** 0.5
    torch.testing.assert_close(spread(covariance, 4096), expected, rtol=0.03, atol=0)


def test_a_tail_that_decides_everything():
    """A deterministic system: levels end at what is left to know, and there are finitely many."""

    angle = torch.tensor(0.3, dtype=torch.float64)
    c, s = angle.cos(), angle.sin()
    turn = torch.stack((torch.stack((c, s)), torch.stack((-s, c))))
    columns = torch.cat([torch.linalg.matrix_power(turn, k) for k in range(LENGTH)])
    layout = dynamics.LinearGaussian(0.5 * turn.numpy(), np.eye(2)).layout
    prior = Prior(Climatology.from_moments(layout, torch.zeros(2), columns @ columns.mT))
    left = condition(prior.climatology.covariance(LENGTH, torch.float64), KNOWN, torch.float64)
    assert spread(left.covariance).max() < 1e-3
    later = Continuation(prior, KNOWN, FUTURE)
    assert later.options["s_min"] >= 1e-6 and later.options["steps"] < 100
    start = torch.randn(5, 2, generator=torch.Generator().manual_seed(0))
    states = (start.double() @ columns.mT).reshape(5, LENGTH, 2).float()
    x = later.sample(states[:, :KNOWN], 0, range(5))
    torch.testing.assert_close(x, states[:, KNOWN:], atol=1e-3, rtol=1e-3)


def gaussian_prior():
    system = dynamics.LinearGaussian.damped_spring()
    return Prior(
        Climatology.from_moments(
            system.layout, torch.zeros(3), system.trajectory_covariance(LENGTH)
        )
    )


def moments(prior, tail, likelihood=None, start=None):
    """The exact mean and covariance of the sampler, which is affine in its start."""

    later = Continuation(prior, KNOWN, FUTURE, dtype=torch.float64)
    size = FUTURE * 3 + 1
    denoiser = ConditionalDenoiser(
        later.denoiser, later.complement, tail.expand(size, -1, -1),
        MemberNoise(0, range(size), dtype=torch.float64),
    )  # fmt: skip
    mean, covariance = denoiser.mean[0].flatten(), later.complement.covariance.dense()
    if likelihood is not None:
        from sda.guidance import guide

        denoiser = guide("static", denoiser, likelihood, later.complement.covariance)
        mean, covariance = start
    levels = {name: later.options[name] for name in ("steps", "s_max", "s_min")}
    noise = levels["s_max"] ** 2 * torch.eye(len(covariance), dtype=torch.float64)
    return affine_moments(denoiser, mean, covariance + noise, (FUTURE, 3), torch.float64, **levels)


def test_gaussian_continuation_is_exact():
    prior = gaussian_prior()
    matrix = prior.climatology.covariance(LENGTH, torch.float64).dense()
    k = KNOWN * 3
    tail = torch.linalg.cholesky(matrix)[:, 7].reshape(1, LENGTH, 3)[:, :KNOWN] + 0.7
    solve = torch.linalg.solve(matrix[:k, :k], matrix[:k, k:])
    expected = (tail.flatten() @ solve, matrix[k:, k:] - matrix[k:, :k] @ solve)
    mean, covariance = moments(prior, tail)
    std = expected[1].diagonal().sqrt()
    assert ((mean - expected[0]) / std).abs().max() < 0.01
    ratio = covariance.diagonal().sqrt() / std
    assert 0.98 < ratio.min() and ratio.max() < 1.02
    error = (covariance - expected[1]) / std / std[:, None]
    assert error.abs().max() < 0.03


def test_observed_gaussian_continuation_is_exact():
    """Observations of the future: the start, the guidance and its gain know the tail."""

    prior = gaussian_prior()
    matrix = prior.climatology.covariance(LENGTH, torch.float64).dense()
    k = KNOWN * 3
    tail = torch.linalg.cholesky(matrix)[:, 5].reshape(1, LENGTH, 3)[:, :KNOWN]
    H = torch.zeros(2, FUTURE * 3, dtype=torch.float64)
    H[0, 4] = H[1, 10] = 1
    y, std = torch.tensor([0.8, -0.4], dtype=torch.float64), 0.3
    likelihood = Likelihood(lambda x: x.flatten(1) @ H.T, y, std, (FUTURE, 3), linear=True)
    solve = torch.linalg.solve(matrix[:k, :k], matrix[:k, k:])
    mean, rest = tail.flatten() @ solve, matrix[k:, k:] - matrix[k:, :k] @ solve
    gain = torch.linalg.solve(H @ rest @ H.T + std**2 * torch.eye(2), H @ rest).T
    mean, rest = mean + gain @ (y - H @ mean), rest - gain @ H @ rest
    given, covariance = moments(prior, tail, likelihood, (mean, rest))
    scale = rest.diagonal().sqrt()
    assert ((given - mean) / scale).abs().max() < 0.01
    ratio = covariance.diagonal().sqrt() / scale
    assert 0.98 < ratio.min() and ratio.max() < 1.02


def test_start_has_the_mean_of_each_member():
    """The start of a guided and of an unguided sampler is around the tail's own mean."""

    prior = gaussian_prior()
    later = Continuation(prior, KNOWN, FUTURE, s_max=1e-3, s_min=1e-4, steps=2)
    tail = torch.stack([torch.full((KNOWN, 3), v) for v in (-1.0, 0.0, 2.0)])
    free = later.sample(tail, 0, range(3))
    mean = later.complement.regress(tail)
    std = later.complement.covariance.dense().diagonal().sqrt().reshape(FUTURE, 3)
    assert ((free - mean) / std).abs().max() < 5
    # An observation that says nothing leaves the same distribution.
    nothing = Likelihood(lambda x: x[:, 0, :1], torch.zeros(1), 1e4, (FUTURE, 3), linear=True)
    guided = later.sample(tail, 0, range(3), likelihood=nothing)
    assert ((guided - mean) / std).abs().max() < 5


@pytest.mark.parametrize("langevin", [None, Langevin(s_min=0.02, kappa=4.0)])
def test_members_do_not_depend_on_their_block(langevin):
    prior = gaussian_prior()
    later = Continuation(prior, KNOWN, FUTURE, denoiser=Curved(), langevin=langevin, steps=8)
    tail = torch.randn(5, KNOWN, 3, generator=torch.Generator().manual_seed(0))
    together = later.sample(tail, 3, range(5), part=2)
    apart = torch.cat(
        [later.sample(tail[i], 3, i, part=2) for i in (range(2), range(2, 5)) for i in [list(i)]]
    )
    torch.testing.assert_close(together, apart, rtol=1e-4, atol=1e-4)
    assert not torch.allclose(together, later.sample(tail, 3, range(5), part=3))


def test_noise_on_the_tail_is_drawn_afresh():
    """A network sees the tail under another noise at each evaluation, of the level's size."""

    seen = []

    class Spy(Curved):
        def denoise(self, x, s):
            seen.append((float(s), x[:, :KNOWN].clone()))
            return super().denoise(x, s)

    prior = gaussian_prior()
    later = Continuation(prior, KNOWN, FUTURE, denoiser=Spy(), langevin=None, steps=12)
    tail = torch.randn(64, KNOWN, 3, generator=torch.Generator().manual_seed(0))
    later.sample(tail, 0, range(64))
    noise = torch.stack([(x - tail) / s for s, x in seen])
    assert len(seen) == 13
    assert abs(noise.std() - 1) < 0.02
    overlap = torch.corrcoef(noise.flatten(1)) - torch.eye(13)
    assert overlap.abs().max() < 5 / math.sqrt(noise[0].numel())


def test_errors_name_both_values():
    prior = gaussian_prior()
    with pytest.raises(ValueError, match="at least one state, got 0 and 4"):
        Continuation(prior, 0, 4)
    later = Continuation(prior, KNOWN, FUTURE)
    with pytest.raises(ValueError, match="2 tails for 3 members"):
        later.sample(torch.zeros(2, KNOWN, 3), 0, range(3))
    with pytest.raises(ValueError, match="a tail of 3 states, got 2"):
        later.sample(torch.zeros(2, 2, 3), 0, range(2))
    nothing = Likelihood(lambda x: x[:, 0, :1], torch.zeros(1), 1.0, (FUTURE, 3), linear=True)
    with pytest.raises(ValueError, match="pilots, which have no states"):
        later.sample(torch.zeros(2, KNOWN, 3), 0, range(2), likelihood=nothing, guidance="hybrid")
    with pytest.raises(ValueError, match="between 1 and 6 of the 7 states"):
        condition(prior.covariance(LENGTH), LENGTH, torch.float32)
    with pytest.raises(ValueError, match="the tail is of 2 members, got 4"):
        denoiser = ConditionalDenoiser(
            later.denoiser, later.complement, torch.zeros(2, KNOWN, 3), MemberNoise(0, range(2))
        )
        sample(denoiser, (FUTURE, 3), 0, 4, start="noise")
