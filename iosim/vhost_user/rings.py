"""From what the messages say of a queue to its device's side, and the number by which its place is handed on."""

from __future__ import annotations

from typing import Final

from iosim.ring.device_queue import DeviceQueue
from iosim.ring.queue import set_vring_base, vring_base
from iosim.ring.virtqueue import DeviceSide
from iosim.vhost_user.memory import SharedMemory
from iosim.virtio.features import (
    VIRTIO_F_IN_ORDER,
    VIRTIO_F_RING_PACKED,
    VIRTIO_RING_F_EVENT_IDX,
    VIRTIO_RING_F_INDIRECT_DESC,
    has_feature,
)

#: A packed ring that nobody has used: slot 0, wrap counter 1, for what is available and for what is used.
FRESH_PACKED: Final = 0x80008000
_DESC_F_USED: Final = 0x8000


def device_side(mem: SharedMemory, size: int, desc: int, avail: int, used: int, features: int, base: int) -> DeviceSide:
    """Return the device's side of a queue that stands in shared memory.

    Args:
        mem: The memory.
        size: Descriptors.
        desc: Guest-physical address of the descriptor table; packed: of the descriptor ring.
        avail: The same of the available ring; packed: of the driver event suppression.
        used: The same of the used ring; packed: of the device event suppression.
        features: Features taken.
        base: Where the queue goes on (SET_VRING_BASE).

    Raises:
        RingError: No queue can stand there, or go on there.
    """
    packed = has_feature(features, VIRTIO_F_RING_PACKED)
    q = DeviceQueue(
        mem,
        size,
        desc,
        avail,
        used,
        has_feature(features, VIRTIO_RING_F_EVENT_IDX),
        packed,
        has_feature(features, VIRTIO_RING_F_INDIRECT_DESC),
        has_feature(features, VIRTIO_F_IN_ORDER),
    )
    # Linux's virtio_uml says 0 of a fresh packed ring, which is also slot 0 of every second lap. There, the first
    # descriptor's USED bit stands: the device has set it in the lap before, and a driver sets it in that lap.
    if packed and base == 0 and not mem.u16[(desc >> 1) + 7] & _DESC_F_USED:
        base = FRESH_PACKED
    set_vring_base(q, base)
    return DeviceSide(q)


def ring_base(queue: DeviceSide) -> int:
    """Return where a stopped queue stands (GET_VRING_BASE)."""
    return vring_base(queue.q)
