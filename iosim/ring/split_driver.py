"""The driver's side of a split virtqueue: what Linux's ``virtio_ring.c`` does.

Names are Linux's. The driver keeps its own copy of whatever the device could change under it: which
descriptors are free, how long each chain is, the flags it last wrote. So nothing the device writes into
guest memory can corrupt the free list; it can only be refused with a code.

Indexes run modulo 2**16 and are masked at every step.
"""

from __future__ import annotations

from iosim.ring.errors import (
    BAD_TOKEN,
    CHAIN_TOO_LONG,
    EMPTY,
    EMPTY_CHAIN,
    NO_SPACE,
    USED_ID_NOT_HEAD,
    USED_ID_OUT_OF_RANGE,
    USED_IDX_JUMPED,
)
from iosim.ring.event import vring_need_event
from iosim.ring.layout import (
    VRING_AVAIL_F_NO_INTERRUPT,
    VRING_DESC_F_NEXT,
    VRING_DESC_F_WRITE,
    VRING_USED_F_NO_NOTIFY,
    check_ring,
)
from iosim.ring.memory import GuestMemory, fence


class DriverQueue:
    """The state a driver keeps of one split virtqueue (Linux: ``struct vring_virtqueue``).

    Args:
        mem: Guest memory.
        size: Descriptors, a power of two from 1 to 32768.
        desc: Guest-physical address of the descriptor table.
        avail: The same of the available ring.
        used: The same of the used ring.
        event_idx: Whether VIRTIO_F_EVENT_IDX was negotiated.

    Attributes:
        seg_addr: Where the caller puts the guest-physical addresses of the next chain's buffers.
        seg_len: Where the caller puts their lengths in bytes.
        free_head: First descriptor of the free list (linked by `desc_next`).
        num_free: Descriptors in the free list.
        num_added: Chains added since the last `kick_prepare`.
        last_used_idx: Index of the next entry of the used ring to take.
        avail_idx_shadow: The available index as last published.
        avail_flags_shadow: The flags as last decided; with `event_idx` they are not written to the ring.
        event_triggered: An interrupt came since callbacks were last enabled, so none is due.
        used_len: Bytes the device says it wrote into the chain that `get_used` returned last.
        used_head: Head of that chain.
        desc_state: By head: the token of the chain in flight, or -1.
        desc_num: By head: descriptors of the chain in flight.
        desc_last: By head: last descriptor of the chain in flight.
        desc_next: By descriptor: the next one, in a chain or in the free list.

    Raises:
        SizeError: The size is none that a split virtqueue can have.
        AddressError: A part is not aligned or not in guest memory.
    """

    __slots__ = (
        "avail",
        "avail_flags_shadow",
        "avail_idx_shadow",
        "desc",
        "desc_last",
        "desc_next",
        "desc_num",
        "desc_state",
        "event_idx",
        "event_triggered",
        "free_head",
        "last_used_idx",
        "mem",
        "num_added",
        "num_free",
        "seg_addr",
        "seg_len",
        "size",
        "used",
        "used_head",
        "used_len",
    )

    def __init__(
        self, mem: GuestMemory, size: int, desc: int, avail: int, used: int, event_idx: bool
    ) -> None:
        check_ring(mem, size, desc, avail, used)
        self.mem = mem
        self.size = size
        self.desc = desc
        self.avail = avail
        self.used = used
        self.event_idx = event_idx
        self.seg_addr = [0] * size
        self.seg_len = [0] * size
        self.free_head = 0
        self.num_free = size
        self.num_added = 0
        self.last_used_idx = 0
        self.avail_idx_shadow = 0
        self.avail_flags_shadow = 0
        self.event_triggered = False
        self.used_len = 0
        self.used_head = 0
        self.desc_state = [-1] * size
        self.desc_num = [0] * size
        self.desc_last = [0] * size
        self.desc_next = [(i + 1) & (size - 1) for i in range(size)]

    def __repr__(self) -> str:
        return (
            f"DriverQueue(size={self.size}, num_free={self.num_free},"
            f" avail_idx_shadow={self.avail_idx_shadow}, last_used_idx={self.last_used_idx})"
        )


def add(d: DriverQueue, out_num: int, in_num: int, token: int) -> int:
    """Make one chain of buffers available to the device; return its head, or a code.

    The buffers stand in ``d.seg_addr`` and ``d.seg_len``: first ``out_num`` that the device reads, then
    ``in_num`` that it writes (2.7.4.2).

    Args:
        d: The queue.
        out_num: Buffers the device reads.
        in_num: Buffers the device writes.
        token: A number from 0 by which `get_used` gives the chain back.

    Returns:
        The head (from 0), or `EMPTY_CHAIN`, `CHAIN_TOO_LONG`, `NO_SPACE` or `BAD_TOKEN`; then nothing has
        changed.

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
    d.free_head = i
    d.num_free -= total
    d.desc_state[head] = token
    d.desc_num[head] = total
    d.desc_last[head] = last
    u16 = mem.u16
    avail16 = d.avail >> 1
    idx = d.avail_idx_shadow
    u16[avail16 + 2 + (idx & (d.size - 1))] = head
    # The device may look as soon as the index moves: the entry and the descriptors must stand before.
    fence(mem)
    idx = (idx + 1) & 0xFFFF
    d.avail_idx_shadow = idx
    u16[avail16 + 1] = idx
    d.num_added += 1
    return head


def kick_prepare(d: DriverQueue) -> bool:
    """Tell whether the device wants to be notified of what was added since the last call.

    Source: 2.7.13.4, 2.7.10; Linux ``virtqueue_kick_prepare_split``.
    """
    # The index must be out before the event index is read, or both sides may decide to wait.
    fence(d.mem)
    new = d.avail_idx_shadow
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


def get_used(d: DriverQueue) -> int:
    """Take the next used chain back; return its token, `EMPTY`, or a code.

    Sets ``d.used_len`` and ``d.used_head`` and frees the chain's descriptors. While callbacks are enabled it
    also moves `used_event` along, so that the device notifies of the next one; Linux writes it whether
    EVENT_IDX was negotiated or not, and so does this.

    Returns:
        The token (from 0); `EMPTY`; or `USED_IDX_JUMPED`, `USED_ID_OUT_OF_RANGE` or `USED_ID_NOT_HEAD`, and
        then nothing has changed.

    Source: 2.7.14, 2.7.8; Linux ``virtqueue_get_buf_ctx_split``.
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
    # The entry may be read only after the index that covers it.
    fence(mem)
    entry = (d.used >> 2) + 1 + 2 * (last_used & (size - 1))
    head = mem.u32[entry]
    if head >= size:
        return USED_ID_OUT_OF_RANGE
    token = d.desc_state[head]
    if token < 0:
        return USED_ID_NOT_HEAD
    d.used_len = mem.u32[entry + 1]
    d.used_head = head
    d.desc_state[head] = -1
    d.desc_next[d.desc_last[head]] = d.free_head
    d.free_head = head
    d.num_free += d.desc_num[head]
    last_used = (last_used + 1) & 0xFFFF
    d.last_used_idx = last_used
    if (d.avail_flags_shadow & VRING_AVAIL_F_NO_INTERRUPT) == 0:
        mem.u16[(d.avail >> 1) + 2 + size] = last_used
        # The event index must be out before the used index is read again.
        fence(mem)
    return token


def vring_interrupt(d: DriverQueue) -> bool:
    """Note that the device's interrupt came; tell whether there is something to take.

    With EVENT_IDX the device sends no second interrupt until `used_event` moves on, so Linux remembers that
    one came, and `disable_cb` then has nothing to write.

    Source: Linux ``vring_interrupt`` (False is its IRQ_NONE).
    """
    if not more_used(d):
        return False
    if d.event_idx:
        d.event_triggered = True
    return True


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
    d.event_triggered = False
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


def enable_cb(d: DriverQueue) -> bool:
    """Ask for an interrupt at the next used chain; False if there already is one to take.

    Callbacks stay enabled either way (Linux ``virtqueue_enable_cb``).
    """
    return not poll(d, enable_cb_prepare(d))


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


def enable_cb_delayed(d: DriverQueue) -> bool:
    """Ask for an interrupt when three quarters of the chains in flight are used.

    Returns:
        True: armed. False: that many are used already, take them; callbacks are enabled all the same.

    Source: 2.7.7; Linux ``virtqueue_enable_cb_delayed``.
    """
    bufs = delayed_bufs(d)
    arm_used_event(d, bufs)
    return not used_beyond(d, bufs)
