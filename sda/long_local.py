"""The posterior denoiser of each block of a long trajectory."""

import hashlib
import math
from collections import OrderedDict
from collections.abc import Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from torch import Tensor

from .covariance import Covariance
from .denoiser import Denoiser
from .guidance.base import PosteriorDenoiser
from .guidance.solver import ObservationSpace
from .long_blocks import Blocks, Part, Portions
from .long_plan import DENSE
from .trajectory import TrajectoryDenoiser

if TYPE_CHECKING:
    from .observation import Observations
    from .prior import Prior


# The ways of being observed whose systems are kept: that of inner blocks, and of the ends.
SHARED = 4


class Known(Denoiser):
    """The Wiener filter, and a residual of the network that is known already.

    Arguments:
        covariance: The covariance of the range.
        linear: Whether the Wiener filter is not part of the residual.
        exposure: See `TrajectoryDenoiser`.
    """

    residual: Tensor

    def __init__(self, covariance: Covariance, linear: bool, exposure: float) -> None:
        super().__init__()
        self.covariance, self.linear, self.exposure = covariance, linear, exposure

    def denoise(self, x: Tensor, s: Tensor | float) -> Tensor:
        if not self.linear:
            return self.residual
        return self.covariance.wiener(x, s * (1 - self.exposure)) + self.residual


class Unobserved(Denoiser):
    """A denoiser of a range without observations, which knows its climatological covariance."""

    def __init__(self, denoiser: Denoiser, covariance: Covariance) -> None:
        super().__init__()
        self.inner, self.covariance = denoiser, covariance

    def denoise(self, x: Tensor, s: Tensor | float) -> Tensor:
        return self.inner.denoise(x, s)


@dataclass
class Local:
    """The posterior denoiser of one block.

    Attributes:
        part: The block.
        denoiser: Guided where there are observations.
        numbers: The numbers of its observations among all.
        known: The denoiser that is guided, where the network is evaluated before.
        table: The level of the pilots' covariance that it has.
    """

    part: Part
    denoiser: Denoiser
    numbers: np.ndarray | None
    known: Known | None = None
    table: float | None = None


class Locals:
    """The posterior denoisers of all blocks, made when they are needed and kept as room allows.

    Arguments:
        prior: The prior, on the device.
        observations: The observations.
        time: The times of the whole trajectory.
        blocks: The blocks.
        method, options: The guidance.
        dtype, device, precision: See `sda.assimilate`.
        memory: The memory budget.
    """

    def __init__(
        self,
        prior: "Prior",
        observations: "Observations",
        time: np.ndarray,
        blocks: Blocks,
        method: str,
        options: Mapping[str, Any],
        *,
        dtype: torch.dtype,
        device: torch.device,
        memory: int | str,
        precision: str = "float32",
    ) -> None:
        from .budget import size_in_bytes

        self.prior, self.time, self.parts = prior, time, blocks.parts
        self.blocks, self.method, self.options = blocks, method, dict(options)
        self.dtype, self.device, self.memory, self.precision = dtype, device, memory, precision
        self.portions = Portions(observations, time, prior.layout.dt)
        self.portions.check(self.parts)
        self.split = method == "static" and prior.denoiser is not None
        if method != "static" and self.options.get("form", "auto") == "auto":
            # The same for all blocks, also for those at the ends.
            values = blocks.extent * math.prod(prior.layout.shape)
            self.options["form"] = "dense" if values <= DENSE else "columns"
        self.evaluations = self.vjps = 0
        self.room = size_in_bytes(memory) // 4
        self._made: OrderedDict[int, Local] = OrderedDict()
        self._trajectory: dict[int, Denoiser] = {}
        self._spaces: OrderedDict[bytes, ObservationSpace] = OrderedDict()

    def __getitem__(self, k: int) -> Local:
        if k in self._made:
            self._made.move_to_end(k)
            return self._made[k]
        local = self._make(self.parts[k])
        while self._made and self._size() > self.room:
            self._made.popitem(last=False)
        self._made[k] = local

        return local

    def forget(self) -> None:
        """Drops what is kept for a noise level."""

        for space in self._kept_spaces():
            space._factors.clear()

    def trajectory(self, length: int) -> Denoiser:
        """The prior's denoiser of a range."""

        from .assimilation import trajectory_denoiser

        if length not in self._trajectory:
            self._trajectory[length] = trajectory_denoiser(
                self.prior, length, self.dtype, self.memory, self.precision
            )

        return self._trajectory[length]

    def residual_part(self, part: Part) -> Part:
        """The range that the network needs for the core of a block."""

        window = self.prior.window
        return self.blocks.narrow(part, window, max(1, window // 2), window)

    def residual(self, x: Tensor, s: float) -> Tensor:
        """What the network adds to the Wiener filter on a range, `(member, time, …)`."""

        self.evaluations += len(x)
        denoiser = self.trajectory(x.shape[1])
        assert isinstance(denoiser, TrajectoryDenoiser)  # there is a network
        return denoiser.residual(x, torch.as_tensor(s, dtype=x.dtype, device=x.device))

    def _make(self, part: Part) -> Local:
        from .guidance import guide

        length = part.high - part.low
        climatology = self.prior.climatology
        covariance = climatology.covariance(length, self.dtype)
        known: Known | None = None
        if self.split:
            window = self.prior.denoiser
            assert window is not None
            known = Known(covariance, window.preconditioning == "wiener", self.prior.exposure)
        denoiser = known or self.trajectory(length)
        found = self.portions.of(part)
        if found is None:
            return Local(part, Unobserved(denoiser, covariance), None, known)
        observations, numbers = found
        likelihood = self.prior.likelihood(
            observations, self.time[part.low : part.high], self.dtype, self.device
        )
        guided = guide(self.method, denoiser, likelihood, covariance, **self.options)
        if guided.space.direct:
            # Blocks that are observed in the same way share all systems that are solved.
            key = signature(guided)
            guided.space = self._spaces.setdefault(key, guided.space)
            self._spaces.move_to_end(key)
            while len(self._spaces) > SHARED:
                self._spaces.popitem(last=False)

        return Local(part, guided, numbers, known)

    def _kept_spaces(self) -> list[ObservationSpace]:
        """The systems of the climatology that are kept, each once."""

        denoisers = [local.denoiser for local in self._made.values()]
        spaces = [each.space for each in denoisers if isinstance(each, PosteriorDenoiser)]
        return list({id(space): space for space in [*spaces, *self._spaces.values()]}.values())

    def _size(self) -> int:
        """The bytes of the matrices that are kept."""

        tensors: list[Tensor] = []
        for space in self._kept_spaces():
            tensors += [*space._factors.values()]
            tensors += [] if space._columns is None else [space._columns]
        for local in self._made.values():
            tensors += getattr(local.denoiser, "_table", {}).values()
            for other in getattr(local.denoiser, "_cache", {}).values():
                basis = getattr(getattr(other, "covariance", None), "basis", None)
                tensors += [] if basis is None else [basis]

        return sum(each.numel() * each.element_size() for each in tensors)


def signature(guided: PosteriorDenoiser) -> bytes:
    """What two blocks have in common that are observed in the same way, up to the values seen.

    Two linear operators that agree on noise, to the bit, are one.
    """

    likelihood = guided.likelihood
    generator = torch.Generator().manual_seed(0)
    probes = torch.randn((2, *likelihood.shape), generator=generator).to(likelihood.y)
    probes[1] = 0
    seen = likelihood.H(probes)
    parts = (torch.tensor(likelihood.shape), seen, likelihood.std)

    return hashlib.sha256(b"".join(p.cpu().numpy().tobytes() for p in parts)).digest()
