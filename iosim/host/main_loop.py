"""QEMU's main loop: one thread that sleeps in ppoll and serves devices under the big QEMU lock.

The main loop does not poll adaptively (only iothreads do). Everything it does between two ppolls is done with the
lock held; a vCPU thread that has to serve a register access waits for it, and the other way round.
"""

from __future__ import annotations

from collections.abc import Generator
from typing import Final

from iosim.effects import Effect, give, spend, take, wait, wait_until
from iosim.host import counters as count
from iosim.host.costs import EVENTFD_WRITE, SYS_PPOLL, THREAD_WAKEUP
from iosim.host.machine import Machine
from iosim.host.work import WorkQueue, queue_work

NEVER: Final = -1


class MainLoop:
    """The main loop's state.

    Args:
        machine: The machine.
        items: How many file descriptors it polls.
        runs: It has something to do on this path, and so a thread here; otherwise only its lock is used.

    Attributes:
        bql: The big QEMU lock.
        work: The descriptors that are ready.
        bh: A bottom half is scheduled, so the next ppoll does not sleep.
        deadline: When the first timer is due (ps), or ``NEVER``.
        sleeping: It is in ppoll (what ``notify_me`` tells other threads).
    """

    __slots__ = ("bh", "bql", "deadline", "machine", "sleeping", "thread", "work")

    def __init__(self, machine: Machine, items: int, runs: bool = True) -> None:
        self.machine = machine
        self.thread = machine.system.thread("qemu-main") if runs else -1
        self.bql = machine.system.lock("big QEMU lock")
        self.work = WorkQueue(machine.system, "qemu main loop", items)
        self.bh = False
        self.deadline = NEVER
        self.sleeping = False


def lock_iothread(q: MainLoop) -> Generator[Effect, None, None]:
    """Take the big QEMU lock."""
    yield take(q.bql, THREAD_WAKEUP)


def unlock_iothread(q: MainLoop) -> Generator[Effect, None, None]:
    """Give the big QEMU lock back."""
    yield give(q.bql)


def main_loop_wait(q: MainLoop) -> Generator[Effect, None, None]:
    """One ppoll: without the lock, until a descriptor is ready or a timer due; at once if a bottom half waits.

    The system call's cost is spent when it returns: what it does before it sleeps, nobody waits for.
    """
    yield give(q.bql)
    q.machine.counters.n[count.SYS_PPOLL] += 1
    q.sleeping = True
    while not ready(q):
        if q.deadline == NEVER:
            yield wait(q.work.channel, THREAD_WAKEUP)
        else:
            yield wait_until(q.work.channel, THREAD_WAKEUP, q.deadline)
    q.sleeping = False
    yield spend(SYS_PPOLL)
    yield take(q.bql, THREAD_WAKEUP)


def ready(q: MainLoop) -> bool:
    """Whether ppoll has something to return for."""
    return q.bh or q.work.fifo.count > 0 or timer_due(q)


def timer_due(q: MainLoop) -> bool:
    """Whether the first timer has expired."""
    return q.deadline != NEVER and q.machine.clock.now >= q.deadline


def notify_event(q: MainLoop, item: int) -> Generator[Effect, None, None]:
    """Wake the main loop from another thread by its eventfd, if it sleeps (aio_notify)."""
    if q.sleeping:
        q.machine.counters.n[count.SYS_WRITE] += 1
        yield spend(EVENTFD_WRITE)
        yield from queue_work(q.work, item)
