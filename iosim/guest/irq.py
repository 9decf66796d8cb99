"""The guest kernel's ways of keeping interrupts off for a while: on the CPU, and of one line."""

from __future__ import annotations

from collections.abc import Generator

from iosim.effects import HARDIRQ, SOFTIRQ, Effect, level
from iosim.host.ioapic import IOREGSEL, IOWIN, MASKED, REDIRECTION, IoApic, ioapic_read, ioapic_write
from iosim.host.kvm import Vcpu, irq_return


def local_irq_save(v: Vcpu) -> Generator[Effect, None, None]:
    """Turn the CPU's interrupts off (spin_lock_irqsave on one vCPU): what comes now stays pending."""
    v.handlers += 1
    yield level(HARDIRQ)


def local_irq_restore(v: Vcpu) -> Generator[Effect, None, None]:
    """Turn them on again, in a driver with bottom halves off: an interrupt that came meanwhile is taken now.

    Without APICv KVM has waited for this moment, which is an exit (INTERRUPT_WINDOW).
    """
    yield from irq_return(v)
    yield level(SOFTIRQ)


class IrqDesc:
    """A line of the I/O APIC as Linux sees it (struct irq_desc).

    Args:
        ioapic: Where it is masked.

    Attributes:
        depth: How often it has been disabled; 0 is enabled.
        masked: Whether it is masked in the I/O APIC.
    """

    __slots__ = ("depth", "ioapic", "masked")

    def __init__(self, ioapic: IoApic) -> None:
        self.ioapic = ioapic
        self.depth = 0
        self.masked = False


def disable_irq_nosync(d: IrqDesc) -> None:
    """Disable the line, lazily: it is masked only when an interrupt does come (kernel/irq/chip.c, irq_disable)."""
    d.depth += 1


def enable_irq(d: IrqDesc) -> Generator[Effect, None, None]:
    """Enable the line; where it had to be masked, unmask it, and an interrupt that is still asserted comes again."""
    yield from local_irq_save(d.ioapic.vcpu)
    d.depth -= 1
    if d.depth == 0 and d.masked:
        d.masked = False
        yield from ioapic_write(d.ioapic, IOREGSEL, REDIRECTION)
        yield from ioapic_write(d.ioapic, IOWIN, 0)
    yield from local_irq_restore(d.ioapic.vcpu)


def mask_disabled(d: IrqDesc) -> Generator[Effect, None, None]:
    """An interrupt came while the line is disabled: mask it, no handler (handle_fasteoi_irq, mask_ioapic_irq)."""
    d.masked = True
    yield from ioapic_write(d.ioapic, IOREGSEL, REDIRECTION)
    yield from ioapic_write(d.ioapic, IOWIN, MASKED)
    yield from ioapic_read(d.ioapic)
