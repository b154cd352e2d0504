"""Priors as folders: round trips, damage, and what must never be executed."""

import json
import pickle
from pathlib import Path

import numpy as np
import pytest
import torch

from dynamics.layout import Layout
from sda.assimilation import langevin_steps
from sda.climatology import Climatology
from sda.langevin import Langevin
from sda.prior import GaussianPrior, Prior
from sda.symmetry import Symmetry
from sda.window import WindowDenoiser

RING = Layout(("h",), 0.1, {"site": np.arange(12.0)}, {"site": 12.0})


def data() -> torch.Tensor:
    x = torch.randn(6, 20, 1, 12, generator=torch.Generator().manual_seed(0))

    return x + x.roll(1, -1) + x.roll(1, 1)


def prior() -> Prior:
    climatology = Climatology.fit(RING.to_dataset(data()), 6)
    torch.manual_seed(0)
    denoiser = WindowDenoiser(
        climatology, 4, {"name": "gated", "width": 8, "depth": 1}, static=torch.ones(1, 12)
    )
    torch.nn.init.normal_(denoiser.network.last.conv.weight, std=0.1)

    return Prior(climatology, denoiser, "ring", [Symmetry(roll={"site": 1})], {"made": "by hand"})


def test_round_trip(tmp_path: Path) -> None:
    first = prior()
    first.save(tmp_path / "ring")
    again = Prior.load(tmp_path / "ring")
    x = torch.randn(2, 11, 1, 12)

    assert again.hash == first.hash and again.name == "ring" and again.info == {"made": "by hand"}
    assert again.layout.to_json() == first.layout.to_json() and again.symmetries == first.symmetries
    torch.testing.assert_close(
        again.trajectory(11).denoise(x, 0.3), first.trajectory(11).denoise(x, 0.3), rtol=0, atol=0
    )


def test_a_priors_own_langevin_steps_are_the_default_ones(tmp_path: Path) -> None:
    first = prior()
    first.langevin = {"s_min": 0.3, "steps": 2}
    own = Prior.load(first.save(tmp_path / "ring")).langevin
    preset = Langevin.for_fields()

    assert own == first.langevin
    assert langevin_steps("default", True, own) == Langevin.for_fields(s_min=0.3, steps=2)
    assert langevin_steps("fields", True, own) == preset
    assert langevin_steps("default", True, prior().langevin) == preset
    assert langevin_steps(None, True, own) is None


def test_gaussian_prior_fits_streams_and_serves_any_length(tmp_path: Path) -> None:
    RING.to_dataset(data()).to_zarr(tmp_path / "ring.zarr", consolidated=False)
    gaussian = GaussianPrior.fit(tmp_path / "ring.zarr", window=3)
    gaussian.save(tmp_path / "gaussian")
    again = Prior.load(tmp_path / "gaussian")

    assert again.gaussian and again.window == 1
    for length in (1, 3, 10):
        x = torch.randn(2, length, 1, 12)
        torch.testing.assert_close(
            again.trajectory(length).denoise(x, 1.0), gaussian.covariance(length).wiener(x, 1.0)
        )


def test_long_trajectories_keep_the_gaussian_part() -> None:
    x, ring = torch.randn(2, 11, 1, 12), prior()
    whole, windows = ring.trajectory(11), ring.trajectory(11, gaussian_part=False)

    assert ring.trajectory(4).long is None and whole.long is not None and windows.long is None
    assert not torch.allclose(whole.denoise(x, 1.0), windows.denoise(x, 1.0))
    with pytest.raises(ValueError, match="at least the window's 4 frames, got 3"):
        ring.trajectory(3)


def test_missing_and_foreign_folders(tmp_path: Path) -> None:
    with pytest.raises(
        FileNotFoundError, match="there is no prior 'nothing': give a path, or one of"
    ):
        Prior.load("nothing")
    with pytest.raises(FileNotFoundError, match="is no prior"):
        Prior.load(tmp_path)
    (tmp_path / "letter.txt").write_text("dear")
    with pytest.raises(FileExistsError, match="exists and is no prior"):
        prior().save(tmp_path)
    assert (tmp_path / "letter.txt").read_text() == "dear"


@pytest.mark.parametrize("file", ["weights.safetensors", "climatology.safetensors"])
@pytest.mark.parametrize("damage", ["flip", "truncate", "remove", "pickle"])
def test_damage_is_named_and_never_executed(tmp_path: Path, file: str, damage: str) -> None:
    prior().save(tmp_path / "ring")
    path = tmp_path / "ring" / file
    content = bytearray(path.read_bytes())
    if damage == "flip":
        content[-5] ^= 1
        path.write_bytes(content)
    elif damage == "truncate":
        path.write_bytes(content[: len(content) // 2])
    elif damage == "remove":
        path.unlink()
    else:
        path.write_bytes(pickle.dumps(Trap(tmp_path / "executed")))

    with pytest.raises(ValueError, match=f"{file}.*(damaged|missing)|incomplete prior: {file}"):
        Prior.load(tmp_path / "ring")
    assert not (tmp_path / "executed").exists()


def test_a_pickle_with_a_matching_checksum_is_still_not_executed(tmp_path: Path) -> None:
    from sda.prior import checksum

    folder = prior().save(tmp_path / "ring")
    (folder / "weights.safetensors").write_bytes(pickle.dumps(Trap(tmp_path / "executed")))
    content = json.loads((folder / "prior.json").read_text())
    content["checksums"]["weights.safetensors"] = checksum(folder / "weights.safetensors")
    (folder / "prior.json").write_text(json.dumps(content))

    with pytest.raises(ValueError, match="damaged prior"):
        Prior.load(folder)
    assert not (tmp_path / "executed").exists()


@pytest.mark.parametrize(
    ("key", "value", "message"),
    [
        ("format", 99, "has prior format 99"),
        ("layout", None, "damaged prior"),
        ("denoiser", {"window": 4}, "damaged prior"),
        ("langevin", {"strength": 2}, "damaged prior"),
        ("langevin", {"s_min": -1}, "damaged prior: noise levels must obey"),
    ],
)
def test_wrong_descriptions(tmp_path: Path, key: str, value: object, message: str) -> None:
    folder = prior().save(tmp_path / "ring")
    content = json.loads((folder / "prior.json").read_text())
    content[key] = value
    (folder / "prior.json").write_text(json.dumps(content))

    with pytest.raises(ValueError, match=message):
        Prior.load(folder)


class Trap:
    """Leaves a file behind when it is unpickled."""

    def __init__(self, path: Path) -> None:
        self.path = path

    def __reduce__(self) -> tuple:
        return (Path.touch, (self.path,))


def test_a_network_keeps_the_basis_that_it_has_learned_in(tmp_path, monkeypatch) -> None:
    """Eigenvectors have other signs on another machine, which a saved prior does not notice."""

    import dynamics
    from sda import climatology as module
    from sda.covariance import eigenvectors

    data = dynamics.Lorenz63(noise=True).simulate(8, 40, spinup=50, seed=0, progress=False)
    climatology = Climatology.fit(data, 5)
    window = WindowDenoiser(climatology, 5, {"name": "mlp", "width": 8, "hidden": 8, "depth": 1})
    generator = torch.Generator().manual_seed(0)
    with torch.no_grad():
        for parameter in window.network.parameters():
            parameter.copy_(0.3 * torch.randn(parameter.shape, generator=generator))
    prior = Prior(climatology, window)
    prior.save(tmp_path / "prior")
    monkeypatch.setattr(module, "eigenvectors", lambda matrix: -eigenvectors(matrix))
    again = Prior.load(tmp_path / "prior")

    x = torch.randn((4, 5, 3), generator=generator)
    with torch.no_grad():
        torch.testing.assert_close(again.denoiser.denoise(x, 0.5), window.denoise(x, 0.5))
