"""What a device does with a virtqueue, of either format: QEMU's ``hw/virtio/virtio.c``, and vhost with it.

Names are QEMU's. Each function does what `iosim.ring.split_device` or `iosim.ring.packed_device` does for the
queue's format; what both have in common is described here. All of them take and return numbers only, and
never raise: a number below `EMPTY` is a code of `iosim.ring.errors`.
"""

from __future__ import annotations

from iosim.ring import packed_device, split_device
from iosim.ring.device_queue import DeviceQueue
from iosim.ring.errors import NOT_IN_FLIGHT


def empty(q: DeviceQueue) -> bool:
    """Tell whether there is no chain to take.

    Source: QEMU ``virtio_queue_empty``.
    """
    if q.packed:
        return packed_device.empty(q)
    return split_device.empty(q)


def avail_in_ring(q: DeviceQueue) -> int:
    """Return how many chains wait to be taken, by a fresh look at the ring; or `AVAIL_IDX_JUMPED` (split only).

    Source: QEMU ``virtqueue_num_heads``.
    """
    if q.packed:
        return packed_device.avail_in_ring(q)
    return split_device.avail_in_ring(q)


def pop(q: DeviceQueue) -> int:
    """Take the next available chain; return its head (packed: its buffer id), `EMPTY`, or a code.

    The chain stands in ``q.elem_addr`` and ``q.elem_len``: ``q.elem_out_num`` buffers to read, then
    ``q.elem_in_num`` to write, each of them in guest memory, whether from descriptors or an indirect table.

    Returns:
        The head (from 0); `EMPTY`; or a code, and then no index has moved (what the device is to do is set
        DEVICE_NEEDS_RESET, 2.1.2) while ``elem_addr`` and ``elem_len`` hold whatever was read.

    Source: 2.7.13, 2.7.5, 2.7.4.2, 2.8.6, 2.8.7; QEMU ``virtqueue_pop``.
    """
    if q.packed:
        return packed_device.pop(q)
    return split_device.pop(q)


def unpop(q: DeviceQueue, head: int) -> None:
    """Put the chain that was taken last, and not given back, into the ring again.

    Several go back by calling this for each, the last one first.

    Source: QEMU ``virtqueue_unpop``.
    """
    if q.packed:
        packed_device.unpop(q, head)
    else:
        split_device.unpop(q)


def fill(q: DeviceQueue, head: int, length: int, idx: int) -> None:
    """Prepare a used entry, number ``idx`` of a batch, which `flush` publishes.

    Args:
        q: The queue.
        head: What `pop` returned.
        length: Bytes written into the chain's writable buffers, from the first on.
        idx: Place in the batch, from 0; less than the queue's size.

    Source: 2.7.8; QEMU ``virtqueue_fill``.
    """
    if q.packed:
        packed_device.fill(q, head, length, idx)
    else:
        split_device.fill(q, head, length, idx)


def flush(q: DeviceQueue, count: int) -> None:
    """Publish ``count`` entries that `fill` has prepared.

    Source: 2.7.8.2, 2.8.12; QEMU ``virtqueue_flush``.
    """
    if q.packed:
        packed_device.flush(q, count)
    else:
        split_device.flush(q, count)


def push(q: DeviceQueue, head: int, length: int) -> None:
    """Give one chain back to the driver: `fill` and `flush` (QEMU ``virtqueue_push``).

    Args:
        q: The queue.
        head: What `pop` returned.
        length: Bytes written into the chain's writable buffers, from the first on.
    """
    fill(q, head, length, 0)
    flush(q, 1)


def push_batch(q: DeviceQueue, head: int, length: int) -> int:
    """Give back every chain up to ``head`` by one used entry; only with IN_ORDER.

    The driver takes all writable buffers of the others as written in full.

    Args:
        q: The queue.
        head: What `pop` returned for the last chain of the batch.
        length: Bytes written into that chain's writable buffers.

    Returns:
        How many chains went back; `NOT_IN_FLIGHT` if that one is not in flight.

    Source: 2.7.9, 2.8.8.
    """
    count = 0
    ndescs = 0
    found = False
    while not found:
        if q.given + count >= q.taken:
            return NOT_IN_FLIGHT
        one = q.order[(q.given + count) % q.size]
        found = one == head
        if q.packed:
            ndescs += q.elem_ndescs[one]
        count += 1
    if q.packed:
        for k in range(count):
            q.elem_ndescs[q.order[(q.given + k) % q.size]] = 0
        packed_device.write_used(q, head, length, q.used_idx)
        packed_device.advance(q, ndescs)
        q.given += count
    else:
        split_device.fill(q, head, length, 0)
        split_device.flush(q, count)
    return count


def set_notification(q: DeviceQueue, enable: bool) -> None:
    """Say whether the driver shall notify of what it makes available.

    After enabling, look again (`empty`): what came before is not notified.

    Source: 2.7.10, 2.8.10; QEMU ``virtio_queue_set_notification``.
    """
    if q.packed:
        packed_device.set_notification(q, enable)
    else:
        split_device.set_notification(q, enable)


def arm_avail_event(q: DeviceQueue, index: int) -> None:
    """Ask to be notified when the available index (packed: the driver's place in the ring) passes ``index``.

    As vhost, which arms at the index it last read (``vhost_enable_notify``), or with a threshold: ``index`` beyond
    what is available lets the driver collect several. Without EVENT_IDX the driver notifies of the next chain
    whatever ``index`` is. Look again afterwards.
    """
    if q.packed:
        packed_device.arm_avail_event(q, index)
    else:
        split_device.arm_avail_event(q, index)


def should_notify(q: DeviceQueue) -> bool:
    """Tell whether the driver wants an interrupt for what was used since the last call.

    Source: 2.7.7.2, 2.8.10; QEMU ``virtio_should_notify``.
    """
    if q.packed:
        return packed_device.should_notify(q)
    return split_device.should_notify(q)
