"""The verbs on data and tables as others write them; what is wrong with them costs one line."""

import numpy as np
import pandas as pd
import pytest
import xarray as xr
from made import archive, field

from sda import cli
from sda.prior import Prior

LAT, LON = np.linspace(60, -60, 4), np.arange(-180, 180, 90.0)


@pytest.fixture(scope="module")
def files(tmp_path_factory):
    """An archive with land, a prior of it, and a table of observations."""

    folder = tmp_path_factory.mktemp("cf")
    data = archive(LAT, LON, days=30)
    noise = np.random.default_rng(0).standard_normal(data["t2m"].shape)
    data["t2m"] = (data["t2m"] + 0.3 * noise + 280).assign_attrs(data["t2m"].attrs)
    data["t2m"][:, 1, 2] = np.nan
    data.to_netcdf(folder / "archive.nc")
    data.isel(time=slice(40, 60)).to_netcdf(folder / "later.nc")
    table = pd.DataFrame(
        {"valid_time": np.repeat(pd.date_range("2001-01-12", periods=4, freq="6h"), 2),
         "latitude": [60.0, -20] * 4, "longitude": [-180.0, -45] * 4, "value": 7.0,
         "variable": "air_temperature", "std": 0.5, "units": "degC"}
    )  # fmt: skip
    table.to_csv(folder / "stations.csv", index=False)
    table.drop(columns="value").to_csv(folder / "lacking.csv", index=False)
    table.assign(units="m").to_csv(folder / "metres.csv", index=False)
    table[::2].assign(latitude=20.0, longitude=0.0).to_csv(folder / "land.csv", index=False)
    table.assign(valid_time="someday").to_csv(folder / "undated.csv", index=False)
    data.isel(time=[0, 1, 3, 4]).to_netcdf(folder / "hole.nc")
    data.isel(time=[0, 1, 1, 2]).to_netcdf(folder / "twice.nc")
    data.assign_coords(longitude=[-10.0, 0, 340, 350]).to_netcdf(folder / "mixed.nc")
    data.where(data.time != data.time[3]).to_netcdf(folder / "gaps.nc")
    data.rename(time="when").assign_coords(when=np.arange(120)).to_netcdf(folder / "unnamed.nc")
    assert run(f"train data={folder}/archive.nc network=none training.window=3 out={folder}/p") == 0
    return folder


def run(command):
    return cli.main(command.split())


def test_from_an_archive_and_a_table_to_scores(files, tmp_path, capsys):
    prior = Prior.load(files / "p")
    assert prior.gaussian and prior.layout.mask.sum() == 15 and prior.layout.period["lon"] == 360
    assert run(f"assimilate prior={files}/p observations={files}/stations.csv members=8 "
               f"out={tmp_path}/x.zarr progress=false") == 0  # fmt: skip
    posterior = xr.open_zarr(tmp_path / "x.zarr", consolidated=False)
    assert str(posterior.time.values[0])[:13] == "2001-01-12T00"
    seen = posterior["t2m"].sel(lat=60, lon=180).mean("member")
    assert float(abs(seen - 280.15).max()) < 1.5
    assert np.isnan(posterior["t2m"].sel(lat=20, lon=0)).all()
    # The truth is in another file, with its own first day and latitudes from north to south.
    assert run(f"verify posterior={tmp_path}/x.zarr truth={files}/later.nc "
               f"observations={files}/stations.csv out={tmp_path}/scores.nc") == 0  # fmt: skip
    assert np.isfinite(float(xr.open_dataset(tmp_path / "scores.nc")["rmse"].mean()))
    assert run(f"forecast prior={files}/p initial={files}/later.nc lead=3 members=4 "
               f"out={tmp_path}/f.zarr progress=false") == 0  # fmt: skip
    forecast = xr.open_zarr(tmp_path / "f.zarr", consolidated=False)
    assert str(forecast.time.values[0])[:13] == "2001-01-16T12"


def test_a_network_learns_from_a_single_series(files, tmp_path):
    assert run(f"train data={files}/archive.nc network=gated network.width=8 network.depth=1 "
               f"training.window=4 training.steps=3 training.batch=4 "
               f"out={tmp_path}/n progress=false device=cpu") == 0  # fmt: skip
    prior = Prior.load(tmp_path / "n")
    assert not prior.gaussian and prior.layout.time_units.startswith("hours since")


BAD = {
    "train data={0}/none.nc": ["none.nc", "no dataset"],
    "train data={0}/none*.nc": ["no dataset matches"],
    "train data={0}/hole.nc": ["uniform steps", "2001-01-01 18:00:00 at index 1"],
    "train data={0}/twice.nc": ["duplicated", "2001-01-01 18:00:00", "[1, 2]"],
    "train data={0}/mixed.nc": ["mix the conventions", "0 at index 1", "340"],
    "train data={0}/gaps.nc": ["missing now and then", "15 cells", "fill=climatology"],
    "train data={0}/unnamed.nc": ["'when'", "dims={{time"],
    "train data={0}/archive.nc variables=[sst]": ["['sst']", "['t2m']"],
    "train data={0}/archive.nc dims={{time:tim}}": ["dims=", "['time', 'latitude'"],
    "train data={0}/archive.nc transform={{t2m:exp}}": ["one of log, log1p", "'exp'"],
    "train data={0}/archive.nc transform={{pr:log}}": ["transform names ['pr']"],
    "train data={0}/archive.nc seasonal=2": ["do not resolve 2 harmonics", "seasonal=0"],
    "train data={0}/archive.nc levels=[500]": ["levels", "none"],
    "train data={0}/archive.nc fill=zero": ["fill must be one of climatology", "'zero'"],
    "train data={0}/archive.nc training.window=500": ["window", "120", "500"],
    "train data={0}/archive.nc network=mlp training.window=60": ["at least 180 states", "120"],
    "assimilate observations={0}/lacking.csv": ["lacks 'observation'", "obsvalue", "lacking.csv"],
    "assimilate observations={0}/metres.csv": ["'m'", "cannot be converted to 'K'"],
    "assimilate observations={0}/land.csv": ["4 of 4 observations lie on land", "lat = 20"],
    "assimilate observations={0}/undated.csv": ["undated.csv", "no date"],
}


@pytest.mark.parametrize("command", BAD)
def test_bad_input_costs_one_line_and_exit_code_2(files, tmp_path, capsys, command):
    words = command.format(files).split()
    if words[0] == "train":
        words += [] if "network=mlp" in words else ["network=none"]
    else:
        words += [f"prior={files}/p", "members=2", "progress=false"]
    assert cli.main([*words, f"out={tmp_path}/out"]) == 2
    error = capsys.readouterr().err
    assert len(error.splitlines()) == 1 and error.startswith("sda: ")
    for text in BAD[command]:
        assert text.format() in error
    assert not (tmp_path / "out").exists()


def test_the_archive_is_what_it_was_made_of(files):
    """The noise of the fixture is as large as said, and no place was mixed up."""

    from sda.cf import open_data

    data = open_data(files / "archive.nc")
    hours = data.time.values - data.time.values[0]
    expected = 280 + field(hours[:, None, None], data.lat.values[:, None], data.lon.values)
    assert float(np.nanstd(data["t2m"].values - expected)) == pytest.approx(0.3, rel=0.1)
