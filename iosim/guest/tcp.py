"""TCP's sending side in the guest: a send call of a stream is cut into the packets that a NIC's driver is given.

One source for every driver. A driver calls `tcp_write_xmit` until a send call is through, and hands what it gets to
its own start_xmit.
"""

from __future__ import annotations

from collections.abc import Generator
from typing import Final, Protocol

from iosim.effects import Effect, spend
from iosim.host.costs import GSO_SEGMENT, GUEST_CHECKSUM, GUEST_STACK_TX
from iosim.host.frames import MSS, TCP_HEADERS
from iosim.host.packets import GSO_MAX_SEGS, sized, stream_packet

SKB_FRAG: Final = 32768
"""Bytes of a stream's data that lie together (Linux SKB_FRAG_PAGE_ORDER: 8 pages): a fragment of the packet."""


class Offloads:
    """What the guest leaves to its NIC, as TCP and the stack above the driver see it (netdev_fix_features).

    Args:
        csum: The device completes checksums.
        tso: It takes GSO packets; that needs checksums.
        gso: Where it does not, packets are segmented on their way to the driver (skb_gso_segment); else TCP makes
            segments to begin with.
        guest_csum: Checksums of received packets are verified, or need not be (VIRTIO_NET_F_GUEST_CSUM).
        guest_tso4: GSO packets may come (VIRTIO_NET_F_GUEST_TSO4); that needs checksums.
        gro: The guest merges segments that come singly.

    Attributes:
        gso_size: Payload bytes of the largest packet that the driver is given.
    """

    __slots__ = ("csum", "gro", "gso", "gso_size", "guest_csum", "guest_tso4", "tso")

    def __init__(
        self,
        *,
        csum: bool,
        tso: bool,
        gso: bool,
        guest_csum: bool = True,
        guest_tso4: bool = False,
        gro: bool = False,
    ) -> None:
        self.csum = csum
        self.tso = csum and tso
        self.gso = gso and not self.tso
        self.guest_csum = guest_csum
        self.guest_tso4 = guest_csum and guest_tso4
        self.gro = gro
        self.gso_size = GSO_MAX_SEGS * MSS if self.tso else MSS


class TcpSender(Protocol):
    """A socket that sends a stream: its flow's number, and bytes of a send call."""

    number: int
    size: int


def tcp_write_xmit(o: Offloads, s: TcpSender, row: int, left: int) -> Generator[Effect, None, int]:
    """Cut the next packet from a send call of a stream; return it. The last stands for the request.

    With TSO these are GSO packets. With GSO alone the stack below TCP saw such packets too, and they are segmented
    just above the driver (validate_xmit_skb). With neither, each segment has gone through the stack by itself.

    Args:
        o: What the NIC takes.
        s: The stream's socket.
        row: The request, or whatever the send call is known by.
        left: Bytes of the send call that are still to be cut.
    """
    size = o.gso_size
    if size > left:
        size = left
    if left < s.size and not o.tso and not o.gso:
        yield spend(GUEST_STACK_TX)
    packet = sized(stream_packet(s.number), size)
    if left == size:
        packet = sized(row, size)
    if o.gso and s.size > MSS:
        yield spend(GSO_SEGMENT)
    if not o.csum:
        yield spend(GUEST_CHECKSUM, size + TCP_HEADERS)
    return packet


def no_offloads(gro: bool = False) -> Offloads:
    """Return what a plain NIC takes: single frames with checksums.

    TCP makes GSO packets whatever the NIC (sk_route_forced_caps, since Linux 4.17), and the stack above the driver
    segments them: each segment is copied together and summed, as a NIC without scatter-gather needs it. Checksums of
    what is received the guest verifies; ``gro``: its driver merges.
    """
    return Offloads(csum=False, tso=False, gso=True, guest_csum=False, gro=gro)
