"""Packed rings as a real Linux driver and QEMU left them, read back and written again byte by byte.

The file in ``data/packed`` holds the rings of an unmodified Debian kernel's virtio-blk under QEMU: bytes, the same
decoded by an independent program, and QEMU's own indexes. QEMU's state has no wrap counters; the event offsets
that it and Linux wrote have them.
"""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from iosim.ring.errors import EMPTY
from iosim.ring.memory import GuestMemory, read_bytes, write_bytes
from iosim.ring.queue import (
    DeviceQueue,
    DriverQueue,
    add,
    disable_cb,
    enable_cb,
    get_used,
    kick_prepare,
    pop,
    push,
    set_notification,
    set_vring_base,
    should_notify,
    state,
    vring_base,
)

FILE = json.loads((Path(__file__).parent / "data" / "packed" / "blk_packed_evidx_direct.json").read_text())
SNAPSHOTS: list[dict[str, Any]] = FILE["snapshots"]
QUIET = [s for s in SNAPSHOTS if s["qemu_state"]["inuse"] == 0]
# Where the bytes and QEMU's state were read at the same moment: QEMU arms its event offset at what it takes next.
BUSY = [
    s
    for s in SNAPSHOTS
    if s["qemu_state"]["inuse"] > 0 and s["device_event"]["off"] == s["qemu_state"]["last_avail_idx"]
]
WRITE = 2


@pytest.fixture(scope="module")
def mem() -> GuestMemory:
    return GuestMemory(512 << 20)


def parts(snapshot: dict[str, Any]) -> tuple[int, int, int]:
    return snapshot["desc_gpa"], snapshot["avail_gpa"], snapshot["used_gpa"]


def load(mem: GuestMemory, snapshot: dict[str, Any]) -> tuple[DriverQueue, DeviceQueue]:
    for addr, part in zip(parts(snapshot), ("desc", "driver_event", "device_event"), strict=True):
        write_bytes(mem, addr, bytes.fromhex(snapshot["raw_hex"][part]))
    arguments = (mem, snapshot["num"], *parts(snapshot), True, True)
    return DriverQueue(*arguments), DeviceQueue(*arguments)


def off_wrap(event: dict[str, int]) -> int:
    return event["off"] | event["wrap"] << 15


def base(snapshot: dict[str, Any]) -> int:
    """The queue's place as vhost-user would tell it; QEMU armed the device's event offset at what it takes next."""
    return off_wrap(snapshot["device_event"]) | used_place(snapshot) << 16


def used_place(snapshot: dict[str, Any]) -> int:
    qemu = snapshot["qemu_state"]
    wrap = snapshot["device_event"]["wrap"] ^ (qemu["used_idx"] > qemu["last_avail_idx"])
    if qemu["inuse"] == 0:
        wrap = snapshot["device_event"]["wrap"]
    return int(qemu["used_idx"] | wrap << 15)


def test_2_8_13_the_bytes_are_what_the_independent_decoder_found(mem: GuestMemory) -> None:
    for snapshot in SNAPSHOTS:
        load(mem, snapshot)
        for slot, (addr, length, buffer_id, flags) in enumerate(snapshot["desc"]):
            at = snapshot["desc_gpa"] + 16 * slot
            assert (mem.u64[at >> 3], mem.u32[(at >> 2) + 2]) == (addr, length)
            assert (mem.u16[(at >> 1) + 6], mem.u16[(at >> 1) + 7]) == (buffer_id, flags)


@pytest.mark.parametrize("snapshot", QUIET + BUSY, ids=lambda s: s["label"])
def test_2_8_14_both_sides_agree_with_qemu_s_own_indexes(mem: GuestMemory, snapshot: dict[str, Any]) -> None:
    driver, device = load(mem, snapshot)
    qemu = snapshot["qemu_state"]
    set_vring_base(device, base(snapshot))
    device.signalled_used_valid = True
    assert vring_base(device) == base(snapshot)
    found = state(device)
    assert {key: found[key] for key in qemu} == qemu
    assert found["last_avail_wrap_counter"] == snapshot["device_event"]["wrap"]
    # QEMU has taken all there is, and the driver all that was used.
    assert pop(device) == EMPTY
    driver.last_used_idx, driver.next_avail_idx = device.used_idx, device.last_avail_idx
    assert get_used(driver) == EMPTY
    assert snapshot["driver_event"] == {
        "off": found["used_idx"], "wrap": found["used_wrap_counter"], "flags": 2
    }, "where Linux armed"  # fmt: skip


def test_2_8_6_a_recorded_chain_is_taken_as_linux_wrote_it(mem: GuestMemory) -> None:
    """The newest chain of each crowded ring, by a device that has not taken it yet."""
    for snapshot in BUSY:
        _, device = load(mem, snapshot)
        set_vring_base(device, base(snapshot))
        device.last_avail_idx -= 3
        device.inuse -= 3
        slots = [(device.last_avail_idx + k) % 16 for k in range(3)]
        assert pop(device) == snapshot["desc"][slots[2]][2]
        assert (device.elem_out_num, device.elem_in_num, device.elem_len[:3]) == (1, 2, [16, 4096, 1])
        assert device.elem_addr[:3] == [snapshot["desc"][slot][0] for slot in slots]
        assert vring_base(device) == base(snapshot)


def replay(driver: DriverQueue, device: DeviceQueue, segments: list[list[int]]) -> None:
    """One request as Linux's virtio_blk and QEMU handle it, alone."""
    for k, (addr, _, _, _) in enumerate(segments):
        driver.seg_addr[k] = addr
        driver.seg_len[k] = (16, 4096, 1)[k]
    assert add(driver, 1, 2, 7) == 0
    assert kick_prepare(driver)
    set_notification(device, False)
    assert pop(device) == 0
    set_notification(device, True)
    assert pop(device) == EMPTY
    push(device, 0, 4097)
    assert should_notify(device)
    disable_cb(driver)
    assert get_used(driver) == 7
    assert get_used(driver) == EMPTY
    assert enable_cb(driver)


def test_2_8_21_2_8_22_the_ring_is_written_as_linux_and_qemu_write_it(mem: GuestMemory) -> None:
    """Forty-three requests from an empty ring, eight times around, and every byte of it in forty-one snapshots.

    But for one bit: the specification wants WRITE in a used descriptor whose length counts, and QEMU leaves it out.
    """
    write_bytes(mem, SNAPSHOTS[0]["desc_gpa"], bytes(256))
    arguments = (mem, 16, *parts(SNAPSHOTS[0]), True, True)
    write_bytes(mem, arguments[3], bytes(4))
    write_bytes(mem, arguments[4], bytes(4))
    driver, device = DriverQueue(*arguments), DeviceQueue(*arguments)
    done = 0
    for snapshot in QUIET:
        # Three requests were over at the first snapshot, each later one is one request on.
        for _ in range(1 if done else 3):
            replay(driver, device, [snapshot["desc"][(3 * done + k) % 16] for k in range(3)])
            done += 1
        written = bytearray(read_bytes(mem, snapshot["desc_gpa"], 256))
        for slot, (_, _, _, flags) in enumerate(snapshot["desc"]):
            if flags in (0x8080, 0) and snapshot["desc"][slot][1]:
                assert written[16 * slot + 14] & WRITE
                written[16 * slot + 14] &= ~WRITE
        assert written.hex() == snapshot["raw_hex"]["desc"], snapshot["label"]
        assert read_bytes(mem, snapshot["avail_gpa"], 4).hex() == snapshot["raw_hex"]["driver_event"]
        assert read_bytes(mem, snapshot["used_gpa"], 4).hex() == snapshot["raw_hex"]["device_event"]
        qemu = snapshot["qemu_state"]
        assert {key: state(device)[key] for key in qemu} == qemu
    assert done == 43


@pytest.mark.parametrize("snapshot", [s for s in BUSY if s["qemu_state"]["inuse"] == 15], ids=lambda s: s["label"])
def test_2_8_22_a_crowded_ring_that_qemu_left_goes_on_here(mem: GuestMemory, snapshot: dict[str, Any]) -> None:
    """Five chains are in flight, with the ids that Linux gives out when chains have three descriptors.

    QEMU had used some out of order, so some of their descriptors are overwritten; both sides know them all the same.
    """
    driver, device = load(mem, snapshot)
    set_vring_base(device, base(snapshot))
    set_vring_base(driver, base(snapshot))
    driver.next_avail_idx = device.last_avail_idx
    driver.last_used_idx = device.used_idx
    driver.num_free = 1
    driver.added = 5
    driver.free_head = 15
    ids = [0, 3, 6, 9, 12]
    for number, head in enumerate(ids):
        driver.desc_state[head], driver.desc_num[head], driver.desc_last[head] = 70 + head, 3, head + 2
        driver.desc_seq[head] = number
        device.elem_ndescs[head] = 3
    for head in (9, 0, 12, 3, 6):
        push(device, head, 4097)
    assert [get_used(driver) for _ in ids] == [79, 70, 82, 73, 76]
    assert get_used(driver) == EMPTY
    assert (device.inuse, driver.num_free) == (0, 16)
    for _ in range(100):
        for k in range(3):
            driver.seg_addr[k], driver.seg_len[k] = 0x1000, 8
        head = add(driver, 1, 2, 1)
        assert pop(device) == head
        push(device, head, 4097)
        assert get_used(driver) == 1
