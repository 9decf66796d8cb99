"""The driver's end of a vhost-user connection: what QEMU does on behalf of its guest.

Source: QEMU docs/interop/vhost-user.rst; ``hw/virtio/vhost-user.c`` and ``vhost.c`` for the order of requests.
"""

from __future__ import annotations

import os
import select
import socket
import time
from pathlib import Path
from types import TracebackType
from typing import Final, Self

from iosim.ring.virtqueue import DriverSide, new_virtqueue
from iosim.vhost_user.channel import Channel, Message, close_fds
from iosim.vhost_user.errors import (
    DisconnectedError,
    FeatureError,
    MessageFdError,
    MessageSizeError,
    NotSharedError,
    RefusedError,
    VhostUserError,
)
from iosim.vhost_user.memory import SharedMemory
from iosim.vhost_user.messages import (
    NEED_REPLY,
    REPLY,
    VHOST_USER_F_PROTOCOL_FEATURES,
    Config,
    ProtocolFeature,
    Request,
    VringAddr,
    VringState,
    pack_memory_table,
    pack_u64,
    request_name,
    unpack_u64,
)
from iosim.vhost_user.rings import FRESH_PACKED
from iosim.virtio.features import (
    VIRTIO_F_IN_ORDER,
    VIRTIO_F_RING_PACKED,
    VIRTIO_F_VERSION_1,
    VIRTIO_RING_F_EVENT_IDX,
    VIRTIO_RING_F_INDIRECT_DESC,
    feature_names,
    has_feature,
)

#: Protocol features this end makes use of.
PROTOCOL_FEATURES: Final = 1 << ProtocolFeature.MQ | 1 << ProtocolFeature.REPLY_ACK | 1 << ProtocolFeature.CONFIG
_EVENT: Final = (1).to_bytes(8, "little")


class FrontendQueue:
    """One queue as its driver has it, with the two notifications.

    Attributes:
        driver: The driver's side of the ring.
        index: Its number on the device.
        kicks: Notifications sent to the device.
        calls: Notifications the device has sent, as far as `wait` or `poll_call` have seen them.
    """

    def __init__(self, index: int, driver: DriverSide) -> None:
        self.index = index
        self.driver = driver
        self.kick_fd = os.eventfd(0, os.EFD_CLOEXEC | os.EFD_NONBLOCK)
        self.call_fd = os.eventfd(0, os.EFD_CLOEXEC | os.EFD_NONBLOCK)
        self.kicks = 0
        self.calls = 0

    def kick(self) -> bool:
        """Notify the device of what was added, if the ring says that it wants to know; tell whether it did."""
        if not self.driver.kick_prepare():
            return False
        self.notify()
        return True

    def notify(self) -> None:
        """Notify the device whatever the ring says (Linux ``virtqueue_notify``)."""
        os.write(self.kick_fd, _EVENT)
        self.kicks += 1

    def poll_call(self) -> int:
        """Return how many notifications came since the last look, without waiting."""
        try:
            count = int.from_bytes(os.read(self.call_fd, 8), "little")
        except BlockingIOError:
            return 0
        self.calls += count
        return count

    def wait(self, timeout: float) -> bool:
        """Wait until the device notifies; False after ``timeout`` seconds without."""
        ready, _, _ = select.select([self.call_fd], [], [], timeout)
        if ready:
            self.poll_call()
            self.driver.interrupt()
        return bool(ready)

    def close(self) -> None:
        """Close the two notifications."""
        close_fds([self.kick_fd, self.call_fd])


class Frontend:
    """A driver's connection to a vhost-user back end.

    In this order: `negotiate`, `share`, `add_queue` for each queue, `close`.

    Args:
        sock: A connected stream socket.
        timeout: Seconds the back end may take for an answer.

    Attributes:
        offered: Feature bits the back end offers, without the protocol's own.
        features: Feature bits taken.
        protocol_offered: Protocol feature bits it offers.
        protocol_features: Those taken.
        queues: The queues by number.
        mem: The memory shared.

    Raises:
        VhostUserError: Here and in every method: what came back is not as the protocol wants it, or nothing did.
    """

    def __init__(self, sock: socket.socket, timeout: float = 5.0) -> None:
        self.channel = Channel(sock, timeout)
        self.queues: dict[int, FrontendQueue] = {}
        self.mem: SharedMemory | None = None
        self.features = 0
        self.protocol_features = 0
        self.protocol_offered = 0
        try:
            self._offered = self._ask_u64(Request.GET_FEATURES)
            self._tell(Request.SET_OWNER)
            if self._offered >> VHOST_USER_F_PROTOCOL_FEATURES & 1:
                self.protocol_offered = self._ask_u64(Request.GET_PROTOCOL_FEATURES)
                self.protocol_features = self.protocol_offered & PROTOCOL_FEATURES
                # Not acknowledged: the back end learns only from this message whether it may acknowledge.
                self._tell(Request.SET_PROTOCOL_FEATURES, pack_u64(self.protocol_features), acknowledge=False)
        except BaseException:
            self.channel.close()
            raise

    @classmethod
    def connect(cls, path: str | Path, timeout: float = 5.0) -> Self:
        """Connect to the back end that listens on ``path``; one that is just being started is waited for.

        Raises:
            DisconnectedError: Nobody listens there within ``timeout`` seconds.
        """
        until = time.monotonic() + timeout
        while True:
            sock = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
            try:
                sock.connect(os.fspath(path))
                return cls(sock, timeout)
            except OSError as error:
                sock.close()
                if time.monotonic() > until:
                    raise DisconnectedError(f"nobody listens there ({error.strerror})", str(path)) from None
            time.sleep(0.01)

    @property
    def offered(self) -> int:
        """Virtio features the back end offers (the bit for protocol features is the transport's own)."""
        return self._offered & ~(1 << VHOST_USER_F_PROTOCOL_FEATURES)

    def has_protocol(self, feature: ProtocolFeature) -> bool:
        """Tell whether a protocol feature was agreed upon."""
        return bool(self.protocol_features >> feature & 1)

    def negotiate(self, wanted: int) -> int:
        """Take features; return them.

        Args:
            wanted: Feature bits. VIRTIO_F_VERSION_1 is always among them.

        Raises:
            FeatureError: One of them is not offered.
        """
        wanted |= 1 << VIRTIO_F_VERSION_1
        missing = wanted & ~self.offered
        if missing:
            raise FeatureError(f"the back end does not offer {', '.join(feature_names(missing))}")
        self.features = wanted
        transport = self._offered & 1 << VHOST_USER_F_PROTOCOL_FEATURES
        self._tell(Request.SET_FEATURES, pack_u64(wanted | transport))
        return wanted

    def queue_num(self) -> int:
        """Return how many queues the device has, 1 where it does not say (no MQ)."""
        return self._ask_u64(Request.GET_QUEUE_NUM) if self.has_protocol(ProtocolFeature.MQ) else 1

    def get_config(self, offset: int, size: int) -> bytes:
        """Return bytes of the device's configuration space.

        Raises:
            FeatureError: The back end has no CONFIG.
        """
        if not self.has_protocol(ProtocolFeature.CONFIG):
            raise FeatureError("the back end shows no configuration space (it lacks the protocol feature CONFIG)")
        payload = self._ask(Request.GET_CONFIG, Config(offset, 0, bytes(size)).pack())
        if not payload:
            raise RefusedError(f"the back end has no configuration bytes {offset} to {offset + size}")
        return Config.unpack(payload).data

    def share(self, mem: SharedMemory) -> None:
        """Share guest memory with the device (SET_MEM_TABLE)."""
        self._tell(Request.SET_MEM_TABLE, pack_memory_table(mem.table), fds=mem.fds)
        self.mem = mem

    def add_queue(self, index: int, size: int) -> FrontendQueue:
        """Make a queue in shared memory, and start it.

        Args:
            index: Its number on the device.
            size: Descriptors.

        Raises:
            NotSharedError: `share` comes first.
            RingError: The size is none that a queue can have, or memory is full.
        """
        if self.mem is None:
            raise NotSharedError("share guest memory before adding queues to it")
        packed = has_feature(self.features, VIRTIO_F_RING_PACKED)
        driver, _ = new_virtqueue(
            self.mem,
            size,
            has_feature(self.features, VIRTIO_RING_F_EVENT_IDX),
            indirect=has_feature(self.features, VIRTIO_RING_F_INDIRECT_DESC),
            in_order=has_feature(self.features, VIRTIO_F_IN_ORDER),
            packed=packed,
        )
        queue = FrontendQueue(index, driver)
        self.queues[index] = queue
        q = driver.q
        user = self.mem.to_user
        self._tell(Request.SET_VRING_NUM, VringState(index, size).pack())
        self._tell(Request.SET_VRING_BASE, VringState(index, FRESH_PACKED if packed else 0).pack())
        self._tell(Request.SET_VRING_ADDR, VringAddr(index, 0, user(q.desc), user(q.used), user(q.avail), 0).pack())
        self._tell(Request.SET_VRING_KICK, pack_u64(index), fds=[queue.kick_fd])
        self._tell(Request.SET_VRING_CALL, pack_u64(index), fds=[queue.call_fd])
        if self._offered >> VHOST_USER_F_PROTOCOL_FEATURES & 1:
            self._tell(Request.SET_VRING_ENABLE, VringState(index, 1).pack())
        return queue

    def stop_queue(self, index: int) -> int:
        """Stop a queue (GET_VRING_BASE); return the index at which the device stands."""
        return VringState.unpack(self._ask(Request.GET_VRING_BASE, VringState(index, 0).pack())).num

    def close(self) -> None:
        """Stop all queues if the device still answers, and hang up."""
        try:
            for index in sorted(self.queues):
                self.stop_queue(index)
        except VhostUserError:
            pass  # It is gone, or broken: nothing is left to be stopped.
        finally:
            for queue in self.queues.values():
                queue.close()
            self.queues = {}
            self.channel.close()

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()

    def _ask(self, request: Request, payload: bytes = b"") -> bytes:
        """Send a request that has an answer of its own; return that."""
        self.channel.send(request, payload)
        return self._answer(request).payload

    def _ask_u64(self, request: Request) -> int:
        return unpack_u64(self._ask(request))

    def _tell(
        self, request: Request, payload: bytes = b"", fds: list[int] | None = None, acknowledge: bool = True
    ) -> None:
        """Send a request that has no answer of its own; with REPLY_ACK, wait until it is done."""
        ack = acknowledge and self.has_protocol(ProtocolFeature.REPLY_ACK)
        self.channel.send(request, payload, NEED_REPLY if ack else 0, fds or [])
        if ack:
            result = unpack_u64(self._answer(request).payload)
            if result:
                raise RefusedError(f"the back end refused {request.name} ({result})")

    def _answer(self, request: Request) -> Message:
        message = self.channel.receive()
        if message.fds:
            close_fds(message.fds)
            raise MessageFdError(f"the answer to {request.name} brought file descriptors")
        if message.header.request != request or not message.header.flags & REPLY:
            raise MessageSizeError(
                f"the answer to {request.name} is {request_name(message.header.request)}"
                f" with flags {message.header.flags:#x}"
            )
        return message
