"""The guest's e100 driver (Linux 6.1, drivers/net/ethernet/intel/e100.c): the 8255x family, by memory-mapped registers.

Each ``iowrite`` and ``ioread`` is a register access, that is a VM exit. Interrupts are masked and unmasked in a byte
that is then followed by a read of the status, as a flush.
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
from iosim.host.eepro100 import (
    CB_SIZE,
    CMD_TX,
    COMMAND_EL,
    COMMAND_I,
    COMMAND_S,
    COMMAND_SF,
    CU_RESUME,
    CU_SUSPENDED,
    EEPRO100,
    MASK_ALL,
    RFD_SIZE,
    RNR,
    RU_READY,
    RU_START,
    RUS_NO_RES,
    SCB_ACK,
    SCB_CMD,
    SCB_IRQ_MASK,
    SCB_POINTER,
    SCB_STATUS,
    STATUS_C,
    TBD,
    ioread,
    iowrite,
)
from iosim.host.flows import flow_of
from iosim.host.intx import VECTOR
from iosim.host.kvm import Vcpu, eoi_level, irq_enter, irq_return
from iosim.host.machine import Machine
from iosim.host.network import packet_len
from iosim.requests import mark, mark_past
from iosim.ring.memory import allocate
from iosim.window import DEVICE_RING, drop

CBS: Final = 128
RFDS: Final = 256
"""The driver's default numbers of command blocks and receive frame descriptors (e100_get_defaults)."""
NAPI_WEIGHT: Final = 16
BUFFER: Final = 2048
RFD_BUFFER: Final = 1518
"""VLAN_ETH_FRAME_LEN: the size an RFD tells the device."""


class Nic:
    """The driver's state (struct nic).

    Args:
        machine, vcpu, device, milestones: What it belongs to.
        sockets: The guest's sockets, by flow.
        senders: Those that are its own.
        offloads: What is left to the device.

    Attributes:
        cbs: Guest-physical addresses of the command blocks, which are linked to a ring.
        cb_to_use, cb_to_clean, cbs_avail: Next to use, next to clean, free ones.
        rfds: Guest-physical addresses of the receive frame descriptors, likewise linked.
        rx_to_clean, rx_to_use: Next to take, next to be given a new buffer.
        ru_running: What the driver thinks of the receive unit.
        qdisc: Acknowledgements that found the transmit queue stopped.
    """

    __slots__ = (
        "cb_to_clean", "cb_to_use", "cbs", "cbs_avail", "device", "handler_done", "machine", "milestones", "offloads",
        "qdisc", "rfds", "ru_running", "rx_to_clean", "rx_to_use", "scheduled", "senders", "sockets", "softirq",
        "stopped", "vcpu",
    )  # fmt: skip

    def __init__(
        self,
        machine: Machine,
        vcpu: Vcpu,
        sockets: list[Socket],
        senders: list[Socket],
        device: EEPRO100,
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
        self.cb_to_use = 0
        self.cb_to_clean = 0
        self.cbs_avail = CBS
        self.rx_to_clean = 0
        self.rx_to_use = 0
        self.ru_running = True
        self.stopped = False
        self.scheduled = False
        self.qdisc = Fifo(QDISC_LIMIT)
        self.handler_done = 0
        self.softirq = machine.system.channel("guest softirq")
        machine.system.process("guest softirq", net_rx_action(self), vcpu.thread, SOFTIRQ)
        vcpu.handler("e100_intr", e100_intr(self))
        # e100_up, before time 0: both lists linked to rings, the receive unit started, the command unit suspended
        # after the driver's set-up commands, interrupts on.
        memory = machine.memory
        self.cbs = [allocate(memory, CB_SIZE, 32) for _ in range(CBS)]
        self.rfds = [allocate(memory, BUFFER, 64) for _ in range(RFDS)]
        for i in range(CBS):
            memory.u32[(self.cbs[i] >> 2) + 1] = self.cbs[(i + 1) % CBS]
            memory.u32[(self.cbs[i] + TBD) >> 2] = allocate(memory, BUFFER, 64)
        for i in range(RFDS):
            memory.u32[(self.rfds[i] >> 2) + 1] = self.rfds[(i + 1) % RFDS]
            memory.u16[(self.rfds[i] >> 1) + 7] = RFD_BUFFER
        set_before_last(self, 0)
        device.cu_state = CU_SUSPENDED
        device.cu_offset = self.cbs[0]
        device.ru_state = RU_READY
        device.ru_offset = self.rfds[0]
        device.scb_irq_mask = 0


def e100_exec_cmd(nic: Nic, command: int, pointer: int) -> Generator[Effect, None, None]:
    """Wait until the device has taken the last command, then give it the next; a resume needs no pointer."""
    yield from local_irq_save(nic.vcpu)
    pending = yield from ioread(nic.device, SCB_CMD)
    while pending != 0:
        pending = yield from ioread(nic.device, SCB_CMD)
    if command != CU_RESUME:
        yield from iowrite(nic.device, SCB_POINTER, pointer)
    yield from iowrite(nic.device, SCB_CMD, command)
    yield from local_irq_restore(nic.vcpu)


# -- transmit ---------------------------------------------------------------------------------------------------


def dev_queue_xmit(nic: Nic, s: Socket, row: int) -> Generator[Effect, None, None]:
    """Hand a packet to the driver, waiting while the queue is stopped; of a stream, what it is given in one call."""
    yield from transmit(nic, s, row, e100_xmit_frame)


def e100_xmit_frame(nic: Nic, _s: Socket, row: int, _more: bool) -> Generator[Effect, None, None]:
    """Fill a command block that suspends, take the suspension from the one before, and resume the command unit."""
    m = nic.machine
    yield spend(DRIVER_XMIT)
    cb = nic.cbs[nic.cb_to_use]
    m.memory.u64[m.memory.u32[(cb + TBD) >> 2] >> 3] = row
    m.memory.u32[((cb + TBD) >> 2) + 1] = packet_len(nic.device.client.network, row)
    command = CMD_TX | COMMAND_SF | COMMAND_S
    # An interrupt every 16 packets, whatever else there is (e100_xmit_prepare).
    nic.cbs_avail -= 1
    if nic.cbs_avail & 15 == 0:
        command |= COMMAND_I
    m.memory.u16[cb >> 1] = 0
    m.memory.u16[(cb >> 1) + 1] = command
    m.memory.u16[(nic.cbs[(nic.cb_to_use + CBS - 1) % CBS] >> 1) + 1] &= ~COMMAND_S
    nic.cb_to_use = (nic.cb_to_use + 1) % CBS
    mark(m.table, row, nic.milestones.available, m.clock.now)
    yield from e100_exec_cmd(nic, CU_RESUME, cb)
    if nic.cbs_avail == 0:
        nic.stopped = True


def send_ack(nic: Nic, s: Socket) -> Generator[Effect, None, None]:
    """Acknowledge what has come of a stream."""
    yield from tcp_send_ack(nic, s, e100_xmit_frame)


def cleanup_rbuf(nic: Nic, s: Socket) -> Generator[Effect, None, None]:
    """The application has read a send call of a stream."""
    yield from tcp_recvmsg(nic, s, send_ack)


# -- interrupt and NAPI -----------------------------------------------------------------------------------------


def e100_intr(nic: Nic) -> Generator[Effect, None, None]:
    """The interrupt handler: acknowledge, mask, schedule NAPI; the end of interrupt comes after it."""
    while True:
        yield from irq_enter(nic.vcpu, VECTOR)
        yield spend(DRIVER_IRQ)
        stat_ack = yield from ioread(nic.device, SCB_ACK)
        if stat_ack != 0:
            yield from iowrite(nic.device, SCB_ACK, stat_ack)
            if stat_ack & RNR:
                nic.ru_running = False
            if not nic.scheduled:
                nic.scheduled = True
                yield from mask_irq(nic, MASK_ALL)
                yield notify(nic.softirq)
        else:
            nic.machine.counters.n[count.INTERRUPTS_SPURIOUS] += 1
        yield from eoi_level(nic.vcpu, VECTOR)
        nic.handler_done = nic.machine.clock.now
        yield from irq_return(nic.vcpu)


def mask_irq(nic: Nic, mask: int) -> Generator[Effect, None, None]:
    """Write the mask and flush the write (e100_disable_irq, e100_enable_irq); the CPU's interrupts are off."""
    yield from iowrite(nic.device, SCB_IRQ_MASK, mask)
    yield from ioread(nic.device, SCB_STATUS)


def net_rx_action(nic: Nic) -> Generator[Effect, None, None]:
    """The guest's NET_RX softirq: poll while the driver is scheduled."""
    budget = NETDEV_BUDGET
    while True:
        while not nic.scheduled:
            yield wait(nic.softirq)
            budget = NETDEV_BUDGET
        yield spend(SOFTIRQ_ENTRY)
        work = yield from e100_poll(nic)
        yield from net_tx_action(nic, e100_xmit_frame)
        budget -= work
        if budget <= 0:
            yield from ksoftirqd()
            budget = NETDEV_BUDGET


def e100_poll(nic: Nic) -> Generator[Effect, None, int]:
    """The NAPI poll: take what has come, free what was sent; unmask when there is no more. Return the packets."""
    work = yield from e100_rx_clean(nic)
    yield from e100_tx_clean(nic)
    if work < NAPI_WEIGHT:
        nic.scheduled = False
        yield from local_irq_save(nic.vcpu)
        yield from mask_irq(nic, 0)
        yield from local_irq_restore(nic.vcpu)
    return work


def e100_tx_clean(nic: Nic) -> Generator[Effect, None, None]:
    """Free the packets whose command blocks are complete, and open the queue."""
    m = nic.machine
    cb = nic.cbs[nic.cb_to_clean]
    cleaned = False
    while m.memory.u16[cb >> 1] & STATUS_C:
        yield spend(DRIVER_FREE)
        packet = m.memory.u64[m.memory.u32[(cb + TBD) >> 2] >> 3]
        m.memory.u16[cb >> 1] = 0
        nic.cb_to_clean = (nic.cb_to_clean + 1) % CBS
        nic.cbs_avail += 1
        cleaned = True
        yield from sock_wfree(nic.sockets[flow_of(m.flows, packet)])
        cb = nic.cbs[nic.cb_to_clean]
    if cleaned and nic.stopped:
        nic.stopped = False
        yield from netif_wake_queue(nic.senders)


def e100_rx_clean(nic: Nic) -> Generator[Effect, None, int]:
    """Take received packets up to the budget, give new buffers, start a receive unit that ran dry; return how many.

    Between the acknowledgement of RNR and the start a packet that is lost raises RNR once more. The next poll believes
    it and starts the unit again, which runs: it goes back to the first descriptor not cleaned, where packets may have
    come meanwhile. They are overwritten, as by QEMU's device, which starts in any state (eepro100_ru_command).
    """
    m = nic.machine
    work = 0
    rfd = nic.rfds[nic.rx_to_clean]
    filled = (nic.rx_to_use - nic.rx_to_clean - 1) % RFDS + 1
    while work < NAPI_WEIGHT and filled > 0 and m.memory.u16[rfd >> 1] & STATUS_C:
        yield from look_for_its_end(nic, rfd)
        row = m.memory.u64[(rfd + RFD_SIZE) >> 3]
        m.memory.u16[rfd >> 1] = 0
        mark_past(m.table, row, nic.milestones.irq, nic.vcpu.handler_began[VECTOR])
        mark_past(m.table, row, nic.milestones.handled, nic.handler_done)
        mark(m.table, row, nic.milestones.taken, m.clock.now)
        yield spend(DRIVER_RECEIVE)
        if m.memory.u16[(rfd >> 1) + 6] > 0:
            yield from netif_receive_skb(nic, row, send_ack)
        else:
            # The descriptor before the last has no room (see set_before_last): QEMU truncates the packet to nothing.
            yield from drop(m.window, row, DEVICE_RING)
        nic.rx_to_clean = (nic.rx_to_clean + 1) % RFDS
        work += 1
        filled -= 1
        rfd = nic.rfds[nic.rx_to_clean]
    if work < NAPI_WEIGHT:
        yield from look_for_its_end(nic, rfd)
    restart = work < NAPI_WEIGHT and not nic.ru_running
    if nic.rx_to_use != nic.rx_to_clean:
        old = nic.rx_to_use
        while nic.rx_to_use != nic.rx_to_clean:
            yield spend(DRIVER_REFILL)
            given = nic.rfds[nic.rx_to_use]
            if m.memory.u16[given >> 1] & STATUS_C:
                # The receive unit, started anew too early, has used it once more: gone with the old buffer.
                m.memory.u16[given >> 1] = 0
                yield from drop(m.window, m.memory.u64[(given + RFD_SIZE) >> 3], DEVICE_RING)
            nic.rx_to_use = (nic.rx_to_use + 1) % RFDS
        set_before_last(nic, old)
    if restart:
        yield from iowrite(nic.device, SCB_ACK, RNR)
        yield from e100_exec_cmd(nic, RU_START, nic.rfds[nic.rx_to_clean])
        nic.ru_running = True
        work += 1
    return work


def look_for_its_end(nic: Nic, rfd: int) -> Generator[Effect, None, None]:
    """At the descriptor that ends the list: ask the device whether it has stopped there with interrupts off."""
    if nic.machine.memory.u16[(rfd >> 1) + 1] & COMMAND_EL and nic.ru_running:
        status = yield from ioread(nic.device, SCB_STATUS)
        if status & RUS_NO_RES:
            nic.ru_running = False


def set_before_last(nic: Nic, old: int) -> None:
    """End the list at the descriptor before the last one filled, with no room in it; ``old``: where rx_to_use was.

    The end moves so that the device never runs into a descriptor that the driver works on.
    """
    memory = nic.machine.memory
    end = nic.rfds[(nic.rx_to_use + RFDS - 2) % RFDS]
    memory.u16[(end >> 1) + 7] = 0
    memory.u16[(end >> 1) + 1] |= COMMAND_EL
    was = nic.rfds[(old + RFDS - 2) % RFDS]
    if was != end:
        memory.u16[(was >> 1) + 1] &= ~COMMAND_EL
        memory.u16[(was >> 1) + 7] = RFD_BUFFER
