"""Priors: what is known of trajectories before they are observed.

A prior is a climatology, with a window network on top or without (the Gaussian prior), and the
layout of the states. It is saved as a folder that a text editor reads:

    prior.json                 layout, network, training, checksums
    climatology.safetensors    mean, scale, window covariance
    anomalies.safetensors      the seasonal cycle (absent where there is none)
    context.safetensors        the regression on what states are given (absent where nothing is)
    weights.safetensors        the network (absent in a Gaussian prior)
    README.md                  the model card

Nothing in it is executed or unpickled.
"""

import copy
import hashlib
import json
import os
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
import xarray as xr
from safetensors import SafetensorError
from safetensors.torch import load_file, save

from dynamics.layout import Layout

from .cf.anomalies import Anomalies
from .climatology import Climatology
from .context import Context, Given
from .covariance import Covariance
from .data import open_dataset
from .denoiser import Denoiser, GaussianDenoiser
from .inflation import cross_validate, inflate
from .symmetry import Symmetry
from .trajectory import TrajectoryDenoiser
from .window import WindowDenoiser

if TYPE_CHECKING:
    from .cf.prepare import Prepared
    from .observation import Likelihood, Observations

FORMAT = 1
SHIPPED = Path(__file__).parent / "priors"


class Prior:
    """A prior of trajectories of any length.

    Arguments:
        climatology: The climatology of the states.
        denoiser: The window network (default: none, the prior is Gaussian).
        name: A name for provenance.
        symmetries: The symmetries of the system.
        info: What else is worth knowing (data, training, scores), as plain JSON types.
        exposure: The share by which noise levels are understated in sampling, see `sda.exposure`.
        anomalies: What makes stationary anomalies of physical states, see `sda.cf.anomalies`
            (default: nothing, the climatology is that of the states themselves).
        context: What the states are given, see `sda.context` (default: nothing). Such a prior is of
            use once it is `given` it.
        langevin: Options of `sda.langevin.Langevin` that suit this prior where it smooths or
            filters, in place of those of the preset for its kind of states.

    Raises:
        ValueError: If there are anomalies and a context.
    """

    def __init__(
        self,
        climatology: Climatology,
        denoiser: WindowDenoiser | None = None,
        name: str = "unnamed",
        symmetries: Sequence[Symmetry] = (),
        info: Mapping[str, Any] | None = None,
        exposure: float = 0.0,
        anomalies: Anomalies | None = None,
        context: Context | None = None,
        langevin: Mapping[str, Any] | None = None,
    ) -> None:
        if context is not None and anomalies is not None and not anomalies.trivial:
            raise ValueError("a prior of anomalies, of transforms or seasons, takes no context")
        self.context = context
        self.climatology, self.denoiser, self.name = climatology, denoiser, name
        self.symmetries, self.info = tuple(symmetries), dict(info or {})
        self.exposure, self.langevin = exposure, dict(langevin or {})
        self.mapping = None if anomalies is None or anomalies.trivial else anomalies

    def given(self, context: xr.Dataset | str | Path) -> "Prior":
        """A copy that is conditioned on a context, for trajectories at its times.

        Arguments:
            context: A dataset, or the path of one, that has the variables of the context at all
                times of the trajectory, of one member; on another grid they are interpolated.

        Raises:
            ValueError: If the prior takes no context, or the dataset does not fit.
        """

        if self.context is None:
            raise ValueError(f"the prior {self.name} takes no context: it was trained without")
        dataset = open_dataset(context)
        values, prior = self.context.of(dataset), copy.copy(self)
        prior.mapping = Given(self.context, values, np.atleast_1d(dataset["time"].values))

        return prior

    def at(self, time: Any) -> "Prior":
        """The prior of trajectories at times: itself, or with its context at these times alone.

        Raises:
            ValueError: If there is a context that is not known at these times.
        """

        if self._known is None:
            return self
        prior = copy.copy(self)
        prior.mapping = self._known.at(time)

        return prior

    @property
    def _known(self) -> Given | None:
        """The context that the prior was given, None where it takes none."""

        if self.context is None:
            return None
        if not isinstance(self.mapping, Given):
            raise ValueError(
                f"the prior {self.name} is conditioned on {list(self.context.names)}: give it a "
                f"dataset of these first, prior.given(dataset)"
            )
        return self.mapping

    @property
    def layout(self) -> Layout:
        return self.climatology.layout

    @property
    def standard_names(self) -> dict[str, str]:
        """The CF standard names of the variables, as far as the data had them."""
        return dict(self.info.get("standard_names", {}))

    @property
    def gaussian(self) -> bool:
        """Whether there is no network."""
        return self.denoiser is None

    @property
    def window(self) -> int:
        """The number of frames that the prior needs at least."""
        return 1 if self.denoiser is None else self.denoiser.window

    def covariance(self, length: int) -> Covariance:
        """The covariance of trajectories of `length` frames of normalised anomalies."""
        return self.climatology.covariance(length)

    def likelihood(
        self,
        observations: "Observations",
        time: Any,
        dtype: torch.dtype = torch.float32,
        device: torch.device | str = "cpu",
    ) -> "Likelihood":
        """The likelihood of trajectories of normalised anomalies at times.

        Raises:
            ValueError: If an observation does not fit the layout or the times, or sees land.
        """

        self.at(time)
        given = observations.likelihood(self.layout, time, dtype=dtype, device=device)
        mean, scale = (self.climatology.get_buffer(name) for name in ("mean", "scale"))
        if self.mapping is None:
            return given.normalise(mean, scale)

        return self.mapping.normalise(given, mean, scale, time)

    def states(self, x: torch.Tensor, time: Any) -> torch.Tensor:
        """The physical states of normalised anomalies `(…, time, channel, *space)` at times."""

        self.at(time)
        z = self.climatology.denormalise(x)
        return z if self.mapping is None else self.mapping.inverse(z, time)

    def anomalies(
        self,
        x: np.ndarray,
        time: Any,
        dtype: torch.dtype = torch.float32,
        device: torch.device | str = "cpu",
    ) -> torch.Tensor:
        """The normalised anomalies of physical states `(…, time, channel, *space)` at times."""

        self.at(time)
        z = x if self.mapping is None else self.mapping.forward(x, time)
        return self.climatology.normalise(torch.from_numpy(z).to(device=device, dtype=dtype))

    def trajectory(
        self,
        length: int,
        stride: int | None = None,
        batch: int | None = None,
        gaussian_part: bool | None = None,
    ) -> Denoiser:
        """The denoiser of trajectories of `length` frames of normalised anomalies.

        Arguments:
            length: The number of frames, at least that of the window.
            stride: The distance between windows (default: half a window).
            batch: The largest number of windows in one evaluation.
            gaussian_part: Whether the linear part comes from whole trajectories rather than
                windows (default: yes, where there is a network preconditioned by it and more than
                one window).

        Raises:
            ValueError: If `length` is shorter than the window.
        """

        if self.denoiser is None:
            return GaussianDenoiser(self.covariance(length))
        linear = self.denoiser.preconditioning == "wiener"
        whole = length > self.window and linear if gaussian_part is None else gaussian_part
        if whole and not linear:
            raise ValueError("gaussian_part needs a network with Wiener preconditioning")
        pair = (self.covariance(length), self.denoiser.covariance) if whole else None
        known = None
        if self._known is not None:
            known = torch.from_numpy(self._known.features)
            if len(known) != length:
                raise ValueError(
                    f"the prior was given a context of {len(known)} states, not of {length}: it "
                    f"serves task='smooth' of all of these at once, without blocks of time"
                )

        return TrajectoryDenoiser(
            self.denoiser, self.window, length, stride, batch, pair, self.exposure, known
        )

    def with_network(self, precision: torch.dtype, compiled: bool | str = False) -> "Prior":
        """A copy that shares the weights and evaluates its network in another way.

        Arguments:
            precision: The dtype in which the network alone is evaluated, float32 or bfloat16.
            compiled: Whether the network is compiled by `torch.compile`, when it is first evaluated
                and again for other numbers of windows; or the name of a backend that compiles it.
        """

        if self.denoiser is None:
            return self
        prior, window = copy.copy(self), copy.copy(self.denoiser)
        window.precision = precision
        if compiled:
            network = copy.copy(window.network)
            network.compile(backend=compiled if isinstance(compiled, str) else "inductor")
            # The copy of a module shares the dictionary of its parts.
            window._modules = {**window._modules, "network": network}
        prior.denoiser = window

        return prior

    def to(self, device: torch.device | str) -> "Prior":
        """Moves the prior to a device."""

        self.climatology.to(device)
        if self.denoiser is not None:
            self.denoiser.to(device)

        return self

    @property
    def hash(self) -> str:
        """A SHA-256 over the climatology, the weights and the exposure correction."""

        digest = hashlib.sha256(repr(self.exposure).encode() if self.exposure else b"")
        tensors = self.climatology.tensors() | (
            {} if self.denoiser is None else self.denoiser.network.state_dict()
        )
        if self.context is not None:
            tensors |= {f"context.{name}": t for name, t in self.context.tensors().items()}
        for name, tensor in sorted(tensors.items()):
            digest.update(name.encode())
            digest.update(tensor.detach().cpu().contiguous().numpy().tobytes())
        if self.mapping is not None:
            digest.update(json.dumps(self.mapping.to_json(), sort_keys=True).encode())
            for tensor in self.mapping.tensors().values():
                digest.update(tensor.numpy().tobytes())

        return digest.hexdigest()

    def save(self, path: str | Path, card: str | None = None) -> Path:
        """Writes the prior's folder. Existing files of a prior are replaced one by one, atomically.

        Arguments:
            path: The folder.
            card: The text of the model card (default: a short one).

        Raises:
            FileExistsError: If `path` exists and is not a prior's folder.
        """

        path = Path(path)
        foreign = (
            path.is_dir()
            and any(path.iterdir())
            and not any((path / name).exists() for name in ("prior.json", "checkpoint"))
        )
        if foreign or (path.exists() and not path.is_dir()):
            raise FileExistsError(f"{path} exists and is no prior: choose another path")
        path.mkdir(parents=True, exist_ok=True)
        content = {
            "format": FORMAT,
            "name": self.name,
            "layout": self.layout.to_json(),
            "climatology": self.climatology.to_json(),
            "symmetries": [symmetry.to_json() for symmetry in self.symmetries],
            "exposure": self.exposure,
            **({"langevin": self.langevin} if self.langevin else {}),
            "denoiser": None,
            "info": self.info,
        }
        # In single precision where nothing is lost by it.
        tensors = {n: t.float() if torch.equal(t, t.float().to(t)) else t
                   for n, t in self.climatology.tensors().items()}  # fmt: skip
        write_tensors(tensors, path / "climatology.safetensors")
        checksums = {"climatology.safetensors": checksum(path / "climatology.safetensors")}
        if self.denoiser is not None:
            weights = {
                name: t.contiguous() for name, t in self.denoiser.network.state_dict().items()
            }
            weights["static"] = self.denoiser.static.contiguous()
            write_tensors(weights, path / "weights.safetensors")
            checksums["weights.safetensors"] = checksum(path / "weights.safetensors")
            content["denoiser"] = self.denoiser.to_json()
        if self.context is not None:
            content["context"] = self.context.to_json()
            write_tensors(self.context.tensors(), path / "context.safetensors")
            checksums["context.safetensors"] = checksum(path / "context.safetensors")
        elif self.mapping is not None:
            content["anomalies"] = self.mapping.to_json()
            write_tensors(self.mapping.tensors(), path / "anomalies.safetensors")
            checksums["anomalies.safetensors"] = checksum(path / "anomalies.safetensors")
        content["checksums"] = checksums
        write_text(
            card or f"# {self.name}\n\nA prior of `{', '.join(self.layout.variables)}`.\n",
            path / "README.md",
        )
        write_text(json.dumps(content, indent=1) + "\n", path / "prior.json")

        return path

    @classmethod
    def load(cls, name: str | Path, device: torch.device | str = "cpu") -> "Prior":
        """Loads a shipped prior by its name, or a prior's folder by its path.

        Raises:
            FileNotFoundError: If there is none; the message lists the shipped ones.
            ValueError: If the folder is damaged or of another format.
        """

        from .langevin import Langevin

        path = find(name)
        try:
            content = json.loads((path / "prior.json").read_text())
            if content["format"] != FORMAT:
                raise ValueError(
                    f"{path} has prior format {content['format']}, this version reads {FORMAT}: "
                    f"update sda-torch"
                )
            for file, expected in content["checksums"].items():
                if (given := checksum(path / Path(file).name)) != expected:
                    raise ValueError(
                        f"{path / file} is damaged: its SHA-256 is {given[:12]}…, expected "
                        f"{expected[:12]}…; install or train the prior again"
                    )
            layout = Layout.from_json(content["layout"])
            climatology = Climatology.from_tensors(
                layout, content["climatology"], load_file(path / "climatology.safetensors")
            )
            denoiser = None
            if content["denoiser"] is not None:
                weights = load_file(path / "weights.safetensors")
                static = weights.pop("static")
                denoiser = WindowDenoiser(climatology, static=static, **content["denoiser"])
                denoiser.network.load_state_dict(weights)
                denoiser.eval().requires_grad_(False)
            symmetries = [Symmetry(**s) for s in content["symmetries"]]
            try:
                Langevin(**content.get("langevin", {}))
            except ValueError as error:
                raise ValueError(f"{path} is a damaged prior: {error}") from error
            anomalies = None
            if "anomalies" in content:
                tensors = load_file(path / "anomalies.safetensors")
                anomalies = Anomalies.from_tensors(layout, content["anomalies"], tensors)
            context = None
            if "context" in content:
                tensors = load_file(path / "context.safetensors")
                context = Context.from_tensors(layout, content["context"], tensors)
        except FileNotFoundError as error:
            raise ValueError(
                f"{path} is an incomplete prior: {Path(error.filename).name} is missing"
            ) from error
        except (KeyError, TypeError, RuntimeError, SafetensorError, json.JSONDecodeError) as error:
            raise ValueError(f"{path} is a damaged prior: {error}") from error

        prior = cls(
            climatology,
            denoiser,
            content["name"],
            symmetries,
            content["info"],
            content.get("exposure", 0.0),
            anomalies,
            context,
            content.get("langevin"),
        )

        return prior.to(device)


class GaussianPrior(Prior):
    """The prior N(mean, Σ) of a climatology. It works for every task and needs no training."""

    @classmethod
    def fit(
        cls,
        dataset: "xr.Dataset | str | Path | Prepared",
        window: int,
        *,
        symmetries: Sequence[Symmetry] = (),
        name: str = "gaussian",
        info: Mapping[str, Any] | None = None,
        context: Sequence[str] = (),
        lags: int = 1,
        folds: int | None = None,
        **options: Any,
    ) -> "GaussianPrior":
        """Fits the climatology of a dataset, streamed, see `Climatology.fit`.

        The dataset is one of the package's own, or one that `sda.cf.prepare` has made of another.
        With a `context`, variables of it that states are given, the climatology is that of the
        residuals of a regression on these, at `lags` earlier and later times, see `sda.context`.
        With `folds` its variances are cross-validated over as many parts, see `sda.inflation`.
        """

        from .cf.prepare import Prepared
        from .cf.series import for_fitting

        info, anomalies = dict(info or {}), None
        if isinstance(dataset, Prepared):
            anomalies, info = dataset.anomalies, {**dataset.info, **info}
            options.setdefault("layout", dataset.layout)
            whole, dataset = dataset.dataset, for_fitting(dataset.dataset, window)
        else:
            whole = dataset = open_dataset(dataset)
        given = None
        if context and folds is not None:
            raise ValueError("folds do not go with a context: leave one of them out")
        if context:
            given = Context.fit(dataset, context, lags)
            dataset, options["layout"] = given.conditioned(dataset), given.layout
        climatology = Climatology.fit(dataset, window, symmetries=symmetries, **options)
        if folds is not None:
            cycle = None if anomalies is None else anomalies.cycle
            options |= {"symmetries": symmetries, "layout": climatology.layout}
            info["inflation"] = cross_validate(whole, folds=folds, cycle=cycle, **options)
            climatology = inflate(climatology, info["inflation"])

        return cls(climatology, None, name, symmetries, info, anomalies=anomalies, context=given)


def find(name: str | Path) -> Path:
    """The folder of a prior, shipped or not."""

    for path in (Path(name), SHIPPED / str(name)):
        if (path / "prior.json").is_file():
            return path
    shipped = sorted(p.parent.name for p in SHIPPED.glob("*/prior.json"))
    if Path(name).is_dir():
        raise FileNotFoundError(f"{name} is a folder without prior.json: it is no prior")

    raise FileNotFoundError(f"there is no prior {str(name)!r}: give a path, or one of {shipped}")


def checksum(path: Path) -> str:
    """The SHA-256 of a file, in hexadecimal digits."""
    return hashlib.sha256(path.read_bytes()).hexdigest()


def write_tensors(tensors: Mapping[str, torch.Tensor], path: Path) -> None:
    """Writes a safetensors file in one atomic step."""

    part = path.with_name(path.name + ".part")
    # Not by `save_file`: it does not raise an `OSError` if the disk is full.
    part.write_bytes(save({name: t.detach().cpu().contiguous() for name, t in tensors.items()}))
    # safetensors makes files that only their owner reads.
    part.chmod(0o644)
    os.replace(part, path)


def write_text(text: str, path: Path) -> None:
    """Writes a text file in one atomic step."""

    part = path.with_name(path.name + ".part")
    part.write_text(text)
    os.replace(part, path)
