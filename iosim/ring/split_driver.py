"""The driver's side of a split virtqueue: what Linux's ``virtio_ring.c`` does.

Names are Linux's. The driver keeps its own copy of whatever the device could change under it: which
descriptors are free, how long each chain is, the flags it last wrote. So nothing the device writes into
guest memory can corrupt the free list; it can only be refused with a code.

Indexes run modulo 2**16 and are masked at every step.
"""

from __future__ import annotations

from iosim.ring.driver_queue import DriverQueue
from iosim.ring.errors import (
    BAD_TOKEN,
    CHAIN_TOO_LONG,
    EMPTY,
    EMPTY_CHAIN,
    NO_SPACE,
    NOT_IN_ORDER,
    USED_ID_NOT_HEAD,
    USED_ID_OUT_OF_RANGE,
    USED_IDX_JUMPED,
)
from iosim.ring.event import vring_need_event
from iosim.ring.layout import (
    VRING_AVAIL_F_NO_INTERRUPT,
    VRING_DESC_F_INDIRECT,
    VRING_DESC_F_NEXT,
    VRING_DESC_F_WRITE,
    VRING_USED_F_NO_NOTIFY,
)
from iosim.ring.memory import fence, write_u32, write_u64


def write_table(d: DriverQueue, out_num: int, in_num: int, table: int) -> None:
    """Write an indirect table of the buffers in ``d.seg_addr`` and ``d.seg_len`` (2.7.5.3).

    Every descriptor's next is the one behind it, the last one's too, as Linux leaves it.
    """
    mem = d.mem
    total = out_num + in_num
    for k in range(total):
        flags = VRING_DESC_F_NEXT
        if k >= out_num:
            flags = VRING_DESC_F_NEXT | VRING_DESC_F_WRITE
        if k == total - 1:
            flags -= VRING_DESC_F_NEXT
        at = table + 16 * k
        write_u64(mem, at, d.seg_addr[k])
        write_u32(mem, at + 8, d.seg_len[k])
        write_u32(mem, at + 12, flags | ((k + 1) & 0xFFFF) << 16)


def enqueue(d: DriverQueue, head: int, last: int, descs: int, out_num: int, in_num: int, token: int) -> None:
    """Take ``descs`` descriptors from ``head`` to ``last`` off the free list and put the chain into the ring."""
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
    idx = d.avail_idx_shadow
    d.mem.u16[(d.avail >> 1) + 2 + (idx & (d.size - 1))] = head
    d.avail_idx_shadow = (idx + 1) & 0xFFFF
    d.num_pending += 1


def add_direct(d: DriverQueue, out_num: int, in_num: int, token: int) -> int:
    """Put one chain of descriptors into the ring without publishing it; see `iosim.ring.driver.add_batched`.

    Source: 2.7.13; Linux ``virtqueue_add_split``.
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
    u32 = mem.u32
    u64 = mem.u64
    desc32 = d.desc >> 2
    desc64 = d.desc >> 3
    seg_addr = d.seg_addr
    seg_len = d.seg_len
    desc_next = d.desc_next
    head = d.free_head
    i = head
    last = head
    for k in range(total):
        flags = VRING_DESC_F_NEXT
        if k >= out_num:
            flags = VRING_DESC_F_NEXT | VRING_DESC_F_WRITE
        if k == total - 1:
            flags -= VRING_DESC_F_NEXT
        following = desc_next[i]
        u64[desc64 + 2 * i] = seg_addr[k]
        u32[desc32 + 4 * i + 2] = seg_len[k]
        # flags and next are neighbours: one store. The last one's next stays set, as Linux leaves it.
        u32[desc32 + 4 * i + 3] = flags | following << 16
        last = i
        i = following
    enqueue(d, head, last, total, out_num, in_num, token)
    return head


def add_indirect(d: DriverQueue, out_num: int, in_num: int, token: int, table: int) -> int:
    """Put one chain into an indirect table and the table's descriptor into the ring, without publishing it.

    Args:
        d: The queue.
        out_num: Buffers the device reads.
        in_num: Buffers the device writes.
        token: A number from 0 by which `get_used` gives the chain back.
        table: Guest-physical address of room for 16 bytes for each buffer.

    Source: 2.7.5.3; Linux ``virtqueue_add_split``.
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
    head = d.free_head
    mem.u64[(d.desc >> 3) + 2 * head] = table
    mem.u32[(d.desc >> 2) + 4 * head + 2] = 16 * total
    mem.u32[(d.desc >> 2) + 4 * head + 3] = VRING_DESC_F_INDIRECT | d.desc_next[head] << 16
    enqueue(d, head, head, 1, out_num, in_num, token)
    return head


def publish(d: DriverQueue) -> None:
    """Make available whatever was added and not published, all at once (2.7.13.3)."""
    if d.num_pending > 0:
        # The device may look as soon as the index moves: the entries and the descriptors must stand before.
        fence(d.mem)
        d.mem.u16[(d.avail >> 1) + 1] = d.avail_idx_shadow
        d.num_added += d.num_pending
        d.num_pending = 0


def kick_prepare(d: DriverQueue) -> bool:
    """Tell whether the device wants to be notified of what was added since the last call.

    Source: 2.7.13.4, 2.7.10; Linux ``virtqueue_kick_prepare_split``.
    """
    # The index must be out before the event index is read, or both sides may decide to wait.
    fence(d.mem)
    new = (d.avail_idx_shadow - d.num_pending) & 0xFFFF
    added = d.num_added
    d.num_added = 0
    if d.event_idx:
        if added > 0xFFFF:
            # Once around: the indexes no longer tell what was passed. (Linux kicks before it comes to that.)
            return True
        event = d.mem.u16[(d.used + 4 + 8 * d.size) >> 1]
        return vring_need_event(event, new, (new - added) & 0xFFFF)
    return (d.mem.u16[d.used >> 1] & VRING_USED_F_NO_NOTIFY) == 0


def more_used(d: DriverQueue) -> bool:
    """Tell whether the used ring holds chains that `get_used` has not taken (Linux ``more_used``)."""
    return d.mem.u16[(d.used >> 1) + 1] != d.last_used_idx


def detach(d: DriverQueue, head: int) -> int:
    """Free a chain's descriptors; return its token (Linux ``detach_buf_split``)."""
    token = d.desc_state[head]
    d.desc_state[head] = -1
    if not d.in_order:
        d.desc_next[d.desc_last[head]] = d.free_head
        d.free_head = head
    # In order, chains are freed as they were taken: the free list is the rest of the ring and needs no links.
    d.num_free += d.desc_num[head]
    d.taken += 1
    return token


def get_used(d: DriverQueue) -> int:
    """Take the next used chain back; return its token, `EMPTY`, or a code; see `iosim.ring.driver.get_used`.

    Source: 2.7.14, 2.7.8; Linux ``virtqueue_get_buf_ctx_split``. In order: 2.7.9.
    """
    mem = d.mem
    last_used = d.last_used_idx
    pending = (mem.u16[(d.used >> 1) + 1] - last_used) & 0xFFFF
    if pending == 0:
        return EMPTY
    size = d.size
    # Each chain in flight holds a descriptor at least.
    if pending > size - d.num_free:
        return USED_IDX_JUMPED
    head = d.batch_head
    length = d.batch_len
    if head < 0:
        # The entry may be read only after the index that covers it.
        fence(mem)
        entry = (d.used >> 2) + 1 + 2 * (last_used & (size - 1))
        head = mem.u32[entry]
        if not 0 <= head < size:
            return USED_ID_OUT_OF_RANGE
        if d.desc_state[head] < 0 or d.desc_seq[head] >= d.added - d.num_pending:
            return USED_ID_NOT_HEAD
        length = mem.u32[entry + 1]
    if d.in_order:
        # Chains that the device skipped were used, too, and all of their writable buffers (2.7.9).
        first = d.order[d.taken % size]
        if d.batch_head < 0 and d.desc_seq[head] - d.desc_seq[first] >= pending:
            return NOT_IN_ORDER
        if first != head:
            d.batch_head = head
            d.batch_len = length
            length = d.desc_in_len[first]
            head = first
        else:
            d.batch_head = -1
    d.used_len = length
    d.used_head = head
    token = detach(d, head)
    last_used = (last_used + 1) & 0xFFFF
    d.last_used_idx = last_used
    if (d.avail_flags_shadow & VRING_AVAIL_F_NO_INTERRUPT) == 0:
        mem.u16[(d.avail >> 1) + 2 + size] = last_used
        # The event index must be out before the used index is read again.
        fence(mem)
    return token


def detach_unused(d: DriverQueue) -> int:
    """Take back a chain that the device will not use any more; return its token, or `EMPTY`.

    Source: Linux ``virtqueue_detach_unused_buf_split``, which takes the available index back with each.
    """
    for head in range(d.size):
        if d.desc_state[head] >= 0:
            d.used_head = head
            d.used_len = 0
            d.batch_head = -1
            d.num_pending = 0
            idx = (d.avail_idx_shadow - 1) & 0xFFFF
            d.avail_idx_shadow = idx
            d.mem.u16[(d.avail >> 1) + 1] = idx
            return detach(d, head)
    return EMPTY


def disable_cb(d: DriverQueue) -> None:
    """Ask the device for no more interrupts; a hint, one may still come.

    Without EVENT_IDX this sets the flag in the available ring. With it there is no value of `used_event` that
    means "never": Linux writes 0, and writes nothing if an interrupt has come since callbacks were enabled
    (`vring_interrupt`). Either way the stale value stands while the used index goes on, so an interrupt
    still comes when the used index passes it: once in 65536 chains, and with 0 at a new queue's first.

    Source: 2.7.7; Linux ``virtqueue_disable_cb_split``.
    """
    if (d.avail_flags_shadow & VRING_AVAIL_F_NO_INTERRUPT) == 0:
        d.avail_flags_shadow |= VRING_AVAIL_F_NO_INTERRUPT
        if not d.event_triggered:
            if d.event_idx:
                d.mem.u16[(d.avail >> 1) + 2 + d.size] = 0
            else:
                d.mem.u16[d.avail >> 1] = d.avail_flags_shadow


def _enable_at(d: DriverQueue, event: int) -> None:
    if d.avail_flags_shadow & VRING_AVAIL_F_NO_INTERRUPT:
        d.avail_flags_shadow &= ~VRING_AVAIL_F_NO_INTERRUPT
        if not d.event_idx:
            d.mem.u16[d.avail >> 1] = d.avail_flags_shadow
    d.mem.u16[(d.avail >> 1) + 2 + d.size] = event & 0xFFFF


def enable_cb_prepare(d: DriverQueue) -> int:
    """Ask for an interrupt at the next used chain; return what `poll` needs to look again.

    Source: 2.7.7, 2.7.14; Linux ``virtqueue_enable_cb_prepare``.
    """
    _enable_at(d, d.last_used_idx)
    return d.last_used_idx


def poll(d: DriverQueue, last_used_idx: int) -> bool:
    """Tell whether chains were used since `enable_cb_prepare` returned ``last_used_idx``.

    Source: Linux ``virtqueue_poll``.
    """
    # Re-armed first, looked again after: in the other order a chain used in between is never seen.
    fence(d.mem)
    return d.mem.u16[(d.used >> 1) + 1] != last_used_idx & 0xFFFF


def delayed_bufs(d: DriverQueue) -> int:
    """Return how many chains a delayed interrupt waits for in Linux: three quarters of those in flight."""
    return ((d.avail_idx_shadow - d.last_used_idx) & 0xFFFF) * 3 // 4


def arm_used_event(d: DriverQueue, bufs: int) -> None:
    """Ask for an interrupt when more than ``bufs`` chains are used beyond those taken.

    Without EVENT_IDX the device interrupts at the next one whatever ``bufs`` is.
    """
    _enable_at(d, d.last_used_idx + bufs)
    fence(d.mem)


def used_beyond(d: DriverQueue, bufs: int) -> bool:
    """Tell whether more than ``bufs`` used chains wait to be taken."""
    return ((d.mem.u16[(d.used >> 1) + 1] - d.last_used_idx) & 0xFFFF) > bufs
