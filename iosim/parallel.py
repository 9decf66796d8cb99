"""Independent runs side by side on several processes, with one progress for all."""

from __future__ import annotations

import multiprocessing
import os
from collections.abc import Callable, Sequence
from concurrent.futures import FIRST_EXCEPTION, ProcessPoolExecutor, wait
from typing import Any

from iosim.result import Result
from iosim.run import run
from iosim.specification import Specification

Progress = Callable[[float], None]

_fractions: Any = None


def cores() -> int:
    """Return how many CPUs this process may use."""
    return len(os.sched_getaffinity(0))


def _begin(fractions: Any) -> None:
    global _fractions
    _fractions = fractions


def _one(place: int, spec: Specification) -> Result:
    def report(fraction: float) -> None:
        _fractions[place] = fraction

    return run(spec, report)


def run_all(
    specs: Sequence[Specification], progress: Progress | None = None, workers: int | None = None
) -> list[Result]:
    """Run all specifications; return their results in the same order.

    Args:
        specs: What to run.
        progress: Called with the fraction of all that is done.
        workers: Processes; all cores by default, 1 runs here.

    Raises:
        IosimError: From a run; the first one.
    """
    workers = min(len(specs), cores() if workers is None else workers)
    if workers <= 1:
        results = []
        for i, spec in enumerate(specs):
            each = None if progress is None else lambda f, i=i: progress((i + f) / len(specs))
            results.append(run(spec, each))
        return results
    # fork: the children inherit what is imported, and a script or notebook needs no __main__ guard.
    context = multiprocessing.get_context("fork")
    fractions = context.Array("d", len(specs), lock=False)
    pool = ProcessPoolExecutor(workers, mp_context=context, initializer=_begin, initargs=(fractions,))
    try:
        futures = [pool.submit(_one, i, spec) for i, spec in enumerate(specs)]
        open_futures = set(futures)
        while open_futures:
            done, open_futures = wait(open_futures, timeout=0.2, return_when=FIRST_EXCEPTION)
            for future in done:
                future.result()
            if progress is not None:
                progress(sum(fractions) / len(specs))
        return [future.result() for future in futures]
    finally:
        pool.shutdown(wait=False, cancel_futures=True)
        for process in list((pool._processes or {}).values()):
            if process.is_alive():
                process.terminate()
