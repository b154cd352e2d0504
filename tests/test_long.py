"""Smoothing beyond memory: the same posterior as in memory, exact on Gaussian systems, resumed."""

import dataclasses

import numpy as np
import pytest
import torch

import dynamics
import sda.long
import sda.long_members
import sda.long_plan
from sda.assimilation import assimilate, trajectory_denoiser
from sda.climatology import Climatology
from sda.guidance import guide
from sda.langevin import Langevin
from sda.long_blocks import AddressedNoise
from sda.observation import Select, observe
from sda.prior import Prior
from sda.sampling import SAMPLERS, integrate, log_levels

A = np.array([[0.8, 0.3], [-0.3, 0.7]])
Q = np.diag([0.3, 0.5])
LENGTH = 200
SCHEDULE = {"steps": 16, "s_max": 100.0, "s_min": 5e-3}


@pytest.fixture(scope="module")
def system():
    return dynamics.LinearGaussian(A, Q, dt=0.1)


@pytest.fixture(scope="module")
def prior(system):
    covariance = system.trajectory_covariance(8)
    return Prior(Climatology.from_moments(system.layout, torch.zeros(2), covariance))


def observed(system, length, seed=0, every=3):
    truth = system.simulate(members=1, length=length, seed=seed).isel(member=0)
    return observe(truth, Select(variables=["x0"], every=every), std=0.3, seed=seed)


@pytest.fixture(scope="module")
def observations(system):
    return observed(system, LENGTH)


def values(dataset):
    return np.stack([dataset[name].values for name in dataset.data_vars], axis=2)


class Whole:
    """The noise that blocks find by its address, for a whole trajectory at once."""

    def __init__(self, seed, members, occasions, state, count, dtype):
        self.arguments, self.occasions = (seed, members, state, count, dtype), iter(occasions)
        self.generators = [None] * members
        self.next()

    def next(self):
        seed, members, state, count, dtype = self.arguments
        key = (0, next(self.occasions))
        self.noise = AddressedNoise(
            seed, range(members), key, 0, state, np.arange(count), dtype=dtype
        )

    def __call__(self, shape):
        return self.noise(shape)


def in_memory(prior, observations, time, members, seed, langevin, dtype=torch.float64):
    """The sampler of whole trajectories, with the noise of the sampler of blocks."""

    climatology = prior.climatology
    likelihood = observations.likelihood(prior.layout, time, dtype)
    likelihood = likelihood.normalise(climatology.mean, climatology.scale)
    denoiser = trajectory_denoiser(prior, len(time), dtype, "2GiB")
    guided = guide("static", denoiser, likelihood, climatology.covariance(len(time), dtype))
    levels = log_levels(**SCHEDULE)
    occasions, most = [0], langevin.steps if langevin else 0
    for i, s in enumerate(levels):
        if langevin and langevin.s_min <= s <= langevin.s_max:
            occasions += [1 + i * (most + 1) + k for k in range(most)]
    noise = Whole(seed, members, occasions, prior.layout.shape, len(likelihood), dtype)
    x = guided.start(float(levels[0]), members, noise)

    class Stepping(Langevin):
        def metric_of(self, *arguments):
            noise.next()
            return super().metric_of(*arguments)

    if langevin:
        fields = [each.name for each in dataclasses.fields(langevin) if each.compare]
        langevin = Stepping(**{name: getattr(langevin, name) for name in fields})
    x = integrate(guided, x, SAMPLERS["xeab"](levels), noise, langevin=langevin)

    return climatology.denormalise(x).numpy()


def with_halo(monkeypatch, halo):
    """Makes long runs take a halo of one's own."""

    plan = sda.long_plan.plan
    monkeypatch.setattr(sda.long, "plan", lambda *a, **k: plan(*a, **{**k, "halo": halo}))


def rms(a, b):
    return float(np.sqrt(np.mean((a - b) ** 2)))


@pytest.mark.parametrize("steps", [None, "vectors"])
def test_the_same_as_in_memory(prior, observations, system, monkeypatch, steps):
    """With the same noise: to rounding in one block, and the closer the wider the halo."""

    time = system.layout.times(LENGTH)
    langevin = Langevin.for_vectors() if steps else None
    expected = in_memory(prior, observations, time, 3, 5, langevin)

    def blocks(frames):
        posterior = assimilate(
            prior, observations, 3, 5, time=time, guidance="static", langevin=langevin,
            dtype="float64", frames=frames, **SCHEDULE,
        )  # fmt: skip
        return rms(values(posterior), expected)

    assert blocks(LENGTH) < 1e-10
    errors = []
    for halo in (8, 32):
        with_halo(monkeypatch, halo)
        errors.append(blocks(40))
    # A Langevin step's metric has capped eigenvalues, whose kink reaches further.
    assert errors[0] < 2e-2 and errors[1] < (4e-3 if steps else 1e-5)
    assert errors[1] < errors[0] / 2
    monkeypatch.undo()
    assert blocks(40) < 1e-2  # at the halo that is chosen
