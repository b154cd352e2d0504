"""Benchmarks of reading and writing, in small."""

from pathlib import Path

import numpy as np
import pytest

from dynamics import KolmogorovFlow
from sda.benchmarks import io
from sda.benchmarks.io import Overlap, Waiting, Writing, overlap, reading, writing
from sda.benchmarks.kolmogorov import make_observations
from sda.benchmarks.training import kolmogorov_options
from sda.climatology import Climatology
from sda.prior import Prior
from sda.store import open_dataset


@pytest.fixture(scope="module")
def store(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("archive") / "flow.zarr"
    KolmogorovFlow(size=8, resolution=8).simulate(6, 12, spinup=8, seed=0, out=path)

    return path


@pytest.fixture(scope="module")
def prior(store: Path) -> Prior:
    return Prior(Climatology.fit(open_dataset(store), 4))


def test_training_reads_what_is_not_in_memory(store: Path) -> None:
    options = kolmogorov_options(
        window=3, network={"name": "gated", "width": 4, "depth": 1}, batch=2, precision="float32"
    )
    member = 12 * 2 * 8 * 8 * 4
    result = reading(store, options, memory=2 * member, turns=1, steps=2)

    # Five members are trained on, two of them fit.
    assert result.share == pytest.approx(3 / 5)
    assert 0 <= result.waited <= 1
    assert str(result).splitlines()[2].startswith("| 60 % of the members not in memory |")
    with pytest.raises(ValueError, match="fits in .* bytes: give less memory"):
        reading(store, options, memory=100 * member)


def test_the_posterior_and_the_plain_file_hold_the_same(
    prior: Prior, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    sizes, real = [], io.plain

    def plain(path: Path, block: np.ndarray) -> None:
        real(path, block)
        sizes.append(path.stat().st_size)

    monkeypatch.setattr(io, "plain", plain)
    result = writing(prior, tmp_path, length=5, members=3, turns=2)
    values = open_dataset(tmp_path / "posterior.zarr")["u"].values

    assert sizes == [result.size] * 3 == [3 * 5 * 2 * 64 * 4] * 3
    assert len(result.plain) == len(result.posterior) == 2
    assert values.shape == (9, 5, 8, 8) and np.isfinite(values).all()
    text = str(Writing(2**20, [1.0, 2.0], [2.0, 2.5]))
    assert "| posterior | 0 | 0 | 65 % (57 to 73 %) | 50 % |" in text


def test_waits_are_counted(
    prior: Prior, store: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    truth = open_dataset(store).isel(member=0, time=slice(5))
    observations = make_observations("subsample 4", truth, 0)
    result = overlap(
        prior, observations, truth["time"].values, tmp_path, blocks=2, members=2, steps=2
    )
    assert len(result.sampled) == len(result.waited) == 2
    assert open_dataset(tmp_path / "posterior.zarr").attrs["status"] == "complete"
    assert "| 2 | 3.0 | 500.00 | 25.00 % |" in str(Overlap([1.0, 2.0], [0.5, 0.5]))

    ticks = iter([0.0, 3.0, 10.0, 11.0])
    monkeypatch.setattr(io.time, "perf_counter", lambda: next(ticks))
    waiting = Waiting(iter("ab"))
    assert (next(waiting), next(waiting), waiting.seconds) == ("a", "b", 4.0)
