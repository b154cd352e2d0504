"""Floats: advection against exact paths, cycles, land, and what profiles see."""

import numpy as np
import pytest
import torch
from observing_cases import exact, globe, ocean, truth_on

from dynamics.layout import Layout
from sda.observation import Grid, Interpolate, Observations
from sda.observing import Floats, Flow, Surface
from sda.observing.surface import RADIUS, unit_vectors


def plane(side: int = 21, **options) -> Layout:
    axis = np.linspace(-5.0, 5.0, side)
    return Layout(("u", "v"), 0.1, {"y": axis, "x": axis}, **options)


def test_a_solid_rotation_carries_floats_round_and_back():
    layout = plane()
    y, x = np.meshgrid(*layout.coords.values(), indexing="ij")
    state = np.stack([-y, x])[None, None]
    truth = layout.to_dataset(np.repeat(state, 70, axis=1)).isel(member=0)
    flow = Flow(truth, layout, ["u", "v"])
    start = np.array([[0.0, 3.0], [1.0, -2.0]])
    times = np.array([0.0, np.pi / 2, 2 * np.pi])
    found = flow.advect(start, times)
    # A quarter of a turn takes (y, x) to (x, -y); velocities are linear, so only time errs.
    quarter = np.stack([start[:, 1], -start[:, 0]], -1)
    assert found[1] == pytest.approx(quarter, abs=1e-5)
    assert found[2] == pytest.approx(start, abs=1e-4)


def test_the_method_is_of_fourth_order():
    layout = plane()
    y, x = np.meshgrid(*layout.coords.values(), indexing="ij")
    truth = layout.to_dataset(np.repeat(np.stack([-y, x])[None, None], 12, axis=1)).isel(member=0)
    flow, start = Flow(truth, layout, ["u", "v"]), np.array([[0.0, 3.0]])

    def error(number):
        p, dt = start, 1.0 / number
        for i in range(number):
            p = flow.stride(p, i * dt, dt)
        return np.linalg.norm(p - [[3.0 * np.sin(1.0), 3.0 * np.cos(1.0)]])

    assert np.log2(error(4) / error(8)) == pytest.approx(4.0, abs=0.2)


def test_a_velocity_that_changes_in_time_is_followed_between_the_states():
    layout = plane()
    ramp = np.arange(12.0)[None, :, None, None, None] * 0.1  # u = time
    state = np.concatenate([ramp, 0 * ramp], axis=2) * np.ones((1, 12, 2, 21, 21))
    truth = layout.to_dataset(state).isel(member=0)
    found = Flow(truth, layout, ["u", "v"], current=[0.0, 0.5]).advect(
        np.array([[0.0, 0.0]]), np.array([0.0, 0.85])
    )
    assert found[-1, 0] == pytest.approx([0.5 * 0.85, 0.85**2 / 2], abs=1e-9)


def test_floats_follow_the_streamlines_of_a_steady_eddy():
    layout = ocean()
    y, x = np.meshgrid(*layout.coords.values(), indexing="ij")
    wave = 2 * np.pi / 1000.0
    psi = 2e4 * (np.cos(wave * x) + np.cos(2 * wave * y))
    truth = layout.to_dataset(np.broadcast_to(psi, (1, 31, 2, 32, 32))).isel(member=0)
    flow = Flow(truth, layout, "psi1")
    # The velocity in m/s, exactly: derivatives of a trigonometric polynomial.
    u = 2e4 * 2 * wave * np.sin(2 * wave * y) / 1000.0
    v = -2e4 * wave * np.sin(wave * x) / 1000.0
    assert flow.velocity[0, ..., 1] == pytest.approx(u, abs=1e-12)
    assert flow.velocity[0, ..., 0] == pytest.approx(v, abs=1e-12)
    # A day at 0.25 m/s is 21.6 km.
    p = flow.advect(np.array([[125.0, 20.0]]), np.array([0.0, 0.01]))
    u_here = flow.at(np.array([[125.0, 20.0]]), 0.0)[0, 1]
    assert (p[1, 0, 1] - 20.0) == pytest.approx(u_here * 864.0 / 1000.0, rel=1e-3)
    start = np.array([[80.0, 150.0], [300.0, 700.0], [480.0, 480.0]])
    found = flow.advect(start, np.array([0.0, 15.0, 30.0]))
    height = lambda p: np.cos(wave * p[..., 1]) + np.cos(2 * wave * p[..., 0])  # noqa: E731
    assert Surface(layout).distance(found[0], found[2]).max() > 50.0
    # Up to what bilinear velocities cost.
    assert height(found[2]) == pytest.approx(height(found[0]), abs=0.05)


def test_solid_rotation_of_the_sphere_carries_balloons_also_over_the_poles():
    layout = globe()
    axis, speed = np.array([1.0, 0.0, 0.0]), 40.0  # m/s at the distance of a quarter
    vectors = unit_vectors(Surface(layout).grid())
    wind = np.cross(axis, vectors) * speed
    latitude, longitude = np.deg2rad(np.moveaxis(Surface(layout).grid(), -1, 0))
    east = np.stack([-np.sin(longitude), np.cos(longitude), 0 * longitude], -1)
    north = np.cross(vectors, east)
    state = np.stack([(wind * east).sum(-1), (wind * north).sum(-1), 0 * latitude])
    truth = layout.to_dataset(np.broadcast_to(state, (1, 41, 3, 32, 64))).isel(member=0)
    flow = Flow(truth, layout, ["u", "v"])
    start = np.array([[10.0, 80.0], [-30.0, 200.0]])
    hours = 120.0
    found = flow.advect(start, np.array([0.0, hours]))[1]
    angle = speed * hours * 3.6 / RADIUS
    r = unit_vectors(start)
    turned = (
        r * np.cos(angle)
        + np.cross(axis, r) * np.sin(angle)
        + axis * (r @ axis)[:, None] * (1 - np.cos(angle))
    )
    assert np.linalg.norm(unit_vectors(found) - turned, axis=-1).max() * RADIUS < 60.0


def test_floats_stop_at_the_coast_and_at_walls():
    mask = np.ones((32, 32), dtype=bool)
    mask[:, 16:20] = False
    layout = ocean(mask)
    y, x = np.meshgrid(*layout.coords.values(), indexing="ij")
    # A current to the east that knows of no coast: ψ = -U y, here as a constant beside ψ = 0.
    truth = layout.to_dataset(np.zeros((1, 61, 2, 32, 32))).isel(member=0)
    fleet = Floats(number=40, current=[0.2, 0.0], cycle=5.0, std=1.0)
    times, tracks = fleet.tracks(truth, layout)
    assert tracks.shape == (61, 40, 2) and len(times) == 61
    surface = Surface(layout)
    assert surface.at_sea(tracks).all()
    # All end where the land begins, at the edge of its first cell, and none has got over.
    land = (15.5 * 1000 / 32, 19.5 * 1000 / 32)
    assert (tracks[-1, :, 1] < land[0]).sum() + (tracks[-1, :, 1] > land[1]).sum() == 40
    assert np.abs(tracks[-1, :, 1] - land[0]).max() < 8.0
    assert np.abs(np.diff(tracks[-10:], axis=0)).max() == 0.0

    walled = Layout(("u", "v"), 0.1, plane().coords)
    steady = walled.to_dataset(np.ones((1, 101, 2, 21, 21))).isel(member=0)
    end = Flow(steady, walled, ["u", "v"]).advect(np.array([[0.0, 4.0]]), np.array([0.0, 9.0]))[1]
    assert end[0] == pytest.approx([5.0, 5.0])


def test_profiles_see_both_layers_where_the_float_is(sea, tmp_path):
    layout = ocean()
    fleet = Floats(number=12, cycle=8.0, std={"psi1": 500.0, "psi2": 100.0})
    observations = fleet.observe(sea, 5)
    table = observations.to_table()
    # One profile per cycle of eight of forty days, each of both layers at one place.
    assert (table.groupby("float").size() == 10).all()
    pairs = table.groupby(["float", "time"])
    assert (pairs[["y", "x"]].nunique() == 1).all().all()
    assert set(table["variable"]) == {"psi1", "psi2"}
    cycles = table[table["variable"] == "psi1"].groupby("float")["time"].diff().dropna()
    assert cycles.to_numpy() == pytest.approx(8.0)
    # Where it is, is where the lower layer has carried it.
    moments = np.unique(np.append(0.0, table["time"]))
    _, tracks = fleet.tracks(sea, layout, moments)
    row = table.iloc[17]
    expected = tracks[np.searchsorted(moments, row["time"]), int(row["float"][1:])]
    assert [row["y"], row["x"]] == pytest.approx(expected, abs=1e-6)
    points = {n: table[n].to_numpy() for n in ("time", "variable", "y", "x")}
    bound = Interpolate(points).bind(Grid.of(layout, sea["time"].values), torch.float64)
    clean = bound(torch.from_numpy(layout.to_array(sea)))[0].numpy()
    assert exact(observations, sea) == pytest.approx(clean)
    error = (table["observation"] - clean).to_numpy()
    upper = (table["variable"] == "psi1").to_numpy()
    assert error[upper].std() == pytest.approx(500.0, rel=0.2)
    assert error[~upper].std() == pytest.approx(100.0, rel=0.2)
    assert fleet.observe(sea, 5).hash() == observations.hash() != fleet.observe(sea, 6).hash()
    observations.save(tmp_path / "floats.csv")
    loaded = Observations.load(tmp_path / "floats.csv")
    assert loaded.to_table().equals(table)


def test_lost_profiles(sea):
    full = Floats(number=30, cycle=4.0).observe(sea, 0)
    lost = Floats(number=30, cycle=4.0, missing=0.3).observe(sea, 0)
    assert len(lost) / len(full) == pytest.approx(0.7, abs=0.08)


@pytest.mark.parametrize(
    ("fleet", "message"),
    [
        (Floats(drift="psi"), r"variables must be some of \['psi1', 'psi2'\], got \['psi'\]"),
        (Floats(drift=["psi1", "psi2", "psi1"]), "a flow needs the velocities"),
        (Floats(number=1, cycle=1e6), "no float rises within the times 0 … 40"),
    ],
)
def test_what_does_not_fit_is_said(sea, fleet, message):
    with pytest.raises(ValueError, match=message):
        fleet.observe(sea, 0)


def test_a_streamfunction_needs_a_plane_and_times_within_the_flow(weather, sea):
    with pytest.raises(ValueError, match="a streamfunction on a plane, got"):
        Flow(weather, globe(), "h")
    with pytest.raises(ValueError, match="within those of the flow, 0 … 40, got 0 … 41"):
        Flow(truth_on(ocean(), 41), ocean(), "psi1").advect(np.zeros((1, 2)), np.array([0.0, 41.0]))
