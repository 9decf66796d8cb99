"""The guest's e1000 driver (Linux 6.1): transmit, the interrupt handler, NAPI, dynamic interrupt throttling.

Every ``ew32`` and ``er32`` is a register access, that is a VM exit. Moving the tail after a GSO packet is one as well,
whatever the number of its descriptors and of the segments that QEMU makes of it.
"""

from __future__ import annotations

from collections.abc import Generator
from typing import Final

from iosim.effects import SOFTIRQ, Effect, notify, spend, wait
from iosim.fifo import Fifo
from iosim.guest.netdev import DriverMilestones, transmit
from iosim.guest.socket import Socket, sock_wfree
from iosim.guest.softirq import NETDEV_BUDGET, ksoftirqd
from iosim.guest.tcp import SKB_FRAG, Offloads
from iosim.guest.tcp_receive import (
    QDISC_LIMIT,
    napi_flush,
    napi_gro_receive,
    net_tx_action,
    tcp_recvmsg,
    tcp_send_ack,
)
from iosim.host import counters as count
from iosim.host.costs import DRIVER_FREE, DRIVER_IRQ, DRIVER_RECEIVE, DRIVER_REFILL, DRIVER_XMIT, SOFTIRQ_ENTRY
from iosim.host.e1000 import (
    DD,
    DESCRIPTOR,
    E1000,
    ETH_HLEN,
    ICR,
    IMC,
    IMS,
    ITR,
    RDT,
    STATUS,
    TDT,
    TXD_CMD_DEXT,
    TXD_CMD_EOP,
    TXD_CMD_RS,
    TXD_CMD_TSE,
    TXD_DTYP_D,
    TXD_POPTS_TXSM,
    VECTOR,
    er32,
    ew32,
)
from iosim.host.frames import MSS, TCP_HEADERS
from iosim.host.gro import Gro
from iosim.host.kvm import Vcpu, eoi_level, irq_enter, irq_return
from iosim.host.machine import Machine
from iosim.host.network import packet_len
from iosim.host.packets import of_stream, payload, qdisc_pkt_len, segments
from iosim.requests import mark, mark_past
from iosim.ring.memory import allocate

NAPI_POLL_WEIGHT: Final = 64
MAX_SKB_FRAGS: Final = 17
DESC_NEEDED: Final = MAX_SKB_FRAGS + 7
"""Free descriptors below which the queue stops (e1000_xmit_frame): what the longest packet may take."""
MAX_DATA_PER_TXD: Final = 4096
"""Bytes of one data descriptor (E1000_MAX_DATA_PER_TXD)."""
SENTINEL: Final = 4
"""Bytes of the last descriptor of a GSO packet, and of a frame after one: both work around the 82540's errata."""
TX_WAKE_THRESHOLD: Final = 32
"""Free descriptors at which a stopped queue opens (Linux e1000_main.c)."""
RX_BUFFER_WRITE: Final = 16
"""Receive descriptors cleaned before new buffers are given in between (E1000_RX_BUFFER_WRITE)."""
BUFFER: Final = 2048
IMS_ENABLE: Final = 0x9D
"""IMS_ENABLE_MASK: RXT0, TXDW, RXDMT0, RXSEQ, LSC."""
ALL: Final = 0xFFFFFFFF

LOWEST_LATENCY: Final = 0
LOW_LATENCY: Final = 1
BULK_LATENCY: Final = 2
INITIAL_ITR: Final = 20_000
"""Interrupts a second that the driver begins with (InterruptThrottleRate = 3, dynamic conservative)."""


class E1000Driver:
    """The driver's state.

    Args:
        machine, vcpu, device, milestones: What it belongs to.
        sockets: The guest's sockets, by flow.
        senders: Those that are its own.
        offloads: What is left to the device.

    Attributes:
        tx_next, tx_clean, tx_unused: The transmit ring: next to use, next to clean, free descriptors.
        tx_buffer: Where the linear part of a packet lies, by the descriptor that it begins at.
        tx_watch: The last descriptor of the packet that begins at a descriptor (next_to_watch).
        tx_socket, tx_segs, tx_bytecount: By a packet's last descriptor: its socket, its segments, and their bytes.
        last_tx_tso: The last packet was segmented by the device.
        data: Where all streams' data lie; nobody looks at them.
        turn: Which of the senders is woken first when the queue opens.
        rx_next, rx_fill: The receive ring: next to take, next to give a buffer.
        gro: What NAPI holds back.
        qdisc: Acknowledgements that found the transmit queue stopped.
        itr: Interrupts a second the driver asks for; ``tx_itr`` and ``rx_itr`` its classes of traffic.
    """

    __slots__ = (
        "data", "device", "gro", "handler_done", "itr", "last_tx_tso", "machine", "milestones", "offloads", "qdisc",
        "rx_bytes", "rx_fill", "rx_itr", "rx_next", "rx_packets", "scheduled", "senders", "sockets", "softirq",
        "stopped", "turn", "tx_buffer", "tx_bytecount", "tx_bytes", "tx_clean", "tx_itr", "tx_next", "tx_packets",
        "tx_segs", "tx_socket", "tx_unused", "tx_watch", "vcpu",
    )  # fmt: skip

    def __init__(
        self,
        machine: Machine,
        vcpu: Vcpu,
        sockets: list[Socket],
        senders: list[Socket],
        device: E1000,
        milestones: DriverMilestones,
        offloads: Offloads,
    ) -> None:
        self.machine = machine
        self.vcpu = vcpu
        self.sockets = sockets
        self.senders = senders
        self.device = device
        self.offloads = offloads
        self.milestones = milestones
        self.tx_next = 0
        self.tx_clean = 0
        self.tx_unused = device.tx_size - 1
        self.rx_next = 0
        self.rx_fill = 0
        self.itr = INITIAL_ITR
        self.tx_itr = LOW_LATENCY
        self.rx_itr = LOW_LATENCY
        self.tx_packets = self.tx_bytes = self.rx_packets = self.rx_bytes = 0
        self.stopped = False
        self.scheduled = False
        self.gro = Gro(len(sockets))
        self.qdisc = Fifo(QDISC_LIMIT)
        self.handler_done = 0
        self.softirq = machine.system.channel("guest softirq")
        machine.system.process("guest softirq", net_rx_action(self), vcpu.thread, SOFTIRQ)
        vcpu.handler("e1000_intr", e1000_intr(self))
        # The probe, before time 0: buffers for both rings, throttling, interrupts on.
        u64 = machine.memory.u64
        self.tx_buffer = [allocate(machine.memory, BUFFER, 64) for _ in range(device.tx_size)]
        self.tx_watch = [0] * device.tx_size
        self.tx_socket = [0] * device.tx_size
        self.tx_segs = [0] * device.tx_size
        self.tx_bytecount = [0] * device.tx_size
        self.last_tx_tso = False
        self.data = allocate(machine.memory, SKB_FRAG, 4096)
        self.turn = 0
        for i in range(device.rx_size):
            u64[(device.rx_ring + i * DESCRIPTOR) >> 3] = allocate(machine.memory, BUFFER, 64)
        self.rx_fill = device.rx_size - 1
        device.rdt = self.rx_fill
        device.ims = IMS_ENABLE
        device.itr = itr_register(self.itr)


def itr_register(rate: int) -> int:
    """The value of ITR for a rate of interrupts a second: the interval in units of 256 ns."""
    return 1_000_000_000 // (rate * 256)


# -- transmit ---------------------------------------------------------------------------------------------------


def dev_queue_xmit(d: E1000Driver, s: Socket, row: int) -> Generator[Effect, None, None]:
    """Hand a packet to the driver, waiting while the queue is stopped; of a stream, what it is given in one call."""
    yield from transmit(d, s, row, e1000_xmit_frame)


def e1000_xmit_frame(d: E1000Driver, s: Socket, packet: int, more: bool) -> Generator[Effect, None, None]:
    """Fill the packet's descriptors and move the tail, the write that makes QEMU send; not if ``more`` is to follow."""
    m = d.machine
    yield spend(DRIVER_XMIT)
    e1000_tx_map(d, s, packet)
    mark(m.table, packet, d.milestones.available, m.clock.now)
    if d.tx_unused < DESC_NEEDED:
        d.stopped = True
    if not more or d.stopped:
        yield from ew32(d.device, TDT, d.tx_next)


def e1000_tx_map(d: E1000Driver, s: Socket, packet: int) -> None:
    """Name the parts of a packet to the device (e1000_tso or e1000_tx_csum, e1000_tx_map, e1000_tx_queue).

    A request's frame is linear: one descriptor. A packet of a stream has a context, its headers, and its fragments in
    pieces of 4096 bytes; an acknowledgement is linear too, behind a context.
    """
    first = d.tx_next
    size = payload(packet)
    if size == 0:
        put_linear(d, packet)
    else:
        # Of the places that a context descriptor names, only where IP begins.
        command = TXD_CMD_DEXT | TXD_DTYP_D
        if size > MSS:
            d.last_tx_tso = True
            command |= TXD_CMD_TSE
            put_descriptor(d, ETH_HLEN, TXD_CMD_DEXT | TXD_CMD_TSE | size, MSS << 16 | TCP_HEADERS << 8)
        else:
            put_descriptor(d, ETH_HLEN, TXD_CMD_DEXT, 0)
        buffer = d.tx_buffer[d.tx_next]
        d.machine.memory.u64[buffer >> 3] = packet
        put_descriptor(d, buffer, command | TCP_HEADERS, TXD_POPTS_TXSM)
        put_fragments(d, size, command)
    last = d.tx_next - 1
    if last < 0:
        last = d.device.tx_size - 1
    d.tx_watch[first] = last
    d.tx_socket[last] = s.number
    d.tx_segs[last] = 1
    d.tx_bytecount[last] = packet_len(d.device.network, packet)
    if size > 0:
        d.tx_segs[last] = segments(size)
        d.tx_bytecount[last] = qdisc_pkt_len(size)


def put_linear(d: E1000Driver, packet: int) -> None:
    """Fill the descriptor of a packet without fragments."""
    command = 0
    options = 0
    if of_stream(packet):
        command = TXD_CMD_DEXT | TXD_DTYP_D
        options = TXD_POPTS_TXSM
        put_descriptor(d, ETH_HLEN, TXD_CMD_DEXT, 0)
    buffer = d.tx_buffer[d.tx_next]
    d.machine.memory.u64[buffer >> 3] = packet
    frame = packet_len(d.device.network, packet)
    if d.last_tx_tso:
        d.last_tx_tso = False
        put_descriptor(d, buffer, command | (frame - SENTINEL), options)
        frame = SENTINEL
    put_descriptor(d, buffer, command | TXD_CMD_EOP | TXD_CMD_RS | frame, options)


def put_fragments(d: E1000Driver, size: int, command: int) -> None:
    """Fill the descriptors of a packet's payload; the end of a GSO packet has one for itself."""
    while size > 0:
        fragment = min(size, SKB_FRAG)
        size -= fragment
        while fragment > 0:
            part = min(fragment, MAX_DATA_PER_TXD)
            if command & TXD_CMD_TSE and size == 0 and part == fragment and part > 2 * SENTINEL:
                part -= SENTINEL
            fragment -= part
            lower = command | part
            if size == 0 and fragment == 0:
                lower |= TXD_CMD_EOP | TXD_CMD_RS
            put_descriptor(d, d.data, lower, TXD_POPTS_TXSM)


def put_descriptor(d: E1000Driver, address: int, lower: int, upper: int) -> None:
    """Fill the next descriptor."""
    at = d.device.tx_ring + d.tx_next * DESCRIPTOR
    d.machine.memory.u64[at >> 3] = address
    d.machine.memory.u32[(at >> 2) + 2] = lower
    d.machine.memory.u32[(at >> 2) + 3] = upper
    d.tx_next += 1
    if d.tx_next == d.device.tx_size:
        d.tx_next = 0
    d.tx_unused -= 1


def send_ack(d: E1000Driver, s: Socket) -> Generator[Effect, None, None]:
    """Acknowledge what has come of a stream."""
    yield from tcp_send_ack(d, s, e1000_xmit_frame)


def cleanup_rbuf(d: E1000Driver, s: Socket) -> Generator[Effect, None, None]:
    """The application has read a send call of a stream."""
    yield from tcp_recvmsg(d, s, send_ack)


# -- interrupt and NAPI -----------------------------------------------------------------------------------------


def e1000_intr(d: E1000Driver) -> Generator[Effect, None, None]:
    """The interrupt handler: read the cause, mask, flush, schedule NAPI; the EOI comes after it (level-triggered)."""
    while True:
        yield from irq_enter(d.vcpu, VECTOR)
        yield spend(DRIVER_IRQ)
        cause = yield from er32(d.device, ICR)
        if cause != 0:
            yield from ew32(d.device, IMC, ALL)
            yield from er32(d.device, STATUS)
            if not d.scheduled:
                d.scheduled = True
                d.tx_packets = d.tx_bytes = d.rx_packets = d.rx_bytes = 0
                yield notify(d.softirq)
        else:
            d.machine.counters.n[count.INTERRUPTS_SPURIOUS] += 1
        yield from eoi_level(d.vcpu, VECTOR)
        d.handler_done = d.machine.clock.now
        yield from irq_return(d.vcpu)


def net_rx_action(d: E1000Driver) -> Generator[Effect, None, None]:
    """The guest's NET_RX softirq: poll while the driver is scheduled."""
    budget = NETDEV_BUDGET
    while True:
        while not d.scheduled:
            yield wait(d.softirq)
            budget = NETDEV_BUDGET
        yield spend(SOFTIRQ_ENTRY)
        work = yield from e1000_clean(d)
        yield from net_tx_action(d, e1000_xmit_frame)
        budget -= work
        if budget <= 0:
            yield from ksoftirqd()
            budget = NETDEV_BUDGET


def e1000_clean(d: E1000Driver) -> Generator[Effect, None, int]:
    """The NAPI poll: clean what was sent, take what has come; when there is no more, unmask. Return the packets."""
    cleaned = yield from e1000_clean_tx(d)
    work = yield from e1000_clean_rx(d)
    yield from napi_flush(d, send_ack)
    if work < NAPI_POLL_WEIGHT and cleaned < d.device.tx_size:
        d.scheduled = False
        yield from e1000_set_itr(d)
        yield from ew32(d.device, IMS, IMS_ENABLE)
        yield from er32(d.device, STATUS)
    return work


def e1000_clean_tx(d: E1000Driver) -> Generator[Effect, None, int]:
    """Free the packets whose last descriptors the device has written back; return how many descriptors."""
    m = d.machine
    cleaned = 0
    ring = d.device.tx_ring
    while (
        cleaned < d.device.tx_size
        and d.tx_clean != d.tx_next
        and m.memory.u32[((ring + d.tx_watch[d.tx_clean] * DESCRIPTOR) >> 2) + 3] & DD
    ):
        yield spend(DRIVER_FREE)
        last = d.tx_watch[d.tx_clean]
        d.tx_packets += d.tx_segs[last]
        d.tx_bytes += d.tx_bytecount[last]
        used = last + 1 - d.tx_clean
        if used <= 0:
            used += d.device.tx_size
        d.tx_clean = last + 1
        if d.tx_clean == d.device.tx_size:
            d.tx_clean = 0
        d.tx_unused += used
        cleaned += used
        yield from sock_wfree(d.sockets[d.tx_socket[last]])
    if d.stopped and d.tx_unused >= TX_WAKE_THRESHOLD:
        yield from e1000_wake_queue(d)
    return cleaned


def e1000_wake_queue(d: E1000Driver) -> Generator[Effect, None, None]:
    """Open the queue; its senders come first in turn."""
    d.stopped = False
    i = 0
    while i < len(d.senders):
        yield notify(d.senders[d.turn].tx_wake)
        d.turn = (d.turn + 1) % len(d.senders)
        i += 1
    d.turn = (d.turn + 1) % len(d.senders)


def e1000_clean_rx(d: E1000Driver) -> Generator[Effect, None, int]:
    """Take received packets up to the budget and give the device new buffers; return how many."""
    m = d.machine
    work = 0
    unfilled = 0
    ring = d.device.rx_ring
    while work < NAPI_POLL_WEIGHT and m.memory.u32[((ring + d.rx_next * DESCRIPTOR) >> 2) + 3] & DD:
        at = ring + d.rx_next * DESCRIPTOR
        row = m.memory.u64[m.memory.u64[at >> 3] >> 3]
        m.memory.u32[(at >> 2) + 3] = 0
        mark_past(m.table, row, d.milestones.irq, d.vcpu.handler_began[VECTOR])
        mark_past(m.table, row, d.milestones.handled, d.handler_done)
        mark(m.table, row, d.milestones.taken, m.clock.now)
        d.rx_next += 1
        if d.rx_next == d.device.rx_size:
            d.rx_next = 0
        work += 1
        unfilled += 1
        d.rx_packets += 1
        d.rx_bytes += packet_len(d.device.network, row)
        yield spend(DRIVER_RECEIVE)
        yield from napi_gro_receive(d, row, send_ack)
        if unfilled >= RX_BUFFER_WRITE:
            yield from e1000_alloc_rx_buffers(d, unfilled)
            unfilled = 0
    if unfilled > 0:
        yield from e1000_alloc_rx_buffers(d, unfilled)
    return work


def e1000_alloc_rx_buffers(d: E1000Driver, buffers: int) -> Generator[Effect, None, None]:
    """Give the device ``buffers`` more receive descriptors: a write of RDT, which KVM coalesces."""
    i = 0
    while i < buffers:
        yield spend(DRIVER_REFILL)
        i += 1
    d.rx_fill = (d.rx_fill + buffers) % d.device.rx_size
    yield from ew32(d.device, RDT, d.rx_fill)


# -- dynamic interrupt throttling -------------------------------------------------------------------------------


def e1000_set_itr(d: E1000Driver) -> Generator[Effect, None, None]:
    """Choose the interrupt rate by the traffic since the last interrupt; write ITR where it changes."""
    d.tx_itr = conservative(update_itr(d.tx_itr, d.tx_packets, d.tx_bytes))
    d.rx_itr = conservative(update_itr(d.rx_itr, d.rx_packets, d.rx_bytes))
    rate = INITIAL_ITR
    if max(d.tx_itr, d.rx_itr) == BULK_LATENCY:
        rate = 4_000
    if rate != d.itr:
        if rate > d.itr:
            rate = min(d.itr + (rate >> 2), rate)
        d.itr = rate
        yield from ew32(d.device, ITR, itr_register(rate))


def conservative(traffic: int) -> int:
    """Mode 3 of InterruptThrottleRate leaves the lowest-latency class out."""
    if traffic == LOWEST_LATENCY:
        traffic = LOW_LATENCY
    return traffic


def update_itr(traffic: int, packets: int, size: int) -> int:
    """The next class of traffic, by packets and bytes since the last interrupt (Linux e1000_update_itr)."""
    after = traffic
    if packets > 0:
        if traffic == LOW_LATENCY:
            if size > 10_000:
                if packets < 10 or size // packets > 1200:
                    after = BULK_LATENCY
                elif packets > 35:
                    after = LOWEST_LATENCY
            elif size // packets > 2000:
                after = BULK_LATENCY
            elif packets <= 2 and size < 512:
                after = LOWEST_LATENCY
        elif traffic == BULK_LATENCY:
            if size > 25_000:
                if packets > 35:
                    after = LOW_LATENCY
            elif size < 6_000:
                after = LOW_LATENCY
    return after
