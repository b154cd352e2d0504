"""Networks and their margins: around a cylinder, over the poles, and not on land."""

from collections.abc import Callable

import numpy as np
import pytest
import torch
import xarray as xr
from torch import Tensor

from dynamics.layout import Layout
from sda.climatology import Climatology
from sda.networks import build_network
from sda.networks.layers import pad
from sda.static import static_fields
from sda.window import WindowDenoiser

GLOBE = Layout(
    ("u", "v"),
    6.0,
    {"lat": np.array([-67.5, -22.5, 22.5, 67.5]), "lon": np.arange(8) * 45.0},
    {"lon": 360.0},
    units={"lat": "degrees_north", "lon": "degrees_east"},
)
BASIN = Layout(
    ("a", "b"),
    1.0,
    {"y": np.arange(4.0), "x": np.arange(6.0)},
    mask=np.arange(24).reshape(4, 6) % 7 > 0,
)
MIXED = [
    ((False, True), False),
    ((True, False), False),
    ((False, True), True),
]
NETWORKS = [
    {"name": "gated", "width": 8, "depth": 2, "dilations": [1, 2]},
    {"name": "unet", "widths": [8, 12], "depths": [1, 1]},
]


def margins(x: Tensor, width: int, periodic: tuple[bool, bool], pole: bool) -> Tensor:
    """The same from torch's own padding, and from the globe continued over both poles."""

    if pole:
        over = x.flip(-2).roll(x.shape[-1] // 2, -1)
        x = torch.cat((over[..., -width:, :], x, over[..., :width, :]), dim=-2)
    else:
        mode = "circular" if periodic[0] else "replicate"
        x = torch.nn.functional.pad(x, (0, 0, width, width), mode=mode)
    mode = "circular" if periodic[1] else "replicate"

    return torch.nn.functional.pad(x, (width, width, 0, 0), mode=mode)


def normal(*shape: int) -> Tensor:
    return torch.randn(shape, generator=torch.Generator().manual_seed(0), dtype=torch.float64)


@pytest.mark.parametrize(("periodic", "pole"), MIXED)
def test_margins(periodic: tuple[bool, bool], pole: bool) -> None:
    """Values, their place in memory, and derivatives of all kinds."""

    x = normal(1, 2, 4, 4).contiguous(memory_format=torch.channels_last).requires_grad_()
    for width in (1, 3):

        def ours(x: Tensor, width: int = width) -> Tensor:
            return pad(x, width, periodic, pole)

        def theirs(x: Tensor, width: int = width) -> Tensor:
            return margins(x, width, periodic, pole)

        padded = ours(x)
        assert torch.equal(padded, theirs(x))
        assert padded.is_contiguous(memory_format=torch.channels_last)
        # Fields that have their channels first are padded alike.
        assert torch.equal(pad(x.detach().contiguous(), width, periodic, pole), padded)
        assert torch.autograd.gradcheck(ours, x, check_forward_ad=True, check_batched_grad=True)
        assert torch.autograd.gradgradcheck(ours, x)
        v = normal(*padded.shape)
        torch.testing.assert_close(
            torch.func.vjp(ours, x.detach())[1](v)[0], torch.func.vjp(theirs, x.detach())[1](v)[0]
        )
        many = torch.stack([x.detach(), 2 * x.detach()])
        torch.testing.assert_close(torch.vmap(ours)(many)[1], 2 * padded.detach())


def test_over_both_poles_and_back_is_once_around() -> None:
    """The globe as half of a torus: a circle of longitude goes through both poles."""

    x = normal(1, 2, 4, 6)
    torus = torch.cat((x, x.flip(-2).roll(3, -1)), dim=-2)
    around = pad(torus, 4, (True, True))

    torch.testing.assert_close(pad(x, 4, (False, True), pole=True), around[..., :12, :])


@pytest.mark.parametrize("network", NETWORKS)
@pytest.mark.parametrize("pole", [False, True])
def test_networks_are_equivariant_in_longitude_only(network: dict, pole: bool) -> None:
    torch.manual_seed(0)
    net = build_network(**network, channels_in=3, channels_out=2, periodic=(False, True), pole=pole)
    torch.nn.init.normal_(net.last.conv.weight, std=0.1)
    net.requires_grad_(False)
    x, s = torch.randn(2, 3, 4, 8), torch.zeros(2)
    out = net(x, s)

    assert out.is_contiguous(memory_format=torch.channels_last)
    for shift in (2, 4):
        torch.testing.assert_close(
            net(x.roll(shift, -1), s), out.roll(shift, -1), rtol=1e-4, atol=1e-5
        )
    assert (net(x.roll(1, -2), s) - out.roll(1, -2)).abs().max() > 1e-3


@pytest.mark.parametrize("pole", [False, True])
def test_the_other_side_of_the_pole_is_a_neighbour(pole: bool) -> None:
    torch.manual_seed(0)
    net = build_network("gated", 3, 2, (False, True), width=8, depth=1, pole=pole)
    torch.nn.init.normal_(net.last.conv.weight, std=0.1)
    net.requires_grad_(False)
    x, s = torch.randn(1, 3, 6, 20), torch.zeros(1)
    moved = x.clone()
    moved[:, :, 0, 0] += 1
    change = (net(moved, s) - net(x, s)).abs().amax((0, 1))

    assert change[0, 1] > 1e-4
    assert (change[0, 10] > 1e-4) == pole
    assert change[-1].max() == 0


def climatology(layout: Layout) -> Climatology:
    """Of smooth noise on a layout."""

    x = torch.randn(6, 12, *layout.shape, generator=torch.Generator().manual_seed(0))
    x = x + x.roll(1, 1) + x.roll(1, -1) + x.cumsum(-2)
    x = x if layout.mask is None else x * torch.from_numpy(layout.mask)

    return Climatology.fit(layout.to_dataset(x), 4)


@pytest.mark.parametrize("preconditioning", ["wiener", "karras"])
@pytest.mark.parametrize("network", NETWORKS)
def test_nothing_is_learned_of_land(network: dict, preconditioning: str) -> None:
    """The estimate is zero there, and what is there is not seen."""

    torch.manual_seed(0)
    denoiser = WindowDenoiser(climatology(BASIN), 4, network, preconditioning)
    torch.nn.init.normal_(denoiser.network.last.conv.weight, std=0.1)
    denoiser.requires_grad_(False)
    x = torch.randn(2, 4, *BASIN.shape)
    estimate = denoiser.denoise(x, 0.3)
    land = ~torch.from_numpy(np.asarray(BASIN.mask))

    assert (estimate[..., land] == 0).all()
    assert (estimate - denoiser.covariance.wiener(x, 0.3)).abs().max() > 1e-3
    x[..., land] += 7
    torch.testing.assert_close(denoiser.denoise(x, 0.3), estimate)


def test_static_fields_of_a_globe_and_of_a_basin() -> None:
    """By default sine and cosine of latitude, the mask and the relief; each of unit mean square."""

    globe = GLOBE.to_dataset(np.zeros((1, 2, *GLOBE.shape)))
    height = xr.DataArray(np.arange(32.0).reshape(4, 8), dims=("lat", "lon"))
    found = static_fields(globe.assign(orography=height), None, GLOBE)
    assert found is not None and found.shape == (3, 4, 8)
    torch.testing.assert_close(found.square().mean((1, 2)), torch.ones(3))
    phi = np.deg2rad(GLOBE.coords["lat"])
    for field, values in ((found[0], np.sin(phi)), (found[1], np.cos(phi))):
        ratio = field[:, 3].double().numpy() / values
        np.testing.assert_allclose(ratio, ratio[0], rtol=1e-6)
    basin = BASIN.to_dataset(np.zeros((1, 2, *BASIN.shape)))
    mask = static_fields(basin, None, BASIN)
    assert mask is not None
    assert torch.equal(mask[0] > 0, torch.from_numpy(np.asarray(BASIN.mask)))
    plane = Layout(("a",), 1.0, {"x": np.arange(4.0)}, {"x": 4.0})
    assert static_fields(plane.to_dataset(np.zeros((1, 2, 1, 4))), None, plane) is None


def flow(layout: Layout) -> Callable[[], object]:
    return lambda: WindowDenoiser(climatology(layout), 4, NETWORKS[0], advection=True)


SQUARE = Layout(
    ("psi1", "psi2"), 1.0, {"y": np.arange(4.0), "x": np.arange(4.0)}, {"y": 4.0, "x": 4.0}
)


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (flow(GLOBE), "two velocities, u and v, on a doubly periodic square, got .*'lat': 4"),
        (flow(SQUARE), "two velocities, u and v, .* got variables .'psi1', 'psi2'"),
        (flow(BASIN), "with land: leave them out"),
        (lambda: build_network("gated", 2, 2, (True, True), pole=True), "pole needs .* latitude"),
        (lambda: pad(torch.zeros(1, 1, 4, 5), 1, (False, True), True), "even number of longitudes"),
        (
            lambda: static_fields(xr.Dataset(), ["cos_latitude"], BASIN),
            "units degrees_north, degrees_east",
        ),
        (lambda: static_fields(xr.Dataset(), ["mask"], GLOBE), "no mask"),
        (
            lambda: static_fields(xr.Dataset(), ["depth"], GLOBE),
            "'depth' is not among .* and .'cos_latitude', 'mask', 'sin_latitude'",
        ),
    ],
)
def test_errors(call: Callable[[], object], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        call()
