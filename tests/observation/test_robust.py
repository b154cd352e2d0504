"""Errors with heavy tails: densities, weights, files, and posteriors against exact samplers."""

import math

import numpy as np
import pytest
import torch
from scipy import integrate, stats

from dynamics.layout import Layout
from sda import assimilate
from sda.langevin import Langevin
from sda.observation import Function, Observations, Select
from sda.observation.robust import Robust, parse
from sda.prior import GaussianPrior
from sda.quality import check

LENGTH = 10


@pytest.fixture(scope="module")
def prior():
    """The Gaussian prior of a slow scalar."""

    rng = np.random.default_rng(0)
    data = np.empty((64, 200, 1))
    data[:, 0] = rng.standard_normal((64, 1))
    for i in range(1, 200):
        data[:, i] = 0.9 * data[:, i - 1] + math.sqrt(1 - 0.81) * rng.standard_normal((64, 1))
    return GaussianPrior.fit(Layout(("x",), 1.0).to_dataset(data), LENGTH)


def observed(prior, errors, outliers=((3, 4.0), (7, -5.0))):
    y = np.random.default_rng(1).standard_normal(LENGTH).cumsum() * 0.2
    for i, size in outliers:
        y[i] += size
    layout, time = prior.layout, np.arange(float(LENGTH))
    plain = Observations.from_operator(Select(), y[:, None], 0.4, layout, time)
    return plain.with_errors(errors), y


def gibbs(prior, y, std, dof, draws=40000, seed=0):
    """The posterior mean and std with Student's t errors, by alternating exact draws."""

    rng = np.random.default_rng(seed)
    covariance = prior.climatology.covariance(LENGTH, torch.float64).dense().numpy()
    scale = float(prior.climatology.scale[0])
    precision = np.linalg.inv(covariance * scale**2)
    mean = np.full(LENGTH, float(prior.climatology.mean.flatten()[0]))
    weight, kept = np.ones(LENGTH), []
    for k in range(draws):
        P = precision + np.diag(weight / std**2)
        L = np.linalg.cholesky(P)
        centre = np.linalg.solve(P, precision @ mean + weight * y / std**2)
        x = centre + np.linalg.solve(L.T, rng.standard_normal(LENGTH))
        weight = rng.gamma((dof + 1) / 2, 2 / (dof + ((y - x) / std) ** 2))
        if k >= 200:
            kept.append(x)
    kept = np.array(kept)
    return kept.mean(0), kept.std(0)


def test_densities_are_densities_and_those_known():
    for errors in ("student_t(3)", "student_t", "huber", "huber(0.7)", "gaussian"):
        robust = Robust.of([errors, "huber"], torch.zeros(2, dtype=torch.float64))

        def density(z, robust=robust):
            z = torch.tensor([z, 0.0], dtype=torch.float64)
            return float(robust.log_prob(z)[0].exp())

        total = 2 * integrate.quad(density, 0, np.inf)[0]
        assert total == pytest.approx(1.0, abs=1e-6)
    z = torch.linspace(-6, 6, 13, dtype=torch.float64)
    student = Robust.of(["student_t(3)"] * 13, z)
    assert student.log_prob(z).numpy() == pytest.approx(stats.t(3).logpdf(z.numpy()))
    assert Robust.of(["gaussian"] * 3, z) is None


@pytest.mark.parametrize("errors", ["student_t(3)", "huber(1.2)", "gaussian"])
def test_weights_make_the_gradient_of_the_log_density(errors):
    z = torch.linspace(-6, 6, 24, dtype=torch.float64)
    robust = Robust.of([errors] * 23 + ["huber"], z)
    z.requires_grad_()
    (g,) = torch.autograd.grad(robust.log_prob(z).sum(), z)
    z = z.detach()
    assert torch.allclose(g, -robust.weights(z.square()) * z)


def test_the_likelihood_has_the_density_of_its_errors(prior):
    observations, y = observed(prior, "student_t(3)")
    both = observations + observations.with_errors("gaussian")
    x = torch.from_numpy(np.random.default_rng(3).standard_normal((4, LENGTH, 1)))
    time = np.arange(float(LENGTH))
    found = both.likelihood(prior.layout, time, torch.float64).log_prob(x)
    z = (y - x[..., 0].numpy()) / 0.4
    expected = stats.t(3).logpdf(z) + stats.norm.logpdf(z) - 2 * math.log(0.4)
    assert found.numpy() == pytest.approx(expected.sum(1))


@pytest.mark.parametrize(
    ("limit", "members", "steps", "tolerance"), [(1e8, 500, 20, 0.2), (0.0, 100, 8, 0.4)]
)
def test_the_posterior_with_student_t_errors_is_that_of_gibbs_sampling(
    prior, limit, members, steps, tolerance
):
    observations, y = observed(prior, "student_t(3)")
    posterior = assimilate(
        prior, observations, members=members, seed=1, steps=steps, time=np.arange(float(LENGTH)),
        guidance={"name": "static", "limit": limit},
        langevin=Langevin.for_vectors(s_min=0.02, steps=2), memory="64MiB",
    )  # fmt: skip
    found = posterior["x"].values
    mean, std = gibbs(prior, y, 0.4, 3.0, draws=8000)
    gaussian, _ = observed(prior, "gaussian")
    assert np.abs(found.mean(0) - mean).max() < 0.2 * std.max()
    assert found.std(0) == pytest.approx(std, rel=tolerance)
    # An error that is Gaussian would have drawn the mean to the outliers.
    S = prior.climatology.covariance(LENGTH, torch.float64).dense().numpy()
    S = S * float(prior.climatology.scale[0]) ** 2
    drawn = S @ np.linalg.solve(S + 0.16 * np.eye(LENGTH), y)
    assert np.abs(drawn - mean)[[3, 7]].min() > 3 * np.abs(found.mean(0) - mean)[[3, 7]].max()


def test_robust_errors_in_fields_of_nonlinear_observations(prior):
    layout, time = prior.layout, np.arange(float(LENGTH))
    truth = np.sin(0.5 * time)[:, None]
    y = np.tanh(truth)
    y[4] = 3.0
    operator = Select() >> Function("tanh")
    plain = Observations.from_operator(operator, y, 0.1, layout, time)
    options = {"members": 64, "seed": 0, "time": time, "guidance": "static", "steps": 12}
    error = {}
    for errors in ("gaussian", "student_t", "huber"):
        posterior = assimilate(prior, plain.with_errors(errors), **options)
        error[errors] = float(np.abs(posterior["x"].mean("member").values - truth[:, 0]).max())
    assert error["student_t"] < 0.5 * error["gaussian"]
    assert error["huber"] < error["gaussian"]


def test_files_and_parts_keep_the_errors(prior, tmp_path):
    observations, _ = observed(prior, "student_t(3)")
    both = observations + observed(prior, "gaussian")[0]
    for each, suffixes in ((observations, (".csv", ".parquet", ".nc")), (both, (".csv",))):
        for suffix in suffixes:
            each.save(tmp_path / f"o{suffix}", overwrite=True)
            loaded = Observations.load(tmp_path / f"o{suffix}")
            assert [s.errors for s in loaded.sets] == [s.errors for s in each.sets]
            assert loaded.hash() == each.hash()
    assert observations.hash() != observations.with_errors("gaussian").hash()
    rows = {"time": [0.0, 1.0, 2.0], "variable": ["x"] * 3, "observation": [0.0, 1.0, 2.0],
            "std": 0.1, "errors": ["student_t", "gaussian", "student_t"]}  # fmt: skip
    mixed = Observations.from_table(rows)
    assert [(len(s), s.errors) for s in mixed.sets] == [(2, "student_t"), (1, "gaussian")]
    assert mixed.robust and check(prior, mixed).accepted.robust
    kept = mixed.keep(np.array([True, False, True]))
    assert [s.errors for s in kept.sets] == ["student_t", "gaussian"]


def test_a_filter_takes_heavy_tails(prior):
    observations, y = observed(prior, "student_t(3)")
    options = {"members": 64, "steps": 12, "task": "filter", "time": np.arange(float(LENGTH))}
    robust = assimilate(prior, observations, guidance="static", **options)["x"].values
    plain = assimilate(prior, observations.with_errors("gaussian"), guidance="static", **options)[
        "x"
    ].values
    assert abs(robust[:, 3].mean() - y[3]) > 1.5 * abs(plain[:, 3].mean() - y[3])


@pytest.mark.parametrize(
    "errors", ["cauchy", "student_t(0)", "huber(-1)", "huber(x)", "gaussian(2)"]
)
def test_unknown_errors_are_said(prior, errors):
    with pytest.raises(ValueError, match="errors"):
        observed(prior, errors)
    assert parse("student_t( 2.5 )") == ("student_t", 2.5)


def test_what_needs_gaussian_errors_says_so(prior):
    from sda.observation import sequence

    observations, _ = observed(prior, "huber")
    time = np.arange(float(LENGTH))
    with pytest.raises(ValueError, match="need Gaussian errors, but some are"):
        sequence(observations, prior.layout, time)
    with pytest.raises(ValueError, match="this guidance takes Gaussian errors only"):
        assimilate(prior, observations, members=2, guidance="dps", time=time)
    with pytest.raises(ValueError, match="blocks of time need Gaussian errors"):
        assimilate(prior, observations, members=2, frames=4, time=time)
