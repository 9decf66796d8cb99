"""The driver's side of a packed virtqueue (virtio 1.2, 2.8): what Linux's ``virtio_ring.c`` does.

Places in the ring are counted on without end (`DriverQueue`); only what goes into memory is folded to a slot and
a wrap counter. A descriptor's flags are written last and alone, through the 16-bit view: they are what hands
the descriptor over.

As in Linux, buffer ids come from a list of free ones, and a chain takes as many ids as descriptors off that list
though only the first is its id.
"""

from __future__ import annotations

from iosim.ring.driver_queue import DriverQueue
from iosim.ring.errors import (
    BAD_TOKEN,
    CHAIN_TOO_LONG,
    EMPTY,
    EMPTY_CHAIN,
    NO_SPACE,
    USED_ID_NOT_HEAD,
    USED_ID_OUT_OF_RANGE,
    USED_IDX_JUMPED,
    WRAP_MISMATCH,
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
from iosim.ring.memory import fence, write_u16, write_u32, write_u64


def write_table(d: DriverQueue, out_num: int, in_num: int, table: int) -> None:
    """Write an indirect table of the buffers in ``d.seg_addr`` and ``d.seg_len``.

    WRITE is the only flag in a table; the descriptors just follow each other (2.8.7, 2.8.19).
    """
    mem = d.mem
    for k in range(out_num + in_num):
        at = table + 16 * k
        write_u64(mem, at, d.seg_addr[k])
        write_u32(mem, at + 8, d.seg_len[k])
        write_u16(mem, at + 12, 0)
        flags = 0
        if k >= out_num:
            flags = VRING_DESC_F_WRITE
        write_u16(mem, at + 14, flags)


def enqueue(d: DriverQueue, last: int, descs: int, out_num: int, in_num: int, token: int, flags: int) -> int:
    """Note a chain that has been written but for its first descriptor's ``flags``; return its id."""
    head = d.free_head
    d.free_head = d.desc_next[last]
    d.num_free -= descs
    d.desc_state[head] = token
    d.desc_num[head] = descs
    d.desc_last[head] = last
    added = d.added
    d.desc_seq[head] = added
    d.added = added + 1
    if d.in_order:
        d.order[added % d.size] = head
        writable = 0
        for k in range(out_num, out_num + in_num):
            writable += d.seg_len[k]
        d.desc_in_len[head] = writable
    first = d.next_avail_idx
    if d.num_pending == 0:
        # The device stops here until `publish`, whatever stands behind.
        d.pending_idx = first
        d.pending_flags = flags
    else:
        fence(d.mem)
        d.mem.u16[(d.desc >> 1) + 8 * (first % d.size) + 7] = flags
    d.next_avail_idx = first + descs
    d.num_pending += 1
    return head


def add_direct(d: DriverQueue, out_num: int, in_num: int, token: int) -> int:
    """Put one chain of descriptors into the ring without publishing it; see `iosim.ring.driver.add_batched`.

    Source: 2.8.21; Linux ``virtqueue_add_packed``.
    """
    total = out_num + in_num
    if total <= 0:
        return EMPTY_CHAIN
    if total > d.size:
        return CHAIN_TOO_LONG
    if total > d.num_free:
        return NO_SPACE
    if token < 0:
        return BAD_TOKEN
    mem = d.mem
    u16 = mem.u16
    u32 = mem.u32
    u64 = mem.u64
    desc16 = d.desc >> 1
    desc32 = d.desc >> 2
    desc64 = d.desc >> 3
    size = d.size
    head = d.free_head
    last = head
    marks = VRING_PACKED_DESC_F_AVAIL
    if (d.next_avail_idx // size) & 1:
        marks = VRING_PACKED_DESC_F_USED
    i = d.next_avail_idx % size
    head_flags = 0
    for k in range(total):
        flags = marks
        if k < total - 1:
            flags |= VRING_DESC_F_NEXT
        if k >= out_num:
            flags |= VRING_DESC_F_WRITE
        u64[desc64 + 2 * i] = d.seg_addr[k]
        u32[desc32 + 4 * i + 2] = d.seg_len[k]
        # Only the last one's id counts (2.8.6); Linux writes it into every one.
        u16[desc16 + 8 * i + 6] = head
        if k == 0:
            head_flags = flags
        else:
            u16[desc16 + 8 * i + 7] = flags
            last = d.desc_next[last]
        i += 1
        if i == size:
            i = 0
            marks ^= PACKED_MARKS
    return enqueue(d, last, total, out_num, in_num, token, head_flags)


def add_indirect(d: DriverQueue, out_num: int, in_num: int, token: int, table: int) -> int:
    """Put one chain into an indirect table and the table's descriptor into the ring, without publishing it.

    Args:
        d: The queue.
        out_num: Buffers the device reads.
        in_num: Buffers the device writes.
        token: A number from 0 by which `get_used` gives the chain back.
        table: Guest-physical address of room for 16 bytes for each buffer.

    Source: 2.8.7; Linux ``virtqueue_add_indirect_packed``.
    """
    total = out_num + in_num
    if total <= 0:
        return EMPTY_CHAIN
    if total > d.size:
        return CHAIN_TOO_LONG
    if d.num_free < 1:
        return NO_SPACE
    if token < 0:
        return BAD_TOKEN
    write_table(d, out_num, in_num, table)
    mem = d.mem
    size = d.size
    i = d.next_avail_idx % size
    mem.u64[(d.desc >> 3) + 2 * i] = table
    mem.u32[(d.desc >> 2) + 4 * i + 2] = 16 * total
    mem.u16[(d.desc >> 1) + 8 * i + 6] = d.free_head
    flags = VRING_DESC_F_INDIRECT | VRING_PACKED_DESC_F_AVAIL
    if (d.next_avail_idx // size) & 1:
        flags = VRING_DESC_F_INDIRECT | VRING_PACKED_DESC_F_USED
    return enqueue(d, d.free_head, 1, out_num, in_num, token, flags)


def publish(d: DriverQueue) -> None:
    """Make available whatever was added and not published, all at once: by the first descriptor's flags (2.8.21.1)."""
    if d.num_pending > 0:
        # The device may look as soon as the flags change: everything else must stand before.
        fence(d.mem)
        d.mem.u16[(d.desc >> 1) + 8 * (d.pending_idx % d.size) + 7] = d.pending_flags
        d.num_added += d.next_avail_idx - d.pending_idx
        d.num_pending = 0


def kick_prepare(d: DriverQueue) -> bool:
    """Tell whether the device wants to be notified of what was published since the last call.

    Source: 2.8.21.2, 2.8.10; Linux ``virtqueue_kick_prepare_packed``.
    """
    # The descriptors must be out before the event structure is read, or both sides may decide to wait.
    fence(d.mem)
    added = d.num_added
    d.num_added = 0
    # Flags and offset by one load, as Linux does: they belong together.
    event = d.mem.u32[d.used >> 2]
    flags = event >> 16 & PACKED_EVENT_FLAGS
    if flags != VRING_PACKED_EVENT_FLAG_DESC:
        return flags != VRING_PACKED_EVENT_FLAG_DISABLE
    new = d.next_avail_idx
    if d.num_pending > 0:
        new = d.pending_idx
    return vring_packed_need_event(d.size, event & 0xFFFF, new, new - added)


def is_used(d: DriverQueue, place: int) -> bool:
    """Tell whether the descriptor at a place is marked as used in that lap (Linux ``is_used_desc_packed``)."""
    marks = d.mem.u16[(d.desc >> 1) + 8 * (place % d.size) + 7] & PACKED_MARKS
    if (place // d.size) & 1:
        return marks == 0
    return marks == PACKED_MARKS


def more_used(d: DriverQueue) -> bool:
    """Tell whether the ring holds chains that `get_used` has not taken (Linux ``more_used_packed``)."""
    return d.batch_head >= 0 or is_used(d, d.last_used_idx)


def detach(d: DriverQueue, head: int) -> int:
    """Free a chain's descriptors and ids; return its token (Linux ``detach_buf_packed``)."""
    token = d.desc_state[head]
    d.desc_state[head] = -1
    d.desc_next[d.desc_last[head]] = d.free_head
    d.free_head = head
    d.num_free += d.desc_num[head]
    d.taken += 1
    return token


def get_used(d: DriverQueue) -> int:
    """Take the next used chain back; return its token, `EMPTY`, or a code; see `iosim.ring.driver.get_used`.

    Linux takes marks that are neither "used" nor "available" for "not yet used"; here they are `WRAP_MISMATCH`.

    Source: 2.8.22; Linux ``virtqueue_get_buf_ctx_packed``. In order: 2.8.8.
    """
    mem = d.mem
    size = d.size
    place = d.last_used_idx
    end = d.next_avail_idx
    if d.num_pending > 0:
        end = d.pending_idx
    head = d.batch_head
    length = d.batch_len
    if head < 0:
        slot = place % size
        marks = mem.u16[(d.desc >> 1) + 8 * slot + 7] & PACKED_MARKS
        used = PACKED_MARKS
        available = VRING_PACKED_DESC_F_AVAIL
        if (place // size) & 1:
            used = 0
            available = VRING_PACKED_DESC_F_USED
        if marks != used:
            if place < end and marks != available:
                return WRAP_MISMATCH
            return EMPTY
        if place >= end:
            return USED_IDX_JUMPED
        # The rest of the descriptor may be read only after its flags.
        fence(mem)
        head = mem.u16[(d.desc >> 1) + 8 * slot + 6]
        if head >= size:
            return USED_ID_OUT_OF_RANGE
        if d.desc_state[head] < 0 or d.desc_seq[head] >= d.added - d.num_pending:
            return USED_ID_NOT_HEAD
        # Without WRITE the length is reserved (2.8.4). QEMU never sets WRITE, and drivers read it all the same.
        length = mem.u32[(d.desc >> 2) + 4 * slot + 2]
    if d.in_order:
        # Chains that the device skipped were used, too, and all of their writable buffers (2.8.8).
        first = d.order[d.taken % size]
        if first != head:
            d.batch_head = head
            d.batch_len = length
            length = d.desc_in_len[first]
            head = first
        else:
            d.batch_head = -1
    d.used_len = length
    d.used_head = head
    place += d.desc_num[head]
    d.last_used_idx = place
    token = detach(d, head)
    if d.event_flags_shadow == VRING_PACKED_EVENT_FLAG_DESC:
        mem.u16[d.avail >> 1] = off_wrap(size, place)
        # The event offset must be out before the ring is read again.
        fence(mem)
    return token


def detach_unused(d: DriverQueue) -> int:
    """Take back a chain that the device will not use any more; return its token, or `EMPTY`.

    The place of the next descriptor stays, as in Linux: the ring must be set up anew before it is used again.

    Source: Linux ``virtqueue_detach_unused_buf_packed``.
    """
    for head in range(d.size):
        if d.desc_state[head] >= 0:
            d.used_head = head
            d.used_len = 0
            d.batch_head = -1
            d.num_pending = 0
            return detach(d, head)
    return EMPTY


def disable_cb(d: DriverQueue) -> None:
    """Ask the device for no more interrupts; a hint, one may still come.

    Source: 2.8.10; Linux ``virtqueue_disable_cb_packed``.
    """
    if d.event_flags_shadow != VRING_PACKED_EVENT_FLAG_DISABLE:
        d.event_flags_shadow = VRING_PACKED_EVENT_FLAG_DISABLE
        # A device that has interrupted already will not do it again: nothing to write (Linux).
        if not d.event_triggered:
            d.mem.u16[(d.avail >> 1) + 1] = VRING_PACKED_EVENT_FLAG_DISABLE


def enable_at(d: DriverQueue, place: int) -> None:
    """Ask for an interrupt when the descriptor at ``place`` is used; without EVENT_IDX, at the next one."""
    if d.event_idx:
        d.mem.u16[d.avail >> 1] = off_wrap(d.size, place)
        # The offset must stand before the flags say that it counts.
        fence(d.mem)
    if d.event_flags_shadow == VRING_PACKED_EVENT_FLAG_DISABLE:
        flags = VRING_PACKED_EVENT_FLAG_ENABLE
        if d.event_idx:
            flags = VRING_PACKED_EVENT_FLAG_DESC
        d.event_flags_shadow = flags
        d.mem.u16[(d.avail >> 1) + 1] = flags


def enable_cb_prepare(d: DriverQueue) -> int:
    """Ask for an interrupt at the next used chain; return what `poll` needs to look again.

    On a queue whose callbacks were never disabled the flags stay ENABLE, as in Linux.

    Source: 2.8.10; Linux ``virtqueue_enable_cb_prepare_packed``.
    """
    enable_at(d, d.last_used_idx)
    return d.last_used_idx


def poll(d: DriverQueue, last_used_idx: int) -> bool:
    """Tell whether chains were used since `enable_cb_prepare` returned ``last_used_idx``.

    Source: Linux ``virtqueue_poll``, ``virtqueue_poll_packed``.
    """
    # Re-armed first, looked again after: in the other order a chain used in between is never seen.
    fence(d.mem)
    return d.batch_head >= 0 or is_used(d, last_used_idx)


def delayed_bufs(d: DriverQueue) -> int:
    """Return how many descriptors a delayed interrupt waits for in Linux: three quarters of those in flight."""
    return (d.size - d.num_free) * 3 // 4


def arm_used_event(d: DriverQueue, bufs: int) -> None:
    """Ask for an interrupt when the descriptor ``bufs`` places on is used (`iosim.ring.driver.arm_used_event`).

    Source: Linux ``virtqueue_enable_cb_delayed_packed``, its first half.
    """
    enable_at(d, d.last_used_idx + bufs)
    fence(d.mem)


def used_beyond(d: DriverQueue, bufs: int) -> bool:
    """Tell whether the descriptor ``bufs`` places on has been used.

    Walks over the used chains there are; a place inside a chain counts as used with it.
    """
    place = d.last_used_idx
    wanted = place + bufs
    end = d.next_avail_idx
    if d.batch_head >= 0:
        return True
    while place <= wanted and place < end and is_used(d, place):
        fence(d.mem)
        head = d.mem.u16[(d.desc >> 1) + 8 * (place % d.size) + 6]
        if head >= d.size or d.desc_state[head] < 0:
            # Nonsense that `get_used` has a name for.
            return True
        place += d.desc_num[head]
    return place > wanted


def poll_delayed(d: DriverQueue) -> bool:
    """Look again as Linux's ``virtqueue_enable_cb_delayed_packed`` does: only at the next place."""
    return d.batch_head >= 0 or is_used(d, d.last_used_idx)
