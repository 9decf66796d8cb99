"""A virtio network device's formats: what stands before every packet, which queue is which, what goes over the
control queue, the configuration space (virtio 1.2, 5.1). The device itself is `iosim.virtio.net_device`.

Example:
    >>> header = NetHdr(num_buffers=1)
    >>> header.pack().hex()
    '000000000000000000000100'
    >>> NetHdr.unpack(header.pack()) == header
    True
    >>> transmitq(0), receiveq(1), controlq(pairs=2)
    (1, 2, 4)
"""

from __future__ import annotations

import struct
from collections.abc import Sequence
from typing import Final, NamedTuple

from iosim.ring.device_queue import DeviceQueue
from iosim.virtio.errors import FormatError

#: Bytes of `struct virtio_net_hdr_v1`, which a device that follows virtio 1.0 or later always has (5.1.6).
NET_HDR_LEN: Final = 12
#: Bytes of the header of a legacy device without MRG_RXBUF, which lacks `num_buffers` (5.1.6.1).
NET_HDR_LEN_LEGACY: Final = 10
#: The header's bytes, filled up to a multiple of 8: where a packet that follows it in the same buffer begins.
NET_HDR_ROOM: Final = 16

#: `flags`: the checksum is incomplete; `csum_start` and `csum_offset` tell where it belongs.
VIRTIO_NET_HDR_F_NEEDS_CSUM: Final = 1
#: `flags`: the device has checked the checksum.
VIRTIO_NET_HDR_F_DATA_VALID: Final = 2
#: `flags`: the checksum fields hold counts of coalesced segments.
VIRTIO_NET_HDR_F_RSC_INFO: Final = 4

#: `gso_type`: the packet is one frame.
VIRTIO_NET_HDR_GSO_NONE: Final = 0
#: `gso_type`: to be cut into TCP segments over IPv4.
VIRTIO_NET_HDR_GSO_TCPV4: Final = 1
#: `gso_type`: to be cut into IP fragments of one UDP datagram.
VIRTIO_NET_HDR_GSO_UDP: Final = 3
#: `gso_type`: to be cut into TCP segments over IPv6.
VIRTIO_NET_HDR_GSO_TCPV6: Final = 4
#: `gso_type`: to be cut into UDP datagrams.
VIRTIO_NET_HDR_GSO_UDP_L4: Final = 5
#: Bit in `gso_type`: the TCP segments carry ECN.
VIRTIO_NET_HDR_GSO_ECN: Final = 0x80

#: Queue index of the first receive queue (5.1.2).
RECEIVEQ: Final = 0
#: Queue index of the first transmit queue (5.1.2).
TRANSMITQ: Final = 1

#: `status` in the configuration space: the link is up; the driver shall send gratuitous packets (5.1.4).
VIRTIO_NET_S_LINK_UP: Final = 1
VIRTIO_NET_S_ANNOUNCE: Final = 2

#: Answers on the control queue (5.1.6.5).
VIRTIO_NET_OK: Final = 0
VIRTIO_NET_ERR: Final = 1

#: Class of control commands that set receive modes, and the modes (5.1.6.5.1): each takes one byte, on or off.
VIRTIO_NET_CTRL_RX: Final = 0
VIRTIO_NET_CTRL_RX_PROMISC: Final = 0
VIRTIO_NET_CTRL_RX_ALLMULTI: Final = 1
VIRTIO_NET_CTRL_RX_ALLUNI: Final = 2
VIRTIO_NET_CTRL_RX_NOMULTI: Final = 3
VIRTIO_NET_CTRL_RX_NOUNI: Final = 4
VIRTIO_NET_CTRL_RX_NOBCAST: Final = 5
#: MAC addresses to receive (5.1.6.5.2): two tables, unicast and multicast; or the one of the device.
VIRTIO_NET_CTRL_MAC: Final = 1
VIRTIO_NET_CTRL_MAC_TABLE_SET: Final = 0
VIRTIO_NET_CTRL_MAC_ADDR_SET: Final = 1
#: VLANs to receive (5.1.6.5.3): a number of 16 bits.
VIRTIO_NET_CTRL_VLAN: Final = 2
VIRTIO_NET_CTRL_VLAN_ADD: Final = 0
VIRTIO_NET_CTRL_VLAN_DEL: Final = 1
#: The gratuitous packets are sent (5.1.6.5.4).
VIRTIO_NET_CTRL_ANNOUNCE: Final = 3
VIRTIO_NET_CTRL_ANNOUNCE_ACK: Final = 0
#: Pairs of queues to use (5.1.6.5.5): a number of 16 bits.
VIRTIO_NET_CTRL_MQ: Final = 4
VIRTIO_NET_CTRL_MQ_VQ_PAIRS_SET: Final = 0
#: Offloads to use for received packets (5.1.6.5.6): a set of feature bits in 64 bits.
VIRTIO_NET_CTRL_GUEST_OFFLOADS: Final = 5
VIRTIO_NET_CTRL_GUEST_OFFLOADS_SET: Final = 0

_LAYOUT: Final = struct.Struct("<BBHHHHH")
_CONFIG: Final = struct.Struct("<6sHHH")


class NetHdr(NamedTuple):
    """`struct virtio_net_hdr_v1` (5.1.6): 12 bytes before each packet, little-endian."""

    #: Bits VIRTIO_NET_HDR_F_*.
    flags: int = 0
    #: VIRTIO_NET_HDR_GSO_*.
    gso_type: int = 0
    #: Bytes of the packet's own headers; a hint.
    hdr_len: int = 0
    #: Payload bytes of each segment.
    gso_size: int = 0
    #: Offset in the packet from which the checksum is taken, in bytes.
    csum_start: int = 0
    #: Offset from there at which it is stored, in bytes.
    csum_offset: int = 0
    #: Receive: buffers this packet fills (1 without MRG_RXBUF). Transmit: 0.
    num_buffers: int = 0

    def pack(self) -> bytes:
        """Return the 12 bytes.

        Raises:
            FormatError: A field does not fit.
        """
        try:
            return _LAYOUT.pack(*self)
        except struct.error as error:
            raise FormatError(f"a virtio-net header cannot hold {self}: {error}") from None

    @classmethod
    def unpack(cls, data: bytes | bytearray | memoryview) -> NetHdr:
        """Return the header in the first 12 bytes of ``data``.

        Raises:
            FormatError: There are fewer than 12 bytes.
        """
        if len(data) < NET_HDR_LEN:
            raise FormatError(f"a virtio-net header has {NET_HDR_LEN} bytes, not {len(data)}")
        return cls._make(_LAYOUT.unpack_from(data))


def receiveq(pair: int) -> int:
    """Return the queue index of receive queue ``pair``, counted from 0 (5.1.2 counts from 1)."""
    return 2 * pair


def transmitq(pair: int) -> int:
    """Return the queue index of transmit queue ``pair``, counted from 0."""
    return 2 * pair + 1


def controlq(pairs: int) -> int:
    """Return the queue index of the control queue of a device that has ``pairs`` pairs of queues.

    Without VIRTIO_NET_F_MQ that is 1 pair; with it, the device's `max_virtqueue_pairs`.
    """
    return 2 * pairs


class NetConfig(NamedTuple):
    """`struct virtio_net_config` (5.1.4) up to `mtu`: 12 bytes, little-endian."""

    #: 6 bytes, if MAC.
    mac: bytes
    #: VIRTIO_NET_S_*, if STATUS.
    status: int = 0
    #: If MQ or RSS.
    max_virtqueue_pairs: int = 1
    #: In bytes, without the Ethernet header, if MTU.
    mtu: int = 0

    def pack(self) -> bytes:
        """Return the 12 bytes."""
        return _CONFIG.pack(*self)

    @classmethod
    def unpack(cls, data: bytes) -> NetConfig:
        """Return the configuration in the first 12 bytes of ``data``.

        Raises:
            FormatError: There are fewer.
        """
        if len(data) < _CONFIG.size:
            raise FormatError(f"a virtio-net configuration space has {_CONFIG.size} bytes here, not {len(data)}")
        return cls._make(_CONFIG.unpack_from(data))


def packet_out(packet: bytes, header: NetHdr | None = None) -> tuple[bytes, int]:
    """Return what a driver puts into the transmit queue for a packet: bytes to read, none to write."""
    return (header or NetHdr()).pack() + packet, 0


def request_ctrl(class_: int, command: int, data: bytes = b"") -> tuple[bytes, int]:
    """Return a control command (5.1.6.5): bytes to read, and one to write, VIRTIO_NET_OK or VIRTIO_NET_ERR."""
    return bytes([class_, command]) + data, 1


def request_rx_mode(mode: int, on: bool) -> tuple[bytes, int]:
    """Return the command to switch a receive mode, VIRTIO_NET_CTRL_RX_*."""
    return request_ctrl(VIRTIO_NET_CTRL_RX, mode, bytes([on]))


def request_mac_table(unicast: Sequence[bytes], multicast: Sequence[bytes]) -> tuple[bytes, int]:
    """Return the command to set the tables of addresses that are received."""
    tables = [struct.pack("<I", len(macs)) + b"".join(macs) for macs in (unicast, multicast)]
    return request_ctrl(VIRTIO_NET_CTRL_MAC, VIRTIO_NET_CTRL_MAC_TABLE_SET, b"".join(tables))


def request_mac(mac: bytes) -> tuple[bytes, int]:
    """Return the command to set the device's address."""
    return request_ctrl(VIRTIO_NET_CTRL_MAC, VIRTIO_NET_CTRL_MAC_ADDR_SET, mac)


def request_vlan(vid: int, add: bool) -> tuple[bytes, int]:
    """Return the command to receive a VLAN, or not to."""
    command = VIRTIO_NET_CTRL_VLAN_ADD if add else VIRTIO_NET_CTRL_VLAN_DEL
    return request_ctrl(VIRTIO_NET_CTRL_VLAN, command, struct.pack("<H", vid))


def request_announce_ack() -> tuple[bytes, int]:
    """Return the command that says: announced."""
    return request_ctrl(VIRTIO_NET_CTRL_ANNOUNCE, VIRTIO_NET_CTRL_ANNOUNCE_ACK)


def request_vq_pairs(pairs: int) -> tuple[bytes, int]:
    """Return the command to use so many pairs of queues."""
    return request_ctrl(VIRTIO_NET_CTRL_MQ, VIRTIO_NET_CTRL_MQ_VQ_PAIRS_SET, struct.pack("<H", pairs))


def request_guest_offloads(offloads: int) -> tuple[bytes, int]:
    """Return the command to use these offloads, a set of VIRTIO_NET_F_GUEST_* features, for received packets."""
    command = VIRTIO_NET_CTRL_GUEST_OFFLOADS_SET
    return request_ctrl(VIRTIO_NET_CTRL_GUEST_OFFLOADS, command, struct.pack("<Q", offloads))


def complete_checksum(packet: bytes, header: NetHdr) -> bytes:
    """Return the packet with the checksum that NEEDS_CSUM says is incomplete (5.1.6.2; Linux ``skb_checksum_help``).

    Args:
        packet: An Ethernet frame.
        header: Its header; without NEEDS_CSUM the packet is returned as it is.

    Raises:
        FormatError: The checksum would lie outside the packet.
    """
    if not header.flags & VIRTIO_NET_HDR_F_NEEDS_CSUM:
        return packet
    place = header.csum_start + header.csum_offset
    if place + 2 > len(packet):
        raise FormatError(f"the checksum at byte {place} lies outside the packet of {len(packet)} bytes")
    data = packet[header.csum_start :]
    data += b"\0" * (len(data) % 2)
    total = sum(word for (word,) in struct.iter_unpack(">H", data))
    while total >> 16:
        total = (total & 0xFFFF) + (total >> 16)
    # In UDP zero stands for "none", so that the other zero of ones' complement is sent.
    value = (~total & 0xFFFF) or 0xFFFF
    return packet[:place] + struct.pack(">H", value) + packet[place + 2 :]


def packet_at(q: DeviceQueue) -> int:
    """Where the packet goes in the chain that was popped last: behind its header, or in the buffer after that.

    Source: virtio 1.2, 5.1.6.4 (any framing); Linux posts the header alone in chains for GSO packets.
    """
    at = q.elem_addr[0] + NET_HDR_ROOM
    if q.elem_len[0] <= NET_HDR_LEN:
        at = q.elem_addr[1]
    return at
