"""Smoothing beyond memory: the same posterior as in memory, exact on Gaussian systems, resumed."""

import dataclasses
import errno
import os

import numpy as np
import pytest
import torch
from oracles import kalman_smoother

import dynamics
import sda.long
import sda.long_blocks
import sda.long_members
import sda.long_plan
import sda.long_states
import sda.store
from sda.assimilation import assimilate, trajectory_denoiser
from sda.climatology import Climatology
from sda.guidance import guide
from sda.langevin import Langevin
from sda.lock import Lock
from sda.long_blocks import AddressedNoise, Blocks, Portions, halo_of, shifts
from sda.observation import Difference, Function, Observations, Select, Subsample, observe
from sda.prior import GaussianPrior, Prior
from sda.sampling import SAMPLERS, integrate, log_levels
from sda.store import open_dataset
from sda.window import WindowDenoiser

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


def exact(system, observations, length):
    """The posterior means `(time, channel)` and standard deviations by a Kalman smoother."""

    P = system.autocovariance(0).numpy()
    H: list = [None] * length
    R, y = list(H), list(H)
    rows = observations.sets[0].rows()
    for time, value, std in zip(rows["time"], rows["observation"], rows["std"], strict=True):
        i = round(time / system.layout.dt)
        H[i], R[i] = np.array([[1.0, 0.0]]), np.array([[std**2]])
        y[i] = np.array([value])
    means, covariances, _ = kalman_smoother(A, Q, P, H, R, y)

    return means, np.sqrt(np.diagonal(covariances, axis1=1, axis2=2))


def test_the_exact_smoother_over_thousands_of_states(system, prior, monkeypatch):
    """Mean error at most 1 % of the posterior's standard deviation, spread within 2 %."""

    length = 3072
    observations = observed(system, length, seed=2)
    mean, std = exact(system, observations, length)
    options = {
        "guidance": "static", "langevin": None, "time": system.layout.times(length),
        "memory": "30MiB", "s_min": 1e-2,
    }  # fmt: skip
    posterior = values(assimilate(prior, observations, 200, 3, **options))
    # The sampling error of the mean is 1/√200 of a standard deviation, known and independent.
    z = (posterior.mean(0) - mean) / std
    assert abs(np.mean(z**2) * 200 - 1) < 0.1 and abs(z.mean()) < 5e-3
    ratio = posterior.std(0, ddof=1) / std
    assert 0.98 < np.sqrt(np.mean(ratio**2)) < 1.02 and 0.98 < ratio.mean() < 1.02

    # Without noise the sampler goes to its mean, which has no sampling error.
    monkeypatch.setattr(AddressedNoise, "_addressed", silent)
    posterior = values(assimilate(prior, observations, 1, 3, **options))
    assert rms(posterior[0] / std, mean / std) < 0.01


def silent(self, kind, index, each, size, draw):
    return np.zeros((len(self.members), len(index), size), dtype=draw)


def test_the_default_for_vectors(system, prior):
    """Hybrid guidance with the pilots of each block, and Langevin steps."""

    length = 400
    observations = observed(system, length, seed=4)
    mean, std = exact(system, observations, length)
    posterior = values(
        assimilate(prior, observations, 32, 3, time=system.layout.times(length), frames=100)
    )
    z = (posterior.mean(0) - mean) / std
    assert abs(np.mean(z**2) * 32 - 1) < 0.4  # of about 200 independent values
    ratio = posterior.std(0, ddof=1) / std
    assert 0.97 < np.sqrt(np.mean(ratio**2)) < 1.03


def stopped(monkeypatch, at, error):
    """Makes a run stop before its `at`-th piece of work, and counts the pieces."""

    calls = []

    def counting(method):
        def work(self, *arguments):
            calls.append(method)
            if len(calls) == at:
                raise error
            return method(self, *arguments)

        return work

    for name in ("_start", "_residual", "_visit", "_update", "_step"):
        method = getattr(sda.long_members.Members, name)
        monkeypatch.setattr(sda.long_members.Members, name, counting(method))

    return calls


@pytest.mark.parametrize("guidance", ["static", "hybrid"])
def test_interrupted_and_resumed(prior, observations, guidance, tmp_path, monkeypatch):
    """The same members as of an undisturbed run, and no piece of work done twice."""

    options = {"members": 3, "seed": 5, "frames": 60, "guidance": guidance, "steps": 8}
    with monkeypatch.context() as patch:
        pieces = stopped(patch, 0, None)
        whole = assimilate(prior, observations, **options)
        total = len(pieces)
    # Whatever was done since the last checkpoint is what an interruption costs: here, nothing.
    monkeypatch.setattr(sda.long_members, "CHECKPOINT", 0.0)
    out, done = tmp_path / "p.zarr", 0
    for at in (1, 5, 23):
        with monkeypatch.context() as patch:
            pieces = stopped(patch, at, KeyboardInterrupt())
            with pytest.raises(KeyboardInterrupt):
                assimilate(prior, observations, out=out, resume=True, **options)
            done += len(pieces) - 1
        assert not out.exists()
    # Work that was done but not noted is done again, with the same result.
    with monkeypatch.context() as patch:
        pieces = stopped(patch, 0, None)
        patch.setattr(sda.long_members.Members, "_drop", failing(KeyboardInterrupt()))
        patch.setattr(sda.long_members, "CHECKPOINT", 3600.0)
        with pytest.raises(KeyboardInterrupt):
            assimilate(prior, observations, out=out, resume=True, **options)
    done += len(pieces) - redone(pieces)
    with pytest.raises(FileExistsError, match="interrupted run .* resume=true"):
        assimilate(prior, observations, out=out, **options)
    with pytest.raises(ValueError, match="other settings.*seed was 5, now 6"):
        assimilate(prior, observations, out=out, resume=True, **{**options, "seed": 6})
    with monkeypatch.context() as patch:
        pieces = stopped(patch, 0, None)
        # With another budget: the blocks are those that the run began with.
        resumed = assimilate(
            prior, observations, out=out, resume=True, **{**options, "frames": 100}
        )
        assert done + len(pieces) == total
    assert np.array_equal(values(resumed), values(whole))
    assert sorted(path.name for path in tmp_path.iterdir()) == ["p.zarr"]

    with monkeypatch.context() as patch:
        pieces = stopped(patch, 0, None)
        again = assimilate(prior, observations, out=out, resume=True, **options)
        assert not pieces and np.array_equal(values(again), values(whole))


def test_one_writer_at_a_time(prior, observations, tmp_path, monkeypatch):
    """A second run is refused, and leaves the state of the first as it is."""

    options = {"members": 2, "seed": 5, "frames": 60, "steps": 2, "guidance": "static"}
    out = tmp_path / "p.zarr"
    with monkeypatch.context() as patch:
        stopped(patch, 3, KeyboardInterrupt())
        with pytest.raises(KeyboardInterrupt):
            assimilate(prior, observations, out=out, **options)
    before = {path: path.stat().st_mtime_ns for path in tmp_path.rglob("*")}
    assert before
    with Lock(out):
        for choice in ({"resume": True}, {"overwrite": True}, {}):
            with pytest.raises(FileExistsError, match="is being written by process"):
                assimilate(prior, observations, out=out, **options, **choice)
    assert {path: path.stat().st_mtime_ns for path in before} == before

    # A run that holds the lock writes its result under it, and lets go of it in the end.
    resumed = assimilate(prior, observations, out=out, resume=True, **options)
    assert np.array_equal(values(resumed), values(assimilate(prior, observations, **options)))
    assert sorted(path.name for path in tmp_path.iterdir()) == ["p.zarr"]
    with Lock(out):
        pass


def test_a_full_disk_and_a_posterior_to_replace(prior, observations, tmp_path, monkeypatch):
    options = {"members": 3, "frames": 60, "guidance": "static", "steps": 4}
    out = tmp_path / "p.zarr"
    old = values(assimilate(prior, observations, seed=1, out=out, **options))
    with pytest.raises(FileExistsError, match="overwrite=true"):
        assimilate(prior, observations, out=out, **options)

    full = OSError(errno.ENOSPC, "No space left on device")
    with monkeypatch.context() as patch:
        patch.setattr(sda.long_states, "reserve", failing(full))
        with pytest.raises(OSError, match="the disk is full while reserving room.* GiB"):
            assimilate(prior, observations, out=out, overwrite=True, **options)
        assert [path.name for path in tmp_path.iterdir()] == ["p.zarr"]
    with monkeypatch.context() as patch:
        patch.setattr(sda.long, "room", lambda path: 1000)
        with pytest.raises(ValueError, match="GiB on disk .* are free: check the times"):
            assimilate(prior, observations, out=out, overwrite=True, **options)
    with monkeypatch.context() as patch:
        patch.setattr(sda.store.writer, "write_shards", failing(full))
        with pytest.raises(OSError, match="disk is full.*resume=true"):
            assimilate(prior, observations, out=out, overwrite=True, **options)
    # The old posterior is there until the new one is, which is there to be resumed.
    assert np.array_equal(values(open_dataset(out)), old)
    with monkeypatch.context() as patch:
        pieces = stopped(patch, 0, None)
        new = values(assimilate(prior, observations, out=out, resume=True, **options))
        assert not pieces and not np.allclose(new, old)
    assert np.array_equal(new, values(assimilate(prior, observations, **options)))


def test_a_state_that_is_lost_is_not_taken_for_one(prior, observations, tmp_path, monkeypatch):
    """A file of a run that is missing or cut short is named, never read as zeros."""

    options = {"members": 2, "seed": 5, "frames": 60, "steps": 2, "langevin": None}
    for guidance, file, damage, wrong in (
        ("static", "x0.bin", lambda path: path.unlink(), "is missing"),
        ("static", "sums.bin", lambda path: os.truncate(path, 4), "has 4 of .* bytes"),
        ("hybrid", "pilots/past1.bin", lambda path: os.truncate(path, 9), "has 9 of .* bytes"),
    ):
        out = tmp_path / f"{file.replace('/', '-')}.zarr"
        with monkeypatch.context() as patch:
            stopped(patch, 6, KeyboardInterrupt())
            with pytest.raises(KeyboardInterrupt):
                assimilate(prior, observations, out=out, guidance=guidance, **options)
        damage(tmp_path / f".{out.name}.sampling" / file)
        with pytest.raises(ValueError, match=f"cannot be resumed: .*{file}' {wrong}.*overwrite"):
            assimilate(prior, observations, out=out, guidance=guidance, resume=True, **options)


def test_what_cannot_be_sampled_leaves_nothing(prior, observations, tmp_path, monkeypatch):
    """No state of a run that would end in the same way again, and nothing in the way of others."""

    options = {"members": 2, "frames": 60, "steps": 2, "guidance": "static", "langevin": None}
    out = tmp_path / "p.zarr"
    step = SAMPLERS["xeab"].step
    with monkeypatch.context() as patch:
        patch.setattr(SAMPLERS["xeab"], "step", lambda *a: step(*a) + float("inf"))
        with pytest.raises(FloatingPointError, match="no member could be sampled"):
            assimilate(prior, observations, out=out, **options)
    assert list(tmp_path.iterdir()) == []
    with pytest.raises(ValueError, match="relinearisations"):
        bad = {"name": "static", "relinearisations": -1}
        assimilate(prior, observations, out=out, **{**options, "guidance": bad})
    assert list(tmp_path.iterdir()) == []


def test_killed_while_members_are_dropped(prior, observations, tmp_path, monkeypatch):
    """A member that was found lost stays lost, whatever was cleared of it before the kill."""

    options = {"members": 3, "seed": 5, "frames": 60, "steps": 6, "guidance": "static"}
    step, drop = SAMPLERS["xeab"].step, sda.long_members.Members._drop

    def wild(self, i, x, mean, *arguments):
        x = step(self, i, x, mean, *arguments)
        # Only the history tells that it is lost: cleared, the member would go on.
        if i == 2 and self.history and self.history[0][1].abs().sum() > 0:
            x[1] = 1e9
        return x

    def killed(self, level):
        drop(self, level)
        if self.lost.any():
            raise KeyboardInterrupt

    monkeypatch.setattr(SAMPLERS["xeab"], "step", wild)
    out = tmp_path / "p.zarr"
    with monkeypatch.context() as patch:
        patch.setattr(sda.long_members.Members, "_drop", killed)
        with pytest.raises(KeyboardInterrupt):
            assimilate(prior, observations, out=out, **options)
    with pytest.warns(RuntimeWarning, match="member 1 diverged at level 2"):
        assimilate(prior, observations, out=out, resume=True, **options)


def redone(pieces):
    """How many of the pieces of the last phase are not noted: all of them."""

    count, last = 0, pieces[-1]
    while count < len(pieces) and pieces[-1 - count] == last:
        count += 1
    return count


def failing(error):
    def fails(*arguments, **options):
        raise error

    return fails


def test_chunks_of_time_and_damage(prior, observations, tmp_path, monkeypatch):
    """A long posterior is chunked in time; a damaged shard is named, and sampled again."""

    monkeypatch.setattr(sda.long, "CHUNK_BYTES", 4 * 3 * 64)
    options = {"members": 3, "frames": 60, "guidance": "static", "steps": 4}
    out = tmp_path / "p.zarr"
    posterior = assimilate(prior, observations, out=out, **options)
    whole = values(posterior)
    assert posterior.x0.encoding["chunks"] == (1, 64) and posterior.attrs["status"] == "complete"
    shard = sorted((out / "x1" / "c" / "0").iterdir())[1]
    shard = shard if shard.is_file() else next(p for p in shard.rglob("*") if p.is_file())
    content = bytearray(shard.read_bytes())
    content[5] ^= 1
    shard.write_bytes(bytes(content))
    with pytest.warns(RuntimeWarning, match="x1/c/0/1.* It is sampled again"):
        again = values(assimilate(prior, observations, out=out, resume=True, **options))
    assert np.array_equal(again, whole)


def test_what_blocks_cannot_do(prior, observations):
    def error(match, **options):
        with pytest.raises(ValueError, match=match):
            assimilate(prior, observations, **{"members": 2, "frames": 60, **options})

    error("guidance 'dps' needs the whole trajectory .* use guidance 'static'", guidance="dps")
    error("sampler 'heun' needs the whole trajectory .* xeab", sampler="heun")
    error("frames must be at least 1", frames=0)
    error(r"memory=1kB is less than one block of time needs.*MiB", memory="1kB", frames=None)
    error(r"take .* more than memory=4MB: give out=", memory="4MB", members=10000)


def test_members_that_diverge(prior, observations, monkeypatch):
    """They are NaN and named; the others are as good as ever."""

    options = {"members": 3, "frames": 60, "guidance": "static", "steps": 6}
    whole = values(assimilate(prior, observations, **options))
    step = SAMPLERS["xeab"].step

    def wild(self, i, x, *arguments):
        x = step(self, i, x, *arguments)
        if i == 2:
            x[1, 0] = 1e9
        return x

    monkeypatch.setattr(SAMPLERS["xeab"], "step", wild)
    with pytest.warns(
        RuntimeWarning, match="1 of 3 members failed .* member 1 diverged at level 2"
    ):
        part = assimilate(prior, observations, **options)
    x = values(part)
    assert np.isnan(x[1]).all() and part.attrs["failed_members"] == [1]
    assert np.array_equal(x[[0, 2]], whole[[0, 2]])


@pytest.fixture(scope="module")
def field():
    """A field with a window network of random weights, and observations of it."""

    system = dynamics.Lorenz96(dimension=8, noise=True)
    data = system.simulate(members=4, length=200, spinup=100, seed=0)
    climatology = GaussianPrior.fit(data, window=6).climatology
    torch.manual_seed(0)
    network = {"name": "unet", "widths": (8,), "depths": (1,)}
    window = WindowDenoiser(climatology, 5, network).eval().requires_grad_(False)
    truth = system.simulate(members=1, length=150, spinup=100, seed=1).isel(member=0)

    return Prior(climatology, window, exposure=0.02), truth


@pytest.mark.parametrize("function", [False, True])
def test_fields_and_networks(field, monkeypatch, function):
    """The network needs no halos of the Gaussian part; the same for non-linear operators."""

    prior, truth = field
    H = Select(every=4) >> Subsample(2)
    observations = observe(truth, H >> Function("abs") if function else H, std=1.0, seed=2)
    options = {"members": 2, "seed": 3, "steps": 8, "dtype": "float64", "langevin": None}

    def run(frames):
        return values(assimilate(prior, observations, frames=frames, **options))

    with_halo(monkeypatch, 36)
    whole, parts = run(150), run(24)
    spread = whole.std()
    assert rms(whole, parts) < 3e-3 * spread
    if not function:
        options["langevin"] = "fields"
        whole, parts = run(150), run(24)
        assert rms(whole, parts) < 0.03 * spread


def test_the_network_sees_whole_windows(field):
    """What the network adds on the core is the same from the narrow range as from all states."""

    prior, _ = field
    window, x = prior.window, torch.randn(1, 150, *prior.layout.shape)
    whole = prior.trajectory(150).residual(x, torch.tensor(0.7))
    blocks = Blocks(150, 24, 12, 6)
    for part in blocks.parts:
        narrow = blocks.narrow(part, window, max(1, window // 2), window)
        assert narrow.high - narrow.low <= part.stop - part.start + 4 * window
        own = prior.trajectory(narrow.high - narrow.low).residual(
            x[:, narrow.low : narrow.high], torch.tensor(0.7)
        )
        error = own[:, narrow.core] - whole[:, part.start : part.stop]
        assert float(error.abs().max()) < 1e-5


def test_blocks_cover_every_state_once():
    for length in (1, 7, 48, 100, 121, 4097):
        for core, halo, unit in ((8, 8, 4), (32, 8, 8), (64, 128, 32), (4, 4, 1)):
            parts = Blocks(length, core, halo, unit).parts
            assert [i for part in parts for i in range(part.start, part.stop)] == list(
                range(length)
            )
            for part in parts:
                assert part.low % unit == 0 and 0 <= part.low <= part.start
                assert part.low <= max(0, part.start - halo)
                assert min(length, part.stop + halo) <= part.high <= length


def test_halos_are_measured(system, prior, monkeypatch):
    """A chain's shift falls by its own rate, and the halo is where it is small enough."""

    shift = shifts(prior.covariance(64), 4)
    assert all(b < a for a, b in zip(shift[:6], shift[1:7], strict=True))
    assert halo_of(prior, 1e-2) < halo_of(prior, 1e-3) <= halo_of(prior, 1e-4)
    monkeypatch.setattr(sda.long_blocks, "DENSE_MOST", 256)
    slow = dynamics.LinearGaussian(0.9999 * np.eye(1), 1e-4 * np.eye(1))
    slow_prior = Prior(
        Climatology.from_moments(slow.layout, torch.zeros(1), slow.trajectory_covariance(4))
    )
    with pytest.raises(ValueError, match="correlates states over more than .* Raise memory"):
        halo_of(slow_prior)


def test_observations_of_a_block(system, prior):
    """Every block sees those within its range, and each has one number wherever it is seen."""

    time = system.layout.times(LENGTH)
    table = {
        "time": np.sort(np.random.default_rng(0).uniform(0, time[-1], 50)),
        "variable": ["x0", "x1"] * 25, "observation": np.arange(50.0), "std": 0.3,
    }  # fmt: skip
    truth = system.simulate(members=1, length=LENGTH, seed=0).isel(member=0)
    loop = Select(times=time[70:80]) >> Difference()
    both = Observations.from_table(table) + observe(truth, loop, std=0.1, seed=0)
    portions = Portions(both, time, 0.1)
    parts = Blocks(LENGTH, 40, 12, 4).parts
    portions.check(parts)
    seen = set()
    for part in parts:
        found, numbers = portions.of(part)
        y = found.likelihood(system.layout, time[part.low : part.high]).y.numpy()
        assert len(y) == len(numbers)
        assert np.array_equal(y[numbers < 50], numbers[numbers < 50])  # a value is its number
        seen |= set(numbers.tolist())
    assert seen == set(range(len(both)))
    wide = observe(truth, Select(times=time[10:190]) >> Difference(), std=0.1, seed=0)
    with pytest.raises(ValueError, match="needs the states at times 1 to 18.9 at once"):
        assimilate(prior, wide, members=2, time=time, frames=40, guidance="static")
