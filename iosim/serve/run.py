"""Offer a device on a socket, and say what happens to it.

Example:
    >>> import socket, tempfile
    >>> from iosim.serve.run import Offer, Service
    >>> with tempfile.TemporaryDirectory() as directory:
    ...     with Service(Offer("vhost-user-blk", f"{directory}/socket", size=1 << 20)) as service:
    ...         service.state().state, [queue.name for queue in service.state().queues]
    ('waiting for a driver', ['requestq 0'])
"""

from __future__ import annotations

import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from types import TracebackType
from typing import Final, Self

from iosim.errors import IosimError, unknown
from iosim.serve.place import check_socket
from iosim.serve.view import DeviceState
from iosim.serve.watch import WatchedDevice
from iosim.vhost_user.backend import Backend
from iosim.virtio.blk import VIRTIO_BLK_ID_BYTES, BlkDevice
from iosim.virtio.device import VirtioDevice
from iosim.virtio.disk import SECTOR_SIZE, FileDisk, MemoryDisk
from iosim.virtio.echo_peer import EchoPeer
from iosim.virtio.features import (
    VIRTIO_F_RING_PACKED,
    VIRTIO_F_VERSION_1,
    VIRTIO_RING_F_EVENT_IDX,
    VIRTIO_RING_F_INDIRECT_DESC,
    feature_names,
)
from iosim.virtio.net import VIRTIO_NET_HDR_F_NEEDS_CSUM, NetHdr, complete_checksum
from iosim.virtio.net_device import NetDevice

#: What can be offered.
KINDS: Final = ("vhost-user-blk", "vhost-user-net")
#: Bytes of a disk in memory unless told otherwise.
DEFAULT_SIZE: Final = 64 << 20
#: The interface's address, for a driver that has no QEMU to tell it one.
GUEST_MAC: Final = bytes.fromhex("525400123456")
_MOST_QUEUES: Final = 64
#: Seconds until a signal is seen, at most.
_LONGEST_WAIT: Final = 0.25


@dataclass(frozen=True)
class Offer:
    """What is offered, and where.

    Attributes:
        kind: One of `KINDS`.
        socket: The file to make.
        disk: blk: the file that is the disk; None for one in memory.
        size: blk: bytes of a disk in memory.
        read_only: blk: whether nothing may be written.
        serial: blk: what the guest reads as the disk's serial number.
        queues: blk: request queues; net: pairs of queues.
        event_idx: Whether VIRTIO_F_EVENT_IDX is offered.
        indirect: The same of VIRTIO_F_INDIRECT_DESC.
        packed: The same of VIRTIO_F_RING_PACKED.

    Raises:
        IosimError: Something above is not as it should be.
    """

    kind: str
    socket: str
    disk: str | None = None
    size: int | None = None
    read_only: bool = False
    serial: str = "iosim"
    queues: int = 1
    event_idx: bool = True
    indirect: bool = True
    packed: bool = False

    def __post_init__(self) -> None:
        if self.kind not in KINDS:
            raise unknown("device", self.kind, KINDS)
        if not 1 <= self.queues <= _MOST_QUEUES:
            raise IosimError(f"{self.queues} queues; choose 1 to {_MOST_QUEUES}", "--queues")
        if self.kind != "vhost-user-blk":
            for option, given in (("--disk", self.disk), ("--size", self.size), ("--read-only", self.read_only)):
                if given:
                    raise IosimError(f"a {self.kind} has no disk; only vhost-user-blk has", option)
            return
        if self.disk is not None and self.size is not None:
            raise IosimError("a disk in a file has the file's size; leave out --size or --disk", "--size")
        if self.size is not None and (self.size < SECTOR_SIZE or self.size % SECTOR_SIZE):
            raise IosimError(f"a disk of {self.size} bytes; a disk is whole sectors of {SECTOR_SIZE} bytes", "--size")
        if not self.serial.isascii() or not self.serial.isprintable() or len(self.serial) > VIRTIO_BLK_ID_BYTES:
            raise IosimError(f"'{self.serial}' is not at most {VIRTIO_BLK_ID_BYTES} letters of ASCII", "--serial")

    def ring_features(self) -> int:
        """The features of the rings that are offered."""
        offered = {
            VIRTIO_F_VERSION_1: True,
            VIRTIO_RING_F_EVENT_IDX: self.event_idx,
            VIRTIO_RING_F_INDIRECT_DESC: self.indirect,
            VIRTIO_F_RING_PACKED: self.packed,
        }
        return sum(1 << bit for bit, wanted in offered.items() if wanted)


def _disk(offer: Offer) -> FileDisk | MemoryDisk:
    if offer.disk is None:
        return MemoryDisk(offer.size or DEFAULT_SIZE, offer.read_only)
    path = Path(offer.disk)
    if path.is_dir():
        raise IosimError(f"{path} is a directory; give a file", "--disk")
    try:
        disk = FileDisk(path, offer.read_only)
    except IosimError as error:
        raise IosimError(str(error), "--disk") from None
    if disk.size < SECTOR_SIZE:
        disk.close()
        raise IosimError(f"{path} has {disk.size} bytes; a disk has at least {SECTOR_SIZE}", "--disk")
    return disk


class Stop:
    """Where a signal handler leaves word that serving is to end.

    Attributes:
        reason: What `Service.run` raises, as soon as the device is between two elements.
    """

    def __init__(self) -> None:
        self.reason: BaseException | None = None


class Service:
    """A device on a socket, from when it listens until it is closed.

    Args:
        offer: What and where.
        report: Gets a line for what happens: a driver comes, goes, breaks a rule.
        show: Called now and then while something happens, at most every `interval` seconds, and when it calms.
        interval: Seconds.
        stop: Ends `run` from elsewhere.

    Raises:
        IosimError: The offer cannot be made: the socket's path, the disk.
    """

    def __init__(
        self,
        offer: Offer,
        report: Callable[[str], None] = lambda _: None,
        show: Callable[[DeviceState], None] = lambda _: None,
        interval: float = 0.25,
        stop: Stop | None = None,
    ) -> None:
        self.offer = offer
        self.stop = stop or Stop()
        self.peer: EchoPeer | None = None
        self._net: NetDevice | None = None
        self._disk: FileDisk | MemoryDisk | None = None
        self._report = report
        self._show = show
        self._interval = interval
        self._next = 0.0
        self._shown: DeviceState | None = None
        path = check_socket(offer.socket)
        self.device = WatchedDevice(self._device(), self._tick)
        self.device.kicks = self._kicks
        self.backend = Backend(self.device, path, report=self._reported)

    def _device(self) -> VirtioDevice:
        offer = self.offer
        if offer.kind == "vhost-user-blk":
            self._disk = _disk(offer)
            return BlkDevice(
                self._disk, serial=offer.serial, num_queues=offer.queues, ring_features=offer.ring_features()
            )
        self.peer = EchoPeer()
        # QEMU answers the control queue itself; a driver that has this end alone does without.
        self._net = NetDevice(
            self._sent, GUEST_MAC, offer.queues, control=False, ring_features=offer.ring_features()
        )
        return self._net

    def _sent(self, packet: bytes, header: NetHdr) -> None:
        """Hand a packet of the guest's to the other end of the cable, and its answer back."""
        assert self.peer is not None
        assert self._net is not None
        if header.flags & VIRTIO_NET_HDR_F_NEEDS_CSUM:
            try:
                packet = complete_checksum(packet, header)
            except IosimError:
                return
        answer = self.peer.answer(packet)
        if answer is not None:
            # Who is to be interrupted is told by the call that is serving the guest's queue at present.
            self._net.receive(answer)

    def _kicks(self, index: int) -> int:
        session = self.backend.session
        return session.vrings[index].kicks if session is not None else 0

    def _reported(self, line: str, detail: bool = False) -> None:
        if not detail:
            self._report(line)

    def state(self) -> DeviceState:
        """Where device and queues are."""
        session = self.backend.session
        running = any(queue is not None for queue in self.device.device.queues.values())
        if self.device.error is not None:
            state = f"broken: {self.device.error}"
        elif session is None:
            state = "waiting for a driver" if self.backend.sessions == 0 else "the driver is gone; waiting"
        else:
            state = "running" if running else "connected"
        features = feature_names(self.device.features, self.device.device.name)
        requests = dict(self.device.requests)
        if self.peer is not None:
            requests |= {f"peer_{name}": count for name, count in self.peer.counts.items()}
        return DeviceState(state, features, self.device.queue_states(), requests)

    def _tick(self) -> None:
        """Stop if told to, show the state if it is time to; called from inside the work, which may go on for long."""
        if self.stop.reason is not None:
            raise self.stop.reason
        now = time.monotonic()
        if now >= self._next:
            self._next = now + self._interval
            self._show_now()

    def _show_now(self) -> None:
        state = self.state()
        if state != self._shown:
            self._shown = state
            self._show(state)

    def run(self, once: bool = False) -> None:
        """Serve one driver after the other, for ever.

        Args:
            once: Return when the first has gone.
        """
        while True:
            # Without a timeout what was counted last would be shown, and a signal seen, when the next thing happens.
            self.backend.poll(min(self._interval, _LONGEST_WAIT))
            self._tick()
            if once and self.backend.sessions and self.backend.session is None:
                return

    def close(self) -> None:
        """Hang up; the socket's file is removed."""
        self.backend.close()
        if isinstance(self._disk, FileDisk):
            self._disk.close()

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()
