"""What the tests of ensemble methods share: a linear-Gaussian twin and the exact answer."""

import numpy as np
import torch
from oracles import kalman_smoother

import sda
from dynamics import LinearGaussian, Lorenz63, Lorenz96
from sda.classical import Gaussian
from sda.observation import Select

SYSTEM = LinearGaussian.rotation()
EVERY, STD = 2, 0.7


def linear_twin(length=7, seed=0, system=SYSTEM, spread=1.0):
    """Observations of a linear-Gaussian truth, and the distribution of its first state."""

    n = len(system.A)
    first = np.linspace(1, 2, n)
    truth = system.simulate(1, length, seed=seed, progress=False).isel(member=0)
    times = truth["time"].values[EVERY - 1 :: EVERY]
    observations = sda.observe(truth, Select(times=times.tolist()), std=STD, seed=seed)
    covariance = spread * (0.5 * np.eye(n) + 0.5)

    return truth, observations, Gaussian(first, covariance=covariance)


def exact(truth, observations, initial, system=SYSTEM, until=None):
    """Means and covariances of the states given the observations at frames up to `until`."""

    A, Q = system.A.numpy(), system.Q.numpy()
    n, length = len(A), truth.sizes["time"]
    y = observations.sets[0].y.reshape(-1, n)
    H, R, seen = [None] * length, [None] * length, [None] * length
    for k, i in enumerate(range(EVERY - 1, length, EVERY)):
        if until is None or i <= until:
            H[i], R[i] = np.eye(n), STD**2 * np.eye(n)
            seen[i] = y[k] - np.linalg.matrix_power(A, i) @ initial.mean
    covariance = initial.root @ initial.root.T
    means, covs, _ = kalman_smoother(A, Q, covariance, H, R, seen)
    drift = np.stack([np.linalg.matrix_power(A, i) @ initial.mean for i in range(length)])

    return means + drift, covs


def values(dataset, system=SYSTEM):
    return system.layout.to_array(dataset).astype(np.float64)


def moments(ensemble):
    """Mean `(time, n)` and covariance `(time, n, n)` of `(member, time, n)`."""

    flat = ensemble.reshape(*ensemble.shape[:2], -1)
    covariances = [np.atleast_2d(np.cov(flat[:, i].T)) for i in range(flat.shape[1])]

    return flat.mean(0), np.stack(covariances)


def published_twins(name, cycles, seeds):
    """A published set-up, shortened: the system, truths, observations and first distribution."""

    if name == "lorenz63":
        system, every, std = Lorenz63(dt=0.01), 25, 2**0.5
        initial = Gaussian([1.509, -1.531, 25.46], 2.0)
    else:
        system, every, std = Lorenz96(), 1, 1.0
        initial = Gaussian(np.eye(1, 40), 0.001)
    first = torch.cat([initial.draw(system, 1, 100 + seed, torch.float64) for seed in seeds])
    length = cycles * every + 1
    time = system.layout.times(length)
    whole = system.layout.to_dataset(system.rollout(first, length), time=time)
    truths = [whole.isel(member=i) for i in range(len(seeds))]
    chosen = Select(times=time[every::every].tolist())
    observations = [
        sda.observe(truth, chosen, std=std, seed=seed)
        for truth, seed in zip(truths, seeds, strict=True)
    ]

    return system, truths, observations, initial


def analysis_rmse(method, truths, observations, initial, burn_in, dtype=torch.float64):
    """The analysis RMSE after the burn-in, mean over the repetitions, and their datasets."""

    results = method.assimilate(
        observations, list(range(len(truths))), initial=initial, time=truths[0]["time"], dtype=dtype
    )
    scores = []
    for result, truth in zip(results, truths, strict=True):
        right = values(truth.sel(time=result["time"].values, method="nearest"), method.system)[0]
        error = (values(result, method.system).mean(0) - right).reshape(len(right), -1)
        kept = result["time"].values > burn_in
        scores.append(np.sqrt(np.square(error).mean(1))[kept].mean())

    return float(np.mean(scores)), results
