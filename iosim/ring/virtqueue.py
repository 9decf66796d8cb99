"""A virtqueue's two sides as objects, for everyone who is not on a simulator's hot path.

`DriverSide` and `DeviceSide` are thin: the ring functions do the work and return numbers; here numbers become
elements, bytes and named exceptions. Functional devices, live peers, the inspector and notebooks use these.

A complete driver and device loop, notifications included:
    >>> from iosim.ring.memory import GuestMemory, allocate, read_bytes, write_bytes
    >>> mem = GuestMemory(1 << 16)
    >>> driver, device = new_virtqueue(mem, 8, event_idx=True)
    >>> out, back = allocate(mem, 5, 1), allocate(mem, 16, 1)
    >>> write_bytes(mem, out, b"hello")
    >>> driver.add([Buffer(out, 5)], [Buffer(back, 16)], data="request 1")
    >>> if driver.kick_prepare():                      # ask the ring whether the device wants a notification
    ...     print("kick")
    kick
    >>> def serve():                                   # the device: what it does when it is kicked
    ...     while True:
    ...         device.set_notification(False)
    ...         while (element := device.pop()) is not None:
    ...             element.write(element.read().upper())
    ...             device.push(element, 5)
    ...         device.set_notification(True)          # re-arm, and only then look once more:
    ...         if device.empty():                     # what came in between is not notified
    ...             return
    >>> serve()
    >>> if device.should_notify():                     # ask the ring whether the driver wants an interrupt
    ...     print("interrupt")
    interrupt
    >>> def handle():                                  # the driver: what its interrupt handler does
    ...     while True:
    ...         driver.disable_cb()
    ...         while (used := driver.get_buf()) is not None:
    ...             print(used.data, used.length, read_bytes(mem, back, used.length))
    ...         if driver.enable_cb():                 # re-arms and looks once more, for the same reason
    ...             return
    >>> driver.interrupt()
    True
    >>> handle()
    request 1 5 b'HELLO'
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, NamedTuple

from iosim.ring import split_device, split_driver
from iosim.ring.errors import EMPTY, RingError, raise_for
from iosim.ring.memory import GuestMemory, read_bytes, write_bytes
from iosim.ring.split import new_queue


class Buffer(NamedTuple):
    """A stretch of guest memory."""

    #: Guest-physical address.
    addr: int
    #: Bytes.
    length: int


class Used(NamedTuple):
    """What `DriverSide.get_buf` gives back."""

    #: What the driver gave `DriverSide.add`.
    data: Any
    #: Bytes that the device says it wrote.
    length: int


class Element:
    """One chain of buffers, taken by a device (QEMU: ``VirtQueueElement``).

    Attributes:
        head: The head's index in a split virtqueue, the buffer id in a packed one.
        out_sg: Buffers the device reads.
        in_sg: Buffers the device writes.
    """

    __slots__ = ("head", "in_sg", "mem", "out_sg")

    def __init__(self, mem: GuestMemory, head: int, out_sg: Sequence[Buffer], in_sg: Sequence[Buffer]) -> None:
        self.mem = mem
        self.head = head
        self.out_sg = tuple(out_sg)
        self.in_sg = tuple(in_sg)

    def __repr__(self) -> str:
        return f"Element(head={self.head}, out_sg={list(self.out_sg)}, in_sg={list(self.in_sg)})"

    @property
    def out_size(self) -> int:
        """Bytes the device may read."""
        return sum(buffer.length for buffer in self.out_sg)

    @property
    def in_size(self) -> int:
        """Bytes the device may write."""
        return sum(buffer.length for buffer in self.in_sg)

    def read(self, offset: int = 0, length: int | None = None) -> bytes:
        """Return bytes of the readable buffers, as if they were one (QEMU ``iov_to_buf``).

        Args:
            offset: Bytes to skip.
            length: At most so many bytes; all there are by default.
        """
        parts = []
        left = self.out_size if length is None else length
        for addr, size in self.out_sg:
            if offset >= size:
                offset -= size
                continue
            take = min(size - offset, left)
            if take <= 0:
                break
            parts.append(read_bytes(self.mem, addr + offset, take))
            left -= take
            offset = 0
        return b"".join(parts)

    def write(self, data: bytes | bytearray | memoryview, offset: int = 0) -> int:
        """Write into the writable buffers, as if they were one; return how many bytes fitted (``iov_from_buf``).

        Args:
            data: The bytes.
            offset: Bytes of the writable buffers to leave alone.
        """
        done = 0
        for addr, size in self.in_sg:
            if offset >= size:
                offset -= size
                continue
            take = min(size - offset, len(data) - done)
            if take <= 0:
                break
            write_bytes(self.mem, addr + offset, data[done : done + take])
            done += take
            offset = 0
        return done


class DriverSide:
    """The driver's side of a virtqueue.

    Args:
        q: Its state.
    """

    def __init__(self, q: split_driver.DriverQueue) -> None:
        self.q = q
        self._ops = split_driver
        self._data: dict[int, Any] = {}
        self._free = list(range(q.size - 1, -1, -1))

    @property
    def num_free(self) -> int:
        """Free descriptors."""
        return self.q.num_free

    @property
    def in_flight(self) -> int:
        """Chains the device has not given back."""
        return len(self._data)

    def add(self, out_sg: Sequence[Buffer], in_sg: Sequence[Buffer], data: Any = None) -> None:
        """Make one chain of buffers available (Linux ``virtqueue_add_sgs``).

        Args:
            out_sg: Buffers the device reads.
            in_sg: Buffers the device writes.
            data: What `get_buf` gives back with it.

        Raises:
            NoSpaceError: Too few free descriptors; nothing has changed.
            RingError: The chain is empty or longer than the queue; nothing has changed.
        """
        q = self.q
        if len(out_sg) + len(in_sg) > len(q.seg_addr):
            raise_for(self._ops.add(q, len(out_sg), len(in_sg), 0))
        for i, (addr, length) in enumerate((*out_sg, *in_sg)):
            q.seg_addr[i] = addr
            q.seg_len[i] = length
        token = self._free[-1] if self._free else 0
        raise_for(self._ops.add(q, len(out_sg), len(in_sg), token))
        self._free.pop()
        self._data[token] = data

    def kick_prepare(self) -> bool:
        """Tell whether the device wants to be notified of what was added since the last call."""
        return self._ops.kick_prepare(self.q)

    def more_used(self) -> bool:
        """Tell whether a chain came back that `get_buf` has not taken."""
        return self._ops.more_used(self.q)

    def get_buf(self) -> Used | None:
        """Take the next used chain, or None.

        Raises:
            RingError: What the device wrote cannot be.
        """
        token = raise_for(self._ops.get_used(self.q))
        if token == EMPTY:
            return None
        self._free.append(token)
        return Used(self._data.pop(token), self.q.used_len)

    def interrupt(self) -> bool:
        """Note that the device's interrupt came; tell whether there is something to take."""
        return self._ops.vring_interrupt(self.q)

    def disable_cb(self) -> None:
        """Ask for no more interrupts; a hint."""
        self._ops.disable_cb(self.q)

    def enable_cb(self) -> bool:
        """Ask for an interrupt at the next used chain; False if there already is one to take."""
        return self._ops.enable_cb(self.q)

    def enable_cb_delayed(self) -> bool:
        """Ask for an interrupt once three quarters of what is in flight are used; False if they already are."""
        return self._ops.enable_cb_delayed(self.q)


class DeviceSide:
    """The device's side of a virtqueue.

    Args:
        q: Its state.

    Attributes:
        broken: The driver broke the rules: the queue gives no more elements (QEMU ``virtio_error``).
    """

    def __init__(self, q: split_device.DeviceQueue) -> None:
        self.q = q
        self.broken = False
        self._ops = split_device

    def empty(self) -> bool:
        """Tell whether there is no chain to take; a broken queue has none."""
        return self.broken or self._ops.empty(self.q)

    def pop(self) -> Element | None:
        """Take the next available chain, or None.

        Raises:
            RingError: What the driver wrote cannot be; the queue is broken from now on.
        """
        if self.broken:
            return None
        q = self.q
        try:
            head = raise_for(self._ops.pop(q))
        except RingError:
            self.broken = True
            raise
        if head == EMPTY:
            return None
        sg = [Buffer(q.elem_addr[i], q.elem_len[i]) for i in range(q.elem_out_num + q.elem_in_num)]
        return Element(q.mem, head, sg[: q.elem_out_num], sg[q.elem_out_num :])

    def fill(self, element: Element, length: int, idx: int) -> None:
        """Write a used entry without publishing it, ``idx`` places behind the used index."""
        self._ops.fill(self.q, element.head, length, idx)

    def flush(self, count: int) -> None:
        """Publish ``count`` entries that `fill` has written."""
        self._ops.flush(self.q, count)

    def push(self, element: Element, length: int) -> None:
        """Give one element back, with the number of bytes written into its ``in_sg``."""
        self._ops.push(self.q, element.head, length)

    def set_notification(self, enable: bool) -> None:
        """Say whether the driver shall notify of what it makes available; after enabling, look again."""
        self._ops.set_notification(self.q, enable)

    def should_notify(self) -> bool:
        """Tell whether the driver wants an interrupt for what was used since the last call."""
        return self._ops.should_notify(self.q)


def new_virtqueue(
    mem: GuestMemory, size: int, event_idx: bool = True, start: int = 0
) -> tuple[DriverSide, DeviceSide]:
    """Allocate a virtqueue in guest memory and return both its sides.

    Args:
        mem: Guest memory to take it from.
        size: Descriptors.
        event_idx: Whether VIRTIO_F_EVENT_IDX is negotiated.
        start: The index both sides begin with.

    Raises:
        SizeError: The size is none that a virtqueue can have.
        MemoryFullError: Guest memory has no room for it.
    """
    driver, device = new_queue(mem, size, event_idx, start)
    return DriverSide(driver), DeviceSide(device)
