"""The ensemble Kalman smoother, against the Rauch–Tung–Striebel smoother and the filters."""

import numpy as np
import pytest
from ensembles import SYSTEM, exact, linear_twin, moments, values

import sda
from dynamics import Lorenz96
from sda.classical import ETKF, DEnKF, EnKF, EnKFN, EnKS, Gaussian
from sda.observation import Select

KINDS = {"etkf": ETKF, "enkf": EnKF, "denkf": DEnKF, "enkfn": EnKFN}


@pytest.mark.parametrize("analysis", ["etkf", "enkf"])
def test_at_full_lag_it_converges_to_the_rts_smoother(analysis) -> None:
    truth, observations, initial = linear_twin(8)
    means, covs = exact(truth, observations, initial)
    errors = {}
    for members in (64, 1024):
        results = EnKS(SYSTEM, members, analysis=analysis).assimilate(
            [observations] * 8, range(8), initial=initial, time=truth["time"], dtype="float64"
        )
        found = [moments(values(each)) for each in results]
        errors[members] = [
            np.sqrt(np.mean([np.square(f[k] - answer).mean() for f in found]))
            for k, answer in enumerate((means, covs))
        ]
    for small, large in zip(errors[64], errors[1024], strict=True):
        assert 2 < small / large < 8
        assert large < 4 * np.sqrt(covs.max() / 1024)


@pytest.mark.parametrize("lag", [1, 2])
def test_a_fixed_lag_knows_the_observations_until_then(lag) -> None:
    truth, observations, initial = linear_twin(8)
    result = values(
        EnKS(SYSTEM, 4000, lag=lag).assimilate(
            observations, initial=initial, time=truth["time"], dtype="float64"
        )
    ).mean(0)
    frames = [1, 3, 5, 7]  # what is observed
    for i in range(8):
        # the analyses up to the frame, and `lag` more
        before = sum(frame <= i for frame in frames)
        until = frames[min(len(frames), before + lag) - 1]
        right = exact(truth, observations, initial, until=until)[0][i]
        wrong = exact(truth, observations, initial, until=frames[max(0, before - 1)])[0][i]
        assert np.abs(result[i] - right).max() < 0.06
        if until < frames[-1] or i < frames[-1]:
            assert np.abs(wrong - right).max() > 0.06 or i == 0


def chaotic(length=17):
    system = Lorenz96(dimension=8, noise=True)
    truth = system.simulate(1, length, spinup=100, seed=0, progress=False).isel(member=0)
    return system, sda.observe(truth, Select(every=4), std=0.5, seed=0), truth


@pytest.mark.parametrize("analysis", list(KINDS))
@pytest.mark.parametrize("rotation", [False, True])
def test_lag_0_is_the_filter(analysis, rotation) -> None:
    system, observations, truth = chaotic()
    options = {"inflation": 1.1, "rotation": rotation}
    expected = KINDS[analysis](system, 6, **options).assimilate(observations, 3, dtype="float64")
    # uniform rotations make all square roots alike in distribution, not in their draws
    compare = ("mean", "cov") if rotation else ("members",)
    first = values(expected, system)[:, :1] if rotation else values(expected, system)
    for output in ("smoother", "filter"):
        smoother = EnKS(system, 6, 0, analysis, output=output, **options)
        result = smoother.assimilate(observations, 3, dtype="float64")
        found = values(result, system)
        found = found[:, ::4] if output == "smoother" else found
        if compare == ("members",):
            np.testing.assert_allclose(found, first, atol=1e-8)
        else:
            for a, b in zip(moments(found[:, :1]), moments(first), strict=True):
                np.testing.assert_allclose(a, b, atol=1e-8)


def test_the_filters_output_is_the_newest_state_of_the_smoother() -> None:
    system, observations, truth = chaotic()
    newest = EnKS(system, 6, lag=2, output="filter").assimilate(observations, 3)
    whole = EnKS(system, 6, lag=2).assimilate(observations, 3)
    assert newest.sizes["time"] == 5 and whole.sizes["time"] == 17
    np.testing.assert_allclose(
        values(newest, system)[:, -1], values(whole, system)[:, -1], rtol=1e-5, atol=1e-5
    )
    assert newest["innovation_chi_square"].sizes == {"time": 5}


def test_rotated_members_remain_trajectories() -> None:
    system = Lorenz96(dimension=8)
    truth = system.simulate(1, 21, spinup=100, seed=0, progress=False).isel(member=0)
    observations = sda.observe(truth, Select(every=2), std=0.3, seed=0)
    result = EnKS(system, 20, rotation=True).assimilate(observations, 1, dtype="float64")
    error = (values(result, system).mean(0) - values(truth, system)[0]).reshape(21, -1)
    rmse = np.sqrt(np.square(error).mean(1))
    # the last observations say a lot about the first state, and the smoother knows it
    plain = ETKF(system, 20, rotation=True).assimilate(observations, 1, dtype="float64")
    first = (values(plain, system).mean(0) - values(truth, system)[0, ::2]).reshape(11, -1)
    assert rmse[:10].mean() < 0.9 * np.sqrt(np.square(first[:5]).mean(1)).mean()


@pytest.mark.parametrize("observed", [Select(every=2), Select(every=2, region={"site": (1, 3)})])
def test_its_own_inflation_does_not_pile_up_on_the_past(observed) -> None:
    system = Lorenz96(dimension=8)
    truth = system.simulate(1, 61, spinup=100, seed=0, progress=False).isel(member=0)
    initial = Gaussian(values(truth, system)[0, 0], 1.0)
    spreads = []
    for length in (11, 31, 61):
        observations = sda.observe(truth.isel(time=slice(length)), observed, std=0.5, seed=0)
        result = EnKS(system, 6, analysis="enkfn").assimilate(
            observations, 1, initial=initial, time=truth["time"][:length], dtype="float64"
        )
        spreads.append(values(result, system)[:, 0].std(0).max())
    assert spreads[0] >= spreads[1] >= spreads[2]


def test_repetitions_do_not_depend_on_each_other() -> None:
    system, observations, truth = chaotic()
    method = EnKS(system, 12, lag=2, inflation=1.02, rotation=True)
    together = method.assimilate([observations] * 2, [1, 2], dtype="float64")
    for each, seed in zip(together, (1, 2), strict=True):
        alone = method.assimilate(observations, seed, dtype="float64")
        np.testing.assert_allclose(values(each, system), values(alone, system), atol=1e-8)


def test_bad_arguments_are_named() -> None:
    for options, message in [
        ({"members": 1}, "at least 2 members, got 1"),
        ({"lag": -1}, "0 or more, or None for all, got -1"),
        ({"analysis": "letkf"}, "must be one of .*got 'letkf'"),
        ({"output": "all"}, "must be one of .*got 'all'"),
        ({"analysis": "enkfn", "rtps": 0.5}, "takes no relaxation, got rtps=0.5"),
    ]:
        with pytest.raises(ValueError, match=message):
            EnKS(SYSTEM, **{"members": 5, **options})
