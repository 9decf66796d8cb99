"""The device's side of a packed virtqueue (virtio 1.2, 2.8): what QEMU's ``hw/virtio/virtio.c`` does.

Names are QEMU's. Places in the ring are counted on without end (`DeviceQueue`). Everything read from guest memory
may be garbage, or change while it is read: each word is read once, checked, and only then believed.
"""

from __future__ import annotations

from iosim.ring.device_queue import DeviceQueue
from iosim.ring.errors import (
    ADDRESS_OUT_OF_RANGE,
    BAD_TABLE_LENGTH,
    DESC_LOOP,
    EMPTY,
    ID_IN_FLIGHT,
    INDIRECT_UNSUPPORTED,
    INDIRECT_WITH_NEXT,
    INUSE_EXCEEDED,
    READABLE_AFTER_WRITABLE,
    TABLE_TOO_LONG,
    WRAP_MISMATCH,
    ZERO_LENGTH,
)
from iosim.ring.event import off_wrap, vring_packed_need_event
from iosim.ring.layout import (
    PACKED_EVENT_FLAGS,
    PACKED_MARKS,
    VRING_DESC_F_INDIRECT,
    VRING_DESC_F_NEXT,
    VRING_DESC_F_WRITE,
    VRING_PACKED_DESC_F_AVAIL,
    VRING_PACKED_DESC_F_USED,
    VRING_PACKED_EVENT_FLAG_DESC,
    VRING_PACKED_EVENT_FLAG_DISABLE,
    VRING_PACKED_EVENT_FLAG_ENABLE,
)
from iosim.ring.memory import fence, in_range, in_regions, read_u16, read_u32, read_u64


def is_available(q: DeviceQueue, place: int) -> bool:
    """Tell whether the descriptor at a place is marked as available in that lap (QEMU ``is_desc_avail``)."""
    marks = q.mem.u16[(q.desc >> 1) + 8 * (place % q.size) + 7] & PACKED_MARKS
    if (place // q.size) & 1:
        return marks == VRING_PACKED_DESC_F_USED
    return marks == VRING_PACKED_DESC_F_AVAIL


def empty(q: DeviceQueue) -> bool:
    """Tell whether there is no chain to take (QEMU ``virtio_queue_packed_empty``)."""
    return not is_available(q, q.last_avail_idx)


def avail_in_ring(q: DeviceQueue) -> int:
    """Return how many chains wait to be taken, by a look at the ring: those that are there in full."""
    mem = q.mem
    place = q.last_avail_idx
    end = place + q.size - q.inuse
    chains = 0
    while place < end and is_available(q, place):
        if (mem.u16[(q.desc >> 1) + 8 * (place % q.size) + 7] & VRING_DESC_F_NEXT) == 0:
            chains += 1
        place += 1
    return chains


def read_table(q: DeviceQueue, table: int, length: int) -> int:
    """Put an indirect table's buffers into ``q.elem_addr`` and ``q.elem_len``.

    The table may stand at any address, and be longer than the queue, as QEMU allows it: 1024 then. Its descriptors
    follow each other; of their flags WRITE alone counts, the others are ignored (2.8.7): so is a nested INDIRECT.

    Returns:
        How many there are, times 65536, plus how many of them are writable; or a code.

    Source: 2.8.7; QEMU ``virtqueue_packed_pop``.
    """
    if length == 0 or length & 15:
        return BAD_TABLE_LENGTH
    mem = q.mem
    if not in_range(mem, table, length):
        return ADDRESS_OUT_OF_RANGE
    entries = length >> 4
    if entries > len(q.elem_addr):
        return TABLE_TOO_LONG
    in_num = 0
    for k in range(entries):
        at = table + 16 * k
        addr = read_u64(mem, at)
        size = read_u32(mem, at + 8)
        if read_u16(mem, at + 14) & VRING_DESC_F_WRITE:
            in_num += 1
        elif in_num > 0:
            return READABLE_AFTER_WRITABLE
        if size == 0:
            return ZERO_LENGTH
        if not in_range(mem, addr, size):
            return ADDRESS_OUT_OF_RANGE
        q.elem_addr[k] = addr
        q.elem_len[k] = size
    return entries << 16 | in_num


def pop(q: DeviceQueue) -> int:
    """Take the next available chain; return its buffer id, `EMPTY`, or a code; see `iosim.ring.device.pop`.

    Marks that say "used" for a descriptor that this device has not used yet are `WRAP_MISMATCH`, as are marks inside
    a chain that do not say "available" (2.8.6); QEMU takes the former for "nothing there" and does not look at the
    latter. The event offset does not move along, as in QEMU: `set_notification` arms it.

    Source: 2.8.2, 2.8.6; QEMU ``virtqueue_packed_pop``.
    """
    mem = q.mem
    u16 = mem.u16
    size = q.size
    place = q.last_avail_idx
    desc16 = q.desc >> 1
    i = place % size
    marks = VRING_PACKED_DESC_F_AVAIL
    used = PACKED_MARKS
    if (place // size) & 1:
        marks = VRING_PACKED_DESC_F_USED
        used = 0
    flags = u16[desc16 + 8 * i + 7]
    if flags & PACKED_MARKS != marks:
        if flags & PACKED_MARKS == used:
            return WRAP_MISMATCH
        return EMPTY
    if q.inuse >= size:
        return INUSE_EXCEEDED
    # The rest may be read only after the flags that cover it.
    fence(mem)
    u32 = mem.u32
    u64 = mem.u64
    desc32 = q.desc >> 2
    desc64 = q.desc >> 3
    mem_size = mem.size
    ndescs = 0
    count = 0
    in_num = 0
    more = True
    while more:
        if ndescs >= size:
            return DESC_LOOP
        if ndescs + q.inuse >= size:
            return INUSE_EXCEEDED
        if ndescs > 0:
            flags = u16[desc16 + 8 * i + 7]
            if flags & PACKED_MARKS != marks:
                return WRAP_MISMATCH
        addr = u64[desc64 + 2 * i]
        length = u32[desc32 + 4 * i + 2]
        if flags & VRING_DESC_F_INDIRECT:
            if not q.indirect:
                return INDIRECT_UNSUPPORTED
            if ndescs > 0 or flags & VRING_DESC_F_NEXT:
                return INDIRECT_WITH_NEXT
            found = read_table(q, addr, length)
            if found < 0:
                return found
            count = found >> 16
            in_num = found & 0xFFFF
        else:
            if flags & VRING_DESC_F_WRITE:
                in_num += 1
            elif in_num > 0:
                return READABLE_AFTER_WRITABLE
            if length == 0:
                return ZERO_LENGTH
            if not 0 <= addr <= mem_size - length and not in_regions(mem, addr, length):
                return ADDRESS_OUT_OF_RANGE
            q.elem_addr[count] = addr
            q.elem_len[count] = length
            count += 1
        ndescs += 1
        if flags & VRING_DESC_F_NEXT:
            i += 1
            if i == size:
                i = 0
                marks ^= PACKED_MARKS
        else:
            more = False
    # The last descriptor's id is the chain's (2.8.6).
    head = u16[desc16 + 8 * i + 6]
    if q.elem_ndescs[head] > 0:
        return ID_IN_FLIGHT
    q.elem_ndescs[head] = ndescs
    if q.in_order:
        q.order[q.taken % size] = head
        q.taken += 1
    place += ndescs
    q.last_avail_idx = place
    q.shadow_avail_idx = place
    q.inuse += ndescs
    q.elem_out_num = count - in_num
    q.elem_in_num = in_num
    return head


def write_used(q: DeviceQueue, head: int, length: int, place: int) -> None:
    """Write a used descriptor; from its flags on, which come last, it is the driver's.

    WRITE says that the length counts (2.8.3, 2.8.4); QEMU leaves it out.
    """
    mem = q.mem
    slot = place % q.size
    mem.u32[(q.desc >> 2) + 4 * slot + 2] = length
    mem.u16[(q.desc >> 1) + 8 * slot + 6] = head
    flags = PACKED_MARKS
    if (place // q.size) & 1:
        flags = 0
    if length > 0:
        flags |= VRING_DESC_F_WRITE
    fence(mem)
    mem.u16[(q.desc >> 1) + 8 * slot + 7] = flags


def fill(q: DeviceQueue, head: int, length: int, idx: int) -> None:
    """Keep a used chain for `flush`, which writes it; the ring does not change (QEMU ``virtqueue_packed_fill``)."""
    q.fill_head[idx] = head
    q.fill_len[idx] = length


def flush(q: DeviceQueue, count: int) -> None:
    """Write ``count`` used descriptors for what `fill` was given, the first one last: that publishes them all.

    Each stands as many places behind the one before it as that one's chain had descriptors (2.8.6).

    Source: 2.8.12; QEMU ``virtqueue_packed_flush``.
    """
    if count > 0:
        first = q.fill_head[0]
        ndescs = q.elem_ndescs[first]
        q.elem_ndescs[first] = 0
        for k in range(1, count):
            head = q.fill_head[k]
            write_used(q, head, q.fill_len[k], q.used_idx + ndescs)
            ndescs += q.elem_ndescs[head]
            q.elem_ndescs[head] = 0
        write_used(q, first, q.fill_len[0], q.used_idx)
        q.given += count
        advance(q, ndescs)


def advance(q: DeviceQueue, ndescs: int) -> None:
    """Step over ``ndescs`` used descriptors.

    Each time around, QEMU stops relying on `signalled_used`, so it interrupts at least once a lap.
    """
    q.inuse -= ndescs
    lap = q.used_idx // q.size
    q.used_idx += ndescs
    if q.used_idx // q.size != lap:
        q.signalled_used_valid = False


def unpop(q: DeviceQueue, head: int) -> None:
    """Put the chain that was taken last back, to be taken again.

    QEMU's ``virtqueue_packed_rewind`` goes back by one descriptor whatever the chain's length is, here it is all
    of the chain.
    """
    ndescs = q.elem_ndescs[head]
    q.elem_ndescs[head] = 0
    q.last_avail_idx -= ndescs
    q.shadow_avail_idx = q.last_avail_idx
    q.inuse -= ndescs
    if q.in_order:
        q.taken -= 1


def arm(q: DeviceQueue, place: int) -> None:
    """Ask to be notified when the descriptor at ``place`` is made available; without EVENT_IDX, at the next one."""
    event16 = q.used >> 1
    if q.event_idx:
        q.mem.u16[event16] = off_wrap(q.size, place)
        # The offset must stand before the flags say that it counts.
        fence(q.mem)
        q.mem.u16[event16 + 1] = VRING_PACKED_EVENT_FLAG_DESC
    else:
        q.mem.u16[event16 + 1] = VRING_PACKED_EVENT_FLAG_ENABLE
    # Armed before the look that follows, or both sides may decide to wait.
    fence(q.mem)


def set_notification(q: DeviceQueue, enable: bool) -> None:
    """Say whether the driver shall notify of what it makes available (`iosim.ring.device.set_notification`).

    Source: 2.8.10; QEMU ``virtio_queue_packed_set_notification``.
    """
    q.notification = enable
    if enable:
        arm(q, q.shadow_avail_idx)
    else:
        q.mem.u16[(q.used >> 1) + 1] = VRING_PACKED_EVENT_FLAG_DISABLE


def arm_avail_event(q: DeviceQueue, place: int) -> None:
    """Ask to be notified when the descriptor at ``place`` is made available; look again afterwards."""
    q.notification = True
    arm(q, place)


def should_notify(q: DeviceQueue) -> bool:
    """Tell whether the driver wants an interrupt for what was used since the last call.

    Source: 2.8.10, 2.8.22; QEMU ``virtio_packed_should_notify``.
    """
    # The used descriptors must be out before the event structure is read, or both sides may decide to wait.
    fence(q.mem)
    event = q.mem.u32[q.avail >> 2]
    old = q.signalled_used
    new = q.used_idx
    valid = q.signalled_used_valid
    q.signalled_used = new
    q.signalled_used_valid = True
    flags = event >> 16 & PACKED_EVENT_FLAGS
    if flags == VRING_PACKED_EVENT_FLAG_DISABLE:
        return False
    if flags == VRING_PACKED_EVENT_FLAG_ENABLE:
        return True
    return not valid or vring_packed_need_event(q.size, event & 0xFFFF, new, old)
