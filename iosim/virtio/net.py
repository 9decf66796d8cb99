"""What stands before every packet of a virtio network device, and which queue is which (virtio 1.2, 5.1).

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
from typing import Final, NamedTuple

from iosim.errors import IosimError

#: Bytes of `struct virtio_net_hdr_v1`, which a device that follows virtio 1.0 or later always has (5.1.6).
NET_HDR_LEN: Final = 12
#: Bytes of the header of a legacy device without MRG_RXBUF, which lacks `num_buffers` (5.1.6.1).
NET_HDR_LEN_LEGACY: Final = 10

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

_LAYOUT: Final = struct.Struct("<BBHHHHH")


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
            IosimError: A field does not fit.
        """
        try:
            return _LAYOUT.pack(*self)
        except struct.error as error:
            raise IosimError(f"a virtio-net header cannot hold {self}: {error}") from None

    @classmethod
    def unpack(cls, data: bytes | bytearray | memoryview) -> NetHdr:
        """Return the header in the first 12 bytes of ``data``.

        Raises:
            IosimError: There are fewer than 12 bytes.
        """
        if len(data) < NET_HDR_LEN:
            raise IosimError(f"a virtio-net header has {NET_HDR_LEN} bytes, not {len(data)}")
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
