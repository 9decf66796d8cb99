"""Small devices, and a back end that runs in a thread."""

from __future__ import annotations

import socket
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

from iosim.ring.errors import RingError
from iosim.ring.virtqueue import DeviceSide, Element
from iosim.vhost_user.backend import Backend, Device
from iosim.virtio.features import (
    VIRTIO_F_IN_ORDER,
    VIRTIO_F_RING_PACKED,
    VIRTIO_F_VERSION_1,
    VIRTIO_RING_F_EVENT_IDX,
    VIRTIO_RING_F_INDIRECT_DESC,
)

RING_FEATURES = sum(
    1 << bit
    for bit in (
        VIRTIO_F_VERSION_1,
        VIRTIO_RING_F_EVENT_IDX,
        VIRTIO_RING_F_INDIRECT_DESC,
        VIRTIO_F_RING_PACKED,
        VIRTIO_F_IN_ORDER,
    )
)


class QueueDevice:
    """A device of n queues that answers each element by a function; the loop is that of `iosim.ring.virtqueue`."""

    def __init__(self, answer: Callable[[Element], int], num_queues: int = 1, features: int = RING_FEATURES) -> None:
        self.host_features = features
        self.num_queues = num_queues
        self.error: Exception | None = None
        self.answer = answer
        self.queues: dict[int, DeviceSide] = {}
        self.space = bytearray(range(64))
        self.started: list[int] = []
        self.served = 0

    def start(self, features: int) -> None:
        self.started.append(features)

    def reset(self) -> None:
        self.queues.clear()
        self.error = None

    def set_queue(self, index: int, queue: DeviceSide | None) -> None:
        if queue is None:
            self.queues.pop(index)
        else:
            self.queues[index] = queue

    unfinished: set[int] = set()  # noqa: RUF012 - it never has any

    def handle_queue(self, index: int, budget: int | None = None) -> list[int]:
        queue = self.queues[index]
        try:
            while True:
                queue.set_notification(False)
                while (element := queue.pop()) is not None:
                    queue.push(element, self.answer(element))
                    self.served += 1
                queue.set_notification(True)
                if queue.empty():
                    break
        except RingError as error:
            self.error = error
            return []
        return [index] if queue.should_notify() else []

    def read_config(self, offset: int, length: int) -> bytes:
        return bytes(self.space[offset : offset + length])

    def write_config(self, offset: int, data: bytes) -> None:
        self.space[offset : offset + len(data)] = data


def upper(element: Element) -> int:
    """Answer with what was read, in capitals."""
    return element.write(element.read().upper())


class Reports(list[str]):
    """What a back end reported; details apart."""

    def __init__(self) -> None:
        super().__init__()
        self.details: list[str] = []

    def __call__(self, line: str, detail: bool = False) -> None:
        (self.details if detail else self).append(line)


@contextmanager
def serving(
    device: Device, where: Path | socket.socket, timeout: float = 2.0
) -> Iterator[tuple[Backend, Reports]]:
    """Run a back end in a thread; whatever it raises, the test gets."""
    reports = Reports()
    failure: list[BaseException] = []
    backend = Backend(device, where, timeout, reports)

    def run() -> None:
        try:
            backend.run()
        except BaseException as error:
            failure.append(error)

    thread = threading.Thread(target=run, daemon=True)
    thread.start()
    try:
        yield backend, reports
    finally:
        backend.stop()
        thread.join(10)
        alive = thread.is_alive()
        if not alive:
            backend.close()
        if failure:
            raise failure[0]
        assert not alive, "the back end does not stop"
