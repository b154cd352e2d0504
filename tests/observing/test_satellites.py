"""Satellites: orbits against closed forms, what their swaths and tracks cover, what they see."""

import numpy as np
import pytest
import torch
from observing_cases import exact, globe, ocean, truth_on

from dynamics.layout import Layout
from sda.observation import Combine, Grid, GroupAverage, Interpolate, Magnitude, Observations
from sda.observation.operator import check_linear
from sda.observing import Altimeter, Orbit, Surface, Swath
from sda.observing.clouds import Clouds
from sda.observing.orbit import ROTATION
from sda.observing.surface import RADIUS, degrees, unit_vectors


def test_kepler_gives_the_periods_of_known_orbits():
    # A day in the stars' frame, for a geostationary orbit; 92.6 minutes at 400 km.
    assert Orbit(42164.17 - RADIUS, 0.0).period == pytest.approx(2 * np.pi / ROTATION, rel=1e-4)
    assert Orbit(400.0, 51.6).period / 60 == pytest.approx(92.4, abs=0.3)


def test_sun_synchronous_orbits_have_their_known_inclination():
    # Of Sentinel-2 and of NOAA's polar orbiters.
    assert np.rad2deg(Orbit(786.0).tilt) == pytest.approx(98.57, abs=0.08)
    assert np.rad2deg(Orbit(870.0).tilt) == pytest.approx(98.9, abs=0.12)
    # The node then meets the Sun at the same hour: the Earth turns under the plane once a day.
    assert 2 * np.pi / Orbit(830.0).turning == pytest.approx(86400.0, abs=0.1)
    with pytest.raises(ValueError, match="sun-synchronous: give an inclination"):
        Orbit(20000.0)


def test_topex_poseidon_flies_where_its_repeat_period_says():
    orbit = Orbit.repeating(66.04, 127, 10)
    assert orbit.altitude == pytest.approx(1341.0, abs=12.0)
    days = 10 * 2 * np.pi / orbit.turning
    assert days / 86400.0 == pytest.approx(9.9156, abs=1e-3)
    seconds = np.linspace(0, 20000, 40)
    here, again = orbit.track(seconds)[0], orbit.track(seconds + days)[0]
    assert np.abs(here - again).max() < 1e-6
    assert np.abs(here - orbit.track(seconds + days / 2)[0]).max() > 0.1
    with pytest.raises(ValueError, match="below the ground"):
        Orbit.repeating(66.0, 20, 1)


@pytest.mark.parametrize("inclination", [0.0, 51.6, 98.0])
def test_the_track_keeps_to_its_inclination_and_the_earth_turns(inclination):
    orbit = Orbit(800.0, inclination, phase=30.0, node=40.0)
    seconds = np.linspace(0, 86400, 20001)
    under, left = orbit.track(seconds)
    latitude = degrees(under)[:, 0]
    highest = min(inclination, 180 - inclination)
    assert np.abs(latitude).max() == pytest.approx(highest, abs=0.01)
    assert np.linalg.norm(under, axis=-1) == pytest.approx(1.0)
    assert np.abs((under * left).sum(-1)).max() < 1e-12
    if inclination:
        # From node to node the track falls back to the west by the Earth's rotation.
        i = np.flatnonzero((latitude[:-1] < 0) & (latitude[1:] >= 0))
        nodes = degrees(under)[i, 1]
        apart = np.mod(nodes[:-1] - nodes[1:], 360)
        expected = np.rad2deg(orbit.turning * orbit.period)
        assert apart == pytest.approx(expected, abs=0.5)
        # The satellite moves to the east where its orbit is prograde; left is then to the north.
        assert np.sign(left[i, 2]) == pytest.approx(np.sign(np.cos(orbit.tilt)))


def test_the_swath_is_as_wide_and_as_dense_as_said():
    swath = Swath(width=1800.0, spacing=300.0, footprint=0.0)
    time, positions = swath.scan(np.array([0.0, 24.0]), 3600.0)
    lines = positions.reshape(-1, 7, 2)
    surface = Surface(globe())
    assert surface.distance(lines[:, 0], lines[:, -1]) == pytest.approx(1800.0, rel=1e-6)
    assert surface.distance(lines[:, 2], lines[:, 3]) == pytest.approx(300.0, rel=1e-6)
    # Along the track a little less than asked for, or more: the Earth moves meanwhile.
    along = surface.distance(lines[1:, 3], lines[:-1, 3])
    assert along.mean() == pytest.approx(300.0, rel=0.08)
    orbits = 86400.0 / swath.orbit.period
    assert len(lines) == pytest.approx(orbits * 2 * np.pi * RADIUS / 300.0, abs=1.5)
    assert (np.diff(time) >= 0).all() and time[0] == 0.0


def test_a_wide_swath_sees_the_whole_earth_twice_a_day():
    swath = Swath(width=2800.0, spacing=200.0)
    _, positions = swath.scan(np.array([0.0, 24.0]), 3600.0)
    targets = Surface(globe()).scatter(np.random.default_rng(0), 100)
    chord = 2 * np.sin(150.0 / 2 / RADIUS)
    near = np.linalg.norm(
        unit_vectors(targets)[:, None] - unit_vectors(positions)[None], axis=-1
    ).min(1)
    assert (near < chord).mean() > 0.98
    narrow = Swath(width=400.0, spacing=200.0)
    _, positions = narrow.scan(np.array([0.0, 24.0]), 3600.0)
    near = np.linalg.norm(
        unit_vectors(targets)[:, None] - unit_vectors(positions)[None], axis=-1
    ).min(1)
    assert (near < chord).mean() < 0.7


def test_a_footprint_is_the_average_over_its_disk():
    swath = Swath(footprint=800.0)
    centre = np.array([[35.0, 100.0], [-80.0, 3.0]])
    disk = swath.disk(centre)
    # Of quadratic polynomials in space, whose averages over a cap are known.
    a, cosine = np.array([0.3, -0.7, 0.5]), np.cos(400.0 / RADIUS)
    second = (1 + cosine + cosine**2) / 3
    for point, points in zip(unit_vectors(centre), unit_vectors(disk), strict=True):
        up = a @ point
        assert (points @ a).mean() == pytest.approx(up * (1 + cosine) / 2, abs=1e-5)
        square = up**2 * second + (a @ a - up**2) * (1 - second) / 2
        assert ((points @ a) ** 2).mean() == pytest.approx(square, abs=1e-5)


def test_the_swath_sees_disks_of_the_state_with_the_errors_said(weather, tmp_path):
    swath = Swath(std=0.5, width=1500.0, spacing=500.0, footprint=300.0)
    observations = swath.observe(weather, 1)
    table = observations.to_table()
    assert set(table["variable"]) == {"h"}
    clean = exact(observations, weather)
    error = table["observation"].to_numpy() - clean
    assert error.std() == pytest.approx(0.5, rel=0.05)
    # The average over a disk of interpolated values, one by one.
    layout = Layout.from_dataset(weather)
    x = torch.from_numpy(layout.to_array(weather))
    places = table[["lat", "lon"]].to_numpy()[:20]
    disks = swath.disk(places)
    points = {"time": np.repeat(table["time"].to_numpy()[:20], 7), "variable": ["h"] * 140}
    points |= {"lat": disks[..., 0].ravel(), "lon": disks[..., 1].ravel()}
    bound = Interpolate(points).bind(Grid.of(layout, weather["time"].values), torch.float64)
    assert clean[:20] == pytest.approx(bound(x)[0].numpy().reshape(20, 7).mean(1))
    # Close to the times at which the satellite passes: half of it is hidden.
    time, _ = swath.scan(np.array([0.0, 48.0]), 3600.0)
    assert 0.3 < len(table) / len(time) < 0.65
    for suffix in (".csv", ".parquet"):
        observations.save(tmp_path / f"swath{suffix}")
        loaded = Observations.load(tmp_path / f"swath{suffix}")
        assert loaded.hash() == observations.hash()
        assert exact(loaded, weather) == pytest.approx(clean)
    assert swath.observe(weather, 1).hash() == observations.hash()


def test_the_swath_sees_the_wind_speed(weather):
    swath = Swath(variables=["u", "v"], quantity="speed", footprint=0.0, std=0.1, share=0.0)
    observations = swath.observe(weather, 0)
    assert observations.variables == ("speed",) and not observations.linear
    clean = exact(observations, weather)
    assert (clean >= 0).all()
    table = observations.to_table()
    at_nodes = Magnitude().bind(Grid.of(globe(), weather["time"].values), torch.float64)
    x = torch.from_numpy(globe().to_array(weather))
    speed = at_nodes(x)[0, :, 0].numpy()
    assert speed == pytest.approx(np.hypot(weather["u"].values, weather["v"].values))
    assert len(table) == len(clean)


def test_half_of_the_footprints_are_under_clouds_that_last():
    layout = globe()
    surface, rng = Surface(layout), np.random.default_rng(0)
    positions = surface.scatter(rng, 500)
    clouds, truth = Clouds(0.3, 800.0, 12.0), truth_on(layout, 3)
    hidden = np.array(
        [
            clouds.hide(np.random.default_rng(i), positions[None], np.array([[0.0], [1.0], [99.0]]),
                        truth, layout)
            for i in range(40)
        ]
    )  # fmt: skip
    assert hidden.mean() == pytest.approx(0.3, abs=0.02)
    assert (hidden[:, 0] == hidden[:, 1]).mean() > 0.95
    assert (hidden[:, 0] == hidden[:, 2]).mean() == pytest.approx(0.3**2 + 0.7**2, abs=0.05)


def test_clouds_are_where_the_state_says(weather):
    layout = globe()
    grid = np.broadcast_to(Surface(layout).grid(), (9, 32, 64, 2))
    time = weather["time"].values[:, None, None]
    area = np.broadcast_to(layout.area, (9, 32, 64))
    for variable in ("h", "-h"):
        hidden = Clouds(0.25, 1.0, 1.0, variable).hide(
            np.random.default_rng(0), grid, time, weather, layout
        )
        assert (hidden * area).mean() == pytest.approx(0.25, abs=1e-3)
        values = weather["h"].values if variable == "h" else -weather["h"].values
        assert values[hidden].min() >= values[~hidden].max()


@pytest.mark.parametrize("operator", [Combine({"a": {"u": 2.0, "h": -1.0}, "b": {"v": 0.5}})])
def test_combinations_are_linear_and_what_they_say(operator, weather):
    layout = globe()
    bound = operator.bind(Grid.of(layout, weather["time"].values), torch.float64)
    check_linear(bound)
    x = torch.from_numpy(layout.to_array(weather))
    y = bound(x)[0].numpy()
    assert y[:, 0] == pytest.approx(2 * weather["u"].values - weather["h"].values)
    assert y[:, 1] == pytest.approx(0.5 * weather["v"].values)
    with pytest.raises(ValueError, match=r"unknown variables \['T'\]"):
        Combine({"a": {"T": 1.0}}).bind(Grid.of(layout, [0.0]))
    with pytest.raises(ValueError, match="finite"):
        Combine({"a": {"u": np.nan}})


def test_the_size_of_a_vector_has_derivatives_also_in_calm():
    grid = Grid(("u", "v"), np.zeros(1), {"x": np.arange(3.0)})
    bound = Magnitude().bind(grid, torch.float64)
    x = torch.tensor([[[[3.0, 0.0, -1.0], [4.0, 0.0, 0.0]]]], dtype=torch.float64)
    x.requires_grad_()
    y = bound(x)
    assert y.detach().flatten().tolist() == [5.0, 0.0, 1.0]
    (g,) = torch.autograd.grad(y.sum(), x)
    assert g[0, 0].T.numpy() == pytest.approx(np.array([[0.6, 0.8], [0.0, 0.0], [-1.0, 0.0]]))


def test_groups_need_points():
    with pytest.raises(ValueError, match="needs single points in groups of 2"):
        GroupAverage(2).bind(Grid(("u",), np.zeros(1), {"x": np.arange(4.0)}))
    with pytest.raises(ValueError, match="size must be a positive integer, got 0"):
        GroupAverage(0)


def test_the_altimeter_sees_the_height_of_the_streamfunction(sea, tmp_path):
    altimeter = Altimeter(repeat=20.0, std=0.01)
    observations = altimeter.observe(sea, 2)
    clean, table = exact(observations, sea), observations.to_table()
    points = {name: table[name].to_numpy() for name in ("time", "y", "x")}
    points["variable"] = np.array(["psi1"] * len(table), dtype=object)
    bound = Interpolate(points).bind(Grid.of(ocean(), sea["time"].values), torch.float64)
    psi = bound(torch.from_numpy(ocean().to_array(sea)))[0].numpy()
    assert clean == pytest.approx(1e-4 * psi / 9.81)
    assert (table["observation"] - clean).std() == pytest.approx(0.01, rel=0.06)
    observations.save(tmp_path / "a.parquet")
    loaded = Observations.load(tmp_path / "a.parquet")
    assert loaded.hash() == observations.hash() and loaded.linear


def test_tracks_on_a_plane_repeat_and_fill_it():
    altimeter, surface = (
        Altimeter(tracks=5, repeat=10.0, slope=30.0, spacing=20.0),
        Surface(ocean()),
    )
    first = altimeter.passes(surface, np.array([0.0, 9.999]))
    second = altimeter.passes(surface, np.array([10.0, 19.999]))
    assert len(np.unique(first[0])) == 10
    assert second[0] == pytest.approx(first[0] + 10.0)
    assert surface.distance(first[1], second[1]).max() < 1e-6
    for time in np.unique(first[0]):
        y, x = first[1][first[0] == time].T
        assert np.hypot(np.diff(x), np.diff(y)) == pytest.approx(20.0)
        assert np.abs(np.diff(x) / np.diff(y)) == pytest.approx(np.tan(np.deg2rad(30.0)))
    # Where ascending tracks start on the southern edge: evenly spread.
    starts = [first[1][first[0] == t][0] for t in np.unique(first[0])]
    ascending = np.sort([x % 1000 for y, x in starts if y < 500])
    assert np.diff(ascending) == pytest.approx(200.0)


def test_satellites_see_no_land():
    mask = np.ones((32, 32), dtype=bool)
    mask[8:20, 10:20] = False
    layout = ocean(mask)
    truth = truth_on(layout, 21)
    observations = Altimeter(repeat=10.0).observe(truth, 0)
    table = observations.to_table()
    surface = Surface(layout)
    assert surface.at_sea(table[["y", "x"]].to_numpy()).all()
    free = len(Altimeter(repeat=10.0).observe(truth_on(ocean(), 21), 0))
    assert 0.75 * free < len(table) < 0.95 * free


def test_the_altimeter_follows_its_orbit_on_the_sphere():
    layout = Layout(
        ("psi1",), 24.0, globe().coords, {"lon": 360.0},
        {"lat": "degrees_north", "lon": "degrees_east"}, time_units="hours",
    )  # fmt: skip
    table = Altimeter(spacing=500.0).observe(truth_on(layout, 4), 0).to_table()
    assert table["lat"].abs().max() == pytest.approx(66.04, abs=0.3)
    assert len(table) == pytest.approx(3 * 12.7 * 2 * np.pi * RADIUS / 500.0, rel=0.02)


@pytest.mark.parametrize(
    ("generator", "message"),
    [
        (lambda: Swath(share=1.0), "all of .* footprints are under clouds"),
        (lambda: Swath(quantity="temperature"), "quantity must be one of speed or none"),
        (lambda: Swath(cloudy="T"), "cloudy=T must name one of"),
        (lambda: Swath(altitude=-1.0), "altitude must be positive"),
        (lambda: Altimeter(slope=90.0), "slope must be below 90"),
        (lambda: Altimeter(), r"variables must be some of \['u', 'v', 'h'\], got \['psi1'\]"),
    ],
)
def test_what_does_not_fit_is_said(weather, generator, message):
    with pytest.raises(ValueError, match=message):
        generator().observe(weather, 0)


def test_a_swath_needs_a_sphere_and_an_altimeter_time(sea):
    with pytest.raises(ValueError, match="needs a state on latitude and longitude"):
        Swath(variables=None).observe(sea, 0)
    with pytest.raises(ValueError, match="no track of the altimeter"):
        Altimeter(repeat=1e6).observe(sea, 0)
