"""QEMU's eepro100: the Intel 8255x family, with its system control block (hw/net/eepro100.c).

Two units work on lists in guest memory. The command unit (CU) runs commands, among them transmissions, in the write of
the command byte and on the vCPU's thread, until one says suspend (S). The receive unit (RU) fills receive frame
descriptors (RFD), on the main loop's thread. A command that is complete with its I bit set raises CX, a CU that is no
longer active CNA, a frame received FR, a RU without a descriptor RNR. There is no interrupt mitigation.

Layouts (Intel 8255x software developer manual, little-endian): command block: status, command, link; for a transmission
the address of its buffer descriptors. RFD: status, command, link, (unused), actual count, size, and then the data.
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
from iosim.requests import mark
from iosim.window import DEVICE_RING, drop

SCB_STATUS: Final = 0
SCB_ACK: Final = 1
SCB_CMD: Final = 2
SCB_IRQ_MASK: Final = 3
SCB_POINTER: Final = 4
REGISTER_NAMES: Final = ("SCBStatus", "SCBAck", "SCBCmd", "SCBIrqMask", "SCBPointer")

CX: Final = 0x80
FR: Final = 0x40
CNA: Final = 0x20
RNR: Final = 0x10
"""Causes in SCBAck."""
MASK_ALL: Final = 0x01
"""The bit M of SCBIrqMask."""

CU_START: Final = 0x10
CU_RESUME: Final = 0x20
CU_COMMAND: Final = 0xF0
RU_START: Final = 0x01
RU_COMMAND: Final = 0x0F

CU_IDLE: Final = 0
CU_SUSPENDED: Final = 1
CU_ACTIVE: Final = 2
RU_IDLE: Final = 0
RU_SUSPENDED: Final = 1
RU_NO_RESOURCES: Final = 2
RU_READY: Final = 4
RUS_NO_RES: Final = RU_NO_RESOURCES << 2
"""The receive unit's state in SCBStatus."""

STATUS_C: Final = 0x8000
STATUS_OK: Final = 0x2000
COMMAND_EL: Final = 0x8000
COMMAND_S: Final = 0x4000
COMMAND_I: Final = 0x2000
COMMAND_SF: Final = 0x0008
CMD_TX: Final = 0x0004

CB_SIZE: Final = 32
TBD: Final = 16
"""Where a command block's one buffer descriptor stands in it: address, size."""
RFD_SIZE: Final = 16
MAX_COMMANDS: Final = 16
"""Commands that one write of the command byte runs at most (max_loop_count of action_command)."""


class DeviceMilestones(Protocol):
    """The milestones stamped here."""

    rx_used: int
    rx_signalled: int
    kicked: int
    tx_seen: int


class EEPRO100:
    """The device's state, under QEMU's names.

    Args:
        machine, vcpu, main_loop, client, milestones: What it belongs to.

    Attributes:
        value: What the last register read gave.
        scb_ack, scb_irq_mask, scb_pointer: The bytes of the system control block, and the general pointer.
        cu_state, cu_offset: The command unit's, and the address of its next command.
        ru_state, ru_offset: The receive unit's, and the address of its next descriptor.
    """

    __slots__ = (
        "client", "cu_offset", "cu_state", "irq", "machine", "main_loop", "milestones", "ru_offset", "ru_state",
        "scb_ack", "scb_irq_mask", "scb_pointer", "trace", "value", "vcpu",
    )  # fmt: skip

    def __init__(
        self,
        machine: Machine,
        vcpu: Vcpu,
        main_loop: MainLoop,
        client: NetClient,
        milestones: DeviceMilestones,
    ) -> None:
        self.machine = machine
        self.vcpu = vcpu
        self.main_loop = main_loop
        self.client = client
        self.milestones = milestones
        self.scb_ack = 0
        self.scb_irq_mask = MASK_ALL
        self.scb_pointer = 0
        self.cu_state = CU_IDLE
        self.cu_offset = 0
        self.ru_state = RU_IDLE
        self.ru_offset = 0
        self.value = 0
        self.trace = AccessTrace()
        self.irq = Intx(machine, vcpu, self.trace)


# -- the guest's register accesses ------------------------------------------------------------------------------


def iowrite(s: EEPRO100, register: int, value: int) -> Generator[Effect, None, None]:
    """The guest writes a register: out to QEMU and back."""
    s.machine.counters.n[count.MMIO_WRITE] += 1
    if s.trace.on:
        s.trace.entries.append(register << 1 | WRITTEN)
    yield from trap_to_qemu(s.vcpu, s.main_loop)
    yield from eepro100_write(s, register, value)
    yield from return_to_guest(s.vcpu, s.main_loop, False)


def ioread(s: EEPRO100, register: int) -> Generator[Effect, None, int]:
    """The guest reads a register: out to QEMU and back with the result."""
    s.machine.counters.n[count.MMIO_READ] += 1
    if s.trace.on:
        s.trace.entries.append(register << 1)
    yield from trap_to_qemu(s.vcpu, s.main_loop)
    yield from eepro100_read(s, register)
    value = s.value
    yield from return_to_guest(s.vcpu, s.main_loop, True)
    return value


# -- the register handlers --------------------------------------------------------------------------------------


def eepro100_write(s: EEPRO100, register: int, value: int) -> Generator[Effect, None, None]:
    """The device's handler of a register write."""
    yield spend(QEMU_NIC_REGISTER)
    if register == SCB_ACK:
        s.scb_ack &= ~value
        if s.scb_ack == 0:
            yield from pci_set_irq(s.irq, False)
    elif register == SCB_IRQ_MASK:
        s.scb_irq_mask = value
        yield from eepro100_interrupt(s, 0)
    elif register == SCB_POINTER:
        s.scb_pointer = value
    elif register == SCB_CMD:
        yield from eepro100_write_command(s, value)


def eepro100_read(s: EEPRO100, register: int) -> Generator[Effect, None, None]:
    """The device's handler of a register read. Commands are carried out at once, so SCBCmd always reads as done."""
    yield spend(QEMU_NIC_REGISTER)
    s.value = 0
    if register == SCB_ACK:
        s.value = s.scb_ack
    elif register == SCB_STATUS:
        s.value = s.cu_state << 6 | s.ru_state << 2
    elif register == SCB_IRQ_MASK:
        s.value = s.scb_irq_mask


def eepro100_interrupt(s: EEPRO100, cause: int) -> Generator[Effect, None, None]:
    """Add a cause and let the line follow causes and mask."""
    s.scb_ack |= cause
    yield from pci_set_irq(s.irq, s.scb_ack != 0 and s.scb_irq_mask & MASK_ALL == 0)


def eepro100_write_command(s: EEPRO100, value: int) -> Generator[Effect, None, None]:
    """The command byte: first the receive unit's, then the command unit's."""
    if value & RU_COMMAND == RU_START:
        s.ru_state = RU_READY
        s.ru_offset = s.scb_pointer
    if value & CU_COMMAND == CU_START:
        s.cu_state = CU_ACTIVE
        s.cu_offset = s.scb_pointer
        yield from action_command(s)
    elif value & CU_COMMAND == CU_RESUME:
        # QEMU resumes from idle as well, for a driver that does so.
        s.cu_state = CU_ACTIVE
        yield from action_command(s)


# -- the command unit: transmit ---------------------------------------------------------------------------------


def action_command(s: EEPRO100) -> Generator[Effect, None, None]:
    """Run commands from the list until one ends it (EL) or suspends (S)."""
    u16 = s.machine.memory.u16
    left = MAX_COMMANDS
    while s.cu_state == CU_ACTIVE and left > 0:
        left -= 1
        cb = s.cu_offset
        command = u16[(cb >> 1) + 1]
        s.cu_offset = s.machine.memory.u32[(cb >> 2) + 1]
        if command & 7 == CMD_TX:
            yield from tx_command(s, cb)
        u16[cb >> 1] = STATUS_C | STATUS_OK
        if command & COMMAND_I:
            yield from eepro100_interrupt(s, CX)
        if command & COMMAND_EL:
            s.cu_state = CU_IDLE
            yield from eepro100_interrupt(s, CNA)
        elif command & COMMAND_S:
            s.cu_state = CU_SUSPENDED
            yield from eepro100_interrupt(s, CNA)


def tx_command(s: EEPRO100, cb: int) -> Generator[Effect, None, None]:
    """Send the packet of one command block: copy it, one write to the tap."""
    m = s.machine
    row = m.memory.u64[m.memory.u32[(cb + TBD) >> 2] >> 3]
    mark(m.table, row, s.milestones.tx_seen, m.clock.now)
    yield spend(QEMU_NIC_PACKET)
    yield from copy_packet(s.client.network, row)
    yield from qemu_send_packet(s.client, row)


# -- the receive unit -------------------------------------------------------------------------------------------


def nic_receive(s: EEPRO100, row: int) -> Generator[Effect, None, None]:
    """Put one packet, already in QEMU's buffer, behind its RFD; a receive unit that is not ready loses it."""
    m = s.machine
    yield spend(QEMU_NIC_PACKET)
    if s.ru_state == RU_READY:
        rfd = s.ru_offset
        command = m.memory.u16[(rfd >> 1) + 1]
        size = min(packet_len(s.client.network, row), m.memory.u16[(rfd >> 1) + 7])
        if m.memory.u16[rfd >> 1] & STATUS_C:
            # Started anew behind the driver's back (see e100_rx_clean), it overwrites what has not been taken.
            yield from drop(m.window, m.memory.u64[(rfd + RFD_SIZE) >> 3], DEVICE_RING)
        if size > 0:
            yield from copy_packet_hot(s.client.network, row)
        m.memory.u64[(rfd + RFD_SIZE) >> 3] = row
        m.memory.u16[(rfd >> 1) + 6] = size
        m.memory.u16[rfd >> 1] = STATUS_C | STATUS_OK
        mark(m.table, row, s.milestones.rx_used, m.clock.now)
        before = s.irq.level
        yield from eepro100_interrupt(s, FR)
        if s.irq.level and not before:
            mark(m.table, row, s.milestones.rx_signalled, m.clock.now)
        s.ru_offset = m.memory.u32[(rfd >> 2) + 1]
        if command & COMMAND_EL:
            s.ru_state = RU_NO_RESOURCES
            yield from eepro100_interrupt(s, RNR)
        if command & COMMAND_S:
            s.ru_state = RU_SUSPENDED
    else:
        yield from drop(m.window, row, DEVICE_RING)
        yield from eepro100_interrupt(s, RNR)
