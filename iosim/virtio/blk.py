"""The block device: the format of its requests, and a device that serves them (virtio 1.2, 5.2).

A request is one chain: a header of 16 bytes and the data of a write, which the device reads; the data of a read
and one status byte, which it writes. Descriptors may cut it anywhere (2.7.4.2).

Example:
    >>> from iosim.ring.memory import GuestMemory
    >>> from iosim.virtio.disk import MemoryDisk
    >>> from iosim.virtio.transport import Driver
    >>> driver = Driver(BlkDevice(MemoryDisk(64 * 512)), GuestMemory(1 << 20))
    >>> driver.request(0, *request_out(3, b"x" * 512))
    b'\\x00'
    >>> reply = driver.request(0, *request_in(3, 512))
    >>> reply[:512] == b"x" * 512, reply[512] == VIRTIO_BLK_S_OK
    (True, True)
"""

from __future__ import annotations

import struct
from collections.abc import Iterable
from typing import ClassVar, Final, NamedTuple

from iosim.errors import IosimError
from iosim.ring.virtqueue import Element
from iosim.virtio import features as f
from iosim.virtio.device import RING_FEATURES, VirtioDevice
from iosim.virtio.disk import SECTOR_SIZE, Disk
from iosim.virtio.errors import FormatError, RequestError
from iosim.virtio.ids import VIRTIO_ID_BLOCK

#: Request types (5.2.6).
VIRTIO_BLK_T_IN: Final = 0
VIRTIO_BLK_T_OUT: Final = 1
VIRTIO_BLK_T_FLUSH: Final = 4
VIRTIO_BLK_T_GET_ID: Final = 8
VIRTIO_BLK_T_GET_LIFETIME: Final = 10
VIRTIO_BLK_T_DISCARD: Final = 11
VIRTIO_BLK_T_WRITE_ZEROES: Final = 13
VIRTIO_BLK_T_SECURE_ERASE: Final = 14
#: A legacy driver's barrier, a bit in the type; ignored, as QEMU does.
VIRTIO_BLK_T_BARRIER: Final = 0x80000000

#: Status bytes (5.2.6): done; failed; no such request.
VIRTIO_BLK_S_OK: Final = 0
VIRTIO_BLK_S_IOERR: Final = 1
VIRTIO_BLK_S_UNSUPP: Final = 2

#: Bytes of the answer to GET_ID.
VIRTIO_BLK_ID_BYTES: Final = 20
#: Flag of a WRITE_ZEROES segment: the sectors may be deallocated.
VIRTIO_BLK_WRITE_ZEROES_FLAG_UNMAP: Final = 1

_HDR: Final = struct.Struct("<IIQ")
_SEGMENT: Final = struct.Struct("<QII")
_CONFIG: Final = struct.Struct("<QIIHBBIBBHIBBHIIIIIB3x")
#: Where `writeback` stands in the configuration space.
_WRITEBACK_OFFSET: Final = 32
#: Longest request in bytes (QEMU ``BDRV_REQUEST_MAX_BYTES``).
_REQUEST_MAX: Final = (1 << 31) - SECTOR_SIZE
#: Data is moved in pieces of at most so many bytes, so that no request takes more memory than this.
_PIECE: Final = 1 << 20


class BlkHdr(NamedTuple):
    """`struct virtio_blk_outhdr`: 16 bytes at the start of each request, little-endian."""

    #: VIRTIO_BLK_T_*.
    type: int
    #: Priority, once; reserved.
    ioprio: int = 0
    #: First sector, in units of 512 bytes; 0 where a request has none.
    sector: int = 0

    def pack(self) -> bytes:
        """Return the 16 bytes.

        Raises:
            FormatError: A field does not fit.
        """
        try:
            return _HDR.pack(*self)
        except struct.error as error:
            raise FormatError(f"a virtio-blk header cannot hold {self}: {error}") from None

    @classmethod
    def unpack(cls, data: bytes) -> BlkHdr:
        """Return the header in the first 16 bytes of ``data``.

        Raises:
            FormatError: There are fewer.
        """
        if len(data) < _HDR.size:
            raise FormatError(f"a virtio-blk header has {_HDR.size} bytes, not {len(data)}")
        return cls._make(_HDR.unpack_from(data))


class Segment(NamedTuple):
    """`struct virtio_blk_discard_write_zeroes`: 16 bytes, one range of a DISCARD or WRITE_ZEROES request."""

    #: First sector.
    sector: int
    #: Sectors.
    num_sectors: int
    #: VIRTIO_BLK_WRITE_ZEROES_FLAG_UNMAP or 0.
    flags: int = 0

    def pack(self) -> bytes:
        """Return the 16 bytes.

        Raises:
            FormatError: A field does not fit.
        """
        try:
            return _SEGMENT.pack(*self)
        except struct.error as error:
            raise FormatError(f"a virtio-blk segment cannot hold {self}: {error}") from None


class BlkConfig(NamedTuple):
    """`struct virtio_blk_config` (5.2.4) up to `write_zeroes_may_unmap`: 60 bytes, little-endian."""

    #: Sectors of 512 bytes.
    capacity: int = 0
    #: Longest buffer in bytes, if SIZE_MAX.
    size_max: int = 0
    #: Most data buffers in a request, if SEG_MAX.
    seg_max: int = 0
    #: Geometry, if GEOMETRY.
    cylinders: int = 0
    heads: int = 0
    sectors: int = 0
    #: Block size in bytes, if BLK_SIZE; a hint, requests count in 512 bytes.
    blk_size: int = 0
    #: Topology, if TOPOLOGY: logical blocks in a physical one (exponent of 2), offset of the first aligned one,
    #: smallest and best sizes of requests in blocks.
    physical_block_exp: int = 0
    alignment_offset: int = 0
    min_io_size: int = 0
    opt_io_size: int = 0
    #: 1 for writeback, 0 for writethrough; the driver may write it if CONFIG_WCE.
    writeback: int = 0
    unused0: int = 0
    #: Request queues, if MQ.
    num_queues: int = 0
    #: Limits of DISCARD: sectors in a segment, segments in a request, alignment in sectors.
    max_discard_sectors: int = 0
    max_discard_seg: int = 0
    discard_sector_alignment: int = 0
    #: The same of WRITE_ZEROES.
    max_write_zeroes_sectors: int = 0
    max_write_zeroes_seg: int = 0
    #: Whether WRITE_ZEROES with the unmap flag may deallocate.
    write_zeroes_may_unmap: int = 0

    def pack(self) -> bytes:
        """Return the 60 bytes."""
        return _CONFIG.pack(*self)

    @classmethod
    def unpack(cls, data: bytes) -> BlkConfig:
        """Return the configuration in the first 60 bytes of ``data``.

        Raises:
            FormatError: There are fewer.
        """
        if len(data) < _CONFIG.size:
            raise FormatError(f"a virtio-blk configuration space has {_CONFIG.size} bytes here, not {len(data)}")
        return cls._make(_CONFIG.unpack_from(data))


# What a driver sends: the bytes that the device reads, and how many it writes, the status byte last.


def request_in(sector: int, length: int) -> tuple[bytes, int]:
    """Return a request to read ``length`` bytes from ``sector`` on."""
    return BlkHdr(VIRTIO_BLK_T_IN, 0, sector).pack(), length + 1


def request_out(sector: int, data: bytes) -> tuple[bytes, int]:
    """Return a request to write ``data`` from ``sector`` on."""
    return BlkHdr(VIRTIO_BLK_T_OUT, 0, sector).pack() + data, 1


def request_flush() -> tuple[bytes, int]:
    """Return a request to make everything written safe."""
    return BlkHdr(VIRTIO_BLK_T_FLUSH).pack(), 1


def request_get_id() -> tuple[bytes, int]:
    """Return a request for the 20 bytes of the device's name."""
    return BlkHdr(VIRTIO_BLK_T_GET_ID).pack(), VIRTIO_BLK_ID_BYTES + 1


def request_discard(segments: Iterable[Segment]) -> tuple[bytes, int]:
    """Return a request to discard these ranges."""
    return BlkHdr(VIRTIO_BLK_T_DISCARD).pack() + b"".join(s.pack() for s in segments), 1


def request_write_zeroes(segments: Iterable[Segment]) -> tuple[bytes, int]:
    """Return a request to zero these ranges."""
    return BlkHdr(VIRTIO_BLK_T_WRITE_ZEROES).pack() + b"".join(s.pack() for s in segments), 1


class BlkDevice(VirtioDevice):
    """A block device (QEMU ``hw/block/virtio-blk.c``). Every queue is a request queue.

    Args:
        disk: What it stores in. What does not fill a sector at its end is left out.
        serial: What GET_ID tells, at most 20 bytes of ASCII.
        num_queues: Request queues, from 1.
        blk_size: Block size in bytes: a power of two from 512. Requests must be whole blocks, as with QEMU.
        seg_max: Data buffers in a request that the driver is told to keep to; a device takes any number.
        max_discard_sectors: Sectors in one segment of DISCARD and WRITE_ZEROES.
        max_discard_seg: Segments in one such request.
        ring_features: See `VirtioDevice`.

    Raises:
        IosimError: Something above is not as it should be.
    """

    device_id: ClassVar[int] = VIRTIO_ID_BLOCK

    def __init__(
        self,
        disk: Disk,
        serial: str = "iosim",
        num_queues: int = 1,
        blk_size: int = SECTOR_SIZE,
        seg_max: int = 126,
        max_discard_sectors: int = (1 << 22) - 1,
        max_discard_seg: int = 16,
        ring_features: int = RING_FEATURES,
    ) -> None:
        bits = [
            f.VIRTIO_BLK_F_SEG_MAX,
            f.VIRTIO_BLK_F_BLK_SIZE,
            f.VIRTIO_BLK_F_FLUSH,
            f.VIRTIO_BLK_F_TOPOLOGY,
            f.VIRTIO_BLK_F_CONFIG_WCE,
        ]
        if disk.read_only:
            bits.append(f.VIRTIO_BLK_F_RO)
        else:
            bits += [f.VIRTIO_BLK_F_DISCARD, f.VIRTIO_BLK_F_WRITE_ZEROES]
        if num_queues > 1:
            bits.append(f.VIRTIO_BLK_F_MQ)
        if not 1 <= num_queues <= 1024:
            raise IosimError(f"a block device with {num_queues} queues; choose 1 to 1024")
        if blk_size < SECTOR_SIZE or blk_size & (blk_size - 1) or blk_size > 1 << 21:
            raise IosimError(f"a block size of {blk_size} bytes; choose a power of two from 512 to 2097152")
        if not serial.isascii() or len(serial) > VIRTIO_BLK_ID_BYTES:
            raise IosimError(f"the serial number '{serial}'; it has at most {VIRTIO_BLK_ID_BYTES} bytes of ASCII")
        super().__init__(sum(1 << bit for bit in bits), num_queues, ring_features)
        self.disk = disk
        self.serial = serial.encode("ascii")
        self.capacity = disk.size // SECTOR_SIZE
        self.blk_size = blk_size
        self.seg_max = seg_max
        self.max_discard_sectors = max_discard_sectors
        self.max_discard_seg = max_discard_seg
        self.writeback = True

    def config(self) -> bytes:
        """Return `struct virtio_blk_config`, 60 bytes."""
        writable = not self.disk.read_only
        return BlkConfig(
            capacity=self.capacity,
            seg_max=self.seg_max,
            blk_size=self.blk_size,
            min_io_size=1,
            writeback=int(self.writeback),
            num_queues=self.num_queues,
            max_discard_sectors=self.max_discard_sectors * writable,
            max_discard_seg=self.max_discard_seg * writable,
            discard_sector_alignment=self.blk_size // SECTOR_SIZE * writable,
            max_write_zeroes_sectors=self.max_discard_sectors * writable,
            max_write_zeroes_seg=self.max_discard_seg * writable,
            write_zeroes_may_unmap=int(writable),
        ).pack()

    def _write_config(self, offset: int, data: bytes) -> None:
        # QEMU virtio_blk_set_config: of all fields only the cache's mode is the driver's to write (5.2.5.1).
        if self.has(f.VIRTIO_BLK_F_CONFIG_WCE) and offset <= _WRITEBACK_OFFSET < offset + len(data):
            self.writeback = bool(data[_WRITEBACK_OFFSET - offset])
            if not self.writeback:
                self._flush()

    def _reset(self) -> None:
        self.writeback = True

    def _started(self) -> None:
        # 5.2.6.2: a driver that cannot flush gets every write made safe before it is answered.
        if not self.has(f.VIRTIO_BLK_F_CONFIG_WCE):
            self.writeback = self.has(f.VIRTIO_BLK_F_FLUSH)

    def _flush(self) -> int:
        try:
            self.disk.flush()
        except OSError:
            return VIRTIO_BLK_S_IOERR
        return VIRTIO_BLK_S_OK

    def _answer(self, index: int, element: Element) -> int:
        """Serve one request (QEMU ``virtio_blk_handle_request``); return the bytes written."""
        if not element.out_sg or not element.in_sg:
            raise RequestError(f"queue {index}: virtio-blk missing headers")
        if element.out_size < _HDR.size:
            raise RequestError(f"queue {index}: virtio-blk request outhdr too short: {element.out_size} bytes")
        header = BlkHdr.unpack(element.read(0, _HDR.size))
        # Wherever descriptors end, the status is the last byte that the device may write.
        room = element.in_size - 1
        status, written = self._execute(header, element, room)
        element.write(bytes([status]), room)
        # 2.7.8.2: so many bytes are written from the first on, without a gap.
        return room + 1 if written == room else written

    def _execute(self, header: BlkHdr, element: Element, room: int) -> tuple[int, int]:
        """Do one request; return its status and the bytes of data written."""
        kind = header.type & ~VIRTIO_BLK_T_BARRIER
        if kind == VIRTIO_BLK_T_IN:
            return self._read(header.sector, element, room)
        if kind == VIRTIO_BLK_T_OUT:
            return self._write(header.sector, element), 0
        if kind == VIRTIO_BLK_T_FLUSH:
            return self._flush(), 0
        if kind == VIRTIO_BLK_T_GET_ID:
            # Padded with zeroes; without one at the end where all 20 bytes are taken (5.2.6).
            name = self.serial.ljust(VIRTIO_BLK_ID_BYTES, b"\0")[:room]
            return VIRTIO_BLK_S_OK, element.write(name)
        if kind == VIRTIO_BLK_T_DISCARD and (self.has(f.VIRTIO_BLK_F_DISCARD) or self.disk.read_only):
            return self._ranges(element, discard=True), 0
        if kind == VIRTIO_BLK_T_WRITE_ZEROES and (self.has(f.VIRTIO_BLK_F_WRITE_ZEROES) or self.disk.read_only):
            return self._ranges(element, discard=False), 0
        return VIRTIO_BLK_S_UNSUPP, 0

    def _range_ok(self, sector: int, length: int) -> bool:
        """Tell whether a request lies on the disk and has whole blocks (QEMU ``virtio_blk_sect_range_ok``)."""
        if length > _REQUEST_MAX or length % self.blk_size or sector % (self.blk_size // SECTOR_SIZE):
            return False
        return sector <= self.capacity and length // SECTOR_SIZE <= self.capacity - sector

    def _read(self, sector: int, element: Element, room: int) -> tuple[int, int]:
        if not self._range_ok(sector, room):
            return VIRTIO_BLK_S_IOERR, 0
        done = 0
        try:
            while done < room:
                data = self.disk.read(sector * SECTOR_SIZE + done, min(_PIECE, room - done))
                done += element.write(data, done)
        except OSError:
            return VIRTIO_BLK_S_IOERR, done
        return VIRTIO_BLK_S_OK, done

    def _write(self, sector: int, element: Element) -> int:
        length = element.out_size - _HDR.size
        if self.disk.read_only or not self._range_ok(sector, length):
            return VIRTIO_BLK_S_IOERR
        try:
            for done in range(0, length, _PIECE):
                data = element.read(_HDR.size + done, min(_PIECE, length - done))
                self.disk.write(sector * SECTOR_SIZE + done, data)
        except OSError:
            return VIRTIO_BLK_S_IOERR
        return VIRTIO_BLK_S_OK if self.writeback else self._flush()

    def _ranges(self, element: Element, discard: bool) -> int:
        """Serve DISCARD or WRITE_ZEROES; all segments are checked before the first is touched."""
        length = element.out_size - _HDR.size
        if self.disk.read_only:
            return VIRTIO_BLK_S_IOERR
        if length % _SEGMENT.size or not 0 < length <= self.max_discard_seg * _SEGMENT.size:
            return VIRTIO_BLK_S_UNSUPP if length > self.max_discard_seg * _SEGMENT.size else VIRTIO_BLK_S_IOERR
        segments = [Segment._make(s) for s in _SEGMENT.iter_unpack(element.read(_HDR.size, length))]
        # 5.2.6.2: unknown flags are unsupported, and so is unmap where it means nothing.
        known = 0 if discard else VIRTIO_BLK_WRITE_ZEROES_FLAG_UNMAP
        if any(s.flags & ~known for s in segments):
            return VIRTIO_BLK_S_UNSUPP
        for s in segments:
            if s.num_sectors > self.max_discard_sectors or not self._range_ok(s.sector, s.num_sectors * SECTOR_SIZE):
                return VIRTIO_BLK_S_IOERR
        try:
            for s in segments:
                act = self.disk.discard if discard else self.disk.write_zeroes
                act(s.sector * SECTOR_SIZE, s.num_sectors * SECTOR_SIZE)
        except OSError:
            return VIRTIO_BLK_S_IOERR
        return VIRTIO_BLK_S_OK if self.writeback else self._flush()
