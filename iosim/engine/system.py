"""What is installed in an engine: threads, channels, locks and processes, named and numbered."""

from __future__ import annotations

from collections.abc import Generator, Iterable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, replace
from typing import NamedTuple, TypeAlias

from iosim.effects import TASK, Effect
from iosim.errors import unknown

Process: TypeAlias = Generator[Effect, None, None]
"""A process of a model: a generator of effects."""


class ProcessTime(NamedTuple):
    """What a process has spent its time with, in ps: CPU time (``polled`` is part of it), and waiting for locks."""

    ran: int
    polled: int
    locked: int


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
    """A thread of the host. Of two runnable threads the one with the higher ``priority`` gets the CPU.

    ``cpus`` are the CPUs it may run on (its affinity mask, as of ``sched_setaffinity``); None: all of them.
    """

    name: str
    priority: int
    cpus: frozenset[int] | None = None


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
        self._thread_prefix = ""
        self._prefix = ""

    @contextmanager
    def prefixed(self, threads: str, others: str) -> Iterator[None]:
        """Name what is added meanwhile with a prefix: the same parts once more, for another guest.

        Args:
            threads: Before the names of threads.
            others: Before those of channels, locks and processes.

        Example:
            >>> system = System()
            >>> with system.prefixed("vm1-", "vm1 "):
            ...     worker, kick = system.thread("vhost"), system.channel("kick")
            >>> system.threads[worker].name, system.channels[kick]
            ('vm1-vhost', 'vm1 kick')
        """
        before = self._thread_prefix, self._prefix
        self._thread_prefix, self._prefix = threads, others
        try:
            yield
        finally:
            self._thread_prefix, self._prefix = before

    def thread(self, name: str, priority: int = 0) -> int:
        """Add a thread; return its number."""
        self.threads.append(ThreadSpec(self._thread_prefix + name, priority))
        return len(self.threads) - 1

    def pin(self, thread: int, cpus: Iterable[int] | None) -> None:
        """Let a thread run on these CPUs only (numbers from 0); None: on all.

        Example:
            >>> system = System()
            >>> worker = system.thread("vhost")
            >>> system.pin(worker, [0, 2])
            >>> sorted(system.threads[worker].cpus)
            [0, 2]
        """
        mask = None if cpus is None else frozenset(cpus)
        if mask is not None and (not mask or min(mask) < 0):
            raise ValueError(f"thread '{self.threads[thread].name}' needs a CPU to run on, numbered from 0")
        self.threads[thread] = replace(self.threads[thread], cpus=mask)

    def check_pins(self, cpus: int) -> None:
        """Refuse a thread that may run on none of so many CPUs: it would never run. Engines call it."""
        for thread in self.threads:
            if cpus and thread.cpus is not None and min(thread.cpus) >= cpus:
                raise ValueError(f"thread '{thread.name}' is pinned to CPUs {sorted(thread.cpus)} of {cpus}")

    def channel(self, name: str) -> int:
        """Add a channel: a latched notification with one waiting process. Return its number."""
        name = self._prefix + name
        if name in self.channels:
            raise ValueError(f"there is a channel '{name}' already")
        self.channels.append(name)
        return len(self.channels) - 1

    def lock(self, name: str) -> int:
        """Add a lock; return its number."""
        self.locks.append(self._prefix + name)
        return len(self.locks) - 1

    def process(self, name: str, generator: Process, thread: int = -1, level: int = TASK) -> None:
        """Add a process; processes start at time 0 in the order in which they are added."""
        self.processes.append(ProcessSpec(self._prefix + name, generator, thread, level))

    def find_channel(self, name: str) -> int:
        """Return the number of a channel by its name."""
        if name not in self.channels:
            raise unknown("channel", name, self.channels)
        return self.channels.index(name)
