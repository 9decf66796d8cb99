"""KVM's own I/O APIC (arch/x86/kvm/ioapic.c): its registers are memory-mapped, and an access ends in the kernel.

Only what masks one line is here: a register is selected by a write to IOREGSEL and reached through IOWIN; bit 16 of the
lower half of a redirection entry masks the line. A level-triggered line that is asserted when it is unmasked interrupts
at once.
"""

from __future__ import annotations

from collections.abc import Generator
from typing import Final

from iosim.effects import Effect, spend
from iosim.host import counters as count
from iosim.host.costs import KVM_IOAPIC, KVM_MMIO_DECODE
from iosim.host.intx import IRQ, VECTOR, WRITTEN, AccessTrace
from iosim.host.kvm import Vcpu, deliver_interrupt, vm_entry, vm_exit

IOREGSEL: Final = 0
IOWIN: Final = 1
IOAPIC_NAMES: Final = ("ioapic+0xfec00000", "ioapic+0xfec00010")
REDIRECTION: Final = 0x10 + 2 * 11
"""The register with the lower half of the entry for the NIC's line (input 11, as QEMU's machine pc routes slot 3)."""
MASKED: Final = 1 << 16


class IoApic:
    """The I/O APIC, as far as the NIC's line goes.

    Args:
        vcpu: The vCPU it interrupts.
        trace: Where accesses are noted.
        first: The number of IOREGSEL in the trace.

    Attributes:
        ioregsel: The register that IOWIN stands for.
    """

    __slots__ = ("first", "ioregsel", "trace", "vcpu")

    def __init__(self, vcpu: Vcpu, trace: AccessTrace, first: int) -> None:
        self.vcpu = vcpu
        self.trace = trace
        self.first = first
        self.ioregsel = 0


def ioapic_write(a: IoApic, register: int, value: int) -> Generator[Effect, None, None]:
    """The guest writes IOREGSEL or IOWIN: to KVM and back."""
    v = a.vcpu
    v.machine.counters.n[count.MMIO_WRITE] += 1
    if a.trace.on:
        a.trace.entries.append((a.first + register) << 1 | WRITTEN)
    yield from vm_exit(v, count.EXIT_EPT_MISCONFIG)
    yield spend(KVM_MMIO_DECODE)
    yield spend(KVM_IOAPIC)
    if register == IOREGSEL:
        a.ioregsel = value
    elif a.ioregsel == REDIRECTION:
        v.masked[VECTOR] = value & MASKED != 0
        if v.line[VECTOR] and not v.masked[VECTOR] and not v.remote_irr[VECTOR]:
            v.remote_irr[VECTOR] = True
            if a.trace.on:
                a.trace.entries.append(IRQ)
            yield from deliver_interrupt(v, VECTOR)
    yield from vm_entry(v)


def ioapic_read(a: IoApic) -> Generator[Effect, None, None]:
    """The guest reads IOWIN, for nothing but that its write has arrived: to KVM and back."""
    v = a.vcpu
    v.machine.counters.n[count.MMIO_READ] += 1
    if a.trace.on:
        a.trace.entries.append((a.first + IOWIN) << 1)
    yield from vm_exit(v, count.EXIT_EPT_MISCONFIG)
    yield spend(KVM_MMIO_DECODE)
    yield spend(KVM_IOAPIC)
    yield from vm_entry(v)
