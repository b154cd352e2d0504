"""Methods with a static covariance, against the same equations in plain matrices."""

import numpy as np
import pytest
import torch

import sda
from dynamics import KolmogorovFlow, Lorenz63, Lorenz96
from dynamics.linear_gaussian import LinearGaussian
from sda.classical import Climatological, Gaussian, OptimalInterpolation, ThreeDVar
from sda.classical.background import climatological, climatology, given_covariance, long_run
from sda.classical.minimise import gauss_newton
from sda.observation import Function, ObservedTime, Select

LINEAR = LinearGaussian([[0.9, 0.2, 0], [-0.1, 0.8, 0.1], [0, 0.1, 0.7]], np.diag([0.2, 0.1, 0.3]))
P = LINEAR.stationary_covariance.numpy()
H = np.array([[1.0, 0, 0], [0, 0, 1.0]])


def twin(system, operator, length=7, std=0.5, seed=0):
    truth = system.simulate(1, length, spinup=20, seed=seed, progress=False).isel(member=0)
    return truth, sda.observe(truth, operator, std=std, seed=seed)


def kalman(background, covariance, y, std=0.5):
    gain = covariance @ H.T @ np.linalg.inv(H @ covariance @ H.T + std**2 * np.eye(2))
    return background + gain @ (y - H @ background), covariance - gain @ H @ covariance


def test_optimal_interpolation_is_the_kalman_analysis_of_the_climatology() -> None:
    _, observations = twin(LINEAR, Select(variables=["x0", "x2"], every=2))
    states = long_run(LINEAR, 100, 10)
    method = OptimalInterpolation(LINEAR, 4000, states, covariance=P)
    mean = climatology(LINEAR, states)[0].mean.double().numpy()
    found = LINEAR.layout.to_array(method.assimilate(observations, 1, dtype="float64"))
    y = observations.sets[0].y.reshape(-1, 2)
    for i in range(4):
        expected, covariance = kalman(mean, P, y[i])
        np.testing.assert_allclose(found[:, i].mean(0), expected, atol=1e-9)
        std = np.sqrt(np.diag(covariance))
        error = (np.cov(found[:, i].T) - covariance) / np.outer(std, std)
        assert np.abs(error).max() < 0.08  # 3.5 standard errors
    alone = OptimalInterpolation(LINEAR, 1, states, covariance=P)
    alone = alone.assimilate(observations, dtype="float64")
    np.testing.assert_allclose(LINEAR.layout.to_array(alone)[0], found.mean(0), atol=1e-9)


def test_3dvar_cycles_the_mean() -> None:
    _, observations = twin(LINEAR, Select(variables=["x0", "x2"], every=2))
    first = Gaussian([1.0, 2.0, 3.0], 1.0)
    method = ThreeDVar(LINEAR, 3000, factor=0.5, covariance=P)
    result = method.assimilate(observations, 1, initial=first, dtype="float64")
    found = LINEAR.layout.to_array(result)
    y, A, x = observations.sets[0].y.reshape(-1, 2), LINEAR.A.numpy(), np.array([1.0, 2.0, 3.0])
    for i in range(4):
        x = A @ A @ x if i else x
        x, covariance = kalman(x, 0.5 * P, y[i])
        np.testing.assert_allclose(found[:, i].mean(0), x, atol=1e-9)
        assert np.trace(np.cov(found[:, i].T)) == pytest.approx(np.trace(covariance), rel=0.08)
    assert result.attrs["diverged"] == 0 and result.attrs["model_steps"] == 6


def test_a_non_linear_operator_is_minimised(monkeypatch) -> None:
    unknown = property(lambda self: False, lambda self, value: None)
    monkeypatch.setattr(ObservedTime, "linear", unknown, raising=False)
    _, observations = twin(LINEAR, Select(variables=["x0", "x2"], every=2))
    method = ThreeDVar(LINEAR, 1, covariance=P)
    found = LINEAR.layout.to_array(
        method.assimilate(observations, initial=Gaussian(0.0, 1.0), dtype="float64")
    )[0]
    expected, _ = kalman(np.zeros(3), P, observations.sets[0].y.reshape(-1, 2)[0])
    np.testing.assert_allclose(found[0], expected, atol=1e-8)


@pytest.mark.parametrize("kind", [OptimalInterpolation, ThreeDVar])
@pytest.mark.parametrize("time", [2.0, 2.4])
def test_members_are_the_same_by_gain_and_by_minimisation(kind, time, monkeypatch) -> None:
    _, observations = twin(LINEAR, Select(variables=["x0", "x2"], times=[0.0, time, time + 2]))
    method = kind(LINEAR, 50, covariance=P, climatology=long_run(LINEAR, 100, 10))
    options = {"initial": Gaussian(0.0, 1.0), "dtype": "float64"}
    expected = LINEAR.layout.to_array(method.assimilate(observations, 1, **options))
    unknown = property(lambda self: False, lambda self, value: None)
    monkeypatch.setattr(ObservedTime, "linear", unknown, raising=False)
    found = LINEAR.layout.to_array(method.assimilate(observations, 1, **options))
    np.testing.assert_allclose(found, expected, atol=1e-7)


def test_non_linear_3dvar_finds_the_mode() -> None:
    system = Lorenz63(noise=True)
    _, observations = twin(system, Select(steps=0) >> Function("square"), 2, std=2.0)
    truth = system.simulate(1, 2, spinup=20, seed=0, progress=False)
    mean = system.layout.to_array(truth)[0, 0] + 1.5
    method = ThreeDVar(system, 1, covariance=np.diag([4.0, 2.0, 3.0]))
    found = method.assimilate(observations, initial=Gaussian(mean, 1.0), dtype="float64")
    x = torch.from_numpy(system.layout.to_array(found)[0, 0]).requires_grad_(True)
    y = torch.tensor(observations.sets[0].y.ravel())
    B = torch.tensor([4.0, 2.0, 3.0])
    cost = ((x - torch.from_numpy(mean)) ** 2 / B).sum() + ((y - x**2) ** 2 / 4.0).sum()
    (gradient,) = torch.autograd.grad(cost, x)
    assert gradient.abs().max() < 1e-5 and found.attrs["evaluations"] > 0
    assert (np.sign(x.detach().numpy()) == np.sign(mean)).all()


def test_climatology_is_the_long_run() -> None:
    system = Lorenz63()
    _, observations = twin(system, Select(every=3), 13)
    states = long_run(system, 400, 100)
    result = Climatological(system, 200, states).assimilate(observations, 3)
    stock, found = system.layout.to_array(states), system.layout.to_array(result)
    np.testing.assert_allclose(found.mean(0), np.tile(stock.mean((0, 1)), (5, 1)), atol=1e-3)
    np.testing.assert_allclose(found.std((0, 1)), stock.std((0, 1)), rtol=0.1)
    assert not np.allclose(found[:, 0], found[:, 1])
    alone = Climatological(system, 1, states).assimilate(observations)
    np.testing.assert_allclose(system.layout.to_array(alone)[0], found.mean(0), atol=1e-3)


FIELDS = Lorenz96(dimension=8), KolmogorovFlow(size=4, resolution=8), Lorenz63()
like = torch.zeros((), dtype=torch.float64)


@pytest.mark.parametrize("system", FIELDS, ids=lambda s: type(s).__name__)
def test_backgrounds_have_a_root_and_its_adjoint(system) -> None:
    shape, n = system.layout.shape, int(np.prod(system.layout.shape))
    climate, _ = climatology(system, long_run(system, 40, 10))
    rng = np.random.default_rng(0)
    matrix = np.cov(rng.standard_normal((n, 3 * n)))
    variance = rng.uniform(1, 2, shape)
    scale = climate.scale.double().repeat_interleave(n // shape[0])
    dense = climate.covariance(1, torch.float64).dense() * torch.outer(scale, scale)
    cases = [
        (climatological(climate, 0.3, like), 0.3 * dense),
        (given_covariance(matrix, 0.3, shape, like), 0.3 * torch.from_numpy(matrix)),
        (given_covariance(variance, 1, shape, like), torch.from_numpy(np.diag(variance.ravel()))),
        (given_covariance(2.0, 1.0, shape, like), 2.0 * torch.eye(n, dtype=torch.float64)),
    ]  # fmt: skip
    for B, expected in cases:
        v = torch.from_numpy(rng.standard_normal((3, B.size)))
        x = torch.from_numpy(rng.standard_normal((3, *shape)))
        left = (B.root(v) * x).flatten(1).sum(1)
        torch.testing.assert_close(left, (v * B.adjoint(x)).sum(1))
        eye = torch.eye(n, dtype=torch.float64).view(n, *shape)
        product = B.root(B.adjoint(eye)).flatten(1)
        torch.testing.assert_close(product, expected, atol=1e-6, rtol=1e-5)


def test_gauss_newton_solves_each_element_for_itself() -> None:
    rng = np.random.default_rng(0)
    A, b, p = (torch.from_numpy(rng.standard_normal(s)) for s in ((4, 6, 5), (4, 6), (4, 5)))
    linear = gauss_newton(lambda v: torch.einsum("bmk,bk->bm", A[: len(v)], v) - b[: len(v)], p)
    normal = A.mT @ A + torch.eye(5, dtype=A.dtype)
    torch.testing.assert_close(
        linear.v, torch.linalg.solve(normal, (A.mT @ b[..., None])[..., 0] + p)
    )

    A[0] /= 50  # nearly linear: this element converges early

    def curved(v):
        return 3 * ((A * v[:, None]).sum(2).sinh() - b)

    found = gauss_newton(curved, p, iterations=50)
    v = found.v.requires_grad_(True)
    cost = 0.5 * ((v - p).square().sum() + curved(v).square().sum())
    (gradient,) = torch.autograd.grad(cost, v)
    assert gradient.abs().max() < 1e-4
    assert found.iterations[0] < found.iterations[1:].min()
    assert found.evaluations[0] < 0.5 * found.evaluations[1:].min()
    for i in range(4):
        alone = gauss_newton(
            lambda v, i=i: 3 * ((A[i] * v[:, None]).sum(2).sinh() - b[i]),
            p[i : i + 1],
            iterations=50,
        )
        torch.testing.assert_close(alone.v[0], found.v[i].detach(), atol=1e-9, rtol=1e-9)
        assert alone.iterations[0] == found.iterations[i]
        # but for a product or two: conjugate gradients end at the rounding error
        assert int(alone.evaluations[0]) == pytest.approx(int(found.evaluations[i]), abs=4)


def test_bad_arguments_are_named() -> None:
    _, observations = twin(LINEAR, Select(every=2))
    first = Gaussian(0.0, 1.0)
    with pytest.raises(ValueError, match="factor .* must be positive, got 0"):
        ThreeDVar(LINEAR, factor=0)
    with pytest.raises(ValueError, match="positive definite.*smallest eigenvalue is -1"):
        ThreeDVar(LINEAR, covariance=np.diag([1.0, -1, 1])).assimilate(observations, initial=first)
    with pytest.raises(ValueError, match="variances must be positive"):
        ThreeDVar(LINEAR, covariance=-1.0).assimilate(observations, initial=first)
    with pytest.raises(ValueError, match=r"must be \(3, 3\)"):
        ThreeDVar(LINEAR, covariance=np.eye(4)).assimilate(observations, initial=first)
    with pytest.raises(TypeError, match="long run, got str"):
        Climatological(LINEAR, climatology="here").assimilate(observations)
    with pytest.raises(ValueError, match="at least 1 members, got 0"):
        ThreeDVar(LINEAR, 0)
