"""Back ends that serve a guest's device over vhost-user: those that others wrote, and iosim's.

The former tell whether the guests themselves work: qemu-storage-daemon serves a disk, DPDK's testpmd a network
interface whose other end answers ARP and ping.
"""

from __future__ import annotations

import contextlib
import os
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

STORAGE_DAEMON = "qemu-storage-daemon"
TESTPMD = "dpdk-testpmd"
_START_SECONDS = 20.0
_STOP_SECONDS = 10.0


@dataclass
class Served:
    """A device that is offered on a socket; `output` is there when it has ended."""

    socket: str
    process: subprocess.Popen[bytes]
    log: Path
    output: str = ""
    status: int | None = None

    def last_line(self) -> str:
        """The last line in which `iosim serve` showed the device."""
        found = [line for line in self.output.splitlines() if "requests:" in line]
        assert found, f"no requests were served:\n{self.output[-2000:]}"
        return found[-1]

    def requests(self) -> dict[str, int]:
        """The requests by type, as `iosim serve` counted them."""
        words = self.last_line().split("requests: ")[1].split()
        return {name: int(count) for name, count in zip(words[::2], words[1::2], strict=True)}


@contextlib.contextmanager
def _served(command: Sequence[str], socket: Path, stop: signal.Signals) -> Iterator[Served]:
    log = socket.parent / "backend.log"
    with log.open("wb") as out:
        process = subprocess.Popen(
            command, stdin=subprocess.PIPE, stdout=out, stderr=subprocess.STDOUT, start_new_session=True
        )
    served = Served(str(socket), process, log)
    try:
        deadline = time.monotonic() + _START_SECONDS
        while not socket.exists():
            if process.poll() is not None or time.monotonic() > deadline:
                raise AssertionError(f"{command[0]} does not listen:\n{log.read_text(errors='replace')[-2000:]}")
            time.sleep(0.02)
        yield served
    finally:
        process.send_signal(stop)
        try:
            process.wait(_STOP_SECONDS)
        except subprocess.TimeoutExpired:
            process.kill()
            process.wait()
        if process.stdin is not None:
            process.stdin.close()
        served.status = process.returncode
        served.output = log.read_text(errors="replace")


@contextlib.contextmanager
def storage_daemon(disk: Path, *, queues: int = 1) -> Iterator[Served]:
    """Serve a file as a disk by qemu-storage-daemon."""
    with tempfile.TemporaryDirectory(prefix="iosim-") as directory:
        socket = Path(directory) / "socket"
        export = f"type=vhost-user-blk,id=e,addr.type=unix,addr.path={socket},node-name=f,writable=on"
        command = [
            STORAGE_DAEMON,
            *("--blockdev", f"driver=file,filename={disk},node-name=f,discard=unmap"),
            *("--export", f"{export},num-queues={queues}"),
        ]
        with _served(command, socket, signal.SIGTERM) as served:
            yield served


@contextlib.contextmanager
def testpmd() -> Iterator[Served]:
    """Serve a network interface by DPDK; whatever address is pinged answers."""
    with tempfile.TemporaryDirectory(prefix="iosim-") as directory:
        socket = Path(directory) / "socket"
        # Its polling core may run wherever this process may.
        cpus = ",".join(map(str, sorted(os.sched_getaffinity(0))))
        command = [
            *(TESTPMD, f"--lcores=0@({cpus}),1@({cpus})"),
            *("--no-huge", "-m", "256", "--no-pci", "--no-shconf", "--no-telemetry"),
            *("--vdev", f"net_vhost0,iface={socket},queues=1"),
            *("--", "--no-mlockall", "--forward-mode=icmpecho", "--auto-start", "--total-num-mbufs=4096"),
        ]
        # It polls, so it is killed rather than asked when the guest is done.
        with _served(command, socket, signal.SIGKILL) as served:
            yield served


testpmd.__test__ = False  # type: ignore[attr-defined]  # its name begins as a test's does


@contextlib.contextmanager
def iosim(kind: str, *options: str) -> Iterator[Served]:
    """Serve a device by `iosim serve`; Ctrl-C ends it, and the socket is gone afterwards."""
    with tempfile.TemporaryDirectory(prefix="iosim-") as directory:
        socket = Path(directory) / "socket"
        command = [sys.executable, "-m", "iosim", "serve", kind, "--socket", str(socket), *options]
        with _served(command, socket, signal.SIGINT) as served:
            yield served
        assert served.status == 130, f"iosim serve ended with {served.status}:\n{served.output[-3000:]}"
        assert not socket.exists()
