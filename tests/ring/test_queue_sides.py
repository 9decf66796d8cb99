"""What does not fit a random walk: layouts, where queues begin, batches, tables of one's own, holes, real fences."""

from __future__ import annotations

import struct
from typing import Any

import pytest

from iosim.ring import errors
from iosim.ring import queue as rings
from iosim.ring.errors import (
    AddressError,
    IndirectError,
    MemoryFullError,
    NoSpaceError,
    NotInFlightError,
    NotInOrderError,
    SizeError,
    VringBaseError,
)
from iosim.ring.event import off_wrap, vring_packed_need_event
from iosim.ring.layout import packed_layout
from iosim.ring.memory import GuestMemory, allocate, fence, in_range, read_bytes, set_regions
from iosim.ring.queue import DeviceQueue, DriverQueue, new_queue, set_vring_base, state, vring_base
from iosim.ring.virtqueue import Buffer, DeviceSide, DriverSide, new_virtqueue

FORMATS = [False, True]
ONE = [Buffer(0x800, 4)]


@pytest.mark.parametrize("size", [1, 2, 3, 100, 32767, 32768])
def test_2_8_10_1_sizes_and_alignments_of_a_packed_queue(size: int) -> None:
    layout = packed_layout(size)
    assert (layout.desc_bytes, layout.avail_bytes, layout.used_bytes) == (16 * size, 4, 4)
    assert layout.avail_offset % 4 == layout.used_offset % 4 == 0
    assert layout.total == 16 * size + 8


@pytest.mark.parametrize("size", [-1, 0, 32769, 65536])
def test_2_8_a_packed_size_is_1_to_32768(size: int) -> None:
    with pytest.raises(SizeError, match="1 to 32768"):
        new_queue(GuestMemory(1 << 20), size, True, packed=True)


@pytest.mark.parametrize("side", [DriverQueue, DeviceQueue])
@pytest.mark.parametrize(
    ("desc", "avail", "used"),
    [(8, 1024, 2048), (0, 1026, 2048), (0, 1024, 2050), (-16, 1024, 2048), (0, 4096, 2048), (0, 1024, 4096)],
)
def test_2_8_11_packed_parts_are_aligned_and_in_memory(side: Any, desc: int, avail: int, used: int) -> None:
    with pytest.raises(AddressError):
        side(GuestMemory(4096), 5, desc, avail, used, True, True)


def test_2_8_13_2_8_14_bytes_of_a_packed_ring_by_hand() -> None:
    """Size 3, from the last slot of the first lap on: a chain across the end, its use, both event structures."""
    mem = GuestMemory(4096)
    driver, device = new_queue(mem, 3, event_idx=True, start=2, packed=True)
    driver.seg_addr[:], driver.seg_len[:] = [0x111, 0x222, 0x333], [1, 2, 3]
    assert rings.add(driver, 1, 1, 5) == 0
    ring = [struct.unpack("<QIHH", read_bytes(mem, driver.desc + 16 * slot, 16)) for slot in range(3)]
    assert ring[2] == (0x111, 1, 0, 0x0081), "AVAIL = wrap counter 1, NEXT"
    assert ring[0] == (0x222, 2, 0, 0x8002), "AVAIL = wrap counter 0, USED = 1, WRITE"
    assert rings.pop(device) == 0
    rings.push(device, 0, 2)
    assert struct.unpack("<QIHH", read_bytes(mem, driver.desc + 32, 16)) == (0x111, 2, 0, 0x8082)
    assert rings.get_used(driver) == 5
    rings.disable_cb(driver)
    assert read_bytes(mem, driver.avail, 4) == bytes.fromhex("00000100")
    rings.enable_cb(driver)
    assert read_bytes(mem, driver.avail, 4) == bytes.fromhex("01000200"), "slot 1, wrap counter 0, DESC"
    rings.set_notification(device, True)
    assert read_bytes(mem, driver.used, 4) == bytes.fromhex("01000200")
    rings.set_notification(device, False)
    assert read_bytes(mem, driver.used, 4) == bytes.fromhex("01000100")
    rings.add(driver, 1, 0, 6)
    rings.push(device, rings.pop(device), 0)
    assert struct.unpack("<QIHH", read_bytes(mem, driver.desc + 16, 16))[3] == 0, "used in lap 1, not written"


def test_2_8_10_a_packed_event_is_passed_exactly_once() -> None:
    for size in (1, 2, 3, 8):
        for event in range(2 * size):
            passed = [
                new
                for new in range(event, event + 2 * size + 1)
                if vring_packed_need_event(size, off_wrap(size, event), new, max(new - 1, 0)) and new > 0
            ]
            assert passed in ([event + 1], [event + 1, event + 1 + 2 * size])


@pytest.mark.parametrize("packed", FORMATS)
@pytest.mark.parametrize("event_idx", [False, True])
def test_2_7_10_2_8_10_suppression_really_suppresses(packed: bool, event_idx: bool) -> None:
    """A busy device is not kicked, a busy driver not interrupted; a batch costs one of each."""
    driver, device = new_virtqueue(GuestMemory(1 << 16), 64, event_idx, packed=packed)
    driver.disable_cb()
    device.set_notification(False)
    device.should_notify()
    for _ in range(10):
        driver.add(ONE, [])
        if event_idx and not packed:
            driver.kick_prepare()
            continue
        assert not driver.kick_prepare()
    for _ in range(10):
        element = device.pop()
        assert element is not None
        device.push(element, 0)
    assert not device.should_notify() or (event_idx and not packed)
    while driver.get_buf() is not None:
        pass
    device.set_notification(True)
    assert driver.enable_cb()
    device.should_notify()
    driver.kick_prepare()
    for n in range(8):
        driver.add(ONE, [], publish=n == 7)
    assert driver.kick_prepare()
    assert not driver.kick_prepare() or not event_idx
    for k, element in enumerate([device.pop() for _ in range(8)]):
        assert element is not None
        device.fill(element, 0, k)
    device.flush(8)
    assert device.should_notify()
    assert not device.should_notify() or not event_idx


@pytest.mark.parametrize("packed", FORMATS)
@pytest.mark.parametrize("indirect", [False, True])
@pytest.mark.parametrize("in_order", [False, True])
def test_linux_detach_unused_gives_every_chain_back(packed: bool, indirect: bool, in_order: bool) -> None:
    driver, device = new_virtqueue(
        GuestMemory(1 << 16), 8, packed=packed, indirect=indirect, in_order=in_order, start=6
    )
    for n in range(4):
        driver.add(ONE, ONE, n, publish=n < 3)
    device.pop()
    assert sorted(driver.detach_unused()) == [0, 1, 2, 3]
    assert (driver.num_free, driver.in_flight) == (8, 0)
    assert driver.detach_unused() == []


@pytest.mark.parametrize("packed", FORMATS)
def test_2_7_13_3_2_8_21_1_a_batch_is_invisible_until_it_is_published(packed: bool) -> None:
    driver, device = new_virtqueue(GuestMemory(1 << 16), 8, packed=packed, start=7)
    for n in range(3):
        driver.add(ONE, ONE, n, publish=False)
        assert device.empty()
        assert device.pop() is None
    driver.publish()
    driver.publish()
    elements = [device.pop() for _ in range(3)]
    assert None not in elements
    assert device.pop() is None


@pytest.mark.parametrize("packed", FORMATS)
def test_2_7_5_3_2_8_7_chains_beyond_the_queue_s_tables_get_one_of_their_own(packed: bool) -> None:
    mem = GuestMemory(1 << 20)
    driver, device = new_virtqueue(mem, 64, packed=packed, indirect=True)
    before = mem.next_free
    for n in range(100):
        driver.add([Buffer(0x800 + k, 1) for k in range(40)], ONE, n)
        element = device.pop()
        assert element is not None
        assert [addr for addr, _ in element.out_sg] == [0x800 + k for k in range(40)]
        device.push(element, 0)
        used = driver.get_buf()
        assert used is not None
        assert used.data == n
    assert mem.next_free - before <= 64 * 16 + 16, "one table, used again and again"


@pytest.mark.parametrize("packed", FORMATS)
def test_2_7_5_3_1_2_8_19_indirect_without_the_feature_is_refused_by_the_device(packed: bool) -> None:
    driver, device = new_virtqueue(GuestMemory(1 << 16), 8, packed=packed)
    driver.add(ONE, ONE, indirect=True)
    with pytest.raises(IndirectError):
        device.pop()
    assert device.broken
    assert device.empty()
    assert device.pop() is None


@pytest.mark.parametrize("packed", FORMATS)
def test_indirect_queues_are_full_after_as_many_chains_as_descriptors(packed: bool) -> None:
    driver, _ = new_virtqueue(GuestMemory(1 << 16), 4, packed=packed, indirect=True)
    for _ in range(4):
        driver.add(ONE * 2, ONE * 2)
    with pytest.raises(NoSpaceError):
        driver.add(ONE * 2, ONE)
    with pytest.raises(NoSpaceError):
        driver.add(ONE, [])


@pytest.mark.parametrize("packed", FORMATS)
@pytest.mark.parametrize("in_order", [False, True])
def test_a_device_s_own_mistakes_are_named(packed: bool, in_order: bool) -> None:
    driver, device = new_virtqueue(GuestMemory(1 << 16), 8, packed=packed, in_order=in_order)
    for _ in range(2):
        driver.add(ONE, [])
    first, second = device.pop(), device.pop()
    assert first is not None
    assert second is not None
    if in_order:
        with pytest.raises(NotInOrderError):
            device.push(second, 0)
        assert device.push_batch(second, 0) == 2
    else:
        with pytest.raises(NotInOrderError):
            device.push_batch(first, 0)
        device.push(second, 0)
        device.push(first, 0)
    with pytest.raises(NotInFlightError):
        device.push(first, 0)
    with pytest.raises(NotInFlightError):
        device.unpop(first)


def test_vring_base_of_a_split_queue_is_its_available_index() -> None:
    driver, device = new_queue(GuestMemory(4096), 4, True, start=65535)
    driver.seg_addr[0], driver.seg_len[0] = 64, 1
    rings.add(driver, 1, 0, 0)
    head = rings.pop(device)
    assert vring_base(device) == 0
    set_vring_base(device, 0)
    assert (device.used_idx, device.inuse, device.shadow_avail_idx) == (65535, 1, 0)
    rings.push(device, head, 0)
    assert rings.get_used(driver) == 0
    with pytest.raises(VringBaseError):
        set_vring_base(device, 9)
    assert vring_base(driver) == 0


@pytest.mark.parametrize("start", range(10))
def test_vring_base_of_a_packed_queue_goes_there_and_back(start: int) -> None:
    driver, device = new_queue(GuestMemory(4096), 5, True, start=start, packed=True)
    driver.seg_addr[0], driver.seg_len[0] = 64, 1
    for _ in range(3):
        rings.add(driver, 1, 0, 0)
        head = rings.pop(device)
    base = vring_base(device)
    slots, wraps = (base & 0x7FFF, base >> 16 & 0x7FFF), (base >> 15 & 1, base >> 31 & 1)
    assert slots == ((start + 3) % 5, start % 5)
    assert wraps == tuple(1 - (place // 5) % 2 for place in (start + 3, start))
    other = DeviceQueue(device.mem, 5, device.desc, device.avail, device.used, True, True)
    set_vring_base(other, base)
    assert vring_base(other) == base
    assert other.inuse == 3
    names = ("last_avail_idx", "last_avail_wrap_counter", "used_idx", "used_wrap_counter")
    assert {name: state(other)[name] for name in names} == {name: state(device)[name] for name in names}
    assert head >= 0


@pytest.mark.parametrize("base", [0x80008000, 0x8000, 0])
def test_a_fresh_packed_queue_begins_at_the_base_of_qemu_dpdk_or_user_mode_linux(base: int) -> None:
    driver, device = new_queue(GuestMemory(4096), 4, True, packed=True)
    set_vring_base(device, base)
    set_vring_base(driver, base)
    assert vring_base(device) == vring_base(driver) == 0x80008000
    driver.seg_addr[0], driver.seg_len[0] = 64, 1
    for _ in range(9):
        head = rings.add(driver, 1, 0, 3)
        assert rings.pop(device) == head
        rings.push(device, head, 0)
        assert rings.get_used(driver) == 3


def test_base_0_is_a_lap_on_where_the_ring_has_been_written() -> None:
    """A queue that stopped at the end of its first lap; QEMU says 0 then, and means it."""
    driver, device = new_queue(GuestMemory(4096), 4, True, packed=True, start=4)
    assert vring_base(device) == 0
    set_vring_base(device, 0)
    assert state(device)["last_avail_wrap_counter"] == 0
    with pytest.raises(VringBaseError):
        set_vring_base(device, 0x80048004)
    with pytest.raises(VringBaseError):
        set_vring_base(device, 0x8001)
    driver.seg_addr[0], driver.seg_len[0] = 64, 1
    rings.add(driver, 1, 0, 3)
    with pytest.raises(VringBaseError, match="in flight"):
        set_vring_base(driver, 0)


def test_regions_of_memory() -> None:
    mem = GuestMemory(8192, [(0x8000, 0x9000)])
    assert (mem.size, mem.regions) == (8192, [0x8000, 0x9000])
    assert in_range(mem, 0x8FFF, 1)
    assert not in_range(mem, 0x8FFF, 2)
    assert not in_range(mem, 0x7FFF, 2)
    assert not in_range(mem, 0x1FFF, 0x6002), "a buffer does not lie across a hole"
    with pytest.raises(MemoryFullError):
        allocate(mem, 8192, 64)
    with pytest.raises(AddressError, match="0x8000-0x9000"):
        read_bytes(mem, 0x7000, 1)
    set_regions(mem, [(0x8000, 0x9000)])
    assert mem.size == 0
    assert not in_range(mem, 0, 1)
    assert in_range(mem, 0x8000, 0x1000)
    for bad in ([(-1, 5)], [(9, 5)]):
        with pytest.raises(AddressError):
            set_regions(mem, bad)


def test_shared_memory_gets_a_real_fence() -> None:
    class Shared(GuestMemory):
        fences = 0

        def fence(self) -> None:
            Shared.fences += 1

    mem = Shared(1 << 16)
    fence(mem)
    assert Shared.fences == 0
    mem.shared = True
    fence(mem)
    assert Shared.fences == 1
    driver, device = new_virtqueue(mem, 4, packed=True)
    driver.add(ONE, [])
    assert Shared.fences == 2
    assert device.pop() is not None
    assert Shared.fences == 3


def test_the_two_sides_can_be_made_over_a_queue_that_is_there() -> None:
    """As a live peer does: addresses come from the other side."""
    mem = GuestMemory(1 << 16)
    driver, device = new_queue(mem, 6, True, packed=True)
    sides = DriverSide(driver), DeviceSide(device)
    sides[0].add(ONE, [], "x")
    element = sides[1].pop()
    assert element is not None
    sides[1].push(element, 0)
    assert sides[0].get_buf() == ("x", 0)


def test_every_error_names_a_clause_or_whom_it_follows() -> None:
    """Driver's and device's own limits apart."""
    own = {"NO_SPACE", "EMPTY_CHAIN", "BAD_TOKEN", "CHAIN_TOO_LONG", "NOT_IN_FLIGHT"}
    for name, code in vars(errors).items():
        if name.isupper() and isinstance(code, int) and name not in own | {"EMPTY"}:
            kind, message = errors._ERRORS[code]
            assert "(" in message, f"{name}: {message}"
            assert "2." in message or "QEMU" in message or "Linux" in message, f"{name}: {message}"
            assert kind.__doc__


@pytest.mark.parametrize("packed", FORMATS)
def test_2_7_9_2_8_8_skipped_chains_come_back_as_written_in_full(packed: bool) -> None:
    """Two batches, each by one used entry that stands where the batch's first chain would; then one by itself."""
    driver, device = new_virtqueue(GuestMemory(1 << 16), 8, packed=packed, in_order=True, start=5)
    for n in range(4):
        driver.add(ONE, [Buffer(0x900, 10 + n)], n)
    elements = [device.pop() for _ in range(4)]
    assert None not in elements
    assert device.push_batch(elements[2], 5) == 3  # type: ignore[arg-type]
    assert not driver.enable_cb()
    assert [driver.get_buf() for _ in range(4)] == [(0, 10), (1, 11), (2, 5), None]
    device.push(elements[3], 1)  # type: ignore[arg-type]
    assert driver.get_buf() == (3, 1)
    assert (driver.num_free, device.q.inuse) == (8, 0)


@pytest.mark.parametrize("packed", FORMATS)
def test_2_7_8_2_8_6_a_batch_of_chains_of_many_lengths_goes_back_at_once(packed: bool) -> None:
    """Each used descriptor stands as far behind the one before as that one's chain was long; across the end, too."""
    driver, device = new_virtqueue(GuestMemory(1 << 16), 16, packed=packed)
    for _ in range(40):
        for length in (2, 4, 3, 1):
            driver.add(ONE * length, [], length)
        elements = [device.pop() for _ in range(4)]
        for k, which in enumerate((2, 0, 3, 1)):
            element = elements[which]
            assert element is not None
            device.fill(element, 0, k)
            assert driver.get_buf() is None
        device.flush(4)
        assert [driver.get_buf() for _ in range(5)] == [(3, 0), (2, 0), (1, 0), (4, 0), None]
    assert (driver.num_free, device.q.inuse) == (16, 0)
