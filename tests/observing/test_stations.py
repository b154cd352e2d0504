"""Stations: where they stand, when they report, and how precisely."""

import numpy as np
import pytest
from observing_cases import exact, globe, ocean, truth_on

from dynamics.layout import Layout
from sda.observation import Observations
from sda.observing import Stations, Surface, build
from sda.observing.land import land_share
from sda.observing.random_field import RandomField
from sda.observing.surface import RADIUS, degrees, unit_vectors


def test_known_places_are_on_land_and_at_sea():
    places = {"Moscow": (55.8, 37.6), "Manaus": (-3.1, -60.0), "Alice Springs": (-23.7, 133.9)}
    seas = {"mid-Pacific": (0.0, -140.0), "South Atlantic": (-30.0, 340.0), "Drake": (-58.0, -62.0)}
    for latitude, longitude in places.values():
        assert land_share(latitude, longitude) == 1
    for latitude, longitude in seas.values():
        assert land_share(latitude, longitude) == 0
    assert land_share(10.0, 350.0) == land_share(10.0, -10.0)
    latitude, longitude = np.meshgrid(np.arange(-87.5, 90, 5), np.arange(2.5, 360, 5))
    weight = np.cos(np.deg2rad(latitude))
    # 29 % of the Earth is land.
    assert (land_share(latitude, longitude) * weight).sum() / weight.sum() == pytest.approx(
        0.29, abs=0.04
    )


def test_distances_on_the_sphere_and_on_a_periodic_plane():
    sphere, plane = Surface(globe()), Surface(ocean())
    quarter = np.pi / 2 * RADIUS
    assert sphere.distance(np.array([90.0, 10.0]), np.array([0.0, 77.0])) == pytest.approx(quarter)
    assert sphere.distance(np.array([0.0, -5.0]), np.array([0.0, 355.0])) == pytest.approx(0.0)
    assert plane.distance(np.array([990.0, 0.0]), np.array([20.0, 960.0])) == pytest.approx(50.0)
    x = np.stack([np.linspace(-89, 89, 50), np.linspace(0, 359, 50)], -1)
    assert degrees(unit_vectors(x)) == pytest.approx(x)


def test_positions_are_uniform_by_area():
    drawn = Surface(globe()).scatter(np.random.default_rng(0), 40000)
    share = (np.abs(drawn[:, 0]) < 30).mean()
    assert share == pytest.approx(0.5 / np.sin(np.deg2rad(87.1875)), abs=0.01)


@pytest.mark.parametrize(("layout", "scale"), [(globe(), 300.0), (ocean(), 60.0)])
def test_random_fields_have_the_covariance_they_say(layout, scale):
    surface, duration = Surface(layout), 2.0
    a, b = np.array([40.0, 3.0]), np.array([41.0, 5.0] if layout.spherical else [80.0, 963.0])
    fields = [RandomField(surface, np.random.default_rng(i), scale, duration) for i in range(3000)]
    x = np.array([f(np.stack([a, b, a]), np.array([0.0, 0.0, 1.5])) for f in fields])
    apart = surface.distance(a, b)
    covariance = np.cov(x.T)
    assert np.diag(covariance) == pytest.approx(1.0, abs=0.08)
    assert covariance[0, 1] == pytest.approx(np.exp(-0.5 * (apart / scale) ** 2), abs=0.06)
    assert covariance[0, 2] == pytest.approx(np.exp(-0.5 * (1.5 / duration) ** 2), abs=0.06)
    if not layout.spherical:  # periodic where the surface is
        assert fields[0](a) == pytest.approx(fields[0](a + 1000.0))


def test_stations_keep_their_distance_and_are_dense_on_land(weather):
    layout = globe()
    stations = Stations(number=150, spacing=250.0, land=0.8)
    places = stations.places(weather, layout)
    surface = Surface(layout)
    apart = surface.distance(places[:, None], places[None])
    assert places.shape == (150, 2)
    assert apart[~np.eye(150, dtype=bool)].min() >= 250.0
    share = land_share(places[:, 0], places[:, 1])
    # Those on land stand in cells that have some, those at sea in cells that are not all land.
    assert (share[:120] > 0).all() and (share[120:] < 1).all()
    again = Stations(number=150, spacing=250.0, land=0.8).places(weather, layout)
    other = Stations(number=150, spacing=250.0, land=0.8, network=1).places(weather, layout)
    assert np.array_equal(places, again) and not np.array_equal(places, other)


def test_clustering_brings_stations_together(weather):
    layout = globe()

    def mean_nearest(clustering):
        places = Stations(spacing=50.0, clustering=clustering).places(weather, layout)
        apart = Surface(layout).distance(places[:, None], places[None])
        return np.sort(apart, axis=1)[:, 1].mean()

    assert mean_nearest(2.0) < 0.9 * mean_nearest(0.0)


def test_stations_stand_where_there_are_states():
    mask = np.ones((32, 32), dtype=bool)
    mask[:, :16] = False
    layout = ocean(mask)
    places = Stations(number=30, spacing=20.0, cluster=200.0).places(truth_on(layout), layout)
    assert Surface(layout).at_sea(places).all()
    assert (places[:, 1] > 480).all()


def test_reports_are_lost_and_stations_are_out_as_often_as_said():
    stations = Stations(missing=0.1, outages=0.2, outage=48.0, interval=6.0)
    working = stations.working(np.random.default_rng(0), 400, 500, 6.0)
    assert working.mean() == pytest.approx(0.9 * 0.8, abs=0.01)
    alone = Stations(missing=0.0, outages=0.2, outage=48.0, interval=6.0)
    out = ~alone.working(np.random.default_rng(1), 400, 500, 6.0)
    assert out.mean() == pytest.approx(0.2, abs=0.01)
    begins = (out[1:] & ~out[:-1]).sum()
    assert out[1:].sum() / begins == pytest.approx(48.0 / 6.0, rel=0.05)


def test_reports_are_about_synoptic_times_and_errors_as_large_as_said(weather):
    std = {"u": 1.5, "v": 0.5, "h": 15.0}
    observations = Stations(number=200, spacing=100.0, std=std, jitter=0.5).observe(weather, 3)
    table = observations.to_table()
    assert list(table.columns)[:2] == ["time", "variable"]
    off = np.abs(table["time"] / 6.0 - np.round(table["time"] / 6.0)) * 6.0
    assert 0.4 < off.max() <= 0.5 + 1e-9
    assert table["time"].between(0.0, 48.0).all()
    error = table["observation"].to_numpy() - exact(observations, weather)
    for name, deviation in std.items():
        mine = (table["variable"] == name).to_numpy()
        assert error[mine].std() == pytest.approx(deviation, rel=0.06)
        assert (table["std"][mine] == deviation).all()
    # A station does not move.
    assert (table.groupby("station")[["lat", "lon"]].nunique() == 1).all().all()


def test_the_seed_makes_the_reports_and_files_keep_them(weather, tmp_path):
    stations = Stations(number=20)
    one, same, other = (stations.observe(weather, seed) for seed in (1, 1, 2))
    assert one.hash() == same.hash() != other.hash()
    for suffix in (".csv", ".parquet"):
        one.save(tmp_path / f"stations{suffix}")
        loaded = Observations.load(tmp_path / f"stations{suffix}")
        assert loaded.hash() == one.hash()
        assert loaded.to_table().equals(one.to_table())


def test_the_command_line_and_the_class_have_the_same_defaults(weather):
    from sda.config import build_observations, compose
    from sda.observing import GENERATORS

    for name, kind in GENERATORS.items():
        config = compose("observe", [f"observing={name}", "truth=a", "out=b"])["observing"]
        given, defaults = build(config), kind()
        for key in kind.__dataclass_fields__:
            assert key == "std" or getattr(given, key) == getattr(defaults, key), (name, key)
    config = compose("observe", ["observing=stations", "truth=a", "out=b", "observing.number=7"])
    observations = build_observations(config["observing"], weather, 4)
    assert observations.to_table()["station"].nunique() == 7


def test_an_experiment_has_stations_as_it_has_operators(weather):
    from sda.benchmarks.experiment import Experiment

    observing = {"generator": "stations", "number": 5, "std": 1.0, "spacing": 0.0, "cluster": 2.0}
    observing |= {"interval": None, "jitter": 0.0}
    system = {"name": "kolmogorov", "size": 8, "resolution": 16}
    config = {
        "system": system, "observing": observing, "length": 3, "spinup": 0,
        "more_observing": [{"generator": "stations", "number": 2, "std": 0.1, "spacing": 0.0,
                            "cluster": 2.0, "interval": None, "outages": 0.0, "missing": 0.0}],
    }  # fmt: skip
    twin = Experiment(config).twin(0)
    assert len(twin.observations.sets) == 2
    assert len(twin.observations.sets[1]) == 2 * 2 * 3
    assert twin.observations.hash() == Experiment(config).twin(0).observations.hash()
    with pytest.raises(ValueError, match="give length instead of cycles"):
        Experiment({**config, "cycles": 3, "length": None})


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"spacing": 5000}, "lower number or spacing"),
        ({"missing": 1.5}, "missing must be a share within 0 … 1, got 1.5"),
        ({"interval": 0}, "interval must be a number above 0, got 0"),
        ({"variables": ["T"]}, r"variables must be some of \['u', 'v', 'h'\], got \['T'\]"),
        ({"std": {"u": 1.0}}, r"not the observed \['h', 'v'\]"),
        ({"outages": 1.0}, "no station reports"),
        ({"orography": "height"}, "orography=height is no coordinate of the truth"),
    ],
)
def test_what_does_not_fit_is_said(weather, changes, message):
    with pytest.raises(ValueError, match=message):
        Stations(**changes).observe(weather, 0)


def test_a_state_without_a_surface_is_refused():
    layout = Layout(("z",), 0.1, {"x": np.arange(8.0)}, {"x": 8.0})
    with pytest.raises(ValueError, match=r"latitude and longitude or on a plane, got .*\['x'\]"):
        Stations().observe(truth_on(layout), 0)
    with pytest.raises(ValueError, match="generator=staions is unknown"):
        build({"generator": "staions"})
    with pytest.raises(ValueError, match="knows no numbers: expected some of variables, std"):
        build({"generator": "stations", "numbers": 3})
