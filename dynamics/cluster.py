"""Workers: pieces of a run, done by the processes of a Dask cluster.

    client: numbers of pieces ──▶ scheduler ──▶ workers: read the job file, write their pieces
    client: checksums, messages ◀── scheduler ◀── workers

A run is cut into pieces that are the same whoever does them: blocks of members, methods and
repetitions. What the workers need, a system or a prior with its observations, the client writes
into a *job file* beside the results, and the workers write what they find into the results
themselves. The scheduler sees numbers, checksums and messages, and never an array. Workers and
client must therefore see the same file system.

A piece whose worker is lost is given to another one by Dask. Pieces leave their own record on disk
when they are done, so that neither the loss of a worker nor that of the client loses any.
"""

import asyncio
import os
import uuid
import zlib
from collections.abc import Callable, Iterator, Mapping
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack, contextmanager
from pathlib import Path
from threading import Lock
from typing import Any

PACKAGE = "sda-torch"
LOCAL = "local"
# Seconds to wait for the answer of a scheduler.
TIMEOUT = 10


class Cluster:
    """Workers of a Dask cluster that run this version of the package.

    Arguments:
        client: The Dask client.
        address: What the user has named it by, for messages.

    Raises:
        ValueError: If a worker lacks the package, or has another version of it or of Python.
    """

    def __init__(self, client: Any, address: str) -> None:
        self.client, self.address = client, address
        for worker, found in client.run(survey()).items():
            check_version(found, f"the worker {worker} of the cluster {address!r}")

    @property
    def size(self) -> int:
        """The number of pieces that are done side by side, at least 1."""
        return max(1, sum(self.client.nthreads().values()))

    def run(
        self, function: Callable[..., Any], pieces: Mapping[str, tuple[Any, ...]]
    ) -> Iterator[tuple[str, Any]]:
        """Calls a function of a module for each piece on some worker.

        Arguments:
            function: The function. What it returns goes through the scheduler and must be small.
            pieces: The arguments of each piece, small as well.

        Yields:
            The name of each piece and what the function returned, in the order they are done.

        Raises:
            OSError: If pieces are lost again and again, or the scheduler itself.
            Exception: What the function raised. Pieces that have not begun are withdrawn then;
                those that have go on, and leave their record on disk.
        """

        from distributed import as_completed
        from distributed.client import FutureCancelledError
        from distributed.scheduler import KilledWorker

        run, here = uuid.uuid4().hex, survey()()
        futures = {
            self.client.submit(
                perform, here, function, *arguments,
                key=f"{function.__name__}-{run}-{number}", pure=False,
            ): name
            for number, (name, arguments) in enumerate(pieces.items())
        }  # fmt: skip
        try:
            for future in as_completed(list(futures), loop=self.client.loop):
                name = futures[future]
                try:
                    result = future.result()
                except KilledWorker as error:
                    raise OSError(
                        f"{function.__name__} {name} was lost with each of several workers of "
                        f"{self.address!r}, which may run out of memory: look into their logs, "
                        f"give a smaller block, and run again with resume=true"
                    ) from error
                except FutureCancelledError as error:
                    raise OSError(
                        f"the connection to the cluster {self.address!r} is lost: what is "
                        f"finished is kept, run again with resume=true"
                    ) from error
                except ModuleNotFoundError as error:
                    raise ValueError(
                        f"a worker of the cluster {self.address!r} lacks a package: {error}: "
                        f"install in its environment what is installed here"
                    ) from error
                yield name, result
        finally:
            self.client.cancel(list(futures))


@contextmanager
def connect(cluster: Any = None, workers: int | None = None) -> Iterator[Cluster]:
    """Connects to a Dask cluster, or starts one on this machine.

    Arguments:
        cluster: The address of a scheduler such as "tcp://host:8786", its scheduler file (a path
            that ends in .json), a `distributed.Client`, a cluster object such as that of
            dask-jobqueue, or "local" for processes on this machine (default: "local").
        workers: The number of processes of "local", each of one thread (default: one per core).

    Raises:
        ValueError: If nothing answers at the address, the workers do not have this version of the
            package, or `workers` is given for a cluster that has its own.
    """

    from distributed import Client, LocalCluster

    if workers is not None and (not isinstance(workers, int) or workers < 1):
        raise ValueError(f"workers must be an integer of at least 1, got {workers!r}")
    if cluster is None or cluster == LOCAL:
        with (
            LocalCluster(
                n_workers=workers or len(os.sched_getaffinity(0)),
                threads_per_worker=1,
                dashboard_address=None,
                silence_logs=50,
            ) as own,
            Client(own, set_as_default=False) as client,
        ):
            yield Cluster(client, LOCAL)
        return
    if workers is not None:
        raise ValueError(
            f"workers={workers} is for cluster={LOCAL}: the cluster {str(cluster)!r} has workers "
            f"of its own, add some there"
        )
    if isinstance(cluster, Client):
        yield Cluster(cluster, str(cluster.scheduler_info()["address"]))
        return
    address = str(getattr(cluster, "scheduler_address", cluster))
    named = {"scheduler_file": address} if address.endswith(".json") else {"address": address}
    if "scheduler_file" in named and not Path(address).is_file():
        # Dask would wait for it forever.
        raise FileNotFoundError(f"there is no scheduler file at {address!r}")
    try:
        if "address" in named:
            # A client that fails itself waits long, and complains once more at the end.
            with ThreadPoolExecutor(max_workers=1) as thread:
                thread.submit(asyncio.run, knock(address)).result()
        client = Client(**named, timeout=TIMEOUT, set_as_default=False)
    except (OSError, ValueError, TypeError, KeyError, MemoryError) as error:
        # What is no Dask scheduler may answer anything.
        raise ValueError(
            f"no Dask scheduler answers at cluster={address!r}: start one with `dask scheduler` "
            f"and give its address, such as tcp://host:8786, or give cluster={LOCAL}"
        ) from error
    with client:
        yield Cluster(client, address)


async def knock(address: str) -> None:
    """Raises an `OSError` or a `ValueError` if nothing of Dask's answers at an address."""

    from distributed.comm import connect as reach
    from distributed.security import Security

    options = Security().get_connection_args("client")
    comm = await reach(address, timeout=TIMEOUT, **options)
    await comm.close()


def survey() -> Callable[[], dict[str, str | None]]:
    """A function that tells the versions of the process that calls it.

    It is made here, and not at the top of the module, so that it can be sent to a worker that does
    not have the package.
    """

    package = PACKAGE

    def found() -> dict[str, str | None]:
        import importlib.metadata
        import importlib.util
        import platform

        try:
            own: str | None = importlib.metadata.version(package)
        except importlib.metadata.PackageNotFoundError:
            there = importlib.util.find_spec("dynamics") is not None
            own = "a checkout" if there else None
        return {"package": own, "python": ".".join(platform.python_version_tuple()[:2])}

    return found


def check_version(found: Mapping[str, str | None], who: str) -> None:
    """Raises a `ValueError` unless versions are those of this process."""

    here = survey()()
    if found["package"] is None:
        raise ValueError(
            f"{who} does not have the package {PACKAGE}: install version {here['package']} in its "
            f"environment"
        )
    if found != here:
        raise ValueError(
            f"{who} has {PACKAGE} {found['package']} on Python {found['python']}, but this is "
            f"{here['package']} on Python {here['python']}: install the same on both"
        )


def perform(client: Mapping[str, str | None], function: Callable[..., Any], *arguments: Any) -> Any:
    """Does a piece, on a worker: it may have come after the others were looked at."""

    check_version(client, "the client")
    with ALONE:
        return function(*arguments)


class Alone:
    """A context in which a worker computes lazy arrays itself.

    By default it would hand them to the other workers, through the scheduler, and wait for them
    while they wait for it. Dask's settings are of a process: the last thread restores them.
    """

    def __init__(self) -> None:
        self.lock, self.threads, self.settings = Lock(), 0, ExitStack()

    def __enter__(self) -> None:
        import dask

        with self.lock:
            if not self.threads:
                self.settings.enter_context(dask.config.set(scheduler="synchronous"))
            self.threads += 1

    def __exit__(self, *error: object) -> None:
        with self.lock:
            self.threads -= 1
            if not self.threads:
                self.settings.close()


ALONE = Alone()


def write_job(path: Path, content: Any) -> int:
    """Writes what workers need, and returns its checksum.

    The file holds Python objects and can run code when it is read, as all that is sent to a Dask
    worker. It is read by the workers of this one run, which know its checksum.
    """

    import cloudpickle

    data = cloudpickle.dumps(content)
    path.parent.mkdir(parents=True, exist_ok=True)
    draft = path.with_name(f".{path.name}.{uuid.uuid4().hex[:8]}")
    try:
        with draft.open("wb") as file:
            file.write(data)
            file.flush()
            os.fsync(file.fileno())
        os.replace(draft, path)
    finally:
        draft.unlink(missing_ok=True)

    return zlib.crc32(data)


def read_job(path: Path, checksum: int) -> Any:
    """Reads what `write_job` wrote.

    Raises:
        Superseded: If it is not there, since the run is over or another has taken its place.
    """

    import cloudpickle

    try:
        data = path.read_bytes()
    except FileNotFoundError as error:
        raise Superseded(
            f"{path} is gone: the run is over, or the worker does not see it"
        ) from error
    if zlib.crc32(data) != checksum:
        raise Superseded(f"{path} is that of another run")

    return cloudpickle.loads(data)


class Superseded(OSError):
    """A worker was told to go on with a run that another has taken the place of."""
