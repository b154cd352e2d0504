"""Seasonal cycles and transforms: what they are fitted to, and that the engine is exact so."""

import cftime
import numpy as np
import pytest
import torch
import xarray as xr
from made import months

import sda
from dynamics.layout import Layout
from sda.cf import Anomalies, Clock, SeasonalCycle, Transform, canonical, prepare
from sda.cf.series import cut, for_training
from sda.climatology import Climatology
from sda.observation import Function, Interpolate, Observations
from sda.prior import Prior

SPACE = {"x": np.arange(3.0)}


def cyclic(calendar="standard", years=4, step=10, phase=0.0, noise=0.0, seed=0):
    """A dataset whose mean is a known function of the date, and that function."""

    units = "days since 1999-03-01"
    time = np.arange(0, 365 * years, step, dtype=float)
    clock = Clock(units, calendar)

    def mean(when):
        year, day = clock.phase(when)
        waves = 5 + 3 * np.cos(2 * np.pi * year) + np.sin(4 * np.pi * year)
        return (waves + 0.5 * np.sin(2 * np.pi * day))[:, None] * np.array([1.0, 2.0, -1.0])

    draw = np.random.default_rng(seed).standard_normal((len(time), 3))
    values = mean(time) + noise * draw
    dataset = xr.Dataset({"a": (("time", "x"), values)}, {"time": time, **SPACE})
    dataset["time"].attrs = {"units": units, "calendar": calendar}
    return dataset, mean


@pytest.mark.parametrize("calendar", ["standard", "noleap", "360_day"])
def test_the_cycle_of_harmonics_is_found_whatever_the_calendar(calendar):
    dataset, mean = cyclic(calendar)
    layout = Layout.from_dataset(dataset)
    cycle = SeasonalCycle.fit(dataset, layout, 2)
    later = np.arange(5000.0, 5400, 7)
    np.testing.assert_allclose(cycle(later)[:, 0], mean(later), atol=1e-5)
    anomalies = Anomalies(layout, cycle=cycle)
    assert np.abs(anomalies.stationary(dataset)["a"]).max() < 1e-5
    # In the file as in memory.
    again = Anomalies.from_tensors(layout, anomalies.to_json(), anomalies.tensors())
    np.testing.assert_array_equal(again.mean(later), anomalies.mean(later))


def test_the_hour_of_day_has_a_cycle_that_changes_over_the_year():
    time = np.arange(0, 24 * 730, 5, dtype=float)
    clock = Clock("hours since 2001-01-01", "noleap")
    year, day = clock.phase(time)
    values = 10 * np.cos(2 * np.pi * year) + (1 + np.sin(2 * np.pi * year)) * np.sin(
        2 * np.pi * day
    )
    dataset = xr.Dataset({"a": ("time", values)}, {"time": time})
    dataset["time"].attrs = {"units": clock.units, "calendar": "noleap"}
    layout = Layout.from_dataset(dataset)
    cycle = SeasonalCycle.fit(dataset, layout, 1, 1)
    np.testing.assert_allclose(cycle(time)[:, 0], values, atol=1e-5)


def test_gaps_do_not_bend_the_cycle_and_are_filled_by_it():
    dataset, mean = cyclic()
    dataset["a"][::3, 1] = np.nan
    # A gap in one season only.
    dataset["a"][5:20, 2] = np.nan
    prepared = prepare(dataset.rename(x="lon").assign_coords(lon=[0.0, 10, 20]), fill="climatology",
                       seasonal=2)  # fmt: skip
    # What is prepared counts its days from another date.
    shift = float(prepared.dataset["time"].values[0])
    found = prepared.anomalies.mean([77.0 + shift])
    np.testing.assert_allclose(found[0, 0], mean([77.0])[0], atol=1e-5)
    assert float(np.abs(prepared.dataset["a"]).max()) < 1e-5


def test_harmonics_are_those_that_the_dates_resolve():
    dataset, _ = cyclic(years=4, step=10)
    layout = Layout.from_dataset(dataset)
    assert SeasonalCycle.fit(dataset, layout).harmonics == 3
    short = dataset.isel(time=slice(0, 40))
    assert SeasonalCycle.fit(short, layout) is None  # one year is weather too
    winters = dataset.isel(time=[i for i in range(len(dataset.time)) if i % 36 in (0, 1)])
    with pytest.raises(ValueError, match="do not resolve 2 harmonics.*seasonal=0"):
        SeasonalCycle.fit(winters, layout, 2)
    plain = dataset.assign_coords(time=("time", dataset.time.values, {"units": "1"}))
    assert SeasonalCycle.fit(plain, Layout.from_dataset(plain)) is None
    with pytest.raises(ValueError, match="needs dates.*units '1'"):
        SeasonalCycle.fit(plain, Layout.from_dataset(plain), 2)


@pytest.mark.parametrize(
    ("spec", "low", "high"),
    [("log", 0.1, 9), ("log1p", 0, 9), ({"name": "log1p", "scale": 0.2}, 0, 9), ("sqrt", 0, 9),
     ({"name": "boxcox", "power": 0.3}, 0, 9), ({"name": "logit", "high": 9.0}, 0.1, 8.9)],
)  # fmt: skip
def test_transforms_are_inverted_and_differentiable(spec, low, high):
    x = np.linspace(low, high, 50)
    dataset = xr.Dataset({"a": ("time", x)})
    from sda.cf.transforms import settle

    each = settle(dataset, {"a": spec})["a"]
    assert each.scale is None or spec != "log1p" or each.scale == pytest.approx(x.mean())
    z = torch.from_numpy(np.asarray(each.forward(x)))
    np.testing.assert_allclose(each.inverse(z), x, atol=1e-9 * 9)
    wide = torch.linspace(-3, 3, 61, dtype=torch.float64, requires_grad=True)
    assert (each.inverse(wide).diff() > 0).all()
    (slope,) = torch.autograd.grad(each.inverse(wide).sum(), wide)
    assert torch.isfinite(slope).all() and (slope >= 0).all()
    assert Transform.of(each.to_json()) == each


@pytest.mark.parametrize(
    ("spec", "values", "text"),
    [("log", [0.0, 1.0], "needs values positive, got 0 … 1.*log1p"),
     ("sqrt", [-1.0, 1.0], "within 0 … inf, got -1"), ("logit", [0.0, 2.0], "within 0 … 1, got 0"),
     ("exp", [0.0, 1.0], "one of log, log1p.*'exp'"),
     ({"name": "log", "base": 2}, [1.0, 2.0], "a transform has a name"),
     ({"name": "boxcox", "power": 0}, [1.0, 2.0], "power > 0")],
)  # fmt: skip
def test_transforms_that_do_not_suit_the_data_are_refused(spec, values, text):
    from sda.cf.transforms import settle

    dataset = xr.Dataset({"a": ("time", np.array(values))})
    with pytest.raises(ValueError, match=text):
        settle(dataset, {"a": spec})
    with pytest.raises(ValueError, match=r"transform names \['b'\]"):
        settle(dataset, {"b": "log"})


# The engine ------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def pair():
    """A prior with a seasonal cycle, the same one of anomalies alone, and the cycle."""

    layout = Layout(("a",), 5.0, SPACE, time_units="days since 1999-03-01", calendar="noleap")
    generator = np.random.default_rng(1)
    root = generator.standard_normal((6, 6)) + 2 * np.eye(6)
    climatology = Climatology.from_moments(
        layout, torch.zeros(1, 3), torch.from_numpy(root @ root.T)
    )
    clock = Clock.of(layout)
    cycle = SeasonalCycle(clock, 2, 0, 20 * generator.standard_normal((5, 1, 3)))
    anomalies = Anomalies(layout, cycle=cycle)
    return Prior(climatology, anomalies=anomalies), Prior(climatology), anomalies


def stations(cycle=None):
    """Observations at points, also between states; with the seasonal cycle on top."""

    generator = np.random.default_rng(2)
    time = np.array([5.0, 5, 10, 17.5, 30, 42.5, 60])
    x = np.array([0.0, 2, 1, 0.5, 1.25, 2, 1.5])
    y = generator.standard_normal(len(time))
    if cycle is not None:
        grid = np.arange(5.0, 61, 5)
        states = cycle.mean(grid)[:, 0]
        for i in range(len(time)):
            column = [np.interp(time[i], grid, states[:, j]) for j in range(3)]
            y[i] += np.interp(x[i], SPACE["x"], column)
    return Observations.from_table(
        {"time": time, "x": x, "variable": ["a"] * len(time), "observation": y, "std": 0.3 + 0 * y}
    )


@pytest.mark.parametrize(
    "options",
    [
        {}, {"frames": 8}, {"task": "filter"}, {"task": "filter", "carry": "members", "lag": 2},
        {"task": "forecast", "lead": 9}, {"task": "filter", "guidance": "flow_dependent"},
    ],
)  # fmt: skip
def test_a_seasonal_cycle_is_added_to_what_a_stationary_prior_gives(pair, options):
    seasonal, plain, cycle = pair
    options = {"members": 3, "seed": 4, "steps": 8, "dtype": "float64", **options}
    if options.get("carry"):
        options["history"] = 8
    given = sda.assimilate(seasonal, stations(cycle), **options)
    expected = sda.assimilate(plain, stations(), **options)
    np.testing.assert_array_equal(given.time, expected.time)
    mean = cycle.mean(given.time.values)[:, 0]
    np.testing.assert_allclose(given["a"], expected["a"] + mean, atol=2e-4)
    assert given.time.attrs["calendar"] == "noleap"


def test_a_forecast_goes_on_with_the_cycle_of_its_dates(pair):
    seasonal, plain, cycle = pair
    initial = sda.assimilate(plain, stations(), members=2, dtype="float64", steps=8)
    shifted = initial + cycle.mean(initial.time.values)[:, 0]
    options = {"lead": 11, "seed": 1, "dtype": "float64", "steps": 8}
    shifted["time"].attrs = initial["time"].attrs
    given = sda.forecast(seasonal, shifted, **options)
    expected = sda.forecast(plain, initial, **options)
    np.testing.assert_allclose(
        given["a"], expected["a"] + cycle.mean(given.time.values)[:, 0], atol=2e-4
    )


def test_what_is_not_linear_sees_the_cycle_within(pair):
    seasonal, _, cycle = pair
    table = stations(cycle).to_table().sort_values("time")
    points = {name: table[name] for name in ("time", "x", "variable")}
    time = np.arange(5.0, 61, 5)
    operator = Interpolate(points) >> Function("square")
    obs = Observations.from_operator(
        operator, table["observation"] ** 2, 1.0, seasonal.layout, time
    )
    likelihood = seasonal.likelihood(obs, time, torch.float64)
    z = torch.randn(2, 12, 1, 3, dtype=torch.float64, generator=torch.manual_seed(0))
    x = seasonal.states(z, time)
    np.testing.assert_allclose(
        likelihood.H(z), obs.likelihood(seasonal.layout, time, torch.float64).H(x), rtol=1e-6
    )
    np.testing.assert_allclose(seasonal.anomalies(x.numpy(), time, torch.float64), z, atol=1e-5)


def test_transformed_variables_are_observed_through_the_inverse():
    layout = Layout(("p", "t"), 1.0, SPACE)
    climatology = Climatology.from_moments(
        layout, torch.tensor([[0.3] * 3, [10.0] * 3]), torch.eye(6, dtype=torch.float64)
    )
    anomalies = Anomalies(layout, {"p": Transform("log1p", scale=0.5)})
    prior = Prior(climatology, anomalies=anomalies)
    time = np.arange(2.0)
    z = torch.randn(4, 2, 2, 3, dtype=torch.float64, generator=torch.manual_seed(0))
    x = prior.states(z, time)
    expected = (0.5 * torch.expm1(z[:, :, 0] + 0.3)).clamp(min=0)
    torch.testing.assert_close(x[:, :, 0], expected)
    torch.testing.assert_close(x[:, :, 1], z[:, :, 1] + 10)

    def observed(name):
        rows = {"time": [0.0, 1.0], "x": [0.5, 2.0], "variable": [name] * 2}
        obs = Observations.from_table({**rows, "observation": [0.4, 0.2], "std": [0.1] * 2})
        return prior.likelihood(obs, time, torch.float64)

    p = observed("p")
    smooth = 0.5 * torch.expm1(z[:, :, 0] + 0.3)
    torch.testing.assert_close(p.H(z), torch.stack([smooth[:, 0, :2].mean(1), smooth[:, 1, 2]], 1))
    assert not p.linear and observed("t").linear
    torch.testing.assert_close(observed("t").H(z)[:, 1], z[:, 1, 1, 2] + 10)


def test_a_positive_variable_is_analysed_as_its_exact_posterior_says():
    """One value, log-normal, observed directly with a physical error: against quadrature."""

    layout = Layout(("p",), 1.0, {"x": np.array([0.0])})
    climatology = Climatology.from_moments(layout, torch.zeros(1, 1), 0.36 * torch.eye(1))
    prior = Prior(climatology, anomalies=Anomalies(layout, {"p": Transform("log")}))
    obs = Observations.from_table(
        {"time": [0.0], "x": [0.0], "variable": ["p"], "observation": [2.0], "std": [0.3]}
    )
    z = np.linspace(-4, 4, 20001)
    weight = np.exp(-0.5 * z**2 / 0.36 - 0.5 * ((2 - np.exp(z)) / 0.3) ** 2)
    mean = (np.exp(z) * weight).sum() / weight.sum()
    std = np.sqrt((np.exp(2 * z) * weight).sum() / weight.sum() - mean**2)
    posterior = sda.assimilate(prior, obs, members=512, seed=0, guidance="flow_dependent")["p"]
    assert float(posterior.min()) > 0
    assert float(posterior.mean()) == pytest.approx(mean, abs=0.06)
    assert float(posterior.std()) == pytest.approx(std, rel=0.2)


# Priors of one series --------------------------------------------------------------------------


def test_blocks_of_a_series_share_no_states_and_keep_their_order():
    dataset = xr.Dataset({"a": ("time", np.arange(103.0))}, {"time": np.arange(103.0)})
    blocks = cut(dataset, 4, gap=5)
    values = blocks["a"].values
    assert values.shape == (4, 24) and len(np.unique(values)) == 96
    assert (np.diff(values) == 1).all() and values[-1, -1] == 102
    assert values[3, 0] - values[2, -1] == 6 and values[1, 0] - values[0, -1] == 1
    with pytest.raises(ValueError, match="at least 30 states.*got 29.*network=none"):
        for_training(dataset.isel(time=slice(0, 29)), 10, 0.1)


def test_a_saved_prior_of_a_monthly_series_analyses_dates(tmp_path):
    time = months(120)
    clock = Clock("days since 1999-01-01", "standard")
    phase = clock.phase(clock.numbers(np.array(time)))[0]
    generator = np.random.default_rng(0)
    waves = np.zeros((120, 4))
    for i in range(1, 120):
        waves[i] = 0.8 * waves[i - 1] + generator.standard_normal(4)
    values = 280 + 10 * np.cos(2 * np.pi * phase)[:, None] + waves
    dataset = xr.Dataset(
        {
            "sst": (
                ("time", "lon"),
                values,
                {"units": "K", "standard_name": "sea_surface_temperature"},
            )
        },
        {"time": time, "lon": [0.0, 90, 180, 270]},
    )
    prior = sda.GaussianPrior.fit(prepare(dataset), 6)
    loaded = Prior.load(prior.save(tmp_path / "prior"))
    assert loaded.hash == prior.hash != Prior(prior.climatology).hash
    assert loaded.info["seasonal"] == 3 and loaded.layout.calendar == "360_day"
    assert loaded.info["standard_names"] == {"sst": "sea_surface_temperature"}
    numbers = Clock.of(loaded.layout).numbers([cftime.datetime(2003, m, 16) for m in range(1, 13)])
    obs = Observations.from_table(
        {"time": numbers, "lon": [90.0] * 12, "variable": ["sst"] * 12,
         "observation": values[48:60, 1], "std": [0.1] * 12}
    )  # fmt: skip
    posterior = sda.assimilate(loaded, obs, members=8, seed=1)
    seen = posterior["sst"].sel(lon=90)
    np.testing.assert_allclose(seen.mean("member"), values[48:60, 1], atol=0.3)
    # What was not seen has the cycle of its months, and the spread of its anomalies.
    other = posterior["sst"].sel(lon=270)
    assert abs(float(other.mean()) - 280) < 3 and 4 < float(other.mean("member").std()) < 10
    canonical_again = canonical(dataset)
    np.testing.assert_allclose(posterior.time, canonical_again.time[48:60])
