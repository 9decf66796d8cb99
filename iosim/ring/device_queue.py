"""What a device remembers of a virtqueue, of either format."""

from __future__ import annotations

from typing import Final

from iosim.ring.layout import VIRTQUEUE_MAX_SIZE, check_ring
from iosim.ring.memory import GuestMemory

#: A packed queue's buffer ids are whatever 16-bit numbers the driver likes (2.8.13).
BUFFER_IDS: Final = 1 << 16


class DeviceQueue:
    """The state a device keeps of one virtqueue (QEMU: ``struct VirtQueue``).

    Packed queues count places in the ring on without end instead of wrapping: place ``p`` is slot ``p % size``, and
    the wrap counter there is 1 if ``p // size`` is even. `iosim.ring.queue.state` shows them as QEMU does.

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
        last_avail_idx: Index of the next entry of the available ring to take; packed: place of the next descriptor.
        shadow_avail_idx: The available index when it was last read; packed: as `last_avail_idx`.
        used_idx: The used index as last published; packed: place of the next used descriptor to write.
        signalled_used: `used_idx` when an interrupt was last considered.
        signalled_used_valid: Whether `signalled_used` may be relied upon.
        notification: Whether the device wants to be notified.
        inuse: Chains (packed: descriptors, as in QEMU) taken and not yet given back.
        elem_out_num: Buffers to read of the chain that `pop` returned last.
        elem_in_num: Buffers to write of that chain.
        elem_addr: Their guest-physical addresses, the readable ones first.
        elem_len: Their lengths in bytes, in the same order.
        elem_ndescs: Packed, by buffer id: descriptors of the chain in flight; 0 if none is.
        fill_head: Packed: the ids that `fill` was given, by their place in the batch.
        fill_len: Packed: the lengths that `fill` was given.
        order: In order: heads as they were taken; that of chain number n at ``n % size``.
        taken: Chains taken, ever.
        given: Chains given back, ever.

    Raises:
        SizeError: The size is none that a virtqueue of this format can have.
        AddressError: A part is not aligned or not in guest memory.
    """

    __slots__ = (
        "avail", "desc", "elem_addr", "elem_in_num", "elem_len", "elem_ndescs", "elem_out_num", "event_idx",
        "fill_head", "fill_len", "given", "in_order", "indirect", "inuse", "last_avail_idx", "mem", "notification",
        "order", "packed", "shadow_avail_idx", "signalled_used", "signalled_used_valid", "size", "taken", "used",
        "used_idx",
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
        self.last_avail_idx = 0
        self.shadow_avail_idx = 0
        self.used_idx = 0
        self.signalled_used = 0
        self.signalled_used_valid = False
        self.notification = True
        self.inuse = 0
        self.elem_out_num = 0
        self.elem_in_num = 0
        room = max(size, VIRTQUEUE_MAX_SIZE) if indirect else size
        self.elem_addr = [0] * room
        self.elem_len = [0] * room
        # A list for every id a driver could think of; lists that are not used keep one element.
        self.elem_ndescs = [0] * (BUFFER_IDS if packed else 1)
        self.fill_head = [0] * (size if packed else 1)
        self.fill_len = [0] * (size if packed else 1)
        self.order = [0] * size
        self.taken = 0
        self.given = 0

    def __repr__(self) -> str:
        return (
            f"DeviceQueue({'packed' if self.packed else 'split'}, size={self.size},"
            f" last_avail_idx={self.last_avail_idx}, used_idx={self.used_idx}, inuse={self.inuse})"
        )
