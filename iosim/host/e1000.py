"""QEMU's e1000: registers, descriptor rings, interrupt causes and interrupt mitigation (hw/net/e1000.c).

The device code runs on whatever thread brings it work: the vCPU's for register accesses (TX), the main loop's for
packets from the tap (RX) and for the mitigation timer; always under the big QEMU lock.

Descriptors stand in guest memory as the hardware manual has them (Intel 8254x, 16 bytes): buffer address, length,
command and status; ``DD`` in the status tells the driver that the device is done. A request's frame has the legacy
format; packets of a stream have a context descriptor, which says what their checksum and their segments are, and data
descriptors. TSO is the device's, and so QEMU's: it copies, makes headers and checksums, and sends segment by segment.
"""

from __future__ import annotations

from collections.abc import Generator
from typing import Final, Protocol

from iosim.effects import Effect, spend
from iosim.host import counters as count
from iosim.host.costs import (
    COPY_COLD,
    QEMU_CHECKSUM,
    QEMU_E1000_DESCRIPTOR,
    QEMU_E1000_PACKET,
    QEMU_E1000_REGISTER,
    SYS_IOCTL,
)
from iosim.host.flows import flow_of
from iosim.host.kvm import Vcpu, set_irq_line
from iosim.host.machine import Machine
from iosim.host.main_loop import NEVER, MainLoop, notify_event
from iosim.host.mmio import COALESCED_RING, CoalescedRing, coalesced_write, return_to_guest, trap_to_qemu
from iosim.host.net_client import NetClient, qemu_send_packet
from iosim.host.network import copy_packet_hot, packet_len
from iosim.host.packets import payload, sized, stream_packet
from iosim.requests import mark
from iosim.ring.memory import allocate

STATUS: Final = 0
ICR: Final = 1
ITR: Final = 2
ICS: Final = 3
IMS: Final = 4
IMC: Final = 5
RDT: Final = 6
TDT: Final = 7
REGISTERS: Final = 8
REGISTER_NAMES: Final = ("STATUS", "ICR", "ITR", "ICS", "IMS", "IMC", "RDT", "TDT")

TXDW: Final = 0x01
TXQE: Final = 0x02
RXDMT0: Final = 0x10
RXT0: Final = 0x80
"""Interrupt causes (8254x manual, 13.4.17): descriptor written back, queue empty, ring low, packet received."""

WRITTEN: Final = 1
"""Added to an entry of the trace of register accesses that is a write."""

DESCRIPTOR: Final = 16
DD: Final = 0x1
EOP: Final = 0x2

TXD_LENGTH: Final = 0xFFFF
TXD_DTYP_D: Final = 0x00100000
TXD_CMD_EOP: Final = 0x01000000
TXD_CMD_TSE: Final = 0x04000000
TXD_CMD_RS: Final = 0x08000000
TXD_CMD_DEXT: Final = 0x20000000
TXD_POPTS_TXSM: Final = 0x200
"""Transmit descriptors (8254x manual, 3.3): with DEXT and without DTYP_D a context descriptor; TXSM: of its upper
word, the checksum option of a data descriptor."""
ETH_HLEN: Final = 14
IPV4_HLEN: Final = 20

VECTOR: Final = 0
"""The vector of the device's INTx line."""

MIT_UNIT: Final = 256_000
"""ps of one unit of ITR, in which QEMU counts all mitigation delays."""
MIT_MIN: Final = 500
"""The shortest mitigation delay, in units of 256 ns: the manual's limit of 7813 interrupts a second."""
TADV_UNITS: Final = 32 * 4
"""Linux's TxAbsIntDelay of 32, in units of 256 ns; its RDTR is 0, which switches RADV off."""


class DeviceMilestones(Protocol):
    """The milestones stamped here."""

    rx_seen: int
    rx_used: int
    rx_signalled: int
    kicked: int
    tx_seen: int


class E1000:
    """The device's state; register names are the manual's, ``mit_*`` QEMU's.

    Args:
        machine, vcpu, main_loop, client, milestones: What it belongs to.
        notify_item: The main loop's item for its own eventfd.
        tx_size, rx_size: Descriptors in the rings.
        mitigation: QEMU's property ``mitigation``.

    Attributes:
        value: What the last register read gave.
        tx_ring, rx_ring: Guest-physical addresses of the rings.
        tso_mss, tso_hdr_len: What the last context descriptor for TSO said.
        tx_packet, tx_sent: The packet that is being sent, and how much of its payload has been.
        tx_bytes: Bytes in QEMU's buffer; ``tx_read`` those of them that were read since it last sent.
        tx_sum: The packet needs its checksum.
        held: A packet that found no receive descriptor (-1: none); the tap is not polled meanwhile.
        trace: The register accesses, while ``tracing`` is set: twice the register's number, plus 1 for a write.
    """

    __slots__ = (
        "client", "coalesced", "held", "icr", "ims", "itr", "machine", "main_loop", "milestones", "mit_ide",
        "mit_irq_level", "mit_timer_on", "mitigation", "network", "notify_item", "rdh", "rdt", "rx_ring", "rx_size",
        "tap", "tdh", "tdt", "trace", "tracing", "tso_hdr_len", "tso_mss", "tx_bytes", "tx_packet", "tx_read",
        "tx_ring", "tx_sent", "tx_size", "tx_sum", "value", "vcpu",
    )  # fmt: skip

    def __init__(
        self,
        machine: Machine,
        vcpu: Vcpu,
        main_loop: MainLoop,
        client: NetClient,
        milestones: DeviceMilestones,
        notify_item: int,
        *,
        tx_size: int,
        rx_size: int,
        mitigation: bool,
    ) -> None:
        self.machine = machine
        self.vcpu = vcpu
        self.main_loop = main_loop
        self.client = client
        self.network = client.network
        self.tap = client.tap
        self.milestones = milestones
        self.notify_item = notify_item
        self.mitigation = mitigation
        self.tx_size = tx_size
        self.rx_size = rx_size
        self.tx_ring = allocate(machine.memory, tx_size * DESCRIPTOR, 128)
        self.rx_ring = allocate(machine.memory, rx_size * DESCRIPTOR, 128)
        self.tdh = 0
        self.tdt = 0
        self.rdh = 0
        self.rdt = 0
        self.icr = 0
        self.ims = 0
        self.itr = 0
        self.value = 0
        self.tso_mss = 0
        self.tso_hdr_len = 0
        self.tx_packet = -1
        self.tx_sent = 0
        self.tx_bytes = 0
        self.tx_read = 0
        self.tx_sum = False
        self.mit_ide = False
        self.mit_irq_level = False
        self.mit_timer_on = False
        self.held = -1
        self.coalesced = CoalescedRing()
        self.tracing = False
        self.trace: list[int] = []


# -- the guest's register accesses ------------------------------------------------------------------------------


def ew32(e: E1000, register: int, value: int) -> Generator[Effect, None, None]:
    """The guest writes a register: out to QEMU and back, or into the coalesced ring."""
    e.machine.counters.n[count.MMIO_WRITE] += 1
    if e.tracing:
        e.trace.append(register << 1 | WRITTEN)
    if (register == RDT or register == ITR) and e.coalesced.count < COALESCED_RING:
        yield from coalesced_write(e.vcpu, e.coalesced, register, value)
    else:
        yield from trap_to_qemu(e.vcpu, e.main_loop)
        yield from flush_coalesced(e)
        yield from e1000_write(e, register, value)
        yield from return_to_guest(e.vcpu, e.main_loop, False)


def er32(e: E1000, register: int) -> Generator[Effect, None, int]:
    """The guest reads a register: out to QEMU and back with the result."""
    e.machine.counters.n[count.MMIO_READ] += 1
    if e.tracing:
        e.trace.append(register << 1)
    yield from trap_to_qemu(e.vcpu, e.main_loop)
    yield from flush_coalesced(e)
    yield from e1000_read(e, register)
    value = e.value
    yield from return_to_guest(e.vcpu, e.main_loop, True)
    return value


def flush_coalesced(e: E1000) -> Generator[Effect, None, None]:
    """Carry out the writes that KVM has recorded, before the access that came out to QEMU."""
    ring = e.coalesced
    i = 0
    while i < ring.count:
        yield from e1000_write(e, ring.registers[i], ring.values[i])
        i += 1
    ring.count = 0


# -- the register handlers --------------------------------------------------------------------------------------


def e1000_write(e: E1000, register: int, value: int) -> Generator[Effect, None, None]:
    """The device's handler of a register write."""
    yield spend(QEMU_E1000_REGISTER)
    if register == TDT:
        e.tdt = value
        yield from start_xmit(e)
    elif register == RDT:
        e.rdt = value
        if e.held >= 0 and has_rxbufs(e):
            yield from flush_queued_packets(e)
    elif register == ITR:
        e.itr = value
    elif register == ICS:
        yield from set_interrupt_cause(e, e.icr | value)
    elif register == IMC:
        e.ims &= ~value
        yield from set_interrupt_cause(e, e.icr)
    elif register == IMS:
        e.ims |= value
        yield from set_interrupt_cause(e, e.icr)


def e1000_read(e: E1000, register: int) -> Generator[Effect, None, None]:
    """The device's handler of a register read; reading ICR clears it and lowers the line."""
    yield spend(QEMU_E1000_REGISTER)
    e.value = 0
    if register == ICR:
        e.value = e.icr
        yield from set_interrupt_cause(e, 0)
    elif register == IMS:
        e.value = e.ims


def start_xmit(e: E1000) -> Generator[Effect, None, None]:
    """Carry out the descriptors between TDH and TDT; status back where it is asked for, and then the cause."""
    m = e.machine
    cause = TXQE
    while e.tdh != e.tdt:
        at = e.tx_ring + e.tdh * DESCRIPTOR
        yield from process_tx_desc(e, at)
        if m.memory.u32[(at >> 2) + 2] & TXD_CMD_RS:
            e.mit_ide = True
            m.memory.u32[(at >> 2) + 3] |= DD
            cause |= TXDW
        e.tdh += 1
        if e.tdh == e.tx_size:
            e.tdh = 0
    yield from set_interrupt_cause(e, e.icr | cause)


def process_tx_desc(e: E1000, at: int) -> Generator[Effect, None, None]:
    """A context descriptor: note what it says. Data: read them, and send at a packet's end, with TSO each segment."""
    m = e.machine
    lower = m.memory.u32[(at >> 2) + 2]
    upper = m.memory.u32[(at >> 2) + 3]
    tse = lower & TXD_CMD_TSE > 0
    if not lower & TXD_CMD_EOP:
        yield spend(QEMU_E1000_DESCRIPTOR)
    if lower & (TXD_CMD_DEXT | TXD_DTYP_D) == TXD_CMD_DEXT:
        if tse:
            e.tso_mss = upper >> 16
            e.tso_hdr_len = upper >> 8 & 0xFF
    else:
        if e.tx_bytes == 0:
            e.tx_packet = m.memory.u64[m.memory.u64[at >> 3] >> 3]
            e.tx_sent = 0
            e.tx_sum = upper & TXD_POPTS_TXSM > 0
            mark(m.table, e.tx_packet, e.milestones.tx_seen, m.clock.now)
        left = lower & TXD_LENGTH
        while left > 0:
            size = left
            if tse:
                size = min(left, e.tso_hdr_len + e.tso_mss - e.tx_bytes)
            e.tx_bytes += size
            e.tx_read += size
            left -= size
            if tse and e.tx_bytes == e.tso_hdr_len + e.tso_mss:
                yield from xmit_seg(e, tse)
                e.tx_bytes = e.tso_hdr_len
        if lower & TXD_CMD_EOP:
            # What is left; where the segments were all full QEMU sends the headers once more, with nothing behind.
            yield from xmit_seg(e, tse)
            e.tx_bytes = 0


def xmit_seg(e: E1000, tse: bool) -> Generator[Effect, None, None]:
    """Send what is in the buffer, a segment or a whole packet: headers, checksums, one write to the tap."""
    m = e.machine
    packet = e.tx_packet
    summed = e.tx_bytes - ETH_HLEN - IPV4_HLEN
    if tse:
        # IP's checksum too (IXSM). The packet's last byte stands for its request.
        summed += IPV4_HLEN
        size = e.tx_bytes - e.tso_hdr_len
        e.tx_sent += size
        packet = sized(packet, size)
        if e.tx_sent < payload(e.tx_packet) or size == 0:
            packet = sized(stream_packet(flow_of(m.flows, e.tx_packet)), size)
    yield spend(QEMU_E1000_PACKET)
    m.counters.n[count.COPIED_BYTES] += e.tx_read
    yield spend(COPY_COLD, e.tx_read)
    e.tx_read = 0
    if e.tx_sum:
        yield spend(QEMU_CHECKSUM, summed)
    yield from qemu_send_packet(e.client, packet)


# -- interrupt causes and mitigation ----------------------------------------------------------------------------


def set_interrupt_cause(e: E1000, cause: int) -> Generator[Effect, None, None]:
    """Set ICR and let the line follow it; inside the mitigation window a new edge waits for the timer."""
    e.icr = cause
    pending = e.ims & cause
    held_back = False
    if not e.mit_irq_level and pending != 0:
        if e.mit_timer_on:
            held_back = True
        elif e.mitigation:
            yield from start_mitigation(e, pending)
    if not held_back:
        asserted = pending != 0
        if asserted != e.mit_irq_level:
            e.mit_irq_level = asserted
            e.machine.counters.n[count.SYS_IOCTL] += 1
            yield spend(SYS_IOCTL)
            yield from set_irq_line(e.vcpu, VECTOR, asserted)


def start_mitigation(e: E1000, pending: int) -> Generator[Effect, None, None]:
    """After an edge, the next one not before the shortest delay that applies, and never before 500 units."""
    delay = 0
    if e.mit_ide and pending & (TXQE | TXDW):
        delay = TADV_UNITS
    if e.itr != 0 and (delay == 0 or e.itr < delay):
        delay = e.itr
    delay = max(delay, MIT_MIN)
    e.mit_timer_on = True
    e.mit_ide = False
    e.main_loop.deadline = e.machine.clock.now + delay * MIT_UNIT
    yield from notify_event(e.main_loop, e.notify_item)


def mitigation_timer(e: E1000) -> Generator[Effect, None, None]:
    """The timer's handler, in the main loop: the window is over; raise the line for what has come meanwhile."""
    e.main_loop.deadline = NEVER
    e.mit_timer_on = False
    yield from set_interrupt_cause(e, e.icr)


# -- receive ----------------------------------------------------------------------------------------------------


def has_rxbufs(e: E1000) -> bool:
    """Whether the guest has given a receive descriptor that is not used yet."""
    return e.rdh != e.rdt


def receive(e: E1000, row: int) -> Generator[Effect, None, None]:
    """Put one packet, already in QEMU's buffer, into the guest's: copy, status, cause."""
    m = e.machine
    at = e.rx_ring + e.rdh * DESCRIPTOR
    yield spend(QEMU_E1000_PACKET)
    yield from copy_packet_hot(e.network, row)
    m.memory.u64[m.memory.u64[at >> 3] >> 3] = row
    m.memory.u32[(at >> 2) + 2] = packet_len(e.network, row)
    m.memory.u32[(at >> 2) + 3] = DD | EOP
    e.rdh += 1
    if e.rdh == e.rx_size:
        e.rdh = 0
    mark(m.table, row, e.milestones.rx_used, m.clock.now)
    left = e.rdt - e.rdh
    if left < 0:
        left += e.rx_size
    cause = RXT0
    if left <= e.rx_size // 2:
        cause |= RXDMT0
    before = e.mit_irq_level
    yield from set_interrupt_cause(e, e.icr | cause)
    if e.mit_irq_level and not before:
        mark(m.table, row, e.milestones.rx_signalled, m.clock.now)


def flush_queued_packets(e: E1000) -> Generator[Effect, None, None]:
    """The guest has given descriptors again: deliver the packet that waited, and poll the tap again."""
    row = e.held
    e.held = -1
    yield from receive(e, row)
    e.tap.polled = True
    if e.tap.frames.count > 0:
        yield from notify_event(e.main_loop, e.tap.reader_item)
