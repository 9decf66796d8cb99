"""Boot a Linux guest whose virtio devices somebody else serves over vhost-user, and read its console.

Two machines: user-mode Linux, whose driver virtio_uml speaks vhost-user itself, and QEMU, whose vhost-user-*
devices do, under software emulation (TCG). Neither needs /dev/kvm or root. A guest is killed, with everything
it started, when its time is over, and what it printed last goes into the error.
"""

from __future__ import annotations

import contextlib
import os
import signal
import subprocess
import tempfile
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import guest_kernel
from guest_initramfs import build

SECONDS = 60.0
MEMORY_MB = 192
#: Device numbers, virtio 1.2 section 5.
NET = 1
BLK = 2
_TAIL_LINES = 30


class GuestError(AssertionError):
    """The guest did not come to its end; the message has the tail of its console."""


@dataclass(frozen=True)
class GuestRun:
    """What a guest printed, and the lines of `say` among it."""

    console: str
    seconds: float

    def all(self, key: str) -> list[list[str]]:
        """The words after each `say KEY`."""
        lines = [line.split() for line in self.console.splitlines() if line.startswith("@@ ")]
        return [words[2:] for words in lines if words[1:2] == [key]]

    def one(self, key: str) -> list[str]:
        """The words after the only `say KEY`."""
        found = self.all(key)
        if len(found) != 1:
            raise GuestError(f"the guest said '{key}' {len(found)} times\n{tail(self.console)}")
        return found[0]

    def features(self) -> int:
        """The features that driver and device agreed on: the driver's file shows bit 0 first."""
        return sum(1 << bit for bit, digit in enumerate(self.one("features")[0]) if digit == "1")


def tail(console: str) -> str:
    """The last lines of a console."""
    return "\n".join(console.splitlines()[-_TAIL_LINES:])


def _run(command: Sequence[str], environment: Mapping[str, str], seconds: float, directory: str) -> GuestRun:
    """Run a machine to its end; kill its whole process group when that does not come."""
    started = time.monotonic()
    log = Path(directory) / "console"
    with log.open("wb") as out:
        machine = subprocess.Popen(
            command,
            stdin=subprocess.DEVNULL,
            stdout=out,
            stderr=subprocess.STDOUT,
            env=environment,
            cwd=directory,
            start_new_session=True,
        )
        hung = False
        try:
            machine.wait(seconds)
        except subprocess.TimeoutExpired:
            hung = True
        finally:
            # User-mode Linux has helper processes of its own; they are in the group that the session began.
            with contextlib.suppress(ProcessLookupError):
                os.killpg(machine.pid, signal.SIGKILL)
            machine.wait()
    run = GuestRun(log.read_text(errors="replace").replace("\r", ""), time.monotonic() - started)
    if hung:
        raise GuestError(f"the guest hung: killed after {seconds:.0f} s; its console ended with\n{tail(run.console)}")
    if not run.all("done"):
        raise GuestError(f"the guest ended early (status {machine.returncode}):\n{tail(run.console)}")
    return run


def run_uml(
    script: str,
    devices: Sequence[tuple[str, int]],
    *,
    files: Mapping[str, bytes] | None = None,
    arguments: Sequence[str] = (),
    seconds: float = SECONDS,
) -> GuestRun:
    """Run a script in user-mode Linux.

    Args:
        script: Shell commands for busybox; see `guest_workloads`.
        devices: Socket and device number of each device.
        files: Files for the guest, by path.
        arguments: Further parameters of the kernel.
        seconds: When to give up.

    Raises:
        GuestError: It hung, or ended before its script did.
    """
    kernel, busybox = guest_kernel.uml(), guest_kernel.busybox()
    assert kernel is not None
    assert busybox is not None
    with tempfile.TemporaryDirectory(prefix="iosim-") as directory:
        initrd = Path(directory) / "initrd"
        initrd.write_bytes(build(script, busybox=busybox, modules=kernel.module_list(), files=files))
        command = [
            str(kernel.image),
            f"mem={MEMORY_MB}M",
            f"initrd={initrd}",
            f"uml_dir={directory}",
            "con=null",
            "con0=null,fd:1",
            "panic=-1",
            "quiet",
            *(f"virtio_uml.device={socket}:{number}" for socket, number in devices),
            *arguments,
        ]
        # The guest's memory is a file that the back end maps too; it comes to stand in TMPDIR.
        return _run(command, {**os.environ, "TMPDIR": _shared_memory(directory), "HOME": directory}, seconds, directory)


def _shared_memory(otherwise: str) -> str:
    return "/dev/shm" if os.access("/dev/shm", os.W_OK) else otherwise


def blk_device(socket: str, **properties: object) -> list[str]:
    """QEMU's options for a disk that a vhost-user back end serves."""
    return [
        *("-chardev", f"socket,id=blk,path={socket}"),
        *("-device", _join("vhost-user-blk-pci,chardev=blk", properties)),
    ]


def net_device(socket: str, **properties: object) -> list[str]:
    """QEMU's options for a network interface that a vhost-user back end serves.

    Without `vectors=0` QEMU 7.2 crashes: under TCG it has no irqfd for the MSI-X vectors of vhost-user-net.
    """
    queues = f",queues={properties['queues']}" if "queues" in properties else ""
    rest = {name: value for name, value in properties.items() if name != "queues"}
    return [
        *("-chardev", f"socket,id=net,path={socket}"),
        *("-netdev", f"vhost-user,id=net,chardev=net{queues}"),
        *("-device", _join("virtio-net-pci,netdev=net,mac=52:54:00:12:34:56", {"vectors": 0, **rest})),
    ]


def _join(device: str, properties: Mapping[str, object]) -> str:
    words = [device]
    for name, value in properties.items():
        shown = {True: "on", False: "off"}.get(value, value) if isinstance(value, bool) else value
        words.append(f"{name.replace('_', '-') if name.startswith(('disable', 'num', 'queue')) else name}={shown}")
    return ",".join(words)


def run_qemu(
    script: str,
    devices: Sequence[str],
    *,
    files: Mapping[str, bytes] | None = None,
    cpus: int = 1,
    seconds: float = SECONDS,
) -> GuestRun:
    """Run a script in a machine of QEMU's under TCG.

    Args:
        script: Shell commands for busybox.
        devices: Options of QEMU: `blk_device(...)`, `net_device(...)`.
        files: Files for the guest, by path.
        cpus: Virtual CPUs.
        seconds: When to give up.

    Raises:
        GuestError: It hung, or ended before its script did.
    """
    kernel, busybox = guest_kernel.qemu(), guest_kernel.busybox()
    assert kernel is not None
    assert busybox is not None
    with tempfile.TemporaryDirectory(prefix="iosim-") as directory:
        initrd = Path(directory) / "initrd"
        initrd.write_bytes(build(script, busybox=busybox, modules=kernel.module_list(), files=files))
        command = [
            guest_kernel.QEMU,
            *("-nodefaults", "-no-user-config", "-no-reboot"),
            *("-display", "none", "-serial", "stdio"),
            *("-accel", "tcg", "-smp", str(cpus), "-m", str(MEMORY_MB)),
            # A back end in another process sees the guest's memory only where it is shared.
            *("-object", f"memory-backend-memfd,id=memory,size={MEMORY_MB}M,share=on"),
            *("-machine", "pc,memory-backend=memory"),
            *("-kernel", str(kernel.image), "-initrd", str(initrd)),
            *("-append", "console=ttyS0 quiet panic=-1"),
            *devices,
        ]
        return _run(command, os.environ, seconds, directory)
