"""A physical NIC with descriptor rings, as Intel's 82599: queue pairs, DMA, an MSI-X vector for each, its moderation.

It is the same hardware whoever drives it: the host's kernel, or a guest to which it has been passed through. Its
registers are written, never read, on the way of a packet, and a write to them is posted: it costs the CPU little and
is part of the driver's work for the packet. What differs is whom the message reaches, so the device only says when it
sends one (``msi``); the path takes it from there.

Frames that come are spread over the queues by the hash of their headers (RSS); of those to send the queues' are sent in
turn, since there is one wire. A GSO packet (TSO) is a context descriptor, which says how long headers and segments
are, and data descriptors; the NIC puts all its segments on the wire, one after the other.

Simplifications: a frame is in memory with its last bit, and the time for its DMA is in the interrupt's delay, as for
the NIC of the other paths; frames wait in descriptors only, not in the packet buffer on the chip.
"""

from __future__ import annotations

from collections.abc import Generator
from typing import Final, Protocol

from iosim.effects import Effect, notify, notify_after, sleep_until, wait
from iosim.engine.system import instance
from iosim.fifo import take_first
from iosim.host import counters as count
from iosim.host.costs import NIC_RX_DELAY
from iosim.host.flows import flow_of
from iosim.host.machine import Machine
from iosim.host.network import Network, packet_len
from iosim.host.nic_transmit import put_on_wire
from iosim.requests import mark
from iosim.ring.memory import allocate
from iosim.window import DEVICE_RING, drop

DESCRIPTOR: Final = 16
"""Bytes of an advanced descriptor (82599 datasheet, 7.1.6 and 7.2.3)."""
DD: Final = 1
"""Descriptor done: the device has written it back."""
TXD_LENGTH: Final = 0xFFFF
TXD_DTYP_CTXT: Final = 0x00200000
TXD_DTYP_DATA: Final = 0x00300000
TXD_CMD_EOP: Final = 0x01000000
TXD_CMD_RS: Final = 0x08000000
TXD_CMD_DEXT: Final = 0x20000000
TXD_CMD_TSE: Final = 0x80000000
"""The third word of a transmit descriptor (82599 datasheet, 7.2.3.2.3 and 7.2.3.2.4): a context or data, the packet's
last, to be written back, segmented by the NIC."""
TXD_POPTS_TXSM: Final = 0x200
TXD_PAYLEN_SHIFT: Final = 14
"""The fourth word of one of data: the NIC computes TCP's checksum; payload bytes of the packet."""
ETH_HLEN: Final = 14
IP_HLEN: Final = 20
TCP_HLEN: Final = 32
"""The headers' lengths that a context names."""


class NicMilestones(Protocol):
    """The milestones stamped here."""

    arrived: int
    processed: int


class IxgbeQueue:
    """One queue pair of the device, and its vector; register names are the datasheet's.

    Args:
        machine: What it belongs to.
        number: Its place among the device's.
        tx_size, rx_size: Descriptors in the rings.
        doorbell: The channel of the write to TDT, which all pairs share.

    Attributes:
        tx_ring, rx_ring: Addresses of the rings.
        tdh, tdt, rdh, rdt: Head and tail of both.
        eicr: Something has happened that the vector is to tell.
        eims: The vector's interrupt is enabled.
        throttled: A message is on its way, or held back by moderation (EITR).
        msi_sent: When the last message was sent (ps).
        msi: The channel of the message.
    """

    __slots__ = (
        "doorbell", "eicr", "eims", "machine", "msi", "msi_sent", "number", "rdh", "rdt", "rx_ring", "rx_size", "tdh",
        "tdt", "throttled", "tx_ring", "tx_size",
    )  # fmt: skip

    def __init__(self, machine: Machine, number: int, doorbell: int, *, tx_size: int, rx_size: int) -> None:
        self.machine = machine
        self.number = number
        self.tx_size = tx_size
        self.rx_size = rx_size
        self.tx_ring = allocate(machine.memory, tx_size * DESCRIPTOR, 128)
        self.rx_ring = allocate(machine.memory, rx_size * DESCRIPTOR, 128)
        self.tdh = 0
        self.tdt = 0
        self.rdh = 0
        self.rdt = 0
        self.eicr = False
        self.eims = False
        self.throttled = False
        self.msi_sent = 0
        self.doorbell = doorbell
        self.msi = machine.system.channel(instance("NIC message", number))


class Ixgbe:
    """The device.

    Args:
        machine, network, milestones: What it belongs to; the network's steering says which queue a flow is put into.
        pairs: Its queue pairs.
        tx_size, rx_size: Descriptors in the rings of each.

    Attributes:
        queues: Its queue pairs.
        doorbell: The channel of the write to a TDT.
        turn: The queue that is looked at first for the next frame to send.
    """

    __slots__ = ("doorbell", "machine", "milestones", "network", "queues", "turn")

    def __init__(
        self,
        machine: Machine,
        network: Network,
        milestones: NicMilestones,
        pairs: int,
        *,
        tx_size: int,
        rx_size: int,
    ) -> None:
        self.machine = machine
        self.network = network
        self.milestones = milestones
        self.doorbell = machine.system.channel("NIC doorbell")
        self.queues = [
            IxgbeQueue(machine, number, self.doorbell, tx_size=tx_size, rx_size=rx_size) for number in range(pairs)
        ]
        self.turn = 0
        machine.system.process("NIC transmit", transmit(self))
        machine.system.process("NIC receive", receive(self))


# -- the driver's register writes -------------------------------------------------------------------------------


def write_tdt(n: IxgbeQueue, tail: int) -> Generator[Effect, None, None]:
    """TDT: there are descriptors to send, up to ``tail``."""
    n.machine.counters.n[count.MMIO_WRITE] += 1
    n.tdt = tail
    yield notify(n.doorbell)


def write_rdt(n: IxgbeQueue, tail: int) -> None:
    """RDT: there are buffers for frames to come, up to ``tail``."""
    n.machine.counters.n[count.MMIO_WRITE] += 1
    n.rdt = tail


def write_eims(n: IxgbeQueue) -> Generator[Effect, None, None]:
    """EIMS: enable the interrupt; what has happened meanwhile is told now."""
    n.machine.counters.n[count.MMIO_WRITE] += 1
    n.eims = True
    yield from moderate(n)


# -- the device -------------------------------------------------------------------------------------------------


def cause(n: IxgbeQueue) -> Generator[Effect, None, None]:
    """EICR: something has happened."""
    n.eicr = True
    yield from moderate(n)


def moderate(n: IxgbeQueue) -> Generator[Effect, None, None]:
    """Send the message for what has happened, after the delay of moderation; one at a time."""
    if n.eicr and n.eims and not n.throttled:
        n.throttled = True
        yield notify_after(n.msi, NIC_RX_DELAY)


def message_sent(n: IxgbeQueue) -> None:
    """The message has left: its cause is cleared (EIAC) and its vector masked (EIAM) until the driver enables it."""
    n.throttled = False
    n.eicr = False
    n.eims = False
    n.msi_sent = n.machine.clock.now


def transmit(d: Ixgbe) -> Generator[Effect, None, None]:
    """Fetch descriptors up to the tails and send their packets one after the other; write back each packet's last.

    The tail is moved behind whole packets. In memory a packet begins where its first data descriptor says.
    """
    m = d.machine
    while True:
        while not waiting(d):
            yield wait(d.doorbell)
        n = d.queues[d.turn]
        first = n.tdh
        if m.memory.u32[((n.tx_ring + first * DESCRIPTOR) >> 2) + 2] & TXD_DTYP_DATA == TXD_DTYP_CTXT:
            first = after(n, first)
        row = m.memory.u64[m.memory.u64[(n.tx_ring + first * DESCRIPTOR) >> 3] >> 3]
        mark(m.table, row, d.milestones.processed, m.clock.now)
        yield from put_on_wire(d.network, row)
        last = first
        while not m.memory.u32[((n.tx_ring + last * DESCRIPTOR) >> 2) + 2] & TXD_CMD_EOP:
            last = after(n, last)
        m.memory.u32[((n.tx_ring + last * DESCRIPTOR) >> 2) + 3] = DD
        n.tdh = after(n, last)
        yield from cause(n)
        d.turn = (d.turn + 1) % len(d.queues)


def after(n: IxgbeQueue, place: int) -> int:
    """Return the place in the transmit ring after another."""
    place += 1
    if place == n.tx_size:
        place = 0
    return place


def waiting(d: Ixgbe) -> bool:
    """Whether there is a frame to send; the queue whose turn it is, is then one that has one."""
    looked = 0
    while looked < len(d.queues) and d.queues[d.turn].tdh == d.queues[d.turn].tdt:
        d.turn = (d.turn + 1) % len(d.queues)
        looked += 1
    return looked < len(d.queues)


def receive(d: Ixgbe) -> Generator[Effect, None, None]:
    """Write each frame that arrives into its queue's next buffer; where there is none it is lost."""
    m = d.machine
    net = d.network
    while True:
        while net.from_client.count == 0:
            yield wait(net.wire_in)
        row = take_first(net.from_client)
        yield sleep_until(take_first(net.from_client_at))
        mark(m.table, row, d.milestones.arrived, m.clock.now)
        n = d.queues[net.steering[flow_of(m.flows, row)]]
        if n.rdh != n.rdt:
            at = n.rx_ring + n.rdh * DESCRIPTOR
            m.memory.u64[m.memory.u64[at >> 3] >> 3] = row
            m.memory.u32[(at >> 2) + 2] = packet_len(net, row)
            m.memory.u32[(at >> 2) + 3] = DD
            n.rdh += 1
            if n.rdh == n.rx_size:
                n.rdh = 0
            yield from cause(n)
        else:
            yield from drop(m.window, row, DEVICE_RING)
