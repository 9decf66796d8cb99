"""Whatever bytes stand in guest memory: a named code or a valid chain, in bounded time, nothing else."""

from __future__ import annotations

import struct

import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st

from iosim.errors import IosimError
from iosim.ring import errors
from iosim.ring import queue as rings
from iosim.ring.errors import EMPTY, RingError, code_name, raise_for
from iosim.ring.memory import GuestMemory, in_range, read_bytes, write_bytes
from iosim.ring.queue import DeviceQueue, DriverQueue, add, get_used, new_queue, pop, push

NEXT, WRITE, INDIRECT = 1, 2, 4
DEVICE_CODES = {
    errors.HEAD_OUT_OF_RANGE,
    errors.NEXT_OUT_OF_RANGE,
    errors.DESC_LOOP,
    errors.READABLE_AFTER_WRITABLE,
    errors.ZERO_LENGTH,
    errors.ADDRESS_OUT_OF_RANGE,
    errors.AVAIL_IDX_JUMPED,
    errors.INUSE_EXCEEDED,
    errors.INDIRECT_UNSUPPORTED,
}
DRIVER_CODES = {errors.USED_IDX_JUMPED, errors.USED_ID_OUT_OF_RANGE, errors.USED_ID_NOT_HEAD}

Descriptor = tuple[int, int, int, int]


def crafted(descriptors: list[Descriptor], ring: list[int], avail_idx: int | None = None) -> DeviceQueue:
    """Return the device's side of a queue of 4 with these descriptors and heads in it."""
    mem = GuestMemory(4096)
    _, device = new_queue(mem, 4, event_idx=True)
    for i, (addr, length, flags, following) in enumerate(descriptors):
        write_bytes(mem, device.desc + 16 * i, struct.pack("<QIHH", addr, length, flags, following))
    for i, head in enumerate(ring):
        mem.u16[(device.avail >> 1) + 2 + i] = head
    mem.u16[(device.avail >> 1) + 1] = len(ring) if avail_idx is None else avail_idx
    return device


GOOD = (0x800, 16, 0, 0)
CASES = [
    pytest.param(crafted([GOOD], [4]), errors.HEAD_OUT_OF_RANGE, id="head-4-of-4"),
    pytest.param(crafted([GOOD], [65535]), errors.HEAD_OUT_OF_RANGE, id="head-65535"),
    pytest.param(crafted([(0x800, 16, NEXT, 4)], [0]), errors.NEXT_OUT_OF_RANGE, id="next-4-of-4"),
    pytest.param(crafted([(0x800, 16, NEXT, 65535)], [0]), errors.NEXT_OUT_OF_RANGE, id="next-65535"),
    pytest.param(crafted([(0x800, 16, NEXT, 0)], [0]), errors.DESC_LOOP, id="2.7.5.2-loop-of-one"),
    pytest.param(
        crafted([(0x800, 16, NEXT, 1), (0x900, 16, NEXT, 2), (0xA00, 16, NEXT, 1)], [0]),
        errors.DESC_LOOP,
        id="2.7.5.2-loop-behind-the-head",
    ),
    pytest.param(
        crafted([(0x800, 16, NEXT | WRITE, 1), GOOD], [0]),
        errors.READABLE_AFTER_WRITABLE,
        id="2.7.4.2-readable-after-writable",
    ),
    pytest.param(crafted([(0x800, 0, 0, 0)], [0]), errors.ZERO_LENGTH, id="length-0"),
    pytest.param(crafted([(0x1000, 1, 0, 0)], [0]), errors.ADDRESS_OUT_OF_RANGE, id="behind-memory"),
    pytest.param(crafted([(0xFFF, 2, WRITE, 0)], [0]), errors.ADDRESS_OUT_OF_RANGE, id="across-the-end"),
    pytest.param(crafted([((1 << 64) - 8, 16, 0, 0)], [0]), errors.ADDRESS_OUT_OF_RANGE, id="wraps-around"),
    pytest.param(crafted([(0, 0xFFFFFFFF, 0, 0)], [0]), errors.ADDRESS_OUT_OF_RANGE, id="longer-than-memory"),
    pytest.param(crafted([GOOD], [0], avail_idx=5), errors.AVAIL_IDX_JUMPED, id="index-5-ahead-of-4"),
    pytest.param(crafted([GOOD], [0], avail_idx=65535), errors.AVAIL_IDX_JUMPED, id="2.7.6.1-decremented"),
    pytest.param(crafted([(0x800, 16, INDIRECT, 0)], [0]), errors.INDIRECT_UNSUPPORTED, id="2.7.5.3.1"),
]


@pytest.mark.parametrize(("device", "code"), CASES)
def test_each_mistake_of_the_driver_has_its_own_code(device: DeviceQueue, code: int) -> None:
    before = rings.state(device) | {"shadow_avail_idx": None}
    bytes_before = read_bytes(device.mem, 0, 4096)
    assert code_name(pop(device)) == code_name(code)
    assert code_name(pop(device)) == code_name(code), "the answer stays"
    assert rings.state(device) | {"shadow_avail_idx": None} == before, "no index moves"
    assert read_bytes(device.mem, 0, 4096) == bytes_before, "nothing is written"


def test_avail_in_ring_names_a_jump_too() -> None:
    assert rings.avail_in_ring(crafted([GOOD], [], avail_idx=5)) == errors.AVAIL_IDX_JUMPED
    assert rings.avail_in_ring(crafted([GOOD], [], avail_idx=4)) == 4


def test_the_last_byte_of_memory_is_memory() -> None:
    device = crafted([(0, 0x1000, NEXT, 1), (0xFFF, 1, WRITE, 0)], [0])
    assert pop(device) == 0
    assert (device.elem_addr[:2], device.elem_len[:2]) == ([0, 0xFFF], [0x1000, 1])


def test_a_driver_cannot_have_more_in_use_than_the_queue_holds() -> None:
    """The same head made available again and again while nothing has come back."""
    device = crafted([GOOD], [0, 0, 0, 0])
    assert [pop(device) for _ in range(4)] == [0, 0, 0, 0]
    device.mem.u16[(device.avail >> 1) + 1] = 5
    assert pop(device) == errors.INUSE_EXCEEDED


def valid(device: DeviceQueue, head: int) -> None:
    assert 0 <= head < device.size
    count = device.elem_out_num + device.elem_in_num
    assert 1 <= count <= device.size
    assert device.elem_out_num >= 0
    assert device.elem_in_num >= 0
    for k in range(count):
        assert device.elem_len[k] > 0
        assert in_range(device.mem, device.elem_addr[k], device.elem_len[k])


def near(limit: int) -> st.SearchStrategy[int]:
    """Numbers that mean something, and some that do not."""
    return st.one_of(st.integers(0, limit + 1), st.sampled_from([0, 1, 0xFFFF]))


@given(
    area=st.binary(min_size=200, max_size=200),
    size=st.sampled_from([1, 2, 4]),
    event_idx=st.booleans(),
    last=st.integers(0, 65535),
)
@settings(derandomize=True, deadline=None, max_examples=300)
@example(area=b"\xff" * 200, size=4, event_idx=True, last=0)
def test_random_bytes_give_a_code_or_a_valid_chain(area, size, event_idx, last) -> None:
    mem = GuestMemory(4096)
    driver, device = new_queue(mem, size, event_idx)
    write_bytes(mem, driver.desc, area)
    device.last_avail_idx = device.shadow_avail_idx = last
    for _ in range(2 * size + 2):
        head = pop(device)
        if head < 0:
            assert head == EMPTY or head in DEVICE_CODES
            break
        valid(device, head)
        if area[0] & 1:
            push(device, head, 7)
        rings.should_notify(device)
        rings.set_notification(device, bool(area[1] & 1))


@given(
    descriptors=st.lists(
        st.tuples(
            st.one_of(st.integers(0, 4096), st.integers(0, (1 << 64) - 1)),
            st.one_of(st.integers(0, 64), st.sampled_from([4096, 4097, 0xFFFFFFFF])),
            st.sampled_from([0, NEXT, NEXT, WRITE, NEXT | WRITE, INDIRECT, 0xFFF8, 0xFFFF]),
            near(4),
        ),
        min_size=4,
        max_size=4,
    ),
    ring=st.lists(near(4), min_size=4, max_size=4),
    avail_idx=near(4),
)
@settings(derandomize=True, deadline=None, max_examples=500)
def test_plausible_garbage_gives_a_code_or_a_valid_chain(
    descriptors: list[Descriptor], ring: list[int], avail_idx: int
) -> None:
    device = crafted(descriptors, ring, avail_idx)
    for _ in range(10):
        head = pop(device)
        if head < 0:
            assert head == EMPTY or head in DEVICE_CODES
            break
        valid(device, head)
        count = device.elem_out_num + device.elem_in_num
        i = head
        for k in range(count):
            addr, length, flags, following = descriptors[i]
            assert (device.elem_addr[k], device.elem_len[k]) == (addr, length)
            assert bool(flags & WRITE) == (k >= device.elem_out_num)
            i = following
        push(device, head, 0)


def loaded() -> tuple[DriverQueue, DeviceQueue]:
    driver, device = new_queue(GuestMemory(4096), 8, event_idx=True)
    driver.seg_addr[:], driver.seg_len[:] = [0x800] * 8, [16] * 8
    for token in range(3):
        add(driver, 1, 1, token)
    return driver, device


@pytest.mark.parametrize(
    ("head", "used_idx", "code"),
    [
        (8, 1, errors.USED_ID_OUT_OF_RANGE),
        (0xFFFFFFFF, 1, errors.USED_ID_OUT_OF_RANGE),
        (1, 1, errors.USED_ID_NOT_HEAD),
        (7, 1, errors.USED_ID_NOT_HEAD),
        (0, 7, errors.USED_IDX_JUMPED),
        (0, 65535, errors.USED_IDX_JUMPED),
    ],
)
def test_each_mistake_of_the_device_has_its_own_code(head: int, used_idx: int, code: int) -> None:
    driver, _ = loaded()
    driver.mem.u32[(driver.used >> 2) + 1] = head
    driver.mem.u16[(driver.used >> 1) + 1] = used_idx
    before = rings.state(driver)
    assert code_name(get_used(driver)) == code_name(code)
    assert rings.state(driver) == before


def test_a_chain_comes_back_only_once() -> None:
    driver, device = loaded()
    push(device, 2, 0)
    push(device, 2, 0)
    assert get_used(driver) == 1
    assert get_used(driver) == errors.USED_ID_NOT_HEAD


@given(
    area=st.binary(min_size=70, max_size=70),
    descriptors=st.binary(min_size=128, max_size=128),
    used_idx=st.one_of(st.integers(0, 9), st.integers(0, 65535)),
    ids=st.lists(near(8), min_size=8, max_size=8),
)
@settings(derandomize=True, deadline=None, max_examples=300)
def test_a_hostile_device_cannot_corrupt_the_free_list(area, descriptors, used_idx, ids) -> None:
    """It scribbles over the whole ring, the descriptors included."""
    driver, _ = loaded()
    mem = driver.mem
    write_bytes(mem, driver.used, area)
    write_bytes(mem, driver.desc, descriptors)
    for slot, head in enumerate(ids):
        mem.u32[(driver.used >> 2) + 1 + 2 * slot] = head
    mem.u16[(driver.used >> 1) + 1] = used_idx
    tokens = []
    for _ in range(10):
        token = get_used(driver)
        if token < 0:
            assert token == EMPTY or token in DRIVER_CODES
            break
        tokens.append(token)
        rings.kick_prepare(driver)
        rings.enable_cb_delayed(driver)
    assert len(set(tokens)) == len(tokens)
    assert set(tokens) <= {0, 1, 2}
    assert driver.num_free == 2 + 2 * len(tokens)
    free = []
    i = driver.free_head
    for _ in range(driver.num_free):
        free.append(i)
        i = driver.desc_next[i]
    assert len(set(free)) == driver.num_free


def test_every_code_has_a_name_and_an_exception_of_one_line() -> None:
    codes = {n: v for n, v in vars(errors).items() if n.isupper() and isinstance(v, int)}
    assert len(set(codes.values())) == len(codes)
    assert all(value < 0 for value in codes.values())
    kinds = set()
    for name, code in codes.items():
        assert code_name(code) == name
        if code == EMPTY:
            assert raise_for(code) == EMPTY
            continue
        with pytest.raises(RingError) as caught:
            raise_for(code, "rx queue")
        assert isinstance(caught.value, IosimError)
        assert str(caught.value).startswith("rx queue: ")
        assert "\n" not in str(caught.value)
        kinds.add(type(caught.value))
    assert len(kinds) == len(codes) - 1, "two codes share an exception"
    assert RingError not in kinds
    assert raise_for(0) == 0
    assert code_name(-99) == "-99"
    with pytest.raises(RingError, match="unknown"):
        raise_for(-99)
