"""What a block device stores its sectors in: memory, or a file.

Example:
    >>> disk = MemoryDisk(bytes(1024))
    >>> disk.write(512, b"hello")
    >>> disk.read(510, 8)
    b'\\x00\\x00hello\\x00'
    >>> disk.write_zeroes(512, 4)
    >>> disk.read(512, 5)
    b'\\x00\\x00\\x00\\x00o'
"""

from __future__ import annotations

import os
from pathlib import Path
from typing import Final, Protocol

from iosim.errors import IosimError

#: Bytes of a sector, in which virtio counts whatever the device's block size is (5.2.4).
SECTOR_SIZE: Final = 512
#: Zeroes are written in pieces of this many bytes.
_ZEROES: Final = bytes(1 << 16)


class Disk(Protocol):
    """Bytes that stay. Offsets and lengths are in bytes; the caller keeps them inside `size`.

    Any method may raise `OSError`; a device answers with its status for an I/O error.
    """

    @property
    def size(self) -> int:
        """Bytes."""

    @property
    def read_only(self) -> bool:
        """Whether nothing may be written."""

    def read(self, offset: int, length: int) -> bytes:
        """Return ``length`` bytes."""

    def write(self, offset: int, data: bytes) -> None:
        """Store ``data``."""

    def flush(self) -> None:
        """Return once everything written is safe."""

    def discard(self, offset: int, length: int) -> None:
        """Take note that nobody needs these bytes; what they read as afterwards is open."""

    def write_zeroes(self, offset: int, length: int) -> None:
        """Make these bytes read as zero."""


class MemoryDisk:
    """A disk in memory.

    Args:
        data: Its contents, copied; or its size in bytes, zeroed.
        read_only: Whether nothing may be written.
    """

    def __init__(self, data: bytes | bytearray | int, read_only: bool = False) -> None:
        self.data = bytearray(data)
        self.read_only = read_only
        #: How often `flush` was called.
        self.flushes = 0

    @property
    def size(self) -> int:
        """Bytes."""
        return len(self.data)

    def read(self, offset: int, length: int) -> bytes:
        """Return ``length`` bytes."""
        return bytes(self.data[offset : offset + length])

    def write(self, offset: int, data: bytes) -> None:
        """Store ``data``."""
        self.data[offset : offset + len(data)] = data

    def flush(self) -> None:
        """Count the call; memory is as safe as it gets."""
        self.flushes += 1

    def discard(self, offset: int, length: int) -> None:
        """Zero the bytes."""
        self.write_zeroes(offset, length)

    def write_zeroes(self, offset: int, length: int) -> None:
        """Zero the bytes."""
        self.data[offset : offset + length] = bytes(length)


class FileDisk:
    """A disk in a file, or a block device of the host.

    Args:
        path: The file; it exists, and its size is the disk's.
        read_only: Whether nothing may be written.

    Raises:
        IosimError: The file cannot be opened.
    """

    def __init__(self, path: str | Path, read_only: bool = False) -> None:
        self.read_only = read_only
        try:
            self._fd = os.open(path, os.O_CLOEXEC | (os.O_RDONLY if read_only else os.O_RDWR))
            # A block device has no size in its inode, but an end.
            self._size = os.lseek(self._fd, 0, os.SEEK_END)
        except OSError as error:
            raise IosimError(f"cannot open the disk image: {error.strerror}", str(path)) from None

    @property
    def size(self) -> int:
        """Bytes, as they were when the file was opened."""
        return self._size

    def close(self) -> None:
        """Close the file; the disk is of no use afterwards."""
        os.close(self._fd)

    def read(self, offset: int, length: int) -> bytes:
        """Return ``length`` bytes; zeroes where the file has become shorter."""
        parts = []
        while length > 0:
            part = os.pread(self._fd, length, offset)
            if not part:
                parts.append(bytes(length))
                break
            parts.append(part)
            offset += len(part)
            length -= len(part)
        return b"".join(parts)

    def write(self, offset: int, data: bytes) -> None:
        """Store ``data``."""
        view = memoryview(data)
        while view:
            done = os.pwrite(self._fd, view, offset)
            offset += done
            view = view[done:]

    def flush(self) -> None:
        """Return once everything written has reached the storage (``fdatasync``)."""
        os.fdatasync(self._fd)

    def discard(self, offset: int, length: int) -> None:
        """Do nothing, as QEMU's ``discard=ignore``: the bytes stay, which is allowed."""

    def write_zeroes(self, offset: int, length: int) -> None:
        """Write zeroes."""
        while length > 0:
            piece = min(length, len(_ZEROES))
            self.write(offset, _ZEROES[:piece])
            offset += piece
            length -= piece
