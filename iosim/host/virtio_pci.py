"""virtio-pci: how the driver notifies the device and the device the driver (QEMU hw/virtio/virtio-pci.c).

A notify write goes to a register in memory, or to a port of a legacy device; KVM matches it to an ioeventfd, or QEMU
serves it on the vCPU's own thread. An interrupt is a message to a vector of its own for each queue, a message to one
vector for all of them, or the INTx line. That one is level-triggered: it stays up until the driver has read the ISR
register, an exit to QEMU for each interrupt.

A back end outside QEMU signals an eventfd for each queue. KVM turns it into the message where there is one (irqfd); the
line is QEMU's, whose main loop reads the eventfd and raises it.
"""

from __future__ import annotations

from collections.abc import Generator
from typing import Final

from iosim.effects import Effect, spend
from iosim.host import counters as count
from iosim.host.costs import QEMU_NIC_REGISTER, SYS_IOCTL, SYS_READ
from iosim.host.intx import AccessTrace, Intx, pci_set_irq
from iosim.host.kvm import Vcpu, deliver_interrupt
from iosim.host.machine import Machine
from iosim.host.main_loop import MainLoop, lock_iothread, main_loop_wait
from iosim.host.mmio import return_to_guest, trap_to_qemu
from iosim.host.pio import pio_to_guest, pio_to_qemu
from iosim.host.work import queue_work, take_work

OWN: Final = 0
SHARED: Final = 1
INTX: Final = 2
"""How queues interrupt: each by its own vector, all by one, or by the line."""

CONFIG_VECTORS: Final = 1
"""Vectors for changes of the configuration (Linux vp_find_vqs_msix)."""


def interrupt_mode(vectors: int, queues: int) -> int:
    """What Linux makes of a device with ``vectors`` MSI-X vectors and ``queues`` queues that interrupt (vp_find_vqs).

    One for each queue and one for the configuration; else one for all queues together; else the line.
    """
    mode = INTX
    if vectors >= queues + CONFIG_VECTORS:
        mode = OWN
    elif vectors > CONFIG_VECTORS:
        mode = SHARED
    return mode


def interrupted(mode: int, pairs: int, vcpus: int) -> int:
    """Which vCPU takes the interrupts of all queues, where they share one.

    The driver asks for each queue's vCPU in turn (virtnet_set_affinity), and a vector that they share has the affinity
    that it was given last (vp_set_vq_affinity): the last pair's. The line has none; the I/O APIC sends it to the first.
    """
    return (pairs - 1) % vcpus if mode == SHARED else 0


class VirtioPci:
    """The transport of one queue pair, or of all whose interrupts are one.

    Args:
        machine, vcpu: What it belongs to, and whom it interrupts.
        loop: QEMU's main loop, whose lock its register handlers take.
        first: Its first vector.
        mode: ``OWN``, ``SHARED`` or ``INTX``.
        legacy: Registers are ports (disable-modern=on), else memory.
        ioeventfd: KVM matches the notify write to an ioeventfd.

    Attributes:
        isr: The queues' bit of the ISR register.
        pin: The INTx pin.
    """

    __slots__ = ("first", "ioeventfd", "isr", "legacy", "loop", "machine", "mode", "pin", "vcpu")

    def __init__(
        self, machine: Machine, vcpu: Vcpu, loop: MainLoop, first: int, *, mode: int, legacy: bool, ioeventfd: bool
    ) -> None:
        self.machine = machine
        self.vcpu = vcpu
        self.loop = loop
        self.first = first
        self.mode = mode
        self.legacy = legacy
        self.ioeventfd = ioeventfd
        self.isr = False
        self.pin = Intx(machine, vcpu, AccessTrace())


def write_to_qemu(p: VirtioPci, v: Vcpu) -> Generator[Effect, None, None]:
    """A vCPU's register write goes out to QEMU, up to the device's handler, which has the big QEMU lock."""
    n = p.machine.counters.n
    if p.legacy:
        n[count.PIO_WRITE] += 1
        yield from pio_to_qemu(v, p.loop)
    else:
        n[count.MMIO_WRITE] += 1
        yield from trap_to_qemu(v, p.loop)
    yield spend(QEMU_NIC_REGISTER)


def back_to_guest(p: VirtioPci, v: Vcpu, read: bool) -> Generator[Effect, None, None]:
    """The handler has done; the guest goes on."""
    if p.legacy:
        yield from pio_to_guest(v, p.loop, read)
    else:
        yield from return_to_guest(v, p.loop, read)


def read_isr(p: VirtioPci) -> Generator[Effect, None, bool]:
    """The driver reads the ISR register, which clears it and lowers the line (virtio_pci_isr_read)."""
    n = p.machine.counters.n
    if p.legacy:
        n[count.PIO_READ] += 1
        yield from pio_to_qemu(p.vcpu, p.loop)
    else:
        n[count.MMIO_READ] += 1
        yield from trap_to_qemu(p.vcpu, p.loop)
    yield spend(QEMU_NIC_REGISTER)
    isr = p.isr
    p.isr = False
    yield from pci_set_irq(p.pin, False)
    yield from back_to_guest(p, p.vcpu, True)
    return isr


def virtio_notify_vector(p: VirtioPci, queue: int) -> Generator[Effect, None, None]:
    """QEMU interrupts the guest for a queue: the ioctl KVM_SIGNAL_MSI, or the line (virtio_irq, virtio_pci_notify)."""
    p.isr = True
    if p.mode == INTX:
        yield from pci_set_irq(p.pin, True)
    else:
        p.machine.counters.n[count.SYS_IOCTL] += 1
        yield spend(SYS_IOCTL)
        if p.mode == OWN:
            yield from deliver_interrupt(p.vcpu, p.first + queue)
        else:
            yield from deliver_interrupt(p.vcpu, p.first)


def signal_call(p: VirtioPci, pair: int, queue: int) -> Generator[Effect, None, None]:
    """What the call eventfd of a pair's queue does on the thread that signals it: irqfd, or QEMU's main loop wakes."""
    if p.mode == INTX:
        yield from queue_work(p.loop.work, 2 * pair + queue)
    elif p.mode == OWN:
        yield from deliver_interrupt(p.vcpu, p.first + queue)
    else:
        yield from deliver_interrupt(p.vcpu, p.first)


def guest_notifiers(p: VirtioPci) -> Generator[Effect, None, None]:
    """QEMU's main loop, with INTx: read the call eventfd, raise the line (virtio_queue_guest_notifier_read)."""
    yield from lock_iothread(p.loop)
    while True:
        yield from main_loop_wait(p.loop)
        ready = p.loop.work.fifo.count
        while ready > 0:
            queue = take_work(p.loop.work)
            p.machine.counters.n[count.SYS_READ] += 1
            yield spend(SYS_READ)
            yield from virtio_notify_vector(p, queue)
            ready -= 1
