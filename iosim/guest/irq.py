"""The guest kernel's way of keeping interrupts off for a while."""

from __future__ import annotations

from collections.abc import Generator

from iosim.effects import HARDIRQ, SOFTIRQ, Effect, level
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
