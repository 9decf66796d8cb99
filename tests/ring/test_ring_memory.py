"""Guest memory: little-endian views over one buffer (virtio 1.2, 1.4), ranges and the allocator."""

from __future__ import annotations

import struct

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from iosim.errors import IosimError
from iosim.ring import memory
from iosim.ring.errors import AddressError, ByteOrderError, MemoryFullError, MemorySizeError, RingError
from iosim.ring.memory import GuestMemory, allocate, copy, in_range, read_bytes, write_bytes

ACCESS = [
    (memory.read_u16, memory.write_u16, "<H", 16),
    (memory.read_u32, memory.write_u32, "<I", 32),
    (memory.read_u64, memory.write_u64, "<Q", 64),
]


@pytest.mark.parametrize(("size", "whole"), [(1, 4096), (4096, 4096), (4097, 8192)])
def test_size_is_rounded_up_to_pages(size: int, whole: int) -> None:
    mem = GuestMemory(size)
    assert mem.size == len(mem.buffer) == len(mem.u8) == whole
    assert (len(mem.u16), len(mem.u32), len(mem.u64)) == (whole // 2, whole // 4, whole // 8)


@pytest.mark.parametrize("size", [0, -1, memory.MAX_SIZE + 1, 1 << 70])
def test_impossible_sizes_are_refused_in_one_line(size: int) -> None:
    with pytest.raises(MemorySizeError) as error:
        GuestMemory(size)
    assert isinstance(error.value, RingError | ValueError)
    assert "\n" not in str(error.value)


def test_a_big_endian_host_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("sys.byteorder", "big")
    with pytest.raises(ByteOrderError, match="little-endian"):
        GuestMemory(4096)


@pytest.mark.parametrize(("read", "write", "form", "bits"), ACCESS)
@given(addr=st.integers(0, 4096 - 8), data=st.data())
@settings(derandomize=True, deadline=None, max_examples=60)
def test_numbers_are_little_endian_at_any_address(read, write, form, bits, addr, data) -> None:
    value = data.draw(st.integers(0, (1 << bits) - 1))
    mem = GuestMemory(4096)
    write(mem, addr, value)
    assert read_bytes(mem, addr, bits // 8) == struct.pack(form, value)
    assert read(mem, addr) == value
    assert sum(mem.u8) == sum(struct.pack(form, value)), "wrote beside the number"


def test_the_views_share_one_buffer() -> None:
    mem = GuestMemory(4096)
    mem.u64[1] = 0x8877665544332211
    assert mem.u32[2] == 0x44332211
    assert mem.u16[7] == 0x8877
    assert mem.u8[8] == 0x11


@given(addr=st.integers(-9000, 9000), length=st.integers(-9000, 9000))
@settings(derandomize=True, deadline=None)
def test_in_range_is_what_it_says(addr: int, length: int) -> None:
    mem = GuestMemory(8192)
    inside = length >= 0 and addr >= 0 and addr + length <= 8192
    assert in_range(mem, addr, length) == inside
    if inside:
        assert len(read_bytes(mem, addr, length)) == length
    else:
        with pytest.raises(AddressError):
            read_bytes(mem, addr, length)


def test_bytes_outside_memory_are_refused_and_nothing_is_written() -> None:
    mem = GuestMemory(4096)
    with pytest.raises(AddressError):
        write_bytes(mem, 4090, b"1234567")
    with pytest.raises(AddressError):
        copy(mem, 0, 4090, 7)
    with pytest.raises(AddressError):
        copy(mem, -1, 0, 1)
    assert not any(mem.u8)


@given(src=st.integers(0, 90), dst=st.integers(0, 90), length=st.integers(0, 30))
@settings(derandomize=True, deadline=None)
def test_copy_may_overlap(src: int, dst: int, length: int) -> None:
    mem = GuestMemory(4096)
    write_bytes(mem, 0, bytes(range(128)))
    expected = bytearray(range(128))
    expected[dst : dst + length] = bytes(range(128))[src : src + length]
    copy(mem, dst, src, length)
    assert read_bytes(mem, 0, 128) == bytes(expected)


@given(st.lists(st.tuples(st.integers(0, 500), st.sampled_from([1, 2, 4, 16, 64, 4096])), max_size=12))
@settings(derandomize=True, deadline=None)
def test_allocations_are_aligned_apart_and_never_at_zero(wishes: list[tuple[int, int]]) -> None:
    mem = GuestMemory(1 << 16)
    end = 1
    for size, align in wishes:
        addr = allocate(mem, size, align)
        assert addr % align == 0
        assert addr >= end
        assert in_range(mem, addr, size)
        end = addr + size
        assert mem.next_free == end


def test_full_memory_says_so_and_stays_as_it_was() -> None:
    mem = GuestMemory(4096)
    before = mem.next_free
    with pytest.raises(MemoryFullError, match="make it larger"):
        allocate(mem, 4096, 16)
    assert mem.next_free == before
    allocate(mem, 4096 - before, 1)
    with pytest.raises(MemoryFullError):
        allocate(mem, 1, 1)


@pytest.mark.parametrize(("size", "align"), [(8, 0), (8, 3), (8, -4), (-1, 4)])
def test_senseless_allocations_are_refused(size: int, align: int) -> None:
    with pytest.raises(IosimError):
        allocate(GuestMemory(4096), size, align)
