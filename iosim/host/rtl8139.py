"""QEMU's rtl8139 in C+ mode: registers, descriptor rings, interrupt status and mask (hw/net/rtl8139.c).

The device code runs on the vCPU's thread for register accesses (TX), on the main loop's for packets from the tap (RX),
always under the big QEMU lock. There is no interrupt mitigation.

Descriptors stand in guest memory as the data sheet has them (RTL8139C+, 16 bytes): ``opts1`` with the owner, the end of
the ring and the length; ``opts2``; the buffer's address.
"""

from __future__ import annotations

from collections.abc import Generator
from typing import Final, Protocol

from iosim.effects import Effect, spend
from iosim.host import counters as count
from iosim.host.costs import QEMU_NIC_PACKET, QEMU_NIC_REGISTER
from iosim.host.intx import WRITTEN, AccessTrace, Intx, pci_set_irq
from iosim.host.kvm import Vcpu
from iosim.host.machine import Machine
from iosim.host.main_loop import MainLoop
from iosim.host.mmio import return_to_guest, trap_to_qemu
from iosim.host.net_client import NetClient, qemu_send_packet
from iosim.host.network import copy_packet, copy_packet_hot, packet_len
from iosim.host.pio import pio_to_guest, pio_to_qemu
from iosim.requests import mark
from iosim.ring.memory import allocate
from iosim.window import DEVICE_RING, drop

INTR_MASK: Final = 0
INTR_STATUS: Final = 1
TX_POLL: Final = 2
REGISTER_NAMES: Final = ("IntrMask", "IntrStatus", "TxPoll")

NORMAL_TX_POLL: Final = 0x40
"""The bit of TxPoll that starts the normal-priority ring."""

RX_OK: Final = 0x0001
RX_ERR: Final = 0x0002
TX_OK: Final = 0x0004
TX_ERR: Final = 0x0008
RX_EMPTY: Final = 0x0010
"""Receive buffer overflow (RxOverflow in QEMU): a packet found no descriptor."""
LINK_CHG: Final = 0x0020
RX_FIFO_OVR: Final = 0x0040
PCI_ERR: Final = 0x8000

DESCRIPTOR: Final = 16
OWN: Final = 1 << 31
RING_END: Final = 1 << 30
FIRST_FRAG: Final = 1 << 29
LAST_FRAG: Final = 1 << 28
LENGTH: Final = 0x1FFF

TRANSMIT_BURST: Final = 64
"""Packets that one write of TxPoll sends at most (rtl8139_cplus_transmit)."""


class DeviceMilestones(Protocol):
    """The milestones stamped here."""

    rx_used: int
    rx_signalled: int
    kicked: int
    tx_seen: int


class RTL8139:
    """The device's state, under QEMU's names.

    Args:
        machine, vcpu, main_loop, client, milestones: What it belongs to.
        tx_size, rx_size: Descriptors in the rings.
        mmio: The driver reaches the registers through BAR 1 (memory), else through BAR 0 (ports).

    Attributes:
        value: What the last register read gave.
        tx_ring, rx_ring: Guest-physical addresses of the rings.
        cur_tx, cur_rx: currCPlusTxDesc and currCPlusRxDesc, the descriptors that are next.
        intr_status, intr_mask: The causes, and which of them reach the line.
    """

    __slots__ = (
        "client", "cur_rx", "cur_tx", "intr_mask", "intr_status", "irq", "machine", "main_loop", "milestones", "mmio",
        "rx_ring", "rx_size", "trace", "tx_ring", "tx_size", "value", "vcpu",
    )  # fmt: skip

    def __init__(
        self,
        machine: Machine,
        vcpu: Vcpu,
        main_loop: MainLoop,
        client: NetClient,
        milestones: DeviceMilestones,
        *,
        tx_size: int,
        rx_size: int,
        mmio: bool,
    ) -> None:
        self.machine = machine
        self.vcpu = vcpu
        self.main_loop = main_loop
        self.client = client
        self.milestones = milestones
        self.mmio = mmio
        self.tx_size = tx_size
        self.rx_size = rx_size
        self.tx_ring = allocate(machine.memory, tx_size * DESCRIPTOR, 256)
        self.rx_ring = allocate(machine.memory, rx_size * DESCRIPTOR, 256)
        self.cur_tx = 0
        self.cur_rx = 0
        self.intr_status = 0
        self.intr_mask = 0
        self.value = 0
        self.trace = AccessTrace()
        self.irq = Intx(machine, vcpu, self.trace)


# -- the guest's register accesses ------------------------------------------------------------------------------


def cpw(s: RTL8139, register: int, value: int) -> Generator[Effect, None, None]:
    """The guest writes a register (cpw8, cpw16): out to QEMU and back."""
    if s.trace.on:
        s.trace.entries.append(register << 1 | WRITTEN)
    if s.mmio:
        s.machine.counters.n[count.MMIO_WRITE] += 1
        yield from trap_to_qemu(s.vcpu, s.main_loop)
        yield from rtl8139_io_write(s, register, value)
        yield from return_to_guest(s.vcpu, s.main_loop, False)
    else:
        s.machine.counters.n[count.PIO_WRITE] += 1
        yield from pio_to_qemu(s.vcpu, s.main_loop)
        yield from rtl8139_io_write(s, register, value)
        yield from pio_to_guest(s.vcpu, s.main_loop, False)


def cpr(s: RTL8139, register: int) -> Generator[Effect, None, int]:
    """The guest reads a register (cpr16): out to QEMU and back with the result."""
    if s.trace.on:
        s.trace.entries.append(register << 1)
    if s.mmio:
        s.machine.counters.n[count.MMIO_READ] += 1
        yield from trap_to_qemu(s.vcpu, s.main_loop)
        yield from rtl8139_io_read(s, register)
        value = s.value
        yield from return_to_guest(s.vcpu, s.main_loop, True)
    else:
        s.machine.counters.n[count.PIO_READ] += 1
        yield from pio_to_qemu(s.vcpu, s.main_loop)
        yield from rtl8139_io_read(s, register)
        value = s.value
        yield from pio_to_guest(s.vcpu, s.main_loop, True)
    return value


# -- the register handlers --------------------------------------------------------------------------------------


def rtl8139_io_write(s: RTL8139, register: int, value: int) -> Generator[Effect, None, None]:
    """The device's handler of a register write."""
    yield spend(QEMU_NIC_REGISTER)
    if register == TX_POLL:
        if value & NORMAL_TX_POLL:
            yield from rtl8139_cplus_transmit(s)
    elif register == INTR_MASK:
        s.intr_mask = value
        yield from rtl8139_update_irq(s)
    elif register == INTR_STATUS:
        # QEMU lowers the line in between, whatever is left (rtl8139_IntrStatus_write).
        left = s.intr_status & ~value
        s.intr_status = 0
        yield from rtl8139_update_irq(s)
        s.intr_status = left
        yield from rtl8139_update_irq(s)


def rtl8139_io_read(s: RTL8139, register: int) -> Generator[Effect, None, None]:
    """The device's handler of a register read; nothing is cleared by it."""
    yield spend(QEMU_NIC_REGISTER)
    s.value = 0
    if register == INTR_MASK:
        s.value = s.intr_mask
    elif register == INTR_STATUS:
        s.value = s.intr_status


def rtl8139_update_irq(s: RTL8139) -> Generator[Effect, None, None]:
    """Let the line follow status and mask."""
    yield from pci_set_irq(s.irq, s.intr_status & s.intr_mask != 0)


# -- transmit and receive ---------------------------------------------------------------------------------------


def rtl8139_cplus_transmit(s: RTL8139) -> Generator[Effect, None, None]:
    """Send what the driver has given to the device, then set TxOK once for all of it."""
    m = s.machine
    packets = 0
    at = s.tx_ring + s.cur_tx * DESCRIPTOR
    while packets < TRANSMIT_BURST and m.memory.u32[at >> 2] & OWN:
        row = m.memory.u64[m.memory.u64[(at >> 3) + 1] >> 3]
        mark(m.table, row, s.milestones.tx_seen, m.clock.now)
        yield spend(QEMU_NIC_PACKET)
        yield from copy_packet(s.client.network, row)
        if m.memory.u32[at >> 2] & RING_END:
            s.cur_tx = 0
        else:
            s.cur_tx += 1
        m.memory.u32[at >> 2] &= ~OWN
        yield from qemu_send_packet(s.client, row)
        packets += 1
        at = s.tx_ring + s.cur_tx * DESCRIPTOR
    if packets > 0:
        s.intr_status |= TX_OK
        yield from rtl8139_update_irq(s)


def rtl8139_receive(s: RTL8139, row: int) -> Generator[Effect, None, None]:
    """Put one packet, already in QEMU's buffer, into the guest's; without a descriptor it is lost (no flow control)."""
    m = s.machine
    at = s.rx_ring + s.cur_rx * DESCRIPTOR
    yield spend(QEMU_NIC_PACKET)
    opts1 = m.memory.u32[at >> 2]
    if opts1 & OWN:
        yield from copy_packet_hot(s.client.network, row)
        m.memory.u64[m.memory.u64[(at >> 3) + 1] >> 3] = row
        m.memory.u32[at >> 2] = opts1 & RING_END | FIRST_FRAG | LAST_FRAG | packet_len(s.client.network, row) + 4
        if opts1 & RING_END:
            s.cur_rx = 0
        else:
            s.cur_rx += 1
        mark(m.table, row, s.milestones.rx_used, m.clock.now)
        s.intr_status |= RX_OK
        before = s.irq.level
        yield from rtl8139_update_irq(s)
        if s.irq.level and not before:
            mark(m.table, row, s.milestones.rx_signalled, m.clock.now)
    else:
        s.intr_status |= RX_EMPTY
        yield from drop(m.window, row, DEVICE_RING)
        yield from rtl8139_update_irq(s)
