"""KVM: a vCPU, its exits and entries, HLT with adaptive polling, and the delivery of interrupts.

A vCPU is a thread of the host. Its processes are what runs in the guest (by level: idle, task, softirq, hardirq) and
what KVM and QEMU do on the same thread after an exit; the process that left the guest parks the thread until it has
entered again. Interrupts that come meanwhile are pending (the APIC's IRR) and are injected at the entry.
"""

from __future__ import annotations

from collections.abc import Generator
from typing import Final

from iosim.effects import (
    HARDIRQ,
    HOST_INTERRUPT,
    IDLE,
    Effect,
    enter_guest,
    leave_guest,
    notify,
    notify_after,
    spend,
    spin,
    wait,
)
from iosim.engine.system import instance
from iosim.host import counters as count
from iosim.host.costs import (
    CPU_IDLE_EXIT,
    IRQ_ENTRY,
    IRQ_INJECTION,
    KVM_EOI,
    KVM_EXTERNAL_INTERRUPT,
    KVM_INTERRUPT_WINDOW,
    KVM_IOEVENTFD,
    KVM_TSC_DEADLINE,
    POSTED_INTERRUPT,
    RESCHEDULE_IPI,
    VCPU_WAKEUP,
    VM_ENTRY,
    VM_EXIT,
)
from iosim.host.machine import Machine
from iosim.host.work import WorkQueue, queue_work
from iosim.requests import mark

IN_GUEST: Final = 0
OUTSIDE: Final = 1
HALTED: Final = 2


class Vcpu:
    """A vCPU: where it is, which interrupts are pending, and how long it polls before it sleeps.

    Args:
        machine: The machine it belongs to.
        vectors: How many interrupt vectors the guest uses on it; those of its devices stand first.
        number: Its place among the guest's vCPUs.
        reschedule: The vector of the guest's reschedule interrupt, for a guest with several vCPUs.
        apicv: Posted interrupts and virtual APIC registers.
        pv_eoi: The guest may skip the exit for the EOI of an edge-triggered interrupt.
        halt_poll_max, grow, grow_start, shrink: KVM's module parameters halt_poll_ns* (times in ps).
        native: No vCPU but a CPU of the host, on which the same kernel runs without KVM: nothing exits.

    Attributes:
        mode: ``IN_GUEST``, ``OUTSIDE`` or ``HALTED``.
        asleep: Its thread sleeps, halted, and polls no more.
        idling: The guest's idle task has it, so that who makes a task of it ready must interrupt it.
        irr: One flag a vector: requested, not yet delivered.
        pending: How many flags of ``irr`` are set.
        handlers: How many interrupt handlers have begun and not returned; above 0 the guest's interrupts are off.
        handler_began: When each vector's handler began last (ps).
        line, remote_irr: Of level-triggered vectors: the line's state, and the I/O APIC's flag until the EOI.
        masked: Of level-triggered vectors: the guest has masked the line in the I/O APIC.
        irq: The channel of each vector's handler.
        wake: The channel a halted vCPU sleeps on.
        ipi: The channel of the host's interrupt that forces an exit.
        halt_poll: Time it polls at present (ps).
    """

    __slots__ = (
        "apicv", "asleep", "grow", "grow_start", "halt_poll", "halt_poll_max", "handler_began", "handlers",
        "idling", "ipi", "irq", "irr", "line", "machine", "masked", "mode", "native", "number", "pending", "pv_eoi",
        "remote_irr", "reschedule", "shrink", "thread", "wake",
    )  # fmt: skip

    def __init__(
        self,
        machine: Machine,
        vectors: int,
        number: int = 0,
        reschedule: int = -1,
        *,
        apicv: bool,
        pv_eoi: bool,
        halt_poll_max: int,
        grow: int,
        grow_start: int,
        shrink: int,
        native: bool = False,
    ) -> None:
        self.machine = machine
        name = f"cpu{number}" if native else f"vcpu{number}"
        self.number = number
        self.reschedule = reschedule
        self.thread = machine.system.thread(name)
        self.mode = IN_GUEST
        self.asleep = False
        self.idling = False
        self.irr = [False] * vectors
        self.pending = 0
        self.handlers = 0
        self.handler_began = [0] * vectors
        self.line = [False] * vectors
        self.remote_irr = [False] * vectors
        self.masked = [False] * vectors
        self.irq = [machine.system.channel(f"{name} vector {i}") for i in range(vectors)]
        self.wake = machine.system.channel(f"{name} wake")
        self.ipi = machine.system.channel(f"{name} ipi")
        # A local APIC of one's own: every interrupt is taken as it comes, the EOI is a write to a register.
        self.apicv = apicv or native
        self.native = native
        self.pv_eoi = pv_eoi
        self.halt_poll_max = halt_poll_max
        self.halt_poll = 0
        self.grow = grow
        self.grow_start = grow_start
        self.shrink = shrink
        if native:
            machine.system.process(instance("cpu idle", number), native_idle(self), self.thread, IDLE)
            name = instance("cpu interrupt", number)
            machine.system.process(name, native_interrupt(self), self.thread, HOST_INTERRUPT)
        else:
            machine.system.process(instance("kvm idle", number), idle(self), self.thread, IDLE)
            machine.system.process(instance("kvm ipi", number), external_interrupt(self), self.thread, HOST_INTERRUPT)
        if reschedule >= 0:
            self.handler(instance("reschedule interrupt", number), reschedule_interrupt(self))

    def handler(self, name: str, process: Generator[Effect, None, None]) -> None:
        """Add the interrupt handler that waits on one of ``irq``."""
        self.machine.system.process(name, process, self.thread, HARDIRQ)


# -- exits and entries ------------------------------------------------------------------------------------------


def vm_exit(v: Vcpu, reason: int) -> Generator[Effect, None, None]:
    """Leave the guest for ``reason`` (one of the ``EXIT_`` counters)."""
    yield leave_guest()
    v.mode = OUTSIDE
    v.machine.counters.n[reason] += 1
    yield spend(VM_EXIT)


def vm_entry(v: Vcpu) -> Generator[Effect, None, None]:
    """Enter the guest; a pending interrupt is injected with the entry and its handler runs first."""
    yield spend(VM_ENTRY)
    v.mode = IN_GUEST
    if v.pending > 0:
        yield from inject_pending(v)
    yield enter_guest()


def kick(
    v: Vcpu, queue: WorkQueue, item: int, row: int, milestone: int, port: bool = False
) -> Generator[Effect, None, None]:
    """A notify write to an ioeventfd: KVM signals the back end in the exit; the thread stays in the kernel.

    ``row`` (-1: none) is the request on whose behalf it is, stamped with ``milestone`` at the signal. ``port``: the
    register is a port, as a legacy device's.
    """
    n = v.machine.counters.n
    n[count.KICKS] += 1
    if port:
        n[count.PIO_WRITE] += 1
        yield from vm_exit(v, count.EXIT_IO_INSTRUCTION)
    else:
        n[count.MMIO_WRITE] += 1
        yield from vm_exit(v, count.EXIT_EPT_MISCONFIG)
    yield spend(KVM_IOEVENTFD)
    if row >= 0:
        mark(v.machine.table, row, milestone, v.machine.clock.now)
    yield from queue_work(queue, item)
    yield from vm_entry(v)


# -- interrupts -------------------------------------------------------------------------------------------------


def deliver_interrupt(v: Vcpu, vector: int) -> Generator[Effect, None, None]:
    """Set a vector's request in the APIC and make the vCPU look, from any thread (kvm_apic_set_irq).

    A CPU of the host has its APIC in hardware: it takes what comes at once.
    """
    if not v.native:
        yield spend(IRQ_INJECTION)
    if set_pending(v, vector):
        if v.mode == HALTED:
            yield notify(v.wake)
        elif v.mode == IN_GUEST:
            if v.native:
                yield notify(v.ipi)
            elif v.apicv:
                yield notify_after(v.ipi, POSTED_INTERRUPT)
            else:
                yield notify_after(v.ipi, RESCHEDULE_IPI)


def set_pending(v: Vcpu, vector: int) -> bool:
    """Set a vector's bit of the IRR; return False where it was set already: the two become one interrupt."""
    news = not v.irr[vector]
    if news:
        v.irr[vector] = True
        v.pending += 1
    else:
        v.machine.counters.n[count.INTERRUPTS_MERGED] += 1
    return news


def set_irq_line(v: Vcpu, vector: int, asserted: bool) -> Generator[Effect, None, None]:
    """KVM_IRQ_LINE for a level-triggered line: raised, it is delivered once until the guest's EOI."""
    v.line[vector] = asserted
    if asserted and not v.remote_irr[vector] and not v.masked[vector]:
        v.remote_irr[vector] = True
        yield from deliver_interrupt(v, vector)
    else:
        yield spend(IRQ_INJECTION)


def inject_pending(v: Vcpu) -> Generator[Effect, None, None]:
    """Give the guest its pending interrupts: all with APICv, else one at a time (the others at the EOI)."""
    room = v.apicv or v.handlers == 0
    vector = 0
    while v.pending > 0 and room and vector < len(v.irr):
        if v.irr[vector]:
            v.irr[vector] = False
            v.pending -= 1
            v.handlers += 1
            v.machine.counters.n[count.INTERRUPTS] += 1
            yield notify(v.irq[vector])
            room = v.apicv
        vector += 1


def external_interrupt(v: Vcpu) -> Generator[Effect, None, None]:
    """What an inter-processor interrupt does to a running vCPU: with APICv no exit, else exit and entry."""
    while True:
        yield wait(v.ipi)
        if v.mode == IN_GUEST:
            if v.apicv:
                yield from inject_pending(v)
            else:
                yield from vm_exit(v, count.EXIT_EXTERNAL_INTERRUPT)
                yield spend(KVM_EXTERNAL_INTERRUPT)
                yield from vm_entry(v)


def irq_enter(v: Vcpu, vector: int) -> Generator[Effect, None, None]:
    """The head of an interrupt handler: wait for the vector, enter through the IDT."""
    yield wait(v.irq[vector])
    v.handler_began[vector] = v.machine.clock.now
    yield spend(IRQ_ENTRY)


def irq_return(v: Vcpu) -> Generator[Effect, None, None]:
    """The end of an interrupt handler: the guest's interrupts are on again, and what is pending comes in."""
    v.handlers -= 1
    if v.pending > 0:
        if v.apicv:
            yield from inject_pending(v)
        else:
            yield from vm_exit(v, count.EXIT_INTERRUPT_WINDOW)
            yield spend(KVM_INTERRUPT_WINDOW)
            yield from vm_entry(v)


def eoi_edge(v: Vcpu) -> Generator[Effect, None, None]:
    """End of interrupt for a message (MSI): no exit with APICv, nor with PV EOI while nothing else is pending."""
    if not v.apicv and (v.pending > 0 or not v.pv_eoi):
        yield from vm_exit(v, count.EXIT_MSR_WRITE)
        yield spend(KVM_EOI)
        yield from vm_entry(v)


def eoi_level(v: Vcpu, vector: int) -> Generator[Effect, None, None]:
    """End of interrupt for a level-triggered line: always an exit, and a line still asserted comes again."""
    if v.apicv:
        yield from vm_exit(v, count.EXIT_EOI_INDUCED)
    else:
        yield from vm_exit(v, count.EXIT_MSR_WRITE)
    yield spend(KVM_EOI)
    v.remote_irr[vector] = False
    if v.line[vector] and not v.masked[vector]:
        v.remote_irr[vector] = True
        set_pending(v, vector)
    yield from vm_entry(v)


def arm_timer(v: Vcpu) -> Generator[Effect, None, None]:
    """The guest sets its APIC timer (IA32_TSC_DEADLINE): an exit; on a CPU of the host the write and no more."""
    if not v.native:
        yield from vm_exit(v, count.EXIT_MSR_WRITE)
        yield spend(KVM_TSC_DEADLINE)
        yield from vm_entry(v)


# -- from one vCPU to another -----------------------------------------------------------------------------------


def wake_up(v: Vcpu, other: Vcpu) -> Generator[Effect, None, None]:
    """A task of ``other`` was made ready from ``v``: an idle vCPU is interrupted, a busy one comes to it by itself.

    The interrupt is a write to the APIC's ICR: an exit, emulated at what the write to its EOI register costs. On a CPU
    of the host it is the write and no more.
    """
    if other.number != v.number and other.idling and v.native:
        yield from deliver_interrupt(other, other.reschedule)
    elif other.number != v.number and other.idling:
        yield from vm_exit(v, count.EXIT_MSR_WRITE)
        yield spend(KVM_EOI)
        yield from deliver_interrupt(other, other.reschedule)
        yield from vm_entry(v)


def reschedule_interrupt(v: Vcpu) -> Generator[Effect, None, None]:
    """The guest's reschedule interrupt: its handler does nothing, on its return the scheduler looks."""
    while True:
        yield from irq_enter(v, v.reschedule)
        yield from eoi_edge(v)
        yield from irq_return(v)


# -- HLT --------------------------------------------------------------------------------------------------------


def idle(v: Vcpu) -> Generator[Effect, None, None]:
    """The guest's idle loop: HLT, KVM's adaptive halt polling, sleep, wake-up."""
    clock = v.machine.clock
    while True:
        v.idling = True
        yield from vm_exit(v, count.EXIT_HLT)
        v.mode = HALTED
        halted_at = clock.now
        polled = False
        if v.pending == 0 and v.halt_poll > 0:
            yield spin(v.wake, v.halt_poll)
            polled = v.pending > 0
        while v.pending == 0:
            v.asleep = True
            yield wait(v.wake, VCPU_WAKEUP)
        v.asleep = False
        v.mode = OUTSIDE
        if polled:
            v.machine.counters.n[count.POLLED_HALTS] += 1
        adapt_halt_poll(v, clock.now - halted_at)
        v.idling = False
        yield from vm_entry(v)


def adapt_halt_poll(v: Vcpu, halted: int) -> None:
    """Grow or shrink the time to poll after a halt of ``halted`` ps (kvm_vcpu_halt, Linux 6.1)."""
    if halted > v.halt_poll:
        if v.halt_poll > 0 and halted > v.halt_poll_max:
            if v.shrink == 0:
                v.halt_poll = 0
            else:
                v.halt_poll //= v.shrink
            if v.halt_poll < v.grow_start:
                v.halt_poll = 0
        elif v.halt_poll < v.halt_poll_max and halted < v.halt_poll_max and v.grow > 0:
            v.halt_poll = min(max(v.halt_poll * v.grow, v.grow_start), v.halt_poll_max)


# -- the same kernel without KVM --------------------------------------------------------------------------------


def native_idle(v: Vcpu) -> Generator[Effect, None, None]:
    """The idle loop of a CPU of the host: HLT, which nobody sees but the CPU, until an interrupt.

    A task that another CPU has made ready meanwhile waits for that.
    """
    while True:
        v.idling = True
        yield leave_guest()
        v.mode = HALTED
        while v.pending == 0:
            yield wait(v.wake, CPU_IDLE_EXIT)
        v.mode = IN_GUEST
        v.idling = False
        yield from inject_pending(v)
        yield enter_guest()


def native_interrupt(v: Vcpu) -> Generator[Effect, None, None]:
    """An interrupt reaches a CPU of the host that is at work: through its IDT, without anybody between."""
    while True:
        yield wait(v.ipi)
        if v.mode == IN_GUEST:
            yield from inject_pending(v)
