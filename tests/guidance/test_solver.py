"""Systems in observation space that keep the leading directions only, against dense algebra."""

import math

import pytest
import torch

from sda.covariance import DenseCovariance
from sda.denoiser import GaussianDenoiser
from sda.guidance import guide, solver
from sda.guidance.base import CappedPrior, PosteriorMetric, wiener
from sda.guidance.solver import ObservationSpace
from sda.observation.likelihood import Likelihood
from sda.sampling import MemberNoise

torch.set_num_threads(1)

M, SHAPE = 24, (6, 2, 25)
N = math.prod(SHAPE)
# Too little for all directions, enough for those that matter.
LIMIT = M * 200.0


@pytest.fixture(scope="module")
def covariance() -> DenseCovariance:
    """Of a smooth trajectory: eigenvalues over twenty decades."""

    generator = torch.Generator().manual_seed(0)
    basis = torch.linalg.qr(torch.randn(N, N, generator=generator, dtype=torch.float64)).Q
    eigenvalues = 40 * 10 ** -torch.linspace(0, 20, N, dtype=torch.float64)

    return DenseCovariance((basis * eigenvalues) @ basis.T, SHAPE, torch.float64)


@pytest.fixture(scope="module")
def likelihood() -> Likelihood:
    generator = torch.Generator().manual_seed(1)
    matrix, y = torch.randn(M, N + 1, generator=generator, dtype=torch.float64).split((N, 1), 1)
    std = 0.1 + torch.rand(M, generator=generator, dtype=torch.float64)

    return Likelihood(lambda x: 5 + x.flatten(1) @ matrix.T, y[:, 0], std, SHAPE, linear=True)


@pytest.mark.parametrize("tolerance", [1e-1, 1e-3, 1e-6])
def test_the_residual_is_within_the_tolerance(covariance, likelihood, tolerance) -> None:
    space = ObservationSpace(covariance, likelihood, LIMIT, tolerance)
    whole = ObservationSpace(covariance, likelihood)
    assert space.direct
    assert space.modes is not None
    assert len(space.modes) * M == space.size <= LIMIT < whole.size
    assert whole.modes is None
    e = torch.randn(5, M, generator=torch.Generator().manual_seed(2), dtype=torch.float64)
    functions = [lambda x: x, wiener(0.3)]
    functions.append(PosteriorMetric(space, None, 0.3, CappedPrior(0.3, 4.0)).kernel)
    for number, fn in enumerate(functions):
        key = ("f", float(number))
        v = space.solve(fn, e, None, key)
        # In units of the errors.
        residual = (e - v @ whole.matrix(fn)) / space.std
        assert (residual.norm(dim=1) <= tolerance * (e / space.std).norm(dim=1)).all()


def test_fewer_directions_for_a_larger_tolerance(covariance, likelihood) -> None:
    sizes = [
        ObservationSpace(covariance, likelihood, LIMIT, tolerance).size
        for tolerance in (1e-1, 1e-3, 1e-6)
    ]
    assert sizes == sorted(set(sizes))


def test_where_no_directions_are_negligible_the_solver_iterates(likelihood) -> None:
    white = DenseCovariance(torch.eye(N, dtype=torch.float64), SHAPE, torch.float64)
    space = ObservationSpace(white, likelihood, LIMIT / 4)
    assert not space.direct
    assert space.modes is None


def test_analyses_and_moves_are_those_of_all_directions(
    covariance, likelihood, monkeypatch
) -> None:
    """Whether the columns were kept while directions were chosen, or made again."""

    results = []
    for limit, room in ((1e8, None), (LIMIT, None), (LIMIT, 0)):
        if room is not None:
            monkeypatch.setattr(solver, "AT_HAND", room)
        guided = guide("static", GaussianDenoiser(covariance), likelihood, covariance,
                       limit=limit, tolerance=1e-7)  # fmt: skip
        x = torch.randn(3, *SHAPE, generator=torch.Generator().manual_seed(3)).double()
        analysis = guided.analyse(x, 0.5)
        metric = guided.metric(analysis, kappa=4.0)
        noise = MemberNoise(0, range(3), dtype=torch.float64)
        results.append((analysis.mean, analysis.chi2, metric.apply(x), guided.space.modes is None))
        # Draws have the covariance that `apply` applies, whichever directions were kept.
        drawn = PosteriorMetric(guided.space, None, 0.5, CappedPrior(0.5)).draw(
            MemberNoise(0, range(4096), dtype=torch.float64)
        )
        exact = torch.cat(
            [
                PosteriorMetric(guided.space, None, 0.5, CappedPrior(0.5)).apply(e[None])
                for e in torch.eye(N).double()[:40].reshape(40, *SHAPE)
            ]
        ).flatten(1)[:, :40]
        sample = torch.cov(drawn.flatten(1)[:, :40].T)
        std = exact.diagonal().sqrt()
        assert ((sample - exact) / torch.outer(std, std)).abs().max() < 5 * math.sqrt(2 / 4096)
        move = metric.move(x, noise)
        torch.testing.assert_close(move.square, (x * results[-1][2]).sum((1, 2, 3)))
    assert [each[3] for each in results] == [True, False, False]
    for other in results[1:]:
        for expected, found in zip(results[0][:3], other[:3], strict=True):
            torch.testing.assert_close(found, expected, rtol=1e-5, atol=1e-5)


def test_factors_beyond_the_room_for_them_are_made_again(
    covariance, likelihood, monkeypatch
) -> None:
    kept = ObservationSpace(covariance, likelihood)
    short = ObservationSpace(covariance, likelihood)
    e = torch.randn(5, M, generator=torch.Generator().manual_seed(2), dtype=torch.float64)
    levels = (3.0, 1.0, 0.3, 3.0)
    expected = [kept.solve(wiener(s), e, None, ("innovation", s)) for s in levels]
    assert len(kept._factors) == 3
    monkeypatch.setattr(solver, "KEPT", 2 * 8 * M * M)
    for s, v in zip(levels, expected, strict=True):
        torch.testing.assert_close(short.solve(wiener(s), e, None, ("innovation", s)), v)
    assert len(short._factors) == 2


def test_the_linear_part_of_an_affine_operator_keeps_its_digits() -> None:
    """A large mean, as that of a pressure in Pa, must not cost small changes their digits."""

    generator = torch.Generator().manual_seed(0)
    matrix = torch.rand(M, N, generator=generator) / N
    y, std = torch.zeros(M), torch.ones(M)
    physical = Likelihood(lambda x: x.flatten(1) @ matrix.T, y, std, SHAPE, linear=True)
    mean = torch.full(SHAPE[1:], 1e5)
    scale = torch.tensor([10.0, 0.1])
    likelihood = physical.normalise(mean, scale)
    x, dx = torch.randn(2, 3, *SHAPE, generator=generator)
    dx = 1e-3 * dx
    value, jvp, vjp = likelihood.linearise(x)
    torch.testing.assert_close(value, likelihood.H(x))
    expected = (dx.double() * scale.double()[:, None]).flatten(1) @ matrix.double().T
    torch.testing.assert_close(jvp(dx).double(), expected, rtol=1e-4, atol=1e-8)
    v = torch.randn(3, M, generator=generator)
    torch.testing.assert_close((v * jvp(dx)).sum(1), (vjp(v) * dx).flatten(1).sum(1))
    torch.testing.assert_close(likelihood.adjoint(v), vjp(v))
    # An affine operator to begin with.
    affine = Likelihood(lambda x: 7 + x.flatten(1) @ matrix.T, y, std, SHAPE, linear=True)
    torch.testing.assert_close(affine.part(dx), physical.part(dx))
    torch.testing.assert_close(affine.adjoint(v), physical.adjoint(v))
