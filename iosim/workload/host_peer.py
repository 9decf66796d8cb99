"""The other end of each flow as a process on the host, which has a thread of its own there (``workload.peer=host``).

It does what the client outside does: makes requests and takes their replies (rr), sends packets (rx) or receives what
the guest sends (tx). Its socket is the host's, on the bridge's device: what it sends is in the tap's queue when the
system call returns.
"""

from __future__ import annotations

from collections.abc import Generator
from typing import Final

from iosim.effects import TASK, Effect, notify, spend, wait
from iosim.engine.system import instance
from iosim.fifo import EMPTY, Fifo, put, take_first
from iosim.guest.tcp import Offloads, tcp_write_xmit
from iosim.host import counters as count
from iosim.host.bridge import br_forward
from iosim.host.costs import INTERARRIVAL, THREAD_WAKEUP
from iosim.host.flows import flow_of, remember
from iosim.host.local_stack import (
    LocalSocket,
    local_cleanup_rbuf,
    local_recvmsg,
    local_sendmsg,
)
from iosim.host.machine import Machine
from iosim.host.network import Network
from iosim.host.packets import LAST, calls_acknowledged, ends_call, of_stream, payload, stream_packet
from iosim.window import SENDER, complete, drop, new_request
from iosim.workload.application import Application
from iosim.workload.client import BACKLOG, Client
from iosim.workload.path import Milestones
from iosim.workload.spec import RX, TX, Workload

THREAD: Final = "host-app"


class HostProcess:
    """A process on the host, with one socket.

    Args:
        machine, network, client, socket, workload: What it belongs to.

    Attributes:
        request: What it sends or receives are requests, and not the background stream.
        offloads: What its stack leaves to the bridge's device: the bridge has all that its ports may be given.
        arrivals: Requests of an open loop that are due.
        depth: Requests that it may have under way in a closed loop of rr; ``under_way`` are.
        lost: Those of them whose time is over.
    """

    __slots__ = (
        "arrivals", "client", "depth", "lost", "machine", "network", "offloads", "open_loop", "request", "socket",
        "under_way",
    )  # fmt: skip

    def __init__(
        self, machine: Machine, network: Network, client: Client, socket: LocalSocket, workload: Workload
    ) -> None:
        self.machine = machine
        self.network = network
        self.client = client
        self.socket = socket
        self.request = socket.number < workload.flows
        self.open_loop = workload.open_loop
        self.offloads = Offloads(csum=True, tso=True, gso=True)
        self.arrivals = Fifo(BACKLOG // workload.flows)
        self.depth = workload.depth
        self.under_way = 0
        self.lost = 0


class HostLoad:
    """All processes on the host: their open loop's clock, and who tells senders of what was lost.

    Args:
        machine: The machine.
        processes: By flow, the background stream's last.
        applications: Those of the guests, by flow.
    """

    __slots__ = ("applications", "machine", "processes")

    def __init__(self, machine: Machine, processes: list[HostProcess], applications: list[Application]) -> None:
        self.machine = machine
        self.processes = processes
        self.applications = applications


def host_processes(
    machine: Machine, network: Network, client: Client, milestones: Milestones, workload: Workload
) -> list[HostProcess]:
    """Give the host its sockets, and each of them a process on a thread of its own; return these, by flow."""
    received = workload.received()
    processes = []
    for flow in range(workload.flows + (workload.background > 0)):
        mine = flow < workload.flows
        size, depth = (workload.size, workload.depth) if mine else (workload.background, workload.background_depth)
        stream = workload.stream or not mine
        # What the guest does not receive of streams, it sends.
        socket = LocalSocket(
            machine, milestones, flow, size, depth, stream=stream, received=stream and not received[flow]
        )
        network.local.append(socket)
        p = HostProcess(machine, network, client, socket, workload)
        processes.append(p)
        if socket.received or (workload.kind == TX and mine):
            body = sink(p)
        elif stream:
            body = source_stream(p)
        elif workload.kind == RX:
            body = source(p)
        else:
            body = requester(p)
        thread = machine.system.thread(THREAD if workload.flows == 1 and mine else f"{THREAD}-{flow}")
        machine.system.process(instance("host process", flow), body, thread, TASK)
    return processes


def install(load: HostLoad, workload: Workload) -> None:
    """Add what the processes have in common."""
    system = load.machine.system
    if workload.open_loop and workload.kind != TX:
        system.process("arrivals", arrivals(load))
    system.process("lost requests", losses(load))


def requester(p: HostProcess) -> Generator[Effect, None, None]:
    """rr: replies come first, then requests: those that are due, or while fewer than the depth are under way."""
    m = p.machine
    s = p.socket
    while True:
        if s.queue.count > 0:
            row = yield from local_recvmsg(s)
            p.under_way -= 1
            yield from complete(m.window, row, m.clock.now)
        elif p.lost > 0:
            p.lost -= 1
            p.under_way -= 1
        elif p.arrivals.count > 0:
            p.under_way += 1
            yield from send(p, take_first(p.arrivals))
        elif not p.open_loop and p.under_way < p.depth and not m.window.draining:
            p.under_way += 1
            row = yield from new_request(m.window, m.clock.now)
            if m.flows.count > 1:
                remember(m.flows, row, s.number)
            yield from send(p, row)
        else:
            yield wait(s.readable, THREAD_WAKEUP)


def source(p: HostProcess) -> Generator[Effect, None, None]:
    """rx: a packet when it is due, or while fewer than the depth are on their way to the guest's application."""
    m = p.machine
    c = p.client
    flow = p.socket.number
    while True:
        if p.arrivals.count > 0:
            yield from send(p, take_first(p.arrivals))
        elif not p.open_loop and c.credits[flow] > 0 and not m.window.draining:
            c.credits[flow] -= 1
            row = yield from new_request(m.window, m.clock.now)
            if m.flows.count > 1:
                remember(m.flows, row, flow)
            yield from send(p, row)
        else:
            yield wait(c.credit[flow], THREAD_WAKEUP)


def source_stream(p: HostProcess) -> Generator[Effect, None, None]:
    """A stream's sender: a send call as soon as the window has room."""
    m = p.machine
    s = p.socket
    while True:
        while s.credits == 0 or (p.request and m.window.draining):
            yield wait(s.writable, THREAD_WAKEUP)
        s.credits -= 1
        call = stream_packet(s.number) | LAST
        if p.request:
            call = yield from new_request(m.window, m.clock.now)
            if m.flows.count > 1:
                remember(m.flows, call, s.number)
        yield from send(p, call)


def sink(p: HostProcess) -> Generator[Effect, None, None]:
    """tx: take packets, or send calls of a stream, which are complete when they are read."""
    m = p.machine
    s = p.socket
    while True:
        row = yield from local_recvmsg(s)
        if p.request:
            yield from complete(m.window, row, m.clock.now)
        else:
            m.counters.n[count.BACKGROUND_BYTES] += s.size
        if s.received:
            ack = yield from local_cleanup_rbuf(s)
            if ack != EMPTY:
                yield from br_forward(p.network, ack, 0, True)


def send(p: HostProcess, row: int) -> Generator[Effect, None, None]:
    """Send a packet, or all packets of a send call: system call, stack, bridge and the tap's queue."""
    s = p.socket
    yield from local_sendmsg(s, row)
    if s.stream:
        left = s.size
        while left > 0:
            packet = yield from tcp_write_xmit(p.offloads, s, row, left)
            left -= payload(packet)
            yield from br_forward(p.network, packet, 0, True)
    else:
        yield from br_forward(p.network, row, 0, True)


def arrivals(h: HostLoad) -> Generator[Effect, None, None]:
    """The open loop's clock: a request of the next process is due, and its timer wakes it if it sleeps."""
    m = h.machine
    w = m.window
    while not w.draining:
        yield spend(INTERARRIVAL)
        if not w.draining:
            row = yield from new_request(w, m.clock.now)
            flow = (m.table.created - 1) % m.flows.count
            if m.flows.count > 1:
                remember(m.flows, row, flow)
            if put(h.processes[flow].arrivals, row):
                yield notify(h.processes[flow].socket.readable)
                yield notify(h.processes[flow].client.credit[flow])
            else:
                yield from drop(w, row, SENDER)


def losses(h: HostLoad) -> Generator[Effect, None, None]:
    """A packet was lost: its sender's timeout comes at once.

    Of a stream that is as if the packet had been sent again, had arrived and been acknowledged. A guest that sends it
    hears of that by its timer's interrupt.
    """
    m = h.machine
    while True:
        while m.window.lost.count == 0:
            yield wait(m.window.losses)
        packet = take_first(m.window.lost)
        flow = flow_of(m.flows, packet)
        p = h.processes[flow]
        if of_stream(packet):
            calls = calls_acknowledged(packet)
            if payload(packet) > 0 and ends_call(packet):
                calls = 1
            if p.socket.received:
                h.applications[flow].socket.credits += calls
                yield notify(h.applications[flow].timer.fires)
            else:
                p.socket.credits += calls
                yield notify(p.socket.writable)
        elif not p.open_loop:
            p.lost += 1
            p.client.credits[flow] += 1
            yield notify(p.socket.readable)
            yield notify(p.client.credit[flow])
