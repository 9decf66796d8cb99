"""A poll-mode driver's thread (DPDK): its loop looks at a NIC's rings and virtqueues again and again, and never sleeps.

A NIC with several queues spreads flows over them by the hash of their headers (RSS). Each queue is polled by one
thread, and a thread may have several; an iteration of its loop looks at all of them.

An iteration that finds nothing takes `PollLoop.period`. While there is nothing to find such iterations are not played
one by one: the thread is busy until something is put into one of its rings, and goes on to the end of the iteration
that is under way then. So it sees everything when it would, to the picosecond, and an idle hour costs no more events
than an idle millisecond costs of `LOOK`. Where threads share CPUs an iteration's end is counted by the clock, also over
the time in which the thread did not run: there it may see a packet early, by less than one iteration.
"""

from __future__ import annotations

from collections.abc import Generator
from typing import Final, Protocol

from iosim.effects import Effect, busy_poll, sleep_until, wait
from iosim.engine.system import instance
from iosim.fifo import Fifo, put, take_first
from iosim.host.flows import flow_of
from iosim.host.machine import Machine
from iosim.host.network import RX_RING, Network
from iosim.host.work import WorkQueue, show_poller
from iosim.requests import mark_past
from iosim.window import NIC_RING, drop

LOOK: Final = 100_000_000
"""ps of idle polling that the engine is asked for at a time. It changes nothing but the number of events."""


class PmdMilestones(Protocol):
    """The milestones stamped here."""

    arrived: int


class PollLoop:
    """The loop of one thread.

    Args:
        machine: What it belongs to.
        number: Its place among the threads.
        period: ps that an iteration takes in which nothing is found.

    Attributes:
        rings: What the thread polls, for those who put something there.
        never: A channel that nobody notifies: what it polls while its time passes.
    """

    __slots__ = ("machine", "never", "number", "period", "rings")

    def __init__(self, machine: Machine, number: int, period: int) -> None:
        self.machine = machine
        self.number = number
        self.period = period
        self.rings = WorkQueue(machine.system, instance("pmd rings", number), items=2)
        self.rings.polling = True
        self.never = machine.system.channel(instance("pmd time", number))


class PolledQueue:
    """One receive queue of a polled NIC.

    Args:
        loop: The thread that polls it.

    Attributes:
        frames: Frames in its ring: rows.
    """

    __slots__ = ("frames", "loop")

    def __init__(self, loop: PollLoop) -> None:
        self.loop = loop
        self.frames = Fifo(RX_RING)


class PolledNic:
    """The NIC that the threads poll.

    Args:
        machine, network, milestones: What it belongs to; the network's steering says which queue a flow is put into.
        queues: Its receive queues.
        dma: ps from a frame's last bit until it can be seen in a ring.
    """

    __slots__ = ("dma", "machine", "milestones", "network", "queues")

    def __init__(
        self, machine: Machine, network: Network, milestones: PmdMilestones, queues: list[PolledQueue], *, dma: int
    ) -> None:
        self.machine = machine
        self.network = network
        self.milestones = milestones
        self.queues = queues
        self.dma = dma
        machine.system.process("NIC receive", dma_receive(self))


def iteration(p: PollLoop) -> Generator[Effect, None, None]:
    """The time that the loop itself takes each time around."""
    yield from busy(p, p.period)


def idle_iterations(p: PollLoop) -> Generator[Effect, None, None]:
    """Iterations that find nothing, up to the end of the first in which something was put into a ring."""
    clock = p.machine.clock
    began = clock.now
    while not p.rings.seen:
        yield busy_poll(p.rings.channel, LOOK)
    under_way = (clock.now - began) % p.period
    if under_way > 0:
        yield from busy(p, p.period - under_way)


def busy(p: PollLoop, time: int) -> Generator[Effect, None, None]:
    """Keep the CPU busy for ``time`` ps."""
    clock = p.machine.clock
    end = clock.now + time
    while clock.now < end:
        yield busy_poll(p.never, end - clock.now)


def dma_receive(n: PolledNic) -> Generator[Effect, None, None]:
    """The NIC: each frame is in memory some time after its last bit, and no interrupt tells of it."""
    net = n.network
    while True:
        while net.from_client.count == 0:
            yield wait(net.wire_in)
        row = take_first(net.from_client)
        arrived = take_first(net.from_client_at)
        yield sleep_until(arrived + n.dma)
        mark_past(n.machine.table, row, n.milestones.arrived, arrived)
        q = n.queues[net.steering[flow_of(n.machine.flows, row)]]
        if put(q.frames, row):
            yield from show_poller(q.loop.rings)
        else:
            yield from drop(n.machine.window, row, NIC_RING)
