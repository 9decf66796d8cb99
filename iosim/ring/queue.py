"""Virtqueues, split and packed (virtio 1.2, sections 2.7 and 2.8): everything about them under one name.

`iosim.ring.driver` is what a driver does, `iosim.ring.device` what a device does; both work on the same bytes
of guest memory and know nothing of each other. For everyone who is not on a simulator's hot path there are objects
instead of numbers: `iosim.ring.virtqueue`.

Example:
    >>> from iosim.ring.memory import GuestMemory, allocate
    >>> mem = GuestMemory(1 << 20)
    >>> driver, device = new_queue(mem, 8, event_idx=True)
    >>> driver.seg_addr[0], driver.seg_len[0] = allocate(mem, 64, 64), 64
    >>> head = add(driver, out_num=1, in_num=0, token=42)
    >>> kick_prepare(driver)
    True
    >>> pop(device) == head, device.elem_out_num, device.elem_len[0]
    (True, 1, 64)
    >>> push(device, head, length=0)
    >>> should_notify(device)
    True
    >>> get_used(driver)
    42
"""

from __future__ import annotations

from iosim.ring.device import (
    arm_avail_event,
    avail_in_ring,
    empty,
    fill,
    flush,
    pop,
    push,
    push_batch,
    set_notification,
    should_notify,
    unpop,
)
from iosim.ring.device_queue import DeviceQueue
from iosim.ring.driver import (
    add,
    add_batched,
    add_direct,
    add_indirect,
    arm_used_event,
    delayed_bufs,
    detach_unused,
    disable_cb,
    enable_cb,
    enable_cb_delayed,
    enable_cb_prepare,
    get_used,
    kick_prepare,
    more_used,
    poll,
    poll_delayed,
    publish,
    used_beyond,
    vring_interrupt,
)
from iosim.ring.driver_queue import DriverQueue
from iosim.ring.errors import SizeError, VringBaseError
from iosim.ring.event import off_wrap, vring_need_event, vring_packed_need_event
from iosim.ring.layout import (
    DESC_ALIGN,
    DESC_SIZE,
    MAX_QUEUE_SIZE,
    PACKED_MARKS,
    VRING_AVAIL_F_NO_INTERRUPT,
    VRING_DESC_F_INDIRECT,
    VRING_DESC_F_NEXT,
    VRING_DESC_F_WRITE,
    VRING_USED_F_NO_NOTIFY,
    Layout,
    packed_layout,
    split_layout,
)
from iosim.ring.memory import GuestMemory, allocate

__all__ = [
    "MAX_QUEUE_SIZE",
    "VRING_AVAIL_F_NO_INTERRUPT",
    "VRING_DESC_F_INDIRECT",
    "VRING_DESC_F_NEXT",
    "VRING_DESC_F_WRITE",
    "VRING_USED_F_NO_NOTIFY",
    "DeviceQueue",
    "DriverQueue",
    "Layout",
    "add",
    "add_batched",
    "add_direct",
    "add_indirect",
    "arm_avail_event",
    "arm_used_event",
    "avail_in_ring",
    "delayed_bufs",
    "detach_unused",
    "disable_cb",
    "empty",
    "enable_cb",
    "enable_cb_delayed",
    "enable_cb_prepare",
    "fill",
    "flush",
    "get_used",
    "kick_prepare",
    "more_used",
    "new_queue",
    "new_tables",
    "off_wrap",
    "packed_layout",
    "poll",
    "poll_delayed",
    "pop",
    "publish",
    "push",
    "push_batch",
    "set_notification",
    "set_vring_base",
    "should_notify",
    "split_layout",
    "state",
    "unpop",
    "used_beyond",
    "vring_base",
    "vring_interrupt",
    "vring_need_event",
    "vring_packed_need_event",
]

#: Where Linux's virtio-pci starts the used ring: at a cache line.
_CACHE_LINE = 64
#: Buffers that an indirect table of a new queue holds, unless the queue is smaller.
_TABLE_SIZE = 32


def new_queue(
    mem: GuestMemory,
    size: int,
    event_idx: bool,
    start: int = 0,
    *,
    packed: bool = False,
    indirect: bool = False,
    in_order: bool = False,
) -> tuple[DriverQueue, DeviceQueue]:
    """Allocate a virtqueue in guest memory and return both its sides.

    Args:
        mem: Guest memory to take it from.
        size: Descriptors; split: a power of two from 1 to 32768, packed: 1 to 32768.
        event_idx: Whether VIRTIO_F_EVENT_IDX is negotiated.
        start: The index both sides begin with (as after a migration); split: modulo 2**16, packed: the place in
            the ring, counted on beyond its end, modulo twice the size. A new queue has 0.
        packed: Whether VIRTIO_F_RING_PACKED is negotiated.
        indirect: Whether VIRTIO_F_INDIRECT_DESC is; the driver gets an indirect table for each descriptor.
        in_order: Whether VIRTIO_F_IN_ORDER is.

    Raises:
        SizeError: The size is none that a virtqueue of this format can have.
        MemoryFullError: Guest memory has no room for it.
    """
    layout = packed_layout(size) if packed else split_layout(size, _CACHE_LINE)
    desc = allocate(mem, layout.total, max(DESC_ALIGN, _CACHE_LINE))
    mem.u8[desc : desc + layout.total] = bytes(layout.total)
    avail = desc + layout.avail_offset
    used = desc + layout.used_offset
    driver = DriverQueue(mem, size, desc, avail, used, event_idx, packed, indirect, in_order)
    device = DeviceQueue(mem, size, desc, avail, used, event_idx, packed, indirect, in_order)
    if indirect:
        new_tables(driver, min(size, _TABLE_SIZE))
    if start and packed:
        _start_packed(driver, device, start % (2 * size))
    elif start:
        _start_split(driver, device, start & 0xFFFF)
    return driver, device


def new_tables(d: DriverQueue, table_size: int) -> None:
    """Allocate an indirect table of ``table_size`` descriptors for each of a driver's descriptors (Linux: kmalloc).

    Raises:
        SizeError: A table has 1 to as many descriptors as the queue (2.7.5.3.1).
        MemoryFullError: Guest memory has no room for them.
    """
    if not 0 < table_size <= d.size:
        raise SizeError(f"an indirect table of {table_size} descriptors on a queue of {d.size}")
    d.tables = allocate(d.mem, DESC_SIZE * table_size * d.size, DESC_ALIGN)
    d.table_size = table_size


def _start_split(driver: DriverQueue, device: DeviceQueue, start: int) -> None:
    mem, size = driver.mem, driver.size
    driver.avail_idx_shadow = start
    driver.last_used_idx = start
    device.last_avail_idx = start
    device.shadow_avail_idx = start
    device.used_idx = start
    device.signalled_used = start
    mem.u16[(driver.avail >> 1) + 1] = start
    mem.u16[(driver.avail >> 1) + 2 + size] = start
    mem.u16[(driver.used >> 1) + 1] = start
    mem.u16[(driver.used + 4 + 8 * size) >> 1] = start


def _start_packed(driver: DriverQueue, device: DeviceQueue, start: int) -> None:
    size = driver.size
    driver.next_avail_idx = start
    driver.last_used_idx = start
    device.last_avail_idx = start
    device.shadow_avail_idx = start
    device.used_idx = start
    device.signalled_used = start
    # As if every descriptor had been used: before `start` in this lap, from it on in the one before (which of a
    # ring that nobody has been around yet is all zeros).
    for slot in range(size):
        lap = start // size - (1 if slot >= start % size else 0)
        driver.mem.u16[(driver.desc >> 1) + 8 * slot + 7] = 0 if lap & 1 else PACKED_MARKS


def vring_base(q: DriverQueue | DeviceQueue) -> int:
    """Return where a queue stands as vhost-user's GET_VRING_BASE and SET_VRING_BASE tell it.

    Split: the index of the next available entry. Packed: bits 0 to 14 the next available slot, bit 15 its wrap
    counter, bits 16 to 30 the next used slot, bit 31 its wrap counter. A driver gives the place behind what it has
    taken back, at which a device that has nothing in flight goes on.
    """
    if isinstance(q, DriverQueue):
        if q.packed:
            place = off_wrap(q.size, q.last_used_idx)
            return place | place << 16
        return q.last_used_idx
    if q.packed:
        return off_wrap(q.size, q.last_avail_idx) | off_wrap(q.size, q.used_idx) << 16
    return q.last_avail_idx


def set_vring_base(q: DriverQueue | DeviceQueue, num: int) -> None:
    """Let a queue begin, or go on, where vhost-user's SET_VRING_BASE says; see `vring_base`.

    A split queue's used index comes from the ring, as in QEMU and DPDK. A fresh packed ring's base is 0x80008000,
    but DPDK says 0x8000 and User-mode Linux 0: 0x8000 is taken so always, 0 if nothing was ever written at the
    first slot. What is in flight between the used and the available place counts into `DeviceQueue.inuse`.

    Raises:
        VringBaseError: A slot beyond the queue, or more in flight than it has descriptors; or a driver with
            chains in flight.
    """
    if isinstance(q, DriverQueue):
        if q.num_free != q.size:
            raise VringBaseError(f"the driver has {q.size - q.num_free} descriptors in flight")
        avail, _ = _places(q, num) if q.packed else (num & 0xFFFF, 0)
        q.next_avail_idx = q.avail_idx_shadow = q.last_used_idx = avail
        q.num_added = q.num_pending = 0
        return
    if q.packed:
        avail, used = _places(q, num)
        inuse = avail - used
    else:
        avail = num & 0xFFFF
        used = q.mem.u16[(q.used >> 1) + 1]
        inuse = (avail - used) & 0xFFFF
    if inuse > q.size:
        raise VringBaseError(f"base {num:#x} and used index {used} leave {inuse} in flight on a queue of {q.size}")
    q.last_avail_idx = q.shadow_avail_idx = avail
    q.used_idx = q.signalled_used = used
    q.signalled_used_valid = False
    q.inuse = inuse
    q.taken = q.given = 0
    q.elem_ndescs[:] = [0] * len(q.elem_ndescs)


def _places(q: DriverQueue | DeviceQueue, num: int) -> tuple[int, int]:
    """Return the available and the used place that a packed base means, the latter not behind the former."""
    size = q.size
    fresh = off_wrap(size, 0)
    if num == fresh or (num == 0 and q.mem.u16[(q.desc >> 1) + 7] == 0):
        num = fresh | fresh << 16
    slots = num & 0x7FFF, num >> 16 & 0x7FFF
    if max(slots) >= size:
        raise VringBaseError(f"base {num:#x} on a queue of {size}")
    # Wrap counter 1 is an even lap. Two laps on leave room for a used place that lies in the lap before.
    avail = slots[0] + size * (2 if num >> 15 & 1 else 3)
    used = slots[1] + size * (2 if num >> 31 & 1 else 3)
    if used > avail:
        used -= 2 * size
    return avail, used


def state(q: DriverQueue | DeviceQueue) -> dict[str, int | bool]:
    """Return what one side knows of its queue, by QEMU's names (driver: Linux's), for printing.

    The device's part is what QEMU's ``x-query-virtio-queue-status`` shows, and the wrap counters of a packed queue.
    """
    return _device_state(q) if isinstance(q, DeviceQueue) else _driver_state(q)


def _wrap(q: DriverQueue | DeviceQueue, place: int) -> int:
    return off_wrap(q.size, place) >> 15


def _common(q: DriverQueue | DeviceQueue) -> dict[str, int | bool]:
    found: dict[str, int | bool] = {"event_idx": q.event_idx}
    for name, on in (("packed", q.packed), ("indirect", q.indirect), ("in_order", q.in_order)):
        if on:
            found[name] = True
    return found | {"desc": q.desc, "avail": q.avail, "used": q.used}


def _device_state(q: DeviceQueue) -> dict[str, int | bool]:
    found: dict[str, int | bool] = {"num": q.size, "inuse": q.inuse}
    if q.packed:
        found |= {
            "last_avail_idx": q.last_avail_idx % q.size,
            "last_avail_wrap_counter": _wrap(q, q.last_avail_idx),
            "shadow_avail_idx": q.shadow_avail_idx % q.size,
            "shadow_avail_wrap_counter": _wrap(q, q.shadow_avail_idx),
            "used_idx": q.used_idx % q.size,
            "used_wrap_counter": _wrap(q, q.used_idx),
            "signalled_used": q.signalled_used % q.size,
        }
    else:
        found |= {
            "last_avail_idx": q.last_avail_idx,
            "shadow_avail_idx": q.shadow_avail_idx,
            "used_idx": q.used_idx,
            "signalled_used": q.signalled_used,
        }
    return (
        found
        | {"signalled_used_valid": q.signalled_used_valid, "notification": q.notification}
        | _common(q)
    )


def _driver_state(d: DriverQueue) -> dict[str, int | bool]:
    found: dict[str, int | bool] = {"num": d.size, "num_free": d.num_free, "free_head": d.free_head}
    found["num_added"] = d.num_added
    if d.num_pending:
        found["num_pending"] = d.num_pending
    if d.packed:
        found |= {
            "last_used_idx": d.last_used_idx % d.size,
            "used_wrap_counter": _wrap(d, d.last_used_idx),
            "next_avail_idx": d.next_avail_idx % d.size,
            "avail_wrap_counter": _wrap(d, d.next_avail_idx),
            "event_flags_shadow": d.event_flags_shadow,
        }
    else:
        found |= {
            "last_used_idx": d.last_used_idx,
            "avail_idx_shadow": d.avail_idx_shadow,
            "avail_flags_shadow": d.avail_flags_shadow,
        }
    return found | {"event_triggered": d.event_triggered} | _common(d)
