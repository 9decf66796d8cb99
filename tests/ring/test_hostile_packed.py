"""Whatever bytes stand in a packed ring or an indirect table: a named code or a valid chain, in bounded time."""

from __future__ import annotations

import struct
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from iosim.ring import errors
from iosim.ring import queue as rings
from iosim.ring.errors import EMPTY, code_name
from iosim.ring.memory import GuestMemory, in_range, read_bytes, write_bytes
from iosim.ring.queue import DeviceQueue, DriverQueue, add, get_used, new_queue, pop, push

NEXT, WRITE, INDIRECT, AVAIL, USED = 1, 2, 4, 0x80, 0x8000
TOP = 1 << 14
TABLE = 0x1003
"""Where tables stand: at no alignment at all, which is legal (2.7.5.3, 2.8.7)."""
DEVICE_CODES = {
    errors.AVAIL_IDX_JUMPED,
    errors.HEAD_OUT_OF_RANGE,
    errors.NEXT_OUT_OF_RANGE,
    errors.DESC_LOOP,
    errors.READABLE_AFTER_WRITABLE,
    errors.ZERO_LENGTH,
    errors.ADDRESS_OUT_OF_RANGE,
    errors.INUSE_EXCEEDED,
    errors.INDIRECT_UNSUPPORTED,
    errors.INDIRECT_WITH_NEXT,
    errors.NESTED_INDIRECT,
    errors.BAD_TABLE_LENGTH,
    errors.TABLE_TOO_LONG,
    errors.WRAP_MISMATCH,
    errors.ID_IN_FLIGHT,
}
DRIVER_CODES = {
    errors.USED_IDX_JUMPED,
    errors.USED_ID_OUT_OF_RANGE,
    errors.USED_ID_NOT_HEAD,
    errors.WRAP_MISMATCH,
    errors.NOT_IN_ORDER,
}
Descriptor = tuple[int, int, int, int]


def packed(descriptors: list[Descriptor], indirect: bool = False, size: int = 4) -> DeviceQueue:
    """The device's side of a packed queue with these descriptors (addr, len, id, flags) in its ring."""
    mem = GuestMemory(TOP)
    _, device = new_queue(mem, size, event_idx=True, packed=True, indirect=indirect)
    for i, descriptor in enumerate(descriptors):
        write_bytes(mem, device.desc + 16 * i, struct.pack("<QIHH", *descriptor))
    return device


def split(descriptors: list[Descriptor], table: list[Descriptor], size: int = 4) -> DeviceQueue:
    """The device's side of a split queue whose first chain begins at 0, and a table at `TABLE`."""
    mem = GuestMemory(TOP)
    _, device = new_queue(mem, size, event_idx=True, indirect=True)
    for i, descriptor in enumerate(descriptors):
        write_bytes(mem, device.desc + 16 * i, struct.pack("<QIHH", *descriptor))
    for i, descriptor in enumerate(table):
        write_bytes(mem, TABLE + 16 * i, struct.pack("<QIHH", *descriptor))
    mem.u16[(device.avail >> 1) + 1] = 1
    return device


def with_table(table: list[Descriptor], flags: int = INDIRECT | AVAIL, length: int | None = None) -> DeviceQueue:
    device = packed([(TABLE, 16 * len(table) if length is None else length, 9, flags)], indirect=True)
    for i, descriptor in enumerate(table):
        write_bytes(device.mem, TABLE + 16 * i, struct.pack("<QIHH", *descriptor))
    return device


B = 0x800
PACKED_CASES = [
    pytest.param(packed([(B, 0, 0, AVAIL)]), errors.ZERO_LENGTH, id="length-0-as-qemu"),
    pytest.param(packed([(TOP, 1, 0, AVAIL)]), errors.ADDRESS_OUT_OF_RANGE, id="behind-memory"),
    pytest.param(packed([(TOP - 1, 2, 0, AVAIL | WRITE)]), errors.ADDRESS_OUT_OF_RANGE, id="across-the-end"),
    pytest.param(packed([((1 << 64) - 8, 16, 0, AVAIL)]), errors.ADDRESS_OUT_OF_RANGE, id="over-2^64"),
    pytest.param(packed([(1 << 63, 16, 0, AVAIL)]), errors.ADDRESS_OUT_OF_RANGE, id="2^63"),
    pytest.param(
        packed([(B, 1, 0, AVAIL | NEXT | WRITE), (B, 1, 0, AVAIL)]), errors.READABLE_AFTER_WRITABLE, id="2.8.17-order"
    ),
    pytest.param(packed([(B, 1, 0, AVAIL | NEXT)] * 3 + [(B, 1, 0, AVAIL | NEXT)]), errors.DESC_LOOP, id="2.8.17-loop"),
    pytest.param(packed([(B, 1, 0, AVAIL | NEXT), (B, 1, 0, USED)]), errors.WRAP_MISMATCH, id="2.8.6-other-lap"),
    pytest.param(packed([(B, 1, 0, AVAIL | NEXT), (B, 1, 0, 0)]), errors.WRAP_MISMATCH, id="2.8.6-not-available"),
    pytest.param(packed([(B, 1, 0, AVAIL | USED)]), errors.WRAP_MISMATCH, id="2.8.1-used-by-nobody"),
    pytest.param(packed([(B, 16, 0, AVAIL | INDIRECT)]), errors.INDIRECT_UNSUPPORTED, id="2.8.19-not-negotiated"),
    pytest.param(
        packed([(B, 16, 0, AVAIL | INDIRECT | NEXT), (B, 1, 0, AVAIL)], True),
        errors.INDIRECT_WITH_NEXT,
        id="2.8.19-indirect-with-next",
    ),
    pytest.param(
        packed([(B, 1, 0, AVAIL | NEXT), (B, 16, 0, AVAIL | INDIRECT)], True),
        errors.INDIRECT_WITH_NEXT,
        id="2.8.19-indirect-in-a-list",
    ),
    pytest.param(with_table([], length=0), errors.BAD_TABLE_LENGTH, id="2.8.7-table-of-0"),
    pytest.param(with_table([(B, 1, 0, 0)], length=17), errors.BAD_TABLE_LENGTH, id="2.8.7-table-of-17"),
    pytest.param(packed([(TOP - 16, 32, 0, AVAIL | INDIRECT)], True), errors.ADDRESS_OUT_OF_RANGE, id="table-outside"),
    pytest.param(with_table([(B, 1, 0, WRITE), (B, 1, 0, 0)]), errors.READABLE_AFTER_WRITABLE, id="2.8.17-table-order"),
    pytest.param(with_table([(B, 0, 0, 0)]), errors.ZERO_LENGTH, id="length-0-in-a-table"),
    pytest.param(with_table([(B, 1, 0, 0), (TOP, 1, 0, 0)]), errors.ADDRESS_OUT_OF_RANGE, id="outside-in-a-table"),
]
T = (TABLE, 16, INDIRECT, 0)
SPLIT_CASES = [
    pytest.param(split([(TABLE, 0, INDIRECT, 0)], []), errors.BAD_TABLE_LENGTH, id="2.7.5.3-table-of-0"),
    pytest.param(split([(TABLE, 24, INDIRECT, 0)], []), errors.BAD_TABLE_LENGTH, id="2.7.5.3-table-of-24"),
    pytest.param(split([(TABLE, 16, INDIRECT | NEXT, 1)], []), errors.INDIRECT_WITH_NEXT, id="2.7.5.3.1-with-next"),
    pytest.param(split([T], [(TABLE, 16, INDIRECT, 0)]), errors.NESTED_INDIRECT, id="2.7.5.3.1-nested"),
    pytest.param(split([T], [(B, 1, NEXT, 1)]), errors.NEXT_OUT_OF_RANGE, id="2.7.5.3-next-outside-the-table"),
    pytest.param(split([T], [(B, 1, NEXT, 0)]), errors.DESC_LOOP, id="2.7.5.3-loop-in-the-table"),
    pytest.param(split([T], [(B, 0, 0, 0)]), errors.ZERO_LENGTH, id="length-0-in-a-table"),
    pytest.param(split([T], [(TOP, 1, 0, 0)]), errors.ADDRESS_OUT_OF_RANGE, id="outside-in-a-table"),
    pytest.param(split([(TOP, 16, INDIRECT, 0)], []), errors.ADDRESS_OUT_OF_RANGE, id="table-outside"),
    pytest.param(split([((1 << 64) - 16, 32, INDIRECT, 0)], []), errors.ADDRESS_OUT_OF_RANGE, id="table-over-2^64"),
    pytest.param(
        split([(B, 1, NEXT | WRITE, 1), T], [(B, 1, 0, 0)]),
        errors.READABLE_AFTER_WRITABLE,
        id="2.7.4.2-across-the-table",
    ),
]


@pytest.mark.parametrize(("device", "code"), PACKED_CASES + SPLIT_CASES)
def test_each_mistake_of_the_driver_has_its_own_code(device: DeviceQueue, code: int) -> None:
    before = rings.state(device) | {"shadow_avail_idx": None}
    bytes_before = read_bytes(device.mem, 0, TOP)
    assert code_name(pop(device)) == code_name(code)
    assert code_name(pop(device)) == code_name(code), "the answer stays"
    assert rings.state(device) | {"shadow_avail_idx": None} == before, "no index moves"
    assert read_bytes(device.mem, 0, TOP) == bytes_before, "nothing is written"


def test_2_8_an_id_given_again_while_in_flight_is_named() -> None:
    device = packed([(B, 1, 777, AVAIL), (B, 1, 777, AVAIL)])
    assert pop(device) == 777
    assert pop(device) == errors.ID_IN_FLIGHT


def test_2_8_13_a_buffer_id_may_be_any_16_bit_number() -> None:
    device = packed([(B, 1, 0xFFFF, AVAIL), (B, 1, 4000, AVAIL)])
    assert [pop(device), pop(device), pop(device)] == [0xFFFF, 4000, EMPTY]
    push(device, 4000, 0)
    push(device, 0xFFFF, 1)
    assert [device.mem.u16[(device.desc >> 1) + 8 * slot + 6] for slot in (0, 1)] == [4000, 0xFFFF]


def test_2_8_more_in_flight_than_the_queue_holds_is_named() -> None:
    """A driver that goes around without waiting for anything to be used."""
    device = packed([(B, 1, slot, AVAIL) for slot in range(4)])
    assert [pop(device) for _ in range(4)] == [0, 1, 2, 3]
    device.mem.u16[(device.desc >> 1) + 6] = 50
    device.mem.u16[(device.desc >> 1) + 7] = USED
    assert pop(device) == errors.INUSE_EXCEEDED
    push(device, 1, 0)
    # One place is free, and there a chain of two begins.
    for slot in (0, 1):
        device.mem.u32[(device.desc >> 2) + 4 * slot + 2] = 1
        device.mem.u16[(device.desc >> 1) + 8 * slot + 7] = USED | (NEXT if slot == 0 else 0)
    assert pop(device) == errors.INUSE_EXCEEDED


def test_2_8_7_what_is_legal_in_a_packed_table_is_accepted() -> None:
    """WRITE on the table's own descriptor, and all flags but WRITE inside: ignored. Its id is the descriptor's."""
    device = with_table([(B, 5, 77, NEXT | INDIRECT | USED), (B, 6, 78, WRITE | AVAIL)], INDIRECT | AVAIL | WRITE)
    assert pop(device) == 9
    assert (device.elem_out_num, device.elem_in_num, device.elem_len[:2]) == (1, 1, [5, 6])
    assert device.inuse == 1
    many = with_table([(B, 1, 0, 0)] * 300)
    assert pop(many) == 9
    assert many.elem_out_num == 300, "longer than the queue, as QEMU takes it"


def test_2_7_5_3_2_what_is_legal_in_a_split_chain_is_accepted() -> None:
    """Descriptors and then a table; WRITE on the table's descriptor ignored; next within the table in any order."""
    device = split(
        [(B, 3, NEXT, 1), (TABLE, 48, INDIRECT | WRITE, 0)],
        [(B, 4, NEXT, 2), (B, 6, WRITE, 0), (B, 5, NEXT, 1)],
    )
    assert pop(device) == 0
    assert (device.elem_out_num, device.elem_in_num, device.elem_len[:4]) == (3, 1, [3, 4, 5, 6])


@pytest.mark.parametrize("longest", [1024, 1025])
def test_as_qemu_does_a_table_s_chain_has_at_most_1024_buffers(longest: int) -> None:
    mem = GuestMemory(1 << 16)
    for is_packed in (False, True):
        driver, device = new_queue(mem, 4, True, packed=is_packed, indirect=True)
        table = 0x8000 + 8 * is_packed
        for k in range(longest):
            flags = 0 if is_packed or k == longest - 1 else NEXT
            third = (flags, k + 1) if not is_packed else (0, 0)
            write_bytes(mem, table + 16 * k, struct.pack("<QIHH", B, 1, *third))
        driver.seg_addr[0], driver.seg_len[0] = B, 1
        assert add(driver, 1, 0, 0) >= 0
        mem.u64[device.desc >> 3] = table
        mem.u32[(device.desc >> 2) + 2] = 16 * longest
        mem.u16[(device.desc >> 1) + 6 + is_packed] |= INDIRECT
        assert pop(device) == (0 if longest == 1024 else errors.TABLE_TOO_LONG)


def test_memory_with_a_hole_has_buffers_on_both_sides_and_none_in_it() -> None:
    """A live guest's RAM below and above the PCI hole; a buffer lies in one of them, up to the last byte."""
    for is_packed in (False, True):
        mem = GuestMemory(0x4000, [(0x10000, 0x14000), (0x14000, 0x18000)])
        for addr, length, good in (
            (0x3FFF, 1, True), (0x3FFF, 2, False), (0x4000, 1, False), (0xFFFF, 2, False), (0x10000, 0x8000, True),
            (0x17FFF, 1, True), (0x17FFF, 2, False), (0x13FFF, 2, True), (0x3FF0, 0x10000, False), (1 << 63, 1, False),
        ):  # fmt: skip
            mem.next_free = 64
            driver, device = new_queue(mem, 4, True, packed=is_packed)
            driver.seg_addr[0], driver.seg_len[0] = addr, length
            assert add(driver, 1, 0, 5) >= 0
            found = pop(device)
            assert (found >= 0) == good, (hex(addr), length)
            assert good or found == errors.ADDRESS_OUT_OF_RANGE


def valid(device: DeviceQueue, head: int) -> None:
    count = device.elem_out_num + device.elem_in_num
    assert 1 <= count <= len(device.elem_addr)
    assert min(device.elem_out_num, device.elem_in_num) >= 0
    for k in range(count):
        assert device.elem_len[k] > 0
        assert in_range(device.mem, device.elem_addr[k], device.elem_len[k])


def drain(device: DeviceQueue, answers: bytes) -> None:
    """Pop and give back whatever comes; it must end by itself, and write into the ring only."""
    mem, size = device.mem, device.size
    end = (device.used + 4) if device.packed else (device.used + 6 + 8 * size)
    outside = read_bytes(mem, 0, device.desc) + read_bytes(mem, end, mem.size - end)
    held: list[int] = []
    for n in range(6 * size + 4):
        head = pop(device)
        if head < 0:
            assert head == EMPTY or head in DEVICE_CODES
            break
        valid(device, head)
        held.append(head)
        if answers[n % len(answers)] & 1:
            push(device, held.pop(), 7)
        rings.should_notify(device)
        rings.set_notification(device, bool(answers[n % len(answers)] & 2))
        assert rings.avail_in_ring(device) <= size
        rings.empty(device)
        assert device.inuse <= size
    assert read_bytes(mem, 0, device.desc) + read_bytes(mem, end, mem.size - end) == outside


@given(
    area=st.binary(min_size=220, max_size=220),
    size=st.sampled_from([1, 2, 3, 4, 7]),
    is_packed=st.booleans(),
    indirect=st.booleans(),
    in_order=st.booleans(),
    event_idx=st.booleans(),
    last=st.integers(0, 65535),
)
@settings(derandomize=True, deadline=None, max_examples=600)
def test_random_bytes_give_a_code_or_a_valid_chain(
    area: bytes, size: int, is_packed: bool, indirect: bool, in_order: bool, event_idx: bool, last: int
) -> None:
    mem = GuestMemory(TOP)
    size = size if is_packed else 4
    options: dict[str, Any] = {"packed": is_packed, "indirect": indirect, "in_order": in_order}
    driver, device = new_queue(mem, size, event_idx, **options)
    write_bytes(mem, driver.desc, area[: 16 * size + 8])
    if is_packed:
        device.last_avail_idx = device.used_idx = last
    else:
        device.last_avail_idx = device.shadow_avail_idx = last
        mem.u16[(driver.avail >> 1) + 1] = (last + area[0] % 6) & 0xFFFF
    drain(device, area)


def filled(is_packed: bool, indirect: bool, in_order: bool, start: int) -> tuple[DriverQueue, DeviceQueue]:
    """A queue of 8 with four chains in flight."""
    mem = GuestMemory(TOP)
    driver, device = new_queue(mem, 8, True, start, packed=is_packed, indirect=indirect, in_order=in_order)
    for k in range(8):
        driver.seg_addr[k], driver.seg_len[k] = 0x2000 + 64 * k, 16 + k
    for token in range(4):
        assert add(driver, 1, 1, token) >= 0
    return driver, device


@given(
    is_packed=st.booleans(),
    indirect=st.booleans(),
    in_order=st.booleans(),
    start=st.sampled_from([0, 5, 8, 13, 65533]),
    where=st.integers(0, 300),
    width=st.sampled_from([1, 2, 4, 8]),
    value=st.one_of(st.integers(0, (1 << 64) - 1), st.sampled_from([0, 1, 0x7F, 0x80, 0xFF, 0x7FFF, 0x8000, 0xFFFF])),
    in_table=st.booleans(),
)
@settings(derandomize=True, deadline=None, max_examples=800)
def test_one_field_gone_wrong_gives_a_code_or_a_valid_chain(
    is_packed: bool, indirect: bool, in_order: bool, start: int, where: int, width: int, value: int, in_table: bool
) -> None:
    driver, device = filled(is_packed, indirect, in_order, start)
    base = driver.tables if indirect and in_table else driver.desc
    write_bytes(driver.mem, base + where, (value & ((1 << 8 * width) - 1)).to_bytes(width, "little"))
    drain(device, b"\1\0\3")


@given(
    is_packed=st.booleans(),
    in_order=st.booleans(),
    start=st.sampled_from([0, 5, 8, 13, 65533]),
    scribbles=st.lists(
        st.tuples(
            st.integers(0, 260), st.one_of(st.integers(0, 65535), st.sampled_from([0, 1, 2, 4, 0x80, 0x8000, 0x8080]))
        ),
        max_size=12,
    ),
    given_back=st.lists(st.integers(0, 3), unique=True, max_size=4),
)
@settings(derandomize=True, deadline=None, max_examples=600)
def test_a_hostile_device_cannot_corrupt_the_driver(
    is_packed: bool, in_order: bool, start: int, scribbles: list[tuple[int, int]], given_back: list[int]
) -> None:
    """It gives some chains back, and scribbles over the ring: ids never given, lengths, flags, indexes."""
    driver, device = filled(is_packed, False, in_order, start)
    heads = [pop(device) for _ in range(4)]
    for k in given_back:
        push(device, heads[k], 1)
    for at, value in scribbles:
        driver.mem.u16[(driver.desc >> 1) + at % ((driver.used + 4 - driver.desc) >> 1)] = value
    tokens = []
    for _ in range(10):
        token = get_used(driver)
        if token < 0:
            assert token == EMPTY or token in DRIVER_CODES
            break
        tokens.append(token)
        rings.kick_prepare(driver)
        rings.more_used(driver)
        rings.used_beyond(driver, 3)
        rings.enable_cb_delayed(driver)
    assert len(set(tokens)) == len(tokens)
    assert set(tokens) <= {0, 1, 2, 3}
    assert driver.num_free == 2 * len(tokens)
    free = []
    i = driver.free_head
    for _ in range(driver.num_free):
        free.append(i)
        i = driver.desc_next[i]
    assert len(set(free)) == len(free)


@pytest.mark.parametrize(
    ("buffer_id", "flags", "code"),
    [
        (8, AVAIL | USED, errors.USED_ID_OUT_OF_RANGE),
        (0xFFFF, AVAIL | USED, errors.USED_ID_OUT_OF_RANGE),
        (1, AVAIL | USED, errors.USED_ID_NOT_HEAD),
        (0, 0, errors.WRAP_MISMATCH),
        (0, USED, errors.WRAP_MISMATCH),
    ],
)
def test_2_8_22_each_mistake_of_the_device_has_its_own_code(buffer_id: int, flags: int, code: int) -> None:
    driver, _ = filled(True, False, False, 0)
    driver.mem.u16[(driver.desc >> 1) + 6] = buffer_id
    driver.mem.u16[(driver.desc >> 1) + 7] = flags
    before = rings.state(driver)
    assert code_name(get_used(driver)) == code_name(code)
    assert rings.state(driver) == before


def test_2_8_1_a_used_mark_where_nothing_is_in_flight_is_named() -> None:
    driver, _ = new_queue(GuestMemory(TOP), 4, True, packed=True)
    driver.mem.u16[(driver.desc >> 1) + 7] = AVAIL | USED
    assert get_used(driver) == errors.USED_IDX_JUMPED


@pytest.mark.parametrize("is_packed", [False, True])
def test_an_unpublished_chain_cannot_come_back(is_packed: bool) -> None:
    driver, device = filled(is_packed, False, False, 0)
    push(device, pop(device), 0)
    assert get_used(driver) == 0
    driver.seg_addr[0], driver.seg_len[0] = 0x2000, 1
    head = rings.add_batched(driver, 1, 0, 9)
    push(device, pop(device), 0)
    slot = driver.last_used_idx % 8
    if is_packed:
        driver.mem.u16[(driver.desc >> 1) + 8 * slot + 6] = head
    else:
        driver.mem.u32[(driver.used >> 2) + 1 + 2 * slot] = head
    assert get_used(driver) == errors.USED_ID_NOT_HEAD


def test_2_7_9_a_batch_beyond_the_used_index_is_named() -> None:
    driver, device = filled(False, False, True, 0)
    heads = [pop(device) for _ in range(4)]
    push(device, heads[0], 0)
    driver.mem.u32[(driver.used >> 2) + 1] = heads[2]
    assert get_used(driver) == errors.NOT_IN_ORDER
