"""The application in the guest: what each workload makes it do between two packets."""

from __future__ import annotations

from collections.abc import Generator

from iosim.effects import Effect, notify, spend, wait
from iosim.fifo import Fifo, put, take_first
from iosim.guest.socket import Socket, recvmsg
from iosim.host.costs import GUEST_TIMER, GUEST_WAKEUP, INTERARRIVAL, THINK_TIME
from iosim.host.kvm import Vcpu, arm_timer, deliver_interrupt, eoi_edge, irq_enter, irq_return
from iosim.host.machine import Machine
from iosim.window import complete, drop, new_request
from iosim.workload.client import BACKLOG, Client, return_credit
from iosim.workload.spec import RX, TX, Workload


class Application:
    """The guest's application.

    Args:
        machine, vcpu, socket, client, workload: What it belongs to.
        timer: The vector of the guest's timer.

    Attributes:
        kind: ``RR``, ``TX`` or ``RX``.
        arrivals: Packets of an open loop that are due: rows.
        armed: The guest has set its timer for the next one.
    """

    __slots__ = ("armed", "arrivals", "client", "kind", "machine", "open_loop", "socket", "timer", "vcpu")

    def __init__(
        self, machine: Machine, vcpu: Vcpu, socket: Socket, client: Client, workload: Workload, timer: int
    ) -> None:
        self.machine = machine
        self.vcpu = vcpu
        self.socket = socket
        self.client = client
        self.kind = workload.kind
        self.open_loop = workload.open_loop
        self.timer = timer
        self.arrivals = Fifo(BACKLOG)
        self.armed = False
        if self.kind == TX and self.open_loop:
            machine.system.process("tx arrivals", tx_arrivals(self))
            vcpu.handler("timer interrupt", timer_interrupt(self))


def next_packet(a: Application) -> Generator[Effect, None, int]:
    """Wait for what the application does next; return the request: one received (rr, rx) or one to send (tx)."""
    row = -1
    if a.kind == TX:
        if a.open_loop:
            row = yield from next_arrival(a)
        else:
            row = yield from next_in_closed_loop(a)
    else:
        row = yield from recvmsg(a.socket)
        if a.kind == RX:
            yield from complete(a.machine.window, row, a.machine.clock.now)
            yield from return_credit(a.client)
        yield spend(THINK_TIME)
    return row


def next_in_closed_loop(a: Application) -> Generator[Effect, None, int]:
    """The next packet as soon as the send buffer has room: the request begins with the send call."""
    s = a.socket
    yield spend(THINK_TIME)
    while s.credits == 0 or a.machine.window.draining:
        yield wait(s.writable)
        if s.credits > 0:
            yield spend(GUEST_WAKEUP)
    s.credits -= 1
    row = yield from new_request(a.machine.window, a.machine.clock.now)
    return row


def next_arrival(a: Application) -> Generator[Effect, None, int]:
    """The next packet of the open loop; where none is due, set the timer and sleep."""
    while a.arrivals.count == 0:
        a.armed = True
        yield from arm_timer(a.vcpu)
        while a.armed:
            yield wait(a.socket.readable)
        yield spend(GUEST_WAKEUP)
    yield spend(THINK_TIME)
    return take_first(a.arrivals)


def tx_arrivals(a: Application) -> Generator[Effect, None, None]:
    """The open loop's clock: a packet is due; where the guest sleeps, its timer fires."""
    w = a.machine.window
    while not w.draining:
        yield spend(INTERARRIVAL)
        if not w.draining:
            row = yield from new_request(w, a.machine.clock.now)
            if put(a.arrivals, row):
                if a.armed:
                    a.armed = False
                    yield from deliver_interrupt(a.vcpu, a.timer)
            else:
                yield from drop(w, row)


def timer_interrupt(a: Application) -> Generator[Effect, None, None]:
    """The guest's timer interrupt: wake the application."""
    while True:
        yield from irq_enter(a.vcpu, a.timer)
        yield from eoi_edge(a.vcpu)
        yield spend(GUEST_TIMER)
        yield notify(a.socket.readable)
        yield from irq_return(a.vcpu)
