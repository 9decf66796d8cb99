"""The SCSI host: formats of its requests, and a device that serves them (virtio 1.2, 5.6; QEMU ``virtio-scsi.c``).

Queue 0 takes task management, queue 1 gives events, the others take commands. What a logical unit answers is the
business of `iosim.virtio.scsi_disk`; commands are done as they come, so that none is ever there to be aborted.

Example:
    >>> from iosim.ring.memory import GuestMemory
    >>> from iosim.virtio.disk import MemoryDisk
    >>> from iosim.virtio.scsi_disk import ScsiDisk, read_capacity_10
    >>> from iosim.virtio.transport import Driver
    >>> device = ScsiDevice({(0, 0): ScsiDisk(MemoryDisk(64 * 512))})
    >>> driver = Driver(device, GuestMemory(1 << 20))
    >>> reply = driver.request(REQUESTQ, *request_cmd(read_capacity_10(), in_size=8))
    >>> CmdResp.unpack(reply).response == VIRTIO_SCSI_S_OK, reply[108:].hex(" ", 4)
    (True, '0000003f 00000200')
"""

from __future__ import annotations

import struct
from collections.abc import Mapping
from typing import ClassVar, Final, NamedTuple

from iosim.errors import IosimError
from iosim.ring.errors import RingError
from iosim.ring.virtqueue import DeviceSide, Element
from iosim.virtio import features as f
from iosim.virtio.device import RING_FEATURES, VirtioDevice
from iosim.virtio.disk import SECTOR_SIZE
from iosim.virtio.errors import FormatError, RequestError
from iosim.virtio.ids import VIRTIO_ID_SCSI
from iosim.virtio.scsi_disk import REPORT_LUNS, ScsiDisk, luns_reported, no_unit, transfer

#: Queue indexes (5.6.2); further request queues follow.
CONTROLQ: Final = 0
EVENTQ: Final = 1
REQUESTQ: Final = 2

#: Bytes of a CDB and of sense data unless the driver writes otherwise (5.6.4).
VIRTIO_SCSI_CDB_DEFAULT_SIZE: Final = 32
VIRTIO_SCSI_SENSE_DEFAULT_SIZE: Final = 96

#: `response` (5.6.6.1, 5.6.6.2).
VIRTIO_SCSI_S_OK: Final = 0
VIRTIO_SCSI_S_OVERRUN: Final = 1
VIRTIO_SCSI_S_ABORTED: Final = 2
VIRTIO_SCSI_S_BAD_TARGET: Final = 3
VIRTIO_SCSI_S_RESET: Final = 4
VIRTIO_SCSI_S_BUSY: Final = 5
VIRTIO_SCSI_S_TRANSPORT_FAILURE: Final = 6
VIRTIO_SCSI_S_TARGET_FAILURE: Final = 7
VIRTIO_SCSI_S_NEXUS_FAILURE: Final = 8
VIRTIO_SCSI_S_FAILURE: Final = 9
VIRTIO_SCSI_S_FUNCTION_COMPLETE: Final = 0
VIRTIO_SCSI_S_FUNCTION_SUCCEEDED: Final = 10
VIRTIO_SCSI_S_FUNCTION_REJECTED: Final = 11
VIRTIO_SCSI_S_INCORRECT_LUN: Final = 12

#: Types of control requests (5.6.6.2).
VIRTIO_SCSI_T_TMF: Final = 0
VIRTIO_SCSI_T_AN_QUERY: Final = 1
VIRTIO_SCSI_T_AN_SUBSCRIBE: Final = 2
#: Task management functions.
VIRTIO_SCSI_T_TMF_ABORT_TASK: Final = 0
VIRTIO_SCSI_T_TMF_ABORT_TASK_SET: Final = 1
VIRTIO_SCSI_T_TMF_CLEAR_ACA: Final = 2
VIRTIO_SCSI_T_TMF_CLEAR_TASK_SET: Final = 3
VIRTIO_SCSI_T_TMF_I_T_NEXUS_RESET: Final = 4
VIRTIO_SCSI_T_TMF_LOGICAL_UNIT_RESET: Final = 5
VIRTIO_SCSI_T_TMF_QUERY_TASK: Final = 6
VIRTIO_SCSI_T_TMF_QUERY_TASK_SET: Final = 7

#: Events (5.6.6.3), and the flag that says that some were lost.
VIRTIO_SCSI_T_EVENTS_MISSED: Final = 0x80000000
VIRTIO_SCSI_T_NO_EVENT: Final = 0
VIRTIO_SCSI_T_TRANSPORT_RESET: Final = 1
VIRTIO_SCSI_T_ASYNC_NOTIFY: Final = 2
VIRTIO_SCSI_T_PARAM_CHANGE: Final = 3
#: `reason` of a transport reset.
VIRTIO_SCSI_EVT_RESET_HARD: Final = 0
VIRTIO_SCSI_EVT_RESET_RESCAN: Final = 1
VIRTIO_SCSI_EVT_RESET_REMOVED: Final = 2

_REQ: Final = struct.Struct("<8sQBBB")
_RESP: Final = struct.Struct("<IIHBB")
_TMF: Final = struct.Struct("<II8sQ")
_AN: Final = struct.Struct("<I8sI")
_EVENT: Final = struct.Struct("<I8sI")
_CONFIG: Final = struct.Struct("<IIIIIIIHHI")
#: Where `sense_size` and `cdb_size` stand, the only fields that are the driver's to write.
_SENSE_SIZE_OFFSET: Final = 20
_CDB_SIZE_OFFSET: Final = 24
#: The largest either may become; the specification sets no limit.
_SIZE_LIMIT: Final = 4096
#: Data of one command, in bytes: more is refused as QEMU's block layer would.
_DATA_MAX: Final = 1 << 26


def lun_bytes(target: int, lun: int = 0) -> bytes:
    """Return the 8 bytes by which a request names a logical unit (5.6.6.1).

    Raises:
        FormatError: There is no such address.
    """
    if not 0 <= target <= 255 or not 0 <= lun <= 16383:
        raise FormatError(f"target {target}, lun {lun}; virtio-scsi has targets 0 to 255 and luns 0 to 16383")
    return struct.pack(">BBH4x", 1, target, 0x4000 | lun)


def parse_lun(data: bytes) -> tuple[int, int] | None:
    """Return target and logical unit that 8 bytes name, or None if they name none (QEMU ``virtio_scsi_get_lun``)."""
    if data[0] != 1 or any(data[4:8]):
        return None
    # Peripheral addressing (as far as 255) or flat.
    if data[2] & 0xC0 != 0x40 and data[2]:
        return None
    return data[1], int.from_bytes(data[2:4], "big") & 0x3FFF


class CmdResp(NamedTuple):
    """`struct virtio_scsi_cmd_resp` (5.6.6.1): 12 bytes, then sense data; little-endian."""

    #: Bytes of sense data.
    sense_len: int = 0
    #: Bytes of data that were expected and not moved.
    residual: int = 0
    status_qualifier: int = 0
    #: SCSI status.
    status: int = 0
    #: VIRTIO_SCSI_S_*.
    response: int = VIRTIO_SCSI_S_OK
    sense: bytes = b""

    def pack(self, sense_size: int = VIRTIO_SCSI_SENSE_DEFAULT_SIZE) -> bytes:
        """Return 12 bytes and ``sense_size`` bytes of sense data, padded with zeroes.

        Raises:
            FormatError: A field does not fit.
        """
        try:
            head = _RESP.pack(*self[:5])
        except struct.error as error:
            raise FormatError(f"a virtio-scsi response cannot hold {self}: {error}") from None
        return head + self.sense[:sense_size].ljust(sense_size, b"\0")

    @classmethod
    def unpack(cls, data: bytes) -> CmdResp:
        """Return the response at the start of ``data``, with as much sense data as it says.

        Raises:
            FormatError: There are fewer than 12 bytes.
        """
        if len(data) < _RESP.size:
            raise FormatError(f"a virtio-scsi response has {_RESP.size} bytes at least, not {len(data)}")
        length, residual, qualifier, status, response = _RESP.unpack_from(data)
        return cls(length, residual, qualifier, status, response, data[_RESP.size : _RESP.size + length])


def request_cmd(
    cdb: bytes,
    data: bytes = b"",
    in_size: int = 0,
    target: int = 0,
    lun: int = 0,
    tag: int = 0,
    cdb_size: int = VIRTIO_SCSI_CDB_DEFAULT_SIZE,
    sense_size: int = VIRTIO_SCSI_SENSE_DEFAULT_SIZE,
) -> tuple[bytes, int]:
    """Return a command: the bytes that the device reads, and how many it writes."""
    head = _REQ.pack(lun_bytes(target, lun), tag, 0, 0, 0)
    return head + cdb.ljust(cdb_size, b"\0") + data, _RESP.size + sense_size + in_size


def request_tmf(subtype: int, target: int = 0, lun: int = 0, tag: int = 0) -> tuple[bytes, int]:
    """Return a task management request; one byte comes back."""
    return _TMF.pack(VIRTIO_SCSI_T_TMF, subtype, lun_bytes(target, lun), tag), 1


def request_an(type_: int, target: int = 0, lun: int = 0, events: int = 0) -> tuple[bytes, int]:
    """Return a query of, or subscription to, asynchronous notifications; 5 bytes come back."""
    return _AN.pack(type_, lun_bytes(target, lun), events), 5


class ScsiEvent(NamedTuple):
    """`struct virtio_scsi_event` (5.6.6.3), 16 bytes."""

    #: VIRTIO_SCSI_T_*, with VIRTIO_SCSI_T_EVENTS_MISSED if some were lost.
    event: int
    lun: bytes
    reason: int

    def pack(self) -> bytes:
        """Return the 16 bytes."""
        return _EVENT.pack(*self)

    @classmethod
    def unpack(cls, data: bytes) -> ScsiEvent:
        """Return the event at the start of ``data``.

        Raises:
            FormatError: There are fewer than 16 bytes.
        """
        if len(data) < _EVENT.size:
            raise FormatError(f"a virtio-scsi event has {_EVENT.size} bytes, not {len(data)}")
        return cls._make(_EVENT.unpack_from(data))


class ScsiDevice(VirtioDevice):
    """A SCSI host.

    Args:
        units: Its logical units by (target, lun).
        num_queues: Request queues, from 1.
        ring_features: See `VirtioDevice`.

    Raises:
        IosimError: A unit's address or the number of queues will not do.
    """

    device_id: ClassVar[int] = VIRTIO_ID_SCSI

    def __init__(
        self,
        units: Mapping[tuple[int, int], ScsiDisk],
        num_queues: int = 1,
        ring_features: int = RING_FEATURES,
    ) -> None:
        if not 1 <= num_queues <= 1024:
            raise IosimError(f"a SCSI host with {num_queues} request queues; choose 1 to 1024")
        for target, lun in units:
            lun_bytes(target, lun)
        offered = 1 << f.VIRTIO_SCSI_F_HOTPLUG | 1 << f.VIRTIO_SCSI_F_CHANGE
        super().__init__(offered, REQUESTQ + num_queues, ring_features)
        self.units = dict(units)
        self._reset()

    def _reset(self) -> None:
        self.sense_size = VIRTIO_SCSI_SENSE_DEFAULT_SIZE
        self.cdb_size = VIRTIO_SCSI_CDB_DEFAULT_SIZE
        self._missed = False

    def config(self) -> bytes:
        """Return `struct virtio_scsi_config` (5.6.4), 36 bytes."""
        return _CONFIG.pack(
            self.num_queues - REQUESTQ,
            126,  # seg_max
            0xFFFF,  # max_sectors
            128,  # cmd_per_lun
            _EVENT.size,
            self.sense_size,
            self.cdb_size,
            0,  # max_channel
            255,  # max_target
            16383,  # max_lun
        )

    def _write_config(self, offset: int, data: bytes) -> None:
        # QEMU virtio_scsi_set_config: a size of 0, or too large, is the driver's mistake. Here it is ignored.
        if len(data) != 4:
            return
        value = int.from_bytes(data, "little")
        if offset == _SENSE_SIZE_OFFSET and 0 < value <= _SIZE_LIMIT:
            self.sense_size = value
        elif offset == _CDB_SIZE_OFFSET and 0 < value <= _SIZE_LIMIT:
            self.cdb_size = value

    def _handle(self, index: int, queue: DeviceSide, budget: int | None) -> None:
        if index == EVENTQ:
            if self._missed:
                self._event(VIRTIO_SCSI_T_NO_EVENT, bytes(8), 0)
            return
        answer = self._answer_control if index == CONTROLQ else self._answer_command
        self._serve(index, queue, lambda element: answer(index, element), budget)

    # Commands, 5.6.6.1.

    def _answer_command(self, index: int, element: Element) -> int:
        """Execute a command (QEMU ``virtio_scsi_handle_cmd_req_prepare``)."""
        head, tail = _REQ.size + self.cdb_size, _RESP.size + self.sense_size
        if element.out_size < head or element.in_size < tail:
            raise RequestError(
                f"queue {index}: wrong size for virtio-scsi headers: {element.out_size} bytes to read, "
                f"{element.in_size} to write; at least {head} and {tail}"
            )
        data_out, data_in = element.out_size - head, element.in_size - tail
        if data_out and data_in:
            # 5.6.6.1: both only with INOUT, which is not offered.
            return self._respond(element, CmdResp(response=VIRTIO_SCSI_S_FAILURE), b"")
        if max(data_out, data_in) > _DATA_MAX:
            return self._respond(element, CmdResp(response=VIRTIO_SCSI_S_FAILURE), b"")
        request = element.read(0, head)
        address = parse_lun(_REQ.unpack_from(request)[0])
        if address is None or not any(target == address[0] for target, _ in self.units):
            return self._respond(element, CmdResp(response=VIRTIO_SCSI_S_BAD_TARGET), b"")
        cdb = request[_REQ.size :].ljust(16, b"\0")
        unit = self.units.get(address)
        wanted_out, wanted_in = transfer(cdb, unit.block_size if unit else SECTOR_SIZE)
        if wanted_out > data_out or wanted_in > data_in:
            return self._respond(element, CmdResp(response=VIRTIO_SCSI_S_OVERRUN), b"")
        if cdb[0] == REPORT_LUNS:
            # Any unit, even one that is not there, speaks for the target (SPC-4, 6.33).
            answer = luns_reported(cdb, sorted({lun for target, lun in self.units if target == address[0]} | {0}))
        elif unit is None:
            answer = no_unit(cdb)
        else:
            answer = unit.execute(cdb, element.read(head, wanted_out))
        moved = answer.taken if data_out else len(answer.data)
        response = CmdResp(
            sense_len=min(len(answer.sense), self.sense_size),
            residual=max(data_out, data_in) - moved,
            status=answer.status,
            sense=answer.sense,
        )
        return self._respond(element, response, answer.data)

    def _respond(self, element: Element, response: CmdResp, data: bytes) -> int:
        return element.write(response.pack(self.sense_size) + data)

    # Control, 5.6.6.2.

    def _answer_control(self, index: int, element: Element) -> int:
        """Do a control request (QEMU ``virtio_scsi_handle_ctrl_req``)."""
        kind = int.from_bytes(element.read(0, 4), "little") if element.out_size >= 4 else -1
        if kind == VIRTIO_SCSI_T_TMF:
            self._enough(index, element, _TMF.size, 1)
            _, subtype, lun, _ = _TMF.unpack(element.read(0, _TMF.size))
            return element.write(bytes([self._manage(subtype, parse_lun(lun))]))
        if kind in (VIRTIO_SCSI_T_AN_QUERY, VIRTIO_SCSI_T_AN_SUBSCRIBE):
            self._enough(index, element, _AN.size, 5)
            # No asynchronous notifications: of what was asked for, nothing (as QEMU).
            return element.write(struct.pack("<IB", 0, VIRTIO_SCSI_S_OK))
        self._enough(index, element, 4, 1)
        # An unknown type: QEMU gives it back untouched. One byte that says no is kinder.
        return element.write(bytes([VIRTIO_SCSI_S_FUNCTION_REJECTED]))

    def _enough(self, index: int, element: Element, out: int, in_: int) -> None:
        if element.out_size < out or element.in_size < in_:
            raise RequestError(
                f"queue {index}: wrong size for virtio-scsi headers: {element.out_size} bytes to read, "
                f"{element.in_size} to write; at least {out} and {in_}"
            )

    def _manage(self, subtype: int, address: tuple[int, int] | None) -> int:
        """Answer a task management function; commands are done as they come, so that there is none to abort."""
        if address is None or not any(target == address[0] for target, _ in self.units):
            return VIRTIO_SCSI_S_BAD_TARGET
        if subtype == VIRTIO_SCSI_T_TMF_I_T_NEXUS_RESET:
            return VIRTIO_SCSI_S_FUNCTION_COMPLETE
        if subtype in (VIRTIO_SCSI_T_TMF_CLEAR_ACA,) or subtype > VIRTIO_SCSI_T_TMF_QUERY_TASK_SET:
            return VIRTIO_SCSI_S_FUNCTION_REJECTED
        if address not in self.units:
            return VIRTIO_SCSI_S_INCORRECT_LUN
        # FUNCTION_SUCCEEDED would say that the queried task is there.
        return VIRTIO_SCSI_S_FUNCTION_COMPLETE

    # Events, 5.6.6.3.

    def plug(self, target: int, lun: int, unit: ScsiDisk) -> list[int]:
        """Add a logical unit and tell the driver to look; return the queues to interrupt.

        Raises:
            FormatError: There is no such address.
        """
        where = lun_bytes(target, lun)
        self.units[target, lun] = unit
        return self._tell(f.VIRTIO_SCSI_F_HOTPLUG, VIRTIO_SCSI_T_TRANSPORT_RESET, where, VIRTIO_SCSI_EVT_RESET_RESCAN)

    def unplug(self, target: int, lun: int) -> list[int]:
        """Take a logical unit away and tell the driver; return the queues to interrupt.

        Raises:
            FormatError: There is no such address.
        """
        where = lun_bytes(target, lun)
        self.units.pop((target, lun), None)
        return self._tell(f.VIRTIO_SCSI_F_HOTPLUG, VIRTIO_SCSI_T_TRANSPORT_RESET, where, VIRTIO_SCSI_EVT_RESET_REMOVED)

    def capacity_changed(self, target: int, lun: int) -> list[int]:
        """Take over a disk's new size and tell the driver; return the queues to interrupt.

        Raises:
            FormatError: There is no such address.
        """
        where = lun_bytes(target, lun)
        unit = self.units.get((target, lun))
        if unit is not None:
            unit.blocks = unit.disk.size // unit.block_size
        # The reason is a sense code: "capacity data has changed", asc 2Ah, ascq 09h.
        return self._tell(f.VIRTIO_SCSI_F_CHANGE, VIRTIO_SCSI_T_PARAM_CHANGE, where, 0x2A | 0x09 << 8)

    def _tell(self, feature: int, event: int, lun: bytes, reason: int) -> list[int]:
        if self.status.running and self.has(feature) and EVENTQ in self.queues:
            try:
                self._event(event, lun, reason)
            except (RingError, RequestError) as error:
                self._break(error)
        return self._interrupts()

    def _event(self, event: int, lun: bytes, reason: int) -> None:
        """Put an event into a buffer, or note that one was lost (QEMU ``virtio_scsi_push_event``)."""
        element = self.queues[EVENTQ].pop()
        if element is None:
            self._missed = True
            return
        if element.in_size < _EVENT.size:
            raise RequestError(f"queue {EVENTQ}: wrong size for virtio-scsi headers: {element.in_size} bytes to write")
        if self._missed:
            event |= VIRTIO_SCSI_T_EVENTS_MISSED
            self._missed = False
        self._push(EVENTQ, element, element.write(ScsiEvent(event, lun, reason).pack()))
