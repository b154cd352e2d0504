"""Places on the sphere and beside land: conventions, poles, coasts."""

import numpy as np
import pytest
import torch

from dynamics.layout import Layout
from sda.observation import Observations, Subsample, observe


def globe(mask=None):
    return Layout(
        ("h",), 6.0, {"lat": -78.75 + 22.5 * np.arange(8), "lon": 30.0 * np.arange(12)},
        {"lon": 360.0}, {"lat": "degrees_north", "lon": "degrees_east"}, time_units="hours",
        mask=mask,
    )  # fmt: skip


def table(lat, lon, value=0.0):
    number = len(lat)
    return Observations.from_table(
        {"time": np.zeros(number), "variable": ["h"] * number, "observation": value,
         "std": 1.0, "lat": lat, "lon": lon}
    )  # fmt: skip


def seen(observations, layout, x):
    return observations.likelihood(layout, [0.0], torch.float64).H(x)[0].numpy()


def test_either_convention_of_longitudes_is_understood_by_itself():
    layout, x = (
        globe(),
        torch.from_numpy(np.random.default_rng(0).standard_normal((1, 1, 1, 8, 12))),
    )
    lat = np.array([10.0, -40.0, 61.0, 0.0])
    east = np.array([5.0, 200.0, 345.0, 180.0])
    west = np.where(east > 180, east - 360, east)
    assert seen(table(lat, east), layout, x) == pytest.approx(seen(table(lat, west), layout, x))
    # Across the meridian of Greenwich, between 330° and 0°.
    values = x[0, 0, 0, 3].numpy()
    assert seen(table([-11.25], [-7.5]), layout, x)[0] == pytest.approx(
        0.25 * values[11] + 0.75 * values[0]
    )


def test_mixed_longitudes_are_refused():
    mixed = table([0.0, 1.0, 2.0], [-170.0, 20.0, 190.0])
    message = r"mixes longitudes of -180 … 180 \(1 below 0, the first -170\) and of 0 … 360 \(1"
    with pytest.raises(ValueError, match=message):
        mixed.likelihood(globe(), [0.0])


def test_a_pole_has_the_values_of_the_row_beside_it():
    layout, x = (
        globe(),
        torch.from_numpy(np.random.default_rng(1).standard_normal((1, 1, 1, 8, 12))),
    )
    found = seen(table([90.0, -90.0, 85.0], [30.0, 60.0, 45.0]), layout, x)
    north, south = x[0, 0, 0, -1].numpy(), x[0, 0, 0, 0].numpy()
    assert found == pytest.approx([north[1], south[2], (north[1] + north[2]) / 2])
    with pytest.raises(ValueError, match="lie outside the domain: lat = 91"):
        table([91.0], [0.0]).likelihood(layout, [0.0])
    band = Layout(("h",), 6.0, {"lat": np.arange(30.0, 60.0, 5.0), "lon": np.arange(0, 50.0, 5.0)},
                  units={"lat": "degrees_north", "lon": "degrees_east"})  # fmt: skip
    with pytest.raises(ValueError, match="lie outside the domain: lat = 62"):
        table([62.0], [0.0]).likelihood(band, [0.0])


def test_observations_on_land_are_counted_and_refused():
    mask = np.ones((8, 12), dtype=bool)
    mask[2:5, 3:6] = False
    layout = globe(mask)
    on_land = table([-11.25, 60.0, -20.0], [120.0, 120.0, 95.0])
    message = "2 of 3 observations lie on land, .* the first of 'h' at lat = -11.25, lon = 120"
    with pytest.raises(ValueError, match=message):
        on_land.likelihood(layout, [0.0])
    assert len(on_land.likelihood(globe(), [0.0])) == 3


def test_beside_land_the_sea_is_seen():
    mask = np.ones((8, 12), dtype=bool)
    mask[3, 4] = False
    layout = globe(mask)
    x = torch.from_numpy(np.random.default_rng(2).standard_normal((1, 1, 1, 8, 12)))
    x = torch.where(torch.from_numpy(mask), x, torch.zeros(()))
    # Between the grid points 3 (sea) and 4 (land) of a row, and in the middle of four cells.
    row, below = x[0, 0, 0, 3].numpy(), x[0, 0, 0, 2].numpy()
    found = seen(table([-11.25, -16.875], [100.0, 97.5]), layout, x)
    assert found[0] == pytest.approx(row[3])
    expected = (0.75 * 0.75 * row[3] + 0.25 * 0.75 * below[3] + 0.25 * 0.25 * below[4]) / (
        1 - 0.75 * 0.25
    )
    assert found[1] == pytest.approx(expected)


def test_a_truth_with_land_is_observed_at_sea_alone():
    mask = np.ones((8, 12), dtype=bool)
    mask[2:5, 3:6] = False
    layout = globe(mask)
    x = np.random.default_rng(3).standard_normal((1, 2, 1, 8, 12))
    truth = layout.to_dataset(x).isel(member=0)
    found = observe(truth, Subsample(2), 0.1, 0, layout)
    hidden = np.isnan(found.to_dataset()["h"].values)
    assert (hidden == ~mask[::2, ::2]).all()
    found.likelihood(layout, truth["time"].values)
