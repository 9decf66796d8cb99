"""The guest's pcnet32 driver (Linux 6.1, drivers/net/ethernet/amd/pcnet32.c).

A register (CSR) is reached through two ports: its number goes to RAP, its value to or from RDP. So each ``read_csr``
and ``write_csr`` is two accesses, that is two VM exits.
"""

from __future__ import annotations

from collections.abc import Generator
from typing import Final

from iosim.effects import SOFTIRQ, Effect, notify, spend, wait
from iosim.fifo import Fifo
from iosim.guest.irq import local_irq_restore, local_irq_save
from iosim.guest.netdev import DriverMilestones, netif_wake_queue, transmit
from iosim.guest.socket import Socket, sock_wfree
from iosim.guest.softirq import NETDEV_BUDGET, ksoftirqd
from iosim.guest.tcp import Offloads
from iosim.guest.tcp_receive import QDISC_LIMIT, net_tx_action, netif_receive_skb, tcp_recvmsg, tcp_send_ack
from iosim.host import counters as count
from iosim.host.costs import DRIVER_FREE, DRIVER_IRQ, DRIVER_RECEIVE, DRIVER_REFILL, DRIVER_XMIT, SOFTIRQ_ENTRY
from iosim.host.flows import flow_of
from iosim.host.intx import VECTOR
from iosim.host.kvm import Vcpu, eoi_level, irq_enter, irq_return
from iosim.host.machine import Machine
from iosim.host.pcnet import (
    CSR0,
    CSR3,
    DESCRIPTOR,
    ENP,
    INEA,
    MASKABLE,
    OWN,
    RAP,
    RDP,
    STATUS,
    STP,
    TDMD,
    PCNet,
    inw,
    outw,
    start,
)
from iosim.requests import mark, mark_past
from iosim.ring.memory import allocate

TX_RING_SIZE: Final = 16
RX_RING_SIZE: Final = 32
"""The driver's default rings (PCNET32_LOG_TX_BUFFERS, PCNET32_LOG_RX_BUFFERS)."""
RX_BUDGET: Final = RX_RING_SIZE // 2
"""The weight of the driver's NAPI."""
BUFFER: Final = 2048
PENDING: Final = 0x8F00
"""The bits of CSR0 that the interrupt handler looks for."""
NOT_CAUSES: Final = 0x004F
"""The bits of CSR0 that it does not write back: with them INEA goes, until NAPI has finished."""


class Pcnet32Private:
    """The driver's state (struct pcnet32_private).

    Args:
        machine, vcpu, device, milestones: What it belongs to.
        sockets: The guest's sockets, by flow.
        senders: Those that are its own.
        offloads: What is left to the device.

    Attributes:
        cur_tx, dirty_tx: The transmit ring: packets sent, packets cleaned (not modulo its size).
        cur_rx: The receive ring: next to take.
        tx_skbuff: The buffer behind each transmit descriptor.
        tx_full: The next descriptor is not cleaned yet.
        qdisc: Acknowledgements that found the transmit queue stopped.
    """

    __slots__ = (
        "cur_rx", "cur_tx", "device", "dirty_tx", "handler_done", "machine", "milestones", "offloads", "qdisc",
        "scheduled", "senders", "sockets", "softirq", "stopped", "tx_full", "tx_skbuff", "vcpu",
    )  # fmt: skip

    def __init__(
        self,
        machine: Machine,
        vcpu: Vcpu,
        sockets: list[Socket],
        senders: list[Socket],
        device: PCNet,
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
        self.cur_tx = 0
        self.dirty_tx = 0
        self.cur_rx = 0
        self.tx_full = False
        self.stopped = False
        self.scheduled = False
        self.qdisc = Fifo(QDISC_LIMIT)
        self.handler_done = 0
        self.softirq = machine.system.channel("guest softirq")
        machine.system.process("guest softirq", net_rx_action(self), vcpu.thread, SOFTIRQ)
        vcpu.handler("pcnet32_interrupt", pcnet32_interrupt(self))
        # pcnet32_open, before time 0: buffers for both rings, the device started, interrupts on.
        memory = machine.memory
        self.tx_skbuff = [allocate(memory, BUFFER, 64) for _ in range(TX_RING_SIZE)]
        for i in range(RX_RING_SIZE):
            at = device.rdra + i * DESCRIPTOR
            memory.u32[at >> 2] = allocate(memory, BUFFER, 64)
            memory.u16[(at >> 1) + STATUS] = OWN
        start(device)


def read_csr(lp: Pcnet32Private, index: int) -> Generator[Effect, None, int]:
    """Read a CSR: its number to RAP, its value from RDP (pcnet32_wio_read_csr)."""
    yield from outw(lp.device, RAP, index)
    value = yield from inw(lp.device, RDP)
    return value


def write_csr(lp: Pcnet32Private, index: int, value: int) -> Generator[Effect, None, None]:
    """Write a CSR: its number to RAP, its value to RDP (pcnet32_wio_write_csr)."""
    yield from outw(lp.device, RAP, index)
    yield from outw(lp.device, RDP, value)


# -- transmit ---------------------------------------------------------------------------------------------------


def dev_queue_xmit(lp: Pcnet32Private, s: Socket, row: int) -> Generator[Effect, None, None]:
    """Hand a packet to the driver, waiting while the queue is stopped; of a stream, what it is given in one call."""
    yield from transmit(lp, s, row, pcnet32_start_xmit)


def pcnet32_start_xmit(lp: Pcnet32Private, _s: Socket, row: int, _more: bool) -> Generator[Effect, None, None]:
    """Fill a descriptor and demand its transmission, with interrupts off all the while."""
    m = lp.machine
    yield from local_irq_save(lp.vcpu)
    yield spend(DRIVER_XMIT)
    entry = lp.cur_tx % TX_RING_SIZE
    at = lp.device.tdra + entry * DESCRIPTOR
    m.memory.u64[lp.tx_skbuff[entry] >> 3] = row
    m.memory.u32[at >> 2] = lp.tx_skbuff[entry]
    m.memory.u16[(at >> 1) + STATUS] = OWN | STP | ENP
    lp.cur_tx += 1
    mark(m.table, row, lp.milestones.available, m.clock.now)
    yield from write_csr(lp, CSR0, INEA | TDMD)
    following = lp.device.tdra + lp.cur_tx % TX_RING_SIZE * DESCRIPTOR
    if m.memory.u32[following >> 2] != 0:
        lp.tx_full = True
        lp.stopped = True
    yield from local_irq_restore(lp.vcpu)


def send_ack(lp: Pcnet32Private, s: Socket) -> Generator[Effect, None, None]:
    """Acknowledge what has come of a stream."""
    yield from tcp_send_ack(lp, s, pcnet32_start_xmit)


def cleanup_rbuf(lp: Pcnet32Private, s: Socket) -> Generator[Effect, None, None]:
    """The application has read a send call of a stream."""
    yield from tcp_recvmsg(lp, s, send_ack)


# -- interrupt and NAPI -----------------------------------------------------------------------------------------


def pcnet32_interrupt(lp: Pcnet32Private) -> Generator[Effect, None, None]:
    """The interrupt handler: acknowledge, mask, schedule NAPI; the end of interrupt comes after it."""
    while True:
        yield from irq_enter(lp.vcpu, VECTOR)
        yield spend(DRIVER_IRQ)
        csr0 = yield from read_csr(lp, CSR0)
        if csr0 & PENDING:
            yield from write_csr(lp, CSR0, csr0 & ~NOT_CAUSES)
            if not lp.scheduled:
                lp.scheduled = True
                csr3 = yield from read_csr(lp, CSR3)
                yield from write_csr(lp, CSR3, csr3 | MASKABLE)
                yield notify(lp.softirq)
        else:
            lp.machine.counters.n[count.INTERRUPTS_SPURIOUS] += 1
        yield from eoi_level(lp.vcpu, VECTOR)
        lp.handler_done = lp.machine.clock.now
        yield from irq_return(lp.vcpu)


def net_rx_action(lp: Pcnet32Private) -> Generator[Effect, None, None]:
    """The guest's NET_RX softirq: poll while the driver is scheduled."""
    budget = NETDEV_BUDGET
    while True:
        while not lp.scheduled:
            yield wait(lp.softirq)
            budget = NETDEV_BUDGET
        yield spend(SOFTIRQ_ENTRY)
        work = yield from pcnet32_poll(lp)
        yield from net_tx_action(lp, pcnet32_start_xmit)
        budget -= work
        if budget <= 0:
            yield from ksoftirqd()
            budget = NETDEV_BUDGET


def pcnet32_poll(lp: Pcnet32Private) -> Generator[Effect, None, int]:
    """The NAPI poll: take what has come, free what was sent; unmask when there is no more. Return the packets."""
    work = yield from pcnet32_rx(lp)
    yield from local_irq_save(lp.vcpu)
    yield from pcnet32_tx(lp)
    if work < RX_BUDGET:
        lp.scheduled = False
        csr3 = yield from read_csr(lp, CSR3)
        yield from write_csr(lp, CSR3, csr3 & 0x00FF)
        yield from write_csr(lp, CSR0, INEA)
    yield from local_irq_restore(lp.vcpu)
    return work


def pcnet32_rx(lp: Pcnet32Private) -> Generator[Effect, None, int]:
    """Take received packets up to the budget, each descriptor given back at once; return how many."""
    m = lp.machine
    work = 0
    at = lp.device.rdra + lp.cur_rx * DESCRIPTOR
    while work < RX_BUDGET and m.memory.u16[(at >> 1) + STATUS] & OWN == 0:
        row = m.memory.u64[m.memory.u32[at >> 2] >> 3]
        mark_past(m.table, row, lp.milestones.irq, lp.vcpu.handler_began[VECTOR])
        mark_past(m.table, row, lp.milestones.handled, lp.handler_done)
        mark(m.table, row, lp.milestones.taken, m.clock.now)
        yield spend(DRIVER_REFILL)
        yield spend(DRIVER_RECEIVE)
        yield from netif_receive_skb(lp, row, send_ack)
        m.memory.u16[(at >> 1) + STATUS] = OWN
        lp.cur_rx = (lp.cur_rx + 1) % RX_RING_SIZE
        at = lp.device.rdra + lp.cur_rx * DESCRIPTOR
        work += 1
    return work


def pcnet32_tx(lp: Pcnet32Private) -> Generator[Effect, None, None]:
    """Free the packets whose descriptors the device has given back, and open the queue."""
    m = lp.machine
    at = lp.device.tdra + lp.dirty_tx % TX_RING_SIZE * DESCRIPTOR
    while lp.dirty_tx != lp.cur_tx and m.memory.u16[(at >> 1) + STATUS] & OWN == 0:
        yield spend(DRIVER_FREE)
        packet = m.memory.u64[m.memory.u32[at >> 2] >> 3]
        m.memory.u32[at >> 2] = 0
        lp.dirty_tx += 1
        yield from sock_wfree(lp.sockets[flow_of(m.flows, packet)])
        at = lp.device.tdra + lp.dirty_tx % TX_RING_SIZE * DESCRIPTOR
    if lp.tx_full and lp.stopped and lp.cur_tx - lp.dirty_tx < TX_RING_SIZE - 2:
        lp.tx_full = False
        lp.stopped = False
        yield from netif_wake_queue(lp.senders)
