"""The archive that guests boot from, read back by a cpio that others wrote."""

from __future__ import annotations

import lzma
import subprocess
from pathlib import Path

import guest_kernel
import pytest
from guest_initramfs import Archive, build, load_order


def module(directory: Path, name: str, depends: str, packed: bool = False) -> None:
    data = b"\x7fELF\0license=GPL\0depends=" + depends.encode() + b"\0name=" + name.encode() + b"\0"
    path = directory / f"{name}.ko{'.xz' if packed else ''}"
    path.write_bytes(lzma.compress(data) if packed else data)


def test_modules_load_after_what_they_depend_on(tmp_path: Path) -> None:
    module(tmp_path, "virtio", "virtio_ring")
    module(tmp_path, "virtio_ring", "")
    module(tmp_path, "virtio-net", "net_failover,virtio", packed=True)
    module(tmp_path, "net_failover", "")
    order = [name for name, _ in load_order(tmp_path, ["virtio_net", "virtio_pci", "virtio"])]
    assert order == ["net_failover", "virtio_ring", "virtio", "virtio_net"]


def test_busybox_reads_the_archive(tmp_path: Path) -> None:
    busybox = guest_kernel.busybox()
    if busybox is None:
        pytest.skip("busybox-static is not installed (Debian: apt install busybox-static)")
    data = build("say hello\n", busybox=busybox, modules=[("m", b"abc")], files={"/deep/er/file": b"contents"})
    # By name: only root can make dev/console, and the names come out as they went in.
    names = ["deep/er/file", "modules/m.ko", "modules/order", "bin/busybox", "init"]
    command = [busybox, "cpio", "-id", *names]
    subprocess.run(command, input=data, cwd=tmp_path, check=True, timeout=20, capture_output=True)
    assert (tmp_path / "deep/er/file").read_bytes() == b"contents"
    assert (tmp_path / "modules/m.ko").read_bytes() == b"abc"
    assert (tmp_path / "modules/order").read_text() == "m.ko\n"
    assert (tmp_path / "bin/busybox").stat().st_mode & 0o111
    assert "say hello" in (tmp_path / "init").read_text()


@pytest.mark.parametrize("size", range(5))
def test_every_part_is_padded_to_four_bytes(size: int) -> None:
    archive = Archive()
    archive.file("f" * (size + 1), b"x" * size)
    assert len(archive.data()) % 4 == 0
