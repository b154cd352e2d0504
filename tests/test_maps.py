"""Maps on the sphere: what they show, on land, across the date line, and clear errors."""

import importlib.util

import matplotlib
import numpy as np
import pandas as pd
import pytest
from PIL import Image

from dynamics.layout import Layout
from sda import plotting
from sda.plotting.maps import Map, observed_near
from sda.plotting.states import prepare

LATITUDE, LONGITUDE = np.linspace(-80, 80, 9), np.arange(12) * 30.0
LAND = (np.abs(LATITUDE)[:, None] < 30) & (LONGITUDE < 90)
UNITS = {"lat": "degrees_north", "lon": "degrees_east", "h": "m"}
SPHERE = Layout(
    ("u", "v", "h"), 6.0, {"lat": LATITUDE, "lon": LONGITUDE}, {"lon": 360.0}, UNITS, mask=~LAND
)
TABLE = pd.DataFrame(
    {
        "time": [0.4, 5.9, 6.2, 11.0],
        "lat": [10.0, 50.0, -40.0, 0.0],
        "lon": [-170.0, 30.0, 359.0, 5.0],
        "variable": ["h", "h", "u", "h"],
        "observation": [1.0, -1.0, 0.5, 0.1],
        "std": 0.1,
    }
)


def case(layout=SPHERE, members=4, length=3):
    rng = np.random.default_rng(0)
    wave = np.sin(np.deg2rad(LATITUDE))[:, None] * np.cos(np.deg2rad(LONGITUDE))
    pool = wave + 0.2 * rng.standard_normal((members + 1, length, *layout.shape))
    return layout.to_dataset(pool[1:]), layout.to_dataset(pool[:1])


@pytest.fixture(autouse=True)
def leaves_no_trace():
    before = dict(matplotlib.rcParams)
    yield
    assert dict(matplotlib.rcParams) == before


def meshes(figure):
    return [
        c
        for axes in figure.axes
        for c in axes.collections
        if type(c).__name__ in ("QuadMesh", "GeoQuadMesh")
    ]


def test_maps_show_fields_with_land_blank() -> None:
    posterior, truth = case()
    figure = plotting.plot_maps(posterior, truth, TABLE, times=[6.0], members=2, projection="plain")
    shown = meshes(figure)[:5]
    expected = [
        truth["h"].isel(member=0, time=1),
        posterior["h"].isel(time=1).mean("member"),
        posterior["h"].isel(time=1, member=0),
        posterior["h"].isel(time=1, member=1),
        posterior["h"].isel(time=1).std("member", ddof=1),
    ]
    for mesh, values in zip(shown, expected, strict=True):
        array = np.ma.asarray(mesh.get_array()).reshape(9, 12)
        assert (np.ma.getmaskarray(array) == LAND).all()
        np.testing.assert_allclose(array[~LAND], values.values[~LAND])
    # Members with land are not members that failed.
    assert prepare(posterior, truth)[0].sizes["member"] == 4


def test_observations_stand_near_their_time_and_within_the_map() -> None:
    posterior, truth = case()
    where = Map(posterior, truth, "plain")
    near = observed_near(TABLE, posterior, 6.0, where)
    assert list(near["time"]) == [5.9, 6.2]
    figure = plotting.plot_maps(posterior, truth, TABLE, times=[0.0], projection="plain")
    dots = [c for c in figure.axes[0].collections if len(c.get_offsets()) == 1]
    # 170° W is 190° E.
    assert any(np.allclose(c.get_offsets(), [[190.0, 10.0]]) for c in dots)


def test_spaghetti_has_a_line_for_each_member() -> None:
    posterior, truth = case()
    figure = plotting.plot_spaghetti(posterior, truth, times=[6.0], level=0.1, projection="plain")
    lines = [c for c in figure.axes[0].collections if type(c).__name__ == "QuadContourSet"]
    lines = [c for c in lines if list(c.levels) == [0.1]]
    assert len(lines) == 4 + 2
    for line in lines[:1]:
        x, y = line.get_paths()[0].vertices.T
        h = posterior["h"].isel(member=0, time=1).fillna(0)
        h = h.pad(lon=(0, 1), mode="wrap").assign_coords(lon=np.append(LONGITUDE, 360.0))
        off = [float(h.interp(lon=a, lat=b)) - 0.1 for a, b in zip(x[:20], y[:20], strict=True)]
        assert np.median(np.abs(off)) < 1e-6


def test_stamps_and_a_film(tmp_path) -> None:
    posterior, truth = case()
    stamps = plotting.plot_stamps(posterior, truth, TABLE, projection="plain")
    assert len(meshes(stamps)) == 6 + 1
    out = plotting.draw(posterior, truth, TABLE, out=tmp_path / "film.gif")
    assert Image.open(out).n_frames == 3
    assert plotting.draw(posterior, truth, out=tmp_path / "maps.png").exists()


def test_projections() -> None:
    posterior, truth = case()
    if importlib.util.find_spec("cartopy") is None:
        assert Map(posterior).projection == "plain"
        with pytest.raises(ImportError, match=r"pip install 'sda-torch\[maps\]'"):
            plotting.plot_maps(posterior, projection="robinson")
    else:
        assert Map(posterior).projection == "robinson"
        figure = plotting.plot_spaghetti(posterior, truth, TABLE, projection="mollweide")
        assert type(figure.axes[0]).__name__ == "GeoAxes"
    with pytest.raises(ValueError, match="projection must be one of .* got 'globe'"):
        Map(posterior, projection="globe")
    line = Layout(("x",), 0.5, {"site": np.arange(12.0)})
    with pytest.raises(ValueError, match="a map needs states over latitude and longitude"):
        plotting.plot_maps(line.to_dataset(np.zeros((2, 2, 1, 12))))
    with pytest.raises(ValueError, match="no coordinates"):
        plotting.plot_maps(posterior, truth, TABLE.drop(columns="lat"))


@pytest.mark.parametrize("projection", ["robinson", "mollweide", "platecarree"])
def test_a_map_is_cut_between_cells(projection) -> None:
    """At both of its ends it shows the whole first and last column."""

    ccrs = pytest.importorskip("cartopy.crs")
    posterior, truth = case()
    figure = plotting.plot_maps(posterior, truth, times=[6.0], projection=projection)
    figure.canvas.draw()
    pixels = np.asarray(figure.canvas.buffer_rgba())
    axes, mesh = figure.axes[0], meshes(figure)[0]
    values = truth["h"].isel(member=0, time=1).values
    for column, places in ((0, (-10.0, 0.0, 10.0)), (-1, (320.0, 330.0, 340.0))):
        colour = mesh.to_rgba(values[6, column], bytes=True)
        for place in places:
            point = axes.projection.transform_point(place, 40.0, ccrs.PlateCarree())
            i, j = np.round(axes.transData.transform(point)).astype(int)
            np.testing.assert_allclose(pixels[-1 - j, i], colour, atol=4)
