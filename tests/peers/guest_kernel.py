"""Which kernels the guests run: user-mode Linux as installed, and for QEMU a Debian kernel with its modules.

`python tests/peers/guest_kernel.py` fetches the latter with apt-get into the user's cache; it installs nothing.
IOSIM_GUEST_KERNEL=vmlinuz and IOSIM_GUEST_MODULES=directory name another kernel.
"""

from __future__ import annotations

import os
import re
import shutil
import subprocess
import sys
import tempfile
from dataclasses import dataclass
from pathlib import Path

from guest_initramfs import load_order

UML = "linux.uml"
QEMU = "qemu-system-x86_64"
META_PACKAGE = "linux-image-cloud-amd64"
MODULES = ("virtio_pci", "virtio_blk", "virtio_net", "ext4")
SECONDS = 300


@dataclass(frozen=True)
class Kernel:
    """A kernel to boot, and the directory with its modules."""

    image: Path
    modules: Path

    def module_list(self) -> list[tuple[str, bytes]]:
        """The modules that the workloads need, in the order in which they load."""
        return load_order(self.modules, MODULES)


def cache() -> Path:
    """Where a fetched kernel stays."""
    home = os.environ.get("XDG_CACHE_HOME") or str(Path.home() / ".cache")
    return Path(home) / "iosim" / "guest-kernel"


def busybox() -> Path | None:
    """A busybox that needs no library."""
    found = shutil.which("busybox")
    if found is None or b"ld-linux" in Path(found).read_bytes()[:4096]:
        return None
    return Path(found)


def uml() -> Kernel | None:
    """User-mode Linux, which is kernel and virtual machine in one program."""
    image = shutil.which(UML) or shutil.which("linux")
    modules = Path("/usr/lib/uml/modules")
    return Kernel(Path(image), modules) if image and modules.is_dir() else None


def qemu() -> Kernel | None:
    """A kernel for QEMU: the one named, else the one fetched, else one of this machine."""
    named = os.environ.get("IOSIM_GUEST_KERNEL")
    if named:
        return Kernel(Path(named), Path(os.environ.get("IOSIM_GUEST_MODULES", "/lib/modules")))
    if (cache() / "vmlinuz").is_file():
        return Kernel(cache() / "vmlinuz", cache() / "modules")
    for image in sorted(Path("/boot").glob("vmlinuz-*"), reverse=True):
        modules = Path("/lib/modules") / image.name.removeprefix("vmlinuz-")
        # A kernel that is readable by root only cannot be booted by anyone else.
        if any(modules.rglob("virtio_net.ko*")) and os.access(image, os.R_OK):
            return Kernel(image, modules)
    return None


def missing(machine: str) -> str | None:
    """What to install before a guest runs in `machine` ("uml" or "qemu"), in one line; None if nothing."""
    lacks = []
    if busybox() is None:
        lacks.append("busybox-static")
    if machine == "uml" and uml() is None:
        lacks.append("user-mode-linux")
    if machine == "qemu" and shutil.which(QEMU) is None:
        lacks.append("qemu-system-x86")
    if lacks:
        return f"install {' '.join(lacks)} (Debian, Ubuntu: apt install {' '.join(lacks)})"
    if machine == "qemu" and qemu() is None:
        return "no guest kernel: run `python tests/peers/guest_kernel.py`, or set IOSIM_GUEST_KERNEL"
    return None


def _apt(*arguments: str, where: Path) -> str:
    if shutil.which(arguments[0]) is None:
        raise RuntimeError(f"there is no {arguments[0]} here; set IOSIM_GUEST_KERNEL and IOSIM_GUEST_MODULES")
    environment = {**os.environ, "LC_ALL": "C"}
    done = subprocess.run(
        arguments, cwd=where, env=environment, capture_output=True, text=True, timeout=SECONDS, check=False
    )
    if done.returncode:
        raise RuntimeError(f"{' '.join(arguments)}: {(done.stderr.strip().splitlines() or ['failed'])[-1]}")
    return done.stdout


def _package(where: Path) -> str | None:
    """The package that META_PACKAGE stands for at present."""
    try:
        found = re.search(r"Depends: (linux-image-\S+)", _apt("apt-cache", "depends", META_PACKAGE, where=where))
    except RuntimeError:
        return None
    return found.group(1) if found else None


def fetch() -> Kernel:
    """Fetch Debian's kernel for virtual machines; keep its image and the modules the workloads need."""
    with tempfile.TemporaryDirectory() as name:
        where = Path(name)
        package = _package(where)
        if package is None and os.geteuid() == 0:
            # A machine that is made afresh, as a container is, has no lists of packages yet.
            _apt("apt-get", "update", where=where)
            package = _package(where)
        if package is None:
            raise RuntimeError(f"apt knows no {META_PACKAGE}; set IOSIM_GUEST_KERNEL to a kernel of your own")
        _apt("apt-get", "download", package, where=where)
        _apt("dpkg-deb", "-x", str(next(where.glob("*.deb"))), "root", where=where)
        target = cache()
        shutil.rmtree(target, ignore_errors=True)
        (target / "modules").mkdir(parents=True)
        for module, data in load_order(where / "root", MODULES):
            (target / "modules" / f"{module}.ko").write_bytes(data)
        # The image last: it is what tells that the cache is whole.
        shutil.copy(next((where / "root" / "boot").glob("vmlinuz-*")), target / "vmlinuz.part")
        (target / "vmlinuz.part").rename(target / "vmlinuz")
    found = qemu()
    assert found is not None
    return found


if __name__ == "__main__":
    kernel = qemu()
    if kernel is None:
        try:
            kernel = fetch()
        except (RuntimeError, OSError, subprocess.TimeoutExpired) as error:
            sys.exit(f"guest_kernel: {error}")
    print(f"guest kernel: {kernel.image}")
