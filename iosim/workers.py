"""Worker processes for runs that SimPy plays, a core each.

Workers come from a fork server. Forking the caller itself would copy the locks of its threads (a notebook's
kernel, a progress display, Arrow) in whatever state they are; starting each worker afresh costs half a second
of imports. The server is a new process without threads that imports iosim once and is forked from then on.

Python would have every worker import the caller's main module, and so run a script that has no
``if __name__ == "__main__"`` once more. Workers need nothing of it, so it is hidden while they start.
"""

from __future__ import annotations

import contextlib
import multiprocessing
import os
import signal
import sys
import threading
import types
from collections.abc import Callable, Iterator
from concurrent.futures import Future, ProcessPoolExecutor
from multiprocessing.connection import Connection
from typing import Any


class _Pool(ProcessPoolExecutor):
    """An executor whose workers do not import the caller's main module."""

    def submit(self, fn: Callable[..., Any], /, *arguments: Any, **named: Any) -> Future[Any]:
        with _main_hidden():  # submitting is what starts workers
            return super().submit(fn, *arguments, **named)


@contextlib.contextmanager
def pool(
    workers: int,
    prepare: Callable[..., None] | None = None,
    arguments: tuple[Any, ...] = (),
    preload: str = "iosim.run",
) -> Iterator[ProcessPoolExecutor]:
    """Give an executor whose workers end at once, in the middle of a run, when the block ends with an exception.

    Args:
        workers: How many processes.
        prepare: Called with ``arguments`` once in each worker.
        arguments: Sent to each worker once.
        preload: The module that the fork server imports.
    """
    server = "forkserver" in multiprocessing.get_all_start_methods()
    context = multiprocessing.get_context("forkserver" if server else "spawn")
    if server:
        context.set_forkserver_preload([preload])
    alive, parent = context.Pipe(duplex=False)
    executor = _Pool(workers, context, _begin, (alive, prepare, arguments))
    try:
        yield executor
    except BaseException:
        parent.close()
        raise
    finally:
        executor.shutdown(wait=True, cancel_futures=True)
        parent.close()
        alive.close()


@contextlib.contextmanager
def _main_hidden() -> Iterator[None]:
    main = sys.modules["__main__"]
    sys.modules["__main__"] = types.ModuleType("__main__")
    try:
        yield
    finally:
        sys.modules["__main__"] = main


def _begin(alive: Connection, prepare: Callable[..., None] | None, arguments: tuple[Any, ...]) -> None:
    """Make a process a worker: Ctrl-C is the parent's business, and a worker does not outlive its parent."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    if prepare is not None:
        prepare(*arguments)
    threading.Thread(target=_end_with, args=(alive,), daemon=True).start()


def _end_with(alive: Connection) -> None:
    """End this process when the parent closes its end of the pipe, be it by its own end."""
    with contextlib.suppress(EOFError, OSError):
        alive.recv()
    os._exit(1)
