"""The layouts and operators that the tests loop over."""

import math

import numpy as np
import torch

from dynamics.layout import Layout
from sda.observation import (
    BlockAverage,
    Difference,
    Function,
    Grid,
    Interpolate,
    Mask,
    OnGrid,
    SaturatingVorticity,
    Select,
    Subsample,
    Vorticity,
)


def cells(size: int, length: float) -> np.ndarray:
    return (np.arange(size) + 0.5) * length / size


TAU = 2 * math.pi
FLOW = Layout(("u", "v"), 0.2, {"y": cells(8, TAU), "x": cells(12, TAU)}, {"y": TAU, "x": TAU})
BOX = Layout(("u", "v"), 0.5, {"y": np.arange(6.0), "x": np.array([0.0, 1, 2, 4, 5, 7])})
LINE = Layout(("h",), 0.1, {"site": np.arange(40.0)}, {"site": 40.0})
POINT = Layout(("x", "y", "z"), 0.025)

LENGTH = 9
LAYOUTS = {"flow": FLOW, "box": BOX, "line": LINE, "point": POINT}


def grid(layout: Layout, length: int = LENGTH) -> Grid:
    return Grid.of(layout, layout.times(length))


def random(*shape: int, seed: int = 0) -> torch.Tensor:
    return torch.from_numpy(np.random.default_rng(seed).standard_normal(shape))


def mask(*shape: int) -> np.ndarray:
    return np.random.default_rng(7).random(shape) < 0.4


def running_mean(x: torch.Tensor) -> torch.Tensor:
    return x.cumsum(dim=1)


def twice_plus_one(x: torch.Tensor) -> torch.Tensor:
    return 2 * x + 1


def energy(x: torch.Tensor) -> torch.Tensor:
    return x.square().sum(dim=2, keepdim=True)


AIR = {"x": [0.1, 6.2, -1.0, 3.3], "y": [6.1, 0.05, 2.0, 2.5]}
STATIONS = {
    "time": [0.0, 0.33, 1.6, 0.9],
    "variable": ["u", "v", "v", "u"],
    **AIR,
}

# name -> (layout, operator)
LINEAR = {
    "variables": ("flow", Select("v")),
    "reordered": ("flow", Select(["v", "u"])),
    "steps": ("flow", Select(steps=[0, 3, 4, -1])),
    "every": ("flow", Select(every=3)),
    "times": ("flow", Select(times=[0.2, 0.3, 1.41])),
    "time slice": ("flow", Select(times=slice(0.4, 1.2, 2))),
    "region": ("flow", Select(region={"x": (1, 3), "y": (2.0, 5.0)})),
    "wrapped region": ("flow", Select(region={"x": (5.0, 1.0)})),
    "subsample": ("flow", Subsample(4)),
    "subsample each": ("flow", Subsample({"x": 3, "time": 2}, {"x": 1, "time": 1})),
    "mask": ("flow", Mask(mask(8, 12))),
    "mask all": ("flow", Mask(mask(LENGTH, 2, 8, 12))),
    "named mask": ("flow", Mask(mask(12, 2), ["x", "variable"])),
    "average": ("flow", BlockAverage(4)),
    "average each": ("line", BlockAverage({"site": 5})),
    "interpolate": ("flow", Interpolate(AIR)),
    "interpolate rows": ("flow", Interpolate(STATIONS)),
    "interpolate line": ("line", Interpolate({"site": [39.5, 0.25, 12.0]})),
    "interpolate point": ("point", Interpolate({"time": [0.01, 0.2], "variable": ["z", "x"]})),
    "interpolate box": ("box", Interpolate({"x": [0.5, 6.0, 7.0], "y": [0.0, 4.2, 5.0]})),
    "function": ("flow", Function(running_mean, linear=True, timewise=False)),
    "affine": ("line", Function(twice_plus_one, linear=True)),
    "vorticity": ("flow", Vorticity()),
    "spectral vorticity": ("flow", Vorticity(method="spectral")),
    "vorticity in a box": ("box", Vorticity()),
    "difference": ("flow", Difference()),
    "difference between": ("line", Difference(0.05, 0.62)),
    "points": (
        "flow",
        OnGrid(
            {"y": FLOW.coords["y"][1::4], "x": FLOW.coords["x"][::3]}, FLOW.variables, [0.2, 0.5]
        ),
    ),
    "averages": ("flow", OnGrid({"x": cells(3, TAU), "y": cells(2, TAU)}, ["v"], [0, 1.6])),
    "composed": ("flow", Select("u", every=4) >> BlockAverage(2) >> Mask(mask(4, 6))),
    "average at points": ("flow", BlockAverage(2) >> Interpolate(AIR)),
    "vorticity of averages": ("flow", Subsample({"time": 2}) >> BlockAverage(2) >> Vorticity()),
    "vorticity ring": ("flow", Select(steps=[-1]) >> Vorticity() >> Mask(mask(8, 12))),
    "part of a line": ("line", Select(region={"site": (30, 9)}) >> BlockAverage(4) >> Subsample(2)),
}

NONLINEAR = {
    "saturating vorticity": ("flow", BlockAverage(2) >> SaturatingVorticity(0.5)),
    "spectral saturating": ("flow", SaturatingVorticity(method="spectral") >> Select(every=2)),
    "square": ("line", Function("square")),
    "saturate points": ("flow", Interpolate(AIR) >> Function("saturate")),
    "energy": ("flow", Function(energy, variables="energy") >> BlockAverage(4)),
    "lorenz": ("point", Select("x", every=4) >> Function("tanh")),
}

ALL = {**LINEAR, **NONLINEAR}
