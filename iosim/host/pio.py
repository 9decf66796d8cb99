"""Port I/O to an emulated device: the five steps of `iosim.host.mmio` with another exit, IO_INSTRUCTION.

The exit itself says port, direction and size, so KVM has no instruction to fetch and decode (kvm_fast_pio). A string
instruction does go through KVM's emulator, which has to reach the guest's memory:

* ``rep ins`` reads ahead: one exit to QEMU fetches up to 1024 bytes (pio_in_emulated, arch/x86/kvm/emulate.c), and
  QEMU serves the items one after the other (kvm_handle_io);
* ``rep outs`` goes out with each single item (em_out).
"""

from __future__ import annotations

from collections.abc import Generator
from typing import Final

from iosim.effects import Effect, spend
from iosim.host import counters as count
from iosim.host.costs import (
    KVM_MMIO_DECODE,
    KVM_PIO_ENTER,
    KVM_PIO_RETURN,
    MMIO_READ_RESULT,
    QEMU_DISPATCH,
    QEMU_PIO_ITEM,
)
from iosim.host.kvm import Vcpu, vm_entry, vm_exit
from iosim.host.main_loop import MainLoop, lock_iothread, unlock_iothread
from iosim.ring.memory import PAGE_SIZE

READ_AHEAD: Final = 1024
"""Bytes that one exit of a ``rep ins`` fetches at most (struct read_cache, arch/x86/kvm/kvm_emulate.h)."""


def pio_to_qemu(v: Vcpu, q: MainLoop) -> Generator[Effect, None, None]:
    """Steps 1 to 3: exit, KVM_RUN returns, QEMU finds the device and takes the lock."""
    yield from vm_exit(v, count.EXIT_IO_INSTRUCTION)
    v.machine.counters.n[count.USERSPACE_EXITS] += 1
    yield spend(KVM_PIO_RETURN)
    yield spend(QEMU_DISPATCH)
    yield from lock_iothread(q)


def string_pio_to_qemu(v: Vcpu, q: MainLoop) -> Generator[Effect, None, None]:
    """The same for a string instruction, which KVM has to decode."""
    yield from vm_exit(v, count.EXIT_IO_INSTRUCTION)
    yield spend(KVM_MMIO_DECODE)
    v.machine.counters.n[count.USERSPACE_EXITS] += 1
    yield spend(KVM_PIO_RETURN)
    yield spend(QEMU_DISPATCH)
    yield from lock_iothread(q)


def next_item(q: MainLoop) -> Generator[Effect, None, None]:
    """QEMU goes on to the next item of a string access: the lock is taken anew for each."""
    yield from unlock_iothread(q)
    yield spend(QEMU_PIO_ITEM)
    yield from lock_iothread(q)


def pio_to_guest(v: Vcpu, q: MainLoop, read: bool) -> Generator[Effect, None, None]:
    """Steps 4 and 5: a read's result, KVM_RUN again, VM entry."""
    yield from unlock_iothread(q)
    if read:
        yield spend(MMIO_READ_RESULT)
    v.machine.counters.n[count.SYS_IOCTL] += 1
    yield spend(KVM_PIO_ENTER)
    yield from vm_entry(v)


def items_of_one_exit(address: int, size: int, items: int) -> int:
    """How many of ``items`` of ``size`` bytes one exit of a ``rep ins`` to ``address`` fetches (pio_in_emulated)."""
    in_page = PAGE_SIZE - address % PAGE_SIZE
    return min(min(in_page, READ_AHEAD // size), items)
