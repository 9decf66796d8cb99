"""A small driver for a virtio block device, over any driver's side of a ring (virtio 1.2, section 5.2).

Requests are plain: `read`, `write`, `flush`, `get_id` run one and wait. `submit` and `collect` keep many in
flight. It is here to drive real devices; it has no time and no costs.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Final, NamedTuple

from iosim.ring.errors import NoSpaceError
from iosim.ring.memory import allocate, read_bytes, write_bytes
from iosim.ring.virtqueue import Buffer
from iosim.vhost_user.errors import BlockRequestError, HungError, NotSharedError
from iosim.vhost_user.frontend import Frontend, FrontendQueue
from iosim.virtio.blk import (
    VIRTIO_BLK_ID_BYTES,
    VIRTIO_BLK_S_IOERR,
    VIRTIO_BLK_S_OK,
    VIRTIO_BLK_S_UNSUPP,
    VIRTIO_BLK_T_FLUSH,
    VIRTIO_BLK_T_GET_ID,
    VIRTIO_BLK_T_IN,
    VIRTIO_BLK_T_OUT,
    BlkHdr,
)
from iosim.virtio.disk import SECTOR_SIZE

_FAILURES: Final = {VIRTIO_BLK_S_IOERR: "IOERR", VIRTIO_BLK_S_UNSUPP: "UNSUPP"}
#: What stands in the status byte until an answer came.
_NO_STATUS: Final = 0xFF


class Done(NamedTuple):
    """A request that came back."""

    #: What `BlkDriver.submit` was given.
    data: object
    #: The status byte: 0 is OK.
    status: int
    #: Bytes the device says it wrote, the status byte included.
    length: int
    #: What was read.
    content: bytes


class _Slot(NamedTuple):
    header: int
    payload: int
    status: int


class BlkDriver:
    """Drives one queue of a block device.

    Args:
        frontend: Its connection; memory is shared already.
        queue: The queue.
        slots: Requests in flight at most.
        slot_bytes: Bytes of data a request has at most.
        segments: Pieces into which the data of a request is cut, each a descriptor of its own.
    """

    def __init__(
        self, frontend: Frontend, queue: FrontendQueue, slots: int = 16, slot_bytes: int = 65536, segments: int = 1
    ) -> None:
        mem = frontend.mem
        if mem is None:
            raise NotSharedError("share guest memory before driving a queue in it")
        self.frontend = frontend
        self.mem = mem
        self.queue = queue
        self.timeout = frontend.channel.timeout
        self.segments = segments
        self.slot_bytes = slot_bytes
        self._slots = [
            _Slot(allocate(mem, 16, 16), allocate(mem, slot_bytes, 512), allocate(mem, 1, 1)) for _ in range(slots)
        ]

    def capacity(self) -> int:
        """Return the disk's size in bytes, from its configuration space (5.2.4)."""
        return int.from_bytes(self.frontend.get_config(0, 8), "little") * SECTOR_SIZE

    @property
    def free_slots(self) -> int:
        """Requests that can be submitted now."""
        return len(self._slots)

    def submit(
        self,
        kind: int,
        sector: int = 0,
        payload: bytes = b"",
        read: int = 0,
        data: object = None,
        indirect: bool | None = None,
    ) -> None:
        """Make a request available without telling the device.

        Args:
            kind: VIRTIO_BLK_T_*.
            sector: First sector.
            payload: Bytes to write.
            read: Bytes to read.
            data: What `collect` gives back with it.
            indirect: Whether to put the chain into an indirect table; by default wherever that was negotiated.

        Raises:
            BlockRequestError: There is more data than a slot has bytes.
            NoSpaceError: All slots are in flight, or the ring has no room.
        """
        if max(len(payload), read) > self.slot_bytes:
            raise BlockRequestError(f"a request of {max(len(payload), read)} bytes; slots have {self.slot_bytes}")
        if not self._slots:
            raise NoSpaceError("all slots are in flight; collect some first")
        slot = self._slots.pop()
        write_bytes(self.mem, slot.header, BlkHdr(kind, 0, sector).pack())
        write_bytes(self.mem, slot.payload, payload)
        self.mem.u8[slot.status] = _NO_STATUS
        out_sg = [Buffer(slot.header, 16), *self._pieces(slot.payload, len(payload))]
        in_sg = [*self._pieces(slot.payload, read), Buffer(slot.status, 1)]
        try:
            self.queue.driver.add(out_sg, in_sg, (slot, read, data), indirect)
        except BaseException:
            self._slots.append(slot)
            raise

    def _pieces(self, addr: int, length: int) -> list[Buffer]:
        """Cut a buffer into `segments` pieces of whole sectors, the last one with what is left."""
        pieces = []
        step = max(SECTOR_SIZE, length // self.segments // SECTOR_SIZE * SECTOR_SIZE)
        for i in range(self.segments):
            take = length if i == self.segments - 1 else min(step, length)
            if take:
                pieces.append(Buffer(addr, take))
            addr, length = addr + take, length - take
        return pieces

    def collect(self) -> Done | None:
        """Take a request that came back, or None."""
        used = self.queue.driver.get_buf()
        if used is None:
            return None
        slot, read, data = used.data
        content = read_bytes(self.mem, slot.payload, read)
        status = self.mem.u8[slot.status]
        self._slots.append(slot)
        return Done(data, status, used.length, content)

    def collect_all(self, count: int, found: Callable[[Done], object]) -> None:
        """Wait for ``count`` requests, as an interrupt handler does: re-arm, look once more, then sleep.

        Raises:
            HungError: The device does not come up with them in the front end's time.
        """
        left = count
        driver = self.queue.driver
        while left:
            driver.disable_cb()
            while left and (done := self.collect()) is not None:
                left -= 1
                found(done)
            if left and driver.enable_cb() and not self.queue.wait(self.timeout):
                raise HungError(f"{left} of {count} requests did not come back in {self.timeout:g} s")
        driver.enable_cb()

    def run(
        self, kind: int, sector: int = 0, payload: bytes = b"", read: int = 0, indirect: bool | None = None
    ) -> bytes:
        """Run one request; return what was read.

        Raises:
            BlockRequestError: The device answered IOERR or UNSUPP.
            HungError: It did not answer.
        """
        results: list[Done] = []
        self.submit(kind, sector, payload, read, indirect=indirect)
        self.queue.kick()
        self.collect_all(1, results.append)
        if results[0].status != VIRTIO_BLK_S_OK:
            name = _FAILURES.get(results[0].status, str(results[0].status))
            raise BlockRequestError(f"request {kind} at sector {sector} was answered {name}")
        return results[0].content

    def read(self, sector: int, length: int, indirect: bool | None = None) -> bytes:
        """Return ``length`` bytes from ``sector`` on."""
        return self.run(VIRTIO_BLK_T_IN, sector, read=length, indirect=indirect)

    def write(self, sector: int, payload: bytes, indirect: bool | None = None) -> None:
        """Write whole sectors."""
        self.run(VIRTIO_BLK_T_OUT, sector, payload, indirect=indirect)

    def flush(self) -> None:
        """Have everything written stand on the disk."""
        self.run(VIRTIO_BLK_T_FLUSH)

    def get_id(self) -> str:
        """Return the disk's serial number."""
        return self.run(VIRTIO_BLK_T_GET_ID, read=VIRTIO_BLK_ID_BYTES).split(b"\0")[0].decode("ascii", "replace")
