"""Tables of observations with the names of the ecosystem say what they say in our own."""

import netCDF4
import numpy as np
import pandas as pd
import pytest
import xarray as xr

from dynamics.layout import Layout
from sda.cf import Clock, load_observations
from sda.cf.observations import from_dataset
from sda.cf.tables import adapt
from sda.cf.units import conversion
from sda.observation import Observations

LAYOUT = Layout(
    ("t2m", "t_500hPa", "t_850hPa", "msl"),
    6.0,
    {"lat": np.arange(-60.0, 61, 30), "lon": np.arange(0.0, 360, 30)},
    {"lon": 360.0},
    {"t2m": "K", "t_500hPa": "K", "t_850hPa": "K", "msl": "Pa", "lat": "degrees_north",
     "lon": "degrees_east"},
    time_units="hours since 1970-01-01",
    calendar="standard",
)  # fmt: skip
NAMES = {"t2m": "air_temperature", "msl": "air_pressure_at_mean_sea_level",
         "t_500hPa": "air_temperature_aloft", "t_850hPa": "air_temperature_aloft"}  # fmt: skip
DATES = np.array(["2001-01-01T00", "2001-01-01T06", "2001-01-02T03"], "M8[ns]")
HOURS = Clock("hours since 1970-01-01").numbers(DATES)
LAT, LON, KELVIN = (
    np.array([10.0, -20, 33]),
    np.array([20.0, -120, 355]),
    np.array([280.0, 285, 290]),
)


def ours(**changes):
    columns = {"time": HOURS, "lat": LAT, "lon": LON % 360, "variable": ["t2m"] * 3,
               "observation": KELVIN, "std": [1.0, 1.0, 2.0]}  # fmt: skip
    return pd.DataFrame({**columns, **changes})


def same(found, expected):
    found = found.assign(lon=found["lon"] % 360)
    names = ["time", "lat", "lon", "variable", "observation", "std"]
    pd.testing.assert_frame_equal(
        found[names].reset_index(drop=True), expected[names], check_dtype=False, rtol=1e-9
    )


FORMS = {
    "stations": lambda: pd.DataFrame(
        {"valid_time": DATES, "station_id": ["a", "b", "c"], "latitude": LAT, "longitude": LON,
         "variable": "air_temperature", "value": KELVIN - 273.15, "std": [1, 1, 2],
         "units": "degC"}
    ),
    "odb": lambda: pd.DataFrame(
        {"andate@desc": [20010101, 20010101, 20010102], "antime@desc": [0, 60000, 30000],
         "lat@hdr": LAT, "lon@hdr": LON, "varno@body": [39, 39, 39], "obsvalue@body": KELVIN,
         "final_obs_error@errstat": [1.0, 1, 2]}
    ),
    "ioda": lambda: pd.DataFrame(
        {"MetaData/dateTime": DATES, "MetaData/latitude": LAT, "MetaData/longitude": LON,
         "ObsValue/airTemperature": KELVIN, "ObsError/airTemperature": [1.0, 1, 2]}
    ),
    "wide": lambda: pd.DataFrame(
        {"time": DATES.astype(str), "lat": LAT, "lon": LON, "t2m": KELVIN, "t2m_std": [1.0, 1, 2]}
    ),
    "ours": ours,
}  # fmt: skip


@pytest.mark.parametrize("form", FORMS)
def test_every_form_of_a_table_is_the_same_table(form):
    table = FORMS[form]()
    found = adapt(table, LAYOUT, standard_names=NAMES)
    same(found, ours())
    assert Observations.from_table(found).likelihood(LAYOUT, HOURS[0] + 6 * np.arange(6)).linear
    assert ("station_id" in found) == (form == "stations")


@pytest.mark.parametrize("suffix", [".csv", ".parquet"])
def test_files_are_read_by_the_same_names(tmp_path, suffix):
    path = tmp_path / f"observations{suffix}"
    table = FORMS["stations"]()
    table.to_csv(path, index=False) if suffix == ".csv" else table.to_parquet(path)
    same(load_observations(path, LAYOUT, NAMES).to_table(), ours())
    own = tmp_path / f"own{suffix}"
    Observations.from_table(ours()).save(own)
    same(load_observations(own, LAYOUT).to_table(), ours())


def test_levels_choose_among_variables():
    table = ours(variable=["t", "t", "air_temperature_aloft"]).assign(
        level=[500.0, 850, 500], level_units="hPa"
    )
    found = adapt(table, LAYOUT, standard_names=NAMES)
    assert list(found["variable"]) == ["t_500hPa", "t_850hPa", "t_500hPa"]
    pascals = adapt(
        table.assign(level=table["level"] * 100, level_units="Pa"), LAYOUT, standard_names=NAMES
    )
    assert list(pascals["variable"]) == list(found["variable"])
    with pytest.raises(ValueError, match="'t' could be any of.*t_500hPa"):
        adapt(ours(variable="t"), LAYOUT)
    with pytest.raises(ValueError, match="at level 700 is none"):
        adapt(table.assign(level=700.0), LAYOUT)


def test_units_are_converted_or_refused():
    found = adapt(
        ours(variable=["msl"] * 3, observation=[1000.0, 1010, 990]).assign(units="hPa"), LAYOUT
    )
    np.testing.assert_allclose(found["observation"], [1e5, 1.01e5, 0.99e5])
    np.testing.assert_allclose(found["std"], [100, 100, 200])
    for units, text in [("m", "'m', which cannot be converted to 'K'"), ("furlongs?", "cannot be")]:
        with pytest.raises(ValueError, match=text):
            adapt(ours().assign(units=units), LAYOUT)


@pytest.mark.parametrize(
    ("given", "wanted", "value", "expected"),
    [("hPa", "Pa", 1.0, 100.0), ("degC", "K", 1.0, 274.15), ("deg C", "K", 0.0, 273.15),
     ("Celsius", "kelvin", 0.0, 273.15), ("K", "degC", 0.0, -273.15), ("km", "m", 2.0, 2000.0),
     ("m**2 s**-2", "m2 s-2", 3.0, 3.0), ("%", "1", 50.0, 0.5), ("knots", "m s-1", 1.0, 0.514444),
     ("g kg-1", "kg kg-1", 5.0, 0.005), ("mb", "hPa", 7.0, 7.0)],
)  # fmt: skip
def test_conversions_are_those_of_the_books(given, wanted, value, expected):
    factor, offset = conversion(given, wanted, "x")
    assert factor * value + offset == pytest.approx(expected, rel=1e-5)


@pytest.mark.parametrize(
    ("make", "text"),
    [
        (lambda: ours().drop(columns="lat"), r"lacks 'lat' \(or latitude, lat@hdr"),
        (lambda: ours().drop(columns=["time", "std"]), "'time' .or valid_t.*'std' .or obs_err"),
        (lambda: ours().assign(latitude=LAT + 1), "'lat' and 'latitude' could both be the lat"),
        (lambda: ours(lat=[10, 95, 0]), "within -90 … 90, got 95 in row 1.*swapped"),
        (lambda: ours(lon=[10, 0, 500]), "within -360 … 360, got 500 in row 2"),
        (lambda: ours(time=["2001-01-01", "soon", "2001-01-02"]), "the column 'time': .*no date"),
        (lambda: ours(time=[DATES[0], None, DATES[2]]), "1 of 3 dates are missing.*index 1"),
        (lambda: ours(variable="sst"), "'sst' is none of the prior's: its variables are t2m"),
        (lambda: ours(std="small"), "'std' must hold numbers"),
        (lambda: FORMS["odb"]().assign(**{"antime@desc": 250000}), "20010131 and 183000, got"),
        (lambda: FORMS["wide"]().drop(columns="t2m_std"), "error of 't2m' is unknown.*'t2m_std'"),
    ],
)  # fmt: skip
def test_flawed_tables_are_refused_by_name(make, text):
    with pytest.raises(ValueError, match=text):
        adapt(make(), LAYOUT, standard_names=NAMES)


def test_dates_need_a_prior_with_dates():
    plain = Layout(("t2m",), 1.0, {"lat": LAYOUT.coords["lat"], "lon": LAYOUT.coords["lon"]})
    with pytest.raises(ValueError, match="'time' holds dates, but the prior counts.*'1'"):
        adapt(ours(time=DATES), plain)
    noleap = Layout(("t2m",), 1.0, LAYOUT.coords, LAYOUT.period, LAYOUT.units,
                    time_units="hours since 1970-01-01", calendar="noleap")  # fmt: skip
    leap = np.array(["2000-02-28", "2000-02-29", "2000-03-01"], "M8[ns]")
    with pytest.raises(ValueError, match="1 of 3 dates do not exist.*'noleap'.*2000-02-29"):
        adapt(ours(time=leap), noleap)


def test_a_region_across_the_seam_takes_longitudes_of_any_convention():
    coords = {"lat": LAYOUT.coords["lat"], "lon": np.arange(350.0, 391, 10)}
    region = Layout(("t2m",), 6.0, coords, units=LAYOUT.units, time_units=LAYOUT.time_units)
    found = adapt(ours(lon=[-5.0, 20, 355]), region)
    assert list(found["lon"]) == [355, 380, 355]


def test_discrete_geometries_of_cf_are_tables():
    dataset = xr.Dataset(
        {"temp": ("obs", KELVIN - 273.15, {"units": "degree_Celsius",
                                           "standard_name": "air_temperature"}),
         "temp_std": ("obs", [1.0, 1, 2])},
        {"time": ("obs", HOURS - HOURS[0], {"units": "hours since 2001-01-01"}),
         "lat": ("obs", LAT, {"standard_name": "latitude"}), "lon": ("obs", LON)},
        {"featureType": "point"},
    )  # fmt: skip
    same(from_dataset(dataset, LAYOUT, NAMES).to_table(), ours())
    with pytest.raises(ValueError, match="featureType must be one of point.*'points'"):
        from_dataset(dataset.assign_attrs(featureType="points"), LAYOUT, NAMES)

    series = xr.Dataset(
        {"t2m": (("station", "time"), [[280.0, np.nan], [281, 282]], {"units": "K"}),
         "t2m_std": (("station", "time"), np.ones((2, 2)))},
        {"time": ("time", [0, 6], {"units": "hours since 2001-01-01"}),
         "lat": ("station", [0.0, 10]), "lon": ("station", [5.0, -5]),
         "station": ["x", "y"]},
        {"featureType": "timeSeries"},
    )  # fmt: skip
    table = from_dataset(series, LAYOUT).to_table()
    assert sorted(table["observation"]) == [280, 281, 282]
    assert sorted(table["time"] - HOURS[0]) == [0, 0, 6]


def test_groups_of_ioda_are_a_table(tmp_path):
    path = tmp_path / "obs.nc"
    with netCDF4.Dataset(path, "w") as file:
        file.createDimension("Location", 3)
        for group, name, values, units in [
            ("MetaData", "latitude", LAT, "degrees_north"),
            ("MetaData", "longitude", LON, "degrees_east"),
            ("MetaData", "dateTime", HOURS * 3600, "seconds since 1970-01-01T00:00:00Z"),
            ("ObsValue", "airTemperature", KELVIN, "K"),
            ("ObsError", "airTemperature", [1, 1, 2], "K"),
        ]:
            where = file.groups.get(group) or file.createGroup(group)
            variable = where.createVariable(name, "f8", ("Location",))
            variable[:], variable.units = values, units
    same(load_observations(path, LAYOUT, NAMES).to_table(), ours())


def test_grids_are_in_the_terms_of_the_prior(tmp_path):
    generator = np.random.default_rng(0)
    values = generator.standard_normal((2, 5, 12)) + 10
    dataset = xr.Dataset(
        {"temp": (("valid_time", "latitude", "longitude"), values[:, ::-1],
                  {"units": "degC", "standard_name": "air_temperature"}),
         "temp_std": (("valid_time", "latitude", "longitude"), np.full((2, 5, 12), 0.5))},
        {"valid_time": ("valid_time", [0, 12], {"units": "hours since 2001-01-01"}),
         "latitude": ("latitude", np.arange(60.0, -61, -30), {"units": "degrees_north"}),
         "longitude": ("longitude", np.arange(0.0, 360, 30), {"units": "degrees_east"})},
    )  # fmt: skip
    dataset.to_netcdf(tmp_path / "grid.nc")
    found = load_observations(tmp_path / "grid.nc", LAYOUT, NAMES)
    time = HOURS[0] + 6 * np.arange(3)
    x = generator.standard_normal((1, 3, 4, 5, 12))
    x[0, [0, 2], 0] = values + 273.15
    import torch

    likelihood = found.likelihood(LAYOUT, time, torch.float64)
    np.testing.assert_allclose(likelihood.H(torch.from_numpy(x))[0], likelihood.y, atol=1e-4)
    assert float(likelihood.std.mean()) == pytest.approx(0.5)
    with pytest.raises(ValueError, match="'temp' is none of the prior's"):
        load_observations(tmp_path / "grid.nc", LAYOUT)
