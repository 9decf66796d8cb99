"""The traditional memory balloon: its requests, the device, and what Linux's driver does (virtio 1.2, 5.5).

The host asks for pages by writing `num_pages`; the driver allocates pages, names them to the device on the inflate
queue, and writes `actual`. Page numbers count 4096 bytes whatever the guest's page size is.

Example (a guest of 512 MiB, shrunk to 256 MiB as the monitor's ``balloon 256`` does):
    >>> from iosim.ring.memory import GuestMemory
    >>> from iosim.virtio.transport import Driver
    >>> device = BalloonDevice(ram=512 << 20)
    >>> guest = BalloonDriver(Driver(device, GuestMemory(1 << 20)), free=range(20_000, 120_000))
    >>> device.set_target(256 << 20)
    >>> guest.work(), guest.requests, device.actual >> 20, device.ballooned
    (65536, 256, 256, 65536)
"""

from __future__ import annotations

import struct
from collections.abc import Iterable
from typing import ClassVar, Final

from iosim.errors import IosimError
from iosim.ring.virtqueue import DeviceSide, Element
from iosim.virtio import features as f
from iosim.virtio.device import RING_FEATURES, VirtioDevice
from iosim.virtio.errors import FormatError, RequestError
from iosim.virtio.ids import VIRTIO_ID_BALLOON
from iosim.virtio.transport import Driver

#: Queue indexes (5.5.2).
INFLATEQ: Final = 0
DEFLATEQ: Final = 1
STATSQ: Final = 2

#: A page frame number times this is an address (5.5.6).
VIRTIO_BALLOON_PFN_SHIFT: Final = 12
#: Pages that Linux's driver puts into one request.
VIRTIO_BALLOON_ARRAY_PFNS_MAX: Final = 256

#: Tags of statistics (5.5.6.3): name by number.
STATISTICS: Final[dict[int, str]] = {
    0: "VIRTIO_BALLOON_S_SWAP_IN",
    1: "VIRTIO_BALLOON_S_SWAP_OUT",
    2: "VIRTIO_BALLOON_S_MAJFLT",
    3: "VIRTIO_BALLOON_S_MINFLT",
    4: "VIRTIO_BALLOON_S_MEMFREE",
    5: "VIRTIO_BALLOON_S_MEMTOT",
    6: "VIRTIO_BALLOON_S_AVAIL",
    7: "VIRTIO_BALLOON_S_CACHES",
    8: "VIRTIO_BALLOON_S_HTLB_PGALLOC",
    9: "VIRTIO_BALLOON_S_HTLB_PGFAIL",
}

_STAT: Final = struct.Struct("<HQ")
_CONFIG: Final = struct.Struct("<II")
_ACTUAL_OFFSET: Final = 4
#: Page numbers are read in pieces of this many bytes.
_PIECE: Final = 1 << 14
#: Statistics read from one buffer at most; there are ten.
_MAX_STATISTICS: Final = 64


def request_pages(pfns: Iterable[int]) -> tuple[bytes, int]:
    """Return a request for the inflate or the deflate queue: page numbers to read, nothing to write.

    Raises:
        FormatError: A number does not fit into 32 bits.
    """
    numbers = list(pfns)
    try:
        return struct.pack(f"<{len(numbers)}I", *numbers), 0
    except struct.error as error:
        raise FormatError(f"page numbers have 32 bits: {error}") from None


def pack_statistics(values: dict[int, int]) -> bytes:
    """Return statistics as the driver gives them: 10 bytes each, without padding (5.5.6.3).

    Raises:
        FormatError: A tag or value does not fit.
    """
    try:
        return b"".join(_STAT.pack(tag, value) for tag, value in values.items())
    except struct.error as error:
        raise FormatError(f"a statistic has a tag of 16 bits and a value of 64: {error}") from None


def unpack_statistics(data: bytes) -> dict[int, int]:
    """Return statistics by tag; what does not fill one at the end is left out, and the last of a tag counts."""
    return dict(_STAT.iter_unpack(data[: len(data) // _STAT.size * _STAT.size]))


class BalloonDevice(VirtioDevice):
    """A memory balloon (QEMU ``hw/virtio/virtio-balloon.c``) over a model of which pages the guest has.

    FREE_PAGE_HINT, REPORTING and PAGE_POISON are not offered.

    Args:
        ram: The guest's memory in bytes, a multiple of 4096.
        deflate_on_oom: Whether to offer DEFLATE_ON_OOM.
        must_tell_host: Whether to offer MUST_TELL_HOST.
        ring_features: See `VirtioDevice`.

    Attributes:
        ballooned: Pages that are in the balloon.
        bad_pfns: Page numbers that name no page of the guest; ignored, as QEMU does.
        statistics: What the driver reported last, by tag.
        reports: Reports that came.

    Raises:
        IosimError: The size is none that a guest can have.
    """

    device_id: ClassVar[int] = VIRTIO_ID_BALLOON

    def __init__(
        self,
        ram: int,
        deflate_on_oom: bool = False,
        must_tell_host: bool = False,
        ring_features: int = RING_FEATURES,
    ) -> None:
        if ram <= 0 or ram % (1 << VIRTIO_BALLOON_PFN_SHIFT) or ram >> VIRTIO_BALLOON_PFN_SHIFT > 0xFFFFFFFF:
            raise IosimError(f"a guest of {ram} bytes; choose a multiple of 4096 below 16 TiB")
        offered = 1 << f.VIRTIO_BALLOON_F_STATS_VQ
        offered |= deflate_on_oom << f.VIRTIO_BALLOON_F_DEFLATE_ON_OOM
        offered |= must_tell_host << f.VIRTIO_BALLOON_F_MUST_TELL_HOST
        super().__init__(offered, 3, ring_features)
        self.ram = ram
        self.pages = ram >> VIRTIO_BALLOON_PFN_SHIFT
        self.num_pages = 0
        self._reset()

    def _reset(self) -> None:
        # 5.5.5: what was in the balloon is the guest's again. The host's wish stays.
        self._in_balloon = bytearray(self.pages)
        self.ballooned = 0
        self.bad_pfns = 0
        self.actual_pages = 0
        self.statistics: dict[int, int] = {}
        self.reports = 0
        self._report: Element | None = None

    def _queue_changed(self, index: int) -> None:
        if index == STATSQ:
            self._report = None

    @property
    def actual(self) -> int:
        """Bytes that the guest has left, as it says itself (QEMU's ``info balloon``)."""
        return self.ram - (self.actual_pages << VIRTIO_BALLOON_PFN_SHIFT)

    def owns(self, pfn: int) -> bool:
        """Tell whether a page is the guest's: it exists, and is not in the balloon."""
        return 0 <= pfn < self.pages and not self._in_balloon[pfn]

    def set_target(self, size: int) -> None:
        """Ask the guest to make do with ``size`` bytes (the monitor's ``balloon``); more than it has means all."""
        self.num_pages = max(0, self.ram - size) >> VIRTIO_BALLOON_PFN_SHIFT
        self._config_changed()

    def config(self) -> bytes:
        """Return `struct virtio_balloon_config` without what belongs to features not offered: 8 bytes."""
        return _CONFIG.pack(self.num_pages, self.actual_pages)

    def _write_config(self, offset: int, data: bytes) -> None:
        if offset == _ACTUAL_OFFSET and len(data) == 4:
            # More than there are pages would make `actual` negative.
            self.actual_pages = min(int.from_bytes(data, "little"), self.pages)

    def _handle(self, index: int, queue: DeviceSide, budget: int | None) -> None:
        if index == STATSQ:
            self._take_report(queue)
        else:
            self._serve(index, queue, lambda element: self._move(index, element), budget)

    def _move(self, index: int, element: Element) -> int:
        """Take pages from the guest, or give them back (QEMU ``virtio_balloon_handle_output``)."""
        length = element.out_size // 4 * 4
        if length > 4 * self.pages:
            raise RequestError(f"queue {index}: a request of {length // 4} pages; the guest has {self.pages}")
        wanted = int(index == INFLATEQ)
        for offset in range(0, length, _PIECE):
            for (pfn,) in struct.iter_unpack("<I", element.read(offset, min(_PIECE, length - offset))):
                if pfn >= self.pages:
                    self.bad_pfns += 1
                elif self._in_balloon[pfn] != wanted:
                    self._in_balloon[pfn] = wanted
                    self.ballooned += 1 if wanted else -1
        return 0

    def _take_report(self, queue: DeviceSide) -> None:
        """Read a report and keep its buffer until the next is wanted (QEMU ``virtio_balloon_receive_stats``)."""
        while (element := queue.pop()) is not None:
            if self._report is not None:
                # One buffer is all there should be (5.5.6.3); an older one goes back.
                self._push(STATSQ, self._report, 0)
            self._report = element
            data = element.read(0, _STAT.size * _MAX_STATISTICS)
            self.statistics = unpack_statistics(data)
            self.reports += 1

    def request_statistics(self) -> list[int]:
        """Ask for a report, by giving the buffer of the last one back; return the queues to interrupt."""
        if self.status.running and self._report is not None and self.has(f.VIRTIO_BALLOON_F_STATS_VQ):
            report, self._report = self._report, None
            self._push(STATSQ, report, 0)
        return self._interrupts()


class BalloonDriver:
    """What Linux's ``virtio_balloon`` does for its device's wishes, without time.

    Args:
        driver: The device, set up.
        free: Numbers of the pages that the guest can spare, in the order in which it gives them.

    Attributes:
        held: Pages in the balloon, the last given last.
        requests: Requests sent.
        config_reads, config_writes: Accesses to the configuration space.
    """

    def __init__(self, driver: Driver, free: Iterable[int]) -> None:
        self.driver = driver
        self.free = list(reversed(list(free)))
        self.held: list[int] = []
        self.requests = 0
        self.config_reads = 0
        self.config_writes = 0

    def step(self) -> int:
        """Move once towards the target, 256 pages at most (``update_balloon_size_func``).

        Returns:
            Pages moved into the balloon, negative out of it; 0 when there is nothing to do, or no page to spare.
        """
        device = self.driver.device
        target = int.from_bytes(device.read_config(0, 4), "little")
        self.config_reads += 1
        difference = max(-VIRTIO_BALLOON_ARRAY_PFNS_MAX, min(VIRTIO_BALLOON_ARRAY_PFNS_MAX, target - len(self.held)))
        source, destination = (self.free, self.held) if difference > 0 else (self.held, self.free)
        count = min(abs(difference), len(source))
        if not count:
            return 0
        pfns = [source.pop() for _ in range(count)]
        self.requests += 1
        self.driver.request(INFLATEQ if difference > 0 else DEFLATEQ, *request_pages(pfns))
        destination += pfns
        device.write_config(_ACTUAL_OFFSET, len(self.held).to_bytes(4, "little"))
        self.config_writes += 1
        return count if difference > 0 else -count

    def work(self) -> int:
        """Go on until the target is reached or no page is left to spare; return the pages moved, either way."""
        moved = 0
        while step := self.step():
            moved += abs(step)
        return moved
