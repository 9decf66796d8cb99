"""Memory of several processes: regions, holes, translation, and the fence between processors."""

from __future__ import annotations

import os
import signal
import tempfile
import time
from itertools import pairwise

import pytest
from hypothesis import given
from hypothesis import strategies as st

from iosim.ring.errors import AddressError, BufferAddressError, MemoryFullError
from iosim.ring.memory import allocate, fence, in_range, read_bytes, write_bytes
from iosim.ring.virtqueue import Buffer, new_virtqueue
from iosim.vhost_user import fence as fences
from iosim.vhost_user.errors import FenceError, RegionError
from iosim.vhost_user.memory import MAX_ADDRESS, SharedMemory, check_table
from iosim.vhost_user.messages import MemoryRegion

PAGE = 4096


def assert_one_line(error: Exception, part: str = "") -> None:
    assert "\n" not in str(error)
    assert part in str(error)


def test_both_sides_see_the_same_bytes() -> None:
    with SharedMemory.create(3 * PAGE + 1) as ours:
        assert ours.size == 4 * PAGE
        with SharedMemory.map(ours.table, ours.fds) as theirs:
            ours.u16[50] = 0x1234
            assert theirs.u8[100:102].tobytes() == b"\x34\x12"
            theirs.u64[ours.size // 8 - 1] = 2**64 - 1
            assert read_bytes(ours, ours.size - 8, 8) == b"\xff" * 8
            with pytest.raises(AddressError):
                read_bytes(theirs, theirs.size - 3, 4)


def test_regions_and_holes() -> None:
    """As QEMU has them: up to 640 KiB, from 768 KiB, and from 4 GiB on."""
    size = 0x100000
    table = [
        MemoryRegion(0, 0xA0000, 0x7000_0000_0000, 0),
        MemoryRegion(0xC0000, 0x40000, 0x7000_0000_0000 + 0xC0000, 0xC0000),
        MemoryRegion(1 << 32, 0x10000, 0x7100_0000_0000, 0xA0000),
    ]
    fd = os.memfd_create("test")
    os.ftruncate(fd, size)
    os.pwrite(fd, b"high", 0xA0000)
    os.pwrite(fd, b"low", 0xC0000)
    with SharedMemory.map(table, [fd] * 3) as mem:
        os.close(fd)
        assert read_bytes(mem, 1 << 32, 4) == b"high"
        assert read_bytes(mem, 0xC0000, 3) == b"low"
        assert in_range(mem, 0x9FFFF, 1)
        assert in_range(mem, 0xFFFFF, 1)
        for addr, length in [(0x9FFFF, 2), (0xA0000, 1), (0xBFFFF, 2), (0x100000, 1), ((1 << 32) + 0xFFFF, 2)]:
            assert not in_range(mem, addr, length)
            with pytest.raises(AddressError):
                write_bytes(mem, addr, bytes(length))
        # Should anything touch a hole all the same, it is inert memory.
        assert mem.u8[0xA0000] == 0
        mem.u8[0xA0000] = 7
        assert mem.to_guest(0x7100_0000_0010) == (1 << 32) + 0x10
        assert mem.to_user(0xC0001) == 0x7000_000C_0001
        with pytest.raises(RegionError, match=r"0x700000100000 lies in none of the 3 memory regions"):
            mem.to_guest(0x7000_0010_0000)
        with pytest.raises(RegionError, match="guest address 0xa0000 lies in none"):
            mem.to_user(0xA0000)


def test_a_buffer_in_a_hole_breaks_the_queue() -> None:
    fd = os.memfd_create("test")
    os.ftruncate(fd, 1 << 20)
    table = [MemoryRegion(0, 1 << 19, 0, 0), MemoryRegion(1 << 30, 1 << 19, 1 << 30, 1 << 19)]
    with SharedMemory.map(table, [fd, fd]) as mem:
        for packed in (False, True):
            driver, device = new_virtqueue(mem, 8, packed=packed)
            driver.add([Buffer(1 << 30, 16), Buffer((1 << 30) + (1 << 19) - 8, 8)], [])
            assert device.pop() is not None
            driver.add([Buffer((1 << 29), 16)], [])
            with pytest.raises(BufferAddressError):
                device.pop()
    os.close(fd)


def test_memory_above_a_hole_only() -> None:
    """DPDK's guest addresses are its process's: everything lies above 4 GiB."""
    with SharedMemory.create(1 << 16, guest_addr=1 << 32) as mem:
        addr = allocate(mem, 100, 64)
        assert addr == 1 << 32
        write_bytes(mem, addr, b"x")
        assert not in_range(mem, 0, 1)
        with pytest.raises(MemoryFullError):
            allocate(mem, 1 << 16, 1)


BAD = [
    ([MemoryRegion(0, 0, 0, 0)], "it has no bytes"),
    ([MemoryRegion(100, PAGE, 0, 0)], "must be multiples of 4096"),
    ([MemoryRegion(0, PAGE, 0, 5)], "must be multiples of 4096"),
    ([MemoryRegion(MAX_ADDRESS, PAGE, 0, 0)], "it ends at 0x100000001000; at most 0x100000000000"),
    ([MemoryRegion(0, 1 << 63, 0, 0)], "at most"),
    ([MemoryRegion(0, PAGE, (1 << 64) - 1, 0)], "runs over"),
    ([MemoryRegion(0, 2 * PAGE, 0, 0), MemoryRegion(PAGE, PAGE, 0, 0)], "it overlaps the one that ends at 0x2000"),
    ([MemoryRegion(0, 1 << 20, 0, 0)], "its file has 16384 bytes, it needs 1048576"),
    ([], "0 memory regions with 0 files"),
]


@pytest.mark.parametrize(("table", "line"), BAD, ids=[line for _, line in BAD])
def test_what_cannot_be_mapped(table: list[MemoryRegion], line: str) -> None:
    with SharedMemory.create(4 * PAGE) as mem, pytest.raises(RegionError, match=line):
        SharedMemory.map(table, [mem.fds[0]] * len(table))


def test_files_that_cannot_be_mapped() -> None:
    with tempfile.TemporaryFile() as file:
        file.truncate(PAGE)
        read_only = os.open(f"/proc/self/fd/{file.fileno()}", os.O_RDONLY)
        with pytest.raises(RegionError, match="cannot map 4096 bytes of guest memory: Permission denied"):
            SharedMemory.map([MemoryRegion(0, PAGE, 0, 0)], [read_only])
        os.close(read_only)


@given(st.lists(st.tuples(*[st.integers(0, (1 << 64) - 1)] * 4), max_size=8))
def test_any_table_is_taken_or_refused(regions: list[tuple[int, int, int, int]]) -> None:
    table = [MemoryRegion(*region) for region in regions]
    try:
        check_table(table)
    except RegionError as error:
        assert_one_line(error)
        return
    bounds = sorted((region.guest_addr, region.guest_addr + region.size) for region in table)
    assert all(start < end <= MAX_ADDRESS for start, end in bounds)
    assert all(end <= start for (_, end), (start, _) in pairwise(bounds))


def test_the_mapping_ends_with_its_last_view() -> None:
    def mapped() -> int:
        with open("/proc/self/maps") as maps:
            return sum("memfd:iosim" in line for line in maps)

    before = mapped()
    mem = SharedMemory.create(PAGE)
    kept = mem.u8[0:8]
    view = mem.u16
    mem.close()
    assert bytes(kept) == bytes(8)
    with pytest.raises(ValueError, match="released"):
        view[0]
    assert mapped() == before + 1
    kept.release()
    del kept, view
    assert mapped() == before


def test_create_seals_what_it_shares() -> None:
    """So that a device need not fear that the file gets shorter under it."""
    with SharedMemory.create(PAGE) as mem:
        for size in (0, 2 * PAGE):
            with pytest.raises(PermissionError):
                os.ftruncate(mem.fds[0], size)


# The fence.


def test_fences_of_processors() -> None:
    fences.full_fence("x86_64")()
    try:
        fences.atomic_fence()()
        fences.full_fence("aarch64")()
    except FenceError as error:
        assert_one_line(error, "libatomic1")


def test_shared_memory_has_a_real_fence(monkeypatch: pytest.MonkeyPatch) -> None:
    count = []
    with SharedMemory.create(PAGE) as mem:
        mem._fence = lambda: count.append(1)
        fence(mem)
        assert count == [1]


#: Rounds, and seconds at most: two processes that spin on one processor are slow.
ROUNDS = 4000
SECONDS = 3
#: Bytes that both write before each round, so that their stores have to queue.
CONTENDED = 4096


def rounds(mem: SharedMemory, mine: int, fenced: bool) -> int:
    """Take all turns of the litmus test on one of the two processes."""
    u8, u64 = mem.u8, mem.u64
    # Each number has cache lines of its own. All places are worked out before: between store and load nothing but the
    # fence may stand, since what takes longer than the store waits hides what is to be seen.
    my_turn, other_turn = 64 + 16 * mine, 64 + 16 * (1 - mine)
    my_end, other_end = 128 + 16 * mine, 128 + 16 * (1 - mine)
    my_store, other_store = 192 + 16 * mine, 192 + 16 * (1 - mine)
    my_load, last = 256 + 16 * mine, 320
    noise = bytes(CONTENDED)
    found = 0
    until = time.monotonic() + SECONDS
    turn = 0
    while u64[last] == 0:
        turn += 1
        u64[my_turn] = turn
        while u64[other_turn] < turn:
            pass
        u8[8192 : 8192 + CONTENDED] = noise
        if fenced:
            u64[my_store] = turn
            mem.fence()
            u64[my_load] = u64[other_store]
        else:
            u64[my_store] = turn
            u64[my_load] = u64[other_store]
        if mine == 0 and (turn == ROUNDS or time.monotonic() > until):
            u64[last] = turn
        mem.fence()
        u64[my_end] = turn
        while u64[other_end] < turn:
            pass
        if u64[256] < turn and u64[272] < turn:
            found += 1
        mem.fence()
    return found


def store_buffering(fenced: bool) -> int:
    """Run the litmus test on two processes; return in how many rounds neither saw the other's store.

    Each stores to its own number and then reads the other's, as a driver publishes an index and then reads the
    event index.
    """

    def hung(*_: object) -> None:
        raise TimeoutError("the other process is gone")

    cpus = sorted(os.sched_getaffinity(0))
    with SharedMemory.create(1 << 16) as mem:
        child = os.fork()
        if child == 0:
            # Whatever happens, the child does not return into the test.
            try:
                os.sched_setaffinity(0, cpus[-1:])
                signal.signal(signal.SIGALRM, signal.SIG_DFL)
                signal.alarm(10 * SECONDS)
                rounds(mem, 1, fenced)
            finally:
                os._exit(0)
        before = signal.signal(signal.SIGALRM, hung)
        signal.alarm(10 * SECONDS)
        try:
            os.sched_setaffinity(0, cpus[:1])
            return rounds(mem, 0, fenced)
        finally:
            os.sched_setaffinity(0, cpus)
            signal.alarm(0)
            signal.signal(signal.SIGALRM, before)
            os.waitpid(child, 0)


@pytest.mark.skipif(len(os.sched_getaffinity(0)) < 2, reason="one processor alone reorders nothing that it sees")
def test_the_fence_forbids_what_the_processor_does_without() -> None:
    """2.7.13.4, 2.7.14: what is published must be seen before the event index is read, or both sides sleep."""
    assert store_buffering(fenced=True) == 0
    if not any(store_buffering(fenced=False) for _ in range(8)):
        pytest.skip("this machine did not reorder without a fence either")
