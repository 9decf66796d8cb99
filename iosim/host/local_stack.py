"""The host's own sockets on the bridge's device: where the other end of a flow is a process on the host.

What a guest's tap is given goes up to them on the thread that writes (br_pass_frame_up, netif_receive_skb); GRO has no
part in it. The kernel is the guests', and so are its costs.
"""

from __future__ import annotations

from collections.abc import Generator
from typing import Protocol

from iosim.effects import Effect, notify, spend, wait
from iosim.engine.system import instance
from iosim.fifo import EMPTY, Fifo, put, take_first
from iosim.host import counters as count
from iosim.host.costs import (
    COPY_COLD,
    COPY_HOT,
    GUEST_STACK_RX,
    GUEST_STACK_TX,
    SYS_RECVMSG,
    SYS_SENDMSG,
    THREAD_WAKEUP,
)
from iosim.host.machine import Machine
from iosim.host.packets import calls_acknowledged, ends_call, payload, request_of
from iosim.host.tcp_receiver import tcp_ack, tcp_cleanup_rbuf, tcp_queue_rcv
from iosim.requests import FOREIGN, mark
from iosim.window import SOCKET, drop

RECEIVE_BUFFER = 277
"""Packets the receive buffer holds: Linux's rmem_default 212992 bytes over the 768 that a small packet is charged."""


class LocalMilestones(Protocol):
    """The milestones stamped here."""

    client_sent: int
    client_arrived: int
    client_woken: int


class LocalSocket:
    """A socket of the host: UDP, or TCP that sends a stream or receives one.

    Args:
        machine, milestones: What it belongs to, and where to stamp.
        number: Its flow.
        size: Payload bytes of a packet, or of a send call.
        depth: Send calls of a stream that may be unacknowledged.
        stream: It sends a stream, or receives one.
        received: The latter.

    Attributes:
        queue: Received packets, or the ends of send calls: rows.
        readable: Its process sleeps here for a packet.
        credits, writable: Send calls that the window has room for, and where its process sleeps for one.
        window, unacked, calls, read, acked: See `TcpReceiver`.
    """

    __slots__ = (
        "acked", "calls", "credits", "machine", "milestones", "number", "queue", "read", "readable", "received",
        "size", "stream", "unacked", "window", "writable",
    )  # fmt: skip

    def __init__(
        self,
        machine: Machine,
        milestones: LocalMilestones,
        number: int,
        size: int,
        depth: int,
        *,
        stream: bool,
        received: bool,
    ) -> None:
        self.machine = machine
        self.milestones = milestones
        self.number = number
        self.size = size
        self.stream = stream
        self.received = received
        self.queue = Fifo(2 * depth if received else RECEIVE_BUFFER)
        self.readable = machine.system.channel(instance("host socket readable", number))
        self.credits = depth
        self.writable = machine.system.channel(instance("host socket writable", number))
        self.window = depth
        self.unacked = 0
        self.calls = 0
        self.read = 0
        self.acked = 0


def local_rcv(s: LocalSocket, packet: int) -> Generator[Effect, None, int]:
    """Carry a packet up the host's stack, on the thread that wrote it to the tap.

    Return the acknowledgement that is to be sent, or ``EMPTY``.
    """
    ack = EMPTY
    yield spend(GUEST_STACK_RX)
    if payload(packet) > 0:
        s.machine.counters.n[count.STREAM_SKBS] += 1
        if tcp_queue_rcv(s, packet):
            ack = yield from local_ack(s)
    return ack


def local_ack(s: LocalSocket) -> Generator[Effect, None, int]:
    """Make the acknowledgement that is due; return it."""
    yield spend(GUEST_STACK_TX)
    s.machine.counters.n[count.STREAM_ACKS] += 1
    return tcp_ack(s)


def local_data_ready(s: LocalSocket, packet: int) -> Generator[Effect, None, None]:
    """The packet is in its socket: wake the process, if there is something for it."""
    m = s.machine
    if payload(packet) > 0:
        if ends_call(packet):
            row = packet
            if packet < FOREIGN:
                row = request_of(packet)
            put(s.queue, row)
            mark(m.table, row, s.milestones.client_arrived, m.clock.now)
            yield notify(s.readable)
    elif packet >= FOREIGN:
        calls = calls_acknowledged(packet)
        if calls > 0:
            s.credits += calls
            yield notify(s.writable)
    elif put(s.queue, packet):
        mark(m.table, packet, s.milestones.client_arrived, m.clock.now)
        yield notify(s.readable)
    else:
        yield from drop(m.window, packet, SOCKET)


def local_recvmsg(s: LocalSocket) -> Generator[Effect, None, int]:
    """A process receives a packet or a send call, sleeping until there is one; return its row."""
    while s.queue.count == 0:
        yield wait(s.readable, THREAD_WAKEUP)
    row = take_first(s.queue)
    mark(s.machine.table, row, s.milestones.client_woken, s.machine.clock.now)
    yield spend(SYS_RECVMSG)
    if s.received:
        yield spend(COPY_COLD, s.size)
        s.read += 1
    else:
        yield spend(COPY_HOT, s.size)
    return row


def local_cleanup_rbuf(s: LocalSocket) -> Generator[Effect, None, int]:
    """A process has read a send call; return the acknowledgement that is due for that, or ``EMPTY``."""
    ack = EMPTY
    if tcp_cleanup_rbuf(s):
        ack = yield from local_ack(s)
    return ack


def local_sendmsg(s: LocalSocket, row: int) -> Generator[Effect, None, None]:
    """A process sends a packet: system call, copy, stack, down to the bridge's device."""
    yield spend(SYS_SENDMSG)
    yield spend(COPY_HOT, s.size)
    yield spend(GUEST_STACK_TX)
    mark(s.machine.table, row, s.milestones.client_sent, s.machine.clock.now)
