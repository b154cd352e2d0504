"""Particle filters against the Kalman filter, published scores and each other."""

import math

import numpy as np
import pytest
import torch
from test_particle import conditioned

import sda
from dynamics import KolmogorovFlow, Lorenz63
from dynamics.linear_gaussian import LinearGaussian
from sda.classical import Draws, Gaussian, ParticleFilter, Spinup
from sda.classical.particle_filter import noise_root
from sda.classical.particle_weights import (
    copies,
    kernel,
    kernel_size,
    scott,
    systematic_indices,
    take,
)
from sda.observation import Function, Observations, Select

LENGTH = 12
ROTATION = LinearGaussian.rotation(angle=0.4, decay=0.9)
STATIONARY = Spinup(0)


def observed(every: int = 3, std: float = 0.3, seed: int = 1, first: int = 0) -> Observations:
    truth = ROTATION.simulate(1, LENGTH, seed=seed, progress=False).isel(member=0)
    H = Select([ROTATION.layout.variables[0]], steps=slice(first, None, every))
    return sda.observe(truth, H, std, seed=seed)


def exact(observations: Observations, time: np.ndarray) -> tuple[np.ndarray, np.ndarray, list]:
    """Means and standard deviations of the Kalman filter at analysis times, and log-evidence."""

    likelihood = observations.likelihood(ROTATION.layout, time, torch.float64)
    joint = ROTATION.trajectory_covariance(len(time))
    means, stds, evidence = [], [], []
    for k in range(len(likelihood)):
        i = int(likelihood.columns()[k].abs().flatten(1).sum(1).argmax())
        mean, covariance, log_p = conditioned(joint, likelihood, k + 1)
        means.append(mean[2 * i : 2 * i + 2].numpy())
        stds.append(covariance.diagonal().sqrt()[2 * i : 2 * i + 2].numpy())
        evidence.append(log_p)
    return np.stack(means), np.stack(stds), evidence


def means(dataset):
    return np.stack([dataset[f"{name}_mean"].values for name in dataset.data_vars], 1)


def members(dataset):
    return np.stack([dataset[name].values for name in dataset.data_vars], 2)


@pytest.mark.parametrize("proposal", ["bootstrap", "guided"])
def test_the_kalman_filter(proposal):
    """Mean, variance and evidence; the members of the result are equally weighted."""

    observations = observed()
    method = ParticleFilter(ROTATION, 2**14, proposal=proposal)
    found = method.assimilate(observations, seed=3, initial=STATIONARY, dtype="float64")
    mean, std, evidence = exact(observations, ROTATION.layout.times(10))

    # Sampling error: about 2 / √16384 = 0.016 of a standard deviation.
    assert found.sizes == {"member": 2**14, "time": 4}
    assert np.abs((means(found) - mean) / std).max() < 0.06
    assert np.abs((members(found).mean(0) - mean) / std).max() < 0.06
    assert np.abs(members(found).std(0) / std - 1).max() < 0.04
    assert np.abs(found.log_evidence.values - evidence).max() < 0.07
    assert (found.effective_number > 1000).all() and not found.attrs["diverged"]


def test_guided_is_better_where_observations_are_accurate():
    """At an equal number of particles, each step observed with a fortieth of its noise."""

    # Not the first state, to which no step leads that could be guided.
    observations, errors, sizes = observed(every=1, std=0.01, first=1), {}, {}
    time = ROTATION.layout.times(LENGTH)
    mean, std, evidence = exact(observations, time)
    for proposal in ("bootstrap", "guided"):
        method = ParticleFilter(ROTATION, 200, proposal=proposal)
        runs = method.assimilate(
            [observations] * 8, list(range(8)), time=time, initial=STATIONARY, dtype="float64"
        )
        error = np.stack([(means(run) - mean) / std for run in runs])
        errors[proposal] = np.sqrt(np.mean(error**2))
        sizes[proposal] = np.mean([run.effective_number.mean() for run in runs])
        if proposal == "guided":
            off = [float(run.log_evidence[-1]) - evidence[-1] for run in runs]
            assert abs(np.mean(off)) < 0.5
    assert errors["guided"] < 0.3 < 0.5 * errors["bootstrap"]
    assert sizes["guided"] > 5 * sizes["bootstrap"]


def test_guided_with_a_nonlinear_operator_has_the_right_weights():
    """The linearisation shapes the proposal alone, not the posterior."""

    name = ROTATION.layout.variables[0]
    truth = ROTATION.simulate(1, LENGTH, seed=1, progress=False).isel(member=0)
    H = Select([name], every=2) >> Function("saturate")
    observations = sda.observe(truth, H, std=0.3, seed=1)
    many = ParticleFilter(ROTATION, 2**16).assimilate(observations, 0, initial=STATIONARY)
    few = ParticleFilter(ROTATION, 2**14, proposal="guided").assimilate(
        observations, 0, initial=STATIONARY
    )
    spread = members(many).std(0)
    assert np.abs((means(few) - means(many)) / spread).max() < 0.06
    assert np.abs(members(few).std(0) / spread - 1).max() < 0.06
    assert abs(float(few.log_evidence[-1] - many.log_evidence[-1])) < 0.1


def sakov(seeds, cycles):
    """Twin experiments as in Sakov et al. (2012), table 1."""

    system, initial = Lorenz63(dt=0.01), Gaussian([1.509, -1.531, 25.46], 2.0)
    time = system.layout.times(25 * cycles + 1)
    start = torch.cat([initial.draw(system, 1, 100 + seed, torch.float64) for seed in seeds])
    states = system.layout.to_dataset(system.rollout(start, len(time)).numpy(), time=time)
    truths = [states.isel(member=r) for r in range(len(seeds))]
    H = Select(steps=slice(25, None, 25))
    observations = [sda.observe(truth, H, 2**0.5, seed) for truth, seed in zip(truths, seeds)]
    options = {"seed": seeds, "time": time, "initial": initial, "dtype": "float64"}

    return system, truths, observations, options


def test_the_regularised_filter_has_its_published_score():
    """N = 100, published 0.38 (full rows: 1,000 cycles).

    Of 4 runs of 120 cycles the score varies by about 0.03 around 0.38: within four times that.
    """

    seeds = [0, 1, 2, 3]
    system, truths, observations, options = sakov(seeds, 130)
    method = ParticleFilter(system, 100, threshold=0.3, regularisation=2.4)
    scores = []
    for found, truth in zip(method.assimilate(observations, **options), truths, strict=True):
        assert not found.attrs["diverged"]
        x = members(truth.sel(time=found.time).expand_dims("member"))[0]
        scores.append(np.sqrt(((members(found).mean(0) - x) ** 2).mean(1))[10:].mean())
    assert 0.26 < np.mean(scores) < 0.50


def test_without_regularisation_a_deterministic_filter_collapses_and_is_reported():
    system, _, observations, options = sakov([0], 60)
    method = ParticleFilter(system, 50, regularisation=0.0)
    with pytest.warns(RuntimeWarning, match=r"ParticleFilter diverged in cycle \d+, at time"):
        (found,) = method.assimilate(observations, **options)
    assert found.attrs["diverged"] == 1 and 0 < found.attrs["diverged_time"] <= 15
    assert members(found)[:, -1].std(0).max() < 1e-6
    assert ParticleFilter(system, 50).regularisation == 1.0
    assert ParticleFilter(Lorenz63(noise=True), 50).regularisation == 0.0


@pytest.mark.parametrize(
    "options",
    [{"proposal": "guided"}, {"regularisation": 0.5}, {"regularisation": 0.5, "jitter": "all"}],
)
def test_a_repetition_does_not_depend_on_the_others(options):
    """Nor on whether they are resampled."""

    sets = [observed(1, 0.05, seed) for seed in (1, 2, 3)]
    method = ParticleFilter(ROTATION, 64, threshold=0.3, **options)
    together = method.assimilate(sets, [4, 5, 6], initial=STATIONARY, dtype="float64")
    for each, seed, found in zip(sets, (4, 5, 6), together, strict=True):
        alone = method.assimilate(each, seed, initial=STATIONARY, dtype="float64")
        np.testing.assert_allclose(members(alone), members(found), atol=1e-9)
        np.testing.assert_allclose(alone.log_evidence, found.log_evidence, atol=1e-9)
    assert not np.allclose(members(together[0]), members(together[1]))


def test_what_no_particle_explains_is_reported_by_its_cycle():
    sets = [observed(3), observed(3)]
    sets[1].sets[0].y = np.where(np.arange(4) == 2, 1e200, sets[1].sets[0].y)
    method = ParticleFilter(ROTATION, 64)
    options = {"initial": STATIONARY, "dtype": "float64"}
    with pytest.warns(RuntimeWarning, match="diverged in cycle 2, at time 6: .* not finite"):
        good, bad = method.assimilate(sets, [0, 0], **options)
    assert not good.attrs["diverged"] and np.isfinite(members(good)).all()
    assert bad.attrs["diverged"] and bad.attrs["diverged_time"] == 6
    assert np.isfinite(members(bad)[:, :2]).all() and np.isnan(members(bad)[:, 2:]).all()
    alone = method.assimilate(sets[0], 0, **options)
    np.testing.assert_allclose(members(alone), members(good), atol=1e-9)


def test_observations_between_states():
    """The state before takes part; the guided filter takes that step by the model alone."""

    table = {"time": [0.0, 1.5, 4.0], "variable": [ROTATION.layout.variables[0]] * 3}
    table |= {"observation": [0.3, -0.2, 0.5], "std": 0.3}
    observations = Observations.from_table(table)
    likelihood = observations.likelihood(ROTATION.layout, np.arange(5.0), torch.float64)
    _, _, evidence = conditioned(ROTATION.trajectory_covariance(5), likelihood, 3)
    for proposal in ("bootstrap", "guided"):
        found = ParticleFilter(ROTATION, 2**14, proposal=proposal).assimilate(
            observations, 0, initial=STATIONARY
        )
        assert found.time.values.tolist() == [0, 2, 4]
        assert float(found.log_evidence[-1]) == pytest.approx(evidence, abs=0.06)


def test_systematic_resampling_is_unbiased_and_even():
    w = torch.tensor([[0.1, 0.0, 0.55, 0.35], [1.0, 0.0, 0.0, 0.0]], dtype=torch.float64)
    total = np.zeros((2, 4))
    for k in range(400):
        uniform = torch.tensor([(k + 0.5) / 400, 1 - 1e-12])
        indices = systematic_indices(w, 10, uniform)
        counts = np.stack([np.bincount(row, minlength=4) for row in indices.numpy()])
        assert (np.abs(counts - 10 * w.numpy()) < 1).all() and (indices.diff() >= 0).all()
        total += counts / 400
    np.testing.assert_allclose(total, 10 * w.numpy(), atol=0.01)
    equal = torch.full((1, 7), 1 / 7, dtype=torch.float64)
    assert systematic_indices(equal, 7, torch.tensor([0.999]))[0].tolist() == list(range(7))


def test_copies_are_moved_by_the_weighted_covariance():
    indices = torch.tensor([[0, 0, 2, 3, 3, 3], [0, 1, 2, 3, 4, 5]])
    assert copies(indices).tolist() == [[True, True, False, True, True, True], [False] * 6]
    x = torch.arange(12.0).reshape(2, 6, 1)
    assert take(x, indices)[1].flatten().tolist() == list(range(6, 12))

    generator = torch.Generator().manual_seed(0)
    for number, dimension in ((20, 3), (4, 5)):  # by the matrix, and by the particles themselves
        x = torch.randn((1, number, dimension), generator=generator).double()
        w = torch.softmax(torch.randn((1, number), generator=generator).double(), 1)
        size = kernel_size(number, dimension)
        noise = torch.randn((50_000, size), generator=generator).double()
        draws = torch.cat(
            [kernel(x, w, part[None])[0] for part in noise.split(number) if len(part) == number]
        )
        covariance = torch.cov(x[0].T, aweights=w[0], correction=0)
        scale = covariance.diagonal().sqrt()
        error = (torch.cov(draws.T) - covariance) / scale / scale[:, None]
        assert error.abs().max() < 0.03


def test_the_bandwidth_is_that_of_scott():
    assert scott(100, 3) == pytest.approx(100 ** (-1 / 7))
    assert scott(16, 0) == pytest.approx(0.5)


def test_a_kernel_ignores_what_has_no_weight():
    x = torch.randn((1, 20, 3), generator=torch.Generator().manual_seed(0)).double()
    w = torch.full((1, 20), 1 / 19).double()
    w[0, 7] = 0
    for size in (3, 20):
        noise = torch.randn((1, 20, size), generator=torch.Generator().manual_seed(1)).double()
        expected = kernel(x, w, noise)
        spoilt = x.clone()
        spoilt[0, 7, 1] = math.nan
        torch.testing.assert_close(kernel(spoilt, w, noise), expected)


@pytest.mark.parametrize("proposal", ["bootstrap", "guided"])
def test_particles_that_are_not_finite_have_no_weight(proposal):
    """Not even where what is observed of them is finite; the others are as good as before."""

    observations, number = observed(), 2**13
    first = ROTATION.initial(number, seed=8).double()
    first[: number // 4, 1] = math.nan  # not observed
    first[number // 4, 0] = math.inf
    method = ParticleFilter(ROTATION, number, proposal=proposal)
    found = method.assimilate(observations, seed=3, initial=Draws(first), dtype="float64")
    mean, std, _ = exact(observations, ROTATION.layout.times(10))
    assert np.abs((means(found) - mean) / std).max() < 0.09
    assert np.abs(members(found).std(0) / std - 1).max() < 0.06
    assert not found.attrs["diverged"]
    # Without resampling none of them comes back.
    assert (found.effective_number[0] < 3 * number / 4).all()

    moved = ParticleFilter(ROTATION, number, 1.0, 0.2, "all").assimilate(
        observations, seed=3, initial=Draws(first), dtype="float64"
    )
    assert np.isfinite(members(moved)).all() and np.isfinite(means(moved)).all()

    with pytest.warns(RuntimeWarning, match="ParticleFilter diverged in cycle 0"):
        none = method.assimilate(observations, initial=Draws(first * math.nan), dtype="float64")
    assert none.attrs["diverged"] == 1 and np.isnan(members(none)).all()


def test_the_root_of_the_noise():
    z = torch.randn((2, 2), generator=torch.Generator().manual_seed(0)).double()
    root = noise_root(ROTATION, z)
    torch.testing.assert_close(root @ root.mT, ROTATION.Q.double())
    lorenz = Lorenz63(noise=True)
    root = noise_root(lorenz, 10 * torch.randn((2, 3), generator=torch.Generator().manual_seed(0)))
    torch.testing.assert_close(root, math.sqrt(0.025) * torch.eye(3).double(), atol=1e-5, rtol=0)


@pytest.mark.parametrize(
    "change, message",
    [
        ({"members": 1}, "needs at least 2 members, got 1"),
        ({"threshold": 0.0}, r"threshold must be in \(0, 1\], got 0"),
        ({"regularisation": -1.0}, "regularisation must not be negative, got -1"),
        ({"jitter": "some"}, "unknown jitter 'some'"),
        ({"proposal": "magic"}, "unknown proposal 'magic': choose one of bootstrap, guided"),
        ({"system": Lorenz63(), "proposal": "guided"}, "Lorenz63 is deterministic: use"),
        ({"system": KolmogorovFlow(size=8, resolution=16), "proposal": "guided"}, "deterministic"),
    ],
)
def test_bad_arguments(change, message):
    with pytest.raises(ValueError, match=message):
        ParticleFilter(**{"system": ROTATION, "members": 8, **change})
