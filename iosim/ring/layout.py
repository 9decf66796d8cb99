"""Where the three parts of a split virtqueue stand, and the flags in them (virtio 1.2, section 2.7)."""

from __future__ import annotations

from typing import Final, NamedTuple

from iosim.ring.errors import AddressError, SizeError
from iosim.ring.memory import GuestMemory, in_range

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

#: Bytes of one descriptor: le64 addr, le32 len, le16 flags, le16 next.
DESC_SIZE: Final = 16
#: Alignments that the specification demands of the three parts, in bytes.
DESC_ALIGN: Final = 16
AVAIL_ALIGN: Final = 2
USED_ALIGN: Final = 4


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


def check_ring(mem: GuestMemory, size: int, desc: int, avail: int, used: int) -> None:
    """Raise unless a split virtqueue can stand at these guest-physical addresses.

    Raises:
        SizeError: The size is none that a split virtqueue can have.
        AddressError: A part is not aligned (2.7), or does not lie in guest memory.
    """
    layout = split_layout(size)
    parts = (
        ("descriptor table", desc, layout.desc_bytes, DESC_ALIGN),
        ("available ring", avail, layout.avail_bytes, AVAIL_ALIGN),
        ("used ring", used, layout.used_bytes, USED_ALIGN),
    )
    for name, addr, length, align in parts:
        if addr % align:
            raise AddressError(f"the {name} stands at {addr:#x}; it must be aligned to {align} bytes (2.7)")
        if not in_range(mem, addr, length):
            raise AddressError(
                f"the {name} ({length} bytes at {addr:#x}) is not in guest memory of {mem.size} bytes"
            )
