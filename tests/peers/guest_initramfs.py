"""An initramfs in a page of Python: busybox, kernel modules in the order they load, and a script as /init.

The format is "newc" (Linux, Documentation/driver-api/early-userspace/buffer-format.rst): per file a header of
`070701` and 13 numbers of 8 hex digits, the name, the contents, each padded to 4 bytes; TRAILER!!! ends it.
"""

from __future__ import annotations

import lzma
import re
import stat
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from pathlib import Path

_DIRECTORY = stat.S_IFDIR | 0o755
_PROGRAM = stat.S_IFREG | 0o755
_FILE = stat.S_IFREG | 0o644
_CONSOLE = stat.S_IFCHR | 0o600


def _pad(data: bytes) -> bytes:
    return data + bytes(-len(data) % 4)


@dataclass
class Archive:
    """A cpio archive that grows entry by entry; parents come before what stands in them."""

    parts: list[bytes] = field(default_factory=list)
    names: set[str] = field(default_factory=set)

    def _entry(self, name: str, mode: int, data: bytes = b"", device: tuple[int, int] = (0, 0)) -> None:
        raw = name.encode() + b"\0"
        inode = len(self.parts) + 1
        numbers = (inode, mode, 0, 0, 1, 0, len(data), 0, 0, *device, len(raw), 0)
        header = b"070701" + b"".join(b"%08X" % number for number in numbers)
        self.parts.append(_pad(header + raw) + _pad(data))
        self.names.add(name)

    def _parents(self, name: str) -> None:
        for parent in reversed(list(Path(name).parents)[:-1]):
            self.directory(str(parent))

    def directory(self, name: str) -> None:
        """Add a directory unless it is there."""
        if name not in self.names:
            self._parents(name)
            self._entry(name, _DIRECTORY)

    def file(self, name: str, data: bytes, program: bool = False) -> None:
        """Add a file."""
        self._parents(name)
        self._entry(name, _PROGRAM if program else _FILE, data)

    def console(self) -> None:
        """Add /dev/console, without which /init has no standard output."""
        self.directory("dev")
        self._entry("dev/console", _CONSOLE, device=(5, 1))

    def data(self) -> bytes:
        """The archive."""
        end = Archive()
        end._entry("TRAILER!!!", 0)
        return b"".join(self.parts + end.parts)


def _canonical(name: str) -> str:
    """A module's name as the kernel has it: file names and dependencies mix - and _."""
    return name.replace("-", "_")


def module_files(root: Path) -> dict[str, Path]:
    """Every kernel module below `root` by its name."""
    return {_canonical(path.name.split(".ko")[0]): path for path in sorted(root.rglob("*.ko*"))}


def module_bytes(path: Path) -> bytes:
    """A module as the kernel takes it: newer Debian kernels come with their modules compressed."""
    data = path.read_bytes()
    return lzma.decompress(data) if path.suffix == ".xz" else data


def load_order(root: Path, wanted: Iterable[str]) -> list[tuple[str, bytes]]:
    """The modules and what they depend on, dependencies first; a name without a file is built into the kernel."""
    files = module_files(root)
    found: dict[str, bytes] = {}

    def visit(name: str) -> None:
        if name in found or name not in files:
            return
        data = module_bytes(files[name])
        # .modinfo is a row of key=value strings; that of `depends` is what modprobe's tables are made from.
        depends = re.search(rb"\0depends=([^\0]*)\0", data)
        for other in depends.group(1).decode().split(",") if depends else []:
            visit(_canonical(other))
        found[name] = data

    for name in wanted:
        visit(_canonical(name))
    return list(found.items())


# /init starts with this. `say` prints a line that the host finds again among the kernel's own.
PRELUDE = """#!/bin/busybox sh
/bin/busybox --install -s /bin
export PATH=/bin
mount -t proc proc /proc
mount -t sysfs sysfs /sys
mount -t devtmpfs devtmpfs /dev
echo 4 > /proc/sys/kernel/printk
say() { echo "@@ $*"; }
while read module; do insmod /modules/$module || say failed insmod $module; done < /modules/order
say boot $(uname -r) $(cut -d' ' -f1 /proc/uptime)
"""
POSTLUDE = """
say done $(cut -d' ' -f1 /proc/uptime)
poweroff -f
sleep 60
"""


def build(
    script: str,
    *,
    busybox: Path,
    modules: Iterable[tuple[str, bytes]] = (),
    files: Mapping[str, bytes] | None = None,
) -> bytes:
    """An initramfs that loads `modules` in their order, runs `script` and powers the machine off."""
    archive = Archive()
    for name in ("bin", "proc", "sys", "mnt", "tmp"):
        archive.directory(name)
    archive.console()
    archive.file("bin/busybox", busybox.read_bytes(), program=True)
    order = []
    for name, data in modules:
        archive.file(f"modules/{name}.ko", data)
        order.append(f"{name}.ko\n")
    archive.file("modules/order", "".join(order).encode())
    for name, data in (files or {}).items():
        archive.file(name.lstrip("/"), data)
    archive.file("init", (PRELUDE + script + POSTLUDE).encode(), program=True)
    return archive.data()
