"""QEMU's net clients between an emulated NIC and the tap: what each packet passes on its way in and out."""

from __future__ import annotations

from collections.abc import Callable, Generator
from typing import Final, Protocol, TypeVar

from iosim.effects import Effect, spend
from iosim.fifo import EMPTY
from iosim.host import counters as count
from iosim.host.bridge import tap_read, tap_transmit
from iosim.host.costs import QEMU_NET_QUEUE, SYS_READ, SYS_WRITE
from iosim.host.main_loop import MainLoop
from iosim.host.network import Network, TapQueue, copy_packet, copy_packet_hot
from iosim.host.work import queue_work
from iosim.requests import mark

D = TypeVar("D")

TAP_BURST: Final = 50
"""Packets that one call of tap_send reads at most, so as not to keep the big QEMU lock (QEMU net/tap.c)."""


class ClientMilestones(Protocol):
    """The milestones stamped here."""

    rx_seen: int
    processed: int


class NetClient:
    """The NIC's net client, joined to a tap.

    Args:
        network: The host's network, with the tap.
        milestones: Where to stamp.
        hub: The NIC hangs on QEMU's hub (``-net``): one more net client on the way.
        tap: The tap's one queue.
    """

    __slots__ = ("hub", "milestones", "network", "tap")

    def __init__(self, network: Network, milestones: ClientMilestones, hub: bool, tap: TapQueue) -> None:
        self.network = network
        self.tap = tap
        self.milestones = milestones
        self.hub = hub


def net_queue(c: NetClient) -> Generator[Effect, None, None]:
    """A packet goes from net client to net client (qemu_net_queue_send)."""
    yield spend(QEMU_NET_QUEUE)
    if c.hub:
        yield spend(QEMU_NET_QUEUE)


def qemu_send_packet(c: NetClient, row: int) -> Generator[Effect, None, None]:
    """The NIC sends a packet that QEMU has in a buffer: one writev to the tap."""
    m = c.network.machine
    yield from net_queue(c)
    m.counters.n[count.SYS_WRITEV] += 1
    yield spend(SYS_WRITE)
    yield from copy_packet_hot(c.network, row)
    yield from tap_transmit(c.network, c.tap, row)
    mark(m.table, row, c.milestones.processed, m.clock.now)


def tap_send(
    c: NetClient, q: MainLoop, item: int, nic: D, receive: Callable[[D, int], Generator[Effect, None, None]]
) -> Generator[Effect, None, None]:
    """The tap is readable: the NIC receives packets until there is no more (EAGAIN) or the burst is over.

    ``item`` is what stands for the tap in the main loop: it finds it readable again if there is more.
    """
    packets = 0
    row = yield from tap_read_packet(c)
    while row != EMPTY:
        yield from receive(nic, row)
        packets += 1
        row = EMPTY
        if packets < TAP_BURST:
            row = yield from tap_read_packet(c)
    if c.tap.frames.count > 0:
        yield from queue_work(q.work, item)


def tap_read_packet(c: NetClient) -> Generator[Effect, None, int]:
    """Read a packet from the tap and bring it to the NIC; return its row, or ``EMPTY`` (EAGAIN)."""
    m = c.network.machine
    row = tap_read(c.tap)
    if row >= 0:
        mark(m.table, row, c.milestones.rx_seen, m.clock.now)
    m.counters.n[count.SYS_READ] += 1
    yield spend(SYS_READ)
    if row >= 0:
        yield from copy_packet(c.network, row)
        yield from net_queue(c)
    return row
