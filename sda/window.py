"""The window network: a learned denoiser of a few successive states.

Most of what a network first learns of a denoiser is linear, and the linear part is known: it is the
Wiener filter of the climatology. For fields the network learns the rest,

.. math:: D(x, s) = W(x, s) + r(s) \\, \\mathrm{net}\\left(
    \\frac{W(x, s)}{p(s)}, \\frac{x - W(x, s)}{s}, \\log s \\right),

with the Wiener estimate W, its power p(s)², and its mean squared error r(s)². For vectors the same
is written in the eigenbasis of Σ, whitened on both sides. The scalar preconditioning of Karras et
al. is there to be compared with. Outside the range of noise levels that a network was trained on,
the Wiener filter stands alone.

A window may come with a context, fields that are given beside it without noise: further channels of
the same frames, after those of the states. The network sees them, the Wiener filter does not.

References:
    | Karras et al. (2022), Elucidating the design space of diffusion-based generative models,
      arXiv 2206.00364.
"""

import math
from collections.abc import Mapping
from typing import Any

import torch
import torch.nn as nn
from torch import Tensor

from dynamics.layout import Layout

from .climatology import Climatology
from .covariance import Covariance
from .denoiser import Denoiser, broadcast, level, levels
from .networks import build_network, options_of
from .plane import PlaneFlow

PRECONDITIONINGS = ("wiener", "karras")


class WindowDenoiser(Denoiser):
    """A learned denoiser of windows of normalised anomalies, `(B, window, channel, *space)`.

    Arguments:
        climatology: The climatology of the states.
        window: The number of frames.
        network: The network's name and options, see `sda.networks.build_network`.
        preconditioning: "wiener" or "karras".
        noise_range: The noise levels that the network is trained on. Beyond them the Wiener filter
            stands alone ("wiener" only).
        static: Constant fields that the network sees, with shape `(k, *space)`, see `sda.static`.
        advection: Whether the network sees the advection `−P(u·∇u)` of its Wiener estimate and the
            residual of the trapezoidal rule (velocities `u`, `v` on a doubly periodic square).
        incompressible: Whether the network's output is a streamfunction, so that its part of the
            estimate is free of divergence (the same states).
        context: The number of channels of a frame that are given beside the states ("wiener" and
            fields only), see `sda.context`.

    Attributes:
        precision: The dtype in which the network alone is evaluated, float32 or bfloat16.

    Raises:
        ValueError: If an argument does not fit the climatology's layout.
    """

    mean: Tensor
    scale: Tensor
    static: Tensor
    sea: Tensor | None

    def __init__(
        self,
        climatology: Climatology,
        window: int,
        network: Mapping[str, Any],
        preconditioning: str = "wiener",
        noise_range: tuple[float, float] = (0.008, 100.0),
        static: Tensor | None = None,
        advection: bool = False,
        incompressible: bool = False,
        context: int = 0,
    ) -> None:
        super().__init__()
        layout = climatology.layout
        if preconditioning not in PRECONDITIONINGS:
            raise ValueError(
                f"preconditioning must be one of {PRECONDITIONINGS}, got {preconditioning!r}"
            )
        if window < 1:
            raise ValueError(f"window must be at least 1, got {window}")
        if not 0 < noise_range[0] < noise_range[1]:
            raise ValueError(f"noise_range must be increasing and positive, got {noise_range}")
        if advection or incompressible:
            check_plane_flow(layout)
        if context and (preconditioning != "wiener" or not layout.dims):
            raise ValueError(
                f"a context needs fields and preconditioning='wiener', got {layout.dims} and "
                f"{preconditioning!r}"
            )
        self.layout, self.window, self.context = layout, window, context
        self.preconditioning = preconditioning
        self.noise_range = (noise_range[0], noise_range[1])
        self.advection, self.incompressible = advection, incompressible
        self.covariance: Covariance = climatology.covariance(window)
        self.register_buffer("mean", climatology.mean, persistent=False)
        self.register_buffer("scale", climatology._scale, persistent=False)
        fields = torch.zeros(0, *layout.shape[1:]) if static is None else static.float()
        if fields.shape[1:] != layout.shape[1:]:
            raise ValueError(
                f"static fields must have shape (k, {', '.join(map(str, layout.shape[1:]))}), got "
                f"{tuple(fields.shape)}"
            )
        self.register_buffer("static", fields)
        # The network neither sees nor changes what is on land, where there are no states.
        sea = None if layout.mask is None else torch.from_numpy(layout.mask).float()
        self.register_buffer("sea", sea, persistent=False)

        folded = window * layout.shape[0]
        if not layout.dims:
            channels_in, channels_out = folded, folded
        else:
            channels_in = folded * (2 if preconditioning == "wiener" else 1) + len(fields)
            channels_in += window * context
            channels_out = window if incompressible else folded
        if advection or incompressible:
            size = (layout.shape[1], layout.shape[2])
            self.flow = PlaneFlow(size, float(layout.period[layout.dims[0]]))
        if advection:
            channels_in += (2 * window - 1) * 2
            self.increment = max(_increment(climatology.covariance(2)), 1e-3)
        self.precision = torch.float32
        name, options = options_of(network)
        self.network_config = {"name": name, **options}
        self.network: nn.Module = build_network(
            name, channels_in, channels_out, layout.periodic, **options
        )

    def residual_variance(self, s: Tensor) -> Tensor:
        """The mean squared error of the Wiener filter over all cells, with the shape of `s`.

        It is what losses are relative to: cells of land count in both, with no error.
        """

        share = self.covariance.size / math.prod(self.covariance.shape)

        return share * self.covariance.wiener_variance(s)

    def split(self, x: Tensor) -> tuple[Tensor, Tensor]:
        """The states of windows, and the context beside them."""

        self._check(x)
        count = self.layout.shape[0]

        return x[:, :, :count], x[:, :, count:]

    def denoise(self, x: Tensor, s: Tensor | float) -> Tensor:
        x, context = self.split(x)
        if self.preconditioning == "karras":
            return self._karras(x, levels(s, x))
        inside = self._inside(s)
        if inside is False:
            return self.covariance.wiener(x, s)
        s = level(s, x)
        if not self.layout.dims:
            estimate = self._vector(x, s, 1.0)
            if inside is True:
                return estimate
            return torch.where(broadcast(inside, x), estimate, self.covariance.wiener(x, s))
        w = self.covariance.wiener(x, s)

        return w + self._limit(self._field(x, w, s, context), inside)

    def residual(self, x: Tensor, s: Tensor | float) -> Tensor:
        """What the network adds to the Wiener filter, `D(x, s) − W(x, s)`.

        Arguments:
            x: Noisy windows, with shape `(B, window, channel, *space)`, with their context.
            s: The noise level, with shape `()` or `(B)`.
        """

        if self.preconditioning == "karras":
            return self.parts(x, s)[1]
        x, context = self.split(x)
        inside = self._inside(s)
        if inside is False:
            return torch.zeros_like(x)
        s = level(s, x)
        if not self.layout.dims:
            return self._limit(self._vector(x, s, 0.0), inside)

        return self._limit(self._field(x, self.covariance.wiener(x, s), s, context), inside)

    def parts(self, x: Tensor, s: Tensor | float) -> tuple[Tensor, Tensor]:
        """The Wiener filter and the residual, which add up to the estimate, see `residual`."""

        x, context = self.split(x)
        inside = self._inside(s)
        s = level(s, x)
        w = self.covariance.wiener(x, s)
        if self.preconditioning == "karras":
            return w, self._karras(x, levels(s, x)) - w
        rest = self._field(x, w, s, context) if self.layout.dims else self._vector(x, s, 0.0)

        return w, self._limit(rest, inside)

    def _check(self, x: Tensor) -> None:
        window, channels, *space = self.covariance.shape
        expected = (window, channels + self.context, *space)
        if x.shape[1:] != expected:
            raise ValueError(
                f"expected windows of shape (batch, {', '.join(map(str, expected))}), "
                f"got {tuple(x.shape)}"
            )

    def _inside(self, s: Tensor | float) -> Tensor | bool:
        """Whether the noise level is one that the network was trained on.

        True or False if it is the same for all of the batch, which a GPU is not asked.
        """

        low, high = self.noise_range
        if not torch.is_tensor(s):
            return low <= s <= high
        inside = (s >= low) & (s <= high)
        if inside.device.type != "cpu":
            return inside
        if bool(inside.all()):
            return True

        return inside if bool(inside.any()) else False

    def _limit(self, residual: Tensor, inside: Tensor | bool) -> Tensor:
        """Leaves the Wiener filter alone outside the range."""

        if inside is True:
            return residual
        if inside is False:
            return torch.zeros_like(residual)

        return torch.where(broadcast(inside, residual), residual, 0.0)

    def _evaluate(self, inputs: Tensor, s: Tensor) -> Tensor:
        """Evaluates the network, and only the network, in the precision asked for."""

        low = self.precision == torch.bfloat16
        with torch.autocast(inputs.device.type, dtype=torch.bfloat16, enabled=low):
            return self.network(inputs, levels(s, inputs).log()).to(inputs.dtype)

    def _vector(self, x: Tensor, s: Tensor, linear: float) -> Tensor:
        """The network's part, and `linear` times the Wiener filter's."""

        z, e, q = self.covariance.transform(x), self.covariance.eigenvalues, s[..., None].square()
        out = self._evaluate(z * torch.rsqrt(e + q), s)
        gain = e / (e + q)

        return self.covariance.inverse(linear * z * gain + out * s[..., None] * gain.sqrt())

    def _field(self, x: Tensor, w: Tensor, s: Tensor, context: Tensor) -> Tensor:
        """The network's part, given the Wiener estimate `w` and the context."""

        r = broadcast(self.covariance.wiener_variance(s).sqrt(), x)
        p = broadcast(self.covariance.wiener_power(s).clamp(min=1e-12).sqrt(), x)
        noise = self._at_sea((x - w) / broadcast(s, x))
        inputs = [(w / p).flatten(1, 2), noise.flatten(1, 2)]
        inputs.append(self.static.expand(len(x), *self.static.shape))
        if self.context:
            inputs.append(self._at_sea(context).flatten(1, 2))
        if self.advection:
            inputs.extend(self._advection(w, r))
        out = self._evaluate(torch.cat(inputs, dim=1), s)

        if self.incompressible:
            return r * self.flow.curl(out)

        return r * self._at_sea(out.unflatten(1, self.covariance.shape[:2]))

    def _at_sea(self, x: Tensor) -> Tensor:
        """Zero on land."""
        return x if self.sea is None else x * self.sea

    def _karras(self, x: Tensor, s: Tensor) -> Tensor:
        x = self._at_sea(x)
        total = broadcast(torch.sqrt(1 + s.square()), x)
        if self.layout.dims:
            static = self.static.expand(len(x), *self.static.shape)
            inputs = torch.cat(((x / total).flatten(1, 2), static), dim=1)
        else:
            inputs = (x / total).flatten(1)
        out = self._evaluate(inputs, s)
        if self.incompressible:
            out = self.flow.curl(out)

        return x / total.square() + broadcast(s, x) / total * self._at_sea(out.reshape(x.shape))

    def _advection(self, w: Tensor, r: Tensor) -> list[Tensor]:
        """The change by advection within one dt, and the residual of the trapezoidal rule."""

        u = torch.addcmul(self.mean, self.scale, w)
        q = self.flow.advection(u) * (self.layout.dt / self.scale)
        left = torch.sub(w, q, alpha=0.5)[:, 1:] - torch.add(w, q, alpha=0.5)[:, :-1]

        return [
            (q / self.increment).clamp(-8, 8).flatten(1, 2),
            (left / r).clamp(-8, 8).flatten(1, 2) * 0.7,
        ]

    def to_json(self) -> dict[str, Any]:
        return {
            "window": self.window,
            "network": self.network_config,
            "preconditioning": self.preconditioning,
            "noise_range": list(self.noise_range),
            "advection": self.advection,
            "incompressible": self.incompressible,
            **({"context": self.context} if self.context else {}),
        }


def check_plane_flow(layout: Layout) -> None:
    """Raises a `ValueError` unless states are the velocities of a doubly periodic square."""

    square = len(layout.dims) == 2 and all(layout.periodic) and layout.shape[1] == layout.shape[2]
    if not square or layout.variables != ("u", "v") or layout.mask is not None:
        grid = dict(zip(layout.dims, layout.shape[1:], strict=True))
        land = " with land" if layout.mask is not None else ""
        raise ValueError(
            f"advection and incompressible need two velocities, u and v, on a doubly periodic "
            f"square, got variables {layout.variables} on {grid} with period={dict(layout.period)}"
            f"{land}: leave them out, or train on velocities"
        )


def _increment(pair: Covariance) -> float:
    """The root mean square difference of two successive frames."""

    value = pair.apply(lambda e: e, _difference_probe(pair.shape)).flatten(1)
    probe = _difference_probe(pair.shape).flatten(1)

    return float((value * probe).sum(1).mean().clamp(min=0).sqrt())


def _difference_probe(shape: tuple[int, ...]) -> Tensor:
    """Unit differences between the two frames at every channel's first cell."""

    probe = torch.zeros(shape[1], *shape)
    for channel in range(shape[1]):
        cell = (channel, *[0] * (len(shape) - 2))
        probe[(channel, 0, *cell)] = -1
        probe[(channel, 1, *cell)] = 1

    return probe
