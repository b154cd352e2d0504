"""Assimilation on the workers of a Dask cluster.

    client: the store, its attributes, the job file
    workers: p(x | y), each some blocks of members ──▶ staged shards ──rename──▶ the store

The client writes the prior, the observations and the options into a job file beside the store. A
worker that is given a block of members samples it as `sda.assimilate` does, and stages its shards
and a record of them beside the store; the client moves them into place. What the members share
(the pilots of flow-dependent guidance) one worker computes before all blocks, and leaves it in a
file that the others read. A worker that is lost costs the block that it was sampling; if the client
is lost, what workers have staged is taken over by the next run.
"""

import json
import uuid
from collections.abc import Callable, Iterator, Mapping
from contextlib import ExitStack, contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import xarray as xr

from dynamics.cluster import Cluster, Superseded, connect, read_job, write_job
from dynamics.layout import Layout

from .lock import Lock
from .store import PosteriorWriter
from .store.blocks import split
from .store.staging import stage

if TYPE_CHECKING:
    from .observation import Observations
    from .prior import Prior

TABLES = "tables.safetensors"


def assimilate_on(
    cluster: Any,
    workers: int | None,
    prior: "Prior",
    observations: "Observations",
    out: str | Path | None,
    *,
    overwrite: bool = False,
    resume: bool = False,
    progress: bool = False,
    **options: Any,
) -> xr.Dataset:
    """Assimilates on the workers of a cluster, see `sda.assimilate`.

    Arguments:
        cluster, workers: See `dynamics.cluster.connect`.
        prior: The prior.
        observations: The observations.
        out: The store, which the workers must see.
        overwrite, resume, progress: See `sda.assimilate`.
        options: Its other options. The device is the workers'.

    Raises:
        ValueError: If there is no store, or the cluster cannot be used.
    """

    from .assimilation import assimilate
    from .store import check_target

    if out is None:
        raise ValueError("a cluster needs an output store that the workers see, got out=None")
    check_target(Path(out), overwrite, resume)
    with connect(cluster, workers) as pool:
        # A store of another kind, which `sda.assimilate` opens as it needs it.
        remote: Any = Remote(
            Path(out), pool, (prior, observations, options), overwrite, resume, progress
        )
        return assimilate(prior, observations, out=remote, **{**options, "device": "cpu"})


class Target:
    """What stands in the place of a store in `sda.assimilate`, and says what to sample.

    Attributes:
        blocks: The members of each block.
        unfinished: The blocks to sample.
        failures: What happened to each member that failed, by its index.
    """

    def __init__(self) -> None:
        self.blocks: list[range] = []
        self.unfinished: list[int] = []
        self.failures: dict[int, str] = {}
        self.settings: dict[str, Any] = {}

    def open(
        self,
        layout: Layout,
        time: np.ndarray,
        members: int,
        block: int,
        settings: Mapping[str, Any],
        attrs: Mapping[str, Any],
        dtype: str,
    ) -> Any:
        """Makes the store, as the arguments of `PosteriorWriter` say."""

        self.blocks = split(members, block)
        self.settings = json.loads(json.dumps(dict(settings)))
        return self

    def share(self, guided: Any, compute: Callable[[], None]) -> None:
        """Computes what the members share, see `PosteriorWriter.share`."""

        raise NotImplementedError

    def put(
        self, k: int, trajectories: np.ndarray, failures: Mapping[int, str] | None = None
    ) -> None:
        """Takes a block, see `PosteriorWriter.put`."""

        raise NotImplementedError

    def dataset(self) -> xr.Dataset:
        """Nothing: what was sampled is in the store."""
        return xr.Dataset()

    def __enter__(self) -> "Target":
        return self

    def __exit__(self, *error: object) -> None:
        pass


class Remote(Target):
    """The store of a client, which is filled by workers when it is opened.

    Arguments:
        path: The store.
        pool: The workers.
        job: The prior, the observations and the options of `sda.assimilate`.
        overwrite, resume, progress: See `sda.assimilate`.
    """

    def __init__(
        self,
        path: Path,
        pool: Cluster,
        job: tuple["Prior", "Observations", dict[str, Any]],
        overwrite: bool,
        resume: bool,
        progress: bool,
    ) -> None:
        super().__init__()
        self.path, self.pool, self.job = path, pool, job
        self.overwrite, self.resume, self.progress = overwrite, resume, progress

    def open(
        self,
        layout: Layout,
        time: np.ndarray,
        members: int,
        block: int,
        settings: Mapping[str, Any],
        attrs: Mapping[str, Any],
        dtype: str,
    ) -> PosteriorWriter:
        """Makes the store and lets the workers fill it."""

        if self.job[2].get("block") is None:
            group = (settings.get("smc") or {}).get("group", 1)
            groups = -(-members // group)
            block = min(block, group * -(-groups // self.pool.size))
        writer = PosteriorWriter(
            self.path, layout, time, members, block, settings, attrs, dtype,
            self.overwrite, self.resume,
        )  # fmt: skip
        if writer.unfinished:
            with ended_by_errors(writer):
                self.fill(writer, str(settings["guidance"]["name"]))
        return writer

    def fill(self, writer: PosteriorWriter, guidance: str) -> None:
        """Has all unfinished blocks sampled."""

        from tqdm import tqdm

        from .guidance import METHODS

        prior, observations, options = self.job
        folder = writer.open_stage().resolve()
        options = {**options, "block": writer.block}
        file, settings = folder / "job", json.loads(writer.attrs["settings"])
        arguments = (str(file), write_job(file, (prior, observations, options, settings)))
        if hasattr(METHODS[guidance], "load_tables"):
            for _ in self.pool.run(share_tables, {"of the pilots": arguments}):
                pass
        blocks = {
            f"of members {writer.blocks[k][0]} to {writer.blocks[k][-1]}": (*arguments, k)
            for k in writer.unfinished
        }
        total = sum(len(writer.blocks[k]) for k in writer.unfinished)
        with tqdm(total=total, disable=not self.progress, desc="sampling", unit="member") as bar:
            for name, (k, record) in self.pool.run(sample_block, blocks):
                if not writer.adopt(Path(record)):
                    raise OSError(
                        f"what a worker has written {name} is damaged: check the disk of "
                        f"{str(folder)!r}, and run again with resume=true"
                    )
                bar.update(len(writer.blocks[k]))
        writer.discard_stage()


@contextmanager
def ended_by_errors(writer: PosteriorWriter) -> Iterator[None]:
    """A context whose errors end a writer, as they do in its own."""

    try:
        yield
    except BaseException as error:
        writer.__exit__(type(error), error, error.__traceback__)
        raise


class Tables(Target):
    """On a worker: computes what the members share, leaves it in a file, and samples nothing."""

    def __init__(self, folder: Path, settings: Mapping[str, Any]) -> None:
        super().__init__()
        self.folder, self.expected = folder, settings
        self.unfinished = [0]

    def open(self, *arguments: Any) -> Any:
        super().open(*arguments)
        check_settings(self.expected, self.settings)
        return self

    def share(self, guided: Any, compute: Callable[[], None]) -> None:
        from safetensors.torch import save

        compute()
        # A worker that was given up as lost may still be writing its own.
        file, draft = self.folder / TABLES, self.folder / f".{TABLES}.{uuid.uuid4().hex[:8]}"
        tables = {name: table.cpu().contiguous() for name, table in guided.tables().items()}
        try:
            draft.write_bytes(save(tables))
            draft.replace(file)
        except FileNotFoundError as error:
            raise Superseded(f"{self.folder} is not there: the run is over") from error
        self.unfinished = []


class Staged(Target):
    """On a worker: samples one block and stages it beside the store."""

    def __init__(self, folder: Path, settings: Mapping[str, Any], k: int) -> None:
        super().__init__()
        self.folder, self.expected = folder, settings
        self.unfinished = [k]
        self.layout: Layout | None = None
        self.record: Path | None = None

    def open(self, layout: Layout, *arguments: Any) -> Any:
        super().open(layout, *arguments)
        check_settings(self.expected, self.settings)
        self.layout = layout
        return self

    def share(self, guided: Any, compute: Callable[[], None]) -> None:
        from safetensors.torch import load_file

        if not hasattr(guided, "load_tables"):
            compute()
            return
        try:
            guided.load_tables(load_file(self.folder / TABLES))
        except FileNotFoundError as error:
            raise Superseded(f"{self.folder / TABLES} is not there: the run is over") from error

    def put(
        self, k: int, trajectories: np.ndarray, failures: Mapping[int, str] | None = None
    ) -> None:
        assert self.layout is not None  # `open` comes first
        values, names = self.layout.hide(trajectories), self.layout.variables
        try:
            self.record = stage(self.folder, names, k, self.blocks[k], values, failures or {})
        except FileNotFoundError as error:
            raise Superseded(f"{self.folder} is not there: the run is over") from error


class Unlocked(Target):
    """On a worker: a store that is written under the lock of the client.

    A lock of the worker's own would outlast a machine that is lost, and keep the worker that goes
    on with the store, on another one, from writing it.

    Arguments:
        path: The store. One that is there was begun by a worker that is lost, and is completed.
    """

    def __init__(self, path: Path) -> None:
        super().__init__()
        self.path = path

    def open(
        self,
        layout: Layout,
        time: np.ndarray,
        members: int,
        block: int,
        settings: Mapping[str, Any],
        attrs: Mapping[str, Any],
        dtype: str,
    ) -> PosteriorWriter:
        return PosteriorWriter(
            self.path, layout, time, members, block, settings, attrs, dtype, resume=True, lock=False
        )


def share_tables(job: str, checksum: int) -> None:
    """Computes what all members of a run share, on a worker, and leaves it in a file."""

    from .assimilation import assimilate

    prior, observations, options, settings = read_job(Path(job), checksum)
    target: Any = Tables(Path(job).parent, settings)
    assimilate(prior, observations, out=target, **options)


def sample_block(job: str, checksum: int, k: int) -> tuple[int, str]:
    """Samples one block of members, on a worker, and stages it.

    Returns:
        The block, and the record of what was staged.
    """

    import warnings

    from .assimilation import assimilate

    prior, observations, options, settings = read_job(Path(job), checksum)
    staged: Any = Staged(Path(job).parent, settings, k)
    with warnings.catch_warnings():
        # Of members that failed: the client says it of all at once.
        warnings.simplefilter("ignore", RuntimeWarning)
        assimilate(prior, observations, out=staged, **options)

    return k, str(staged.record)


def check_settings(expected: Mapping[str, Any], found: Mapping[str, Any]) -> None:
    """Raises a `ValueError` unless a worker samples what the client asked for."""

    different = [key for key in expected if expected[key] != found.get(key)]
    if different:
        raise ValueError(
            "a worker found other settings than the client: "
            + "; ".join(f"{key} {found.get(key)!r}, not {expected[key]!r}" for key in different)
            + ": install the same versions on both"
        )


def assimilate_each(
    prior: "Prior",
    observations: Mapping[str, "Observations"],
    out: str | Path,
    *,
    cluster: Any = None,
    workers: int | None = None,
    resume: bool = False,
    say: Callable[[str], None] | None = None,
    **options: Any,
) -> dict[str, Path]:
    """Assimilates independent sets of observations, each into a posterior of its own.

    Each set is assimilated by one worker, which writes its store. Interrupted, it is resumed by
    the same call with `resume`: finished blocks of members are kept.

    Arguments:
        prior: The prior.
        observations: The sets by name.
        out: The folder of the posteriors, `<out>/<name>.zarr`.
        cluster, workers: See `dynamics.cluster.connect` (default: this process assimilates them
            one by one).
        resume: Whether posteriors that are there are kept and completed.
        say: Called with a line of text for each posterior.
        options: Those of `sda.assimilate`, the same for all sets.

    Returns:
        The posteriors by name.

    Raises:
        ValueError: If a name is no file name, or as `sda.assimilate` raises.
        FileExistsError: If a posterior exists and `resume` is not given.
    """

    from .assimilation import assimilate
    from .store import check_target

    out = Path(out)
    if options.get("overwrite"):
        raise ValueError("a folder of posteriors is not overwritten: give another, or resume=True")
    stores = {}
    for name in observations:
        if not name or Path(name).name != name:
            raise ValueError(f"a set of observations is named after a file, got {name!r}")
        stores[name] = out / f"{name}.zarr"
        check_target(stores[name], False, resume)
    out.mkdir(parents=True, exist_ok=True)
    tell = say or (lambda line: None)
    if cluster is None and workers is None:
        for name, each in observations.items():
            found = assimilate(prior, each, out=stores[name], resume=resume, **options)
            tell(f"{stores[name]}: {found.attrs['status']}")
        return stores

    file = out / ".job"
    with connect(cluster, workers) as pool, ExitStack() as locks:
        for path in stores.values():
            locks.enter_context(Lock(path))
        try:
            checksum = write_job(file, (prior, dict(observations), options))
            pieces = {
                name: (str(file.resolve()), checksum, name, str(path.resolve()))
                for name, path in stores.items()
            }
            for name, status in pool.run(assimilate_set, pieces):
                tell(f"{stores[name]}: {status}")
        finally:
            file.unlink(missing_ok=True)
    return stores


def assimilate_set(job: str, checksum: int, name: str, out: str) -> str:
    """Assimilates one set of observations, on a worker, and returns the status of the store."""

    from .assimilation import assimilate

    prior, observations, options = read_job(Path(job), checksum)
    target: Any = Unlocked(Path(out))
    found = assimilate(prior, observations[name], out=target, **options)
    return str(found.attrs["status"])
