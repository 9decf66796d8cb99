"""The driver of a physical NIC (Linux 6.1, ixgbe): transmit, the MSI-X handler, NAPI for both directions.

The same on the host itself and in a guest that has the NIC by VFIO: its register writes go to the device, in the guest
through the mapping of the BAR in its page tables, and no exit. The device masks the vector by itself, so the handler
reads and writes no register.

There is a queue pair and a vector for each CPU. Frames come to the pair that the NIC's hash chose, and so to its CPU,
whatever CPU the application is on (the driver's application targeted routing is for TCP only).

With TSO a GSO packet of a stream is one call of the driver, some descriptors and one write to the tail.
"""

from __future__ import annotations

from collections.abc import Generator
from typing import Final, Protocol

from iosim.effects import SOFTIRQ, Effect, notify, spend, wait
from iosim.engine.system import instance
from iosim.fifo import Fifo, put, take_first
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
from iosim.host.costs import DRIVER_FREE, DRIVER_IRQ, HOST_RECEIVE, NIC_TX, SOFTIRQ_ENTRY
from iosim.host.frames import MSS, TCP_HEADERS
from iosim.host.gro import Gro
from iosim.host.ixgbe import (
    DD,
    DESCRIPTOR,
    ETH_HLEN,
    IP_HLEN,
    TCP_HLEN,
    TXD_CMD_DEXT,
    TXD_CMD_EOP,
    TXD_CMD_RS,
    TXD_CMD_TSE,
    TXD_DTYP_CTXT,
    TXD_DTYP_DATA,
    TXD_PAYLEN_SHIFT,
    TXD_POPTS_TXSM,
    Ixgbe,
    IxgbeQueue,
    write_eims,
    write_rdt,
    write_tdt,
)
from iosim.host.kvm import Vcpu, eoi_edge, irq_enter, irq_return
from iosim.host.machine import Machine
from iosim.host.packets import of_stream, payload
from iosim.requests import mark, mark_past
from iosim.ring.memory import allocate

NAPI_POLL_WEIGHT: Final = 64
TX_WORK: Final = 256
"""Sent packets that one poll frees at most (IXGBE_DEFAULT_TX_WORK)."""
DESC_NEEDED: Final = 21
"""Free descriptors below which the queue stops: MAX_SKB_FRAGS + 4."""
TX_WAKE_THRESHOLD: Final = 2 * DESC_NEEDED
"""Free descriptors at which a stopped queue opens."""
RX_BUFFER_WRITE: Final = 16
"""Receive descriptors that are given back together (IXGBE_RX_BUFFER_WRITE)."""
MAX_DATA_PER_TXD: Final = 16384
"""Bytes of one data descriptor (IXGBE_MAX_DATA_PER_TXD)."""
BUFFER: Final = 2048


class IxgbeMilestones(DriverMilestones, Protocol):
    """The milestones stamped here."""

    rx_signalled: int


class SoftNet:
    """What the softirq of one CPU works on (softnet_data).

    Args:
        machine, vcpu: What it belongs to.
        napis: NAPI instances on this CPU at most.

    Attributes:
        pairs: The queue pairs that belong to the CPU.
        poll_list: Those waiting for their poll, by their place in ``pairs``.
        softirq: NET_RX was raised.
    """

    __slots__ = ("machine", "pairs", "poll_list", "softirq", "vcpu")

    def __init__(self, machine: Machine, vcpu: Vcpu, napis: int) -> None:
        self.machine = machine
        self.vcpu = vcpu
        self.pairs: list[IxgbeDriver] = []
        self.poll_list = Fifo(napis)
        self.softirq = machine.system.channel(instance("guest softirq", vcpu.number))
        machine.system.process(instance("guest softirq", vcpu.number), net_rx_action(self), vcpu.thread, SOFTIRQ)


class IxgbeDriver:
    """The driver's state of one queue pair (ixgbe_q_vector and its rings).

    Args:
        machine, softnet, milestones: What it belongs to; the pair is served on the softnet's CPU.
        sockets: All sockets, by flow.
        senders: Those that send by this pair (XPS: those of its CPU).
        queue: The device's pair.
        frame: Bytes of a frame.
        offloads: What is left to the device.

    Attributes:
        vector: Its NAPI instance's place on its CPU, and its vector there.
        tx_next, tx_clean, tx_unused: The transmit ring: next to use, next to clean, free descriptors.
        tx_buffer: Where the linear part of a packet lies, by the descriptor that names it.
        tx_watch, tx_socket: The last descriptor of the packet that begins at a descriptor (next_to_watch), and its
            socket.
        data: Where all streams' data lie; nobody looks at them.
        rx_next, rx_fill, rx_unfilled: The receive ring: next to take, next to give a buffer, those without one.
        stopped: The transmit queue is stopped for want of descriptors.
        turn: Which of the senders is woken first when it opens.
        gro: What NAPI holds back.
        qdisc: Acknowledgements that found the transmit queue stopped.
        scheduled: NAPI_STATE_SCHED.
        handler_done: When the interrupt handler returned last (ps).
    """

    __slots__ = (
        "data", "frame", "gro", "handler_done", "machine", "milestones", "offloads", "qdisc", "queue", "rx_fill",
        "rx_next", "rx_unfilled", "scheduled", "senders", "sockets", "softnet", "stopped", "turn", "tx_buffer",
        "tx_clean", "tx_next", "tx_socket", "tx_unused", "tx_watch", "vcpu", "vector",
    )  # fmt: skip

    def __init__(
        self,
        machine: Machine,
        softnet: SoftNet,
        sockets: list[Socket],
        senders: list[Socket],
        milestones: IxgbeMilestones,
        queue: IxgbeQueue,
        frame: int,
        offloads: Offloads,
    ) -> None:
        self.machine = machine
        self.softnet = softnet
        self.vcpu = softnet.vcpu
        self.sockets = sockets
        self.senders = senders
        self.queue = queue
        self.frame = frame
        self.offloads = offloads
        self.milestones = milestones
        self.vector = len(softnet.pairs)
        self.tx_next = 0
        self.tx_clean = 0
        self.tx_unused = queue.tx_size - 1
        self.rx_next = 0
        self.rx_fill = 0
        self.rx_unfilled = 0
        self.stopped = False
        self.turn = 0
        self.gro = Gro(len(sockets))
        self.qdisc = Fifo(QDISC_LIMIT)
        self.scheduled = False
        self.handler_done = 0
        softnet.pairs.append(self)
        self.vcpu.handler(instance("ixgbe_msix_clean_rings", queue.number), ixgbe_msix_clean_rings(self))
        # The probe, before time 0: buffers for both rings, the interrupt on.
        u64 = machine.memory.u64
        self.tx_buffer = [allocate(machine.memory, BUFFER, 64) for _ in range(queue.tx_size)]
        self.tx_watch = [0] * queue.tx_size
        self.tx_socket = [0] * queue.tx_size
        self.data = allocate(machine.memory, SKB_FRAG, 4096)
        for i in range(queue.rx_size):
            u64[(queue.rx_ring + i * DESCRIPTOR) >> 3] = allocate(machine.memory, BUFFER, 64)
        self.rx_fill = queue.rx_size - 1
        queue.rdt = self.rx_fill
        queue.eims = True


def ixgbe_probe(
    machine: Machine,
    vcpus: list[Vcpu],
    sockets: list[Socket],
    milestones: IxgbeMilestones,
    device: Ixgbe,
    offloads: Offloads,
) -> list[IxgbeDriver]:
    """Install the driver: pair ``i`` of the device is served on CPU ``i`` modulo their number, with its flows."""
    pairs = len(device.queues)
    softnets = [SoftNet(machine, vcpu, -(-pairs // len(vcpus))) for vcpu in vcpus]
    return [
        IxgbeDriver(
            machine,
            softnets[i % len(vcpus)],
            sockets,
            sockets[i::pairs],
            milestones,
            queue,
            device.network.frame,
            offloads,
        )
        for i, queue in enumerate(device.queues)
    ]


# -- transmit ---------------------------------------------------------------------------------------------------


def dev_queue_xmit(d: IxgbeDriver, s: Socket, row: int) -> Generator[Effect, None, None]:
    """Hand a packet to the driver, waiting while the queue is stopped; of a stream, what it is given in one call."""
    yield from transmit(d, s, row, ixgbe_xmit_frame)


def ixgbe_xmit_frame(d: IxgbeDriver, s: Socket, packet: int, more: bool) -> Generator[Effect, None, None]:
    """Map the packet, fill its descriptors, move the tail: the doorbell; not if ``more`` is to follow (xmit_more)."""
    m = d.machine
    yield spend(NIC_TX)
    ixgbe_tx_map(d, s, packet)
    mark(m.table, packet, d.milestones.available, m.clock.now)
    if d.tx_unused < DESC_NEEDED:
        d.stopped = True
    if not more or d.stopped:
        yield from write_tdt(d.queue, d.tx_next)


def ixgbe_tx_map(d: IxgbeDriver, s: Socket, packet: int) -> None:
    """Name the parts of a packet to the device (ixgbe_tso or ixgbe_tx_csum, ixgbe_tx_map).

    A request's frame is linear: one descriptor. A packet of a stream has a context, its headers, and its fragments in
    pieces of 16 KiB; an acknowledgement is linear too, behind a context.
    """
    first = d.tx_next
    size = payload(packet)
    command = TXD_CMD_DEXT | TXD_DTYP_DATA
    if size == 0:
        put_linear(d, packet)
    else:
        status = (TCP_HEADERS + size) << TXD_PAYLEN_SHIFT | TXD_POPTS_TXSM
        segmented = 0
        if size > MSS:
            command |= TXD_CMD_TSE
            status = size << TXD_PAYLEN_SHIFT | TXD_POPTS_TXSM
            segmented = MSS << 16 | TCP_HLEN << 8
        put_descriptor(d, ETH_HLEN << 9 | IP_HLEN, TXD_CMD_DEXT | TXD_DTYP_CTXT, segmented)
        buffer = d.tx_buffer[d.tx_next]
        d.machine.memory.u64[buffer >> 3] = packet
        put_descriptor(d, buffer, command | TCP_HEADERS, status)
        put_fragments(d, size, command, status)
    d.tx_watch[first] = d.tx_next - 1
    if d.tx_next == 0:
        d.tx_watch[first] = d.queue.tx_size - 1
    d.tx_socket[first] = s.number


def put_linear(d: IxgbeDriver, packet: int) -> None:
    """Fill the descriptor of a packet without fragments."""
    frame = d.frame
    options = 0
    if of_stream(packet):
        frame = TCP_HEADERS
        options = TXD_POPTS_TXSM
        put_descriptor(d, ETH_HLEN << 9 | IP_HLEN, TXD_CMD_DEXT | TXD_DTYP_CTXT, 0)
    buffer = d.tx_buffer[d.tx_next]
    d.machine.memory.u64[buffer >> 3] = packet
    command = TXD_CMD_DEXT | TXD_DTYP_DATA | TXD_CMD_EOP | TXD_CMD_RS
    put_descriptor(d, buffer, command | frame, frame << TXD_PAYLEN_SHIFT | options)


def put_fragments(d: IxgbeDriver, size: int, command: int, status: int) -> None:
    """Fill the descriptors of a packet's payload."""
    while size > 0:
        fragment = min(size, SKB_FRAG)
        size -= fragment
        while fragment > 0:
            part = min(fragment, MAX_DATA_PER_TXD)
            fragment -= part
            lower = command | part
            if size == 0 and fragment == 0:
                lower |= TXD_CMD_EOP | TXD_CMD_RS
            put_descriptor(d, d.data, lower, status)


def put_descriptor(d: IxgbeDriver, address: int, lower: int, upper: int) -> None:
    """Fill the next descriptor."""
    at = d.queue.tx_ring + d.tx_next * DESCRIPTOR
    d.machine.memory.u64[at >> 3] = address
    d.machine.memory.u32[(at >> 2) + 2] = lower
    d.machine.memory.u32[(at >> 2) + 3] = upper
    d.tx_next += 1
    if d.tx_next == d.queue.tx_size:
        d.tx_next = 0
    d.tx_unused -= 1


def send_ack(d: IxgbeDriver, s: Socket) -> Generator[Effect, None, None]:
    """Acknowledge what has come of a stream, by the queue pair of the CPU that this is on (XPS)."""
    yield from tcp_send_ack(d, s, ixgbe_xmit_frame)


def cleanup_rbuf(d: IxgbeDriver, s: Socket) -> Generator[Effect, None, None]:
    """The application has read a send call of a stream."""
    yield from tcp_recvmsg(d, s, send_ack)


# -- interrupt and NAPI -----------------------------------------------------------------------------------------


def ixgbe_msix_clean_rings(d: IxgbeDriver) -> Generator[Effect, None, None]:
    """The handler of the queue pair's vector: schedule NAPI, no more; the device has masked the vector itself."""
    while True:
        yield from irq_enter(d.vcpu, d.vector)
        yield from eoi_edge(d.vcpu)
        yield spend(DRIVER_IRQ)
        if not d.scheduled:
            d.scheduled = True
            put(d.softnet.poll_list, d.vector)
            yield notify(d.softnet.softirq)
        d.handler_done = d.machine.clock.now
        yield from irq_return(d.vcpu)


def net_rx_action(s: SoftNet) -> Generator[Effect, None, None]:
    """The NET_RX softirq of a CPU: poll what is scheduled, in turn."""
    budget = NETDEV_BUDGET
    while True:
        while s.poll_list.count == 0:
            yield wait(s.softirq)
            budget = NETDEV_BUDGET
        d = s.pairs[take_first(s.poll_list)]
        yield spend(SOFTIRQ_ENTRY)
        work = yield from ixgbe_poll(d)
        yield from net_tx_action(d, ixgbe_xmit_frame)
        if d.scheduled:
            # There may be more: interrupts stay off and the poll gets in line again.
            put(s.poll_list, d.vector)
        budget -= work
        if budget <= 0:
            yield from ksoftirqd()
            budget = NETDEV_BUDGET


def ixgbe_poll(d: IxgbeDriver) -> Generator[Effect, None, int]:
    """The NAPI poll: free what was sent, take what has come; when there is no more, enable the interrupt.

    Returns how many packets it received. One that finds nothing has followed an interrupt about what an earlier poll
    had seen already: its cause was set while that poll was under way.
    """
    cleaned = yield from ixgbe_clean_tx_irq(d)
    work = yield from ixgbe_clean_rx_irq(d)
    yield from napi_flush(d, send_ack)
    if cleaned + work == 0:
        d.machine.counters.n[count.INTERRUPTS_SPURIOUS] += 1
    if work < NAPI_POLL_WEIGHT and cleaned < TX_WORK:
        d.scheduled = False
        yield from write_eims(d.queue)
    return work


def ixgbe_clean_tx_irq(d: IxgbeDriver) -> Generator[Effect, None, int]:
    """Free the packets whose descriptors the device has written back; return how many."""
    m = d.machine
    cleaned = 0
    ring = d.queue.tx_ring
    while (
        cleaned < TX_WORK
        and d.tx_clean != d.tx_next
        and m.memory.u32[((ring + d.tx_watch[d.tx_clean] * DESCRIPTOR) >> 2) + 3] & DD
    ):
        yield spend(DRIVER_FREE)
        first = d.tx_clean
        used = d.tx_watch[first] + 1 - first
        if used <= 0:
            used += d.queue.tx_size
        d.tx_clean = (first + used) % d.queue.tx_size
        d.tx_unused += used
        cleaned += 1
        yield from sock_wfree(d.sockets[d.tx_socket[first]])
    if d.stopped and d.tx_unused >= TX_WAKE_THRESHOLD:
        d.stopped = False
        i = 0
        while i < len(d.senders):
            yield notify(d.senders[d.turn].tx_wake)
            d.turn = (d.turn + 1) % len(d.senders)
            i += 1
        d.turn = (d.turn + 1) % len(d.senders)
    return cleaned


def ixgbe_clean_rx_irq(d: IxgbeDriver) -> Generator[Effect, None, int]:
    """Take received packets up to the budget, giving buffers back in sixteens; return how many."""
    m = d.machine
    work = 0
    ring = d.queue.rx_ring
    while work < NAPI_POLL_WEIGHT and m.memory.u32[((ring + d.rx_next * DESCRIPTOR) >> 2) + 3] & DD:
        if d.rx_unfilled >= RX_BUFFER_WRITE:
            ixgbe_alloc_rx_buffers(d)
        at = ring + d.rx_next * DESCRIPTOR
        row = m.memory.u64[m.memory.u64[at >> 3] >> 3]
        m.memory.u32[(at >> 2) + 3] = 0
        mark_past(m.table, row, d.milestones.rx_signalled, d.queue.msi_sent)
        mark_past(m.table, row, d.milestones.irq, d.vcpu.handler_began[d.vector])
        mark_past(m.table, row, d.milestones.handled, d.handler_done)
        mark(m.table, row, d.milestones.taken, m.clock.now)
        d.rx_next += 1
        if d.rx_next == d.queue.rx_size:
            d.rx_next = 0
        d.rx_unfilled += 1
        work += 1
        yield spend(HOST_RECEIVE)
        if payload(row) > 0:
            m.counters.n[count.STREAM_FRAMES] += 1
        yield from napi_gro_receive(d, row, send_ack)
    return work


def ixgbe_alloc_rx_buffers(d: IxgbeDriver) -> None:
    """Give the device new buffers; what that takes is in the cost of each packet."""
    d.rx_fill = (d.rx_fill + d.rx_unfilled) % d.queue.rx_size
    d.rx_unfilled = 0
    write_rdt(d.queue, d.rx_fill)
