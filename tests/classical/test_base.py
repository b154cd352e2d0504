"""What all classical methods share."""

import math

import numpy as np
import pytest
import torch

import sda
from dynamics import KolmogorovFlow, Lorenz63, Lorenz96, TwoLayerQG
from sda.classical import Draws, Filter, Gaussian, Spinup
from sda.classical.base import LOST, PATIENCE, Noise
from sda.observation import Function, Select, Subsample

SYSTEM = Lorenz96(dimension=8, noise=True)


class Nudging(Filter):
    """x ↦ x + g (y + ε − H x), with a perturbation for each member."""

    def __init__(self, system, members, gain=0.5):
        super().__init__(system, members)
        self.gain = gain

    def analyse(self, ensemble, predicted, observed, run):
        noise = run.noise.normal("observation", predicted.shape[1:])
        innovations = observed.y[:, None] + observed.std * noise - predicted
        increments = innovations @ observed.matrix[:, -ensemble[0, 0].numel() :]
        return ensemble + self.gain * increments.reshape(ensemble.shape)


def twins(number, length=13, system=SYSTEM, operator=None, std=0.5):
    operator = operator or (Select(every=3) >> Subsample(2))
    truths = [
        system.simulate(1, length, spinup=50, seed=i, progress=False).isel(member=0)
        for i in range(number)
    ]
    return truths, [sda.observe(t, operator, std=std, seed=i) for i, t in enumerate(truths)]


def values(dataset):
    return SYSTEM.layout.to_array(dataset)


def test_a_repetition_is_the_same_alone_and_beside_others() -> None:
    truths, observations = twins(3)
    together = Nudging(SYSTEM, 5).assimilate(observations, [4, 5, 6])
    for observed, seed, result in zip(observations, (4, 5, 6), together, strict=True):
        alone = Nudging(SYSTEM, 5).assimilate(observed, seed)
        np.testing.assert_allclose(values(result), values(alone), rtol=1e-5, atol=1e-5)
    assert not np.allclose(values(together[0]), values(together[1]))
    np.testing.assert_allclose(together[0]["time"], truths[0]["time"].values[::3])
    assert together[1].attrs["model_steps"] == 5 * 12


def test_a_filter_without_analyses_is_the_model() -> None:
    class Free(Filter):
        def analyse(self, ensemble, predicted, observed, run):
            return ensemble

    system = Lorenz96(dimension=8)
    _, observations = twins(1, system=system)
    first = system.initial(4, seed=9)
    result = Free(system, 4).assimilate(observations[0], initial=Draws(first))
    whole = system.rollout(first, 13)[:, ::3]
    ensemble = torch.from_numpy(values(result))
    distance = torch.cdist(ensemble.flatten(1), whole.flatten(1))
    # every state was drawn once, in an order of its own
    assert sorted(distance.argmin(1).tolist()) == [0, 1, 2, 3]
    assert float(distance.min(1).values.max()) < 1e-3


def test_what_only_the_model_resolves_stays() -> None:
    flow = KolmogorovFlow(size=8, resolution=16)
    truths, observations = twins(1, 3, flow, Select(every=1))

    class Keep(Filter):
        def analyse(self, ensemble, predicted, observed, run):
            run.memory.setdefault("states", []).append(ensemble)
            return ensemble

    method = Keep(flow, 2)
    result = method.assimilate(observations[0], 3, initial=Spinup(2))
    z = Spinup(2).draw(flow, 2, 3)
    for i in range(3):
        x = torch.from_numpy(flow.layout.to_array(result)[:, i])
        torch.testing.assert_close(x, flow.project(z), atol=1e-4, rtol=1e-4)
        z = flow.advance(z)


def test_observations_between_states_see_both() -> None:
    truth = twins(1)[0][0]
    operator = Select(times=[0.075, 0.3])
    observations = sda.observe(truth, operator, std=1e-3, seed=0)

    class Seen(Filter):
        predictions: list = []

        def analyse(self, ensemble, predicted, observed, run):
            self.predictions.append((observed.frames, predicted))
            return ensemble

    x = torch.from_numpy(SYSTEM.layout.to_array(truth))[0]
    start = Draws(x[:1])
    deterministic = Lorenz96(dimension=8)
    Seen(deterministic, 2).assimilate(
        observations, initial=start, time=truth["time"].values[: 13 // 2 + 1]
    )
    path = deterministic.rollout(x[:1], 7)[0, :, 0]
    (two, between), (one, exact) = Seen.predictions
    assert (two, one) == (2, 1)
    torch.testing.assert_close(between[0, 0], (path[1] + path[2]) / 2, atol=1e-4, rtol=1e-4)
    torch.testing.assert_close(exact[0, 1], path[6], atol=1e-4, rtol=1e-4)


def test_divergence_is_named_by_cycle_and_time() -> None:
    truths, observations = twins(2, 4 * PATIENCE, operator=Select(every=1), std=0.1)
    with pytest.warns(RuntimeWarning, match="Nudging diverged in cycle"):
        results = Nudging(SYSTEM, 4, gain=3.0).assimilate(observations, [0, 1])
    assert [each.attrs["diverged"] for each in results] == [1, 1]
    assert 0 < results[0].attrs["diverged_time"] < truths[0]["time"].values[-1]

    with pytest.warns(RuntimeWarning, match=f"over {LOST:g} times too large"):
        # never corrected, with a spread far below the error
        lost = Nudging(Lorenz96(dimension=8), 4, gain=0.0).assimilate(
            observations[0], initial=Gaussian(5.0, 1e-12), time=truths[0]["time"]
        )
    assert np.isfinite(values(lost)).all() and lost.attrs["diverged"] == 1

    # One that forgets its spread where errors are large: innovations of the climate's size, over
    # observation errors that are not small.
    coarse = sda.observe(truths[0], Select(), std=1.0, seed=3)
    with pytest.warns(RuntimeWarning, match="Nudging diverged in cycle"):
        narrow = Nudging(Lorenz96(dimension=8), 4, gain=0.0).assimilate(
            coarse, initial=Gaussian(5.0, 1e-12), time=truths[0]["time"]
        )
    assert narrow.attrs["diverged"] == 1

    fine = Nudging(SYSTEM, 4).assimilate(observations[0])
    assert fine.attrs["diverged"] == 0 and math.isnan(fine.attrs["diverged_time"])


def test_divergence_is_seen_in_a_few_cycles() -> None:
    system = Lorenz96(dimension=8)
    truths, observations = twins(1, 8, system, Select(every=1), std=0.1)
    with pytest.warns(RuntimeWarning, match=f"over {LOST:g} times too large"):
        lost = Nudging(system, 4, gain=0.0).assimilate(
            observations[0], initial=Gaussian(5.0, 1e-12), time=truths[0]["time"]
        )
    # half of the eight cycles are enough to tell
    assert lost.attrs["diverged"] == 1
    assert lost.attrs["diverged_time"] == truths[0]["time"].values[3]
    assert Nudging(SYSTEM, 4).assimilate(observations[0]).attrs["diverged"] == 0


def test_a_repetition_that_stops_the_model_leaves_the_others_alone() -> None:
    flow = KolmogorovFlow(size=8, resolution=16)
    _, observations = twins(2, 3, flow, Select(every=1))
    wild = Draws(torch.full((2, *flow.layout.shape), math.nan))
    with pytest.warns(RuntimeWarning, match="Nudging diverged in cycle 0"):
        fine, lost = Nudging(flow, 2).assimilate(observations, [3, 4], initial=[Spinup(2), wild])
    alone = Nudging(flow, 2).assimilate(observations[0], 3, initial=Spinup(2))
    assert (fine.attrs["diverged"], lost.attrs["diverged"]) == (0, 1)
    assert np.isfinite(flow.layout.to_array(fine)).all()
    np.testing.assert_allclose(flow.layout.to_array(fine), flow.layout.to_array(alone), atol=1e-5)
    assert np.isnan(flow.layout.to_array(lost)).all()


def test_noise_is_one_stream_that_keeps_one_block_a_purpose() -> None:
    noise = Noise([3, 5], torch.float64, "cpu")
    drawn = torch.stack([noise.normal("model", (4, 2)) for _ in range(200)])
    generators = Noise([3, 5], torch.float64, "cpu").generators("model")
    expected = np.stack([g.standard_normal((200, 4, 2)) for g in generators], 1)
    np.testing.assert_array_equal(drawn, expected)

    varied = torch.cat([noise.normal("observation", (n % 50 + 1,)) for n in range(2000)], 1)
    assert len(noise._ahead) == 2
    # nothing is drawn twice
    assert len(varied.unique()) == varied.numel()
    # standard normal: the errors are those of 100,000 values, times four
    assert abs(float(varied.mean())) < 0.013 and abs(float(varied.std()) - 1) < 0.01


def test_any_integer_is_a_seed() -> None:
    _, observations = twins(1)
    plain = Nudging(SYSTEM, 4).assimilate(observations[0], 3)
    for seed in (np.int64(3), np.array([3])):
        found = Nudging(SYSTEM, 4).assimilate(observations[0], seed)
        np.testing.assert_array_equal(values(found), values(plain))
        assert found.attrs["seed"] == 3
    for bad in (1.5, [-1], [2.0], "3"):
        with pytest.raises(ValueError, match="one non-negative seed for each of 1"):
            Nudging(SYSTEM, 4).assimilate(observations[0], bad)


def test_initial_distributions_have_their_moments() -> None:
    system = Lorenz63(dt=0.01)
    covariance = np.array([[2.0, 0.5, 0], [0.5, 1.0, 0], [0, 0, 0.3]])
    draws = Gaussian([1.0, 2.0, 3.0], covariance=covariance).draw(system, 20000, 0)
    np.testing.assert_allclose(draws.mean(0), [1, 2, 3], atol=0.05)
    np.testing.assert_allclose(torch.cov(draws.T), covariance, atol=0.06)
    with pytest.raises(ValueError, match="smallest eigenvalue is -"):
        Gaussian(0.0, covariance=np.diag([1.0, -1.0, 1.0]))
    with pytest.raises(ValueError, match="does not broadcast"):
        Gaussian(np.zeros(5), 1.0).draw(system, 2, 0)
    climate = Spinup(400).draw(Lorenz63(noise=True), 500, 0)
    assert 22 < float(climate[:, 2].mean()) < 25


def test_the_result_streams_to_a_store(tmp_path) -> None:
    _, observations = twins(1)
    out = tmp_path / "analysis.zarr"
    stored = Nudging(SYSTEM, 4).assimilate(observations[0], 1, out=out)
    np.testing.assert_array_equal(
        values(stored), values(Nudging(SYSTEM, 4).assimilate(observations[0], 1))
    )
    with pytest.raises(FileExistsError):
        Nudging(SYSTEM, 4).assimilate(observations[0], 1, out=out)


def test_bad_input_is_named() -> None:
    truths, observations = twins(2)
    with pytest.raises(ValueError, match="at least 2 members, got 1"):
        Nudging(SYSTEM, 1)
    with pytest.raises(ValueError, match="before the first state"):
        Nudging(SYSTEM, 2).assimilate(observations[0], time=truths[0]["time"].values[1:])
    with pytest.raises(ValueError, match="one non-negative seed for each of 2"):
        Nudging(SYSTEM, 2).assimilate(observations, 0)
    with pytest.raises(ValueError, match="steps of the system's dt=0.05"):
        Nudging(SYSTEM, 2).assimilate(observations[0], time=[0.0, 1.0])
    with pytest.raises(TypeError, match="got str"):
        Nudging(SYSTEM, 2).assimilate(observations[0], initial="here")
    square = [
        sda.observe(truths[0], Select() >> Function("square"), std=1.0, seed=0), observations[0]
    ]  # fmt: skip
    with pytest.raises(ValueError, match="number 1 differs from number 0"):
        Nudging(SYSTEM, 2).assimilate(square, [0, 1])


def test_a_spectral_model_that_stops_leaves_real_states() -> None:
    """The model's own states are complex; what is left of a run that stopped is not."""

    class Stops(TwoLayerQG):
        def advance(self, z, noise=None):
            raise FloatingPointError("the state is not finite")

    system = Stops(size=8, resolution=16)
    truth = TwoLayerQG(size=8, resolution=16).simulate(1, 3, seed=1, progress=False)
    observations = sda.observe(truth.isel(member=0), Select(every=2), 1e3, seed=1)
    with pytest.warns(RuntimeWarning, match="diverged"):
        found = Nudging(system, 4).assimilate(observations, initial=Draws(truth.isel(time=[0] * 4)))
    assert found.attrs["diverged"] == 1
    states = system.layout.to_array(found)
    assert not np.iscomplexobj(states)
    assert np.isnan(states).all()
