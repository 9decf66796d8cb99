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
