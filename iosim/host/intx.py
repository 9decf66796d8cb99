"""What the emulated PCI NICs share: the INTx line, and a trace of register accesses for those who want to look."""

from __future__ import annotations

from collections.abc import Generator
from typing import Final

from iosim.effects import Effect, spend
from iosim.host import counters as count
from iosim.host.costs import SYS_IOCTL
from iosim.host.kvm import Vcpu, set_irq_line
from iosim.host.machine import Machine

VECTOR: Final = 0
"""The vector of the NIC's INTx line."""

WRITTEN: Final = 1
"""Added to an entry of the trace that is a write."""
IRQ: Final = -1
"""The entry of the trace that is an interrupt message."""


class AccessTrace:
    """The register accesses and interrupt messages in their order, while it is ``on``.

    Attributes:
        entries: Twice the register's number, plus ``WRITTEN`` for a write; or ``IRQ``.
    """

    __slots__ = ("entries", "on")

    def __init__(self) -> None:
        self.on = False
        self.entries: list[int] = []


def named(trace: AccessTrace, names: tuple[str, ...]) -> list[str]:
    """The trace in words: ``R ISR``, ``W TDT``, ``IRQ``; ``names`` are the registers' by number."""
    return ["IRQ" if e == IRQ else f"{'W' if e & WRITTEN else 'R'} {names[e >> 1]}" for e in trace.entries]


class Intx:
    """A NIC's interrupt pin.

    Args:
        machine, vcpu: What it belongs to.
        trace: Where messages are noted.

    Attributes:
        level: What the device drives.
    """

    __slots__ = ("level", "machine", "trace", "vcpu")

    def __init__(self, machine: Machine, vcpu: Vcpu, trace: AccessTrace) -> None:
        self.machine = machine
        self.vcpu = vcpu
        self.trace = trace
        self.level = False


def pci_set_irq(p: Intx, asserted: bool) -> Generator[Effect, None, None]:
    """Drive the pin: a change is an ioctl KVM_IRQ_LINE, anything else ends here (pci_irq_handler, hw/pci/pci.c)."""
    if asserted != p.level:
        p.level = asserted
        if p.trace.on and asserted and not p.vcpu.remote_irr[VECTOR] and not p.vcpu.masked[VECTOR]:
            p.trace.entries.append(IRQ)
        p.machine.counters.n[count.SYS_IOCTL] += 1
        yield spend(SYS_IOCTL)
        yield from set_irq_line(p.vcpu, VECTOR, asserted)
