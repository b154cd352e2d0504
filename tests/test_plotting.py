"""Figures: what they show, that they leave no trace, and clear errors."""

import matplotlib
import numpy as np
import pandas as pd
import pytest
import xarray as xr
from matplotlib.figure import Figure
from PIL import Image

from dynamics.layout import Layout
from sda import plotting
from sda.verification import verify

SIZE = 8
CENTRES = (np.arange(SIZE) + 0.5) * 2 * np.pi / SIZE
PLANE = Layout(("u", "v"), 0.5, {"y": CENTRES, "x": CENTRES}, {"y": 2 * np.pi, "x": 2 * np.pi})
LINE = Layout(("x",), 0.5, {"site": np.arange(12.0)}, {"site": 12.0})
POINT = Layout(("x", "y", "z"), 0.5)


def case(layout, members=6, length=5, seed=0):
    rng = np.random.default_rng(seed)
    shape = (1, length, *layout.shape)
    pool = rng.standard_normal(shape) + 0.4 * rng.standard_normal((members + 1, *shape[1:]))
    return layout.to_dataset(pool[1:]), layout.to_dataset(pool[:1])


def table(variables, dims, time=(0.0, 1.0)):
    rows = [
        {"time": t, "variable": v, "observation": 0.3, "std": 0.1, **dict.fromkeys(dims, 3.0)}
        for t in time
        for v in variables
    ]
    return pd.DataFrame(rows)


def blocks(truth, factor=4):
    coarse = truth.isel(member=0, time=slice(None, None, 2)).coarsen(y=factor, x=factor).mean()
    return coarse.assign({f"{n}_std": 0.1 for n in coarse.data_vars})


@pytest.fixture(autouse=True)
def leaves_no_trace():
    before = dict(matplotlib.rcParams)
    yield
    assert dict(matplotlib.rcParams) == before


def titles(figure):
    return [axes.get_title().split("\n")[0] for axes in figure.axes if axes.get_title()]


def texts_overlap(figure):
    """Whether titles of panels in a row overlap."""
    renderer = figure.canvas.get_renderer()
    boxes = [a.title.get_window_extent(renderer) for a in figure.axes if a.get_title()]
    return any(a.overlaps(b) for i, a in enumerate(boxes) for b in boxes[i + 1 :])


def test_fields_show_truth_observations_mean_members_and_spread():
    posterior, truth = case(PLANE)
    figure = plotting.plot_fields(posterior, truth, blocks(truth, 2), times=[0.0, 1.0])
    assert isinstance(figure, Figure)
    assert titles(figure) == [
        *("truth", "observations", "ensemble mean", "member 0", "member 1", "member 2", "spread")
    ]
    assert not texts_overlap(figure)
    shown = figure.axes[0].images[0]
    w = plotting.vorticity(truth).isel(member=0, time=0)
    np.testing.assert_allclose(shown.get_array(), w)
    assert shown.get_clim()[0] == -shown.get_clim()[1]
    # All fields but the spread share their colours.
    clims = {a.images[0].get_clim() for a in figure.axes if a.images and a.get_title() != "spread"}
    assert len(clims - {figure.axes[6].images[0].get_clim()}) == 1
    assert figure.axes[1].collections[0].get_array().shape == (SIZE // 2, SIZE // 2)


def test_fields_of_one_dimension_are_drawn_against_time():
    posterior, truth = case(LINE)
    figure = plotting.plot_fields(posterior, truth, table(["x"], ["site"]), members=2)
    assert titles(figure)[:3] == ["truth", "observations", "ensemble mean"]
    assert figure.axes[0].get_xlabel() == "site" and not texts_overlap(figure)


def test_vorticity_of_a_shear_is_its_derivative():
    u = np.sin(CENTRES)[:, None] + np.zeros(SIZE)
    dataset = PLANE.to_dataset(np.stack([u, 0 * u])[None, None])
    discrete = np.sin(CENTRES[1] - CENTRES[0]) / (CENTRES[1] - CENTRES[0])
    expected = -np.cos(CENTRES)[:, None] * discrete + np.zeros(SIZE)
    np.testing.assert_allclose(plotting.vorticity(dataset)[0, 0], expected, atol=1e-12)


def test_single_points_are_drawn_as_values_or_as_arrows():
    posterior, truth = case(PLANE)
    points = table(["u", "v"], ["x", "y"])
    values = plotting.plot_fields(posterior, truth, points, variable="u", times=[1.0])
    assert values.axes[1].collections[0].get_array() == [0.3]
    arrows = plotting.plot_fields(posterior, truth, points, times=[1.0])
    assert type(arrows.axes[1].collections[0]).__name__ == "Quiver"


def test_series_show_every_variable_and_observation():
    posterior, truth = case(POINT)
    figure = plotting.plot_series(posterior, truth, table(["x"], []))
    assert [axes.get_ylabel() for axes in figure.axes] == ["x", "y", "z"]
    np.testing.assert_allclose(
        [line.get_ydata() for line in figure.axes[2].lines if line.get_label() == "truth"][0],
        truth["z"].isel(member=0),
    )
    assert len(figure.axes[0].containers) == 1 and not figure.axes[1].containers
    figure = plotting.plot_series(*case(LINE), points=2)
    assert len(figure.axes) == 2 and "site = " in figure.axes[0].get_ylabel()


def test_scores_are_drawn_and_saved(tmp_path):
    posterior, truth = case(PLANE)
    scores = verify(posterior, truth)
    for name in ("spread_skill", "rank_histogram", "coverage", "spectra"):
        figure = getattr(plotting, f"plot_{name}")(scores)
        path = plotting.save(figure, tmp_path / f"{name}.png")
        assert Image.open(path).size[0] > 400 and not texts_overlap(figure)
    assert [p.name for p in tmp_path.iterdir() if "partial" in p.name] == []
    with pytest.raises(ValueError, match="lack \\['spectrum'\\].*periodic"):
        plotting.plot_spectra(verify(*case(POINT)))
    with pytest.raises(ValueError, match="two members or more"):
        plotting.plot_coverage(verify(posterior.isel(member=[0]), truth, ensemble=False))


@pytest.mark.parametrize("layout", [PLANE, LINE, POINT])
def test_animations_have_a_frame_for_each_time(layout, tmp_path):
    posterior, truth = case(layout, length=3)
    observations = table(layout.variables, layout.dims)
    path = plotting.animate(posterior, truth, observations, out=tmp_path / "a.gif", dpi=50)
    assert Image.open(path).n_frames == 3
    assert [p.name for p in tmp_path.iterdir()] == ["a.gif"]


def test_draw_picks_what_fits_and_replaces_nothing(tmp_path):
    for layout, name in ((PLANE, "plane.png"), (POINT, "point.pdf"), (LINE, "line.gif")):
        posterior, truth = case(layout, length=2)
        assert plotting.draw(posterior, truth, out=tmp_path / name).stat().st_size > 1000
    with pytest.raises(FileExistsError, match="exists: give overwrite=true"):
        plotting.draw(posterior, truth, out=tmp_path / "line.gif")
    plotting.draw(posterior, truth, out=tmp_path / "line.gif", overwrite=True)
    with pytest.raises(ValueError, match="expected a file named .png.*got 'a.txt'"):
        plotting.draw(posterior, truth, out=tmp_path / "a.txt")
    with pytest.raises(FileNotFoundError, match="there is no folder"):
        plotting.draw(posterior, truth, out=tmp_path / "nowhere" / "a.png")


def test_failed_members_are_left_out_of_figures():
    posterior, truth = case(PLANE)
    posterior["u"][0] = posterior["v"][0] = np.nan
    assert titles(plotting.plot_fields(posterior, truth))[2] == "member 1"
    with pytest.raises(ValueError, match="all 6 members are NaN"):
        plotting.plot_fields(posterior * np.nan)


def test_what_cannot_be_drawn_is_named():
    posterior, truth = case(PLANE)
    with pytest.raises(ValueError, match="no variable 'w', only \\['u', 'v'\\] and vorticity"):
        plotting.plot_fields(posterior, variable="w")
    with pytest.raises(ValueError, match="no state at time 0.7, only 0 … 2 every 0.5"):
        plotting.plot_fields(posterior, times=[0.7])
    with pytest.raises(ValueError, match="use plot_series"):
        plotting.plot_fields(case(POINT)[0])
    with pytest.raises(ValueError, match="truth must be one member, got 6"):
        plotting.plot_fields(posterior, posterior)
    with pytest.raises(ValueError, match="\\['member'\\] are missing"):
        plotting.plot_series(truth.isel(member=0))
    with pytest.raises(ValueError, match="vorticity needs the variables u and v"):
        plotting.vorticity(xr.Dataset({"u": ("x", [1.0])}))
