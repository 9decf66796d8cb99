"""Looking on while a device serves its queues: what passes, counted where it happens.

`WatchedDevice` stands between a back end and a device and changes nothing; each queue that is set up goes
through it as a `WatchedSide`.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable
from typing import Final

from iosim.ring.virtqueue import DeviceSide, Element
from iosim.serve.view import QueueState, idle_queue
from iosim.virtio import blk
from iosim.virtio.device import VirtioDevice
from iosim.virtio.net import NET_HDR_LEN

#: What a request is called, from the number its header begins with.
_BLK_NAMES: Final = {
    blk.VIRTIO_BLK_T_IN: "in",
    blk.VIRTIO_BLK_T_OUT: "out",
    blk.VIRTIO_BLK_T_FLUSH: "flush",
    blk.VIRTIO_BLK_T_GET_ID: "get_id",
    blk.VIRTIO_BLK_T_DISCARD: "discard",
    blk.VIRTIO_BLK_T_WRITE_ZEROES: "write_zeroes",
}


class QueueCounts:
    """What passed through one queue, over all drivers that came."""

    def __init__(self) -> None:
        self.elements = 0
        self.calls = 0
        self.suppressed = 0
        #: Notifications from drivers that are gone; those of the present one are its session's.
        self.kicks = 0


class WatchedSide(DeviceSide):
    """A device's side of a queue that tells what is done with it."""

    def __init__(
        self, queue: DeviceSide, counts: QueueCounts, popped: Callable[[Element], None], pushed: Callable[[int], None]
    ) -> None:
        super().__init__(queue.q)
        self._counts = counts
        self._popped = popped
        self._pushed = pushed
        self._filled = 0

    def pop(self) -> Element | None:
        """Take the next chain."""
        element = super().pop()
        if element is not None:
            self._popped(element)
        return element

    def flush(self, count: int) -> None:
        """Publish entries."""
        super().flush(count)
        self._counts.elements += count
        # What is published at once belongs together: a packet in several receive buffers.
        self._pushed(self._filled)
        self._filled = 0

    def fill(self, element: Element, length: int, idx: int) -> None:
        """Write a used entry."""
        super().fill(element, length, idx)
        self._filled += length

    def push(self, element: Element, length: int) -> None:
        """Give an element back."""
        super().push(element, length)
        self._counts.elements += 1
        self._pushed(length)

    def should_notify(self) -> bool:
        """Ask the ring whether an interrupt is due."""
        due = super().should_notify()
        if due:
            self._counts.calls += 1
        else:
            self._counts.suppressed += 1
        return due


class WatchedDevice:
    """A device, watched. It is what a `Backend` serves.

    Attributes:
        device: The device itself.
        counts: What passed through each queue.
        requests: Requests by type (blk); packets and bytes in each direction (net), as the guest sees them.
        features: What the last driver accepted.
        kicks: Gives the notifications of the present driver for a queue; set by whoever has the back end.

    Args:
        device: The device.
        activity: Called for every element that is taken; a device can be busy for long.
    """

    def __init__(self, device: VirtioDevice, activity: Callable[[], None] = lambda: None) -> None:
        self.device = device
        self.features = 0
        self._activity = activity
        self.counts = [QueueCounts() for _ in range(device.num_queues)]
        self.requests: Counter[str] = Counter()
        self.kicks: Callable[[int], int] = lambda _: 0
        self._last: dict[int, QueueState] = {}

    @property
    def host_features(self) -> int:
        """Features offered."""
        return self.device.host_features

    @property
    def num_queues(self) -> int:
        """How many queues it has."""
        return self.device.num_queues

    @property
    def error(self) -> Exception | None:
        """What the driver did that stopped the device."""
        return self.device.error

    def start(self, features: int) -> None:
        """Begin to work."""
        self.features = features
        self.device.start(features)

    def reset(self) -> None:
        """Forget the driver; what it did stays counted."""
        self.queue_states()
        for index, counts in enumerate(self.counts):
            counts.kicks += self.kicks(index)
        self.device.reset()

    def set_queue(self, index: int, queue: DeviceSide | None) -> None:
        """Take a queue, or give it up."""
        if queue is None:
            self.queue_states()
            self.device.set_queue(index, None)
            return
        observe, pushed = self._observers(index)

        def popped(element: Element) -> None:
            observe(element)
            self._activity()

        self.device.set_queue(index, WatchedSide(queue, self.counts[index], popped, pushed))

    @property
    def unfinished(self) -> set[int]:
        """Queues that are to be served once more."""
        return self.device.unfinished

    def handle_queue(self, index: int, budget: int | None = None) -> list[int]:
        """Serve a queue."""
        return self.device.handle_queue(index, budget)

    def read_config(self, offset: int, length: int) -> bytes:
        """Read the configuration space."""
        return self.device.read_config(offset, length)

    def write_config(self, offset: int, data: bytes) -> None:
        """Write the configuration space."""
        self.device.write_config(offset, data)

    def _observers(self, index: int) -> tuple[Callable[[Element], None], Callable[[int], None]]:
        if isinstance(self.device, blk.BlkDevice):
            return self._blk_request, lambda _: None
        if index % 2:
            return lambda element: self._packet("tx", element.out_size), lambda _: None
        return lambda _: None, lambda length: self._packet("rx", length)

    def _blk_request(self, element: Element) -> None:
        kind = int.from_bytes(element.read(0, 4), "little") & ~blk.VIRTIO_BLK_T_BARRIER
        self.requests[_BLK_NAMES.get(kind, f"type {kind}")] += 1

    def _packet(self, way: str, length: int) -> None:
        self.requests[f"{way}_packets"] += 1
        self.requests[f"{way}_bytes"] += max(0, length - NET_HDR_LEN)

    def queue_name(self, index: int) -> str:
        """What the specification calls a queue, counted from 0."""
        if isinstance(self.device, blk.BlkDevice):
            return f"requestq {index}"
        return f"{'transmitq' if index % 2 else 'receiveq'} {index // 2}"

    def queue_states(self) -> list[QueueState]:
        """Where each queue is; one whose driver is gone shows where it was last."""
        return [self._state(index) for index in range(self.num_queues)]

    def _state(self, index: int) -> QueueState:
        counts = self.counts[index]
        queue = self.device.queues.get(index)
        if queue is None:
            last = self._last.get(index)
            if last is not None:
                return last
            return idle_queue(self.queue_name(index))
        q = queue.q
        # The ring code counts places in a packed virtqueue on without end; QEMU has a slot and a wrap counter.
        lap = q.size if q.packed else 1 << 16
        state = QueueState(
            name=self.queue_name(index),
            size=q.size,
            packed=q.packed,
            last_avail_idx=q.last_avail_idx % lap,
            used_idx=q.used_idx % lap,
            inuse=q.inuse,
            last_avail_wrap_counter=1 ^ q.last_avail_idx // lap & 1,
            used_wrap_counter=1 ^ q.used_idx // lap & 1,
            signalled_used=q.signalled_used % lap if q.signalled_used_valid else None,
            notification=bool(q.notification),
            kicks=counts.kicks + self.kicks(index),
            calls=counts.calls,
            suppressed=counts.suppressed,
            elements=counts.elements,
        )
        self._last[index] = state
        return state
