"""Guest memory: one buffer, seen as 8, 16, 32 and 64-bit little-endian numbers.

Everything the guest and the device share stands here: rings, descriptors, buffers. Addresses are
guest-physical, in bytes, from 0.

The hot path reads the views directly (``mem.u16[addr >> 1]``); an address must then be aligned to the width
of the view. The functions below also take addresses that are not aligned. None of them checks that the
address lies in memory: what comes from the other side goes through `in_range` first.

Compiled engines and live guest memory have other classes of the same attributes behind the same functions. A
live guest's memory has holes: `size` bytes from address 0 are one region, `regions` names the further ones.

Example:
    >>> mem = GuestMemory(8192)
    >>> addr = allocate(mem, 12, align=4)
    >>> write_u16(mem, addr, 0x1234)
    >>> hex(read_u16(mem, addr)), read_bytes(mem, addr, 2)
    ('0x1234', b'4\\x12')
"""

from __future__ import annotations

import mmap
import sys
from collections.abc import Iterable, Sequence
from typing import Final

from iosim.ring.errors import AddressError, ByteOrderError, MemoryFullError, MemorySizeError

#: Guest memory comes in whole pages of this many bytes.
PAGE_SIZE: Final = 4096
#: Linux's flag, which Python's `mmap` has no name for.
_MAP_NORESERVE: Final = 0x4000
#: The largest guest memory that can be asked for, in bytes (64 GiB). Pages never touched cost nothing.
MAX_SIZE: Final = 1 << 36
#: The first address the allocator gives out: address 0 stays free to mean "none".
_FIRST_ADDRESS: Final = 64


class GuestMemory:
    """The memory of one guest, zeroed.

    Args:
        size: Bytes from address 0, rounded up to whole pages of 4096.
        further: First address and address behind the last byte of further regions, above a hole.

    Attributes:
        size: Bytes of the region that begins at address 0, where nearly every address lies.
        regions: First address and address behind the last byte of each further region, one pair after the
            other (set by `set_regions`); without any, the pair 0, 0.
        shared: Whether another processor works on it at the same time, so that `fence` must be a real one. Such
            a memory has a method ``fence()``.
        buffer: The one buffer behind all views.
        u8: The buffer as bytes.
        u16: The buffer as 16-bit numbers: the one at address ``a`` is ``u16[a >> 1]``.
        u32: The same with 32 bits, ``u32[a >> 2]``.
        u64: The same with 64 bits, ``u64[a >> 3]``. A compiled engine has signed numbers here, so that an
            address of 2**63 or more reads as negative; range checks must refuse both.
        next_free: The lowest address that `allocate` has not given out.

    Raises:
        MemorySizeError: The size is not positive, or more than can be had.
        ByteOrderError: The host is big-endian.
    """

    __slots__ = ("buffer", "next_free", "regions", "shared", "size", "u8", "u16", "u32", "u64")

    def __init__(self, size: int, further: Sequence[tuple[int, int]] = ()) -> None:
        if sys.byteorder != "little":
            raise ByteOrderError("guest memory needs a little-endian host: virtio is little-endian (1.4)")
        if not 0 < size <= MAX_SIZE:
            raise MemorySizeError(f"guest memory of {size} bytes; choose 1 to {MAX_SIZE}")
        self.size: int = (size + PAGE_SIZE - 1) // PAGE_SIZE * PAGE_SIZE
        self.regions: list[int] = [0, 0]
        self.shared: bool = False
        top = max([self.size, *(end for _, end in further)])
        if top > MAX_SIZE:
            raise MemorySizeError(f"guest memory up to address {top}; at most {MAX_SIZE}")
        try:
            # Not a bytearray, which would write all of it: these pages are there when they are touched, and nothing
            # is promised for the others, or a process with much guest memory could not fork.
            self.buffer = mmap.mmap(-1, top, mmap.MAP_PRIVATE | mmap.MAP_ANONYMOUS | _MAP_NORESERVE)
        except (MemoryError, OSError):
            raise MemorySizeError(f"this machine cannot give guest memory of {top} bytes") from None
        set_regions(self, [(0, self.size), *further])
        self.u8: memoryview[int] = memoryview(self.buffer)
        self.u16: memoryview[int] = self.u8.cast("H")
        self.u32: memoryview[int] = self.u8.cast("I")
        self.u64: memoryview[int] = self.u8.cast("Q")
        self.next_free: int = _FIRST_ADDRESS

    def __repr__(self) -> str:
        return f"GuestMemory(size={self.size}, next_free={self.next_free:#x})"


def set_regions(mem: GuestMemory, regions: Iterable[tuple[int, int]]) -> None:
    """Say which addresses are memory: set `GuestMemory.size` and `GuestMemory.regions`.

    Regions that touch become one, since a buffer may lie across their border.

    Args:
        mem: The memory; its views must reach up to the last region's end.
        regions: First address and address behind the last byte of each, in any order.

    Raises:
        AddressError: A region ends before it begins, or begins below 0.

    Example:
        >>> mem = GuestMemory(8192)
        >>> set_regions(mem, [(6144, 8192), (0, 2048), (2048, 4096)])
        >>> mem.size, mem.regions, in_range(mem, 4000, 96), in_range(mem, 4000, 97)
        (4096, [6144, 8192], True, False)
    """
    merged: list[list[int]] = []
    for start, end in sorted(regions):
        if start < 0 or end < start:
            raise AddressError(f"a region of guest memory from {start:#x} to {end:#x}")
        if merged and start <= merged[-1][1]:
            merged[-1][1] = max(end, merged[-1][1])
        elif end > start:
            merged.append([start, end])
    mem.size = 0
    if merged and merged[0][0] == 0:
        mem.size = merged.pop(0)[1]
    mem.regions = [bound for region in merged for bound in region] or [0, 0]


def in_regions(mem: GuestMemory, addr: int, length: int) -> bool:
    """Tell whether the ``length`` bytes (from 0) from ``addr`` lie in one of the further regions."""
    regions = mem.regions
    found = False
    for k in range(len(regions) >> 1):
        if regions[2 * k] <= addr <= regions[2 * k + 1] - length:
            found = True
    return found


def in_range(mem: GuestMemory, addr: int, length: int) -> bool:
    """Tell whether the ``length`` bytes from ``addr`` lie in guest memory (zero bytes may end it).

    Never computes ``addr + length``, which may be more than a 64-bit number holds.
    """
    return length >= 0 and (0 <= addr <= mem.size - length or in_regions(mem, addr, length))


def shared_fence(mem: GuestMemory) -> None:
    """Call the real fence of memory that another processor works on."""
    mem.fence()  # type: ignore[attr-defined]


def fence(mem: GuestMemory) -> None:
    """Order everything written before against everything read or written after.

    Nothing to do where one interpreter runs both sides; a compiled engine leaves it out. Memory shared with
    another processor (`GuestMemory.shared`) needs a real one in the same places: it may let a later read
    overtake an earlier write (a ring's index against its event index), and then a wake-up is lost.
    Linux: ``virtio_mb``; QEMU: ``smp_mb``.
    """
    if mem.shared:
        shared_fence(mem)


def read_u16(mem: GuestMemory, addr: int) -> int:
    """Return the 16-bit number at ``addr``."""
    if addr & 1:
        return mem.u8[addr] | mem.u8[addr + 1] << 8
    return mem.u16[addr >> 1]


def write_u16(mem: GuestMemory, addr: int, value: int) -> None:
    """Store the 16-bit number ``value`` (0 to 0xffff) at ``addr``; at an even address in one access."""
    if addr & 1:
        mem.u8[addr] = value & 0xFF
        mem.u8[addr + 1] = value >> 8
    else:
        mem.u16[addr >> 1] = value


def read_u32(mem: GuestMemory, addr: int) -> int:
    """Return the 32-bit number at ``addr``."""
    if addr & 3:
        return read_u16(mem, addr) | read_u16(mem, addr + 2) << 16
    return mem.u32[addr >> 2]


def write_u32(mem: GuestMemory, addr: int, value: int) -> None:
    """Store the 32-bit number ``value`` at ``addr``; at a multiple of 4 in one access."""
    if addr & 3:
        write_u16(mem, addr, value & 0xFFFF)
        write_u16(mem, addr + 2, value >> 16)
    else:
        mem.u32[addr >> 2] = value


def read_u64(mem: GuestMemory, addr: int) -> int:
    """Return the 64-bit number at ``addr``."""
    if addr & 7:
        return read_u32(mem, addr) | read_u32(mem, addr + 4) << 32
    return mem.u64[addr >> 3]


def write_u64(mem: GuestMemory, addr: int, value: int) -> None:
    """Store the 64-bit number ``value`` at ``addr``; at a multiple of 8 in one access."""
    if addr & 7:
        write_u32(mem, addr, value & 0xFFFFFFFF)
        write_u32(mem, addr + 4, value >> 32)
    else:
        mem.u64[addr >> 3] = value


def extent(mem: GuestMemory) -> str:
    """Return what a message says of where memory is."""
    further = "".join(
        f" and {start:#x}-{end:#x}" for start, end in zip(mem.regions[::2], mem.regions[1::2], strict=True) if end
    )
    return f" of {mem.size} bytes{further}"


def _check(mem: GuestMemory, addr: int, length: int) -> None:
    if not in_range(mem, addr, length):
        raise AddressError(f"{length} bytes at {addr:#x} are not in guest memory{extent(mem)}")


def read_bytes(mem: GuestMemory, addr: int, length: int) -> bytes:
    """Return the ``length`` bytes from ``addr``.

    Raises:
        AddressError: They do not all lie in guest memory.
    """
    _check(mem, addr, length)
    return bytes(mem.u8[addr : addr + length])


def write_bytes(mem: GuestMemory, addr: int, data: bytes | bytearray | memoryview) -> None:
    """Store ``data`` from ``addr`` on.

    Raises:
        AddressError: It does not fit into guest memory.
    """
    _check(mem, addr, len(data))
    mem.u8[addr : addr + len(data)] = data


def copy(mem: GuestMemory, dst: int, src: int, length: int) -> None:
    """Copy ``length`` bytes from ``src`` to ``dst``; the two ranges may overlap.

    Raises:
        AddressError: One of the ranges does not lie in guest memory.
    """
    _check(mem, src, length)
    _check(mem, dst, length)
    mem.u8[dst : dst + length] = mem.u8[src : src + length]


def allocate(mem: GuestMemory, size: int, align: int) -> int:
    """Take ``size`` bytes of guest memory and return their address, a multiple of ``align``.

    Nothing is ever given back, and address 0 is never given out. The bytes are zero unless somebody wrote
    to memory that was not theirs.

    Args:
        mem: The memory.
        size: Bytes, at least 0.
        align: A power of two.

    Raises:
        MemoryFullError: No room is left.
        AddressError: ``align`` is not a power of two, or ``size`` negative.
    """
    if align < 1 or align & (align - 1) or size < 0:
        raise AddressError(f"cannot allocate {size} bytes aligned to {align}; align is a power of two")
    addr = (mem.next_free + align - 1) & ~(align - 1)
    if not in_range(mem, addr, size):
        raise MemoryFullError(f"guest memory of {mem.size} bytes has no room for {size} more; make it larger")
    mem.next_free = addr + size
    return addr
