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

With ``packed=True`` the same loops drive a packed virtqueue.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, NamedTuple

from iosim.ring import device as device_ops
from iosim.ring import driver as driver_ops
from iosim.ring.device_queue import DeviceQueue
from iosim.ring.driver_queue import DriverQueue
from iosim.ring.errors import EMPTY, NOT_IN_FLIGHT, NOT_IN_ORDER, RingError, raise_for
from iosim.ring.layout import DESC_ALIGN, DESC_SIZE
from iosim.ring.memory import GuestMemory, allocate, read_bytes, write_bytes
from iosim.ring.queue import new_queue


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
    """The driver's side of a virtqueue, split or packed.

    Args:
        q: Its state.
    """

    def __init__(self, q: DriverQueue) -> None:
        self.q = q
        self._data: dict[int, Any] = {}
        self._free = list(range(q.size - 1, -1, -1))
        self._spare_tables: list[int] = []
        self._table_of: dict[int, int] = {}

    @property
    def num_free(self) -> int:
        """Free descriptors."""
        return self.q.num_free

    @property
    def in_flight(self) -> int:
        """Chains the device has not given back."""
        return len(self._data)

    def add(
        self,
        out_sg: Sequence[Buffer],
        in_sg: Sequence[Buffer],
        data: Any = None,
        indirect: bool | None = None,
        publish: bool = True,
    ) -> None:
        """Make one chain of buffers available (Linux ``virtqueue_add_sgs``).

        Args:
            out_sg: Buffers the device reads.
            in_sg: Buffers the device writes.
            data: What `get_buf` gives back with it.
            indirect: Whether to put it into an indirect table. By default, as Linux does: where INDIRECT_DESC was
                negotiated and there is more than one buffer. True on a queue without INDIRECT_DESC breaks the rules.
            publish: Whether the device may see it at once. If not, it does with the next chain that is published,
                or at `publish`; so a batch costs one look at the ring.

        Raises:
            NoSpaceError: Too few free descriptors; nothing has changed.
            RingError: The chain is empty or longer than the queue; nothing has changed.
        """
        q = self.q
        total = len(out_sg) + len(in_sg)
        if total > len(q.seg_addr):
            raise_for(driver_ops.add_direct(q, len(out_sg), len(in_sg), 0))
        for i, (addr, length) in enumerate((*out_sg, *in_sg)):
            q.seg_addr[i] = addr
            q.seg_len[i] = length
        token = self._free[-1] if self._free else 0
        if indirect is None:
            indirect = q.indirect and total > 1
        if not indirect:
            raise_for(driver_ops.add_direct(q, len(out_sg), len(in_sg), token))
        elif total <= q.table_size:
            table = q.tables + DESC_SIZE * q.table_size * q.free_head
            raise_for(driver_ops.add_indirect(q, len(out_sg), len(in_sg), token, table))
        else:
            self._add_with_own_table(len(out_sg), len(in_sg), token)
        self._free.pop()
        self._data[token] = data
        if publish:
            driver_ops.publish(q)

    def _add_with_own_table(self, out_num: int, in_num: int, token: int) -> None:
        """Use a table for the longest chain there can be: a spare one, or a new one."""
        q = self.q
        table = self._spare_tables.pop() if self._spare_tables else allocate(q.mem, DESC_SIZE * q.size, DESC_ALIGN)
        head = driver_ops.add_indirect(q, out_num, in_num, token, table)
        if head < 0:
            self._spare_tables.append(table)
        raise_for(head)
        self._table_of[token] = table

    def _release(self, token: int) -> Any:
        self._free.append(token)
        if token in self._table_of:
            self._spare_tables.append(self._table_of.pop(token))
        return self._data.pop(token)

    def publish(self) -> None:
        """Make available, all at once, what was added with ``publish=False``."""
        driver_ops.publish(self.q)

    def kick_prepare(self) -> bool:
        """Tell whether the device wants to be notified of what was published since the last call."""
        return driver_ops.kick_prepare(self.q)

    def more_used(self) -> bool:
        """Tell whether a chain came back that `get_buf` has not taken."""
        return driver_ops.more_used(self.q)

    def get_buf(self) -> Used | None:
        """Take the next used chain, or None.

        Raises:
            RingError: What the device wrote cannot be.
        """
        token = raise_for(driver_ops.get_used(self.q))
        if token == EMPTY:
            return None
        return Used(self._release(token), self.q.used_len)

    def detach_unused(self) -> list[Any]:
        """Take back every chain that the device still has, after it was reset; return what `add` was given.

        Afterwards the queue must be reset, too, before it is used again (Linux ``virtqueue_detach_unused_buf``).
        """
        found = []
        token = driver_ops.detach_unused(self.q)
        while token != EMPTY:
            found.append(self._release(token))
            token = driver_ops.detach_unused(self.q)
        return found

    def interrupt(self) -> bool:
        """Note that the device's interrupt came; tell whether there is something to take."""
        return driver_ops.vring_interrupt(self.q)

    def disable_cb(self) -> None:
        """Ask for no more interrupts; a hint."""
        driver_ops.disable_cb(self.q)

    def enable_cb(self) -> bool:
        """Ask for an interrupt at the next used chain; False if there already is one to take."""
        return driver_ops.enable_cb(self.q)

    def enable_cb_delayed(self) -> bool:
        """Ask for an interrupt once three quarters of what is in flight are used; False if there is cause to look."""
        return driver_ops.enable_cb_delayed(self.q)


class DeviceSide:
    """The device's side of a virtqueue, split or packed.

    Args:
        q: Its state.

    Attributes:
        broken: The driver broke the rules: the queue gives no more elements (QEMU ``virtio_error``).
    """

    def __init__(self, q: DeviceQueue) -> None:
        self.q = q
        self.broken = False

    def empty(self) -> bool:
        """Tell whether there is no chain to take; a broken queue has none."""
        return self.broken or device_ops.empty(self.q)

    def pop(self) -> Element | None:
        """Take the next available chain, or None.

        Raises:
            RingError: What the driver wrote cannot be; the queue is broken from now on.
        """
        if self.broken:
            return None
        q = self.q
        try:
            head = raise_for(device_ops.pop(q))
        except RingError:
            self.broken = True
            raise
        if head == EMPTY:
            return None
        sg = [Buffer(q.elem_addr[i], q.elem_len[i]) for i in range(q.elem_out_num + q.elem_in_num)]
        return Element(q.mem, head, sg[: q.elem_out_num], sg[q.elem_out_num :])

    def unpop(self, element: Element) -> None:
        """Put back the element that was taken last, to be taken again later (QEMU ``virtqueue_unpop``).

        Raises:
            NotInFlightError: The device does not have it.
        """
        self._check(element, 0)
        device_ops.unpop(self.q, element.head)

    def _check(self, element: Element, idx: int) -> None:
        q = self.q
        if q.inuse <= idx or (q.packed and q.elem_ndescs[element.head] == 0):
            raise_for(NOT_IN_FLIGHT)

    def fill(self, element: Element, length: int, idx: int) -> None:
        """Prepare a used entry, number ``idx`` of the batch that `flush` publishes, from 0.

        Raises:
            NotInFlightError: The device does not have that element, or so many.
            NotInOrderError: IN_ORDER was negotiated, and another one is due.
        """
        q = self.q
        self._check(element, idx)
        if q.in_order and q.order[(q.given + idx) % q.size] != element.head:
            raise_for(NOT_IN_ORDER)
        device_ops.fill(q, element.head, length, idx)

    def flush(self, count: int) -> None:
        """Publish ``count`` entries that `fill` has prepared."""
        device_ops.flush(self.q, count)

    def push(self, element: Element, length: int) -> None:
        """Give one element back, with the number of bytes written into its ``in_sg``, from the first on.

        Raises:
            NotInFlightError: The device does not have that element.
            NotInOrderError: IN_ORDER was negotiated, and another one is due.
        """
        self.fill(element, length, 0)
        device_ops.flush(self.q, 1)

    def push_batch(self, element: Element, length: int) -> int:
        """With IN_ORDER, give back all elements up to this one by one used entry; return how many they are.

        Raises:
            NotInFlightError: The device does not have that element.
            NotInOrderError: IN_ORDER was not negotiated.
        """
        if not self.q.in_order:
            raise_for(NOT_IN_ORDER)
        return raise_for(device_ops.push_batch(self.q, element.head, length))

    def set_notification(self, enable: bool) -> None:
        """Say whether the driver shall notify of what it makes available; after enabling, look again."""
        device_ops.set_notification(self.q, enable)

    def should_notify(self) -> bool:
        """Tell whether the driver wants an interrupt for what was used since the last call."""
        return device_ops.should_notify(self.q)


def new_virtqueue(
    mem: GuestMemory,
    size: int,
    event_idx: bool = True,
    start: int = 0,
    *,
    indirect: bool = False,
    in_order: bool = False,
    packed: bool = False,
) -> tuple[DriverSide, DeviceSide]:
    """Allocate a virtqueue in guest memory and return both its sides.

    Args:
        mem: Guest memory to take it from.
        size: Descriptors; split: a power of two from 1 to 32768, packed: 1 to 32768.
        event_idx: Whether VIRTIO_F_EVENT_IDX is negotiated.
        start: The index both sides begin with (packed: place in the ring, counted on beyond its end).
        indirect: Whether VIRTIO_F_INDIRECT_DESC is negotiated.
        in_order: Whether VIRTIO_F_IN_ORDER is.
        packed: Whether VIRTIO_F_RING_PACKED is.

    Raises:
        SizeError: The size is none that a virtqueue of this format can have.
        MemoryFullError: Guest memory has no room for it.
    """
    driver, device = new_queue(
        mem, size, event_idx, start, packed=packed, indirect=indirect, in_order=in_order
    )
    return DriverSide(driver), DeviceSide(device)
