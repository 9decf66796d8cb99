"""The machine at the other end of the wire: it sends requests and receives replies. Its own CPUs are not simulated.

In a closed loop each flow has ``depth`` connections, and each sends its next request when the reply is there (and
``peer_delay`` is over); in an open loop requests arrive at a rate whatever became of earlier ones. A request that a
full queue dropped gives its place in the closed loop back at once, where real software would wait for a timeout.
"""

from __future__ import annotations

from collections.abc import Generator
from typing import Final

from iosim.effects import Effect, give, notify, sleep_until, spend, take, wait
from iosim.engine.system import instance
from iosim.fifo import Fifo, put, take_first
from iosim.host import counters as count
from iosim.host.costs import CLIENT_RECEIVE, CLIENT_SEND, INTERARRIVAL, PEER_DELAY, WIRE
from iosim.host.flows import flow_of, remember
from iosim.host.frames import MSS, TCP_HEADERS, WIRE_OVERHEAD
from iosim.host.machine import Machine
from iosim.host.network import QDISC_LIMIT, RX_RING, Network
from iosim.host.packets import (
    LAST,
    bytes_on_wire,
    calls_acknowledged,
    ends_call,
    flow_number,
    of_stream,
    payload,
    request_of,
    sized,
    stream_packet,
)
from iosim.requests import FOREIGN, last_milestone, mark
from iosim.window import SENDER, complete, drop, new_request
from iosim.workload.path import Milestones
from iosim.workload.spec import RR, RX, Workload

OPEN_SENDERS: Final = 64
"""Threads of the client in an open loop (as many for each flow): so many requests can be in its sending half."""
BACKLOG: Final = 1 << 16
"""Requests of an open loop that can wait in the client (more are refused at the sender: an overloaded run ends)."""


class Client:
    """The client, installed with its processes.

    Args:
        machine, network, milestones, workload: What it belongs to.

    Attributes:
        reply: The channel of each connection.
        credits: Packets of each flow that may still be sent in a closed loop, in ``rx``; of a stream that it sends,
            send calls that its window has room for.
        received: Which flows are such streams, the background's last.
        call: Bytes of each send call of them.
        shared: A stream and requests share the wire.
        credit: The channel of each flow's sender.
        wire: Who sends a frame has it.
        streams: Packets of TCP streams come in, and are acknowledged.
        arriving, arriving_at: The ends of send calls on their way to it in ``tx`` and ``rx``, with arrival times.
        arrival: The channel notified when there is one.
    """

    __slots__ = (
        "arrival", "arriving", "arriving_at", "call", "credit", "credits", "kind", "lost", "machine", "milestones",
        "network", "open_loop", "pending", "received", "reply", "send", "sending", "shared", "streams", "wire", "work",
    )  # fmt: skip

    def __init__(self, machine: Machine, network: Network, milestones: Milestones, workload: Workload) -> None:
        system = machine.system
        self.machine = machine
        self.network = network
        self.milestones = milestones
        self.kind = workload.kind
        self.open_loop = workload.open_loop
        self.credits = [workload.depth] * workload.flows
        self.credit = [system.channel(instance("client credit", flow)) for flow in range(workload.flows)]
        self.received = workload.received()
        self.shared = workload.kind == RR and any(self.received)
        self.call = [workload.size] * workload.flows
        if workload.background:
            self.call.append(workload.background)
            self.credits.append(workload.background_depth)
            self.credit.append(system.channel(instance("client credit", workload.flows)))
        self.pending = Fifo(BACKLOG)
        self.send = system.channel("client wire")
        self.sending = Fifo(BACKLOG)
        self.wire = system.lock("client wire")
        self.streams = workload.streams
        self.arriving = Fifo(QDISC_LIMIT + RX_RING)
        self.arriving_at = Fifo(QDISC_LIMIT + RX_RING)
        self.arrival = system.channel("client stream")
        self.reply: list[int] = []
        self.lost: list[bool] = []
        self.work: list[Fifo] = []
        if workload.between_guests or workload.with_host:
            # Nobody is outside. Nor does anybody wait for a packet that was lost, but in rr (`Timeouts`). On the host
            # there are processes of its own (`iosim.workload.host_peer`), which use what is here.
            return
        if workload.kind == RR:
            count = (OPEN_SENDERS // workload.flows if workload.open_loop else workload.depth) * workload.flows
            self.reply = [system.channel(f"connection {i}") for i in range(count)]
            self.lost = [False] * count
            self.work = [Fifo(BACKLOG // count) for _ in range(count)] if workload.open_loop else []
            for i in range(count):
                if workload.open_loop:
                    system.process(f"sender {i}", open_sender(self, i))
                else:
                    system.process(f"connection {i}", connection(self, i))
            if workload.open_loop:
                system.process("arrivals", rr_arrivals(self))
            system.process("client wire", client_wire(self))
            system.process("client NIC", client_nic(self))
            if self.shared:
                system.process("stream sender", stream_sender(self, workload.flows))
        elif workload.kind == RX:
            if workload.stream:
                for flow in range(workload.flows):
                    system.process(instance("stream sender", flow), stream_sender(self, flow))
                system.process("client NIC", ack_sink(self))
            elif workload.open_loop:
                system.process("arrivals", rx_arrivals(self))
                system.process("packet sender", rx_open_sender(self))
            else:
                for flow in range(workload.flows):
                    system.process(instance("packet sender", flow), rx_sender(self, flow))
        else:
            system.process("client NIC", packet_sink(self))
            if workload.streams:
                system.process("client wire", client_wire(self))
                system.process("client stream", stream_sink(self))
        system.process("lost requests", lost_requests(self))


def connection(c: Client, i: int) -> Generator[Effect, None, None]:
    """One connection of the closed loop: send, wait for the reply, receive it."""
    m = c.machine
    clock = m.clock
    while not m.window.draining:
        row = yield from new_request(m.window, clock.now)
        remember(m.flows, row, i)
        yield spend(CLIENT_SEND)
        mark(m.table, row, c.milestones.client_sent, clock.now)
        put(c.sending, row)
        yield notify(c.send)
        yield wait(c.reply[i])
        if c.lost[i]:
            c.lost[i] = False
        else:
            yield spend(CLIENT_RECEIVE)
            yield from complete(m.window, row, clock.now)
        yield spend(PEER_DELAY)


def rr_arrivals(c: Client) -> Generator[Effect, None, None]:
    """The open loop: requests arrive, each is given to the next of the client's threads."""
    m = c.machine
    while not m.window.draining:
        yield spend(INTERARRIVAL)
        if not m.window.draining:
            row = yield from new_request(m.window, m.clock.now)
            i = (m.table.created - 1) % len(c.reply)
            remember(m.flows, row, i)
            if put(c.work[i], row):
                yield notify(c.reply[i])
            else:
                yield from drop(m.window, row, SENDER)


def open_sender(c: Client, i: int) -> Generator[Effect, None, None]:
    """A thread of the client in the open loop: sends requests and receives replies, one at a time."""
    m = c.machine
    clock = m.clock
    while True:
        while c.work[i].count == 0:
            yield wait(c.reply[i])
        row = take_first(c.work[i])
        if last_milestone(m.table, row) >= c.milestones.client_arrived:
            yield spend(CLIENT_RECEIVE)
            yield from complete(m.window, row, clock.now)
        else:
            yield spend(CLIENT_SEND)
            mark(m.table, row, c.milestones.client_sent, clock.now)
            put(c.sending, row)
            yield notify(c.send)


def client_wire(c: Client) -> Generator[Effect, None, None]:
    """The client's NIC: frames enter the wire one after the other."""
    net = c.network
    while True:
        while c.sending.count == 0:
            yield wait(c.send)
        row = take_first(c.sending)
        size = net.wire_bytes
        if row >= FOREIGN:
            size = TCP_HEADERS + WIRE_OVERHEAD
        if c.shared:
            yield take(c.wire)
        yield from put_on_wire(c, row, size)
        if c.shared:
            yield give(c.wire)


def client_nic(c: Client) -> Generator[Effect, None, None]:
    """Replies arrive at the client, each for its connection."""
    net = c.network
    m = c.machine
    while True:
        while net.to_client.count == 0:
            yield wait(net.client)
        row = take_first(net.to_client)
        yield sleep_until(take_first(net.to_client_at))
        if row >= FOREIGN:
            if payload(row) == 0:
                yield from open_window(c, row)
            elif ends_call(row):
                yield from acknowledge(c, row)
        else:
            mark(m.table, row, c.milestones.client_arrived, m.clock.now)
            i = m.flows.connection[row & m.table.mask]
            if c.open_loop:
                put(c.work[i], row)
            yield notify(c.reply[i])


def packet_sink(c: Client) -> Generator[Effect, None, None]:
    """The other end of tx: a packet is complete with its last bit on the wire, at which the host's NIC tells."""
    net = c.network
    while True:
        while net.to_client.count == 0:
            yield wait(net.client)
        row = take_first(net.to_client)
        arrives = take_first(net.to_client_at)
        if ends_call(row):
            put(c.arriving, row)
            put(c.arriving_at, arrives)
            yield notify(c.arrival)
        if of_stream(row):
            row = request_of(row)
        if row >= 0:
            yield from complete(c.machine.window, row, c.machine.clock.now)


def stream_sink(c: Client) -> Generator[Effect, None, None]:
    """The receiver of a stream: acknowledges each send call whose last bit has arrived.

    A receiver with GRO acknowledges once for what it gets together; the stack below its socket takes it no time.
    """
    while True:
        while c.arriving.count == 0:
            yield wait(c.arrival)
        row = take_first(c.arriving)
        yield sleep_until(take_first(c.arriving_at))
        yield from acknowledge(c, row)


def acknowledge(c: Client, row: int) -> Generator[Effect, None, None]:
    """Send an acknowledgement for the send call that the packet ends."""
    put(c.sending, stream_packet(flow_of(c.machine.flows, row)) | LAST)
    yield notify(c.send)


def rx_arrivals(c: Client) -> Generator[Effect, None, None]:
    """The open loop of rx: packets to be sent at a rate."""
    m = c.machine
    while not m.window.draining:
        yield spend(INTERARRIVAL)
        if not m.window.draining:
            row = yield from new_request(m.window, m.clock.now)
            if m.flows.count > 1:
                remember(m.flows, row, (m.table.created - 1) % m.flows.count)
            if put(c.pending, row):
                yield notify(c.send)
            else:
                yield from drop(m.window, row, SENDER)


def rx_open_sender(c: Client) -> Generator[Effect, None, None]:
    """The sender of rx in an open loop: a packet was created when it was due."""
    while True:
        while c.pending.count == 0:
            yield wait(c.send)
        yield from send_frame(c, take_first(c.pending))


def rx_sender(c: Client, flow: int) -> Generator[Effect, None, None]:
    """The sender of a flow of rx in the closed loop: a packet is created with its first bit on the wire."""
    m = c.machine
    while True:
        yield spend(PEER_DELAY)
        while c.credits[flow] == 0 or m.window.draining:
            yield wait(c.credit[flow])
        yield take(c.wire)
        if not m.window.draining:
            c.credits[flow] -= 1
            row = yield from new_request(m.window, m.clock.now)
            if m.flows.count > 1:
                remember(m.flows, row, flow)
            yield from send_frame(c, row)
        yield give(c.wire)


def stream_sender(c: Client, flow: int) -> Generator[Effect, None, None]:
    """The sender of a stream: a send call as soon as the window has room. Its request begins with its first bit."""
    m = c.machine
    request = flow < m.flows.count
    while True:
        if request:
            yield spend(PEER_DELAY)
        while c.credits[flow] == 0 or (request and m.window.draining):
            yield wait(c.credit[flow])
        yield take(c.wire)
        if not (request and m.window.draining):
            c.credits[flow] -= 1
            packet = stream_packet(flow) | LAST
            if request:
                packet = yield from new_request(m.window, m.clock.now)
                if m.flows.count > 1:
                    remember(m.flows, packet, flow)
            yield from send_segments(c, flow, packet)
        yield give(c.wire)


def send_segments(c: Client, flow: int, packet: int) -> Generator[Effect, None, None]:
    """Put a send call on the wire, segment by segment; whoever else waits to send comes between two of them."""
    left = c.call[flow]
    while left > 0:
        size = MSS
        if left < MSS:
            size = left
        left -= size
        segment = sized(packet, size)
        if left > 0:
            segment = sized(stream_packet(flow), size)
        yield from put_on_wire(c, segment, bytes_on_wire(size))
        if left > 0:
            yield give(c.wire)
            yield take(c.wire)


def ack_sink(c: Client) -> Generator[Effect, None, None]:
    """Acknowledgements arrive at the sender of streams."""
    net = c.network
    while True:
        while net.to_client.count == 0:
            yield wait(net.client)
        row = take_first(net.to_client)
        yield sleep_until(take_first(net.to_client_at))
        yield from open_window(c, row)


def open_window(c: Client, ack: int) -> Generator[Effect, None, None]:
    """An acknowledgement: the sender of its stream may go on."""
    flow = flow_number(ack)
    calls = calls_acknowledged(ack)
    if calls > 0:
        c.credits[flow] += calls
        yield notify(c.credit[flow])


def send_frame(c: Client, row: int) -> Generator[Effect, None, None]:
    """Put a frame on the wire to the host, bit by bit."""
    yield from put_on_wire(c, row, c.network.wire_bytes)


def put_on_wire(c: Client, row: int, size: int) -> Generator[Effect, None, None]:
    """A frame of so many bytes, preamble and gap included, leaves for the host bit by bit."""
    net = c.network
    m = c.machine
    began = m.clock.now
    yield spend(WIRE, size)
    m.counters.n[count.WIRE_IN] += m.clock.now - began
    put(net.from_client, row)
    put(net.from_client_at, m.clock.now + net.propagation)
    yield notify(net.wire_in)


def lost_requests(c: Client) -> Generator[Effect, None, None]:
    """Give the places of dropped requests back to the closed loop."""
    window = c.machine.window
    flows = c.machine.flows
    while True:
        while window.lost.count == 0:
            yield wait(window.losses)
        row = take_first(window.lost)
        if c.streams and c.received[flow_of(flows, row)] and (row >= FOREIGN or payload(row) > 0):
            yield from lost_of_received(c, row)
        elif c.streams and ends_call(row):
            # A segment or an acknowledgement: as if it had been sent again, and arrived.
            yield from acknowledge(c, row)
        elif c.kind == RR and not c.open_loop and row < FOREIGN:
            i = flows.connection[row & window.table.mask]
            c.lost[i] = True
            yield notify(c.reply[i])
        elif c.kind == RX:
            yield from return_credit(c, flow_of(flows, row))


def return_credit(c: Client, flow: int) -> Generator[Effect, None, None]:
    """A packet of rx reached its application, or was lost: the closed loop may send another of its flow."""
    c.credits[flow] += 1
    yield notify(c.credit[flow])


def lost_of_received(c: Client, row: int) -> Generator[Effect, None, None]:
    """A packet of a stream that the guest receives was lost: as if it had arrived, and been acknowledged."""
    if payload(row) == 0:
        yield from open_window(c, row)
    elif ends_call(row):
        yield from return_credit(c, flow_of(c.machine.flows, row))
