"""A poll-mode driver's thread (DPDK): its loop looks at a NIC's ring and a virtqueue again and again, and never sleeps.

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
from iosim.fifo import put, take_first
from iosim.host.machine import Machine
from iosim.host.network import Network
from iosim.host.work import WorkQueue, show_poller
from iosim.requests import mark_past
from iosim.window import NIC_RING, drop

LOOK: Final = 100_000_000
"""ps of idle polling that the engine is asked for at a time. It changes nothing but the number of events."""


class PmdMilestones(Protocol):
    """The milestones stamped here."""

    arrived: int


class PollLoop:
    """The loop and the NIC that it polls.

    Args:
        machine, network, milestones: What it belongs to.
        dma: ps from a frame's last bit until it can be seen in the NIC's ring.
        period: ps that an iteration takes in which nothing is found.

    Attributes:
        rings: What the thread polls, for those who put something there.
        never: A channel that nobody notifies: what it polls while its time passes.
    """

    __slots__ = ("dma", "machine", "milestones", "network", "never", "period", "rings")

    def __init__(
        self, machine: Machine, network: Network, milestones: PmdMilestones, *, dma: int, period: int
    ) -> None:
        self.machine = machine
        self.network = network
        self.milestones = milestones
        self.dma = dma
        self.period = period
        self.rings = WorkQueue(machine.system, "pmd rings", items=2)
        self.rings.polling = True
        self.never = machine.system.channel("pmd time")
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


def dma_receive(p: PollLoop) -> Generator[Effect, None, None]:
    """The NIC: each frame is in memory some time after its last bit, and no interrupt tells of it."""
    net = p.network
    while True:
        while net.from_client.count == 0:
            yield wait(net.wire_in)
        row = take_first(net.from_client)
        arrived = take_first(net.from_client_at)
        yield sleep_until(arrived + p.dma)
        mark_past(p.machine.table, row, p.milestones.arrived, arrived)
        if put(net.rx_ring, row):
            yield from show_poller(p.rings)
        else:
            yield from drop(p.machine.window, row, NIC_RING)
