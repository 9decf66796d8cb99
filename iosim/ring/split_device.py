"""The device's side of a split virtqueue: what QEMU's ``hw/virtio/virtio.c`` does, and vhost with it.

Names are QEMU's. Everything read from guest memory may be garbage, or change while it is read: each
descriptor is read once, checked, and only then believed.

Indexes run modulo 2**16 and are masked at every step.
"""

from __future__ import annotations

from iosim.ring.device_queue import DeviceQueue
from iosim.ring.errors import (
    ADDRESS_OUT_OF_RANGE,
    AVAIL_IDX_JUMPED,
    BAD_TABLE_LENGTH,
    DESC_LOOP,
    EMPTY,
    HEAD_OUT_OF_RANGE,
    INDIRECT_UNSUPPORTED,
    INDIRECT_WITH_NEXT,
    INUSE_EXCEEDED,
    NESTED_INDIRECT,
    NEXT_OUT_OF_RANGE,
    READABLE_AFTER_WRITABLE,
    TABLE_TOO_LONG,
    ZERO_LENGTH,
)
from iosim.ring.event import vring_need_event
from iosim.ring.layout import (
    VRING_AVAIL_F_NO_INTERRUPT,
    VRING_DESC_F_INDIRECT,
    VRING_DESC_F_NEXT,
    VRING_DESC_F_WRITE,
    VRING_USED_F_NO_NOTIFY,
)
from iosim.ring.memory import fence, in_range, in_regions, read_u32, read_u64


def empty(q: DeviceQueue) -> bool:
    """Tell whether there is no chain to take; reads the ring only if the last look was used up.

    Source: QEMU ``virtio_queue_empty``.
    """
    if q.shadow_avail_idx != q.last_avail_idx:
        return False
    q.shadow_avail_idx = q.mem.u16[(q.avail >> 1) + 1]
    return q.shadow_avail_idx == q.last_avail_idx


def avail_in_ring(q: DeviceQueue) -> int:
    """Return how many chains wait to be taken, by a fresh look at the ring, or `AVAIL_IDX_JUMPED`.

    Source: QEMU ``virtqueue_num_heads``.
    """
    q.shadow_avail_idx = q.mem.u16[(q.avail >> 1) + 1]
    heads = (q.shadow_avail_idx - q.last_avail_idx) & 0xFFFF
    if heads > q.size:
        return AVAIL_IDX_JUMPED
    return heads


def read_table(q: DeviceQueue, table: int, length: int, count: int, in_num: int) -> int:
    """Add an indirect table's chain to the ``count`` buffers found so far, ``in_num`` of them writable.

    The table may stand at any address. A chain in it may be longer than the queue, as QEMU allows it: 1024 then.

    Returns:
        The new ``count`` times 65536 plus the new ``in_num``; or a code.

    Source: 2.7.5.3; QEMU ``virtqueue_split_pop``.
    """
    if length == 0 or length & 15:
        return BAD_TABLE_LENGTH
    mem = q.mem
    if not in_range(mem, table, length):
        return ADDRESS_OUT_OF_RANGE
    entries = length >> 4
    limit = len(q.elem_addr)
    visited = 0
    i = 0
    more = True
    while more:
        if visited >= entries:
            return DESC_LOOP
        if count >= limit:
            return TABLE_TOO_LONG
        at = table + 16 * i
        addr = read_u64(mem, at)
        size = read_u32(mem, at + 8)
        flags_next = read_u32(mem, at + 12)
        if flags_next & VRING_DESC_F_INDIRECT:
            return NESTED_INDIRECT
        if flags_next & VRING_DESC_F_WRITE:
            in_num += 1
        elif in_num > 0:
            return READABLE_AFTER_WRITABLE
        if size == 0:
            return ZERO_LENGTH
        if not in_range(mem, addr, size):
            return ADDRESS_OUT_OF_RANGE
        q.elem_addr[count] = addr
        q.elem_len[count] = size
        count += 1
        visited += 1
        if flags_next & VRING_DESC_F_NEXT:
            i = flags_next >> 16
            if i >= entries:
                return NEXT_OUT_OF_RANGE
        else:
            more = False
    return count << 16 | in_num


def pop(q: DeviceQueue) -> int:
    """Take the next available chain; return its head, `EMPTY`, or a code.

    The chain stands in ``q.elem_addr`` and ``q.elem_len``: ``q.elem_out_num`` buffers to read, then
    ``q.elem_in_num`` to write, all of them in guest memory. While notifications are wanted and EVENT_IDX was
    negotiated, `avail_event` moves along.

    Returns:
        The head (from 0); `EMPTY`; or a code, and then no index has moved (what the device is to do is set
        DEVICE_NEEDS_RESET, 2.1.2) while ``elem_addr`` and ``elem_len`` hold whatever was read.

    Source: 2.7.13, 2.7.5, 2.7.4.2; QEMU ``virtqueue_split_pop``.
    """
    mem = q.mem
    u16 = mem.u16
    avail16 = q.avail >> 1
    last_avail = q.last_avail_idx
    if q.shadow_avail_idx == last_avail:
        q.shadow_avail_idx = u16[avail16 + 1]
        if q.shadow_avail_idx == last_avail:
            return EMPTY
    size = q.size
    if ((q.shadow_avail_idx - last_avail) & 0xFFFF) > size:
        return AVAIL_IDX_JUMPED
    if q.inuse >= size:
        return INUSE_EXCEEDED
    # The entry may be read only after the index that covers it.
    fence(mem)
    head = u16[avail16 + 2 + (last_avail & (size - 1))]
    if head >= size:
        return HEAD_OUT_OF_RANGE
    u32 = mem.u32
    u64 = mem.u64
    desc32 = q.desc >> 2
    desc64 = q.desc >> 3
    elem_addr = q.elem_addr
    elem_len = q.elem_len
    mem_size = mem.size
    in_num = 0
    count = 0
    i = head
    more = True
    while more:
        if count >= size:
            return DESC_LOOP
        # Each word is read once: another processor may be changing it.
        addr = u64[desc64 + 2 * i]
        length = u32[desc32 + 4 * i + 2]
        flags_next = u32[desc32 + 4 * i + 3]
        if flags_next & VRING_DESC_F_INDIRECT:
            # The last of a chain may be an indirect one (2.7.5.3.2, though QEMU knows only the first).
            if not q.indirect:
                return INDIRECT_UNSUPPORTED
            if flags_next & VRING_DESC_F_NEXT:
                return INDIRECT_WITH_NEXT
            found = read_table(q, addr, length, count, in_num)
            if found < 0:
                return found
            count = found >> 16
            in_num = found & 0xFFFF
            more = False
        else:
            if flags_next & VRING_DESC_F_WRITE:
                in_num += 1
            elif in_num > 0:
                return READABLE_AFTER_WRITABLE
            if length == 0:
                return ZERO_LENGTH
            if not 0 <= addr <= mem_size - length and not in_regions(mem, addr, length):
                return ADDRESS_OUT_OF_RANGE
            elem_addr[count] = addr
            elem_len[count] = length
            count += 1
            if flags_next & VRING_DESC_F_NEXT:
                i = flags_next >> 16
                if i >= size:
                    return NEXT_OUT_OF_RANGE
            else:
                more = False
    if q.in_order:
        q.order[q.taken % size] = head
        q.taken += 1
    last_avail = (last_avail + 1) & 0xFFFF
    q.last_avail_idx = last_avail
    q.inuse += 1
    q.elem_out_num = count - in_num
    q.elem_in_num = in_num
    if q.event_idx and q.notification:
        u16[(q.used + 4 + 8 * size) >> 1] = last_avail
    return head


def fill(q: DeviceQueue, head: int, length: int, idx: int) -> None:
    """Write a used entry without publishing it, ``idx`` places behind the used index.

    Args:
        q: The queue.
        head: What `pop` returned.
        length: Bytes written into the chain's writable buffers.
        idx: Place in the batch that `flush` will publish, from 0.

    Source: 2.7.8; QEMU ``virtqueue_split_fill``.
    """
    entry = (q.used >> 2) + 1 + 2 * ((q.used_idx + idx) & (q.size - 1))
    u32 = q.mem.u32
    u32[entry] = head
    u32[entry + 1] = length


def flush(q: DeviceQueue, count: int) -> None:
    """Publish ``count`` entries that `fill` has written.

    Source: 2.7.8.2; QEMU ``virtqueue_split_flush``.
    """
    # The driver may look as soon as the index moves: entries and data must stand before.
    fence(q.mem)
    old = q.used_idx
    new = (old + count) & 0xFFFF
    q.used_idx = new
    q.mem.u16[(q.used >> 1) + 1] = new
    q.inuse -= count
    q.given += count
    # Once the used index has come around, its distance from signalled_used says nothing any more. QEMU takes
    # that distance as a signed number, so it stops relying on signalled_used from 32768 entries on.
    distance = (new - q.signalled_used) & 0xFFFF
    if distance >= 0x8000 or distance < count:
        q.signalled_used_valid = False


def unpop(q: DeviceQueue) -> None:
    """Put the chain that was taken last back, to be taken again (QEMU ``virtqueue_unpop``)."""
    q.last_avail_idx = (q.last_avail_idx - 1) & 0xFFFF
    q.inuse -= 1
    if q.in_order:
        q.taken -= 1


def set_notification(q: DeviceQueue, enable: bool) -> None:
    """Say whether the driver shall notify of what it makes available.

    After enabling, look again (`empty`): what came before is not notified. With EVENT_IDX, disabling
    writes nothing; `avail_event` just stays behind, which quiets the driver until its index comes around.

    Source: 2.7.10; QEMU ``virtio_queue_set_notification``.
    """
    q.notification = enable
    if q.event_idx:
        # QEMU reads the index even when it disables; so the shadow is fresh after either.
        q.shadow_avail_idx = q.mem.u16[(q.avail >> 1) + 1]
        if enable:
            q.mem.u16[(q.used + 4 + 8 * q.size) >> 1] = q.shadow_avail_idx
    elif enable:
        q.mem.u16[q.used >> 1] &= ~VRING_USED_F_NO_NOTIFY
    else:
        q.mem.u16[q.used >> 1] |= VRING_USED_F_NO_NOTIFY
    if enable:
        # Armed before the look that follows, or both sides may decide to wait.
        fence(q.mem)


def arm_avail_event(q: DeviceQueue, index: int) -> None:
    """Ask to be notified when the available index passes ``index`` (modulo 2**16).

    As vhost, which arms at the index it last read (``vhost_enable_notify``), or with a threshold: `index`
    beyond what is available lets the driver collect several. Without EVENT_IDX the driver notifies of the
    next chain whatever ``index`` is. Look again afterwards.
    """
    q.notification = True
    if q.event_idx:
        q.mem.u16[(q.used + 4 + 8 * q.size) >> 1] = index & 0xFFFF
    else:
        q.mem.u16[q.used >> 1] &= ~VRING_USED_F_NO_NOTIFY
    fence(q.mem)


def should_notify(q: DeviceQueue) -> bool:
    """Tell whether the driver wants an interrupt for what was used since the last call.

    Source: 2.7.7.2; QEMU ``virtio_split_should_notify`` (without the legacy VIRTIO_F_NOTIFY_ON_EMPTY).
    """
    # The used index must be out before the event index is read, or both sides may decide to wait.
    fence(q.mem)
    if not q.event_idx:
        return (q.mem.u16[q.avail >> 1] & VRING_AVAIL_F_NO_INTERRUPT) == 0
    valid = q.signalled_used_valid
    old = q.signalled_used
    new = q.used_idx
    q.signalled_used_valid = True
    q.signalled_used = new
    return not valid or vring_need_event(q.mem.u16[(q.avail >> 1) + 2 + q.size], new, old)
