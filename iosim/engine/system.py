"""What is installed in an engine: threads, channels, locks and processes, named and numbered."""

from __future__ import annotations

from collections.abc import Generator
from dataclasses import dataclass
from typing import TypeAlias

from iosim.effects import TASK, Effect
from iosim.errors import unknown

Process: TypeAlias = Generator[Effect, None, None]
"""A process of a model: a generator of effects."""


def instance(name: str, number: int) -> str:
    """Return the name of one of several: that of number 0 is the plain name.

    So its draws are those of the only one, and a run with several differs from a run with one by the others alone.

    Example:
        >>> instance("vhost worker", 0), instance("vhost worker", 2)
        ('vhost worker', 'vhost worker 2')
    """
    return f"{name} {number}" if number else name


class Clock:
    """The simulated time that processes read. ``now`` is in picoseconds; only the engine sets it."""

    __slots__ = ("now",)

    def __init__(self) -> None:
        self.now = 0


@dataclass(frozen=True, slots=True)
class ThreadSpec:
    """A thread of the host. Of two runnable threads the one with the higher ``priority`` gets the CPU."""

    name: str
    priority: int


@dataclass(frozen=True, slots=True)
class ProcessSpec:
    """One execution context: its generator, the thread it runs on (-1: none) and its level there."""

    name: str
    generator: Process
    thread: int
    level: int


class System:
    """The parts of one simulated machine room, before and while an engine plays them.

    Example:
        >>> from iosim.effects import notify, wait
        >>> system = System()
        >>> worker = system.thread("vhost")
        >>> kick = system.channel("kick")
        >>> def work():
        ...     yield wait(kick)
        >>> system.process("worker", work(), thread=worker)
        >>> system.channels, system.threads[worker].name
        (['kick'], 'vhost')
    """

    def __init__(self) -> None:
        self.clock = Clock()
        self.threads: list[ThreadSpec] = []
        self.channels: list[str] = []
        self.locks: list[str] = []
        self.processes: list[ProcessSpec] = []

    def thread(self, name: str, priority: int = 0) -> int:
        """Add a thread; return its number."""
        self.threads.append(ThreadSpec(name, priority))
        return len(self.threads) - 1

    def channel(self, name: str) -> int:
        """Add a channel: a latched notification with one waiting process. Return its number."""
        if name in self.channels:
            raise ValueError(f"there is a channel '{name}' already")
        self.channels.append(name)
        return len(self.channels) - 1

    def lock(self, name: str) -> int:
        """Add a lock; return its number."""
        self.locks.append(name)
        return len(self.locks) - 1

    def process(self, name: str, generator: Process, thread: int = -1, level: int = TASK) -> None:
        """Add a process; processes start at time 0 in the order in which they are added."""
        self.processes.append(ProcessSpec(name, generator, thread, level))

    def find_channel(self, name: str) -> int:
        """Return the number of a channel by its name."""
        if name not in self.channels:
            raise unknown("channel", name, self.channels)
        return self.channels.index(name)
