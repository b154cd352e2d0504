"""Imagers: what they look at, what clouds hide, and the gridded form."""

import numpy as np
import pytest
from observing_cases import globe, ocean, truth_on

from sda.observation import Observations
from sda.observing import Geostationary, SeaSurface, Surface
from sda.observing.surface import RADIUS


def test_the_disk_has_its_known_size():
    # The horizon of a geostationary satellite is 81.3° away from the point below.
    assert Geostationary(zenith=90.0).reach == pytest.approx(81.3, abs=0.05)
    assert Geostationary(zenith=60.0).reach == pytest.approx(
        60.0 - np.rad2deg(np.arcsin(np.sin(np.pi / 3) * RADIUS / 42164.17)), abs=1e-3
    )


def test_the_imager_sees_a_disk_between_clouds(weather, tmp_path):
    imager = Geostationary(longitude=-60.0, std=0.5, subsample=1)
    observations = imager.observe(weather, 2)
    image = observations.to_dataset()
    assert image["h"].shape == (5, 32, 64) and image["time"].values.tolist() == [0, 12, 24, 36, 48]
    distance = Surface(globe()).distance(Surface(globe()).grid(), np.array([0.0, 300.0]))
    inside = distance <= np.deg2rad(imager.reach) * RADIUS
    seen = ~np.isnan(image["h"].values)
    assert not seen[:, ~inside].any()
    assert seen[:, inside].mean() == pytest.approx(0.5, abs=0.25)
    error = (image["h"] - weather["h"].sel(time=image["time"])).values[seen]
    assert error.std() == pytest.approx(0.5, rel=0.08)
    for suffix in (".nc", ".zarr"):
        observations.save(tmp_path / f"image{suffix}")
        loaded = Observations.load(tmp_path / f"image{suffix}")
        assert loaded.hash() == observations.hash()
    assert imager.observe(weather, 2).hash() == observations.hash()
    clear = Geostationary(longitude=-60.0, share=0.0, subsample=1).observe(weather, 0)
    assert len(clear) == 5 * inside.sum()


def test_the_imager_sees_the_wind_speed(weather):
    image = Geostationary(
        variables=["u", "v"], quantity="speed", std=1e-6, share=0.0, interval=None
    ).observe(weather, 0).to_dataset()  # fmt: skip
    speed = np.hypot(weather["u"], weather["v"]).sel(lat=image["lat"], lon=image["lon"]).values
    seen = ~np.isnan(image["speed"].values)
    assert image["speed"].values[seen] == pytest.approx(speed[seen], abs=1e-5)


def test_images_of_the_sea_have_gaps_under_clouds_and_on_land():
    mask = np.ones((32, 32), dtype=bool)
    mask[:8] = False
    layout = ocean(mask)
    truth = truth_on(layout, 41)
    images = SeaSurface(interval=4.0, subsample=1, share=0.4, cloud=60.0, lifetime=4.0)
    found = images.observe(truth, 1).to_dataset()
    assert list(found.data_vars) == ["psi1", "psi1_std"]
    seen = ~np.isnan(found["psi1"].values)
    assert not seen[:, :8].any()
    assert seen[:, 8:].mean() == pytest.approx(0.6, abs=0.08)
    free = SeaSurface(interval=4.0, share=0.0, variables=["psi1", "psi2"], std={"psi1": 1.0,
                      "psi2": 2.0, "other": 3.0}).observe(truth, 1).to_dataset()  # fmt: skip
    assert free["psi2"].shape == (11, 16, 16)
    assert not np.isnan(free["psi2"].values[:, 4:]).any()
    assert np.nanmax(free["psi2_std"]) == 2.0


@pytest.mark.parametrize(
    ("imager", "message"),
    [
        (lambda: Geostationary(share=1.0), "nothing is seen in 5 images"),
        (lambda: Geostationary(zenith=91.0), "zenith must be at most 90"),
        (lambda: Geostationary(quantity="colour"), "quantity must be one of speed"),
        (lambda: SeaSurface(std={"h": 1.0}), r"not the observed \['u'\]"),
        (lambda: SeaSurface(subsample=0), "subsample must be a number of at least 1, got 0"),
    ],
)
def test_what_does_not_fit_is_said(weather, imager, message):
    with pytest.raises(ValueError, match=message):
        imager().observe(weather, 0)


def test_a_disk_needs_a_sphere(sea):
    with pytest.raises(ValueError, match="needs a state on latitude and longitude"):
        Geostationary(variables=None).observe(sea, 0)
