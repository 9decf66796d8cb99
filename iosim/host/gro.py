"""Generic receive offload: segments of one stream that follow each other become one GSO packet (Linux net/core/gro.c).

A NAPI instance holds a packet for each flow of which segments have come in this poll. A segment that carries on where
it ends is appended. The packet goes up the stack when it is full, when a segment has PSH (the end of a send call), when
another flow needs its place, and at the end of the poll.

Example:
    >>> from iosim.host.frames import MSS
    >>> from iosim.host.packets import payload, sized, stream_packet
    >>> from iosim.fifo import take_first
    >>> g = Gro(1)
    >>> for _ in range(46):
    ...     gro_receive(g, sized(stream_packet(0), MSS), 0)
    >>> payload(take_first(g.done)) == 45 * MSS, g.done.count
    (True, 0)
    >>> gro_flush(g)
    >>> payload(take_first(g.done)) == MSS
    True
"""

from __future__ import annotations

from typing import Final

from iosim.fifo import Fifo, put
from iosim.host.flows import flow_hash
from iosim.host.frames import MSS, TCP_HEADERS
from iosim.host.packets import ends_call, payload, sized

GRO_MAX_SIZE: Final = 65536
"""What a packet with its headers must stay below (Linux GRO_LEGACY_MAX_SIZE); more than 17 fragments go to a list."""
IP_HEADERS: Final = TCP_HEADERS - 14
"""Bytes of IPv4 and TCP headers: Ethernet's are no part of the length."""
GRO_HASH_BUCKETS: Final = 8
MAX_GRO_SKBS: Final = 8
"""Packets held in each bucket; for one more the oldest goes up."""
NAPI_POLL_WEIGHT: Final = 64
"""Packets of one NAPI poll. At its end all that is held goes up, though there be more (napi_gro_flush, HZ < 1000)."""
NONE: Final = 0
"""No packet is held: one that is has a payload, so that its number is not 0."""


class Gro:
    """What a NAPI instance holds back.

    Args:
        flows: Flows there are.

    Attributes:
        packet: The packet held of each flow, or ``NONE``.
        bucket: The flow's bucket, by its hash.
        held: Flows of which one is held, the oldest first.
        done: Packets that may go up the stack now.
    """

    __slots__ = ("bucket", "done", "held", "packet")

    def __init__(self, flows: int) -> None:
        self.packet = [NONE] * flows
        self.bucket = [flow_hash(flow) % GRO_HASH_BUCKETS for flow in range(flows)]
        self.held: list[int] = []
        self.done = Fifo(flows + 2)


def gro_receive(g: Gro, packet: int, flow: int) -> None:
    """Take a packet of a stream; what may go up the stack because of it is put into ``done`` (dev_gro_receive).

    One that was merged already (by the host) is not merged further (NAPI_GRO_CB(skb)->flush).
    """
    size = payload(packet)
    if g.packet[flow] != NONE:
        total = payload(g.packet[flow]) + size
        if size <= MSS and total + IP_HEADERS < GRO_MAX_SIZE:
            g.packet[flow] = sized(packet, total)
            if ends_call(packet):
                gro_complete(g, flow)
            packet = NONE
        else:
            gro_complete(g, flow)
    if packet != NONE:
        if size > MSS or ends_call(packet):
            put(g.done, packet)
        else:
            make_room(g, g.bucket[flow])
            g.packet[flow] = packet
            g.held.append(flow)


def gro_complete(g: Gro, flow: int) -> None:
    """The packet held of a flow goes up."""
    put(g.done, g.packet[flow])
    g.packet[flow] = NONE
    i = 0
    while g.held[i] != flow:
        i += 1
    while i + 1 < len(g.held):
        g.held[i] = g.held[i + 1]
        i += 1
    g.held.pop()


def make_room(g: Gro, bucket: int) -> None:
    """Where a bucket is full its oldest packet goes up (gro_flush_oldest)."""
    count = 0
    oldest = -1
    i = 0
    while i < len(g.held):
        if g.bucket[g.held[i]] == bucket:
            count += 1
            if oldest < 0:
                oldest = g.held[i]
        i += 1
    if count >= MAX_GRO_SKBS:
        gro_complete(g, oldest)


def gro_flush(g: Gro) -> None:
    """The poll is over: all that is held goes up, the oldest first (napi_gro_flush)."""
    while len(g.held) > 0:
        gro_complete(g, g.held[0])
