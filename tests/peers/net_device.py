"""A network device whose wire is two lists: what the driver sent, and what it is to receive."""

from __future__ import annotations

from collections import deque

from iosim.ring.errors import RingError
from iosim.ring.virtqueue import DeviceSide
from iosim.virtio.features import (
    VIRTIO_F_VERSION_1,
    VIRTIO_NET_F_MRG_RXBUF,
    VIRTIO_RING_F_EVENT_IDX,
)
from iosim.virtio.net import NET_HDR_LEN, RECEIVEQ, TRANSMITQ, NetHdr

FEATURES = 1 << VIRTIO_F_VERSION_1 | 1 << VIRTIO_RING_F_EVENT_IDX | 1 << VIRTIO_NET_F_MRG_RXBUF


class WireDevice:
    """Puts what the driver sends into `sent`, and `to_receive` into the driver's buffers."""

    def __init__(self, features: int) -> None:
        self.host_features = features
        self.num_queues = 2
        self.error: Exception | None = None
        self.features = 0
        self.queues: dict[int, DeviceSide] = {}
        self.sent: deque[bytes] = deque()
        self.to_receive: deque[bytes] = deque()
        self.merged = 0

    def start(self, features: int) -> None:
        self.features = features

    def reset(self) -> None:
        self.queues.clear()
        self.error = None

    def set_queue(self, index: int, queue: DeviceSide | None) -> None:
        if queue is None:
            self.queues.pop(index)
        else:
            self.queues[index] = queue

    def read_config(self, offset: int, length: int) -> bytes:
        return bytes(length)

    def write_config(self, offset: int, data: bytes) -> None:
        pass

    def handle_queue(self, index: int) -> list[int]:
        queue = self.queues[index]
        try:
            work = self._receive if index == RECEIVEQ else self._transmit
            used = work(queue)
        except RingError as error:
            self.error = error
            return []
        return [index] if used and queue.should_notify() else []

    def _transmit(self, queue: DeviceSide) -> bool:
        used = False
        while True:
            queue.set_notification(False)
            while (element := queue.pop()) is not None:
                data = element.read()
                assert not any(data[:NET_HDR_LEN]), "the driver was offered no offload"
                self.sent.append(data[NET_HDR_LEN:])
                queue.push(element, 0)
                used = True
            queue.set_notification(True)
            if queue.empty():
                return used

    def _receive(self, queue: DeviceSide) -> bool:
        """Fill the driver's buffers; a packet takes several where it has to (5.1.6.4)."""
        used = False
        elements = []
        room = 0
        while self.to_receive:
            packet = self.to_receive[0]
            need = NET_HDR_LEN + len(packet)
            while room < need and (element := queue.pop()) is not None:
                elements.append(element)
                room += element.in_size
            if room < need:
                break
            data = NetHdr(num_buffers=len(elements)).pack() + packet
            self.merged += len(elements) > 1
            for i, element in enumerate(elements):
                done = element.write(data)
                data = data[done:]
                queue.fill(element, done, i)
            queue.flush(len(elements))
            self.to_receive.popleft()
            elements, room = [], 0
            used = True
        assert not elements, "the driver gave too few buffers"
        return used


def transmit_index() -> int:
    return TRANSMITQ
