"""The messages of vhost-user, as bytes: encoding, decoding, and what each request must look like.

A message is a header of three 32-bit numbers (request, flags, size of the payload), then the payload. Some
requests carry file descriptors beside it (SCM_RIGHTS). Everything is in the host's byte order, which has to
be little-endian here.

Source: QEMU docs/interop/vhost-user.rst, "Message Specification"; request numbers as in QEMU's
``subprojects/libvhost-user/libvhost-user.h``.

Example:
    >>> data = encode(Request.SET_VRING_NUM, VringState(queue=1, num=256).pack())
    >>> data.hex(" ", 4)
    '08000000 01000000 08000000 01000000 00010000'
    >>> header = Header.unpack(data[:HEADER_SIZE])
    >>> Request(header.request).name, VringState.unpack(data[HEADER_SIZE:])
    ('SET_VRING_NUM', VringState(queue=1, num=256))
"""

from __future__ import annotations

import struct
from collections.abc import Sequence
from enum import IntEnum
from typing import Final, NamedTuple

from iosim.vhost_user.errors import (
    MessageFdError,
    MessageFlagsError,
    MessageSizeError,
    UnknownRequestError,
)

#: Bytes of a message's header.
HEADER_SIZE: Final = 12
#: The protocol's version, in the two lowest bits of the flags.
VERSION: Final = 1
VERSION_MASK: Final = 0x3
#: Flag: this message answers one.
REPLY: Final = 0x4
#: Flag: the sender wants to be told whether it worked (needs REPLY_ACK).
NEED_REPLY: Final = 0x8
#: Bytes of payload beyond which no message of the protocol goes.
MAX_PAYLOAD: Final = 4096
#: Memory regions in one SET_MEM_TABLE ("Memory regions description").
MAX_REGIONS: Final = 8
#: Feature bit (of the virtio features): there are protocol features.
VHOST_USER_F_PROTOCOL_FEATURES: Final = 30
#: Feature bit: log all writes, for migration. Not supported here.
VHOST_F_LOG_ALL: Final = 26


class Request(IntEnum):
    """What a front end asks of a back end."""

    GET_FEATURES = 1
    SET_FEATURES = 2
    SET_OWNER = 3
    RESET_OWNER = 4
    SET_MEM_TABLE = 5
    SET_LOG_BASE = 6
    SET_LOG_FD = 7
    SET_VRING_NUM = 8
    SET_VRING_ADDR = 9
    SET_VRING_BASE = 10
    GET_VRING_BASE = 11
    SET_VRING_KICK = 12
    SET_VRING_CALL = 13
    SET_VRING_ERR = 14
    GET_PROTOCOL_FEATURES = 15
    SET_PROTOCOL_FEATURES = 16
    GET_QUEUE_NUM = 17
    SET_VRING_ENABLE = 18
    SEND_RARP = 19
    NET_SET_MTU = 20
    SET_BACKEND_REQ_FD = 21
    IOTLB_MSG = 22
    SET_VRING_ENDIAN = 23
    GET_CONFIG = 24
    SET_CONFIG = 25
    CREATE_CRYPTO_SESSION = 26
    CLOSE_CRYPTO_SESSION = 27
    POSTCOPY_ADVISE = 28
    POSTCOPY_LISTEN = 29
    POSTCOPY_END = 30
    GET_INFLIGHT_FD = 31
    SET_INFLIGHT_FD = 32
    GPU_SET_SOCKET = 33
    RESET_DEVICE = 34
    VRING_KICK = 35
    GET_MAX_MEM_SLOTS = 36
    ADD_MEM_REG = 37
    REM_MEM_REG = 38
    SET_STATUS = 39
    GET_STATUS = 40


class ProtocolFeature(IntEnum):
    """Numbers of the protocol's feature bits ("Protocol features")."""

    MQ = 0
    LOG_SHMFD = 1
    RARP = 2
    REPLY_ACK = 3
    MTU = 4
    BACKEND_REQ = 5
    CROSS_ENDIAN = 6
    CRYPTO_SESSION = 7
    PAGEFAULT = 8
    CONFIG = 9
    BACKEND_SEND_FD = 10
    HOST_NOTIFIER = 11
    INFLIGHT_SHMFD = 12
    RESET_DEVICE = 13
    INBAND_NOTIFICATIONS = 14
    CONFIGURE_MEM_SLOTS = 15
    STATUS = 16


class Header(NamedTuple):
    """A message's header."""

    #: Number of the request.
    request: int
    #: Version, REPLY, NEED_REPLY.
    flags: int
    #: Bytes of payload that follow.
    size: int

    def pack(self) -> bytes:
        """Return the 12 bytes."""
        return _HEADER.pack(*self)

    @classmethod
    def unpack(cls, data: bytes) -> Header:
        """Return the header in 12 bytes.

        Raises:
            MessageSizeError: There are not 12 bytes, or the payload is longer than any the protocol has.
            MessageFlagsError: Another version, or flags nobody has defined.
        """
        if len(data) != HEADER_SIZE:
            raise MessageSizeError(f"a vhost-user header has {HEADER_SIZE} bytes, not {len(data)}")
        header = cls._make(_HEADER.unpack(data))
        if header.flags & VERSION_MASK != VERSION:
            raise MessageFlagsError(f"flags {header.flags:#x}; the version in the lowest two bits must be {VERSION}")
        if header.flags & ~(VERSION_MASK | REPLY | NEED_REPLY):
            raise MessageFlagsError(f"flags {header.flags:#x}; only version, reply (4) and need_reply (8) are defined")
        if header.size > MAX_PAYLOAD:
            raise MessageSizeError(f"a payload of {header.size} bytes; there is none over {MAX_PAYLOAD}")
        return header


_HEADER: Final = struct.Struct("<III")
_U64: Final = struct.Struct("<Q")
_STATE: Final = struct.Struct("<II")
_ADDR: Final = struct.Struct("<IIQQQQ")
_REGION: Final = struct.Struct("<QQQQ")
_CONFIG: Final = struct.Struct("<III")
#: Before the regions of SET_MEM_TABLE: their number, padding.
_TABLE: Final = struct.Struct("<II")
#: The largest configuration space ("Virtio device config space").
MAX_CONFIG: Final = 256
#: In the number of SET_VRING_KICK, CALL and ERR: the queue in the low 8 bits, "no descriptor" in bit 8.
VRING_INDEX_MASK: Final = 0xFF
VRING_NOFD: Final = 0x100


class VringState(NamedTuple):
    """A queue and a number: NUM, BASE, ENABLE ("A vring state description")."""

    queue: int
    num: int

    def pack(self) -> bytes:
        """Return the 8 bytes."""
        return _STATE.pack(*self)

    @classmethod
    def unpack(cls, data: bytes) -> VringState:
        """Return what stands in 8 bytes."""
        return cls._make(_unpack(_STATE, data, "a vring state"))


class VringAddr(NamedTuple):
    """Where a queue's parts stand, as *user* addresses of the front end ("A vring address description")."""

    queue: int
    flags: int
    #: Descriptor table; packed: descriptor ring.
    desc: int
    #: Used ring; packed: device event suppression.
    used: int
    #: Available ring; packed: driver event suppression.
    avail: int
    #: Guest address for logging, unused here.
    log: int

    def pack(self) -> bytes:
        """Return the 40 bytes."""
        return _ADDR.pack(*self)

    @classmethod
    def unpack(cls, data: bytes) -> VringAddr:
        """Return what stands in 40 bytes."""
        return cls._make(_unpack(_ADDR, data, "a vring address"))


class MemoryRegion(NamedTuple):
    """One stretch of guest memory, and where a file holds it ("Memory region description")."""

    #: Guest-physical address of its first byte.
    guest_addr: int
    #: Bytes.
    size: int
    #: The same byte's address in the front end's process; SET_VRING_ADDR speaks of those.
    user_addr: int
    #: Offset of that byte in the file.
    mmap_offset: int

    def pack(self) -> bytes:
        """Return the 32 bytes."""
        return _REGION.pack(*self)

    @classmethod
    def unpack(cls, data: bytes) -> MemoryRegion:
        """Return what stands in 32 bytes."""
        return cls._make(_unpack(_REGION, data, "a memory region"))


class Config(NamedTuple):
    """A stretch of the device's configuration space ("Virtio device config space")."""

    offset: int
    #: 0: the driver writes it; 1: it is restored by a migration.
    flags: int
    data: bytes

    def pack(self) -> bytes:
        """Return the bytes: offset, size, flags, data."""
        return _CONFIG.pack(self.offset, len(self.data), self.flags) + self.data

    @classmethod
    def unpack(cls, data: bytes) -> Config:
        """Return what stands in ``data``.

        Raises:
            MessageSizeError: The size inside is not the number of bytes that follow, or over 256.
        """
        if len(data) < _CONFIG.size:
            raise MessageSizeError(f"a configuration message has {_CONFIG.size} bytes and its data, not {len(data)}")
        offset, size, flags = _CONFIG.unpack_from(data)
        rest = data[_CONFIG.size :]
        if size != len(rest):
            raise MessageSizeError(f"a configuration message says {size} bytes and brings {len(rest)}")
        if offset + size > MAX_CONFIG:
            raise MessageSizeError(f"configuration bytes {offset} to {offset + size}; there are {MAX_CONFIG}")
        return cls(offset, flags, rest)


def _unpack(layout: struct.Struct, data: bytes, what: str) -> tuple[int, ...]:
    if len(data) != layout.size:
        raise MessageSizeError(f"{what} has {layout.size} bytes, not {len(data)}")
    return layout.unpack(data)


def pack_u64(value: int) -> bytes:
    """Return a payload of one 64-bit number: features, acknowledgements, counts."""
    return _U64.pack(value)


def unpack_u64(data: bytes) -> int:
    """Return the number of a payload of 8 bytes."""
    return _unpack(_U64, data, "a number")[0]


def pack_memory_table(regions: Sequence[MemoryRegion]) -> bytes:
    """Return SET_MEM_TABLE's payload. One descriptor for each region goes beside it, in the same order."""
    return _TABLE.pack(len(regions), 0) + b"".join(region.pack() for region in regions)


def unpack_memory_table(data: bytes) -> list[MemoryRegion]:
    """Return the regions of SET_MEM_TABLE.

    Raises:
        MessageSizeError: The number of regions is above 8, or does not match the bytes.
    """
    if len(data) < _TABLE.size:
        raise MessageSizeError(f"a memory table has at least {_TABLE.size} bytes, not {len(data)}")
    count, _ = _TABLE.unpack_from(data)
    if count > MAX_REGIONS:
        raise MessageSizeError(f"a memory table of {count} regions; at most {MAX_REGIONS}")
    body = data[_TABLE.size :]
    # The protocol's table has room for 8 regions; a sender may send all of it (rust-vmm does not, UML does).
    if len(body) < count * _REGION.size or len(body) > MAX_REGIONS * _REGION.size:
        raise MessageSizeError(f"a memory table of {count} regions in {len(data)} bytes")
    return [MemoryRegion._make(_REGION.unpack_from(body, i * _REGION.size)) for i in range(count)]


def pack_single_region(region: MemoryRegion) -> bytes:
    """Return the payload of ADD_MEM_REG and REM_MEM_REG ("Single memory region description")."""
    return _U64.pack(0) + region.pack()


def unpack_single_region(data: bytes) -> MemoryRegion:
    """Return the region of ADD_MEM_REG or REM_MEM_REG."""
    if len(data) != _U64.size + _REGION.size:
        raise MessageSizeError(f"a single memory region has {_U64.size + _REGION.size} bytes, not {len(data)}")
    return MemoryRegion.unpack(data[_U64.size :])


def encode(request: int, payload: bytes = b"", flags: int = 0) -> bytes:
    """Return a whole message; the version is added to ``flags``.

    Raises:
        MessageSizeError: The payload is longer than any the protocol has.
    """
    if len(payload) > MAX_PAYLOAD:
        raise MessageSizeError(f"a payload of {len(payload)} bytes; there is none over {MAX_PAYLOAD}")
    return Header(request, VERSION | flags, len(payload)).pack() + payload


#: What a back end that is asked will hear: payload bytes (least, most), descriptors (least, most).
_SHAPES: Final[dict[Request, tuple[int, int, int, int]]] = {
    Request.GET_FEATURES: (0, 0, 0, 0),
    Request.SET_FEATURES: (8, 8, 0, 0),
    Request.SET_OWNER: (0, 0, 0, 0),
    Request.RESET_OWNER: (0, 0, 0, 0),
    Request.SET_MEM_TABLE: (8, 8 + MAX_REGIONS * 32, 0, MAX_REGIONS),
    Request.SET_VRING_NUM: (8, 8, 0, 0),
    Request.SET_VRING_ADDR: (40, 40, 0, 0),
    Request.SET_VRING_BASE: (8, 8, 0, 0),
    Request.GET_VRING_BASE: (8, 8, 0, 0),
    Request.SET_VRING_KICK: (8, 8, 0, 1),
    Request.SET_VRING_CALL: (8, 8, 0, 1),
    Request.SET_VRING_ERR: (8, 8, 0, 1),
    Request.GET_PROTOCOL_FEATURES: (0, 0, 0, 0),
    Request.SET_PROTOCOL_FEATURES: (8, 8, 0, 0),
    Request.GET_QUEUE_NUM: (0, 0, 0, 0),
    Request.SET_VRING_ENABLE: (8, 8, 0, 0),
    Request.SET_BACKEND_REQ_FD: (0, 0, 1, 1),
    Request.GET_CONFIG: (12, 12 + MAX_CONFIG, 0, 0),
    Request.SET_CONFIG: (12, 12 + MAX_CONFIG, 0, 0),
    Request.RESET_DEVICE: (0, 0, 0, 0),
    Request.GET_MAX_MEM_SLOTS: (0, 0, 0, 0),
    # A postcopy front end sends REM_MEM_REG with the descriptor it had sent with ADD_MEM_REG.
    Request.ADD_MEM_REG: (40, 40, 1, 1),
    Request.REM_MEM_REG: (40, 40, 0, 1),
    Request.SET_STATUS: (8, 8, 0, 0),
    Request.GET_STATUS: (0, 0, 0, 0),
}


def check_request(header: Header, fd_count: int) -> Request:
    """Return the request a back end was sent, if size and descriptors are what that request has.

    Args:
        header: Its header.
        fd_count: Descriptors that came with it.

    Raises:
        UnknownRequestError: No request of this number is answered here.
        MessageFlagsError: It is marked as a reply.
        MessageSizeError: The payload is too long or too short.
        MessageFdError: Too many or too few descriptors.
    """
    try:
        request = Request(header.request)
        least, most, fewest_fds, most_fds = _SHAPES[request]
    except (ValueError, KeyError):
        raise UnknownRequestError(f"vhost-user request {request_name(header.request)} is not supported") from None
    if header.flags & REPLY:
        raise MessageFlagsError(f"{request.name} is marked as a reply, but nothing was asked")
    if not least <= header.size <= most:
        expected = str(least) if least == most else f"{least} to {most}"
        raise MessageSizeError(f"{request.name} has a payload of {expected} bytes, not {header.size}")
    if not fewest_fds <= fd_count <= most_fds:
        expected = str(most_fds) if fewest_fds == most_fds else f"{fewest_fds} to {most_fds}"
        raise MessageFdError(f"{request.name} has {expected} file descriptors, not {fd_count}")
    return request


def request_name(number: int) -> str:
    """Return a request's name, or its number where it has none."""
    try:
        return Request(number).name
    except ValueError:
        return str(number)
