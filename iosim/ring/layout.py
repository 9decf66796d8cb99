"""Where the three parts of a virtqueue stand, and the flags in them (virtio 1.2, sections 2.7 and 2.8)."""

from __future__ import annotations

from typing import Final, NamedTuple

from iosim.ring.errors import AddressError, SizeError
from iosim.ring.memory import GuestMemory, extent, in_range

#: The largest queue, in descriptors (2.7).
MAX_QUEUE_SIZE: Final = 32768

#: Descriptor flag: the chain goes on at `next` (2.7.5).
VRING_DESC_F_NEXT: Final = 1
#: Descriptor flag: the device writes this buffer; otherwise it reads it (2.7.5).
VRING_DESC_F_WRITE: Final = 2
#: Descriptor flag: the buffer holds a table of descriptors (2.7.5.3).
VRING_DESC_F_INDIRECT: Final = 4
#: Flag in the available ring: the driver wants no used buffer notifications (2.7.7).
VRING_AVAIL_F_NO_INTERRUPT: Final = 1
#: Flag in the used ring: the device wants no available buffer notifications (2.7.10).
VRING_USED_F_NO_NOTIFY: Final = 1

#: Packed: the driver's mark, equal to its wrap counter in a descriptor it makes available (2.8.1).
VRING_PACKED_DESC_F_AVAIL: Final = 1 << 7
#: Packed: the device's mark; equal to the other one in a used descriptor (2.8.1).
VRING_PACKED_DESC_F_USED: Final = 1 << 15
#: Packed: both marks.
PACKED_MARKS: Final = VRING_PACKED_DESC_F_AVAIL | VRING_PACKED_DESC_F_USED
#: Packed event suppression: notify of everything (2.8.10).
VRING_PACKED_EVENT_FLAG_ENABLE: Final = 0
#: Packed event suppression: notify of nothing.
VRING_PACKED_EVENT_FLAG_DISABLE: Final = 1
#: Packed event suppression: notify of one descriptor; only with VIRTIO_F_EVENT_IDX.
VRING_PACKED_EVENT_FLAG_DESC: Final = 2
#: Packed event suppression: the bits of the flags that are not reserved.
PACKED_EVENT_FLAGS: Final = 3

#: Buffers of one chain that QEMU takes at most; an indirect table may hold more than the queue (as QEMU does).
VIRTQUEUE_MAX_SIZE: Final = 1024
#: Bytes of one descriptor: le64 addr, le32 len, le16 flags, le16 next (packed: le16 id, le16 flags).
DESC_SIZE: Final = 16
#: Alignments that the specification demands of the three parts, in bytes.
DESC_ALIGN: Final = 16
AVAIL_ALIGN: Final = 2
USED_ALIGN: Final = 4
#: Alignment and bytes of a packed queue's two event suppression structures.
EVENT_ALIGN: Final = 4
EVENT_SIZE: Final = 4


class Layout(NamedTuple):
    """Sizes and offsets of a split virtqueue whose three parts stand one behind the other, in bytes."""

    #: Descriptors.
    size: int
    #: Bytes of the descriptor table, which stands at offset 0.
    desc_bytes: int
    #: Bytes of the available ring with its `used_event`.
    avail_bytes: int
    #: Bytes of the used ring with its `avail_event`.
    used_bytes: int
    #: Offset of the available ring.
    avail_offset: int
    #: Offset of the used ring.
    used_offset: int
    #: Bytes from the first to the last.
    total: int


def check_size(size: int) -> None:
    """Raise `SizeError` unless ``size`` is a power of two from 1 to 32768 (2.7)."""
    if not 0 < size <= MAX_QUEUE_SIZE or size & (size - 1):
        raise SizeError(f"queue size {size}; it is a power of two from 1 to {MAX_QUEUE_SIZE}")


def split_layout(size: int, used_align: int = USED_ALIGN) -> Layout:
    """Return where the parts of a split virtqueue of ``size`` descriptors stand.

    Args:
        size: Descriptors, a power of two from 1 to 32768.
        used_align: Alignment of the used ring in bytes: 4 by the specification; Linux's virtio-pci takes a
            cache line, 64.

    Raises:
        SizeError: The size is none that a split virtqueue can have.

    Example:
        >>> split_layout(256).avail_offset, split_layout(256).used_bytes
        (4096, 2054)
    """
    check_size(size)
    desc_bytes = DESC_SIZE * size
    avail_bytes = 6 + 2 * size
    used_bytes = 6 + 8 * size
    used_offset = (desc_bytes + avail_bytes + used_align - 1) // used_align * used_align
    total = used_offset + used_bytes
    return Layout(size, desc_bytes, avail_bytes, used_bytes, desc_bytes, used_offset, total)


def check_packed_size(size: int) -> None:
    """Raise `SizeError` unless ``size`` is from 1 to 32768 (2.8)."""
    if not 0 < size <= MAX_QUEUE_SIZE:
        raise SizeError(f"queue size {size}; a packed queue has 1 to {MAX_QUEUE_SIZE} descriptors")


def packed_layout(size: int) -> Layout:
    """Return where the parts of a packed virtqueue stand: ring, driver's and device's event suppression.

    Args:
        size: Descriptors, from 1 to 32768.

    Raises:
        SizeError: The size is none that a packed virtqueue can have.

    Example:
        >>> packed_layout(100).avail_offset, packed_layout(100).used_offset, packed_layout(100).total
        (1600, 1604, 1608)
    """
    check_packed_size(size)
    desc_bytes = DESC_SIZE * size
    used_offset = desc_bytes + EVENT_SIZE
    return Layout(size, desc_bytes, EVENT_SIZE, EVENT_SIZE, desc_bytes, used_offset, used_offset + EVENT_SIZE)


def check_ring(mem: GuestMemory, size: int, desc: int, avail: int, used: int, packed: bool = False) -> None:
    """Raise unless a virtqueue can stand at these guest-physical addresses.

    Args:
        mem: Guest memory.
        size: Descriptors.
        desc: Address of the descriptor table, or ring.
        avail: Address of the available ring; packed: of the driver's event suppression structure.
        used: Address of the used ring; packed: of the device's event suppression structure.
        packed: Which format.

    Raises:
        SizeError: The size is none that a virtqueue of this format can have.
        AddressError: A part is not aligned (2.7, 2.8.10.1), or does not lie in guest memory.
    """
    layout = packed_layout(size) if packed else split_layout(size)
    avail_align = EVENT_ALIGN if packed else AVAIL_ALIGN
    parts = (
        ("descriptor ring" if packed else "descriptor table", desc, layout.desc_bytes, DESC_ALIGN),
        ("driver area" if packed else "available ring", avail, layout.avail_bytes, avail_align),
        ("device area" if packed else "used ring", used, layout.used_bytes, USED_ALIGN),
    )
    clause = "2.8.10.1" if packed else "2.7"
    for name, addr, length, align in parts:
        if addr % align:
            raise AddressError(f"the {name} stands at {addr:#x}; it must be aligned to {align} bytes ({clause})")
        if not in_range(mem, addr, length):
            raise AddressError(f"the {name} ({length} bytes at {addr:#x}) is not in guest memory{extent(mem)}")
