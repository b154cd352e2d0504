"""The LETKF against local analyses one by one, and against the ETKF."""

import math
import warnings

import numpy as np
import pytest
import torch

import sda
from dynamics import KolmogorovFlow, Lorenz63, Lorenz96
from sda.classical import ETKF, LETKF, Gaussian, Spinup
from sda.classical.letkf import inverse_root, inverse_root_by_eigenvalues
from sda.classical.localisation import Localisation
from sda.observation import BlockAverage, Mask, SaturatingVorticity, Select, Subsample

LORENZ = Lorenz96(dimension=12)
FLOW = KolmogorovFlow(size=8, resolution=16)


def twin(system, operator, length=4, seed=0, std=0.5):
    truth = system.simulate(1, length, spinup=8, seed=seed, progress=False).isel(member=0)
    return sda.observe(truth, operator, std=std, seed=seed)


class Recorder:
    """Keeps what an analysis was given and gave."""

    def __init__(self, method):
        self.method, self.calls, analyse = method, [], method.analyse

        def record(ensemble, predicted, observed, run):
            found = analyse(ensemble, predicted, observed, run)
            self.calls.append((ensemble, predicted, observed, found))
            return found

        method.analyse = record


def one_by_one(system, method, ensemble, predicted, observed):
    """The equations of Hunt et al. (2007), point by point and eigenvalue by eigenvalue."""

    members = len(ensemble)
    local = Localisation(system.layout, method.radius, method.taper, method.tile)
    weights = torch.zeros(math.prod(system.layout.shape[1:]), len(observed), dtype=torch.float64)
    for patch in local.patches(observed.columns, weights):
        values = slice(None) if patch.values is None else patch.values
        if patch.points is None:
            weights[:, values] = patch.weights
            continue
        for points, row in zip(patch.points, patch.weights, strict=True):
            for point in points:
                weights[point, values] = row
    x, y = ensemble.flatten(2), predicted
    mean, A = x.mean(0), x - x.mean(0)
    Y, d = y - y.mean(0), observed.y[0] - y.mean(0)
    found = torch.empty_like(x)
    for p, rho in enumerate(weights):
        C = Y * (rho / observed.std**2)
        values, vectors = torch.linalg.eigh(
            (members - 1) * torch.eye(members, dtype=x.dtype) + C @ Y.T
        )
        covariance = (vectors / values) @ vectors.T
        T = (vectors * ((members - 1) / values).sqrt()) @ vectors.T
        w = covariance @ (C @ d)
        found[..., p] = mean[:, p] + (w + T * method.inflation) @ A[..., p]
    return found.reshape(ensemble.shape)


CASES = {
    "gaspari-cohn": (LORENZ, Select(every=1), {"radius": 2.0}),
    "step, inflated": (LORENZ, Subsample(2), {"radius": 2.0, "taper": "step", "inflation": 1.1}),
    "tiles": (LORENZ, Select(every=2), {"radius": 2.0, "tile": 5}),
    "small ensemble": (LORENZ, Select(), {"radius": 2.0, "members": 3}),
    "a region": (LORENZ, Select(region={"site": (3, 4)}), {"radius": 1.0, "taper": "step"}),
    "block averages": (FLOW, BlockAverage(2), {"radius": 1.0}),
    "non-linear": (FLOW, BlockAverage(2) >> SaturatingVorticity(), {"radius": 1.0, "tile": 2}),
}


@pytest.mark.parametrize("name", CASES)
def test_it_is_one_analysis_for_each_point(name, monkeypatch) -> None:
    system, operator, arguments = CASES[name]
    observations = twin(system, operator, 3)
    results = []
    for values in (2**19, 2**7):  # one patch, many patches
        monkeypatch.setattr("sda.classical.letkf.PATCH_VALUES", values)
        method = LETKF(system, **{"members": 12, **arguments})
        recorder = Recorder(method)
        results.append(method.assimilate(observations, 3, initial=Spinup(16), dtype="float64"))
        for ensemble, predicted, observed, found in recorder.calls:
            expected = one_by_one(system, method, ensemble[0], predicted[0], observed)
            torch.testing.assert_close(found[0], expected, rtol=1e-9, atol=1e-9)
            assert (found - ensemble).abs().max() > 1e-2
    one, many = (system.layout.to_array(each) for each in results)
    np.testing.assert_allclose(one, many, rtol=1e-7, atol=1e-7)


@pytest.mark.parametrize("operator", [Select(every=1), Select(every=3) >> Subsample(3)])
@pytest.mark.parametrize(
    "options", [{}, {"rtps": 0.5, "rtpp": 0.2}, {"rotation": True, "inflation": 1.05}]
)
def test_without_localisation_it_is_the_etkf(operator, options) -> None:
    observations = twin(LORENZ, operator, 4 if options.get("rotation") else 13)
    results = [
        LORENZ.layout.to_array(method.assimilate(observations, 5, dtype="float64"))
        for method in (
            LETKF(LORENZ, 9, radius=None, **options),
            LETKF(LORENZ, 9, radius=1e6, **options),
            ETKF(LORENZ, 9, **options),
        )
    ]
    np.testing.assert_allclose(results[0], results[1], rtol=1e-6, atol=1e-6)
    if not options.get("rotation"):
        np.testing.assert_allclose(results[0], results[2], rtol=1e-6, atol=1e-6)
    else:  # rotated at random, each in its own way: the first mean and covariance are the same
        for moment in (np.mean, np.var):
            one, other = (moment(results[i][:, 0], axis=0) for i in (0, 2))
            np.testing.assert_allclose(one, other, rtol=1e-8)


def test_in_a_system_without_space_it_is_the_etkf() -> None:
    system = Lorenz63()
    observations = twin(system, Select(every=2), 9)
    one = LETKF(system, 5, radius=None).assimilate(observations, 1, dtype="float64")
    other = ETKF(system, 5).assimilate(observations, 1, dtype="float64")
    np.testing.assert_allclose(
        system.layout.to_array(one), system.layout.to_array(other), rtol=1e-8
    )


def test_far_from_every_observation_nothing_changes() -> None:
    site = Mask(np.arange(12) == 0, dims=("site",))
    method = LETKF(LORENZ, 6, radius=2.0, taper="step", rtps=0.3, rtpp=0.1)
    recorder = Recorder(method)
    method.assimilate(twin(LORENZ, Select(steps=0) >> site), 2, dtype="float64")
    ((before, _, _, after),) = recorder.calls
    near = [10, 11, 0, 1, 2]
    far = [i for i in range(12) if i not in near]
    torch.testing.assert_close(after[..., far], before[..., far], rtol=1e-12, atol=1e-12)
    assert ((after - before)[..., near].abs().amax((0, 1, 2)) > 1e-3).all()


def test_a_rotation_keeps_mean_and_covariance_at_every_point() -> None:
    found = []
    for rotation in (False, True):
        method = LETKF(LORENZ, 6, radius=2.0, rotation=rotation)
        recorder = Recorder(method)
        method.assimilate(twin(LORENZ, Select(steps=0)), 2, dtype="float64")
        found.append(recorder.calls[0][-1][0, :, 0])
    torch.testing.assert_close(found[0].mean(0), found[1].mean(0))
    torch.testing.assert_close(torch.cov(found[0].T), torch.cov(found[1].T))
    assert not torch.allclose(found[0], found[1])


def test_repetitions_are_the_same_beside_others() -> None:
    observations = [twin(LORENZ, Select(every=1), 6, seed) for seed in range(3)]
    method = LETKF(LORENZ, 5, radius=2.0, rotation=True, inflation=1.05)
    together = method.assimilate(observations, [1, 2, 3])
    for seed, (each, result) in enumerate(zip(observations, together, strict=True), start=1):
        alone = method.assimilate(each, seed)
        np.testing.assert_allclose(alone["x"], result["x"], rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
@pytest.mark.parametrize("size", [8, 39])
@pytest.mark.parametrize("scale", [0.0, 0.1, 1.0, 10.0, 1e3, 1e6])
def test_inverse_roots_are_as_accurate_as_eigenvalues_make_them(dtype, size, scale) -> None:
    rng = np.random.default_rng(0)
    A = torch.from_numpy(rng.standard_normal((16, size, size // 3))).to(dtype) * scale
    G = A @ A.mT / size
    exact = inverse_root_by_eigenvalues(G.double())
    errors = [
        (torch.linalg.matrix_norm(found.double() - exact) / torch.linalg.matrix_norm(exact)).max()
        for found in (inverse_root(G), inverse_root_by_eigenvalues(G))
    ]
    assert errors[0] < max(3 * errors[1], 20 * torch.finfo(dtype).eps * (1 + scale**2))


@pytest.mark.parametrize("root", [inverse_root, inverse_root_by_eigenvalues])
@pytest.mark.parametrize("bad", [math.nan, math.inf])
def test_a_matrix_that_is_not_finite_leaves_others_alone(root, bad) -> None:
    G = torch.diag_embed(torch.arange(24, dtype=torch.float64).reshape(3, 8))
    expected = root(G)
    G[1, 2, 3] = bad
    found = root(G)
    torch.testing.assert_close(found[[0, 2]], expected[[0, 2]])
    assert not torch.isfinite(found[1]).all()


def test_a_small_ensemble_needs_localisation() -> None:
    system = Lorenz96()
    truth = system.simulate(1, 200, spinup=400, seed=0, progress=False).isel(member=0)
    observations = sda.observe(truth, Select(every=1), std=1.0, seed=1)
    errors = []
    for radius in (4.0, None):
        method = LETKF(system, 7, inflation=1.04, radius=radius, rotation=True)
        near = Gaussian(truth["x"].values[:1], 1.0)
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", RuntimeWarning)  # it diverges
            mean = method.assimilate(observations, 2, initial=near)["x"].mean("member")
        square = ((mean - truth["x"]) ** 2).isel(time=slice(50, None)).mean("site")
        errors.append(float(np.sqrt(square).mean()))
    assert errors[0] < 0.3 and errors[1] > 1.0


def test_bad_arguments_are_named() -> None:
    with pytest.raises(ValueError, match="radius must be positive"):
        LETKF(LORENZ, 5, radius=0)
    with pytest.raises(ValueError, match="at least 2 members, got 1"):
        LETKF(LORENZ, 1)
    with pytest.raises(ValueError, match="inflation"):
        LETKF(LORENZ, 5, inflation=-1)
    with pytest.raises(ValueError, match="no spatial dimension"):
        LETKF(Lorenz63(), 5)
