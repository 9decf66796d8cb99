"""Split virtqueues (virtio 1.2, section 2.7): everything about them under one name.

`iosim.ring.split_driver` is what a driver does, `iosim.ring.split_device` what a device does; both work on
the same bytes of guest memory and know nothing of each other.

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

from iosim.ring.event import vring_need_event
from iosim.ring.layout import (
    DESC_ALIGN,
    MAX_QUEUE_SIZE,
    VRING_AVAIL_F_NO_INTERRUPT,
    VRING_DESC_F_INDIRECT,
    VRING_DESC_F_NEXT,
    VRING_DESC_F_WRITE,
    VRING_USED_F_NO_NOTIFY,
    Layout,
    split_layout,
)
from iosim.ring.memory import GuestMemory, allocate
from iosim.ring.split_device import (
    DeviceQueue,
    arm_avail_event,
    avail_in_ring,
    empty,
    fill,
    flush,
    pop,
    push,
    set_notification,
    should_notify,
)
from iosim.ring.split_driver import (
    DriverQueue,
    add,
    arm_used_event,
    delayed_bufs,
    disable_cb,
    enable_cb,
    enable_cb_delayed,
    enable_cb_prepare,
    get_used,
    kick_prepare,
    more_used,
    poll,
    used_beyond,
    vring_interrupt,
)

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
    "arm_avail_event",
    "arm_used_event",
    "avail_in_ring",
    "delayed_bufs",
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
    "poll",
    "pop",
    "push",
    "set_notification",
    "should_notify",
    "split_layout",
    "state",
    "used_beyond",
    "vring_interrupt",
    "vring_need_event",
]

#: Where Linux's virtio-pci starts the used ring: at a cache line.
_CACHE_LINE = 64


def new_queue(
    mem: GuestMemory, size: int, event_idx: bool, start: int = 0
) -> tuple[DriverQueue, DeviceQueue]:
    """Allocate a split virtqueue in guest memory, zeroed, and return both its sides.

    Args:
        mem: Guest memory to take it from.
        size: Descriptors, a power of two from 1 to 32768.
        event_idx: Whether VIRTIO_F_EVENT_IDX is negotiated.
        start: The index both sides begin with (as after a migration), modulo 2**16. A new queue has 0.

    Raises:
        SizeError: The size is none that a split virtqueue can have.
        MemoryFullError: Guest memory has no room for it.
    """
    layout = split_layout(size, _CACHE_LINE)
    desc = allocate(mem, layout.total, max(DESC_ALIGN, _CACHE_LINE))
    mem.u8[desc : desc + layout.total] = bytes(layout.total)
    avail = desc + layout.avail_offset
    used = desc + layout.used_offset
    driver = DriverQueue(mem, size, desc, avail, used, event_idx)
    device = DeviceQueue(mem, size, desc, avail, used, event_idx)
    start &= 0xFFFF
    if start:
        driver.avail_idx_shadow = start
        driver.last_used_idx = start
        device.last_avail_idx = start
        device.shadow_avail_idx = start
        device.used_idx = start
        device.signalled_used = start
        mem.u16[(avail >> 1) + 1] = start
        mem.u16[(avail >> 1) + 2 + size] = start
        mem.u16[(used >> 1) + 1] = start
        mem.u16[(used + 4 + 8 * size) >> 1] = start
    return driver, device


def state(q: DriverQueue | DeviceQueue) -> dict[str, int | bool]:
    """Return what one side knows of its queue, by QEMU's names (driver: Linux's), for printing.

    The device's part is what QEMU's ``x-query-virtio-queue-status`` shows.
    """
    if isinstance(q, DeviceQueue):
        return {
            "num": q.size,
            "inuse": q.inuse,
            "last_avail_idx": q.last_avail_idx,
            "shadow_avail_idx": q.shadow_avail_idx,
            "used_idx": q.used_idx,
            "signalled_used": q.signalled_used,
            "signalled_used_valid": q.signalled_used_valid,
            "notification": q.notification,
            "event_idx": q.event_idx,
            "desc": q.desc,
            "avail": q.avail,
            "used": q.used,
        }
    return {
        "num": q.size,
        "num_free": q.num_free,
        "free_head": q.free_head,
        "num_added": q.num_added,
        "last_used_idx": q.last_used_idx,
        "avail_idx_shadow": q.avail_idx_shadow,
        "avail_flags_shadow": q.avail_flags_shadow,
        "event_triggered": q.event_triggered,
        "event_idx": q.event_idx,
        "desc": q.desc,
        "avail": q.avail,
        "used": q.used,
    }
