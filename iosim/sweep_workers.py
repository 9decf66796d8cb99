"""The points of a sweep, run one after another here or many at once in worker processes (`iosim.workers`)."""

from __future__ import annotations

from collections.abc import Generator, Iterator, Mapping
from concurrent.futures import FIRST_COMPLETED, Future, ProcessPoolExecutor, wait
from concurrent.futures.process import BrokenProcessPool
from dataclasses import dataclass
from itertools import islice
from typing import Any, Final

from iosim.errors import IosimError
from iosim.host.counters import NAMES as COUNTERS
from iosim.host.hosts import Host
from iosim.kept import PERCENTILES
from iosim.result import Result
from iosim.run import run
from iosim.specification import specify
from iosim.statistics import Estimate
from iosim.workers import pool

Row = dict[str, Any]
"""What a point gave, by the name of the table's column."""

TOTALS: Final = ("suppressed.", "spurious.", "merged.")
"""Counters given as totals of the window, as in the JSON document of a run; the others are per request."""
ESTIMATES: Final = (*(f"latency_{name}_ns" for name in ("mean", *PERCENTILES)), "throughput_per_s")
"""Columns with an interval: ``_low`` and ``_high`` beside them."""
BUSY: Final = "cpu_busy."
POLLING: Final = "cpu_polling."
LOCK_WAIT: Final = "lock_wait."
DROPPED_AT: Final = "dropped_at."


@dataclass(frozen=True)
class Task:
    """One point to run."""

    index: int
    model: str
    host: str
    settings: dict[str, Any]


def run_point(task: Task, hosts: Mapping[str, Host]) -> Row:
    """Run one point; what it gave, or in ``error`` the one line that says why it could not be run."""
    spec = specify(task.model, host=hosts[task.host], settings=task.settings)
    row: Row = {
        "workload": spec.workload.name,
        "replication": spec.run.replication,
        "seed": spec.run.seed,
    }
    try:
        return row | measures(run(spec))
    except IosimError as error:
        return row | {"warnings": [], "error": str(error)}


def measures(result: Result) -> Row:
    """Return what a run measured, by the names of the table's columns."""
    requests = result.measured
    row: Row = {}
    for name in ("mean", *PERCENTILES):
        _estimate(row, f"latency_{name}_ns", result.latency[name])
    row["latency_max_ns"] = result.latency["max"].value
    _estimate(row, "throughput_per_s", result.throughput)
    row["bits_per_s"] = result.bits_per_s.value
    for name in COUNTERS:
        row[name] = result.count(name) if name.startswith(TOTALS) else result.count(name) / requests
    row["exits"] = sum(result.count(name) for name in COUNTERS if name.startswith("exits.")) / requests
    row["context_switches"] = result.context_switches.value
    busy = {name: estimate.value for name, estimate in result.cpu_busy.items()}
    row["cpu_cores_busy"] = sum(busy.values())
    row |= {BUSY + name: value for name, value in busy.items()}
    row |= {DROPPED_AT + name: n for name, n in result.dropped_at.items()}
    row |= {POLLING + name: estimate.value for name, estimate in result.cpu_polling.items()}
    row |= {LOCK_WAIT + name: estimate.value for name, estimate in result.lock_wait.items()}
    row |= {"dropped": result.dropped, "requests": requests, "duration_ns": result.duration_ns}
    return row | {"warnings": list(result.warnings), "error": None}


def _estimate(row: Row, name: str, estimate: Estimate) -> None:
    row[name] = estimate.value
    row[f"{name}_low"], row[f"{name}_high"] = estimate.low, estimate.high


def in_process(tasks: Iterator[Task], hosts: Mapping[str, Host]) -> Generator[tuple[Task, Row], None, None]:
    """Run the points here, one after another."""
    for task in tasks:
        yield task, run_point(task, hosts)


def in_workers(
    tasks: Iterator[Task], hosts: Mapping[str, Host], workers: int
) -> Generator[tuple[Task, Row], None, None]:
    """Run the points in worker processes, given as they are finished; closing the generator ends the workers.

    Raises:
        IosimError: A worker was killed.
    """
    with pool(workers, _prepare, (dict(hosts),), preload=__name__) as executor:
        pending: dict[Future[Row], Task] = {}
        # No more than the workers will soon take: an interrupted sweep has little to call back.
        _submit(executor, pending, islice(tasks, 2 * workers))
        while pending:
            done, _ = wait(pending, return_when=FIRST_COMPLETED)
            _submit(executor, pending, islice(tasks, len(done)))
            for future in done:
                task = pending.pop(future)
                yield task, _outcome(future)


def _outcome(future: Future[Row]) -> Row:
    try:
        return future.result()
    except BrokenProcessPool:
        raise IosimError(
            "a worker process was killed, perhaps for want of memory; finished points are kept if there is "
            "an out file, and the same sweep with fewer workers goes on from them"
        ) from None


def _submit(executor: ProcessPoolExecutor, pending: dict[Future[Row], Task], tasks: Iterator[Task]) -> None:
    for task in tasks:
        pending[executor.submit(_work, task)] = task


_hosts: dict[str, Host] = {}
"""The hosts of the sweep, in a worker: sent once, not with each point."""


def _prepare(hosts: Mapping[str, Host]) -> None:
    _hosts.update(hosts)


def _work(task: Task) -> Row:
    return run_point(task, _hosts)
