"""The likelihood: adjoints, linearisation, densities, normalisation, precision."""

import numpy as np
import pytest
import torch
from cases import ALL, FLOW, LAYOUTS, LINEAR, NONLINEAR, grid, random

from sda.observation import (
    BlockAverage,
    Function,
    Interpolate,
    Likelihood,
    Observations,
    SaturatingVorticity,
    Select,
    Subsample,
)

DOUBLE = torch.float64


def observe(name: str, dtype: torch.dtype = DOUBLE) -> Likelihood:
    layout, operator = ALL[name]
    layout = LAYOUTS[layout]
    shape = operator.bind(grid(layout)).target.shape
    y = random(*shape, seed=5).numpy()
    std = 0.1 + random(*shape, seed=6).abs().numpy()
    observations = Observations.from_operator(operator, y, std, layout, layout.times(9))
    return observations.likelihood(layout, layout.times(9), dtype)


def moments(likelihood: Likelihood) -> tuple[torch.Tensor, torch.Tensor]:
    mean = random(*likelihood.shape[1:], seed=8)
    return mean, 0.5 + random(likelihood.shape[1], seed=9).abs()


@pytest.mark.parametrize("name", ALL)
def test_adjoint(name):
    for likelihood in (observe(name), observe(name).normalise(*moments(observe(name)))):
        x, dx = random(3, *likelihood.shape), random(3, *likelihood.shape, seed=1)
        v = random(3, len(likelihood), seed=2)
        value, jvp, vjp = likelihood.linearise(x)
        products = [(jvp(dx) * v).sum(dim=1), (dx * vjp(v)).flatten(1).sum(dim=1)]
        if likelihood.linear:
            products.append((dx * likelihood.adjoint(v)).flatten(1).sum(dim=1))
        size = jvp(dx).norm(dim=1) * v.norm(dim=1)

        assert torch.equal(value, likelihood.H(x))
        for product in products[1:]:
            assert ((product - products[0]).abs() <= 1e-12 * size).all()


@pytest.mark.parametrize("name", LINEAR)
def test_columns_and_tangent_of_linear_operators(name):
    likelihood = observe(name)
    dx = random(2, *likelihood.shape)
    columns = likelihood.columns(batch=7)
    zero = likelihood.H(torch.zeros_like(dx))

    assert likelihood.linear
    assert columns.shape == (len(likelihood), *likelihood.shape)
    tangent = dx.flatten(1) @ columns.flatten(1).T
    torch.testing.assert_close(tangent, likelihood.H(dx) - zero, rtol=1e-10, atol=1e-10)
    torch.testing.assert_close(tangent, likelihood.linearise(5 * dx)[1](dx), rtol=1e-10, atol=1e-10)


@pytest.mark.parametrize("name", NONLINEAR)
def test_tangent_linear_against_finite_differences(name):
    likelihood = observe(name)
    x, dx = random(2, *likelihood.shape), random(2, *likelihood.shape, seed=1)
    tangent = likelihood.linearise(x)[1](dx)
    errors = []
    for h in (1e-3, 1e-4):
        difference = (likelihood.H(x + h * dx) - likelihood.H(x - h * dx)) / (2 * h)
        # |x| in the saturation has no second derivative at zero: the median stays clear of it
        errors.append(float((difference - tangent).abs().median() / tangent.abs().mean()))

    assert not likelihood.linear
    assert errors[0] < 1e-4
    assert errors[1] < 1e-6
    for call in (lambda: likelihood.adjoint(tangent), likelihood.columns):
        with pytest.raises(ValueError, match=r"not linear and has no adjoint: use linearise\(x\)"):
            call()


@pytest.mark.parametrize("name", ["times", "composed", "saturating vorticity"])
def test_log_prob_and_normalise(name):
    likelihood = observe(name)
    mean, scale = moments(likelihood)
    x = random(4, *likelihood.shape)
    expected = torch.distributions.Normal(likelihood.H(x), likelihood.std).log_prob(likelihood.y)
    anomaly = (x - mean) / scale.reshape(-1, *(1 for _ in mean.shape[1:]))
    normalised = likelihood.normalise(mean, scale)

    torch.testing.assert_close(likelihood.log_prob(x), expected.sum(dim=1))
    torch.testing.assert_close(normalised.H(anomaly), likelihood.H(x))
    torch.testing.assert_close(normalised.log_prob(anomaly), likelihood.log_prob(x))
    assert torch.equal(normalised.y, likelihood.y) and torch.equal(normalised.std, likelihood.std)


@pytest.mark.parametrize("name", ALL)
def test_single_precision(name):
    single, double = observe(name, torch.float32), observe(name)
    x = random(2, *double.shape)

    assert single.H(x.float()).dtype == single.y.dtype == torch.float32
    torch.testing.assert_close(single.H(x.float()).double(), double.H(x), rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize("name", ["interpolate", "spectral vorticity", "square"])
def test_works_in_inference_mode_and_differentiates_twice(name):
    likelihood = observe(name)
    x, v = random(2, *likelihood.shape), random(2, len(likelihood))
    expected = likelihood.linearise(x)
    with torch.inference_mode():
        inside = observe(name).normalise(
            torch.zeros(likelihood.shape[1:]), torch.ones(likelihood.shape[1])
        )
        value, jvp, vjp = inside.linearise(x + 0)
        for given, wanted in zip(
            (value, jvp(x + 0), vjp(v + 0)),
            (expected[0], expected[1](x), expected[2](v)),
            strict=True,
        ):
            torch.testing.assert_close(given.clone(), wanted)

    assert torch.autograd.gradcheck(
        lambda x: likelihood.linearise(x)[2](v[:1])[:, 0, 0].flatten()[:3],
        x[:1].requires_grad_(),
        fast_mode=True,
    )


def test_several_sets_are_concatenated():
    time = FLOW.times(9)
    a = Observations.from_operator(Select(every=4) >> BlockAverage(4), 1.0, 0.1, FLOW, time)
    b = Observations.from_operator(
        Select("u", steps=[2]) >> Function("tanh"), 2.0, {"u": 0.3}, FLOW, time
    )
    likelihood = (a + b).likelihood(FLOW, time, DOUBLE)
    parts = [each.likelihood(FLOW, time, DOUBLE) for each in (a, b)]
    x = random(2, *likelihood.shape)

    assert len(a + b) == len(likelihood) == 36 + 96
    assert a.linear and parts[0].linear and not (a + b).linear and not likelihood.linear
    torch.testing.assert_close(likelihood.H(x), torch.cat([part.H(x) for part in parts], dim=1))
    torch.testing.assert_close(likelihood.log_prob(x), sum(part.log_prob(x) for part in parts))


def test_missing_values_are_left_out():
    y = random(3, 2, 2, 3, seed=1).numpy()
    y[0, 1] = y[2, 0, 1, 2] = np.nan
    obs = Observations.from_operator(
        Select(every=4) >> BlockAverage(4), y, 0.1, FLOW, FLOW.times(9)
    )
    likelihood = obs.likelihood(FLOW, FLOW.times(9), DOUBLE)
    x = random(2, *likelihood.shape)
    full = (Select(every=4) >> BlockAverage(4)).bind(grid(FLOW), DOUBLE)(x).flatten(1)

    assert len(obs) == len(likelihood) == 36 - 7
    torch.testing.assert_close(likelihood.H(x), full[:, ~np.isnan(y.ravel())])
    np.testing.assert_array_equal(likelihood.y, y[~np.isnan(y)])


def test_irregular_times_on_another_time_grid():
    """Observations bind to any trajectory that covers them, linearly in time in between."""

    times = np.array([0.2, 0.55, 1.0, 1.37])
    points = {"time": times, "variable": ["u"] * 4, "y": [1.0] * 4, "x": [2.0] * 4}
    for obs in (
        Observations.from_operator(
            Select("u", times) >> BlockAverage(4), 0, 1, FLOW, FLOW.times(9)
        ),
        Observations.from_operator(Interpolate(points), 0, 1, FLOW, FLOW.times(9)),
    ):
        np.testing.assert_allclose(obs.times, times)
        assert obs.span == (0.2, 1.37)
        for dt in (0.2, 0.05):
            time = np.arange(0.2, 1.5, dt)
            likelihood = obs.likelihood(FLOW, time, DOUBLE)
            ramp = (
                torch.from_numpy(3 * time - 1).reshape(1, -1, 1, 1, 1).expand(1, *likelihood.shape)
            )
            expected = np.repeat(3 * times - 1, len(likelihood) // 4)
            np.testing.assert_allclose(likelihood.H(ramp)[0], expected, rtol=1e-12)
        with pytest.raises(ValueError, match="1.* outside the time span: time = 1.37"):
            obs.likelihood(FLOW, FLOW.times(6))


@pytest.mark.parametrize("name", [n for n in ALL if n not in ("function", "affine")])
def test_everything_is_on_the_device_given(name):
    """The meta device refuses to mix with another, and needs no hardware."""

    layout, operator = ALL[name]
    bound = operator.bind(grid(LAYOUTS[layout]), device="meta")
    x = torch.zeros((2, *bound.source.shape), device="meta")

    assert bound(x).device.type == "meta" and bound(x).shape == (2, *bound.target.shape)


def test_errors():
    likelihood = observe("average")
    y = torch.zeros(3)
    cases = [
        (lambda: likelihood.H(torch.zeros(2, 3)), r"\(member, 9, 2, 8, 12\), got \(2, 3\)"),
        (
            lambda: likelihood.adjoint(torch.zeros(2, 3)),
            r"expected values \(member, 108\), got \(2, 3\)",
        ),
        (lambda: likelihood.normalise(y, y), r"shapes \(2, 8, 12\) and \(2,\), got \(3,\)"),
        (lambda: Likelihood(torch.sin, y, y, (3,), True), "std must be positive and finite"),
        (
            lambda: Likelihood(torch.sin, y, y[:2] + 1, (3,), True),
            r"std must have the shape \(3,\)",
        ),
        (lambda: Likelihood(torch.sin, y[:0], 1.0, (3,), True), r"y must have shape \(value\)"),
    ]
    for call, message in cases:
        with pytest.raises(ValueError, match=message):
            call()
    assert repr(likelihood) == "Likelihood(108 linear observations of trajectories (9, 2, 8, 12))"


@pytest.mark.parametrize("name", ALL)
def test_affine_and_elementwise_parts_make_up_the_operator(name):
    likelihood = observe(name)
    mean, scale = moments(likelihood)
    x, z = random(3, *likelihood.shape), random(3, *likelihood.shape, seed=1)
    assert (likelihood.parts is not None) == (name != "energy")
    for each in (likelihood, likelihood.normalise(mean, scale)):
        if each.parts is None:
            continue
        affine, function = each.parts
        torch.testing.assert_close(function(affine(x)), each.H(x))
        values = affine((x + z) / 2)
        torch.testing.assert_close(values, (affine(x) + affine(z)) / 2)
        one = values.clone()
        one[:, 0] += 1
        assert (function(one) != function(values)).nonzero()[:, 1].unique().tolist() == [0]


def test_parts_are_found_where_selections_follow_and_not_where_values_are_mixed():
    flow = grid(FLOW)
    saturating = SaturatingVorticity(0.5)
    for operator, known in (
        (saturating >> Select(every=2), True),
        (BlockAverage(2) >> Function("square") >> Subsample(2) >> Function("atan"), True),
        (saturating >> BlockAverage(2), False),
        (Function(lambda x: x.cumsum(-1) ** 2), False),
    ):
        assert (operator.bind(flow, torch.float64).parts is not None) == known
