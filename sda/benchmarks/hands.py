"""A benchmark on many hands: the workers of a Dask cluster.

A piece is a method on some repetitions. The worker that is given it makes the truths and the
observations again, which costs little beside the method, runs the method, and writes its results
into the store: each (method, repetition) is a chunk of its own. What is finished is marked there
and nowhere else, so that nothing is lost with a worker or with the client.
"""

import shutil
import uuid
from collections.abc import Callable, Iterator, Sequence
from functools import lru_cache
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch

from dynamics.cluster import Cluster, Superseded, read_job, write_job

from .experiment import Experiment
from .methods import Spec, Workbench

if TYPE_CHECKING:
    from .results import Results


class Hands:
    """The workers that run a benchmark.

    Arguments:
        pool: The workers.
        out: The store of the results.
        experiment: The experiment.
        specs: The methods.
        device: The device of the workers.
        say: Called with a line of text for each result.
    """

    def __init__(
        self,
        pool: Cluster,
        out: Path,
        experiment: Experiment,
        specs: Sequence[Spec],
        device: str | torch.device,
        say: Callable[[str], None],
    ) -> None:
        self.pool, self.out, self.specs, self.say = pool, out.resolve(), list(specs), say
        self.folder = out.with_name(f".{out.name}.run").resolve()
        self.content = (with_full_paths(experiment), self.specs, self.out, str(device))

    def tune(self, specs: Sequence[Spec]) -> Iterator[tuple[Spec, dict[str, Any]]]:
        """Searches the parameters of methods, see `tuning.tune`."""

        pieces = {f"of {spec.key}": (self.specs.index(spec),) for spec in specs}
        for number, found, lines in self._run(tune_one, pieces):
            for line in lines:
                self.say(line)
            yield self.specs[number], found

    def run(self, results: "Results", repetitions: int, batch: int) -> None:
        """Runs what is not finished yet."""

        from .runner import groups, rows_of

        rows = rows_of(results)
        pieces: dict[str, tuple[Any, ...]] = {}
        for group in groups(repetitions, batch):
            for number, spec in enumerate(self.specs):
                todo = [r for r in group if not results.finished(rows[spec.key], r)]
                if todo:
                    pieces[f"{spec.key} on {todo}"] = (number, todo)
        for lines in self._run(run_one, pieces):
            for line in lines:
                self.say(line)
        results.finish()

    def _run(
        self, function: Callable[..., Any], pieces: dict[str, tuple[Any, ...]]
    ) -> Iterator[Any]:
        # Those of an earlier run that still work find that it is over.
        shutil.rmtree(self.folder, ignore_errors=True)
        job = self.folder / f"job-{uuid.uuid4().hex[:8]}"
        checksum = write_job(job, self.content)
        try:
            arguments = {name: (str(job), checksum, *piece) for name, piece in pieces.items()}
            for _, result in self.pool.run(function, arguments):
                yield result
        finally:
            shutil.rmtree(self.folder, ignore_errors=True)


def with_full_paths(experiment: Experiment) -> Experiment:
    """The experiment with the full path of a prior of one's own: workers run in other folders."""

    prior = experiment.config.get("prior")
    source = prior.get("source") if isinstance(prior, dict) else None
    if not isinstance(prior, dict) or source is None or not Path(str(source)).exists():
        return experiment
    full = {**prior, "source": str(Path(str(source)).resolve())}
    return Experiment({**experiment.config, "prior": full})


@lru_cache(maxsize=1)
def workbench(job: str, checksum: int) -> tuple[Workbench, list[Spec], Path]:
    """Where methods run, once for all pieces of a worker: it keeps what they share."""

    experiment, specs, out, device = read_job(Path(job), checksum)
    return Workbench(experiment, device), specs, out


def tune_one(job: str, checksum: int, number: int) -> tuple[int, dict[str, Any], list[str]]:
    """Searches the parameters of a method, on a worker.

    Returns:
        The number of the method, what was found, and lines of text.
    """

    from .tuning import Tuning, tune

    bench, specs, _ = workbench(job, checksum)
    lines: list[str] = []
    return number, tune(Tuning.of(bench.experiment), bench, specs[number], lines.append), lines


def run_one(job: str, checksum: int, number: int, repetitions: list[int]) -> list[str]:
    """Runs a method on some repetitions, on a worker, and writes its results.

    Returns:
        A line of text for each.
    """

    from .results import Results
    from .runner import judge, line, rows_of
    from .scoring import Case, Target

    bench, specs, out = workbench(job, checksum)
    experiment, spec = bench.experiment, specs[number]
    twins = experiment.twins(repetitions)
    targets = [Target.of(experiment, twin) for twin in twins]
    outcomes = bench.run_all(spec, twins)
    if not Path(job).exists():
        raise Superseded(f"{out}: the run is over or another has taken its place")
    # Of repetition 0, which is the first of these if it is one of them; others are not drawn.
    case = Case.of(targets[0], experiment.config["observing"].get("block"))
    results = Results.attach(out, specs, case)
    rows, lines = rows_of(results), []
    for target, outcome in zip(targets, outcomes, strict=True):
        scores = judge(target, outcome)
        results.put_truth(target)
        results.put(rows[spec.key], target, outcome, scores)
        lines.append(line(spec, target.twin.repetition, outcome, scores))
    return lines


def machines(pool: Cluster, device: str | torch.device) -> dict[str, Any]:
    """What the times of workers depend on, as one of them has it."""

    for _, found in pool.run(machine_of, {"of any worker": (str(device),)}):
        return {**found, "workers": pool.size}
    return {"workers": pool.size}


def machine_of(device: str) -> dict[str, Any]:
    """What the times on this machine depend on."""

    from dynamics.simulate import compute_device

    from .runner import machine

    return machine(compute_device(device))
