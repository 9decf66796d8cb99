"""Packets that are more than a request's one frame: what a GSO packet is, and what a packet's number tells of it.

Of most packets nothing need be told but the request they belong to: their number is its row. A packet of a TCP stream
has a payload of its own size, and mostly carries no request. That stands in the number's upper bits, which the request
table takes no notice of (`iosim.requests`): a GSO packet goes through rings and queues as any other does.

The stream is TCP as far as its packets show: headers, segments, acknowledgements, a window of constant size.
"""

from __future__ import annotations

from typing import Final

from iosim.host.frames import MSS, TCP_HEADERS, WIRE_OVERHEAD
from iosim.requests import ALL, FOREIGN, ROW_BITS

GSO_MAX_SEGS: Final = 45
"""Full segments in a GSO packet: what 65536 bytes hold, headers included (Linux GSO_LEGACY_MAX_SIZE)."""

SIZE_BITS: Final = 16
FLOW_SHIFT: Final = ROW_BITS + SIZE_BITS
FLOW_MASK: Final = 127
SIZE_MASK: Final = (1 << SIZE_BITS) - 1
LAST: Final = 1 << 59
"""The packet ends a send call of the stream; of an acknowledgement: it opens the window by a send call."""
TWICE: Final = 1 << 61
"""Of an acknowledgement with ``LAST``: it opens the window by two."""


def stream_packet(flow: int) -> int:
    """Return the number of a packet of a flow's stream that belongs to no request; its size is 0."""
    return FOREIGN | flow << FLOW_SHIFT


def sized(packet: int, size: int) -> int:
    """Return the number of the packet with so many payload bytes."""
    return (packet & ~(SIZE_MASK << ROW_BITS)) | size << ROW_BITS


def payload(packet: int) -> int:
    """Return the payload bytes of a packet of a stream; 0: it is a request's one frame, or an acknowledgement."""
    return (packet >> ROW_BITS) & SIZE_MASK


def of_stream(packet: int) -> bool:
    """Tell whether a packet is of a stream, or acknowledges one: its size is its own."""
    return packet >= FOREIGN or payload(packet) > 0


def request_of(packet: int) -> int:
    """Return the row of the request that a packet of a stream belongs to, or -1."""
    row = -1
    if packet < FOREIGN:
        row = packet & ALL
    return row


def flow_number(packet: int) -> int:
    """Return the flow of a packet that belongs to no request."""
    return (packet >> FLOW_SHIFT) & FLOW_MASK


def segments(size: int) -> int:
    """Return how many frames on the wire a packet of so many payload bytes is.

    Example:
        >>> segments(1448), segments(1449), segments(45 * 1448)
        (1, 2, 45)
    """
    return (size + MSS - 1) // MSS


def qdisc_pkt_len(size: int) -> int:
    """Return the bytes of all its frames, the headers of each included (Linux qdisc_pkt_len_init)."""
    return size + segments(size) * TCP_HEADERS


def bytes_on_wire(size: int) -> int:
    """Return the bytes that all its frames take on the wire."""
    return size + segments(size) * (TCP_HEADERS + WIRE_OVERHEAD)


def ends_call(packet: int) -> bool:
    """Tell whether a packet is the last of a send call of a stream, or acknowledges one: the window opens by it."""
    if packet >= FOREIGN:
        return packet & LAST > 0
    return payload(packet) > 0


def acknowledgement(flow: int, calls: int) -> int:
    """Return the number of an acknowledgement in a flow's stream, for the ends of so many send calls (0 to 2).

    Example:
        >>> [calls_acknowledged(acknowledgement(3, calls)) for calls in (0, 1, 2)]
        [0, 1, 2]
    """
    packet = stream_packet(flow)
    if calls > 0:
        packet |= LAST
    if calls > 1:
        packet |= TWICE
    return packet


def calls_acknowledged(packet: int) -> int:
    """Return by how many send calls an acknowledgement opens the window."""
    calls = 0
    if packet & LAST:
        calls = 1
    if packet & TWICE:
        calls = 2
    return calls
