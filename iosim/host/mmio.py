"""Full emulation's way of a register access: from the guest to QEMU and back, in the five steps of the I/O trap.

1. the I/O trap in the KVM module catches the access (a VM exit);
2. KVM puts what it found into the shared page (struct kvm_run);
3. KVM_RUN returns to QEMU on the same thread, whose device code carries the access out under the big QEMU lock;
4. QEMU puts a read's result into the shared page (a write has none);
5. QEMU enters KVM_RUN again, and KVM hands the result to the guest with the VM entry.

Coalesced registers go another way: KVM records the write in a ring and enters the guest at once; QEMU carries it out
with the next access that does go out.
"""

from __future__ import annotations

from collections.abc import Generator
from typing import Final

from iosim.effects import Effect, spend
from iosim.host import counters as count
from iosim.host.costs import (
    KVM_COALESCED_MMIO,
    KVM_MMIO_DECODE,
    KVM_RUN_ENTER,
    KVM_RUN_RETURN,
    MMIO_READ_RESULT,
    QEMU_DISPATCH,
)
from iosim.host.kvm import Vcpu, vm_entry, vm_exit
from iosim.host.main_loop import MainLoop, lock_iothread, unlock_iothread

COALESCED_RING: Final = 170
"""Writes the coalesced MMIO ring holds: one page of 24-byte entries (Linux KVM_COALESCED_MMIO_MAX)."""


class CoalescedRing:
    """Writes that KVM has recorded and QEMU has not carried out yet: register and value of each."""

    __slots__ = ("count", "registers", "values")

    def __init__(self) -> None:
        self.registers = [0] * COALESCED_RING
        self.values = [0] * COALESCED_RING
        self.count = 0


def trap_to_qemu(v: Vcpu, q: MainLoop) -> Generator[Effect, None, None]:
    """Steps 1 to 3: exit, decode, KVM_RUN returns, QEMU finds the device and takes the lock."""
    n = v.machine.counters.n
    yield from vm_exit(v, count.EXIT_EPT_MISCONFIG)
    yield spend(KVM_MMIO_DECODE)
    n[count.USERSPACE_EXITS] += 1
    yield spend(KVM_RUN_RETURN)
    yield spend(QEMU_DISPATCH)
    yield from lock_iothread(q)


def return_to_guest(v: Vcpu, q: MainLoop, read: bool) -> Generator[Effect, None, None]:
    """Steps 4 and 5: a read's result, KVM_RUN again, VM entry."""
    yield from unlock_iothread(q)
    if read:
        yield spend(MMIO_READ_RESULT)
    v.machine.counters.n[count.SYS_IOCTL] += 1
    yield spend(KVM_RUN_ENTER)
    yield from vm_entry(v)


def coalesced_write(v: Vcpu, ring: CoalescedRing, register: int, value: int) -> Generator[Effect, None, None]:
    """A write that KVM records for later; the caller has made sure that the ring has room."""
    yield from vm_exit(v, count.EXIT_EPT_MISCONFIG)
    yield spend(KVM_MMIO_DECODE)
    yield spend(KVM_COALESCED_MMIO)
    ring.registers[ring.count] = register
    ring.values[ring.count] = value
    ring.count += 1
    yield from vm_entry(v)
