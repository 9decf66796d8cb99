"""qemu-storage-daemon with a disk, and a front end on it."""

from __future__ import annotations

import random
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from peer import Peer, find, running

from iosim.vhost_user.blk_driver import BlkDriver
from iosim.vhost_user.frontend import Frontend
from iosim.vhost_user.memory import SharedMemory

SECTORS = 4096
PACKAGE = "qemu-system-common"


class Daemon:
    """A running daemon; `disk` is what must stand on its disk."""

    def __init__(self, peer: Peer, socket: Path, disk: bytearray) -> None:
        self.peer = peer
        self.socket = socket
        self.disk = disk

    @contextmanager
    def driver(
        self, features: int, size: int = 128, slots: int = 16, segments: int = 1, queue: int = 0
    ) -> Iterator[BlkDriver]:
        """Connect, take features, drive one queue, and hang up."""
        with SharedMemory.create(8 << 20) as mem, Frontend.connect(self.socket, 30) as frontend:
            frontend.negotiate(features)
            frontend.share(mem)
            yield BlkDriver(frontend, frontend.add_queue(queue, size), slots, 16384, segments)


@contextmanager
def storage_daemon(tmp: Path, queues: int = 2) -> Iterator[Daemon]:
    """Run the daemon on a disk of `SECTORS` sectors of random bytes."""
    program = find("qemu-storage-daemon", PACKAGE)
    disk = bytearray(random.Random(1).randbytes(SECTORS * 512))
    image, socket = tmp / "disk.raw", tmp / "blk.sock"
    image.write_bytes(disk)
    command = [
        program,
        "--blockdev", f"driver=file,node-name=disk,filename={image}",
        "--export", f"vhost-user-blk,id=export,node-name=disk,addr.type=unix,addr.path={socket},"
                    f"writable=on,num-queues={queues}",
    ]  # fmt: skip
    with running(command, tmp / "storage-daemon.log") as peer:
        yield Daemon(peer, socket, disk)
