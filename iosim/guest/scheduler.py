"""The guest's scheduler: applications on one vCPU share it by time slices."""

from __future__ import annotations

from collections.abc import Generator
from typing import Final

from iosim.effects import KSOFTIRQD, Effect, notify, spend, wait
from iosim.engine.system import instance
from iosim.fifo import Fifo, put, take_first
from iosim.host.costs import CONTEXT_SWITCH
from iosim.host.kvm import Vcpu
from iosim.host.machine import Machine

SLICE: Final = 3_000_000_000
"""ps after which a task lets others run (Linux 6.1, sched_min_granularity_ns with 8 CPUs or more: 3 ms)."""


class RunQueue:
    """The tasks of one vCPU, where it has several.

    Args:
        machine, vcpu: What it belongs to.
        tasks: How many there are.

    Attributes:
        expired: Tasks whose slice is over, by number.
        turn: The channel on which each of them waits for the others.
        began: When each task's slice began (ps).
        last: The task that ran last.
        next: The channel of the process that ends their waiting.
    """

    __slots__ = ("began", "expired", "last", "machine", "next", "tasks", "turn")

    def __init__(self, machine: Machine, vcpu: Vcpu, tasks: int) -> None:
        self.machine = machine
        self.tasks = tasks
        self.expired = Fifo(tasks)
        self.turn = [-1] * tasks
        self.began = [0] * tasks
        self.last = -1
        self.next = -1
        if tasks > 1:
            self.turn = [machine.system.channel(f"vcpu{vcpu.number} task {i}") for i in range(tasks)]
            self.next = machine.system.channel(f"vcpu{vcpu.number} next task")
            name = instance("guest scheduler", vcpu.number)
            machine.system.process(name, pick_next_task(self), vcpu.thread, KSOFTIRQD)


def cond_resched(q: RunQueue, task: int) -> Generator[Effect, None, None]:
    """A task that has used up its slice lets those run that are ready; each of them has a slice before its next."""
    if q.tasks > 1:
        if q.machine.clock.now - q.began[task] >= SLICE:
            put(q.expired, task)
            yield notify(q.next)
            yield wait(q.turn[task])
            q.began[task] = q.machine.clock.now
        if q.last != task:
            q.last = task
            yield spend(CONTEXT_SWITCH)


def pick_next_task(q: RunQueue) -> Generator[Effect, None, None]:
    """No task is ready but those whose slice is over: a new slice for the first of them."""
    while True:
        while q.expired.count == 0:
            yield wait(q.next)
        yield notify(q.turn[take_first(q.expired)])
