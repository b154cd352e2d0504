"""Statistics homogeneous in longitude only, and a coastline, through the whole engine.

The oracle is dense algebra with the covariance of the whole trajectory.
"""

import numpy as np
import pytest
import torch

from dynamics.layout import Layout
from sda.assimilation import assimilate
from sda.costs import cost
from sda.forecasting import forecast
from sda.long_blocks import halo_of
from sda.observation import Interpolate, Select, Subsample, observe
from sda.prior import GaussianPrior, Prior

LENGTH = 7
CYLINDER = Layout(
    ("u", "v"),
    0.5,
    {"lat": np.array([-60.0, 0.0, 60.0]), "lon": np.arange(6) * 60.0},
    {"lon": 360.0},
    units={"lat": "degrees_north", "lon": "degrees_east"},
)
BASIN = Layout(
    ("a", "b"),
    0.5,
    {"y": np.arange(3.0), "x": np.arange(5.0)},
    mask=np.array([[1, 1, 0, 1, 1], [0, 1, 1, 1, 0], [1, 1, 1, 0, 1]], dtype=bool),
)


def trajectories(layout: Layout, members: int, length: int, seed: int) -> np.ndarray:
    """A chain that drifts to the east, forgets within a few states, and is unlike at each row."""

    generator = torch.Generator().manual_seed(seed)
    rows = torch.linspace(0.6, 1.2, layout.shape[-2])[:, None]
    rows = rows * torch.tensor([1.0, 30.0])[:, None, None]
    x, states = torch.zeros(members, *layout.shape), []
    for _ in range(length + 20):
        noise = torch.randn(members, *layout.shape, generator=generator)
        noise = noise + 0.8 * noise.roll(1, -1) + 0.5 * noise.flip(1)
        x = 0.5 * x + 0.2 * x.roll(1, -1) + rows * noise
        states.append(x)
    x = torch.stack(states[20:], dim=1) + 5

    return (x if layout.mask is None else x * torch.from_numpy(layout.mask)).numpy()


@pytest.fixture(scope="module", params=[CYLINDER, BASIN], ids=["cylinder", "basin"])
def layout(request):
    return request.param


@pytest.fixture(scope="module")
def prior(layout):
    prior = GaussianPrior.fit(layout.to_dataset(trajectories(layout, 20, 60, 0)), window=4)
    assert prior.climatology.kind == ("zonal" if layout is CYLINDER else "low_rank")
    return prior


@pytest.fixture(scope="module")
def truth(layout):
    return layout.to_dataset(trajectories(layout, 1, LENGTH, 1)).isel(member=0)


@pytest.fixture(scope="module")
def observations(layout, truth):
    if layout.mask is None:
        return observe(truth, Select([layout.variables[0]], every=3) >> Subsample(2), 0.4, seed=2)
    # A few cells of the sea.
    points = Select([layout.variables[0]], every=3) >> Interpolate({"y": [0, 1, 2], "x": [0, 2, 1]})
    return observe(truth, points, 0.4, seed=2)


def values(dataset, layout):
    """Of all cells that are not land, with shape `(member, value)`; the others must be missing."""

    x = np.stack([dataset[name].values for name in layout.variables], axis=2)
    if layout.mask is None:
        return x.reshape(len(x), -1)
    assert np.isnan(x[..., ~layout.mask]).all()
    return x[..., layout.mask].reshape(len(x), -1)


def exact(prior, observations, time):
    """Mean and covariance of the posterior in physical units, of all cells that are not land."""

    layout, climatology = prior.layout, prior.climatology
    shape = (len(time), *layout.shape)
    P = climatology.covariance(len(time), torch.float64).dense().numpy()
    scale = climatology.scale.double().numpy().reshape(-1, 1, 1) * np.ones(shape)
    P = P * np.outer(scale, scale)
    likelihood = observations.likelihood(layout, np.asarray(time), torch.float64)
    H = likelihood.columns().flatten(1).numpy()
    mean = np.broadcast_to(climatology.mean.double().numpy(), shape).ravel()
    K = P @ H.T @ np.linalg.inv(H @ P @ H.T + np.diag(likelihood.std.numpy() ** 2))
    mean, P = mean + K @ (likelihood.y.numpy() - H @ mean), P - K @ H @ P
    sea = np.ones(shape, bool) if layout.mask is None else np.broadcast_to(layout.mask, shape)
    sea = sea.ravel()

    return mean[sea], P[np.ix_(sea, sea)]


def check(x, mean, covariance):
    """Members against the moments, to their sampling error."""

    n, std = len(x), np.sqrt(covariance.diagonal())
    z = (x.mean(0) - mean) / (std / np.sqrt(n))
    assert np.sqrt(np.mean(z**2)) < 1.5
    assert np.abs(x.std(0, ddof=1) / std - 1).max() < 5 / np.sqrt(2 * n)
    error = (np.cov(x.T) - covariance) / np.outer(std, std)
    assert np.abs(error).max() < 6 / np.sqrt(n)
    assert np.sqrt(np.mean(error**2)) < 1.5 / np.sqrt(n)


@pytest.mark.parametrize(
    "options",
    [
        {"guidance": "static", "langevin": None},
        {"guidance": "static", "langevin": "fields"},
        {"guidance": "flow_dependent"},
        {"guidance": "hybrid"},
    ],
    ids=lambda options: "-".join(map(str, options.values())),
)
def test_exact_posterior(layout, prior, observations, options):
    posterior = assimilate(prior, observations, 200, 3, **options)
    check(values(posterior, layout), *exact(prior, observations, posterior.time.values))


def test_a_saved_prior_gives_the_same_members(layout, prior, observations, tmp_path):
    again = Prior.load(prior.save(tmp_path / "prior"))
    for name in layout.variables:
        np.testing.assert_array_equal(
            assimilate(prior, observations, 2, 3)[name].values,
            assimilate(again, observations, 2, 3)[name].values,
        )


def test_blocks_of_time_are_exact(layout, prior, observations):
    """The chain forgets: a halo is found, and what blocks see is enough."""

    assert 4 <= halo_of(prior) <= 32
    time = layout.times(80)
    posterior = assimilate(
        prior, observations, 60, 3, time=time, frames=20, guidance="static", langevin=None
    )
    mean, covariance = exact(prior, observations, time)
    x, std = values(posterior, layout), np.sqrt(covariance.diagonal())
    z = (x.mean(0) - mean) / std * np.sqrt(len(x))
    assert 0.9 < np.sqrt(np.mean(z**2)) < 1.1
    assert 0.98 < np.sqrt(np.mean((x.std(0, ddof=1) / std) ** 2)) < 1.02


def test_forecast_is_the_exact_prediction(layout, prior, truth):
    lead, members, known = 6, 300, 4
    found = forecast(prior, truth.expand_dims("member"), lead, members, 5, tail=known)
    x = layout.to_array(found)

    # Given the last four states, by dense algebra.
    climatology, k = prior.climatology, known * int(np.prod(layout.shape))
    P = climatology.covariance(known + lead, torch.float64).dense().numpy()
    tail = torch.from_numpy(layout.to_array(truth)[0, -known:]).double()
    tail = climatology.normalise(tail).numpy().ravel()
    regression = P[k:, :k] @ np.linalg.pinv(P[:k, :k], rcond=1e-10, hermitian=True)
    mean, rest = regression @ tail, P[k:, k:] - regression @ P[:k, k:]
    x = climatology.normalise(torch.from_numpy(x).double()).numpy().reshape(members, -1)
    varies = rest.diagonal() > 1e-6
    assert varies.sum() == lead * prior.climatology.covariance(1).size
    check(x[:, varies], mean[varies], rest[np.ix_(varies, varies)])


def test_filter_is_the_exact_one(layout, prior, observations):
    """All that was seen up to the last cycle is known: the analysis of its state."""

    found = assimilate(
        prior, observations, 300, 4, task="filter", history=LENGTH, guidance="static",
        langevin=None, steps=16,
    )  # fmt: skip
    time = layout.times(LENGTH)
    assert found.time.values[-1] == time[-1]
    mean, covariance = exact(prior, observations, time)
    x = values(found.isel(time=[-1]), layout)
    k = x.shape[1]
    check(x, mean[-k:], covariance[-k:, -k:])


def test_costs_are_counted(prior, observations):
    found = cost(prior, observations, members=4)
    assert found.evaluations > 0 and found.memory > 0


def test_trajectories_that_are_too_long_for_memory_are_taken_apart(prior, observations):
    """The matrices of all EOFs that are coupled grow with the square of the length."""

    from sda.assimilation import too_long

    assert not too_long(prior, 100, "2GiB") and too_long(prior, 10_000, "2GiB")
