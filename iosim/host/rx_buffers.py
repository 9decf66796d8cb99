"""The receive buffers of one packet, from the ring: several where they are mergeable and it is larger than one.

Source: Linux ``get_rx_bufs`` (drivers/vhost/net.c), QEMU ``virtio_net_receive_rcu``; virtio 1.2, 5.1.6.4.
"""

from __future__ import annotations

from typing import Final

from iosim.ring.device_queue import DeviceQueue
from iosim.ring.errors import raise_for
from iosim.ring.queue import empty, fill, pop, unpop
from iosim.virtio.net import NET_HDR_LEN, packet_at

ANY_BUFFER: Final = 1518
"""Bytes that every buffer has room for: one frame (Linux GOOD_PACKET_LEN)."""
NUM_BUFFERS: Final = 10
"""Where ``num_buffers`` stands in the header (struct virtio_net_hdr_v1)."""


class RxBuffers:
    """What was taken from the ring for one packet.

    Args:
        mergeable: VIRTIO_NET_F_MRG_RXBUF was negotiated: a packet may take several buffers; else it takes one chain.

    Attributes:
        heads, lens: The chains, and the packet's bytes in each.
        header, at: Where header and packet begin.
        end: Of a look that found too few: the place behind the last buffer there is.
    """

    __slots__ = ("at", "end", "header", "heads", "lens", "mergeable")

    def __init__(self, mergeable: bool) -> None:
        self.mergeable = mergeable
        self.heads: list[int] = []
        self.lens: list[int] = []
        self.header = 0
        self.at = 0
        self.end = 0


def get_rx_bufs(b: RxBuffers, q: DeviceQueue, size: int) -> int:
    """Take the buffers for a packet of ``size`` bytes; return how many, or 0, with none taken, if they are too few."""
    b.heads.clear()
    b.lens.clear()
    notification = q.notification
    # Looking must not move the event index: vhost and QEMU have notification off here, or arm it themselves.
    q.notification = False
    left = size
    more = True
    while more:
        head = raise_for(pop(q))
        if head < 0:
            more = False
            b.end = q.last_avail_idx
        else:
            room = 0
            i = 0
            while i < q.elem_in_num:
                room += q.elem_len[i]
                i += 1
            if len(b.heads) == 0:
                b.header = q.elem_addr[0]
                b.at = packet_at(q)
                room -= NET_HDR_LEN
            if room > left or not b.mergeable:
                room = left
            b.heads.append(head)
            b.lens.append(room)
            left -= room
            more = left > 0
    if left > 0:
        put_back(b, q)
    q.notification = notification
    return len(b.heads)


def put_back(b: RxBuffers, q: DeviceQueue) -> None:
    """Put the buffers back into the ring (vhost_discard_vq_desc)."""
    while len(b.heads) > 0:
        unpop(q, b.heads.pop())


def enough(b: RxBuffers, q: DeviceQueue, size: int) -> bool:
    """Tell whether there are buffers for a packet; none is taken (QEMU virtqueue_avail_bytes)."""
    if size <= ANY_BUFFER or not b.mergeable:
        return not empty(q)
    found = get_rx_bufs(b, q, size)
    put_back(b, q)
    return found > 0


def write_packet(b: RxBuffers, q: DeviceQueue, packet: int, done: int) -> None:
    """Write a packet, and its buffers' used entries, from place ``done`` of the batch on; nothing is published yet."""
    q.mem.u64[b.at >> 3] = packet
    if b.mergeable:
        q.mem.u16[(b.header + NUM_BUFFERS) >> 1] = len(b.heads)
    i = 0
    while i < len(b.heads):
        fill(q, b.heads[i], b.lens[i], done + i)
        i += 1
