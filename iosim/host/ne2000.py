"""QEMU's ne2000, here as ne2k_pci: a DP8390 with 16 KiB of its own memory (hw/net/ne2000.c).

The guest never shares memory with this device. It sets up a remote DMA (address, count, direction) and moves the data
through one port, 32 bits at a time. Packets to be sent stand in the lower pages of the device's memory, received ones
in a ring of 256-byte pages above, each behind a header of 4 bytes (status, next page, length).

Of a packet's data its first 8 bytes are simulated: the request's row.
"""

from __future__ import annotations

from collections.abc import Generator
from typing import Final, Protocol

from iosim.effects import Effect, spend
from iosim.host import counters as count
from iosim.host.costs import QEMU_NIC_REGISTER
from iosim.host.intx import WRITTEN, AccessTrace, Intx, pci_set_irq
from iosim.host.ioapic import IOAPIC_NAMES
from iosim.host.kvm import Vcpu
from iosim.host.machine import Machine
from iosim.host.main_loop import MainLoop
from iosim.host.net_client import NetClient, qemu_send_packet
from iosim.host.network import copy_hot, copy_packet_hot, packet_len
from iosim.host.pio import items_of_one_exit, next_item, pio_to_guest, pio_to_qemu, string_pio_to_qemu
from iosim.requests import mark
from iosim.window import DEVICE_RING, drop

CMD: Final = 0x0
BOUNDARY: Final = 0x3
TPSR: Final = 0x4
"""Written: the first page to send (TPSR). Read: the status of what was sent (TSR)."""
TCNTLO: Final = 0x5
TCNTHI: Final = 0x6
ISR: Final = 0x7
"""On page 0 the interrupt status (ISR), on page 1 the page that the next packet goes to (CURPAG)."""
RSARLO: Final = 0x8
RSARHI: Final = 0x9
RCNTLO: Final = 0xA
RCNTHI: Final = 0xB
IMR: Final = 0xF
DATAPORT: Final = 0x10
IOAPIC: Final = 0x11
"""The number of the first register that is not the device's, in a trace of accesses."""
REGISTER_NAMES: Final = (
    "CMD", "STARTPG", "STOPPG", "BOUNDARY", "TPSR/TSR", "TCNTLO", "TCNTHI", "ISR/CURPAG", "RSARLO", "RSARHI",
    "RCNTLO", "RCNTHI", "RXCR", "TXCR", "DCFG", "IMR", "DATAPORT", *IOAPIC_NAMES,
)  # fmt: skip

E8390_STOP: Final = 0x01
E8390_START: Final = 0x02
E8390_TRANS: Final = 0x04
E8390_RREAD: Final = 0x08
E8390_RWRITE: Final = 0x10
E8390_NODMA: Final = 0x20
E8390_PAGE1: Final = 0x40

ENISR_RX: Final = 0x01
ENISR_TX: Final = 0x02
ENISR_RX_ERR: Final = 0x04
ENISR_TX_ERR: Final = 0x08
ENISR_RDC: Final = 0x40
"""Remote DMA complete."""
ENISR_ANY: Final = 0x7F
ENTSR_PTX: Final = 0x01
ENRSR_RXOK: Final = 0x01

NESM_START_PG: Final = 0x40
TX_PAGES: Final = 12
RX_START_PG: Final = NESM_START_PG + TX_PAGES
NESM_STOP_PG: Final = 0x80
MEMORY: Final = NESM_STOP_PG << 8
"""Bytes up to the end of the device's memory, whose lower 16 KiB are not there."""
HEADER: Final = 4
MAX_ETH_FRAME_SIZE: Final = 1514

NO_REQUEST: Final = 1 << 62
"""What stands in a frame that is no request's, in the place of its row."""


class DeviceMilestones(Protocol):
    """The milestones stamped here."""

    rx_used: int
    rx_signalled: int
    kicked: int
    tx_seen: int


class NE2000:
    """The device's state, under QEMU's names.

    Args:
        machine, vcpu, main_loop, client, milestones: What it belongs to.

    Attributes:
        value: What the last register read gave.
        mem: The device's memory, in 16-bit words.
        cmd, isr, imr, tsr: Command, interrupt status and mask, transmit status.
        tpsr, tcnt: Page and bytes of the packet to be sent.
        rsar, rcnt: Address and bytes left of the remote DMA.
        boundary, curpag: The receive ring: last page the driver has read, page the next packet goes to.
    """

    __slots__ = (
        "boundary", "client", "cmd", "curpag", "imr", "irq", "isr", "machine", "main_loop", "mem", "milestones",
        "rcnt", "rsar", "tcnt", "tpsr", "trace", "tsr", "value", "vcpu",
    )  # fmt: skip

    def __init__(
        self, machine: Machine, vcpu: Vcpu, main_loop: MainLoop, client: NetClient, milestones: DeviceMilestones
    ) -> None:
        self.machine = machine
        self.vcpu = vcpu
        self.main_loop = main_loop
        self.client = client
        self.milestones = milestones
        self.mem = [0] * (MEMORY // 2)
        self.cmd = E8390_STOP
        self.isr = 0
        self.imr = 0
        self.tsr = 0
        self.tpsr = 0
        self.tcnt = 0
        self.rsar = 0
        self.rcnt = 0
        self.boundary = 0
        self.curpag = 0
        self.value = 0
        self.trace = AccessTrace()
        self.irq = Intx(machine, vcpu, self.trace)


# -- the guest's register accesses ------------------------------------------------------------------------------


def outb(s: NE2000, register: int, value: int) -> Generator[Effect, None, None]:
    """The guest writes a register: out to QEMU and back."""
    note(s, register << 1 | WRITTEN)
    yield from pio_to_qemu(s.vcpu, s.main_loop)
    yield from ne2000_ioport_write(s, register, value)
    yield from pio_to_guest(s.vcpu, s.main_loop, False)


def inb(s: NE2000, register: int) -> Generator[Effect, None, int]:
    """The guest reads a register: out to QEMU and back with the result."""
    note(s, register << 1)
    yield from pio_to_qemu(s.vcpu, s.main_loop)
    yield from ne2000_ioport_read(s, register)
    value = s.value
    yield from pio_to_guest(s.vcpu, s.main_loop, True)
    return value


def out_data(s: NE2000, value: int) -> Generator[Effect, None, None]:
    """The guest writes 16 bits to the data port (outw)."""
    note(s, DATAPORT << 1 | WRITTEN)
    yield from pio_to_qemu(s.vcpu, s.main_loop)
    yield from asic_write(s, value, 2)
    yield from pio_to_guest(s.vcpu, s.main_loop, False)


def in_data(s: NE2000, size: int) -> Generator[Effect, None, int]:
    """The guest reads ``size`` bytes from the data port (inl, inw, inb; a byte moves the DMA on by two)."""
    note(s, DATAPORT << 1)
    yield from pio_to_qemu(s.vcpu, s.main_loop)
    yield from asic_read(s, size)
    value = s.value
    yield from pio_to_guest(s.vcpu, s.main_loop, True)
    return value


def outsl(s: NE2000, address: int, items: int) -> Generator[Effect, None, None]:
    """``rep outsl`` of ``items`` times 32 bits from guest memory: each item is an exit of its own."""
    i = 0
    while i < items:
        note(s, DATAPORT << 1 | WRITTEN)
        yield from string_pio_to_qemu(s.vcpu, s.main_loop)
        yield from asic_write(s, s.machine.memory.u32[(address >> 2) + i], 4)
        yield from pio_to_guest(s.vcpu, s.main_loop, False)
        i += 1


def insl(s: NE2000, address: int, items: int) -> Generator[Effect, None, None]:
    """``rep insl`` of ``items`` times 32 bits to guest memory: KVM reads ahead, so that one exit serves many."""
    i = 0
    while i < items:
        end = i + items_of_one_exit(address + 4 * i, 4, items - i)
        yield from string_pio_to_qemu(s.vcpu, s.main_loop)
        first = True
        while i < end:
            if not first:
                yield from next_item(s.main_loop)
            first = False
            note(s, DATAPORT << 1)
            yield from asic_read(s, 4)
            s.machine.memory.u32[(address >> 2) + i] = s.value
            i += 1
        yield from pio_to_guest(s.vcpu, s.main_loop, True)


def note(s: NE2000, entry: int) -> None:
    """Count an access, and trace it."""
    if entry & WRITTEN:
        s.machine.counters.n[count.PIO_WRITE] += 1
    else:
        s.machine.counters.n[count.PIO_READ] += 1
    if s.trace.on:
        s.trace.entries.append(entry)


# -- the register handlers --------------------------------------------------------------------------------------


def ne2000_ioport_write(s: NE2000, register: int, value: int) -> Generator[Effect, None, None]:
    """The device's handler of a register write. Of page 1 the driver writes nothing on its way."""
    yield spend(QEMU_NIC_REGISTER)
    if register == CMD:
        s.cmd = value
        if value & (E8390_RREAD | E8390_RWRITE) and s.rcnt == 0:
            s.isr |= ENISR_RDC
            yield from ne2000_update_irq(s)
        if value & E8390_TRANS:
            yield from ne2000_transmit(s)
    elif register == ISR:
        s.isr &= ~(value & ENISR_ANY)
        yield from ne2000_update_irq(s)
    elif register == IMR:
        s.imr = value
        yield from ne2000_update_irq(s)
    elif register == BOUNDARY:
        s.boundary = value
    elif register == TPSR:
        s.tpsr = value
    elif register == TCNTLO:
        s.tcnt = s.tcnt & 0xFF00 | value
    elif register == TCNTHI:
        s.tcnt = s.tcnt & 0xFF | value << 8
    elif register == RSARLO:
        s.rsar = s.rsar & 0xFF00 | value
    elif register == RSARHI:
        s.rsar = s.rsar & 0xFF | value << 8
    elif register == RCNTLO:
        s.rcnt = s.rcnt & 0xFF00 | value
    elif register == RCNTHI:
        s.rcnt = s.rcnt & 0xFF | value << 8


def ne2000_ioport_read(s: NE2000, register: int) -> Generator[Effect, None, None]:
    """The device's handler of a register read."""
    yield spend(QEMU_NIC_REGISTER)
    s.value = 0
    if register == CMD:
        s.value = s.cmd
    elif register == ISR:
        if s.cmd & E8390_PAGE1:
            s.value = s.curpag
        else:
            s.value = s.isr
    elif register == BOUNDARY:
        s.value = s.boundary
    elif register == TPSR:
        s.value = s.tsr


def ne2000_update_irq(s: NE2000) -> Generator[Effect, None, None]:
    """Let the line follow status and mask."""
    yield from pci_set_irq(s.irq, s.isr & s.imr & ENISR_ANY != 0)


# -- remote DMA -------------------------------------------------------------------------------------------------


def asic_write(s: NE2000, value: int, size: int) -> Generator[Effect, None, None]:
    """The device's handler of a write to the data port (ne2000_asic_ioport_write, _writel)."""
    yield spend(QEMU_NIC_REGISTER)
    if s.rcnt > 0:
        s.mem[s.rsar >> 1] = value & 0xFFFF
        if size == 4:
            s.mem[(s.rsar >> 1) + 1] = value >> 16
        yield from ne2000_dma_update(s, size)


def asic_read(s: NE2000, size: int) -> Generator[Effect, None, None]:
    """The device's handler of a read from the data port; it is in 16-bit mode, so a byte counts as two."""
    yield spend(QEMU_NIC_REGISTER)
    s.value = s.mem[s.rsar >> 1]
    if size == 4:
        s.value |= s.mem[(s.rsar >> 1) + 1] << 16
    yield from ne2000_dma_update(s, max(size, 2))


def ne2000_dma_update(s: NE2000, size: int) -> Generator[Effect, None, None]:
    """Move the remote DMA on: around the receive ring's end, and complete when the count is used up."""
    s.rsar += size
    if s.rsar == NESM_STOP_PG << 8:
        s.rsar = RX_START_PG << 8
    if s.rcnt <= size:
        s.rcnt = 0
        s.isr |= ENISR_RDC
        yield from ne2000_update_irq(s)
    else:
        s.rcnt -= size


# -- transmit and receive ---------------------------------------------------------------------------------------


def ne2000_transmit(s: NE2000) -> Generator[Effect, None, None]:
    """Send the packet from the device's memory, at once and in this write: one write to the tap, then the cause."""
    m = s.machine
    at = s.tpsr << 7
    row = s.mem[at] | s.mem[at + 1] << 16 | s.mem[at + 2] << 32 | s.mem[at + 3] << 48
    mark(m.table, row, s.milestones.tx_seen, m.clock.now)
    yield from qemu_send_packet(s.client, row)
    s.tsr = ENTSR_PTX
    s.isr |= ENISR_TX
    s.cmd &= ~E8390_TRANS
    yield from ne2000_update_irq(s)


def ne2000_buffer_full(s: NE2000) -> bool:
    """Whether the receive ring has no room for the largest frame."""
    room = (s.boundary - s.curpag) << 8
    if room <= 0:
        room += (NESM_STOP_PG - RX_START_PG) << 8
    return room < MAX_ETH_FRAME_SIZE + 4


def ne2000_buffer_empty(s: NE2000) -> bool:
    """Whether the driver has read all that was received."""
    following = s.boundary + 1
    if following == NESM_STOP_PG:
        following = RX_START_PG
    return following == s.curpag


def ne2000_receive(s: NE2000, row: int) -> Generator[Effect, None, None]:
    """Put one packet, already in QEMU's buffer, into the device's memory; without room it is lost."""
    m = s.machine
    if ne2000_buffer_full(s):
        if row != NO_REQUEST:
            yield from drop(m.window, row, DEVICE_RING)
    else:
        total = s.client.network.frame + HEADER
        if row == NO_REQUEST:
            yield from copy_hot(s.client.network)
        else:
            total = packet_len(s.client.network, row) + HEADER
            yield from copy_packet_hot(s.client.network, row)
        following = s.curpag + (total + 4 + 255) // 256
        if following >= NESM_STOP_PG:
            following -= NESM_STOP_PG - RX_START_PG
        at = s.curpag << 7
        s.mem[at] = ENRSR_RXOK | following << 8
        s.mem[at + 1] = total
        i = 0
        while i < 4:
            s.mem[at + 2 + i] = row >> (16 * i) & 0xFFFF
            i += 1
        s.curpag = following
        if row != NO_REQUEST:
            mark(m.table, row, s.milestones.rx_used, m.clock.now)
        s.isr |= ENISR_RX
        before = s.irq.level
        yield from ne2000_update_irq(s)
        if s.irq.level and not before and row != NO_REQUEST:
            mark(m.table, row, s.milestones.rx_signalled, m.clock.now)
