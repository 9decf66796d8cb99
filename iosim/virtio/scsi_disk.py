"""What a SCSI disk answers to commands: as much of SPC-4 and SBC-3 as Linux's ``sd`` driver needs.

INQUIRY (with the pages 00h, 80h, 83h, B0h, B2h), TEST UNIT READY, REQUEST SENSE, REPORT LUNS, MODE SENSE (6 and
10, caching page), READ CAPACITY (10 and 16), READ and WRITE (6, 10, 16), SYNCHRONIZE CACHE (10 and 16). All else
is answered with CHECK CONDITION and sense data.

Example:
    >>> from iosim.virtio.disk import MemoryDisk
    >>> unit = ScsiDisk(MemoryDisk(b"sector 0".ljust(512, b".") + b"sector 1".ljust(512, b".")))
    >>> answer = unit.execute(read_10(1, 1), b"")
    >>> answer.status == GOOD, answer.data[:8]
    (True, b'sector 1')
    >>> answer = unit.execute(read_10(2, 1), b"")
    >>> answer.status == CHECK_CONDITION, sense_fields(answer.sense)
    (True, (5, 33, 0))
"""

from __future__ import annotations

import struct
from typing import Final, NamedTuple

from iosim.errors import IosimError
from iosim.virtio.disk import SECTOR_SIZE, Disk

#: Status bytes (SAM-5).
GOOD: Final = 0x00
CHECK_CONDITION: Final = 0x02

#: Operation codes (SPC-4, SBC-3).
TEST_UNIT_READY: Final = 0x00
REQUEST_SENSE: Final = 0x03
READ_6: Final = 0x08
WRITE_6: Final = 0x0A
INQUIRY: Final = 0x12
MODE_SENSE_6: Final = 0x1A
READ_CAPACITY_10: Final = 0x25
READ_10: Final = 0x28
WRITE_10: Final = 0x2A
SYNCHRONIZE_CACHE_10: Final = 0x35
MODE_SENSE_10: Final = 0x5A
READ_16: Final = 0x88
WRITE_16: Final = 0x8A
SYNCHRONIZE_CACHE_16: Final = 0x91
SERVICE_ACTION_IN_16: Final = 0x9E
REPORT_LUNS: Final = 0xA0
#: Service action of SERVICE ACTION IN (16): READ CAPACITY (16).
SAI_READ_CAPACITY_16: Final = 0x10


class Sense(NamedTuple):
    """Why a command failed: sense key, additional sense code, and its qualifier (SPC-4, 4.5)."""

    key: int
    asc: int
    ascq: int = 0

    def pack(self) -> bytes:
        """Return fixed-format sense data, 18 bytes (SPC-4, 4.5.3)."""
        return struct.pack(">BxB4xB4xBB4x", 0x70, self.key, 10, self.asc, self.ascq)


#: Names and codes are those of QEMU's ``scsi/utils.c``.
NO_SENSE: Final = Sense(0, 0)
READ_ERROR: Final = Sense(3, 0x11)
IO_ERROR: Final = Sense(0xB, 0, 6)
INVALID_OPCODE: Final = Sense(5, 0x20)
LBA_OUT_OF_RANGE: Final = Sense(5, 0x21)
INVALID_FIELD: Final = Sense(5, 0x24)
LUN_NOT_SUPPORTED: Final = Sense(5, 0x25)
WRITE_PROTECTED: Final = Sense(7, 0x27)
REPORTED_LUNS_CHANGED: Final = Sense(6, 0x3F, 0x0E)


def sense_fields(data: bytes) -> tuple[int, int, int]:
    """Return key, code and qualifier of fixed-format sense data; zeroes where there is none."""
    return (data[2] & 0xF, data[12], data[13]) if len(data) >= 14 else (0, 0, 0)


class Answer(NamedTuple):
    """What a logical unit answers to a command."""

    #: GOOD or CHECK_CONDITION.
    status: int = GOOD
    #: Bytes for the initiator.
    data: bytes = b""
    #: Sense data, empty if the status is GOOD.
    sense: bytes = b""
    #: Bytes taken from the initiator.
    taken: int = 0


def failed(sense: Sense) -> Answer:
    """Return the answer to a command that failed."""
    return Answer(CHECK_CONDITION, sense=sense.pack())


def inquiry(length: int = 96, page: int | None = None) -> bytes:
    """Return a CDB: tell who you are."""
    return struct.pack(">BBBHx", INQUIRY, page is not None, page or 0, length)


def test_unit_ready() -> bytes:
    """Return a CDB: are you ready."""
    return bytes(6)


def request_sense(length: int = 18) -> bytes:
    """Return a CDB: what was wrong."""
    return bytes([REQUEST_SENSE, 0, 0, 0, length, 0])


def report_luns(length: int = 64) -> bytes:
    """Return a CDB: which logical units does the target have."""
    return struct.pack(">B5xIxx", REPORT_LUNS, length)


def read_capacity_10() -> bytes:
    """Return a CDB: how large are you, in 32 bits."""
    return bytes([READ_CAPACITY_10]) + bytes(9)


def read_capacity_16(length: int = 32) -> bytes:
    """Return a CDB: how large are you, in 64 bits."""
    return struct.pack(">BB8xIxx", SERVICE_ACTION_IN_16, SAI_READ_CAPACITY_16, length)


def read_10(lba: int, blocks: int) -> bytes:
    """Return a CDB to read, with a 32-bit address."""
    return struct.pack(">BxIxHx", READ_10, lba, blocks)


def write_10(lba: int, blocks: int) -> bytes:
    """Return a CDB to write, with a 32-bit address."""
    return struct.pack(">BxIxHx", WRITE_10, lba, blocks)


def read_16(lba: int, blocks: int) -> bytes:
    """Return a CDB to read, with a 64-bit address."""
    return struct.pack(">BxQIxx", READ_16, lba, blocks)


def write_16(lba: int, blocks: int) -> bytes:
    """Return a CDB to write, with a 64-bit address."""
    return struct.pack(">BxQIxx", WRITE_16, lba, blocks)


def synchronize_cache_10(lba: int = 0, blocks: int = 0) -> bytes:
    """Return a CDB to make everything written safe; 0 blocks means all."""
    return struct.pack(">BxIxHx", SYNCHRONIZE_CACHE_10, lba, blocks)


def mode_sense_6(page: int = 0x3F, length: int = 255) -> bytes:
    """Return a CDB for mode pages."""
    return bytes([MODE_SENSE_6, 0, page, 0, length, 0])


def extent(cdb: bytes) -> tuple[int, int]:
    """Return first block and number of blocks of a command that reads, writes or flushes some, of 16 bytes."""
    if cdb[0] in (READ_6, WRITE_6):
        return int.from_bytes(cdb[1:4], "big") & 0x1FFFFF, cdb[4] or 256
    if cdb[0] >= 0x80:
        return int.from_bytes(cdb[2:10], "big"), int.from_bytes(cdb[10:14], "big")
    return int.from_bytes(cdb[2:6], "big"), int.from_bytes(cdb[7:9], "big")


def transfer(cdb: bytes, block_size: int) -> tuple[int, int]:
    """Return how many bytes a command of 16 bytes takes from the initiator, and gives it at most.

    Source: QEMU ``scsi_req_xfer`` in ``hw/scsi/scsi-bus.c``.
    """
    opcode = cdb[0]
    if opcode in (WRITE_6, WRITE_10, WRITE_16):
        return extent(cdb)[1] * block_size, 0
    if opcode in (READ_6, READ_10, READ_16):
        return 0, extent(cdb)[1] * block_size
    if opcode == READ_CAPACITY_10:
        return 0, 8
    fields = {
        INQUIRY: cdb[3:5],
        REQUEST_SENSE: cdb[4:5],
        MODE_SENSE_6: cdb[4:5],
        MODE_SENSE_10: cdb[7:9],
        SERVICE_ACTION_IN_16: cdb[10:14],
        REPORT_LUNS: cdb[6:10],
    }
    return 0, int.from_bytes(fields.get(opcode, b""), "big")


class ScsiDisk:
    """A logical unit: a direct-access block device (QEMU ``scsi-hd``).

    Args:
        disk: What it stores in.
        serial: ASCII, up to 20 bytes.
        block_size: Bytes of a logical block: 512 or 4096.

    Raises:
        IosimError: The block size or the serial number will not do.
    """

    def __init__(self, disk: Disk, serial: str = "iosim", block_size: int = SECTOR_SIZE) -> None:
        if block_size not in (512, 4096):
            raise IosimError(f"a SCSI disk with blocks of {block_size} bytes; choose 512 or 4096")
        if not serial.isascii() or len(serial) > 20:
            raise IosimError(f"the serial number '{serial}'; it has at most 20 bytes of ASCII")
        self.disk = disk
        self.serial = serial.encode("ascii")
        self.block_size = block_size
        self.blocks = disk.size // block_size

    def execute(self, cdb: bytes, data: bytes) -> Answer:
        """Execute a command.

        Args:
            cdb: The command; what is shorter than 16 bytes is taken as if zeroes followed.
            data: What the initiator sent for it.
        """
        try:
            return self._execute(cdb.ljust(16, b"\0"), data)
        except OSError:
            return failed(IO_ERROR)

    def _execute(self, cdb: bytes, data: bytes) -> Answer:
        opcode = cdb[0]
        if opcode == TEST_UNIT_READY:
            return Answer()
        if opcode == REQUEST_SENSE:
            # Sense data goes out with the answer it belongs to (autosense), so that none is ever left.
            return Answer(data=NO_SENSE.pack()[: cdb[4]])
        if opcode == INQUIRY:
            return self._inquiry(cdb)
        if opcode in (MODE_SENSE_6, MODE_SENSE_10):
            return self._mode_sense(cdb)
        if opcode == READ_CAPACITY_10:
            last = min(max(self.blocks - 1, 0), 0xFFFFFFFF)
            return Answer(data=struct.pack(">II", last, self.block_size))
        if opcode == SERVICE_ACTION_IN_16:
            if cdb[1] & 0x1F != SAI_READ_CAPACITY_16:
                return failed(INVALID_FIELD)
            reply = struct.pack(">QI20x", max(self.blocks - 1, 0), self.block_size)
            return Answer(data=reply[: int.from_bytes(cdb[10:14], "big")])
        if opcode in (READ_6, READ_10, READ_16):
            return self._read(cdb)
        if opcode in (WRITE_6, WRITE_10, WRITE_16):
            return self._write(cdb, data)
        if opcode in (SYNCHRONIZE_CACHE_10, SYNCHRONIZE_CACHE_16):
            lba, blocks = extent(cdb)
            if not self._on_disk(lba, blocks):
                return failed(LBA_OUT_OF_RANGE)
            self.disk.flush()
            return Answer()
        return failed(INVALID_OPCODE)

    def _on_disk(self, lba: int, blocks: int) -> bool:
        return lba <= self.blocks and blocks <= self.blocks - lba

    def _read(self, cdb: bytes) -> Answer:
        lba, blocks = extent(cdb)
        if not self._on_disk(lba, blocks):
            return failed(LBA_OUT_OF_RANGE)
        return Answer(data=self.disk.read(lba * self.block_size, blocks * self.block_size))

    def _write(self, cdb: bytes, data: bytes) -> Answer:
        lba, blocks = extent(cdb)
        if self.disk.read_only:
            return failed(WRITE_PROTECTED)
        if not self._on_disk(lba, blocks):
            return failed(LBA_OUT_OF_RANGE)
        length = blocks * self.block_size
        if len(data) < length:
            return failed(INVALID_FIELD)
        self.disk.write(lba * self.block_size, data[:length])
        if cdb[1] & 0x08 and cdb[0] != WRITE_6:  # FUA
            self.disk.flush()
        return Answer(taken=length)

    def _inquiry(self, cdb: bytes) -> Answer:
        """SPC-4, 6.6 and 7.8."""
        length = int.from_bytes(cdb[3:5], "big")
        if cdb[1] & 1:
            pages = {
                0x00: bytes([0x00, 0x80, 0x83, 0xB0, 0xB2]),
                0x80: self.serial,
                # One designator: a vendor's own, in ASCII.
                0x83: bytes([0x02, 0x00, 0x00, len(self.serial)]) + self.serial,
                0xB0: bytes(60),
                0xB2: bytes(4),
            }
            if cdb[2] not in pages:
                return failed(INVALID_FIELD)
            body = pages[cdb[2]]
            return Answer(data=(struct.pack(">BBH", 0, cdb[2], len(body)) + body)[:length])
        if cdb[2]:
            return failed(INVALID_FIELD)
        # Direct access, SPC-3, response format 2 with HiSup, command queuing.
        head = bytes([0x00, 0x00, 0x05, 0x12, 31, 0x00, 0x00, 0x02])
        return Answer(data=(head + b"IOSIM   " + b"VIRTIO DISK     " + b"1.0 ")[:length])

    def _mode_sense(self, cdb: bytes) -> Answer:
        """SPC-4, 6.11; the caching page (SBC-3, 6.4.5) with the write cache on."""
        page = cdb[2] & 0x3F
        if page not in (0x08, 0x3F) or cdb[3] not in (0x00, 0xFF):
            return failed(INVALID_FIELD)
        # Only the write cache's bit could be changed, and MODE SELECT does not exist: nothing is changeable.
        values = bytes([0x08, 18, 0x04 if cdb[2] >> 6 != 1 else 0]) + bytes(17)
        flags = 0x80 if self.disk.read_only else 0x10  # WP, or DPOFUA
        if cdb[0] == MODE_SENSE_6:
            return Answer(data=(bytes([3 + len(values), 0, flags, 0]) + values)[: cdb[4]])
        reply = struct.pack(">HBB4x", 6 + len(values), 0, flags) + values
        return Answer(data=reply[: int.from_bytes(cdb[7:9], "big")])


def no_unit(cdb: bytes) -> Answer:
    """Answer for a logical unit that a target does not have (SPC-4, 5.12.3; QEMU ``target_command``)."""
    if cdb[:1] == bytes([INQUIRY]):
        # Peripheral qualifier 3: this target has no unit of that number.
        return Answer(data=(bytes([0x7F, 0, 0x05, 0x02, 31]) + bytes(31))[: int.from_bytes(cdb[3:5], "big")])
    if cdb[:1] == bytes([REQUEST_SENSE]):
        return Answer(data=LUN_NOT_SUPPORTED.pack()[: cdb[4]])
    return failed(LUN_NOT_SUPPORTED)


def luns_reported(cdb: bytes, luns: list[int]) -> Answer:
    """Answer REPORT LUNS (SPC-4, 6.33) with these numbers."""
    length = int.from_bytes(cdb[6:10], "big")
    if length < 16 or cdb[2] > 2:
        return failed(INVALID_FIELD)
    entries = b"".join(struct.pack(">H6x", lun if lun < 256 else 0x4000 | lun) for lun in luns)
    return Answer(data=(struct.pack(">I4x", len(entries)) + entries)[:length])
