"""TCP's receiving half: what of a stream is acknowledged, and when (Linux net/ipv4/tcp_input.c)."""

from __future__ import annotations

from typing import Protocol

from iosim.fifo import Fifo
from iosim.host.frames import MSS
from iosim.host.packets import acknowledgement, ends_call, payload


class TcpReceiver(Protocol):
    """A socket that receives a stream.

    Attributes:
        number: Its flow.
        queue: Send calls that have come in full and are not read.
        window: Send calls that the receive buffer has room for.
        unacked: Bytes received since the last acknowledgement (rcv_nxt - rcv_wup).
        calls, read, acked: Send calls that have come in full, that the application has read, that are acknowledged.
    """

    number: int
    queue: Fifo
    window: int
    unacked: int
    calls: int
    read: int
    acked: int


def tcp_queue_rcv(s: TcpReceiver, packet: int) -> bool:
    """Data of a stream has come, in order, as always here; return whether it is acknowledged at once.

    It is where more than one full segment is unacknowledged (__tcp_ack_snd_check): for every GSO packet of two segments
    or more, and for every second segment that comes by itself.
    """
    s.unacked += payload(packet)
    if ends_call(packet):
        s.calls += 1
    return s.unacked > MSS


def tcp_select_window(s: TcpReceiver) -> int:
    """Return how many send calls may be acknowledged in all: what has come, as far as the receive buffer has room."""
    calls = s.calls
    if calls > s.read + s.window:
        calls = s.read + s.window
    return calls


def tcp_cleanup_rbuf(s: TcpReceiver) -> bool:
    """The application has read; return whether that is acknowledged.

    It is where all is read and something is unacknowledged, the end of a send call that came by itself; and where the
    window was shut for want of room.
    """
    shut = s.calls >= s.read + s.window
    return (s.unacked > 0 and s.queue.count == 0) or (shut and tcp_select_window(s) > s.acked)


def tcp_ack(s: TcpReceiver) -> int:
    """Return the number of the acknowledgement that is due."""
    calls = tcp_select_window(s) - s.acked
    if calls > 2:
        calls = 2
    s.acked += calls
    s.unacked = 0
    return acknowledgement(s.number, calls)
