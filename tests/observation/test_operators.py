"""Laws that every observation operator obeys, and each operator against plain NumPy."""

import json

import numpy as np
import pytest
import torch
import xarray as xr
from cases import (
    AIR,
    ALL,
    BOX,
    FLOW,
    LAYOUTS,
    LINE,
    LINEAR,
    NONLINEAR,
    POINT,
    STATIONS,
    TAU,
    cells,
    grid,
    mask,
    random,
)

from sda.observation import (
    BlockAverage,
    Bound,
    Compose,
    Difference,
    Function,
    Grid,
    Interpolate,
    Mask,
    OnGrid,
    Operator,
    SaturatingVorticity,
    Select,
    Subsample,
    Vorticity,
    check_linear,
    from_config,
)
from sda.observation.operator import anchored

DOUBLE = torch.float64


def bind(name: str) -> Bound:
    layout, operator = ALL[name]
    return operator.bind(grid(LAYOUTS[layout]), DOUBLE)


@pytest.mark.parametrize("name", ALL)
def test_shape_and_rows(name):
    bound = bind(name)
    y = bound(random(3, *bound.source.shape))
    rows = bound.target.rows()

    assert y.shape == (3, *bound.target.shape)
    assert all(len(column) == y[0].numel() for column in rows.values())


@pytest.mark.parametrize("name", ALL)
def test_members_do_not_depend_on_the_batch(name):
    bound = bind(name)
    x = random(3, *bound.source.shape)

    torch.testing.assert_close(bound(x)[1:2], bound(x[1:2]), rtol=1e-14, atol=1e-14)


@pytest.mark.parametrize("name", LINEAR)
def test_linear_operators_are_linear(name):
    assert LINEAR[name][1].linear
    check_linear(bind(name), tolerance=1e-12)


@pytest.mark.parametrize("name", NONLINEAR)
def test_nonlinear_operators_say_so(name):
    assert not NONLINEAR[name][1].linear
    assert not bind(name).linear
    with pytest.raises(ValueError, match="pass linear=False"):
        check_linear(bind(name))


class Liar(Operator):
    """Says that it is linear."""

    def bind(self, domain, dtype=torch.float32, device="cpu"):
        return Bound(domain, domain, lambda x: x + 0.01 * x**2, True)

    def arguments(self):
        return {}


def test_a_linear_operator_that_is_not_fails():
    with pytest.raises(ValueError, match=r"says that it is linear, but .* pass linear=False"):
        check_linear((Select(every=2) >> Liar()).bind(grid(FLOW)))
    with pytest.raises(ValueError, match="says that it is linear"):
        Function("saturate", linear=True).bind(grid(FLOW))


@pytest.mark.parametrize("name", ALL)
def test_config_makes_the_same_operator(name):
    layout, operator = ALL[name]
    if "Function(" in repr(operator) and name in ("function", "affine", "energy"):
        with pytest.raises(ValueError, match="no registered name"):
            operator.config()
        return
    again = from_config(json.loads(json.dumps(operator.config())))
    x = random(2, *grid(LAYOUTS[layout]).shape)

    assert repr(again) == repr(operator)
    assert torch.equal(again.bind(grid(LAYOUTS[layout]), DOUBLE)(x), bind(name)(x))


@pytest.mark.parametrize("name", ALL)
def test_an_anchored_operator_means_the_same_on_a_longer_trajectory(name):
    layout, operator = ALL[name]
    layout, inner, outer = LAYOUTS[layout], grid(LAYOUTS[layout]), None
    outer = Grid.of(layout, layout.dt * np.arange(-4, 15))
    x = random(2, *outer.shape)

    expected = operator.bind(inner, DOUBLE)(x[:, 4:13])
    bound = anchored(operator, inner).bind(outer, DOUBLE)
    torch.testing.assert_close(bound(x), expected, rtol=1e-9, atol=1e-9)
    for name_, column in operator.bind(inner).target.rows().items():
        if name_ == "variable":
            assert list(bound.target.rows()[name_]) == list(column)
        else:
            np.testing.assert_allclose(bound.target.rows()[name_].astype(float), column, atol=1e-12)


def test_sampling_operators_are_interpolation_at_their_rows():
    for layout, operator in LINEAR.values():
        if not anchored(operator, grid(LAYOUTS[layout])).sampling:
            continue
        bound = operator.bind(grid(LAYOUTS[layout]), DOUBLE)
        points = Interpolate(bound.target.rows()).bind(grid(LAYOUTS[layout]), DOUBLE)
        x = random(2, *bound.source.shape)
        torch.testing.assert_close(points(x), bound(x).flatten(1), rtol=1e-9, atol=1e-9)


def test_select_subsample_and_mask_against_numpy():
    x = random(2, *grid(FLOW).shape)
    y, site = FLOW.coords["y"], FLOW.coords["x"]

    def apply(operator):
        return operator.bind(grid(FLOW), DOUBLE)(x).numpy()

    a = x.numpy()
    np.testing.assert_array_equal(apply(Select(["v", "u"], every=4)), a[:, ::4, ::-1])
    np.testing.assert_array_equal(apply(Select(steps=slice(1, 7, 2))), a[:, 1:7:2])
    np.testing.assert_array_equal(apply(Select(times=[0.4, 1.4])), a[:, [2, 7]])
    np.testing.assert_array_equal(apply(Select(times=slice(0.4, 1.0))), a[:, 2:6])
    np.testing.assert_array_equal(
        apply(Select(region={"x": (1, 3), "y": (2, 5)})),
        a[..., (y >= 2) & (y <= 5), :][..., (site >= 1) & (site <= 3)],
    )
    np.testing.assert_array_equal(
        apply(Select(region={"x": (6, 1)})), a[..., [11, 0, 1]] if site[1] <= 1 else 0
    )
    np.testing.assert_array_equal(apply(Subsample(4, 1)), a[..., 1::4, 1::4])
    np.testing.assert_array_equal(apply(Mask(mask(8, 12))), a[..., mask(8, 12)].reshape(2, -1))
    np.testing.assert_allclose(
        apply(Select(times=[0.25])), 0.75 * a[:, 1:2] + 0.25 * a[:, 2:3], rtol=1e-12
    )


def test_block_averages_against_numpy():
    x = random(2, *grid(FLOW).shape)
    bound = BlockAverage({"y": 2, "x": 3}).bind(grid(FLOW), DOUBLE)
    expected = x.numpy().reshape(2, 9, 2, 4, 2, 4, 3).mean(axis=(4, 6))

    np.testing.assert_allclose(bound(x), expected, rtol=1e-12)
    np.testing.assert_allclose(bound.target.coords["x"], cells(4, TAU))
    assert bound.target.period == {"y": TAU, "x": TAU}


def test_interpolation_is_exact_for_bilinear_functions():
    def f(time, y, x):
        return 1 + 2 * time - y + 0.5 * x * y + 3 * time * x

    g = grid(BOX)
    values = f(*np.meshgrid(g.time, *g.coords.values(), indexing="ij"))
    x = torch.from_numpy(np.stack([values, -values], axis=1))[None]
    rng = np.random.default_rng(0)
    time, y, at = rng.uniform(0, 4, 50), rng.uniform(0, 5, 50), rng.uniform(0, 7, 50)
    bound = Interpolate({"time": time, "variable": ["v"] * 50, "y": y, "x": at}).bind(g, DOUBLE)

    np.testing.assert_allclose(bound(x)[0], -f(time, y, at), rtol=1e-12)


def test_interpolation_on_grid_points_is_exact_and_wraps():
    x = random(1, *grid(LINE).shape)
    bound = Interpolate({"site": [39.25, -0.75, 7.0, 47.0, -33.0, 40.0]}).bind(grid(LINE), DOUBLE)
    y = bound(x)[0].reshape(9, 6)
    line = x[0, :, 0]

    torch.testing.assert_close(y[:, 0], 0.75 * line[:, 39] + 0.25 * line[:, 0])
    torch.testing.assert_close(y[:, 0], y[:, 1])
    for column, site in ((2, 7), (3, 7), (4, 7), (5, 0)):
        assert torch.equal(y[:, column], line[:, site])


def test_vorticity_of_known_flows():
    y, x = np.meshgrid(cells(32, TAU), cells(32, TAU), indexing="ij")
    layout = type(FLOW)(
        ("u", "v"), 1.0, {"y": cells(32, TAU), "x": cells(32, TAU)}, {"y": TAU, "x": TAU}
    )
    flow = torch.from_numpy(np.stack([np.cos(2 * y) * np.sin(x), np.sin(3 * x)]))[None, None]
    expected = 3 * np.cos(3 * x) + 2 * np.sin(2 * y) * np.sin(x)
    g = Grid.of(layout, [0.0])

    spectral = Vorticity(method="spectral").bind(g, DOUBLE)(flow)[0, 0, 0]
    np.testing.assert_allclose(spectral, expected, atol=1e-11)
    centred = Vorticity().bind(g, DOUBLE)(flow)[0, 0, 0]
    h = TAU / 32
    factor = [np.sin(k * h) / (k * h) for k in (3, 2)]  # of second-order differences
    np.testing.assert_allclose(
        centred,
        factor[0] * 3 * np.cos(3 * x) + factor[1] * 2 * np.sin(2 * y) * np.sin(x),
        atol=1e-12,
    )
    saturated = SaturatingVorticity(2.0, method="spectral").bind(g, DOUBLE)(flow)[0, 0, 0]
    np.testing.assert_allclose(saturated, expected / (2 + abs(expected)), atol=1e-11)

    # a rigid rotation in a box has vorticity 2 everywhere, boundaries included
    y, x = np.meshgrid(*BOX.coords.values(), indexing="ij")
    rotation = torch.from_numpy(np.stack([-y, x]))[None, None]
    box = Vorticity().bind(Grid.of(BOX, [0.0]), DOUBLE)(rotation)
    torch.testing.assert_close(box, torch.full_like(box, 2.0))


def test_difference_closes_a_loop():
    x = random(2, *grid(FLOW).shape)
    bound = Difference().bind(grid(FLOW), DOUBLE)

    assert torch.equal(bound(x)[:, 0], x[:, 0] - x[:, -1])
    assert anchored(Difference(), grid(FLOW)).times()[0].tolist() == [0.0, pytest.approx(1.6)]


def test_another_grid_is_recognised():
    x = random(2, *grid(FLOW).shape)
    y, at = FLOW.coords["y"], FLOW.coords["x"]

    def apply(kind=None, **coords):
        operator = OnGrid(coords, FLOW.variables, FLOW.times(9), kind)
        return operator.bind(grid(FLOW), DOUBLE)(x)

    def expect(operator):
        return operator.bind(grid(FLOW), DOUBLE)(x)

    torch.testing.assert_close(apply(y=y, x=at), x)
    torch.testing.assert_close(apply(y=y[1::2], x=at[::4]), x[..., 1::2, ::4])
    torch.testing.assert_close(apply(y=cells(2, TAU), x=cells(3, TAU)), expect(BlockAverage(4)))
    # blocks of three have their centres on points: the other dimension decides, or the user
    odd = expect(BlockAverage({"y": 2, "x": 3}))
    torch.testing.assert_close(apply(y=cells(4, TAU), x=at[1::3]), odd)
    torch.testing.assert_close(apply("points", y=y, x=at[1::3]), x[..., 1::3])
    torch.testing.assert_close(apply("averages", y=y, x=at[1::3]), expect(BlockAverage({"x": 3})))
    # averages over a part of the domain
    part = Select(region={"y": (y[2], y[5]), "x": (at[4], at[7])}) >> BlockAverage(2)
    coords = part.bind(grid(FLOW)).target.coords
    torch.testing.assert_close(apply(**coords), expect(part))


def test_a_mask_with_named_dimensions_is_aligned_by_name():
    keep = xr.DataArray(mask(12, 9), dims=("x", "time"))
    x = random(2, *grid(FLOW).shape)
    y = Mask(keep).bind(grid(FLOW), DOUBLE)(x)
    full = np.broadcast_to(mask(12, 9).T[:, None, None], (9, 2, 8, 12))

    np.testing.assert_array_equal(y, x.numpy()[:, full])


def test_composition_is_flat_and_ordered():
    a, b, c = Select(every=2), BlockAverage(2), Vorticity()

    assert ((a >> b) >> c).operators == (a >> (b >> c)).operators == (a, b, c)
    assert Compose().bind(grid(FLOW)).target.shape == grid(FLOW).shape
    assert "every" not in repr(a >> b) and ">> BlockAverage(factor=2)" in repr(a >> b)


LINE3 = type(FLOW)(("h",), 1.0, {"x": np.arange(9.0)})


@pytest.mark.parametrize(
    ("layout", "make", "message"),
    [
        (FLOW, lambda: Select("w"), r"unknown variables \['w'\]: expected some of \['u', 'v'\]"),
        (FLOW, lambda: Select(["u", "u"]), "must be distinct"),
        (FLOW, lambda: Select(every=0), "every must be a positive integer, got 0"),
        (FLOW, lambda: Select(every=2, steps=[1]), "give one of times, steps and every"),
        (FLOW, lambda: Select(steps=[0, 9]), "outside the time span of 9 states"),
        (FLOW, lambda: Select(steps=slice(20, None)), "must be increasing and not empty"),
        (FLOW, lambda: Select(times=[0.4, 0.2]), "must be finite, distinct and increasing"),
        (
            FLOW,
            lambda: Select(times=[0.4, 1.7]),
            r"1 of 2 .* outside the time span: time = 1.7 .* 0 … 1.6",
        ),
        (FLOW, lambda: Select(region={"z": (0, 1)}), r"unknown dimensions \['z'\]"),
        (
            FLOW,
            lambda: Select(region={"x": (7, 8)}),
            "the region 7 … 8 holds no point of coordinate 'x'",
        ),
        (FLOW, lambda: Select(region={"x": 7}), "needs the lowest and highest 'x'"),
        (FLOW, lambda: Subsample(0), "every must be an integer of at least 1"),
        (FLOW, lambda: Subsample(2, -1), "offset must be an integer of at least 0"),
        (FLOW, lambda: Subsample({"z": 2}), r"unknown dimensions \['z'\]"),
        (FLOW, lambda: Subsample(4, 8), "offset 8 along 'y' lies outside its 8 points"),
        (FLOW, lambda: Mask(np.ones(3)), "must be boolean .* float64"),
        (FLOW, lambda: Mask(np.zeros(12, bool)), "keep at least one value"),
        (
            FLOW,
            lambda: Mask(mask(5, 5)),
            r"shape \(5, 5\) does not fit values of shape \(9, 2, 8, 12\)",
        ),
        (FLOW, lambda: Mask(mask(12), ["z"]), r"unknown dimensions \['z'\]"),
        (FLOW, lambda: BlockAverage(0), "factor must be a positive integer"),
        (
            FLOW,
            lambda: BlockAverage(5),
            r"the factor 5 does not divide the 8 points along 'y' \(3 are left",
        ),
        (FLOW, lambda: BlockAverage({"time": 2}), r"unknown dimensions \['time'\]"),
        (POINT, lambda: BlockAverage(2), "needs spatial dimensions"),
        (FLOW, lambda: Interpolate({"x": [1.0]}), r"need columns \['y'\] too"),
        (FLOW, lambda: Interpolate({}), "need columns of one length"),
        (FLOW, lambda: Interpolate({"x": [1.0, 2.0], "y": [1.0]}), "need columns of one length"),
        (
            FLOW,
            lambda: Interpolate({"x": [np.nan], "y": [1.0]}),
            "the 'x' of points must be finite",
        ),
        (FLOW, lambda: Interpolate({**AIR, "z": [0.0] * 4}), r"unknown point columns \['z'\]"),
        (FLOW, lambda: Interpolate({"x": [100.0], "y": [1.0]}), "outside the domain: x = 100"),
        (
            BOX,
            lambda: Interpolate({"x": [7.1], "y": [1.0]}),
            "18 of 18 .* domain: x = 7.1 .* 0 … 7",
        ),
        (
            FLOW,
            lambda: Interpolate({**STATIONS, "time": [0, 1, 1, 2]}),
            "outside the time span: time = 2",
        ),
        (
            FLOW,
            lambda: Interpolate({**STATIONS, "variable": list("uvwu")}),
            r"unknown variables \['w'\]",
        ),
        (FLOW, lambda: Function("sinc"), "no function is registered as 'sinc'"),
        (FLOW, lambda: Function(lambda x: x[:, 5000]), "failed on values of shape"),
        (
            FLOW,
            lambda: Function(lambda x: x.sum(dim=2, keepdim=True)),
            "name the variables of the result",
        ),
        (FLOW, lambda: Vorticity(method="magic"), r"unknown method \['magic'\]"),
        (FLOW, lambda: Vorticity(("u", "w")), r"unknown variables \['w'\]"),
        (LINE, lambda: Vorticity(("h", "h")), r"unknown dimensions \['y', 'x'\]"),
        (
            BOX,
            lambda: Vorticity(method="spectral"),
            "spectral derivatives need a period, but 'y' has none",
        ),
        (FLOW, lambda: BlockAverage(4) >> Vorticity(), r"at least three points along \['y'\]"),
        (FLOW, lambda: SaturatingVorticity(0), "scale must be positive"),
        (
            FLOW,
            lambda: Difference(1.0, 1.0),
            "the first time must lie before the last, got 1 and 1",
        ),
        (FLOW, lambda: Difference(0.0, 5.0), "outside the time span"),
        (FLOW, lambda: Mask(mask(12)) >> BlockAverage(2), "BlockAverage needs values on a grid"),
        (
            FLOW,
            lambda: OnGrid({"x": [1.0]}, FLOW.variables, [0.0]),
            r"dimensions \['x'\], the state \['y', 'x'\]",
        ),
        (
            LINE3,
            lambda: OnGrid({"x": [1.0, 4.0, 7.0]}, "h", [0.0]),
            r"'x' \(3 values 1 … 7\) could be points of the state's \(9 values 0 … 8\) or averages",
        ),
        (
            LINE3,
            lambda: OnGrid({"x": [1.2, 4.0]}, "h", [0.0]),
            r"'x' \(2 values 1.2 … 4\) is neither made of points of the state's \(9 values 0 … 8\)",
        ),
        (LINE3, lambda: OnGrid({"x": [1.0]}, "h", [0.0], "both"), "unknown kind of grid"),
        (
            LINE3,
            lambda: OnGrid({"x": [0.0, 4.0, 8.0]}, "h", [0.0], "averages"),
            r"said to be averages of the state's \(9 values 0 … 8\), but it fits points",
        ),
        (
            FLOW,
            lambda: from_config({"operator": "os.system"}),
            "unknown observation operator 'os.system'",
        ),
        (
            FLOW,
            lambda: from_config({"operator": "BlockAverage", "size": 2}),
            "arguments of .* BlockAverage",
        ),
        (
            FLOW,
            lambda: from_config({"operator": "Function", "fn": ["exec"]}),
            "must be a registered name",
        ),
    ],
)
def test_errors_name_what_was_given(layout, make, message):
    with pytest.raises(ValueError, match=message) as error:
        make().bind(grid(layout))
    assert "\n" not in str(error.value)


def test_wrong_types():
    with pytest.raises(TypeError, match="wrap a function as Function"):
        Select(every=2) >> torch.tanh
    with pytest.raises(TypeError, match="expected a function or the name of one, got int"):
        Function(3)
    with pytest.raises(ValueError, match=r"bound to arrays \(member, 9, 2, 8, 12\), got"):
        BlockAverage(2).bind(grid(FLOW))(torch.zeros(1, 3, 2, 8, 12))
