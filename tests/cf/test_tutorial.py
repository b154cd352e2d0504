"""The tutorial on one's own data runs as it stands, here on a file made as the shipped one is."""

import runpy
import sys
from pathlib import Path

import numpy as np
import xarray as xr
from made import months

SCRIPT = Path(__file__).parents[2] / "scripts" / "tutorials" / "your_own_data.py"


def test_buoys_better_the_climatology_of_a_made_ocean(tmp_path, monkeypatch, capsys):
    generator = np.random.default_rng(0)
    lat, lon = np.linspace(-10, 10, 24), np.arange(0, 360, 3.75)
    time = months(72)
    season = np.cos(2 * np.pi * np.arange(72) / 12)
    slow = np.zeros(72)
    for i in range(1, 72):
        slow[i] = 0.8 * slow[i - 1] + generator.standard_normal()
    pattern = np.cos(np.deg2rad(lon)) * np.ones((24, 1))
    values = 300 + season[:, None, None] + slow[:, None, None] * pattern
    values = values + 0.1 * generator.standard_normal(values.shape)
    values[:, :6, :24] = np.nan
    attrs = {"units": "K", "standard_name": "surface_temperature"}
    dataset = xr.Dataset(
        {"surface_temperature": (("time", "latitude", "longitude"), values, attrs)},
        {"time": time, "latitude": lat, "longitude": lon},
    )
    dataset.to_netcdf(tmp_path / "ocean.nc")
    words = ["--small", "--stations", "6", "--rank", "3", "--data", str(tmp_path / "ocean.nc")]
    monkeypatch.setattr(sys, "argv", [str(SCRIPT), *words, "--out", str(tmp_path / "out")])
    runpy.run_path(str(SCRIPT), run_name="__main__")
    rows = [line.split() for line in capsys.readouterr().out.splitlines()]
    before = next(row for row in rows if row[:1] == ["climatology"])
    after = next(row for row in rows if row[:3] == ["given", "the", "buoys"])
    assert float(after[-3]) < 0.5 * float(before[-3])
    assert {path.name for path in (tmp_path / "out").iterdir()} >= {"prior", "buoys.csv", "map.png"}
