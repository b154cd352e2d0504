"""What others write is read as it was meant: every value stays at its place and date."""

import cftime
import numpy as np
import pytest
import xarray as xr
from made import archive, field, months

from dynamics.layout import Layout
from sda.cf import Clock, canonical, open_data

GLOBE = np.arange(0, 360, 30.0)


def check(dataset, original_hours=True):
    """Values are those of the function at the coordinates that they now have."""

    assert (np.diff(dataset.lat) > 0).all() and (np.diff(dataset.lon) > 0).all()
    hours = dataset.time.values - dataset.time.values[0]
    expected = field(hours[:, None, None], dataset.lat.values[:, None], dataset.lon.values)
    name = next(iter(dataset.data_vars))
    assert dataset[name].dims == ("time", "lat", "lon")
    np.testing.assert_allclose(dataset[name].values, expected, atol=2e-6)


@pytest.mark.parametrize(
    "lon",
    [
        GLOBE,
        np.arange(-180, 180, 30.0),
        np.concatenate([np.arange(0, 180, 30.0), np.arange(-180, 0, 30.0)]),
        GLOBE[::-1],
        GLOBE + 15,
        np.arange(-180, 181, 30.0),  # the first column is repeated
        np.arange(0, 360, 30.0).astype(np.float32) + np.float32(1e-5),
        np.linspace(0, 360, 433)[:-1].astype(np.float32),
    ],
)
@pytest.mark.parametrize("lat", [None, np.linspace(-90, 90, 7)])
def test_the_globe_goes_from_0_to_360_whatever_its_convention(lat, lon):
    dataset = canonical(archive(lat, lon, days=2))
    check(dataset)
    layout = Layout.from_dataset(dataset)
    assert layout.period == {"lon": 360.0} and layout.spherical
    assert 0 <= dataset.lon[0] and dataset.lon[-1] < 360
    assert layout.units["t2m"] == "K" and layout.dt == 6 and layout.calendar == "standard"


@pytest.mark.parametrize(
    ("lon", "expected"),
    [
        (np.arange(-80, 41, 5.0), np.arange(-80, 41, 5.0)),
        (np.concatenate([np.arange(170, 181, 5.0), np.arange(-175, -159, 5.0)]),
         np.arange(170, 201, 5.0)),
        (np.arange(350, 371, 5.0) % 360, np.arange(350, 371, 5.0)),
        (np.array([10.0, 12, 15, 20]), [10, 12, 15, 20]),
        (np.arange(40, -81, -5.0), np.arange(-80, 41, 5.0)),
    ],
)  # fmt: skip
def test_a_region_is_continued_across_the_seam(lon, expected):
    dataset = canonical(archive(lon=lon, days=2))
    check(dataset)
    np.testing.assert_allclose(dataset.lon, expected)
    assert not Layout.from_dataset(dataset).period


@pytest.mark.parametrize(
    "names",
    [
        ("time", "lat", "lon"), ("valid_time", "latitude", "longitude"),
        ("t", "nav_lat", "nav_lon"), ("Time", "Latitude", "Longitude"),
    ],
)  # fmt: skip
@pytest.mark.parametrize("attributes", [True, False])
def test_dimensions_are_recognised_by_name_or_attributes(names, attributes):
    check(canonical(archive(names=names, attributes=attributes, days=2)))


def test_dimensions_with_meaningless_names_are_recognised_by_attributes_alone():
    check(canonical(archive(names=("a", "y", "x"), days=2)))
    bare = archive(names=("a", "b", "c"), attributes=False, days=2)
    bare["a"].attrs = {}
    with pytest.raises(ValueError, match="recognised as time.*dims={time"):
        canonical(bare)
    bare["a"].attrs = {"units": "hours since 2001-01-01"}
    check(canonical(bare, dims={"lat": "b", "lon": "c"}))


def test_two_candidates_are_not_guessed_between():
    dataset = archive(days=2).expand_dims(valid_time=[0.0, 1.0])
    dataset["valid_time"].attrs = {"units": "hours since 2001-01-01"}
    with pytest.raises(ValueError, match="'time'.*'valid_time'|'valid_time'.*'time'.*dims="):
        canonical(dataset)
    with pytest.raises(ValueError, match="coordinate of|no coordinate|could all be"):
        canonical(archive(days=2).expand_dims(expver=["a", "b"]))


def test_bad_dims_are_refused():
    for dims, text in [
        ({"when": "time"}, "'when'.*time, member"),
        ({"time": "tim"}, "no dimension"),
        ({"time": "time", "member": "time"}, "two roles"),
    ]:
        with pytest.raises(ValueError, match=text):
            canonical(archive(days=2), dims=dims)
    flat = archive(days=2).rename(latitude="j", longitude="i").drop_vars(["i", "j"])
    flat = flat.assign_coords(lat=(("j", "i"), np.zeros((11, 12))))
    with pytest.raises(ValueError, match="'j' has no coordinate.*two-dimensional"):
        canonical(flat)


def test_levels_become_variables():
    parts = [archive(days=2) + level / 1e3 - 0.5 for level in (850.0, 500.0)]
    dataset = xr.concat(parts, dim=xr.IndexVariable("plev", [850.0, 500.0], {"units": "hPa"}))
    dataset = dataset.rename(t2m="t").assign(ps=parts[0]["t2m"])
    for name in ("time", "latitude", "longitude"):
        dataset[name].attrs = archive(days=2)[name].attrs
    found = canonical(dataset)
    assert list(found.data_vars) == ["t_850hPa", "t_500hPa", "ps"]
    hours = found.time.values - found.time.values[0]
    for level in (850.0, 500.0):
        expected = field(hours[:, None, None], found.lat.values[:, None], found.lon.values, level)
        np.testing.assert_allclose(found[f"t_{level:g}hPa"].values, expected, atol=2e-6)
    assert list(canonical(dataset, ["t"], levels=[500]).data_vars) == ["t_500hPa"]
    assert list(canonical(dataset, ["ps", "t"], levels={"t": 850}).data_vars) == ["ps", "t_850hPa"]
    with pytest.raises(ValueError, match="level 700 of 't' is not among.*850, 500 hPa"):
        canonical(dataset, ["t"], levels=[700])
    with pytest.raises(ValueError, match=r"levels names \['q'\]"):
        canonical(dataset, levels={"q": 850})


def test_members_are_kept_and_single_dimensions_dropped():
    dataset = xr.concat([archive(days=2), archive(days=2) + 1], dim="number").expand_dims("height")
    found = canonical(dataset.assign_coords(height=[2.0], number=[0, 1]))
    assert found["t2m"].dims == ("member", "time", "lat", "lon")
    check(found.isel(member=0))


@pytest.mark.parametrize("calendar", ["standard", "noleap", "360_day", "proleptic_gregorian"])
@pytest.mark.parametrize("decoded", [True, False])
def test_times_decode_to_the_dates_that_they_had(calendar, decoded):
    days = [27, 28] if calendar == "standard" else [26, 27, 28]
    dates = [
        cftime.datetime(2001, 2, d, h, calendar=calendar) for d in days for h in (1, 7, 13, 19)
    ]
    dataset = archive(days=len(days))
    if decoded:
        dataset = dataset.assign_coords(time=dates)
    else:
        numbers = cftime.date2num(dates, "days since 1950-01-01", calendar)
        dataset = dataset.assign_coords(
            time=("time", numbers, {"units": "days since 1950-01-01", "calendar": calendar})
        )
    layout = Layout.from_dataset(canonical(dataset))
    found = Clock.of(layout).dates(canonical(dataset).time.values)
    assert layout.dt == pytest.approx(6) and layout.time_units.startswith("hours since")
    seconds = [abs((a - b).total_seconds()) for a, b in zip(found, dates, strict=True)]
    assert max(seconds) < 1
    # And wherever else CF is read.
    states = layout.to_dataset(np.zeros((1, len(dates), *layout.shape)), canonical(dataset).time)
    read = xr.decode_cf(states, decode_times=xr.coders.CFDatetimeCoder(use_cftime=True))
    assert [str(d)[:16] for d in read.time.values] == [str(d)[:16] for d in dates]


def test_monthly_means_keep_year_month_and_place():
    dates = months(30)
    dataset = archive(days=30, step=24).assign_coords(time=dates)
    found = canonical(dataset)
    clock = Clock.of(Layout.from_dataset(found))
    assert clock.months and found.time.attrs["calendar"] == "360_day"
    np.testing.assert_allclose(np.diff(found.time), 30)
    assert [(d.year, d.month) for d in clock.dates(found.time)] == [
        (d.year, d.month) for d in dates
    ]
    # An observation on a real date lies between the months where it did.
    numbers = clock.numbers(np.array(["1999-02-01", "1999-02-15", "1999-03-31T12:00"], "M8[ns]"))
    np.testing.assert_allclose(
        numbers, float(found.time[0]) + np.array([15, 30, 45 + 30.5 * 30 / 31])
    )


def test_yearly_means_are_uniform():
    dates = [cftime.datetime(y, 1, 15, calendar="standard") for y in range(1990, 2010)]
    found = canonical(archive(days=20, step=24).assign_coords(time=dates))
    assert Layout.from_dataset(found).dt == 360


def spoiled(**changes):
    dataset = archive(days=20, step=24)
    time = dataset.time.values.copy()
    for index, value in changes.pop("time", {}).items():
        time[index] = value
    return dataset.assign_coords(time=("time", time, dataset.time.attrs), **changes)


@pytest.mark.parametrize(
    ("make", "text"),
    [
        (lambda: archive().isel(time=[0, 1, 2, 4, 5]), "2001-01-02 00:00:00 at index 2.*1 of 4"),
        (lambda: archive().isel(time=[0, 1, 1, 2]), r"duplicated.*2001-01-01 18:00.*\[1, 2\]"),
        (lambda: archive().isel(time=[1, 0, 2]), "must increase.*index 0.*sort"),
        (lambda: archive().isel(time=[0]), "at least two values, got 1"),
        (lambda: spoiled(time={3: np.nan}), "1 missing values, the first at index 3"),
        (lambda: archive(days=29, step=24).assign_coords(time=months(30)[:9] + months(30)[10:]),
         "monthly.*1999-09-16.*1999-11-16.*1 such steps"),
        (lambda: archive(lon=[-10, -5, 0, 5, 350, 355]), "mix the conventions.*5 at index 3.*350"),
        (lambda: archive(lon=[0, 30, 20, 40]), "not in order.*30 at index 1.*20"),
        (lambda: archive(lon=[0, 31, 60, 90, 120, 150, 180, 210, 240, 270, 300, 330]),
         "30 apart.*31 at index 1.*off by 1"),
        (lambda: archive(lat=[-10, 0, 5, 3, 20]), "'lat' must increase.*5 at index 2.*3"),
        (lambda: archive(lat=[0, 120, 150]), "within -90 … 90, got 120 at index 1.*swapped"),
        (lambda: archive(lat=[0, np.nan, 10]), "'lat' has 1 missing values.*index 1"),
    ],
)  # fmt: skip
def test_flawed_coordinates_are_refused_by_place(make, text):
    with pytest.raises(ValueError, match=text):
        canonical(make())


def test_land_is_a_mask_and_gaps_are_refused():
    dataset = archive(days=3)
    dataset["t2m"][:, 2, 4] = np.nan
    found = canonical(dataset)
    layout = Layout.from_dataset(found)
    # Latitudes were turned around.
    assert [tuple(cell) for cell in np.argwhere(~layout.mask)] == [(8, 4)]
    assert layout.to_array(found)[0, :, 0, 8, 4].tolist() == [0.0] * 12
    back = layout.to_dataset(layout.to_array(found))
    assert np.isnan(back["t2m"].values[0, :, 8, 4]).all() and int(back["t2m"].isnull().sum()) == 12

    dataset["t2m"][5, 1, 0] = np.nan
    with pytest.raises(ValueError, match="now and then in 1 of 131 cells.*1 of 12 times.*fill="):
        canonical(dataset)
    assert not Layout.from_dataset(canonical(dataset, fill="climatology")).mask[8, 4]
    with pytest.raises(ValueError, match="fill must be one of climatology, got 'zero'"):
        canonical(dataset, fill="zero")
    other = archive(days=3).assign(
        sst=dataset["t2m"].isel(time=slice(0, 5)).mean("time") + 0 * dataset["t2m"].fillna(0)
    )
    with pytest.raises(ValueError, match="same cells: 't2m' has states in 132.*'sst' in 131"):
        canonical(other)
    with pytest.raises(ValueError, match="infinite"):
        canonical(archive(days=2) / xr.where(archive(days=2).longitude == 0, 0.0, 1.0))


def test_variables_are_chosen_or_asked_for():
    dataset = archive(days=2)
    with pytest.raises(ValueError, match=r"\['t3m'\] are not in the data, which has \['t2m'\]"):
        canonical(dataset, ["t3m"])
    with pytest.raises(ValueError, match="must hold numbers"):
        canonical(dataset.assign(flag=dataset["t2m"].astype(str)), ["flag"])
    mixed = dataset.assign(zonal=dataset["t2m"].mean("longitude"))
    with pytest.raises(ValueError, match="share their dimensions.*choose variables"):
        canonical(mixed)
    assert list(canonical(mixed, ["t2m"]).data_vars) == ["t2m"]


def test_files_of_consecutive_times_are_one_series(tmp_path):
    whole = archive(days=6)
    for i in range(3):
        part = whole.isel(time=slice(8 * i, 8 * i + 8))
        # Each counts from its own first day, as archives do.
        shift = 48.0 * i
        attrs = {"units": f"hours since 2001-01-{1 + 2 * i:02d} 12:00", "calendar": "standard"}
        part = part.assign_coords(time=("time", part.time.values - shift, attrs))
        part.to_netcdf(tmp_path / f"part{i}.nc")
    whole.to_zarr(tmp_path / "whole.zarr", zarr_format=3, consolidated=False)
    expected = open_data(tmp_path / "whole.zarr")
    check(expected)
    for source in (str(tmp_path / "part*.nc"), [tmp_path / f"part{i}.nc" for i in range(3)]):
        xr.testing.assert_identical(open_data(source).load(), expected.load())
    with pytest.raises(ValueError, match="2001-01-03 06:00:00 at index 7.*followed by"):
        open_data([tmp_path / "part0.nc", tmp_path / "part2.nc"])
    with pytest.raises(FileNotFoundError, match="no dataset matches"):
        open_data(str(tmp_path / "none*.nc"))


def test_a_file_in_one_piece_is_read_in_portions(tmp_path, monkeypatch):
    whole = archive(days=6)
    whole.to_netcdf(tmp_path / "piece.nc")
    expected = open_data(tmp_path / "piece.nc").load()
    monkeypatch.setattr("sda.cf.missing.PORTION", 5 * 4 * 11 * 12)
    found = open_data(tmp_path / "piece.nc")
    assert max(found["t2m"].chunks[0]) == 5
    xr.testing.assert_identical(found.load(), expected)


def test_our_own_datasets_pass_as_they_are():
    layout = Layout(("u", "v"), 0.1, {"x": np.arange(8.0)}, {"x": 8.0})
    dataset = layout.to_dataset(np.zeros((2, 3, *layout.shape)))
    assert open_data(dataset) is dataset
    found = canonical(archive(days=2))
    assert open_data(found) is found
