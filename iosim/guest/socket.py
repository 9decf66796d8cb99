"""The guest's socket layer: a UDP socket, its two buffers, and the system calls of the application on it.

A socket may be a TCP one that sends a stream, or receives one (`iosim.host.tcp_receiver`).
"""

from __future__ import annotations

from collections.abc import Generator
from typing import Final, Protocol

from iosim.effects import Effect, notify, spend, wait
from iosim.engine.system import instance
from iosim.fifo import Fifo, put, take_first
from iosim.host.costs import (
    COPY_COLD,
    COPY_HOT,
    GUEST_STACK_RX,
    GUEST_STACK_TX,
    GUEST_WAKEUP,
    SYS_RECVMSG,
    SYS_SENDMSG,
)
from iosim.host.kvm import Vcpu, wake_up
from iosim.host.machine import Machine
from iosim.host.packets import calls_acknowledged, ends_call, request_of
from iosim.requests import FOREIGN, mark
from iosim.window import SOCKET, drop

RECEIVE_BUFFER: Final = 277
"""Packets the receive buffer holds: Linux's rmem_default 212992 bytes over the 768 that a small packet is charged."""


class SocketMilestones(Protocol):
    """The milestones stamped here."""

    received: int
    dequeued: int
    delivered: int
    sent: int


class Socket:
    """A UDP socket of the guest.

    Args:
        machine, milestones: What it belongs to, and where to stamp.
        vcpu: The vCPU its application runs on.
        size: Payload bytes of a packet.
        send_buffer: Packets that may be under way at a time (they count until the driver frees them).
        number: Its flow.
        stream: A TCP socket that sends a stream: ``send_buffer`` counts send calls until they are acknowledged.
        received: A TCP socket that receives one. The receive buffer has room for as many send calls (of ``size`` bytes)
            as ``send_buffer``, the peer's window; the application is woken when a whole one is there (SO_RCVLOWAT).

    Attributes:
        queue: Received packets: rows.
        readable: The application sleeps here for a packet.
        credits: Packets the send buffer still has room for.
        writable: The application sleeps here for room.
        tx_wake: It sleeps here while the driver's transmit queue is stopped.
        window: Send calls that the receive buffer has room for.
        unacked: Bytes received since the last acknowledgement (rcv_nxt - rcv_wup).
        calls, read, acked: Send calls that have come in full, that the application has read, that are acknowledged.
    """

    __slots__ = (
        "acked", "calls", "credits", "machine", "milestones", "number", "queue", "read", "readable", "received",
        "size", "stream", "tx_wake", "unacked", "vcpu", "window", "writable",
    )  # fmt: skip

    def __init__(
        self,
        machine: Machine,
        milestones: SocketMilestones,
        vcpu: Vcpu,
        size: int,
        send_buffer: int,
        number: int = 0,
        stream: bool = False,
        received: bool = False,
    ) -> None:
        self.machine = machine
        self.milestones = milestones
        self.vcpu = vcpu
        self.size = size
        self.number = number
        self.stream = stream
        self.received = received
        self.window = send_buffer
        self.unacked = 0
        self.calls = 0
        self.read = 0
        self.acked = 0
        # Of a stream: what is read, and what the peer may have sent besides before it hears of that.
        self.queue = Fifo(2 * send_buffer if received else RECEIVE_BUFFER)
        self.readable = machine.system.channel(instance("socket readable", number))
        self.credits = send_buffer
        self.writable = machine.system.channel(instance("socket writable", number))
        self.tx_wake = machine.system.channel(instance("guest tx queue open", number))


def deliver(s: Socket, row: int, vcpu: Vcpu) -> Generator[Effect, None, None]:
    """Carry a received packet up the stack into the socket and wake the application (softirq on ``vcpu``)."""
    yield spend(GUEST_STACK_RX)
    if row >= FOREIGN:
        # An acknowledgement (tcp_ack): no data, but the window may be open again.
        calls = calls_acknowledged(row)
        if calls > 0:
            s.credits += calls
            yield notify(s.writable)
            yield from wake_up(vcpu, s.vcpu)
    elif put(s.queue, row):
        mark(s.machine.table, row, s.milestones.received, s.machine.clock.now)
        yield notify(s.readable)
        yield from wake_up(vcpu, s.vcpu)
    else:
        yield from drop(s.machine.window, row, SOCKET)


def recvmsg(s: Socket) -> Generator[Effect, None, int]:
    """The application receives a packet, sleeping until there is one; return its row."""
    while s.queue.count == 0:
        yield wait(s.readable)
        yield spend(GUEST_WAKEUP)
    row = take_first(s.queue)
    mark(s.machine.table, row, s.milestones.dequeued, s.machine.clock.now)
    yield spend(SYS_RECVMSG)
    if s.received:
        yield spend(COPY_COLD, s.size)
        s.read += 1
    else:
        yield spend(COPY_HOT, s.size)
    mark(s.machine.table, row, s.milestones.delivered, s.machine.clock.now)
    return row


def sendmsg(s: Socket, row: int) -> Generator[Effect, None, None]:
    """The application sends a packet: system call, copy, stack, down to the driver's start_xmit."""
    yield spend(SYS_SENDMSG)
    yield spend(COPY_HOT, s.size)
    yield spend(GUEST_STACK_TX)
    mark(s.machine.table, row, s.milestones.sent, s.machine.clock.now)


def sock_wfree(s: Socket) -> Generator[Effect, None, None]:
    """The driver has freed a sent packet: its room in the send buffer is there again; a stream's is when it arrived."""
    if not s.stream:
        s.credits += 1
        yield notify(s.writable)


# -- receiving a stream -----------------------------------------------------------------------------------------


def tcp_data_ready(s: Socket, packet: int, vcpu: Vcpu) -> Generator[Effect, None, None]:
    """Wake the application if a send call is there in full (softirq on ``vcpu``)."""
    if ends_call(packet):
        row = packet
        if packet < FOREIGN:
            row = request_of(packet)
        put(s.queue, row)
        mark(s.machine.table, row, s.milestones.received, s.machine.clock.now)
        yield notify(s.readable)
        yield from wake_up(vcpu, s.vcpu)
