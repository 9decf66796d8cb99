"""What a driver remembers of a virtqueue, of either format."""

from __future__ import annotations

from iosim.ring.layout import check_ring
from iosim.ring.memory import GuestMemory


class DriverQueue:
    """The state a driver keeps of one virtqueue (Linux: ``struct vring_virtqueue``).

    Packed queues count places in the ring on without end instead of wrapping: place ``p`` is slot ``p % size``, and
    the wrap counter there is 1 if ``p // size`` is even. Only what is written into the ring is folded.

    Args:
        mem: Guest memory.
        size: Descriptors; split: a power of two from 1 to 32768, packed: 1 to 32768.
        desc: Guest-physical address of the descriptor table (packed: descriptor ring).
        avail: The same of the available ring (packed: driver event suppression structure).
        used: The same of the used ring (packed: device event suppression structure).
        event_idx: Whether VIRTIO_F_EVENT_IDX was negotiated.
        packed: Whether VIRTIO_F_RING_PACKED was.
        indirect: Whether VIRTIO_F_INDIRECT_DESC was.
        in_order: Whether VIRTIO_F_IN_ORDER was.

    Attributes:
        tables: Guest-physical address of the indirect tables that `add` may use, one for each head; 0 if none.
        table_size: Descriptors of each of them.
        seg_addr: Where the caller puts the guest-physical addresses of the next chain's buffers.
        seg_len: Where the caller puts their lengths in bytes.
        free_head: First descriptor (packed: buffer id) of the free list (linked by `desc_next`).
        num_free: Free descriptors.
        num_added: Chains (packed: descriptors) published since the last `kick_prepare`.
        num_pending: Chains added and not published yet.
        last_used_idx: Index of the next entry of the used ring to take; packed: place of the next used descriptor.
        avail_idx_shadow: Split: the available index, pending chains included.
        next_avail_idx: Packed: place of the next descriptor to write.
        pending_idx: Packed: place of the first descriptor that is not published.
        pending_flags: Packed: the flags that will publish it.
        avail_flags_shadow: Split: the flags as last decided; with `event_idx` they are not written to the ring.
        event_flags_shadow: Packed: the flags as last written into the driver event suppression structure.
        event_triggered: An interrupt came since callbacks were last enabled, so none is due.
        used_len: Bytes the device says it wrote into the chain that `get_used` returned last.
        used_head: Head (packed: buffer id) of that chain.
        batch_head: In order: last chain of the batch that the device gave back as one; -1 if none is left.
        batch_len: In order: bytes written into that chain.
        added: Chains added, ever.
        taken: Chains taken back, ever.
        desc_state: By head (packed: buffer id): the token of the chain in flight, or -1.
        desc_num: By head: descriptors of the chain in flight.
        desc_last: By head: last descriptor of the chain in flight.
        desc_seq: By head: what `added` was before that chain.
        desc_in_len: By head: bytes that the device may write into it; kept only in order.
        desc_next: By descriptor: the next one, in a chain or in the free list.
        order: In order: heads in the order they were made available; that of chain number n at ``n % size``.

    Raises:
        SizeError: The size is none that a virtqueue of this format can have.
        AddressError: A part is not aligned or not in guest memory.
    """

    __slots__ = (
        "added", "avail", "avail_flags_shadow", "avail_idx_shadow", "batch_head", "batch_len", "desc", "desc_in_len",
        "desc_last", "desc_next", "desc_num", "desc_seq", "desc_state", "event_flags_shadow", "event_idx",
        "event_triggered", "free_head", "in_order", "indirect", "last_used_idx", "mem", "next_avail_idx", "num_added",
        "num_free", "num_pending", "order", "packed", "pending_flags", "pending_idx", "seg_addr", "seg_len", "size",
        "table_size", "tables", "taken", "used", "used_head", "used_len",
    )  # fmt: skip

    def __init__(
        self,
        mem: GuestMemory,
        size: int,
        desc: int,
        avail: int,
        used: int,
        event_idx: bool,
        packed: bool = False,
        indirect: bool = False,
        in_order: bool = False,
    ) -> None:
        check_ring(mem, size, desc, avail, used, packed)
        self.mem = mem
        self.size = size
        self.desc = desc
        self.avail = avail
        self.used = used
        self.event_idx = event_idx
        self.packed = packed
        self.indirect = indirect
        self.in_order = in_order
        self.tables = 0
        self.table_size = 0
        self.seg_addr = [0] * size
        self.seg_len = [0] * size
        self.free_head = 0
        self.num_free = size
        self.num_added = 0
        self.num_pending = 0
        self.last_used_idx = 0
        self.avail_idx_shadow = 0
        self.next_avail_idx = 0
        self.pending_idx = 0
        self.pending_flags = 0
        self.avail_flags_shadow = 0
        self.event_flags_shadow = 0
        self.event_triggered = False
        self.used_len = 0
        self.used_head = 0
        self.batch_head = -1
        self.batch_len = 0
        self.added = 0
        self.taken = 0
        self.desc_state = [-1] * size
        self.desc_num = [0] * size
        self.desc_last = [0] * size
        self.desc_seq = [0] * size
        self.desc_in_len = [0] * size
        self.desc_next = [*range(1, size), 0]
        self.order = [0] * size

    def __repr__(self) -> str:
        next_avail = self.next_avail_idx if self.packed else self.avail_idx_shadow
        return (
            f"DriverQueue({'packed' if self.packed else 'split'}, size={self.size}, num_free={self.num_free},"
            f" next_avail={next_avail}, last_used_idx={self.last_used_idx})"
        )
