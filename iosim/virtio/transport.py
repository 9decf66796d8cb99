"""A transport without a bus: a driver and a device in one process, their queues in simulated guest memory.

`Driver` does what Linux does when it finds a device (virtio 1.2, 3.1.1: ``virtio_dev_probe``), then sends
requests and takes the answers. Tests, notebooks and set-up code of models use it; a model's own driver is a
process that takes time.

Example:
    >>> from iosim.ring.memory import GuestMemory
    >>> from iosim.virtio.rng import RngDevice
    >>> driver = Driver(RngDevice(lambda n: b"*" * n), GuestMemory(1 << 20))
    >>> driver.device.status
    DeviceStatus(ACKNOWLEDGE | DRIVER | FEATURES_OK | DRIVER_OK)
    >>> driver.request(0, b"", 4)
    b'****'
    >>> driver.kicks, driver.interrupts
    ([0], [0])
"""

from __future__ import annotations

from collections.abc import Sequence
from itertools import pairwise
from typing import NamedTuple

from iosim.ring.memory import GuestMemory, allocate, read_bytes, write_bytes
from iosim.ring.virtqueue import Buffer, DriverSide, new_virtqueue
from iosim.virtio.device import VirtioDevice
from iosim.virtio.errors import NegotiationError, VirtioError
from iosim.virtio.features import VIRTIO_RING_F_EVENT_IDX, has_feature
from iosim.virtio.negotiation import acceptable
from iosim.virtio.status import ACKNOWLEDGE, DRIVER, DRIVER_OK, FAILED, FEATURES_OK


class Reply(NamedTuple):
    """What came back for one request."""

    #: What was given to `Driver.submit`.
    data: object
    #: Used length: bytes the device says it wrote.
    length: int
    #: Contents of all writable buffers.
    contents: bytes


def cut(addr: int, length: int, cuts: Sequence[int] = ()) -> list[Buffer]:
    """Return the bytes from ``addr`` as buffers, cut at these offsets; none is empty, whatever the offsets.

    Example:
        >>> [b.length for b in cut(64, 10, [4, 4, 99])]
        [4, 6]
    """
    edges = sorted({0, length, *(c for c in cuts if 0 < c < length)})
    return [Buffer(addr + a, b - a) for a, b in pairwise(edges)]


class Driver:
    """A driver that sets a device up and talks to it at once, without time.

    Args:
        device: The device; it is reset first.
        mem: Guest memory to take queues and buffers from.
        understood: Features that the driver knows; everything by default.
        queue_size: Descriptors in each queue.
        arena: Bytes of guest memory for the buffers of `request`.

    Attributes:
        features: What was negotiated.
        queues: The driver's sides of the queues, by index.
        kicks: The queues that were notified, in order.
        interrupts: The queues whose interrupt came, in order.
        config_changes: Configuration change notifications that came.

    Raises:
        NegotiationError: The device did not keep FEATURES_OK; the driver has set FAILED.
    """

    def __init__(
        self,
        device: VirtioDevice,
        mem: GuestMemory,
        understood: int = (1 << 64) - 1,
        queue_size: int = 64,
        arena: int = 1 << 16,
    ) -> None:
        self.device = device
        self.mem = mem
        self.queues: dict[int, DriverSide] = {}
        self.kicks: list[int] = []
        self.interrupts: list[int] = []
        self.config_changes = 0
        device.on_config_change = self._config_change
        self._arena = Buffer(allocate(mem, arena, 64), arena)
        # 3.1.1, steps 1 to 8.
        device.write_status(0)
        device.write_status(ACKNOWLEDGE)
        device.write_status(ACKNOWLEDGE | DRIVER)
        self.features = acceptable(device.host_features, understood, device.name)
        device.write_features(self.features)
        status = device.write_status(ACKNOWLEDGE | DRIVER | FEATURES_OK)
        if not status & FEATURES_OK:
            device.write_status(status | FAILED)
            raise NegotiationError(f"the device did not keep FEATURES_OK: {device.error}")
        event_idx = has_feature(self.features, VIRTIO_RING_F_EVENT_IDX)
        for index in range(device.num_queues):
            self.queues[index], side = new_virtqueue(mem, queue_size, event_idx)
            device.set_queue(index, side)
        device.write_status(status | DRIVER_OK)

    def _config_change(self) -> None:
        self.config_changes += 1

    def submit(self, index: int, out_sg: Sequence[Buffer], in_sg: Sequence[Buffer], data: object = None) -> None:
        """Make one chain available; `kick` tells the device.

        Raises:
            RingError: The queue cannot take it.
        """
        self.queues[index].add(out_sg, in_sg, (in_sg, data))

    def kick(self, index: int) -> None:
        """Notify the device, if it wants that; interrupts come before this returns."""
        if self.queues[index].kick_prepare():
            self.kicks.append(index)
            self.deliver(self.device.handle_queue(index))

    def deliver(self, interrupts: Sequence[int]) -> None:
        """Note interrupts that the device returned."""
        self.interrupts += interrupts

    def collect(self, index: int) -> list[Reply]:
        """Take everything that came back, whether or not an interrupt told so, and ask for the next interrupt.

        Raises:
            RingError: What the device wrote cannot be.
        """
        queue, found = self.queues[index], []
        while True:
            while (used := queue.get_buf()) is not None:
                in_sg, data = used.data
                contents = b"".join(read_bytes(self.mem, b.addr, b.length) for b in in_sg)
                found.append(Reply(data, used.length, contents))
            if queue.enable_cb():
                return found

    def request(
        self, index: int, out: bytes, in_size: int, out_cuts: Sequence[int] = (), in_cuts: Sequence[int] = ()
    ) -> bytes:
        """Send one request and return what the device wrote for it; the queue is otherwise empty.

        Args:
            index: The queue.
            out: Bytes that the device reads.
            in_size: Bytes that it may write.
            out_cuts: Offsets in ``out`` at which a new descriptor begins.
            in_cuts: The same of the writable part.

        Raises:
            VirtioError: The device did not answer.
            RingError: The queue cannot take it, or what the device wrote cannot be.
        """
        reply = self.exchange(index, out, in_size, out_cuts, in_cuts)
        return reply.contents[: reply.length]

    def exchange(
        self, index: int, out: bytes, in_size: int, out_cuts: Sequence[int] = (), in_cuts: Sequence[int] = ()
    ) -> Reply:
        """Do as `request`, and return the used length and all writable bytes, of which the device wrote some."""
        base, room = self._arena
        if len(out) + in_size > room:
            raise VirtioError(f"a request of {len(out) + in_size} bytes; the driver's arena has {room}")
        write_bytes(self.mem, base, out + bytes(in_size))
        out_sg = cut(base, len(out), out_cuts)
        in_sg = cut(base + len(out), in_size, in_cuts)
        self.submit(index, out_sg, in_sg)
        self.kick(index)
        replies = self.collect(index)
        if not replies:
            raise self.device.error or VirtioError(f"queue {index}: the device did not answer")
        return replies[0]
