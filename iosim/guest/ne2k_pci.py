"""The guest's ne2k-pci driver (Linux 6.1, drivers/net/ethernet/8390: ne2k-pci.c over the 8390 core, lib8390.c).

Programmed I/O: the CPU moves each packet through the device's data port, in the interrupt handler or with the line
disabled. There is no NAPI; received packets go up by the CPU's backlog (``netif_rx``).
"""

from __future__ import annotations

from collections.abc import Generator
from typing import Final

from iosim.effects import SOFTIRQ, Effect, notify, spend, wait
from iosim.fifo import Fifo, put, take_first
from iosim.guest.irq import (
    IrqDesc,
    disable_irq_nosync,
    enable_irq,
    local_irq_restore,
    local_irq_save,
    mask_disabled,
)
from iosim.guest.netdev import DriverMilestones, netif_wake_queue, transmit
from iosim.guest.socket import Socket, sock_wfree
from iosim.guest.softirq import NETDEV_BUDGET, ksoftirqd
from iosim.guest.tcp import Offloads
from iosim.guest.tcp_receive import QDISC_LIMIT, net_tx_action, netif_receive_skb, tcp_recvmsg, tcp_send_ack
from iosim.host import counters as count
from iosim.host.costs import DRIVER_FREE, DRIVER_IRQ, DRIVER_RECEIVE, DRIVER_XMIT, GUEST_STACK_RX, SOFTIRQ_ENTRY
from iosim.host.flows import flow_of
from iosim.host.intx import VECTOR
from iosim.host.ioapic import IoApic
from iosim.host.kvm import Vcpu, eoi_level, irq_enter, irq_return
from iosim.host.machine import Machine
from iosim.host.ne2000 import (
    BOUNDARY,
    CMD,
    E8390_NODMA,
    E8390_PAGE1,
    E8390_RREAD,
    E8390_RWRITE,
    E8390_START,
    E8390_TRANS,
    ENISR_RDC,
    ENISR_RX,
    ENISR_RX_ERR,
    ENISR_TX,
    HEADER,
    IMR,
    IOAPIC,
    ISR,
    NE2000,
    NESM_START_PG,
    NESM_STOP_PG,
    NO_REQUEST,
    RCNTHI,
    RCNTLO,
    RSARHI,
    RSARLO,
    RX_START_PG,
    TCNTHI,
    TCNTLO,
    TPSR,
    TX_PAGES,
    in_data,
    inb,
    insl,
    out_data,
    outb,
    outsl,
)
from iosim.host.network import packet_len
from iosim.requests import mark, mark_past
from iosim.ring.memory import allocate
from iosim.window import BACKLOG, drop

ENISR_ALL: Final = 0x3F
"""The causes the driver lets through: all but the end of a remote DMA and the reset."""
MAX_SERVICE: Final = 12
"""Rounds of one interrupt, at most."""
RX_PACKETS: Final = 10
"""ei_receive looks for a packet fewer than so many times."""
NETDEV_MAX_BACKLOG: Final = 1000
BACKLOG_WEIGHT: Final = 64
"""Packets that wait in the CPU's backlog (net.core.netdev_max_backlog), and that one poll takes (dev_weight)."""
BUFFER: Final = 2048

SENDING: Final = -1
"""A transmit slot's packet is on its way (lib8390's convention; 0 is empty, else the length that waits)."""


class EiDevice:
    """The driver's state (struct ei_device).

    Args:
        machine, vcpu, device, milestones: What it belongs to.
        sockets: The guest's sockets, by flow.
        senders: Those that are its own.
        offloads: What is left to the device.

    Attributes:
        tx1, tx2: The two transmit slots: 0, a length that waits, or ``SENDING``.
        txing: The device is sending.
        line: The interrupt line, to be disabled around a transmission.
        skb: Guest-physical addresses of a packet to be sent and of one received.
        backlog: Received packets on their way to the softirq: rows.
        qdisc: Acknowledgements that found the transmit queue stopped.
    """

    __slots__ = (
        "backlog", "device", "handler_done", "line", "machine", "milestones", "offloads", "qdisc", "rx_skb", "senders",
        "sockets", "softirq", "stopped", "tx1", "tx2", "tx_skb", "txing", "vcpu",
    )  # fmt: skip

    def __init__(
        self,
        machine: Machine,
        vcpu: Vcpu,
        sockets: list[Socket],
        senders: list[Socket],
        device: NE2000,
        milestones: DriverMilestones,
        offloads: Offloads,
    ) -> None:
        self.machine = machine
        self.vcpu = vcpu
        self.sockets = sockets
        self.senders = senders
        self.offloads = offloads
        self.device = device
        self.milestones = milestones
        self.tx1 = 0
        self.tx2 = 0
        self.txing = False
        self.stopped = False
        self.handler_done = 0
        self.line = IrqDesc(IoApic(vcpu, device.trace, IOAPIC))
        self.tx_skb = allocate(machine.memory, BUFFER, BUFFER)
        self.rx_skb = allocate(machine.memory, BUFFER, BUFFER)
        self.backlog = Fifo(NETDEV_MAX_BACKLOG)
        self.qdisc = Fifo(QDISC_LIMIT)
        self.softirq = machine.system.channel("guest softirq")
        machine.system.process("guest softirq", net_rx_action(self), vcpu.thread, SOFTIRQ)
        vcpu.handler("ei_interrupt", ei_interrupt(self))
        # NS8390_init, before time 0: the receive ring, the device started, interrupts on.
        device.boundary = NESM_STOP_PG - 1
        device.curpag = RX_START_PG
        device.cmd = E8390_NODMA | E8390_START
        device.imr = ENISR_ALL


# -- transmit ---------------------------------------------------------------------------------------------------


def dev_queue_xmit(ei: EiDevice, s: Socket, row: int) -> Generator[Effect, None, None]:
    """Hand a packet to the driver, waiting while the queue is stopped; of a stream, what it is given in one call."""
    yield from transmit(ei, s, row, ei_start_xmit)


def ei_start_xmit(ei: EiDevice, _s: Socket, row: int, _more: bool) -> Generator[Effect, None, None]:
    """Move the packet into the device with interrupts masked and the line disabled, and have it sent."""
    m = ei.machine
    s = ei.device
    length = packet_len(s.client.network, row)
    m.memory.u64[ei.tx_skb >> 3] = row
    yield spend(DRIVER_XMIT)
    mark(m.table, row, ei.milestones.available, m.clock.now)
    yield from local_irq_save(ei.vcpu)
    yield from outb(s, IMR, 0)
    yield from local_irq_restore(ei.vcpu)
    disable_irq_nosync(ei.line)
    page = NESM_START_PG
    if ei.tx1 == 0:
        ei.tx1 = length
    else:
        page += TX_PAGES // 2
        ei.tx2 = length
    yield from ne2k_pci_block_output(ei, length, page)
    if not ei.txing:
        ei.txing = True
        yield from trigger_send(ei, length, page)
        if page == NESM_START_PG:
            ei.tx1 = SENDING
        else:
            ei.tx2 = SENDING
    ei.stopped = ei.tx1 != 0 and ei.tx2 != 0
    yield from outb(s, IMR, ENISR_ALL)
    yield from enable_irq(ei.line)
    # The packet is in the device's memory, so its own is free at once.
    yield spend(DRIVER_FREE)
    yield from sock_wfree(ei.sockets[flow_of(m.flows, row)])


def send_ack(ei: EiDevice, s: Socket) -> Generator[Effect, None, None]:
    """Acknowledge what has come of a stream."""
    yield from tcp_send_ack(ei, s, ei_start_xmit)


def cleanup_rbuf(ei: EiDevice, s: Socket) -> Generator[Effect, None, None]:
    """The application has read a send call of a stream."""
    yield from tcp_recvmsg(ei, s, send_ack)


def remote_dma(ei: EiDevice, address: int, size: int, direction: int) -> Generator[Effect, None, None]:
    """Set up a remote DMA: count, address, direction."""
    s = ei.device
    yield from outb(s, RCNTLO, size & 0xFF)
    yield from outb(s, RCNTHI, size >> 8)
    yield from outb(s, RSARLO, address & 0xFF)
    yield from outb(s, RSARHI, address >> 8)
    yield from outb(s, CMD, direction | E8390_START)


def ne2k_pci_block_output(ei: EiDevice, length: int, page: int) -> Generator[Effect, None, None]:
    """Write a packet into the device's memory: 32 bits at a time, a rest of 2, an odd length rounded up."""
    s = ei.device
    size = length + length % 2
    yield from outb(s, CMD, E8390_NODMA | E8390_START)
    yield from outb(s, ISR, ENISR_RDC)
    yield from remote_dma(ei, page << 8, size, E8390_RWRITE)
    yield from outsl(s, ei.tx_skb, size >> 2)
    if size & 2:
        yield from out_data(s, ei.machine.memory.u16[(ei.tx_skb + size - 2) >> 1])
    done = 0
    while done == 0:
        status = yield from inb(s, ISR)
        done = status & ENISR_RDC
    yield from outb(s, ISR, ENISR_RDC)


def trigger_send(ei: EiDevice, length: int, page: int) -> Generator[Effect, None, None]:
    """Have the device send what stands at a page (NS8390_trigger_send), unless it is still at the last one."""
    s = ei.device
    yield from outb(s, CMD, E8390_NODMA)
    busy = yield from inb(s, CMD)
    if busy & E8390_TRANS == 0:
        yield from outb(s, TCNTLO, length & 0xFF)
        yield from outb(s, TCNTHI, length >> 8)
        yield from outb(s, TPSR, page)
        yield from outb(s, CMD, E8390_NODMA | E8390_TRANS | E8390_START)


# -- interrupt --------------------------------------------------------------------------------------------------


def ei_interrupt(ei: EiDevice) -> Generator[Effect, None, None]:
    """The interrupt: on a disabled line it is only masked, else the handler runs; then the end of interrupt."""
    while True:
        yield from irq_enter(ei.vcpu, VECTOR)
        if ei.line.depth > 0:
            yield from mask_disabled(ei.line)
        else:
            yield spend(DRIVER_IRQ)
            yield from serve(ei)
        yield from eoi_level(ei.vcpu, VECTOR)
        ei.handler_done = ei.machine.clock.now
        yield from irq_return(ei.vcpu)


def serve(ei: EiDevice) -> Generator[Effect, None, None]:
    """The handler itself (__ei_interrupt): look at the status until nothing is left."""
    s = ei.device
    yield from outb(s, CMD, E8390_NODMA)
    interrupts = yield from inb(s, ISR)
    if interrupts == 0:
        ei.machine.counters.n[count.INTERRUPTS_SPURIOUS] += 1
    served = 1
    while interrupts != 0 and served < MAX_SERVICE:
        if interrupts & (ENISR_RX | ENISR_RX_ERR):
            yield from ei_receive(ei)
        if interrupts & ENISR_TX:
            yield from ei_tx_intr(ei)
        if interrupts & ENISR_RDC:
            yield from outb(s, ISR, ENISR_RDC)
        yield from outb(s, CMD, E8390_NODMA | E8390_START)
        interrupts = yield from inb(s, ISR)
        served += 1


def ei_tx_intr(ei: EiDevice) -> Generator[Effect, None, None]:
    """A packet has been sent: its slot is free, and the other slot's packet goes out."""
    yield from inb(ei.device, TPSR)
    yield from outb(ei.device, ISR, ENISR_TX)
    if ei.tx1 == SENDING:
        ei.tx1 = 0
        ei.txing = ei.tx2 > 0
        if ei.txing:
            yield from trigger_send(ei, ei.tx2, NESM_START_PG + TX_PAGES // 2)
            ei.tx2 = SENDING
    elif ei.tx2 == SENDING:
        ei.tx2 = 0
        ei.txing = ei.tx1 > 0
        if ei.txing:
            yield from trigger_send(ei, ei.tx1, NESM_START_PG)
            ei.tx1 = SENDING
    if ei.stopped:
        ei.stopped = False
        if ei.qdisc.count > 0:
            # __netif_schedule: the NET_TX softirq sends what waits above.
            yield notify(ei.softirq)
        yield from netif_wake_queue(ei.senders)


def ei_receive(ei: EiDevice) -> Generator[Effect, None, None]:
    """Read packets out of the device's memory until the ring is empty: where it ends, where it begins, header, data.

    As in Linux, what has come since the last look is acknowledged with the rest: it stays in the device until the next
    packet comes. Linux does so with what is more than 9 packets as well. QEMU never reports an overrun, so a ring that
    is full then stays so for ever and the guest is deaf; here the cause is left standing for the handler's next round.
    """
    m = ei.machine
    s = ei.device
    looks = 1
    more = True
    while more and looks < RX_PACKETS:
        yield from outb(s, CMD, E8390_NODMA | E8390_PAGE1)
        end = yield from inb(s, ISR)
        yield from outb(s, CMD, E8390_NODMA)
        boundary = yield from inb(s, BOUNDARY)
        page = boundary + 1
        if page >= NESM_STOP_PG:
            page = RX_START_PG
        more = page != end
        if more:
            header = yield from ne2k_pci_get_8390_hdr(ei, page)
            yield spend(DRIVER_RECEIVE)
            yield from ne2k_pci_block_input(ei, (header >> 16) - HEADER, (page << 8) + HEADER)
            row = m.memory.u64[ei.rx_skb >> 3]
            if row != NO_REQUEST:
                mark_past(m.table, row, ei.milestones.irq, ei.vcpu.handler_began[VECTOR])
            yield from netif_rx(ei, row)
            yield from outb(s, BOUNDARY, (header >> 8 & 0xFF) - 1)
        looks += 1
    if not more:
        yield from outb(s, ISR, ENISR_RX | ENISR_RX_ERR)


def ne2k_pci_get_8390_hdr(ei: EiDevice, page: int) -> Generator[Effect, None, int]:
    """Read a packet's header: status, next page, length in one number of 32 bits."""
    yield from outb(ei.device, CMD, E8390_NODMA | E8390_START)
    yield from remote_dma(ei, page << 8, HEADER, E8390_RREAD)
    header = yield from in_data(ei.device, 4)
    yield from outb(ei.device, ISR, ENISR_RDC)
    return header


def ne2k_pci_block_input(ei: EiDevice, length: int, address: int) -> Generator[Effect, None, None]:
    """Read a packet: 32 bits at a time, a rest of 2, a rest of 1."""
    s = ei.device
    yield from outb(s, CMD, E8390_NODMA | E8390_START)
    yield from remote_dma(ei, address, length, E8390_RREAD)
    yield from insl(s, ei.rx_skb, length >> 2)
    if length & 2:
        yield from in_data(s, 2)
    if length & 1:
        yield from in_data(s, 1)
    yield from outb(s, ISR, ENISR_RDC)


def netif_rx(ei: EiDevice, row: int) -> Generator[Effect, None, None]:
    """Put a packet into the CPU's backlog and raise the softirq; a full backlog loses it."""
    if put(ei.backlog, row):
        yield notify(ei.softirq)
    elif row != NO_REQUEST:
        yield from drop(ei.machine.window, row, BACKLOG)


def net_rx_action(ei: EiDevice) -> Generator[Effect, None, None]:
    """The guest's NET_RX softirq: poll the backlog while there is something in it; and NET_TX, if above the driver."""
    budget = NETDEV_BUDGET
    while True:
        while ei.backlog.count == 0 and (ei.qdisc.count == 0 or ei.stopped):
            yield wait(ei.softirq)
            budget = NETDEV_BUDGET
        yield spend(SOFTIRQ_ENTRY)
        yield from net_tx_action(ei, ei_start_xmit)
        work = yield from process_backlog(ei)
        budget -= work
        if budget <= 0:
            yield from ksoftirqd()
            budget = NETDEV_BUDGET


def process_backlog(ei: EiDevice) -> Generator[Effect, None, int]:
    """Carry packets from the backlog up the stack; return how many."""
    m = ei.machine
    work = 0
    while work < BACKLOG_WEIGHT and ei.backlog.count > 0:
        row = take_first(ei.backlog)
        if row == NO_REQUEST:
            yield spend(GUEST_STACK_RX)
        else:
            mark_past(m.table, row, ei.milestones.handled, ei.handler_done)
            mark(m.table, row, ei.milestones.taken, m.clock.now)
            yield from netif_receive_skb(ei, row, send_ack)
        work += 1
    return work
