"""What can be wrong with a virtqueue: integer codes inside, named exceptions at the edge.

The functions on a ring's hot path never raise. Each returns a number: zero or more is the answer, less is
one of the codes below. Whoever stands at the edge (a command, a notebook, a test) turns a code into an
exception with `raise_for`. `EMPTY` is an answer too ("nothing there now") and raises nothing.

Section numbers are those of virtio 1.2.

Example:
    >>> raise_for(3)
    3
    >>> raise_for(ZERO_LENGTH, "queue 1")
    Traceback (most recent call last):
    ...
    iosim.ring.errors.ZeroLengthError: queue 1: a descriptor of length 0
"""

from __future__ import annotations

from typing import Final

from iosim.errors import IosimError

#: Nothing to take: the other side has published nothing new. Not an error.
EMPTY: Final = -1
#: Driver: fewer free descriptors than the chain needs (Linux: -ENOSPC). Normal when a queue is full.
NO_SPACE: Final = -2
#: Driver: the chain needs more descriptors than the queue has (2.7.5.3.1).
CHAIN_TOO_LONG: Final = -3
#: Driver: a chain of no descriptor at all.
EMPTY_CHAIN: Final = -4
#: Driver: a token below zero, which could not be told from a code when it comes back.
BAD_TOKEN: Final = -5
#: Device: the available ring holds a head that is no descriptor of this queue.
HEAD_OUT_OF_RANGE: Final = -6
#: Device: a descriptor's `next` is no descriptor of this queue.
NEXT_OUT_OF_RANGE: Final = -7
#: Device: a chain of more descriptors than the queue (or the table) has, so it runs in a circle (2.7.5.2, 2.8.17).
DESC_LOOP: Final = -8
#: Device: a device-readable descriptor after a device-writable one (2.7.4.2).
READABLE_AFTER_WRITABLE: Final = -9
#: Device: a descriptor of length zero (refused as QEMU's `virtqueue_map_desc` does).
ZERO_LENGTH: Final = -10
#: Device: a buffer that does not lie in guest memory.
ADDRESS_OUT_OF_RANGE: Final = -11
#: Device: the available index ran further ahead than the queue has entries.
AVAIL_IDX_JUMPED: Final = -12
#: Device: more chains made available than can be in use at once.
INUSE_EXCEEDED: Final = -13
#: Device: an indirect descriptor (2.7.5.3), which this queue did not negotiate.
INDIRECT_UNSUPPORTED: Final = -14
#: Driver: the device gives back an id that is no descriptor of this queue.
USED_ID_OUT_OF_RANGE: Final = -15
#: Driver: the device gives back an id that is not that of a chain in flight.
USED_ID_NOT_HEAD: Final = -16
#: Driver: the device has used more than there is in flight.
USED_IDX_JUMPED: Final = -17

#: Device: INDIRECT together with NEXT (2.7.5.3.1; packed 2.8.19; QEMU does not look).
INDIRECT_WITH_NEXT: Final = -18
#: Device: an indirect descriptor inside an indirect table (2.7.5.3.1).
NESTED_INDIRECT: Final = -19
#: Device: an indirect table whose length is 0 or no multiple of 16 (refused as QEMU does; 2.7.5.3).
BAD_TABLE_LENGTH: Final = -20
#: Device: a chain in an indirect table longer than the queue and than QEMU's VIRTQUEUE_MAX_SIZE of 1024.
TABLE_TOO_LONG: Final = -21
#: Either side, packed: AVAIL and USED flags that cannot be at this place in this lap (2.8.1, 2.8.6).
WRAP_MISMATCH: Final = -22
#: Device, packed: a buffer id made available while it is in flight.
ID_IN_FLIGHT: Final = -23
#: Device: a chain given back that was not taken (the device's own mistake).
NOT_IN_FLIGHT: Final = -24
#: Device or driver: a chain given back out of order although IN_ORDER was negotiated (2.7.9, 2.8.8).
NOT_IN_ORDER: Final = -25

_NAMES: Final[dict[int, str]] = {
    code: name for name, code in list(globals().items()) if name.isupper() and isinstance(code, int)
}


class RingError(IosimError):
    """A virtqueue, or the guest memory below it, is not as the specification wants it."""


class MemorySizeError(RingError, ValueError):
    """Guest memory of this size cannot be had."""


class MemoryFullError(RingError):
    """The allocator of guest memory has no room left."""


class AddressError(RingError):
    """An access outside guest memory, or a ring at an address that is not aligned."""


class ByteOrderError(RingError):
    """The host is big-endian, which the views on guest memory do not support."""


class SizeError(RingError, ValueError):
    """A queue size that is none: split, a power of two from 1 to 32768 (2.7); packed, 1 to 32768 (2.8)."""


class NoSpaceError(RingError):
    """`NO_SPACE`."""


class ChainTooLongError(RingError):
    """`CHAIN_TOO_LONG`."""


class EmptyChainError(RingError):
    """`EMPTY_CHAIN`."""


class TokenError(RingError):
    """`BAD_TOKEN`."""


class HeadRangeError(RingError):
    """`HEAD_OUT_OF_RANGE`."""


class NextRangeError(RingError):
    """`NEXT_OUT_OF_RANGE`."""


class DescriptorLoopError(RingError):
    """`DESC_LOOP`."""


class DescriptorOrderError(RingError):
    """`READABLE_AFTER_WRITABLE`."""


class ZeroLengthError(RingError):
    """`ZERO_LENGTH`."""


class BufferAddressError(AddressError):
    """`ADDRESS_OUT_OF_RANGE`."""


class AvailIndexError(RingError):
    """`AVAIL_IDX_JUMPED`."""


class InuseError(RingError):
    """`INUSE_EXCEEDED`."""


class IndirectError(RingError):
    """`INDIRECT_UNSUPPORTED`."""


class IndirectNextError(RingError):
    """`INDIRECT_WITH_NEXT`."""


class NestedIndirectError(RingError):
    """`NESTED_INDIRECT`."""


class TableLengthError(RingError):
    """`BAD_TABLE_LENGTH`."""


class TableSizeError(RingError):
    """`TABLE_TOO_LONG`."""


class WrapCounterError(RingError):
    """`WRAP_MISMATCH`."""


class BufferIdError(RingError):
    """`ID_IN_FLIGHT`."""


class NotInFlightError(RingError):
    """`NOT_IN_FLIGHT`."""


class NotInOrderError(RingError):
    """`NOT_IN_ORDER`."""


class VringBaseError(RingError):
    """Where a queue is to begin (vhost-user's SET_VRING_BASE) makes no sense for this queue."""


class UsedIdRangeError(RingError):
    """`USED_ID_OUT_OF_RANGE`."""


class UsedIdError(RingError):
    """`USED_ID_NOT_HEAD`."""


class UsedIndexError(RingError):
    """`USED_IDX_JUMPED`."""


_ERRORS: Final[dict[int, tuple[type[RingError], str]]] = {
    NO_SPACE: (NoSpaceError, "the queue has too few free descriptors; take back used buffers first"),
    CHAIN_TOO_LONG: (ChainTooLongError, "the chain needs more descriptors than the queue has"),
    EMPTY_CHAIN: (EmptyChainError, "a chain needs at least one descriptor"),
    BAD_TOKEN: (TokenError, "a token is a number from 0"),
    HEAD_OUT_OF_RANGE: (HeadRangeError, "the available ring names a head beyond the descriptor table (2.7.6)"),
    NEXT_OUT_OF_RANGE: (NextRangeError, "a descriptor's next lies beyond the descriptor table (2.7.5)"),
    DESC_LOOP: (
        DescriptorLoopError,
        "the descriptor chain is longer than the queue; next must not lead back into the chain (2.7.5.2, 2.8.17)",
    ),
    READABLE_AFTER_WRITABLE: (
        DescriptorOrderError,
        "a device-readable descriptor follows a device-writable one; readable ones come first (2.7.4.2, 2.8.17)",
    ),
    ZERO_LENGTH: (ZeroLengthError, "a descriptor of length 0 (refused as QEMU does)"),
    ADDRESS_OUT_OF_RANGE: (BufferAddressError, "a descriptor points outside guest memory (refused as QEMU does)"),
    AVAIL_IDX_JUMPED: (AvailIndexError, "the available index is further ahead than the queue has entries (2.7.6.1)"),
    INUSE_EXCEEDED: (InuseError, "more chains are available than the queue can have in use (refused as QEMU does)"),
    INDIRECT_WITH_NEXT: (
        IndirectNextError,
        "an indirect descriptor in a list of descriptors; INDIRECT and NEXT exclude each other (2.7.5.3.1, 2.8.19)",
    ),
    NESTED_INDIRECT: (
        NestedIndirectError,
        "an indirect descriptor inside an indirect table (2.7.5.3.1)",
    ),
    BAD_TABLE_LENGTH: (
        TableLengthError,
        "an indirect table's length is no positive multiple of 16 (2.7.5.3)",
    ),
    TABLE_TOO_LONG: (
        TableSizeError,
        "an indirect table's chain is longer than 1024 descriptors and than the queue (2.7.5.3.1, as QEMU does)",
    ),
    WRAP_MISMATCH: (
        WrapCounterError,
        "a descriptor's AVAIL and USED flags do not fit the wrap counter at its place in the ring (2.8.1, 2.8.6)",
    ),
    ID_IN_FLIGHT: (BufferIdError, "a buffer id is made available that is in flight already (2.8)"),
    NOT_IN_FLIGHT: (NotInFlightError, "a chain is given back that the device has not taken"),
    NOT_IN_ORDER: (
        NotInOrderError,
        "chains are given back out of order on a queue with VIRTIO_F_IN_ORDER (2.7.9, 2.8.8)",
    ),
    INDIRECT_UNSUPPORTED: (
        IndirectError,
        "an indirect descriptor on a queue without VIRTIO_F_INDIRECT_DESC (2.7.5.3.1, 2.8.19)",
    ),
    USED_ID_OUT_OF_RANGE: (
        UsedIdRangeError,
        "the device gives back an id that is no descriptor of this queue (2.7.8, 2.8.22)",
    ),
    USED_ID_NOT_HEAD: (UsedIdError, "the device gives back an id that is not in flight (2.7.8, 2.8.22)"),
    USED_IDX_JUMPED: (UsedIndexError, "the device has used more than there is in flight (2.7.8, 2.8.1)"),
}


def raise_for(code: int, where: str | None = None) -> int:
    """Return ``code`` if it is an answer (zero or more, or `EMPTY`), otherwise raise its exception.

    Args:
        code: What a ring function returned.
        where: What the message begins with (a device and a queue, a file).

    Raises:
        RingError: The subclass that belongs to the code.
    """
    if code >= EMPTY:
        return code
    kind, message = _ERRORS.get(code, (RingError, f"unknown ring error {code}"))
    raise kind(message, where)


def code_name(code: int) -> str:
    """Return the name of an error code as it stands in this module (``'DESC_LOOP'``), for printing."""
    return _NAMES.get(code, str(code))
