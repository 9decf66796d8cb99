"""Independent runs side by side, with one progress for all.

Compiled runs are threads: they hold Python's lock only when they look up. Runs on SimPy are processes.
"""

from __future__ import annotations

import os
from collections.abc import Callable, Sequence
from concurrent.futures import FIRST_EXCEPTION, Executor, ThreadPoolExecutor, wait
from contextlib import AbstractContextManager

from iosim.result import Result
from iosim.run import engine_for, run
from iosim.specification import Specification
from iosim.workers import pool

Progress = Callable[[float], None]


def cores() -> int:
    """Return how many CPUs this process may use."""
    return len(os.sched_getaffinity(0))


def run_all(
    specs: Sequence[Specification], progress: Progress | None = None, workers: int | None = None
) -> list[Result]:
    """Run all specifications; return their results in the same order.

    Args:
        specs: What to run.
        progress: Called with the fraction of all that is done.
        workers: Threads or processes; all cores by default, 1 runs here.

    Raises:
        IosimError: From a run; the first one.
    """
    workers = min(len(specs), cores() if workers is None else workers)
    done = [0.0] * len(specs)

    def report(place: int, fraction: float) -> None:
        done[place] = fraction
        if progress is not None and workers == 1:
            progress(sum(done) / len(specs))

    if workers <= 1:
        return [run(spec, lambda f, i=i: report(i, f)) for i, spec in enumerate(specs)]  # type: ignore[misc]
    compiled = all(engine_for(spec) == "compiled" for spec in specs)
    executor: AbstractContextManager[Executor] = ThreadPoolExecutor(workers) if compiled else pool(workers)
    with executor as started:
        if compiled:
            futures = [
                started.submit(run, spec, lambda f, i=i: report(i, f))  # type: ignore[misc]
                for i, spec in enumerate(specs)
            ]
        else:
            futures = [started.submit(run, spec) for spec in specs]
        waiting = set(futures)
        while waiting:
            finished, waiting = wait(waiting, timeout=0.2, return_when=FIRST_EXCEPTION)
            for future in finished:
                future.result()
                done[futures.index(future)] = 1.0
            if progress is not None:
                progress(sum(done) / len(specs))
    return [future.result() for future in futures]
