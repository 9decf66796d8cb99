"""What a driver does with a virtqueue, of either format: Linux's ``virtio_ring.c``.

Names are Linux's. Each function does what `iosim.ring.split_driver` or `iosim.ring.packed_driver` does for the
queue's format; what both have in common is described here. All of them take and return numbers only, and
never raise: a number below `EMPTY` is a code of `iosim.ring.errors`.

The driver keeps its own copy of whatever the device could change under it: which descriptors are free, how long
each chain is, the flags it last wrote. So nothing the device writes into guest memory can corrupt the free
list; it can only be refused with a code.
"""

from __future__ import annotations

from iosim.ring import packed_driver, split_driver
from iosim.ring.driver_queue import DriverQueue


def add_batched(d: DriverQueue, out_num: int, in_num: int, token: int) -> int:
    """Put one chain of buffers into the ring; the device sees it after `publish`. Return its head, or a code.

    The buffers stand in ``d.seg_addr`` and ``d.seg_len``: first ``out_num`` that the device reads, then
    ``in_num`` that it writes (2.7.4.2, 2.8.17). With INDIRECT_DESC, a chain of more than one buffer goes into the
    indirect table that the queue keeps for its head, if it fits (Linux ``virtqueue_use_indirect``).

    Args:
        d: The queue.
        out_num: Buffers the device reads.
        in_num: Buffers the device writes.
        token: A number from 0 by which `get_used` gives the chain back.

    Returns:
        The head (packed: the buffer id), from 0; or `EMPTY_CHAIN`, `CHAIN_TOO_LONG`, `NO_SPACE` or `BAD_TOKEN`,
        and then nothing has changed.
    """
    if d.indirect and out_num + in_num > 1 and out_num + in_num <= d.table_size:
        return add_indirect(d, out_num, in_num, token, d.tables + 16 * d.table_size * d.free_head)
    return add_direct(d, out_num, in_num, token)


def add_direct(d: DriverQueue, out_num: int, in_num: int, token: int) -> int:
    """As `add_batched`, in a descriptor for each buffer even where there are indirect tables."""
    if d.packed:
        return packed_driver.add_direct(d, out_num, in_num, token)
    return split_driver.add_direct(d, out_num, in_num, token)


def add_indirect(d: DriverQueue, out_num: int, in_num: int, token: int, table: int) -> int:
    """As `add_batched`, in an indirect table at a place that the caller gives.

    Args:
        d: The queue.
        out_num: Buffers the device reads.
        in_num: Buffers the device writes.
        token: A number from 0 by which `get_used` gives the chain back.
        table: Guest-physical address of room for 16 bytes for each buffer, at any alignment, which nobody else
            writes until the chain comes back.

    Source: 2.7.5.3, 2.8.7.
    """
    if d.packed:
        return packed_driver.add_indirect(d, out_num, in_num, token, table)
    return split_driver.add_indirect(d, out_num, in_num, token, table)


def publish(d: DriverQueue) -> None:
    """Make available, all at once, whatever `add_batched` put into the ring."""
    if d.packed:
        packed_driver.publish(d)
    else:
        split_driver.publish(d)


def add(d: DriverQueue, out_num: int, in_num: int, token: int) -> int:
    """Make one chain of buffers available to the device; return its head, or a code.

    `add_batched` and `publish`; see there. Chains that were batched before are published with it.

    Source: 2.7.13, 2.8.21; Linux ``virtqueue_add``.
    """
    head = add_batched(d, out_num, in_num, token)
    if head >= 0:
        publish(d)
    return head


def kick_prepare(d: DriverQueue) -> bool:
    """Tell whether the device wants to be notified of what was published since the last call.

    Source: 2.7.13.4, 2.7.10, 2.8.21.2, 2.8.10; Linux ``virtqueue_kick_prepare``.
    """
    if d.packed:
        return packed_driver.kick_prepare(d)
    return split_driver.kick_prepare(d)


def more_used(d: DriverQueue) -> bool:
    """Tell whether chains came back that `get_used` has not taken (Linux ``more_used``)."""
    if d.packed:
        return packed_driver.more_used(d)
    return split_driver.more_used(d)


def get_used(d: DriverQueue) -> int:
    """Take the next used chain back; return its token, `EMPTY`, or a code.

    Sets ``d.used_len`` and ``d.used_head`` and frees the chain's descriptors. While callbacks are enabled it
    also moves the event index along, so that the device notifies of the next one; for split queues Linux writes
    it whether EVENT_IDX was negotiated or not, and so does this. In order, a chain that the device has skipped
    has all its writable bytes as its length.

    Returns:
        The token (from 0); `EMPTY`; or a code, and then nothing has changed: `USED_IDX_JUMPED`,
        `USED_ID_OUT_OF_RANGE`, `USED_ID_NOT_HEAD`, `NOT_IN_ORDER`, `WRAP_MISMATCH`.

    Source: 2.7.14, 2.8.22; Linux ``virtqueue_get_buf``.
    """
    if d.packed:
        return packed_driver.get_used(d)
    return split_driver.get_used(d)


def detach_unused(d: DriverQueue) -> int:
    """Take back a chain that the device has not used and will not use; return its token, or `EMPTY`.

    For a device that has been reset. The queue cannot be gone on with afterwards, but by a reset of its own.

    Source: Linux ``virtqueue_detach_unused_buf``.
    """
    if d.packed:
        return packed_driver.detach_unused(d)
    return split_driver.detach_unused(d)


def vring_interrupt(d: DriverQueue) -> bool:
    """Note that the device's interrupt came; tell whether there is something to take.

    With EVENT_IDX the device sends no second interrupt until the event index moves on, so Linux remembers that
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

    Source: 2.7.7, 2.8.10; Linux ``virtqueue_disable_cb``.
    """
    if d.packed:
        packed_driver.disable_cb(d)
    else:
        split_driver.disable_cb(d)


def enable_cb_prepare(d: DriverQueue) -> int:
    """Ask for an interrupt at the next used chain; return what `poll` needs to look again.

    Source: 2.7.7, 2.7.14, 2.8.10, 2.8.22; Linux ``virtqueue_enable_cb_prepare``.
    """
    d.event_triggered = False
    if d.packed:
        return packed_driver.enable_cb_prepare(d)
    return split_driver.enable_cb_prepare(d)


def poll(d: DriverQueue, last_used_idx: int) -> bool:
    """Tell whether chains were used since `enable_cb_prepare` returned ``last_used_idx``.

    Source: Linux ``virtqueue_poll``.
    """
    if d.packed:
        return packed_driver.poll(d, last_used_idx)
    return split_driver.poll(d, last_used_idx)


def enable_cb(d: DriverQueue) -> bool:
    """Ask for an interrupt at the next used chain; False if there already is one to take.

    Callbacks stay enabled either way (Linux ``virtqueue_enable_cb``).
    """
    return not poll(d, enable_cb_prepare(d))


def delayed_bufs(d: DriverQueue) -> int:
    """Return how much a delayed interrupt waits for in Linux: three quarters of the chains in flight.

    Packed: three quarters of the descriptors in flight.
    """
    if d.packed:
        return packed_driver.delayed_bufs(d)
    return split_driver.delayed_bufs(d)


def arm_used_event(d: DriverQueue, bufs: int) -> None:
    """Ask for an interrupt when more than ``bufs`` chains (packed: descriptors) are used beyond those taken.

    Without EVENT_IDX the device interrupts at the next one whatever ``bufs`` is; so it does on a packed queue
    whose callbacks were never disabled (Linux).
    """
    d.event_triggered = False
    if d.packed:
        packed_driver.arm_used_event(d, bufs)
    else:
        split_driver.arm_used_event(d, bufs)


def used_beyond(d: DriverQueue, bufs: int) -> bool:
    """Tell whether more than ``bufs`` used chains (packed: descriptors) wait to be taken."""
    if d.packed:
        return packed_driver.used_beyond(d, bufs)
    return split_driver.used_beyond(d, bufs)


def poll_delayed(d: DriverQueue, bufs: int) -> bool:
    """Look again after `arm_used_event`, as Linux does in ``virtqueue_enable_cb_delayed``.

    Split: whether more than ``bufs`` chains are used. Packed: whether any is, since Linux looks at the next place
    in the ring only.
    """
    if d.packed:
        return packed_driver.poll_delayed(d)
    return split_driver.used_beyond(d, bufs)


def enable_cb_delayed(d: DriverQueue) -> bool:
    """Ask for an interrupt when three quarters of what is in flight are used.

    Returns:
        True: armed. False: there is something to take already (`poll_delayed`); callbacks are enabled all the same.

    Source: 2.7.7, 2.8.10; Linux ``virtqueue_enable_cb_delayed``.
    """
    bufs = delayed_bufs(d)
    arm_used_event(d, bufs)
    return not poll_delayed(d, bufs)
