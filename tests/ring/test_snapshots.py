"""The rings as a real Linux driver and QEMU left them, read back and written again byte by byte.

The files in ``data/`` hold rings of an unmodified Debian kernel under QEMU: the bytes (``raw_hex``), the same
decoded by an independent program, and QEMU's own indexes at that moment.
"""

from __future__ import annotations

import json
import struct
from pathlib import Path
from typing import Any

import pytest

from iosim.ring.errors import EMPTY, INDIRECT_UNSUPPORTED
from iosim.ring.layout import split_layout
from iosim.ring.memory import GuestMemory, read_bytes, write_bytes
from iosim.ring.queue import (
    DeviceQueue,
    DriverQueue,
    add,
    add_indirect,
    avail_in_ring,
    disable_cb,
    enable_cb,
    get_used,
    kick_prepare,
    more_used,
    pop,
    push,
    set_notification,
    set_vring_base,
    should_notify,
    state,
)

DATA = Path(__file__).parent / "data"
GUEST_SIZE = 512 << 20
FILES = {path.stem: json.loads(path.read_text()) for path in sorted(DATA.glob("*.json"))}
SNAPSHOTS = [
    pytest.param(name, snapshot, id=f"{name}-q{snapshot['queue']}-{snapshot['label']}")
    for name, file in FILES.items()
    for snapshot in file["snapshots"]
]

Snapshot = dict[str, Any]


@pytest.fixture(scope="module")
def mem() -> GuestMemory:
    """As large as the guest was, since the addresses are the guest's; untouched pages cost nothing."""
    return GuestMemory(GUEST_SIZE)


def load(mem: GuestMemory, name: str, snapshot: Snapshot) -> tuple[DriverQueue, DeviceQueue]:
    event_idx = "noevidx" not in name
    parts = (snapshot["desc_gpa"], snapshot["avail_gpa"], snapshot["used_gpa"])
    for addr, part in zip(parts, ("desc", "avail", "used"), strict=True):
        write_bytes(mem, addr, bytes.fromhex(snapshot["raw_hex"][part]))
    driver = DriverQueue(mem, snapshot["num"], *parts, event_idx)
    device = DeviceQueue(mem, snapshot["num"], *parts, event_idx)
    qemu = snapshot["qemu_state"]
    device.last_avail_idx = qemu["last_avail_idx"]
    device.shadow_avail_idx = qemu["shadow_avail_idx"]
    device.used_idx = qemu["used_idx"]
    device.signalled_used = qemu["signalled_used"]
    device.signalled_used_valid = qemu["signalled_used_valid"]
    device.inuse = qemu["inuse"]
    return driver, device


def recorded_chain(snapshot: Snapshot, head: int) -> list[tuple[int, int, bool]]:
    """Return (addr, len, writable) of a chain in the decoded descriptor table."""
    segments = []
    while True:
        addr, length, flags, following = snapshot["desc"][head]
        segments.append((addr, length, bool(flags & 2)))
        if not flags & 1:
            return segments
        head = following


def popped_chain(device: DeviceQueue) -> list[tuple[int, int, bool]]:
    out_num = device.elem_out_num
    total = out_num + device.elem_in_num
    return [(device.elem_addr[k], device.elem_len[k], k >= out_num) for k in range(total)]


@pytest.mark.parametrize(("name", "snapshot"), SNAPSHOTS)
def test_2_7_the_parts_have_the_sizes_that_linux_gave_them(name: str, snapshot: Snapshot) -> None:
    layout = split_layout(snapshot["num"], used_align=64)
    assert len(bytes.fromhex(snapshot["raw_hex"]["desc"])) == layout.desc_bytes
    assert len(bytes.fromhex(snapshot["raw_hex"]["avail"])) == layout.avail_bytes
    assert len(bytes.fromhex(snapshot["raw_hex"]["used"])) == layout.used_bytes
    assert snapshot["avail_gpa"] - snapshot["desc_gpa"] == layout.avail_offset
    assert snapshot["used_gpa"] - snapshot["desc_gpa"] == layout.used_offset


@pytest.mark.parametrize(("name", "snapshot"), SNAPSHOTS)
def test_2_7_8_both_sides_find_the_recorded_indexes(name: str, snapshot: Snapshot, mem: GuestMemory) -> None:
    driver, device = load(mem, name, snapshot)
    qemu = snapshot["qemu_state"]
    assert {key: state(device)[key] for key in qemu} == qemu
    avail_idx, used_idx = snapshot["avail"]["idx"], snapshot["used"]["idx"]
    assert avail_in_ring(device) == (avail_idx - qemu["last_avail_idx"]) & 0xFFFF
    driver.last_used_idx = used_idx
    assert not more_used(driver)
    driver.last_used_idx = (used_idx - 1) & 0xFFFF
    assert more_used(driver) == (snapshot["avail"]["idx"] > 0)


@pytest.mark.parametrize(("name", "snapshot"), [p for p in SNAPSHOTS if "indirect" not in str(p.id)])
def test_2_7_13_the_device_walks_the_recorded_chains(name: str, snapshot: Snapshot, mem: GuestMemory) -> None:
    """From what the driver took back last on, every chain is the one the decoder found."""
    _, device = load(mem, name, snapshot)
    num = snapshot["num"]
    first = snapshot["used"]["idx"]
    device.last_avail_idx = device.used_idx = device.shadow_avail_idx = first
    device.inuse = 0
    for index in range(first, snapshot["avail"]["idx"]):
        head = pop(device)
        assert head == snapshot["avail"]["ring"][index % num]
        assert popped_chain(device) == recorded_chain(snapshot, head)
    assert pop(device) == EMPTY
    assert device.inuse == snapshot["avail"]["idx"] - first


def test_2_7_5_3_an_indirect_descriptor_is_named_as_what_it_is(mem: GuestMemory) -> None:
    snapshot = FILES["blk_split_evidx_indirect"]["snapshots"][1]
    _, device = load(mem, "blk_split_evidx_indirect", snapshot)
    device.last_avail_idx = device.shadow_avail_idx = snapshot["used"]["idx"]
    device.inuse = 0
    assert pop(device) == INDIRECT_UNSUPPORTED


def test_2_7_5_3_the_device_reads_the_tables_that_linux_wrote(mem: GuestMemory) -> None:
    """Eight requests in flight, each one descriptor in the ring; and with them all QEMU's indexes are met."""
    snapshot = FILES["blk_split_evidx_indirect"]["snapshots"][1]
    load(mem, "blk_split_evidx_indirect", snapshot)
    qemu, first = snapshot["qemu_state"], snapshot["used"]["idx"]
    parts = (snapshot["desc_gpa"], snapshot["avail_gpa"], snapshot["used_gpa"])
    for table in snapshot["indirect_tables"].values():
        for k, entry in enumerate(table["entries"]):
            write_bytes(mem, table["table_gpa"] + 16 * k, struct.pack("<QIHH", *entry))
    device = DeviceQueue(mem, 16, *parts, True, indirect=True)
    set_vring_base(device, first)
    for index in range(first, snapshot["avail"]["idx"]):
        head = pop(device)
        assert head == snapshot["avail"]["ring"][index % 16]
        entries = snapshot["indirect_tables"][str(head)]["entries"]
        assert popped_chain(device) == [(addr, length, bool(flags & 2)) for addr, length, flags, _ in entries]
    assert pop(device) == EMPTY
    assert {key: state(device)[key] for key in ("inuse", "last_avail_idx", "used_idx")} == {
        key: qemu[key] for key in ("inuse", "last_avail_idx", "used_idx")
    }
    # And the driver writes such a table as Linux did, next of the last one included.
    driver = DriverQueue(mem, 16, *parts, True, indirect=True)
    table = next(iter(snapshot["indirect_tables"].values()))
    for k, (addr, length, _, _) in enumerate(table["entries"]):
        driver.seg_addr[k], driver.seg_len[k] = addr, length
    add_indirect(driver, 1, 2, 0, 0x1000)
    assert read_bytes(mem, 0x1000, 48) == read_bytes(mem, table["table_gpa"], 48)


@pytest.mark.parametrize(("name", "snapshot"), SNAPSHOTS)
def test_2_7_8_the_driver_takes_the_recorded_used_entries(
    name: str, snapshot: Snapshot, mem: GuestMemory
) -> None:
    """The last few entries of the used ring come back with their ids and lengths."""
    driver, _ = load(mem, name, snapshot)
    num, used_idx = snapshot["num"], snapshot["used"]["idx"]
    ring = snapshot["used"]["ring"]
    count = min(used_idx, 3)
    driver.last_used_idx = used_idx - count
    driver.num_free = 0
    driver.added = num
    for index in range(used_idx - count, used_idx):
        head, length = ring[index % num]
        driver.desc_state[head] = 77
        assert get_used(driver) == 77
        assert (driver.used_head, driver.used_len) == (head, length)
    assert get_used(driver) == EMPTY
    if count:
        used_event = mem.u16[(driver.avail >> 1) + 2 + num]
        assert used_event == used_idx == snapshot["avail"]["used_event"], "as Linux left it"


def raw(queue: DriverQueue, mem: GuestMemory) -> dict[str, str]:
    size = queue.size
    return {
        "desc": read_bytes(mem, queue.desc, 16 * size).hex(),
        "avail": read_bytes(mem, queue.avail, 6 + 2 * size).hex(),
        "used": read_bytes(mem, queue.used, 6 + 8 * size).hex(),
    }


def fresh(mem: GuestMemory, snapshot: Snapshot, event_idx: bool) -> tuple[DriverQueue, DeviceQueue]:
    parts = (snapshot["desc_gpa"], snapshot["avail_gpa"], snapshot["used_gpa"])
    layout = split_layout(snapshot["num"], used_align=64)
    write_bytes(mem, parts[0], bytes(layout.total))
    return (
        DriverQueue(mem, snapshot["num"], *parts, event_idx),
        DeviceQueue(mem, snapshot["num"], *parts, event_idx),
    )


def submit(driver: DriverQueue, segments: list[tuple[int, int, bool]]) -> int:
    for k, (addr, length, _) in enumerate(segments):
        driver.seg_addr[k], driver.seg_len[k] = addr, length
    in_num = sum(writable for _, _, writable in segments)
    return add(driver, len(segments) - in_num, in_num, 0)


def complete(driver: DriverQueue, device: DeviceQueue, head: int, length: int) -> None:
    """Give one chain back and handle its interrupt as ``virtblk_done`` does."""
    push(device, head, length)
    assert should_notify(device)
    disable_cb(driver)
    assert get_used(driver) == 0
    assert get_used(driver) == EMPTY
    assert enable_cb(driver)


def test_virtio_net_receive_ring_is_filled_as_linux_fills_it(mem: GuestMemory) -> None:
    """256 buffers in an empty queue: the whole ring, byte by byte, `next` of the last one included."""
    snapshot = FILES["net_split_evidx"]["snapshots"][0]
    driver, _ = fresh(mem, snapshot, event_idx=True)
    for head in range(256):
        assert submit(driver, recorded_chain(snapshot, head)) == head
    assert kick_prepare(driver)
    assert raw(driver, mem) == snapshot["raw_hex"]


def test_virtio_blk_ring_is_written_as_linux_and_qemu_write_it(mem: GuestMemory) -> None:
    """Fifty-six requests of three descriptors, and every byte of the ring in five snapshots on the way.

    One at a time at first; after 44 of them, five are in flight (more do not fit into 16 descriptors), and
    each that completes makes room for the next. So descriptors are freed and taken again in Linux's order.
    """
    snapshots = FILES["blk_split_noevidx_direct"]["snapshots"]
    driver, device = fresh(mem, snapshots[0], event_idx=False)
    one_by_one = 44
    # The last snapshot still shows all of the crowded part; before, descriptor 0 is always the head.
    avail_ring, used_ring = snapshots[-1]["avail"]["ring"], snapshots[-1]["used"]["ring"]
    for snapshot in snapshots:
        avail_idx, used_idx = snapshot["avail"]["idx"], snapshot["used"]["idx"]
        while (driver.avail_idx_shadow, device.used_idx) != (avail_idx, used_idx):
            index = driver.avail_idx_shadow
            crowded = index >= one_by_one
            room = driver.num_free >= 3 and device.used_idx >= one_by_one if crowded else device.inuse == 0
            if room and index < avail_idx:
                head = avail_ring[index % 16] if crowded else 0
                segments = recorded_chain(snapshot, head)
                assert submit(driver, segments) == head
                assert kick_prepare(driver)
                set_notification(device, False)
                assert pop(device) == head
                assert popped_chain(device) == segments
                set_notification(device, True)
                assert pop(device) == EMPTY
            elif device.used_idx >= one_by_one:
                complete(driver, device, *used_ring[device.used_idx % 16])
            else:
                complete(driver, device, 0, 4097)
        assert raw(driver, mem) == snapshot["raw_hex"], snapshot["label"]
        recorded = snapshot["qemu_state"]
        assert {key: state(device)[key] for key in recorded} == recorded
