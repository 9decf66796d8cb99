"""Guest memory that another process works on at the same time.

`SharedMemory` is used wherever `iosim.ring.memory.GuestMemory` is: same attributes, indexed by guest-physical
address. What another process shares comes in regions with holes between them; all of it is mapped into one
reserved stretch of address space, each region at its guest-physical offset, so that the ring code's views
need no translation.

A hole belongs to nobody. The ring code refuses addresses in holes (`regions`); should anything touch one
all the same, there is private memory behind it, zeroed, which nobody else sees: no crash.

What cannot be guarded against: a process that shares a file and then makes it shorter. Touching what is
no longer there ends this process (SIGBUS), as it ends QEMU. A file that is too short when it arrives is refused.

Example:
    >>> from iosim.ring.memory import allocate, read_bytes, write_bytes
    >>> with SharedMemory.create(1 << 20) as mem:
    ...     write_bytes(mem, allocate(mem, 16, 16), b"for both of us")
    ...     other = SharedMemory.map(mem.table, mem.fds)      # what the other process does with them
    ...     read_bytes(other, 64, 14), mem.to_guest(mem.table[0].user_addr + 64)
    ...     other.close()
    (b'for both of us', 64)
"""

from __future__ import annotations

import ctypes
import fcntl
import mmap
import os
import stat
import sys
import weakref
from collections.abc import Sequence
from types import TracebackType
from typing import Any, Final, Self

from iosim.ring.errors import ByteOrderError
from iosim.ring.memory import PAGE_SIZE, GuestMemory, set_regions
from iosim.vhost_user.errors import RegionError
from iosim.vhost_user.fence import full_fence
from iosim.vhost_user.messages import MemoryRegion

#: Guest-physical addresses go up to here (16 TiB): more cannot be reserved everywhere.
MAX_ADDRESS: Final = 1 << 44
#: The reserved stretch begins at a multiple of this, so that regions of huge pages (1 GiB) can be mapped into it.
_ALIGN: Final = 1 << 30
#: From <sys/mman.h>; the module `mmap` does not have them before Python 3.13.
_MAP_FIXED: Final = 0x10
_MAP_NORESERVE: Final = 0x4000
_MAP_FAILED: Final = ctypes.c_void_p(-1).value
#: From <fcntl.h>: the file's size is final, and so is that.
_SEALS: Final = 0x1 | 0x2 | 0x4

_LIBC: Final = ctypes.CDLL(None, use_errno=True)
_LIBC.mmap.restype = ctypes.c_void_p
_LIBC.mmap.argtypes = [
    ctypes.c_void_p, ctypes.c_size_t, ctypes.c_int, ctypes.c_int, ctypes.c_int, ctypes.c_longlong,
]  # fmt: skip
_LIBC.munmap.argtypes = [ctypes.c_void_p, ctypes.c_size_t]


def _mmap(addr: int, length: int, flags: int, fd: int, offset: int) -> int:
    """Map readable and writable memory; return its address."""
    result = _LIBC.mmap(addr, length, mmap.PROT_READ | mmap.PROT_WRITE, flags, fd, offset)
    if result is None or result == _MAP_FAILED:
        reason = os.strerror(ctypes.get_errno())
        raise RegionError(f"cannot map {length} bytes of guest memory: {reason}")
    return int(result)


def check_table(table: Sequence[MemoryRegion]) -> None:
    """Raise `RegionError` unless these regions can be mapped side by side."""
    end = 0
    for region in sorted(table):
        where = f"memory region at {region.guest_addr:#x}"
        if region.size == 0:
            raise RegionError("it has no bytes", where)
        if region.guest_addr + region.size > MAX_ADDRESS:
            raise RegionError(f"it ends at {region.guest_addr + region.size:#x}; at most {MAX_ADDRESS:#x}", where)
        if region.user_addr + region.size > 1 << 64 or region.mmap_offset + region.size > 1 << 62:
            raise RegionError("its user address or its offset in the file runs over", where)
        if region.guest_addr % PAGE_SIZE or region.mmap_offset % PAGE_SIZE:
            raise RegionError(f"address and file offset must be multiples of {PAGE_SIZE}", where)
        if region.guest_addr < end:
            raise RegionError(f"it overlaps the one that ends at {end:#x}", where)
        end = region.guest_addr + region.size


class SharedMemory(GuestMemory):
    """Guest memory in files that several processes map. Made by `create` (a driver) or `map` (a device).

    Attributes:
        shared: True: `iosim.ring.memory.fence` has to be a real one here.
        table: The regions as the protocol describes them.
        fds: The files of `table`, while this side owns them; a driver sends them to the device.

    Raises:
        RegionError: The regions overlap, are not aligned to pages, reach too far, or their files are too short.
        FenceError: There is no fence for this machine.
    """

    __slots__ = ("__weakref__", "_fence", "fds", "table")

    def __init__(self, table: Sequence[MemoryRegion], fds: Sequence[int]) -> None:
        if sys.byteorder != "little":
            raise ByteOrderError("guest memory needs a little-endian host: virtio is little-endian (1.4)")
        if not table or len(table) != len(fds):
            raise RegionError(f"{len(table)} memory regions with {len(fds)} files; there is one for each")
        check_table(table)
        self._fence = full_fence()
        top = max(region.guest_addr + region.size for region in table)
        top = (top + PAGE_SIZE - 1) // PAGE_SIZE * PAGE_SIZE
        self.shared = True
        self.fds: list[int] = []
        self.next_free = max(PAGE_SIZE, min(region.guest_addr for region in table))
        set_regions(self, [(region.guest_addr, region.guest_addr + region.size) for region in table])
        reserved = top + _ALIGN
        inert = mmap.MAP_PRIVATE | mmap.MAP_ANONYMOUS | _MAP_NORESERVE
        start = _mmap(0, reserved, inert, -1, 0)
        base = (start + _ALIGN - 1) // _ALIGN * _ALIGN
        memory = (ctypes.c_ubyte * top).from_address(base)
        # The mapping lives as long as any view of it, whoever holds one.
        weakref.finalize(memory, _LIBC.munmap, start, reserved).atexit = False
        for region, fd in zip(table, fds, strict=True):
            found = os.fstat(fd)
            if stat.S_ISREG(found.st_mode) and found.st_size < region.mmap_offset + region.size:
                raise RegionError(
                    f"its file has {found.st_size} bytes, it needs {region.mmap_offset + region.size}",
                    f"memory region at {region.guest_addr:#x}",
                )
            _mmap(base + region.guest_addr, region.size, mmap.MAP_SHARED | _MAP_FIXED, fd, region.mmap_offset)
        self.buffer: Any = memory
        self.u8 = memoryview(memory).cast("B")
        self.u16 = self.u8.cast("H")
        self.u32 = self.u8.cast("I")
        self.u64 = self.u8.cast("Q")
        self.table = list(table)

    @classmethod
    def create(cls, size: int, guest_addr: int = 0) -> Self:
        """Make new memory in a memfd, to be shared by a driver.

        Args:
            size: Bytes, rounded up to whole pages.
            guest_addr: Guest-physical address of the first byte.
        """
        size = (size + PAGE_SIZE - 1) // PAGE_SIZE * PAGE_SIZE
        fd = os.memfd_create("iosim", os.MFD_CLOEXEC | os.MFD_ALLOW_SEALING)
        try:
            os.ftruncate(fd, size)
            fcntl.fcntl(fd, fcntl.F_ADD_SEALS, _SEALS)
            mem = cls([MemoryRegion(guest_addr, size, 0, 0)], [fd])
        except BaseException:
            os.close(fd)
            raise
        # Its address in this process, as QEMU gives it: the device must translate it, and so it is tried.
        mem.table = [MemoryRegion(guest_addr, size, ctypes.addressof(mem.buffer) + guest_addr, 0)]
        mem.fds = [fd]
        return mem

    @classmethod
    def map(cls, table: Sequence[MemoryRegion], fds: Sequence[int]) -> Self:
        """Map what a driver shares. The descriptors stay the caller's, who may close them afterwards."""
        return cls(table, fds)

    def fence(self) -> None:
        """Order every load and store before this against every one after it, as other processors see them."""
        self._fence()

    def to_guest(self, user_addr: int) -> int:
        """Return the guest-physical address of an address in the front end's process.

        Raises:
            RegionError: It lies in no region.
        """
        for region in self.table:
            if region.user_addr <= user_addr < region.user_addr + region.size:
                return user_addr - region.user_addr + region.guest_addr
        raise RegionError(f"user address {user_addr:#x} lies in none of the {len(self.table)} memory regions")

    def to_user(self, guest_addr: int) -> int:
        """Return the address in the front end's process of a guest-physical address.

        Raises:
            RegionError: It lies in no region.
        """
        for region in self.table:
            if region.guest_addr <= guest_addr < region.guest_addr + region.size:
                return guest_addr - region.guest_addr + region.user_addr
        raise RegionError(f"guest address {guest_addr:#x} lies in none of the {len(self.table)} memory regions")

    def close(self) -> None:
        """Give the memory back. Whoever still holds a ring over it gets a ValueError at the next access."""
        for view in (self.u64, self.u32, self.u16, self.u8):
            view.release()
        self.buffer = None
        for fd in self.fds:
            os.close(fd)
        self.fds = []

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()

    def __repr__(self) -> str:
        parts = ", ".join(f"{r.guest_addr:#x}-{r.guest_addr + r.size:#x}" for r in self.table)
        return f"SharedMemory({parts})"
