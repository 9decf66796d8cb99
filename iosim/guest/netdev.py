"""Between the guest's stack and a NIC's driver: what Linux does above ndo_start_xmit, whatever the NIC."""

from __future__ import annotations

from collections.abc import Callable, Generator
from typing import Protocol, TypeVar

from iosim.effects import SOFTIRQ, TASK, Effect, level, notify, wait
from iosim.guest.socket import Socket
from iosim.guest.tcp import Offloads, tcp_write_xmit
from iosim.host.machine import Machine
from iosim.host.packets import payload
from iosim.requests import mark


class DriverMilestones(Protocol):
    """The milestones that a driver stamps."""

    irq: int
    handled: int
    taken: int
    room: int
    available: int


class NetDevice(Protocol):
    """A driver's state of a transmit queue: what is asked of it here."""

    machine: Machine
    offloads: Offloads
    stopped: bool

    @property
    def milestones(self) -> DriverMilestones:
        """What it stamps: these, and perhaps others."""


D = TypeVar("D", bound=NetDevice)
StartXmit = Callable[[D, Socket, int, bool], Generator[Effect, None, None]]
"""A driver's ndo_start_xmit: it takes a packet of a socket. ``more`` is to follow at once (netdev_xmit_more)."""


def transmit(d: D, s: Socket, row: int, start_xmit: StartXmit[D]) -> Generator[Effect, None, None]:
    """Hand a packet to the driver, waiting while the queue is stopped; of a stream, what it is given in one call.

    Linux: __dev_queue_xmit without a queueing discipline. What the stack cuts a packet into (GSO) goes down as a list.
    """
    if s.stream:
        left = s.size
        while left > 0:
            packet = yield from tcp_write_xmit(d.offloads, s, row, left)
            left -= payload(packet)
            yield from hard_start_xmit(d, s, packet, d.offloads.gso and left > 0, start_xmit)
    else:
        yield from hard_start_xmit(d, s, row, False, start_xmit)


def hard_start_xmit(
    d: D, s: Socket, packet: int, more: bool, start_xmit: StartXmit[D]
) -> Generator[Effect, None, None]:
    """Wait while the queue is stopped, then call the driver, in which bottom halves are off."""
    while d.stopped:
        yield wait(s.tx_wake)
    mark(d.machine.table, packet, d.milestones.room, d.machine.clock.now)
    yield level(SOFTIRQ)
    yield from start_xmit(d, s, packet, more)
    yield level(TASK)


def netif_wake_queue(sockets: list[Socket]) -> Generator[Effect, None, None]:
    """A driver's queue has room again: whoever waits for it tries in turn."""
    i = 0
    while i < len(sockets):
        yield notify(sockets[i].tx_wake)
        i += 1
