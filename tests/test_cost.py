"""What a run will cost, known beforehand: counted again in the run itself."""

from pathlib import Path

import numpy as np
import pytest
import torch

import dynamics
import sda.guidance
import sda.long_local
from sda.assimilation import assimilate
from sda.cli import main
from sda.climatology import Climatology
from sda.costs import cost, duration, readable
from sda.guidance import METHODS
from sda.long_local import Locals
from sda.long_states import States
from sda.observation import Select, observe
from sda.prior import Prior

LENGTH = 60


@pytest.fixture(scope="module")
def system():
    matrix = np.array([[0.8, 0.3], [-0.3, 0.7]])
    return dynamics.LinearGaussian(matrix, np.diag([0.3, 0.5]), dt=0.1)


@pytest.fixture(scope="module")
def prior(system):
    covariance = system.trajectory_covariance(8)
    return Prior(Climatology.from_moments(system.layout, torch.zeros(2), covariance))


@pytest.fixture(scope="module")
def observations(system):
    truth = system.simulate(members=1, length=LENGTH, seed=1).isel(member=0)
    return observe(truth, Select(variables=["x0"], every=3), std=0.3, seed=1)


def size(path):
    return sum(each.stat().st_size for each in Path(path).rglob("*") if each.is_file())


@pytest.mark.filterwarnings("ignore:.*members failed:RuntimeWarning")  # of the wilder methods
@pytest.mark.parametrize(
    "guidance, sampler",
    [*((name, "xeab") for name in METHODS), ("hybrid columns", "xeab"), ("hybrid", "heun")],
)
def test_counts_in_memory(prior, observations, guidance, sampler, monkeypatch):
    """Evaluations and vector–Jacobian products are those that the run makes."""

    made, guide = [], sda.guidance.guide
    monkeypatch.setattr(
        sda.guidance, "guide", lambda *a, **k: made.append(guide(*a, **k)) or made[-1]
    )
    name, _, form = guidance.partition(" ")
    options = {
        "guidance": {"name": name, **({"form": form} if form else {})},
        "sampler": sampler, "steps": 6, "members": 3,
    }  # fmt: skip
    expected = cost(prior, observations, **options, measure=False)
    made.clear()
    try:
        assimilate(prior, observations, block=2, **options)
    except FloatingPointError:
        assert name in ("dps", "sda")
        return
    assert (expected.evaluations, expected.vjps) == (made[0].evaluations, made[0].vjps)
    assert expected.time_blocks == 1 and expected.seconds is None


@pytest.mark.parametrize("guidance", ["static", "hybrid", "flow_dependent"])
def test_counts_and_bytes_of_a_long_run(prior, observations, guidance, tmp_path, monkeypatch):
    counted, scratch = {}, []
    forget, close = Locals.forget, States.close

    def keeping(self):
        counted["run"] = self
        forget(self)

    def weighing(self):
        folder = self.folder.parent if self.folder.name == "pilots" else self.folder
        scratch.append(size(folder))
        close(self)

    monkeypatch.setattr(Locals, "forget", keeping)
    monkeypatch.setattr(States, "close", weighing)
    options = {"guidance": guidance, "steps": 5, "members": 40, "frames": 16}
    expected = cost(prior, observations, **options)
    out = tmp_path / "p.zarr"
    posterior = assimilate(prior, observations, out=out, **options)
    run = counted["run"]
    assert (expected.evaluations, expected.vjps) == (run.evaluations, run.vjps)
    assert expected.time_blocks == len(run.parts) and expected.frames == 16
    assert expected.result == posterior.x0.nbytes + posterior.x1.nbytes
    # Beside the states: how far the run is, and what the blocks sum up.
    assert expected.scratch <= scratch[0] < 1.1 * expected.scratch + 20_000
    assert expected.result <= size(out) < expected.result + 20_000
    assert expected.seconds > 0 and "about" in str(expected)


def test_cost_on_the_command_line(tmp_path, observations, system, capsys, prior):
    prior.save(tmp_path / "prior")
    observations.save(tmp_path / "y.parquet")
    words = [f"prior={tmp_path / 'prior'}", f"observations={tmp_path / 'y.parquet'}", "members=3"]
    assert main(["info", "assimilate", *words]) == 0
    text = capsys.readouterr().out
    expected = cost(prior, observations, members=3, measure=False)
    assert f"{expected.evaluations} of the prior's denoiser" in text and "measured step" in text
    assert main(["info", "assimilate", *words, "frames=16", "guidance=static"]) == 0
    assert "in 4 blocks of 16 states" in capsys.readouterr().out
    assert not list(tmp_path.glob("*.zarr"))
    assert main(["info", "assimilate", *words, "members=none"]) == 2
    assert main(["info", "assimilate", *words, "task=filter"]) == 2
    assert "task=smooth" in capsys.readouterr().err


def test_blocks_out_of_range_are_refused(prior, observations):
    for block in (0, -2):
        with pytest.raises(ValueError, match=f"block must be at least 1, got {block}"):
            cost(prior, observations, 4, block=block, measure=False)


def test_units():
    assert (readable(512), readable(3 << 20)) == ("512 B", "3 MiB")
    assert [duration(s) for s in (1, 600, 7200, 1e6)] == ["1 s", "10 min", "2 h", "12 days"]
