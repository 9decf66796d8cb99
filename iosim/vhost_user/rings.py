"""From what the messages say of a queue to its two sides, and the number by which a queue's place is handed on."""

from __future__ import annotations

from iosim.ring.split_device import DeviceQueue
from iosim.ring.virtqueue import DeviceSide
from iosim.vhost_user.memory import SharedMemory
from iosim.virtio.features import VIRTIO_RING_F_EVENT_IDX, has_feature


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
        RingError: No queue can stand there.
    """
    q = DeviceQueue(mem, size, desc, avail, used, has_feature(features, VIRTIO_RING_F_EVENT_IDX))
    q.last_avail_idx = q.shadow_avail_idx = base & 0xFFFF
    # The used index is in memory: who served the queue before left it there (libvhost-user `vu_set_vring_addr_exec`).
    q.used_idx = q.signalled_used = mem.u16[(used >> 1) + 1]
    q.inuse = (q.last_avail_idx - q.used_idx) & 0xFFFF
    return DeviceSide(q)


def ring_base(queue: DeviceSide) -> int:
    """Return where a stopped queue stands (GET_VRING_BASE): the next available entry to take."""
    return queue.q.last_avail_idx
