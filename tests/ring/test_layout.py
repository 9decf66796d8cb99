"""Bytes on the ring: where each field stands (virtio 1.2, 2.7 to 2.7.8), in hexadecimal by hand."""

from __future__ import annotations

import pytest

from iosim.ring.errors import AddressError, SizeError
from iosim.ring.layout import split_layout
from iosim.ring.memory import GuestMemory, read_bytes
from iosim.ring.queue import (
    DeviceQueue,
    DriverQueue,
    add,
    arm_avail_event,
    disable_cb,
    enable_cb_prepare,
    get_used,
    new_queue,
    pop,
    push,
    set_notification,
)


@pytest.mark.parametrize("size", [1, 2, 4, 256, 1024, 32768])
@pytest.mark.parametrize("used_align", [4, 64, 4096])
def test_2_7_sizes_and_alignments(size: int, used_align: int) -> None:
    layout = split_layout(size, used_align)
    assert layout.desc_bytes == 16 * size
    assert layout.avail_bytes == 6 + 2 * size
    assert layout.used_bytes == 6 + 8 * size
    assert layout.avail_offset % 2 == 0
    assert layout.used_offset % used_align == 0
    assert 0 <= layout.used_offset - layout.avail_offset - layout.avail_bytes < used_align
    assert layout.total == layout.used_offset + layout.used_bytes


@pytest.mark.parametrize("size", [-1, 0, 3, 100, 32767, 65536])
def test_2_7_a_size_is_a_power_of_two_up_to_32768(size: int) -> None:
    with pytest.raises(SizeError, match="power of two"):
        split_layout(size)
    with pytest.raises(SizeError):
        new_queue(GuestMemory(1 << 20), size, event_idx=True)


@pytest.mark.parametrize("side", [DriverQueue, DeviceQueue])
@pytest.mark.parametrize(
    ("desc", "avail", "used"),
    [(8, 1024, 2048), (0, 1025, 2048), (0, 1024, 2050), (-16, 1024, 2048), (0, 4094, 2048), (0, 1024, 4092)],
)
def test_2_7_1_parts_are_aligned_and_in_memory(side, desc: int, avail: int, used: int) -> None:
    with pytest.raises(AddressError):
        side(GuestMemory(4096), 4, desc, avail, used, True)


def queue(event_idx: bool) -> tuple[GuestMemory, DriverQueue, DeviceQueue]:
    mem = GuestMemory(4096)
    mem.u8[:] = b"\xee" * mem.size
    driver = DriverQueue(mem, 2, 0x100, 0x200, 0x300, event_idx)
    device = DeviceQueue(mem, 2, 0x100, 0x200, 0x300, event_idx)
    for start, length in ((0x100, 32), (0x200, 10), (0x300, 22)):
        mem.u8[start : start + length] = bytes(length)
    return mem, driver, device


def chain(driver: DriverQueue) -> int:
    driver.seg_addr[:] = [0x0123456789AB, 0xC00]
    driver.seg_len[:] = [0x11223344, 0x20]
    return add(driver, 1, 1, 5)


def test_2_7_5_descriptors_byte_by_byte() -> None:
    """addr, len, flags, next: le64, le32, le16, le16. NEXT is 1, WRITE is 2."""
    mem, driver, _ = queue(True)
    assert chain(driver) == 0
    assert read_bytes(mem, 0x100, 16).hex() == "ab89674523010000" "44332211" "0100" "0100"
    assert read_bytes(mem, 0x110, 16).hex() == "000c000000000000" "20000000" "0200" "0000"
    assert read_bytes(mem, 0x120, 4) == b"\xee" * 4


def test_2_7_6_available_ring_byte_by_byte() -> None:
    """flags, idx, ring[2], used_event."""
    mem, driver, device = queue(True)
    driver.seg_addr[0], driver.seg_len[0] = 0x800, 16
    driver.free_head, driver.desc_next[:] = 1, [1, 0]
    assert add(driver, 0, 1, 0) == 1
    assert read_bytes(mem, 0x200, 10).hex() == "0000" "0100" "0100" "0000" "0000"
    push(device, pop(device), 3)
    assert get_used(driver) == 0
    assert driver.used_len == 3
    assert driver.used_head == 1
    assert read_bytes(mem, 0x200, 10).hex() == "0000" "0100" "0100" "0000" "0100"
    assert read_bytes(mem, 0x20A, 2) == b"\xee\xee"


def test_2_7_8_used_ring_byte_by_byte() -> None:
    """flags, idx, ring[2] of le32 id and le32 len, avail_event."""
    mem, driver, device = queue(True)
    driver.seg_addr[0], driver.seg_len[0] = 0x800, 16
    driver.free_head, driver.desc_next[:] = 1, [1, 0]
    add(driver, 0, 1, 0)
    push(device, pop(device), 0x01020304)
    assert read_bytes(mem, 0x300, 22).hex() == "0000" "0100" "01000000" "04030201" "0000000000000000" "0100"
    assert read_bytes(mem, 0x316, 2) == b"\xee\xee"


def test_2_7_7_1_without_event_idx_the_driver_sets_flags_to_0_or_1() -> None:
    mem, driver, _ = queue(False)
    disable_cb(driver)
    assert read_bytes(mem, 0x200, 2) == b"\x01\x00"
    disable_cb(driver)
    assert read_bytes(mem, 0x200, 2) == b"\x01\x00"
    enable_cb_prepare(driver)
    assert read_bytes(mem, 0x200, 2) == b"\x00\x00"


def test_2_7_7_1_with_event_idx_the_driver_keeps_flags_at_0() -> None:
    mem, driver, _ = queue(True)
    disable_cb(driver)
    enable_cb_prepare(driver)
    disable_cb(driver)
    assert read_bytes(mem, 0x200, 2) == b"\x00\x00"


def test_2_7_10_2_without_event_idx_the_device_sets_flags_to_0_or_1() -> None:
    mem, _, device = queue(False)
    set_notification(device, False)
    assert read_bytes(mem, 0x300, 2) == b"\x01\x00"
    set_notification(device, True)
    assert read_bytes(mem, 0x300, 2) == b"\x00\x00"
    set_notification(device, False)
    arm_avail_event(device, 7)
    assert read_bytes(mem, 0x300, 2) == b"\x00\x00"
    assert read_bytes(mem, 0x314, 2) == b"\x00\x00", "avail_event is for EVENT_IDX only"


def test_2_7_10_2_with_event_idx_the_device_keeps_flags_at_0() -> None:
    mem, driver, device = queue(True)
    chain(driver)
    set_notification(device, False)
    assert read_bytes(mem, 0x314, 2) == b"\x00\x00", "disabling writes nothing"
    set_notification(device, True)
    assert read_bytes(mem, 0x314, 2) == b"\x01\x00", "enabling writes the available index"
    arm_avail_event(device, 0x1FFFF)
    assert read_bytes(mem, 0x314, 2) == b"\xff\xff"
    assert read_bytes(mem, 0x300, 2) == b"\x00\x00"


def test_2_7_10_1_a_new_queue_is_zeroed_even_on_used_memory() -> None:
    mem = GuestMemory(1 << 16)
    mem.u8[:] = b"\xee" * mem.size
    driver, _ = new_queue(mem, 8, event_idx=True)
    end = driver.used + 6 + 8 * 8
    assert not any(mem.u8[driver.desc : end])
    assert mem.u8[driver.desc - 1] == mem.u8[end] == 0xEE
