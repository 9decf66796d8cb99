"""The device's end of vhost-user: serves one driver after the other on a socket.

`Backend` holds the socket and the loop, `Session` what one driver has said. A ring runs once the driver has
enabled it and given all of it: size, place, addresses, memory, a notification to listen to. In which order
these come is left open by the protocol, and QEMU, DPDK and Linux's virtio_uml each have their own. Whenever a
ring begins to run it is looked at, notified or not: the driver's notification may have come before.

Source: QEMU docs/interop/vhost-user.rst ("Ring states", "Message types"); libvhost-user for what is left open.
"""

from __future__ import annotations

import os
import select
import selectors
import socket
import sys
from collections.abc import Callable
from pathlib import Path
from types import TracebackType
from typing import Final, Protocol, Self

from iosim.errors import IosimError
from iosim.ring.virtqueue import DeviceSide
from iosim.vhost_user.channel import Channel, Message, close_fds
from iosim.vhost_user.errors import (
    DisconnectedError,
    FeatureError,
    MessageFdError,
    QueueIndexError,
    RegionError,
    VhostUserError,
)
from iosim.vhost_user.memory import SharedMemory
from iosim.vhost_user.messages import (
    MAX_REGIONS,
    NEED_REPLY,
    REPLY,
    VHOST_USER_F_PROTOCOL_FEATURES,
    VRING_INDEX_MASK,
    VRING_NOFD,
    Config,
    MemoryRegion,
    ProtocolFeature,
    Request,
    VringAddr,
    VringState,
    check_request,
    pack_u64,
    unpack_memory_table,
    unpack_single_region,
    unpack_u64,
)
from iosim.vhost_user.rings import device_side, ring_base

#: Protocol features this end offers. CONFIG: QEMU's vhost-user-blk does not start without.
PROTOCOL_FEATURES: Final = (
    1 << ProtocolFeature.MQ
    | 1 << ProtocolFeature.REPLY_ACK
    | 1 << ProtocolFeature.BACKEND_REQ
    | 1 << ProtocolFeature.CONFIG
    | 1 << ProtocolFeature.CONFIGURE_MEM_SLOTS
)
#: What a back end may ask of a front end: look at the configuration space again.
BACKEND_CONFIG_CHANGE_MSG: Final = 2
_EVENT: Final = (1).to_bytes(8, "little")
#: Elements of one queue after which the others, and the driver's messages, get their turn.
BUDGET: Final = 256


class Device(Protocol):
    """What a back end needs of a device; `iosim.virtio.device.VirtioDevice` is one."""

    @property
    def host_features(self) -> int:
        """Virtio features it offers."""

    @property
    def num_queues(self) -> int:
        """How many queues it has."""

    @property
    def error(self) -> Exception | None:
        """What the driver did that stopped the device."""

    def start(self, features: int) -> None:
        """Begin to work with these features; queues that were set stay."""

    def reset(self) -> None:
        """Forget the driver and its queues."""

    def set_queue(self, index: int, queue: DeviceSide | None) -> None:
        """Take a queue that runs, or give one up with None."""

    @property
    def unfinished(self) -> set[int]:
        """Queues that `handle_queue` left before they were empty, its budget being spent."""

    def handle_queue(self, index: int, budget: int | None = None) -> list[int]:
        """Do what is in a queue; return the queues whose driver is to be interrupted, as the rings say."""

    def read_config(self, offset: int, length: int) -> bytes:
        """Return bytes of the configuration space."""

    def write_config(self, offset: int, data: bytes) -> None:
        """Take bytes the driver writes into the configuration space."""


class _Vring:
    """What a driver has said of one queue."""

    def __init__(self) -> None:
        self.size = 0
        self.base = 0
        self.addr: VringAddr | None = None
        self.enabled = False
        self.kick_fd: int | None = None
        self.call_fd: int | None = None
        self.err_fd: int | None = None
        self.queue: DeviceSide | None = None
        self.kicks = 0
        self.calls = 0


class Session:
    """One driver's connection. Made by `Backend`.

    Attributes:
        features: Virtio features the driver took.
        vrings: What it said of each queue.
        mem: The memory it shares, once it does.
    """

    def __init__(self, backend: Backend, sock: socket.socket) -> None:
        self.backend = backend
        self.device = backend.device
        self.channel = Channel(sock, backend.timeout)
        self.features = 0
        self.protocol_features = 0
        self.mem: SharedMemory | None = None
        self.vrings = [_Vring() for _ in range(backend.device.num_queues)]
        self.table: list[MemoryRegion] = []
        self.table_fds: list[int] = []
        self.started = False
        self.broken = False
        self.back_channel: Channel | None = None
        self._answers: dict[Request, Callable[[Message], bytes]] = {
            Request.GET_FEATURES: lambda _: pack_u64(self.offered),
            Request.GET_PROTOCOL_FEATURES: lambda _: pack_u64(PROTOCOL_FEATURES),
            Request.GET_QUEUE_NUM: lambda _: pack_u64(self.device.num_queues),
            Request.GET_MAX_MEM_SLOTS: lambda _: pack_u64(MAX_REGIONS),
            Request.GET_VRING_BASE: self._get_vring_base,
            Request.GET_CONFIG: self._get_config,
        }
        self._orders: dict[Request, Callable[[Message], None]] = {
            Request.SET_FEATURES: self._set_features,
            Request.SET_PROTOCOL_FEATURES: self._set_protocol_features,
            Request.SET_OWNER: lambda _: None,
            # Deprecated; libvhost-user does nothing either.
            Request.RESET_OWNER: lambda _: None,
            Request.SET_MEM_TABLE: self._set_mem_table,
            Request.ADD_MEM_REG: self._add_mem_reg,
            Request.REM_MEM_REG: self._rem_mem_reg,
            Request.SET_VRING_NUM: self._set_vring_num,
            Request.SET_VRING_ADDR: self._set_vring_addr,
            Request.SET_VRING_BASE: self._set_vring_base,
            Request.SET_VRING_KICK: self._set_vring_kick,
            Request.SET_VRING_CALL: self._set_vring_call,
            Request.SET_VRING_ERR: self._set_vring_err,
            Request.SET_VRING_ENABLE: self._set_vring_enable,
            Request.SET_CONFIG: self._set_config,
            Request.SET_BACKEND_REQ_FD: self._set_backend_req_fd,
        }

    @property
    def offered(self) -> int:
        """Features offered, the transport's own with them."""
        return self.device.host_features | 1 << VHOST_USER_F_PROTOCOL_FEATURES

    # Messages.

    def handle_message(self) -> None:
        """Take one message and do what it says.

        Raises:
            VhostUserError: The connection is of no use any more.
        """
        message = self.channel.receive()
        try:
            request = check_request(message.header, len(message.fds))
            answer = self._answers.get(request)
            if answer is not None:
                self.channel.send(request, answer(message), REPLY)
                return
            result = 0
            try:
                order = self._orders.get(request)
                if order is None:
                    raise VhostUserError(f"{request.name} is not supported")
                order(message)
            except IosimError as error:
                if not self._wants_reply(message):
                    raise
                self.backend.report(f"{request.name} refused: {error}")
                result = 1
            if self._wants_reply(message):
                self.channel.send(request, pack_u64(result), REPLY)
        finally:
            # Whoever keeps a descriptor takes it out of the message.
            close_fds(message.fds)

    def _wants_reply(self, message: Message) -> bool:
        return bool(message.header.flags & NEED_REPLY) and self.has_protocol(ProtocolFeature.REPLY_ACK)

    def has_protocol(self, feature: ProtocolFeature) -> bool:
        """Tell whether the driver took a protocol feature."""
        return bool(self.protocol_features >> feature & 1)

    def _vring(self, index: int) -> _Vring:
        if index >= len(self.vrings):
            raise QueueIndexError(f"queue {index}; the device has {len(self.vrings)}")
        return self.vrings[index]

    def _set_features(self, message: Message) -> None:
        features = unpack_u64(message.payload)
        extra = features & ~self.offered
        if extra:
            raise FeatureError(f"the driver took features {extra:#x} that were not offered")
        self.features = features & ~(1 << VHOST_USER_F_PROTOCOL_FEATURES)
        if not features >> VHOST_USER_F_PROTOCOL_FEATURES & 1:
            # "Ring states": without protocol features rings come up enabled.
            for vring in self.vrings:
                vring.enabled = True

    def _set_protocol_features(self, message: Message) -> None:
        features = unpack_u64(message.payload)
        extra = features & ~PROTOCOL_FEATURES
        if extra:
            raise FeatureError(f"the driver took protocol features {extra:#x} that were not offered")
        self.protocol_features = features

    def _get_config(self, message: Message) -> bytes:
        asked = Config.unpack(message.payload)
        return Config(asked.offset, asked.flags, self.device.read_config(asked.offset, len(asked.data))).pack()

    def _set_config(self, message: Message) -> None:
        config = Config.unpack(message.payload)
        self.device.write_config(config.offset, config.data)

    def _set_backend_req_fd(self, message: Message) -> None:
        try:
            sock = socket.socket(fileno=message.fds[0])
        except OSError as error:
            raise MessageFdError(f"SET_BACKEND_REQ_FD brings no socket ({error.strerror})") from None
        message.fds.clear()
        if self.back_channel is not None:
            self.back_channel.close()
        self.back_channel = Channel(sock, self.backend.timeout)

    # Memory.

    def _set_mem_table(self, message: Message) -> None:
        table = unpack_memory_table(message.payload)
        if len(table) != len(message.fds):
            raise MessageFdError(f"SET_MEM_TABLE has {len(table)} regions and {len(message.fds)} file descriptors")
        self._map(table, list(message.fds), message)

    def _add_mem_reg(self, message: Message) -> None:
        region = unpack_single_region(message.payload)
        if len(self.table) >= MAX_REGIONS:
            raise RegionError(f"more than {MAX_REGIONS} memory regions")
        self._map([*self.table, region], [*self.table_fds, message.fds[0]], message)

    def _rem_mem_reg(self, message: Message) -> None:
        region = unpack_single_region(message.payload)
        for i, known in enumerate(self.table):
            # The offset in the file is no part of what identifies a region (VHOST_USER_REM_MEM_REG).
            if known[:3] == region[:3]:
                self._map(self.table[:i] + self.table[i + 1 :], self.table_fds[:i] + self.table_fds[i + 1 :], message)
                return
        raise RegionError(f"no memory region at {region.guest_addr:#x} to take away")

    def _map(self, table: list[MemoryRegion], fds: list[int], message: Message) -> None:
        """Map memory anew and keep ``fds``; rings that run go on (a driver may add memory at any time)."""
        mem = SharedMemory.map(table, fds) if table else None
        old = self.mem
        close_fds([fd for fd in self.table_fds if fd not in fds])
        self.table, self.table_fds, self.mem = table, fds, mem
        # Now, not when all is done: a ring that cannot go on raises, and the descriptors are kept all the same.
        message.fds[:] = [fd for fd in message.fds if fd not in fds]
        for index in range(len(self.vrings)):
            self._pause(index)
        if old is not None:
            old.close()
        self._look_at_all()

    # Queues.

    def _set_vring_num(self, message: Message) -> None:
        state = VringState.unpack(message.payload)
        self._vring(state.queue).size = state.num
        self._run_if_complete(state.queue)

    def _set_vring_base(self, message: Message) -> None:
        state = VringState.unpack(message.payload)
        vring = self._vring(state.queue)
        self._pause(state.queue)
        vring.base = state.num
        self._run_if_complete(state.queue)

    def _set_vring_addr(self, message: Message) -> None:
        addr = VringAddr.unpack(message.payload)
        vring = self._vring(addr.queue)
        vring.addr = addr
        # Sent again for a ring that runs (QEMU does when it starts to log), it goes on at its new place.
        self._pause(addr.queue)
        self._run_if_complete(addr.queue)

    def _take_fd(self, message: Message, request: str) -> tuple[int, int | None]:
        number = unpack_u64(message.payload)
        index = number & VRING_INDEX_MASK
        if index >= len(self.vrings):
            raise QueueIndexError(f"queue {index}; the device has {len(self.vrings)}")
        if bool(number & VRING_NOFD) == bool(message.fds):
            raise MessageFdError(f"{request} for queue {index}: it says one thing of its descriptor and does another")
        if not message.fds:
            return index, None
        return index, message.fds.pop()

    def _set_vring_kick(self, message: Message) -> None:
        index, fd = self._take_fd(message, "SET_VRING_KICK")
        if fd is None:
            raise MessageFdError(f"queue {index} is to be polled; this back end needs a descriptor for notifications")
        vring = self.vrings[index]
        self._forget_kick(vring)
        # Somebody else may read it first: this end must not wait then. (The flag is the driver's too, which only
        # writes; the other descriptors, which it reads, are left as they are.)
        try:
            os.set_blocking(fd, False)
            self.backend.watch(fd, lambda: self._kicked(index))
        except (OSError, VhostUserError) as error:
            os.close(fd)
            raise MessageFdError(f"queue {index}: its notification cannot be waited for ({error})") from None
        vring.kick_fd = fd
        self._run_if_complete(index)

    def _forget_kick(self, vring: _Vring) -> None:
        if vring.kick_fd is not None:
            self.backend.unwatch(vring.kick_fd)
            os.close(vring.kick_fd)
            vring.kick_fd = None

    def _set_vring_call(self, message: Message) -> None:
        index, fd = self._take_fd(message, "SET_VRING_CALL")
        vring = self.vrings[index]
        if vring.call_fd is not None:
            os.close(vring.call_fd)
        vring.call_fd = fd
        # What was signalled before went to another descriptor, or to none: tell this one, so nothing is missed
        # (libvhost-user `vu_set_vring_call_exec`). A driver takes a notification without reason as none.
        self._signal(fd)

    def _set_vring_err(self, message: Message) -> None:
        index, fd = self._take_fd(message, "SET_VRING_ERR")
        vring = self.vrings[index]
        if vring.err_fd is not None:
            os.close(vring.err_fd)
        vring.err_fd = fd

    def _set_vring_enable(self, message: Message) -> None:
        state = VringState.unpack(message.payload)
        vring = self._vring(state.queue)
        vring.enabled = bool(state.num)
        if not vring.enabled:
            self._stop(state.queue)
        self._run_if_complete(state.queue)

    def _get_vring_base(self, message: Message) -> bytes:
        state = VringState.unpack(message.payload)
        vring = self._vring(state.queue)
        self._stop(state.queue)
        # A stopped ring comes back with a new descriptor; until then it is not to be started ("Ring states").
        self._forget_kick(vring)
        return VringState(state.queue, vring.base).pack()

    def _pause(self, index: int) -> None:
        """Take a queue from the device, and note where it stands."""
        vring = self.vrings[index]
        if vring.queue is not None:
            vring.base = ring_base(vring.queue)
            vring.queue = None
            self.device.set_queue(index, None)

    def _stop(self, index: int) -> None:
        self._pause(index)
        if all(other.queue is None for other in self.vrings):
            # All rings stopped is all there is of a reset here; after it a broken device works again (2.1.2).
            self.started = False
            self.broken = False

    def _run_if_complete(self, index: int) -> None:
        vring = self.vrings[index]
        addr = vring.addr
        if vring.queue is not None or not vring.enabled or vring.kick_fd is None or not vring.size or addr is None:
            return
        if self.mem is None or self.broken:
            return
        guest = self.mem.to_guest
        desc, avail, used = guest(addr.desc), guest(addr.avail), guest(addr.used)
        queue = device_side(self.mem, vring.size, desc, avail, used, self.features, vring.base)
        if not self.started:
            self.device.start(self.features)
            self.started = True
        vring.queue = queue
        self.device.set_queue(index, queue)
        self.backend.report(f"queue {index} runs: {vring.size} descriptors from {vring.base & 0xFFFF}", detail=True)
        self._serve(index)

    def _look_at_all(self) -> None:
        for index in range(len(self.vrings)):
            self._run_if_complete(index)

    # Notifications.

    def _kicked(self, index: int) -> None:
        vring = self.vrings[index]
        assert vring.kick_fd is not None
        try:
            if not os.read(vring.kick_fd, 8):
                self._forget_kick(vring)
                return
        except BlockingIOError:
            pass  # Somebody else has read it; a look does no harm.
        except OSError as error:
            self._forget_kick(vring)
            self.backend.report(f"queue {index}: its notification cannot be read ({error.strerror})")
            return
        vring.kicks += 1
        self._serve(index)

    def _serve(self, index: int) -> None:
        if self.vrings[index].queue is None or self.broken:
            return
        try:
            self.interrupt(self.device.handle_queue(index, BUDGET))
            error: Exception | None = self.device.error
        except IosimError as raised:
            error = raised
        if error is not None:
            self._break(index, error)

    def _break(self, index: int, error: Exception) -> None:
        """Serve no queue any more until the driver has stopped all; say why, here and to the driver."""
        self.broken = True
        self.backend.report(f"queue {index}: {error}; the device is broken until the driver resets it")
        self._signal(self.vrings[index].err_fd)

    def go_on(self) -> None:
        """Serve the queues whose budget was spent once more."""
        for index in sorted(self.device.unfinished):
            self._serve(index)

    def interrupt(self, indexes: list[int]) -> None:
        """Send the used buffer notifications of these queues."""
        for index in indexes:
            vring = self.vrings[index]
            vring.calls += 1
            self._signal(vring.call_fd)

    def _signal(self, fd: int | None) -> None:
        if fd is None:
            return
        room = select.poll()
        room.register(fd, select.POLLOUT)
        try:
            # Where there is no room, so many notifications wait already that one more says nothing.
            # Not eventfd_write: Linux's virtio_uml gives one end of a pipe.
            if room.poll(0):
                os.write(fd, _EVENT)
        except OSError as error:
            self.backend.report(f"a notification could not be sent ({error.strerror})")

    def config_changed(self) -> None:
        """Tell the driver to read the configuration space again, if it listens."""
        if self.back_channel is None:
            return
        try:
            self.back_channel.send(BACKEND_CONFIG_CHANGE_MSG)
        except VhostUserError as error:
            self.backend.report(f"the change of configuration could not be told: {error}")

    def close(self) -> None:
        """Give up everything that was the driver's."""
        self.device.reset()
        for vring in self.vrings:
            vring.queue = None
            self._forget_kick(vring)
            close_fds([fd for fd in (vring.call_fd, vring.err_fd) if fd is not None])
        close_fds(self.table_fds)
        self.table_fds = []
        if self.mem is not None:
            self.mem.close()
            self.mem = None
        if self.back_channel is not None:
            self.back_channel.close()
        self.channel.close()


def print_report(line: str, detail: bool = False) -> None:
    """Print a line to stderr, leaving out details."""
    if not detail:
        print(f"iosim: {line}", file=sys.stderr, flush=True)


def _listen(path: str) -> socket.socket:
    listener = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
    try:
        listener.bind(path)
        listener.listen(8)
    except OSError as error:
        listener.close()
        raise VhostUserError(f"cannot listen there: {error.strerror or error}", path) from None
    return listener


class Backend:
    """A vhost-user back end on a socket: serves one driver at a time, for ever.

    Args:
        device: The device.
        path: Where to listen (the file is made, and removed by `close`), or a socket that is connected already.
        timeout: Seconds a driver may pause within a message, or take to read an answer.
        report: Gets a line for whatever happens: called with the line and ``detail``.

    Attributes:
        session: The driver connected now.
        sessions: How many have connected.

    Raises:
        VhostUserError: It cannot listen there.
    """

    def __init__(
        self,
        device: Device,
        path: str | Path | socket.socket,
        timeout: float = 5.0,
        report: Callable[..., None] = print_report,
    ) -> None:
        self.device = device
        self.timeout = timeout
        self.report = report
        self.session: Session | None = None
        self.sessions = 0
        self._path = None if isinstance(path, socket.socket) else os.fspath(path)
        self._listener = None if self._path is None else _listen(self._path)
        self._selector = selectors.DefaultSelector()
        self._stop_fd = os.eventfd(0, os.EFD_CLOEXEC | os.EFD_NONBLOCK)
        self._stopping = False
        self.watch(self._stop_fd, self._stopped)
        if self._listener is not None:
            self.watch(self._listener.fileno(), self._accept)
        if isinstance(path, socket.socket):
            self._connected(path)

    # The loop.

    def watch(self, fd: int, ready: Callable[[], object]) -> None:
        """Call ``ready`` whenever ``fd`` can be read: a kick, or a device's own source (a tap, a timer).

        Raises:
            MessageFdError: It is nothing one can wait for (a plain file).
        """
        try:
            self._selector.register(fd, selectors.EVENT_READ, ready)
        except (OSError, ValueError, KeyError) as error:
            raise MessageFdError(f"descriptor {fd} cannot be waited for: {error}") from None

    def unwatch(self, fd: int) -> None:
        """Wait for ``fd`` no longer."""
        self._selector.unregister(fd)

    def poll(self, timeout: float | None = None) -> bool:
        """Wait for something to happen and do it; False if nothing did within ``timeout`` seconds."""
        unfinished = self.session is not None and bool(self.session.device.unfinished)
        events = self._selector.select(0 if unfinished else timeout)
        for key, _ in events:
            # What was done for one may have ended another's connection.
            if self._selector.get_map().get(key.fd) is key:
                key.data()
        if self.session is not None and self.session.device.unfinished:
            self.session.go_on()
        return bool(events) or unfinished

    def interrupt(self, indexes: list[int]) -> None:
        """Send the used buffer notifications of these queues, if a driver is there.

        For what a device does by itself, as when a packet comes in; after a kick the back end does it.
        """
        if self.session is not None:
            self.session.interrupt(indexes)

    def run(self) -> None:
        """Serve until `stop` is called, from a signal handler or another thread."""
        while not self._stopping:
            self.poll()

    def stop(self) -> None:
        """Let `run` return."""
        os.write(self._stop_fd, _EVENT)

    def _stopped(self) -> None:
        os.read(self._stop_fd, 8)
        self._stopping = True

    # Drivers come and go.

    def _accept(self) -> None:
        assert self._listener is not None
        try:
            sock, _ = self._listener.accept()
        except OSError:
            return  # It changed its mind.
        self._connected(sock)

    def _connected(self, sock: socket.socket) -> None:
        if self._listener is not None:
            # The next one waits in the backlog until this one is gone.
            self.unwatch(self._listener.fileno())
        self.sessions += 1
        self.session = Session(self, sock)
        self.report("a driver connected", detail=True)
        self.watch(sock.fileno(), self._message)

    def _message(self) -> None:
        session = self.session
        assert session is not None
        try:
            session.handle_message()
        except DisconnectedError as error:
            self.report(str(error), detail=True)
            self._disconnect()
        except IosimError as error:
            self.report(f"{error}; hanging up")
            self._disconnect()

    def _disconnect(self) -> None:
        if self.session is None:
            return
        self.unwatch(self.session.channel.sock.fileno())
        self.session.close()
        self.session = None
        if self._listener is not None:
            self.watch(self._listener.fileno(), self._accept)
        else:
            self._stopping = True

    def close(self) -> None:
        """Hang up and listen no longer."""
        self._disconnect()
        if self._listener is not None:
            self.unwatch(self._listener.fileno())
            self._listener.close()
            self._listener = None
        if self._path is not None:
            Path(self._path).unlink(missing_ok=True)
            self._path = None
        self._selector.close()
        os.close(self._stop_fd)

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()
