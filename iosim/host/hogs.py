"""Other load on the host's CPUs: threads that always want to run, as those of other guests."""

from __future__ import annotations

from typing import Final

from iosim.effects import spend
from iosim.engine.system import Process, System
from iosim.host.costs import HOST_LOAD

MOST: Final = 64
STRETCH: Final = 9e15
"""ps, 2.5 h: what a hog has to do at a time."""
STRETCHES: Final = 256
"""Not endless, so that a run in which nothing else happens any more ends too; 26 days are beyond any run."""


def hog() -> Process:
    """A thread that never sleeps: a vCPU of another guest that computes."""
    for _ in range(STRETCHES):
        yield spend(HOST_LOAD)


def add_hogs(system: System, hogs: int) -> None:
    """Add so many threads that always want to run, of the priority of any other."""
    for i in range(hogs):
        name = "hog" if hogs == 1 else f"hog-{i}"
        system.process(name, hog(), thread=system.thread(name))
