"""Layouts and noise: what everything else is built on."""

import json
import math
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import xarray as xr

import dynamics
from dynamics import Layout
from dynamics.random import member_generator, normal

LAYOUTS = {
    "vector": dynamics.Lorenz63().layout,
    "line": dynamics.Lorenz96().layout,
    "plane": dynamics.KolmogorovFlow(size=8, resolution=16).layout,
    "open": Layout(
        variables=("z", "a"),
        dt=6.0,
        coords={"lat": [-1.0, 0.0, 2.5], "lon": [0.0, 90.0, 180.0, 270.0]},
        period={"lon": 360.0},
        units={"z": "m", "lat": "degrees_north"},
        long_names={"z": "height"},
        time_units="hours since 2000-01-01",
    ),
}


def equal(a: Layout, b: Layout) -> bool:
    return json.dumps(a.to_json()) == json.dumps(b.to_json())


@pytest.mark.parametrize("name", LAYOUTS)
def test_a_layout_survives_json(name: str) -> None:
    content = json.loads(json.dumps(LAYOUTS[name].to_json()))
    assert equal(Layout.from_json(content), LAYOUTS[name])


@pytest.mark.parametrize("suffix", ["memory", "zarr", "nc"])
@pytest.mark.parametrize("name", LAYOUTS)
def test_a_layout_is_read_off_the_dataset_it_wrote(name: str, suffix: str, tmp_path: Path) -> None:
    layout = LAYOUTS[name]
    x = np.random.default_rng(0).normal(size=(2, 3, *layout.shape))
    dataset = layout.to_dataset(x, attrs={"title": "test"})
    if suffix == "zarr":
        # Backwards, since a store lists its variables in any order.
        dataset[list(reversed(layout.variables))].to_zarr(
            tmp_path / "a.zarr", zarr_format=3, consolidated=False
        )
        dataset = xr.open_zarr(tmp_path / "a.zarr", consolidated=False, decode_times=False)
    elif suffix == "nc":
        dataset.to_netcdf(tmp_path / "a.nc")
        dataset = xr.open_dataset(tmp_path / "a.nc", decode_times=False)
    again = Layout.from_dataset(dataset)
    assert again.variables == layout.variables and again.dims == layout.dims
    assert again.shape == layout.shape and again.periodic == layout.periodic
    assert math.isclose(again.dt, layout.dt) and again.time_units == layout.time_units
    assert all(again.units[name] == layout.units.get(name, "1") for name in layout.variables)
    assert np.array_equal(again.to_array(dataset), x)
    assert dataset.attrs["title"] == "test"


def test_single_members_and_times_get_their_dimension() -> None:
    layout = LAYOUTS["plane"]
    x = np.random.default_rng(0).normal(size=(2, 3, *layout.shape))
    dataset = layout.to_dataset(x)
    assert np.array_equal(layout.to_array(dataset.isel(member=1)), x[1:])
    assert np.array_equal(layout.to_array(dataset.isel(member=1, time=2)), x[1:, 2:])
    assert np.array_equal(layout.to_array(dataset.transpose("x", "time", "y", "member")), x)


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        ({"variables": ()}, "at least one variable"),
        ({"variables": ("u", "u")}, "must be distinct"),
        ({"variables": ("time",)}, "none of"),
        ({"variables": ("x",)}, "must be distinct"),
        ({"dt": 0.0}, "dt must be positive, got 0"),
        ({"dt": math.inf}, "dt must be positive, got inf"),
        ({"coords": {"x": [0.0, 2.0, 1.0]}}, "finite and increasing"),
        ({"coords": {"x": [[0.0, 1.0]]}}, "one-dimensional"),
        ({"period": {"x": 5.0}}, "must cover its period 5.0"),
        ({"period": {"q": 5.0}}, "period names \\['q'\\]"),
    ],
)
def test_what_is_no_layout_is_named(arguments: dict[str, Any], words: str) -> None:
    given = {"variables": ("u",), "dt": 1.0, "coords": {"x": np.arange(4.0)}, **arguments}
    with pytest.raises(ValueError, match=words):
        Layout(**given)


def test_data_of_another_layout_are_refused() -> None:
    layout = LAYOUTS["line"]
    dataset = layout.to_dataset(np.zeros((1, 2, *layout.shape)))
    with pytest.raises(ValueError, match=r"must have shape \(member, time, 1, 40\), got"):
        layout.to_dataset(np.zeros((1, 2, 40)))
    with pytest.raises(ValueError, match=r"\['x'\] are missing"):
        layout.to_array(dataset.rename(x="w"))
    with pytest.raises(ValueError, match="must have the spatial dimensions"):
        layout.to_array(dataset.rename(site="x_site"))
    with pytest.raises(ValueError, match="got 20 values"):
        layout.to_array(dataset.isel(site=slice(20)))
    with pytest.raises(ValueError, match="uniform steps"):
        Layout.from_dataset(
            layout.to_dataset(np.zeros((1, 3, *layout.shape)), time=[0.0, 1.0, 3.0])
        )
    with pytest.raises(ValueError, match="at least two values"):
        Layout.from_dataset(dataset.isel(time=slice(1)))


def test_noise_belongs_to_a_member_a_seed_and_a_key() -> None:
    noise = normal(1, range(4), (3, 5), 2, 7)
    assert noise.shape == (4, 3, 5) and noise.dtype == torch.float32
    assert torch.equal(normal(1, [3, 0], (3, 5), 2, 7), noise[[3, 0]])
    others = [normal(2, range(4), (3, 5), 2, 7), normal(1, range(4), (3, 5), 7, 2)]
    others += [normal(1, range(4), (3, 5), 2), normal(1, range(4), (3, 5), 2, 7, 0)]
    for other in others:
        assert not torch.isin(other, noise).any()
    with pytest.raises(ValueError, match="seed=-1"):
        member_generator(-1, 0)
    with pytest.raises(ValueError, match="member=-2"):
        member_generator(0, -2)


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64], ids=str)
def test_noise_is_standard_normal_and_uncorrelated(dtype: torch.dtype) -> None:
    noise = normal(3, range(400), (50,), 1, dtype=dtype).double()
    count = noise.numel()
    assert abs(noise.mean()) < 5 / math.sqrt(count)
    assert abs(noise.var() - 1) < 5 * math.sqrt(2 / count)
    assert abs((noise**4).mean() - 3) < 5 * math.sqrt(96 / count)
    # Members are independent, and so are successive keys and seeds.
    for other in (
        noise.roll(1, 0),
        normal(3, range(400), (50,), 2),
        normal(4, range(400), (50,), 1),
    ):
        assert abs((noise * other).mean()) < 5 / math.sqrt(count)


def basin() -> Layout:
    mask = np.ones((4, 6), dtype=bool)
    mask[0, :3] = mask[2, 4] = False

    return Layout(
        ("u", "v"),
        1.0,
        {"lat": np.linspace(30, 60, 4), "lon": np.arange(6) * 60.0},
        {"lon": 360.0},
        {"lat": "degrees_north", "lon": "degrees_east"},
        mask=mask,
    )


def test_land_is_hidden_in_datasets_and_zero_in_arrays(tmp_path: Path) -> None:
    layout = basin()
    x = np.random.default_rng(0).normal(size=(2, 3, *layout.shape)).astype(np.float32)
    dataset = layout.to_dataset(x)
    dataset.to_zarr(tmp_path / "basin.zarr", consolidated=False)
    for each in (dataset, xr.open_zarr(tmp_path / "basin.zarr", consolidated=False)):
        again = Layout.from_dataset(each)
        assert np.array_equal(again.mask, layout.mask)
        assert np.array_equal(np.isnan(each["u"].values[1, 2]), ~layout.mask)
        assert np.array_equal(again.to_array(each), np.where(layout.mask, x, 0))
    assert np.array_equal(Layout.from_json(layout.to_json()).mask, layout.mask)


def test_area_is_that_of_the_cells_on_the_sphere() -> None:
    layout = basin()
    assert layout.spherical
    edges = np.sin(np.deg2rad(np.array([25.0, 35, 45, 55, 65])))
    area = np.where(layout.mask, np.diff(edges)[:, None], 0)
    np.testing.assert_allclose(layout.area / layout.area.sum(), area / area.sum(), rtol=1e-12)
    assert layout.area[layout.mask].mean() == pytest.approx(1)

    # The rows of a Gaussian grid weigh about as the quadrature does.
    nodes, weights = np.polynomial.legendre.leggauss(32)
    lat = np.rad2deg(np.arcsin(nodes))
    gauss = Layout(("h",), 1.0, {"lat": lat, "lon": np.arange(4) * 90.0}, {"lon": 360.0},
                   {"lat": "degrees_north", "lon": "degrees_east"})  # fmt: skip
    np.testing.assert_allclose(gauss.area[:, 0] / 16, weights, rtol=0.02)
    plane = Layout(("h",), 1.0, {"y": np.arange(3.0), "x": np.arange(4.0)})
    assert not plane.spherical
    assert (plane.area == 1).all()


def test_a_mask_of_another_grid_is_refused() -> None:
    for mask in (np.ones((3, 6), dtype=bool), np.zeros((4, 6), dtype=bool)):
        with pytest.raises(ValueError, match="mask"):
            replace(basin(), mask=mask)
