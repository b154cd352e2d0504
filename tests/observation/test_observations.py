"""Observations: synthetic noise, both file forms, a user's own data, and every error."""

import json

import numpy as np
import pandas as pd
import pytest
import torch
import xarray as xr
from cases import AIR, FLOW, LINE, POINT, STATIONS, TAU, cells, mask, random

from sda.observation import (
    BlockAverage,
    Difference,
    Function,
    Interpolate,
    Mask,
    Observations,
    SaturatingVorticity,
    Select,
    Subsample,
    from_config,
    observe,
    register,
)

TIME = FLOW.times(9)
TRUTH = FLOW.to_dataset(random(1, 9, *FLOW.shape))

GRIDDED = {
    "averages": Select(every=4) >> BlockAverage(4),
    "points": Subsample({"time": 2, "x": 3}, {"x": 2}),
    "variables": Select(["v", "u"], every=4),
    "irregular": Select("u", times=[0.2, 0.33, 1.5]) >> Subsample(2),
    "masked": Select(every=4) >> BlockAverage(2) >> Mask(mask(4, 6)),
    "masked states": Mask(mask(9, 2, 8, 12)),
    "saturating": Select(every=3) >> BlockAverage(2) >> SaturatingVorticity(),
    "loop": Difference(),
}
POINTS = {
    "stations": Select(every=4) >> Interpolate(AIR),
    "rows": Interpolate(STATIONS),
    "saturated stations": Interpolate(STATIONS) >> Function("saturate"),
    "stations of averages": Select(every=2) >> BlockAverage(2) >> Interpolate(AIR),
}
ALL = {**GRIDDED, **POINTS}


def test_duplicates_one_period_apart():
    """The same place twice, which only the layout of the state can tell."""

    def table(x, y=(1.0, 1.0)):
        two = {"time": 0.2, "variable": "u", "observation": [1.0, 2.0], "std": 0.1}
        return Observations.from_table(pd.DataFrame({**two, "y": y, "x": x}))

    period = dict(FLOW.period)
    assert period, "the case is periodic"
    with pytest.raises(ValueError, match="1 rows are duplicated, .* a period of .* apart"):
        table((0.3, 0.3 + period["x"])).likelihood(FLOW, TIME)
    with pytest.raises(ValueError, match="1 rows are duplicated"):
        table((0.0, period["x"])).likelihood(FLOW, TIME)
    assert len(table((0.3, 0.3 + period["x"] / 2)).likelihood(FLOW, TIME)) == 2
    assert len(table((0.3, 0.3 + 1e-6)).likelihood(FLOW, TIME)) == 2


def same(a: Observations, b: Observations) -> None:
    """The two give the same likelihood."""

    x = random(2, 9, *FLOW.shape, seed=3)
    one, two = (each.likelihood(FLOW, TIME, torch.float64) for each in (a, b))
    assert torch.equal(one.y, two.y) and torch.equal(one.std, two.std)
    assert one.linear == two.linear
    torch.testing.assert_close(one.log_prob(x), two.log_prob(x), rtol=1e-12, atol=1e-9)
    assert a.hash() == b.hash()
    np.testing.assert_allclose(a.times, b.times)
    assert a.span == b.span and len(a) == len(b) and a.variables == b.variables


@pytest.mark.parametrize("suffix", [".zarr", ".nc", ".parquet", ".csv"])
@pytest.mark.parametrize("name", ALL)
def test_round_trip(name, suffix, tmp_path):
    obs = observe(TRUTH, ALL[name], 0.1, seed=1)
    path = tmp_path / f"observations{suffix}"
    if name in POINTS and suffix in (".zarr", ".nc"):
        with pytest.raises(
            ValueError, match=r"have no grid: save them as a table \(.parquet or .csv"
        ):
            obs.save(path)
        assert not list(tmp_path.iterdir())
        return
    obs.save(path)
    same(obs, Observations.load(path))
    assert [each.name for each in tmp_path.iterdir()] == [path.name]

    with pytest.raises(FileExistsError, match="exists already"):
        obs.save(path)
    other = observe(TRUTH, ALL[name], 0.2, seed=2)
    other.save(path, overwrite=True)
    assert Observations.load(path).hash() == other.hash() != obs.hash()


@pytest.mark.parametrize("suffix", [".parquet", ".csv"])
def test_several_sets_round_trip(suffix, tmp_path):
    obs = observe(TRUTH, GRIDDED["masked"], {"u": 0.1, "v": 0.2}, seed=1)
    obs = (
        obs
        + observe(TRUTH, POINTS["rows"], 0.3, seed=2)
        + observe(TRUTH, Difference(), 0.1, seed=3)
    )
    obs.save(tmp_path / f"all{suffix}")
    same(obs, Observations.load(tmp_path / f"all{suffix}"))
    with pytest.raises(ValueError, match="several sets, have no grid"):
        obs.save(tmp_path / "all.nc")


def test_file_forms_are_as_documented(tmp_path):
    obs = observe(TRUTH, GRIDDED["masked"], {"u": 0.1, "v": 0.2}, seed=1)
    obs.save(tmp_path / "obs.zarr")
    dataset = xr.open_zarr(tmp_path / "obs.zarr", consolidated=False)
    assert set(dataset.data_vars) == {"u", "v", "u_std", "v_std"}
    assert dataset["u"].dims == ("time", "y", "x")
    np.testing.assert_array_equal(dataset["u"].notnull()[0], mask(4, 6))
    np.testing.assert_array_equal(dataset["v_std"].values[0], np.where(mask(4, 6), 0.2, np.nan))
    np.testing.assert_allclose(dataset["x"], cells(6, TAU))

    observe(TRUTH, POINTS["stations"], 0.1, seed=1).save(tmp_path / "obs.csv")
    table = pd.read_csv(tmp_path / "obs.csv")
    assert set(table) == {"time", "variable", "y", "x", "observation", "std"}
    assert len(table) == 24


def test_noise_is_gaussian_and_reproducible():
    truth = LINE.to_dataset(np.zeros((1, 500, *LINE.shape)))
    obs = observe(truth, Select(every=1), 0.5, seed=3)
    z = obs.sets[0].y.ravel() / 0.5

    assert abs(z.mean()) < 4 / np.sqrt(z.size)
    assert abs(z.var() - 1) < 4 * np.sqrt(2 / z.size)
    assert abs((z**4).mean() - 3) < 4 * np.sqrt(96 / z.size)
    assert abs((z[1:] * z[:-1]).mean()) < 4 / np.sqrt(z.size)
    assert observe(truth, Select(every=1), 0.5, seed=3).hash() == obs.hash()
    assert observe(truth, Select(every=1), 0.5, seed=4).hash() != obs.hash()


def test_observe_adds_noise_of_the_std_given_to_the_operator():
    truth = POINT.to_dataset(random(1, 400, *POINT.shape))
    std = {"x": 0.1, "z": 3.0}
    obs = observe(truth.isel(member=0), Select(["x", "z"], every=2), std, seed=1)
    error = obs.sets[0].y - POINT.to_array(truth)[0, ::2, ::2]

    np.testing.assert_allclose(error.std(axis=0), [0.1, 3.0], rtol=0.2)
    np.testing.assert_array_equal(obs.sets[0].std[0], [0.1, 3.0])
    np.testing.assert_allclose(obs.times, POINT.times(400)[::2])
    chi2 = -2 * obs.likelihood(POINT, POINT.times(400), torch.float64).log_prob(
        torch.from_numpy(POINT.to_array(truth))
    ) - 200 * np.log((2 * np.pi * 0.1 * 3.0) ** 2)
    assert abs(float(chi2) - 400) < 4 * np.sqrt(800)
    array = observe(truth.isel(member=0), Select("x", every=200), np.array([[0.1], [1e-9]]), seed=1)
    assert array.sets[0].std.tolist() == [[0.1], [1e-9]]


def test_a_table_of_ones_own():
    table = pd.DataFrame({**STATIONS, "observation": [1.0, 2.0, np.nan, 4.0], "std": 0.1})
    obs = Observations.from_table(table.assign(station=list("abcd")))
    expected = Interpolate({name: np.array(column)[[0, 1, 3]] for name, column in STATIONS.items()})

    assert len(obs) == 3 and obs.linear and obs.variables == ("u", "v")
    same(obs, Observations.from_operator(expected, [1.0, 2.0, 4.0], 0.1, FLOW, TIME))
    same(obs, Observations.from_table(table.drop(columns="std"), std=0.1))
    assert repr(obs).startswith(
        "Observations(3 values of u, v at 3 times 0 … 0.9)\n  3 values, std"
    )


def test_a_grid_of_ones_own():
    y = random(3, 2, 3, seed=4).numpy()
    y[1, 0, 0] = np.nan
    coords = {"time": TIME[::4], "y": cells(2, TAU), "x": cells(3, TAU)}
    dataset = xr.Dataset({"v": (("time", "y", "x"), y), "v_std": 0.2}, coords)
    operator = Select("v", every=4) >> BlockAverage(4)
    expected = Observations.from_operator(operator, y[:, None], 0.2, FLOW, TIME)
    x = random(2, 9, *FLOW.shape)

    for given in (
        Observations.from_grid(dataset),
        Observations.from_grid(dataset.transpose("x", "time", "y").expand_dims("member")),
        Observations.from_grid(dataset.drop_vars("v_std"), std={"v": 0.2}),
    ):
        assert len(given) == 17
        torch.testing.assert_close(
            given.likelihood(FLOW, TIME, torch.float64).log_prob(x),
            expected.likelihood(FLOW, TIME, torch.float64).log_prob(x),
        )
    dataset["v"].attrs["cell_methods"] = "area: mean"
    assert Observations.from_grid(dataset).sets[0].operator.kind == "averages"


@pytest.mark.parametrize("suffix", [".zarr", ".nc"])
def test_a_grid_of_ones_own_from_a_file(suffix, tmp_path):
    dataset = TRUTH.isel(member=0, time=slice(None, None, 2), x=slice(None, None, 3))
    dataset = dataset.assign({f"{name}_std": 0.1 for name in FLOW.variables})
    path = tmp_path / f"own{suffix}"
    dataset.to_zarr(path, consolidated=False) if suffix == ".zarr" else dataset.to_netcdf(path)
    likelihood = Observations.load(path).likelihood(FLOW, TIME, torch.float64)
    expected = torch.from_numpy(FLOW.to_array(TRUTH))

    assert len(likelihood) == 5 * 2 * 8 * 4
    torch.testing.assert_close(likelihood.H(expected)[0].sort().values, likelihood.y.sort().values)
    assert (likelihood.H(expected)[0] - likelihood.y).abs().max() < 1e-12


def test_registered_functions_are_saved_by_name(tmp_path):
    def half_minus_one(x):
        return x / 2 - 1

    operator = Select(every=4) >> Function(half_minus_one, linear=True)
    obs = observe(TRUTH, operator, 0.1, seed=1)
    for suffix in (".nc", ".parquet"):
        with pytest.raises(ValueError, match="'half_minus_one' has no registered name"):
            obs.save(tmp_path / f"obs{suffix}")
    assert not list(tmp_path.iterdir())
    register("test_half_minus_one", half_minus_one)
    obs.save(tmp_path / "obs.nc")
    same(obs, Observations.load(tmp_path / "obs.nc"))
    with pytest.raises(ValueError, match="belongs to another function"):
        register("test_half_minus_one", torch.sin)


def test_a_value_that_belongs_to_no_time_is_saved(tmp_path):
    def total(x):
        return x.square().mean(dim=(1, 3, 4))

    register("test_total", total)
    operator = Function("test_total", variables=["uu", "vv"], timewise=False)
    obs = observe(TRUTH, operator, 0.1, seed=1)
    assert obs.span == (0.0, pytest.approx(1.6)) and not obs.linear
    for suffix in (".csv", ".parquet"):
        obs.save(tmp_path / f"obs{suffix}")
        same(obs, Observations.load(tmp_path / f"obs{suffix}"))


def table(**changes) -> pd.DataFrame:
    columns = {**STATIONS, "observation": [1.0, 2.0, 3.0, 4.0], "std": [0.1] * 4, **changes}
    return pd.DataFrame({name: column for name, column in columns.items() if column is not None})


def grid_of(**changes) -> xr.Dataset:
    dataset = TRUTH.isel(member=0)
    dataset = dataset.assign(u_std=0.1, v_std=0.1)
    return dataset.assign(changes)


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda: Observations([]), "at least one set, got none"),
        (lambda: table(std=None), r"lacks the columns \['std'\]"),
        (lambda: table(time=None, variable=None), r"lacks the columns \['time', 'variable'\]"),
        (lambda: table()[:0], "the table of observations is empty"),
        (lambda: table(observation=np.nan), "is empty: all 4 observations are NaN"),
        (
            lambda: table(std=[0.1, np.nan, 1, 1]),
            "the column 'std' has NaN in 1 rows, first in row 1",
        ),
        (lambda: table(x=[0.1, 1, np.nan, np.nan]), "the column 'x' has NaN in 2 rows"),
        (lambda: table(time=[0.1, 1, np.nan, 0.2]), "the column 'time' has NaN"),
        (lambda: table(time=list("abcd")), "the column 'time' must hold numbers"),
        (lambda: table(time=pd.date_range("2000", periods=4)), "must hold numbers: convert dates"),
        (
            lambda: grid_of().assign_coords(time=pd.date_range("2000", periods=9)),
            "times must be numbers .* got datetime64.* convert dates",
        ),
        (
            lambda: table(std=[0.1, 0.0, -1.0, 1]),
            r"std must be positive and finite, got 0 \(2 of 4",
        ),
        (lambda: table(std=[0.1, np.inf, 1.0, 1]), "std must be positive and finite, got inf"),
        (lambda: table(observation=[0.1, np.inf, 1.0, 1]), "must be finite, got 1 infinite"),
        (
            lambda: pd.concat([table(), table()[1:2]]),
            r"1 rows are duplicated, the first is {'time': 0.33",
        ),
        (
            lambda: table(variable=list("uvwu")),
            r"unknown variables \['w'\]: expected some of \['u', 'v'\]",
        ),
        (lambda: table(y=[0, 1, 200, 3]), "1 of 4 observations lie outside the domain: y = 200"),
        (
            lambda: table(time=[0, 1, -1, 0.1]),
            "1 of 4 .* outside the time span: time = -1 .* 0 … 1.6",
        ),
        (lambda: table(x=None), r"need columns \['x'\] too"),
        (lambda: table(height=[0.0] * 4), r"unknown point columns \['height'\]"),
        (lambda: grid_of().isel(time=0).drop_vars("time"), "needs a coordinate 'time'"),
        (lambda: grid_of()[[]], "the dataset has no variables"),
        (lambda: TRUTH.isel(member=[0, 0]), "one member, got 2"),
        (
            lambda: grid_of().drop_vars("v_std"),
            "the error of 'v' is unknown: add a variable 'v_std'",
        ),
        (lambda: grid_of(u_std=-1.0), "std must be positive and finite, got -1"),
        (lambda: grid_of(v=TRUTH["v"][0].isel(x=0)), r"but 'v' has \['time', 'y'\]"),
        (lambda: grid_of() * np.nan, "the set of observations is empty"),
        (
            lambda: grid_of().drop_vars("x"),
            r"dimensions \['x'\] of the dataset have no coordinates",
        ),
        (lambda: grid_of().rename(u="w", u_std="w_std"), r"unknown variables \['w'\]"),
        (lambda: grid_of().rename(x="lon"), r"dimensions \['y', 'lon'\], the state \['y', 'x'\]"),
        (
            lambda: grid_of().isel(x=slice(0, 5)).assign_coords(x=cells(5, TAU)),
            r"'x' \(5 values 0.628319 … 5.65487\) is neither .* \(12 values 0.26",
        ),
        (
            lambda: grid_of().isel(x=slice(1, None, 3), y=slice(0, 8)),
            r"'x' .* could be points .* or averages",
        ),
        (lambda: grid_of().assign_coords(time=TIME + 0.5), "outside the time span: time = 1.7"),
        (lambda: grid_of().assign_attrs(observation_operator="{"), "not valid JSON"),
        (
            lambda: grid_of().assign_attrs(observation_operator='{"operator": "x"}'),
            "unknown observation op",
        ),
        (
            lambda: grid_of().assign_attrs(
                observation_operator=json.dumps(BlockAverage(2).config())
            ),
            r"returns values of shape \(9, 2, 4, 6\) on this trajectory, but \(9, 2, 8, 12\)",
        ),
    ],
)
def test_errors_of_ones_own_data(make, message):
    with pytest.raises(ValueError, match=message) as error:
        data = make()
        obs = (
            Observations.from_grid(data)
            if isinstance(data, xr.Dataset)
            else Observations.from_table(data)
        )
        obs.likelihood(FLOW, TIME)
    assert "\n" not in str(error.value)


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (
            lambda: observe(TRUTH.isel(member=[0, 0]), Subsample(2), 0.1, 1),
            "one member, got 2: select one",
        ),
        (lambda: observe(TRUTH * np.nan, Subsample(2), 0.1, 1), "432 values that are not finite"),
        (lambda: observe(TRUTH, Function("log"), 0.1, 1), "not finite"),
        (lambda: observe(TRUTH, Subsample(2), 0.0, 1), "std must be positive and finite, got 0"),
        (
            lambda: observe(TRUTH, Subsample(2), {"u": 1}, 1),
            r"std names \['u'\], but not the observed \['v'\]",
        ),
        (
            lambda: observe(TRUTH, Subsample(2), {"u": 1, "w": 1}, 1),
            r"unknown variables in std \['w'\]",
        ),
        (
            lambda: observe(TRUTH, Subsample(2), np.ones(5), 1),
            r"std of shape \(5,\) does not broadcast",
        ),
        (lambda: observe(TRUTH, Subsample(2), 0.1, -1), "seed"),
        (lambda: observe(TRUTH[["u"]], Select("v"), 0.1, 1), r"unknown variables \['v'\]"),
        (
            lambda: Observations.from_operator(Subsample(2), np.ones(5), 1, FLOW, TIME),
            r"y of shape \(5,\)",
        ),
        (
            lambda: Observations.from_operator(Subsample(2), 1, 1, FLOW, TIME[::-1]),
            "finite and increasing",
        ),
        (
            lambda: observe(TRUTH, Subsample(2), 1, 1).save("observations.txt"),
            "unknown suffix of observations",
        ),
        (
            lambda: observe(TRUTH, Subsample(2), 1, 1).likelihood(LINE, TIME),
            r"shape \(9, 1, 20\) on this trajectory, but \(9, 2, 4, 6\) were observed",
        ),
    ],
)
def test_errors_of_operators_and_files(make, message):
    with pytest.raises(ValueError, match=message):
        make()


def test_broken_files(tmp_path):
    with pytest.raises(FileNotFoundError, match="there are no observations at"):
        Observations.load(tmp_path / "none.zarr")
    for suffix in (".nc", ".parquet", ".csv"):
        path = tmp_path / f"broken{suffix}"
        path.write_bytes(b"\x00\x01broken")
        with pytest.raises(ValueError, match="cannot read|lacks the columns"):
            Observations.load(path)
    observe(TRUTH, POINTS["stations of averages"], 0.1, 1).save(tmp_path / "o.csv")
    lines = (tmp_path / "o.csv").read_text().splitlines()
    for broken in (
        [lines[0].replace('"size"', '"length"'), *lines[1:]],
        [lines[0][:-3], *lines[1:]],
        [lines[0], *lines[1:-1], lines[-1].rsplit(",", 1)[0] + ",9999"],
    ):
        (tmp_path / "o.csv").write_text("\n".join(broken))
        with pytest.raises(ValueError, match="do not fit the operators|not valid JSON"):
            Observations.load(tmp_path / "o.csv")
    with pytest.raises(ValueError, match="do not fill a mask"):
        from_config({"operator": "Mask", "mask": {"shape": [10**12], "bits": "AAAA"}})
    (tmp_path / "broken.zarr").mkdir()
    with pytest.raises(ValueError, match="cannot read"):
        Observations.load(tmp_path / "broken.zarr")
