"""The driver of a physical NIC (Linux 6.1, ixgbe): transmit, the MSI-X handler, NAPI for both directions.

The same on the host itself and in a guest that has the NIC by VFIO: its register writes go to the device, in the guest
through the mapping of the BAR in its page tables, and no exit. The device masks the vector by itself, so the handler
reads and writes no register.
"""

from __future__ import annotations

from collections.abc import Generator
from typing import Final, Protocol

from iosim.effects import SOFTIRQ, TASK, Effect, level, notify, spend, wait
from iosim.guest.socket import Socket, deliver, sock_wfree
from iosim.guest.softirq import NETDEV_BUDGET, ksoftirqd
from iosim.host import counters as count
from iosim.host.costs import DRIVER_FREE, DRIVER_IRQ, HOST_RECEIVE, NIC_TX, SOFTIRQ_ENTRY
from iosim.host.ixgbe import DD, DESCRIPTOR, Ixgbe, write_eims, write_rdt, write_tdt
from iosim.host.kvm import Vcpu, eoi_edge, irq_enter, irq_return
from iosim.host.machine import Machine
from iosim.requests import mark, mark_past
from iosim.ring.memory import allocate

VECTOR: Final = 0
"""The vector of the queue pair."""
NAPI_POLL_WEIGHT: Final = 64
TX_WORK: Final = 256
"""Sent packets that one poll frees at most (IXGBE_DEFAULT_TX_WORK)."""
DESC_NEEDED: Final = 21
"""Free descriptors below which the queue stops: MAX_SKB_FRAGS + 4."""
TX_WAKE_THRESHOLD: Final = 2 * DESC_NEEDED
"""Free descriptors at which a stopped queue opens."""
RX_BUFFER_WRITE: Final = 16
"""Receive descriptors that are given back together (IXGBE_RX_BUFFER_WRITE)."""
BUFFER: Final = 2048


class DriverMilestones(Protocol):
    """The milestones stamped here."""

    rx_signalled: int
    irq: int
    handled: int
    taken: int
    room: int
    available: int


class IxgbeDriver:
    """The driver's state.

    Args:
        machine, vcpu, socket, device, milestones: What it belongs to.

    Attributes:
        tx_next, tx_clean, tx_unused: The transmit ring: next to use, next to clean, free descriptors.
        rx_next, rx_fill, rx_unfilled: The receive ring: next to take, next to give a buffer, those without one.
        stopped: The transmit queue is stopped for want of descriptors.
        scheduled: NAPI_STATE_SCHED.
        handler_done: When the interrupt handler returned last (ps).
    """

    __slots__ = (
        "device", "handler_done", "machine", "milestones", "rx_fill", "rx_next", "rx_unfilled", "scheduled", "socket",
        "softirq", "stopped", "tx_clean", "tx_next", "tx_unused", "vcpu",
    )  # fmt: skip

    def __init__(
        self, machine: Machine, vcpu: Vcpu, socket: Socket, device: Ixgbe, milestones: DriverMilestones
    ) -> None:
        self.machine = machine
        self.vcpu = vcpu
        self.socket = socket
        self.device = device
        self.milestones = milestones
        self.tx_next = 0
        self.tx_clean = 0
        self.tx_unused = device.tx_size - 1
        self.rx_next = 0
        self.rx_fill = 0
        self.rx_unfilled = 0
        self.stopped = False
        self.scheduled = False
        self.handler_done = 0
        self.softirq = machine.system.channel("guest softirq")
        machine.system.process("guest softirq", net_rx_action(self), vcpu.thread, SOFTIRQ)
        vcpu.handler("ixgbe_msix_clean_rings", ixgbe_msix_clean_rings(self))
        # The probe, before time 0: buffers for both rings, the interrupt on.
        u64 = machine.memory.u64
        for i in range(device.tx_size):
            u64[(device.tx_ring + i * DESCRIPTOR) >> 3] = allocate(machine.memory, BUFFER, 64)
        for i in range(device.rx_size):
            u64[(device.rx_ring + i * DESCRIPTOR) >> 3] = allocate(machine.memory, BUFFER, 64)
        self.rx_fill = device.rx_size - 1
        device.rdt = self.rx_fill
        device.eims = True


# -- transmit ---------------------------------------------------------------------------------------------------


def dev_queue_xmit(d: IxgbeDriver, row: int) -> Generator[Effect, None, None]:
    """Hand a packet to the driver, waiting while the queue is stopped; bottom halves are off in the driver."""
    while d.stopped:
        yield wait(d.socket.tx_wake)
    mark(d.machine.table, row, d.milestones.room, d.machine.clock.now)
    yield level(SOFTIRQ)
    yield from ixgbe_xmit_frame(d, row)
    yield level(TASK)


def ixgbe_xmit_frame(d: IxgbeDriver, row: int) -> Generator[Effect, None, None]:
    """Map the packet, fill a descriptor, move the tail: the doorbell."""
    m = d.machine
    yield spend(NIC_TX)
    at = d.device.tx_ring + d.tx_next * DESCRIPTOR
    m.memory.u64[m.memory.u64[at >> 3] >> 3] = row
    m.memory.u32[(at >> 2) + 2] = d.device.network.frame
    m.memory.u32[(at >> 2) + 3] = 0
    d.tx_next += 1
    if d.tx_next == d.device.tx_size:
        d.tx_next = 0
    d.tx_unused -= 1
    mark(m.table, row, d.milestones.available, m.clock.now)
    if d.tx_unused < DESC_NEEDED:
        d.stopped = True
    yield from write_tdt(d.device, d.tx_next)


# -- interrupt and NAPI -----------------------------------------------------------------------------------------


def ixgbe_msix_clean_rings(d: IxgbeDriver) -> Generator[Effect, None, None]:
    """The handler of the queue pair's vector: schedule NAPI, no more; the device has masked the vector itself."""
    while True:
        yield from irq_enter(d.vcpu, VECTOR)
        yield from eoi_edge(d.vcpu)
        yield spend(DRIVER_IRQ)
        if not d.scheduled:
            d.scheduled = True
            yield notify(d.softirq)
        d.handler_done = d.machine.clock.now
        yield from irq_return(d.vcpu)


def net_rx_action(d: IxgbeDriver) -> Generator[Effect, None, None]:
    """The NET_RX softirq: poll while the driver is scheduled."""
    budget = NETDEV_BUDGET
    while True:
        while not d.scheduled:
            yield wait(d.softirq)
            budget = NETDEV_BUDGET
        yield spend(SOFTIRQ_ENTRY)
        work = yield from ixgbe_poll(d)
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
    if cleaned + work == 0:
        d.machine.counters.n[count.INTERRUPTS_SPURIOUS] += 1
    if work < NAPI_POLL_WEIGHT and cleaned < TX_WORK:
        d.scheduled = False
        yield from write_eims(d.device)
    return work


def ixgbe_clean_tx_irq(d: IxgbeDriver) -> Generator[Effect, None, int]:
    """Free the packets whose descriptors the device has written back; return how many."""
    m = d.machine
    cleaned = 0
    ring = d.device.tx_ring
    while (
        cleaned < TX_WORK
        and d.tx_clean != d.tx_next
        and m.memory.u32[((ring + d.tx_clean * DESCRIPTOR) >> 2) + 3] & DD
    ):
        yield spend(DRIVER_FREE)
        d.tx_clean += 1
        if d.tx_clean == d.device.tx_size:
            d.tx_clean = 0
        d.tx_unused += 1
        cleaned += 1
        yield from sock_wfree(d.socket)
    if d.stopped and d.tx_unused >= TX_WAKE_THRESHOLD:
        d.stopped = False
        yield notify(d.socket.tx_wake)
    return cleaned


def ixgbe_clean_rx_irq(d: IxgbeDriver) -> Generator[Effect, None, int]:
    """Take received packets up to the budget, giving buffers back in sixteens; return how many."""
    m = d.machine
    work = 0
    ring = d.device.rx_ring
    while work < NAPI_POLL_WEIGHT and m.memory.u32[((ring + d.rx_next * DESCRIPTOR) >> 2) + 3] & DD:
        if d.rx_unfilled >= RX_BUFFER_WRITE:
            ixgbe_alloc_rx_buffers(d)
        at = ring + d.rx_next * DESCRIPTOR
        row = m.memory.u64[m.memory.u64[at >> 3] >> 3]
        m.memory.u32[(at >> 2) + 3] = 0
        mark_past(m.table, row, d.milestones.rx_signalled, d.device.msi_sent)
        mark_past(m.table, row, d.milestones.irq, d.vcpu.handler_began[VECTOR])
        mark_past(m.table, row, d.milestones.handled, d.handler_done)
        mark(m.table, row, d.milestones.taken, m.clock.now)
        d.rx_next += 1
        if d.rx_next == d.device.rx_size:
            d.rx_next = 0
        d.rx_unfilled += 1
        work += 1
        yield spend(HOST_RECEIVE)
        yield from deliver(d.socket, row, d.vcpu)
    return work


def ixgbe_alloc_rx_buffers(d: IxgbeDriver) -> None:
    """Give the device new buffers; what that takes is in the cost of each packet."""
    d.rx_fill = (d.rx_fill + d.rx_unfilled) % d.device.rx_size
    d.rx_unfilled = 0
    write_rdt(d.device, d.rx_fill)
