"""TCP's receiving half in the guest's softirq: from a driver's NAPI to the socket, and the acknowledgement back.

One source for every driver. One with GRO hands what it takes from its ring to `napi_gro_receive`, and calls
`napi_flush` at the end of its poll; one without calls `netif_receive_skb`. Each passes its own way to send an
acknowledgement, which ends in its start_xmit: from NAPI, so that it must not wait where the transmit queue is stopped.
"""

from __future__ import annotations

from collections.abc import Callable, Generator
from typing import Final, Protocol, TypeVar

from iosim.effects import SOFTIRQ, TASK, Effect, level, spend
from iosim.fifo import Fifo, put, take_first
from iosim.guest.socket import Socket, deliver, tcp_data_ready
from iosim.guest.tcp import Offloads
from iosim.host import counters as count
from iosim.host.costs import GRO_RECEIVE, GUEST_CHECKSUM, GUEST_STACK_RX, GUEST_STACK_TX
from iosim.host.flows import flow_of
from iosim.host.frames import TCP_HEADERS
from iosim.host.gro import Gro, gro_flush, gro_receive
from iosim.host.kvm import Vcpu
from iosim.host.machine import Machine
from iosim.host.packets import calls_acknowledged, flow_number, payload
from iosim.host.tcp_receiver import tcp_ack, tcp_cleanup_rbuf, tcp_queue_rcv

QDISC_LIMIT: Final = 1000
"""Packets that the queueing discipline of the guest's NIC holds (txqueuelen)."""


class Receiver(Protocol):
    """A driver: what is asked of it here. ``qdisc`` has acknowledgements that found the transmit queue stopped."""

    machine: Machine
    vcpu: Vcpu
    sockets: list[Socket]
    offloads: Offloads
    qdisc: Fifo
    stopped: bool


class GroReceiver(Receiver, Protocol):
    """One whose NAPI merges. ``gro`` is what it holds back."""

    gro: Gro


D = TypeVar("D", bound=Receiver)
G = TypeVar("G", bound=GroReceiver)
StartXmit = Callable[[D, Socket, int, bool], Generator[Effect, None, None]]
"""A driver's ndo_start_xmit (see `iosim.guest.netdev.StartXmit`)."""


# -- up the stack -----------------------------------------------------------------------------------------------


def napi_gro_receive(
    d: G, packet: int, send_ack: Callable[[G, Socket], Generator[Effect, None, None]]
) -> Generator[Effect, None, None]:
    """A packet of a stream: merged with those before it, or up the stack as it is. All others pass GRO as they are.

    Where the device has not verified the checksum, GRO does, or else TCP.
    """
    if payload(packet) > 0 and d.offloads.gro:
        yield from tcp_checksum(d, packet)
        yield spend(GRO_RECEIVE)
        gro_receive(d.gro, packet, flow_of(d.machine.flows, packet))
        yield from gro_normal_list(d, send_ack)
    else:
        yield from netif_receive_skb(d, packet, send_ack)


def napi_flush(
    d: G, send_ack: Callable[[G, Socket], Generator[Effect, None, None]]
) -> Generator[Effect, None, None]:
    """The poll is over, be there more or not: what is held goes up the stack (napi_gro_flush)."""
    if len(d.gro.held) > 0:
        gro_flush(d.gro)
        yield from gro_normal_list(d, send_ack)


def gro_normal_list(
    d: G, send_ack: Callable[[G, Socket], Generator[Effect, None, None]]
) -> Generator[Effect, None, None]:
    """Carry up what GRO has let go."""
    while d.gro.done.count > 0:
        yield from tcp_v4_rcv(d, take_first(d.gro.done), send_ack)


def netif_receive_skb(
    d: D, packet: int, send_ack: Callable[[D, Socket], Generator[Effect, None, None]]
) -> Generator[Effect, None, None]:
    """Carry a packet up the stack: a segment of a stream, a datagram, an acknowledgement."""
    if payload(packet) > 0:
        yield from tcp_checksum(d, packet)
        yield from tcp_v4_rcv(d, packet, send_ack)
    else:
        yield from deliver(d.sockets[flow_of(d.machine.flows, packet)], packet, d.vcpu)


def tcp_checksum(d: D, packet: int) -> Generator[Effect, None, None]:
    """Verify a segment's checksum, unless the device has."""
    if not d.offloads.guest_csum:
        yield spend(GUEST_CHECKSUM, payload(packet) + TCP_HEADERS)


def tcp_v4_rcv(
    d: D, packet: int, send_ack: Callable[[D, Socket], Generator[Effect, None, None]]
) -> Generator[Effect, None, None]:
    """Carry data of a stream up the stack: acknowledge them if it is time to, wake the application."""
    d.machine.counters.n[count.STREAM_SKBS] += 1
    s = d.sockets[flow_of(d.machine.flows, packet)]
    yield spend(GUEST_STACK_RX)
    if tcp_queue_rcv(s, packet):
        yield from send_ack(d, s)
    yield from tcp_data_ready(s, packet, d.vcpu)


# -- acknowledgements -------------------------------------------------------------------------------------------


def tcp_send_ack(d: D, s: Socket, start_xmit: StartXmit[D]) -> Generator[Effect, None, None]:
    """Send the acknowledgement that is due, bottom halves off, by a transmit queue that nobody else works on."""
    ack = yield from tcp_make_ack(d, s)
    yield from sch_direct_xmit(d, s, ack, start_xmit)


def tcp_make_ack(d: D, s: Socket) -> Generator[Effect, None, int]:
    """Make the acknowledgement that is due, and carry it down the stack; return it."""
    yield spend(GUEST_STACK_TX)
    if not d.offloads.csum:
        yield spend(GUEST_CHECKSUM, TCP_HEADERS)
    d.machine.counters.n[count.STREAM_ACKS] += 1
    return tcp_ack(s)


def sch_direct_xmit(d: D, s: Socket, ack: int, start_xmit: StartXmit[D]) -> Generator[Effect, None, None]:
    """Give an acknowledgement to the driver; where its queue is stopped, it waits above."""
    if not d.stopped:
        yield from start_xmit(d, s, ack, False)
    elif not put(d.qdisc, ack):
        # Dropped: a later one says what it said.
        s.acked -= calls_acknowledged(ack)


def net_tx_action(d: D, start_xmit: StartXmit[D]) -> Generator[Effect, None, None]:
    """The NET_TX softirq: the queue is open again, so what waited above goes out before anything else."""
    while d.qdisc.count > 0 and not d.stopped:
        ack = take_first(d.qdisc)
        yield from start_xmit(d, d.sockets[flow_number(ack)], ack, False)


def tcp_recvmsg(
    d: D, s: Socket, send_ack: Callable[[D, Socket], Generator[Effect, None, None]]
) -> Generator[Effect, None, None]:
    """The application has read a send call of a stream: acknowledge it, if nobody has."""
    if tcp_cleanup_rbuf(s):
        yield level(SOFTIRQ)
        yield from send_ack(d, s)
        yield level(TASK)
