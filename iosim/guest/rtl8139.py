"""The guest's 8139cp driver (Linux 6.1, drivers/net/ethernet/realtek/8139cp.c): it drives QEMU's rtl8139 in C+ mode.

Each ``cpr`` and ``cpw`` is a register access, that is a VM exit; ``cpw16_f`` reads the register back as a flush. Sent
packets are cleaned in the interrupt handler itself, received ones in NAPI.
"""

from __future__ import annotations

from collections.abc import Generator
from typing import Final

from iosim.effects import SOFTIRQ, Effect, notify, spend, wait
from iosim.fifo import Fifo
from iosim.guest.netdev import DriverMilestones, netif_wake_queue, transmit
from iosim.guest.socket import Socket, sock_wfree
from iosim.guest.softirq import NETDEV_BUDGET, ksoftirqd
from iosim.guest.tcp import Offloads
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
from iosim.host.flows import flow_of
from iosim.host.gro import Gro
from iosim.host.intx import VECTOR
from iosim.host.kvm import Vcpu, eoi_level, irq_enter, irq_return
from iosim.host.machine import Machine
from iosim.host.network import packet_len
from iosim.host.rtl8139 import (
    DESCRIPTOR,
    FIRST_FRAG,
    INTR_MASK,
    INTR_STATUS,
    LAST_FRAG,
    LINK_CHG,
    NORMAL_TX_POLL,
    OWN,
    PCI_ERR,
    RING_END,
    RTL8139,
    RX_EMPTY,
    RX_ERR,
    RX_FIFO_OVR,
    RX_OK,
    TX_ERR,
    TX_OK,
    TX_POLL,
    cpr,
    cpw,
)
from iosim.requests import mark, mark_past
from iosim.ring.memory import allocate

CP_TX_RING_SIZE: Final = 64
CP_RX_RING_SIZE: Final = 64
CP_RX_BUDGET: Final = 16
"""The weight of the driver's NAPI."""
MAX_SKB_FRAGS: Final = 17
BUFFER: Final = 2048
RX_BUF_SIZE: Final = 1536
"""PKT_BUF_SZ, what the driver tells the device of each buffer."""

CP_RX_INTR_MASK: Final = RX_OK | RX_ERR | RX_EMPTY | RX_FIFO_OVR
CP_NORX_INTR_MASK: Final = PCI_ERR | LINK_CHG | TX_OK | TX_ERR
CP_INTR_MASK: Final = CP_NORX_INTR_MASK | CP_RX_INTR_MASK


class CpPrivate:
    """The driver's state (struct cp_private).

    Args:
        machine, vcpu, device, milestones: What it belongs to.
        sockets: The guest's sockets, by flow.
        senders: Those that are its own.
        offloads: What is left to the device.

    Attributes:
        tx_head, tx_tail: The transmit ring: next to use, next to clean.
        rx_tail: The receive ring: next to take.
        gro: What NAPI holds back.
        qdisc: Acknowledgements that found the transmit queue stopped.
    """

    __slots__ = (
        "device", "gro", "handler_done", "machine", "milestones", "offloads", "qdisc", "rx_tail", "scheduled",
        "senders", "sockets", "softirq", "stopped", "tx_head", "tx_tail", "vcpu",
    )  # fmt: skip

    def __init__(
        self,
        machine: Machine,
        vcpu: Vcpu,
        sockets: list[Socket],
        senders: list[Socket],
        device: RTL8139,
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
        self.tx_head = 0
        self.tx_tail = 0
        self.rx_tail = 0
        self.stopped = False
        self.scheduled = False
        self.gro = Gro(len(sockets))
        self.qdisc = Fifo(QDISC_LIMIT)
        self.handler_done = 0
        self.softirq = machine.system.channel("guest softirq")
        machine.system.process("guest softirq", net_rx_action(self), vcpu.thread, SOFTIRQ)
        vcpu.handler("cp_interrupt", cp_interrupt(self))
        # cp_open, before time 0: buffers for both rings, interrupts on.
        memory = machine.memory
        for i in range(CP_TX_RING_SIZE):
            memory.u64[((device.tx_ring + i * DESCRIPTOR) >> 3) + 1] = allocate(memory, BUFFER, 64)
        for i in range(CP_RX_RING_SIZE):
            at = device.rx_ring + i * DESCRIPTOR
            memory.u64[(at >> 3) + 1] = allocate(memory, BUFFER, 64)
            memory.u32[at >> 2] = rx_opts1(i)
        device.intr_mask = CP_INTR_MASK


def rx_opts1(i: int) -> int:
    """What gives receive descriptor ``i`` to the device."""
    opts1 = OWN | RX_BUF_SIZE
    if i == CP_RX_RING_SIZE - 1:
        opts1 |= RING_END
    return opts1


def tx_buffs_avail(cp: CpPrivate) -> int:
    """Free transmit descriptors (TX_BUFFS_AVAIL)."""
    return (cp.tx_tail - cp.tx_head - 1) % CP_TX_RING_SIZE


# -- transmit ---------------------------------------------------------------------------------------------------


def dev_queue_xmit(cp: CpPrivate, s: Socket, row: int) -> Generator[Effect, None, None]:
    """Hand a packet to the driver, waiting while the queue is stopped; of a stream, what it is given in one call."""
    yield from transmit(cp, s, row, cp_start_xmit)


def cp_start_xmit(cp: CpPrivate, _s: Socket, row: int, _more: bool) -> Generator[Effect, None, None]:
    """Fill a descriptor and ring TxPoll: the write that makes QEMU send."""
    m = cp.machine
    yield spend(DRIVER_XMIT)
    at = cp.device.tx_ring + cp.tx_head * DESCRIPTOR
    m.memory.u64[m.memory.u64[(at >> 3) + 1] >> 3] = row
    opts1 = OWN | FIRST_FRAG | LAST_FRAG | packet_len(cp.device.client.network, row)
    if cp.tx_head == CP_TX_RING_SIZE - 1:
        opts1 |= RING_END
    m.memory.u32[at >> 2] = opts1
    cp.tx_head = (cp.tx_head + 1) % CP_TX_RING_SIZE
    mark(m.table, row, cp.milestones.available, m.clock.now)
    if tx_buffs_avail(cp) <= MAX_SKB_FRAGS + 1:
        cp.stopped = True
    yield from cpw(cp.device, TX_POLL, NORMAL_TX_POLL)


def send_ack(cp: CpPrivate, s: Socket) -> Generator[Effect, None, None]:
    """Acknowledge what has come of a stream."""
    yield from tcp_send_ack(cp, s, cp_start_xmit)


def cleanup_rbuf(cp: CpPrivate, s: Socket) -> Generator[Effect, None, None]:
    """The application has read a send call of a stream."""
    yield from tcp_recvmsg(cp, s, send_ack)


# -- interrupt and NAPI -----------------------------------------------------------------------------------------


def cp_interrupt(cp: CpPrivate) -> Generator[Effect, None, None]:
    """The interrupt handler; the end of interrupt comes after it (level-triggered)."""
    while True:
        yield from irq_enter(cp.vcpu, VECTOR)
        yield spend(DRIVER_IRQ)
        status = 0
        mask = yield from cpr(cp.device, INTR_MASK)
        if mask != 0:
            status = yield from cpr(cp.device, INTR_STATUS)
        if status != 0:
            # Receive causes stay: NAPI acknowledges them before it looks at the ring.
            yield from cpw(cp.device, INTR_STATUS, status & ~CP_RX_INTR_MASK)
            if status & CP_RX_INTR_MASK and not cp.scheduled:
                cp.scheduled = True
                yield from cpw16_f(cp, CP_NORX_INTR_MASK)
                yield notify(cp.softirq)
            if status & (TX_OK | TX_ERR):
                yield from cp_tx(cp)
        else:
            cp.machine.counters.n[count.INTERRUPTS_SPURIOUS] += 1
        yield from eoi_level(cp.vcpu, VECTOR)
        cp.handler_done = cp.machine.clock.now
        yield from irq_return(cp.vcpu)


def cpw16_f(cp: CpPrivate, mask: int) -> Generator[Effect, None, None]:
    """Write IntrMask and read it back, so that the write is not posted."""
    yield from cpw(cp.device, INTR_MASK, mask)
    yield from cpr(cp.device, INTR_MASK)


def cp_tx(cp: CpPrivate) -> Generator[Effect, None, None]:
    """Free the packets whose descriptors the device has given back, and open the queue."""
    m = cp.machine
    ring = cp.device.tx_ring
    while cp.tx_tail != cp.tx_head and m.memory.u32[(ring + cp.tx_tail * DESCRIPTOR) >> 2] & OWN == 0:
        yield spend(DRIVER_FREE)
        packet = m.memory.u64[m.memory.u64[((ring + cp.tx_tail * DESCRIPTOR) >> 3) + 1] >> 3]
        cp.tx_tail = (cp.tx_tail + 1) % CP_TX_RING_SIZE
        yield from sock_wfree(cp.sockets[flow_of(m.flows, packet)])
    if cp.stopped and tx_buffs_avail(cp) > MAX_SKB_FRAGS + 1:
        cp.stopped = False
        if cp.qdisc.count > 0:
            # __netif_schedule: the NET_TX softirq sends what waits above.
            yield notify(cp.softirq)
        yield from netif_wake_queue(cp.senders)


def net_rx_action(cp: CpPrivate) -> Generator[Effect, None, None]:
    """The guest's NET_RX softirq: poll while the driver is scheduled; and NET_TX, where something waits above it."""
    budget = NETDEV_BUDGET
    while True:
        while not cp.scheduled and (cp.qdisc.count == 0 or cp.stopped):
            yield wait(cp.softirq)
            budget = NETDEV_BUDGET
        yield spend(SOFTIRQ_ENTRY)
        yield from net_tx_action(cp, cp_start_xmit)
        if cp.scheduled:
            work = yield from cp_rx_poll(cp)
            budget -= work
        if budget <= 0:
            yield from ksoftirqd()
            budget = NETDEV_BUDGET


def cp_rx_poll(cp: CpPrivate) -> Generator[Effect, None, int]:
    """The NAPI poll: acknowledge, take what has come; unmask when there is no more. Return the packets."""
    m = cp.machine
    yield from cpw(cp.device, INTR_STATUS, CP_RX_INTR_MASK)
    rx = 0
    at = cp.device.rx_ring + cp.rx_tail * DESCRIPTOR
    while rx < CP_RX_BUDGET and m.memory.u32[at >> 2] & OWN == 0:
        row = m.memory.u64[m.memory.u64[(at >> 3) + 1] >> 3]
        mark_past(m.table, row, cp.milestones.irq, cp.vcpu.handler_began[VECTOR])
        mark_past(m.table, row, cp.milestones.handled, cp.handler_done)
        mark(m.table, row, cp.milestones.taken, m.clock.now)
        yield spend(DRIVER_REFILL)
        yield spend(DRIVER_RECEIVE)
        yield from napi_gro_receive(cp, row, send_ack)
        m.memory.u32[at >> 2] = rx_opts1(cp.rx_tail)
        cp.rx_tail = (cp.rx_tail + 1) % CP_RX_RING_SIZE
        at = cp.device.rx_ring + cp.rx_tail * DESCRIPTOR
        rx += 1
    yield from napi_flush(cp, send_ack)
    if rx < CP_RX_BUDGET:
        cp.scheduled = False
        yield from cpw16_f(cp, CP_INTR_MASK)
    return rx
