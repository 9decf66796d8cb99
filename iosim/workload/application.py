"""The application in the guest, one for each flow: what each workload makes it do between two packets."""

from __future__ import annotations

from collections.abc import Callable, Generator
from typing import TypeVar

from iosim.effects import Effect, notify, spend, wait
from iosim.engine.system import instance
from iosim.fifo import Fifo, put, take_first
from iosim.guest.scheduler import RunQueue, cond_resched
from iosim.guest.socket import Socket, recvmsg, sendmsg
from iosim.host import counters as count
from iosim.host.costs import GUEST_TIMER, GUEST_WAKEUP, INTERARRIVAL, THINK_TIME
from iosim.host.flows import flow_of, remember
from iosim.host.kvm import Vcpu, arm_timer, deliver_interrupt, eoi_edge, irq_enter, irq_return
from iosim.host.machine import Machine
from iosim.host.packets import LAST, calls_acknowledged, ends_call, of_stream, payload, stream_packet
from iosim.window import SENDER, complete, drop, new_request
from iosim.workload.client import BACKLOG, Client, return_credit
from iosim.workload.spec import REQUEST, RX, STREAM, TX, Workload

D = TypeVar("D")


class Application:
    """The guest's application on one socket.

    Args:
        machine, socket, client, workload: What it belongs to. It runs on the socket's vCPU.
        runqueue, task: Where it stands in line for that, and as which task.
        timer: The timer of its vCPU.
        kind: What it does, where that is not the workload's own.

    Attributes:
        kind: ``RR``, ``TX``, ``RX``, ``STREAM``, ``SINK`` or ``REQUEST``.
        arrivals: Packets of an open loop that are due: rows.
        armed: The guest has set its timer for the next one.
        depth: Requests that it has under way as a client.
        under_way: How many there are at present.
        lost: Those of them whose time is over.
    """

    __slots__ = (
        "armed", "arrivals", "client", "depth", "kind", "lost", "machine", "open_loop", "runqueue", "socket",
        "task", "timer", "under_way", "vcpu",
    )  # fmt: skip

    def __init__(
        self,
        machine: Machine,
        socket: Socket,
        runqueue: RunQueue,
        task: int,
        client: Client,
        workload: Workload,
        timer: GuestTimer,
        kind: int = -1,
    ) -> None:
        self.machine = machine
        self.runqueue = runqueue
        self.task = task
        self.vcpu = socket.vcpu
        self.socket = socket
        self.client = client
        self.kind = workload.kind if kind < 0 else kind
        self.open_loop = workload.open_loop
        self.timer = timer
        self.arrivals = Fifo(BACKLOG // workload.flows)
        self.armed = False
        self.depth = workload.depth
        self.under_way = 0
        self.lost = 0
        timer.applications.append(self)


class Timetable:
    """When the packets of an open loop of ``tx`` are due, or a client's requests, for all applications together.

    Args:
        machine: The machine.
        applications: Whose turn it is, is their order.
    """

    __slots__ = ("applications", "machine")

    def __init__(self, machine: Machine, applications: list[Application]) -> None:
        self.machine = machine
        self.applications = applications
        machine.system.process("tx arrivals", tx_arrivals(self))


class Timeouts:
    """The timeouts of senders in guests: clients give requests up that were lost, streams go on.

    Args:
        machine: The machine.
        applications: Who sends requests or a stream, by flow.
    """

    __slots__ = ("applications", "machine")

    def __init__(self, machine: Machine, applications: list[Application]) -> None:
        self.machine = machine
        self.applications = applications
        machine.system.process("lost requests", timeouts(self))


class GuestTimer:
    """The timer of a vCPU, which its applications share.

    Args:
        vcpu, vector: Whom it interrupts.

    Attributes:
        applications: Those on this vCPU.
        fires: The channel by which it is told that an application's time has come.
    """

    __slots__ = ("applications", "fires", "vcpu", "vector")

    def __init__(self, vcpu: Vcpu, vector: int) -> None:
        self.vcpu = vcpu
        self.vector = vector
        self.applications: list[Application] = []
        self.fires = vcpu.machine.system.channel(f"vcpu{vcpu.number} timer")

    def install(self) -> None:
        """Add its processes, for a workload that sets it."""
        self.vcpu.handler(instance("timer interrupt", self.vcpu.number), timer_interrupt(self))
        self.vcpu.machine.system.process(instance("guest timer", self.vcpu.number), apic_timer(self))


def application(
    a: Application,
    nic: D,
    dev_queue_xmit: Callable[[D, Socket, int], Generator[Effect, None, None]],
    cleanup_rbuf: Callable[[D, Socket], Generator[Effect, None, None]],
) -> Generator[Effect, None, None]:
    """The guest's application: receive and answer (rr), send (tx) or just receive (rx), by a NIC and its driver.

    What it has read of a stream, it acknowledges (``cleanup_rbuf``).
    """
    while True:
        row = yield from next_packet(a)
        if a.socket.received:
            yield from cleanup_rbuf(nic, a.socket)
        elif a.kind != RX:
            yield from sendmsg(a.socket, row)
            yield from dev_queue_xmit(nic, a.socket, row)


def next_packet(a: Application) -> Generator[Effect, None, int]:
    """Wait for what the application does next; return the request: one received (rr, rx) or one to send (tx)."""
    row = -1
    yield from cond_resched(a.runqueue, a.task)
    if a.kind == TX:
        if a.open_loop:
            row = yield from next_arrival(a)
        else:
            row = yield from next_in_closed_loop(a)
    elif a.kind == STREAM:
        row = yield from next_in_stream(a)
    elif a.kind == REQUEST:
        if a.open_loop:
            row = yield from next_request_due(a)
        else:
            row = yield from next_request(a)
    elif a.socket.received:
        row = yield from next_call(a)
    else:
        row = yield from recvmsg(a.socket)
        if a.kind == RX:
            yield from complete(a.machine.window, row, a.machine.clock.now)
            yield from return_credit(a.client, a.socket.number)
        yield spend(THINK_TIME)
    return row


def next_call(a: Application) -> Generator[Effect, None, int]:
    """Read the next send call of a stream that comes in, in full; the peer's window is TCP's business."""
    if a.kind == RX:
        yield spend(THINK_TIME)
    row = yield from recvmsg(a.socket)
    if a.kind == RX:
        yield from complete(a.machine.window, row, a.machine.clock.now)
    else:
        a.machine.counters.n[count.BACKGROUND_BYTES] += a.socket.size
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
    if a.machine.flows.count > 1:
        remember(a.machine.flows, row, s.number)
    return row


def next_in_stream(a: Application) -> Generator[Effect, None, int]:
    """The next send call of the background stream as soon as its window has room; it is no request."""
    s = a.socket
    while s.credits == 0:
        yield wait(s.writable)
        if s.credits > 0:
            yield spend(GUEST_WAKEUP)
    s.credits -= 1
    return stream_packet(s.number) | LAST


def next_request(a: Application) -> Generator[Effect, None, int]:
    """The next request of a client in a guest: while fewer than its depth are under way; else a reply comes first."""
    w = a.machine.window
    while a.under_way == a.depth or w.draining:
        yield from next_reply(a)
    a.under_way += 1
    row = yield from new_request(w, a.machine.clock.now)
    if a.machine.flows.count > 1:
        remember(a.machine.flows, row, a.socket.number)
    return row


def next_request_due(a: Application) -> Generator[Effect, None, int]:
    """The next request of a client's open loop; replies that are there come first, and complete theirs.

    It sleeps for both, in ``epoll_wait`` with a timeout: the timer is set once for each request that is waited for.
    """
    s = a.socket
    while a.arrivals.count == 0 or s.queue.count > 0:
        if s.queue.count > 0:
            row = yield from recvmsg(s)
            yield from complete(a.machine.window, row, a.machine.clock.now)
        else:
            if not a.armed:
                a.armed = True
                yield from arm_timer(a.vcpu)
            yield wait(s.readable)
            yield spend(GUEST_WAKEUP)
    return take_first(a.arrivals)


def next_reply(a: Application) -> Generator[Effect, None, None]:
    """Receive a reply, which completes its request; or give up one that was lost."""
    s = a.socket
    while s.queue.count == 0 and a.lost == 0:
        yield wait(s.readable)
        yield spend(GUEST_WAKEUP)
    if a.lost > 0:
        a.lost -= 1
    else:
        row = yield from recvmsg(s)
        yield from complete(a.machine.window, row, a.machine.clock.now)
    a.under_way -= 1


def timeouts(t: Timeouts) -> Generator[Effect, None, None]:
    """A packet was lost: its timeout comes at once, by an interrupt of its sender's timer.

    Of a stream that is as if the packet had been sent again, had arrived and been acknowledged.
    """
    m = t.machine
    while True:
        while m.window.lost.count == 0:
            yield wait(m.window.losses)
        packet = take_first(m.window.lost)
        a = t.applications[flow_of(m.flows, packet)]
        if of_stream(packet):
            calls = calls_acknowledged(packet)
            if payload(packet) > 0 and ends_call(packet):
                calls = 1
            a.socket.credits += calls
            yield notify(a.timer.fires)
        elif a.kind == REQUEST and not a.open_loop:
            a.lost += 1
            yield notify(a.timer.fires)


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


def tx_arrivals(t: Timetable) -> Generator[Effect, None, None]:
    """The open loop's clock: a packet of the next application is due; where that sleeps, its vCPU's timer fires."""
    m = t.machine
    w = m.window
    while not w.draining:
        yield spend(INTERARRIVAL)
        if not w.draining:
            row = yield from new_request(w, m.clock.now)
            a = t.applications[(m.table.created - 1) % m.flows.count]
            if m.flows.count > 1:
                remember(m.flows, row, a.socket.number)
            if put(a.arrivals, row):
                if a.armed:
                    a.armed = False
                    # Another process injects the interrupt: what that takes must not hold the next arrival up.
                    yield notify(a.timer.fires)
            else:
                yield from drop(w, row, SENDER)


def apic_timer(t: GuestTimer) -> Generator[Effect, None, None]:
    """The timer fires: KVM injects its interrupt."""
    while True:
        yield wait(t.fires)
        yield from deliver_interrupt(t.vcpu, t.vector)


def timer_interrupt(t: GuestTimer) -> Generator[Effect, None, None]:
    """The guest's timer interrupt: wake the applications whose time has come."""
    while True:
        yield from irq_enter(t.vcpu, t.vector)
        yield from eoi_edge(t.vcpu)
        yield spend(GUEST_TIMER)
        i = 0
        while i < len(t.applications):
            if t.applications[i].socket.stream:
                yield notify(t.applications[i].socket.writable)
            elif not t.applications[i].armed:
                yield notify(t.applications[i].socket.readable)
            i += 1
        yield from irq_return(t.vcpu)
