"""Denoisers: the interface, windows, and the composition of trajectories."""

import math

import azula.denoise
import azula.noise
import numpy as np
import pytest
import torch
from azula.linalg.covariance import FullCovariance
from torch import Tensor

from dynamics.layout import Layout
from sda.climatology import Climatology
from sda.covariance import DenseCovariance
from sda.denoiser import Denoiser, GaussianDenoiser, as_denoiser
from sda.networks.layers import pad
from sda.plane import PlaneFlow
from sda.trajectory import TrajectoryDenoiser, window_owners, window_starts
from sda.window import WindowDenoiser

SQUARE = Layout(
    ("u", "v"),
    0.2,
    {dim: (np.arange(8) + 0.5) * 2 * np.pi / 8 for dim in ("y", "x")},
    {"y": 2 * np.pi, "x": 2 * np.pi},
)
RING = Layout(("h",), 0.1, {"site": np.arange(12.0)}, {"site": 12.0})
VECTOR = Layout(("a", "b", "c"), 0.1)
LINE = Layout(("h",), 0.1, {"z": np.arange(9.0)})


def climatology(layout: Layout, window: int = 4) -> Climatology:
    x = torch.randn(6, 20, *layout.shape, generator=torch.Generator().manual_seed(0)).double()
    for axis in range(-len(layout.dims), 0):
        x = x + x.roll(1, axis)

    return Climatology.fit(layout.to_dataset(x + x.roll(1, 1)), window)


def covariance(length: int, seed: int = 0) -> DenseCovariance:
    a = torch.randn(3 * length, 3 * length, generator=torch.Generator().manual_seed(seed)).double()

    return DenseCovariance(a @ a.T / (3 * length), (length, 3), torch.float64)


@pytest.mark.parametrize("schedule", [azula.noise.VESchedule(), azula.noise.VPSchedule()])
def test_azula_interface_agrees_with_azula(schedule: azula.noise.Schedule) -> None:
    sigma = covariance(4)
    ours = GaussianDenoiser(sigma, schedule)
    flat = azula.denoise.GaussianDenoiser(
        torch.zeros(12, dtype=torch.float64),
        FullCovariance(sigma.basis, sigma.eigenvalues),
        schedule,
    )
    x, t = torch.randn(5, 4, 3, dtype=torch.float64), torch.tensor(0.6, dtype=torch.float64)

    torch.testing.assert_close(ours(x, t).mean.flatten(1), flat(x.flatten(1), t).mean)
    s = torch.tensor([0.7], dtype=torch.float64)
    foreign = as_denoiser(Flattened(flat))
    torch.testing.assert_close(
        foreign.denoise(x, s[0]), ours.denoise(x, s[0]), rtol=1e-5, atol=1e-6
    )
    with pytest.raises(ValueError, match="noise levels in"):
        foreign.denoise(x, 1e9)
    with pytest.raises(TypeError, match="got Linear"):
        as_denoiser(torch.nn.Linear(1, 1))


class Flattened(azula.denoise.Denoiser):
    """A denoiser of vectors as one of trajectories."""

    def __init__(self, inner: azula.denoise.Denoiser) -> None:
        super().__init__()
        self.inner, self.schedule = inner, inner.schedule

    def forward(self, x_t: Tensor, t: Tensor, **kwargs: object) -> azula.denoise.Posterior:
        mean = self.inner(x_t.flatten(1).double(), t.double()).mean.reshape(x_t.shape)

        return azula.denoise.DiracPosterior(mean=mean)


NETWORKS = [
    (VECTOR, {"name": "mlp", "width": 16, "hidden": 16, "depth": 2}, {}),
    (RING, {"name": "gated", "width": 8, "depth": 2}, {}),
    (LINE, {"name": "gated", "width": 8, "depth": 2}, {}),
    (RING, {"name": "unet", "widths": [8, 12], "depths": [1, 1]}, {}),
    (SQUARE, {"name": "unet", "widths": [8, 12], "depths": [1, 1]}, {}),
    (SQUARE, {"name": "gated", "width": 8, "depth": 2, "dilations": [1, 2]}, {"advection": True}),
    (SQUARE, {"name": "gated", "width": 8, "depth": 2}, {"incompressible": True}),
]


def build(layout: Layout, network: dict, options: dict, **more: object) -> WindowDenoiser:
    torch.manual_seed(0)
    denoiser = WindowDenoiser(climatology(layout), 4, network, **options, **more)
    for parameter in denoiser.network.last.parameters():
        torch.nn.init.normal_(parameter, std=0.1)

    return denoiser.requires_grad_(False)


@pytest.mark.parametrize(("layout", "network", "options"), NETWORKS)
def test_window_denoiser_starts_at_the_wiener_filter(
    layout: Layout, network: dict, options: dict
) -> None:
    denoiser = WindowDenoiser(climatology(layout), 4, network, **options)
    x = torch.randn(3, 4, *layout.shape)

    for s in (1e-4, 0.3, 1e3):
        torch.testing.assert_close(denoiser.denoise(x, s), denoiser.covariance.wiener(x, s))


@pytest.mark.parametrize(("layout", "network", "options"), NETWORKS)
@pytest.mark.parametrize("preconditioning", ["wiener", "karras"])
def test_members_do_not_see_each_other(
    layout: Layout, network: dict, options: dict, preconditioning: str
) -> None:
    if preconditioning == "karras" and "advection" in options:
        options = {}
    denoiser = build(layout, network, options, preconditioning=preconditioning)
    x, s = torch.randn(3, 4, *layout.shape), torch.tensor([0.05, 0.3, 2.0])
    together = denoiser.denoise(x, s)

    for i in range(3):
        alone = denoiser.denoise(x[i : i + 1], s[i])
        torch.testing.assert_close(together[i : i + 1], alone, rtol=1e-4, atol=1e-5)
    assert (together - denoiser.covariance.wiener(x, s)).abs().max() > 1e-3


@pytest.mark.parametrize(
    ("layout", "network", "options"), [n for n in NETWORKS if n[0] is not LINE][1:]
)
def test_fields_are_translation_equivariant(layout: Layout, network: dict, options: dict) -> None:
    denoiser = build(layout, network, options)
    denoiser.mean.zero_()
    x, shift = torch.randn(2, 4, *layout.shape), 2

    moved = denoiser.denoise(x.roll(shift, -1), 0.3)
    torch.testing.assert_close(
        moved, denoiser.denoise(x, 0.3).roll(shift, -1), rtol=1e-4, atol=1e-5
    )


def test_incompressible_output_has_no_divergence() -> None:
    from dynamics.spectral import divergence

    denoiser = build(SQUARE, {"name": "gated", "width": 8, "depth": 2}, {"incompressible": True})
    x = torch.randn(2, 4, *SQUARE.shape)
    residual = denoiser.denoise(x, 0.3) - denoiser.covariance.wiener(x, 0.3)

    assert residual.abs().max() > 1e-3
    # The two anomalies have about the same scale, and the same where the climatology says so.
    assert divergence(residual).abs().max() < 1e-5 * residual.abs().max() * 8


def test_advection_is_minus_u_grad_u_without_its_gradient_part() -> None:
    y, x = torch.meshgrid(
        *[(torch.arange(32).double() + 0.5) * 2 * math.pi / 32] * 2, indexing="ij"
    )
    # ψ = cos x + cos 2y: u·∇ω is a single product, whose Poisson problem is solved by hand.
    u, v = (2 * torch.sin(2 * y)).double(), (-torch.sin(x)).double()
    # ω = −cos x − 4 cos 2y, u ω_x + v ω_y = 2 sin 2y sin x − 8 sin x sin 2y = −6 sin x sin 2y
    # ω_t = 6 sin x sin 2y, so ψ_t = −(6/5) sin x sin 2y
    expected = torch.stack(
        (12 / 5 * torch.sin(x) * torch.cos(2 * y), -6 / 5 * torch.cos(x) * torch.sin(2 * y))
    )
    found = PlaneFlow((u.shape[0], u.shape[1])).advection(torch.stack((u, v)))

    torch.testing.assert_close(found, expected.double(), rtol=1e-6, atol=1e-6)


def test_bad_windows_are_refused() -> None:
    with pytest.raises(ValueError, match="does not fit states with 0 spatial dimensions"):
        WindowDenoiser(climatology(VECTOR), 4, {"name": "gated"})
    with pytest.raises(ValueError, match="need two velocities"):
        WindowDenoiser(climatology(RING), 4, {"name": "gated"}, advection=True)
    with pytest.raises(ValueError, match="network must be one of"):
        WindowDenoiser(climatology(RING), 4, {"name": "transformer"})
    with pytest.raises(ValueError, match="needs a grid that 4 divides"):
        denoiser = WindowDenoiser(climatology(LINE), 4, {"name": "unet"})
        denoiser.denoise(torch.randn(1, 4, 1, 9), 0.3)
    with pytest.raises(ValueError, match="expected windows of shape"):
        build(*NETWORKS[0]).denoise(torch.randn(1, 5, 3), 0.3)


# Composition --------------------------------------------------------------------------------------


class Local(Denoiser):
    """A window denoiser whose answer depends on the whole window and on the place in it."""

    def denoise(self, x: Tensor, s: Tensor | float) -> Tensor:
        s = torch.as_tensor(s, dtype=x.dtype).reshape(-1, *[1] * (x.ndim - 1))
        place = torch.arange(x.shape[1], dtype=x.dtype).reshape(1, -1, *[1] * (x.ndim - 2))

        return x.sum(1, keepdim=True) * (1 + place) + s * x.square()


def slow_composition(window: Denoiser, x: Tensor, s: Tensor, frames: int, stride: int) -> Tensor:
    """The definition, frame by frame and member by member."""

    length = x.shape[1]
    starts = sorted({*range(0, length - frames + 1, stride), length - frames})
    out = torch.empty_like(x)
    for i in range(len(x)):
        for frame in range(length):

            def margin(b: int, frame: int = frame) -> int:
                return min(frame - b, b + frames - 1 - frame)

            inside = [b for b in starts if b <= frame < b + frames]
            best = max(margin(b) for b in inside)
            b = min(b for b in inside if margin(b) == best)
            out[i, frame] = window.denoise(x[i : i + 1, b : b + frames], s[i])[0, frame - b]

    return out


@pytest.mark.parametrize("frames", [1, 4, 5])
@pytest.mark.parametrize("stride", [1, 2, 4])
@pytest.mark.parametrize("length", [5, 6, 13])
@pytest.mark.parametrize("batch", [None, 1, 3])
def test_composition_equals_the_slow_definition(
    frames: int, stride: int, length: int, batch: int | None
) -> None:
    if stride > frames:
        with pytest.raises(ValueError, match="stride must be between"):
            TrajectoryDenoiser(Local(), frames, length, stride)
        return
    x = torch.randn(3, length, 2, 3, generator=torch.Generator().manual_seed(0))
    s = torch.tensor([0.1, 1.0, 2.0])
    composed = TrajectoryDenoiser(Local(), frames, length, stride, batch)

    torch.testing.assert_close(
        composed.denoise(x, s), slow_composition(Local(), x, s, frames, stride)
    )
    torch.testing.assert_close(composed.denoise(x[:1], s[0]), composed.denoise(x, s)[:1])


def test_one_window_is_the_whole_trajectory() -> None:
    x = torch.randn(2, 7, 3)
    torch.testing.assert_close(
        TrajectoryDenoiser(Local(), 7, 7).denoise(x, 0.5), Local().denoise(x, 0.5), rtol=0, atol=0
    )


def test_every_frame_has_an_owner_that_holds_it() -> None:
    for length in range(3, 30):
        for frames in range(1, length + 1):
            for stride in range(1, frames + 1):
                starts = window_starts(length, frames, stride)
                owners = window_owners(length, frames, starts)
                assert starts[-1] + frames == length
                assert all(starts[w] <= i < starts[w] + frames for i, w in enumerate(owners))


def test_gaussian_part_of_whole_trajectories_is_exact_for_a_gaussian() -> None:
    sigma = covariance(9)
    short = DenseCovariance(sigma.dense()[:12, :12], (4, 3), torch.float64)
    composed = TrajectoryDenoiser(GaussianDenoiser(short), 4, 9, covariance=(sigma, short))
    x = torch.randn(2, 9, 3, dtype=torch.float64)

    torch.testing.assert_close(composed.denoise(x, 0.5), sigma.wiener(x, 0.5))


def test_composed_error_falls_as_windows_grow() -> None:
    """An autoregression with a memory of ten frames: the loss to the joint denoiser vanishes."""

    lags = (torch.arange(64)[:, None] - torch.arange(64)).abs()
    matrix = torch.exp(-lags / 10.0).double()
    joint = DenseCovariance(matrix, (64, 1), torch.float64)
    x = joint.sample(torch.randn(200, 64, 1, generator=torch.Generator().manual_seed(0)).double())
    noisy = x + 1.0 * torch.randn(x.shape, generator=torch.Generator().manual_seed(1)).double()
    exact = joint.wiener(noisy, 1.0)
    errors = []
    for frames in (3, 5, 9, 17, 33, 64):
        part = DenseCovariance(matrix[:frames, :frames], (frames, 1), torch.float64)
        composed = TrajectoryDenoiser(GaussianDenoiser(part), frames, 64)
        errors.append(float((composed.denoise(noisy, 1.0) - exact).square().mean().sqrt()))

    assert all(a > b for a, b in zip(errors, errors[1:], strict=False)), errors
    assert errors[-1] < 1e-10 and errors[3] < 0.25 * errors[0]


@pytest.mark.parametrize("grad", [True, False])
def test_padding_keeps_the_channels_last(grad: bool) -> None:
    x = torch.randn(2, 3, 5, 4).contiguous(memory_format=torch.channels_last)
    for width in (1, 3):
        with torch.set_grad_enabled(grad):
            padded = pad(x, width, (True, True))
        expected = torch.nn.functional.pad(x, [width] * 4, mode="circular")
        assert torch.equal(padded, expected)
        assert padded.is_contiguous(memory_format=torch.channels_last)
    with pytest.raises(RuntimeError, match="wrapping around more than once"):
        pad(x, 5, (True, True))


def test_padding_has_exact_derivatives() -> None:
    generator = torch.Generator().manual_seed(0)
    x = torch.randn((2, 3, 5, 4), generator=generator, dtype=torch.float64)
    x = x.contiguous(memory_format=torch.channels_last).requires_grad_()
    for width in (1, 2, 4):

        def padded(x: torch.Tensor, width: int = width) -> torch.Tensor:
            return pad(x, width, (True, True))

        def circular(x: torch.Tensor, width: int = width) -> torch.Tensor:
            return torch.nn.functional.pad(x, [width] * 4, mode="circular")

        assert torch.autograd.gradcheck(padded, x, check_forward_ad=True, check_batched_grad=True)
        assert torch.autograd.gradgradcheck(padded, x)
        v = torch.randn(circular(x).shape, generator=generator, dtype=torch.float64)
        torch.testing.assert_close(
            torch.func.vjp(padded, x.detach())[1](v)[0],
            torch.func.vjp(circular, x.detach())[1](v)[0],
        )
        many = torch.stack([x.detach(), 2 * x.detach()])
        torch.testing.assert_close(torch.vmap(padded)(many)[1], 2 * circular(x.detach()))


@pytest.mark.parametrize(("layout", "network", "options"), NETWORKS)
@pytest.mark.parametrize("preconditioning", ["wiener", "karras"])
def test_the_wiener_filter_and_the_residual_add_up(
    layout: Layout, network: dict, options: dict, preconditioning: str
) -> None:
    if preconditioning == "karras" and "advection" in options:
        options = {}
    denoiser = build(layout, network, options, preconditioning=preconditioning)
    x = torch.randn(3, 4, *layout.shape)

    for s in (1e-4, 0.3, torch.tensor([1e-4, 0.3, 2.0]), 1e3):
        estimate, (linear, rest) = denoiser.denoise(x, s), denoiser.parts(x, s)
        torch.testing.assert_close(linear, denoiser.covariance.wiener(x, s))
        torch.testing.assert_close(linear + rest, estimate, rtol=1e-4, atol=1e-5)
        torch.testing.assert_close(denoiser.residual(x, s), rest)
