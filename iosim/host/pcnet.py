"""QEMU's pcnet: an AMD Am79C970A behind an address and a data port (hw/net/pcnet.c).

Every access begins with `pcnet_poll_timer`: the device looks at its transmit ring first, whatever the access is about.
So a packet is on its way to the tap, and its interrupt raised, before the write that was to start it is carried out.
The same function is a timer of the main loop's (every 2 ms), which each access sets anew and so wakes the main loop.

Descriptors stand in guest memory as the data sheet has them (software style 2, 16 bytes): buffer address, length,
status with the owner, misc. CSR numbers are the data sheet's.
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
from iosim.host.main_loop import MainLoop, notify_event
from iosim.host.net_client import NetClient, qemu_send_packet
from iosim.host.network import copy_packet, copy_packet_hot, packet_len
from iosim.host.pio import pio_to_guest, pio_to_qemu
from iosim.requests import mark
from iosim.ring.memory import allocate
from iosim.window import DEVICE_RING, drop

RDP: Final = 0
RAP: Final = 1
REGISTER_NAMES: Final = ("RDP", "RAP16")

CSR0: Final = 0
CSR3: Final = 3

RXON: Final = 0x0020
TXON: Final = 0x0010
TDMD: Final = 0x0008
"""CSR0, transmit demand: poll the transmit ring now (TXPOLL in Linux)."""
STRT: Final = 0x0002
INIT: Final = 0x0001
INEA: Final = 0x0040
INTR: Final = 0x0080
TINT: Final = 0x0200
RINT: Final = 0x0400
MISS: Final = 0x1000
CAUSES: Final = 0x7F00
"""The bits of CSR0 that a written 1 clears."""
MASKABLE: Final = 0x5F00
"""The bits of CSR0 that a bit of CSR3 masks."""
ERR: Final = 0x8000
ERRORS: Final = 0x7800

DESCRIPTOR: Final = 16
OWN: Final = 0x8000
STP: Final = 0x0200
ENP: Final = 0x0100
STATUS: Final = 3
"""Where the status stands in a descriptor, in 16-bit words."""

POLL_TIME: Final = 65536 * 10**12 // 33_000_000
"""ps between two polls of the rings by the timer: 65536 clocks of 33 MHz (pcnet_get_next_poll_time)."""


class DeviceMilestones(Protocol):
    """The milestones stamped here."""

    rx_used: int
    rx_signalled: int
    kicked: int
    tx_seen: int


class PCNet:
    """The device's state, under QEMU's names.

    Args:
        machine, vcpu, main_loop, client, milestones: What it belongs to.
        notify_item: The main loop's item for its own eventfd.
        tx_size, rx_size: Descriptors in the rings.

    Attributes:
        value: What the last register read gave.
        rap: The CSR that RDP stands for.
        csr0, csr3: Status and interrupt masks.
        tdra, rdra: Guest-physical addresses of the rings.
        xmtrc, rcvrc: Where the device is in each ring, counted down from its length.
    """

    __slots__ = (
        "client", "csr0", "csr3", "irq", "machine", "main_loop", "milestones", "notify_item", "rap", "rcvrc", "rdra",
        "rx_size", "tdra", "trace", "tx_size", "value", "vcpu", "xmtrc",
    )  # fmt: skip

    def __init__(
        self,
        machine: Machine,
        vcpu: Vcpu,
        main_loop: MainLoop,
        client: NetClient,
        milestones: DeviceMilestones,
        notify_item: int,
        *,
        tx_size: int,
        rx_size: int,
    ) -> None:
        self.machine = machine
        self.vcpu = vcpu
        self.main_loop = main_loop
        self.client = client
        self.milestones = milestones
        self.notify_item = notify_item
        self.tx_size = tx_size
        self.rx_size = rx_size
        self.tdra = allocate(machine.memory, tx_size * DESCRIPTOR, 16)
        self.rdra = allocate(machine.memory, rx_size * DESCRIPTOR, 16)
        self.xmtrc = tx_size
        self.rcvrc = rx_size
        self.rap = 0
        self.csr0 = 0
        self.csr3 = 0
        self.value = 0
        self.trace = AccessTrace()
        self.irq = Intx(machine, vcpu, self.trace)


def start(s: PCNet) -> None:
    """What the driver's INIT, STRT and INEA left the device in before time 0, with its timer set."""
    s.csr0 = INIT | STRT | TXON | RXON | INEA
    s.main_loop.deadline = POLL_TIME


# -- the guest's register accesses ------------------------------------------------------------------------------


def outw(s: PCNet, register: int, value: int) -> Generator[Effect, None, None]:
    """The guest writes a port: out to QEMU and back."""
    s.machine.counters.n[count.PIO_WRITE] += 1
    if s.trace.on:
        s.trace.entries.append(register << 1 | WRITTEN)
    yield from pio_to_qemu(s.vcpu, s.main_loop)
    yield from pcnet_ioport_writew(s, register, value)
    yield from pio_to_guest(s.vcpu, s.main_loop, False)


def inw(s: PCNet, register: int) -> Generator[Effect, None, int]:
    """The guest reads a port: out to QEMU and back with the result."""
    s.machine.counters.n[count.PIO_READ] += 1
    if s.trace.on:
        s.trace.entries.append(register << 1)
    yield from pio_to_qemu(s.vcpu, s.main_loop)
    yield from pcnet_ioport_readw(s, register)
    value = s.value
    yield from pio_to_guest(s.vcpu, s.main_loop, True)
    return value


# -- the register handlers --------------------------------------------------------------------------------------


def pcnet_ioport_writew(s: PCNet, register: int, value: int) -> Generator[Effect, None, None]:
    """The device's handler of a write: poll first, then write, then the line."""
    yield spend(QEMU_NIC_REGISTER)
    yield from pcnet_poll_timer(s)
    if register == RAP:
        s.rap = value
    else:
        yield from pcnet_csr_writew(s, value)
    yield from pcnet_update_irq(s)


def pcnet_ioport_readw(s: PCNet, register: int) -> Generator[Effect, None, None]:
    """The device's handler of a read: poll first, then read, then the line."""
    yield spend(QEMU_NIC_REGISTER)
    yield from pcnet_poll_timer(s)
    if register == RAP:
        s.value = s.rap
    elif s.rap == CSR0:
        yield from pcnet_update_irq(s)
        s.value = s.csr0
        if s.csr0 & ERRORS:
            s.value |= ERR
    else:
        s.value = s.csr3
    yield from pcnet_update_irq(s)


def pcnet_csr_writew(s: PCNet, value: int) -> Generator[Effect, None, None]:
    """A write of the CSR that RAP names: CSR0 clears causes, sets INEA, demands a transmission; CSR3 masks."""
    if s.rap == CSR0:
        s.csr0 &= ~(value & CAUSES)
        s.csr0 = s.csr0 & ~INEA | value & (INEA | TDMD)
        if s.csr0 & TDMD:
            yield from pcnet_transmit(s)
    else:
        s.csr3 = value


def pcnet_update_irq(s: PCNet) -> Generator[Effect, None, None]:
    """Let the line follow the causes, their masks and INEA."""
    s.csr0 &= ~INTR
    asserted = False
    if s.csr0 & ~s.csr3 & MASKABLE:
        s.csr0 |= INTR
        asserted = s.csr0 & INEA != 0
    yield from pci_set_irq(s.irq, asserted)


def pcnet_poll_timer(s: PCNet) -> Generator[Effect, None, None]:
    """Poll the transmit ring and set the timer anew: the first thing any access does, and what the timer does.

    QEMU means to poll no more often than the timer; but it compares with the time at which the device was started, and
    so polls always.
    """
    if s.csr0 & TDMD:
        yield from pcnet_transmit(s)
    yield from pcnet_update_irq(s)
    yield from pcnet_poll(s)
    s.main_loop.deadline = s.machine.clock.now + POLL_TIME
    yield from notify_event(s.main_loop, s.notify_item)


# -- transmit and receive ---------------------------------------------------------------------------------------


def pcnet_poll(s: PCNet) -> Generator[Effect, None, None]:
    """Send if it is demanded, or if the next transmit descriptor is the device's."""
    if s.csr0 & TDMD or owns(s, s.tdra + (s.tx_size - s.xmtrc) * DESCRIPTOR):
        yield from pcnet_transmit(s)


def owns(s: PCNet, at: int) -> bool:
    """Whether a descriptor is the device's."""
    return s.machine.memory.u16[(at >> 1) + STATUS] & OWN != 0


def counted_down(position: int, size: int) -> int:
    """The next value of a ring counter."""
    after = position - 1
    if after == 0:
        after = size
    return after


def pcnet_transmit(s: PCNet) -> Generator[Effect, None, None]:
    """Send all descriptors that are the device's: copy each packet, one write to the tap, give it back, set TINT."""
    m = s.machine
    at = s.tdra + (s.tx_size - s.xmtrc) * DESCRIPTOR
    packets = 0
    s.csr0 &= ~TDMD
    while packets < s.tx_size and owns(s, at):
        row = m.memory.u64[m.memory.u32[at >> 2] >> 3]
        mark(m.table, row, s.milestones.tx_seen, m.clock.now)
        yield spend(QEMU_NIC_PACKET)
        yield from copy_packet(s.client.network, row)
        yield from qemu_send_packet(s.client, row)
        m.memory.u16[(at >> 1) + STATUS] &= ~OWN
        s.csr0 |= TINT
        s.xmtrc = counted_down(s.xmtrc, s.tx_size)
        packets += 1
        at = s.tdra + (s.tx_size - s.xmtrc) * DESCRIPTOR


def pcnet_receive(s: PCNet, row: int) -> Generator[Effect, None, None]:
    """Put one packet into the guest's buffer by way of the device's own; without a descriptor it is lost (MISS)."""
    m = s.machine
    yield spend(QEMU_NIC_PACKET)
    scanned = 1
    while scanned < s.rx_size and not owns(s, s.rdra + (s.rx_size - s.rcvrc) * DESCRIPTOR):
        s.rcvrc = counted_down(s.rcvrc, s.rx_size)
        scanned += 1
    at = s.rdra + (s.rx_size - s.rcvrc) * DESCRIPTOR
    before = s.irq.level
    if owns(s, at):
        yield from copy_packet_hot(s.client.network, row)
        yield from copy_packet_hot(s.client.network, row)
        m.memory.u64[m.memory.u32[at >> 2] >> 3] = row
        m.memory.u32[(at >> 2) + 2] = packet_len(s.client.network, row) + 4
        m.memory.u16[(at >> 1) + STATUS] = STP | ENP
        mark(m.table, row, s.milestones.rx_used, m.clock.now)
        s.csr0 |= RINT
        s.rcvrc = counted_down(s.rcvrc, s.rx_size)
    else:
        s.csr0 |= MISS
        yield from drop(m.window, row, DEVICE_RING)
    yield from pcnet_poll(s)
    yield from pcnet_update_irq(s)
    if s.irq.level and not before:
        mark(m.table, row, s.milestones.rx_signalled, m.clock.now)
