"""When an index that has moved asks for a notification: the one rule behind `VIRTIO_F_EVENT_IDX`."""

from __future__ import annotations


def vring_need_event(event: int, new: int, old: int) -> bool:
    """Tell whether an index that went from ``old`` to ``new`` has passed ``event``.

    The other side asks to be notified once the entry numbered ``event`` is published, that is, when the
    index becomes ``event + 1``. All three are indexes modulo 2**16, so the distances are, too.

    Source: virtio 1.2, 2.7.7.2 and 2.7.10 ("used_event", "avail_event"); the function has the same name in
    Linux's ``virtio_ring.h`` and in QEMU.

    Example:
        >>> vring_need_event(event=4, new=5, old=4), vring_need_event(event=5, new=5, old=4)
        (True, False)
        >>> vring_need_event(event=0xFFFF, new=0, old=0xFFFF)
        True
    """
    return ((new - event - 1) & 0xFFFF) < ((new - old) & 0xFFFF)


def off_wrap(size: int, place: int) -> int:
    """Return a place of a packed ring as event suppression structures hold it: slot, and wrap counter in bit 15.

    Source: virtio 1.2, 2.8.14.

    Example:
        >>> [hex(off_wrap(10, place)) for place in (0, 9, 10, 19, 20)]
        ['0x8000', '0x8009', '0x0', '0x9', '0x8000']
    """
    wrap = 1 - ((place // size) & 1)
    return place % size | wrap << 15


def vring_packed_need_event(size: int, event: int, new: int, old: int) -> bool:
    """Tell whether a packed ring's place that went from ``old`` to ``new`` has passed an event offset.

    Args:
        size: Descriptors of the ring.
        event: Slot and wrap counter, as the other side wrote them.
        new: The next place, counted without end.
        old: The next place when this was asked last.

    Source: virtio 1.2, 2.8.10; QEMU ``vring_packed_need_event``, Linux ``virtqueue_kick_prepare_packed``.

    Example:
        >>> vring_packed_need_event(10, off_wrap(10, 8), new=9, old=8)
        True
        >>> vring_packed_need_event(10, off_wrap(10, 8), new=12, old=9)
        False
        >>> vring_packed_need_event(10, off_wrap(10, 8), new=12, old=8)
        True
    """
    if new - old > 0xFFFF:
        # Around more than once: the event has been passed, or means nothing any more.
        return True
    lap = new // size
    if (event >> 15) + (lap & 1) != 1:
        lap -= 1
    return vring_need_event(lap * size + (event & 0x7FFF), new, old)
